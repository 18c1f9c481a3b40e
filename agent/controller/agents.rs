//! The agents: one connection each, on which it tells its node's room and is asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::cluster::Taint;
use stoker_core::placement::Room;
use stoker_core::quantity::Amounts;
use stoker_core::reason::Code;
use stoker_proto::v1;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Options;
use super::board::Input;
use super::pod::FIELD;
use crate::cli::client::Client;

/// Who says nothing for so long is not there: something comes every 15 s.
pub(super) const SILENT_AT_MOST: Duration = Duration::from_secs(60);
/// Between two attempts, from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// The largest room: 4,096 grants, a thousand repositories.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// One task an agent; all end with it.
#[derive(Default)]
pub(super) struct Agents {
    tasks: JoinSet<()>,
    /// With the node of each endpoint, as the cluster has it; empty: it does not say.
    running: BTreeMap<SocketAddr, (String, tokio::task::AbortHandle)>,
}

impl Agents {
    /// These are all that there are from now on.
    pub(super) fn set(
        &mut self,
        all: &BTreeMap<SocketAddr, String>,
        options: &Options,
        inputs: &mpsc::Sender<Input>,
    ) -> Vec<SocketAddr> {
        while self.tasks.try_join_next().is_some() {}
        let other = |(address, (node, _)): &(&SocketAddr, &(String, _))| all.get(*address) != Some(node);
        let gone: Vec<SocketAddr> = self.running.iter().filter(other).map(|(address, _)| *address).collect();
        for address in &gone {
            if let Some((_, task)) = self.running.remove(address) {
                task.abort();
            }
        }
        for (address, node) in all {
            if !self.running.contains_key(address) {
                let task = self.tasks.spawn(follow(*address, node.clone(), options.clone(), inputs.clone()));
                self.running.insert(*address, (node.clone(), task));
            }
        }
        gone
    }

    pub(super) fn count(&self) -> usize {
        self.running.len()
    }
}

/// Tells the room of one agent until nobody listens.
async fn follow(address: SocketAddr, on: String, options: Options, inputs: mpsc::Sender<Input>) {
    let mut pause = BACKOFF.0;
    loop {
        let began = Instant::now();
        let why = listen(address, &on, &options, &inputs).await;
        if inputs.send(Input::Silent(address, why)).await.is_err() {
            return;
        }
        if began.elapsed() > BACKOFF.1 {
            pause = BACKOFF.0;
        }
        tokio::time::sleep(crate::node::jittered(pause)).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// Until the stream ends: why it did. `on`: the node of its endpoint, which no agent has another name for.
async fn listen(address: SocketAddr, on: &str, options: &Options, inputs: &mpsc::Sender<Input>) -> String {
    let service = format!("{}.{}.svc", options.agents.name, options.agents.namespace);
    let server_name = options.common.server_name().unwrap_or(&service);
    let client = match Client::at_address(&options.common, &address.to_string(), Some(server_name)).await {
        Ok(client) => client,
        Err(error) => return format!("{error:#}"),
    };
    let mut admission = client.admission().max_decoding_message_size(MESSAGE_BYTES_MAX);
    let asked =
        tokio::time::timeout(SILENT_AT_MOST, admission.watch_room(v1::WatchRoomRequest { mirrors_on_change: true }))
            .await;
    let mut rooms = match asked {
        Ok(Ok(rooms)) => rooms.into_inner(),
        Ok(Err(status)) => return crate::cli::client::words(&status),
        Err(_) => return "no answer".to_owned(),
    };
    let mut mirrors: Arc<[Arc<str>]> = Arc::default();
    loop {
        let told = match tokio::time::timeout(SILENT_AT_MOST, rooms.message()).await {
            Ok(Ok(Some(told))) => told,
            Ok(Ok(None)) => return "its stream ended".to_owned(),
            Ok(Err(status)) => return crate::cli::client::words(&status),
            Err(_) => return format!("it said nothing for {} s", SILENT_AT_MOST.as_secs()),
        };
        let (Some(node), Some(mut room)) = (told.node, told.room) else { continue };
        if !on.is_empty() && node.name != on {
            tracing::warn!(%address, says = node.name, on, "an agent says that it is on another node than its endpoint");
            return format!("it says that it is on node {}, and its endpoint is on {on}", node.name);
        }
        if !room.mirrors_unchanged {
            mirrors = std::mem::take(&mut room.mirrors).into_iter().map(Arc::from).collect();
        }
        let room = Box::new(Room { mirrors: Arc::clone(&mirrors), ..of_wire(room, &node.name) });
        if inputs.send(Input::Room { address, node: node.name, client: client.clone(), room }).await.is_err() {
            return String::new();
        }
    }
}

/// But for the mirrors.
fn of_wire(room: v1::Room, node: &str) -> Room {
    let code = |reason: &v1::Reason| {
        let word = reason.code().as_str_name();
        Code::ALL.iter().copied().find(|code| code.word() == word)
    };
    let facts = room.facts.map(|facts| {
        let taints = facts.taints.into_iter();
        let taints = taints.map(|taint| Taint { key: taint.key, value: taint.value, effect: taint.effect });
        let name = (format!("{FIELD}metadata.name"), node.to_owned());
        (facts.labels.into_iter().chain([name]).collect(), taints.collect())
    });
    Room {
        accepts: room.accepts,
        small_only: room.narrow_max.as_ref().map(amounts),
        free: room.free.as_ref().map(amounts).unwrap_or_default(),
        budget: room.budget.as_ref().map(amounts).unwrap_or_default(),
        idle: room.idle,
        pods_free: room.pods_free.and_then(|pods| u64::try_from(pods).ok()),
        grants: room.grants.into_iter().map(|grant| (grant.request_id, grant.lease_id)).collect(),
        reasons: room.reasons.iter().filter_map(code).collect(),
        facts,
        ..Room::default()
    }
}

pub(super) fn amounts(size: &v1::Size) -> Amounts {
    let part = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
    Amounts {
        cpu_millis: part(size.cpu_millis),
        memory_bytes: part(size.memory_bytes),
        disk_bytes: part(size.disk_bytes),
        disk_inodes: part(size.disk_inodes),
    }
}
