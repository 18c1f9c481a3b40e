//! Submodules: what a commit's `.gitmodules` says, held against what may become of it.
//!
//! In come the lines of the file, as git's own parser gives them, and the commits that the tree has at their paths; out
//! goes a list of repositories with the place of each. The file is written by whoever can push: its names become folders
//! in a git directory, its paths folders in a work tree, its URLs requests in the node's name. Each was a hole once
//! (CVE-2018-11235, CVE-2018-17456, CVE-2019-1387, CVE-2024-32002), so what git merely ignores is refused here, and told.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::{Protocol, RepositoryUrl};
use crate::identity::CommitId;

/// The most bytes of a submodule's name, and of its path.
pub const TEXT_BYTES_MAX: usize = 1024;
/// The most bytes of one part of them: NAME_MAX of Linux.
const PART_BYTES_MAX: usize = 255;
/// The most sections of one file.
pub const SECTIONS_MAX: usize = 4096;

/// What is wrong with a submodule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmoduleError {
    /// Its name, as it is written; empty where it is the whole file.
    pub name: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl SubmoduleError {
    fn new(name: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for SubmoduleError {
    /// `submodule "x" in .gitmodules has ...; ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => write!(f, ".gitmodules {}; {}", self.what, self.remedy),
            name => write!(f, "submodule {} in .gitmodules {}; {}", shown(name), self.what, self.remedy),
        }
    }
}

impl core::error::Error for SubmoduleError {}

/// One section of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Section {
    /// What it is called.
    pub name: String,
    /// Where it goes.
    pub path: Option<String>,
    /// Where it comes from.
    pub url: Option<String>,
    /// How `git submodule update` shall treat it.
    pub update: Option<String>,
}

/// What `git clone --recurse-submodules` does with a submodule, and later updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// The file does not say.
    Unset,
    /// Checks the commit out.
    Checkout,
    /// As a checkout, while the submodule is new.
    Rebase,
    /// As a checkout, while the submodule is new.
    Merge,
    /// Leaves its folder empty.
    None,
}

impl Update {
    /// The word in a configuration; none where nothing is said.
    #[must_use]
    pub const fn word(self) -> Option<&'static str> {
        match self {
            Self::Unset => None,
            Self::Checkout => Some("checkout"),
            Self::Rebase => Some("rebase"),
            Self::Merge => Some("merge"),
            Self::None => Some("none"),
        }
    }
}

/// One submodule of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submodule {
    /// A folder in the git directory.
    pub name: String,
    /// A folder in the work tree.
    pub path: String,
    /// Where it comes from; what was relative is resolved.
    pub url: RepositoryUrl,
    /// What the tree has there.
    pub commit: CommitId,
    /// What an update does.
    pub update: Update,
}

/// The sections that `git config --null --list` prints, in the order of their names. Of values that are given twice the
/// first counts, as for git.
///
/// # Errors
/// When they are not UTF-8, or too many.
pub fn sections(listing: &[u8]) -> Result<Vec<Section>, SubmoduleError> {
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    for record in listing.split(|byte| *byte == 0).filter(|record| !record.is_empty()) {
        let wrong = |_| SubmoduleError::new("", "has names that are not UTF-8", "rename the submodule");
        let record = core::str::from_utf8(record).map_err(wrong)?;
        // A variable without a value has no line of its own for it.
        let (key, value) = record.split_once('\n').unwrap_or((record, ""));
        let Some((name, variable)) = key.strip_prefix("submodule.").and_then(|key| key.rsplit_once('.')) else {
            continue;
        };
        if sections.len() >= SECTIONS_MAX && !sections.contains_key(name) {
            let what = format!("has more than {SECTIONS_MAX} submodules");
            return Err(SubmoduleError::new("", what, "remove those that the tree no longer has"));
        }
        let section =
            sections.entry(name.to_owned()).or_insert_with(|| Section { name: name.to_owned(), ..Section::default() });
        let slot = match variable {
            "path" => &mut section.path,
            "url" => &mut section.url,
            "update" => &mut section.update,
            _ => continue,
        };
        slot.get_or_insert_with(|| value.to_owned());
    }
    Ok(sections.into_values().collect())
}

