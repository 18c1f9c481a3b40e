//! What outlives a fetch: taking over at start, superseded snapshots, removal.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stoker_core::reason::Reason;
use stoker_core::source::RepositoryUrl;
use tokio::time::{Instant, sleep};

use super::disk::{Paths, StorePaths, io_reason, remove_unfinished, replace, repositories};
use super::entry::Entry;
use super::fetch::blocking;
use super::recover::{Found, recover};
use super::refs::RefTable;
use super::snapshot::SnapshotPin;
use super::store::Suspicion;
use super::{Repositories, Shared, lock, unknown};

impl Repositories {
    /// Removes a repository. Its store goes at once; snapshots that something pins stay until they are released. A
    /// declared one comes back at the next start.
    ///
    /// # Errors
    /// When there is no such repository, or its files cannot be moved away.
    pub async fn remove(&self, url: &RepositoryUrl) -> Result<(), Reason> {
        self.shared.recovered().await?;
        let entry = self.shared.get(url).ok_or_else(|| unknown(url))?;
        (self.shared.pool.root)()?;
        {
            let mut state = entry.state();
            (state.meta.removed, state.removing) = (true, true);
        }
        entry.stop.cancel();
        // It goes on where the caller does not wait: half removed, nobody could begin it anew.
        let (shared, subject) = (Arc::clone(&self.shared), url.key().to_owned());
        let removed = self.shared.tasks.spawn(async move { shared.end(&entry).await });
        removed.await.map_err(|error| io_reason(&subject, "removing", &io::Error::other(error)))?
    }
}

impl Shared {
    /// Takes over what lies on the pool, once it is there. Nothing else touches it before.
    pub(super) async fn recovered(self: &Arc<Self>) -> Result<(), Reason> {
        let once = self.recovery.get_or_try_init(async || {
            let root = (self.pool.root)()?;
            self.git.alone().await;
            // What is wrong is told early; each visit looks again. A helper that starts at the same time is not waited for.
            if !self.git.waits_for_helper() {
                let _ = self.git.settle(&root).await;
            }
            let (reader, discard) = (self.reader.clone(), Arc::clone(&self.pool.discard));
            let (dir, subject) = (root.clone(), repositories(&root).display().to_string());
            let found = blocking(&subject, move || recover(&dir, &reader, &*discard)).await?;
            for found in found.map_err(|error| io_reason(&subject, "looking for repositories", &error))? {
                // One that has no place keeps the others from nothing.
                if let Err(reason) = self.take_over(&root, found).await {
                    tracing::error!(reason = reason.code.word(), "not taken over: {}", reason.message);
                }
            }
            Ok(())
        });
        once.await.copied()
    }

