//! Bounds, the queue, and what tenants may have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::units::{Bytes, Cores, Time};

/// Which builds are admitted, and in which order those come that wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdmissionSection {
    /// The most live leases: 1 to 4096.
    pub leases_max: u64,
    /// The most tickets: 1 to 65536.
    pub tickets_max: u64,
    /// What happens at the end of a build's time budget.
    pub time_budget: TimeBudgetWord,
    /// For how long others may pass the build at the head of the queue, where it waits no longer for that: up to 24h;
    /// 0s: nothing passes.
    pub pass_for: Time,
    /// After this wait a build comes first in its tenant, whatever its priority: 1m to 24h.
    pub age_after: Time,
    /// Tenants with a share or with caps of their own: at most 1024.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<TenantSection>,
    /// What holds for each tenant that is not named above.
    #[serde(skip_serializing_if = "ShareSection::is_default")]
    pub other_tenants: ShareSection,
}

impl Default for AdmissionSection {
    /// A build of an hour at the head loses at most a sixth of it to small ones.
    fn default() -> Self {
        Self {
            leases_max: 256,
            tickets_max: 1024,
            time_budget: TimeBudgetWord::default(),
            pass_for: "10m".into(),
            age_after: "1h".into(),
            tenants: Vec::new(),
            other_tenants: ShareSection::default(),
        }
    }
}

/// A tenant's share, and what it may have at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TenantSection {
    /// Its name, as requests have it in their scope.
    pub name: String,
    /// Its share where several wait: one of weight 2 gets twice as much as one of weight 1. 1 to 1000.
    #[serde(default = "one")]
    pub weight: u64,
    /// The most live leases: 1 to 4096. Unset: the node's bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leases_max: Option<u64>,
    /// CPU that its leases may hold together. Unset: the node's budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_max: Option<Cores>,
    /// Memory that its leases may hold together. Unset: the node's budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<Bytes>,
    /// The most tickets: 1 to 65536. Unset: the node's bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tickets_max: Option<u64>,
}

/// The same for each of those that have no name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ShareSection {
    /// As `weight` of a tenant.
    pub weight: u64,
    /// As `leasesMax` of a tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leases_max: Option<u64>,
    /// As `cpuMax` of a tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_max: Option<Cores>,
    /// As `memoryMax` of a tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<Bytes>,
    /// As `ticketsMax` of a tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tickets_max: Option<u64>,
}

impl Default for ShareSection {
    fn default() -> Self {
        Self { weight: 1, leases_max: None, cpu_max: None, memory_max: None, tickets_max: None }
    }
}

impl ShareSection {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl TenantSection {
    /// All but its name.
    pub(in crate::config) fn share(&self) -> ShareSection {
        let Self { name: _, weight, leases_max, cpu_max, memory_max, tickets_max } = self.clone();
        ShareSection { weight, leases_max, cpu_max, memory_max, tickets_max }
    }
}

const fn one() -> u64 {
    1
}

/// What happens at the end of a time budget.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TimeBudgetWord {
    /// The build is ended.
    #[default]
    End,
    /// It is reported and runs on.
    Report,
}
