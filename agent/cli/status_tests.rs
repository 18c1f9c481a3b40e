//! The screen of a healthy node and of one in trouble, from messages made by hand.

use super::super::table::tests::{VIEW, ago};
use super::*;

const GIB: i64 = 1 << 30;

fn size(cpu: i64, memory: i64, disk: i64) -> Option<v1::Size> {
    Some(v1::Size {
        cpu_millis: Some(cpu * 1000),
        memory_bytes: Some(memory * GIB),
        disk_bytes: Some(disk * GIB),
        disk_inodes: Some(1_000_000),
        time_budget: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
    })
}

pub(crate) fn lease(id: &str, cpu: i64, memory: i64, bound: Option<i64>) -> v1::Lease {
    let mut lease = v1::Lease {
        id: id.to_owned(),
        sizing: Some(v1::Sizing { size: size(cpu, memory, 20), ..Default::default() }),
        source: Some(v1::Resolved {
            commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            clone_url: "https://github.com/projectbluefin/dakota".to_owned(),
            clone_ref: "refs/heads/main".to_owned(),
            subject: "Use the newer base".to_owned(),
            ..Default::default()
        }),
        scope: Some(v1::Scope { tenant: "bluefin".to_owned(), project: "dakota".to_owned(), ..Default::default() }),
        created_at: ago(bound.unwrap_or(40) + 20),
        bind_by: ago(-260),
        bound_at: bound.and_then(ago),
        ends_at: bound.and_then(|seconds| ago(seconds - 3600)),
        ..Default::default()
    };
    lease.set_state(if bound.is_some() { v1::LeaseState::Bound } else { v1::LeaseState::Reserved });
    lease
}

pub(crate) fn repository(name: &str, state: v1::RepositoryState) -> v1::Repository {
    let mut repository = v1::Repository {
        url: format!("https://github.com/projectbluefin/{name}"),
        declared: true,
        trust: "public".to_owned(),
        snapshot: if state == v1::RepositoryState::Ready { "0b5e-1".to_owned() } else { String::new() },
        head: "main".to_owned(),
        disk_bytes: 734 << 20,
        objects: 412_345,
        refs: 1_024,
        confirmed_at: ago(130),
        last_fetch_at: ago(4_000),
        next_refresh_at: ago(-170),
        snapshots: 2,
        hits: 52,
        misses: 3,
        stale: 1,
        packs: 2,
        shares_store_with: 2,
        snapshots_in_use: 1,
        holders: 3,
        last_used_at: ago(45),
        last_upkeep: Some(v1::Upkeep {
            at: ago(7_300),
            what: "full repack (due), commit-graph".to_owned(),
            took: Some(prost_types::Duration { seconds: 12, nanos: 400_000_000 }),
            packs_before: 9,
            packs_after: 1,
        }),
        ..Default::default()
    };
    repository.set_state(state);
    repository
}

fn stall(hundredths: i32) -> Option<v1::Stall> {
    Some(v1::Stall { known: true, some_avg10: hundredths, ..Default::default() })
}

fn pool(name: &str, state: &str, message: &str) -> v1::Pool {
    let filesystem = v1::Filesystem {
        total_bytes: 2048 * GIB,
        free_bytes: 812 * GIB,
        total_inodes: 100_000_000,
        free_inodes: 97_000_000,
        floor_bytes: 205 * GIB,
        floor_inodes: 5_000_000,
        r#type: "xfs".to_owned(),
        ..Default::default()
    };
    v1::Pool {
        name: name.to_owned(),
        path: format!("/var/mnt/ghost-{name}"),
        state: state.to_owned(),
        message: message.to_owned(),
        filesystem: (state == "Ready").then_some(filesystem),
        directories: Vec::new(),
        since: ago(5_000),
    }
}

