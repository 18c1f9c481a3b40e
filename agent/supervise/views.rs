//! What earlier rooms are told of later ones: views that follow the ledger and the workspaces. No room calls a later one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::admission::{Holder, LeaseState, Ledger};
use stoker_core::identity::{CommitId, LeaseId};
use stoker_core::quantity::Amounts;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::WaitingPods;
use crate::admission::{Admission, Caches, OnDisk};
use crate::pressure::lease_use::HeldLeases;
use crate::repository::NeededCommits;
use crate::workspace::{ShownCaches, Workspaces};

/// Workspaces without a lease, and caches, come and go without a change of the ledger: they are looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// After they were told they are left alone for so long: what changed meanwhile is told once, not for each of a thousand
/// leases a second.
const PAUSE: Duration = Duration::from_millis(50);

/// The senders; those who are told subscribe before the rooms are there that tell.
#[derive(Debug, Default)]
pub(super) struct Views {
    /// Disk that leases hold and have not written: of the gate, and of what the cache may take.
    pub(super) reserved: watch::Sender<Amounts>,
    /// Bound leases and their holders, whose use is measured.
    pub(super) held: watch::Sender<HeldLeases>,
    /// What workspaces of leases hold on the pool; their room tells it itself.
    pub(super) on_disk: watch::Sender<OnDisk>,
    /// Caches of tenants, which make a build warmer.
    pub(super) caches: watch::Sender<Caches>,
    /// Pods that wait for their volume: the driver tells of them.
    pub(super) waiting: watch::Sender<WaitingPods>,
    /// Caches that volumes show: the driver tells of them.
    pub(super) shown: watch::Sender<ShownCaches>,
    /// Whether the mirrors that volumes show are held again since the start: the driver tells it.
    pub(super) mirrors_held: watch::Sender<bool>,
    /// Commits whose objects a store keeps; not known before the workspaces are.
    pub(super) needed: watch::Sender<Option<NeededCommits>>,
}

impl Views {
    /// Tells until `cancel`.
    pub(super) async fn follow(self, admission: Admission, workspaces: Workspaces, cancel: CancellationToken) {
        let mut changes = admission.watch();
        let mut looked: Option<Instant> = None;
        loop {
            if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                tell(&self.caches, Arc::new(workspaces.caches().await));
                looked = Some(Instant::now());
            }
            let (unwritten, held, mut needed) =
                admission.totals(|ledger, totals| (totals.unwritten, held(ledger), commits(ledger)));
            tell(&self.reserved, unwritten);
            tell(&self.held, Arc::new(held));
            if workspaces.are_taken_up() {
                for workspace in workspaces.list() {
                    needed.insert(workspace.source.commit);
                    needed.extend(workspace.submodules.iter().chain(&workspace.projects).map(|one| one.commit));
                }
                tell(&self.needed, Some(Arc::new(needed)));
            }
            if cancel.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return;
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}

pub(super) fn tell<T: PartialEq>(view: &watch::Sender<T>, now: T) {
    view.send_if_modified(|before| {
        let differs = *before != now;
        *before = now;
        differs
    });
}

fn held(ledger: &Ledger) -> Vec<(LeaseId, Holder)> {
    let bound = ledger.live().filter(|lease| lease.state == LeaseState::Bound);
    bound.filter_map(|lease| Some((lease.id.clone(), lease.holder.clone()?))).collect()
}

fn commits(ledger: &Ledger) -> BTreeSet<CommitId> {
    let leases = ledger.live().map(|lease| lease.source.commit);
    leases.chain(ledger.tickets().map(|ticket| ticket.request.source.commit)).collect()
}
