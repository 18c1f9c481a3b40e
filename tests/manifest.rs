//! Manifests of the `repo` tool as lists of mirrors: declared and filled, followed when they change, kept when they turn
//! bad.

use std::path::Path;
use std::time::Duration;

use stoker_proto::v1;

use crate::support::repository::{TestRepo, git_out};
use crate::support::stoker::Agent;
use crate::support::upstream::{Counts, Upstream};
use crate::support::wait::until_async;
use crate::support::wire::codes;

/// As many as StarlingX has.
const PROJECTS: usize = 90;
/// For many fills on a busy machine.
const LONG: Duration = Duration::from_secs(300);
const SOON: Duration = Duration::from_secs(30);

/// An agent that declares nothing but what `manifests` says; nothing is refreshed by itself.
fn configuration(manifests: &str) -> String {
    format!(
        "listen: {{socket: $ROOT/run/stoker.sock, http: {{address: \"127.0.0.1:$PORT\"}}}}\n\
         pools: [{{name: data, path: $ROOT/pool, mount: optional, floor: {{bytes: 1MiB, inodes: 10}}}}]\nrepositories: \
         {{refresh: 1h, parallel: 8, allow: [127.0.0.1], protocols: [http], serve: {{trust: [default, public]}}, manifests: [{manifests}]}}\n"
    )
}

async fn repositories(agent: &Agent) -> Vec<v1::Repository> {
    let request = v1::ListRepositoriesRequest { page_size: 500, ..Default::default() };
    agent.repository().await.list_repositories(request).await.unwrap().into_inner().repositories
}

async fn find(agent: &Agent, url: &str) -> Option<v1::Repository> {
    repositories(agent).await.into_iter().find(|repository| repository.url == url)
}

fn is_filled(repository: Option<v1::Repository>) -> bool {
    repository.is_some_and(|repository| !repository.snapshot.is_empty())
}

async fn refresh(agent: &Agent, url: &str) {
    let request = v1::RefreshRepositoryRequest { url: url.to_owned(), only_if_empty: false };
    let mut events = agent.repository().await.refresh_repository(request).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}
}

/// What another user of the node gets: a clone over HTTP of what the node has. Gives its HEAD.
fn clone_from_the_node(agent: &Agent, url: &str, place: &Path) -> String {
    let from = format!("http://127.0.0.1:{}/git/{}", agent.http_port(), url.strip_prefix("http://").unwrap());
    git_out(Path::new("/"), &["clone", "--quiet", &from, place.to_str().unwrap()]);
    git_out(place, &["fsck", "--no-dangling", "--no-progress"]);
    git_out(place, &["rev-parse", "HEAD"])
}

/// A manifest with a remote at `fetch`.
fn manifest(fetch: &str, projects: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<manifest>\n<remote name=\"origin\" fetch=\"{fetch}\"/>\n\
         <default remote=\"origin\" revision=\"main\"/>\n{projects}\n</manifest>\n"
    )
}

fn project(name: &str) -> String {
    format!("<project name=\"{name}\" path=\"src/{name}\"/>\n")
}

/// A repository with one commit.
fn small(content: &str) -> TestRepo {
    let repo = TestRepo::empty();
    repo.commit_file("main", "README.md", content.as_bytes());
    repo
}

