//! A caller: who it is, and what it was granted.

use std::collections::BTreeSet;

use stoker_core::retention::Glob;

use super::local::Process;
use super::{Denied, Peer, Role};
use crate::config::TRUST_DEFAULT;
use crate::config::access::{AccessRule, TenantsOf};

/// How a caller proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Not at all.
    None,
    /// As a process of this machine, over the socket.
    Process,
    /// By having reached plain TCP on a loopback address that the configuration opened.
    Loopback,
    /// By a certificate.
    Certificate,
    /// By a token.
    Token,
}

impl Way {
    /// The word, for the audit log.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Process => "process",
            Self::Loopback => "loopback",
            Self::Certificate => "certificate",
            Self::Token => "token",
        }
    }
}

/// A service account of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

/// Who somebody is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// How it proved that.
    pub way: Way,
    /// For people and the audit log.
    pub name: String,
    /// Further names of the same: URIs of its certificate.
    pub also: Vec<String>,
    /// Groups that it is in.
    pub groups: Vec<String>,
    /// Where it is a service account.
    pub service_account: Option<ServiceAccount>,
    /// Name and uid of the pod that its token is bound to.
    pub pod: Option<(String, String)>,
    /// Its user id, where it is a process of this machine.
    pub uid: Option<u32>,
}

impl Identity {
    /// Nobody who is known; `from` is for people.
    pub(super) fn nobody(from: impl Into<String>) -> Self {
        Self {
            way: Way::None,
            name: from.into(),
            also: Vec::new(),
            groups: Vec::new(),
            service_account: None,
            pod: None,
            uid: None,
        }
    }

    /// A process of this machine.
    pub(super) fn process(process: Process) -> Self {
        let Process { pid, uid } = process;
        Self { way: Way::Process, uid: Some(uid), ..Self::nobody(format!("uid {uid} (pid {pid})")) }
    }

    /// Whoever reached plain TCP on this machine.
    pub(super) fn loopback() -> Self {
        Self { way: Way::Loopback, ..Self::nobody("somebody on loopback") }
    }

    /// What its calls are counted under.
    pub(super) fn key(&self) -> String {
        format!("{} {}", self.way.word(), self.name)
    }

    fn is_meant_by(&self, rule: &AccessRule) -> bool {
        let any = |globs: &[Glob], text: &str| globs.iter().any(|glob| glob.matches(text));
        // Names of processes and addresses are for people: they prove nothing.
        let proven = matches!(self.way, Way::Certificate | Way::Token);
        let user = || proven && (any(&rule.users, &self.name) || self.also.iter().any(|name| any(&rule.users, name)));
        let group = || self.groups.iter().any(|group| any(&rule.groups, group));
        let account = || {
            self.service_account.as_ref().is_some_and(|account| {
                let accounts = &rule.service_accounts;
                (!accounts.is_empty() && any(accounts, &format!("{}/{}", account.namespace, account.name)))
                    || any(&rule.namespaces, &account.namespace)
            })
        };
        let uid = || self.uid.is_some_and(|uid| rule.uids.contains(&uid));
        user() || group() || account() || uid()
    }
}

/// What one rule gives.
#[derive(Debug, Clone, PartialEq)]
struct Grant {
    role: Role,
    tenants: TenantsOf,
    /// Unset: all.
    trust: Option<Vec<String>>,
}

impl Grant {
    /// Whether it lets read what is of a trust class; none is the default one.
    fn reads(&self, trust: &str) -> bool {
        let trust = if trust.is_empty() { TRUST_DEFAULT } else { trust };
        self.trust.as_ref().is_none_or(|all| all.iter().any(|class| class == trust))
    }
}

/// Who asks, and what it was granted.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who.
    pub identity: std::sync::Arc<Identity>,
    grants: Vec<Grant>,
}

impl Caller {
    pub(super) fn new(identity: std::sync::Arc<Identity>, rules: &[AccessRule]) -> Self {
        let everything = Grant { role: Role::Operator, tenants: TenantsOf::All, trust: None };
        let grants = match identity.way {
            Way::None => Vec::new(),
            Way::Loopback => vec![everything],
            Way::Process if identity.uid.is_some_and(super::local::may_do_everything) => vec![everything],
            Way::Process | Way::Certificate | Way::Token => {
                let meant = rules.iter().filter(|rule| identity.is_meant_by(rule));
                let grant = |rule: &AccessRule| Grant {
                    role: rule.role,
                    tenants: rule.tenants.clone(),
                    trust: rule.trust.clone(),
                };
                meant.map(grant).collect()
            }
        };
        Self { identity, grants }
    }

    /// What its calls are counted under: who it is, else where it comes from.
    #[must_use]
    pub fn key(&self, peer: &Peer) -> String {
        match self.identity.way {
            Way::None => peer.key(),
            _ => self.identity.key(),
        }
    }

