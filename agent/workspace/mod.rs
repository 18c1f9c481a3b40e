//! Workspaces: what one build gets, and that nothing of it stays.
//!
//! Comes in: a lease (or a caller's wish for a time) with its commit and the pin that keeps it. Goes out:
//! `<pool>/stoker/workspaces/<id>/{src,tmp,out}`, the caches of its tenant, and the environment to use them. A record
//! beside the directory is written last: without it a directory is half made, and goes at the next start. The room
//! watches the ledger: when a lease ends, its workspace leaves its place at once and is removed in the background.
//!
//! A commit is checked out once and kept ([`checkouts`]); a workspace is a mount over that, a copy that shares its blocks,
//! or, where the pool can do neither, files that git writes ([`method`]).

mod ahead;
mod caches;
mod checkouts;
mod content;
mod copy;
mod disk;
mod environment;
mod gitdir;
mod index;
mod large_files;
mod lost;
mod materialise;
mod method;
pub mod outputs;
mod record;
pub mod retention;
mod submodules;
mod take_up;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stoker_core::admission::Source;
use stoker_core::identity::{CommitId, Component, LeaseId, RequestId, Scope};
use stoker_core::quantity::Timestamp;
use stoker_core::reason::{Code, Reason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, OnDisk, now};
use crate::config::Config;
use crate::node::namespace::Namespaces;
use crate::node::{Pools, mount};
use crate::repository::git::Git;
use crate::repository::{Nested, Repositories, SnapshotPin};
use caches::{Line, Times, Turn};
use checkouts::{Checkouts, Kept, Wanted};
use disk::{blocking, unwritable};

/// How far a preparation is.
pub use crate::repository::Progress;
pub use checkouts::View as CheckoutsView;
pub use method::{Chosen, Method};
pub use submodules::Submodule;

/// Where the caches of tenants are, below the agent's directory of the pool.
const CACHES: &str = "caches";
/// What lies beside workspaces that are overlays, below the agent's directory of the pool: no build mounts it.
const OVERLAYS: &str = "overlays";

/// The most workspaces at once.
const WORKSPACES_MAX: usize = 4096;
/// Caches that are told; further ones make nobody warmer.
const CACHES_MAX: usize = 10_000;
/// How often it is looked at whether all are gone, where somebody waits for that.
const SETTLE_EVERY: Duration = Duration::from_millis(20);
/// So many looks at leases come to one look at what kept checkouts hold.
const MAKE_ROOM_EVERY: u64 = 10;
/// So long what was thrown away is waited for before kept checkouts make room: ended leases wait for this look.
const GOES_WITHIN: Duration = Duration::from_secs(5);
/// How often ended leases are looked for where no change woke the room.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A prepared workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// The lease's id, or one of its own.
    pub id: String,
    /// Whose it is.
    pub lease: Option<LeaseId>,
    /// The sources.
    pub src: PathBuf,
    /// Scratch.
    pub tmp: PathBuf,
    /// What the build leaves.
    pub out: PathBuf,
    /// The caches of its tenant: what must be mounted for them.
    pub cache: PathBuf,
    /// Those that it asked for.
    #[serde(default)]
    pub cache_keys: Vec<String>,
    /// Which of the tenant's places for caches it has; the first is 1.
    #[serde(default)]
    pub cache_slot: u32,
    /// With submodules, with large files.
    #[serde(default)]
    pub form: (bool, bool),
    /// What is checked out.
    pub source: Source,
    /// Who for.
    pub scope: Scope,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it goes, where no lease says so.
    pub expires_at: Option<Timestamp>,
    /// Entries of the index.
    pub files: u64,
    /// Bytes of the checked-out files.
    pub bytes: u64,
    /// What must be mounted with it: `src/.git` reads the snapshot's objects.
    pub also_mount: Vec<PathBuf>,
    /// The owner, where it is not the agent itself.
    pub owner: Option<(u32, u32)>,
    /// What is checked out within, parents first.
    #[serde(default)]
    pub submodules: Vec<Submodule>,
    /// How `src` came to be.
    #[serde(default)]
    pub method: Method,
    /// The kept checkout that `src` stands on.
    #[serde(default)]
    pub checkout: Option<String>,
    /// `src/.git` has all its objects itself.
    #[serde(default)]
    pub self_contained: bool,
    /// `tmp` is in memory, and may hold so much.
    #[serde(default)]
    pub tmpfs_bytes: Option<u64>,
    /// The trust class of its repository.
    #[serde(default)]
    pub trust: String,
}

