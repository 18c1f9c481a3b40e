//! A connection that knows who is at its other end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::caller::Identity;
use super::tls::Tls;
use super::{Peer, local};

/// A stream, and its peer.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    /// Who is at the other end.
    pub peer: Peer,
}

impl Connection<UnixStream> {
    /// A process on the socket.
    #[must_use]
    pub fn local(stream: UnixStream) -> Self {
        let (process, from) = local::process(&stream);
        let process = process.map(|process| Arc::new(Identity::process(process)));
        Self { peer: Peer::Local(process, from), stream }
    }
}

impl Connection<TcpStream> {
    /// Plain TCP.
    ///
    /// # Errors
    /// When the other end has gone already.
    pub fn plain(stream: TcpStream) -> io::Result<Self> {
        Ok(Self { peer: Peer::Plain(stream.peer_addr()?), stream })
    }
}

impl Connection<TlsStream<TcpStream>> {
    /// TLS, after the handshake.
    #[must_use]
    pub fn tls(stream: TlsStream<TcpStream>, address: SocketAddr, tls: Arc<Tls>) -> Self {
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificates = shown.iter().map(|one| one.clone().into_owned()).collect();
        Self { peer: Peer::Tls(address, Arc::new(certificates), tls), stream }
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
