//! What is written on a pod before a node is asked for it: whoever goes on from there asks the same node by the same name,
//! and so gets the same lease.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use super::GATED;
use crate::quantity::{Span, Timestamp};

/// How long a grant stays reserved for a pod that was not seen on its node.
pub const BIND_WITHIN: Span = Span::minutes(2);

/// The same, with what asking may take and clocks may differ.
const HELD_FOR: Span = Span::minutes(3);

/// Which node is asked for a pod, the how manieth time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The node.
    pub node: String,
    /// From 1.
    pub attempt: u32,
    /// When it was written.
    pub at: Timestamp,
}

impl Intent {
    /// The id of the request by which the node is asked.
    #[must_use]
    pub fn request_id(&self, pod_uid: &str) -> String {
        format!("{GATED}{pod_uid}-{}", self.attempt)
    }

    /// Whether it is the same node's same attempt.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.node == other.node && self.attempt == other.attempt
    }

    /// Whether a lease that the node may have given by it has run out, where nobody renewed it. It is written once: a node
    /// that is asked again and again holds the pod no longer than one that is silent.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        now.since(self.at) > HELD_FOR
    }
}

impl fmt::Display for Intent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.node, self.attempt, self.at.0)
    }
}

/// What it says is no intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoIntent;

impl FromStr for Intent {
    type Err = NoIntent;

    fn from_str(text: &str) -> Result<Self, NoIntent> {
        let mut parts = text.split(' ');
        let (Some(node), Some(attempt), Some(at), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NoIntent);
        };
        let attempt = attempt.parse().ok().filter(|attempt| *attempt > 0).ok_or(NoIntent)?;
        let at = Timestamp(at.parse().map_err(|_| NoIntent)?);
        let is_name = !node.is_empty() && node.len() <= 253 && node.bytes().all(|byte| byte.is_ascii_graphic());
        if is_name { Ok(Self { node: node.to_string(), attempt, at }) } else { Err(NoIntent) }
    }
}
