//! Nodes for pods that have the scheduling gate `stoker.build/admission`. It runs once for a cluster, in two or more copies
//! of which one leads, and is nothing but a client: of the API server, and of the agents.
//!
//! In come the gated pods ([`watch`]) and the room of each node, one stream an agent ([`agents`]). One task, the
//! [`board`], holds all of it and decides with `stoker_core::placement`. What it decides, [`act`] does: it writes on the
//! pod which node is asked, asks it, and lets the pod go with the lease and the node; or says on the pod why it waits
//! ([`tell`]).
//!
//! Nothing is remembered but in the pods and in the agents' journals: a leader that follows goes on from what stands there
//! ([`elect`]). Copies that do not lead watch nothing and keep no stream: they cost neither the API server nor the agents
//! anything, and a new leader has its streams within seconds.

mod act;
mod agents;
mod answer;
mod board;
mod elect;
mod face;
mod files;
mod patch;
mod pod;
mod tell;
mod watch;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::Common;
use elect::{Elector, Leading};
use face::Face;

/// The scheduling gate.
const GATE: &str = "stoker.build/admission";
/// The annotation by which an operator lets a pod go: `skip`.
const SKIP: &str = "stoker.build/admission";
/// Which node is asked for a pod.
const PLACEMENT: &str = "stoker.build/placement";
/// Who writes.
const MANAGER: &str = "stoker-controller";
/// Between two attempts to become the leader.
const AGAIN: Duration = Duration::from_secs(2);

/// An object of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// How it runs.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// How agents are spoken to.
    pub(crate) common: Common,
    /// Their Service.
    pub(crate) agents: Named,
    pub(crate) port: u16,
    /// What the leader holds.
    pub(crate) lease: Named,
    pub(crate) identity: String,
    /// Empty: all.
    pub(crate) namespaces: Vec<String>,
    pub(crate) http: SocketAddr,
    pub(crate) replace: bool,
    /// Pods that are held at a time.
    pub(crate) pods_max: usize,
    /// How long a pod waits for room while others are placed, until a node is kept for it.
    pub(crate) keep_after: Duration,
    /// How long a node is kept for a pod that the scheduler does not place there.
    pub(crate) keep_for: Duration,
    /// After which a silent node is taken for gone.
    pub(crate) gone_after: Duration,
}

/// Runs until `stop`.
///
/// # Errors
/// When there is no API server to ask, or nobody can listen at the address.
pub(crate) async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let client = crate::kubernetes::client().await.context("a controller needs a cluster")?;
    files::take_all();
    let face = Face::default();
    let listener = tokio::net::TcpListener::bind(options.http)
        .await
        .with_context(|| format!("--http {}: nobody can listen there", options.http))?;
    let serving = tokio::spawn(face::serve(listener, face.clone(), stop.clone()));
    tracing::info!(identity = options.identity, version = env!("CARGO_PKG_VERSION"), "waits to lead");
    let mut elector = Elector::new(client.clone(), &options);
    while !stop.is_cancelled() {
        match elector.try_to_lead().await {
            Ok(Some(leading)) => lead(&options, &client, &mut elector, leading, &face, &stop).await,
            Ok(None) => face.standby(true),
            Err(error) => {
                face.standby(false);
                tracing::warn!(error, "the API server does not say who leads; tried again");
            }
        }
        stop.run_until_cancelled(tokio::time::sleep(crate::node::jittered(AGAIN))).await;
    }
    serving.await.context("the listener ended")?;
    Ok(())
}

/// Leads until somebody else does, or `stop`. Whatever is on its way then is dropped: what it meant stands on the pods.
async fn lead(
    options: &Options,
    client: &kube::Client,
    elector: &mut Elector,
    leading: Leading,
    face: &Face,
    stop: &CancellationToken,
) {
    tracing::info!(identity = options.identity, "leads");
    // In a task of its own: a long look at many pods does not keep the hold from being written.
    let mut work = JoinSet::new();
    work.spawn(board::run(options.clone(), client.clone(), leading.clone(), face.clone()));
    let ended = tokio::select! {
        why = elector.keep(&leading) => why,
        _ = work.join_next() => "its work ended".to_owned(),
        () = stop.cancelled() => String::new(),
    };
    leading.end();
    work.shutdown().await;
    face.standby(false);
    if ended.is_empty() {
        elector.give_up().await;
        tracing::info!("leads no more: it was told to end");
    } else {
        tracing::warn!(why = ended, "leads no more");
    }
}
