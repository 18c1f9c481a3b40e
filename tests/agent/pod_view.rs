//! The disks as a pod sees them: a mount namespace of its own, with the disks' parent read-only and with the propagation
//! that the manifests give it, while the node mounts and unmounts.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use tonic::Code;

use super::*;
use crate::support::disk;
use crate::support::loopdev::{Kind, LoopFs, needs_root};
use crate::support::repository::{TestRepo, git_out};
use crate::support::upstream::Upstream;

/// As in the manifests, `mountPropagation` of the disks' parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    /// Of the profile `full`.
    Bidirectional,
    /// Of the profile `restricted`.
    HostToContainer,
}

/// The disks' parent on the node, which the kubelet finds shared.
struct Parent(TempDir);

impl Parent {
    fn new() -> Self {
        let place = crate::support::place("disks-");
        mount(&["--bind".as_ref(), place.path(), place.path()]);
        let new = Self(place);
        mount(&["--make-shared".as_ref(), new.0.path()]);
        std::fs::create_dir(new.0.path().join("data")).unwrap();
        new
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", "--recursive"]).arg(self.0.path()).status();
    }
}

fn mount(args: &[&Path]) {
    assert!(Command::new("mount").args(args).status().unwrap().success(), "mount {args:?}");
}

struct Scene {
    propagation: Propagation,
    agent: Agent,
    disk: LoopFs,
    other: LoopFs,
    small: (TestRepo, String),
    large: (TestRepo, String),
    _upstream: Upstream,
    parent: Parent,
}

impl Scene {
    fn start(propagation: Propagation) -> Self {
        let parent = Parent::new();
        let at = parent.0.path().join("data");
        let disk = LoopFs::unmounted(Kind::Xfs, 512 << 20).at(&at);
        let other = LoopFs::unmounted(Kind::Ext4, 64 << 20).at(&at);
        let upstream = Upstream::start();
        let (small, large) = (TestRepo::standard(), TestRepo::generated(400, 60_000_000, 1));
        let host = |name: &str, repo: TestRepo| (upstream.host(name, &repo), repo);
        let (small, large) = (host("team/small.git", small), host("team/large.git", large));
        let [small, large] = [small, large].map(|(url, repo)| (repo, url));
        let pool = format!("path: {}, mount: required, uuid: {}", at.display(), disk.uuid());
        let mut agent = prepared(&format!("{}kubernetes: {{watch: off}}\n", configuration(&pool, &[&small.1])));
        // What a container runtime does with a hostPath volume that is mounted read-only.
        let how = if propagation == Propagation::Bidirectional { "unchanged" } else { "slave" };
        let script = r#"mount -o remount,bind,ro "$0" && exec "$@""#;
        agent.through([
            "unshare",
            "--mount",
            "--propagation",
            how,
            "sh",
            "-c",
            script,
            parent.0.path().to_str().unwrap(),
        ]);
        agent.env("KUBERNETES_SERVICE_HOST", "192.0.2.1");
        agent.launch();
        agent.wait_ready();
        Self { propagation, agent, disk, other, small, large, _upstream: upstream, parent }
    }

    async fn shut(&self, state: &str) {
        let shut = |now: &v1::Status| now.pools[0].state == state && gate_is(now, v1::GateState::Shut);
        let now = status_until(&self.agent, &format!("the pool is {state}"), shut).await;
        assert!(codes(&now.gate.unwrap().reasons).contains(&v1::reason::Code::PoolNotReady));
        let add = v1::AddRepositoryRequest { url: self.large.1.clone(), ..Default::default() };
        refused(self.agent.repository().await.add_repository(add).await, Code::Unavailable, "POOL_NOT_READY");
    }

    /// Nothing of ours is on the disk of the node's system.
    fn assert_bare(&self, when: &str) {
        assert_eq!(listing(&self.parent.0.path().join("data")), BTreeMap::new(), "{when}");
        assert_eq!(disk::names(self.parent.0.path()), ["data"], "{when}");
    }

