//! How sources come into a workspace: tried on the pool itself, and told with the reason.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::libc;

use super::disk::directory;
use super::quota::Quota;
pub use crate::config::workspaces::Method;
use crate::node::mount::{self, Overlay};
use crate::node::namespace::Namespaces;

/// What a full disk or a busy machine says, of which a method can do nothing.
pub(super) const PASSING: [i32; 5] = [libc::ENOSPC, libc::EDQUOT, libc::EMFILE, libc::ENFILE, libc::ENOMEM];
/// Where it is tried, among what lies beside overlays.
pub(super) const TRIAL: &str = "trial";
/// An owner that nothing on the node has.
const STRANGER: (u32, u32) = (64_321, 64_322);
/// Larger than what a copy of the metadata alone takes.
const TRIAL_BYTES: usize = 256 << 10;

/// What a pool and its agent can.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// What is used.
    pub method: Method,
    /// Mounts can show files as another user's.
    pub idmapped: bool,
    /// Copies share their blocks with what they are of.
    pub reflinks: bool,
    /// Why, in words.
    pub reason: String,
    /// Whether the disk that a build writes to is limited.
    pub quota: Quota,
}

impl Chosen {
    /// For a build that runs in a user namespace: whoever starts it maps the owners of what it mounts, and no overlay can be
    /// shown so (`EINVAL`).
    pub(super) fn for_mapped_owners(self) -> Self {
        match (self.method, self.reflinks) {
            (Method::Overlay, true) => Self { method: Method::Reflink, ..self },
            (Method::Overlay, false) => Self { method: Method::Checkout, ..self },
            _ => self,
        }
    }
}

/// Tries what is better first; `wanted`, where given, is used whatever else works.
/// False beside it: a method was refused for what may pass, and is to be tried again.
pub(super) fn choose(root: &Path, wanted: Option<Method>, namespaces: &Namespaces) -> (Chosen, bool) {
    let mut lasts = true;
    let place = root.join(super::OVERLAYS).join(TRIAL);
    let tried = |method: Method| match method {
        Method::Overlay => try_overlay(root, &place, namespaces),
        Method::Reflink => try_reflink(&place).map(|()| false),
        Method::Checkout => Ok(false),
    };
    let mut refused = Vec::new();
    let all = [Method::Overlay, Method::Reflink, Method::Checkout];
    for method in all.into_iter().filter(|method| wanted.is_none_or(|wanted| wanted == *method)) {
        match tried(method) {
            Ok(idmapped) => {
                let reason = match (wanted, refused.is_empty()) {
                    (Some(_), _) => "configured".to_owned(),
                    (None, true) => "works on this pool".to_owned(),
                    (None, false) => refused.join("; "),
                };
                let reflinks = match method {
                    Method::Overlay => try_reflink(&place).is_ok(),
                    Method::Reflink => true,
                    Method::Checkout => false,
                };
                return (Chosen { method, idmapped, reflinks, reason, ..Chosen::default() }, lasts);
            }
            Err(error) => {
                lasts &= !error.raw_os_error().is_some_and(|code| PASSING.contains(&code));
                refused.push(format!("{method}: {error}"));
            }
        }
    }
    let reason = format!("{}; configured, but does not work here", refused.join("; "));
    (Chosen { reason, ..Chosen::default() }, lasts)
}

/// Whether an overlay does all that a build may ask of it; and whether it can show files as another user's.
fn try_overlay(root: &Path, place: &Path, namespaces: &Namespaces) -> io::Result<bool> {
    // Inside a pod, other pods see only what propagates.
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() && !mount::propagates(root) {
        return Err(io::Error::other("other pods would not see it: mount the pool with Bidirectional propagation"));
    }
    let at = place.join("at");
    let tried = (|| {
        for path in ["", "lower", "lower/folder", "upper", "work", "at", "shown"] {
            directory(&place.join(path), 0o755)?;
        }
        fs::write(place.join("lower/folder/file"), vec![b'x'; TRIAL_BYTES])?;
        let lower = place.join("lower");
        let plain =
            Overlay { lower: &[&lower], upper: &place.join("upper"), work: &place.join("work"), shown_as: None };
        mount::overlay(&at, &plain, namespaces)?;
        let works = try_mounted(place);
        mount::unmount(&at)?;
        works?;
        let mapped = try_mapped(place, namespaces);
        mount::unmount(&at)?;
        if let Err(error) = &mapped {
            tracing::info!(%error, "checkouts are kept for each user: mounts cannot show files as another's here");
        }
        Ok(mapped.is_ok())
    })();
    for point in mount::mounts_below(place)? {
        mount::unmount(&point)?;
    }
    tried
}

fn try_mounted(place: &Path) -> io::Result<()> {
    fs::rename(place.join("at/folder"), place.join("at/moved"))
        .map_err(|error| io::Error::other(format!("directories cannot be renamed in it: {error}")))?;
    let file = place.join("at/moved/file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let copied = fs::metadata(place.join("upper/moved/file"))?.blocks().saturating_mul(512);
    if copied >= u64::try_from(TRIAL_BYTES).unwrap_or(u64::MAX) {
        return Err(io::Error::other("a change of a file's mode copies its content"));
    }
    fs::write(&file, "y")
}

fn try_mapped(place: &Path, namespaces: &Namespaces) -> io::Result<()> {
    for path in ["upper2", "work2"] {
        directory(&place.join(path), 0o755)?;
    }
    let (user, group) = STRANGER;
    let (lower, shown) = (place.join("lower"), place.join("shown"));
    let mapped = Overlay {
        lower: &[&lower],
        upper: &place.join("upper2"),
        work: &place.join("work2"),
        shown_as: Some((user, group, &shown)),
    };
    mount::overlay(&place.join("at"), &mapped, namespaces)?;
    let meta = fs::metadata(place.join("at/folder/file"))?;
    if (meta.uid(), meta.gid()) == STRANGER { Ok(()) } else { Err(io::Error::other("owners are not mapped")) }
}

fn try_reflink(place: &Path) -> io::Result<()> {
    directory(place, 0o755)?;
    let (from, to) = (place.join("from"), place.join("to"));
    fs::write(&from, vec![b'x'; TRIAL_BYTES])?;
    let (source, target) = (fs::File::open(&from)?, fs::File::create(&to)?);
    Ok(rustix::fs::ioctl_ficlone(&target, &source)?)
}
