//! Messages that tests send, and what they look for in refusals.

use stoker_proto::v1::{self, source::Ref};
use tonic::Status;
use tonic_types::StatusExt;

/// A source by URL and ref (`head`, `branch:NAME`, `tag:NAME`, `pr:N`, `sha:HEX`). Nothing is checked.
pub(crate) fn source(url: &str, reference: &str) -> v1::Source {
    let reference = match reference.split_once(':') {
        Some(("branch", name)) => Ref::Branch(name.to_owned()),
        Some(("tag", name)) => Ref::Tag(name.to_owned()),
        Some(("pr", number)) => Ref::PullRequest(number.parse().unwrap()),
        Some(("sha", hex)) => Ref::Commit(hex.to_owned()),
        _ => Ref::Head(v1::Head {}),
    };
    v1::Source { repository_url: url.to_owned(), r#ref: Some(reference), ..v1::Source::default() }
}

/// Seconds as a message has them.
pub(crate) fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// The fields that a refusal names.
pub(crate) fn violations(status: &Status) -> Vec<String> {
    let details = status.get_details_bad_request();
    details.map(|bad| bad.field_violations.into_iter().map(|one| one.field).collect()).unwrap_or_default()
}

/// The reason that a refusal carries.
pub(crate) fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// The codes of reasons.
pub(crate) fn codes(reasons: &[v1::Reason]) -> Vec<&'static str> {
    reasons.iter().map(|reason| reason.code().as_str_name()).collect()
}
