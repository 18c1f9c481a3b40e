//! What a client sends to `git-upload-pack`: gitprotocol-pack(5) for versions 0 and 1, gitprotocol-v2(5).
//!
//! Only what is known passes: the agent judges what is asked for, and what it does not understand it cannot judge. The
//! child gets the client's own bytes, and these end where the request does.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use stoker_core::identity::CommitId;

use super::super::refs::parse_id;
use super::pkt::{Packet, Packets};

/// A version of git's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The first, which names no version.
    V0,
    /// The first, with its number.
    V1,
    /// Commands; refs are listed by one of them.
    V2,
}

impl Version {
    /// From the header `Git-Protocol`, a list as `version=2:other`: the highest that is known, as git takes it.
    #[must_use]
    pub fn of(header: Option<&str>) -> Self {
        let known = |key: &str| match key {
            "version=1" => Some(Self::V1),
            "version=2" => Some(Self::V2),
            _ => None,
        };
        header.into_iter().flat_map(|list| list.split(':')).filter_map(known).max().unwrap_or(Self::V0)
    }

    /// What the child is told in `GIT_PROTOCOL`: never the client's own words.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::V0 => "version=0",
            Self::V1 => "version=1",
            Self::V2 => "version=2",
        }
    }
}

/// A request that can be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// A flush and nothing else: a client that looks whether it may send more.
    Empty,
    /// Refs, by version 2.
    LsRefs {
        /// Pull and merge requests that are asked for by their full names.
        pulls: Vec<u64>,
    },
    /// Objects.
    Fetch(Fetch),
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fetch {
    /// Objects by their names, each once.
    pub(super) wants: BTreeSet<CommitId>,
    /// The answer brings a pack, whatever was agreed on before: its negotiation is over.
    pub(super) sends_pack: bool,
    /// The same for requests with the same answer, as far as that does not depend on the repository.
    pub(super) digest: [u8; 32],
}

/// Reads a whole body.
///
/// # Errors
/// What is wrong with it, for the client.
pub(super) fn parse(version: Version, body: &[u8]) -> Result<Request, &'static str> {
    if body == super::pkt::FLUSH {
        return Ok(Request::Empty);
    }
    match version {
        Version::V0 | Version::V1 => parse_v0(version, body),
        Version::V2 => parse_v2(body),
    }
}

/// Whether a capability says something of the client and nothing of the answer.
fn is_about_the_client(capability: &[u8]) -> bool {
    capability.starts_with(b"agent=") || capability.starts_with(b"session-id=")
}

/// Digests lists of lines, so that no two different lists are one text.
struct Key(Sha256);

impl Key {
    fn new(version: Version) -> Self {
        Self(Sha256::new_with_prefix(version.word()))
    }

    fn list<'a>(&mut self, lines: impl IntoIterator<Item = &'a [u8]>) {
        for line in lines {
            self.0.update(line.len().to_be_bytes());
            self.0.update(line);
        }
        self.0.update(usize::MAX.to_be_bytes());
    }

    fn end(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// `want`s with the capabilities on the first, what bounds the history, a flush; then what the client has.
fn parse_v0(version: Version, body: &[u8]) -> Result<Request, &'static str> {
    let mut packets = Packets::new(body);
    let (mut wants, mut capabilities) = (BTreeSet::new(), BTreeSet::new());
    let mut bounds = Vec::new();
    loop {
        let line = match packets.next()? {
            Some(Packet::Data(line)) => line,
            Some(Packet::Flush) => break,
            Some(Packet::Delimiter) => return Err("a delimiter, which this version has not"),
            None => return Err("the list of wants does not end"),
        };
        if let Some(rest) = line.strip_prefix(b"want ") {
            let (id, rest) = rest.split_at_checked(40).ok_or("a want without an object's name")?;
            if !rest.is_empty() && (!wants.is_empty() || rest.first() != Some(&b' ')) {
                return Err("a want with something behind it");
            }
            capabilities.extend(rest.split(|b| *b == b' ').filter(|word| !word.is_empty()));
            wants.insert(parse_id(id).ok_or("a want without an object's name")?);
        } else if is_bound(line) {
            bounds.push(line);
        } else {
            return Err("a line that is no want and bounds no history");
        }
    }
    if wants.is_empty() {
        return Err("nothing is wanted");
    }
    let (mut haves, mut done) = (Vec::new(), false);
    while let Some(packet) = packets.next()? {
        match packet {
            _ if done => return Err("something behind the end"),
            Packet::Data(b"done") => done = true,
            Packet::Data(line) if line.strip_prefix(b"have ").is_some_and(|id| parse_id(id).is_some()) => {
                haves.push(line);
            }
            Packet::Flush => {}
            Packet::Data(_) | Packet::Delimiter => return Err("a line that is neither a have nor the end"),
        }
    }
    let mut key = Key::new(version);
    key.list(wants.iter().map(|want| want.bytes().as_slice()));
    key.list(capabilities.into_iter().filter(|word| !is_about_the_client(word)));
    bounds.sort_unstable();
    key.list(bounds);
    // In their order: the acknowledgements follow it.
    key.list(haves);
    Ok(Request::Fetch(Fetch { wants, sends_pack: done, digest: key.end() }))
}

