//! The harness itself: what other tests rely on holds.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::loopdev::{Kind, LoopFs, needs_root};
use crate::support::repository::{LATIN1, SPACED, SUBMODULE_COMMIT, TestRepo, git, git_out};
use crate::support::stoker::Stoker;
use crate::support::upstream::{Counts, Fault, Upstream};
use crate::support::wait;

/// How long git may take for anything here.
const LIMIT: Duration = Duration::from_secs(30);

/// Whether `git clone URL` works.
fn clone(url: &str, place: &Path) -> bool {
    let status = git(Path::new("/")).args(["clone", "--quiet", url]).arg(place).stderr(Stdio::null()).status();
    status.unwrap().success()
}

#[test]
fn a_plain_clone_through_the_upstream_gives_every_ref() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let place = tempfile::tempdir().unwrap();
    git_out(place.path(), &["clone", "--quiet", "--mirror", &url, "mirror.git"]);
    let lines = git_out(&place.path().join("mirror.git"), &["for-each-ref", "--format=%(refname) %(objectname)"]);
    let got: Vec<_> = lines.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let refs = repo.refs();
    let expected: Vec<_> = refs.iter().map(|(name, id)| (name.as_str(), id.as_str())).collect();
    assert_eq!(got, expected);
    let names: Vec<_> = expected.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "refs/heads/develop",
            "refs/heads/feature/with-slash",
            "refs/heads/main",
            "refs/pull/152/head",
            "refs/tags/v1.0",
            "refs/tags/v1.1-rc1",
        ]
    );
}

#[test]
fn the_standard_repository_is_what_it_says() {
    let repo = TestRepo::standard();
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("tree");
    repo.clone_to(&tree);
    assert!(git_out(&tree, &["describe"]).starts_with("v1.0-1-g"));
    assert_eq!(git_out(&tree, &["status", "--porcelain"]), "");
    assert_eq!(git_out(&tree, &["rev-parse", "HEAD:vendor/library"]), SUBMODULE_COMMIT);
    assert_eq!(std::fs::read(tree.join("run.bat")).unwrap(), b"echo one\r\necho two\r\n");
    assert!(tree.join(SPACED).is_file());
    assert!(tree.join(std::ffi::OsStr::from_bytes(LATIN1)).is_file());
    assert_eq!(std::fs::read_link(tree.join("latest")).unwrap(), Path::new("src/deep/er/nested.rs"));
    assert_eq!(std::fs::metadata(tree.join("empty")).unwrap().len(), 0);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(tree.join("build.sh")).unwrap().permissions());
    assert_ne!(mode & 0o100, 0);
    assert_eq!(git_out(&repo.path(), &["cat-file", "-t", "v1.0"]), "tag");
    assert_eq!(git_out(&repo.path(), &["cat-file", "-t", "v1.1-rc1"]), "commit");
    assert_eq!(git_out(&repo.path(), &["branch", "--contains", &repo.commit("refs/pull/152/head")]), "");
    assert_eq!(git_out(&repo.path(), &["for-each-ref", "--contains", repo.unreferenced()]), "");
    assert_eq!(TestRepo::standard().refs(), repo.refs(), "the same ids each time");
}

#[test]
fn changes_of_a_repository_are_what_they_say() {
    let repo = TestRepo::standard();
    let before = repo.commit("develop");
    let commit = repo.commit_file("develop", "new file", b"new\n");
    assert_eq!(repo.commit("develop~1"), before);
    assert_eq!(repo.commit("develop"), commit);
    repo.rename_file("develop", "new file", "renamed");
    assert_eq!(git_out(&repo.path(), &["show", "develop:renamed"]), "new");
    let forced = repo.force_push("develop", "v1.0", "forced", b"forced\n");
    assert_eq!(repo.commit("develop~1"), repo.commit("v1.0"));
    assert_ne!(forced, before);
    repo.rename_branch("main", "trunk");
    assert_eq!(git_out(&repo.path(), &["symbolic-ref", "HEAD"]), "refs/heads/trunk");
    repo.delete_branch("develop");
    assert!(!repo.refs().contains_key("refs/heads/develop"));
    let first = TestRepo::empty();
    assert_eq!(first.commit_file("main", "a", b"a"), first.commit("HEAD"));
}

#[test]
fn a_generated_repository_has_the_files_and_the_commits() {
    let repo = TestRepo::generated(2_000, 2_000_000, 3);
    assert_eq!(git_out(&repo.path(), &["ls-tree", "-r", "--name-only", "main"]).lines().count(), 2_000);
    assert_eq!(git_out(&repo.path(), &["rev-list", "--count", "main"]), "3");
    assert_eq!(git_out(&repo.path(), &["diff", "--name-only", "main~1", "main"]).lines().count(), 100);
}

