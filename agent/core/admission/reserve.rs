//! What is kept for the head of the queue, and who may pass it.
//!
//! By the likely ends of the leases there is a moment at which the head will fit, and there is what is left over beside
//! it then. Another build may pass it if it has surely ended by that moment, or if it fits into what is left over; so
//! the head never starts later than was to be expected without it (EASY backfill; Lifka, JSSPP 1995). After the head was
//! passed for as long as that may last, nothing passes it.
//!
//! A head may wait for the scheduler of the cluster. Builds whose pods that has placed here pass it meanwhile, as long as
//! others may; after that only where the head waits for the ends of those pods.

use alloc::borrow::Cow;

use crate::quantity::{Amounts, Resource, Timestamp};

use super::order::was_passed;
use super::view::{Contender, Head, View};
use super::{Holder, Lease, Ticket};

/// When a size will fit, and what is left over then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reservation {
    pub(super) at: Timestamp,
    pub(super) spare: Amounts,
    /// Leases that may be live beside it.
    pub(super) leases: usize,
}

/// May it start before the head?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passes {
    Yes,
    /// Why not.
    No(&'static str),
}

impl View<'_> {
    /// What is kept for this ticket, were it at the head: of those that passed it nothing is hoped for.
    pub(super) fn kept_for(&self, ticket: &Ticket) -> Option<Reservation> {
        let since = (ticket.head_since.unwrap_or(self.now), ticket.order);
        self.reservation(ticket.request.sizing.size.amounts, Some(since))
    }

    /// The moment at which `wanted` fits, as leases are likely to end; `None` where others hold so much that it does
    /// not even fit alone. Those that were granted since `passed`, or asked after it at that very moment, end as late as
    /// they can.
    pub(super) fn reservation(&self, wanted: Amounts, passed: Option<(Timestamp, u64)>) -> Option<Reservation> {
        let totals = &self.totals;
        let ends = match passed {
            None => Cow::Borrowed(self.ends()),
            Some(since) => Cow::Owned(self.by_end(|lease| match (lease.created_at, lease.place.order) > since {
                true => lease.latest_end(),
                false => lease.likely_end(self.now),
            })),
        };
        let mut taken = totals.others.plus(totals.leased).plus(wanted);
        let mut live = ends.len();
        let mut at = self.now;
        let mut ends = ends.iter();
        loop {
            let fits = Resource::LEDGER.into_iter().all(|r| taken.get(r) <= totals.budget.get(r));
            if fits && live < self.facts.leases_max {
                let leases = self.facts.leases_max.saturating_sub(live).saturating_sub(1);
                return Some(Reservation { at, spare: totals.budget.less(taken), leases });
            }
            let ending = ends.next()?;
            at = ending.at;
            taken = taken.less(ending.held);
            live = live.saturating_sub(1);
        }
    }

    /// Whether starting `one` now leaves the head what is kept for it.
    pub(super) fn passes_head(&self, one: &Contender<'_>, head: &Head) -> Passes {
        if one.placed && head.placed_pass {
            return Passes::Yes;
        }
        if was_passed(&head.ticket, self.facts, self.now) {
            return Passes::No("the first of them was passed for as long as that may last, so nothing passes it now");
        }
        let Some(kept) = &head.reservation else {
            return Passes::No("when the first of them fits cannot be said, so nothing passes it");
        };
        if self.takes_its_quota(one, head) {
            return Passes::No("it would use up what its tenant's first may still have");
        }
        if self.takes_its_turn(one, head) {
            return Passes::No("it would cost its tenant's first the turn that it has");
        }
        let in_time = self.facts.end_at_budget && self.now.plus(one.lasts) <= kept.at;
        let beside = kept.leases > 0 && Resource::LEDGER.into_iter().all(|r| one.amounts.get(r) <= kept.spare.get(r));
        match in_time || beside {
            true => Passes::Yes,
            false => Passes::No("it would keep the first of them waiting longer"),
        }
    }

    /// Whether builds whose pods are here may pass this head: it waits for the scheduler, and what that has given to them it
    /// has given already. Once the head was passed for as long as that may last, only where it waits for the ends of those
    /// very pods: behind it both would wait for ever.
    pub(super) fn placed_pass(&self, head: &Ticket) -> bool {
        self.waits_for_the_scheduler(head)
            && !(was_passed(head, self.facts, self.now) && self.comes_with_the_leases(head))
    }

    /// Whether the scheduler would place its pod when all leases that live now have ended, and their pods with them.
    fn comes_with_the_leases(&self, ticket: &Ticket) -> bool {
        let Some(room) = self.facts.scheduler else { return true };
        let of = |lease: &Lease| {
            let uid = match &lease.holder {
                Some(Holder::Pod { uid, .. }) => uid,
                _ => &lease.terms.pod,
            };
            self.facts.pods.as_ref()?.get(uid).filter(|pod| pod.live()).map(|pod| pod.requests)
        };
        let ending = self.ledger.live().filter_map(|lease| of(lease));
        let (free, pods) =
            ending.fold((room.free, room.pods), |(free, pods), asked| (free.plus(asked), pods.saturating_add(1)));
        let wanted = ticket.request.sizing.size.amounts;
        pods > 0 && [Resource::Cpu, Resource::Memory].into_iter().all(|r| wanted.get(r) <= free.get(r))
    }

    /// Whether the scheduler of the cluster would not place its pod now.
    fn waits_for_the_scheduler(&self, ticket: &Ticket) -> bool {
        let wanted = ticket.request.sizing.size.amounts;
        let is_short = |r: Resource| self.totals.scheduler.is_some_and(|room| wanted.get(r) > room.free.get(r));
        ticket.request.terms.pod.is_empty()
            && (self.totals.scheduler.is_some_and(|room| room.pods == 0)
                || [Resource::Cpu, Resource::Memory].into_iter().any(is_short))
    }

    /// A grant moves its tenant's turn on, and with it the head where that is its tenant's: no further than to whoever
    /// would be the head then, for whom nothing is kept yet.
    fn takes_its_turn(&self, one: &Contender<'_>, head: &Head) -> bool {
        let tenant = one.standing.tenant;
        if head.ticket.request.scope.tenant != tenant {
            return false;
        }
        let moved = head.key.after(&one.standing, self.facts.tenants.of(tenant).weight);
        self.rival(head).is_some_and(|rival| rival < moved)
    }

    fn takes_its_quota(&self, one: &Contender<'_>, head: &Head) -> bool {
        let (tenant, request) = (one.standing.tenant, &head.ticket.request);
        if request.scope.tenant != tenant {
            return false;
        }
        let with_one = self.held_by(tenant).and(one.amounts);
        self.facts.tenants.of(tenant).crossed(with_one, request.sizing.size.amounts).next().is_some()
    }
}
