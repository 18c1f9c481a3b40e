//! Where workspaces are made, and how.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stoker_core::source::{RepositoryUrl, SourceRef};

use super::problem::{Fault, Place, Problems, shown};
use super::units::Bytes;
use super::validate::parse_url;

/// Where workspaces are made, and how.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkspacesSection {
    /// A pool. Unset: the pool of the repositories, so that sources need not be copied across filesystems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// How sources come into a workspace.
    pub method: MethodWord,
    /// What keeps a build within the disk of its lease.
    pub disk_limit: DiskLimitWord,
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

/// What keeps a build within the disk of its lease.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskLimitWord {
    /// Project quotas where the pool has them: what a build writes beyond its size fails. Elsewhere as `watch`.
    #[default]
    Auto,
    /// What it writes is measured, counted in the ledger, and told where it is more than its size.
    Watch,
}

/// Commits that are kept checked out.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CheckoutsSection {
    /// The most bytes that they may hold, with a unit (100GiB); those not used for longest go, also where the pool falls
    /// below its floor. Unset: what the pool's floor leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Bytes>,
    /// Branches whose newest commit is checked out before a build asks for it, after each refresh: at most 64 repositories.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ahead: Vec<AheadSection>,
}

/// Branches of a repository that are checked out before a build asks for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AheadSection {
    /// A repository that is mirrored here: its URL.
    pub url: String,
    /// Names of branches (main): 1 to 64.
    pub branches: Vec<String>,
    /// With their submodules.
    #[serde(default)]
    pub submodules: bool,
}

/// The most repositories and branches of each that are checked out ahead.
const AHEAD_MAX: usize = 64;

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
    /// Project quotas are used where the pool has them.
    pub quotas: bool,
    /// What kept checkouts may hold.
    pub checkouts_limit: Option<u64>,
    /// What is checked out before a build asks for it.
    pub ahead: Vec<Ahead>,
}

/// A branch that is checked out before a build asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    /// Where.
    pub url: RepositoryUrl,
    /// Which branch.
    pub reference: SourceRef,
    /// With its submodules.
    pub submodules: bool,
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
    let ahead = ahead(&section.checkouts.ahead, &place.field("checkouts").field("ahead"), problems);
    let quotas = section.disk_limit == DiskLimitWord::Auto;
    Workspaces { pool, method, quotas, checkouts_limit: limit, ahead }
}

fn ahead(sections: &[AheadSection], place: &Place<'_>, problems: &mut Problems) -> Vec<Ahead> {
    if sections.len() > AHEAD_MAX {
        let fault = Fault::new(format!("has {} repositories", sections.len()), format!("name at most {AHEAD_MAX}"));
        problems.add(place, fault);
        return Vec::new();
    }
    let mut ahead = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let here = place.entry(index);
        let url: RepositoryUrl = match parse_url(&section.url) {
            Ok(url) => url,
            Err(why) => {
                let remedy = "write a URL as `https://github.com/owner/name`, without credentials";
                let message = format!("{} is not a repository: {why}", shown(&section.url));
                problems.add(&here.field("url"), Fault::new(message, remedy));
                continue;
            }
        };
        let names = here.field("branches");
        if section.branches.is_empty() || section.branches.len() > AHEAD_MAX {
            let message = format!("has {} branches", section.branches.len());
            problems.add(&names, Fault::new(message, format!("name 1 to {AHEAD_MAX}")));
        }
        for (number, branch) in section.branches.iter().enumerate() {
            match format!("branch:{branch}").parse::<SourceRef>() {
                Ok(reference) => {
                    ahead.push(Ahead { url: url.clone(), reference, submodules: section.submodules });
                }
                Err(why) => {
                    let message = format!("{} is no branch: {why}", shown(branch));
                    problems.add(&names.entry(number), Fault::new(message, "write a name as `main`"));
                }
            }
        }
    }
    ahead
}
