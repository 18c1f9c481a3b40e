//! How big a build is, and where each number came from.
//!
//! In: what the request and the build spec declare, what earlier runs used, the language, the node's budget. Out: a
//! [`Sizing`], with one [`Basis`] for each resource. The rule for each resource is `max(declared, 1.2 x p95 of the
//! history)`, and without either the language's default. What a person declared is never lowered: where it is more
//! than the node has, the ledger rejects it in so many words. What was derived is clamped to the node's budget, and on
//! the pool to what others leave of it, so that a default made for large machines still builds on a small one, and the
//! answer says so.
//!
//! - [`policy`]: what the operator sets: the table of defaults, the ladder, the cap.
//! - [`history`]: what runs used, and what that says of the next one.
//! - [`ladder`]: the size after a build ran out of memory.
//! - [`oom`]: whether it did, and whose limit that was.
//! - [`decimal`]: numbers that people write, without floating point.

mod asked;
pub mod decimal;
pub mod history;
pub mod ladder;
pub mod oom;
pub mod policy;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

pub use asked::Asked;
pub use history::{Confidence, HistorySummary, Measured, Outcome, Sample, summary};
pub use ladder::{Ladder, Step};
pub use oom::{Evidence, MemoryEnd, OomCounters, PodEnd, classify};
pub use policy::{Cap, OverDeclared, Policy};

use crate::quantity::{Amounts, Resource, Size, Span};
use crate::reason::{Code, Reason};

/// One gibibyte.
pub(crate) const GIB: u64 = 1 << 30;
/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

/// What was derived takes all of a pool but this part of it (a tenth).
const DISK_KEPT_PART: u64 = 10;
/// The longest time budget that can be declared, and the most that a history leads to.
pub const TIME_BUDGET_MAX: Span = Span::minutes(24 * 60);

/// The least that is derived. A target that once only printed its version, or a disk that others filled, would otherwise
/// lead to a size in which nothing starts.
pub const DERIVED_FLOOR: Amounts =
    Amounts { cpu_millis: 100, memory_bytes: 64 * MIB, disk_bytes: 256 * MIB, disk_inodes: 10_000 };

/// All parts of a size, in the order of their [`Basis`].
const RESOURCES: [Resource; 5] =
    [Resource::Cpu, Resource::Memory, Resource::DiskBytes, Resource::DiskInodes, Resource::Time];

/// What a request says of its size. Parts that are not set come from the spec, the history, the default.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declared {
    /// Thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes on the pool.
    pub disk_bytes: Option<u64>,
    /// Inodes on the pool.
    pub disk_inodes: Option<u64>,
    /// From binding to the end.
    pub time_budget: Option<Span>,
    /// The caller's own history, used like the node's.
    pub measured: Option<Measured>,
    /// What its pod asks of the cluster, where that is known: it is given that, so its lease has no less.
    #[serde(default, skip_serializing_if = "Amounts::is_nothing")]
    pub pod: Amounts,
}

impl Declared {
    fn get(&self, resource: Resource) -> Option<u64> {
        match resource {
            Resource::Cpu => self.cpu_millis,
            Resource::Memory => self.memory_bytes,
            Resource::DiskBytes => self.disk_bytes,
            Resource::DiskInodes => self.disk_inodes,
            Resource::Time => self.time_budget.map(millis),
        }
    }
}

/// A value of a build spec, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecValue {
    /// In the unit of its resource: thousandths of a core, bytes, milliseconds.
    pub value: u64,
    /// Its line in the file, from 1; 0 where it is not known.
    pub line: u32,
}

/// A valid build spec.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its name in the repository.
    pub file: String,
    /// Thousandths of a core.
    pub cpu: Option<SpecValue>,
    /// Bytes.
    pub memory: Option<SpecValue>,
    /// Bytes.
    pub disk: Option<SpecValue>,
    /// Milliseconds.
    pub time: Option<SpecValue>,
    /// Directories of the tenant that outlive the build: at most 16, each `[a-z0-9._-]{1,64}`, none hidden.
    pub cache_keys: Vec<String>,
    /// Whether a build that ran out of memory is tried once more. Not set: yes.
    pub oom_retry: Option<bool>,
}

