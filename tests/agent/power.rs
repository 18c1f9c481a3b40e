//! A power cut: the filesystem stops at once, and what was not on the disk by then is gone. What was published is whole.

use std::path::Path;

use super::*;
use crate::support::loopdev::{Kind, LoopFs, needs_root};
use crate::support::processes::workers;
use crate::support::repository::{TestRepo, git_out};
use crate::support::upstream::Upstream;

/// Every snapshot that is there, checked by git.
fn snapshots(pool: &Path) -> usize {
    let mut count = 0;
    for repository in std::fs::read_dir(pool.join("stoker/repositories")).unwrap() {
        let snapshots = std::fs::read_dir(repository.unwrap().path().join("snapshots"));
        for snapshot in snapshots.into_iter().flatten() {
            git_out(&snapshot.unwrap().path(), &["fsck", "--connectivity-only", "--no-dangling", "--strict"]);
            count += 1;
        }
    }
    count
}

/// An agent with a filled mirror on a filesystem of its own.
async fn filled(kind: Kind, url: &str) -> (Agent, LoopFs) {
    let pool = "path: $ROOT/pool, mount: required";
    let mut agent = prepared(&configuration(pool, &[url]));
    let mount = agent.root().join("pool");
    std::fs::create_dir(&mount).unwrap();
    let mut filesystem = LoopFs::unmounted(kind, 400 << 20).at(&mount);
    filesystem.mount();
    agent.launch();
    agent.wait_ready();
    mirror_ready(&agent, url).await;
    (agent, filesystem)
}

/// Takes the power from all of it. The filesystem is there again, the agent is not.
fn lose_power(agent: &mut Agent, filesystem: &mut LoopFs) {
    filesystem.cut_power();
    let alive = workers(agent.root());
    agent.kill9();
    for (pid, _) in alive {
        // A power cut spares no child either.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    wait::until(LIMIT, "nothing holds the disk", || filesystem.try_unmount());
    filesystem.mount();
}

async fn survives(kind: Kind) {
    let repo = TestRepo::generated(200, 4_000_000, 2);
    let base = repo.commit("main");
    let (upstream, url) = Upstream::of(&repo);
    let (mut agent, mut filesystem) = filled(kind, &url).await;
    let mount = filesystem.path().to_owned();
    for round in 0..4_u32 {
        let content: Vec<u8> =
            (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761 + round) >> 24) as u8).collect();
        let new = repo.force_push("main", &base, &format!("round{round}"), &content);
        if round % 2 == 0 {
            // Right after a publication: all of it was promised to be on the disk.
            refresh(&agent, &url).await.unwrap();
        } else {
            // In the middle of one.
            let before = upstream.requests().fetches;
            let request = v1::RefreshRepositoryRequest { url: url.clone(), only_if_empty: false };
            drop(agent.repository().await.refresh_repository(request).await.unwrap());
            wait::until(LIMIT, "objects come", || upstream.requests().fetches > before);
        }
        lose_power(&mut agent, &mut filesystem);
        assert!(snapshots(&mount) > 0, "round {round}: at least one state was on the disk");
        agent.launch();
        agent.wait_ready();
        if round % 2 == 0 {
            upstream.stop();
            let found = resolve(&agent, commit(&url, &new), LIMIT).await.unwrap().resolved.unwrap();
            assert_eq!(found.commit, new, "round {round}: what was published is there without upstream");
            upstream.resume();
        }
        refresh(&agent, &url).await.unwrap();
        let mirror = mirror_ready(&agent, &url).await;
        let snapshot = mount.join("stoker/repositories").join(&mirror.folder).join("snapshots").join(&mirror.snapshot);
        git_out(&snapshot, &["fsck", "--connectivity-only", "--no-dangling", "--strict"]);
        assert_eq!(git_out(&snapshot, &["rev-parse", "refs/heads/main"]), new);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_survives_a_power_cut_on_xfs() {
    needs_root!();
    survives(Kind::Xfs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_survives_a_power_cut_on_ext4() {
    needs_root!();
    survives(Kind::Ext4).await;
}

/// What is known of a repository is also written where nothing came: a fetch that failed, a use. Found by the campaign:
/// the file was there and empty, so that the repository went with all its snapshots.
async fn keeps_what_it_knows(kind: Kind) {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let (mut agent, mut filesystem) = filled(kind, &url).await;
    upstream.stop();
    refresh(&agent, &url).await.unwrap_err();
    // That was written down; now somebody else has the filesystem write its log.
    std::fs::File::create_new(filesystem.path().join("other")).unwrap().sync_all().unwrap();
    lose_power(&mut agent, &mut filesystem);
    agent.launch();
    agent.wait_ready();
    let main = repo.commit("main");
    let found = resolve(&agent, commit(&url, &main), LIMIT).await.unwrap().resolved.unwrap();
    assert_eq!(found.commit, main, "it is there without upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_survives_a_power_cut_on_xfs() {
    needs_root!();
    keeps_what_it_knows(Kind::Xfs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_survives_a_power_cut_on_ext4() {
    needs_root!();
    keeps_what_it_knows(Kind::Ext4).await;
}
