//! The pods that wait, and the addresses of the agents, as the API server tells them. What is kept of each is what is
//! needed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use futures_util::stream::{self, Stream, StreamExt as _};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client};
use tokio::sync::{Notify, mpsc};

use super::Options;
use super::board::Input;
use super::pod::Pod;
use crate::kubernetes::{Growing, words};

/// A list comes in parts of so many.
const PAGE: u32 = 100;
/// A watch is asked for so long, and begun anew.
const WATCH_SECONDS: u32 = 60;
/// More agents than these are not asked.
const AGENTS_MAX: usize = 10_000;

type Events<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, kube::runtime::watcher::Error>> + Send>>;

/// Tells of pods without a node until nobody listens. Those that the scheduler places are told as gone. `again`: all are
/// listed anew.
pub(super) async fn pods(options: &Options, client: Client, inputs: mpsc::Sender<Input>, again: &Notify) {
    loop {
        tokio::select! {
            () = follow_pods(options, client.clone(), &inputs) => return,
            () = again.notified() => tracing::info!("there is room for pods that were left out: all are listed again"),
        }
    }
}

async fn follow_pods(options: &Options, client: Client, inputs: &mpsc::Sender<Input>) {
    let config = || Config::default().fields("spec.nodeName=").timeout(WATCH_SECONDS).page_size(PAGE);
    let apis: Vec<Api<core::Pod>> = match options.namespaces.is_empty() {
        true => vec![Api::all(client)],
        false => options.namespaces.iter().map(|name| Api::namespaced(client.clone(), name)).collect(),
    };
    let watches = apis.into_iter().enumerate().map(|(of, api)| {
        let events: Events<core::Pod> = Box::pin(watcher(api, config()).backoff(Growing::new()));
        events.map(move |event| (of, event))
    });
    let mut all = stream::select_all(watches);
    while let Some((of, event)) = all.next().await {
        let input = match event {
            Ok(Event::Init) => Input::Listing(of),
            Ok(Event::InitApply(pod)) => match Pod::of(&pod) {
                Some(pod) => Input::Pod(Box::new(pod), Some(of)),
                None => continue,
            },
            Ok(Event::InitDone) => Input::Listed(of),
            Ok(Event::Apply(pod)) => match (Pod::of(&pod), pod.metadata.uid) {
                (Some(pod), _) => Input::Pod(Box::new(pod), None),
                (None, Some(uid)) => Input::PodGone(uid),
                (None, None) => continue,
            },
            Ok(Event::Delete(pod)) => match pod.metadata.uid {
                Some(uid) => Input::PodGone(uid),
                None => continue,
            },
            Err(error) => {
                tracing::warn!(error = words(&error), "the watch of pods; it begins anew");
                continue;
            }
        };
        if inputs.send(input).await.is_err() {
            return;
        }
    }
}

/// Tells the addresses of all agents and the nodes that these are on, each time that they change.
pub(super) async fn addresses(options: &Options, client: Client, inputs: mpsc::Sender<Input>) {
    let api = Api::<EndpointSlice>::namespaced(client, &options.agents.namespace);
    let labels = format!("kubernetes.io/service-name={}", options.agents.name);
    let config = Config::default().labels(&labels).timeout(WATCH_SECONDS).page_size(PAGE);
    let mut events = Box::pin(watcher(api, config).backoff(Growing::new()));
    let mut slices = BTreeMap::new();
    let mut listing = None;
    let mut told = None;
    while let Some(event) = events.next().await {
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        match event {
            Ok(Event::Init) => listing = Some(BTreeMap::new()),
            Ok(Event::InitApply(slice)) => {
                listing.get_or_insert_default().insert(name(&slice), of_slice(&slice, options.port));
            }
            Ok(Event::InitDone) => slices = listing.take().unwrap_or_default(),
            Ok(Event::Apply(slice)) => drop(slices.insert(name(&slice), of_slice(&slice, options.port))),
            Ok(Event::Delete(slice)) => drop(slices.remove(&name(&slice))),
            Err(error) => tracing::warn!(error = words(&error), "the watch of the agents' addresses; it begins anew"),
        }
        if listing.is_some() {
            continue;
        }
        let all: BTreeMap<SocketAddr, String> = slices.values().flatten().take(AGENTS_MAX).cloned().collect();
        if told.as_ref() != Some(&all) {
            told = Some(all.clone());
            if inputs.send(Input::Addresses(all)).await.is_err() {
                return;
            }
        }
    }
}

fn of_slice(slice: &EndpointSlice, port: u16) -> Vec<(SocketAddr, String)> {
    let serves = |endpoint: &&Endpoint| {
        endpoint.conditions.as_ref().and_then(|found| found.serving.or(found.ready)) != Some(false)
    };
    // All addresses of one endpoint lead to the same: the first is asked.
    let first = |endpoint: &Endpoint| {
        let ip = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok())?;
        Some((SocketAddr::new(ip, port), endpoint.node_name.clone().unwrap_or_default()))
    };
    slice.endpoints.iter().filter(serves).filter_map(first).collect()
}
