//! The choice against one that looks at every node, and what always holds.

extern crate std;

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use alloc::{collections::BTreeMap, format};
use std::time::Instant;

use proptest::prelude::*;

use super::farm::WARM;
use super::select::{Is, Requirement, Toleration};
use super::*;
use crate::cluster::Taint;
use crate::quantity::{Amounts, Span, Timestamp};

const NOW: Timestamp = Timestamp(1_000_000);

fn of(cpu_millis: u64, memory_bytes: u64) -> Amounts {
    Amounts { cpu_millis, memory_bytes, ..Amounts::default() }
}

fn room(free: u64, mirrors: &[&str]) -> Room {
    Room {
        accepts: true,
        free: of(free, free),
        budget: of(1000, 1000),
        mirrors: mirrors.iter().map(|mirror| Arc::from(*mirror)).collect(),
        ..Room::default()
    }
}

fn wants(size: u64, mirror: &str) -> Wanted {
    Wanted { size: Wanted::size_of(of(size, size)), mirror: mirror.to_string(), ..Wanted::default() }
}

fn farm(nodes: &[(&str, Room)]) -> Farm {
    let mut farm = Farm::default();
    nodes.iter().for_each(|(name, room)| farm.told(name, room.clone(), NOW));
    farm
}

fn choice(farm: &mut Farm, wanted: &Wanted) -> Option<String> {
    farm.choose(wanted).map(|choice| choice.node)
}

#[test]
fn a_warm_node_is_preferred_and_no_trap() {
    let mut all = farm(&[("cold", room(900, &[])), ("warm", room(700, &["a"]))]);
    assert_eq!(choice(&mut all, &wants(100, "a")).as_deref(), Some("warm"));
    assert_eq!(choice(&mut all, &wants(100, "b")).as_deref(), Some("cold"));
    assert_eq!(choice(&mut all, &wants(800, "a")).as_deref(), Some("cold"), "a warm one that is full loses");
    all.told("warm", room(600, &["a"]), NOW);
    assert_eq!(choice(&mut all, &wants(100, "a")).as_deref(), Some("cold"), "the preference is bounded by {WARM}");
}

#[test]
fn where_the_scarcest_is_the_same_on_all_nodes_the_next_scarcer_decides() {
    // One disk is under all of them, and it is nearly full.
    let over = |cpu_millis, memory_bytes| {
        let whole = |part: &Amounts| Amounts { disk_bytes: 1000, ..*part };
        let free = Amounts { disk_bytes: 300, ..of(cpu_millis, memory_bytes) };
        Room { free, budget: whole(&of(1000, 1000)), ..room(0, &[]) }
    };
    let mut all = farm(&[("a", over(500, 900)), ("b", over(900, 600)), ("c", over(900, 500))]);
    let wanted = Wanted { size: Wanted::size_of(Amounts { disk_bytes: 1, ..of(200, 100) }), ..Wanted::default() };
    assert_eq!(choice(&mut all, &wanted).as_deref(), Some("b"));
    // What is asked of them moves them: nobody gets all.
    let mut got = BTreeMap::<String, u32>::new();
    for pod in 0..6 {
        let node = choice(&mut all, &wanted).unwrap();
        all.asked(&node, &format!("gate-{pod}-1"), Amounts { disk_bytes: 0, ..wanted.amounts() });
        *got.entry(node).or_default() += 1;
    }
    assert_eq!(got, [("a", 1), ("b", 3), ("c", 2)].map(|(node, pods)| (node.to_string(), pods)).into());
    // What nowhere fitted is judged alike.
    let large = Wanted { size: Wanted::size_of(of(950, 100)), ..Wanted::default() };
    assert_eq!(choice(&mut all, &large), None);
    for (name, memory) in [("d", 800), ("e", 900), ("f", 700)] {
        all.told(name, over(1000, memory), NOW);
    }
    assert_eq!(choice(&mut all, &large).as_deref(), Some("e"));
}

