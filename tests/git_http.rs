//! Git over HTTP: unmodified clients get from the node what upstream would give them, and nothing else.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stoker_proto::v1;

use crate::support::repository::{TestRepo, git, git_out};
use crate::support::stoker::{Agent, Stoker};
use crate::support::upstream::Upstream;
use crate::support::wait;

const LISTEN: &str = "listen: {socket: $ROOT/run/stoker.sock, http: {address: \"127.0.0.1:$PORT\"}}\n\
                      pools: [{name: data, path: $ROOT/pool, mount: optional, floor: {bytes: 1MiB, inodes: 1}}]\n";
const LIMIT: Duration = Duration::from_secs(60);

/// An agent that takes any repository of this machine.
fn node(more: &str) -> Agent {
    Agent::start(&format!(
        "{LISTEN}repositories: {{refresh: 1h, add: on-demand, allow: [127.0.0.1], protocols: [http]{more}}}\n"
    ))
}

/// Where the agent serves what is at `url`.
fn served(agent: &Agent, url: &str) -> String {
    format!("http://127.0.0.1:{}/git/{}", agent.http_port(), url.strip_prefix("http://").unwrap())
}

/// A folder for what clients make, and git in it.
struct Clients(tempfile::TempDir);

impl Clients {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("clients-").tempdir().unwrap())
    }

    fn place(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    #[track_caller]
    fn git(&self, args: &[&str]) -> String {
        git_out(self.0.path(), args)
    }

    /// What a command that must fail says.
    #[track_caller]
    fn refused(&self, args: &[&str]) -> String {
        let output = git(self.0.path()).args(args).output().unwrap();
        assert!(!output.status.success(), "git {args:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// Branches and tags with what they name, and HEAD.
fn refs(at: &Path) -> String {
    let all =
        git_out(at, &["for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", "refs/heads", "refs/tags"]);
    format!("{all}\n{}", git_out(at, &["symbolic-ref", "HEAD"]))
}

/// All objects that the refs reach, with their types and sizes.
fn objects(at: &Path) -> String {
    let list = git_out(at, &["rev-list", "--objects", "--no-object-names", "--branches", "--tags"]);
    let mut child = git(at);
    let file = at.join("list-of-objects");
    std::fs::write(&file, list + "\n").unwrap();
    let child = child.args(["cat-file", "--batch-check"]).stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    std::fs::remove_file(file).unwrap();
    let mut lines: Vec<_> = String::from_utf8(child.stdout).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines.join("\n")
}

/// A value of `/metrics`; 0 where it is not there.
fn metric(agent: &Agent, name: &str) -> f64 {
    let (_, text) = agent.http_get("/metrics").unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

/// An answer over a connection of its own.
struct Raw {
    stream: TcpStream,
    status: u16,
    headers: BTreeMap<String, String>,
    /// What came of the body with the head.
    begun: Vec<u8>,
}

impl Raw {
    /// Sends a request; reads the answer's head. HTTP/1.0: the body is not chunked and ends with the connection.
    fn send(agent: &Agent, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", agent.http_port())).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let version = if headers.iter().any(|(name, _)| *name == "Transfer-Encoding") { "1.1" } else { "1.0" };
        let mut head = format!("{method} {path} HTTP/{version}\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        if version == "1.0" && method == "POST" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).unwrap();
        let mut begun = Vec::new();
        let end = loop {
            if let Some(at) = begun.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            let mut byte = [0; 1];
            // A read with a time limit is interrupted by signals (signal(7)); this one goes on then.
            let read = stream.read_exact(&mut byte);
            read.unwrap_or_else(|error| panic!("{error} after {}", String::from_utf8_lossy(&begun)));
            begun.push(byte[0]);
        };
        let head = String::from_utf8(begun[..end].to_vec()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Self { stream, status, headers, begun: begun[end + 4..].to_vec() }
    }

    fn fetch(agent: &Agent, url: &str, body: &[u8]) -> Self {
        let path = served(agent, url) + "/git-upload-pack";
        let path = path.split_once("/git/").unwrap().1;
        let headers = [("Content-Type", "application/x-git-upload-pack-request"), ("Git-Protocol", "version=2")];
        Self::send(agent, "POST", &format!("/git/{path}"), &headers, body)
    }

    fn rest(mut self) -> Vec<u8> {
        let mut body = std::mem::take(&mut self.begun);
        self.stream.read_to_end(&mut body).unwrap();
        body
    }
}

/// Lines as packets.
fn packets(lines: &[&str]) -> Vec<u8> {
    let packet = |line: &&str| match *line {
        "0000" | "0001" => line.to_string(),
        line => format!("{:04x}{line}\n", line.len() + 5),
    };
    lines.iter().map(packet).collect::<String>().into_bytes()
}

/// A whole clone's request in version 2.
fn whole(commit: &str) -> Vec<u8> {
    packets(&[
        "command=fetch",
        "agent=test",
        "0001",
        "ofs-delta",
        "no-progress",
        &format!("want {commit}"),
        "done",
        "0000",
    ])
}

#[test]
fn clones_are_what_upstream_gives_in_every_version() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = node("");
    let (from, clients) = (served(&agent, &url), Clients::new());
    clients.git(&["clone", "--quiet", "--bare", &url, "plain"]);
    let plain = clients.place("plain");
    let expected = (refs(&plain), objects(&plain));
    clients.git(&["ls-remote", &from]);
    upstream.reset();
    for version in ["0", "1", "2"] {
        let version = format!("protocol.version={version}");
        for (kind, option) in [("bare", "--bare"), ("mirror", "--mirror")] {
            let name = format!("{kind}-{version}");
            clients.git(&["-c", &version, "clone", "--quiet", option, &from, &name]);
            let at = clients.place(&name);
            git_out(&at, &["fsck", "--strict"]);
            assert_eq!((refs(&at), objects(&at)), expected, "{name}");
        }
        let listed = clients.git(&["-c", &version, "ls-remote", "--symref", "--heads", "--tags", &from]);
        assert_eq!(listed, clients.git(&["ls-remote", "--symref", "--heads", "--tags", plain.to_str().unwrap()]));

        let shallow = format!("shallow-{version}");
        clients.git(&["-c", &version, "clone", "--quiet", "--depth", "1", &from, &shallow]);
        let at = clients.place(&shallow);
        assert_eq!(git_out(&at, &["rev-list", "HEAD"]), repo.commit("main"));
        assert_eq!(git_out(&at, &["rev-parse", "HEAD^{tree}"]), git_out(&plain, &["rev-parse", "main^{tree}"]));
        git_out(&at, &["-c", &version, "fetch", "--quiet", "--unshallow"]);
        assert_eq!(git_out(&at, &["rev-list", "HEAD"]), git_out(&plain, &["rev-list", "main"]));

        let partial = format!("partial-{version}");
        clients.git(&["-c", &version, "clone", "--quiet", "--filter=blob:none", "--no-checkout", &from, &partial]);
        let at = clients.place(&partial);
        let missing = git_out(&at, &["rev-list", "--objects", "--all", "--missing=print"]);
        assert!(missing.lines().any(|line| line.starts_with('?')), "nothing was left out");
        git_out(&at, &["-c", &version, "checkout", "--quiet", "develop"]);
        assert_eq!(std::fs::read(at.join("develop.txt")).unwrap(), b"two\n");
        assert_eq!(git_out(&at, &["status", "--porcelain"]), "");

        let by_id = format!("by-id-{version}");
        clients.git(&["init", "--quiet", &by_id]);
        let (at, commit) = (clients.place(&by_id), repo.commit("develop~1"));
        git_out(&at, &["-c", &version, "fetch", "--quiet", &from, &commit]);
        assert_eq!(git_out(&at, &["rev-parse", "FETCH_HEAD"]), commit);
    }
    assert_eq!(upstream.requests().total(), 0, "all of that was here");
    assert!(metric(&agent, "stoker_git_sent_bytes_total") > 1000.0);
}

#[test]
fn what_no_ref_reaches_is_refused() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = node("");
    let (from, clients) = (served(&agent, &url), Clients::new());
    clients.git(&["init", "--quiet", "--bare", "."]);
    let (gone, never) = (repo.unreferenced(), "1".repeat(40));
    for version in ["0", "2"] {
        // The first time it is looked for upstream, which gives it out; then it is here, and still nobody's.
        for id in [gone, gone, &never] {
            let said = clients.refused(&["-c", &format!("protocol.version={version}"), "fetch", &from, id]);
            assert!(said.contains(&format!("not our ref {id}")), "version {version}: {said}");
        }
    }
    assert_eq!(metric(&agent, "stoker_git_requests_total{outcome=\"refused\"}"), 6.0);
    // A pull request's commit is upstream's, and so may be had; its ref is listed to who names it.
    let pull = repo.refs()["refs/pull/152/head"].clone();
    clients.git(&["fetch", "--quiet", &from, &pull]);
    assert!(!clients.git(&["ls-remote", &from]).contains("refs/pull/"));
    clients.git(&["fetch", "--quiet", &from, "refs/pull/152/head"]);
    assert_eq!(clients.git(&["rev-parse", "FETCH_HEAD"]), pull);
}

#[test]
fn another_trust_class_looks_as_if_it_were_not_there() {
    let (open, closed) = (TestRepo::standard(), TestRepo::standard());
    closed.commit_file("main", "secret.txt", b"a secret\n");
    let upstream = Upstream::start();
    let (open_url, closed_url) = (upstream.host("team/open", &open), upstream.host("team/closed", &closed));
    let agent = Agent::start(&format!(
        "{LISTEN}repositories: {{protocols: [http], mirrors: [{{url: {open_url}}}, {{url: {closed_url}, trust: secret}}]}}\n"
    ));
    let (from, clients) = (served(&agent, &open_url), Clients::new());
    wait::until(LIMIT, "both are filled", || {
        let shown = agent.stoker().run(["repo", "list", "-o", "json"]).expect_code(0).json();
        shown["repositories"]
            .as_array()
            .unwrap()
            .iter()
            .all(|one| one["snapshot"].as_str().is_some_and(|name| !name.is_empty()))
    });
    clients.git(&["clone", "--quiet", "--bare", &from, "."]);
    let told = |url: &str| {
        let path = served(&agent, url) + "/info/refs?service=git-upload-pack";
        let raw = Raw::send(&agent, "GET", path.split_once(&format!(":{}", agent.http_port())).unwrap().1, &[], b"");
        (raw.status, String::from_utf8(raw.rest()).unwrap())
    };
    let (hidden, unknown) = (told(&closed_url), told(&upstream.url("team/unknown")));
    assert_eq!(unknown.0, 404);
    assert_eq!((hidden.0, hidden.1.replace("closed", "unknown")), unknown);
    let blob = git_out(&closed.path(), &["rev-parse", "main:secret.txt"]);
    for id in [blob, closed.commit("main")] {
        let said = clients.refused(&["fetch", &from, &id]);
        assert!(said.contains(&format!("not our ref {id}")), "{said}");
    }
}

#[test]
fn a_mirror_of_very_many_refs_is_what_upstream_gives() {
    let repo = TestRepo::generated(60, 20_000, 10);
    let commits = git_out(&repo.path(), &["rev-list", "main"]);
    let commits: Vec<&str> = commits.lines().collect();
    repo.name_often(commits.iter().copied().cycle().take(5_100));
    // What the default branch does not lead to: another history, tags of tags, a tag of a file.
    let at = repo.path();
    let tree = git_out(&at, &["mktree"]);
    let other = git_out(&at, &["commit-tree", &tree, "-m", "another history"]);
    git_out(&at, &["update-ref", "refs/heads/orphan", &other]);
    git_out(&at, &["tag", "-a", "-m", "of the other history", "annotated", &other]);
    git_out(&at, &["tag", "-a", "-m", "of a tag", "nested", "annotated"]);
    let file = git_out(&at, &["rev-parse", "main:tree000/dir000/file000000.txt"]);
    git_out(&at, &["tag", "file", &file]);
    let (upstream, url) = Upstream::of(&repo);
    let agent = node("");
    let (from, clients) = (served(&agent, &url), Clients::new());
    clients.git(&["clone", "--quiet", "--mirror", &from, "ours"]);
    let asked = upstream.requests();
    assert_eq!((asked.ls_refs, asked.fetches), (2, 1), "all refs; branches, and all objects");
    clients.git(&["clone", "--quiet", "--mirror", &url, "theirs"]);
    let (ours, theirs) = (clients.place("ours"), clients.place("theirs"));
    assert_eq!(refs(&ours), refs(&theirs));
    assert_eq!(objects(&ours), objects(&theirs));
    git_out(&ours, &["fsck", "--no-dangling", "--no-progress"]);
    // Begun with a branch that somebody waits for, and with HEAD on no branch.
    git_out(&at, &["update-ref", "--no-deref", "HEAD", &other]);
    let second = node("");
    let socket = second.socket();
    let asked = ["resolve", &url, "branch:orphan", "--socket", socket.to_str().unwrap()];
    second.stoker().run(asked).expect_code(0);
    clients.git(&["clone", "--quiet", "--mirror", &served(&second, &url), "second"]);
    let second = clients.place("second");
    let listed = |at: &Path| git_out(at, &["for-each-ref", "--format=%(refname) %(objectname) %(*objectname)"]);
    assert_eq!(listed(&second), listed(&theirs));
    git_out(&second, &["fsck", "--no-dangling", "--no-progress"]);
    git_out(&at, &["symbolic-ref", "HEAD", "refs/heads/main"]);
    // What is new comes as ever.
    let new = repo.commit_file("main", "new.txt", b"new\n");
    agent.stoker().run(["repo", "refresh", &url, "--socket", agent.socket().to_str().unwrap()]).expect_code(0);
    clients.git(&["-C", "ours", "fetch", "--quiet", "origin"]);
    assert_eq!(git_out(&ours, &["rev-parse", "main"]), new);
}

#[test]
fn lists_of_refs_are_fresh_or_say_that_they_are_not() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent =
        Agent::start(&format!("{LISTEN}repositories: {{refresh: 1s, protocols: [http], mirrors: [{{url: {url}}}]}}\n"));
    let (from, clients) = (served(&agent, &url), Clients::new());
    clients.git(&["ls-remote", &from]);
    let path = from.split_once(&format!(":{}", agent.http_port())).unwrap().1.to_owned();
    let list = || Raw::send(&agent, "GET", &format!("{path}/info/refs?service=git-upload-pack"), &[], b"");
    let commit = repo.commit_file("main", "new.txt", b"new\n");
    wait::until(LIMIT, "the new commit is listed", || clients.git(&["ls-remote", &from, "main"]).starts_with(&commit));
    assert!(["hit", "miss"].contains(&list().headers["stoker-cache"].as_str()));
    upstream.stop();
    wait::until(LIMIT, "what is stale says so", || list().headers["stoker-cache"] == "stale");
    let answer = list();
    assert_eq!(answer.headers["stoker-reason"], "UPSTREAM_UNREACHABLE");
    assert!(answer.headers["stoker-age"].parse::<u64>().unwrap() >= 1);
    clients.git(&["clone", "--quiet", &from, "stale"]);
    assert_eq!(git_out(&clients.place("stale"), &["rev-parse", "HEAD"]), commit);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_upstream_no_longer_shows_is_no_longer_served() {
    let repo = TestRepo::standard();
    for made_private in [true, false] {
        let (upstream, url) = (Upstream::start(), "team/project");
        let url = upstream.host(url, &repo);
        let agent = Agent::start(&format!(
            "{LISTEN}repositories: {{refresh: 1s, add: on-demand, allow: [127.0.0.1], protocols: [http]}}\n"
        ));
        let (from, clients) = (served(&agent, &url), Clients::new());
        clients.git(&["clone", "--quiet", &from, "before"]);
        match made_private {
            true => upstream.demand("someone", "else"),
            false => upstream.forget("team/project"),
        }
        wait::until(LIMIT, "the list of refs is refused", || {
            !git(&clients.place("before")).args(["ls-remote", &from]).output().unwrap().status.success()
        });
        let said = clients.refused(&["clone", "--quiet", &from, "after"]);
        assert!(said.contains("404") || said.contains("not found"), "{said}");
        // Who remembers a commit's name gets it no more either.
        let path = from.split_once(&format!(":{}", agent.http_port())).unwrap().1;
        let want = format!("0032want {}\n00000009done\n", repo.commit("main"));
        let kind = [("Content-Type", "application/x-git-upload-pack-request")];
        let answer = Raw::send(&agent, "POST", &format!("{path}/git-upload-pack"), &kind, want.as_bytes());
        assert_eq!(answer.status, 404);
        if made_private {
            // An outage after that is no yes, for longer than a failure is remembered.
            upstream.stop();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(17) {
                clients.refused(&["ls-remote", &from]);
            }
            upstream.resume();
            // A secret that is brought to it, or an owner who changes his mind.
            upstream.demand_nothing();
            let again = || git(&clients.place("before")).args(["fetch", "--quiet", &from]).output().unwrap();
            wait::until(LIMIT, "it is served again", || again().status.success());
        }
        let known = agent.repository().await.list_repositories(v1::ListRepositoriesRequest::default()).await.unwrap();
        assert!(known.into_inner().repositories[0].last_used_at.is_some(), "clients over HTTP are users too");
    }
}

#[test]
fn a_name_that_leads_to_this_machine_is_served_only_where_it_is_named() {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    let found = std::net::ToSocketAddrs::to_socket_addrs(&(name.as_str(), 80)).map(|all| all.collect::<Vec<_>>());
    if !found.is_ok_and(|all| all.iter().any(|address| address.ip().is_loopback())) {
        eprintln!("{name} leads to no loopback address here: nothing to show");
        return;
    }
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let url = url.replace("127.0.0.1", &name);
    let node = |allow: &str| {
        Agent::start(&format!("{LISTEN}repositories: {{add: on-demand, allow: [{allow}], protocols: [http]}}\n"))
    };
    let clients = Clients::new();
    let strict = node("\"*\"");
    let said = clients.refused(&["clone", &served(&strict, &url), "refused"]);
    assert!(said.contains("REPOSITORY_NOT_ALLOWED") && said.contains(&name), "{said}");
    assert_eq!(upstream.requests().total(), 0, "nobody was asked");
    let open = node(&name);
    clients.git(&["clone", "--quiet", &served(&open, &url), "named"]);
    assert_eq!(git_out(&clients.place("named"), &["rev-parse", "HEAD"]), repo.commit("main"));
}

#[test]
fn only_reading_is_served_and_only_what_may_be() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = node("");
    let (from, clients) = (served(&agent, &url), Clients::new());
    clients.git(&["clone", "--quiet", &from, "work"]);
    let said = clients.refused(&["-C", "work", "push", "origin", "HEAD:refs/heads/pushed"]);
    assert!(said.contains("read-only") && said.contains("push to https://127.0.0.1"), "{said}");
    let path = from.split_once(&format!(":{}", agent.http_port())).unwrap().1;
    let get = |path: &str| {
        let raw = Raw::send(&agent, "GET", path, &[], b"");
        (raw.status, String::from_utf8(raw.rest()).unwrap())
    };
    for (path, status, words) in [
        (format!("{path}/info/refs"), 403, "dumb"),
        (format!("{path}/HEAD"), 403, "dumb"),
        (format!("{path}/objects/info/packs"), 403, "dumb"),
        (format!("{path}/git-upload-pack"), 405, "POST"),
        ("/git/evil.example/a/info/refs?service=git-upload-pack".into(), 404, "REPOSITORY_NOT_ALLOWED"),
        ("/git/a%00b/c/info/refs?service=git-upload-pack".into(), 400, "path"),
        (
            format!("/git/{}/info/refs?service=git-upload-pack", &upstream.url("no/such")[7..]),
            404,
            "UPSTREAM_NOT_FOUND",
        ),
    ] {
        let (answered, text) = get(&path);
        assert_eq!(answered, status, "{path}: {text}");
        assert!(text.contains(words), "{path}: {text}");
    }
    assert_eq!(get("/git/").0, 200);
    for (body, kind, status) in [
        (&b"00"[..], "application/x-git-upload-pack-request", 400),
        (b"0000", "text/plain", 415),
        (b"0000", "application/x-git-upload-pack-request", 200),
    ] {
        let headers = [("Content-Type", kind), ("Git-Protocol", "version=2")];
        assert_eq!(Raw::send(&agent, "POST", &format!("{path}/git-upload-pack"), &headers, body).status, status);
    }
}

#[test]
fn bodies_come_packed_and_in_parts() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = node("");
    let expected = Raw::fetch(&agent, &url, &whole(&repo.commit("main"))).rest();
    assert!(expected.windows(4).any(|four| four == b"PACK"));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&whole(&repo.commit("main"))).unwrap();
    let gzip = encoder.finish().unwrap();
    let chunks: Vec<u8> = gzip
        .chunks(10)
        .flat_map(|part| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat())
        .chain(*b"0\r\n\r\n")
        .collect();
    let path = served(&agent, &url).split_once(&format!(":{}", agent.http_port())).unwrap().1.to_owned();
    let headers = [
        ("Content-Type", "application/x-git-upload-pack-request"),
        ("Git-Protocol", "version=2"),
        ("Content-Encoding", "gzip"),
        ("Transfer-Encoding", "chunked"),
    ];
    let answer = Raw::send(&agent, "POST", &format!("{path}/git-upload-pack"), &headers, &chunks);
    assert_eq!(answer.status, 200);
    let body = answer.rest();
    // Chunked itself, so there is more around it.
    assert!(body.windows(4).any(|four| four == b"PACK") && body.len() >= expected.len());
}

#[test]
fn a_request_outlives_a_force_push_and_its_publication() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = node("");
    let (from, clients) = (served(&agent, &url), Clients::new());
    clients.git(&["init", "--quiet", "--bare", "."]);
    let old = repo.commit("develop");
    assert!(clients.git(&["ls-remote", &from, "develop"]).starts_with(&old));
    let new = repo.force_push("develop", "main", "other.txt", b"other\n");
    agent.stoker().run(["repo", "refresh", &url]).expect_code(0);
    assert!(clients.git(&["ls-remote", &from, "develop"]).starts_with(&new), "the new state is published");
    upstream.reset();
    let answer = Raw::fetch(&agent, &url, &whole(&old));
    assert_eq!(answer.status, 200);
    assert!(answer.rest().windows(4).any(|four| four == b"PACK"));
    clients.git(&["fetch", "--quiet", &from, &old]);
    git_out(clients.0.path(), &["fsck", "--strict"]);
    assert_eq!(clients.git(&["rev-parse", "FETCH_HEAD"]), old);
    assert_eq!(upstream.requests().total(), 0);
}

