//! Messages in, the core's words out: each field is checked here once, and refused by its name.

use std::fmt;
use std::str::FromStr;

use prost_types::Duration as ProtoDuration;
use stoker_core::admission::{Rebind, Terms, Usage};
use stoker_core::identity::{NAME_BYTES_MAX, NameError, Scope, check_name};
use stoker_core::quantity::{Amounts, Span};
use stoker_core::sizing::{Declared, Measured, Outcome};
use stoker_core::source::{self, RepositoryUrl, SourceRef};
use stoker_proto::v1;
use tonic::Status;

use super::error::bad;
use crate::admission::Build;
use crate::sizing::is_cache_key;

/// No node has more: 2^20 cores, an exbibyte, 2^50 inodes. Beyond them a value is a mistake, not a wish.
const CPU_MILLIS_MAX: i64 = (1 << 20) * 1000;
const BYTES_MAX: i64 = 1 << 60;
const INODES_MAX: i64 = 1 << 50;
const CACHE_KEYS_MAX: usize = 16;

/// The name of a field. It is spelled out only where something is wrong with it: schedulers ask often, and rightly.
#[derive(Debug, Clone, Copy)]
pub(super) enum Field<'a> {
    /// By its name.
    Of(&'a str),
    /// One of another's. The request itself has no name.
    In(&'a Field<'a>, &'a str),
    /// One of many, from 0.
    At(&'a str, usize),
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(name) | Self::In(Self::Of(""), name) => f.write_str(name),
            Self::In(outer, name) => write!(f, "{outer}.{name}"),
            Self::At(name, place) => write!(f, "{name}[{place}]"),
        }
    }
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(name: &'a str) -> Self {
        Self::Of(name)
    }
}

impl From<Field<'_>> for String {
    fn from(field: Field<'_>) -> Self {
        field.to_string()
    }
}

/// An id, at most 128 visible ASCII characters.
pub(super) fn id<'a, T: TryFrom<String, Error = NameError>>(
    field: impl Into<Field<'a>>,
    text: String,
) -> Result<T, Status> {
    T::try_from(text).map_err(|why| bad(field.into(), format!("{why}; give 1 to 128 visible ASCII characters")))
}

pub(super) fn url<'a>(field: impl Into<Field<'a>>, text: &str) -> Result<RepositoryUrl, Status> {
    RepositoryUrl::from_str(text).map_err(|why| bad(field.into(), why.to_string()))
}

/// A span of at least a second and at most `max`; `default` where it is unset.
pub(super) fn span<'a>(
    field: impl Into<Field<'a>>,
    given: Option<ProtoDuration>,
    default: Span,
    max: Span,
) -> Result<Span, Status> {
    let Some(given) = given else { return Ok(default) };
    let span = exact_span(given).filter(|span| (1_000..=max.0).contains(&span.0));
    span.ok_or_else(|| bad(field.into(), format!("is {}s; give 1s to {}s", given.seconds, max.0 / 1000)))
}

fn exact_span(given: ProtoDuration) -> Option<Span> {
    let millis = given.seconds.checked_mul(1000)?.checked_add(i64::from(given.nanos) / 1_000_000)?;
    (millis >= 0).then_some(Span(millis))
}

pub(super) fn scope<'a>(field: impl Into<Field<'a>>, scope: Option<v1::Scope>) -> Result<Scope, Status> {
    let field = field.into();
    let v1::Scope { tenant, project, branch } = scope.unwrap_or_default();
    for (name, text) in [("tenant", &tenant), ("project", &project), ("branch", &branch)] {
        check_name(text).map_err(|why| bad(Field::In(&field, name), why.to_string()))?;
    }
    Ok(Scope { tenant, project, branch })
}

