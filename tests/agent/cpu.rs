//! What a full ledger leaves to the rest of the node, measured: builds that keep to their size, and builds that do not.
//!
//! A node of `n` CPU reserves half of them; `n` leases of 500m fill the other half. Each lease is held by a group of busy
//! processes, more of them than it has CPU, with the share of CPU that a kubelet gives for 500m. Beside them one process
//! with the share of 250m does a fixed piece of work over and over.
//!
//! - Kept to their size: until the builds have used up their 50 ms of each 100 ms and CPU, the process gets a third of
//!   its CPU (256 of 256 + 512 shares), and then all of it: 60 ms at a third and 40 ms in full, so 1.7 times as long as alone.
//! - Without limits: a third all the time, 3 times as long.
//!
//! All of it lies in one group, which comes before whatever else runs on the machine while something is measured, so that
//! the ratio stands on a busy one.

use std::io::{BufRead as _, BufReader};
use std::time::Instant;

use super::*;
use crate::support::cgroup::{CpuGroup, made};
use crate::support::loopdev::needs_root;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

/// Rounds of work, of which the median counts; the first is not one of them.
const ROUNDS: usize = 15;
/// Beside builds: at most so many times as long as alone.
const RATIO_MAX: f64 = 2.0;
/// Without limits it is at least so much worse than with them; by the arithmetic 1.76 times.
const WORSE_MIN: f64 = 1.15;
/// Busy processes of one lease.
const BUSY: usize = 3;
const SHARE: u64 = 250;
const SIZE: u64 = 500;

