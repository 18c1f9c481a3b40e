//! Forges: whose repositories they serve, and where their API is.

use std::collections::BTreeMap;

use stoker_core::source::{ForgeKind, Protocol};

use super::repositories::{parse_url, speaks};
use crate::config::file::{ForgeSection, ForgeWord, ProtocolWord};
use crate::config::git::{CredentialMatch, Forge};
use crate::config::problem::{Fault, Place, Problems, shown};

/// The most forges.
const FORGES_MAX: usize = 64;

pub(super) fn forges(
    sections: &[ForgeSection],
    protocols: &[ProtocolWord],
    place: &Place<'_>,
    problems: &mut Problems,
) -> Vec<Forge> {
    if sections.len() > FORGES_MAX {
        let message = format!("has {} forges", sections.len());
        problems.add(place, Fault::new(message, format!("declare at most {FORGES_MAX}")));
        return Vec::new();
    }
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    let mut all = Vec::with_capacity(sections.len());
    for (index, section) in sections.iter().enumerate() {
        let here = place.entry(index);
        let kind = match section.kind {
            ForgeWord::Github => ForgeKind::Github,
            ForgeWord::Gitlab => ForgeKind::Gitlab,
            ForgeWord::Gitea | ForgeWord::Forgejo => ForgeKind::Gitea,
        };
        let at = here.field("host");
        let host = problems.take(&at, host(&section.host));
        if let Some(line) = lines.insert(host.clone(), at.line()).filter(|_| !host.is_empty()) {
            let message = format!("{} is the forge of line {line} too", shown(&section.host));
            problems.add(&at, Fault::new(message, "keep one of them"));
        }
        let api = match &section.api {
            Some(text) => problems.take(&here.field("api"), api(text, protocols)),
            None => kind.usual_api(&host),
        };
        all.push(Forge { host, kind, api });
    }
    all
}

/// As repositories' keys have it.
fn host(text: &str) -> Result<String, Fault> {
    let wrong = |why: &str| {
        Fault::new(
            format!("{} is not a host: {why}", shown(text)),
            "write it as `github.com` or `git.example.org:8443`",
        )
    };
    if text.contains('/') {
        return Err(wrong("it has a slash"));
    }
    text.parse::<CredentialMatch>().map(|matches| matches.key).map_err(|why| wrong(&why))
}

fn api(text: &str, protocols: &[ProtocolWord]) -> Result<String, Fault> {
    let remedy = "write a URL as `https://api.github.com`, without credentials";
    let base = text.trim_end_matches('/');
    if base.contains('@') {
        return Err(Fault::new("has a user name or a password in it", remedy));
    }
    let wrong = |why: &str| Fault::new(format!("{} is not the URL of an API: {why}", shown(text)), remedy);
    let url = parse_url(&format!("{base}/x")).map_err(|why| wrong(&why))?;
    if !matches!(url.protocol(), Protocol::Https | Protocol::Http) {
        return Err(wrong("it is not one of HTTP"));
    }
    speaks(&url, text, protocols)?;
    Ok(base.to_owned())
}
