//! The queue over the wire: tenants in turn, retries, watches, and many who wait at once.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{FutureExt as _, StreamExt as _};
use stoker_proto::v1::{self, admit_response::Decision, await_admission_response::Decision as Awaited};
use tonic::{Code, Streaming};

use crate::admission::{LIMIT, MEMORY, Node};
use crate::support::wire::{codes, reason, seconds, violations};

impl Node {
    /// A request of a tenant that takes a ticket.
    fn of(&self, tenant: &str, id: &str) -> v1::AdmitRequest {
        let scope = Some(v1::Scope { tenant: tenant.to_owned(), ..v1::Scope::default() });
        let build = Some(v1::Build { scope, ..self.build(MEMORY) });
        v1::AdmitRequest { build, take_ticket: true, ..self.request(id) }
    }

    /// Three leases: there is room for no more.
    async fn fill(&self) -> Vec<v1::Lease> {
        let mut held = Vec::new();
        for number in 0..3 {
            // Reservations that last: hints are long, and nobody is woken by them.
            let build = Some(self.build(MEMORY));
            let id = format!("fill{number}");
            let request = v1::AdmitRequest { build, bind_within: seconds(1800), ..self.request(&id) };
            match self.admit(request).await.unwrap() {
                Decision::Granted(lease) => held.push(lease),
                other => panic!("{other:?}"),
            }
        }
        held
    }

    async fn ends(&self, lease: &str, outcome: v1::Outcome) -> v1::Lease {
        let request =
            v1::ReleaseRequest { lease_id: lease.to_owned(), outcome: outcome.into(), ..v1::ReleaseRequest::default() };
        self.client().await.release(request).await.unwrap().into_inner().lease.unwrap()
    }

    async fn explain(&self, what: v1::explain_request::What) -> v1::Explanation {
        let request = v1::ExplainRequest { what: Some(what) };
        self.client().await.explain(request).await.unwrap().into_inner().explanation.unwrap()
    }
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    tokio::time::timeout(LIMIT, stream.message()).await.expect("in time").unwrap().expect("the stream goes on")
}

