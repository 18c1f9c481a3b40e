//! Who holds a repository's snapshots, by name.

use stoker_proto::v1;

use super::*;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

fn held_by(repository: &v1::Repository) -> Vec<(&str, &str, &str)> {
    repository.held_by.iter().map(|held| (held.kind.as_str(), held.id.as_str(), held.snapshot.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_tells_who_holds_its_snapshots() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let beside = TestRepo::standard();
    let other = upstream.host("team/other.git", &beside);
    let agent = start(&configuration(PLAIN, &[&url, &other]));
    let first = mirror_ready(&agent, &url).await.snapshot;
    mirror_ready(&agent, &other).await;
    assert_eq!(held_by(&repository(&agent, &url).await), []);

    let lease = admit(&agent, order("lease", branch(&url, "main"), size(20_000, 20 * GIB))).await.unwrap().granted();
    let workspace = prepare(&agent, &lease.id).await.unwrap();
    // Another state of it, for one that waits.
    repo.commit_file("main", "new", b"new\n");
    let waiting = admit(&agent, order("ticket", branch(&url, "main"), size(20_000, 20 * GIB))).await.unwrap().waiting();
    let ticket = waiting.ticket.unwrap().id;
    let pin = v1::PinRepositoryRequest { url: url.clone(), pinned: true };
    agent.repository().await.pin_repository(pin).await.unwrap();
    let now = repository(&agent, &url).await;
    assert_ne!(now.snapshot, first);
    let expected = [
        ("lease", lease.id.as_str(), first.as_str()),
        ("ticket", &ticket, &now.snapshot),
        ("workspace", &workspace.id, &first),
        ("pin", "", &now.snapshot),
    ];
    assert_eq!(held_by(&now), expected);
    assert_eq!(now.snapshots_in_use, 2);
    assert_eq!(held_by(&repository(&agent, &other).await), []);
    let shown = agent.stoker().run(["repo", "show", &url]).expect_code(0).stdout;
    for words in [format!("lease {} (snapshot {first})", lease.id), format!("ticket {ticket}"), "its pin".to_owned()] {
        assert!(shown.contains(&words), "{words}:\n{shown}");
    }

    release(&agent, &lease.id).await.unwrap();
    let ended = async || {
        let now = repository(&agent, &url).await;
        now.held_by.iter().all(|held| held.kind != "lease" || held.id != lease.id)
    };
    wait::until_async(LIMIT, "the lease holds nothing any more", ended).await;
}
