//! The pools: looked at, prepared, published, guarded on every use.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use stoker_core::quantity::Timestamp;
use stoker_core::reason::{Code, Reason};
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Filesystem;
use super::directory::{self, OWN};
use super::guard;
use super::trash::{self, Pace, Swept};
use super::tree::Identity;
use super::view::{DirectoryView, PoolView, State, Trouble, Views};
use crate::config;

/// How often pools are looked at, so that one that comes back is prepared without a restart.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// After this long without an answer, a filesystem counts as failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often the trash is looked at when nobody put anything there: what could not be removed is tried again.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// All pools of this node. Cloning gives another handle to the same.
#[derive(Clone)]
pub struct Pools(Arc<Inner>);

struct Inner {
    entries: RwLock<Arc<Vec<Arc<Entry>>>>,
    views: watch::Sender<Views>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Entry {
    pool: config::Pool,
    /// The configuration no longer has it.
    gone: CancellationToken,
    detached: AtomicBool,
    /// One look at a time: a filesystem that does not answer holds one thread, not one more every 2 s.
    looking: Arc<Mutex<()>>,
    /// Something is in the trash.
    sweep_now: Notify,
    /// Trees that were thrown away, and how many of them are gone.
    discarded: AtomicU64,
    swept: watch::Sender<u64>,
    /// Why the disk took no writes when it was last looked at.
    refusing: std::sync::Mutex<Option<(State, String)>>,
    /// What of the trash cannot be removed, in words.
    left: std::sync::Mutex<String>,
}

impl Pools {
    /// Looks at every pool and prepares what can be prepared. A pool that is not as declared fails alone, with its
    /// state; nothing else does. Blocks for as long as the filesystems take to answer.
    #[must_use]
    pub fn open(pools: &[config::Pool]) -> Self {
        let stop = CancellationToken::new();
        let entries: Vec<_> = pools.iter().map(|pool| Arc::new(Entry::new(pool, &stop))).collect();
        let views = entries.iter().map(|entry| entry.look()).collect();
        Self(Arc::new(Inner {
            entries: RwLock::new(Arc::new(entries)),
            views: watch::Sender::new(Arc::new(views)),
            stop,
            tasks: TaskTracker::new(),
        }))
    }

