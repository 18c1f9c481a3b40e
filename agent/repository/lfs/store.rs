//! Large files on the pool, by what they contain: `<pool>/stoker/lfs/<trust>/<aa>/<bb>/<sha256>`.
//!
//! A file gets its name only when its content was seen to have that hash, and is never written to again: builds get
//! copies. When it was last used is its time of modification.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use stoker_core::identity::Component;

use super::pointer::{LfsOid, Pointer};
use crate::repository::disk::{make_directory, names, sync_directory};

/// Where files lie until they are whole.
const UNFINISHED: &str = ".tmp";

/// Below `<pool>/stoker`, checked just now.
#[derive(Debug, Clone)]
pub(super) struct ObjectStore {
    top: PathBuf,
}

/// A file of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) used_at: SystemTime,
}

impl ObjectStore {
    pub(super) fn new(root: &Path) -> Self {
        Self { top: root.join("lfs") }
    }

    pub(super) fn path(&self, trust: &str, oid: LfsOid) -> PathBuf {
        self.top.join(Component::of(&[trust]).as_str()).join(oid.path())
    }

    /// Whether the object is here; it counts as used now. One of another length than its pointer says is none.
    pub(super) fn has(&self, trust: &str, pointer: Pointer) -> io::Result<bool> {
        let path = self.path(trust, pointer.oid);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
            Ok(meta) if !meta.is_file() || meta.len() != pointer.bytes => Ok(false),
            Ok(_) => {
                // Its order among those that may go; worth no failure.
                let _ =
                    File::open(&path).and_then(|file| file.set_times(FileTimes::new().set_modified(SystemTime::now())));
                Ok(true)
            }
        }
    }

    /// A place for an object that is on its way.
    pub(super) fn begin(&self, trust: &str, pointer: Pointer) -> io::Result<Incoming> {
        let temporary = self.temporary(&pointer.oid.to_string())?;
        let file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let target = self.path(trust, pointer.oid);
        Ok(Incoming { file, temporary, target, pointer, hash: Sha256::new(), written: 0, kept: false })
    }

    /// A path for something that is there for a moment.
    pub(super) fn temporary(&self, name: &str) -> io::Result<PathBuf> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        make_directory(&self.top)?;
        let dir = self.top.join(UNFINISHED);
        make_directory(&dir)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(dir.join(format!("{name}-{}-{number}", std::process::id())))
    }

    /// Removes what a killed agent left on its way.
    pub(super) fn clear(&self) -> io::Result<()> {
        let dir = self.top.join(UNFINISHED);
        names(&dir)?.iter().filter(|name| !name.is_empty()).try_for_each(|name| fs::remove_file(dir.join(name)))
    }

    /// Everything that is here.
    pub(super) fn held(&self) -> io::Result<Vec<Held>> {
        let mut held = Vec::new();
        for trust in names(&self.top)?.iter().filter(|name| !name.is_empty() && *name != UNFINISHED) {
            let trust = self.top.join(trust);
            for first in names(&trust)? {
                for second in names(&trust.join(&first))? {
                    let dir = trust.join(&first).join(second);
                    for name in names(&dir)? {
                        let path = dir.join(name);
                        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
                        held.push(Held { path, bytes: meta.len(), used_at: meta.modified()? });
                    }
                }
            }
        }
        Ok(held)
    }

    /// Has the least recently used removed until `bytes` are free or nothing is left; `remove` tells whether one went. Gives
    /// what became free.
    pub(super) fn evict(&self, bytes: u64, mut remove: impl FnMut(&Path) -> io::Result<bool>) -> io::Result<u64> {
        let mut held = self.held()?;
        held.sort_by_key(|held| held.used_at);
        let mut freed = 0_u64;
        for held in held {
            if freed >= bytes {
                break;
            }
            if remove(&held.path)? {
                freed = freed.saturating_add(held.bytes);
            }
        }
        Ok(freed)
    }
}

/// Why an object was not kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error("{0}")]
    Disk(#[from] io::Error),
    #[error("{bytes} bytes came, its pointer says {expected}")]
    Length { bytes: u64, expected: u64 },
    #[error("what came has the hash {0}")]
    Hash(LfsOid),
}

/// An object on its way. Dropped before it is whole, nothing stays of it.
pub(super) struct Incoming {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    pointer: Pointer,
    hash: Sha256,
    written: u64,
    kept: bool,
}

