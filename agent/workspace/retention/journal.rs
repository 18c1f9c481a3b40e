//! What retention must remember: when things were first seen, when caches were last used, what it last removed. One small
//! file in the state directory, `retention.json`. Without it everything counts as seen for the first time, and is kept
//! longer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stoker_core::quantity::Timestamp;

use crate::node::{Identity, files};

/// The most things whose first sight is remembered; those beyond it do not age.
const SEEN_MAX: usize = 50_000;
/// The most bytes of the file.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// How many of the last removals are told one by one.
const TOLD_MAX: usize = 16;

/// When a thing was first seen, and which thing it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Sighting {
    at: Timestamp,
    inode: u64,
    born: (i64, u32),
}

/// When retention last removed something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// When.
    pub at: Timestamp,
    /// How many things.
    pub count: u64,
    /// What they took on the disk, as far as it was known.
    pub bytes: u64,
    /// The first of them, each with its reason's word.
    pub told: Vec<(String, String)>,
}

/// All that is remembered.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    seen: BTreeMap<String, Sighting>,
    used: BTreeMap<String, Timestamp>,
    pub(super) last: Option<Deletion>,
    /// Since the journal began.
    pub(super) removed: u64,
    pub(super) removed_bytes: u64,
}

pub(super) fn path(state: &Path) -> PathBuf {
    state.join("retention.json")
}

impl Journal {
    /// What an earlier agent remembered; nothing where there is none or it is damaged.
    pub(super) fn read(path: &Path) -> Self {
        let read = || -> io::Result<Option<Self>> {
            match fs::metadata(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Ok(file) if file.len() > FILE_BYTES_MAX => return Err(io::Error::other("is too large")),
                _ => {}
            }
            Ok(Some(serde_json::from_slice(&fs::read(path)?)?))
        };
        read()
            .unwrap_or_else(|error| {
                let path = path.display();
                tracing::error!("{path}: {error}; what retention removes by age counts as seen for the first time");
                None
            })
            .unwrap_or_default()
    }

    /// Whole or not at all, and on the disk when this returns.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        files::replace(path, &serde_json::to_vec(self)?, true)
    }

    /// When this very thing was first seen: now, where it was not yet. Nothing where as many are remembered as may be.
    pub(super) fn first_seen(&mut self, key: &str, identity: Identity, now: Timestamp) -> Option<Timestamp> {
        let sighting = Sighting { at: now, inode: identity.inode, born: identity.born };
        let is_full = self.seen.len() >= SEEN_MAX;
        match self.seen.get_mut(key) {
            Some(known) if (known.inode, known.born) == (sighting.inode, sighting.born) => {
                // A clock that was set back must not make it older than it is.
                known.at = known.at.min(now);
                return Some(known.at);
            }
            Some(known) => *known = sighting,
            None if is_full => return None,
            None => drop(self.seen.insert(key.to_owned(), sighting)),
        }
        Some(now)
    }

    /// Forgets what is in none of the listings that came to their end: `looked` has their prefixes, `there` what is there.
    pub(super) fn forget(&mut self, looked: &BTreeSet<String>, there: &BTreeSet<String>) {
        // Or a directory that it lay in is gone.
        let is_gone = |key: &String| {
            let mut at = key.as_str();
            while let Some((folder, _)) = at.rsplit_once('/') {
                if looked.contains(folder) && !there.contains(at) {
                    return true;
                }
                at = folder;
            }
            false
        };
        self.seen.retain(|key, _| !is_gone(key));
        self.used.retain(|key, _| !is_gone(key));
    }

    /// A build had this cache.
    pub(super) fn use_cache(&mut self, key: &str, now: Timestamp) {
        if self.used.len() < SEEN_MAX || self.used.contains_key(key) {
            self.used.insert(key.to_owned(), now);
        }
    }

    /// When a build last had this cache.
    pub(super) fn used_at(&self, key: &str) -> Option<Timestamp> {
        self.used.get(key).copied()
    }

    /// Something was removed.
    pub(super) fn removed(&mut self, now: Timestamp, gone: &[(String, &'static str, u64)]) {
        if gone.is_empty() {
            return;
        }
        let count = u64::try_from(gone.len()).unwrap_or(u64::MAX);
        let bytes = gone.iter().map(|(.., bytes)| *bytes).fold(0, u64::saturating_add);
        let told = gone.iter().take(TOLD_MAX).map(|(path, word, _)| (path.clone(), (*word).to_owned())).collect();
        self.removed = self.removed.saturating_add(count);
        self.removed_bytes = self.removed_bytes.saturating_add(bytes);
        self.last = Some(Deletion { at: now, count, bytes, told });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    #[test]
    fn the_first_sight_of_a_thing_is_remembered_until_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let thing = |inode| Identity { inode, born: (7, 8) };
        let later = Timestamp(NOW.0 + 1000);
        let mut journal = Journal::read(&path);
        assert_eq!(journal.first_seen("p/a/x", thing(1), NOW), Some(NOW));
        journal.write(&path).unwrap();
        let mut journal = Journal::read(&path);
        assert_eq!(journal.first_seen("p/a/x", thing(1), later), Some(NOW));
        assert_eq!(journal.first_seen("p/a/x", thing(2), later), Some(later), "another thing of that name");
        let back = Timestamp(NOW.0 - 1000);
        assert_eq!(journal.first_seen("p/a/x", thing(2), back), Some(back), "the clock was set back");
        journal.first_seen("p/b/y", thing(3), NOW);
        journal.first_seen("p/c/deep/z", thing(4), NOW);
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        journal.forget(&set(&["p/a"]), &set(&[]));
        let seen = |journal: &Journal| journal.seen.keys().cloned().collect::<Vec<_>>();
        assert_eq!(seen(&journal), ["p/b/y", "p/c/deep/z"], "what was not looked at is remembered");
        journal.forget(&set(&["p/c"]), &set(&["p/c/other"]));
        assert_eq!(seen(&journal), ["p/b/y"], "its directory is gone");
    }

    #[test]
    fn a_damaged_journal_keeps_things_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        fs::write(&path, "{\"seen\": 3").unwrap();
        let mut journal = Journal::read(&path);
        assert_eq!(journal, Journal::default());
        assert_eq!(journal.first_seen("p/a/x", Identity { inode: 1, born: (0, 0) }, NOW), Some(NOW));
    }

    #[test]
    fn what_was_removed_last_is_told() {
        let mut journal = Journal::default();
        journal.removed(NOW, &[]);
        assert_eq!(journal.last, None, "nothing was");
        let gone: Vec<_> = (0..20).map(|n| (format!("/p/{n}"), "ORPHAN", 3)).collect();
        journal.removed(NOW, &gone);
        let last = journal.last.unwrap();
        assert_eq!((last.count, last.bytes, last.told.len(), journal.removed), (20, 60, TOLD_MAX, 20));
    }
}
