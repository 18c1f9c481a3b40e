//! What is worth waking somebody for.

use stoker_core::pressure::{ControlPlane, DiskReading, Gate, GroupReading, Probe, Readings, StallReading};

/// Whether two gates are the same but for the figures in their reasons.
pub(super) fn same_gate(a: &Gate, b: &Gate) -> bool {
    let kinds = |gate: &Gate| -> Vec<_> {
        gate.reasons.iter().map(|reason| (reason.code, reason.subject.clone(), reason.expected_until)).collect()
    };
    a.state == b.state && kinds(a) == kinds(b)
}

/// Whether people would see the difference between two readings: 1% of memory, CPU or time, 0.1% of a disk, half a
/// task of the load.
pub(super) fn differs(a: &Readings, b: &Readings) -> bool {
    let memory = match (a.memory, b.memory) {
        (Some(a), Some(b)) => {
            a.total_bytes != b.total_bytes || far(a.available_bytes, b.available_bytes, a.total_bytes / 100)
        }
        (a, b) => a != b,
    };
    let cpu = match (a.cpu, b.cpu) {
        (Some(a), Some(b)) => {
            a.total_millis != b.total_millis || far(a.used_millis, b.used_millis, a.total_millis / 100)
        }
        (a, b) => a != b,
    };
    let load = |of: &Readings| of.load.map_or(0, |load| load.avg_1m);
    memory
        || cpu
        || load(a).abs_diff(load(b)) > 50
        || stall_differs(a.memory_stall, b.memory_stall)
        || stall_differs(a.cpu_stall, b.cpu_stall)
        || stall_differs(a.io_stall, b.io_stall)
        || disk_differs(&a.root, &b.root)
        || a.pools.len() != b.pools.len()
        || a.pools.iter().zip(&b.pools).any(|(a, b)| disk_differs(&a.disk, &b.disk))
        || control_plane_differs(&a.control_plane, &b.control_plane)
        || a.filesystems.len() != b.filesystems.len()
        || a.filesystems.iter().zip(&b.filesystems).any(|(a, b)| a.path != b.path || disk_differs(&a.disk, &b.disk))
}

fn far(a: u64, b: u64, step: u64) -> bool {
    a.abs_diff(b) > step
}

fn stall_differs(a: StallReading, b: StallReading) -> bool {
    match (a, b) {
        (StallReading::Known(a), StallReading::Known(b)) => {
            let parts = [
                (a.some_avg10, b.some_avg10),
                (a.some_avg60, b.some_avg60),
                (a.full_avg10, b.full_avg10),
                (a.full_avg60, b.full_avg60),
                (a.full_now, b.full_now),
            ];
            parts.into_iter().any(|(a, b)| a.abs_diff(b) > 100)
        }
        (a, b) => a != b,
    }
}

/// A probe that takes 10 ms longer, and stalls as people would see them.
fn control_plane_differs(a: &ControlPlane, b: &ControlPlane) -> bool {
    let probe = match (&a.probe, &b.probe) {
        (Probe::Answered(a), Probe::Answered(b)) => a.0.abs_diff(b.0) > 10,
        (a, b) => a != b,
    };
    let group = |(a, b): (&GroupReading, &GroupReading)| {
        a.path != b.path || stall_differs(a.memory, b.memory) || stall_differs(a.cpu, b.cpu)
    };
    probe || a.groups.len() != b.groups.len() || a.groups.iter().zip(&b.groups).any(group)
}

fn disk_differs(a: &DiskReading, b: &DiskReading) -> bool {
    match (a, b) {
        (DiskReading::Known(a), DiskReading::Known(b)) => {
            far(a.free_bytes, b.free_bytes, a.total_bytes / 1000)
                || far(a.free_inodes, b.free_inodes, a.total_inodes / 1000)
                || (a.total_bytes, a.floor_bytes, a.floor_inodes) != (b.total_bytes, b.floor_bytes, b.floor_inodes)
                || (a.reserved_bytes, a.reserved_inodes) != (b.reserved_bytes, b.reserved_inodes)
        }
        (a, b) => a != b,
    }
}
