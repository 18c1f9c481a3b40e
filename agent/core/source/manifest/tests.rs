#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

const BASE: &str = "https://example.org/team/manifest";

fn read_files(files: &[(&str, &str)], groups: &[&str]) -> Result<Manifest, ManifestError> {
    let files: BTreeMap<&str, &str> = files.iter().copied().collect();
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    read("default.xml", &BASE.parse().unwrap(), &groups, &mut |name, _| {
        files.get(name).map(|text| text.as_bytes().to_vec()).ok_or_else(|| format!("there is no file {name}"))
    })
}

fn with(body: &str) -> Result<Manifest, ManifestError> {
    read_files(&[("default.xml", &format!("<manifest>\n{body}\n</manifest>"))], &[])
}

/// Names and URLs.
fn list(manifest: &Manifest) -> Vec<(String, String)> {
    manifest.projects.iter().map(|one| (one.path.clone(), one.url.fetch_url().to_owned())).collect()
}

/// What is in front of most manifests.
const HEAD: &str = "<remote name=\"r\" fetch=\"..\"/><default remote=\"r\" revision=\"main\"/>";

#[track_caller]
fn refused(body: &str, line: u32, what: &str, remedy: &str) {
    let error = with(body).unwrap_err();
    assert_eq!(error.line, line, "{error}");
    assert!(error.what.contains(what) && error.remedy.contains(remedy), "{error}");
    assert_eq!(error.file, "default.xml");
}

#[test]
fn a_manifest_as_starlingx_has_it() {
    let manifest = read_files(
        &[(
            "default.xml",
            r#"<?xml version="1.0" encoding="UTF-8"?>
<manifest>
  <!-- remotes -->
  <remote fetch="https://opendev.org/starlingx" name="starlingx" review="https://review.opendev.org/" revision="master"/>
  <remote fetch="https://github.com/starlingx-staging" name="stx-staging" pushurl="ssh://git@github.com/x"/>
  <remote name="gnome" fetch="git://git.example.org/" />
  <default remote="starlingx" revision="master" sync-j="4"/>
  <project name="config" path="cgcs-root/stx/config" groups="distro"/>
  <project name="root.git" path="cgcs-root">
    <linkfile src="tool" dest="tool"/><copyfile src="a" dest="b"/><annotation name="a" value="b"/>
  </project>
  <project remote="stx-staging" name="stx-gnss" revision="refs/tags/v1.0" path="cgcs-root/stx/gnss"/>
  <project remote="gnome" name="x/y" revision="0123456789012345678901234567890123456789"/>
  <superproject name="all" remote="starlingx"/><x-own/><unheard-of/>
</manifest>"#,
        )],
        &[],
    )
    .unwrap();
    let pairs = [
        ("cgcs-root/stx/config", "https://opendev.org/starlingx/config"),
        ("cgcs-root", "https://opendev.org/starlingx/root.git"),
        ("cgcs-root/stx/gnss", "https://github.com/starlingx-staging/stx-gnss"),
        ("x/y", "git://git.example.org/x/y"),
    ];
    assert_eq!(list(&manifest), pairs.map(|(path, url)| (path.to_owned(), url.to_owned())));
    let revisions: Vec<String> =
        manifest.projects.iter().map(|one| one.revision.as_ref().unwrap().to_string()).collect();
    assert_eq!(
        revisions,
        ["branch:master", "branch:master", "tag:v1.0", "sha:0123456789012345678901234567890123456789"]
    );
    assert_eq!(manifest.notes, ["default.xml:14: <unheard-of> is not known here and was ignored"]);
}

