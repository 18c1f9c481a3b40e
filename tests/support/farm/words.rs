//! Between the ledger's words and the messages, as far as a controller hears and says them.

use stoker_core::admission::{Answer, Facts, Lease, LeaseState, Refused, Request, Source, Terms};
use stoker_core::identity::{CommitId, RequestId, Scope};
use stoker_core::quantity::{Amounts, Size, Span, Timestamp};
use stoker_core::reason::Reason;
use stoker_core::sizing::Sizing;
use stoker_proto::v1;
use tonic::Status;

const GIB: u64 = 1 << 30;

fn wire(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.0.rem_euclid(1000)).unwrap() * 1_000_000;
    prost_types::Timestamp { seconds: at.0.div_euclid(1000), nanos }
}

pub(crate) fn span(duration: Option<&prost_types::Duration>, otherwise: Span) -> Span {
    duration.map_or(otherwise, |duration| Span(duration.seconds * 1000 + i64::from(duration.nanos) / 1_000_000))
}

pub(crate) fn size(amounts: &Amounts) -> v1::Size {
    v1::Size {
        cpu_millis: Some(wire(amounts.cpu_millis)),
        memory_bytes: Some(wire(amounts.memory_bytes)),
        disk_bytes: Some(wire(amounts.disk_bytes)),
        disk_inodes: Some(wire(amounts.disk_inodes)),
        time_budget: None,
    }
}

fn reasons(all: &[Reason]) -> Vec<v1::Reason> {
    let word = |reason: &Reason| v1::Reason {
        code: v1::reason::Code::from_str_name(reason.code.word()).unwrap_or_default().into(),
        wanted: wire(reason.wanted),
        available: wire(reason.available),
        subject: reason.subject.clone(),
        message: reason.message.clone(),
        ..Default::default()
    };
    all.iter().map(word).collect()
}

fn sizing(sizing: &Sizing) -> v1::Sizing {
    v1::Sizing { size: Some(size(&sizing.size.amounts)), ..Default::default() }
}

pub(crate) const fn state(state: LeaseState) -> v1::LeaseState {
    match state {
        LeaseState::Reserved => v1::LeaseState::Reserved,
        LeaseState::Bound => v1::LeaseState::Bound,
        LeaseState::Released => v1::LeaseState::Released,
        LeaseState::Expired => v1::LeaseState::Expired,
        LeaseState::Orphaned => v1::LeaseState::Orphaned,
    }
}

pub(crate) fn lease(lease: &Lease, node: &str) -> v1::Lease {
    v1::Lease {
        id: lease.id.to_string(),
        request_id: lease.request_id.to_string(),
        state: state(lease.state).into(),
        sizing: Some(sizing(&lease.sizing)),
        created_at: Some(timestamp(lease.created_at)),
        bind_by: Some(timestamp(lease.bind_by)),
        affinity: Some(v1::NodeAffinity { key: "kubernetes.io/hostname".into(), values: vec![node.to_owned()] }),
        ended_at: lease.ended_at.map(timestamp),
        reasons: reasons(&lease.reasons),
        ..Default::default()
    }
}

pub(crate) fn decision(answer: &Answer, node: &str) -> v1::admit_response::Decision {
    match answer {
        Answer::Granted(granted) => v1::admit_response::Decision::Granted(lease(granted, node)),
        Answer::Waiting(waiting) => v1::admit_response::Decision::Waiting(v1::Waiting {
            retry_after: Some(prost_types::Duration { seconds: waiting.retry_after.0 / 1000, nanos: 0 }),
            reasons: reasons(&waiting.reasons),
            sizing: Some(sizing(&waiting.sizing)),
            ..Default::default()
        }),
        Answer::Rejected(why, sized) => v1::admit_response::Decision::Rejected(v1::Rejection {
            final_everywhere: false,
            reasons: reasons(why),
            sizing: sized.as_deref().map(sizing),
        }),
    }
}

pub(crate) fn refused(why: &Refused) -> Status {
    match why {
        Refused::Conflict(_) => Status::already_exists(why.to_string()),
        Refused::NoLease(_) | Refused::NoTicket(_) => Status::not_found(why.to_string()),
        _ => Status::failed_precondition(why.to_string()),
    }
}

/// What the ledger decides on; nothing is resolved, for a simulated agent has no mirrors.
pub(crate) fn request(admit: &v1::AdmitRequest) -> Result<Request, Status> {
    let bad = |what: &str| Status::invalid_argument(what.to_owned());
    let id = RequestId::try_from(admit.request_id.clone()).map_err(|_| bad("request_id"))?;
    let build = admit.build.as_ref().ok_or_else(|| bad("build"))?;
    let declared = build.declared.unwrap_or_default();
    let part = |value: Option<i64>, otherwise: u64| value.map_or(otherwise, |value| u64::try_from(value).unwrap_or(0));
    let amounts = Amounts {
        cpu_millis: part(declared.cpu_millis, 2000),
        memory_bytes: part(declared.memory_bytes, 4 * GIB),
        disk_bytes: part(declared.disk_bytes, GIB),
        disk_inodes: part(declared.disk_inodes, 1000),
    };
    let time_budget = span(declared.time_budget.as_ref(), Span::minutes(30));
    let scope = build.scope.clone().unwrap_or_default();
    let owner = admit.owner.clone().unwrap_or_default();
    let source = build.source.clone().unwrap_or_default();
    Ok(Request {
        digest: format!("{:?} {:?} {:?}", build, owner, admit.rebind),
        id,
        source: Source {
            repository: source.repository_url,
            reference: String::new(),
            commit: CommitId::new([7; 20]),
            clone_url: String::new(),
            clone_ref: String::new(),
            as_of: Timestamp(0),
            origin: "cache".into(),
            snapshot: "s1".into(),
            subject: String::new(),
            other_fork: false,
        },
        sizing: Sizing { size: Size { amounts, time_budget }, basis: Vec::new(), clamped: false, provisional: false },
        scope: Scope { tenant: scope.tenant, project: scope.project, branch: scope.branch },
        target: String::new(),
        cache_keys: Vec::new(),
        attempt: 1,
        bind_within: span(admit.bind_within.as_ref(), Span::minutes(5)),
        priority: admit.priority,
        expected: None,
        retry_of: None,
        no_retry: false,
        terms: Terms { namespace: owner.namespace, service_account: owner.service_account, ..Terms::default() },
        asked: None,
    })
}

/// A node of this size on which nothing but builds runs.
pub(crate) fn facts(cpus: u64, gib: u64) -> Facts {
    let disk = Amounts { disk_bytes: 400 * GIB, disk_inodes: 50_000_000, ..Amounts::default() };
    Facts {
        capacity: Amounts { cpu_millis: cpus * 1000, memory_bytes: gib * GIB, ..disk },
        reserve: Amounts::default(),
        others: Amounts::default(),
        in_use: Default::default(),
        disk_free: disk,
        other_pods: Amounts::default(),
        scheduler: None,
        pods: None,
        unlimited_is_node: true,
        gate: Default::default(),
        leases_max: 200,
        sizing: Default::default(),
        tickets_max: 100,
        tenants: Default::default(),
        pass_for: Span::minutes(10),
        age_after: Span::hours(1),
        end_at_budget: true,
        jitter: 0,
    }
}
