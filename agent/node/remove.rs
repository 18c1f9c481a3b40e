//! Removal of trees by descriptors.
//!
//! What a build left may be hostile: any depth, any modes, links to anywhere, changed while it is removed. So nothing
//! is ever resolved as a path of more than one component, no link is followed, no mount is crossed, and `..` is never
//! trusted. A tree that is deeper than [`DEPTH_MAX`] is lifted into the trash itself piece by piece, so that the number
//! of descriptors is bounded without recursion.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, chmodat, fchmod, fstat, ioctl_getflags, ioctl_setflags, openat2,
    renameat, unlinkat,
};
use rustix::io::Errno;

use super::guard::{BENEATH, READ, look};
use super::trash::Pace;

/// How many directories of one tree are open at once.
const DEPTH_MAX: usize = 64;
/// How often one directory is read again because it was not empty after all its entries were removed.
const RESCANS_MAX: u8 = 8;
/// How many entries of the trash may be refused before a sweep ends.
const REFUSED_MAX: usize = 64;

/// What a sweep did.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Files and directories that are gone.
    pub(super) removed: u64,
    /// Entries of the trash that cannot be removed, and why.
    pub(super) refused: BTreeMap<CString, String>,
    /// The slice ended before the work did.
    pub(super) more: bool,
}

/// Why a tree is left.
enum Halt {
    /// The slice is over.
    Paused,
    /// It cannot be removed.
    Refused(Errno),
}

impl From<Errno> for Halt {
    fn from(error: Errno) -> Self {
        Self::Refused(error)
    }
}

/// One pass over the trash.
pub(super) struct Sweep<'a> {
    trash: BorrowedFd<'a>,
    pace: Pace,
    stop: &'a dyn Fn() -> bool,
    began: Instant,
    since_pause: u32,
    outcome: Outcome,
}

/// A directory that is being emptied.
struct Frame {
    directory: Dir,
    /// In the frame before, or in the trash.
    name: CString,
    rescans: u8,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(trash: BorrowedFd<'a>, pace: Pace, stop: &'a dyn Fn() -> bool) -> Self {
        Self { trash, pace, stop, began: Instant::now(), since_pause: 0, outcome: Outcome::default() }
    }

    /// Removes until nothing is left, nothing more can be removed, or the slice is over.
    pub(super) fn run(mut self) -> Outcome {
        loop {
            let before = self.outcome.removed;
            match self.pass() {
                Ok(()) => {}
                Err(Halt::Paused) => {
                    self.outcome.more = true;
                    break;
                }
                Err(Halt::Refused(error)) => {
                    self.outcome.refused.insert(c".".to_owned(), words(error));
                    break;
                }
            }
            // Pieces of deep trees were lifted into the trash meanwhile: again, until a pass finds nothing to do.
            if self.outcome.removed == before || self.outcome.refused.len() >= REFUSED_MAX {
                break;
            }
        }
        self.outcome
    }

