//! The gate's decision.
//!
//! Every signal (memory below its floor, a pool's inodes, a failed sensor, ...) is on or off by itself, and the gate is
//! as bad as the worst that is on. A signal goes on at once. It goes off when its figure was above the recovery
//! threshold, floor plus 10% of the floor, at every look during a whole hold: a figure that wavers around its floor
//! must not open and shut the gate with every look. One that stays between the two for ten holds does not waver: it goes
//! off as well.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use super::{Readings, Stall, StallReading, control_plane, disk};
use crate::quantity::{Resource, Span, Timestamp};
use crate::reason::{Code, Reason};

/// A hold counts only while somebody looks: after a longer time without a look, it begins anew. Neither a clock that
/// jumps nor a machine that slept can open the gate early.
pub const OBSERVATION_GAP_MAX: Span = Span::seconds(10);

/// A figure that was no longer bad at every look of so many holds has recovered, even where it is not above the
/// recovery threshold.
const HOLDS_BETWEEN: i64 = 10;

/// What may start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateState {
    /// The ledger decides.
    #[default]
    Open,
    /// Small builds only.
    Narrow,
    /// Nothing new.
    Shut,
}

impl fmt::Display for GateState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Narrow => "narrow",
            Self::Shut => "shut",
        })
    }
}

/// What everyone sees.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// What may start.
    pub state: GateState,
    /// Why it is not open; empty where it is.
    pub reasons: Vec<Reason>,
    /// When it came into this state.
    pub since: Timestamp,
}

impl Gate {
    /// Only soft signals hold it back. When nothing runs, they do not keep the first build out: what they speak of
    /// cannot get better by waiting for builds to end.
    #[must_use]
    pub fn soft_only(&self) -> bool {
        self.reasons.iter().all(|reason| is_soft(reason.code))
    }
}

/// Whether a code is a soft signal: about how the machine feels, not about a floor that must hold.
#[must_use]
pub const fn is_soft(code: Code) -> bool {
    matches!(code, Code::MemoryPressure | Code::MemoryNarrow | Code::ControlPlaneSlow)
}

/// When the gate shuts and narrows. The floors of filesystems come with their readings.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Available bytes of memory below which nothing new starts.
    pub memory_floor: u64,
    /// Available bytes of memory below which only small builds start; at least the floor.
    pub memory_narrow: u64,
    /// Hundredths of a percent of time in which all work waited for memory (`full avg10`), from which on nothing new
    /// starts.
    pub memory_stall_full: u32,
    /// Where a filesystem at the speed at which it fills reaches its floor sooner than this, nothing new starts; 0: no
    /// forecasts.
    pub disk_forecast: Span,
    /// A control plane that answers later than this is slow.
    pub control_plane_latency: Span,
    /// How long a better state must last before it is entered.
    pub hold: Span,
}

/// The gate, and what the next decision needs to know of this one.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct GateMemory {
    /// What everyone sees.
    pub gate: Gate,
    /// The signals that are on, by code and subject.
    on: BTreeMap<(Code, String), On>,
    /// The last look.
    at: Option<Timestamp>,
}

/// A signal that is on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct On {
    /// It is not bad since then.
    better: Option<Timestamp>,
    /// It is above its recovery threshold since then.
    recovered: Option<Timestamp>,
}

/// How one signal is now, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Goes on, or stays on.
    Bad,
    /// Nobody knows: stays as it was, for as long as nobody does.
    Unknown,
    /// Between the threshold and its recovery: stays as it was, for ten holds.
    Between,
    /// Goes off after a hold.
    Good,
}

/// One signal, as this look shows it.
pub(super) struct Signal {
    pub(super) level: Level,
    pub(super) reason: Reason,
    /// Facts that do not waver (a pool that is not there) need no hold.
    pub(super) held: bool,
}

