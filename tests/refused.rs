//! Bad input, over gRPC and over the command line: refused with the field named, and no trace on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stoker_proto::v1::{self, prepare_workspace_request::For};
use tonic::{Code, Status};

use crate::support::disk::{listing, rows};
use crate::support::repository::TestRepo;
use crate::support::stoker::{Agent, Stoker};
use crate::support::upstream::{Counts, Upstream};
use crate::support::wire::{reason, seconds, source, violations};

/// An agent that may fetch over HTTPS from one host, which is not this one; and nothing of its own.
const NARROW: &str = "
pools: [{name: data, path: $ROOT/pool, mount: optional, floor: {bytes: 1MiB, inodes: 10}}]
repositories: {add: on-demand, allow: [example.org], protocols: [https]}
";
const GOOD_URL: &str = "https://example.org/team/project";
/// Longer than any name.
const LONG: usize = 10_000;

/// URLs that no command and no call takes.
fn bad_urls() -> Vec<String> {
    let mut urls = [
        "",
        "https://example.org/a/../b",
        "https://example.org/../etc/passwd",
        "https://example.org/..",
        "https://example.org/a/./b",
        "https://example.org/a//b",
        "https://example.org/%2e%2e/b",
        "https://example.org/%2E%2E/b",
        "https://example.org/a%2F..%2Fb",
        "https://example.org/a%5cb",
        "https://example.org/a%00b",
        "https://example.org/a%2",
        "https://example.org/a\nb",
        "https://example.org/a\rb",
        "https://example.org/a\tb",
        "https://example.org/a\u{1b}[31mb",
        "https://example.org/a\u{7f}b",
        "https://example.org/a\u{202e}b",
        "https://example.org/a b",
        "https://example.org/a\\b",
        "https://example.org",
        "https://example.org/",
        "https:///a",
        "https://example.org:0/a",
        "https://example.org:65536/a",
        "https://-example.org/a",
        "https://exa_mple..org/a",
        "https://example.org/a?b",
        "https://example.org/a#b",
        "https://me:secret@example.org/a",
        "https://secret@example.org/a",
        "ssh://me:secret@example.org/a",
        "ssh://-oProxyCommand=touch@example.org/a",
        "ssh://-oProxyCommand=touch/a",
        "git@example.org:-a",
        "git@-oProxyCommand=touch:a",
        "-",
        "-oProxyCommand=touch",
        "--upload-pack=touch",
        "ext::sh -c touch% /tmp/x",
        "ext::sh",
        "fd::17",
        "https::https://example.org/a",
        "ftp://example.org/a",
        "javascript://example.org/a",
        "file://elsewhere/a",
        "file:///srv/../etc",
        "file:///srv/%2e%2e/etc",
        "no-such/relative",
    ]
    .map(str::to_owned)
    .to_vec();
    urls.push(format!("https://example.org/{}", "a".repeat(LONG)));
    urls
}

/// Names that git allows to no branch and no tag.
fn bad_names() -> Vec<String> {
    let names = [
        "",
        "..",
        "a..b",
        "-",
        "-x",
        "--upload-pack=touch",
        "@",
        "@{",
        "a@{1}",
        "a b",
        " a",
        "a.lock",
        "a.lock/b",
        ".a",
        "a/.b",
        "a.",
        "/a",
        "a/",
        "a//b",
        "a~1",
        "a^",
        "a:b",
        "a?",
        "a*",
        "a[",
        "a\\b",
        "a\u{7}b",
        "a\nb",
        "a\u{7f}b",
    ];
    names.iter().map(|name| (*name).to_owned()).chain([String::from("a").repeat(LONG)]).collect()
}

