//! `stoker agent`: the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{DONE, ERROR, USAGE, screen};
use crate::config::{self, NodeIdentity};
use crate::supervise::Agent;
use crate::telemetry::{self, Format};

/// How long calls under way may take to end after a signal: with the rooms after them well within the 30 s that a pod
/// gets by default.
const DRAIN: Duration = Duration::from_secs(10);
/// How often the file is looked at: a mounted ConfigMap changes without a signal.
const LOOK_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration (YAML); read again when it changes, and on SIGHUP
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log: Format,
}

/// What ends the agent, and what makes it look at its configuration.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

pub(super) async fn run(args: Args) -> u8 {
    telemetry::start(args.log, "info");
    let seen = std::fs::read(&args.config).ok();
    let config = match config::load(&args.config, &NodeIdentity::of_this_node()) {
        Ok((_, config)) => config,
        Err(errors) => {
            let colour = screen::Paint::of(&std::io::stderr()).is_on();
            screen::say(super::config::render_errors(&errors, colour).trim_end());
            return USAGE;
        }
    };
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            screen::error(&format!("signals cannot be received: {error}"));
            return ERROR;
        }
    };
    let agent = tokio::select! {
        () = signals.end() => return DONE,
        agent = Agent::start(config) => match agent {
            Ok(agent) => agent,
            Err(error) => {
                screen::error(&error.to_string());
                return ERROR;
            }
        },
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = ?agent.socket(), "ready");
    serve(&agent, &args.config, seen, &mut signals).await;
    tracing::info!("stopping: calls under way end first; a second signal ends at once");
    tokio::select! {
        () = agent.stop(DRAIN) => DONE,
        () = signals.end() => ERROR,
    }
}

/// Until a signal. Takes over what the configuration file says meanwhile.
async fn serve(agent: &Agent, path: &Path, mut seen: Option<Vec<u8>>, signals: &mut Signals) {
    loop {
        let asked = tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = signals.hangup.recv() => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        let now = tokio::fs::read(path).await.ok();
        if asked || now != seen {
            seen = now;
            reload(agent, path).await;
        }
    }
}

async fn reload(agent: &Agent, path: &Path) {
    match config::load(path, &NodeIdentity::of_this_node()) {
        Ok((_, config)) => {
            let changes = agent.reconfigure(&config).await;
            tracing::info!(applied = ?changes.applied, "the configuration was read again");
            if !changes.needs_restart.is_empty() {
                tracing::warn!(fields = ?changes.needs_restart, "changed, but hold only after a restart");
            }
        }
        Err(errors) => {
            agent.refuse_configuration(&errors);
            for problem in &errors.problems {
                tracing::error!(reason = "CONFIG_INVALID", "{problem}; the configuration before goes on");
            }
        }
    }
}
