#![allow(clippy::unwrap_used, clippy::expect_used, clippy::arithmetic_side_effects)]

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::quantity::{Span, Timestamp};
use crate::reason::Code;

const GIB: u64 = 1 << 30;
const LIMITS: Limits = Limits {
    memory_floor: 4 * GIB,
    memory_narrow: 8 * GIB,
    memory_stall_full: 2000,
    disk_forecast: Span::seconds(60),
    control_plane_latency: Span::seconds(1),
    hold: Span::seconds(30),
};

fn roomy() -> Filesystem {
    Filesystem {
        total_bytes: 1000 * GIB,
        free_bytes: 500 * GIB,
        total_inodes: 1_000_000,
        free_inodes: 500_000,
        floor_bytes: 100 * GIB,
        floor_inodes: 50_000,
        ..Filesystem::default()
    }
}

fn calm() -> Readings {
    Readings {
        memory: Some(Memory { total_bytes: 62 * GIB, available_bytes: 50 * GIB }),
        root: DiskReading::Known(roomy()),
        pools: vec![PoolReading { name: "data".to_string(), needed: true, disk: DiskReading::Known(roomy()) }],
        ..Readings::default()
    }
}

fn with_memory(available_bytes: u64) -> Readings {
    Readings { memory: Some(Memory { total_bytes: 62 * GIB, available_bytes }), ..calm() }
}

fn pool_with(disk: DiskReading, needed: bool) -> Readings {
    Readings { pools: vec![PoolReading { name: "data".to_string(), needed, disk }], ..calm() }
}

/// A look a second, beginning at `from`.
fn look(memory: GateMemory, readings: &Readings, from: i64, seconds: i64) -> GateMemory {
    (0..seconds).fold(memory, |memory, second| decide(&memory, readings, &LIMITS, Timestamp((from + second) * 1000)))
}

fn codes(memory: &GateMemory) -> Vec<Code> {
    memory.gate.reasons.iter().map(|reason| reason.code).collect()
}

fn first(readings: &Readings) -> GateMemory {
    decide(&GateMemory::default(), readings, &LIMITS, Timestamp(0))
}

#[test]
fn a_calm_node_is_open_at_the_first_look() {
    let memory = first(&calm());
    assert_eq!(memory.gate, Gate { state: GateState::Open, reasons: vec![], since: Timestamp(0) });
}

#[test]
fn memory_below_the_floor_shuts_at_once_and_says_the_figures() {
    let memory = look(first(&calm()), &with_memory(3 * GIB), 1, 1);
    assert_eq!(memory.gate.state, GateState::Shut);
    assert_eq!(memory.gate.since, Timestamp(1000));
    let [reason] = memory.gate.reasons.as_slice() else { panic!("{:?}", memory.gate.reasons) };
    assert_eq!((reason.code, reason.wanted, reason.available), (Code::MemoryFloor, 4 * GIB, 3 * GIB));
    assert_eq!(reason.message, "memory: 3 GiB available, the floor is 4 GiB; nothing new starts");
}

#[test]
fn the_gate_opens_after_a_whole_hold_above_the_recovery_threshold() {
    let shut = first(&with_memory(GIB));
    // Above the floor but not 10% above it: not before ten holds, in which it never was below.
    let barely = with_memory(4 * GIB + GIB / 5);
    let between = look(shut.clone(), &barely, 1, 300);
    assert_eq!(between.gate.state, GateState::Shut);
    let relapsed = look(between.clone(), &with_memory(GIB), 301, 1);
    assert_eq!(look(relapsed, &barely, 302, 300).gate.state, GateState::Shut);
    assert_eq!(look(between, &barely, 301, 1).gate.state, GateState::Narrow);
    let early = look(shut.clone(), &with_memory(50 * GIB), 1, 30);
    assert_eq!(early.gate.state, GateState::Shut);
    assert_eq!(early.gate.reasons[0].expected_until, Some(Timestamp(31_000)));
    assert_eq!(look(shut, &with_memory(50 * GIB), 1, 31).gate.state, GateState::Open);
}

#[test]
fn a_relapse_begins_the_hold_anew() {
    let shut = first(&with_memory(GIB));
    let memory = look(look(shut, &with_memory(50 * GIB), 1, 20), &with_memory(GIB), 21, 1);
    assert_eq!(look(memory.clone(), &with_memory(50 * GIB), 22, 30).gate.state, GateState::Shut);
    assert_eq!(look(memory, &with_memory(50 * GIB), 22, 31).gate.state, GateState::Open);
}

