//! The size after a build ran out of memory at its own limit: one step up.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{GIB, MIB, history::with_margin};
use crate::quantity::{Amounts, Size};

/// One step: what a build on it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes of memory; more than on the step below.
    pub memory_bytes: u64,
}

/// The steps, from the smallest. On the first is what a narrow gate calls a small build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ladder(pub Vec<Step>);

impl Default for Ladder {
    fn default() -> Self {
        let step = |(cpu_millis, memory_bytes)| Step { cpu_millis, memory_bytes };
        Self([(2000, 4 * GIB), (4000, 8 * GIB), (8000, 16 * GIB), (16_000, 32 * GIB)].map(step).to_vec())
    }
}

/// A step that adds less than this (or less than a fifth) is not worth another run.
pub const STEP_BYTES_MIN: u64 = 100 * MIB;

impl Ladder {
    /// The next size up: the first step with at least 1.2 times the memory and at least 100 MiB more; past the ladder,
    /// exactly that much. Never above the budget; none where the budget has not even that.
    ///
    /// The CPU goes up with its step as far as the budget has it, and never down. Disk and time stay.
    #[must_use]
    pub fn next_step(&self, size: &Size, budget: &Amounts) -> Option<Size> {
        let memory = size.amounts.memory_bytes;
        let enough = with_margin(memory).max(memory.saturating_add(STEP_BYTES_MIN));
        if enough <= memory || enough > budget.memory_bytes {
            return None;
        }
        let past = Step { cpu_millis: size.amounts.cpu_millis, memory_bytes: enough };
        let step = self.0.iter().copied().find(|step| step.memory_bytes >= enough).unwrap_or(past);
        let amounts = Amounts {
            cpu_millis: step.cpu_millis.min(budget.cpu_millis).max(size.amounts.cpu_millis),
            memory_bytes: step.memory_bytes.min(budget.memory_bytes),
            ..size.amounts
        };
        Some(Size { amounts, ..*size })
    }

    /// The first step, where there is one: what a small build has at most.
    #[must_use]
    pub fn small(&self) -> Option<Amounts> {
        let first = self.0.first()?;
        Some(Amounts { cpu_millis: first.cpu_millis, memory_bytes: first.memory_bytes, ..Amounts::default() })
    }

    /// Whether a build is no more than the first step.
    #[must_use]
    pub fn is_small(&self, wanted: &Amounts) -> bool {
        self.0
            .first()
            .is_some_and(|step| wanted.cpu_millis <= step.cpu_millis && wanted.memory_bytes <= step.memory_bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(cpu_millis: u64, memory_bytes: u64) -> Size {
        Size { amounts: Amounts { cpu_millis, memory_bytes, ..Amounts::default() }, ..Size::default() }
    }

    fn step(memory_bytes: u64, budget: u64) -> Option<(u64, u64)> {
        let budget = Amounts { cpu_millis: 12_000, memory_bytes: budget, ..Amounts::default() };
        Ladder::default()
            .next_step(&of(2000, memory_bytes), &budget)
            .map(|next| (next.amounts.cpu_millis, next.amounts.memory_bytes))
    }

    #[test]
    fn each_step_leads_to_the_next_and_the_last_one_to_a_fifth_more() {
        let budget = 54 * GIB;
        assert_eq!(step(4 * GIB, budget), Some((4000, 8 * GIB)));
        assert_eq!(step(7 * GIB, budget), Some((8000, 16 * GIB)), "8 GiB is less than 1.2 times 7 GiB");
        assert_eq!(step(16 * GIB, budget), Some((12_000, 32 * GIB)), "the CPU stops at the budget");
        assert_eq!(step(40 * GIB, budget), Some((2000, 48 * GIB)));
    }

    #[test]
    fn the_budget_ends_the_ladder() {
        assert_eq!(step(4 * GIB, 6 * GIB), Some((4000, 6 * GIB)));
        assert_eq!(step(4 * GIB, 4 * GIB + 200 * MIB), None, "less than a fifth more");
        assert_eq!(step(100 * MIB, 199 * MIB), None, "less than 100 MiB more");
        assert_eq!(step(u64::MAX, u64::MAX), None);
    }

    #[test]
    fn a_ladder_of_the_operators_own() {
        let ladder = Ladder(Vec::from([Step { cpu_millis: 1000, memory_bytes: 6 * GIB }]));
        let budget = Amounts { cpu_millis: 12_000, memory_bytes: 54 * GIB, ..Amounts::default() };
        let next = |memory| ladder.next_step(&of(500, memory), &budget).unwrap().amounts;
        assert_eq!((next(4 * GIB).cpu_millis, next(4 * GIB).memory_bytes), (1000, 6 * GIB));
        assert_eq!(next(10 * GIB).memory_bytes, 12 * GIB, "past the ladder a fifth more");
        assert!(ladder.is_small(&of(1000, 6 * GIB).amounts) && !ladder.is_small(&of(1001, GIB).amounts));
    }

    proptest! {
        #[test]
        fn the_ladder_strictly_grows_and_ends(cpu in 0..64_000u64, memory in 0..(128 * GIB), budget in 0..(256 * GIB)) {
            let budget = Amounts { cpu_millis: 32_000, memory_bytes: budget, ..Amounts::default() };
            let mut size = of(cpu, memory);
            let mut steps = 0;
            while let Some(next) = Ladder::default().next_step(&size, &budget) {
                let (was, is) = (size.amounts, next.amounts);
                prop_assert!(is.memory_bytes >= was.memory_bytes + STEP_BYTES_MIN);
                prop_assert!(u128::from(is.memory_bytes) * 5 >= u128::from(was.memory_bytes) * 6);
                prop_assert!(is.memory_bytes <= budget.memory_bytes);
                prop_assert!(is.cpu_millis >= was.cpu_millis && is.cpu_millis <= was.cpu_millis.max(budget.cpu_millis));
                size = next;
                steps += 1;
                prop_assert!(steps < 64);
            }
        }
    }
}