#[test]
fn who_asks_the_same_shares_and_a_slow_reader_holds_nobody() {
    let repo = TestRepo::generated(500, 20_000_000, 2);
    let (upstream, url) = Upstream::of(&repo);
    let agent = node("");
    let (from, clients) = (served(&agent, &url), Clients::new());
    clients.git(&["ls-remote", &from]);
    upstream.reset();
    let request = whole(&repo.commit("main"));
    // It has its head, and does not read on: more than all buffers between here and there waits.
    let slow = Raw::fetch(&agent, &url, &request);
    let fast: Vec<_> = (0..3).map(|_| Raw::fetch(&agent, &url, &request).rest()).collect();
    assert_eq!(metric(&agent, "stoker_git_shared_total"), 3.0);
    wait::until(LIMIT, "the child has ended, though the slow one has not", || {
        metric(&agent, "stoker_git_children") == 0.0
    });
    assert!(fast[0].len() > 5_000_000, "{}", fast[0].len());
    let slow = slow.rest();
    assert!(fast.iter().all(|one| *one == slow), "all get the same bytes");

    std::thread::scope(|scope| {
        for number in 0..8 {
            let (clients, from) = (&clients, &from);
            scope.spawn(move || {
                let name = format!("clone{number}");
                clients.git(&["clone", "--quiet", "--bare", from, &name]);
                git_out(&clients.place(&name), &["fsck", "--strict"]);
                assert_eq!(git_out(&clients.place(&name), &["rev-list", "--count", "HEAD"]), "2");
            });
        }
    });
    assert!(metric(&agent, "stoker_git_shared_total") > 3.0, "of 8 clones at once some share");
    assert_eq!(upstream.requests().total(), 0);
    let spool = agent.root().join("pool/stoker/spool");
    assert_eq!(std::fs::read_dir(spool).unwrap().count(), 0, "nothing has a name");
}

