//! What builds have written to the pool: measured from time to time, for who decides what else fits and who looks on.
//!
//! A filesystem with project quotas stops a build at its size, and tells at once what it holds. Most have none: there a
//! build that writes more than it asked for is seen by a walk, counted at what it really holds, and told by name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::identity::LeaseId;
use stoker_core::quantity::Amounts;
use tokio_util::sync::CancellationToken;

use super::disk::blocking;
use super::{Method, OVERLAYS, Workspace, Workspaces, quota};
use crate::admission::OnDisk;

/// How often all of them are measured, at most.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// The same where the filesystem itself counts: what a build held at its peak is then seen better.
const READ_EVERY: Duration = Duration::from_secs(1);
/// Of the time no more than this part goes into measuring: large trees are measured less often.
const MEASURE_PART: u32 = 50;
/// Entries that are looked at in one directory of a workspace; what has more holds at least so much.
const ENTRIES_MAX: u64 = 2_000_000;

impl Workspaces {
    /// What the builds of leases have written, as far as it was measured.
    #[must_use]
    pub fn written(&self) -> OnDisk {
        Arc::clone(&self.inner.on_disk.borrow())
    }

    pub(super) async fn measure_all(self, cancel: CancellationToken) {
        let mut pause = MEASURE_EVERY;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let (room, began) = (self.clone(), Instant::now());
            // A pool that is away tells nothing new.
            let _ = blocking(move || {
                room.measure_once();
                Ok(())
            })
            .await;
            let every = if self.has_quotas() { READ_EVERY } else { MEASURE_EVERY };
            pause = every.max(began.elapsed().saturating_mul(MEASURE_PART));
        }
    }

    fn measure_once(&self) {
        let before = self.written();
        let mut now = BTreeMap::new();
        for workspace in self.list() {
            let Some(lease) = workspace.lease.clone() else { continue };
            let Some((disk_bytes, disk_inodes)) = self.measure(&workspace) else { continue };
            let seen = Amounts { disk_bytes, disk_inodes, ..Amounts::default() };
            let (_, most) = before.get(&lease).copied().unwrap_or_default();
            let (disk_bytes, disk_inodes) = (disk_bytes.max(most.disk_bytes), disk_inodes.max(most.disk_inodes));
            now.insert(lease, (seen, Amounts { disk_bytes, disk_inodes, ..most }));
        }
        // A workspace can go before its lease ends, which takes its peaks from here.
        let live: Vec<LeaseId> = self.inner.admission.read(|ledger| {
            before.keys().filter(|lease| ledger.lease(lease).is_some_and(|lease| lease.live())).cloned().collect()
        });
        for lease in live {
            if let Some(last) = before.get(&lease) {
                now.entry(lease).or_insert(*last);
            }
        }
        self.inner.on_disk.send_replace(Arc::new(now));
    }

    /// Bytes and inodes beside what it was given; nothing where that cannot be told now.
    fn measure(&self, workspace: &Workspace) -> Option<(u64, u64)> {
        let (bytes, inodes) = self.holds(workspace)?;
        Some((bytes.saturating_sub(workspace.given.0), inodes.saturating_sub(workspace.given.1)))
    }

    /// Bytes and inodes that lie in its directories.
    pub(super) fn holds(&self, workspace: &Workspace) -> Option<(u64, u64)> {
        let pools = &self.inner.pools;
        let root = pools.usable(&self.inner.pool).ok()?;
        if let Some(project) = workspace.project
            && let Ok(used) = quota::used(workspace.home(), project)
        {
            return Some(used);
        }
        let scratch = workspace.tmpfs_bytes.is_none().then(|| workspace.tmp.clone());
        let sources = match workspace.method {
            Method::Overlay => root.join(OVERLAYS).join(&workspace.id).join("upper"),
            Method::Reflink | Method::Checkout => workspace.src.clone(),
        };
        let (mut bytes, mut inodes) = (0_u64, 0_u64);
        for path in scratch.iter().chain([&workspace.out, &sources]) {
            let found = pools.measure_tree(path, ENTRIES_MAX).ok()?;
            bytes = bytes.saturating_add(found.disk_bytes);
            inodes = inodes.saturating_add(found.files);
        }
        Some((bytes, inodes))
    }
}
