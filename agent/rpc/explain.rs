//! Why, as messages.

use stoker_core::admission::explain::Holding;
use stoker_core::admission::{Explanation, Fit, Refused};
use stoker_core::identity::{LeaseId, RequestId, TicketId};
use stoker_proto::v1;
use stoker_proto::v1::explain_request::What;
use tonic::{Code, Status};

use super::Rooms;
use super::asker::Asker;
use super::convert::{amounts, lease, reasons, sizing, ticket, timestamp, totals, wire};
use super::error::bad;
use super::lease_use::{Wrote, beyond_its_size};
use super::request::{build, id};
use crate::access::Role;
use crate::admission::{Evaluated, SourceState, WriterError};

/// What is known of the ticket, the lease, the request or the build that is named.
pub(super) fn explain(rooms: &Rooms, asker: &Asker, request: v1::ExplainRequest) -> Result<v1::Explanation, Status> {
    match request.what {
        Some(What::TicketId(text)) => {
            let wanted: TicketId = id("ticket_id", text)?;
            asker.ticket(rooms, Role::Viewer, &wanted)?;
            of_ticket(rooms, &wanted).ok_or_else(|| WriterError::Refused(Refused::NoTicket(wanted)).into())
        }
        Some(What::LeaseId(text)) => {
            let wanted: LeaseId = id("lease_id", text)?;
            asker.lease(rooms, Role::Viewer, &wanted)?;
            of_lease(rooms, &wanted).ok_or_else(|| WriterError::Refused(Refused::NoLease(wanted)).into())
        }
        Some(What::RequestId(text)) => {
            let wanted: RequestId = id("request_id", text)?;
            let (ticket, lease) = rooms.admission.look(|_, ledger| {
                let ticket = ledger.ticket_of(&wanted).filter(|ticket| asker.sees(&ticket.request.scope.tenant));
                let lease = ledger.lease_of(&wanted).filter(|lease| asker.sees(&lease.scope.tenant));
                (ticket.map(|ticket| ticket.id.clone()), lease.map(|lease| lease.id.clone()))
            });
            let found = ticket.and_then(|ticket| of_ticket(rooms, &ticket));
            let found = found.or_else(|| of_lease(rooms, &lease?));
            found.ok_or_else(|| {
                Status::new(Code::NotFound, format!("request {wanted} has neither a lease nor a ticket"))
            })
        }
        Some(What::Build(mut given)) => {
            asker.build(rooms, "build", &mut given)?;
            let build = build("build", Some(given))?;
            let (told, seen) = rooms.admission.explain(&build);
            let evaluated = evaluation(seen);
            let message = explanation(&told);
            Ok(v1::Explanation {
                sizing: evaluated.sizing,
                verdict: evaluated.verdict,
                reasons: evaluated.reasons,
                tenant: named(message.tenant, &build.scope.tenant),
                ..message
            })
        }
        None => Err(bad("what", "is not set; give a ticket, a lease, a request or a build")),
    }
}

fn of_ticket(rooms: &Rooms, wanted: &TicketId) -> Option<v1::Explanation> {
    rooms.admission.look(|view, ledger| {
        let held = ledger.ticket(wanted)?;
        let told = view.explain_ticket(held);
        let message = explanation(&told);
        Some(v1::Explanation {
            sizing: Some(sizing(&held.request.sizing)),
            ticket: Some(ticket(held, told.ahead + 1)),
            tenant: named(message.tenant, &held.request.scope.tenant),
            ..message
        })
    })
}

fn of_lease(rooms: &Rooms, wanted: &LeaseId) -> Option<v1::Explanation> {
    rooms.admission.look(|view, ledger| {
        let held = ledger.lease(wanted)?;
        let message = explanation(&view.explain_lease(held));
        let uses = rooms.lease_meter.view();
        let seen = uses.leases.get(wanted).filter(|_| held.live());
        let (size, written) = (&held.sizing.size.amounts, rooms.workspaces.written());
        let wrote = Wrote { on_disk: written.get(wanted), limited: rooms.workspaces.is_limited(wanted) };
        let beyond = seen.map(|seen| beyond_its_size(seen, size, wrote)).unwrap_or_default();
        Some(v1::Explanation {
            sizing: Some(sizing(&held.sizing)),
            lease: Some(lease(held, rooms.name())),
            reasons: reasons(&[held.reasons.as_slice(), &beyond].concat()),
            tenant: named(message.tenant, &held.scope.tenant),
            ..message
        })
    })
}

fn named(share: Option<v1::TenantShare>, name: &str) -> Option<v1::TenantShare> {
    share.map(|share| v1::TenantShare { name: name.to_owned(), ..share })
}

fn explanation(told: &Explanation) -> v1::Explanation {
    let (verdict, why) = match &told.fit {
        Fit::Now => (v1::Verdict::Fits, Vec::new()),
        Fit::Later { reasons: why, .. } => (v1::Verdict::Waits, reasons(why)),
        Fit::Never(why) => (v1::Verdict::Never, reasons(why)),
    };
    let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    v1::Explanation {
        lease: None,
        ticket: None,
        verdict: verdict.into(),
        reasons: why,
        sizing: None,
        ledger: Some(totals(&told.totals)),
        holders: told.holders.iter().map(holding).collect(),
        holders_more: count(told.holders_more),
        ahead: count(told.ahead),
        ahead_of: told
            .ahead_of
            .iter()
            .map(|(tenant, builds)| v1::TenantCount { tenant: tenant.clone(), builds: count(*builds) })
            .collect(),
        head_request_id: told.head.as_ref().map(|head| head.request.id.to_string()).unwrap_or_default(),
        head_starts: told.head_at.map(timestamp),
        room_at: told.room_at.map(timestamp),
        tenant: Some(v1::TenantShare {
            name: String::new(),
            weight: i32::try_from(told.tenant.weight).unwrap_or(i32::MAX),
            leases: count(told.holds.leases),
            held: Some(amounts(&told.holds.amounts)),
            leases_max: told.tenant.leases_max.map(count),
            cpu_millis_max: told.tenant.cpu_millis_max.map(wire),
            memory_bytes_max: told.tenant.memory_bytes_max.map(wire),
            tickets_max: told.tenant.tickets_max.map(count),
        }),
    }
}

fn holding(holding: &Holding) -> v1::Holding {
    v1::Holding {
        lease_id: holding.lease.to_string(),
        tenant: holding.tenant.clone(),
        held: Some(amounts(&holding.held)),
        likely_end: Some(timestamp(holding.likely_end)),
    }
}

/// What would become of a build.
pub(super) fn evaluation(found: Evaluated) -> v1::Evaluation {
    let state = match found.source {
        SourceState::None => v1::SourceState::None,
        SourceState::Mirror => v1::SourceState::Mirror,
    };
    let verdict = match found.never {
        true => v1::Verdict::Never,
        false if found.reasons.is_empty() => v1::Verdict::Fits,
        false => v1::Verdict::Waits,
    };
    v1::Evaluation {
        verdict: verdict.into(),
        sizing: Some(sizing(&found.sizing)),
        score: i32::from(found.score),
        source: state.into(),
        reasons: reasons(&found.reasons),
        cache_keys: i32::try_from(found.caches.wanted).unwrap_or(i32::MAX),
        cache_keys_here: i32::try_from(found.caches.here).unwrap_or(i32::MAX),
        predicted_wait: found.predicted_wait.map(super::convert::duration),
    }
}
