//! One visit to upstream, from the question what it has to the published snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use stoker_core::identity::CommitId;
use stoker_core::quantity::Timestamp;
use stoker_core::reason::Reason;
use stoker_core::source::Fetched;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::disk::{Paths, io_reason};
use super::fetch::{Visit, blocking};
use super::git::GitError;
use super::listing::{Head, Listing, Wanted};
use super::local::SafeDirectory;
use super::meta::Pin;
use super::snapshot::SnapshotPin;
use super::store::{Entry, Outcome};

/// Serves one batch.
pub(super) async fn visit(shared: &Arc<Shared>, entry: &Arc<Entry>, wanted: &Wanted) -> Outcome {
    let mut commits = BTreeMap::new();
    let cancel = entry.stop.child_token();
    let result = {
        let mut work = Box::pin(run(shared, entry, wanted, &cancel, &mut commits));
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
    cancel: &CancellationToken,
    commits: &mut BTreeMap<CommitId, Fetched>,
) -> Result<(), Reason> {
    let root = (shared.root)()?;
    let paths = Paths::new(&root, &entry.folder);
    let visit = Visit {
        git: shared.git.clone(),
        ls_refs: shared.ls_refs.clone(),
        url: entry.url.clone(),
        folder: entry.folder.clone(),
        paths: paths.clone(),
        protocols: shared.config().protocols.clone(),
        redirects: entry.state().meta.declared,
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
    let come = bring(shared, entry, &visit, &listing, current.as_ref(), safe.as_deref()).await?;
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
        let published = visit.publish(listing.head.clone(), current, objects_came).await?;
        adopt(entry, published);
    }
    record(shared, entry, &paths, listing.head, asked_at, fetched).await
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
    listing: &Listing,
    current: Option<&SnapshotPin>,
    safe: Option<&SafeDirectory>,
) -> Result<Come, Reason> {
    let reason = |error: GitError| error.reason(entry.url.key(), &format!("fetching {}", entry.url));
    let whole = async || {
        visit.fill(listing.head.as_ref(), safe).await?;
        if listing.extra.is_empty() { Ok(()) } else { visit.fetch_extra(listing, safe).await }
    };
    if !visit.has_store() {
        return whole().await.map(|()| Come::Whole).map_err(reason);
    }
    let (unchanged, missing) = compare(shared, entry, listing, current).await?;
    let done = match (unchanged, missing.extra.is_empty()) {
        (true, true) => return Ok(Come::Nothing),
        (true, false) => visit.fetch_extra(&missing, safe).await,
        (false, _) => visit.fetch(&missing, safe).await,
    };
    match done {
        Ok(()) => Ok(Come::Refs),
        Err(error) if error.is_store_damage() => {
            tracing::error!(repository = entry.url.key(), %error, "the store is damaged: it is cloned anew");
            entry.state().quarantined = true;
            shared.tick();
            shared.discard(visit.paths.store()).await?;
            whole().await.map(|()| Come::Whole).map_err(reason)
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
    paths: &Paths,
    head: Option<Head>,
    asked_at: Timestamp,
    fetched: bool,
) -> Result<(), Reason> {
    let meta = {
        let mut state = entry.state();
        state.meta.head = head;
        state.meta.confirmed_at = Some(asked_at);
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
    let (measured, paths) = (Arc::clone(entry), paths.clone());
    let written = blocking(entry.url.key(), move || {
        measured.measure(&paths);
        meta.write(&paths.meta(), true)
    });
    written.await?.map_err(|error| io_reason(entry.url.key(), "writing what is known", &error))
}
