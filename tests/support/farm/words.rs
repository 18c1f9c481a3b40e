//! Requests as the ledger takes them, and the node that it has. Its answers are put into messages as an agent does that.

use stoker::admission::WriterError;
use stoker_core::admission::{Facts, Refused, Request, Source, Terms};
use stoker_core::identity::{CommitId, RequestId, Scope};
use stoker_core::quantity::{Amounts, Size, Span, Timestamp};
use stoker_core::sizing::Sizing;
use stoker_proto::v1;
use tonic::Status;

const GIB: u64 = 1 << 30;

pub(crate) fn span(duration: Option<&prost_types::Duration>, otherwise: Span) -> Span {
    duration.map_or(otherwise, |duration| Span(duration.seconds * 1000 + i64::from(duration.nanos) / 1_000_000))
}

pub(crate) fn refused(why: Refused) -> Status {
    WriterError::Refused(why).into()
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
