//! Commands in, replies and events out.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::cluster::Pod;
use crate::identity::{LeaseId, TicketId};
use crate::quantity::{Span, Timestamp};
use crate::reason::Code;
use crate::sizing::{Outcome, Sizing};

use super::admit::Ids;
use super::fit::HINT_MAX;
use super::time::{ASK_WITHIN, BIND_WITHIN_MAX, ended, past_budget, time_is_over};
use super::{
    Command, Event, Facts, Holder, Lease, LeaseState, Ledger, Rebind, Refused, Reply, Request, Ticket, Usage, retry,
};

impl Ledger {
    /// What to reply, and what makes it so.
    #[must_use]
    pub fn decide(&self, command: &Command, facts: &Facts, now: Timestamp) -> (Reply, Vec<Event>) {
        match command {
            Command::Admit { request, lease, ticket, awaited } => {
                let ask_within = if *awaited { HINT_MAX } else { ASK_WITHIN };
                self.admit(request, Ids { lease, ticket: ticket.as_ref(), ask_within }, facts, now)
            }
            Command::Await(request) => self.touch(request, facts, now),
            Command::Bind { lease, holder, controller } => self.bind(lease, holder, controller, facts, now),
            Command::Unheld(id) => self.with(id, |lease| {
                let since = lease.unheld_since.or(Some(now));
                changed(lease, Lease { unheld_since: since, ..lease.clone() })
            }),
            Command::Renew(id, span) => self.with(id, |lease| renew(lease, *span, now)),
            Command::Release { lease, outcome, exit_code, usage } => match self.lease(lease) {
                None => refuse(Refused::NoLease(lease.clone())),
                Some(held) => release(held, *outcome, *exit_code, *usage, facts, now),
            },
            Command::Gone(ids, code) => (Reply::Done, self.gone(ids, *code, facts, now)),
            Command::Resize(sizes) => (Reply::Done, self.resized(sizes)),
            Command::Cancel(id) => match self.ticket(id) {
                None => refuse(Refused::NoTicket(id.clone())),
                Some(_) => (Reply::Done, vec![Event::TicketGone(id.clone())]),
            },
            Command::Forget(count) => {
                let oldest = self.by_end().take(*count);
                (Reply::Done, oldest.map(|(_, id)| Event::Forgotten(id.clone())).collect())
            }
            Command::SetMode(mode) => (Reply::Done, vec![Event::Mode(mode.clone())]),
            Command::Advance => (Reply::Done, self.over(facts, now)),
            Command::Next { lease } => (Reply::Done, self.next(lease, facts, now)),
        }
    }

    /// A change to a live lease.
    fn with(&self, id: &LeaseId, change: impl FnOnce(&Lease) -> (Lease, Vec<Event>)) -> (Reply, Vec<Event>) {
        match self.lease(id) {
            None => refuse(Refused::NoLease(id.clone())),
            Some(lease) if !lease.live() => refuse(Refused::Ended(id.clone(), lease.state)),
            Some(lease) => {
                let (now, events) = change(lease);
                (Reply::Lease(Box::new(now)), events)
            }
        }
    }

    /// One that is bound goes from pod to pod only where it was asked for so, and from one that ended.
    fn bind(
        &self,
        id: &LeaseId,
        holder: &Holder,
        controller: &str,
        facts: &Facts,
        now: Timestamp,
    ) -> (Reply, Vec<Event>) {
        let lives = |lease: &Lease| match (&lease.holder, &facts.pods) {
            (Some(Holder::Pod { uid, .. }), Some(pods)) => pods.get(uid).is_some_and(Pod::live),
            _ => false,
        };
        let follows = |lease: &Lease| {
            lease.terms.rebind == Rebind::SameOwner
                && !controller.is_empty()
                && lease.controller == controller
                && !lives(lease)
        };
        match self.lease(id) {
            None => refuse(Refused::NoLease(id.clone())),
            Some(lease) if !lease.live() => refuse(Refused::Ended(id.clone(), lease.state)),
            Some(lease) if lease.holder.as_ref().is_some_and(|held| held != holder) && !follows(lease) => {
                refuse(Refused::BoundToAnother(id.clone()))
            }
            Some(lease) => {
                let (now, events) = changed(lease, bound(lease, holder, controller, now));
                (Reply::Lease(Box::new(now)), events)
            }
        }
    }

