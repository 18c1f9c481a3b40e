//! Caches of tenants as volumes show them. What a volume shows is published by those who mount it ([`ShownCaches`]); here
//! that keeps retention away, and builds of commits in places of their own. A pod that has a build sees that one's place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use stoker_core::admission::Holder;
use stoker_core::identity::{CommitId, Component, LeaseId};
use stoker_core::reason::{Code, Reason};

use super::caches::{self, Line};
use super::disk::{blocking, directory, directory_at, unwritable};
use super::{CACHES, Entry, Order, Preparing, Workspaces};
use crate::node::mount::{self, Place};

/// So long a build that begins waits for the first look at what volumes show.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

/// A cache that a volume shows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShownCache {
    /// The folder of tenant and trust class.
    pub tenant: String,
    /// Which of the tenant's places it is in; the first is 1.
    pub slot: u32,
    /// The one directory of it that is shown; unset: all of them.
    pub key: Option<String>,
    /// The uid of the pod that it is shown to.
    pub pod: String,
    /// The pod may write to it.
    pub written: bool,
}

/// Caches that volumes show; unset while that is not known yet.
pub type ShownCaches = Option<Arc<BTreeSet<ShownCache>>>;

impl ShownCache {
    /// The cache of a tenant and a trust class, in the place that is no other build's.
    #[must_use]
    pub fn of(tenant: &str, trust: &str, key: Option<&str>, (pod, written): (&str, bool)) -> Self {
        let tenant = Component::of(&[tenant, trust]).as_str().to_owned();
        Self { tenant, slot: 1, key: key.map(str::to_owned), pod: pod.to_owned(), written }
    }

    /// By what a pod's mount shows, below the caches of the pool; nothing where that is no cache.
    #[must_use]
    pub fn shown_by(below: &Path, pod: &str, written: bool) -> Option<Self> {
        let mut parts = below.iter().map(|name| name.to_string_lossy().into_owned());
        let (tenant, first) = (parts.next()?, parts.next());
        let (slot, key) = match first.as_deref().and_then(caches::slot_of) {
            Some(slot) => (slot, parts.next()),
            None => (1, first),
        };
        Some(Self { tenant, slot, key, pod: pod.to_owned(), written })
    }

    /// The tenant's place for caches, below the folder of all.
    fn place(&self) -> PathBuf {
        caches::folder(Path::new(&self.tenant), self.slot)
    }

    /// Where it is, below the folder of all caches; nothing for all of them.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        Some(self.place().join(self.key.as_ref()?))
    }

    /// Whether a build that uses these has it.
    fn is_of(&self, line: &Line) -> bool {
        let has = |keys: &BTreeSet<String>| self.key.as_ref().map_or(!keys.is_empty(), |key| keys.contains(key));
        line.tenant == self.tenant && line.slot == self.slot && has(&line.keys)
    }

    /// Which caches of builds it may be: where it is all of them, those that the build has.
    fn line(&self, of: &Line) -> Line {
        let keys = match &self.key {
            Some(key) => BTreeSet::from([key.clone()]),
            None => of.keys.clone(),
        };
        Line {
            tenant: self.tenant.clone(),
            keys,
            repository: String::new(),
            commit: CommitId::new([0; 20]),
            form: (false, false),
            several: true,
            slot: self.slot,
        }
    }
}

impl Workspaces {
    /// Where a folder of the agent's directory of the pool lies, through whatever mounts and links.
    ///
    /// # Errors
    /// When the pool is not there.
    pub(crate) fn place_in(&self, folder: &str) -> Result<Place, Reason> {
        let root = self.inner.pools.usable(&self.inner.pool)?;
        mount::place_in(&root, folder).map_err(|error| unwritable(&root, &error))
    }

    /// Where the caches lie.
    ///
    /// # Errors
    /// When the pool is not there.
    pub(crate) fn place_of_caches(&self) -> Result<Place, Reason> {
        self.place_in(CACHES)
    }

    /// Where a cache that a volume shows is: the tenant's place. Made as builds have it, with the key where one is named.
    /// `disturbs`: who writes to it is no build that has it. Asked once it is told that a volume shows it: what is
    /// removed from then on is no cache of it.
    ///
    /// # Errors
    /// When the pool is not there, a cache of the tenant is just being removed, or a build left something else in its place.
    pub async fn cache(&self, shown: ShownCache, disturbs: bool) -> Result<PathBuf, Reason> {
        self.refuse_removing(&shown.tenant)?;
        let root = self.inner.pools.usable(&self.inner.pool)?;
        let folder = root.join(CACHES);
        let (room, tenant, place) = (self.clone(), folder.join(&shown.tenant), folder.join(shown.place()));
        let made = blocking(move || {
            if disturbs {
                room.disturb(&root, &shown)?;
            }
            make(&tenant, shown.slot, shown.key.as_slice())
        });
        made.await.map_err(|error| unwritable(&place, &error))?;
        Ok(place)
    }

