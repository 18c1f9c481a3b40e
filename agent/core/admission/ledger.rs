//! The state, and the only way it changes.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;

use crate::identity::{LeaseId, RequestId, TicketId};
use crate::quantity::Timestamp;

use super::{Lease, Mode, ModeState, Ticket};

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

/// Leases, tickets and the mode.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ledger {
    live: BTreeMap<LeaseId, Arc<Lease>>,
    ended: BTreeMap<LeaseId, Arc<Lease>>,
    requests: BTreeMap<RequestId, LeaseId>,
    tickets: BTreeMap<u64, Arc<Ticket>>,
    places: BTreeMap<RequestId, u64>,
    mode: ModeState,
}

impl Ledger {
    /// The only way the ledger changes. Applying an event twice is the same as once.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Lease(lease) => {
                self.requests.insert(lease.request_id.clone(), lease.id.clone());
                let (to, from) = match lease.live() {
                    true => (&mut self.live, &mut self.ended),
                    false => (&mut self.ended, &mut self.live),
                };
                from.remove(&lease.id);
                to.insert(lease.id.clone(), lease);
            }
            Event::Forgotten(id) => {
                if let Some(lease) = self.ended.remove(&id) {
                    self.requests.remove(&lease.request_id);
                }
            }
            Event::Ticket(ticket) => {
                self.places.insert(ticket.request.id.clone(), ticket.order);
                self.tickets.insert(ticket.order, ticket);
            }
            Event::TicketGone(id) => {
                self.tickets.retain(|_, ticket| ticket.id != id);
                self.places.retain(|_, order| self.tickets.contains_key(order));
            }
            Event::Mode(mode) => self.mode = mode,
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

    /// Those that ended and are remembered, oldest first.
    pub fn ended(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.ended.values()
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

    /// The queue, head first.
    pub fn tickets(&self) -> impl Iterator<Item = &Arc<Ticket>> {
        self.tickets.values()
    }

    /// How many wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.tickets.len()
    }

    /// A request's ticket, and how many are before it.
    #[must_use]
    pub fn place_of(&self, request: &RequestId) -> Option<(usize, &Arc<Ticket>)> {
        let order = self.places.get(request)?;
        let ticket = self.tickets.get(order)?;
        Some((self.tickets.range(..order).count(), ticket))
    }

    /// The next place in the queue.
    #[must_use]
    pub(super) fn next_order(&self) -> u64 {
        self.tickets.last_key_value().map_or(1, |(order, _)| order.saturating_add(1))
    }

    /// The mode that was set.
    #[must_use]
    pub const fn mode(&self) -> &ModeState {
        &self.mode
    }

    /// The mode at `now`: one with an end goes back to accepting by itself.
    #[must_use]
    pub fn mode_at(&self, now: Timestamp) -> ModeState {
        match self.mode.until {
            Some(until) if until <= now => ModeState { mode: Mode::Accepting, until: None, note: String::new() },
            _ => self.mode.clone(),
        }
    }
}
