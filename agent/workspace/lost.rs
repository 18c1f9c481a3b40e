//! Workspaces whose disk goes: taken out by the operator, or gone with its mount.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use stoker_core::reason::Reason;

use super::disk::{blocking, unwritable};
use super::{Method, Workspace, Workspaces};
use crate::admission::Admission;
use crate::node::mount;

/// So many workspaces that hold a detached disk are named.
const NAMED_MAX: usize = 8;

impl Workspaces {
    /// Whether its files went: what was written to an overlay or a tmpfs cannot be mounted again, and another filesystem
    /// may have taken the place of the one that it was made on.
    fn is_lost(&self, held: &Workspace) -> bool {
        let unmounted = |point: &PathBuf| mount::is_mount(point).is_ok_and(|mounted| !mounted);
        mounts_of(held).into_iter().any(unmounted) || held.method != Method::Overlay && self.is_gone(&held.src)
    }

    /// The ids of those whose files went.
    pub(super) async fn lost(&self) -> Vec<String> {
        let room = self.clone();
        let looked = blocking(move || {
            let lost = room.list().into_iter().filter(|held| room.is_lost(held));
            Ok(lost.map(|held| held.id.clone()).collect())
        });
        looked.await.unwrap_or_default()
    }

    /// Whether nothing is at a path of the pool while the pool is there.
    fn is_gone(&self, path: &Path) -> bool {
        let there = || self.inner.pools.usable(&self.inner.pool).is_ok();
        let missing = || fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        there() && missing() && there()
    }

    /// Lets go of a workspace whose files went with a mount.
    pub(super) fn forget_lost(&self, id: &str) -> Result<(), Reason> {
        if let Some(held) = self.get(id).filter(|held| self.is_lost(held)) {
            tracing::warn!(workspace = id, "its files went with a mount that is gone; it is made anew");
            self.end(id, Some(&held)).map_err(|error| unwritable(Path::new(id), &error))?;
            self.entries().remove(id);
        }
        Ok(())
    }

    /// Unmounts what ended while its pool is away or detached: nothing is removed there, and nothing holds its disk.
    pub(super) async fn unmount_ended(&self, admission: &Admission) {
        let ended: Vec<_> = self.over(admission).iter().filter_map(|id| self.get(id)).collect();
        let unmounted = blocking(move || {
            let points = ended.iter().flat_map(|held| mounts_of(held));
            points.map(|point| mount::unmount(point)).fold(Ok(()), Result::and)
        });
        if let Err(error) = unmounted.await {
            tracing::warn!(%error, "a workspace that ended is still mounted; tried again");
        }
    }

    /// For a pool that was detached: unmounts the workspaces that nobody has any more. Says in words which are still
    /// mounted and hold its disk; nothing where none is.
    pub async fn let_go(&self, pool: &str) -> Option<String> {
        if pool != self.inner.pool {
            return None;
        }
        self.unmount_ended(&self.inner.admission).await;
        self.holding(pool)
    }

    /// Which workspaces are mounted on a pool, and how they can be let go of, in words; nothing where none is.
    #[must_use]
    pub fn holding(&self, pool: &str) -> Option<String> {
        let is_mounted = |held: &Workspace| mounts_of(held).into_iter().any(|at| mount::is_mount(at).unwrap_or(true));
        let all = if pool == self.inner.pool { self.list() } else { Vec::new() };
        let held: Vec<_> = all.into_iter().filter(|held| is_mounted(held)).collect();
        let named = held.iter().take(NAMED_MAX).map(|held| match &held.lease {
            Some(lease) => format!("{} (lease {lease})", held.id),
            None => format!("{} (no lease)", held.id),
        });
        let named = named.collect::<Vec<_>>().join(", ");
        let (which, further) = match (held.len(), held.len().saturating_sub(NAMED_MAX)) {
            (0, _) => return None,
            (1, _) => ("a mounted workspace holds", String::new()),
            (_, 0) => ("mounted workspaces hold", String::new()),
            (_, more) => ("mounted workspaces hold", format!(" and {more} more")),
        };
        Some(format!(
            "{which} its disk: {named}{further}; each goes when its lease ends or its time is over, or with `stoker lease \
             release`"
        ))
    }
}

/// What is mounted for a workspace.
fn mounts_of(held: &Workspace) -> Vec<&PathBuf> {
    let src = (held.method == Method::Overlay).then_some(&held.src);
    src.into_iter().chain(held.tmpfs_bytes.map(|_| &held.tmp)).collect()
}
