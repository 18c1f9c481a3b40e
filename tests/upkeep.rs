//! Upkeep, eviction and the read-only path of a real agent, while upstream does what upstreams do.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stoker_proto::v1;

use crate::support::loopdev::{Kind, LoopFs, needs_root};
use crate::support::processes::git_children;
use crate::support::repository::{TestRepo, git, git_out};
use crate::support::stoker::Agent;
use crate::support::upstream::Upstream;
use crate::support::wait;
use crate::support::wire::source;

const LIMIT: Duration = Duration::from_secs(90);

/// An agent whose upkeep is as aggressive as it can be. `pool` and `more` are the rest of these sections.
fn configuration(pool: &str, more: &str) -> String {
    format!(
        "pools: [{{name: data, floor: {{bytes: 1MiB, inodes: 10}}, {pool}}}]\n\
         repositories:\n  add: on-demand\n  allow: [127.0.0.1]\n  protocols: [http]\n  refresh: 24h\n\
         \x20 upkeep: {{every: 1s, fullEvery: 1s, grace: 0s}}\n{more}\
         listen: {{socket: $ROOT/run/stoker.sock, http: {{address: '127.0.0.1:$PORT'}}}}\n"
    )
}

const PLAIN: &str = "path: $ROOT/pool, mount: optional";

async fn repository(agent: &Agent, url: &str) -> v1::Repository {
    let request = v1::GetRepositoryRequest { url: url.to_owned() };
    agent.repository().await.get_repository(request).await.unwrap().into_inner().repository.unwrap()
}

async fn resolve(agent: &Agent, url: &str, reference: &str) -> v1::Resolved {
    let request = v1::ResolveSourceRequest { source: Some(source(url, reference)) };
    agent.repository().await.resolve_source(request).await.unwrap().into_inner().resolved.unwrap()
}

fn snapshots(pool: &Path, folder: &str) -> PathBuf {
    pool.join("stoker/repositories").join(folder).join("snapshots")
}

/// Every snapshot that is there, whole. Gives their number.
#[track_caller]
fn assert_all_whole(pool: &Path, folder: &str) -> usize {
    let all: Vec<_> = std::fs::read_dir(snapshots(pool, folder)).unwrap().flatten().map(|entry| entry.path()).collect();
    let whole = all.iter().filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.'));
    whole.inspect(|path| drop(git_out(path, &["fsck", "--strict", "--no-dangling"]))).count()
}

