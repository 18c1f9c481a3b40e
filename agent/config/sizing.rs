//! Sizes of builds: as written, and as validated.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stoker_core::sizing::Policy;

use super::units::{Bytes, Cores, Time};

/// The program that evaluates Nickel.
pub const NICKEL_PROGRAM: &str = "stoker-nickel";

/// How big builds are of which nobody says it, and how big any may be.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SizingSection {
    /// What a build gets of which nothing is known but its language.
    pub languages: LanguagesSection,
    /// Disk of a build of which nothing is known, whatever its language.
    pub disk: DiskSection,
    /// What a build gets after it ran out of memory at its own limit: 1 to 16 steps, each with more memory than the one
    /// before. Builds up to the first step still start while memory is narrow.
    pub ladder: LadderSection,
    /// The most that one build gets, whatever the node has: above it what is declared is refused, the rest is lowered.
    pub cap: CapSection,
    /// Who declares more than it uses is told so.
    pub over_declared: OverDeclaredSection,
    /// Build specs in Nickel.
    pub nickel: NickelSection,
}

/// One line for each language.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LanguagesSection {
    /// Rust.
    pub rust: LanguageSection,
    /// Go.
    pub go: LanguageSection,
    /// Java.
    pub java: LanguageSection,
    /// Kotlin.
    pub kotlin: LanguageSection,
    /// Scala.
    pub scala: LanguageSection,
    /// JavaScript and TypeScript.
    pub node: LanguageSection,
    /// Any other, or not known.
    pub other: LanguageSection,
}

impl Default for LanguagesSection {
    /// As `stoker_core::sizing::Defaults`; a test holds the two together.
    fn default() -> Self {
        let line = |cpu: &str, memory: &str, time: &str| LanguageSection {
            cpu: cpu.into(),
            memory: memory.into(),
            time: time.into(),
        };
        Self {
            rust: line("4", "8GiB", "60m"),
            go: line("2", "4GiB", "30m"),
            java: line("4", "8GiB", "45m"),
            kotlin: line("4", "8GiB", "45m"),
            scala: line("4", "8GiB", "45m"),
            node: line("2", "4GiB", "30m"),
            other: line("2", "4GiB", "30m"),
        }
    }
}

/// The size of a build in one language.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LanguageSection {
    /// CPU in cores (4, 2.5) or thousandths (500m): up to 256.
    pub cpu: Cores,
    /// Memory in bytes, with a unit (8GiB).
    pub memory: Bytes,
    /// The time budget: 1m to 24h.
    pub time: Time,
}

/// Disk of a build of which nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DiskSection {
    /// Bytes on the pool, with a unit (20GiB).
    pub bytes: Bytes,
    /// Inodes on the pool.
    pub inodes: u64,
}

impl Default for DiskSection {
    fn default() -> Self {
        Self { bytes: "20GiB".into(), inodes: 1_000_000 }
    }
}

/// The steps, from the smallest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct LadderSection(pub Vec<StepSection>);

impl Default for LadderSection {
    fn default() -> Self {
        let step = |(cpu, memory): (&str, &str)| StepSection { cpu: cpu.into(), memory: memory.into() };
        Self([("2", "4GiB"), ("4", "8GiB"), ("8", "16GiB"), ("16", "32GiB")].map(step).to_vec())
    }
}

/// One step of the ladder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StepSection {
    /// CPU in cores (4, 2.5) or thousandths (500m): up to 256.
    pub cpu: Cores,
    /// Memory in bytes, with a unit (8GiB).
    pub memory: Bytes,
}

/// The most that one build gets.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CapSection {
    /// CPU in cores (4, 2.5) or thousandths (500m). Unset: the node's budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cores>,
    /// Memory in bytes, with a unit (8GiB). Unset: the node's budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Bytes on the pool, with a unit (200GiB). Unset: what the pool has above its floor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// The longest time budget: 1m to 24h. Unset: 24h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// When a build declares too much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OverDeclaredSection {
    /// So many times what its runs lead to: 2 to 100; 0: nobody is told.
    pub times: u64,
    /// After so many of its runs that succeeded: 1 to 32.
    pub runs: u64,
}

impl Default for OverDeclaredSection {
    fn default() -> Self {
        Self { times: 2, runs: 5 }
    }
}

/// What evaluates `.build-spec.ncl`, and within which limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NickelSection {
    /// Absolute path of stoker-nickel. Unset: beside the agent's own program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Memory of one evaluation, in bytes with a unit: 128MiB to 16GiB.
    pub memory: Bytes,
    /// CPU time of one evaluation: 1s to 5m. Six times as long by the clock ends it too.
    pub cpu_time: Time,
}

impl Default for NickelSection {
    /// A spec of a hundred lines takes a tenth of both.
    fn default() -> Self {
        Self { program: None, memory: "512MiB".into(), cpu_time: "5s".into() }
    }
}

/// Sizes of builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizing {
    /// Defaults, ladder, cap.
    pub policy: Arc<Policy>,
    /// What evaluates Nickel.
    pub nickel: NickelLimits,
}

impl Default for Sizing {
    /// What the file's defaults say; a test holds the two together.
    fn default() -> Self {
        let nickel = NickelLimits { program: None, memory_bytes: 512 << 20, cpu_time: Duration::from_secs(5) };
        Self { policy: Arc::default(), nickel }
    }
}

/// What evaluates Nickel, and within which limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NickelLimits {
    /// Absolute; unset: beside the agent's own program.
    pub program: Option<PathBuf>,
    /// Memory of one evaluation.
    pub memory_bytes: u64,
    /// CPU time of one evaluation.
    pub cpu_time: Duration,
}
