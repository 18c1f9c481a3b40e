//! May this build start? And what those are told who wait.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::identity::{LeaseId, RequestId, TicketId};
use crate::quantity::{Span, Timestamp};
use crate::reason::{Code, Reason};

use super::decide::{confirm, refuse};
use super::fit::HINT_MAX;
use super::order::Standing;
use super::time::{BIND_WITHIN_MAX, lasting};
use super::view::{lasts, standing_of};
use super::{
    Answer, Event, Facts, Fit, Lease, LeaseState, Ledger, Place, Refused, Reply, Request, Ticket, View, Waiting, retry,
};

/// What a request that is new gets, and when one that takes a ticket is to ask again at the latest.
#[derive(Clone, Copy)]
pub(super) struct Ids<'a> {
    pub(super) lease: &'a LeaseId,
    pub(super) ticket: Option<&'a TicketId>,
    pub(super) ask_within: Span,
}

impl Ledger {
    pub(super) fn admit(&self, request: &Request, ids: Ids<'_>, facts: &Facts, now: Timestamp) -> (Reply, Vec<Event>) {
        if let Some(lease) = self.lease_of(&request.id) {
            return match lease.digest == request.digest {
                false => refuse(Refused::Conflict(request.id.clone())),
                true => {
                    let (lease, events) = confirm(lease);
                    (Reply::Answer(Answer::Granted(Box::new(lease))), events)
                }
            };
        }
        if let Some(held) = self.ticket_of(&request.id) {
            return match held.request.digest == request.digest {
                false => refuse(Refused::Conflict(request.id.clone())),
                true => self.ask_again(held, ids, facts, now),
            };
        }
        match self.as_retry(request, facts) {
            Err(refused) => refuse(refused),
            Ok(retry::Tried::Final(reasons)) => {
                let answer = Answer::Rejected(reasons, Some(Box::new(request.sizing.clone())));
                (Reply::Answer(answer), Vec::new())
            }
            Ok(retry::Tried::Again(request, first)) => self.newcomer(&request, first, ids, facts, now),
            Ok(retry::Tried::First) => {
                let first = Place { order: self.next_order(), asked_at: now, ..Place::default() };
                self.newcomer(request, first, ids, facts, now)
            }
        }
    }

    /// One that neither has a lease nor waits; `first` is where it stands.
    fn newcomer(
        &self,
        request: &Request,
        first: Place,
        ids: Ids<'_>,
        facts: &Facts,
        now: Timestamp,
    ) -> (Reply, Vec<Event>) {
        let view = self.view(facts, now);
        let size = &request.sizing.size;
        let standing = standing_of(request, first.order, &view.totals.budget);
        let (ahead, fit) =
            view.newcomer(&standing, size.amounts, lasts(size, request.bind_within), !request.terms.pod.is_empty());
        match fit {
            Fit::Now => {
                let in_turn = view.head().is_none_or(|_| ahead == 0);
                let place = self.granted_place(&standing, first.asked_at, in_turn, facts, now);
                let lease = grant(request, ids.lease, place, None, now);
                let event = Event::Lease(Arc::new(lease.clone()));
                (Reply::Answer(Answer::Granted(Box::new(lease))), vec![event])
            }
            Fit::Never(reasons) => {
                let answer = Answer::Rejected(reasons, Some(Box::new(request.sizing.clone())));
                (Reply::Answer(answer), Vec::new())
            }
            Fit::Later { mut reasons, retry_after } => {
                let full = ids.ticket.and_then(|_| self.queue_full(&request.scope.tenant, facts));
                let ticket = ids.ticket.filter(|_| full.is_none());
                let retry_after = if ticket.is_some() { retry_after.min(ids.ask_within) } else { retry_after };
                let ticket = ticket.map(|ticket| Ticket {
                    id: ticket.clone(),
                    order: first.order,
                    request: request.clone(),
                    created_at: first.asked_at,
                    expires_at: lasting(retry_after, now),
                    joined: self.clock(),
                    cost: standing.cost,
                    head_since: None,
                });
                reasons.extend(full);
                let event = ticket.clone().map(|ticket| Event::Ticket(Arc::new(ticket)));
                let position = if ticket.is_some() { ahead.saturating_add(1) } else { 0 };
                let sizing = request.sizing.clone();
                let waiting = Waiting { ticket, position, retry_after, reasons, sizing };
                (Reply::Answer(Answer::Waiting(Box::new(waiting))), event.into_iter().collect())
            }
        }
    }

