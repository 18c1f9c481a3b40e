//! Submodules, held against what git itself makes of them.

use std::collections::BTreeSet;

use stoker_core::source::RepositoryUrl;
use stoker_core::source::submodules::resolve_url;

use super::world::{Upstream, World, git_in};
use crate::repository::gitmodules;

const COMMIT: &str = "1234567890123456789012345678901234567890";

/// All ways of `./` and `../`, up to four of them.
fn prefixes() -> Vec<String> {
    let mut all = vec![String::new()];
    let mut last = all.clone();
    for _ in 0..4 {
        last = last.iter().flat_map(|way| [format!("{way}./"), format!("{way}../")]).collect();
        all.extend(last.clone());
    }
    all.retain(|way| !way.is_empty());
    all
}

/// Every accepted relative URL is to the letter what `git submodule init` writes into a clone of `parent`.
#[test]
fn relative_urls_are_what_git_makes_of_them() {
    for parent in [
        "https://example.org/team/project.git",
        "https://example.org:8443/a/b/c",
        "git@example.org:team/project",
        "git@example.org:project",
        "ssh://git@example.org/team/project",
        "file:///srv/git/project",
    ] {
        let texts: Vec<String> =
            prefixes().iter().flat_map(|way| ["b", "b.git", "x/y", "b/"].map(|tail| format!("{way}{tail}"))).collect();
        let parsed: RepositoryUrl = parent.parse().unwrap();
        let ours: Vec<Option<RepositoryUrl>> = texts.iter().map(|text| resolve_url(&parsed, text).ok()).collect();
        let accepted: Vec<usize> = (0..texts.len()).filter(|at| ours[*at].is_some()).collect();
        assert!(accepted.len() >= 20, "{parent}: {}", accepted.len());

        let clone = tempfile::tempdir().unwrap();
        let git = |args: &[&str]| git_in(clone.path(), args);
        git(&["init", "-q"]);
        git(&["config", "remote.origin.url", parent]);
        let mut modules = String::new();
        for at in &accepted {
            modules.push_str(&format!("[submodule \"s{at}\"]\n\tpath = p{at}\n\turl = {}\n", texts[*at]));
            git(&["update-index", "--add", "--cacheinfo", &format!("160000,{COMMIT},p{at}")]);
        }
        std::fs::write(clone.path().join(".gitmodules"), modules).unwrap();
        git(&["submodule", "--quiet", "init"]);
        for at in accepted {
            let git_says = git(&["config", &format!("submodule.s{at}.url")]);
            let ours = ours[at].as_ref().unwrap().fetch_url();
            assert_eq!(ours, git_says, "{parent} and {}", texts[at]);
        }
    }
}

/// A commit with this `.gitmodules`, and gitlinks at `paths`.
fn commit_modules(upstream: &Upstream, modules: &str, paths: &[&str]) {
    std::fs::write(upstream.path.join(".gitmodules"), modules).unwrap();
    upstream.git(["add", ".gitmodules"]);
    for path in paths {
        upstream.git(["update-index", "--add", "--cacheinfo", &format!("160000,{COMMIT},{path}")]);
    }
    upstream.git(["commit", "-q", "-m", "Submodules"]);
}

#[tokio::test]
async fn a_file_is_read_by_gits_own_parser_and_nothing_beside_it() {
    let world = World::new().await;
    let upstream = world.upstream("top");
    let evil = world.dir.path().join("evil.cfg");
    std::fs::write(
        &evil,
        "[submodule \"lib\"]\n\turl = ../evil\n[submodule \"more\"]\n\tpath = more\n\turl = ../evil\n",
    )
    .unwrap();
    let modules = format!(
        "[include]\n\tpath = {}\n; a comment\n[submodule \"lib\"]\n\tpath = \"vendor/\\\n lib\"\n\tURL = ../lib # where\n\
         [SubModule \"lib\"]\n\turl = ../later\n[submodule \"more\"]\n\tbranch = x\n",
        evil.display()
    );
    commit_modules(&upstream, &modules, &["vendor/ lib", "more"]);
    let resolved = world.resolve(&upstream.request("head")).await.unwrap();
    let (shared, url) = (&world.repositories.shared, upstream.url());
    let read = gitmodules::read(&shared.git, &shared.reader, &resolved.pin, resolved.commit, &url);
    let found = read.await.unwrap();
    let [one] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((one.name.as_str(), one.path.as_str()), ("lib", "vendor/ lib"));
    assert_eq!(one.url, world.dir.path().join("upstreams/lib").display().to_string().parse().unwrap());

    commit_modules(&upstream, "[submodule \"lib\n", &[]);
    let resolved = world.resolve(&upstream.request("head")).await;
    // Git refuses it when it is fetched, or we when it is read: nobody gets it.
    let word = match resolved {
        Err(reason) => reason.code.word(),
        Ok(resolved) => {
            let read = gitmodules::read(&shared.git, &shared.reader, &resolved.pin, resolved.commit, &url);
            read.await.unwrap_err().code.word()
        }
    };
    assert!(BTreeSet::from(["REPOSITORY_CORRUPT", "SUBMODULE_INVALID"]).contains(word), "{word}");
}

#[tokio::test]
async fn a_commit_without_submodules_has_none() {
    let world = World::new().await;
    let upstream = world.upstream("top");
    upstream.git(["update-index", "--add", "--cacheinfo", &format!("160000,{COMMIT},lib")]);
    upstream.git(["commit", "-q", "-m", "A gitlink alone"]);
    let resolved = world.resolve(&upstream.request("head")).await.unwrap();
    let (shared, url) = (&world.repositories.shared, upstream.url());
    let read = gitmodules::read(&shared.git, &shared.reader, &resolved.pin, resolved.commit, &url);
    assert_eq!(read.await.unwrap(), []);
}
