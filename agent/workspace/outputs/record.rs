//! One JSON file beside each output: `<pool>/stoker/outputs/<id>.json`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stoker_core::identity::{CommitId, LeaseId, Scope};
use stoker_core::quantity::Timestamp;
use stoker_core::sizing::Outcome;

use super::FOLDER;
use crate::node::files::{read_record, record, remove_record, write_record};
use crate::workspace::disk::directory;

const RECORD_BYTES_MAX: u64 = 1 << 20;

/// What one build left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The workspace's, which is the lease's where it had one; with a number behind it where that was used before.
    pub id: String,
    /// The workspace that it comes from.
    pub workspace: String,
    /// When that was made: with its id, which workspace it was.
    pub prepared_at: Timestamp,
    /// Whose it was.
    pub lease: Option<LeaseId>,
    /// Who for.
    pub scope: Scope,
    /// The repository's canonical key.
    pub repository: String,
    /// What any git client can clone.
    pub repository_url: String,
    /// What was asked for, as `branch:main`.
    pub reference: String,
    /// What was built.
    pub commit: CommitId,
    /// Who may read the repository may read what was built from it.
    pub trust: String,
    /// How the build ended, where it is known.
    pub outcome: Option<Outcome>,
    /// The build's own code.
    pub exit_code: Option<i32>,
    /// When it was kept.
    pub created_at: Timestamp,
    /// When it goes, unless it is released.
    pub expires_at: Timestamp,
    /// The rule that says so, in words.
    pub rule: String,
    /// When somebody said that it stays for good.
    pub released_at: Option<Timestamp>,
    /// What it holds; unset until that was counted.
    pub size: Option<Size>,
}

/// What an output holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Files, links and all else but directories.
    pub files: u64,
    /// The lengths of its regular files.
    pub bytes: u64,
    /// What it takes on the disk.
    pub disk_bytes: u64,
    /// There is more: it has too many files, or lies too deep, to be counted.
    pub partial: bool,
}

impl Output {
    /// The directory, below the agent's.
    #[must_use]
    pub fn place(&self, root: &Path) -> PathBuf {
        root.join(FOLDER).join(&self.id)
    }
}

fn path(root: &Path, id: &str) -> PathBuf {
    record(&root.join(FOLDER), id)
}

/// Written whole or not at all, and on the disk when this returns. The folder is made where it is missing, but never what
/// it lies in: where the pool has gone meanwhile, nothing is made on the disk below.
pub(super) fn write(root: &Path, output: &Output) -> io::Result<()> {
    directory(&root.join(FOLDER), 0o700)?;
    write_record(&path(root, &output.id), output, true)
}

pub(super) fn remove(root: &Path, id: &str) -> io::Result<()> {
    remove_record(&path(root, id))
}

/// Nothing where there is none, or where it is not what its name says.
pub(super) fn read(root: &Path, id: &str) -> Option<Output> {
    read_record(&path(root, id), RECORD_BYTES_MAX).filter(|output: &Output| output.id == id)
}
