//! The node's git repositories: a mirror of every upstream that is declared or asked for, and its states for readers.
//!
//! In come sources (a URL and a ref) and what the configuration declares and allows; out go commits, each with a
//! [`SnapshotPin`] that keeps its snapshot on disk, and [`View`]s for people. The room owns
//! `<pool>/stoker/stores`, which only fetches write to, one at a time in each, and which forks share; and
//! `<pool>/stoker/repositories`: for each repository the immutable snapshots published from its store, and a small file
//! with what is known. It starts `git` (in [`git`] alone) to move objects, and reads snapshots with git2 ([`Reader`]).
//!
//! What to do to resolve a source is decided in [`stoker_core::source`]; here it is done.

mod away;
mod backoff;
mod changes;
mod check;
mod commits;
mod contain;
mod credentials;
mod declare;
mod disk;
mod entry;
mod evict;
mod fetch;
mod fill;
mod floor;
mod for_a_while;
mod forge;
pub mod git;
mod gitmodules;
mod heal;
mod inventory;
mod keep;
mod lfs;
mod listing;
mod lists;
mod local;
mod ls_refs;
mod meta;
mod network;
pub mod orphans;
mod packs;
mod paths;
mod places;
mod presence;
mod progress;
mod projects;
mod reached;
mod read;
mod recover;
mod refs;
mod resolve;
pub mod serve;
mod shelf;
mod snapshot;
mod space;
mod store;
mod submodules;
mod transfer;
mod upkeep;
mod upstream_http;
mod verify;
mod view;
mod visit;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use stoker_core::quantity::Timestamp;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::{RepositoryUrl, allowed};
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config;
use backoff::Backoffs;
use disk::{Paths, io_reason};
use entry::{Entry, State, work};
use fetch::blocking;
use forge::Forges;
use git::Git;
use lfs::Lfs;
use listing::Wanted;
use ls_refs::LsRefs;
use meta::Meta;
use network::Claims;
use places::Places;
use presence::Presence;
use store::Stores;
use upstream_http::Http;

pub use changes::Changes;
pub use commits::NeededCommits;
pub use contain::Containment;
pub use credentials::{Basic, Credentials};
pub use evict::{Evicted, Eviction};
pub(crate) use floor::{FLOOR_LOOK_EVERY, FloorLooks};
pub(crate) use git::{HelperServer, check_helper};
pub use lfs::{LfsCounts, LfsFile, LfsFiles, LfsOid};
pub use listing::Head;
pub use progress::Progress;
pub use projects::Project;
pub use read::{Extent, ReadError, Reader, TreeSummary, Verdict};
pub use refs::{RefLine, RefTable};
pub(crate) use shelf::SHELVES;
pub use shelf::{Classes, Shelved};
pub use snapshot::SnapshotPin;
pub use space::{Discard, Measure, Pool, Root, Space};
pub use submodules::Nested;
pub(crate) use submodules::under;
pub use transfer::{CHUNK_BYTES, Chunks, Export, ImportTarget, archive_of_path};
pub use upkeep::LastUpkeep;
pub use verify::{Finding, VerifyHandle};
pub use view::{Cached, RefreshHandle, RepositoryState, Resolved, View};

/// How long a snapshot stays after a newer one was published, where nothing pins it.
const SUPERSEDED_FOR: Duration = Duration::from_secs(600);
/// How many repositories one node keeps.
const REPOSITORIES_MAX: usize = 4096;

/// All repositories of this node. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Repositories {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Repositories {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repositories").finish_non_exhaustive()
    }
}

/// What the serial tasks share.
struct Shared {
    config: RwLock<Arc<config::Repositories>>,
    git: Git,
    ls_refs: LsRefs,
    lfs: Lfs,
    forges: Arc<Forges>,
    pool: Pool,
    reader: Reader,
    /// Of parallel visits to upstreams.
    places: Places,
    stores: Stores,
    claims: Claims,
    backoffs: Backoffs,
    /// What later rooms need; not known before upkeep begins.
    needed_commits: OnceLock<watch::Receiver<Option<NeededCommits>>>,
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
    /// Done once the pool was there.
    recovery: OnceCell<()>,
    presence: Presence,
    disk: evict::Watch,
    ticks: watch::Sender<u64>,
    /// How many fetches ended how: `fetched`, or the word of the reason why not.
    outcomes: Mutex<BTreeMap<&'static str, u64>>,
    /// How many requests were answered how: `hit`, `miss`, `stale`.
    answers: Mutex<BTreeMap<&'static str, u64>>,
    /// What else declares mirrors, by its name for people.
    lists: Mutex<BTreeMap<String, lists::List>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    superseded_for: Duration,
    transfers: transfer::Transfers,
}

