use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::identity::Scope;
use crate::quantity::{Span, Timestamp};

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const HOUR: Span = Span::hours(1);

fn ago(hours: i64) -> Timestamp {
    Timestamp(NOW.0 - hours * HOUR.0)
}

fn limits() -> Limits {
    Limits { keep: KEEP, grace: Span::hours(24), caches: None, tenant: None, directories: vec![None, None] }
}

fn facts(things: Vec<Thing>) -> Facts {
    Facts { things, leases: Vec::new(), limits: limits(), now: NOW }
}

fn cache(tenant: &str, used_hours_ago: i64, bytes: u64, held: bool) -> Thing {
    Thing { what: What::Cache { tenant: tenant.into(), used_at: ago(used_hours_ago), held }, bytes }
}

fn gone(plan: &Plan) -> Vec<(usize, Why)> {
    plan.now.iter().map(|removal| (removal.thing, removal.why)).collect()
}

#[test]
fn globs_match_whole_names() {
    for (pattern, name, expected) in [
        ("*", "", true),
        ("*", "a/b", true),
        ("release/*", "release/1", true),
        ("release/*", "x-release/1", false),
        ("*-*-c", "a-b-b-c", true),
        ("a?c", "aéc", true),
        ("a?c", "ac", false),
        ("main", "Main", false),
        ("*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ("a**", "a", true),
        ("?", "", false),
    ] {
        assert_eq!(pattern.parse::<Glob>().unwrap().matches(name), expected, "{pattern} {name}");
    }
    assert!("".parse::<Glob>().is_err());
    assert!("x".repeat(513).parse::<Glob>().is_err());
}

/// What a pattern means, said with recursion.
fn means(pattern: &[char], name: &[char]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some(('*', rest)), _) => (0..=name.len()).any(|taken| means(rest, &name[taken..])),
        (Some(('?', rest)), Some((_, after))) => means(rest, after),
        (Some((wanted, rest)), Some((is, after))) => wanted == is && means(rest, after),
        _ => false,
    }
}

#[test]
fn the_first_rule_that_matches_counts() {
    let rule = |tenant: Option<&str>, branch: Option<&str>, days: i64| Rule {
        tenant: tenant.map(|text| text.parse().unwrap()),
        project: None,
        branch: branch.map(|text| text.parse().unwrap()),
        keep: Span::hours(24 * days),
    };
    let rules = Rules {
        keep: KEEP,
        rules: vec![rule(Some("red"), Some("release/*"), 90), rule(Some("red"), None, 3), rule(None, Some("main"), 30)],
    };
    let kept = |tenant: &str, branch: &str| {
        let scope = Scope { tenant: tenant.into(), project: "p".into(), branch: branch.into() };
        let kept = rules.of(&scope);
        (kept.keep.0 / Span::hours(24).0, kept.rule)
    };
    assert_eq!(kept("red", "release/1"), (90, Some(0)));
    assert_eq!(kept("red", "main"), (3, Some(1)));
    assert_eq!(kept("blue", "main"), (30, Some(2)));
    assert_eq!(kept("blue", "x"), (14, None));
}

#[test]
fn outputs_go_when_their_time_is_over_and_released_ones_never() {
    let output = |expires_at, released| Thing { what: What::Output { expires_at, released }, bytes: 1 };
    let plan = decide(&facts(vec![
        output(ago(1), false),
        output(ago(1000), true),
        output(ago(-5), false),
        output(ago(7), false),
        output(NOW, false),
    ]));
    assert_eq!(gone(&plan), [(3, Why::Expired), (0, Why::Expired), (4, Why::Expired)], "the oldest first");
    assert_eq!(plan.next, [Removal { thing: 2, why: Why::Expired, at: ago(-5) }]);
}

#[test]
fn scratch_waits_for_every_lease_under_which_it_may_have_been_made() {
    let scratch = |hours| Thing { what: What::Scratch { directory: 0, seen_at: ago(hours) }, bytes: 1 };
    let mut facts = facts(vec![scratch(30), scratch(100)]);
    facts.leases = vec![ago(50)];
    assert_eq!(gone(&decide(&facts)), [(1, Why::LeaseOver)], "the lease is younger than the second");
    facts.leases.clear();
    assert_eq!(gone(&decide(&facts)), [(1, Why::LeaseOver), (0, Why::LeaseOver)]);
    facts.things = vec![scratch(1)];
    assert_eq!(decide(&facts).next, [Removal { thing: 0, why: Why::LeaseOver, at: ago(1 - 24) }], "not yet");
}

