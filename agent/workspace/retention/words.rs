//! A plan in words: each removal with its reason and figures.

use std::collections::{BTreeMap, BTreeSet};

use stoker_core::quantity::{Resource, Span};
use stoker_core::reason::{Code, Reason};
use stoker_core::retention::{Plan, Removal, What, Why};

use super::observe::Observed;
use super::{Going, at};
use crate::config::{Config, Retention as Word};

/// One removal.
pub(super) fn going(config: &Config, observed: &Observed, removal: &Removal) -> Option<Going> {
    let (thing, place) = at(observed, removal)?;
    let facts = &observed.facts;
    let directory = |index: usize| observed.directories.get(index).map(|used| used.path.display().to_string());
    let message = match (&removal.why, &thing.what) {
        (Why::Expired, _) => format!("kept as long as {} says; `stoker output release` keeps one for good", place.rule),
        (Why::Aged, What::Aged { directory: at, .. }) => {
            let (name, keep) = (directory(*at).unwrap_or_default(), days(facts.limits.keep));
            format!("seen in {name}, declared with retention `output`, for {keep}")
        }
        (Why::LeaseOver, What::Scratch { directory: at, .. }) => {
            let name = directory(*at).unwrap_or_default();
            format!("in {name}, declared with retention `scratch`; no lease lives that did when it was first seen")
        }
        (Why::Unknown, _) => {
            let grace = days(facts.limits.grace);
            format!("no lease, output or rule knows it; it is left alone for {grace} after it was first seen")
        }
        (Why::TenantLimit, _) => {
            let limit = shown(config.keeping.tenant_limit);
            format!(
                "the caches of its tenant hold more than caches.tenantLimit, {limit}, and it was not used for longest"
            )
        }
        (Why::CachesLimit, _) => {
            let limit = shown(config.keeping.caches_limit);
            format!("caches hold more than caches.limit, {limit}, and it was not used for longest")
        }
        (why, What::Aged { directory: at, .. } | What::Scratch { directory: at, .. }) => {
            let limit = facts.limits.directories.get(*at).copied().flatten();
            format!(
                "{} holds more than its limit, {}, and it is there for longest [{why:?}]",
                directory(*at).unwrap_or_default(),
                shown(limit)
            )
        }
        (why, _) => format!("{why:?}"),
    };
    Some(Going {
        kind: place.kind,
        pool: place.pool.clone(),
        path: place.path.clone(),
        id: place.id.clone(),
        bytes: thing.bytes,
        at: removal.at,
        reason: Reason::new(removal.why.code(), place.path.to_string_lossy(), message),
    })
}

/// Limits that stay passed.
pub(super) fn over(config: &Config, observed: &Observed, plan: &Plan) -> Vec<Reason> {
    let mut all: Vec<Reason> = Vec::new();
    for over in &plan.over {
        let by = Resource::DiskBytes.show(over.bytes);
        let used = over.directory.and_then(|at| observed.directories.get(at));
        let (subject, message) = match (over.why, used) {
            (Why::TenantLimit, _) => {
                let tenant = over.tenant.clone().unwrap_or_default();
                let limit = shown(config.keeping.tenant_limit);
                let message =
                    format!("the caches of {tenant} are {by} above caches.tenantLimit, {limit}: builds have them");
                (tenant, message)
            }
            (_, Some(used)) => {
                let (name, limit) = (used.path.display().to_string(), shown(used.limit));
                let message = format!("directory {name} is {by} above its limit, {limit}: leases hold what is in it");
                (name, message)
            }
            _ => {
                let limit = shown(config.keeping.caches_limit);
                ("caches".to_owned(), format!("caches are {by} above caches.limit, {limit}: builds have them"))
            }
        };
        all.push(Reason::new(over.why.code(), subject, message));
    }
    // Those that fill these keep them within a quota of their own, or should.
    for used in observed.directories.iter().filter(|used| used.retention == Word::Cache) {
        if let Some(limit) = used.limit.filter(|limit| used.bytes > *limit) {
            let name = used.path.display().to_string();
            let message = format!(
                "directory {name} holds {}, its limit is {}: set the quota of the tool that fills it, or raise the limit",
                Resource::DiskBytes.show(used.bytes),
                Resource::DiskBytes.show(limit)
            );
            all.push(Reason::new(Code::DirectoryLimit, name, message).about(Resource::DiskBytes, used.bytes, limit));
        }
    }
    all
}

/// What nobody knows and does not go now, one alarm a pool.
pub(super) fn orphans(config: &Config, observed: &Observed, goes: &BTreeSet<usize>) -> Vec<Reason> {
    let mut by_pool: BTreeMap<&str, (usize, u64, String)> = BTreeMap::new();
    for (index, (thing, place)) in observed.facts.things.iter().zip(&observed.places).enumerate() {
        if !matches!(thing.what, What::Own { known: false, .. }) || goes.contains(&index) {
            continue;
        }
        let (count, bytes, _) = by_pool.entry(&place.pool).or_insert_with(|| (0, 0, place.path.display().to_string()));
        *count += 1;
        *bytes = bytes.saturating_add(thing.bytes);
    }
    let told = by_pool.into_iter().map(|(pool, (count, bytes, first))| {
        let (bytes, grace) = (Resource::DiskBytes.show(bytes), days(config.keeping.orphan_grace));
        let things = if count == 1 { first } else { format!("{first} and {} more", count - 1) };
        let message =
            format!("pool {pool}: no lease, output or rule knows {things} ({bytes}); gone {grace} after first seen");
        Reason::new(Code::Orphan, pool, message)
    });
    told.collect()
}

fn shown(limit: Option<u64>) -> String {
    limit.map(|bytes| Resource::DiskBytes.show(bytes).to_string()).unwrap_or_default()
}

fn days(span: Span) -> String {
    crate::workspace::outputs::days(span.0)
}
