//! Workspaces: what one build gets, and that nothing of it stays.
//!
//! Comes in: a lease (or a caller's wish for a time) with its commit and the pin that keeps it. Goes out:
//! `<pool>/stoker/workspaces/<id>/{src,tmp,out}`, the caches of its tenant, and the environment to use them. A record
//! beside the directory is written last: without it a directory is half made, and goes at the next start. The room
//! watches the ledger: when a lease ends, its workspace leaves its place at once and is removed in the background.

mod large_files;
mod materialise;
mod record;
mod submodules;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stoker_core::admission::Source;
use stoker_core::identity::{Component, LeaseId, RequestId, Scope};
use stoker_core::quantity::{Resource, Timestamp};
use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, now};
use crate::node::Pools;
use crate::repository::git::{Git, GitError};
use crate::repository::{Nested, Repositories, Resolved, SnapshotPin, under};
use large_files::Large;

/// How far a preparation is.
pub use crate::repository::Progress;
pub use submodules::Submodule;

/// The most workspaces at once.
const WORKSPACES_MAX: usize = 4096;
/// Caches that are told; further ones make nobody warmer.
const CACHES_MAX: usize = 10_000;
/// How often it is looked at whether all are gone, where somebody waits for that.
const SETTLE_EVERY: Duration = Duration::from_millis(20);
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
    /// The caches of its tenant.
    pub cache: PathBuf,
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
}

impl Workspace {
    /// What the build's environment must have.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut environment = BTreeMap::from([
            ("STOKER_SRC".to_owned(), text(&self.src)),
            ("STOKER_OUT".to_owned(), text(&self.out)),
            ("STOKER_CACHE".to_owned(), text(&self.cache)),
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
}

struct Inner {
    pool: String,
    pools: Pools,
    git: Git,
    repositories: Repositories,
    admission: Admission,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Whether what an earlier agent left was taken up: done once the pool was there, and before anything is made on it.
    taken_up: Mutex<bool>,
    /// Whether that is so, for those who wait for it.
    holds: watch::Sender<bool>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

/// The room's face. Cheap to clone.
#[derive(Clone)]
pub struct Workspaces {
    inner: Arc<Inner>,
}

impl Workspaces {
    /// Takes up what an earlier agent left: workspaces of live leases stand, all others go.
    pub async fn open(
        pool: &str,
        pools: Pools,
        git: Git,
        repositories: Repositories,
        admission: Admission,
        cancel: CancellationToken,
    ) -> Self {
        let inner = Inner {
            pool: pool.to_owned(),
            pools,
            git,
            repositories,
            admission: admission.clone(),
            entries: Mutex::default(),
            taken_up: Mutex::default(),
            holds: watch::Sender::new(false),
            tasks: TaskTracker::new(),
            cancel: cancel.clone(),
        };
        let room = Self { inner: Arc::new(inner) };
        let taking_up = room.clone();
        // A pool that is not there now is looked at again when it comes.
        let _ = tokio::task::spawn_blocking(move || taking_up.take_up_once()).await;
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
        let (stage, stages) = watch::channel(Preparing::Under(Progress::phase("preparing")));
        let cancel = self.inner.cancel.child_token();
        let entry = Entry {
            lease: order.lease.clone(),
            expires_at: order.expires_at,
            stage: stages.clone(),
            cancel: cancel.clone(),
            pins: vec![order.pin.clone()],
        };
        entries.insert(order.id.clone(), entry);
        drop(entries);
        self.inner.tasks.spawn(self.clone().prepare_now(order, stage, cancel));
        Ok(stages)
    }