#[test]
fn what_nobody_knows_goes_after_its_grace() {
    let own = |hours, known| Thing { what: What::Own { seen_at: ago(hours), known }, bytes: 1 };
    let plan = decide(&facts(vec![own(23, false), own(24, false), own(9000, true)]));
    assert_eq!(gone(&plan), [(1, Why::Unknown)]);
    assert_eq!(plan.next, [Removal { thing: 0, why: Why::Unknown, at: ago(-1) }]);
}

#[test]
fn caches_go_least_recently_used_first_and_a_tenant_pays_for_itself() {
    let mut facts = facts(vec![
        cache("red", 5, 40, false),
        cache("red", 9, 40, false),
        cache("red", 99, 40, true),
        cache("blue", 50, 90, false),
        cache("blue", 1, 10, false),
    ]);
    assert!(decide(&facts).now.is_empty(), "without a limit nothing goes");
    facts.limits.tenant = Some(100);
    assert_eq!(gone(&decide(&facts)), [(1, Why::TenantLimit)], "blue is within");
    facts.limits.caches = Some(60);
    assert_eq!(gone(&decide(&facts)), [(1, Why::TenantLimit), (3, Why::CachesLimit), (0, Why::CachesLimit)]);
    facts.limits = Limits { tenant: Some(30), ..limits() };
    let plan = decide(&facts);
    assert_eq!(
        plan.over.iter().map(|over| (over.tenant.as_deref(), over.bytes)).collect::<Vec<_>>(),
        [(Some("red"), 10)]
    );
}

#[test]
fn a_directory_above_its_limit_loses_what_is_there_for_longest() {
    let aged = |directory, hours, bytes| Thing { what: What::Aged { directory, seen_at: ago(hours) }, bytes };
    let mut facts = facts(vec![aged(0, 5, 60), aged(0, 400, 60), aged(0, 7, 60), aged(1, 9, 600)]);
    facts.limits.directories = vec![Some(60), None];
    assert_eq!(gone(&decide(&facts)), [(1, Why::Aged), (2, Why::DirectoryLimit)], "what goes by age makes room");
}

fn any_thing() -> impl Strategy<Value = Thing> {
    let time = || (-60_i64..60).prop_map(ago);
    let what = prop_oneof![
        (time(), any::<bool>()).prop_map(|(expires_at, released)| What::Output { expires_at, released }),
        (0_u8..3, time(), any::<bool>()).prop_map(|(tenant, used_at, held)| What::Cache {
            tenant: format!("t{tenant}"),
            used_at,
            held
        }),
        (0_usize..2, time()).prop_map(|(directory, seen_at)| What::Aged { directory, seen_at }),
        (0_usize..2, time()).prop_map(|(directory, seen_at)| What::Scratch { directory, seen_at }),
        (time(), any::<bool>()).prop_map(|(seen_at, known)| What::Own { seen_at, known }),
    ];
    (what, 0_u64..100).prop_map(|(what, bytes)| Thing { what, bytes })
}

fn any_limit() -> impl Strategy<Value = Option<u64>> {
    proptest::option::of(0_u64..500)
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let limits = (0_i64..50, 0_i64..50, any_limit(), any_limit(), any_limit(), any_limit());
    let limits = limits.prop_map(|(keep, grace, caches, tenant, one, two)| Limits {
        keep: Span::hours(keep),
        grace: Span::hours(grace),
        caches,
        tenant,
        directories: vec![one, two],
    });
    let leases = proptest::collection::vec((-60_i64..60).prop_map(ago), 0..3);
    (proptest::collection::vec(any_thing(), 0..40), leases, limits).prop_map(|(things, leases, limits)| Facts {
        things,
        leases,
        limits,
        now: NOW,
    })
}

