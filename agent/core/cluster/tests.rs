//! What follows from pods, one test a promise.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing
)]

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::slice::from_ref;

use super::bind::{Act, Group, Seen, decide};
use super::*;
use crate::admission::tests::lease_of;
use crate::admission::{Holder, Lease, LeaseState, Rebind, Terms};
use crate::quantity::Span;
use crate::reason::Code;

const NOW: Timestamp = Timestamp(1_000_000);
const GRACE: Span = Span::seconds(60);

fn cpu(millis: u64, gib: u64) -> Amounts {
    Amounts { cpu_millis: millis, memory_bytes: gib << 30, ..Amounts::default() }
}

fn asks(millis: u64, gib: u64) -> Container {
    Container { requests: cpu(millis, gib), ..Container::default() }
}

#[test]
fn what_a_pod_asks_for_is_what_the_scheduler_counts() {
    let sidecar = |millis, gib| Container { sidecar: true, ..asks(millis, gib) };
    let resized = Container { allocated: cpu(500, 4), ..asks(1000, 2) };
    let rows = [
        ("the sum", Resources { containers: &[asks(100, 1), asks(200, 2)], ..Resources::default() }, cpu(300, 3)),
        (
            "the largest init container where that is more, part by part",
            Resources { init: &[asks(50, 8), asks(900, 1)], containers: &[asks(100, 1)], ..Resources::default() },
            cpu(900, 8),
        ),
        (
            "a sidecar runs beside those that start after it, and beside the rest",
            Resources {
                init: &[asks(100, 6), sidecar(10, 1), asks(100, 6)],
                containers: &[asks(20, 2)],
                ..Resources::default()
            },
            cpu(110, 7),
        ),
        (
            "what is set for the pod stands, for what it is set",
            Resources {
                containers: &[asks(100, 1)],
                pod: Amounts { cpu_millis: 700, ..Amounts::default() },
                ..Resources::default()
            },
            cpu(700, 1),
        ),
        (
            "the overhead of its runtime comes on top",
            Resources { containers: &[asks(100, 1)], overhead: cpu(250, 1), ..Resources::default() },
            cpu(350, 2),
        ),
        (
            "what it has and what it is to have",
            Resources { containers: &[resized], ..Resources::default() },
            cpu(1000, 4),
        ),
        ("nothing", Resources::default(), cpu(0, 0)),
    ];
    for (what, resources, expected) in rows {
        assert_eq!(resources.effective(), expected, "{what}");
    }
}

#[test]
fn a_volume_belongs_to_whom_its_containers_run_as() {
    let run = |user, group| RunAs { user, group };
    let pod = run(Some(1000), None);
    for (what, pod, fs_group, containers, expected) in [
        ("nobody says", run(None, None), None, vec![run(None, None)], run(None, None)),
        ("the pod says", run(Some(1000), Some(1001)), Some(7), vec![run(None, None)], run(Some(1000), Some(1001))),
        ("its fsGroup where it names no group", pod, Some(7), vec![], run(Some(1000), Some(7))),
        ("its containers say", pod, Some(7), vec![run(Some(5), Some(6)), run(Some(5), Some(6))], run(Some(5), Some(6))),
        ("they agree in part", pod, None, vec![run(Some(5), Some(6)), run(Some(8), Some(6))], run(Some(1000), Some(6))),
        ("one of them says", run(None, None), None, vec![run(Some(5), None), run(None, None)], run(None, None)),
        ("one says what the pod says", pod, None, vec![run(Some(1000), None), run(None, None)], pod),
        ("root is somebody", pod, None, vec![run(Some(0), Some(0))], run(Some(0), Some(0))),
    ] {
        assert_eq!(user::owner(pod, fs_group, &containers), expected, "{what}");
    }
}

fn pod(name: &str, lease: &Lease) -> Pod {
    Pod {
        namespace: "builds".into(),
        name: name.into(),
        uid: name.to_string(),
        service_account: "builder".into(),
        controller: "job".into(),
        lease: lease.id.to_string(),
        life: PodLife::Running,
        ..Pod::default()
    }
}

