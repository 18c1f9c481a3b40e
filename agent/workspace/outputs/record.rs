//! One JSON file beside each output: `<pool>/stoker/outputs/<id>.json`.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stoker_core::identity::{CommitId, LeaseId, Scope};
use stoker_core::quantity::Timestamp;
use stoker_core::sizing::Outcome;

use super::FOLDER;

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
    root.join(FOLDER).join(format!("{id}.json"))
}

/// Written whole or not at all, and on the disk when this returns. The folder is made where it is missing, but never what
/// it lies in: where the pool has gone meanwhile, nothing is made on the disk below.
pub(super) fn write(root: &Path, output: &Output) -> io::Result<()> {
    let folder = root.join(FOLDER);
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let path = path(root, &output.id);
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(output)?)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(folder)?.sync_all()
}

pub(super) fn remove(root: &Path, id: &str) -> io::Result<()> {
    match fs::remove_file(path(root, id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Nothing where there is none, or where it is not what its name says.
pub(super) fn read(root: &Path, id: &str) -> Option<Output> {
    let path = path(root, id);
    let small = fs::symlink_metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= RECORD_BYTES_MAX);
    let output: Output = serde_json::from_slice(&small.then(|| fs::read(&path).ok())??).ok()?;
    (output.id == id).then_some(output)
}