    /// Starts what goes on in the background until `cancel` or [`Self::shutdown`]: looks every 2 s, and empties the
    /// trash, with what an earlier agent left in it. To be called once, inside a runtime.
    pub fn watch(&self, cancel: &CancellationToken) {
        let (inner, cancel) = (&self.0, cancel.clone());
        let stop = inner.stop.clone();
        inner.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => stop.cancel(),
                () = stop.cancelled() => {}
            }
        });
        inner.tasks.spawn(look_on(self.clone()));
        for entry in self.entries().iter() {
            self.sweep(entry);
        }
    }

    fn sweep(&self, entry: &Arc<Entry>) {
        entry.sweep_now.notify_one();
        self.0.tasks.spawn(sweep_on(Arc::clone(entry), entry.gone.clone()));
    }

    /// Takes over other pools: those that are declared as before go on, the others begin anew. Nothing of a pool that
    /// is no longer declared is removed. After [`Self::watch`].
    pub async fn reconfigure(&self, pools: &[config::Pool]) {
        let before = self.entries();
        let kept = |pool: &config::Pool| before.iter().find(|entry| entry.pool == *pool).cloned();
        let after: Vec<_> = pools
            .iter()
            .map(|pool| {
                kept(pool).unwrap_or_else(|| {
                    let entry = Arc::new(Entry::new(pool, &self.0.stop));
                    self.sweep(&entry);
                    entry
                })
            })
            .collect();
        for entry in before.iter().filter(|entry| !after.iter().any(|kept| Arc::ptr_eq(kept, entry))) {
            entry.gone.cancel();
        }
        *self.0.entries.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        self.check_now().await;
    }

    fn entries(&self) -> Arc<Vec<Arc<Entry>>> {
        Arc::clone(&self.0.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the background tasks and waits for them.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Looks at every pool now, prepares what can be prepared, and publishes. A filesystem that does not answer within
    /// 5 s is published as failed.
    pub async fn check_now(&self) {
        let entries = self.entries();
        let looks = entries.iter().map(|entry| async {
            let look = async {
                let turn = Arc::clone(&entry.looking).lock_owned().await;
                let looker = Arc::clone(entry);
                let look = tokio::task::spawn_blocking(move || {
                    let view = looker.look();
                    drop(turn);
                    view
                });
                // The runtime ends, or the look panicked.
                look.await.unwrap_or_else(|error| entry.failed(format!("the look at it ended early: {error}")))
            };
            tokio::time::timeout(ANSWER_WITHIN, look).await.unwrap_or_else(|_| {
                let seconds = ANSWER_WITHIN.as_secs();
                entry.failed(format!("{} does not answer within {seconds} s", entry.pool.path.display()))
            })
        });
        self.publish(join_all(looks).await, &entries);
    }

    /// The directory of a pool that the agent may write to, `<pool>/stoker`, made where it is missing. The guard is
    /// asked now, not remembered: to be called before every use.
    ///
    /// # Errors
    /// `POOL_NOT_READY` with the pool's state in words.
    pub fn usable(&self, name: &str) -> Result<PathBuf, Reason> {
        let not_ready = |message: String| Reason::new(Code::PoolNotReady, name, message);
        let entries = self.entries();
        let entry = entries
            .iter()
            .find(|entry| entry.pool.name == name)
            .ok_or_else(|| not_ready(format!("no pool {name:?} is declared for this node")))?;
        let enter = || {
            let root = entry.enter()?;
            directory::open_own(root.as_fd()).map(drop)
        };
        match enter() {
            Ok(()) => Ok(entry.pool.path.join(OWN)),
            Err(trouble) => Err(not_ready(format!("pool {name}: {}", trouble.message))),
        }
    }

    /// Takes a tree away: renames it into its pool's trash, from which it is removed in the background. Returns in
    /// microseconds, however large the tree. What is not there is gone already, and no error.
    ///
    /// # Errors
    /// `InvalidInput` where `path` lies neither below a pool's `stoker` directory nor in a declared directory whose
    /// content goes in time; `NotFound` with the pool's state where that pool is not ready; `ResourceBusy` where something
    /// is mounted in the tree; those of the filesystem.
    pub fn discard(&self, path: &Path) -> io::Result<()> {
        self.take_away(path, None).map(drop)
    }

    /// As [`Pools::discard`], where the very thing that was seen is still there. False: it is not, and whatever is in its
    /// place stays.
    ///
    /// # Errors
    /// As [`Pools::discard`].
    pub fn discard_only(&self, path: &Path, seen: Identity) -> io::Result<bool> {
        self.take_away(path, Some(seen))
    }

    fn take_away(&self, path: &Path, only: Option<Identity>) -> io::Result<bool> {
        let (entry, within) = self.entry_of(path)?;
        let root = entry.enter().map_err(not_found)?;
        let own = directory::open_own(root.as_fd()).map_err(not_found)?;
        let went = match within.strip_prefix(OWN) {
            Ok(within) => trash::discard(own.as_fd(), own.as_fd(), within, only)?,
            Err(_) if entry.empties(&within) => trash::discard(own.as_fd(), root.as_fd(), &within, only)?,
            Err(_) => {
                let message =
                    format!("{} lies in nothing that the agent may empty, and is not removed", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        };
        entry.discarded.fetch_add(1, Ordering::SeqCst);
        entry.sweep_now.notify_one();
        Ok(went)
    }

    fn entry_of(&self, path: &Path) -> io::Result<(Arc<Entry>, PathBuf)> {
        let found = self.entries().iter().find_map(|entry| {
            let within = path.strip_prefix(&entry.pool.path).ok()?;
            Some((Arc::clone(entry), within.to_owned()))
        });
        found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} lies in no pool", path.display())))
    }

    /// The root of the pool that a path lies in, after the guard, and the path in it.
    pub(super) fn enter_at(&self, path: &Path) -> io::Result<(std::os::fd::OwnedFd, PathBuf)> {
        let (entry, within) = self.entry_of(path)?;
        Ok((entry.enter().map_err(not_found)?, within))
    }

    /// The pools as they are declared, with their directories.
    #[must_use]
    pub fn declared(&self) -> Vec<config::Pool> {
        self.entries().iter().map(|entry| entry.pool.clone()).collect()
    }

    /// Waits until all that was thrown away before this call is gone, or cannot be removed now. Who works in a tree that
    /// was thrown away, with the agent's own rights, can make this last: to be called with a limit.
    pub async fn drained(&self) {
        for entry in self.entries().iter() {
            let wanted = entry.discarded.load(Ordering::SeqCst);
            // Without a sweeper (the room was shut down) there is nothing to wait for.
            let _ = entry.swept.subscribe().wait_for(|gone| *gone >= wanted).await;
        }
    }

    /// Lets go of a pool so that its disk can be taken out: it is not used until [`Self::attach`]. False where no such
    /// pool is declared.
    pub async fn detach(&self, name: &str) -> bool {
        self.set_detached(name, true).await
    }

    /// Takes a detached pool into use again. False where no such pool is declared.
    pub async fn attach(&self, name: &str) -> bool {
        self.set_detached(name, false).await
    }

    async fn set_detached(&self, name: &str, detached: bool) -> bool {
        let entries = self.entries();
        let Some(entry) = entries.iter().find(|entry| entry.pool.name == name) else { return false };
        entry.detached.store(detached, Ordering::SeqCst);
        self.check_now().await;
        true
    }

    /// All pools, as they were when they were last looked at, in the order of the configuration.
    #[must_use]
    pub fn view(&self) -> Arc<Vec<PoolView>> {
        Arc::clone(&self.0.views.borrow())
    }

    /// Wakes when a pool's or directory's state changes; fresh figures alone do not wake.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Vec<PoolView>>> {
        self.0.views.subscribe()
    }

    /// How full each pool is now, in the order of the configuration: nothing is prepared, nothing is published. Where
    /// a pool is not ready, its state in words. Blocks for as long as the filesystems take to answer.
    #[must_use]
    pub fn measure(&self) -> Vec<(String, Result<Filesystem, PoolTrouble>)> {
        self.entries().iter().map(|entry| (entry.pool.name.clone(), entry.measure())).collect()
    }

    /// As [`measure`](Self::measure), of one pool; nothing where none has this name.
    #[must_use]
    pub fn measure_one(&self, name: &str) -> Option<Result<Filesystem, PoolTrouble>> {
        let entry = self.entries().iter().find(|entry| entry.pool.name == name).cloned();
        entry.map(|entry| entry.measure())
    }

    fn publish(&self, looked: Vec<PoolView>, entries: &[Arc<Entry>]) {
        self.0.views.send_if_modified(|views| {
            let mut changed = looked.len() != views.len();
            let merged = looked.into_iter().zip(entries).map(|(mut new, entry)| {
                let Some(old) = views.iter().find(|old| old.name == new.name && old.path == new.path) else {
                    changed = true;
                    log_change(&new);
                    return new;
                };
                if new.state == old.state {
                    new.since = old.since;
                } else {
                    log_change(&new);
                    entry.sweep_now.notify_one();
                }
                changed |= (new.state, &new.message, &new.directories) != (old.state, &old.message, &old.directories);
                new
            });
            *views = Arc::new(merged.collect());
            changed
        });
    }
}

/// Why [`Pools::measure`] has no figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolTrouble {
    /// The pool is not there, or not as declared.
    NotReady(String),
    /// It is there, and does not tell.
    Silent,
}

