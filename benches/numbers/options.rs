//! What is measured, and with which sizes.

use std::path::PathBuf;
use std::time::Duration;

/// Measures Stoker beside its peers; see docs/numbers.md.
#[derive(Debug, clap::Parser)]
#[command(name = "numbers")]
pub(crate) struct Options {
    /// Only what has one of these words in its name
    pub(crate) filter: Vec<String>,
    /// End with status 1 when a target is missed
    #[arg(long)]
    pub(crate) check: bool,
    /// Small sizes: shows that everything works, not how fast it is
    #[arg(long)]
    pub(crate) quick: bool,
    /// Say what there is
    #[arg(long)]
    pub(crate) list: bool,
    /// This repository, which is on this machine, in the place of the large ones that are made up
    #[arg(long, value_name = "PATH")]
    pub(crate) repository: Option<PathBuf>,
    /// Files of the large repository [40000; quick: 1000]
    #[arg(long)]
    files: Option<usize>,
    /// Bytes of the large repository's files [300000000; quick: 4000000]
    #[arg(long)]
    bytes: Option<usize>,
    /// Commits, each with a ref of its own, of the repository with a history; some 15 objects each [1800; quick: 60]
    #[arg(long)]
    commits: Option<usize>,
    /// Refs of the repository that has very many [50000; quick: 500]
    #[arg(long)]
    refs: Option<usize>,
    /// Objects of the repository that is fetched while memory is measured [500000; quick: 5000]
    #[arg(long)]
    objects: Option<usize>,
    /// Files of the workspace that is deleted [100000; quick: 5000]
    #[arg(long)]
    delete_files: Option<usize>,
    /// Live leases while builds are evaluated [200; quick: 50]
    #[arg(long)]
    leases: Option<usize>,
    /// Filled mirrors of the agent at rest [100; quick: 10]
    #[arg(long)]
    mirrors: Option<usize>,
    /// Leases of the agent at rest [100; quick: 20]
    #[arg(long)]
    rest_leases: Option<usize>,
    /// Callers that admit at once [64]
    #[arg(long)]
    callers: Option<usize>,
    /// Calls of each kind whose latency is measured [5000; quick: 300]
    #[arg(long)]
    calls: Option<usize>,
    /// Rounds of ours and of the peer, where one round takes seconds [5; quick: 2]
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds over which the agent's CPU at rest is measured [10; quick: 2]
    #[arg(long)]
    window: Option<u64>,
    /// Microseconds by which each sync of the disk takes longer, for ours and peers alike: needs a C compiler
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) sync_delay: Option<u64>,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// Whether a bench of this name is to be run.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|word| name.contains(word.as_str()))
    }

    fn size(&self, given: Option<usize>, full: usize, quick: usize) -> usize {
        given.unwrap_or(if self.quick { quick } else { full }).max(1)
    }

    pub(crate) fn files(&self) -> usize {
        self.size(self.files, 40_000, 1_000)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.size(self.bytes, 300_000_000, 4_000_000)
    }

    pub(crate) fn commits(&self) -> usize {
        self.size(self.commits, 1_800, 60)
    }

    pub(crate) fn refs(&self) -> usize {
        self.size(self.refs, 50_000, 500)
    }

    pub(crate) fn objects(&self) -> usize {
        self.size(self.objects, 500_000, 5_000)
    }

    pub(crate) fn delete_files(&self) -> usize {
        self.size(self.delete_files, 100_000, 5_000)
    }

    pub(crate) fn leases(&self) -> usize {
        self.size(self.leases, 200, 50)
    }

    pub(crate) fn mirrors(&self) -> usize {
        self.size(self.mirrors, 100, 10)
    }

    pub(crate) fn rest_leases(&self) -> usize {
        self.size(self.rest_leases, 100, 20)
    }

    pub(crate) fn callers(&self) -> usize {
        self.size(self.callers, 64, 64)
    }

    pub(crate) fn calls(&self) -> usize {
        self.size(self.calls, 5_000, 300)
    }

    pub(crate) fn rounds(&self) -> usize {
        self.size(self.rounds, 5, 2)
    }

    pub(crate) fn window(&self) -> Duration {
        Duration::from_secs(self.window.unwrap_or(if self.quick { 2 } else { 10 }).max(1))
    }
}
