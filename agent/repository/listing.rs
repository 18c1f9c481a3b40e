//! What upstream says that it has: the output of `git ls-remote --symref`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stoker_core::identity::CommitId;
use stoker_core::reason::{Code, Reason};

use super::network::TIPS_MAX;
use super::refs::{digest, is_followed, parse_id};

/// What HEAD names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// A branch, by its name without `refs/heads/`.
    Branch(String),
    /// A commit, and no branch.
    Detached(CommitId),
}

impl Head {
    /// The content of a `HEAD` file, without its line end.
    pub(super) fn to_file(&self) -> String {
        match self {
            Self::Branch(name) => format!("ref: refs/heads/{name}"),
            Self::Detached(commit) => commit.to_string(),
        }
    }

    pub(super) fn from_file(text: &str) -> Option<Self> {
        match text.trim_end().strip_prefix("ref: refs/heads/") {
            // What is written where upstream's HEAD names nothing that is there.
            Some(".invalid") => None,
            Some(name) => Some(Self::Branch(name.to_owned())),
            None => text.trim_end().parse().ok().map(Self::Detached),
        }
    }
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Branch(name) => f.write_str(name),
            Self::Detached(commit) => commit.fmt(f),
        }
    }
}

/// What a batch of callers wants beyond branches and tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Full names of refs that no refresh follows, where upstream has them.
    pub(super) refs: BTreeSet<String>,
    /// Commits; the pull request whose tip one is gets fetched.
    pub(super) tips: BTreeSet<CommitId>,
    /// Commits that are fetched by their name.
    pub(super) commits: BTreeSet<CommitId>,
    /// The branch that HEAD names.
    pub(super) head: bool,
}

impl Wanted {
    /// How many of each kind one batch carries.
    const MAX: usize = 256;

    pub(super) fn merge(&mut self, other: Self) {
        self.refs.extend(other.refs);
        self.tips.extend(other.tips);
        self.commits.extend(other.commits);
        self.head |= other.head;
    }

    pub(super) fn is_full(&self) -> bool {
        self.refs.len().max(self.tips.len()).max(self.commits.len()) >= Self::MAX
    }
}

/// What upstream has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) head: Option<Head>,
    /// Of HEAD, branches and tags.
    pub(super) digest: String,
    /// Branches and tags.
    pub(super) followed: usize,
    pub(super) all: Listed,
    /// What some of them name, spread over all of them.
    pub(super) tips: Vec<CommitId>,
    /// Of the wanted refs the branches and tags that are there, by full name.
    pub(super) first: BTreeSet<String>,
    /// Of the wanted refs and tips the others that are there, by full name.
    pub(super) extra: BTreeMap<String, CommitId>,
}

/// Branches and tags by name, and the objects that they name. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Listed(Arc<Refs>);

#[derive(Default, PartialEq, Eq)]
struct Refs {
    /// One after the other.
    names: Vec<u8>,
    refs: Vec<(Range<usize>, CommitId)>,
}

impl Listed {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], CommitId)> {
        let Refs { names, refs } = &*self.0;
        refs.iter().map(|(range, id)| (names.get(range.clone()).unwrap_or_default(), *id))
    }
}

impl std::fmt::Debug for Listed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} refs", self.0.refs.len())
    }
}

impl Listing {
    /// Reads what `git ls-remote --symref` prints.
    ///
    /// # Errors
    /// Objects that are not named by SHA-1, and output that is none.
    pub(super) fn parse(output: &[u8], wanted: &Wanted, subject: &str) -> Result<Self, Reason> {
        let mut lister = Lister::new(wanted);
        for line in output.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let tab = line.iter().position(|b| *b == b'\t').unwrap_or(line.len());
            let (left, name) = line.split_at(tab);
            let name = name.strip_prefix(b"\t").unwrap_or(name);
            if let Some(target) = left.strip_prefix(b"ref: ") {
                lister.symref(name, target);
            } else if left.len() == 64 {
                return Err(Lister::object_format(subject));
            } else if !lister.reference(name, left) {
                let message = format!("{subject} answered with something that is no list of refs");
                return Err(Reason::new(Code::UpstreamNotFound, subject, message));
            }
        }
        Ok(lister.finish())
    }

    /// Nothing was ever pushed there.
    pub(super) fn is_empty(&self) -> bool {
        self.followed == 0 && !matches!(self.head, Some(Head::Detached(_)))
    }
}

/// Makes a [`Listing`] of what upstream lists, ref by ref, however it was asked.
pub(super) struct Lister<'a> {
    wanted: &'a Wanted,
    head_target: Option<Vec<u8>>,
    head_id: Option<CommitId>,
    /// The names of the followed refs, one after the other.
    names: Vec<u8>,
    followed: Vec<(Range<usize>, CommitId)>,
    extra: BTreeMap<String, CommitId>,
}

impl<'a> Lister<'a> {
    pub(super) const fn new(wanted: &'a Wanted) -> Self {
        Self {
            wanted,
            head_target: None,
            head_id: None,
            names: Vec::new(),
            followed: Vec::new(),
            extra: BTreeMap::new(),
        }
    }