#[test]
fn a_client_that_goes_takes_its_child_along_and_places_are_bounded() {
    let repo = TestRepo::generated(200, 40_000_000, 1);
    let (_upstream, url) = Upstream::of(&repo);
    let agent = node(", serve: {clients: 2, spool: 0}");
    Clients::new().git(&["ls-remote", &served(&agent, &url)]);
    let request = whole(&repo.commit("main"));
    let readers = [Raw::fetch(&agent, &url, &request), Raw::fetch(&agent, &url, &request)];
    assert_eq!(metric(&agent, "stoker_git_children"), 2.0, "unshared, and held by who reads nothing");
    let third = Raw::fetch(&agent, &url, &request);
    assert_eq!(third.status, 503);
    assert!(third.headers.contains_key("retry-after"));
    drop(readers);
    wait::until(LIMIT, "no child and no client is left", || {
        metric(&agent, "stoker_git_children") == 0.0 && metric(&agent, "stoker_git_clients") == 0.0
    });
    wait::until(LIMIT, "no process is left", || children_of(agent.pid()).is_empty());
    assert_eq!(metric(&agent, "stoker_git_requests_total{outcome=\"abandoned\"}"), 2.0);
    assert_eq!(Raw::fetch(&agent, &url, &request).status, 200);
}