#[test]
fn requests_are_counted_by_kind() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let place = tempfile::tempdir().unwrap();
    git_out(place.path(), &["ls-remote", &url]);
    assert_eq!(upstream.requests(), Counts { info_refs: 1, ls_refs: 1, ..Counts::default() });
    upstream.reset();
    git_out(place.path(), &["clone", "--quiet", &url, "tree"]);
    let counts = upstream.requests();
    assert_eq!((counts.info_refs, counts.ls_refs, counts.fetches), (1, 1, 1), "{counts:?}");
    upstream.reset();
    git_out(&place.path().join("tree"), &["fetch", "--quiet"]);
    assert_eq!(upstream.requests().fetches, 0, "nothing to fetch");
    upstream.reset();
    git_out(place.path(), &["-c", "protocol.version=0", "clone", "--quiet", &url, "old"]);
    assert_eq!(upstream.requests(), Counts { info_refs: 1, fetches: 1, ..Counts::default() });
}

/// git compresses long requests and sends very long ones in chunks, also both at once.
#[test]
fn compressed_and_chunked_requests_are_counted_and_answered() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let plain = b"0014command=ls-refs\n00010015ref-prefix refs/\n0000".as_slice();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(plain).unwrap();
    let compressed = encoder.finish().unwrap();
    for (number, (body, encoding)) in [(plain, ""), (&compressed, "Content-Encoding: gzip\r\n")].into_iter().enumerate()
    {
        for chunked in [false, true] {
            let mut request = format!(
                "POST /team/project.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nConnection: close\r\nGit-Protocol: \
                 version=2\r\nContent-Type: application/x-git-upload-pack-request\r\n{encoding}"
            )
            .into_bytes();
            if chunked {
                request.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                for piece in body.chunks(5) {
                    request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                    request.extend_from_slice(piece);
                    request.extend_from_slice(b"\r\n");
                }
                request.extend_from_slice(b"0\r\n\r\n");
            } else {
                request.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                request.extend_from_slice(body);
            }
            upstream.reset();
            let mut stream = TcpStream::connect(url.split('/').nth(2).unwrap()).unwrap();
            stream.write_all(&request).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("refs/pull/152/head"), "{number} {answer}");
            assert_eq!(upstream.requests(), Counts { ls_refs: 1, ..Counts::default() }, "{number} {chunked}");
        }
    }
}

#[test]
fn several_repositories_are_served_and_a_missing_one_is_not() {
    let (one, two) = (TestRepo::standard(), TestRepo::standard().fork());
    two.commit_file("main", "fork", b"fork\n");
    let upstream = Upstream::start();
    let (first, second) = (upstream.host("a/project.git", &one), upstream.host("deep/er/b.git", &two));
    let place = tempfile::tempdir().unwrap();
    assert!(git_out(place.path(), &["ls-remote", &first, "HEAD"]).starts_with(&one.commit("main")));
    assert!(git_out(place.path(), &["ls-remote", &second, "HEAD"]).starts_with(&two.commit("main")));
    assert!(!clone(&upstream.url("a/missing.git"), &place.path().join("missing")));
    upstream.forget("a/project.git");
    assert!(!clone(&first, &place.path().join("gone")));
}

#[test]
fn a_stopped_upstream_refuses_and_comes_back_on_its_port() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let place = tempfile::tempdir().unwrap();
    for round in 0..3 {
        upstream.stop();
        assert!(!clone(&url, &place.path().join("refused")));
        upstream.resume();
        assert!(clone(&url, &place.path().join(format!("tree{round}"))));
    }
}

#[test]
fn a_status_is_answered_to_all() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.fault(Fault::Status(500));
    let output = git(Path::new("/")).args(["ls-remote", &url]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("500"), "{output:?}");
    assert_eq!(upstream.requests().info_refs, 1);
    upstream.fault(Fault::None);
    assert!(git(Path::new("/")).args(["ls-remote", &url]).output().unwrap().status.success());
}

#[test]
fn a_cut_pack_fails_the_fetch_and_not_the_refs() {
    let repo = TestRepo::generated(200, 400_000, 1);
    let (upstream, url) = Upstream::of(&repo);
    let place = tempfile::tempdir().unwrap();
    upstream.fault(Fault::CutPack(50_000));
    assert!(git_out(place.path(), &["ls-remote", &url]).contains("refs/heads/main"));
    assert!(!clone(&url, &place.path().join("cut")));
    assert_eq!(upstream.requests().fetches, 1);
    upstream.fault(Fault::None);
    assert!(clone(&url, &place.path().join("whole")));
}

#[test]
fn a_request_that_hangs_is_answered_when_the_fault_ends() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.fault(Fault::Hang);
    let mut child = git(Path::new("/")).args(["ls-remote", &url]).stdout(Stdio::null()).spawn().unwrap();
    wait::until(LIMIT, "the request came", || upstream.requests().info_refs == 1);
    assert!(child.try_wait().unwrap().is_none());
    upstream.fault(Fault::None);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_delay_is_on_each_request() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let delay = Duration::from_millis(150);
    upstream.delay(delay);
    let start = Instant::now();
    git_out(Path::new("/"), &["ls-remote", &url]);
    let total = u32::try_from(upstream.requests().total()).unwrap();
    assert!(start.elapsed() >= delay * total, "{:?}", start.elapsed());
}

