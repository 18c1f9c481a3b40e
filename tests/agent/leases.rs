//! SIGKILL at every transition of a lease: what was confirmed stands, nothing is there twice, nothing is there for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
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

/// One who builds until the agent is gone.
struct Builder {
    client: AdmissionServiceClient<Channel>,
    name: String,
    /// Where among the ways to build it begins.
    first: usize,
    url: String,
    root: PathBuf,
    /// A process that stays.
    holder: v1::Process,
    told: Arc<Mutex<Told>>,
}

impl Builder {
    /// Admits, binds and ends leases in each way that there is, and notes what it was told.
    async fn build(mut self) -> Vec<String> {
        let mut asked = Vec::new();
        for number in self.first.. {
            let id = format!("{}-{number}", self.name);
            asked.push(id.clone());
            match self.one(&id, number).await {
                Ok(true) => {}
                Ok(false) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(_) => break,
            }
        }
        asked
    }

    fn note(&self, id: &str, lease: &v1::Lease) {
        self.told.lock().unwrap().insert(id.to_owned(), (lease.id.clone(), lease.state()));
    }

    /// Whether it was granted.
    async fn one(&mut self, id: &str, number: usize) -> Result<bool, Status> {
        let source = v1::Source { max_age: Some(seconds(3600)), ..branch(&self.url, "main") };
        let way = number % 6;
        // It runs out: nobody binds it.
        let bind_within = (way == 0).then(|| seconds(1));
        let request = v1::AdmitRequest { bind_within, ..order(id, source, small()) };
        let answer = self.client.admit(within(request, LIMIT)).await?.into_inner();
        let Answer::Granted(lease) = Answer::from(answer.decision.unwrap()) else { return Ok(false) };
        self.note(id, &lease);
        let lease_id = lease.id.clone();
        if way == 0 {
            return Ok(true);
        }
        if way == 1 {
            let renew = v1::RenewRequest { lease_id: lease_id.clone(), reserve_for: Some(seconds(60)) };
            let renewed = self.client.renew(renew).await?.into_inner();
            self.note(id, &renewed.lease.unwrap());
        }
        // One that goes without a word.
        let mut short = (way == 2).then(|| Holder::below(&self.root, "exec sleep 100000"));
        let holder = short.as_ref().map_or(self.holder, Holder::process);
        let to = Some(v1::bind_request::To::Process(holder));
        let bound = self.client.bind(v1::BindRequest { lease_id: lease_id.clone(), to }).await?.into_inner();
        self.note(id, &bound.lease.unwrap());
        if let Some(short) = &mut short {
            short.end();
            return Ok(true);
        }
        // One goes on; the others end well, or at their own limit.
        let outcome = match way {
            3 => return Ok(true),
            4 => v1::Outcome::OutOfMemoryLimit,
            _ => v1::Outcome::Succeeded,
        };
        let end = v1::ReleaseRequest { lease_id, outcome: outcome.into(), ..Default::default() };
        let ended = self.client.release(end).await?.into_inner().lease.unwrap();
        self.note(id, &ended);
        Ok(true)
    }
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

pub(super) fn from_environment(name: &str, otherwise: u64) -> u64 {
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
    let few = format!("admission: {{leasesMax: 12}}\n{}", configuration(PLAIN, &[&url]));
    let mut agent = start(&few);
    mirror_ready(&agent, &url).await;
    let holder = Holder::start(&agent, "exec sleep 100000");
    let told: Arc<Mutex<Told>> = Arc::default();
    let (mut asked, mut last, mut most, mut ends) = (BTreeSet::new(), 0, 0, BTreeSet::new());
    for round in 0..rounds {
        let mut builders = Vec::new();
        for builder in 0..BUILDERS {
            let (client, name) = (agent.admission().await, format!("r{round}-b{builder}"));
            let (url, root, told) = (url.clone(), agent.root().to_owned(), Arc::clone(&told));
            let one = Builder { client, name, first: builder, url, root, holder: holder.process(), told };
            builders.push(tokio::spawn(one.build()));
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
        most = most.max(told.lock().unwrap().len());
        for (request, (id, state)) in told.lock().unwrap().iter() {
            let lease = by_request.get(request).unwrap_or_else(|| panic!("round {round}: {request} is lost"));
            assert_eq!(&lease.id, id, "round {round}: {request} has another lease");
            assert!(lease.state() as i32 >= *state as i32, "round {round}: {lease:?} was {state:?}");
        }
        assert!(
            by_request.keys().all(|request| asked.contains(request)),
            "round {round}: leases that nobody asked for"
        );
        for lease in &leases {
            ends.insert((lease.state(), lease.outcome()));
        }
        // What runs out, and whose holder went, ends in the next round.
        if round % 2 == 0 {
            continue;
        }
        loop {
            let waiting = tickets(&agent).await;
            for ticket in &waiting {
                let cancel = v1::CancelTicketRequest { ticket_id: ticket.id.clone() };
                // One may have been granted just now, and is then released below.
                let _ = agent.admission().await.cancel_ticket(cancel).await;
            }
            if waiting.is_empty() {
                break;
            }
        }
        // Asked again, each gets what it had; then all of them end.
        for lease in leases.iter().filter(|lease| lease.ended_at.is_none()) {
            let source = v1::Source { max_age: Some(seconds(3600)), ..branch(&url, "main") };
            let way: usize = lease.request_id.rsplit('-').next().unwrap().parse().unwrap();
            let bind_within = way.is_multiple_of(6).then(|| seconds(1));
            let again = v1::AdmitRequest { bind_within, ..order(&lease.request_id, source, small()) };
            assert_eq!(admit(&agent, again).await.unwrap().granted().id, lease.id);
            release(&agent, &lease.id).await.unwrap();
        }
        for lease in all(&agent).await.iter().filter(|lease| lease.ended_at.is_none()) {
            release(&agent, &lease.id).await.unwrap();
        }
        let status = status(&agent).await;
        assert_eq!(status.counts.unwrap().leases, 0, "round {round}: a lease is eternal");
        last = leases.len();
        // Only so many of those that ended are remembered.
        told.lock().unwrap().clear();
    }
    eprintln!(
        "{rounds} kills, {} requests, up to {most} told of a lease in two rounds, {last} remembered",
        asked.len()
    );
    eprintln!("seen: {ends:?}");
    if rounds >= 20 {
        let states: BTreeSet<_> = ends.iter().map(|(state, _)| *state).collect();
        assert_eq!(states.len(), 5, "a transition was never reached: {ends:?}");
    }
}
