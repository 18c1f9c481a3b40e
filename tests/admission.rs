//! Admission over the wire: exactly what the budget holds, once for each request, in turn for those who wait.

use std::time::Duration;

use futures_util::future::join_all;
use stoker_proto::v1::admission_service_client::AdmissionServiceClient;
use stoker_proto::v1::{self, admit_response::Decision, await_admission_response::Decision as Awaited};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::disk::{leases, rows};
use crate::support::repository::TestRepo;
use crate::support::stoker::Agent;
use crate::support::upstream::Upstream;
use crate::support::wire::{codes, reason, seconds, source};

/// What each build declares. Three of them are the node's whole budget.
pub(crate) const MEMORY: i64 = 2 << 30;
/// How long anything that needs no clock may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A recorded node of 32 cores and 61.5 GiB of which 12.5 are used, so that what else runs on this machine decides
/// nothing; and a reserve that leaves three times [`MEMORY`].
pub(crate) fn configuration() -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/proc/node-32cpu-62g");
    let reserve = 66_035_122_176 - 3 * MEMORY;
    format!(
        "
pools: [{{name: data, path: $ROOT/pool, mount: optional, floor: {{bytes: 1MiB, inodes: 10}}}}]
repositories: {{add: on-demand, allow: [127.0.0.1], protocols: [http]}}
node: {{name: ghost, hostRoot: {root}, reserve: {{cpu: 0, memory: {reserve}B}}, rootFloor: {{bytes: 0B, inodes: 0}}}}
"
    )
}

/// An agent of such a node, and something to build.
pub(crate) struct Node {
    pub(crate) agent: Agent,
    url: String,
    upstream: Upstream,
    _repo: TestRepo,
}

impl Node {
    fn start() -> Self {
        Self::with("")
    }

    /// With more in its configuration.
    pub(crate) fn with(more: &str) -> Self {
        let repo = TestRepo::standard();
        let (upstream, url) = Upstream::of(&repo);
        Self { agent: Agent::start(&format!("{}{more}", configuration())), url, upstream, _repo: repo }
    }

    pub(crate) async fn client(&self) -> AdmissionServiceClient<Channel> {
        self.agent.admission().await
    }

    /// A build of this memory; all else is little.
    pub(crate) fn build(&self, memory: i64) -> v1::Build {
        v1::Build {
            // Of what is known within the hour: many builds, one question to upstream.
            source: Some(v1::Source { max_age: seconds(3600), ..source(&self.url, "branch:main") }),
            scope: Some(v1::Scope { tenant: "red".to_owned(), ..v1::Scope::default() }),
            declared: Some(v1::Size {
                cpu_millis: Some(100),
                memory_bytes: Some(memory),
                disk_bytes: Some(1 << 20),
                disk_inodes: Some(100),
                time_budget: seconds(600),
            }),
            ..v1::Build::default()
        }
    }

    pub(crate) fn request(&self, id: &str) -> v1::AdmitRequest {
        v1::AdmitRequest { request_id: id.to_owned(), build: Some(self.build(MEMORY)), ..v1::AdmitRequest::default() }
    }

    pub(crate) async fn admit(&self, request: v1::AdmitRequest) -> Result<Decision, Status> {
        Ok(self.client().await.admit(request).await?.into_inner().decision.unwrap())
    }

    pub(crate) async fn granted(&self, id: &str) -> v1::Lease {
        match self.admit(self.request(id)).await.unwrap() {
            Decision::Granted(lease) => lease,
            other => panic!("{id}: {other:?}"),
        }
    }

