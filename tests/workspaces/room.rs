//! Sources that do not fit: refused before anything is written, or ended while they are, with nothing left.

use std::collections::BTreeSet;

use nix::sys::signal::{Signal, kill};

use super::*;
use crate::support::disk::assert_no_workspace;
use crate::support::loopdev::Ballast;
use crate::support::processes::git_children;
use crate::support::wait;

const PART: usize = 10 << 20;

/// A branch at `main` whose sources are so many parts larger; they compress to nearly nothing. Its commit.
fn grown(repo: &TestRepo, branch: &str, parts: u8) -> String {
    let content: Vec<Vec<u8>> = (1..=parts).map(|number| vec![number; PART]).collect();
    let names: Vec<String> = (1..=parts).map(|number| format!("{branch}-{number}")).collect();
    let files: Vec<_> =
        names.iter().zip(&content).map(|(name, content)| ("100644", name.as_str(), &content[..])).collect();
    repo.commit_tree(branch, &files, &[])
}

/// Nothing of what was refused is on the disk, and no checkout but of these commits.
fn assert_clean(pool: &Path, commits: &[&String]) {
    wait::until(LIMIT, "what was thrown away goes", || names(&pool.join("stoker/trash")).is_empty());
    assert!(kept(pool).keys().all(|commit| commits.contains(&commit)), "{:?}", kept(pool));
    let folders = names(&pool.join("stoker/checkouts")).into_iter().filter(|name| !name.ends_with(".json"));
    assert!(folders.count() <= commits.len(), "{:?}", names(&pool.join("stoker/checkouts")));
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_do_not_fit_are_refused_and_leave_nothing() {
    needs_root!();
    let repo = TestRepo::standard();
    grown(&repo, "large", 16);
    let (_upstream, url) = Upstream::of(&repo);
    for method in ["overlay", "checkout"] {
        let filesystem = LoopFs::new(Kind::Ext4, 128 << 20);
        let pool = filesystem.path();
        let agent = Agent::start(&configuration(pool, &format!("workspaces: {{method: {method}}}")));
        let refused = prepare_as(&agent, source(&url, "branch:large"), "large", Default::default()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
        for said in ["the sources take about 160 MiB", "are its floor", "free some there"] {
            assert!(refused.message().contains(said), "{method}: {refused:?}");
        }
        assert_clean(pool, &[]);
        assert_no_workspace(pool);
        // What fits is made.
        let small = prepare_as(&agent, source(&url, "branch:main"), "small", Default::default()).await.unwrap();
        assert_eq!(as_owner(Path::new(&small.src), None, "git status --porcelain"), "");
        delete(&agent, &small.id).await;
    }
}

/// A lease that may write 60 MiB.
async fn admit(agent: &Agent, from: v1::Source) -> String {
    let mib = |count: i64| Some(count << 20);
    let declared = v1::Size {
        cpu_millis: Some(10),
        memory_bytes: mib(1),
        disk_bytes: mib(60),
        disk_inodes: Some(1000),
        ..Default::default()
    };
    let build = v1::Build { source: Some(from), declared: Some(declared), ..Default::default() };
    let request = v1::AdmitRequest { request_id: "lease".into(), build: Some(build), ..Default::default() };
    match agent.admission().await.admit(request).await.unwrap().into_inner().decision {
        Some(v1::admit_response::Decision::Granted(lease)) => lease.id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_holds_makes_room_and_what_leases_may_write_is_kept() {
    needs_root!();
    // Some 290 MiB of room.
    let filesystem = LoopFs::new(Kind::Ext4, 320 << 20);
    let pool = filesystem.path();
    let repo = TestRepo::standard();
    let parts = [6, 6, 6, 12, 14].into_iter().enumerate();
    let commits: Vec<String> = parts.map(|(number, parts)| grown(&repo, &format!("b{number}"), parts)).collect();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration(pool, ""));
    let sources = |number: usize| source(&url, &format!("sha:{}", commits[number]));
    let lease = admit(&agent, sources(3)).await;
    for number in [0, 1, 2] {
        let id = format!("gone-{number}");
        let workspace = prepare_as(&agent, sources(number), &id, Default::default()).await.unwrap();
        delete(&agent, &workspace.id).await;
    }
    assert_eq!(kept(pool).len(), 3, "there is room for all");
    // The one not used for longest goes before those of the lease come, which may use what the lease holds.
    let prepare = ["workspace", "prepare", "--lease", &lease, "-o", "json"];
    let own = agent.stoker().command(prepare).deadline(LIMIT).run().expect_code(0).json();
    let src = PathBuf::from(own["workspace"]["src"].as_str().unwrap());
    assert_eq!(kept(pool).keys().collect::<BTreeSet<_>>(), commits[1..4].iter().collect());
    // For others there is no room beside what it may write, whatever is evicted.
    let refused = prepare_as(&agent, sources(4), "refused", Default::default()).await.unwrap_err();
    assert!(refused.message().contains("60 MiB what other leases may still write"), "{refused:?}");
    assert_clean(pool, &[&commits[3]]);
    prepare_as(&agent, source(&url, "branch:main"), "small", Default::default()).await.unwrap();
    assert_eq!(as_owner(&src, None, "git status --porcelain; git fsck --no-progress"), "");
    // When its lease has ended there is.
    agent.stoker().run(["lease", "release", &lease, "--outcome", "succeeded"]).expect_code(0);
    wait::until(LIMIT, "its workspace went", || !src.exists());
    prepare_as(&agent, sources(4), "fits", Default::default()).await.unwrap();
    assert!(kept(pool).contains_key(&commits[4]));
}

#[test]
fn a_checkout_that_keeps_the_pool_below_its_floor_is_ended() {
    needs_root!();
    let repo = TestRepo::standard();
    grown(&repo, "large", 24);
    let (_upstream, url) = Upstream::of(&repo);
    for method in ["overlay", "checkout"] {
        let filesystem = LoopFs::new(Kind::Ext4, 512 << 20);
        let pool = filesystem.path();
        let agent = Agent::start(&configuration(pool, &format!("workspaces: {{method: {method}}}")));
        agent.stoker().run(["repo", "add", &url]).expect_code(0);
        let prepare = ["workspace", "prepare", "--repo", &url, "--ref", "branch:large"];
        let running = agent.stoker().command(prepare).deadline(LIMIT).spawn();
        // Held where it has written some of the files, while somebody else fills the disk.
        let mut writer = None;
        wait::until(LIMIT, "git writes files", || {
            let children = git_children(&agent.root().join("state"));
            writer = children.into_iter().find(|(_, command)| command.contains("read-tree")).map(|(pid, _)| pid);
            writer.is_some_and(|pid| kill(pid, Signal::SIGSTOP).is_ok())
        });
        let full = Ballast::leave(pool, 512 << 10);
        let output = running.wait();
        assert_eq!(output.code(), Some(2), "{method}: {output:?}");
        for said in ["DISK_FLOOR", "checking out was ended", "its floor is 1 MiB", "free some"] {
            assert!(output.stderr.contains(said), "{method}, {said}: {}", output.stderr);
        }
        wait::until(LIMIT, "git is gone", || kill(writer.unwrap(), None).is_err());
        assert_clean(pool, &[]);
        assert_no_workspace(pool);
        drop(full);
        let prepare = [&prepare[..], &["-o", "json"]].concat();
        let made = agent.stoker().command(prepare).deadline(LIMIT).run().expect_code(0).json();
        let src = Path::new(made["workspace"]["src"].as_str().unwrap());
        assert_eq!(as_owner(src, None, "git status --porcelain"), "");
    }
}
