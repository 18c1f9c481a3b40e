"""What `daemonset/base/policy.yaml` allows and refuses: its expressions, over changes as an API server shows them."""

import copy

import celpy

from objects import DAEMONSET, Wrong, documents

AGENT = "system:serviceaccount:stoker:stoker"
NODE_NAME = "authentication.kubernetes.io/node-name"
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": "ghost",
        "labels": {"kubernetes.io/hostname": "ghost", "stoker.build/cached": "3"},
        "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
    },
    "spec": {
        "podCIDR": "10.0.0.0/24",
        "podCIDRs": ["10.0.0.0/24"],
        "providerID": "kind://ghost",
        "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}],
    },
    "status": {
        "capacity": {"cpu": "32", "memory": "65536Ki"},
        "allocatable": {"cpu": "32", "memory": "65536Ki"},
        "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-01T00:00:00Z"}],
        "addresses": [{"type": "InternalIP", "address": "10.1.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {"kubeletVersion": "v1.36.1", "bootID": "b"},
        "images": [{"names": ["a"], "sizeBytes": 1}],
    },
}
HEARTBEAT = {
    "apiVersion": "coordination.k8s.io/v1",
    "kind": "Lease",
    "metadata": {"name": "ghost", "namespace": "stoker"},
    "spec": {"holderIdentity": "ghost", "renewTime": "2026-11-01T00:00:00.000000Z"},
}
PRESSURE = {"type": "BuildPressure", "status": "True", "reason": "MEMORY_FLOOR"}
TAINT = {"key": "stoker.build/pressure", "effect": "NoSchedule"}


