//! SIGKILL while git works: the mirror gets whole, and nothing of the dead stays.

use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::support::chance::{self, Chance, from_environment};
use crate::support::disk::leftovers;
use crate::support::processes::workers;
use crate::support::repository::{TestRepo, git_out};
use crate::support::upstream::{Fault, Upstream};

/// Whether the mirror is what upstream is; with all that the snapshots' folder holds.
#[track_caller]
fn assert_whole(agent: &Agent, mirror: &v1::Repository, repo: &TestRepo) {
    let repositories = agent.root().join("pool/stoker/repositories");
    let folder: PathBuf = repositories.join(&mirror.folder);
    let snapshot = folder.join("snapshots").join(&mirror.snapshot);
    git_out(&snapshot, &["fsck", "--connectivity-only", "--no-dangling", "--strict"]);
    let lines = git_out(&snapshot, &["for-each-ref", "--format=%(refname) %(objectname)"]);
    let followed = |name: &str| name.starts_with("refs/heads/") || name.starts_with("refs/tags/");
    let refs = repo.refs().into_iter().filter(|(name, _)| followed(name));
    let refs: Vec<_> = refs.map(|(name, id)| format!("{name} {id}")).collect();
    assert_eq!(lines.lines().collect::<Vec<_>>(), refs);
    for dir in [&repositories, &repositories.with_file_name("stores")] {
        assert_eq!(leftovers(dir), Vec::<PathBuf>::new());
    }
    let known: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(known.iter().all(|name| ["snapshots", "meta", "seen"].contains(&name.to_str().unwrap())), "{known:?}");
    let snapshots = std::fs::read_dir(folder.join("snapshots")).unwrap().count();
    assert_eq!(snapshots, usize::try_from(mirror.snapshots).unwrap(), "half snapshots are gone");
}

/// `STOKER_KILL_ROUNDS` (6) kills, half of them during a first clone, half during a fetch, at moments that
/// `STOKER_KILL_SEED` decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_gets_whole_after_kills_at_any_moment() {
    let rounds = from_environment("STOKER_KILL_ROUNDS", 6);
    let seed = chance::seed("STOKER_KILL_SEED");
    eprintln!("STOKER_KILL_ROUNDS={rounds} STOKER_KILL_SEED={seed}");
    let mut chance = Chance::new(seed);
    let repo = TestRepo::generated(400, 12_000_000, 2);
    let base = repo.commit("main");
    let upstream = Upstream::start();
    upstream.delay(Duration::from_millis(30));
    let mut agent = start(&configuration(PLAIN, &[]));
    let mut interrupted = [0_u32; 2];
    let mut took = [Duration::from_secs(1); 2];
    let mut recovered = Duration::ZERO;
    for round in 0..rounds {
        let clone = round % 2 == 0;
        let number = round / 2;
        let url = upstream.url(&format!("team/project{number}.git"));
        let begin = Instant::now();
        if clone {
            upstream.host(&format!("team/project{number}.git"), &repo);
            let add = v1::AddRepositoryRequest { url: url.clone(), ..Default::default() };
            agent.repository().await.add_repository(add).await.unwrap();
        } else {
            let content = chance.noise(6_000_000);
            // Always on the same parent: so the last round is not larger than the first.
            repo.force_push("main", &base, &format!("round{round}"), &content);
            let request = v1::RefreshRepositoryRequest { url: url.clone(), only_if_empty: false };
            drop(agent.repository().await.refresh_repository(request).await.unwrap());
        }
        let kind = usize::from(!clone);
        let moment = Duration::from_millis(chance.below(u64::try_from(took[kind].as_millis()).unwrap()));
        // Not a condition but a moment: that is what the test is about.
        wait::holds_within(moment, || false);
        let alive = workers(agent.root());
        agent.kill9();
        interrupted[kind] += u32::from(!alive.is_empty());
        let restart = Instant::now();
        agent.launch();
        agent.wait_ready();
        recovered = recovered.max(restart.elapsed());
        let outlived: Vec<_> = workers(agent.root()).into_iter().filter(|worker| alive.contains(worker)).collect();
        assert_eq!(outlived, [], "round {round}: git children of the killed agent live on");
        refresh(&agent, &url).await.unwrap();
        let mirror = mirror_ready(&agent, &url).await;
        assert_whole(&agent, &mirror, &repo);
        // From the second round on the moments lie within what such a round really takes.
        took[kind] = begin.elapsed().saturating_sub(moment).max(Duration::from_millis(300)).min(Duration::from_secs(3));
    }
    eprintln!(
        "of {rounds} kills {interrupted:?} hit a git at work (clones, fetches); ready again within {recovered:?}"
    );
}

/// A repository that somebody added is still to be filled after a kill, without anybody asking again.
#[tokio::test(flavor = "multi_thread")]
async fn an_added_repository_is_filled_after_a_kill() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.fault(Fault::Hang);
    let mut agent = start(&configuration(PLAIN, &[]));
    let add = v1::AddRepositoryRequest { url: url.clone(), ..Default::default() };
    agent.repository().await.add_repository(add).await.unwrap();
    wait::until(LIMIT, "upstream is asked", || upstream.requests().total() > 0);
    agent.kill9();
    upstream.fault(Fault::None);
    agent.launch();
    agent.wait_ready();
    mirror_ready(&agent, &url).await;
}

/// A git that waits for a silent upstream notices nothing by itself.
#[tokio::test(flavor = "multi_thread")]
async fn git_children_of_a_killed_agent_end_with_the_next() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let mut agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    repo.commit_file("main", "more", b"more\n");
    upstream.reset();
    upstream.delay(Duration::from_secs(4));
    let request = v1::RefreshRepositoryRequest { url: url.clone(), only_if_empty: false };
    drop(agent.repository().await.refresh_repository(request).await.unwrap());
    wait::until(LIMIT, "the fetch is waiting", || {
        upstream.requests().info_refs == 1 && workers(agent.root()).iter().any(|(_, command)| command.contains("fetch"))
    });
    upstream.fault(Fault::Hang);
    let alive = workers(agent.root());
    agent.kill9();
    agent.launch();
    agent.wait_ready();
    let outlived: Vec<_> = workers(agent.root()).into_iter().filter(|worker| alive.contains(worker)).collect();
    assert_eq!(outlived, []);
    upstream.delay(Duration::ZERO);
    upstream.fault(Fault::None);
    refresh(&agent, &url).await.unwrap();
    let mirror = mirror_ready(&agent, &url).await;
    assert_whole(&agent, &mirror, &repo);
}
