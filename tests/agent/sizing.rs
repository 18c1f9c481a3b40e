//! How big builds are: the operator's table, ladder and cap; what runs teach; who declares too much.

use super::*;
use crate::support::loopdev::{Kind, LoopFs, needs_root};
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

/// Asks for a build, and ends it with what it used.
async fn run(agent: &Agent, id: &str, build: v1::Build, memory_bytes_peak: i64) -> v1::Lease {
    let request = v1::AdmitRequest { request_id: id.to_owned(), build: Some(build), ..Default::default() };
    let lease = admit(agent, request).await.unwrap().granted();
    let measured =
        v1::Usage { memory_bytes_peak, cpu_millis_peak: 500, elapsed: Some(seconds(60)), ..Default::default() };
    let request = v1::ReleaseRequest {
        lease_id: lease.id,
        outcome: v1::Outcome::Succeeded.into(),
        exit_code: Some(0),
        measured: Some(measured),
    };
    agent.admission().await.release(request).await.unwrap().into_inner().lease.unwrap()
}

async fn evaluate(agent: &Agent, build: v1::Build) -> v1::Evaluation {
    let request = v1::EvaluateRequest { builds: vec![build] };
    agent.admission().await.evaluate(request).await.unwrap().into_inner().evaluations.remove(0)
}

fn build(url: &str) -> v1::Build {
    let source = v1::Source { max_age: Some(seconds(3600)), ..branch(url, "main") };
    v1::Build { source: Some(source), ..Default::default() }
}

fn basis(sizing: &v1::Sizing, resource: v1::Resource) -> &v1::Basis {
    sizing.basis.iter().find(|basis| basis.resource() == resource).unwrap()
}

fn memory(sizing: &v1::Sizing) -> i64 {
    sizing.size.unwrap().memory_bytes.unwrap()
}

