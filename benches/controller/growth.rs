//! What it takes to place pods on farms of several sizes.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::Options;
use crate::support::farm::hands::Pace;
use crate::support::farm::measured::quantile;
use crate::support::farm::{Farm, Plan};
use crate::support::wait;

/// Over which the controller at rest is looked at.
const REST: Duration = Duration::from_secs(30);
/// Pods that come one by one, and how long after each other.
const SINGLE: (usize, Duration) = (100, Duration::from_millis(100));
const LIMIT: Duration = Duration::from_secs(1200);
/// CPUs of each node.
const CPUS: u64 = 8;

pub(crate) fn header() {
    let build = if cfg!(debug_assertions) { "a debug build" } else { "a release build" };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("{build}; {cores} cores; Linux {}; the farm is on the same machine", kernel.trim());
}

fn farm(agents: usize, builds: (Duration, Duration), options: &Options, seed: u64) -> Farm {
    let plan = Plan {
        agents,
        cpus: (CPUS, CPUS),
        pace: Pace { builds, late: (0, Duration::ZERO) },
        bind_within: Duration::from_secs(120),
        tls: options.tls,
        arguments: Vec::new(),
        seed,
    };
    Farm::new(&plan)
}

fn ms(all: &mut [Duration], share: f64) -> String {
    if all.is_empty() {
        return "-".to_owned();
    }
    let millis = quantile(all, share).as_secs_f64() * 1000.0;
    if millis < 10_000.0 { format!("{millis:.0} ms") } else { format!("{:.1} s", millis / 1000.0) }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The leader's CPU, its memory, and what was placed, over some work.
struct Span {
    began: Instant,
    cpu: f64,
    rooms: u64,
}

fn begin(farm: &Farm) -> Span {
    let cpu = farm.controllers[farm.leader().unwrap()].cpu().unwrap();
    Span { began: Instant::now(), cpu, rooms: farm.counts.rooms.load(Ordering::Relaxed) }
}

fn end(farm: &Farm, span: &Span) -> (f64, f64, f64) {
    let took = span.began.elapsed().as_secs_f64();
    let cpu = farm.controllers[farm.leader().unwrap()].cpu().unwrap() - span.cpu;
    (took, cpu, (farm.counts.rooms.load(Ordering::Relaxed) - span.rooms) as f64 / took)
}

pub(crate) fn run(agents: usize, options: &Options, seed: u64) {
    let pods = agents * 2;
    // Room for all: four pods fit on a node, and there are two for each.
    let mut farm = farm(agents, (Duration::from_secs(3600), Duration::from_secs(3601)), options, seed);
    let began = Instant::now();
    farm.start_controllers();
    farm.wait_until_heard(LIMIT);
    println!("{agents} agents: all heard after {:.1} s", began.elapsed().as_secs_f64());
    let span = begin(&farm);
    // Not a wait for something: the time over which is measured.
    std::thread::sleep(REST);
    let (_, cpu, rooms) = end(&farm, &span);
    let leader = farm.leader().unwrap();
    let (resident, _) = farm.controllers[leader].memory().unwrap();
    println!(
        "  at rest: {rooms:.0} messages/s, {:.1}% of a core, {:.1} MiB (standby {:.1} MiB)",
        cpu / REST.as_secs_f64() * 100.0,
        mib(resident),
        farm.controllers[1 - leader].memory().map_or(0.0, |(now, _)| mib(now)),
    );

    for _ in 0..SINGLE.0 {
        farm.add_pods(1, 1);
        std::thread::sleep(SINGLE.1);
    }
    placed(&farm, SINGLE.0);
    let mut waited = farm.waited(began);
    println!("  one by one: gate to placed p50 {}, p99 {}", ms(&mut waited, 0.5), ms(&mut waited, 0.99));

    let writes = farm.writes();
    let span = begin(&farm);
    farm.add_pods(pods, 2);
    placed(&farm, SINGLE.0 + pods);
    let (_, cpu, rooms) = end(&farm, &span);
    let (mut waited, took) = (farm.waited(span.began), farm.took(span.began).as_secs_f64());
    let more: Vec<String> = farm
        .writes()
        .into_iter()
        .map(|(what, count)| (count - writes.get(&what).copied().unwrap_or(0), what))
        .map(|(count, what)| format!("{what} {:.2}", count as f64 / pods as f64))
        .collect();
    println!(
        "  {pods} at once, room for all: {:.0} placed/s, gate to placed p50 {}, p99 {}; CPU {:.2} ms a pod, {rooms:.0} messages/s; \
         peak {:.1} MiB; writes a pod: {}",
        pods as f64 / took,
        ms(&mut waited, 0.5),
        ms(&mut waited, 0.99),
        cpu * 1000.0 / pods as f64,
        mib(farm.controllers[leader].memory().unwrap().1),
        more.join(", "),
    );
    drop(farm);
    scarce(agents, pods, options, seed);
}

/// One pod fills a node, and there are twice as many pods as nodes.
fn scarce(agents: usize, pods: usize, options: &Options, seed: u64) {
    let builds = Duration::from_secs(options.builds);
    let mut farm = farm(agents, (builds / 2, builds * 3 / 2), options, seed);
    farm.start_controllers();
    farm.wait_until_heard(LIMIT);
    let writes = farm.writes();
    let span = begin(&farm);
    farm.add_pods(pods, CPUS);
    placed(&farm, pods);
    let (took, cpu, rooms) = end(&farm, &span);
    let mut filled = std::mem::take(&mut *farm.counts.filled.lock().unwrap());
    let mut waited = farm.waited(span.began);
    let (admits, grants) = (&farm.counts.admits, &farm.counts.grants);
    let admits = admits.load(Ordering::Relaxed) as f64 / grants.load(Ordering::Relaxed) as f64;
    let more: usize = farm.writes().values().sum::<usize>() - writes.values().sum::<usize>();
    println!(
        "  {pods} at once, room for half, builds of {} s: {:.0} placed/s, gate to placed p50 {}, p99 {}; free room to the next \
         grant p50 {}, p99 {}; {admits:.2} asked a grant; CPU {:.2} ms a pod, {rooms:.0} messages/s; peak {:.1} MiB; {:.2} \
         writes a pod",
        options.builds,
        pods as f64 / took,
        ms(&mut waited, 0.5),
        ms(&mut waited, 0.99),
        ms(&mut filled, 0.5),
        ms(&mut filled, 0.99),
        cpu * 1000.0 / pods as f64,
        mib(farm.controllers[farm.leader().unwrap()].memory().unwrap().1),
        more as f64 / pods as f64,
    );
    let wrongs = std::mem::take(&mut *farm.wrongs.lock().unwrap());
    assert!(wrongs.is_empty(), "{wrongs:#?}");
}

#[track_caller]
fn placed(farm: &Farm, pods: usize) {
    let done =
        wait::holds_within(LIMIT, || farm.hands.lives().values().filter(|life| life.ungated.is_some()).count() >= pods);
    let count = farm.hands.lives().values().filter(|life| life.ungated.is_some()).count();
    assert!(done, "{count} of {pods} are placed");
}
