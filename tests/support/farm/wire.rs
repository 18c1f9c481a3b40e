//! The connection to a simulated agent, which can fall silent or be cut as a node's does.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_stream::Stream as _;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// What ends or silences all connections of one agent.
#[derive(Debug, Clone)]
pub(crate) struct Fate {
    pub(crate) dead: CancellationToken,
    silent: watch::Sender<bool>,
}

impl Fate {
    pub(crate) fn new() -> Self {
        Self { dead: CancellationToken::new(), silent: watch::Sender::new(false) }
    }

    /// Nothing goes in or out, and nothing is closed: as when a node lost its network.
    pub(crate) fn silence(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    pub(crate) fn is_silent(&self) -> bool {
        *self.silent.borrow()
    }
}

/// One connection.
pub(crate) struct Wire {
    stream: TcpStream,
    dead: Pin<Box<WaitForCancellationFutureOwned>>,
    silence: WatchStream<bool>,
    silent: bool,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream, fate: &Fate) -> Self {
        let silence = WatchStream::new(fate.silent.subscribe());
        Self { stream, dead: Box::pin(fate.dead.clone().cancelled_owned()), silence, silent: false }
    }

    /// Ready where bytes may pass; who reads and writes is one task, so that one waker is enough.
    fn open(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.dead.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        while let Poll::Ready(Some(silent)) = Pin::new(&mut self.silence).poll_next(context) {
            self.silent = silent;
        }
        if self.silent { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.open(cx))?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.open(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.open(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
