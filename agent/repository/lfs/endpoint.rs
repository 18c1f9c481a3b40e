//! Where a repository's large files are, and which addresses may be asked for them (git-lfs, docs/api/server-discovery.md).

use std::collections::BTreeSet;
use std::path::PathBuf;

use hyper::Uri;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::{Protocol, RepositoryUrl, is_listed, is_local};

use crate::config;
use crate::repository::upstream_http::bare_host;

/// Where large files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// A server of the batch API, without a slash at its end.
    Server(Uri),
    /// Directories of this machine, where a local repository may have them.
    Local(Vec<PathBuf>),
}

/// Which addresses may be asked, in the node's name.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    url: RepositoryUrl,
    allow: Vec<String>,
    protocols: Vec<String>,
}

impl Policy {
    pub(super) fn new(url: &RepositoryUrl, config: &config::Repositories) -> Self {
        Self { url: url.clone(), allow: config.allow.clone(), protocols: config.protocols.clone() }
    }

    /// Whether it is the upstream itself: the same scheme, host and port.
    pub(super) fn is_upstream(&self, server: &Uri) -> bool {
        let upstream: Option<Uri> = self.url.fetch_url().parse().ok();
        upstream.is_some_and(|own| own.scheme() == server.scheme() && own.authority() == server.authority())
    }

    /// The endpoint: what the commit's `.lfsconfig` names where that may be asked, else the one that belongs to the URL.
    pub(super) fn endpoint(&self, configured: Option<&str>) -> Result<Endpoint, Reason> {
        match (configured, self.url.local_path()) {
            (Some(configured), _) => self.configured(configured).map(Endpoint::Server),
            (None, Some(path)) => Ok(Endpoint::Local(
                // As git finds it: a work tree's, a bare one's.
                [".git/lfs/objects", "lfs/objects"].iter().map(|below| PathBuf::from(&path).join(below)).collect(),
            )),
            (None, None) => self.judge(&self.derived(), "its LFS server").map(Endpoint::Server),
        }
    }

    /// `.git/info/lfs` after the URL; of other protocols the same over HTTPS, as git-lfs has it.
    fn derived(&self) -> String {
        let fetch = self.url.fetch_url();
        let base = match self.url.protocol() {
            Protocol::Https | Protocol::Http => fetch.trim_end_matches('/').to_owned(),
            _ => {
                let host = self.url.host().unwrap_or_default();
                let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
                let path = self.url.key().split_once('/').map_or("", |(_, path)| path);
                format!("https://{host}/{path}")
            }
        };
        format!("{}.git/info/lfs", base.strip_suffix(".git").unwrap_or(&base))
    }

    /// A commit must not choose whom the node asks: its own host, or one that the operator lets in.
    fn configured(&self, text: &str) -> Result<Uri, Reason> {
        let uri = self.judge(text.trim_end_matches('/'), "the LFS server of its .lfsconfig")?;
        let host = bare_host(&uri);
        if self.url.host() == Some(&host) || is_listed(&host, &self.allow) {
            return Ok(uri);
        }
        let message = format!(
            "the .lfsconfig of {} names the LFS server {host}, which is neither its own host nor one that \
             `repositories.allow` lets in; add {host} there",
            self.url
        );
        Err(Reason::new(Code::RepositoryNotAllowed, self.url.key(), message))
    }