fn cluster(pods: &[Pod]) -> Cluster {
    let pods: BTreeMap<String, Arc<Pod>> = pods.iter().map(|pod| (pod.uid.clone(), Arc::new(pod.clone()))).collect();
    Cluster { asked: true, pods: Some(Arc::new(Pods::new(pods))), ..Cluster::default() }
}

fn terms(rebind: Rebind) -> Terms {
    Terms { namespace: "builds".into(), service_account: "builder".into(), rebind, pod: String::new() }
}

fn reserved(rebind: Rebind) -> Lease {
    Lease { terms: terms(rebind), ..lease_of("one") }
}

fn held_by(pod: &Pod, rebind: Rebind) -> Lease {
    let holder = Holder::Pod { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() };
    Lease { state: LeaseState::Bound, holder: Some(holder), controller: pod.controller.clone(), ..reserved(rebind) }
}

fn acts(lease: &Lease, cluster: &Cluster, group: Group) -> Vec<Act> {
    let (group, held_before) = (|_: &str| group, |_: &str, uid: &str| uid == "before");
    let seen = Seen { cluster, group: &group, held_before: &held_before, grace: GRACE, now: NOW };
    decide(&[Arc::new(lease.clone())], &seen)
}

fn ends(lease: &Lease, ended: Option<Ended>) -> Act {
    Act::End { lease: lease.id.clone(), pod: "a".into(), ended }
}

fn codes(acts: &[Act]) -> Vec<(&str, Code)> {
    let refused = acts.iter().filter_map(|act| match act {
        Act::Refuse { pod, reason } => Some((pod.as_str(), reason.code)),
        _ => None,
    });
    refused.collect()
}

const OUT_OF_MEMORY: Ended = Ended { succeeded: false, exit_code: Some(137), end: PodEnd::OomKilled };

#[test]
fn a_pod_binds_where_it_was_named_and_one_alone() {
    let lease = reserved(Rebind::Never);
    let (first, second) = (pod("a", &lease), pod("b", &lease));
    let found = acts(&lease, &cluster(&[first.clone(), second.clone()]), Group::Unseen);
    assert!(matches!(&found[0], Act::Bind { holder: Holder::Pod { uid, .. }, .. } if uid == "a"), "{found:?}");
    assert_eq!(codes(&found), [("b", Code::LeaseNotTheirs)]);

    // Of another namespace, another account, one that ends, one of a lease that is none.
    let elsewhere = Pod { namespace: "other".into(), ..pod("c", &lease) };
    let other = Pod { service_account: "default".into(), ..pod("d", &lease) };
    let ending = Pod { ending: true, ..pod("e", &lease) };
    let unknown = Pod { lease: "gone".into(), ..pod("f", &lease) };
    let found = acts(&lease, &cluster(&[elsewhere, other, ending, unknown]), Group::Unseen);
    let refused = [("f", Code::LeaseNotTheirs), ("c", Code::LeaseNotTheirs), ("d", Code::LeaseNotTheirs)];
    let mut found_codes = codes(&found);
    found_codes.sort_unstable();
    let mut refused = refused.to_vec();
    refused.sort_unstable();
    assert_eq!((found_codes, found.len()), (refused, 3), "{found:?}");

    // Where nobody was named, no annotation is proof.
    let open = Lease { terms: Terms::default(), ..lease };
    let found = acts(&open, &cluster(&[first]), Group::Unseen);
    assert_eq!(codes(&found), [("a", Code::LeaseNotTheirs)]);
    assert_eq!(found.len(), 1);
}