#[test]
fn memory_between_floor_and_narrow_lets_small_builds_in() {
    let memory = first(&with_memory(6 * GIB));
    assert_eq!((memory.gate.state, codes(&memory)), (GateState::Narrow, vec![Code::MemoryNarrow]));
    assert!(memory.gate.soft_only());
    let shut = first(&with_memory(GIB));
    assert!(!shut.gate.soft_only());
    assert_eq!(look(shut, &with_memory(6 * GIB), 1, 40).gate.state, GateState::Narrow);
}

#[test]
fn a_jump_of_the_clock_opens_nothing() {
    let memory = look(first(&with_memory(GIB)), &with_memory(50 * GIB), 1, 5);
    let ahead = decide(&memory, &with_memory(50 * GIB), &LIMITS, Timestamp(1_000_000_000));
    assert_eq!(ahead.gate.state, GateState::Shut);
    let back = decide(&ahead, &with_memory(50 * GIB), &LIMITS, Timestamp(0));
    assert_eq!(back.gate.state, GateState::Shut);
    assert_eq!(look(back, &with_memory(50 * GIB), 1, 31).gate.state, GateState::Open);
}

#[test]
fn reserved_and_unwritten_disk_counts_as_gone() {
    let disk = Filesystem { reserved_bytes: 450 * GIB, reserved_inodes: 460_000, ..roomy() };
    let memory = first(&pool_with(DiskReading::Known(disk), false));
    assert_eq!(codes(&memory), vec![Code::DiskFloor, Code::DiskInodesFloor]);
    assert_eq!(memory.gate.reasons[0].available, 50 * GIB);
    assert_eq!(memory.gate.reasons[0].subject, "data");
}

#[test]
fn a_filesystem_without_a_number_of_inodes_never_runs_out_of_them() {
    let disk = Filesystem { total_inodes: 0, free_inodes: 0, floor_inodes: 0, ..roomy() };
    assert_eq!(first(&pool_with(DiskReading::Known(disk), true)).gate.state, GateState::Open);
}

/// 400 GiB above the floor, and so many GiB a minute less.
fn falling(gib_per_minute: u64) -> Filesystem {
    Filesystem { slope: Slope { bytes_per_minute: gib_per_minute * GIB, inodes_per_minute: 0 }, ..roomy() }
}

#[test]
fn a_disk_that_would_be_full_within_the_forecast_shuts_before_it_is() {
    let of = |speed| pool_with(DiskReading::Known(falling(speed)), true);
    assert_eq!(first(&of(400)).gate.state, GateState::Open, "in 60 s");
    let shut = first(&of(480));
    assert_eq!((shut.gate.state, codes(&shut)), (GateState::Shut, vec![Code::DiskForecast]));
    let reason = &shut.gate.reasons[0];
    assert_eq!((reason.subject.as_str(), reason.wanted, reason.available), ("data", 480 * GIB, 400 * GIB));
    assert_eq!(
        reason.message,
        "data: 400 GiB above its floor, which it reaches in 50 s at 480 GiB a minute; nothing new starts where that is \
         less than 1 min"
    );
    assert!(!shut.gate.soft_only(), "an idle node does not start a build on a disk that will be full");
    // In 80 s: not under the forecast, not half as long again from it.
    assert_eq!(look(shut.clone(), &of(300), 1, 300).gate.state, GateState::Shut);
    // In 100 s.
    let recovering = look(shut.clone(), &of(240), 1, 30);
    assert_eq!(recovering.gate.reasons[0].expected_until, Some(Timestamp(31_000)));
    assert_eq!(look(shut, &of(240), 1, 31).gate.state, GateState::Open);
}

#[test]
fn a_forecast_of_nothing_forecasts_nothing() {
    let limits = Limits { disk_forecast: Span(0), ..LIMITS };
    let readings = pool_with(DiskReading::Known(falling(u64::MAX / GIB)), true);
    assert_eq!(decide(&GateMemory::default(), &readings, &limits, Timestamp(0)).gate.state, GateState::Open);
}