    /// Whether an address may be asked: HTTP of an allowed protocol, without credentials in it, and not this machine
    /// unless the operator named it. What names resolve to is found out by the client.
    pub(super) fn judge(&self, text: &str, what: &str) -> Result<Uri, Reason> {
        let refuse = |why: &str| {
            let message = format!("{what} of {}: {why}", self.url);
            Err(Reason::new(Code::RepositoryNotAllowed, self.url.key(), message))
        };
        let Ok(uri) = text.parse::<Uri>() else { return refuse("its address is none") };
        let Some(scheme) = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https")) else {
            return refuse("its address is not one of HTTP");
        };
        if !self.protocols.iter().any(|allowed| allowed == scheme) {
            return refuse(&format!("it needs {scheme}; add {scheme} to `repositories.protocols`"));
        }
        if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return refuse("its address has credentials in it, or no host");
        }
        let host = bare_host(&uri);
        if is_local(&host) && !self.local_hosts().contains(&host) {
            return refuse(&format!("{host} is this machine or this link; add {host} to `repositories.allow`"));
        }
        Ok(uri)
    }

    /// The local hosts that the operator named: in `allow`, or as this very upstream.
    pub(super) fn local_hosts(&self) -> BTreeSet<String> {
        let named = self.allow.iter().filter(|pattern| !pattern.contains('*'));
        let named = named.map(|pattern| pattern.trim_matches(['[', ']']).to_ascii_lowercase());
        named.chain(self.url.host().map(str::to_owned)).collect()
    }

    pub(super) const fn url(&self) -> &RepositoryUrl {
        &self.url
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn policy(url: &str, allow: &[&str]) -> Policy {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Policy { url: url.parse().unwrap(), allow: words(allow), protocols: words(&["https"]) }
    }

    #[test]
    fn the_server_is_found_as_git_lfs_finds_it() {
        for (url, server) in [
            ("https://git.example.org/a/b", "https://git.example.org/a/b.git/info/lfs"),
            ("https://git.example.org/a/b.git", "https://git.example.org/a/b.git/info/lfs"),
            ("https://git.example.org:8443/a/b/", "https://git.example.org:8443/a/b.git/info/lfs"),
            ("git@git.example.org:a/b.git", "https://git.example.org/a/b.git/info/lfs"),
            ("ssh://git@git.example.org:2222/a/b.git", "https://git.example.org/a/b.git/info/lfs"),
            ("git://git.example.org/a/b", "https://git.example.org/a/b.git/info/lfs"),
        ] {
            assert_eq!(policy(url, &[]).endpoint(None), Ok(Endpoint::Server(server.parse().unwrap())), "{url}");
        }
        let Ok(Endpoint::Local(dirs)) = policy("file:///srv/a.git", &[]).endpoint(None) else { panic!() };
        assert_eq!(dirs, [PathBuf::from("/srv/a.git/.git/lfs/objects"), PathBuf::from("/srv/a.git/lfs/objects")]);
    }

    #[test]
    fn a_commit_does_not_choose_whom_the_node_asks() {
        let ask = |text: &str, allow: &[&str]| {
            policy("https://git.example.org/a/b", allow).endpoint(Some(text)).map_err(|reason| reason.code)
        };
        let no = Err(Code::RepositoryNotAllowed);
        assert!(ask("https://git.example.org/elsewhere/", &[]).is_ok());
        assert!(ask("https://lfs.example.net/a", &["*.example.net"]).is_ok());
        for text in [
            "https://evil.example.net/a",
            "http://git.example.org/a",
            "https://user:secret@git.example.org/a",
            "ssh://git.example.org/a",
            "file:///etc",
            "https://127.0.0.1/a",
            "https://[::1]/a",
            "https://169.254.169.254/latest",
            "https://localhost/a",
            "../../a",
            "",
        ] {
            assert_eq!(ask(text, &["*.example.com"]), no, "{text}");
        }
        let told = policy("https://git.example.org/a", &[]).endpoint(Some("https://user:secret@git.example.org/a"));
        assert!(!told.unwrap_err().message.contains("secret"));
    }

    #[test]
    fn this_machine_must_be_named() {
        let judge = |allow: &[&str], text: &str| policy("https://git.example.org/a", allow).judge(text, "x").is_ok();
        assert!(!judge(&["*"], "https://127.0.0.1:9000/x"));
        assert!(judge(&["127.0.0.1"], "https://127.0.0.1:9000/x?signature=1"));
        assert!(judge(&[], "https://storage.example.com/x?signature=1"));
        assert!(!judge(&[], "http://storage.example.com/x"));
    }
}
