//! `stoker agent`: the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{DONE, ERROR, USAGE, screen};
use crate::config::{self, Config, ConfigErrors, NodeIdentity};
use crate::kubernetes;
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

/// The node that the configuration is read for.
struct Here {
    node: NodeIdentity,
    waits_for_labels: bool,
}

impl Here {
    fn new() -> Self {
        Self { node: NodeIdentity::of_this_node(), waits_for_labels: false }
    }

    /// Reads the configuration, with the node's labels where it asks for them. Without an answer those that were known
    /// before still hold.
    async fn read(&mut self, path: &Path) -> Result<Config, ConfigErrors> {
        let (file, config) = config::load(path, &self.node)?;
        if !file.asks_for_labels() {
            self.waits_for_labels = false;
            return Ok(config);
        }
        match kubernetes::labels(&config.node.name).await {
            Ok(labels) => {
                self.waits_for_labels = false;
                self.node.labels = labels;
            }
            Err(error) => {
                if !self.waits_for_labels {
                    let node = &config.node.name;
                    tracing::warn!(%error, %node, "the node's labels are not known: asked again every few seconds");
                }
                self.waits_for_labels = true;
            }
        }
        config::load(path, &self.node).map(|(_, config)| config)
    }
}

pub(super) async fn run(args: Args) -> u8 {
    telemetry::start(args.log, "info");
    let seen = std::fs::read(&args.config).ok();
    let mut node = Here::new();
    let config = match node.read(&args.config).await {
        Ok(config) => config,
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
    serve(&agent, &args.config, seen, &mut node, &mut signals).await;
    tracing::info!("stopping: calls under way end first; a second signal ends at once");
    tokio::select! {
        () = agent.stop(DRAIN) => DONE,
        () = signals.end() => ERROR,
    }
}

/// Until a signal. Takes over what the configuration file says meanwhile.
async fn serve(agent: &Agent, path: &Path, mut seen: Option<Vec<u8>>, node: &mut Here, signals: &mut Signals) {
    loop {
        let asked = tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = signals.hangup.recv() => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        let now = tokio::fs::read(path).await.ok();
        // Labels that nobody told yet are asked for until somebody does.
        if asked || now != seen || node.waits_for_labels {
            seen = now;
            reload(agent, path, node).await;
        }
    }
}

async fn reload(agent: &Agent, path: &Path, node: &mut Here) {
    match node.read(path).await {
        Ok(config) => {
            let changes = agent.reconfigure(&config).await;
            if !changes.applied.is_empty() {
                tracing::info!(applied = ?changes.applied, "the configuration was read again");
            }
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
