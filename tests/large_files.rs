//! Large files (git-lfs): content in the place of pointers, fetched once, checked, and never half.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use stoker_proto::v1;
use tonic::{Code, Request, Status};

use crate::resolve::LOOPBACK;
use crate::support::large::{LargeCounts, LargeFault, TOKEN, oid, pointer};
use crate::support::repository::{TestRepo, git, git_out};
use crate::support::stoker::{Agent, Stoker};
use crate::support::upstream::Upstream;
use crate::support::wait;
use crate::support::wire::{reason, source};

const LIMIT: Duration = Duration::from_secs(60);
/// Where large files are in [`World`].
const SMALL: &str = "data/small.bin";
const LARGE: &str = "data/large.bin";
const AGAIN: &str = "again.bin";
const EMPTY: &str = "empty.bin";
/// A pointer that no attribute names: a file like any other.
const DOCUMENTED: &str = "docs/pointer.txt";

/// An upstream with large files, some of the same content.
struct World {
    repo: TestRepo,
    upstream: Upstream,
    url: String,
    small: Vec<u8>,
    large: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let repo = TestRepo::standard();
        let (upstream, url) = Upstream::of(&repo);
        let small = b"a small large file\n".to_vec();
        // More than one part of a body, and than one write.
        let large: Vec<u8> = (0..300_000_u32).flat_map(|n| n.to_le_bytes()).take(1_000_001).collect();
        let files = upstream.large_files();
        let attributes = "*.bat text eol=crlf\n*.bin filter=lfs diff=lfs merge=lfs -text\n";
        repo.commit_file("main", ".gitattributes", attributes.as_bytes());
        repo.commit_file("main", SMALL, files.put(&small).as_bytes());
        repo.commit_file("main", LARGE, files.put(&large).as_bytes());
        repo.commit_file("main", AGAIN, pointer(&small).as_bytes());
        repo.commit_file("main", EMPTY, b"");
        repo.commit_file("main", DOCUMENTED, pointer(b"never stored").as_bytes());
        Self { repo, upstream, url, small, large }
    }

    fn counts(&self) -> LargeCounts {
        self.upstream.large_files().counts()
    }

    fn fault(&self, fault: LargeFault) {
        self.upstream.large_files().fault(fault);
    }

    #[track_caller]
    fn assert_content(&self, src: &Path) {
        assert!(fs::read(src.join(SMALL)).unwrap() == self.small);
        assert!(fs::read(src.join(LARGE)).unwrap() == self.large);
        assert!(fs::read(src.join(AGAIN)).unwrap() == self.small);
        assert_eq!(fs::read(src.join(EMPTY)).unwrap(), b"");
        assert_eq!(fs::read_to_string(src.join(DOCUMENTED)).unwrap(), pointer(b"never stored"));
    }
}

async fn prepare(agent: &Agent, url: &str, id: &str, lfs: bool) -> Result<v1::Workspace, Status> {
    let request = v1::PrepareWorkspaceRequest { lfs, ..Default::default() };
    prepare_as(agent, url, id, request).await
}

