//! One visit to upstream, from the question what it has to the published snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use stoker_core::identity::CommitId;
use stoker_core::quantity::Timestamp;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::Fetched;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::credentials::Credentials;
use super::disk::{Paths, StorePaths, io_reason};
use super::entry::{Entry, Outcome, stopping};
use super::fetch::{Visit, blocking};
use super::git::GitError;
use super::listing::{Head, Listing, Wanted};
use super::local::SafeDirectory;
use super::meta::Pin;
use super::network::{Claim, choose};
use super::places::Place;
use super::snapshot::SnapshotPin;
use super::store::{Turn, name_of};

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
    let cancel = entry.stop.child_token();
    let result = {
        let mut work = Box::pin(run(shared, entry, wanted, first, place, &cancel, &mut commits));
        match shared.recovered().await.and_then(|()| (shared.root)()) {
            Err(reason) => Err(reason),
            Ok(_) => {
                let lost = shared.presence.token();
                tokio::select! {
                    result = &mut work => result,
                    () = lost.cancelled() => {
                        cancel.cancel();
                        work.await
                    }
                }
            }
        }
    };
    // Whatever broke because the pool went is told as that, and not as upstream's fault.
    let result = result.map_err(|reason| (shared.root)().err().unwrap_or(reason));
    Outcome { result, commits }
}

async fn run(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    wanted: &Wanted,
    first: &watch::Sender<bool>,
    place: Place,
    cancel: &CancellationToken,
    commits: &mut BTreeMap<CommitId, Fetched>,
) -> Result<(), Reason> {
    let root = (shared.root)()?;
    shared.git.settle(&root).await?;
    let meta = entry.state().meta.clone();
    let mut visit = Visit {
        git: shared.git.clone(),
        credentials: Credentials::of(&shared.config(), &meta.trust),
        ls_refs: shared.ls_refs.clone(),
        url: entry.url.clone(),
        folder: entry.folder.clone(),
        paths: Paths::new(&root, &entry.folder),
        store: StorePaths::new(&root, &name_of(&meta.trust, &entry.url)),
        protocols: shared.config().protocols.clone(),
        redirects: meta.declared,
        deadline: std::time::Instant::now() + shared.config().fetch_within,
        cancel: cancel.clone(),
        progress: entry.progress.clone(),
        root,
    };
    let safe = visit.inspect().await?;
    let asked_at = shared.now();
    let listing = visit.list(wanted, safe.as_deref()).await?;
    // A pool that was exchanged has lost it.
    let current = entry.current().filter(|pin| pin.path().is_dir());
    let (unchanged, missing) = compare(shared, entry, &listing, current.as_ref()).await?;
    if unchanged && missing.extra.is_empty() && wanted.commits.is_empty() && !drops_pins(entry, &listing, wanted) {
        update_pins(entry, &listing, wanted, asked_at);
        return record(shared, entry, &visit, listing.head, asked_at, false).await;
    }
    let writer = begin(shared, entry, &mut visit, &listing, place).await?;
    if current.is_none() && !visit.has_store() && listing.followed >= FIRST_REFS_MIN && names_refs(&listing) {
        bring_first(shared, entry, &visit, &listing, wanted, asked_at, safe.as_deref()).await?;
        first.send_replace(true);
        shared.tick();
    }
    let current = entry.current().filter(|pin| pin.path().is_dir());
    let come = bring(shared, entry, &visit, &missing, unchanged, safe.as_deref()).await?;
    let mut objects_came = come == Come::Whole;
    for commit in &wanted.commits {
        let fetched = visit.fetch_commit(*commit, safe.as_deref()).await;
        objects_came |= fetched == Fetched::Here;
        commits.insert(*commit, fetched);
    }
    let dropped = update_pins(entry, &listing, wanted, asked_at);
    if !dropped.is_empty() {
        visit.unpin(&dropped).await.map_err(|error| error.reason(entry.url.key(), "forgetting pull requests"))?;
    }
    let fetched = come != Come::Nothing || objects_came;
    if fetched || !dropped.is_empty() || current.is_none() {
        let first = entry.state().meta.first_snapshot;
        let published = visit.publish(listing.head.clone(), current, objects_came, first).await?;
        adopt(entry, published);
    }
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
    visit.begin_store().await.map_err(reason)?;
    visit.fetch_first(listing, safe).await.map_err(reason)?;
    update_pins(entry, listing, wanted, asked_at);
    let least = entry.state().meta.first_snapshot;
    let published = visit.publish(listing.head.clone(), None, true, least).await?;
    entry.state().meta.partial_at = Some(asked_at);
    adopt(entry, published);
    entry.state().ephemeral = false;
    shared.save(entry).await
}

