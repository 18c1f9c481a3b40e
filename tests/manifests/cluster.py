"""An API server that keeps what it is given, on a port of the loopback address: as much of one as Helm needs."""

import http.server
import json
import threading

# What it knows: (group/version, kind, plural, whether it is in a namespace).
RESOURCES = [
    ("v1", "Namespace", "namespaces", False),
    ("v1", "Secret", "secrets", True),
    ("v1", "ConfigMap", "configmaps", True),
    ("v1", "Service", "services", True),
    ("v1", "ServiceAccount", "serviceaccounts", True),
    ("v1", "ResourceQuota", "resourcequotas", True),
    ("apps/v1", "DaemonSet", "daemonsets", True),
    ("apps/v1", "Deployment", "deployments", True),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", True),
    ("storage.k8s.io/v1", "CSIDriver", "csidrivers", False),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", False),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", False),
    ("rbac.authorization.k8s.io/v1", "Role", "roles", True),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", True),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", True),
    ("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", False),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", False),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", False),
    ("security.openshift.io/v1", "SecurityContextConstraints", "securitycontextconstraints", False),
]
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
BODY_MAX = 8 << 20
# What answers to Helm's record of a release.
RECORD = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "sh.helm.release.v1.stoker.v1"}}


def discovery():
    """The documents by which a client learns what there is."""
    groups = {}
    for version, *_ in RESOURCES:
        if "/" in version:
            group = version.split("/")[0]
            entry = {"groupVersion": version, "version": version.split("/")[1]}
            groups[group] = {"name": group, "versions": [entry], "preferredVersion": entry}
    pages = {
        "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": list(groups.values())},
    }
    for version, kind, plural, namespaced in RESOURCES:
        page = pages.setdefault(root(version), {"kind": "APIResourceList", "groupVersion": version, "resources": []})
        names = {"name": plural, "singularName": kind.lower(), "kind": kind}
        page["resources"].append(names | {"namespaced": namespaced, "verbs": VERBS})
    return pages


def root(version):
    """Where a version's resources are."""
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Requests for discovery, and for objects by their paths."""

    protocol_version = "HTTP/1.1"
    # One packet an answer: else each waits for the acknowledgement of the one before.
    wbufsize = -1
    timeout = 30

    def log_message(self, *_):
        """Says nothing."""

    def answer(self, status, thing):
        body = json.dumps(thing).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, reason):
        failure = {"status": "Failure", "reason": reason, "code": status}
        self.answer(status, {"kind": "Status", "apiVersion": "v1"} | failure)

    def body(self):
        """The object that was sent; `None` for Helm's own record of a release, which it sends as protobuf alone."""
        length = int(self.headers.get("Content-Length") or 0)
        if length > BODY_MAX:
            raise ValueError(f"a request of {length} bytes")
        body = self.rfile.read(length)
        return None if "protobuf" in self.headers["Content-Type"] else json.loads(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        kept = self.server.kept
        if path in self.server.pages:
            self.answer(200, self.server.pages[path])
        elif path in kept:
            self.answer(200, kept[path])
        elif path.endswith("/secrets"):
            self.answer(200, {"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": []})
        else:
            self.refuse(404, "NotFound")

    def do_POST(self):
        thing = self.body()
        if thing is None:
            self.answer(201, RECORD)
            return
        path = f"{self.path.split('?')[0]}/{thing['metadata']['name']}"
        if path in self.server.kept:
            self.refuse(409, "AlreadyExists")
            return
        self.server.kept[path] = thing
        self.answer(201, thing)

    def do_PUT(self):
        if self.body() is None:
            self.answer(200, RECORD)
        else:
            self.refuse(405, "MethodNotAllowed")


class Cluster:
    """`with Cluster() as cluster`: an empty one, which is gone afterwards."""

    def __enter__(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.pages = discovery()
        self.server.kept = {}
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def kubeconfig(self):
        """What leads here."""
        address = f"http://127.0.0.1:{self.server.server_port}"
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": address}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "nobody"}}],
        }

    def objects(self):
        """What it was given."""
        return list(self.server.kept.values())
