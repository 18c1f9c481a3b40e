//! Listeners with certificates that change under way.
//!
//! The files are looked at every two seconds, by their content: a Kubernetes secret changes by a swapped symlink, others
//! by writing in place. What makes no whole is not taken over, the one before goes on, and `status` says so. New
//! connections get what is there now; those that are open stay, and their clients are held against the authorities of
//! now at each call.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use stoker_core::reason::{Code, Reason};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::caller::Identity;
use super::connection::Connection;
use super::{Peer, certificate, lock};
use crate::config::TlsFiles;
use crate::node::files::read_whole;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The most bytes of each.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How long a handshake may take, and how many may be under way.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const HANDSHAKES_MAX: usize = 256;
/// How long a client's certificate that was verified is not verified again, and how many are remembered.
const VERIFIED_FOR: Duration = Duration::from_secs(30);
const VERIFIED_MAX: usize = 1024;

/// What the files hold.
#[derive(Clone, PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// What was made of it.
#[derive(Clone)]
struct Made {
    config: Arc<ServerConfig>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// Whom a certificate names, or why it does not count.
type Verified = Result<Arc<Identity>, String>;

struct State {
    content: Content,
    made: Made,
    fault: Option<Reason>,
    /// By the certificate's digest: when it was verified, and what came of it.
    verified: HashMap<[u8; 32], (Instant, Verified)>,
}

/// The TLS of one listener.
pub struct Tls {
    /// Its section, as `listen.grpc.tls`.
    field: &'static str,
    files: TlsFiles,
    protocol: &'static [u8],
    state: Mutex<State>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("field", &self.field).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files. `protocol` is what is spoken inside, as ALPN names it.
    ///
    /// # Errors
    /// What is wrong with them, with the field.
    pub fn load(field: &'static str, files: TlsFiles, protocol: &'static [u8]) -> Result<Arc<Self>, String> {
        let content = read(&files).map_err(|why| format!("{field}.{why}"))?;
        let made = make(&files, &content, protocol).map_err(|why| format!("{field}.{why}"))?;
        let state = State { content, made, fault: None, verified: HashMap::new() };
        Ok(Arc::new(Self { field, files, protocol, state: Mutex::new(state) }))
    }

    /// Follows the files until it is cancelled.
    pub async fn follow(self: Arc<Self>, cancel: CancellationToken) {
        // Files that are just being written are none that are wrong: only what stays so is told.
        let mut before = None;
        while cancel.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let tls = Arc::clone(&self);
            let Ok(found) = tokio::task::spawn_blocking(move || tls.look()).await else { return };
            if found.is_some() && found == before {
                self.tell(found.clone());
            } else if found.is_none() {
                self.tell(None);
            }
            before = found;
        }
    }

    /// Takes over what the files hold where that is new and whole; says what is wrong with it where it is not.
    fn look(&self) -> Option<String> {
        let content = match read(&self.files) {
            Ok(content) => content,
            Err(why) => return Some(why),
        };
        if lock(&self.state).content == content {
            return None;
        }
        match make(&self.files, &content, self.protocol) {
            Ok(made) => {
                let mut state = lock(&self.state);
                (state.content, state.made) = (content, made);
                state.verified.clear();
                tracing::info!(field = self.field, "new certificates were taken over");
                None
            }
            Err(why) => Some(why),
        }
    }

    fn tell(&self, why: Option<String>) {
        let fault = why.map(|why| {
            let message = format!("{}.{why}; the certificates before go on", self.field);
            Reason::new(Code::CertificateInvalid, self.field, message)
        });
        let mut state = lock(&self.state);
        if let Some(reason) = fault.as_ref().filter(|_| state.fault != fault) {
            tracing::error!(reason = reason.code.word(), "{}", reason.message);
        }
        state.fault = fault;
    }

    /// Why the files were not taken over, where they were not.
    pub(super) fn fault(&self) -> Option<Reason> {
        lock(&self.state).fault.clone()
    }

