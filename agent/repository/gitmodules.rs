//! What a commit says of its submodules: its `.gitmodules`, read by git's own parser, held against its tree.

use stoker_core::identity::CommitId;
use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use stoker_core::source::submodules::{Submodule, SubmoduleError, TEXT_BYTES_MAX, sections, submodules};

use super::fetch::blocking;
use super::git::Git;
use super::read::{ReadError, Reader};
use super::snapshot::SnapshotPin;

/// The largest `.gitmodules` that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Git repeats the section's name for every value.
const LISTING_BYTES_MAX: usize = 8 << 20;

/// The submodules of a commit. `parent`: where it comes from, for URLs that are relative to it.
///
/// # Errors
/// `SUBMODULE_INVALID` where the file says what cannot be, or objects cannot be read.
pub(super) async fn read(
    git: &Git,
    reader: &Reader,
    pin: &SnapshotPin,
    commit: CommitId,
    parent: &RepositoryUrl,
) -> Result<Vec<Submodule>, Reason> {
    let subject = parent.key();
    let unreadable = |error: ReadError| match error {
        ReadError::TooLarge { .. } => invalid(parent, commit, &format!("{error}; remove what is not needed")),
        _ => Reason::new(Code::RepositoryCorrupt, subject, error.to_string()),
    };
    let (from, held) = (reader.clone(), pin.clone());
    let file = blocking(subject, move || from.blob(&held, commit, ".gitmodules", FILE_BYTES_MAX)).await?;
    let Some(file) = file.map_err(unreadable)?.filter(|file| !file.is_empty()) else { return Ok(Vec::new()) };
    // From a pipe: no path of the repository's is named, and an include would be one.
    let listing = git.command(["config", "--file", "-", "--no-includes", "--null", "--list"]);
    let listing = listing.stdin(file).stdout_bytes_max(LISTING_BYTES_MAX).run().await;
    let listing = listing.map_err(|error| invalid(parent, commit, &format!(".gitmodules cannot be read: {error}")))?;
    let wrong = |error: SubmoduleError| invalid(parent, commit, &error.to_string());
    let sections = sections(&listing.stdout).map_err(wrong)?;
    // Longer ones are refused anyhow, and libgit2 walks down a path by recursion; a slash at the end is no path to git.
    let likely = |path: &String| path.len() <= TEXT_BYTES_MAX && !path.ends_with('/');
    let paths: Vec<String> = sections.iter().filter_map(|section| section.path.clone()).filter(likely).collect();
    let (from, held) = (reader.clone(), pin.clone());
    let gitlinks = blocking(subject, move || from.gitlinks(&held, commit, &paths)).await?.map_err(unreadable)?;
    submodules(&sections, parent, |path| gitlinks.get(path).copied()).map_err(wrong)
}

fn invalid(parent: &RepositoryUrl, commit: CommitId, what: &str) -> Reason {
    let message = format!("the submodules of {parent} at {}: {what}", commit.short());
    Reason::new(Code::SubmoduleInvalid, parent.key(), message)
}

/// More or deeper than the configuration lets in.
pub(super) fn too_many(top: &RepositoryUrl, what: &str, max: usize, field: &str) -> Reason {
    let message = format!("{top} has {what} than {max}; raise `repositories.submodules.{field}` if that is meant");
    Reason::new(Code::SubmoduleInvalid, top.key(), message)
}
