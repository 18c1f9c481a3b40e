//! What is so at this moment, and what it adds up to.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use crate::cluster::Pods;
use crate::identity::LeaseId;
use crate::pressure::Gate;
use crate::quantity::{Amounts, Span};
use crate::sizing::{DERIVED_FLOOR, Policy};

use super::tenant::Tenants;
use super::{Holder, Lease, LeaseState, Ledger, Seen};

/// What is so at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// CPU and memory of the machine; bytes and inodes of the pool above its floor if it were empty, nothing while the
    /// pool is not there.
    pub capacity: Amounts,
    /// Kept for the control plane and the system (CPU and memory).
    pub reserve: Amounts,
    /// CPU and memory that are used now by all of which neither a lease nor another pod was seen to use it.
    pub others: Amounts,
    /// CPU and memory that pods without a lease hold: what they ask of the cluster, or use where that is more.
    pub other_pods: Amounts,
    /// What single leases were seen to use at that same look, for those that were looked at.
    pub in_use: Arc<BTreeMap<LeaseId, InUse>>,
    /// Bytes and inodes of the pool that are free above its floor now.
    pub disk_free: Amounts,
    /// What the scheduler of the cluster would still give; unset: there is none.
    pub scheduler: Option<Scheduler>,
    /// The pods of the node; unset: there are none, or nobody has told.
    pub pods: Option<Arc<Pods>>,
    /// A pod without limits within its lease's size counts as the whole node.
    pub unlimited_is_node: bool,
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
    /// Defaults, ladder and cap.
    pub sizing: Arc<Policy>,
    /// Random, 0 to 999: hints differ by it, so that callers do not return all at once.
    pub jitter: u16,
}

/// What the scheduler of the cluster would still give to pods of this node, without those that are coming.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Scheduler {
    /// CPU and memory: what it may give less what pods asked for.
    pub free: Amounts,
    /// So many pods more.
    pub pods: u64,
}

/// What a lease is seen to use, and what its pod asks of the cluster.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    /// CPU, smoothed; memory without `inactive_file`, with tmpfs, shared memory and swap. Unset where it was looked for and
    /// nothing was found that could be measured.
    pub used: Option<Amounts>,
    /// Bytes and inodes that its build has written to the pool: seen there, whoever wrote them.
    pub written: Amounts,
    /// CPU and memory that its group is kept to, the largest number where nothing keeps it; unset: that was not seen.
    pub limits: Option<Amounts>,
    /// What was seen of it until now.
    pub seen: Seen,
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
    /// The same whatever the scheduler of the cluster has left: for those whose pod it placed here already.
    pub free_placed: Amounts,
    /// What the scheduler of the cluster would give, less what it will give to the pods of leases that wait for theirs.
    pub scheduler: Option<Scheduler>,
}

impl Facts {
    /// The most that a derived size or a retry gets.
    pub(super) fn room(&self) -> Amounts {
        self.sizing.room(&self.capacity.less(self.reserve))
    }

    /// What a live lease holds: its size, for its whole life, or what its pod asks for or what it uses, where that is
    /// more. A pod that nothing keeps to its size holds all there is.
    #[must_use]
    pub fn held(&self, lease: &Lease) -> Amounts {
        self.held_as(lease, self.in_use.get(&lease.id))
    }

    fn held_as(&self, lease: &Lease, seen: Option<&InUse>) -> Amounts {
        let size = lease.sizing.size.amounts;
        let Some(Holder::Pod { uid, .. }) = &lease.holder else { return held(size, seen) };
        let pod = self.pods.as_ref().and_then(|pods| pods.get(uid));
        let held = held(size, seen).max(pod.map(|pod| pod.requests).unwrap_or_default());
        let limits = seen.and_then(|seen| seen.limits).filter(|_| self.unlimited_is_node);
        limits.map_or(held, |limits| {
            let whole = self.capacity.less(self.reserve);
            let of = |limit: u64, size: u64, whole: u64| if limit > size { whole } else { 0 };
            held.max(Amounts {
                cpu_millis: of(limits.cpu_millis, size.cpu_millis, whole.cpu_millis),
                memory_bytes: of(limits.memory_bytes, size.memory_bytes, whole.memory_bytes),
                ..Amounts::default()
            })
        })
    }
}

fn held(size: Amounts, seen: Option<&InUse>) -> Amounts {
    seen.map_or(size, |seen| size.max(seen.used.unwrap_or_default()).max(seen.written))
}

impl Totals {
    /// The most that a build gets whose size is not declared: the budget, and of the pool what is left when all leases have
    /// ended. For what others' files take it would wait in vain. Nothing of a pool that is not there.
    #[must_use]
    pub fn derivable(&self) -> Amounts {
        with_disk(self.budget, self.budget.less(self.others).max(DERIVED_FLOOR).min(self.budget))
    }
}

/// Live leases, added up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    leased: Amounts,
    /// Of the pool: what is held and not written, and what was written.
    unwritten: Amounts,
    written: Amounts,
    /// What those are taken to use that were looked at in vain: their size, for only what is used beyond that is
    /// others'. One that nobody has looked at hides nothing of what others use.
    unmeasured: Amounts,
}

