#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, StatusCode};
use prost_types::Timestamp as ProtoTimestamp;
use stoker_core::admission::{Lease, LeaseState, Place, Request as BuildRequest, Source, Terms, Ticket};
use stoker_core::identity::{CommitId, LeaseId, RequestId, Scope, TicketId};
use stoker_core::quantity::{Amounts, Size, Span, Timestamp};
use stoker_core::reason::{Code, Reason};
use stoker_core::sizing::Sizing;
use stoker_proto::v1;
use tower::ServiceExt;

use super::html::{Text, rough, shown};
use super::page::{Sight, page, policy};
use super::{ready_text, without_words};
use crate::config::{self, NodeIdentity};
use crate::repository::{Eviction, Progress, RepositoryState, View};
use crate::supervise::Agent;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const GIB: i64 = 1 << 30;
/// What somebody may call a branch, a tenant, a directory.
const HOSTILE: &str = "<script>alert(\"1\")</script>&'\u{202e}\u{7}";

fn at(seconds_ago: i64) -> Option<ProtoTimestamp> {
    Some(ProtoTimestamp { seconds: NOW.0 / 1000 - seconds_ago, nanos: 0 })
}

fn size(cpu: i64, memory: i64, disk: i64, inodes: i64) -> Option<v1::Size> {
    Some(v1::Size {
        cpu_millis: Some(cpu * 1000),
        memory_bytes: Some(memory * GIB),
        disk_bytes: Some(disk * GIB),
        disk_inodes: Some(inodes),
        time_budget: None,
    })
}

fn reason(code: v1::reason::Code, message: &str) -> v1::Reason {
    v1::Reason { code: code.into(), message: message.into(), ..v1::Reason::default() }
}

/// The node of the incident with a build on it, another one waiting, and a disk that is not there.
pub(crate) fn status(name: &str) -> v1::Status {
    let disk = v1::Filesystem {
        total_bytes: 1000 * GIB,
        free_bytes: 400 * GIB,
        total_inodes: 50_000_000,
        free_inodes: 40_000_000,
        floor_bytes: 100 * GIB,
        floor_inodes: 2_500_000,
        r#type: "xfs".into(),
        ..Default::default()
    };
    let directory = v1::Directory {
        path: name.into(),
        state: "Prepared".into(),
        message: String::new(),
        retention: "cache".into(),
        ..Default::default()
    };
    let pool = |name: &str, state: &str, filesystem| v1::Pool {
        name: name.into(),
        path: format!("/var/mnt/{name}-data"),
        state: state.into(),
        message: String::new(),
        filesystem,
        directories: vec![directory.clone()],
        since: at(7300),
    };
    v1::Status {
        retention: Some(v1::Retention {
            looked_at: at(5),
            last_removed_at: at(7300),
            last_removed: 2,
            last_removed_bytes: GIB,
            next_at: at(-86_400),
            outputs: 3,
            outputs_bytes: 1024,
            orphans: 1,
            orphans_bytes: 5,
            ..Default::default()
        }),
        node: Some(v1::Node {
            name: name.into(),
            agent_version: "0.1.0".into(),
            observed_at: at(0),
            ..v1::Node::default()
        }),
        mode: v1::Mode::Maintenance.into(),
        mode_note: name.into(),
        mode_until: at(-600),
        gate: Some(v1::Gate {
            state: v1::GateState::Narrow.into(),
            reasons: vec![reason(v1::reason::Code::MemoryNarrow, "memory: 7 GiB available, the floor is 8 GiB")],
            since: at(45),
        }),
        memory: Some(v1::Memory { total_bytes: 62 * GIB, available_bytes: 7 * GIB, ..Default::default() }),
        cpu: Some(v1::Cpu {
            total_millis: 32_000,
            used_millis: 15_900,
            stall: Some(v1::Stall { known: true, some_avg10: 2753, ..v1::Stall::default() }),
            load: None,
        }),
        pools: vec![pool("ghost", "Ready", Some(disk.clone())), pool("exo0", "NotMounted", None)],
        root: Some(disk),
        ledger: Some(v1::Ledger {
            capacity: size(32, 62, 900, 45_000_000),
            reserve: size(4, 8, 0, 0),
            budget: size(28, 54, 900, 45_000_000),
            others: size(1, 2, 600, 7_500_000),
            leased: size(20, 40, 20, 1_000_000),
            free: size(7, 12, 280, 36_500_000),
        }),
        counts: Some(v1::Counts {
            leases: 1,
            tickets: 1,
            repositories: 1,
            repositories_empty: 1,
            ..v1::Counts::default()
        }),
        alarms: vec![reason(v1::reason::Code::PoolNotReady, &format!("pool {name} is NotMounted"))],
        started_at: at(90_000),
        ..v1::Status::default()
    }
}

