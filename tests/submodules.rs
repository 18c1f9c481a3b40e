//! Submodules: what a workspace has of them is what `git clone --recurse-submodules` has, offline; hostile ones are refused
//! and leave nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_proto::v1;
use tonic::Status;

use crate::support::disk::{listing, names};
use crate::support::loopdev::needs_root;
use crate::support::repository::{TestRepo, git, git_out};
use crate::support::stoker::Agent;
use crate::support::upstream::Upstream;
use crate::support::wait::until_async;
use crate::support::wire::{codes, reason, source};

const SOON: Duration = Duration::from_secs(30);

/// `more` goes into `repositories`.
fn configuration(more: &str) -> String {
    format!(
        "pools: [{{name: data, path: $ROOT/pool, mount: optional, floor: {{bytes: 1MiB, inodes: 10}}}}]\nrepositories: \
         {{refresh: 1h, add: on-demand, allow: [127.0.0.1], protocols: [http], {more}}}\n"
    )
}

/// A top with two submodules, one of them with a submodule of its own.
struct Scene {
    upstream: Upstream,
    top: String,
    middle: String,
    leaf: String,
    repos: Vec<TestRepo>,
}

impl Scene {
    fn new() -> Self {
        let upstream = Upstream::start();
        let leaf = TestRepo::empty();
        let files: &[(&str, &str, &[u8])] = &[
            ("100644", "leaf.txt", b"leaf\n"),
            ("100755", "tool.sh", b"#!/bin/sh\n"),
            ("120000", "link", b"leaf.txt"),
            ("100644", "deep/er/file with spaces", b"x\n"),
        ];
        let old = leaf.commit_tree("main", files, &[]);
        let new = leaf.commit_file("main", "later.txt", b"later\n");
        let leaf_url = upstream.host("libs/leaf.git", &leaf);

        let middle = TestRepo::empty();
        let modules = "[submodule \"the leaf\"]\n\tpath = third party/leaf\n\turl = ./../../libs/leaf.git\n";
        let files: &[(&str, &str, &[u8])] =
            &[("100644", ".gitmodules", modules.as_bytes()), ("100644", "middle.txt", b"middle\n")];
        let in_middle = middle.commit_tree("main", files, &[("third party/leaf", &old)]);
        let middle_url = upstream.host("team/middle.git", &middle);

        let top = TestRepo::empty();
        let modules = format!(
            "[submodule \"vendor/middle\"]\n\tpath = vendor/middle\n\turl = ../middle.git\n\tupdate = rebase\n[submodule \
             \"leaf.of.top\"]\n\tpath = leaf\n\turl = {leaf_url}\n[submodule \"left-over\"]\n\tpath = gone\n\turl = \
             ext::sh\n[submodule \"skipped\"]\n\tpath = skipped\n\turl = ../nowhere.git\n\tupdate = none\n"
        );
        let files: &[(&str, &str, &[u8])] =
            &[("100644", ".gitmodules", modules.as_bytes()), ("100644", "top.txt", b"top\n")];
        let links = [("vendor/middle", in_middle.as_str()), ("leaf", new.as_str()), ("skipped", old.as_str())];
        top.commit_tree("main", files, &links);
        let top_url = upstream.host("team/top.git", &top);
        Self { upstream, top: top_url, middle: middle_url, leaf: leaf_url, repos: vec![leaf, middle, top] }
    }
}

async fn prepare(agent: &Agent, url: &str, id: &str) -> Result<(v1::Workspace, Vec<v1::Progress>), Status> {
    let unleased =
        v1::Unleased { source: Some(source(url, "branch:main")), request_id: id.to_owned(), ..v1::Unleased::default() };
    let request = v1::PrepareWorkspaceRequest {
        r#for: Some(v1::prepare_workspace_request::For::Unleased(unleased)),
        submodules: true,
        ..Default::default()
    };
    let mut events = agent.workspace().await.prepare_workspace(request).await?.into_inner();
    let mut steps = Vec::new();
    loop {
        match events.message().await?.expect("a workspace comes").event {
            Some(v1::prepare_workspace_response::Event::Workspace(workspace)) => return Ok((workspace, steps)),
            Some(v1::prepare_workspace_response::Event::Progress(step)) => steps.push(step),
            None => {}
        }
    }
}

/// Files, modes and contents; without the top's git directory.
fn files(src: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = listing(src);
    found.retain(|path, _| !path.starts_with(".git"));
    found
}

/// What git says of the submodules, and what their configurations say.
fn says(src: &Path) -> String {
    let config = "git config --local --get-regexp '^(submodule|branch|remote)[.]' | sort";
    let each = format!("{config}; git rev-parse HEAD; git for-each-ref --format='%(refname) %(objectname)' refs/heads");
    let parts = [
        git_out(src, &["status", "--porcelain"]),
        git_out(src, &["submodule", "status", "--recursive"]),
        git_out(src, &["submodule", "foreach", "--recursive", &each]),
    ];
    let own = std::process::Command::new("sh").args(["-c", config]).current_dir(src).output().unwrap();
    format!("{}\n{}", parts.join("\n"), String::from_utf8(own.stdout).unwrap())
}