impl Repositories {
    /// Takes over what is on the pool, and knows the declared mirrors; asks no network. A pool that is not there is no
    /// error: it is tried again before each use.
    ///
    /// # Errors
    /// When two declared mirrors are one repository.
    pub async fn open(
        config: &config::Repositories,
        git: Git,
        pool: Pool,
        cancel: CancellationToken,
    ) -> Result<Self, Reason> {
        Self::open_with(config, git, pool, cancel, SUPERSEDED_FOR).await
    }

    async fn open_with(
        config: &config::Repositories,
        git: Git,
        pool: Pool,
        cancel: CancellationToken,
        superseded_for: Duration,
    ) -> Result<Self, Reason> {
        let mut urls = BTreeSet::new();
        if let Some(twice) = config.mirrors.iter().find(|mirror| !urls.insert(&mirror.url)) {
            let message = format!("{} is declared twice under `repositories.mirrors`; remove one", twice.url);
            return Err(Reason::new(Code::RepositoryNotDeclared, twice.url.key(), message));
        }
        let tasks = TaskTracker::new();
        let http = Http::new(tasks.clone(), cancel.child_token());
        let shared = Arc::new(Shared {
            places: Places::new(config.parallel, config.parallel_per_host),
            stores: Stores::default(),
            claims: Claims::default(),
            backoffs: Backoffs::default(),
            needed_commits: OnceLock::new(),
            lfs: Lfs::new(http.clone(), config),
            forges: Arc::new(Forges::new(http.clone())),
            ls_refs: LsRefs::new(http),
            config: RwLock::new(Arc::new(config.clone())),
            git,
            pool,
            reader: Reader::default(),
            entries: Mutex::new(BTreeMap::new()),
            recovery: OnceCell::new(),
            presence: Presence::default(),
            disk: evict::Watch::default(),
            ticks: watch::Sender::new(0),
            outcomes: Mutex::default(),
            answers: Mutex::default(),
            lists: Mutex::default(),
            tasks,
            cancel,
            superseded_for,
            transfers: transfer::Transfers::default(),
        });
        for mirror in config.declared() {
            shared.insert(Meta::declared(&mirror), false)?;
        }
        if let Err(reason) = shared.recovered().await {
            tracing::warn!(reason = reason.code.word(), "repositories wait for their pool: {}", reason.message);
        }
        shared.tasks.spawn(keep::sweep_always(Arc::clone(&shared)));
        shared.tasks.spawn(presence::guard(Arc::clone(&shared)));
        shared.tasks.spawn(lists::follow(Arc::clone(&shared)));
        shared.tasks.spawn(lfs::prefill_always(Arc::clone(&shared)));
        shared.tasks.spawn(check::rotate(Arc::clone(&shared)));
        shared.tasks.spawn(away::follow_helper(Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// Whether what lies on the pool was taken over: before, no snapshot has a name.
    #[must_use]
    pub fn are_known(&self) -> bool {
        self.shared.recovery.initialized()
    }

    /// Fills the mirrors that are empty at once, declared or added, as many as may run in parallel, and refreshes the other
    /// declared ones soon; from then on those are kept fresh.
    pub fn start_prefill(&self) {
        for entry in self.shared.all() {
            let (leave, declared, filled) = {
                let state = entry.state();
                // What was evicted is filled when somebody asks for it.
                let leave = state.meta.removed || state.meta.evicted.is_some() || state.is_asked_for();
                (leave, state.meta.declared, state.is_filled())
            };
            match (declared, filled) {
                _ if leave => {}
                (_, false) => entry.refresh_in(Duration::ZERO, self.shared.now()),
                // Spread over a part of the period: a restarted fleet must not ask all at once.
                (true, true) => entry.refresh_in(self.shared.config().refresh / 10, self.shared.now()),
                (false, true) => {}
            }
        }
    }

    /// Takes over another configuration of the same pool. Mirrors that are newly declared are filled; those that no
    /// longer are stay, and are not refreshed any more.
    ///
    /// # Errors
    /// When more are declared than one node keeps; those before are taken over.
    pub async fn reconfigure(&self, config: &config::Repositories) -> Result<(), Reason> {
        let shared = &self.shared;
        *shared.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config.clone());
        shared.places.resize(config.parallel, config.parallel_per_host);
        shared.lfs.places.resize(config.parallel, config.parallel_per_host);
        let declared = shared.declare(true).await;
        shared.tick();
        declared
    }

    /// Ends all fetches and tasks, and waits until they are over.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.shared.git.idle().await;
    }

    /// Adds a repository; idempotent. The fill begins at once, and is tried again until it is there.
    ///
    /// # Errors
    /// When the configuration does not allow it, or the pool is not there.
    pub async fn add(&self, url: &RepositoryUrl, pinned: bool, trust: &str) -> Result<View, Reason> {
        self.shared.recovered().await?;
        let entry = match self.shared.get(url) {
            Some(entry) => entry,
            None => {
                self.shared.may_add(url)?;
                self.shared.insert(Meta::new(url.clone(), trust.to_owned(), pinned, false), false)?
            }
        };
        {
            let mut state = entry.state();
            state.ephemeral = false;
            state.meta.pinned |= pinned;
        }
        self.shared.save(&entry).await?;
        if !entry.is_filled() {
            entry.ask(Wanted::default())?;
        }
        self.shared.tick();
        Ok(self.shared.view(&entry))
    }

    /// Says whether a repository is never evicted.
    ///
    /// # Errors
    /// When there is no such repository, or that cannot be written.
    pub async fn set_pinned(&self, url: &RepositoryUrl, pinned: bool) -> Result<View, Reason> {
        self.shared.recovered().await?;
        let entry = self.shared.get(url).ok_or_else(|| unknown(url))?;
        entry.state().meta.pinned = pinned;
        self.shared.save(&entry).await?;
        self.shared.tick();
        Ok(self.shared.view(&entry))
    }

    /// What is known of one repository.
    #[must_use]
    pub fn get(&self, url: &RepositoryUrl) -> Option<View> {
        self.shared.get(url).map(|entry| self.shared.view(&entry))
    }

    /// The trust class of one that is here.
    #[must_use]
    pub fn trust_of(&self, url: &RepositoryUrl) -> Option<String> {
        self.shared.get(url).map(|entry| entry.state().meta.trust.clone())
    }

    /// Why a source is refused whose repository is not here and cannot come: of those that a caller may not read the same
    /// is said.
    #[must_use]
    pub fn absent(&self, url: &RepositoryUrl) -> Reason {
        self.shared.may_add(url).err().unwrap_or_else(|| absent(url))
    }

    /// Why nothing can be done with a repository that is not here.
    #[must_use]
    pub fn unknown(&self, url: &RepositoryUrl) -> Reason {
        unknown(url)
    }

    /// What is known of all, by key.
    #[must_use]
    pub fn list(&self) -> Vec<View> {
        let listed = |entry: &Arc<Entry>| !entry.state().meta.removed;
        let members = self.shared.members();
        let view = |entry: &Arc<Entry>| self.shared.with_store(entry.view(), &members);
        self.shared.all().iter().filter(|entry| listed(entry)).map(view).collect()
    }

    /// Joins the batch that waits, and so the next fetch. `only_if_empty`: where a snapshot is there, there is nothing
    /// to do.
    ///
    /// # Errors
    /// When there is no such repository.
    pub fn refresh(&self, url: &RepositoryUrl, only_if_empty: bool) -> Result<RefreshHandle, Reason> {
        let entry = self.shared.get(url).ok_or_else(|| unknown(url))?;
        let ask = match only_if_empty && entry.is_filled() {
            true => None,
            false => Some(entry.ask(Wanted::default())?),
        };
        Ok(RefreshHandle { repositories: self.clone(), url: url.clone(), progress: entry.progress.subscribe(), ask })
    }

    /// Why git does not run, or with more rights than it should, where that is so.
    #[must_use]
    pub fn containment_alarm(&self) -> Option<Reason> {
        self.shared.git.containment().and_then(Containment::alarm)
    }

    /// Ticks whenever a [`View`] may have changed.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.ticks.subscribe()
    }

