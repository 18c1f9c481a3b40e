//! Patterns over names: `*` stands for any characters, also none, `?` for one. Everything else stands for itself.

use alloc::string::String;
use core::fmt;

/// The most bytes of a pattern.
pub const GLOB_BYTES_MAX: usize = 512;

/// A pattern over a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// It has no characters.
    #[error("is empty, which matches nothing that has a name")]
    Empty,
    /// It is longer than any name.
    #[error("has {0} bytes, at most {GLOB_BYTES_MAX} are allowed")]
    TooLong(usize),
}

impl core::str::FromStr for Glob {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        match text.len() {
            0 => Err(GlobError::Empty),
            1..=GLOB_BYTES_MAX => Ok(Self(text.into())),
            bytes => Err(GlobError::TooLong(bytes)),
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Glob {
    /// Whether the whole of a name is as the pattern says. Takes at most pattern times name steps, whatever they are.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (mut pattern, mut rest) = (self.0.chars(), name.chars());
        // Where to go on when the last star has to take one more character.
        let mut again = None;
        loop {
            let (mut ahead, mut behind) = (pattern.clone(), rest.clone());
            match (ahead.next(), behind.next()) {
                (None, None) => return true,
                (Some('*'), _) => {
                    again = Some((ahead.clone(), rest.clone()));
                    pattern = ahead;
                    continue;
                }
                (Some(wanted), Some(is)) if wanted == '?' || wanted == is => {
                    (pattern, rest) = (ahead, behind);
                    continue;
                }
                _ => {}
            }
            let Some((after_star, taken)) = &mut again else { return false };
            if taken.next().is_none() {
                return false;
            }
            (pattern, rest) = (after_star.clone(), taken.clone());
        }
    }
}
