//! What holds of every size.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

const NODE: Amounts =
    Amounts { cpu_millis: 28_000, memory_bytes: 54 * GIB, disk_bytes: 1000 * GIB, disk_inodes: 100_000_000 };

fn ran(memory: u64, runs: usize) -> HistorySummary {
    let sample = Sample {
        memory_bytes_peak: memory,
        cpu_millis_peak: 3000,
        cpu_millis_given: 0,
        disk_bytes: 5 * GIB,
        elapsed: Span::minutes(100),
        outcome: Outcome::Succeeded,
        censored: false,
    };
    summary(&vec![sample; runs])
}

fn spec() -> Spec {
    Spec {
        file: ".build-spec.yaml".to_string(),
        cpu: Some(SpecValue { value: 6000, line: 2 }),
        memory: Some(SpecValue { value: 12 * GIB, line: 3 }),
        ..Spec::default()
    }
}

fn basis(sizing: &Sizing, resource: Resource) -> Basis {
    sizing.basis.iter().find(|basis| basis.resource == resource).unwrap().clone()
}

/// The scheduler of the cluster gave it to its pod: a lease for less would grow when the pod is bound.
#[test]
fn no_lease_is_for_less_than_its_pod_asks_for() {
    let pod = Amounts { cpu_millis: 5000, memory_bytes: 20 * GIB, ..Amounts::default() };
    let of = |declared: Declared, spec: Option<&Spec>, history: Option<&HistorySummary>| {
        let sizing = size(&declared, spec, history, Language::Rust, &Policy::default(), &NODE);
        (sizing.size.amounts.cpu_millis, sizing.size.amounts.memory_bytes / GIB, sizing.size.amounts.disk_bytes / GIB)
    };
    let asks = Declared { pod, ..Declared::default() };
    assert_eq!(of(asks.clone(), None, None), (5000, 20, 20), "part by part; of the disk it says nothing");
    assert_eq!(of(asks.clone(), Some(&spec()), None), (6000, 20, 20));
    let told = Declared { cpu_millis: Some(8000), memory_bytes: Some(GIB), ..asks.clone() };
    assert_eq!(of(told, None, None), (8000, 20, 20));
    assert_eq!(of(asks.clone(), None, Some(&ran(30 * GIB, 20))).1, 36, "what its runs lead to is more");
    let huge = Declared { pod: Amounts { memory_bytes: 90 * GIB, ..pod }, ..Declared::default() };
    assert_eq!(of(huge, None, None).1, 90, "and it is refused rather than made smaller");
}

#[test]
fn nothing_known_gives_the_languages_default() {
    let of = |language| size(&Declared::default(), None, None, language, &Policy::default(), &NODE);
    let figures = |sizing: &Sizing| {
        let a = sizing.size.amounts;
        (a.cpu_millis / 1000, a.memory_bytes / GIB, sizing.size.time_budget.0 / 60_000)
    };
    assert_eq!(figures(&of(Language::Rust)), (4, 8, 60));
    assert_eq!(figures(&of(Language::Go)), (2, 4, 30));
    for language in [Language::Java, Language::Kotlin, Language::Scala] {
        assert_eq!(figures(&of(language)), (4, 8, 45));
    }
    assert_eq!(figures(&of(Language::Node)), (2, 4, 30));
    let other = of(Language::Other);
    assert_eq!(figures(&other), (2, 4, 30));
    assert_eq!((other.size.amounts.disk_bytes, other.size.amounts.disk_inodes), (20 * GIB, 1_000_000));
    assert!(other.basis.iter().all(|b| b.tier == Tier::LanguageDefault && b.language == Some(Language::Other)));
    assert_eq!(other.basis.iter().map(|b| b.resource).collect::<Vec<_>>(), RESOURCES);
    assert!(!other.clamped && !other.provisional);
}

