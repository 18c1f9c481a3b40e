//! What else the host tells: its files, where this process may read them, and on which disks paths lie.
//!
//! A pod has `/proc` and `/sys` of the host and no more. `/proc/1/root` is the host's own root, for those whom the kernel
//! lets (ptrace(2), "Ptrace access mode checking"): a privileged container, and no other. The mount table
//! (`/proc/1/mountinfo`, proc_pid_mountinfo(5)) and the block devices (`/sys/dev/block`) are for everybody.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::mount::unescape;

/// A file of settings is smaller.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Layers of block devices, and disks below one filesystem, that are looked at.
const LAYERS_MAX: usize = 8;
const DISKS_MAX: usize = 64;

/// A file of the host.
///
/// # Errors
/// `NotFound` where there is none; `PermissionDenied` where the host's files cannot be looked at.
pub(crate) fn read(host_root: &Path, path: &str) -> io::Result<String> {
    let mut text = String::new();
    let file = reach(host_root, path, |path| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    })?;
    if file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > FILE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// Whether the host has this path.
///
/// # Errors
/// Where the host's files cannot be looked at.
pub(crate) fn exists(host_root: &Path, path: &str) -> io::Result<bool> {
    match reach(host_root, path, |path| fs::symlink_metadata(path).map(|_| true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        told => told,
    }
}

/// Below the host's root as it is mounted here, then as its first process has it.
fn reach<T>(host_root: &Path, path: &str, open: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = path.trim_start_matches('/');
    open(&host_root.join(path)).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => open(&host_root.join("proc/1/root").join(path)),
        _ => Err(error),
    })
}

/// A line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    /// `MAJOR:MINOR`; major 0 is no block device's.
    pub(crate) device: String,
    source: String,
}

/// The host's mount table.
#[derive(Debug, Default)]
pub(crate) struct Mounts(Vec<Mount>);

impl Mounts {
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read(host_root: &Path) -> io::Result<Self> {
        let table = fs::read(host_root.join("proc/1/mountinfo"))?;
        Ok(Self(table.split(|byte| *byte == b'\n').filter_map(mount).collect()))
    }

    /// What a path is on; nothing where the table has no root.
    pub(crate) fn of(&self, path: &Path) -> Option<&Mount> {
        // Of those at one place the last is what is seen.
        self.0.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|m| m.point.components().count())
    }
}

fn mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // Optional fields come between the options of the mount and a hyphen; after it the kind and the source.
    let hyphen = fields.iter().skip(6).position(|field| *field == b"-")?;
    Some(Mount {
        point: unescape(fields.get(4)?),
        device: text(fields.get(2)?),
        source: unescape(fields.get(6 + hyphen + 2)?).to_string_lossy().into_owned(),
    })
}

/// The whole disks below a mount, by their names (`sda`, `nvme0n1`): a partition's is its disk, a volume's are those of
/// its group. None where it is on no block device.
pub(crate) fn disks(host_root: &Path, mount: &Mount) -> BTreeSet<String> {
    let sys = host_root.join("sys");
    let mut found = BTreeSet::new();
    let device = match mount.device.starts_with("0:") {
        // Btrfs and others have a number of their own, and name the device.
        true => named(&sys, &mount.source),
        false => fs::canonicalize(sys.join("dev/block").join(&mount.device)).ok(),
    };
    if let Some(device) = device {
        below(&device, LAYERS_MAX, &mut found);
    }
    found
}

/// The device that is called so in `/dev`.
fn named(sys: &Path, source: &str) -> Option<PathBuf> {
    let name = source.strip_prefix("/dev/")?;
    let class = sys.join("class/block");
    let Some(mapped) = name.strip_prefix("mapper/") else { return fs::canonicalize(class.join(name)).ok() };
    let mut all = fs::read_dir(&class).ok()?.flatten();
    let its = |path: &Path| fs::read_to_string(path.join("dm/name")).is_ok_and(|name| name.trim() == mapped);
    all.find(|entry| its(&entry.path())).and_then(|entry| fs::canonicalize(entry.path()).ok())
}

