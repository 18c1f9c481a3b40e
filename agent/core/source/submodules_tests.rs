#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use alloc::vec;
use proptest::prelude::*;

fn parent() -> RepositoryUrl {
    "https://example.org/team/project.git".parse().unwrap()
}

fn commit() -> CommitId {
    "1234567890123456789012345678901234567890".parse().unwrap()
}

fn section(name: &str, path: &str, url: &str) -> Section {
    Section { name: name.into(), path: Some(path.into()), url: Some(url.into()), update: None }
}

fn all(sections: &[Section]) -> Result<Vec<Submodule>, String> {
    submodules(sections, &parent(), |_| Some(commit())).map_err(|error| error.to_string())
}

#[test]
fn sections_are_read_as_git_prints_them() {
    let listing = b"core.x\ny\0submodule.a.b.path\nvendor/a\0submodule.a.b.url\n../a\nb\0submodule.a.b.url\nlater\0\
                    submodule.c.update\0submodule.c.branch\nmain\0submodule.recurse\ntrue\0";
    let read = sections(listing).unwrap();
    let first =
        Section { name: "a.b".into(), path: Some("vendor/a".into()), url: Some("../a\nb".into()), update: None };
    let second = Section { name: "c".into(), update: Some(String::new()), ..Section::default() };
    assert_eq!(read, [first, second], "of two values the first counts");
    assert!(sections(b"submodule.\xff.path\nx\0").is_err());
}

#[test]
fn what_the_tree_does_not_have_is_left_out() {
    let sections =
        [section("here", "vendor/here", "../here"), section("../gone", "../gone", "ext::sh"), section("x", "", "")];
    let found = submodules(&sections, &parent(), |path| (path == "vendor/here").then(commit)).unwrap();
    let [one] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((one.name.as_str(), one.path.as_str(), one.commit), ("here", "vendor/here", commit()));
    assert_eq!(one.url.fetch_url(), "https://example.org/team/here");
}

#[test]
fn hostile_names_and_paths_are_refused() {
    for (name, path, why) in [
        ("../../hooks", "a", "has a name that has a part '.' or '..'"), // CVE-2018-11235
        ("a/../b", "a", "'.' or '..'"),
        ("a/..", "a", "'.' or '..'"),
        ("a/.../b", "a", "'.' or '..'"),
        ("/a", "a", "is absolute"),
        ("a//b", "a", "an empty part"),
        ("a/", "a", "an empty part"),
        ("", "a", "is empty"),
        ("-a", "a", "begins with '-'"),
        ("a\u{1}b", "a", "control characters"),
        ("a\nb", "a", "control characters"),
        ("a\\..\\b", "a", "has a '\\'"),
        ("a", "../a", "has the path \"../a\", which has a part '.' or '..'"),
        ("a", "/etc", "is absolute"),
        ("a", "-a", "begins with '-'"), // CVE-2018-17456
        ("a", ".git", "has a part '.git'"),
        ("a", "x/.GIT/hooks", "has a part '.git'"),
        ("a", ".git ", "has a part '.git'"),
        ("a", ".git./x", "has a part '.git'"),
        ("a", "git~1", "has a part '.git'"),
        ("a", ".git::$INDEX_ALLOCATION/x", "has a part '.git'"),
        ("a", ".g\u{200c}it", "characters that nobody sees"),
        ("a", "x\ny", "control characters"),
    ] {
        let error = all(&[section(name, path, "../b")]).unwrap_err();
        assert!(error.contains(why), "{name:?} {path:?}: {error}");
        assert!(error.contains("; rename its section") || error.contains("; move it"), "{error}");
    }
}

#[test]
fn submodules_do_not_lie_in_each_other() {
    let twice = |a, b| all(&[section(a, "x", "../x"), section(b, "y", "../y")]);
    for (a, b, why) in [
        ("lib", "lib/hooks", "inside of that of submodule \"lib\""), // CVE-2019-1387
        ("lib", "LIB/a/b", "inside of that of submodule \"lib\""),
        ("lib", "Lib", "but for upper and lower case"),
    ] {
        let error = twice(a, b).unwrap_err();
        assert!(error.contains(why), "{a} {b}: {error}");
    }
    assert!(twice("lib/a", "lib/b").is_ok() && twice("lib", "library").is_ok());
    let error = all(&[section("a", "x", "../x"), section("b", "x", "../y")]).unwrap_err();
    assert!(error.contains("has the path \"x\" of submodule \"a\""), "{error}");
}

