//! Lists of further mirrors: manifests, and the bounds of submodules.

use std::collections::BTreeMap;

use stoker_core::source::{RepositoryUrl, SourceRef};

use super::repositories::{parse_url, speaks};
use super::{count, text};
use crate::config::file::{ManifestSection, ProtocolWord, SubmodulesSection};
use crate::config::problem::{Fault, Place, Problems, shown};
use crate::config::{MANIFEST_FILE, Manifest, ManifestFrom, Submodules};

/// The most manifests.
const MANIFESTS_MAX: usize = 64;
/// The most groups of one manifest.
const GROUPS_MAX: usize = 64;
/// The most bytes of a group's name.
const GROUP_BYTES_MAX: usize = 255;
/// The deepest nesting of submodules that can be asked for.
const DEPTH_MAX: usize = 32;
/// The most submodules of one repository that can be asked for.
const REPOSITORIES_MAX: usize = 2000;

pub(super) fn submodules(section: &SubmodulesSection, place: &Place<'_>, problems: &mut Problems) -> Submodules {
    Submodules {
        depth: problems.take(&place.field("depth"), count(section.depth, DEPTH_MAX)),
        repositories: problems.take(&place.field("repositories"), count(section.repositories, REPOSITORIES_MAX)),
    }
}

pub(super) fn manifests(
    sections: &[ManifestSection],
    protocols: &[ProtocolWord],
    place: &Place<'_>,
    problems: &mut Problems,
) -> Vec<Manifest> {
    if sections.len() > MANIFESTS_MAX {
        let message = format!("has {} manifests", sections.len());
        problems.add(place, Fault::new(message, format!("declare at most {MANIFESTS_MAX}")));
        return Vec::new();
    }
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    let mut manifests = Vec::with_capacity(sections.len());
    for (index, section) in sections.iter().enumerate() {
        let here = place.entry(index);
        let trust = problems.take(&here.field("trust"), text::name(&section.trust));
        let groups = groups(&section.groups, &here.field("groups"), problems);
        let Some(from) = from(section, protocols, &here, problems) else { continue };
        let manifest = Manifest { from, groups, pin: section.pin, trust };
        let known_by = match &manifest.from {
            ManifestFrom::Repository { url, reference, file } => format!("{} {reference} {file}", url.key()),
            ManifestFrom::File { path, .. } => path.display().to_string(),
        };
        if let Some(line) = lines.insert(known_by, here.line()) {
            let message = format!("is the manifest of line {line} too");
            problems.add(&here, Fault::new(message, "keep one of them"));
        }
        manifests.push(manifest);
    }
    manifests
}

fn groups(names: &[String], place: &Place<'_>, problems: &mut Problems) -> Vec<String> {
    if names.len() > GROUPS_MAX {
        let message = format!("has {} groups", names.len());
        problems.add(place, Fault::new(message, format!("write at most {GROUPS_MAX}")));
        return Vec::new();
    }
    let plain = |name: &str| {
        (1..=GROUP_BYTES_MAX).contains(&name.len())
            && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == ',')
    };
    for (index, name) in names.iter().enumerate().filter(|(_, name)| !plain(name)) {
        let fault = Fault::new(format!("{} is not a group", shown(name)), "write one group an entry, without commas");
        problems.add(&place.entry(index), fault);
    }
    names.to_vec()
}

fn from(
    section: &ManifestSection,
    protocols: &[ProtocolWord],
    here: &Place<'_>,
    problems: &mut Problems,
) -> Option<ManifestFrom> {
    match (&section.url, &section.path) {
        (Some(url), None) => in_repository(url, section, protocols, here, problems),
        (None, Some(path)) => on_this_machine(path, section, here, problems),
        _ => {
            let remedy = "write `url` where it lies in a repository, or `path` and `base`";
            problems.add(here, Fault::new("has not one of `url` and `path`", remedy));
            None
        }
    }
}

fn in_repository(
    written: &str,
    section: &ManifestSection,
    protocols: &[ProtocolWord],
    here: &Place<'_>,
    problems: &mut Problems,
) -> Option<ManifestFrom> {
    if section.base.is_some() {
        let fault = Fault::new("stands beside `url`, which says it already", "remove it");
        problems.add(&here.field("base"), fault);
    }
    let at = here.field("url");
    let url = match parse_url(written) {
        Ok(url) => url,
        Err(why) => {
            let remedy = "write a URL as `https://host/team/manifest`, without credentials";
            problems.add(&at, Fault::new(format!("{} is not a repository: {why}", shown(written)), remedy));
            return None;
        }
    };
    if let Err(fault) = speaks(&url, written, protocols) {
        problems.add(&at, fault);
    }
    let reference = match section.reference.as_deref().unwrap_or("head").parse() {
        Ok(SourceRef::PullRequest(_)) => {
            let fault = Fault::new("names a pull request, which mirrors do not follow", "write `branch:NAME`");
            problems.add(&here.field("ref"), fault);
            SourceRef::Head
        }
        Ok(reference) => reference,
        Err(error) => {
            problems.add(&here.field("ref"), Fault::new(error.to_string(), "write as `branch:main`"));
            SourceRef::Head
        }
    };
    let file = section.file.as_deref().unwrap_or(MANIFEST_FILE);
    let file = problems.take(&here.field("file"), text::relative(file)).to_string_lossy().into_owned();
    Some(ManifestFrom::Repository { url, reference, file })
}

fn on_this_machine(
    written: &str,
    section: &ManifestSection,
    here: &Place<'_>,
    problems: &mut Problems,
) -> Option<ManifestFrom> {
    for (name, given) in [("ref", section.reference.is_some()), ("file", section.file.is_some())] {
        if given {
            let fault = Fault::new("is for a manifest in a repository", "remove it, or write `url` for `path`");
            problems.add(&here.field(name), fault);
        }
    }
    let path = problems.take(&here.field("path"), text::absolute(written));
    let place = here.field("base");
    let Some(base) = section.base.as_deref() else {
        let remedy = "write the URL to which `fetch` is relative, as `https://host/team/`";
        problems.add(&place, Fault::new("is missing", remedy));
        return None;
    };
    match folder(base) {
        Ok(base) => Some(ManifestFrom::File { path, base }),
        Err(why) => {
            let remedy = "write a URL as `https://host/team/`, without credentials";
            problems.add(&place, Fault::new(format!("{} is not a URL: {why}", shown(base)), remedy));
            None
        }
    }
}

/// The URL that a repository in that folder would have: `fetch` is resolved against a repository's URL.
fn folder(base: &str) -> Result<RepositoryUrl, String> {
    parse_url(&format!("{}/manifest", base.trim_end_matches('/')))
}