#[tokio::test]
async fn tenants_come_in_turn_and_hear_who_is_before_them() {
    let caps = "admission: {tenants: [{name: blue, weight: 2}, {name: green, leasesMax: 1}]}\n";
    let node = Node::with(caps);
    let held = node.fill().await;
    for id in ["red0", "red1", "red2"] {
        node.waiting(node.of("red", id)).await;
    }
    for id in ["blue0", "blue1"] {
        node.waiting(node.of("blue", id)).await;
    }
    let order: Vec<_> = node.tickets().await.into_iter().map(|ticket| ticket.request_id).collect();
    assert_eq!(order, ["blue0", "red0", "blue1", "red1", "red2"], "twice the weight, half the cost");
    let of_red = v1::ListTicketsRequest { tenant: "red".to_owned(), ..Default::default() };
    let of_red = node.client().await.list_tickets(of_red).await.unwrap().into_inner().tickets;
    assert_eq!(of_red.iter().map(|ticket| ticket.position).collect::<Vec<_>>(), [2, 4, 5]);
    assert_eq!(codes(&of_red[2].reasons), ["MEMORY_HELD", "QUEUE_AHEAD"]);
    assert!(of_red[2].reasons[1].message.starts_with("4 builds wait before it"), "{:?}", of_red[2].reasons);

    let told = node.explain(v1::explain_request::What::RequestId("red2".to_owned())).await;
    assert_eq!((told.ahead, told.head_request_id.as_str(), told.verdict()), (4, "blue0", v1::Verdict::Waits));
    let ahead: Vec<_> = told.ahead_of.iter().map(|of| (of.tenant.as_str(), of.builds)).collect();
    assert_eq!(ahead, [("blue", 2), ("red", 2)]);
    assert_eq!((told.holders.len(), told.holders[0].held.as_ref().unwrap().memory_bytes), (3, Some(MEMORY)));
    assert!(told.head_starts.is_some() && told.room_at.is_some(), "{told:?}");
    let told = node.explain(v1::explain_request::What::Build(node.build(4 * MEMORY))).await;
    assert_eq!((told.verdict(), codes(&told.reasons)), (v1::Verdict::Never, vec!["MEMORY_BUDGET"]));
    let output = node.agent.stoker().run(["explain", "red2"]).expect_code(0);
    assert!(output.stdout.contains("4 builds: 2 of blue, 2 of red"), "{}", output.stdout);
    let unknown = node.agent.stoker().run(["explain", "nothing"]).expect_code(2);
    assert!(unknown.stderr.contains("no ticket, no lease and no request"), "{}", unknown.stderr);

    for lease in &held[..2] {
        node.release(&lease.id).await;
    }
    let live: Vec<_> = node.live().await.into_iter().map(|lease| lease.request_id).collect();
    assert_eq!(live, ["fill2", "blue0", "red0"]);

    // A tenant at its cap waits for itself, with a reason of its own.
    node.release(&held[2].id).await;
    let blue = node.live().await.into_iter().find(|lease| lease.request_id == "blue1").unwrap();
    node.release(&blue.id).await;
    let red = node.live().await.into_iter().find(|lease| lease.request_id == "red1").unwrap();
    for ticket in node.tickets().await {
        node.client().await.cancel_ticket(v1::CancelTicketRequest { ticket_id: ticket.id }).await.unwrap();
    }
    node.release(&red.id).await;
    assert!(matches!(node.admit(node.of("green", "green0")).await.unwrap(), Decision::Granted(_)));
    let waiting = node.waiting(node.of("green", "green1")).await;
    assert!(codes(&waiting.reasons).contains(&"TENANT_QUOTA"), "{waiting:?}");
    let wrong = v1::AdmitRequest { priority: 101, ..node.of("red", "wrong") };
    let refused = node.admit(wrong).await.unwrap_err();
    assert_eq!((refused.code(), violations(&refused)), (Code::InvalidArgument, vec!["priority".to_owned()]));
}

#[tokio::test]
async fn what_ran_out_of_memory_is_tried_once_more_one_step_up() {
    let mut node = Node::start_small().await;
    let first = match node.admit(node.small("first")).await.unwrap() {
        Decision::Granted(lease) => lease,
        other => panic!("{other:?}"),
    };
    let ended = node.ends(&first.id, v1::Outcome::OutOfMemoryLimit).await;
    let advice = ended.retry.unwrap();
    let advised = advice.size.unwrap();
    assert!(
        advice.allowed && advised.memory_bytes.unwrap() > first.sizing.unwrap().size.unwrap().memory_bytes.unwrap()
    );
    let retry = |id: &str, of: &str| v1::AdmitRequest {
        request_id: id.to_owned(),
        retry_of: of.to_owned(),
        ..v1::AdmitRequest::default()
    };
    let again = match node.admit(retry("again", &first.id)).await.unwrap() {
        Decision::Granted(lease) => lease,
        other => panic!("{other:?}"),
    };
    assert_eq!((again.attempt, &again.retry_of, again.source == first.source), (2, &first.id, true));
    assert_eq!(again.sizing.clone().unwrap().size.unwrap().memory_bytes, advised.memory_bytes);
    assert!(again.sizing.unwrap().basis.iter().any(|basis| basis.tier() == v1::Tier::Ladder));
    node.agent.restart();
    match node.admit(retry("again", &first.id)).await.unwrap() {
        Decision::Granted(same) => assert_eq!(same.id, again.id),
        other => panic!("{other:?}"),
    }
    let other = node.admit(retry("other", &first.id)).await.unwrap_err();
    assert_eq!((other.code(), reason(&other).as_str()), (Code::AlreadyExists, "RETRIED_ALREADY"));
    let live = node.admit(retry("live", &again.id)).await.unwrap_err();
    assert_eq!((live.code(), reason(&live).as_str()), (Code::FailedPrecondition, "LEASE_LIVE"));
    let last = node.ends(&again.id, v1::Outcome::OutOfMemoryLimit).await;
    assert_eq!(codes(&last.retry.unwrap().reasons), ["RETRIES_USED_UP"]);
    match node.admit(retry("final", &again.id)).await.unwrap() {
        Decision::Rejected(rejection) => assert_eq!(codes(&rejection.reasons), ["RETRIES_USED_UP"]),
        other => panic!("{other:?}"),
    }
}

