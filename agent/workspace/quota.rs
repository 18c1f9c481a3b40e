//! The disk limit of workspaces: where the pool has project quotas, each workspace of a lease is a project, and the
//! filesystem itself lets it hold no more than its size. Elsewhere what it holds is only watched (`written`).
//!
//! What a workspace can write to is of its project: its own directory with all in it, and upper and work of an overlay.
//! Kept checkouts, snapshots, caches and the trash are of none. A number is free when the quota counts nothing of it any
//! more: what lies in the trash, or was kept as an output, still has it. So nothing need be remembered across restarts, and
//! the limit holds to the end for whoever still has a file open.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::libc;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use stoker_core::identity::LeaseId;

use super::disk::directory;
use super::method::PASSING;
use super::{Workspace, Workspaces};
use crate::admission::now;
use crate::node::quota::{self, Counted};

/// The numbers of projects that are the agents': nothing else should use them. Container runtimes count from 1, the kubelet
/// from 1,048,577.
const FIRST: u32 = 0x5354_0000;
/// Outputs keep theirs: so many workspaces of the last days can have left one.
const COUNT: u32 = 1 << 16;
/// So often a number that another agent took in the same moment is left to it.
const TRIES_MAX: u32 = 8;
/// What the trial may write, and tries to write four times.
const TRIAL_BYTES: u64 = 256 << 10;
/// So many times is written, where no limit holds.
const TRIAL_WRITES: u64 = 4;

/// Whether the pool limits what workspaces hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quota {
    /// It does.
    pub works: bool,
    /// Why, in words.
    pub reason: String,
}

/// Gives out projects.
#[derive(Debug)]
pub(super) struct Projects {
    last: Mutex<u32>,
}

impl Default for Projects {
    /// Two agents of one filesystem seldom begin at the same number.
    fn default() -> Self {
        let moment = u32::try_from(now().0.rem_euclid(COUNT.into())).unwrap_or(0);
        Self { last: Mutex::new(FIRST.saturating_add(moment)) }
    }
}

impl Projects {
    /// Makes an empty directory of the agent's a project that nothing else is of, without a limit.
    pub(super) fn claim(&self, home: &Path) -> io::Result<u32> {
        let home = fs::File::open(home)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TRIES_MAX {
            let is_free = |project| Ok(quota::used(home.as_fd(), project)? == Counted::default());
            let Some(project) = next_free(*last, is_free)? else { break };
            *last = project;
            quota::mark(home.as_fd(), project)?;
            if quota::used(home.as_fd(), project)?.inodes == 1 {
                // The limit of who had it before.
                quota::limit(home.as_fd(), project, Counted::default())?;
                return Ok(project);
            }
        }
        Err(io::Error::other(format!("none of the {COUNT} projects from {FIRST} on is free; remove old outputs")))
    }
}

/// The next number after one that is free, around the range. Nothing where none is.
fn next_free(after: u32, mut is_free: impl FnMut(u32) -> io::Result<bool>) -> io::Result<Option<u32>> {
    let from = after.wrapping_sub(FIRST);
    for step in 1..=COUNT {
        let project = FIRST.saturating_add(from.wrapping_add(step) % COUNT);
        if is_free(project)? {
            return Ok(Some(project));
        }
    }
    Ok(None)
}

/// Makes what is written to an empty directory count with a workspace's.
pub(super) fn join(directory: &Path, project: Option<u32>) -> io::Result<()> {
    let Some(project) = project else { return Ok(()) };
    Ok(quota::mark(fs::File::open(directory)?.as_fd(), project)?)
}

/// Bytes and inodes of a project, on the filesystem of a path.
pub(super) fn used(path: &Path, project: u32) -> io::Result<(u64, u64)> {
    let counted = quota::used(fs::File::open(path)?.as_fd(), project)?;
    Ok((counted.bytes, counted.inodes))
}

/// Whether limits hold, tried in a directory of their own, and whether that lasts; `wanted`: the configuration has nothing
/// against them.
pub(super) fn choose(place: &Path, wanted: bool) -> (Quota, bool) {
    if !wanted {
        return (Quota { works: false, reason: "configured".to_owned() }, true);
    }
    match try_limit(place) {
        Ok(()) => (Quota { works: true, reason: "works on this pool".to_owned() }, true),
        Err(error) => {
            let lasts = !error.raw_os_error().is_some_and(|code| PASSING.contains(&code));
            (Quota { works: false, reason: in_words(&error) }, lasts)
        }
    }
}

fn in_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::ESRCH | libc::EINVAL | libc::ENOTTY | libc::EOPNOTSUPP) => format!(
            "no project quotas: they need Linux 5.14, and XFS or ext4 (with its features `quota` and `project`) that is \
             mounted with `prjquota`: {error}"
        ),
        Some(libc::EPERM | libc::EACCES) => format!("the agent may not set quotas, without CAP_SYS_ADMIN: {error}"),
        _ => error.to_string(),
    }
}

