//! How long the output of a line of builds is kept.

use alloc::vec::Vec;

use crate::identity::Scope;
use crate::quantity::Span;

use super::Glob;

/// How long outputs are kept where nothing else is said: 14 days.
pub const KEEP: Span = Span::hours(14 * 24);

/// Lines of builds, and how long their outputs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Unset: any.
    pub tenant: Option<Glob>,
    /// Unset: any.
    pub project: Option<Glob>,
    /// Unset: any.
    pub branch: Option<Glob>,
    /// How long.
    pub keep: Span,
}

impl Rule {
    /// Whether all that it names holds of this line of builds.
    #[must_use]
    pub fn matches(&self, scope: &Scope) -> bool {
        let holds = |glob: &Option<Glob>, name: &str| glob.as_ref().is_none_or(|glob| glob.matches(name));
        holds(&self.tenant, &scope.tenant) && holds(&self.project, &scope.project) && holds(&self.branch, &scope.branch)
    }
}

/// All rules, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Where no rule matches.
    pub keep: Span,
    /// The first that matches counts.
    pub rules: Vec<Rule>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { keep: KEEP, rules: Vec::new() }
    }
}

/// How long, and by which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// How long.
    pub keep: Span,
    /// The place of the rule among all; unset: none matched.
    pub rule: Option<usize>,
}

impl Rules {
    /// What holds for this line of builds.
    #[must_use]
    pub fn of(&self, scope: &Scope) -> Kept {
        let found = self.rules.iter().enumerate().find(|(_, rule)| rule.matches(scope));
        found.map_or(Kept { keep: self.keep, rule: None }, |(at, rule)| Kept { keep: rule.keep, rule: Some(at) })
    }
}
