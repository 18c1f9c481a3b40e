//! A pod gets its sources, in its own name, and gives them back.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use super::*;
use crate::support::disk::{assert_no_workspace, listing};

/// The files of a work tree, without git's own.
fn files(at: &Path) -> BTreeMap<PathBuf, String> {
    listing(at).into_iter().filter(|(path, _)| !path.starts_with(".git")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_finds_the_sources_of_a_ref_and_gives_its_lease_back() {
    needs_root!();
    let world = World::new("");
    let pod = world.pod("uid-a");
    let request = world.wanted(&pod, &world.main());
    world.publish_at_last(&request).await;

    let clone = world.agent.root().join("clone");
    world.repo.clone_to(&clone);
    assert_eq!(files(&pod.src()), files(&clone));
    assert_eq!(git_out(&pod.src(), &["rev-parse", "HEAD"]), world.repo.commit("main"));
    assert_eq!(git_out(&pod.src(), &["status", "--porcelain"]), "");
    assert!(!pod.src().join(".git/objects/info/alternates").exists(), "the pod has nothing but what is mounted");
    git_out(&pod.src(), &["fsck", "--connectivity-only"]);
    for scratch in ["tmp", "out"] {
        std::fs::write(pod.target.join(scratch).join("written"), "by the build").unwrap();
    }
    let leases = world.leases();
    let [lease] = leases.as_slice() else { panic!("{leases:?}") };
    assert_eq!((&lease["state"], &lease["scope"]["tenant"]), (&json!("LEASE_STATE_BOUND"), &json!("builds")));
    assert_eq!(lease["pod"], json!({"namespace": "builds", "name": "pod-uid-a", "uid": "uid-a"}));
    assert_eq!(lease["source"]["commit"], world.repo.commit("main"));

    let audit = world.agent.log();
    let line = audit.lines().find(|line| line.contains("NodePublishVolume") && line.contains("audit")).unwrap();
    for told in ["system:serviceaccount:builds:default", "pod_uid=\"uid-a\"", "volume csi-uid-a"] {
        assert!(line.contains(told), "{told}: {line}");
    }
    assert!(!audit.contains(&pod.token), "a token is in the log");

    // Again is the same as once, also what the build has changed since.
    std::fs::write(pod.src().join("README.md"), "changed by the build").unwrap();
    let before = mounts_below(&world.kubelet());
    world.publish(request).await.unwrap();
    assert_eq!((mounts_below(&world.kubelet()), world.leases().len()), (before, 1));
    assert_eq!(std::fs::read_to_string(pod.src().join("README.md")).unwrap(), "changed by the build");

    world.api.change("pods", "builds", "pod-uid-a", |pod| {
        let ended = json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        pod["status"] = json!({"phase": "Failed", "containerStatuses": [{"name": "main", "state": ended}]});
    });
    world.unpublish(&pod).await.unwrap();
    assert!(!pod.target.exists());
    world.nothing_is_left();
    let ended = world.lease(lease["id"].as_str().unwrap());
    assert_eq!((&ended["outcome"], &ended["exitCode"]), (&json!("OUTCOME_FAILED"), &json!(3)), "as its pod ended");
    world.unpublish(&pod).await.unwrap();
    wait::until(LIMIT, "its workspace goes", || mounts_below(&world.pool()).is_empty());
    assert_no_workspace(&world.pool());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_made_before_outlives_its_volume() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let lease = world.admit("builds");
    let id = lease.as_str();
    let (pod, thief) = (world.pod("uid-a"), world.pod_of("uid-b", "red"));
    let anothers = world.publish(world.wanted(&thief, &[("lease", id)])).await.unwrap_err();
    assert_eq!(anothers.code(), Code::NotFound, "it looks as if it were not there: {anothers:?}");
    let none = world.publish(world.wanted(&pod, &[("lease", "none")])).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
    assert_eq!(world.lease(id)["state"], "LEASE_STATE_RESERVED");

    world.publish_at_last(&world.wanted(&pod, &[("lease", id)])).await;
    assert_eq!(git_out(&pod.src(), &["rev-parse", "HEAD"]), world.repo.commit("main"));
    assert_eq!(world.lease(id)["pod"]["uid"], "uid-a");
    world.unpublish(&pod).await.unwrap();
    assert_eq!(mounts_below(&world.kubelet()), Vec::<PathBuf>::new());
    assert_eq!(world.lease(id)["state"], "LEASE_STATE_BOUND", "whoever made it ends it, or its pod does");
    let src = world.pool().join(format!("stoker/workspaces/{id}/src"));
    assert!(src.join("README.md").is_file(), "what is unmounted in the pod stays in the pool");
    world.publish_at_last(&world.wanted(&pod, &[("lease", id), ("subPath", "src")])).await;
    assert_eq!(git_out(&pod.target, &["status", "--porcelain"]), "");
    world.unpublish(&pod).await.unwrap();
    world.agent.stoker().run(["lease", "release", id, "--outcome", "succeeded"]).expect_code(0);
    world.nothing_is_left();
}

/// Where no overlay can be, the files are the workspace's own, and so are the objects.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_is_whole_without_what_the_pod_does_not_have() {
    needs_root!();
    let world = World::new("workspaces: {method: checkout}\n");
    world.fill();
    let pod = world.pod("uid-a");
    world.publish_at_last(&world.wanted(&pod, &world.main())).await;
    assert_eq!(mounts_below(&world.kubelet()), [pod.target.as_path()], "one mount and no other");
    assert!(!pod.src().join(".git/objects/info/alternates").exists());
    assert_eq!(git_out(&pod.src(), &["status", "--porcelain"]), "");
    git_out(&pod.src(), &["fsck", "--connectivity-only"]);
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn user_sub_path_and_read_only_are_as_asked_for() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let pod = world.pod("uid-a");
    let more = [("user", "4711"), ("group", "4712"), ("subPath", "src/src/deep")];
    let mut request = world.wanted(&pod, &[world.main().as_slice(), more.as_slice()].concat());
    request.readonly = true;
    world.publish_at_last(&request).await;
    assert_eq!(std::fs::read(pod.target.join("er/nested.rs")).unwrap(), b"pub fn nested() {}\n");
    let owner = std::fs::metadata(pod.target.join("er/nested.rs")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (4711, 4712));
    let refused = std::fs::write(pod.target.join("new"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_room_and_gets_it_while_the_kubelet_is_away() {
    needs_root!();
    let world = World::new("admission: {leasesMax: 1}\n");
    world.fill();
    let (first, second) = (world.pod("uid-a"), world.pod("uid-b"));
    world.publish_at_last(&world.wanted(&first, &world.main())).await;
    let request = world.wanted(&second, &world.main());
    let refused = world.publish(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    for told in ["place 1 of this node's queue is kept", "LEASES_FULL: 1 "] {
        assert!(refused.message().contains(told), "{told}: {}", refused.message());
    }
    assert!(!second.target.exists() && world.tickets().len() == 1);
    // It has its lease before anybody asks again, and keeps it for longer than a kubelet waits.
    world.unpublish(&first).await.unwrap();
    let granted = || world.leases().first().is_some_and(|lease| lease["state"] == "LEASE_STATE_RESERVED");
    wait::until(LIMIT, "it is granted", granted);
    let lease = world.leases()[0].clone();
    assert_eq!(lease["confirmBy"], Value::Null, "the grant is confirmed");
    let bind_by: jiff::Timestamp = lease["bindBy"].as_str().unwrap().parse().unwrap();
    let kept = bind_by.as_second() - jiff::Timestamp::now().as_second();
    assert!(kept > 122, "{kept} s are less than the kubelet's longest pause");
    world.publish(request).await.unwrap();
    assert_eq!(world.leases()[0]["id"], lease["id"]);
    // One that gives up waiting leaves no place behind.
    let third = world.pod("uid-c");
    let refused = world.publish(world.wanted(&third, &world.main())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    world.unpublish(&third).await.unwrap();
    assert_eq!(world.tickets(), Vec::<Value>::new());
    world.unpublish(&second).await.unwrap();
    world.nothing_is_left();
}

/// The scheduler of the cluster gave the pod what it asks for: that is the room of its lease, and none beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_does_not_wait_for_what_it_asks_for_itself() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let pod = world.pod("uid-a");
    let asks = json!({"requests": {"cpu": "20", "memory": "40Gi"}, "limits": {"cpu": "20", "memory": "40Gi"}});
    world.api.change("pods", "builds", "pod-uid-a", |pod| pod["spec"]["containers"][0]["resources"] = asks);
    let size = [("cpu", "20"), ("memory", "40GiB"), ("disk", "1MiB")];
    let request = world.wanted(&pod, &[&world.main()[..2], size.as_slice()].concat());
    world.publish_at_last(&request).await;
    // And it counts as its lease from now on.
    let other = world.pod("uid-b");
    let request = world.wanted(&other, &[&world.main()[..2], size.as_slice()].concat());
    let refused = world.publish(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("_HELD: ") || refused.message().contains("NODE_REQUESTS: "), "{refused:?}");
    for pod in [&pod, &other] {
        world.unpublish(pod).await.unwrap();
    }
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_goes_with_its_pod() {
    needs_root!();
    let world = World::new("admission: {leasesMax: 1}\n");
    world.fill();
    let (first, second) = (world.pod("uid-a"), world.pod("uid-b"));
    world.publish_at_last(&world.wanted(&first, &world.main())).await;
    world.publish(world.wanted(&second, &world.main())).await.unwrap_err();
    assert_eq!(world.tickets().len(), 1);
    world.api.delete("pods", "builds", "pod-uid-b");
    wait::until(LIMIT, "nobody waits", || world.tickets().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_fill_goes_on_while_the_kubelet_is_away() {
    needs_root!();
    let world = World::new("");
    world.upstream.delay(Duration::from_secs(7));
    let pod = world.pod("uid-a");
    let request = world.wanted(&pod, &world.main());
    let began = Instant::now();
    let refused = world.publish(request.clone()).await.unwrap_err();
    let took = began.elapsed();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(!pod.target.exists());
    world.publish_at_last(&request).await;
    assert!(pod.src().join("README.md").is_file());
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

/// Side by side on one machine: the same tree, by git from a local repository and as a volume.
#[tokio::test(flavor = "multi_thread")]
async fn a_warm_commit_is_published_sooner_than_it_is_cloned() {
    /// So many at least, of which the best count, and so many at most: another one's work falls on some of them.
    const ROUNDS: std::ops::RangeInclusive<usize> = 5..=20;
    needs_root!();
    let world = World::of(TestRepo::generated(4_000, 20 << 20, 1), "");
    world.fill();
    let warm = world.pod("uid-warm");
    world.publish_at_last(&world.wanted(&warm, &world.main())).await;
    let (mut published, mut cloned) = (Duration::MAX, Duration::MAX);
    for round in 1..=*ROUNDS.end() {
        let pod = world.pod(Box::leak(format!("uid-{round}").into_boxed_str()));
        let request = world.wanted(&pod, &world.main());
        let mut node = world.node().await;
        let began = Instant::now();
        node.node_publish_volume(request).await.unwrap();
        published = published.min(began.elapsed());
        let place = world.agent.root().join(format!("clone-{round}"));
        let began = Instant::now();
        world.repo.clone_to(&place);
        cloned = cloned.min(began.elapsed());
        assert_eq!(git_out(&pod.src(), &["status", "--porcelain"]), "");
        world.unpublish(&pod).await.unwrap();
        if ROUNDS.contains(&round) && published < cloned {
            break;
        }
    }
    eprintln!("a warm commit of 4,000 files: published in {published:?}, cloned in {cloned:?}");
    assert!(published < cloned, "published in {published:?}, cloned in {cloned:?}");
}