    /// Other sizes, and the same places: what a ticket costs its tenant stays what it was when it was asked for.
    fn resized(&self, sizes: &[(TicketId, Sizing)]) -> Vec<Event> {
        let changed = sizes.iter().filter_map(|(id, sizing)| {
            let ticket = self.ticket(id).filter(|ticket| ticket.request.sizing.size != sizing.size)?;
            let request = Request { sizing: sizing.clone(), ..ticket.request.clone() };
            Some(Event::Ticket(Arc::new(Ticket { request, ..Ticket::clone(ticket) })))
        });
        changed.collect()
    }

    fn gone(&self, ids: &[LeaseId], code: Code, facts: &Facts, now: Timestamp) -> Vec<Event> {
        let ids: BTreeSet<&LeaseId> = ids.iter().collect();
        let lost = self.live().filter(|lease| ids.contains(&lease.id));
        lost.map(|lease| {
            let why = match code {
                Code::NodeRebooted => (Outcome::Lost, code, "the node booted since it was granted"),
                _ if past_budget(lease, now) => time_is_over(lease, "it was ended at its time budget"),
                _ => (Outcome::Lost, code, "its holder ended without a release"),
            };
            ended(lease, LeaseState::Orphaned, why, facts, now)
        })
        .collect()
    }
}

pub(super) const fn refuse(why: Refused) -> (Reply, Vec<Event>) {
    (Reply::Refused(why), Vec::new())
}

fn changed(lease: &Lease, now: Lease) -> (Lease, Vec<Event>) {
    let events = if now == *lease { Vec::new() } else { vec![Event::Lease(Arc::new(now.clone()))] };
    (now, events)
}

pub(super) fn confirm(lease: &Lease) -> (Lease, Vec<Event>) {
    changed(lease, Lease { confirm_by: None, ..lease.clone() })
}

fn bound(lease: &Lease, holder: &Holder, controller: &str, now: Timestamp) -> Lease {
    // Who binds it again need not know.
    let is_known = controller.is_empty() && lease.holder.as_ref() == Some(holder);
    Lease {
        state: LeaseState::Bound,
        confirm_by: None,
        bound_at: lease.bound_at.or(Some(now)),
        ends_at: lease.ends_at.or(Some(now.plus(lease.sizing.size.time_budget))),
        holder: Some(holder.clone()),
        controller: if is_known { lease.controller.clone() } else { controller.into() },
        unheld_since: None,
        ..lease.clone()
    }
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

/// Ends a lease. One that has ended by itself keeps its end and takes the figures that it has not, so that a release is
/// never lost.
fn release(
    lease: &Lease,
    outcome: Outcome,
    exit_code: Option<i32>,
    usage: Option<Usage>,
    facts: &Facts,
    now: Timestamp,
) -> (Reply, Vec<Event>) {
    let after = match lease.live() {
        true => {
            // What its caller takes for a failure of the build was the node's own doing.
            let drained = lease.was_told(Code::ModeDrain) && past_budget(lease, now);
            let outcome = match outcome {
                Outcome::Failed | Outcome::Lost if drained => Outcome::Evicted,
                told => told,
            };
            let ended = Lease {
                state: LeaseState::Released,
                ended_at: Some(now),
                outcome: Some(outcome),
                exit_code,
                confirm_by: None,
                ..facts.measured(lease, usage, now)
            };
            Lease { retry: retry::advice(&ended, facts), ..ended }
        }
        false => {
            let usage = usage.map(|usage| facts.within_capacity(usage));
            let (peak, exit_code) = (lease.peak.or(usage), lease.exit_code.or(exit_code));
            Lease { peak, exit_code, ..lease.clone() }
        }
    };
    let (lease, events) = changed(lease, after);
    (Reply::Lease(Box::new(lease)), events)
}