/// With what `request` says beside the source.
async fn prepare_as(
    agent: &Agent,
    url: &str,
    id: &str,
    request: v1::PrepareWorkspaceRequest,
) -> Result<v1::Workspace, Status> {
    use v1::prepare_workspace_response::Event;
    let unleased =
        v1::Unleased { source: Some(source(url, "branch:main")), request_id: id.to_owned(), ..Default::default() };
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

fn status(src: &str) -> String {
    git_out(Path::new(src), &["-c", "safe.directory=*", "status", "--porcelain"])
}

/// All files below `dir`, none of git's.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() { pending.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_workspace_has_the_content_and_a_second_one_asks_nobody() {
    let world = World::new();
    let agent = Agent::start(LOOPBACK);
    let first = prepare(&agent, &world.url, "first", true).await.unwrap();
    world.assert_content(Path::new(&first.src));
    assert_eq!(world.counts(), LargeCounts { batches: 1, objects: 2 });
    assert_eq!(status(&first.src), "");
    assert!(first.bytes > 1_000_000, "{}", first.bytes);

    world.upstream.large_files().reset();
    let second = prepare(&agent, &world.url, "second", true).await.unwrap();
    world.assert_content(Path::new(&second.src));
    assert_eq!(world.counts(), LargeCounts::default());

    // A build's files are its own.
    let path = Path::new(&second.src).join(LARGE);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.nlink()), (0o644, 1));
    fs::write(&path, b"changed").unwrap();
    assert_eq!(status(&second.src), format!(" M {LARGE}"));
    world.assert_content(Path::new(&first.src));
    let third = prepare(&agent, &world.url, "third", true).await.unwrap();
    world.assert_content(Path::new(&third.src));

    // Who does not ask gets what is committed.
    let plain = prepare(&agent, &world.url, "plain", false).await.unwrap();
    assert_eq!(fs::read_to_string(Path::new(&plain.src).join(LARGE)).unwrap(), pointer(&world.large));

    // What the server gave with its addresses is known to nobody else.
    assert!(!agent.log().contains(TOKEN));
    for file in files(agent.root()) {
        let content = fs::read(&file).unwrap_or_default();
        assert!(!content.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes()), "{}", file.display());
    }
}

#[tokio::test]
async fn a_workspace_of_another_user_is_clean_too() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root gives files away");
        return;
    }
    let world = World::new();
    let agent = Agent::start(LOOPBACK);
    let at = ["workspace", "prepare", "--repo", &world.url, "--ref", "branch:main", "--lfs", "-o", "json"];
    let output = agent.stoker().run(at.into_iter().chain(["--user", "1234", "--group", "1235"])).expect_code(0);
    let src = output.json()["workspace"]["src"].as_str().unwrap().to_owned();
    world.assert_content(Path::new(&src));
    for path in [SMALL, LARGE, ".git/index", ".git"] {
        let meta = fs::metadata(Path::new(&src).join(path)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 1235), "{path}");
    }
    assert_eq!(status(&src), "");
}

#[tokio::test]
async fn callers_at_once_share_one_download() {
    let world = World::new();
    let agent = Agent::start(LOOPBACK);
    prepare(&agent, &world.url, "fill", false).await.unwrap();
    let ids: Vec<_> = (0..10).map(|number| format!("caller-{number}")).collect();
    let all = futures_util::future::join_all(ids.iter().map(|id| prepare(&agent, &world.url, id, true))).await;
    for workspace in all {
        world.assert_content(Path::new(&workspace.unwrap().src));
    }
    assert_eq!(world.counts(), LargeCounts { batches: 1, objects: 2 });
}

