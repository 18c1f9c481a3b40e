//! One visit to upstream, from the question what it has to the published snapshot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stoker_core::identity::CommitId;
use stoker_core::quantity::Timestamp;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::Fetched;
use stoker_core::source::heal::Step;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::credentials::Credentials;
use super::declare::CONFIGURATION;
use super::disk::{Paths, StorePaths, io_reason};
use super::entry::{Entry, Outcome, stopping};
use super::evict;
use super::fetch::{Visit, blocking};
use super::floor::{Watched, stays_below_floor};
use super::git::GitError;
use super::heal::Patient;
use super::listing::{Head, Listing, Wanted};
use super::local::SafeDirectory;
use super::meta::Pin;
use super::network::{Claim, choose};
use super::places::Place;
use super::reached;
use super::recover::clean;
use super::snapshot::SnapshotPin;
use super::store::{Store, Suspicion, Turn, name_of};
use super::transfer::plant;

/// From so many branches and tags on, the first fill begins with those that somebody waits for: how much all the others
/// bring is not known before, and asking twice costs one more round trip.
const FIRST_REFS_MIN: usize = 100;

/// Serves one batch. `place` is the one among parallel visits that it was given.
///
/// `first` is set when the refs that were named are here, and more is still being fetched.
pub(super) async fn visit(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    wanted: &Wanted,
    first: &watch::Sender<bool>,
    place: Place,
) -> Outcome {
    let mut commits = BTreeMap::new();
    let watched = Watched { cancel: entry.stop.child_token(), brings: false.into() };
    let cancel = &watched.cancel;
    let result = {
        let mut work = Box::pin(run(shared, entry, wanted, first, place, &watched, &mut commits));
        match shared.recovered().await.and_then(|()| (shared.pool.root)()) {
            Err(reason) => Err(reason),
            Ok(_) => {
                let lost = shared.presence.token();
                tokio::select! {
                    result = &mut work => result,
                    () = lost.cancelled() => {
                        cancel.cancel();
                        work.await
                    }
                    reason = stays_below_floor(shared, &entry.url, &watched.brings) => {
                        cancel.cancel();
                        // What came before is told as it is.
                        work.await.map_err(|_| reason)
                    }
                }
            }
        }
    };
    // Whatever broke because the pool went is told as that, and not as upstream's fault.
    let result = result.map_err(|reason| (shared.pool.root)().err().unwrap_or(reason));
    Outcome { result, commits }
}

