//! The signals of the control plane, where it shares the node.
//!
//! It must stay responsive, whatever the builds do. What is slow narrows the gate, so that what runs can end; what does
//! not answer, or stands still for want of memory, shuts it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::gate::{GateMemory, Level, Signal, keep, percent, sensor};
use super::{Limits, Stall, StallReading};
use crate::quantity::{Resource, Span};
use crate::reason::{Code, Reason};

/// So many times the latency that is slow is no answer any more.
pub const STALLED_AFTER: i64 = 3;
/// The share of time in which some of its work waits for CPU, from which on it is slow: half, in hundredths of a percent.
const CPU_SLOW: u32 = 5000;
const CODES: [Code; 2] = [Code::ControlPlaneSlow, Code::ControlPlaneStalled];
const PROBE: &str = "control plane";

/// How the control plane feels; empty where nobody wants to know.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlPlane {
    /// What its probe said.
    pub probe: Probe,
    /// Its control groups.
    pub groups: Vec<GroupReading>,
}

/// What a probe said.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// It is not asked, or was not yet.
    #[default]
    Unasked,
    /// It is well, and said so after this time.
    Answered(Span),
    /// It is not well, or does not answer: in words.
    Unwell(String),
    /// It cannot be asked: in words.
    Failed(String),
}

/// A control group's stalls.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReading {
    /// Its path.
    pub path: String,
    /// For memory.
    pub memory: StallReading,
    /// For CPU.
    pub cpu: StallReading,
}

pub(super) fn control_plane(previous: &GateMemory, reading: &ControlPlane, limits: &Limits, all: &mut Vec<Signal>) {
    probe(previous, &reading.probe, limits.control_plane_latency, all);
    for reading in &reading.groups {
        group(previous, reading, limits.memory_stall_full, all);
    }
}

fn probe(previous: &GateMemory, reading: &Probe, slow: Span, all: &mut Vec<Signal>) {
    let why = if let Probe::Failed(why) = reading { why.as_str() } else { "" };
    all.push(sensor(PROBE, !why.is_empty(), &format!("{PROBE}: its probe cannot be asked: {why}")));
    let stalled = Span(slow.0.saturating_mul(STALLED_AFTER));
    for (code, limit) in CODES.into_iter().zip([slow, stalled]) {
        let show = |span: Span| Resource::Time.show(span.0.max(0).unsigned_abs());
        let (level, message) = match reading {
            Probe::Unasked => (Level::Good, format!("{PROBE}: its probe was not asked")),
            Probe::Failed(_) => {
                keep(previous, &[code], PROBE, all);
                continue;
            }
            Probe::Unwell(why) => (Level::Bad, format!("{PROBE}: {why}")),
            Probe::Answered(took) => {
                let level = match took {
                    took if *took >= limit => Level::Bad,
                    took if took.0 > limit.0.saturating_sub(limit.0 / 10) => Level::Between,
                    _ => Level::Good,
                };
                (level, format!("{PROBE}: it answers after {}, the limit is {}", show(*took), show(limit)))
            }
        };
        all.push(Signal { level, reason: Reason::new(code, PROBE, message), held: true });
    }
}

fn group(previous: &GateMemory, reading: &GroupReading, stalled: u32, all: &mut Vec<Signal>) {
    let path = reading.path.as_str();
    let failed = reading.memory == StallReading::Failed || reading.cpu == StallReading::Failed;
    all.push(sensor(path, failed, &format!("{path}: the stalls of this control group cannot be read")));
    if failed {
        return keep(previous, &CODES, path, all);
    }
    let memory = reading.memory.known().map_or(0, |stall| stall.full_avg10);
    let cpu = reading.cpu.known().map_or(0, |stall: Stall| stall.some_avg10);
    let slow = of(memory, stalled / 2).min(of(cpu, CPU_SLOW));
    let message = format!(
        "{path}: it waits for memory {} of the time and for CPU {}; {} and {} are too much",
        percent(memory),
        percent(cpu),
        percent(stalled / 2),
        percent(CPU_SLOW)
    );
    all.push(Signal { level: slow, reason: Reason::new(Code::ControlPlaneSlow, path, message), held: true });
    let message =
        format!("{path}: all of it waits for memory {} of the time, {} is too much", percent(memory), percent(stalled));
    let reason = Reason::new(Code::ControlPlaneStalled, path, message);
    all.push(Signal { level: of(memory, stalled), reason, held: true });
}

const fn of(value: u32, limit: u32) -> Level {
    match value {
        value if value >= limit => Level::Bad,
        value if value > limit.saturating_sub(limit / 10) => Level::Between,
        _ => Level::Good,
    }
}
