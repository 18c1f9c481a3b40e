//! What a pod demands of a node: its node selector, the required terms of its node affinity, and the taints that it
//! tolerates. As the scheduler of the cluster reads them; preferences are left to that.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::cluster::Taint;

/// What must hold of one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What of it.
    pub is: Is,
}

/// What of a label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Is {
    /// One of these.
    In(Vec<String>),
    /// There, and none of these; or not there.
    NotIn(Vec<String>),
    /// There.
    Exists,
    /// Not there.
    DoesNotExist,
    /// A number above.
    Gt(i64),
    /// A number below.
    Lt(i64),
    /// Something that is not known here: the scheduler knows.
    Unknown,
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.is {
            Is::In(values) => value.is_some_and(|value| values.contains(value)),
            Is::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Is::Exists => value.is_some(),
            Is::DoesNotExist => value.is_none(),
            Is::Gt(than) => number().is_some_and(|number| number > *than),
            Is::Lt(than) => number().is_some_and(|number| number < *than),
            Is::Unknown => true,
        }
    }
}

/// A taint that is borne.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Toleration {
    /// Empty: every key.
    pub key: String,
    /// Unset: every value.
    pub value: Option<String>,
    /// Empty: every effect.
    pub effect: String,
}

impl Toleration {
    fn bears(&self, taint: &Taint) -> bool {
        (self.key.is_empty() || self.key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
            && (self.effect.is_empty() || self.effect == taint.effect)
    }
}

/// All that a pod demands of a node.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// All of these hold (`nodeSelector`).
    pub all: Vec<Requirement>,
    /// One of these holds, with all of its own (`nodeSelectorTerms`); none: no matter. A term without any holds nowhere.
    pub any: Vec<Vec<Requirement>>,
    /// What it bears.
    pub tolerations: Vec<Toleration>,
}

impl Selector {
    /// Whether a node is one of those.
    #[must_use]
    pub fn holds(&self, labels: &BTreeMap<String, String>, taints: &[Taint]) -> bool {
        let bears = |taint: &Taint| {
            // Ours tells what the gate tells, and comes and goes with it.
            taint.effect == "PreferNoSchedule"
                || taint.key.starts_with("stoker.build/")
                || self.tolerations.iter().any(|toleration| toleration.bears(taint))
        };
        let term = |term: &Vec<Requirement>| !term.is_empty() && term.iter().all(|one| one.holds(labels));
        self.all.iter().all(|one| one.holds(labels))
            && (self.any.is_empty() || self.any.iter().any(term))
            && taints.iter().all(bears)
    }
}
