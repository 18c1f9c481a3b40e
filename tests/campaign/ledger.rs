//! What happened, and when somebody was struck.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What must have happened, and how often at least.
const NEEDED: [(&str, u64); 21] = [
    ("build: clone", 3),
    ("build: clone --depth 1", 3),
    ("build: clone --filter=blob:none", 3),
    ("build: fetch of a commit", 3),
    ("build: resolve, fetch of that commit", 3),
    ("build: workspace", 3),
    ("build: workspace that outlived a kill of the agent", 1),
    ("build: refresh", 3),
    ("upstream: push", 10),
    ("upstream: force-push", 10),
    ("upstream: deletion", 5),
    ("upstream: re-creation", 5),
    ("agent: upkeep of a store", 3),
    ("agent: full repack", 1),
    ("agent: eviction of an old snapshot", 1),
    ("agent: eviction of a mirror", 1),
    ("fate: kill of the agent", 2),
    ("fate: kill of the agent during upkeep", 1),
    ("fate: kill of a git child", 2),
    ("fate: kill of a git child of upkeep", 2),
    ("fate: power cut", 1),
];
/// How long after a kill its victims' clients may still hear of it.
const AFTERMATH: Duration = Duration::from_secs(2);
/// And what came of a fetch until upstream was asked again.
const REMEMBERED: Duration = Duration::from_secs(30);

/// How often each thing happened.
#[derive(Default)]
pub(super) struct Ledger(Mutex<BTreeMap<String, u64>>);

impl Ledger {
    pub(super) fn count(&self, what: impl Into<String>) {
        self.add(what, 1);
    }

    pub(super) fn add(&self, what: impl Into<String>, more: u64) {
        *self.0.lock().unwrap().entry(what.into()).or_default() += more;
    }

    pub(super) fn most(&self, what: &str, value: u64) {
        let mut all = self.0.lock().unwrap();
        let most = all.entry(what.to_owned()).or_default();
        *most = value.max(*most);
    }

    /// Counts what only the agent's log tells, over all its starts.
    pub(super) fn read_log(&self, log: &Path) {
        let log = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
        let (mut upkeep, mut full, mut old, mut mirrors) = (0, 0, 0, 0);
        for line in log.lines() {
            let kept = line.contains("packs_before");
            upkeep += u64::from(kept);
            full += u64::from(kept && line.contains("full repack"));
            let evicted = line.contains("evicted: ");
            old += u64::from(evicted && line.contains("evicted: old snapshot"));
            mirrors += u64::from(evicted && !line.contains("evicted: old snapshot"));
        }
        let mut all = self.0.lock().unwrap();
        for (what, count) in [
            ("agent: upkeep of a store", upkeep),
            ("agent: full repack", full),
            ("agent: eviction of an old snapshot", old),
            ("agent: eviction of a mirror", mirrors),
        ] {
            all.insert(what.to_owned(), count);
        }
    }

    /// What did not happen often enough yet.
    pub(super) fn lacking(&self) -> Vec<&'static str> {
        let all = self.0.lock().unwrap();
        let lacks = |(what, least): &(&str, u64)| all.get(*what).copied().unwrap_or_default() < *least;
        NEEDED.iter().filter(|needed| lacks(needed)).map(|(what, _)| *what).collect()
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.lock().unwrap().iter().try_for_each(|(what, count)| writeln!(f, "{count:>8}  {what}"))
    }
}

/// When something was struck: what a client hears then is no fault of the agent.
#[derive(Default)]
pub(super) struct Trouble(Mutex<Struck>);

#[derive(Default)]
struct Struck {
    under_way: bool,
    last_end: Option<Instant>,
    agents: u64,
    cuts: u64,
}

/// How often the agent was started, and power was cut, by some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before {
    pub(super) agents: u64,
    cuts: u64,
}

impl Trouble {
    /// While `strike` runs, and a little longer, there is trouble.
    pub(super) fn during<T>(&self, strike: impl FnOnce() -> T) -> T {
        self.0.lock().unwrap().under_way = true;
        let done = strike();
        let mut struck = self.0.lock().unwrap();
        (struck.under_way, struck.last_end) = (false, Some(Instant::now()));
        done
    }

    /// The agent is killed now.
    pub(super) fn agent(&self) {
        self.0.lock().unwrap().agents += 1;
    }

    /// The power is cut now: nothing that was on the pool is anybody's any more.
    pub(super) fn cut(&self) {
        self.0.lock().unwrap().cuts += 1;
    }

    pub(super) fn before(&self) -> Before {
        let struck = self.0.lock().unwrap();
        Before { agents: struck.agents, cuts: struck.cuts }
    }

    pub(super) fn cut_since(&self, before: Before) -> bool {
        self.before().cuts != before.cuts
    }

    /// Whether there was trouble at any time since then.
    pub(super) fn since(&self, begun: Instant) -> bool {
        self.ended_after(begun, AFTERMATH)
    }

    /// Whether a fetch that was struck may be remembered since then.
    pub(super) fn remembered_since(&self, begun: Instant) -> bool {
        self.ended_after(begun, REMEMBERED)
    }

    fn ended_after(&self, begun: Instant, aftermath: Duration) -> bool {
        let struck = self.0.lock().unwrap();
        struck.under_way || struck.last_end.is_some_and(|end| end + aftermath >= begun)
    }
}
