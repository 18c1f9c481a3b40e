//! Who the controller takes for an agent, and for whom agents take it: certificates, and a token of the component's rule.

use super::*;
use crate::support::authority::Authority;
use crate::support::front::Front;
use crate::support::loopdev::needs_root;
use crate::support::token_review::{Claims, Cluster, of};

/// What the component has agents told.
const ACCESS: &str = include_str!("../../daemonset/controller/access.yaml");
/// The name by which the controller knows them.
const SERVICE: &str = "stoker-agents.stoker.svc";

/// The world behind TLS, whose agents ask the cluster about tokens.
struct Trusted {
    world: World,
    tokens: Cluster,
    authority: Authority,
    _front: Front,
}

impl Trusted {
    fn start(access: &str) -> Self {
        let (api, tokens, authority) = (ApiServer::start(), Cluster::start(), Authority::new("farm"));
        let front = Front::of(&tokens, &api);
        let kubeconfig = front.kubeconfig.clone();
        let tls = "tls: {certificate: $ROOT/tls.crt, key: $ROOT/tls.key}";
        let world = World::of(api, &kubeconfig, tls, access, |agent| {
            let signed = authority.server_of(&[SERVICE]);
            std::fs::write(agent.root().join("tls.crt"), signed.certificate).unwrap();
            std::fs::write(agent.root().join("tls.key"), signed.key).unwrap();
        });
        let trusted = Self { world, tokens, authority, _front: front };
        trusted.knows(&trusted.authority);
        trusted.shows(&of("stoker", "stoker-controller"));
        trusted
    }

    fn file(&self, name: &str) -> String {
        self.world.home.home().join(name).to_str().unwrap().to_owned()
    }

    /// Whom the controller believes from now on.
    fn knows(&self, authority: &Authority) {
        std::fs::write(self.file("ca.crt"), authority.pem()).unwrap();
    }

    /// What it says that it is.
    fn shows(&self, claims: &Claims) {
        std::fs::write(self.file("token.new"), self.tokens.token(claims)).unwrap();
        std::fs::rename(self.file("token.new"), self.file("token")).unwrap();
    }

    /// What the component tells it.
    fn with_files<T>(&self, then: impl FnOnce(&World, &[&str]) -> T) -> T {
        let (ca, token) = (self.file("ca.crt"), self.file("token"));
        then(&self.world, &["--ca-file", &ca, "--token-file", &token])
    }
}

/// Certificates of another authority, then a token that no rule is for: nobody is asked for anything.
#[tokio::test(flavor = "multi_thread")]
async fn only_agents_that_are_vouched_for_are_asked_and_only_by_who_may() {
    needs_root!();
    let trusted = Trusted::start(ACCESS);
    let world = &trusted.world;
    trusted.knows(&Authority::new("another"));
    let controller = trusted.with_files(|world, files| world.controller_with("one", files));
    controller.wait_leads();
    world.gated("build");
    world.wait_told("build", "AgentsAway");
    assert_eq!(trusted.tokens.reviews(), 0, "nobody but an agent is told who asks");

    trusted.shows(&of("builds", "builder"));
    trusted.knows(&trusted.authority);
    wait::until(LIMIT, "agents see who asks", || trusted.tokens.reviews() >= 2);
    // Who was not let in comes again, and then as somebody else.
    trusted.shows(&of("builds", "another"));
    wait::until(LIMIT, "and say no", || trusted.tokens.reviews() >= 4);
    controller.wait_hears(0);
    assert!(world.is_gated("build") && world.live().await.is_empty());

    trusted.shows(&of("stoker", "stoker-controller"));
    world.wait_placed("build");
    world.has_one_lease("build").await;
    let (_, lease) = world.live().await.remove(0);
    assert_eq!(lease.scope.unwrap().tenant, "builds", "its namespace");
}

/// The rule is for the builds of one tenant: who has it sees nodes, and gets nothing of a name that is for pods.
#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_is_not_for_all_tenants_lets_no_pod_go() {
    needs_root!();
    let rule = "access: {rules: [{role: scheduler, serviceAccounts: [stoker/stoker-controller], tenants: [builds]}]}\n";
    let trusted = Trusted::start(rule);
    let world = &trusted.world;
    let controller = trusted.with_files(|world, files| world.controller_with("one", files));
    controller.wait_leads();
    controller.wait_hears(2);
    world.gated("build");
    let why = world.wait_told("build", "Refused");
    assert!(why.contains("role scheduler for tenants [\"*\"]"), "{why}");
    assert!(world.is_gated("build") && world.live().await.is_empty());
}

/// Agents end what was begun with a token that is over: the controller comes again with the one that its file has by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_written_anew_is_shown_when_the_one_before_ends() {
    needs_root!();
    let trusted = Trusted::start(ACCESS);
    let world = &trusted.world;
    let account = of("stoker", "stoker-controller");
    trusted.shows(&Claims { ends_in_seconds: 40, ..account.clone() });
    let controller = trusted.with_files(|world, files| world.controller_with("one", files));
    controller.wait_leads();
    controller.wait_hears(2);
    trusted.shows(&account);
    wait::until(LIMIT * 2, "agents see the other one", || trusted.tokens.reviews() >= 4);
    world.gated("build");
    world.wait_placed("build");
    world.has_one_lease("build").await;
}