    fn disturb(&self, root: &Path, shown: &ShownCache) -> io::Result<()> {
        let _one = self.inner.turns.lock().unwrap_or_else(PoisonError::into_inner);
        caches::disturb(root, &shown.tenant, shown.key.as_deref())
    }

    /// Whether a build has this directory of the cache, in the place that the volume shows. Asked once it is told that a
    /// volume shows it: builds that begin from then on get another place.
    #[must_use]
    pub fn has_builds(&self, shown: &ShownCache) -> bool {
        self.entries().values().any(|entry| entry.lives() && shown.is_of(&entry.line))
    }

    /// Which of its tenant's places a build has for this cache, where it is ready and has it.
    #[must_use]
    pub fn place_of(&self, build: &LeaseId, shown: &ShownCache) -> Option<u32> {
        let workspace = self.get(build.as_str())?;
        let tenant = workspace.cache.file_name()?.to_str()?;
        let has = tenant == shown.tenant && shown.key.as_ref().is_some_and(|key| workspace.cache_keys.contains(key));
        has.then_some(workspace.cache_slot.max(1))
    }

    /// Waits until it is known what volumes show: what was mounted before the agent began is told after its first look.
    pub(super) async fn known_shown(&self) -> Result<(), Reason> {
        let mut shown = self.inner.shown.clone();
        match tokio::time::timeout(SHOWN_WITHIN, shown.wait_for(Option::is_some)).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let message = "which caches volumes show is being looked at; ask again";
                Err(Reason::new(Code::PoolNotReady, &self.inner.pool, message))
            }
        }
    }

    /// What volumes show.
    pub(super) fn shown(&self) -> ShownCaches {
        self.inner.shown.borrow().clone()
    }

    /// The lines of what volumes show beside a build that begins. What its own pod has of its caches is its place, if
    /// nobody else has that; what a pod has of a build that lives is told by that build, and who only reads disturbs nobody.
    pub(super) fn shown_beside(&self, order: &Order, new: &mut Line, entries: &BTreeMap<String, Entry>) -> Vec<Line> {
        let Some(all) = self.shown().filter(|all| !all.is_empty()) else { return Vec::new() };
        let held: Vec<(LeaseId, String)> = self.inner.admission.read(|ledger| {
            let held = ledger.live().filter_map(|lease| match &lease.holder {
                Some(Holder::Pod { uid, .. }) => Some((lease.id.clone(), uid.clone())),
                _ => None,
            });
            held.collect()
        });
        let is_own = |shown: &&ShownCache| {
            held.iter().any(|(lease, pod)| order.lease.as_ref() == Some(lease) && *pod == shown.pod)
        };
        let is_told = |shown: &ShownCache| {
            let mut builds = held.iter().filter(|(_, pod)| *pod == shown.pod);
            builds.any(|(lease, _)| entries.get(lease.as_str()).is_some_and(|e| e.lives() && shown.is_of(&e.line)))
        };
        let (own, others): (Vec<&ShownCache>, Vec<&ShownCache>) = all.iter().partition(is_own);
        let at = |slot| Line { slot, ..new.clone() };
        if let Some(shown) = own.iter().find(|shown| shown.key.is_some() && shown.is_of(&at(shown.slot))) {
            new.slot = shown.slot;
        }
        others.into_iter().filter(|shown| shown.written && !is_told(shown)).map(|shown| shown.line(new)).collect()
    }
}

impl Entry {
    fn lives(&self) -> bool {
        !matches!(*self.stage.borrow(), Preparing::Failed(_))
    }
}

/// Makes the folder of a tenant's caches, and those of a place in it. Builds may have written to what they share: no link of
/// theirs is followed.
pub(super) fn make(cache: &Path, slot: u32, keys: &[String]) -> io::Result<()> {
    directory(cache.parent().unwrap_or(cache), 0o755)?;
    directory(cache, 0o755)?;
    let mut folder = OwnedFd::from(File::open(cache)?);
    let place = caches::folder(cache, slot);
    if let Some(slot) = place.strip_prefix(cache).ok().and_then(Path::to_str).filter(|slot| !slot.is_empty()) {
        folder = directory_at(folder.as_fd(), slot, 0o755)?;
    }
    for key in keys {
        let cache = directory_at(folder.as_fd(), key, 0o777)?;
        // The builds of a tenant may run as different users; the directory is the tenant's.
        match rustix::fs::fchmod(&cache, Mode::from_raw_mode(0o1777)) {
            Err(Errno::PERM) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_tells_which_cache_it_shows() {
        let shown = |below: &str| {
            ShownCache::shown_by(Path::new(below), "uid", true).map(|shown| (shown.tenant, shown.slot, shown.key))
        };
        assert_eq!(shown("a-1"), Some(("a-1".to_owned(), 1, None)));
        assert_eq!(shown("a-1/target//deleted"), Some(("a-1".to_owned(), 1, Some("target".to_owned()))));
        assert_eq!(shown("a-1/~2/target"), Some(("a-1".to_owned(), 2, Some("target".to_owned()))));
        assert_eq!(shown(""), None);
    }
}
