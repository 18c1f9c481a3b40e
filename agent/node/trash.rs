//! The trash: `<pool>/stoker/trash`, readable by the agent alone, on the same filesystem as what is thrown into it.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat2, renameat};
use rustix::io::Errno;

use super::directory::{self, TRASH};
use super::guard::BENEATH;
use super::remove::{Outcome, Sweep};
use super::tree::{self, Identity};
use super::{Filesystem, mount, rights};

/// How fast trash is removed, so that builds keep the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    /// After so many entries ...
    pub(super) entries: u32,
    /// ... comes a pause.
    pub(super) pause: Duration,
    /// After so long all descriptors are let go of.
    pub(super) slice: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { entries: 1000, pause: Duration::from_millis(5), slice: Duration::from_secs(1) }
    }
}

impl Pace {
    /// Below its floor a pool needs room more than its builds need the disk's time: no pauses.
    pub(super) fn of(pool: &Filesystem) -> Self {
        let pressed = pool.free_bytes < pool.floor_bytes || pool.free_inodes < pool.floor_inodes;
        let pause = if pressed { Duration::ZERO } else { Self::default().pause };
        Self { pause, ..Self::default() }
    }
}

/// Renames `path`, relative to `base`, into the trash of the agent's directory `own`; where `only` is given, nothing but
/// that very thing. False: it is not there.
pub(super) fn discard(
    own: BorrowedFd<'_>,
    base: BorrowedFd<'_>,
    path: &Path,
    only: Option<Identity>,
) -> io::Result<bool> {
    if path.as_os_str().is_empty() || path.starts_with(TRASH) {
        let message = format!("{} is kept by the agent, and is not removed", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let (parent, name) = match directory::open_parent(base, path) {
        Err(Errno::NOENT) => return Ok(false),
        opened => opened?,
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Without NO_SYMLINKS, for a link itself may be thrown away; NOFOLLOW and NO_XDEV still hold.
    let target = match openat2(
        &parent,
        &name,
        flags,
        Mode::empty(),
        BENEATH.difference(rustix::fs::ResolveFlags::NO_SYMLINKS),
    ) {
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::XDEV) => return Err(busy(path)),
        opened => opened?,
    };
    if let Some(only) = only
        && tree::identity_of(target.as_fd())? != only
    {
        return Ok(false);
    }
    if mounted_below(target.as_fd())? {
        return Err(busy(path));
    }
    let trash = directory::open_trash(own).map_err(|trouble| io::Error::other(trouble.message))?;
    let unique = uuid::Uuid::now_v7().simple().to_string();
    let rename = || renameat(&parent, &name, &trash, unique.as_str());
    match rename() {
        Err(Errno::NOENT) => return Ok(false),
        // A directory that its owner may not write to cannot change its parent; see rename(2).
        Err(Errno::ACCESS) => {
            rights::open_up(target.as_fd())?;
            rename()?;
        }
        Err(Errno::PERM) => {
            rights::unlock(parent.as_fd(), &name)?;
            rename()?;
        }
        renamed => renamed?,
    }
    Ok(true)
}

pub(super) fn busy(path: &Path) -> io::Error {
    let message = format!("something is mounted in {}; unmount it first", path.display());
    io::Error::new(io::ErrorKind::ResourceBusy, message)
}

/// Whether anything is mounted at or below an open file, as far as this process sees. The kernel only refuses to rename
/// a mount point itself.
pub(super) fn mounted_below(target: BorrowedFd<'_>) -> io::Result<bool> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", target.as_raw_fd()))?;
    Ok(!mount::mounts_below(&path)?.is_empty())
}

/// What came of a slice.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Where more is to do now: the entry in which the slice ended.
    pub(super) more: Option<CString>,
    /// What cannot be removed, in words; empty where there is nothing.
    pub(super) left: String,
}

/// Removes what is in the trash below a pool's `root`, for at most one slice, beginning after the entry in which the last
/// one ended. What cannot be removed is left for later.
pub(super) fn sweep(root: BorrowedFd<'_>, pace: Pace, after: Option<&CStr>, stop: &dyn Fn() -> bool) -> Swept {
    let trash = directory::open_own(root).and_then(|own| directory::open_trash(own.as_fd()));
    let trash = match trash {
        Ok(trash) => trash,
        Err(trouble) => return Swept { more: None, left: format!("the trash cannot be opened: {}", trouble.message) },
    };
    let outcome = Sweep::new(trash.as_fd(), pace, stop).run(after);
    if outcome.removed > 0 {
        tracing::debug!(removed = outcome.removed, "trash removed");
    }
    let left = left(&outcome);
    Swept { more: outcome.more.filter(|_| !stop()), left }
}

fn left(outcome: &Outcome) -> String {
    let Some((name, why)) = outcome.refused.first_key_value() else { return String::new() };
    let place = Path::new(directory::OWN).join(TRASH).join(OsStr::from_bytes(name.to_bytes()));
    let further = match outcome.refused.len().saturating_sub(1) {
        0 => String::new(),
        more => format!(", nor can {more} more"),
    };
    format!("{} cannot be removed: {why}{further}; it is tried again every minute", place.display())
}
