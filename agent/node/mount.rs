//! Overlays, made and taken away.
//!
//! An overlay shows directories (its lower layers) as one, and puts what is written into another (its upper). See
//! `Documentation/filesystems/overlayfs.rst` of the kernel. Layers of the agent can be shown as a build's own: then each is
//! mounted for a moment with a mapping of owners, and the overlay keeps that mapping.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, IFlags, Mode, OFlags, StatxAttributes, StatxFlags, ioctl_getflags, ioctl_setflags, open, statx,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree};

use super::idmap;
use super::namespace::{Namespaces, descriptor};

/// The most bytes of mount options that the kernel takes: a page, less its end.
const OPTIONS_BYTES_MAX: usize = 4095;

/// What an overlay is made of. All of it lies on one pool.
#[derive(Debug)]
pub(crate) struct Overlay<'a> {
    /// From the top down.
    pub(crate) lower: &'a [&'a Path],
    pub(crate) upper: &'a Path,
    pub(crate) work: &'a Path,
    /// Empty directories, one a layer, for the moment in which layers are shown as this user's and group's.
    pub(crate) shown_as: Option<(u32, u32, &'a Path)>,
}

/// Mounts an overlay.
///
/// `redirect_dir` lets directories be renamed, `metacopy` keeps a change of owner, mode or times from copying the content;
/// `volatile` leaves out all syncs: what is lost with the machine is scratch.
///
/// # Errors
/// The kernel's, `EPERM` without the right to mount.
pub(crate) fn overlay(at: &Path, overlay: &Overlay<'_>, namespaces: &Namespaces) -> io::Result<()> {
    let Some((user, group, places)) = overlay.shown_as else { return mount_overlay(at, overlay, overlay.lower) };
    let namespace = namespaces.showing(user, group)?;
    let mut shown: Vec<PathBuf> = Vec::with_capacity(overlay.lower.len());
    let attach = |layer: &Path, place: &Path| -> io::Result<()> {
        let tree = open_tree(CWD, layer, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        idmap::set(tree.as_fd(), descriptor(&namespace))?;
        move_mount(&tree, c"", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(())
    };
    let attached = overlay.lower.iter().enumerate().try_for_each(|(number, layer)| {
        let place = places.join(number.to_string());
        fs::create_dir(&place)?;
        attach(layer, &place)?;
        shown.push(place);
        Ok(())
    });
    let lower: Vec<&Path> = shown.iter().map(PathBuf::as_path).collect();
    let mounted = attached.and_then(|()| mount_overlay(at, overlay, &lower));
    // The overlay has its own hold on each layer.
    for place in &shown {
        unmount(place)?;
    }
    mounted
}

fn mount_overlay(at: &Path, overlay: &Overlay<'_>, lower: &[&Path]) -> io::Result<()> {
    let mut options = b"lowerdir=".to_vec();
    for (number, layer) in lower.iter().enumerate() {
        if number > 0 {
            options.push(b':');
        }
        options.extend(escaped(layer, true));
    }
    options.extend(b",upperdir=");
    options.extend(escaped(overlay.upper, false));
    options.extend(b",workdir=");
    options.extend(escaped(overlay.work, false));
    options.extend(b",redirect_dir=on,metacopy=on,volatile");
    if options.len() > OPTIONS_BYTES_MAX {
        let message = format!("its mount options have {} bytes, at most {OPTIONS_BYTES_MAX} may be", options.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let options = CString::new(options).map_err(io::Error::other)?;
    mount(c"stoker", at, c"overlay", MountFlags::empty(), options.as_c_str())?;
    Ok(())
}

/// Mounts memory as a directory that one user owns.
///
/// # Errors
/// The kernel's, `EPERM` without the right to mount.
pub(crate) fn memory(at: &Path, bytes: u64, (user, group): (u32, u32)) -> io::Result<()> {
    let options = format!("size={bytes},mode=0755,uid={user},gid={group}");
    let options = CString::new(options).map_err(io::Error::other)?;
    mount(c"stoker", at, c"tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?;
    Ok(())
}

/// Options end at a comma, lower layers at a colon.
fn escaped(path: &Path, colons: bool) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b',') || (colons && *byte == b':') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text
}

/// Takes a mount away, also while somebody uses it: they keep it, nobody new finds it. What is none is left.
///
/// # Errors
/// The kernel's.
pub(crate) fn unmount(at: &Path) -> io::Result<()> {
    detach(at).map(drop)
}

/// What was unmounted. Dropping it takes time that grows with what was used in it: the kernel forgets each file.
#[derive(Debug)]
#[must_use = "where somebody waits it is to be dropped elsewhere"]
pub(crate) struct Detached(#[expect(dead_code, reason = "it is held")] Vec<OwnedFd>);

/// As [`unmount`], at once.
///
/// # Errors
/// The kernel's.
pub(crate) fn detach(at: &Path) -> io::Result<Detached> {
    let mut held = Vec::new();
    // Several may lie on one another.
    while is_mount(at)? {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What cannot be held goes slowly.
        held.extend(open(at, flags, Mode::empty()).ok());
        rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(Detached(held))
}

/// Whether something is mounted at exactly this path. What is not there is no mount.
///
/// # Errors
/// The kernel's.
pub(crate) fn is_mount(at: &Path) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match statx(CWD, at, flags, StatxFlags::BASIC_STATS) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The mounts at and below a path that this process sees, the ones mounted last first.
///
/// # Errors
/// When the table cannot be read.
pub(crate) fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo")?;
    // Field 5 of each line, proc_pid_mountinfo(5). Read as bytes: a mount point need not be UTF-8.
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let mut found: Vec<PathBuf> = points.map(unescape).filter(|point| point.starts_with(path)).collect();
    found.reverse();
    Ok(found)
}

/// A directory of a filesystem, whatever it is called where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The filesystem's device, as the kernel's table of mounts names it.
    device: Vec<u8>,
    /// From the filesystem's own root.
    path: PathBuf,
}

impl Place {
    /// The way to it from another one that it lies in.
    pub(crate) fn below(&self, above: &Self) -> Option<&Path> {
        self.path.strip_prefix(&above.path).ok().filter(|_| self.is_beside(above))
    }

    /// Whether both are of one filesystem.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        self.device == other.device
    }

    /// From the filesystem's own root.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Of a line of the table: the mount's number, what it shows, and where. Fields 1, 3, 4 and 5, proc_pid_mountinfo(5).
fn read_line(line: &[u8]) -> Option<(&[u8], Place, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (number, device) = (fields.next()?, fields.nth(1)?.to_owned());
    let path = unescape(fields.next()?);
    Some((number, Place { device, path }, unescape(fields.next()?)))
}

/// A mount, as the kernel's table tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// What it shows.
    pub(crate) place: Place,
    /// Nothing is written through it.
    pub(crate) reads_only: bool,
    /// Its filesystem's source.
    pub(crate) source: Vec<u8>,
}

/// The mounts at and below a path.
///
/// # Errors
/// When the table cannot be read.
pub(crate) fn seen_below(path: &Path) -> io::Result<Vec<Seen>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let seen = table.split(|byte| *byte == b'\n').filter_map(|line| {
        let (_, place, point) = read_line(line).filter(|(.., point)| point.starts_with(path))?;
        let source = source_of(line).unwrap_or_default().to_owned();
        Some(Seen { point, place, reads_only: reads_only(line), source })
    });
    Ok(seen.collect())
}

/// The source of a mount's filesystem, of its line of the table: it comes after the type, and that after the hyphen which
/// ends the optional fields.
fn source_of(line: &[u8]) -> Option<&[u8]> {
    line.split(|byte| *byte == b' ').skip(6).skip_while(|field| *field != b"-").nth(2)
}

/// Whether nothing is written through a mount, of its line of the table: field 6, proc_pid_mountinfo(5). What the whole
/// filesystem is comes later in the line.
fn reads_only(line: &[u8]) -> bool {
    let options = line.split(|byte| *byte == b' ').nth(5).unwrap_or_default();
    options.split(|byte| *byte == b',').any(|option| option == b"ro")
}

/// Where a directory lies, through however many mounts and links it is reached.
///
/// # Errors
/// When it is not there, or the table cannot be read.
pub(crate) fn place_of(directory: &Path) -> io::Result<Place> {
    let opened = open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Not by its device: subvolumes have devices of their own there, and the table the filesystem's.
    let number = statx(&opened, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id.to_string();
    let at = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))?;
    let table = fs::read("/proc/self/mountinfo")?;
    let mut lines = table.split(|byte| *byte == b'\n').filter_map(read_line);
    let found = lines.find(|(of, ..)| *of == number.as_bytes());
    let found = found.and_then(|(_, Place { device, path }, point)| {
        Some(Place { device, path: path.join(at.strip_prefix(&point).ok()?) })
    });
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its mount is not seen"))
}