/// A declared mirror that never filled.
pub(crate) fn repository() -> View {
    View {
        url: "https://github.com/projectbluefin/dakota".parse().unwrap(),
        state: RepositoryState::Empty,
        declared: true,
        declared_by: "configuration".into(),
        submodules: false,
        pinned: true,
        trust: "public".into(),
        disk_bytes: 0,
        objects: 0,
        refs: 0,
        head: String::new(),
        last_fetch_at: None,
        next_refresh_at: None,
        confirmed_at: Some(Timestamp(NOW.0 - 61_000)),
        snapshot: String::new(),
        snapshots: 0,
        reasons: vec![Reason::new(Code::UpstreamUnreachable, "upstream", "github.com does not answer")],
        progress: None,
        hits: 3,
        misses: 1,
        folder: String::new(),
        failures: 2,
        store: String::new(),
        stale: 0,
        filled: false,
        heals: std::collections::BTreeMap::new(),
        packs: 3,
        last_used_at: None,
        evicted: None,
        snapshots_in_use: 0,
        holders: 0,
        shares_store_with: 0,
        last_upkeep: None,
        upkeep_skipped: None,
    }
}

fn request(name: &str) -> BuildRequest {
    let amounts = Amounts { cpu_millis: 20_000, memory_bytes: 40 << 30, disk_bytes: 20 << 30, disk_inodes: 1_000_000 };
    BuildRequest {
        id: RequestId::try_from("r1".to_owned()).unwrap(),
        digest: String::new(),
        source: Source {
            repository: "https://github.com/projectbluefin/dakota".into(),
            reference: format!("branch:{name}"),
            commit: CommitId::new([7; 20]),
            clone_url: String::new(),
            clone_ref: String::new(),
            as_of: NOW,
            origin: "upstream".into(),
            snapshot: String::new(),
            subject: String::new(),
            other_fork: false,
        },
        sizing: Sizing {
            size: Size { amounts, time_budget: Span::minutes(90) },
            basis: Vec::new(),
            clamped: false,
            provisional: false,
        },
        scope: Scope { tenant: name.into(), project: "image".into(), branch: String::new() },
        target: name.into(),
        cache_keys: Vec::new(),
        attempt: 1,
        bind_within: Span::minutes(5),
        priority: 0,
        expected: None,
        retry_of: None,
        no_retry: false,
        terms: Terms::default(),
        asked: None,
    }
}

fn lease(name: &str) -> Lease {
    let request = request(name);
    Lease {
        id: LeaseId::try_from("06h01e3kzabx37yx".to_owned()).unwrap(),
        request_id: request.id,
        digest: request.digest,
        state: LeaseState::Bound,
        sizing: request.sizing,
        source: request.source,
        scope: request.scope,
        target: request.target,
        cache_keys: Vec::new(),
        attempt: 1,
        created_at: Timestamp(NOW.0 - 300_000),
        confirm_by: None,
        bind_by: NOW,
        bound_at: Some(NOW),
        ends_at: Some(Timestamp(NOW.0 + 5_100_000)),
        ended_at: None,
        holder: None,
        peak: None,
        peak_at_least: false,
        outcome: None,
        exit_code: None,
        reasons: Vec::new(),
        place: Place::default(),
        expected: None,
        retry_of: None,
        no_retry: false,
        terms: request.terms,
        controller: String::new(),
        unheld_since: None,
        retry: None,
    }
}

