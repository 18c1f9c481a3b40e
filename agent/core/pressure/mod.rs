//! The gate: whether new builds may start, decided from what the samplers read.
//!
//! In come [`Readings`] (memory, stalls, disks; each may have failed), [`Limits`] and the time. Out goes a
//! [`GateMemory`]: the [`Gate`] that everyone sees, and what the next decision needs to know of this one. [`interval`] says
//! how soon memory must be looked at again, [`Filling`] how fast a filesystem fills.

mod control_plane;
mod disk;
mod filling;
mod gate;
mod poll;
mod reading;
mod stall;

pub use control_plane::{ControlPlane, GroupReading, Probe, STALLED_AFTER};
pub use filling::{Filling, SLOPE_LONG, SLOPE_SHORT, Slope};
pub use gate::{Gate, GateMemory, GateState, Limits, OBSERVATION_GAP_MAX, decide, is_soft};
pub use poll::{FILL_BYTES_PER_SECOND, INTERVAL_MAX, INTERVAL_MIN, interval};
pub use reading::{
    Cpu, DiskReading, Filesystem, Load, Memory, PoolReading, Readings, Stall, StallReading, WatchedReading,
};
pub use stall::{STALL_WINDOW, StallMeter};

#[cfg(test)]
mod tests;