/// The submodules that the commit has: the sections at whose paths the tree has a commit (`gitlink` gives it), in the
/// order of their paths. Sections without one are left-overs, as for git. `parent`: where the commit comes from.
///
/// # Errors
/// The first thing that is wrong with one of them.
pub fn submodules(
    sections: &[Section],
    parent: &RepositoryUrl,
    mut gitlink: impl FnMut(&str) -> Option<CommitId>,
) -> Result<Vec<Submodule>, SubmoduleError> {
    let mut found: BTreeMap<&str, Submodule> = BTreeMap::new();
    let mut folders: BTreeSet<String> = BTreeSet::new();
    for section in sections {
        let name = section.name.as_str();
        let wrong = |what: String, remedy: &str| Err(SubmoduleError::new(name, what, remedy));
        let Some(path) = section.path.as_deref() else { continue };
        let Some(commit) = gitlink(path) else { continue };
        if let Err(why) = check(path) {
            return wrong(format!("has the path {}, which {why}", shown(path)), "move it to a plain folder");
        }
        if let Err(why) = check(name) {
            return wrong(format!("has a name that {why}"), "rename its section");
        }
        // Names are folders in the git directory, also on disks that know no upper case.
        if !folders.insert(name.to_lowercase()) {
            return wrong("has the name of another, but for upper and lower case".to_owned(), "rename its section");
        }
        let Some(url) = section.url.as_deref() else {
            return wrong("has no url".to_owned(), "add one, or remove it from the tree");
        };
        let url = resolve_url(parent, url).map_err(|why| {
            // Not repeated: it may have a secret in it.
            SubmoduleError::new(name, format!("has a url that {why}"), "mend it there, or build without submodules")
        })?;
        let update = match section.update.as_deref() {
            None => Update::Unset,
            Some("checkout") => Update::Checkout,
            Some("rebase") => Update::Rebase,
            Some("merge") => Update::Merge,
            Some("none") => Update::None,
            Some(other) => {
                let what = format!("has the update {}, and a repository may not say what to run", shown(other));
                return wrong(what, "write checkout, rebase, merge or none");
            }
        };
        let submodule = Submodule { name: name.to_owned(), path: path.to_owned(), url, commit, update };
        if let Some(other) = found.insert(path, submodule) {
            return wrong(
                format!("has the path {} of submodule {}", shown(path), shown(&other.name)),
                "remove one of them",
            );
        }
    }
    // One git directory inside of another could write the other's hooks.
    for folder in &folders {
        let above = folder.match_indices('/').filter_map(|(at, _)| folder.get(..at));
        if let Some(above) = above.into_iter().find(|above| folders.contains(*above)) {
            let what = format!("has a name inside of that of submodule {}", shown(above));
            return Err(SubmoduleError::new(folder, what, "rename its section"));
        }
    }
    Ok(found.into_values().collect())
}

/// Whether a name or path stays below where it is put; else what is wrong with it.
fn check(text: &str) -> Result<(), &'static str> {
    let hidden =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let rules = [
        (text.is_empty(), "is empty"),
        (text.len() > TEXT_BYTES_MAX, "is too long"),
        (text.starts_with('-'), "begins with '-', which git would take for an option"),
        (text.chars().any(char::is_control), "has control characters"),
        (text.chars().any(hidden), "has characters that nobody sees"),
        (text.contains('\\'), "has a '\\'"),
        (text.starts_with('/'), "is absolute"),
    ];
    if let Some((_, why)) = rules.into_iter().find(|(wrong, _)| *wrong) {
        return Err(why);
    }
    for part in text.split('/') {
        // Some filesystems drop dots and spaces at the end, and one calls `.git` also `git~1`.
        let plain = part.trim_end_matches(['.', ' ']).to_lowercase();
        match plain.as_str() {
            _ if part.len() > PART_BYTES_MAX => return Err("has a part that is too long"),
            _ if part.is_empty() => return Err("has an empty part"),
            "" => return Err("has a part '.' or '..'"),
            ".git" | "git~1" => return Err("has a part '.git'"),
            _ if plain.starts_with(".git:") => return Err("has a part '.git'"),
            _ => {}
        }
    }
    Ok(())
}

/// Where a submodule comes from. `./` and `../` are relative to its parent's URL as git has it: they replace its last
/// segments, and never its host.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn resolve_url(parent: &RepositoryUrl, text: &str) -> Result<RepositoryUrl, String> {
    let relative = text.starts_with("./") || text.starts_with("../");
    let text = if relative { relative_url(parent.fetch_url(), text)? } else { text.to_owned() };
    let url: RepositoryUrl = text.parse().map_err(|error: super::UrlError| error.to_string())?;
    if url.protocol() == Protocol::File && parent.protocol() != Protocol::File {
        return Err("is a path of this machine, which only a repository of this machine may name".to_owned());
    }
    Ok(url)
}

fn relative_url(parent: &str, text: &str) -> Result<String, String> {
    let parent = parent.strip_suffix('/').unwrap_or(parent);
    // After `scheme://host/` or `user@host:` come the segments that may go.
    let start = match parent.find("://").and_then(|at| at.checked_add(3)) {
        Some(host) => parent.get(host..).and_then(|rest| rest.find('/')).and_then(|at| host.checked_add(at)),
        None => parent.rfind(':'),
    };
    let (base, path) = start.and_then(|at| parent.split_at_checked(at.saturating_add(1))).unwrap_or((parent, ""));
    let mut segments: Vec<&str> = path.split('/').collect();
    let mut rest = text;
    loop {
        if let Some(after) = rest.strip_prefix("../") {
            if segments.pop().is_none_or(str::is_empty) {
                return Err(format!("leads out of {parent}, to which it is relative"));
            }
            rest = after;
        } else if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else {
            break;
        }
    }
    segments.push(rest.strip_suffix('/').unwrap_or(rest));
    Ok(format!("{base}{}", segments.join("/")))
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

#[cfg(test)]
#[path = "submodules_tests.rs"]
mod tests;
