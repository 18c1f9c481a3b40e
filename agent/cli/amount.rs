//! What people write on the command line, as the messages have it: amounts, times and sources. Each is read by the rules
//! of the configuration and of the core, so that one spelling means one thing everywhere.
//!
//! The functions that take only the text are made for clap's `value_parser`, which names the option in its error.

use std::path::{Path, PathBuf};

use stoker_core::identity::check_name;
use stoker_core::source::{RepositoryUrl, SourceRef};
use stoker_proto::v1;

use crate::config::units;

/// A number without a unit below this is a slip: nobody builds in 8 bytes.
const BARE_BYTES_MIN: u64 = 1 << 20;

/// Thousandths of a core: `2`, `2.5`, `500m`.
///
/// # Errors
///
/// What is wrong with the text, and what to write instead.
pub(crate) fn cpu_millis(text: &str) -> Result<i64, String> {
    positive(text, units::cpu_millis(text)?, "write a number of cores, as `4` or `2.5`, or thousandths, as `500m`")
}

/// Bytes: `8GiB`, `400 GB`.
///
/// # Errors
///
/// What is wrong with the text, and what to write instead.
pub(crate) fn bytes(text: &str) -> Result<i64, String> {
    const REMEDY: &str = "write a number with a unit, as `8GiB` or `400 GB`";
    let value = units::plain_bytes(text)?;
    if (1..BARE_BYTES_MIN).contains(&value) && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{text:?} without a unit is that many bytes; {REMEDY}"));
    }
    positive(text, value, REMEDY)
}

/// A number of files and directories: `200000`.
///
/// # Errors
///
/// What is wrong with the text, and what to write instead.
pub(crate) fn inodes(text: &str) -> Result<i64, String> {
    const REMEDY: &str = "write the number of files and directories, as `200000`";
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    positive(text, digits.ok_or_else(|| format!("{text:?} is no whole number; {REMEDY}"))?, REMEDY)
}

/// A length of time: `90s`, `5m`, `1h30m`.
///
/// # Errors
///
/// What is wrong with the text, and what to write instead.
pub(crate) fn span(text: &str) -> Result<prost_types::Duration, String> {
    const REMEDY: &str = "write numbers with units, as `90s`, `5m` or `1h30m`";
    let span = units::time(text)?;
    if span.is_zero() {
        return Err(format!("{text:?} is no time at all; {REMEDY}"));
    }
    prost_types::Duration::try_from(span).map_err(|_| format!("{text:?} is longer than time is counted; {REMEDY}"))
}

/// The name of a tenant, project or branch.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned()).map_err(|why| format!("the name {why}"))
}

fn positive(text: &str, value: u64, remedy: &str) -> Result<i64, String> {
    match i64::try_from(value) {
        Ok(0) => Err(format!("{text:?} is nothing at all; {remedy}, or leave it out")),
        Ok(value) => Ok(value),
        Err(_) => Err(format!("{text:?} is more than any machine has; {remedy}")),
    }
}

/// A source as the messages have it.
///
/// `repo` is a URL, `user@host:path`, or a path of this machine (one that exists, or begins with `.`, `/` or `~`), which
/// stands for the repository that it lies in. `reference` is `head`, `branch:NAME`, `tag:NAME`, `pr:NUMBER` or
/// `sha:COMMIT`; none is the upstream's HEAD.
///
/// # Errors
///
/// Which of both is wrong, why, and what to write instead. The text never repeats credentials.
pub(crate) fn source(repo: &str, reference: Option<&str>) -> Result<v1::Source, String> {
    let url = repository(repo)?;
    let reference: SourceRef = match reference {
        Some(text) => text.parse().map_err(|why| format!("ref: {why}"))?,
        None => SourceRef::Head,
    };
    Ok(message(url, reference))
}