impl Spec {
    fn get(&self, resource: Resource) -> Option<SpecValue> {
        match resource {
            Resource::Cpu => self.cpu,
            Resource::Memory => self.memory,
            Resource::DiskBytes => self.disk,
            Resource::DiskInodes => None,
            Resource::Time => self.time,
        }
    }
}

/// What a repository is mostly written in, as far as sizes differ by it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// Rust.
    Rust,
    /// Go.
    Go,
    /// Java.
    Java,
    /// Kotlin.
    Kotlin,
    /// Scala.
    Scala,
    /// JavaScript and TypeScript.
    Node,
    /// Any other, or not known.
    #[default]
    Other,
}

impl Language {
    /// One word, as in [`Basis::language`] on the wire.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Go => "go",
            Self::Java => "java",
            Self::Kotlin => "kotlin",
            Self::Scala => "scala",
            Self::Node => "node",
            Self::Other => "other",
        }
    }
}

/// One line of the table of defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanguageDefault {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// From binding to the end.
    pub time_budget: Span,
}

impl LanguageDefault {
    /// From cores, GiB and minutes.
    #[must_use]
    pub const fn new(cores: u32, gib: u32, minutes: u32) -> Self {
        // A u32 times these units is far below 2^64 (and the minutes below 2^63).
        Self {
            cpu_millis: (cores as u64).saturating_mul(1000),
            memory_bytes: (gib as u64).saturating_mul(GIB),
            time_budget: Span::minutes(minutes as i64),
        }
    }
}

/// What a build gets of which nothing is known but its language.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defaults {
    /// Rust.
    pub rust: LanguageDefault,
    /// Go.
    pub go: LanguageDefault,
    /// Java.
    pub java: LanguageDefault,
    /// Kotlin.
    pub kotlin: LanguageDefault,
    /// Scala.
    pub scala: LanguageDefault,
    /// JavaScript and TypeScript.
    pub node: LanguageDefault,
    /// Any other.
    pub other: LanguageDefault,
    /// Bytes on the pool, whatever the language.
    pub disk_bytes: u64,
    /// Inodes on the pool, whatever the language.
    pub disk_inodes: u64,
}

impl Defaults {
    /// The table where nobody configured another.
    pub const STANDARD: Self = Self {
        rust: LanguageDefault::new(4, 8, 60),
        go: LanguageDefault::new(2, 4, 30),
        java: LanguageDefault::new(4, 8, 45),
        kotlin: LanguageDefault::new(4, 8, 45),
        scala: LanguageDefault::new(4, 8, 45),
        node: LanguageDefault::new(2, 4, 30),
        other: LanguageDefault::new(2, 4, 30),
        disk_bytes: 20 * GIB,
        disk_inodes: 1_000_000,
    };

    /// The size of a build in this language.
    #[must_use]
    pub const fn of(&self, language: Language) -> Size {
        let line = match language {
            Language::Rust => self.rust,
            Language::Go => self.go,
            Language::Java => self.java,
            Language::Kotlin => self.kotlin,
            Language::Scala => self.scala,
            Language::Node => self.node,
            Language::Other => self.other,
        };
        Size {
            amounts: Amounts {
                cpu_millis: line.cpu_millis,
                memory_bytes: line.memory_bytes,
                disk_bytes: self.disk_bytes,
                disk_inodes: self.disk_inodes,
            },
            time_budget: line.time_budget,
        }
    }
}

impl Default for Defaults {
    fn default() -> Self {
        Self::STANDARD
    }
}

/// Where a number came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// The request declares it.
    Request,
    /// The build spec at the commit declares it.
    Spec,
    /// Earlier runs used it, and a fifth is added.
    History,
    /// Nothing is known but the language.
    LanguageDefault,
    /// One step up the ladder: a retry after a build ran out of memory.
    Ladder,
}

