//! Declared directories, and the agent's own, made below an opened pool.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use rustix::fs::{
    Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, fchmod, fchown, fstat, futimens, mkdirat, openat2,
};
use rustix::io::Errno;

use super::guard::{BENEATH, PLACE, READ};
use super::view::{State, Trouble};
use crate::config;

/// The agent's own directory in every pool.
pub(super) const OWN: &str = "stoker";
/// What waits for its removal, in [`OWN`].
pub(crate) const TRASH: &str = "trash";

/// Makes a declared directory where it is missing, and corrects owner and mode of it alone where they differ.
pub(super) fn prepare(root: BorrowedFd<'_>, declared: &config::Directory) -> Result<(), Trouble> {
    let trouble = |error| Trouble::system(declared.path.display(), error);
    let (parent, name) = make_parents(root, &declared.path).map_err(trouble)?;
    let directory = make(parent.as_fd(), &name, 0o700).map_err(trouble)?;
    correct(directory.as_fd(), declared.owner, declared.group, declared.mode).map_err(trouble)
}

/// Opens `<pool>/stoker`, made 0755 where it is missing. Others must not be able to put links into it, so that it has
/// to belong to the agent and be writable by nobody else.
pub(super) fn open_own(root: BorrowedFd<'_>) -> Result<OwnedFd, Trouble> {
    owned(root, OWN, 0o755)
}

/// Whether the disk takes writes: some filesystems go on to answer from memory when their device died (ext4 is then not even
/// read-only). The directory's time is set; that waits for no disk.
pub(super) fn takes_writes(own: BorrowedFd<'_>) -> Result<(), Trouble> {
    let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    let now = Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) };
    futimens(own, &now).map_err(|error| match error {
        Errno::ROFS => {
            Trouble::new(State::ReadOnly, "the filesystem takes no writes any more; look for errors of the disk")
        }
        error => Trouble::system("the filesystem takes no writes; look for errors of the disk", error),
    })
}

/// Opens `<pool>/stoker/trash`, made 0700 where it is missing.
pub(super) fn open_trash(own: BorrowedFd<'_>) -> Result<OwnedFd, Trouble> {
    owned(own, TRASH, 0o700)
}

/// Opens a directory of the agent's, made with this mode where it is missing, and kept as narrow.
pub(super) fn owned(parent: BorrowedFd<'_>, name: &str, mode: u32) -> Result<OwnedFd, Trouble> {
    let trouble = |error| Trouble::system(format!("the agent's directory {name}"), error);
    let c_name = c_name(OsStr::new(name)).map_err(trouble)?;
    let directory = make(parent, &c_name, mode).map_err(trouble)?;
    let stat = fstat(&directory).map_err(trouble)?;
    let (owner, own) = (stat.st_uid, rustix::process::geteuid().as_raw());
    if owner != own {
        let message = format!(
            "the agent's directory {name} belongs to user {owner}, the agent runs as user {own}; move it away or give \
             it to the agent"
        );
        return Err(Trouble::new(State::Failed, message));
    }
    if stat.st_mode & !mode & 0o077 != 0 || stat.st_mode & 0o700 != 0o700 {
        fchmod(&directory, Mode::from_raw_mode(mode)).map_err(trouble)?;
    }
    Ok(directory)
}

/// Opens the directory that `path` lies in, and gives its last component.
///
/// # Errors
/// `INVAL` where `path` is empty or has other than plain components.
pub(super) fn open_parent(root: BorrowedFd<'_>, path: &Path) -> Result<(OwnedFd, CString), Errno> {
    let name = last(path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((openat2(root, parent, PLACE, Mode::empty(), BENEATH)?, name))
}

/// As [`open_parent`], and what is missing on the way is made 0755.
fn make_parents(root: BorrowedFd<'_>, path: &Path) -> Result<(OwnedFd, CString), Errno> {
    let name = last(path)?;
    let mut parent = openat2(root, c".", PLACE, Mode::empty(), BENEATH)?;
    for component in path.parent().into_iter().flat_map(Path::components) {
        let name = c_name(component.as_os_str())?;
        parent = match openat2(&parent, &name, PLACE, Mode::empty(), BENEATH) {
            Err(Errno::NOENT) => make(parent.as_fd(), &name, 0o755)?,
            opened => opened?,
        };
    }
    Ok((parent, name))
}

fn last(path: &Path) -> Result<CString, Errno> {
    if !path.components().all(|component| matches!(component, Component::Normal(_))) {
        return Err(Errno::INVAL);
    }
    path.file_name().ok_or(Errno::INVAL).and_then(c_name)
}

fn c_name(name: &OsStr) -> Result<CString, Errno> {
    CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)
}

/// Opens a directory; makes it with exactly this mode, whatever the umask, where it is missing.
fn make(parent: BorrowedFd<'_>, name: &CString, mode: u32) -> Result<OwnedFd, Errno> {
    let open = || openat2(parent, name, READ, Mode::empty(), BENEATH);
    match open() {
        Err(Errno::NOENT) => {}
        opened => return opened,
    }
    // Narrow first: until the owner is set nobody else may come in. What a crash leaves so is corrected next time.
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => {
            let made = open()?;
            fchmod(&made, Mode::from_raw_mode(mode))?;
            Ok(made)
        }
        Err(Errno::EXIST) => open(),
        Err(error) => Err(error),
    }
}

/// Owner before mode: a change of owner takes set-id bits away.
fn correct(directory: BorrowedFd<'_>, owner: Option<u32>, group: Option<u32>, mode: u32) -> Result<(), Errno> {
    let stat = fstat(directory)?;
    let differs = |wanted: Option<u32>, is: u32| wanted.filter(|wanted| *wanted != is);
    let (owner, group) = (differs(owner, stat.st_uid), differs(group, stat.st_gid));
    if owner.is_some() || group.is_some() {
        fchown(directory, owner.map(Uid::from_raw), group.map(Gid::from_raw))?;
    }
    if owner.is_some() || group.is_some() || stat.st_mode & 0o7777 != mode & 0o7777 {
        fchmod(directory, Mode::from_raw_mode(mode & 0o7777))?;
    }
    Ok(())
}
