//! Project quotas: what the files of a project hold together, and may hold. A project is a number that a directory gives to
//! all that is made in it; see "Project quota" in xfs_quota(8), and quotactl(2).
//!
//! The kernel's rules, seen on XFS and ext4: a rename or a link *into* a directory whose project goes on to what is made in
//! it fails with `EXDEV` where the file is of another one; out of it, both are free. So what is marked here can be moved to
//! the trash and to the outputs, which are of no project, and goes on to count where it was until it is gone.

// No crate wraps quotactl_fd(2), nor the calls that put a directory into a project.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

/// `PRJQUOTA` of the kernel's `include/uapi/linux/quota.h`.
const PROJECTS: libc::c_int = 2;
/// `QIF_DQBLKSIZE` there: the unit of limits.
const LIMIT_BYTES: u64 = 1024;
/// `FS_XFLAG_PROJINHERIT` of `include/uapi/linux/fs.h`: what is made in the directory is of its project too.
const INHERITED: u32 = 0x200;

/// `struct if_dqblk` there.
#[repr(C)]
#[derive(Default)]
struct Quota {
    bytes_hard: u64,
    bytes_soft: u64,
    bytes_used: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes_used: u64,
    bytes_until: u64,
    inodes_until: u64,
    valid: u32,
}

/// `struct fsxattr` of `include/uapi/linux/fs.h`.
#[repr(C)]
struct Attributes {
    flags: u32,
    extent_bytes: u32,
    extents: u32,
    project: u32,
    copied_extent_bytes: u32,
    unused: [u8; 8],
}

/// `FS_IOC_FSGETXATTR`: `_IOR('X', 31, struct fsxattr)`.
const GET_ATTRIBUTES: Opcode = opcode::read::<Attributes>(b'X', 31);
/// `FS_IOC_FSSETXATTR`: `_IOW('X', 32, struct fsxattr)`.
const SET_ATTRIBUTES: Opcode = opcode::write::<Attributes>(b'X', 32);

/// What is counted of a project.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Of blocks, with those that are reserved for what is not written out yet.
    pub(crate) bytes: u64,
    /// Directories are inodes too.
    pub(crate) inodes: u64,
}

/// What the files of a project hold on the filesystem that `on` (open for reading) is on.
///
/// # Errors
/// `ENOSYS` where there are no project quotas, `ESRCH` where they are off, `EPERM` without `CAP_SYS_ADMIN`.
pub(crate) fn used(on: BorrowedFd<'_>, project: u32) -> io::Result<Counted> {
    let mut quota = Quota::default();
    match call(libc::Q_GETQUOTA, on, project, &mut quota) {
        Ok(()) => Ok(Counted { bytes: quota.bytes_used, inodes: quota.inodes_used }),
        // XFS knows nothing of a project that has neither files nor limits.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Counted::default()),
        Err(error) => Err(error),
    }
}

/// Limits what a project may hold; zeros: no limit.
///
/// # Errors
/// As [`used`].
pub(crate) fn limit(on: BorrowedFd<'_>, project: u32, most: Counted) -> io::Result<()> {
    let mut quota = Quota {
        bytes_hard: most.bytes.div_ceil(LIMIT_BYTES),
        inodes_hard: most.inodes,
        valid: libc::QIF_LIMITS,
        ..Quota::default()
    };
    call(libc::Q_SETQUOTA, on, project, &mut quota)
}

/// Puts an empty directory (open for reading) into a project, and with it all that will be made in it.
///
/// # Errors
/// `EOPNOTSUPP` or `ENOTTY` where the filesystem has no projects, `EINVAL` inside a user namespace.
pub(crate) fn mark(directory: BorrowedFd<'_>, project: u32) -> Result<(), Errno> {
    // SAFETY: the opcode is the kernel's own, computed from the very type that the kernel fills in, and every bit pattern
    // is valid for that type.
    let had = unsafe { ioctl(directory, Getter::<GET_ATTRIBUTES, Attributes>::new()) }?;
    let wanted = Attributes { flags: had.flags | INHERITED, project, ..had };
    // SAFETY: the opcode is the kernel's own, computed from the very type that the kernel reads.
    unsafe { ioctl(directory, Setter::<SET_ATTRIBUTES, Attributes>::new(wanted)) }
}

fn call(command: libc::c_int, on: BorrowedFd<'_>, project: u32, quota: &mut Quota) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads and writes one struct of this
    // layout. Linux 5.14 and newer; older ones answer ENOSYS.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            on.as_raw_fd(),
            libc::QCMD(command, PROJECTS),
            project,
            std::ptr::from_mut(quota),
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
