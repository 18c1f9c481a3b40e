//! Where workspaces are made, and how.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::{Place, Problems};
use super::units::Bytes;

/// Where workspaces are made, and how.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkspacesSection {
    /// A pool. Unset: the pool of the repositories, so that sources need not be copied across filesystems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// How sources come into a workspace.
    pub method: MethodWord,
    /// Commits that are kept checked out, for the next build of each.
    pub checkouts: CheckoutsSection,
}

/// How sources come into a workspace.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MethodWord {
    /// The first that works on the pool: overlay, reflink, checkout.
    #[default]
    Auto,
    /// A mount over a kept checkout; the agent needs the right to mount.
    Overlay,
    /// A copy of a kept checkout that shares its blocks; XFS and Btrfs can.
    Reflink,
    /// Git writes the files of each workspace.
    Checkout,
}

/// Commits that are kept checked out.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CheckoutsSection {
    /// The most bytes that they may hold, with a unit (100GiB); those not used for longest go, also where the pool falls
    /// below its floor. Unset: what the pool's floor leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Bytes>,
}

/// How `src` comes to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Method {
    /// A mount over a kept checkout.
    Overlay,
    /// A copy of a kept checkout that shares its blocks.
    Reflink,
    /// Git writes the files.
    #[default]
    Checkout,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlay => "overlay",
            Self::Reflink => "reflink",
            Self::Checkout => "checkout",
        })
    }
}

/// Where workspaces are made, and how; validated.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Workspaces {
    /// The name of a pool. Where no pool of this node has it, this node makes no workspaces.
    pub pool: String,
    /// What is used whatever else works; unset: what works.
    pub method: Option<Method>,
    /// What kept checkouts may hold.
    pub checkouts_limit: Option<u64>,
}

pub(super) fn validate(
    section: &WorkspacesSection,
    pool: String,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Workspaces {
    let limit = section.checkouts.limit.as_ref().map(|limit| {
        let place = place.field("checkouts").field("limit");
        problems.take(&place, limit.bytes())
    });
    let method = match section.method {
        MethodWord::Auto => None,
        MethodWord::Overlay => Some(Method::Overlay),
        MethodWord::Reflink => Some(Method::Reflink),
        MethodWord::Checkout => Some(Method::Checkout),
    };
    Workspaces { pool, method, checkouts_limit: limit }
}