fn workspaces(agent: &Agent) -> Vec<String> {
    names(&agent.root().join("pool/stoker/workspaces")).into_iter().collect()
}

async fn as_a_recursive_clone(method: &str) {
    let scene = Scene::new();
    let agent = Agent::start(&format!("{}workspaces: {{method: {method}}}\n", configuration("")));
    let (workspace, steps) = prepare(&agent, &scene.top, "one").await.unwrap();
    let src = Path::new(&workspace.src);

    let place = tempfile::tempdir().unwrap();
    let plain = place.path().join("plain");
    let clone = ["clone", "--quiet", "--recurse-submodules", &scene.top, plain.to_str().unwrap()];
    git_out(place.path(), &clone);
    assert_eq!(files(src), files(&plain));
    assert!(files(src).contains_key(Path::new("vendor/middle/third party/leaf/tool.sh")));
    assert!(!files(src).contains_key(Path::new("skipped/leaf.txt")), "git leaves it out too");
    assert_eq!(says(src), says(&plain));

    let paths: Vec<&str> = workspace.submodules.iter().map(|one| one.path.as_str()).collect();
    assert_eq!(paths, ["leaf", "vendor/middle", "vendor/middle/third party/leaf"]);
    assert_eq!(workspace.submodules[2].repository_url, scene.leaf);
    assert_eq!(workspace.submodules[2].commit, scene.repos[0].commit("main~1"));
    assert!(steps.iter().any(|step| step.subject.starts_with("submodule ")), "{steps:?}");
    let objects = |path: &str| std::fs::read_to_string(src.join(".git").join(path).join("objects/info/alternates"));
    for path in ["", "modules/leaf.of.top", "modules/vendor/middle", "modules/vendor/middle/modules/the leaf"] {
        let from = objects(path).unwrap_or_default();
        let mounted = workspace.also_mount.iter().any(|mount| from.trim_end() == format!("{mount}/objects"));
        assert_eq!(mounted, method == "checkout", "{path}: {from} in {:?}", workspace.also_mount);
    }

    // All of it works without a network.
    scene.upstream.stop();
    git_out(src, &["submodule", "update", "--init", "--recursive"]);
    git_out(src, &["submodule", "foreach", "--recursive", "git fsck --no-progress --no-dangling"]);
    assert_eq!(git_out(src, &["status", "--porcelain", "--ignored"]), "");
}

#[tokio::test]
async fn a_workspace_is_what_a_recursive_clone_is() {
    as_a_recursive_clone("checkout").await;
}

#[tokio::test]
async fn an_overlay_is_what_a_recursive_clone_is() {
    needs_root!();
    as_a_recursive_clone("overlay").await;
}

#[tokio::test]
async fn snapshots_of_submodules_stay_as_long_as_their_workspace() {
    let scene = Scene::new();
    let mut agent = Agent::start(&configuration(""));
    let (workspace, _) = prepare(&agent, &scene.top, "one").await.unwrap();
    let src = PathBuf::from(&workspace.src);
    let whole = || git_out(&src, &["submodule", "foreach", "--recursive", "git fsck --no-progress --no-dangling"]);
    let remove = async |agent: &Agent, url: &str| {
        let request = v1::RemoveRepositoryRequest { url: url.to_owned() };
        agent.repository().await.remove_repository(request).await.unwrap();
    };
    // A removal takes at once what nothing pins.
    remove(&agent, &scene.middle).await;
    whole();
    agent.restart();
    let request = v1::GetWorkspaceRequest { id: workspace.id.clone() };
    let again = agent.workspace().await.get_workspace(request).await.unwrap().into_inner().workspace.unwrap();
    assert_eq!(again.submodules, workspace.submodules);
    remove(&agent, &scene.leaf).await;
    whole();

    let request = v1::DeleteWorkspaceRequest { id: workspace.id.clone() };
    agent.workspace().await.delete_workspace(request).await.unwrap();
    // Added anew and removed again, the mirror keeps nothing: its snapshots were the workspace's alone.
    let add = v1::AddRepositoryRequest { url: scene.leaf.clone(), ..Default::default() };
    let folder = agent.repository().await.add_repository(add).await.unwrap().into_inner().repository.unwrap().folder;
    until_async(SOON, "it is filled", || async {
        let request = v1::GetRepositoryRequest { url: scene.leaf.clone() };
        let found = agent.repository().await.get_repository(request).await.unwrap().into_inner().repository.unwrap();
        found.state() == v1::RepositoryState::Ready
    })
    .await;
    remove(&agent, &scene.leaf).await;
    assert!(!agent.root().join("pool/stoker/repositories").join(folder).exists());
}