async fn run(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    wanted: &Wanted,
    first: &watch::Sender<bool>,
    place: Place,
    Watched { cancel, brings }: &Watched,
    commits: &mut BTreeMap<CommitId, Fetched>,
) -> Result<(), Reason> {
    plant(shared, entry, cancel).await;
    let mut visit = prepare(shared, entry, (shared.pool.root)()?, cancel).await?;
    let listed = async {
        let safe = visit.inspect().await?;
        let asked_at = shared.now();
        visit.list(wanted, safe.as_deref()).await.map(|listing| (listing, safe, asked_at))
    };
    let listed = listed.await;
    // What it answered to this question: what goes wrong on the way, later or here, is neither yes nor no.
    match &listed {
        Ok(_) => entry.state().meta.denied = false,
        // One that moved is there.
        Err(reason) if reason.code.upstream_says_no() && !GitError::tells_of_a_move(reason) => {
            entry.state().meta.denied = true;
        }
        Err(_) => {}
    }
    let (listing, safe, asked_at) = match listed {
        Ok(listed) => listed,
        Err(reason) => {
            mend_alone(shared, entry, &mut visit).await;
            return Err(reason);
        }
    };
    // A pool that was exchanged has lost it.
    let current = entry.current().filter(|pin| pin.path().is_dir());
    let (unchanged, missing) = compare(shared, entry, &listing, current.as_ref()).await?;
    let suspect = held_store(shared, entry).is_some_and(|store| store.suspicion().is_some());
    if unchanged
        && !suspect
        && is_in_its_store(entry, &visit.root)
        && missing.extra.is_empty()
        && wanted.commits.is_empty()
        && !drops_pins(entry, &listing, wanted)
    {
        update_pins(entry, &listing, wanted, asked_at);
        return record(shared, entry, &visit, listing.head, asked_at, false).await;
    }
    if current.is_none() {
        evict::refusal(shared, &entry.url).await?;
    }
    let writer = begin(shared, entry, &mut visit, &listing, place).await?;
    brings.store(true, Ordering::SeqCst);
    if current.is_none() && !visit.has_store() && listing.followed >= FIRST_REFS_MIN && names_refs(&listing) {
        bring_first(shared, entry, &visit, &listing, wanted, asked_at, safe.as_deref()).await?;
        first.send_replace(true);
        shared.tick();
    }
    let current = entry.current().filter(|pin| pin.path().is_dir());
    let begun = Instant::now();
    let brought = async {
        let come = bring(shared, entry, &visit, &writer.store, &missing, unchanged, safe.as_deref()).await?;
        let mut objects_came = come == Come::Whole;
        for commit in &wanted.commits {
            let fetched = visit.fetch_commit(*commit, safe.as_deref()).await;
            if fetched == Fetched::Here {
                objects_came = true;
                entry.state().meta.remember_commit(*commit, shared.now());
            }
            commits.insert(*commit, fetched);
        }
        brings.store(false, Ordering::SeqCst);
        let dropped = update_pins(entry, &listing, wanted, asked_at);
        if !dropped.is_empty() {
            visit.unpin(&dropped).await.map_err(|error| error.reason(entry.url.key(), "forgetting pull requests"))?;
        }
        let fetched = come != Come::Nothing || objects_came;
        if fetched || !dropped.is_empty() || current.is_none() {
            let first = entry.state().meta.first_snapshot;
            // A snapshot that was taken out of service meanwhile is nothing to go by.
            let current = current.filter(|pin| entry.current().is_some_and(|now| now.number() == pin.number()));
            let published = match visit.publish(listing.head.clone(), current.clone(), objects_came, first).await {
                Err(reason) if reason.code == Code::RepositoryCorrupt => {
                    let suspicion = Suspicion { why: reason.message, full: false };
                    let patient = Patient { shared, entry, visit: &visit, store: &writer.store };
                    patient.mend(&suspicion, Some((&listing, safe.as_deref()))).await?;
                    entry.state().meta.generation = visit.store.generation();
                    visit.publish(listing.head.clone(), current, true, first).await?
                }
                published => published?,
            };
            adopt(entry, published, begun, shared.now());
        }
        Ok(fetched)
    };
    let fetched = match brought.await {
        Ok(fetched) => fetched,
        Err(reason) => {
            // A lock of a git that was killed, also while it packed the refs, would stop all that comes after.
            tidy(shared, &visit).await;
            return Err(reason);
        }
    };
    let recorded = record(shared, entry, &visit, listing.head, asked_at, fetched).await;
    drop(writer);
    recorded
}

fn names_refs(listing: &Listing) -> bool {
    !listing.first.is_empty() || !listing.extra.is_empty()
}

/// The first part of a large fill: what somebody waits for, published by itself.
async fn bring_first(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    visit: &Visit,
    listing: &Listing,
    wanted: &Wanted,
    asked_at: Timestamp,
    safe: Option<&SafeDirectory>,
) -> Result<(), Reason> {
    let reason = |error: GitError| error.reason(entry.url.key(), &format!("fetching {}", entry.url));
    let begun = Instant::now();
    visit.begin_store().await.map_err(reason)?;
    visit.fetch_first(listing, safe).await.map_err(reason)?;
    update_pins(entry, listing, wanted, asked_at);
    let least = entry.state().meta.first_snapshot;
    let published = visit.publish(listing.head.clone(), None, true, least).await?;
    entry.state().meta.partial_at = Some(asked_at);
    adopt(entry, published, begun, shared.now());
    entry.state().ephemeral = false;
    shared.save(entry).await
}

