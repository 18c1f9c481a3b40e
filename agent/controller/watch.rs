//! The pods that wait, and the addresses of the agents, as the API server tells them. What is kept of each is what is
//! needed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use futures_util::stream::{self, Stream, StreamExt as _};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;

use super::Options;
use super::board::Input;
use super::pod::Pod;
use crate::kubernetes::{Growing, words};

/// A list comes in parts of so many.
const PAGE: u32 = 500;
/// A watch is asked for so long, and begun anew.
const WATCH_SECONDS: u32 = 60;
/// More agents than these are not asked.
const AGENTS_MAX: usize = 10_000;

type Events<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, kube::runtime::watcher::Error>> + Send>>;

/// Tells of pods without a node until nobody listens. Those that the scheduler places are told as gone.
pub(super) async fn pods(options: &Options, client: Client, inputs: mpsc::Sender<Input>) {
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

/// Tells the addresses of all agents, each time that they change.
pub(super) async fn addresses(options: &Options, client: Client, inputs: mpsc::Sender<Input>) {
    let api = Api::<EndpointSlice>::namespaced(client, &options.agents.namespace);
    let labels = format!("kubernetes.io/service-name={}", options.agents.name);
    let config = Config::default().labels(&labels).timeout(WATCH_SECONDS).page_size(PAGE);
    let mut events = Box::pin(watcher(api, config).backoff(Growing::new()));
    let mut slices = std::collections::BTreeMap::new();
    let mut listing = None;
    let mut told = None;
    while let Some(event) = events.next().await {
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        match event {
            Ok(Event::Init) => listing = Some(std::collections::BTreeMap::new()),
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
        let all: BTreeSet<SocketAddr> = slices.values().flatten().copied().take(AGENTS_MAX).collect();
        if told.as_ref() != Some(&all) {
            told = Some(all.clone());
            if inputs.send(Input::Addresses(all)).await.is_err() {
                return;
            }
        }
    }
}

fn of_slice(slice: &EndpointSlice, port: u16) -> Vec<SocketAddr> {
    let serves = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
        endpoint.conditions.as_ref().and_then(|found| found.serving.or(found.ready)) != Some(false)
    };
    // All addresses of one endpoint lead to the same: the first is asked.
    let first = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok())
    };
    let endpoints = slice.endpoints.iter().filter(serves);
    endpoints.filter_map(first).map(|ip| SocketAddr::new(ip, port)).collect()
}
