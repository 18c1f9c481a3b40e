//! Watches the disk, and makes room: above `repositories.limit` or below the pool's floor.
//!
//! What goes is decided in [`stoker_core::upkeep::evict`]. An evicted mirror stays known, declared or not: it is empty,
//! says why, and is filled again when somebody asks for it; nothing fills it before, or it would come and go all the
//! time. Where nothing may go and the repositories are still over, no mirror is filled, and that is an alarm.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stoker_core::quantity::{Resource, Span, Timestamp};
use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use stoker_core::upkeep::evict::{self as core, Candidate, Cause, Held, Kind, Plan};
use tokio::time::Instant;

use super::disk::{Paths, StorePaths};
use super::entry::Entry;
use super::fetch::blocking;
use super::inventory::Inventory;
use super::space::Space;
use super::{Repositories, Shared, lock};

/// How often it looks whether anything changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The disk is measured at least so often after a change, for the figures.
const MEASURE_EVERY: Duration = Duration::from_secs(60);
/// How many evictions are remembered for people.
const EVENTS_MAX: usize = 64;

/// Why and when a mirror was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// When.
    pub at: Timestamp,
    /// `REPOSITORIES_LIMIT` or `DISK_FLOOR`.
    pub code: Code,
}

/// Something that was evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// When.
    pub at: Timestamp,
    /// The repository.
    pub repository: String,
    /// What of it, and why, in words.
    pub what: String,
    /// `REPOSITORIES_LIMIT` or `DISK_FLOOR`.
    pub code: Code,
}

/// What is known of the disk.
#[derive(Debug, Default)]
pub(super) struct Watch {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    used_bytes: u64,
    counts: BTreeMap<&'static str, u64>,
    events: VecDeque<Eviction>,
    over: Option<Reason>,
}

impl Repositories {
    /// What all repositories take on the disk, each file once, as it was last measured.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        lock(&self.shared.disk.known).used_bytes
    }

    /// How many evictions there were since the start, by the word of the reason.
    #[must_use]
    pub fn evictions(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.shared.disk.known).counts.clone()
    }

    /// The last evictions, the oldest first.
    #[must_use]
    pub fn last_evictions(&self) -> Vec<Eviction> {
        lock(&self.shared.disk.known).events.iter().cloned().collect()
    }

    /// Why no mirror is filled now, where that is so.
    #[must_use]
    pub fn over_limit(&self) -> Option<Reason> {
        lock(&self.shared.disk.known).over.clone()
    }
}

/// Why nothing may be filled now. Room that came since the last look at the disk counts.
pub(super) async fn refusal(shared: &Shared, url: &RepositoryUrl) -> Result<(), Reason> {
    let Some(over) = lock(&shared.disk.known).over.clone() else { return Ok(()) };
    if over.code == Code::DiskFloor {
        let measure = Arc::clone(&shared.pool.measure);
        let space = blocking("pool", move || measure()).await.ok().and_then(Result::ok);
        if space.is_some_and(|space| space.free_bytes >= space.floor_bytes) {
            let mut known = lock(&shared.disk.known);
            if known.over.as_ref() == Some(&over) {
                known.over = None;
            }
            return Ok(());
        }
    }
    let message = format!("{url} is not filled: {}", over.message);
    Err(Reason { subject: url.key().to_owned(), message, ..over })
}

