//! What exports, imports and thorough checks share: how many run at once, how much room there is, how bytes come and go.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use stoker_core::reason::{Code, Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::entry::{Entry, stopping};
use super::git::GitError;

/// How many imports, exports and thorough checks run at once, all together.
const TRANSFERS_MAX: usize = 4;
/// How many bytes one message of a stream carries.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Gives the pool's free bytes above its floor.
pub type Room = Arc<dyn Fn() -> Result<u64, Reason> + Send + Sync>;
/// A stream of bytes that comes from outside; an error ends it.
pub type Chunks = mpsc::Receiver<io::Result<Vec<u8>>>;

/// What they share.
pub(super) struct Transfers {
    pub(super) room: OnceLock<Room>,
    /// How often each step mended a store.
    pub(super) heals: Mutex<BTreeMap<&'static str, u64>>,
    places: Arc<Semaphore>,
    numbers: AtomicU64,
}

impl Default for Transfers {
    fn default() -> Self {
        Self {
            room: OnceLock::new(),
            heals: Mutex::default(),
            places: Arc::new(Semaphore::new(TRANSFERS_MAX)),
            numbers: AtomicU64::new(0),
        }
    }
}

impl Transfers {
    /// A place, where one is free: who comes too late is told so, and is not kept waiting with an open stream.
    pub(super) fn place(&self, subject: &str) -> Result<OwnedSemaphorePermit, Reason> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let message =
                format!("{TRANSFERS_MAX} imports, exports and checks run already; ask again when one is over");
            Reason::new(Code::UpstreamTimeout, subject, message)
        })
    }

    /// A number that no other staging directory of this agent has.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::SeqCst)
    }

    /// The pool's free bytes above its floor; where nobody told the floor, what the filesystem has.
    pub(super) fn free(&self, path: &Path) -> io::Result<u64> {
        match self.room.get() {
            Some(room) => room().map_err(|reason| io::Error::other(reason.message)),
            None => {
                let figures = rustix::fs::statvfs(path)?;
                Ok(figures.f_bavail.saturating_mul(figures.f_frsize))
            }
        }
    }
}

/// Shown as at work while it lives, beside the repository's own task.
pub(super) struct Beside(Arc<Entry>);

impl Beside {
    pub(super) fn begin(shared: &Shared, entry: &Arc<Entry>) -> Self {
        entry.state().beside += 1;
        shared.tick();
        Self(Arc::clone(entry))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.beside = state.beside.saturating_sub(1);
        if state.beside == 0 && !state.busy {
            drop(state);
            self.0.progress.send_replace(super::Progress::default());
        }
    }
}

/// Runs what writes to the pool. It is told when the pool goes, the repository is removed or the agent stops, and comes
/// to its own end then.
pub(super) async fn guarded<T>(
    shared: &Shared,
    entry: &Entry,
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Reason>>,
) -> Result<T, Reason> {
    (shared.root)()?;
    let lost = shared.presence.token();
    tokio::pin!(work);
    let done = tokio::select! {
        done = &mut work => done,
        () = lost.cancelled() => {
            cancel.cancel();
            work.await
        }
    };
    // Whatever broke because the pool went is told as that.
    done.map_err(|reason| match (shared.root)() {
        Err(away) => away,
        Ok(_) if entry.stop.is_cancelled() => stopping(&entry.url),
        Ok(_) => reason,
    })
}

/// What a git command that works on what was brought means: never that an upstream is away.
pub(super) fn local_reason(error: &GitError, subject: &str, doing: &str) -> Reason {
    let reason = error.reason(subject, doing);
    match (error, reason.code) {
        (_, Code::DiskFloor | Code::PoolNotReady) => reason,
        (GitError::Failed { .. }, _) => Reason { code: Code::RepositoryCorrupt, ..reason },
        _ => reason,
    }
}

/// A stream as a file that is read once. Blocks while nothing comes.
pub(super) struct ChunkReader {
    chunks: Chunks,
    chunk: Vec<u8>,
    at: usize,
}

impl ChunkReader {
    pub(super) const fn new(chunks: Chunks) -> Self {
        Self { chunks, chunk: Vec::new(), at: 0 }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let rest = self.chunk.get(self.at..).unwrap_or_default();
            if !rest.is_empty() {
                let count = (&mut &*rest).read(into)?;
                self.at += count;
                return Ok(count);
            }
            match self.chunks.blocking_recv() {
                Some(chunk) => (self.chunk, self.at) = (chunk?, 0),
                None => return Ok(0),
            }
        }
    }
}

/// A stream as a file that is written once. Blocks while nobody takes what was written; fails when nobody will.
pub(super) struct ChunkWriter {
    chunks: mpsc::Sender<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
}

impl ChunkWriter {
    pub(super) fn new(chunks: mpsc::Sender<io::Result<Vec<u8>>>) -> Self {
        Self { chunks, chunk: Vec::with_capacity(CHUNK_BYTES) }
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let count = from.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(from.get(..count).unwrap_or_default());
        if self.chunk.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
        self.chunks.blocking_send(Ok(chunk)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}
