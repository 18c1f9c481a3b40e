//! Caches that builds of one tenant share, and the file times that make them safe.
//!
//! Tools like make and cargo reuse an output that is younger than its sources. In a cache that several commits use one
//! after the other that is only right if a file that changed is younger than every output that was made from it before. So
//! for each cache it is remembered when each path last changed from one build's commit to the next one's, and files get
//! those times; all others keep the one time of their checkout, which is old. Two commits at once would still disturb each
//! other: the second gets a place ("slot") of its own, as a second workspace of a CI job does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use stoker_core::identity::{CommitId, Component};

use super::disk::directory;
use super::index;
use super::trees::git_dir_of;
use crate::node::files::{self, read_record};
use crate::repository::Changes;

/// Where the times are remembered, below the agent's directory of the pool.
pub(super) const TIMES: &str = "times";
/// More paths than these make all files look changed.
const PATHS_MAX: usize = 50_000;
const RECORD_BYTES_MAX: u64 = 32 << 20;
/// Caches whose times are remembered.
const RECORDS_MAX: usize = 4096;
/// Slots of one tenant.
const SLOTS_MAX: u32 = 1024;

/// Who uses which caches for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The folder of tenant and trust class.
    pub(super) tenant: String,
    pub(super) keys: BTreeSet<String>,
    /// The repository's key.
    pub(super) repository: String,
    pub(super) commit: CommitId,
    /// With submodules, with large files: the same commit in another form.
    pub(super) form: (bool, bool),
    /// Of a manifest: what its projects are at, the commit does not tell.
    pub(super) several: bool,
    /// Which of the tenant's places it has; the first is 1.
    pub(super) slot: u32,
}

/// The slot for a line that begins, among those that live: its own where that is free, else the first in which no other
/// commit uses one of its caches.
pub(super) fn slot<'a>(live: impl Iterator<Item = &'a Line>, new: &Line) -> u32 {
    let disturbs = |other: &Line| {
        other.tenant == new.tenant
            && !other.keys.is_disjoint(&new.keys)
            && (other.several
                || new.several
                || (&other.repository, other.commit, other.form) != (&new.repository, new.commit, new.form))
    };
    let taken: BTreeSet<u32> = live.filter(|other| disturbs(other)).map(|other| other.slot).collect();
    let own = (new.slot >= 1).then_some(new.slot);
    own.into_iter().chain(1..SLOTS_MAX).find(|slot| !taken.contains(slot)).unwrap_or(SLOTS_MAX)
}

/// What a build sees as `STOKER_CACHE`, below the tenant's folder.
pub(super) fn folder(cache: &Path, slot: u32) -> PathBuf {
    if slot <= 1 { cache.to_owned() } else { cache.join(slot_name(slot)) }
}

fn slot_name(slot: u32) -> String {
    // No key begins so.
    format!("~{slot}")
}

/// Whether a name below a tenant's folder is of a further place, as [`folder`] gives it.
pub(super) fn is_slot(name: &str) -> bool {
    slot_of(name).is_some()
}

/// Which one it is.
pub(super) fn slot_of(name: &str) -> Option<u32> {
    let slot = name.strip_prefix('~').and_then(|number| number.parse::<u32>().ok());
    slot.filter(|slot| (2..=SLOTS_MAX).contains(slot) && slot_name(*slot) == name)
}

/// When files of a work tree last changed, as nanoseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Times {
    /// All files that are not among `paths`.
    pub(super) all: Option<u64>,
    /// Those that changed later.
    pub(super) paths: BTreeMap<PathBuf, u64>,
}

impl Times {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_none() && self.paths.is_empty()
    }

    /// The later time of each.
    fn merge(&mut self, other: &Self) {
        self.all = self.all.max(other.all);
        for (path, time) in &other.paths {
            let own = self.paths.entry(path.clone()).or_default();
            *own = (*own).max(*time);
        }
    }

    /// Gives the files of the work tree `top` these times, and its index; `others`: the folders of its submodules or
    /// projects, below `src`.
    pub(super) fn apply<'a>(&self, top: &Path, src: &Path, others: impl Iterator<Item = &'a str>) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let time = |path: &Path| self.paths.get(path).copied().max(self.all);
        index::touch(top, &top.join(".git/index"), time)?;
        for tree in others.filter(|_| self.all.is_some()).map(|path| src.join(path)) {
            index::touch(&tree, &git_dir_of(&tree)?.join("index"), |_| self.all)?;
        }
        Ok(())
    }
}

