//! Commands in, replies and events out.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::identity::{LeaseId, RequestId, Scope, TicketId};
use crate::quantity::{Span, Timestamp};
use crate::reason::{Code, Reason};
use crate::sizing::{Outcome, Sizing};

use super::fit::HINT_MAX;
use super::time::{BIND_WITHIN_MAX, CONFIRM_WITHIN, drawn_in, ended, past_budget, run_out, sooner};
use super::{Event, Facts, Fit, Holder, Lease, LeaseState, Ledger, ModeState, Source, Ticket, Usage};

/// How long an ended lease and its request id are remembered.
pub(super) const REMEMBERED: Span = Span::hours(24);
/// The most ended leases that are remembered; the oldest go first.
pub(super) const REMEMBERED_MAX: usize = 10_000;

/// A request with all that is needed to decide it: resolved and sized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The caller's id.
    pub id: RequestId,
    /// Over its content.
    pub digest: String,
    /// What is built.
    pub source: Source,
    /// How big.
    pub sizing: Sizing,
    /// Who for.
    pub scope: Scope,
    /// Which of several things in the repository.
    pub target: String,
    /// The directories of the tenant that it asks for.
    pub cache_keys: Vec<String>,
    /// 1 for the first.
    pub attempt: u32,
    /// How long a grant may stay unbound.
    pub bind_within: Span,
}

/// What somebody, or the clock, wants of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// May this build start? New ids come with it: the core makes no randomness.
    Admit {
        /// The build.
        request: Box<Request>,
        /// The id of the lease, where one is granted.
        lease: LeaseId,
        /// The id of the ticket, where it may take one.
        ticket: Option<TicketId>,
    },
    /// A caller who waits is still there.
    Await(RequestId),
    /// A caller got the grant that it waited for.
    Confirm(LeaseId),
    /// The build begins.
    Bind(LeaseId, Holder),
    /// The reservation is still wanted.
    Renew(LeaseId, Span),
    /// The build ended.
    Release {
        /// Which.
        lease: LeaseId,
        /// How.
        outcome: Outcome,
        /// The build's own code.
        exit_code: Option<i32>,
        /// What it used.
        usage: Option<Usage>,
    },
    /// These holders are gone without a word.
    Gone(Vec<LeaseId>, Code),
    /// A place in the queue is given up.
    Cancel(TicketId),
    /// The journal comes near its bound: so many of the oldest ended leases are forgotten before their time.
    Forget(usize),
    /// The operator's wish.
    SetMode(ModeState),
    /// Time passed, or facts changed: what ran out ends, and whoever waits first and fits is granted.
    Advance {
        /// Ids for grants, one a ticket that may be granted now.
        leases: Vec<LeaseId>,
    },
}

/// What the caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`Command::Admit`].
    Answer(Answer),
    /// The lease as it is now.
    Lease(Box<Lease>),
    /// Done.
    Done,
    /// The command makes no sense.
    Refused(Refused),
}

/// Granted, wait or rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A lease.
    Granted(Box<Lease>),
    /// Not now.
    Waiting(Box<Waiting>),
    /// Not here, ever.
    Rejected(Vec<Reason>, Option<Box<Sizing>>),
}

/// Why, for how long, at which place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The place, where one was taken.
    pub ticket: Option<Ticket>,
    /// 1 is the head.
    pub position: usize,
    /// When to ask again.
    pub retry_after: Span,
    /// Why.
    pub reasons: Vec<Reason>,
    /// How big it was found to be.
    pub sizing: Sizing,
}

/// Why a command makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The request id was used for something else.
    #[error("request id {0} was used for a request with other content: use a new id for a new request")]
    Conflict(RequestId),
    /// There is no such lease.
    #[error("no lease {0}: it never was, or it ended more than 24 hours ago")]
    NoLease(LeaseId),
    /// There is no such ticket.
    #[error("no ticket {0}: it was granted, cancelled or ran out")]
    NoTicket(TicketId),
    /// The lease ended.
    #[error("lease {0} has ended ({1:?}): ask for admission again under a new request id")]
    Ended(LeaseId, LeaseState),
    /// Somebody else holds it.
    #[error("lease {0} is bound to another holder")]
    BoundToAnother(LeaseId),
}

