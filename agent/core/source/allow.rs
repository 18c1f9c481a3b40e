//! Which upstreams callers may add: a fill on demand is a request made in the node's name.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use super::host::is_local;
use crate::reason::{Code, Reason};
use crate::source::{Protocol, RepositoryUrl};

/// Whether a caller may add `url`. `on_demand`: the configuration's `add`; `allow`: patterns over hosts (`github.com`,
/// `*.example.org` for all below it, `*`); `protocols`: words as `https`.
///
/// A host that is this machine or reached only by this link must be named by a pattern without `*`. Local paths have no
/// host: `file` among the protocols is what lets them in.
///
/// # Errors
/// The reason, with what the operator would have to change.
pub fn allowed(url: &RepositoryUrl, on_demand: bool, allow: &[String], protocols: &[String]) -> Result<(), Reason> {
    if !on_demand {
        let message = format!("{url} is not declared on this node; declare it under `repositories.mirrors`");
        return Err(Reason::new(Code::RepositoryNotDeclared, url.key(), message));
    }
    listable(url, allow, protocols)?;
    let Some(host) = url.host() else { return Ok(()) };
    if is_exact(allow, host) || allow.iter().any(|pattern| matches_below(pattern, host)) {
        return Ok(());
    }
    let why = format!("no pattern of `repositories.allow` matches the host {host}");
    Err(Reason::new(Code::RepositoryNotAllowed, url.key(), why))
}

/// Whether a list that the operator named (a manifest, the submodules of a declared mirror) may declare `url`: as for
/// callers, but any host will do that is not this machine or this link.
///
/// # Errors
/// The reason, with what the operator would have to change.
pub fn listable(url: &RepositoryUrl, allow: &[String], protocols: &[String]) -> Result<(), Reason> {
    let refuse = |why: String| Err(Reason::new(Code::RepositoryNotAllowed, url.key(), why));
    let protocol = url.protocol();
    if !protocols.iter().any(|word| word == protocol.word()) {
        let word = protocol.word();
        return refuse(format!("{word} is not allowed here; add it to `repositories.protocols` to serve {url}"));
    }
    let Some(host) = url.host() else { return Ok(()) };
    debug_assert!(protocol != Protocol::File);
    if url.is_loopback_or_link_local() && !is_exact(allow, host) {
        return refuse(format!(
            "{host} is this machine or this link; only `{host}` itself in `repositories.allow` lets it in"
        ));
    }
    Ok(())
}

fn is_exact(allow: &[String], host: &str) -> bool {
    allow.iter().any(|pattern| unbracketed(pattern).eq_ignore_ascii_case(host))
}

/// Whether a pattern of `allow` lets `host` in: one that is this machine or this link only where it is named exactly.
#[must_use]
pub fn is_listed(host: &str, allow: &[String]) -> bool {
    let exact = allow.iter().any(|pattern| unbracketed(pattern).eq_ignore_ascii_case(host));
    exact || (!is_local(host) && allow.iter().any(|pattern| matches_below(pattern, host)))
}

fn unbracketed(pattern: &str) -> &str {
    pattern.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(pattern)
}

/// `*` matches all, `*.example.org` every name below it but not itself.
fn matches_below(pattern: &str, host: &str) -> bool {
    let pattern = pattern.to_owned().to_ascii_lowercase();
    match pattern.strip_prefix('*') {
        Some("") => true,
        Some(suffix) if suffix.starts_with('.') => host.len() > suffix.len() && host.ends_with(suffix),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    fn ask(url: &str, allow: &[&str]) -> Result<(), Code> {
        let strings = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (allow, protocols) = (strings(allow), strings(&["https", "ssh"]));
        allowed(&url.parse().unwrap(), true, &allow, &protocols).map_err(|reason| reason.code)
    }

    #[test]
    fn hosts_match_whole_names() {
        let no = Err(Code::RepositoryNotAllowed);
        for (url, pattern, answer) in [
            ("https://github.com/a", "github.com", Ok(())),
            ("git@github.com:a", "GitHub.com", Ok(())),
            ("https://github.com.evil.org/a", "github.com", no),
            ("https://evilgithub.com/a", "github.com", no),
            ("https://x.example.org/a", "*.example.org", Ok(())),
            ("https://a.b.example.org/a", "*.example.org", Ok(())),
            ("https://example.org/a", "*.example.org", no),
            ("https://evilexample.org/a", "*.example.org", no),
            ("https://anything/a", "*", Ok(())),
            ("http://github.com/a", "*", no),
            ("file:///srv/a", "*", no),
        ] {
            assert_eq!(ask(url, &[pattern]), answer, "{url} {pattern}");
        }
        assert_eq!(ask("https://github.com/a", &[]), no);
    }

    #[test]
    fn this_machine_must_be_named_exactly() {
        for url in ["https://127.0.0.1/a", "https://127.1/a", "https://localhost/a", "https://[fe80::1]/a"] {
            assert_eq!(ask(url, &["*", "*.0.0.1", "*.1", "*host"]), Err(Code::RepositoryNotAllowed), "{url}");
        }
        assert_eq!(ask("https://127.0.0.1:8443/a", &["127.0.0.1"]), Ok(()));
        assert_eq!(ask("https://[::1]/a", &["[::1]"]), Ok(()));
    }

    #[test]
    fn a_list_needs_no_pattern_but_for_this_machine() {
        let strings = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let ask = |url: &str, allow: &[&str]| {
            listable(&url.parse().unwrap(), &strings(allow), &strings(&["https"])).map_err(|reason| reason.code)
        };
        let no = Err(Code::RepositoryNotAllowed);
        for (url, allow, answer) in [
            ("https://github.com/a", &[] as &[&str], Ok(())),
            ("http://github.com/a", &["*"], no),
            ("file:///srv/a", &["*"], no),
            ("https://169.254.169.254/a", &["*"], no),
            ("https://127.0.0.1/a", &["127.0.0.1"], Ok(())),
        ] {
            assert_eq!(ask(url, allow), answer, "{url}");
        }
    }

    #[test]
    fn undeclared_and_not_allowed_are_told_apart() {
        let url = "https://github.com/a".parse().unwrap();
        let every = ["*".to_string()];
        assert_eq!(allowed(&url, false, &every, &every).unwrap_err().code, Code::RepositoryNotDeclared);
    }
}