#[test]
fn a_floor_that_was_reached_needs_no_forecast() {
    let full = Filesystem { free_bytes: GIB, ..falling(480) };
    let inodes = Slope { bytes_per_minute: 0, inodes_per_minute: 500_000 };
    let readings = Readings {
        root: DiskReading::Known(full),
        filesystems: vec![WatchedReading {
            path: "/var/lib/kubelet".to_string(),
            disk: DiskReading::Known(Filesystem { slope: inodes, ..roomy() }),
        }],
        ..calm()
    };
    assert_eq!(codes(&first(&readings)), vec![Code::RootDiskFloor, Code::DiskInodesForecast]);
}

#[test]
fn the_kubelets_filesystem_has_a_floor_and_fails_closed() {
    let watched =
        |disk| Readings { filesystems: vec![WatchedReading { path: "/var/lib/kubelet".to_string(), disk }], ..calm() };
    let low = first(&watched(DiskReading::Known(Filesystem { free_bytes: GIB, free_inodes: 3, ..roomy() })));
    assert_eq!(codes(&low), vec![Code::NodeDiskFloor, Code::NodeDiskInodesFloor]);
    assert_eq!(low.gate.reasons[0].subject, "/var/lib/kubelet");
    let blind = look(low, &watched(DiskReading::Failed), 1, 1);
    assert_eq!(codes(&blind), vec![Code::SensorFailed, Code::NodeDiskFloor, Code::NodeDiskInodesFloor]);
    assert_eq!(first(&watched(DiskReading::Known(roomy()))).gate.state, GateState::Open);
}

fn probed(probe: Probe) -> Readings {
    Readings { control_plane: ControlPlane { probe, groups: vec![] }, ..calm() }
}

#[test]
fn a_control_plane_that_is_slow_narrows_and_one_that_does_not_answer_shuts() {
    let answered = |millis| first(&probed(Probe::Answered(Span(millis))));
    assert_eq!(answered(999).gate.state, GateState::Open);
    let slow = answered(1000);
    assert_eq!((slow.gate.state, codes(&slow)), (GateState::Narrow, vec![Code::ControlPlaneSlow]));
    assert!(slow.gate.soft_only());
    assert_eq!(look(slow.clone(), &probed(Probe::Answered(Span(950))), 1, 100).gate.state, GateState::Narrow);
    assert_eq!(look(slow, &probed(Probe::Answered(Span(900))), 1, 31).gate.state, GateState::Open);
    let stalled = answered(3000);
    assert_eq!((stalled.gate.state, codes(&stalled)), (GateState::Shut, vec![Code::ControlPlaneStalled]));
    assert!(!stalled.gate.soft_only());
    let unwell = first(&probed(Probe::Unwell("it answers 500".to_string())));
    assert_eq!(codes(&unwell), vec![Code::ControlPlaneStalled]);
    assert_eq!(unwell.gate.reasons[0].message, "control plane: it answers 500");
    let blind = look(unwell, &probed(Probe::Failed("no such file".to_string())), 1, 1);
    assert_eq!(codes(&blind), vec![Code::SensorFailed, Code::ControlPlaneStalled]);
}

#[test]
fn control_groups_of_the_control_plane_count_by_their_stalls() {
    let of = |memory, cpu| Readings {
        control_plane: ControlPlane {
            groups: vec![GroupReading { path: "/etcd".to_string(), memory, cpu }],
            ..ControlPlane::default()
        },
        ..calm()
    };
    let full = |full_avg10| StallReading::Known(Stall { full_avg10, ..Stall::default() });
    let some = |some_avg10| StallReading::Known(Stall { some_avg10, ..Stall::default() });
    for (memory, cpu, expected) in [
        (StallReading::Untold, StallReading::Untold, vec![]),
        (full(999), some(4999), vec![]),
        (full(1000), StallReading::Untold, vec![Code::ControlPlaneSlow]),
        (full(0), some(5000), vec![Code::ControlPlaneSlow]),
        (full(2000), some(0), vec![Code::ControlPlaneStalled]),
        (StallReading::Failed, some(0), vec![Code::SensorFailed]),
    ] {
        let gate = first(&of(memory, cpu));
        assert_eq!(codes(&gate), expected, "{memory:?} {cpu:?}");
        assert!(gate.gate.reasons.iter().all(|reason| reason.subject == "/etcd"));
    }
}

#[test]
fn the_root_filesystem_has_reasons_of_its_own() {
    let root = Filesystem { free_bytes: GIB, free_inodes: 1, ..roomy() };
    let memory = first(&Readings { root: DiskReading::Known(root), ..calm() });
    assert_eq!(codes(&memory), vec![Code::RootDiskFloor, Code::RootDiskInodesFloor]);
}