    /// Takes everything of an entry that was marked as removed.
    async fn end(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<(), Reason> {
        entry.ended.cancelled().await;
        let left = self.leave_store(entry).await;
        // So that a restart knows what stands here only for its pins; on a full disk it does not.
        if let Err(reason) = self.note(entry).await {
            tracing::warn!(repository = entry.url.key(), "{}", reason.message);
        }
        {
            let mut state = entry.state();
            if let Some(pin) = state.current.take() {
                state.superseded.push((pin, Instant::now()));
            }
            state.removing = false;
        }
        self.sweep(entry, Duration::ZERO).await;
        self.tick();
        left
    }

    async fn take_over(self: &Arc<Self>, root: &Path, mut found: Found) -> Result<(), Reason> {
        found.meta.declared = false;
        let removed = found.meta.removed;
        let mut trust = None;
        let known = lock(&self.entries).get(found.meta.url.key()).cloned();
        let entry = match known {
            // A declared mirror: the configuration says more than what was written.
            Some(entry) => {
                let mut state = entry.state();
                let declared = std::mem::replace(&mut state.meta, found.meta);
                let meta = &mut state.meta;
                (meta.url, meta.fork_of, meta.declared) = (declared.url, declared.fork_of, true);
                meta.pinned |= declared.pinned;
                (meta.declared_by, meta.submodules) = (declared.declared_by, declared.submodules);
                meta.removed = false;
                drop(state);
                trust = Some(declared.trust);
                entry
            }
            None => self.insert(found.meta, false)?,
        };
        {
            let mut state = entry.state();
            // Leases that are read back may pin the older ones: they get the same grace as if just superseded.
            let mut snapshots = found.snapshots;
            state.current = if removed { None } else { snapshots.pop() };
            state.superseded.extend(snapshots.into_iter().map(|pin| (pin, Instant::now())));
            state.refs = found.refs;
        }
        if entry.state().meta.removed {
            entry.stop.cancel();
        }
        if let Some(trust) = trust {
            self.change_trust(&entry, &trust).await;
        }
        if let Some(why) = found.damage.filter(|_| !removed) {
            self.suspect(&entry, Suspicion { why, full: false });
        }
        let (measured, root) = (Arc::clone(&entry), root.to_owned());
        blocking(entry.url.key(), move || measured.measure(&root)).await
    }

    /// Removes what was superseded for longer than `grace` and nobody pins; with the last, a removed repository.
    pub(super) async fn sweep(&self, entry: &Arc<Entry>, grace: Duration) {
        let due: Vec<SnapshotPin> = {
            let mut state = entry.state();
            let superseded = std::mem::take(&mut state.superseded);
            // Whoever pins a snapshot takes it from here, under this lock: what only we hold, nobody will hold.
            let (due, kept) =
                superseded.into_iter().partition(|(pin, since)| pin.is_unpinned() && since.elapsed() >= grace);
            state.superseded = kept;
            let due: Vec<(SnapshotPin, Instant)> = due;
            due.into_iter().map(|(pin, _)| pin).collect()
        };
        let swept = !due.is_empty();
        for pin in due {
            self.reader.forget(pin.path());
            if let Err(reason) = self.discard(pin.path().to_owned()).await {
                tracing::warn!(repository = entry.url.key(), "{}", reason.message);
                entry.state().superseded.push((pin, Instant::now()));
            }
        }
        let Ok(root) = (self.pool.root)() else { return };
        let paths = Paths::new(&root, &entry.folder);
        if self.begin_end(entry) {
            let discarded = self.discard(paths.folder).await;
            self.forget(entry, |_| true);
            if let Err(reason) = discarded {
                tracing::warn!(repository = entry.url.key(), "{}", reason.message);
            }
        } else if swept {
            let measured = Arc::clone(entry);
            let _ = blocking(entry.url.key(), move || measured.measure(&root)).await;
            self.tick();
        }
    }

    /// The repository's refs leave its store; with the last one's, the store goes.
    pub(super) async fn leave_store(&self, entry: &Arc<Entry>) -> Result<(), Reason> {
        let Some(name) = entry.state().meta.store.clone() else { return Ok(()) };
        let _turn = self.stores.get(&name).turn().await;
        self.leave(entry, &name).await
    }

    /// The caller has the store's turn.
    pub(super) async fn leave(&self, entry: &Arc<Entry>, name: &str) -> Result<(), Reason> {
        {
            let mut state = entry.state();
            (state.meta.store, state.meta.generation) = (None, None);
        }
        let paths = StorePaths::new(&(self.pool.root)()?, name);
        let shares = |other: &Arc<Entry>| other.state().meta.store.as_deref() == Some(name);
        if !self.all().iter().any(shares) {
            return self.discard(paths.folder).await;
        }
        let (folder, subject) = (entry.folder.clone(), entry.url.key());
        let forgotten = blocking(subject, move || forget_refs(&paths.git(), &folder)).await?;
        forgotten.map_err(|error| io_reason(subject, "removing its refs from the store", &error))
    }

    /// Another class may read it from now on: what came under the one before is not handed out any more, and it is filled
    /// anew, for its store and its snapshots hold objects of others of that class.
    pub(super) async fn change_trust(&self, entry: &Arc<Entry>, trust: &str) {
        if entry.state().meta.trust == trust {
            return;
        }
        let store = entry.state().meta.store.clone();
        let turn = match &store {
            Some(name) => Some(self.stores.get(name).turn().await),
            None => None,
        };
        tracing::info!(repository = entry.url.key(), trust, "another trust class: it is filled anew");
        {
            let mut state = entry.state();
            trust.clone_into(&mut state.meta.trust);
            (state.meta.store, state.meta.generation) = (None, None);
            if let Some(pin) = state.current.take() {
                state.superseded.push((pin, Instant::now()));
            }
            state.begin_numbers_anew();
        }
        let left = match &store {
            Some(name) => self.leave(entry, name).await,
            None => Ok(()),
        };
        drop(turn);
        if let Err(reason) = left.and(self.save(entry).await) {
            tracing::warn!(repository = entry.url.key(), "{}", reason.message);
        }
        self.sweep(entry, Duration::ZERO).await;
    }

    /// Whether nothing is left of a removed repository but its folder. From then on nobody begins it anew until that is
    /// gone.
    fn begin_end(&self, entry: &Arc<Entry>) -> bool {
        let entries = lock(&self.entries);
        let still = entries.get(entry.url.key()).is_some_and(|there| Arc::ptr_eq(there, entry));
        let mut state = entry.state();
        let over =
            still && state.meta.removed && !state.removing && state.superseded.is_empty() && state.current.is_none();
        state.removing |= over;
        over
    }
}

/// Forgets one repository's refs in a store. The caller is the one writer.
fn forget_refs(store: &Path, folder: &str) -> io::Result<()> {
    let spaces = ["namespaces", "pins"].map(|space| format!("refs/{space}/{folder}"));
    let packed = store.join("packed-refs");
    let kept = RefTable::read(&packed)?.rename(|name| {
        let own = |space: &String| name.strip_prefix(space.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"));
        (!spaces.iter().any(own)).then(|| name.to_vec())
    });
    replace(&packed, &kept.to_file(), true)?;
    spaces.iter().try_for_each(|space| remove_unfinished(&store.join(space)))
}

/// Sweeps all repositories from time to time, until the agent stops.
pub(super) async fn sweep_always(shared: Arc<Shared>) {
    let pause = (shared.superseded_for / 4).clamp(Duration::from_millis(50), Duration::from_secs(60));
    while shared.cancel.run_until_cancelled(sleep(pause)).await.is_some() {
        for entry in shared.all() {
            shared.sweep(&entry, shared.superseded_for).await;
        }
    }
}
