//! Pools that come and go, and directories that cannot be.

use std::path::Path;

use stoker_proto::v1;
use tonic::Code;

use super::*;
use crate::support::loopdev::{Kind, LoopFs, needs_root};
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

const NOT_READY: v1::reason::Code = v1::reason::Code::PoolNotReady;

fn pool_state(status: &v1::Status) -> &str {
    &status.pools[0].state
}

/// A pool on its own filesystem, two mirrors: one small, one whose fill takes seconds.
struct Scene {
    filesystem: LoopFs,
    agent: Agent,
    upstream: Upstream,
    small: (TestRepo, String),
    large: (TestRepo, String),
}

impl Scene {
    fn start(kind: Kind, size: u64) -> Self {
        let filesystem = LoopFs::unmounted(kind, size);
        let upstream = Upstream::start();
        let (small, large) = (TestRepo::standard(), TestRepo::generated(400, 60_000_000, 1));
        let small = (upstream.host("team/small.git", &small), small);
        let large = (upstream.host("team/large.git", &large), large);
        let path = filesystem.path().to_str().unwrap();
        let directories = "[{path: bst-cache, mode: \"0750\", owner: 1234, group: 4321, retention: cache}, \
                           {path: deep/er/tmp, mode: \"1777\"}]";
        let pool = format!("path: {path}, mount: required, directories: {directories}");
        let agent = start(&configuration(&pool, &[&small.0]));
        Self { filesystem, agent, upstream, small: (small.1, small.0), large: (large.1, large.0) }
    }

    /// That not one file or folder is at the mount point, nor anything new beside it.
    #[track_caller]
    fn assert_bare(&self, when: &str) {
        assert_eq!(listing(self.filesystem.path()), BTreeMap::new(), "{when}");
        let parent = self.filesystem.path().parent().unwrap();
        assert_eq!(listing(parent).into_keys().collect::<Vec<_>>(), ["image", "mount"], "{when}");
    }