pub(super) fn source<'a>(field: impl Into<Field<'a>>, source: Option<v1::Source>) -> Result<source::Request, Status> {
    let field = field.into();
    let source = source.ok_or_else(|| bad(field, "is missing; name the repository and the ref"))?;
    let at = |name: &'static str| Field::In(&field, name);
    let reference = match source.r#ref {
        None | Some(v1::source::Ref::Head(_)) => SourceRef::Head,
        Some(v1::source::Ref::Branch(name)) => {
            SourceRef::Branch(name.parse().map_err(|why| bad(at("branch"), format!("{why}")))?)
        }
        Some(v1::source::Ref::Tag(name)) => {
            SourceRef::Tag(name.parse().map_err(|why| bad(at("tag"), format!("{why}")))?)
        }
        Some(v1::source::Ref::PullRequest(0)) => return Err(bad(at("pull_request"), "is 0; numbers begin at 1")),
        Some(v1::source::Ref::PullRequest(number)) => SourceRef::PullRequest(number),
        Some(v1::source::Ref::Commit(hex)) => SourceRef::Commit(commit(at("commit"), &hex)?),
    };
    let max_age = match source.max_age {
        None => None,
        Some(given) => Some(exact_span(given).ok_or_else(|| bad(at("max_age"), "is negative; give 0s or more"))?),
    };
    let expected_commit = match source.expected_commit.as_str() {
        "" => None,
        hex => Some(commit(at("expected_commit"), hex)?),
    };
    Ok(source::Request {
        url: url(at("repository_url"), &source.repository_url)?,
        reference,
        max_age,
        allow_stale: source.allow_stale,
        expected_commit,
        allow_other_fork: source.allow_other_fork,
    })
}

fn commit(field: Field<'_>, hex: &str) -> Result<stoker_core::identity::CommitId, Status> {
    hex.parse().map_err(|why| bad(field, format!("{why}; give all 40 lower-case hexadecimal digits")))
}

/// A whole build.
pub(super) fn build<'a>(field: impl Into<Field<'a>>, build: Option<v1::Build>) -> Result<Build, Status> {
    let field = field.into();
    let build = build.ok_or_else(|| bad(field, "is missing"))?;
    let at = |name: &'static str| Field::In(&field, name);
    for (name, text) in [("target", &build.target), ("architecture", &build.architecture)] {
        if text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(bad(at(name), format!("has control characters or more than {NAME_BYTES_MAX} bytes")));
        }
    }
    cache_keys(at("cache_keys"), &build.cache_keys)?;
    let declared = declared(at("declared"), build.declared.unwrap_or_default())?;
    let measured = build.measured.map(|measured| self::measured(at("measured"), measured)).transpose()?;
    Ok(Build {
        source: source(at("source"), build.source)?,
        scope: scope(at("scope"), build.scope)?,
        target: build.target,
        architecture: build.architecture,
        declared: Declared { measured, ..declared },
        cache_keys: build.cache_keys,
    })
}

fn cache_keys(field: Field<'_>, keys: &[String]) -> Result<(), Status> {
    if keys.len() > CACHE_KEYS_MAX {
        return Err(bad(field, format!("has {} entries, at most {CACHE_KEYS_MAX} are allowed", keys.len())));
    }
    match keys.iter().position(|key| !is_cache_key(key)) {
        Some(i) => Err(bad(
            format!("{field}[{i}]"),
            format!("{:?} is no key; use 1 to 64 of a-z 0-9 . _ - not beginning with a dot", keys[i]),
        )),
        None => Ok(()),
    }
}

fn declared(field: Field<'_>, size: v1::Size) -> Result<Declared, Status> {
    let amount = |name: &'static str, value: Option<i64>, max: i64, unit: &str| match value {
        None => Ok(None),
        Some(value) if (1..=max).contains(&value) => Ok(u64::try_from(value).ok()),
        Some(value) => {
            Err(bad(Field::In(&field, name), format!("is {value}; give 1 to {max} {unit}, or leave it out")))
        }
    };
    let time_budget = match size.time_budget {
        None => None,
        given => Some(span(Field::In(&field, "time_budget"), given, Span(0), Span::hours(24))?),
    };
    Ok(Declared {
        cpu_millis: amount("cpu_millis", size.cpu_millis, CPU_MILLIS_MAX, "thousandths of a core")?,
        memory_bytes: amount("memory_bytes", size.memory_bytes, BYTES_MAX, "bytes")?,
        disk_bytes: amount("disk_bytes", size.disk_bytes, BYTES_MAX, "bytes")?,
        disk_inodes: amount("disk_inodes", size.disk_inodes, INODES_MAX, "inodes")?,
        time_budget,
        measured: None,
        pod: Amounts::default(),
    })
}

fn measured(field: Field<'_>, measured: v1::Measured) -> Result<Measured, Status> {
    let positive = |name: &str, value: i64, max: i64| match u64::try_from(value) {
        Ok(value) if i64::try_from(value).is_ok_and(|v| v <= max) => Ok(value),
        _ => Err(bad(Field::In(&field, name), format!("is {value}; give 0 to {max}"))),
    };
    Ok(Measured {
        cpu_millis_p95: positive("cpu_millis_p95", measured.cpu_millis_p95, CPU_MILLIS_MAX)?,
        memory_bytes_p95: positive("memory_bytes_p95", measured.memory_bytes_p95, BYTES_MAX)?,
        runs: u32::try_from(measured.runs).map_err(|_| bad(Field::In(&field, "runs"), "is negative"))?,
    })
}

