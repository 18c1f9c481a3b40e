//! What differs between the trees of two commits.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::{Delta, ObjectType, Tree};
use stoker_core::identity::CommitId;

use super::read::{ReadError, Reader, oid};
use super::snapshot::SnapshotPin;

/// The file that says what form files have.
const ATTRIBUTES: &str = ".gitattributes";

/// What a work tree of one commit lacks of another's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// How many entries are other, new or gone.
    pub entries: usize,
    /// What is other or new.
    pub written: Vec<PathBuf>,
    /// What of the former must not be seen any more: the top of each that is gone.
    pub removed: BTreeSet<PathBuf>,
    /// Directories whose attributes differ: everything below may have another form. Where those at the top do (an empty
    /// path), nothing else is told.
    pub attributes: BTreeSet<PathBuf>,
    /// Submodules differ, or what `.gitmodules` says of them.
    pub submodules: bool,
}

impl Reader {
    /// What differs between two commits that the snapshot has.
    ///
    /// # Errors
    /// When there is no such commit, or its trees cannot be read.
    pub fn changes(&self, pin: &SnapshotPin, from: CommitId, to: CommitId) -> Result<Changes, ReadError> {
        self.with(pin, |repository| {
            let tree = |commit: CommitId| repository.find_commit(oid(commit))?.tree();
            let (old, new) = (tree(from)?, tree(to)?);
            let at_top = |tree: &Tree<'_>| tree.get_name(ATTRIBUTES).map(|entry| entry.id());
            if at_top(&old) != at_top(&new) {
                // Every file may have another form: how many differ tells nothing.
                let attributes = BTreeSet::from([PathBuf::new()]);
                return Ok(Changes { attributes, ..Changes::default() });
            }
            let diff = repository.diff_tree_to_tree(Some(&old), Some(&new), None)?;
            let mut changes = Changes::default();
            for delta in diff.deltas() {
                changes.entries = changes.entries.saturating_add(1);
                let sides = [delta.old_file(), delta.new_file()];
                changes.submodules |= sides.iter().any(|side| side.mode() == git2::FileMode::Commit);
                let Some(path) = sides.iter().find_map(git2::DiffFile::path_bytes) else { continue };
                let path = Path::new(OsStr::from_bytes(path));
                match path.file_name().map(OsStr::as_bytes) {
                    Some(name) if name == ATTRIBUTES.as_bytes() => {
                        changes.attributes.insert(path.parent().unwrap_or(Path::new("")).to_owned());
                    }
                    Some(b".gitmodules") => changes.submodules = true,
                    _ => {}
                }
                if delta.status() != Delta::Deleted {
                    changes.written.push(path.to_owned());
                } else if !changes.removed.last().is_some_and(|top| path.starts_with(top))
                    && let Some(top) = gone(&new, path)
                {
                    changes.removed.insert(top);
                }
            }
            Ok(changes)
        })
    }
}

/// The topmost part of a path that a tree does not have. Nothing where something else has taken the place of a part.
fn gone(tree: &Tree<'_>, path: &Path) -> Option<PathBuf> {
    let mut top = PathBuf::new();
    for part in path.components() {
        top.push(part);
        match tree.get_path(&top) {
            Ok(entry) if entry.kind() == Some(ObjectType::Tree) => {}
            Ok(_) => return None,
            Err(_) => return Some(top),
        }
    }
    None
}
