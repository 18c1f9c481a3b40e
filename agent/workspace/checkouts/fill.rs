//! Makes a checkout: all files of a commit, or those that differ from a full one.
//!
//! Git does it in both cases, so that attributes, filters and names are git's. For a layer it is given the index of the
//! full one in an empty work tree: what the new commit has in common with it is left, only the rest is written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use stoker_core::identity::CommitId;
use stoker_core::quantity::Timestamp;
use stoker_core::reason::{Code, Reason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Kept, Wanted};
use crate::admission::now;
use crate::repository::git::{Git, GitError};
use crate::repository::{Changes, Nested, Progress, Reader, Resolved, SnapshotPin, under};
use crate::workspace::disk::{blocking, directories, directory, hand_over, unwritable};
use crate::workspace::index;
use crate::workspace::large_files::Large;
use crate::workspace::trees::{self, Tree};
use crate::workspace::{large_files, submodules};

const CHECKOUT_WITHIN: Duration = Duration::from_secs(3600);
/// So many full ones are compared with what is wanted.
pub(super) const BASES_MAX: usize = 8;
/// A layer with more than this part of the files of its base (a third) is a full checkout instead.
const LAYER_PART: u64 = 3;
/// A base of which no more than this part of the files differ (a tenth) is taken without a look at others.
const NEAR_PART: u64 = 10;
/// Below this number of files a layer saves nothing.
const LAYER_FILES_MIN: u64 = 64;
/// So far before now every file's time lies at least: git reads files again that are as young as their index.
const OLDER_BY_S: i64 = 2;
/// 1980-01-02, the first day that every archive format can write.
const STAMP_MIN_S: i64 = 315_619_200;

/// What was made.
pub(in crate::workspace) struct Filled {
    pub(in crate::workspace) files: u64,
    pub(in crate::workspace) bytes: u64,
    pub(super) own_bytes: u64,
    pub(super) stamp: u32,
}

/// The full checkout that differs least from a commit, where a layer over it is worth it.
pub(super) fn nearest(
    reader: &Reader,
    pin: &SnapshotPin,
    commit: CommitId,
    full: Vec<(Timestamp, CommitId, Arc<Kept>)>,
) -> Option<(Arc<Kept>, Changes)> {
    let mut best: Option<(Arc<Kept>, Changes)> = None;
    for (_, from, base) in full {
        // Its commit may be gone from upstream, and from this snapshot.
        let Ok(changes) = reader.changes(pin, from, commit) else { continue };
        let entries = u64::try_from(changes.entries).unwrap_or(u64::MAX);
        let (files, _) = base.extent();
        let small = files >= LAYER_FILES_MIN && entries <= files / LAYER_PART;
        let everything_else = changes.attributes.contains(Path::new("")) || changes.submodules;
        if small && !everything_else && best.as_ref().is_none_or(|(_, best)| changes.entries < best.entries) {
            // Near enough: to look at more would take longer than what they could save.
            let near = entries <= files / NEAR_PART;
            best = Some((base, changes));
            if near {
                break;
            }
        }
    }
    best
}