#[test]
fn fetch_is_resolved_as_repo_does() {
    for (base, fetch, prefix) in [
        ("https://example.org/team/manifest", "..", "https://example.org"),
        ("https://example.org/team/manifest.git", ".", "https://example.org/team"),
        ("https://example.org/team/manifest", "./", "https://example.org/team"),
        ("https://example.org/team/manifest/", "../", "https://example.org"),
        ("https://example.org/team/manifest", "../..", "https://example.org"),
        ("https://example.org/team/manifest", "../other", "https://example.org/other"),
        ("https://example.org/team/manifest", "other", "https://example.org/team/other"),
        ("https://example.org/team/manifest", "/abs/", "https://example.org/abs"),
        ("https://example.org/team/manifest", "//other.org/x", "https://other.org/x"),
        ("https://example.org/a/b/c", "../x", "https://example.org/a/x"),
        ("https://example.org:8443/manifest", "..", "https://example.org:8443"),
        ("git@github.com:org1/manifest", "git@github.com:org2/", "ssh://git@github.com/org2"),
        ("git@github.com:org1/manifest", "..", "ssh://git@github.com"),
        ("ssh://git@github.com/org1/manifest", ".", "ssh://git@github.com/org1"),
        ("git@github.com:org1/manifest", "https://x.org/y///", "https://x.org/y"),
        ("file:///srv/git/manifest", "..", "file:///srv"),
        ("/srv/git/manifest", ".", "/srv/git"),
        ("/srv/manifest", "../../../x", "/x"),
        ("host:org/a/manifest", "..", "host:org"),
        ("https://example.org/m", "host:path", "host:path"),
    ] {
        assert_eq!(fetch::resolve(base, fetch), prefix, "{base} {fetch}");
    }
}

#[test]
fn projects_are_extended_and_removed_in_order() {
    let manifest = with(&format!(
        "{HEAD}<remote name=\"s\" fetch=\"https://s.org/\"/>
        <project name=\"a\"/><project name=\"b\"/><project name=\"b\" path=\"b2\"/><project name=\"c\"/>
        <extend-project name=\"a\" remote=\"s\" revision=\"dev\" dest-path=\"moved\"/>
        <remove-project name=\"b\" path=\"b2\"/><remove-project path=\"c\"/><project name=\"c\" remote=\"s\"/>
        <remove-project name=\"none\" optional=\"true\"/>"
    ))
    .unwrap();
    let pairs = [("moved", "https://s.org/a"), ("b", "https://example.org/b"), ("c", "https://s.org/c")];
    assert_eq!(list(&manifest), pairs.map(|(path, url)| (path.to_owned(), url.to_owned())));
    assert_eq!(manifest.projects[0].revision.as_ref().unwrap().to_string(), "branch:dev");
}

#[test]
fn nested_projects_carry_their_parents_names() {
    let manifest =
        with(&format!("{HEAD}<project name=\"a\" path=\"p\"><project name=\"b\" path=\"q\"/></project>")).unwrap();
    let pairs = [("p", "https://example.org/a"), ("p/q", "https://example.org/a/b")];
    assert_eq!(list(&manifest), pairs.map(|(path, url)| (path.to_owned(), url.to_owned())));
}

#[test]
fn groups_choose_as_repo_init_does() {
    let files = [(
        "default.xml",
        "<manifest><remote name='r' fetch='..'/><default remote='r' revision='main'/>
        <project name='a'/><project name='b' groups='notdefault,x'/><project name='c' groups='x y'/>
        <project name='d' groups='notdefault,platform-linux'/></manifest>",
    )];
    for (groups, names) in [
        (&[] as &[&str], &["a", "c", "d"] as &[&str]),
        (&["all"], &["a", "b", "c", "d"]),
        (&["x"], &["b", "c"]),
        (&["default", "-y"], &["a"]),
        (&["name:b"], &["b"]),
        (&["path:c"], &["c"]),
    ] {
        let manifest = read_files(&files, groups).unwrap();
        let found: Vec<&str> = manifest.projects.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(found, names, "{groups:?}");
    }
}

