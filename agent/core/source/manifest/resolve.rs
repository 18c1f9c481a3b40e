//! From a manifest's elements to its projects: first the remotes, then the default, then what adds, changes and removes
//! projects, in order.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::xml::Element;
use super::{
    GROUPS_DEFAULT, Manifest, ManifestError, NOTES_MAX, PROJECTS_MAX, Place, Placed, Project, check_path, fetch, shown,
    words,
};
use crate::source::{RefName, RepositoryUrl, SourceRef};

/// Elements that say nothing about which repositories there are.
const IGNORED: [&str; 8] =
    ["notice", "manifest-server", "repo-hooks", "superproject", "contactinfo", "annotation", "copyfile", "linkfile"];

struct Remote {
    attributes: BTreeMap<String, String>,
    /// What projects' names are appended to.
    prefix: String,
    revision: String,
}

#[derive(Default)]
struct Defaults {
    attributes: BTreeMap<String, String>,
    remote: String,
    revision: String,
}

/// A project that may still change.
struct Draft {
    name: String,
    path: String,
    remote: String,
    revision: String,
    groups: BTreeSet<String>,
    files: Vec<Placed>,
    removed: bool,
    place: Place,
}

/// Gathers what the elements say.
pub(super) struct Resolver<'a> {
    base: &'a str,
    remotes: BTreeMap<String, Remote>,
    default: Option<Defaults>,
    drafts: Vec<Draft>,
    by_name: BTreeMap<String, Vec<usize>>,
    by_path: BTreeMap<String, usize>,
    notes: Vec<String>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(base: &'a str) -> Self {
        Self {
            base,
            remotes: BTreeMap::new(),
            default: None,
            drafts: Vec::new(),
            by_name: BTreeMap::new(),
            by_path: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn read(&mut self, elements: &[Element]) -> Result<(), ManifestError> {
        let named = |name: &'static str| elements.iter().filter(move |element| element.name == name);
        for element in named("remote") {
            self.remote(element)?;
        }
        for element in named("default") {
            self.defaults(element)?;
        }
        for element in elements {
            match element.name.as_str() {
                "project" => self.project(element, None)?,
                "extend-project" => self.extend(element)?,
                "remove-project" => self.remove(element)?,
                "submanifest" => self.note(element, "is not followed; declare it as a manifest of its own"),
                "remote" | "default" => {}
                name if IGNORED.contains(&name) || name.starts_with("x-") => {}
                _ => self.note(element, "is not known here and was ignored"),
            }
        }
        Ok(())
    }

    fn note(&mut self, element: &Element, what: &str) {
        let Place { file, line, element } = &element.place;
        if self.notes.len() < NOTES_MAX {
            self.notes.push(format!("{file}:{line}: {element} {what}"));
        }
    }

    fn remote(&mut self, element: &Element) -> Result<(), ManifestError> {
        let name = element.required("name")?;
        let remote = Remote {
            prefix: fetch::resolve(self.base, element.required("fetch")?),
            revision: element.attribute("revision").to_owned(),
            attributes: element.attributes.clone(),
        };
        match self.remotes.get(name) {
            Some(other) if other.attributes != remote.attributes => {
                Err(element.error("is there already, with other attributes", "give one of them another name"))
            }
            Some(_) => Ok(()),
            None => {
                self.remotes.insert(name.to_owned(), remote);
                Ok(())
            }
        }
    }

    fn defaults(&mut self, element: &Element) -> Result<(), ManifestError> {
        let remote = element.attribute("remote");
        if !remote.is_empty() {
            self.known_remote(element, remote)?;
        }
        let new = Defaults {
            attributes: element.attributes.clone(),
            remote: remote.to_owned(),
            revision: element.attribute("revision").to_owned(),
        };
        match &self.default {
            None => self.default = Some(new),
            Some(_) if new.attributes.is_empty() => {}
            Some(old) if old.attributes == new.attributes => {}
            Some(_) => return Err(element.error("is there already, with other attributes", "keep one <default>")),
        }
        Ok(())
    }

    fn known_remote(&self, element: &Element, name: &str) -> Result<&Remote, ManifestError> {
        let unknown = || {
            let what = format!("names the remote {}, which is not defined", shown(name));
            element.error(what, format!("add <remote name={} fetch=\"...\"/>", shown(name)))
        };
        self.remotes.get(name).ok_or_else(unknown)
    }

    fn project(&mut self, element: &Element, parent: Option<(String, String)>) -> Result<(), ManifestError> {
        let name = element.required("name")?;
        check_path(name, false).map_err(|why| {
            element
                .error(format!("has a name that {why}"), "name it as its remote does, relative to the remote's fetch")
        })?;
        let name = name.trim_end_matches('/');
        let name = parent.as_ref().map_or_else(|| name.to_owned(), |(above, _)| format!("{above}/{name}"));
        let written = element.attribute("path");
        if !written.is_empty() {
            check_path(written, true)
                .map_err(|why| element.error(format!("has a path that {why}"), "write one below the client's top"))?;
        }
        let path = if written.is_empty() { name.as_str() } else { written.trim_end_matches('/') };
        let path = parent.as_ref().map_or_else(|| path.to_owned(), |(_, above)| format!("{above}/{path}"));
        let draft = self.draft(element, &name, &path)?;
        self.add(element, draft)?;
        for nested in &element.projects {
            self.project(nested, Some((name.clone(), path.clone())))?;
        }
        Ok(())
    }

    fn draft(&self, element: &Element, name: &str, path: &str) -> Result<Draft, ManifestError> {
        let default = self.default.as_ref();
        let remote = match element.attribute("remote") {
            "" => default.map(|default| default.remote.as_str()).unwrap_or_default(),
            remote => remote,
        };
        if remote.is_empty() {
            let remedy = "add remote=\"NAME\", or <default remote=\"NAME\"/>";
            return Err(element.error("has no remote", remedy));
        }
        let from_remote = &self.known_remote(element, remote)?.revision;
        let candidates = [element.attribute("revision"), from_remote, default.map_or("", |default| &default.revision)];
        let Some(revision) = candidates.into_iter().find(|revision| !revision.is_empty()) else {
            return Err(element.error("has no revision", "add revision=\"BRANCH\", or <default revision=\"BRANCH\"/>"));
        };
        let mut groups: BTreeSet<String> = words(element.attribute("groups")).collect();
        groups.extend(["all".to_owned(), format!("name:{name}"), format!("path:{path}")]);
        Ok(Draft {
            name: name.to_owned(),
            path: path.to_owned(),
            remote: remote.to_owned(),
            revision: revision.to_owned(),
            groups,
            files: files(element),
            removed: false,
            place: element.place.clone(),
        })
    }

    fn add(&mut self, element: &Element, draft: Draft) -> Result<(), ManifestError> {
        let at = self.drafts.len();
        if at >= PROJECTS_MAX {
            let what = format!("is one more than the {PROJECTS_MAX} projects that one manifest may have");
            return Err(element.error(what, "list the projects in several manifests"));
        }
        if let Some(other) = self.by_path.get(&draft.path).and_then(|other| self.drafts.get(*other)) {
            let (file, line) = (&other.place.file, other.place.line);
            let what = format!("has the path {} of {file}:{line}", shown(&draft.path));
            return Err(element.error(what, "give one of them another path"));
        }
        self.by_path.insert(draft.path.clone(), at);
        self.by_name.entry(draft.name.clone()).or_default().push(at);
        self.drafts.push(draft);
        Ok(())
    }

    fn extend(&mut self, element: &Element) -> Result<(), ManifestError> {
        let name = element.required("name")?;
        let Some(named) = self.by_name.get(name).cloned() else {
            return Err(element.error("names a project that is not there", "put it after the project, or remove it"));
        };
        let (path, moved) = (element.attribute("path"), element.attribute("dest-path"));
        if !moved.is_empty() {
            check_path(moved, true).map_err(|why| {
                element.error(format!("has a dest-path that {why}"), "write one below the client's top")
            })?;
            if path.is_empty() && named.len() > 1 {
                let remedy = "say by path=\"...\" which of them moves";
                return Err(element.error("has a dest-path for several projects", remedy));
            }
        }
        let remote = element.attribute("remote");
        if !remote.is_empty() {
            self.known_remote(element, remote)?;
        }
        let groups: Vec<String> = words(element.attribute("groups")).collect();
        for at in named {
            let Some(draft) = self.drafts.get_mut(at) else { continue };
            if !path.is_empty() && draft.path != path {
                continue;
            }
            draft.groups.extend(groups.iter().cloned());
            draft.files.extend(files(element));
            let revision = element.attribute("revision");
            if !revision.is_empty() {
                unchanged(element, draft)?;
                draft.revision = revision.to_owned();
            }
            if !remote.is_empty() {
                draft.remote = remote.to_owned();
            }
            if !moved.is_empty() {
                self.by_path.remove(&draft.path);
                draft.path = moved.trim_end_matches('/').to_owned();
                self.by_path.insert(draft.path.clone(), at);
            }
        }
        Ok(())
    }

    fn remove(&mut self, element: &Element) -> Result<(), ManifestError> {
        let (name, path) = (element.attribute("name"), element.attribute("path"));
        if name.is_empty() && path.is_empty() {
            return Err(element.error("has neither name nor path", "add name=\"...\" or path=\"...\""));
        }
        let found: Vec<usize> = match path {
            "" => self.by_name.remove(name).unwrap_or_default(),
            _ => self.by_path.get(path).copied().into_iter().collect(),
        };
        let mut removed = false;
        for at in found {
            let Some(draft) = self.drafts.get_mut(at) else { continue };
            if !name.is_empty() && draft.name != name {
                continue;
            }
            unchanged(element, draft)?;
            draft.removed = true;
            removed = true;
            self.by_path.remove(&draft.path);
            if let Some(named) = self.by_name.get_mut(&draft.name) {
                named.retain(|other| *other != at);
            }
        }
        let optional = matches!(element.attribute("optional").to_lowercase().as_str(), "yes" | "true" | "1");
        if !removed && !optional {
            let remedy = "put it after the project, or say optional=\"true\"";
            return Err(element.error("names a project that is not there", remedy));
        }
        Ok(())
    }

    /// The projects of the wanted groups.
    pub(super) fn finish(self, groups: &[String]) -> Result<Manifest, ManifestError> {
        let wanted: Vec<&str> = match groups {
            [] => GROUPS_DEFAULT.to_vec(),
            named => named.iter().map(String::as_str).collect(),
        };
        let (remotes, mut notes, mut projects) = (self.remotes, self.notes, Vec::new());
        for draft in self.drafts.into_iter().filter(|draft| !draft.removed && is_wanted(&draft.groups, &wanted)) {
            let prefix = remotes.get(&draft.remote).map(|remote| remote.prefix.as_str()).unwrap_or_default();
            let url = format!("{}/{}", prefix.trim_end_matches('/'), draft.name);
            let url: RepositoryUrl = url.parse().map_err(|error| {
                // The URL itself is not repeated: it may have a secret in it.
                let what = format!("comes from a URL that {error}");
                draft.place.error(what, format!("mend the fetch of the remote {}", shown(&draft.remote)))
            })?;
            let revision = revision(&draft.revision).map_err(|why| {
                draft.place.error(format!("has a revision that is none: {why}"), "name a branch, a tag or a commit")
            })?;
            if revision.is_none() && notes.len() < NOTES_MAX {
                let (Place { file, line, element }, rev) = (&draft.place, shown(&draft.revision));
                notes.push(format!("{file}:{line}: {element} is at {rev}, which mirrors do not follow"));
            }
            let Draft { name, path, files, .. } = draft;
            projects.push(Project { name, path, url, revision, files });
        }
        Ok(Manifest { projects, notes })
    }
}

/// What an element puts elsewhere.
fn files(element: &Element) -> Vec<Placed> {
    let placed = |one: &Element| Placed {
        link: one.name == "linkfile",
        src: one.attribute("src").to_owned(),
        dest: one.attribute("dest").to_owned(),
        at: format!("{}:{}", one.place.file, one.place.line),
    };
    element.files.iter().map(placed).collect()
}

/// Whether the project is still at the revision for which the element was written.
fn unchanged(element: &Element, draft: &Draft) -> Result<(), ManifestError> {
    let expected = element.attribute("base-rev");
    if expected.is_empty() || expected == draft.revision {
        return Ok(());
    }
    let what = format!("is written for the revision {}, the project is at {}", shown(expected), shown(&draft.revision));
    Err(element.error(what, "look at what changed, then mend its base-rev"))
}

/// Groups are looked at in order, and the last that matches counts; `-NAME` takes away.
fn is_wanted(of: &BTreeSet<String>, wanted: &[&str]) -> bool {
    let is_in = |group: &str| of.contains(group) || (group == "default" && !of.contains("notdefault"));
    wanted.iter().fold(false, |matched, group| match group.strip_prefix('-') {
        Some(group) if is_in(group) => false,
        _ => matched || is_in(group),
    })
}

/// A branch where nothing else is said; none for a ref outside of branches and tags.
fn revision(text: &str) -> Result<Option<SourceRef>, String> {
    if let Ok(commit) = text.parse() {
        return Ok(Some(SourceRef::Commit(commit)));
    }
    let name = |name: &str| name.parse::<RefName>().map_err(|error| error.to_string());
    if let Some(tag) = text.strip_prefix("refs/tags/") {
        return Ok(Some(SourceRef::Tag(name(tag)?)));
    }
    match text.strip_prefix("refs/heads/") {
        Some(branch) => Ok(Some(SourceRef::Branch(name(branch)?))),
        None if text.starts_with("refs/") => name(text).map(|_| None),
        None => Ok(Some(SourceRef::Branch(name(text)?))),
    }
}
