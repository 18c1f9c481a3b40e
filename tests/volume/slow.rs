//! What takes long to come keeps nobody from leaving.

use nix::libc;
use stoker_proto::v1::ListWorkspacesRequest;

use super::*;
use crate::support::loopdev::{Kind, LoopFs};

const MIRRORS: [(&str, &str); 1] = [("kind", "mirrors")];
/// Far less than a laying-out is waited for by the call that asks for it.
const AT_ONCE: Duration = Duration::from_secs(4);

/// Nothing can be written to the pool, so the mirrors are not laid out.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_unmounts_waits_until_mirrors_are_laid_out() {
    needs_root!();
    let mut disk = None;
    let world = World::with(TestRepo::standard(), "", |shared| {
        let pool = shared.join("pool");
        std::fs::create_dir(&pool).unwrap();
        let filesystem = disk.insert(LoopFs::unmounted(Kind::Ext4, 256 << 20).at(&pool));
        filesystem.mount();
    });
    world.fill();
    let (cache, slow, build) = (world.pod("uid-a"), world.pod("uid-b"), world.pod("uid-c"));
    world.publish(world.wanted(&cache, &[("kind", "cache"), ("key", "target")])).await.unwrap();
    world.publish_at_last(&world.wanted(&build, &world.main())).await;
    let request = world.wanted(&slow, &MIRRORS);
    let leaves = async |pod: &Pod| {
        let left = tokio::time::timeout(AT_ONCE, world.unpublish(pod)).await;
        left.expect("it is not waited for what is laid out").unwrap();
        assert!(!pod.target.exists());
    };

    let frozen = disk.as_ref().unwrap().freeze();
    let refused = world.publish(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("are being laid out; it goes on"), "{}", refused.message());
    leaves(&cache).await;
    leaves(&build).await;
    assert_eq!((world.leases(), world.tickets()), (Vec::new(), Vec::new()));
    // Also its own, while the kubelet's call for it is under way.
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (mut node, request) = (world.node().await, request.clone());
        calls.spawn(async move { node.node_publish_volume(request).await.unwrap_err() });
    }
    // Of two at once one is turned away, for the other is under way.
    let mut ended = async |why: &str| {
        let status = calls.join_next().await.unwrap().unwrap();
        assert_eq!(status.code(), Code::Aborted, "{status:?}");
        assert!(status.message().contains(why), "{}", status.message());
    };
    ended("another call works on volume").await;
    leaves(&slow).await;
    ended("is unpublished meanwhile").await;
    drop(frozen);

    // What was begun comes to its end: who comes again stands behind it, and has it. Then all of it goes.
    assert!(mounts_below(&world.kubelet()).is_empty());
    world.publish_at_last(&request).await;
    let directories = || {
        let all = std::fs::read_dir(world.pool().join("stoker/mirrors")).unwrap();
        all.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
    };
    assert_eq!((mounts_below(&world.kubelet()).len(), directories()), (1, 1));
    world.unpublish(&slow).await.unwrap();
    wait::until(LIMIT, "its directory goes", || directories() == 0);
    world.nothing_is_left();
}

/// Whether a thread of a process waits for the kernel to rename something; see proc_pid_syscall(5).
fn renames(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let calls = threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("syscall")).ok());
    let numbers: Vec<i64> = calls.filter_map(|call| call.split(' ').next()?.trim().parse().ok()).collect();
    numbers.iter().any(|number| [libc::SYS_renameat, libc::SYS_renameat2].contains(number))
}

/// Retention removes a cache, and the disk does not answer: who wants nothing of the tenant's caches does not notice.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_until_a_cache_is_removed() {
    const CACHE: [(&str, &str); 2] = [("kind", "cache"), ("key", "target")];
    needs_root!();
    let mut disk = None;
    let world = World::with(TestRepo::standard(), "", |shared| {
        let pool = shared.join("pool");
        std::fs::create_dir(&pool).unwrap();
        disk.insert(LoopFs::unmounted(Kind::Ext4, 256 << 20).at(&pool)).mount();
    });
    let (first, next) = (world.pod("uid-a"), world.pod("uid-b"));
    world.publish(world.wanted(&first, &CACHE)).await.unwrap();
    std::fs::write(first.target.join("large"), vec![1; 4 << 20]).unwrap();
    world.unpublish(&first).await.unwrap();

    let frozen = disk.as_ref().unwrap().freeze();
    let config = world.agent.root().join("agent.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "caches: {limit: 1MiB}\n").unwrap();
    let agent = nix::unistd::Pid::from_raw(world.agent.pid().cast_signed());
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGHUP).unwrap();
    wait::until(LIMIT, "the cache is removed, and the disk waited for", || renames(world.agent.pid()));
    let list = async { world.agent.workspace().await.list_workspaces(ListWorkspacesRequest::default()).await };
    let listed = tokio::time::timeout(AT_ONCE, list).await.expect("it is not waited for the disk");
    assert_eq!(listed.unwrap().into_inner().workspaces, Vec::new());
    let refused = tokio::time::timeout(AT_ONCE, world.publish(world.wanted(&next, &CACHE))).await;
    let refused = refused.expect("nor by who may not have it now").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("is being removed; ask again"), "{}", refused.message());
    drop(frozen);

    world.publish_at_last(&world.wanted(&next, &CACHE)).await;
    assert!(!next.target.join("large").exists(), "it is a new one");
    world.unpublish(&next).await.unwrap();
    world.nothing_is_left();
}
