//! What time does to leases and tickets.
//!
//! Deadlines are times of the node's clock, and that clock can be set back (a machine that started with a wrong one
//! learns the right one later). So no deadline may lie further ahead than if it were set now: else a reservation of
//! five minutes would hold its room for as long as the clock was wrong.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::quantity::{Resource, Span, Timestamp};
use crate::reason::{Code, Reason};
use crate::sizing::{Outcome, millis};

use super::{Event, Facts, Holder, Lease, LeaseState, Mode, ModeState, Ticket};

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
fn run_out(lease: &Lease, facts: &Facts, now: Timestamp) -> Option<Event> {
    let unconfirmed = lease.confirm_by.is_some_and(|by| by < now);
    match lease.state {
        LeaseState::Reserved if unconfirmed || lease.bind_by < now => {
            let words = if unconfirmed { "nobody confirmed the grant in time" } else { "it was not bound in time" };
            Some(ended(lease, LeaseState::Expired, (Outcome::Lost, Code::LeaseExpired, words), facts, now))
        }
        // A pod is evicted, and has the grace that it asked for: its lease ends with it, where pods are seen to end.
        LeaseState::Bound if facts.pods.is_some() && matches!(lease.holder, Some(Holder::Pod { .. })) => None,
        LeaseState::Bound if facts.end_at_budget && lease.ends_at.is_some_and(|at| at.plus(END_GRACE) < now) => {
            let why = time_is_over(lease, "its time budget was used up");
            Some(ended(lease, LeaseState::Expired, why, facts, now))
        }
        _ => None,
    }
}

/// What time does to a live lease: one thing at once, the next when time is looked at again.
pub(super) fn of_time(lease: &Lease, mode: &ModeState, facts: &Facts, now: Timestamp) -> Option<Event> {
    run_out(lease, facts, now)
        .or_else(|| drained(lease, mode, facts, now))
        .or_else(|| drawn_in(lease, now))
        .or_else(|| warned(lease, now))
}

/// How one ended that had no more time.
pub(super) fn time_is_over(lease: &Lease, words: &'static str) -> (Outcome, Code, &'static str) {
    match lease.was_told(Code::ModeDrain) {
        true => (Outcome::Evicted, Code::ModeDrain, "it still ran at the deadline of the drain"),
        false => (Outcome::TimeBudgetExceeded, Code::TimeBudgetExceeded, words),
    }
}

/// At the deadline of a drain nothing begins any more, and what runs has no more time, where time ends anything.
fn drained(lease: &Lease, mode: &ModeState, facts: &Facts, now: Timestamp) -> Option<Event> {
    if mode.mode != Mode::Drain || mode.deadline.is_none_or(|deadline| deadline > now) {
        return None;
    }
    if lease.state == LeaseState::Reserved {
        let why = (Outcome::Evicted, Code::ModeDrain, "it was not bound by the deadline of the drain");
        return Some(ended(lease, LeaseState::Expired, why, facts, now));
    }
    let is_to_end = facts.end_at_budget && lease.ends_at.is_some_and(|at| at > now);
    let reason = || Reason::new(Code::ModeDrain, lease.id.as_str(), "the deadline of the drain has come: it is ended");
    is_to_end.then(|| Event::Lease(Arc::new(Lease { ends_at: Some(now), ..told(lease, reason()) })))
}

/// The same lease, told once that nine tenths of its time are used up.
fn warned(lease: &Lease, now: Timestamp) -> Option<Event> {
    let ends_at = lease.ends_at.filter(|_| lease.state == LeaseState::Bound)?;
    let budget = lease.sizing.size.time_budget;
    let left = Span(ends_at.0.saturating_sub(now.0).max(0));
    if left.0 > budget.0 / 10 || lease.was_told(Code::TimeBudgetNear) || lease.was_told(Code::ModeDrain) {
        return None;
    }
    let (used, budget) = (millis(budget).saturating_sub(millis(left)), millis(budget));
    let message = format!("nine tenths of its time budget of {} are used up", Resource::Time.show(budget));
    let reason = Reason::new(Code::TimeBudgetNear, lease.id.as_str(), message).about(Resource::Time, used, budget);
    Some(Event::Lease(Arc::new(told(lease, Reason { expected_until: Some(ends_at), ..reason }))))
}

fn told(lease: &Lease, reason: Reason) -> Lease {
    let mut reasons = lease.reasons.clone();
    reasons.push(reason);
    Lease { reasons, ..lease.clone() }
}

/// A lease that nobody released, ended at `now`, with what was seen of it.
pub(super) fn ended(
    lease: &Lease,
    state: LeaseState,
    (outcome, code, words): (Outcome, Code, &str),
    facts: &Facts,
    now: Timestamp,
) -> Event {
    // What it was told before stays told.
    let mut reasons: Vec<Reason> = lease.reasons.iter().filter(|reason| reason.code != code).cloned().collect();
    reasons.push(Reason::new(code, lease.id.as_str(), words));
    let measured = facts.measured(lease, None, now);
    let ended = Lease { state, outcome: Some(outcome), reasons, ended_at: Some(now), confirm_by: None, ..measured };
    Event::Lease(Arc::new(ended))
}

/// The same lease with nearer deadlines, where the clock was set back.
fn drawn_in(lease: &Lease, now: Timestamp) -> Option<Event> {
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
