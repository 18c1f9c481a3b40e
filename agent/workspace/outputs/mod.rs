//! Outputs: what builds leave in `$STOKER_OUT`, kept for as long as their rule says, or for good.
//!
//! When a workspace ends, its `out` is renamed to `<pool>/stoker/outputs/<id>`, where only the agent can enter. Its record
//! is written first, beside it: a kill in between leaves a record without a directory, and the workspace, whose end is
//! then repeated and finds the record. So an output is neither lost nor made twice. What a build left may be hostile: it
//! is only ever reached beneath its directory (see `node::tree`).

mod end;
pub(crate) mod name;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stoker_core::identity::Scope;
use stoker_core::quantity::{Resource, Timestamp};
use stoker_core::reason::{Code, Reason};
use stoker_core::retention::Rules;
use stoker_core::sizing::Outcome;
use tokio::sync::Notify;

use super::Workspace;
use crate::node::{Opened, Pools};
use crate::pressure::Configured;

pub use record::{Output, Size};

/// Where they lie, below the agent's directory.
pub const FOLDER: &str = "outputs";
/// The most names of that folder that are looked at: twice as many as outputs.
const NAMES_MAX: usize = 400_000;
/// How often one id can be used again.
const AGAIN_MAX: u32 = 10_000;
/// The most entries of one output that are counted.
const ENTRIES_MAX: u64 = 2_000_000;

/// Those that are there. Cheap to clone.
#[derive(Clone)]
pub struct Outputs {
    inner: Arc<Inner>,
}

struct Inner {
    pool: String,
    pools: Pools,
    config: Configured,
    /// Held over a look at the folder or a change of it, so that one workspace has one end: the disk is waited for.
    turn: Mutex<()>,
    /// Held while it is read or written, and never over work on the disk. Locked after `turn`, where both are.
    known: Mutex<Known>,
    /// One came, and was not counted yet.
    came: Notify,
}

/// What is known of the folder.
#[derive(Default)]
struct Known {
    outputs: BTreeMap<String, Arc<Output>>,
    /// The folder was looked at: these are all.
    looked: bool,
}

/// How a build ended, as far as it is known.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// What came of it.
    pub outcome: Option<Outcome>,
    /// Its own code.
    pub exit_code: Option<i32>,
}

impl Outputs {
    /// Those of a pool, which is not looked at yet.
    #[must_use]
    pub fn new(pool: &str, pools: Pools, config: Configured) -> Self {
        let (turn, known, came) = (Mutex::default(), Mutex::default(), Notify::new());
        Self { inner: Arc::new(Inner { pool: pool.to_owned(), pools, config, turn, known, came }) }
    }

