//! What goes when the repositories are over their limit, or the pool is below its floor.
//!
//! Files are shared: by snapshots of one mirror, by forks of one network, by the store. So everything is judged by what
//! really comes free: a file is freed with its last holder. Begun above the high mark, it goes on down to the low one,
//! so that a node at its limit does not evict with every fetch. In this order: superseded snapshots, before their grace
//! is over; kept checkouts; mirrors, the least valuable first. A mirror's value is the time that it costs to fetch
//! again for each byte, over the time since it was used (GreedyDual-Size, Cao and Irani 1997). Never: what is pinned,
//! leased, being fetched, or younger than the minimum age, or it would thrash.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use crate::quantity::{Span, Timestamp};

/// The low mark lies below the high one by one part in so many.
const LOW_PARTS: u64 = 10;
/// One fork of a network that stays frees next to nothing: less than one part in so many of what is missing is not
/// worth a fetch.
const WORTH_PARTS: u64 = 100;

/// A file on the disk, however many names it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// What it takes.
    pub bytes: u64,
    /// How many names it has; those that no candidate and no store has count too, and keep it.
    pub holders: u64,
}

/// Kinds, in the order in which they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A snapshot that is not the newest of its mirror.
    OldSnapshot,
    /// The source files of one commit.
    Checkout,
    /// A whole mirror: its newest snapshot, and with the last one of a network, the store.
    Mirror,
}

/// Why something must stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Somebody pinned it.
    Pinned,
    /// A lease or a reader has it.
    InUse,
    /// It is being filled or fetched.
    Busy,
}

/// Something that could go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What it is.
    pub kind: Kind,
    /// The files of which it has a name, by their index; one that it names twice stands twice.
    pub files: Vec<usize>,
    /// Candidates that go with it: a mirror's old snapshots.
    pub along: Vec<usize>,
    /// The store of a mirror; empty for others.
    pub store: String,
    /// Why it must stay.
    pub held: Option<Held>,
    /// When it came.
    pub filled_at: Timestamp,
    /// When it was last used; of an old snapshot, when it was superseded.
    pub used_at: Timestamp,
    /// How long it took to fetch.
    pub fill: Span,
}

/// What goes with the last mirror of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// The files of which it has a name.
    pub files: Vec<usize>,
    /// How many mirrors fetch into it, candidates or not.
    pub members: usize,
}

/// The disk, and its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// What all repositories take, each file once.
    pub used_bytes: u64,
    /// What they may take.
    pub limit_bytes: Option<u64>,
    /// What the pool has free, and what is on its way out.
    pub free_bytes: u64,
    /// What of it must stay free.
    pub floor_bytes: u64,
    /// Now.
    pub now: Timestamp,
    /// Nothing younger goes.
    pub min_age: Span,
}

/// Which mark was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// More than the limit.
    Limit,
    /// Less free than the floor.
    Floor,
}

impl Cause {
    /// The word for metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Floor => "floor",
        }
    }
}

/// What goes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Why anything does.
    pub cause: Option<Cause>,
    /// The candidates that go, by their index, in order.
    pub evicted: Vec<usize>,
    /// What comes free.
    pub freed_bytes: u64,
    /// What is still missing to be within the marks where evictions began: a fill would make it worse.
    pub over_bytes: u64,
}

/// How much is missing: above the high marks, and down to the low ones.
fn missing(facts: &Facts) -> (Option<Cause>, u64, u64) {
    let above_limit = |limit: u64| facts.used_bytes.saturating_sub(limit);
    let below_floor = |floor: u64| floor.saturating_sub(facts.free_bytes);
    let low = |mark: u64| mark / LOW_PARTS;
    let over_limit = facts.limit_bytes.map_or(0, above_limit);
    let over_floor = below_floor(facts.floor_bytes);
    let cause = match (over_limit, over_floor) {
        (0, 0) => return (None, 0, 0),
        (0, _) => Cause::Floor,
        _ => Cause::Limit,
    };
    // Only the mark that was passed is left behind.
    let to_limit = match (over_limit, facts.limit_bytes) {
        (1.., Some(limit)) => above_limit(limit.saturating_sub(low(limit))),
        _ => 0,
    };
    let to_floor =
        if over_floor > 0 { below_floor(facts.floor_bytes.saturating_add(low(facts.floor_bytes))) } else { 0 };
    (Some(cause), over_limit.max(over_floor), to_limit.max(to_floor))
}

/// Names that are left, while candidates go.
#[derive(Clone)]
struct Ledger<'a> {
    files: &'a [File],
    stores: &'a BTreeMap<String, Store>,
    candidates: &'a [Candidate],
    left: Vec<u64>,
    members: BTreeMap<&'a str, usize>,
    gone: BTreeSet<usize>,
}

impl<'a> Ledger<'a> {
    fn new(files: &'a [File], stores: &'a BTreeMap<String, Store>, candidates: &'a [Candidate]) -> Self {
        let left = files.iter().map(|file| file.holders).collect();
        let members = stores.iter().map(|(name, store)| (name.as_str(), store.members)).collect();
        Self { files, stores, candidates, left, members, gone: BTreeSet::new() }
    }

    /// Takes these names away; gives the bytes that come free.
    fn drop_names(&mut self, names: &[usize]) -> u64 {
        let mut freed = 0_u64;
        for at in names {
            let (Some(left), Some(file)) = (self.left.get_mut(*at), self.files.get(*at)) else { continue };
            if *left == 1 {
                freed = freed.saturating_add(file.bytes);
            }
            *left = left.saturating_sub(1);
        }
        freed
    }

