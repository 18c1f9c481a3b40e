//! Whom a pod's volumes belong to: who its containers run as.

/// As whom something runs. What is unset, its image says.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    /// A user id.
    pub user: Option<u32>,
    /// A group id.
    pub group: Option<u32>,
}

impl RunAs {
    fn or(self, other: Self) -> Self {
        Self { user: self.user.or(other.user), group: self.group.or(other.group) }
    }
}

/// Whom a volume belongs to that these containers mount: whom they run as, where they agree, else whom the pod names. Where
/// no group is named it is the pod's `fsGroup`.
#[must_use]
pub fn owner(pod: RunAs, fs_group: Option<u32>, containers: &[RunAs]) -> RunAs {
    let agreed = |part: fn(&RunAs) -> Option<u32>| {
        let mut all = containers.iter().map(|container| part(&container.or(pod)));
        let first = all.next().flatten()?;
        all.all(|other| other == Some(first)).then_some(first)
    };
    let agreed = RunAs { user: agreed(|run| run.user), group: agreed(|run| run.group) };
    agreed.or(pod).or(RunAs { user: None, group: fs_group })
}