    /// How many fetches ended how since the start: `fetched`, or the word of the reason why not.
    #[must_use]
    pub fn fetches(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.shared.outcomes).clone()
    }

    /// How many requests were answered without upstream (`hit`), after a question to it (`miss`), or with something older
    /// than they asked for (`stale`), since the start.
    #[must_use]
    pub fn answers(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.shared.answers).clone()
    }

    /// How often each step of mending made a store whole since the start, and how often none did.
    #[must_use]
    pub fn heals(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.shared.transfers.heals).clone()
    }

    /// Reads snapshots.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.shared.reader.clone()
    }

    /// Pins a snapshot by its name, for leases that are read back after a start.
    #[must_use]
    pub fn pin_named(&self, url: &RepositoryUrl, name: &str) -> Option<SnapshotPin> {
        let entry = lock(&self.shared.entries).get(url.key()).cloned()?;
        let state = entry.state();
        let pins = state.current.iter().chain(state.superseded.iter().map(|(pin, _)| pin));
        pins.into_iter().find(|pin| pin.name() == name).cloned()
    }
}

impl Shared {
    fn config(&self) -> Arc<config::Repositories> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn now(&self) -> Timestamp {
        crate::node::now()
    }

    fn tick(&self) {
        self.ticks.send_modify(|ticks| *ticks = ticks.wrapping_add(1));
    }

