//! Who the agent is to upstreams: from files, to whom it is meant for, and seen nowhere.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Output;

use base64::Engine as _;
use stoker_proto::v1::reason::Code as Why;

use super::containment::{Child as GitChild, git_children, ours};
use super::*;
use crate::support::repository::{TestRepo, git_out};
use crate::support::upstream::{Fault, Upstream};
use crate::support::{free_port, place};

/// What must never be seen.
const PLANTED: &str = "planted-s3cret-1f0b9e";

/// A configuration with mirrors and credentials (the lines of the list).
fn with_credentials(mirrors: &[&str], credentials: &str) -> String {
    configuration(PLAIN, mirrors).replace("  refresh: 24h\n", &format!("  refresh: 24h\n  credentials:\n{credentials}"))
}

fn token(base: &str) -> String {
    format!("    - {{match: \"{base}\", token: {{file: $ROOT/secrets/token}}}}\n")
}

/// The agent, not started, with a file that only root reads, as a Secret is mounted.
fn with_secret(configuration: &str, name: &str, content: &str) -> Agent {
    let agent = prepared(configuration);
    std::fs::create_dir(agent.root().join("secrets")).unwrap();
    write_secret(&agent, name, content);
    agent
}

fn write_secret(agent: &Agent, name: &str, content: &str) {
    let file = agent.root().join("secrets").join(name);
    std::fs::write(&file, content).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).unwrap();
}

fn started(mut agent: Agent) -> Agent {
    agent.launch();
    agent.wait_ready();
    agent
}