fn children_of(parent: u32) -> Vec<i32> {
    let all = procfs::process::all_processes().unwrap().flatten();
    let of = |process: &procfs::process::Process| process.stat().is_ok_and(|stat| stat.ppid == parent.cast_signed());
    all.filter(of).map(|process| process.pid).collect()
}

/// The variables of a workspace that the agent prepares.
fn environment_of(agent: &Agent, url: &str) -> BTreeMap<String, String> {
    let args = ["workspace", "prepare", "--repo", url, "--ref", "branch:main", "-o", "json"];
    let prepared = agent.stoker().run(args).expect_code(0).json();
    serde_json::from_value(prepared["workspace"]["environment"].clone()).unwrap()
}

#[test]
fn a_workspace_sends_its_git_through_the_node_and_pushes_upstream() {
    let (repo, lib) = (TestRepo::standard(), TestRepo::standard());
    git_out(&lib.path(), &["config", "http.receivepack", "true"]);
    let upstream = Upstream::start();
    let (url, lib_url) = (upstream.host("team/project.git", &repo), upstream.host("team/lib.git", &lib));
    let agent = node("");
    let environment = environment_of(&agent, &url);
    assert_eq!(environment["CARGO_NET_GIT_FETCH_WITH_CLI"], "true");
    let clients = Clients::new();
    let build = |script: &str| {
        let mut command = agent.stoker().program("sh", ["-ec", script]);
        for (name, value) in &environment {
            command = command.env(name, value);
        }
        command.current_dir(clients.0.path()).run().expect_code(0)
    };
    build(&format!("git clone --quiet {lib_url} first"));
    upstream.reset();
    build(&format!("git clone --quiet {lib_url} lib"));
    assert_eq!(upstream.requests().total(), 0, "the second clone is the node's alone");
    let identity = "git -c user.name=A -c user.email=a@example.org";
    build(&format!(
        "cd lib; {identity} commit --quiet --allow-empty -m Mine; git push --quiet origin HEAD:refs/heads/mine"
    ));
    assert_eq!(git_out(&clients.place("lib"), &["rev-parse", "HEAD"]), lib.commit("mine"));
    // What the node does not serve is upstream's: this host's port is not in the rules of a node that adds nothing.
    let other = build("git config --get-regexp 'url[.].*[.]insteadof' | sort");
    assert!(other.stdout.contains("or-upstream:/"), "{}", other.stdout);
}