/// Why one part of a size is what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// Which part.
    pub resource: Resource,
    /// Where it came from.
    pub tier: Tier,
    /// In the unit of the resource, before it was clamped.
    pub value: u64,
    /// How many runs it rests on; 0 where it does not come from the history.
    #[serde(default, skip_serializing_if = "is_default")]
    pub runs: u32,
    /// Whether so few runs say little.
    #[serde(default, skip_serializing_if = "is_default")]
    pub confidence: Confidence,
    /// The build spec that declares it; empty elsewhere.
    #[serde(default, skip_serializing_if = "is_default")]
    pub file: String,
    /// The line in that file, from 1; 0 where it is not known.
    #[serde(default, skip_serializing_if = "is_default")]
    pub line: u32,
    /// The language, where it is its default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub language: Option<Language>,
    /// The size has less than `value`, because the node has no more.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clamped: bool,
    /// Because the operator's cap allows no more.
    #[serde(default, skip_serializing_if = "is_default")]
    pub capped: bool,
    /// What earlier runs say, whether or not it became the value.
    #[serde(default, skip_serializing_if = "is_default")]
    pub compared: Option<Compared>,
    /// It declares far more than those runs used.
    #[serde(default, skip_serializing_if = "is_default")]
    pub over_declared: bool,
}

/// What earlier runs say of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The 95th percentile of their peaks; of few of them, the largest.
    pub p95: u64,
    /// What a build should get after them.
    pub leads_to: u64,
    /// How many there are.
    pub runs: u32,
}

/// A record in the journal is a page of the disk at best: what says nothing is left out of it.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Basis {
    pub(crate) fn new(resource: Resource, tier: Tier, value: u64) -> Self {
        Self {
            resource,
            tier,
            value,
            runs: 0,
            confidence: Confidence::Normal,
            file: String::new(),
            line: 0,
            language: None,
            clamped: false,
            capped: false,
            compared: None,
            over_declared: false,
        }
    }

    /// The words for what declares it, as its author wrote them: `memory_gb of .build-spec.yaml:4`.
    fn knob(&self) -> String {
        let (spec, request) = match self.resource {
            Resource::Cpu => ("cpu", "declared.cpu_millis"),
            Resource::Memory => ("memory_gb", "declared.memory_bytes"),
            Resource::DiskBytes => ("disk_gb", "declared.disk_bytes"),
            Resource::DiskInodes => ("", "declared.disk_inodes"),
            Resource::Time => ("time_budget_min", "declared.time_budget"),
        };
        match (self.tier, self.line) {
            (Tier::Spec, 0) => format!("{spec} of {}", self.file),
            (Tier::Spec, line) => format!("{spec} of {}:{line}", self.file),
            _ => String::from(request),
        }
    }
}

/// A size, and where each number of it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizing {
    /// What the build gets.
    pub size: Size,
    /// One for each resource: CPU, memory, disk bytes, disk inodes, time.
    pub basis: Vec<Basis>,
    /// Something that was not declared was lowered to what the node has.
    pub clamped: bool,
    /// The commit's build spec was not read yet. [`size`] says no; who calls it without having looked sets it.
    pub provisional: bool,
}

impl Sizing {
    /// Whether it has less of the pool than it would, or has more than there is for one build: it is another where that
    /// changes.
    #[must_use]
    pub fn follows_the_pool(&self, room: &Amounts) -> bool {
        let disk = |basis: &&Basis| matches!(basis.resource, Resource::DiskBytes | Resource::DiskInodes);
        self.basis.iter().filter(disk).any(|basis| basis.clamped || basis.value > most(basis.resource, room))
    }

    /// Lowers what the pool's part has by default to what there is for one build now. What a history led to stays: less may
    /// have been declared beside it, and that is never lowered. Nor does a pool lower anything that is away.
    pub(crate) fn lower_to_pool(&mut self, room: &Amounts) {
        let disk = |basis: &&mut Basis| matches!(basis.resource, Resource::DiskBytes | Resource::DiskInodes);
        for basis in self.basis.iter_mut().filter(disk).filter(|basis| basis.tier == Tier::LanguageDefault) {
            let (resource, most) = (basis.resource, most(basis.resource, room));
            if room.get(resource) > 0 && part(&self.size, resource) > most {
                set(&mut self.size, resource, most);
                (basis.clamped, basis.capped, self.clamped) = (true, false, true);
            }
        }
    }