/// A source as the messages have it.
pub(crate) fn message(url: RepositoryUrl, reference: SourceRef) -> v1::Source {
    let reference = match reference {
        SourceRef::Head => v1::source::Ref::Head(v1::Head {}),
        SourceRef::Branch(name) => v1::source::Ref::Branch(name.into()),
        SourceRef::Tag(name) => v1::source::Ref::Tag(name.into()),
        SourceRef::PullRequest(number) => v1::source::Ref::PullRequest(number),
        SourceRef::Commit(commit) => v1::source::Ref::Commit(commit.to_string()),
    };
    v1::Source { repository_url: url.into(), r#ref: Some(reference), ..v1::Source::default() }
}

/// The upstream that `repo` names; see [`source`].
///
/// # Errors
///
/// Why it names none.
pub(crate) fn repository(repo: &str) -> Result<RepositoryUrl, String> {
    let text = match local(repo) {
        Some(path) => work_tree(repo, &path)?,
        None => repo.to_owned(),
    };
    text.parse().map_err(|why| format!("repository: {why}"))
}

/// The path that `repo` means, where it is one.
fn local(repo: &str) -> Option<PathBuf> {
    if repo.contains("://") || repo.contains("::") || repo.starts_with('-') {
        return None;
    }
    if let Some(rest) = repo.strip_prefix("~/").or_else(|| (repo == "~").then_some("")) {
        // Shells do this themselves, but not behind `--repo=`.
        return std::env::var_os("HOME").map(|home| Path::new(&home).join(rest));
    }
    let path = Path::new(repo);
    (repo.starts_with(['.', '/', '~']) || path.exists()).then(|| path.to_owned())
}

/// The top of the repository around `path`: its work tree, or itself where it is bare.
fn work_tree(repo: &str, path: &Path) -> Result<String, String> {
    let shown = super::screen::safe(&repo.chars().take(200).collect::<String>());
    let path = std::fs::canonicalize(path).map_err(|error| format!("repository: {shown}: {error}"))?;
    let top = match git2::Repository::discover(&path) {
        // A bare repository whose configuration does not say so is taken to have a work tree above it.
        Ok(found) => match found.workdir().filter(|top| top.join(".git").exists()) {
            Some(top) => top.to_owned(),
            None => found.path().to_owned(),
        },
        // Whether another user's repository may be read is for the agent to say.
        Err(error) if error.code() == git2::ErrorCode::Owner => path,
        Err(error) if error.code() == git2::ErrorCode::NotFound => {
            return Err(format!(
                "repository: {shown} is not in a git repository; name one, or run `git init` and commit there first"
            ));
        }
        Err(error) => return Err(format!("repository: {shown} cannot be read: {}", error.message())),
    };
    let text = top.to_str().map(|text| text.trim_end_matches('/').to_owned());
    text.ok_or_else(|| format!("repository: {shown} is not UTF-8; rename it, or name it by a link that is"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_people_write_them() {
        assert_eq!(cpu_millis("2"), Ok(2000));
        assert_eq!(cpu_millis("500m"), Ok(500));
        assert_eq!(bytes("8GiB"), Ok(8 << 30));
        assert_eq!(bytes("8589934592"), Ok(8 << 30));
        assert_eq!(span("1h30m").map(|span| span.seconds), Ok(5400));
    }

    #[test]
    fn nothing_negative_and_endless_is_refused_with_the_remedy() {
        for wrong in ["0", "0m", "-1", "9223372036854775808", "9223372036854775807.5", "", "two"] {
            assert!(cpu_millis(wrong).unwrap_err().contains("500m"), "{wrong}");
        }
        for wrong in ["0", "0GiB", "-1GiB", "9223372036854775808", "8", "8m", "", "much"] {
            assert!(bytes(wrong).unwrap_err().contains("8GiB"), "{wrong}");
        }
        for wrong in ["0s", "-5m", "5", "", "soon", "5m ago", "9223372036854775808s"] {
            assert!(span(wrong).unwrap_err().contains("1h30m"), "{wrong}");
        }
    }

    #[test]
    fn refs_are_spelled_in_one_way() {
        let parsed = |text: &str| source("https://example.org/a/b.git", Some(text)).map(|source| source.r#ref.unwrap());
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(parsed("branch:a/b"), Ok(v1::source::Ref::Branch("a/b".into())));
        assert_eq!(parsed("tag:v1"), Ok(v1::source::Ref::Tag("v1".into())));
        assert_eq!(parsed("pr:152"), Ok(v1::source::Ref::PullRequest(152)));
        assert_eq!(parsed(&format!("sha:{commit}")), Ok(v1::source::Ref::Commit(commit.into())));
        assert_eq!(parsed("head"), Ok(v1::source::Ref::Head(v1::Head {})));
        for wrong in ["main", "branch:-x", "branch:a..b", "pr:0", "sha:0123", ""] {
            assert!(parsed(wrong).unwrap_err().starts_with("ref: "), "{wrong}");
        }
    }

    #[test]
    fn urls_stay_and_secrets_are_not_repeated() {
        let url = |repo| source(repo, None).map(|source| source.repository_url);
        assert_eq!(url("https://example.org/a/b.git"), Ok("https://example.org/a/b.git".to_owned()));
        assert_eq!(url("git@example.org:a/b"), Ok("git@example.org:a/b".to_owned()));
        for wrong in ["ext::sh -c true", "-x", "https://example.org/../b", "no-such-thing", ""] {
            assert!(url(wrong).unwrap_err().starts_with("repository: "), "{wrong}");
        }
        assert!(!url("https://me:secret@example.org/a").unwrap_err().contains("secret"));
    }

    #[test]
    fn a_path_stands_for_the_repository_around_it() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap();
        let top = root.join("my work");
        git2::Repository::init(&top).unwrap();
        std::fs::create_dir_all(top.join("deep/down")).unwrap();
        git2::Repository::init_bare(root.join("bare.git")).unwrap();
        let url = |path: &Path| source(path.to_str().unwrap(), None).map(|source| source.repository_url);
        let local = |path: &Path| path.to_str().unwrap().parse::<RepositoryUrl>().unwrap().to_string();
        assert_eq!(url(&top.join("deep/down")), Ok(local(&top)));
        assert_eq!(url(&top.join("deep/../.git")), Ok(local(&top)));
        assert_eq!(url(&root.join("bare.git")), Ok(local(&root.join("bare.git"))));
        assert!(url(&root).unwrap_err().contains("is not in a git repository"));
        let missing = root.join("missing");
        assert!(url(&missing).unwrap_err().contains(missing.to_str().unwrap()));
    }
}
