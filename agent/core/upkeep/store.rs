//! Upkeep of one store, by need and by time.
//!
//! Many packs make every lookup slow, and no bitmap makes every clone slow; a full repack costs a second copy of the
//! disk while snapshots hold the old one. So geometric repacks (git-repack(1)) keep the number of packs logarithmic,
//! and full ones are rare.

use alloc::vec::Vec;

use crate::quantity::{Span, Timestamp};

/// However small a store is, so many packs are no reason to repack.
const PACKS_MIN: u64 = 5;
/// Loose objects are rare here (`fetch.unpackLimit=1`); more than these are packed.
const LOOSE_MAX: u64 = 256;
/// A store of fewer objects is served fast without a bitmap.
const BITMAP_FROM_OBJECTS: u64 = 1000;
/// Packs that are in no index yet are taken in at least so often.
const INDEX_WITHIN: Span = Span::hours(24);
/// The factor between the packs that a geometric repack leaves.
pub const FACTOR: u64 = 2;
/// A store that gave way for so many periods gives way no more.
const PATIENCE_PERIODS: i64 = 24;

/// One ordinary pack: neither kept nor cruft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pack {
    /// How many objects.
    pub objects: u64,
    /// With its index.
    pub bytes: u64,
}

/// The state of a store's commit-graph (gitformat-commit-graph(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graph {
    /// There is none, though there are packs.
    Missing,
    /// Packs came since it was written.
    Behind,
    /// It has all.
    Current,
}

/// A store, as it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its ordinary packs.
    pub packs: Vec<Pack>,
    /// Packs of unreachable objects that wait for the end of their grace, and their bytes.
    pub cruft_packs: u64,
    /// Their bytes.
    pub cruft_bytes: u64,
    /// Loose objects.
    pub loose: u64,
    /// Ordinary packs that came after the multi-pack-index was written; all where there is none.
    pub unindexed: u64,
    /// A bitmap is there.
    pub bitmap: bool,
    /// Its commit-graph.
    pub graph: Graph,
    /// When the store was made.
    pub created_at: Timestamp,
    /// When packs or refs last changed.
    pub changed_at: Timestamp,
    /// When upkeep last repacked it.
    pub repacked_at: Option<Timestamp>,
    /// When it was last repacked in full.
    pub full_at: Option<Timestamp>,
}

/// What an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How often stores are looked at.
    pub every: Span,
    /// How often a store that changed is repacked in full.
    pub full_every: Span,
}

/// A way to repack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repack {
    /// Small packs are joined; the large ones stay.
    Geometric,
    /// All into one, and what no ref reaches into a pack of its own, until its grace is over.
    Full,
}

impl Repack {
    /// The word for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Geometric => "geometric repack",
            Self::Full => "full repack",
        }
    }
}

/// Why a repack is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// More packs than a store of this size should have.
    Packs,
    /// Loose objects.
    Loose,
    /// Large, and without a bitmap.
    Bitmap,
    /// Packs that have been in no index for long.
    Index,
    /// The time for a full one has come.
    Time,
}

impl Why {
    /// The words for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Packs => "many packs",
            Self::Loose => "loose objects",
            Self::Bitmap => "no bitmap",
            Self::Index => "packs in no index",
            Self::Time => "due",
        }
    }
}

/// How a commit-graph is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteGraph {
    /// What is new goes on top.
    Add,
    /// A new one in place of all: what it names may have gone.
    Replace,
}

/// What to do.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The repack, and why.
    pub repack: Option<(Repack, Why)>,
    /// The commit-graph: a new one before the repack, which may drop what the old one names; an addition after it.
    pub graph: Option<WriteGraph>,
    /// A repack that was due and has no room: which, and the bytes that it needs above the floor.
    pub skipped: Option<(Repack, u64)>,
}

impl Plan {
    /// Nothing is due.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.repack.is_none() && self.graph.is_none()
    }
}

/// How many packs a store of so many bytes may have: the logarithm of its MiB to the base 1.8, as Gitaly has it, and
/// five at least.
#[must_use]
pub fn packs_max(bytes: u64) -> u64 {
    let mib_thousandths = u128::from(bytes >> 20) * 1000;
    let (mut power, mut count) = (1800_u128, 0_u64);
    while power <= mib_thousandths {
        power = power.saturating_mul(18) / 10;
        count = count.saturating_add(1);
    }
    PACKS_MIN.max(count)
}

/// The bytes that a geometric repack writes anew: of the smallest packs, as many as it takes for each of the rest to
/// have [`FACTOR`] times the objects of all that are smaller; git's own rule.
#[must_use]
pub fn rolled_up(packs: &[Pack]) -> u64 {
    let mut sorted: Vec<Pack> = packs.to_vec();
    sorted.sort_by_key(|pack| pack.objects);
    let apart = |(small, large): (&Pack, &Pack)| large.objects >= small.objects.saturating_mul(FACTOR);
    let pairs = sorted.iter().zip(sorted.iter().skip(1)).zip(2_usize..);
    // One past the last pack that is not far enough from its neighbour.
    let mut split = pairs.filter(|(pair, _)| !apart(*pair)).map(|(_, past)| past).max().unwrap_or(0);
    let mut objects = sorted.iter().take(split).map(|pack| pack.objects).fold(0, u64::saturating_add);
    for next in sorted.iter().skip(split) {
        if split == 0 || next.objects >= objects.saturating_mul(FACTOR) {
            break;
        }
        objects = objects.saturating_add(next.objects);
        split = split.saturating_add(1);
    }
    sorted.iter().take(split).map(|pack| pack.bytes).fold(0, u64::saturating_add)
}

