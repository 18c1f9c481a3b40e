//! The canonical URL of a repository.
//!
//! Git itself takes more than this: remote helpers (`ext::sh -c ...`), options where a URL should stand, relative
//! paths. Each of those was a security hole somewhere, so what is not plainly a repository's address is refused here,
//! before anything starts. See git-clone(1), "Git URLs", for the spellings.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use super::host::{Host, is_local};
use crate::identity::Component;

/// Forges that treat paths without regard to case.
const CASELESS_HOSTS: [&str; 4] = ["github.com", "gitlab.com", "codeberg.org", "bitbucket.org"];

/// Why a URL is refused. The text never repeats credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Nothing is there.
    #[error("is empty; give a URL such as https://host/path, or an absolute path")]
    Empty,
    /// Longer than [`RepositoryUrl::BYTES_MAX`].
    #[error("has {0} bytes, at most {max} are allowed", max = RepositoryUrl::BYTES_MAX)]
    TooLong(usize),
    /// A control character, whitespace, or one that no URL has.
    #[error("has the character {0:?}; write special characters as % and two hexadecimal digits")]
    Character(char),
    /// It would be taken for an option of git.
    #[error("begins with '-' in {0:?}, which git would take for an option; remove it")]
    Option(String),
    /// `ext::`, `fd::` and their like run programs.
    #[error("names the transport helper {0:?}; use https://, ssh://, git:// or file://")]
    Helper(String),
    /// Not one of the schemes that are known.
    #[error("has the scheme {0:?}; use https, http, ssh, git or file")]
    Scheme(String),
    /// Neither a URL nor an absolute path.
    #[error("{0:?} is neither a URL nor an absolute path; use https://host/path, user@host:path or /path")]
    Relative(String),
    /// A secret in a URL ends in logs and configurations.
    #[error("has credentials in it, which would leak; remove what stands before the '@'")]
    Credentials,
    /// The user before an ssh host.
    #[error("has the user {0:?}; letters, digits, '.', '_' and '-' are allowed")]
    User(String),
    /// Not a host name and not an address.
    #[error("has the host {0:?}; use a DNS name, an IPv4 address, or an IPv6 address in brackets")]
    Host(String),
    /// Not a port.
    #[error("has the port {0:?}; use 1 to 65535")]
    Port(String),
    /// There is no repository without a path.
    #[error("names no repository: the path is empty")]
    EmptyPath,
    /// `..`, `.` or nothing between two slashes.
    #[error("has the path segment {0:?}; write the path without '.', '..' and empty segments")]
    Segment(String),
    /// An escape that is incomplete, or hides a character with a meaning of its own.
    #[error("has the escape {0:?}, which is incomplete or hides a character that is not allowed")]
    Escape(String),
    /// `?...` or `#...`.
    #[error("has a query or fragment after {0:?}; remove it")]
    Query(char),
}

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Smart HTTP over TLS.
    Https,
    /// Smart HTTP.
    Http,
    /// A shell on another machine.
    Ssh,
    /// The git daemon.
    Git,
    /// A path of this machine.
    File,
}

impl Protocol {
    /// The word in URLs, in `protocols` and in `GIT_ALLOW_PROTOCOL`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::Git => "git",
            Self::File => "file",
        }
    }

    const fn default_port(self) -> Option<u16> {
        match self {
            Self::Https => Some(443),
            Self::Http => Some(80),
            Self::Ssh => Some(22),
            Self::Git => Some(9418),
            Self::File => None,
        }
    }

    fn of(scheme: &str) -> Option<Self> {
        [Self::Https, Self::Http, Self::Ssh, Self::Git, Self::File]
            .into_iter()
            .find(|protocol| scheme.eq_ignore_ascii_case(protocol.word()))
    }
}

/// The address of a repository. Two are equal, and hash and sort alike, when they name the same repository: by their
/// [`key`](Self::key), whatever their protocol, user, case of the host, default port, `.git` or trailing slash.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryUrl {
    protocol: Protocol,
    host: Option<String>,
    key: String,
    fetch: String,
}

impl RepositoryUrl {
    /// The most bytes that a URL may have.
    pub const BYTES_MAX: usize = 2048;

    /// What the repository is known by: `github.com/projectbluefin/dakota`, `host:8443/path`, `file:///abs/path`.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What to give to git: as it was spelled, but without credentials, with scheme and host in lower case.
    #[must_use]
    pub fn fetch_url(&self) -> &str {
        &self.fetch
    }

    /// How it is reached.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The host in lower case, addresses in their usual form and without brackets; none for local paths.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The folder of its mirror: readable, and different for every key.
    #[must_use]
    pub fn folder(&self) -> Component {
        Component::of(&[&self.key])
    }

