//! Large files (git-lfs) in a workspace: the content in the place of each pointer, a copy that is the build's own.
//!
//! The index keeps the pointer's blob and gets the file's own length and times, as git-lfs leaves it. So `git status` is
//! clean and reads no large file, whether the build has git-lfs configured or not. Once such a file is touched, git
//! looks again: with git-lfs its filter makes the pointer of it, and it is clean still; without, it is a change.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use git2::{Index, IndexTime};

use super::disk::directory;
use crate::repository::{LfsFile, LfsFiles};

/// Git does not trust the times of a file that is not older than the index, to the second: it may have been written to in
/// the same moment. So what is placed is made older.
const OLDER_BY: Duration = Duration::from_secs(2);

/// The large files of one work tree: the top's, or a submodule's.
#[derive(Debug, Clone)]
pub(super) struct Large {
    /// Below `src`; empty for the top.
    pub(super) tree: PathBuf,
    /// Below `src`.
    pub(super) git_dir: PathBuf,
    pub(super) files: Arc<LfsFiles>,
}

/// Puts the content in the place of each pointer. Nothing runs in the workspace yet, so a walk by path is safe. Of a layer
/// only those are placed that are in it. Their bytes.
pub(super) fn place(src: &Path, large: &Large, is_layer: bool) -> io::Result<u64> {
    let (tree, files) = (src.join(&large.tree), large.files.files());
    let in_it = |file: &&LfsFile| !is_layer || fs::symlink_metadata(tree.join(&file.path)).is_ok();
    let files: Vec<&LfsFile> = files.iter().filter(in_it).collect();
    let mut shares_blocks = true;
    for file in &files {
        let target = tree.join(&file.path);
        let mode = fs::symlink_metadata(&target)?.permissions().mode() & 0o777;
        fs::remove_file(&target)?;
        let to = new_file(&target, mode)?;
        shares_blocks = copy(&file.object, &to)?;
        to.set_times(FileTimes::new().set_modified(SystemTime::now() - OLDER_BY))?;
    }
    // What `git lfs checkout` and `git lfs fsck` look for. A second copy would double what the build holds on the disk, and
    // a link would let it write to what others read: so only where blocks are shared.
    if shares_blocks && !files.is_empty() {
        keep_objects(&src.join(&large.git_dir), &files)?;
    }
    Ok(files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes)))
}

fn keep_objects(git_dir: &Path, files: &[&LfsFile]) -> io::Result<()> {
    let lfs = git_dir.join("lfs");
    let objects = lfs.join("objects");
    directory(&lfs, 0o755)?;
    directory(&objects, 0o755)?;
    for file in files {
        let target = objects.join(file.oid.path());
        let second = target.parent().unwrap_or(&objects);
        directory(second.parent().unwrap_or(&objects), 0o755)?;
        directory(second, 0o755)?;
        match new_file(&target, 0o444) {
            Ok(to) => copy(&file.object, &to).map(drop)?,
            // Two paths of one content.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn new_file(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

/// The content into an empty file. True: they share their blocks until one is written to.
fn copy(from: &Path, to: &File) -> io::Result<bool> {
    let mut from = File::open(from)?;
    if rustix::fs::ioctl_ficlone(to, &from).is_ok() {
        return Ok(true);
    }
    let mut to = to;
    io::copy(&mut from, &mut to).map(|_| false)
}

/// Tells the index of the files that were placed, when nothing more is done to them.
pub(super) fn refresh_index(src: &Path, large: &Large) -> io::Result<()> {
    if large.files.files().is_empty() {
        return Ok(());
    }
    let (tree, path) = (src.join(&large.tree), src.join(&large.git_dir).join("index"));
    let owner = fs::metadata(&path)?;
    let mut index = Index::open(&path).map_err(io::Error::other)?;
    for file in large.files.files() {
        let mut entry = index
            .get_path(&file.path, 0)
            .ok_or_else(|| io::Error::other(format!("{} is not in the index", file.path.display())))?;
        // Of a layer, the others are in the index of its base as they should be.
        let Ok(meta) = fs::symlink_metadata(tree.join(&file.path)) else { continue };
        entry.ctime = time(meta.ctime(), meta.ctime_nsec());
        entry.mtime = time(meta.mtime(), meta.mtime_nsec());
        // Git keeps the lower half of each.
        (entry.dev, entry.ino) = (low(meta.dev()), low(meta.ino()));
        (entry.uid, entry.gid, entry.file_size) = (meta.uid(), meta.gid(), low(meta.len()));
        index.add(&entry).map_err(io::Error::other)?;
    }
    index.write().map_err(io::Error::other)?;
    // It was written anew, by us.
    std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))
}

fn time(seconds: i64, nanoseconds: i64) -> IndexTime {
    IndexTime::new(i32::try_from(seconds).unwrap_or(i32::MAX), u32::try_from(nanoseconds).unwrap_or(0))
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0)
}
