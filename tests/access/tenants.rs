//! Tenants beside each other on one node: what is another's looks as if it were not there, over gRPC and over HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use stoker_proto::v1;
use tonic::{Code, Status};

use super::{Caller, LIMIT, Node};
use crate::support::repository::TestRepo;
use crate::support::token_review::of;
use crate::support::upstream::Upstream;
use crate::support::wait;
use crate::support::wire::{reason, source, violations};

const MIB: i64 = 1 << 20;

struct Farm {
    node: Node,
    public: String,
    secret: String,
    red: Caller,
    blue: Caller,
    green: Caller,
    _upstream: (Upstream, [TestRepo; 2]),
}

async fn farm() -> Farm {
    farm_that_adds("declared").await
}

async fn farm_that_adds(add: &str) -> Farm {
    let upstream = Upstream::start();
    let (one, other) = (TestRepo::standard(), TestRepo::standard());
    let (public, secret) = (upstream.host("public", &one), upstream.host("secret", &other));
    let node = Node::start(&format!(
        "repositories:\n  protocols: [http]\n  add: {add}\n  allow: [127.0.0.1]\n  mirrors: [{{url: \"{public}\"}}, {{url: \"{secret}\", trust: \
         secret}}]\n  serve: {{anonymous: loopback}}\naccess:\n  rules:\n    - {{role: scheduler, namespaces: [red, blue]}}\n    \
         - {{role: scheduler, serviceAccounts: [green/builder], trust: [secret]}}\n    - {{role: scheduler, \
         serviceAccounts: [green/other]}}\n    - {{role: scheduler, users: [everybody], tenants: [\"*\"]}}\n"
    ));
    let (red, blue) = (node.account(&of("red", "builder")).await, node.account(&of("blue", "builder")).await);
    let green = node.account(&of("green", "builder")).await;
    for url in [&public, &secret] {
        let mut root = node.agent.repository().await;
        let request = v1::RefreshRepositoryRequest { url: url.clone(), only_if_empty: true };
        let mut events = root.refresh_repository(request).await.unwrap().into_inner();
        while events.message().await.unwrap().is_some() {}
    }
    Farm { node, public, secret, red, blue, green, _upstream: (upstream, [one, other]) }
}

fn build(url: &str, tenant: &str) -> v1::Build {
    v1::Build {
        source: Some(source(url, "branch:main")),
        scope: Some(v1::Scope { tenant: tenant.to_owned(), ..v1::Scope::default() }),
        declared: Some(v1::Size {
            cpu_millis: Some(10),
            memory_bytes: Some(16 * MIB),
            disk_bytes: Some(16 * MIB),
            disk_inodes: Some(1000),
            time_budget: None,
        }),
        ..v1::Build::default()
    }
}

async fn admit(caller: &Caller, id: &str, build: v1::Build) -> Result<v1::Lease, Status> {
    let request = v1::AdmitRequest { request_id: id.to_owned(), build: Some(build), ..v1::AdmitRequest::default() };
    match caller.admission().admit(request).await?.into_inner().decision {
        Some(v1::admit_response::Decision::Granted(lease)) => Ok(lease),
        other => panic!("{id}: {other:?}"),
    }
}

async fn awaited(caller: &Caller, build: v1::Build) -> Result<(), Status> {
    let admit = v1::AdmitRequest { request_id: "awaited".into(), build: Some(build), ..Default::default() };
    let request = v1::AwaitAdmissionRequest { admit: Some(admit) };
    caller.admission().await_admission(request).await?.into_inner().message().await.map(|_| ())
}

async fn prepare(caller: &Caller, lease: &str) -> Result<v1::Workspace, Status> {
    prepare_for(caller, v1::prepare_workspace_request::For::LeaseId(lease.to_owned())).await
}

async fn prepare_unleased(caller: &Caller, id: &str, url: &str, tenant: &str) -> Result<v1::Workspace, Status> {
    let wanted = v1::Unleased {
        request_id: id.to_owned(),
        source: Some(source(url, "branch:main")),
        scope: Some(v1::Scope { tenant: tenant.to_owned(), ..v1::Scope::default() }),
        ..v1::Unleased::default()
    };
    prepare_for(caller, v1::prepare_workspace_request::For::Unleased(wanted)).await
}