impl Ledger {
    /// What to reply, and what makes it so.
    #[must_use]
    pub fn decide(&self, command: &Command, facts: &Facts, now: Timestamp) -> (Reply, Vec<Event>) {
        match command {
            Command::Admit { request, lease, ticket } => self.admit(request, lease, ticket.as_ref(), facts, now),
            Command::Await(request) => self.touch(request, facts, now),
            Command::Confirm(id) => self.with(id, confirm),
            Command::Bind(id, holder) => self.with(id, |lease| bind(lease, holder, now)),
            Command::Renew(id, span) => self.with(id, |lease| renew(lease, *span, now)),
            Command::Release { lease, outcome, exit_code, usage } => match self.lease(lease) {
                None => refuse(Refused::NoLease(lease.clone())),
                Some(held) => release(held, *outcome, *exit_code, *usage, now),
            },
            Command::Gone(ids, code) => (Reply::Done, self.gone(ids, *code, now)),
            Command::Cancel(id) => match self.tickets().find(|ticket| ticket.id == *id) {
                None => refuse(Refused::NoTicket(id.clone())),
                Some(_) => (Reply::Done, vec![Event::TicketGone(id.clone())]),
            },
            Command::Forget(count) => {
                let oldest = self.ended().take(*count);
                (Reply::Done, oldest.map(|lease| Event::Forgotten(lease.id.clone())).collect())
            }
            Command::SetMode(mode) => (Reply::Done, vec![Event::Mode(mode.clone())]),
            Command::Advance { leases } => (Reply::Done, self.advance(leases, facts, now)),
        }
    }

    fn admit(
        &self,
        request: &Request,
        id: &LeaseId,
        ticket: Option<&TicketId>,
        facts: &Facts,
        now: Timestamp,
    ) -> (Reply, Vec<Event>) {
        if let Some(lease) = self.lease_of(&request.id) {
            return match lease.digest == request.digest {
                false => refuse(Refused::Conflict(request.id.clone())),
                true => {
                    let (lease, events) = confirm(lease);
                    (Reply::Answer(Answer::Granted(Box::new(lease))), events)
                }
            };
        }
        if let Some((ahead, held)) = self.place_of(&request.id) {
            if held.request.digest != request.digest {
                return refuse(Refused::Conflict(request.id.clone()));
            }
            return self.offer(&held.request, id, Some(Ticket::clone(held)), ahead, facts, now);
        }
        let queued = self.queued();
        let full = queued >= facts.tickets_max;
        let new = ticket.filter(|_| !full).map(|ticket| Ticket {
            id: ticket.clone(),
            order: self.next_order(),
            request: request.clone(),
            created_at: now,
            expires_at: now,
        });
        let (reply, events) = self.offer(request, id, new, queued, facts, now);
        match reply {
            Reply::Answer(Answer::Waiting(mut waiting)) if ticket.is_some() && full => {
                let message = format!("{queued} builds wait, no more places are given: ask again later");
                waiting.reasons.push(Reason::new(Code::QueueFull, "queue", message));
                (Reply::Answer(Answer::Waiting(waiting)), events)
            }
            reply => (reply, events),
        }
    }

    /// Grants `request`, or says why not; `ticket` is the place that it has or takes, `ahead` how many are before it.
    fn offer(
        &self,
        request: &Request,
        id: &LeaseId,
        ticket: Option<Ticket>,
        ahead: usize,
        facts: &Facts,
        now: Timestamp,
    ) -> (Reply, Vec<Event>) {
        match self.fit(request.sizing.size.amounts, ahead, facts, now) {
            Fit::Now => {
                let lease = grant(request, id, None, now);
                let mut events = vec![Event::Lease(Arc::new(lease.clone()))];
                events.extend(self.place_of(&request.id).map(|(_, held)| Event::TicketGone(held.id.clone())));
                (Reply::Answer(Answer::Granted(Box::new(lease))), events)
            }
            Fit::Never(reasons) => {
                let gone = self.place_of(&request.id).map(|(_, held)| Event::TicketGone(held.id.clone()));
                let answer = Answer::Rejected(reasons, Some(Box::new(request.sizing.clone())));
                (Reply::Answer(answer), gone.into_iter().collect())
            }
            Fit::Later { reasons, retry_after } => {
                let ticket = ticket.map(|ticket| Ticket { expires_at: lasting(retry_after, now), ..ticket });
                let event = ticket.clone().map(|ticket| Event::Ticket(Arc::new(ticket)));
                let position = if ticket.is_some() { ahead.saturating_add(1) } else { 0 };
                let sizing = request.sizing.clone();
                let waiting = Waiting { ticket, position, retry_after, reasons, sizing };
                (Reply::Answer(Answer::Waiting(Box::new(waiting))), event.into_iter().collect())
            }
        }
    }

