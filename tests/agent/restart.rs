//! What is still so after a SIGKILL and a restart.

use std::path::Path;

use stoker_proto::v1;
use stoker_proto::v1::reason::Code as Why;
use tonic::Code;

use super::*;
use crate::support::repository::{TestRepo, git_out};
use crate::support::upstream::Upstream;

/// One lease at a time: whoever comes next waits.
fn one_at_a_time(url: &str) -> String {
    format!("admission: {{leasesMax: 1}}\n{}", configuration(PLAIN, &[url]))
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_tickets_and_ids_outlive_a_kill() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = start(&one_at_a_time(&url));
    mirror_ready(&agent, &url).await;
    let wanted = |id: &str| order(id, branch(&url, "main"), small());
    let first = admit(&agent, wanted("first")).await.unwrap().granted();
    let holder = Holder::start(&agent, "exec sleep 1000");
    let bound = bind(&agent, &first.id, holder.process()).await.unwrap();
    for id in ["a", "b", "c", "d"] {
        assert_eq!(codes(&admit(&agent, wanted(id)).await.unwrap().waiting().reasons)[0], Why::LeasesFull);
    }
    let before = tickets(&agent).await;
    let mut awaiting = Awaiting::begin(&agent, wanted("b")).await;
    assert_eq!(awaiting.next().await.waiting().ticket.unwrap().position, 2);
    let incarnation = status(&agent).await.node.unwrap().incarnation;
    // Upstream moves on: what a request was resolved to stands all the same.
    let old = repo.commit("main");
    repo.commit_file("main", "later", b"later\n");

    agent.restart();
    assert_ne!(status(&agent).await.node.unwrap().incarnation, incarnation);
    let same = admit(&agent, wanted("first")).await.unwrap().granted();
    assert_eq!((&same.id, same.state()), (&first.id, v1::LeaseState::Bound));
    assert_eq!((&same.ends_at, &same.holder), (&bound.ends_at, &bound.holder));
    let other = order("first", branch(&url, "develop"), small());
    let conflict = admit(&agent, other).await.unwrap_err();
    assert_eq!((conflict.code(), word(&conflict).as_str()), (Code::AlreadyExists, "REQUEST_ID_CONFLICT"));
    let ids = |tickets: &[v1::Ticket]| -> Vec<(String, i32)> {
        tickets.iter().map(|ticket| (ticket.id.clone(), ticket.position)).collect()
    };
    assert_eq!(ids(&tickets(&agent).await), ids(&before));
    // In another order than before: the places do not change by it.
    let mut third = Awaiting::begin(&agent, wanted("c")).await;
    assert_eq!(third.next().await.waiting().ticket.unwrap().position, 3);
    let mut second = Awaiting::begin(&agent, wanted("b")).await;
    let waiting = second.next().await.waiting();
    assert_eq!((&waiting.ticket.as_ref().unwrap().id, &waiting.ticket.as_ref().unwrap().commit), (&before[1].id, &old));
    let cancel = v1::CancelTicketRequest { ticket_id: before[0].id.clone() };
    agent.admission().await.cancel_ticket(cancel).await.unwrap();
    release(&agent, &first.id).await.unwrap();
    let granted = second.granted().await;
    assert_eq!((granted.request_id.as_str(), &granted.source.unwrap().commit), ("b", &old));

    // Released ones are remembered, and again is the same as once.
    agent.restart();
    let ended = admit(&agent, wanted("first")).await.unwrap().granted();
    assert_eq!(
        (&ended.id, ended.state(), ended.outcome()),
        (&first.id, v1::LeaseState::Released, v1::Outcome::Succeeded)
    );
    assert_eq!(release(&agent, &first.id).await.unwrap().ended_at, ended.ended_at);
    release(&agent, &granted.id).await.unwrap();
    let mut third = Awaiting::begin(&agent, wanted("c")).await;
    assert_eq!(third.granted().await.request_id, "c");
}

