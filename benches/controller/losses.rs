//! Rounds of losses, for as long as is asked for.

use std::time::{Duration, Instant};

use crate::Options;
use crate::support::farm::fate::Rounds;
use crate::support::farm::hands::Pace;
use crate::support::farm::{Farm, Plan};

/// As the controllers ask for.
const BIND_WITHIN: Duration = Duration::from_secs(120);

pub(crate) fn run(options: &Options, seed: u64) {
    let builds = (Duration::from_millis(100), Duration::from_secs(2));
    let plan = Plan {
        agents: options.lossy_agents,
        cpus: (2, 8),
        pace: Pace { builds, late: (60, Duration::from_secs(options.late)) },
        bind_within: BIND_WITHIN,
        tls: false,
        arguments: Vec::new(),
        seed,
    };
    let mut farm = Farm::new(&plan);
    farm.start_controllers();
    farm.wait_until_heard(Duration::from_secs(120));
    let rounds = Rounds {
        pods: options.lossy_pods,
        kills: true,
        window: Duration::from_secs(4),
        bind_within: BIND_WITHIN,
        settled_within: Duration::from_secs(400),
    };
    let (began, mut placed) = (Instant::now(), 0);
    for number in 1..=options.rounds {
        let told = farm.round(&rounds);
        placed += told.placed;
        println!(
            "{number:4}: {} placed, settled in {:.1} s: {}",
            told.placed,
            told.settled.as_secs_f64(),
            told.words.join("; ")
        );
    }
    println!(
        "{} rounds, {placed} pods placed, in {:.0} s; nothing wrong",
        options.rounds,
        began.elapsed().as_secs_f64()
    );
}
