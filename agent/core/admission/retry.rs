//! A build that ran out of memory is tried once more: at its own limit one step up, where the node ran out the same.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use crate::quantity::{Resource, Size};
use crate::reason::{Code, Reason};
use crate::sizing::{Basis, Outcome, Tier};

use super::{Facts, Lease, Ledger, Place, Refused, Request, Retry};

/// Attempts that are made at most.
const ATTEMPTS_MAX: u32 = 2;

/// What a request is, seen as a retry.
pub(super) enum Tried {
    /// It is none.
    First,
    /// The request with the size that it gets, and its first place.
    Again(Box<Request>, Place),
    /// No further retry is given.
    Final(Vec<Reason>),
}

/// What a retry of this lease would get, of what one build may have and of what its tenant may hold; `None` where it did
/// not run out of memory.
pub(super) fn advice(lease: &Lease, facts: &Facts) -> Option<Retry> {
    let size = &lease.sizing.size;
    let room = facts.room();
    let most = facts.tenants.of(&lease.scope.tenant).at_most(room);
    let up = match lease.outcome? {
        Outcome::OutOfMemoryLimit => facts.sizing.ladder.next_step(size, &most),
        Outcome::OutOfMemoryNode => Some(*size),
        _ => return None,
    };
    let none = |code, message| Some(Retry { size: None, reasons: Vec::from([Reason::new(code, "memory", message)]) });
    let memory = |size: &Size| Resource::Memory.show(size.amounts.memory_bytes);
    let seen = lease.peak.map_or(0, |peak| peak.memory_bytes_peak).max(size.amounts.memory_bytes);
    if lease.attempt >= ATTEMPTS_MAX {
        let wants = Resource::Memory.show(seen.saturating_add(seen / 5));
        let message =
            format!("it ran out of memory again, with {}: declare at least {wants}, or let it use less", memory(size));
        return none(Code::RetriesUsedUp, message);
    }
    if lease.no_retry {
        return none(Code::RetriesUsedUp, format!("its build spec wants no retry: it ran out of {}", memory(size)));
    }
    match up {
        Some(up) => Some(Retry { size: Some(up), reasons: Vec::new() }),
        None if most.memory_bytes < room.memory_bytes => none(
            Code::TenantQuota,
            format!(
                "it ran out of {}, and tenant {:?} may hold no more than {} in all: let it use less",
                memory(size),
                lease.scope.tenant,
                Resource::Memory.show(most.memory_bytes)
            ),
        ),
        None => none(
            Code::MemoryBudget,
            format!(
                "it ran out of {}, and the {} that this node gives one build have no step above that: ask a larger node",
                memory(size),
                Resource::Memory.show(room.memory_bytes)
            ),
        ),
    }
}

impl Ledger {
    /// The request as a retry, where it is one. What it builds and for whom is what its first lease did.
    pub(super) fn as_retry(&self, request: &Request, facts: &Facts) -> Result<Tried, Refused> {
        let Some(id) = &request.retry_of else { return Ok(Tried::First) };
        let first = self.lease(id).ok_or_else(|| Refused::NoLease(id.clone()))?;
        if first.live() {
            return Err(Refused::NotOver(id.clone()));
        }
        if let Some(other) = self.retried_by(id) {
            return Err(Refused::Retried(id.clone(), other.clone()));
        }
        let advice = advice(first, facts);
        let Retry { size, reasons } = advice.ok_or_else(|| Refused::NotOutOfMemory(id.clone()))?;
        let Some(size) = size else { return Ok(Tried::Final(reasons)) };
        let mut sizing = first.sizing.clone();
        let raised = [(Resource::Cpu, size.amounts.cpu_millis), (Resource::Memory, size.amounts.memory_bytes)];
        for (resource, value) in raised.into_iter().filter(|(r, value)| *value != sizing.size.amounts.get(*r)) {
            let of = sizing.basis.iter_mut().filter(|basis| basis.resource == resource);
            of.for_each(|basis| *basis = Basis::new(resource, Tier::Ladder, value));
        }
        sizing.size = size;
        sizing.lower_to_pool(&self.totals(facts).derivable());
        // The survey may have found the commit in a newer snapshot.
        let same_commit = Some(&request.source).filter(|source| source.commit == first.source.commit);
        let again = Request {
            source: same_commit.unwrap_or(&first.source).clone(),
            sizing,
            scope: first.scope.clone(),
            target: first.target.clone(),
            cache_keys: first.cache_keys.clone(),
            attempt: first.attempt.saturating_add(1),
            expected: first.expected,
            no_retry: first.no_retry,
            asked: None,
            ..request.clone()
        };
        Ok(Tried::Again(Box::new(again), first.place))
    }
}
