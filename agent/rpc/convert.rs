//! Between the core's words and the messages. Nothing is decided here.

use prost_types::{Duration as ProtoDuration, Timestamp as ProtoTimestamp};
use stoker_core::admission::{Answer, Holder, Lease, LeaseState, Mode, Source, Ticket, Totals, Usage, Waiting};
use stoker_core::quantity::{Amounts, Resource, Size, Span, Timestamp};
use stoker_core::reason::Reason;
use stoker_core::sizing::{Outcome, Sizing, Tier};
use stoker_proto::v1;

/// Amounts are u64 inside and int64 on the wire.
pub(super) fn wire(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A point of time.
#[must_use]
pub fn timestamp(at: Timestamp) -> ProtoTimestamp {
    let nanos = i32::try_from(at.0.rem_euclid(1000)).unwrap_or_default() * 1_000_000;
    ProtoTimestamp { seconds: at.0.div_euclid(1000), nanos }
}

pub(super) fn duration(span: Span) -> ProtoDuration {
    let nanos = i32::try_from(span.0 % 1000).unwrap_or_default() * 1_000_000;
    ProtoDuration { seconds: span.0 / 1000, nanos }
}

pub(super) const fn resource(resource: Resource) -> v1::Resource {
    match resource {
        Resource::Cpu => v1::Resource::Cpu,
        Resource::Memory => v1::Resource::Memory,
        Resource::DiskBytes => v1::Resource::DiskBytes,
        Resource::DiskInodes => v1::Resource::DiskInodes,
        Resource::Time => v1::Resource::Time,
    }
}

pub(super) fn reason(reason: &Reason) -> v1::Reason {
    let code = v1::reason::Code::from_str_name(reason.code.word()).unwrap_or_default();
    v1::Reason {
        code: code.into(),
        resource: reason.resource.map_or(v1::Resource::Unspecified, resource).into(),
        wanted: wire(reason.wanted),
        available: wire(reason.available),
        subject: reason.subject.clone(),
        message: reason.message.clone(),
        expected_until: reason.expected_until.map(timestamp),
    }
}

pub(super) fn reasons(all: &[Reason]) -> Vec<v1::Reason> {
    all.iter().map(reason).collect()
}

pub(super) fn size(size: &Size) -> v1::Size {
    v1::Size { time_budget: Some(duration(size.time_budget)), ..amounts(&size.amounts) }
}

/// Amounts, without a time.
#[must_use]
pub fn amounts(amounts: &Amounts) -> v1::Size {
    v1::Size {
        cpu_millis: Some(wire(amounts.cpu_millis)),
        memory_bytes: Some(wire(amounts.memory_bytes)),
        disk_bytes: Some(wire(amounts.disk_bytes)),
        disk_inodes: Some(wire(amounts.disk_inodes)),
        time_budget: None,
    }
}

pub(super) fn sizing(sizing: &Sizing) -> v1::Sizing {
    let basis = sizing.basis.iter().map(|basis| v1::Basis {
        resource: resource(basis.resource).into(),
        tier: match basis.tier {
            Tier::Request => v1::Tier::Request,
            Tier::Spec => v1::Tier::Spec,
            Tier::History => v1::Tier::History,
            Tier::LanguageDefault => v1::Tier::LanguageDefault,
            Tier::Ladder => v1::Tier::Ladder,
        }
        .into(),
        value: wire(basis.value),
        runs: i32::try_from(basis.runs).unwrap_or(i32::MAX),
        file: basis.file.clone(),
        line: i32::try_from(basis.line).unwrap_or(i32::MAX),
        language: basis.language.map(|language| language.word().to_owned()).unwrap_or_default(),
        clamped: basis.clamped,
        capped: basis.capped,
        compared: basis.compared.map(|seen| v1::Compared {
            p95: wire(seen.p95),
            leads_to: wire(seen.leads_to),
            runs: i32::try_from(seen.runs).unwrap_or(i32::MAX),
        }),
    });
    v1::Sizing {
        size: Some(size(&sizing.size)),
        basis: basis.collect(),
        clamped: sizing.clamped,
        provisional: sizing.provisional,
        advice: reasons(&sizing.over_declared()),
    }
}

pub(super) fn source(source: &Source) -> v1::Resolved {
    v1::Resolved {
        commit: source.commit.to_string(),
        clone_url: source.clone_url.clone(),
        clone_ref: source.clone_ref.clone(),
        as_of: Some(timestamp(source.as_of)),
        origin: origin(&source.origin).into(),
        snapshot: source.snapshot.clone(),
        subject: source.subject.clone(),
        other_fork: source.other_fork,
        ..v1::Resolved::default()
    }
}

fn origin(word: &str) -> v1::Origin {
    match word {
        "upstream" => v1::Origin::Upstream,
        "cache" => v1::Origin::Cache,
        "stale" => v1::Origin::Stale,
        _ => v1::Origin::Unspecified,
    }
}

pub(super) fn scope(scope: &stoker_core::identity::Scope) -> v1::Scope {
    v1::Scope { tenant: scope.tenant.clone(), project: scope.project.clone(), branch: scope.branch.clone() }
}

/// A lease's state.
#[must_use]
pub const fn state(state: LeaseState) -> v1::LeaseState {
    match state {
        LeaseState::Reserved => v1::LeaseState::Reserved,
        LeaseState::Bound => v1::LeaseState::Bound,
        LeaseState::Released => v1::LeaseState::Released,
        LeaseState::Expired => v1::LeaseState::Expired,
        LeaseState::Orphaned => v1::LeaseState::Orphaned,
    }
}

pub(super) const fn outcome(outcome: Outcome) -> v1::Outcome {
    match outcome {
        Outcome::Succeeded => v1::Outcome::Succeeded,
        Outcome::Failed => v1::Outcome::Failed,
        Outcome::OutOfMemoryLimit => v1::Outcome::OutOfMemoryLimit,
        Outcome::OutOfMemoryNode => v1::Outcome::OutOfMemoryNode,
        Outcome::TimeBudgetExceeded => v1::Outcome::TimeBudgetExceeded,
        Outcome::Evicted => v1::Outcome::Evicted,
        Outcome::Lost => v1::Outcome::Lost,
    }
}

pub(super) const fn mode(mode: Mode) -> v1::Mode {
    match mode {
        Mode::Accepting => v1::Mode::Accepting,
        Mode::Maintenance => v1::Mode::Maintenance,
        Mode::Drain => v1::Mode::Drain,
    }
}

pub(super) fn usage(usage: &Usage) -> v1::Usage {
    v1::Usage {
        memory_bytes_peak: wire(usage.memory_bytes_peak),
        cpu_millis_peak: wire(usage.cpu_millis_peak),
        cpu_time: Some(duration(usage.cpu_time)),
        elapsed: Some(duration(usage.elapsed)),
        disk_bytes: wire(usage.disk_bytes),
        disk_inodes: wire(usage.disk_inodes),
        processes_peak: i32::try_from(usage.processes_peak).unwrap_or(i32::MAX),
    }
}

/// A lease, and the node that it is on.
#[must_use]
pub fn lease(lease: &Lease, node: &str) -> v1::Lease {
    let holder = lease.holder.as_ref().map(|holder| match holder {
        Holder::Pod { namespace, name, uid } => {
            v1::lease::Holder::Pod(v1::Pod { namespace: namespace.clone(), name: name.clone(), uid: uid.clone() })
        }
        Holder::Process { pid, start_ticks } => {
            v1::lease::Holder::Process(v1::Process { pid: *pid, start_ticks: *start_ticks })
        }
    });
    v1::Lease {
        id: lease.id.to_string(),
        request_id: lease.request_id.to_string(),
        state: state(lease.state).into(),
        sizing: Some(sizing(&lease.sizing)),
        source: Some(source(&lease.source)),
        scope: Some(scope(&lease.scope)),
        created_at: Some(timestamp(lease.created_at)),
        confirm_by: lease.confirm_by.map(timestamp),
        bind_by: Some(timestamp(lease.bind_by)),
        ends_at: lease.ends_at.map(timestamp),
        // A node affinity, never `nodeName`: that would bypass the scheduler's checks.
        affinity: Some(v1::NodeAffinity { key: "kubernetes.io/hostname".into(), values: vec![node.to_owned()] }),
        peak: lease.peak.as_ref().map(usage),
        outcome: lease.outcome.map_or(v1::Outcome::Unspecified, outcome).into(),
        retry: lease.retry.as_ref().map(|retry| v1::RetryAdvice {
            allowed: retry.size.is_some(),
            size: retry.size.as_ref().map(size),
            reasons: reasons(&retry.reasons),
        }),
        retry_of: lease.retry_of.as_ref().map(ToString::to_string).unwrap_or_default(),
        attempt: i32::try_from(lease.attempt).unwrap_or(i32::MAX),
        target: lease.target.clone(),
        ended_at: lease.ended_at.map(timestamp),
        exit_code: lease.exit_code,
        reasons: reasons(&lease.reasons),
        holder,
        bound_at: lease.bound_at.map(timestamp),
    }
}

pub(super) fn ticket(ticket: &Ticket, position: usize) -> v1::Ticket {
    v1::Ticket {
        id: ticket.id.to_string(),
        request_id: ticket.request.id.to_string(),
        position: i32::try_from(position).unwrap_or(i32::MAX),
        expires_at: Some(timestamp(ticket.expires_at)),
        commit: ticket.request.source.commit.to_string(),
        scope: Some(scope(&ticket.request.scope)),
        sizing: Some(sizing(&ticket.request.sizing)),
        created_at: Some(timestamp(ticket.created_at)),
        priority: ticket.request.priority,
        retry_of: ticket.request.retry_of.as_ref().map(ToString::to_string).unwrap_or_default(),
        reasons: Vec::new(),
    }
}

fn waiting(waiting: &Waiting) -> v1::Waiting {
    v1::Waiting {
        ticket: waiting.ticket.as_ref().map(|held| ticket(held, waiting.position)),
        retry_after: Some(duration(waiting.retry_after)),
        reasons: reasons(&waiting.reasons),
        sizing: Some(sizing(&waiting.sizing)),
    }
}

/// What the ledger says of a request.
#[must_use]
pub fn decision(answer: &Answer, node: &str) -> v1::admit_response::Decision {
    match answer {
        Answer::Granted(granted) => v1::admit_response::Decision::Granted(lease(granted, node)),
        Answer::Waiting(not_now) => v1::admit_response::Decision::Waiting(waiting(not_now)),
        Answer::Rejected(why, size) => v1::admit_response::Decision::Rejected(v1::Rejection {
            final_everywhere: why.iter().any(|r| r.code == stoker_core::reason::Code::SpecInvalid),
            reasons: reasons(why),
            sizing: size.as_deref().map(sizing),
        }),
    }
}

pub(super) fn awaited(answer: &Answer, node: &str) -> v1::await_admission_response::Decision {
    use v1::await_admission_response::Decision as Awaited;
    match decision(answer, node) {
        v1::admit_response::Decision::Granted(lease) => Awaited::Granted(lease),
        v1::admit_response::Decision::Waiting(waiting) => Awaited::Waiting(waiting),
        v1::admit_response::Decision::Rejected(rejected) => Awaited::Rejected(rejected),
    }
}

pub(super) fn totals(totals: &Totals) -> v1::Ledger {
    v1::Ledger {
        capacity: Some(amounts(&totals.capacity)),
        reserve: Some(amounts(&totals.reserve)),
        budget: Some(amounts(&totals.budget)),
        others: Some(amounts(&totals.others)),
        leased: Some(amounts(&totals.leased)),
        free: Some(amounts(&totals.free)),
    }
}
