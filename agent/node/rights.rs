//! Rights and flags that are in the way of removal, taken away by descriptors.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, IFlags, Mode, OFlags, Uid, chmodat, fchmod, fchown, fstat, ioctl_getflags,
    ioctl_setflags, open, openat2,
};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use super::guard::{BENEATH, READ};

const LOCKS: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);
/// By which others than the owner write.
const OTHERS_WRITE: u32 = 0o022;

/// Takes a directory that is to be emptied from those who still work in it: who has it open, or stands in it, can make
/// nothing in it any more, and cannot move it to where it would be emptied among the files of others. Root still can, and
/// an agent without root cannot take anything from anybody: then it stays as it is.
pub(super) fn close_to_others(directory: BorrowedFd<'_>) {
    let Ok(stat) = fstat(directory) else { return };
    let (user, group) = (geteuid(), getegid());
    let is_own = stat.st_uid == user.as_raw();
    if is_own && stat.st_mode & OTHERS_WRITE == 0 {
        return;
    }
    if is_own || fchown(directory, Some(Uid::from_raw(user.as_raw())), Some(Gid::from_raw(group.as_raw()))).is_ok() {
        let _ = fchmod(directory, Mode::RWXU);
    }
}

/// Gives the owner all rights to a directory that is open for reading. Never for files: other names may share them.
pub(super) fn fchmod_up(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    fchmod(directory, Mode::RWXU)
}

/// The same through a descriptor with which nothing can be read, which `fchmod(2)` does not take. Files are left alone.
pub(super) fn open_up(place: BorrowedFd<'_>) -> Result<(), Errno> {
    if FileType::from_raw_mode(fstat(place)?.st_mode) != FileType::Directory {
        return Err(Errno::ACCESS);
    }
    chmodat(CWD, format!("/proc/self/fd/{}", place.as_raw_fd()), Mode::RWXU, AtFlags::empty())
}

/// A file of which flags were taken, with those that it had.
pub(super) struct Unlocked {
    file: OwnedFd,
    flags: IFlags,
}

impl Unlocked {
    /// Gives them back to a file that has other names: those keep the protection that they had.
    pub(super) fn lock_again(&self) -> Result<(), Errno> {
        ioctl_setflags(&self.file, self.flags)
    }
}

/// Takes the immutable and append-only flags from an entry and from the directory that it is in. Gives the file with its
/// former flags where it has further names.
///
/// # Errors
/// `PERM` where there is no such flag: something else is in the way.
pub(super) fn unlock(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<Unlocked>, Errno> {
    // Not every filesystem has flags; then the first error stands.
    let place = openat2(parent, c".", READ, Mode::empty(), BENEATH)?;
    let parent_cleared = clear(place.as_fd());
    // What it is, is asked of what is open: by its name it could be another thing a moment later, and opening a device for
    // reading can do anything.
    let entry = openat2(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), BENEATH)?;
    let stat = fstat(&entry)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::Directory) {
        return parent_cleared.and_then(|cleared| cleared.map(|_| None).ok_or(Errno::PERM));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open(format!("/proc/self/fd/{}", entry.as_raw_fd()), flags, Mode::empty())?;
    match (clear(file.as_fd())?, parent_cleared?) {
        (Some(flags), _) if kind == FileType::RegularFile && stat.st_nlink > 1 => Ok(Some(Unlocked { file, flags })),
        (None, None) => Err(Errno::PERM),
        _ => Ok(None),
    }
}

/// The flags that it had, where it had any that are in the way.
fn clear(file: BorrowedFd<'_>) -> Result<Option<IFlags>, Errno> {
    let flags = ioctl_getflags(file)?;
    if !flags.intersects(LOCKS) {
        return Ok(None);
    }
    ioctl_setflags(file, flags.difference(LOCKS)).map(|()| Some(flags))
}
