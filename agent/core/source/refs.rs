//! What a caller asks for in a repository.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::identity::{CommitId, NameError};

/// Why a ref is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    /// The text has none of the forms.
    #[error("{0:?} names no ref; use head, branch:NAME, tag:NAME, pr:NUMBER or sha:COMMIT")]
    Form(String),
    /// A name without characters.
    #[error("the name is empty")]
    Empty,
    /// Longer than [`RefName::BYTES_MAX`].
    #[error("the name has {0} bytes, at most {max} are allowed", max = RefName::BYTES_MAX)]
    TooLong(usize),
    /// A character that git-check-ref-format(1) forbids.
    #[error("the name {name:?} has the character {character:?}, which git does not allow in a ref")]
    Character {
        /// The name.
        name: String,
        /// The character.
        character: char,
    },
    /// A shape that git-check-ref-format(1) forbids.
    #[error("the name {name:?} {what}, which git does not allow in a ref")]
    Shape {
        /// The name.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Not the number of a pull request.
    #[error("{0:?} is not the number of a pull request; use a number from 1")]
    Number(String),
    /// Not the full name of a commit.
    #[error("the commit {text:?} {error}; give all 40 hexadecimal digits")]
    Commit {
        /// What was given.
        text: String,
        /// What is wrong with it.
        error: NameError,
    },
}

/// A branch's or tag's name, without `refs/heads/`: what git-check-ref-format(1) allows, and never an option.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RefName(String);

