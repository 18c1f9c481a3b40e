//! Samples, and the lines that are made of them.

use std::process::ExitCode;
use std::time::Duration;

/// What was measured, in one unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn push_time(&mut self, time: Duration) {
        self.push(time.as_secs_f64());
    }

    pub(crate) fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Each without `part` of it.
    pub(crate) fn less(&self, part: f64) -> Self {
        Self(self.0.iter().map(|value| (value - part).max(0.0)).collect())
    }

    /// The value below which this share of them lies: the nearest rank.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        assert!(!self.0.is_empty(), "nothing was measured");
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    /// That one of them alone.
    pub(crate) fn at(&self, share: f64) -> Self {
        Self(vec![self.quantile(share)])
    }

    pub(crate) fn max(&self) -> f64 {
        self.quantile(1.0)
    }
}

/// Rounds of ours and of the peer in turn, after one of each that does not count: what the machine does meanwhile hits
/// both.
pub(crate) fn alternate(
    rounds: usize,
    mut ours: impl FnMut() -> Samples,
    mut peer: impl FnMut() -> Samples,
) -> (Samples, Samples) {
    let (mut all_ours, mut all_peers) = (Samples::default(), Samples::default());
    ours();
    peer();
    for _ in 0..rounds {
        all_ours.extend(ours());
        all_peers.extend(peer());
    }
    (all_ours, all_peers)
}

/// The unit of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Seconds.
    Time,
    /// Bytes.
    Bytes,
    /// Of one core, 100 is a whole one.
    Percent,
    /// A second.
    Rate,
    /// Of something that is counted.
    Count,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Time if value < 0.001 => format!("{:.0} us", value * 1e6),
            Self::Time if value < 0.1 => format!("{:.2} ms", value * 1e3),
            Self::Time if value < 1.0 => format!("{:.0} ms", value * 1e3),
            Self::Time => format!("{value:.2} s"),
            Self::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
            Self::Percent => format!("{value:.2}%"),
            Self::Rate => format!("{value:.0}/s"),
            Self::Count => format!("{value:.2}"),
        }
    }
}

/// Which value is held against an absolute target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Median,
    P99,
    Max,
}

impl By {
    fn of(self, samples: &Samples) -> f64 {
        match self {
            Self::Median => samples.median(),
            Self::P99 => samples.p99(),
            Self::Max => samples.max(),
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Median => "median",
            Self::P99 => "p99",
            Self::Max => "max",
        }
    }
}

/// What is to be reached.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Ours over the peer's median is at most this.
    RatioMax(f64),
    /// Ours over the peer's median is at least this.
    RatioMin(f64),
    /// This value of ours, in the line's unit, is at most this.
    Max(By, f64),
    /// Told only, with the reason.
    Told(&'static str),
}

/// One line.
pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) ours: Samples,
    /// What the peer is, and what it gave.
    pub(crate) peer: Option<(&'static str, Samples)>,
    pub(crate) target: Target,
}

/// Prints lines, and remembers what was missed.
#[derive(Default)]
pub(crate) struct Report {
    passed: usize,
    missed: Vec<String>,
    broken: Vec<&'static str>,
}

impl Report {
    /// The machine: a figure without it says nothing.
    pub(crate) fn header(&self) {
        let build = if cfg!(debug_assertions) { "a debug build: targets are for release" } else { "a release build" };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let folder = std::env::temp_dir();
        let output = std::process::Command::new("stat").args(["-f", "-c", "%T"]).arg(&folder).output();
        let filesystem = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let filesystem = filesystem.unwrap_or_default();
        println!("{build}; {cores} cores; Linux {}; {} on {filesystem}", kernel.trim(), folder.display());
        if filesystem == "tmpfs" {
            println!("TMPDIR is in memory: fdatasync costs nothing there; name a folder on a disk");
        }
    }

    pub(crate) fn line(&mut self, line: Line) {
        let Line { what, unit, ours, peer, target } = line;
        let ratio = peer.as_ref().map(|(_, samples)| ours.median() / samples.median());
        let spread = match target {
            Target::Max(By::Median, _) | Target::RatioMax(_) | Target::RatioMin(_) | Target::Told(_) => String::new(),
            Target::Max(by, _) => format!(", {} {}", by.word(), unit.show(by.of(&ours))),
        };
        let mut text = format!("{what:30} ours {}{spread}", unit.show(ours.median()));
        if let (Some((name, samples)), Some(ratio)) = (&peer, ratio) {
            text.push_str(&format!(" | {name} {} | ratio {ratio:.2}", unit.show(samples.median())));
        }
        let (target, reached) = match target {
            Target::RatioMax(most) => {
                (format!("ratio <= {}", (most * 1000.0).round() / 1000.0), ratio.map(|ratio| ratio <= most))
            }
            Target::RatioMin(least) => (format!("ratio >= {least}"), ratio.map(|ratio| ratio >= least)),
            Target::Max(by, most) => (format!("{} <= {}", by.word(), unit.show(most)), Some(by.of(&ours) <= most)),
            Target::Told(why) => (why.to_owned(), None),
        };
        let verdict = match reached {
            Some(true) => "PASS",
            Some(false) => "FAIL",
            None => "told",
        };
        println!("{text} | target {target} | {verdict}");
        match reached {
            Some(true) => self.passed += 1,
            Some(false) => self.missed.push(what),
            None => {}
        }
    }

    pub(crate) fn broken(&mut self, name: &'static str) {
        println!("{name:30} could not be measured | FAIL");
        self.broken.push(name);
    }

    pub(crate) fn end(&self, check: bool) -> ExitCode {
        let mut text = format!("{} of {} targets reached", self.passed, self.passed + self.missed.len());
        for (words, names) in [("; missed: ", self.missed.join(", ")), ("; broken: ", self.broken.join(", "))] {
            if !names.is_empty() {
                text.push_str(words);
                text.push_str(&names);
            }
        }
        println!("{text}");
        match (self.broken.is_empty(), self.missed.is_empty()) {
            (false, _) => ExitCode::from(2),
            (true, false) if check => ExitCode::FAILURE,
            (true, _) => ExitCode::SUCCESS,
        }
    }
}
