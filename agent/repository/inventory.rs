//! What lies on the disk, each file once however many names it has, and who has the names.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use stoker_core::upkeep::evict::File;

/// All files that were looked at. Names in the trash do not count: they are on their way out.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub(super) files: Vec<File>,
    by_inode: HashMap<(u64, u64), usize>,
    /// Names in the trash, by inode, with the bytes and names that the file has in all.
    leaving: HashMap<(u64, u64), (u64, u64, u64)>,
}

impl Inventory {
    /// Looks at the trash, which must come first.
    pub(super) fn with_trash(trash: &Path) -> Self {
        let mut this = Self::default();
        walk(trash, &mut |path, meta| {
            if path == trash {
                return; // it stays
            }
            let known = this.leaving.entry((meta.dev(), meta.ino())).or_insert((0, names(meta), bytes(meta)));
            known.0 += 1;
        });
        this
    }

    /// What comes free when the trash is emptied.
    pub(super) fn leaving_bytes(&self) -> u64 {
        let goes = self.leaving.values().filter(|(in_trash, names, _)| in_trash >= names);
        goes.map(|(_, _, bytes)| bytes).fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// Looks at a tree; gives its names, as indexes of files. What vanishes meanwhile is not counted. Trees that `apart`
    /// names are left out.
    pub(super) fn add(&mut self, tree: &Path, apart: &[PathBuf]) -> Vec<usize> {
        let mut found = Vec::new();
        walk_but(tree, apart, &mut |_, meta| {
            let inode = (meta.dev(), meta.ino());
            let files = &mut self.files;
            let in_trash = self.leaving.get(&inode).map_or(0, |(in_trash, ..)| *in_trash);
            let at = *self.by_inode.entry(inode).or_insert_with(|| {
                files.push(File { bytes: bytes(meta), holders: names(meta).saturating_sub(in_trash).max(1) });
                files.len() - 1
            });
            found.push(at);
        });
        found
    }

    /// What all take.
    pub(super) fn used_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
    }
}

/// A directory has one name, whatever `st_nlink` counts.
fn names(meta: &Metadata) -> u64 {
    if meta.is_dir() { 1 } else { meta.nlink() }
}

fn bytes(meta: &Metadata) -> u64 {
    meta.blocks().saturating_mul(512)
}

fn walk(tree: &Path, seen: &mut dyn FnMut(&Path, &Metadata)) {
    walk_but(tree, &[], seen);
}

fn walk_but(tree: &Path, apart: &[PathBuf], seen: &mut dyn FnMut(&Path, &Metadata)) {
    let mut todo = vec![tree.to_owned()];
    while let Some(path) = todo.pop() {
        if apart.contains(&path) {
            continue;
        }
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        seen(&path, &meta);
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::repository::disk::used_bytes;

    #[test]
    fn names_are_counted_and_those_in_the_trash_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, trash] = ["a", "b", "trash"].map(|name| dir.path().join(name));
        for tree in [&a, &b, &trash] {
            fs::create_dir(tree).unwrap();
        }
        fs::write(a.join("shared"), vec![7; 50_000]).unwrap();
        fs::hard_link(a.join("shared"), b.join("shared")).unwrap();
        fs::hard_link(a.join("shared"), trash.join("shared")).unwrap();
        fs::write(trash.join("alone"), vec![7; 100_000]).unwrap();
        let mut inventory = Inventory::with_trash(&trash);
        assert!(inventory.leaving_bytes() >= 100_000 && inventory.leaving_bytes() < 150_000);
        let (of_a, of_b) = (inventory.add(&a, &[]), inventory.add(&b, &[]));
        let shared: Vec<usize> = of_a.into_iter().filter(|at| of_b.contains(at)).collect();
        assert_eq!(shared.len(), 1);
        assert_eq!(inventory.files[shared[0]].holders, 2);
        assert_eq!(inventory.used_bytes(), used_bytes(&[a.clone(), b]));
        assert_eq!(inventory.add(dir.path(), &[a, trash]).len(), 3, "the folder, `b`, and the file in it");
    }
}
