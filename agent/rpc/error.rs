//! Refusals as gRPC statuses, with the details of the richer error model: which field, when to try again, which reason.

use std::collections::HashMap;
use std::time::Duration;

use stoker_core::admission::Refused;
use stoker_core::reason::{Code, Reason};
use tonic::{Code as Grpc, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::access::Denied;
use crate::admission::{AdmissionError, WriterError};

const DOMAIN: &str = "stoker.build";

/// A malformed field: which, and what is wrong with it, with the remedy.
pub(crate) fn bad(field: impl Into<String>, what: impl Into<String>) -> Status {
    let (field, what) = (field.into(), what.into());
    let message = format!("{field}: {what}");
    Status::with_error_details(Grpc::InvalidArgument, message, ErrorDetails::with_bad_request_violation(field, what))
}

/// A refusal with its reason.
pub(crate) fn refusal(reason: &Reason) -> Status {
    let (code, again) = match reason.code {
        Code::UpstreamUnreachable | Code::UpstreamTimeout | Code::GitKilled | Code::GitHelperAway => {
            (Grpc::Unavailable, Some(10))
        }
        Code::PoolNotReady | Code::JournalUnavailable | Code::SensorFailed => (Grpc::Unavailable, Some(30)),
        Code::RepositoryEmpty => (Grpc::Unavailable, Some(10)),
        Code::UpstreamNotFound | Code::RefNotFound | Code::CommitNotFound | Code::LfsObjectMissing => {
            (Grpc::NotFound, None)
        }
        Code::RepositoriesLimit => (Grpc::ResourceExhausted, Some(60)),
        Code::RepositoryNotDeclared | Code::RepositoryNotAllowed => (Grpc::PermissionDenied, None),
        Code::UpstreamUnauthorized => (Grpc::PermissionDenied, None),
        Code::CredentialUnreadable => (Grpc::Unavailable, Some(30)),
        Code::GitMemoryLimit => (Grpc::ResourceExhausted, Some(30)),
        Code::RepositoryCorrupt | Code::LfsObjectCorrupt => (Grpc::DataLoss, None),
        Code::DiskFloor | Code::DiskInodesFloor => (Grpc::ResourceExhausted, Some(30)),
        _ => (Grpc::FailedPrecondition, None),
    };
    let mut about = HashMap::new();
    if !reason.subject.is_empty() {
        about.insert("subject".to_owned(), reason.subject.clone());
    }
    let mut details = ErrorDetails::with_error_info(reason.code.word(), DOMAIN, about);
    // What knows when it may be over says so, to the second.
    let known = reason.expected_until.map(|at| at.since(crate::admission::now()).0.max(0).unsigned_abs() / 1000 + 1);
    if let Some(seconds) = again.map(|usual| known.unwrap_or(usual)) {
        details.set_retry_info(Some(Duration::from_secs(seconds)));
    }
    Status::with_error_details(code, reason.message.clone(), details)
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        let code = match &denied {
            Denied::Unknown(_) => Grpc::Unauthenticated,
            Denied::Forbidden(_) => Grpc::PermissionDenied,
            Denied::TooOften(..) => Grpc::ResourceExhausted,
            Denied::Unchecked(_) => Grpc::Unavailable,
        };
        let again = denied.again();
        let reason = denied.reason();
        let mut details = ErrorDetails::with_error_info(reason.code.word(), DOMAIN, HashMap::new());
        if again.is_some() {
            details.set_retry_info(again);
        }
        Self::with_error_details(code, reason.message.clone(), details)
    }
}

impl From<AdmissionError> for Status {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::Source(reason) => refusal(&reason),
            AdmissionError::Writer(error) => error.into(),
        }
    }
}

impl From<WriterError> for Status {
    fn from(error: WriterError) -> Self {
        let message = error.to_string();
        let (code, word, again) = match &error {
            WriterError::Refused(Refused::Conflict(_)) => (Grpc::AlreadyExists, "REQUEST_ID_CONFLICT", None),
            WriterError::Refused(Refused::NoLease(_)) => (Grpc::NotFound, "LEASE_NOT_FOUND", None),
            WriterError::Refused(Refused::NoTicket(_)) => (Grpc::NotFound, "TICKET_NOT_FOUND", None),
            WriterError::Refused(Refused::Ended(..)) => (Grpc::FailedPrecondition, "LEASE_ENDED", None),
            WriterError::Refused(Refused::BoundToAnother(_)) => (Grpc::FailedPrecondition, "LEASE_BOUND", None),
            WriterError::Refused(Refused::NotOver(_)) => (Grpc::FailedPrecondition, "LEASE_LIVE", None),
            WriterError::Refused(Refused::NotOutOfMemory(_)) => (Grpc::FailedPrecondition, "NOT_OUT_OF_MEMORY", None),
            WriterError::Refused(Refused::OtherRepository(..)) => (Grpc::FailedPrecondition, "RETRY_OF_OTHER", None),
            WriterError::Refused(Refused::Retried(..)) => (Grpc::AlreadyExists, "RETRIED_ALREADY", None),
            WriterError::Journal(_) => (Grpc::Unavailable, Code::JournalUnavailable.word(), Some(30)),
            WriterError::Busy => (Grpc::ResourceExhausted, "BUSY", Some(1)),
            WriterError::Stopping => (Grpc::Unavailable, "STOPPING", Some(5)),
        };
        let mut details = ErrorDetails::with_error_info(word, DOMAIN, HashMap::new());
        if let Some(seconds) = again {
            details.set_retry_info(Some(Duration::from_secs(seconds)));
        }
        Self::with_error_details(code, message, details)
    }
}