#[test]
fn a_lease_ends_when_its_pod_has_ended_and_nothing_of_it_runs() {
    let held = pod("a", &lease_of("one"));
    let lease = held_by(&held, Rebind::Never);
    let ended = Pod { life: PodLife::Ended(OUT_OF_MEMORY), ..held.clone() };
    let none: Vec<Act> = Vec::new();
    assert_eq!(
        acts(&lease, &cluster(from_ref(&held)), Group::Empty),
        none,
        "between two containers its group is empty"
    );
    assert_eq!(acts(&lease, &cluster(from_ref(&ended)), Group::Runs), none, "something of it still runs");
    let end = vec![ends(&lease, Some(OUT_OF_MEMORY))];
    assert_eq!(acts(&lease, &cluster(from_ref(&ended)), Group::Empty), end);
    assert_eq!(acts(&lease, &cluster(&[ended]), Group::Unseen), end, "it was never seen to run");
    assert_eq!(acts(&lease, &cluster(&[]), Group::Runs), none, "deleted by force, it still runs");
    assert_eq!(acts(&lease, &cluster(&[]), Group::Empty), [ends(&lease, None)]);

    // While the API server is away its group tells.
    let away = |pods: &[Pod]| Cluster { away_since: Some(NOW), ..cluster(pods) };
    assert_eq!(acts(&lease, &away(from_ref(&held)), Group::Runs), none);
    assert_eq!(acts(&lease, &away(&[]), Group::Unseen), none, "nobody knows");
    assert_eq!(acts(&lease, &away(from_ref(&held)), Group::Empty), none, "it may be about to begin");
    assert_eq!(acts(&lease, &away(&[held]), Group::Gone), [ends(&lease, None)]);
    let untold = Cluster { pods: None, ..cluster(&[]) };
    assert_eq!(acts(&lease, &untold, Group::Unseen), none, "after a start, before the first answer");
}

#[test]
fn the_next_pod_of_the_same_job_has_it_where_that_was_asked_for() {
    let first = Pod { life: PodLife::Ended(OUT_OF_MEMORY), ..pod("a", &lease_of("one")) };
    let next = pod("b", &lease_of("one"));
    let lease = held_by(&first, Rebind::SameOwner);
    let found = acts(&lease, &cluster(&[first.clone(), next.clone()]), Group::Empty);
    assert!(matches!(&found[..], [Act::Bind { holder: Holder::Pod { uid, .. }, .. }] if uid == "b"), "{found:?}");

    // It is waited for, and not for ever.
    assert_eq!(acts(&lease, &cluster(from_ref(&first)), Group::Empty), [Act::Wait(lease.id.clone())]);
    let waiting = |millis: i64| Lease { unheld_since: Some(Timestamp(NOW.0 - millis)), ..lease.clone() };
    assert_eq!(acts(&waiting(59_999), &cluster(from_ref(&first)), Group::Empty), Vec::new());
    let end = [ends(&lease, Some(OUT_OF_MEMORY))];
    assert_eq!(acts(&waiting(60_000), &cluster(from_ref(&first)), Group::Empty), end);

    // Nor one that has its owner's uid in another namespace, or as somebody else.
    for stranger in
        [Pod { namespace: "other".into(), ..next.clone() }, Pod { service_account: "default".into(), ..next.clone() }]
    {
        let found = acts(&lease, &cluster(&[first.clone(), stranger]), Group::Empty);
        assert_eq!((&found[0], codes(&found)), (&Act::Wait(lease.id.clone()), vec![("b", Code::LeaseNotTheirs)]));
    }

    // Another Job's, or not asked for, or a build that succeeded: no.
    let other = Pod { controller: "another".into(), ..next.clone() };
    let found = acts(&waiting(60_000), &cluster(&[first.clone(), other]), Group::Empty);
    assert_eq!((found[0].clone(), codes(&found)), (end[0].clone(), vec![("b", Code::LeaseNotTheirs)]));
    let never = held_by(&first, Rebind::Never);
    assert_eq!(acts(&never, &cluster(&[first.clone(), next.clone()]), Group::Empty)[0], end[0]);
    let done = Ended { succeeded: true, ..Ended::default() };
    let succeeded = Pod { life: PodLife::Ended(done), ..first };
    let found = acts(&lease, &cluster(&[succeeded, next]), Group::Empty);
    assert_eq!(found[0], ends(&lease, Some(done)));
}

