//! What builds get in their environment, so that their own git goes through the node.
//!
//! `url.<base>.insteadOf` (git-config(1)) rewrites by the beginning of a URL, so a rule is for a whole host; what the node
//! does not serve of it, it redirects to upstream (see [`OR_UPSTREAM`]). Spellings for ssh have nothing that they could
//! be redirected to with the build's own key: those are rewritten for hosts that the operator listed by name, and else for
//! the repositories that are here. `pushInsteadOf` leaves what is pushed as it is written.

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_core::source::RepositoryUrl;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Serve;
use crate::config::{Add, Repositories as Config};

/// The part of a path that says: what is not served here is upstream's.
pub const OR_UPSTREAM: &str = "or-upstream:/";
/// How many beginnings of URLs are rewritten.
const RULES_MAX: usize = 256;
/// How long the listener may take to answer: builds would wait for it too.
const PROBE_WITHIN: Duration = Duration::from_millis(500);

/// Where this agent's git is reached from this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// With a slash at its end.
    pub url: String,
    /// Whether it is reached over the loopback interface.
    pub loopback: bool,
}

impl Serve {
    /// Says where it is reached; the first that says so is believed.
    pub fn reached_at(&self, base: Base) {
        let _ = self.inner.base.set(base);
    }

    /// The variables; none where nothing answers.
    pub async fn build_environment(&self) -> BTreeMap<String, String> {
        let repositories = &self.inner.repositories;
        let config = repositories.shared.config();
        let base = match (&config.serve.url, self.inner.base.get()) {
            (Some(url), _) => url.clone(),
            (None, Some(base)) if base.loopback || !config.serve.loopback_only => base.url.clone(),
            _ => return BTreeMap::new(),
        };
        let known: Vec<RepositoryUrl> =
            repositories.list().into_iter().filter(|view| self.may_read(&view.trust)).map(|view| view.url).collect();
        let rules = rules(&base, &config, &known);
        if rules.is_empty() || !answers(&base).await {
            return BTreeMap::new();
        }
        variables(&base, rules)
    }
}

/// The beginnings of URLs that are rewritten, and to what.
fn rules(base: &str, config: &Config, known: &[RepositoryUrl]) -> BTreeMap<String, String> {
    let mut rules = Rules { base, http: config.protocols.iter().any(|word| word == "http"), map: BTreeMap::new() };
    if config.add == Add::OnDemand {
        for pattern in &config.allow {
            match pattern.as_str() {
                "*" => rules.web(""),
                pattern if pattern.starts_with('*') => {} // a beginning cannot say what comes before a name
                host => {
                    rules.web(&format!("{host}/"));
                    rules.web(&format!("{host}:"));
                    let url: Option<RepositoryUrl> = format!("https://{host}/x").parse().ok();
                    // This machine's own: reached by ssh, it is somebody's test.
                    if url.is_some_and(|url| !url.is_loopback_or_link_local()) {
                        rules.ssh(host, "");
                    }
                }
            }
        }
    }
    let with_host = || known.iter().filter(|url| url.host().is_some());
    let named = || with_host().filter_map(|url| Some((url.key().split_once('/')?.0, url)));
    // One rule for a host goes further than those for its repositories, should there be too many.
    for (authority, _) in named() {
        rules.web(&format!("{authority}/"));
    }
    for (authority, url) in named() {
        if let Some(path) = path(url) {
            rules.ssh(authority, path);
        }
    }
    rules.map
}

struct Rules<'a> {
    base: &'a str,
    http: bool,
    map: BTreeMap<String, String>,
}

impl Rules<'_> {
    fn add(&mut self, from: String, to: String) {
        if self.map.len() < RULES_MAX {
            self.map.entry(from).or_insert(to);
        }
    }

    /// URLs of HTTP whose rest begins so.
    fn web(&mut self, rest: &str) {
        let base = format!("{}{OR_UPSTREAM}", self.base);
        self.add(format!("https://{rest}"), format!("{base}{rest}"));
        if self.http {
            self.add(format!("http://{rest}"), format!("{base}http:/{rest}"));
        }
    }

    /// The other spellings of a host's paths that begin so.
    fn ssh(&mut self, authority: &str, path: &str) {
        let to = format!("{}{OR_UPSTREAM}{authority}/{path}", self.base);
        self.add(format!("ssh://git@{authority}/{path}"), to.clone());
        self.add(format!("git://{authority}/{path}"), to.clone());
        if !authority.contains(':') {
            self.add(format!("git@{authority}:{path}"), to);
        }
    }
}

/// The path of a repository as it is written, without what may stand behind it.
fn path(url: &RepositoryUrl) -> Option<&str> {
    let fetch = url.fetch_url();
    let path = match fetch.split_once("://") {
        Some((_, rest)) => rest.split_once('/')?.1,
        None => fetch.rsplit_once(':')?.1.trim_start_matches('/'),
    };
    let path = path.strip_suffix(".git").unwrap_or(path);
    (!path.is_empty()).then_some(path)
}

