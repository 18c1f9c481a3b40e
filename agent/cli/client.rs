//! The way to an agent.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use stoker_proto::v1::admission_service_client::AdmissionServiceClient;
use stoker_proto::v1::node_service_client::NodeServiceClient;
use stoker_proto::v1::repository_service_client::RepositoryServiceClient;
use stoker_proto::v1::workspace_service_client::WorkspaceServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use tonic_types::StatusExt;

use super::{Common, ERROR, USAGE, screen};

/// Where a node's agent listens unless somebody says otherwise.
pub(crate) const SOCKET: &str = "/run/stoker/stoker.sock";
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// So often an agent over the network is asked whether it is still there, also while a call waits for hours, and so long
/// it has to say so: one that lost its power closes no connection.
const ALIVE_EVERY: Duration = Duration::from_secs(10);
const ALIVE_WITHIN: Duration = Duration::from_secs(10);

/// The most bytes of a file that says who asks.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// So often the file of a token is read again: its issuer writes it anew before it ends, and connections last longer.
const TOKEN_EVERY: Duration = Duration::from_secs(60);

/// Says with each call who asks, where that is a token.
#[derive(Clone, Default)]
pub(crate) struct Bearer(Option<Arc<Mutex<Token>>>);

/// A token, from its file.
struct Token {
    file: PathBuf,
    value: MetadataValue<Ascii>,
    read: Instant,
    every: Duration,
}

impl Token {
    fn of(file: &Path, every: Duration) -> anyhow::Result<Self> {
        Ok(Self { file: file.to_owned(), value: token(file)?, read: Instant::now(), every })
    }

    /// As the file has it, or had it where it cannot be read now.
    fn value(&mut self) -> MetadataValue<Ascii> {
        if self.read.elapsed() >= self.every {
            self.read = Instant::now();
            match token(&self.file) {
                Ok(value) => self.value = value,
                Err(error) => tracing::warn!(error = format!("{error:#}"), "the token before is used"),
            }
        }
        self.value.clone()
    }
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Bearer(..)" } else { "Bearer(none)" })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = token.lock().unwrap_or_else(PoisonError::into_inner).value();
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// The way of a call.
pub(crate) type Way = InterceptedService<Channel, Bearer>;

/// An agent that answered.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
    bearer: Bearer,
}

impl Client {
    /// The agent at a socket.
    pub(crate) async fn at_socket(path: &Path) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::try_from(format!("unix:{}", path.display()))?;
        let channel = endpoint.connect_timeout(CONNECT_WITHIN).connect().await?;
        Ok(Self { channel, bearer: Bearer::default() })
    }

    /// The agent that the options name, else the node's.
    pub(crate) async fn of(common: &Common) -> anyhow::Result<Self> {
        if let Some(address) = common.address() {
            return Self::at_address(common, address, common.server_name()).await;
        }
        let bearer = bearer(common)?;
        let path = common.socket();
        let found = Self::at_socket(&path).await.map_err(|error| {
            let path = path.display();
            anyhow::anyhow!(
                "no agent answers at {path}: {}\nstart one with `stoker agent --config FILE`, or name another with --socket",
                cause(&error)
            )
        })?;
        Ok(Self { bearer, ..found })
    }

    /// The agent at an address, whose certificate is for `server_name`, without one for the address itself.
    pub(crate) async fn at_address(common: &Common, address: &str, server_name: Option<&str>) -> anyhow::Result<Self> {
        let bearer = bearer(common)?;
        let endpoint = endpoint(common, address, server_name, &bearer)?.connect_timeout(CONNECT_WITHIN);
        // The whole of it: who takes the connection and says nothing is no agent either.
        let channel = match tokio::time::timeout(CONNECT_WITHIN, endpoint.connect()).await {
            Ok(channel) => channel.map_err(|error| cause(&error)),
            Err(_) => Err(format!("nothing within {} s", CONNECT_WITHIN.as_secs())),
        };
        let channel = channel.map_err(|why| anyhow::anyhow!("no agent answers at {address}: {why}"))?;
        Ok(Self { channel, bearer })
    }

    fn way(&self) -> Way {
        InterceptedService::new(self.channel.clone(), self.bearer.clone())
    }

    pub(crate) fn node(&self) -> NodeServiceClient<Way> {
        NodeServiceClient::new(self.way())
    }

    pub(crate) fn admission(&self) -> AdmissionServiceClient<Way> {
        AdmissionServiceClient::new(self.way())
    }

    pub(crate) fn repositories(&self) -> RepositoryServiceClient<Way> {
        RepositoryServiceClient::new(self.way())
    }

    pub(crate) fn workspaces(&self) -> WorkspaceServiceClient<Way> {
        WorkspaceServiceClient::new(self.way())
    }
}