    /// The pool's name.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.inner.pool
    }

    pub(super) fn root(&self) -> io::Result<PathBuf> {
        let root = self.inner.pools.usable(&self.inner.pool);
        root.map_err(|reason| io::Error::new(io::ErrorKind::NotFound, reason.message))
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.inner.config.borrow().keeping.outputs)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.inner.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when one came that was not counted yet.
    pub(super) async fn came(&self) {
        self.inner.came.notified().await;
    }

    /// Keeps what a whole workspace has in its `out`, where there is anything. Again is the same as once.
    ///
    /// # Errors
    /// Where it could not be moved: then it is still in the workspace.
    pub fn keep(&self, workspace: &Workspace, ending: Ending, now: Timestamp) -> io::Result<Option<Arc<Output>>> {
        let root = self.root()?;
        let _turn = self.turn();
        if !self.inner.pools.holds_anything(&workspace.out)? {
            return Ok(self.of_workspace(&workspace.id, workspace.created_at));
        }
        let (mut output, is_new) = self.begun(&root, workspace, ending, now)?;
        if is_new {
            record::write(&root, &output)?;
        }
        match self.inner.pools.carry(&workspace.out, FOLDER, &output.id) {
            Ok(true) => {}
            // It went meanwhile.
            Ok(false) if is_new => {
                record::remove(&root, &output.id)?;
                return Ok(None);
            }
            // Kept already: what a build writes after its end is scratch.
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is_new => {}
            Err(error) => {
                if is_new {
                    record::remove(&root, &output.id)?;
                }
                return Err(error);
            }
        }
        output.size = None;
        let output = Arc::new(output);
        self.known().outputs.insert(output.id.clone(), Arc::clone(&output));
        self.inner.came.notify_one();
        tracing::info!(output = output.id, rule = output.rule, "kept what a build left");
        Ok(Some(output))
    }

    /// The record that a workspace's output has or gets, and whether it is new.
    fn begun(&self, root: &Path, workspace: &Workspace, ending: Ending, now: Timestamp) -> io::Result<(Output, bool)> {
        for again in 1..=AGAIN_MAX {
            let id = if again == 1 { workspace.id.clone() } else { format!("{}-{again}", workspace.id) };
            match record::read(root, &id) {
                Some(record) if record.prepared_at == workspace.created_at => return Ok((record, false)),
                Some(_) => continue,
                // A folder that nobody knows.
                None if root.join(FOLDER).join(&id).symlink_metadata().is_ok() => continue,
                None => return Ok((self.new_record(id, workspace, ending, now), true)),
            }
        }
        Err(io::Error::other(format!("workspace {} left {AGAIN_MAX} outputs already; delete some", workspace.id)))
    }

    fn new_record(&self, id: String, workspace: &Workspace, ending: Ending, now: Timestamp) -> Output {
        let rules = self.rules();
        let kept = rules.of(&workspace.scope);
        Output {
            id,
            workspace: workspace.id.clone(),
            prepared_at: workspace.created_at,
            lease: workspace.lease.clone(),
            scope: workspace.scope.clone(),
            repository: workspace.source.repository.clone(),
            repository_url: workspace.source.clone_url.clone(),
            reference: workspace.source.reference.clone(),
            commit: workspace.source.commit,
            trust: workspace.trust.clone(),
            outcome: ending.outcome,
            exit_code: ending.exit_code,
            created_at: now,
            expires_at: now.plus(kept.keep),
            rule: words(&rules, kept.rule),
            released_at: None,
            size: None,
        }
    }

    /// Looks at the folder: what came is known, what went is not any more. A record without its directory goes, unless its
    /// workspace is still there, whose end is then repeated. Nothing that has no record is touched.
    ///
    /// # Errors
    /// Where the pool is not there.
    pub fn look(&self) -> io::Result<()> {
        let root = self.root()?;
        let _turn = self.turn();
        let (names, all) = self.inner.pools.names(&root.join(FOLDER), NAMES_MAX)?;
        let (mut folders, mut records) = (BTreeSet::new(), BTreeSet::new());
        for found in &names {
            match (found.name.to_str(), found.is_directory) {
                (Some(name), true) => drop(folders.insert(name)),
                (Some(name), false) => drop(name.strip_suffix(".json").map(|id| records.insert(id))),
                _ => {}
            }
        }
        let is_known = |id: &str| self.known().outputs.contains_key(id);
        let mut new = Vec::new();
        for &id in &records {
            if folders.contains(id) {
                new.extend(if is_known(id) { None } else { record::read(&root, id) });
            } else if all
                && let Some(output) = record::read(&root, id)
                && root.join("workspaces").join(&output.workspace).symlink_metadata().is_err()
            {
                record::remove(&root, id)?;
                tracing::info!(output = id, "its directory is gone, and so is its record");
            }
        }
        let mut known = self.known();
        if all {
            known.outputs.retain(|id, _| folders.contains(id.as_str()) && records.contains(id.as_str()));
        }
        known.outputs.extend(new.into_iter().map(|output| (output.id.clone(), Arc::new(output))));
        known.looked = true;
        Ok(())
    }

    /// Whether it is known which are there.
    ///
    /// # Errors
    /// `POOL_NOT_READY` where the pool is not there, or was not looked at yet.
    pub fn ready(&self) -> Result<(), Reason> {
        self.inner.pools.usable(&self.inner.pool)?;
        if self.known().looked {
            return Ok(());
        }
        let message = "what lies on the pool is being looked at; ask again";
        Err(Reason::new(Code::PoolNotReady, &self.inner.pool, message))
    }

    /// All that are known, by id.
    ///
    /// # Errors
    /// As [`Outputs::ready`].
    pub fn list(&self) -> Result<Vec<Arc<Output>>, Reason> {
        self.ready()?;
        Ok(self.known().outputs.values().cloned().collect())
    }

    /// One of them, where it is there.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Output>> {
        self.known().outputs.get(id).cloned()
    }

    /// What a workspace left.
    #[must_use]
    pub fn of_workspace(&self, id: &str, prepared_at: Timestamp) -> Option<Arc<Output>> {
        let of = |output: &&Arc<Output>| output.workspace == id && output.prepared_at == prepared_at;
        self.known().outputs.values().find(of).cloned()
    }

    /// Keeps one for good; again is the same as once. Nothing where there is none.
    ///
    /// # Errors
    /// Where that cannot be written down: then it holds not.
    pub fn release(&self, id: &str, now: Timestamp) -> io::Result<Option<Arc<Output>>> {
        self.change(id, |output| {
            output.released_at.get_or_insert(now);
        })
    }

    /// Writes down how a build ended that had not ended when its output was kept.
    pub(super) fn ended(&self, id: &str, ending: Ending) -> io::Result<()> {
        let change = |output: &mut Output| (output.outcome, output.exit_code) = (ending.outcome, ending.exit_code);
        self.change(id, change).map(drop)
    }

    /// Counts those that were not counted yet; at most one output's entries at a time are looked at. One whose count
    /// cannot be written down is counted again later, and keeps no other from being counted.
    pub(super) fn count(&self, stop: &dyn Fn() -> bool) -> io::Result<()> {
        let root = self.root()?;
        let uncounted: Vec<String> = {
            let known = self.known();
            known.outputs.values().filter(|output| output.size.is_none()).map(|output| output.id.clone()).collect()
        };
        for id in uncounted {
            if stop() {
                break;
            }
            let Ok(found) = self.inner.pools.measure_tree(&root.join(FOLDER).join(&id), ENTRIES_MAX) else { continue };
            let (files, bytes, disk_bytes) = (found.files, found.bytes, found.disk_bytes);
            let size = Size { files, bytes, disk_bytes, partial: found.partial };
            if let Err(error) = self.change(&id, |output| output.size = Some(size)) {
                tracing::warn!(%error, output = id, "what it holds could not be written down; tried again");
            }
        }
        Ok(())
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Output)) -> io::Result<Option<Arc<Output>>> {
        let root = self.root()?;
        let _turn = self.turn();
        let Some(before) = self.get(id) else { return Ok(None) };
        let mut output = Output::clone(&before);
        change(&mut output);
        if output == *before {
            return Ok(Some(before));
        }
        record::write(&root, &output)?;
        let output = Arc::new(output);
        self.known().outputs.insert(id.to_owned(), Arc::clone(&output));
        Ok(Some(output))
    }

    /// Takes one away. False: there is none. Returns when it has left its place.
    ///
    /// # Errors
    /// When it cannot be moved; then it is still there.
    pub fn delete(&self, id: &str) -> io::Result<bool> {
        self.delete_if(id, |_| true)
    }

    /// Takes one away whose time is over and that nobody released meanwhile.
    pub(super) fn expire(&self, id: &str, now: Timestamp) -> io::Result<bool> {
        self.delete_if(id, |output| output.released_at.is_none() && output.expires_at <= now)
    }

    fn delete_if(&self, id: &str, goes: impl FnOnce(&Output) -> bool) -> io::Result<bool> {
        let root = self.root()?;
        let _turn = self.turn();
        let Some(output) = self.get(id).filter(|output| goes(output)) else { return Ok(false) };
        self.inner.pools.discard(&output.place(&root))?;
        self.known().outputs.remove(id);
        // The directory has gone: what a kill leaves of the record goes with the next look.
        record::remove(&root, id)?;
        Ok(true)
    }

    /// Opens what lies in one, at a path below it.
    ///
    /// # Errors
    /// As [`Pools::open_beneath`]; `NotFound` where there is no such output.
    pub fn open(&self, id: &str, within: &Path) -> io::Result<Opened> {
        let output = self.get(id).ok_or(io::ErrorKind::NotFound)?;
        self.inner.pools.open_beneath(&output.place(&self.root()?), within)
    }

    /// Asks whether the pool is still there: what is open on it is to be let go of where it is not.
    pub fn is_ready(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let (pools, pool) = (self.inner.pools.clone(), self.inner.pool.clone());
        move || pools.view().iter().any(|view| view.name == pool && view.state == crate::node::State::Ready)
    }
}

