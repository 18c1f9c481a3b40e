//! All that is known, in one task: what comes in changes it, then it is looked at as a whole, and what is to be done is
//! begun. Changes that come together are looked at together.

mod done;
mod keep;
mod look;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::placement::{Farm, Line, Room};
use stoker_core::quantity::{Amounts, Span};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::act::{Actor, Done};
use super::agents::{Agents, SILENT_AT_MOST};
use super::answer::Kept;
use super::elect::Leading;
use super::face::Face;
use super::pod::Pod;
use super::tell::{self, Teller, Told};
use super::{Options, watch};
use crate::cli::client::Client;
use crate::node::now;

/// What came in and was not looked at.
const INPUTS_MAX: usize = 4096;
/// Changes that come within it are looked at together.
const TOGETHER: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_secs(1);
/// Leases that are given back at a time.
const RELEASES_MAX: usize = 512;
/// What came in and is taken before the next look.
const TAKEN_MAX: usize = 512;
/// A node that is silent for so long, and that no pod is meant for, is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// What comes in.
pub(super) enum Input {
    /// All pods of a watch follow.
    Listing(usize),
    /// A pod as it is now; of a list where it says which.
    Pod(Box<Pod>, Option<usize>),
    Listed(usize),
    /// A pod is no more, or no more ours, or on its node.
    PodGone(String),
    /// All agents, and the nodes of their endpoints.
    Addresses(BTreeMap<SocketAddr, String>),
    /// What a node has room for.
    Room {
        address: SocketAddr,
        node: String,
        client: Client,
        room: Box<Room>,
    },
    /// An agent is not heard.
    Silent(SocketAddr, String),
}

/// What is remembered of a pod beside what stands on it.
#[derive(Debug, Default)]
struct Memory {
    /// Up to this attempt it is known that there is no lease.
    settled: u32,
    not_before: Option<Instant>,
    renewed: Option<Instant>,
    /// How often it was refused since it was placed.
    refusals: u32,
    /// What a node took it to need.
    sized: Option<Amounts>,
    /// Its node said that the lease on it was given for it.
    ours: bool,
    /// Its node said that the lease on it was not.
    foreign: bool,
    /// Its node said that the lease on it has ended.
    ended: bool,
    /// What a node said last, where that is more than that it is full.
    said: Option<Told>,
    /// Since when no node has room for it, and how many were placed before.
    waits: Option<(Instant, u64)>,
    /// Until then no node is kept for it.
    no_keep_before: Option<Instant>,
}

/// A node, and the request by which it was asked.
type Asked = (String, String);

struct Board {
    options: Options,
    actor: Actor,
    face: Face,
    farm: Farm,
    line: Line,
    pods: BTreeMap<String, Pod>,
    /// How many of each namespace.
    held: BTreeMap<String, usize>,
    /// How many have no gate any more.
    ungated: usize,
    memory: BTreeMap<String, Memory>,
    clients: BTreeMap<String, (SocketAddr, Client)>,
    nodes: BTreeMap<SocketAddr, String>,
    /// Since when each node that is not heard is not.
    silent: BTreeMap<String, Instant>,
    agents: Agents,
    teller: Teller,
    acts: JoinSet<(String, Option<Asked>, Done)>,
    /// For whom, and of which tenant those are.
    acting: BTreeMap<String, String>,
    /// How many of these ask each node.
    asking: BTreeMap<String, usize>,
    doubts: BTreeMap<String, done::Doubt>,
    /// By the pod: the node that is kept for it, and since when.
    kept: BTreeMap<String, (String, Instant)>,
    /// So many were placed.
    placed: u64,
    renewals: JoinSet<(String, String, Kept)>,
    /// What was given back, where nobody freed its room before.
    releases: JoinSet<Option<Asked>>,
    /// Of each watch what its list had, and whether it ever came to its end.
    listed: BTreeMap<usize, BTreeSet<String>>,
    whole: BTreeSet<usize>,
    /// Some were not held: all are listed again when there is room for them.
    left_out: bool,
    /// Has them listed again.
    again: Arc<Notify>,
    /// When all who wait are looked at again, at the soonest.
    next: Instant,
    /// Where the last look had to stop.
    from: Option<String>,
    /// Something came that was not looked at.
    is_due: bool,
    /// For so many pods a node to keep may be looked for in this look.
    keeps: usize,
}

