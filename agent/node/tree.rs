//! What lies on a pool: looked at, opened and moved by descriptors.
//!
//! Builds and others write there, also while it is looked at. So every path is resolved beneath the pool's own
//! descriptor, after its guard, without links and across no mount; and everything has a bound, so that nobody can keep
//! the agent busy with a tree of his.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Statx, StatxFlags, fsync, openat2, renameat_with, statx,
};
use rustix::io::Errno;

use super::directory::{self, OWN};
use super::guard::{BENEATH, PLACE, READ};
use super::{Pools, rights, trash};

/// How many directories of one tree are open at once. What lies deeper is not counted.
const DEPTH_MAX: usize = 64;

/// What one file, directory or link is: the same name with another of these is another thing. Age is never read from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The inode's number.
    pub inode: u64,
    /// When the filesystem made it, which nobody can set; zero where it does not tell.
    pub born: (i64, u32),
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Any bytes but a slash.
    pub name: OsString,
    /// What it is.
    pub identity: Identity,
    /// Neither a file nor a link.
    pub is_directory: bool,
}

/// What a tree holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// All that was looked at, and so what the look cost.
    pub entries: u64,
    /// Everything in it but directories.
    pub files: u64,
    /// The lengths of its regular files.
    pub bytes: u64,
    /// What it takes on the disk.
    pub disk_bytes: u64,
    /// It was not looked at to its end: there is more.
    pub partial: bool,
}

/// What was opened.
#[derive(Debug)]
pub enum Opened {
    /// A regular file, and its length.
    File(std::fs::File, u64),
    /// A directory.
    Directory(OwnedFd),
    /// A link: where it leads is nobody's business but its reader's.
    Link(OsString),
    /// A socket, a pipe, a device.
    Other,
}

