//! How a damaged store is mended: the cheapest step that may do it comes first.
//!
//! After each step the store is looked at again. Nothing is thrown away while upstream is away: what is left may be all
//! that there is.

/// A step of mending, from the cheapest to the dearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Look again, now that nobody else writes: another visit may have mended it.
    Recheck,
    /// Fetch what is missing.
    Fetch,
    /// Rebuild what follows from the packs, set packs aside that cannot be read, fetch all of it again.
    Repair,
    /// Set the store aside, and clone anew.
    Clone,
}

impl Step {
    /// All there are, in their order.
    pub const ALL: [Self; 4] = [Self::Recheck, Self::Fetch, Self::Repair, Self::Clone];

    /// The word for logs, metrics and people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Recheck => "recheck",
            Self::Fetch => "fetch",
            Self::Repair => "repair",
            Self::Clone => "clone",
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This step.
    Try(Step),
    /// It is whole; this step did it.
    Whole(Step),
    /// Nothing more can be done now.
    GiveUp,
}

/// The next step. `last` was tried, after it the store was found `whole` or not; `upstream` answers.
#[must_use]
pub const fn next(last: Option<Step>, whole: bool, upstream: bool) -> Next {
    match (last, whole, upstream) {
        (None, _, _) => Next::Try(Step::Recheck),
        (Some(step), true, _) => Next::Whole(step),
        (Some(Step::Recheck), false, true) => Next::Try(Step::Fetch),
        (Some(Step::Recheck), false, false) | (Some(Step::Fetch), false, _) => Next::Try(Step::Repair),
        (Some(Step::Repair), false, true) => Next::Try(Step::Clone),
        (Some(Step::Repair), false, false) | (Some(Step::Clone), false, _) => Next::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps until it ends; the store is whole after `cure`, and upstream answers before each step of `answers`.
    fn walk(cure: Option<Step>, answers: impl Fn(Option<Step>) -> bool) -> (alloc::vec::Vec<Step>, Next) {
        let (mut tried, mut last) = (alloc::vec::Vec::new(), None);
        loop {
            match next(last, last.is_some() && last == cure, answers(last)) {
                Next::Try(step) => {
                    assert!(last.is_none_or(|last| last < step), "each step is dearer than the one before");
                    tried.push(step);
                    last = Some(step);
                }
                end => return (tried, end),
            }
        }
    }

    #[test]
    fn the_cheapest_step_that_cures_is_the_last() {
        for (i, cure) in Step::ALL.into_iter().enumerate() {
            let (tried, end) = walk(Some(cure), |_| true);
            assert_eq!((tried.as_slice(), end), (&Step::ALL[..=i], Next::Whole(cure)));
        }
        assert_eq!(walk(None, |_| true), (Step::ALL.to_vec(), Next::GiveUp));
    }

    #[test]
    fn nothing_is_thrown_away_while_upstream_is_away() {
        for cure in Step::ALL.into_iter().map(Some).chain([None]) {
            assert!(!walk(cure, |_| false).0.contains(&Step::Clone));
            // It goes away under way.
            assert!(!walk(cure, |last| last.is_none_or(|last| last < Step::Fetch)).0.contains(&Step::Clone));
        }
        assert_eq!(walk(Some(Step::Repair), |_| false).1, Next::Whole(Step::Repair));
    }
}
