//! SIGKILL at every transition of a lease: what was confirmed stands, nothing is there twice, nothing is there for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use stoker_proto::v1::admission_service_client::AdmissionServiceClient;
use tonic::transport::Channel;

use super::*;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

/// Those who build at once.
const BUILDERS: usize = 6;

/// What a caller was told of one request: the lease, and how far it had come.
type Told = BTreeMap<String, (String, v1::LeaseState)>;

/// Admits, binds and releases until the agent is gone, and notes what it was told.
async fn build_on(
    mut client: AdmissionServiceClient<Channel>,
    name: String,
    url: String,
    holder: v1::Process,
    told: Arc<Mutex<Told>>,
) -> Vec<String> {
    let mut asked = Vec::new();
    for number in 0.. {
        let id = format!("{name}-{number}");
        asked.push(id.clone());
        let source = v1::Source { max_age: Some(seconds(3600)), ..branch(&url, "main") };
        let Ok(answer) = client.admit(within(order(&id, source, small()), LIMIT)).await else { break };
        let Answer::Granted(lease) = Answer::from(answer.into_inner().decision.unwrap()) else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let note = |state| drop(told.lock().unwrap().insert(id.clone(), (lease.id.clone(), state)));
        note(lease.state());
        let to = Some(v1::bind_request::To::Process(holder));
        if client.bind(v1::BindRequest { lease_id: lease.id.clone(), to }).await.is_err() {
            break;
        }
        note(v1::LeaseState::Bound);
        let end = v1::ReleaseRequest {
            lease_id: lease.id.clone(),
            outcome: v1::Outcome::Succeeded.into(),
            ..Default::default()
        };
        // Some go on.
        if number % 3 == 2 {
            continue;
        }
        if client.release(end).await.is_err() {
            break;
        }
        note(v1::LeaseState::Released);
    }
    asked
}

async fn all(agent: &Agent) -> Vec<v1::Lease> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let states = [1, 2, 3, 4, 5].to_vec();
        let request = v1::ListLeasesRequest { states, page_size: 1000, page_token, ..Default::default() };
        let page = agent.admission().await.list_leases(request).await.unwrap().into_inner();
        found.extend(page.leases);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// `STOKER_LEASE_KILL_ROUNDS` (4) kills, at moments that `STOKER_KILL_SEED` decides.
#[tokio::test(flavor = "multi_thread")]
async fn leases_outlive_kills_at_any_moment_once_and_not_for_ever() {
    let rounds = from_environment("STOKER_LEASE_KILL_ROUNDS", 4);
    let seed = from_environment("STOKER_KILL_SEED", jiff::Timestamp::now().as_millisecond().unsigned_abs());
    eprintln!("STOKER_LEASE_KILL_ROUNDS={rounds} STOKER_KILL_SEED={seed}");
    let mut chance = seed | 1;
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    // Few leases, so that some wait: grants out of the queue are killed as well.
    let few = format!("admission: {{leasesMax: 8}}\n{}", configuration(PLAIN, &[&url]));
    let mut agent = start(&few);
    mirror_ready(&agent, &url).await;
    let holder = Holder::start(&agent, "exec sleep 100000");
    let told: Arc<Mutex<Told>> = Arc::default();
    let (mut asked, mut last) = (BTreeSet::new(), 0);
    for round in 0..rounds {
        let mut builders = Vec::new();
        for builder in 0..BUILDERS {
            let client = agent.admission().await;
            let name = format!("r{round}-b{builder}");
            builders.push(tokio::spawn(build_on(client, name, url.clone(), holder.process(), Arc::clone(&told))));
        }
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        // Not a condition but a moment: that is what the test is about.
        tokio::time::sleep(Duration::from_millis(20 + chance % 400)).await;
        agent.kill9();
        for builder in builders {
            asked.extend(builder.await.unwrap());
        }
        agent.launch();
        agent.wait_ready();
        let leases = all(&agent).await;
        let by_request: BTreeMap<_, _> = leases.iter().map(|lease| (lease.request_id.clone(), lease)).collect();
        assert_eq!(by_request.len(), leases.len(), "round {round}: a request has two leases");
        for (request, (id, state)) in told.lock().unwrap().iter() {
            let lease = by_request.get(request).unwrap_or_else(|| panic!("round {round}: {request} is lost"));
            assert_eq!(&lease.id, id, "round {round}: {request} has another lease");
            assert!(lease.state() as i32 >= *state as i32, "round {round}: {lease:?} was {state:?}");
        }
        assert!(
            by_request.keys().all(|request| asked.contains(request)),
            "round {round}: leases that nobody asked for"
        );
        // Asked again, each gets what it had; then all of them end.
        for lease in leases.iter().filter(|lease| lease.ended_at.is_none()) {
            let source = v1::Source { max_age: Some(seconds(3600)), ..branch(&url, "main") };
            let same = admit(&agent, order(&lease.request_id, source, small())).await.unwrap().granted();
            assert_eq!(same.id, lease.id);
            release(&agent, &lease.id).await.unwrap();
        }
        for ticket in tickets(&agent).await {
            let cancel = v1::CancelTicketRequest { ticket_id: ticket.id };
            // One may have been granted just now, and is then released below.
            let _ = agent.admission().await.cancel_ticket(cancel).await;
        }
        for lease in all(&agent).await.iter().filter(|lease| lease.ended_at.is_none()) {
            release(&agent, &lease.id).await.unwrap();
        }
        let status = status(&agent).await;
        assert_eq!(status.counts.unwrap().leases, 0, "round {round}: a lease is eternal");
        last = leases.len();
    }
    eprintln!("{rounds} kills, {} requests told of a lease, {last} leases at the end", told.lock().unwrap().len());
}