impl Node {
    async fn start_small() -> Self {
        Self::with("")
    }

    /// A build of a quarter of the usual memory.
    fn small(&self, id: &str) -> v1::AdmitRequest {
        v1::AdmitRequest { build: Some(self.build(MEMORY / 4)), ..self.request(id) }
    }
}

#[tokio::test]
async fn who_watches_sees_the_leases_and_then_each_change_from_any_token_that_is_kept() {
    let mut node = Node::with("");
    let first = node.granted("first").await;
    let watch = |token: &str| v1::WatchLeasesRequest { watch_token: token.to_owned() };
    let mut all = node.client().await.watch_leases(watch("")).await.unwrap().into_inner();
    let told = next(&mut all).await;
    assert_eq!((told.lease.unwrap().id, told.watch_token.as_str()), (first.id.clone(), ""));
    let state = next(&mut all).await;
    assert_eq!(state.lease, None, "that was all");
    let listed = node.client().await.list_leases(v1::ListLeasesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.watch_token, state.watch_token);
    let second = node.granted("second").await;
    node.release(&first.id).await;
    let mut from_list = node.client().await.watch_leases(watch(&listed.watch_token)).await.unwrap().into_inner();
    let mut tokens = Vec::new();
    for stream in [&mut all, &mut from_list] {
        for (id, state) in [(&second.id, v1::LeaseState::Reserved), (&first.id, v1::LeaseState::Released)] {
            let change = next(stream).await;
            let lease = change.lease.unwrap();
            assert_eq!((&lease.id, lease.state()), (id, state));
            tokens.push(change.watch_token);
        }
    }
    assert_eq!(tokens[..2], tokens[2..]);
    let mut resumed = node.client().await.watch_leases(watch(&tokens[0])).await.unwrap().into_inner();
    assert_eq!(next(&mut resumed).await.lease.unwrap().id, first.id);
    let foreign = node.client().await.watch_leases(watch("x")).await.unwrap_err();
    assert_eq!((foreign.code(), violations(&foreign)), (Code::InvalidArgument, vec!["watch_token".to_owned()]));
    drop((all, from_list, resumed));
    node.agent.restart();
    let old = node.client().await.watch_leases(watch(&tokens[1])).await.unwrap_err();
    assert_eq!(old.code(), Code::OutOfRange, "{old:?}");
}

