//! Mounts that show files as belonging to somebody else.

// No crate wraps mount_setattr(2), by which alone a mount gets a mapping of owners.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;

/// `struct mount_attr` of the kernel's `include/uapi/linux/mount.h`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Gives a mount that is not attached yet (of `open_tree(2)`) the mapping of a user namespace.
///
/// # Errors
/// `EINVAL` where the kernel (before 5.19 below an overlay) or the filesystem cannot, `EPERM` without the right.
pub(super) fn set(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let descriptor = u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
    let wanted = MountAttr { attr_set: MOUNT_ATTR_IDMAP, userns_fd: descriptor, ..MountAttr::default() };
    // SAFETY: both descriptors are open for as long as they are borrowed, the path is a C string that lives for ever, and
    // the kernel reads exactly as many bytes of the struct as it is told.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(&wanted),
            size_of::<MountAttr>(),
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
