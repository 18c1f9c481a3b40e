//! Logging of the daemon: to standard error, one line an event, JSON where that is asked for.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// Starts logging; `STOKER_LOG` filters as `info,stoker::repository=debug`. Once a process; later calls do nothing.
pub fn start(format: Format, default: &str) {
    // The client library tells of each attempt that fails; what came of it is told where it was asked.
    let usual = || EnvFilter::new(format!("{default},kube_client::client::builder=off,kube_runtime::watcher=off"));
    let filter = EnvFilter::try_from_env("STOKER_LOG").unwrap_or_else(|_| usual());
    // Who changed what is told whatever else is: a filter that means it names `audit`.
    let is_named = std::env::var("STOKER_LOG").is_ok_and(|text| text.contains("audit"));
    let audit = if is_named { None } else { "audit=info".parse().ok() };
    let filter = audit.into_iter().fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let _ = match format {
        Format::Text => builder.with_ansi(colour).with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
