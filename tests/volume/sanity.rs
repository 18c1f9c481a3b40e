//! The cases of the published sanity suite of CSI (kubernetes-csi/csi-test, `pkg/sanity`) for identity and node, as far as
//! they are of a driver that has a node service alone, and ephemeral volumes alone.
//!
//! | the suite's case | here |
//! |---|---|
//! | GetPluginInfo: appropriate information | [`identity_is_as_the_interface_wants_it`] |
//! | GetPluginCapabilities: appropriate capabilities | the same |
//! | Probe: appropriate information | the same |
//! | NodeGetInfo: appropriate values | [`node_info_and_capabilities_are_those_that_there_are`] |
//! | NodeGetCapabilities: appropriate capabilities | the same |
//! | NodeStageVolume, NodeUnstageVolume, NodeExpandVolume, NodeGetVolumeStats: skipped where not advertised | the same |
//! | NodePublishVolume: no volume id, no target path, no capability | [`a_bare_request_is_refused_by_what_it_lacks`] |
//! | NodeUnpublishVolume: no volume id, no target path | the same |
//! | NodePublishVolume, NodeUnpublishVolume: should work; removes the target path | [`publish_and_unpublish_work_and_may_be_said_twice`] |
//! | Node service: is idempotent; another `readonly` is refused as `ALREADY_EXISTS` | the same, and [`two_identical_calls_at_once_are_one`] |
//!
//! Its volumes are made by a controller service; these are inline volumes of a pod, so each request has a pod's identity.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn identity_is_as_the_interface_wants_it() {
    let world = World::new("");
    let mut identity = world.identity().await;
    let info = identity.get_plugin_info(csi::GetPluginInfoRequest {}).await.unwrap().into_inner();
    // A domain name, of at most 63 characters that begins and ends with a letter or digit.
    let name = info.name.as_bytes();
    let ends = [name[0], name[name.len() - 1]];
    assert!(name.len() <= 63 && ends.iter().all(u8::is_ascii_alphanumeric), "{}", info.name);
    assert!(name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(byte)), "{}", info.name);
    assert!(info.name.contains('.'), "{}", info.name);
    assert!(!info.vendor_version.is_empty() && info.manifest.keys().all(|key| !key.is_empty()), "{info:?}");
    let can = identity.get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).await.unwrap().into_inner();
    assert_eq!(can.capabilities, [], "neither a controller, nor a topology, nor growth");
    // Whether it is ready or not: the call itself succeeds.
    let probed = identity.probe(csi::ProbeRequest {}).await.unwrap().into_inner();
    assert!(probed.ready.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn node_info_and_capabilities_are_those_that_there_are() {
    let world = World::new("");
    let mut node = world.node().await;
    let info = node.node_get_info(csi::NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert!(!info.node_id.is_empty() && info.node_id.len() <= 256, "{info:?}");
    assert!(info.max_volumes_per_node >= 0, "{info:?}");
    let can = node.node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
    // Without quotas of its pool what a workspace holds is counted by a walk: that is neither cheap nor of this moment.
    assert_eq!(can.capabilities, [], "nothing is staged, counted, or grows");
    // What is not advertised is not there.
    let absent = [
        node.node_stage_volume(csi::NodeStageVolumeRequest {}).await.unwrap_err(),
        node.node_unstage_volume(csi::NodeUnstageVolumeRequest {}).await.unwrap_err(),
        node.node_get_volume_stats(csi::NodeGetVolumeStatsRequest {}).await.unwrap_err(),
        node.node_expand_volume(csi::NodeExpandVolumeRequest {}).await.unwrap_err(),
    ];
    assert!(absent.iter().all(|status| status.code() == Code::Unimplemented), "{absent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_request_is_refused_by_what_it_lacks() {
    let world = World::new("");
    let target_path = || world.kubelet().join("pods/uid/volumes/kubernetes.io~csi/src/mount").display().to_string();
    let bare = csi::NodePublishVolumeRequest::default;
    let volume_id = || "id".to_owned();
    let capability = || Some(kubelet::mount_capability());
    for (request, lacks) in [
        (bare(), "volume_id"),
        (csi::NodePublishVolumeRequest { volume_id: volume_id(), ..bare() }, "target_path"),
        (
            csi::NodePublishVolumeRequest { volume_id: volume_id(), volume_capability: capability(), ..bare() },
            "target_path",
        ),
        (
            csi::NodePublishVolumeRequest { volume_id: volume_id(), target_path: target_path(), ..bare() },
            "volume_capability",
        ),
        (
            csi::NodePublishVolumeRequest { volume_id: "x".repeat(257), target_path: target_path(), ..bare() },
            "volume_id",
        ),
        (
            csi::NodePublishVolumeRequest {
                volume_id: volume_id(),
                target_path: target_path(),
                volume_capability: Some(csi::VolumeCapability::default()),
                ..bare()
            },
            "volume_capability",
        ),
    ] {
        let refused = world.publish(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{lacks}: {refused:?}");
        assert!(refused.message().starts_with(&format!("{lacks}: ")), "{lacks}: {}", refused.message());
    }
    let bare = csi::NodeUnpublishVolumeRequest::default;
    for (request, lacks) in [
        (bare(), "volume_id"),
        (csi::NodeUnpublishVolumeRequest { target_path: target_path(), ..bare() }, "volume_id"),
        (csi::NodeUnpublishVolumeRequest { volume_id: volume_id(), ..bare() }, "target_path"),
    ] {
        let refused = world.node().await.node_unpublish_volume(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{lacks}: {refused:?}");
        assert!(refused.message().starts_with(&format!("{lacks}: ")), "{lacks}: {}", refused.message());
    }
    world.nothing_is_left();
}

/// With a target of which only the folder is there, as the suite and the kubelet make it; of each kind of volume.
#[tokio::test(flavor = "multi_thread")]
async fn publish_and_unpublish_work_and_may_be_said_twice() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let pod = world.pod("uid-a");
    for attributes in [world.main().as_slice(), &[("kind", "cache"), ("key", "x")], &[("kind", "mirrors")]] {
        assert!(pod.target.parent().unwrap().is_dir() && !pod.target.exists());
        let request = world.wanted(&pod, attributes);
        world.publish_at_last(&request).await;
        let mounted = mounts_below(&world.kubelet());
        assert!(mounted.contains(&pod.target));
        for _ in 0..2 {
            world.publish(request.clone()).await.unwrap();
            assert_eq!(mounts_below(&world.kubelet()), mounted, "{attributes:?}");
        }
        // As something else it is there already. Mirrors are for reading in any case.
        if *attributes != [("kind", "mirrors")] {
            let other = csi::NodePublishVolumeRequest { readonly: true, ..request.clone() };
            let refused = world.publish(other).await.unwrap_err();
            assert_eq!(refused.code(), Code::AlreadyExists, "{attributes:?}: {refused:?}");
            assert!(refused.message().starts_with("readonly: "), "{}", refused.message());
            assert_eq!(mounts_below(&world.kubelet()), mounted, "{attributes:?}");
        }
        for _ in 0..3 {
            world.unpublish(&pod).await.unwrap();
            assert!(!pod.target.exists() && pod.target.parent().unwrap().is_dir(), "{attributes:?}");
            world.nothing_is_left();
        }
    }
    // What is not known at all is unpublished already, also where the kubelet has removed its folder.
    let unknown = world.pod_elsewhere("uid-never", "builds");
    world.unpublish(&unknown).await.unwrap();
    std::fs::remove_dir_all(world.kubelet().join("pods/uid-never")).unwrap();
    world.unpublish(&unknown).await.unwrap();
}

/// The interface lets the second of two answer that the first is pending; then it is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn two_identical_calls_at_once_are_one() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let pod = world.pod("uid-a");
    let request = world.wanted(&pod, &world.main());
    world.publish_at_last(&request).await;
    let mounted = mounts_below(&world.kubelet()).len();
    world.unpublish(&pod).await.unwrap();
    for _ in 0..5 {
        let once = || async {
            match world.publish(request.clone()).await {
                Ok(()) => {}
                Err(status) => assert!(matches!(status.code(), Code::Aborted | Code::Unavailable), "{status:?}"),
            }
        };
        tokio::join!(once(), once(), once());
        world.publish_at_last(&request).await;
        assert_eq!((mounts_below(&world.kubelet()).len(), world.leases().len()), (mounted, 1));
        let gone = || async {
            match world.unpublish(&pod).await {
                Ok(()) => {}
                Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
            }
        };
        tokio::join!(gone(), gone());
        world.unpublish(&pod).await.unwrap();
        world.nothing_is_left();
    }
}
