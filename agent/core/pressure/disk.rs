//! The signals of filesystems: below a floor, soon to be there, or not to be read.

use alloc::format;
use alloc::vec::Vec;

use super::filling::gone_in;
use super::gate::{Amount, GateMemory, Level, Signal, amount, keep, sensor};
use super::{DiskReading, Filesystem, Limits, PoolReading, WatchedReading};
use crate::quantity::{Resource, Span};
use crate::reason::{Code, Reason};

const FORECASTS: [Code; 2] = [Code::DiskForecast, Code::DiskInodesForecast];

pub(super) fn root(previous: &GateMemory, reading: &DiskReading, limits: &Limits, all: &mut Vec<Signal>) {
    const CODES: [Code; 2] = [Code::RootDiskFloor, Code::RootDiskInodesFloor];
    machine(previous, CODES, "root filesystem", reading, limits, all);
}

pub(super) fn watched(previous: &GateMemory, reading: &WatchedReading, limits: &Limits, all: &mut Vec<Signal>) {
    const CODES: [Code; 2] = [Code::NodeDiskFloor, Code::NodeDiskInodesFloor];
    machine(previous, CODES, &reading.path, &reading.disk, limits, all);
}

/// One that the machine cannot be without.
fn machine(
    previous: &GateMemory,
    codes: [Code; 2],
    subject: &str,
    reading: &DiskReading,
    limits: &Limits,
    all: &mut Vec<Signal>,
) {
    let failed = !matches!(reading, DiskReading::Known(_));
    all.push(sensor(subject, failed, &format!("{subject} does not tell how full it is")));
    match reading {
        DiskReading::Known(filesystem) => disk(codes, subject, filesystem, limits, all),
        DiskReading::NotReady(_) | DiskReading::Failed => {
            keep(previous, &codes, subject, all);
            keep(previous, &FORECASTS, subject, all);
        }
    }
}

pub(super) fn pool(previous: &GateMemory, reading: &PoolReading, limits: &Limits, all: &mut Vec<Signal>) {
    const CODES: [Code; 2] = [Code::DiskFloor, Code::DiskInodesFloor];
    let name = reading.name.as_str();
    let failed = reading.needed && reading.disk == DiskReading::Failed;
    all.push(sensor(name, failed, "the pool does not tell how full it is"));
    let (level, message) = match &reading.disk {
        DiskReading::NotReady(message) if reading.needed => (Level::Bad, message.as_str()),
        _ => (Level::Good, ""),
    };
    all.push(Signal { level, reason: Reason::new(Code::PoolNotReady, name, message), held: false });
    match &reading.disk {
        DiskReading::Known(filesystem) => disk(CODES, name, filesystem, limits, all),
        DiskReading::Failed if reading.needed => {
            keep(previous, &CODES, name, all);
            keep(previous, &FORECASTS, name, all);
        }
        // Without the pool its floors mean nothing; when it is back it is a new look at, maybe, another disk.
        DiskReading::Failed | DiskReading::NotReady(_) => {}
    }
}

fn disk([bytes, inodes]: [Code; 2], subject: &str, disk: &Filesystem, limits: &Limits, all: &mut Vec<Signal>) {
    const CONSEQUENCE: &str = "nothing new starts";
    let [bytes_forecast, inodes_forecast] = FORECASTS;
    let available = disk.free_bytes.saturating_sub(disk.reserved_bytes);
    let amounts = Amount { total: disk.total_bytes, available, floor: disk.floor_bytes };
    all.push(amount(bytes, Resource::DiskBytes, subject, amounts, CONSEQUENCE));
    let room = disk.free_bytes.saturating_sub(disk.floor_bytes);
    let fall = Fall { room, per_minute: disk.slope.bytes_per_minute, within: limits.disk_forecast };
    all.push(forecast(bytes_forecast, Resource::DiskBytes, subject, fall));
    if disk.total_inodes > 0 {
        let available = disk.free_inodes.saturating_sub(disk.reserved_inodes);
        let amounts = Amount { total: disk.total_inodes, available, floor: disk.floor_inodes };
        all.push(amount(inodes, Resource::DiskInodes, subject, amounts, CONSEQUENCE));
        let room = disk.free_inodes.saturating_sub(disk.floor_inodes);
        let fall = Fall { room, per_minute: disk.slope.inodes_per_minute, within: limits.disk_forecast };
        all.push(forecast(inodes_forecast, Resource::DiskInodes, subject, fall));
    }
}

/// How a filesystem nears its floor. What leases have reserved and not written is not taken off the room: whoever
/// writes, the floor is reached by what is written.
struct Fall {
    room: u64,
    per_minute: u64,
    within: Span,
}

/// Goes on where the floor would be reached within the time, and off half as long again from it.
fn forecast(code: Code, resource: Resource, subject: &str, fall: Fall) -> Signal {
    let reached = gone_in(fall.room, fall.per_minute).unwrap_or(Span(i64::MAX));
    let within = fall.within;
    let level = match reached {
        _ if within == Span(0) => Level::Good,
        reached if reached < within => Level::Bad,
        reached if reached.0 < within.0.saturating_add(within.0 / 2) => Level::Between,
        _ => Level::Good,
    };
    let time = |span: Span| Resource::Time.show(span.0.max(0).unsigned_abs());
    let room = resource.show(fall.room);
    let speed = resource.show(fall.per_minute);
    let message = match fall.per_minute {
        0 => format!("{subject}: it fills no more, {room} above its floor; nothing new starts"),
        _ => format!(
            "{subject}: {room} above its floor, which it reaches in {} at {speed} a minute; nothing new starts where \
             that is less than {}",
            time(reached),
            time(within)
        ),
    };
    // What would be written within that time, and what there is for it.
    let wanted = u128::from(fall.per_minute).saturating_mul(u128::from(within.0.max(0).unsigned_abs())) / 60_000;
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    Signal { level, reason: Reason::new(code, subject, message).about(resource, wanted, fall.room), held: true }
}
