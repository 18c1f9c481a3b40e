//! What goes now, what goes next, and why.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use crate::quantity::{Span, Timestamp};
use crate::reason::Code;

/// What a thing is, with what decides over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// What a build left.
    Output {
        /// When it goes.
        expires_at: Timestamp,
        /// Kept for good.
        released: bool,
    },
    /// A cache of a tenant.
    Cache {
        /// Whose.
        tenant: String,
        /// When a build last had it.
        used_at: Timestamp,
        /// A build has it now.
        held: bool,
    },
    /// What lies in a declared directory whose content ages (`output`).
    Aged {
        /// Which, among [`Limits::directories`].
        directory: usize,
        /// When it was first seen there.
        seen_at: Timestamp,
    },
    /// What lies in a declared directory whose content goes with the lease that it was made under (`scratch`).
    Scratch {
        /// Which, among [`Limits::directories`].
        directory: usize,
        /// When it was first seen there.
        seen_at: Timestamp,
    },
    /// What lies in the agent's own directory.
    Own {
        /// When it was first seen without anybody who knows it.
        seen_at: Timestamp,
        /// A lease, a workspace, an output or a room knows it.
        known: bool,
    },
}

/// One thing on a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// What it is.
    pub what: What,
    /// What it takes.
    pub bytes: u64,
}

/// What the operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long content of declared `output` directories is kept.
    pub keep: Span,
    /// How long what nobody knows is left alone.
    pub grace: Span,
    /// The most bytes of all caches of tenants.
    pub caches: Option<u64>,
    /// The most bytes of the caches of one tenant.
    pub tenant: Option<u64>,
    /// The most bytes of each declared directory.
    pub directories: Vec<Option<u64>>,
}

/// All that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What lies on the pools.
    pub things: Vec<Thing>,
    /// When each lease that lives was granted.
    pub leases: Vec<Timestamp>,
    /// What the operator wants.
    pub limits: Limits,
    /// When that is.
    pub now: Timestamp,
}

/// Why a thing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Its time is over.
    Expired,
    /// It lay in a declared directory for as long as such things are kept.
    Aged,
    /// The leases under which it was made have ended.
    LeaseOver,
    /// Nobody knows it.
    Unknown,
    /// The caches of its tenant are over their limit, and it was not used for longest.
    TenantLimit,
    /// All caches are over their limit, and it was not used for longest.
    CachesLimit,
    /// Its directory is over its limit, and it is there for longest.
    DirectoryLimit,
}

impl Why {
    /// The reason as it is told everywhere.
    #[must_use]
    pub const fn code(self) -> Code {
        match self {
            Self::Expired | Self::Aged => Code::RetentionOver,
            Self::LeaseOver => Code::ScratchOver,
            Self::Unknown => Code::Orphan,
            Self::TenantLimit | Self::CachesLimit => Code::CacheLimit,
            Self::DirectoryLimit => Code::DirectoryLimit,
        }
    }
}

/// One thing that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// Its place among [`Facts::things`].
    pub thing: usize,
    /// Why.
    pub why: Why,
    /// When it may go; not after `now` for what goes now.
    pub at: Timestamp,
}

/// A limit that stays passed, for all that is left is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    /// Which.
    pub why: Why,
    /// The tenant, where it is a tenant's limit.
    pub tenant: Option<String>,
    /// The directory, where it is one's.
    pub directory: Option<usize>,
    /// By how much.
    pub bytes: u64,
}

/// What is to be done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What goes now, in this order.
    pub now: Vec<Removal>,
    /// What goes later if nothing changes, the next first.
    pub next: Vec<Removal>,
    /// What cannot be done.
    pub over: Vec<Over>,
}

/// Decides.
#[must_use]
pub fn decide(facts: &Facts) -> Plan {
    let mut due: Vec<Removal> =
        facts.things.iter().enumerate().filter_map(|(at, thing)| due(facts, at, thing)).collect();
    due.sort_by_key(|removal| (removal.at, removal.thing));
    let (now, next) = due.into_iter().partition(|removal: &Removal| removal.at <= facts.now);
    let mut plan = Plan { now, next, over: Vec::new() };
    let mut gone: BTreeSet<usize> = plan.now.iter().map(|removal| removal.thing).collect();
    tenants(facts, &mut plan, &mut gone);
    caches(facts, &mut plan, &mut gone);
    directories(facts, &mut plan, &mut gone);
    plan.next.retain(|removal| !gone.contains(&removal.thing));
    plan
}