#[test]
fn what_was_asked_is_not_free_until_it_is_told_back() {
    let mut all = farm(&[("one", room(500, &[]))]);
    let wanted = wants(300, "");
    assert!(all.choose(&wanted).is_some());
    all.asked("one", "gate-a-1", wanted.amounts());
    assert!(all.choose(&wanted).is_none());
    // It told its room before it granted.
    all.granted("one", "gate-a-1", NOW);
    all.told("one", room(500, &[]), NOW.plus(Span::seconds(1)));
    assert!(all.choose(&wanted).is_none());
    // Told back: it is in the figures.
    let told = Room { grants: [("gate-a-1".to_string(), "l1".to_string())].into(), ..room(400, &[]) };
    all.told("one", told, NOW.plus(Span::seconds(2)));
    assert!(all.choose(&wanted).is_some());
    assert_eq!((all.lease("one", "gate-a-1"), all.lease("one", "gate-a-2")), (Some("l1"), None));
    // Never told back, for it ended at once.
    all.asked("one", "gate-b-1", wanted.amounts());
    all.granted("one", "gate-b-1", NOW);
    all.told("one", room(500, &[]), NOW.plus(Span::seconds(60)));
    assert!(all.choose(&wanted).is_some());
    // Refused: nothing of that size is asked for until it tells again.
    all.asked("one", "gate-c-1", wanted.amounts());
    all.free("one", "gate-c-1", Some(wanted.amounts()));
    assert!(all.choose(&wanted).is_none() && all.choose(&wants(299, "")).is_some());
    all.told("one", room(500, &[]), NOW.plus(Span::seconds(61)));
    assert!(all.choose(&wanted).is_some());
    // Refused without a size: that says nothing of any.
    all.asked("one", "gate-d-1", wanted.amounts());
    all.free("one", "gate-d-1", Some(Amounts::default()));
    assert!(all.choose(&wanted).is_some());
}

#[test]
fn a_node_whose_answers_are_not_understood_is_not_chosen_until_they_are() {
    let mut all = farm(&[("bad", room(900, &[])), ("good", room(100, &[]))]);
    all.doubt("bad", true);
    assert_eq!(choice(&mut all, &wants(100, "")).as_deref(), Some("good"));
    // What it tells of its room changes nothing of that.
    all.told("bad", room(900, &[]), NOW.plus(Span::seconds(1)));
    assert_eq!(choice(&mut all, &wants(200, "")), None);
    assert!(all.hears("bad"), "it can be asked");
    all.doubt("bad", false);
    assert_eq!(choice(&mut all, &wants(200, "")).as_deref(), Some("bad"));
}

#[test]
fn nobody_is_chosen_who_says_nothing_or_takes_nothing() {
    let closed = Room { accepts: false, reasons: vec![crate::reason::Code::ModeDrain], ..room(900, &[]) };
    let narrow = Room { small_only: Some(of(50, 50)), ..room(900, &[]) };
    let podless = Room { pods_free: Some(0), ..room(900, &[]) };
    let mut all = farm(&[("closed", closed), ("narrow", narrow), ("podless", podless), ("full", room(10, &[]))]);
    assert_eq!(choice(&mut all, &wants(100, "")), None);
    assert_eq!(choice(&mut all, &wants(50, "")).as_deref(), Some("narrow"));
    let why = all.why(&wants(100, ""));
    assert_eq!((why.closed, why.full, why.never()), (3, 1, false));
    assert_eq!(why.reasons, [crate::reason::Code::ModeDrain]);
    let why = all.why(&wants(1001, ""));
    assert!(why.never() && why.largest == of(1000, 1000), "{why:?}");
    all.expire(NOW.plus(Span::seconds(61)), Span::seconds(60));
    assert_eq!(choice(&mut all, &wants(50, "")), None);
    assert_eq!((all.why(&wants(1001, "")).never(), all.count()), (false, (4, 0)), "who is away may be larger");
    // Where nothing runs, the first is let in.
    all.told("full", Room { idle: true, ..room(10, &[]) }, NOW);
    assert_eq!(choice(&mut all, &wants(100, "")).as_deref(), Some("full"));
    all.asked("full", "gate-a-1", of(100, 100));
    assert_eq!(choice(&mut all, &wants(100, "")), None);
}