impl Entry {
    fn new(pool: &config::Pool, stop: &CancellationToken) -> Self {
        Self {
            pool: pool.clone(),
            gone: stop.child_token(),
            detached: AtomicBool::new(false),
            looking: Arc::default(),
            sweep_now: Notify::new(),
            discarded: AtomicU64::new(0),
            swept: watch::Sender::new(0),
            refusing: std::sync::Mutex::default(),
            left: std::sync::Mutex::default(),
        }
    }

    fn measure(&self) -> Result<Filesystem, PoolTrouble> {
        let root = self.enter().map_err(|trouble| PoolTrouble::NotReady(trouble.message))?;
        Filesystem::of(&root, self.pool.floor).map_err(|_| PoolTrouble::Silent)
    }

    /// Whether a path of the pool lies in a declared directory from which things are removed.
    fn empties(&self, within: &Path) -> bool {
        let goes = |declared: &config::Directory| {
            let content = within.strip_prefix(&declared.path).is_ok_and(|rest| !rest.as_os_str().is_empty());
            content && matches!(declared.retention, config::Retention::Output | config::Retention::Scratch)
        };
        self.pool.directories.iter().any(goes)
    }

    /// The guard, now; and whether the disk took writes when it was last looked at.
    fn enter(&self) -> Result<std::os::fd::OwnedFd, Trouble> {
        let root = self.guarded()?;
        let refusing = self.refusing.lock().unwrap_or_else(PoisonError::into_inner);
        refusing.as_ref().map_or(Ok(root), |(state, message)| Err(Trouble::new(*state, message.clone())))
    }

    /// The guard, now.
    fn guarded(&self) -> Result<std::os::fd::OwnedFd, Trouble> {
        if self.detached.load(Ordering::SeqCst) {
            let message = format!("{} was detached by the operator", self.pool.path.display());
            return Err(Trouble::new(State::Detached, message));
        }
        guard::enter(&self.pool)
    }

