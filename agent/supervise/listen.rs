//! Where the agent answers: the socket, gRPC and HTTP over TCP, with TLS or without, git for its own builds.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};

use super::{Agent, StartError};
use crate::access::tls::{Https, Tls};
use crate::access::{Connection, Peer};
use crate::config::{Config, TlsFiles, Volume};
use crate::repository::serve::Base;
use crate::volume::{Volumes, keep_known};

impl Agent {
    /// Binds every listener before any of them answers: who reaches one reaches all.
    pub(super) async fn serve(&self, config: &Config) -> Result<(), StartError> {
        let listen = &config.listen;
        let grpc_tls = self.tls("listen.grpc.tls", listen.grpc_tls.clone(), b"h2").await?;
        let http_tls = self.tls("listen.http.tls", listen.http_tls.clone(), b"http/1.1").await?;
        // Nobody but the kubelet has to do with it.
        let of_volumes = |volume: &Volume| bind_socket("volume.socket", &volume.socket, (0o700, 0o600));
        let volumes = config.volume.as_ref().map(of_volumes).transpose()?;
        let socket =
            listen.socket.as_deref().map(|path| bind_socket("listen.socket", path, (0o755, 0o660))).transpose()?;
        let grpc = bind_tcp("listen.grpc", listen.grpc).await?;
        let http = bind_tcp("listen.http", listen.http).await?;
        if let Some(listener) = socket {
            let incoming = UnixListenerStream::new(listener).map(|stream| stream.map(Connection::local));
            self.serve_grpc("socket", incoming)?;
        }
        match (grpc, grpc_tls) {
            (Some(listener), Some(tls)) => {
                let (accept, incoming) = tls.accept(listener, self.closing.clone(), |_| {});
                self.serving.spawn(accept);
                self.serve_grpc("grpc", ReceiverStream::new(incoming).map(io::Result::Ok))?;
            }
            (Some(listener), None) => {
                let incoming = TcpListenerStream::new(listener).map(|stream| stream.and_then(Connection::plain));
                self.serve_grpc("grpc", incoming)?;
            }
            (None, _) => {}
        }
        if let Some(listener) = http {
            self.serve_http(listener, http_tls)?;
        }
        if let (Some(volume), Some(listener)) = (&config.volume, volumes) {
            self.serve_volumes(volume, listener);
        }
        if listen.private_git {
            self.serve_privately().await?;
        }
        self.rooms.repositories.start_prefill();
        Ok(())
    }

    /// What a listener proves itself with; follows the files from now on.
    async fn tls(
        &self,
        field: &'static str,
        files: Option<TlsFiles>,
        protocol: &'static [u8],
    ) -> Result<Option<Arc<Tls>>, StartError> {
        let Some(files) = files else { return Ok(None) };
        let loaded = tokio::task::spawn_blocking(move || Tls::load(field, files, protocol)).await;
        let tls = loaded.unwrap_or_else(|error| Err(error.to_string())).map_err(StartError::Tls)?;
        self.rooms.access.listens(Arc::clone(&tls));
        self.serving.spawn(Arc::clone(&tls).follow(self.closing.clone()));
        Ok(Some(tls))
    }