/// Whether an output is one of this line of builds; an empty part stands for any.
#[must_use]
pub fn is_of(output: &Output, wanted: &Scope) -> bool {
    let of = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
    let (wanted_scope, is) = (wanted, &output.scope);
    of(&wanted_scope.tenant, &is.tenant)
        && of(&wanted_scope.project, &is.project)
        && of(&wanted_scope.branch, &is.branch)
}

/// A rule as people read it.
fn words(rules: &Rules, at: Option<usize>) -> String {
    let Some((at, rule)) = at.and_then(|at| Some((at, rules.rules.get(at)?))) else {
        return format!("outputs.retention ({})", days(rules.keep.0));
    };
    let part =
        |name: &str, glob: &Option<stoker_core::retention::Glob>| glob.as_ref().map(|glob| format!("{name} {glob}"));
    let parts = [part("tenant", &rule.tenant), part("project", &rule.project), part("branch", &rule.branch)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!("outputs.rules[{at}] ({}: {})", parts.join(", "), days(rule.keep.0))
}

/// A length of time as retention is thought of.
pub(super) fn days(millis: i64) -> String {
    const DAY: i64 = 24 * 3600 * 1000;
    match millis % DAY {
        0 => format!("{} d", millis / DAY),
        _ => Resource::Time.show(millis.unsigned_abs()).to_string(),
    }
}

#[cfg(test)]
pub(in crate::workspace) mod tests;
