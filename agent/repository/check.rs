//! The cheap check: what can be seen of damage without reading the objects.
//!
//! Every pack is there, whole to its last bytes, and has the index that was made for it; every index has its pack; refs
//! name what is there. It costs a few reads a pack (gitformat-pack(5)), so it runs at every start, for one repository
//! after the other while the agent runs ([`rotate`]), and before anything is published. Damage within a pack is found by
//! git when it reads there, and by [`super::verify`].

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stoker_core::identity::CommitId;
use tokio::time::{Instant, sleep};

use super::Shared;
use super::disk::{StorePaths, is_leftover, names};
use super::entry::Entry;
use super::fetch::blocking;
use super::listing::Wanted;
use super::read::Reader;
use super::snapshot::SnapshotPin;
use super::store::Suspicion;

/// How many problems of one place are told.
pub(super) const PROBLEMS_MAX: usize = 50;
/// How many refs are looked up at a start, spread over all of them; later all are.
pub(super) const TIPS_AT_START: usize = 64;
/// The longest pause between two looks for what is due.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The shortest.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Header and trailer of a pack.
const PACK_BYTES_MIN: u64 = 12 + 20;
/// Both checksums at the end of an index.
const INDEX_TRAILER: u64 = 40;
/// The names of packs in a multi-pack-index; longer ones are not looked at.
const MULTI_BYTES_MAX: u64 = 16 << 20;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The file, or the ref.
    pub(super) subject: String,
    /// What is wrong with it.
    pub(super) what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.subject, self.what)
    }
}

fn problem(subject: impl Into<String>, what: impl Into<String>) -> Problem {
    Problem { subject: subject.into(), what: what.into() }
}

/// Looks through the packs of an object store. Blocks.
pub(super) fn packs(objects: &Path) -> io::Result<Vec<Problem>> {
    let dir = objects.join("pack");
    let files: BTreeSet<String> = names(&dir)?.into_iter().filter(|name| !is_leftover(name)).collect();
    let mut problems = Vec::new();
    for name in &files {
        let found = match name.rsplit_once('.') {
            Some((stem, "pack")) if files.contains(&format!("{stem}.idx")) => {
                pack_and_index(&dir.join(name), &dir.join(format!("{stem}.idx"))).err()
            }
            Some((_, "pack")) => Some(problem(name, "has no index")),
            Some((stem, "idx")) if !files.contains(&format!("{stem}.pack")) => Some(problem(name, "has no pack")),
            None if name == "multi-pack-index" => multi(&dir, &files).err(),
            _ => None,
        };
        problems.extend(found);
        if problems.len() >= PROBLEMS_MAX {
            break;
        }
    }
    Ok(problems)
}

