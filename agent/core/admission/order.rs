//! The order of the queue: tenants in turn.
//!
//! Each tenant has a *turn*, a number that only grows. A build moves its tenant's turn on by its cost over the tenant's
//! weight, and whose build would have the lowest turn is next (self-clocked fair queueing; Golestani, INFOCOM 1994). The
//! cost is the share of the budget that the build takes, of the resource of which it takes most, times its time budget.
//!
//! The *clock* is the turn of the last build that was granted in its turn. Who comes to wait, or was held back by a cap
//! of its own, begins at the clock: nobody saves turns up, and nobody pays for having used a node that was idle.
//! Nothing starves: a ticket's turn stands still while it waits, and everyone who comes later has a higher one after
//! finitely many grants, because each grant in turn moves the clock on. Neither turns nor clock are kept anywhere but in
//! the leases: they are read off the records.
//!
//! Within a tenant those that have waited for long come first, then retries, then the higher priority, then who asked
//! first.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::{Iter, Range};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;

use crate::quantity::{Amounts, Resource, Size, Timestamp};

use super::ledger::Line;
use super::{Facts, Ledger, Place, Request, Ticket};

/// Where in the queue: the lower, the sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Those that were passed at the head for as long as that may last come before all others.
    passed: Reverse<bool>,
    turn: u64,
    order: u64,
}

impl Key {
    /// Where it is once another of its tenant's was granted before it.
    pub(super) fn after(self, one: &Standing<'_>, weight: u32) -> Self {
        match one.is_retry() || self.passed.0 {
            true => self,
            false => Self { turn: self.turn.saturating_add(share(one.cost, weight.into())), ..self },
        }
    }
}

/// What a build costs its tenant.
fn share(cost: u64, weight: u64) -> u64 {
    cost.checked_div(weight.max(1)).unwrap_or(0).max(1)
}

/// What a build moves its tenant's turn on by, at weight 1: millionths of the budget times seconds, at least 1.
pub(super) fn cost(size: &Size, budget: &Amounts) -> u64 {
    let share = |r: Resource| size.amounts.get(r).saturating_mul(1_000_000).checked_div(budget.get(r)).unwrap_or(0);
    let share = Resource::LEDGER.into_iter().map(share).max().unwrap_or(0).min(1_000_000);
    let seconds = u64::try_from(size.time_budget.0 / 1000).unwrap_or(0);
    share.max(1).saturating_mul(seconds.max(1))
}

/// A request that is or would be in the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing<'a> {
    pub(super) tenant: &'a str,
    pub(super) rank: Rank,
    pub(super) order: u64,
    pub(super) cost: u64,
}

/// Place within a tenant, but for those that have waited for long: the lower, the sooner.
pub(super) type Rank = Reverse<i32>;

pub(super) fn rank(request: &Request) -> Rank {
    Reverse(if request.retry_of.is_some() { i32::MAX } else { request.priority })
}

impl Standing<'_> {
    pub(super) fn of(ticket: &Ticket) -> Standing<'_> {
        let (rank, tenant) = (rank(&ticket.request), ticket.request.scope.tenant.as_str());
        Standing { tenant, rank, order: ticket.order, cost: ticket.cost }
    }

    fn is_retry(&self) -> bool {
        self.rank == Reverse(i32::MAX)
    }
}

/// One tenant's tickets in their order, with the turn of each.
struct Turns<'a> {
    aged: Range<'a, u64, Arc<Ticket>>,
    ranked: Iter<'a, (Rank, u64), Arc<Ticket>>,
    /// Those of lower order have waited for long.
    young: u64,
    weight: u64,
    clock: u64,
    turn: u64,
    last: u64,
}

impl<'a> Turns<'a> {
    fn of(line: &'a Line, tenant: &str, clock: u64, facts: &Facts, now: Timestamp) -> Self {
        let young = line.first_younger(Timestamp(now.0.saturating_sub(facts.age_after.0)));
        Self {
            aged: line.by_age.range(..young),
            ranked: line.by_rank.iter(),
            young,
            weight: u64::from(facts.tenants.of(tenant).weight.max(1)),
            clock,
            turn: line.turn_before(clock),
            last: clock,
        }
    }

    /// Moves the turn on, and says where it is then. A retry had its turn already.
    fn step(&mut self, standing: &Standing<'_>) -> u64 {
        if !standing.is_retry() {
            self.turn = self.turn.saturating_add(share(standing.cost, self.weight)).max(self.clock);
            self.last = self.turn;
        }
        self.last
    }

    fn ticket(&mut self) -> Option<&'a Arc<Ticket>> {
        let young = self.young;
        let ranked = &mut self.ranked;
        let next = self.aged.next().map(|(_, ticket)| ticket);
        next.or_else(|| ranked.find(|((_, order), _)| *order >= young).map(|(_, ticket)| ticket))
    }

    /// Whether `one` comes before `ticket`, which is another of its tenant's.
    fn precedes(&self, one: &Standing<'_>, ticket: &Ticket) -> bool {
        let place = |rank: Rank, order: u64| match order < self.young {
            true => (false, Reverse(0), order),
            false => (true, rank, order),
        };
        place(one.rank, one.order) < place(rank(&ticket.request), ticket.order)
    }
}

