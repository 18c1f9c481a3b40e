//! Git over HTTP: who is served, and the bounds. Both the section as written and what is left of it when it is valid.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TRUST_DEFAULT;
use super::units::{Bytes, Time};

/// Git over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ServeSection {
    /// The trust classes whose repositories clients without an identity may read: at most 64. Empty: none is served.
    pub trust: Vec<String>,
    /// From where clients without an identity are served.
    pub anonymous: AnonymousWord,
    /// The most requests that are served at a time: 1 to 4096. More are told to come again.
    pub clients: u64,
    /// How long a request waits for upstream where there is something to serve without it: a time from 1s to 1h.
    pub patience: Time,
    /// The most bytes that shared answers take on the pool, with a unit (8GiB). 0: nothing is shared.
    pub spool: Bytes,
    /// The URL of this node's git that builds get in their environment (http://stoker:9418/git/). Unset: a loopback
    /// address, where listen.http has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

impl Default for ServeSection {
    fn default() -> Self {
        Self {
            trust: vec![TRUST_DEFAULT.to_owned()],
            anonymous: AnonymousWord::default(),
            clients: 128,
            patience: "15s".into(),
            spool: "8GiB".into(),
            url: None,
        }
    }
}

/// From where clients without an identity are served.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AnonymousWord {
    /// From loopback addresses.
    #[default]
    Loopback,
    /// From everywhere: whoever can connect can read.
    Everyone,
}

/// Git over HTTP, valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serve {
    /// The trust classes that clients without an identity may read.
    pub trust: Vec<String>,
    /// Whether such clients are served from loopback addresses only.
    pub loopback_only: bool,
    /// The most requests that are served at a time.
    pub clients: usize,
    /// How long a request waits for upstream where there is something to serve without it.
    pub patience: Duration,
    /// The most bytes that shared answers take on the pool.
    pub spool: u64,
    /// What builds get, with a slash at its end; unset: a loopback address of the listener.
    pub url: Option<String>,
}

impl Default for Serve {
    /// What a file gets that says nothing; a test holds the two against each other.
    fn default() -> Self {
        Self {
            trust: vec![TRUST_DEFAULT.to_owned()],
            loopback_only: true,
            clients: 128,
            patience: Duration::from_secs(15),
            spool: 8 << 30,
            url: None,
        }
    }
}
