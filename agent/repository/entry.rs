//! One repository at work: its state, and the one serial task that changes its store.
//!
//! Requests join the batch that waits; the task takes it when a place among the parallel fetches is free, so that all
//! that came meanwhile is served by one visit to upstream. Callers wait beside the task: one that gives up ends nothing.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stoker_core::identity::CommitId;
use stoker_core::quantity::Timestamp;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::{Fetched, RepositoryUrl};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::backoff::backoff;
use super::disk::{Paths, StorePaths, used_bytes};
use super::listing::Wanted;
use super::meta::Meta;
use super::progress::Progress;
use super::read::{count_objects, count_packs};
use super::snapshot::SnapshotPin;
use super::view::{RepositoryState, View};
use super::visit::visit;
use crate::node::jittered;

/// How many batches may wait.
const BATCHES_MAX: usize = 64;

/// What came of one visit to upstream.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) result: Result<(), Reason>,
    /// Of the commits that were wanted by their name.
    pub(super) commits: BTreeMap<CommitId, Fetched>,
}

/// A place in a batch.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    url: RepositoryUrl,
    done: watch::Receiver<Option<Arc<Outcome>>>,
    first: watch::Receiver<bool>,
}

impl Ask {
    /// Until the refs that it named are here, or it is known that they cannot be; more may still be fetched then.
    pub(super) async fn wait_for_refs(self, deadline: Instant) -> Result<(), Reason> {
        let mut first = self.first.clone();
        let first = async {
            if first.wait_for(|here| *here).await.is_err() {
                // The visit is over without: its outcome tells.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = first => Ok(()),
            outcome = self.wait(deadline) => outcome?.result.clone(),
        }
    }

    /// What came of it.
    pub(super) async fn wait(mut self, deadline: Instant) -> Result<Arc<Outcome>, Reason> {
        match timeout_at(deadline, self.done.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone().ok_or_else(|| stopping(&self.url)),
            Ok(Err(_)) => Err(stopping(&self.url)),
            Err(_) => {
                let message = format!("{} is being fetched and was not done in time; it goes on: ask again", self.url);
                Err(Reason::new(Code::UpstreamTimeout, self.url.key(), message))
            }
        }
    }
}

pub(super) fn stopping(url: &RepositoryUrl) -> Reason {
    Reason::new(
        Code::UpstreamUnreachable,
        url.key(),
        format!("{url} is no longer fetched: it was removed or the agent stops"),
    )
}

struct Batch {
    wanted: Wanted,
    done: watch::Sender<Option<Arc<Outcome>>>,
    /// The refs that were named are here.
    first: watch::Sender<bool>,
}

/// What is known of a repository.
pub(super) struct State {
    pub(super) meta: Meta,
    /// Added for a request that is not answered yet: goes again when that fails.
    pub(super) ephemeral: bool,
    pub(super) busy: bool,
    /// Its files are being moved away: nobody begins it anew yet.
    pub(super) removing: bool,
    pub(super) quarantined: bool,
    /// The store is being mended, and why.
    pub(super) healing: Option<Reason>,
    /// How often each step mended it.
    pub(super) heals: BTreeMap<&'static str, u64>,
    /// When the cheap check last looked.
    pub(super) checked_at: Option<Instant>,
    /// Imports and thorough checks at work, beside the serial task.
    pub(super) beside: usize,
    pub(super) current: Option<SnapshotPin>,
    /// With the time since when each is not the newest.
    pub(super) superseded: Vec<(SnapshotPin, Instant)>,
    pub(super) next_refresh: Option<(Instant, Timestamp)>,
    /// What is wrong with the lists that lie in it.
    pub(super) faults: Vec<Reason>,
    pub(super) disk_bytes: u64,
    pub(super) objects: u64,
    pub(super) refs: u64,
    pub(super) packs: usize,
    /// The last use that a restart would know.
    pub(super) used_saved_at: Option<Timestamp>,
    batches: VecDeque<Batch>,
}

impl State {
    /// See [`Entry::is_filled`].
    pub(super) fn is_filled(&self) -> bool {
        self.current.is_some() && self.meta.partial_at.is_none()
    }

