//! What leases were seen to use: for the ledger, while they run and at their end, and for how a build ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use stoker_core::admission::{InUse, Seen, Usage};
use stoker_core::examination::PodsLimit;
use stoker_core::identity::LeaseId;
use stoker_core::quantity::Amounts;
use stoker_core::sizing::oom::{Evidence, MemoryEnd, classify};
use stoker_core::sizing::{Outcome, PodEnd};
use tokio::sync::watch;

use crate::pressure::lease_use::{LeaseUse, Look, Others, UseSource};

/// Bytes and inodes on the pool by lease, now and at most: what its workspace holds beside its sources.
pub type OnDisk = Arc<BTreeMap<LeaseId, (Amounts, Amounts)>>;

/// By lease, as the ledger takes it.
type ByLease = Arc<BTreeMap<LeaseId, InUse>>;

/// The meter's last look. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Measured {
    looks: watch::Receiver<Arc<Look>>,
    on_disk: watch::Receiver<OnDisk>,
    /// Made once for each look: facts are asked for with every request.
    last: Arc<Mutex<(Arc<Look>, OnDisk, ByLease)>>,
}

impl Measured {
    /// What the meter publishes, and what was measured of workspaces.
    #[must_use]
    pub fn new(looks: watch::Receiver<Arc<Look>>, on_disk: watch::Receiver<OnDisk>) -> Self {
        Self { looks, on_disk, last: Arc::default() }
    }

    /// What each lease uses that was looked at, and what all the rest used at that same look.
    #[must_use]
    pub fn in_use(&self) -> (ByLease, Option<Others>) {
        let look = Arc::clone(&self.looks.borrow());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let on_disk = Arc::clone(&self.on_disk.borrow());
        if !Arc::ptr_eq(&last.0, &look) || !Arc::ptr_eq(&last.1, &on_disk) {
            let of = |(lease, seen): (&LeaseId, &LeaseUse)| (lease.clone(), in_use(seen, on_disk.get(lease)));
            let in_use = look.leases.iter().map(of).collect();
            *last = (look, on_disk, Arc::new(in_use));
        }
        (Arc::clone(&last.2), last.0.others)
    }

    /// Bytes of memory that all pods together may have. Unset: as many as there are.
    #[must_use]
    pub fn pods_limit(&self) -> Option<u64> {
        match self.looks.borrow().pods_limit {
            PodsLimit::Bytes(limit) => Some(limit),
            PodsLimit::Nothing | PodsLimit::Unseen => None,
        }
    }

    /// How a build really ended: what its caller says, and what was seen where the caller does not know.
    pub(super) async fn outcome(&self, lease: &LeaseId, told: &Told, node_was_short: bool) -> Outcome {
        let asked = matches!(told.outcome, Outcome::Failed | Outcome::Lost);
        let seen = if asked { self.looks.borrow().leases.get(lease).cloned() } else { None };
        if !asked || (seen.is_none() && told.pod == PodEnd::Other) {
            return told.outcome;
        }
        // What was never looked at has only its pod's word.
        let seen = seen.unwrap_or_default();
        let again = seen.clone();
        // Where it panicked, which is logged, the last look stands.
        let counters = tokio::task::spawn_blocking(move || again.oom_now()).await.unwrap_or(seen.oom);
        let peak = told.usage.map_or(0, |usage| usage.memory_bytes_peak).max(seen.peak.memory_bytes_peak);
        let end = classify(&Evidence {
            counters,
            exit_code: told.exit_code,
            pod: told.pod,
            memory_bytes_peak: peak,
            memory_bytes_limit: seen.memory_bytes_limit,
            node_was_short,
            ..Evidence::default()
        });
        match end {
            MemoryEnd::NotMemory => told.outcome,
            MemoryEnd::OwnLimit => Outcome::OutOfMemoryLimit,
            MemoryEnd::AncestorOrNode => Outcome::OutOfMemoryNode,
        }
    }
}

/// What has ended uses nothing; of what was not found nothing is known.
fn in_use(seen: &LeaseUse, on_disk: Option<&(Amounts, Amounts)>) -> InUse {
    let known = seen.source != UseSource::None || seen.ended;
    let (now, most) = on_disk.copied().unwrap_or_default();
    let LeaseUse { peak, began, at, looks, .. } = *seen;
    let peak = Usage { disk_bytes: most.disk_bytes, disk_inodes: most.disk_inodes, ..peak };
    let limits = (seen.source != UseSource::None && !seen.ended).then(|| Amounts {
        cpu_millis: seen.limits.cpu_millis.unwrap_or(u64::MAX),
        memory_bytes: seen.limits.memory_bytes.unwrap_or(u64::MAX),
        ..Amounts::default()
    });
    InUse { used: known.then_some(seen.now), written: now, limits, seen: Seen { peak, began, at, looks } }
}

/// What the caller says of a build's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub(super) outcome: Outcome,
    pub(super) exit_code: Option<i32>,
    pub(super) usage: Option<Usage>,
    /// What a pod's status says of it.
    pub(super) pod: PodEnd,
}
