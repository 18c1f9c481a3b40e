//! What goes, in which order, and what never does.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::evict::*;
use crate::quantity::{Span, Timestamp};

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const HOUR: Span = Span::hours(1);

fn hours_ago(hours: i64) -> Timestamp {
    Timestamp(NOW.0 - Span::hours(hours).0)
}

#[derive(Default)]
struct World {
    files: Vec<File>,
    stores: BTreeMap<String, Store>,
    candidates: Vec<Candidate>,
}

impl World {
    fn file(&mut self, bytes: u64, holders: u64) -> usize {
        self.files.push(File { bytes, holders });
        self.files.len() - 1
    }

    /// A mirror alone in its store, whose pack both have; gives its index.
    fn mirror(&mut self, bytes: u64, used_hours_ago: i64, fill: Span) -> usize {
        let pack = self.file(bytes, 2);
        let store = self.stores.len().to_string();
        self.stores.insert(store.clone(), Store { files: vec![pack], members: 1 });
        self.candidate(Kind::Mirror, vec![pack], &store, used_hours_ago, fill)
    }

    fn candidate(&mut self, kind: Kind, files: Vec<usize>, store: &str, used: i64, fill: Span) -> usize {
        let (filled_at, used_at) = (hours_ago(1000), hours_ago(used));
        let store = store.to_string();
        self.candidates.push(Candidate { kind, files, along: Vec::new(), store, held: None, filled_at, used_at, fill });
        self.candidates.len() - 1
    }

    fn decide(&self, facts: &Facts) -> Plan {
        decide(&self.files, &self.stores, &self.candidates, facts)
    }
}

fn over_limit(used: u64, limit: u64) -> Facts {
    Facts {
        used_bytes: used,
        limit_bytes: Some(limit),
        free_bytes: 1 << 40,
        floor_bytes: 1 << 30,
        now: NOW,
        min_age: HOUR,
    }
}

#[test]
fn nothing_goes_within_the_marks() {
    let mut world = World::default();
    world.mirror(1000, 500, Span::seconds(1));
    assert_eq!(world.decide(&over_limit(1000, 1000)), Plan::default());
}

#[test]
fn it_begins_above_the_limit_and_ends_a_tenth_below() {
    let mut world = World::default();
    let mirrors: Vec<usize> = (0..11).map(|n| world.mirror(100, 100 - n, Span::seconds(1))).collect();
    let plan = world.decide(&over_limit(1100, 1000));
    assert_eq!(plan.evicted, mirrors[..2], "down to 900, those unused for longest");
    assert_eq!((plan.cause, plan.freed_bytes, plan.over_bytes), (Some(Cause::Limit), 200, 0));
    let full = Facts { free_bytes: 900, floor_bytes: 1000, limit_bytes: None, ..over_limit(1100, 0) };
    let plan = world.decide(&full);
    assert_eq!((plan.cause, plan.evicted), (Some(Cause::Floor), mirrors[..2].to_vec()), "up to 1100");
}

#[test]
fn old_snapshots_go_first_and_together_where_they_share() {
    let mut world = World::default();
    let mirror = world.mirror(100, 500, Span::seconds(1));
    let old_pack = world.file(400, 2);
    let newer = world.candidate(Kind::OldSnapshot, vec![old_pack], "", 1, Span(0));
    let older = world.candidate(Kind::OldSnapshot, vec![old_pack], "", 2, Span(0));
    // One whose pack is that of the newest too frees nothing.
    let pack = world.candidates[mirror].files[0];
    world.files[pack].holders += 1;
    let futile = world.candidate(Kind::OldSnapshot, vec![pack], "", 3, Span(0));
    let plan = world.decide(&over_limit(1100, 1000));
    assert_eq!(plan.evicted, [older, newer]);
    assert!(!plan.evicted.contains(&futile) && plan.freed_bytes == 400);
}

#[test]
fn with_a_mirror_go_its_old_snapshots() {
    let mut world = World::default();
    let mirror = world.mirror(1000, 100, Span::seconds(1));
    let pack = world.candidates[mirror].files[0];
    world.files[pack].holders += 1;
    let old = world.candidate(Kind::OldSnapshot, vec![pack], "", 3, Span(0));
    assert_eq!(world.decide(&over_limit(1000, 900)).evicted, [], "the old one holds what the mirror has");
    world.candidates[mirror].along = vec![old];
    let plan = world.decide(&over_limit(1000, 900));
    assert_eq!((plan.evicted, plan.freed_bytes), (vec![mirror], 1000));
}

#[test]
fn what_is_cheap_to_fetch_again_goes_before_what_is_not() {
    let mut world = World::default();
    let dear = world.mirror(500, 20, Span::minutes(30));
    let cheap = world.mirror(500, 10, Span::seconds(10));
    assert_eq!(world.decide(&over_limit(1000, 900)).evicted, [cheap]);
    world.candidates[cheap].held = Some(Held::Pinned);
    assert_eq!(world.decide(&over_limit(1000, 900)).evicted, [dear]);
}

