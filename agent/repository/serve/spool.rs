//! Answers that several clients share: one child writes a file, all who asked the same read it, each at its own pace.
//!
//! Why not git's own place for this, `uploadpack.packObjectsHook`: the hook saves the packing alone, and each request
//! still has its own `upload-pack`, which reads the refs, walks for what to send and copies the whole pack into packets,
//! and a hook process that copies it once more; both need a protocol between the hook and the agent. Whether two requests
//! are the same is known here already, for the agent reads them, and by the same words: snapshot, arguments, sorted
//! names. So the answer itself is shared, and the clients that join cost a read of the page cache.
//!
//! The file has no name: when the last who holds it lets go, or the agent dies, the kernel frees it. How much all of them
//! may take is bounded, and reserved before a child starts.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::disk::{make_directory, names};
use super::super::lock;
use super::child::Broken;

/// How much is read at a time.
const CHUNK_BYTES: u64 = 256 << 10;
/// How many of the last parts are kept in memory: who keeps pace with the child never reads the file.
const RECENT_MAX: usize = 8;
/// By how much a reservation grows that was too small.
const GROW_BYTES: u64 = 64 << 20;

/// What makes two answers the same.
pub(super) type Key = [u8; 32];

/// All shared answers. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Spools {
    table: Arc<Mutex<HashMap<Key, Weak<Spool>>>>,
    reserved: Arc<AtomicU64>,
}

impl Spools {
    /// Joins the answer of this key, where one is there that still goes on or is whole.
    pub(super) fn join(&self, key: &Key) -> Option<Follower> {
        lock(&self.table).get(key).and_then(Weak::upgrade).and_then(Follower::of)
    }

    /// Joins the answer of this key; where there is none, begins one, and its writer comes with the first follower.
    /// Nothing where an answer of `expected` bytes would not fit into `max`, or no file can be had, which is made before it is
    /// known whether it is needed: nobody waits for the disk because another does. Blocks.
    pub(super) fn join_or_begin(
        &self,
        key: Key,
        dir: &Path,
        expected: u64,
        max: u64,
    ) -> Option<(Option<Writer>, Follower)> {
        let begun = self.begin(dir, expected, max);
        // Of those who ask the same at once, one begins and the others join.
        let mut table = lock(&self.table);
        if let Some(follower) = table.get(&key).and_then(Weak::upgrade).and_then(Follower::of) {
            return Some((None, follower));
        }
        let spool = Arc::new(begun?);
        let follower = Follower::of(Arc::clone(&spool))?;
        table.retain(|_, spool| spool.strong_count() > 0);
        table.insert(key, Arc::downgrade(&spool));
        Some((Some(Writer { spool, at: 0 }), follower))
    }

    fn begin(&self, dir: &Path, expected: u64, max: u64) -> Option<Spool> {
        let mut reservation = Reservation { bytes: 0, max, all: Arc::clone(&self.reserved) };
        if !reservation.grow(expected) {
            return None;
        }
        let file = match nameless(dir).and_then(|file| has_room(&file, expected).map(|room| (file, room))) {
            Ok((file, true)) => file,
            Ok((_, false)) => return None,
            Err(error) => {
                tracing::warn!(%error, dir = %dir.display(), "no file for a shared answer");
                return None;
            }
        };
        Some(Spool {
            file,
            recent: Mutex::default(),
            written: watch::Sender::new(Written::default()),
            readers: Mutex::new(Some(0)),
            deserted: CancellationToken::new(),
            reservation: Mutex::new(reservation),
        })
    }

    /// How many bytes are reserved.
    #[cfg(test)]
    pub(super) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::SeqCst)
    }
}

/// A part of what all shared answers may take; given back when it is dropped.
struct Reservation {
    bytes: u64,
    max: u64,
    all: Arc<AtomicU64>,
}

impl Reservation {
    /// False: it does not fit.
    fn grow(&mut self, by: u64) -> bool {
        let fits = |all: u64| all.checked_add(by).filter(|all| *all <= self.max);
        let grown = self.all.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok();
        if grown {
            self.bytes = self.bytes.saturating_add(by);
        }
        grown
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// How far an answer is.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    bytes: u64,
    /// How it ended, once nothing more comes.
    end: Option<Result<(), Broken>>,
}

/// One shared answer.
struct Spool {
    file: File,
    /// The last parts, each with where it begins.
    recent: Mutex<VecDeque<(u64, Bytes)>>,
    written: watch::Sender<Written>,
    /// How many read; none once the last has left: then nobody joins any more.
    readers: Mutex<Option<usize>>,
    deserted: CancellationToken,
    reservation: Mutex<Reservation>,
}

/// Writes a shared answer.
pub(super) struct Writer {
    spool: Arc<Spool>,
    at: u64,
}

impl Writer {
    /// Cancelled when nobody reads any more.
    pub(super) fn deserted(&self) -> CancellationToken {
        self.spool.deserted.clone()
    }