/// All files of the commit.
pub(in crate::workspace) async fn full(
    git: &Git,
    tree: &Path,
    wanted: &Wanted<'_>,
    steps: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<Filled, Reason> {
    for one in wanted.trees {
        in_its_folder(git, wanted, one, tree, steps, cancel).await?;
    }
    for one in wanted.nested {
        let Some(resolved) = &one.resolved else { continue };
        submodule(git, wanted, one, resolved, tree, steps, cancel).await?;
    }
    finish(tree, wanted, None, steps).await
}

/// What differs from a full one.
pub(super) async fn layer(
    git: &Git,
    tree: &Path,
    wanted: &Wanted<'_>,
    base: &Arc<Kept>,
    changes: &Changes,
    steps: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<Filled, Reason> {
    let index = tree.join(".git/index");
    let begun = {
        let (tree, index, from) = (tree.to_owned(), index.clone(), base.tree().join(".git/index"));
        let attributes = changes.attributes.clone();
        blocking(move || {
            directory(&tree.join(".git"), 0o755)?;
            fs::copy(from, &index)?;
            if !attributes.is_empty() {
                // What is not in the index is written anew, in the form that the new attributes give it.
                let mut index = git2::Index::open(&index).map_err(io::Error::other)?;
                attributes.iter().try_for_each(|path| index.remove_dir(path, 0)).map_err(io::Error::other)?;
                index.write().map_err(io::Error::other)?;
            }
            Ok(())
        })
    };
    begun.await.map_err(|error| unwritable(tree, &error))?;
    let job = Job { snapshot: wanted.pin.path(), commit: wanted.commit, tree, index: &index };
    job.run(git, Whole::Rest, steps.clone(), cancel).await.map_err(|error| failed(wanted, &error))?;
    let hidden = {
        let (tree, removed) = (tree.to_owned(), changes.removed.clone());
        blocking(move || removed.iter().try_for_each(|path| white_out(&tree, path)))
    };
    hidden.await.map_err(|error| unwritable(tree, &error))?;
    finish(tree, wanted, Some(base), steps).await
}

/// Hides what the layers below have at a path; see "whiteouts" in the kernel's overlayfs.rst.
fn white_out(tree: &Path, path: &Path) -> io::Result<()> {
    let hidden = tree.join(path);
    directories(tree, hidden.parent().unwrap_or(tree))?;
    mknodat(CWD, hidden, FileType::CharacterDevice, Mode::empty(), 0)?;
    Ok(())
}

async fn in_its_folder(
    git: &Git,
    wanted: &Wanted<'_>,
    one: &Tree,
    src: &Path,
    steps: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), Reason> {
    let (top, place) = (src.to_owned(), one.clone());
    let made = blocking(move || {
        let folder = trees::make_folder(&top, &place.path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}{error}", place.prefix())))?;
        directory(&folder.join(".git"), 0o755)?;
        Ok(folder)
    });
    let folder = made.await.map_err(|error| misplaced(wanted, src, &error))?;
    let index = folder.join(".git/index");
    let job = Job { snapshot: one.pin.path(), commit: one.commit, tree: &folder, index: &index };
    let Some(subject) = one.subject() else {
        return job.run(git, Whole::All, steps.clone(), cancel).await.map_err(|error| failed(wanted, &error));
    };
    let (sender, seen) = watch::channel(Progress::phase("checking out"));
    under(subject, seen, steps, job.run(git, Whole::All, sender, cancel)).await.map_err(|error| {
        let message = format!("{}{} cannot be checked out: {error}", one.prefix(), one.commit);
        Reason::new(error.code(), wanted.pin.url().to_string(), message)
    })
}

/// What the manifest wants cannot be, or the disk does not take it.
fn misplaced(wanted: &Wanted<'_>, place: &Path, error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::InvalidData => {
            Reason::new(Code::ManifestInvalid, wanted.pin.url().to_string(), error.to_string())
        }
        _ => unwritable(place, error),
    }
}

async fn submodule(
    git: &Git,
    wanted: &Wanted<'_>,
    one: &Nested,
    resolved: &Resolved,
    tree: &Path,
    steps: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), Reason> {
    let repository = wanted.pin.url().to_string();
    let (top, place) = (tree.to_owned(), one.clone());
    let made = blocking(move || {
        submodules::lead_to_git(&top, &place)
            .map_err(|error| io::Error::new(error.kind(), format!("submodule {:?}: {error}", place.path)))
    });
    let git_dir = made.await.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => Reason::new(Code::SubmoduleInvalid, repository.clone(), error.to_string()),
        _ => unwritable(tree, &error),
    })?;
    let (folder, index) = (tree.join(&one.path), git_dir.join("index"));
    let job = Job { snapshot: resolved.pin.path(), commit: resolved.commit, tree: &folder, index: &index };
    let (sender, seen) = watch::channel(Progress::phase("checking out"));
    let work = job.run(git, Whole::All, sender, cancel);
    under(format!("submodule {}", one.path), seen, steps, work).await.map_err(|error| {
        let message = format!("submodule {:?} at {} cannot be checked out: {error}", one.path, one.says.commit);
        Reason::new(error.code(), repository, message)
    })
}