#[tokio::test]
async fn ninety_projects_are_declared_and_filled_and_second_users_ask_upstream_for_nothing() {
    let upstream = Upstream::start();
    let names: Vec<String> = (0..PROJECTS).map(|n| format!("project-{n}.git")).collect();
    let projects: Vec<TestRepo> = names.iter().map(|name| small(name)).collect();
    let urls: Vec<String> =
        names.iter().zip(&projects).map(|(name, repo)| upstream.host(&format!("team/src/{name}"), repo)).collect();
    let list = TestRepo::empty();
    let (first, second) = names.split_at(PROJECTS / 2);
    let lines = |names: &[String]| names.iter().map(|name| project(name)).collect::<String>();
    let included = format!("<manifest>{}</manifest>", lines(second));
    list.commit_file("main", "more/second.xml", included.as_bytes());
    let include = format!("{}<include name=\"more/second.xml\"/>", lines(first));
    list.commit_file("main", "default.xml", manifest("./src/", &include).as_bytes());
    let url = upstream.host("team/manifest.git", &list);

    let agent = Agent::start(&configuration(&format!("{{url: '{url}', pin: true, trust: public}}")));
    until_async(LONG, "all projects are filled", || async {
        let all = repositories(&agent).await;
        all.len() == PROJECTS + 1 && all.into_iter().all(|repository| is_filled(Some(repository)))
    })
    .await;
    let all = repositories(&agent).await;
    let mut expected = [urls.clone(), vec![url.clone()]].concat();
    expected.sort();
    let mut found: Vec<String> = all.iter().map(|repository| repository.url.clone()).collect();
    found.sort();
    assert_eq!(found, expected);
    for repository in all.iter().filter(|repository| repository.url != url) {
        assert!(repository.declared && repository.pinned && repository.trust == "public", "{repository:?}");
        assert_eq!(repository.declared_by, format!("manifest {url}"));
        assert_eq!(codes(&repository.reasons), [""; 0]);
    }
    assert_eq!(find(&agent, &url).await.unwrap().declared_by, "configuration");

    upstream.reset();
    let place = tempfile::tempdir().unwrap();
    for (at, (url, repo)) in urls.iter().zip(&projects).enumerate() {
        let commit = clone_from_the_node(&agent, url, &place.path().join(at.to_string()));
        assert_eq!(commit, repo.commit("main"), "{url}");
    }
    assert_eq!(upstream.requests(), Counts::default(), "no clone needs upstream");
}