    async fn prepare_now(self, order: Order, stage: watch::Sender<Preparing>, cancel: CancellationToken) {
        let id = order.id.clone();
        let (steps, mut seen) = watch::channel(Progress::phase("preparing"));
        let end = {
            let made = self.make(order, steps, cancel);
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
            Ok((workspace, pins)) => {
                if let Some(entry) = self.entries().get_mut(&id) {
                    entry.pins.extend(pins);
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
        steps: watch::Sender<Progress>,
        cancel: CancellationToken,
    ) -> Result<(Workspace, Vec<SnapshotPin>), Reason> {
        let nested = match order.submodules {
            true => self.nested(&order, &steps, &cancel).await?,
            false => Vec::new(),
        };
        let pins: Vec<SnapshotPin> = nested.iter().filter_map(|one| Some(one.resolved.as_ref()?.pin.clone())).collect();
        let mut also_mount: Vec<PathBuf> = vec![order.pin.path().to_owned()];
        for path in pins.iter().map(SnapshotPin::path) {
            if !also_mount.iter().any(|other| other == path) {
                also_mount.push(path.to_owned());
            }
        }
        // Before anything is made: one that cannot have all its files is not begun.
        let large = self.large_files(&order, &nested, &steps, &cancel).await?;
        let root = self.inner.pools.usable(&self.inner.pool)?;
        let home = root.join("workspaces").join(&order.id);
        let tenant = Component::of(&[&order.scope.tenant, &order.trust]);
        let cache = root.join("caches").join(tenant.as_str());
        let (user, group) = (order.user, order.group);
        let owner = (user.is_some() || group.is_some()).then(|| {
            (
                user.unwrap_or_else(|| nix::unistd::geteuid().as_raw()),
                group.unwrap_or_else(|| nix::unistd::getegid().as_raw()),
            )
        });
        let workspace = Workspace {
            src: home.join("src"),
            tmp: home.join("tmp"),
            out: home.join("out"),
            cache,
            lease: order.lease,
            source: order.source,
            scope: order.scope,
            created_at: now(),
            expires_at: order.expires_at,
            files: 0,
            bytes: 0,
            also_mount,
            owner,
            submodules: submodules::remembered(&nested),
            id: order.id,
        };
        let content = materialise::Content { pin: &order.pin, nested: &nested, large };
        let (git, keys) = (&self.inner.git, &order.cache_keys);
        let workspace = materialise::checkout(git, content, workspace, keys, steps, cancel).await?;
        let (root, done) = (root, workspace.clone());
        blocking(move || record::write(&root, &done)).await.map_err(|error| unwritable(&home, &error))?;
        Ok((workspace, pins))
    }

    /// The submodules of what is ordered, each pinned.
    async fn nested(
        &self,
        order: &Order,
        steps: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Vec<Nested>, Reason> {
        let Source { repository, clone_url, commit, .. } = &order.source;
        let wrong = |error: <RepositoryUrl as std::str::FromStr>::Err| {
            Reason::new(Code::SubmoduleInvalid, repository.clone(), format!("{clone_url} {error}"))
        };
        let top: RepositoryUrl = clone_url.parse().map_err(wrong)?;
        let found = self.inner.repositories.submodules(&top, &order.pin, *commit, &order.trust, steps);
        let stopped = || {
            let cancelled = GitError::Cancelled;
            Err(Reason::new(cancelled.code(), repository.clone(), format!("its submodules: {cancelled}")))
        };
        cancel.run_until_cancelled(found).await.unwrap_or_else(stopped)
    }

    /// The large files of what is to be checked out, where they are wanted, and room for copies of them. Who asks for
    /// those of the top gets those of its submodules too.
    async fn large_files(
        &self,
        order: &Order,
        nested: &[Nested],
        steps: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Vec<Large>, Reason> {
        let repositories = &self.inner.repositories;
        let all = order.lfs || repositories.wants_lfs(order.pin.url());
        let mut large = Vec::new();
        if all {
            let files = repositories.lfs_files(&order.pin, order.source.commit, &order.trust, steps, cancel).await?;
            large.push(Large { tree: PathBuf::new(), git_dir: ".git".into(), files });
        }
        for one in nested {
            let Some(Resolved { pin, commit, .. }) = &one.resolved else { continue };
            if !all && !repositories.wants_lfs(pin.url()) {
                continue;
            }
            let inner = watch::Sender::new(Progress::default());
            let work = repositories.lfs_files(pin, *commit, &order.trust, &inner, cancel);
            let files = under(format!("submodule {}", one.path), inner.subscribe(), steps, work).await;
            let files = files.map_err(|reason| {
                let message = format!("submodule {:?}: {}", one.path, reason.message);
                Reason { message, ..reason }
            })?;
            large.push(Large { tree: one.path.clone().into(), git_dir: submodules::below_git(one), files });
        }
        let wanted = large.iter().fold(0_u64, |sum, one| sum.saturating_add(one.files.bytes()));
        if wanted > 0 {
            self.has_room(wanted).await?;
        }
        Ok(large)
    }

    /// Whether the pool has room for copies of large files above its floor.
    async fn has_room(&self, wanted: u64) -> Result<(), Reason> {
        let (pools, pool) = (self.inner.pools.clone(), self.inner.pool.clone());
        let measured = blocking(move || Ok(pools.measure().into_iter().find(|(name, _)| *name == pool)));
        let Ok(Some((_, Ok(disk)))) = measured.await else { return Ok(()) };
        let free = disk.free_bytes.saturating_sub(disk.floor_bytes);
        if wanted <= free {
            return Ok(());
        }
        let message = format!("large files of {wanted} bytes, the pool has {free} above its floor; free some");
        let reason = Reason::new(Code::DiskFloor, self.inner.pool.clone(), message);
        Err(reason.about(Resource::DiskBytes, wanted, free))
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
            let found = folders(root.join("caches")).flat_map(|tenant| {
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
        let (room, name) = (self.clone(), id.to_owned());
        blocking(move || room.discard(&name)).await.map_err(|error| unwritable(Path::new(id), &error))?;
        self.entries().remove(id);
        Ok(true)
    }

    /// Moves a workspace's directory and record away. Again is the same as once.
    fn discard(&self, id: &str) -> io::Result<()> {
        let root = self.inner.pools.usable(&self.inner.pool).map_err(|reason| io::Error::other(reason.message))?;
        let home = root.join("workspaces").join(id);
        self.inner.pools.discard(&home)?;
        record::remove(&root, id)
    }

    async fn watch_leases(self, admission: Admission, cancel: CancellationToken) {
        let mut changes = admission.watch();
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
                continue;
            }
            for id in self.over(&admission) {
                if let Err(reason) = self.delete(&id).await {
                    tracing::warn!(workspace = id, reason = reason.message, "not removed yet; tried again");
                }
            }
        }
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

    /// Takes up what is on the pool, where that was not done yet.
    ///
    /// # Errors
    /// When the pool is not there now, or it is not known yet which snapshots are.
    fn take_up_once(&self) -> Result<(), Reason> {
        let mut taken_up = self.inner.taken_up.lock().unwrap_or_else(PoisonError::into_inner);
        let root = self.inner.pools.usable(&self.inner.pool)?;
        if !*taken_up {
            if !self.inner.repositories.are_known() {
                let message = "what lies on the pool of the repositories is being looked at; ask again".to_owned();
                return Err(Reason::new(Code::PoolNotReady, &self.inner.pool, message));
            }
            self.inner.admission.take_pins();
            self.take_up(&root);
            *taken_up = true;
            self.inner.holds.send_replace(true);
        }
        Ok(())
    }

    /// What is on the disk: whole workspaces of live leases are known again, everything else goes.
    fn take_up(&self, root: &Path) {
        let admission = &self.inner.admission;
        let mut known = BTreeMap::new();
        for workspace in record::read_all(root) {
            let lease = workspace.lease.as_ref();
            let lease = lease.and_then(|id| admission.read(|ledger| ledger.lease(id).cloned()));
            let live = match &workspace.lease {
                Some(_) => lease.as_ref().is_some_and(|lease| lease.live()),
                None => workspace.expires_at.is_some_and(|at| at > now()),
            };
            if live && workspace.src.is_dir() {
                let pin = lease.and_then(|lease| admission.pin_of(&lease.request_id));
                let pin = pin.or_else(|| admission.pin_named(&workspace.source));
                let pins = pin.into_iter().chain(self.pins_of(&workspace)).collect();
                let id = workspace.id.clone();
                let (lease, expires_at) = (workspace.lease.clone(), workspace.expires_at);
                let (_, stage) = watch::channel(Preparing::Ready(Arc::new(workspace)));
                known.insert(id, Entry { lease, expires_at, stage, cancel: self.inner.cancel.child_token(), pins });
            }
        }
        for id in record::names(root) {
            if !known.contains_key(&id) {
                match self.discard(&id) {
                    Ok(()) => tracing::info!(workspace = id, "removed: no live lease has it"),
                    Err(error) => tracing::warn!(%error, workspace = id, "not removed"),
                }
            }
        }
        *self.entries() = known;
    }

    /// What keeps the submodules of a workspace that was read back.
    fn pins_of(&self, workspace: &Workspace) -> Vec<SnapshotPin> {
        let pin = |one: &Submodule| {
            let pin = self.inner.repositories.pin_named(&one.url, &one.snapshot);
            if pin.is_none() {
                tracing::warn!(workspace = workspace.id, path = one.path, "the snapshot of a submodule is gone");
            }
            pin
        };
        workspace.submodules.iter().filter_map(pin).collect()
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn unwritable(path: &Path, error: &io::Error) -> Reason {
    let full = error.raw_os_error() == Some(nix::libc::ENOSPC);
    let code = if full { Code::DiskFloor } else { Code::PoolNotReady };
    Reason::new(code, path.to_string_lossy(), format!("workspace {}: {error}", path.display()))
}
