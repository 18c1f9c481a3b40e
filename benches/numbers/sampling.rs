//! What it costs to watch this machine.

use std::sync::Arc;
use std::time::Duration;

use stoker::config::{Config, NodeIdentity};
use stoker::node::Pools;
use stoker::pressure::Pressure;
use stoker_core::quantity::Amounts;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::numbers::report::{By, Line, Report, Samples, Target, Unit};
use crate::numbers::world::World;

/// The room alone, in this process, which does nothing else meanwhile: at rest, and with memory so near its floor that it
/// is looked at ten times a second.
pub(crate) fn sampling(world: &World, report: &mut Report) {
    let memory = procfs_available();
    for (what, floor, target) in [
        ("at rest", 1 << 20, Target::Max(By::Median, 0.2)),
        ("memory near its floor", memory.saturating_sub(256 << 20), Target::Told("0.2%, at rest")),
    ] {
        let ours = watched(floor, world.options.window(), world.options.rounds());
        let what = format!("sampling, {what}");
        report.line(Line { what, unit: Unit::Percent, ours, peer: None, target });
    }
}

fn procfs_available() -> u64 {
    use procfs::FromRead as _;
    procfs::Meminfo::from_file("/proc/meminfo").unwrap().mem_available.unwrap()
}

fn watched(floor: u64, window: Duration, rounds: usize) -> Samples {
    let place = tempfile::tempdir().unwrap();
    let text = format!(
        "apiVersion: stoker.build/v1\nkind: AgentConfig\n\
         pools: [{{name: data, path: {}, mount: optional}}]\n\
         pressure: {{memoryFloor: {floor}B, memoryNarrow: {floor}B}}\n",
        place.path().display()
    );
    let (_, config): (_, Config) = stoker::config::read(&text, "bench", &NodeIdentity::default()).unwrap();
    let pools = Pools::open(&config.pools);
    let configured = watch::Sender::new(Arc::new(config));
    let (_reserved, reserved) = watch::channel(Amounts::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cancel = CancellationToken::new();
    let cluster = watch::Sender::default().subscribe();
    let pressure =
        runtime.block_on(async { Pressure::start(&configured.subscribe(), pools, reserved, cluster, &cancel) });
    let mut samples = Samples::default();
    for _ in 0..rounds {
        let before = cpu_nanos();
        // Not a wait for something: the time over which is measured.
        std::thread::sleep(window);
        samples.push((cpu_nanos() - before) as f64 / window.as_nanos() as f64 * 100.0);
    }
    runtime.block_on(pressure.shutdown());
    samples
}

/// CPU time of all threads that this process has: the first field of `schedstat`, which is finer than the clock ticks of
/// `stat` (the kernel's `Documentation/scheduler/sched-stats.rst`).
fn cpu_nanos() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let of = |path: std::path::PathBuf| std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
    threads.filter_map(|thread| of(thread.path()).split(' ').next()?.parse::<u64>().ok()).sum()
}