    /// Whom a client's chain names, held against the authorities of now.
    ///
    /// # Errors
    /// When none of them vouches for it any more, or its time is over.
    pub fn identity(&self, chain: &[CertificateDer<'static>]) -> Result<Arc<Identity>, String> {
        let (first, between) = chain.split_first().ok_or("there is no certificate")?;
        let digest: [u8; 32] = Sha256::digest(first).into();
        let clients = {
            let state = lock(&self.state);
            if let Some((at, known)) = state.verified.get(&digest)
                && at.elapsed() < VERIFIED_FOR
            {
                return known.clone();
            }
            state.made.clients.clone()
        };
        let clients = clients.ok_or_else(|| format!("{}.clientCa is not set any more", self.field))?;
        let verified = clients.verify_client_cert(first, between, UnixTime::now());
        let verified = verified.map_err(|error| format!("the client's certificate does not count: {error}"));
        let found = verified.and_then(|_| certificate::who(first)).map(Arc::new);
        let mut state = lock(&self.state);
        if state.verified.len() >= VERIFIED_MAX {
            state.verified.retain(|_, (at, _)| at.elapsed() < VERIFIED_FOR);
        }
        // What was verified against authorities that have gone meanwhile is not remembered.
        let same = state.made.clients.as_ref().is_some_and(|now| Arc::ptr_eq(now, &clients));
        if same && state.verified.len() < VERIFIED_MAX {
            state.verified.insert(digest, (Instant::now(), found.clone()));
        }
        found
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&lock(&self.state).made.config))
    }

    /// Connections whose handshake is done; those that fail are theirs to repeat. `tune` is called for each before.
    pub fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        cancel: CancellationToken,
        tune: fn(&mut TcpStream),
    ) -> (impl Future<Output = ()> + Send + 'static, mpsc::Receiver<Connection<TlsStream<TcpStream>>>) {
        let (ready, incoming) = mpsc::channel(HANDSHAKES_MAX);
        let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let accept = async move {
            let mut handshakes = tokio::task::JoinSet::new();
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let accepted = tokio::select! {
                    () = cancel.cancelled() => return,
                    Some(_) = handshakes.join_next() => continue,
                    accepted = listener.accept() => accepted,
                };
                let (mut stream, address) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, or the like: it will be better when some connections have ended.
                        tracing::debug!(%error, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                tune(&mut stream);
                let (acceptor, ready, tls) = (self.acceptor(), ready.clone(), Arc::clone(&self));
                handshakes.spawn(async move {
                    let _place = place;
                    match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => drop(ready.send(Connection::tls(stream, address, tls)).await),
                        Ok(Err(error)) => tracing::debug!(%error, %address, "a handshake failed"),
                        Err(_) => tracing::debug!(%address, "a handshake took too long"),
                    }
                });
            }
        };
        (accept, incoming)
    }
}

/// Connections for the HTTP side.
#[derive(Debug)]
pub struct Https {
    /// As [`Tls::accept`] gives them.
    pub incoming: mpsc::Receiver<Connection<TlsStream<TcpStream>>>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl axum::serve::Listener for Https {
    type Io = Connection<TlsStream<TcpStream>>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Peer) {
        match self.incoming.recv().await {
            Some(connection) => {
                let peer = connection.peer.clone();
                (connection, peer)
            }
            // The agent is stopping: whoever serves is told by other means.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer::Plain(self.address))
    }
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Https>> for Peer {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Https>) -> Self {
        stream.remote_addr().clone()
    }
}

fn read(files: &TlsFiles) -> Result<Content, String> {
    let file = |name: &str, path: &Path| {
        read_whole(path, FILE_BYTES_MAX).map_err(|error| format!("{name}: {} cannot be read: {error}", path.display()))
    };
    Ok(Content {
        certificate: file("certificate", &files.certificate)?,
        key: file("key", &files.key)?,
        client_ca: files.client_ca.as_deref().map(|path| file("clientCa", path)).transpose()?,
    })
}

fn make(files: &TlsFiles, content: &Content, protocol: &[u8]) -> Result<Made, String> {
    let provider = Arc::new(default_provider());
    let chain = certificates("certificate", &files.certificate, &content.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&content.key);
    let key = key.map_err(|error| format!("key: {} has no private key in PEM: {error}", files.key.display()))?;
    let clients = match (&files.client_ca, &content.client_ca) {
        (Some(path), Some(content)) => Some(verifier(path, content)?),
        _ => None,
    };
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("certificate: {error}"))?;
    let builder = match &clients {
        Some(clients) => builder.with_client_cert_verifier(Arc::clone(clients)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        let (certificate, key) = (files.certificate.display(), files.key.display());
        format!("key: {key} does not go with {certificate}: {error}")
    })?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Made { config: Arc::new(config), clients })
}

fn verifier(path: &Path, content: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for one in certificates("clientCa", path, content)? {
        roots.add(one).map_err(|error| format!("clientCa: {} has what is no authority: {error}", path.display()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()));
    let clients = builder.allow_unauthenticated().build();
    clients.map_err(|error| format!("clientCa: {}: {error}", path.display()))
}

fn certificates(name: &str, path: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |why: String| format!("{name}: {} has no certificate in PEM{why}", path.display());
    let all = CertificateDer::pem_slice_iter(content).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| wrong(format!(": {error}")))?;
    if all.is_empty() { Err(wrong(String::new())) } else { Ok(all) }
}