#[tokio::test]
async fn a_manifest_is_followed_and_one_that_turns_bad_keeps_the_last_list() {
    let upstream = Upstream::start();
    let repos = ["a", "b", "c"].map(small);
    let [a, b, c] = ["a", "b", "c"].map(|name| upstream.url(&format!("{name}.git")));
    for (name, repo) in ["a", "b", "c"].iter().zip(&repos) {
        upstream.host(&format!("{name}.git"), repo);
    }
    let list = TestRepo::empty();
    let write = |text: &str| list.commit_file("main", "default.xml", text.as_bytes());
    write(&manifest("..", &[project("a.git"), project("b.git")].concat()));
    let url = upstream.host("team/manifest.git", &list);
    let mut agent = Agent::start(&configuration(&format!("{{url: '{url}', ref: 'branch:main'}}")));
    for url in [&a, &b] {
        until_async(SOON, "the first list is filled", || async { is_filled(find(&agent, url).await) }).await;
    }

    write(&manifest("..", &[project("b.git"), project("c.git")].concat()));
    refresh(&agent, &url).await;
    until_async(SOON, "the new project is filled", || async { is_filled(find(&agent, &c).await) }).await;
    let gone = find(&agent, &a).await.unwrap();
    assert!(!gone.declared && gone.declared_by.is_empty() && !gone.snapshot.is_empty(), "it stays: {gone:?}");

    let elsewhere = upstream.url("").replace("127.0.0.1", "localhost");
    let entity =
        "<!DOCTYPE manifest [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><manifest><notice>&x;</notice></manifest>";
    for (text, why) in [
        (entity.to_owned(), "default.xml:1: has a document type"),
        (manifest("..", "<include name=\"default.xml\"/>"), "includes itself"),
        (manifest("..", "<include name=\"../../etc/passwd\"/>"), "has a name that has a part '.' or '..'"),
        (manifest("..", &project("../x")), "has a name that has a part '.' or '..'"),
        (manifest("file:///srv", &project("a.git")), "file is not allowed here"),
        (manifest(&elsewhere, &project("a.git")), "localhost is this machine"),
        (manifest("ext::sh -c touch% x", &project("a.git")), "transport helper"),
        ("<manifest>".to_owned(), "not well-formed"),
    ] {
        write(&text);
        refresh(&agent, &url).await;
        until_async(SOON, why, || async {
            let reasons = find(&agent, &url).await.unwrap().reasons;
            codes(&reasons) == ["MANIFEST_INVALID"] && reasons[0].message.contains(why)
        })
        .await;
    }
    let status = agent.node().await.get_status(v1::GetStatusRequest::default()).await.unwrap().into_inner();
    assert!(codes(&status.status.unwrap().alarms).contains(&"MANIFEST_INVALID"));
    let still = async |agent: &Agent| {
        for url in [&b, &c] {
            until_async(SOON, "the last list goes on", || async {
                find(agent, url).await.is_some_and(|repository| repository.declared)
            })
            .await;
        }
        assert_eq!(repositories(agent).await.len(), 4);
    };
    still(&agent).await;
    agent.restart();
    still(&agent).await;
    until_async(SOON, "it still says so", || async {
        codes(&find(&agent, &url).await.unwrap().reasons) == ["MANIFEST_INVALID"]
    })
    .await;

    write(&manifest("..", &[project("a.git"), project("b.git"), project("c.git")].concat()));
    refresh(&agent, &url).await;
    until_async(SOON, "the manifest is right again", || async {
        let found = find(&agent, &a).await.unwrap();
        found.declared && find(&agent, &url).await.unwrap().reasons.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_changed_configuration_leaves_what_lists_declare_and_takes_new_lists_in() {
    let upstream = Upstream::start();
    let repos = ["a", "b"].map(small);
    let [a, b] = ["a", "b"].map(|name| upstream.url(&format!("{name}.git")));
    for (name, repo) in ["a", "b"].iter().zip(&repos) {
        upstream.host(&format!("{name}.git"), repo);
    }
    let lists = ["first", "second"].map(|_| TestRepo::empty());
    let [first, second] = ["first", "second"].map(|name| upstream.url(&format!("team/{name}.git")));
    for ((name, list), project) in ["first", "second"].iter().zip(&lists).zip(["a.git", "b.git"].map(project)) {
        list.commit_file("main", "default.xml", manifest("..", &project).as_bytes());
        upstream.host(&format!("team/{name}.git"), list);
    }
    let before = format!("{{url: '{first}', trust: public}}");
    let agent = Agent::start(&configuration(&before));
    until_async(SOON, "the first list is filled", || async { is_filled(find(&agent, &a).await) }).await;

    let path = agent.root().join("agent.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(&before, &format!("{before}, {{url: '{second}', trust: public}}"))).unwrap();
    for url in [&second, &b] {
        until_async(SOON, "the second list is filled", || async { is_filled(find(&agent, url).await) }).await;
    }
    for (url, by) in [
        (&a, format!("manifest {first}")),
        (&b, format!("manifest {second}")),
        (&first, "configuration".to_owned()),
        (&second, "configuration".to_owned()),
    ] {
        let repository = find(&agent, url).await.unwrap();
        assert!(repository.declared, "{repository:?}");
        assert_eq!(repository.declared_by, by, "{url}");
    }
}

#[tokio::test]
async fn a_manifest_of_this_machine_is_read_again_when_it_changes() {
    let upstream = Upstream::start();
    let repos = (small("one"), small("two"));
    let (one, two) = (upstream.host("team/one", &repos.0), upstream.host("team/two", &repos.1));
    let base = upstream.url("team/");
    let mut agent =
        Agent::prepare(&configuration(&format!("{{path: $ROOT/lists/default.xml, base: '{base}', groups: [wanted]}}")));
    let folder = agent.root().join("lists");
    std::fs::create_dir(&folder).unwrap();
    let wanted = |name: &str| format!("<project name=\"{name}\" groups=\"wanted\"/>");
    let write = |projects: &str| std::fs::write(folder.join("default.xml"), manifest(".", projects)).unwrap();
    write(&format!("{}<project name=\"other\"/>", wanted("one")));
    agent.launch();
    agent.wait_ready();
    until_async(SOON, "the first is filled", || async { is_filled(find(&agent, &one).await) }).await;
    write(&format!("{}{}", wanted("one"), wanted("two")));
    until_async(SOON, "the second is filled", || async { is_filled(find(&agent, &two).await) }).await;
    assert_eq!(repositories(&agent).await.len(), 2, "what is in no wanted group is left out");
    std::fs::remove_file(folder.join("default.xml")).unwrap();
    until_async(SOON, "it says that the file is gone", || async {
        let status = agent.node().await.get_status(v1::GetStatusRequest::default()).await.unwrap().into_inner();
        codes(&status.status.unwrap().alarms) == ["MANIFEST_INVALID"]
    })
    .await;
    assert!(repositories(&agent).await.iter().all(|repository| repository.declared));
}
