//! Which filesystem is mounted: its UUID.

// The kernel has one call for the UUID of a mounted filesystem, and no crate wraps it.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, ioctl, opcode};

/// `struct fsuuid2` of the kernel's `include/uapi/linux/fs.h`.
#[repr(C)]
struct FsUuid2 {
    len: u8,
    uuid: [u8; 16],
}

/// `FS_IOC_GETFSUUID`, since Linux 6.9: `_IOR(0x15, 0, struct fsuuid2)`.
const GET_FS_UUID: Opcode = opcode::read::<FsUuid2>(0x15, 0);

/// The UUID of the filesystem that `directory` (open for reading) is on; nothing where it has none of 16 bytes.
///
/// # Errors
/// Older kernels and some filesystems do not tell: `NOTTY` or `OPNOTSUPP`.
pub(super) fn filesystem_uuid(directory: BorrowedFd<'_>) -> Result<Option<[u8; 16]>, Errno> {
    // SAFETY: the opcode is the kernel's own, computed from the very type that the kernel fills in, and every bit
    // pattern is valid for that type.
    let answer = unsafe { ioctl(directory, Getter::<GET_FS_UUID, FsUuid2>::new()) }?;
    Ok((answer.len == 16).then_some(answer.uuid))
}

/// Whether udev's name for this UUID is the device `(major, minor)`. For kernels that do not tell the UUID themselves.
/// Nothing where udev has no such name.
pub(super) fn device_has_uuid(device: (u32, u32), uuid: &[u8; 16]) -> Option<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let named = std::fs::metadata(Path::new("/dev/disk/by-uuid").join(text(uuid))).ok()?.rdev();
    Some((rustix::fs::major(named), rustix::fs::minor(named)) == device)
}

/// As people write it: `0f1e2d3c-...`.
pub(super) fn text(bytes: &[u8; 16]) -> String {
    ::uuid::Uuid::from_bytes(*bytes).hyphenated().to_string()
}
