//! The way to an agent.

use std::path::Path;
use std::time::Duration;

use stoker_proto::v1::admission_service_client::AdmissionServiceClient;
use stoker_proto::v1::node_service_client::NodeServiceClient;
use stoker_proto::v1::repository_service_client::RepositoryServiceClient;
use stoker_proto::v1::workspace_service_client::WorkspaceServiceClient;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;

use super::{Common, ERROR, USAGE, screen};

/// Where a node's agent listens unless somebody says otherwise.
pub(crate) const SOCKET: &str = "/run/stoker/stoker.sock";
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// An agent that answered.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
}

impl Client {
    /// The agent at a socket.
    pub(crate) async fn at_socket(path: &Path) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::try_from(format!("unix:{}", path.display()))?;
        Ok(Self { channel: endpoint.connect_timeout(CONNECT_WITHIN).connect().await? })
    }

    /// The agent that the options name, else the node's.
    pub(crate) async fn of(common: &Common) -> anyhow::Result<Self> {
        if let Some(address) = &common.address {
            let endpoint = Endpoint::try_from(format!("http://{address}"));
            let endpoint = endpoint.map_err(|_| anyhow::anyhow!("--address {address:?} is not HOST:PORT"))?;
            let channel = endpoint.connect_timeout(CONNECT_WITHIN).connect().await;
            let channel =
                channel.map_err(|error| anyhow::anyhow!("no agent answers at {address}: {}", cause(&error)))?;
            return Ok(Self { channel });
        }
        let path = common.socket();
        Self::at_socket(&path).await.map_err(|error| {
            let path = path.display();
            anyhow::anyhow!(
                "no agent answers at {path}: {}\nstart one with `stoker agent --config FILE`, or name another with --socket",
                cause(&error)
            )
        })
    }

    pub(crate) fn node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    pub(crate) fn admission(&self) -> AdmissionServiceClient<Channel> {
        AdmissionServiceClient::new(self.channel.clone())
    }

    pub(crate) fn repositories(&self) -> RepositoryServiceClient<Channel> {
        RepositoryServiceClient::new(self.channel.clone())
    }

    pub(crate) fn workspaces(&self) -> WorkspaceServiceClient<Channel> {
        WorkspaceServiceClient::new(self.channel.clone())
    }
}

/// The innermost cause, which says more than "transport error".
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// The reason's word, where a status carries one.
pub(crate) fn reason_word(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason).filter(|word| !word.is_empty())
}

/// A status in words: what, which reason, and when to try again.
pub(crate) fn words(status: &Status) -> String {
    let mut text = screen::safe(status.message());
    if text.is_empty() {
        text = format!("{:?}", status.code());
    }
    if let Some(word) = reason_word(status) {
        text.push_str(&format!(" [{word}]"));
    }
    text
}

/// The exit code of a refusal: a malformed field is wrong usage.
pub(crate) fn code(status: &Status) -> u8 {
    if status.code() == tonic::Code::InvalidArgument { USAGE } else { ERROR }
}
