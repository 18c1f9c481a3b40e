//! `stoker controller`: nodes for pods that wait for one.

use std::net::SocketAddr;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Common, DONE, ERROR, amount, screen};
use crate::controller::{self, Named, Options};
use crate::telemetry::{self, Format};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The headless Service of the agents
    #[arg(long, env = "STOKER_AGENTS", value_name = "NAMESPACE/SERVICE", default_value = "stoker/stoker-agents",
          value_parser = named)]
    agents: Named,
    /// The port at which the agents speak gRPC
    #[arg(long, env = "STOKER_AGENTS_PORT", value_name = "PORT", default_value_t = 9417,
          value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The Lease object that the leader holds
    #[arg(long, env = "STOKER_LEASE_OBJECT", value_name = "NAMESPACE/NAME", default_value = "stoker/stoker-controller",
          value_parser = named)]
    lease: Named,
    /// Whom the Lease object names; by default the name of the host, and a random word
    #[arg(long, env = "STOKER_IDENTITY", value_name = "NAME")]
    identity: Option<String>,
    /// Only pods of these namespaces, with commas between them; by default of all
    #[arg(long, env = "STOKER_NAMESPACES", value_name = "NAMES", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Where /livez, /readyz and /metrics are served
    #[arg(long, env = "STOKER_HTTP", value_name = "ADDRESS", default_value = "0.0.0.0:9418")]
    http: SocketAddr,
    /// Delete a pod that does not come to its node, because that is gone or the scheduler does not place it there, where a
    /// controller makes it again; needs the right `delete` on pods
    #[arg(long, env = "STOKER_REPLACE")]
    replace: bool,
    /// How long a node is kept for a pod that the scheduler does not place there
    #[arg(long, env = "STOKER_KEEP_FOR", value_name = "DURATION", default_value = "15m", value_parser = amount::span)]
    keep_for: prost_types::Duration,
    /// After which a silent node is taken for gone
    #[arg(long, env = "STOKER_GONE_AFTER", value_name = "DURATION", default_value = "5m", value_parser = amount::span)]
    gone_after: prost_types::Duration,
    /// After which a node is kept for a pod that waits for room while others are placed; on one node in twenty at most
    #[arg(long, env = "STOKER_KEEP_AFTER", value_name = "DURATION", default_value = "1m", value_parser = amount::span)]
    keep_after: prost_types::Duration,
    /// Pods that are held in memory at a time; of more, those of tenants with the fewest are held
    #[arg(long, env = "STOKER_PODS_MAX", value_name = "COUNT", default_value = "50000",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pods_max: u32,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log: Format,
}

/// Two names of objects.
fn named(text: &str) -> Result<Named, String> {
    let is_name = |name: &str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        !name.is_empty() && name.len() <= 253 && name.bytes().all(fits)
    };
    match text.split_once('/') {
        Some((namespace, name)) if is_name(namespace) && is_name(name) => {
            Ok(Named { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err("write NAMESPACE/NAME, as stoker/stoker-agents".to_owned()),
    }
}

/// The host's name, and a word that no other process has.
fn identity() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    format!("{host}_{}", uuid::Uuid::now_v7().simple())
}

pub(super) async fn run(common: &Common, args: Args) -> u8 {
    telemetry::start(args.log, "info");
    let namespaces = args.namespaces.into_iter().filter(|name| !name.is_empty()).collect();
    let options = Options {
        common: common.clone(),
        agents: args.agents,
        port: args.port,
        lease: args.lease,
        identity: args.identity.filter(|name| !name.is_empty()).unwrap_or_else(identity),
        namespaces,
        http: args.http,
        replace: args.replace,
        pods_max: usize::try_from(args.pods_max).unwrap_or(usize::MAX),
        keep_after: args.keep_after.try_into().unwrap_or_default(),
        keep_for: args.keep_for.try_into().unwrap_or_default(),
        gone_after: args.gone_after.try_into().unwrap_or_default(),
    };
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        screen::error("signals cannot be received");
        return ERROR;
    };
    let stop = CancellationToken::new();
    let run = controller::run(options, stop.clone());
    tokio::pin!(run);
    let ended = tokio::select! {
        ended = &mut run => ended,
        _ = terminate.recv() => {
            stop.cancel();
            run.await
        }
        _ = interrupt.recv() => {
            stop.cancel();
            run.await
        }
    };
    match ended {
        Ok(()) => DONE,
        Err(error) => {
            screen::error(&format!("{error:#}"));
            ERROR
        }
    }
}