    fn serve_grpc<S>(
        &self,
        what: &'static str,
        incoming: impl Stream<Item = io::Result<Connection<S>>> + Send + 'static,
    ) -> Result<(), StartError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let routes = self.rooms.routes().map_err(|error| StartError::Serve(error.to_string()))?;
        let closing = self.closing.clone().cancelled_owned();
        let serve = server().add_routes(routes).serve_with_incoming_shutdown(incoming, closing);
        self.serving.spawn(log_end(what, serve));
        Ok(())
    }

    fn serve_http(&self, listener: TcpListener, tls: Option<Arc<Tls>>) -> Result<(), StartError> {
        let address = listener.local_addr().map_err(StartError::io("listen.http"))?;
        let routes = crate::http::routes(self.rooms.clone());
        let closing = self.closing.clone().cancelled_owned();
        if let Some(tls) = tls {
            let (accept, incoming) = tls.accept(listener, self.closing.clone(), crate::http::git::cut_when_idle);
            self.serving.spawn(accept);
            let routes = routes.into_make_service_with_connect_info::<Peer>();
            let serve = axum::serve(Https { incoming, address }, routes).with_graceful_shutdown(closing);
            self.serving.spawn(log_end("http", async move { serve.await }));
            return Ok(());
        }
        // In a pod this address is that of no build: there `repositories.serve.url` says where they reach it.
        if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
            self.rooms.serve.reached_at(base_of(address));
        }
        let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
        let listener = listener.tap_io(crate::http::git::cut_when_idle);
        let serve = axum::serve(listener, routes).with_graceful_shutdown(closing);
        self.serving.spawn(log_end("http", async move { serve.await }));
        Ok(())
    }

    /// Sources as volumes. The kubelet finds the driver once it answers, and no more when it does not.
    fn serve_volumes(&self, volume: &Volume, listener: UnixListener) {
        let driver = Volumes::new(self.rooms.clone(), volume);
        let (socket, closing) = (volume.socket.clone(), self.closing.clone());
        self.serving.spawn(keep_known(volume.clone(), closing.clone()));
        self.serving.spawn(async move {
            driver.serve(listener, &socket, closing).await;
            let _ = std::fs::remove_file(&socket);
        });
    }

    /// Git for the builds of this agent alone: other users of the machine can connect, and do not know the path.
    async fn serve_privately(&self) -> Result<(), StartError> {
        let what = || StartError::io("git for this agent's builds");
        let secret = secret().map_err(what())?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(what())?;
        let address = listener.local_addr().map_err(what())?;
        let url = format!("http://{address}/{secret}/git/");
        self.rooms.serve.reached_at(Base { url, loopback: true });
        let routes =
            axum::Router::new().nest(&format!("/{secret}"), crate::http::git::routes(self.rooms.serve.clone()));
        let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
        let closing = self.closing.clone().cancelled_owned();
        let listener = listener.tap_io(crate::http::git::cut_when_idle);
        let serve = axum::serve(listener, routes).with_graceful_shutdown(closing);
        self.serving.spawn(log_end("git", async move { serve.await }));
        Ok(())
    }
}

async fn bind_tcp(what: &str, address: Option<SocketAddr>) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = address else { return Ok(None) };
    TcpListener::bind(address).await.map(Some).map_err(StartError::io(format!("{what} {address}")))
}

/// Where builds of this machine reach a listener.
fn base_of(address: SocketAddr) -> Base {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Base { url: format!("http://{}/git/", SocketAddr::new(ip, address.port())), loopback: ip.is_loopback() }
}

/// 128 bits of the kernel's, in hexadecimal.
fn secret() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn log_end<E: std::fmt::Display>(what: &str, serve: impl Future<Output = Result<(), E>>) {
    if let Err(error) = serve.await {
        tracing::error!(%error, what, "a listener ended");
    }
}

fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .max_concurrent_streams(1024)
}

/// Binds a socket, over a dead one where its agent was killed. Whoever can open it can order builds: `modes` are its folder's,
/// where that is made, and its own.
fn bind_socket(field: &str, path: &Path, modes: (u32, u32)) -> Result<UnixListener, StartError> {
    let what = || format!("{field} {}", path.display());
    if let Some(parent) = path.parent() {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(modes.0).create(parent).map_err(StartError::io(what()))?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let error = io::Error::new(io::ErrorKind::AddrInUse, "another agent answers there");
        return Err(StartError::Io { what: what(), error });
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StartError::Io { what: what(), error }),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(StartError::io(what()))?;
    // The agent's own user, and its group where that is in its mode.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(modes.1)).map_err(StartError::io(what()))?;
    Ok(listener)
}
