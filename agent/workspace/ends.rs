//! The end of workspaces: leases and times are watched, and what is over leaves its place at once.

use std::io;
use std::path::{Path, PathBuf};

use stoker_core::identity::LeaseId;
use stoker_core::quantity::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{GOES_WITHIN, LOOK_EVERY, MAKE_ROOM_EVERY, OVERLAYS, SETTLE_EVERY, Workspaces, record};
use crate::admission::{Admission, now};
use crate::node::Pools;
use crate::node::mount::{self, Detached};

impl Workspaces {
    /// Moves a workspace's directory and record away. Again is the same as once.
    pub(super) fn discard(&self, id: &str) -> io::Result<()> {
        let root = self.usable()?;
        // The record first: what is unmounted is no workspace any more, whatever lies there.
        record::remove(&root, id)?;
        self.let_drop(unmount(&root, id)?);
        self.inner.pools.discard(&home(&root, id))?;
        self.inner.pools.discard(&beside(&root, id))
    }

    /// Takes away what a workspace has on the disk but its `out` and its record: its end is then repeated.
    pub(super) fn discard_scratch(&self, id: &str) -> io::Result<()> {
        self.let_drop(take_scratch(&self.inner.pools, &self.usable()?, id)?);
        Ok(())
    }

    fn usable(&self) -> io::Result<PathBuf> {
        self.inner.pools.usable(&self.inner.pool).map_err(|reason| io::Error::other(reason.message))
    }

    /// Nobody waits until the kernel has forgotten what was used in it.
    fn let_drop(&self, detached: Vec<Detached>) {
        self.inner.tasks.spawn_blocking(move || drop(detached));
    }

    pub(super) async fn watch_leases(self, admission: Admission, cancel: CancellationToken) {
        let mut changes = admission.watch();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            // While the pool is away nothing can be moved on it; afterwards it is.
            let room = self.clone();
            let there = tokio::task::spawn_blocking(move || room.take_up_once()).await;
            if !matches!(there, Ok(Ok(()))) {
                self.unmount_ended(&admission).await;
                continue;
            }
            for id in self.over(&admission).into_iter().chain(self.lost().await) {
                if let Err(reason) = self.delete(&id).await {
                    tracing::warn!(workspace = id, reason = reason.message, "not removed yet; tried again");
                }
            }
        }
    }

    /// Lets go of kept checkouts above their limit, or while the pool is below its floor.
    pub(super) async fn make_room(self, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(MAKE_ROOM_EVERY) => {}
            }
            // What is on its way out counts as gone, where it goes soon.
            let _ = tokio::time::timeout(GOES_WITHIN, self.inner.pools.drained()).await;
            let inner = &self.inner;
            // A pool that is away has no room to make.
            let (pools, pool) = (inner.pools.clone(), inner.pool.clone());
            let Ok(Ok(root)) = tokio::task::spawn_blocking(move || pools.usable(&pool)).await else { continue };
            let limit = inner.config.borrow().workspaces.checkouts_limit.unwrap_or(u64::MAX);
            inner.checkouts.relieve(&root, limit).await;
        }
    }

    /// Waits until no workspace is left whose lease or time has ended.
    pub async fn settled(&self, admission: &Admission) {
        while !self.over(admission).is_empty() && !self.inner.cancel.is_cancelled() {
            tokio::time::sleep(SETTLE_EVERY).await; // the room removes them; this only looks on
        }
    }

    /// Those whose lease or time has ended.
    pub(super) fn over(&self, admission: &Admission) -> Vec<String> {
        let held: Vec<(String, Option<LeaseId>, Option<Timestamp>)> =
            self.entries().iter().map(|(id, e)| (id.clone(), e.lease.clone(), e.expires_at)).collect();
        let now = now();
        let ended = |lease: &LeaseId| admission.read(|ledger| !ledger.lease(lease).is_some_and(|l| l.live()));
        let over = held.into_iter().filter(|(_, lease, expires_at)| {
            lease.as_ref().is_some_and(ended) || expires_at.is_some_and(|at| at <= now)
        });
        over.map(|(id, ..)| id).collect()
    }
}

fn home(root: &Path, id: &str) -> PathBuf {
    root.join("workspaces").join(id)
}

/// What lies beside an overlay: all that its build wrote.
fn beside(root: &Path, id: &str) -> PathBuf {
    root.join(OVERLAYS).join(id)
}

/// Unmounts all that a workspace consists of.
fn unmount(root: &Path, id: &str) -> io::Result<Vec<Detached>> {
    let (home, beside) = (home(root, id), beside(root, id));
    let detached = ["src", "tmp"].map(|point| mount::detach(&home.join(point)));
    let detached = detached.into_iter().collect::<io::Result<Vec<_>>>()?;
    if beside.exists() {
        for point in mount::mounts_below(&beside)? {
            mount::unmount(&point)?;
        }
    }
    Ok(detached)
}

fn take_scratch(pools: &Pools, root: &Path, id: &str) -> io::Result<Vec<Detached>> {
    let detached = unmount(root, id)?;
    for scratch in [home(root, id).join("src"), home(root, id).join("tmp"), beside(root, id)] {
        pools.discard(&scratch)?;
    }
    Ok(detached)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;
    use crate::workspace::outputs::tests::{NOW, World};

    #[test]
    fn scratch_makes_room_and_what_is_to_be_kept_stays() {
        let world = World::new(|_| {});
        let (own, workspace) = (world.own(), world.workspace("w", NOW));
        let upper = own.join("overlays/w/upper");
        fs::create_dir_all(&upper).unwrap();
        for written in [&upper, &workspace.src, &workspace.tmp, &workspace.out] {
            fs::write(written.join("file"), "text").unwrap();
        }
        fs::write(own.join("workspaces/w.json"), "{}").unwrap();
        for again in 0..2 {
            take_scratch(&world.pools, &own, "w").unwrap();
            for gone in [&own.join("overlays/w"), &workspace.src, &workspace.tmp] {
                assert!(!gone.exists(), "{} {again}", gone.display());
            }
            assert!(workspace.out.join("file").exists() && own.join("workspaces/w.json").exists());
        }
    }
}