    /// Observes, prepares what can be prepared, and tells.
    fn look(&self) -> PoolView {
        let root = match self.guarded() {
            Ok(root) => root,
            Err(trouble) => {
                // What comes back may be another disk.
                self.refusing.lock().unwrap_or_else(PoisonError::into_inner).take();
                return self.troubled(self.sealed(trouble));
            }
        };
        let filesystem = match Filesystem::of(&root, self.pool.floor) {
            Ok(filesystem) => filesystem,
            Err(error) => return self.failed(format!("{}: {error}", self.pool.path.display())),
        };
        let writes = directory::open_own(root.as_fd()).and_then(|own| directory::takes_writes(own.as_fd()));
        let refusing = writes.as_ref().err().map(|trouble| (trouble.state, trouble.message.clone()));
        *self.refusing.lock().unwrap_or_else(PoisonError::into_inner) = refusing;
        if let Err(trouble) = writes {
            return self.troubled(trouble);
        }
        let directories = self.pool.directories.iter().map(|declared| {
            let (state, message) = match directory::prepare(root.as_fd(), declared) {
                Ok(()) => (State::Prepared, String::new()),
                Err(trouble) => (trouble.state, trouble.message),
            };
            DirectoryView { path: declared.path.clone(), state, message, retention: declared.retention }
        });
        let directories = directories.collect();
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.view(State::Ready, left, Some(filesystem), directories)
    }

    /// Remembers what a slice left in the trash; one that was not the last says only what it met.
    fn leave(&self, swept: &Swept) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if *left == swept.left || (swept.more.is_some() && swept.left.is_empty()) {
            return;
        }
        if !swept.left.is_empty() {
            tracing::warn!(pool = self.pool.name, "{}", swept.left);
        }
        left.clone_from(&swept.left);
    }

    fn sealed(&self, trouble: Trouble) -> Trouble {
        if !(self.pool.seal && self.pool.mount_required && trouble.state == State::NotMounted) {
            return trouble;
        }
        // Opened anew, and judged again on this very descriptor: what is sealed is what was seen to be no mount.
        let Ok(root) = guard::open(&self.pool) else { return trouble };
        match guard::judge(&self.pool, root.as_fd()) {
            Err(again) if again.state == State::NotMounted => {
                Trouble::new(State::NotMounted, format!("{}; {}", again.message, guard::seal(root.as_fd())))
            }
            _ => trouble,
        }
    }

    fn failed(&self, message: String) -> PoolView {
        self.troubled(Trouble::new(State::Failed, message))
    }

    fn troubled(&self, trouble: Trouble) -> PoolView {
        let directories = self.pool.directories.iter().map(|declared| DirectoryView {
            path: declared.path.clone(),
            state: trouble.state,
            message: String::new(),
            retention: declared.retention,
        });
        let directories = directories.collect();
        self.view(trouble.state, trouble.message, None, directories)
    }

    fn view(
        &self,
        state: State,
        message: String,
        filesystem: Option<Filesystem>,
        directories: Vec<DirectoryView>,
    ) -> PoolView {
        let (name, path) = (self.pool.name.clone(), self.pool.path.clone());
        PoolView { name, path, state, message, since: now(), filesystem, directories }
    }
}

fn not_found(trouble: Trouble) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, trouble.message)
}

fn log_change(view: &PoolView) {
    let (pool, path, state) = (&view.name, view.path.display(), view.state);
    match state {
        State::Ready => tracing::info!(%pool, %path, %state, "pool ready"),
        _ => tracing::warn!(%pool, %path, %state, "{}", view.message),
    }
}

async fn look_on(pools: Pools) {
    loop {
        tokio::select! {
            () = pools.0.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        tokio::select! {
            () = pools.0.stop.cancelled() => return,
            () = pools.check_now() => {}
        }
    }
}

/// Empties one pool's trash, in slices between which no descriptor is held.
async fn sweep_on(entry: Arc<Entry>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = entry.sweep_now.notified() => {}
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        let thrown_away = entry.discarded.load(Ordering::SeqCst);
        let mut after = None;
        loop {
            let (entry, stopped) = (Arc::clone(&entry), stop.clone());
            let slice = tokio::task::spawn_blocking(move || {
                let Ok(root) = entry.enter() else { return Swept::default() };
                let ended = || stopped.is_cancelled() || entry.detached.load(Ordering::SeqCst);
                let pace =
                    Filesystem::of(&root, entry.pool.floor).map_or_else(|_| Pace::default(), |now| Pace::of(&now));
                let swept = trash::sweep(root.as_fd(), pace, after.as_deref(), &ended);
                entry.leave(&swept);
                swept
            });
            after = slice.await.unwrap_or_default().more;
            if after.is_none() || stop.is_cancelled() {
                break;
            }
        }
        entry.swept.send_replace(thrown_away);
    }
}

/// The node's clock.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}
