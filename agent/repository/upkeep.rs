//! Upkeep of stores: looks at the packs, asks the core, runs git while nobody waits, publishes what came of it.
//!
//! All of it holds the store's turn, so fetch, upkeep and publication stay one after the other. A fetch that comes
//! waits no longer than git takes to end on SIGTERM: then upkeep has left its place, the store is as it was before, and
//! the work comes again later; after some periods in which it was always disturbed it gives way no more
//! ([`stoker_core::upkeep::store::insists`]). Objects that no ref reaches stay for a grace in a cruft pack
//! (git-repack(1)), and in snapshots for as long as those are there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stoker_core::quantity::{Span, Timestamp};
use stoker_core::reason::{Code, Reason};
use stoker_core::upkeep::store::{self as core, Plan, Policy, Repack, WriteGraph, insists};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::check::snapshot;
use super::disk::{Paths, StorePaths, io_reason, names, replace};
use super::entry::Entry;
use super::fetch::blocking;
use super::git::{Command, GitError};
use super::packs::{clean, observe, packs_of, touch_packs};
use super::refs::{RefTable, is_followed};
use super::snapshot::{Publication, SnapshotPin};
use super::store::{Store, Suspicion, Turn};
use super::{NeededCommits, Repositories, Shared, lock};
use crate::config;

/// How long one git command of upkeep may take.
const REPACK_WITHIN: Duration = Duration::from_secs(6 * 3600);
/// After failures in a row the periods double, so many times at most.
const DOUBLINGS_MAX: u32 = 6;
/// How long it waits to come back to a store at which it gave way, or had no turn: a part of the period.
const COME_BACK_PARTS: u32 = 10;

/// What upkeep last did to a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUpkeep {
    /// When it ended.
    pub at: Timestamp,
    /// In words: `full repack, commit-graph`.
    pub what: String,
    /// How long it took.
    pub took: Span,
    /// Packs before and after.
    pub packs: (usize, usize),
}

/// What is remembered of a store's upkeep: `<store>/upkeep`, JSON.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) repacked_at: Option<Timestamp>,
    pub(super) full_at: Option<Timestamp>,
    /// Git leaves the graph's files alone where no commit is new.
    pub(super) graph_at: Option<Timestamp>,
    last: Option<LastUpkeep>,
}

impl Record {
    /// One that cannot be read says nothing: upkeep comes a little early.
    fn read(file: &Path) -> Self {
        fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn write(&self, file: &Path) -> io::Result<()> {
        replace(file, &serde_json::to_vec(self).map_err(io::Error::other)?, false)
    }
}

/// What is known of a store's upkeep while the agent runs.
#[derive(Debug, Default, Clone)]
pub(super) struct Known {
    pub(super) last: Option<LastUpkeep>,
    /// What was due and had no room.
    pub(super) skipped: Option<Reason>,
    /// How often it gave way to a fetch, since the start.
    pub(super) gave_way: u64,
    /// Since when something is due that was not done.
    due: Option<Timestamp>,
    not_before: Option<Instant>,
    failures: u32,
}

impl Repositories {
    /// Begins upkeep, eviction and the read-only path. Nothing is evicted before `holders` ends: when all who hold
    /// snapshots from before the start have them again. Commits that are `needed` stay; none is forgotten before that is
    /// known. To be called once.
    pub fn start_upkeep(
        &self,
        holders: impl Future<Output = ()> + Send + 'static,
        needed: watch::Receiver<Option<NeededCommits>>,
    ) {
        let shared = &self.shared;
        let _ = shared.needed_commits.set(needed);
        shared.tasks.spawn(keep_up_always(Arc::clone(shared)));
        shared.tasks.spawn(super::evict::watch_disk(Arc::clone(shared), holders));
        shared.tasks.spawn(super::paths::keep_always(Arc::clone(shared)));
    }