#[test]
fn a_pool_that_is_not_ready_shuts_only_where_it_is_needed_and_opens_when_it_is_back() {
    let gone = DiskReading::NotReady("/var/mnt/x is not mounted".to_string());
    assert_eq!(first(&pool_with(gone.clone(), false)).gate.state, GateState::Open);
    let shut = first(&pool_with(gone, true));
    assert_eq!((shut.gate.state, codes(&shut)), (GateState::Shut, vec![Code::PoolNotReady]));
    assert_eq!(shut.gate.reasons[0].message, "/var/mnt/x is not mounted");
    assert_eq!(look(shut, &calm(), 1, 1).gate.state, GateState::Open);
}

#[test]
fn a_failed_sensor_shuts_and_keeps_what_was_known() {
    for readings in [
        Readings { memory: None, ..calm() },
        Readings { root: DiskReading::Failed, ..calm() },
        Readings { memory_stall: StallReading::Failed, ..calm() },
        pool_with(DiskReading::Failed, true),
    ] {
        assert_eq!(codes(&first(&readings)), vec![Code::SensorFailed]);
    }
    let blind = look(first(&with_memory(GIB)), &Readings { memory: None, ..calm() }, 1, 1);
    assert_eq!(codes(&blind), vec![Code::SensorFailed, Code::MemoryFloor]);
    let shown = Readings { cpu_stall: StallReading::Failed, io_stall: StallReading::Failed, cpu: None, ..calm() };
    assert_eq!(first(&shown).gate.state, GateState::Open);
}

#[test]
fn stalls_for_memory_shut_and_those_for_cpu_and_io_do_not() {
    let much =
        StallReading::Known(Stall { some_avg10: 9900, some_avg60: 9900, full_avg10: 2000, full_avg60: 0, full_now: 0 });
    let memory = first(&Readings { memory_stall: much, ..calm() });
    assert_eq!((memory.gate.state, codes(&memory)), (GateState::Shut, vec![Code::MemoryPressure]));
    assert!(memory.gate.reasons[0].message.contains("20.00%"), "{}", memory.gate.reasons[0].message);
    assert!(memory.gate.soft_only());
    let sudden = StallReading::Known(Stall { full_now: 2000, full_avg10: 300, ..Stall::default() });
    assert_eq!(codes(&first(&Readings { memory_stall: sudden, ..calm() })), vec![Code::MemoryPressure]);
    assert_eq!(first(&Readings { cpu_stall: much, io_stall: much, ..calm() }).gate.state, GateState::Open);
}

#[test]
fn a_floor_that_is_nearly_everything_can_still_be_left() {
    let limits = Limits { memory_floor: 60 * GIB, memory_narrow: 60 * GIB, hold: Span(0), ..LIMITS };
    let shut = decide(&GateMemory::default(), &with_memory(59 * GIB), &limits, Timestamp(0));
    assert_eq!(decide(&shut, &with_memory(61 * GIB), &limits, Timestamp(1)).gate.state, GateState::Open);
}

#[test]
fn memory_is_looked_at_faster_as_it_falls() {
    assert_eq!(interval(Some(50 * GIB), 4 * GIB), INTERVAL_MAX);
    assert_eq!(interval(Some(7 * GIB), 4 * GIB), Span(512));
    for available in [None, Some(0), Some(4 * GIB), Some(4 * GIB + 1)] {
        assert_eq!(interval(available, 4 * GIB), INTERVAL_MIN);
    }
    assert_eq!(interval(Some(u64::MAX), 0), INTERVAL_MAX);
}

/// Steps of time, each with available memory; the pool, the root and stalls waver too.
fn course() -> impl Strategy<Value = Vec<(i64, u64, u64, u32)>> {
    let memory = prop_oneof![0..16 * GIB, 3 * GIB..5 * GIB, 7 * GIB..10 * GIB];
    proptest::collection::vec((1i64..6000, memory, 80 * GIB..140 * GIB, 0u32..3000), 1..120)
}

fn readings_of(memory: u64, free_bytes: u64, full_avg10: u32) -> Readings {
    Readings {
        memory_stall: StallReading::Known(Stall { full_avg10, ..Stall::default() }),
        pools: vec![PoolReading {
            name: String::from("data"),
            needed: true,
            disk: DiskReading::Known(Filesystem { free_bytes, ..roomy() }),
        }],
        ..with_memory(memory)
    }
}

