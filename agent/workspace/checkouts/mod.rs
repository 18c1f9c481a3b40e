//! Kept checkouts: the files of a commit, checked out once, read by many builds, written by none.
//!
//! In comes what a workspace needs ([`Wanted`]). Out goes a [`Kept`]: one directory with all files, or a layer with what
//! differs from such a directory. It stays while anybody holds it; of those that nobody holds, the ones not used for
//! longest go. `<pool>/stoker/checkouts/<name>` is the directory, `<name>.json` beside it is written when it is whole.

mod evict;
pub(super) mod fill;
mod promote;
mod record;
mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stoker_core::identity::{CommitId, Component};
use stoker_core::quantity::Timestamp;
use stoker_core::reason::Reason;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::disk::{blocking, directory, spread, unwritable};
use super::large_files::Large;
use super::trees::Tree;
use crate::admission::now;
use crate::node::Pools;
use crate::repository::git::Git;
use crate::repository::{Changes, Nested, Progress, Reader, SnapshotPin};
pub use evict::View;
use record::Record;
use room::Promised;
pub(super) use room::{Asker, promised_by};

/// Where they are, below the agent's directory of the pool.
pub(super) const DIRECTORY: &str = "checkouts";
/// So many are kept at most, whatever they hold.
const KEPT_MAX: usize = 10_000;
/// The time of use is written down when it is so much later, in milliseconds.
const USED_EVERY_MS: i64 = 600_000;

/// What is to be checked out.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Holds the commit.
    pub(super) pin: &'a SnapshotPin,
    pub(super) commit: CommitId,
    /// In seconds since 1970, where it is known.
    pub(super) committed_at: Option<i64>,
    pub(super) trust: &'a str,
    /// What has a git directory in its folder: the commit itself, and the projects of its manifest, parents first.
    pub(super) trees: &'a [Tree],
    /// The submodules, parents first.
    pub(super) nested: &'a [Nested],
    /// The large files, which take the place of their pointers, one entry a work tree.
    pub(super) large: &'a [Large],
    /// Who the files belong to, where no mount can show them so.
    pub(super) owner: Option<(u32, u32)>,
    /// Who it is for.
    pub(super) asker: Asker<'a>,
}

impl Wanted<'_> {
    /// What the checkout is called.
    pub(super) fn name(&self) -> String {
        let (commit, settings) = (self.commit.to_string(), self.settings());
        Component::of(&[self.pin.url().key(), &commit, &settings]).as_str().to_owned()
    }

    /// It has the projects of a manifest.
    fn is_manifest(&self) -> bool {
        self.trees.iter().any(|tree| !tree.path.as_os_str().is_empty())
    }

    /// What another checkout must have in common with this one to be the same but for the commit.
    fn settings(&self) -> String {
        let mut settings = format!("{} {}", self.trust, self.pin.url().key());
        if let Some((user, group)) = self.owner {
            settings.push_str(&format!(" owner {user}:{group}"));
        }
        for one in self.nested {
            let commit = one.resolved.as_ref().map(|resolved| resolved.commit.to_string()).unwrap_or_default();
            settings.push_str(&format!(" submodule {:?} {:?} {} {commit}", one.path, one.git_dir, one.says.url));
        }
        if self.is_manifest() {
            // There may be thousands.
            let all: Vec<String> = self.trees.iter().map(Tree::identity).collect();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            settings.push_str(&format!(" manifest {}", Component::of(&all)));
        }
        for one in self.large {
            settings.push_str(&format!(" large files {:?}", one.tree));
        }
        settings
    }
}

/// A kept checkout. It stays on the disk while any [`Arc`] of it lives beside the one of [`Checkouts`].
#[derive(Debug)]
pub(super) struct Kept {
    root: PathBuf,
    record: Mutex<Record>,
    /// The full one that it is a layer over.
    base: Option<Arc<Kept>>,
    /// It could not be written through to the disk: what of it is there is not known.
    is_doubtful: AtomicBool,
}

impl Kept {
    /// The directory with its files; in `.git` of it is the index alone, and that of each submodule.
    fn tree(&self) -> PathBuf {
        self.root.join("tree")
    }

    /// The directories that are the checkout, from the top down.
    pub(super) fn layers(&self) -> Vec<PathBuf> {
        [Some(self.tree()), self.base.as_ref().map(|base| base.tree())].into_iter().flatten().collect()
    }

    /// Whether its directories are: another filesystem may have taken the place of the one that it was made on.
    fn is_there(&self) -> bool {
        self.layers().iter().all(|layer| layer.is_dir())
    }

    /// Whether another checkout can stand on it.
    fn is_sound(&self) -> bool {
        !self.is_doubtful.load(Ordering::SeqCst) && self.is_there()
    }

    /// Entries of its indexes, and the bytes of its files.
    pub(super) fn extent(&self) -> (u64, u64) {
        let record = self.record();
        (record.files, record.bytes)
    }