/// Where a directory of another one lies, or would if it were there.
///
/// # Errors
/// When the other is not there, or the table cannot be read.
pub(crate) fn place_in(directory: &Path, name: &str) -> io::Result<Place> {
    match place_of(&directory.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            place_of(directory).map(|Place { device, path }| Place { device, path: path.join(name) })
        }
        found => found,
    }
}

/// What may not be done in a tree that is shown to a pod, beside what never may.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Nothing may be written.
    pub(crate) read_only: bool,
    /// Nothing may be run.
    pub(crate) no_exec: bool,
}

/// Clones what is mounted at and below a directory, as a tree that is not attached yet and is cut off from where it comes
/// from: neither sees what is mounted or unmounted in the other.
///
/// # Errors
/// The kernel's, `EPERM` without the right to mount, `ENOSYS` before 5.12.
pub(crate) fn clone_tree(of: BorrowedFd<'_>, shown: Shown) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(of, c"", flags)?;
    idmap::cut_off(tree.as_fd(), shown)?;
    Ok(tree)
}

/// Attaches a tree to a directory.
///
/// # Errors
/// The kernel's.
pub(crate) fn attach(tree: BorrowedFd<'_>, at: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, c"", at, c"", flags)?)
}

/// What the mount with this number shows, as the kernel's table tells, and its filesystem's source. Nothing where no such
/// mount is seen.
///
/// # Errors
/// When the table cannot be read.
pub(crate) fn shown_by(mount: u64) -> io::Result<Option<(Place, Vec<u8>)>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let number = mount.to_string();
    let line = table
        .split(|byte| *byte == b'\n')
        .find(|line| line.split(|byte| *byte == b' ').next() == Some(number.as_bytes()));
    Ok(line.and_then(|line| {
        let (_, place, _) = read_line(line)?;
        Some((place, source_of(line)?.to_owned()))
    }))
}