#[tokio::test]
async fn too_deep_and_too_many_are_refused_and_leave_nothing() {
    let scene = Scene::new();
    for (bounds, what) in [
        ("submodules: {depth: 1}", "submodules nested deeper than 1"),
        ("submodules: {repositories: 2}", "more submodules than 2"),
    ] {
        let agent = Agent::start(&configuration(bounds));
        let refused = prepare(&agent, &scene.top, "one").await.unwrap_err();
        assert_eq!(reason(&refused), "SUBMODULE_INVALID", "{refused:?}");
        assert!(refused.message().contains(what), "{refused:?}");
        assert_eq!(workspaces(&agent), [""; 0]);
    }
}

/// A repository whose one submodule is what `.gitmodules` says, at `path`.
fn hostile(modules: &str, path: &str, commit: &str) -> TestRepo {
    let repo = TestRepo::empty();
    let files: &[(&str, &str, &[u8])] = &[("100644", ".gitmodules", modules.as_bytes()), ("100644", "a.txt", b"a\n")];
    repo.commit_tree("main", files, &[(path, commit)]);
    repo
}

#[tokio::test]
async fn hostile_submodules_are_refused_and_leave_nothing() {
    let scene = Scene::new();
    let commit = scene.repos[0].commit("main");
    let secret = TestRepo::empty();
    let secret_commit = secret.commit_file("main", "secret", b"secret\n");
    let secret_url = scene.upstream.host("secret.git", &secret);
    let agent = Agent::start(&configuration(&format!("mirrors: [{{url: '{secret_url}', trust: secret}}]")));
    let marker = agent.root().join("marker");
    let run = format!("ext::sh -c touch% {}", marker.display());
    let (file, local) = (format!("file://{}", secret.path().display()), secret.path().display().to_string());
    let elsewhere = scene.leaf.replace("127.0.0.1", "localhost");
    let update = format!("../../libs/leaf.git\n\tupdate = !touch {}", marker.display());
    let credentials = scene.leaf.replace("http://", "http://me:hunter2@");
    let nowhere = "0123456789".repeat(4);
    let mut served = Vec::new();
    let rows: &[(&str, &str, &str, &str, &[&str])] = &[
        // name, path, url, commit, reasons: git's own check may come first, when it is fetched
        ("a", "a", &run, &commit, &["SUBMODULE_INVALID"]),
        ("a", "a", &file, &secret_commit, &["SUBMODULE_INVALID"]),
        ("a", "a", &local, &secret_commit, &["SUBMODULE_INVALID"]),
        ("a", "a", "../../../etc", &commit, &["SUBMODULE_INVALID"]),
        ("a", "a", &credentials, &commit, &["SUBMODULE_INVALID", "REPOSITORY_CORRUPT"]),
        ("a", "a", "-u./payload", &commit, &["SUBMODULE_INVALID", "REPOSITORY_CORRUPT"]),
        ("../../hooks", "a", &scene.leaf, &commit, &["SUBMODULE_INVALID", "REPOSITORY_CORRUPT"]),
        ("a", "a", &update, &commit, &["SUBMODULE_INVALID", "REPOSITORY_CORRUPT"]),
        ("a", ".GIT/hooks", &scene.leaf, &commit, &["SUBMODULE_INVALID", "REPOSITORY_CORRUPT"]),
        ("a", "a", &elsewhere, &commit, &["REPOSITORY_NOT_ALLOWED"]),
        ("a", "a", &secret_url, &secret_commit, &["REPOSITORY_NOT_ALLOWED"]),
        ("a", "a", "../../libs/none.git", &commit, &["UPSTREAM_NOT_FOUND"]),
        ("a", "a", "../../libs/leaf.git", &nowhere, &["COMMIT_NOT_FOUND"]),
    ];
    for (at, (name, path, url, commit, expected)) in rows.iter().enumerate() {
        let repo = hostile(&format!("[submodule \"{name}\"]\n\tpath = {path}\n\turl = {url}\n"), path, commit);
        let top = scene.upstream.host(&format!("hostile/{at}.git"), &repo);
        served.push(repo);
        let refused =
            prepare(&agent, &top, &format!("hostile-{at}")).await.map(|(workspace, _)| workspace).unwrap_err();
        assert!(expected.contains(&reason(&refused).as_str()), "{name} {path} {url}: {refused:?}");
        assert!(!refused.message().contains("hunter2"), "{refused:?}");
        assert_eq!(workspaces(&agent), [""; 0], "{url}");
        assert!(!marker.exists(), "{url}");
    }
    assert!(!agent.log().contains("hunter2"));
}