#[tokio::test]
async fn a_fault_is_a_reason_and_leaves_nothing() {
    let world = World::new();
    let agent = Agent::start(&LOOPBACK.replace("{add", "{fetchWithin: 20s, add"));
    prepare(&agent, &world.url, "fill", false).await.unwrap();
    let workspaces = agent.root().join("pool/stoker/workspaces");
    let before = files(&workspaces).len();
    let names = [LARGE, SMALL, AGAIN];
    for (number, (fault, code, word)) in [
        (LargeFault::WrongBytes, Code::DataLoss, "LFS_OBJECT_CORRUPT"),
        (LargeFault::LongBytes, Code::DataLoss, "LFS_OBJECT_CORRUPT"),
        (LargeFault::WrongSize, Code::DataLoss, "LFS_OBJECT_CORRUPT"),
        (LargeFault::Truncated, Code::Unavailable, "UPSTREAM_UNREACHABLE"),
        (LargeFault::Gone, Code::NotFound, "LFS_OBJECT_MISSING"),
        (LargeFault::Unknown, Code::NotFound, "LFS_OBJECT_MISSING"),
        (LargeFault::Status(404), Code::NotFound, "UPSTREAM_NOT_FOUND"),
        (LargeFault::Status(401), Code::PermissionDenied, "UPSTREAM_UNAUTHORIZED"),
        (LargeFault::Status(503), Code::Unavailable, "UPSTREAM_UNREACHABLE"),
    ]
    .into_iter()
    .enumerate()
    {
        world.fault(fault.clone());
        let refused = prepare(&agent, &world.url, &format!("fault-{number}"), true).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (code, word), "{fault:?}: {refused:?}");
        if !matches!(fault, LargeFault::Status(_)) {
            assert!(names.iter().any(|name| refused.message().contains(name)), "{fault:?}: {}", refused.message());
            let oids = [oid(&world.small), oid(&world.large)];
            assert!(oids.iter().any(|oid| refused.message().contains(oid)), "{fault:?}: {}", refused.message());
        }
        assert_eq!(files(&workspaces).len(), before, "{fault:?}");
        assert!(files(&agent.root().join("pool/stoker/lfs/.tmp")).is_empty(), "{fault:?}");
    }
    // One that is better soon is no fault; nor is one that is elsewhere.
    world.fault(LargeFault::FailFirst(2));
    world.upstream.large_files().reset();
    let made = prepare(&agent, &world.url, "fails-first", true).await.unwrap();
    world.assert_content(Path::new(&made.src));
    let other = b"another large file".to_vec();
    let text = world.upstream.large_files().put(&other);
    world.repo.commit_file("main", "other.bin", text.as_bytes());
    world.fault(LargeFault::Moved);
    let made = prepare(&agent, &world.url, "moved", true).await.unwrap();
    assert_eq!(fs::read(Path::new(&made.src).join("other.bin")).unwrap(), other);
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up() {
    let world = World::new();
    let agent = Agent::start(&LOOPBACK.replace("{add", "{fetchWithin: 3s, add"));
    // Also what is fetched well may take longer than that on a busy machine.
    let filled = async || prepare(&agent, &world.url, "fill", false).await.is_ok();
    wait::until_async(LIMIT, "it is filled", filled).await;
    world.fault(LargeFault::Hang);
    let refused = prepare(&agent, &world.url, "hangs", true).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "UPSTREAM_TIMEOUT"), "{refused:?}");
    world.fault(LargeFault::None);
    let comes = async || match prepare(&agent, &world.url, "hangs", true).await {
        Ok(made) => {
            world.assert_content(Path::new(&made.src));
            true
        }
        Err(_) => false,
    };
    wait::until_async(LIMIT, "it comes when the server is well", comes).await;
}

#[tokio::test]
async fn nobody_leads_the_node_where_it_must_not_go() {
    let world = World::new();
    let agent = Agent::start(LOOPBACK);
    let port = world.url.split(['/', ':']).nth(4).unwrap().to_owned();
    for (number, href) in [
        "http://169.254.169.254/latest/meta-data".to_owned(),
        format!("http://localhost:{port}/lfs-objects/x"),
        format!("http://[::1]:{port}/lfs-objects/x"),
        format!("http://127.1:{port}/lfs-objects/x"),
        "https://example.org/not-an-allowed-protocol".to_owned(),
        "file:///etc/passwd".to_owned(),
        "gopher://127.0.0.1/x".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        world.fault(LargeFault::Href(href.clone()));
        let refused = prepare(&agent, &world.url, &format!("href-{number}"), true).await.unwrap_err();
        assert_eq!(reason(&refused), "REPOSITORY_NOT_ALLOWED", "{href}: {refused:?}");
    }
    assert_eq!(world.counts().objects, 0);
    world.fault(LargeFault::None);
    // A commit's own word for its server: its host is asked, no other.
    let here = format!("[lfs]\n\turl = http://127.0.0.1:{port}/somewhere/else\n");
    world.repo.commit_file("main", ".lfsconfig", b"[lfs]\n\turl = http://lfs.example.net/x\n");
    let refused = prepare(&agent, &world.url, "config-foreign", true).await.unwrap_err();
    assert_eq!(reason(&refused), "REPOSITORY_NOT_ALLOWED", "{refused:?}");
    assert!(refused.message().contains("lfs.example.net"), "{}", refused.message());
    world.repo.commit_file("main", ".lfsconfig", here.as_bytes());
    let made = prepare(&agent, &world.url, "config-here", true).await.unwrap();
    world.assert_content(Path::new(&made.src));
}