    fn all(&self) -> Vec<Arc<Entry>> {
        lock(&self.entries).values().cloned().collect()
    }

    /// What is known of a repository and its store.
    fn view(&self, entry: &Entry) -> View {
        self.with_store(entry.view(), &self.members())
    }

    /// How many repositories fetch into each store.
    fn members(&self) -> BTreeMap<String, usize> {
        let mut members = BTreeMap::new();
        for entry in self.all() {
            let meta = &entry.state().meta;
            if let Some(store) = meta.store.as_ref().filter(|_| !meta.removed) {
                *members.entry(store.clone()).or_insert(0_usize) += 1;
            }
        }
        members
    }

    fn with_store(&self, mut view: View, members: &BTreeMap<String, usize>) -> View {
        if !view.store.is_empty() {
            view.shares_store_with = members.get(&view.store).map_or(0, |count| count.saturating_sub(1));
            let known = lock(&self.stores.get(&view.store).known).clone();
            (view.last_upkeep, view.upkeep_skipped) = (known.last, known.skipped);
        }
        view.reasons.extend(self.lfs.fault(&view.url));
        view
    }

    /// A repository that was not removed.
    fn get(&self, url: &RepositoryUrl) -> Option<Arc<Entry>> {
        let entry = lock(&self.entries).get(url.key()).cloned()?;
        let removed = entry.state().meta.removed;
        (!removed).then_some(entry)
    }

    fn may_add(&self, url: &RepositoryUrl) -> Result<(), Reason> {
        let config = self.config();
        allowed(url, config.add == config::Add::OnDemand, &config.allow, &config.protocols)
    }