/// Those who wait, the first of them on streams, the others with clients that went and left their tickets.
struct Many {
    tickets: usize,
    clients: usize,
    /// So many are granted, one after the other.
    grants: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_wait_a_grant_wakes_one_and_in_the_order_of_the_queue() {
    many_wait(&Many { tickets: 600, clients: 150, grants: 12 }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; with --nocapture it says how much memory they take"]
async fn of_ten_thousand_tickets_and_a_thousand_clients_a_grant_wakes_one_and_in_order() {
    many_wait(&Many { tickets: 10_000, clients: 1_000, grants: 300 }).await;
}

async fn many_wait(many: &Many) {
    const TENANTS: usize = 10;
    /// The reservations last for half an hour: nobody is told to ask again before this.
    const HINT_MIN: Duration = Duration::from_secs(95);
    let Many { tickets, clients, grants } = *many;
    let began = std::time::Instant::now();
    let node = Node::with("admission: {ticketsMax: 10000}\n");
    let mut held: Vec<_> = node.fill().await.into_iter().map(|lease| lease.id).collect();
    let before = resident(node.agent.pid());
    let channels = join_all((0..16).map(|_| node.client())).await;
    // The first of each tenant asks first, so that the order is known: round and round.
    let id = |number: usize| format!("wait{number:05}");
    let open = async |number: usize| {
        let lasting = v1::AdmitRequest {
            bind_within: seconds(1800),
            ..node.of(&format!("tenant{}", number % TENANTS), &id(number))
        };
        let request = v1::AwaitAdmissionRequest { admit: Some(lasting) };
        let mut stream = channels[number % channels.len()].clone().await_admission(request).await.unwrap().into_inner();
        assert!(matches!(next(&mut stream).await.decision, Some(Awaited::Waiting(_))));
        stream
    };
    let mut streams = Vec::new();
    for number in 0..clients {
        streams.push(open(number).await);
    }
    let others = futures_util::stream::iter((clients..tickets).map(open)).buffer_unordered(64);
    assert_eq!(others.map(drop).count().await, tickets - clients);
    let waiting = node.agent.node().await.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(usize::try_from(waiting.status.unwrap().counts.unwrap().tickets), Ok(tickets));
    let (grown, filled) = (resident(node.agent.pid()).saturating_sub(before), began.elapsed());
    assert!(grown < 24 << 20 | (tickets as u64 * 16) << 10, "{grown} bytes for {tickets} tickets");
    for (turn, stream) in streams.iter_mut().take(grants).enumerate() {
        node.release(&held[turn]).await;
        let lease = loop {
            match next(stream).await.decision {
                Some(Awaited::Granted(lease)) => break lease,
                Some(Awaited::Waiting(_)) => {} // its hint had passed
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(lease.request_id, id(turn));
        held.push(lease.id);
    }
    let took = began.elapsed() - filled;
    let last = resident(node.agent.pid()).saturating_sub(before);
    eprintln!(
        "{tickets} tickets, {clients} clients within {filled:.1?}: {} MiB more resident; {grants} grants in {took:.1?}, then {} MiB",
        grown >> 20,
        last >> 20
    );
    assert!(last < 24 << 20 | (tickets as u64 * 16) << 10, "{last} bytes after {grants} grants");
    // Nobody else heard of it: what they wait for has not changed but for their place, which they hear with their hint.
    let others = streams.iter_mut().skip(grants);
    let heard: Vec<_> = others.filter_map(|stream| stream.message().now_or_never()).collect();
    let granted = |told: &v1::AwaitAdmissionResponse| matches!(told.decision, Some(Awaited::Granted(_)));
    assert!(!heard.iter().flatten().flatten().any(granted), "nobody is granted out of turn");
    if began.elapsed() < HINT_MIN {
        assert_eq!(heard.len(), 0, "a grant wakes one");
    }
}

/// What the process has in memory.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_queue_of_tenants_outlives_a_kill_in_its_order() {
    let mut node = Node::with("");
    node.fill().await;
    for (tenant, id) in [("red", "r0"), ("red", "r1"), ("blue", "b0"), ("red", "r2"), ("green", "g0")] {
        node.waiting(node.of(tenant, id)).await;
    }
    node.waiting(v1::AdmitRequest { priority: 9, ..node.of("red", "urgent") }).await;
    let order = async |node: &Node| -> Vec<(String, i32)> {
        node.tickets().await.into_iter().map(|ticket| (ticket.request_id, ticket.position)).collect()
    };
    let before = order(&node).await;
    assert_eq!(before.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["b0", "g0", "urgent", "r0", "r1", "r2"]);
    node.agent.restart();
    assert_eq!(order(&node).await, before);
    tokio::time::timeout(Duration::from_secs(10), node.live()).await.unwrap();
}