    /// A build begins, and its pod has what it needs.
    async fn build(&self, when: &str) -> (String, PathBuf) {
        let open = |now: &v1::Status| now.pools[0].state == "Ready" && gate_is(now, v1::GateState::Open);
        status_until(&self.agent, &format!("{when}: the gate is open"), open).await;
        let (repo, url) = &self.small;
        mirror_ready(&self.agent, url).await;
        let request = order(&uuid::Uuid::now_v7().to_string(), branch(url, "main"), small());
        let lease = admit(&self.agent, request).await.unwrap().granted().id;
        let workspace = prepare(&self.agent, &lease).await.unwrap();
        let wanted = match self.propagation {
            Propagation::Bidirectional => v1::Method::Overlay,
            Propagation::HostToContainer => v1::Method::Reflink,
        };
        assert_eq!(workspace.method(), wanted, "{when}");
        // On the node, and so in every other pod.
        let src = PathBuf::from(workspace.src);
        assert_eq!(git_out(&src, &["rev-parse", "HEAD"]), repo.commit("main"), "{when}");
        assert_eq!(git_out(&src, &["status", "--porcelain", "--ignored"]), "", "{when}");
        (lease, src)
    }

    async fn release(&self, lease: &str, src: &Path) {
        assert_eq!(release(&self.agent, lease).await.unwrap().state(), v1::LeaseState::Released);
        wait::until(LIMIT, "the workspace went", || !src.exists());
    }

    async fn receiving(&self) {
        let add = v1::AddRepositoryRequest { url: self.large.1.clone(), ..Default::default() };
        self.agent.repository().await.add_repository(add).await.unwrap();
        let stores = self.disk.path().join("stoker/stores");
        let receiving = || listing(&stores).keys().any(|name| name.contains(".tmp-fill/objects/pack/tmp_pack"));
        wait::until(LIMIT, "the large mirror is being received", receiving);
    }
}

async fn is_guarded(propagation: Propagation) {
    let mut scene = Scene::start(propagation);

    // Absent when the pod begins: the kernel itself refuses what would be written.
    scene.shut("NotMounted").await;
    let root = format!("/proc/{}/root", scene.agent.pid());
    let below = Path::new(&root).join(scene.disk.path().strip_prefix("/").unwrap()).join("stray");
    let error = std::fs::write(below, "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
    scene.assert_bare("absent");

    // Late, and lost while a build writes and a mirror fills.
    scene.disk.mount();
    let (_, src) = scene.build("late").await;
    let script = format!("cd {0}; while echo x >> here && echo x > {0}/file; do sleep 0.01; done", src.display());
    let mut build = Holder::start(&scene.agent, &script);
    wait::until(LIMIT, "the build writes", || src.join("file").exists());
    scene.receiving().await;
    scene.disk.unmount_anyhow();
    scene.shut("NotMounted").await;
    scene.assert_bare("lost");
    build.end();
    wait::until(LIMIT, "nothing holds the disk", || scene.disk.is_free());

    // Back, and replaced by another.
    scene.disk.mount();
    let (lease, src) = scene.build("back").await;
    mirror_ready(&scene.agent, &scene.large.1).await;
    scene.release(&lease, &src).await;
    scene.disk.unmount_anyhow();
    scene.other.mount();
    scene.shut("WrongFilesystem").await;
    assert_eq!(disk::names(scene.other.path()), ["lost+found"], "nothing is written on the other disk");
    wait::until(LIMIT, "nothing holds the other disk", || scene.other.try_unmount());
    scene.assert_bare("replaced");

    // Read-only: not a mount of it, which the pod would not see, but the disk.
    scene.disk.mount();
    let (lease, src) = scene.build("in its place again").await;
    scene.disk.read_only_everywhere();
    scene.shut("ReadOnly").await;
    scene.disk.unmount_anyhow();
    wait::until(LIMIT, "nothing holds the disk", || scene.disk.is_free());
    scene.disk.mount();
    let (second, more) = scene.build("writable again").await;
    assert!(prepare(&scene.agent, &lease).await.is_ok(), "the first one goes on");
    scene.release(&lease, &src).await;
    scene.release(&second, &more).await;

    assert_eq!(scene.agent.terminate().code(), Some(0));
    assert_eq!(disk::mounts_below(scene.disk.path()), Vec::<PathBuf>::new(), "no mount of ours is left on the node");
    scene.disk.unmount_anyhow();
    scene.assert_bare("at the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_pod_guards_the_disk_and_shows_its_mounts_to_the_node() {
    needs_root!();
    is_guarded(Propagation::Bidirectional).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_pod_guards_the_disk_and_needs_no_mounts() {
    needs_root!();
    is_guarded(Propagation::HostToContainer).await;
}
