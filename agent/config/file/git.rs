//! How git children are kept, and the credentials that they get.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::TRUST_DEFAULT;
use crate::config::units::Bytes;

/// What git children may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GitSection {
    /// As whom git runs: user and group as numbers ("65532:65532"). Unset: that where the agent is root, else the
    /// agent's own user. Named and not possible, git does not run at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Memory that each git child may allocate, in bytes with a unit: 256MiB or more.
    pub memory: Bytes,
    /// How many processes and threads git's user may have on this machine, all children together: 64 to 1000000. Where
    /// git runs as the agent's own user this is not limited.
    pub processes: u64,
    /// Absolute path of the socket of a `stoker git-helper`, in which git runs then: in a container of its own, with
    /// its own limit of memory. Unset: git is the agent's child.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub helper: Option<String>,
}

impl Default for GitSection {
    /// A kernel's clone takes 600 MB and more. The kernel counts processes by user id, over all containers that share
    /// the id, so a small number would let strangers stop our fetches.
    fn default() -> Self {
        Self { user: None, memory: "2GiB".into(), processes: 4096, helper: None }
    }
}

/// Who we are to some upstreams: exactly one of `token`, `basic` and `ssh`. The files are read at each use, so mounted
/// Secrets may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CredentialSection {
    /// For which upstreams: a host (github.com, git.example.org:8443), or a host and the beginning of a path
    /// (github.com/owner). With https://, http:// or ssh:// before it, it is for that alone; without, for https and ssh,
    /// because http sends the secret in the clear. The longest that fits is used.
    #[serde(rename = "match")]
    pub matches: String,
    /// For which trust classes' repositories, at most 64: a manifest or a `.gitmodules` names repositories of its own
    /// class as it likes, and gets no other class's secret so.
    #[serde(default = "default_trust")]
    pub trust: Vec<String>,
    /// A token, sent as the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenSection>,
    /// A user name and a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<BasicSection>,
    /// A key for SSH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshSection>,
}

fn default_trust() -> Vec<String> {
    vec![TRUST_DEFAULT.to_owned()]
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenSection {
    /// Absolute path of the file that holds it.
    pub file: String,
    /// The user name that goes with it. Most forges take any.
    #[serde(default = "default_token_user")]
    pub username: String,
}

fn default_token_user() -> String {
    "x-access-token".to_owned()
}

/// A user name and a password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BasicSection {
    /// The user name.
    pub username: String,
    /// Absolute path of the file that holds the password.
    pub password_file: String,
}

/// A key for SSH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SshSection {
    /// Absolute path of the private key, without a passphrase.
    pub key_file: String,
    /// Absolute path of the known hosts: an upstream whose key is not among them is refused.
    pub known_hosts_file: String,
    /// The user where a URL names none.
    #[serde(default = "default_ssh_user")]
    pub user: String,
}

fn default_ssh_user() -> String {
    "git".to_owned()
}

/// A forge's API, which is asked for the fork that a pull request comes from. It is asked with the `token` of the
/// credential for its own address, else with the repository's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForgeSection {
    /// Where its repositories are: a host (github.com), with a port where only that is meant (git.example.org:8443).
    pub host: String,
    /// Whose API it is.
    pub kind: ForgeWord,
    /// The URL that the API's paths begin with. Unset: `https://api.github.com` for github.com, elsewhere /api/v3 (github),
    /// /api/v4 (gitlab) or /api/v1 (gitea) of the host, by https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
}

/// Whose API a forge speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ForgeWord {
    /// GitHub, and GitHub Enterprise Server.
    Github,
    /// GitLab.
    Gitlab,
    /// Gitea.
    Gitea,
    /// Forgejo.
    Forgejo,
}