    /// The path of a local repository, unescaped; none for others.
    #[must_use]
    pub fn local_path(&self) -> Option<String> {
        let path = self.fetch.strip_prefix("file://")?;
        let mut bytes = Vec::with_capacity(path.len());
        let mut rest = path.bytes();
        while let Some(byte) = rest.next() {
            match byte {
                b'%' => bytes.push(hex_pair(rest.next(), rest.next())?),
                _ => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).ok()
    }

    /// Whether the host is, as it is written, this machine or one that only this link reaches: `localhost`, `127/8`,
    /// `::1`, `0.0.0.0`, `169.254/16` (where clouds keep their secrets), `fe80::/10`, in any numeric spelling. Names
    /// that merely resolve to such an address are not found out here.
    #[must_use]
    pub fn is_loopback_or_link_local(&self) -> bool {
        self.host.as_deref().is_some_and(is_local)
    }

    fn build(protocol: Protocol, user: Option<&str>, host: Host, path: &str, scp: bool) -> Result<Self, UrlError> {
        let mut canonical = canonical_path(path, protocol)?;
        if CASELESS_HOSTS.contains(&host.name.as_str()) {
            canonical.make_ascii_lowercase();
        }
        let port = host.port.filter(|port| Some(*port) != protocol.default_port());
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let (left, right) = if host.name.contains(':') { ("[", "]") } else { ("", "") };
        let name = host.name;
        let (user, at) = user.map_or(("", ""), |user| (user, "@"));
        let path = path.trim_end_matches('/');
        let fetch = match scp {
            true => [user, at, left, &name, right, ":", path].concat(),
            false => [protocol.word(), "://", user, at, left, &name, right, &port, path].concat(),
        };
        let key = [left, &name, right, &port, "/", &canonical].concat();
        Ok(Self { protocol, key, host: Some(name), fetch })
    }

    /// `path` is absolute and escaped.
    fn local(path: &str) -> Result<Self, UrlError> {
        let canonical = canonical_path(path, Protocol::File)?;
        let url = format!("file:///{canonical}");
        Ok(Self { protocol: Protocol::File, host: None, key: url.clone(), fetch: url })
    }
}

impl FromStr for RepositoryUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.is_empty() {
            return Err(UrlError::Empty);
        }
        if text.len() > Self::BYTES_MAX {
            return Err(UrlError::TooLong(text.len()));
        }
        if text.starts_with('-') {
            return Err(UrlError::Option(brief(text)));
        }
        if text.starts_with('/') {
            // A space is common in paths of people's machines, and harmless once escaped.
            if let Some(c) = text.chars().find(|c| *c != ' ' && refused(*c)) {
                return Err(UrlError::Character(c));
            }
            return Self::local(&escape(text));
        }
        let scheme_len = text.bytes().take_while(|b| b.is_ascii_alphanumeric() || b"+.-".contains(b)).count();
        let (scheme, rest) = text.split_at_checked(scheme_len).unwrap_or((text, ""));
        // First, because what follows a helper's name is full of spaces, and they are not what is wrong with it.
        if rest.starts_with("::") {
            return Err(UrlError::Helper(brief(scheme)));
        }
        if let Some(c) = text.chars().find(|c| refused(*c)) {
            return Err(UrlError::Character(c));
        }
        match rest.strip_prefix("://") {
            Some(rest) => from_url(scheme, rest),
            None => from_scp(text),
        }
    }
}

fn from_url(scheme: &str, rest: &str) -> Result<RepositoryUrl, UrlError> {
    let protocol = Protocol::of(scheme).ok_or_else(|| UrlError::Scheme(brief(scheme)))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if let Some(c) = rest.chars().find(|c| matches!(c, '?' | '#')) {
        return Err(if authority.contains('@') { UrlError::Credentials } else { UrlError::Query(c) });
    }
    if protocol == Protocol::File {
        return match authority {
            "" | "localhost" => RepositoryUrl::local(path),
            host => Err(UrlError::Host(brief(host.rsplit('@').next().unwrap_or(host)))),
        };
    }
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    match user {
        Some(_) if protocol != Protocol::Ssh => return Err(UrlError::Credentials),
        Some(user) => check_user(user)?,
        None => {}
    }
    RepositoryUrl::build(protocol, user, Host::parse(host)?, path, false)
}

