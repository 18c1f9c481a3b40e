//! The `git upload-pack` behind an answer, and how what it writes reaches clients.

use std::fs::File;
use std::io::{self, Read as _};
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::super::git::{Command, GitError};
use super::super::snapshot::SnapshotPin;
use super::body::Body;
use super::spool::{Follower, Writer};

/// How much of the child's output is passed on at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// How many parts wait for a client that reads slowly, where the child writes for it alone.
const PARTS_MAX: usize = 2;
/// What a child says that ends with an error for its client has no more bytes.
const ERROR_BYTES_MAX: usize = 4096;

/// Where the child's output goes.
pub(super) enum Sink {
    /// To all who asked the same.
    Shared(Writer),
    /// To one client.
    Own(mpsc::Sender<Part>),
}

/// What one client gets. A channel that closes without an end is an answer that broke off.
pub(super) enum Part {
    Data(Bytes),
    End,
}

/// What one client reads.
pub(super) enum Source {
    Shared(Follower),
    Own(mpsc::Receiver<Part>),
}

/// A sink for one client, and its other end.
pub(super) fn own() -> (Sink, Source) {
    let (sender, receiver) = mpsc::channel(PARTS_MAX);
    (Sink::Own(sender), Source::Own(receiver))
}

impl Sink {
    /// Ends when nobody is left who reads.
    fn deserted(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match self {
            Self::Shared(writer) => Box::pin(writer.deserted().cancelled_owned()),
            Self::Own(sender) => {
                let sender = sender.clone();
                Box::pin(async move { sender.closed().await })
            }
        }
    }

    /// All of it was there. A sink that is dropped without this is an answer that broke off.
    async fn end(self) {
        match self {
            Self::Shared(writer) => writer.end(),
            Self::Own(sender) => drop(sender.send(Part::End).await),
        }
    }
}

impl Source {
    /// The next part; nothing at the end.
    ///
    /// # Errors
    /// When the answer broke off.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Shared(follower) => follower.next().await,
            Self::Own(receiver) => match receiver.recv().await {
                Some(Part::Data(data)) => Ok(Some(data)),
                Some(Part::End) => Ok(None),
                None => Err(io::Error::other("the answer broke off")),
            },
        }
    }
}

/// One child's work.
pub(super) struct Job {
    pub(super) command: Command,
    pub(super) body: Body,
    /// Held while it runs.
    pub(super) pin: SnapshotPin,
    pub(super) place: OwnedSemaphorePermit,
    /// The agent stops.
    pub(super) stop: CancellationToken,
    /// The pool goes.
    pub(super) lost: CancellationToken,
    pub(super) time_limit: Duration,
}

impl Job {
    /// Runs the child to its end, or ends it when nobody is left who reads.
    pub(super) async fn run(self, sink: Sink) {
        let Self { command, body, pin, place, stop, lost, time_limit } = self;
        let repository = pin.url().key();
        let deserted = sink.deserted();
        let work = async {
            let mut child = command.stream()?;
            let (stdin, stdout) = (child.take_stdin(), child.take_stdout());
            let talk = async { tokio::join!(feed(stdin, body), pump(stdout, sink)).1 };
            Ok::<_, GitError>(child.finish(talk).await)
        };
        let done = tokio::select! {
            done = tokio::time::timeout(time_limit, work) => done,
            () = deserted => return,
            () = stop.cancelled() => return,
            () = lost.cancelled() => return,
        };
        match done {
            Ok(Ok((Ok((sink, _)), Ok(())))) => sink.end().await,
            // It told the client itself what is wrong, as the protocol has it.
            Ok(Ok((Ok((sink, said)), Err(_)))) if said.is_error() => sink.end().await,
            Ok(Err(error) | Ok((Ok(_), Err(error)))) => {
                tracing::warn!(repository, reason = error.code().word(), "an answer broke off: {error}");
            }
            Ok(Ok((Err(error), _))) => {
                tracing::warn!(repository, %error, "an answer broke off: it could not be passed on");
            }
            Err(_) => tracing::warn!(repository, "an answer broke off: it took longer than {time_limit:?}"),
        }
        drop((pin, place));
    }
}

/// What the child wrote, as far as it matters.
#[derive(Default)]
struct Said {
    first: Vec<u8>,
    bytes: usize,
}

impl Said {
    fn heard(&mut self, chunk: &[u8]) {
        let missing = 8_usize.saturating_sub(self.first.len());
        self.first.extend(chunk.iter().take(missing));
        self.bytes = self.bytes.saturating_add(chunk.len());
    }

    /// Nothing but one packet with an error: gitprotocol-pack(5).
    fn is_error(&self) -> bool {
        self.bytes <= ERROR_BYTES_MAX && self.first.get(4..8) == Some(b"ERR ")
    }
}

/// Gives the child its input. One that does not read all of it says why in its status.
async fn feed(stdin: Option<ChildStdin>, body: Body) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(body.bytes()).await;
    }
}

/// Passes on what the child writes, until it writes no more.
async fn pump(stdout: Option<ChildStdout>, sink: Sink) -> io::Result<(Sink, Said)> {
    let mut said = Said::default();
    let Some(mut stdout) = stdout else { return Ok((sink, said)) };
    match sink {
        // A thread of its own while the child runs: to go to one for each part took longer than the work itself.
        Sink::Shared(mut writer) => {
            let mut pipe = File::from(stdout.into_owned_fd()?);
            let pumped = tokio::task::spawn_blocking(move || {
                let mut buffer = vec![0; CHUNK_BYTES];
                loop {
                    let chunk = match pipe.read(&mut buffer) {
                        Ok(0) => return Ok((Sink::Shared(writer), said)),
                        Ok(count) => Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default()),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(error),
                    };
                    said.heard(&chunk);
                    writer.put(chunk)?;
                }
            });
            pumped.await.map_err(io::Error::other)?
        }
        Sink::Own(sender) => loop {
            let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
            if stdout.read_buf(&mut chunk).await? == 0 {
                return Ok((Sink::Own(sender), said));
            }
            said.heard(&chunk);
            sender.send(Part::Data(chunk.freeze())).await.map_err(io::Error::other)?;
        },
    }
}