    /// Its name.
    pub(super) fn name(&self) -> String {
        self.record().name.clone()
    }

    /// Two that write at once take turns: one file is written to.
    fn write_down(&self) {
        let record = self.record();
        if let Err(error) = record::write(self.root.parent().unwrap_or(&self.root), &record) {
            tracing::warn!(%error, checkout = record.name, "its record is not written");
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What checkouts are made with.
pub(super) struct Rooms {
    pub(super) pools: Pools,
    pub(super) git: Git,
    pub(super) reader: Reader,
    pub(super) promised: Promised,
}

struct Inner {
    pool: String,
    pools: Pools,
    git: Git,
    reader: Reader,
    boot: String,
    promised: Promised,
    kept: Mutex<BTreeMap<String, Arc<Kept>>>,
    /// One fill of a checkout at a time; who comes meanwhile waits for it.
    filling: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    evictions: Mutex<evict::Evictions>,
    /// Full checkouts that are made of layers.
    promoting: Mutex<BTreeSet<String>>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

/// All kept checkouts of a pool. Cheap to clone.
#[derive(Clone)]
pub(super) struct Checkouts {
    inner: Arc<Inner>,
}

impl Checkouts {
    /// `boot` is the machine's: what was not on the disk when it went down is not trusted.
    pub(super) fn new(pool: &str, rooms: Rooms, boot: &str, tasks: TaskTracker, cancel: CancellationToken) -> Self {
        let Rooms { pools, git, reader, promised } = rooms;
        let inner = Inner {
            pool: pool.to_owned(),
            pools,
            git,
            reader,
            boot: boot.to_owned(),
            promised,
            kept: Mutex::default(),
            filling: Mutex::default(),
            evictions: Mutex::default(),
            promoting: Mutex::default(),
            cancel,
            tasks,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Takes up what an earlier agent left; what is not whole goes.
    pub(super) fn take_up(&self, root: &Path) -> io::Result<()> {
        let place = root.join(DIRECTORY);
        directory(&place, 0o700)?;
        let records: Vec<Record> = record::read_all(&place);
        let mut known: BTreeMap<String, Arc<Kept>> = BTreeMap::new();
        let trusted = |record: &&Record| record.durable || record.boot == self.inner.boot;
        // Full ones first: layers stand on them.
        for is_layer in [false, true] {
            for record in records.iter().filter(trusted).filter(|record| record.base.is_some() == is_layer) {
                let home = place.join(&record.name);
                let base = match &record.base {
                    None => None,
                    Some(base) => match known.get(base) {
                        Some(base) => Some(Arc::clone(base)),
                        None => continue,
                    },
                };
                if home.join("tree").is_dir() {
                    let kept = Kept {
                        root: home,
                        record: Mutex::new(record.clone()),
                        base,
                        is_doubtful: AtomicBool::new(false),
                    };
                    known.insert(record.name.clone(), Arc::new(kept));
                }
            }
        }
        for name in record::names(&place).into_iter().filter(|name| !known.contains_key(name)) {
            self.remove(&place, &name)?;
        }
        *self.kept() = known;
        Ok(())
    }

    /// The checkout, made where it is not there yet.
    pub(super) async fn obtain(
        &self,
        root: &Path,
        wanted: &Wanted<'_>,
        steps: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Arc<Kept>, Reason> {
        if let Some(full) = self.known(&wanted.full_name()) {
            return Ok(full);
        }
        let (settings, name) = (wanted.settings(), wanted.name());
        let turn = self.turn(&name);
        let filled = {
            let _turn = turn.lock().await;
            match self.known(&name) {
                Some(known) => Ok(known),
                None => {
                    let base = self.nearest(wanted, &settings).await;
                    self.make(root, &name, base, wanted, steps, cancel).await
                }
            }
        };
        if let Ok(kept) = &filled {
            self.promote(root, kept, wanted);
        }
        let mut filling = lock(&self.inner.filling);
        // Nobody else has it: one is here, one in the map.
        if Arc::strong_count(&turn) <= 2 {
            filling.remove(&name);
        }
        filled
    }

    /// Who holds it makes or removes the checkout of this name.
    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(lock(&self.inner.filling).entry(name.to_owned()).or_default())
    }

    /// The one of this name, where it is there: for who had it before.
    pub(super) fn named(&self, name: &str) -> Option<Arc<Kept>> {
        self.kept().get(name).cloned()
    }

    fn known(&self, name: &str) -> Option<Arc<Kept>> {
        let known = Arc::clone(self.kept().get(name)?);
        // Held here and by the map: with nobody's files, it can be made anew.
        let doubtful = known.is_doubtful.load(Ordering::SeqCst) && Arc::strong_count(&known) <= 2;
        if doubtful || !known.is_there() {
            tracing::warn!(checkout = name, "its files went with a filesystem that is gone; it is made anew");
            self.kept().remove(name);
            return None;
        }
        let moment = now();
        let mut record = known.record();
        let before = std::mem::replace(&mut record.used_at, moment);
        record.uses = record.uses.saturating_add(1);
        drop(record);
        if moment.0.saturating_sub(before.0) > USED_EVERY_MS {
            let written = Arc::clone(&known);
            self.inner.tasks.spawn_blocking(move || written.write_down());
        }
        Some(known)
    }

    async fn make(
        &self,
        root: &Path,
        name: &str,
        base: Option<(Arc<Kept>, Changes)>,
        wanted: &Wanted<'_>,
        steps: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Arc<Kept>, Reason> {
        self.find_room(root, wanted, base.as_ref(), steps).await?;
        let place = root.join(DIRECTORY);
        let home = place.join(name);
        let (room, folder, gone) = (self.clone(), place.clone(), name.to_owned());
        let begun = blocking(move || {
            directory(&folder, 0o700)?;
            spread(&folder);
            // What a failed one left.
            room.remove(&folder, &gone)?;
            directory(&folder.join(&gone), 0o700)?;
            directory(&folder.join(&gone).join("tree"), 0o755)
        });
        begun.await.map_err(|error| unwritable(&home, &error))?;
        let tree = home.join("tree");
        let (git, tree, over) = (&self.inner.git, &tree, base.as_ref());
        let filled = self.within_floor(root, cancel, |cancel| async move {
            match over {
                Some((base, changes)) => fill::layer(git, tree, wanted, base, changes, steps, &cancel).await,
                None => fill::full(git, tree, wanted, steps, &cancel).await,
            }
        });
        let filled = filled.await;
        let base = base.map(|(base, _)| base);
        let kept = match filled {
            Ok(filled) => {
                let record = Record {
                    name: name.to_owned(),
                    url: wanted.pin.url().key().to_owned(),
                    commit: wanted.commit,
                    settings: wanted.settings(),
                    base: base.as_ref().map(|base| base.name()),
                    files: filled.files,
                    bytes: filled.bytes,
                    own_bytes: filled.own_bytes,
                    stamp: filled.stamp,
                    boot: self.inner.boot.clone(),
                    durable: false,
                    created_at: now(),
                    used_at: now(),
                    uses: 1,
                };
                let kept = Arc::new(Kept {
                    root: home.clone(),
                    record: Mutex::new(record.clone()),
                    base,
                    is_doubtful: AtomicBool::new(false),
                });
                let at = place.clone();
                blocking(move || record::write(&at, &record)).await.map(|()| kept).map_err(|e| unwritable(&home, &e))
            }
            Err(reason) => Err(reason),
        };
        match kept {
            Ok(kept) => {
                self.kept().insert(name.to_owned(), Arc::clone(&kept));
                self.make_durable(&kept);
                Ok(kept)
            }
            Err(reason) => {
                if let Err(error) = self.remove(&place, name) {
                    tracing::warn!(%error, checkout = name, "a half-made checkout could not be removed yet");
                }
                Err(reason)
            }
        }
    }

    /// The full one with the same settings that differs least, where a layer over it is worth it.
    async fn nearest(&self, wanted: &Wanted<'_>, settings: &str) -> Option<(Arc<Kept>, Changes)> {
        // A layer knows one index.
        if wanted.is_manifest() {
            return None;
        }
        let mut full: Vec<(Timestamp, CommitId, Arc<Kept>)> = {
            let kept = self.kept();
            let full = kept.values().filter_map(|one| {
                let record = one.record();
                (record.base.is_none() && record.settings == settings && one.is_sound())
                    .then(|| (record.used_at, record.commit, Arc::clone(one)))
            });
            full.collect()
        };
        full.sort_by_key(|(used_at, ..)| std::cmp::Reverse(*used_at));
        full.truncate(fill::BASES_MAX);
        let (reader, pin, commit) = (self.inner.reader.clone(), wanted.pin.clone(), wanted.commit);
        let found = blocking(move || Ok(fill::nearest(&reader, &pin, commit, full))).await;
        found.ok().flatten()
    }

    /// Writes it through to the disk, and then says so.
    fn make_durable(&self, kept: &Arc<Kept>) {
        let kept = Arc::clone(kept);
        self.inner.tasks.spawn_blocking(move || {
            match fs::File::open(&kept.root).and_then(|home| Ok(rustix::fs::syncfs(&home)?)) {
                Ok(()) => {
                    kept.record().durable = true;
                    kept.write_down();
                }
                Err(error) => {
                    kept.is_doubtful.store(true, Ordering::SeqCst);
                    tracing::warn!(%error, checkout = kept.name(), "not written through to the disk");
                }
            }
        });
    }

    /// Moves directory and record away. Again is the same as once.
    fn remove(&self, place: &Path, name: &str) -> io::Result<()> {
        // The record first: without it the directory is nothing.
        record::remove(place, name)?;
        self.inner.pools.discard(&place.join(name))
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Kept>>> {
        lock(&self.inner.kept)
    }
}

/// A poisoned lock guards a map that is still whole: every change to it is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
