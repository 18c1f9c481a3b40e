//! The agent's own `ls-refs`: one round trip, and no child.
//!
//! Protocol 2 (gitprotocol-v2(5)) is spoken without asking what the server can: `ls-refs` with `symrefs` and `ref-prefix`
//! is what every server of it has. `peel` is left out, for an annotated tag's target arrives with the tag; `unborn` too,
//! for servers that do not know it refuse the whole request. Whatever is not plainly an answer to that is left to
//! `git ls-remote`, and an upstream that gave such an answer is not asked again for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use stoker_core::reason::Reason;
use stoker_core::source::{Protocol, RepositoryUrl};
use tokio_util::sync::CancellationToken;

use super::git::Version;
use super::listing::{Lister, Listing, Wanted};
use super::lock;
use super::upstream_http::{Http, HttpError, has_proxy, next_part};

/// Of an answer: about 800,000 refs.
pub(super) const ANSWER_BYTES_MAX: u64 = 64 << 20;
const ASKS: &str = "application/x-git-upload-pack-request";
const ANSWERS: &str = "application/x-git-upload-pack-result";
/// How long a host that does not speak so is left to git.
const HOST_REMEMBERED: Duration = Duration::from_secs(3600);
/// The same for one repository: it may have moved, or need credentials.
const REPOSITORY_REMEMBERED: Duration = Duration::from_secs(600);
/// How many are remembered.
const REMEMBERED_MAX: usize = 4096;
/// The largest packet, with its four digits (gitprotocol-common(5)).
const PACKET_MAX: usize = 65520;

/// Asks upstreams for their refs. Cheap to clone.
#[derive(Clone)]
pub(super) struct LsRefs {
    http: Http,
    /// Hosts and keys of repositories that are left to git, until then.
    left: Arc<Mutex<HashMap<String, Instant>>>,
    proxy: bool,
}

/// One question.
pub(super) struct Question<'a> {
    pub(super) url: &'a RepositoryUrl,
    pub(super) wanted: &'a Wanted,
    /// A value for `Authorization`.
    pub(super) authorization: Option<HeaderValue>,
    pub(super) git: Version,
    pub(super) within: Duration,
    pub(super) cancel: &'a CancellationToken,
}