/// One call with one thing wrong.
enum Call {
    Resolve(v1::Source),
    Admit(v1::AdmitRequest),
    Await(Option<v1::AdmitRequest>),
    Evaluate(Vec<v1::Build>),
    Bind(v1::BindRequest),
    Renew(v1::RenewRequest),
    Release(v1::ReleaseRequest),
    Leases(v1::ListLeasesRequest),
    Tickets(v1::ListTicketsRequest),
    Cancel(&'static str),
    Add(v1::AddRepositoryRequest),
    Get(&'static str),
    Remove(&'static str),
    Pin(&'static str),
    Refresh(&'static str),
    Repositories(v1::ListRepositoriesRequest),
    Prepare(Option<For>),
    Delete(&'static str),
    Mode(v1::SetModeRequest),
}

impl Call {
    async fn refused(self, agent: &Agent) -> Option<Status> {
        let (mut admission, mut repository) = (agent.admission().await, agent.repository().await);
        let mut workspace = agent.workspace().await;
        match self {
            Self::Resolve(source) => {
                repository.resolve_source(v1::ResolveSourceRequest { source: Some(source) }).await.err()
            }
            Self::Admit(request) => admission.admit(request).await.err(),
            Self::Await(admit) => admission.await_admission(v1::AwaitAdmissionRequest { admit }).await.err(),
            Self::Evaluate(builds) => admission.evaluate(v1::EvaluateRequest { builds }).await.err(),
            Self::Bind(request) => admission.bind(request).await.err(),
            Self::Renew(request) => admission.renew(request).await.err(),
            Self::Release(request) => admission.release(request).await.err(),
            Self::Leases(request) => admission.list_leases(request).await.err(),
            Self::Tickets(request) => admission.list_tickets(request).await.err(),
            Self::Cancel(id) => admission.cancel_ticket(v1::CancelTicketRequest { ticket_id: id.into() }).await.err(),
            Self::Add(request) => repository.add_repository(request).await.err(),
            Self::Get(url) => repository.get_repository(v1::GetRepositoryRequest { url: url.into() }).await.err(),
            Self::Remove(url) => {
                repository.remove_repository(v1::RemoveRepositoryRequest { url: url.into() }).await.err()
            }
            Self::Pin(url) => {
                repository.pin_repository(v1::PinRepositoryRequest { url: url.into(), pinned: true }).await.err()
            }
            Self::Refresh(url) => {
                let request = v1::RefreshRepositoryRequest { url: url.into(), only_if_empty: false };
                repository.refresh_repository(request).await.err()
            }
            Self::Repositories(request) => repository.list_repositories(request).await.err(),
            Self::Prepare(r#for) => {
                let request = v1::PrepareWorkspaceRequest { r#for, ..v1::PrepareWorkspaceRequest::default() };
                workspace.prepare_workspace(request).await.err()
            }
            Self::Delete(id) => workspace.delete_workspace(v1::DeleteWorkspaceRequest { id: id.into() }).await.err(),
            Self::Mode(request) => agent.node().await.set_mode(request).await.err(),
        }
    }
}

fn good_build() -> v1::Build {
    v1::Build { source: Some(source(GOOD_URL, "head")), ..v1::Build::default() }
}

/// A good request but for its build.
fn admit(build: v1::Build) -> Call {
    Call::Admit(v1::AdmitRequest { request_id: "1".into(), build: Some(build), ..v1::AdmitRequest::default() })
}

fn declared(change: impl FnOnce(&mut v1::Size)) -> Call {
    let mut size = v1::Size::default();
    change(&mut size);
    admit(v1::Build { declared: Some(size), ..good_build() })
}

fn scope(tenant: &str, project: &str, branch: &str) -> Option<v1::Scope> {
    Some(v1::Scope { tenant: tenant.into(), project: project.into(), branch: branch.into() })
}

fn sources() -> Vec<(String, Call)> {
    let mut table: Vec<(String, Call)> = Vec::new();
    let resolve = |field: &str, source| (format!("source.{field}"), Call::Resolve(source));
    for url in bad_urls() {
        table.push(resolve("repository_url", source(&url, "head")));
    }
    for name in bad_names() {
        table.push(resolve("branch", source(GOOD_URL, &format!("branch:{name}"))));
        table.push(resolve("tag", source(GOOD_URL, &format!("tag:{name}"))));
    }
    for hex in ["", "0123", &"a".repeat(39), &"a".repeat(41), &"A".repeat(40), &"g".repeat(40), "HEAD", "--all"] {
        table.push(resolve("commit", source(GOOD_URL, &format!("sha:{hex}"))));
    }
    table.push(resolve("pull_request", source(GOOD_URL, "pr:0")));
    for max_age in [-1, i64::MIN, i64::MAX] {
        table.push(resolve("max_age", v1::Source { max_age: seconds(max_age), ..source(GOOD_URL, "head") }));
    }
    let expected = v1::Source { expected_commit: "a".repeat(39), ..source(GOOD_URL, "head") };
    table.push(resolve("expected_commit", expected));
    table
}

fn builds() -> Vec<(&'static str, Call)> {
    let long = "n".repeat(LONG);
    let with = |change: fn(&mut v1::Build, String), text: &str| {
        let mut build = good_build();
        change(&mut build, text.to_owned());
        admit(build)
    };
    let keys = |keys: &[&str]| {
        admit(v1::Build { cache_keys: keys.iter().map(|key| (*key).to_owned()).collect(), ..good_build() })
    };
    let measured = |cpu_millis_p95, memory_bytes_p95, runs| {
        let measured = Some(v1::Measured { cpu_millis_p95, memory_bytes_p95, runs });
        admit(v1::Build { measured, ..good_build() })
    };
    let mut table = vec![
        ("build.scope.tenant", admit(v1::Build { scope: scope(&long, "", ""), ..good_build() })),
        ("build.scope.project", admit(v1::Build { scope: scope("", &long, ""), ..good_build() })),
        ("build.scope.branch", admit(v1::Build { scope: scope("", "", &long), ..good_build() })),
        ("build.scope.tenant", admit(v1::Build { scope: scope("a\0b", "", ""), ..good_build() })),
        ("build.scope.project", admit(v1::Build { scope: scope("", "a\u{1b}b", ""), ..good_build() })),
        ("build.target", with(|build, text| build.target = text, &long)),
        ("build.target", with(|build, text| build.target = text, "a\tb")),
        ("build.architecture", with(|build, text| build.architecture = text, &long)),
        ("build.cache_keys[0]", keys(&["../x"])),
        ("build.cache_keys[0]", keys(&[".."])),
        ("build.cache_keys[0]", keys(&[""])),
        ("build.cache_keys[1]", keys(&["cargo", "a/b"])),
        ("build.cache_keys[0]", keys(&[".hidden"])),
        ("build.cache_keys[0]", keys(&["Cargo"])),
        ("build.cache_keys[0]", keys(&[&"k".repeat(65)])),
        ("build.cache_keys", keys(&["k"; 17])),
        ("build.measured.cpu_millis_p95", measured(-1, 1, 1)),
        ("build.measured.memory_bytes_p95", measured(1, i64::MAX, 1)),
        ("build.measured.runs", measured(1, 1, -1)),
        ("build.source", admit(v1::Build { source: None, ..good_build() })),
        ("build.source.repository_url", admit(v1::Build { source: Some(source("ext::sh", "head")), ..good_build() })),
    ];
    // 2^63 is -2^63 in an int64; the largest that there is is refused as well.
    for wrong in [0, -1, i64::MIN, i64::MAX] {
        table.push(("build.declared.cpu_millis", declared(|size| size.cpu_millis = Some(wrong))));
        table.push(("build.declared.memory_bytes", declared(|size| size.memory_bytes = Some(wrong))));
        table.push(("build.declared.disk_bytes", declared(|size| size.disk_bytes = Some(wrong))));
        table.push(("build.declared.disk_inodes", declared(|size| size.disk_inodes = Some(wrong))));
    }
    for wrong in [0, -1, i64::MIN, i64::MAX, 24 * 3600 + 1] {
        table.push(("build.declared.time_budget", declared(|size| size.time_budget = seconds(wrong))));
    }
    table
}

fn calls() -> Vec<(&'static str, Call)> {
    let request = |id: &str| v1::AdmitRequest {
        request_id: id.to_owned(),
        build: Some(good_build()),
        ..v1::AdmitRequest::default()
    };
    let unleased = |request_id: &str, lifetime, reference: &str| {
        Call::Prepare(Some(For::Unleased(v1::Unleased {
            source: Some(source(GOOD_URL, reference)),
            lifetime: seconds(lifetime),
            request_id: request_id.into(),
            scope: None,
        })))
    };
    let add = |url: &str, trust: &str| {
        Call::Add(v1::AddRepositoryRequest { url: url.into(), trust: trust.into(), pin: false, ..Default::default() })
    };
    let release = |lease: &str, outcome, measured| {
        Call::Release(v1::ReleaseRequest { lease_id: lease.into(), outcome, measured, exit_code: None })
    };
    let usage = v1::Usage { memory_bytes_peak: -1, ..v1::Usage::default() };
    let process = |pid| v1::bind_request::To::Process(v1::Process { pid, start_ticks: 1 });
    let bind = |lease: &str, to| Call::Bind(v1::BindRequest { lease_id: lease.into(), to });
    let renew = |lease: &str, span| Call::Renew(v1::RenewRequest { lease_id: lease.into(), reserve_for: span });
    let no_pod = v1::bind_request::To::Pod(v1::Pod::default());
    vec![
        ("request_id", Call::Admit(request(""))),
        ("request_id", Call::Admit(request("a b"))),
        ("request_id", Call::Admit(request("a\nb"))),
        ("request_id", Call::Admit(request("\u{fc}"))),
        ("request_id", Call::Admit(request(&"i".repeat(129)))),
        ("bind_within", Call::Admit(v1::AdmitRequest { bind_within: seconds(0), ..request("1") })),
        ("bind_within", Call::Admit(v1::AdmitRequest { bind_within: seconds(1801), ..request("1") })),
        ("build", Call::Admit(v1::AdmitRequest { build: None, ..request("1") })),
        ("admit", Call::Await(None)),
        ("admit.request_id", Call::Await(Some(request("")))),
        ("admit.build", Call::Await(Some(v1::AdmitRequest { build: None, ..request("1") }))),
        ("builds", Call::Evaluate(vec![good_build(); 65])),
        (
            "builds[1].scope.tenant",
            Call::Evaluate(vec![good_build(), v1::Build { scope: scope(&"n".repeat(LONG), "", ""), ..good_build() }]),
        ),
        ("lease_id", bind("", Some(process(1)))),
        ("process.pid", bind("1", Some(process(0)))),
        ("process.pid", bind("1", Some(process(1 << 40)))),
        ("process", bind("1", Some(process(i64::from(i32::MAX))))),
        ("pod", bind("1", Some(no_pod))),
        ("to", bind("1", None)),
        ("lease_id", renew("a b", None)),
        ("reserve_for", renew("1", seconds(-1))),
        ("lease_id", release("", v1::Outcome::Succeeded.into(), None)),
        ("outcome", release("1", 0, None)),
        ("outcome", release("1", 99, None)),
        ("measured.memory_bytes_peak", release("1", v1::Outcome::Succeeded.into(), Some(usage))),
        ("page_size", Call::Leases(v1::ListLeasesRequest { page_size: -1, ..Default::default() })),
        ("page_size", Call::Leases(v1::ListLeasesRequest { page_size: 1001, ..Default::default() })),
        ("scope.tenant", Call::Leases(v1::ListLeasesRequest { scope: scope("\n", "", ""), ..Default::default() })),
        ("page_token", Call::Tickets(v1::ListTicketsRequest { page_token: "t".repeat(5000), ..Default::default() })),
        ("page_size", Call::Repositories(v1::ListRepositoriesRequest { page_size: -1, ..Default::default() })),
        ("ticket_id", Call::Cancel("")),
        ("url", add("ext::sh -c touch", "")),
        ("url", add("../up", "")),
        ("trust", add(GOOD_URL, "../x")),
        ("trust", add(GOOD_URL, "Public")),
        ("url", Call::Get("file:///srv/../etc")),
        ("url", Call::Remove("-x")),
        ("url", Call::Pin("https://example.org/%2e%2e")),
        ("url", Call::Refresh("")),
        ("for", Call::Prepare(None)),
        ("lease_id", Call::Prepare(Some(For::LeaseId(String::new())))),
        ("unleased.request_id", unleased("", 60, "head")),
        ("unleased.lifetime", unleased("1", 8 * 24 * 3600, "head")),
        ("unleased.source.branch", unleased("1", 60, "branch:..")),
        ("id", Call::Delete("")),
        ("mode", Call::Mode(v1::SetModeRequest::default())),
        (
            "note",
            Call::Mode(v1::SetModeRequest {
                mode: v1::Mode::Drain.into(),
                note: "\u{1b}".into(),
                ..Default::default()
            }),
        ),
    ]
}

/// What an agent has on disk: its pool, its state, its configuration and nothing else but its log.
fn on_disk(agent: &Agent) -> BTreeMap<PathBuf, String> {
    let mut found = listing(agent.root());
    found.remove(&PathBuf::from("agent.log"));
    // What was tried at the start is on its way out.
    let trash = Path::new("pool/stoker/trash");
    found.retain(|path, _| path == trash || !path.starts_with(trash));
    found
}

#[track_caller]
fn assert_no_trace(agent: &Agent, before: &BTreeMap<PathBuf, String>) {
    let state = agent.root().join("state");
    for table in ["lease", "ticket", "history"] {
        assert_eq!(rows(&state, table), 0, "{table}");
    }
    assert_eq!(&on_disk(agent), before);
}

#[tokio::test]
async fn every_bad_field_is_named_over_grpc_and_leaves_no_trace() {
    let agent = Agent::start(NARROW);
    let before = on_disk(&agent);
    let named = builds().into_iter().chain(calls()).map(|(field, call)| (field.to_owned(), call));
    let table: Vec<(String, Call)> = sources().into_iter().chain(named).collect();
    assert!(table.len() >= 150, "{}", table.len());
    let mut wrong = Vec::new();
    for (number, (field, call)) in table.into_iter().enumerate() {
        match call.refused(&agent).await {
            Some(status) if status.code() == Code::InvalidArgument && violations(&status) == [field.as_str()] => {
                assert!(!status.message().contains("secret"), "{}", status.message());
            }
            other => wrong.push(format!("{number}: {field}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_no_trace(&agent, &before);
}

#[tokio::test]
async fn what_the_configuration_does_not_allow_is_refused_and_never_asked() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(NARROW);
    let before = on_disk(&agent);
    let local = repo.path().to_str().unwrap().to_owned();
    let https = url.replace("http://", "https://");
    for url in [
        format!("file://{local}"),
        local.clone(),
        url.clone(),
        https.clone(),
        https.replace("127.0.0.1", "localhost"),
        https.replace("127.0.0.1", "2130706433"),
        "https://example.org.evil.test/a".to_owned(),
        "https://169.254.169.254/latest".to_owned(),
        "git@example.org:team/project".to_owned(),
        "http://example.org/a".to_owned(),
    ] {
        let resolve = Call::Resolve(source(&url, "head")).refused(&agent).await.unwrap();
        let add = Call::Add(v1::AddRepositoryRequest { url: url.clone(), ..Default::default() });
        let add = add.refused(&agent).await.unwrap();
        let admit = admit(v1::Build { source: Some(source(&url, "head")), ..good_build() }).refused(&agent).await;
        for status in [resolve, add, admit.unwrap()] {
            let got = (status.code(), reason(&status));
            assert_eq!(got, (Code::PermissionDenied, "REPOSITORY_NOT_ALLOWED".to_owned()), "{url}: {status:?}");
        }
        let run = agent.stoker().run(["run", "--repo", &url, "--", "true"]).expect_code(125);
        assert!(run.stderr.contains("[REPOSITORY_NOT_ALLOWED]"), "{url}: {}", run.stderr);
    }
    assert_eq!(upstream.requests(), Counts::default());
    assert_no_trace(&agent, &before);
}

#[tokio::test]
async fn an_agent_that_serves_declared_repositories_alone_says_so() {
    let repo = TestRepo::standard();
    let (upstream, url) = Upstream::of(&repo);
    let agent = Agent::start("pools: [{name: data, path: $ROOT/pool, mount: optional}]\n");
    for call in [Call::Resolve(source(&url, "head")), Call::Add(v1::AddRepositoryRequest { url, ..Default::default() })]
    {
        let status = call.refused(&agent).await.unwrap();
        let got = (status.code(), reason(&status));
        assert_eq!(got, (Code::PermissionDenied, "REPOSITORY_NOT_DECLARED".to_owned()), "{status:?}");
    }
    assert_eq!(upstream.requests(), Counts::default());
}

#[test]
fn bad_words_on_the_command_line_are_wrong_usage_and_leave_no_trace() {
    let stoker = Stoker::new();
    let before = listing(stoker.home());
    let name = "n".repeat(LONG);
    // Options that come after `--repo GOOD_URL`, and what the refusal must name.
    let mut table: Vec<(Vec<String>, &str)> = Vec::new();
    for url in bad_urls().into_iter().filter(|url| !url.contains('\0')) {
        table.push((vec![format!("--repo={url}")], "repo"));
    }
    for bad in bad_names() {
        table.push((vec![format!("--repo={GOOD_URL}"), format!("--ref=branch:{bad}")], "ref"));
    }
    for text in ["main", "branch", "pr:0", "pr:-1", "pr:x", "pr:18446744073709551616", "sha:0123", "refs/heads/main"] {
        table.push((vec![format!("--repo={GOOD_URL}"), format!("--ref={text}")], "ref"));
    }
    for text in ["0", "-1", "9223372036854775808", "18446744073709551616", "much", "", "1e99", "NaN"] {
        for option in ["cpu", "memory", "disk", "time"] {
            table.push((vec![format!("--repo={GOOD_URL}"), format!("--{option}={text}")], option));
        }
    }
    for option in ["tenant", "project", "branch"] {
        table.push((vec![format!("--repo={GOOD_URL}"), format!("--{option}={name}")], option));
        table.push((vec![format!("--repo={GOOD_URL}"), format!("--{option}=a\nb")], option));
    }
    assert!(table.len() >= 100, "{}", table.len());
    let mut wrong = Vec::new();
    for (options, named) in table {
        let args = ["run".to_owned()].into_iter().chain(options.clone()).chain(["--".into(), "true".into()]);
        let output = stoker.run(args);
        let told = output.stderr.contains(named) && !output.stderr.contains("secret") && output.stdout.is_empty();
        if output.code() != Some(64) || !told {
            let options: String = options.join(" ").chars().take(200).collect();
            wrong.push(format!(
                "{options}: {:?} {}",
                output.code(),
                output.stderr.chars().take(600).collect::<String>()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(listing(stoker.home()), before);
}
