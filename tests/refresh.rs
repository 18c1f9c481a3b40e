//! What it costs to ask upstream what it has, and what becomes of upstreams that cannot be asked so.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use rustix::io::Errno;
use stoker_proto::v1::{self, Origin};
use tonic::{Code, Request, Status};

use crate::resolve::LOOPBACK;
use crate::support::repository::{TestRepo, git_out};
use crate::support::stoker::Agent;
use crate::support::upstream::{Counts, Fault, Upstream};
use crate::support::wait;
use crate::support::wire::{reason, source};

const LIMIT: Duration = Duration::from_secs(60);

/// A deadline that leaves no time to ask a second time for a ref that may come late.
const HURRY: Duration = Duration::from_millis(900);

/// One question and its answer; nothing else.
const ONE_ROUND_TRIP: Counts = Counts { info_refs: 0, ls_refs: 1, fetches: 0, others: 0 };

async fn resolve(agent: &Agent, source: v1::Source) -> Result<v1::Resolved, Status> {
    let mut request = Request::new(v1::ResolveSourceRequest { source: Some(source) });
    request.set_timeout(LIMIT);
    agent.repository().await.resolve_source(request).await.map(|answer| answer.into_inner().resolved.unwrap())
}

/// What git is started for here; anything else is `other`.
const COMMANDS: [&str; 6] = ["version", "ls-remote", "clone", "fetch", "cat-file", "other"];

/// The starts of git, each by its command. A contained git can write nowhere that would tell of it, but it may read
/// where programs are: so a stand-in opens a file that is named as its command is, and the kernel reports that.
struct Starts {
    opened: OwnedFd,
    seen: RefCell<Vec<String>>,
}

impl Starts {
    fn watch(dir: &Path) -> Self {
        let opened = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        // Two equal events in a row are reported as one: the close between them keeps them apart.
        inotify::add_watch(&opened, dir, inotify::WatchFlags::OPEN | inotify::WatchFlags::CLOSE_NOWRITE).unwrap();
        Self { opened, seen: RefCell::default() }
    }

    /// All until now, in their order.
    fn so_far(&self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.opened, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(inotify::ReadFlags::OPEN) => {
                    let name = event.file_name().map(|name| name.to_str().unwrap().to_owned());
                    self.seen.borrow_mut().extend(name);
                }
                Ok(_) => {}
                Err(Errno::AGAIN) => return self.seen.borrow().clone(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn of(&self, command: &str) -> usize {
        self.so_far().iter().filter(|started| *started == command).count()
    }
}

/// An agent whose starts of git are seen.
fn counted_agent(configuration: &str) -> (Agent, Starts) {
    let mut agent = Agent::prepare(configuration);
    let bin = agent.root().join("bin");
    let files = bin.join("commands");
    std::fs::create_dir_all(&files).unwrap();
    COMMANDS.iter().for_each(|command| std::fs::write(files.join(command), "").unwrap());
    let starts = Starts::watch(&files);
    let path = std::env::var("PATH").unwrap();
    let git = std::env::split_paths(&path).map(|dir| dir.join("git")).find(|git| git.is_file()).unwrap();
    let script = format!(
        "#!/bin/sh\nfile='{dir}'/\"$1\"\n[ -f \"$file\" ] || file='{dir}/other'\n: < \"$file\"\nexec '{git}' \"$@\"\n",
        dir = files.display(),
        git = git.display()
    );
    std::fs::write(bin.join("git"), script).unwrap();
    std::fs::set_permissions(bin.join("git"), std::fs::Permissions::from_mode(0o755)).unwrap();
    agent.env("PATH", format!("{}:{path}", bin.display()));
    agent.launch();
    agent.wait_ready();
    (agent, starts)
}

#[tokio::test]
async fn a_refresh_that_finds_nothing_is_one_round_trip_and_no_child() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let (agent, started) = counted_agent(LOOPBACK);
    let first = resolve(&agent, source(&url, "branch:main")).await.unwrap();
    assert_eq!(started.of("clone"), 1, "what git is started for is seen: {:?}", started.so_far());
    for reference in ["branch:main", "tag:v1.0", "head"] {
        upstream.reset();
        let before = started.so_far();
        let again = resolve(&agent, source(&url, reference)).await.unwrap();
        assert_eq!((again.origin(), &again.snapshot), (Origin::Upstream, &first.snapshot), "{reference}");
        assert_eq!(upstream.requests(), ONE_ROUND_TRIP, "{reference}");
        assert_eq!(started.so_far(), before, "{reference}");
    }
    // What is new is seen so too: a branch that moved, one that went, another default.
    let new = repo.commit_file("main", "new", b"new\n");
    repo.delete_branch("develop");
    repo.set_head("feature/with-slash");
    upstream.reset();
    assert_eq!(resolve(&agent, source(&url, "branch:main")).await.unwrap().commit, new);
    assert_eq!((upstream.requests().ls_refs, upstream.requests().fetches), (2, 1), "ours, and that of the fetch");
    let gone = resolve(&agent, source(&url, "branch:develop")).await.unwrap_err();
    assert_eq!(reason(&gone), "REF_NOT_FOUND");
    assert_eq!(resolve(&agent, source(&url, "head")).await.unwrap().clone_ref, "refs/heads/feature/with-slash");
    assert_eq!((started.of("ls-remote"), started.of("fetch")), (0, 1), "{:?}", started.so_far());
    // A HEAD that names nothing is no news each time.
    repo.set_head("no/such");
    let unborn = resolve(&agent, source(&url, "branch:main")).await.unwrap();
    let before = started.so_far();
    let again = resolve(&agent, source(&url, "branch:main")).await.unwrap();
    assert_eq!((again.snapshot, started.so_far()), (unborn.snapshot, before));
}

#[tokio::test]
async fn an_upstream_of_protocol_0_is_left_to_git() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let other = upstream.host("team/other.git", &repo);
    upstream.fault(Fault::Protocol0);
    let (agent, started) = counted_agent(LOOPBACK);
    assert_eq!(resolve(&agent, source(&url, "branch:main")).await.unwrap().commit, repo.commit("main"));
    assert_eq!(started.of("ls-remote"), 1, "{:?}", started.so_far());
    // From then on it is not asked in vain, nor is another repository of its host.
    for url in [&url, &other] {
        resolve(&agent, source(url, "branch:main")).await.unwrap();
        upstream.reset();
        let found = resolve(&agent, source(url, "branch:main")).await.unwrap();
        assert_eq!((found.origin(), upstream.requests().ls_refs), (Origin::Upstream, 0));
        assert_eq!(upstream.requests().info_refs, 1);
    }
}

