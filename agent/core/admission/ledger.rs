//! The state, and the only way it changes.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;

use crate::identity::{LeaseId, RequestId, TicketId};
use crate::quantity::Timestamp;

use super::order::{self, Rank};
use super::tenant::Holds;
use super::{Facts, Lease, Mode, ModeState, Sizes, Ticket};

/// One change: the whole new record of what changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A lease is new, or is now so.
    Lease(Arc<Lease>),
    /// An ended lease is old enough to be forgotten, and its request id with it.
    Forgotten(LeaseId),
    /// A ticket is new, or is now so.
    Ticket(Arc<Ticket>),
    /// A ticket became a lease, ran out or was cancelled.
    TicketGone(TicketId),
    /// The mode.
    Mode(ModeState),
}

/// Leases, tickets and the mode. All else in it are ways to find them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ledger {
    live: BTreeMap<LeaseId, Arc<Lease>>,
    ended: BTreeMap<LeaseId, Arc<Lease>>,
    /// Ended ones, those first that ended first.
    ends: BTreeSet<(Timestamp, LeaseId)>,
    requests: BTreeMap<RequestId, LeaseId>,
    /// Who tries a lease again: its ticket, or its lease.
    retries: BTreeMap<LeaseId, RequestId>,
    tickets: BTreeMap<u64, Arc<Ticket>>,
    places: BTreeMap<RequestId, u64>,
    ticket_orders: BTreeMap<TicketId, u64>,
    lease_orders: BTreeSet<(u64, LeaseId)>,
    clocks: BTreeSet<(u64, LeaseId)>,
    heads: BTreeSet<(Timestamp, u64)>,
    lines: BTreeMap<String, Line>,
    /// Of the live ones together: added up as they come and go, for there may be thousands and each build asks.
    sizes: Sizes,
    mode: ModeState,
}

/// What one tenant has here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) by_age: BTreeMap<u64, Arc<Ticket>>,
    pub(super) by_rank: BTreeMap<(Rank, u64), Arc<Ticket>>,
    live: BTreeMap<LeaseId, Arc<Lease>>,
    turns: BTreeSet<(u64, LeaseId)>,
}

impl Line {
    fn is_empty(&self) -> bool {
        self.by_age.is_empty() && self.turns.is_empty()
    }

    /// Where the tenant's turn is before its next build.
    pub(super) fn turn_before(&self, clock: u64) -> u64 {
        let joined = self.by_age.first_key_value().map_or(clock, |(_, oldest)| oldest.joined);
        self.turns.last().map_or(0, |(turn, _)| *turn).max(joined)
    }

    /// The order of the first ticket that was taken after `at`; one past the last where there is none.
    pub(super) fn first_younger(&self, at: Timestamp) -> u64 {
        let younger = self.by_age.values().find(|ticket| ticket.created_at > at).map(|ticket| ticket.order);
        let past = || self.by_age.last_key_value().map_or(0, |(order, _)| order.saturating_add(1));
        younger.unwrap_or_else(past)
    }

    /// How many wait.
    pub(super) fn queued(&self) -> usize {
        self.by_age.len()
    }

    /// What its live leases hold.
    pub(super) fn holds(&self, facts: &Facts) -> Holds {
        self.live.values().fold(Holds::default(), |holds, lease| holds.and(facts.held(lease)))
    }
}

