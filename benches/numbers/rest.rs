//! What the agent costs while nobody asks anything, and how soon it is back.

use procfs::process::Process;

use crate::numbers::node::Node;
use crate::numbers::report::{By, Line, Report, Samples, Target, Unit};
use crate::numbers::world::World;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

/// Resident memory after the mirrors were filled, CPU, the start after SIGKILL on the same state, and memory after that.
/// Mirrors are not refreshed meanwhile; leases are bound, so that their holders are looked at.
pub(crate) fn rest(world: &World, report: &mut Report) {
    let (mirrors, leases) = (world.options.mirrors(), world.options.rest_leases());
    let repo = TestRepo::generated(20, 20_000, 3);
    let upstream = Upstream::start();
    let mut node = Node::start();
    let urls: Vec<_> = (0..mirrors).map(|n| upstream.host(&format!("mirror/{n}.git"), &repo)).collect();
    for url in &urls {
        node.fill(url);
    }
    node.hold(&urls[0], &repo.commit("main"), leases);
    let state = format!("{mirrors} mirrors, {leases} leases");
    memory(&node, report, "memory, filled".to_owned());

    let window = world.options.window();
    let process = Process::new(node.agent.pid().cast_signed()).unwrap();
    let before = cpu_seconds(&process);
    // Not a wait for something: the time over which is measured.
    std::thread::sleep(window);
    let mut ours = Samples::default();
    ours.push((cpu_seconds(&process) - before) / window.as_secs_f64() * 100.0);
    let what = format!("CPU over {} s", window.as_secs());
    report.line(Line { what, unit: Unit::Percent, ours, peer: None, target: Target::Max(By::Median, 0.5) });

    let mut ours = Samples::default();
    for _ in 0..world.options.rounds() {
        ours.push_time(node.kill_and_start(leases, mirrors));
    }
    let what = format!("start, {state}");
    report.line(Line { what, unit: Unit::Time, ours, peer: None, target: Target::Max(By::Max, 2.0) });
    memory(&node, report, "memory, started".to_owned());
}

fn memory(node: &Node, report: &mut Report, what: String) {
    let process = Process::new(node.agent.pid().cast_signed()).unwrap();
    let kibibytes = process.status().unwrap().vmrss.expect("VmRSS of a process that lives");
    let mut ours = Samples::default();
    ours.push(kibibytes as f64 * 1024.0);
    let most = f64::from(40 << 20);
    report.line(Line { what, unit: Unit::Bytes, ours, peer: None, target: Target::Max(By::Median, most) });
}

/// Of the process and of its children that have ended (proc_pid_stat(5), fields 14 to 17), to a hundredth of a second.
pub(crate) fn cpu_seconds(process: &Process) -> f64 {
    let stat = process.stat().unwrap();
    let children = u64::try_from(stat.cutime + stat.cstime).unwrap();
    (stat.utime + stat.stime + children) as f64 / procfs::ticks_per_second() as f64
}
