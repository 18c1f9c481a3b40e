//! The configuration of `stoker run`, which reads no file: one pool below the state directory, any upstream.

use std::path::{Path, PathBuf};

use stoker_core::quantity::Amounts;

use super::file::{AdmissionSection, PressureSection, RepositoriesSection};
use super::git::GitChild;
use super::units::Time;
use super::{
    Add, Admission, Config, Floor, Lfs, Listen, Node, Pool, Pressure, Repositories, Share, Submodules, TimeBudget,
    Upkeep, Workspaces,
};

/// What `run` calls its pool.
pub const POOL_NAME: &str = "run";

/// No state directory can be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateDirError {
    /// Neither variable names one.
    #[error("no state directory: neither XDG_STATE_HOME nor HOME is an absolute path; choose one with --state DIR")]
    Unknown,
}

/// Where `run` keeps its state when nothing else is said: `$XDG_STATE_HOME/stoker`, else `~/.local/state/stoker`. As
/// the XDG base directory specification says, a path that is not absolute counts as unset.
///
/// # Errors
///
/// Neither variable names an absolute path.
pub fn default_state_dir() -> Result<PathBuf, StateDirError> {
    state_dir_from(std::env::var_os("XDG_STATE_HOME").map(PathBuf::from), std::env::home_dir())
}

fn state_dir_from(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf, StateDirError> {
    let absolute = |path: Option<PathBuf>| path.filter(|path| path.is_absolute());
    let state = absolute(xdg).or_else(|| absolute(home).map(|home| home.join(".local/state")));
    state.map(|state| state.join("stoker")).ok_or(StateDirError::Unknown)
}

impl Config {
    /// What `run` uses. `state` is absolute; `node_name` is the host's name.
    ///
    /// The socket's path can be longer than [`SOCKET_BYTES_MAX`](super::SOCKET_BYTES_MAX) where `state` is deep: then
    /// the caller chooses a shorter one.
    #[must_use]
    pub fn for_run(state: &Path, node_name: &str) -> Self {
        let floor = Floor { bytes: Share::Absolute(1 << 30), inodes: Share::Absolute(1000) };
        let defaults = RepositoriesSection::default();
        // The file's defaults are right: a test validates a file that says nothing else.
        let time = |time: &Time| time.duration().unwrap_or_default();
        let count = |count| usize::try_from(count).unwrap_or(usize::MAX);
        let pressure = PressureSection::default();
        let admission = AdmissionSection::default();
        Self {
            state: state.to_owned(),
            node: Node {
                name: node_name.to_owned(),
                reserve: Amounts::default(),
                others_cpu_counts: false,
                host_root: PathBuf::from("/"),
                // The pool may lie on the root filesystem; its own floor holds there.
                root_floor: Floor { bytes: Share::Absolute(0), inodes: Share::Absolute(0) },
                filesystems: Vec::new(),
            },
            pools: vec![Pool {
                name: POOL_NAME.to_owned(),
                path: state.join("pool"),
                mount_required: false,
                uuid: None,
                seal: false,
                floor,
                directories: Vec::new(),
            }],
            repositories: Repositories {
                pool: POOL_NAME.to_owned(),
                limit: None,
                refresh: time(&defaults.refresh),
                parallel: count(defaults.parallel),
                parallel_per_host: count(defaults.parallel_per_host),
                fetch_within: time(&defaults.fetch_within),
                check: time(&defaults.check),
                seeds: Vec::new(),
                upkeep: Upkeep::default(),
                min_age: time(&defaults.min_age),
                paths: None,
                add: Add::OnDemand,
                // The caller is this user: what the user names may be fetched. Local hosts count only where listed.
                allow: ["*", "localhost", "127.0.0.1", "[::1]"].map(String::from).to_vec(),
                protocols: ["https", "http", "ssh", "git", "file"].map(String::from).to_vec(),
                git: GitChild {
                    user: None,
                    memory_bytes: defaults.git.memory.bytes().unwrap_or(u64::MAX),
                    processes: defaults.git.processes,
                    helper: None,
                    personal: true,
                },
                credentials: Vec::new(),
                forges: Vec::new(),
                mirrors: Vec::new(),
                manifests: Vec::new(),
                submodules: Submodules {
                    depth: count(defaults.submodules.depth),
                    repositories: count(defaults.submodules.repositories),
                },
                lfs: Lfs { object_limit: defaults.lfs.object_limit.bytes().unwrap_or(u64::MAX), limit: None },
                serve: super::Serve::default(),
            },
            workspaces: Workspaces { pool: POOL_NAME.to_owned(), ..Workspaces::default() },
            keeping: super::Keeping::default(),
            pressure: Pressure {
                memory_floor: pressure.memory_floor.share().unwrap_or_default(),
                memory_narrow: pressure.memory_narrow.share().unwrap_or_default(),
                disk_forecast: time(&pressure.disk_forecast),
                control_plane: None,
                hold: time(&pressure.hold),
            },
            admission: Admission {
                leases_max: count(admission.leases_max),
                tickets_max: count(admission.tickets_max),
                time_budget: TimeBudget::End,
                pass_for: time(&admission.pass_for),
                age_after: time(&admission.age_after),
                tenants: std::sync::Arc::default(),
            },
            sizing: super::Sizing::default(),
            kubernetes: super::Kubernetes::none(),
            listen: Listen {
                socket: Some(state.join("run/agent.sock")),
                grpc: None,
                grpc_tls: None,
                http: None,
                http_tls: None,
                private_git: true,
            },
            volume: None,
            access: super::Access::default(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_follows_xdg_where_it_is_absolute() {
        let dir =
            |xdg: Option<&str>, home: Option<&str>| state_dir_from(xdg.map(PathBuf::from), home.map(PathBuf::from));
        assert_eq!(dir(Some("/x"), Some("/home/me")), Ok(PathBuf::from("/x/stoker")));
        assert_eq!(dir(Some("x"), Some("/home/me")), Ok(PathBuf::from("/home/me/.local/state/stoker")));
        assert_eq!(dir(Some(""), Some("/home/me")), Ok(PathBuf::from("/home/me/.local/state/stoker")));
        assert_eq!(dir(None, Some("me")), Err(StateDirError::Unknown));
        assert_eq!(dir(None, None), Err(StateDirError::Unknown));
    }
}