/// `[user@]host:path`. Git takes it so only where no slash stands before the first colon.
fn from_scp(text: &str) -> Result<RepositoryUrl, UrlError> {
    let relative = || UrlError::Relative(brief(text.rsplit('@').next().unwrap_or(text)));
    let (user, rest) = match text.split_once('@') {
        Some((user, rest)) if !user.contains('/') => (Some(user), rest),
        _ => (None, text),
    };
    let colon = match rest.strip_prefix('[') {
        Some(inner) => inner.find(']').and_then(|end| end.checked_add(2)),
        None => rest.find(':'),
    };
    let (host, path) = colon.and_then(|at| rest.split_at_checked(at)).ok_or_else(relative)?;
    let path = path.strip_prefix(':').ok_or_else(relative)?;
    if host.contains('/') {
        return Err(relative());
    }
    user.map_or(Ok(()), check_user)?;
    if let Some(c) = path.chars().find(|c| matches!(c, '?' | '#')) {
        return Err(UrlError::Query(c));
    }
    if path.contains('%') {
        // ssh:// unescapes and this form does not: one meaning is enough.
        return Err(UrlError::Escape("%".to_owned()));
    }
    RepositoryUrl::build(Protocol::Ssh, user, Host::parse(host)?, path, true)
}

fn check_user(user: &str) -> Result<(), UrlError> {
    if user.contains(':') {
        return Err(UrlError::Credentials);
    }
    let plain = user.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if user.is_empty() || user.starts_with('-') || !plain { Err(UrlError::User(brief(user))) } else { Ok(()) }
}

/// Checks the path, and gives it without slashes at its ends, without `.git`, with one spelling of every escape.
fn canonical_path(path: &str, protocol: Protocol) -> Result<String, UrlError> {
    let inner = path.strip_prefix('/').unwrap_or(path);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    if inner.is_empty() {
        return Err(UrlError::EmptyPath);
    }
    if inner.starts_with('-') {
        return Err(UrlError::Option(brief(inner)));
    }
    let mut canonical = String::with_capacity(inner.len());
    for segment in inner.split('/') {
        if !canonical.is_empty() {
            canonical.push('/');
        }
        let before = canonical.len();
        push_segment(&mut canonical, segment)?;
        let segment = canonical.get(before..).unwrap_or_default();
        if matches!(segment, "" | "." | "..") {
            return Err(UrlError::Segment(segment.to_owned()));
        }
    }
    if protocol == Protocol::File {
        // `/a/b.git` and `/a/b` can be two repositories of one machine, `/a/b/.git` and `/a/b` cannot.
        if let Some(without) = canonical.strip_suffix("/.git").map(str::len) {
            canonical.truncate(without);
        }
    } else {
        let bare = |path: &str| {
            let shorter = path.strip_suffix(".git")?;
            let last = shorter.rsplit('/').next().unwrap_or(shorter);
            (!matches!(last, "" | "." | "..")).then_some(shorter.len())
        };
        while let Some(shorter) = bare(&canonical) {
            canonical.truncate(shorter);
        }
    }
    Ok(canonical)
}

/// Unescapes what needs no escape, escapes what is not ASCII, refuses escapes that hide a meaning.
fn push_segment(out: &mut String, segment: &str) -> Result<(), UrlError> {
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let (high, low) = (rest.next(), rest.next());
                let shown = || {
                    let text = [Some(b'%'), high, low].into_iter().flatten().map(char::from).collect::<String>();
                    UrlError::Escape(text)
                };
                match hex_pair(high, low).ok_or_else(shown)? {
                    plain if plain.is_ascii_alphanumeric() || b"_~".contains(&plain) => out.push(char::from(plain)),
                    0..0x20 | 0x7f | b'.' | b'/' | b'\\' | b'-' => return Err(shown()),
                    other => push_escape(out, other),
                }
            }
            0x80.. => push_escape(out, byte),
            plain => out.push(char::from(plain)),
        }
    }
    Ok(())
}

fn push_escape(out: &mut String, byte: u8) {
    out.push_str(&format!("%{byte:02X}"));
}

fn hex_pair(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// A local path as the path of a `file://` URL, which git unescapes.
fn escape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b' ' | b'%' | b'?' | b'#' | 0x80.. => push_escape(&mut out, byte),
            plain => out.push(char::from(plain)),
        }
    }
    out
}

fn refused(c: char) -> bool {
    c.is_control() || c.is_whitespace() || c == '\\' || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
}

/// Enough of a wrong value to recognise it.
pub(super) fn brief(text: &str) -> String {
    text.chars().take(60).collect()
}

impl TryFrom<String> for RepositoryUrl {
    type Error = UrlError;

    fn try_from(text: String) -> Result<Self, UrlError> {
        text.parse()
    }
}

impl From<RepositoryUrl> for String {
    fn from(url: RepositoryUrl) -> Self {
        url.fetch
    }
}

impl fmt::Display for RepositoryUrl {
    /// The [fetch URL](RepositoryUrl::fetch_url).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fetch)
    }
}

impl PartialEq for RepositoryUrl {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for RepositoryUrl {}

impl PartialOrd for RepositoryUrl {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RepositoryUrl {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

impl Hash for RepositoryUrl {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

#[cfg(test)]
#[path = "url_tests.rs"]
mod tests;
