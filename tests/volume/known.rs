//! Who the driver is, and how the kubelet comes to know it: the cases of identity and arguments of the published sanity
//! suite of CSI, and the kubelet's registration.

use stoker_proto::plugin_registration as registration;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_says_who_it_is_and_what_it_can() {
    let world = World::new("");
    let mut identity = world.identity().await;
    let info = identity.get_plugin_info(csi::GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.name.as_str(), info.vendor_version.as_str()), ("stoker.build", env!("CARGO_PKG_VERSION")));
    let can = identity.get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).await.unwrap().into_inner();
    assert_eq!(can.capabilities, []);
    let ready = async || {
        let mut identity = world.identity().await;
        identity.probe(csi::ProbeRequest {}).await.unwrap().into_inner().ready == Some(true)
    };
    wait::until_async(LIMIT, "the driver is ready", ready).await;

    let mut node = world.node().await;
    let info = node.node_get_info(csi::NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), (NODE, 0));
    let can = node.node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
    assert_eq!(can.capabilities, []);
    let unknown = [
        node.node_stage_volume(csi::NodeStageVolumeRequest {}).await.unwrap_err(),
        node.node_unstage_volume(csi::NodeUnstageVolumeRequest {}).await.unwrap_err(),
        node.node_get_volume_stats(csi::NodeGetVolumeStatsRequest {}).await.unwrap_err(),
        node.node_expand_volume(csi::NodeExpandVolumeRequest {}).await.unwrap_err(),
    ];
    assert!(unknown.iter().all(|status| status.code() == Code::Unimplemented), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_argument_is_named() {
    let world = World::new("");
    let pod = world.pod("uid-args");
    let whole = || world.wanted(&pod, &world.main());
    let without = |field: &str| {
        let mut request = whole();
        match field {
            "volume_id" => request.volume_id.clear(),
            "target_path" => request.target_path.clear(),
            "volume_capability" => request.volume_capability = None,
            _ => request.volume_context.retain(|name, _| name != field),
        }
        request
    };
    for field in [
        "volume_id",
        "target_path",
        "volume_capability",
        "csi.storage.k8s.io/ephemeral",
        "csi.storage.k8s.io/pod.namespace",
        "csi.storage.k8s.io/pod.name",
        "csi.storage.k8s.io/pod.uid",
        "csi.storage.k8s.io/serviceAccount.name",
        "repository",
    ] {
        let refused = world.publish(without(field)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}: {refused:?}");
        assert!(refused.message().starts_with(&format!("{field}: ")), "{field}: {}", refused.message());
    }
    let mut block = whole();
    let kind = csi::volume_capability::AccessType::Block(csi::volume_capability::BlockVolume {});
    block.volume_capability.as_mut().unwrap().access_type = Some(kind);
    assert_eq!(world.publish(block).await.unwrap_err().code(), Code::InvalidArgument);

    let target_path = pod.target.to_str().unwrap().to_owned();
    for (volume_id, target_path, field) in
        [(String::new(), target_path.clone(), "volume_id"), (pod.volume(), String::new(), "target_path")]
    {
        let request = csi::NodeUnpublishVolumeRequest { volume_id, target_path };
        let refused = world.node().await.node_unpublish_volume(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(field), "{}", refused.message());
    }
    // What was never published is unpublished already.
    world.unpublish(&pod).await.unwrap();
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_finds_the_driver_also_when_it_starts_anew() {
    let mut world = World::new("");
    let registration = world.registration();
    wait::until(LIMIT, "the driver makes itself known", || registration.exists());
    let mut client = RegistrationClient::new(World::registering(&registration).await);
    let info = client.get_info(registration::InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "stoker.build"));
    assert_eq!(
        (info.endpoint.as_str(), info.supported_versions),
        (world.socket().to_str().unwrap(), vec!["1.0.0".into()])
    );
    for (plugin_registered, error, told) in
        [(true, "", "the kubelet knows the driver"), (false, "no such version", "no such version")]
    {
        let status = registration::RegistrationStatus { plugin_registered, error: error.to_owned() };
        client.notify_registration_status(status).await.unwrap();
        assert!(world.agent.log().contains(told));
    }

    // A kubelet that starts anew empties its folder, or makes it anew.
    std::fs::remove_file(&registration).unwrap();
    wait::until(LIMIT, "it is there again", || registration.exists());
    std::fs::remove_dir_all(registration.parent().unwrap()).unwrap();
    wait::until(LIMIT, "the agent says why not", || world.agent.log().contains("cannot find the driver"));
    std::fs::create_dir(registration.parent().unwrap()).unwrap();
    wait::until(LIMIT, "it is there again", || registration.exists());
    let mut client = RegistrationClient::new(World::registering(&registration).await);
    client.get_info(registration::InfoRequest {}).await.unwrap();

    // Over what a killed agent left, and nothing of one that ended.
    world.agent.restart();
    wait::until(LIMIT, "it is known again", || std::os::unix::net::UnixStream::connect(&registration).is_ok());
    assert!(world.agent.terminate().success());
    assert!(!registration.exists() && !world.socket().exists());
}

fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions())
}

/// Somebody tidies up below the kubelet's plugins.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_was_deleted_is_made_again() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let folder = world.socket().parent().unwrap().to_owned();
    let deleted: [&dyn Fn(); 2] = [&|| std::fs::remove_file(world.socket()).unwrap(), &|| {
        std::fs::remove_dir_all(&folder).unwrap();
    }];
    for (uid, delete) in ["uid-a", "uid-b"].into_iter().zip(deleted) {
        delete();
        wait::until(LIMIT, "it can be called again", || {
            std::os::unix::net::UnixStream::connect(world.socket()).is_ok()
        });
        assert_eq!((mode(&world.socket()) & 0o777, mode(&folder) & 0o777), (0o600, 0o700));
        let pod = world.pod(uid);
        world.publish_at_last(&world.wanted(&pod, &world.main())).await;
        world.unpublish(&pod).await.unwrap();
    }
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_a_pod_is_not_the_kubelet() {
    needs_root!();
    let world = World::new("");
    assert_eq!(mode(&world.socket()) & 0o777, 0o600);
    assert_eq!(mode(world.socket().parent().unwrap()) & 0o777, 0o700);
    let socket = world.socket();
    let binary = crate::support::stoker::BINARY;
    let asks = ["--pid", "--fork", binary, "--socket", socket.to_str().unwrap(), "status"];
    let refused = world.agent.stoker().program("unshare", asks).run();
    assert_ne!(refused.code(), Some(0));
    assert!(world.agent.log().contains("who is no process of the host"), "{}", refused.stderr);
    let mut identity = world.identity().await;
    identity.get_plugin_info(csi::GetPluginInfoRequest {}).await.unwrap();
}
