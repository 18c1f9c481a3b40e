//! What outlives a fetch: taking over at start, superseded snapshots, removal.

use std::sync::Arc;
use std::time::Duration;

use stoker_core::reason::Reason;
use stoker_core::source::RepositoryUrl;
use tokio::time::{Instant, sleep};

use super::disk::{Paths, io_reason, repositories};
use super::fetch::blocking;
use super::recover::{Found, recover};
use super::snapshot::SnapshotPin;
use super::store::Entry;
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
        let paths = Paths::new(&(self.shared.root)()?, &entry.folder);
        {
            let mut state = entry.state();
            (state.meta.removed, state.removing) = (true, true);
        }
        entry.stop.cancel();
        entry.ended.cancelled().await;
        let discarded = self.shared.discard(paths.store()).await;
        if paths.folder.is_dir() {
            self.shared.save(&entry).await?;
        }
        {
            let mut state = entry.state();
            if let Some(pin) = state.current.take() {
                state.superseded.push((pin, Instant::now()));
            }
            state.removing = false;
        }
        discarded?;
        self.shared.sweep(&entry, Duration::ZERO).await;
        self.shared.tick();
        Ok(())
    }
}

impl Shared {
    /// Takes over what lies on the pool, once it is there. Nothing else touches it before.
    pub(super) async fn recovered(self: &Arc<Self>) -> Result<(), Reason> {
        let once = self.recovery.get_or_try_init(async || {
            let root = (self.root)()?;
            let (reader, discard) = (self.reader.clone(), Arc::clone(&self.discard));
            let (dir, subject) = (root.clone(), repositories(&root).display().to_string());
            let found = blocking(&subject, move || recover(&dir, &reader, &*discard)).await?;
            for found in found.map_err(|error| io_reason(&subject, "looking for repositories", &error))? {
                self.take_over(found).await?;
            }
            Ok(())
        });
        once.await.copied()
    }

    async fn take_over(self: &Arc<Self>, mut found: Found) -> Result<(), Reason> {
        found.meta.declared = false;
        let removed = found.meta.removed;
        let known = lock(&self.entries).get(found.meta.url.key()).cloned();
        let entry = match known {
            // A declared mirror: the configuration says more than what was written.
            Some(entry) => {
                let mut state = entry.state();
                let declared = std::mem::replace(&mut state.meta, found.meta);
                let meta = &mut state.meta;
                (meta.url, meta.trust, meta.declared) = (declared.url, declared.trust, true);
                meta.pinned |= declared.pinned;
                (meta.declared_by, meta.submodules) = (declared.declared_by, declared.submodules);
                meta.removed = false;
                drop(state);
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
        let paths = found.paths;
        let measured = Arc::clone(&entry);
        blocking(entry.url.key(), move || measured.measure(&paths)).await
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
        let Ok(root) = (self.root)() else { return };
        let paths = Paths::new(&root, &entry.folder);
        if self.begin_end(entry) {
            let discarded = self.discard(paths.folder).await;
            self.forget(entry);
            if let Err(reason) = discarded {
                tracing::warn!(repository = entry.url.key(), "{}", reason.message);
            }
        } else if swept {
            let measured = Arc::clone(entry);
            let _ = blocking(entry.url.key(), move || measured.measure(&paths)).await;
            self.tick();
        }
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

/// Sweeps all repositories from time to time, until the agent stops.
pub(super) async fn sweep_always(shared: Arc<Shared>) {
    let pause = (shared.superseded_for / 4).clamp(Duration::from_millis(50), Duration::from_secs(60));
    while shared.cancel.run_until_cancelled(sleep(pause)).await.is_some() {
        for entry in shared.all() {
            shared.sweep(&entry, shared.superseded_for).await;
        }
    }
}