/// Places large files, gives all files their time and owner, and counts them.
async fn finish(
    top: &Path,
    wanted: &Wanted<'_>,
    base: Option<&Arc<Kept>>,
    steps: &watch::Sender<Progress>,
) -> Result<Filled, Reason> {
    steps.send_replace(Progress::phase("keeping the checkout"));
    let tree = top.to_owned();
    let kept_stamp = base.map(|base| base.record().stamp);
    let stamp = stamp_of(wanted);
    let owner = wanted.owner;
    // Of a layer, the submodules are those of its base, with all that is in them.
    let (nested, below) = match base {
        Some(base) => (Vec::new(), submodules::trees(&base.tree(), wanted.nested)),
        None => (submodules::trees(&tree, wanted.nested), Vec::new()),
    };
    let is_own = |one: &&Large| base.is_none() || one.tree.as_os_str().is_empty();
    let large: Vec<Large> = wanted.large.iter().filter(is_own).cloned().collect();
    if wanted.trees.iter().any(Tree::has_files) {
        let (tree, trees) = (tree.clone(), wanted.trees.to_vec());
        let placed = blocking(move || trees::place_files(&tree, &trees, stamp)).await;
        placed.map_err(|error| misplaced(wanted, top, &error))?;
    }
    let own: Vec<(PathBuf, PathBuf)> =
        wanted.trees.iter().map(|one| (tree.join(&one.path), tree.join(one.git_dir()))).collect();
    let work = blocking(move || {
        let (mut files, mut bytes, mut own_bytes) = (0_u64, 0_u64, 0_u64);
        for one in &large {
            own_bytes = own_bytes.saturating_add(large_files::place(&tree, one, kept_stamp.is_some())?);
        }
        for (folder, git_dir) in own.iter().chain(&nested) {
            let own = index::stamp(folder, &git_dir.join("index"), kept_stamp, stamp)?;
            own_bytes = own_bytes.saturating_add(own);
        }
        large.iter().try_for_each(|one| large_files::refresh_index(&tree, one))?;
        for (_, git_dir) in own.iter().chain(&nested).chain(&below) {
            let one = index::measure(&git_dir.join("index"))?;
            (files, bytes) = (files.saturating_add(one.0), bytes.saturating_add(one.1));
        }
        if let Some((user, group)) = owner {
            hand_over(&tree, user, group)?;
        }
        Ok(Filled { files, bytes, own_bytes, stamp })
    });
    work.await.map_err(|error| unwritable(top, &error))
}

/// When the commit was made, but never later than a moment ago: all files of a checkout have one time.
fn stamp_of(wanted: &Wanted<'_>) -> u32 {
    let latest = (now().0 / 1000).saturating_sub(OLDER_BY_S);
    let made = wanted.committed_at.unwrap_or(STAMP_MIN_S);
    u32::try_from(made.clamp(STAMP_MIN_S, latest.max(STAMP_MIN_S))).unwrap_or(0)
}

fn failed(wanted: &Wanted<'_>, error: &GitError) -> Reason {
    let message = format!("{} cannot be checked out: {error}", wanted.commit);
    Reason::new(error.code(), wanted.pin.url().to_string(), message)
}

/// What git is to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whole {
    /// All files.
    All,
    /// Those that the index does not have already.
    Rest,
}

/// Fills a work tree.
struct Job<'a> {
    snapshot: &'a Path,
    commit: CommitId,
    tree: &'a Path,
    index: &'a Path,
}

impl Job<'_> {
    async fn run(
        &self,
        git: &Git,
        whole: Whole,
        steps: watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<(), GitError> {
        let how = match whole {
            Whole::All => "--reset",
            Whole::Rest => "-m",
        };
        let command = git
            .command(["read-tree", "-v", how, "-u", &self.commit.to_string()])
            .git_dir(self.snapshot)
            .env("GIT_WORK_TREE", self.tree)
            .env("GIT_INDEX_FILE", self.index)
            .work_dir(self.tree)
            // It writes the checkout, which is the agent's, from a snapshot of the agent's.
            .as_agent()
            .config("checkout.workers", "0") // as many as there are cores
            .config("core.bare", "false")
            .config("core.protectNTFS", "true")
            .config("core.protectHFS", "true")
            .progress(steps)
            .cancel(cancel.clone())
            .time_limit(CHECKOUT_WITHIN);
        command.run().await.map(drop)
    }
}