/// Runs for as long as it is polled. Dropped, all that was on its way is.
pub(super) async fn run(options: Options, kube: kube::Client, leading: Leading, face: Face) {
    face.leads(true);
    let (inputs, mut input) = mpsc::channel(INPUTS_MAX);
    let (teller, told) = Teller::new();
    let mut watches = JoinSet::new();
    let (of_pods, of_agents) = (options.clone(), options.clone());
    let (pods_client, agents_client, sender) = (kube.clone(), kube.clone(), inputs.clone());
    let again = Arc::new(Notify::new());
    let listed_again = Arc::clone(&again);
    watches.spawn(async move { watch::pods(&of_pods, pods_client, sender, &listed_again).await });
    let sender = inputs.clone();
    watches.spawn(async move { watch::addresses(&of_agents, agents_client, sender).await });
    watches.spawn(tell::write(kube.clone(), options.identity.clone(), told));
    let mut board = Board {
        options,
        actor: Actor { kube, leading },
        face,
        farm: Farm::default(),
        line: Line::default(),
        pods: BTreeMap::new(),
        held: BTreeMap::new(),
        ungated: 0,
        memory: BTreeMap::new(),
        clients: BTreeMap::new(),
        nodes: BTreeMap::new(),
        silent: BTreeMap::new(),
        agents: Agents::default(),
        teller,
        acts: JoinSet::new(),
        acting: BTreeMap::new(),
        asking: BTreeMap::new(),
        doubts: BTreeMap::new(),
        kept: BTreeMap::new(),
        placed: 0,
        renewals: JoinSet::new(),
        releases: JoinSet::new(),
        listed: BTreeMap::new(),
        whole: BTreeSet::new(),
        left_out: false,
        again,
        next: Instant::now(),
        from: None,
        is_due: true,
        keeps: 0,
    };
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            Some(one) = input.recv() => board.take(one, &inputs),
            Some(Ok((uid, asked, done))) = board.acts.join_next() => board.done(&uid, asked, done),
            Some(Ok((uid, lease, kept))) = board.renewals.join_next() => board.renewed(&uid, &lease, kept),
            Some(given) = board.releases.join_next() => {
                if let Ok(Some((node, request))) = given {
                    board.farm.free(&node, &request, None);
                }
            }
            _ = tick.tick() => board.tick(),
            () = tokio::time::sleep_until(board.next.into()), if board.is_due => {}
            Some(_) = watches.join_next() => return, // a watch ends with its receiver alone
        }
        // What comes in the same moment is looked at together.
        tokio::time::sleep(TOGETHER).await;
        for _ in 0..TAKEN_MAX {
            let Ok(one) = input.try_recv() else { break };
            board.take(one, &inputs);
        }
        while let Some(Ok((uid, asked, done))) = board.acts.try_join_next() {
            board.done(&uid, asked, done);
        }
        board.is_due = true;
        board.look();
    }
}

impl Board {
    fn watches(&self) -> usize {
        self.options.namespaces.len().max(1)
    }

    fn take(&mut self, input: Input, inputs: &mpsc::Sender<Input>) {
        match input {
            Input::Listing(of) => drop(self.listed.insert(of, BTreeSet::new())),
            Input::Pod(pod, of) => {
                if let Some(listed) = of.and_then(|of| self.listed.get_mut(&of)) {
                    listed.insert(pod.uid.clone());
                }
                self.see(*pod);
            }
            Input::Listed(of) => {
                let listed = self.listed.remove(&of).unwrap_or_default();
                let namespace = self.options.namespaces.get(of);
                let of_it = |pod: &&Pod| namespace.is_none_or(|name| *name == pod.namespace);
                let gone = self.pods.values().filter(of_it).filter(|pod| !listed.contains(&pod.uid));
                let gone: Vec<String> = gone.map(|pod| pod.uid.clone()).collect();
                gone.iter().for_each(|uid| self.gone(uid));
                self.whole.insert(of);
                if self.whole.len() == self.watches() {
                    self.face.leads(false);
                }
            }
            Input::PodGone(uid) => self.gone(&uid),
            Input::Addresses(all) => {
                for address in self.agents.set(&all, &self.options, inputs) {
                    self.unheard(address, "it is no more among the agents' addresses");
                }
            }
            Input::Room { address, node, client, room } => {
                if let Some(before) = self.nodes.insert(address, node.clone()).filter(|before| *before != node) {
                    self.farm.away(&before);
                }
                self.silent.remove(&node);
                self.farm.told(&node, *room, now());
                self.clients.insert(node, (address, client));
            }
            Input::Silent(address, why) => self.unheard(address, &why),
        }
    }

    fn unheard(&mut self, address: SocketAddr, why: &str) {
        let Some(node) = self.nodes.remove(&address) else {
            tracing::debug!(%address, why, "an agent is not heard");
            return;
        };
        // An agent that began anew at another address may have spoken already.
        if self.clients.get(&node).is_some_and(|(of, _)| *of == address) {
            tracing::info!(%address, node, why, "an agent is not heard any more");
            self.clients.remove(&node);
            self.farm.away(&node);
            self.silent.insert(node, Instant::now());
        }
    }

