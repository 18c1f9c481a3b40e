//! What a node is asked for a pod, and what its answers say. An attempt is over only where the node said that there is no
//! lease by its name: whatever else comes leaves that open, and the same node is asked again.

use std::time::Duration;

use stoker_core::placement::intent::BIND_WITHIN;
use stoker_core::placement::{GATED, Intent};
use stoker_core::quantity::Amounts;
use stoker_core::reason::Code as Word;
use stoker_proto::v1::{self, admit_response::Decision};
use tonic::{Code, Request, Status};

use super::agents::amounts;
use super::pod::{Asks, Pod};
use crate::cli::client::{Client, reason_word, words};

/// For what a node answers from its journal.
const SOON: Duration = Duration::from_secs(10);

/// Why a node did not take a pod.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    /// Which attempt it was.
    pub(super) attempt: u32,
    pub(super) reasons: Vec<v1::Reason>,
    /// In words, where there are no reasons.
    pub(super) words: String,
    /// Not before.
    pub(super) retry_after: Duration,
    /// It is about the node's room, and so about all that are as large.
    pub(super) room: bool,
    /// What the node takes it to need.
    pub(super) size: Option<Amounts>,
    /// It is about what is asked for, not about when.
    pub(super) never: bool,
    /// The node's answer is none that a node gives.
    pub(super) faulty: bool,
    /// The pod as it was written before the node was asked.
    pub(super) seen: Option<Box<Pod>>,
}

/// What an answer says.
#[derive(Debug)]
pub(super) enum Said {
    Granted(Box<v1::Lease>),
    /// There is no lease by this name.
    Refused(Box<Refusal>),
    /// There is one by this name that was asked for in other words.
    Conflict(String),
    /// There may be one. `doubt`: the answer is about the node, not about what the pod asks for.
    Unknown {
        why: String,
        doubt: bool,
    },
}

pub(super) fn order(pod: &Pod, asks: &Asks, intent: &Intent) -> v1::AdmitRequest {
    v1::AdmitRequest {
        request_id: intent.request_id(&pod.uid),
        build: Some((*asks.build).clone()),
        priority: 0,
        bind_within: Some(reserve_for()),
        owner: Some(v1::Owner { namespace: pod.namespace.clone(), service_account: pod.service_account.clone() }),
        rebind: v1::Rebind::Never.into(),
        ..v1::AdmitRequest::default()
    }
}

const fn reserve_for() -> prost_types::Duration {
    prost_types::Duration { seconds: BIND_WITHIN.0 / 1000, nanos: 0 }
}

/// What an answer says. `first`: the node was not asked by this name before.
pub(super) fn said(answer: Result<v1::AdmitResponse, Status>, attempt: u32, first: bool) -> Said {
    let decision = match answer {
        Ok(answer) => answer.decision,
        Err(status) => return status_said(&status, attempt, first),
    };
    let refusal = Refusal { attempt, ..Refusal::default() };
    let size = |sizing: Option<v1::Sizing>| sizing.and_then(|sizing| sizing.size).as_ref().map(amounts);
    let refusal = match decision {
        Some(Decision::Granted(lease)) if is_live(lease.state()) => return Said::Granted(Box::new(lease)),
        Some(Decision::Granted(lease)) => {
            Refusal { words: format!("its lease was {} before it came", lease.state().as_str_name()), ..refusal }
        }
        Some(Decision::Waiting(waiting)) => {
            let after = waiting.retry_after.and_then(|span| u64::try_from(span.seconds).ok()).unwrap_or(5);
            Refusal {
                room: is_of_room(&waiting.reasons),
                reasons: waiting.reasons,
                size: size(waiting.sizing),
                retry_after: Duration::from_secs(after.min(30)),
                ..refusal
            }
        }
        Some(Decision::Rejected(rejected)) => Refusal {
            room: is_of_room(&rejected.reasons),
            never: rejected.final_everywhere,
            reasons: rejected.reasons,
            size: size(rejected.sizing),
            retry_after: Duration::from_secs(if rejected.final_everywhere { 60 } else { 5 }),
            ..refusal
        },
        None => {
            let why = "its answer is not whole; is it of another version?".to_owned();
            return Said::Unknown { why, doubt: true };
        }
    };
    Said::Refused(Box::new(refusal))
}

pub(super) fn is_live(state: v1::LeaseState) -> bool {
    matches!(state, v1::LeaseState::Reserved | v1::LeaseState::Bound)
}

/// All of it is about the node, and so about all that are as large: not about the tenant, nor about what is built.
fn is_of_room(reasons: &[v1::Reason]) -> bool {
    reasons.iter().all(|reason| code_of(reason.code().as_str_name()).is_some_and(Word::is_of_node))
}

fn code_of(word: &str) -> Option<Word> {
    Word::ALL.iter().copied().find(|code| code.word() == word)
}