impl Ledger {
    /// The only way the ledger changes. Applying an event twice is the same as once.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Lease(lease) => self.put_lease(lease),
            Event::Forgotten(id) => self.forget(&id),
            Event::Ticket(ticket) => self.put_ticket(ticket),
            Event::TicketGone(id) => self.drop_ticket(&id),
            Event::Mode(mode) => self.mode = mode,
        }
    }

    fn put_lease(&mut self, lease: Arc<Lease>) {
        self.requests.insert(lease.request_id.clone(), lease.id.clone());
        self.lease_orders.insert((lease.place.order, lease.id.clone()));
        self.clocks.insert((lease.place.clock, lease.id.clone()));
        if let Some(first) = &lease.retry_of {
            self.retries.insert(first.clone(), lease.request_id.clone());
        }
        if let Some(at) = lease.ended_at {
            self.ends.insert((at, lease.id.clone()));
        }
        let before_size = self.live.get(&lease.id).map(|before| before.sizing.size.amounts);
        let line = self.lines.entry(lease.scope.tenant.clone()).or_default();
        line.turns.insert((lease.place.turn, lease.id.clone()));
        let (to, from) = match lease.live() {
            true => {
                line.live.insert(lease.id.clone(), Arc::clone(&lease));
                (&mut self.live, &mut self.ended)
            }
            false => {
                line.live.remove(&lease.id);
                (&mut self.ended, &mut self.live)
            }
        };
        let now_size = lease.live().then_some(lease.sizing.size.amounts);
        from.remove(&lease.id);
        to.insert(lease.id.clone(), lease);
        self.sizes = self.sizes.changed(before_size, now_size);
    }

    fn forget(&mut self, id: &LeaseId) {
        let Some(lease) = self.ended.remove(id) else { return };
        self.requests.remove(&lease.request_id);
        self.ends.remove(&(lease.ended_at.unwrap_or_default(), id.clone()));
        if let Some(first) = &lease.retry_of {
            self.retries.remove(first);
        }
        self.lease_orders.remove(&(lease.place.order, id.clone()));
        self.clocks.remove(&(lease.place.clock, id.clone()));
        if let Some(line) = self.lines.get_mut(&lease.scope.tenant) {
            line.turns.remove(&(lease.place.turn, id.clone()));
            if line.is_empty() {
                self.lines.remove(&lease.scope.tenant);
            }
        }
    }

    fn put_ticket(&mut self, ticket: Arc<Ticket>) {
        self.drop_ticket(&ticket.id);
        self.places.insert(ticket.request.id.clone(), ticket.order);
        self.ticket_orders.insert(ticket.id.clone(), ticket.order);
        self.heads.extend(ticket.head_since.map(|at| (at, ticket.order)));
        if let Some(first) = &ticket.request.retry_of {
            self.retries.insert(first.clone(), ticket.request.id.clone());
        }
        let line = self.lines.entry(ticket.request.scope.tenant.clone()).or_default();
        line.by_age.insert(ticket.order, Arc::clone(&ticket));
        line.by_rank.insert((order::rank(&ticket.request), ticket.order), Arc::clone(&ticket));
        self.tickets.insert(ticket.order, ticket);
    }

    fn drop_ticket(&mut self, id: &TicketId) {
        let Some(order) = self.ticket_orders.remove(id) else { return };
        let Some(ticket) = self.tickets.remove(&order) else { return };
        self.places.remove(&ticket.request.id);
        let granted = self.requests.contains_key(&ticket.request.id);
        if let Some(first) = ticket.request.retry_of.as_ref().filter(|_| !granted) {
            self.retries.remove(first);
        }
        if let Some(at) = ticket.head_since {
            self.heads.remove(&(at, order));
        }
        let tenant = &ticket.request.scope.tenant;
        if let Some(line) = self.lines.get_mut(tenant) {
            line.by_age.remove(&order);
            line.by_rank.remove(&(order::rank(&ticket.request), order));
            if line.is_empty() {
                self.lines.remove(tenant);
            }
        }
    }

    /// The lease of that id.
    #[must_use]
    pub fn lease(&self, id: &LeaseId) -> Option<&Arc<Lease>> {
        self.live.get(id).or_else(|| self.ended.get(id))
    }

    /// The lease that a request was granted.
    #[must_use]
    pub fn lease_of(&self, request: &RequestId) -> Option<&Arc<Lease>> {
        self.requests.get(request).and_then(|id| self.lease(id))
    }

    /// Those that hold something, oldest first.
    pub fn live(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.live.values()
    }

    /// The sizes of those that hold something.
    pub(crate) const fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Those that ended and are remembered, oldest first.
    pub fn ended(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.ended.values()
    }

    /// The ended ones that are remembered, those first that ended first.
    pub(super) fn by_end(&self) -> impl Iterator<Item = &(Timestamp, LeaseId)> {
        self.ends.iter()
    }

    /// Who tries this lease again.
    pub(super) fn retried_by(&self, first: &LeaseId) -> Option<&RequestId> {
        self.retries.get(first)
    }

    /// How many hold something.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.live.len()
    }

    /// How many ended ones are remembered.
    #[must_use]
    pub fn ended_count(&self) -> usize {
        self.ended.len()
    }

    /// All that wait, in the order in which they asked; [`super::View::queue`] has them in the order of their turns.
    pub fn tickets(&self) -> impl Iterator<Item = &Arc<Ticket>> {
        self.tickets.values()
    }

    /// How many wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.tickets.len()
    }

    /// The ticket of that id.
    #[must_use]
    pub fn ticket(&self, id: &TicketId) -> Option<&Arc<Ticket>> {
        self.ticket_orders.get(id).and_then(|order| self.tickets.get(order))
    }

    /// The ticket that a request has.
    #[must_use]
    pub fn ticket_of(&self, request: &RequestId) -> Option<&Arc<Ticket>> {
        self.places.get(request).and_then(|order| self.tickets.get(order))
    }

    /// What a tenant's live leases hold.
    #[must_use]
    pub fn held_by(&self, tenant: &str, facts: &Facts) -> Holds {
        self.line(tenant).map(|line| line.holds(facts)).unwrap_or_default()
    }

    pub(super) fn line(&self, tenant: &str) -> Option<&Line> {
        self.lines.get(tenant)
    }

    /// The same with the name as the ledger has it.
    pub(super) fn named_line(&self, tenant: &str) -> Option<(&str, &Line)> {
        self.lines.get_key_value(tenant).map(|(name, line)| (name.as_str(), line))
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = (&str, &Line)> {
        self.lines.iter().map(|(tenant, line)| (tenant.as_str(), line))
    }

    /// The tickets that are or were at the head, in the order in which they came there.
    pub(super) fn heads(&self) -> impl Iterator<Item = &Arc<Ticket>> {
        self.heads.iter().filter_map(|(_, order)| self.tickets.get(order))
    }

    /// How far the turns have come.
    pub(super) fn clock(&self) -> u64 {
        self.clocks.last().map_or(0, |(clock, _)| *clock)
    }

    /// The next place in the queue: past all that are or were in it.
    #[must_use]
    pub(super) fn next_order(&self) -> u64 {
        let waits = self.tickets.last_key_value().map_or(0, |(order, _)| *order);
        self.lease_orders.last().map_or(0, |(order, _)| *order).max(waits).saturating_add(1)
    }

    /// The mode that was set.
    #[must_use]
    pub const fn mode(&self) -> &ModeState {
        &self.mode
    }

    /// Whether the mode lets builds in at `now`.
    #[must_use]
    pub fn accepts(&self, now: Timestamp) -> bool {
        self.mode.mode == Mode::Accepting || self.mode.until.is_some_and(|until| until <= now)
    }

    /// The mode at `now`: one with an end goes back to accepting by itself.
    #[must_use]
    pub fn mode_at(&self, now: Timestamp) -> ModeState {
        match self.mode.until {
            Some(until) if until <= now => ModeState::default(),
            _ => self.mode.clone(),
        }
    }
}