fn rendered(name: &str, still: bool, tickets: usize) -> String {
    let ticket = |order| {
        Arc::new(Ticket {
            id: TicketId::try_from(format!("t{order}")).unwrap(),
            order,
            request: request(name),
            created_at: Timestamp(NOW.0 - 20_000),
            expires_at: NOW,
            joined: 0,
            cost: 1,
            head_since: None,
        })
    };
    let tickets: Vec<_> = (0..u64::try_from(tickets).unwrap()).map(ticket).collect();
    let (status, leases) = (status(name), [Arc::new(lease(name))]);
    let filling = View {
        state: RepositoryState::Filling,
        progress: Some(Progress { done: 45, total: 90, bytes: 7 << 20, ..Progress::phase("receiving") }),
        next_refresh_at: Some(Timestamp(NOW.0 + 60_000)),
        snapshots_in_use: 1,
        holders: 3,
        stale: 2,
        reasons: Vec::new(),
        ..repository()
    };
    let repositories = [repository(), filling];
    let evictions = [Eviction {
        at: Timestamp(NOW.0 - 120_000),
        repository: name.into(),
        what: format!("mirror {name}"),
        code: Code::RepositoriesLimit,
    }];
    page(&Sight {
        status: &status,
        repositories: &repositories,
        evictions: &evictions,
        leases: &leases,
        tickets: &tickets,
        now: NOW,
        still,
    })
}

