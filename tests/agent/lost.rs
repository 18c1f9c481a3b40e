//! A disk that goes while all is under way: a mirror that fills, a checkout that fills, a build that writes, a removal.
//! Nothing is written below its mount point, it is told, and all comes back by itself.

use std::path::PathBuf;

use stoker_proto::v1;
use tonic::Code;

use super::*;
use crate::support::disk;
use crate::support::loopdev::{Kind, LoopFs, needs_root};
use crate::support::repository::{TestRepo, git_out};
use crate::support::upstream::Upstream;
use crate::support::wire::source;

/// How the disk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Its mount is taken away, while builds hold it.
    Unmounted,
    /// Its kernel finds an error, and takes no more writes.
    Failed,
    /// Another disk is mounted in its place.
    Replaced,
    /// It answers no more, as its kernel does when the log cannot be written.
    Dead,
    /// Its device is pulled out: what is in memory is still told, all else is an error.
    Gone,
    /// An operator mounts it read-only.
    ReadOnly,
}

impl Loss {
    const fn state(self, kind: Kind) -> &'static str {
        match self {
            Self::Unmounted => "NotMounted",
            Self::Failed | Self::ReadOnly => "ReadOnly",
            Self::Replaced => "WrongFilesystem",
            // What the filesystem makes of it.
            Self::Gone if matches!(kind, Kind::Ext4) => "ReadOnly",
            Self::Dead | Self::Gone => "Failed",
        }
    }
}

/// What is under way when it goes. A build writes in its workspace each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Prefill,
    Checkout,
    Deletion,
    /// A checkout was kept a moment ago; not all of it may be on the disk.
    Kept,
}

struct Scene {
    agent: Agent,
    disk: LoopFs,
    /// What is mounted in its place.
    other: LoopFs,
    held: v1::Lease,
    standard: (TestRepo, String),
    wide: (TestRepo, String),
    large: (TestRepo, String),
    _upstream: Upstream,
}

impl Scene {
    async fn start(kind: Kind) -> Self {
        let disk = LoopFs::new(kind, 512 << 20);
        let other = LoopFs::unmounted(Kind::Xfs, 320 << 20).at(disk.path());
        let upstream = Upstream::start();
        let repos =
            [TestRepo::standard(), TestRepo::generated(6000, 12_000_000, 2), TestRepo::generated(400, 60_000_000, 1)];
        let names = ["team/small.git", "team/wide.git", "team/large.git"];
        let mut hosted = repos.into_iter().zip(names).map(|(repo, name)| (upstream.host(name, &repo), repo));
        let mut next = || hosted.next().map(|(url, repo)| (repo, url)).unwrap();
        let [standard, wide, large] = [next(), next(), next()];
        let pool = format!("path: {}, mount: required, uuid: {}", disk.path().display(), disk.uuid());
        let text = format!("{}workspaces: {{method: overlay}}\n", configuration(&pool, &[&standard.1, &wide.1]));
        let agent = start(&text);
        mirror_ready(&agent, &standard.1).await;
        mirror_ready(&agent, &wide.1).await;
        let held = admit(&agent, unbound("held", branch(&standard.1, "main"))).await.unwrap().granted();
        Self { agent, disk, other, held, standard, wide, large, _upstream: upstream }
    }

    fn own(&self) -> PathBuf {
        self.disk.path().join("stoker")
    }

