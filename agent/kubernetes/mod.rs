//! What only the cluster can tell: the labels of this node, by which the configuration may say where a pool is.
//!
//! The API server is asked only where the configuration needs it, and where there is one to ask: in a pod, or where
//! `KUBECONFIG` names one. Without an answer the pools that need it are not on this node yet; it is asked again.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config};

/// An API server that does not answer must not hold the agent back for long.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

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
        let client = Client::try_from(config().await?).map_err(Box::new)?;
        let node = Api::<Node>::all(client).get_metadata(node).await.map_err(Box::new)?;
        Ok(node.metadata.labels.unwrap_or_default())
    };
    tokio::time::timeout(ANSWER_WITHIN, ask).await.unwrap_or(Err(LabelsError::Late))
}

async fn config() -> Result<Config, LabelsError> {
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
