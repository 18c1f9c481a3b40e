//! Names: what is a name, and how a name becomes one component of a path.
//!
//! Names that come from outside are any UTF-8 within a bound. They never become paths: [`Component`] maps a list of
//! names to one short component that is readable where it can be and differs wherever the names differ.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The most bytes that a name from outside may have.
pub const NAME_BYTES_MAX: usize = 512;

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no characters.
    #[error("is empty")]
    Empty,
    /// It is longer than the bound.
    #[error("has {bytes} bytes, at most {max} are allowed")]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
    /// It has a character that its kind does not allow.
    #[error("has the character {0:?}, which is not allowed here")]
    Character(char),
}

/// A name from outside: any characters but control characters, at most [`NAME_BYTES_MAX`] bytes; empty is none.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(text: &str) -> Result<(), NameError> {
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { bytes: text.len(), max: NAME_BYTES_MAX });
    }
    text.chars().find(|c| c.is_control()).map_or(Ok(()), |c| Err(NameError::Character(c)))
}

macro_rules! id {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            /// At most 128 visible ASCII characters.
            fn try_from(text: String) -> Result<Self, NameError> {
                match text.chars().find(|c| !c.is_ascii_graphic()) {
                    _ if text.is_empty() => Err(NameError::Empty),
                    _ if text.len() > 128 => Err(NameError::TooLong { bytes: text.len(), max: 128 }),
                    Some(c) => Err(NameError::Character(c)),
                    None => Ok(Self(text.into())),
                }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                Self::from(&*id.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// What a caller names its request by. The same id is the same request.
    RequestId
}
id! {
    /// A lease, named by the agent that granted it.
    LeaseId
}
id! {
    /// A ticket, named by the agent that gave it.
    TicketId
}

/// A commit's name: 20 bytes of SHA-1, as 40 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId([u8; 20]);

impl CommitId {
    /// From the raw bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// Twelve digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl core::str::FromStr for CommitId {
    type Err = NameError;

    /// Exactly 40 lower-case hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Some(c) = text.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
            return Err(NameError::Character(c));
        }
        let digits: &[u8; 40] = match text.as_bytes().try_into() {
            Ok(digits) => digits,
            Err(_) if text.is_empty() => return Err(NameError::Empty),
            Err(_) => return Err(NameError::TooLong { bytes: text.len(), max: 40 }),
        };
        let value = |digit: u8| if digit.is_ascii_digit() { digit & 0xf } else { (digit & 0xf).saturating_add(9) };
        let mut bytes = [0; 20];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            if let [high, low] = *pair {
                *byte = value(high) << 4 | value(low);
            }
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for CommitId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<CommitId> for String {
    fn from(commit: CommitId) -> Self {
        commit.to_string()
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Who a line of builds belongs to. Any characters, each part at most [`NAME_BYTES_MAX`] bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope {
    /// The tenant.
    pub tenant: String,
    /// The project.
    pub project: String,
    /// The branch.
    pub branch: String,
}

/// One component of a path: at most 64 bytes of `[a-z0-9._-]`, never `.` or `..`, never hidden.
///
/// A readable part of the first name, then a hash over all of them with their lengths, so that `("red", "stx-9")` and
/// `("red-stx", "9")` differ, and names that differ only in case differ on every filesystem.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Component(String);

impl Component {
    /// The component for these names.
    #[must_use]
    pub fn of(names: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for name in names {
            hash.update(u64::try_from(name.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(name.as_bytes());
        }
        let digest = hash.finalize();
        let mut readable = String::new();
        for c in names.join("-").chars() {
            let c = c.to_ascii_lowercase();
            match c {
                'a'..='z' | '0'..='9' | '_' => readable.push(c),
                _ if readable.is_empty() || readable.ends_with(['-', '.']) => {}
                '.' => readable.push('.'),
                _ => readable.push('-'),
            }
            if readable.len() >= 47 {
                break;
            }
        }
        let readable = readable.trim_end_matches(['-', '.']);
        let readable = if readable.is_empty() { "x" } else { readable };
        let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self(format!("{readable}-{hex}"))
    }

    /// The component as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn neighbours_in_name_are_not_neighbours_on_disk() {
        let pairs = [(["red", "stx-9"], ["red-stx", "9"]), (["a-b", "c"], ["a", "b-c"]), (["Red", "x"], ["red", "x"])];
        for (a, b) in pairs {
            assert_ne!(Component::of(&a), Component::of(&b));
        }
    }

    #[test]
    fn a_commit_is_forty_lower_case_digits() {
        let text = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(text.parse::<CommitId>().map(|c| c.to_string()).as_deref(), Ok(text));
        for wrong in
            ["", "0123", "0123456789ABCDEF0123456789abcdef01234567", "0123456789abcdef0123456789abcdef012345678"]
        {
            assert!(wrong.parse::<CommitId>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_component_is_short_and_plain(names in proptest::collection::vec(".{0,300}", 1..4)) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let component = Component::of(&names);
            prop_assert!(component.as_str().len() <= 64);
            prop_assert!(!component.as_str().starts_with('.'));
            prop_assert!(component.as_str().bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')));
        }
    }
}
