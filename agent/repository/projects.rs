//! The projects of a manifest that lies in a repository: each resolved to its commit in a mirror of its own, and pinned.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use stoker_core::identity::CommitId;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::manifest::{self, Manifest, ManifestError, Placed};
use stoker_core::source::{RepositoryUrl, Request, SourceRef};
use tokio::sync::watch;
use tokio::time::Instant;

use super::fetch::blocking;
use super::progress::Progress;
use super::read::{ReadError, Reader};
use super::snapshot::SnapshotPin;
use super::submodules::AT_ONCE;
use super::{Repositories, Resolved};

/// The longest path of a project, in bytes: what lies in it has room below the kernel's 4096.
const PATH_BYTES_MAX: usize = 1024;
/// The longest name of a file; see pathconf(3).
const NAME_BYTES_MAX: usize = 255;

/// A project in its place.
#[derive(Debug, Clone)]
pub struct Project {
    /// As the manifest names it.
    pub name: String,
    /// Its folder, below the top of all; empty: the top itself.
    pub path: String,
    /// Where it comes from.
    pub url: RepositoryUrl,
    /// What of it is seen elsewhere too.
    pub files: Vec<Placed>,
    /// The branch that the manifest has it at; none for a tag or a commit.
    pub branch: Option<String>,
    /// Its commit in its mirror.
    pub resolved: Resolved,
}

/// Reads a manifest, and what it includes, from a commit.
pub(super) async fn read(
    reader: &Reader,
    url: &RepositoryUrl,
    pin: &SnapshotPin,
    commit: CommitId,
    file: &str,
    groups: &[String],
) -> Result<Result<Manifest, ManifestError>, Reason> {
    let (reader, pin, base) = (reader.clone(), pin.clone(), url.clone());
    let (file, groups) = (file.to_owned(), groups.to_vec());
    let read = move || {
        let mut load = |name: &str, max: usize| match reader.blob(&pin, commit, name, u64::try_from(max).unwrap_or(0)) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(format!("there is no file {name} at {}", commit.short())),
            Err(ReadError::TooLarge { bytes, max, .. }) => {
                Err(format!("{name} has {bytes} bytes, {max} may still come"))
            }
            Err(error) => Err(error.to_string()),
        };
        manifest::read(&file, &base, &groups, &mut load)
    };
    blocking(url.key(), read).await
}

impl Repositories {
    /// The projects of the manifest `file` in a commit, parents first. Those that are not mirrored yet are added where the
    /// configuration allows, in the trust class of the top. `steps` gets the progress, each with its project's name.
    ///
    /// # Errors
    /// The reason why one of them cannot be had, or `MANIFEST_INVALID`.
    pub async fn projects(
        &self,
        top: (&RepositoryUrl, &SnapshotPin, CommitId),
        file: &str,
        groups: &[String],
        trust: &str,
        steps: &watch::Sender<Progress>,
    ) -> Result<Vec<Project>, Reason> {
        let (url, pin, commit) = top;
        let invalid = |what: String| {
            let message = format!("the manifest of {url} at {}: {what}", commit.short());
            Reason::new(Code::ManifestInvalid, url.key(), message)
        };
        let manifest = read(&self.shared.reader, url, pin, commit, file, groups).await?;
        let manifest = manifest.map_err(|error| invalid(error.to_string()))?;
        for note in &manifest.notes {
            tracing::info!(manifest = url.key(), "{note}");
        }
        let wanted = arranged(manifest.projects).map_err(invalid)?;
        stream::iter(wanted).map(|one| self.project(one, trust, steps)).buffered(AT_ONCE).try_collect().await
    }