#[test]
fn includes_hand_down_groups_and_revision() {
    let files = [
        (
            "default.xml",
            "<manifest><include name='sub/a.xml' groups='g' revision='rel'/><default remote='r' revision='main'/>
            <project name='last'/></manifest>",
        ),
        (
            "sub/a.xml",
            "<manifest><remote name='r' fetch='..'/><include name='b.xml'/><project name='a'/>
            <project name='own' revision='mine'/></manifest>",
        ),
        ("b.xml", "<manifest><project name='b' groups='h'/></manifest>"),
    ];
    let manifest = read_files(&files, &[]).unwrap();
    let found: Vec<(&str, String)> =
        manifest.projects.iter().map(|one| (one.name.as_str(), one.revision.as_ref().unwrap().to_string())).collect();
    let expected = [("b", "branch:rel"), ("a", "branch:rel"), ("own", "branch:mine"), ("last", "branch:main")];
    assert_eq!(found, expected.map(|(name, revision)| (name, revision.to_owned())));
    let names = |groups: &[&str]| -> Vec<String> {
        read_files(&files, groups).unwrap().projects.into_iter().map(|one| one.name).collect()
    };
    assert_eq!(names(&["g"]), ["b", "a", "own"]);
    assert_eq!(names(&["h"]), ["b"]);
}

/// What `repo sync` (git-repo of 2026) checked out for this manifest: same paths, same URLs, same revisions.
#[test]
fn a_mixed_manifest_is_what_repo_itself_makes_of_it() {
    let files = [
        (
            "default.xml",
            "<manifest>
            <remote name='o' fetch='./src/'/><remote name='x' fetch='../other' revision='rel'/>
            <default remote='o' revision='main'/>
            <project name='a.git' path='pa' groups='g1'/><project name='b.git'/>
            <include name='more/inc.xml' groups='ig' revision='rel'/>
            <project name='hidden.git' groups='notdefault'/><remove-project name='b.git'/>
            <extend-project name='c.git' dest-path='moved/c' revision='rel'/></manifest>",
        ),
        (
            "more/inc.xml",
            "<manifest><project name='c.git' path='pc'/><project name='d.git' remote='x' path='pd'/>
            <project name='e.git' groups='notdefault,platform-linux'/></manifest>",
        ),
    ];
    let base = "file:///srv/team/manifest.git".parse().unwrap();
    let mut load = |name: &str, _| match files.iter().find(|(file, _)| *file == name) {
        Some((_, text)) => Ok(text.as_bytes().to_vec()),
        None => Err("not there".to_owned()),
    };
    let manifest = read("default.xml", &base, &[], &mut load).unwrap();
    let mut found: Vec<String> = manifest
        .projects
        .iter()
        .map(|one| format!("{} {} {}", one.path, one.url, one.revision.as_ref().unwrap()))
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            "e.git file:///srv/team/src/e.git branch:rel",
            "moved/c file:///srv/team/src/c.git branch:rel",
            "pa file:///srv/team/src/a.git branch:main",
            "pd file:///srv/other/d.git branch:rel",
        ]
    );
}

#[test]
fn includes_are_bounded() {
    let round = [
        ("default.xml", "<manifest><include name='a.xml'/></manifest>"),
        ("a.xml", "<manifest>\n<include name='default.xml'/></manifest>"),
    ];
    let error = read_files(&round, &[]).unwrap_err();
    assert_eq!((error.file.as_str(), error.line), ("a.xml", 2));
    assert!(error.what.contains("includes itself: default.xml -> a.xml -> default.xml"), "{error}");

    let deep: Vec<(String, String)> = (0..20)
        .map(|n| (format!("{n}.xml"), format!("<manifest><include name='{}.xml'/></manifest>", n + 1)))
        .collect();
    let mut files: Vec<(&str, &str)> = deep.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    files.push(("default.xml", "<manifest><include name='0.xml'/></manifest>"));
    let error = read_files(&files, &[]).unwrap_err();
    assert!(error.what.contains("deeper than 8 includes") && error.file == "7.xml", "{error}");

    // Two includes in each of eight files would be 256 at the last.
    let wide: Vec<(String, String)> = (0..8)
        .map(|n| {
            (
                format!("{n}.xml"),
                format!("<manifest>{}</manifest>", format!("<include name='{}.xml'/>", n + 1).repeat(9)),
            )
        })
        .collect();
    let mut files: Vec<(&str, &str)> = wide.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    files.push(("default.xml", "<manifest><include name='1.xml'/></manifest>"));
    files.push(("8.xml", "<manifest/>"));
    let error = read_files(&files, &[]).unwrap_err();
    assert!(error.what.contains("more than 256 files"), "{error}");
}