    /// Begins what is to be under way, and waits until it is in the middle.
    async fn begin(&self, moment: Moment) {
        let own = self.own();
        match moment {
            Moment::Prefill => {
                let add = v1::AddRepositoryRequest { url: self.large.1.clone(), ..Default::default() };
                self.agent.repository().await.add_repository(add).await.unwrap();
                let receiving =
                    || listing(&own.join("stores")).keys().any(|name| name.contains(".tmp-fill/objects/pack/tmp_pack"));
                wait::until(LIMIT, "the large mirror is being received", receiving);
            }
            Moment::Checkout => {
                let (request, mut client) = (self.wide_request(moment), self.agent.workspace().await);
                tokio::spawn(async move { client.prepare_workspace(request).await?.into_inner().message().await });
                let filling = || {
                    let checkouts = own.join("checkouts");
                    let all = disk::names(&checkouts).into_iter().filter(|name| !name.contains(".json"));
                    all.filter(|name| !checkouts.join(format!("{name}.json")).exists())
                        .any(|name| disk::names(&checkouts.join(name).join("tree/tree000")).len() > 2)
                };
                wait::until(LIMIT, "a checkout is being filled", filling);
            }
            Moment::Kept => drop(self.prepare_wide(moment).await.unwrap()),
            Moment::Deletion => {
                let from = branch(&self.standard.1, "main");
                let id = uuid::Uuid::now_v7().to_string();
                let doomed = admit(&self.agent, order(&id, from, small())).await.unwrap().granted();
                let workspace = prepare(&self.agent, &doomed.id).await.unwrap();
                for folder in 0..20 {
                    let folder = Path::new(&workspace.tmp).join(folder.to_string());
                    std::fs::create_dir(&folder).unwrap();
                    (0..1000).for_each(|file| std::fs::write(folder.join(file.to_string()), "").unwrap());
                }
                release(&self.agent, &doomed.id).await.unwrap();
                wait::until(LIMIT, "it is being removed", || !disk::names(&own.join("trash")).is_empty());
            }
        }
    }

    async fn prepare_wide(&self, moment: Moment) -> Result<PathBuf, Status> {
        let request = within(self.wide_request(moment), LIMIT);
        let mut events = self.agent.workspace().await.prepare_workspace(request).await?.into_inner();
        loop {
            let event = events.message().await?.expect("a workspace comes").event;
            if let Some(v1::prepare_workspace_response::Event::Workspace(workspace)) = event {
                return Ok(workspace.src.into());
            }
        }
    }

    /// A commit that nobody had before; that of `Kept` is near the other.
    fn wide_commit(&self, moment: Moment) -> String {
        self.wide.0.commit(if moment == Moment::Kept { "main" } else { "main~1" })
    }

