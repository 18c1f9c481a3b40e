//! Where the kubelet wants a volume: `<kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount`, and nowhere else.
//!
//! All of it is done on descriptors below the kubelet's own directory, through no link. What is mounted there is told by
//! the kernel: something of the agent's is its own mount, everything else is somebody's, and left alone.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, mkdirat, open, openat2, statx,
    unlinkat,
};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use tonic::Status;

use crate::node::mount::{Place, Shown};
use crate::node::{TRASH, mount};
use crate::repository::SHELVES;
use crate::rpc::error::bad;
use crate::workspace::outputs;

/// What the kubelet calls its volumes of CSI drivers.
pub(super) const OF_CSI: &str = "kubernetes.io~csi";
const FIELD: &str = "target_path";
/// Below the kubelet's directory: no way out of it, through no link. Mounts are crossed: the target may be one.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// In a workspace, whose links may lead anywhere within it.
const WITHIN: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// So long a mount that is in use is waited for before it is taken away from who uses it.
const BUSY_FOR: Duration = Duration::from_secs(2);
const BUSY_AGAIN: Duration = Duration::from_millis(20);
/// What volumes show, below the agent's directory of a pool, and where that goes when its lease ends: what is kept of it,
/// and what was thrown away.
const FOLDERS: [&str; 5] = ["workspaces", "caches", SHELVES, outputs::FOLDER, TRASH];
/// The most mounts that lie on one another at a target.
const MOUNTS_MAX: usize = 16;

type TellPlaces = dyn Fn(&str) -> [Option<Place>; 2] + Send + Sync;

/// Tells where a folder of the agent's own directory lies now, in each of its pools; nothing for a pool that is away.
#[derive(Clone)]
pub(super) struct OwnPlaces(Arc<TellPlaces>);

impl OwnPlaces {
    pub(super) fn new(tell: impl Fn(&str) -> [Option<Place>; 2] + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Whether a place is one that volumes show, or that was thrown away, of a pool. Told by where it lies, whatever ways
    /// lead there and whatever it is called. Only while a pool is away, or of a filesystem that is none of theirs (another
    /// disk is in a pool's place), by the names of its directories.
    fn have(&self, shown: &Place) -> bool {
        let all: Vec<_> = FOLDERS.iter().flat_map(|folder| (self.0)(folder)).collect();
        let own = || all.iter().flatten();
        own().any(|own| shown.below(own).is_some())
            || ((all.contains(&None) || !own().any(|own| own.is_beside(shown))) && is_named_as_in_a_pool(shown.path()))
    }
}

impl std::fmt::Debug for OwnPlaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnPlaces")
    }
}

/// A target, as a name in a directory.
#[derive(Debug, Clone)]
pub(super) struct Target {
    own: OwnPlaces,
    /// The kubelet's directory of pods.
    pods: PathBuf,
    /// The directory of the volume, below that.
    volume: PathBuf,
    name: CString,
}

/// What is at a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing is mounted.
    Free,
    /// Something of the agent's: which directory of which device.
    Ours(u32, u32, u64),
}

impl Target {
    /// What the kubelet names, where it lies where volumes lie; for a pod, where one is named.
    pub(super) fn read(kubelet: &Path, path: &str, pod: Option<&str>, own: OwnPlaces) -> Result<Self, Status> {
        let pods = kubelet.join("pods");
        let form = format!("{}/POD-UID/volumes/{OF_CSI}/NAME/mount", pods.display());
        let refuse = |what: &str| bad(FIELD, format!("{what}; give a path as {form}"));
        // As written: what is not plain is not taken for what it might mean.
        let is_plain = !path.split('/').skip(1).any(|part| part.is_empty() || part == "." || part == "..");
        let below = Path::new(path).strip_prefix(&pods).ok().filter(|_| is_plain && !path.contains('\0'));
        let below = below.ok_or_else(|| refuse("is not below the kubelet's directory of pods"))?;
        let mut parts = Vec::new();
        for part in below.components() {
            match part {
                Component::Normal(part) => parts.push(part),
                _ => return Err(refuse("is no plain path")),
            }
        }
        let [uid, volumes, of_csi, _, name] = parts.as_slice() else { return Err(refuse("is no volume of a pod")) };
        if *volumes != "volumes" || *of_csi != OF_CSI || *name != "mount" {
            return Err(refuse("is no volume of a CSI driver"));
        }
        if pod.is_some_and(|pod| *uid != pod) {
            return Err(refuse("belongs to another pod than the one that the volume is for"));
        }
        let name = CString::new(name.as_bytes()).map_err(|_| refuse("is no path"))?;
        Ok(Self { own, pods, volume: below.parent().unwrap_or(below).to_owned(), name })
    }