/// Why it is left to git.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// No upstream of this host answers as it must.
    Host(&'static str),
    /// This one does not.
    Repository(&'static str),
    /// This time.
    Once(String),
}

/// What became of a question.
enum Answer {
    Listed(Listing),
    Left(Left),
    Failed(Reason),
}

impl LsRefs {
    pub(super) fn new(http: Http) -> Self {
        Self { http, left: Arc::default(), proxy: has_proxy() }
    }

    /// What upstream has; nothing where git is to be asked instead.
    ///
    /// # Errors
    /// Where git would not fare better: no answer in time, an upstream in trouble, more than anybody can keep.
    pub(super) async fn list(&self, question: Question<'_>) -> Result<Option<Listing>, Reason> {
        let url = question.url;
        if self.proxy || !matches!(url.protocol(), Protocol::Https | Protocol::Http) || self.is_left(url) {
            return Ok(None);
        }
        let within = question.within;
        let asked = question.cancel.run_until_cancelled(tokio::time::timeout(within, self.ask(&question)));
        let answer = match asked.await {
            None => return Ok(None), // git says the same at once
            Some(Err(_)) => Answer::Failed(failed(url, &HttpError::TimedOut(within))),
            Some(Ok(answer)) => answer,
        };
        match answer {
            Answer::Listed(listing) => Ok(Some(listing)),
            Answer::Failed(reason) => Err(reason),
            Answer::Left(why) => {
                tracing::debug!(repository = url.key(), ?why, "the list of refs is left to git");
                self.remember(url, &why);
                Ok(None)
            }
        }
    }

    async fn ask(&self, question: &Question<'_>) -> Answer {
        let Question { url, wanted, .. } = question;
        let request = match request(question) {
            Some(request) => request,
            None => return Answer::Left(Left::Repository("its URL is none for HTTP")),
        };
        let response = match self.http.send(request, question.within).await {
            Ok(response) => response,
            // The words for what keeps a connection from being made are git's, and known.
            Err(HttpError::Connect(why) | HttpError::Broken(why)) => return Answer::Left(Left::Once(why)),
            Err(error) => return Answer::Failed(failed(url, &error)),
        };
        if let Some(answer) = judge(url, response.status()) {
            return answer;
        }
        if response.headers().get(CONTENT_TYPE).is_none_or(|value| value != ANSWERS) {
            return Answer::Left(Left::Host("it answers with another content type"));
        }
        let mut body = response.into_body();
        let mut reader = Reader::new(Lister::new(wanted));
        loop {
            match next_part(&mut body).await {
                Ok(Some(part)) => match reader.push(&part) {
                    Ok(()) => {}
                    Err(Odd::NoList(why)) => return Answer::Left(Left::Host(why)),
                    Err(Odd::TooMuch) => return Answer::Failed(failed(url, &HttpError::TooMuch(ANSWER_BYTES_MAX))),
                    Err(Odd::ObjectFormat) => return Answer::Failed(Lister::object_format(url.key())),
                },
                Ok(None) => break,
                Err(error @ HttpError::TimedOut(_)) => return Answer::Failed(failed(url, &error)),
                Err(error) => return Answer::Left(Left::Once(error.to_string())),
            }
        }
        match reader.finish() {
            Some(listing) => Answer::Listed(listing),
            // So answers git's own server where objects are not named by SHA-1: it ends, with a word to nobody.
            None => Answer::Left(Left::Repository("its answer has no end")),
        }
    }

    fn is_left(&self, url: &RepositoryUrl) -> bool {
        let mut left = lock(&self.left);
        let now = Instant::now();
        let host = host_key(url);
        [host.as_str(), url.key()].iter().any(|key| match left.get(*key) {
            Some(until) if *until > now => true,
            Some(_) => left.remove(*key).is_none(),
            None => false,
        })
    }

    fn remember(&self, url: &RepositoryUrl, why: &Left) {
        let (key, span) = match why {
            Left::Host(_) => (host_key(url), HOST_REMEMBERED),
            Left::Repository(_) => (url.key().to_owned(), REPOSITORY_REMEMBERED),
            Left::Once(_) => return,
        };
        let mut left = lock(&self.left);
        let now = Instant::now();
        if left.len() >= REMEMBERED_MAX {
            left.retain(|_, until| *until > now);
        }
        if left.len() < REMEMBERED_MAX {
            left.insert(key, now + span);
        }
    }
}

/// Host and port; a repository's key always has more.
fn host_key(url: &RepositoryUrl) -> String {
    let authority = url.key().split('/').next().unwrap_or_default();
    format!("{}://{authority}", url.protocol().word())
}

fn failed(url: &RepositoryUrl, error: &HttpError) -> Reason {
    Reason::new(error.code(), url.key(), format!("asking for the refs of {url}: {error}"))
}

/// What another status than 200 means.
fn judge(url: &RepositoryUrl, status: StatusCode) -> Option<Answer> {
    match status {
        StatusCode::OK => None,
        // A second question would not help an upstream in trouble.
        StatusCode::TOO_MANY_REQUESTS => Some(Answer::Failed(failed(url, &HttpError::Broken(status.to_string())))),
        _ if status.is_server_error() => Some(Answer::Failed(failed(url, &HttpError::Broken(status.to_string())))),
        _ if status.is_redirection() => Some(Answer::Left(Left::Repository("it redirects"))),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE => {
            Some(Answer::Left(Left::Repository("it is not there, or not for us")))
        }
        _ => Some(Answer::Left(Left::Host("it does not take the question"))),
    }
}

fn request(question: &Question<'_>) -> Option<Request<Full<Bytes>>> {
    let agent = format!("git/{} (stoker/{})", question.git, env!("CARGO_PKG_VERSION"));
    let mut request = Request::post(format!("{}/git-upload-pack", question.url.fetch_url()))
        .header(USER_AGENT, agent)
        .header(CONTENT_TYPE, ASKS)
        .header("Accept", ANSWERS)
        .header(HeaderName::from_static("git-protocol"), "version=2");
    if let Some(value) = &question.authorization {
        request = request.header(AUTHORIZATION, value);
    }
    request.body(Full::new(command(question.wanted).into())).ok()
}

/// The command with its arguments.
fn command(wanted: &Wanted) -> Vec<u8> {
    let mut lines = vec!["symrefs".to_owned()];
    let mut prefix = |name: &str| lines.push(format!("ref-prefix {name}"));
    ["HEAD", "refs/heads/", "refs/tags/"].into_iter().for_each(&mut prefix);
    if !wanted.tips.is_empty() {
        ["refs/pull/", "refs/merge-requests/"].into_iter().for_each(&mut prefix);
    }
    wanted.refs.iter().for_each(|name| prefix(name));
    let mut body = packet("command=ls-refs");
    body.extend_from_slice(b"0001");
    for line in &lines {
        body.extend_from_slice(&packet(line));
    }
    body.extend_from_slice(b"0000");
    body
}

fn packet(line: &str) -> Vec<u8> {
    format!("{:04x}{line}\n", line.len() + 5).into_bytes()
}

/// Why an answer is none.
#[derive(Debug, PartialEq, Eq)]
enum Odd {
    NoList(&'static str),
    TooMuch,
    ObjectFormat,
}

/// Reads an answer as it comes: packets of one ref each, then a flush.
struct Reader<'a> {
    lister: Lister<'a>,
    /// The beginning of a packet whose rest did not come yet.
    rest: Vec<u8>,
    bytes: u64,
    ended: bool,
}

impl<'a> Reader<'a> {
    const fn new(lister: Lister<'a>) -> Self {
        Self { lister, rest: Vec::new(), bytes: 0, ended: false }
    }

    fn push(&mut self, part: &[u8]) -> Result<(), Odd> {
        self.bytes = self.bytes.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
        if self.bytes > ANSWER_BYTES_MAX {
            return Err(Odd::TooMuch);
        }
        let mut whole = std::mem::take(&mut self.rest);
        let mut input = match whole.is_empty() {
            true => part,
            false => {
                whole.extend_from_slice(part);
                &whole
            }
        };
        while let Some((line, after)) = split_packet(input)? {
            self.take(line)?;
            input = after;
        }
        self.rest = input.to_vec();
        Ok(())
    }

    fn take(&mut self, packet: Packet<'_>) -> Result<(), Odd> {
        match packet {
            _ if self.ended => Err(Odd::NoList("its answer goes on after its end")),
            Packet::Flush => {
                self.ended = true;
                Ok(())
            }
            Packet::Line(line) => self.take_line(line),
        }
    }

    /// `ID NAME[ symref-target:NAME][ ...]`
    fn take_line(&mut self, line: &[u8]) -> Result<(), Odd> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if line.starts_with(b"ERR ") {
            return Err(Odd::NoList("it refuses the question"));
        }
        let mut words = line.split(|byte| *byte == b' ');
        let (Some(id), Some(name)) = (words.next(), words.next().filter(|name| !name.is_empty())) else {
            return Err(Odd::NoList("its answer is no list of refs"));
        };
        if id.len() == 64 {
            return Err(Odd::ObjectFormat);
        }
        if !self.lister.reference(name, id) {
            return Err(Odd::NoList("its answer is no list of refs"));
        }
        if let Some(target) = words.find_map(|word| word.strip_prefix(b"symref-target:")) {
            self.lister.symref(name, target);
        }
        Ok(())
    }

    /// Nothing where the answer broke off.
    fn finish(self) -> Option<Listing> {
        (self.ended && self.rest.is_empty()).then(|| self.lister.finish())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Packet<'a> {
    Line(&'a [u8]),
    Flush,
}

/// The first packet and what follows it; nothing where it is not whole yet.
fn split_packet(input: &[u8]) -> Result<Option<(Packet<'_>, &[u8])>, Odd> {
    let Some((digits, after)) = input.split_at_checked(4) else { return Ok(None) };
    let length = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
    let length = length.and_then(|text| usize::from_str_radix(text, 16).ok());
    match length {
        Some(0) => Ok(Some((Packet::Flush, after))),
        Some(length @ 4..=PACKET_MAX) => {
            Ok(after.split_at_checked(length - 4).map(|(line, after)| (Packet::Line(line), after)))
        }
        // Delimiters and the like have no place in this answer.
        _ => Err(Odd::NoList("its answer is not made of packets")),
    }
}

#[cfg(test)]
#[path = "ls_refs_tests.rs"]
mod tests;