/// The table, the ladder and the cap are the operator's, and a reload takes them over.
#[tokio::test(flavor = "multi_thread")]
async fn the_operators_table_ladder_and_cap_are_used_and_reloaded() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    repo.commit_file("main", "Cargo.toml", b"[package]\n");
    let table = "sizing: {languages: {rust: {cpu: 3, memory: 5GiB, time: 10m}}, ladder: [{cpu: 6, memory: 11GiB}]}\n";
    let agent = start(&format!("{}{table}", configuration(PLAIN, &[])));
    let lease = run(&agent, "first", build(&url), GIB).await;
    let size = lease.sizing.unwrap().size.unwrap();
    assert_eq!((size.cpu_millis, size.memory_bytes, size.time_budget), (Some(3000), Some(5 * GIB), Some(seconds(600))));

    // Out of memory at its own limit: one step up the operator's ladder.
    let target = v1::Build { target: "other".into(), ..build(&url) };
    let request = v1::AdmitRequest { request_id: "killed".into(), build: Some(target), ..Default::default() };
    let lease = admit(&agent, request).await.unwrap().granted();
    let end = v1::ReleaseRequest {
        lease_id: lease.id.clone(),
        outcome: v1::Outcome::OutOfMemoryLimit.into(),
        ..Default::default()
    };
    let ended = agent.admission().await.release(end).await.unwrap().into_inner().lease.unwrap();
    let up = ended.retry.unwrap().size.unwrap();
    assert_eq!((up.cpu_millis, up.memory_bytes), (Some(6000), Some(11 * GIB)));

    // A cap lowers what nobody declared, and says so; what somebody did is refused by name.
    let path = agent.root().join("agent.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("sizing: {", "sizing: {cap: {cpu: 2, memory: 4GiB}, ")).unwrap();
    let fresh = || v1::Build { target: "fresh".into(), ..build(&url) };
    let lowered = async || memory(&evaluate(&agent, fresh()).await.sizing.unwrap()) == 4 * GIB;
    wait::until_async(LIMIT, "the cap is taken over", lowered).await;
    let found = evaluate(&agent, fresh()).await;
    let sizing = found.sizing.unwrap();
    let of_memory = basis(&sizing, v1::Resource::Memory);
    assert_eq!((of_memory.value, of_memory.clamped, of_memory.capped), (5 * GIB, true, true));
    assert_eq!(found.verdict, i32::from(v1::Verdict::Fits));
    let declared = Some(v1::Size { memory_bytes: Some(6 * GIB), ..Default::default() });
    let greedy = v1::Build { declared, ..fresh() };
    let found = evaluate(&agent, greedy.clone()).await;
    assert_eq!(found.verdict, i32::from(v1::Verdict::Never));
    let request = v1::AdmitRequest { request_id: "greedy".into(), build: Some(greedy), ..Default::default() };
    let refused = admit(&agent, request).await.unwrap().rejected();
    assert_eq!(refused.reasons, found.reasons);
    let [why] = refused.reasons.try_into().unwrap();
    assert_eq!((why.code(), why.wanted, why.available), (v1::reason::Code::SizeCap, 6 * GIB, 4 * GIB));
    assert_eq!(
        why.message,
        "6 GiB declared by declared.memory_bytes, this node allows 4 GiB (sizing.cap.memory): declare at most that"
    );
}

/// Every number says where it came from and what it was compared with; who declares far more than it uses is told.
#[tokio::test(flavor = "multi_thread")]
async fn who_declares_far_more_than_runs_used_is_told_and_counted() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let spec = "schema_version: 1\ncpu: 0.5\nmemory_gb: 16\n";
    repo.commit_file("main", ".build-spec.yaml", spec.as_bytes());
    let agent = start(&configuration(PLAIN, &[]));
    for number in 0..5 {
        let lease = run(&agent, &format!("run-{number}"), build(&url), 2 * GIB).await;
        assert_eq!(lease.sizing.unwrap().advice, [], "{number} runs say too little");
    }
    let sizing = evaluate(&agent, build(&url)).await.sizing.unwrap();
    assert_eq!(memory(&sizing), 16 * GIB, "what is declared stands");
    let of_memory = basis(&sizing, v1::Resource::Memory);
    assert_eq!((of_memory.tier(), of_memory.line), (v1::Tier::Spec, 3));
    let margin = 2 * GIB + (2 * GIB + 4) / 5;
    assert_eq!(of_memory.compared, Some(v1::Compared { p95: 2 * GIB, leads_to: margin, runs: 5 }));
    let said = "16 GiB declared by memory_gb of .build-spec.yaml:3, but 95% of 5 runs used at most 2 GiB: 2.4 GiB would be enough";
    let told = |sizing: &v1::Sizing| {
        let [why] = sizing.advice.clone().try_into().expect("one piece of advice");
        assert_eq!((why.code(), &*why.message), (v1::reason::Code::OverDeclared, said));
        assert_eq!((why.wanted, why.available), (16 * GIB, margin));
    };
    told(&sizing);
    let shown = agent.stoker().run(["lease", "evaluate", "--repo", &url, "--ref", "branch:main"]).expect_code(0).stdout;
    assert!(
        shown.contains("2.4 GiB would be enough") && shown.contains("p95 2 GiB of 5 runs, leads to 2.4 GiB"),
        "{shown}"
    );

    // A lease that waits, that is held, and that is released says the same; the first two are counted.
    assert_eq!(status(&agent).await.counts.unwrap().over_declared, 0);
    let request = v1::AdmitRequest { request_id: "held".into(), build: Some(build(&url)), ..Default::default() };
    let held = admit(&agent, request).await.unwrap().granted();
    told(held.sizing.as_ref().unwrap());
    assert_eq!(status(&agent).await.counts.unwrap().over_declared, 1);
    told(&release(&agent, &held.id).await.unwrap().sizing.unwrap());
    assert_eq!(status(&agent).await.counts.unwrap().over_declared, 0);
    let loads = status(&agent).await.cpu.unwrap().load;
    assert!(loads.is_none_or(|load| load.avg_1m >= 0));
}

/// Who waited is granted the size that it would get if it asked now: its runs taught more meanwhile, or the operator did.
#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_waited_is_sized_anew_when_it_is_granted() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = start(&configuration(PLAIN, &[]));
    let large = v1::Build { declared: Some(size(30_000, 20 * GIB)), ..build(&url) };
    let request = v1::AdmitRequest { request_id: "large".into(), build: Some(large), ..Default::default() };
    let large = admit(&agent, request).await.unwrap().granted();
    let request = v1::AdmitRequest {
        request_id: "waits".into(),
        build: Some(build(&url)),
        take_ticket: true,
        ..Default::default()
    };
    let mut awaiting = Awaiting::begin(&agent, request).await;
    assert_eq!(memory(&awaiting.next().await.waiting().sizing.unwrap()), 4 * GIB, "the default");

    // The operator's cap, while it waits.
    let path = agent.root().join("agent.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}sizing: {{cap: {{memory: 3GiB}}}}\n")).unwrap();
    let lowered = async || memory(tickets(&agent).await[0].sizing.as_ref().unwrap()) == 3 * GIB;
    wait::until_async(LIMIT, "the ticket is lowered to the cap", lowered).await;
    std::fs::write(&path, text).unwrap();
    let raised = async || memory(tickets(&agent).await[0].sizing.as_ref().unwrap()) == 4 * GIB;
    wait::until_async(LIMIT, "the cap is gone", raised).await;

    // A run of the same kind, in the moment in which it makes room.
    let measured = v1::Usage { memory_bytes_peak: 10 * GIB, cpu_millis_peak: 500, ..Default::default() };
    let request = v1::ReleaseRequest {
        lease_id: large.id,
        outcome: v1::Outcome::Succeeded.into(),
        exit_code: Some(0),
        measured: Some(measured),
    };
    agent.admission().await.release(request).await.unwrap();
    let granted = awaiting.granted().await;
    let sizing = granted.sizing.unwrap();
    assert_eq!(memory(&sizing), 12 * GIB);
    let of_memory = basis(&sizing, v1::Resource::Memory);
    assert_eq!((of_memory.tier(), of_memory.runs, of_memory.value), (v1::Tier::History, 1, 12 * GIB));
}