impl Pools {
    /// The names in a directory of a pool, at most `max` of them, and whether these are all. One that is not there has
    /// none.
    ///
    /// # Errors
    /// As [`Pools::discard`].
    pub fn names(&self, directory: &Path, max: usize) -> io::Result<(Vec<Found>, bool)> {
        let (root, within) = self.enter_at(directory)?;
        let directory = match openat2(&root, &within, READ, Mode::empty(), BENEATH) {
            Err(Errno::NOENT) => return Ok((Vec::new(), true)),
            opened => opened?,
        };
        let mut found = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if found.len() >= max {
                return Ok((found, false));
            }
            let seen = match stat(directory.as_fd(), OsStr::from_bytes(name.to_bytes())) {
                Err(Errno::NOENT) => continue, // it went meanwhile
                seen => seen?,
            };
            found.push(Found {
                name: OsStr::from_bytes(name.to_bytes()).to_owned(),
                identity: identity(&seen),
                is_directory: kind(&seen) == FileType::Directory,
            });
        }
        Ok((found, true))
    }

    /// Whether anything lies in a directory of a pool; not where it is none, and so also not where a link is in its place.
    ///
    /// # Errors
    /// As [`Pools::discard`].
    pub fn holds_anything(&self, directory: &Path) -> io::Result<bool> {
        match self.names(directory, 1) {
            Ok((found, _)) => Ok(!found.is_empty()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOTDIR | Errno::LOOP) => Ok(false),
                // Its owner may not read it; that may have been meant as a joke.
                Some(Errno::ACCESS) => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// What lies at a path of a pool and below it. After `entries_max` it is not looked at any further.
    ///
    /// # Errors
    /// As [`Pools::discard`]; `NotFound` where nothing is there.
    pub fn measure_tree(&self, path: &Path, entries_max: u64) -> io::Result<Measure> {
        let (root, within) = self.enter_at(path)?;
        let (parent, name) = directory::open_parent(root.as_fd(), &within)?;
        let name = OsStr::from_bytes(name.to_bytes());
        let mut measure = Measure::default();
        measure.count(&stat(parent.as_fd(), name)?);
        match openat2(&parent, name, READ | OFlags::NOFOLLOW, Mode::empty(), BENEATH) {
            Ok(top) => walk(top, entries_max, &mut measure),
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(_) => measure.partial = true,
        }
        Ok(measure)
    }

    /// Opens what lies at `within` below the directory `base` of a pool: nothing else can be reached, whatever links say.
    /// An empty `within` is the directory itself.
    ///
    /// # Errors
    /// `NotFound` where nothing is there or a link is on the way; `PermissionDenied` where the agent may not read it.
    pub fn open_beneath(&self, base: &Path, within: &Path) -> io::Result<Opened> {
        let (root, base) = self.enter_at(base)?;
        let base = openat2(&root, &base, PLACE, Mode::empty(), BENEATH)?;
        open_at(base.as_fd(), within)
    }

    /// Moves a directory of the agent's to another place of the same pool: `<pool>/stoker/<folder>/<name>`, whose folder
    /// only the agent can enter. False: nothing is there, or it is no directory. It is on the disk when this returns.
    ///
    /// # Errors
    /// As [`Pools::discard`]; `AlreadyExists` where something is in its new place.
    pub fn carry(&self, from: &Path, folder: &str, name: &str) -> io::Result<bool> {
        let (root, within) = self.enter_at(from)?;
        if !within.starts_with(OWN) {
            let message = format!("{} does not lie in the agent's directory, and is not moved", from.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let in_words = |trouble: super::view::Trouble| io::Error::other(trouble.message);
        let own = directory::open_own(root.as_fd()).map_err(in_words)?;
        let (parent, old) = match directory::open_parent(root.as_fd(), &within) {
            Err(Errno::NOENT) => return Ok(false),
            opened => opened?,
        };
        let target = match openat2(&parent, &old, PLACE | OFlags::NOFOLLOW, Mode::empty(), BENEATH) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(Errno::XDEV) => return Err(trash::busy(from)),
            opened => opened?,
        };
        if trash::mounted_below(target.as_fd())? {
            return Err(trash::busy(from));
        }
        let folder = directory::owned(own.as_fd(), folder, 0o700).map_err(in_words)?;
        let rename = || renameat_with(&parent, &old, &folder, name, RenameFlags::NOREPLACE);
        match rename() {
            // As for the trash: who may not write to a directory cannot change its parent.
            Err(Errno::ACCESS) => {
                rights::open_up(target.as_fd())?;
                rename()?;
            }
            Err(Errno::PERM) => {
                drop(rights::unlock(parent.as_fd(), &old)?);
                rename()?;
            }
            renamed => renamed?,
        }
        fsync(&folder)?;
        Ok(true)
    }
}

/// As [`Pools::open_beneath`], below an open directory.
pub(crate) fn open_at(base: BorrowedFd<'_>, within: &Path) -> io::Result<Opened> {
    let within = if within.as_os_str().is_empty() { Path::new(".") } else { within };
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The last component may be a link, which is shown and not followed; a link before it is refused.
    let seen = match within.file_name() {
        None => openat2(base, within, look, Mode::empty(), BENEATH),
        Some(name) => {
            let parent = within.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let parent = openat2(base, parent, PLACE, Mode::empty(), BENEATH);
            let last = BENEATH.difference(rustix::fs::ResolveFlags::NO_SYMLINKS);
            parent.and_then(|parent| openat2(&parent, name, look, Mode::empty(), last))
        }
    };
    let seen = seen.map_err(hidden)?;
    let is = statx(&seen, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    match kind(&is) {
        FileType::Directory => {
            let opened = openat2(base, within, READ | OFlags::NOFOLLOW, Mode::empty(), BENEATH);
            Ok(Opened::Directory(opened.map_err(hidden)?))
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&seen, c"", Vec::new()).map_err(hidden)?;
            Ok(Opened::Link(OsStr::from_bytes(target.to_bytes()).to_owned()))
        }
        FileType::RegularFile => {
            // Looked at first: merely opening a device can do something. Whoever puts a pipe in its place meanwhile does not
            // make this wait.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let file = openat2(base, within, flags, Mode::empty(), BENEATH).map_err(hidden)?;
            let opened = statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
            match (kind(&opened), opened.stx_ino == is.stx_ino) {
                (FileType::RegularFile, true) => Ok(Opened::File(file.into(), opened.stx_size)),
                _ => Ok(Opened::Other),
            }
        }
        _ => Ok(Opened::Other),
    }
}

/// What leads out of a tree is not there.
fn hidden(error: Errno) -> io::Error {
    match error {
        Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::INVAL => io::ErrorKind::NotFound.into(),
        error => error.into(),
    }
}

/// What a name is, without following it or triggering a mount.
pub(crate) fn stat(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statx(directory, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// What kind of file that is.
pub(crate) fn kind(of: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(of.stx_mode))
}

/// What an open file is.
pub(super) fn identity_of(file: BorrowedFd<'_>) -> Result<Identity, Errno> {
    Ok(identity(&statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?))
}

fn identity(of: &Statx) -> Identity {
    let known = StatxFlags::from_bits_retain(of.stx_mask).contains(StatxFlags::BTIME);
    let born = if known { (of.stx_btime.tv_sec, of.stx_btime.tv_nsec) } else { (0, 0) };
    Identity { inode: of.stx_ino, born }
}

impl Measure {
    fn count(&mut self, seen: &Statx) {
        self.disk_bytes = self.disk_bytes.saturating_add(seen.stx_blocks.saturating_mul(512));
        self.entries = self.entries.saturating_add(1);
        let is = kind(seen);
        if is != FileType::Directory {
            self.files = self.files.saturating_add(1);
        }
        if is == FileType::RegularFile {
            self.bytes = self.bytes.saturating_add(seen.stx_size);
        }
    }
}

fn walk(top: OwnedFd, entries_max: u64, measure: &mut Measure) {
    let Ok(top) = Dir::new(top) else {
        measure.partial = true;
        return;
    };
    let (mut open, mut seen) = (vec![top], 0_u64);
    while let Some(directory) = open.last_mut() {
        let entry = match directory.read() {
            None => {
                open.pop();
                continue;
            }
            Some(Ok(entry)) => entry,
            Some(Err(_)) => {
                measure.partial = true;
                open.pop();
                continue;
            }
        };
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        seen = seen.saturating_add(1);
        if seen > entries_max {
            measure.partial = true;
            return;
        }
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let here = directory.fd();
        let looked = here.and_then(|here| stat(here, name).map(|is| (here, is)));
        // What vanishes meanwhile is not counted.
        let Ok((here, is)) = looked else { continue };
        measure.count(&is);
        if kind(&is) != FileType::Directory {
            continue;
        }
        let below = openat2(here, name, READ | OFlags::NOFOLLOW, Mode::empty(), BENEATH).and_then(Dir::new);
        match below {
            Ok(below) if open.len() < DEPTH_MAX => open.push(below),
            _ => measure.partial = true,
        }
    }
}
