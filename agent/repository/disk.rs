//! Where a repository lies on the pool, and the small file work that all of the room shares.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use stoker_core::reason::{Code, Reason};

pub(super) use crate::node::files::{replace, sync_directory};

/// The paths of one repository, below `<pool>/stoker/repositories/<folder>`.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) folder: PathBuf,
}

impl Paths {
    pub(super) fn new(root: &Path, folder: &str) -> Self {
        Self { folder: repositories(root).join(folder) }
    }

    /// Makes the folder, and nothing above `<pool>/stoker`: where the pool has gone since it was looked at, that is missing,
    /// and nothing is made on the disk below.
    pub(super) fn make_folder(&self) -> io::Result<()> {
        self.folder.parent().map_or(Ok(()), make_directory)?;
        make_directory(&self.folder)
    }

    pub(super) fn snapshots(&self) -> PathBuf {
        self.folder.join("snapshots")
    }

    pub(super) fn meta(&self) -> PathBuf {
        self.folder.join("meta")
    }

    /// What may be lost of it.
    pub(super) fn seen(&self) -> PathBuf {
        self.folder.join("seen")
    }
}

/// The directory of all repositories.
pub(super) fn repositories(root: &Path) -> PathBuf {
    root.join("repositories")
}

/// The directory of all stores.
pub(super) fn stores(root: &Path) -> PathBuf {
    root.join("stores")
}

/// The paths of one store, below `<pool>/stoker/stores/<name>`.
#[derive(Debug, Clone)]
pub(super) struct StorePaths {
    pub(super) folder: PathBuf,
}

impl StorePaths {
    pub(super) fn new(root: &Path, name: &str) -> Self {
        Self { folder: stores(root).join(name) }
    }

    /// Makes the folder, and nothing above `<pool>/stoker`; see [`Paths::make_folder`].
    pub(super) fn make_folder(&self) -> io::Result<()> {
        self.folder.parent().map_or(Ok(()), make_directory)?;
        make_directory(&self.folder)
    }

    /// The bare repository that fetches write to.
    pub(super) fn git(&self) -> PathBuf {
        self.folder.join("store.git")
    }

    /// Whether there is a store to fetch into. Its HEAD is written last, and is never empty unless the power took it.
    pub(super) fn has_store(&self) -> bool {
        fs::metadata(self.git().join("HEAD")).is_ok_and(|meta| meta.is_file() && meta.len() > 0)
    }

    /// Where a first fill works; it becomes the store when it is whole.
    pub(super) fn fill(&self) -> PathBuf {
        self.folder.join(".tmp-fill")
    }

    /// Which store this is: another one in its place, after damage, has another word.
    pub(super) fn generation(&self) -> Option<String> {
        fs::read_to_string(self.git().join(GENERATION)).ok().map(|text| text.trim_end().to_owned())
    }
}

/// The file in a store that tells it from others that stood in its place.
pub(super) const GENERATION: &str = "stoker-generation";

/// Names of what a killed git leaves in an object store.
pub(super) fn is_leftover(name: &str) -> bool {
    name.ends_with(".lock")
        || name == "packed-refs.new"
        || name.starts_with("tmp_")
        || name.starts_with(".tmp-")
        || name.starts_with("incoming-")
        || (name.starts_with("pack-") && name.ends_with(".keep"))
}

/// The number of a snapshot's directory.
pub(super) fn snapshot_number(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number: &u64| number.to_string() == name)
}

/// The names in a directory that are UTF-8, as all of ours are; none where it is not there.
pub(super) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.filter_map(|entry| match entry {
        Ok(entry) => entry.file_name().into_string().ok().map(Ok),
        Err(error) => Some(Err(error)),
    });
    names.collect()
}

/// Removes an unfinished fill or snapshot. What is not there is gone already.
#[expect(clippy::disallowed_methods, reason = "no build can write below `repositories`: nobody swaps names here")]
pub(super) fn remove_unfinished(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a directory, but not its parents. One that is there is good.
pub(super) fn make_directory(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Bytes that these trees hold on disk, each inode once however often it is linked. What vanishes meanwhile is not
/// counted; what cannot be read neither.
pub(super) fn used_bytes(trees: &[PathBuf]) -> u64 {
    let mut seen = HashSet::new();
    let mut todo: Vec<PathBuf> = trees.to_vec();
    let mut bytes = 0_u64;
    while let Some(path) = todo.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            let children = fs::read_dir(&path).into_iter().flatten().flatten();
            todo.extend(children.map(|entry| entry.path()));
        } else if meta.nlink() > 1 && !seen.insert((meta.dev(), meta.ino())) {
            continue;
        }
        bytes = bytes.saturating_add(meta.blocks().saturating_mul(512));
    }
    bytes
}

/// What a failed file operation is for callers.
pub(super) fn io_reason(subject: &str, doing: &str, error: &io::Error) -> Reason {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::DiskFloor,
        _ => Code::PoolNotReady,
    };
    Reason::new(code, subject, format!("{doing}: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_inode_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(&a).unwrap();
        fs::create_dir_all(&b).unwrap();
        fs::write(a.join("x"), vec![7; 100_000]).unwrap();
        let once = used_bytes(&[a.clone(), b.clone()]);
        fs::hard_link(a.join("x"), b.join("x")).unwrap();
        assert!(once >= 100_000 && used_bytes(&[a, b]) < once + 50_000);
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("meta");
        replace(&file, b"one", true).unwrap();
        replace(&file, b"two", false).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(names(dir.path()).unwrap(), ["meta"]);
    }
}
