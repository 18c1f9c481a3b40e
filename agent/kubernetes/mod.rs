//! What only the cluster can tell: this node, its labels, its pods, and whose a token is ([`token_review`]).
//!
//! Out goes a published [`Cluster`]: the node object and the pods of this node, as far as the core looks at them, and
//! whether the API server answers. `watch` follows both; `heartbeat` writes the agent's `Lease` object, and notices
//! sooner than a watch that nobody answers; `convert` takes objects of the API to the core's. `kubelet` reads how the node's
//! kubelet is configured, which the API server would not tell.
//!
//! The API server is asked only where there is one to ask: in a pod, or where `KUBECONFIG` names one and the
//! configuration says so. [`labels`] are asked for once, where a pool depends on them.

mod convert;
mod events;
mod heartbeat;
mod kubelet;
mod publish;
mod quantity;
mod rights;
mod watch;

pub mod token_review;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, EvictParams, Preconditions};
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config};
use stoker_core::cluster::Cluster;
use stoker_core::reason::Reason;
use tokio::sync::mpsc;
use tokio::sync::watch::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

pub(crate) use self::convert::effective;
pub use self::events::Told;
pub use self::kubelet::kubelet;
pub use self::publish::Face;
use self::publish::Publisher;
use self::rights::{Missing, Right};
pub(crate) use self::watch::{Growing, words};
use crate::config::Configured;
use crate::config::kubernetes::Watch;

/// A watch ends after a minute and begins anew: what says nothing for longer is dead.
const SILENT_AT_MOST: Duration = Duration::from_secs(75);
/// Events that are on their way.
const TOLD_MAX: usize = 256;
/// Where a pod finds the name of its namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
/// Where neither the configuration nor a pod says one.
const NAMESPACE: &str = "stoker";
/// An API server that cannot be asked because the configuration of the way to it is not right is tried again so soon.
const AGAIN: Duration = Duration::from_secs(5);

/// An API server that does not answer must not hold the agent back for long.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why the labels are not known.
#[derive(Debug, thiserror::Error)]
pub enum LabelsError {
    /// Neither in a pod nor with a `KUBECONFIG`.
    #[error("there is no cluster to ask: run in a pod, or set KUBECONFIG")]
    NoCluster,
    /// The way to the API server is not right.
    #[error("the API server's configuration: {0}")]
    Configuration(String),
    /// The API server says no, or nothing.
    #[error("the API server: {0}")]
    Api(#[from] Box<kube::Error>),
    /// It did not answer in time.
    #[error("the API server did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Late,
}

/// The labels of a node.
///
/// # Errors
/// When nobody can be asked, or nobody answers in 5 s.
pub async fn labels(node: &str) -> Result<BTreeMap<String, String>, LabelsError> {
    let ask = async {
        let client = client().await?;
        let node = Api::<Node>::all(client).get_metadata(node).await.map_err(Box::new)?;
        Ok(node.metadata.labels.unwrap_or_default())
    };
    tokio::time::timeout(ANSWER_WITHIN, ask).await.unwrap_or(Err(LabelsError::Late))
}

/// The room's face. Cheap to clone.
#[derive(Clone)]
pub struct Kubernetes {
    view: Receiver<Arc<Cluster>>,
    client: Receiver<Option<Client>>,
    telling: mpsc::Sender<Told>,
    missing: Missing,
}

impl Kubernetes {
    /// What is known now.
    #[must_use]
    pub fn view(&self) -> Arc<Cluster> {
        Arc::clone(&self.view.borrow())
    }

    /// Wakes with each change.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<Arc<Cluster>> {
        self.view.clone()
    }

    /// An event for a pod or the node. Nobody waits for it: where too many are on their way it is left out.
    pub fn tell(&self, told: Told) {
        let _ = self.telling.try_send(told);
    }

    /// What the API server does not let the agent do, as far as it was tried.
    #[must_use]
    pub fn alarms(&self) -> Vec<Reason> {
        self.missing.reasons()
    }

