//! Which node a pod that waits for one goes to.

/// What the ids of requests for pods that wait for a node begin with.
pub const GATED: &str = "gate-";
