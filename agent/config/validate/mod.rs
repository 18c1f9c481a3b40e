//! From the file to the configuration of one node: every value in its unit, every name resolved, all problems told.
//!
//! What comes in has the shape of the file (`shape` saw to that). A value that is wrong is reported and stood in for,
//! so that the rest is looked at too; a configuration goes out only where nothing was reported.

mod access;
mod admission;
mod forges;
mod git;
mod keeping;
mod kubernetes;
mod listen;
mod lists;
mod pools;
mod repositories;
mod sensing;
mod serve;
mod sizing;
pub(super) mod text;
mod upkeep;
mod volume;

use std::path::PathBuf;
use std::time::Duration;

use stoker_core::quantity::Amounts;

pub(in crate::config) use repositories::parse_url;

use super::file::{File, NodeSection, PressureSection};
use super::problem::{Fault, Place, Problems};
use super::units::Time;
use super::{Config, Node, NodeIdentity, Pressure, Share, workspaces};

/// The configuration of the node `identity`. Meaningless where problems were added.
pub(super) fn validate(file: &File, identity: &NodeIdentity, root: &Place<'_>, problems: &mut Problems) -> Config {
    let state = problems.take(&root.field("state"), text::absolute(&file.state));
    let node = node(&file.node, identity, &root.field("node"), problems);
    let here = NodeIdentity { name: node.name.clone(), labels: identity.labels.clone() };
    let pools = pools::validate(&file.pools, &here, &state, &root.field("pools"), problems);
    let repositories = repositories::validate(file, &root.field("repositories"), problems);
    let workspaces_pool = match &file.workspaces.pool {
        Some(pool) => {
            let place = root.field("workspaces").field("pool");
            problems.take(&place, pools::named(&file.pools, pool))
        }
        None => repositories.pool.clone(),
    };
    Config {
        state,
        node,
        pools,
        repositories,
        workspaces: workspaces::validate(&file.workspaces, workspaces_pool, &root.field("workspaces"), problems),
        keeping: keeping::validate(file, root, problems),
        pressure: pressure(&file.pressure, &root.field("pressure"), problems),
        admission: admission::validate(&file.admission, &root.field("admission"), problems),
        sizing: sizing::validate(&file.sizing, &root.field("sizing"), problems),
        kubernetes: kubernetes::validate(&file.kubernetes, &root.field("kubernetes"), problems),
        listen: listen::validate(&file.listen, &root.field("listen"), problems),
        volume: volume::validate(&file.volume, &root.field("volume"), problems),
        access: access::validate(&file.access, &root.field("access"), problems),
    }
}

fn node(section: &NodeSection, identity: &NodeIdentity, place: &Place<'_>, problems: &mut Problems) -> Node {
    let name = match &section.name {
        Some(name) => problems.take(&place.field("name"), text::node_name(name)),
        None => identity.name.clone(),
    };
    let reserve = place.field("reserve");
    Node {
        name,
        reserve: Amounts {
            cpu_millis: problems.take(&reserve.field("cpu"), section.reserve.cpu.millis()),
            memory_bytes: problems.take(&reserve.field("memory"), section.reserve.memory.bytes()),
            ..Amounts::default()
        },
        others_cpu_counts: true,
        host_root: problems.take::<PathBuf>(&place.field("hostRoot"), text::absolute(&section.host_root)),
        root_floor: pools::floor(&section.root_floor, &place.field("rootFloor"), true, problems),
        filesystems: sensing::filesystems(section.filesystems.as_deref(), &place.field("filesystems"), problems),
    }
}

fn pressure(section: &PressureSection, place: &Place<'_>, problems: &mut Problems) -> Pressure {
    let narrow_place = place.field("memoryNarrow");
    let memory_floor = problems.take(&place.field("memoryFloor"), section.memory_floor.share().and_then(some));
    let memory_narrow = problems.take(&narrow_place, section.memory_narrow.share().and_then(some));
    let below = match (memory_narrow, memory_floor) {
        (Share::Absolute(narrow), Share::Absolute(floor)) => narrow < floor,
        (Share::Basis(narrow), Share::Basis(floor)) => narrow < floor,
        // Which is more depends on the machine.
        _ => false,
    };
    if below {
        let message = format!("{} is below memoryFloor, {}", section.memory_narrow.0, section.memory_floor.0);
        problems.add(&narrow_place, Fault::new(message, "write at least what memoryFloor says"));
    }
    let forecast = within(&section.disk_forecast, Duration::ZERO, Duration::from_secs(3600), "0s to 1h");
    let hold = within(&section.hold, Duration::from_millis(100), Duration::from_secs(3600), "100ms to 1h");
    Pressure {
        memory_floor,
        memory_narrow,
        control_plane: section
            .control_plane
            .as_ref()
            .map(|section| sensing::control_plane(section, &place.field("controlPlane"), problems)),
        disk_forecast: problems.take(&place.field("diskForecast"), forecast),
        hold: problems.take(&place.field("hold"), hold),
    }
}

/// A share of nothing is none.
fn some(share: Share) -> Result<Share, Fault> {
    match share {
        Share::Absolute(0) | Share::Basis(0) => Err(Fault::new("is 0", "write more than 0")),
        some => Ok(some),
    }
}

/// Bytes of a limit: none would hold nothing.
fn limit(bytes: Result<u64, Fault>) -> Result<u64, Fault> {
    match bytes {
        Ok(0) => Err(Fault::new("is 0, so nothing could be kept", "write more than 0, or remove it for no limit")),
        other => other,
    }
}

/// A number from 1 to `max`.
fn count(value: u64, max: usize) -> Result<usize, Fault> {
    match usize::try_from(value) {
        Ok(value) if (1..=max).contains(&value) => Ok(value),
        _ => Err(Fault::new(format!("is {value}"), format!("write a number from 1 to {max}"))),
    }
}

/// A length of time within bounds.
fn within(time: &Time, min: Duration, max: Duration, bounds: &str) -> Result<Duration, Fault> {
    let duration = time.duration()?;
    if (min..=max).contains(&duration) {
        return Ok(duration);
    }
    Err(Fault::new(format!("is {}", time.0), format!("write a time from {bounds}")))
}