/// A cache that is there makes a build warmer on this node, for its own tenant.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_there_raises_the_score() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let spec = "schema_version: 1\ncpu: 1\nmemory_gb: 1\ncache_keys: [cargo, ccache]\n";
    repo.commit_file("main", ".build-spec.yaml", spec.as_bytes());
    // Two of them fit on the disk of whoever runs this.
    let disk = "sizing: {disk: {bytes: 1GiB, inodes: 1000}}\n";
    let agent = start(&format!("{}{disk}", configuration(PLAIN, &[])));
    let of = |tenant: &str| v1::Build {
        scope: Some(v1::Scope { tenant: tenant.to_owned(), ..Default::default() }),
        ..build(&url)
    };
    let request = v1::AdmitRequest { request_id: "warm".into(), build: Some(of("red")), ..Default::default() };
    let lease = admit(&agent, request).await.unwrap().granted();
    let cold = evaluate(&agent, of("red")).await;
    assert_eq!((cold.cache_keys, cold.cache_keys_here), (2, 0));

    let workspace = prepare(&agent, &lease.id).await.unwrap();
    assert!(Path::new(&workspace.environment["STOKER_CACHE"]).join("cargo").is_dir(), "{workspace:?}");
    let warm = async || evaluate(&agent, of("red")).await.cache_keys_here == 2;
    wait::until_async(LIMIT, "the caches are seen", warm).await;
    let warm = evaluate(&agent, of("red")).await;
    assert_eq!(warm.score, cold.score + 10);
    let shown = agent.stoker().run(["lease", "evaluate", "--repo", &url, "--ref", "branch:main", "--tenant", "red"]);
    assert!(shown.expect_code(0).stdout.contains("2 of 2 are here"));
    let other = evaluate(&agent, of("blue")).await;
    assert_eq!((other.cache_keys, other.cache_keys_here, other.score), (2, 0, cold.score));
}

