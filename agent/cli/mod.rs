//! The command line: one file a noun. What people read is rendered by pure functions from messages; data goes to
//! standard output, everything else to standard error.
//!
//! Every command but `agent`, `git-helper`, `config`, `controller` and `run` is a client of an agent's gRPC; `run` brings an agent along where none
//! listens.

mod agent;
pub(crate) mod amount;
mod ask;
pub(crate) mod client;
mod config;
mod controller;
mod doctor;
mod explain;
mod fleet;
mod git_helper;
mod json;
mod lease;
mod measure;
mod mode;
mod output;
mod plan;
mod pool;
mod repo;
mod resolve;
mod run;
mod screen;
mod status;
mod table;
mod ticket;
mod workspace;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

/// Done, or yes.
pub(crate) const DONE: u8 = 0;
/// The answer is no.
pub(crate) const NO: u8 = 1;
/// An error.
pub(crate) const ERROR: u8 = 2;
/// Wrong usage or configuration, as `EX_USAGE` of sysexits(3).
pub(crate) const USAGE: u8 = 64;

/// The node-local agent for Kubernetes build farms: disks prepared, sources cached, builds admitted.
#[derive(Debug, Parser)]
#[command(name = "stoker", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// The agent's unix socket
    #[arg(long, global = true, env = "STOKER_SOCKET", value_name = "PATH", help_heading = "Which agent",
          value_parser = OsStringValueParser::new())]
    socket: Option<OsString>,
    /// The agent's gRPC address, as 127.0.0.1:9417; comes before any socket
    #[arg(long, global = true, env = "STOKER_ADDRESS", value_name = "HOST:PORT", help_heading = "Which agent")]
    address: Option<String>,
    /// The name that the agent's certificate is for, where it is reached by another
    #[arg(long, global = true, env = "STOKER_SERVER_NAME", value_name = "NAME", help_heading = "Which agent")]
    server_name: Option<String>,
    /// The authorities (PEM) that vouch for the agent at --address; it is spoken to by TLS then
    #[arg(long, global = true, env = "STOKER_CA_FILE", value_name = "FILE", help_heading = "Which agent",
          value_parser = file())]
    ca_file: Option<PathBuf>,
    /// A client's certificate (PEM) that says who asks, with --key-file
    #[arg(long, global = true, env = "STOKER_CERT_FILE", value_name = "FILE", help_heading = "Which agent",
          value_parser = file())]
    cert_file: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, global = true, env = "STOKER_KEY_FILE", value_name = "FILE", help_heading = "Which agent",
          value_parser = file())]
    key_file: Option<PathBuf>,
    /// A token of a service account that says who asks
    #[arg(long, global = true, env = "STOKER_TOKEN_FILE", value_name = "FILE", help_heading = "Which agent",
          value_parser = file())]
    token_file: Option<PathBuf>,
    /// How answers are written
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// A path that may be empty: a variable that is set to nothing names no file.
fn file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

impl Common {
    /// The socket that was named, else where a node's agent listens. An empty `STOKER_SOCKET` names none.
    fn socket(&self) -> PathBuf {
        let named = self.socket.as_ref().filter(|path| !path.is_empty());
        named.map_or_else(|| PathBuf::from(client::SOCKET), PathBuf::from)
    }

    /// The address that was named. An empty `STOKER_ADDRESS` names none.
    fn address(&self) -> Option<&str> {
        self.address.as_deref().filter(|address| !address.is_empty())
    }

    /// Whether agents over the network show certificates.
    fn speaks_tls(&self) -> bool {
        client::named(&self.ca_file).is_some()
    }