#[test]
fn what_the_node_does_not_serve_is_upstreams() {
    let (repo, other) = (TestRepo::standard(), TestRepo::standard());
    let upstream = Upstream::start();
    let (url, other_url) = (upstream.host("team/project.git", &repo), upstream.host("team/other.git", &other));
    let agent = Agent::start(&format!("{LISTEN}repositories: {{protocols: [http], mirrors: [{{url: {url}}}]}}\n"));
    let environment = environment_of(&agent, &url);
    let clients = Clients::new();
    for name in [&url, &other_url] {
        let mut command = agent.stoker().program("git", ["clone", "--quiet", "--bare", name, "."]);
        for (name, value) in &environment {
            command = command.env(name, value);
        }
        let place = clients.place(name.rsplit('/').next().unwrap());
        std::fs::create_dir(&place).unwrap();
        command.current_dir(&place).run().expect_code(0);
        assert_eq!(git_out(&place, &["rev-parse", "HEAD"]), repo.commit("main"));
    }
    assert_eq!(metric(&agent, "stoker_git_requests_total{outcome=\"unknown\"}"), 1.0, "it was asked first");
}

#[test]
fn without_a_listener_nothing_is_rewritten() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(
        "pools: [{name: data, path: $ROOT/pool, mount: optional, floor: {bytes: 1MiB, inodes: 1}}]\n\
         repositories: {add: on-demand, allow: [127.0.0.1], protocols: [http]}\n",
    );
    let environment = environment_of(&agent, &url);
    assert!(environment.keys().all(|name| !name.starts_with("GIT_") && !name.starts_with("CARGO_")), "{environment:?}");
}