    fn see(&mut self, pod: Pod) {
        let known = self.pods.get(&pod.uid);
        // What was written is known before the watch tells it: a gate that is gone does not come back.
        if known.is_some_and(|known| !known.gated && pod.gated) || (known.is_none() && !self.has_place(&pod)) {
            return;
        }
        if pod.gated && !pod.skip {
            self.line.join(&pod.uid, &pod.namespace, pod.priority, pod.created);
        } else {
            self.line.leave(&pod.uid);
        }
        let (namespace, ungated) = (pod.namespace.clone(), usize::from(!pod.gated));
        match self.pods.insert(pod.uid.clone(), pod) {
            None => *self.held.entry(namespace).or_default() += 1,
            Some(before) => self.ungated = self.ungated.saturating_sub(usize::from(!before.gated)),
        }
        self.ungated = self.ungated.saturating_add(ungated);
    }

    /// Whether one more pod can be held, if need be in the place of the last of the tenant that has most.
    fn has_place(&mut self, pod: &Pod) -> bool {
        // Anybody may write a pod as if it had been let go: those keep none out who wait.
        if !pod.gated && self.ungated >= self.options.pods_max / 2 {
            return false;
        }
        if self.pods.len() < self.options.pods_max {
            return true;
        }
        self.left_out = true;
        let own = self.held.get(&pod.namespace).map_or(0, |count| *count).saturating_add(1);
        let most = self.held.iter().max_by_key(|(_, count)| **count).filter(|(_, most)| own < **most);
        let last = most.and_then(|(tenant, _)| self.line.last_of(tenant)).filter(|uid| !self.acting.contains_key(*uid));
        let Some(last) = last.map(str::to_owned) else { return false };
        self.gone(&last);
        true
    }

    fn gone(&mut self, uid: &str) {
        self.line.leave(uid);
        self.teller.forget(uid);
        self.memory.remove(uid);
        let Some(pod) = self.pods.remove(uid) else { return };
        self.ungated = self.ungated.saturating_sub(usize::from(!pod.gated));
        if let Some(count) = self.held.get_mut(&pod.namespace) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.held.remove(&pod.namespace);
            }
        }
        let Some(intent) = pod.intent.clone() else { return };
        let asked = (intent.node, pod.request_id(intent.attempt));
        let has_lease = !pod.gated && !pod.lease.is_empty();
        if !self.acting.contains_key(uid) {
            match has_lease {
                // It holds its room until its node says otherwise.
                true => self.farm.granted(&asked.0, &asked.1, now()),
                false => self.farm.free(&asked.0, &asked.1, None),
            }
        }
        // On its node, or gone: the API server knows. Where too many went at once, the rest runs out by itself.
        let may = has_lease && self.releases.len() < RELEASES_MAX;
        if let Some((_, client)) = self.clients.get(&asked.0).filter(|_| may) {
            let (actor, client) = (self.actor.clone(), client.clone());
            self.releases.spawn(async move { actor.left(pod, client).await.then_some(asked) });
        }
    }

    fn tick(&mut self) {
        self.farm.expire(now(), Span::seconds(i64::try_from(SILENT_AT_MOST.as_secs()).unwrap_or(60)));
        self.try_again();
        self.let_go_old();
        self.forget_nodes();
        if self.left_out && self.pods.len() < self.options.pods_max - self.options.pods_max / 10 {
            self.left_out = false;
            self.again.notify_one();
        }
        let mut waiting: BTreeMap<&'static str, i64> = BTreeMap::new();
        for pod in self.pods.values().filter(|pod| pod.gated) {
            *waiting.entry(self.teller.last(&pod.uid).unwrap_or("New")).or_default() += 1;
        }
        let (_, told) = self.farm.count();
        self.face.seen(&waiting, told, self.agents.count().saturating_sub(told));
        self.teller.keep_only(|uid| self.pods.contains_key(uid));
        let now = Instant::now();
        self.memory.retain(|uid, memory| self.pods.contains_key(uid) || memory.not_before.is_some_and(|at| at > now));
    }

    /// Nodes that are no more, unless a pod is meant for one.
    fn forget_nodes(&mut self) {
        if self.silent.values().all(|since| since.elapsed() < FORGOTTEN_AFTER) {
            return;
        }
        let meant: BTreeSet<&String> = self.pods.values().filter_map(|pod| Some(&pod.intent.as_ref()?.node)).collect();
        let old =
            self.silent.iter().filter(|(node, since)| since.elapsed() >= FORGOTTEN_AFTER && !meant.contains(node));
        for node in old.map(|(node, _)| node.clone()).collect::<Vec<_>>() {
            self.silent.remove(&node);
            self.farm.gone(&node);
        }
    }
}