#[test]
fn who_is_shut_and_tainted_for_it_is_told_by_what_it_says_itself() {
    let taint =
        Taint { key: "node.kubernetes.io/unschedulable".into(), value: String::new(), effect: "NoSchedule".into() };
    let facts = Some((BTreeMap::new(), vec![taint]));
    let reasons = vec![crate::reason::Code::NodeCordoned];
    let cordoned = Room { accepts: false, reasons: reasons.clone(), facts: facts.clone(), ..room(900, &[]) };
    let other = Room { facts, ..room(900, &[]) };
    // What it is for goes on when it is uncordoned.
    let lasting = Taint { key: "dedicated".into(), value: String::new(), effect: "NoSchedule".into() };
    let others = Room { facts: Some((BTreeMap::new(), vec![lasting])), ..cordoned.clone() };
    let mut all = farm(&[("cordoned", cordoned), ("other", other), ("others", others)]);
    assert_eq!(choice(&mut all, &wants(100, "")), None);
    let why = all.why(&wants(100, ""));
    assert_eq!((why.closed, why.others, why.reasons), (1, 2, reasons));
}

#[test]
fn labels_and_taints_keep_pods_away_as_the_scheduler_does() {
    let labels: BTreeMap<String, String> = [("zone", "a"), ("cores", "32")].map(|(k, v)| (k.into(), v.into())).into();
    let taint = |effect: &str| Taint { key: "dedicated".into(), value: "builds".into(), effect: effect.into() };
    let needs = |key: &str, is: Is| Requirement { key: key.into(), is };
    let values = |value: &str| vec![value.to_string()];
    let holds = |all: Vec<Requirement>, any: Vec<Vec<Requirement>>, taints: &[Taint]| {
        Selector { all, any, ..Selector::default() }.holds(&labels, taints)
    };
    assert!(holds(vec![needs("zone", Is::In(values("a")))], vec![], &[]));
    assert!(!holds(vec![needs("zone", Is::In(values("b")))], vec![], &[]));
    assert!(!holds(vec![needs("zone", Is::NotIn(values("a")))], vec![], &[]));
    assert!(holds(vec![needs("none", Is::NotIn(values("a"))), needs("none", Is::DoesNotExist)], vec![], &[]));
    assert!(holds(vec![needs("cores", Is::Gt(16)), needs("cores", Is::Lt(33))], vec![], &[]));
    assert!(!holds(vec![needs("cores", Is::Gt(32))], vec![], &[]));
    let either = vec![vec![needs("zone", Is::In(values("b")))], vec![needs("zone", Is::Exists)]];
    assert!(holds(vec![], either, &[]));
    assert!(!holds(vec![], vec![vec![]], &[]), "a term without anything is met nowhere");
    assert!(holds(vec![], vec![], &[taint("PreferNoSchedule")]) && !holds(vec![], vec![], &[taint("NoSchedule")]));
    for (toleration, borne) in [
        (Toleration { key: "dedicated".into(), value: Some("builds".into()), effect: String::new() }, true),
        (Toleration { key: "dedicated".into(), value: Some("web".into()), effect: String::new() }, false),
        (Toleration { key: String::new(), value: None, effect: "NoExecute".into() }, false),
        (Toleration { key: String::new(), value: None, effect: String::new() }, true),
    ] {
        let selector = Selector { tolerations: vec![toleration], ..Selector::default() };
        assert_eq!(selector.holds(&labels, &[taint("NoSchedule")]), borne, "{selector:?}");
    }
}

#[test]
fn tenants_have_turns_and_the_urgent_and_the_old_come_first_in_them() {
    let mut line = Line::default();
    for (uid, tenant, priority, since) in
        [("a1", "a", 0, 1), ("a2", "a", 0, 2), ("a3", "a", 5, 3), ("b1", "b", 0, 9), ("b2", "b", 0, 10)]
    {
        line.join(uid, tenant, priority, Timestamp(since));
    }
    assert_eq!(line.in_turn().collect::<Vec<_>>(), ["a3", "b1", "a1", "b2", "a2"]);
    line.served("a3", "a");
    assert_eq!(line.in_turn().collect::<Vec<_>>(), ["b1", "a1", "b2", "a2"]);
    line.join("c1", "c", 0, Timestamp(11));
    assert_eq!(line.in_turn().next(), Some("b1"), "who comes anew has no turns left from before");
    line.leave("b1");
    line.leave("b2");
    assert_eq!((line.len(), line.in_turn().collect::<Vec<_>>()), (3, vec!["c1", "a1", "a2"]));
}

