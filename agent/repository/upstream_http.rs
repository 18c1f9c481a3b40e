//! HTTP that the agent speaks itself: lists of refs, large files, a forge's API. Objects are git's affair.
//!
//! One request is one round trip: connections are kept for a while, redirects are not followed here, and every wait and
//! every body has a bound. Certificates are judged as git judges them: by the files that its variables name, else by the
//! system's. Where a proxy is set, nothing is spoken here; git knows how.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioTimer;
use rustls::{ClientConfig, RootCertStore};
use stoker_core::reason::Code;
use stoker_core::source::is_local;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// For name, connection and TLS together, one address after the other.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// How long an unused connection is kept.
const IDLE_FOR: Duration = Duration::from_secs(60);
/// How many unused connections one host keeps.
const IDLE_PER_HOST_MAX: usize = 2;
/// Of the header of an answer, in bytes.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Between two parts of a body.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How curl, and so git, is told of a proxy.
const PROXY_VARIABLES: [&str; 6] = ["https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// No connection; nothing was asked.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke.
    #[error("{0}")]
    Broken(String),
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The body is larger than anything sensible.
    #[error("the answer has more than {0} bytes")]
    TooMuch(u64),
    /// The host is this machine or this link, and nobody said that this is meant.
    #[error("{0} is this machine or this link; only `{0}` itself in `repositories.allow` lets it in")]
    Local(String),
}

impl HttpError {
    /// What it means for callers.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::Connect(_) | Self::Broken(_) | Self::TooMuch(_) => Code::UpstreamUnreachable,
            Self::TimedOut(_) => Code::UpstreamTimeout,
            Self::Local(_) => Code::RepositoryNotAllowed,
        }
    }
}

type Plain = HttpConnector<Resolver>;
type Asked = Full<Bytes>;

/// A client. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub(crate) struct Http {
    roots: Arc<OnceCell<Arc<ClientConfig>>>,
    resolver: Resolver,
    executor: Owned,
    plain: Client<Plain, Asked>,
    secure: Arc<OnceCell<Client<HttpsConnector<Plain>, Asked>>>,
}

impl Http {
    /// Its connections end with `cancel`, and are among `tasks`.
    pub(crate) fn new(tasks: TaskTracker, cancel: CancellationToken) -> Self {
        Self::with(Arc::default(), Resolver { local: None }, Owned { tasks, cancel })
    }

    /// A client with connections of its own that reaches no address of this machine or this link, whatever a name
    /// stands for, but for these hosts.
    pub(crate) fn guarded(&self, local: BTreeSet<String>) -> Self {
        Self::with(Arc::clone(&self.roots), Resolver { local: Some(Arc::new(local)) }, self.executor.clone())
    }

    fn with(roots: Arc<OnceCell<Arc<ClientConfig>>>, resolver: Resolver, executor: Owned) -> Self {
        let plain = builder(&executor).build(connector(&resolver));
        Self { roots, resolver, executor, plain, secure: Arc::default() }
    }

    /// Sends a request and waits for the header of its answer.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, HttpError> {
        let secure = request.uri().scheme_str() == Some("https");
        self.resolver.check(request.uri())?;
        let answer = async {
            match secure {
                true => self.secure().await?.request(request).await.map_err(broken),
                false => self.plain.request(request).await.map_err(broken),
            }
        };
        timeout(within, answer).await.unwrap_or(Err(HttpError::TimedOut(within)))
    }

    async fn secure(&self) -> Result<&Client<HttpsConnector<Plain>, Asked>, HttpError> {
        let client = self.secure.get_or_try_init(async || {
            let config = self.roots.get_or_try_init(async || {
                let read = tokio::task::spawn_blocking(tls_config).await;
                read.unwrap_or_else(|error| Err(error.to_string())).map_err(HttpError::Connect)
            });
            let mut plain = connector(&self.resolver);
            plain.enforce_http(false);
            Ok(builder(&self.executor).build(HttpsConnector::from((plain, Arc::clone(config.await?)))))
        });
        client.await
    }
}

