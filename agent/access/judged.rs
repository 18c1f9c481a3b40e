//! Callers as the rules judge them: a rule is held against who somebody is once, and not at each call.

use std::collections::HashMap;
use std::sync::Arc;

use super::caller::{Caller, Identity};
use crate::config::access::AccessRule;

/// The most callers that are remembered.
const CALLERS_MAX: usize = 512;

/// By where an identity is in memory, as a connection or a known token has it. Its caller keeps it there, so that no other
/// comes to be in its place.
#[derive(Default)]
pub(super) struct Judged {
    rules: Arc<Vec<AccessRule>>,
    callers: HashMap<usize, Arc<Caller>>,
}

impl Judged {
    /// What the rules give it.
    pub(super) fn caller(&mut self, identity: Arc<Identity>, rules: &Arc<Vec<AccessRule>>) -> Arc<Caller> {
        if !Arc::ptr_eq(&self.rules, rules) {
            self.rules = Arc::clone(rules);
            self.callers.clear();
        }
        let place = Arc::as_ptr(&identity).addr();
        if let Some(known) = self.callers.get(&place) {
            return Arc::clone(known);
        }
        if self.callers.len() >= CALLERS_MAX {
            // First those whose connection has ended, or whose token was forgotten.
            self.callers.retain(|_, caller| Arc::strong_count(&caller.identity) > 1);
        }
        if self.callers.len() >= CALLERS_MAX {
            self.callers.clear();
        }
        let caller = Arc::new(Caller::new(identity, rules));
        self.callers.insert(place, Arc::clone(&caller));
        caller
    }
}

#[cfg(test)]
mod tests {
    use super::super::Role;
    use super::super::local::Process;
    use super::*;
    use crate::config::access::TenantsOf;

    fn process() -> Arc<Identity> {
        Arc::new(Identity::process(Process { pid: 7, uid: 4_000_000 }))
    }

    fn rules(role: Role) -> Arc<Vec<AccessRule>> {
        Arc::new(vec![AccessRule {
            role,
            users: Vec::new(),
            groups: Vec::new(),
            service_accounts: Vec::new(),
            namespaces: Vec::new(),
            uids: vec![4_000_000],
            tenants: TenantsOf::All,
            trust: None,
        }])
    }

    #[test]
    fn a_caller_is_judged_once_for_each_rules() {
        let (mut judged, one, other) = (Judged::default(), process(), process());
        let (viewer, operator) = (rules(Role::Viewer), rules(Role::Operator));
        let first = judged.caller(Arc::clone(&one), &viewer);
        assert!(Arc::ptr_eq(&first, &judged.caller(Arc::clone(&one), &viewer)));
        assert!(!Arc::ptr_eq(&first, &judged.caller(other, &viewer)), "another connection");
        let later = judged.caller(one, &operator);
        assert_eq!((first.role(), later.role()), (Some(Role::Viewer), Some(Role::Operator)));
    }

    #[test]
    fn callers_are_bounded_and_those_that_are_here_stay() {
        let (mut judged, viewer, stays) = (Judged::default(), rules(Role::Viewer), process());
        let known = judged.caller(Arc::clone(&stays), &viewer);
        for _ in 0..2 * CALLERS_MAX {
            judged.caller(process(), &viewer);
            assert!(judged.callers.len() <= CALLERS_MAX);
        }
        assert!(Arc::ptr_eq(&known, &judged.caller(stays, &viewer)));
        let all: Vec<_> = (0..2 * CALLERS_MAX).map(|_| process()).collect();
        for one in &all {
            judged.caller(Arc::clone(one), &viewer);
            assert!(judged.callers.len() <= CALLERS_MAX);
        }
    }
}