#[tokio::test]
async fn a_declared_mirror_has_them_before_a_build_asks() {
    let world = World::new();
    let agent = Agent::start(&format!(
        "pools: [{{name: data, path: $ROOT/pool, mount: optional, floor: {{bytes: 1MiB, inodes: 10}}}}]\n\
         repositories: {{add: on-demand, allow: [127.0.0.1], protocols: [http], mirrors: [{{url: \"{}\", lfs: true}}]}}\n",
        world.url
    ));
    let store = agent.root().join("pool/stoker/lfs");
    wait::until(LIMIT, "both objects are here", || {
        files(&store).iter().filter(|file| !file.starts_with(store.join(".tmp"))).count() == 2
    });
    for file in files(&store) {
        assert_eq!(oid(&fs::read(&file).unwrap()), file.file_name().unwrap().to_str().unwrap());
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o444);
    }
    // Its workspaces have them without a word, and with nobody to ask.
    let commit = world.repo.commit("main");
    world.upstream.stop();
    let output = agent
        .stoker()
        .run(["workspace", "prepare", "--repo", &world.url, "--ref", &format!("sha:{commit}"), "-o", "json"])
        .expect_code(0);
    world.assert_content(Path::new(output.json()["workspace"]["src"].as_str().unwrap()));
    world.upstream.resume();
    // What comes later too; one that is not to be had is shown.
    let lost = pointer(b"nobody has this");
    world.repo.commit_file("main", "lost.bin", lost.as_bytes());
    let request = v1::RefreshRepositoryRequest { url: world.url.clone(), only_if_empty: false };
    let mut events = agent.repository().await.refresh_repository(request).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}
    let shown = || async {
        let get = v1::GetRepositoryRequest { url: world.url.clone() };
        let found = agent.repository().await.get_repository(get).await.unwrap().into_inner().repository.unwrap();
        found
            .reasons
            .iter()
            .any(|why| why.code().as_str_name() == "LFS_OBJECT_MISSING" && why.message.contains("lost.bin"))
    };
    wait::until_async(LIMIT, "it is shown", shown).await;
}

#[tokio::test]
async fn limits_hold() {
    let world = World::new();
    let limited = |lfs: &str| Agent::start(&LOOPBACK.replace("{add", &format!("{{lfs: {lfs}, add")));
    let agent = limited("{objectLimit: 512KiB}");
    let refused = prepare(&agent, &world.url, "one", true).await.unwrap_err();
    assert_eq!(reason(&refused), "LFS_LIMIT", "{refused:?}");
    assert!(refused.message().contains(LARGE) && refused.message().contains("objectLimit"), "{}", refused.message());
    assert_eq!(world.counts(), LargeCounts::default());

    // Below the limit of all: what was not used for longest goes.
    let agent = limited("{limit: 1500KiB}");
    prepare(&agent, &world.url, "one", true).await.unwrap();
    let other: Vec<u8> = world.large.iter().map(|byte| byte ^ 0x55).collect();
    let text = world.upstream.large_files().put(&other);
    world.repo.commit_file("main", LARGE, text.as_bytes());
    let made = prepare(&agent, &world.url, "two", true).await.unwrap();
    assert!(fs::read(Path::new(&made.src).join(LARGE)).unwrap() == other);
    let held: Vec<_> =
        files(&agent.root().join("pool/stoker/lfs")).iter().map(|file| file.file_name().unwrap().to_owned()).collect();
    assert!(!held.contains(&oid(&world.large).into()) && held.contains(&oid(&other).into()), "{held:?}");
    // Both at once are more than there may be.
    world.repo.commit_file("main", "both.bin", pointer(&world.large).as_bytes());
    let refused = prepare(&agent, &world.url, "three", true).await.unwrap_err();
    assert_eq!(reason(&refused), "LFS_LIMIT", "{refused:?}");
}