/// The newest snapshot, whole: older ones may be evicted at any moment.
async fn assert_newest_whole(agent: &Agent, pool: &Path, url: &str) {
    let now = repository(agent, url).await;
    git_out(&snapshots(pool, &now.folder).join(&now.snapshot), &["fsck", "--strict", "--no-dangling"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_and_clones_stay_whole_while_upkeep_never_rests() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration(PLAIN, "  paths: {directory: mirrors}\n"));
    let first = resolve(&agent, &url, "branch:main").await;
    let shown = repository(&agent, &url).await;
    let pool = agent.root().join("pool");
    let entry = pool.join("mirrors/project");
    wait::until(LIMIT, "the read-only path", || entry.join("HEAD").is_file());
    let borrower = agent.root().join("borrower");
    let cloned = git(agent.root())
        .args(["clone", "--quiet", "--reference"])
        .arg(&entry)
        .args([url.as_str()])
        .arg(&borrower)
        .output();
    assert!(cloned.unwrap().status.success());
    let held = git_out(&borrower, &["rev-parse", "origin/develop"]);
    let (begun, mut slowest, mut rounds) = (Instant::now(), Duration::ZERO, 0);
    while begun.elapsed() < Duration::from_secs(20) {
        let content = format!("round {rounds}\n");
        let branch = format!("round-{}", rounds % 3);
        let expected = match rounds % 4 {
            0 => repo.force_push("develop", "v1.0", "develop.txt", content.as_bytes()),
            1 => {
                repo.commit_file(&branch, "file.txt", content.as_bytes());
                repo.delete_branch(&branch);
                repo.commit_file("develop", "more.txt", content.as_bytes())
            }
            _ => repo.commit_file("develop", "more.txt", content.as_bytes()),
        };
        let asked = Instant::now();
        let resolved = resolve(&agent, &url, "branch:develop").await;
        slowest = slowest.max(asked.elapsed());
        assert_eq!(resolved.commit, expected);
        let snapshot = snapshots(&pool, &shown.folder).join(&resolved.snapshot);
        git_out(&snapshot, &["rev-list", "--objects", "--quiet", &expected]);
        if rounds % 8 == 0 {
            let made =
                agent.stoker().run(["workspace", "prepare", "--repo", &url, "--ref", "branch:develop", "-o", "json"]);
            let src = made.expect_code(0).json()["workspace"]["src"].as_str().unwrap().to_owned();
            git_out(Path::new(&src), &["fsck", "--strict", "--no-dangling"]);
        }
        rounds += 1;
    }
    // The last fetches may have come after the last time that somebody looked.
    let upkept = async || {
        let now = repository(&agent, &url).await;
        now.packs <= 8 && now.last_upkeep.is_some_and(|last| last.what.contains("full"))
    };
    wait::until_async(LIMIT, "a full repack, and few packs", upkept).await;
    let now = repository(&agent, &url).await;
    let whole = assert_all_whole(&pool, &shown.folder);
    println!(
        "{rounds} fetches, the slowest took {slowest:?}; {whole} snapshots; {} packs; {:?}",
        now.packs, now.last_upkeep
    );
    assert!(rounds >= 5 && now.packs <= 8, "{now:?}");
    git_out(&borrower, &["fsck", "--strict"]);
    git_out(&borrower, &["rev-list", "--objects", "--quiet", &held]);
    assert_eq!(
        git_out(&snapshots(&pool, &shown.folder).join(&first.snapshot), &["rev-parse", "refs/heads/develop"]),
        held
    );
    let text = agent.stoker().run(["repo", "show", &url]).expect_code(0).stdout;
    println!("{text}\n{}", agent.stoker().run(["repo", "list"]).expect_code(0).stdout);
    assert!(text.contains("upkeep") && text.contains("became"), "{text}");
}

/// The git children of this agent that repack, by their process id.
fn repacking(agent: &Agent) -> Vec<Pid> {
    let children = git_children(&agent.root().join("state")).into_iter();
    children.filter(|(_, command)| command.contains("pack-objects")).map(|(pid, _)| pid).collect()
}

/// Takes all room of a filesystem; gives the file that has it.
fn fill_up(place: &Path) -> PathBuf {
    let path = place.join("ballast");
    let mut file = std::fs::File::create(&path).unwrap();
    for size in [1 << 20, 4096] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
    let _ = file.sync_all();
    path
}

async fn full_disk(kind: Kind) {
    let disk = LoopFs::new(kind, 400 << 20);
    let repo = TestRepo::generated(2000, 60_000_000, 2);
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration(&format!("path: {}", disk.path().display()), ""));
    let expected = resolve(&agent, &url, "branch:main").await;
    // A repack under way, and the disk full.
    let mut changes = 0;
    let stopped = 'found: loop {
        repo.commit_file("main", "change.txt", format!("{changes}").as_bytes());
        changes += 1;
        assert!(changes < 30, "no repack was seen");
        resolve(&agent, &url, "branch:main").await;
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            if let Some(pid) = repacking(&agent).first().copied()
                && kill(pid, Signal::SIGSTOP).is_ok()
            {
                break 'found pid;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let ballast = fill_up(disk.path());
    let _ = kill(stopped, Signal::SIGCONT);
    wait::until(LIMIT, "the end of the repack", || repacking(&agent).is_empty());
    assert_newest_whole(&agent, disk.path(), &url).await;
    // What is here is served; the lack is told.
    let request = v1::Source {
        max_age: crate::support::wire::seconds(3600),
        ..source(&url, &format!("sha:{}", expected.commit))
    };
    let request = v1::ResolveSourceRequest { source: Some(request) };
    let answer = agent.repository().await.resolve_source(request).await.unwrap().into_inner();
    assert_eq!(answer.resolved.unwrap().commit, expected.commit);
    wait::until(LIMIT, "the lack in the log", || agent.log().contains("DISK_FLOOR"));
    // Their grace of ten minutes is not over.
    wait::until(LIMIT, "an eviction", || agent.log().contains("evicted: old snapshot"));
    let store = repository(&agent, &url).await.store;
    let store = disk.path().join("stoker/stores").join(store).join("store.git");
    // Its upkeep goes on, and is git's own user meanwhile.
    git_out(&store, &["-c", "safe.directory=*", "rev-list", "--objects", "--all", "--quiet"]);
    std::fs::remove_file(ballast).unwrap();
    let new = repo.commit_file("main", "after.txt", b"after\n");
    wait::until_async(LIMIT, "a fetch", async || {
        let request = v1::ResolveSourceRequest { source: Some(source(&url, "branch:main")) };
        agent
            .repository()
            .await
            .resolve_source(request)
            .await
            .is_ok_and(|answer| answer.into_inner().resolved.unwrap().commit == new)
    })
    .await;
    wait::until_async(LIMIT, "upkeep", async || {
        let now = repository(&agent, &url).await;
        now.last_upkeep.is_some() && now.upkeep_skipped.is_none() && now.packs <= 2
    })
    .await;
    assert_newest_whole(&agent, disk.path(), &url).await;
    let left: Vec<_> =
        std::fs::read_dir(store.join("objects/pack")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().contains("tmp")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_during_a_repack_breaks_nothing_on_ext4() {
    needs_root!();
    full_disk(Kind::Ext4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_during_a_repack_breaks_nothing_on_xfs() {
    needs_root!();
    full_disk(Kind::Xfs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lost_its_packs_or_its_head_is_never_published_and_is_mended() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration(PLAIN, ""));
    let first = resolve(&agent, &url, "branch:main").await;
    let shown = repository(&agent, &url).await;
    let pool = agent.root().join("pool");
    let store = pool.join("stoker/stores").join(&shown.store).join("store.git");
    let whole = async || {
        assert_newest_whole(&agent, &pool, &url).await;
        let now = repository(&agent, &url).await;
        assert!(now.objects > 0 && now.refs == shown.refs, "{now:?}");
        assert_eq!(resolve(&agent, &url, "branch:main").await.commit, first.commit);
    };
    for pack in std::fs::read_dir(store.join("objects/pack")).unwrap() {
        std::fs::remove_file(pack.unwrap().path()).unwrap();
    }
    wait::until(LIMIT, "the loss is seen", || agent.log().contains("the store may be damaged"));
    wait::until_async(LIMIT, "it is mended", || async {
        repository(&agent, &url).await.heals.iter().any(|heal| heal.step != "failed")
    })
    .await;
    whole().await;
    // As the power leaves a file that was not synced.
    std::fs::write(store.join("HEAD"), "").unwrap();
    let new = repo.commit_file("main", "new.txt", b"new\n");
    assert_eq!(resolve(&agent, &url, "branch:main").await.commit, new);
    assert_newest_whole(&agent, &pool, &url).await;
    assert!(!agent.log().contains("UPSTREAM_"), "it is nobody else's fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_and_its_limits_are_told_on_all_faces() {
    let upstream = Upstream::start();
    let repos: Vec<TestRepo> = (0..3)
        .map(|n| {
            let repo = TestRepo::generated(10, 3_000_000, 1);
            repo.commit_file("main", "own.txt", format!("{n}").as_bytes());
            repo
        })
        .collect();
    let urls: Vec<String> =
        repos.iter().enumerate().map(|(n, repo)| upstream.host(&format!("team{n}/project{n}.git"), repo)).collect();
    let more = format!(
        "  limit: 1MiB\n  minAge: 0s\n  mirrors:\n    - {{url: '{}', pin: true, trust: a}}\n    - {{url: '{}', trust: b}}\n    - {{url: '{}', trust: c}}\n",
        urls[0],
        urls[1],
        upstream.url("none/never.git")
    );
    let agent = Agent::start(&configuration(PLAIN, &more));
    let readyz = || agent.http_get("/readyz").map(|(_, body)| body).unwrap_or_default();
    wait::until(LIMIT, "the lack", || readyz().contains("REPOSITORIES_LIMIT"));
    wait::until(LIMIT, "an alarm of the mirror that never filled", || {
        readyz().lines().any(|line| line.contains("none/never") && line.starts_with("REPOSITORY_EMPTY"))
    });
    let refused = agent.stoker().run(["resolve", &urls[2], "branch:main"]);
    assert!(refused.code() != Some(0) && refused.stderr.contains("REPOSITORIES_LIMIT"), "{refused:?}");
    let metrics = agent.http_get("/metrics").unwrap().1;
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {metrics}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(value("stoker_repositories_over_limit") == 1.0 && value("stoker_mirrors_empty") >= 1.0);
    assert!(value("stoker_repositories_disk_bytes") > f64::from(1 << 20));
    let status = agent.stoker().run(["status"]).expect_code(0).stdout;
    println!("{status}");
    assert!(
        status.contains("ALARMS") && status.contains("[REPOSITORIES_LIMIT]") && status.contains("none/never"),
        "{status}"
    );
    let pinned = repository(&agent, &urls[0]).await;
    assert!(!pinned.snapshot.is_empty() && pinned.evicted_at.is_none(), "{pinned:?}");
}
