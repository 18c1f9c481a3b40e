//! What leases were seen to use: for the ledger, while they run and at their end, and for how a build ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use stoker_core::admission::{InUse, Seen, Usage};
use stoker_core::identity::LeaseId;
use stoker_core::quantity::Amounts;
use stoker_core::sizing::Outcome;
use stoker_core::sizing::oom::{Evidence, MemoryEnd, classify};
use tokio::sync::watch;

use crate::pressure::lease_use::{LeaseUse, Look, Others, UseSource};

/// By lease, as the ledger takes it.
type ByLease = Arc<BTreeMap<LeaseId, InUse>>;

/// The meter's last look. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Measured {
    looks: watch::Receiver<Arc<Look>>,
    /// Made once for each look: facts are asked for with every request.
    last: Arc<Mutex<(Arc<Look>, ByLease)>>,
}

impl Measured {
    /// What the meter publishes.
    #[must_use]
    pub fn new(looks: watch::Receiver<Arc<Look>>) -> Self {
        Self { looks, last: Arc::default() }
    }

    /// What each lease uses that was looked at, and what all the rest used at that same look.
    #[must_use]
    pub fn in_use(&self) -> (ByLease, Option<Others>) {
        let look = Arc::clone(&self.looks.borrow());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&last.0, &look) {
            let in_use = look.leases.iter().map(|(lease, seen)| (lease.clone(), in_use(seen))).collect();
            *last = (look, Arc::new(in_use));
        }
        (Arc::clone(&last.1), last.0.others)
    }

    /// How a build really ended: what its caller says, and what was seen where the caller does not know.
    pub(super) fn outcome(&self, lease: &LeaseId, told: &Told, node_was_short: bool) -> Outcome {
        let look = self.looks.borrow();
        let seen = look.leases.get(lease).filter(|_| matches!(told.outcome, Outcome::Failed | Outcome::Lost));
        let Some(seen) = seen else { return told.outcome };
        let peak = told.usage.map_or(0, |usage| usage.memory_bytes_peak).max(seen.peak.memory_bytes_peak);
        let end = classify(&Evidence {
            counters: seen.oom,
            exit_code: told.exit_code,
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
fn in_use(seen: &LeaseUse) -> InUse {
    let known = seen.source != UseSource::None || seen.ended;
    let LeaseUse { peak, began, at, looks, .. } = *seen;
    InUse { used: known.then_some(seen.now), requests: Amounts::default(), seen: Seen { peak, began, at, looks } }
}

/// What the caller says of a build's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub(super) outcome: Outcome,
    pub(super) exit_code: Option<i32>,
    pub(super) usage: Option<Usage>,
}
