//! The `git upload-pack` behind an answer, and how what it writes reaches clients.

use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stoker_core::reason::Code;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::super::Shared;
use super::super::git::{Command, GitError};
use super::super::snapshot::SnapshotPin;
use super::super::store::Suspicion;
use super::body::Body;
use super::spool::{Follower, Writer};

/// How much of the child's output is passed on at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Less than this is not passed on in the middle of an answer where a short wait brings more: git writes 8 to 64 KiB at a
/// time, and what a part costs on its way hardly depends on its size.
const CHUNK_BYTES_MIN: usize = CHUNK_BYTES / 2;
/// That wait.
const GATHER: Duration = Duration::from_micros(500);
/// How many parts wait for a client that reads slowly, where the child writes for it alone.
const PARTS_MAX: usize = 2;
/// What a child says that ends with an error for its client has no more bytes.
const ERROR_BYTES_MAX: usize = 4096;

/// An answer that broke off, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer broke off ({})", .0.word())]
pub struct Broken(pub Code);

impl Broken {
    /// Its maker was ended, or the file that it lies in cannot be read.
    pub(super) const LOST: Self = Self(Code::PoolNotReady);
}

/// Where the child's output goes. One that is dropped without an end is an answer that broke off.
pub(super) enum Sink {
    /// To all who asked the same.
    Shared(Writer),
    /// To one client.
    Own(mpsc::Sender<Part>),
}

/// What one client gets.
pub(super) enum Part {
    Data(Bytes),
    End(Result<(), Broken>),
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

    /// Passes a part on. Blocks while its reader, or the disk, is slow.
    fn put(&mut self, part: Bytes) -> io::Result<()> {
        match self {
            Self::Shared(writer) => writer.put(part),
            Self::Own(sender) => sender.blocking_send(Part::Data(part)).map_err(io::Error::other),
        }
    }

    /// Nothing more comes: all of it was there, or it broke off.
    async fn end(self, end: Result<(), Broken>) {
        match self {
            Self::Shared(writer) => writer.end(end),
            Self::Own(sender) => drop(sender.send(Part::End(end)).await),
        }
    }
}

impl Source {
    /// The next part; nothing at the end.
    ///
    /// # Errors
    /// When the answer broke off.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        match self {
            Self::Shared(follower) => follower.next().await,
            Self::Own(receiver) => match receiver.recv().await {
                Some(Part::Data(data)) => Ok(Some(data)),
                Some(Part::End(end)) => end.map(|()| None),
                None => Err(Broken::LOST),
            },
        }
    }
}

/// One child's work.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    pub(super) command: Command,
    pub(super) body: Body,
    /// Held while it runs.
    pub(super) pin: SnapshotPin,
    pub(super) place: OwnedSemaphorePermit,
}

impl Job {
    /// Runs the child to its end, or ends it when nobody is left who reads.
    pub(super) async fn run(self, sink: Sink) {
        let Self { shared, command, body, pin, place } = self;
        let (repository, time_limit) = (pin.url().key(), shared.config().fetch_within);
        let (deserted, lost) = (sink.deserted(), shared.presence.token());
        let work = async {
            let mut child = command.stream().await?;
            let (stdin, stdout) = (child.take_stdin(), child.take_stdout());
            let talk = async { tokio::join!(feed(stdin, body), pump(stdout, sink)).1 };
            Ok::<_, GitError>(child.finish(talk).await)
        };
        let work = async {
            let broken = match tokio::time::timeout(time_limit, work).await {
                Ok(Ok((Ok((sink, said)), ended))) => {
                    // What is one error is told to the client by git itself, as the protocol has it.
                    let whole = ended.or_else(|error| if said.is_error() { Ok(()) } else { Err(error) });
                    let end = whole.as_ref().map(drop).map_err(|error| Broken(code_of(error)));
                    sink.end(end).await;
                    whole.err()
                }
                Ok(Err(error)) => Some(error),
                Ok(Ok((Err(error), _))) => {
                    tracing::warn!(repository, %error, "an answer broke off: it could not be passed on");
                    None
                }
                Err(_) => Some(GitError::TimedOut(time_limit)),
            };
            if let Some(error) = broken {
                tracing::warn!(repository, reason = code_of(&error).word(), "an answer broke off: {error}");
                if error.is_store_damage()
                    && let Some(entry) = shared.get(pin.url())
                {
                    shared.suspect(&entry, Suspicion { why: error.to_string(), full: true });
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = deserted => {}
            () = shared.cancel.cancelled() => {}
            () = lost.cancelled() => {}
        }
        drop((pin, place));
    }
}

/// What an end means here, where there is no upstream: what says nothing else is the disk under the snapshot.
fn code_of(error: &GitError) -> Code {
    match error.code() {
        Code::UpstreamUnreachable | Code::UpstreamTimeout | Code::UpstreamNotFound => Code::PoolNotReady,
        code => code,
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

/// Passes on what the child writes, until it writes no more: in a thread of its own while the child runs, for to go to one
/// for each part took longer than the work itself.
async fn pump(stdout: Option<ChildStdout>, mut sink: Sink) -> io::Result<(Sink, Said)> {
    let mut said = Said::default();
    let Some(stdout) = stdout else { return Ok((sink, said)) };
    let mut pipe = File::from(stdout.into_owned_fd()?);
    let pumped = tokio::task::spawn_blocking(move || {
        let mut part = Vec::with_capacity(CHUNK_BYTES);
        loop {
            let goes_on = gather(&mut pipe, &mut part, said.bytes > 0)?;
            if !part.is_empty() {
                said.heard(&part);
                sink.put(taken(&mut part))?;
            }
            if !goes_on {
                return Ok((sink, said));
            }
        }
    });
    pumped.await.map_err(io::Error::other)?
}

/// Reads what is there into a part; in the middle of an answer, waits once for more where that is little. False at the end.
fn gather(pipe: &mut File, part: &mut Vec<u8>, in_the_middle: bool) -> io::Result<bool> {
    let mut may_wait = in_the_middle;
    loop {
        match rustix::io::read(&mut *pipe, rustix::buffer::spare_capacity(part)) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if part.len() >= CHUNK_BYTES_MIN || !may_wait {
            return Ok(true);
        }
        may_wait = false;
        std::thread::sleep(GATHER);
    }
}

/// What was gathered, and room for the next: a small part is copied, so that it keeps no large buffer.
fn taken(part: &mut Vec<u8>) -> Bytes {
    if part.len() >= CHUNK_BYTES_MIN {
        std::mem::replace(part, Vec::with_capacity(CHUNK_BYTES)).into()
    } else {
        let bytes = Bytes::copy_from_slice(part);
        part.clear();
        bytes
    }
}