/// The gate after this look.
#[must_use]
pub fn decide(previous: &GateMemory, readings: &Readings, limits: &Limits, now: Timestamp) -> GateMemory {
    let watched = previous.at.is_some_and(|at| at <= now && now.since(at) <= OBSERVATION_GAP_MAX);
    let mut on = BTreeMap::new();
    let mut reasons = Vec::new();
    for signal in signals(previous, readings, limits) {
        let key = (signal.reason.code, signal.reason.subject.clone());
        let before = previous.on.get(&key).copied();
        let after = match (signal.level, before) {
            (Level::Bad, _) | (Level::Unknown, Some(_)) => Some(On::default()),
            (Level::Unknown | Level::Between | Level::Good, None) => None,
            (Level::Good, Some(_)) if !signal.held => None,
            (level, Some(before)) => {
                let since = |at: Option<Timestamp>| at.filter(|_| watched).unwrap_or(now);
                let (better, recovered) = (since(before.better), since(before.recovered));
                let recovered = (level == Level::Good).then_some(recovered);
                let between = Span(limits.hold.0.saturating_mul(HOLDS_BETWEEN));
                let over = now.since(better) >= between || recovered.is_some_and(|at| now.since(at) >= limits.hold);
                (!over).then_some(On { better: Some(better), recovered })
            }
        };
        if let Some(after) = after {
            reasons.push(match after.recovered {
                Some(at) => recovering(signal.reason, at.plus(limits.hold)),
                None => signal.reason,
            });
            on.insert(key, after);
        }
    }
    let said = said(&reasons);
    reasons.retain(|reason| !said.contains(&(reason.code, reason.subject.clone())));
    let state = reasons.iter().map(|reason| severity(reason.code)).max().unwrap_or_default();
    let since = if state == previous.gate.state && previous.at.is_some() { previous.gate.since } else { now };
    GateMemory { gate: Gate { state, reasons, since }, on, at: Some(now) }
}

/// What a worse reason about the same subject says already: memory below its floor is below `narrow` too, and a floor
/// that was reached needs no forecast.
fn said(reasons: &[Reason]) -> BTreeSet<(Code, String)> {
    let milder = |reason: &Reason| match reason.code {
        Code::MemoryFloor => Some(Code::MemoryNarrow),
        Code::ControlPlaneStalled => Some(Code::ControlPlaneSlow),
        Code::DiskFloor | Code::RootDiskFloor | Code::NodeDiskFloor => Some(Code::DiskForecast),
        Code::DiskInodesFloor | Code::RootDiskInodesFloor | Code::NodeDiskInodesFloor => Some(Code::DiskInodesForecast),
        _ => None,
    };
    reasons.iter().filter_map(|reason| Some((milder(reason)?, reason.subject.clone()))).collect()
}

const fn severity(code: Code) -> GateState {
    match code {
        Code::MemoryNarrow | Code::ControlPlaneSlow => GateState::Narrow,
        _ => GateState::Shut,
    }
}

/// People see at once that the figure is good again and until when the hold lasts.
fn recovering(mut reason: Reason, until: Timestamp) -> Reason {
    reason.message.push_str("; it has recovered and must stay so for the hold");
    reason.expected_until = Some(until);
    reason
}

/// All signals there are, in the order in which people are told.
fn signals(previous: &GateMemory, readings: &Readings, limits: &Limits) -> Vec<Signal> {
    let mut all = Vec::new();
    memory(previous, readings, limits, &mut all);
    stall(readings, limits, &mut all);
    control_plane::control_plane(previous, &readings.control_plane, limits, &mut all);
    disk::root(previous, &readings.root, limits, &mut all);
    for reading in &readings.filesystems {
        disk::watched(previous, reading, limits, &mut all);
    }
    for reading in &readings.pools {
        disk::pool(previous, reading, limits, &mut all);
    }
    let cluster = readings.cluster.iter().cloned();
    all.extend(cluster.map(|reason| Signal { level: Level::Bad, reason, held: false }));
    all
}