/// XFS makes inodes of what is free: a build that wants many waits while others fill the disk, and is not refused as one
/// that no state of this disk has room for.
#[tokio::test(flavor = "multi_thread")]
async fn what_wants_many_inodes_waits_for_a_full_disk_on_xfs() {
    needs_root!();
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let disk = LoopFs::new(Kind::Xfs, 512 << 20);
    let agent = start(&configuration(&format!("path: {}, mount: required", disk.path().display()), &[&url]));
    mirror_ready(&agent, &url).await;
    let wanted = |id: &str| order(id, branch(&url, "main"), v1::Size { disk_inodes: Some(100_000), ..small() });
    let first = admit(&agent, wanted("first")).await.unwrap().granted();
    release(&agent, &first.id).await.unwrap();

    let others = disk.path().join("others");
    let file = std::fs::File::create_new(&others).unwrap();
    let free = || nix::sys::statvfs::statvfs(disk.path()).unwrap();
    let all_but = (free().blocks_available() * free().fragment_size()) as i64 - 24 * MIB;
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, all_but).unwrap();
    assert!(free().files() < 100_000, "{} inodes", free().files());
    let full = |now: &v1::Status| now.ledger.unwrap().free.unwrap().disk_inodes.unwrap() < 100_000;
    status_until(&agent, "it is seen that the disk is full", full).await;
    let mut waits = Awaiting::begin(&agent, wanted("waits")).await;
    assert_eq!(codes(&waits.next().await.waiting().reasons), [v1::reason::Code::DiskInodesHeld]);
    drop(file);
    std::fs::remove_file(others).unwrap();
    waits.granted().await;
}

/// Of a small disk that others have filled for the most part, as on a laptop: what nobody declared is what is left, and
/// what somebody declared waits.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_declared_starts_on_a_disk_that_others_fill() {
    needs_root!();
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let disk = LoopFs::new(Kind::Ext4, 1 << 30);
    let others = std::fs::File::create_new(disk.path().join("others")).unwrap();
    let fill = |mib: u64| nix::fcntl::fallocate(&others, nix::fcntl::FallocateFlags::empty(), 0, (mib << 20) as i64);
    fill(350).unwrap();
    let agent = start(&configuration(&format!("path: {}, mount: required", disk.path().display()), &[&url]));
    mirror_ready(&agent, &url).await;
    let undeclared = |id: &str| {
        let mut order = order(id, branch(&url, "main"), v1::Size::default());
        order.build.as_mut().unwrap().declared = None;
        order
    };
    let disk_of = |sizing: Option<v1::Sizing>| {
        let sizing = sizing.unwrap();
        let (bytes, of_inodes) = (basis(&sizing, v1::Resource::DiskBytes), basis(&sizing, v1::Resource::DiskInodes));
        assert_eq!((bytes.value, bytes.clamped, of_inodes.clamped, sizing.clamped), (20 * GIB, true, true, true));
        sizing.size.unwrap().disk_bytes.unwrap() / MIB
    };
    let free = async || status(&agent).await.ledger.unwrap().free.unwrap().disk_bytes.unwrap() / MIB;

    let (found, left) = (evaluate(&agent, build(&url)).await, free().await);
    assert_eq!(found.verdict, i32::from(v1::Verdict::Fits), "{:?}", found.reasons);
    let sized = disk_of(found.sizing);
    assert!(sized > left / 2 && sized < left, "{sized} of {left} MiB");
    let first = admit(&agent, undeclared("first")).await.unwrap().granted();
    assert!(disk_of(first.sizing).abs_diff(sized) < 32);

    // The next one waits for the first alone, and gets what there is then: others write as well.
    let mut next = Awaiting::begin(&agent, undeclared("next")).await;
    let held = [v1::reason::Code::DiskHeld, v1::reason::Code::DiskInodesHeld];
    assert_eq!(codes(&next.next().await.waiting().reasons), held);
    fill(650).unwrap();
    let smaller = async || disk_of(tickets(&agent).await.remove(0).sizing) < sized - 200;
    wait::until_async(LIMIT, "the one that waits is sized anew", smaller).await;
    release(&agent, &first.id).await.unwrap();
    let now = disk_of(next.granted().await.sizing);
    assert!(now < sized - 200 && now > 64, "{now} after {sized} MiB");

    // What is declared is never lowered: it waits until others make room.
    let declared = v1::Size { disk_bytes: Some(700 * MIB), ..small() };
    let waits = admit(&agent, order("declared", branch(&url, "main"), declared)).await.unwrap().waiting();
    assert_eq!(codes(&waits.reasons), [v1::reason::Code::DiskHeld]);
    assert_eq!(waits.reasons[0].wanted, 700 * MIB);
}