/// The worst state that the figures of one look alone ask for, and the worst that they keep once it was entered.
fn bounds(memory: u64, free_bytes: u64, full: u32) -> (GateState, GateState) {
    let state = |memory_factor: u64, stall: u32| {
        let above = |floor: u64, value: u64| value >= floor + floor / 100 * memory_factor;
        if !above(4 * GIB, memory) || !above(100 * GIB, free_bytes) || full >= stall {
            GateState::Shut
        } else if above(8 * GIB, memory) {
            GateState::Open
        } else {
            GateState::Narrow
        }
    };
    (state(0, 2000), state(10, 1801))
}

proptest! {
    #[test]
    fn worse_at_once_and_better_only_after_a_hold(course in course()) {
        let (mut memory, mut now) = (GateMemory::default(), 0);
        let mut seen: Vec<(i64, GateState)> = Vec::new();
        for (step, available, free, full) in course {
            now += step;
            let before = memory.clone();
            memory = decide(&memory, &readings_of(available, free, full), &LIMITS, Timestamp(now));
            let (asked, kept) = bounds(available, free, full);
            prop_assert!(memory.gate.state >= asked, "a worse state is entered at once");
            seen.push((now, kept));
            if seen.len() > 1 && memory.gate.state < before.gate.state {
                // At every look of the last 30 s, the first of which is at least 30 s ago, the figures were that good.
                let held = seen.iter().rev().take_while(|(_, kept)| *kept <= memory.gate.state);
                let first = held.map(|(at, _)| *at).min().unwrap_or(now);
                prop_assert!(now - first >= LIMITS.hold.0, "left after {} ms", now - first);
                prop_assert_eq!(memory.gate.since, Timestamp(now));
            }
            prop_assert_eq!(memory.gate.reasons.is_empty(), memory.gate.state == GateState::Open);
        }
    }

    #[test]
    fn between_two_openings_lies_a_hold(course in course()) {
        let (mut memory, mut now, mut opened) = (GateMemory::default(), 0, None::<i64>);
        for (step, available, free, full) in course {
            now += step;
            let before = memory.gate.state;
            memory = decide(&memory, &readings_of(available, free, full), &LIMITS, Timestamp(now));
            if before != GateState::Open && memory.gate.state == GateState::Open {
                if let Some(opened) = opened {
                    prop_assert!(now - opened > LIMITS.hold.0);
                }
                opened = Some(now);
            }
        }
    }

    #[test]
    fn more_memory_never_gives_a_worse_gate(course in course(), more in 0..4 * GIB) {
        let (mut less, mut most, mut now) = (GateMemory::default(), GateMemory::default(), 0);
        for (step, available, free, full) in course {
            now += step;
            less = decide(&less, &readings_of(available, free, full), &LIMITS, Timestamp(now));
            most = decide(&most, &readings_of(available + more, free, full), &LIMITS, Timestamp(now));
            prop_assert!(most.gate.state <= less.gate.state);
        }
    }

    #[test]
    fn no_figures_overflow(
        total in any::<u64>(), available in any::<u64>(), floor in any::<u64>(), narrow in any::<u64>(),
        reserved in any::<u64>(), hold in any::<i64>(), now in any::<i64>(), stall in any::<u32>(),
        forecast in any::<i64>(), speed in any::<u64>(),
    ) {
        let limits = Limits {
            memory_floor: floor, memory_narrow: narrow, memory_stall_full: stall, hold: Span(hold),
            disk_forecast: Span(forecast), control_plane_latency: Span(hold),
        };
        let disk = Filesystem {
            total_bytes: total, free_bytes: available, floor_bytes: floor, reserved_bytes: reserved,
            total_inodes: available, free_inodes: total, floor_inodes: narrow, reserved_inodes: floor,
            slope: Slope { bytes_per_minute: speed, inodes_per_minute: reserved },
        };
        let readings = Readings {
            memory: Some(Memory { total_bytes: total, available_bytes: available }),
            root: DiskReading::Known(disk), ..calm()
        };
        let once = decide(&GateMemory::default(), &readings, &limits, Timestamp(now));
        let twice = decide(&once, &readings, &limits, Timestamp(now));
        prop_assert!(twice.gate.state <= once.gate.state, "the same figures make nothing worse");
    }
}