impl Sums {
    fn add(mut self, facts: &Facts, lease: &Lease, seen: Option<&InUse>) -> Self {
        let (size, held) = (lease.sizing.size.amounts, facts.held_as(lease, seen));
        let wrote = on_disk(seen.map(|seen| seen.written).unwrap_or_default());
        self.leased = self.leased.plus(held);
        self.unwritten = self.unwritten.plus(on_disk(held.less(wrote)));
        self.written = self.written.plus(wrote);
        if let Some(InUse { used: None, .. }) = seen {
            self.unmeasured = self.unmeasured.plus(size);
        }
        self
    }
}

impl Ledger {
    fn sums(&self, facts: &Facts) -> Sums {
        // Where none was looked at, and no pod asks for more, each holds its size.
        if facts.in_use.is_empty() && facts.pods.is_none() {
            let leased = self.sizes().amounts();
            return Sums { leased, unwritten: on_disk(leased), ..Sums::default() };
        }
        self.sums_one_by_one(facts)
    }

    fn sums_one_by_one(&self, facts: &Facts) -> Sums {
        // Both are in the order of their ids: one walk, and no search for each lease.
        let mut looked_at = facts.in_use.iter().peekable();
        self.live().fold(Sums::default(), |sums, lease| {
            while looked_at.next_if(|(id, _)| **id < lease.id).is_some() {}
            let seen = looked_at.next_if(|(id, _)| **id == lease.id).map(|(_, seen)| seen);
            sums.add(facts, lease, seen)
        })
    }

    /// What the scheduler has left when the pods have come that are to bind what is reserved. Of one that is here already
    /// it has given what that asks for.
    fn coming(&self, facts: &Facts, room: Scheduler) -> Scheduler {
        let reserved = self.live().filter(|lease| lease.state == LeaseState::Reserved);
        reserved.fold(room, |room, lease| {
            let size = lease.sizing.size.amounts;
            match facts.pods.as_ref().and_then(|pods| pods.get(&lease.terms.pod)) {
                Some(pod) => Scheduler { free: room.free.less(size.less(pod.requests)), ..room },
                None => Scheduler { free: room.free.less(size), pods: room.pods.saturating_sub(1) },
            }
        })
    }

    /// What is held, what is left.
    #[must_use]
    pub fn totals(&self, facts: &Facts) -> Totals {
        let sums = self.sums(facts);
        let budget = facts.capacity.less(facts.reserve);
        // On the pool all that lies there and that no lease is known to have written is others'.
        let lies = on_disk(budget.less(facts.disk_free).less(sums.written));
        let system = facts.others.less(sums.unmeasured).less(facts.reserve);
        let others = with_disk(system.plus(facts.other_pods), lies);
        let Sums { leased, unwritten, .. } = sums;
        let free_placed = with_disk(budget.less(others).less(leased), facts.disk_free.less(unwritten));
        let scheduler = facts.scheduler.map(|room| self.coming(facts, room));
        let free = scheduler.map_or(free_placed, |room| with_disk(free_placed.min(room.free), free_placed));
        let (capacity, reserve) = (facts.capacity, facts.reserve);
        Totals { capacity, reserve, budget, others, leased, unwritten, free, free_placed, scheduler }
    }
}

/// What live leases are worth by their sizes alone. Wider than their parts, so that what goes is taken off exactly.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    cpu_millis: u128,
    memory_bytes: u128,
    disk_bytes: u128,
    disk_inodes: u128,
}

impl Sizes {
    /// With one lease that was so big, and is now.
    pub(super) fn changed(self, before: Option<Amounts>, now: Option<Amounts>) -> Self {
        let (before, now) = (before.unwrap_or_default(), now.unwrap_or_default());
        let part = |sum: u128, was: u64, is: u64| sum.saturating_sub(u128::from(was)).saturating_add(u128::from(is));
        Self {
            cpu_millis: part(self.cpu_millis, before.cpu_millis, now.cpu_millis),
            memory_bytes: part(self.memory_bytes, before.memory_bytes, now.memory_bytes),
            disk_bytes: part(self.disk_bytes, before.disk_bytes, now.disk_bytes),
            disk_inodes: part(self.disk_inodes, before.disk_inodes, now.disk_inodes),
        }
    }

    /// Of all of these.
    pub(crate) fn of(sizes: impl Iterator<Item = Amounts>) -> Self {
        sizes.fold(Self::default(), |sum, size| sum.changed(None, Some(size)))
    }

    fn amounts(&self) -> Amounts {
        let part = |sum: u128| u64::try_from(sum).unwrap_or(u64::MAX);
        Amounts {
            cpu_millis: part(self.cpu_millis),
            memory_bytes: part(self.memory_bytes),
            disk_bytes: part(self.disk_bytes),
            disk_inodes: part(self.disk_inodes),
        }
    }
}

fn on_disk(amounts: Amounts) -> Amounts {
    Amounts { cpu_millis: 0, memory_bytes: 0, ..amounts }
}

const fn with_disk(amounts: Amounts, disk: Amounts) -> Amounts {
    Amounts { disk_bytes: disk.disk_bytes, disk_inodes: disk.disk_inodes, ..amounts }
}
