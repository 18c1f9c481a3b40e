//! How bytes come from a caller and go to one, in the order and at the pace of whoever is slower.

use std::io::{self, Read, Write};

use tokio::sync::mpsc;

/// How many bytes one message of a stream carries.
pub const CHUNK_BYTES: usize = 256 << 10;

/// A stream of bytes that comes from outside; an error ends it.
pub type Chunks = mpsc::Receiver<io::Result<Vec<u8>>>;

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