fn below(device: &Path, layers: usize, found: &mut BTreeSet<String>) {
    if found.len() >= DISKS_MAX || layers == 0 {
        return;
    }
    let whole = if device.join("partition").exists() { device.parent().unwrap_or(device) } else { device };
    let slaves = fs::read_dir(whole.join("slaves")).into_iter().flatten().flatten();
    let slaves: Vec<PathBuf> = slaves.filter_map(|entry| fs::canonicalize(entry.path()).ok()).collect();
    if slaves.is_empty() {
        found.extend(whole.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    for slave in slaves {
        below(&slave, layers - 1, found);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Lines of a node with a volume group over two disks, and btrfs on a third.
    const TABLE: &str = "\
22 1 253:0 / / rw,relatime shared:1 - xfs /dev/mapper/rhel-root rw
30 22 0:25 / /proc rw shared:12 - proc proc rw
41 22 259:3 / /var/mnt/data\\040disk rw,relatime shared:40 master:2 - xfs /dev/nvme0n1p3 rw
42 22 0:51 /@etcd /var/lib/etcd rw,relatime - btrfs /dev/sdc rw
43 22 8:17 / /var/mnt/twice rw - ext4 /dev/sdb1 rw
44 22 0:60 / /var/mnt/twice rw - btrfs /dev/mapper/late-one rw
";

    fn device(sys: &Path, number: &str, path: &str, files: &[&str], slaves: &[&str]) {
        let place = sys.join("devices").join(path);
        fs::create_dir_all(place.join("slaves")).unwrap();
        files.iter().for_each(|file| fs::write(place.join(file), "1\n").unwrap());
        for slave in slaves {
            let name = Path::new(slave).file_name().unwrap();
            symlink(sys.join("devices").join(slave), place.join("slaves").join(name)).unwrap();
        }
        let name = place.file_name().unwrap().to_owned();
        for at in [sys.join("dev/block").join(number), sys.join("class/block").join(name)] {
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            symlink(&place, at).unwrap();
        }
    }

    #[test]
    fn a_path_is_on_the_disks_below_its_mount() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path().join("sys");
        fs::create_dir_all(root.path().join("proc/1")).unwrap();
        fs::write(root.path().join("proc/1/mountinfo"), TABLE).unwrap();
        device(&sys, "8:0", "pci/sda", &[], &[]);
        device(&sys, "8:1", "pci/sda/sda1", &["partition"], &[]);
        device(&sys, "8:16", "pci/sdb", &[], &[]);
        device(&sys, "8:17", "pci/sdb/sdb1", &["partition"], &[]);
        device(&sys, "8:32", "pci/sdc", &[], &[]);
        device(&sys, "259:0", "pci/nvme0n1", &[], &[]);
        device(&sys, "259:3", "pci/nvme0n1/nvme0n1p3", &["partition"], &[]);
        device(&sys, "253:0", "virtual/dm-0", &[], &["pci/sda/sda1", "pci/sdb/sdb1"]);
        device(&sys, "253:1", "virtual/dm-1", &[], &["virtual/dm-0"]);
        fs::create_dir(sys.join("devices/virtual/dm-1/dm")).unwrap();
        fs::write(sys.join("devices/virtual/dm-1/dm/name"), "late-one\n").unwrap();
        let mounts = Mounts::read(root.path()).unwrap();
        for (path, point, expected) in [
            ("/var/lib/kubelet", "/", &["sda", "sdb"][..]),
            ("/var/mnt/data disk/stoker", "/var/mnt/data disk", &["nvme0n1"]),
            ("/var/lib/etcd/member", "/var/lib/etcd", &["sdc"]),
            ("/var/lib/etcd-backup", "/", &["sda", "sdb"]),
            ("/var/mnt/twice", "/var/mnt/twice", &["sda", "sdb"]),
            ("/proc/1", "/proc", &[]),
        ] {
            let found = mounts.of(Path::new(path)).unwrap();
            assert_eq!(found.point, Path::new(point), "{path}");
            assert_eq!(disks(root.path(), found), expected.iter().map(ToString::to_string).collect(), "{path}");
        }
    }

    #[test]
    fn files_of_the_host_are_read_below_its_root_or_that_of_its_first_process() {
        let root = tempfile::tempdir().unwrap();
        let through = root.path().join("proc/1/root/etc");
        fs::create_dir_all(&through).unwrap();
        fs::write(through.join("one"), "through the first process").unwrap();
        assert_eq!(read(root.path(), "/etc/one").unwrap(), "through the first process");
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/one"), "mounted").unwrap();
        assert_eq!(read(root.path(), "/etc/one").unwrap(), "mounted");
        assert_eq!(read(root.path(), "/etc").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(read(root.path(), "/etc/none").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(exists(root.path(), "/etc/one").unwrap() && !exists(root.path(), "/etc/none").unwrap());
    }
}
