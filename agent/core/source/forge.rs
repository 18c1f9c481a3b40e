//! Where a pull request comes from: what to ask a forge's API, and what of its answer holds.
//!
//! The shapes are GitHub's REST API ("Get a pull request"), GitLab's ("Get single MR", "Get single project"), and that
//! of Gitea and Forgejo ("Get a pull request").

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};

use crate::identity::CommitId;
use crate::source::{RefName, RepositoryUrl, listable};

/// Whose API a forge speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForgeKind {
    /// GitHub, and GitHub Enterprise Server.
    Github,
    /// GitLab.
    Gitlab,
    /// Gitea and Forgejo.
    Gitea,
}

impl ForgeKind {
    /// Where the API of a forge is that serves repositories at `host` (with its port), where nobody says otherwise.
    #[must_use]
    pub fn usual_api(self, host: &str) -> String {
        match self {
            Self::Github if host == "github.com" => "https://api.github.com".to_owned(),
            Self::Github => format!("https://{host}/api/v3"),
            Self::Gitlab => format!("https://{host}/api/v4"),
            Self::Gitea => format!("https://{host}/api/v1"),
        }
    }

    /// What is asked of the API for a pull request; none where the URL names no repository of such a forge.
    #[must_use]
    pub fn question(self, url: &RepositoryUrl, pull: u64) -> Option<String> {
        url.host()?;
        let (_, path) = url.key().split_once('/')?;
        match self {
            Self::Gitlab => {
                path.contains('/').then(|| format!("/projects/{}/merge_requests/{pull}", path.replace('/', "%2F")))
            }
            Self::Github | Self::Gitea => {
                // A forge can lie below a path of its host.
                let (rest, name) = path.rsplit_once('/')?;
                let owner = rest.rsplit_once('/').map_or(rest, |(_, owner)| owner);
                Some(format!("/repos/{owner}/{name}/pulls/{pull}"))
            }
        }
    }
}

/// The tip of a pull request, as a forge tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullHead {
    /// The commit.
    pub commit: CommitId,
    /// The repository that it was made in; none where that was deleted.
    pub url: Option<String>,
    /// Its branch there.
    pub branch: String,
}

/// Where a pull request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// A URL that any git client can clone; without credentials.
    pub url: String,
    /// The full name of a ref there.
    pub reference: String,
}

/// What an answer is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It is of that commit, and its repository may be named.
    Fork(Fork),
    /// Its repository is no more.
    Gone,
    /// It is of another commit: the pull request moved.
    Moved,
    /// It names what must not be handed on.
    Refused(String),
}

/// Whether a forge's answer may be told with `commit` of the pull request. `allow` and `protocols` are the
/// configuration's: what a forge says is whatever somebody made it say.
#[must_use]
pub fn judge(head: &PullHead, pull: u64, commit: CommitId, allow: &[String], protocols: &[String]) -> Told {
    if head.commit != commit {
        return Told::Moved;
    }
    let Some(text) = &head.url else { return Told::Gone };
    let authority = text.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or(rest));
    if authority.contains('@') {
        return Told::Refused("the URL has a user name in it".to_owned());
    }
    let url: RepositoryUrl = match text.parse() {
        Ok(url) => url,
        Err(error) => return Told::Refused(format!("the URL {error}")),
    };
    if let Err(reason) = listable(&url, allow, protocols) {
        return Told::Refused(reason.message);
    }
    // Gitea has no branch for one whose branch was deleted, or that was made by a push alone.
    let reference = match format!("refs/pull/{pull}/head") {
        own if head.branch == own => own,
        _ => match head.branch.parse::<RefName>() {
            Ok(name) => format!("refs/heads/{name}"),
            Err(error) => return Told::Refused(error.to_string()),
        },
    };
    Told::Fork(Fork { url: url.fetch_url().to_owned(), reference })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use alloc::vec::Vec;

    fn commit(digit: &str) -> CommitId {
        digit.repeat(40).parse().unwrap()
    }

    fn judged(url: Option<&str>, branch: &str) -> Told {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let head = PullHead { commit: commit("a"), url: url.map(ToOwned::to_owned), branch: branch.to_owned() };
        judge(&head, 7, commit("a"), &words(&["github.com"]), &words(&["https"]))
    }

    #[test]
    fn each_forge_is_asked_in_its_own_words() {
        let ask = |kind: ForgeKind, url: &str| kind.question(&url.parse().unwrap(), 7);
        let (github, gitlab, gitea) = (ForgeKind::Github, ForgeKind::Gitlab, ForgeKind::Gitea);
        for (kind, url, question) in [
            (github, "https://github.com/Owner/Repo.git", "/repos/owner/repo/pulls/7"),
            (github, "git@github.com:owner/repo", "/repos/owner/repo/pulls/7"),
            (gitea, "https://git.example.org:8443/forge/a/b", "/repos/a/b/pulls/7"),
            (gitlab, "https://gitlab.com/group/sub/name.git", "/projects/group%2Fsub%2Fname/merge_requests/7"),
        ] {
            assert_eq!(ask(kind, url).as_deref(), Some(question), "{url}");
        }
        for (kind, url) in
            [(github, "https://github.com/alone"), (gitlab, "https://gitlab.com/alone"), (gitea, "file:///srv/a/b")]
        {
            assert_eq!(ask(kind, url), None, "{url}");
        }
        assert_eq!(github.usual_api("github.com"), "https://api.github.com");
        assert_eq!(github.usual_api("git.example.org"), "https://git.example.org/api/v3");
        assert_eq!(gitlab.usual_api("gitlab.com"), "https://gitlab.com/api/v4");
        assert_eq!(gitea.usual_api("codeberg.org:444"), "https://codeberg.org:444/api/v1");
    }

    #[test]
    fn only_what_git_may_be_given_is_told() {
        let fork =
            |url: &str, reference: &str| Told::Fork(Fork { url: url.to_owned(), reference: reference.to_owned() });
        let url = "https://github.com/fork/repo.git";
        assert_eq!(judged(Some(url), "topic/x"), fork(url, "refs/heads/topic/x"));
        assert_eq!(judged(Some(url), "refs/pull/7/head"), fork(url, "refs/pull/7/head"));
        assert_eq!(judged(None, "topic"), Told::Gone);
        for (url, branch) in [
            ("file:///etc", "topic"),
            ("/etc", "topic"),
            ("http://github.com/fork/repo", "topic"),
            ("https://me:secret@github.com/fork/repo", "topic"),
            ("https://me@github.com/fork/repo", "topic"),
            ("https://127.0.0.1/fork/repo", "topic"),
            ("ext::sh -c true", "topic"),
            ("--upload-pack=x", "topic"),
            ("", "topic"),
            (url, "-x"),
            (url, "a b"),
            (url, ""),
        ] {
            assert!(matches!(judged(Some(url), branch), Told::Refused(_)), "{url} {branch}");
        }
        let Told::Refused(why) = judged(Some("https://me:secret@github.com/a/b"), "x") else { panic!() };
        assert!(!why.contains("secret"), "{why}");
        let head = PullHead { commit: commit("b"), url: Some(url.to_owned()), branch: "topic".to_owned() };
        assert_eq!(judge(&head, 7, commit("a"), &[], &["https".to_owned()]), Told::Moved);
    }
}
