//! Attributes, tokens and targets that are not what they should be: refused by name, nothing mounted, nothing left.

use std::os::unix::fs::symlink;

use super::*;
use crate::support::token_review::AUDIENCE;

#[tokio::test(flavor = "multi_thread")]
async fn hostile_attributes_are_refused_by_name() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let pod = world.pod("uid-a");
    for (name, value, code) in [
        ("depth", "1", Code::InvalidArgument),
        ("storkIt", "x", Code::InvalidArgument),
        ("ref", "branch:--upload-pack=touch /tmp/x", Code::InvalidArgument),
        ("repository", "ext::sh -c id", Code::InvalidArgument),
        ("repository", "/etc", Code::PermissionDenied),
        ("subPath", "../../..", Code::InvalidArgument),
        ("subPath", "/etc", Code::InvalidArgument),
        ("memory", "-1", Code::InvalidArgument),
        ("user", "root", Code::InvalidArgument),
        ("tenant", "red", Code::PermissionDenied),
        ("subPath", "src/nowhere", Code::InvalidArgument),
        ("subPath", "src/README.md", Code::InvalidArgument),
    ] {
        let mut request = world.wanted(&pod, &world.main());
        request.volume_context.insert(name.to_owned(), value.to_owned());
        let refused = world.publish(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{name}={value}: {refused:?}");
        assert!(refused.message().starts_with(&format!("{name}: ")), "{name}={value}: {}", refused.message());
        world.nothing_is_left();
    }
    // Whose request is called as one for a volume would have its lease taken for that.
    let order = stoker_proto::v1::AdmitRequest { request_id: "csi-0123-x".into(), ..Default::default() };
    let refused = world.agent.admission().await.admit(order).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("request_id"), "{}", refused.message());
    let gone = world.wanted(&pod, &[world.main()[0], ("ref", "branch:nowhere")]);
    let gone = world.publish(gone).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert!(gone.message().starts_with("ref: REF_NOT_FOUND: "), "{}", gone.message());
    let huge = [world.main()[0], world.main()[1], ("memory", "900TiB")];
    let refused = world.publish(world.wanted(&pod, &huge)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("MEMORY_BUDGET"), "{}", refused.message());
    world.nothing_is_left();
}