/// Whether requests go through a proxy.
pub(crate) fn has_proxy() -> bool {
    PROXY_VARIABLES.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// The next part of a body; none at its end.
pub(crate) async fn next_part(body: &mut Incoming) -> Result<Option<Bytes>, HttpError> {
    loop {
        match timeout(SILENCE_MAX, body.frame()).await {
            Err(_) => return Err(HttpError::TimedOut(SILENCE_MAX)),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(HttpError::Broken(words(&error))),
            // Trailers say nothing here.
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A whole body of at most `max` bytes.
pub(crate) async fn read_whole(mut body: Incoming, max: usize, within: Duration) -> Result<Vec<u8>, HttpError> {
    let read = async {
        let mut whole = Vec::new();
        while let Some(part) = next_part(&mut body).await? {
            if whole.len().saturating_add(part.len()) > max {
                return Err(HttpError::TooMuch(u64::try_from(max).unwrap_or(u64::MAX)));
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole)
    };
    timeout(within, read).await.unwrap_or(Err(HttpError::TimedOut(within)))
}

fn builder(executor: &Owned) -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(executor.clone());
    builder
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_FOR)
        .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
        .http1_max_buf_size(HEADER_BYTES_MAX);
    builder
}

fn connector(resolver: &Resolver) -> Plain {
    let mut connector = HttpConnector::new_with_resolver(resolver.clone());
    connector.set_connect_timeout(Some(CONNECT_WITHIN));
    connector.set_nodelay(true);
    connector
}

fn broken(error: hyper_util::client::legacy::Error) -> HttpError {
    let refused = |error: &(dyn std::error::Error + 'static)| {
        error.downcast_ref::<io::Error>().and_then(|error| error.get_ref()?.downcast_ref::<LocalAddress>()).cloned()
    };
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(LocalAddress(host)) = refused(error) {
            return HttpError::Local(host);
        }
        cause = error.source();
    }
    if error.is_connect() { HttpError::Connect(words(&error)) } else { HttpError::Broken(words(&error)) }
}

/// An error and its causes.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some repeat their cause in their own words.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Blocks on the disk: a system has some hundred and fifty roots.
fn tls_config() -> Result<Arc<ClientConfig>, String> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let (file, dir) = (variable("GIT_SSL_CAINFO"), variable("GIT_SSL_CAPATH"));
    // The library knows SSL_CERT_FILE and SSL_CERT_DIR.
    let found = match file.is_some() || dir.is_some() {
        true => rustls_native_certs::load_certs_from_paths(file.as_deref(), dir.as_deref()),
        false => rustls_native_certs::load_native_certs(),
    };
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let why = found.errors.first().map_or_else(|| "there is none".to_owned(), ToString::to_string);
        return Err(format!("no root certificate can be read: {why}; install ca-certificates or set SSL_CERT_FILE"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = versions.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config))
}

/// Runs connections, so that they end with the room.
#[derive(Clone)]
struct Owned {
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Owned
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, connection: F) {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            cancel.run_until_cancelled(connection).await;
        });
    }
}

/// Turns names into addresses, and keeps those back that must not be reached.
#[derive(Clone)]
struct Resolver {
    /// The hosts that may be local; none where all may.
    local: Option<Arc<BTreeSet<String>>>,
}

impl Resolver {
    fn may_be_local(&self, host: &str) -> bool {
        self.local.as_ref().is_none_or(|local| local.contains(&host.to_ascii_lowercase()))
    }

    /// Addresses that are written out never come to be resolved.
    fn check(&self, uri: &Uri) -> Result<(), HttpError> {
        let host = bare_host(uri);
        if is_local(&host) && !self.may_be_local(&host) { Err(HttpError::Local(host)) } else { Ok(()) }
    }
}

/// The host without brackets, in lower case.
pub(crate) fn bare_host(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

/// A name stands for an address that must not be reached.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0} is this machine or this link")]
struct LocalAddress(String);

impl tower::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = self.clone();
        Box::pin(async move {
            let host = name.as_str();
            let mut found: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await?.collect();
            if !resolver.may_be_local(host) {
                let all = found.len();
                found.retain(|address| !is_local(&address.ip().to_string()));
                if found.is_empty() && all > 0 {
                    return Err(io::Error::other(LocalAddress(host.to_owned())));
                }
            }
            Ok(found.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn get(url: &str) -> Request<Full<Bytes>> {
        Request::get(url).body(Full::default()).unwrap()
    }

    #[tokio::test]
    async fn a_guarded_client_reaches_no_local_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let http = Http::new(TaskTracker::new(), CancellationToken::new());
        let guarded = http.guarded(BTreeSet::new());
        for host in ["127.0.0.1", "127.1", "2130706433", "localhost", "[::1]", "169.254.169.254", "0.0.0.0"] {
            let answer = guarded.send(get(&format!("http://{host}:{port}/")), Duration::from_secs(5)).await;
            assert!(matches!(answer, Err(HttpError::Local(_))), "{host}: {answer:?}");
        }
        // Nobody came; the one that is let in does, and gets no answer.
        let listed = http.guarded(["127.0.0.1".to_owned()].into());
        let asked = listed.send(get(&format!("http://127.0.0.1:{port}/")), Duration::from_millis(200));
        let (answer, accepted) = tokio::join!(asked, listener.accept());
        assert!(matches!(answer, Err(HttpError::TimedOut(_))), "{answer:?}");
        assert!(accepted.is_ok());
    }

    #[tokio::test]
    async fn nobody_there_is_a_failed_connection() {
        let port = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().port()
        };
        let http = Http::new(TaskTracker::new(), CancellationToken::new());
        let answer = http.send(get(&format!("http://127.0.0.1:{port}/")), Duration::from_secs(5)).await;
        assert!(matches!(answer, Err(HttpError::Connect(_))), "{answer:?}");
        let plain_text = http.send(get(&format!("https://127.0.0.1:{port}/")), Duration::from_secs(5)).await;
        assert!(matches!(plain_text, Err(HttpError::Connect(_))), "{plain_text:?}");
    }
}