    /// Whether [`Self::over_declared`] says anything.
    #[must_use]
    pub fn is_over_declared(&self) -> bool {
        self.basis.iter().any(|basis| basis.over_declared)
    }

    /// What is declared far above what such builds use: which field, and the figures of both sides.
    #[must_use]
    pub fn over_declared(&self) -> Vec<Reason> {
        let told = self.basis.iter().filter(|basis| basis.over_declared).filter_map(|basis| {
            let Compared { p95, leads_to, runs } = basis.compared?;
            let show = |value| basis.resource.show(value);
            let message = format!(
                "{} declared by {}, but 95% of {runs} runs used at most {}: {} would be enough",
                show(basis.value),
                basis.knob(),
                show(p95),
                show(leads_to)
            );
            Some(Reason::new(Code::OverDeclared, basis.resource.word(), message).about(
                basis.resource,
                basis.value,
                leads_to,
            ))
        });
        told.collect()
    }
}

/// What is declared above the operator's cap: which field, and the figures of both sides. It is refused and not lowered,
/// for a person meant it.
#[must_use]
pub fn beyond_cap(request: &Declared, spec: Option<&Spec>, cap: &Cap) -> Vec<Reason> {
    let over = |resource| {
        let (basis, most) = (declared(request, spec, resource)?, cap.of(resource)?);
        let (value, knob, field) = (basis.value, basis.knob(), Cap::field(resource));
        let (wants, allowed) = (resource.show(value), resource.show(most));
        let message = format!("{wants} declared by {knob}, this node allows {allowed} ({field}): declare at most that");
        let reason = || Reason::new(Code::SizeCap, resource.word(), message).about(resource, value, most);
        (value > most).then(reason)
    };
    RESOURCES.into_iter().filter_map(over).collect()
}

/// How big this build is on this node.
///
/// `node` is the budget: CPU and memory of the node, and what there is for builds on the pool where workspaces are made. It
/// and the policy's cap lower defaults and what the history leads to, never what is declared.
#[must_use]
pub fn size(
    request: &Declared,
    spec: Option<&Spec>,
    history: Option<&HistorySummary>,
    language: Language,
    policy: &Policy,
    node: &Amounts,
) -> Sizing {
    let default = policy.defaults.of(language);
    let mut sizing = Sizing {
        size: Size::default(),
        basis: Vec::with_capacity(RESOURCES.len()),
        clamped: false,
        provisional: false,
    };
    for resource in RESOURCES {
        let fallback = part(&default, resource);
        let declared = declared(request, spec, resource);
        let floor = declared.as_ref().map_or(0, |basis| basis.value);
        // Where something is declared, the default does not count at all.
        let least = if declared.is_some() { 0 } else { fallback };
        let derived = derived(request, history, resource, least);
        let compared = compared(request, history, resource);
        let mut basis = match (declared, derived) {
            (Some(declared), Some(derived)) if derived.value > declared.value => derived,
            (Some(declared), _) => Basis {
                over_declared: compared.is_some_and(|(seen, complete)| {
                    policy.over_declared.holds(resource, declared.value, seen.leads_to, complete)
                }),
                ..declared
            },
            (None, Some(derived)) => derived,
            (None, None) => {
                let basis = Basis::new(resource, Tier::LanguageDefault, fallback);
                Basis { language: Some(language), ..basis }
            }
        };
        basis.compared = compared.map(|(compared, _)| compared);
        let has = match resource {
            Resource::Time => millis(TIME_BUDGET_MAX),
            _ => most(resource, node),
        };
        let cap = policy.cap.of(resource).unwrap_or(u64::MAX);
        let value = basis.value.min(has.min(cap).max(floor));
        basis.clamped = value < basis.value;
        basis.capped = basis.clamped && cap < has;
        sizing.clamped |= basis.clamped;
        set(&mut sizing.size, resource, value);
        sizing.basis.push(basis);
    }
    sizing
}