    /// No snapshot that there is so far is of the class that the next ones are of.
    pub(super) fn begin_numbers_anew(&mut self) {
        let numbers = self.superseded.iter().map(|(pin, _)| pin).chain(&self.current).map(SnapshotPin::number);
        let next = numbers.max().map_or(0, |last| last.saturating_add(1));
        self.meta.first_snapshot = self.meta.first_snapshot.max(next);
    }

    /// Whether somebody waits for a visit.
    pub(super) fn waits(&self) -> bool {
        !self.batches.is_empty()
    }

    /// Snapshots that somebody else holds, and how many hold them.
    fn holders(&self) -> (usize, usize) {
        let pins = self.current.iter().chain(self.superseded.iter().map(|(pin, _)| pin));
        let held = pins.map(SnapshotPin::others).filter(|others| *others > 0);
        held.fold((0, 0), |(snapshots, all), others| (snapshots + 1, all + others))
    }

    /// Whether a visit is under way or about to be for a request: what wakes all repositories need not wake this one,
    /// and when it is next visited follows from that visit.
    pub(super) const fn is_asked_for(&self) -> bool {
        self.busy || self.ephemeral
    }
}

/// A repository.
pub(super) struct Entry {
    pub(super) url: RepositoryUrl,
    pub(super) folder: String,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) stop: CancellationToken,
    /// Cancelled when the task is over.
    pub(super) ended: CancellationToken,
    state: Mutex<State>,
    /// Held while what is known is written: a newer word is never replaced by an older one.
    writing: Mutex<()>,
    wake: Notify,
}

impl Entry {
    /// Writes what is known, as it is when its turn comes. Blocks on the disk.
    pub(super) fn write(&self, paths: &Paths, durable: bool) -> io::Result<()> {
        let _turn = super::lock(&self.writing);
        let meta = self.state().meta.clone();
        meta.write(paths, durable)
    }