fn is_bound(line: &[u8]) -> bool {
    let id = line.strip_prefix(b"shallow ");
    id.is_some_and(|id| parse_id(id).is_some())
        || [&b"deepen "[..], b"deepen-since ", b"deepen-not ", b"filter "].iter().any(|word| line.starts_with(word))
}

/// A command with capabilities, a delimiter, its arguments, a flush.
fn parse_v2(body: &[u8]) -> Result<Request, &'static str> {
    let mut packets = Packets::new(body);
    let (mut command, mut capabilities) = (None, BTreeSet::new());
    let delimited = loop {
        match packets.next()? {
            Some(Packet::Data(line)) => match line.strip_prefix(b"command=") {
                Some(name) if command.is_none() => command = Some(name),
                Some(_) => return Err("more than one command"),
                None => {
                    capabilities.insert(line);
                }
            },
            Some(Packet::Delimiter) => break true,
            Some(Packet::Flush) => break false,
            None => return Err("the request does not end"),
        }
    };
    let arguments = if delimited { arguments(&mut packets)? } else { BTreeSet::new() };
    if packets.next()?.is_some() {
        return Err("something behind the end");
    }
    let format = capabilities.iter().filter_map(|word| word.strip_prefix(b"object-format="));
    if format.into_iter().any(|format| format != b"sha1") {
        return Err("objects are named by SHA-1 here");
    }
    match command {
        Some(b"ls-refs") => ls_refs(&arguments),
        Some(b"fetch") => fetch(&capabilities, &arguments),
        Some(_) => Err("a command that is not served; ls-refs and fetch are"),
        None => Err("no command"),
    }
}

/// Lines up to a flush.
fn arguments<'a>(packets: &mut Packets<'a>) -> Result<BTreeSet<&'a [u8]>, &'static str> {
    let mut lines = BTreeSet::new();
    loop {
        match packets.next()? {
            Some(Packet::Data(line)) => {
                lines.insert(line);
            }
            Some(Packet::Flush) => return Ok(lines),
            Some(Packet::Delimiter) => return Err("a second delimiter"),
            None => return Err("the arguments do not end"),
        }
    }
}

fn ls_refs(arguments: &BTreeSet<&[u8]>) -> Result<Request, &'static str> {
    let mut pulls = Vec::new();
    for line in arguments {
        match line.strip_prefix(b"ref-prefix ") {
            Some(name) => pulls.extend(pull_number(name)),
            None if matches!(*line, b"peel" | b"symrefs" | b"unborn") => {}
            None => return Err("an argument of ls-refs that is not known"),
        }
    }
    Ok(Request::LsRefs { pulls })
}

/// The number of a pull or merge request by the full name of its ref.
fn pull_number(name: &[u8]) -> Option<u64> {
    let number = name.strip_prefix(b"refs/pull/").or_else(|| name.strip_prefix(b"refs/merge-requests/"));
    std::str::from_utf8(number?.strip_suffix(b"/head")?).ok()?.parse().ok()
}

fn fetch(capabilities: &BTreeSet<&[u8]>, arguments: &BTreeSet<&[u8]>) -> Result<Request, &'static str> {
    let mut fetch = Fetch::default();
    for line in arguments {
        let (word, rest) = match line.iter().position(|b| *b == b' ') {
            Some(at) => (line.get(..at).unwrap_or_default(), line.get(at + 1..)),
            None => (*line, None),
        };
        match (word, rest) {
            (b"want", Some(id)) => {
                fetch.wants.insert(parse_id(id).ok_or("a want without an object's name")?);
            }
            (b"have" | b"shallow", Some(id)) if parse_id(id).is_some() => {}
            (b"done", None) => fetch.sends_pack = true,
            (b"deepen" | b"deepen-since" | b"deepen-not" | b"filter" | b"packfile-uris", Some(_)) => {}
            (
                b"thin-pack" | b"no-progress" | b"include-tag" | b"ofs-delta" | b"sideband-all" | b"deepen-relative"
                | b"wait-for-done",
                None,
            ) => {}
            _ => return Err("an argument of fetch that is not known"),
        }
    }
    if fetch.wants.is_empty() {
        return Err("nothing is wanted");
    }
    let mut key = Key::new(Version::V2);
    key.list(capabilities.iter().filter(|word| !is_about_the_client(word)).copied());
    key.list(arguments.iter().copied());
    fetch.digest = key.end();
    Ok(Request::Fetch(fetch))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
