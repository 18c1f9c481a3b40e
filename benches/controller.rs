//! What a controller costs and how soon it places pods, on farms of simulated agents; and rounds of losses without end.
//!
//! `docs/controller.md` says what is measured and how it is run.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "what cannot be measured says so by panicking, and shows what it saw; the lines are the output"
)]

#[path = "../tests/support/mod.rs"]
#[allow(unused_imports, unused_macros, reason = "made for the tests: not all of it is needed here")]
mod support;

/// The parts, in `benches/controller/`.
mod controller {
    pub(crate) mod growth;
    pub(crate) mod losses;
}

use clap::Parser as _;

/// Measures `stoker controller` on simulated farms; see docs/controller.md.
#[derive(Debug, clap::Parser)]
#[command(name = "controller")]
pub(crate) struct Options {
    /// Agents of each farm that is measured, with twice as many pods
    #[arg(long, value_delimiter = ',', default_value = "100,1000,5000")]
    agents: Vec<usize>,
    /// Rounds of losses, in place of measuring
    #[arg(long, default_value_t = 0)]
    rounds: usize,
    /// Agents of the farm that has losses
    #[arg(long, default_value_t = 200)]
    lossy_agents: usize,
    /// Pods of one round of losses
    #[arg(long, default_value_t = 120)]
    lossy_pods: usize,
    /// With TLS between the controller and the agents, as in a cluster
    #[arg(long)]
    tls: bool,
    /// Seconds after which some of the pods are scheduled, where there are losses
    #[arg(long, default_value_t = 50)]
    late: u64,
    /// Seconds of a build where there is room for a part of the pods only
    #[arg(long, default_value_t = 20)]
    builds: u64,
    /// All that is left to chance follows from it; another one each time where it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(|| support::chance::seed("STOKER_SIMULATION_SEED"));
    println!("seed {seed}");
    if options.rounds > 0 {
        return controller::losses::run(&options, seed);
    }
    controller::growth::header();
    for agents in &options.agents {
        controller::growth::run(*agents, &options, seed);
    }
}
