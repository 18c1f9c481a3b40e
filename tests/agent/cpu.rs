//! What a full ledger leaves to the rest of the node, measured: builds that keep to their size, and builds that do not.
//!
//! A node of `n` CPU reserves half of them; `n` leases of 500m fill the other half. Each lease is held by a group of busy
//! processes, more of them than it has CPU, with the share of CPU that a kubelet gives for 500m. Beside them one busy
//! process with the share of 250m wants one CPU all the time. What it gets of it, the kernel tells: how long it ran, and
//! how long it waited for a CPU.
//!
//! - Kept to their size: until the builds have used up their 50 ms of each 100 ms and CPU, the process gets a third of
//!   its CPU (256 of 256 + 512 shares), and then all of it: 60 ms at a third and 40 ms in full, so 0.6 of the time.
//! - Without limits: a third, all the time.
//!
//! All of it lies in one group, which comes before whatever else runs on the machine while something is measured, so that
//! the shares stand on a busy one.

use super::*;
use crate::support::cgroup::{CpuGroup, made};
use crate::support::loopdev::needs_root;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

/// How long the process is watched, and from when on: until then it finds its place among the others.
const WATCHED: Duration = Duration::from_secs(4);
const SETTLED: Duration = Duration::from_millis(300);
/// Beside builds that are kept to their size it runs for so much of its time at least.
const KEPT_MIN: f64 = 0.5;
/// Without limits it gets at least so much less than with them; by the arithmetic 1.8 times.
const WORSE_MIN: f64 = 1.15;
/// Busy processes of one lease.
const BUSY: usize = 3;
const SHARE: u64 = 250;
const SIZE: u64 = 500;

/// How much of the CPU that it wants a busy process of this group gets.
fn share(group: &CpuGroup) -> f64 {
    let script = format!("{}; while :; do :; done", group.enter());
    let mut busy = Holder(Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap());
    let pid = busy.0.id();
    wait::until(LIMIT, "it is in its group", || group.has(pid));
    std::thread::sleep(SETTLED);
    let before = ran_and_waited(pid);
    std::thread::sleep(WATCHED);
    let after = ran_and_waited(pid);
    busy.end();
    let (ran, waited) = (after.0 - before.0, after.1 - before.1);
    assert!(ran > 0, "the kernel keeps no figures of its scheduler");
    ran as f64 / (ran + waited) as f64
}

/// How long a process ran, and how long it was ready to and did not, in ns: `/proc/PID/schedstat`, as
/// `Documentation/scheduler/sched-stats.rst` has it.
fn ran_and_waited(pid: u32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    let mut figures = text.split_whitespace().map(|figure| figure.parse().unwrap());
    (figures.next().unwrap(), figures.next().unwrap())
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

    let held = fill(&agent, &url, &all, cpus, true).await;
    let seen = |now: &v1::Status| held.iter().all(|(lease, ..)| kept(now, &lease.id).is_some());
    let now = status_until(&agent, "each holder was seen", seen).await;
    for (lease, ..) in &held {
        assert_eq!(kept(&now, &lease.id), Some(SIZE.cast_signed()), "{:?}", now.lease_use);
        assert_eq!(unlimited(&now, &lease.id), []);
    }
    let kept = tokio::task::block_in_place(|| all.before_all_else(|| share(&rest)));
    for (lease, mut holder, group) in held {
        holder.end();
        drop(group);
        release(&agent, &lease.id).await.unwrap();
    }

    let held = fill(&agent, &url, &all, cpus, false).await;
    let told = |now: &v1::Status| held.iter().all(|(lease, ..)| !unlimited(now, &lease.id).is_empty());
    let now = status_until(&agent, "each of them is named", told).await;
    let freely = tokio::task::block_in_place(|| all.before_all_else(|| share(&rest)));
    let lease = &held[0].0.id;
    let [why] = unlimited(&now, lease).try_into().unwrap();
    assert_eq!((why.code(), why.available), (v1::reason::Code::LeaseUnlimited, SIZE.cast_signed()));
    assert!(why.message.starts_with("its holder has no limit for CPU, and a size of 0.5 CPU"), "{}", why.message);
    assert_eq!(now.counts.unwrap().unlimited, i32::try_from(cpus).unwrap());
    let screen = agent.stoker().run(["status"]).expect_code(0).stdout;
    assert!(screen.contains(&format!("{lease}: its holder has no limit")), "{screen}");
    let explained = agent.stoker().run(["explain", lease]).expect_code(0).stdout;
    assert!(explained.contains("LEASE_UNLIMITED"), "{explained}");

    let figures = format!(
        "beside {cpus} builds a busy process gets {kept:.2} of its CPU where they are kept to their size, {freely:.2} without limits"
    );
    eprintln!("{figures}");
    assert!(kept >= KEPT_MIN, "{figures}");
    assert!(freely * WORSE_MIN < kept, "{figures}");
}

/// The CPU that the agent sees a lease's holder kept to.
fn kept(status: &v1::Status, lease: &str) -> Option<i64> {
    status.lease_use.iter().find(|seen| seen.lease_id == lease)?.cpu_millis_kept
}