#[test]
fn names_do_not_leave_their_folder() {
    for name in ["../x.xml", "/etc/passwd", "a/../../x.xml", "./x.xml", ".git/config", "a/.GIT/x", ".repo/x", "a~1", ""]
    {
        let body = format!("<include name=\"{name}\"/>");
        let error = with(&body).unwrap_err();
        assert!(error.element.starts_with("<include") && error.line == 2, "{error}");
        let error = with(&format!("{HEAD}<project name=\"{name}\"/>")).unwrap_err();
        assert!(error.element.starts_with("<project"), "{error}");
        if !name.is_empty() {
            let error = with(&format!("{HEAD}<project name=\"a\" path=\"{name}\"/>")).unwrap_err();
            assert!(error.what.contains("has a path that"), "{error}");
        }
    }
}

#[test]
fn entities_are_refused_before_they_grow() {
    let mut bomb = String::from("<?xml version=\"1.0\"?>\n<!DOCTYPE manifest [\n<!ENTITY a0 \"aaaaaaaaaa\">\n");
    for n in 1..12 {
        bomb.push_str(&format!("<!ENTITY a{n} \"{}\">\n", format!("&a{};", n - 1).repeat(10)));
    }
    bomb.push_str("]>\n<manifest><notice>&a11;</notice></manifest>");
    let error = read_files(&[("default.xml", &bomb)], &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "default.xml:2: has a document type, with which entities could be declared; remove the <!DOCTYPE ...>"
    );
    let file =
        "<!DOCTYPE manifest [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><manifest><notice>&x;</notice></manifest>";
    assert!(read_files(&[("default.xml", file)], &[]).unwrap_err().what.contains("document type"));
    refused("<notice>&lol;</notice>", 2, "the entity \"lol\"", "write the text");
    assert!(with("<notice>&lt;&amp;&#65;</notice>").is_ok(), "XML's own entities are fine");
}

#[test]
fn what_is_too_large_is_refused() {
    let many: String = (0..=PROJECTS_MAX).map(|n| format!("<project name=\"p{n}\"/>\n")).collect();
    refused(&format!("{HEAD}{many}"), 2002, "one more than the 2000 projects", "several manifests");
    let nested = format!("{HEAD}{}{}", "<project name=\"a\">".repeat(5000), "</project>".repeat(5000));
    refused(&nested, 2, "nested more than 8 deep", "beside its parent");
    let crowd = "<x-a/>".repeat(200_001);
    assert!(with(&crowd).unwrap_err().what.contains("more than 200000 elements"));
    let huge = " ".repeat(MANIFEST_BYTES_MAX + 1);
    assert!(with(&huge).unwrap_err().what.contains("larger than 4194304 bytes"));
}