async fn prepare_for(caller: &Caller, wanted: v1::prepare_workspace_request::For) -> Result<v1::Workspace, Status> {
    let request = v1::PrepareWorkspaceRequest { r#for: Some(wanted), ..v1::PrepareWorkspaceRequest::default() };
    let mut events = caller.workspaces().prepare_workspace(request).await?.into_inner();
    loop {
        if let Some(v1::prepare_workspace_response::Event::Workspace(made)) = events.message().await?.unwrap().event {
            return Ok(made);
        }
    }
}

/// `GET PATH` over HTTP, with a header: the status, and the body.
pub(super) fn get(node: &Node, path: &str, header: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", node.agent.http_port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n{header}\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn bearer(node: &Node, namespace: &'static str) -> String {
    format!("Authorization: Bearer {}\r\n", node.cluster.token(&of(namespace, "builder")))
}

#[track_caller]
fn absent<T: std::fmt::Debug>(answer: Result<T, Status>) {
    assert_eq!(answer.expect_err("it is another's").code(), Code::NotFound);
}

/// Who could ask by such a name would have the place of another's pod.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_pods_that_wait_for_a_node_are_for_who_may_ask_for_all_tenants() {
    let Farm { node, public, red, green, .. } = &farm().await;
    let id = "gate-01890000-0000-7000-8000-000000000000-1";
    for caller in [red, green] {
        let refused = admit(caller, id, build(public, "")).await.unwrap_err();
        assert_eq!((refused.code(), violations(&refused)), (Code::InvalidArgument, vec!["request_id".to_owned()]));
        assert!(refused.message().contains("role scheduler for tenants [\"*\"]"), "{refused:?}");
        let admit =
            v1::AdmitRequest { request_id: id.to_owned(), build: Some(build(public, "")), ..Default::default() };
        let refused = caller.admission().await_admission(v1::AwaitAdmissionRequest { admit: Some(admit) }).await;
        assert_eq!(violations(&refused.map(drop).unwrap_err()), ["admit.request_id"]);
    }
    let everybody = node.certified(&node.authority.client("everybody", "")).await;
    let lease = admit(&everybody, id, build(public, "red")).await.unwrap();
    assert_eq!(lease.request_id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_and_changes_no_lease_workspace_or_output_of_another() {
    let Farm { node, public, red, blue, .. } = &farm().await;
    let lease = admit(red, "red-1", build(public, "")).await.unwrap();
    assert_eq!(lease.scope.as_ref().unwrap().tenant, "red", "a tenant is the namespace");
    let id = || lease.id.clone();
    let made = prepare(red, &lease.id).await.unwrap();
    std::fs::write(format!("{}/image", made.out), "mine").unwrap();

    let mut theirs = blue.admission();
    absent(theirs.get_lease(v1::GetLeaseRequest { lease_id: id() }).await);
    absent(theirs.renew(v1::RenewRequest { lease_id: id(), reserve_for: None }).await);
    let pod = v1::Pod { namespace: "blue".into(), name: "p".into(), uid: "u".into() };
    absent(theirs.bind(v1::BindRequest { lease_id: id(), to: Some(v1::bind_request::To::Pod(pod)) }).await);
    let outcome = v1::Outcome::Succeeded.into();
    absent(theirs.release(v1::ReleaseRequest { lease_id: id(), outcome, ..Default::default() }).await);
    for what in [v1::explain_request::What::LeaseId(id()), v1::explain_request::What::RequestId("red-1".into())] {
        absent(theirs.explain(v1::ExplainRequest { what: Some(what) }).await);
    }
    let retry = v1::AdmitRequest { request_id: "b".into(), retry_of: id(), ..Default::default() };
    absent(theirs.admit(retry).await);
    let all = v1::ListLeasesRequest { states: vec![v1::LeaseState::Reserved.into()], ..Default::default() };
    assert_eq!(theirs.list_leases(all.clone()).await.unwrap().into_inner().leases, []);
    assert_eq!(red.admission().list_leases(all).await.unwrap().into_inner().leases.len(), 1);
    let mut watch = theirs.watch_leases(v1::WatchLeasesRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().lease, None, "the state holds nothing of another's");

    // In another's name, and by another's request.
    let taken = admit(blue, "blue-1", build(public, "red")).await.expect_err("another's tenant");
    assert_eq!((taken.code(), reason(&taken)), (Code::PermissionDenied, "ACCESS_DENIED".to_owned()));
    assert!(taken.message().starts_with("build.scope.tenant: "), "{}", taken.message());
    let same = admit(blue, "red-1", build(public, "")).await.expect_err("another's request id");
    assert_eq!(same.code(), Code::AlreadyExists);
    let used = node.status(blue).await.unwrap().lease_use;
    assert!(used.iter().all(|seen| seen.lease_id != lease.id), "{used:?}");

    absent(prepare(blue, &lease.id).await);
    absent(blue.workspaces().get_workspace(v1::GetWorkspaceRequest { id: made.id.clone() }).await);
    absent(blue.workspaces().delete_workspace(v1::DeleteWorkspaceRequest { id: made.id.clone() }).await);
    assert!(
        blue.workspaces()
            .list_workspaces(v1::ListWorkspacesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .workspaces
            .is_empty()
    );

    let outcome = v1::Outcome::Succeeded.into();
    red.admission().release(v1::ReleaseRequest { lease_id: id(), outcome, ..Default::default() }).await.unwrap();
    let outputs = |caller: &Caller| {
        let mut client = caller.workspaces();
        async move { client.list_outputs(v1::ListOutputsRequest::default()).await.unwrap().into_inner().outputs }
    };
    wait::until_async(LIMIT, "the output", || async { !outputs(red).await.is_empty() }).await;
    let output = outputs(red).await.remove(0).id;
    assert!(outputs(blue).await.is_empty());
    absent(blue.workspaces().get_output(v1::GetOutputRequest { id: output.clone() }).await);
    absent(blue.workspaces().release_output(v1::ReleaseOutputRequest { id: output.clone() }).await);
    absent(blue.workspaces().delete_output(v1::DeleteOutputRequest { id: output.clone() }).await);
    let path = format!("/outputs/{output}/image");
    assert_eq!(get(node, &path, &bearer(node, "red")), (200, "mine".to_owned()));
    assert_eq!(get(node, &path, &bearer(node, "blue")).0, 404);
    assert_eq!(get(node, &path, "Authorization: Bearer secret\r\n").0, 401, "a wrong token is not nothing");
    assert!(!get(node, "/outputs/", &bearer(node, "blue")).1.contains(&output));
    red.workspaces().delete_output(v1::DeleteOutputRequest { id: output }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_reads_what_its_trust_class_may_and_nothing_else() {
    let Farm { node, public, secret, red, green, .. } = &farm().await;
    let hidden = |answer: Result<(), Status>| {
        let status = answer.expect_err("it is of another trust class");
        assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, "REPOSITORY_NOT_DECLARED".to_owned()));
        status.message().to_owned()
    };
    for (caller, mine, others) in [(red, public, secret), (green, secret, public)] {
        let resolve = |url: &str| v1::ResolveSourceRequest { source: Some(source(url, "branch:main")) };
        assert!(caller.repositories().resolve_source(resolve(mine)).await.is_ok());
        let told = hidden(caller.repositories().resolve_source(resolve(others)).await.map(|_| ()));
        // As of what is not here.
        let nowhere = others.replace("public", "nowhere").replace("secret", "nowhere");
        let missing = hidden(caller.repositories().resolve_source(resolve(&nowhere)).await.map(|_| ()));
        assert_eq!(told.replace(others, "URL"), missing.replace(&nowhere, "URL"));
        let listed = caller.repositories().list_repositories(v1::ListRepositoriesRequest::default()).await.unwrap();
        let urls: Vec<_> = listed.into_inner().repositories.into_iter().map(|one| one.url).collect();
        assert_eq!(urls, std::slice::from_ref(mine));
        absent(caller.repositories().get_repository(v1::GetRepositoryRequest { url: others.clone() }).await);
        let refresh = v1::RefreshRepositoryRequest { url: others.clone(), only_if_empty: false };
        let told = hidden(caller.repositories().refresh_repository(refresh).await.map(|_| ()));
        let refresh = v1::RefreshRepositoryRequest { url: nowhere.clone(), only_if_empty: false };
        let missing = hidden(caller.repositories().refresh_repository(refresh).await.map(|_| ()));
        assert_eq!(told.replace(others, "URL"), missing.replace(&nowhere, "URL"));
        let add = v1::AddRepositoryRequest { url: others.clone(), ..Default::default() };
        hidden(caller.repositories().add_repository(add).await.map(|_| ()));
        let evaluate = v1::EvaluateRequest { builds: vec![build(mine, ""), build(others, "")] };
        hidden(caller.admission().evaluate(evaluate).await.map(|_| ()));
        hidden(admit(caller, "x", build(others, "")).await.map(|_| ()));
        let wanted =
            v1::Unleased { source: Some(source(others, "head")), request_id: "u".into(), ..Default::default() };
        let wanted = Some(v1::prepare_workspace_request::For::Unleased(wanted));
        let wanted = v1::PrepareWorkspaceRequest { r#for: wanted, ..Default::default() };
        hidden(caller.workspaces().prepare_workspace(wanted).await.map(|_| ()));
        let pinned = v1::AddRepositoryRequest { url: mine.clone(), pin: true, ..Default::default() };
        assert_eq!(caller.repositories().add_repository(pinned).await.unwrap_err().code(), Code::PermissionDenied);
    }
    let refs = |url: &str| format!("/git/{}/info/refs?service=git-upload-pack", url.strip_prefix("http://").unwrap());
    let (of_red, of_green) = (bearer(node, "red"), bearer(node, "green"));
    for (url, header, code) in [
        (public, "", 200),
        (secret, "", 404),
        (public, of_red.as_str(), 200),
        (secret, &of_red, 404),
        (public, &of_green, 404),
        (secret, &of_green, 200),
    ] {
        assert_eq!(get(node, &refs(url), header).0, code, "{url} {header}");
    }
    // Hidden and missing are told the same, whoever asks.
    let nowhere = secret.replace("secret", "nowhere");
    for (hidden, header) in [(secret, ""), (secret, of_red.as_str()), (public, &of_green)] {
        let (told, missing) = (get(node, &refs(hidden), header), get(node, &refs(&nowhere), header));
        let path = |url: &str| url.strip_prefix("http://").unwrap().to_owned();
        assert_eq!(
            (told.0, told.1.replace(&path(hidden), "")),
            (404, missing.1.replace(&path(&nowhere), "")),
            "{header}"
        );
    }
    // Everybody may read these: they name what is public.
    let metrics = get(node, "/metrics", "").1;
    let named = |url: &str| metrics.contains(&format!("repository=\"{}\"", url.strip_prefix("http://").unwrap()));
    assert!(named(public) && !named(secret), "{metrics}");
    // As git sends what its credential helper has.
    use base64::Engine as _;
    let pair = format!("token:{}", node.cluster.token(&of("green", "builder")));
    let basic = base64::engine::general_purpose::STANDARD.encode(pair);
    assert_eq!(get(node, &refs(secret), &format!("Authorization: Basic {basic}\r\n")).0, 200);
    // The page shows all tenants.
    assert_eq!((get(node, "/", "").0, get(node, "/", &of_red).0), (200, 403));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_and_cancels_no_ticket_of_another() {
    let Farm { node, public, red, blue, .. } = &farm().await;
    let mode = v1::SetModeRequest { mode: v1::Mode::Maintenance.into(), ..Default::default() };
    node.agent.node().await.set_mode(mode).await.unwrap();
    let build = Some(build(public, ""));
    let request = v1::AdmitRequest { request_id: "red-1".into(), build, take_ticket: true, ..Default::default() };
    let decision = red.admission().admit(request).await.unwrap().into_inner().decision;
    let Some(v1::admit_response::Decision::Waiting(v1::Waiting { ticket: Some(ticket), .. })) = decision else {
        panic!("{decision:?}");
    };
    let tickets = |caller: &Caller| {
        let mut client = caller.admission();
        async move { client.list_tickets(v1::ListTicketsRequest::default()).await.unwrap().into_inner().tickets.len() }
    };
    assert_eq!((tickets(red).await, tickets(blue).await), (1, 0));
    let id = || ticket.id.clone();
    let what = Some(v1::explain_request::What::TicketId(id()));
    absent(blue.admission().explain(v1::ExplainRequest { what }).await);
    absent(blue.admission().cancel_ticket(v1::CancelTicketRequest { ticket_id: id() }).await);
    assert_eq!(tickets(red).await, 1);
    // Behind it another tenant learns that somebody waits, and not who.
    let request = v1::AdmitRequest {
        request_id: "blue-1".into(),
        build: Some(self::build(public, "")),
        take_ticket: true,
        ..Default::default()
    };
    blue.admission().admit(request).await.unwrap();
    let what = Some(v1::explain_request::What::RequestId("blue-1".into()));
    let told = blue.admission().explain(v1::ExplainRequest { what }).await.unwrap().into_inner().explanation.unwrap();
    assert_eq!((told.ahead, told.head_request_id.as_str()), (1, ""), "{told:?}");
    assert!(told.ahead_of.iter().all(|ahead| ahead.tenant != "red"), "{told:?}");
    red.admission().cancel_ticket(v1::CancelTicketRequest { ticket_id: id() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hidden_is_told_of_as_what_upstream_does_not_have() {
    let Farm { public, secret, red, .. } = &farm_that_adds("on-demand").await;
    let nowhere = public.replace("public", "nowhere");
    let resolve = async |url: &str| {
        let request = v1::ResolveSourceRequest { source: Some(source(url, "branch:main")) };
        red.repositories().resolve_source(request).await.map(|_| ())
    };
    let told = async |url: &str| {
        let answers = [
            resolve(url).await,
            admit(red, "b", build(url, "")).await.map(|_| ()),
            awaited(red, build(url, "")).await,
            prepare_unleased(red, "w", url, "").await.map(|_| ()),
        ];
        answers.map(|answer| {
            let status = answer.expect_err(url);
            (status.code(), reason(&status), status.message().replace(url.trim_start_matches("http://"), ""))
        })
    };
    let (missing, hidden) = (told(&nowhere).await, told(secret).await);
    assert_eq!((missing[0].0, missing[0].1.as_str()), (Code::NotFound, "UPSTREAM_NOT_FOUND"));
    assert!(missing.iter().all(|one| *one == missing[0]), "{missing:?}");
    assert_eq!(missing, hidden);
    resolve(public).await.expect("what it may read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_without_a_lease_is_one_tenants_also_while_it_comes() {
    let Farm { node, public, red, blue, .. } = &farm().await;
    let is_taken = |answer: &Result<v1::Workspace, Status>| matches!(answer, Err(status) if status.code() == Code::AlreadyExists && status.message().contains("request_id"));
    for round in 0..8 {
        let id = format!("same-{round}");
        let both = tokio::join!(prepare_unleased(red, &id, public, ""), prepare_unleased(blue, &id, public, ""));
        let (made, refused) = if both.0.is_ok() { (both.0, both.1) } else { (both.1, both.0) };
        assert!(made.is_ok() && is_taken(&refused), "{id}: {made:?} {refused:?}");
    }
    // Who may ask for both tenants does not get the one's for the other.
    let everybody = node.certified(&node.authority.client("everybody", "ops")).await;
    let made = prepare_unleased(&everybody, "mine", public, "red").await.unwrap();
    let other = prepare_unleased(&everybody, "mine", public, "blue").await;
    assert!(is_taken(&other), "{other:?}");
    assert_eq!(prepare_unleased(&everybody, "mine", public, "red").await.unwrap().src, made.src, "and its own again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_of_a_repository_is_for_those_who_may_read_it() {
    let Farm { node, secret, green, .. } = &farm().await;
    // Of the same tenant, by a rule without the trust class.
    let other = node.account(&of("green", "other")).await;
    let lease = admit(green, "green-1", build(secret, "")).await.unwrap();
    let made = prepare(green, &lease.id).await.unwrap();
    std::fs::write(format!("{}/image", made.out), "mine").unwrap();
    absent(prepare(&other, &lease.id).await);
    // Its tenant's lease is seen, but not what it builds.
    let wanted = || v1::GetLeaseRequest { lease_id: lease.id.clone() };
    let seen = |answer: v1::GetLeaseResponse| answer.lease.unwrap().source;
    assert_eq!(seen(other.admission().get_lease(wanted()).await.unwrap().into_inner()), None);
    assert!(seen(green.admission().get_lease(wanted()).await.unwrap().into_inner()).is_some());
    let listed = other.admission().list_leases(v1::ListLeasesRequest::default()).await.unwrap().into_inner().leases;
    assert_eq!(listed.iter().map(|lease| lease.source.clone()).collect::<Vec<_>>(), [None]);
    let retry = v1::AdmitRequest { request_id: "o".into(), retry_of: lease.id.clone(), ..Default::default() };
    absent(other.admission().admit(retry).await);
    absent(other.workspaces().get_workspace(v1::GetWorkspaceRequest { id: made.id.clone() }).await);
    absent(other.workspaces().delete_workspace(v1::DeleteWorkspaceRequest { id: made.id.clone() }).await);
    let listed = other.workspaces().list_workspaces(v1::ListWorkspacesRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().workspaces, []);

    let outcome = v1::Outcome::Succeeded.into();
    let release = v1::ReleaseRequest { lease_id: lease.id.clone(), outcome, ..Default::default() };
    green.admission().release(release).await.unwrap();
    let outputs = |caller: &Caller| {
        let mut client = caller.workspaces();
        async move { client.list_outputs(v1::ListOutputsRequest::default()).await.unwrap().into_inner().outputs }
    };
    wait::until_async(LIMIT, "the output", || async { !outputs(green).await.is_empty() }).await;
    let id = outputs(green).await.remove(0).id;
    assert_eq!(outputs(&other).await, []);
    absent(other.workspaces().get_output(v1::GetOutputRequest { id: id.clone() }).await);
    absent(other.workspaces().delete_output(v1::DeleteOutputRequest { id: id.clone() }).await);
    let path = format!("/outputs/{id}/image");
    assert_eq!(get(node, &path, &bearer(node, "green")), (200, "mine".to_owned()));
    let header = format!("Authorization: Bearer {}\r\n", node.cluster.token(&of("green", "other")));
    assert_eq!(get(node, &path, &header).0, 404);
}