/// A node that says what is wrong with the source or with what is asked gave nothing, if this was the first time. One that
/// is busy, ends, or does not know who asks says nothing of what it gave before.
fn status_said(status: &Status, attempt: u32, first: bool) -> Said {
    let word = reason_word(status);
    if word.as_deref() == Some("REQUEST_ID_CONFLICT") {
        return Said::Conflict(words(status));
    }
    let malformed = word.is_none() && status.code() == Code::InvalidArgument;
    let of_source = malformed || word.as_deref().is_some_and(is_of_source);
    if !first || !of_source {
        return Said::Unknown { why: words(status), doubt: !of_source };
    }
    Said::Refused(Box::new(Refusal {
        attempt,
        words: words(status),
        retry_after: Duration::from_secs(30),
        never: matches!(status.code(), Code::InvalidArgument | Code::NotFound | Code::PermissionDenied),
        ..Refusal::default()
    }))
}

/// Whether a reason is about the repository, the commit or its build spec.
fn is_of_source(word: &str) -> bool {
    code_of(word).is_some_and(|code| {
        code.upstream_says_no()
            || matches!(
                code,
                Word::UpstreamUnreachable
                    | Word::UpstreamTimeout
                    | Word::UpstreamUntrusted
                    | Word::RefNotFound
                    | Word::CommitNotFound
                    | Word::CommitUnreachable
                    | Word::CommitUnexpected
                    | Word::RepositoryNotDeclared
                    | Word::RepositoryNotAllowed
                    | Word::RepositoryEmpty
                    | Word::RepositoryEvicted
                    | Word::RepositoriesLimit
                    | Word::ObjectFormatUnsupported
                    | Word::RepositoryShallow
                    | Word::RepositoryForeignOwner
                    | Word::RepositoryCorrupt
                    | Word::SubmoduleInvalid
                    | Word::CredentialUnreadable
                    | Word::GitMemoryLimit
                    | Word::GitKilled
                    | Word::GitHelperAway
                    | Word::SpecInvalid
                    | Word::SpecUnevaluated
                    | Word::SizeCap
            )
    })
}

/// Whether a lease was given by this request: another's cannot stand on a pod.
pub(super) fn is_by(lease: &v1::Lease, request_id: &str) -> bool {
    lease.request_id == request_id && !lease.id.is_empty()
}

/// What became of a lease that stands on a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is the pod's, and lives.
    Lives,
    /// It was the pod's, by this attempt, and has ended.
    Ended(u32),
    /// The node knows no such lease.
    NotThere,
    /// It is another's: whoever wrote it there, it is not touched.
    Foreign,
    /// The node did not say.
    Unknown,
}

/// Whose lease it is, by the node's word: what stands on a pod anybody who may write pods can have written.
pub(super) async fn whose(client: &Client, pod_uid: &str, lease_id: &str) -> Kept {
    let mut request = Request::new(v1::GetLeaseRequest { lease_id: lease_id.to_owned() });
    request.set_timeout(SOON);
    match client.admission().get_lease(request).await.map(|answer| answer.into_inner().lease) {
        Ok(Some(lease)) => kept(&lease, pod_uid),
        Ok(None) => Kept::Unknown,
        // No lease has a name like that.
        Err(status) if status.code() == Code::InvalidArgument => Kept::Foreign,
        Err(status) if reason_word(&status).as_deref() == Some("LEASE_NOT_FOUND") => Kept::NotThere,
        Err(_) => Kept::Unknown,
    }
}

fn kept(lease: &v1::Lease, pod_uid: &str) -> Kept {
    let attempt = lease.request_id.strip_prefix(GATED).and_then(|rest| rest.strip_prefix(pod_uid));
    let attempt = attempt.and_then(|rest| rest.strip_prefix('-')).and_then(|rest| rest.parse().ok());
    match (attempt, is_live(lease.state())) {
        (None, _) => Kept::Foreign,
        (Some(_), true) => Kept::Lives,
        (Some(attempt), false) => Kept::Ended(attempt),
    }
}

/// Keeps the reservation of a pod, where it is that pod's.
pub(super) async fn renew(client: &Client, pod_uid: &str, lease_id: String) -> Kept {
    let found = whose(client, pod_uid, &lease_id).await;
    if found != Kept::Lives {
        return found;
    }
    let mut request = Request::new(v1::RenewRequest { lease_id: lease_id.clone(), reserve_for: Some(reserve_for()) });
    request.set_timeout(SOON);
    match client.admission().renew(request).await.map(|answer| answer.into_inner().lease) {
        Ok(Some(lease)) => kept(&lease, pod_uid),
        Ok(None) => Kept::Unknown,
        Err(status) => match reason_word(&status).as_deref() {
            // It ended between the two.
            Some("LEASE_ENDED") => whose(client, pod_uid, &lease_id).await,
            _ => Kept::Unknown,
        },
    }
}

