//! What always holds, as named predicates: the tests ask them after every step, and the running agent after each batch.

use alloc::collections::BTreeSet;

use crate::admission::{Facts, Ledger, Sizes};
use crate::quantity::Resource;

/// The leases hold no more than the budget, unless a single one does (the first build on an idle node).
#[must_use]
pub fn never_over_budget(ledger: &Ledger, facts: &Facts) -> bool {
    let totals = ledger.totals(facts);
    let over = |r: &Resource| {
        let sizes: u64 = ledger.live().map(|l| l.sizing.size.amounts.get(*r)).fold(0, u64::saturating_add);
        sizes > totals.budget.get(*r)
    };
    ledger.live_count() <= 1 || ![Resource::Cpu, Resource::Memory].iter().any(over)
}

/// A request has at most one lease, and no lease and ticket at once.
#[must_use]
pub fn one_place_a_request(ledger: &Ledger) -> bool {
    let mut seen = BTreeSet::new();
    let leases = ledger.live().chain(ledger.ended()).map(|lease| &lease.request_id);
    leases.chain(ledger.tickets().map(|ticket| &ticket.request.id)).all(|id| seen.insert(id))
}

/// A live lease has no end and a bound one has a holder; an ended one has both an end and an outcome.
#[must_use]
pub fn lives_are_whole(ledger: &Ledger) -> bool {
    ledger.live().chain(ledger.ended()).all(|lease| match lease.live() {
        true => lease.ended_at.is_none() && lease.holder.is_some() == lease.bound_at.is_some(),
        false => lease.ended_at.is_some() && lease.outcome.is_some(),
    })
}

/// What is added up as leases come and go is what they are.
#[must_use]
pub fn sizes_add_up(ledger: &Ledger) -> bool {
    *ledger.sizes() == Sizes::of(ledger.live().map(|lease| lease.sizing.size.amounts))
}