    /// Whom its certificate is to name, where that is not the address. An empty `STOKER_SERVER_NAME` names nobody.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref().filter(|name| !name.is_empty())
    }
}

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// The message in its JSON mapping.
    Json,
    /// The same as YAML.
    Yaml,
    /// Assignments that a shell sources; of `lease admit` only.
    Env,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one build through all of it: sources, size, admission, workspace, command, clean-up
    Run(run::Args),
    /// The node on one screen
    Status,
    /// A source to the one commit that it stands for
    Resolve(resolve::Args),
    /// The node's git repositories
    #[command(subcommand)]
    Repo(repo::Command),
    /// May a build start here, and what became of those that did
    #[command(subcommand)]
    Lease(lease::Command),
    /// The builds that wait
    #[command(subcommand)]
    Ticket(ticket::Command),
    /// What builds get
    #[command(subcommand)]
    Workspace(workspace::Command),
    /// What builds left
    #[command(subcommand)]
    Output(output::Command),
    /// The node's data filesystems
    #[command(subcommand)]
    Pool(pool::Command),
    /// Show or say what the node shall do: accepting, maintenance, drain
    Mode(mode::Args),
    /// Why a ticket, a lease, a request or a build stands as it does
    Explain(explain::Args),
    /// What retention would remove now and next, and why; removes nothing
    Plan(plan::Args),
    /// What is wrong with the node, and what to do about it (exit 0: nothing but warnings, 1: something is to be mended)
    Doctor(doctor::Args),
    /// Run the node's agent
    Agent(agent::Args),
    /// Choose nodes for pods that have the scheduling gate `stoker.build/admission`; one at a time leads
    Controller(controller::Args),
    /// Start git for an agent, from a container of its own (`repositories.git.helper`)
    #[command(hide = true)]
    GitHelper(git_helper::Args),
    /// Check, describe or print a configuration
    #[command(subcommand)]
    Config(config::Command),
}

/// What was asked for. A socket that is named comes before an address that only the environment has.
fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(args)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let is_flag = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
    let asks_all = matches!(&cli.command, Command::Lease(command) if command.asks_all());
    if asks_all && (is_flag("socket") || is_flag("address")) {
        let what = "--fleet asks all agents of a name: leave out --socket and --address\n";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, what));
    }
    if is_flag("socket") && !is_flag("address") {
        cli.common.address = None;
    }
    Ok(cli)
}

/// Runs the command line and says with which code to exit.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    // Before everything that costs time: each git that starts comes through here.
    if let Some(code) = crate::repository::hidden_command(&args) {
        return code;
    }
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(error) => {
            // A pipe that nobody reads is no reason to fail differently.
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { DONE };
        }
    };
    let sourced = matches!(&cli.command, Command::Lease(command) if command.gives_environment());
    if cli.common.output == Format::Env && !sourced {
        screen::error("--output env: only `lease admit` has something that a shell sources; use table, json or yaml");
        return USAGE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            screen::error(&format!("the runtime cannot be started: {error}"));
            return ERROR;
        }
    };
    let code = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => run::run(&cli.common, args).await,
            Command::Status => status::run(&cli.common).await,
            Command::Resolve(args) => resolve::run(&cli.common, &args).await,
            Command::Repo(command) => repo::run(&cli.common, &command).await,
            Command::Lease(command) => lease::run(&cli.common, &command).await,
            Command::Ticket(command) => ticket::run(&cli.common, &command).await,
            Command::Workspace(command) => workspace::run(&cli.common, &command).await,
            Command::Output(command) => output::run(&cli.common, &command).await,
            Command::Plan(args) => plan::run(&cli.common, &args).await,
            Command::Pool(command) => pool::run(&cli.common, &command).await,
            Command::Mode(args) => mode::run(&cli.common, &args).await,
            Command::Explain(args) => explain::run(&cli.common, &args).await,
            Command::Doctor(args) => doctor::run(&cli.common, &args).await,
            Command::Agent(args) => agent::run(args).await,
            Command::Controller(args) => controller::run(&cli.common, args).await,
            Command::GitHelper(args) => git_helper::run(args).await,
            Command::Config(command) => config::run(&command),
        }
    });
    // What still waits in a blocking call (a read of a dead disk) must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    code
}