    /// A caller who waits is told how things stand, and its place lives on.
    fn touch(&self, request: &RequestId, facts: &Facts, now: Timestamp) -> (Reply, Vec<Event>) {
        if let Some(lease) = self.lease_of(request) {
            let (lease, events) = confirm(lease);
            return (Reply::Answer(Answer::Granted(Box::new(lease))), events);
        }
        let Some((ahead, ticket)) = self.place_of(request) else { return (Reply::Done, Vec::new()) };
        let sizing = ticket.request.sizing.clone();
        let (reasons, retry_after) = match self.fit(sizing.size.amounts, ahead, facts, now) {
            Fit::Now => (Vec::new(), Span::seconds(5)), // the next advance grants it
            Fit::Later { reasons, retry_after } => (reasons, retry_after),
            Fit::Never(reasons) => {
                let gone = vec![Event::TicketGone(ticket.id.clone())];
                return (Reply::Answer(Answer::Rejected(reasons, Some(Box::new(sizing)))), gone);
            }
        };
        let ticket = Ticket { expires_at: lasting(retry_after, now), ..Ticket::clone(ticket) };
        let event = Event::Ticket(Arc::new(ticket.clone()));
        let position = ahead.saturating_add(1);
        let waiting = Waiting { ticket: Some(ticket), position, retry_after, reasons, sizing };
        (Reply::Answer(Answer::Waiting(Box::new(waiting))), vec![event])
    }

    /// A change to a live lease.
    fn with(&self, id: &LeaseId, change: impl FnOnce(&Lease) -> (Lease, Vec<Event>)) -> (Reply, Vec<Event>) {
        match self.lease(id) {
            None => refuse(Refused::NoLease(id.clone())),
            Some(lease) if !lease.live() => refuse(Refused::Ended(id.clone(), lease.state)),
            Some(lease) => match change(lease) {
                (now, _) if now.holder != lease.holder && lease.holder.is_some() => {
                    refuse(Refused::BoundToAnother(id.clone()))
                }
                (now, events) => (Reply::Lease(Box::new(now)), events),
            },
        }
    }

    fn gone(&self, ids: &[LeaseId], code: Code, now: Timestamp) -> Vec<Event> {
        let ids: BTreeSet<&LeaseId> = ids.iter().collect();
        let lost = self.live().filter(|lease| ids.contains(&lease.id));
        lost.map(|lease| {
            let (outcome, code, words) = match code {
                Code::NodeRebooted => (Outcome::Lost, code, "the node booted since it was granted"),
                _ if past_budget(lease, now) => {
                    (Outcome::TimeBudgetExceeded, Code::TimeBudgetExceeded, "it was ended at its time budget")
                }
                _ => (Outcome::Lost, code, "its holder ended without a release"),
            };
            ended(lease, LeaseState::Orphaned, outcome, code, words, now)
        })
        .collect()
    }