    pub(super) fn new(meta: Meta, ephemeral: bool, stop: CancellationToken) -> Self {
        let state = State {
            meta: meta.clone(),
            ephemeral,
            busy: false,
            removing: false,
            quarantined: false,
            healing: None,
            heals: BTreeMap::new(),
            checked_at: None,
            beside: 0,
            current: None,
            superseded: Vec::new(),
            next_refresh: None,
            faults: Vec::new(),
            disk_bytes: 0,
            objects: 0,
            refs: 0,
            packs: 0,
            used_saved_at: None,
            batches: VecDeque::new(),
        };
        Self {
            folder: meta.url.folder().to_string(),
            url: meta.url,
            progress: watch::Sender::new(Progress::default()),
            stop,
            ended: CancellationToken::new(),
            state: Mutex::new(state),
            writing: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// A poisoned lock guards a state that is still whole: changes are assignments.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was filled, and not only with what somebody waited for.
    pub(super) fn is_filled(&self) -> bool {
        self.state().is_filled()
    }

    pub(super) fn current(&self) -> Option<SnapshotPin> {
        self.state().current.clone()
    }

    /// Joins the batch that waits.
    pub(super) fn ask(&self, wanted: Wanted) -> Result<Ask, Reason> {
        let mut state = self.state();
        if self.stop.is_cancelled() {
            return Err(stopping(&self.url));
        }
        if state.batches.back().is_none_or(|batch| batch.wanted.is_full()) {
            if state.batches.len() >= BATCHES_MAX {
                let message = format!("too many requests wait for {}; ask again later", self.url);
                return Err(Reason::new(Code::UpstreamTimeout, self.url.key(), message));
            }
            state.batches.push_back(Batch {
                wanted: Wanted::default(),
                done: watch::Sender::new(None),
                first: watch::Sender::new(false),
            });
        }
        let Some(batch) = state.batches.back_mut() else { return Err(stopping(&self.url)) };
        batch.wanted.merge(wanted);
        let (done, first) = (batch.done.subscribe(), batch.first.subscribe());
        drop(state);
        self.wake.notify_one();
        Ok(Ask { url: self.url.clone(), done, first })
    }

    /// Asks upstream after `pause`, give or take a fifth, unless something makes it do so sooner.
    pub(super) fn refresh_in(&self, pause: Duration, now: Timestamp) {
        let pause = jittered(pause);
        let millis = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
        self.state().next_refresh = Some((Instant::now() + pause, Timestamp(now.0.saturating_add(millis))));
        self.wake.notify_one();
    }

    /// Measures what it holds on disk. Blocks.
    pub(super) fn measure(&self, root: &Path) {
        let store = self.state().meta.store.as_deref().map(|name| StorePaths::new(root, name).folder);
        let snapshots = Paths::new(root, &self.folder).snapshots();
        let trees: Vec<PathBuf> = store.into_iter().chain([snapshots]).collect();
        let bytes = used_bytes(&trees);
        let objects = self.current().map_or(0, |pin| count_objects(pin.path()));
        let packs = self.current().map_or(0, |pin| count_packs(pin.path()));
        let mut state = self.state();
        (state.disk_bytes, state.objects, state.packs) = (bytes, objects, packs);
    }

    pub(super) fn view(&self) -> View {
        let state = self.state();
        let meta = &state.meta;
        let busy = state.busy || state.beside > 0;
        let here = match (busy, state.is_filled()) {
            _ if state.quarantined => RepositoryState::Quarantined,
            (true, false) => RepositoryState::Filling,
            (true, true) => RepositoryState::Fetching,
            (false, false) => RepositoryState::Empty,
            (false, true) if meta.error.is_some() => RepositoryState::Stale,
            (false, true) => RepositoryState::Ready,
        };
        let mut reasons: Vec<Reason> = state.healing.iter().chain(meta.error.iter()).cloned().collect();
        if let Some(evicted) = meta.evicted.filter(|_| state.current.is_none()) {
            let message = format!(
                "{} was evicted for want of room ({}); it is filled again when somebody asks for it: raise \
                 `repositories.limit` or pin it to keep it",
                meta.url,
                evicted.code.word()
            );
            reasons.push(Reason::new(Code::RepositoryEvicted, meta.url.key(), message));
        } else if !state.is_filled()
            && meta.declared
            && !reasons.iter().any(|reason| reason.code == Code::RepositoryEmpty)
        {
            let message = format!("the mirror of {} never filled", meta.url);
            reasons.push(Reason::new(Code::RepositoryEmpty, meta.url.key(), message));
        }
        reasons.extend(state.faults.iter().cloned());
        let (snapshots_in_use, holders) = state.holders();
        View {
            url: meta.url.clone(),
            state: here,
            declared: meta.declared,
            declared_by: meta.declared_by.clone(),
            submodules: meta.submodules,
            pinned: meta.pinned,
            trust: meta.trust.clone(),
            disk_bytes: state.disk_bytes,
            objects: state.objects,
            refs: state.refs,
            head: meta.head.as_ref().map(ToString::to_string).unwrap_or_default(),
            last_fetch_at: meta.last_fetch_at,
            next_refresh_at: state.next_refresh.map(|(_, at)| at),
            confirmed_at: meta.confirmed_at,
            snapshot: state.current.as_ref().map(|pin| pin.name().to_owned()).unwrap_or_default(),
            snapshots: state.superseded.len() + usize::from(state.current.is_some()),
            reasons,
            progress: busy.then(|| self.progress.borrow().clone()),
            hits: meta.hits,
            misses: meta.misses,
            folder: self.folder.clone(),
            failures: meta.failures,
            store: meta.store.clone().unwrap_or_default(),
            stale: meta.stale,
            filled: state.is_filled(),
            heals: state.heals.clone(),
            packs: state.packs,
            last_used_at: meta.last_used_at,
            evicted: meta.evicted.filter(|_| state.current.is_none()),
            snapshots_in_use,
            holders,
            shares_store_with: 0,
            last_upkeep: None,
            upkeep_skipped: None,
        }
    }
}

/// The serial task of one repository, until it is told to stop. A visit that runs then is ended in order: its git child
/// is stopped, and nothing is written after this task is over.
pub(super) async fn work(shared: Arc<Shared>, entry: Arc<Entry>) {
    // Cancelled also when this task is dropped or panics, for others wait for it.
    let _ended = entry.ended.clone().drop_guard();
    while !entry.stop.is_cancelled() {
        serve_next(&shared, &entry).await;
    }
    // Whoever still waits is told by the closing of the channel.
    entry.state().batches.clear();
}

async fn serve_next(shared: &Arc<Shared>, entry: &Arc<Entry>) {
    let (next, waits) = {
        let state = entry.state();
        (state.next_refresh.map(|(at, _)| at), !state.batches.is_empty())
    };
    if !waits {
        tokio::select! {
            () = entry.stop.cancelled() => {}
            () = entry.wake.notified() => {}
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                // What was evicted meanwhile is not asked for.
                let due = entry.state().next_refresh.is_some_and(|(at, _)| at <= Instant::now());
                if due {
                    // The answer is for nobody but the state.
                    let _ = entry.ask(Wanted::default());
                }
            }
        }
        return;
    }
    let Some(Some(place)) = entry.stop.run_until_cancelled(shared.places.take(&entry.url)).await else { return };
    let batch = {
        let mut state = entry.state();
        state.next_refresh = None;
        let batch = state.batches.pop_front();
        state.busy = batch.is_some();
        batch
    };
    let Some(batch) = batch else { return };
    shared.tick();
    let outcome = visit(shared, entry, &batch.wanted, &batch.first, place).await;
    entry.progress.send_replace(Progress::default());
    settle(shared, entry, &outcome);
    let ephemeral = entry.state().ephemeral;
    // Where the pool went meanwhile that was told.
    if !ephemeral
        && let Err(reason) = shared.note(entry).await
        && reason.code != Code::PoolNotReady
    {
        tracing::warn!(repository = entry.url.key(), "{}", reason.message);
    }
    // Nothing stays of an upstream that is not there, unless somebody else waits for it.
    let came_to_nothing = outcome.result.is_err() && {
        let state = entry.state();
        is_nothing(&state)
    };
    if came_to_nothing {
        if let Err(reason) = shared.leave_store(entry).await {
            tracing::warn!(repository = entry.url.key(), "{}", reason.message);
        }
        shared.forget(entry, is_nothing);
    }
    batch.done.send_replace(Some(Arc::new(outcome)));
    shared.tick();
}

/// Whether nobody would miss it: added for a request alone, never filled, and nobody waits or works for it.
fn is_nothing(state: &State) -> bool {
    state.ephemeral && state.current.is_none() && state.batches.is_empty() && state.beside == 0
}

/// Counts failures, and decides when to ask upstream next.
fn settle(shared: &Shared, entry: &Entry, outcome: &Outcome) {
    let now = shared.now();
    let word = outcome.result.as_ref().map_or_else(|reason| reason.code.word(), |()| "fetched");
    *super::lock(&shared.outcomes).entry(word).or_default() += 1;
    let (pause, failures) = {
        let mut state = entry.state();
        state.busy = false;
        let keeps = state.meta.declared || (!state.is_filled() && !state.ephemeral);
        let pause = match &outcome.result {
            Ok(()) => {
                state.quarantined = false;
                state.ephemeral = false;
                state.meta.failures = 0;
                state.meta.error = None;
                state.meta.declared.then_some(shared.config().refresh)
            }
            Err(reason) => {
                state.meta.failures = state.meta.failures.saturating_add(1);
                state.meta.error = Some(reason.clone());
                tracing::warn!(repository = entry.url.key(), reason = reason.code.word(), "{}", reason.message);
                keeps.then(|| backoff(state.meta.failures))
            }
        };
        (pause, state.meta.failures)
    };
    // What was stopped tells nothing of upstream.
    if !entry.stop.is_cancelled() {
        shared.note_visit(entry.url.key(), &outcome.result, failures);
    }
    if let Some(pause) = pause {
        entry.refresh_in(pause, now);
    }
}
