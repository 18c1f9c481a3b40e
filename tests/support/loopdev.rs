//! Filesystems of their own, on loop devices: real mounts, real sizes, real ends of space.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::wait;

/// Returns from a test that needs root where it is not root. In CI (the variable `CI` is set) the test fails instead:
/// there, nothing is skipped.
macro_rules! needs_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root, and CI skips nothing");
            eprintln!("not run: it needs root");
            return;
        }
    };
}
pub(crate) use needs_root;

/// A kind of filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    /// With reflinks. At least 300 MB.
    Xfs,
    /// With reflinks. At least 128 MiB.
    Btrfs,
}

/// A filesystem that takes no writes.
pub(crate) struct Frozen(std::process::Child);

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A filesystem in a sparse image. Dropped, it is unmounted and its loop device detached, also where a test panics.
pub(crate) struct LoopFs {
    kind: Kind,
    /// Where it is mounted: a folder of its own, or one that the test named.
    path: PathBuf,
    mounted: bool,
    place: TempDir,
}

impl LoopFs {
    /// Makes a filesystem of `size` bytes, and mounts it at a folder of its own.
    #[track_caller]
    pub(crate) fn new(kind: Kind, size: u64) -> Self {
        let mut new = Self::unmounted(kind, size);
        new.mount();
        new
    }

    /// Makes one and its empty mount point, and does not mount it.
    #[track_caller]
    pub(crate) fn unmounted(kind: Kind, size: u64) -> Self {
        let place = super::place("loop-");
        let path = place.path().join("mount");
        std::fs::create_dir(&path).unwrap();
        let image = place.path().join("image");
        File::create_new(&image).unwrap().set_len(size).unwrap();
        match kind {
            // Nothing is kept for root: git's own user meets the same end of the disk.
            Kind::Ext4 => tool("mkfs.ext4", ["-q", "-m", "0"].map(OsStr::new).into_iter().chain([image.as_os_str()])),
            Kind::Xfs => tool("mkfs.xfs", [OsStr::new("-q"), image.as_os_str()]),
            Kind::Btrfs => tool("mkfs.btrfs", [OsStr::new("-q"), image.as_os_str()]),
        }
        Self { kind, path, mounted: false, place }
    }

    /// Mounts it at `path`, which is there, from the next mount on.
    #[track_caller]
    pub(crate) fn at(mut self, path: &Path) -> Self {
        let again = self.mounted;
        self.unmount();
        self.path = path.to_owned();
        if again {
            self.mount();
        }
        self
    }

    /// Its mount point.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Its UUID, as `blkid` and `FS_IOC_GETFSUUID` tell.
    #[track_caller]
    pub(crate) fn uuid(&self) -> String {
        let output = Command::new("blkid").args(["-s", "UUID", "-o", "value"]).arg(self.image()).output().unwrap();
        assert!(output.status.success(), "blkid: {}", output.status);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Mounts it, where it is not.
    #[track_caller]
    pub(crate) fn mount(&mut self) {
        if !self.mounted {
            // `-o loop` detaches the device with the last unmount: nothing is left to forget.
            tool("mount", [OsStr::new("-o"), OsStr::new("loop"), self.image().as_os_str(), self.path.as_os_str()]);
            self.mounted = true;
        }
    }

    /// Cuts its power, as the kernel has it for tests: nothing of the log is written any more, and every access is an
    /// error until it is mounted again.
    #[track_caller]
    pub(crate) fn cut_power(&self) {
        tool("xfs_io", ["-x", "-c", "shutdown"].map(OsStr::new).into_iter().chain([self.path.as_os_str()]));
    }

    /// Takes its device away: whatever is not in memory can neither be read nor written, until it is mounted again.
    #[track_caller]
    pub(crate) fn lose_device(&self) {
        /// `struct loop_info64`: the device ends after `size_limit` bytes.
        #[repr(C)]
        struct Info {
            device_inode_rdevice_offset: [u64; 4],
            size_limit: u64,
            number_encryption_flags: [u32; 4],
            names_key_init: [u64; 22],
        }
        const SET_STATUS_64: rustix::ioctl::Opcode = 0x4C04;
        /// Or it would stay when nothing holds it any more.
        const AUTOCLEAR: u32 = 4;
        const { assert!(size_of::<Info>() == 232) };
        let device = File::open(Path::new("/dev").join(self.device())).unwrap();
        let nearly_nothing = Info {
            device_inode_rdevice_offset: [0; 4],
            size_limit: 512,
            number_encryption_flags: [0, 0, 0, AUTOCLEAR],
            names_key_init: [0; 22],
        };
        // SAFETY: the kernel reads a `struct loop_info64`, whose fields this has in their places, and keeps nothing of it.
        #[allow(unsafe_code, reason = "the kernel gives no other way to end a device that is mounted")]
        unsafe { rustix::ioctl::ioctl(&device, rustix::ioctl::Setter::<SET_STATUS_64, Info>::new(nearly_nothing)) }
            .unwrap();
    }

    /// The name of the device that it is mounted from.
    #[track_caller]
    fn device(&self) -> String {
        let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let path = self.path.to_str().unwrap();
        let line = table.lines().find(|line| line.split(' ').nth(1) == Some(path)).unwrap();
        line.split(' ').next().unwrap().trim_start_matches("/dev/").to_owned()
    }

    /// Lets the kernel find an error in it, on ext4: it takes no more writes.
    #[track_caller]
    pub(crate) fn find_error(&self) {
        assert_eq!(self.kind, Kind::Ext4);
        tool("mount", ["-o", "remount,errors=remount-ro"].map(OsStr::new).into_iter().chain([self.path.as_os_str()]));
        std::fs::write(Path::new("/sys/fs/ext4").join(self.device()).join("trigger_fs_error"), "1").unwrap();
    }

    /// Mounts it read-only, as an operator does: as soon as nobody writes through its mount at that very moment.
    #[track_caller]
    pub(crate) fn read_only(&self) {
        let remount = || {
            let status =
                Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&self.path).stderr(Stdio::null()).status();
            status.unwrap().success()
        };
        wait::until(Duration::from_secs(60), "the disk is read-only", remount);
    }