/// The most that is derived of one part, of what there is of it for one build.
#[must_use]
pub fn most(resource: Resource, room: &Amounts) -> u64 {
    let all = room.get(resource);
    match resource {
        // A filesystem is never empty, and others write too: all of it would be waited for in vain.
        Resource::DiskBytes | Resource::DiskInodes => all.saturating_sub(all / DISK_KEPT_PART),
        Resource::Cpu | Resource::Memory | Resource::Time => all,
    }
}

/// The request's part, else the spec's; and no less than what its pod asks for.
fn declared(request: &Declared, spec: Option<&Spec>, resource: Resource) -> Option<Basis> {
    let told = told(request, spec, resource);
    let pod = request.pod.get(resource);
    match told.as_ref().map_or(0, |basis| basis.value) < pod {
        true => Some(Basis::new(resource, Tier::Request, pod)),
        false => told,
    }
}

fn told(request: &Declared, spec: Option<&Spec>, resource: Resource) -> Option<Basis> {
    if let Some(value) = request.get(resource) {
        return Some(Basis::new(resource, Tier::Request, value));
    }
    let spec = spec?;
    let SpecValue { value, line } = spec.get(resource)?;
    Some(Basis { file: spec.file.clone(), line, ..Basis::new(resource, Tier::Spec, value) })
}

/// What earlier runs lead to: the node's own or the caller's, whichever is more.
fn derived(request: &Declared, history: Option<&HistorySummary>, resource: Resource, least: u64) -> Option<Basis> {
    let own = history.and_then(|summary| Some((summary.leads_to(resource, least)?, summary.runs, summary.confidence)));
    let callers = request.measured.and_then(|m| Some((m.leads_to(resource)?, m.runs, Confidence::of(m.runs))));
    let (value, runs, confidence) = match (own, callers) {
        (Some(own), Some(callers)) if callers.0 > own.0 => callers,
        (Some(own), _) => own,
        (None, callers) => callers?,
    };
    let value = value.max(DERIVED_FLOOR.get(resource));
    Some(Basis { runs, confidence, ..Basis::new(resource, Tier::History, value) })
}

/// What runs say of one part, whatever is declared, and how many of them are complete: the node's own or the caller's,
/// whichever is more.
fn compared(request: &Declared, history: Option<&HistorySummary>, resource: Resource) -> Option<(Compared, u32)> {
    let own = history.and_then(|summary| {
        let (p95, leads_to) = (summary.p95(resource)?, summary.leads_to(resource, 0)?);
        Some((Compared { p95, leads_to, runs: summary.runs }, summary.runs_complete))
    });
    let callers = request.measured.and_then(|measured| {
        let (p95, leads_to) = (measured.p95(resource)?, measured.leads_to(resource)?);
        Some((Compared { p95, leads_to, runs: measured.runs }, measured.runs))
    });
    let (compared, complete) = own.into_iter().chain(callers).max_by_key(|(compared, _)| compared.leads_to)?;
    Some((Compared { leads_to: compared.leads_to.max(DERIVED_FLOOR.get(resource)), ..compared }, complete))
}

fn part(size: &Size, resource: Resource) -> u64 {
    match resource {
        Resource::Time => millis(size.time_budget),
        _ => size.amounts.get(resource),
    }
}

fn set(size: &mut Size, resource: Resource, value: u64) {
    match resource {
        Resource::Cpu => size.amounts.cpu_millis = value,
        Resource::Memory => size.amounts.memory_bytes = value,
        Resource::DiskBytes => size.amounts.disk_bytes = value,
        Resource::DiskInodes => size.amounts.disk_inodes = value,
        Resource::Time => size.time_budget = Span(i64::try_from(value).unwrap_or(i64::MAX)),
    }
}

/// A span is never negative.
pub(crate) fn millis(span: Span) -> u64 {
    u64::try_from(span.0).unwrap_or(0)
}

#[cfg(test)]
mod tests;
