//! What a node has room for, as those hear it who choose between nodes.

use super::{LIMIT, v1};
use crate::admission::{MEMORY, configuration};
use crate::support::repository::TestRepo;
use crate::support::stoker::Agent;
use crate::support::upstream::Upstream;
use crate::support::wire::{seconds, source};

const GIB: i64 = 1 << 30;

/// The keys of the mirrors that are told.
async fn mirrors(stream: &mut tonic::Streaming<v1::WatchRoomResponse>, wanted: usize) -> Vec<String> {
    next(stream, |room| !room.mirrors_unchanged && room.mirrors.len() == wanted).await.mirrors
}

async fn next(stream: &mut tonic::Streaming<v1::WatchRoomResponse>, wanted: impl Fn(&v1::Room) -> bool) -> v1::Room {
    let heard = async {
        loop {
            let room = stream.message().await.unwrap().expect("the stream goes on").room.unwrap();
            if wanted(&room) {
                return room;
            }
        }
    };
    tokio::time::timeout(LIMIT, heard).await.expect("the room becomes as it should")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_room_is_told_and_each_change_of_it() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration());
    let mut client = agent.admission().await;
    let mut stream = client.watch_room(v1::WatchRoomRequest::default()).await.unwrap().into_inner();
    let first = next(&mut stream, |room| room.accepts).await;
    assert!(first.idle && first.grants.is_empty() && first.mirrors.is_empty(), "{first:?}");
    assert_eq!((first.mode(), first.gate()), (v1::Mode::Accepting, v1::GateState::Open));
    let (free, budget) = (first.free.unwrap().memory_bytes.unwrap(), first.budget.unwrap().memory_bytes.unwrap());
    assert!(free > 0 && free <= budget, "{first:?}");

    // A grant takes its room, and is told with what it was asked for; those of others are not.
    for id in ["gate-uid-1", "another"] {
        let declared = v1::Size {
            cpu_millis: Some(100),
            memory_bytes: Some(MEMORY),
            disk_bytes: Some(1 << 20),
            disk_inodes: Some(100),
            time_budget: seconds(600),
        };
        let build =
            v1::Build { source: Some(source(&url, "branch:main")), declared: Some(declared), ..v1::Build::default() };
        let admit = v1::AdmitRequest { request_id: id.into(), build: Some(build), ..Default::default() };
        let answer = client.admit(admit).await.unwrap().into_inner();
        assert!(matches!(answer.decision, Some(v1::admit_response::Decision::Granted(_))), "{answer:?}");
    }
    let held = next(&mut stream, |room| room.free.unwrap().memory_bytes.unwrap() <= free - 2 * MEMORY + GIB / 64).await;
    assert!(!held.idle);
    let held = if held.mirrors.is_empty() { next(&mut stream, |room| !room.mirrors.is_empty()).await } else { held };
    assert_eq!(held.grants.iter().map(|grant| grant.request_id.as_str()).collect::<Vec<_>>(), ["gate-uid-1"]);
    assert_eq!(held.grants[0].state(), v1::LeaseState::Reserved);
    assert_eq!(held.mirrors.len(), 1, "{held:?}");

    // What the operator wants holds builds back, with the reason.
    let mode = v1::SetModeRequest { mode: v1::Mode::Maintenance.into(), ..Default::default() };
    agent.node().await.set_mode(mode).await.unwrap();
    let shut = next(&mut stream, |room| !room.accepts).await;
    assert_eq!(shut.reasons[0].code(), v1::reason::Code::ModeMaintenance);
    assert_eq!((shut.mirrors, shut.mirrors_unchanged), (held.mirrors, false), "who did not ask for less hears all");
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_told_again_when_they_are_others() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let second = upstream.host("team/second.git", &repo);
    let agent = Agent::start(&configuration());
    let mut client = agent.admission().await;
    let request = v1::WatchRoomRequest { mirrors_on_change: true };
    let mut stream = client.watch_room(request).await.unwrap().into_inner();
    assert_eq!(mirrors(&mut stream, 0).await.len(), 0, "the first message has all");
    let fill = |url: &str| agent.stoker().run(["repo", "add", url]).expect_code(0);
    fill(&url);
    let one = mirrors(&mut stream, 1).await;
    // What changes otherwise is told without them.
    for mode in [v1::Mode::Maintenance, v1::Mode::Accepting] {
        let request = v1::SetModeRequest { mode: mode.into(), ..Default::default() };
        agent.node().await.set_mode(request).await.unwrap();
        let room = next(&mut stream, |room| room.mode() == mode).await;
        assert_eq!((room.mirrors, room.mirrors_unchanged), (Vec::new(), true));
    }
    fill(&second);
    let two = mirrors(&mut stream, 2).await;
    assert!(two.contains(&one[0]), "{one:?} {two:?}");
    agent.stoker().run(["repo", "remove", &url]).expect_code(0);
    assert!(!mirrors(&mut stream, 1).await.contains(&one[0]));
}