    /// The most that it may do, for whomever.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        self.grants.iter().map(|grant| grant.role).max()
    }

    /// The tenant that is its own where nothing else is said: its namespace.
    fn own(&self) -> Option<&str> {
        self.identity.service_account.as_ref().map(|account| account.namespace.as_str())
    }

    fn covers(&self, grant: &Grant, tenant: &str) -> bool {
        match &grant.tenants {
            TenantsOf::All => true,
            TenantsOf::Namespace => !tenant.is_empty() && self.own() == Some(tenant),
            TenantsOf::Named(globs) => !tenant.is_empty() && globs.iter().any(|glob| glob.matches(tenant)),
        }
    }

    /// Whether it has the role for what belongs to a tenant; what belongs to none is for those who have all.
    #[must_use]
    pub fn may(&self, role: Role, tenant: &str) -> bool {
        self.grants.iter().any(|grant| grant.role >= role && self.covers(grant, tenant))
    }

    /// Whether it has the role for all tenants.
    #[must_use]
    pub fn may_for_all(&self, role: Role) -> bool {
        self.grants.iter().any(|grant| grant.role >= role && grant.tenants == TenantsOf::All)
    }

    /// Whether it may read repositories of a trust class; none is the default one.
    #[must_use]
    pub fn may_read(&self, trust: &str) -> bool {
        self.may_read_as(Role::Viewer, trust)
    }

    /// Whether it has the role with a right to read repositories of a trust class.
    #[must_use]
    pub fn may_read_as(&self, role: Role, trust: &str) -> bool {
        self.grants.iter().any(|grant| grant.role >= role && grant.reads(trust))
    }

    /// Whether it may what another may, and is the same.
    pub(super) fn may_as(&self, other: &Self) -> bool {
        self.identity == other.identity && self.grants == other.grants
    }

    /// Whether what it may can end while it asks. A process of this machine that may everything is asked once.
    #[must_use]
    pub fn can_be_revoked(&self) -> bool {
        matches!(self.identity.way, Way::Certificate | Way::Token) || !self.may_do_everything()
    }

    /// Whether there is nothing that it may not.
    #[must_use]
    pub fn may_do_everything(&self) -> bool {
        let everything =
            |grant: &Grant| grant.role == Role::Operator && grant.tenants == TenantsOf::All && grant.trust.is_none();
        self.grants.iter().any(everything)
    }

    /// Whether it has the role with a right to read repositories of every trust class.
    #[must_use]
    pub fn may_read_all(&self, role: Role) -> bool {
        self.grants.iter().any(|grant| grant.role >= role && grant.trust.is_none())
    }

    /// Whether it has the role for a tenant by a rule that lets it read the trust class too: rights of two rules do not
    /// mix.
    #[must_use]
    pub fn may_of(&self, role: Role, tenant: &str, trust: &str) -> bool {
        let may = |grant: &Grant| grant.role >= role && grant.reads(trust) && self.covers(grant, tenant);
        self.grants.iter().any(may)
    }

    /// The trust classes that it may read for a tenant in a role; unset: all there are and will be.
    #[must_use]
    pub fn classes(&self, role: Role, tenant: &str) -> Option<BTreeSet<String>> {
        let mut classes = BTreeSet::new();
        for grant in self.grants.iter().filter(|grant| grant.role >= role && self.covers(grant, tenant)) {
            classes.extend(grant.trust.as_ref()?.iter().cloned());
        }
        Some(classes)
    }

    /// The tenant that a request is for: the one that it names, else the caller's own.
    ///
    /// # Errors
    /// When it may not ask for that one.
    pub fn tenant(&self, role: Role, named: &str) -> Result<String, Denied> {
        let wanted = match (named, self.own()) {
            ("", Some(own)) if !self.may_for_all(role) => own,
            _ => named,
        };
        if self.may(role, wanted) {
            return Ok(wanted.to_owned());
        }
        let name = &self.identity.name;
        let message = match wanted {
            "" => format!("{name} must say for which tenant: name one that a rule of access.rules gives it"),
            _ => format!("{name} is no {} of tenant {wanted:?}: a rule of access.rules has to say so", role.word()),
        };
        Err(Denied::forbidden(wanted, message))
    }

    /// Why what is about the whole node is not for one who has its role for some tenants.
    #[must_use]
    pub fn for_all_tenants(&self, what: &str) -> Denied {
        let message = format!(
            "{what} is about the whole node: {} needs a rule of access.rules with `tenants: [\"*\"]`",
            self.identity.name
        );
        Denied::forbidden(what, message)
    }

    /// Refuses whoever has not at least the role, for whomever.
    ///
    /// # Errors
    /// When it has not.
    pub fn at_least(&self, role: Role, what: &str) -> Result<(), Denied> {
        if self.role().is_some_and(|has| has >= role) {
            return Ok(());
        }
        let (name, word) = (&self.identity.name, role.word());
        if self.identity.way == Way::None {
            let remedy = "send a token of a service account, or a client's certificate";
            return Err(Denied::unknown(format!("{what} is for the role {word}, and nobody knows who asks: {remedy}")));
        }
        let has = self.role().map_or("no role", Role::word);
        Err(Denied::forbidden(what, format!("{what} is for the role {word}, and {name} has {has}: see access.rules")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn rule(role: Role) -> AccessRule {
        AccessRule {
            role,
            users: Vec::new(),
            groups: Vec::new(),
            service_accounts: Vec::new(),
            namespaces: Vec::new(),
            uids: Vec::new(),
            tenants: TenantsOf::Namespace,
            trust: Some(vec![TRUST_DEFAULT.to_owned()]),
        }
    }

    fn account(namespace: &str, name: &str) -> Arc<Identity> {
        let account = ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() };
        let user = format!("system:serviceaccount:{namespace}:{name}");
        Arc::new(Identity { way: Way::Token, service_account: Some(account), ..Identity::nobody(user) })
    }

    fn globs(patterns: &[&str]) -> Vec<Glob> {
        patterns.iter().map(|pattern| pattern.parse().unwrap()).collect()
    }

    #[test]
    fn a_tenant_is_the_namespace_unless_a_rule_says_otherwise() {
        let rules = [AccessRule { namespaces: globs(&["ci-*"]), ..rule(Role::Scheduler) }];
        let caller = Caller::new(account("ci-a", "x"), &rules);
        assert_eq!(caller.tenant(Role::Scheduler, "").unwrap(), "ci-a");
        assert_eq!(caller.tenant(Role::Scheduler, "ci-a").unwrap(), "ci-a");
        assert!(caller.tenant(Role::Scheduler, "ci-b").is_err() && !caller.may(Role::Viewer, ""));
        let rules = [AccessRule { tenants: TenantsOf::Named(globs(&["team-*"])), ..rules[0].clone() }];
        let caller = Caller::new(account("ci-a", "x"), &rules);
        assert_eq!(caller.tenant(Role::Scheduler, "team-1").unwrap(), "team-1");
        assert!(caller.tenant(Role::Scheduler, "").is_err() && caller.tenant(Role::Scheduler, "ci-a").is_err());
    }

    #[test]
    fn rights_of_two_rules_do_not_mix() {
        let private = Some(vec!["private".to_owned()]);
        let rules = [
            AccessRule { namespaces: globs(&["a"]), ..rule(Role::Scheduler) },
            AccessRule { users: globs(&["*"]), tenants: TenantsOf::All, trust: private, ..rule(Role::Viewer) },
        ];
        let caller = Caller::new(account("a", "x"), &rules);
        assert!(caller.may(Role::Viewer, "b") && !caller.may(Role::Scheduler, "b"));
        assert!(caller.may_read("private") && caller.may_of(Role::Viewer, "a", "private"));
        assert!(!caller.may_of(Role::Scheduler, "a", "private") && caller.may_of(Role::Scheduler, "a", ""));
        let default = BTreeSet::from([TRUST_DEFAULT.to_owned()]);
        assert_eq!(caller.classes(Role::Scheduler, "a"), Some(default.clone()));
        assert_eq!(caller.classes(Role::Scheduler, "b"), Some(BTreeSet::new()));
        let all = AccessRule { namespaces: globs(&["a"]), trust: None, ..rule(Role::Scheduler) };
        assert_eq!(Caller::new(account("a", "x"), &[rules[0].clone(), all]).classes(Role::Scheduler, "a"), None);
        assert!(!caller.may_of(Role::Viewer, "b", ""));
    }

    #[test]
    fn nobody_is_counted_by_network_and_others_by_who_they_are() {
        let from = |last: u16| {
            Peer::Plain((std::net::Ipv6Addr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]), 4000 + last).into())
        };
        let nobody = |last: u16| Caller::new(Arc::new(Identity::nobody(last.to_string())), &[]).key(&from(last));
        assert_eq!(nobody(1), nobody(2), "one host has all addresses of a /64");
        let known = |name: &str, last: u16| Caller::new(account("a", name), &[]).key(&from(last));
        assert_eq!(known("x", 1), known("x", 2), "wherever it asks from");
        assert!(known("x", 1) != known("y", 1) && known("x", 1) != nobody(1));
    }

    #[test]
    fn whoever_no_rule_means_has_no_rights() {
        let caller = Caller::new(account("a", "x"), &[AccessRule { users: globs(&["b"]), ..rule(Role::Operator) }]);
        assert!(caller.role().is_none() && !caller.may_read("") && caller.at_least(Role::Viewer, "it").is_err());
        let process = Identity::process(Process { pid: 7, uid: 4_000_000 });
        let by_name = [AccessRule { users: globs(&["*"]), ..rule(Role::Operator) }];
        assert_eq!(Caller::new(Arc::new(process.clone()), &by_name).role(), None, "its name proves nothing");
        let by_uid = [AccessRule { uids: vec![4_000_000], ..rule(Role::Viewer) }];
        assert_eq!(Caller::new(Arc::new(process), &by_uid).role(), Some(Role::Viewer));
    }
}
