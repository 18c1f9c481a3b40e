//! A pod whose build was admitted before its volume was asked for has that lease, and no second one.

use super::*;

impl World {
    /// The one lease there is.
    #[track_caller]
    fn only_lease(&self) -> Value {
        let leases = self.leases();
        assert_eq!(leases.len(), 1, "{leases:?}");
        leases[0].clone()
    }

    fn bind(&self, pod: &Pod, lease: &str) {
        let name = format!("{}/pod-{}", pod.namespace, pod.uid);
        self.agent.stoker().run(["lease", "bind", lease, "--pod", &name, "--uid", pod.uid]).expect_code(0);
    }
}

/// The pod's own token is the proof that binding needs: the request for the lease named nobody.
#[tokio::test(flavor = "multi_thread")]
async fn the_lease_that_a_pod_names_is_the_one_of_its_volume() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let lease = world.admit("builds");
    let pod = world.pod_with("uid-a", &lease);
    let request = world.wanted(&pod, &world.main());
    world.publish_at_last(&request).await;
    let held = world.only_lease();
    assert_eq!((&held["id"], &held["pod"]["uid"]), (&json!(lease), &json!("uid-a")));
    assert_eq!(git_out(&pod.src(), &["rev-parse", "HEAD"]), world.repo.commit("main"));
    world.publish(request).await.unwrap();
    assert_eq!(world.only_lease()["id"], json!(lease));
    world.unpublish(&pod).await.unwrap();
    assert_eq!(world.only_lease()["state"], "LEASE_STATE_BOUND", "whoever made it ends it, or its pod does");
    world.api.delete("pods", "builds", "pod-uid-a");
    wait::until(LIMIT, "it ends with its pod", || world.leases().is_empty());
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_that_a_pod_holds_is_the_one_of_its_volume() {
    needs_root!();
    let mut world = World::new("admission: {leasesMax: 1}\n");
    world.fill();
    let (pod, lease) = (world.pod("uid-a"), world.admit("builds"));
    world.bind(&pod, &lease);
    let request = world.wanted(&pod, &world.main());
    world.publish_at_last(&request).await;
    assert_eq!(world.only_lease()["id"], json!(lease));
    // And the next agent knows it too.
    world.agent.restart();
    world.publish(request).await.unwrap();
    assert_eq!(world.only_lease()["id"], json!(lease));
    assert!(!mounts_below(&world.kubelet()).is_empty());
    world.unpublish(&pod).await.unwrap();
    world.agent.stoker().run(["lease", "release", &lease, "--outcome", "succeeded"]).expect_code(0);
    world.nothing_is_left();
}

/// While the pod waited in the node's own queue somebody admitted it: that counts, and the place is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_in_the_queue_is_given_up_for_the_lease_that_comes() {
    needs_root!();
    let world = World::new("admission: {leasesMax: 1}\n");
    world.fill();
    let (pod, lease) = (world.pod("uid-a"), world.admit("builds"));
    let request = world.wanted(&pod, &world.main());
    assert_eq!(world.publish(request.clone()).await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(world.tickets().len(), 1);
    world.annotate(&pod, &lease);
    world.publish_at_last(&request).await;
    assert_eq!((world.only_lease()["id"].clone(), world.tickets()), (json!(lease), Vec::new()));
    world.unpublish(&pod).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_has_run_out_is_none() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let lease = world.admit("builds");
    world.agent.stoker().run(["lease", "release", &lease, "--outcome", "failed"]).expect_code(0);
    let (pod, unknown) = (world.pod_with("uid-a", &lease), world.pod_with("uid-b", "0000-no-such-lease"));
    let reds = world.admit("red");
    let others = world.pod_with("uid-c", &reds);
    for pod in [&pod, &unknown, &others] {
        world.publish_at_last(&world.wanted(pod, &world.main())).await;
        let held = world.leases().into_iter().find(|held| held["pod"]["uid"] == pod.uid).unwrap();
        assert!(held["id"] != lease.as_str() && held["id"] != reds.as_str(), "{held}");
        world.unpublish(pod).await.unwrap();
    }
    assert_eq!((world.only_lease()["id"].clone(), world.only_lease()["pod"].clone()), (json!(reds), Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_for_something_else_is_refused_by_name() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let lease = world.admit("builds");
    let pod = world.pod_with("uid-a", &lease);
    let [repository, branch, size @ ..] = world.main();
    for (name, other) in [
        ("ref", [repository, ("ref", "head")].as_slice()),
        ("repository", [("repository", "http://127.0.0.1:1/other.git"), branch].as_slice()),
    ] {
        let refused = world.publish(world.wanted(&pod, &[other, size.as_slice()].concat())).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        for told in [name, &lease, "stoker.build/lease"] {
            assert!(refused.message().contains(told), "{told}: {}", refused.message());
        }
        assert!(refused.message().starts_with(&format!("{name}: ")), "{}", refused.message());
        assert_eq!(world.only_lease()["state"], "LEASE_STATE_RESERVED");
    }
    // Anyone can copy an annotation.
    world.publish_at_last(&world.wanted(&pod, &world.main())).await;
    let thief = world.pod_with("uid-b", &lease);
    let refused = world.publish(world.wanted(&thief, &world.main())).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().starts_with("stoker.build/lease: "), "{}", refused.message());
    assert!(!thief.target.exists());
    assert_eq!((world.only_lease()["pod"]["uid"].clone(), world.tickets()), (json!("uid-a"), Vec::new()));
    world.unpublish(&pod).await.unwrap();
}