#[test]
fn a_repository_says_nothing_to_run() {
    let with = |update: &str| all(&[Section { update: Some(update.into()), ..section("a", "a", "../a") }]);
    assert!(with("!rm -rf /").unwrap_err().contains("may not say what to run"));
    assert!(with("other").is_err());
    for (word, update) in [("none", Update::None), ("merge", Update::Merge), ("rebase", Update::Rebase)] {
        assert_eq!(with(word).unwrap()[0].update, update);
        assert_eq!(update.word(), Some(word));
    }
}

#[test]
fn relative_urls_are_what_git_makes_of_them() {
    for (parent, text, url) in [
        ("https://example.org/team/a.git", "../b.git", "https://example.org/team/b.git"),
        ("https://example.org/team/a", "./b", "https://example.org/team/a/b"),
        ("https://example.org/team/a", "../../other/b/", "https://example.org/other/b"),
        ("https://example.org:8443/a", "../b", "https://example.org:8443/b"),
        ("git@example.org:team/a.git", "../b.git", "git@example.org:team/b.git"),
        ("git@example.org:a", "../b", "git@example.org:b"),
        ("git@example.org:team/a", "../.././b", "git@example.org:b"),
        ("ssh://git@example.org/team/a", ".././../b", "ssh://git@example.org/b"),
        ("file:///srv/git/a", "../b", "file:///srv/git/b"),
        ("https://example.org/a", "ssh://git@other.org/b", "ssh://git@other.org/b"),
    ] {
        let resolved = resolve_url(&parent.parse().unwrap(), text);
        assert_eq!(resolved.unwrap_or_else(|why| panic!("{parent} {text}: {why}")).fetch_url(), url);
    }
}

#[test]
fn hostile_urls_are_refused() {
    for (url, why) in [
        ("-u./payload", "begins with '-'"),
        ("ext::sh -c touch% /tmp/x", "transport helper \"ext\""),
        ("fd::17", "transport helper"),
        ("https://user:secret@example.org/a", "credentials"),
        ("https://example.org/a?x", "query"),
        ("../../../b", "leads out of https://example.org/team/project.git"),
        ("../../../evil.org:x", "leads out of"),
        ("../x/../y", "path segment \"..\""),
        ("../-x", ""),
        ("foo/bar", "neither a URL nor an absolute path"),
        ("./", ""),
        ("", "is empty"),
        ("/etc", "a path of this machine"),
        ("file:///etc", "a path of this machine"),
        ("https://example.org/a\nurl = x", "has the character"),
    ] {
        let error = all(&[section("a", "a", url)]);
        match error {
            Err(error) => assert!(error.contains(why), "{url}: {error}"),
            // Harmless: a repository of the same host.
            Ok(found) => assert_eq!(found[0].url.host(), Some("example.org"), "{url}"),
        }
    }
    let local: RepositoryUrl = "/srv/a".parse().unwrap();
    assert!(resolve_url(&local, "/srv/b").is_ok(), "a path may name a path");
}

proptest! {
    #[test]
    fn a_relative_url_never_leaves_its_host(text in "(\\.{1,2}/){0,5}[a-z:@/.]{0,12}") {
        for parent in ["https://example.org/a/b", "git@example.org:a/b", "ssh://git@example.org:2222/a"] {
            let parent: RepositoryUrl = parent.parse().unwrap();
            if text.starts_with('.') && text.contains('/')
                && let Ok(url) = resolve_url(&parent, &text)
                && (text.starts_with("./") || text.starts_with("../"))
            {
                prop_assert_eq!(url.host(), parent.host());
            }
        }
    }

    #[test]
    fn nothing_gets_past_the_checks(name in "[a.\\-/\\\\G git~1]{0,12}", path in "[a.\\-/\\\\G git~1]{0,12}") {
        let found = submodules(&[section(&name, &path, "../b")], &parent(), |_| Some(commit()));
        for one in found.unwrap_or_default() {
            for text in [one.name, one.path] {
                let part = |wrong: &str| text.split('/').any(|part| part.trim_end_matches(['.', ' ']).eq_ignore_ascii_case(wrong));
                prop_assert!(!part("") && !part(".git") && !text.starts_with(['-', '/']) && !text.contains('\\'), "{:?}", text);
            }
        }
    }

    #[test]
    fn a_listing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = sections(&bytes);
        let mut text = b"submodule.".to_vec();
        text.extend(bytes);
        let read = sections(&text).unwrap_or_default();
        let _ = submodules(&read, &parent(), |_| Some(commit()));
        let _ = vec![read];
    }
}
