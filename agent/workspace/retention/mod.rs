//! Retention: what lies on the pools goes when its time is over, and nothing before.
//!
//! **Observe** (`observe`): outputs by their records, caches of tenants, content of declared directories, and what in the
//! agent's own directory nobody knows; with the times that the agent wrote down (`journal`). **Decide**:
//! `stoker_core::retention`. **Act**: through [`Pools::discard`], each thing looked at again a moment before it goes.
//! **Publish**: a [`View`]. [`Retention::plan`] stops after the second step. Files of others are not touched, unless a
//! declared directory says so.

mod holders;
mod journal;
mod observe;
mod uses;
mod words;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stoker_core::quantity::{Span, Timestamp};
use stoker_core::reason::{Code, Reason};
use stoker_core::retention::{Facts, Plan, Removal, Thing, What, decide};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::outputs::Outputs;
use crate::config::{Config, Retention as Word};
use crate::node::Pools;
use crate::pressure::Configured;
pub use holders::{Holders, Known, RemoveCache, RemoveWorkspace};
pub use journal::Deletion;
use journal::Journal;
pub use observe::Kind;
use observe::{Look, Observed, Place, Sizes};
pub(super) use uses::Uses;

/// How often it is looked where nothing is due before.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How soon again, where something is due.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// So long after an output was kept it is asked each moment how its build ended; later with each look.
const SAID_WITHIN: Span = Span::minutes(1);
/// The most things that one look removes; the rest goes with the next one.
const REMOVALS_MAX: usize = 1000;

/// One thing that goes, now or later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Going {
    /// What kind of thing.
    pub kind: Kind,
    /// The pool's name.
    pub pool: String,
    /// Where it is.
    pub path: PathBuf,
    /// The output's.
    pub id: String,
    /// What it takes on the disk, as last counted.
    pub bytes: u64,
    /// When it may go.
    pub at: Timestamp,
    /// Why.
    pub reason: Reason,
}

/// What retention would do.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Now, in this order.
    pub now: Vec<Going>,
    /// Later, if nothing changes, the next first.
    pub next: Vec<Going>,
    /// What it cannot do.
    pub over: Vec<Reason>,
}

/// How full a declared directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryUse {
    /// The pool's name.
    pub pool: String,
    /// Relative to the pool.
    pub path: PathBuf,
    /// How long its content is kept.
    pub retention: Word,
    /// Its entries, where they are counted.
    pub entries: u64,
    /// What it takes on the disk.
    pub bytes: u64,
    /// There is more.
    pub partial: bool,
    /// The most that it may hold.
    pub limit: Option<u64>,
}

/// What others may know of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct View {
    /// When it was last looked.
    pub looked_at: Option<Timestamp>,
    /// What was removed last; unset: nothing ever was.
    pub last: Option<Deletion>,
    /// Things that were removed, ever.
    pub removed: u64,
    /// What they took.
    pub removed_bytes: u64,
    /// Outputs, and their bytes on the disk.
    pub outputs: (u64, u64),
    /// Those of them that were released.
    pub released: u64,
    /// Caches of tenants, and their bytes.
    pub caches: (u64, u64),
    /// What nobody knows, and its bytes.
    pub orphans: (u64, u64),
    /// When the next thing goes.
    pub next_at: Option<Timestamp>,
    /// Declared directories.
    pub directories: Vec<DirectoryUse>,
    /// What an operator should know: orphans, limits that are passed.
    pub alarms: Vec<Reason>,
}

struct State {
    journal: Journal,
    sizes: Sizes,
    /// What was forgotten or learnt is not written down yet.
    written: Journal,
}

struct Inner {
    pools: Pools,
    outputs: Outputs,
    config: Configured,
    holders: Holders,
    path: PathBuf,
    /// One look at a time.
    state: Mutex<State>,
    view: watch::Sender<View>,
}

/// The room's face. Cheap to clone.
#[derive(Clone)]
pub struct Retention {
    inner: Arc<Inner>,
}

impl Retention {
    /// Reads what an earlier agent remembered; looks at nothing yet.
    #[must_use]
    pub fn open(pools: Pools, outputs: Outputs, config: Configured, holders: Holders) -> Self {
        let path = journal::path(&config.borrow().state);
        let journal = Journal::read(&path);
        let view = watch::Sender::new(View { last: journal.last.clone(), ..View::default() });
        let state = Mutex::new(State { written: journal.clone(), journal, sizes: Sizes::new() });
        Self { inner: Arc::new(Inner { pools, outputs, config, holders, path, state, view }) }
    }

