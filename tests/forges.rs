//! Where a pull request comes from: what a forge's API tells, only where it is so, and never at a resolution's cost.

use std::time::{Duration, Instant};

use stoker_proto::v1;

use crate::support::forge::{Forge, Pull, Seen, Trouble};
use crate::support::repository::{TestRepo, git_out};
use crate::support::stoker::Agent;
use crate::support::upstream::Upstream;
use crate::support::wire::{seconds, source};

/// The pull request of [`TestRepo::standard`].
const NUMBER: u64 = 152;
const TOKEN: &str = "planted-forge-token-7c1e";
/// Much more than the two seconds that an API may take, and much less than a caller without a deadline may wait: what is
/// counted says whether the API was waited for.
const BOUND: Duration = Duration::from_secs(30);

/// An upstream, its forge, and an agent that knows both.
struct World {
    repo: TestRepo,
    forge: Forge,
    agent: Agent,
    upstream: Upstream,
    url: String,
}

impl World {
    fn new(kind: &str) -> Self {
        Self::with(kind, |_| String::new())
    }

    /// With more below `repositories`.
    fn with(kind: &str, more: impl FnOnce(&Forge) -> String) -> Self {
        let repo = TestRepo::standard();
        let (upstream, url) = Upstream::of(&repo);
        let forge = Forge::start();
        let agent = Agent::prepare(&format!(
            "
pools: [{{name: data, path: $ROOT/pool, mount: optional, floor: {{bytes: 1MiB, inodes: 10}}}}]
repositories:
  add: on-demand
  allow: [127.0.0.1]
  protocols: [http]
  forges: [{{host: 127.0.0.1, kind: {kind}, api: \"{}\"}}]
{}
listen: {{socket: $ROOT/run/stoker.sock, http: {{address: \"127.0.0.1:$PORT\"}}}}
",
            forge.api(kind),
            more(&forge)
        ));
        std::fs::write(agent.root().join("token"), TOKEN).unwrap();
        let mut agent = agent;
        agent.launch();
        agent.wait_ready();
        Self { repo, forge, agent, upstream, url }
    }

    /// The pull request's commit, which may have moved.
    fn commit(&self) -> String {
        self.repo.commit("refs/pull/152/head")
    }

    fn fork(&self) -> String {
        self.upstream.url("somebody/project.git")
    }

    fn tell(&self, sha: &str, branch: &str, url: Option<String>) {
        self.forge.tell("team/project", NUMBER, Pull { sha: sha.to_owned(), branch: branch.to_owned(), url });
    }

    async fn resolve(&self, max_age: Option<prost_types::Duration>) -> v1::Resolved {
        let source = v1::Source { max_age, ..source(&self.url, "pr:152") };
        let request = v1::ResolveSourceRequest { source: Some(source) };
        let answer = self.agent.repository().await.resolve_source(request).await.unwrap().into_inner();
        let resolved = answer.resolved.unwrap();
        assert_eq!(
            (resolved.clone_url.as_str(), resolved.clone_ref.as_str()),
            (self.url.as_str(), "refs/pull/152/head")
        );
        resolved
    }

    /// Asks, and wants nothing of a fork, in time.
    async fn tells_nothing(&self, why: &str) {
        let begun = Instant::now();
        let resolved = self.resolve(None).await;
        let took = begun.elapsed();
        assert_eq!(resolved.commit, self.commit(), "{why}");
        assert_eq!((resolved.fork_url.as_str(), resolved.fork_ref.as_str()), ("", ""), "{why}");
        assert!(took < BOUND, "{why}: {took:?}");
    }

    fn counted(&self, outcome: &str) -> u64 {
        let (_, text) = self.agent.http_get("/metrics").unwrap();
        let name = format!("stoker_forge_answers_total{{outcome=\"{outcome}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(name.as_str())).map_or(0, |count| count.parse().unwrap())
    }

    /// Moves the pull request, so that nothing that was told of it holds any more.
    fn push(&self) -> String {
        let new = git_out(&self.repo.path(), &["commit-tree", "-p", &self.commit(), "-m", "more", "main^{tree}"]);
        git_out(&self.repo.path(), &["update-ref", "refs/pull/152/head", &new]);
        new
    }
}

#[tokio::test]
async fn each_kind_of_forge_tells_the_fork() {
    for (kind, asked) in [
        ("github", vec!["/repos/team/project/pulls/152"]),
        ("gitea", vec!["/api/v1/repos/team/project/pulls/152"]),
        ("forgejo", vec!["/api/v1/repos/team/project/pulls/152"]),
        ("gitlab", vec!["/api/v4/projects/team%2Fproject/merge_requests/152", "/api/v4/projects/4711"]),
    ] {
        let world = World::new(kind);
        let fork = world.upstream.host("somebody/project.git", &world.repo);
        world.tell(&world.commit(), "feature/with-slash", Some(fork.clone()));
        let resolved = world.resolve(None).await;
        assert_eq!(
            (&resolved.fork_url, resolved.fork_ref.as_str()),
            (&fork, "refs/heads/feature/with-slash"),
            "{kind}"
        );
        // Any git client can clone it.
        assert!(!git_out(&world.repo.path(), &["ls-remote", &resolved.fork_url, &resolved.fork_ref]).is_empty());
        let paths = |seen: Vec<Seen>| seen.into_iter().map(|seen| seen.path).collect::<Vec<_>>();
        assert_eq!(paths(world.forge.seen()), asked, "{kind}");
        assert!(world.forge.seen().iter().all(|seen| seen.authorization.is_none()), "{kind}");

        // What was told of a commit is not asked again, whether upstream is asked or not.
        for max_age in [None, seconds(3600)] {
            assert_eq!(world.resolve(max_age).await.fork_url, fork, "{kind}");
        }
        assert_eq!((world.forge.seen().len(), world.counted("told")), (asked.len(), 1), "{kind}");

        let at = ["resolve", &world.url, "pr:152"];
        let shown = world.agent.stoker().run(at).expect_code(0).stdout;
        assert!(shown.contains(&fork) && shown.contains("refs/heads/feature/with-slash"), "{shown}");
        let json = world.agent.stoker().run(at.into_iter().chain(["-o", "json"])).expect_code(0).json();
        assert_eq!(json["resolved"]["forkUrl"], fork.as_str(), "{json}");

        // Other refs are none of its business.
        let request = v1::ResolveSourceRequest { source: Some(source(&world.url, "branch:main")) };
        let main = world.agent.repository().await.resolve_source(request).await.unwrap().into_inner();
        assert_eq!(main.resolved.unwrap().fork_url, "");
        assert_eq!(world.forge.seen().len(), asked.len(), "{kind}");
    }
}

#[tokio::test]
async fn a_pull_request_that_moved_tells_nothing_until_the_forge_knows() {
    for kind in ["github", "gitlab"] {
        let world = World::new(kind);
        let old = world.commit();
        world.tell(&old, "topic", Some(world.fork()));
        assert_eq!(world.resolve(None).await.fork_url, world.fork());
        // The forge is behind: what it says is of another commit.
        let new = world.push();
        world.tells_nothing("another commit").await;
        assert_eq!(world.counted("moved"), 1, "{kind}");
        assert_eq!(world.resolve(None).await.commit, new);
        // The next commit is asked for anew, and known.
        let next = world.push();
        world.tell(&next, "topic", Some(world.fork()));
        let resolved = world.resolve(None).await;
        assert_eq!((resolved.commit, resolved.fork_url), (next, world.fork()), "{kind}");
    }
}

#[tokio::test]
async fn what_a_forge_says_wrongly_is_not_told() {
    let world = World::new("github");
    world.tells_nothing("it knows no such pull request: 404").await;
    assert_eq!(world.counted("unknown"), 1);
    let fork = world.fork();
    for (outcome, branch, url) in [
        ("gone", "topic", None),
        ("refused", "topic", Some("file:///etc".to_owned())),
        ("refused", "topic", Some("https://github.com/a/b".to_owned())),
        ("refused", "topic", Some(fork.replace("http://", "http://me:pw@"))),
        ("refused", "topic", Some("http://169.254.169.254/a/b".to_owned())),
        ("refused", "topic", Some("--upload-pack=x".to_owned())),
        ("refused", "to..pic", Some(fork.clone())),
        ("refused", "-x", Some(fork.clone())),
        ("failed", "topic", Some("html".to_owned())),
        ("failed", "topic", Some("huge".to_owned())),
    ] {
        let before = world.counted(outcome);
        let new = world.push();
        match url.as_deref() {
            Some("html") => world.forge.trouble(Trouble::Html),
            Some("huge") => world.forge.trouble(Trouble::Huge),
            _ => world.tell(&new, branch, url.clone()),
        }
        world.tells_nothing(&format!("{url:?} {branch}")).await;
        assert_eq!(world.counted(outcome), before + 1, "{url:?} {branch}\n{}", world.agent.log());
    }
    assert!(!world.agent.log().contains("me:pw"), "{}", world.agent.log());
    // One bad answer is no reason to leave the others alone.
    world.forge.trouble(Trouble::None);
    world.tell(&world.push(), "topic", Some(fork.clone()));
    assert_eq!(world.resolve(None).await.fork_url, fork);
}

#[tokio::test]
async fn an_api_in_trouble_costs_one_resolution_two_seconds_and_the_next_nothing() {
    for (trouble, outcome) in [
        (Trouble::Hang, "timeout"),
        (Trouble::HangBody, "timeout"),
        (Trouble::Status(500), "failed"),
        (Trouble::Status(429), "failed"),
    ] {
        let world = World::new("github");
        world.resolve(None).await;
        let asked = world.forge.seen().len();
        world.tell(&world.push(), "topic", Some(world.fork()));
        world.forge.trouble(trouble.clone());
        world.tells_nothing(&format!("{trouble:?}")).await;
        assert_eq!(world.counted(outcome), 1, "{trouble:?}");
        assert_eq!(world.forge.seen().len(), asked + 1, "{trouble:?}");
        // It is left alone: who comes now does not wait for it, whatever the pull request's commit.
        world.tell(&world.push(), "topic", Some(world.fork()));
        world.tells_nothing("left alone").await;
        assert_eq!((world.counted("left_alone"), world.counted(outcome)), (1, 1), "{trouble:?}");
        assert_eq!(world.forge.seen().len(), asked + 1, "{trouble:?}");
    }
}

#[tokio::test]
async fn callers_at_once_are_one_question() {
    let world = World::new("github");
    world.tell(&world.commit(), "topic", Some(world.fork()));
    let all = futures_util::future::join_all((0..20).map(|_| world.resolve(None))).await;
    assert!(all.iter().all(|resolved| resolved.fork_url == world.fork()));
    assert_eq!(world.forge.seen().len(), 1);
}

#[tokio::test]
async fn the_token_goes_to_the_api_alone() {
    let elsewhere = Forge::start();
    let world = World::with("github", |forge| {
        format!("  credentials: [{{match: \"{}\", token: {{file: $ROOT/token}}}}]", forge.base())
    });
    world.tell(&world.commit(), "topic", Some(world.fork()));
    assert_eq!(world.resolve(None).await.fork_url, world.fork());
    let bearer = Some(format!("Bearer {TOKEN}"));
    assert!(world.forge.seen().iter().all(|seen| seen.authorization == bearer), "{:?}", world.forge.seen());

    // A repository that was renamed is elsewhere on the same host.
    world.tell(&world.push(), "topic", Some(world.fork()));
    world.forge.trouble(Trouble::Moved(world.forge.base()));
    assert_eq!(world.resolve(None).await.fork_url, world.fork());
    assert_eq!(world.forge.seen().len(), 3);

    // Another host is not asked at all.
    world.tell(&world.push(), "topic", Some(world.fork()));
    world.forge.trouble(Trouble::Moved(elsewhere.base()));
    world.tells_nothing("another host").await;
    assert_eq!((elsewhere.seen(), world.counted("failed")), (vec![], 1));
    assert!(!world.agent.log().contains(TOKEN));

    // A file that cannot be read: nothing is asked without it.
    world.forge.trouble(Trouble::None);
    let asked = world.forge.seen().len();
    world.tell(&world.push(), "topic", Some(world.fork()));
    std::fs::remove_file(world.agent.root().join("token")).unwrap();
    world.tells_nothing("no token").await;
    assert_eq!((world.forge.seen().len(), world.counted("failed")), (asked, 2));
}

#[tokio::test]
async fn the_repositorys_own_token_is_for_its_forge_too() {
    // By http only what says http is sent.
    for (scheme, sent) in [("http://", true), ("", false)] {
        let repo = TestRepo::standard();
        let (upstream, url) = Upstream::of(&repo);
        let near = upstream.base().replace("http://", scheme);
        let world =
            World::with("github", |_| format!("  credentials: [{{match: \"{near}\", token: {{file: $ROOT/token}}}}]"));
        world.forge.tell(
            "team/project",
            NUMBER,
            Pull { sha: repo.commit("refs/pull/152/head"), branch: "topic".to_owned(), url: Some(world.fork()) },
        );
        let request = v1::ResolveSourceRequest { source: Some(source(&url, "pr:152")) };
        let answer = world.agent.repository().await.resolve_source(request).await.unwrap().into_inner();
        assert_eq!(answer.resolved.unwrap().fork_url, world.fork());
        let expected = sent.then(|| format!("Bearer {TOKEN}"));
        assert_eq!(world.forge.seen().iter().map(|seen| seen.authorization.clone()).collect::<Vec<_>>(), [expected]);
    }
}