#[test]
fn the_request_goes_before_the_spec_and_each_part_says_so() {
    let request = Declared { memory_bytes: Some(GIB), ..Declared::default() };
    let sizing = size(&request, Some(&spec()), None, Language::Rust, &Policy::default(), &NODE);
    assert_eq!(sizing.size.amounts.memory_bytes, GIB);
    assert_eq!(basis(&sizing, Resource::Memory).tier, Tier::Request);
    let cpu = basis(&sizing, Resource::Cpu);
    assert_eq!((cpu.tier, cpu.value, cpu.line, cpu.file.as_str()), (Tier::Spec, 6000, 2, ".build-spec.yaml"));
    assert_eq!(basis(&sizing, Resource::Time).tier, Tier::LanguageDefault);
}

#[test]
fn the_history_with_its_margin_raises_what_is_declared() {
    let history = ran(10 * GIB, 3);
    let request = Declared { memory_bytes: Some(8 * GIB), cpu_millis: Some(9000), ..Declared::default() };
    let sizing = size(&request, None, Some(&history), Language::Go, &Policy::default(), &NODE);
    assert_eq!(sizing.size.amounts.memory_bytes, 12 * GIB);
    let memory = basis(&sizing, Resource::Memory);
    assert_eq!((memory.tier, memory.runs, memory.confidence), (Tier::History, 3, Confidence::Low));
    assert_eq!(basis(&sizing, Resource::Cpu).tier, Tier::Request);
    assert_eq!(sizing.size.amounts.disk_bytes, 6 * GIB, "the history goes before the default");
    assert_eq!(sizing.size.time_budget, Span::minutes(120));
}

#[test]
fn a_short_run_does_not_shorten_the_time_budget() {
    let quick = Sample { elapsed: Span(12), ..sample_of_nothing() };
    let sizing = size(&Declared::default(), None, Some(&summary(&[quick])), Language::Rust, &Policy::default(), &NODE);
    assert_eq!(sizing.size.time_budget, Span::minutes(60));
    assert_eq!(sizing.size.amounts.memory_bytes, DERIVED_FLOOR.memory_bytes);
    assert_eq!(basis(&sizing, Resource::Memory).tier, Tier::History);
}

#[test]
fn a_build_that_was_killed_needs_more_than_it_declared() {
    let killed = Sample { memory_bytes_peak: GIB, outcome: Outcome::OutOfMemoryLimit, ..sample_of_nothing() };
    let request = Declared { memory_bytes: Some(GIB), ..Declared::default() };
    let sizing = size(&request, None, Some(&summary(&[killed])), Language::Rust, &Policy::default(), &NODE);
    assert_eq!(sizing.size.amounts.memory_bytes, GIB + GIB.div_ceil(5));
    let undeclared =
        size(&Declared::default(), None, Some(&summary(&[killed])), Language::Rust, &Policy::default(), &NODE);
    assert_eq!(undeclared.size.amounts.memory_bytes, 8 * GIB, "a lower bound below the default says nothing");
}

fn sample_of_nothing() -> Sample {
    Sample {
        memory_bytes_peak: 1,
        cpu_millis_peak: 1,
        cpu_millis_given: 0,
        disk_bytes: 1,
        elapsed: Span(1),
        outcome: Outcome::Succeeded,
        censored: false,
    }
}

#[test]
fn the_callers_own_figures_count_like_the_nodes() {
    let measured = Measured { memory_bytes_p95: 20 * GIB, cpu_millis_p95: 100, runs: 40 };
    let request = Declared { measured: Some(measured), ..Declared::default() };
    let sizing = size(&request, None, Some(&ran(10 * GIB, 3)), Language::Go, &Policy::default(), &NODE);
    assert_eq!(sizing.size.amounts.memory_bytes, 24 * GIB);
    assert_eq!(basis(&sizing, Resource::Memory).runs, 40);
    assert_eq!(basis(&sizing, Resource::Cpu).runs, 3, "the larger of the two");
}