#[test]
fn a_run_has_the_large_files_of_a_local_repository() {
    let world = World::new();
    let stoker = Stoker::new();
    let path = world.repo.path();
    let run = |more: &[&str]| {
        let mut words = vec!["run", "--repo", path.to_str().unwrap(), "--ref", "branch:main"];
        words.extend_from_slice(more);
        words.extend(["--", "sha256sum", LARGE, SMALL]);
        stoker.run(words)
    };
    let refused = run(&["--lfs"]).expect_code(125);
    assert!(refused.stderr.contains("git lfs fetch --all"), "{}", refused.stderr);
    for content in [&world.large, &world.small] {
        let name = oid(content);
        let dir = path.join("lfs/objects").join(&name[..2]).join(&name[2..4]);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), content).unwrap();
    }
    let expected = format!("{}  {LARGE}\n{}  {SMALL}\n", oid(&world.large), oid(&world.small));
    assert_eq!(run(&["--lfs"]).expect_code(0).stdout, expected);
    assert_ne!(run(&[]).expect_code(0).stdout, expected);
}

/// Configuration that `git lfs install` writes.
fn with_git_lfs(at: &Path) -> Command {
    let mut command = git(at);
    command.env("GIT_CONFIG_COUNT", "4").env("HOME", at);
    for (number, (key, value)) in [
        ("filter.lfs.clean", "git-lfs clean -- %f"),
        ("filter.lfs.smudge", "git-lfs smudge -- %f"),
        ("filter.lfs.required", "true"),
        ("safe.directory", "*"),
    ]
    .into_iter()
    .enumerate()
    {
        command.env(format!("GIT_CONFIG_KEY_{number}"), key).env(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
    command
}

#[tokio::test]
async fn a_workspace_is_what_git_lfs_makes() {
    if Command::new("git-lfs").arg("version").output().is_err() {
        eprintln!("SKIPPED: git-lfs is not installed here (.ci/run packages installs it)");
        return;
    }
    let world = World::new();
    let agent = Agent::start(LOOPBACK);
    let made = prepare(&agent, &world.url, "one", true).await.unwrap();
    let src = Path::new(&made.src);
    let place = tempfile::tempdir().unwrap();
    let cloned = with_git_lfs(place.path())
        .args(["clone", "--quiet", "--branch", "main", &world.url, "plain"])
        .output()
        .unwrap();
    assert!(cloned.status.success(), "{}", String::from_utf8_lossy(&cloned.stderr));
    let plain = place.path().join("plain");
    world.assert_content(&plain);
    let listed = |at: &Path| {
        let of = files(at).into_iter().map(|file| file.strip_prefix(at).unwrap().to_owned());
        of.filter(|file| !file.starts_with(".git")).collect::<Vec<_>>()
    };
    assert_eq!(listed(src), listed(&plain));
    for file in listed(&plain) {
        let (ours, theirs) = (src.join(&file), plain.join(&file));
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode();
        assert_eq!(mode(&ours), mode(&theirs), "{}", file.display());
        if !ours.is_symlink() {
            assert!(fs::read(&ours).unwrap() == fs::read(&theirs).unwrap(), "{}", file.display());
        }
    }
    let said = |at: &Path, words: &[&str]| {
        let output = with_git_lfs(at).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // `*`: the content is in its place.
    let names = said(src, &["lfs", "ls-files", "--long"]);
    assert_eq!(names, said(&plain, &["lfs", "ls-files", "--long"]));
    assert!(names.contains(&format!("{} * {LARGE}", oid(&world.large))), "{names}");
    assert_eq!(said(src, &["status", "--porcelain"]), "");
    // Also when git looks again, for then the filter makes the pointer of it.
    for name in [LARGE, SMALL] {
        let touched = fs::File::options().append(true).open(src.join(name)).unwrap();
        touched.set_modified(std::time::SystemTime::now()).unwrap();
    }
    assert_eq!(said(src, &["status", "--porcelain"]), "");
    assert_eq!(said(src, &["lfs", "status", "--porcelain"]), "");
    fs::write(src.join(SMALL), b"changed\n").unwrap();
    assert_eq!(said(src, &["status", "--porcelain"]), format!(" M {SMALL}\n"));
    assert_eq!(git_out(src, &["rev-parse", "HEAD"]), world.repo.commit("main"));
}

/// A top with a submodule that has large files, as has the submodule of that one.
struct Modules {
    world: World,
    _repos: [TestRepo; 2],
    url: String,
    deep: Vec<u8>,
}

/// Where the large file of the deeper submodule is, below that one.
const DEEP: &str = "deep file.bin";

impl Modules {
    fn new() -> Self {
        let world = World::new();
        let deep = b"deeper still\n".repeat(100);
        let attributes: &[u8] = b"*.bin filter=lfs diff=lfs merge=lfs -text\n";
        let leaf = TestRepo::empty();
        let pointer = world.upstream.large_files().put(&deep);
        let files: &[(&str, &str, &[u8])] =
            &[("100644", ".gitattributes", attributes), ("100644", DEEP, pointer.as_bytes())];
        let at = leaf.commit_tree("main", files, &[]);
        let leaf_url = world.upstream.host("team/leaf.git", &leaf);
        let modules = format!("[submodule \"leaf\"]\n\tpath = leaf\n\turl = {leaf_url}\n");
        let files: &[(&str, &str, &[u8])] = &[("100644", ".gitmodules", modules.as_bytes())];
        let commit = world.repo.commit_tree("main", files, &[("leaf", &at)]);
        let top = TestRepo::empty();
        let modules = format!("[submodule \"middle\"]\n\tpath = vendor/middle\n\turl = {}\n", world.url);
        let files: &[(&str, &str, &[u8])] =
            &[("100644", ".gitmodules", modules.as_bytes()), ("100644", "top.txt", b"top\n")];
        top.commit_tree("main", files, &[("vendor/middle", &commit)]);
        let url = world.upstream.host("team/top.git", &top);
        Self { world, _repos: [leaf, top], url, deep }
    }
}

async fn with_submodules(agent: &Agent, url: &str, id: &str, lfs: bool) -> Result<v1::Workspace, Status> {
    prepare_as(agent, url, id, v1::PrepareWorkspaceRequest { lfs, submodules: true, ..Default::default() }).await
}

#[tokio::test]
async fn submodules_have_their_large_files_too() {
    let modules = Modules::new();
    let agent = Agent::start(LOOPBACK);
    let workspace = with_submodules(&agent, &modules.url, "all", true).await.unwrap();
    let src = Path::new(&workspace.src);
    modules.world.assert_content(&src.join("vendor/middle"));
    assert!(fs::read(src.join("vendor/middle/leaf").join(DEEP)).unwrap() == modules.deep);
    assert_eq!(fs::read(src.join("top.txt")).unwrap(), b"top\n");
    // The one that is asked for each, and each of their objects once.
    assert_eq!(modules.world.counts(), LargeCounts { batches: 2, objects: 3 });
    for path in ["", "vendor/middle", "vendor/middle/leaf"] {
        assert_eq!(status(src.join(path).to_str().unwrap()), "", "{path}");
    }

    // A build's files are its own, there too.
    fs::write(src.join("vendor/middle").join(LARGE), b"changed").unwrap();
    modules.world.upstream.large_files().reset();
    let again = with_submodules(&agent, &modules.url, "again", true).await.unwrap();
    modules.world.assert_content(&Path::new(&again.src).join("vendor/middle"));
    assert_eq!(modules.world.counts(), LargeCounts::default());

    // Who does not ask gets what is committed.
    let plain = with_submodules(&agent, &modules.url, "plain", false).await.unwrap();
    let file = Path::new(&plain.src).join("vendor/middle").join(LARGE);
    assert_eq!(fs::read_to_string(file).unwrap(), pointer(&modules.world.large));
}

#[tokio::test]
async fn a_submodule_that_lacks_a_large_file_is_named_and_leaves_nothing() {
    let modules = Modules::new();
    let agent = Agent::start(LOOPBACK);
    with_submodules(&agent, &modules.url, "fill", false).await.unwrap();
    let workspaces = agent.root().join("pool/stoker/workspaces");
    let before = files(&workspaces).len();
    modules.world.fault(LargeFault::Gone);
    let refused = with_submodules(&agent, &modules.url, "gone", true).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::NotFound, "LFS_OBJECT_MISSING"), "{refused:?}");
    assert!(refused.message().contains("submodule \"vendor/middle\""), "{refused:?}");
    assert_eq!(files(&workspaces).len(), before);
}

#[tokio::test]
async fn large_files_of_submodules_belong_to_the_workspaces_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root gives files away");
        return;
    }
    let modules = Modules::new();
    let agent = Agent::start(LOOPBACK);
    let request = v1::PrepareWorkspaceRequest {
        lfs: true,
        submodules: true,
        user: Some(1234),
        group: Some(1235),
        ..Default::default()
    };
    let workspace = prepare_as(&agent, &modules.url, "owned", request).await.unwrap();
    let src = Path::new(&workspace.src);
    for path in ["vendor/middle/data/large.bin", ".git/modules/middle/index", ".git/modules/middle/modules/leaf/index"]
    {
        let meta = fs::metadata(src.join(path)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 1235), "{path}");
    }
    assert_eq!(status(&workspace.src), "");
}