    pub(crate) async fn waiting(&self, request: v1::AdmitRequest) -> v1::Waiting {
        match self.admit(request).await.unwrap() {
            Decision::Waiting(waiting) => waiting,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn release(&self, lease: &str) -> v1::Lease {
        let request = v1::ReleaseRequest {
            lease_id: lease.to_owned(),
            outcome: v1::Outcome::Succeeded.into(),
            ..v1::ReleaseRequest::default()
        };
        self.client().await.release(request).await.unwrap().into_inner().lease.unwrap()
    }

    pub(crate) async fn live(&self) -> Vec<v1::Lease> {
        let listed = self.client().await.list_leases(v1::ListLeasesRequest::default()).await;
        listed.unwrap().into_inner().leases
    }

    pub(crate) async fn tickets(&self) -> Vec<v1::Ticket> {
        let listed = self.client().await.list_tickets(v1::ListTicketsRequest::default()).await;
        listed.unwrap().into_inner().tickets
    }
}

#[tokio::test]
async fn two_hundred_at_once_for_a_budget_of_three_get_three_leases() {
    let node = Node::start();
    let clients = join_all((0..8).map(|_| node.client())).await;
    let calls = (0..200).map(|number| {
        let (mut client, request) = (clients[number % clients.len()].clone(), node.request(&format!("build-{number}")));
        async move { client.admit(request).await.unwrap().into_inner().decision.unwrap() }
    });
    let (mut granted, mut waiting) = (Vec::new(), Vec::new());
    for decision in join_all(calls).await {
        match decision {
            Decision::Granted(lease) => granted.push(lease),
            Decision::Waiting(not_now) => waiting.push(not_now),
            Decision::Rejected(rejection) => panic!("{rejection:?}"),
        }
    }
    assert_eq!((granted.len(), waiting.len()), (3, 197));
    assert_eq!(node.upstream.requests().fetches, 1, "one fill for all");
    for lease in &granted {
        let size = lease.sizing.as_ref().unwrap().size.as_ref().unwrap();
        assert_eq!(size.memory_bytes, Some(MEMORY));
        assert_eq!(lease.state(), v1::LeaseState::Reserved);
        assert_eq!(lease.affinity.as_ref().unwrap().values, ["ghost"]);
    }
    for waiting in &waiting {
        assert_eq!(codes(&waiting.reasons), ["MEMORY_HELD"]);
        let why = &waiting.reasons[0];
        assert_eq!((why.resource(), why.wanted, why.available), (v1::Resource::Memory, MEMORY, 0));
        assert!(why.message.contains("2.0 GiB") || why.message.contains("2 GiB"), "{}", why.message);
        let hint = waiting.retry_after.unwrap();
        assert!((5..=120).contains(&hint.seconds), "{hint:?}");
        assert_eq!(waiting.ticket, None, "none was asked for");
    }
    let mut ids: Vec<_> = granted.iter().map(|lease| lease.id.clone()).collect();
    ids.sort();
    assert_eq!(node.live().await.into_iter().map(|lease| lease.id).collect::<Vec<_>>(), ids);
    let state = node.agent.root().join("state");
    let written = leases(&state);
    assert!(written.iter().all(|lease| lease.state == "reserved"), "{written:?}");
    assert_eq!((written.len(), rows(&state, "ticket")), (3, 0));
}

#[tokio::test]
async fn one_request_is_one_lease_however_often_it_is_asked() {
    let mut node = Node::start();
    let clients = join_all((0..4).map(|_| node.client())).await;
    let calls = (0..20).map(|number| {
        let (mut client, request) = (clients[number % clients.len()].clone(), node.request("one"));
        async move { client.admit(request).await.unwrap().into_inner().decision.unwrap() }
    });
    let answers = join_all(calls).await;
    let lease = node.granted("one").await;
    for answer in answers {
        assert!(matches!(&answer, Decision::Granted(same) if same.id == lease.id), "{answer:?}");
    }
    assert_eq!(node.live().await.len(), 1);

    let other_size = v1::AdmitRequest { build: Some(node.build(MEMORY / 2)), ..node.request("one") };
    let other_ref = v1::Build { source: Some(source(&node.url, "branch:develop")), ..node.build(MEMORY) };
    let other_ref = v1::AdmitRequest { build: Some(other_ref), ..node.request("one") };
    for other in [other_size, other_ref] {
        let refused = node.admit(other).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::AlreadyExists, "REQUEST_ID_CONFLICT"));
    }

    // What was granted is on the disk before it is told.
    node.agent.restart();
    assert_eq!(node.granted("one").await.id, lease.id);
    assert_eq!(node.live().await.len(), 1);

    // The id lives on past the lease.
    assert_eq!(node.release(&lease.id).await.state(), v1::LeaseState::Released);
    let again = node.granted("one").await;
    assert_eq!((again.id, again.state), (lease.id, v1::LeaseState::Released.into()));
    assert_eq!(node.live().await, []);
}

#[tokio::test]
async fn what_can_never_fit_is_rejected_and_not_told_to_wait() {
    let node = Node::start();
    let too_big =
        v1::AdmitRequest { build: Some(node.build(3 * MEMORY + 1)), take_ticket: true, ..node.request("big") };
    let rejection = match node.admit(too_big).await.unwrap() {
        Decision::Rejected(rejection) => rejection,
        other => panic!("{other:?}"),
    };
    assert_eq!(codes(&rejection.reasons), ["MEMORY_BUDGET"]);
    let why = &rejection.reasons[0];
    assert_eq!((why.wanted, why.available), (3 * MEMORY + 1, 3 * MEMORY));
    assert!(!rejection.final_everywhere, "another node may be larger");
    let whole = v1::AdmitRequest { build: Some(node.build(3 * MEMORY)), ..node.request("whole") };
    assert!(matches!(node.admit(whole).await.unwrap(), Decision::Granted(_)), "the whole budget fits");
    assert_eq!(node.tickets().await, []);
}