pub(crate) fn healthy() -> Glance {
    let mut data = pool("data", "Ready", "");
    data.directories = vec![v1::Directory {
        path: "bst-cache".to_owned(),
        state: "Prepared".to_owned(),
        message: String::new(),
        retention: "cache".to_owned(),
        ..Default::default()
    }];
    let mut status = v1::Status {
        node: Some(v1::Node {
            name: "ghost".to_owned(),
            agent_version: "0.1.0".to_owned(),
            observed_at: ago(0),
            ..Default::default()
        }),
        memory: Some(v1::Memory {
            total_bytes: 62 * GIB + GIB / 2,
            available_bytes: 21 * GIB,
            stall: stall(0),
            ..Default::default()
        }),
        cpu: Some(v1::Cpu { total_millis: 32_000, used_millis: 21_480, stall: stall(420), load: None }),
        io: Some(v1::Io { stall: stall(115) }),
        pools: vec![data],
        ledger: Some(v1::Ledger {
            capacity: size(32, 62, 1800),
            reserve: size(4, 8, 0),
            budget: size(28, 54, 1800),
            others: size(1, 3, 0),
            leased: size(20, 40, 60),
            free: size(7, 11, 1740),
        }),
        counts: Some(v1::Counts { leases: 2, workspaces: 2, repositories: 1, ..Default::default() }),
        host: Some(v1::Host {
            kernel: "6.12.5".to_owned(),
            system: "Debian 13".to_owned(),
            architecture: "amd64".to_owned(),
            git_version: "2.47.3".to_owned(),
            ..Default::default()
        }),
        started_at: ago(280_000),
        gate: Some(v1::Gate { since: ago(7_500), ..Default::default() }),
        ..Default::default()
    };
    status.set_mode(v1::Mode::Accepting);
    if let Some(gate) = status.gate.as_mut() {
        gate.set_state(v1::GateState::Open);
    }
    Glance {
        status,
        leases: vec![lease("01k2f9r7c4m8x0aq", 4, 8, None), lease("01k2f9q1h6t3b5dn", 16, 32, Some(3_420))],
        tickets: Vec::new(),
        repositories: vec![repository("dakota", v1::RepositoryState::Ready)],
    }
}

pub(crate) fn reason(code: v1::reason::Code, subject: &str, message: &str) -> v1::Reason {
    v1::Reason { code: code.into(), subject: subject.to_owned(), message: message.to_owned(), ..Default::default() }
}

pub(crate) fn troubled() -> Glance {
    use v1::reason::Code;
    let mut glance = healthy();
    let status = &mut glance.status;
    if let Some(gate) = status.gate.as_mut() {
        gate.set_state(v1::GateState::Shut);
        gate.since = ago(190);
        gate.reasons = vec![reason(Code::MemoryFloor, "", "3.1 GiB of memory are available, the floor is 4 GiB")];
    }
    status.mode_note = "new disk".to_owned();
    status.mode_until = ago(-5_400);
    status.set_mode(v1::Mode::Drain);
    status.pools.push(pool("scratch", "NotMounted", "/var/mnt/ghost-scratch is no mount point"));
    let message = "pool scratch is NotMounted: /var/mnt/ghost-scratch is no mount point";
    let url = "https://github.com/projectbluefin/finpilot";
    status.alarms = vec![
        reason(Code::PoolNotReady, "scratch", message),
        reason(Code::RepositoryEmpty, url, &format!("declared mirror {url} is empty: not filled yet")),
    ];
    status.counts = Some(v1::Counts {
        leases: 2,
        tickets: 1,
        workspaces: 2,
        repositories: 3,
        repositories_empty: 1,
        fetching: 1,
        ..Default::default()
    });
    glance.tickets = vec![v1::Ticket {
        id: "01k2f9s5v2w8y6zr".to_owned(),
        position: 1,
        commit: "89abcdef0123456789abcdef0123456789abcdef".to_owned(),
        scope: Some(v1::Scope { tenant: "red\x1b[31m".to_owned(), ..Default::default() }),
        sizing: Some(v1::Sizing { size: size(8, 16, 20), ..Default::default() }),
        created_at: ago(75),
        expires_at: ago(-45),
        ..Default::default()
    }];
    let mut filling = repository("bluefin", v1::RepositoryState::Filling);
    let progress = v1::Progress {
        phase: "receiving".to_owned(),
        done: 45_210,
        total: 98_000,
        bytes: 120 << 20,
        ..v1::Progress::default()
    };
    filling.progress = Some(progress);
    filling.declared = false;
    let mut empty = repository("finpilot", v1::RepositoryState::Empty);
    empty.reasons = vec![reason(Code::UpstreamUnreachable, url, "github.com does not answer: connection timed out")];
    empty.confirmed_at = None;
    glance.repositories.extend([filling, empty]);
    glance
}