#[test]
fn a_fork_of_what_stays_is_not_worth_it_but_a_whole_network_is() {
    let mut world = World::default();
    let pack = world.file(1000, 4);
    world.stores.insert("net".to_string(), Store { files: vec![pack], members: 3 });
    let forks: Vec<usize> = (0..3)
        .map(|_| {
            let own = world.file(1, 1);
            world.candidate(Kind::Mirror, vec![pack, own], "net", 100, Span::seconds(5))
        })
        .collect();
    world.candidates[forks[0]].held = Some(Held::InUse);
    let plan = world.decide(&over_limit(1003, 800));
    assert_eq!((plan.evicted.as_slice(), plan.over_bytes), (&[][..], 203));
    world.candidates[forks[0]].held = None;
    let plan = world.decide(&over_limit(1003, 800));
    assert_eq!((plan.evicted, plan.freed_bytes), (forks, 1003));
}

#[test]
fn the_young_stay_and_the_lack_is_told() {
    let mut world = World::default();
    let mirror = world.mirror(1000, 0, Span::seconds(1));
    world.candidates[mirror].filled_at = Timestamp(NOW.0 - HOUR.0 + 1);
    let plan = world.decide(&over_limit(1000, 600));
    assert_eq!((plan.evicted.len(), plan.over_bytes), (0, 400));
    world.candidates[mirror].filled_at = hours_ago(1);
    assert_eq!(world.decide(&over_limit(1000, 600)).evicted, [mirror]);
}

fn any_candidate() -> impl Strategy<Value = (u8, u64, u8, i64, i64, i64)> {
    (0_u8..3, 1_u64..1000, 0_u8..4, 0_i64..50, 0_i64..50, 0_i64..100)
}

proptest! {
    #[test]
    fn what_is_held_or_young_never_goes_and_no_more_than_needed(
        drawn in proptest::collection::vec(any_candidate(), 0..30),
        forks in 1_usize..4,
        limit in 1_u64..10_000,
    ) {
        let mut world = World::default();
        for (n, (kind, bytes, held, filled, used, fill)) in drawn.into_iter().enumerate() {
            let at = match kind {
                0 => {
                    let file = world.file(bytes, 1);
                    world.candidate(Kind::OldSnapshot, vec![file], "", used, Span(0))
                }
                _ => {
                    // Networks of up to `forks` mirrors share a pack.
                    let name = (n / forks).to_string();
                    let own = world.file(bytes, 1);
                    if !world.stores.contains_key(&name) {
                        let pack = world.file(bytes * 10, 1);
                        world.stores.insert(name.clone(), Store { files: vec![pack], members: 0 });
                    }
                    let store = world.stores.get_mut(&name).unwrap();
                    store.members += 1;
                    let pack = store.files[0];
                    world.files[pack].holders += 1;
                    world.candidate(Kind::Mirror, vec![own, pack], &name, used, Span::seconds(fill))
                }
            };
            world.candidates[at].filled_at = hours_ago(filled);
            world.candidates[at].held = match held {
                0 => Some(Held::Pinned),
                1 => Some(Held::InUse),
                2 => Some(Held::Busy),
                _ => None,
            };
        }
        let used: u64 = world.files.iter().map(|file| file.bytes).sum();
        let facts = over_limit(used, limit);
        let plan = world.decide(&facts);
        let wanted = if used > limit { used - (limit - limit / 10) } else { 0 };
        prop_assert_eq!(plan.evicted.is_empty() && plan.cause.is_none(), used <= limit);
        let mut order = Vec::new();
        for at in &plan.evicted {
            let candidate = &world.candidates[*at];
            prop_assert_eq!(candidate.held, None);
            prop_assert!(candidate.kind == Kind::OldSnapshot || NOW.since(candidate.filled_at) >= HOUR);
            order.push(candidate.kind);
        }
        prop_assert!(order.is_sorted(), "old snapshots before mirrors");
        // The bytes are those of files that nothing is left of.
        let mut left: Vec<u64> = world.files.iter().map(|file| file.holders).collect();
        for at in &plan.evicted {
            for file in &world.candidates[*at].files {
                left[*file] -= 1;
            }
        }
        for (name, store) in &world.stores {
            let gone = |at: &&usize| {
                let candidate = &world.candidates[**at];
                candidate.kind == Kind::Mirror && candidate.store == *name
            };
            if plan.evicted.iter().filter(gone).count() == store.members {
                for file in &store.files {
                    left[*file] -= 1;
                }
            }
        }
        let freed: u64 = world.files.iter().zip(&left).filter(|(_, left)| **left == 0).map(|(file, _)| file.bytes).sum();
        prop_assert_eq!(freed, plan.freed_bytes);
        prop_assert_eq!(plan.over_bytes, used.saturating_sub(limit).saturating_sub(freed));
        // At or below the low mark, unless nothing is left that would help.
        if freed < wanted {
            for (at, candidate) in world.candidates.iter().enumerate() {
                let free = candidate.held.is_none() && candidate.kind == Kind::OldSnapshot;
                prop_assert!(!free || plan.evicted.contains(&at));
            }
            for name in world.stores.keys() {
                let members: Vec<usize> = (0..world.candidates.len())
                    .filter(|at| world.candidates[*at].kind == Kind::Mirror && world.candidates[*at].store == *name)
                    .collect();
                let free = |at: &usize| {
                    world.candidates[*at].held.is_none() && NOW.since(world.candidates[*at].filled_at) >= HOUR
                };
                let worth = world.files[world.stores[name].files[0]].bytes * 100 >= wanted;
                prop_assert!(!(members.iter().all(free) && worth) || members.iter().all(|at| plan.evicted.contains(at)));
            }
        }
    }
}