fn memory(previous: &GateMemory, readings: &Readings, limits: &Limits, all: &mut Vec<Signal>) {
    const SUBJECT: &str = "memory";
    all.push(sensor(SUBJECT, readings.memory.is_none(), "available memory cannot be read from /proc/meminfo"));
    let Some(memory) = readings.memory else {
        return keep(previous, &[Code::MemoryFloor, Code::MemoryNarrow], SUBJECT, all);
    };
    let narrow = limits.memory_narrow.max(limits.memory_floor);
    for (code, floor, consequence) in [
        (Code::MemoryFloor, limits.memory_floor, "nothing new starts"),
        (Code::MemoryNarrow, narrow, "only small builds start"),
    ] {
        let (total, available) = (memory.total_bytes, memory.available_bytes);
        all.push(amount(code, Resource::Memory, SUBJECT, Amount { total, available, floor }, consequence));
    }
}

fn stall(readings: &Readings, limits: &Limits, all: &mut Vec<Signal>) {
    const SUBJECT: &str = "memory stalls";
    let failed = readings.memory_stall == StallReading::Failed;
    all.push(sensor(SUBJECT, failed, "stalls for memory cannot be read from /proc/pressure/memory"));
    let (limit, now) = (limits.memory_stall_full, readings.memory_stall.known().map(Stall::full_worst));
    let level = match now {
        // Without the figure a stall that was seen is kept while the sensor is broken, and over when it never tells.
        None if failed => Level::Unknown,
        None => Level::Good,
        Some(now) if now >= limit => Level::Bad,
        Some(now) if now > limit.saturating_sub(limit / 10) => Level::Between,
        Some(_) => Level::Good,
    };
    let now = now.unwrap_or(0);
    let message = format!("all work waits for memory {} of the time, the limit is {}", percent(now), percent(limit));
    let mut reason = Reason::new(Code::MemoryPressure, SUBJECT, message);
    reason.wanted = u64::from(limit);
    reason.available = u64::from(now);
    all.push(Signal { level, reason, held: true });
}

/// Of one resource.
pub(super) struct Amount {
    pub(super) total: u64,
    pub(super) available: u64,
    pub(super) floor: u64,
}

pub(super) fn amount(code: Code, resource: Resource, subject: &str, of: Amount, consequence: &str) -> Signal {
    let level = match of.available {
        available if available < of.floor => Level::Bad,
        available if available < recovery(of.floor, of.total) => Level::Between,
        _ => Level::Good,
    };
    let (available, floor) = (resource.show(of.available), resource.show(of.floor));
    let message = format!("{subject}: {available} available, the floor is {floor}; {consequence}");
    Signal { level, reason: Reason::new(code, subject, message).about(resource, of.floor, of.available), held: true }
}

/// Floor plus 10% of the floor. Where the machine has hardly more than the floor, half of what lies above it, so that
/// the gate can open at all.
fn recovery(floor: u64, total: u64) -> u64 {
    floor.saturating_add((floor / 10).min(total.saturating_sub(floor) / 2))
}

/// A sensor that gives no values shuts the gate for what depends on it.
pub(super) fn sensor(subject: &str, failed: bool, message: &str) -> Signal {
    let level = if failed { Level::Bad } else { Level::Good };
    Signal { level, reason: Reason::new(Code::SensorFailed, subject, message), held: true }
}

/// What was on before its sensor failed stays on: the end of the failure is not the end of the shortage.
pub(super) fn keep(previous: &GateMemory, codes: &[Code], subject: &str, all: &mut Vec<Signal>) {
    for &code in codes {
        if previous.on.contains_key(&(code, subject.to_string())) {
            let message = format!("{subject}: the last figure was below the floor, and no newer one can be read");
            all.push(Signal { level: Level::Unknown, reason: Reason::new(code, subject, message), held: true });
        }
    }
}

/// Hundredths of a percent, as people write them.
pub(super) fn percent(basis: u32) -> String {
    format!("{}.{:02}%", basis / 100, basis % 100)
}