#[tokio::test]
async fn what_is_released_goes_to_the_next() {
    let node = Node::start();
    let first = node.granted("1").await;
    node.granted("2").await;
    node.granted("3").await;
    assert_eq!(codes(&node.waiting(node.request("4")).await.reasons), ["MEMORY_HELD"]);
    let released = node.release(&first.id).await;
    assert_eq!((released.state(), released.outcome()), (v1::LeaseState::Released, v1::Outcome::Succeeded));
    assert_eq!(node.release(&first.id).await, released, "again is the same as once");
    let next = node.granted("4").await;
    assert!(node.live().await.iter().any(|lease| lease.id == next.id));
    assert_eq!(node.live().await.len(), 3);
}

#[tokio::test]
async fn who_awaits_is_told_and_granted_when_there_is_room() {
    let node = Node::start();
    let first = node.granted("1").await;
    node.granted("2").await;
    node.granted("3").await;
    let request = v1::AwaitAdmissionRequest { admit: Some(node.request("4")) };
    let mut answers = node.client().await.await_admission(request).await.unwrap().into_inner();
    let told = tokio::time::timeout(LIMIT, answers.message()).await.unwrap().unwrap().unwrap();
    let Some(Awaited::Waiting(waiting)) = told.decision else { panic!("{told:?}") };
    let ticket = waiting.ticket.unwrap();
    assert_eq!((ticket.position, ticket.request_id.as_str()), (1, "4"));
    assert_eq!(node.tickets().await.iter().map(|held| held.id.clone()).collect::<Vec<_>>(), [ticket.id]);

    // Nobody passes who waits.
    let behind = v1::AdmitRequest { take_ticket: true, ..node.request("5") };
    let behind = node.waiting(behind).await;
    assert!(codes(&behind.reasons).contains(&"QUEUE_AHEAD"), "{behind:?}");
    assert_eq!(behind.ticket.unwrap().position, 2);

    node.release(&first.id).await;
    let lease = tokio::time::timeout(LIMIT, async {
        loop {
            match answers.message().await.unwrap().expect("the stream ended without a grant").decision {
                Some(Awaited::Granted(lease)) => return lease,
                Some(Awaited::Waiting(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    let lease = lease.await.expect("granted in time");
    assert_eq!((lease.request_id.as_str(), lease.confirm_by), ("4", None), "told, and so confirmed");
    assert_eq!(tokio::time::timeout(LIMIT, answers.message()).await.unwrap().unwrap(), None, "the stream ends with it");
    let left: Vec<_> = node.tickets().await.into_iter().map(|ticket| (ticket.request_id, ticket.position)).collect();
    assert_eq!(left, [("5".to_owned(), 1)]);
}

#[tokio::test]
async fn a_place_in_the_queue_is_listed_kept_and_given_up() {
    let node = Node::start();
    for id in ["1", "2", "3"] {
        node.granted(id).await;
    }
    let queued = |id: &str| v1::AdmitRequest { take_ticket: true, ..node.request(id) };
    let first = node.waiting(queued("a")).await.ticket.unwrap();
    let second = node.waiting(queued("b")).await.ticket.unwrap();
    let again = node.waiting(queued("a")).await.ticket.unwrap();
    assert_eq!((again.id.as_str(), again.position), (first.id.as_str(), 1), "a retry keeps its place");
    assert_eq!(second.position, 2);
    let state = node.agent.root().join("state");
    assert_eq!((node.tickets().await.len(), rows(&state, "ticket")), (2, 2));
    let cancel = v1::CancelTicketRequest { ticket_id: first.id.clone() };
    node.client().await.cancel_ticket(cancel.clone()).await.unwrap();
    let left = node.tickets().await;
    assert_eq!((left.len(), left[0].id.as_str(), left[0].position), (1, second.id.as_str(), 1));
    let refused = node.client().await.cancel_ticket(cancel).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::NotFound, "TICKET_NOT_FOUND"));
    assert_eq!(rows(&state, "ticket"), 1);
}

#[tokio::test]
async fn who_asks_again_does_so_before_a_grant_could_pass_on() {
    let node = Node::start();
    for id in ["1", "2", "3"] {
        let lasting = v1::AdmitRequest { bind_within: seconds(1800), ..node.request(id) };
        assert!(matches!(node.admit(lasting).await.unwrap(), Decision::Granted(_)));
    }
    let queued = v1::AdmitRequest { take_ticket: true, ..node.request("4") };
    for _ in 0..2 {
        let hint = node.waiting(queued.clone()).await.retry_after.unwrap();
        assert!((5..30).contains(&hint.seconds), "a grant lives for 30 s: {hint:?}");
    }
    let request = v1::AwaitAdmissionRequest { admit: Some(node.request("5")) };
    let mut answers = node.client().await.await_admission(request).await.unwrap().into_inner();
    let Some(Awaited::Waiting(told)) = answers.message().await.unwrap().unwrap().decision else { panic!() };
    assert!(told.retry_after.unwrap().seconds > 60, "who is told of a grant need not ask: {told:?}");
}

#[tokio::test]
async fn a_ticket_that_is_cancelled_is_gone_for_who_awaits_it_too() {
    let node = Node::start();
    for id in ["1", "2", "3"] {
        node.granted(id).await;
    }
    let request = v1::AwaitAdmissionRequest { admit: Some(node.request("4")) };
    let mut answers = node.client().await.await_admission(request.clone()).await.unwrap().into_inner();
    let Some(Awaited::Waiting(told)) = answers.message().await.unwrap().unwrap().decision else { panic!() };
    let cancel = v1::CancelTicketRequest { ticket_id: told.ticket.unwrap().id };
    node.client().await.cancel_ticket(cancel).await.unwrap();
    let told = tokio::time::timeout(LIMIT, answers.message()).await.unwrap().unwrap().unwrap();
    let Some(Awaited::Rejected(rejection)) = told.decision else { panic!("{told:?}") };
    assert_eq!(codes(&rejection.reasons), ["TICKET_CANCELLED"]);
    assert_eq!(tokio::time::timeout(LIMIT, answers.message()).await.unwrap().unwrap(), None);
    assert_eq!(node.tickets().await, []);
    // Asked for once more, it has a place again.
    let mut again = node.client().await.await_admission(request).await.unwrap().into_inner();
    let told = again.message().await.unwrap().unwrap().decision;
    assert!(matches!(told, Some(Awaited::Waiting(_))), "{told:?}");
}

#[tokio::test]
async fn a_lease_that_has_ended_is_no_grant_for_who_asks_again_on_the_command_line() {
    let node = Node::start();
    let url = node.url.clone();
    let admit = ["lease", "admit", "--repo", &url, "--ref", "branch:main", "--request-id", "one"];
    let stoker = node.agent.stoker();
    stoker.run(admit).expect_code(0);
    let lease = node.live().await.remove(0);
    node.release(&lease.id).await;
    let told = stoker.run(admit).expect_code(1);
    assert!(told.stderr.contains("has ended already"), "{}", told.stderr);
    let environment = stoker.run(admit.into_iter().chain(["-o", "env"])).expect_code(1);
    assert_eq!(environment.stdout, "", "nothing to source");
}

#[tokio::test]
async fn evaluate_judges_many_builds_and_changes_nothing() {
    let node = Node::start();
    node.granted("1").await;
    node.upstream.reset();
    let builds = [MEMORY, 2 * MEMORY, 3 * MEMORY, 4 * MEMORY].map(|memory| node.build(memory));
    let request = v1::EvaluateRequest { builds: builds.to_vec() };
    let answer = node.client().await.evaluate(request).await.unwrap().into_inner();
    let verdicts: Vec<_> = answer.evaluations.iter().map(v1::Evaluation::verdict).collect();
    use v1::Verdict::{Fits, Never, Waits};
    assert_eq!(verdicts, [Fits, Fits, Waits, Never]);
    assert!(answer.evaluations.iter().all(|one| one.source() == v1::SourceState::Mirror), "{answer:?}");
    assert!(answer.evaluations[0].score > answer.evaluations[3].score);
    assert_eq!(answer.node.unwrap().name, "ghost");
    let unknown = v1::Build { source: Some(source("https://example.org/none", "head")), ..node.build(MEMORY) };
    let request = v1::EvaluateRequest { builds: vec![unknown] };
    let answer = node.client().await.evaluate(request).await.unwrap().into_inner();
    let one = &answer.evaluations[0];
    assert_eq!((one.source(), one.verdict()), (v1::SourceState::None, Fits));
    assert!(one.sizing.as_ref().unwrap().provisional);
    assert_eq!(node.upstream.requests().total(), 0, "no network");
    assert_eq!(node.live().await.len(), 1);
}
