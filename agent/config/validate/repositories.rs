//! Repositories: their pool, who may add which, and the declared mirrors.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use stoker_core::source::RepositoryUrl;

use super::{count, forges, git, limit, lists, pools, serve, text, upkeep, within};
use crate::config::file::{AddWord, File, LfsSection, MirrorSection, ProtocolWord};
use crate::config::problem::{Fault, Place, Problems, shown};
use crate::config::{Add, Lfs, Mirror, Repositories};

/// The most declared mirrors.
const MIRRORS_MAX: usize = 10_000;
/// The most directories of seeds.
const SEEDS_MAX: usize = 16;
/// The most host patterns.
const PATTERNS_MAX: usize = 256;

/// The repositories of the file.
pub(super) fn validate(file: &File, place: &Place<'_>, problems: &mut Problems) -> Repositories {
    let section = &file.repositories;
    let second = Duration::from_secs(1);
    let day = Duration::from_secs(24 * 3600);
    let refresh = within(&section.refresh, second, 7 * day, "1s to 168h");
    let fetch_within = within(&section.fetch_within, second, day, "1s to 24h");
    let check = within(&section.check, second, 365 * day, "1s to 8760h");
    let mut protocols = section.protocols.clone();
    protocols.sort_unstable();
    protocols.dedup();
    if protocols.is_empty() {
        let fault = Fault::new("is empty, so nothing could be fetched", "write at least one, as `[https]`");
        problems.add(&place.field("protocols"), fault);
    }
    Repositories {
        pool: pool(file, place, problems),
        limit: section.limit.as_ref().map(|bytes| problems.take(&place.field("limit"), limit(bytes.bytes()))),
        refresh: problems.take(&place.field("refresh"), refresh),
        parallel: problems.take(&place.field("parallel"), count(section.parallel, 64)),
        parallel_per_host: problems.take(&place.field("parallelPerHost"), count(section.parallel_per_host, 64)),
        fetch_within: problems.take(&place.field("fetchWithin"), fetch_within),
        check: problems.take(&place.field("check"), check),
        seeds: seeds(file, &place.field("seeds"), problems),
        add: match section.add {
            AddWord::Declared => Add::Declared,
            AddWord::OnDemand => Add::OnDemand,
        },
        allow: allow(file, &place.field("allow"), problems),
        protocols: protocols.iter().map(|protocol| protocol.scheme().to_owned()).collect(),
        git: git::child(&section.git, &place.field("git"), problems),
        credentials: git::credentials(&section.credentials, &place.field("credentials"), problems),
        forges: forges::forges(&section.forges, &protocols, &place.field("forges"), problems),
        upkeep: upkeep::upkeep(&section.upkeep, &place.field("upkeep"), problems),
        min_age: problems
            .take(&place.field("minAge"), within(&section.min_age, Duration::ZERO, 365 * day, "0s to 8760h")),
        paths: section.paths.as_ref().map(|paths| upkeep::paths(paths, &place.field("paths"), problems)),
        mirrors: mirrors(&section.mirrors, &protocols, &place.field("mirrors"), problems),
        manifests: lists::manifests(&section.manifests, &protocols, &place.field("manifests"), problems),
        submodules: lists::submodules(&section.submodules, &place.field("submodules"), problems),
        lfs: lfs(&section.lfs, &place.field("lfs"), problems),
        serve: serve::validate(&section.serve, &place.field("serve"), problems),
    }
}

fn lfs(section: &LfsSection, place: &Place<'_>, problems: &mut Problems) -> Lfs {
    Lfs {
        object_limit: problems.take(&place.field("objectLimit"), limit(section.object_limit.bytes())),
        limit: section.limit.as_ref().map(|bytes| problems.take(&place.field("limit"), limit(bytes.bytes()))),
    }
}

/// The pool that is named, or the one name that there is.
fn pool(file: &File, place: &Place<'_>, problems: &mut Problems) -> String {
    let place = place.field("pool");
    if let Some(name) = &file.repositories.pool {
        return problems.take(&place, pools::named(&file.pools, name));
    }
    // A name that is missing is told elsewhere.
    let mut names = file.pools.iter().map(|pool| &pool.name).filter(|name| !name.is_empty());
    let Some(first) = names.next() else { return String::new() };
    if names.any(|name| name != first) {
        let fault = Fault::new("is missing, and there is more than one pool", "name the pool that holds repositories");
        problems.add(&place, fault);
    }
    first.clone()
}

