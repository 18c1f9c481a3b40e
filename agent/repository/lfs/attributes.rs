//! Which files of a commit its own `.gitattributes` give `filter=lfs`. Git says: libgit2 knows no patterns in quotes.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use git2::Index;

use super::pointer::{Named, Scan};
use crate::repository::git::{Git, GitError};

/// How long git may take.
const WITHIN: Duration = Duration::from_secs(120);
/// Of what it prints: as many paths as a commit may have large files, each with its attribute.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// An index of the commit's attribute files and nothing else, for as long as git reads it.
struct AttributeIndex(PathBuf);

impl Drop for AttributeIndex {
    fn drop(&mut self) {
        // One that stays is removed at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Those of the scanned files that have the attribute. `file` is where an index can be written for the moment.
pub(super) async fn filtered(git: &Git, repository: &Path, file: PathBuf, scan: Scan) -> Result<Vec<Named>, GitError> {
    let Scan { files, attributes, .. } = scan;
    if files.is_empty() || attributes.is_empty() {
        return Ok(Vec::new());
    }
    let written = tokio::task::spawn_blocking(move || {
        let held = AttributeIndex(file);
        let mut index = Index::open(&held.0)?;
        attributes.iter().try_for_each(|entry| index.add(entry))?;
        index.write().map(|()| held)
    });
    let written = written.await.map_err(io::Error::other).and_then(|written| written.map_err(io::Error::other));
    let index = written.map_err(GitError::Disk)?;
    let mut paths = Vec::new();
    for file in &files {
        paths.extend_from_slice(&file.path);
        paths.push(0);
    }
    let command = git.command(["check-attr", "--cached", "--stdin", "-z", "filter"]).git_dir(repository);
    // The index is the agent's; nothing is written, and no pack that a snapshot has not.
    let command = command.as_agent().env("GIT_INDEX_FILE", &index.0).stdin(paths).time_limit(WITHIN);
    let output = command.stdout_bytes_max(ANSWER_BYTES_MAX).run().await?;
    // Three fields each: path, attribute, value.
    let fields: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
    let named = fields.chunks_exact(3).filter_map(|said| match said {
        [path, _, value] => (*value == b"lfs").then_some(*path),
        _ => None,
    });
    let named: BTreeSet<&[u8]> = named.collect();
    Ok(files.into_iter().filter(|file| named.contains(file.path.as_slice())).collect())
}