    fn advance(&self, ids: &[LeaseId], facts: &Facts, now: Timestamp) -> Vec<Event> {
        let mut events: Vec<Event> = self
            .live()
            .filter_map(|lease| run_out(lease, facts.end_at_budget, now).or_else(|| drawn_in(lease, now)))
            .collect();
        let surplus = self.ended_count().saturating_sub(REMEMBERED_MAX);
        let old = |lease: &Lease| lease.ended_at.is_some_and(|at| now.since(at) >= REMEMBERED);
        let forgotten = self.ended().enumerate().filter(|(place, lease)| *place < surplus || old(lease));
        events.extend(forgotten.map(|(_, lease)| Event::Forgotten(lease.id.clone())));
        events.extend(self.tickets().filter_map(|ticket| match ticket.expires_at < now {
            true => Some(Event::TicketGone(ticket.id.clone())),
            false => sooner(ticket, lasting(HINT_MAX, now)),
        }));
        if self.queued() == 0 {
            return events;
        }
        let mut after = self.clone();
        events.iter().cloned().for_each(|event| after.apply(event));
        for id in ids {
            let Some(head) = after.due(facts, now) else { break };
            let lease = grant(&head.request, id, Some(now.plus(CONFIRM_WITHIN)), now);
            for event in [Event::Lease(Arc::new(lease)), Event::TicketGone(head.id.clone())] {
                after.apply(event.clone());
                events.push(event);
            }
        }
        events
    }

    /// The ticket whose turn it is, where it may start now. One that fits no more (the node became smaller) is told so
    /// when it asks; meanwhile it is in nobody's way.
    fn due(&self, facts: &Facts, now: Timestamp) -> Option<Arc<Ticket>> {
        let mut judged =
            self.tickets().map(|ticket| (ticket, self.fit(ticket.request.sizing.size.amounts, 0, facts, now)));
        match judged.find(|(_, fit)| !matches!(fit, Fit::Never(_)))? {
            (ticket, Fit::Now) => Some(Arc::clone(ticket)),
            _ => None,
        }
    }
}

const fn refuse(why: Refused) -> (Reply, Vec<Event>) {
    (Reply::Refused(why), Vec::new())
}

/// A ticket lives for twice its last hint.
const fn lasting(hint: Span, now: Timestamp) -> Timestamp {
    now.plus(hint).plus(hint)
}

fn grant(request: &Request, id: &LeaseId, confirm_by: Option<Timestamp>, now: Timestamp) -> Lease {
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
        in_use: None,
        peak: None,
        outcome: None,
        exit_code: None,
        reasons: Vec::new(),
    }
}

fn changed(lease: &Lease, now: Lease) -> (Lease, Vec<Event>) {
    let events = if now == *lease { Vec::new() } else { vec![Event::Lease(Arc::new(now.clone()))] };
    (now, events)
}

fn confirm(lease: &Lease) -> (Lease, Vec<Event>) {
    changed(lease, Lease { confirm_by: None, ..lease.clone() })
}

fn bind(lease: &Lease, holder: &Holder, now: Timestamp) -> (Lease, Vec<Event>) {
    let bound = Lease {
        state: LeaseState::Bound,
        confirm_by: None,
        bound_at: lease.bound_at.or(Some(now)),
        ends_at: lease.ends_at.or(Some(now.plus(lease.sizing.size.time_budget))),
        holder: Some(holder.clone()),
        ..lease.clone()
    };
    changed(lease, bound)
}

/// A reservation lives on from now; a bound lease has nothing to renew.
fn renew(lease: &Lease, span: Span, now: Timestamp) -> (Lease, Vec<Event>) {
    match lease.state {
        LeaseState::Reserved => {
            changed(lease, Lease { bind_by: now.plus(span.min(BIND_WITHIN_MAX)), confirm_by: None, ..lease.clone() })
        }
        _ => (lease.clone(), Vec::new()),
    }
}

/// Ends a lease. One that has ended by itself keeps its end and takes the figures, so that a release is never lost.
fn release(
    lease: &Lease,
    outcome: Outcome,
    exit_code: Option<i32>,
    usage: Option<Usage>,
    now: Timestamp,
) -> (Reply, Vec<Event>) {
    let after = match lease.live() {
        true => Lease {
            state: LeaseState::Released,
            ended_at: Some(now),
            outcome: Some(outcome),
            exit_code,
            peak: usage,
            confirm_by: None,
            ..lease.clone()
        },
        false => Lease { peak: lease.peak.or(usage), exit_code: lease.exit_code.or(exit_code), ..lease.clone() },
    };
    let (lease, events) = changed(lease, after);
    (Reply::Lease(Box::new(lease)), events)
}
