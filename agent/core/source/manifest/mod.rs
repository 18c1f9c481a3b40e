//! Manifests of the `repo` tool: lists of projects, as a list of repositories.
//!
//! In come the texts of a manifest and of the files that it includes (through a function, for this crate reads no files)
//! and the URL of the repository that they lie in; out goes what `repo sync` would fetch: each project's name, path, URL
//! and revision. The format is that of git-repo's `docs/manifest-format.md`; where its prose and its program differ, the
//! program is followed, so that both name the same repositories.
//!
//! Manifests are written by others: document types (and with them all entities but XML's own) are refused, includes are
//! bounded in depth and number, names that leave their folder are refused, and every error says where and what to do.

mod fetch;
mod resolve;
mod xml;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::{RepositoryUrl, SourceRef};
use resolve::Resolver;
use xml::Element;

/// The most bytes of a manifest together with all that it includes.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// The most projects of one manifest.
pub const PROJECTS_MAX: usize = 2000;
/// How deep includes may go.
pub const INCLUDE_DEPTH_MAX: usize = 8;
/// How many files are read in all: one may be included more than once.
pub const FILES_MAX: usize = 256;

/// Which projects `repo sync` takes where nobody says otherwise, on Linux.
const GROUPS_DEFAULT: [&str; 2] = ["default", "platform-linux"];
/// How many notes are kept.
const NOTES_MAX: usize = 20;

/// A project of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// As the manifest names it; that of a nested project begins with its parent's.
    pub name: String,
    /// Where `repo` puts it.
    pub path: String,
    /// Where it comes from.
    pub url: RepositoryUrl,
    /// Which state of it; none for a ref that is neither a branch nor a tag.
    pub revision: Option<SourceRef>,
    /// What of it is seen elsewhere too.
    pub files: Vec<Placed>,
}

/// A `copyfile` or `linkfile` of a project, as it is written: lists of mirrors need nothing of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// A symbolic link, and not a copy.
    pub link: bool,
    /// Below the project.
    pub src: String,
    /// Below the client's top.
    pub dest: String,
    /// Where the manifest says so: `default.xml:12`.
    pub at: String,
}

impl Placed {
    /// Whether both paths stay where they belong.
    ///
    /// # Errors
    /// What is wrong, and what to do about it.
    pub fn check(&self) -> Result<(), String> {
        let element = if self.link { "linkfile" } else { "copyfile" };
        let wrong = |which: &str, path: &str, why: &str| {
            format!("{}: <{element}> has a {which} {} that {why}; write a plain relative path", self.at, shown(path))
        };
        check_path(&self.src, self.link).map_err(|why| wrong("src", &self.src, why))?;
        check_path(&self.dest, false).map_err(|why| wrong("dest", &self.dest, why))?;
        match self.src.contains(['*', '?', '[']) {
            true => Err(wrong("src", &self.src, "is a pattern")),
            false => Ok(()),
        }
    }
}

/// What a manifest says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The projects of the wanted groups, in the manifest's order.
    pub projects: Vec<Project>,
    /// What was left out, in words.
    pub notes: Vec<String>,
}

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    /// The file.
    pub file: String,
    /// The line, from 1; 0 where it is the whole file.
    pub line: u32,
    /// The element, as `<project name="a">`; empty where it is none.
    pub element: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for ManifestError {
    /// `default.xml:12: <project name="a"> has no remote; ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        let space = if self.element.is_empty() { "" } else { " " };
        write!(f, ": {}{space}{}; {}", self.element, self.what, self.remedy)
    }
}

impl core::error::Error for ManifestError {}

/// Gives the bytes of a file, by its name and the most bytes that are taken, or says why not.
pub type Load<'a> = dyn FnMut(&str, usize) -> Result<Vec<u8>, String> + 'a;

/// Reads a manifest. `base`: the URL of its repository. `load` reads files of that repository. `groups` as `repo init --groups` takes them; empty: its default.
///
/// # Errors
/// The first thing that is wrong.
pub fn read<'a>(
    file: &str,
    base: &RepositoryUrl,
    groups: &[String],
    load: &'a mut Load<'a>,
) -> Result<Manifest, ManifestError> {
    let mut loader = Loader { load, files: 0, bytes: 0 };
    let mut elements = Vec::new();
    loader.include(file, &Inherited::default(), &mut Vec::new(), &Place::whole(file), &mut elements)?;
    let mut resolver = Resolver::new(base.fetch_url());
    resolver.read(&elements)?;
    resolver.finish(groups)
}

/// Where an element stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    file: Arc<str>,
    line: u32,
    element: String,
}

impl Place {
    fn whole(file: &str) -> Self {
        Self { file: Arc::from(file), line: 0, element: String::new() }
    }