/// What nobody may take, whatever the limits are.
fn is_held(facts: &Facts, thing: &Thing) -> bool {
    match &thing.what {
        What::Output { released, expires_at } => *released || *expires_at > facts.now,
        What::Cache { held, .. } => *held,
        What::Own { known, seen_at } => *known || seen_at.plus(facts.limits.grace) > facts.now,
        What::Scratch { seen_at, .. } => facts.leases.iter().any(|granted| granted <= seen_at),
        What::Aged { .. } => false,
    }
}

proptest! {
    #[test]
    fn globs_mean_what_they_say(pattern in "[ab*?]{1,8}", name in "[abc]{0,8}") {
        let chars = |text: &String| text.chars().collect::<Vec<_>>();
        let glob: Glob = pattern.parse().unwrap();
        prop_assert_eq!(glob.to_string(), pattern.clone());
        prop_assert_eq!(glob.matches(&name), means(&chars(&pattern), &chars(&name)));
    }

    #[test]
    fn what_is_held_released_or_known_never_goes(facts in any_facts()) {
        let plan = decide(&facts);
        let mut seen = Vec::new();
        for removal in &plan.now {
            prop_assert!(!is_held(&facts, &facts.things[removal.thing]), "{:?}", removal);
            prop_assert!(!seen.contains(&removal.thing), "goes twice");
            prop_assert!(removal.at <= facts.now);
            seen.push(removal.thing);
        }
        for removal in &plan.next {
            prop_assert!(removal.at > facts.now && !seen.contains(&removal.thing));
        }
        prop_assert!(plan.next.is_sorted_by_key(|removal| removal.at));
    }

    #[test]
    fn limits_hold_afterwards_or_it_is_said_by_how_much_not(facts in any_facts()) {
        let plan = decide(&facts);
        let left = |member: &dyn Fn(&What) -> bool| -> u64 {
            let stays = |at: &usize| !plan.now.iter().any(|removal| removal.thing == *at);
            let all = facts.things.iter().enumerate().filter(|(at, thing)| stays(at) && member(&thing.what));
            all.map(|(_, thing)| thing.bytes).sum()
        };
        let over = |why, tenant: Option<&str>, directory| {
            let found = plan.over.iter().find(|o| o.why == why && o.tenant.as_deref() == tenant && o.directory == directory);
            found.map_or(0, |over| over.bytes)
        };
        if let Some(limit) = facts.limits.caches {
            let used = left(&|what| matches!(what, What::Cache { .. }));
            prop_assert_eq!(used.saturating_sub(limit), over(Why::CachesLimit, None, None));
        }
        for tenant in ["t0", "t1", "t2"] {
            let Some(limit) = facts.limits.tenant else { continue };
            let used = left(&|what| matches!(what, What::Cache { tenant: whose, .. } if whose == tenant));
            // Those that all caches together cost may have made up for it.
            prop_assert!(used.saturating_sub(limit) <= over(Why::TenantLimit, Some(tenant), None));
        }
        for (index, limit) in facts.limits.directories.iter().enumerate() {
            let Some(limit) = limit else { continue };
            let inside = |what: &What| match what {
                What::Aged { directory, .. } | What::Scratch { directory, .. } => *directory == index,
                _ => false,
            };
            prop_assert_eq!(left(&inside).saturating_sub(*limit), over(Why::DirectoryLimit, None, Some(index)));
        }
    }

    #[test]
    fn a_cache_outlives_all_that_were_used_before_it(facts in any_facts()) {
        let plan = decide(&facts);
        for removal in plan.now.iter().filter(|removal| removal.why == Why::CachesLimit) {
            let What::Cache { used_at: goes, .. } = &facts.things[removal.thing].what else { unreachable!() };
            for (at, thing) in facts.things.iter().enumerate() {
                let What::Cache { used_at, held, .. } = &thing.what else { continue };
                let stays = !plan.now.iter().any(|other| other.thing == at);
                prop_assert!(!stays || *held || thing.bytes == 0 || used_at >= goes);
            }
        }
    }

    #[test]
    fn what_is_said_to_go_next_goes_then(facts in any_facts()) {
        let Some(next) = decide(&facts).next.first().copied() else { return Ok(()) };
        let mut later = facts.clone();
        later.now = next.at;
        later.leases.clear();
        prop_assert!(decide(&later).now.iter().any(|removal| removal.thing == next.thing));
    }
}
