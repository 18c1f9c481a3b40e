//! Who may ask what: roles, tenants, tokens, rates. Both the sections as written and what is left of them when valid.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stoker_core::retention::Glob;

use super::TRUST_DEFAULT;
use super::units::Time;

/// The audience of tokens that are meant for agents.
pub const AUDIENCE: &str = "stoker.build";

/// Who may ask what. Without a rule: processes of this machine's root over the socket, and nobody over the network.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AccessSection {
    /// Who has which role: at most 256. What several rules give adds up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<AccessRuleSection>,
    /// Service account tokens.
    pub tokens: TokensSection,
    /// How often one caller may ask.
    pub rate: RateSection,
}

/// A role for those whom one of its patterns matches. In each pattern * stands for any characters and ? for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRuleSection {
    /// What they may do.
    pub role: RoleWord,
    /// Users: the common name or a URI of a client's certificate, or the user name of a token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Groups: organisations of a client's certificate, or groups of a token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Service accounts, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// Namespaces: all service accounts in them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// User ids of processes of this machine that ask over the socket; root and the agent's own user need no rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uids: Vec<u32>,
    /// The tenants for which they have the role, as patterns: at most 64. Unset: the tenant named as the caller's
    /// namespace; for operators all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<Vec<String>>,
    /// The trust classes whose repositories they may read: at most 64; "*" for all. Unset: default; for operators all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Vec<String>>,
}

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RoleWord {
    /// See.
    Viewer,
    /// See, and run builds.
    Scheduler,
    /// All of it.
    Operator,
}

impl RoleWord {
    /// The word, as in the file.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Scheduler => "scheduler",
            Self::Operator => "operator",
        }
    }
}

/// Service account tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TokensSection {
    /// The audience that a token must be meant for.
    pub audience: String,
    /// Who must have issued it, as its claim `iss` says. Unset: whoever has the cluster's keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// How long what the cluster said of a token holds: a time from 1s to 10m. For so long a pod's token outlives it.
    pub cache: Time,
}

impl Default for TokensSection {
    fn default() -> Self {
        Self { audience: AUDIENCE.to_owned(), issuer: None, cache: "1m".into() }
    }
}

/// How often one caller may ask; also how often one address may show tokens that do not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateSection {
    /// Calls a second that a caller may make for as long as it likes: 1 to 100000.
    pub per_second: u64,
    /// Calls that it may make at once after it was quiet: 1 to 1000000.
    pub burst: u64,
}

impl Default for RateSection {
    fn default() -> Self {
        Self { per_second: 100, burst: 500 }
    }
}

/// Who may ask what, valid.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    /// Who has which role.
    pub rules: Arc<Vec<AccessRule>>,
    /// Service account tokens.
    pub tokens: TokenRules,
    /// How often one caller may ask.
    pub rate: Rate,
}

impl Default for Access {
    /// What a file gets that says nothing; a test holds the two against each other.
    fn default() -> Self {
        Self {
            rules: Arc::default(),
            tokens: TokenRules { audience: AUDIENCE.to_owned(), issuer: None, cache: Duration::from_secs(60) },
            rate: Rate { per_second: 100, burst: 500 },
        }
    }
}

/// A role for those whom one of its patterns matches.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessRule {
    /// What they may do.
    pub role: RoleWord,
    /// Over the names of a user.
    pub users: Vec<Glob>,
    /// Over each of its groups.
    pub groups: Vec<Glob>,
    /// Over `namespace/name`.
    pub service_accounts: Vec<Glob>,
    /// Over the namespace.
    pub namespaces: Vec<Glob>,
    /// Of processes of this machine.
    pub uids: Vec<u32>,
    /// For which tenants.
    pub tenants: TenantsOf,
    /// The trust classes that they may read; unset: all.
    pub trust: Option<Vec<String>>,
}

/// For which tenants a rule gives its role.
#[derive(Debug, Clone, PartialEq)]
pub enum TenantsOf {
    /// For all, and for what belongs to none.
    All,
    /// For the one that is named as the caller's namespace.
    Namespace,
    /// For those that a pattern matches.
    Named(Vec<Glob>),
}

/// Service account tokens, valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRules {
    /// The audience that a token must be meant for.
    pub audience: String,
    /// Who must have issued it.
    pub issuer: Option<String>,
    /// How long what the cluster said of a token holds.
    pub cache: Duration,
}

/// How often one caller may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls a second.
    pub per_second: u32,
    /// Calls at once.
    pub burst: u32,
}

impl AccessRuleSection {
    /// The trust classes of a rule that names none.
    pub(super) fn trust_default(role: RoleWord) -> Option<Vec<String>> {
        (role != RoleWord::Operator).then(|| vec![TRUST_DEFAULT.to_owned()])
    }
}
