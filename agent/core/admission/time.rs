//! What time does to leases and tickets.
//!
//! Deadlines are times of the node's clock, and that clock can be set back (a machine that started with a wrong one
//! learns the right one later). So no deadline may lie further ahead than if it were set now: else a reservation of
//! five minutes would hold its room for as long as the clock was wrong.

use alloc::sync::Arc;
use alloc::vec;

use crate::quantity::{Span, Timestamp};
use crate::reason::{Code, Reason};
use crate::sizing::Outcome;

use super::{Event, Facts, Lease, LeaseState, Ticket};

/// How long a reservation may stay unbound at most, whatever was asked.
pub const BIND_WITHIN_MAX: Span = Span::minutes(30);
/// How long a grant out of waiting stays unconfirmed.
pub(super) const CONFIRM_WITHIN: Span = Span::seconds(30);
/// Who asks again in place of awaiting is told to do so before a grant in between has gone to the next one.
pub(super) const ASK_WITHIN: Span = Span::seconds(25);
/// How long after its time budget a lease whose holder is still there goes on counting.
pub(super) const END_GRACE: Span = Span::seconds(30);

/// Whether its time budget is used up, with or without the grace.
pub(super) fn past_budget(lease: &Lease, now: Timestamp) -> bool {
    lease.ends_at.is_some_and(|at| at <= now)
}

/// The end of a live lease whose time is over.
pub(super) fn run_out(lease: &Lease, facts: &Facts, now: Timestamp) -> Option<Event> {
    let unconfirmed = lease.confirm_by.is_some_and(|by| by < now);
    match lease.state {
        LeaseState::Reserved if unconfirmed || lease.bind_by < now => {
            let words = if unconfirmed { "nobody confirmed the grant in time" } else { "it was not bound in time" };
            Some(ended(lease, LeaseState::Expired, (Outcome::Lost, Code::LeaseExpired, words), facts, now))
        }
        LeaseState::Bound if facts.end_at_budget && lease.ends_at.is_some_and(|at| at.plus(END_GRACE) < now) => {
            let why = (Outcome::TimeBudgetExceeded, Code::TimeBudgetExceeded, "its time budget was used up");
            Some(ended(lease, LeaseState::Expired, why, facts, now))
        }
        _ => None,
    }
}

/// A lease that nobody released, ended at `now`, with what was seen of it.
pub(super) fn ended(
    lease: &Lease,
    state: LeaseState,
    (outcome, code, words): (Outcome, Code, &str),
    facts: &Facts,
    now: Timestamp,
) -> Event {
    let reasons = vec![Reason::new(code, lease.id.as_str(), words)];
    let measured = facts.measured(lease, None, now);
    let ended = Lease { state, outcome: Some(outcome), reasons, ended_at: Some(now), confirm_by: None, ..measured };
    Event::Lease(Arc::new(ended))
}

/// The same lease with nearer deadlines, where the clock was set back.
pub(super) fn drawn_in(lease: &Lease, now: Timestamp) -> Option<Event> {
    let confirm_by = lease.confirm_by.map(|by| by.min(now.plus(CONFIRM_WITHIN)));
    let bind_by = match lease.state {
        LeaseState::Reserved => lease.bind_by.min(now.plus(BIND_WITHIN_MAX)),
        _ => lease.bind_by,
    };
    let ends_at = lease.ends_at.map(|at| at.min(now.plus(lease.sizing.size.time_budget)));
    let same = (confirm_by, bind_by, ends_at) == (lease.confirm_by, lease.bind_by, lease.ends_at);
    (!same).then(|| Event::Lease(Arc::new(Lease { confirm_by, bind_by, ends_at, ..lease.clone() })))
}

/// A ticket lives for twice its last hint.
pub(super) const fn lasting(hint: Span, now: Timestamp) -> Timestamp {
    now.plus(hint).plus(hint)
}

/// The same ticket, gone at `latest`, where it would live on after that; nor does it come to the head in the future.
pub(super) fn sooner(ticket: &Ticket, latest: Timestamp, now: Timestamp) -> Option<Event> {
    let expires_at = ticket.expires_at.min(latest);
    let head_since = ticket.head_since.map(|at| at.min(now));
    let near = || Ticket { expires_at, head_since, ..ticket.clone() };
    ((expires_at, head_since) != (ticket.expires_at, ticket.head_since)).then(|| Event::Ticket(Arc::new(near())))
}
