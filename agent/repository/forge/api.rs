//! The APIs of forges, as far as they tell of a pull request's head. What a server answers is judged here, whatever it is.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use stoker_core::identity::CommitId;
use stoker_core::source::{ForgeKind, PullHead, RepositoryUrl};

use super::{Pull, WITHIN};
use crate::repository::credentials::Credentials;
use crate::repository::upstream_http::{Http, HttpError, read_whole};

/// Of an answer. A description may have 64 KiB on GitHub and a megabyte on GitLab, and is escaped.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How often an answer may be elsewhere: a renamed repository is, once.
const REDIRECTS_MAX: usize = 2;

/// Why nothing was found out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer within {} s", WITHIN.as_secs())]
    TimedOut,
    #[error("{0}")]
    Unreachable(String),
    #[error("the API answered {0}")]
    Status(StatusCode),
    /// It does not show us this one: others it may.
    #[error("the API answered {0}")]
    Denied(StatusCode),
    #[error("{0}")]
    Odd(String),
    /// The agent's own doing.
    #[error("{0}")]
    Credential(String),
}

impl Failure {
    /// The word in metrics.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::TimedOut => "timeout",
            _ => "failed",
        }
    }

    /// Whether other questions would fare no better.
    pub(super) const fn is_trouble(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Unreachable(_) | Self::Status(_))
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::TimedOut(_) => Self::TimedOut,
            HttpError::TooMuch(_) => Self::Odd(error.to_string()),
            HttpError::Connect(_) | HttpError::Broken(_) | HttpError::Local(_) => Self::Unreachable(error.to_string()),
        }
    }
}

/// One question to one API.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) pull: Pull,
    pub(super) kind: ForgeKind,
    pub(super) api: String,
    pub(super) path: String,
    /// Of the repository's trust class.
    pub(super) credentials: Credentials,
}

/// GitHub, Gitea, Forgejo.
#[derive(Deserialize)]
struct PullRequest {
    head: Head,
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "ref")]
    branch: String,
    sha: CommitId,
    /// Null where the fork was deleted.
    repo: Option<Repository>,
}

#[derive(Deserialize)]
struct Repository {
    clone_url: String,
}

#[derive(Deserialize)]
struct MergeRequest {
    /// Null where it has no commits.
    sha: Option<CommitId>,
    source_branch: String,
    /// Null where the fork was deleted.
    source_project_id: Option<u64>,
}

#[derive(Deserialize)]
struct Project {
    http_url_to_repo: String,
}

impl Question {
    /// What the forge tells; nothing where it knows no such pull request.
    pub(super) async fn ask(&self, http: &Http) -> Result<Option<PullHead>, Failure> {
        let token = self.token().await?;
        let token = token.as_ref();
        if self.kind != ForgeKind::Gitlab {
            let Some(told) = self.get::<PullRequest>(http, &self.path, token).await? else { return Ok(None) };
            let Head { branch, sha, repo } = told.head;
            return Ok(Some(PullHead { commit: sha, url: repo.map(|repo| repo.clone_url), branch }));
        }
        let Some(told) = self.get::<MergeRequest>(http, &self.path, token).await? else { return Ok(None) };
        let Some(commit) = told.sha else { return Ok(None) };
        let project = match told.source_project_id {
            Some(id) => self.get::<Project>(http, &format!("/projects/{id}"), token).await?,
            None => None,
        };
        Ok(Some(PullHead { commit, url: project.map(|project| project.http_url_to_repo), branch: told.source_branch }))
    }

    /// The token for the API's own address, else the repository's: the operator says that this is the API of its forge.
    /// By http one is sent only where its `match` says http.
    async fn token(&self) -> Result<Option<HeaderValue>, Failure> {
        let scheme = self.api.split_once("://").map_or("https", |(scheme, _)| scheme);
        let own = format!("{}{}", self.api, self.path);
        for address in [own, format!("{scheme}://{}", self.pull.0)] {
            let Ok(url) = address.parse::<RepositoryUrl>() else { continue };
            let found = self.credentials.bearer_for(&url).await;
            let found = found.map_err(|reason| Failure::Credential(reason.message))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// One answer; nothing where there is no such thing. A redirect is followed on the same host alone.
    async fn get<T: DeserializeOwned>(
        &self,
        http: &Http,
        path: &str,
        token: Option<&HeaderValue>,
    ) -> Result<Option<T>, Failure> {
        let odd = |why: &str| Failure::Odd(why.to_owned());
        let mut uri: Uri = format!("{}{path}", self.api).parse().map_err(|_| odd("the address is none"))?;
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::get(uri.clone())
                .header(USER_AGENT, concat!("stoker/", env!("CARGO_PKG_VERSION")))
                .header(ACCEPT, "application/json");
            if let Some(token) = token {
                request = request.header(AUTHORIZATION, token);
            }
            let request = request.body(Full::<Bytes>::default()).map_err(|_| odd("the address is none"))?;
            let response = http.send(request, WITHIN).await?;
            match response.status() {
                StatusCode::OK => {
                    let body = read_whole(response.into_body(), ANSWER_BYTES_MAX, WITHIN).await?;
                    let read = serde_json::from_slice(&body);
                    return read.map(Some).map_err(|error| Failure::Odd(format!("the answer is none: {error}")));
                }
                StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
                status if status.is_redirection() => {
                    let next = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                    uri = next.and_then(|next| on_same_host(&uri, next)).ok_or_else(|| odd("it is on another host"))?;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !is_throttled(response.headers()) => {
                    return Err(Failure::Denied(response.status()));
                }
                status => return Err(Failure::Status(status)),
            }
        }
        Err(odd("it is always elsewhere"))
    }
}

/// Whether an answer is no because too much was asked: GitHub says that with 403 too.
fn is_throttled(headers: &HeaderMap) -> bool {
    headers.contains_key(RETRY_AFTER) || headers.get("x-ratelimit-remaining").is_some_and(|left| left == "0")
}

/// Where a redirect leads, where that is the same server.
fn on_same_host(from: &Uri, location: &str) -> Option<Uri> {
    let next: Uri = match location.starts_with('/') && !location.starts_with("//") {
        true => format!("{}://{}{location}", from.scheme_str()?, from.authority()?).parse().ok()?,
        false => location.parse().ok()?,
    };
    (next.scheme() == from.scheme() && next.authority() == from.authority()).then_some(next)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_redirect_leaves_the_server() {
        let from: Uri = "https://api.example.org/repos/a/b/pulls/1".parse().unwrap();
        for (location, next) in [
            ("/repositories/7/pulls/1", Some("https://api.example.org/repositories/7/pulls/1")),
            ("https://api.example.org/x", Some("https://api.example.org/x")),
            ("http://api.example.org/x", None),
            ("https://api.example.org:444/x", None),
            ("https://evil.example.org/x", None),
            ("//evil.example.org/x", None),
            ("https://me@api.example.org/x", None),
            ("relative", None),
            ("", None),
        ] {
            assert_eq!(on_same_host(&from, location).map(|uri| uri.to_string()).as_deref(), next, "{location}");
        }
    }
}
