//! Mounts that show files as belonging to somebody else, or that are cut off from where they come from.

// No crate wraps mount_setattr(2), by which alone a mount gets a mapping of owners, or one that is not attached anything.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;

use super::mount::Shown;

/// `struct mount_attr` of the kernel's `include/uapi/linux/mount.h`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_RDONLY: u64 = 0x0000_0001;
const MOUNT_ATTR_NOSUID: u64 = 0x0000_0002;
const MOUNT_ATTR_NODEV: u64 = 0x0000_0004;
const MOUNT_ATTR_NOEXEC: u64 = 0x0000_0008;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
/// `AT_RECURSIVE` of `include/uapi/linux/fcntl.h`: all mounts of the tree.
const AT_RECURSIVE: libc::c_int = 0x8000;

/// Gives a mount that is not attached yet (of `open_tree(2)`) the mapping of a user namespace.
///
/// # Errors
/// `EINVAL` where the kernel (before 5.19 below an overlay) or the filesystem cannot, `EPERM` without the right.
pub(super) fn set(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let descriptor = u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
    let wanted = MountAttr { attr_set: MOUNT_ATTR_IDMAP, userns_fd: descriptor, ..MountAttr::default() };
    set_attributes(mount, &wanted, 0)
}

/// Makes a tree of mounts that is not attached yet one of its own: what is mounted or unmounted where it was cloned from
/// happens no more in it, nor the other way. Nothing in it makes a process somebody else, or is a device.
///
/// # Errors
/// The kernel's, `ENOSYS` before 5.12.
pub(super) fn cut_off(tree: BorrowedFd<'_>, shown: Shown) -> io::Result<()> {
    let read_only = if shown.read_only { MOUNT_ATTR_RDONLY } else { 0 };
    let no_exec = if shown.no_exec { MOUNT_ATTR_NOEXEC } else { 0 };
    let wanted = MountAttr {
        attr_set: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | read_only | no_exec,
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    set_attributes(tree, &wanted, AT_RECURSIVE)
}

fn set_attributes(mount: BorrowedFd<'_>, wanted: &MountAttr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: all descriptors are open for as long as they are borrowed, the path is a C string that lives for ever, and
    // the kernel reads exactly as many bytes of the struct as it is told.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(wanted),
            size_of::<MountAttr>(),
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
