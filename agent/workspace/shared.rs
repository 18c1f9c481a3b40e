//! Caches of tenants as volumes show them: to a pod that has no workspace. What a volume shows is published by those who
//! mount it ([`ShownCaches`]); here that keeps retention away, and builds of commits in places of their own.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use stoker_core::identity::{CommitId, Component};
use stoker_core::reason::{Code, Reason};

use super::caches::{self, Line};
use super::disk::{blocking, directory, directory_at, unwritable};
use super::{CACHES, Preparing, Workspaces};
use crate::node::mount::{self, Place};

/// So long a build that begins waits for the first look at what volumes show.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

/// A cache that a volume shows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShownCache {
    /// The folder of tenant and trust class.
    pub tenant: String,
    /// The one directory of it that is shown; unset: all of them.
    pub key: Option<String>,
}

/// Caches that volumes show; unset while that is not known yet.
pub type ShownCaches = Option<Arc<BTreeSet<ShownCache>>>;

impl ShownCache {
    /// The cache of a tenant and a trust class.
    #[must_use]
    pub fn of(tenant: &str, trust: &str, key: Option<&str>) -> Self {
        Self { tenant: Component::of(&[tenant, trust]).as_str().to_owned(), key: key.map(str::to_owned) }
    }

    /// By what a mount shows, below the caches of the pool; nothing where that is no cache.
    #[must_use]
    pub fn shown_by(below: &Path) -> Option<Self> {
        let mut parts = below.iter().map(|name| name.to_string_lossy().into_owned());
        Some(Self { tenant: parts.next()?, key: parts.next() })
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
            slot: 1,
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

    /// Where a cache that a volume shows is: the tenant's folder. Made as builds have it, with the key where one is named.
    ///
    /// # Errors
    /// When the pool is not there, or a build left something else in its place.
    pub async fn cache(&self, shown: ShownCache, is_written: bool) -> Result<PathBuf, Reason> {
        let root = self.inner.pools.usable(&self.inner.pool)?;
        let folder = root.join(CACHES).join(&shown.tenant);
        let (room, at) = (self.clone(), folder.clone());
        let made = blocking(move || {
            if is_written {
                room.disturb(&root, &shown)?;
            }
            make(&at, 1, shown.key.as_slice())
        });
        made.await.map_err(|error| unwritable(&folder, &error))?;
        Ok(folder)
    }

    fn disturb(&self, root: &Path, shown: &ShownCache) -> io::Result<()> {
        let _one = self.inner.turns.lock().unwrap_or_else(PoisonError::into_inner);
        caches::disturb(root, &shown.tenant, shown.key.as_deref())
    }

    /// Whether a build has this directory of the cache, in the place that volumes show. Asked once it is told that a volume
    /// shows it: builds that begin from then on get another place.
    #[must_use]
    pub fn has_builds(&self, shown: &ShownCache) -> bool {
        let has = |line: &Line| {
            line.tenant == shown.tenant
                && line.slot == 1
                && shown.key.as_ref().map_or(!line.keys.is_empty(), |key| line.keys.contains(key))
        };
        let entries = self.entries();
        let mut live = entries.values().filter(|entry| !matches!(*entry.stage.borrow(), Preparing::Failed(_)));
        live.any(|entry| has(&entry.line))
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

    /// The lines of what volumes show, beside one that begins.
    pub(super) fn shown_lines(&self, beside: &Line) -> Vec<Line> {
        self.shown().iter().flat_map(|all| all.iter()).map(|shown| shown.line(beside)).collect()
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
        let shown = |below: &str| ShownCache::shown_by(Path::new(below)).map(|shown| (shown.tenant, shown.key));
        assert_eq!(shown("a-1"), Some(("a-1".to_owned(), None)));
        assert_eq!(shown("a-1/target//deleted"), Some(("a-1".to_owned(), Some("target".to_owned()))));
        assert_eq!(shown(""), None);
    }
}