#[tokio::test]
async fn one_mirror_that_hangs_holds_up_no_other() {
    let other = World::new();
    // Nothing that the other has too: objects are kept once, and who wants the same waits for it.
    let own = TestRepo::empty();
    let hanging = Upstream::start();
    let hanging_url = hanging.host("team/hangs.git", &own);
    own.commit_file("main", ".gitattributes", b"*.bin filter=lfs diff=lfs merge=lfs -text\n");
    own.commit_file("main", "own.bin", hanging.large_files().put(b"of its own").as_bytes());
    hanging.large_files().fault(LargeFault::Hang);
    let agent = Agent::start(&format!(
        "pools: [{{name: data, path: $ROOT/pool, mount: optional, floor: {{bytes: 1MiB, inodes: 10}}}}]\n\
         repositories: {{fetchWithin: 5s, allow: [127.0.0.1], protocols: [http], lfs: {{objectLimit: 2MiB}}, mirrors: \
         [{{url: \"{}\", lfs: true}}, {{url: \"{}\", lfs: true}}]}}\n\
         listen: {{socket: $ROOT/run/stoker.sock, http: {{address: \"127.0.0.1:$PORT\"}}}}\n",
        hanging_url, other.url
    ));
    let counted = |name: &str| {
        let (_, text) = agent.http_get("/metrics").unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok());
        value.unwrap_or_default()
    };
    wait::until(LIMIT, "the first is asked", || hanging.large_files().counts().objects > 0);
    wait::until(LIMIT, "the other's are here", || counted("stoker_lfs_objects_total") == 2);
    let bytes = u64::try_from(other.small.len() + other.large.len()).unwrap();
    assert_eq!(counted("stoker_lfs_fetched_bytes_total"), bytes);
    wait::until(LIMIT, "the first gave up", || counted("stoker_lfs_failures_total{reason=\"UPSTREAM_TIMEOUT\"}") > 0);
    assert_eq!(counted("stoker_lfs_refused_total{reason=\"LFS_LIMIT\"}"), 0);
    let large = pointer(&vec![7; 3 << 20]);
    other.repo.commit_file("main", "too-large.bin", large.as_bytes());
    // The commit is fetched first, which may take longer than that on a busy machine.
    let refused = async || reason(&prepare(&agent, &other.url, "too-large", true).await.unwrap_err()) == "LFS_LIMIT";
    wait::until_async(LIMIT, "what is too large is refused", refused).await;
    assert!(counted("stoker_lfs_refused_total{reason=\"LFS_LIMIT\"}") > 0);
}