fn try_limit(place: &Path) -> io::Result<()> {
    let home = place.join("limited");
    directory(place, 0o755)?;
    // On a disk without room for the trial its end would be taken for the limit.
    let free = nix::sys::statvfs::statvfs(place)?;
    if free.blocks_available().saturating_mul(free.fragment_size()) < TRIAL_BYTES * TRIAL_WRITES * 2 {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    directory(&home, 0o755)?;
    let project = Projects::default().claim(&home)?;
    let on = fs::File::open(&home)?;
    let had = quota::used(on.as_fd(), project)?;
    quota::limit(on.as_fd(), project, Counted { bytes: had.bytes.saturating_add(TRIAL_BYTES), inodes: 0 })?;
    let written = without_rights(|| {
        let file = fs::File::create(home.join("file"))?;
        for _ in 0..TRIAL_WRITES {
            io::Write::write_all(&mut &file, &vec![b'x'; usize::try_from(TRIAL_BYTES).unwrap_or(0)])?;
        }
        file.sync_all()
    });
    quota::limit(on.as_fd(), project, Counted::default())?;
    match written {
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            Err(io::Error::other("project quotas are counted here, but no limit holds; mount it with `prjquota`"))
        }
    }
}

/// Does something on a thread without the right that ext4 lets write beyond any limit (`CAP_SYS_RESOURCE`).
fn without_rights(work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let lower = || -> io::Result<()> {
        let mut own = capabilities(None)?;
        own.effective.remove(CapabilitySet::SYS_RESOURCE);
        Ok(set_capabilities(None, own)?)
    };
    std::thread::scope(|scope| {
        let working = scope.spawn(|| lower().and_then(|()| work()));
        working.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

impl Workspaces {
    /// Counts what a workspace was given. From now on it may hold as much more as its lease's size, where it is a project.
    pub(super) fn begin_to_count(&self, workspace: &mut Workspace) {
        workspace.given = self.holds(workspace).unwrap_or_default();
        let Some(project) = workspace.project else { return };
        let size = workspace
            .lease
            .as_ref()
            .and_then(|id| self.inner.admission.read(|ledger| ledger.lease(id).map(|lease| lease.sizing.size.amounts)));
        let Some(size) = size else { return };
        let (bytes, inodes) = workspace.given;
        let most =
            Counted { bytes: bytes.saturating_add(size.disk_bytes), inodes: inodes.saturating_add(size.disk_inodes) };
        let limited = fs::File::open(workspace.home()).and_then(|home| quota::limit(home.as_fd(), project, most));
        if let Err(error) = limited {
            tracing::warn!(%error, workspace = workspace.id, "its disk is watched, not limited");
            workspace.project = None;
            workspace.given = self.holds(workspace).unwrap_or_default();
        }
    }

    /// Whether the filesystem itself keeps the build of a lease within its size.
    #[must_use]
    pub fn is_limited(&self, lease: &LeaseId) -> bool {
        self.get(lease.as_str()).is_some_and(|workspace| workspace.project.is_some())
    }

    /// Whether workspaces are limited where they can be.
    pub(super) fn has_quotas(&self) -> bool {
        self.method().is_some_and(|chosen| chosen.quota.works)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_project_in_use_is_never_given_out_and_the_range_is_not_left() {
        let last = FIRST + COUNT - 1;
        let mut used = BTreeSet::from([FIRST, FIRST + 1, last]);
        for (after, next) in [(last - 1, FIRST + 2), (FIRST + 2, FIRST + 3), (last, FIRST + 4), (7, FIRST + 5)] {
            let given = next_free(after, |project| Ok(!used.contains(&project))).unwrap().unwrap();
            assert!((FIRST..=last).contains(&given) && used.insert(given), "{given}");
            if after >= FIRST {
                assert_eq!(given, next, "after {after}");
            }
        }
        used.extend(FIRST..=last);
        assert_eq!(next_free(FIRST, |project| Ok(!used.contains(&project))).unwrap(), None);
        assert!(next_free(FIRST, |_| Err(io::ErrorKind::PermissionDenied.into())).is_err());
    }

    #[test]
    fn why_there_is_no_quota_is_said_with_what_to_do() {
        for (code, words) in [
            (libc::ESRCH, "mounted with `prjquota`"),
            (libc::ENOSYS, "Linux 5.14"),
            (libc::EPERM, "CAP_SYS_ADMIN"),
            (libc::EIO, "Input/output error"),
        ] {
            let said = in_words(&io::Error::from_raw_os_error(code));
            assert!(said.contains(words), "{said}");
        }
        let place = tempfile::tempdir().unwrap();
        let configured = Quota { works: false, reason: "configured".to_owned() };
        assert_eq!(choose(place.path(), false), (configured, true), "it is not even tried");
        assert!(fs::read_dir(place.path()).unwrap().next().is_none());
    }
}
