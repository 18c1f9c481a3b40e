//! Upstreams that misbehave, and disks that are full: bounded, told in clear words, never served from, and well again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::disk::leftovers_of_repositories;
use crate::support::loopdev::{Ballast, Kind, LoopFs, needs_root};
use crate::support::repository::{TestRepo, git_out};
use crate::support::stoker::{Agent, Output};
use crate::support::upstream::{Fault, Upstream};
use crate::support::wait;

/// How long anything that works may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
/// How long one fetch may take, by configuration.
const FETCH_WITHIN: Duration = Duration::from_secs(4);
/// How long a fetch that fails may take: the listing and the fetch have their time each, git its grace to end.
const FAILS_WITHIN: Duration = Duration::from_secs(30);
/// The most that the agent itself may have had resident, in an unoptimised build.
const RESIDENT_KIB_MAX: u64 = 120 << 10;

fn configuration(pool: &str, more: &str) -> String {
    format!(
        "node: {{rootFloor: {{bytes: 0, inodes: 0}}}}\n\
         pools: [{{name: data, path: {pool}, mount: optional, floor: {{bytes: 4KiB, inodes: 1}}}}]\n\
         repositories:\n  refresh: 24h\n  protocols: [http]\n  add: on-demand\n  allow: [127.0.0.1]\n{more}"
    )
}

#[track_caller]
fn shown(agent: &Agent, url: &str) -> serde_json::Value {
    agent.stoker().run(["repo", "show", url, "-o", "json"]).expect_code(0).json()["repository"].clone()
}

fn snapshot(agent: &Agent, pool: &Path, url: &str) -> PathBuf {
    let shown = shown(agent, url);
    let (folder, name) = (shown["folder"].as_str().unwrap(), shown["snapshot"].as_str().unwrap());
    assert!(!name.is_empty(), "{shown}");
    pool.join("stoker/repositories").join(folder).join("snapshots").join(name)
}