/// Gives a lease back: whether the node took it.
pub(super) async fn release(client: &Client, lease_id: &str) -> bool {
    let mut order = v1::ReleaseRequest { lease_id: lease_id.to_owned(), ..v1::ReleaseRequest::default() };
    order.set_outcome(v1::Outcome::Lost);
    let mut request = Request::new(order);
    request.set_timeout(SOON);
    let given = client.admission().release(request).await;
    if let Err(status) = &given {
        tracing::warn!(lease = lease_id, error = words(status), "a lease was not given back; it runs out by itself");
    }
    given.is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn status(code: Code, word: &str) -> Status {
        match word {
            "" => Status::new(code, "why"),
            _ => Status::with_error_details(
                code,
                "why",
                ErrorDetails::with_error_info(word, "stoker.build", HashMap::new()),
            ),
        }
    }

    #[test]
    fn only_a_word_about_the_source_settles_an_attempt_and_only_the_first_time() {
        for (code, word) in [(Code::NotFound, "REF_NOT_FOUND"), (Code::InvalidArgument, "")] {
            assert!(matches!(said(Err(status(code, word)), 2, true), Said::Refused(refusal) if refusal.attempt == 2));
            let again = said(Err(status(code, word)), 2, false);
            assert!(
                matches!(again, Said::Unknown { doubt: false, .. }),
                "{word}: the one before, and no word of the node"
            );
        }
        for (code, word) in [
            (Code::ResourceExhausted, "BUSY"),
            (Code::ResourceExhausted, "RATE_LIMITED"),
            (Code::Unavailable, "STOPPING"),
            (Code::Unavailable, "JOURNAL_UNAVAILABLE"),
            (Code::Unauthenticated, "CREDENTIAL_INVALID"),
            (Code::PermissionDenied, "ACCESS_DENIED"),
            (Code::PermissionDenied, ""),
            (Code::Unavailable, ""),
            (Code::DeadlineExceeded, ""),
            (Code::NotFound, ""),
        ] {
            let unknown = said(Err(status(code, word)), 1, true);
            assert!(matches!(unknown, Said::Unknown { doubt: true, .. }), "{code:?} {word}");
        }
        let conflict = said(Err(status(Code::AlreadyExists, "REQUEST_ID_CONFLICT")), 1, true);
        assert!(matches!(conflict, Said::Conflict(_)));
    }

    #[test]
    fn what_is_about_one_tenant_closes_no_node_for_others() {
        let waits = |code: v1::reason::Code| {
            let reason = v1::Reason { code: code.into(), ..v1::Reason::default() };
            let size = v1::Size { memory_bytes: Some(7), ..v1::Size::default() };
            let sizing = Some(v1::Sizing { size: Some(size), ..v1::Sizing::default() });
            let decision = Decision::Waiting(v1::Waiting { reasons: vec![reason], sizing, ..v1::Waiting::default() });
            match said(Ok(v1::AdmitResponse { decision: Some(decision), ..v1::AdmitResponse::default() }), 1, true) {
                Said::Refused(refusal) => (refusal.room, refusal.size.unwrap().memory_bytes),
                _ => unreachable!(),
            }
        };
        assert_eq!(waits(v1::reason::Code::MemoryHeld), (true, 7));
        assert_eq!(waits(v1::reason::Code::TenantQuota), (false, 7));
        assert_eq!(waits(v1::reason::Code::SpecInvalid), (false, 7));
        assert_eq!(waits(v1::reason::Code::SizeCap), (false, 7));
        assert_eq!(waits(v1::reason::Code::NodeDiskFloor), (true, 7));
    }

    #[test]
    fn a_lease_is_a_pods_by_the_name_of_its_request_alone() {
        let of = |request_id: &str, state: v1::LeaseState| v1::Lease {
            id: "l1".into(),
            request_id: request_id.into(),
            state: state.into(),
            ..v1::Lease::default()
        };
        assert_eq!(kept(&of("gate-uid-3", v1::LeaseState::Reserved), "uid"), Kept::Lives);
        assert_eq!(kept(&of("gate-uid-3", v1::LeaseState::Expired), "uid"), Kept::Ended(3));
        for other in ["gate-uid-2-3", "gate-other-3", "gate-uid-", "gate-uid3", "csi-uid-3", "uid-3", ""] {
            assert_eq!(kept(&of(other, v1::LeaseState::Reserved), "uid"), Kept::Foreign, "{other}");
        }
    }

    #[test]
    fn a_lease_is_by_its_own_request() {
        let of = |id: &str| v1::Lease { id: id.into(), request_id: "gate-uid-1".into(), ..v1::Lease::default() };
        assert!(is_by(&of("l1"), "gate-uid-1") && !is_by(&of("l1"), "gate-uid-2") && !is_by(&of(""), "gate-uid-1"));
    }
}