    /// The entry of `meta.url`, made where there is none, with its task. One that was removed while something still pins
    /// its snapshots begins anew, and keeps those.
    fn insert(self: &Arc<Self>, meta: Meta, ephemeral: bool) -> Result<Arc<Entry>, Reason> {
        let mut entries = lock(&self.entries);
        let key = meta.url.key().to_owned();
        let old = entries.get(&key).cloned();
        if let Some(old) = &old
            && !old.state().meta.removed
        {
            return Ok(Arc::clone(old));
        }
        if old.as_ref().is_some_and(|old| old.state().removing) {
            let message = format!("{} is being removed; ask again", meta.url);
            return Err(Reason::new(Code::RepositoryNotDeclared, key, message));
        }
        if entries.len() >= REPOSITORIES_MAX {
            // What is only remembered makes place for what is wanted.
            let forgotten = entries.iter().find(|(_, entry)| {
                let state = entry.state();
                state.meta.evicted.is_some() && !state.meta.declared && !state.busy && !state.waits()
            });
            let forgotten = forgotten.map(|(key, entry)| (key.clone(), Arc::clone(entry)));
            if let Some((forgotten, entry)) = forgotten {
                entry.stop.cancel();
                entries.remove(&forgotten);
            }
        }
        if entries.len() >= REPOSITORIES_MAX {
            let message = format!("this node keeps {REPOSITORIES_MAX} repositories already; remove some");
            return Err(Reason::new(Code::RepositoryNotAllowed, key, message));
        }
        let entry = Arc::new(Entry::new(meta, ephemeral, self.cancel.child_token()));
        if let Some(old) = old {
            let mut state = entry.state();
            state.superseded = std::mem::take(&mut old.state().superseded);
            state.begin_numbers_anew();
        }
        entries.insert(key, Arc::clone(&entry));
        drop(entries);
        self.tasks.spawn(work(Arc::clone(self), Arc::clone(&entry)));
        Ok(entry)
    }

    /// Takes an entry out, if it is still the one, and nobody took it up meanwhile.
    fn forget(&self, entry: &Arc<Entry>, may_go: impl Fn(&State) -> bool) {
        let mut entries = lock(&self.entries);
        let is_still = entries.get(entry.url.key()).is_some_and(|there| Arc::ptr_eq(there, entry));
        if is_still && may_go(&entry.state()) {
            entries.remove(entry.url.key());
            entry.stop.cancel();
        }
    }

    /// Writes what is known, so that a restart knows it too.
    async fn save(&self, entry: &Arc<Entry>) -> Result<(), Reason> {
        let paths = Paths::new(&(self.pool.root)()?, &entry.folder);
        let writer = Arc::clone(entry);
        let written = blocking(entry.url.key(), move || {
            paths.make_folder()?;
            writer.write(&paths, true)
        });
        written.await?.map_err(|error| io_reason(entry.url.key(), "writing what is known", &error))
    }

    /// Writes what may be lost with the power, where the repository has a folder: a loss costs a question to upstream.
    async fn note(&self, entry: &Arc<Entry>) -> Result<(), Reason> {
        let paths = Paths::new(&(self.pool.root)()?, &entry.folder);
        let writer = Arc::clone(entry);
        let written =
            blocking(entry.url.key(), move || if paths.folder.is_dir() { writer.write(&paths, false) } else { Ok(()) });
        written.await?.map_err(|error| io_reason(entry.url.key(), "writing what is known", &error))
    }

    async fn discard(&self, path: PathBuf) -> Result<(), Reason> {
        let discard = Arc::clone(&self.pool.discard);
        let shown = path.display().to_string();
        let done = blocking(&shown, move || if path.exists() { discard(path) } else { Ok(()) }).await?;
        done.map_err(|error| io_reason(&shown, "removing", &error))
    }
}

/// What this program does where the agent or git start it for themselves: it becomes git, or answers git. `args` begin
/// with the program's name. Nothing for all other arguments.
#[must_use]
pub fn hidden_command(args: &[OsString]) -> Option<u8> {
    let rest = || args.iter().skip(2).cloned();
    match args.get(1)?.to_str()? {
        contain::CHILD_WORD => Some(contain::child::main(rest())),
        credentials::helper::WORD => Some(credentials::helper::main(rest())),
        crate::node::namespace::WORD => Some(crate::node::namespace::main(rest())),
        _ => None,
    }
}

/// What is said where upstream has no such repository, or shows it to others only.
fn absent(url: &RepositoryUrl) -> Reason {
    let message = format!("{} is not here, and upstream has no such repository or does not show it", url.key());
    Reason::new(Code::UpstreamNotFound, url.key(), message)
}

fn unknown(url: &RepositoryUrl) -> Reason {
    let message = format!("{url} is not among this node's repositories; add it first");
    Reason::new(Code::RepositoryNotDeclared, url.key(), message)
}

/// A poisoned lock guards a map that is still whole: every change to it is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