def changed(path, value):
    """The node with something else at a path; `None` takes it out."""
    node = copy.deepcopy(NODE)
    *way, last = path
    place = node
    for part in way:
        place = place.setdefault(part, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return node


def bare():
    """A node as it is registered, before anybody added to it."""
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost"}, "spec": {}, "status": {}}


def node_changes():
    """What an agent may do to a node, and what it may not: (label, old, new, part of the refusal or None)."""
    labels, annotations = NODE["metadata"]["labels"], NODE["metadata"]["annotations"]
    taints, conditions = NODE["spec"]["taints"], NODE["status"]["conditions"]
    yield "nothing", NODE, NODE, None
    yield "a bare node", bare(), bare(), None
    yield "its label", NODE, changed(["metadata", "labels"], labels | {"stoker.build/warm": "a"}), None
    yield "its label goes", NODE, changed(["metadata", "labels", "stoker.build/cached"], None), None
    yield "its first label", bare(), bare() | {"metadata": {"name": "ghost", "labels": {"stoker.build/a": "b"}}}, None
    added = annotations | {"stoker.build/summary": "{}"}
    yield "its annotation", NODE, changed(["metadata", "annotations"], added), None
    yield "its taint", NODE, changed(["spec", "taints"], [*taints, TAINT]), None
    yield "its first taint", bare(), bare() | {"spec": {"taints": [TAINT]}}, None
    yield "its taint goes", changed(["spec", "taints"], [*taints, TAINT]), NODE, None
    yield "its condition", NODE, changed(["status", "conditions"], [*conditions, PRESSURE]), None
    yield "its first condition", bare(), bare() | {"status": {"conditions": [PRESSURE]}}, None
    for what, path, value in [
        ("labels", ["metadata", "labels", "kubernetes.io/hostname"], "exo0"),
        ("labels", ["metadata", "labels", "kubernetes.io/hostname"], None),
        ("labels", ["metadata", "labels", "stoker.builder/x"], "1"),
        ("labels", ["metadata", "labels", "node-role.kubernetes.io/control-plane"], ""),
        ("labels", ["metadata", "labels"], None),
        ("annotations", ["metadata", "annotations", "node.alpha.kubernetes.io/ttl"], "300"),
        ("annotations", ["metadata", "annotations"], None),
        ("finalizers", ["metadata", "finalizers"], ["stoker.build/keep"]),
        ("finalizers", ["metadata", "ownerReferences"], [{"kind": "Pod", "name": "a", "uid": "b", "apiVersion": "v1"}]),
        ("taint", ["spec", "taints"], []),
        ("taint", ["spec", "taints"], None),
        ("taint", ["spec", "taints"], [*taints, {"key": "example.org/a", "effect": "NoSchedule"}]),
        ("taint", ["spec", "taints"], [*taints, TAINT | {"effect": "NoExecute"}]),
        ("taint", ["spec", "taints"], [taints[0] | {"effect": "NoExecute"}]),
        ("spec", ["spec", "unschedulable"], True),
        ("spec", ["spec", "podCIDR"], "10.9.0.0/24"),
        ("spec", ["spec", "podCIDRs"], ["10.9.0.0/24"]),
        ("spec", ["spec", "providerID"], "aws:///a/b"),
        ("spec", ["spec", "configSource"], {}),
        ("spec", ["spec", "externalID"], "a"),
        ("condition", ["status", "conditions"], [{"type": "Ready", "status": "False"}]),
        ("condition", ["status", "conditions"], []),
        ("condition", ["status", "conditions"], [*conditions, {"type": "DiskPressure", "status": "True"}]),
        ("status", ["status", "capacity"], {"cpu": "64", "memory": "65536Ki"}),
        ("status", ["status", "allocatable"], {"cpu": "0", "memory": "0"}),
        ("status", ["status", "addresses"], [{"type": "InternalIP", "address": "10.6.6.6"}]),
        ("status", ["status", "phase"], "Terminated"),
        ("status", ["status", "images"], []),
        ("status", ["status", "nodeInfo"], {"kubeletVersion": "v1.1.1", "bootID": "b"}),
        ("status", ["status", "nodeInfo"], None),
        ("status", ["status", "daemonEndpoints"], {"kubeletEndpoint": {"Port": 1}}),
        ("status", ["status", "daemonEndpoints"], None),
        ("status", ["status", "volumesInUse"], ["a"]),
        ("status", ["status", "volumesAttached"], [{"name": "a", "devicePath": "b"}]),
        ("status", ["status", "runtimeHandlers"], [{"name": "a"}]),
        ("status", ["status", "features"], {"supplementalGroupsPolicy": True}),
        ("status", ["status", "config"], {"error": "a"}),
        ("status", ["status", "declaredFeatures"], ["GuaranteedQoSPodCPUResize"]),
    ]:
        yield f"{'/'.join(path)} = {value}", NODE, changed(path, value), what


def requests():
    """(policy, label, request, old object, new object, part of the refusal or None)."""
    for label, old, new, refusal in node_changes():
        yield "stoker-node", label, request("nodes"), old, new, refusal
    mine = changed(["metadata", "labels", "stoker.build/a"], "b")
    yield "stoker-node", "another's node", request("nodes", node="exo0"), NODE, mine, "its own node"
    yield "stoker-node", "a token without a node", request("nodes", node=None), NODE, mine, "its own node"
    yield "stoker-node", "a deletion", request("nodes", "DELETE"), NODE, None, "neither creates nor deletes"
    yield "stoker-node", "a creation", request("nodes", "CREATE"), None, NODE, "neither creates nor deletes"
    yield "stoker-node", "somebody else", request("nodes", node="exo0", user="system:node:exo0"), NODE, mine, None
    other = HEARTBEAT | {"metadata": {"name": "exo0", "namespace": "stoker"}}
    yield "stoker-heartbeat", "its own", request("leases"), HEARTBEAT, HEARTBEAT, None
    yield "stoker-heartbeat", "its first", request("leases", "CREATE"), None, HEARTBEAT, None
    yield "stoker-heartbeat", "another's", request("leases"), other, other, "its own node"
    yield "stoker-heartbeat", "another's first", request("leases", "CREATE"), None, other, "its own node"
    yield "stoker-heartbeat", "without a node", request("leases", node=None), HEARTBEAT, HEARTBEAT, "its own node"
    yield "stoker-heartbeat", "a deletion", request("leases", "DELETE"), HEARTBEAT, None, "deletes no heartbeat"


def request(resource, operation="UPDATE", node="ghost", user=AGENT):
    """What the API server tells of a request."""
    extra = {} if node is None else {NODE_NAME: [node], "authentication.kubernetes.io/pod-name": ["stoker-x"]}
    who = {"username": user, "groups": ["system:serviceaccounts"], "extra": extra}
    return {"operation": operation, "name": "ghost", "resource": {"resource": resource}, "userInfo": who}


class Policy:
    """A policy that is asked as an API server asks it."""

    def __init__(self, thing):
        self.spec = thing["spec"]
        environment = celpy.Environment()
        self.programs = {}
        for expression in self.expressions():
            self.programs[expression] = environment.program(environment.compile(expression))

    def expressions(self):
        for part in ("matchConditions", "variables", "validations"):
            for entry in self.spec[part]:
                yield entry["expression"]
                if "messageExpression" in entry:
                    yield entry["messageExpression"]

    def refusal(self, asked, old, new):
        """Why the request is refused; `None` where it is not. An expression that fails would refuse as well
        (`failurePolicy`), but tell people nothing: none of these requests may come to that."""
        seen = {"request": asked, "object": new, "oldObject": old}
        activation = {key: celpy.json_to_cel(value) for key, value in seen.items()}
        if not all(self.programs[entry["expression"]].evaluate(activation) for entry in self.spec["matchConditions"]):
            return None
        variables = celpy.celtypes.MapType()
        for entry in self.spec["variables"]:
            try:
                value = self.programs[entry["expression"]].evaluate(activation)
                variables[celpy.celtypes.StringType(entry["name"])] = value
            except celpy.CELEvalError:
                # Variables are lazy: one that cannot be told fails whoever uses it.
                continue
        activation["variables"] = variables
        for entry in self.spec["validations"]:
            try:
                if not self.programs[entry["expression"]].evaluate(activation):
                    # A message that cannot be made would hide the reason from people.
                    for message in filter(None, [entry.get("messageExpression")]):
                        self.programs[message].evaluate(activation)
                    return entry["message"]
            except celpy.CELEvalError as error:
                raise Wrong(f"{entry['message']}: the expression failed: {error}") from error
        return None


def check():
    """Raises `Wrong` for the first request that is judged otherwise than it should be; gives how many there were."""
    file = DAEMONSET / "base/policy.yaml"
    policies = {
        thing["metadata"]["name"]: Policy(thing)
        for thing in documents(file.read_text())
        if thing["kind"] == "ValidatingAdmissionPolicy"
    }
    count = 0
    for policy, label, asked, old, new, expected in requests():
        refusal = policies[policy].refusal(asked, old, new)
        if (expected is None) != (refusal is None) or (expected and expected not in refusal):
            raise Wrong(f"{policy}: {label}: refused with {refusal!r}, expected {expected!r}")
        count += 1
    return count
