//! Directories of the room, its own way of failing, and work by all cores.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::Path;
use std::thread;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use stoker_core::reason::{Code, Reason};

/// The most threads that work on the files of one tree.
const THREADS_MAX: usize = 16;

/// Makes a directory, but never what it lies in: where the pool has gone since it was looked at, its own directory is
/// missing, and nothing is made on the disk below.
pub(super) fn directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Opens a directory of a directory, made where it is missing. A link is none: others may have put it there.
pub(super) fn directory_at(parent: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Err(Errno::EXIST) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty()).map_err(|error| match error {
        Errno::LOOP | Errno::NOTDIR => {
            let message = format!("{name} is no directory; remove what a build put in its place");
            io::Error::new(io::ErrorKind::NotADirectory, message)
        }
        error => error.into(),
    })
}

/// Makes what a path below `top` lies in, and the path itself.
pub(super) fn directories(top: &Path, path: &Path) -> io::Result<()> {
    let mut made = top.to_owned();
    for part in path.strip_prefix(top).map_err(io::Error::other)?.components() {
        made.push(part);
        directory(&made, 0o755)?;
    }
    Ok(())
}

/// Asks ext4 to give each directory in this one a part of the disk of its own. Otherwise the next one is made where the
/// last one was removed, and ext4 makes files some ten times slower next to recently deleted ones. Others do not have the
/// flag.
pub(super) fn spread(path: &Path) {
    let Ok(directory) = fs::File::open(path) else { return };
    if let Ok(flags) = rustix::fs::ioctl_getflags(&directory)
        && !flags.contains(rustix::fs::IFlags::TOPDIR)
    {
        let _ = rustix::fs::ioctl_setflags(&directory, flags | rustix::fs::IFlags::TOPDIR);
    }
}

/// Gives everything at and below a path to a user. Nothing runs in it yet, so a walk by path is safe.
pub(super) fn hand_over(path: &Path, user: u32, group: u32) -> io::Result<()> {
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        std::os::unix::fs::lchown(&path, Some(user), Some(group))?;
        if fs::symlink_metadata(&path)?.is_dir() {
            for entry in fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        }
    }
    Ok(())
}

/// Gives one directory to a user, where it is not the agent's to keep.
pub(super) fn give(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    owner.map_or(Ok(()), |(user, group)| chown(path, Some(user), Some(group)))
}

/// Does something with each of many things, on all cores; ends at the first error of each core.
pub(super) fn in_parallel<T: Sync>(all: &[T], work: impl Fn(&T) -> io::Result<()> + Sync) -> io::Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let part = all.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let working: Vec<_> = all.chunks(part).map(|part| scope.spawn(|| part.iter().try_for_each(&work))).collect();
        let ended = working.into_iter().map(|one| one.join().map_err(|_| io::Error::other("a thread panicked"))?);
        // All of them, also after an error: none may go on afterwards.
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

pub(super) fn unwritable(path: &Path, error: &io::Error) -> Reason {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let code = if full { Code::DiskFloor } else { Code::PoolNotReady };
    Reason::new(code, path.to_string_lossy(), format!("workspace {}: {error}", path.display()))
}
