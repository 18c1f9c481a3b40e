//! One JSON file beside each whole workspace: `<pool>/stoker/workspaces/<id>.json`.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::{Method, OVERLAYS, Workspace};
use crate::node::files::{owners, read_record, record, remove_record, write_record};

pub(super) const FOLDER: &str = "workspaces";
const RECORD_BYTES_MAX: u64 = 8 << 20;

fn path(root: &Path, id: &str) -> PathBuf {
    record(&root.join(FOLDER), id)
}

/// Written whole or not at all, and on the disk when this returns: but for overlays, which go with the machine.
pub(super) fn write(root: &Path, workspace: &Workspace) -> io::Result<()> {
    write_record(&path(root, &workspace.id), workspace, workspace.method != Method::Overlay)
}

pub(super) fn remove(root: &Path, id: &str) -> io::Result<()> {
    remove_record(&path(root, id))
}

/// The one of this id. A damaged one is as none, and its directory goes.
pub(super) fn read(root: &Path, id: &str) -> Option<Workspace> {
    read_record(&path(root, id), RECORD_BYTES_MAX).filter(|workspace: &Workspace| workspace.id == id)
}

/// All that can be read.
pub(super) fn read_all(root: &Path) -> Vec<Workspace> {
    owners(&root.join(FOLDER)).iter().filter_map(|id| read(root, id)).collect()
}

/// The ids that have a directory, a record or both.
pub(super) fn names(root: &Path) -> BTreeSet<String> {
    [FOLDER, OVERLAYS].iter().flat_map(|folder| owners(&root.join(folder))).collect()
}