/// When time alone takes a thing away; nothing where it does not.
fn due(facts: &Facts, thing: usize, found: &Thing) -> Option<Removal> {
    let limits = &facts.limits;
    let (why, at) = match &found.what {
        What::Output { released: true, .. } | What::Own { known: true, .. } | What::Cache { .. } => return None,
        What::Output { expires_at, .. } => (Why::Expired, *expires_at),
        What::Aged { seen_at, .. } => (Why::Aged, seen_at.plus(limits.keep)),
        What::Own { seen_at, .. } => (Why::Unknown, seen_at.plus(limits.grace)),
        // Under which lease it was made nobody tells; so under any that lived when it was first seen.
        What::Scratch { seen_at, .. } if facts.leases.iter().any(|granted| granted <= seen_at) => return None,
        What::Scratch { seen_at, .. } => (Why::LeaseOver, seen_at.plus(limits.grace)),
    };
    Some(Removal { thing, why, at })
}

/// Takes those away that come first until the rest is within `limit`; gives what is still too much.
fn shrink(
    facts: &Facts,
    members: Vec<usize>,
    limit: u64,
    why: Why,
    plan: &mut Plan,
    gone: &mut BTreeSet<usize>,
) -> u64 {
    let bytes = |at: usize| facts.things.get(at).map_or(0, |thing| thing.bytes);
    let left = members.iter().filter(|at| !gone.contains(*at)).map(|at| bytes(*at));
    let mut used = left.fold(0, u64::saturating_add);
    let mut free: Vec<(Timestamp, usize)> =
        members.into_iter().filter_map(|at| Some((since(facts, at)?, at))).collect();
    free.sort_unstable();
    for (_, thing) in free {
        if used <= limit {
            return 0;
        }
        // What takes nothing would go for nothing.
        if gone.contains(&thing) || bytes(thing) == 0 {
            continue;
        }
        used = used.saturating_sub(bytes(thing));
        gone.insert(thing);
        plan.now.push(Removal { thing, why, at: facts.now });
    }
    used.saturating_sub(limit)
}

/// By what things are taken first where there are too many; nothing for what may not go.
fn since(facts: &Facts, at: usize) -> Option<Timestamp> {
    match &facts.things.get(at)?.what {
        What::Cache { used_at, held: false, .. } => Some(*used_at),
        What::Aged { seen_at, .. } => Some(*seen_at),
        What::Scratch { seen_at, .. } if !facts.leases.iter().any(|granted| granted <= seen_at) => Some(*seen_at),
        _ => None,
    }
}

fn tenants(facts: &Facts, plan: &mut Plan, gone: &mut BTreeSet<usize>) {
    let Some(limit) = facts.limits.tenant else { return };
    let mut by_tenant: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, thing) in facts.things.iter().enumerate() {
        if let What::Cache { tenant, .. } = &thing.what {
            by_tenant.entry(tenant).or_default().push(at);
        }
    }
    for (tenant, members) in by_tenant {
        let bytes = shrink(facts, members, limit, Why::TenantLimit, plan, gone);
        if bytes > 0 {
            plan.over.push(Over { why: Why::TenantLimit, tenant: Some(tenant.into()), directory: None, bytes });
        }
    }
}

fn caches(facts: &Facts, plan: &mut Plan, gone: &mut BTreeSet<usize>) {
    let Some(limit) = facts.limits.caches else { return };
    let cache = |(at, thing): (usize, &Thing)| matches!(thing.what, What::Cache { .. }).then_some(at);
    let members = facts.things.iter().enumerate().filter_map(cache).collect();
    let bytes = shrink(facts, members, limit, Why::CachesLimit, plan, gone);
    if bytes > 0 {
        plan.over.push(Over { why: Why::CachesLimit, tenant: None, directory: None, bytes });
    }
}

fn directories(facts: &Facts, plan: &mut Plan, gone: &mut BTreeSet<usize>) {
    for (index, limit) in facts.limits.directories.iter().enumerate() {
        let Some(limit) = limit else { continue };
        let inside = |(at, thing): (usize, &Thing)| match thing.what {
            What::Aged { directory, .. } | What::Scratch { directory, .. } if directory == index => Some(at),
            _ => None,
        };
        let members = facts.things.iter().enumerate().filter_map(inside).collect();
        let bytes = shrink(facts, members, *limit, Why::DirectoryLimit, plan, gone);
        if bytes > 0 {
            plan.over.push(Over { why: Why::DirectoryLimit, tenant: None, directory: Some(index), bytes });
        }
    }
}
