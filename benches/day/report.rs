//! What is told of the days, and what is promised of ours.

use std::fmt::Write as _;

use crate::day::machine::{Machine, Run, run};
use crate::day::stoker::Stoker;
use crate::day::workload::{GIB, TENANTS, Workload};

/// Work done, beside the best safe number of slots.
const GAIN_MIN: f64 = 1.2;
/// A tenant waits at most so many times as long as it would with its share of the node for itself.
const FAIR_MAX: f64 = 2.0;
/// A wait below this is no wait: seconds.
const NO_WAIT: u32 = 60;

/// Small, medium, large, huge: GiB at the peak.
const CLASSES: [(&str, u64); 4] = [("to 2 GiB", 2), ("to 8 GiB", 8), ("to 16 GiB", 16), ("more", u64::MAX / GIB)];

pub(crate) struct Row<'a> {
    pub(crate) name: String,
    pub(crate) run: &'a Run,
}

/// One line for each kind of admission, in Markdown.
pub(crate) fn table(rows: &[Row<'_>], machine: &Machine) -> String {
    let mut text = String::from(
        "| admission | killed by the node | at own limit | lost | in the memory reserve | in the CPU reserve | CPU of the budget put to use | p95 wait: to 2 GiB | to 8 GiB | to 16 GiB | more |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for Row { name, run } in rows {
        let _ = write!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {:.0}% |",
            run.killed_by_node,
            run.killed_at_limit,
            run.lost,
            seconds(run.invaded_seconds),
            seconds(run.crowded_seconds),
            used(run, machine) * 100.0,
        );
        let mut least = 0;
        for (_, gib) in CLASSES {
            let most = gib.saturating_mul(GIB);
            let class = |peak: u64| peak > least && peak <= most;
            let waits = run.waits.iter().filter(|(_, peak, _)| class(*peak)).map(|(_, _, wait)| *wait).collect();
            let _ = write!(text, " {} |", seconds(p95(waits)));
            least = most;
        }
        text.push('\n');
    }
    text
}

/// Waits of the tenants, beside what they would be with a share of the node each.
pub(crate) fn tenants(run: &Run, fair: &[u32]) -> String {
    let mut text =
        String::from("| tenant | builds | p50 wait | p95 wait | p95 with its share alone |\n|---|---|---|---|---|\n");
    for (tenant, (name, fair)) in TENANTS.iter().zip(fair).enumerate() {
        let mut waits = waits_of(run, tenant);
        waits.sort_unstable();
        let median = waits.get(waits.len() / 2).copied().unwrap_or(0);
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} |",
            waits.len(),
            seconds(median),
            seconds(p95(waits)),
            seconds(*fair),
        );
    }
    text
}

/// The 95th percentile of each tenant's waits, were its share of the node its own.
pub(crate) fn fair_waits(machine: &Machine, workload: &Workload) -> Vec<u32> {
    let share = machine.share(TENANTS.len() as u64);
    let alone = |tenant| {
        let mut workload = workload.only(tenant);
        // What is larger than the share has all of it, and takes as much longer.
        for job in &mut workload.jobs {
            job.peak_bytes = job.peak_bytes.min(share.budget_bytes() * 3 / 4);
        }
        let run = run(&share, &workload, &mut Stoker::new(&share));
        p95(waits_of(&run, tenant))
    };
    (0..TENANTS.len()).map(alone).collect()
}

/// What is promised and not kept.
pub(crate) fn promises(ours: &Run, slots: &Run, fair: &[u32]) -> Vec<String> {
    let mut broken = Vec::new();
    let avoidable = ours.killed_by_node + ours.killed_though_known;
    if avoidable > 0 {
        broken.push(format!("{avoidable} builds were killed that need not have been"));
    }
    if ours.invaded_seconds > 0 {
        broken.push(format!("builds were in the reserve for {}", seconds(ours.invaded_seconds)));
    }
    if ours.useful_millis < slots.useful_millis * GAIN_MIN {
        let gain = ours.useful_millis / slots.useful_millis;
        broken.push(format!("{gain:.2} times the work of the slots, {GAIN_MIN} are promised"));
    }
    for (tenant, fair) in fair.iter().enumerate() {
        let wait = p95(waits_of(ours, tenant));
        let most = f64::from((*fair).max(NO_WAIT)) * FAIR_MAX;
        if f64::from(wait) > most {
            let (wait, most) = (seconds(wait), seconds(most as u32));
            broken.push(format!("{} waits {wait} at p95, its share allows {most}", TENANTS[tenant]));
        }
    }
    broken
}

fn waits_of(run: &Run, tenant: usize) -> Vec<u32> {
    run.waits.iter().filter(|(of, _, _)| *of == tenant).map(|(_, _, wait)| *wait).collect()
}

fn p95(mut waits: Vec<u32>) -> u32 {
    waits.sort_unstable();
    waits.get((waits.len() * 95 / 100).min(waits.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// The share of the builds' CPU that went into builds that finished, over the day.
fn used(run: &Run, machine: &Machine) -> f64 {
    let day = f64::from(crate::day::machine::POINT_SECONDS) * run.memory.len() as f64;
    run.useful_millis / (machine.budget_cpu_millis() as f64 * day.min(86_400.0))
}

/// `12 s`, `3 min`, `1 h 5 min`.
pub(crate) fn seconds(seconds: u32) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}