/// The most that it ever had resident, in KiB; see proc_pid_status(5).
fn resident_kib_max(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A command fails in time and says one of these reasons.
#[track_caller]
fn fails(output: Output, begun: Instant, words: &[&str], what: &dyn std::fmt::Debug) {
    assert!(begun.elapsed() < FAILS_WITHIN, "{what:?} took {:?}", begun.elapsed());
    assert_eq!(output.code(), Some(2), "{what:?}: {output:?}");
    assert!(words.iter().any(|word| output.stderr.contains(word)), "{what:?}, {words:?}: {}", output.stderr);
}

/// Fetches what is there by now. Also a good fetch may take longer than `fetchWithin` on a busy machine: it is asked for again.
#[track_caller]
fn refreshed(agent: &Agent, url: &str) {
    let refresh = || agent.stoker().command(["repo", "refresh", url]).deadline(LIMIT).run().code() == Some(0);
    wait::until(LIMIT, "a good upstream is fetched from", refresh);
}

const FAULTS: [(Fault, &[&str]); 11] = [
    (Fault::Hang, &["UPSTREAM_TIMEOUT"]),
    (Fault::Reset, &["UPSTREAM_UNREACHABLE"]),
    (Fault::Status(500), &["UPSTREAM_UNREACHABLE"]),
    (Fault::Html, &["not a git server"]),
    (Fault::EndlessRefs, &["UPSTREAM_TIMEOUT", "UPSTREAM_UNREACHABLE"]),
    (Fault::HangPack(100), &["UPSTREAM_TIMEOUT"]),
    (Fault::HangPack(20_000), &["UPSTREAM_TIMEOUT"]),
    (Fault::CutPack(20_000), &["UPSTREAM_UNREACHABLE", "REPOSITORY_CORRUPT"]),
    (Fault::FlipPack(20_000), &["REPOSITORY_CORRUPT", "UPSTREAM_UNREACHABLE"]),
    (Fault::BarePack, &["REPOSITORY_CORRUPT"]),
    (Fault::EndlessPack, &["UPSTREAM_TIMEOUT"]),
];

#[test]
fn a_faulty_upstream_is_bounded_and_the_old_snapshot_serves() {
    let repo = TestRepo::generated(100, 1 << 20, 2);
    let (upstream, url) = Upstream::of(&repo);
    let within = format!("  fetchWithin: {}s\n", FETCH_WITHIN.as_secs());
    let agent = Agent::start(&configuration("$ROOT/pool", &within));
    let pool = agent.root().join("pool");
    agent.stoker().run(["repo", "add", &url]);
    refreshed(&agent, &url);
    for (round, (fault, words)) in FAULTS.into_iter().enumerate() {
        let before = repo.commit("main");
        let old = snapshot(&agent, &pool, &url);
        // Something to fetch that is larger than where faults begin.
        let noise: Vec<u8> = (0..60_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let new =
            repo.commit_file("main", &format!("new-{round}"), &[&noise[..], format!("{round}").as_bytes()].concat());
        // Who has something already hears of that first.
        let fault = if fault == Fault::EndlessPack { Fault::EndlessFetch } else { fault };
        upstream.fault(fault);
        let begun = Instant::now();
        fails(agent.stoker().run(["repo", "refresh", &url]), begun, words, &fault);
        assert_eq!(snapshot(&agent, &pool, &url), old, "{fault:?}: nothing was published");
        git_out(&old, &["fsck", "--full", "--no-dangling"]);
        let known = agent.stoker().run(["resolve", &url, &format!("sha:{before}"), "-o", "json"]).expect_code(0).json();
        assert_eq!(known["resolved"]["commit"], before);
        wait::until(LIMIT, &format!("{fault:?}: nothing half is left"), || leftovers_of_repositories(&pool).is_empty());
        let now = shown(&agent, &url);
        assert!(!now["reasons"][0]["message"].as_str().unwrap().is_empty(), "{now}");

        upstream.fault(Fault::None);
        refreshed(&agent, &url);
        let after = snapshot(&agent, &pool, &url);
        assert_eq!(git_out(&after, &["rev-parse", "main"]), new, "{fault:?}");
        git_out(&after, &["fsck", "--full", "--no-dangling"]);
        let resident = resident_kib_max(&agent);
        assert!(resident < RESIDENT_KIB_MAX, "{fault:?}: {resident} KiB were resident");
    }
    assert!(shown(&agent, &url)["reasons"].as_array().unwrap().is_empty());
}

#[test]
fn a_first_fill_from_a_faulty_upstream_leaves_nothing() {
    let repo = TestRepo::generated(100, 1 << 20, 2);
    let (upstream, url) = Upstream::of(&repo);
    let within = format!("  fetchWithin: {}s\n", FETCH_WITHIN.as_secs());
    let agent = Agent::start(&configuration("$ROOT/pool", &within));
    let pool = agent.root().join("pool");
    for (fault, words) in FAULTS {
        upstream.fault(fault);
        let begun = Instant::now();
        fails(agent.stoker().run(["repo", "add", &url]), begun, words, &fault);
        wait::until(LIMIT, "nothing half is left", || leftovers_of_repositories(&pool).is_empty());
        upstream.fault(Fault::None);
        refreshed(&agent, &url);
        git_out(&snapshot(&agent, &pool, &url), &["fsck", "--full", "--no-dangling"]);
        agent.stoker().run(["repo", "remove", &url]).expect_code(0);
    }
}

/// Every step in turn hits the end of the disk; then room comes back.
fn full_disk(kind: Kind) {
    let disk = LoopFs::new(kind, 320 << 20);
    let repo = TestRepo::generated(2000, 24 << 20, 2);
    let (upstream, url) = Upstream::of(&repo);
    let pool = disk.path().to_owned();
    let agent = Agent::start(&configuration(pool.to_str().unwrap(), ""));
    let stoker = agent.stoker();
    let no_room = |output: Output, what: &str| {
        assert_eq!(output.code(), Some(2), "{what}: {output:?}");
        assert!(output.stderr.contains("DISK_FLOOR"), "{what}: {}", output.stderr);
        wait::until(LIMIT, "nothing half is left", || leftovers_of_repositories(&pool).is_empty());
    };

    // A clone, at its beginning and in its pack.
    for left in [0, 1 << 20, 6 << 20] {
        let full = Ballast::leave(&pool, left);
        no_room(stoker.run(["repo", "add", &url]), &format!("clone with {left} bytes left"));
        assert_eq!(shown(&agent, &url)["snapshot"], "", "nothing is published");
        drop(full);
        stoker.run(["repo", "remove", &url]).expect_code(0);
    }
    stoker.run(["repo", "add", &url]).expect_code(0);
    let first = snapshot(&agent, &pool, &url);
    git_out(&first, &["fsck", "--full", "--no-dangling"]);
    let archive = agent.root().join("export.tar");
    stoker.run(["repo", "export", &url, archive.to_str().unwrap()]).expect_code(0);

    // A fetch, from where git cannot write at all to where only publishing fails.
    let noise: Vec<u8> = (0..1_500_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let new = repo.commit_file("main", "large", &noise);
    for left in [0, 300 << 10, 2 << 20] {
        let full = Ballast::leave(&pool, left);
        no_room(stoker.run(["repo", "refresh", &url]), &format!("fetch with {left} bytes left"));
        assert_eq!(snapshot(&agent, &pool, &url), first);
        git_out(&first, &["fsck", "--full", "--no-dangling"]);
        drop(full);
    }
    // From where the pack just fits on: what is left for the refs and the snapshot grows until all of it fits.
    let size = u64::try_from(noise.len()).unwrap();
    let fits = (0..64_u64).map(|step| size + (step << 16)).find(|left| {
        let full = Ballast::leave(&pool, *left);
        let output = stoker.run(["repo", "refresh", &url]);
        let done = output.code() == Some(0);
        if !done {
            no_room(output, &format!("fetch with {left} bytes left"));
            assert_eq!(snapshot(&agent, &pool, &url), first);
            git_out(&first, &["fsck", "--connectivity-only", "--no-dangling"]);
        }
        drop(full);
        done
    });
    assert!(fits.is_some(), "four megabytes more than the pack are enough");
    let second = snapshot(&agent, &pool, &url);
    assert_eq!(git_out(&second, &["rev-parse", "main"]), new);
    git_out(&second, &["fsck", "--full", "--no-dangling"]);

    // An import is refused before it begins, or stopped, and what is there stays.
    upstream.stop();
    let other = url.replace("project.git", "other.git");
    for left in [0, 4 << 20] {
        let full = Ballast::leave(&pool, left);
        no_room(
            stoker.run(["repo", "import", &other, archive.to_str().unwrap()]),
            &format!("import with {left} bytes left"),
        );
        drop(full);
    }
    stoker.run(["repo", "import", &other, archive.to_str().unwrap()]).expect_code(0);
    git_out(&snapshot(&agent, &pool, &other), &["fsck", "--full", "--no-dangling"]);
}

#[test]
fn a_full_ext4_is_told_and_survived() {
    needs_root!();
    full_disk(Kind::Ext4);
}

#[test]
fn a_full_xfs_is_told_and_survived() {
    needs_root!();
    full_disk(Kind::Xfs);
}
