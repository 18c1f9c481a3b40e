//! What time does to the ledger, and who is next.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::identity::LeaseId;
use crate::quantity::{Span, Timestamp};

use super::fit::HINT_MAX;
use super::time::{CONFIRM_WITHIN, lasting, of_time, sooner};
use super::{Event, Facts, Ledger, Ticket};

/// How long an ended lease and its request id are remembered.
pub(super) const REMEMBERED: Span = Span::hours(24);
/// The most ended leases that are remembered; the oldest go first.
pub(super) const REMEMBERED_MAX: usize = 10_000;

impl Ledger {
    /// What has run out.
    pub(super) fn over(&self, facts: &Facts, now: Timestamp) -> Vec<Event> {
        let mode = self.mode_at(now);
        let mut events: Vec<Event> = self.live().filter_map(|lease| of_time(lease, &mode, facts, now)).collect();
        let surplus = self.ended_count().saturating_sub(REMEMBERED_MAX);
        let by_end = self.by_end().enumerate();
        let forgotten = by_end.take_while(|(place, (at, _))| *place < surplus || now.since(*at) >= REMEMBERED);
        events.extend(forgotten.map(|(_, (_, id))| Event::Forgotten(id.clone())));
        events.extend(self.tickets().filter_map(|ticket| match ticket.expires_at < now {
            true => Some(Event::TicketGone(ticket.id.clone())),
            false => sooner(ticket, lasting(HINT_MAX, now), now),
        }));
        events
    }

    /// The grant to whoever is next, where that one may start: its lease, and its ticket gone. Else the head is marked
    /// as such, where it was not yet: from then on its patience with those who pass it counts.
    pub(super) fn next(&self, id: &LeaseId, facts: &Facts, now: Timestamp) -> Vec<Event> {
        let view = self.view(facts, now);
        if let Some((ticket, _, in_turn)) = view.next() {
            return self.grant_ticket(ticket, id, *in_turn, Some(now.plus(CONFIRM_WITHIN)), facts, now).1;
        }
        let head = view.head().filter(|head| head.ticket.head_since.is_none());
        let marked = head.map(|head| Ticket { head_since: Some(now), ..Ticket::clone(&head.ticket) });
        marked.map(|ticket| Event::Ticket(Arc::new(ticket))).into_iter().collect()
    }
}