#[test]
fn a_small_node_lowers_defaults_but_not_what_is_declared() {
    let small = Amounts { cpu_millis: 1500, memory_bytes: 3 * GIB, disk_bytes: 10 * GIB, disk_inodes: 500_000 };
    let request = Declared { cpu_millis: Some(64_000), ..Declared::default() };
    let sizing = size(&request, None, None, Language::Rust, &Policy::default(), &small);
    // Of the disk a tenth is left: it is never empty, and all of it would be waited for in vain.
    let disk = Amounts { disk_bytes: 9 * GIB, disk_inodes: 450_000, ..small };
    assert_eq!(sizing.size.amounts, Amounts { cpu_millis: 64_000, ..disk });
    assert!(sizing.clamped && !basis(&sizing, Resource::Cpu).clamped);
    let memory = basis(&sizing, Resource::Memory);
    assert!(memory.clamped);
    assert_eq!(memory.value, 8 * GIB, "the basis keeps what it would have been");
}

#[test]
fn the_cap_lowers_what_nobody_declared_and_refuses_what_somebody_did() {
    let cap =
        Cap { cpu_millis: Some(3000), memory_bytes: Some(6 * GIB), time: Some(Span::minutes(20)), ..Cap::default() };
    let policy = Policy { cap, ..Policy::default() };
    let sizing = size(&Declared::default(), None, Some(&ran(10 * GIB, 30)), Language::Rust, &policy, &NODE);
    let memory = basis(&sizing, Resource::Memory);
    assert_eq!((sizing.size.amounts.memory_bytes, memory.value), (6 * GIB, 12 * GIB));
    assert!(memory.clamped && memory.capped && sizing.clamped);
    assert_eq!((sizing.size.amounts.cpu_millis, sizing.size.time_budget), (3000, Span::minutes(20)));
    assert!(!basis(&sizing, Resource::DiskBytes).clamped);
    // A node with less than the cap is what lowers it.
    let small = Amounts { memory_bytes: GIB, ..NODE };
    let sizing = size(&Declared::default(), None, None, Language::Rust, &policy, &small);
    assert!(basis(&sizing, Resource::Memory).clamped && !basis(&sizing, Resource::Memory).capped);
    assert_eq!(policy.room(&NODE), Amounts { cpu_millis: 3000, memory_bytes: 6 * GIB, ..NODE });

    let request = Declared { cpu_millis: Some(4000), time_budget: Some(Span::minutes(20)), ..Declared::default() };
    let told: Vec<_> = beyond_cap(&request, Some(&spec()), &cap)
        .into_iter()
        .map(|reason| (reason.code, reason.wanted, reason.available, reason.message))
        .collect();
    let cpu = "4 CPU declared by declared.cpu_millis, this node allows 3 CPU (sizing.cap.cpu): declare at most that";
    let memory = "12 GiB declared by memory_gb of .build-spec.yaml:3, this node allows 6 GiB (sizing.cap.memory): declare at most that";
    assert_eq!(
        told,
        [(Code::SizeCap, 4000, 3000, cpu.to_string()), (Code::SizeCap, 12 * GIB, 6 * GIB, memory.to_string())]
    );
}

#[test]
fn who_declares_far_more_than_it_uses_is_told_with_both_figures() {
    let sized = |history, request: Declared| {
        size(&request, Some(&spec()), Some(&history), Language::Go, &Policy::default(), &NODE)
    };
    let sizing = sized(ran(2 * GIB, 6), Declared::default());
    assert_eq!(sizing.size.amounts.memory_bytes, 12 * GIB, "what is declared stands");
    let memory = basis(&sizing, Resource::Memory);
    assert_eq!((memory.tier, memory.over_declared), (Tier::Spec, true));
    let margin = 2 * GIB + (2 * GIB).div_ceil(5);
    assert_eq!(memory.compared, Some(Compared { p95: 2 * GIB, leads_to: margin, runs: 6 }));
    let [told] = sizing.over_declared().try_into().unwrap();
    assert_eq!(
        told.message,
        "12 GiB declared by memory_gb of .build-spec.yaml:3, but 95% of 6 runs used at most 2 GiB: 2.4 GiB would be enough"
    );
    assert_eq!((told.code, told.wanted, told.available), (Code::OverDeclared, 12 * GIB, margin));
    // Not after a few runs, not for a little, not where the caller's own figures say otherwise.
    assert!(sized(ran(2 * GIB, 4), Declared::default()).over_declared().is_empty());
    let little = Declared { memory_bytes: Some(512 * MIB), ..Declared::default() };
    assert!(sized(ran(100 * MIB, 6), little).over_declared().is_empty());
    let measured = Some(Measured { memory_bytes_p95: 9 * GIB, cpu_millis_p95: 0, runs: 30 });
    assert!(sized(ran(2 * GIB, 6), Declared { measured, ..Declared::default() }).over_declared().is_empty());
}