    fn wide_request(&self, moment: Moment) -> v1::PrepareWorkspaceRequest {
        let unleased = v1::Unleased {
            source: Some(source(&self.wide.1, &format!("sha:{}", self.wide_commit(moment)))),
            request_id: format!("wide-{moment:?}"),
            ..Default::default()
        };
        let which = Some(v1::prepare_workspace_request::For::Unleased(unleased));
        v1::PrepareWorkspaceRequest { r#for: which, ..Default::default() }
    }

    fn lose(&mut self, loss: Loss) {
        match loss {
            Loss::Unmounted => self.disk.unmount_anyhow(),
            Loss::Failed => self.disk.find_error(),
            Loss::Replaced => {
                self.disk.unmount_anyhow();
                self.other.mount();
            }
            Loss::Dead => self.disk.cut_power(),
            Loss::Gone => self.disk.lose_device(),
            Loss::ReadOnly => self.disk.read_only(),
        }
    }

    /// Mounts it as an operator does, when nothing holds it any more.
    fn bring_back(&mut self, when: &str) {
        wait::until(LIMIT, "nothing holds the other disk", || self.other.try_unmount());
        self.disk.unmount_anyhow();
        assert_eq!(listing(self.disk.path()), BTreeMap::new(), "{when}: written below the mount point");
        let parent = self.disk.path().parent().unwrap();
        assert_eq!(disk::names(parent), ["image", "mount"], "{when}: written beside it");
        wait::until(LIMIT, "nothing holds the disk", || self.disk.is_free());
        self.disk.mount();
    }

    /// That what is there is known, and the other way round.
    async fn assert_known(&self, when: &str) {
        let all = self.agent.workspace().await.list_workspaces(v1::ListWorkspacesRequest::default()).await.unwrap();
        let mut ids: Vec<String> = all.into_inner().workspaces.into_iter().map(|one| one.id).collect();
        ids.sort();
        let own = self.own();
        let folders = |part: &str| -> Vec<String> {
            disk::names(&own.join(part)).into_iter().filter(|name| !name.contains(".json")).collect()
        };
        wait::until(LIMIT, &format!("{when}: nothing is there but what is listed"), || {
            folders("workspaces") == ids && folders("overlays") == ids && disk::names(&own.join("trash")).is_empty()
        });
        let mounted = disk::mounts_below(self.disk.path());
        assert_eq!(mounted.len(), ids.len(), "{when}: {mounted:?}");
    }
}

/// The id of the workspace with these sources.
fn id_of(src: &Path) -> String {
    src.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

async fn comes_back(kind: Kind, loss: Loss) {
    let mut scene = Scene::start(kind).await;
    let wide = crate::support::place("wide-");
    scene.wide.0.clone_to(&wide.path().join("clone"));
    for moment in [Moment::Checkout, Moment::Kept, Moment::Prefill, Moment::Deletion] {
        let when = format!("{loss:?} during {moment:?}");
        let workspace = prepare(&scene.agent, &scene.held.id).await.unwrap();
        let src = PathBuf::from(&workspace.src);
        // It stands in its workspace, and has it by path too.
        let script = format!(
            "cd {0}; n=0; while [ $n -lt 6000 ]; do n=$((n+1)); echo x >> here; echo x > {0}/file$((n%50)); mkdir d$n; sleep 0.01; done 2>/dev/null",
            src.display()
        );
        let mut build = Holder::start(&scene.agent, &script);
        wait::until(LIMIT, "the build writes", || src.join("file1").exists());
        scene.begin(moment).await;
        scene.lose(loss);
        let shut = |now: &v1::Status| now.pools[0].state == loss.state(kind) && gate_is(now, v1::GateState::Shut);
        let now = status_until(&scene.agent, &when, shut).await;
        assert!(codes(&now.gate.unwrap().reasons).contains(&v1::reason::Code::PoolNotReady), "{when}");
        assert!(!now.pools[0].message.is_empty(), "{when}");
        let refusal = refused(scene.prepare_wide(moment).await.map(drop), Code::Unavailable, "POOL_NOT_READY");
        assert!(!refusal.message().is_empty(), "{when}");
        match loss {
            Loss::Unmounted => assert_eq!(listing(scene.disk.path()), BTreeMap::new(), "{when}"),
            Loss::Replaced => assert_eq!(listing(scene.disk.path()), BTreeMap::new(), "{when}: on the other disk"),
            Loss::Failed | Loss::Dead | Loss::Gone | Loss::ReadOnly => {}
        }
        build.end();
        scene.bring_back(&when);

        let well = |now: &v1::Status| now.pools[0].state == "Ready" && gate_is(now, v1::GateState::Open);
        status_until(&scene.agent, &format!("{when}: all is well"), well).await;
        let again = prepare(&scene.agent, &scene.held.id).await.unwrap();
        assert_eq!(git_out(Path::new(&again.src), &["status", "--porcelain", "--ignored"]), "", "{when}");
        git_out(Path::new(&again.src), &["fsck", "--no-dangling"]);
        mirror_ready(&scene.agent, &scene.standard.1).await;
        match moment {
            Moment::Prefill => drop(mirror_ready(&scene.agent, &scene.large.1).await),
            Moment::Checkout | Moment::Kept => {
                let src = scene.prepare_wide(moment).await.unwrap();
                git_out(&wide.path().join("clone"), &["checkout", "--quiet", "--detach", &scene.wide_commit(moment)]);
                let [mut ours, mut plain] = [&src, &wide.path().join("clone")].map(|tree| disk::listing(tree));
                for tree in [&mut ours, &mut plain] {
                    tree.retain(|path, _| !path.starts_with(".git"));
                }
                assert!(ours == plain && ours.len() > 6000, "{when}: other than a clone");
                let delete = v1::DeleteWorkspaceRequest { id: id_of(&src) };
                scene.agent.workspace().await.delete_workspace(delete).await.unwrap();
            }
            Moment::Deletion => {}
        }
        if matches!(loss, Loss::Failed | Loss::Dead | Loss::Gone) {
            // What the disk had not written is undone: what was thrown away can be there again. Retention finds it in time,
            // the next start at once.
            scene.agent.restart();
            wait::until_async(LIMIT, "all is taken up", async || prepare(&scene.agent, &scene.held.id).await.is_ok())
                .await;
        }
        scene.assert_known(&when).await;
    }
    assert_eq!(scene.agent.terminate().code(), Some(0));
    scene.bring_back("at the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmounted_disk_comes_back() {
    needs_root!();
    comes_back(Kind::Ext4, Loss::Unmounted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_with_an_error_comes_back() {
    needs_root!();
    comes_back(Kind::Ext4, Loss::Failed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_in_whose_place_another_was_mounted_comes_back() {
    needs_root!();
    comes_back(Kind::Xfs, Loss::Replaced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_disk_comes_back() {
    needs_root!();
    comes_back(Kind::Xfs, Loss::Dead).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_device_was_pulled_out_comes_back() {
    needs_root!();
    comes_back(Kind::Ext4, Loss::Gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_with_reflinks_whose_device_was_pulled_out_comes_back() {
    needs_root!();
    comes_back(Kind::Xfs, Loss::Gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_mounted_read_only_comes_back() {
    needs_root!();
    comes_back(Kind::Xfs, Loss::ReadOnly).await;
}

/// The operator takes a disk out while builds have workspaces on it: these are named, and it is free when they ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_detached_disk_is_free_when_the_leases_that_it_names_have_ended() {
    needs_root!();
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut filesystem = LoopFs::new(Kind::Ext4, 128 << 20);
    let pool = format!("path: {}, mount: required", filesystem.path().display());
    let agent = start(&format!("{}workspaces: {{method: overlay}}\n", configuration(&pool, &[&url])));
    mirror_ready(&agent, &url).await;
    let mut leases = Vec::new();
    for id in ["one", "two"] {
        let lease = admit(&agent, order(id, branch(&url, "main"), small())).await.unwrap().granted();
        prepare(&agent, &lease.id).await.unwrap();
        leases.push(lease.id);
    }
    let detach = || agent.stoker().run(["pool", "detach", "data", "-o", "json"]).expect_code(0).json();
    let told = detach();
    let message = told["pool"]["message"].as_str().unwrap();
    assert!(leases.iter().all(|lease| message.contains(&format!("lease {lease}"))), "{message}");
    assert!(!filesystem.try_unmount(), "the builds have their files");
    release(&agent, &leases[0]).await.unwrap();
    wait::until(LIMIT, "one is let go of", || disk::mounts_below(filesystem.path()).len() == 1);
    let told = detach();
    let message = told["pool"]["message"].as_str().unwrap();
    assert!(!message.contains(&leases[0]) && message.contains(&leases[1]), "{message}");
    release(&agent, &leases[1]).await.unwrap();
    wait::until(LIMIT, "nothing holds the disk", || filesystem.try_unmount());
    assert_eq!(listing(filesystem.path()), BTreeMap::new());
    assert_eq!(detach()["pool"]["message"].as_str().unwrap().matches("lease").count(), 0);

    filesystem.mount();
    agent.stoker().run(["pool", "attach", "data"]).expect_code(0);
    let workspaces = filesystem.path().join("stoker/workspaces");
    wait::until(LIMIT, "both workspaces went", || disk::names(&workspaces).is_empty());
}
