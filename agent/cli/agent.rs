//! `stoker agent`: the daemon.

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::{DONE, ERROR, USAGE, screen};
use crate::config::{self, NodeIdentity};
use crate::supervise::Agent;
use crate::telemetry::{self, Format};

/// How long calls under way may take to end after a signal.
const DRAIN: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration (YAML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log: Format,
}

pub(super) async fn run(args: Args) -> u8 {
    telemetry::start(args.log, "info");
    let config = match config::load(&args.config, &NodeIdentity::of_this_node()) {
        Ok((_, config)) => config,
        Err(errors) => {
            let colour = screen::Paint::of(&std::io::stderr()).is_on();
            screen::say(super::config::render_errors(&errors, colour).trim_end());
            return USAGE;
        }
    };
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        screen::error("signals cannot be received");
        return ERROR;
    };
    let start = Agent::start(config);
    let agent = tokio::select! {
        agent = start => match agent {
            Ok(agent) => agent,
            Err(error) => {
                screen::error(&error.to_string());
                return ERROR;
            }
        },
        _ = term.recv() => return DONE,
        _ = int.recv() => return DONE,
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = ?agent.socket(), "ready");
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping: calls under way end first; a second signal ends at once");
    tokio::select! {
        () = agent.stop(DRAIN) => DONE,
        _ = term.recv() => ERROR,
        _ = int.recv() => ERROR,
    }
}
