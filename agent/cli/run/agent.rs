//! Which agent `run` uses: the node's, that of another `run` with the same state, or one that it brings along.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cli::Common;
use crate::cli::client::Client;
use crate::config::run::default_state_dir;
use crate::config::{Config, SOCKET_BYTES_MAX};
use crate::supervise::{Agent, StartError};
use stoker_core::identity::Component;

/// How long two runs that start or end at once may be in each other's way.
const SETTLE: Duration = Duration::from_secs(20);
/// How long calls of others, and what is thrown away, may take at the end.
const LINGER: Duration = Duration::from_secs(5);
const REMOVE_WITHIN: Duration = Duration::from_secs(120);

/// An agent, and where it came from.
pub(super) struct Host {
    client: Client,
    /// The one that this process brought along.
    own: Option<Agent>,
    /// Where that one keeps its state; none where the node's agent is used.
    state: Option<PathBuf>,
}

impl Host {
    /// The agent that was named, else the node's where one listens, else one in this process. With a state directory
    /// always one of that state.
    pub(super) async fn find(common: &Common, state: Option<&Path>) -> Result<Self> {
        let Some(state) = state else {
            if common.address().is_some() {
                return Ok(Self { client: Client::of(common).await?, own: None, state: None });
            }
            let socket = common.socket();
            return match Client::at_socket(&socket).await {
                Ok(client) => Ok(Self { client, own: None, state: None }),
                Err(_) => Self::bring(&default_state_dir()?).await,
            };
        };
        Self::bring(state).await
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    async fn bring(state: &Path) -> Result<Self> {
        let state = std::path::absolute(state).with_context(|| format!("--state {}", state.display()))?;
        let (client, own) = join_or_start(&state).await?;
        Ok(Self { client, own, state: Some(state) })
    }

    /// After the agent went away: the one of the same state that is there now, or a new one here.
    pub(super) async fn again(&mut self) -> Result<()> {
        let Some(state) = self.state.clone().filter(|_| self.own.is_none()) else {
            tokio::time::sleep(Duration::from_millis(500)).await; // the node's agent is started again by its supervisor
            return Ok(());
        };
        let (client, own) = join_or_start(&state).await?;
        (self.client, self.own) = (client, own);
        Ok(())
    }

    /// Ends the agent of this process, when all that was thrown away is gone.
    pub(super) async fn stop(self) {
        if let Some(agent) = self.own {
            agent.drained(REMOVE_WITHIN).await;
            agent.stop(LINGER).await;
        }
    }
}

/// Another `run` may have the state: then its agent is used. It may end at any moment: then this process has one.
async fn join_or_start(state: &Path) -> Result<(Client, Option<Agent>)> {
    let config = configuration(state)?;
    let Some(socket) = config.listen.socket.clone() else { bail!("an agent without a socket") };
    let began = tokio::time::Instant::now();
    loop {
        match Agent::start(config.clone()).await {
            Ok(agent) => {
                let client = Client::at_socket(&socket).await.context("the agent in this process does not answer")?;
                return Ok((client, Some(agent)));
            }
            Err(StartError::Locked(_)) => {
                if let Ok(client) = Client::at_socket(&socket).await {
                    return Ok((client, None));
                }
            }
            Err(error) => return Err(error.into()),
        }
        if began.elapsed() > SETTLE {
            bail!("{} is in use, and the agent that uses it does not answer", state.display());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn configuration(state: &Path) -> Result<Config> {
    let name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut config = Config::for_run(state, &name);
    if let Some(socket) = config.listen.socket.as_mut()
        && socket.as_os_str().len() > SOCKET_BYTES_MAX
    {
        // A socket's path has 108 bytes: a deep state gets a short one, named for it.
        let dir = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
            Some(dir) if dir.is_absolute() => dir.join("stoker"),
            _ => std::env::temp_dir().join(format!("stoker-{}", nix::unistd::geteuid())),
        };
        let name = Component::of(&["s", &socket.to_string_lossy()]);
        let hash = name.as_str().rsplit('-').next().unwrap_or_default();
        *socket = dir.join(format!("{hash}.sock"));
    }
    Ok(config)
}