    /// The reason where objects are not named by SHA-1.
    pub(super) fn object_format(subject: &str) -> Reason {
        let message = format!("{subject} names its objects by SHA-256; only SHA-1 is served");
        Reason::new(Code::ObjectFormatUnsupported, subject, message)
    }

    /// What a symbolic ref leads to.
    pub(super) fn symref(&mut self, name: &[u8], target: &[u8]) {
        if name == b"HEAD" {
            self.head_target = Some(target.to_vec());
        }
    }

    /// A ref and the object that it names. False where that is no object's name.
    pub(super) fn reference(&mut self, name: &[u8], id: &[u8]) -> bool {
        let Some(id) = parse_id(id) else { return false };
        if name == b"HEAD" {
            self.head_id = Some(id);
        } else if name.ends_with(b"^{}") {
            // An annotated tag's target: it arrives with the tag.
        } else if is_followed(name) {
            let begin = self.names.len();
            self.names.extend_from_slice(name);
            self.followed.push((begin..self.names.len(), id));
        } else if let Ok(name) = std::str::from_utf8(name)
            && (self.wanted.refs.contains(name) || (self.wanted.tips.contains(&id) && is_pull(name)))
        {
            self.extra.insert(name.to_owned(), id);
        }
        true
    }

    pub(super) fn finish(self) -> Listing {
        let Self { wanted, names, mut followed, head_target, head_id, extra } = self;
        let name = |range: &Range<usize>| names.get(range.clone()).unwrap_or_default();
        followed.sort_unstable_by(|(a, _), (b, _)| name(a).cmp(name(b)));
        let branch = head_target.as_deref().and_then(|target| target.strip_prefix(b"refs/heads/"));
        let head = match (branch.and_then(|name| std::str::from_utf8(name).ok()), head_id) {
            (Some(name), _) => Some(Head::Branch(name.to_owned())),
            (None, id) => id.map(Head::Detached),
        };
        let shown = head.as_ref().map(Head::to_file).unwrap_or_default();
        let digest = digest(&shown, followed.iter().map(|(range, id)| (name(range), *id)));
        let has = |wanted: &String| followed.binary_search_by(|(range, _)| name(range).cmp(wanted.as_bytes())).is_ok();
        let default = match &head {
            Some(Head::Branch(name)) if wanted.head => Some(format!("refs/heads/{name}")),
            _ => None,
        };
        let first = wanted.refs.iter().cloned().chain(default).filter(has).collect();
        let step = followed.len().div_ceil(TIPS_MAX).max(1);
        let mut tips: Vec<CommitId> = followed.iter().step_by(step).map(|(_, id)| *id).chain(head_id).collect();
        tips.sort_unstable();
        tips.dedup();
        let count = followed.len();
        Listing {
            head,
            digest,
            followed: count,
            all: Listed(Arc::new(Refs { names, refs: followed })),
            tips,
            first,
            extra,
        }
    }
}

/// Whether it is the tip of a pull or merge request.
fn is_pull(name: &str) -> bool {
    let number = name.strip_prefix("refs/pull/").or_else(|| name.strip_prefix("refs/merge-requests/"));
    let number = number.and_then(|rest| rest.strip_suffix("/head"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_listing_keeps_what_is_wanted() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let text = format!(
            "ref: refs/heads/main\tHEAD\n{a}\tHEAD\n{a}\trefs/heads/main\n{b}\trefs/pull/1/head\n{a}\trefs/pull/2/head\n\
             {b}\trefs/pull/1/merge\n{a}\trefs/tags/v1\n{b}\trefs/tags/v1^{{}}\n"
        );
        let mut wanted = Wanted::default();
        wanted.refs.insert("refs/pull/2/head".into());
        wanted.tips.insert(b.parse().unwrap());
        let listing = Listing::parse(text.as_bytes(), &wanted, "x").unwrap();
        assert_eq!(listing.head, Some(Head::Branch("main".into())));
        assert_eq!(listing.followed, 2);
        assert_eq!(listing.extra.keys().collect::<Vec<_>>(), ["refs/pull/1/head", "refs/pull/2/head"]);
    }

    #[test]
    fn other_object_names_are_refused() {
        let text = format!("{}\tHEAD\n", "a".repeat(64));
        let reason = Listing::parse(text.as_bytes(), &Wanted::default(), "x").unwrap_err();
        assert_eq!(reason.code, Code::ObjectFormatUnsupported);
        assert!(Listing::parse(b"<html>", &Wanted::default(), "x").is_err());
        assert!(Listing::parse(b"", &Wanted::default(), "x").unwrap().is_empty());
    }

    #[test]
    fn a_head_file_is_read_and_written_alike() {
        for head in [Head::Branch("a/b".into()), Head::Detached("a".repeat(40).parse().unwrap())] {
            assert_eq!(Head::from_file(&head.to_file()), Some(head));
        }
        assert_eq!(Head::from_file("nonsense"), None);
    }
}
