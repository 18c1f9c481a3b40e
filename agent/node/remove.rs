//! Removal of trees by descriptors.
//!
//! What a build left may be hostile: any depth, any modes, links to anywhere, changed while it is removed. So nothing
//! is ever resolved as a path of more than one component, no link is followed, no mount is crossed, and `..` is never
//! trusted. A tree that is deeper than [`DEPTH_MAX`] is lifted into the trash itself piece by piece, so that the number
//! of descriptors is bounded without recursion.
//!
//! What cannot be removed keeps nothing else: the rest of its tree goes, and so do the other trees. Nor does who makes
//! things as fast as they go: each slice begins with the tree after the one in which the last slice ended.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat2, renameat, unlinkat};
use rustix::io::Errno;

use super::guard::{BENEATH, READ, look};
use super::rights::{close_to_others, fchmod_up, open_up, unlock};
use super::trash::Pace;

/// How many directories of one tree are open at once.
const DEPTH_MAX: usize = 64;
/// How often one directory is read again because it was not empty after all its entries were removed.
const RESCANS_MAX: u8 = 8;
/// How many entries of the trash one pass takes on.
const PASS_MAX: usize = 10_000;
/// After so many entries at most it is looked at whether the slice is over.
const LOOK_EVERY: u32 = 64;

/// What a sweep did.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Files and directories that are gone.
    pub(super) removed: u64,
    /// Entries of the trash that cannot be removed, or not whole, and why.
    pub(super) refused: BTreeMap<CString, String>,
    /// The slice ended before the work did, in this entry of the trash.
    pub(super) more: Option<CString>,
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

/// One slice of work on the trash.
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
    /// Why something in it stays.
    stays: Option<Errno>,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(trash: BorrowedFd<'a>, pace: Pace, stop: &'a dyn Fn() -> bool) -> Self {
        Self { trash, pace, stop, began: Instant::now(), since_pause: 0, outcome: Outcome::default() }
    }

    /// Removes until nothing is left, nothing more can be removed, or the slice is over. Begins with the entries of the
    /// trash that come after this one.
    pub(super) fn run(mut self, after: Option<&CStr>) -> Outcome {
        loop {
            let before = self.outcome.removed;
            match self.pass(after) {
                Ok(None) => {}
                Ok(Some(here)) => {
                    self.outcome.more = Some(here);
                    break;
                }
                Err(error) => {
                    self.outcome.refused.insert(c".".to_owned(), words(error));
                    break;
                }
            }
            // Pieces of deep trees were lifted into the trash meanwhile: again, until a pass finds nothing to do.
            if self.outcome.removed == before {
                break;
            }
        }
        self.outcome
    }

    /// Once over the trash. Gives the entry that the slice ended in.
    fn pass(&mut self, after: Option<&CStr>) -> Result<Option<CString>, Errno> {
        for name in self.names(after)? {
            match self.tree(&name) {
                Ok(()) => {}
                Err(Halt::Paused) => return Ok(Some(name)),
                Err(Halt::Refused(error)) => {
                    self.outcome.refused.insert(name, words(error));
                }
            }
        }
        Ok(None)
    }

    /// What is in the trash and was not refused, in an order that goes on where another slice ended.
    fn names(&self, after: Option<&CStr>) -> Result<Vec<CString>, Errno> {
        let mut names = Vec::new();
        let mut trash = Dir::read_from(self.trash)?;
        while names.len() < PASS_MAX
            && let Some(entry) = trash.read()
        {
            let entry = entry?;
            let name = entry.file_name();
            if !dots(name) && !self.outcome.refused.contains_key(name) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        let first = after.map_or(0, |after| names.partition_point(|name| name.as_c_str() <= after));
        names.rotate_left(first);
        Ok(names)
    }

    /// Removes one entry of the trash with all that is below it.
    fn tree(&mut self, name: &CStr) -> Result<(), Halt> {
        self.step()?;
        if remove_name(self.trash, name)? {
            self.outcome.removed = self.outcome.removed.saturating_add(1);
            return Ok(());
        }
        let mut frames = Vec::with_capacity(DEPTH_MAX);
        frames.push(Frame::open(self.trash, name, 0)?);
        while let Some(frame) = frames.last_mut() {
            match frame.directory.read().transpose()? {
                Some(entry) if dots(entry.file_name()) => {}
                Some(entry) => {
                    self.step()?;
                    self.entry(&mut frames, entry.file_name())?;
                }
                None => self.end(&mut frames)?,
            }
        }
        Ok(())
    }

    /// Removes an entry of the last frame, or makes it the next one.
    fn entry(&mut self, frames: &mut Vec<Frame>, name: &CStr) -> Result<(), Halt> {
        let depth = frames.len();
        let Some(frame) = frames.last_mut() else { return Ok(()) };
        let here = frame.directory.fd()?;
        let done = match remove_name(here, name) {
            Ok(true) => {
                self.outcome.removed = self.outcome.removed.saturating_add(1);
                Ok(None)
            }
            Ok(false) if depth < DEPTH_MAX => Frame::open(here, name, 0).map(Some),
            Ok(false) => lift(here, name, self.trash).map(|()| None),
            Err(error) => Err(error),
        };
        match done {
            Ok(Some(below)) => frames.push(below),
            Ok(None) => {}
            Err(error) if is_lost(error) => return Err(error.into()),
            // It became another thing since it was looked at; as that it is found when the directory is not empty.
            Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => {}
            Err(error) => frame.stays = frame.stays.or(Some(error)),
        }
        Ok(())
    }

    /// Takes away the last frame's directory, which was read to its end.
    fn end(&mut self, frames: &mut Vec<Frame>) -> Result<(), Halt> {
        let Some(frame) = frames.pop() else { return Ok(()) };
        let ended = match frame.stays {
            Some(why) => Err(why),
            None => frame.close(frames.last().map_or(Ok(self.trash), |parent| parent.directory.fd())?),
        };
        match (ended, frames.last_mut()) {
            (Ok(Some(again)), _) => frames.push(again),
            (Ok(None), _) => self.outcome.removed = self.outcome.removed.saturating_add(1),
            (Err(error), Some(parent)) if !is_lost(error) => parent.stays = parent.stays.or(Some(error)),
            (Err(error), _) => return Err(error.into()),
        }
        Ok(())
    }

    /// Before each entry: pauses, and ends the slice.
    fn step(&mut self) -> Result<(), Halt> {
        self.since_pause = self.since_pause.saturating_add(1);
        if self.since_pause.is_multiple_of(LOOK_EVERY.min(self.pace.entries))
            && ((self.stop)() || self.began.elapsed() >= self.pace.slice)
        {
            return Err(Halt::Paused);
        }
        if self.since_pause >= self.pace.entries {
            self.since_pause = 0;
            std::thread::sleep(self.pace.pause);
        }
        Ok(())
    }
}

