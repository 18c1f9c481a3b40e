//! A pod names a lease that all its volumes are of, and that has ended: they are of one other, and none is without.

use super::*;

impl World {
    /// A lease of a pod that has ended before anybody had it.
    fn ended_lease(&self) -> String {
        let lease = self.admit("builds");
        self.agent.stoker().run(["lease", "release", &lease, "--outcome", "failed"]).expect_code(0);
        lease
    }

    /// The one lease there is, which was admitted for a volume.
    #[track_caller]
    fn lease_of_volumes(&self) -> String {
        let leases = self.leases();
        let [lease] = leases.as_slice() else { panic!("{leases:?}") };
        assert!(lease["requestId"].as_str().unwrap().starts_with("csi-"), "{lease}");
        lease["id"].as_str().unwrap().to_owned()
    }

    fn wanted_at(&self, pod: &Pod, sub_path: &str) -> csi::NodePublishVolumeRequest {
        self.wanted(pod, &[self.main().as_slice(), &[("subPath", sub_path)]].concat())
    }

    /// The next start of the machine: nothing is mounted, and its leases are over.
    fn reboot(&mut self) {
        self.agent.kill9();
        crate::support::disk::take_overlays_away(self.agent.root());
        kubelet::share(&self.agent.root().join("shared"));
        let boot = self.agent.root().join("host/proc/sys/kernel/random/boot_id");
        std::fs::write(boot, "00000000-0000-4000-8000-000000000001\n").unwrap();
        self.agent.restart();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_all_volumes_of_a_pod_come_again() {
    needs_root!();
    let mut world = World::new("");
    world.fill();
    let lease = world.admit("builds");
    let pod = world.pod_with("uid-a", &lease);
    let second = world.beside(&pod, "second");
    let (whole, sources) = (world.wanted(&pod, &world.main()), world.wanted_at(&second, "src"));
    tokio::join!(world.publish_at_last(&whole), world.publish_at_last(&sources));
    world.reboot();
    assert_eq!(world.lease(&lease)["state"], "LEASE_STATE_ORPHANED");
    tokio::join!(world.publish_at_last(&whole), world.publish_at_last(&sources));
    let new = world.lease_of_volumes();
    assert_ne!(new, lease);
    std::fs::write(pod.src().join("built"), "by the build").unwrap();
    assert_eq!(std::fs::read(second.target.join("built")).unwrap(), b"by the build", "they are of one workspace");
    // Again is the same as once, also for the next agent.
    world.agent.restart();
    for request in [&whole, &sources] {
        world.publish(request.clone()).await.unwrap();
    }
    assert_eq!(world.lease_of_volumes(), new);
    // A cache of the pod is no volume of its lease.
    let cache = world.beside(&pod, "cache");
    world.publish_at_last(&world.wanted(&cache, &[("kind", "cache"), ("key", "target")])).await;
    // Whichever goes first leaves the other what it has.
    for (uid, first) in [("uid-a", 0), ("uid-b", 1)] {
        let pod = if uid == "uid-a" { pod.clone() } else { world.pod_with(uid, &lease) };
        let both = [pod.clone(), world.beside(&pod, "second")];
        let (whole, sources) = (world.wanted(&both[0], &world.main()), world.wanted_at(&both[1], "src"));
        tokio::join!(world.publish_at_last(&whole), world.publish_at_last(&sources));
        let shared = world.lease_of_volumes();
        world.unpublish(&both[first]).await.unwrap();
        assert_eq!((world.lease_of_volumes(), &world.leases()[0]["state"]), (shared, &json!("LEASE_STATE_BOUND")));
        let left = if first == 0 { both[1].target.clone() } else { both[0].src() };
        assert_eq!(git_out(&left, &["rev-parse", "HEAD"]), world.repo.commit("main"));
        world.unpublish(&both[1 - first]).await.unwrap();
        assert_eq!(world.leases(), Vec::<Value>::new(), "it ends with the last of them");
    }
    world.unpublish(&cache).await.unwrap();
    world.nothing_is_left();
}

/// Those that all are of is asked for by one of them; the others are told what is so, and have no place of their own.
#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_a_lease_that_ran_out_wait_for_one_other() {
    needs_root!();
    let mut world = World::new("admission: {leasesMax: 1}\n");
    world.fill();
    let lease = world.ended_lease();
    let (holder, pod) = (world.pod("uid-h"), world.pod_with("uid-a", &lease));
    let [second, third] = ["second", "third"].map(|name| world.beside(&pod, name));
    world.publish_at_last(&world.wanted(&holder, &world.main())).await;
    let whole = world.wanted(&pod, &world.main());
    let sources = world.wanted_at(&second, "src");
    assert_eq!(world.publish(whole.clone()).await.unwrap_err().code(), Code::ResourceExhausted);
    let waits = async |world: &World| {
        let waits = world.publish(sources.clone()).await.unwrap_err();
        assert_eq!(waits.code(), Code::Unavailable, "{waits:?}");
        for told in ["stoker.build/lease", "has ended", "another of its volumes asks for the one"] {
            assert!(waits.message().contains(told), "{told}: {}", waits.message());
        }
        assert!(!second.target.exists());
        assert_eq!((world.leases().len(), world.tickets().len()), (1, 1));
    };
    waits(&world).await;
    world.agent.restart();
    waits(&world).await;
    world.unpublish(&holder).await.unwrap();
    wait::until(LIMIT, "it is granted", || {
        world.leases().first().is_some_and(|l| l["state"] == "LEASE_STATE_RESERVED")
    });
    // The kubelet comes with the other one first.
    world.publish_at_last(&sources).await;
    let shared = world.lease_of_volumes();
    // Of something else there is none for this pod.
    let [repository, _, size @ ..] = world.main();
    let other = [&[repository, ("ref", "head")], size.as_slice()].concat();
    let refused = world.publish(world.wanted(&third, &other)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().starts_with("ref: ") && refused.message().contains(&shared), "{}", refused.message());
    // Nor is one that has ended had by its own name.
    let refused = world.publish(world.wanted(&third, &[("lease", &lease)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().starts_with("lease: ") && refused.message().contains(&lease), "{}", refused.message());
    world.publish_at_last(&whole).await;
    assert_eq!(world.lease_of_volumes(), shared);
    // At once, as a kubelet does.
    let (one, other) = tokio::join!(world.unpublish(&pod), world.unpublish(&second));
    one.and(other).unwrap();
    world.unpublish(&third).await.unwrap();
    world.nothing_is_left();
}

/// What one volume cannot have takes nothing away from the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_refused_leaves_the_others_their_lease() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let lease = world.ended_lease();
    let pod = world.pod_with("uid-a", &lease);
    let second = world.beside(&pod, "second");
    let refused = async |request: csi::NodePublishVolumeRequest| {
        let refused = world.publish(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().starts_with("subPath: "), "{}", refused.message());
    };
    // Alone it leaves nothing behind.
    refused(world.wanted_at(&pod, "src/nowhere")).await;
    world.nothing_is_left();
    world.publish_at_last(&world.wanted(&pod, &world.main())).await;
    let shared = world.lease_of_volumes();
    refused(world.wanted_at(&second, "src/nowhere")).await;
    assert_eq!(world.lease_of_volumes(), shared);
    // Nor the one that the lease was admitted for: it comes again while another has it.
    world.publish_at_last(&world.wanted_at(&second, "src")).await;
    world.unpublish(&pod).await.unwrap();
    refused(world.wanted_at(&pod, "src/nowhere")).await;
    assert_eq!(world.lease_of_volumes(), shared);
    assert_eq!(git_out(&second.target, &["status", "--porcelain"]), "");
    world.unpublish(&pod).await.unwrap();
    assert_eq!(world.lease_of_volumes(), shared);
    world.unpublish(&second).await.unwrap();
    world.nothing_is_left();
}

/// Both were on their way with the lease that they had when it ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_under_volumes_on_their_way_is_nobodys() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let lease = world.admit("builds");
    let pod = world.pod_with("uid-a", &lease);
    let second = world.beside(&pod, "second");
    for volume in [&pod, &second] {
        let refused = world.publish(world.wanted_at(volume, "src/later")).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    assert_eq!(world.lease(&lease)["state"], "LEASE_STATE_BOUND");
    world.agent.stoker().run(["lease", "release", &lease, "--outcome", "failed"]).expect_code(0);
    for volume in [&pod, &second] {
        world.publish_at_last(&world.wanted_at(volume, "src")).await;
    }
    assert_ne!(world.lease_of_volumes(), lease);
    for volume in [&pod, &second] {
        world.unpublish(volume).await.unwrap();
    }
    world.nothing_is_left();
}