#[test]
fn the_backend_ends_when_the_client_goes() {
    // Larger than every buffer between: the backend is in the middle of its answer when the client goes.
    let repo = TestRepo::generated(400, 60_000_000, 1);
    let (upstream, url) = Upstream::of(&repo);
    let mut stream = TcpStream::connect(url.split('/').nth(2).unwrap()).unwrap();
    let want = format!("0032want {}\n00000009done\n", repo.commit("main"));
    let request = format!(
        "POST /team/project.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Type: \
         application/x-git-upload-pack-request\r\nContent-Length: {}\r\n\r\n{want}",
        want.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    wait::until(LIMIT, "the answer began", || {
        let mut byte = [0];
        matches!(stream.read(&mut byte), Ok(1))
    });
    assert_eq!(upstream.children(), 1);
    drop(stream);
    wait::until(LIMIT, "the backend ended", || upstream.children() == 0);
}

#[tokio::test]
async fn a_condition_that_never_holds_fails_within_its_limit() {
    assert!(!wait::holds_within(Duration::from_millis(20), || false));
    let waiting = tokio::spawn(wait::until_async(Duration::from_millis(20), "never", || async { false }));
    assert!(waiting.await.is_err_and(|error| error.is_panic()));
    let mut looks = 0;
    wait::until(LIMIT, "the third look", || {
        looks += 1;
        looks == 3
    });
}

#[test]
fn filesystems_are_mounted_and_gone_after_a_panic() {
    needs_root!();
    for (kind, name, size) in
        [(Kind::Ext4, "ext4", 32 << 20), (Kind::Xfs, "xfs", 320 << 20), (Kind::Btrfs, "btrfs", 128 << 20)]
    {
        let mut filesystem = LoopFs::new(kind, size);
        let path = filesystem.path().to_owned();
        let mounts = || std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = format!(" {} {name} ", path.display());
        assert!(mounts().contains(&line));
        assert_eq!(filesystem.uuid().len(), 36);
        std::fs::write(path.join("file"), b"kept").unwrap();
        filesystem.unmount();
        assert!(!mounts().contains(&line));
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        filesystem.mount();
        assert_eq!(std::fs::read(path.join("file")).unwrap(), b"kept");
        let image = path.parent().unwrap().join("image");
        let panicked = std::panic::catch_unwind(move || {
            let _held = (filesystem, std::fs::File::open("/dev/null").unwrap());
            std::panic::resume_unwind(Box::new("as asked"));
        });
        assert!(panicked.is_err());
        assert!(!mounts().contains(&line));
        assert!(!image.exists());
    }
}

/// What a closure that panics says.
fn panic_of(action: impl FnOnce()) -> String {
    *std::panic::catch_unwind(AssertUnwindSafe(action)).unwrap_err().downcast::<String>().unwrap()
}

/// Whether this process runs. One that nobody reaped yet (`Z`) does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn a_command_gives_its_code_its_signal_and_what_it_wrote() {
    let stoker = Stoker::new();
    let output = stoker.program("sh", ["-c", "echo out; echo err >&2; exit 7"]).run();
    assert_eq!((output.code(), output.signal()), (Some(7), None));
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    let running = stoker.program("sleep", ["1000"]).spawn();
    running.signal(nix::sys::signal::Signal::SIGTERM);
    let output = running.wait();
    assert_eq!((output.code(), output.signal()), (None, Some(15)));
}

#[test]
fn a_command_sees_only_its_own_home() {
    let stoker = Stoker::new();
    let output = stoker.program("env", [""; 0]).env("EXTRA", "1").run().expect_code(0);
    let home = stoker.home().to_str().unwrap();
    for line in output.stdout.lines() {
        let (name, value) = line.split_once('=').unwrap();
        let known = matches!(name, "PATH" | "LC_ALL" | "RUST_BACKTRACE" | "EXTRA");
        assert!(known || value.starts_with(home), "{line}");
    }
    assert!(output.stdout.contains(&format!("STOKER_SOCKET={}\n", stoker.socket().display())));
    assert!(output.stdout.contains(&format!("XDG_STATE_HOME={}\n", stoker.state().display())));
}

#[test]
fn a_command_past_its_deadline_is_killed_with_its_children() {
    let stoker = Stoker::new();
    let pid = stoker.home().join("pid");
    let command = stoker.program("sh", ["-c", "sleep 1000 & echo $! > pid; echo began; wait"]);
    let said = panic_of(move || drop(command.deadline(Duration::from_secs(5)).run()));
    assert!(said.contains("did not end within 5s") && said.contains("began"), "{said}");
    let pid = std::fs::read_to_string(pid).unwrap();
    wait::until(LIMIT, "the child ended", || !runs(&pid));
}

#[test]
fn a_command_that_leaves_processes_behind_is_a_failure() {
    let stoker = Stoker::new();
    let pid = stoker.home().join("pid");
    let command = stoker.program("sh", ["-c", "sleep 1000 & echo $! > pid"]);
    let said = panic_of(move || drop(command.run()));
    assert!(said.contains("left processes that hold its output"), "{said}");
    let pid = std::fs::read_to_string(pid).unwrap();
    wait::until(LIMIT, "the child ended", || !runs(&pid));
}