    /// The uid of its pod.
    pub(super) fn pod(&self) -> String {
        self.volume.iter().next().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The volume's name among those of its pod.
    pub(super) fn volume(&self) -> String {
        self.volume.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What is there now. What is no directory, or a mount of somebody else's, is refused.
    pub(super) fn look(&self) -> Result<Found, Status> {
        match self.parent() {
            Ok(parent) => match self.open(parent.as_fd()) {
                Ok(target) => self.found(target.as_fd()),
                Err(Errno::NOENT) => Ok(Found::Free),
                Err(error) => Err(refused(error)),
            },
            Err(Errno::NOENT) => Err(bad(FIELD, "is in no directory that is there; the kubelet makes it first")),
            Err(error) => Err(refused(error)),
        }
    }

    /// As [`Target::look`], for who asks for a volume: one that is there must be as it is asked for.
    pub(super) fn look_for(&self, read_only: bool) -> Result<Found, Status> {
        let found = self.look()?;
        if found == Found::Free {
            return Ok(found);
        }
        let parent = self.parent().map_err(refused)?;
        let target = self.open(parent.as_fd()).map_err(refused)?;
        let is = statx(&target, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map_err(|error| failed(error.into()))?;
        let words = |read_only| if read_only { "for reading alone" } else { "to write to" };
        match mount::is_read_only(is.stx_mnt_id).map_err(failed)? {
            is if is == read_only => Ok(found),
            is => {
                let what = format!(
                    "the volume is there {}, and asked for {}; unpublish it first",
                    words(is),
                    words(read_only)
                );
                Err(Status::already_exists(format!("readonly: {what}")))
            }
        }
    }

    /// Mounts a directory of a workspace there; `of` is that workspace's, `sub_path` a directory in it. What is there
    /// already stays.
    pub(super) fn mount(&self, of: &Path, sub_path: &Path, shown: Shown) -> Result<(), Status> {
        let source = source(of, sub_path)?;
        let parent = self.parent().map_err(refused)?;
        match mkdirat(&parent, &self.name, Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(refused(error)),
        }
        let target = self.open(parent.as_fd()).map_err(refused)?;
        let wanted = identity(source.as_fd()).map_err(failed)?;
        match self.found(target.as_fd())? {
            Found::Ours(major, minor, inode) if (major, minor, inode) == wanted => return Ok(()),
            // Of what was there before.
            Found::Ours(..) => {
                drop(target);
                self.take_away(parent.as_fd())?;
            }
            Found::Free => {}
        }
        let target = self.open(parent.as_fd()).map_err(refused)?;
        let tree = mount::clone_tree(source.as_fd(), shown).map_err(failed)?;
        mount::attach(tree.as_fd(), target.as_fd()).map_err(failed)?;
        // It may have been thrown away between these two.
        let still = self::source(of, sub_path).and_then(|source| identity(source.as_fd()).map_err(failed));
        if still.as_ref().ok() != Some(&wanted) {
            drop(target);
            self.take_away(parent.as_fd())?;
            return Err(Status::unavailable("what was to be mounted went meanwhile; tried again"));
        }
        Ok(())
    }

    /// Unmounts what the agent mounted there, and removes the directory. What is not there is no error.
    pub(super) fn unmount(&self) -> Result<(), Status> {
        let parent = match self.parent() {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(refused(error)),
        };
        self.take_away(parent.as_fd())?;
        match unlinkat(&parent, &self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Status::failed_precondition(format!("{FIELD}: is not removed: {error}"))),
        }
    }

    fn parent(&self) -> Result<OwnedFd, Errno> {
        let pods = open(&self.pods, PLACE | OFlags::DIRECTORY, Mode::empty())?;
        openat2(pods, &self.volume, PLACE | OFlags::DIRECTORY, Mode::empty(), BENEATH)
    }

    fn found(&self, target: BorrowedFd<'_>) -> Result<Found, Status> {
        let flags = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let is = statx(target, c"", AtFlags::EMPTY_PATH, flags).map_err(|error| failed(error.into()))?;
        if FileType::from_raw_mode(is.stx_mode.into()) != FileType::Directory {
            return Err(Status::failed_precondition(format!("{FIELD}: is no directory; remove what is there")));
        }
        if !is.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(Found::Free);
        }
        let shown = mount::shown_by(is.stx_mnt_id).map_err(failed)?;
        match shown.is_some_and(|(place, source)| source == mount::SOURCE || self.own.have(&place)) {
            true => Ok(Found::Ours(is.stx_dev_major, is.stx_dev_minor, is.stx_ino)),
            false => Err(Status::failed_precondition(format!("{FIELD}: something else is mounted there; unmount it"))),
        }
    }

    fn open(&self, parent: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        openat2(parent, &self.name, PLACE, Mode::empty(), BENEATH)
    }

    /// All mounts at the target and below, those mounted last first.
    fn take_away(&self, parent: BorrowedFd<'_>) -> Result<(), Status> {
        for _ in 0..MOUNTS_MAX {
            let target = match self.open(parent) {
                Ok(target) => target,
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(refused(error)),
            };
            if self.found(target.as_fd())? == Found::Free {
                return Ok(());
            }
            let path = std::fs::read_link(by_number(parent)).map_err(failed)?;
            let path = path.join(std::ffi::OsStr::from_bytes(self.name.as_bytes()));
            for point in mount::mounts_below(&path).map_err(failed)?.into_iter().filter(|point| *point != path) {
                let Ok(below) = point.strip_prefix(&path) else { continue };
                let (Some(folder), Some(name)) = (below.parent(), below.file_name()) else { continue };
                let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                let folder = openat2(&target, folder, PLACE | OFlags::DIRECTORY, Mode::empty(), BENEATH);
                let folder = folder.map_err(|error| failed(error.into()))?;
                unmount_from(folder.as_fd(), Path::new(name))?;
            }
            // A held descriptor would keep it in use.
            drop(target);
            unmount_from(parent, Path::new(std::ffi::OsStr::from_bytes(self.name.as_bytes())))?;
        }
        Err(Status::failed_precondition(format!("{FIELD}: has more than {MOUNTS_MAX} mounts on one another")))
    }
}

/// The directory of a workspace that the pod wants; never one outside of it.
fn source(of: &Path, sub_path: &Path) -> Result<OwnedFd, Status> {
    let flags = PLACE | OFlags::DIRECTORY;
    let home = openat2(CWD, of, flags | OFlags::NOFOLLOW, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let home = home.map_err(|error| Status::unavailable(format!("the workspace is not there now: {error}")))?;
    if sub_path.as_os_str().is_empty() {
        return Ok(home);
    }
    openat2(&home, sub_path, flags, Mode::empty(), WITHIN).map_err(|error| {
        let what = match error {
            Errno::NOENT => "is not in the workspace".to_owned(),
            Errno::NOTDIR => "is no directory".to_owned(),
            Errno::XDEV | Errno::LOOP => "leads out of the workspace".to_owned(),
            error => format!("cannot be opened: {error}"),
        };
        bad("subPath", format!("{} {what}; name a directory in it, as src", sub_path.display()))
    })
}

/// Which directory of which device.
fn identity(of: BorrowedFd<'_>) -> io::Result<(u32, u32, u64)> {
    let is = statx(of, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok((is.stx_dev_major, is.stx_dev_minor, is.stx_ino))
}

/// Whether a directory of a filesystem is called as one that volumes show, or that was thrown away, of a pool.
fn is_named_as_in_a_pool(root: &Path) -> bool {
    let parts: Vec<_> = root.components().collect();
    let is = |part: &Component<'_>, name: &str| part.as_os_str() == name;
    parts.windows(2).any(|two| is(&two[0], "stoker") && FOLDERS.iter().any(|folder| is(&two[1], folder)))
}

/// Unmounts what is mounted at a name; who uses it is waited for, but not for ever.
fn unmount_from(folder: BorrowedFd<'_>, name: &Path) -> Result<(), Status> {
    let path = by_number(folder).join(name);
    let began = Instant::now();
    loop {
        match rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW) {
            // It went with what it was mounted on.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if began.elapsed() < BUSY_FOR => std::thread::sleep(BUSY_AGAIN),
            Err(Errno::BUSY) => break,
            Err(error) => return Err(failed(error.into())),
        }
    }
    tracing::warn!(name = %name.display(), "a volume is still in use: it is taken away, and who uses it keeps it");
    let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
    rustix::mount::unmount(&path, flags).map_err(|error| failed(error.into()))
}

fn by_number(directory: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

fn refused(error: Errno) -> Status {
    match error {
        Errno::LOOP | Errno::NOTDIR | Errno::XDEV => {
            let what = "goes through a link, or through what is no directory; remove what is there";
            Status::failed_precondition(format!("{FIELD}: {what}"))
        }
        error => failed(error.into()),
    }
}

fn failed(error: io::Error) -> Status {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::NOSYS) => {
            let what = "the agent may not mount, or the kernel is too old for it (5.12): volumes need the profile full";
            Status::failed_precondition(format!("{FIELD}: {error}: {what}"))
        }
        _ => Status::unavailable(format!("{FIELD}: {error}; tried again")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GOOD: &str = "/k/pods/uid-1/volumes/kubernetes.io~csi/src/mount";

    #[test]
    fn a_target_is_the_volume_of_its_pod_and_nothing_else() {
        let read = |path: &str| Target::read(Path::new("/k"), path, Some("uid-1"), OwnPlaces::new(|_| [None, None]));
        let target = read(GOOD).unwrap();
        assert_eq!(target.volume, Path::new("uid-1/volumes/kubernetes.io~csi/src"));
        assert_eq!((target.pod().as_str(), target.volume().as_str()), ("uid-1", "src"));
        for wrong in [
            "",
            "/",
            "/etc",
            "k/pods/uid-1/volumes/kubernetes.io~csi/src/mount",
            "/k/pods/uid-2/volumes/kubernetes.io~csi/src/mount",
            "/k/pods/uid-1/volumes/kubernetes.io~csi/../mount",
            "/k/pods/uid-1/volumes/kubernetes.io~csi/src/mount/",
            "/k/pods/uid-1/volumes/kubernetes.io~csi/src/mount/x",
            "/k/pods//uid-1/volumes/kubernetes.io~csi/src/mount",
            "/k/pods/./uid-1/volumes/kubernetes.io~csi/src/mount",
            "/k/pods/uid-1/volumes/kubernetes.io~empty-dir/src/mount",
            "/k/pods/uid-1/etc-hosts",
            "/k/plugins/kubernetes.io/csi/stoker.build/x/globalmount",
            "/k/pods/../pods/uid-1/volumes/kubernetes.io~csi/src/mount",
        ] {
            let refused = read(wrong).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{wrong}");
            assert!(refused.message().starts_with("target_path: "), "{wrong}: {}", refused.message());
        }
        let none = OwnPlaces::new(|_| [None, None]);
        assert!(Target::read(Path::new("/k"), &GOOD.replace("uid-1", "uid-2"), None, none).is_ok());
    }

    #[test]
    fn what_a_disk_or_the_kernel_fails_with_may_pass() {
        let code = |errno: Errno| failed(errno.into()).code();
        for passing in [Errno::IO, Errno::NOSPC, Errno::NOMEM, Errno::BUSY] {
            assert_eq!(code(passing), tonic::Code::Unavailable, "{passing:?}");
        }
        assert_eq!(code(Errno::PERM), tonic::Code::FailedPrecondition);
    }

    #[test]
    fn what_lies_in_a_pool_that_is_away_is_told_by_its_names() {
        for ours in [
            "/stoker/workspaces/1",
            "/a/pool/stoker/workspaces/1/src",
            "/stoker/trash/9//deleted",
            "/p/stoker/caches/a-1/x",
            "/p/stoker/outputs/a-1",
        ] {
            assert!(is_named_as_in_a_pool(Path::new(ours)), "{ours}");
        }
        for other in ["/", "/stoker", "/stoker/checkouts/1", "/workspaces/stoker", "/x/stoker.d/workspaces"] {
            assert!(!is_named_as_in_a_pool(Path::new(other)), "{other}");
        }
    }
}