    /// Takes a candidate away, with all that goes along, and with the last mirror of a store that too.
    fn remove(&mut self, at: usize) -> u64 {
        let candidates = self.candidates;
        let Some(candidate) = candidates.get(at).filter(|_| self.gone.insert(at)) else { return 0 };
        let mut freed = self.drop_names(&candidate.files);
        for along in &candidate.along {
            if let Some(other) = candidates.get(*along).filter(|_| self.gone.insert(*along)) {
                freed = freed.saturating_add(self.drop_names(&other.files));
            }
        }
        if candidate.kind != Kind::Mirror {
            return freed;
        }
        let stores = self.stores;
        let last = self.members.get_mut(candidate.store.as_str()).is_some_and(|members| {
            *members = members.saturating_sub(1);
            *members == 0
        });
        match stores.get(&candidate.store) {
            Some(store) if last => freed.saturating_add(self.drop_names(&store.files)),
            _ => freed,
        }
    }

    /// What would come free, without taking it away.
    fn would_free(&self, unit: &[usize]) -> u64 {
        let mut copy = self.clone();
        unit.iter().map(|at| copy.remove(*at)).fold(0, u64::saturating_add)
    }
}

/// What goes now.
#[must_use]
pub fn decide(files: &[File], stores: &BTreeMap<String, Store>, candidates: &[Candidate], facts: &Facts) -> Plan {
    let (cause, over, wanted) = missing(facts);
    if cause.is_none() {
        return Plan::default();
    }
    let mut plan = Plan { cause, ..Plan::default() };
    let mut ledger = Ledger::new(files, stores, candidates);
    let free: Vec<usize> = (0..candidates.len()).filter(|at| may_go(candidates, *at, facts)).collect();
    for kind in [Kind::OldSnapshot, Kind::Checkout] {
        for at in oldest(candidates, &free, kind, &ledger) {
            if plan.freed_bytes >= wanted {
                break;
            }
            plan.freed_bytes = plan.freed_bytes.saturating_add(ledger.remove(at));
            plan.evicted.push(at);
        }
    }
    for unit in mirrors(candidates, &free, stores, &ledger, facts.now) {
        if plan.freed_bytes >= wanted {
            break;
        }
        let freed = ledger.would_free(&unit);
        if freed.saturating_mul(WORTH_PARTS) < wanted.saturating_sub(plan.freed_bytes) || freed == 0 {
            continue;
        }
        for at in &unit {
            ledger.remove(*at);
        }
        plan.freed_bytes = plan.freed_bytes.saturating_add(freed);
        plan.evicted.extend(unit);
    }
    plan.over_bytes = over.saturating_sub(plan.freed_bytes);
    plan
}

fn may_go(candidates: &[Candidate], at: usize, facts: &Facts) -> bool {
    candidates.get(at).is_some_and(|candidate| {
        let young = candidate.kind != Kind::OldSnapshot && facts.now.since(candidate.filled_at) < facts.min_age;
        candidate.held.is_none() && !young
    })
}

/// Those of a kind without which something comes free, though it may take several; the oldest first.
fn oldest(candidates: &[Candidate], free: &[usize], kind: Kind, ledger: &Ledger<'_>) -> Vec<usize> {
    let of_kind = || free.iter().copied().filter(|at| candidates.get(*at).is_some_and(|found| found.kind == kind));
    let mut names: BTreeMap<usize, u64> = BTreeMap::new();
    for file in of_kind().filter_map(|at| candidates.get(at)).flat_map(|found| &found.files) {
        let count = names.entry(*file).or_default();
        *count = count.saturating_add(1);
    }
    let goes =
        |file: &usize| names.get(file).is_some_and(|count| ledger.left.get(*file).is_some_and(|all| count >= all));
    let mut sorted: Vec<usize> =
        of_kind().filter(|at| candidates.get(*at).is_some_and(|c| c.files.iter().any(goes))).collect();
    sorted.sort_by_key(|at| candidates.get(*at).map(|candidate| candidate.used_at));
    sorted
}

/// Mirrors that go together, the least valuable first: all of a network where all of it may go, else each alone.
fn mirrors(
    candidates: &[Candidate],
    free: &[usize],
    stores: &BTreeMap<String, Store>,
    ledger: &Ledger<'_>,
    now: Timestamp,
) -> Vec<Vec<usize>> {
    let mut networks: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for at in free {
        if let Some(candidate) = candidates.get(*at).filter(|candidate| candidate.kind == Kind::Mirror) {
            networks.entry(&candidate.store).or_default().push(*at);
        }
    }
    let mut units: Vec<(u128, Vec<usize>)> = Vec::new();
    for (store, members) in networks {
        let whole = stores.get(store).is_some_and(|store| store.members == members.len());
        let split: Vec<Vec<usize>> =
            if whole { alloc::vec![members] } else { members.iter().map(|at| alloc::vec![*at]).collect() };
        units.extend(split.into_iter().map(|unit| (worthlessness(candidates, &unit, ledger, now), unit)));
    }
    units.sort_by_key(|(worthless, _)| core::cmp::Reverse(*worthless));
    units.into_iter().map(|(_, unit)| unit).collect()
}

/// Time since use, times bytes that come free, over the time that they took to come.
fn worthlessness(candidates: &[Candidate], unit: &[usize], ledger: &Ledger<'_>, now: Timestamp) -> u128 {
    let members: Vec<&Candidate> = unit.iter().filter_map(|at| candidates.get(*at)).collect();
    let positive = |span: Span| u128::try_from(span.0).unwrap_or(0).max(1);
    let idle = members.iter().map(|member| positive(now.since(member.used_at))).min().unwrap_or(1);
    let fill = members.iter().map(|member| positive(member.fill)).fold(0, u128::saturating_add).max(1);
    idle.saturating_mul(u128::from(ledger.would_free(unit))).checked_div(fill).unwrap_or(0)
}
