//! A simulated agent: a node of some size at a loopback address of its own, whose ledger is the real one. It answers over
//! real TCP and real gRPC; it has no disk, so a grant costs no sync.

mod face;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use face::Face;
use serde_json::Value;
use stoker_core::admission::{Answer, Command, Facts, Holder, Lease, LeaseState, Ledger, Refused, Reply};
use stoker_core::identity::LeaseId;
use stoker_core::invariants;
use stoker_core::quantity::Timestamp;
use stoker_core::sizing::Outcome;
use stoker_proto::v1;
use stoker_proto::v1::admission_service_server::AdmissionServiceServer;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use super::objects::text;
use super::wire::{Fate, Wire};
use super::words;
use crate::support::wait;

/// What all agents together were asked and said.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) admits: AtomicU64,
    pub(crate) grants: AtomicU64,
    pub(crate) waits: AtomicU64,
    pub(crate) renewals: AtomicU64,
    pub(crate) releases: AtomicU64,
    pub(crate) rooms: AtomicU64,
    pub(crate) streams: AtomicU64,
    /// From room that came free to the next grant there.
    pub(crate) filled: Mutex<Vec<Duration>>,
}

/// What an agent has on its disk and in its head.
struct State {
    ledger: Ledger,
    facts: Facts,
    incarnation: u64,
    serial: u64,
    room_since: Option<Instant>,
}

impl State {
    fn fresh(&mut self, name: &str) -> LeaseId {
        self.serial += 1;
        lease_id(&format!("{name}-{}-{:08}", self.incarnation, self.serial))
    }
}

/// One agent, up or not.
pub(crate) struct Simulated {
    pub(crate) name: String,
    /// The port is that of all agents of the farm.
    pub(crate) address: SocketAddr,
    mirrors: Vec<String>,
    labels: std::collections::HashMap<String, String>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    fate: Mutex<Option<Fate>>,
    /// When it last was away, or did not answer.
    away: Mutex<Option<Instant>>,
    tls: Option<Identity>,
    counts: Arc<Counts>,
}