    /// Adds to the answer. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk refuses, or more comes than there may be.
    pub(super) fn put(&mut self, chunk: Bytes) -> io::Result<()> {
        let at = self.at;
        let end = at.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        {
            let mut reservation = lock(&self.spool.reservation);
            if end > reservation.bytes && !reservation.grow(GROW_BYTES) {
                return Err(io::Error::other("the answer is larger than what all shared answers may take"));
            }
        }
        self.spool.file.write_all_at(&chunk, at)?;
        {
            let mut recent = lock(&self.spool.recent);
            if recent.len() >= RECENT_MAX {
                recent.pop_front();
            }
            recent.push_back((at, chunk));
        }
        self.at = end;
        self.spool.written.send_modify(|written| written.bytes = end);
        Ok(())
    }

    /// Nothing more comes. One that is dropped before is a broken stream to all who read it.
    pub(super) fn end(self, end: Result<(), Broken>) {
        lock(&self.spool.recent).clear();
        self.spool.written.send_modify(|written| written.end = Some(end));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.spool.written.send_if_modified(|written| {
            let open = written.end.is_none();
            written.end.get_or_insert(Err(Broken::LOST));
            open
        });
    }
}

/// Reads a shared answer from its beginning.
pub(super) struct Follower {
    spool: Arc<Spool>,
    seen: watch::Receiver<Written>,
    at: u64,
}

impl Follower {
    fn of(spool: Arc<Spool>) -> Option<Self> {
        let seen = spool.written.subscribe();
        {
            let mut readers = lock(&spool.readers);
            let broken = seen.borrow().end.is_some_and(|end| end.is_err());
            *readers = Some(readers.filter(|_| !broken)?.saturating_add(1));
        }
        Some(Self { spool, seen, at: 0 })
    }

    /// The next part; nothing at its end.
    ///
    /// # Errors
    /// When the answer broke off, or the disk refuses.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            let written = *self.seen.borrow_and_update();
            let there = written.bytes.saturating_sub(self.at).min(CHUNK_BYTES);
            match (there, written.end) {
                (1.., _) => return self.take(there).await.map(Some),
                (0, Some(end)) => return end.map(|()| None),
                (0, None) => self.seen.changed().await.map_err(|_| Broken::LOST)?,
            }
        }
    }

    /// At most so many bytes from where it is, from memory where they are there.
    async fn take(&mut self, bytes: u64) -> Result<Bytes, Broken> {
        let until = {
            let recent = lock(&self.spool.recent);
            if let Some((_, part)) = recent.iter().find(|(begins, _)| *begins == self.at) {
                self.at = self.at.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
                return Ok(part.clone());
            }
            // Up to where a part in memory begins, so that the next one comes from there.
            recent.iter().map(|(begins, _)| *begins).find(|begins| *begins > self.at)
        };
        let bytes = until.map_or(bytes, |until| bytes.min(until.saturating_sub(self.at)));
        self.read(bytes).await.map_err(|error| {
            tracing::warn!(%error, "a shared answer cannot be read back");
            Broken::LOST
        })
    }

    async fn read(&mut self, bytes: u64) -> io::Result<Bytes> {
        let (spool, at) = (Arc::clone(&self.spool), self.at);
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
            spool.file.read_exact_at(&mut chunk, at).map(|()| Bytes::from(chunk))
        });
        let chunk = read.await.map_err(io::Error::other)??;
        self.at = self.at.saturating_add(bytes);
        Ok(chunk)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut readers = lock(&self.spool.readers);
        *readers = readers.and_then(|count| count.checked_sub(1)).filter(|count| *count > 0);
        if readers.is_none() {
            self.spool.deserted.cancel();
        }
    }
}

/// A file without a name, on the pool.
fn nameless(dir: &Path) -> io::Result<File> {
    make_directory(dir)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(nix::libc::O_TMPFILE).open(dir) {
        // Not every filesystem has them.
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EOPNOTSUPP | nix::libc::EISDIR)) => {
            let path = dir.join(uuid::Uuid::now_v7().to_string());
            let file = options.create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        opened => opened,
    }
}

/// Whether twice as much is free as is expected: an optimisation must not fill the disk that builds write to.
fn has_room(file: &File, expected: u64) -> io::Result<bool> {
    let disk = rustix::fs::fstatvfs(file)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize) / 2 >= expected)
}

/// Removes what an agent left that was killed between making a file and taking its name.
pub(super) fn clean(dir: &Path) {
    for name in names(dir).unwrap_or_default() {
        if let Err(error) = std::fs::remove_file(dir.join(name)) {
            tracing::warn!(%error, dir = %dir.display(), "a leftover of a shared answer could not be removed");
        }
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