    /// How often upkeep gave way to fetches that waited, since the start.
    #[must_use]
    pub fn upkeep_gave_way(&self) -> u64 {
        let known =
            self.shared.store_names().into_iter().map(|name| lock(&self.shared.stores.get(&name).known).gave_way);
        known.fold(0, u64::saturating_add)
    }
}

async fn keep_up_always(shared: Arc<Shared>) {
    loop {
        let every = shared.config().upkeep.every;
        let pause = (every / COME_BACK_PARTS).clamp(Duration::from_millis(100), Duration::from_secs(60));
        if shared.cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        // One after the other: upkeep takes the processor and the disk of one store at a time.
        for name in shared.store_names() {
            let due = lock(&shared.stores.get(&name).known).not_before.is_none_or(|at| at <= Instant::now());
            if due
                && !shared.cancel.is_cancelled()
                && let Err(reason) = keep_up(&shared, &name).await
            {
                tracing::warn!(store = name, reason = reason.code.word(), "upkeep: {}", reason.message);
                shared.tick();
            }
        }
    }
}

/// Looks at one store, and does what it needs.
async fn keep_up(shared: &Arc<Shared>, name: &str) -> Result<(), Reason> {
    let root = (shared.pool.root)()?;
    let store = shared.stores.get(name);
    let config = shared.config().upkeep;
    let due = lock(&store.known).due;
    let insist = due.is_some_and(|due| insists(due, shared.now(), span(config.every)));
    let turn = match (store.try_turn(), insist) {
        (Some(turn), _) => turn,
        // In the order of asking: behind those that wait, before those that come.
        (None, true) => match shared.cancel.run_until_cancelled(store.turn()).await {
            Some(turn) => turn,
            None => return Ok(()),
        },
        (None, false) => {
            postpone(shared, &store, config.every / COME_BACK_PARTS, true);
            return Ok(());
        }
    };
    let job = Job { shared, name, paths: StorePaths::new(&root, name), store: &store, config };
    // What may be damaged is mended first, by the next visit.
    if !job.paths.has_store() || store.suspicion().is_some() {
        return Ok(());
    }
    let done = job.run(insist, turn).await;
    {
        let mut known = lock(&store.known);
        known.failures = if done.is_err() { known.failures.saturating_add(1) } else { 0 };
        let pause = match &done {
            Ok(End::Done) => {
                known.due = None;
                config.every
            }
            Ok(End::GaveWay) => {
                known.gave_way = known.gave_way.saturating_add(1);
                known.due.get_or_insert(shared.now());
                config.every / COME_BACK_PARTS
            }
            Err(_) => config.every.saturating_mul(1 << known.failures.min(DOUBLINGS_MAX)),
        };
        known.not_before = Some(Instant::now() + pause);
    }
    done.map(|_| ())
}

fn postpone(shared: &Shared, store: &Store, pause: Duration, due: bool) {
    let mut known = lock(&store.known);
    known.not_before = Some(Instant::now() + pause);
    if due {
        known.due.get_or_insert(shared.now());
    }
}

fn span(duration: Duration) -> Span {
    Span(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

/// How upkeep of one store ended.
enum End {
    Done,
    GaveWay,
}

/// Upkeep of one store.
struct Job<'a> {
    shared: &'a Arc<Shared>,
    name: &'a str,
    paths: StorePaths,
    store: &'a Store,
    config: config::Upkeep,
}

impl Job<'_> {
    async fn run(&self, insist: bool, turn: Turn) -> Result<End, Reason> {
        self.clean().await?;
        let (git, file, measure) = (self.paths.git(), self.record_file(), Arc::clone(&self.shared.pool.measure));
        let looked = blocking(self.name, move || {
            let record = Record::read(&file);
            let facts = observe(&git, &record)?;
            Ok::<_, io::Error>((record, facts, measure()))
        });
        let (mut record, facts, space) = looked.await?.map_err(|error| self.failed("looking at the store", &error))?;
        lock(&self.store.known).last.clone_from(&record.last);
        // What cannot be measured has no room for a second copy.
        let spare = space.map_or(0, super::Space::spare);
        let policy = Policy { every: span(self.config.every), full_every: span(self.config.full_every) };
        let plan = core::decide(&facts, &policy, self.shared.now(), spare);
        self.tell_skipped(&plan, spare);
        if plan.is_empty() {
            if let Some(need) = self.shared.need()
                && self.members().iter().any(|(entry, _)| need.has_passed_for_some(entry))
            {
                let settled = self.settle(&self.shared.cancel.child_token()).await;
                settled
                    .map_err(|error| error.reason(self.name, &format!("forgetting commits of store {}", self.name)))?;
            }
            // What an earlier pass could not publish.
            self.publish(holds_other_packs).await?;
            return Ok(End::Done);
        }
        let began = Instant::now();
        let cancel = self.shared.cancel.child_token();
        let lost = self.shared.presence.token();
        let mut waiting = self.store.waiting();
        let work = self.work(&plan, &cancel);
        tokio::pin!(work);
        let worked = tokio::select! {
            biased;
            worked = &mut work => worked,
            () = lost.cancelled() => {
                cancel.cancel();
                work.await
            }
            // The value that it gives holds a lock.
            () = async { waiting.wait_for(|count| *count > 0).await.map(drop).unwrap_or_default() }, if !insist => {
                cancel.cancel();
                work.await
            }
        };
        if cancel.is_cancelled() || worked.is_err() {
            self.clean().await?;
        }
        match worked {
            Ok(()) => {}
            Err(GitError::Cancelled) => {
                tracing::debug!(store = self.name, took = ?began.elapsed(), "upkeep gave way");
                return Ok(End::GaveWay);
            }
            Err(error) => return Err(error.reason(self.name, &format!("upkeep of store {}", self.name))),
        }
        self.publish(|_, _| true).await?;
        self.record(&plan, &mut record, facts.packs.len(), span(began.elapsed())).await?;
        drop(turn);
        Ok(End::Done)
    }

    fn record_file(&self) -> PathBuf {
        self.paths.folder.join("upkeep")
    }

    fn failed(&self, doing: &str, error: &io::Error) -> Reason {
        io_reason(self.name, &format!("{doing} {}", self.name), error)
    }

    fn tell_skipped(&self, plan: &Plan, spare: u64) {
        let reason = plan.skipped.map(|(repack, needs)| {
            let message = format!(
                "a {} of store {} needs {needs} bytes above the pool's floor and what leases hold, {spare} are there; it \
                 is done when there is room",
                repack.word(),
                self.name
            );
            Reason::new(Code::DiskFloor, self.name, message)
                .about(stoker_core::quantity::Resource::DiskBytes, needs, spare)
        });
        let mut known = lock(&self.store.known);
        if let Some(reason) = reason.as_ref().filter(|_| known.skipped.is_none()) {
            tracing::warn!(store = self.name, reason = reason.code.word(), "{}", reason.message);
        }
        known.skipped = reason;
    }

    /// Runs git. What the store's refs name is what the snapshots name, before anything may go.
    async fn work(&self, plan: &Plan, cancel: &CancellationToken) -> Result<(), GitError> {
        self.settle(cancel).await?;
        // Before objects go, the graph lets go of them: whatever ends this in between, it names none that is not there.
        if plan.graph == Some(WriteGraph::Replace) {
            self.write_graph("--split=replace", cancel).await?;
        }
        match plan.repack {
            Some((Repack::Full, _)) => {
                if !self.config.grace.is_zero() {
                    let git = self.paths.git();
                    on_disk(move || touch_packs(&git)).await?;
                }
                let expiry = match self.config.grace.as_secs() {
                    0 => "--cruft-expiration=now".to_owned(),
                    seconds => format!("--cruft-expiration={seconds}.seconds.ago"),
                };
                let args = ["repack", "--cruft", &expiry, "-d", "-n", "-q", "--write-bitmap-index"];
                self.git(args, cancel).run_in_store(&self.paths.git()).await?;
            }
            Some((Repack::Geometric, _)) => {
                let factor = format!("--geometric={}", core::FACTOR);
                let args = ["repack", &factor, "-d", "-n", "-q", "--write-midx", "--write-bitmap-index"];
                self.git(args, cancel).run_in_store(&self.paths.git()).await?;
            }
            None => {}
        }
        match plan.graph {
            Some(WriteGraph::Add) => self.write_graph("--split", cancel).await,
            _ => Ok(()),
        }
    }

    async fn write_graph(&self, split: &str, cancel: &CancellationToken) -> Result<(), GitError> {
        let args = ["commit-graph", "write", "--reachable", "--changed-paths", split, "--no-progress"];
        self.git(args, cancel).run_in_store(&self.paths.git()).await.map(drop)
    }

    /// A git command in the store, by no path (see `Visit::inside`), with bounded threads and memory: half of it for the
    /// windows of all threads, a quarter each for what deltas keep and for mapped packs.
    fn git<const N: usize>(&self, args: [&str; N], cancel: &CancellationToken) -> Command {
        let (memory, threads) = (self.config.memory_bytes, self.config.threads.max(1));
        let window = memory / 2 / u64::try_from(threads).unwrap_or(1);
        self.shared
            .git
            .command(args)
            .git_dir(".")
            .work_dir(self.paths.git())
            .config("pack.threads", threads.to_string())
            .config("index.threads", threads.to_string())
            .config("pack.windowMemory", window.to_string())
            .config("pack.deltaCacheSize", (memory / 4).to_string())
            .config("core.packedGitLimit", (memory / 4).to_string())
            .config("core.packedGitWindowSize", (memory / 16).to_string())
            .config("core.deltaBaseCacheLimit", (memory / 8).to_string())
            .low_priority()
            .cancel(cancel.clone())
            .time_limit(REPACK_WITHIN)
    }

    /// Repositories whose refs are in this store, with their newest snapshots.
    fn members(&self) -> Vec<(Arc<Entry>, SnapshotPin)> {
        let generation = self.paths.generation();
        let member = |entry: Arc<Entry>| {
            let state = entry.state();
            let here = state.meta.store.as_deref() == Some(self.name) && state.meta.generation == generation;
            let pin = state.current.clone().filter(|_| here && generation.is_some() && !state.meta.removed);
            drop(state);
            pin.map(|pin| (entry, pin))
        };
        self.shared.all().into_iter().filter_map(member).collect()
    }

    /// Removes what killed git children left. The turn is ours: nobody writes.
    async fn clean(&self) -> Result<(), Reason> {
        let git = self.paths.git();
        let cleaned = blocking(self.name, move || clean(&git)).await?;
        cleaned.map_err(|error| self.failed("cleaning", &error))
    }

    /// Takes back what a failed fetch left in the refs: they name what the snapshots name. Otherwise a branch that moved
    /// without a publication would let objects go that the next snapshot still names. And forgets commits that were
    /// fetched by their name and that nobody needs any more.
    async fn settle(&self, cancel: &CancellationToken) -> Result<(), GitError> {
        self.git(["pack-refs", "--all", "--prune"], cancel).run_in_store(&self.paths.git()).await?;
        let (git, members) = (self.paths.git(), self.members());
        let (need, now) = (self.shared.need(), self.shared.now());
        on_disk(move || {
            let packed = git.join("packed-refs");
            let before = RefTable::read(&packed)?;
            let mut refs = before.rename(|name| Some(name.to_vec()));
            let mut changed = false;
            for (entry, pin) in members {
                let (space, pins) =
                    (format!("refs/namespaces/{}/", entry.folder), format!("refs/pins/{}/", entry.folder));
                if let Some(fewer) = need.as_ref().and_then(|need| need.without_passed(&entry, &refs, now)) {
                    (refs, changed) = (fewer, true);
                }
                let own = |name: &[u8]| {
                    let name = name.strip_prefix(space.as_bytes()).or_else(|| name.strip_prefix(pins.as_bytes()))?;
                    name.starts_with(b"refs/").then(|| name.to_vec())
                };
                let published = pin.refs()?;
                if refs.rename(own).iter().eq(published.iter()) {
                    continue;
                }
                let home = |name: &[u8]| if is_followed(name) { space.as_bytes() } else { pins.as_bytes() };
                let theirs = published.rename(|name| Some([home(name), name].concat()));
                refs = refs.rename(|name| own(name).is_none().then(|| name.to_vec())).join(&theirs);
                changed = true;
            }
            if changed { replace(&packed, &refs.to_file(), true) } else { Ok(()) }
        })
        .await
    }

    /// Publishes new snapshots with the same refs, of the members of which `wanted` says so, so that old packs can go.
    async fn publish(&self, wanted: impl Fn(&SnapshotPin, &BTreeSet<String>) -> bool) -> Result<(), Reason> {
        let pack = self.paths.git().join("objects/pack");
        let here = names(&pack).map_err(|error| self.failed("looking at the packs of", &error))?;
        let here: BTreeSet<String> = here.into_iter().filter(|name| name.ends_with(".pack")).collect();
        let members: Vec<_> = self.members().into_iter().filter(|(_, pin)| wanted(pin, &here)).collect();
        if members.is_empty() {
            return Ok(());
        }
        let root = (self.shared.pool.root)()?;
        for (entry, pin) in members {
            let (member, store, root) = (Arc::clone(&entry), self.paths.git(), root.clone());
            let published = blocking(self.name, move || publish_again(&member, &pin, &store, &root)).await?;
            let new = published.map_err(|error| self.failed("publishing after upkeep of", &error))?;
            let path = new.path().to_owned();
            // What a store lost must not replace what still has it.
            let (looked, reader) = (new.clone(), self.shared.reader.clone());
            let found = blocking(self.name, move || snapshot(&looked, &reader, usize::MAX)).await?;
            if let Some(first) = found.map_err(|error| self.failed("looking at a snapshot of", &error))?.first() {
                self.shared.reader.forget(&path);
                self.shared.discard(path).await?;
                self.shared.suspect(&entry, Suspicion { why: first.to_string(), full: false });
                return Ok(());
            }
            if self.adopt(&entry, new) {
                let (measured, root) = (Arc::clone(&entry), (self.shared.pool.root)()?);
                blocking(self.name, move || measured.measure(&root)).await?;
            } else {
                self.shared.discard(path).await?;
            }
        }
        self.shared.tick();
        Ok(())
    }

    /// Unless the repository was removed meanwhile, the new snapshot is its newest.
    fn adopt(&self, entry: &Entry, new: SnapshotPin) -> bool {
        let mut state = entry.state();
        let still = !state.meta.removed && state.meta.store.as_deref() == Some(self.name);
        match (still, state.current.take()) {
            (true, Some(old)) => {
                state.current = Some(new);
                state.superseded.push((old, Instant::now()));
                true
            }
            (_, other) => {
                state.current = other;
                false
            }
        }
    }

    async fn record(&self, plan: &Plan, record: &mut Record, before: usize, took: Span) -> Result<(), Reason> {
        let now = self.shared.now();
        let mut did = Vec::new();
        if let Some((repack, why)) = plan.repack {
            record.repacked_at = Some(now);
            if repack == Repack::Full {
                record.full_at = Some(now);
            }
            did.push(format!("{} ({})", repack.word(), why.words()));
        }
        if plan.graph.is_some() {
            record.graph_at = Some(now);
            did.push("commit-graph".to_owned());
        }
        let (git, file, mut written) = (self.paths.git(), self.record_file(), record.clone());
        let what = did.join(", ");
        let last = blocking(self.name, move || {
            let after = packs_of(&git)?.len();
            let last = LastUpkeep { at: now, what, took, packs: (before, after) };
            written.last = Some(last.clone());
            written.write(&file)?;
            Ok::<_, io::Error>(last)
        });
        let last = last.await?.map_err(|error| self.failed("writing what upkeep did to", &error))?;
        tracing::info!(
            store = self.name,
            took_ms = took.0,
            packs_before = last.packs.0,
            packs = last.packs.1,
            "{}",
            last.what
        );
        lock(&self.store.known).last = Some(last);
        self.shared.tick();
        Ok(())
    }
}

impl Shared {
    /// All stores that repositories fetch into.
    pub(super) fn store_names(&self) -> BTreeSet<String> {
        self.all().iter().filter_map(|entry| entry.state().meta.store.clone()).collect()
    }
}

/// The same refs over what the store holds now. Blocks.
fn publish_again(entry: &Entry, pin: &SnapshotPin, store: &Path, root: &Path) -> io::Result<SnapshotPin> {
    let (refs, head) = (pin.refs()?, pin.head());
    let first = entry.state().meta.first_snapshot;
    let publication = Publication {
        url: &entry.url,
        paths: &Paths::new(root, &entry.folder),
        store,
        head: head.as_ref(),
        refs: &refs,
        previous: Some(pin.path()),
        first,
    };
    publication.publish()
}

/// Whether the snapshot holds packs that the store no longer has.
fn holds_other_packs(pin: &SnapshotPin, store: &BTreeSet<String>) -> bool {
    let held = names(&pin.path().join("objects/pack")).unwrap_or_default();
    held.iter().any(|name| name.ends_with(".pack") && !store.contains(name))
}

/// File work off the async threads, within a git step.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, GitError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(GitError::Disk),
        Err(error) => Err(GitError::Disk(io::Error::other(error))),
    }
}
