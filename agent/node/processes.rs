//! Processes of one tree: what `/proc` says of each, and the CPU time that goes with those that end.

use std::collections::BTreeMap;

use procfs::process::Stat;

/// More generations than these are not gone back.
const GENERATIONS_MAX: usize = 4096;

/// A process, as it was last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// Ticks after boot: with the number it names a process for good.
    pub(crate) start: u64,
    /// It is only still to be waited for. (Where other threads than its first still run, it runs.)
    pub(crate) zombie: bool,
    /// Ticks of its own.
    pub(crate) own: u64,
    /// Ticks of the children that it waited for, and of those that they waited for.
    pub(crate) waited: u64,
}

impl Seen {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            parent: stat.ppid,
            group: stat.pgrp,
            session: stat.session,
            start: stat.starttime,
            zombie: matches!(stat.state, 'X' | 'x') || stat.state == 'Z' && stat.num_threads <= 1,
            own: stat.utime.saturating_add(stat.stime),
            waited: u64::try_from(stat.cutime.saturating_add(stat.cstime)).unwrap_or(0),
        }
    }

    pub(crate) fn ticks(&self) -> u64 {
        self.own.saturating_add(self.waited)
    }
}

/// CPU time of a tree over its life, in ticks: nothing twice, and nothing forgotten when a process ends.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct TreeTicks {
    /// Of processes that ended without a member waiting for them.
    lost: u64,
    /// Never falls.
    total: u64,
}

impl TreeTicks {
    /// Takes the members of the next look; gives the total.
    pub(crate) fn add(&mut self, before: &BTreeMap<i32, Seen>, after: &BTreeMap<i32, Seen>) -> u64 {
        self.lost = self.lost.saturating_add(unaccounted(before, after));
        let living = after.values().fold(0_u64, |sum, member| sum.saturating_add(member.ticks()));
        self.total = self.total.max(living.saturating_add(self.lost));
        self.total
    }

    pub(crate) const fn total(&self) -> u64 {
        self.total
    }
}

/// Ticks of processes that ended, as far as no living member has them among those it waited for.
fn unaccounted(before: &BTreeMap<i32, Seen>, after: &BTreeMap<i32, Seen>) -> u64 {
    let living = |pid: i32| {
        let (was, is) = (before.get(&pid)?, after.get(&pid)?);
        (was.start == is.start).then(|| is.waited.saturating_sub(was.waited))
    };
    let mut lost = 0_u64;
    let mut owed: BTreeMap<i32, u64> = BTreeMap::new();
    for (pid, ended) in before.iter().filter(|(pid, _)| living(**pid).is_none()) {
        // Times go up with each wait: past parents that ended too, to the first that lives.
        let mut heir = ended.parent;
        let mut generations = 0;
        while living(heir).is_none() && heir != *pid && generations < GENERATIONS_MAX {
            match before.get(&heir) {
                Some(parent) => heir = parent.parent,
                None => break,
            }
            generations += 1;
        }
        match living(heir) {
            Some(_) => {
                let sum = owed.entry(heir).or_default();
                *sum = sum.saturating_add(ended.ticks());
            }
            None => lost = lost.saturating_add(ended.ticks()),
        }
    }
    // Who ignores its children, or lost them to another parent, has less than it is owed.
    owed.into_iter()
        .fold(lost, |sum, (heir, ticks)| sum.saturating_add(ticks.saturating_sub(living(heir).unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_ended_members_goes_to_whom_waited_for_them_or_is_kept() {
        let member = |parent, own, waited| Seen { parent, group: 1, session: 1, start: 1, zombie: false, own, waited };
        let before = BTreeMap::from([(10, member(1, 5, 0)), (11, member(10, 7, 2)), (12, member(11, 30, 0))]);
        let with = |root| BTreeMap::from([(10, root)]);
        assert_eq!(unaccounted(&before, &with(member(1, 5, 39))), 0, "both were waited for, up to the root");
        assert_eq!(unaccounted(&before, &with(member(1, 5, 9))), 30, "the grandchild was not");
        assert_eq!(unaccounted(&before, &BTreeMap::new()), 44, "nobody is left to have it");
        let reused = Seen { start: 2, ..member(1, 0, 0) };
        assert_eq!(unaccounted(&before, &with(reused)), 44, "the same number is not the same process");
        let mut ticks = TreeTicks::default();
        assert_eq!(ticks.add(&BTreeMap::new(), &before), 44);
        let (others_gone, later) = (with(member(1, 5, 0)), with(member(1, 25, 0)));
        assert_eq!(ticks.add(&before, &others_gone), 44);
        assert_eq!(ticks.add(&others_gone, &later), 64, "it does not stand still until the root has made up for them");
    }
}