impl Workspace {
    /// The directory that all of it lies in.
    fn home(&self) -> &Path {
        self.src.parent().unwrap_or(&self.src)
    }

    /// What the build's environment must have.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut environment = BTreeMap::from([
            ("STOKER_SRC".to_owned(), text(&self.src)),
            ("STOKER_OUT".to_owned(), text(&self.out)),
            ("STOKER_CACHE".to_owned(), text(&caches::folder(&self.cache, self.cache_slot))),
            ("STOKER_COMMIT".to_owned(), self.source.commit.to_string()),
            ("TMPDIR".to_owned(), text(&self.tmp)),
        ]);
        if let Some(lease) = &self.lease {
            environment.insert("STOKER_LEASE".to_owned(), lease.to_string());
        }
        environment
    }
}

/// A wish for a workspace.
#[derive(Debug, Clone)]
pub struct Order {
    /// Its id: the lease's, or [`unleased_id`].
    pub id: String,
    /// Whose it is.
    pub lease: Option<LeaseId>,
    /// What to check out.
    pub source: Source,
    /// Who for.
    pub scope: Scope,
    /// Directories of the tenant's cache that must be there.
    pub cache_keys: Vec<String>,
    /// When it goes, where no lease says so.
    pub expires_at: Option<Timestamp>,
    /// What keeps the commit.
    pub pin: SnapshotPin,
    /// The trust class of its repository: caches are never shared across classes.
    pub trust: String,
    /// Who it belongs to; unset: who the agent runs as.
    pub user: Option<u32>,
    /// As `user`.
    pub group: Option<u32>,
    /// Check the submodules out too.
    pub submodules: bool,
    /// With the content of its large files in the place of their pointers.
    pub lfs: bool,
    /// With objects of its own, also where others could be read in their place.
    pub self_contained: bool,
    /// `tmp` in memory, of so many bytes: they are counted in the lease's memory.
    pub tmpfs_bytes: Option<u64>,
    /// What the build's environment gets beside the room's own: how git reaches the node's cache.
    pub environment: BTreeMap<String, String>,
}

/// The id of a workspace that a caller named.
#[must_use]
pub fn unleased_id(request: &RequestId) -> String {
    Component::of(&["w", request.as_str()]).as_str().to_owned()
}

/// The stages of a preparation.
#[derive(Debug, Clone)]
pub enum Preparing {
    /// It goes on.
    Under(Progress),
    /// It is there.
    Ready(Arc<Workspace>),
    /// It is not, and nothing of it is left.
    Failed(Reason),
}

/// One workspace that is there or comes.
struct Entry {
    lease: Option<LeaseId>,
    expires_at: Option<Timestamp>,
    stage: watch::Receiver<Preparing>,
    cancel: CancellationToken,
    /// Keep the objects that `src/.git` and those of submodules read: dropping them lets the snapshots go.
    pins: Vec<SnapshotPin>,
    /// Keeps the files that `src` shows.
    kept: Option<Arc<Kept>>,
    /// Which caches it uses.
    line: Line,
}