#[tokio::test]
async fn a_symlink_in_the_way_does_not_lead_out() {
    let scene = Scene::new();
    let commit = scene.repos[0].commit("main");
    let agent = Agent::start(&configuration(""));
    let outside = agent.root().join("outside");
    std::fs::create_dir_all(outside.join("lib")).unwrap();
    // `vendor` is a link in the tree, and the only gitlink is elsewhere: the section names nothing that is there.
    let repo = TestRepo::empty();
    let modules = format!("[submodule \"a\"]\n\tpath = vendor/lib\n\turl = {}\n", scene.leaf);
    let target = outside.to_str().unwrap();
    let files: &[(&str, &str, &[u8])] =
        &[("100644", ".gitmodules", modules.as_bytes()), ("120000", "vendor", target.as_bytes())];
    repo.commit_tree("main", files, &[("other", &commit)]);
    let top = scene.upstream.host("hostile/link.git", &repo);
    let (workspace, _) = prepare(&agent, &top, "link").await.unwrap();
    assert!(workspace.submodules.is_empty());
    assert_eq!(listing(&outside).len(), 1, "nothing was written there");
    assert!(std::fs::symlink_metadata(Path::new(&workspace.src).join("vendor")).unwrap().is_symlink());
}

#[tokio::test]
async fn a_mirror_brings_its_submodules() {
    let scene = Scene::new();
    let agent =
        Agent::start(&configuration(&format!("mirrors: [{{url: '{}', trust: public, submodules: true}}]", scene.top)));
    let get = async |url: &str| {
        let request = v1::GetRepositoryRequest { url: url.to_owned() };
        agent.repository().await.get_repository(request).await.ok()?.into_inner().repository
    };
    for url in [&scene.top, &scene.middle, &scene.leaf] {
        until_async(SOON, url, || async { get(url).await.is_some_and(|found| !found.snapshot.is_empty()) }).await;
    }
    for url in [&scene.middle, &scene.leaf] {
        let found = get(url).await.unwrap();
        assert!(found.declared && found.trust == "public", "{found:?}");
        assert_eq!(found.declared_by, format!("submodule of {}", scene.top));
    }
    assert!(get(&scene.top).await.unwrap().submodules);
    scene.upstream.reset();
    let stale = v1::Source { allow_stale: true, ..source(&scene.top, "branch:main") };
    scene.upstream.stop();
    let unleased = v1::Unleased { source: Some(stale), request_id: "one".into(), ..v1::Unleased::default() };
    let request = v1::PrepareWorkspaceRequest {
        r#for: Some(v1::prepare_workspace_request::For::Unleased(unleased)),
        submodules: true,
        ..Default::default()
    };
    let mut events = agent.workspace().await.prepare_workspace(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.event;
    }
    let Some(v1::prepare_workspace_response::Event::Workspace(workspace)) = last else { panic!("{last:?}") };
    assert_eq!(workspace.submodules.len(), 3, "all were here before upstream went");
    assert_eq!(scene.upstream.requests().total(), 0);
}

#[test]
fn run_checks_submodules_out() {
    let scene = Scene::new();
    let stoker = crate::support::stoker::Stoker::new();
    let script = "git submodule status --recursive | cut -c1-42; cat 'vendor/middle/third party/leaf/leaf.txt'";
    let args =
        ["run", "--repo", &scene.top, "--submodules", "--cpu", "10m", "--memory", "32MiB", "--disk", "32MiB", "--"];
    let output = stoker.run(args.into_iter().chain(["sh", "-c", script])).expect_code(0);
    let place = tempfile::tempdir().unwrap();
    git_out(place.path(), &["clone", "--quiet", "--recurse-submodules", &scene.top, "plain"]);
    let plain = git(&place.path().join("plain")).args(["submodule", "status", "--recursive"]).output().unwrap();
    let plain: String =
        String::from_utf8(plain.stdout).unwrap().lines().map(|line| format!("{}\n", &line[..42])).collect();
    assert_eq!(output.stdout, format!("{plain}leaf\n"));
}

#[tokio::test]
async fn a_mirror_says_what_is_wrong_with_its_submodules() {
    let scene = Scene::new();
    let commit = scene.repos[0].commit("main");
    let repo = hostile("[submodule \"a\"]\n\tpath = a\n\turl = ext::sh\n", "a", &commit);
    let top = scene.upstream.host("team/bad.git", &repo);
    let agent = Agent::start(&configuration(&format!("mirrors: [{{url: '{top}', submodules: true}}]")));
    until_async(SOON, "it says so", || async {
        let request = v1::GetRepositoryRequest { url: top.clone() };
        let found = agent.repository().await.get_repository(request).await.unwrap().into_inner().repository.unwrap();
        codes(&found.reasons) == ["SUBMODULE_INVALID"] && !found.snapshot.is_empty()
    })
    .await;
}