#[tokio::test]
async fn a_repository_that_moved_is_followed_by_git_where_it_is_declared() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let moved = upstream.moved_url("team/project.git");
    let declared = format!(
        "pools: [{{name: data, path: $ROOT/pool, mount: optional, floor: {{bytes: 1MiB, inodes: 10}}}}]\n\
         repositories: {{add: on-demand, allow: [127.0.0.1], protocols: [http], mirrors: [{{url: \"{moved}\"}}]}}\n"
    );
    let agent = Agent::start(&declared);
    assert_eq!(resolve(&agent, source(&moved, "branch:main")).await.unwrap().commit, repo.commit("main"));
    upstream.reset();
    resolve(&agent, source(&moved, "branch:main")).await.unwrap();
    let asked = upstream.requests();
    assert_eq!((asked.others, asked.fetches), (0, 0), "it is known to redirect: {asked:?}");
    // Another one of the same host answers for itself.
    resolve(&agent, source(&url, "branch:main")).await.unwrap();
    upstream.reset();
    resolve(&agent, source(&url, "branch:main")).await.unwrap();
    assert_eq!(upstream.requests(), ONE_ROUND_TRIP);
    // One that nobody declared is not followed anywhere.
    let undeclared = upstream.moved_url("team/undeclared.git");
    let refused = resolve(&agent, source(&undeclared, "branch:main")).await.unwrap_err();
    assert_eq!(reason(&refused), "UPSTREAM_NOT_FOUND");
    assert!(refused.message().contains("redirects"), "{refused:?}");
}

#[tokio::test]
async fn an_endless_list_of_refs_ends_with_its_reason() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(LOOPBACK);
    let before = resolve(&agent, source(&url, "branch:main")).await.unwrap();
    upstream.fault(Fault::EndlessRefs);
    let refused = resolve(&agent, source(&url, "branch:main")).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "UPSTREAM_UNREACHABLE"));
    assert!(refused.message().contains("more than 67108864 bytes"), "{}", refused.message());
    let stale = v1::Source { allow_stale: true, ..source(&url, "branch:main") };
    let found = resolve(&agent, stale).await.unwrap();
    assert_eq!((found.origin(), found.snapshot), (Origin::Stale, before.snapshot), "the old snapshot serves");
}

#[tokio::test]
async fn objects_that_are_named_by_sha256_are_refused() {
    let repo = TestRepo::empty();
    let sha256 = repo.path().join("../sha256.git");
    let at = sha256.parent().unwrap();
    git_out(at, &["init", "--quiet", "--bare", "--object-format=sha256", "--initial-branch=main", "sha256.git"]);
    let tree = git_out(&sha256, &["hash-object", "-w", "-t", "tree", "/dev/null"]);
    let commit = git_out(&sha256, &["commit-tree", "-m", "first", &tree]);
    git_out(&sha256, &["update-ref", "refs/heads/main", &commit]);
    let upstream = Upstream::start();
    std::os::unix::fs::symlink(&sha256, upstream.root().join("sha256.git")).unwrap();
    let agent = Agent::start(LOOPBACK);
    for _ in 0..2 {
        let refused = resolve(&agent, source(&upstream.url("sha256.git"), "branch:main")).await.unwrap_err();
        assert_eq!(reason(&refused), "OBJECT_FORMAT_UNSUPPORTED", "{refused:?}");
    }
}

#[tokio::test]
async fn a_pull_request_that_appears_late_is_found() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(LOOPBACK);
    resolve(&agent, source(&url, "branch:main")).await.unwrap();
    upstream.reset();
    let asked = async { resolve(&agent, source(&url, "pr:200")).await };
    let appears = async {
        wait::until_async(LIMIT, "upstream was asked in vain", || async { upstream.requests().ls_refs > 0 }).await;
        // The first answer must not see it: it is made from what there is when the question comes.
        wait::until_async(LIMIT, "and answered", || async { upstream.children() == 0 }).await;
        repo.set_ref("refs/pull/200/head", "develop");
    };
    let (found, ()) = tokio::join!(asked, appears);
    let found = found.unwrap();
    assert_eq!((found.commit, found.clone_ref.as_str()), (repo.commit("develop"), "refs/pull/200/head"));

    // A caller in a hurry is told at once, after one question. A machine that is busy for a moment says nothing of that.
    let told_at_once = async || {
        upstream.reset();
        let begun = Instant::now();
        let mut request = Request::new(v1::ResolveSourceRequest { source: Some(source(&url, "pr:201")) });
        request.set_timeout(HURRY);
        let refused = agent.repository().await.resolve_source(request).await.unwrap_err();
        reason(&refused) == "REF_NOT_FOUND" && begun.elapsed() < HURRY && upstream.requests().ls_refs == 1
    };
    wait::until_async(LIMIT, "who is in a hurry is told at once", told_at_once).await;
}