/// What a visit or an import needs, before it is known which store is the repository's.
pub(super) async fn prepare(
    shared: &Shared,
    entry: &Entry,
    root: PathBuf,
    cancel: &CancellationToken,
) -> Result<Visit, Reason> {
    shared.git.settle(&root).await?;
    let meta = entry.state().meta.clone();
    // What a manifest or a submodule names was written by others.
    let is_named = meta.declared && meta.declared_by == CONFIGURATION;
    let bound = if is_named { None } else { reached::bound(&entry.url, &shared.config().allow).await? };
    Ok(Visit {
        git: shared.git.clone(),
        credentials: Credentials::of(&shared.config(), &meta.trust),
        ls_refs: shared.ls_refs.clone(),
        url: entry.url.clone(),
        trust: meta.trust.clone(),
        folder: entry.folder.clone(),
        paths: Paths::new(&root, &entry.folder),
        store: StorePaths::new(&root, &name_of(&meta.trust, &entry.url)),
        protocols: shared.config().protocols.clone(),
        redirects: is_named,
        bound,
        deadline: std::time::Instant::now() + shared.config().fetch_within,
        cancel: cancel.clone(),
        progress: entry.progress.clone(),
        root,
    })
}

/// The store that the repository fetches into, where it did.
fn held_store(shared: &Shared, entry: &Entry) -> Option<Arc<Store>> {
    let name = entry.state().meta.store.clone()?;
    Some(shared.stores.get(&name))
}

/// Whether the repository's refs are in its store: one that was made anew, or that was lost, has not its refs yet. An
/// archive that nothing was fetched for has none.
fn is_in_its_store(entry: &Entry, root: &Path) -> bool {
    let (store, generation) = {
        let meta = &entry.state().meta;
        (meta.store.clone(), meta.generation.clone())
    };
    store.is_none_or(|name| generation.is_some() && StorePaths::new(root, &name).generation() == generation)
}

/// Upstream is away: a damaged store is mended as far as that goes without it.
async fn mend_alone(shared: &Arc<Shared>, entry: &Arc<Entry>, visit: &mut Visit) {
    let Some(name) = entry.state().meta.store.clone() else { return };
    let store = shared.stores.get(&name);
    if store.suspicion().is_none() {
        return;
    }
    let Ok((store, _turn, _claim)) = enter(shared, entry, visit, &[]).await else { return };
    // Looked at again under the turn: another visit may have mended it.
    let Some(suspicion) = store.suspicion() else { return };
    let patient = Patient { shared, entry, visit, store: &store };
    if patient.mend(&suspicion, None).await.is_ok() && entry.current().is_none() {
        let (head, first) = (entry.state().meta.head.clone(), entry.state().meta.first_snapshot);
        match visit.publish(head, None, true, first).await {
            Ok(published) => adopt(entry, published, Instant::now(), shared.now()),
            Err(reason) => tracing::warn!(repository = entry.url.key(), "{}", reason.message),
        }
    }
}

/// The right to write to the store, and what goes with it.
struct Writer {
    store: Arc<Store>,
    _turn: Turn,
    _place: Place,
    _claim: Option<Claim>,
}

/// Waits for the turn of the repository's store, and for a place. Who waits gives its place to others.
async fn begin(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    visit: &mut Visit,
    listing: &Listing,
    place: Place,
) -> Result<Writer, Reason> {
    drop(place);
    let (store, turn, claim) = enter(shared, entry, visit, &listing.tips).await?;
    let place = visit.cancel.run_until_cancelled(shared.places.take(&entry.url)).await.flatten();
    let place = place.ok_or_else(|| stopping(&entry.url))?;
    // Others had their time; this one's begins now.
    visit.deadline = std::time::Instant::now() + shared.config().fetch_within;
    Ok(Writer { store, _turn: turn, _place: place, _claim: claim })
}