#[test]
fn what_was_not_known_when_it_was_bound_is_made_good() {
    let held = pod("a", &lease_of("one"));
    let lease = Lease { unheld_since: Some(NOW), ..held_by(&held, Rebind::SameOwner) };
    let again = |acts: &[Act]| matches!(acts, [Act::Bind { holder: Holder::Pod { uid, .. }, .. }] if uid == "a");
    assert!(again(&acts(&lease, &cluster(from_ref(&held)), Group::Runs)), "it lives, and is waited for no more");
    let by_call = Lease { controller: String::new(), ..held_by(&held, Rebind::SameOwner) };
    assert!(again(&acts(&by_call, &cluster(from_ref(&held)), Group::Runs)));
    // One that began and ended while nobody looked binds its lease, and ends it with the next look.
    let ended = Pod { life: PodLife::Ended(OUT_OF_MEMORY), ..held };
    assert!(again(&acts(&reserved(Rebind::Never), &cluster(from_ref(&ended)), Group::Unseen)));
    // Who released its lease itself is told nothing.
    let unknown = Pod { lease: "gone".into(), uid: "before".into(), ..pod("before", &lease_of("one")) };
    assert_eq!(acts(&reserved(Rebind::Never), &cluster(&[unknown]), Group::Runs), []);
    // Nor who has another in the place of one that ran out.
    let other = Pod { lease: "gone".into(), ..pod("a", &lease_of("one")) };
    assert_eq!(acts(&held_by(&other, Rebind::Never), &cluster(from_ref(&other)), Group::Runs), []);
}

#[test]
fn what_keeps_pods_away_holds_builds_back() {
    let node = Node { ready: true, ..Node::default() };
    let at = |node: NodeState| Cluster { node, ..cluster(&[]) };
    let held = |cluster: Cluster| {
        let reasons = cluster.held_back(&["dedicated".to_string()]);
        reasons.iter().map(|reason| reason.code).collect::<Vec<_>>()
    };
    let taint = |key: &str, effect: &str| Taint { key: key.into(), value: String::new(), effect: effect.into() };
    assert_eq!(held(at(NodeState::Here(node.clone()))), []);
    assert_eq!(held(at(NodeState::Unknown)), [Code::ApiServerAway]);
    let denied = Cluster { node_denied: true, pods_denied: true, pods: None, ..at(NodeState::Unknown) };
    assert_eq!(held(denied), [], "who may not look waits for nothing");
    assert_eq!(held(at(NodeState::Gone)), [Code::NodeGone]);
    let bad = Node {
        cordoned: true,
        ready: false,
        taints: vec![
            taint("node.kubernetes.io/unschedulable", "NoSchedule"),
            taint("stoker.build/pressure", "NoSchedule"),
            taint("dedicated", "NoSchedule"),
            taint("soft", "PreferNoSchedule"),
            taint("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ],
        ..node.clone()
    };
    assert_eq!(held(at(NodeState::Here(bad))), [Code::NodeCordoned, Code::NodeNotReady, Code::NodeTainted]);
    let stale = Cluster { stale: true, away_since: Some(NOW), ..at(NodeState::Here(node)) };
    assert_eq!(held(stale.clone()), [Code::ApiServerAway]);
    assert_eq!(held(Cluster { asked: false, ..stale }), [], "outside a cluster nobody is asked");
}

#[test]
fn builds_get_no_more_than_pods_may_have() {
    let node = |allocatable| NodeState::Here(Node { capacity: cpu(32_000, 62), allocatable, ..Node::default() });
    let room = |node, limit: Option<u64>| {
        let limit = limit.map(|gib| gib << 30);
        Cluster { node, ..cluster(&[]) }.room(cpu(32_000, 62), cpu(4000, 8), limit).0
    };
    // Allocatable and the limit of all pods bound what is beside the reserve, the machine bounds both.
    assert_eq!(room(node(cpu(26_000, 50)), None), cpu(30_000, 58));
    assert_eq!(room(node(cpu(26_000, 50)), Some(51)), cpu(30_000, 58));
    assert_eq!(room(node(cpu(26_000, 50)), Some(16)), cpu(30_000, 24));
    assert_eq!(room(node(cpu(32_000, 62)), Some(61)), cpu(32_000, 62));
    // Who knows of no node goes by the machine.
    assert_eq!(room(NodeState::Unknown, Some(16)), cpu(32_000, 62));
}
