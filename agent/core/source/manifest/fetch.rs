//! What a remote's `fetch` means: absolute, or relative to the URL of the manifest's repository.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The prefix of the remote's projects, as `repo` resolves it: RFC 3986, section 5.2, over a base without a slash at its
/// end. So `..` beside `https://host/team/manifest` is `https://host`, and `.` is `https://host/team`.
pub(super) fn resolve(base: &str, fetch: &str) -> String {
    let (base, fetch) = (normal(base), normal(fetch));
    if has_scheme(&fetch) {
        return fetch;
    }
    let (scheme, authority, path) = split(&base);
    if let Some(rest) = fetch.strip_prefix("//") {
        return format!("{scheme}//{rest}");
    }
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let whole = if fetch.starts_with('/') { fetch } else { format!("{folder}/{fetch}") };
    let mut segments: Vec<&str> = Vec::new();
    for segment in whole.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    format!("{scheme}{authority}/{}", segments.join("/")).trim_end_matches('/').to_owned()
}

/// Without slashes at the end; `user@host:path` as an `ssh` URL.
fn normal(url: &str) -> String {
    let url = url.trim_end_matches('/');
    if !has_scheme(url)
        && let Some((host, path)) = url.split_once(':')
        && let Some((user, name)) = host.split_once('@')
        && !user.is_empty()
        && !name.is_empty()
        && !name.contains('@')
        && !host.contains('/')
        && !path.is_empty()
        && !path.starts_with('/')
    {
        return format!("ssh://{host}/{path}");
    }
    url.to_owned()
}

fn has_scheme(url: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    url.split_once(':')
        .is_some_and(|(scheme, _)| scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(plain))
}

/// `https:` and `//host` and `/path`; a path alone has neither, and `host:path` is all host up to the first slash.
fn split(base: &str) -> (&str, &str, &str) {
    let (scheme, rest) =
        match base.find("://").and_then(|at| at.checked_add(1)).and_then(|at| base.split_at_checked(at)) {
            Some(parts) => parts,
            None => ("", base),
        };
    let host = if scheme.is_empty() { 0 } else { 2 };
    let end = rest.get(host..).and_then(|rest| rest.find('/')).and_then(|at| at.checked_add(host));
    let (authority, path) = rest.split_at_checked(end.unwrap_or(rest.len())).unwrap_or((rest, ""));
    (scheme, authority, path)
}