/// How long one round takes, in the median.
fn latency(group: &CpuGroup) -> Duration {
    let work = "while :; do i=0; while [ $i -lt 120000 ]; do i=$((i+1)); done; echo; done";
    let script = format!("{}; {work}", group.enter());
    let mut child = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut rounds = Vec::new();
    let mut began = None;
    while rounds.len() < ROUNDS {
        lines.next().unwrap().unwrap();
        let now = Instant::now();
        rounds.extend(began.replace(now).map(|began| now.duration_since(began)));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    rounds.sort();
    rounds[ROUNDS / 2]
}

/// A node as this machine, but for what else runs on it.
async fn agent(cpus: u64) -> Agent {
    let mut agent = prepared(
        &configuration(PLAIN, &[]).replace("node: {", &format!("node: {{reserve: {{cpu: {}m}}, ", cpus * SIZE)),
    );
    let host = agent.root().join("host");
    let stat = std::fs::read_to_string(host.join("proc/stat")).unwrap();
    let here = |line: &&str| {
        let number = line.strip_prefix("cpu").and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        number.is_none_or(|number| number < cpus)
    };
    let stat: Vec<&str> = stat.lines().filter(here).collect();
    std::fs::write(host.join("proc/stat"), stat.join("\n") + "\n").unwrap();
    std::fs::create_dir_all(host.join("sys/fs")).unwrap();
    symlink("/sys/fs/cgroup", host.join("sys/fs/cgroup")).unwrap();
    agent.launch();
    agent.wait_ready();
    agent
}

/// Fills the ledger with leases, each held by busy processes in a group of its own; gives leases and holders.
async fn fill(
    agent: &Agent,
    url: &str,
    all: &CpuGroup,
    cpus: u64,
    limited: bool,
) -> Vec<(v1::Lease, Holder, CpuGroup)> {
    let (mut leases, mut held) = (Vec::new(), Vec::new());
    let word = if limited { "limited" } else { "unlimited" };
    for number in 0..cpus {
        let name = format!("{word}-{number}");
        let wanted = size(SIZE.cast_signed(), 64 * MIB);
        let lease = admit(agent, order(&name, branch(url, "main"), wanted)).await.unwrap().granted();
        leases.push((name, lease));
    }
    for (name, lease) in leases {
        let group = all.inside(&name, SIZE, limited.then_some(SIZE));
        let busy = "while :; do :; done &".repeat(BUSY);
        let holder = Holder::start(agent, &format!("{}; {busy} wait", group.enter()));
        bind(agent, &lease.id, holder.process()).await.unwrap();
        held.push((lease, holder, group));
    }
    // Full by our rules: not even the smallest build starts.
    let waits = admit(agent, order(&format!("{word}-more"), branch(url, "main"), small())).await.unwrap().waiting();
    assert_eq!(codes(&waits.reasons), [v1::reason::Code::CpuHeld], "{:?}", waits.reasons);
    let request = v1::CancelTicketRequest { ticket_id: waits.ticket.unwrap().id };
    agent.admission().await.cancel_ticket(request).await.unwrap();
    held
}

/// What the agent says of a lease that nothing keeps within its CPU.
fn unlimited(status: &v1::Status, lease: &str) -> Vec<v1::Reason> {
    let seen = status.lease_use.iter().filter(|seen| seen.lease_id == lease && !seen.source.is_empty());
    let told = seen.flat_map(|seen| seen.reasons.iter()).filter(|reason| reason.resource() == v1::Resource::Cpu);
    told.cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_ledger_leaves_room_for_the_rest_of_the_node_and_names_who_takes_more() {
    needs_root!();
    let _alone = MEASURING.lock().await;
    let cpus = u64::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    let all = made!(CpuGroup::last_of_all());
    let rest = all.inside("rest", SHARE, None);
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = agent(cpus).await;
    // Its pieces of work are long against the ticks of a scheduler, and short against the test.
    let alone = tokio::task::block_in_place(|| all.before_all_else(|| latency(&rest)));

    let held = fill(&agent, &url, &all, cpus, true).await;
    let seen = |now: &v1::Status| held.iter().all(|(lease, ..)| kept(now, &lease.id).is_some());
    let now = status_until(&agent, "each holder was seen", seen).await;
    for (lease, ..) in &held {
        assert_eq!(kept(&now, &lease.id), Some(SIZE.cast_signed()), "{:?}", now.lease_use);
        assert_eq!(unlimited(&now, &lease.id), []);
    }
    let kept = tokio::task::block_in_place(|| all.before_all_else(|| latency(&rest)));
    for (lease, mut holder, group) in held {
        holder.end();
        drop(group);
        release(&agent, &lease.id).await.unwrap();
    }

    let held = fill(&agent, &url, &all, cpus, false).await;
    let told = |now: &v1::Status| held.iter().all(|(lease, ..)| !unlimited(now, &lease.id).is_empty());
    let now = status_until(&agent, "each of them is named", told).await;
    let freely = tokio::task::block_in_place(|| all.before_all_else(|| latency(&rest)));
    let lease = &held[0].0.id;
    let [why] = unlimited(&now, lease).try_into().unwrap();
    assert_eq!((why.code(), why.available), (v1::reason::Code::LeaseUnlimited, SIZE.cast_signed()));
    assert!(why.message.starts_with("its holder has no limit for CPU, and a size of 0.5 CPU"), "{}", why.message);
    assert_eq!(now.counts.unwrap().unlimited, i32::try_from(cpus).unwrap());
    let screen = agent.stoker().run(["status"]).expect_code(0).stdout;
    assert!(screen.contains(&format!("{lease}: its holder has no limit")), "{screen}");
    let explained = agent.stoker().run(["explain", lease]).expect_code(0).stdout;
    assert!(explained.contains("LEASE_UNLIMITED"), "{explained}");

    let times = |of: Duration| of.as_secs_f64() / alone.as_secs_f64();
    let figures = format!(
        "alone {alone:?}; beside {cpus} builds kept to their size {kept:?}, {:.2} times; without limits {freely:?}, {:.2} times",
        times(kept),
        times(freely)
    );
    eprintln!("{figures}");
    assert!(times(kept) <= RATIO_MAX, "{figures}");
    // How much more is told, and stands in docs/pressure.md: the idle latency of some minutes ago is not this machine's now
    // where others work on it too. That it is more shows beside the latency of just before.
    assert!(freely.as_secs_f64() > kept.as_secs_f64() * WORSE_MIN, "{figures}");
}

/// The CPU that the agent sees a lease's holder kept to.
fn kept(status: &v1::Status, lease: &str) -> Option<i64> {
    status.lease_use.iter().find(|seen| seen.lease_id == lease)?.cpu_millis_kept
}