/// What a store needs now. `free_bytes` is what the pool has above its floor and what others have reserved.
#[must_use]
pub fn decide(facts: &Facts, policy: &Policy, now: Timestamp, free_bytes: u64) -> Plan {
    let mut plan = Plan::default();
    let bytes = facts.packs.iter().map(|pack| pack.bytes).fold(0, u64::saturating_add);
    if full_is_due(facts, policy, now) {
        let needs = with_margin(bytes.saturating_add(facts.cruft_bytes));
        if needs <= free_bytes {
            plan.repack = Some((Repack::Full, Why::Time));
        } else {
            plan.skipped = Some((Repack::Full, needs));
        }
    }
    if plan.repack.is_none()
        && let Some(why) = geometric_is_due(facts, now, bytes)
    {
        let needs = with_margin(rolled_up(&facts.packs));
        if needs <= free_bytes {
            plan.repack = Some((Repack::Geometric, why));
        } else {
            plan.skipped.get_or_insert((Repack::Geometric, needs));
        }
    }
    plan.graph = match (plan.repack, facts.graph) {
        (Some((Repack::Full, _)), _) => Some(WriteGraph::Replace),
        (_, Graph::Missing | Graph::Behind) => Some(WriteGraph::Add),
        (_, Graph::Current) => None,
    };
    plan
}

fn full_is_due(facts: &Facts, policy: &Policy, now: Timestamp) -> bool {
    let last = facts.full_at.unwrap_or(facts.created_at).max(facts.created_at);
    let changed = facts.changed_at > last || facts.cruft_packs > 0;
    changed && now.since(last) >= policy.full_every
}

fn geometric_is_due(facts: &Facts, now: Timestamp, bytes: u64) -> Option<Why> {
    let packs = u64::try_from(facts.packs.len()).unwrap_or(u64::MAX);
    let objects = facts.packs.iter().map(|pack| pack.objects).fold(0, u64::saturating_add);
    let looked = facts.repacked_at.unwrap_or(facts.created_at);
    if packs > packs_max(bytes) && (rolled_up(&facts.packs) > 0 || facts.unindexed > 0) {
        Some(Why::Packs)
    } else if facts.loose > LOOSE_MAX {
        Some(Why::Loose)
    } else if objects >= BITMAP_FROM_OBJECTS && !facts.bitmap {
        Some(Why::Bitmap)
    } else if packs > 1 && facts.unindexed > 0 && now.since(looked) >= INDEX_WITHIN {
        Some(Why::Index)
    } else {
        None
    }
}

/// Indexes, bitmaps and the graph come on top: a tenth.
const fn with_margin(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 10)
}

