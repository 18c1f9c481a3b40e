//! How full a filesystem is.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use stoker_core::pressure;

use crate::config::Floor;

/// A filesystem's figures, its floors in absolute numbers, and its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// All bytes.
    pub total_bytes: u64,
    /// What may still be written without special rights.
    pub free_bytes: u64,
    /// All inodes; 0: without a fixed number (btrfs).
    pub total_inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
    /// Bytes that must stay free.
    pub floor_bytes: u64,
    /// Inodes that must stay free.
    pub floor_inodes: u64,
    /// `xfs`, `ext4`, `btrfs`, ...; the magic number in hexadecimal where it has no name here.
    pub type_name: String,
}

impl Filesystem {
    /// The filesystem of an open file or directory.
    ///
    /// # Errors
    /// Those of `fstatfs(2)`.
    pub fn of(file: impl AsFd, floor: Floor) -> io::Result<Self> {
        let figures = rustix::fs::fstatvfs(&file)?;
        let magic = rustix::fs::fstatfs(&file)?.f_type;
        let total_bytes = figures.f_blocks.saturating_mul(figures.f_frsize);
        let type_name = type_name(u64::try_from(magic).unwrap_or(0) & 0xffff_ffff);
        let total_inodes = match type_name.as_str() {
            "xfs" => figures.f_files.max(inodes_of_xfs(total_bytes)),
            _ => figures.f_files,
        };
        Ok(Self {
            total_bytes,
            free_bytes: figures.f_bavail.saturating_mul(figures.f_frsize),
            total_inodes,
            free_inodes: figures.f_favail,
            floor_bytes: floor.bytes.of(total_bytes),
            floor_inodes: if figures.f_files == 0 { 0 } else { floor.inodes.of(figures.f_files) },
            type_name,
        })
    }

    /// The filesystem that `path` lies on.
    ///
    /// # Errors
    /// Those of `open(2)` with `O_PATH`, and of `fstatfs(2)`.
    pub fn at(path: &Path, floor: Floor) -> io::Result<Self> {
        use rustix::fs::{Mode, OFlags};
        Self::of(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?, floor)
    }

    /// The figures for the gate, with what leases have reserved and not written; how fast it fills is not known here.
    #[must_use]
    pub fn reading(&self, reserved_bytes: u64, reserved_inodes: u64) -> pressure::Filesystem {
        pressure::Filesystem {
            total_bytes: self.total_bytes,
            free_bytes: self.free_bytes,
            total_inodes: self.total_inodes,
            free_inodes: self.free_inodes,
            floor_bytes: self.floor_bytes,
            floor_inodes: self.floor_inodes,
            reserved_bytes,
            reserved_inodes,
            slope: pressure::Slope::default(),
        }
    }
}

/// XFS makes inodes when they are needed, and says that there are as many as there is room for now: fewer and fewer while
/// the disk fills. That is no smaller filesystem. `mkfs.xfs` lets them take such a part of it where nobody says otherwise.
fn inodes_of_xfs(total_bytes: u64) -> u64 {
    const TIB: u64 = 1 << 40;
    const INODE_BYTES: u64 = 512;
    let percent = match total_bytes {
        0..TIB => 25,
        size if size < 50 * TIB => 5,
        _ => 1,
    };
    total_bytes / 100 * percent / INODE_BYTES
}

/// Magic numbers: the kernel's `include/uapi/linux/magic.h`, and statfs(2).
fn type_name(magic: u64) -> String {
    let name = match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlay",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0xca45_1a4e => "bcachefs",
        0x6969 => "nfs",
        0x00c3_6400 => "ceph",
        0x6573_5546 => "fuse",
        0x8584_58f6 => "ramfs",
        _ => return format!("{magic:#x}"),
    };
    name.to_owned()
}