/// A ticket that is awaited lives as long as that takes; what the journal last heard of it is older than that.
#[tokio::test(flavor = "multi_thread")]
async fn places_that_were_awaited_for_long_outlive_a_kill() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = start(&one_at_a_time(&url));
    mirror_ready(&agent, &url).await;
    // Commits that are here: no tickets' lives end while upstream is asked.
    let main = repo.commit("main");
    let wanted = |id: &str| order(id, commit(&url, &main), small());
    // It ends soon: hints are short, and so are the lives of tickets that nobody awaits.
    let soon = v1::AdmitRequest { bind_within: Some(seconds(18)), ..wanted("first") };
    let first = admit(&agent, soon).await.unwrap().granted();
    let renew = v1::RenewRequest { lease_id: first.id.clone(), reserve_for: Some(seconds(1)) };
    let mut streams = Vec::new();
    let mut expires_at = 0;
    // The hint is the time until the reservation runs out, at least 5 s.
    agent.admission().await.renew(v1::RenewRequest { reserve_for: Some(seconds(5)), ..renew.clone() }).await.unwrap();
    for id in ["a", "b", "c"] {
        let mut stream = Awaiting::begin(&agent, wanted(id)).await;
        let ticket = stream.next().await.waiting().ticket.unwrap();
        expires_at = expires_at.max(ticket.expires_at.unwrap().seconds);
        streams.push(stream);
    }
    agent.admission().await.renew(v1::RenewRequest { reserve_for: Some(seconds(120)), ..renew }).await.unwrap();
    let before = tickets(&agent).await;
    let passed = || jiff::Timestamp::now().as_second() > expires_at + 1;
    wait::until(LIMIT, "the first hints have passed twice", passed);
    assert_eq!(tickets(&agent).await.len(), 3);
    agent.restart();
    // The last comes back first, and has the last place all the same.
    let mut last = Awaiting::begin(&agent, wanted("c")).await;
    assert_eq!(last.next().await.waiting().ticket.unwrap().position, 3);
    let after = tickets(&agent).await;
    assert_eq!(
        after.iter().map(|ticket| &ticket.id).collect::<Vec<_>>(),
        before.iter().map(|ticket| &ticket.id).collect::<Vec<_>>()
    );
    // Those who do not come back lose theirs, and not late.
    let latest = jiff::Timestamp::now().as_second() + 61;
    assert!(after[..2].iter().all(|ticket| ticket.expires_at.unwrap().seconds <= latest), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_died_while_the_agent_was_down_is_noticed() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let mut held = Vec::new();
    for id in ["dies", "lives"] {
        let granted = admit(&agent, order(id, branch(&url, "main"), small())).await.unwrap().granted();
        let workspace = prepare(&agent, &granted.id).await.unwrap();
        let holder = Holder::start(&agent, "exec sleep 1000");
        bind(&agent, &granted.id, holder.process()).await.unwrap();
        held.push((granted.id, workspace, holder));
    }
    let short = v1::AdmitRequest { bind_within: Some(seconds(1)), ..order("late", branch(&url, "main"), small()) };
    let late = admit(&agent, short).await.unwrap().granted();
    agent.kill9();
    held[0].2.end();
    let bind_by = late.bind_by.unwrap().seconds;
    wait::until(LIMIT, "the reservation's time passed", || jiff::Timestamp::now().as_second() > bind_by);
    agent.launch();
    agent.wait_ready();
    let over = |lease: &v1::Lease| lease.state() == v1::LeaseState::Orphaned;
    let ended = lease_until(&agent, &held[0].0, "the dead holder's lease is orphaned", over).await;
    assert_eq!((ended.outcome(), codes(&ended.reasons)), (v1::Outcome::Lost, vec![Why::HolderGone]));
    wait::until(LIMIT, "its workspace goes", || !Path::new(&held[0].1.src).exists());
    let expired = |lease: &v1::Lease| lease.state() == v1::LeaseState::Expired;
    lease_until(&agent, &late.id, "the late reservation is expired", expired).await;
    assert_eq!(lease(&agent, &held[1].0).await.state(), v1::LeaseState::Bound);
    assert!(Path::new(&held[1].1.src).join("README.md").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_the_leases_of_the_earlier_boot_are_gone_before_the_agent_is_ready() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let granted = admit(&agent, order("built", branch(&url, "main"), small())).await.unwrap().granted();
    let workspace = prepare(&agent, &granted.id).await.unwrap();
    // Even where a process of the same number and start lives on: it is another boot's.
    let holder = Holder::start(&agent, "exec sleep 1000");
    bind(&agent, &granted.id, holder.process()).await.unwrap();
    agent.kill9();
    let boot_id = agent.root().join("host/proc/sys/kernel/random/boot_id");
    std::fs::write(boot_id, "00000000-1111-4222-8333-444444444444\n").unwrap();
    agent.launch();
    agent.wait_ready();
    assert!(!Path::new(&workspace.src).exists(), "ready, and the workspace of the earlier boot is there");
    let ended = lease(&agent, &granted.id).await;
    let found = (ended.state(), ended.outcome(), codes(&ended.reasons));
    assert_eq!(found, (v1::LeaseState::Orphaned, v1::Outcome::Lost, vec![Why::NodeRebooted]));
    // The same boot again loses nothing more.
    let kept = admit(&agent, order("kept", branch(&url, "main"), small())).await.unwrap().granted();
    agent.restart();
    assert_eq!(lease(&agent, &kept.id).await.state(), v1::LeaseState::Reserved);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mode_outlives_a_kill() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let mode = v1::SetModeRequest {
        mode: v1::Mode::Maintenance.into(),
        until: None,
        note: "new disks".to_owned(),
        deadline: None,
    };
    agent.node().await.set_mode(mode).await.unwrap();
    agent.restart();
    let now = status(&agent).await;
    assert_eq!((now.mode(), now.mode_note.as_str()), (v1::Mode::Maintenance, "new disks"));
    let waiting = admit(&agent, order("waits", branch(&url, "main"), small())).await.unwrap().waiting();
    assert_eq!(codes(&waiting.reasons), [Why::ModeMaintenance]);
    assert!(waiting.reasons[0].message.contains("new disks"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_same_state_does_not_start() {
    let agent = start(&configuration(PLAIN, &[]));
    let incarnation = status(&agent).await.node.unwrap().incarnation;
    let other = std::fs::read_to_string(agent.root().join("agent.yaml")).unwrap();
    let other = other.replace("run/stoker.sock", "run/other.sock");
    let path = agent.root().join("other.yaml");
    std::fs::write(&path, other).unwrap();
    let output = agent.stoker().run(["agent".as_ref(), "--config".as_ref(), path.as_os_str()]).expect_code(2);
    assert!(output.stderr.contains("state is in use by another agent"), "{}", output.stderr);
    assert!(!agent.root().join("run/other.sock").exists());
    assert_eq!(status(&agent).await.node.unwrap().incarnation, incarnation);
}

/// What a build reads is an old snapshot by now, and the repositories are far above their limit when the agent starts.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_evicted_before_those_who_hold_it_are_known_again() {
    let repo = TestRepo::generated(50, 4 << 20, 1);
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let request = v1::PrepareWorkspaceRequest {
        r#for: Some(v1::prepare_workspace_request::For::Unleased(v1::Unleased {
            source: Some(branch(&url, "main")),
            lifetime: Some(seconds(3600)),
            request_id: "reader".to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let mut events = agent.workspace().await.prepare_workspace(within(request, LIMIT)).await.unwrap().into_inner();
    let workspace = loop {
        let event = events.message().await.unwrap().expect("a workspace comes").event;
        if let Some(v1::prepare_workspace_response::Event::Workspace(workspace)) = event {
            break workspace;
        }
    };
    // Two later ones: the first of them is in nobody's use, and goes.
    for round in 0..2 {
        repo.commit_file("main", "later", &[round; 9000]);
        refresh(&agent, &url).await.unwrap();
    }
    let file = agent.root().join("agent.yaml");
    let short = "repositories:\n  limit: 1MiB\n  minAge: 0s\n";
    agent.configure(&std::fs::read_to_string(file).unwrap().replace("repositories:\n", short));
    for round in 1..=5 {
        agent.restart();
        wait::until(LIMIT, "the limit is seen", || agent.log().matches("and nothing may be evicted").count() >= round);
        git_out(Path::new(&workspace.src), &["fsck", "--full", "--strict"]);
        assert_eq!(git_out(Path::new(&workspace.src), &["status", "--porcelain"]), "");
    }
    assert!(agent.log().contains("evicted: old snapshot"), "{}", agent.log());
}

/// A child of a killed agent that was not yet what it was to become holds its lock for a moment.
#[test]
fn a_lock_that_is_held_for_a_moment_is_waited_for() {
    let mut agent = start(&configuration(PLAIN, &[]));
    agent.kill9();
    let state = agent.root().join("state/lock");
    let mut holder = Command::new("flock")
        .arg(&state)
        .args(["sh", "-c", "echo held; sleep 0.5"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut [0; 5]).unwrap();
    agent.launch();
    agent.wait_ready();
    assert!(holder.wait().unwrap().success());
}