/// A link in the sources leads a pod nowhere but within its workspace.
#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_sources_lead_nowhere_else() {
    needs_root!();
    let repo = TestRepo::standard();
    let outside = "../../../../../../../../etc";
    let links: [(&str, &str, &[u8]); 3] =
        [("120000", "absolute", b"/etc"), ("120000", "upwards", outside.as_bytes()), ("120000", "within", b"src/deep")];
    repo.commit_tree("main", &links, &[]);
    let world = World::of(repo, "");
    world.fill();
    let pod = world.pod("uid-a");
    for sub_path in ["src/absolute", "src/upwards"] {
        let request = world.wanted(&pod, &[world.main().as_slice(), &[("subPath", sub_path)]].concat());
        let refused = world.publish(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains("leads out of the workspace"), "{}", refused.message());
        world.nothing_is_left();
    }
    let request = world.wanted(&pod, &[world.main().as_slice(), &[("subPath", "src/within")]].concat());
    world.publish_at_last(&request).await;
    assert!(pod.target.join("er/nested.rs").is_file());
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_pods_own_token_counts() {
    let world = World::new("");
    let (pod, other) = (world.pod("uid-a"), world.pod("uid-b"));
    let claims = |uid| Claims { pod_uid: uid, ..of("builds", "default") };
    let mine = claims(Some("uid-a"));
    let sign = |claims: &Claims| world.tokens.token(claims);
    let shown = [
        ("none", None, Code::Unauthenticated),
        ("another pod's", Some(other.token.clone()), Code::PermissionDenied),
        ("one of no pod", Some(sign(&claims(None))), Code::PermissionDenied),
        ("another account's", Some(sign(&Claims { account: "builder", ..mine.clone() })), Code::PermissionDenied),
        ("another namespace's", Some(sign(&Claims { namespace: "red", ..mine.clone() })), Code::PermissionDenied),
        ("for another audience", Some(sign(&Claims { audience: "vault", ..mine.clone() })), Code::Unauthenticated),
        ("one that is over", Some(sign(&Claims { ends_in_seconds: -60, ..mine.clone() })), Code::Unauthenticated),
        ("forged", Some(world.tokens.forged(&mine)), Code::Unauthenticated),
        ("nonsense", Some("a.b.c".to_owned()), Code::Unauthenticated),
    ];
    for (what, token, code) in shown {
        let mut request = world.wanted(&pod, &world.main());
        let name = "csi.storage.k8s.io/serviceAccount.tokens".to_owned();
        match &token {
            Some(token) => request.volume_context.insert(name, json!({AUDIENCE: {"token": token}}).to_string()),
            None => request.volume_context.remove(&name),
        };
        let refused = world.publish(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{what}: {refused:?}");
        assert!(token.is_none_or(|token| !refused.message().contains(&token)), "{what}: {}", refused.message());
        assert!(!pod.target.exists(), "{what}");
    }
    // A role is needed too.
    let stranger = world.pod_of("uid-c", "strangers");
    let refused = world.publish(world.wanted(&stranger, &world.main())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    // And the pod must be on this node, by the API server's word.
    let nowhere = world.pod_elsewhere("uid-d", "builds");
    let refused = world.publish(world.wanted(&nowhere, &world.main())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("knows no pod"), "{}", refused.message());
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_targets_are_refused_and_left_as_they_are() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let (pod, other) = (world.pod("uid-a"), world.pod("uid-b"));
    let elsewhere = world.agent.root().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let refuse = async |target: &Path, code: Code| {
        let target_path = target.to_str().unwrap().to_owned();
        let request = world.wanted(&pod, &world.main());
        let request = csi::NodePublishVolumeRequest { target_path: target_path.clone(), ..request };
        let refused = world.publish(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{}: {refused:?}", target.display());
        assert!(refused.message().starts_with("target_path: "), "{}", refused.message());
        assert_eq!((world.leases(), world.tickets()), (Vec::new(), Vec::new()));
        let request = csi::NodeUnpublishVolumeRequest { volume_id: pod.volume(), target_path };
        world.node().await.node_unpublish_volume(request).await.err().map(|status| status.code())
    };

    for outside in [elsewhere.join("mount"), world.kubelet().join("plugins/x"), other.target.clone()] {
        refuse(&outside, Code::InvalidArgument).await;
    }
    // A link in its place, or on the way to it.
    symlink(&elsewhere, &pod.target).unwrap();
    assert_eq!(refuse(&pod.target, Code::FailedPrecondition).await, Some(Code::FailedPrecondition));
    assert!(pod.target.is_symlink());
    std::fs::remove_file(&pod.target).unwrap();
    let volume = pod.target.parent().unwrap();
    std::fs::remove_dir(volume).unwrap();
    symlink(&elsewhere, volume).unwrap();
    assert_eq!(refuse(&pod.target, Code::FailedPrecondition).await, Some(Code::FailedPrecondition));
    std::fs::remove_file(volume).unwrap();
    refuse(&pod.target, Code::InvalidArgument).await;
    std::fs::create_dir(volume).unwrap();
    // A file, and somebody else's mount.
    std::fs::write(&pod.target, "kept").unwrap();
    assert_eq!(refuse(&pod.target, Code::FailedPrecondition).await, Some(Code::FailedPrecondition));
    assert_eq!(std::fs::read(&pod.target).unwrap(), b"kept");
    std::fs::remove_file(&pod.target).unwrap();
    std::fs::create_dir(&pod.target).unwrap();
    std::fs::write(elsewhere.join("precious"), "kept").unwrap();
    let mount = |args: &[&str]| assert!(std::process::Command::new("mount").args(args).status().unwrap().success());
    mount(&["--bind", elsewhere.to_str().unwrap(), pod.target.to_str().unwrap()]);
    assert_eq!(refuse(&pod.target, Code::FailedPrecondition).await, Some(Code::FailedPrecondition));
    assert!(pod.target.join("precious").is_file());
    assert!(std::process::Command::new("umount").arg(&pod.target).status().unwrap().success());
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 1);
    world.nothing_is_left();
    // And then it is as any other.
    world.publish_at_last(&world.wanted(&pod, &world.main())).await;
    assert!(pod.src().join("README.md").is_file());
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

/// What is the agent's is told by where it lies, not by what it or the way to it is called.
#[tokio::test(flavor = "multi_thread")]
async fn a_mount_is_told_by_where_it_lies_and_not_by_its_names() {
    needs_root!();
    let mount = |args: &[&str]| assert!(std::process::Command::new("mount").args(args).status().unwrap().success());
    // The caches are somewhere else, where nothing is called as it is here: by a link, or by a mount.
    for by_link in [true, false] {
        let world = World::with(TestRepo::standard(), "", |shared| {
            let (real, own) = (shared.join("real"), shared.join("pool/stoker"));
            std::fs::create_dir(&real).unwrap();
            std::fs::create_dir_all(&own).unwrap();
            if by_link {
                return symlink(&real, own.join("caches")).unwrap();
            }
            std::fs::create_dir(own.join("caches")).unwrap();
            mount(&["--bind", real.to_str().unwrap(), own.join("caches").to_str().unwrap()]);
        });
        let pod = world.pod("uid-a");
        let request = world.wanted(&pod, &[("kind", "cache"), ("key", "target")]);
        world.publish_at_last(&request).await;
        let before = mounts_below(&world.kubelet());
        world.publish(request).await.unwrap();
        assert_eq!(mounts_below(&world.kubelet()), before, "again is the same as once");
        world.unpublish(&pod).await.unwrap();
        world.nothing_is_left();
    }
    let world = World::new("");
    world.fill();
    let pod = world.pod("uid-a");
    // And somebody else's is called as the agent's are.
    let others = world.agent.root().join("shared/others/stoker/workspaces/1");
    std::fs::create_dir_all(&others).unwrap();
    std::fs::write(others.join("precious"), "kept").unwrap();
    std::fs::create_dir(&pod.target).unwrap();
    mount(&["--bind", others.to_str().unwrap(), pod.target.to_str().unwrap()]);
    for refused in [world.publish(world.wanted(&pod, &world.main())).await, world.unpublish(&pod).await] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("something else is mounted there"), "{}", refused.message());
        assert!(pod.target.join("precious").is_file());
    }
    assert!(std::process::Command::new("umount").arg(&pod.target).status().unwrap().success());
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}