#[test]
fn an_intent_is_read_as_it_was_written() {
    let intent = Intent { node: "node-1.example".into(), attempt: 3, at: NOW };
    assert_eq!(intent.to_string().parse(), Ok(intent.clone()));
    assert_eq!(intent.request_id("uid"), "gate-uid-3");
    assert!(!intent.is_over(NOW.plus(Span::minutes(3))) && intent.is_over(NOW.plus(Span::seconds(181))));
    for wrong in ["", "node", "node 0 1", "node 1", "node 1 1 1", " 1 1", "n\n 1 1"] {
        assert!(wrong.parse::<Intent>().is_err(), "{wrong:?}");
    }
}

#[test]
fn a_node_is_kept_for_one_that_others_pass_and_for_nobody_else() {
    let mut farm = Farm::default();
    farm.told("much", room(600, &[]), NOW);
    farm.told("little", room(200, &[]), NOW);
    let (large, small) = (wants(700, ""), wants(100, ""));
    assert_eq!(farm.choose(&large), None);
    assert_eq!(farm.keep(&large).as_deref(), Some("much"), "it lacks least");
    assert_eq!(farm.choose(&small).unwrap().node, "little", "the other one has more free");
    assert_eq!(farm.choose(&wants(300, "")), None);
    assert!(!farm.takes("much", &large));
    farm.told("much", room(700, &[]), NOW);
    assert!(farm.takes("much", &large));
    assert_eq!(farm.choose(&large), None, "whoever keeps it asks for it by its name");
    farm.let_go("much");
    assert_eq!(farm.choose(&large).unwrap().node, "much");
    // Where nothing is full there is nothing to wait for.
    assert_eq!(farm.keep(&wants(1001, "")), None);
    assert_eq!(farm.keep(&small), None);
}

#[test]
fn turns_that_a_tenant_cannot_use_are_not_kept_for_it() {
    let mut line = Line::default();
    for number in 0..20 {
        line.join(&format!("a{number:02}"), "a", 0, Timestamp(number));
        line.join(&format!("b{number:02}"), "b", 0, Timestamp(number));
    }
    // Nothing of a fits for long.
    (0..10).for_each(|number| line.served(&format!("b{number:02}"), "b"));
    assert_eq!(line.in_turn().next(), Some("a00"), "it is first all the same");
    line.served("a00", "a");
    let next: Vec<&str> = line.in_turn().take(6).collect();
    assert_eq!(next, ["a01", "a02", "b10", "a03", "b11", "a04"], "it is one turn behind, and not ten");
}

#[test]
fn the_last_of_a_tenant_makes_room() {
    let mut line = Line::default();
    assert_eq!(line.last_of("a"), None);
    for (uid, tenant, priority) in [("a1", "a", 0), ("a2", "a", 5), ("a3", "a", 0), ("b1", "b", 0)] {
        line.join(uid, tenant, priority, Timestamp(i64::from(uid.as_bytes()[1])));
    }
    assert_eq!((line.last_of("a"), line.last_of("b"), line.tenants()), (Some("a3"), Some("b1"), 2));
    line.leave("a3");
    assert_eq!(line.last_of("a"), Some("a1"));
}

#[derive(Debug, Clone)]
enum Step {
    Told(usize, u64, bool, bool),
    Away(usize),
    Place(u64, bool),
    Back(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6usize, 0..1000u64, any::<bool>(), any::<bool>()).prop_map(|(n, f, w, i)| Step::Told(n, f, w, i)),
        (0..6usize).prop_map(Step::Away),
        (1..600u64, any::<bool>()).prop_map(|(size, warm)| Step::Place(size, warm)),
        (0..32usize).prop_map(Step::Back),
    ]
}

