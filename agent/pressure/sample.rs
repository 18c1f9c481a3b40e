//! The samplers: the kernel's files below the host's root.

use std::fs::File;
use std::path::{Path, PathBuf};

use procfs::prelude::*;
use procfs::{CpuTime, KernelStats, LocalSystemInfo, Meminfo, parse_pressure_record};
use rustix::io::Errno;
use stoker_core::pressure::{Cpu, Memory, Stall, StallReading};

use crate::node::facts::usable_memory;

/// CPU use is shown as an average over about so many seconds: compilers come and go by the second.
const CPU_SMOOTHED_SECONDS: f64 = 10.0;

/// Reads `/proc` below the host's root.
pub(super) struct Sampler {
    proc: PathBuf,
    cpu: CpuMeter,
}

impl Sampler {
    pub(super) fn new(host_root: &Path) -> Self {
        Self { proc: host_root.join("proc"), cpu: CpuMeter::default() }
    }

    /// `/proc/meminfo`; nothing where it cannot be read or does not know `MemAvailable` (before Linux 3.14).
    pub(super) fn memory(&self) -> Option<Memory> {
        let meminfo = Meminfo::from_read(File::open(self.proc.join("meminfo")).ok()?).ok()?;
        Some(Memory { total_bytes: usable_memory(&meminfo), available_bytes: meminfo.mem_available? })
    }

    /// CPU use since earlier looks; nothing at the first.
    pub(super) fn cpu(&mut self) -> Option<Cpu> {
        let stat = KernelStats::from_read(File::open(self.proc.join("stat")).ok()?, &LocalSystemInfo).ok()?;
        self.cpu.feed(Ticks::of(&stat.total), stat.cpu_time.len(), procfs::ticks_per_second())
    }

    /// Stalls for memory, CPU and I/O.
    pub(super) fn stalls(&self) -> [StallReading; 3] {
        ["memory", "cpu", "io"].map(|resource| stall(&self.proc.join("pressure").join(resource)))
    }
}

/// Time that all CPUs together spent, in ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticks {
    pub(super) busy: u64,
    pub(super) total: u64,
}

impl Ticks {
    /// proc_stat(5). Waiting for I/O is idle time; the time of guests is in `user` already.
    fn of(time: &CpuTime) -> Self {
        let optional = [time.irq, time.softirq, time.steal].into_iter().flatten();
        let busy = [time.user, time.nice, time.system].into_iter().chain(optional).fold(0, u64::saturating_add);
        let idle = time.idle.saturating_add(time.iowait.unwrap_or(0));
        Self { busy, total: busy.saturating_add(idle) }
    }
}

/// A moving average of CPU use.
#[derive(Debug, Default)]
pub(super) struct CpuMeter {
    last: Option<Ticks>,
    share: Option<f64>,
}

impl CpuMeter {
    /// Takes the next sample. How much time went by is in the ticks themselves.
    pub(super) fn feed(&mut self, now: Ticks, cpus: usize, ticks_per_second: u64) -> Option<Cpu> {
        let before = self.last.replace(now)?;
        let total = now.total.saturating_sub(before.total);
        if total == 0 {
            return self.shown(cpus);
        }
        let share = (now.busy.saturating_sub(before.busy) as f64 / total as f64).min(1.0);
        let seconds = total as f64 / (cpus.max(1) as f64 * ticks_per_second.max(1) as f64);
        let weight = 1.0 - (-seconds / CPU_SMOOTHED_SECONDS).exp();
        self.share = Some(self.share.map_or(share, |average| average + weight * (share - average)));
        self.shown(cpus)
    }

    fn shown(&self, cpus: usize) -> Option<Cpu> {
        let total_millis = u64::try_from(cpus).ok()?.saturating_mul(1000);
        Some(Cpu { total_millis, used_millis: (self.share? * total_millis as f64).round() as u64 })
    }
}

/// One file of `/proc/pressure`. Kernels before 4.20, and those with `psi=0`, have none; some containers hide them.
fn stall(path: &Path) -> StallReading {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            return match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTSUP | Errno::ACCESS | Errno::PERM) => StallReading::Untold,
                _ => StallReading::Failed,
            };
        }
    };
    parse_stall(&text).map_or(StallReading::Failed, StallReading::Known)
}

/// Line by line: before Linux 5.13 there is no `full` line for CPU.
fn parse_stall(text: &str) -> Option<Stall> {
    let mut stall = None;
    for line in text.lines().filter(|line| line.len() > "some ".len()) {
        let record = parse_pressure_record(line).ok()?;
        let (avg10, avg60) = (basis(record.avg10)?, basis(record.avg60)?);
        let stall = stall.get_or_insert_with(Stall::default);
        if line.starts_with("some") {
            (stall.some_avg10, stall.some_avg60) = (avg10, avg60);
        } else {
            (stall.full_avg10, stall.full_avg60) = (avg10, avg60);
        }
    }
    stall
}

/// A percentage in hundredths of a percent.
fn basis(percent: f32) -> Option<u32> {
    (0.0..=100.5).contains(&percent).then(|| ((percent * 100.0).round() as u32).min(10_000))
}