/// The one at this number: 127.1.0.1 is the first.
pub(crate) fn address(number: usize) -> Ipv4Addr {
    let [_, _, high, low] = u32::try_from(number + 1).unwrap().to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

pub(crate) fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

impl Simulated {
    /// One of so many CPUs, and twice as many GiB.
    pub(crate) fn new(
        (number, port): (usize, u16),
        cpus: u64,
        mirrors: Vec<String>,
        tls: Option<Identity>,
        counts: &Arc<Counts>,
    ) -> Arc<Self> {
        let state = State {
            ledger: Ledger::default(),
            facts: words::facts(cpus, cpus * 2),
            incarnation: 0,
            serial: 0,
            room_since: None,
        };
        let name = format!("node-{number:05}");
        Arc::new(Self {
            labels: [("kubernetes.io/hostname".to_owned(), name.clone())].into(),
            name,
            address: (address(number), port).into(),
            mirrors,
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
            fate: Mutex::new(None),
            away: Mutex::new(None),
            tls,
            counts: Arc::clone(counts),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Listens; with or without what its ledger had before.
    pub(crate) fn start(self: &Arc<Self>, on: &Handle, with_journal: bool) {
        assert!(self.fate.lock().unwrap().is_none(), "{} runs already", self.name);
        {
            let mut state = self.state();
            state.incarnation += 1;
            if !with_journal {
                state.ledger = Ledger::default();
            }
        }
        let _entered = on.enter();
        let listen = || {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(self.address)?;
            socket.listen(64)
        };
        // Who listened there before may still be about to end.
        let mut listener = listen();
        wait::until(Duration::from_secs(10), "the address comes free", || {
            if listener.is_err() {
                listener = listen();
            }
            listener.is_ok()
        });
        let listener = listener.unwrap();
        let fate = Fate::new();
        let accepted = {
            let fate = fate.clone();
            TcpListenerStream::new(listener).map(move |stream| stream.map(|stream| Wire::new(stream, &fate)))
        };
        let service = AdmissionServiceServer::new(Face(Arc::clone(self)));
        let dead = fate.dead.clone();
        let mut server = Server::builder();
        if let Some(identity) = &self.tls {
            server = server.tls_config(ServerTlsConfig::new().identity(identity.clone())).unwrap();
        }
        on.spawn(async move {
            let served = server.add_service(service).serve_with_incoming(accepted);
            tokio::select! {
                () = dead.cancelled() => {}
                served = served => served.unwrap(),
            }
        });
        *self.fate.lock().unwrap() = Some(fate);
    }

    /// Nobody listens there any more, and what was open is cut.
    pub(crate) fn kill(&self) {
        if let Some(fate) = self.fate.lock().unwrap().take() {
            fate.dead.cancel();
            *self.away.lock().unwrap() = Some(Instant::now());
        }
    }

    /// It hears and says nothing, or again.
    pub(crate) fn silence(&self, silent: bool) {
        if let Some(fate) = &*self.fate.lock().unwrap() {
            fate.silence(silent);
            *self.away.lock().unwrap() = Some(Instant::now());
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.fate.lock().unwrap().is_some()
    }

    /// Whether somebody can ask it.
    pub(crate) fn answers(&self) -> bool {
        self.fate.lock().unwrap().as_ref().is_some_and(|fate| !fate.is_silent())
    }

    /// Whether what it holds may have been given up while nobody could tell it so.
    pub(crate) fn was_away_within(&self, time: Duration) -> bool {
        !self.answers() || self.away.lock().unwrap().is_some_and(|at| at.elapsed() < time)
    }

    /// Whose lease that is, by the request that was granted it.
    pub(crate) fn request_of(&self, lease: &str) -> Option<String> {
        let lease = self.state().ledger.lease(&lease_id(lease)).cloned();
        lease.map(|lease| lease.request_id.to_string())
    }

    fn tell(&self, state: &mut State, command: &Command) -> Reply {
        let (reply, events) = state.ledger.decide(command, &state.facts, now());
        if !events.is_empty() {
            events.into_iter().for_each(|event| state.ledger.apply(event));
            self.changed.send_modify(|version| *version += 1);
        }
        reply
    }

    /// What ran out ends. Ended leases of hours ago are not kept for the whole day, for there are very many pods.
    pub(crate) fn advance(&self) {
        if self.runs() {
            let mut state = self.state();
            self.tell(&mut state, &Command::Advance);
            let many = state.ledger.ended_count().saturating_sub(2000);
            if many > 0 {
                self.tell(&mut state, &Command::Forget(many));
            }
        }
    }

    /// The kubelet mounts the pod's volume: its lease is bound.
    pub(crate) fn bind(&self, lease: &str, pod: (&str, &str, &str)) -> Result<(), Refused> {
        let (namespace, name, uid) = pod;
        let holder = Holder::Pod { namespace: namespace.into(), name: name.into(), uid: uid.into() };
        let command = Command::Bind { lease: lease_id(lease), holder, controller: String::new() };
        match self.tell(&mut self.state(), &command) {
            Reply::Refused(why) => Err(why),
            _ => Ok(()),
        }
    }

    /// What a volume does that finds no lease for its pod: it asks for one, and binds that.
    pub(crate) fn own(&self, pod: &Value) -> Option<String> {
        let of = |path| text(pod, path).to_owned();
        let (namespace, name, uid) = (of("/metadata/namespace"), of("/metadata/name"), of("/metadata/uid"));
        let amounts = &pod["spec"]["containers"][0]["resources"]["requests"];
        let gib = amounts["memory"].as_str()?.strip_suffix("Gi")?.parse::<i64>().ok()?;
        let declared = v1::Size {
            cpu_millis: Some(amounts["cpu"].as_str()?.parse::<i64>().ok()? * 1000),
            memory_bytes: Some(gib << 30),
            ..Default::default()
        };
        let build = v1::Build { declared: Some(declared), ..Default::default() };
        let admit = v1::AdmitRequest { request_id: format!("csi-{uid}"), build: Some(build), ..Default::default() };
        let request = Box::new(words::request(&admit).ok()?);
        let lease = {
            let mut state = self.state();
            let lease = state.fresh(&self.name);
            self.tell(&mut state, &Command::Admit { request, lease, ticket: None, awaited: false })
        };
        let Reply::Answer(Answer::Granted(lease)) = lease else { return None };
        self.bind(lease.id.as_str(), (&namespace, &name, &uid)).ok()?;
        Some(lease.id.to_string())
    }

    /// The pod ended, and its lease with it.
    pub(crate) fn end(&self, lease: &str) {
        let lease = lease_id(lease);
        let mut state = self.state();
        self.tell(&mut state, &Command::Release { lease, outcome: Outcome::Succeeded, exit_code: None, usage: None });
        state.room_since = Some(Instant::now());
    }

    /// Leases that hold something now, also where nobody has looked since they ran out.
    pub(crate) fn live(&self) -> Vec<Arc<Lease>> {
        let now = now();
        let state = self.state();
        let holds = |lease: &&Arc<Lease>| lease.state == LeaseState::Bound || lease.bind_by >= now;
        state.ledger.live().filter(holds).cloned().collect()
    }

    /// What always holds of a ledger.
    pub(crate) fn holds(&self) -> bool {
        let state = self.state();
        invariants::never_over_budget(&state.ledger, &state.facts)
            && invariants::one_place_a_request(&state.ledger)
            && invariants::lives_are_whole(&state.ledger)
    }
}

fn lease_id(text: &str) -> LeaseId {
    LeaseId::try_from(text.to_owned()).unwrap()
}