    fn error(&self, what: impl Into<String>, remedy: impl Into<String>) -> ManifestError {
        let (line, element) = (self.line, self.element.clone());
        ManifestError { file: (*self.file).to_owned(), line, element, what: what.into(), remedy: remedy.into() }
    }
}

/// What an `include` hands down.
#[derive(Debug, Clone, Default)]
struct Inherited {
    groups: Vec<String>,
    revision: String,
}

/// Follows includes.
struct Loader<'a> {
    load: &'a mut Load<'a>,
    files: usize,
    bytes: usize,
}

impl Loader<'_> {
    /// Appends the file's elements, with those of the files that it includes in their place. `above`: the files that
    /// include it.
    fn include(
        &mut self,
        file: &str,
        inherited: &Inherited,
        above: &mut Vec<String>,
        from: &Place,
        elements: &mut Vec<Element>,
    ) -> Result<(), ManifestError> {
        if above.iter().any(|other| other == file) {
            let way = above.join(" -> ");
            return Err(from.error(format!("includes itself: {way} -> {file}"), "remove one of these includes"));
        }
        if above.len() > INCLUDE_DEPTH_MAX {
            let what = format!("goes deeper than {INCLUDE_DEPTH_MAX} includes");
            return Err(from.error(what, "include the file from a manifest further up"));
        }
        self.files = self.files.saturating_add(1);
        if self.files > FILES_MAX {
            let what = format!("brings more than {FILES_MAX} files together");
            return Err(from.error(what, "write the projects into fewer files"));
        }
        let text = self.text(file, from)?;
        above.push(file.to_owned());
        for mut element in xml::parse(file, &text)? {
            if matches!(element.name.as_str(), "project" | "include") && element.attribute("revision").is_empty() {
                element.set("revision", inherited.revision.clone());
            }
            match element.name.as_str() {
                "include" => {
                    let name = element.required("name")?.to_owned();
                    check_path(&name, false).map_err(|why| {
                        element.error(format!("has a name that {why}"), "name a file below the manifest's own folder")
                    })?;
                    let mut groups = inherited.groups.clone();
                    groups.extend(words(element.attribute("groups")));
                    let handed = Inherited { groups, revision: element.attribute("revision").to_owned() };
                    self.include(&name, &handed, above, &element.place, elements)?;
                }
                "project" | "extend-project" => {
                    let mut groups = inherited.groups.clone();
                    groups.extend(words(element.attribute("groups")));
                    element.set("groups", groups.join(","));
                    elements.push(element);
                }
                _ => elements.push(element),
            }
        }
        above.pop();
        Ok(())
    }

    fn text(&mut self, file: &str, from: &Place) -> Result<String, ManifestError> {
        let room = MANIFEST_BYTES_MAX.saturating_sub(self.bytes);
        let bytes = (self.load)(file, room);
        let bytes = bytes.map_err(|why| from.error(why, format!("see that {file} is there, and not too large")))?;
        self.bytes = self.bytes.saturating_add(bytes.len());
        if bytes.len() > room {
            let what = format!("is larger than {MANIFEST_BYTES_MAX} bytes with all that it includes");
            return Err(Place::whole(file).error(what, "list the projects in several manifests"));
        }
        let wrong = |_| Place::whole(file).error("is not UTF-8", "save it in UTF-8");
        String::from_utf8(bytes).map_err(wrong)
    }
}

/// A list as `repo` splits it: by commas and white space.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty()).map(ToOwned::to_owned)
}

/// Whether a relative path stays where it belongs, by the rules of `repo`; else what is wrong with it.
fn check_path(path: &str, may_be_here: bool) -> Result<(), &'static str> {
    let hidden =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let rules = [
        (path.is_empty(), "is empty"),
        (path.contains('~'), "has a '~'"),
        (path.chars().any(char::is_control), "has control characters"),
        (path.chars().any(hidden), "has characters that nobody sees"),
        (path.contains('\\'), "has a '\\'"),
        (path.starts_with('/'), "is absolute"),
    ];
    if let Some((_, why)) = rules.into_iter().find(|(wrong, _)| *wrong) {
        return Err(why);
    }
    if may_be_here && path == "." {
        return Ok(());
    }
    for part in path.trim_end_matches('/').split('/') {
        let part = part.to_lowercase();
        match part.as_str() {
            "" => return Err("has an empty part"),
            "." | ".." => return Err("has a part '.' or '..'"),
            ".git" => return Err("has a part '.git'"),
            _ if part.starts_with(".repo") => return Err("has a part that begins with '.repo'"),
            _ => {}
        }
    }
    Ok(())
}

/// Enough of a value to recognise it, in quotes.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

#[cfg(test)]
mod tests;
