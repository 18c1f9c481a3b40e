//! What a size was made of, so that a build that waits can be sized anew.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use super::{Declared, HistorySummary, Language, Policy, Sizing, Spec, size};
use crate::quantity::Amounts;

/// All that says how big a build is and does not change while it waits. What does: its history, the policy, the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The request.
    pub declared: Declared,
    /// The build spec at its commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Spec>,
    /// What it is mostly written in.
    pub language: Language,
    /// What its runs are remembered under.
    pub history_key: String,
}

impl Asked {
    /// How big it is after this history.
    #[must_use]
    pub fn size(&self, history: Option<&HistorySummary>, policy: &Policy, node: &Amounts) -> Sizing {
        size(&self.declared, self.spec.as_ref(), history, self.language, policy, node)
    }
}