    /// Makes the filesystem itself read-only, for all who have it mounted: what writes at that moment fails.
    #[track_caller]
    pub(crate) fn read_only_everywhere(&self) {
        let remount = || {
            let status =
                Command::new("mount").args(["-o", "remount,ro"]).arg(&self.path).stderr(Stdio::null()).status();
            status.unwrap().success()
        };
        wait::until(Duration::from_secs(60), "the filesystem is read-only", remount);
    }

    /// Whoever writes to it waits, until what this gives is dropped, or this process is gone.
    #[track_caller]
    pub(crate) fn freeze(&self) -> Frozen {
        // The shell hears of the end of its input, whatever ends us.
        let script = "fsfreeze --freeze \"$0\" && echo frozen; read -r _; fsfreeze --unfreeze \"$0\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&self.path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "frozen\n", "fsfreeze");
        Frozen(child)
    }

    /// Unmounts it, where it is mounted.
    ///
    /// # Panics
    ///
    /// Where something holds it: that is what some tests are about.
    #[track_caller]
    pub(crate) fn unmount(&mut self) {
        if self.mounted {
            tool("umount", [self.path.as_os_str()]);
            self.mounted = false;
        }
    }

    /// Unmounts it, also where something holds it: then the path is bare at once, and the filesystem goes with its last
    /// holder; see [`LoopFs::is_free`].
    #[track_caller]
    pub(crate) fn unmount_anyhow(&mut self) {
        if self.mounted {
            let plain = Command::new("umount").arg(&self.path).output().unwrap();
            if !plain.status.success() {
                tool("umount", [OsStr::new("--lazy"), self.path.as_os_str()]);
            }
            self.mounted = false;
        }
    }

    /// Unmounts it plainly, where nothing holds it. True when it is unmounted.
    pub(crate) fn try_unmount(&mut self) -> bool {
        if self.mounted {
            self.mounted = !Command::new("umount").arg(&self.path).output().unwrap().status.success();
        }
        !self.mounted
    }

    /// Whether no loop device has its image any more: nothing holds the filesystem.
    pub(crate) fn is_free(&self) -> bool {
        let image = self.image();
        let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
        !devices
            .map(|device| device.path().join("loop/backing_file"))
            .any(|file| std::fs::read_to_string(file).is_ok_and(|backing| Path::new(backing.trim_end()) == image))
    }

    fn image(&self) -> PathBuf {
        self.place.path().join("image")
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if self.mounted {
            let plain = Command::new("umount").arg("--recursive").arg(&self.path).output();
            if !plain.is_ok_and(|output| output.status.success()) {
                // Held by something that ends later: it goes with that.
                let _ = Command::new("umount").args(["--lazy", "--recursive"]).arg(&self.path).status();
            }
        }
    }
}

/// Fills a filesystem so that `left` bytes stay free; empty again when it is dropped.
pub(crate) struct Ballast(PathBuf);

impl Ballast {
    pub(crate) fn leave(disk: &Path, left: u64) -> Self {
        let file = disk.join("ballast");
        let open = File::create(&file).unwrap();
        // To the very end, then back: what a filesystem keeps for itself or for root is in none of its figures.
        let (mut size, mut step) = (0_i64, 64 << 20);
        while step >= 4 << 10 {
            match nix::fcntl::posix_fallocate(&open, size, step) {
                Ok(()) => size += step,
                Err(nix::errno::Errno::ENOSPC) => step /= 2,
                Err(error) => panic!("{error}"),
            }
        }
        open.set_len(u64::try_from(size).unwrap().saturating_sub(left)).unwrap();
        open.sync_all().unwrap();
        Self(file)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[track_caller]
fn tool<'a>(name: &str, args: impl IntoIterator<Item = &'a OsStr>) {
    let output = Command::new(name).args(args).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(output.status.success(), "{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}
