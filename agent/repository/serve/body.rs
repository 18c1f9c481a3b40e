//! What a client sends, taken in with bounds: of one body, and of all that are held at a time.

use std::io::{self, Write};
use std::sync::Arc;

use flate2::write::GzDecoder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most bytes of one body, unpacked: wants and haves of more than a million objects.
pub(super) const BODY_BYTES_MAX: usize = 64 << 20;
/// All bodies that are held at a time are counted in blocks of so many bytes.
const BLOCK_BYTES: usize = 64 << 10;
/// How many blocks there are: 256 MiB.
pub(super) const BLOCKS_MAX: usize = 4096;

/// Why a body was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// It is longer than any request.
    TooLong,
    /// Others hold too much now.
    Full,
    /// It is not what its encoding says.
    Encoding,
}

/// A whole body. What it holds of the bound is given back when it is dropped.
pub struct Body {
    bytes: Vec<u8>,
    _held: Option<OwnedSemaphorePermit>,
}

impl Body {
    /// Nothing.
    pub(super) const fn empty() -> Self {
        Self { bytes: Vec::new(), _held: None }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body that comes in.
pub struct Inflow(Encoding);

enum Encoding {
    Plain(Bounded),
    Gzip(Box<GzDecoder<Bounded>>),
}

impl Inflow {
    pub(super) fn new(gzip: bool, blocks: &Arc<Semaphore>) -> Self {
        let bounded = Bounded { bytes: Vec::new(), held: None, blocks: Arc::clone(blocks), error: None };
        Self(if gzip { Encoding::Gzip(Box::new(GzDecoder::new(bounded))) } else { Encoding::Plain(bounded) })
    }

    /// Takes the next part.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub fn push(&mut self, part: &[u8]) -> Result<(), BodyError> {
        let written = match &mut self.0 {
            Encoding::Plain(bounded) => bounded.write_all(part),
            Encoding::Gzip(decoder) => decoder.write_all(part),
        };
        written.map_err(|_| self.bounded().error.unwrap_or(BodyError::Encoding))
    }

    /// All of it.
    ///
    /// # Errors
    /// When it ends too early.
    pub fn finish(mut self) -> Result<Body, BodyError> {
        if let Encoding::Gzip(decoder) = &mut self.0
            && decoder.try_finish().is_err()
        {
            return Err(self.bounded().error.unwrap_or(BodyError::Encoding));
        }
        let bounded = match self.0 {
            Encoding::Plain(bounded) => bounded,
            Encoding::Gzip(decoder) => decoder.finish().map_err(|_| BodyError::Encoding)?,
        };
        Ok(Body { bytes: bounded.bytes, _held: bounded.held })
    }

    fn bounded(&self) -> &Bounded {
        match &self.0 {
            Encoding::Plain(bounded) => bounded,
            Encoding::Gzip(decoder) => decoder.get_ref(),
        }
    }
}

/// Bytes that stay within the bounds, also while they are unpacked.
struct Bounded {
    bytes: Vec<u8>,
    held: Option<OwnedSemaphorePermit>,
    blocks: Arc<Semaphore>,
    error: Option<BodyError>,
}

impl Bounded {
    fn hold(&mut self, bytes: usize) -> Result<(), BodyError> {
        if bytes > BODY_BYTES_MAX {
            return Err(BodyError::TooLong);
        }
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(bytes.div_ceil(BLOCK_BYTES).saturating_sub(held)).unwrap_or(u32::MAX);
        if more > 0 {
            let more = Arc::clone(&self.blocks).try_acquire_many_owned(more).map_err(|_| BodyError::Full)?;
            match &mut self.held {
                Some(held) => held.merge(more),
                None => self.held = Some(more),
            }
        }
        Ok(())
    }
}

impl Write for Bounded {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.hold(self.bytes.len().saturating_add(part.len())) {
            self.error = Some(error);
            return Err(io::Error::other("too much"));
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn take(gzip: bool, blocks: &Arc<Semaphore>, parts: &[&[u8]]) -> Result<Vec<u8>, BodyError> {
        let mut inflow = Inflow::new(gzip, blocks);
        parts.iter().try_for_each(|part| inflow.push(part))?;
        inflow.finish().map(|body| body.bytes().to_vec())
    }

    #[test]
    fn parts_make_a_whole_in_both_encodings() {
        let blocks = Arc::new(Semaphore::new(BLOCKS_MAX));
        let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_be_bytes).collect();
        assert_eq!(take(false, &blocks, &text.chunks(1000).collect::<Vec<_>>()).unwrap(), text);
        assert_eq!(take(true, &blocks, &packed(&text).chunks(7).collect::<Vec<_>>()).unwrap(), text);
        assert_eq!(take(false, &blocks, &[]).unwrap(), b"");
        assert_eq!(blocks.available_permits(), BLOCKS_MAX, "given back");
    }

    #[test]
    fn a_bomb_is_bounded() {
        let blocks = Arc::new(Semaphore::new(BLOCKS_MAX));
        let bomb = packed(&vec![0; BODY_BYTES_MAX + 1]);
        assert!(bomb.len() < 100_000);
        assert_eq!(take(true, &blocks, &[&bomb]), Err(BodyError::TooLong));
        assert_eq!(take(false, &blocks, &vec![[0; 1 << 16].as_slice(); 1025]), Err(BodyError::TooLong));
        assert_eq!(blocks.available_permits(), BLOCKS_MAX);
    }

    #[test]
    fn all_bodies_together_are_bounded() {
        let blocks = Arc::new(Semaphore::new(2));
        let mut first = Inflow::new(false, &blocks);
        first.push(&[0; BLOCK_BYTES + 1]).unwrap();
        assert_eq!(take(false, &blocks, &[&[0]]), Err(BodyError::Full));
        drop(first);
        assert!(take(false, &blocks, &[&[0]]).is_ok());
    }

    #[test]
    fn damage_is_told() {
        let blocks = Arc::new(Semaphore::new(BLOCKS_MAX));
        let whole = packed(b"0000");
        assert_eq!(take(true, &blocks, &[&whole[..whole.len() - 3]]), Err(BodyError::Encoding));
        assert_eq!(take(true, &blocks, &[b"no gzip at all, but text"]), Err(BodyError::Encoding));
        let mut damaged = whole;
        let last = damaged.len() - 5;
        damaged[last] ^= 1;
        assert_eq!(take(true, &blocks, &[&damaged]), Err(BodyError::Encoding));
    }
}