prop_compose! {
    fn amounts()(cpu_millis in 0..64_000u64, memory_bytes in 0..(256 * GIB), disk_bytes in 0..(256 * GIB),
                 disk_inodes in 0..10_000_000u64) -> Amounts {
        Amounts { cpu_millis, memory_bytes, disk_bytes, disk_inodes }
    }
}

prop_compose! {
    fn request()(cpu_millis in prop::option::of(0..64_000u64), memory_bytes in prop::option::of(0..(256 * GIB)),
                 disk_bytes in prop::option::of(0..(256 * GIB)), disk_inodes in prop::option::of(0..10_000_000u64),
                 time in prop::option::of(0..200_000_000i64),
                 measured in prop::option::of((0..64_000u64, 0..(256 * GIB), 0..50u32))) -> Declared {
        let measured = measured
            .map(|(cpu_millis_p95, memory_bytes_p95, runs)| Measured { cpu_millis_p95, memory_bytes_p95, runs });
        Declared { cpu_millis, memory_bytes, disk_bytes, disk_inodes, time_budget: time.map(Span), measured, pod: Amounts::default() }
    }
}

prop_compose! {
    fn specs()(cpu in prop::option::of(1..64_000u64), memory in prop::option::of(1..(256 * GIB)),
               disk in prop::option::of(1..(256 * GIB)), time in prop::option::of(1..86_400_000u64)) -> Spec {
        let at = |value: Option<u64>| value.map(|value| SpecValue { value, line: 1 });
        Spec { cpu: at(cpu), memory: at(memory), disk: at(disk), time: at(time), ..Spec::default() }
    }
}

proptest! {
    #[test]
    fn never_below_what_is_declared_and_clamped_only_what_was_lowered(
        request in request(), spec in prop::option::of(specs()), node in amounts(),
        memory in prop::option::of(0..(256 * GIB)), runs in 1..40usize
    ) {
        let history = memory.map(|memory| ran(memory, runs));
        let sizing = size(&request, spec.as_ref(), history.as_ref(), Language::Go, &Policy::default(), &node);
        for basis in &sizing.basis {
            let value = part(&sizing.size, basis.resource);
            let declared = request.get(basis.resource)
                .or_else(|| spec.as_ref()?.get(basis.resource).map(|at| at.value));
            prop_assert!(value >= declared.unwrap_or(0));
            prop_assert_eq!(basis.clamped, value < basis.value);
            if matches!(basis.tier, Tier::Request | Tier::Spec) {
                prop_assert_eq!(Some(value), declared);
            } else if basis.resource != Resource::Time {
                prop_assert!(value <= node.get(basis.resource).max(declared.unwrap_or(0)));
            }
        }
        prop_assert_eq!(sizing.clamped, sizing.basis.iter().any(|basis| basis.clamped));
    }

    #[test]
    fn more_memory_in_the_history_never_means_a_smaller_size(
        request in request(), node in amounts(), memory in 0..(256 * GIB), more in 0..(256 * GIB), runs in 1..40usize
    ) {
        let of = |memory| {
            let history = ran(memory, runs);
            size(&request, None, Some(&history), Language::Go, &Policy::default(), &node).size.amounts.memory_bytes
        };
        // A history without any memory in it says nothing, so it is no smaller history.
        prop_assume!(memory > 0);
        prop_assert!(of(memory + more) >= of(memory));
    }
}