struct Inner {
    pool: String,
    config: watch::Receiver<Arc<Config>>,
    pools: Pools,
    git: Git,
    repositories: Repositories,
    admission: Admission,
    checkouts: Checkouts,
    uses: retention::Uses,
    boot: String,
    on_disk: watch::Sender<OnDisk>,
    /// Held while times of caches are read and written.
    turns: Mutex<()>,
    namespaces: Namespaces,
    /// What works on the pool, and the device on which that was tried.
    chosen: Mutex<Option<(u64, Chosen)>>,
    outputs: outputs::Outputs,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Whether what an earlier agent left was taken up: done once the pool was there, and before anything is made on it.
    taken_up: Mutex<bool>,
    /// Whether that is so, for those who wait for it.
    holds: watch::Sender<bool>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

/// The rooms that this one calls.
pub struct Rooms {
    /// Where workspaces lie.
    pub pools: Pools,
    /// Checks them out.
    pub git: Git,
    /// Their sources.
    pub repositories: Repositories,
    /// Their leases.
    pub admission: Admission,
    /// Who decides what else fits is told here what builds have written.
    pub on_disk: watch::Sender<OnDisk>,
}

/// The room's face. Cheap to clone.
#[derive(Clone)]
pub struct Workspaces {
    inner: Arc<Inner>,
}

impl Workspaces {
    /// Takes up what an earlier agent left: workspaces of live leases stand, all others go.
    pub async fn open(
        config: watch::Receiver<Arc<Config>>,
        boot: &str,
        rooms: Rooms,
        cancel: CancellationToken,
    ) -> Self {
        let Rooms { pools, git, repositories, admission, on_disk } = rooms;
        let tasks = TaskTracker::new();
        let pool = config.borrow().workspaces.pool.clone();
        let outputs = outputs::Outputs::new(&pool, pools.clone(), config.clone());
        let checkouts = Checkouts::new(pools.clone(), git.clone(), repositories.reader(), boot, tasks.clone());
        let inner = Inner {
            pool,
            config,
            pools,
            git,
            repositories,
            admission: admission.clone(),
            checkouts,
            uses: retention::Uses::default(),
            boot: boot.to_owned(),
            on_disk,
            turns: Mutex::default(),
            namespaces: Namespaces::default(),
            chosen: Mutex::default(),
            outputs,
            entries: Mutex::default(),
            taken_up: Mutex::default(),
            holds: watch::Sender::new(false),
            tasks,
            cancel: cancel.clone(),
        };
        let room = Self { inner: Arc::new(inner) };
        let taking_up = room.clone();
        // A pool that is not there now is looked at again when it comes.
        let _ = tokio::task::spawn_blocking(move || taking_up.take_up_once()).await;
        room.inner.tasks.spawn(room.clone().measure_all(cancel.clone()));
        room.inner.tasks.spawn(room.clone().prepare_ahead(cancel.clone()));
        room.inner.tasks.spawn(room.clone().watch_leases(admission, cancel));
        room
    }

    /// Ends when the workspaces, leases and tickets of an earlier agent hold their snapshots again: before, who looks at
    /// a snapshot sees no holder, and could take it from under a build.
    pub fn taken_up(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut holds = self.inner.holds.subscribe();
        async move {
            let _ = holds.wait_for(|holds| *holds).await;
        }
    }

    /// Whether what is on the pool was taken up.
    #[must_use]
    pub fn are_taken_up(&self) -> bool {
        *self.inner.holds.borrow()
    }