/// What is remembered of one cache and one repository.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    commit: CommitId,
    form: (bool, bool),
    /// Under which the machine ran: what was written last may be lost with it. Empty: the commit says too little.
    boot: String,
    times: Times,
}

/// What is done for one line before its build begins.
pub(super) struct Turn<'a> {
    /// The agent's directory of the pool.
    pub(super) root: &'a Path,
    pub(super) boot: &'a str,
    pub(super) line: &'a Line,
    /// The folder of the caches, as the build sees it.
    pub(super) folder: &'a Path,
    /// What differs between a commit and the line's; nothing where that is not known.
    pub(super) changes: &'a dyn Fn(CommitId) -> Option<Changes>,
}

impl Turn<'_> {
    /// Remembers that this commit uses the caches from now on, and tells what times its files must have. Before the
    /// caches' directories are made.
    pub(super) fn take(&self) -> io::Result<Times> {
        let place = self.root.join(TIMES);
        directory(&place, 0o700)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let mut all = Times::default();
        let mut known = BTreeMap::new();
        for key in &self.line.keys {
            let (tenant, slot) = (&self.line.tenant, self.line.slot.to_string());
            let name = Component::of(&[key.as_str(), &slot, tenant, &self.line.repository]);
            let file = files::record(&place, name.as_str());
            let times = match (read_record::<Record>(&file, RECORD_BYTES_MAX), self.folder.join(key).exists()) {
                // Nothing was made from anything yet.
                (None, false) => Times::default(),
                (Some(record), _)
                    if record.boot == self.boot
                        && record.form == self.line.form
                        && (self.line.slot > 1 || !is_disturbed(&place, &file, tenant, key)) =>
                {
                    self.advance(record, now, &mut known)
                }
                // Whatever it holds may be younger than any file.
                _ => Times { all: Some(now), paths: BTreeMap::new() },
            };
            all.merge(&times);
            let (commit, form) = (self.line.commit, self.line.form);
            let boot = if self.line.several { String::new() } else { self.boot.to_owned() };
            let record = Record { commit, form, boot, times };
            // After a loss of power it is not trusted.
            files::replace(&file, &serde_json::to_vec(&record)?, false)?;
        }
        bound(&place)?;
        Ok(all)
    }

    fn advance(&self, record: Record, now: u64, known: &mut BTreeMap<CommitId, Option<Changes>>) -> Times {
        let Record { commit, mut times, .. } = record;
        if commit == self.line.commit {
            return times;
        }
        match known.entry(commit).or_insert_with(|| (self.changes)(commit)) {
            Some(changes) if changes.attributes.is_empty() && !changes.submodules => {
                times.paths.extend(changes.written.iter().map(|path| (path.clone(), now)));
            }
            // Any file may have another form.
            _ => times = Times { all: Some(now), paths: BTreeMap::new() },
        }
        if times.paths.len() > PATHS_MAX {
            times = Times { all: Some(now), paths: BTreeMap::new() };
        }
        times
    }
}

/// Remembers that others than builds of commits write to a cache, or to all of a tenant's: what it holds may be younger than
/// any file. Told before they begin: until they
/// have ended, builds have other places.
pub(super) fn disturb(root: &Path, tenant: &str, key: Option<&str>) -> io::Result<()> {
    let place = root.join(TIMES);
    directory(&place, 0o700)?;
    files::replace(&disturbed(&place, tenant, key), b"{}", false)
}

fn disturbed(place: &Path, tenant: &str, key: Option<&str>) -> PathBuf {
    let name = Component::of(&["disturbed", tenant, key.unwrap_or_default()]);
    files::record(place, name.as_str())
}

/// Whether others wrote since this was remembered.
fn is_disturbed(place: &Path, record: &Path, tenant: &str, key: &str) -> bool {
    let at = |file: &Path| fs::metadata(file).and_then(|meta| meta.modified()).ok();
    let mut marks = [Some(key), None].into_iter().filter_map(|key| at(&disturbed(place, tenant, key)));
    marks.any(|mark| at(record).is_none_or(|at| at <= mark))
}

