//! Effective requests: what the scheduler counts of a pod.
//!
//! As the scheduler does: the containers together, or the one init container that asks for most with the sidecars that
//! were started before it, whichever is more; what is set for the pod as a whole stands in place of that; the overhead of
//! its runtime class comes on top. A container that is resized counts as what it has and as what it is to have.

use crate::quantity::Amounts;

/// CPU and memory that a container asks for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Container {
    /// What it is to have.
    pub requests: Amounts,
    /// What it has, by the kubelet's word; nothing where that does not tell.
    pub allocated: Amounts,
    /// An init container that goes on beside the others (`restartPolicy: Always`).
    pub sidecar: bool,
}

impl Container {
    fn asks(&self) -> Amounts {
        self.requests.max(self.allocated)
    }
}

/// What of a pod the scheduler looks at.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Resources<'a> {
    /// In their order.
    pub init: &'a [Container],
    /// In any order.
    pub containers: &'a [Container],
    /// For the pod as a whole; 0: not set.
    pub pod: Amounts,
    /// Of its runtime class.
    pub overhead: Amounts,
}

impl Resources<'_> {
    /// CPU and memory.
    #[must_use]
    pub fn effective(&self) -> Amounts {
        let (mut sidecars, mut starting) = (Amounts::default(), Amounts::default());
        for container in self.init {
            if container.sidecar {
                sidecars = sidecars.plus(container.asks());
                starting = starting.max(sidecars);
            } else {
                starting = starting.max(sidecars.plus(container.asks()));
            }
        }
        let running = self.containers.iter().fold(sidecars, |sum, container| sum.plus(container.asks()));
        let sum = running.max(starting);
        let or = |whole: u64, sum: u64| if whole == 0 { sum } else { whole };
        let all = Amounts {
            cpu_millis: or(self.pod.cpu_millis, sum.cpu_millis),
            memory_bytes: or(self.pod.memory_bytes, sum.memory_bytes),
            ..Amounts::default()
        };
        all.plus(Amounts { disk_bytes: 0, disk_inodes: 0, ..self.overhead })
    }
}