    /// Why no more places are given, where none are.
    fn queue_full(&self, tenant: &str, facts: &Facts) -> Option<Reason> {
        let queued = self.queued();
        if queued >= facts.tickets_max {
            let message = format!("{queued} builds wait, no more places are given: ask again later");
            return Some(Reason::new(Code::QueueFull, "queue", message));
        }
        let (own, max) =
            (self.line(tenant).map_or(0, super::ledger::Line::queued), facts.tenants.of(tenant).tickets_max?);
        let message = || format!("{own} builds of tenant {tenant:?} wait, it gets no more places: ask again later");
        (own >= max).then(|| Reason::new(Code::QueueFull, tenant, message()))
    }

    /// One that waits asks for its lease once more.
    fn ask_again(&self, held: &Ticket, ids: Ids<'_>, facts: &Facts, now: Timestamp) -> (Reply, Vec<Event>) {
        let view = self.view(facts, now);
        if let Some((ticket, _, in_turn)) = view.next().filter(|(ticket, ..)| ticket.id == held.id) {
            let (lease, events) = self.grant_ticket(ticket, ids.lease, *in_turn, None, facts, now);
            return (Reply::Answer(Answer::Granted(Box::new(lease))), events);
        }
        Self::told(&view, held, ids.ask_within)
    }

    /// A caller who waits is told how things stand, and its place lives on.
    pub(super) fn touch(&self, request: &RequestId, facts: &Facts, now: Timestamp) -> (Reply, Vec<Event>) {
        if let Some(lease) = self.lease_of(request) {
            let (lease, events) = confirm(lease);
            return (Reply::Answer(Answer::Granted(Box::new(lease))), events);
        }
        match self.ticket_of(request) {
            Some(ticket) => Self::told(&self.view(facts, now), ticket, HINT_MAX),
            None => (Reply::Done, Vec::new()),
        }
    }

    fn told(view: &View<'_>, ticket: &Ticket, ask_within: Span) -> (Reply, Vec<Event>) {
        let (contender, ahead) = view.of_ticket(ticket);
        let sizing = ticket.request.sizing.clone();
        let (reasons, retry_after) = match view.judge(&contender, ahead) {
            // Its own grant is the next one.
            Fit::Now if view.next().is_some_and(|(next, ..)| next.id == ticket.id) => (Vec::new(), Span::seconds(5)),
            Fit::Now => (vec![view.queue_ahead(ahead, None)], Span::seconds(5)),
            Fit::Later { reasons, retry_after } => (reasons, retry_after.min(ask_within)),
            Fit::Never(reasons) => {
                let gone = vec![Event::TicketGone(ticket.id.clone())];
                return (Reply::Answer(Answer::Rejected(reasons, Some(Box::new(sizing)))), gone);
            }
        };
        let ticket = Ticket { expires_at: lasting(retry_after, view.now), ..ticket.clone() };
        let event = Event::Ticket(Arc::new(ticket.clone()));
        let position = ahead.saturating_add(1);
        let waiting = Waiting { ticket: Some(ticket), position, retry_after, reasons, sizing };
        (Reply::Answer(Answer::Waiting(Box::new(waiting))), vec![event])
    }

    /// The lease of one that waited, and what makes it so.
    pub(super) fn grant_ticket(
        &self,
        ticket: &Ticket,
        id: &LeaseId,
        in_turn: bool,
        confirm_by: Option<Timestamp>,
        facts: &Facts,
        now: Timestamp,
    ) -> (Lease, Vec<Event>) {
        let place = self.granted_place(&Standing::of(ticket), ticket.created_at, in_turn, facts, now);
        let lease = grant(&ticket.request, id, place, confirm_by, now);
        let events = vec![Event::Lease(Arc::new(lease.clone())), Event::TicketGone(ticket.id.clone())];
        (lease, events)
    }
}

fn grant(request: &Request, id: &LeaseId, place: Place, confirm_by: Option<Timestamp>, now: Timestamp) -> Lease {
    Lease {
        id: id.clone(),
        request_id: request.id.clone(),
        digest: request.digest.clone(),
        state: LeaseState::Reserved,
        sizing: request.sizing.clone(),
        source: request.source.clone(),
        scope: request.scope.clone(),
        target: request.target.clone(),
        cache_keys: request.cache_keys.clone(),
        attempt: request.attempt,
        created_at: now,
        confirm_by,
        bind_by: now.plus(request.bind_within.min(BIND_WITHIN_MAX)),
        bound_at: None,
        ends_at: None,
        ended_at: None,
        holder: None,
        peak: None,
        peak_at_least: false,
        outcome: None,
        exit_code: None,
        reasons: Vec::new(),
        place,
        expected: request.expected,
        retry_of: request.retry_of.clone(),
        no_retry: request.no_retry,
        terms: request.terms.clone(),
        controller: String::new(),
        unheld_since: None,
        retry: None,
    }
}