#[test]
fn a_run_sends_its_git_through_its_own_agent() {
    let (repo, lib) = (TestRepo::standard(), TestRepo::standard());
    git_out(&lib.path(), &["config", "http.receivepack", "true"]);
    let upstream = Upstream::start();
    let (url, lib_url) = (upstream.host("team/project.git", &repo), upstream.host("team/lib.git", &lib));
    let stoker = Stoker::new();
    let run = |script: &str| {
        let command = stoker.command(["run", "--repo", &url, "--", "sh", "-ec", script]);
        // What the caller has of this kind stays.
        let command = command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "user.name");
        command.env("GIT_CONFIG_VALUE_0", "Caller").run().expect_code(0)
    };
    run(&format!("git clone --quiet {lib_url} \"$TMPDIR/lib\""));
    upstream.reset();
    let script = format!(
        "git clone --quiet {lib_url} \"$TMPDIR/lib\"; cd \"$TMPDIR/lib\"; git config user.name; git remote get-url origin\n\
         git -c user.email=a@example.org commit --quiet --allow-empty -m Mine; git push --quiet origin HEAD:refs/heads/mine"
    );
    let output = run(&script);
    let (name, remote) = output.stdout.split_once('\n').unwrap();
    assert_eq!(name, "Caller");
    assert!(
        remote.starts_with("http://127.0.0.1:") && remote.contains("/git/or-upstream:/http:/127.0.0.1:"),
        "{remote}"
    );
    assert_eq!(upstream.requests().fetches, 0);
    assert_eq!(git_out(&lib.path(), &["log", "-1", "--format=%an %s", "mine"]), "Caller Mine");
}