pub(super) fn usage(field: &str, usage: v1::Usage) -> Result<Usage, Status> {
    let positive = |name: &str, value: i64| match u64::try_from(value) {
        Ok(told) if value <= BYTES_MAX => Ok(told),
        _ => Err(bad(format!("{field}.{name}"), format!("is {value}; give 0 to {BYTES_MAX}"))),
    };
    let spanned = |name: &str, given: Option<ProtoDuration>| {
        exact_span(given.unwrap_or_default())
            .ok_or_else(|| bad(format!("{field}.{name}"), "is negative; give 0s or more"))
    };
    Ok(Usage {
        memory_bytes_peak: positive("memory_bytes_peak", usage.memory_bytes_peak)?,
        cpu_millis_peak: positive("cpu_millis_peak", usage.cpu_millis_peak)?,
        cpu_time: spanned("cpu_time", usage.cpu_time)?,
        elapsed: spanned("elapsed", usage.elapsed)?,
        disk_bytes: positive("disk_bytes", usage.disk_bytes)?,
        disk_inodes: positive("disk_inodes", usage.disk_inodes)?,
        processes_peak: u32::try_from(usage.processes_peak)
            .map_err(|_| bad(format!("{field}.processes_peak"), "is negative; give 0 or more"))?,
    })
}

pub(super) fn outcome(field: &str, value: i32) -> Result<Outcome, Status> {
    match v1::Outcome::try_from(value) {
        Ok(v1::Outcome::Succeeded) => Ok(Outcome::Succeeded),
        Ok(v1::Outcome::Failed) => Ok(Outcome::Failed),
        Ok(v1::Outcome::OutOfMemoryLimit) => Ok(Outcome::OutOfMemoryLimit),
        Ok(v1::Outcome::OutOfMemoryNode) => Ok(Outcome::OutOfMemoryNode),
        Ok(v1::Outcome::TimeBudgetExceeded) => Ok(Outcome::TimeBudgetExceeded),
        Ok(v1::Outcome::Evicted) => Ok(Outcome::Evicted),
        Ok(v1::Outcome::Lost) => Ok(Outcome::Lost),
        Ok(v1::Outcome::Unspecified) => Err(bad(field, "is not set; say how the build ended")),
        Err(_) => Err(bad(field, format!("{value} is not known to this version"))),
    }
}

/// One page of what is sorted by `key`: those after the token, at most `size` of them, and the next token.
pub(super) fn page<T>(
    items: impl Iterator<Item = T>,
    key: impl Fn(&T) -> String,
    size: i32,
    token: &str,
) -> Result<(Vec<T>, String), Status> {
    let size = match size {
        0 => 100,
        1..=1000 => usize::try_from(size).unwrap_or(100),
        _ => return Err(bad("page_size", format!("is {size}; give 1 to 1000, or leave it out for 100"))),
    };
    if token.len() > 4096 {
        return Err(bad("page_token", "is not one of ours; pass the next_page_token of the page before"));
    }
    let mut page: Vec<T> = items.filter(|item| token.is_empty() || key(item).as_str() > token).take(size + 1).collect();
    let more = page.len() > size;
    page.truncate(size);
    let next = page.last().filter(|_| more).map(&key).unwrap_or_default();
    Ok((page, next))
}

/// Whose pod may have the lease.
pub(super) fn terms(field: Field<'_>, again: Field<'_>, owner: v1::Owner, rebind: i32) -> Result<Terms, Status> {
    let v1::Owner { namespace, service_account } = owner;
    if namespace.is_empty() != service_account.is_empty() {
        return Err(bad(field, "is half said; give both namespace and service_account, or neither"));
    }
    for (name, max) in [(&namespace, 63), (&service_account, 253)] {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        if name.len() > max || !name.bytes().all(plain) {
            return Err(bad(field, format!("{name:?} is no name that Kubernetes gives; give that of the pod's")));
        }
    }
    let rebind = match v1::Rebind::try_from(rebind) {
        Ok(v1::Rebind::Unspecified | v1::Rebind::Never) => Rebind::Never,
        Ok(v1::Rebind::SameOwner) => Rebind::SameOwner,
        Err(_) => return Err(bad(again, format!("{rebind} is none that is known; give never or same-owner"))),
    };
    Ok(Terms { namespace, service_account, rebind, pod: String::new() })
}