    /// Waits until preparations and removals under way have ended; the `cancel` of [`Workspaces::open`] comes first.
    pub async fn shutdown(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Begins to prepare, or attaches to what is under way or there already.
    ///
    /// # Errors
    /// When the pool is not ready or there are too many.
    pub fn prepare(&self, order: Order) -> Result<watch::Receiver<Preparing>, Reason> {
        self.take_up_once()?;
        self.forget_lost(&order.id)?;
        let mut entries = self.entries();
        if let Some(entry) = entries.get(&order.id)
            && !matches!(*entry.stage.borrow(), Preparing::Failed(_))
        {
            return Ok(entry.stage.clone());
        }
        if entries.len() >= WORKSPACES_MAX {
            let message = format!("{} workspaces are there, at most {WORKSPACES_MAX} may be", entries.len());
            return Err(Reason::new(Code::LeasesFull, "workspaces", message));
        }
        let mut line = self.line_of(&order);
        line.slot = caches::slot(entries.values().map(|entry| &entry.line), &line);
        let (stage, stages) = watch::channel(Preparing::Under(Progress::phase("preparing")));
        let cancel = self.inner.cancel.child_token();
        let entry = Entry {
            lease: order.lease.clone(),
            expires_at: order.expires_at,
            stage: stages.clone(),
            cancel: cancel.clone(),
            pins: vec![order.pin.clone()],
            kept: None,
            line: line.clone(),
        };
        entries.insert(order.id.clone(), entry);
        drop(entries);
        self.inner.tasks.spawn(self.clone().prepare_now(order, line, stage, cancel));
        Ok(stages)
    }

    async fn prepare_now(self, order: Order, line: Line, stage: watch::Sender<Preparing>, cancel: CancellationToken) {
        let id = order.id.clone();
        let (steps, mut seen) = watch::channel(Progress::phase("preparing"));
        let end = {
            let made = self.make(order, line, steps, cancel);
            tokio::pin!(made);
            loop {
                tokio::select! {
                    end = &mut made => break end,
                    Ok(()) = seen.changed() => {
                        stage.send_replace(Preparing::Under(seen.borrow_and_update().clone()));
                    }
                }
            }
        };
        match end {
            Ok(Made { workspace, pins, kept }) => {
                if let Some(entry) = self.entries().get_mut(&id) {
                    entry.pins.extend(pins);
                    entry.kept = kept;
                }
                stage.send_replace(Preparing::Ready(Arc::new(workspace)));
            }
            Err(reason) => {
                if let Err(error) = self.discard(&id) {
                    tracing::warn!(%error, workspace = id, "a half-made workspace could not be removed yet");
                }
                stage.send_replace(Preparing::Failed(reason));
            }
        }
    }

    async fn make(
        &self,
        order: Order,
        line: Line,
        steps: watch::Sender<Progress>,
        cancel: CancellationToken,
    ) -> Result<Made, Reason> {
        let nested = match order.submodules {
            true => self.nested(&order, &steps, &cancel).await?,
            false => Vec::new(),
        };
        let pins: Vec<SnapshotPin> = nested.iter().filter_map(|one| Some(one.resolved.as_ref()?.pin.clone())).collect();
        // Before anything is made: one that cannot have all its files is not begun.
        let large = self.large_files(&order, &nested, &steps, &cancel).await?;
        let inner = &self.inner;
        let root = inner.pools.usable(&inner.pool)?;
        // What a failed one left while the pool was away.
        let (room, id) = (self.clone(), order.id.clone());
        let clear = blocking(move || room.discard(&id)).await;
        clear.map_err(|error| unwritable(&root.join("workspaces").join(&order.id), &error))?;
        let chosen = self.chosen(&root).await;
        let workspace = planned(&root, &order, &nested, &pins, chosen.method, &line);
        let home = workspace.home().to_owned();
        let wanted = Wanted {
            pin: &order.pin,
            commit: order.source.commit,
            committed_at: inner.repositories.reader().committed_at(&order.pin, order.source.commit).ok(),
            trust: &order.trust,
            nested: &nested,
            large: &large,
            owner: workspace.owner,
        };
        let means = materialise::Means {
            git: &inner.git,
            checkouts: &inner.checkouts,
            namespaces: &inner.namespaces,
            chosen: &chosen,
            root: &root,
        };
        let times = self.take_turn(&root, &order, line).await.map_err(|error| unwritable(&home, &error))?;
        let made = materialise::materialise(means, wanted, workspace, steps, cancel).await;
        let (workspace, kept) = made?;
        let done = workspace.clone();
        let last = move || {
            times.apply(&done.src, done.submodules.iter().map(|one| one.path.as_str()))?;
            environment::write(&done, &order.environment)?;
            record::write(&root, &done)
        };
        blocking(last).await.map_err(|error| unwritable(&home, &error))?;
        Ok(Made { workspace, pins, kept })
    }

    /// Which caches an order uses; its slot is not chosen yet.
    fn line_of(&self, order: &Order) -> Line {
        Line {
            tenant: Component::of(&[&order.scope.tenant, &order.trust]).as_str().to_owned(),
            keys: order.cache_keys.iter().cloned().collect(),
            repository: order.pin.url().key().to_owned(),
            commit: order.source.commit,
            form: (order.submodules, order.lfs || self.inner.repositories.wants_lfs(order.pin.url())),
            slot: 1,
        }
    }

    /// Remembers that the commit uses its caches from now on: what times its files must have.
    async fn take_turn(&self, root: &Path, order: &Order, line: Line) -> io::Result<Times> {
        if line.keys.is_empty() {
            return Ok(Times::default());
        }
        let (room, root, pin) = (self.clone(), root.to_owned(), order.pin.clone());
        blocking(move || {
            let reader = room.inner.repositories.reader();
            // Where the former commit is gone from upstream, nothing is known.
            let changes = |from: CommitId| reader.changes(&pin, from, line.commit).ok();
            let folder = caches::folder(&root.join(CACHES).join(&line.tenant), line.slot);
            let turn = Turn { root: &root, boot: &room.inner.boot, line: &line, folder: &folder, changes: &changes };
            let _one = room.inner.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turn.take()
        })
        .await
    }

    /// What works on the pool: tried once on each disk.
    async fn chosen(&self, root: &Path) -> Chosen {
        let (room, root) = (self.clone(), root.to_owned());
        let tried = blocking(move || room.choose(&root)).await;
        tried.unwrap_or_else(|error| Chosen {
            method: Method::Checkout,
            idmapped: false,
            reason: format!("nothing else could be tried: {error}"),
        })
    }

    fn choose(&self, root: &Path) -> io::Result<Chosen> {
        let device = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(root)?);
        let mut chosen = self.inner.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, chosen)) = chosen.as_ref()
            && *of == device
        {
            return Ok(chosen.clone());
        }
        self.inner.pools.discard(&root.join(OVERLAYS).join(method::TRIAL))?;
        disk::directory(&root.join(OVERLAYS), 0o700)?;
        let wanted = self.inner.config.borrow().workspaces.method;
        let tried = method::choose(root, wanted, &self.inner.namespaces);
        self.inner.pools.discard(&root.join(OVERLAYS).join(method::TRIAL))?;
        tracing::info!(method = %tried.method, idmapped = tried.idmapped, reason = tried.reason, "workspaces");
        *chosen = Some((device, tried.clone()));
        Ok(tried)
    }

    /// How sources come into workspaces, where that was tried.
    #[must_use]
    pub fn method(&self) -> Option<Chosen> {
        let chosen = self.inner.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        chosen.as_ref().map(|(_, chosen)| chosen.clone())
    }

    /// The kept checkouts.
    #[must_use]
    pub fn checkouts(&self) -> CheckoutsView {
        self.inner.checkouts.view()
    }

    /// The workspace of that id, where it is ready.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Workspace>> {
        ready(self.entries().get(id)?)
    }

    /// All that are ready, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Workspace>> {
        self.entries().values().filter_map(ready).collect()
    }

    /// The caches that are there: the folder of a tenant and trust class, and the key. At most `CACHES_MAX`.
    pub async fn caches(&self) -> BTreeSet<(String, String)> {
        let Ok(root) = self.inner.pools.usable(&self.inner.pool) else { return BTreeSet::new() };
        let read = move || {
            let folders = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
            let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().ok();
            let found = folders(root.join(CACHES)).flat_map(|tenant| {
                let owner = name(&tenant);
                let keys = folders(tenant.path()).filter_map(move |key| name(&key));
                keys.filter_map(move |key| Some((owner.clone()?, key)))
            });
            found.take(CACHES_MAX).collect()
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    /// Takes a workspace away. False: there is none. Returns when it has left its place.
    ///
    /// # Errors
    /// When it cannot be moved; then it is still there.
    pub async fn delete(&self, id: &str) -> Result<bool, Reason> {
        let Some((mut stage, cancel)) = self.entries().get(id).map(|entry| (entry.stage.clone(), entry.cancel.clone()))
        else {
            return Ok(false);
        };
        cancel.cancel();
        // One that is being made ends first: two must not work in one directory.
        let _ = stage.wait_for(|stage| !matches!(stage, Preparing::Under(_))).await;
        let (room, name, whole) = (self.clone(), id.to_owned(), self.get(id));
        blocking(move || room.end(&name, whole.as_deref())).await.map_err(|error| unwritable(Path::new(id), &error))?;
        self.entries().remove(id);
        Ok(true)
    }

    /// Moves a workspace's directory and record away. Again is the same as once.
    fn discard(&self, id: &str) -> io::Result<()> {
        let root = self.inner.pools.usable(&self.inner.pool).map_err(|reason| io::Error::other(reason.message))?;
        // The record first: what is unmounted is no workspace any more, whatever lies there.
        record::remove(&root, id)?;
        let (home, beside) = (root.join("workspaces").join(id), root.join(OVERLAYS).join(id));
        for point in ["src", "tmp"] {
            let detached = mount::detach(&home.join(point))?;
            // Nobody waits until the kernel has forgotten what was used in it.
            self.inner.tasks.spawn_blocking(move || drop(detached));
        }
        if beside.exists() {
            for point in mount::mounts_below(&beside)? {
                mount::unmount(&point)?;
            }
        }
        self.inner.pools.discard(&home)?;
        self.inner.pools.discard(&beside)
    }

    async fn watch_leases(self, admission: Admission, cancel: CancellationToken) {
        let mut changes = admission.watch();
        let mut looks = 0_u64;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            // While the pool is away nothing can be moved on it; afterwards it is.
            let room = self.clone();
            let there = tokio::task::spawn_blocking(move || room.take_up_once()).await;
            if !matches!(there, Ok(Ok(()))) {
                self.unmount_ended(&admission).await;
                continue;
            }
            if looks.is_multiple_of(MAKE_ROOM_EVERY) {
                self.make_room().await;
            }
            looks = looks.wrapping_add(1);
            let lost = self.list().into_iter().filter(|held| self.is_lost(held)).map(|held| held.id.clone());
            for id in self.over(&admission).into_iter().chain(lost) {
                if let Err(reason) = self.delete(&id).await {
                    tracing::warn!(workspace = id, reason = reason.message, "not removed yet; tried again");
                }
            }
        }
    }

    /// Lets go of kept checkouts above their limit, or while the pool is below its floor.
    async fn make_room(&self) {
        // What is on its way out counts as gone, where it goes soon.
        let _ = tokio::time::timeout(GOES_WITHIN, self.inner.pools.drained()).await;
        let room = self.clone();
        let made = blocking(move || {
            let inner = &room.inner;
            let usable = inner.pools.usable(&inner.pool).map_err(|reason| io::Error::other(reason.message))?;
            let disk = inner.pools.measure_one(&inner.pool).and_then(Result::ok);
            let lacking = disk.map_or(0, |disk| disk.floor_bytes.saturating_sub(disk.free_bytes));
            let limit = inner.config.borrow().workspaces.checkouts_limit.unwrap_or(u64::MAX);
            Ok(inner.checkouts.evict(&usable, limit, lacking))
        });
        // A pool that is away has no room to make.
        let _ = made.await;
    }

    /// Waits until no workspace is left whose lease or time has ended.
    pub async fn settled(&self, admission: &Admission) {
        while !self.over(admission).is_empty() && !self.inner.cancel.is_cancelled() {
            tokio::time::sleep(SETTLE_EVERY).await; // the room removes them; this only looks on
        }
    }

    /// Those whose lease or time has ended.
    fn over(&self, admission: &Admission) -> Vec<String> {
        let held: Vec<(String, Option<LeaseId>, Option<Timestamp>)> =
            self.entries().iter().map(|(id, e)| (id.clone(), e.lease.clone(), e.expires_at)).collect();
        let now = now();
        let ended = |lease: &LeaseId| admission.read(|ledger| !ledger.lease(lease).is_some_and(|l| l.live()));
        let over = held.into_iter().filter(|(_, lease, expires_at)| {
            lease.as_ref().is_some_and(ended) || expires_at.is_some_and(|at| at <= now)
        });
        over.map(|(id, ..)| id).collect()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of a preparation.
struct Made {
    workspace: Workspace,
    /// Of the submodules.
    pins: Vec<SnapshotPin>,
    kept: Option<Arc<Kept>>,
}

/// A workspace as it will be; its files are not counted yet.
fn planned(
    root: &Path,
    order: &Order,
    nested: &[Nested],
    pins: &[SnapshotPin],
    method: Method,
    line: &Line,
) -> Workspace {
    let mut also_mount: Vec<PathBuf> = vec![order.pin.path().to_owned()];
    for path in pins.iter().map(SnapshotPin::path) {
        if !also_mount.iter().any(|other| other == path) {
            also_mount.push(path.to_owned());
        }
    }
    let home = root.join("workspaces").join(&order.id);
    let own = || (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let owner = (order.user.unwrap_or_else(|| own().0), order.group.unwrap_or_else(|| own().1));
    Workspace {
        src: home.join("src"),
        tmp: home.join("tmp"),
        out: home.join("out"),
        cache: root.join(CACHES).join(&line.tenant),
        cache_keys: order.cache_keys.clone(),
        cache_slot: line.slot,
        form: line.form,
        lease: order.lease.clone(),
        source: order.source.clone(),
        scope: order.scope.clone(),
        created_at: now(),
        expires_at: order.expires_at,
        files: 0,
        bytes: 0,
        also_mount,
        owner: (owner != own()).then_some(owner),
        submodules: submodules::remembered(nested),
        method,
        checkout: None,
        self_contained: order.self_contained,
        tmpfs_bytes: order.tmpfs_bytes,
        trust: order.trust.clone(),
        id: order.id.clone(),
    }
}

fn ready(entry: &Entry) -> Option<Arc<Workspace>> {
    match &*entry.stage.borrow() {
        Preparing::Ready(workspace) => Some(Arc::clone(workspace)),
        _ => None,
    }
}