impl<'a> Iterator for Turns<'a> {
    type Item = (u64, &'a Arc<Ticket>);

    fn next(&mut self) -> Option<Self::Item> {
        let ticket = self.ticket()?;
        Some((self.step(&Standing::of(ticket)), ticket))
    }
}

/// The whole queue, head first; no more of it is looked at than is taken.
pub(super) struct InTurn<'a> {
    passed: alloc::vec::IntoIter<&'a Arc<Ticket>>,
    first: BTreeMap<Key, (&'a Arc<Ticket>, Turns<'a>)>,
    facts: &'a Facts,
    now: Timestamp,
}

impl<'a> Iterator for InTurn<'a> {
    type Item = (Key, &'a Arc<Ticket>);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(ticket) = self.passed.next() {
            return Some((passed_key(ticket), ticket));
        }
        let (key, (ticket, turns)) = self.first.pop_first()?;
        self.put(turns);
        Some((key, ticket))
    }
}

impl<'a> InTurn<'a> {
    fn put(&mut self, mut turns: Turns<'a>) {
        let (facts, now) = (self.facts, self.now);
        if let Some((turn, ticket)) = turns.find(|(_, ticket)| !was_passed(ticket, facts, now)) {
            self.first.insert(key(turn, ticket.order), (ticket, turns));
        }
    }
}

const fn key(turn: u64, order: u64) -> Key {
    Key { passed: Reverse(false), turn, order }
}

/// Among them who came to the head first goes first.
fn passed_key(ticket: &Ticket) -> Key {
    let since = ticket.head_since.map_or(0, |at| u64::try_from(at.0).unwrap_or(0));
    Key { passed: Reverse(true), turn: since, order: ticket.order }
}

/// Whether others have passed it at the head for as long as that may last.
pub(super) fn was_passed(ticket: &Ticket, facts: &Facts, now: Timestamp) -> bool {
    ticket.head_since.is_some_and(|at| now.since(at) >= facts.pass_for)
}

impl Ledger {
    /// The queue as it stands, head first.
    pub(super) fn in_turn<'a>(&'a self, facts: &'a Facts, now: Timestamp) -> InTurn<'a> {
        let passed: Vec<_> = self.passed(facts, now).collect();
        let mut all = InTurn { passed: passed.into_iter(), first: BTreeMap::new(), facts, now };
        for (tenant, line) in self.waiting_lines() {
            all.put(Turns::of(line, tenant, self.clock(), facts, now));
        }
        all
    }

    fn waiting_lines(&self) -> impl Iterator<Item = (&str, &Line)> {
        self.lines().filter(|(_, line)| line.queued() > 0)
    }

    fn passed<'a>(&'a self, facts: &'a Facts, now: Timestamp) -> impl Iterator<Item = &'a Arc<Ticket>> {
        self.heads().filter(move |ticket| was_passed(ticket, facts, now))
    }

    /// Where a request stands that has this ticket or would take one, and how many are before it.
    pub(super) fn stands(&self, one: &Standing<'_>, facts: &Facts, now: Timestamp) -> (Key, usize) {
        let passed: Vec<_> = self.passed(facts, now).collect();
        if let Some(place) = passed.iter().position(|ticket| ticket.order == one.order) {
            return (passed.get(place).map_or(key(0, 0), |ticket| passed_key(ticket)), place);
        }
        let clock = self.clock();
        let mut ahead = passed.len();
        let fresh = Line::default();
        let own = self.line(one.tenant).unwrap_or(&fresh);
        let mut turns = Turns::of(own, one.tenant, clock, facts, now);
        while let Some(ticket) = turns.ticket() {
            if ticket.order == one.order || turns.precedes(one, ticket) {
                break;
            }
            turns.step(&Standing::of(ticket));
            ahead = ahead.saturating_add(usize::from(!was_passed(ticket, facts, now)));
        }
        let mine = key(turns.step(one), one.order);
        for (tenant, line) in self.waiting_lines().filter(|(tenant, _)| *tenant != one.tenant) {
            let sooner = Turns::of(line, tenant, clock, facts, now)
                .take_while(|(turn, ticket)| key(*turn, ticket.order) < mine)
                .filter(|(_, ticket)| !was_passed(ticket, facts, now));
            ahead = ahead.saturating_add(sooner.count());
        }
        (mine, ahead)
    }

    /// Those of its own tenant that come before a request that has a ticket or would take one.
    pub(super) fn own_before<'a>(
        &'a self,
        one: &'a Standing<'_>,
        facts: &Facts,
        now: Timestamp,
    ) -> impl Iterator<Item = &'a Arc<Ticket>> {
        let mut turns = self.line(one.tenant).map(|line| Turns::of(line, one.tenant, 0, facts, now));
        core::iter::from_fn(move || {
            let turns = turns.as_mut()?;
            let ticket = turns.ticket()?;
            (ticket.order != one.order && !turns.precedes(one, ticket)).then_some(ticket)
        })
    }

    /// The place of a build that is granted now; `in_turn`: nobody was before it.
    pub(super) fn granted_place(
        &self,
        one: &Standing<'_>,
        asked_at: Timestamp,
        in_turn: bool,
        facts: &Facts,
        now: Timestamp,
    ) -> Place {
        let clock = self.clock();
        let fresh = Line::default();
        let mut turns = Turns::of(self.line(one.tenant).unwrap_or(&fresh), one.tenant, clock, facts, now);
        if one.is_retry() {
            return Place { order: one.order, asked_at, turn: turns.turn, clock };
        }
        let turn = turns.step(one);
        Place { order: one.order, asked_at, turn, clock: if in_turn { turn.max(clock) } else { clock } }
    }
}