/// The right to write to the store, and what goes with it.
struct Writer {
    _turn: Turn,
    _place: Place,
    _claim: Option<Claim>,
}

/// Finds the repository's store, and waits for its turn there. Who waits gives its place to others.
async fn begin(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    visit: &mut Visit,
    listing: &Listing,
    place: Place,
) -> Result<Writer, Reason> {
    drop(place);
    let trust = entry.state().meta.trust.clone();
    let (name, claim) = choose(shared, entry, &listing.tips).await?;
    let store = shared.stores.get(&name);
    let ready = async { (store.turn().await, shared.places.take(&entry.url).await) };
    let (turn, place) = match visit.cancel.run_until_cancelled(ready).await {
        Some((turn, Some(place))) => (turn, place),
        _ => return Err(stopping(&entry.url)),
    };
    {
        let mut state = entry.state();
        if state.meta.trust != trust || state.meta.store.as_ref().is_some_and(|store| *store != name) {
            let message = format!("{} changed its trust class meanwhile; ask again", entry.url);
            return Err(Reason::new(Code::UpstreamTimeout, entry.url.key(), message));
        }
        state.meta.store = Some(name.clone());
    }
    let root = (shared.root)()?;
    visit.store = StorePaths::new(&root, &name);
    // Others had their time; this one's begins now.
    visit.deadline = std::time::Instant::now() + shared.config().fetch_within;
    Ok(Writer { _turn: turn, _place: place, _claim: claim })
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
    missing: &Listing,
    unchanged: bool,
    safe: Option<&SafeDirectory>,
) -> Result<Come, Reason> {
    let reason = |error: GitError| error.reason(entry.url.key(), &format!("fetching {}", entry.url));
    let whole = async || {
        visit.fill(missing.head.as_ref(), safe).await?;
        if missing.extra.is_empty() { Ok(()) } else { visit.fetch_extra(missing, safe).await }
    };
    let generation = visit.store.generation();
    if !visit.has_store() {
        whole().await.map_err(reason)?;
        entry.state().meta.generation = visit.store.generation();
        return Ok(Come::Whole);
    }
    // A store that was made anew, or that this repository joins, has not its refs yet.
    let joined = generation.is_some() && entry.state().meta.generation == generation;
    let done = match (unchanged && joined, missing.extra.is_empty()) {
        (true, true) => return Ok(Come::Nothing),
        (true, false) => visit.fetch_extra(missing, safe).await,
        (false, _) => visit.fetch(missing, safe).await,
    };
    match done {
        Ok(()) => {
            entry.state().meta.generation = generation;
            Ok(Come::Refs)
        }
        Err(error) if error.is_store_damage() => {
            tracing::error!(repository = entry.url.key(), %error, "the store is damaged: it is cloned anew");
            entry.state().quarantined = true;
            shared.tick();
            shared.discard(visit.store.git()).await?;
            whole().await.map_err(reason)?;
            entry.state().meta.generation = visit.store.generation();
            Ok(Come::Whole)
        }
        Err(error) => Err(reason(error)),
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
fn adopt(entry: &Entry, published: Option<(SnapshotPin, usize)>) {
    let Some((pin, refs)) = published else { return };
    let mut state = entry.state();
    state.refs = u64::try_from(refs).unwrap_or(u64::MAX);
    if let Some(old) = state.current.replace(pin) {
        state.superseded.push((old, Instant::now()));
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
    let meta = {
        let mut state = entry.state();
        state.meta.head = head;
        state.meta.confirmed_at = Some(asked_at);
        state.meta.partial_at = None;
        state.meta.failures = 0;
        state.meta.error = None;
        if fetched {
            state.meta.last_fetch_at = Some(shared.now());
        }
        state.meta.clone()
    };
    if !fetched {
        return Ok(());
    }
    let (measured, paths, root) = (Arc::clone(entry), visit.paths.clone(), visit.root.clone());
    let written = blocking(entry.url.key(), move || {
        measured.measure(&root);
        meta.write(&paths.meta(), true)
    });
    written.await?.map_err(|error| io_reason(entry.url.key(), "writing what is known", &error))
}