proptest! {
    /// The index against a look at all; and no node is given more than it told.
    #[test]
    fn the_index_chooses_as_a_look_at_every_node(steps in proptest::collection::vec(step(), 1..120)) {
        let mut farm = Farm::default();
        // Free, warm, idle, asked, away.
        let mut model: BTreeMap<String, (u64, bool, bool, Vec<(String, u64)>, bool)> = BTreeMap::new();
        let mut placed: Vec<(String, String)> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Told(node, free, warm, idle) => {
                    let name = format!("n{node}");
                    let mirrors: &[&str] = if warm { &["m"] } else { &[] };
                    let entry = model.entry(name.clone()).or_default();
                    // A node tells what it gave: its room is less by that, and nothing runs only where nothing was given.
                    let given: u64 = entry.3.iter().map(|(_, size)| size).sum();
                    let idle = idle && entry.3.is_empty();
                    let free = free.max(given) - given;
                    let grants = entry.3.iter().map(|(id, _)| (id.clone(), String::new())).collect();
                    *entry = (free, warm, idle, Vec::new(), false);
                    farm.told(&name, Room { idle, grants, ..room(free, mirrors) }, NOW);
                }
                Step::Away(node) => {
                    let name = format!("n{node}");
                    if let Some(entry) = model.get_mut(&name) {
                        entry.4 = true;
                    }
                    farm.away(&name);
                }
                Step::Place(size, warm) => {
                    let wanted = wants(size, if warm { "m" } else { "" });
                    let rank = |free: u64, asked: &[(String, u64)]| {
                        free.saturating_sub(asked.iter().map(|(_, size)| size).sum::<u64>())
                    };
                    let fits = model.iter().filter(|(_, (free, _, idle, asked, away))| {
                        !away && (rank(*free, asked) >= size || (*idle && asked.is_empty()))
                    });
                    let best = fits.map(|(_, (free, here, _, asked, _))| {
                        rank(*free, asked) + if warm && *here { u64::from(WARM) } else { 0 }
                    }).max();
                    let chosen = farm.choose(&wanted);
                    let score = chosen.as_ref().map(|choice| {
                        let (free, here, _, asked, _) = &model[&choice.node];
                        prop_assert_eq!(choice.warm, warm && *here);
                        Ok(rank(*free, asked) + if choice.warm { u64::from(WARM) } else { 0 })
                    }).transpose()?;
                    prop_assert_eq!(score, best);
                    if let Some(choice) = chosen {
                        let id = format!("gate-{number}-1");
                        farm.asked(&choice.node, &id, wanted.amounts());
                        model.get_mut(&choice.node).unwrap().3.push((id.clone(), size));
                        placed.push((choice.node, id));
                    }
                }
                Step::Back(at) => {
                    if !placed.is_empty() {
                        let (node, id) = placed.swap_remove(at % placed.len());
                        farm.free(&node, &id, None);
                        model.get_mut(&node).unwrap().3.retain(|(asked, _)| *asked != id);
                    }
                }
            }
            prop_assert!(farm.is_within());
        }
    }
}

/// 10,000 pods on 5,000 nodes; those that fit nowhere too.
#[test]
fn a_decision_is_quick_on_a_large_farm() {
    let mut farm = Farm::default();
    for node in 0..5000_u64 {
        let free = 500 + node * 7919 % 500;
        farm.told(&format!("node-{node}"), room(free, if node % 10 == 0 { &["m"] } else { &[] }), NOW);
    }
    let selector = Arc::new(Selector::default());
    let begun = Instant::now();
    let mut placed = 0_u32;
    for pod in 0..20_000_u64 {
        let size = [300, 400, 450][usize::try_from(pod % 3).unwrap()];
        let wanted = Wanted { selector: Arc::clone(&selector), ..wants(size, if pod % 2 == 0 { "m" } else { "" }) };
        if let Some(choice) = farm.choose(&wanted) {
            farm.asked(&choice.node, &format!("gate-{pod}-1"), wanted.amounts());
            placed += 1;
        }
    }
    let each = begun.elapsed() / 20_000;
    std::eprintln!("{placed} of 20000 placed on 5000 nodes, {each:?} a decision");
    assert!(farm.is_within() && (5000..20_000).contains(&placed));
    // A look at every node takes more, on a busy machine and not optimized.
    assert!(each.as_micros() < 2000, "{each:?}");
}
