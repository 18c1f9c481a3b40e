//! What the black-box tests stand on: nothing here is a stand-in for something real.
//!
//! - [`upstream`]: git repositories served over HTTP by git's own `http-backend`, with faults that can be switched on.
//! - [`repository`]: real repositories, built by `git fast-import`.
//! - [`stoker`]: the binary, run with a deadline in a home of its own; an agent with its logs and its clients.
//! - [`cgroup`]: control groups of their own, with a limit of memory.
//! - [`processes`]: who works for an agent.
//! - [`loopdev`]: filesystems of their own on loop devices.
//! - [`disk`]: trees to compare, and the journal as SQLite has it.
//! - [`large`]: an LFS server, beside the repositories of an upstream.
//! - [`farm`]: thousands of simulated agents, pods that wait for a node, and controllers.
//! - [`forge`]: a forge's API, as far as it tells of pull requests.
//! - [`git_helper`]: git in a process beside the agent, as in a container of its own.
//! - [`front`]: an API server's objects and its word on tokens, at one address.
//! - [`idmap`]: a user namespace, and what a container runtime does with one.
//! - [`kubelet`]: what a kubelet has and sends where a pod wants a volume.
//! - [`gate`]: where a build waits until the test lets it go on.
//! - [`tls`]: an upstream behind TLS, with a certificate of its own.
//! - [`authority`]: certificates of a test's own, and secrets that change.
//! - [`token_review`]: what an API server says of tokens, well or badly.
//! - [`wire`]: messages, and what refusals say.
//! - [`chance`]: chance that can be had again.
//! - [`wait`]: conditions with a limit, instead of sleeps.

#![allow(dead_code, reason = "a test takes what it needs, and not every helper is needed in every state of the tests")]

use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) mod api_server;
pub(crate) mod authority;
pub(crate) mod cgi;
pub(crate) mod cgroup;
pub(crate) mod chance;
pub(crate) mod disk;
pub(crate) mod farm;
pub(crate) mod forge;
pub(crate) mod front;
pub(crate) mod gate;
pub(crate) mod git_helper;
pub(crate) mod idmap;
pub(crate) mod kubelet;
pub(crate) mod large;
pub(crate) mod loopdev;
pub(crate) mod processes;
pub(crate) mod repository;
pub(crate) mod stoker;
pub(crate) mod tls;
pub(crate) mod token_review;
pub(crate) mod upstream;
pub(crate) mod wait;
pub(crate) mod wire;

/// A folder of a test's own. Others may pass through it: git runs as a user of its own where the agent is root.
pub(crate) fn place(prefix: &str) -> tempfile::TempDir {
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    tempfile::Builder::new().prefix(prefix).permissions(open).tempdir().unwrap()
}

/// Ports that tests ask for by number: below those that the kernel gives to who asks for any; see `ip_local_port_range`
/// in ip(7).
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// A TCP port that was free just now, on all addresses. Whoever binds it soon gets it: no other test of this process is
/// given it, those of others begin elsewhere, and no connection has it by chance.
pub(crate) fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // A prime: processes whose numbers are near one another begin far from one another.
    let first = std::process::id().wrapping_mul(7919);
    let place = || first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % u32::try_from(PORTS.len()).unwrap();
    let mut ports = PORTS.map(|_| PORTS.start + u16::try_from(place()).unwrap());
    ports.find(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok()).expect("a port that is free")
}

/// Whether a process has ended, also where nobody has waited for it yet.
pub(crate) fn process_ended(pid: u32) -> bool {
    // Its state follows the name, which is in brackets and can hold anything; see proc_pid_stat(5).
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}
