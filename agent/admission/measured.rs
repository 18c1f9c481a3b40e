//! What leases are seen to use: for the ledger while they run, and for how a build ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use stoker_core::admission::{InUse, Usage};
use stoker_core::identity::LeaseId;
use stoker_core::quantity::Amounts;
use stoker_core::sizing::Outcome;
use stoker_core::sizing::oom::{Evidence, MemoryEnd, classify};
use tokio::sync::watch;

use crate::pressure::lease_use::{LeaseUses, UseSource};

/// By lease, as the ledger takes it.
type ByLease = Arc<BTreeMap<LeaseId, InUse>>;

/// The meter's last look. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Measured {
    uses: watch::Receiver<Arc<LeaseUses>>,
    /// Made once for each look: facts are asked for with every request.
    last: Arc<Mutex<(Arc<LeaseUses>, ByLease)>>,
}

impl Measured {
    /// What the meter publishes.
    #[must_use]
    pub fn new(uses: watch::Receiver<Arc<LeaseUses>>) -> Self {
        Self { uses, last: Arc::default() }
    }

    /// What each lease uses of which something was seen.
    #[must_use]
    pub fn in_use(&self) -> ByLease {
        let uses = Arc::clone(&self.uses.borrow());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&last.0, &uses) {
            let seen = uses.iter().filter(|(_, seen)| seen.source != UseSource::None && !seen.ended);
            let in_use =
                seen.map(|(lease, seen)| (lease.clone(), InUse { used: seen.now, requests: Amounts::default() }));
            let in_use = Arc::new(in_use.collect());
            *last = (uses, in_use);
        }
        Arc::clone(&last.1)
    }

    /// How a build really ended, and what it used: what its caller says, and what was seen where the caller does not know.
    pub(super) fn end(&self, lease: &LeaseId, told: Told, node_was_short: bool) -> (Outcome, Option<Usage>) {
        let uses = self.uses.borrow();
        let Some(seen) = uses.get(lease) else { return (told.outcome, told.usage) };
        let usage = told.usage.or((seen.peak.memory_bytes_peak > 0).then_some(seen.peak));
        if !matches!(told.outcome, Outcome::Failed | Outcome::Lost) {
            return (told.outcome, usage);
        }
        let end = classify(&Evidence {
            counters: seen.oom,
            exit_code: told.exit_code,
            memory_bytes_peak: usage.map_or(0, |usage| usage.memory_bytes_peak),
            memory_bytes_limit: seen.memory_bytes_limit,
            node_was_short,
            ..Evidence::default()
        });
        let outcome = match end {
            MemoryEnd::NotMemory => told.outcome,
            MemoryEnd::OwnLimit => Outcome::OutOfMemoryLimit,
            MemoryEnd::AncestorOrNode => Outcome::OutOfMemoryNode,
        };
        (outcome, usage)
    }
}

/// What the caller says of a build's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub(super) outcome: Outcome,
    pub(super) exit_code: Option<i32>,
    pub(super) usage: Option<Usage>,
}
