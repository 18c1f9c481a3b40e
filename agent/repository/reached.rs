//! Where an upstream's name leads: a fetch on demand is a request in the node's name, and must not reach this machine or
//! this link by a name that nobody gave for that.

use std::net::SocketAddr;
use std::time::Duration;

use stoker_core::reason::{Code, Reason};
use stoker_core::source::{Protocol, RepositoryUrl, is_local};
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::upstream_http::has_proxy;

/// How long the name service may take; then git says what is wrong.
const LOOKED_UP_WITHIN: Duration = Duration::from_secs(5);

/// The addresses that git is bound to, in the words of `http.curloptResolve`; nothing where it may look itself: the
/// operator named the host, a proxy looks, or nobody knows it.
///
/// # Errors
/// When one of them is this machine's, or this link's.
pub(super) async fn bound(url: &RepositoryUrl, allow: &[String]) -> Result<Option<String>, Reason> {
    let Some(host) = url.host() else { return Ok(None) };
    let is_named = allow.iter().any(|pattern| pattern.trim_matches(['[', ']']).eq_ignore_ascii_case(host));
    if is_named || has_proxy() {
        return Ok(None);
    }
    let Ok(Ok(found)) = timeout(LOOKED_UP_WITHIN, lookup_host((host, port(url)))).await else { return Ok(None) };
    let found: Vec<SocketAddr> = found.collect();
    if found.iter().any(|address| is_local(&address.ip().to_string())) {
        let message = format!(
            "{host} stands for an address of this machine or this link; only `{host}` itself in `repositories.allow` lets \
             it in"
        );
        return Err(Reason::new(Code::RepositoryNotAllowed, url.key(), message));
    }
    let is_http = matches!(url.protocol(), Protocol::Http | Protocol::Https);
    let addresses: Vec<String> = found.iter().map(|address| address.ip().to_string()).collect();
    Ok((is_http && !addresses.is_empty()).then(|| format!("{host}:{}:{}", port(url), addresses.join(","))))
}

fn port(url: &RepositoryUrl) -> u16 {
    let authority = url.key().split('/').next().unwrap_or_default();
    let written = authority.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
    written.and_then(|(_, port)| port.parse().ok()).unwrap_or(match url.protocol() {
        Protocol::Http => 80,
        Protocol::Https | Protocol::File => 443,
        Protocol::Ssh => 22,
        Protocol::Git => 9418,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_those_that_are_written_or_the_protocols() {
        for (url, expected) in [
            ("https://example.org/a", 443),
            ("http://example.org/a", 80),
            ("http://example.org:8080/a", 8080),
            ("ssh://git@example.org/a", 22),
            ("https://[2001:db8::1]/a", 443),
            ("https://[2001:db8::1]:8443/a", 8443),
        ] {
            assert_eq!(port(&url.parse().unwrap()), expected, "{url}");
        }
    }

    #[tokio::test]
    async fn addresses_of_this_machine_are_refused_unless_the_host_is_named() {
        let url: RepositoryUrl = "http://127.0.0.1:1/a".parse().unwrap();
        assert_eq!(bound(&url, &["*".to_owned()]).await.unwrap_err().code, Code::RepositoryNotAllowed);
        assert_eq!(bound(&url, &["127.0.0.1".to_owned()]).await, Ok(None));
        let far: RepositoryUrl = "http://192.0.2.7:81/a".parse().unwrap();
        assert_eq!(bound(&far, &[]).await, Ok(Some("192.0.2.7:81:192.0.2.7".to_owned())));
    }
}
