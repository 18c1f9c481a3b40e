//! Workspaces of a `repo` manifest: every project as a plain clone has it, by every method; bad manifests leave nothing.

use super::*;
use crate::support::wire::{reason, violations};

/// Three projects, and a manifest that has them on a branch, a tag and a commit, one of them below another.
struct Scene {
    upstream: Upstream,
    manifest: TestRepo,
    url: String,
    projects: Vec<(&'static str, TestRepo, String)>,
    /// What each is at: its path below `src`, its project, how git checks that out.
    places: Vec<(&'static str, usize, Vec<String>)>,
}

fn wrap(upstream: &Upstream, projects: &str) -> String {
    let far = upstream.url("libs").replace("127.0.0.1", "localhost");
    format!(
        "<manifest><remote name='near' fetch='../libs'/><remote name='far' fetch='{far}'/>\n<default remote='near' \
         revision='main'/>\n{projects}\n</manifest>\n"
    )
}

impl Scene {
    fn new() -> Self {
        let upstream = Upstream::start();
        let mut projects = Vec::new();
        for name in ["one", "two", "three"] {
            let repo = TestRepo::empty();
            let title = format!("{name}\n");
            let files: &[(&str, &str, &[u8])] = &[
                ("100644", "README.md", title.as_bytes()),
                ("100755", "tools/run.sh", b"#!/bin/sh\n"),
                ("120000", "link", b"README.md"),
                ("100644", "deep/file with spaces", b"x\n"),
            ];
            repo.commit_tree("main", files, &[]);
            git_out(&repo.path(), &["tag", "--annotate", "--message", "one", "v1", "main"]);
            repo.commit_file("main", "later.txt", b"later\n");
            let url = upstream.host(&format!("libs/{name}"), &repo);
            projects.push((name, repo, url));
        }
        let commit = projects[2].1.commit("main~1");
        let text = wrap(
            &upstream,
            &format!(
                "<project name='one' path='src/one'><copyfile src='tools/run.sh' dest='bin/run.sh'/><linkfile \
                 src='README.md' dest='bin/README.md'/><linkfile src='tools' dest='third/one-tools'/></project>\n<project \
                 name='two' path='src/one/deep/two [nested]' revision='refs/tags/v1'/>\n<project name='three' \
                 path='third' revision='{commit}'/>\n<project name='three' path='left-out' groups='notdefault,more'/>"
            ),
        );
        let manifest = TestRepo::empty();
        manifest.commit_file("main", "default.xml", text.as_bytes());
        manifest.commit_file("main", "README.md", b"the manifest\n");
        let url = upstream.host("team/manifest", &manifest);
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let places = vec![
            ("src/one", 0, words(&["checkout", "--quiet", "main"])),
            ("src/one/deep/two [nested]", 1, words(&["checkout", "--quiet", "--detach", "v1"])),
            ("third", 2, words(&["checkout", "--quiet", "--detach", &commit])),
        ];
        Self { upstream, manifest, url, projects, places }
    }

    /// The same by plain clones.
    fn plain(&self, top: &Path) {
        let clone = |url: &str, path: &str, checkout: &[String]| {
            let at = top.join(path);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            git_out(Path::new("/"), &["clone", "--quiet", "--no-checkout", url, at.to_str().unwrap()]);
            git_out(&at, &checkout.iter().map(String::as_str).collect::<Vec<_>>());
        };
        for (path, project, checkout) in &self.places {
            clone(&self.projects[*project].2, path, checkout);
        }
        clone(&self.url, ".repo/manifests", &["checkout".into(), "--quiet".into(), "main".into()]);
        fs::create_dir(top.join("bin")).unwrap();
        fs::copy(top.join("src/one/tools/run.sh"), top.join("bin/run.sh")).unwrap();
        symlink("../src/one/README.md", top.join("bin/README.md")).unwrap();
        symlink("../src/one/tools", top.join("third/one-tools")).unwrap();
    }
}

fn wanted(user: Option<u32>) -> v1::PrepareWorkspaceRequest {
    let manifest = Some(v1::Manifest::default());
    v1::PrepareWorkspaceRequest { user, group: user.map(|_| GROUP), manifest, ..Default::default() }
}

/// All that is no git directory's.
fn all_files(src: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = listing(src);
    found.retain(|path, _| !path.components().any(|part| part.as_os_str() == ".git"));
    found
}

/// A clone has a branch of its own also where a tag is checked out; that is left out.
const SAYS: &str = "git rev-parse HEAD; git branch --show-current; git rev-parse --abbrev-ref '@{upstream}' 2>/dev/null || \
                    true; git describe --tags --always; git remote -v; git for-each-ref refs/tags refs/remotes; git log \
                    --oneline; git ls-files --stage; git fsck --no-progress --no-dangling 2>&1";

fn all_say(src: &Path, user: Option<u32>, places: &[&str], script: &str) -> Vec<String> {
    places.iter().map(|path| as_owner(&src.join(path), user, script)).collect()
}

/// The kept checkouts. A record that is just being written anew lies beside the one that it is to replace.
fn kept(pool: &Path) -> usize {
    let is_record = |name: &String| name.ends_with(".json") && !name.starts_with(".tmp-");
    names(&pool.join("stoker/checkouts")).into_iter().filter(is_record).count()
}

async fn get(agent: &Agent, id: &str) -> v1::Workspace {
    let request = v1::GetWorkspaceRequest { id: id.to_owned() };
    agent.workspace().await.get_workspace(request).await.unwrap().into_inner().workspace.unwrap()
}

async fn as_plain_clones(kind: Kind, method: &str, user: Option<u32>, self_contained: bool) {
    let filesystem = LoopFs::new(kind, 512 << 20);
    let scene = Scene::new();
    let mut agent = Agent::start(&configuration(filesystem.path(), &format!("workspaces: {{method: {method}}}")));
    let request = v1::PrepareWorkspaceRequest { self_contained, ..wanted(user) };
    let from = || source(&scene.url, "branch:main");
    let workspace = prepare_as(&agent, from(), "one", request.clone()).await.unwrap();
    assert_eq!(method, workspace.method().as_str_name().trim_start_matches("METHOD_").to_lowercase());
    let src = PathBuf::from(&workspace.src);

    let place = crate::support::place("plain-");
    scene.plain(place.path());
    assert_same(&all_files(&src), &all_files(place.path()), method);
    let mut places: Vec<&str> = scene.places.iter().map(|(path, ..)| *path).collect();
    places.push(".repo/manifests");
    assert_eq!(all_say(&src, user, &places, SAYS), all_say(place.path(), None, &places, SAYS));
    assert_eq!(all_say(&src, user, &places, "git status --porcelain --untracked-files=all"), [""; 4]);
    for path in ["src/one", "src/one/deep", "src/one/.git/HEAD", "third/link", "bin/run.sh", "bin/README.md"] {
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::symlink_metadata(src.join(path)).unwrap());
        assert_eq!(owner, user.unwrap_or(0), "{path}");
    }
    let told: Vec<(&str, &str, &str)> = workspace
        .projects
        .iter()
        .map(|one| (one.path.as_str(), one.repository_url.as_str(), one.commit.as_str()))
        .collect();
    let commits = ["main", "main~1", "main~1"].iter().zip(&scene.projects).map(|(at, (_, repo, _))| repo.commit(at));
    let commits: Vec<String> = commits.collect();
    let urls: Vec<&String> = scene.projects.iter().map(|(.., url)| url).collect();
    let expected = places.iter().zip(&urls).zip(&commits).map(|((path, url), commit)| (*path, url.as_str(), &**commit));
    assert_eq!(told, expected.collect::<Vec<_>>());
    let borrows = method == "checkout" && !self_contained;
    assert_eq!(workspace.also_mount.len(), if borrows { 4 } else { 0 }, "{:?}", workspace.also_mount);

    // The same again is what is kept; another commit of one project is not.
    let before = kept(filesystem.path());
    assert_eq!(before, usize::from(method != "checkout"));
    prepare_as(&agent, from(), "again", request.clone()).await.unwrap();
    assert_eq!(kept(filesystem.path()), before);
    scene.projects[0].1.commit_file("main", "new.txt", b"new\n");
    let other = prepare_as(&agent, from(), "other", request).await.unwrap();
    assert!(Path::new(&other.src).join("src/one/new.txt").exists() && !src.join("src/one/new.txt").exists());
    assert_eq!(kept(filesystem.path()), 2 * before);

    // It outlives the agent and its mirrors, and needs no network.
    agent.kill9();
    agent.restart();
    assert_eq!(get(&agent, &workspace.id).await.projects, workspace.projects);
    scene.upstream.stop();
    for (.., url) in &scene.projects {
        let request = v1::RemoveRepositoryRequest { url: url.clone() };
        agent.repository().await.remove_repository(request).await.unwrap();
    }
    assert_eq!(all_say(&src, user, &places, "git status --porcelain; git fsck --no-progress --no-dangling"), [""; 4]);
    // And all of it can be changed.
    let change = "echo x >> README.md; git add --all; git commit --quiet --message change; git status --porcelain";
    assert_eq!(all_say(&src, user, &places, change), [""; 4]);
    for one in ["one", "again", "other"] {
        let all = agent.workspace().await.list_workspaces(v1::ListWorkspacesRequest::default()).await.unwrap();
        let all = all.into_inner().workspaces;
        let id = &all.iter().find(|held| held.id.contains(one)).unwrap().id;
        delete(&agent, id).await;
    }
    assert!(!src.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_in_an_overlay_on_xfs_are_what_clones_are() {
    needs_root!();
    as_plain_clones(Kind::Xfs, "overlay", None, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_in_an_overlay_for_another_user_are_what_clones_are() {
    needs_root!();
    as_plain_clones(Kind::Ext4, "overlay", Some(USER), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_in_a_reflinked_copy_for_another_user_are_what_clones_are() {
    needs_root!();
    as_plain_clones(Kind::Xfs, "reflink", Some(USER), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_in_a_checkout_are_what_clones_are() {
    needs_root!();
    as_plain_clones(Kind::Ext4, "checkout", None, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_in_a_self_contained_checkout_for_another_user_are_what_clones_are() {
    needs_root!();
    as_plain_clones(Kind::Ext4, "checkout", Some(USER), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_and_other_files_choose_the_projects() {
    let scene = Scene::new();
    let nested = wrap(&scene.upstream, "<project name='one' path='.'/><project name='two'/>");
    scene.manifest.commit_file("main", "other/nested.xml", nested.as_bytes());
    let place = crate::support::place("pool-");
    let agent = Agent::start(&configuration(place.path(), "workspaces: {method: checkout}"));
    let prepare = async |id: &str, file: &str, groups: &str| {
        let manifest = Some(v1::Manifest { file: file.to_owned(), groups: groups.to_owned() });
        let request = v1::PrepareWorkspaceRequest { manifest, ..Default::default() };
        prepare_as(&agent, source(&scene.url, "branch:main"), id, request).await.unwrap()
    };
    let paths = |held: &v1::Workspace| held.projects.iter().map(|one| one.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&prepare("more", "", "more").await), ["left-out"]);
    let top = prepare("top", "other/nested.xml", "").await;
    assert_eq!(paths(&top), ["", "two"]);
    let src = Path::new(&top.src);
    assert_eq!(all_say(src, None, &["", "two", ".repo/manifests"], "git status --porcelain"), [""; 3]);
    assert_eq!(as_owner(src, None, "git rev-parse HEAD").trim_end(), scene.projects[0].1.commit("main"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_manifests_are_refused_by_the_project_s_name_and_leave_nothing() {
    let scene = Scene::new();
    let repo = TestRepo::empty();
    let files: &[(&str, &str, &[u8])] = &[("100644", "full/file", b"x\n"), ("120000", "out", b"/tmp")];
    repo.commit_tree("main", files, &[]);
    scene.upstream.host("libs/trap", &repo);
    let place = crate::support::place("pool-");
    let agent = Agent::start(&configuration(place.path(), "workspaces: {method: checkout}"));
    let trap = "<project name='trap'/>";
    let in_trap = |inner: &str| format!("<project name='trap'>{inner}</project>");
    let rows: Vec<(String, &str, &[&str])> = vec![
        (
            "<project name='one' path='../x'/>".into(),
            "MANIFEST_INVALID",
            &["\"one\"", "'..'", "below the client's top"],
        ),
        ("<project name='one' path='.repo/manifests'/>".into(), "MANIFEST_INVALID", &["\"one\"", "'.repo'"]),
        (
            "<project name='one' path='x'/><project name='two' path='x'/>".into(),
            "MANIFEST_INVALID",
            &["\"two\"", "another path"],
        ),
        (
            "<project name='one' path='x'/><project name='two'/><extend-project name='two' dest-path='x'/>".into(),
            "MANIFEST_INVALID",
            &["\"two\"", "\"one\"", "another path"],
        ),
        (
            "<project name='one' revision='refs/changes/1'/>".into(),
            "MANIFEST_INVALID",
            &["\"one\"", "neither a branch"],
        ),
        ("<project name='one' revision='nowhere'/>".into(), "REF_NOT_FOUND", &["project \"one\"", "nowhere"]),
        ("<project name='none'/>".into(), "UPSTREAM_NOT_FOUND", &["project \"none\""]),
        ("<project name='one' remote='far'/>".into(), "REPOSITORY_NOT_ALLOWED", &["project \"one\"", "localhost"]),
        (
            format!("{trap}<project name='one' path='trap/full'/>"),
            "MANIFEST_INVALID",
            &["project \"one\"", "files of another"],
        ),
        (
            format!("{trap}<project name='one' path='trap/out/x'/>"),
            "MANIFEST_INVALID",
            &["project \"one\"", "in the way"],
        ),
        (
            in_trap("<linkfile src='full' dest='trap/out/stoker-was-here'/>"),
            "MANIFEST_INVALID",
            &["project \"trap\"", "in the way"],
        ),
        (in_trap("<linkfile src='full' dest='../x'/>"), "MANIFEST_INVALID", &["project \"trap\"", "dest"]),
        (in_trap("<copyfile src='out/passwd' dest='x'/>"), "MANIFEST_INVALID", &["project \"trap\"", "src"]),
        (in_trap("<copyfile src='out' dest='x'/>"), "MANIFEST_INVALID", &["project \"trap\"", "no file"]),
        (in_trap("<copyfile src='full/file' dest='trap/out'/>"), "MANIFEST_INVALID", &["already"]),
        ("<include name='missing.xml'/>".into(), "MANIFEST_INVALID", &["no file missing.xml"]),
    ];
    for (at, (projects, code, words)) in rows.iter().enumerate() {
        scene.manifest.commit_file("main", "default.xml", wrap(&scene.upstream, projects).as_bytes());
        let from = source(&scene.url, "branch:main");
        let refused = prepare_as(&agent, from, &format!("bad-{at}"), wanted(None)).await.unwrap_err();
        assert_eq!(reason(&refused), *code, "{projects}: {refused:?}");
        assert!(words.iter().all(|word| refused.message().contains(word)), "{projects}: {}", refused.message());
        for left in ["workspaces", "checkouts"] {
            assert_eq!(names(&place.path().join("stoker").join(left)).len(), 0, "{projects}: {left}");
        }
    }
    assert!(!Path::new("/tmp/stoker-was-here").exists());
    for (request, field) in [
        (v1::PrepareWorkspaceRequest { submodules: true, ..wanted(None) }, "submodules"),
        (
            v1::PrepareWorkspaceRequest {
                manifest: Some(v1::Manifest { file: "../default.xml".into(), ..Default::default() }),
                ..Default::default()
            },
            "manifest.file",
        ),
    ] {
        let refused = prepare_as(&agent, source(&scene.url, "branch:main"), "odd", request).await.unwrap_err();
        assert_eq!(violations(&refused), [field]);
    }
}

#[test]
fn the_command_line_takes_a_manifest_and_shows_its_projects() {
    let scene = Scene::new();
    let place = crate::support::place("pool-");
    let agent = Agent::start(&configuration(place.path(), "workspaces: {method: checkout}"));
    let prepare =
        ["workspace", "prepare", "--repo", &scene.url, "--ref", "branch:main", "--manifest", "--groups", "more"];
    let output = agent.stoker().run(prepare).expect_code(0);
    assert!(output.stdout.contains("left-out  "), "{}", output.stdout);
}

#[test]
fn a_run_of_a_manifest_has_all_its_projects() {
    let scene = Scene::new();
    let place = crate::support::place("pool-");
    let agent = Agent::start(&configuration(place.path(), "workspaces: {method: checkout}"));
    let run = ["run", "--repo", &scene.url, "--manifest", "default.xml", "--groups", "more", "--disk", "1MiB"];
    let own = agent.root().join("own");
    // The node's agent, and one of its own.
    for more in [vec![], vec!["--state", own.to_str().unwrap()]] {
        let build = ["--", "sh", "-c", "cat left-out/README.md && git -C left-out status --porcelain && ls -A"];
        let output = agent.stoker().command([&run[..], &more[..], &build[..]].concat()).deadline(LIMIT).run();
        let output = output.expect_code(0);
        assert_eq!(output.stdout, "three\n.repo\nleft-out\n", "{}", output.stderr);
    }
    assert!(!names(&own).is_empty(), "it had a state of its own");
    let both = [&run[..], &["--submodules", "--", "true"][..]].concat();
    assert_eq!(agent.stoker().run(both).code(), Some(64));
}