#[test]
fn a_healthy_node_reads_at_a_glance() {
    let text = render(&healthy(), &VIEW);
    assert!(text.lines().all(|line| line.trim_end() == line), "{text}");
    insta::assert_snapshot!(text, @r"
    ghost takes builds
    gate open for 2 h 5 min · mode accepting
    stoker 0.1.0 · up 3 d 5 h · Debian 13 amd64 · git 2.47.3

    ROOM    █ leased  ▒ others  · free     FREE  LEASED  OTHERS   BUDGET  RESERVE
    memory  ██████████████████▒·····     11 GiB  40 GiB   3 GiB   54 GiB    8 GiB
    CPU     █████████████████▒······      7 CPU  20 CPU   1 CPU   28 CPU    4 CPU
    disk    █·······················    1.7 TiB  60 GiB     0 B  1.8 TiB      0 B
    now      memory 21 GiB available of 62.5 GiB · 21.5 of 32 CPU busy
    stalled  memory 0 % · I/O 1.2 % · CPU 4.2 %

    LEASES (2)        STATE     BUILDS                FOR                CPU  MEMORY  SINCE   ENDS
    01k2f9q1h6t3b5dn  bound     dakota main 01234567  bluefin/dakota  16 CPU  32 GiB  57 min  in 3 min
    01k2f9r7c4m8x0aq  reserved  dakota main 01234567  bluefin/dakota   4 CPU   8 GiB  1 min   in 4 min

    POOL  STATE     PATH                 TYPE     FREE     OF    FLOOR  INODES FREE
    data  Ready     /var/mnt/ghost-data  xfs   812 GiB  2 TiB  205 GiB         97 %
          Prepared  └ bst-cache (cache)

    1 repository · 2 workspaces
    ");
}

#[test]
fn trouble_comes_first_with_what_to_do() {
    let text = render(&troubled(), &VIEW);
    assert!(text.lines().all(|line| line.trim_end() == line), "{text}");
    insta::assert_snapshot!(text, @r"
    ghost takes no builds: it is being drained
    gate shut for 3 min · mode drain, ends in 1 h 30 min “new disk”
    stoker 0.1.0 · up 3 d 5 h · Debian 13 amd64 · git 2.47.3
      !  3.1 GiB of memory are available, the floor is 4 GiB [MEMORY_FLOOR]

    2 ALARMS
      ✗  pool scratch is NotMounted: /var/mnt/ghost-scratch is no mount point [POOL_NOT_READY]
         → mount it, or mend what is named; the agent looks again every few seconds, no restart is
         needed
      ✗  declared mirror https://github.com/projectbluefin/finpilot is empty: not filled yet
         [REPOSITORY_EMPTY]
         → `stoker repo refresh https://github.com/projectbluefin/finpilot` shows where it stops

    ROOM    █ leased  ▒ others  · free     FREE  LEASED  OTHERS   BUDGET  RESERVE
    memory  ██████████████████▒·····     11 GiB  40 GiB   3 GiB   54 GiB    8 GiB
    CPU     █████████████████▒······      7 CPU  20 CPU   1 CPU   28 CPU    4 CPU
    disk    █·······················    1.7 TiB  60 GiB     0 B  1.8 TiB      0 B
    now      memory 21 GiB available of 62.5 GiB · 21.5 of 32 CPU busy
    stalled  memory 0 % · I/O 1.2 % · CPU 4.2 %

    LEASES (2)        STATE     BUILDS                FOR                CPU  MEMORY  SINCE   ENDS
    01k2f9q1h6t3b5dn  bound     dakota main 01234567  bluefin/dakota  16 CPU  32 GiB  57 min  in 3 min
    01k2f9r7c4m8x0aq  reserved  dakota main 01234567  bluefin/dakota   4 CPU   8 GiB  1 min   in 4 min

    QUEUE (1)         PLACE  COMMIT        FOR         CPU  MEMORY  WAITS  LIVES
    01k2f9s5v2w8y6zr      1  89abcdef0123  red�[31m  8 CPU  16 GiB  1 min  in 45 s

    POOL     STATE       PATH                                 TYPE     FREE     OF    FLOOR  INODES FREE
    data     Ready       /var/mnt/ghost-data                  xfs   812 GiB  2 TiB  205 GiB         97 %
             Prepared    └ bst-cache (cache)
    scratch  NotMounted  /var/mnt/ghost-scratch
                         /var/mnt/ghost-scratch is no mount
                         point

    3 repositories · 1 empty · 1 fetching · 2 workspaces
      filling  github.com/projectbluefin/bluefin  receiving 45,210/98,000, 120 MiB
    ");
}

#[test]
fn an_agent_that_knows_little_still_has_a_screen() {
    insta::assert_snapshot!(render(&Glance::default(), &VIEW), @r"
    this node has not been measured yet
    gate unknown · mode unknown
    stoker

    no leases

    0 repositories · 0 workspaces
    ");
}

#[test]
fn a_long_list_says_how_much_is_hidden() {
    let mut glance = healthy();
    glance.leases = (0..30).map(|i| lease(&format!("lease-{i:02}"), 1, 1, Some(i * 60))).collect();
    let text = render(&glance, &VIEW);
    assert!(text.contains("and 22 more: stoker lease list"), "{text}");
    assert!(text.contains("lease-29") && !text.contains("lease-00"), "those that end next come first: {text}");
}

#[test]
fn a_bar_shows_all_that_is_there() {
    assert_eq!(bar(0, 0, 0), "·".repeat(24));
    assert_eq!(bar(1, 1, 1_000_000), format!("█▒{}", "·".repeat(22)));
    assert_eq!(bar(900, 900, 1000), format!("{}▒▒", "█".repeat(22)));
    assert_eq!(bar(u64::MAX, u64::MAX, 1), "█".repeat(24));
}