/// Forgets the caches that were not used for longest: what is not remembered makes all files young once.
fn bound(place: &Path) -> io::Result<()> {
    let files: Vec<fs::DirEntry> = fs::read_dir(place)?.collect::<io::Result<_>>()?;
    let over = files.len().saturating_sub(RECORDS_MAX);
    if over == 0 {
        return Ok(());
    }
    let used = |file: &fs::DirEntry| file.metadata().and_then(|meta| meta.modified()).unwrap_or(UNIX_EPOCH);
    let mut files: Vec<(SystemTime, PathBuf)> = files.iter().map(|file| (used(file), file.path())).collect();
    files.sort();
    files.iter().take(over).try_for_each(|(_, file)| fs::remove_file(file))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sizing::is_cache_key;

    fn line(tenant: &str, keys: &[&str], commit: u8, slot: u32) -> Line {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        Line {
            tenant: tenant.into(),
            keys,
            repository: "r".into(),
            commit: CommitId::new([commit; 20]),
            form: (false, false),
            several: false,
            slot,
        }
    }

    #[test]
    fn what_a_slot_is_called_is_no_key() {
        let name = |slot| folder(Path::new(""), slot).to_string_lossy().into_owned();
        for slot in [2, 9, 10, SLOTS_MAX] {
            assert!(is_slot(&name(slot)) && !is_cache_key(&name(slot)), "{slot}");
        }
        for neither in ["", "~", "~0", "~1", "~02", "~+2", "~99999", "~x", ".a", "A", "a/b", "ä", &"x".repeat(65)] {
            assert!(!is_slot(neither) && !is_cache_key(neither), "{neither}");
        }
        assert!(["a", "target", "0.1-x_y", &"x".repeat(64)].into_iter().all(is_cache_key));
    }

    #[test]
    fn another_commit_on_the_same_cache_gets_a_place_of_its_own() {
        let live = [line("a", &["target"], 1, 1), line("a", &["target"], 2, 2), line("b", &["target"], 3, 1)];
        let slot_of = |new: Line| slot(live.iter(), &new);
        assert_eq!(slot_of(line("a", &["target", "x"], 3, 0)), 3);
        assert_eq!(slot_of(line("a", &["target"], 1, 0)), 1, "the same commit shares");
        assert_eq!(slot_of(line("a", &["target"], 2, 0)), 2, "where its own is");
        assert_eq!(slot_of(line("a", &["other"], 9, 0)), 1);
        assert_eq!(slot_of(line("c", &["target"], 9, 0)), 1);
        let several = Line { several: true, ..line("a", &["target"], 1, 0) };
        assert_eq!(slot_of(several), 3, "the commit of a manifest does not tell what its projects are at");
    }

    #[test]
    fn what_changed_on_the_way_stays_young_whoever_comes_next() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("cache");
        let written = |path: &str| Changes { written: vec![path.into()], ..Changes::default() };
        let take = |commit: u8, boot: &str, changes: Option<Changes>| {
            let line = line("a", &["target"], commit, 1);
            let changes = |_| changes.clone();
            let (root, folder) = (place.path(), folder.as_path());
            Turn { root, boot, line: &line, folder, changes: &changes }.take().unwrap()
        };
        assert!(take(1, "boot", None).is_empty(), "an empty cache needs nothing");
        fs::create_dir_all(folder.join("target")).unwrap();
        let second = take(2, "boot", Some(written("x")));
        assert_eq!(second.paths.keys().collect::<Vec<_>>(), [Path::new("x")]);
        // The same commit again, though its first build may not have come to x: it must not trust what is there.
        assert_eq!(take(2, "boot", None), second);
        let back = take(1, "boot", Some(written("x")));
        assert!(back.paths[Path::new("x")] > second.paths[Path::new("x")]);
        let third = take(3, "boot", Some(written("y")));
        assert_eq!(third.paths[Path::new("x")], back.paths[Path::new("x")]);
        // What is not known to be safe makes all files young.
        for changes in [None, Some(Changes { submodules: true, ..Changes::default() })] {
            assert!(take(4, "boot", changes).all.is_some());
            take(3, "boot", Some(Changes::default()));
        }
        assert!(take(3, "another boot", Some(Changes::default())).all.is_some());
        for key in [Some("target"), None] {
            take(3, "boot", Some(Changes::default()));
            disturb(place.path(), "b", key).unwrap();
            disturb(place.path(), "a", Some("other")).unwrap();
            let before = take(3, "boot", Some(Changes::default())).all;
            disturb(place.path(), "a", key).unwrap();
            assert!(take(3, "boot", Some(Changes::default())).all > before, "others wrote to it");
        }
        let several = Line { several: true, ..line("a", &["target"], 3, 1) };
        for _ in 0..2 {
            let (root, folder, changes) = (place.path(), folder.as_path(), |_| Some(Changes::default()));
            Turn { root, boot: "boot", line: &several, folder, changes: &changes }.take().unwrap();
        }
        assert!(take(3, "boot", Some(Changes::default())).all.is_some(), "after a manifest nothing is known");
    }
}