#[test]
fn every_mistake_says_where_and_what_to_do() {
    refused("<project name='a'/>", 2, "has no remote", "<default remote");
    refused("<remote name='r' fetch='..'/>\n<project name='a' remote='r'/>", 3, "has no revision", "<default revision");
    refused("<project name='a' remote='x' revision='m'/>", 2, "the remote \"x\"", "add <remote name=\"x\"");
    refused("<default remote='x'/>", 2, "the remote \"x\"", "add <remote");
    refused("<remote fetch='..'/>", 2, "has no name", "add name=");
    refused("<remote name='r'/>", 2, "has no fetch", "add fetch=");
    refused("<remote name='r' fetch='a'/>\n<remote name='r' fetch='b'/>", 3, "there already", "another name");
    refused(&format!("{HEAD}\n<default revision='x'/>"), 3, "there already", "keep one");
    refused(
        &format!("{HEAD}<project name='a'/>\n<project name='b' path='a'/>"),
        3,
        "has the path \"a\" of default.xml:2",
        "another path",
    );
    refused(&format!("{HEAD}\n<extend-project name='a'/>"), 3, "not there", "after the project");
    refused(&format!("{HEAD}\n<remove-project name='a'/>"), 3, "not there", "optional");
    refused(&format!("{HEAD}\n<remove-project/>"), 3, "neither name nor path", "add name");
    refused(&format!("{HEAD}\n<project name='a' revision='a..b'/>"), 3, "has '..'", "name a branch");
    refused(
        &format!("{HEAD}<project name='a'/>\n<extend-project name='a' revision='x' base-rev='y'/>"),
        3,
        "written for the revision \"y\"",
        "base-rev",
    );
    refused(
        "<remote name='r' fetch='ext::sh -c x'/>\n<project name='a' remote='r' revision='m'/>",
        3,
        "transport helper \"ext\"",
        "the fetch of the remote \"r\"",
    );
    refused(
        "<remote name='r' fetch='https://me:secret@x.org'/>\n<project name='a' remote='r' revision='m'/>",
        3,
        "credentials",
        "mend the fetch",
    );
    refused("<a>", 3, "not well-formed", "xmllint");
    let error = read_files(&[("default.xml", "<repositories/>")], &[]).unwrap_err();
    assert!(error.what.contains("begins with <repositories>"), "{error}");
    let error = with("<include name=\"none.xml\"/>").unwrap_err();
    assert_eq!(
        error.to_string(),
        "default.xml:2: <include name=\"none.xml\"> there is no file none.xml; see that none.xml is there, and not too large"
    );
}

#[test]
fn the_secret_of_a_url_is_not_repeated() {
    let body = "<remote name='r' fetch='https://me:hunter2@x.org'/><project name='a' remote='r' revision='m'/>";
    let error = with(body).unwrap_err().to_string();
    assert!(!error.contains("hunter2"), "{error}");
}

proptest! {
    #[test]
    fn reading_never_panics(text in "[<>/\"'= a-z&;!\\[\\]]{0,120}") {
        let _ = read_files(&[("default.xml", &text)], &[]);
        let _ = with(&format!("{HEAD}{text}"));
    }

    #[test]
    fn attributes_may_be_anything(values in vec!["\\PC{0,20}"; 6]) {
        let clean: Vec<String> = values.iter().map(|v| v.replace(['<', '&', '"'], "")).collect();
        let body = format!(
            "<remote name=\"r\" fetch=\"{}\"/><default remote=\"r\" revision=\"{}\"/><project name=\"{}\" path=\"{}\" \
             groups=\"{}\"/><extend-project name=\"{}\"/>", clean[0], clean[1], clean[2], clean[3], clean[4], clean[5]);
        for project in with(&body).map(|manifest| manifest.projects).unwrap_or_default() {
            prop_assert!(!project.path.starts_with('/') && !project.path.split('/').any(|part| part == ".."));
        }
    }
}

#[test]
fn copies_and_links_are_told_as_written_and_checked_where_they_are_wanted() {
    let files = [(
        "default.xml",
        "<manifest><remote name='r' fetch='..'/><default remote='r' revision='main'/>
        <project name='a'><copyfile src='x/y' dest='z'/><linkfile src='.' dest='b/link'/><linkfile src='*' dest='c'/>
        <copyfile src='.' dest='d'/><linkfile src='../x' dest='e'/><linkfile src='x' dest='/etc/x'/></project>
        <extend-project name='a'><copyfile src='x' dest='.git/config'/></extend-project></manifest>",
    )];
    let manifest = read_files(&files, &[]).unwrap();
    let placed = &manifest.projects[0].files;
    assert_eq!((placed[0].link, &*placed[0].src, &*placed[0].dest), (false, "x/y", "z"));
    assert_eq!(placed[1].at, "default.xml:2");
    let right: Vec<bool> = placed.iter().map(|one| one.check().is_ok()).collect();
    assert_eq!(right, [true, true, false, false, false, false, false]);
    assert!(placed[2].check().unwrap_err().contains("is a pattern"));
}
