//! The samplers: the kernel's files below the host's root.

use std::path::{Path, PathBuf};

use procfs::prelude::*;
use procfs::{CpuTime, KernelStats, LocalSystemInfo, parse_pressure_record};
use rustix::io::Errno;
use stoker_core::pressure::{Cpu, Load, Memory, Stall, StallReading};

use super::kernel_file::KernelFile;

/// CPU use is shown as an average over about so many seconds: compilers come and go by the second.
const CPU_SMOOTHED_SECONDS: f64 = 10.0;

/// Reads `/proc` below the host's root.
pub(super) struct Sampler {
    meminfo: KernelFile,
    stat: KernelFile,
    load: KernelFile,
    pressure: [KernelFile; 3],
    cpu: CpuMeter,
}

impl Sampler {
    pub(super) fn new(host_root: &Path) -> Self {
        let proc = host_root.join("proc");
        Self {
            meminfo: KernelFile::new(proc.join("meminfo")),
            stat: KernelFile::new(proc.join("stat")),
            load: KernelFile::new(proc.join("loadavg")),
            pressure: ["memory", "cpu", "io"].map(|of| KernelFile::new(proc.join("pressure").join(of))),
            cpu: CpuMeter::default(),
        }
    }

    /// `/proc/meminfo`; nothing where it cannot be read or does not know `MemAvailable` (before Linux 3.14).
    pub(super) fn memory(&mut self) -> Option<Memory> {
        Some(parse_memory(self.meminfo.read().ok()?)?.memory)
    }

    /// Memory that is not available, and what was swapped out.
    pub(super) fn memory_in_use(&mut self) -> Option<u64> {
        let MemoryInfo { memory, swapped_bytes } = parse_memory(self.meminfo.read().ok()?)?;
        Some(memory.total_bytes.saturating_sub(memory.available_bytes).saturating_add(swapped_bytes))
    }

    /// CPU use since earlier looks; nothing at the first.
    pub(super) fn cpu(&mut self) -> Option<Cpu> {
        let (now, cpus) = self.ticks()?;
        self.cpu.feed(now, cpus, procfs::ticks_per_second())
    }

    /// CPU time since boot, and how many CPUs there are.
    pub(super) fn ticks(&mut self) -> Option<(Ticks, usize)> {
        let stat = KernelStats::from_read(self.stat.read().ok()?.as_bytes(), &LocalSystemInfo).ok()?;
        Some((Ticks::of(&stat.total), stat.cpu_time.len()))
    }

    /// `/proc/loadavg`; nothing where it cannot be read.
    pub(super) fn load(&mut self) -> Option<Load> {
        let mut averages = self.load.read().ok()?.split(' ').map(hundredths);
        Some(Load { avg_1m: averages.next()??, avg_5m: averages.next()??, avg_15m: averages.next()?? })
    }

    /// Stalls for memory, CPU and I/O; with the total of the first, the time in which all work had stalled for memory.
    pub(super) fn stalls(&mut self) -> ([StallReading; 3], Option<u64>) {
        let [memory, cpu, io] = &mut self.pressure;
        let (memory, total) = stall(memory);
        ([memory, stall(cpu).0, stall(io).0], total)
    }
}

/// Two digits after the point, as the kernel writes them.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').filter(|(_, part)| part.len() == 2)?;
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part.parse().ok()?)
}

/// What `/proc/meminfo` says.
struct MemoryInfo {
    memory: Memory,
    swapped_bytes: u64,
}

/// The few lines that are asked for ten times a second, without a table of all the others. proc_meminfo(5).
fn parse_memory(text: &str) -> Option<MemoryInfo> {
    let [mut total, mut available, mut huge, mut pages, mut page_size, mut swap, mut swap_free] = [None; 7];
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let field = match name {
            "MemTotal" => &mut total,
            "MemAvailable" => &mut available,
            "Hugetlb" => &mut huge,
            "HugePages_Total" => &mut pages,
            "Hugepagesize" => &mut page_size,
            "SwapTotal" => &mut swap,
            "SwapFree" => &mut swap_free,
            _ => continue,
        };
        *field = rest.split_whitespace().next()?.parse::<u64>().ok();
    }
    let kib = |value: u64| value.saturating_mul(1024);
    // `Hugetlb` counts those of every size; kernels before 4.19 only tell one size.
    let huge = huge.unwrap_or_else(|| pages.unwrap_or(0).saturating_mul(page_size.unwrap_or(0)));
    let memory = Memory { total_bytes: kib(total?).saturating_sub(kib(huge)), available_bytes: kib(available?) };
    let swapped_bytes = kib(swap.unwrap_or(0).saturating_sub(swap_free.unwrap_or(0)));
    Some(MemoryInfo { memory, swapped_bytes })
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

/// One file of `/proc/pressure`, and the microseconds in which all work had stalled. Kernels before 4.20, and those with
/// `psi=0`, have none; some containers hide them.
fn stall(file: &mut KernelFile) -> (StallReading, Option<u64>) {
    match file.read() {
        Ok(text) => match parse_stall(text) {
            Some((stall, total)) => (StallReading::Known(stall), total),
            None => (StallReading::Failed, None),
        },
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTSUP | Errno::ACCESS | Errno::PERM) => (StallReading::Untold, None),
            _ => (StallReading::Failed, None),
        },
    }
}

/// The same of a control group, read once.
pub(super) fn stall_of(path: PathBuf) -> StallReading {
    stall(&mut KernelFile::new(path)).0
}

/// Line by line: before Linux 5.13 there is no `full` line for CPU.
fn parse_stall(text: &str) -> Option<(Stall, Option<u64>)> {
    let (mut stall, mut total) = (None, None);
    for line in text.lines().filter(|line| line.len() > "some ".len()) {
        let record = parse_pressure_record(line).ok()?;
        let (avg10, avg60) = (basis(record.avg10)?, basis(record.avg60)?);
        let stall = stall.get_or_insert_with(Stall::default);
        if line.starts_with("some") {
            (stall.some_avg10, stall.some_avg60) = (avg10, avg60);
        } else {
            (stall.full_avg10, stall.full_avg60) = (avg10, avg60);
            total = Some(record.total);
        }
    }
    Some((stall?, total))
}

/// A percentage in hundredths of a percent.
fn basis(percent: f32) -> Option<u32> {
    (0.0..=100.5).contains(&percent).then(|| ((percent * 100.0).round() as u32).min(10_000))
}