/// Finds the repository's store, and waits for its turn there.
pub(super) async fn enter(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    visit: &mut Visit,
    tips: &[CommitId],
) -> Result<(Arc<Store>, Turn, Option<Claim>), Reason> {
    let (name, claim) = choose(shared, entry, tips).await?;
    let store = shared.stores.get(&name);
    let turn = visit.cancel.run_until_cancelled(store.turn()).await.ok_or_else(|| stopping(&entry.url))?;
    {
        let mut state = entry.state();
        if state.meta.trust != visit.trust || state.meta.store.as_ref().is_some_and(|store| *store != name) {
            let message = format!("{} changed its trust class meanwhile; ask again", entry.url);
            return Err(Reason::new(Code::UpstreamTimeout, entry.url.key(), message));
        }
        state.meta.store = Some(name.clone());
    }
    let root = (shared.pool.root)()?;
    visit.store = StorePaths::new(&root, &name);
    visit.deadline = std::time::Instant::now() + shared.config().fetch_within;
    Ok((store, turn, claim))
}

/// Half a pack of a fetch that failed would keep the disk full.
async fn tidy(shared: &Shared, visit: &Visit) {
    let (store, discard) = (visit.store.folder.clone(), Arc::clone(&shared.pool.discard));
    if let Err(reason) = blocking(visit.url.key(), move || clean(&store, &*discard)).await {
        tracing::warn!(repository = visit.url.key(), "{}", reason.message);
    }
}

/// What a visit brought into the store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Come {
    Nothing,
    Refs,
    /// A store was made.
    Whole,
}

/// Fills or fetches, as much as the listing calls for.
async fn bring(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    visit: &Visit,
    store: &Store,
    missing: &Listing,
    unchanged: bool,
    safe: Option<&SafeDirectory>,
) -> Result<Come, Reason> {
    let patient = Patient { shared, entry, visit, store };
    let reason = |error: GitError| error.reason(entry.url.key(), &format!("fetching {}", entry.url));
    let whole = async || {
        visit.fill(missing, safe).await?;
        if missing.extra.is_empty() { Ok(()) } else { visit.fetch_extra(missing, safe).await }
    };
    if !visit.has_store() {
        whole().await.map_err(reason)?;
        entry.state().meta.generation = visit.store.generation();
        return Ok(Come::Whole);
    }
    if let Some(suspicion) = store.suspicion() {
        patient.mend(&suspicion, Some((missing, safe))).await?;
    }
    // A store that was made anew, or that this repository joins, has not its refs yet.
    let generation = visit.store.generation();
    let joined = generation.is_some() && entry.state().meta.generation == generation;
    let done = match (unchanged && joined, missing.extra.is_empty()) {
        (true, true) => return Ok(Come::Nothing),
        (true, false) => visit.fetch_extra(missing, safe).await,
        (false, _) => match joined {
            true => visit.fetch(missing, safe).await,
            false => bring_all(visit, missing, safe).await,
        },
    };
    match done {
        Ok(()) => {
            entry.state().meta.generation = generation;
            Ok(Come::Refs)
        }
        Err(error) if error.is_store_damage() => {
            let suspicion = Suspicion { why: error.to_string(), full: true };
            let step = patient.mend(&suspicion, Some((missing, safe))).await?;
            // Whole again is not yet what was asked for.
            if step == Step::Recheck {
                visit.fetch(missing, safe).await.map_err(reason)?;
            } else if !missing.extra.is_empty() {
                visit.fetch_extra(missing, safe).await.map_err(reason)?;
            }
            entry.state().meta.generation = visit.store.generation();
            Ok(Come::Whole)
        }
        Err(error) => Err(reason(error)),
    }
}

/// All branches and tags into a store that has few of them, or none: by the list, where it is long.
async fn bring_all(visit: &Visit, missing: &Listing, safe: Option<&SafeDirectory>) -> Result<(), GitError> {
    match visit.fetch_by_list(missing, safe).await? {
        true if missing.extra.is_empty() => Ok(()),
        true => visit.fetch_extra(missing, safe).await,
        false => visit.fetch(missing, safe).await,
    }
}