impl Frame {
    fn open(parent: BorrowedFd<'_>, name: &CStr, rescans: u8) -> Result<Self, Errno> {
        let directory = open_directory(parent, name)?;
        close_to_others(directory.as_fd());
        Ok(Self { directory: Dir::new(directory)?, name: name.to_owned(), rescans, stays: None })
    }

    /// Removes the directory, which was read to its end; gives it back where it is not empty yet (some filesystems
    /// skip entries when others are removed while they are listed, and somebody may still write).
    fn close(self, parent: BorrowedFd<'_>) -> Result<Option<Self>, Errno> {
        let Self { directory, name, rescans, .. } = self;
        drop(directory);
        let remove = || unlinkat(parent, &name, AtFlags::REMOVEDIR);
        let removed = match remove() {
            Err(Errno::ACCESS) => fchmod_up(parent).and_then(|()| remove()),
            Err(Errno::PERM) => unlock(parent, &name).and_then(|_| remove()),
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

/// Whether the disk itself is what fails: then nothing else of it can be removed either.
fn is_lost(error: Errno) -> bool {
    matches!(error, Errno::IO | Errno::ROFS | Errno::NODEV | Errno::NXIO | Errno::STALE)
}

fn words(error: Errno) -> String {
    match error {
        Errno::XDEV | Errno::BUSY => "something is mounted in it".to_owned(),
        Errno::NOTEMPTY | Errno::EXIST => "somebody still makes files in it".to_owned(),
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
            let shared = unlock(parent, name)?;
            let unlinked = unlink();
            if let Some(file) = shared {
                file.lock_again()?;
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
            drop(unlock(parent, name)?);
            rename()
        }
        renamed => renamed,
    }
}
