//! Chance that can be had again: by its seed.

/// xorshift64.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Neighbouring seeds begin alike.
        for _ in 0..8 {
            dice.at(1);
        }
        dice
    }

    /// From 0 to below `end`.
    pub(super) fn at(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % end.max(1)
    }

    pub(super) fn one_in(&mut self, of: usize) -> bool {
        self.at(of) == 0
    }

    /// One of few names of a kind, so that they are met again; some have 255 bytes.
    pub(super) fn name(&mut self, kind: char) -> String {
        match self.at(8) {
            7 => kind.to_string().repeat(255),
            number => format!("{kind}{number}"),
        }
    }
}