    fn pass(&mut self) -> Result<(), Halt> {
        let mut trash = Dir::read_from(self.trash)?;
        while let Some(entry) = trash.read() {
            let entry = entry?;
            let name = entry.file_name();
            if dots(name) || self.outcome.refused.contains_key(name) {
                continue;
            }
            match self.tree(name) {
                Err(Halt::Refused(error)) => {
                    self.outcome.refused.insert(name.to_owned(), words(error));
                    if self.outcome.refused.len() >= REFUSED_MAX {
                        return Ok(());
                    }
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Removes one entry of the trash with all that is below it.
    fn tree(&mut self, name: &CStr) -> Result<(), Halt> {
        if remove_name(self.trash, name)? {
            return self.removed();
        }
        let mut frames = Vec::with_capacity(DEPTH_MAX);
        frames.push(Frame::open(self.trash, name, 0)?);
        loop {
            let depth = frames.len();
            let Some(frame) = frames.last_mut() else { return Ok(()) };
            let Some(entry) = frame.directory.read().transpose()? else {
                if let Some(frame) = frames.pop() {
                    let parent = frames.last().map_or(Ok(self.trash), |parent| parent.directory.fd())?;
                    match frame.close(parent)? {
                        Some(again) => frames.push(again),
                        None => self.removed()?,
                    }
                }
                continue;
            };
            let name = entry.file_name();
            if dots(name) {
                continue;
            }
            let here = frame.directory.fd()?;
            if remove_name(here, name)? {
                self.removed()?;
            } else if depth < DEPTH_MAX {
                let below = Frame::open(here, name, 0)?;
                frames.push(below);
            } else {
                lift(here, name, self.trash)?;
            }
        }
    }

    fn removed(&mut self) -> Result<(), Halt> {
        self.outcome.removed = self.outcome.removed.saturating_add(1);
        self.since_pause = self.since_pause.saturating_add(1);
        if self.since_pause >= self.pace.entries {
            self.since_pause = 0;
            std::thread::sleep(self.pace.pause);
            if (self.stop)() || self.began.elapsed() >= self.pace.slice {
                return Err(Halt::Paused);
            }
        }
        Ok(())
    }
}

impl Frame {
    fn open(parent: BorrowedFd<'_>, name: &CStr, rescans: u8) -> Result<Self, Errno> {
        Ok(Self { directory: Dir::new(open_directory(parent, name)?)?, name: name.to_owned(), rescans })
    }

    /// Removes the directory, which was read to its end; gives it back where it is not empty yet (some filesystems
    /// skip entries when others are removed while they are listed, and somebody may still write).
    fn close(self, parent: BorrowedFd<'_>) -> Result<Option<Self>, Errno> {
        let Self { directory, name, rescans } = self;
        drop(directory);
        let remove = || unlinkat(parent, &name, AtFlags::REMOVEDIR);
        let removed = match remove() {
            Err(Errno::ACCESS) => fchmod_up(parent).and_then(|()| remove()),
            Err(Errno::PERM) => unlock(parent, &name).and_then(|()| remove()),
            removed => removed,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTEMPTY | Errno::EXIST) if rescans < RESCANS_MAX => {
                Self::open(parent, &name, rescans.saturating_add(1)).map(Some)
            }
            Err(error) => Err(error),
        }
    }
}

fn dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn words(error: Errno) -> String {
    match error {
        Errno::XDEV | Errno::BUSY => "something is mounted in it".to_owned(),
        error => std::io::Error::from(error).to_string(),
    }
}

/// Removes what is not a directory. False: it is a directory. True as well where nothing is there any more.
fn remove_name(parent: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    let unlink = || unlinkat(parent, name, AtFlags::empty());
    let unlinked = match unlink() {
        Err(Errno::ACCESS) => fchmod_up(parent).and_then(|()| unlink()),
        unlinked => unlinked,
    };
    match unlinked {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        // A directory, as POSIX has it; or the file, or the directory that it is in, is immutable.
        Err(Errno::PERM) => {
            let kind = FileType::from_raw_mode(u32::from(look(parent, name)?.stx_mode));
            if kind == FileType::Directory {
                return Ok(false);
            }
            let shared = unlock_shared(parent, name)?;
            let unlinked = unlink();
            if let Some((file, flags)) = shared {
                // Another name of this file remains, with the protection that it had.
                ioctl_setflags(&file, flags)?;
            }
            unlinked.map(|()| true)
        }
        Err(error) => Err(error),
    }
}

/// Opens a directory to empty it; one that its owner may not read is opened up first.
fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let open = |flags| openat2(parent, name, flags | OFlags::NOFOLLOW, Mode::empty(), BENEATH);
    match open(READ) {
        Err(Errno::ACCESS) => {
            let place = open(OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)?;
            open_up(place.as_fd())?;
            open(READ)
        }
        opened => opened,
    }
}

/// Moves a directory into the trash itself.
fn lift(parent: BorrowedFd<'_>, name: &CStr, trash: BorrowedFd<'_>) -> Result<(), Errno> {
    // Refuses a mount point, and opens it up where needed: a directory that its owner may not write to cannot change
    // its parent.
    let directory = open_directory(parent, name)?;
    let unique = uuid::Uuid::now_v7().simple().to_string();
    let rename = || renameat(parent, name, trash, unique.as_str());
    match rename() {
        Err(Errno::ACCESS) => {
            fchmod_up(directory.as_fd())?;
            fchmod_up(parent)?;
            rename()
        }
        Err(Errno::PERM) => {
            unlock(parent, name)?;
            rename()
        }
        renamed => renamed,
    }
}

/// Gives the owner all rights to a directory that is open for reading. Never for files: other names may share them.
fn fchmod_up(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    fchmod(directory, Mode::RWXU)
}

/// The same through a descriptor with which nothing can be read, which `fchmod(2)` does not take. Files are left alone.
pub(super) fn open_up(place: BorrowedFd<'_>) -> Result<(), Errno> {
    if FileType::from_raw_mode(fstat(place)?.st_mode) != FileType::Directory {
        return Err(Errno::ACCESS);
    }
    chmodat(CWD, format!("/proc/self/fd/{}", place.as_raw_fd()), Mode::RWXU, AtFlags::empty())
}

/// Takes the immutable and append-only flags from an entry and from the directory that it is in.
pub(super) fn unlock(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    unlock_shared(parent, name).map(drop)
}

/// As [`unlock`]; gives the file with its former flags where it has further names.
fn unlock_shared(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<(OwnedFd, IFlags)>, Errno> {
    const LOCKS: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);
    let clear = |file: BorrowedFd<'_>| -> Result<Option<IFlags>, Errno> {
        let flags = ioctl_getflags(file)?;
        if !flags.intersects(LOCKS) {
            return Ok(None);
        }
        ioctl_setflags(file, flags.difference(LOCKS)).map(|()| Some(flags))
    };
    // Not every filesystem has flags; then the first error stands.
    let place = openat2(parent, c".", READ, Mode::empty(), BENEATH)?;
    let parent_cleared = clear(place.as_fd());
    let entry = look(parent, name)?;
    let kind = FileType::from_raw_mode(u32::from(entry.stx_mode));
    if !matches!(kind, FileType::RegularFile | FileType::Directory) {
        return parent_cleared.and_then(|cleared| cleared.map(|_| None).ok_or(Errno::PERM));
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat2(parent, name, flags, Mode::empty(), BENEATH)?;
    match (clear(file.as_fd())?, parent_cleared?) {
        (Some(flags), _) if kind == FileType::RegularFile && entry.stx_nlink > 1 => Ok(Some((file, flags))),
        (None, None) => Err(Errno::PERM),
        _ => Ok(None),
    }
}
