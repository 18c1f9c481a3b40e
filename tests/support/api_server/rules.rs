//! What may be changed of a pod that is there: gates go and do not come; where it may go is narrowed while it has one, and
//! stands afterwards; the rest of its spec stands always.

use serde_json::Value;

const REQUIRED: &str = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";

/// Why a change is refused.
pub(super) fn refused(old: &Value, new: &Value) -> Option<&'static str> {
    let (old, new) = (&old["spec"], &new["spec"]);
    let (had, has) = (list(old, "/schedulingGates"), list(new, "/schedulingGates"));
    if !has.iter().all(|gate| had.contains(gate)) {
        return Some("spec.schedulingGates: Forbidden: only deletion is allowed");
    }
    if rest(old) != rest(new) {
        return Some("spec: Forbidden: pod updates may not change fields other than these");
    }
    if old["affinity"] == new["affinity"] {
        return None;
    }
    if had.is_empty() {
        return Some("spec.affinity: Forbidden: the pod has no scheduling gate");
    }
    let (before, after) = (list(old, REQUIRED), list(new, REQUIRED));
    let is_narrowed = |(before, after): (&Value, &Value)| {
        let is_empty = ["/matchExpressions", "/matchFields"].iter().all(|part| list(before, part).is_empty());
        let begins = |part: &str| list(after, part).starts_with(list(before, part));
        if is_empty { before == after } else { begins("/matchExpressions") && begins("/matchFields") }
    };
    let narrowed = before.len() == after.len() && before.iter().zip(after).all(is_narrowed);
    (!before.is_empty() && !narrowed).then_some("spec.affinity: Invalid value: only additions are allowed")
}

fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    object.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn rest(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Value::Object(all) = &mut spec {
        ["schedulingGates", "affinity"].iter().for_each(|part| drop(all.remove(*part)));
    }
    spec
}
