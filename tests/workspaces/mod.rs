//! Workspaces by every method on every kind of disk: what they show, and that nothing comes back from them.

mod caches;
mod deletion;
mod isolation;
mod kept;
mod kill;
mod lines;
mod manifest;
mod room;
mod rootless;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use stoker_proto::v1;
use tonic::{Request, Status};

use crate::support::disk::{listing, names};
use crate::support::loopdev::{Kind, LoopFs, needs_root};
use crate::support::repository::{TestRepo, git_out};
use crate::support::stoker::Agent;
use crate::support::upstream::Upstream;
use crate::support::wire::source;

const LIMIT: Duration = Duration::from_secs(60);
const USER: u32 = 4711;
const GROUP: u32 = 4712;

fn configuration(pool: &Path, more: &str) -> String {
    format!(
        "node: {{rootFloor: {{bytes: 0, inodes: 0}}}}\npools: [{{name: data, path: {}, mount: optional, floor: {{bytes: \
         1MiB, inodes: 10}}}}]\nrepositories: {{refresh: 24h, add: on-demand, allow: [127.0.0.1], protocols: [http]}}\n\
         {more}\n",
        pool.display()
    )
}

async fn prepare_as(
    agent: &Agent,
    from: v1::Source,
    id: &str,
    request: v1::PrepareWorkspaceRequest,
) -> Result<v1::Workspace, Status> {
    use v1::prepare_workspace_response::Event;
    let unleased = v1::Unleased { source: Some(from), request_id: id.to_owned(), ..Default::default() };
    let which = Some(v1::prepare_workspace_request::For::Unleased(unleased));
    let mut request = Request::new(v1::PrepareWorkspaceRequest { r#for: which, ..request });
    request.set_timeout(LIMIT);
    let mut events = agent.workspace().await.prepare_workspace(request).await?.into_inner();
    loop {
        match events.message().await?.expect("the stream ends with the workspace").event {
            Some(Event::Workspace(workspace)) => return Ok(workspace),
            _ => continue,
        }
    }
}

async fn delete(agent: &Agent, id: &str) {
    let request = v1::DeleteWorkspaceRequest { id: id.to_owned() };
    agent.workspace().await.delete_workspace(request).await.unwrap();
}

/// A bare repository with commits that change everything that git can change, oldest first; `v1` names the first.
fn wild() -> (TestRepo, Vec<String>) {
    let repo = TestRepo::empty();
    let place = crate::support::place("wild-");
    let at = place.path();
    git_out(at, &["init", "--quiet", "--initial-branch=main", "."]);
    let write = |path: &[u8], text: &[u8]| {
        let path = at.join(OsStr::from_bytes(path));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let mode = |path: &str, mode: u32| fs::set_permissions(at.join(path), fs::Permissions::from_mode(mode)).unwrap();
    let remove = |path: &str| {
        let path = at.join(path);
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
    };
    let mut commits = Vec::new();
    let mut commit = |message: &str| {
        git_out(at, &["add", "--all", "--force"]);
        git_out(at, &["commit", "--quiet", "--message", message]);
        commits.push(git_out(at, &["rev-parse", "HEAD"]));
    };

    for number in 0..200 {
        write(format!("many/{}/file-{number}", number % 7).as_bytes(), format!("{number}\n").as_bytes());
    }
    write(b"latin-\xe9\xff.txt", b"not UTF-8\n");
    write(b"with \n newline\tand tab", b"x");
    write(b".gitattributes", b"*.bat text eol=crlf\n*.id ident\n");
    write(b"run.bat", b"one\ntwo\n");
    write(b"who.id", b"$Id$\n");
    write(b"sub/text.dat", b"one\ntwo\n");
    write(b"sub/deeper/text.dat", b"three\n");
    write(b"gone/a/b/c/file", b"deep\n");
    write(b"gone/a/other", b"other\n");
    write(b"becomes-folder", b"a file\n");
    write(b"becomes-file/one", b"1\n");
    write(b"becomes-file/two/three", b"3\n");
    write(b"becomes-link/file", b"x\n");
    write(b"script", b"#!/bin/sh\n");
    mode("script", 0o755);
    write(b"plain", b"plain\n");
    symlink("plain", at.join("link")).unwrap();
    symlink("nowhere/at/all", at.join("dangling")).unwrap();
    symlink("many", at.join("link-to-folder")).unwrap();
    commit("First");
    git_out(at, &["tag", "--annotate", "--message", "one", "v1"]);

    write(b"many/3/file-3", b"other\n");
    write(b"many/8/new", b"new\n");
    remove("gone");
    remove("becomes-folder");
    write(b"becomes-folder/inside/file", b"now inside\n");
    remove("becomes-file");
    write(b"becomes-file", b"now a file\n");
    remove("becomes-link");
    symlink("sub", at.join("becomes-link")).unwrap();
    mode("script", 0o644);
    mode("plain", 0o755);
    remove("link");
    write(b"link", b"no link any more\n");
    commit("Second");

    write(b"sub/.gitattributes", b"*.dat text eol=crlf\n");
    remove("many/5");
    write(b"latin-\xe9\xff.txt", b"changed\n");
    commit("Other attributes below sub");

    remove("sub/.gitattributes");
    remove("link-to-folder");
    write(b"link-to-folder/real", b"a folder now\n");
    write(b"gone/a/again", b"back\n");
    commit("And back");

    write(b".gitattributes", b"*.bat text eol=lf\n*.dat text eol=crlf\n");
    commit("Other attributes at the top");
    git_out(at, &["push", "--quiet", "--tags", repo.path().to_str().unwrap(), "HEAD:refs/heads/main"]);
    (repo, commits)
}

/// What is below, but for `.git`.
fn files(tree: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = listing(tree);
    found.retain(|path, _| !path.starts_with(".git"));
    found
}

#[track_caller]
fn assert_same(ours: &BTreeMap<PathBuf, String>, plain: &BTreeMap<PathBuf, String>, what: &str) {
    let paths = ours.keys().chain(plain.keys());
    let differ: BTreeMap<_, _> = paths
        .filter(|path| ours.get(*path) != plain.get(*path))
        .map(|path| (path, (ours.get(path), plain.get(path))))
        .collect();
    assert!(differ.is_empty(), "{what}: {differ:#?}");
}

/// What git says in a work tree, as its owner.
fn as_owner(src: &Path, user: Option<u32>, script: &str) -> String {
    let mut command = match user {
        None => Command::new("sh"),
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &user.to_string(), "--regid", &GROUP.to_string(), "--clear-groups", "sh"]);
            command
        }
    };
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", "/nowhere");
    let names = ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"];
    command.envs(names.map(|name| (name, "builder@example.org")));
    let output = command.args(["-euc", script]).current_dir(src).output().unwrap();
    assert!(output.status.success(), "{script}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const SAYS: &str = "git status --porcelain --ignored; git describe --tags; git rev-parse HEAD; git ls-files --stage | \
                    git hash-object --stdin; git log --oneline; git for-each-ref refs/tags; git remote -v; \
                    git fsck --no-progress --no-dangling 2>&1";

/// Each commit of the wild line in turn, on one agent: full checkouts, layers over them, and what a plain clone has.
async fn as_a_clone(kind: Kind, method: &str, user: Option<u32>) {
    let filesystem = LoopFs::new(kind, 512 << 20);
    let (repo, commits) = wild();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration(filesystem.path(), &format!("workspaces: {{method: {method}}}")));
    let place = crate::support::place("plain-");
    // Forwards, backwards, and back and forth: each is a layer over whatever is near.
    let order = [0, 1, 2, 3, 4, 1, 3, 0];
    for (round, number) in order.into_iter().enumerate() {
        let commit = &commits[number];
        // Each time anew: git does not write a file again for other attributes alone.
        let plain = place.path().join(format!("plain-{round}"));
        git_out(place.path(), &["clone", "--quiet", "--no-checkout", &url, plain.to_str().unwrap()]);
        git_out(&plain, &["checkout", "--quiet", "--detach", commit]);
        let request = v1::PrepareWorkspaceRequest { user, group: user.map(|_| GROUP), ..Default::default() };
        let from = source(&url, &format!("sha:{commit}"));
        let workspace = prepare_as(&agent, from, &format!("round-{round}"), request).await.unwrap();
        let used = workspace.method().as_str_name().trim_start_matches("METHOD_").to_lowercase();
        assert_eq!(used, method);
        let src = Path::new(&workspace.src);
        assert_same(&files(src), &files(&plain), &format!("{kind:?} {method} commit {number} in round {round}"));
        let said = as_owner(src, user, SAYS);
        assert_eq!(said, as_owner(&plain, None, SAYS), "{kind:?} {method} commit {number}");
        assert!(said.starts_with("v1"), "nothing is changed, and described: {said}");
        let owners: Vec<u32> = [src.to_owned(), src.join("plain"), src.join(".git/index"), src.join("dangling")]
            .iter()
            .map(|path| std::os::unix::fs::MetadataExt::uid(&fs::symlink_metadata(path).unwrap()))
            .collect();
        assert_eq!(owners, vec![user.unwrap_or(0); 4]);
        // And all of it can be changed.
        as_owner(
            src,
            user,
            "chmod 700 many; git mv many moved; rm -r moved/0; echo x >> plain; echo y > new; git add --all; git commit -qm \
             change; git branch other; git tag -m t t; test -z \"$(git status --porcelain)\"; git gc --quiet; git fsck",
        );
    }
    for (round, number) in order.into_iter().enumerate() {
        let id = format!("round-{round}");
        let all = agent.workspace().await.list_workspaces(v1::ListWorkspacesRequest::default()).await.unwrap();
        let held = all.into_inner().workspaces.into_iter().find(|one| one.id.contains(&id)).unwrap();
        assert_eq!(held.commit, commits[number]);
        delete(&agent, &held.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_on_xfs_is_what_a_clone_is() {
    needs_root!();
    as_a_clone(Kind::Xfs, "overlay", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_on_ext4_for_another_user_is_what_a_clone_is() {
    needs_root!();
    as_a_clone(Kind::Ext4, "overlay", Some(USER)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_on_btrfs_for_another_user_is_what_a_clone_is() {
    needs_root!();
    as_a_clone(Kind::Btrfs, "overlay", Some(USER)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reflinked_copy_on_xfs_for_another_user_is_what_a_clone_is() {
    needs_root!();
    as_a_clone(Kind::Xfs, "reflink", Some(USER)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reflinked_copy_on_btrfs_is_what_a_clone_is() {
    needs_root!();
    as_a_clone(Kind::Btrfs, "reflink", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_on_ext4_for_another_user_is_what_a_clone_is() {
    needs_root!();
    as_a_clone(Kind::Ext4, "checkout", Some(USER)).await;
}

/// The commits that are kept, each with whether it is only a layer.
fn kept(pool: &Path) -> BTreeMap<String, bool> {
    let place = pool.join("stoker/checkouts");
    let is_record = |name: &String| name.ends_with(".json") && !name.starts_with(".tmp-");
    let records = names(&place).into_iter().filter(is_record);
    // One that was superseded goes meanwhile.
    let record = |name: String| -> Option<serde_json::Value> {
        Some(serde_json::from_slice(&fs::read(place.join(name)).ok()?).unwrap())
    };
    let mut found = BTreeMap::new();
    for one in records.filter_map(record) {
        *found.entry(one["commit"].as_str().unwrap().to_owned()).or_insert(true) &= !one["base"].is_null();
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_near_a_kept_one_is_a_layer_over_it() {
    needs_root!();
    let filesystem = LoopFs::new(Kind::Xfs, 512 << 20);
    let (repo, commits) = wild();
    let (_upstream, url) = Upstream::of(&repo);
    let mut agent = Agent::start(&configuration(filesystem.path(), ""));
    for (number, commit) in commits.iter().enumerate() {
        let from = source(&url, &format!("sha:{commit}"));
        prepare_as(&agent, from, &format!("w{number}"), Default::default()).await.unwrap();
    }
    let expected = |full: [usize; 2]| -> BTreeMap<String, bool> {
        commits.iter().enumerate().map(|(number, commit)| (commit.clone(), !full.contains(&number))).collect()
    };
    // Other attributes at the top may give every file another form.
    assert_eq!(kept(filesystem.path()), expected([0, 4]));
    // All of them are there after a restart, and the workspaces stand.
    agent.kill9();
    agent.restart();
    let all = agent.workspace().await.list_workspaces(v1::ListWorkspacesRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.workspaces.len(), 5);
    for one in &all.workspaces {
        assert_eq!(as_owner(Path::new(&one.src), None, "git status --porcelain"), "");
    }
    let before = kept(filesystem.path());
    prepare_as(&agent, source(&url, "branch:main"), "again", Default::default()).await.unwrap();
    assert_eq!(kept(filesystem.path()), before, "nothing was checked out again");
}

/// Repositories and workspaces on disks of their own: nothing can be linked or shared between them.
#[tokio::test(flavor = "multi_thread")]
async fn workspaces_on_another_pool_have_objects_of_their_own() {
    needs_root!();
    let (one, other) = (LoopFs::new(Kind::Xfs, 512 << 20), LoopFs::new(Kind::Xfs, 512 << 20));
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    for method in ["overlay", "reflink"] {
        let second =
            format!("  - {{name: other, path: {}, mount: required, floor: {{bytes: 1MiB}}}}", other.path().display());
        let text = configuration(one.path(), &format!("workspaces: {{pool: other, method: {method}}}"));
        let text =
            text.replace("pools: [", "pools:\n  - ").replace("inodes: 10}}]", &format!("inodes: 10}}}}\n{second}"));
        let agent = Agent::start(&text.replace("repositories: {", "repositories: {pool: data, "));
        let workspace = prepare_as(&agent, source(&url, "branch:main"), method, Default::default()).await.unwrap();
        let src = Path::new(&workspace.src);
        assert!(src.starts_with(other.path()) && workspace.also_mount.is_empty(), "{workspace:?}");
        assert_eq!(as_owner(src, None, "git fsck --no-progress; git status --porcelain"), "");
        delete(&agent, &workspace.id).await;
    }
}
