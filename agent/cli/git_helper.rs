//! `stoker git-helper`: starts git for an agent, from a container of its own.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use super::{DONE, ERROR, NO, screen};
use crate::config::git::GitUser;
use crate::repository::{HelperServer, check_helper};
use crate::telemetry::{self, Format};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its socket, as the agent's `repositories.git.helper` names it
    #[arg(long, value_name = "PATH")]
    listen: PathBuf,
    /// As whom it runs, where it is started by root (65532:65532)
    #[arg(long, value_name = "UID:GID", value_parser = user, conflicts_with = "check")]
    user: Option<GitUser>,
    /// The user id of the agent, which alone may ask
    #[arg(long, value_name = "UID", default_value_t = 0)]
    agent: u32,
    /// Only say whether one listens there (exit 0: yes, 1: no)
    #[arg(long)]
    check: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log: Format,
}

fn user(text: &str) -> Result<GitUser, String> {
    let user = text.parse().ok().filter(|user: &GitUser| user.uid != 0);
    user.ok_or_else(|| "write numbers as 65532:65532, and not those of root".to_owned())
}

pub(super) async fn run(args: Args) -> u8 {
    if args.check {
        return match check_helper(&args.listen).await {
            Ok(_) => DONE,
            Err(why) => {
                screen::error(&why);
                NO
            }
        };
    }
    telemetry::start(args.log, "info");
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            screen::error(&format!("signals cannot be received: {error}"));
            return ERROR;
        }
    };
    let server = match HelperServer::start(args.listen.clone(), args.user, args.agent).await {
        Ok(server) => server,
        Err(why) => {
            screen::error(&why);
            return ERROR;
        }
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), git = server.version(), socket = ?args.listen, "ready");
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    server.serve(end).await;
    DONE
}