    /// Asks for the eviction of a pod, and of no other of its name. One that is gone is no error.
    ///
    /// # Errors
    /// In words, when the API server does not answer, or says no: it may be asked again.
    pub async fn evict(&self, namespace: &str, name: &str, uid: &str) -> Result<(), String> {
        let Some(client) = self.client.borrow().clone() else { return Err("there is no cluster to ask".to_owned()) };
        let preconditions = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
        let delete_options = Some(DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() });
        let params = EvictParams { delete_options, ..EvictParams::default() };
        let pods = Api::<Pod>::namespaced(client, namespace);
        match tokio::time::timeout(ANSWER_WITHIN, pods.evict(name, &params)).await {
            Ok(Ok(_)) => {
                self.missing.note(Right::Evict, false);
                Ok(())
            }
            // Gone, or another of its name.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
            Ok(Err(error)) => {
                self.missing.note_error(Right::Evict, &error);
                Err(words(&error))
            }
            Err(_) => Err(LabelsError::Late.to_string()),
        }
    }
}

/// Follows the cluster until `cancel`, where there is one to ask.
#[must_use]
pub fn start(config: &Configured, incarnation: String, face: Receiver<Face>, cancel: CancellationToken) -> Kubernetes {
    let asks = match config.borrow().kubernetes.watch {
        Watch::Auto => std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
        Watch::On => true,
        Watch::Off => false,
    };
    let (clients, client) = tokio::sync::watch::channel(None);
    let missing = Missing::default();
    let (telling, told) = mpsc::channel(TOLD_MAX);
    let (views, view) = tokio::sync::watch::channel(Arc::new(Cluster { asked: asks, ..Cluster::default() }));
    if asks {
        let (config, noted) = (config.clone(), missing.clone());
        tokio::spawn(async move {
            cancel.run_until_cancelled(follow(config, incarnation, views, clients, (face, told), noted)).await
        });
    }
    Kubernetes { view, client, telling, missing }
}

async fn follow(
    configured: Configured,
    incarnation: String,
    view: Sender<Arc<Cluster>>,
    clients: Sender<Option<Client>>,
    (face, events): (Receiver<Face>, mpsc::Receiver<Told>),
    missing: Missing,
) {
    let client = loop {
        match client().await {
            Ok(client) => break client,
            Err(error) => {
                let trouble = error.to_string();
                tracing::warn!(error = trouble, "the API server cannot be asked; tried again");
                view.send_replace(Arc::new(Cluster { asked: true, trouble, ..Cluster::default() }));
            }
        }
        tokio::time::sleep(AGAIN).await;
    };
    clients.send_replace(Some(client.clone()));
    let node = configured.borrow().node.name.clone();
    let namespace = configured.borrow().kubernetes.namespace.clone();
    let of_the_pod = || std::fs::read_to_string(NAMESPACE_FILE).ok().map(|name| name.trim().to_owned());
    let namespace = namespace.or_else(of_the_pod).unwrap_or_else(|| NAMESPACE.to_owned());
    let (told, reached) = tokio::sync::watch::channel(Ok(()));
    let config = configured.clone();
    let heart = heartbeat::Heart {
        client: client.clone(),
        node: node.clone(),
        incarnation,
        namespace,
        config,
        missing: missing.clone(),
    };
    let (nodes, known) = tokio::sync::watch::channel(publish::Known::default());
    let (of_node, config) = (node.clone(), configured.clone());
    let publisher = Publisher {
        client: client.clone(),
        node: of_node,
        config,
        face,
        told: events,
        missing: missing.clone(),
        known,
    };
    tokio::join!(
        heartbeat::beat(heart, told),
        watch::follow(client, node, configured, reached, missing, (view, nodes)),
        publisher.run()
    );
}

/// The way to the API server, where there is one.
///
/// # Errors
/// When nobody can be asked.
pub async fn client() -> Result<Client, LabelsError> {
    Ok(Client::try_from(config().await?).map_err(Box::new)?)
}

async fn config() -> Result<Config, LabelsError> {
    let mut config = found().await?;
    // Who asks tries again, and is to know that it was refused; and a connection that died is none.
    (config.default_retry, config.read_timeout) = (false, Some(SILENT_AT_MOST));
    Ok(config)
}

async fn found() -> Result<Config, LabelsError> {
    let wrong = |error: &dyn std::fmt::Display| LabelsError::Configuration(error.to_string());
    if std::env::var_os("KUBECONFIG").is_some_and(|file| !file.is_empty()) {
        let options = KubeConfigOptions::default();
        return Config::from_kubeconfig(&options).await.map_err(|error| wrong(&error));
    }
    match std::env::var_os("KUBERNETES_SERVICE_HOST") {
        Some(_) => Config::incluster().map_err(|error| wrong(&error)),
        None => Err(LabelsError::NoCluster),
    }
}