/// Whether upkeep that has been due since `due` no longer gives way to fetches: a store that is fetched all the time
/// must not grow packs for ever.
#[must_use]
pub fn insists(due: Timestamp, now: Timestamp, every: Span) -> bool {
    now.since(due) >= Span(every.0.saturating_mul(PATIENCE_PERIODS))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::unwrap_used)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const POLICY: Policy = Policy { every: Span::minutes(10), full_every: Span::hours(168) };

    fn pack(objects: u64, bytes: u64) -> Pack {
        Pack { objects, bytes }
    }

    fn ago(span: Span) -> Timestamp {
        Timestamp(NOW.0 - span.0)
    }

    /// One pack with everything that it needs, made an hour ago.
    fn well() -> Facts {
        Facts {
            packs: vec![pack(50_000, 100 * MIB)],
            cruft_packs: 0,
            cruft_bytes: 0,
            loose: 0,
            unindexed: 0,
            bitmap: true,
            graph: Graph::Current,
            created_at: ago(Span::hours(1)),
            changed_at: ago(Span::minutes(5)),
            repacked_at: None,
            full_at: None,
        }
    }

    fn plan(facts: &Facts) -> Plan {
        decide(facts, &POLICY, NOW, 10 * GIB)
    }

    #[test]
    fn the_number_of_packs_follows_the_size() {
        let table = [(0, 5), (10 * MIB, 5), (100 * MIB, 7), (GIB, 11), (10 * GIB, 15), (100 * GIB, 19)];
        for (bytes, packs) in table {
            assert_eq!(packs_max(bytes), packs, "{bytes}");
        }
        assert!(packs_max(u64::MAX) < 60);
    }

    #[test]
    fn a_store_that_is_well_is_left_alone() {
        assert!(plan(&well()).is_empty());
        let small = Facts { packs: vec![pack(10, 1000)], bitmap: false, ..well() };
        assert!(plan(&small).is_empty(), "it needs no bitmap");
    }

    #[test]
    fn needs_are_met() {
        let many = Facts { packs: (0..8).map(|_| pack(100, 1000)).collect(), unindexed: 8, ..well() };
        assert_eq!(plan(&many).repack, Some((Repack::Geometric, Why::Packs)));
        let loose = Facts { loose: LOOSE_MAX + 1, ..well() };
        assert_eq!(plan(&loose).repack, Some((Repack::Geometric, Why::Loose)));
        let bare = Facts { bitmap: false, ..well() };
        assert_eq!(plan(&bare).repack, Some((Repack::Geometric, Why::Bitmap)));
        let one_more = vec![pack(50_000, 100 * MIB), pack(3, 1000)];
        let fresh = Facts { packs: one_more.clone(), unindexed: 1, ..well() };
        assert!(plan(&fresh).is_empty(), "one pack more is no reason yet");
        let old = Facts { created_at: ago(Span::hours(25)), ..fresh };
        assert_eq!(plan(&old).repack, Some((Repack::Geometric, Why::Index)));
        for (graph, write) in
            [(Graph::Missing, Some(WriteGraph::Add)), (Graph::Behind, Some(WriteGraph::Add)), (Graph::Current, None)]
        {
            assert_eq!(plan(&Facts { graph, ..well() }).graph, write);
        }
    }

    #[test]
    fn a_full_repack_is_rare_and_needs_a_change() {
        let week = Span::hours(169);
        let old = Facts { created_at: ago(week), changed_at: ago(Span::minutes(1)), ..well() };
        assert_eq!(plan(&old).repack, Some((Repack::Full, Why::Time)));
        assert_eq!(plan(&old).graph, Some(WriteGraph::Replace), "what went must not be named");
        let done = Facts { full_at: Some(ago(Span::hours(1))), ..old.clone() };
        assert!(plan(&done).is_empty());
        let quiet = Facts { changed_at: ago(week), ..old.clone() };
        assert!(plan(&quiet).is_empty(), "nothing changed since");
        let cruft = Facts { cruft_packs: 1, ..quiet };
        assert_eq!(plan(&cruft).repack, Some((Repack::Full, Why::Time)), "a grace may be over");
    }

    #[test]
    fn where_room_is_short_the_smaller_repack_comes() {
        let mut facts = Facts { created_at: ago(Span::hours(169)), changed_at: NOW, unindexed: 8, ..well() };
        facts.packs.extend((0..8).map(|_| pack(100, MIB)));
        let short = decide(&facts, &POLICY, NOW, 50 * MIB);
        assert_eq!(short.repack, Some((Repack::Geometric, Why::Packs)));
        assert_eq!(short.skipped, Some((Repack::Full, with_margin(108 * MIB))));
        let none = decide(&facts, &POLICY, NOW, 0);
        assert_eq!((none.repack, none.skipped.map(|(repack, _)| repack)), (None, Some(Repack::Full)));
    }

    #[test]
    fn patience_has_an_end() {
        assert!(!insists(ago(Span::hours(3)), NOW, POLICY.every));
        assert!(insists(ago(Span::hours(4)), NOW, POLICY.every));
    }

    proptest! {
        /// After the roll-up that git does, every pack has twice the objects of the one below it: then none is due.
        #[test]
        fn a_geometric_repack_comes_to_rest(objects in proptest::collection::vec(1_u64..1_000_000, 0..40)) {
            let packs: Vec<Pack> = objects.iter().map(|objects| pack(*objects, *objects)).collect();
            let rolled = rolled_up(&packs);
            let all: u64 = objects.iter().sum();
            prop_assert!(rolled <= all);
            let mut sorted = objects.clone();
            sorted.sort_unstable();
            let (mut left, mut joined) = (Vec::new(), 0);
            for objects in sorted {
                if joined < rolled { joined += objects } else { left.push(pack(objects, objects)) }
            }
            prop_assert_eq!(joined, rolled, "the smallest go, and no part of one");
            if joined > 0 {
                left.push(pack(joined, joined));
            }
            prop_assert_eq!(rolled_up(&left), 0);
            prop_assert!(left.len() <= 21, "a logarithm of the objects");
        }

        #[test]
        fn no_plan_needs_more_than_is_free(
            objects in proptest::collection::vec(1_u64..1_000_000, 1..30),
            free in 0_u64..10_000_000,
            age in 0_i64..400,
        ) {
            let packs: Vec<Pack> = objects.iter().map(|objects| pack(*objects, *objects)).collect();
            let unindexed = u64::try_from(packs.len()).unwrap_or(0);
            let facts = Facts { packs, unindexed, bitmap: false, created_at: ago(Span::hours(age)), changed_at: NOW, ..well() };
            let plan = decide(&facts, &POLICY, NOW, free);
            let needs = match plan.repack {
                Some((Repack::Full, _)) => facts.packs.iter().map(|pack| pack.bytes).sum(),
                Some((Repack::Geometric, _)) => rolled_up(&facts.packs),
                None => 0,
            };
            prop_assert!(needs <= free);
        }
    }
}
