//! Workspaces: what one build gets, and that nothing of it stays.
//!
//! Comes in: a lease (or a caller's wish for a time) with its commit and the pin that keeps it. Goes out:
//! `<pool>/stoker/workspaces/<id>/{src,tmp,out}`, the caches of its tenant, and the environment to use them. A record
//! beside the directory is written last: without it a directory is half made, and goes at the next start. The room
//! watches the ledger: when a lease ends, its workspace leaves its place at once and is removed in the background.
//!
//! A commit is checked out once and kept (`checkouts`); a workspace is a mount over that, a copy that shares its blocks,
//! or, where the pool can do neither, files that git writes (`method`).

mod ahead;
mod begin;
mod caches;
mod checkouts;
mod content;
mod copy;
mod disk;
mod ending;
mod ends;
mod environment;
mod gitdir;
mod index;
mod large_files;
mod lost;
mod make;
mod materialise;
mod method;
pub mod outputs;
mod quota;
mod record;
pub mod retention;
mod shared;
mod submodules;
mod take_up;
mod trees;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stoker_core::admission::Source;
use stoker_core::identity::{Component, LeaseId, RequestId, Scope};
use stoker_core::quantity::Timestamp;
use stoker_core::reason::Reason;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, OnDisk};
use crate::config::Config;
use crate::node::Pools;
use crate::node::namespace::Namespaces;
use crate::repository::git::Git;
use crate::repository::{Repositories, SnapshotPin};
use caches::Line;
use checkouts::{Checkouts, Kept};
use disk::{blocking, unwritable};

/// How far a preparation is.
pub use crate::repository::Progress;
pub use begin::NotBegun;
/// Whether a build may call a cache so.
pub use checkouts::View as CheckoutsView;
pub use method::{Chosen, Method};
pub use quota::Quota;
pub use shared::{ShownCache, ShownCaches};
pub use submodules::Submodule;
pub use trees::Manifest;

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
/// How often it is looked at what kept checkouts hold.
const MAKE_ROOM_EVERY: Duration = Duration::from_secs(10);
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
    /// Which manifest of the source is checked out; then the source itself lies beside its projects.
    #[serde(default)]
    pub manifest: Option<Manifest>,
    /// The projects of it, by path.
    #[serde(default)]
    pub projects: Vec<Submodule>,
    /// How `src` came to be.
    #[serde(default)]
    pub method: Method,
    /// The kept checkout that `src` stands on.
    #[serde(default)]
    pub checkout: Option<String>,
    /// `src/.git` has all its objects itself.
    #[serde(default)]
    pub self_contained: bool,
    /// Bytes and inodes that it had on the disk when it was handed over: what it holds more, its build wrote.
    #[serde(default)]
    pub given: (u64, u64),
    /// `tmp` is in memory, and may hold so much.
    #[serde(default)]
    pub tmpfs_bytes: Option<u64>,
    /// The project whose quota limits what it holds.
    #[serde(default)]
    pub project: Option<u32>,
    /// The trust class of its repository.
    #[serde(default)]
    pub trust: String,
}

impl Workspace {
    /// The directory that all of it lies in.
    fn home(&self) -> &Path {
        self.src.parent().unwrap_or(&self.src)
    }

    /// Where the source's own files are, below `src`.
    fn top(&self) -> &Path {
        Path::new(if self.manifest.is_some() { trees::MANIFESTS } else { "" })
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
    /// The projects of this manifest, and not the source alone.
    pub manifest: Option<Manifest>,
    /// With the content of its large files in the place of their pointers.
    pub lfs: bool,
    /// With objects of its own, also where others could be read in their place.
    pub self_contained: bool,
    /// Its build runs in a user namespace: what it mounts must be one whose owners can be mapped.
    pub user_namespace: bool,
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
    /// Caches that volumes show.
    shown: watch::Receiver<ShownCaches>,
    boot: String,
    on_disk: watch::Sender<OnDisk>,
    /// Held while times of caches are read and written.
    turns: Mutex<()>,
    namespaces: Namespaces,
    projects: Arc<quota::Projects>,
    /// What works on the pool, and the device on which that was tried.
    chosen: Mutex<Option<(u64, Chosen)>>,
    outputs: outputs::Outputs,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// The ids whose workspaces are being ended; locked after `entries`, where both are.
    ending: Mutex<BTreeSet<String>>,
    /// The folders of tenants of whose caches one is being removed.
    removing: watch::Sender<BTreeSet<String>>,
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
    /// What volumes show of the tenants' caches.
    pub shown: watch::Receiver<ShownCaches>,
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
        let Rooms { pools, git, repositories, admission, on_disk, shown } = rooms;
        let tasks = TaskTracker::new();
        let pool = config.borrow().workspaces.pool.clone();
        let outputs = outputs::Outputs::new(&pool, pools.clone(), config.clone());
        let rooms = checkouts::Rooms {
            pools: pools.clone(),
            git: git.clone(),
            reader: repositories.reader(),
            promised: checkouts::promised_by(admission.clone()),
        };
        let checkouts = Checkouts::new(&pool, rooms, boot, tasks.clone(), cancel.clone());
        let inner = Inner {
            pool,
            config,
            pools,
            git,
            repositories,
            admission: admission.clone(),
            checkouts,
            uses: retention::Uses::default(),
            shown,
            boot: boot.to_owned(),
            on_disk,
            turns: Mutex::default(),
            namespaces: Namespaces::default(),
            projects: Arc::default(),
            chosen: Mutex::default(),
            outputs,
            entries: Mutex::default(),
            ending: Mutex::default(),
            removing: watch::Sender::default(),
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
        room.inner.tasks.spawn(room.clone().make_room(cancel.clone()));
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
        // Not one of the same id that came meanwhile.
        let mut entries = self.entries();
        if entries.get(id).is_some_and(|entry| entry.stage.same_channel(&stage)) {
            entries.remove(id);
        }
        Ok(true)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ready(entry: &Entry) -> Option<Arc<Workspace>> {
    match &*entry.stage.borrow() {
        Preparing::Ready(workspace) => Some(Arc::clone(workspace)),
        _ => None,
    }
}
