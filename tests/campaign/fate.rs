//! What strikes the agent.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::chance::Chance;
use crate::support::loopdev::LoopFs;
use crate::support::processes::{git_children, workers};
use crate::support::stoker::Agent;
use crate::support::wait;

use super::{Campaign, OverWhenPanicking, snapshots_are_whole};

/// Between two strikes ...
const PAUSE_MILLIS_MAX: u64 = 1500;
/// ... so many builds are done, on a slow machine too: not all of them may be struck ...
const BUILDS_BETWEEN: u64 = 2;
/// ... unless that takes too long.
const BUILDS_WITHIN: Duration = Duration::from_secs(10);
/// How long a child to be killed is waited for.
const CHILD_WITHIN: Duration = Duration::from_secs(4);
/// How long the disk may be held after a power cut.
const UNMOUNTED_WITHIN: Duration = Duration::from_secs(60);
/// The commands of upkeep (`agent/repository/upkeep.rs`), and what they start.
const UPKEEP: [&str; 5] = ["git repack", "pack-objects", "multi-pack-index", "commit-graph", "pack-refs"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Agent,
    AgentInUpkeep,
    Child,
    UpkeepChild,
    PowerCut,
}

const FATES: [Fate; 7] =
    [Fate::Agent, Fate::AgentInUpkeep, Fate::Child, Fate::Child, Fate::UpkeepChild, Fate::UpkeepChild, Fate::PowerCut];

/// Strikes until it is over: all kinds, in rounds that chance puts in order. The agent runs when this returns.
pub(super) fn strike(campaign: &Campaign, agent: &mut Agent, filesystem: &mut LoopFs, mut chance: Chance) {
    let _guard = OverWhenPanicking(campaign);
    let mut round = Vec::new();
    while !campaign.over() {
        let enough = campaign.done.load(Ordering::SeqCst) + BUILDS_BETWEEN;
        wait::holds_within(BUILDS_WITHIN, || campaign.done.load(Ordering::SeqCst) >= enough || campaign.over());
        wait::holds_within(Duration::from_millis(chance.below(PAUSE_MILLIS_MAX)), || campaign.over());
        if round.is_empty() {
            round = FATES.to_vec();
        }
        let at = usize::try_from(chance.below(round.len() as u64)).unwrap();
        let ledger = &campaign.ledger;
        match round.swap_remove(at) {
            Fate::Agent => kill_agent(campaign, agent),
            Fate::AgentInUpkeep => {
                if child(campaign, true, &mut chance).is_some() {
                    ledger.count("fate: kill of the agent during upkeep");
                }
                kill_agent(campaign, agent);
            }
            Fate::Child => kill_child(campaign, false, &mut chance),
            Fate::UpkeepChild => kill_child(campaign, true, &mut chance),
            Fate::PowerCut => cut_power(campaign, agent, filesystem),
        }
        if let Some(status) = agent.ended() {
            panic!("the agent ended: {status}");
        }
    }
}

fn start(campaign: &Campaign, agent: &mut Agent) {
    let begun = Instant::now();
    agent.launch();
    agent.wait_ready();
    campaign.ledger.most("ms to ready, the slowest start", u64::try_from(begun.elapsed().as_millis()).unwrap());
}

fn kill_agent(campaign: &Campaign, agent: &mut Agent) {
    campaign.trouble.during(|| {
        campaign.trouble.agent();
        agent.kill9();
        start(campaign, agent);
    });
    campaign.ledger.count("fate: kill of the agent");
}

/// A git child of the agent, as soon as there is one; of upkeep, or any.
fn child(campaign: &Campaign, upkeep: bool, chance: &mut Chance) -> Option<(Pid, String)> {
    let state = campaign.root.join("state");
    let mut found = None;
    wait::holds_within(CHILD_WITHIN, || {
        let mut children = git_children(&state);
        children.retain(|(_, command)| !upkeep || is_upkeep(command));
        found = (!children.is_empty()).then(|| chance.pick(&children).clone());
        found.is_some() || campaign.over()
    });
    found
}

/// Whether a command is upkeep's: what `upload-pack` starts writes its pack to standard output.
fn is_upkeep(command: &str) -> bool {
    UPKEEP.iter().any(|word| command.contains(word)) && !command.contains("--stdout")
}

fn kill_child(campaign: &Campaign, upkeep: bool, chance: &mut Chance) {
    let Some((pid, command)) = child(campaign, upkeep, chance) else { return };
    // One that has ended by itself meanwhile was not killed.
    if campaign.trouble.during(|| kill(pid, Signal::SIGKILL)).is_err() {
        return;
    }
    campaign.ledger.count("fate: kill of a git child");
    if is_upkeep(&command) {
        campaign.ledger.count("fate: kill of a git child of upkeep");
    }
}

/// The filesystem stops, the agent and all its children die with it; then the machine is there again.
fn cut_power(campaign: &Campaign, agent: &mut Agent, filesystem: &mut LoopFs) {
    campaign.trouble.during(|| {
        campaign.trouble.cut();
        campaign.trouble.agent();
        filesystem.cut_power();
        let alive = workers(&campaign.root);
        agent.kill9();
        for (pid, _) in alive {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        wait::until(UNMOUNTED_WITHIN, "nothing holds the disk", || filesystem.try_unmount());
        filesystem.mount();
        let whole = snapshots_are_whole(&campaign.pool());
        campaign.ledger.add("snapshots that a power cut left, all whole", whole);
        start(campaign, agent);
    });
    campaign.ledger.count("fate: power cut");
}