impl Incoming {
    pub(super) fn write(&mut self, part: &[u8]) -> Result<(), KeepError> {
        self.written = self.written.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
        if self.written > self.pointer.bytes {
            return Err(KeepError::Length { bytes: self.written, expected: self.pointer.bytes });
        }
        self.hash.update(part);
        Ok(self.file.write_all(part)?)
    }

    /// Gives it its name, on the disk when this returns.
    pub(super) fn keep(mut self) -> Result<(), KeepError> {
        if self.written != self.pointer.bytes {
            return Err(KeepError::Length { bytes: self.written, expected: self.pointer.bytes });
        }
        let oid = LfsOid::new(std::mem::take(&mut self.hash).finalize().into());
        if oid != self.pointer.oid {
            return Err(KeepError::Hash(oid));
        }
        self.file.set_permissions(fs::Permissions::from_mode(0o444))?;
        self.file.sync_all()?;
        let mut above: Vec<&Path> = self.target.ancestors().skip(1).take(3).collect();
        above.reverse();
        for dir in &above {
            make_directory(dir)?;
        }
        fs::rename(&self.temporary, &self.target)?;
        self.kept = true;
        above.iter().rev().try_for_each(|dir| sync_directory(dir))?;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            // One that stays is removed at the next start.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn pointer(content: &[u8]) -> Pointer {
        Pointer { oid: LfsOid::new(Sha256::digest(content).into()), bytes: content.len() as u64 }
    }

    fn put(store: &ObjectStore, trust: &str, content: &[u8]) -> Pointer {
        let pointer = pointer(content);
        let mut incoming = store.begin(trust, pointer).unwrap();
        content.chunks(3).for_each(|part| incoming.write(part).unwrap());
        incoming.keep().unwrap();
        pointer
    }

    #[test]
    fn only_what_its_name_says_gets_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::new(dir.path());
        let good = put(&store, "public", b"content");
        let path = store.path("public", good.oid);
        assert_eq!(fs::read(&path).unwrap(), b"content");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
        assert!(store.has("public", good).unwrap());
        assert!(!store.has("internal", good).unwrap(), "nothing is shared across classes");
        assert!(!store.has("public", Pointer { bytes: 8, ..good }).unwrap());

        let other = pointer(b"another");
        let wrong: [&[u8]; 4] = [b"anothen", b"anothe", b"another!", b""];
        for content in wrong {
            let mut incoming = store.begin("public", other).unwrap();
            let written = incoming.write(content);
            assert!(written.and_then(|()| incoming.keep()).is_err(), "{content:?}");
        }
        assert!(!store.has("public", other).unwrap());
        assert_eq!(names(&store.top.join(UNFINISHED)).unwrap(), Vec::<String>::new());
        assert_eq!(store.held().unwrap().len(), 1);
    }

    #[test]
    fn the_least_recently_used_go_first_and_never_what_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::new(dir.path());
        let all: Vec<_> =
            [&b"one1"[..], b"two2", b"thr3", b"fou4"].iter().map(|content| put(&store, "", content)).collect();
        for (age, pointer) in all.iter().enumerate() {
            let used = SystemTime::now() - Duration::from_secs(1000 - age as u64);
            File::open(store.path("", pointer.oid)).unwrap().set_times(FileTimes::new().set_modified(used)).unwrap();
        }
        assert!(store.has("", all[1]).unwrap(), "used now");
        let needed = store.path("", all[0].oid);
        let remove = |path: &Path| if path == needed { Ok(false) } else { fs::remove_file(path).map(|()| true) };
        assert_eq!(store.evict(5, remove).unwrap(), 8);
        let left: Vec<_> = all.iter().map(|pointer| store.has("", *pointer).unwrap()).collect();
        assert_eq!(left, [true, true, false, false]);
        assert_eq!(store.evict(u64::MAX, remove).unwrap(), 4);
        assert!(store.has("", all[0]).unwrap());
    }

    #[test]
    fn what_a_killed_agent_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::new(dir.path());
        store.clear().unwrap();
        std::mem::forget(store.begin("", pointer(b"x")).unwrap());
        assert_eq!(names(&store.top.join(UNFINISHED)).unwrap().len(), 1);
        store.clear().unwrap();
        assert_eq!(names(&store.top.join(UNFINISHED)).unwrap().len(), 0);
    }
}
