//! What builds do in their workspaces reaches nobody else, wherever a workspace is mounted.

use std::os::unix::fs::MetadataExt as _;

use super::*;

/// Kept checkouts and snapshots: every file with its content, its times and its inode.
fn shared(pool: &Path) -> BTreeMap<PathBuf, String> {
    let own = pool.join("stoker");
    let mut found = BTreeMap::new();
    for part in ["checkouts", "repositories"] {
        for (path, what) in listing(&own.join(part)) {
            // A record has the time of its last use; of a repository only its snapshots are others'.
            let is_record = path.extension().is_some_and(|extension| extension == "json");
            if is_record || part == "repositories" && !path.iter().any(|part| part == "snapshots") {
                continue;
            }
            let meta = fs::symlink_metadata(own.join(part).join(&path)).unwrap();
            let (owner, group) = (meta.uid(), meta.gid());
            let times = if meta.is_dir() { 0 } else { meta.mtime() };
            found.insert(Path::new(part).join(path), format!("{what} {owner}:{group} {times} {}", meta.ino()));
        }
    }
    found
}

/// Bytes that a tree holds on the disk.
fn held(path: &Path) -> u64 {
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split('\t').next().unwrap().parse().unwrap()
}

/// Writes to everything, in every way that a build has.
const ATTACK: &str = "
    find . -path ./.git -prune -o -type f -print0 | head -z -n 300 | xargs -0 sh -c 'for f; do echo more >> \"$f\"; done' sh
    find . -path ./.git -prune -o -type f -print0 | tail -z -n 300 | xargs -0 chmod 0777
    find .git/objects -type f -print0 | xargs -0 chmod u+w
    for pack in .git/objects/pack/*.pack; do printf x | dd of=$pack bs=1 seek=100 conv=notrunc status=none; done
    for index in .git/objects/pack/*.idx; do : > $index; done
    rm -f .git/packed-refs; mv .git/objects .git/moved; ln -s /etc folder-link
    first=$(find . -mindepth 1 -maxdepth 1 -type d ! -name .git | head -n 1); mv \"$first\" other-name; cp -r other-name \"$first\"; rm -rf other-name
    touch -d 2001-01-01 $(git ls-files 2>/dev/null | head -n 50) || true
";

async fn builds_reach_nobody(kind: Kind, method: &str, builds: usize) {
    let filesystem = LoopFs::new(kind, 1 << 30);
    let repo = TestRepo::generated(800, 8_000_000, 2);
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration(filesystem.path(), &format!("workspaces: {{method: {method}}}")));
    let mut workspaces = Vec::new();
    for build in 0..builds {
        let user = (build % 2 == 1).then_some(USER);
        let request = v1::PrepareWorkspaceRequest { user, group: user.map(|_| GROUP), ..Default::default() };
        let commit = if build % 3 == 0 { "main~1" } else { "main" };
        let from = source(&url, &format!("sha:{}", repo.commit(commit)));
        workspaces.push((user, prepare_as(&agent, from, &format!("build-{build}"), request).await.unwrap()));
    }
    let before = shared(filesystem.path());
    assert!(before.keys().any(|path| path.starts_with("repositories")), "{:?}", before.keys().next());
    std::thread::scope(|scope| {
        for (user, workspace) in &workspaces {
            scope.spawn(move || {
                let src = Path::new(&workspace.src);
                as_owner(src, *user, "echo new > new; git add new; git commit -qm x; git gc --quiet --prune=now");
                as_owner(src, *user, ATTACK);
            });
        }
    });
    assert_same(&shared(filesystem.path()), &before, "what others read");
    // A build that comes later sees nothing of it.
    let commit = source(&url, &format!("sha:{}", repo.commit("main")));
    let after = prepare_as(&agent, commit, "after", Default::default()).await.unwrap();
    let plain = crate::support::place("plain-");
    repo.clone_to(&plain.path().join("plain"));
    assert_same(&files(Path::new(&after.src)), &files(&plain.path().join("plain")), "a later build");
    assert_eq!(as_owner(Path::new(&after.src), None, "git fsck --no-progress; git status --porcelain"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_builds_in_overlays_reach_nobody() {
    needs_root!();
    builds_reach_nobody(Kind::Xfs, "overlay", 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_in_reflinked_copies_reach_nobody() {
    needs_root!();
    builds_reach_nobody(Kind::Xfs, "reflink", 12).await;
}

/// A pod mounts the workspace's directory, at a path of its own, and sees nothing else of the pool.
async fn alone(kind: Kind, method: &str, user: Option<u32>) {
    let filesystem = LoopFs::new(kind, 1 << 30);
    let repo = TestRepo::generated(2000, 60_000_000, 5);
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration(filesystem.path(), &format!("workspaces: {{method: {method}}}")));
    let request =
        v1::PrepareWorkspaceRequest { user, group: user.map(|_| GROUP), self_contained: true, ..Default::default() };
    let workspace = prepare_as(&agent, source(&url, "branch:main"), "alone", request).await.unwrap();
    assert_eq!(workspace.also_mount, Vec::<String>::new());
    let home = Path::new(&workspace.src).parent().unwrap();
    let elsewhere = crate::support::place("pod-");
    let script = format!(
        "set -e; mount --rbind {home} {at}; umount --recursive --lazy {pool}; test -z \"$(ls {pool})\"; cd {at}/src; \
         exec setpriv --reuid {user} --regid {group} --clear-groups sh -euc '
            git fsck --no-progress --no-dangling; git log --oneline | wc -l; test -z \"$(git status --porcelain)\"
            git mv f0 elsewhere 2>/dev/null || git mv $(git ls-files | head -n 1) elsewhere
            echo more > new; cp $(git ls-files | tail -n 1) known; git add --all; git commit -qm more
            git status --porcelain; git gc --quiet; git gc --quiet --prune=now; git fsck --no-progress; git log -1 --format=%s'",
        home = home.display(),
        at = elsewhere.path().display(),
        pool = filesystem.path().display(),
        user = user.unwrap_or(0),
        group = user.map_or(0, |_| GROUP),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let names = ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"];
    let output = command.env("HOME", "/nowhere").envs(names.map(|name| (name, "b@example.org"))).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.starts_with("5\n") && said.ends_with("more\n"), "{said}");
    if method == "overlay" {
        let upper = filesystem.path().join("stoker/overlays").join(&workspace.id).join("upper");
        let bytes = held(&upper);
        assert!(bytes < 10 << 20, "{bytes} bytes in the upper directory");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_works_where_nothing_else_of_the_pool_is() {
    needs_root!();
    alone(Kind::Ext4, "overlay", Some(USER)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reflinked_copy_works_where_nothing_else_of_the_pool_is() {
    needs_root!();
    alone(Kind::Xfs, "reflink", Some(USER)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_self_contained_checkout_works_where_nothing_else_of_the_pool_is() {
    needs_root!();
    alone(Kind::Ext4, "checkout", None).await;
}