    /// Everything that would write, while nothing is mounted.
    async fn try_everything(&self, lease: &str) {
        let agent = &self.agent;
        let (repo, url) = &self.small;
        refused(refresh(agent, url).await, Code::Unavailable, "POOL_NOT_READY");
        for source in [branch(url, "main"), commit(url, &repo.commit("main"))] {
            match admit(agent, order(&uuid::Uuid::now_v7().to_string(), source, small())).await {
                Ok(answer) => assert!(codes(&answer.waiting().reasons).contains(&NOT_READY)),
                Err(status) => drop(refused::<()>(Err(status), Code::Unavailable, "POOL_NOT_READY")),
            }
        }
        let add = v1::AddRepositoryRequest { url: self.upstream.url("team/other.git"), ..Default::default() };
        refused(agent.repository().await.add_repository(add).await, Code::Unavailable, "POOL_NOT_READY");
        if !lease.is_empty() {
            refused(prepare(agent, lease).await, Code::Unavailable, "POOL_NOT_READY");
        }
        let wanted = v1::Unleased { source: Some(branch(url, "main")), ..Default::default() };
        let wanted = v1::Unleased { lifetime: Some(seconds(600)), request_id: "unleased".to_owned(), ..wanted };
        let unleased = v1::prepare_workspace_request::For::Unleased(wanted);
        let request = v1::PrepareWorkspaceRequest { r#for: Some(unleased), ..Default::default() };
        let outcome = agent.workspace().await.prepare_workspace(request).await.map(drop);
        refused(outcome, Code::Unavailable, "POOL_NOT_READY");
    }
}

async fn a_pool_comes_and_goes(kind: Kind, size: u64) {
    let mut scene = Scene::start(kind, size);
    let url = scene.small.1.clone();

    // Not mounted from the beginning.
    let first = status_until(&scene.agent, "the gate is shut", |now| gate_is(now, v1::GateState::Shut)).await;
    assert_eq!(pool_state(&first), "NotMounted");
    assert!(first.pools[0].directories.iter().all(|directory| directory.state == "NotMounted"));
    assert_eq!(codes(&first.gate.as_ref().unwrap().reasons), [NOT_READY]);
    assert!(codes(&first.alarms).contains(&NOT_READY), "{:?}", first.alarms);
    scene.try_everything("").await;
    scene.assert_bare("before it was ever mounted");

    // Mounted: it is prepared, and serves, without anybody's doing.
    scene.filesystem.mount();
    let now = status_until(&scene.agent, "the pool is ready", |now| pool_state(now) == "Ready").await;
    assert!(now.pools[0].directories.iter().all(|directory| directory.state == "Prepared"), "{:?}", now.pools);
    assert_eq!(now.pools[0].filesystem.as_ref().unwrap().r#type, format!("{kind:?}").to_lowercase());
    let at = |name: &str| scene.filesystem.path().join(name);
    assert_eq!(mode_of(&at("bst-cache")), (0o750, 1234, 4321));
    assert_eq!(mode_of(&at("deep/er/tmp")).0, 0o1777);
    mirror_ready(&scene.agent, &url).await;
    status_until(&scene.agent, "the gate is open", |now| gate_is(now, v1::GateState::Open)).await;
    let held = admit(&scene.agent, unbound("held", branch(&url, "main"))).await.unwrap().granted();
    let ending = admit(&scene.agent, unbound("ending", branch(&url, "main"))).await.unwrap().granted();
    let unprepared = admit(&scene.agent, unbound("unprepared", branch(&url, "main"))).await.unwrap().granted();
    let workspace = prepare(&scene.agent, &held.id).await.unwrap();
    let gone = prepare(&scene.agent, &ending.id).await.unwrap();

    // Unmounted while a mirror fills and workspaces are there.
    let add = v1::AddRepositoryRequest { url: scene.large.1.clone(), ..Default::default() };
    scene.agent.repository().await.add_repository(add).await.unwrap();
    let receiving =
        || listing(&at("stoker/stores")).keys().any(|name| name.contains(".tmp-fill/objects/pack/tmp_pack"));
    wait::until(LIMIT, "the large mirror is being received", receiving);
    scene.filesystem.unmount_anyhow();
    let shut = |now: &v1::Status| pool_state(now) == "NotMounted" && gate_is(now, v1::GateState::Shut);
    let now = status_until(&scene.agent, "the pool is not mounted", shut).await;
    assert!(codes(&now.gate.unwrap().reasons).contains(&NOT_READY));
    scene.try_everything(&unprepared.id).await;
    assert_eq!(release(&scene.agent, &ending.id).await.unwrap().state(), v1::LeaseState::Released);
    // Nothing keeps the disk: what was under way has ended.
    wait::until(LIMIT, "the loop device is free", || scene.filesystem.is_free());
    scene.assert_bare("unmounted under way");

    // Mounted again: all comes back without a restart.
    scene.filesystem.mount();
    status_until(&scene.agent, "the gate is open again", |now| gate_is(now, v1::GateState::Open)).await;
    let (repo, _) = &scene.small;
    let found = resolve(&scene.agent, commit(&url, &repo.commit("main")), LIMIT).await.unwrap();
    assert_eq!(found.resolved.unwrap().commit, repo.commit("main"));
    let new = repo.commit_file("main", "new", b"new\n");
    refresh(&scene.agent, &url).await.unwrap();
    let found = resolve(&scene.agent, branch(&url, "main"), LIMIT).await.unwrap();
    assert_eq!(found.resolved.unwrap().commit, new);
    assert_eq!(prepare(&scene.agent, &held.id).await.unwrap().src, workspace.src);
    assert!(Path::new(&workspace.src).join("README.md").is_file());
    assert!(Path::new(&prepare(&scene.agent, &unprepared.id).await.unwrap().src).join("README.md").is_file());
    wait::until(LIMIT, "the workspace of the ended lease went", || !Path::new(&gone.src).exists());
    // The large mirror is filled by itself.
    mirror_ready(&scene.agent, &scene.large.1).await;
    assert_eq!(scene.agent.terminate().code(), Some(0));
    scene.filesystem.unmount_anyhow();
    scene.assert_bare("at the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn unmounted_pool_creates_nothing_and_comes_back_on_ext4() {
    needs_root!();
    a_pool_comes_and_goes(Kind::Ext4, 512 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unmounted_pool_creates_nothing_and_comes_back_on_xfs() {
    needs_root!();
    a_pool_comes_and_goes(Kind::Xfs, 512 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_pool_can_be_unmounted_and_is_taken_back() {
    needs_root!();
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut filesystem = LoopFs::new(Kind::Ext4, 128 << 20);
    let pool = format!("path: {}, mount: required", filesystem.path().display());
    let agent = start(&configuration(&pool, &[&url]));
    mirror_ready(&agent, &url).await;
    // Readers keep the snapshot open from here on.
    resolve(&agent, commit(&url, &repo.commit("main")), LIMIT).await.unwrap();
    let name = agent.node().await.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    let name = name.status.unwrap().pools[0].name.clone();

    let told = agent.stoker().run(["pool", "detach", &name, "-o", "json"]).expect_code(0).json();
    assert_eq!(told["pool"]["state"], "Detached");
    wait::until(LIMIT, "nothing holds the disk", || filesystem.try_unmount());
    refused(refresh(&agent, &url).await, Code::Unavailable, "POOL_NOT_READY");
    assert_eq!(listing(filesystem.path()), BTreeMap::new());

    filesystem.mount();
    let told = agent.stoker().run(["pool", "attach", &name, "-o", "json"]).expect_code(0).json();
    assert_eq!(told["pool"]["state"], "Ready");
    status_until(&agent, "the gate is open again", |now| gate_is(now, v1::GateState::Open)).await;
    resolve(&agent, branch(&url, "main"), LIMIT).await.unwrap();
    agent.stoker().run(["pool", "detach", "nothing"]).expect_code(2);
}

/// A pool whose disk is absent when the agent starts has the workspaces of live leases, and rubbish. Files stay; what was
/// in an overlay went with the mount, and is made anew.
async fn a_pool_comes_after_the_start(method: &str, stays: bool) {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut filesystem = LoopFs::new(Kind::Ext4, 128 << 20);
    let pool = format!("path: {}, mount: required", filesystem.path().display());
    let mut agent = start(&format!("{}workspaces: {{method: {method}}}\n", configuration(&pool, &[&url])));
    mirror_ready(&agent, &url).await;
    let mut leases = Vec::new();
    for id in ["lives", "ends"] {
        let lease = admit(&agent, order(id, branch(&url, "main"), small())).await.unwrap().granted();
        leases.push((prepare(&agent, &lease.id).await.unwrap(), lease.id));
    }
    agent.kill9();
    filesystem.unmount_anyhow();
    agent.launch();
    agent.wait_ready();
    release(&agent, &leases[1].1).await.unwrap();
    filesystem.mount();
    mirror_ready(&agent, &url).await;
    wait::until(LIMIT, "the ended lease's workspace went", || !Path::new(&leases[1].0.src).exists());
    let again = prepare(&agent, &leases[0].1).await.unwrap();
    assert_eq!(again.src, leases[0].0.src);
    assert_eq!(again.created_at == leases[0].0.created_at, stays, "the same workspace");
    assert!(Path::new(&again.src).join("README.md").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_comes_after_the_start_is_taken_over_with_its_workspaces() {
    needs_root!();
    a_pool_comes_after_the_start("checkout", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overlays_that_went_with_the_pool_are_made_anew() {
    needs_root!();
    a_pool_comes_after_the_start("overlay", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_pool_is_not_created() {
    let agent = start(&configuration("path: $ROOT/not/there, mount: required", &[]));
    let now = status(&agent).await;
    assert_eq!(pool_state(&now), "Absent");
    assert!(codes(&now.alarms).contains(&NOT_READY));
    assert!(!agent.root().join("not").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_whose_parent_is_a_file_fails_alone() {
    let pool =
        format!("{PLAIN}, directories: [{{path: one}}, {{path: file/below}}, {{path: two/deep, mode: \"0700\"}}]");
    let mut agent = prepared(&configuration(&pool, &[]));
    let at = |agent: &Agent, name: &str| agent.root().join("pool").join(name);
    std::fs::create_dir(agent.root().join("pool")).unwrap();
    std::fs::write(at(&agent, "file"), b"in the way").unwrap();
    agent.launch();
    agent.wait_ready();
    let now = status(&agent).await;
    let states: Vec<_> = now.pools[0].directories.iter().map(|found| (&*found.path, &*found.state)).collect();
    assert_eq!(pool_state(&now), "Ready");
    assert_eq!(states, [("one", "Prepared"), ("file/below", "NotADirectory"), ("two/deep", "Prepared")]);
    let message = &now.pools[0].directories[1].message;
    assert!(message.contains("file"), "{message}");
    assert!(now.alarms.iter().any(|alarm| alarm.subject.ends_with("file/below")), "{:?}", now.alarms);
    assert!(gate_is(&now, v1::GateState::Open));
    assert_eq!(std::fs::read(at(&agent, "file")).unwrap(), b"in the way");
    assert_eq!(mode_of(&at(&agent, "two/deep")).0, 0o700);
    // Out of the way, it is made without a restart.
    std::fs::remove_file(at(&agent, "file")).unwrap();
    status_until(&agent, "it is prepared", |now| now.pools[0].directories[1].state == "Prepared").await;
    assert!(at(&agent, "file/below").is_dir());
}
