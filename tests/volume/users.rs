//! Whom the files of a volume belong to, and pods in a user namespace.

use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::support::api_server::Health;
use crate::support::disk::listing;
use crate::support::idmap::{FIRST, UserNamespace};
use crate::support::loopdev::{Kind, LoopFs};

const SIZE: u64 = 512 << 20;

fn owner(path: &Path) -> (u32, u32) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn container(set: Value) -> Value {
    json!({"name": "c", "image": "build", "securityContext": set, "volumeMounts": [{"name": "src", "mountPath": "/work"}]})
}

fn volumes() -> Value {
    json!([{"name": "src", "csi": {"driver": "stoker.build"}}])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_belongs_to_whom_its_pod_runs_as() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let of = |set: Value, containers: Vec<Value>| {
        move |pod: &mut Value| {
            pod["spec"]["securityContext"] = set;
            pod["spec"]["volumes"] = volumes();
            pod["spec"]["containers"] = json!(containers);
        }
    };
    let none = || container(json!({}));
    for (what, uid, change, attributes, expected) in [
        ("root where nobody is named", "uid-a", of(json!({}), vec![none()]), vec![], (0, 0)),
        (
            "the pod's",
            "uid-b",
            of(json!({"runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 5}), vec![none()]),
            vec![],
            (1000, 1001),
        ),
        ("its fsGroup", "uid-c", of(json!({"runAsUser": 1000, "fsGroup": 2000}), vec![none()]), vec![], (1000, 2000)),
        (
            "its containers' where they agree",
            "uid-d",
            of(
                json!({"runAsUser": 1000}),
                vec![container(json!({"runAsUser": 7})), container(json!({"runAsUser": 7}))],
            ),
            vec![],
            (7, 0),
        ),
        (
            "the pod's where they do not",
            "uid-e",
            of(
                json!({"runAsUser": 1000}),
                vec![container(json!({"runAsUser": 7})), container(json!({"runAsUser": 8}))],
            ),
            vec![],
            (1000, 0),
        ),
        (
            "the attributes' before all",
            "uid-f",
            of(json!({"runAsUser": 1000, "runAsGroup": 1001}), vec![none()]),
            vec![("user", "4711")],
            (4711, 1001),
        ),
    ] {
        let pod = world.pod_like(uid, change);
        let request = world.wanted(&pod, &[world.main().as_slice(), &attributes].concat());
        world.publish_at_last(&request).await;
        for file in ["src", "src/README.md", "src/.git", "tmp", "out"] {
            assert_eq!(owner(&pod.target.join(file)), expected, "{what}: {file}");
        }
        world.unpublish(&pod).await.unwrap();
    }
    // Nobody is guessed to be root: who cannot be looked at comes again.
    let pod = world.pod_like("uid-g", of(json!({"runAsUser": 1000}), vec![none()]));
    let request = world.wanted(&pod, &world.main());
    world.publish_at_last(&request).await;
    world.unpublish(&pod).await.unwrap();
    world.api.go_away();
    let is_refused = async || match world.publish(request.clone()).await {
        Err(status) => status.message().contains("API_SERVER_AWAY"),
        Ok(()) => world.unpublish(&pod).await.is_err(),
    };
    wait::until_async(LIMIT, "the agent sees that the API server is away", is_refused).await;
    let refused = world.publish(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().starts_with("API_SERVER_AWAY: "), "{}", refused.message());
    assert!(!pod.target.exists());
    world.api.come_back();
    world.api.set_health(Health::Well);
    world.publish_at_last(&request).await;
    assert_eq!(owner(&pod.src().join("README.md")), (1000, 0));
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

/// As a runtime does it: the volume is bound with owners mapped, and users of the namespace write to it as themselves.
async fn a_pod_in_a_user_namespace_has_its_sources(kind: Kind, expected: &str) {
    let mut disk = None;
    let mut world = World::with(TestRepo::standard(), "", |shared| {
        std::fs::create_dir(shared.join("pool")).unwrap();
        let mut made = LoopFs::unmounted(kind, SIZE).at(&shared.join("pool"));
        made.mount();
        disk = Some(made);
    });
    world.fill();
    let namespace = UserNamespace::new();
    let of = |user: u32| {
        move |pod: &mut Value| {
            pod["spec"]["hostUsers"] = json!(false);
            pod["spec"]["securityContext"] = json!({"runAsUser": user, "runAsGroup": user});
        }
    };
    for (uid, user) in [("uid-a", 0), ("uid-b", 1000)] {
        let pod = world.pod_like(uid, of(user));
        world.publish_at_last(&world.wanted(&pod, &world.main())).await;
        let lease = world.leases()[0]["id"].as_str().unwrap().to_owned();
        let made = world.agent.stoker().run(["workspace", "show", &lease, "-o", "json"]).expect_code(0).json();
        assert_eq!(made["workspace"]["method"], expected, "{made}");
        assert_eq!(owner(&pod.src().join("README.md")), (user, user), "the ids are those of the container");
        assert_eq!(mounts_below(&world.kubelet()), [pod.target.as_path()], "one mount and no other");
        let inside = world.agent.root().join(format!("inside-{uid}"));
        std::fs::create_dir(&inside).unwrap();
        let script = |at: &Path| {
            format!(
                "cd {} && echo new > src/README.md && mkdir out/built && git -C src status --porcelain",
                at.display()
            )
        };
        assert!(!namespace.runs(user, &script(&pod.target)), "without the mapping they are nobody's");
        namespace.bind(&pod.target, &inside).unwrap();
        assert!(namespace.runs(user, &script(&inside)));
        assert_eq!(
            owner(&inside.join("out/built")),
            (FIRST + user, FIRST + user),
            "from outside, whom it is mapped to"
        );
        assert_eq!(owner(&pod.target.join("out/built")), (user, user), "on the disk, as whom it ran");
        assert!(std::process::Command::new("umount").arg(&inside).status().unwrap().success());
        world.unpublish(&pod).await.unwrap();
    }
    // And why it gets no overlay: the kernel refuses to map that.
    let pod = world.pod("uid-c");
    world.publish_at_last(&world.wanted(&pod, &world.main())).await;
    assert_eq!(mounts_below(&world.kubelet()).len(), 2, "an overlay in it");
    let inside = world.agent.root().join("inside-overlay");
    std::fs::create_dir(&inside).unwrap();
    let refused = namespace.bind(&pod.src(), &inside).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(nix::libc::EINVAL), "{refused}");
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
    // The caches of tenants, and mirrors, can be mapped as they are.
    for attributes in [[("kind", "cache")], [("kind", "mirrors")]] {
        let pod = world.pod_like("uid-d", of(0));
        world.publish(world.wanted(&pod, &attributes)).await.unwrap();
        namespace.bind(&pod.target, &inside).unwrap();
        assert_eq!(listing(&inside), listing(&pod.target));
        assert!(std::process::Command::new("umount").arg(&inside).status().unwrap().success());
        world.unpublish(&pod).await.unwrap();
    }
    assert!(world.agent.terminate().success());
    disk.unwrap().unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_a_user_namespace_has_a_reflinked_copy_on_xfs() {
    needs_root!();
    a_pod_in_a_user_namespace_has_its_sources(Kind::Xfs, "METHOD_REFLINK").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_a_user_namespace_has_a_checkout_on_ext4() {
    needs_root!();
    a_pod_in_a_user_namespace_has_its_sources(Kind::Ext4, "METHOD_CHECKOUT").await;
}

/// What somebody made before as an overlay is not handed to a runtime that would fail with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_made_before_is_refused_to_a_pod_in_a_user_namespace() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let lease = world.admit("builds");
    world.agent.stoker().run(["workspace", "prepare", "--lease", &lease]).expect_code(0);
    let pod = world.pod_like("uid-a", |pod| pod["spec"]["hostUsers"] = json!(false));
    let refused = world.publish(world.wanted(&pod, &[("lease", &lease)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("hostUsers: false") && !pod.target.exists(), "{}", refused.message());
    world.agent.stoker().run(["workspace", "delete", &lease]).expect_code(0);
    world.publish_at_last(&world.wanted(&pod, &[("lease", &lease)])).await;
    assert_eq!(mounts_below(&world.kubelet()), [pod.target.as_path()]);
    world.unpublish(&pod).await.unwrap();
    world.agent.stoker().run(["lease", "release", &lease, "--outcome", "succeeded"]).expect_code(0);
    world.nothing_is_left();
}

/// Nor is what a pod could not use, or what has less than its volume asks for.
#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_made_before_is_as_its_volume_needs_it() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let lease = world.admit("builds");
    let own = ["--self-contained"];
    let (of_another, of_a_group) = (["--self-contained", "--user", "7"], ["--self-contained", "--group", "7"]);
    let pod = world.pod_like("uid-a", |pod| {
        pod["spec"]["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000});
    });
    let fits = ["--self-contained", "--user", "1000", "--group", "1000"];
    for (made, attributes, told) in [
        (own.as_slice(), [].as_slice(), "belongs to user 0"),
        (&of_another, &[("user", "0")], "belongs to user 7"),
        (&of_a_group, &[("user", "0")], "belongs to group 7"),
        (&fits[1..], &[], "not self-contained"),
        (&fits, &[("submodules", "true")], "`submodules`"),
        (&fits, &[("lfs", "true")], "`lfs`"),
    ] {
        world.agent.stoker().run(["workspace", "prepare", "--lease", &lease].iter().chain(made)).expect_code(0);
        let request = world.wanted(&pod, &[&[("lease", lease.as_str())], attributes].concat());
        let refused = world.publish(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{told}: {refused:?}");
        assert!(refused.message().contains(told) && refused.message().ends_with("delete it"), "{refused:?}");
        assert!(!pod.target.exists());
        world.agent.stoker().run(["workspace", "delete", &lease]).expect_code(0);
    }
    world.agent.stoker().run(["workspace", "prepare", "--lease", &lease].iter().chain(&fits)).expect_code(0);
    world.publish(world.wanted(&pod, &[("lease", &lease)])).await.unwrap();
    world.unpublish(&pod).await.unwrap();
    world.agent.stoker().run(["lease", "release", &lease, "--outcome", "succeeded"]).expect_code(0);
    world.nothing_is_left();
}
