//! Chance that can be had again: by its seed.

/// xorshift64.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    /// The same numbers for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Another one that follows from this one's seed: for a thread of its own.
    pub(crate) fn fork(&self, number: u64) -> Self {
        let mut forked = Self::new(self.0 ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Neighbouring seeds begin alike.
        for _ in 0..8 {
            forked.below(1);
        }
        forked
    }

    /// From 0 to below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end.max(1)
    }

    /// One of them.
    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let at = self.below(all.len() as u64);
        &all[usize::try_from(at).unwrap()]
    }

    /// Bytes that hardly compress.
    pub(crate) fn noise(&mut self, size: usize) -> Vec<u8> {
        (0..size).map(|_| b' ' + u8::try_from(self.below(90)).unwrap()).collect()
    }
}

/// A number from the environment.
pub(crate) fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// A seed from the environment, or another one each time.
pub(crate) fn seed(name: &str) -> u64 {
    from_environment(name, jiff::Timestamp::now().as_millisecond().unsigned_abs())
}