    async fn project(
        &self,
        (one, reference): (manifest::Project, SourceRef),
        trust: &str,
        steps: &watch::Sender<Progress>,
    ) -> Result<Project, Reason> {
        let manifest::Project { name, path, url, files, .. } = one;
        // Of its own: there may be thousands of them, a few at once.
        let deadline = Instant::now() + self.shared.config().fetch_within;
        let branch = match &reference {
            SourceRef::Branch(branch) => Some(branch.to_string()),
            _ => None,
        };
        let request = Request::new(url.clone(), reference);
        let resolved = self.resolve_within(format!("project {name}"), &request, trust, deadline, steps).await;
        let resolved = resolved.map_err(|reason| {
            let message = format!("project {name:?} from {url}: {}", reason.message);
            Reason { message, ..reason }
        })?;
        Ok(Project { name, path, url, files, branch, resolved })
    }
}

/// The projects with their revisions, parents first, where all of them can lie beside each other.
fn arranged(projects: Vec<manifest::Project>) -> Result<Vec<(manifest::Project, SourceRef)>, String> {
    let mut by_path: BTreeMap<String, (manifest::Project, SourceRef)> = BTreeMap::new();
    for mut one in projects {
        let name = one.name.clone();
        one.path = plain(&one.path)
            .map_err(|why| format!("project {name:?} has a path that {why}; write one below the client's top"))?;
        one.files.iter().try_for_each(|file| file.check().map_err(|why| format!("project {name:?}: {why}")))?;
        let Some(revision) = one.revision.clone() else {
            return Err(format!(
                "project {name:?} is at a ref that is neither a branch nor a tag; name a branch, a tag or a commit"
            ));
        };
        if let Some((other, _)) = by_path.insert(one.path.clone(), (one, revision)) {
            let (other, path) = (other.name, other.path);
            return Err(format!("project {name:?} has the path {path:?} of {other:?}; give one of them another path"));
        }
    }
    let mut arranged: Vec<(manifest::Project, SourceRef)> = by_path.into_values().collect();
    arranged.sort_by(|(one, _), (other, _)| Path::new(&one.path).cmp(Path::new(&other.path)));
    Ok(arranged)
}

/// A path without parts that say nothing; else what is wrong with it.
fn plain(path: &str) -> Result<String, &'static str> {
    let mut parts = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(part) if part.len() > NAME_BYTES_MAX => return Err("has too long a name in it"),
            Component::Normal(part) if part == ".git" || part == ".repo" => return Err("has a part '.git' or '.repo'"),
            Component::Normal(part) => parts.push(part.to_str().unwrap_or_default()),
            _ => return Err("leads out of the workspace"),
        }
    }
    let path = parts.join("/");
    if path.len() > PATH_BYTES_MAX { Err("is too long") } else { Ok(path) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn project(name: &str, path: &str) -> manifest::Project {
        let url = format!("https://example.org/{name}").parse().unwrap();
        let revision = Some("branch:main".parse().unwrap());
        manifest::Project { name: name.into(), path: path.into(), url, revision, files: Vec::new() }
    }

    #[test]
    fn projects_come_parents_first_and_each_has_a_place_of_its_own() {
        let names = |projects: Vec<manifest::Project>| {
            let arranged = arranged(projects)?;
            Ok::<Vec<String>, String>(arranged.into_iter().map(|(one, _)| one.path).collect())
        };
        let all = vec![project("a", "x/y"), project("b", "x-z"), project("c", "x"), project("d", ".")];
        assert_eq!(names(all).unwrap(), ["", "x", "x/y", "x-z"]);
        for (path, why) in [
            ("../x", "leads out of the workspace"),
            ("/x", "leads out of the workspace"),
            ("x/../../y", "leads out of the workspace"),
            ("x/.git", "has a part '.git'"),
            ("./x", "the path \"x\" of \"first\""),
        ] {
            let refused = names(vec![project("first", "x"), project("second", path)]).unwrap_err();
            assert!(refused.contains(why) && refused.contains("\"second\""), "{path}: {refused}");
        }
        let unknown = manifest::Project { revision: None, ..project("a", "a") };
        assert!(names(vec![unknown]).unwrap_err().contains("neither a branch nor a tag"));
    }
}
