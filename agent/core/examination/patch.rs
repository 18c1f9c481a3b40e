//! Fragments of files, as YAML: what is to be merged into each.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::Threshold;
use crate::quantity::Amounts;

/// What to merge into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Which, in words that have its path where that is known.
    pub file: String,
    /// The fragment: whole lines.
    pub yaml: String,
}

/// Floors of a filesystem. Unset: as they are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Floor {
    pub(super) bytes: Option<Threshold>,
    pub(super) inodes: Option<Threshold>,
}

/// Of the agent's configuration.
#[derive(Debug, Default)]
pub(super) struct AgentPatch {
    pub(super) reserve: Option<Amounts>,
    /// The floor, and where the gate narrows.
    pub(super) memory: Option<(u64, u64)>,
    pub(super) root_floor: Floor,
}

/// Of the kubelet's.
#[derive(Debug, Default)]
pub(super) struct KubeletPatch {
    /// And whether it is to be added to what is there, for that was not seen.
    pub(super) system_reserved: Option<(Amounts, bool)>,
    /// All pods together get a limit.
    pub(super) enforce: bool,
}

/// Of a static pod's manifest.
#[derive(Debug)]
pub(super) struct PodPatch {
    pub(super) pod: String,
    pub(super) container: String,
    pub(super) cpu_millis: u64,
}

impl AgentPatch {
    pub(super) fn write(&self) -> Option<Patch> {
        let mut yaml = String::new();
        if let Some(reserve) = self.reserve {
            let memory = bytes(reserve.memory_bytes, "iB");
            yaml.push_str(&format!("  reserve: {{cpu: {}, memory: {memory}}}\n", cpu(reserve.cpu_millis)));
        }
        let show = |threshold: Option<Threshold>, name: &str, amount: fn(u64) -> String| {
            let threshold = match threshold? {
                Threshold::Amount(value) => amount(value),
                Threshold::Basis(basis) => percent(basis),
            };
            Some(format!("{name}: {threshold}"))
        };
        let floors = [
            show(self.root_floor.bytes, "bytes", |value| bytes(value, "iB")),
            show(self.root_floor.inodes, "inodes", |value| value.to_string()),
        ];
        let floors: Vec<String> = floors.into_iter().flatten().collect();
        if !floors.is_empty() {
            yaml.push_str(&format!("  rootFloor: {{{}}}\n", floors.join(", ")));
        }
        if !yaml.is_empty() {
            yaml = format!("node:\n{yaml}");
        }
        if let Some((floor, narrow)) = self.memory {
            let (floor, narrow) = (bytes(floor, "iB"), bytes(narrow, "iB"));
            yaml.push_str(&format!("pressure:\n  memoryFloor: {floor}\n  memoryNarrow: {narrow}\n"));
        }
        let head = "apiVersion: stoker.build/v1\nkind: AgentConfig\n";
        (!yaml.is_empty()).then(|| Patch { file: "the agent's configuration".into(), yaml: format!("{head}{yaml}") })
    }
}

impl KubeletPatch {
    /// `path`: where the kubelet's configuration is; empty: not known.
    pub(super) fn write(&self, path: &str) -> Option<Patch> {
        let mut yaml = String::new();
        if let Some((amounts, more)) = self.system_reserved {
            let note = if more { " # more than there is now, which was not seen" } else { "" };
            let memory = bytes(amounts.memory_bytes, "i");
            // The kubelet takes strings alone, so no number may stand without a unit.
            yaml.push_str(&format!("systemReserved: {{cpu: {}m, memory: {memory}}}{note}\n", amounts.cpu_millis));
        }
        if self.enforce {
            yaml.push_str("enforceNodeAllocatable: [pods]\n");
        }
        let file = match path {
            "" => "the kubelet's configuration".to_string(),
            path => format!("the kubelet's configuration, {path}"),
        };
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        (!yaml.is_empty()).then(|| Patch { file, yaml: format!("{head}{yaml}") })
    }
}

impl PodPatch {
    /// Nothing where the names are none that a manifest can have.
    pub(super) fn write(&self, manifests: &str) -> Option<Patch> {
        let plain = |name: &str| {
            let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
            !name.is_empty() && name.bytes().all(fits)
        };
        let Self { pod, container, cpu_millis } = self;
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {pod}\nspec:\n  containers:\n    - name: {container}\n      \
             resources: {{requests: {{cpu: {cpu_millis}m}}}}\n"
        );
        let file = format!("the static pod's manifest, {}/{pod}.yaml", manifests.trim_end_matches('/'));
        (plain(pod) && plain(container)).then_some(Patch { file, yaml })
    }
}

/// Cores where they are whole, else thousandths.
fn cpu(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") }
}

/// In the largest unit in which they are whole.
fn bytes(value: u64, unit: &str) -> String {
    let whole = [(30, "G"), (20, "M"), (10, "K")].into_iter().find(|(shift, _)| value.trailing_zeros() >= *shift);
    match whole {
        Some((shift, letter)) if value > 0 => format!("{}{letter}{unit}", value >> shift),
        _ => value.to_string(),
    }
}

fn percent(basis: u32) -> String {
    match (basis / 100, basis % 100) {
        (whole, 0) => format!("{whole}%"),
        (whole, part) if part.is_multiple_of(10) => format!("{whole}.{}%", part / 10),
        (whole, part) => format!("{whole}.{part:02}%"),
    }
}