/// The reason for which a mirror cannot be fetched.
async fn why_not(agent: &Agent, url: &str) -> v1::Reason {
    let _ = refresh(agent, url).await;
    let mirror = repository(agent, url).await;
    let upstream = |reason: &&v1::Reason| reason.code() != Why::RepositoryEmpty;
    mirror.reasons.iter().find(upstream).unwrap_or_else(|| panic!("no reason: {mirror:?}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_from_a_file_that_may_change() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.demand("x-access-token", "first");
    let agent = started(with_secret(&with_credentials(&[&url], &token(&upstream.base())), "token", "first\n"));
    mirror_ready(&agent, &url).await;

    upstream.demand("x-access-token", "second");
    repo.commit_file("main", "new", b"new\n");
    let reason = why_not(&agent, &url).await;
    assert_eq!(reason.code(), Why::UpstreamUnauthorized, "{reason:?}");
    assert!(reason.message.contains("repositories.credentials"), "{reason:?}");
    // Old sources are not served past an upstream that says no.
    let stale = v1::Source { allow_stale: true, ..branch(&url, "main") };
    refused(resolve(&agent, stale, LIMIT).await, Code::PermissionDenied, "UPSTREAM_UNAUTHORIZED");

    write_secret(&agent, "token", "second");
    refresh(&agent, &url).await.unwrap();
    let found = resolve(&agent, branch(&url, "main"), LIMIT).await.unwrap();
    assert_eq!(found.resolved.unwrap().commit, repo.commit("main"));

    std::fs::remove_file(agent.root().join("secrets/token")).unwrap();
    let reason = why_not(&agent, &url).await;
    assert_eq!(reason.code(), Why::CredentialUnreadable, "{reason:?}");
    assert!(reason.message.starts_with("repositories.credentials[0].token.file: "), "{reason:?}");
    assert!(reason.message.contains("is not there"), "{reason:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_match_names_the_password() {
    let repo = TestRepo::standard();
    let upstream = Upstream::start();
    let url = upstream.host("team/deep/project.git", &repo);
    upstream.demand("ci", "right");
    let base = upstream.base();
    let basic = |path: &str, name: &str| {
        format!("    - {{match: \"{base}{path}\", basic: {{username: ci, passwordFile: $ROOT/secrets/{name}}}}}\n")
    };
    let credentials = [basic("", "wrong"), basic("/team/deep", "right"), basic("/team", "wrong")].concat();
    let agent = with_secret(&with_credentials(&[&url], &credentials), "right", "right");
    write_secret(&agent, "wrong", "wrong");
    let agent = started(agent);
    mirror_ready(&agent, &url).await;
    let sent: BTreeSet<String> = upstream.authorizations().into_iter().collect();
    assert_eq!(sent.len(), 1, "no other was tried: {sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_one_class_does_not_get_the_secret_of_another() {
    let open = Upstream::start();
    let closed = Upstream::start();
    closed.demand("x-access-token", PLANTED);
    let repo = TestRepo::standard();
    let [of_default, of_team, named, submodule] =
        ["default", "team", "named", "submodule"].map(|name| closed.host(&format!("private/{name}.git"), &repo));
    // Whoever writes these two names what they like.
    let list = TestRepo::empty();
    let manifest = format!(
        "<manifest><remote name=\"r\" fetch=\"{}/private/\"/><default remote=\"r\" revision=\"main\"/>\
         <project name=\"named.git\"/></manifest>",
        closed.base()
    );
    list.commit_file("main", "default.xml", manifest.as_bytes());
    let top = TestRepo::empty();
    let modules = format!("[submodule \"s\"]\n\tpath = s\n\turl = {submodule}\n");
    let files: &[(&str, &str, &[u8])] = &[("100644", ".gitmodules", modules.as_bytes())];
    top.commit_tree("main", files, &[("s", &repo.commit("main"))]);
    let (list, top) = (open.host("public/list.git", &list), open.host("public/top.git", &top));

    let token = |trust: &str| {
        format!("    - {{match: \"{}\", token: {{file: $ROOT/secrets/token}}, trust: {trust}}}\n", closed.base())
    };
    let mirrors = format!(
        "    - {{url: \"{of_team}\", trust: team}}\n    - {{url: \"{top}\", trust: public, submodules: true}}\n  \
         manifests:\n    - {{url: \"{list}\", trust: public}}\n"
    );
    let text = with_credentials(&[&of_default], &token("[default, team]")) + &mirrors;
    let agent = started(with_secret(&text, "token", PLANTED));
    for url in [&of_default, &of_team] {
        mirror_ready(&agent, url).await;
    }
    for url in [&named, &submodule] {
        let declared = async || {
            let request = v1::ListRepositoriesRequest { page_size: 500, ..Default::default() };
            let all = agent.repository().await.list_repositories(request).await.unwrap().into_inner().repositories;
            all.iter().any(|repository| repository.url == *url && repository.trust == "public")
        };
        wait::until_async(LIMIT, "the list is read", declared).await;
        let reason = why_not(&agent, url).await;
        assert_eq!(reason.code(), Why::UpstreamUnauthorized, "{url}: {reason:?}");
        assert!(reason.message.contains("for the repository's trust class"), "{reason:?}");
        assert_eq!(repository(&agent, url).await.state(), v1::RepositoryState::Empty);
    }
    // It was their class alone that kept it from them.
    let file = agent.root().join("agent.yaml");
    let everybody = std::fs::read_to_string(&file).unwrap().replace("[default, team]", "[default, team, public]");
    std::fs::write(&file, everybody).unwrap();
    for url in [&named, &submodule] {
        let filled = async || refresh(&agent, url).await.is_ok();
        wait::until_async(LIMIT, "the new configuration is taken over", filled).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_declared_credential_none_is_used() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.demand("ci", "right");
    let agent = start(&configuration(PLAIN, &[&url]));
    let reason = why_not(&agent, &url).await;
    assert_eq!(reason.code(), Why::UpstreamUnauthorized, "{reason:?}");
    assert_eq!(upstream.authorizations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_does_not_lead_the_secret_away() {
    let repo = TestRepo::standard();
    let (near, url) = Upstream::of(&repo);
    let (far, _) = Upstream::of(&repo);
    far.demand("x-access-token", PLANTED);
    // What stands before the host is for the client, and a careless server may well send a secret of its own.
    near.redirect(&far.base().replace("http://", "http://someone:else-s3cret@"));
    let agent = started(with_secret(&with_credentials(&[&url], &token(&near.base())), "token", PLANTED));
    let reason = why_not(&agent, &url).await;
    assert!(matches!(reason.code(), Why::UpstreamUnauthorized | Why::UpstreamNotFound), "{reason:?}");
    assert!(far.requests().total() > 0, "it was followed: {reason:?}");
    let encoded = base64::prelude::BASE64_STANDARD.encode(format!("x-access-token:{PLANTED}"));
    assert!(!far.authorizations().iter().any(|sent| sent.contains(&encoded)), "{:?}", far.authorizations());
    assert!(!reason.message.contains("else-s3cret") && !agent.log().contains("else-s3cret"), "{reason:?}");
}

/// Everything that a process shows to others.
fn shown(pid: u32) -> Vec<u8> {
    ["cmdline", "environ"]
        .iter()
        .flat_map(|name| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default())
        .collect()
}

/// Files below `dir`, without those that the test itself wrote.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => todo.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

/// That neither the planted secret nor an encoding of it is in `bytes`.
#[track_caller]
fn assert_clean(what: &str, bytes: &[u8]) {
    let encoded = base64::prelude::BASE64_STANDARD.encode(format!("x-access-token:{PLANTED}"));
    for secret in [PLANTED, encoded.trim_end_matches('=')] {
        let seen = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!seen, "the secret is in {what}: {}", String::from_utf8_lossy(bytes));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_secret_is_seen_nowhere() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    upstream.demand("x-access-token", PLANTED);
    let text = format!(
        "listen: {{socket: $ROOT/run/stoker.sock, http: {{address: \"127.0.0.1:$PORT\"}}}}\n{}",
        with_credentials(&[&url], &token(&upstream.base()))
    );
    let mut agent = with_secret(&text, "token", PLANTED);
    agent.env("STOKER_LOG", "trace");
    let agent = started(agent);
    mirror_ready(&agent, &url).await;
    let granted = admit(&agent, order("secret", branch(&url, "main"), small())).await.unwrap().granted();
    prepare(&agent, &granted.id).await.unwrap();

    // While a fetch is under way, and its git has the secret.
    repo.commit_file("main", "new", b"new\n");
    upstream.reset();
    upstream.delay(Duration::from_millis(300));
    let fetch = async { refresh(&agent, &url).await.unwrap() };
    let watch = async {
        let mut looked = BTreeSet::new();
        let mut words = BTreeSet::new();
        while upstream.requests().fetches == 0 {
            assert_clean("the agent's process", &shown(agent.pid()));
            for GitChild { pid, command } in git_children(agent.pid()) {
                assert_clean(&command, &shown(pid));
                looked.insert(pid);
                words.extend(command.split(['\0', ' ', '/']).map(str::to_owned));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(looked.len() >= 2 && words.contains("fetch"), "git was seen at work: {words:?}");
    };
    tokio::join!(fetch, watch);
    upstream.delay(Duration::ZERO);

    // And when it fails, which is when most is said.
    upstream.demand("x-access-token", "another");
    why_not(&agent, &url).await;
    for fault in [Fault::Status(500), Fault::Status(403), Fault::CutPack(10)] {
        upstream.fault(fault);
        why_not(&agent, &url).await;
    }
    for path in ["/metrics", "/", "/readyz", "/livez"] {
        let (_, body) = agent.http_get(path).unwrap_or_else(|| panic!("{path} does not answer"));
        assert_clean(path, body.as_bytes());
    }
    for args in [
        &["status"][..],
        &["doctor"],
        &["repo", "list"],
        &["repo", "show", &url],
        &["lease", "list"],
        &["ticket", "list"],
        &["workspace", "list"],
        &["pool", "list"],
        &["mode"],
    ] {
        for format in ["table", "json", "yaml"] {
            let output = agent.stoker().run(args.iter().chain(&["-o", format]));
            assert!(!output.stdout.is_empty(), "{args:?}: {}", output.stderr);
            assert_clean(&format!("{args:?}"), [output.stdout, output.stderr].concat().as_bytes());
        }
    }
    let log = agent.log();
    assert!(log.contains("DEBUG") || log.contains("TRACE"), "the log says all that it can: {log}");
    assert_clean("the log", log.as_bytes());
    let mut count = 0;
    for dir in ["state", "pool", "run", "tmp", "cache", "config"] {
        for file in files(&agent.root().join(dir)) {
            assert_clean(&file.display().to_string(), &std::fs::read(&file).unwrap_or_default());
            count += 1;
        }
    }
    assert!(count > 20, "state and pool were read: {count} files");
}

/// A server of ssh on a loopback port, for one key; it ends with the test.
struct SshServer {
    port: u16,
    child: Child,
    place: tempfile::TempDir,
}

impl SshServer {
    /// None where this machine has no `sshd`, or only root could start one.
    fn start() -> Option<Self> {
        let sshd = ["/usr/sbin/sshd", "/usr/bin/sshd"].iter().find(|path| Path::new(path).is_file());
        if sshd.is_none() || !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root and openssh-server, and CI skips nothing");
            eprintln!("not run: it needs root and openssh-server");
            return None;
        }
        std::fs::create_dir_all("/run/sshd").unwrap();
        let place = place("sshd-");
        for name in ["host", "other", "client"] {
            let done: Output = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
                .arg(place.path().join(name))
                .output()
                .unwrap();
            assert!(done.status.success(), "{done:?}");
        }
        std::fs::copy(place.path().join("client.pub"), place.path().join("authorized")).unwrap();
        let port = free_port();
        let at = |name: &str| place.path().join(name).display().to_string();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
             StrictModes no\nAllowTcpForwarding no\nLogLevel VERBOSE\n",
            at("host"),
            at("authorized")
        );
        std::fs::write(place.path().join("config"), config).unwrap();
        let log = std::fs::File::create(place.path().join("log")).unwrap();
        let child = Command::new(sshd.unwrap())
            .args(["-D", "-e", "-f"])
            .arg(place.path().join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { port, child, place };
        wait::until(LIMIT, "sshd listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(server)
    }

    /// A line of known hosts for the key of this name.
    fn known(&self, name: &str) -> String {
        let key = std::fs::read_to_string(self.place.path().join(format!("{name}.pub"))).unwrap();
        format!("[127.0.0.1]:{} {key}", self.port)
    }

    fn key(&self, name: &str) -> String {
        std::fs::read_to_string(self.place.path().join(name)).unwrap()
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- sshd\n{}---", std::fs::read_to_string(self.place.path().join("log")).unwrap_or_default());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_has_the_declared_key_and_the_declared_hosts_only() {
    let Some(server) = SshServer::start() else { return };
    let repo = TestRepo::standard();
    let link = server.place.path().join("project.git");
    symlink(repo.path(), &link).unwrap();
    // No user in the URL: the credential's.
    let url = format!("ssh://127.0.0.1:{}{}", server.port, link.display());
    let credentials = format!(
        "    - match: \"ssh://127.0.0.1:{}\"\n      ssh: {{keyFile: $ROOT/secrets/key, knownHostsFile: \
         $ROOT/secrets/hosts, user: root}}\n",
        server.port
    );
    // ssh wants its user in /etc/passwd: `nobody` is everywhere.
    let text = with_credentials(&[&url], &credentials)
        .replace("protocols: [http]", "protocols: [ssh]\n  git: {user: \"65534:65534\"}");
    let agent = with_secret(&text, "key", server.key("client").trim_end());
    write_secret(&agent, "hosts", &server.known("host"));
    let agent = started(agent);
    mirror_ready(&agent, &url).await;
    assert_eq!(repository(&agent, &url).await.snapshots, 1);

    write_secret(&agent, "hosts", &server.known("other"));
    let reason = why_not(&agent, &url).await;
    assert_eq!(reason.code(), Why::UpstreamUntrusted, "{reason:?}");
    write_secret(&agent, "hosts", &server.known("host"));
    write_secret(&agent, "key", &server.key("other"));
    let reason = why_not(&agent, &url).await;
    assert_eq!(reason.code(), Why::UpstreamUnauthorized, "{reason:?}");
    write_secret(&agent, "key", &server.key("client"));
    let new = repo.commit_file("main", "new", b"new\n");
    refresh(&agent, &url).await.unwrap();
    let found = resolve(&agent, branch(&url, "main"), LIMIT).await.unwrap();
    assert_eq!(found.resolved.unwrap().commit, new);
    for file in files(&agent.root().join("pool")).into_iter().chain(files(&agent.root().join("state"))) {
        let text = std::fs::read(&file).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&text).contains("OPENSSH PRIVATE KEY"), "{}", file.display());
    }
    assert!(git_out(&repo.path(), &["rev-parse", "main"]) == new && ours(&agent).is_some());
}