/// Who asks, by the file of a token where one is named.
fn bearer(common: &Common) -> anyhow::Result<Bearer> {
    let Some(path) = named(&common.token_file) else { return Ok(Bearer::default()) };
    Ok(Bearer(Some(Arc::new(Mutex::new(Token::of(path, TOKEN_EVERY)?)))))
}

fn token(path: &Path) -> anyhow::Result<MetadataValue<Ascii>> {
    let text = String::from_utf8(read("--token-file", path)?).ok();
    let value = text.and_then(|text| format!("Bearer {}", text.trim()).parse::<MetadataValue<Ascii>>().ok());
    let mut value = value.with_context(|| format!("--token-file {}: holds no token", path.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// How an address is spoken to: by TLS where somebody vouches for it. What says who asks goes nowhere else in the clear.
fn endpoint(common: &Common, address: &str, server_name: Option<&str>, bearer: &Bearer) -> anyhow::Result<Endpoint> {
    let scheme = if named(&common.ca_file).is_some() { "https" } else { "http" };
    let endpoint = Endpoint::try_from(format!("{scheme}://{address}"));
    let endpoint = endpoint.map_err(|_| anyhow::anyhow!("--address {address:?} is not HOST:PORT"))?;
    let endpoint = endpoint.http2_keep_alive_interval(ALIVE_EVERY).keep_alive_timeout(ALIVE_WITHIN);
    let identity = match (named(&common.cert_file), named(&common.key_file)) {
        (Some(certificate), Some(key)) => {
            Some(Identity::from_pem(read("--cert-file", certificate)?, read("--key-file", key)?))
        }
        (None, None) => None,
        _ => anyhow::bail!("--cert-file and --key-file go together: give both"),
    };
    let Some(authorities) = named(&common.ca_file) else {
        let host = endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']);
        let is_local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if identity.is_some() || (bearer.0.is_some() && !is_local) {
            anyhow::bail!("--address {address} would be told who asks without TLS: give --ca-file");
        }
        return Ok(endpoint);
    };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--ca-file", authorities)?));
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    if let Some(name) = server_name {
        tls = tls.domain_name(name);
    }
    let as_whom = server_name.map(|name| format!(" as {name}")).unwrap_or_default();
    endpoint.tls_config(tls).map_err(|error| anyhow::anyhow!("TLS to {address}{as_whom}: {}", cause(&error)))
}

/// A file that was named; an empty variable names none.
pub(crate) fn named(path: &Option<PathBuf>) -> Option<&Path> {
    path.as_deref().filter(|path| !path.as_os_str().is_empty())
}

fn read(flag: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    crate::node::files::read_whole(path, FILE_BYTES_MAX).with_context(|| format!("{flag} {}", path.display()))
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_was_written_anew_is_said_on_the_same_connection() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let says = |bearer: &mut Bearer| {
            let request = bearer.call(Request::new(())).unwrap();
            request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned()
        };
        let bearer = |every: Duration| Bearer(Some(Arc::new(Mutex::new(Token::of(&file, every).unwrap()))));
        std::fs::write(&file, "first\n").unwrap();
        let (mut now, mut later) = (bearer(Duration::ZERO), bearer(TOKEN_EVERY));
        let mut way = now.clone();
        assert_eq!((says(&mut now), says(&mut later)), ("Bearer first".into(), "Bearer first".into()));
        std::fs::write(&file, "second").unwrap();
        assert_eq!((says(&mut way), says(&mut later)), ("Bearer second".into(), "Bearer first".into()));
        // One that is just being written says nothing: the one before may still do.
        std::fs::remove_file(&file).unwrap();
        assert_eq!(says(&mut now), "Bearer second");
    }
}