impl RefName {
    /// The most bytes that a name may have.
    pub const BYTES_MAX: usize = 255;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RefName {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        if text.is_empty() {
            return Err(RefError::Empty);
        }
        if text.len() > Self::BYTES_MAX {
            return Err(RefError::TooLong(text.len()));
        }
        let forbidden = |c: &char| c.is_ascii_control() || " ~^:?*[\\".contains(*c);
        if let Some(character) = text.chars().find(forbidden) {
            return Err(RefError::Character { name: text.to_owned(), character });
        }
        let part = |wrong: fn(&str) -> bool| text.split('/').any(wrong);
        let rules = [
            (text.starts_with('-'), "begins with '-'"),
            (text.starts_with('/') || text.ends_with('/'), "begins or ends with '/'"),
            (text.contains("//"), "has '//'"),
            (text.contains(".."), "has '..'"),
            (text.contains("@{"), "has '@{'"),
            (text == "@", "is '@'"),
            (text.ends_with('.'), "ends with '.'"),
            (part(|part| part.starts_with('.')), "has a part that begins with '.'"),
            (part(|part| part.ends_with(".lock")), "has a part that ends with '.lock'"),
        ];
        match rules.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(RefError::Shape { name: text.to_owned(), what }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl TryFrom<String> for RefName {
    type Error = RefError;

    fn try_from(text: String) -> Result<Self, RefError> {
        text.parse()
    }
}

impl From<RefName> for String {
    fn from(name: RefName) -> Self {
        name.0
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A state of a repository, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceRef {
    /// What the upstream's HEAD names.
    #[default]
    Head,
    /// A branch.
    Branch(RefName),
    /// A tag, peeled to its commit.
    Tag(RefName),
    /// A pull request (merge request), by its number.
    PullRequest(u64),
    /// One commit.
    Commit(CommitId),
}

impl SourceRef {
    /// The full names under which upstream may have it, in the order in which they are tried. None for HEAD, which the
    /// mirror knows, and for a commit.
    #[must_use]
    pub fn full_names(&self) -> Vec<String> {
        match self {
            Self::Head | Self::Commit(_) => Vec::new(),
            Self::Branch(name) => Vec::from([format!("refs/heads/{name}")]),
            Self::Tag(name) => Vec::from([format!("refs/tags/{name}")]),
            // GitHub, Gitea and Forgejo; GitLab.
            Self::PullRequest(n) => Vec::from([format!("refs/pull/{n}/head"), format!("refs/merge-requests/{n}/head")]),
        }
    }
}

impl FromStr for SourceRef {
    type Err = RefError;

    /// `head`, `branch:NAME`, `tag:NAME`, `pr:NUMBER`, `sha:COMMIT`.
    fn from_str(text: &str) -> Result<Self, RefError> {
        let brief = |text: &str| text.chars().take(60).collect::<String>();
        if text.eq_ignore_ascii_case("head") {
            return Ok(Self::Head);
        }
        match text.split_once(':') {
            Some(("branch", name)) => Ok(Self::Branch(name.parse()?)),
            Some(("tag", name)) => Ok(Self::Tag(name.parse()?)),
            Some(("pr", number)) => match number.parse::<u64>() {
                Ok(n) if n > 0 && number.bytes().all(|b| b.is_ascii_digit()) => Ok(Self::PullRequest(n)),
                _ => Err(RefError::Number(brief(number))),
            },
            Some(("sha", hex)) => match hex.to_ascii_lowercase().parse() {
                Ok(commit) => Ok(Self::Commit(commit)),
                Err(error) => Err(RefError::Commit { text: brief(hex), error }),
            },
            _ => Err(RefError::Form(brief(text))),
        }
    }
}

impl fmt::Display for SourceRef {
    /// The command line's spelling.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("head"),
            Self::Branch(name) => write!(f, "branch:{name}"),
            Self::Tag(name) => write!(f, "tag:{name}"),
            Self::PullRequest(number) => write!(f, "pr:{number}"),
            Self::Commit(commit) => f.write_str("sha:").and_then(|()| f.write_str(&commit.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_is_read_and_written_alike() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for text in ["head", "branch:main", "branch:a/b.c", "tag:v1.0", "pr:152", &format!("sha:{commit}")] {
            assert_eq!(text.parse::<SourceRef>().unwrap().to_string(), text);
        }
        assert_eq!("HEAD".parse(), Ok(SourceRef::Head));
    }

    #[test]
    fn a_wrong_ref_says_what_is_wrong() {
        for (text, error) in [
            ("main", r#""main" names no ref; use head, branch:NAME, tag:NAME, pr:NUMBER or sha:COMMIT"#),
            ("branch:", "the name is empty"),
            ("branch:-x", r#"the name "-x" begins with '-', which git does not allow in a ref"#),
            ("branch:a..b", r#"the name "a..b" has '..', which git does not allow in a ref"#),
            ("tag:a b", r#"the name "a b" has the character ' ', which git does not allow in a ref"#),
            ("pr:0", r#""0" is not the number of a pull request; use a number from 1"#),
            ("pr:+1", r#""+1" is not the number of a pull request; use a number from 1"#),
            ("sha:012", r#"the commit "012" has 3 characters; give all 40 hexadecimal digits"#),
        ] {
            let shown = text.parse::<SourceRef>().unwrap_err().to_string();
            if text == "sha:012" {
                assert!(shown.starts_with("the commit \"012\"") && shown.ends_with("40 hexadecimal digits"), "{shown}");
            } else {
                assert_eq!(shown, error);
            }
        }
        assert_eq!("a".repeat(256).parse::<RefName>(), Err(RefError::TooLong(256)));
    }

    #[test]
    fn names_follow_the_rules_of_git() {
        for name in ["main", "feature/x", "@a", "a@", "ü", "a.b", "x.locks"] {
            assert!(name.parse::<RefName>().is_ok(), "{name}");
        }
        for name in [
            "@", "a@{b", "/a", "a/", "a//b", ".a", "a/.b", "a.lock", "a.lock/b", "a.", "a\x7f", "a:b", "a\\b", "a[b",
            "a?",
        ] {
            assert!(name.parse::<RefName>().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_parse_never_panics(text in ".{0,300}") {
            let _ = text.parse::<RefName>();
            let _ = text.parse::<SourceRef>();
        }
    }
}