/// Looks until the agent stops, once `holders` has ended.
pub(super) async fn watch_disk(shared: Arc<Shared>, holders: impl Future<Output = ()>) {
    if shared.cancel.run_until_cancelled(holders).await.is_none() {
        return;
    }
    let (mut seen, mut measured) = (0, None::<Instant>);
    loop {
        let measure = Arc::clone(&shared.pool.measure);
        let now = blocking("pool", move || measure()).await.ok().and_then(Result::ok);
        let print = fingerprint(&shared);
        let short = now.is_some_and(|space| space.free_bytes < space.needed_bytes());
        let (limited, over) = (shared.config().limit.is_some(), lock(&shared.disk.known).over.is_some());
        let stale = measured.is_none_or(|at| at.elapsed() >= MEASURE_EVERY);
        if short || over || (print != seen && (limited || stale)) {
            if let Err(reason) = make_room(&shared, now).await {
                tracing::warn!(reason = reason.code.word(), "measuring the repositories: {}", reason.message);
            }
            (seen, measured) = (print, Some(Instant::now()));
        }
        remember_uses(&shared).await;
        if shared.cancel.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

/// Another one where something was published or went, or the marks are others.
fn fingerprint(shared: &Shared) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hash = DefaultHasher::new();
    shared.config().limit.hash(&mut hash);
    for entry in shared.all() {
        let state = entry.state();
        entry.folder.hash(&mut hash);
        state.current.as_ref().map(|pin| pin.name()).hash(&mut hash);
        (state.superseded.len(), state.disk_bytes, state.meta.pinned).hash(&mut hash);
    }
    hash.finish()
}

/// One repository, as it was when all were looked at.
struct Seen {
    entry: Arc<Entry>,
    store: Option<String>,
    held: Option<Held>,
    filled: bool,
    /// Old snapshots that nobody holds, with the time since when they are old.
    old: Vec<(PathBuf, Timestamp)>,
    filled_at: Timestamp,
    used_at: Timestamp,
    fill: Span,
}

fn see(entry: &Arc<Entry>, now: Timestamp) -> Seen {
    let state = entry.state();
    let meta = &state.meta;
    let pins = || state.current.iter().chain(state.superseded.iter().map(|(pin, _)| pin));
    let held = match () {
        () if meta.pinned => Some(Held::Pinned),
        () if state.busy || state.waits() => Some(Held::Busy),
        () if pins().any(|pin| !pin.is_unpinned()) => Some(Held::InUse),
        () => None,
    };
    let since = |at: &Instant| Timestamp(now.0.saturating_sub(i64::try_from(at.elapsed().as_millis()).unwrap_or(0)));
    let old = state.superseded.iter().filter(|(pin, _)| pin.is_unpinned());
    let filled_at = meta.filled_at.or(meta.last_fetch_at).unwrap_or_default();
    Seen {
        entry: Arc::clone(entry),
        store: meta.store.clone(),
        held,
        filled: state.current.is_some() && !meta.removed,
        old: old.map(|(pin, at)| (pin.path().to_owned(), since(at))).collect(),
        filled_at,
        used_at: meta.last_used_at.unwrap_or(filled_at).max(filled_at),
        fill: Span(i64::try_from(meta.fill_millis).unwrap_or(i64::MAX)),
    }
}

/// What a candidate of the plan is here.
enum What {
    Old { entry: Arc<Entry>, path: PathBuf },
    Mirror(Arc<Entry>),
}

/// The disk, and all that could go.
struct Picture {
    inventory: Inventory,
    stores: BTreeMap<String, core::Store>,
    candidates: Vec<Candidate>,
    what: Vec<What>,
}

impl Picture {
    /// Blocks on the disk.
    fn take(root: &Path, paths: Option<&Path>, seen: Vec<Seen>) -> Self {
        let mut inventory = Inventory::with_trash(&root.join("trash"));
        let mut stores: BTreeMap<String, core::Store> = BTreeMap::new();
        for name in seen.iter().filter_map(|seen| seen.store.as_ref()) {
            let store = stores.entry(name.clone()).or_insert_with(|| {
                let files = inventory.add(&StorePaths::new(root, name).folder, &[]);
                core::Store { files, members: 0 }
            });
            store.members += 1;
        }
        let (mut candidates, mut what) = (Vec::new(), Vec::new());
        for seen in seen {
            let mut along = Vec::new();
            let apart: Vec<PathBuf> = seen.old.iter().map(|(path, _)| path.clone()).collect();
            for (path, since) in seen.old {
                along.push(candidates.len());
                candidates.push(Candidate {
                    kind: Kind::OldSnapshot,
                    files: inventory.add(&path, &[]),
                    along: Vec::new(),
                    store: String::new(),
                    held: None,
                    filled_at: since,
                    used_at: since,
                    fill: Span(0),
                });
                what.push(What::Old { entry: Arc::clone(&seen.entry), path });
            }
            let files = inventory.add(&Paths::new(root, &seen.entry.folder).folder, &apart);
            if seen.filled {
                candidates.push(Candidate {
                    kind: Kind::Mirror,
                    files,
                    along,
                    store: seen.store.unwrap_or_default(),
                    held: seen.held,
                    filled_at: seen.filled_at,
                    used_at: seen.used_at,
                    fill: seen.fill,
                });
                what.push(What::Mirror(seen.entry));
            }
        }
        if let Some(paths) = paths {
            inventory.add(paths, &[]);
        }
        Self { inventory, stores, candidates, what }
    }
}

/// Measures, and evicts where a mark is passed.
async fn make_room(shared: &Arc<Shared>, space: Option<Space>) -> Result<(), Reason> {
    shared.recovered().await?;
    let root = (shared.pool.root)()?;
    let (config, now) = (shared.config(), shared.now());
    let seen: Vec<Seen> = shared.all().iter().map(|entry| see(entry, now)).collect();
    let paths = config.paths.as_ref().and_then(|paths| Some(root.parent()?.join(&paths.directory)));
    let min_age = Span(i64::try_from(config.min_age.as_millis()).unwrap_or(i64::MAX));
    let limit_bytes = config.limit;
    let looked = blocking("repositories", move || {
        let picture = Picture::take(&root, paths.as_deref(), seen);
        let facts = core::Facts {
            used_bytes: picture.inventory.used_bytes(),
            limit_bytes,
            free_bytes: space
                .map_or(u64::MAX, |space| space.free_bytes)
                .saturating_add(picture.inventory.leaving_bytes()),
            floor_bytes: space.map_or(0, Space::needed_bytes),
            now,
            min_age,
        };
        let plan = core::decide(&picture.inventory.files, &picture.stores, &picture.candidates, &facts);
        (picture, facts, plan)
    });
    let (picture, facts, plan) = looked.await?;
    let mut missed = false;
    for at in &plan.evicted {
        let Some(cause) = plan.cause else { break };
        if cause == Cause::Floor && matches!(picture.what.get(*at), Some(What::Mirror(_))) {
            // Single files come back sooner than a mirror. What is still lacking then shows at the next look.
            let lacking = facts.floor_bytes.saturating_sub(facts.free_bytes);
            let room = Arc::clone(shared);
            let freed = blocking("lfs", move || room.evict_large_files(lacking)).await;
            if freed.and_then(|freed| freed).is_ok_and(|freed| freed > 0) {
                missed = true;
                break;
            }
        }
        missed |= !match picture.what.get(*at) {
            Some(What::Old { entry, path }) => evict_old(shared, entry, path, cause).await,
            Some(What::Mirror(entry)) => evict_mirror(shared, entry, cause).await?,
            None => true,
        };
    }
    // Room that builds were promised is made where it can be; for want of it nothing is refused, the builds' own sources
    // least of all.
    let floor = space.map_or(0, |space| space.floor_bytes);
    let above_floor = facts.free_bytes.saturating_add(plan.freed_bytes) >= floor;
    let over = over(&plan, &facts).filter(|_| plan.cause != Some(Cause::Floor) || !above_floor);
    let mut known = lock(&shared.disk.known);
    known.used_bytes = facts.used_bytes.saturating_sub(plan.freed_bytes);
    if let Some(reason) = over.as_ref().filter(|_| known.over.is_none()) {
        tracing::warn!(reason = reason.code.word(), "{}", reason.message);
    }
    let changed = known.over.is_some() != over.is_some();
    // What could not go this time because somebody came for it is tried again before anything is refused.
    known.over = if missed && known.over.is_none() { None } else { over };
    drop(known);
    if changed || !plan.evicted.is_empty() {
        shared.tick();
    }
    Ok(())
}

const fn code_of(cause: Cause) -> Code {
    match cause {
        Cause::Limit => Code::RepositoriesLimit,
        Cause::Floor => Code::DiskFloor,
    }
}

/// Why nothing may be filled, where the plan leaves too much.
fn over(plan: &Plan, facts: &core::Facts) -> Option<Reason> {
    let cause = plan.cause.filter(|_| plan.over_bytes > 0)?;
    let shown = |bytes: u64| Resource::DiskBytes.show(bytes).to_string();
    let kept = "everything else is pinned, in use, or younger than `repositories.minAge`";
    let used = facts.used_bytes.saturating_sub(plan.freed_bytes);
    let (message, wanted, available) = match cause {
        Cause::Limit => {
            let limit = facts.limit_bytes.unwrap_or_default();
            let message = format!(
                "the repositories take {} of {}, and nothing may be evicted: {kept}; raise `repositories.limit`, or unpin \
                 or remove some",
                shown(used),
                shown(limit)
            );
            (message, used, limit)
        }
        Cause::Floor => {
            let message = format!(
                "the pool has {} free, its floor and what leases may still write are {}, and no repository may be \
                 evicted: {kept}; free disk there, or unpin or remove some",
                shown(facts.free_bytes),
                shown(facts.floor_bytes)
            );
            (message, facts.floor_bytes, facts.free_bytes)
        }
    };
    Some(Reason::new(code_of(cause), "repositories", message).about(Resource::DiskBytes, wanted, available))
}

/// False where somebody came for it.
async fn evict_old(shared: &Shared, entry: &Arc<Entry>, path: &Path, cause: Cause) -> bool {
    let pin = {
        let mut state = entry.state();
        let at = state.superseded.iter().position(|(pin, _)| pin.path() == path && pin.is_unpinned());
        at.map(|at| state.superseded.remove(at))
    };
    let Some((pin, since)) = pin else { return false };
    shared.reader.forget(path);
    match shared.discard(path.to_owned()).await {
        Ok(()) => {
            tell(shared, entry, format!("old snapshot {}", pin.name()), cause);
            true
        }
        Err(reason) => {
            tracing::warn!(repository = entry.url.key(), "{}", reason.message);
            entry.state().superseded.push((pin, since));
            false
        }
    }
}

/// Takes everything of a mirror but the memory of it. False where somebody came for it.
async fn evict_mirror(shared: &Arc<Shared>, entry: &Arc<Entry>, cause: Cause) -> Result<bool, Reason> {
    let name = entry.state().meta.store.clone();
    let store = name.as_ref().map(|name| shared.stores.get(name));
    // A store at work is in use.
    let turn = match &store {
        Some(store) => match store.try_turn() {
            Some(turn) => Some(turn),
            None => return Ok(false),
        },
        None => None,
    };
    {
        let mut state = entry.state();
        let idle = !state.busy && !state.waits() && !state.meta.pinned && !state.meta.removed;
        let mut pins = state.current.iter().chain(state.superseded.iter().map(|(pin, _)| pin));
        if !idle || !pins.all(super::SnapshotPin::is_unpinned) || state.meta.store != name {
            return Ok(false);
        }
        if let Some(pin) = state.current.take() {
            // No name comes twice: readers remember snapshots by theirs.
            state.meta.first_snapshot = pin.number().saturating_add(1);
            state.superseded.push((pin, Instant::now()));
        }
        (state.refs, state.objects, state.next_refresh) = (0, 0, None);
        let meta = &mut state.meta;
        meta.evicted = Some(Evicted { at: shared.now(), code: code_of(cause) });
        (meta.head, meta.confirmed_at, meta.error) = (None, None, None);
        meta.pins.clear();
    }
    let left = match &name {
        Some(name) => shared.leave(entry, name).await,
        None => Ok(()),
    };
    let saved = shared.save(entry).await;
    drop(turn);
    shared.sweep(entry, Duration::ZERO).await;
    tell(shared, entry, "mirror".to_owned(), cause);
    left.and(saved).map(|()| true)
}

/// Each eviction with its reason: in the log, the metric and the list.
fn tell(shared: &Shared, entry: &Entry, what: String, cause: Cause) {
    let code = code_of(cause);
    tracing::warn!(repository = entry.url.key(), reason = code.word(), "evicted: {what}");
    let mut known = lock(&shared.disk.known);
    *known.counts.entry(code.word()).or_default() += 1;
    known.events.push_back(Eviction { at: shared.now(), repository: entry.url.key().to_owned(), what, code });
    if known.events.len() > EVENTS_MAX {
        known.events.pop_front();
    }
}

/// Writes what a restart should know of uses; small and unsynced, at most once a minute each.
async fn remember_uses(shared: &Shared) {
    let now = shared.now();
    for entry in shared.all() {
        let due = {
            let mut state = entry.state();
            let used = state.meta.last_used_at;
            let minute = state.used_saved_at.is_none_or(|at| now.since(at) >= Span::minutes(1));
            let due = used > state.used_saved_at && minute && !state.ephemeral && !state.meta.removed && !state.busy;
            if due {
                state.used_saved_at = Some(now);
            }
            due
        };
        if due && shared.note(&entry).await.is_err_and(|reason| reason.code == Code::PoolNotReady) {
            return;
        }
    }
}