fn variables(base: &str, rules: BTreeMap<String, String>) -> BTreeMap<String, String> {
    // Its own URLs are not rewritten: the longest beginning wins.
    let mut config = vec![(format!("url.{base}.insteadOf"), base.to_owned())];
    for (from, to) in rules {
        config.push((format!("url.{from}.pushInsteadOf"), from.clone()));
        config.push((format!("url.{to}.insteadOf"), from));
    }
    let mut variables = BTreeMap::from([
        ("GIT_CONFIG_COUNT".to_owned(), config.len().to_string()),
        // Cargo's own git knows nothing of this.
        ("CARGO_NET_GIT_FETCH_WITH_CLI".to_owned(), "true".to_owned()),
    ]);
    for (number, (key, value)) in config.into_iter().enumerate() {
        variables.insert(format!("GIT_CONFIG_KEY_{number}"), key);
        variables.insert(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
    variables
}

/// Whether something answers there now, and quickly.
async fn answers(base: &str) -> bool {
    matches!(tokio::time::timeout(PROBE_WITHIN, probe(base)).await, Ok(Some(())))
}

async fn probe(base: &str) -> Option<()> {
    let (scheme, rest) = base.split_once("://")?;
    let (authority, path) = rest.split_once('/')?;
    let named = authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let address = match (named, scheme) {
        (true, _) => authority.to_owned(),
        (false, "https") => format!("{authority}:443"),
        (false, _) => format!("{authority}:80"),
    };
    let mut stream = TcpStream::connect(address).await.ok()?;
    if scheme == "https" {
        return Some(()); // that something listens must do: its certificate is between it and the builds
    }
    let request = format!("GET /{path} HTTP/1.0\r\nHost: {authority}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.ok()?;
    (status.starts_with(b"HTTP/1.") && status.ends_with(b" 200")).then_some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const BASE: &str = "http://127.0.0.1:9418/git/";

    fn config(add: Add, allow: &[&str], protocols: &[&str]) -> Config {
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let run = crate::config::Config::for_run(std::path::Path::new("/state"), "node").repositories;
        Config { add, allow: strings(allow), protocols: strings(protocols), ..run }
    }

    /// What git makes of a URL: the longest beginning wins.
    fn rewritten(rules: &BTreeMap<String, String>, url: &str) -> String {
        let matching = rules.iter().filter(|(from, _)| url.starts_with(from.as_str()));
        match matching.max_by_key(|(from, _)| from.len()) {
            Some((from, to)) => format!("{to}{}", &url[from.len()..]).replace(BASE, ""),
            None => url.to_owned(),
        }
    }

    #[test]
    fn hosts_that_are_listed_are_rewritten_in_every_spelling() {
        let rules = rules(BASE, &config(Add::OnDemand, &["github.com", "127.0.0.1"], &["https"]), &[]);
        for (url, expected) in [
            ("https://github.com/a/b", "or-upstream:/github.com/a/b"),
            ("https://github.com:8443/a/b", "or-upstream:/github.com:8443/a/b"),
            ("ssh://git@github.com/a/b.git", "or-upstream:/github.com/a/b.git"),
            ("git@github.com:a/b", "or-upstream:/github.com/a/b"),
            ("git://github.com/a/b", "or-upstream:/github.com/a/b"),
            ("http://github.com/a/b", "http://github.com/a/b"),
            ("https://gitlab.com/a/b", "https://gitlab.com/a/b"),
            ("git@127.0.0.1:a/b", "git@127.0.0.1:a/b"),
        ] {
            assert_eq!(rewritten(&rules, url), expected);
        }
    }

    #[test]
    fn any_host_is_one_rule_and_http_keeps_its_name() {
        let rules = rules(BASE, &config(Add::OnDemand, &["*"], &["https", "http"]), &[]);
        assert_eq!(rewritten(&rules, "https://a.org/b"), "or-upstream:/a.org/b");
        assert_eq!(rewritten(&rules, "http://a.org/b"), "or-upstream:/http:/a.org/b");
        assert_eq!(rewritten(&rules, "git@a.org:b"), "git@a.org:b");
        let variables = variables(BASE, rules);
        let pairs = |suffix: &str| {
            let is = move |(key, value): (&String, &String)| {
                (key.starts_with("GIT_CONFIG_KEY") && value.ends_with(suffix)).then(|| value.clone())
            };
            variables.iter().filter_map(is).collect::<Vec<_>>()
        };
        assert!(pairs(".insteadOf").contains(&format!("url.{BASE}.insteadOf")), "its own URLs stay");
        assert_eq!(pairs(".pushInsteadOf"), ["url.http://.pushInsteadOf", "url.https://.pushInsteadOf"]);
        assert_eq!(variables["GIT_CONFIG_COUNT"], "5");
    }

    #[test]
    fn what_is_here_is_rewritten_and_by_ssh_nothing_else() {
        let known = ["git@github.com:Team/Project.git", "https://a.org:8443/b", "file:///srv/c"];
        let known: Vec<RepositoryUrl> = known.iter().map(|url| url.parse().unwrap()).collect();
        let rules = rules(BASE, &config(Add::Declared, &["*"], &["https"]), &known);
        for (url, expected) in [
            ("https://github.com/Team/Project", "or-upstream:/github.com/Team/Project"),
            ("git@github.com:Team/Project", "or-upstream:/github.com/Team/Project"),
            ("git@github.com:other/thing", "git@github.com:other/thing"),
            ("https://a.org:8443/b.git", "or-upstream:/a.org:8443/b.git"),
            ("https://b.org/b", "https://b.org/b"),
        ] {
            assert_eq!(rewritten(&rules, url), expected);
        }
    }
}
