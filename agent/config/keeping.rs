//! How long things are kept: outputs, caches of tenants, what nobody knows. As written, and as validated.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stoker_core::quantity::Span;
use stoker_core::retention::{KEEP, Rules};

use super::units::{Bytes, Time};

/// What builds leave in `$STOKER_OUT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OutputsSection {
    /// How long an output is kept that nobody released, where no rule matches; also how long content of declared
    /// directories with `retention: output` is kept: a time from 1s to 3650d.
    pub retention: Time,
    /// Lines of builds whose outputs are kept shorter or longer; the first that matches counts: at most 256.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<OutputRuleSection>,
}

impl Default for OutputsSection {
    fn default() -> Self {
        Self { retention: "14d".into(), rules: Vec::new() }
    }
}

/// A line of builds, and how long its outputs are kept. In each pattern * stands for any characters and ? for one; at
/// least one pattern is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutputRuleSection {
    /// A pattern over the tenant. Unset: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// A pattern over the project. Unset: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// A pattern over the branch. Unset: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// How long: a time from 1s to 3650d.
    pub keep: Time,
}

/// Caches of tenants, which builds ask for by `cache_keys`. Above a limit those go that were not used for longest, and
/// that no build has.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CachesSection {
    /// The most bytes that all of them may hold, with a unit (200GiB). Unset: what the pool's floor leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Bytes>,
    /// The most bytes that those of one tenant may hold, with a unit (50GiB). Unset: as many as `limit` leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_limit: Option<Bytes>,
}

/// What no lease, output or rule knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OrphansSection {
    /// How long it is left alone after it was first seen, in the agent's own directory of each pool; also how long content
    /// of declared directories with `retention: scratch` stays at least: a time from 1s to 3650d.
    pub grace: Time,
}

impl Default for OrphansSection {
    fn default() -> Self {
        Self { grace: "24h".into() }
    }
}

/// How long things are kept, valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeping {
    /// Outputs.
    pub outputs: Arc<Rules>,
    /// The most bytes of all caches of tenants.
    pub caches_limit: Option<u64>,
    /// The most bytes of those of one tenant.
    pub tenant_limit: Option<u64>,
    /// How long what nobody knows is left alone.
    pub orphan_grace: Span,
}

impl Default for Keeping {
    /// What a file gets that says nothing; a test holds the two against each other.
    fn default() -> Self {
        let outputs = Arc::new(Rules { keep: KEEP, rules: Vec::new() });
        Self { outputs, caches_limit: None, tenant_limit: None, orphan_grace: Span::hours(24) }
    }
}