/// Whether the newest snapshot has the branches, tags and HEAD that upstream lists; and the listing with only those
/// further refs that it has not.
async fn compare(
    shared: &Arc<Shared>,
    entry: &Entry,
    listing: &Listing,
    current: Option<&SnapshotPin>,
) -> Result<(bool, Listing), Reason> {
    let (reader, mut missing, current) = (shared.reader.clone(), listing.clone(), current.cloned());
    blocking(entry.url.key(), move || {
        let Some(pin) = current else { return (false, missing) };
        // Most refreshes find nothing: then no file is read.
        if let Some(digest) = pin.known_digest()
            && missing.extra.is_empty()
        {
            return (digest == missing.digest, missing);
        }
        // One that cannot be read is one that we do not have.
        let Ok(refs) = reader.refs(&pin) else { return (false, missing) };
        let head = pin.head().as_ref().map(Head::to_file).unwrap_or_default();
        let unchanged = pin.remember_digest(refs.digest(&head)) == missing.digest;
        missing.extra.retain(|name, id| refs.get(name.as_bytes()).is_none_or(|line| line.id != *id));
        (unchanged, missing)
    })
    .await
}

/// Whether upstream no longer has what was pinned of it.
fn drops_pins(entry: &Entry, listing: &Listing, wanted: &Wanted) -> bool {
    let state = entry.state();
    state.meta.pins.iter().any(|pin| wanted.refs.contains(&pin.name) && !listing.extra.contains_key(&pin.name))
}

/// Records what upstream said of pull requests; gives the names of those that are to be forgotten.
fn update_pins(entry: &Entry, listing: &Listing, wanted: &Wanted, asked_at: Timestamp) -> Vec<String> {
    let mut state = entry.state();
    let gone = |pin: &Pin| wanted.refs.contains(&pin.name) && !listing.extra.contains_key(&pin.name);
    let mut dropped: Vec<String> = state.meta.pins.iter().filter(|pin| gone(pin)).map(|pin| pin.name.clone()).collect();
    state.meta.pins.retain(|pin| !dropped.contains(&pin.name));
    for (name, commit) in &listing.extra {
        let pin = Pin { name: name.clone(), commit: *commit, confirmed_at: asked_at };
        dropped.extend(state.meta.set_pin(pin).into_iter().map(|pin| pin.name));
    }
    dropped
}

/// The published snapshot is the newest now.
pub(super) fn adopt(entry: &Entry, published: Option<(SnapshotPin, usize)>, begun: Instant, now: Timestamp) {
    let Some((pin, refs)) = published else { return };
    let mut state = entry.state();
    state.refs = u64::try_from(refs).unwrap_or(u64::MAX);
    match state.current.replace(pin) {
        Some(old) => state.superseded.push((old, Instant::now())),
        // What it would cost to have it again, should it be evicted.
        None => {
            let meta = &mut state.meta;
            (meta.filled_at, meta.evicted) = (Some(now), None);
            meta.fill_millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
    }
}

async fn record(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    visit: &Visit,
    head: Option<Head>,
    asked_at: Timestamp,
    fetched: bool,
) -> Result<(), Reason> {
    {
        let mut state = entry.state();
        state.meta.head = head;
        state.meta.confirmed_at = Some(asked_at);
        state.meta.partial_at = None;
        state.meta.failures = 0;
        state.meta.error = None;
        if fetched {
            state.meta.last_fetch_at = Some(shared.now());
        }
    }
    if !fetched {
        return Ok(());
    }
    let (measured, paths, root) = (Arc::clone(entry), visit.paths.clone(), visit.root.clone());
    let written = blocking(entry.url.key(), move || {
        measured.measure(&root);
        measured.write(&paths, true)
    });
    written.await?.map_err(|error| io_reason(entry.url.key(), "writing what is known", &error))
}