fn short(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Problem {
    let name = short(path);
    move |error| problem(name, format!("cannot be read: {error}"))
}

/// The name that a pack gives itself: the checksum of its content, at its end.
pub(super) fn pack_checksum(path: &Path) -> Result<String, Problem> {
    let (sum, _) = pack_trailer(path)?;
    Ok(sum.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A pack's checksum, and how many objects it says that it has.
fn pack_trailer(path: &Path) -> Result<([u8; 20], u32), Problem> {
    let read = || -> io::Result<Option<([u8; 20], u32)>> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        if size < PACK_BYTES_MIN {
            return Ok(None);
        }
        let (mut head, mut sum) = ([0; 12], [0; 20]);
        file.read_exact_at(&mut head, 0)?;
        file.read_exact_at(&mut sum, size - 20)?;
        let [b'P', b'A', b'C', b'K', 0, 0, 0, 2 | 3, count @ ..] = head else { return Ok(None) };
        Ok(Some((sum, u32::from_be_bytes(count))))
    };
    read().map_err(unreadable(path))?.ok_or_else(|| problem(short(path), "is no pack"))
}

/// Whether both are of the same content and of the lengths that they say.
fn pack_and_index(pack: &Path, index: &Path) -> Result<(), Problem> {
    let (sum, objects) = pack_trailer(pack)?;
    let read = || -> io::Result<Option<([u8; 20], u32)>> {
        let file = File::open(index)?;
        let size = file.metadata()?.len();
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, 0)?;
        // Version 1 begins with its fan-out table at once.
        let (table, entry) = if magic == *b"\xfftOc\0\0\0\x02" { (8, 28) } else { (0, 24) };
        let (mut count, mut sum) = ([0; 4], [0; 20]);
        file.read_exact_at(&mut count, table + 255 * 4)?;
        let count = u32::from_be_bytes(count);
        let least = table + 1024 + entry * u64::from(count) + INDEX_TRAILER;
        // Packs above 2 GiB have eight bytes more for each object beyond.
        let most = least + if table == 8 { 8 * u64::from(count) } else { 0 };
        if !(least..=most).contains(&size) {
            return Ok(None);
        }
        file.read_exact_at(&mut sum, size - INDEX_TRAILER)?;
        Ok(Some((sum, count)))
    };
    match read().map_err(unreadable(index))? {
        None => Err(problem(short(index), "has not the length that it says")),
        Some((other, _)) if other != sum => {
            Err(problem(short(pack), "ends otherwise than its index says: it is cut off or changed"))
        }
        Some((_, count)) if count != objects => {
            Err(problem(short(index), format!("has {count} objects, and its pack {objects}")))
        }
        Some(_) => Ok(()),
    }
}

/// Whether all packs that a multi-pack-index names are there.
fn multi(dir: &Path, files: &BTreeSet<String>) -> Result<(), Problem> {
    let path = dir.join("multi-pack-index");
    let read = || -> io::Result<Option<String>> {
        let file = File::open(&path)?;
        let mut head = [0; 12];
        file.read_exact_at(&mut head, 0)?;
        let [b'M', b'I', b'D', b'X', 1, 1, chunks, ..] = head else { return Ok(Some("is none".to_owned())) };
        let mut table = vec![0; 12 * (usize::from(chunks) + 1)];
        file.read_exact_at(&mut table, 12)?;
        let offset = |entry: &[u8]| entry.get(4..12).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        let begins = table.chunks_exact(12).position(|entry| entry.starts_with(b"PNAM"));
        let span = begins.and_then(|at| {
            let mut entries = table.chunks_exact(12).skip(at).filter_map(offset);
            Some((entries.next()?, entries.next()?))
        });
        let Some((from, to)) = span.filter(|(from, to)| from < to && to - from <= MULTI_BYTES_MAX) else {
            return Ok(Some("lists no packs".to_owned()));
        };
        let mut list = vec![0; usize::try_from(to - from).unwrap_or(0)];
        file.read_exact_at(&mut list, from)?;
        let listed = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let missing = listed.map(String::from_utf8_lossy).find(|name| !files.contains(name.as_ref()));
        Ok(missing.map(|name| format!("lists {name}, which is not there")))
    };
    match read().map_err(unreadable(&path))? {
        Some(what) => Err(problem("multi-pack-index", what)),
        None => Ok(()),
    }
}

/// Looks through a snapshot: its files, its packs, and what at most `tips_max` of its refs name. Blocks.
pub(super) fn snapshot(pin: &SnapshotPin, reader: &Reader, tips_max: usize) -> io::Result<Vec<Problem>> {
    for name in ["HEAD", "config", "packed-refs"] {
        if !pin.path().join(name).is_file() {
            return Ok(vec![problem(name, "is missing")]);
        }
    }
    let problems = packs(&pin.path().join("objects"))?;
    if !problems.is_empty() {
        return Ok(problems);
    }
    let refs = match reader.refs(pin) {
        Ok(refs) => refs,
        Err(error) => return Ok(vec![problem("packed-refs", error.to_string())]),
    };
    let step = refs.len().div_ceil(tips_max).max(1);
    let tips: BTreeSet<CommitId> = refs.iter().step_by(step).map(|line| line.target()).collect();
    let tips: Vec<CommitId> = tips.into_iter().collect();
    match reader.count(pin, &tips) {
        Ok(count) if count == tips.len() => Ok(Vec::new()),
        Ok(count) => {
            Ok(vec![problem("packed-refs", format!("names {} objects that are not there", tips.len() - count))])
        }
        Err(error) => Ok(vec![problem("objects", error.to_string())]),
    }
}

impl Shared {
    /// The cheap check of one repository: its newest snapshot, and its store where nobody waits for that. What is wrong is
    /// mended by the next visit, which this asks for.
    pub(super) async fn check(self: &Arc<Self>, entry: &Arc<Entry>) {
        entry.state().checked_at = Some(Instant::now());
        if let Some(pin) = entry.current() {
            let (looked, reader) = (pin.clone(), self.reader.clone());
            let problems = blocking(entry.url.key(), move || snapshot(&looked, &reader, usize::MAX)).await;
            if let Ok(Ok(problems)) = problems
                && let Some(first) = problems.first()
                && pin.path().is_dir()
            {
                self.condemn(entry, &pin, &first.to_string()).await;
                self.suspect(entry, Suspicion { why: first.to_string(), full: false });
                return;
            }
        }
        let Some(name) = entry.state().meta.store.clone() else { return };
        // Only where it is free: a fetch that a build waits for is not held up.
        let Some(turn) = self.stores.get(&name).try_turn() else { return };
        let Ok(root) = (self.pool.root)() else { return };
        let git = StorePaths::new(&root, &name).git();
        let problems =
            blocking(entry.url.key(), move || if git.is_dir() { packs(&git.join("objects")) } else { Ok(Vec::new()) });
        let problems = problems.await;
        drop(turn);
        if let Ok(Ok(problems)) = problems
            && let Some(first) = problems.first()
            && (self.pool.root)().is_ok()
        {
            self.suspect(entry, Suspicion { why: first.to_string(), full: false });
        }
    }

    /// The store may be damaged: the next visit mends it before anything else, and comes soon.
    pub(super) fn suspect(self: &Arc<Self>, entry: &Arc<Entry>, suspicion: Suspicion) {
        let Some(name) = entry.state().meta.store.clone() else {
            let _ = entry.ask(Wanted::default());
            return;
        };
        tracing::error!(repository = entry.url.key(), store = name, "the store may be damaged: {}", suspicion.why);
        self.stores.get(&name).suspect(suspicion);
        let _ = entry.ask(Wanted::default());
    }

    /// A snapshot that is damaged serves nobody new: the newest good one before it does, or none until one is published.
    pub(super) async fn condemn(self: &Arc<Self>, entry: &Arc<Entry>, bad: &SnapshotPin, why: &str) {
        tracing::error!(repository = entry.url.key(), snapshot = bad.name(), "a snapshot is damaged: {why}");
        bad.condemn();
        let older: Vec<SnapshotPin> = {
            let state = entry.state();
            let mut older: Vec<_> = state.superseded.iter().map(|(pin, _)| pin.clone()).collect();
            older.retain(|pin| !pin.is_condemned());
            older.retain(|pin| pin.number() < bad.number() && pin.number() >= state.meta.first_snapshot);
            older.sort_by_key(SnapshotPin::number);
            older
        };
        let reader = self.reader.clone();
        let good = blocking(entry.url.key(), move || {
            older.into_iter().rev().find(|pin| snapshot(pin, &reader, usize::MAX).is_ok_and(|found| found.is_empty()))
        });
        let good = good.await.ok().flatten();
        self.reader.forget(bad.path());
        let mut state = entry.state();
        // Another may have been published meanwhile.
        if state.current.as_ref().is_some_and(|pin| pin.number() == bad.number()) {
            if let Some(good) = &good {
                state.superseded.retain(|(pin, _)| pin.number() != good.number());
            }
            if let Some(bad) = std::mem::replace(&mut state.current, good) {
                state.superseded.push((bad, Instant::now()));
            }
        }
        drop(state);
        self.tick();
    }
}

/// Checks one repository after the other, each once in the configured time, until the agent stops.
pub(super) async fn rotate(shared: Arc<Shared>) {
    let begun = Instant::now();
    loop {
        let all = shared.all();
        let every = shared.config().check;
        let parts = u32::try_from(all.len()).unwrap_or(u32::MAX).saturating_add(1);
        let pause = (every / parts).clamp(PAUSE_MIN, PAUSE_MAX);
        if shared.cancel.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
        // At the start all were looked at.
        let since = |entry: &Arc<Entry>| entry.state().checked_at.unwrap_or(begun);
        let idle = |entry: &&Arc<Entry>| {
            let state = entry.state();
            !state.busy && !state.meta.removed
        };
        let oldest = all.iter().filter(idle).min_by_key(|entry| since(entry));
        if let Some(entry) = oldest.filter(|entry| since(entry).elapsed() >= every)
            && shared.recovery.initialized()
            && (shared.pool.root)().is_ok()
        {
            let _ = shared.cancel.run_until_cancelled(shared.check(entry)).await;
        }
    }
}

/// Removes what can be made again from packs: indexes over several, bitmaps, reverse indexes, commit graphs. Blocks.
pub(super) fn drop_derived(objects: &Path) -> io::Result<()> {
    let pack = objects.join("pack");
    for name in names(&pack)? {
        let derived =
            name.starts_with("multi-pack-index") || [".bitmap", ".rev"].iter().any(|ending| name.ends_with(ending));
        if derived {
            fs::remove_file(pack.join(name))?;
        }
    }
    for place in ["info/commit-graph", "info/commit-graphs"] {
        let path = objects.join(place);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => super::disk::remove_unfinished(&path)?,
            Ok(_) => fs::remove_file(&path)?,
            Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