    /// What is known.
    #[must_use]
    pub fn view(&self) -> View {
        self.inner.view.borrow().clone()
    }

    /// Looks again and again until `cancel`.
    pub async fn watch(self, cancel: CancellationToken) {
        let mut config = self.inner.config.clone();
        loop {
            let (room, stop) = (self.clone(), cancel.clone());
            let look = move || room.pass(crate::admission::now(), &|| stop.is_cancelled());
            let looked = tokio::task::spawn_blocking(look).await;
            let pause = match looked {
                Ok(Ok(pause)) => pause,
                // The pool is away, or what lies on it is not known yet.
                _ => LOOK_AGAIN,
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.inner.outputs.came() => {}
                changed = config.changed() => if changed.is_err() { return },
                // Ends only with the others: it asks again and again.
                () = self.learn_endings() => {}
            }
        }
    }

    /// Whoever deletes a workspace usually says a moment later how its build ended: asked until all did, which costs far
    /// less than a look. Never ends.
    async fn learn_endings(&self) {
        loop {
            let room = self.clone();
            let learnt = tokio::task::spawn_blocking(move || room.learn(crate::admission::now())).await;
            if !learnt.unwrap_or(false) {
                return std::future::pending().await;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// One look, with all that follows from it. Gives how long nothing needs to be looked at.
    ///
    /// # Errors
    /// While it is not known what is held: then nothing is touched.
    pub fn pass(&self, now: Timestamp, stop: &dyn Fn() -> bool) -> Result<Duration, Reason> {
        let inner = &self.inner;
        let known = self.known()?;
        let config = Arc::clone(&inner.config.borrow());
        let mut state = self.state();
        let failed =
            |error: std::io::Error| Reason::new(Code::PoolNotReady, &config.workspaces.pool, error.to_string());
        inner.outputs.look().map_err(failed)?;
        self.learn(now);
        if let Err(error) = inner.outputs.count(stop) {
            tracing::warn!(%error, "outputs could not be counted yet; tried again");
        }
        for path in (inner.holders.used)() {
            state.journal.use_cache(&observe::cache_key(&config, &path), now);
        }
        let observed = self.observe(&config, &known, &mut state, now)?;
        let plan = decide(&observed.facts);
        let (gone, left) = self.act(&observed, &plan, now, stop);
        state.journal.removed(now, &gone);
        if state.journal != state.written {
            match state.journal.write(&inner.path) {
                Ok(()) => state.written = state.journal.clone(),
                Err(error) => tracing::warn!(%error, "what retention saw could not be written down; tried again"),
            }
        }
        let view = self.seen(&config, &observed, &plan, &state.journal, now);
        let next_at = view.next_at;
        drop(state);
        inner.view.send_replace(view);
        let until = next_at.map_or(LOOK_EVERY, |at| Duration::from_millis(at.since(now).0.unsigned_abs()));
        Ok(if left { LOOK_AGAIN } else { until.clamp(LOOK_AGAIN, LOOK_EVERY) })
    }

    /// What would be done; nothing is removed, and nothing is written down.
    ///
    /// # Errors
    /// While it is not known what is held.
    pub fn plan(&self, now: Timestamp) -> Result<Planned, Reason> {
        let known = self.known()?;
        let config = Arc::clone(&self.inner.config.borrow());
        let mut state = self.state();
        let journal = state.journal.clone();
        let observed = self.observe(&config, &known, &mut state, now);
        state.journal = journal;
        drop(state);
        let observed = observed?;
        let plan = decide(&observed.facts);
        let going = |removal: &Removal| words::going(&config, &observed, removal);
        Ok(Planned {
            now: plan.now.iter().filter_map(going).collect(),
            next: plan.next.iter().filter_map(going).collect(),
            over: words::over(&config, &observed, &plan),
        })
    }

    fn known(&self) -> Result<Known, Reason> {
        (self.inner.holders.known)().ok_or_else(|| {
            let message = "what lies on the pool of the workspaces is not known yet; ask again";
            Reason::new(Code::PoolNotReady, &self.inner.config.borrow().workspaces.pool, message)
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns how the builds of outputs ended; gives whether one should be said soon. What cannot be written down is tried
    /// again: on a full disk nothing can be, until what is over has gone.
    fn learn(&self, now: Timestamp) -> bool {
        let inner = &self.inner;
        let mut is_awaited = false;
        for output in inner.outputs.list().unwrap_or_default() {
            let Some(lease) = output.lease.as_ref().filter(|_| output.outcome.is_none()) else { continue };
            let ending = (inner.holders.ending)(lease);
            if ending.outcome.is_none() {
                is_awaited |= now.since(output.created_at) < SAID_WITHIN;
            } else if let Err(error) = inner.outputs.ended(&output.id, ending) {
                tracing::warn!(%error, output = output.id, "how its build ended could not be written down; tried again");
            }
        }
        is_awaited
    }

    fn observe(&self, config: &Config, known: &Known, state: &mut State, now: Timestamp) -> Result<Observed, Reason> {
        let outputs = self.inner.outputs.list()?;
        let State { journal, sizes, .. } = state;
        Ok(Look::new(&self.inner.pools, config, known, journal, sizes, now).run(&outputs))
    }

    /// Removes what is to go; gives what went, and whether something is left to be removed.
    fn act(
        &self,
        observed: &Observed,
        plan: &Plan,
        now: Timestamp,
        stop: &dyn Fn() -> bool,
    ) -> (Vec<(String, &'static str, u64)>, bool) {
        let (mut gone, mut left) = (Vec::new(), false);
        for removal in &plan.now {
            if gone.len() >= REMOVALS_MAX || stop() {
                left = true;
                break;
            }
            let Some((thing, place)) = at(observed, removal) else { continue };
            match self.remove(place, now) {
                Ok(true) => {
                    let (path, word) = (place.path.display().to_string(), removal.why.code().word());
                    tracing::info!(path, kind = place.kind.word(), reason = word, bytes = thing.bytes, "removed");
                    gone.push((path, word, thing.bytes));
                }
                // Somebody took hold of it meanwhile.
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, path = %place.path.display(), "could not be removed yet; tried again");
                }
            }
        }
        (gone, left)
    }

    fn remove(&self, place: &Place, now: Timestamp) -> std::io::Result<bool> {
        let inner = &self.inner;
        match place.kind {
            Kind::Output => inner.outputs.expire(&place.id, now),
            Kind::Cache => (inner.holders.remove_cache)(&place.path, &place.id),
            Kind::Orphan if !place.id.is_empty() => (inner.holders.remove_workspace)(&place.id),
            // Somebody may have put another thing in its place since it was judged.
            Kind::Orphan | Kind::Directory | Kind::Scratch => match place.identity {
                Some(seen) => inner.pools.discard_only(&place.path, seen),
                None => Ok(false),
            },
        }
    }

    fn seen(&self, config: &Config, observed: &Observed, plan: &Plan, journal: &Journal, now: Timestamp) -> View {
        let goes: BTreeSet<usize> = plan.now.iter().map(|removal| removal.thing).collect();
        let stays = |facts: &Facts, of: &dyn Fn(&What) -> bool| {
            let all = facts.things.iter().enumerate().filter(|(at, thing)| !goes.contains(at) && of(&thing.what));
            all.fold((0_u64, 0_u64), |(count, bytes), (_, thing)| (count + 1, bytes.saturating_add(thing.bytes)))
        };
        let facts = &observed.facts;
        let is_released = |what: &What| matches!(what, What::Output { released: true, .. });
        let mut alarms = words::orphans(config, observed, &goes);
        alarms.extend(words::over(config, observed, plan));
        View {
            looked_at: Some(now),
            last: journal.last.clone(),
            removed: journal.removed,
            removed_bytes: journal.removed_bytes,
            outputs: stays(facts, &|what| matches!(what, What::Output { .. })),
            released: stays(facts, &is_released).0,
            caches: stays(facts, &|what| matches!(what, What::Cache { .. })),
            orphans: stays(facts, &|what| matches!(what, What::Own { known: false, .. })),
            next_at: plan.next.first().map(|removal| removal.at),
            directories: observed.directories.clone(),
            alarms,
        }
    }
}

fn at<'a>(observed: &'a Observed, removal: &Removal) -> Option<(&'a Thing, &'a Place)> {
    Some((observed.facts.things.get(removal.thing)?, observed.places.get(removal.thing)?))
}

#[cfg(test)]
mod tests;