/// What people read of it, a line for each block.
fn words(page: &str) -> String {
    let body = page.split_once("<body>").unwrap().1;
    let (mut text, mut tag) = (String::new(), String::new());
    let mut inside = false;
    for c in body.chars() {
        match (inside, c) {
            (false, '<') => (inside, tag) = (true, String::new()),
            (true, '>') => {
                inside = false;
                let name = tag.trim_start_matches('/').split(' ').next().unwrap_or_default();
                let block =
                    matches!(name, "p" | "li" | "h1" | "h2" | "h3" | "tr" | "section" | "article" | "div" | "ul");
                text.push_str(if block {
                    "\n"
                } else if matches!(name, "td" | "th" | "small") {
                    " "
                } else {
                    ""
                });
            }
            (true, c) => tag.push(c),
            (false, c) => text.push(c),
        }
    }
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(line).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_page_says_what_there_is_alarms_first() {
    insta::assert_snapshot!(words(&rendered("ghost", false, 1)));
}

#[test]
fn nothing_from_outside_is_markup() {
    let page = rendered(HOSTILE, false, 1);
    assert!(!page.contains("<script") && !page.contains("\u{202e}") && !page.contains('\u{7}'), "{page}");
    let escaped = "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;\\u{202e}\u{fffd}";
    assert!(page.matches(escaped).count() >= 10, "{page}");
    assert_eq!(Text(HOSTILE).to_string(), escaped);
}

#[test]
fn every_element_that_is_opened_is_closed() {
    let page = rendered(HOSTILE, true, 3);
    for name in
        ["section", "table", "tr", "td", "th", "div", "ul", "li", "svg", "span", "small", "b", "p", "code", "article"]
    {
        let opened = page.matches(&format!("<{name}>")).count() + page.matches(&format!("<{name} ")).count();
        assert_eq!(opened, page.matches(&format!("</{name}>")).count(), "{name}");
    }
}

#[test]
fn a_page_that_stands_still_does_not_load_again() {
    assert!(rendered("ghost", false, 1).contains("http-equiv=\"refresh\""));
    assert!(!rendered("ghost", true, 1).contains("http-equiv=\"refresh\""));
}

#[test]
fn a_long_queue_is_cut_and_says_so() {
    let page = rendered("ghost", true, 230);
    assert!(page.contains("and 30 more") && page.contains("230 builds wait"));
    assert!(page.len() < 200_000, "{}", page.len());
}

#[test]
fn the_policy_allows_the_pages_own_style_and_no_style_on_elements() {
    let page = rendered(HOSTILE, false, 1);
    assert!(!page.contains("style=\"") && !page.contains("<script"));
    assert!(policy().contains("style-src 'sha256-") && !policy().contains("unsafe"), "{}", policy());
}

#[test]
fn people_read_spans_and_counts_by_their_largest_unit() {
    let spans = [(119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 days")];
    for (seconds, words) in spans {
        assert_eq!(rough(Span::seconds(seconds)), words);
    }
    let inodes =
        [(9_999, "9999"), (10_000, "10 thousand"), (16_777_216, "16.7 million"), (1 << 50, "1125899.9 billion")];
    for (count, words) in inodes {
        assert_eq!(shown(stoker_core::quantity::Resource::DiskInodes, count), words);
    }
}

/// A real agent; its faces are asked without a listener.
async fn agent(folder: &std::path::Path) -> Agent {
    let pool = folder.join("pool");
    std::fs::create_dir(&pool).unwrap();
    let text = format!(
        "{{apiVersion: stoker.build/v1, kind: AgentConfig, state: {0}/state, pools: [{{name: data, path: {0}/pool, mount: \
         optional, floor: {{bytes: 1%, inodes: 1%}}}}, {{name: gone, path: {0}/gone, mount: required}}], repositories: \
         {{pool: data}}, listen: {{socket: {0}/socket}}}}",
        folder.display()
    );
    let (_, config) = config::read(&text, "test", &NodeIdentity::of_this_node()).unwrap();
    Agent::start(config).await.unwrap()
}

async fn ask(routes: &axum::Router, method: Method, path: &str) -> (StatusCode, axum::http::HeaderMap, String) {
    let here = ConnectInfo::<SocketAddr>("127.0.0.1:5".parse().unwrap());
    let request = Request::builder().method(method).uri(path).extension(here).body(Body::empty()).unwrap();
    let response = routes.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn git_is_for_this_machine_unless_the_configuration_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let routes = super::routes(agent.rooms().clone());
    let ask = async |peer: Option<&str>| {
        let mut request = Request::builder().uri("/git/example.org/a/info/refs?service=git-upload-pack");
        if let Some(peer) = peer {
            request = request.extension(ConnectInfo::<SocketAddr>(peer.parse().unwrap()));
        }
        routes.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
    };
    for peer in [None, Some("192.0.2.1:5"), Some("[2001:db8::1]:5"), Some("[::ffff:192.0.2.1]:5")] {
        assert_eq!(ask(peer).await, StatusCode::FORBIDDEN, "{peer:?}");
    }
    // Nothing is declared there.
    for peer in ["127.0.0.1:5", "127.1.2.3:5", "[::1]:5", "[::ffff:127.0.0.1]:5"] {
        assert_eq!(ask(Some(peer)).await, StatusCode::NOT_FOUND, "{peer}");
    }
    agent.stop(std::time::Duration::from_secs(5)).await;
}

#[test]
fn who_may_not_see_the_status_learns_no_tenant_and_no_private_mirror() {
    use v1::reason::Code;
    let alarm = |code: Code, subject: &str, message: &str| v1::Reason {
        code: code.into(),
        subject: subject.to_owned(),
        message: message.to_owned(),
        ..v1::Reason::default()
    };
    let mut status = v1::Status {
        alarms: vec![
            alarm(Code::PoolNotReady, "data", "pool data is NotMounted: /var/mnt/data"),
            alarm(Code::RepositoryEmpty, "example.org/private", "declared mirror https://example.org/private is empty"),
            alarm(Code::RepositoryEmpty, "example.org/other", "declared mirror https://example.org/other is empty"),
            alarm(Code::ModeDrain, "node", "still there are: l1 of tenant \"red\""),
        ],
        ..v1::Status::default()
    };
    without_words(&mut status, &["data".to_owned()].into());
    assert_eq!(ready_text(&status), "ready\nPOOL_NOT_READY data\nREPOSITORY_EMPTY\nMODE_DRAIN\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_answers_over_http_and_is_ready_without_its_pool_until_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let routes = super::routes(agent.rooms().clone());
    for path in ["/", "/livez", "/readyz", "/metrics"] {
        let (status, headers, body) = ask(&routes, Method::GET, path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["cache-control"], "no-store");
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        assert!(!body.is_empty());
        let (status, _, body) = ask(&routes, Method::HEAD, path).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, ""), "{path}");
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            assert_eq!(ask(&routes, method, path).await.0, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
    }
    assert_eq!(ask(&routes, Method::GET, "/elsewhere").await.0, StatusCode::NOT_FOUND);
    let (_, _, ready) = ask(&routes, Method::GET, "/readyz").await;
    assert!(ready.starts_with("ready\npool data Ready\npool gone Absent\nPOOL_NOT_READY "), "{ready}");
    let (_, _, metrics) = ask(&routes, Method::GET, "/metrics").await;
    assert!(metrics.contains("stoker_pool_state{pool=\"gone\",state=\"Absent\"} 1.0"), "{metrics}");
    agent.rooms().cancel.cancel();
    assert_eq!(ask(&routes, Method::GET, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ask(&routes, Method::GET, "/livez").await.0, StatusCode::OK);
    agent.stop(std::time::Duration::from_secs(5)).await;
}
