//! What is so at this moment, and what it adds up to.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use crate::identity::LeaseId;
use crate::pressure::Gate;
use crate::quantity::{Amounts, Span};

use super::tenant::Tenants;
use super::{Lease, LeaseState, Ledger};

/// What is so at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// CPU and memory of the machine; bytes and inodes of the pool above its floor if it were empty, nothing while the
    /// pool is not there.
    pub capacity: Amounts,
    /// Kept for the control plane and the system (CPU and memory).
    pub reserve: Amounts,
    /// CPU and memory that are used now, by anyone.
    pub used: Amounts,
    /// What single leases are seen to use, for those where that is known.
    pub in_use: Arc<BTreeMap<LeaseId, InUse>>,
    /// Bytes and inodes of the pool that are free above its floor now.
    pub disk_free: Amounts,
    /// The gate.
    pub gate: Gate,
    /// The most live leases.
    pub leases_max: usize,
    /// The most tickets.
    pub tickets_max: usize,
    /// What tenants may have, and how they share.
    pub tenants: Arc<Tenants>,
    /// For how long others may pass the head of the queue.
    pub pass_for: Span,
    /// After this wait a build comes first in its tenant, whatever its priority.
    pub age_after: Span,
    /// A lease ends with its time budget; else that is only reported.
    pub end_at_budget: bool,
    /// Random, 0 to 999: hints differ by it, so that callers do not return all at once.
    pub jitter: u16,
}

/// What a lease is seen to use, and what its pod asks of the cluster.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    /// CPU, smoothed; memory without `inactive_file`, with tmpfs, shared memory and swap; bytes and inodes that it has
    /// written to the pool.
    pub used: Amounts,
    /// The pod's effective requests; nothing for a process.
    pub requests: Amounts,
}

/// What the ledger adds up to, for people and for the gate.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// All there is.
    pub capacity: Amounts,
    /// Kept for the system.
    pub reserve: Amounts,
    /// Capacity less the reserve: what never fits is judged against it.
    pub budget: Amounts,
    /// What others use beyond the reserve.
    pub others: Amounts,
    /// What leases hold.
    pub leased: Amounts,
    /// What leases hold of the pool and have not written yet.
    pub unwritten: Amounts,
    /// The budget less others less leases: what must wait is judged against it.
    pub free: Amounts,
}

impl Facts {
    /// What a live lease holds: its size, for its whole life, or what its pod asks for or what it uses, where that is
    /// more.
    #[must_use]
    pub fn held(&self, lease: &Lease) -> Amounts {
        let size = lease.sizing.size.amounts;
        self.in_use.get(&lease.id).map_or(size, |seen| size.max(seen.requests).max(seen.used))
    }

    /// What a live lease is taken to use. Nobody uses a reservation yet. Where the use of a bound lease is not known, it
    /// is taken to be its size, for what is used beyond that is others'; but nothing that it would have written.
    fn used_by(&self, lease: &Lease) -> Amounts {
        match (self.in_use.get(&lease.id), lease.state) {
            (Some(seen), _) => seen.used,
            (None, LeaseState::Reserved) => Amounts::default(),
            (None, _) => Amounts { disk_bytes: 0, disk_inodes: 0, ..lease.sizing.size.amounts },
        }
    }
}

impl Ledger {
    /// What is held, what is left.
    #[must_use]
    pub fn totals(&self, facts: &Facts) -> Totals {
        let none = (Amounts::default(), Amounts::default(), Amounts::default());
        let (leased, unwritten, known) = self.live().fold(none, |(leased, unwritten, known), lease| {
            let (held, used) = (facts.held(lease), facts.used_by(lease));
            (leased.plus(held), unwritten.plus(on_disk(held.less(used))), known.plus(used))
        });
        let budget = facts.capacity.less(facts.reserve);
        // On the pool all that lies there and that no lease is known to have written is others'.
        let lies = on_disk(budget.less(facts.disk_free).less(known));
        let others = with_disk(facts.used.less(known).less(facts.reserve), lies);
        let free = with_disk(budget.less(others).less(leased), facts.disk_free.less(unwritten));
        Totals { capacity: facts.capacity, reserve: facts.reserve, budget, others, leased, unwritten, free }
    }
}

fn on_disk(amounts: Amounts) -> Amounts {
    Amounts { cpu_millis: 0, memory_bytes: 0, ..amounts }
}

const fn with_disk(amounts: Amounts, disk: Amounts) -> Amounts {
    Amounts { disk_bytes: disk.disk_bytes, disk_inodes: disk.disk_inodes, ..amounts }
}