/// Whether nothing is written through the mount with this number. One that is not seen is not known to be so.
///
/// # Errors
/// When the table cannot be read.
pub(crate) fn is_read_only(mount: u64) -> io::Result<bool> {
    let (table, number) = (fs::read("/proc/self/mountinfo")?, mount.to_string());
    let mut lines = table.split(|byte| *byte == b'\n');
    let is_it = |line: &&[u8]| line.split(|byte| *byte == b' ').next() == Some(number.as_bytes());
    Ok(lines.find(is_it).is_some_and(reads_only))
}

/// What the agent's own mounts have as their source.
pub(crate) const SOURCE: &[u8] = b"stoker";

/// Whether mounts that are made below a path are seen by those who share it: its mount propagates.
pub(crate) fn propagates(path: &Path) -> bool {
    let Ok(table) = fs::read("/proc/self/mountinfo") else { return false };
    let mut best: Option<(usize, bool)> = None;
    for line in table.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(point) = fields.get(4).map(|point| unescape(point)) else { continue };
        if !path.starts_with(&point) {
            continue;
        }
        // Optional fields come between the options of the mount and a hyphen.
        let mut optional = fields.iter().skip(6).take_while(|field| **field != b"-");
        let shared = optional.any(|field| field.starts_with(b"shared:"));
        let depth = point.components().count();
        if best.is_none_or(|(deepest, _)| depth >= deepest) {
            best = Some((depth, shared));
        }
    }
    best.is_some_and(|(_, shared)| shared)
}

/// Makes an empty directory immutable, so that nobody writes where an overlay is missing. Filesystems that have no such
/// flag, and agents without the right, leave it as it is.
pub(crate) fn seal(directory: &Path) {
    let Ok(opened) = fs::File::open(directory) else { return };
    if let Ok(flags) = ioctl_getflags(&opened) {
        let _ = ioctl_setflags(&opened, flags | IFlags::IMMUTABLE);
    }
}

/// Space, tab, line feed and backslash are written as three octal digits.
pub(super) fn unescape(text: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a & 7) << 6 | (b & 7) << 3 | (c & 7));
                after
            }
            _ => {
                bytes.push(byte);
                after
            }
        };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        assert_eq!(unescape(br"/mnt/a\040b\134c\011"), Path::new("/mnt/a b\\c\t"));
        assert_eq!(unescape(br"/mnt/\9\"), Path::new(r"/mnt/\9\"));
    }

    #[test]
    fn a_place_is_told_by_its_filesystem_and_the_way_in_it() {
        let place = |line: &str| read_line(line.as_bytes()).map(|(_, place, _)| place).unwrap();
        let pool = place("36 35 98:0 /disk/pool/stoker /mnt rw - ext4 /dev/x rw");
        let below = |root: &str, device: &str| {
            let line = format!("40 36 {device} {root} /pods/x rw,nosuid shared:1 - ext4 /dev/x rw");
            place(&line).below(&pool).map(Path::to_owned)
        };
        assert_eq!(below("/disk/pool/stoker/caches/a\\040b", "98:0").as_deref(), Some(Path::new("caches/a b")));
        for (root, device) in [
            ("/stoker/caches/a", "98:0"),
            ("/disk/pool/stoker.d/caches/a", "98:0"),
            ("/disk/pool/stoker/caches/a", "98:1"),
            ("/disk/pool/stoker/caches/a", "0:98"),
        ] {
            assert_eq!(below(root, device), None, "{device} {root}");
        }
        let here = tempfile::tempdir().unwrap();
        fs::create_dir(here.path().join("own")).unwrap();
        std::os::unix::fs::symlink("own", here.path().join("link")).unwrap();
        let (above, by_link) = (place_of(here.path()).unwrap(), place_of(&here.path().join("link")).unwrap());
        assert_eq!(by_link.below(&above), Some(Path::new("own")));
        assert_eq!(place_of(&here.path().join("own")).unwrap(), by_link);
    }

    #[test]
    fn paths_with_commas_and_colons_stay_one_layer() {
        let path = Path::new("/p/a,b:c\\d");
        assert_eq!(escaped(path, true), br"/p/a\,b\:c\\d");
        assert_eq!(escaped(path, false), br"/p/a\,b:c\\d");
    }
}
