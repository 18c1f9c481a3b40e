//! The mount guard: whether a pool is there, as declared, right now.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, IFlags, Mode, OFlags, ResolveFlags, StatVfsMountFlags, Statx, StatxAttributes, StatxFlags,
    ioctl_getflags, ioctl_setflags, openat2, statx,
};
use rustix::io::Errno;

use super::uuid;
use super::view::{State, Trouble};
use crate::config;

/// How everything below a pool is opened: no way out of it, through no link, over no mount.
pub(super) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// A directory as a place to start from; nothing can be read from the descriptor.
pub(super) const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// A directory to read, or to change the mode of.
pub(super) const READ: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a pool's root after the whole guard. The path of a pool that need not be a mount is made where it is missing.
pub(super) fn enter(pool: &config::Pool) -> Result<OwnedFd, Trouble> {
    let root = open(pool)?;
    judge(pool, root.as_fd())?;
    Ok(root)
}

/// Opens the path, whatever is there; see [`judge`].
pub(super) fn open(pool: &config::Pool) -> Result<OwnedFd, Trouble> {
    match open_path(&pool.path) {
        Err(Errno::NOENT) if !pool.mount_required => {
            make(&pool.path).map_err(|error| Trouble::system(pool.path.display(), error))?;
            open_path(&pool.path)
        }
        opened => opened,
    }
    .map_err(|error| Trouble::system(pool.path.display(), error))
}

/// The last component may not be a link: whoever can replace it chooses where builds write. Links above it are the
/// operating system's (`/mnt` or `/home` on image-based systems), and are followed.
fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    let strictly =
        |path: &Path| openat2(CWD, path, PLACE, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS);
    match (strictly(path), path.parent(), path.file_name()) {
        (Err(Errno::LOOP), Some(parent), Some(name)) => {
            let parent = parent.canonicalize().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            strictly(&parent.join(name))
        }
        (opened, ..) => opened,
    }
}

fn make(path: &Path) -> Result<(), Errno> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    // Whatever the umask is.
    made.and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Whether an opened pool may be written to.
pub(super) fn judge(pool: &config::Pool, root: BorrowedFd<'_>) -> Result<(), Trouble> {
    let path = pool.path.display();
    let system = |error| Trouble::system(&path, error);
    let own = look(root, c"").map_err(system)?;
    if pool.mount_required {
        mounted(root, &own, &path.to_string())?;
    }
    if let Some(wanted) = &pool.uuid {
        identity(root, &own, wanted, &path.to_string())?;
    }
    if rustix::fs::fstatvfs(root).map_err(system)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Trouble::new(State::ReadOnly, format!("{path} is mounted read-only; look for errors of the disk")));
    }
    Ok(())
}

/// What `statx(2)` says of a name below a directory (empty: of the directory itself), without triggering mounts.
pub(super) fn look(directory: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    statx(directory, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

const fn device(of: &Statx) -> (u32, u32) {
    (of.stx_dev_major, of.stx_dev_minor)
}

/// A mount's root, on another device than the parent: a bind mount of a directory of the root disk is none.
fn mounted(root: BorrowedFd<'_>, own: &Statx, path: &str) -> Result<(), Trouble> {
    if !own.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        let message = format!("this kernel does not tell whether {path} is a mount; Linux 5.8 or newer is needed");
        return Err(Trouble::new(State::Failed, message));
    }
    let parent = look(root, c"..").map_err(|error| Trouble::system(path, error))?;
    let what = match own.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        true if device(own) != device(&parent) => return Ok(()),
        true => "is a bind mount of the filesystem that its parent is on, not a filesystem of its own",
        false => "is not a mounted filesystem",
    };
    let message = format!("{path} {what}; nothing is created there until the pool's disk is mounted");
    Err(Trouble::new(State::NotMounted, message))
}

fn identity(root: BorrowedFd<'_>, own: &Statx, wanted: &[u8; 16], path: &str) -> Result<(), Trouble> {
    let readable = openat2(root, c".", READ, Mode::empty(), BENEATH).map_err(|error| Trouble::system(path, error))?;
    let wanted_text = uuid::text(wanted);
    let wrong = |found: String| {
        let message = format!("{path} is the filesystem {found}, declared is {wanted_text}; mount the right disk");
        Err(Trouble::new(State::WrongFilesystem, message))
    };
    match uuid::filesystem_uuid(readable.as_fd()) {
        Ok(Some(found)) if found == *wanted => Ok(()),
        Ok(Some(found)) => wrong(uuid::text(&found)),
        Ok(None) => wrong("without a UUID".to_owned()),
        Err(_) => match uuid::device_has_uuid(device(own), wanted) {
            Some(true) => Ok(()),
            Some(false) => wrong("with another UUID".to_owned()),
            None => {
                let message = format!("the UUID of {path} cannot be read on this kernel; remove `uuid` of the pool");
                Err(Trouble::new(State::Failed, message))
            }
        },
    }
}

/// Makes an empty mount point, of which [`judge`] said that it is not mounted, immutable: nobody else (container
/// runtimes create missing paths) then fills the root disk below it. It can be mounted over as before.
///
/// Says in words what came of it; a failure is no failure of the pool, which is not usable anyway.
pub(super) fn seal(root: BorrowedFd<'_>) -> String {
    let sealed = || -> Result<&str, Errno> {
        let directory = openat2(root, c".", READ, Mode::empty(), BENEATH)?;
        let flags = ioctl_getflags(&directory)?;
        if flags.contains(IFlags::IMMUTABLE) {
            return Ok("the mount point is sealed");
        }
        for entry in Dir::read_from(&directory)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok("the mount point is not sealed, because it is not empty");
            }
        }
        ioctl_setflags(&directory, flags | IFlags::IMMUTABLE)?;
        Ok("the mount point is sealed")
    };
    match sealed() {
        Ok(outcome) => outcome.to_owned(),
        Err(error) => format!("the mount point cannot be sealed: {}", std::io::Error::from(error)),
    }
}