fn seeds(file: &File, place: &Place<'_>, problems: &mut Problems) -> Vec<PathBuf> {
    let seeds = &file.repositories.seeds;
    if seeds.len() > SEEDS_MAX {
        problems
            .add(place, Fault::new(format!("has {} directories", seeds.len()), format!("write at most {SEEDS_MAX}")));
        return Vec::new();
    }
    let paths = seeds.iter().enumerate();
    paths.map(|(index, path)| problems.take(&place.entry(index), text::absolute(path))).collect()
}

fn allow(file: &File, place: &Place<'_>, problems: &mut Problems) -> Vec<String> {
    let section = &file.repositories;
    if section.allow.len() > PATTERNS_MAX {
        let fault =
            Fault::new(format!("has {} patterns", section.allow.len()), format!("write at most {PATTERNS_MAX}"));
        problems.add(place, fault);
        return Vec::new();
    }
    if section.allow.is_empty() && section.add == AddWord::OnDemand {
        let fault = Fault::new("is empty, so nothing can be added on demand", "list hosts, or set `add: declared`");
        problems.add(place, fault);
    }
    let patterns = section.allow.iter().enumerate();
    patterns.map(|(index, pattern)| problems.take(&place.entry(index), text::host_pattern(pattern))).collect()
}

fn mirrors(
    sections: &[MirrorSection],
    protocols: &[ProtocolWord],
    place: &Place<'_>,
    problems: &mut Problems,
) -> Vec<Mirror> {
    if sections.len() > MIRRORS_MAX {
        let fault = Fault::new(format!("has {} mirrors", sections.len()), format!("declare at most {MIRRORS_MAX}"));
        problems.add(place, fault);
        return Vec::new();
    }
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    let mut mirrors = Vec::with_capacity(sections.len());
    for (index, section) in sections.iter().enumerate() {
        let here = place.entry(index);
        let trust = problems.take(&here.field("trust"), text::name(&section.trust));
        let at = here.field("url");
        let url = match parse_url(&section.url) {
            Ok(url) => url,
            Err(why) => {
                let remedy = "write a URL as `https://github.com/owner/name`, without credentials";
                problems.add(&at, Fault::new(format!("{} is not a repository: {why}", shown(&section.url)), remedy));
                continue;
            }
        };
        if let Err(fault) = speaks(&url, &section.url, protocols) {
            problems.add(&at, fault);
        }
        if let Some(line) = lines.insert(url.key().to_owned(), at.line()) {
            let message = format!("{} is the repository of line {line} too", shown(&section.url));
            problems.add(&at, Fault::new(message, "keep one of them"));
        }
        let fork_of = fork_of(section, &url, &here, problems);
        mirrors.push(Mirror {
            url,
            pin: section.pin,
            trust,
            fork_of,
            submodules: section.submodules,
            lfs: section.lfs,
        });
    }
    mirrors
}

fn fork_of(
    section: &MirrorSection,
    url: &RepositoryUrl,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Option<RepositoryUrl> {
    let text = section.fork_of.as_deref()?;
    let fault = match parse_url(text) {
        Ok(root) if root != *url => return Some(root),
        Ok(_) => Fault::new("is the mirror itself", "name the repository that it was forked from, or leave it out"),
        Err(why) => Fault::new(
            format!("{} is not a repository: {why}", shown(text)),
            "write the URL of the repository that it was forked from",
        ),
    };
    problems.add(&place.field("forkOf"), fault);
    None
}

/// Whether `protocols` lists what the URL needs.
pub(super) fn speaks(url: &RepositoryUrl, written: &str, protocols: &[ProtocolWord]) -> Result<(), Fault> {
    let protocol = url.protocol().word();
    if protocols.iter().any(|allowed| allowed.scheme() == protocol) {
        return Ok(());
    }
    let message = format!("{} needs {protocol}, which `protocols` does not list", shown(written));
    Err(Fault::new(message, format!("add {protocol} to `repositories.protocols`, or write a URL of a listed one")))
}

/// The one place where a URL of the file is read.
pub(in crate::config) fn parse_url(text: &str) -> Result<RepositoryUrl, String> {
    text.parse().map_err(|error: <RepositoryUrl as std::str::FromStr>::Err| error.to_string())
}
