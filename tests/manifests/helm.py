"""The chart: linted, packed, and installed by Helm itself with each values file; held against the kustomizations."""

import asyncio
import contextlib
import copy
import json
import pathlib
import tempfile
import tomllib

import helm_sdkpy
import yaml

from cluster import Cluster
from objects import DAEMONSET, ENVIRONMENTS, PROFILES, ROOT, Wrong, documents, kustomize, name

CHART = DAEMONSET / "chart"


class Chart:
    """The chart as `helm package` makes it."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        (self.folder / "kubeconfig").write_text("{apiVersion: v1, kind: Config}")
        nowhere = self.configuration(self.folder / "kubeconfig", "stoker")
        self.archive = asyncio.run(helm_sdkpy.Package(nowhere).run(str(CHART), folder))
        found = asyncio.run(helm_sdkpy.Lint(nowhere).run(self.archive))
        # Severities: 1 informs (there is no icon), 2 warns, 3 is an error.
        if found["Errors"] or any(message["Severity"] > 1 for message in found["Messages"]):
            raise Wrong(f"helm lint: {found}")

    @staticmethod
    def configuration(kubeconfig, namespace):
        return helm_sdkpy.Configuration(namespace=namespace, kubeconfig=str(kubeconfig))

    def install(self, values, namespace="stoker"):
        """What a cluster has been given after `helm install --values ...`."""
        with Cluster() as cluster:
            kubeconfig = self.folder / "kubeconfig"
            kubeconfig.write_text(json.dumps(cluster.kubeconfig()))
            install = helm_sdkpy.Install(self.configuration(kubeconfig, namespace))
            asyncio.run(install.run("stoker", self.archive, values=values, wait=False, timeout=60))
            return cluster.objects()


def values_of(environment):
    """A values file."""
    return yaml.safe_load((CHART / f"values-{environment}.yaml").read_text())


def comparable(things, drop=()):
    """Objects by their names, without what Helm or kustomize mark them with."""
    found = {}
    for thing in copy.deepcopy(things):
        metadata = thing["metadata"]
        for key in ("labels", "annotations"):
            marks = metadata.get(key, {})
            metadata[key] = {
                mark: value
                for mark, value in marks.items()
                if not mark.startswith("meta.helm.sh/") and (mark, value) != ("app.kubernetes.io/managed-by", "Helm")
            }
        # Kustomize ends the configuration's name in a hash of it, the chart annotates the pod with one. What is laid over
        # it costs it its comments.
        if thing["kind"] == "ConfigMap":
            metadata["name"] = "stoker"
            (thing["data"]["agent.yaml"],) = documents(thing["data"]["agent.yaml"])
        if thing["kind"] == "DaemonSet":
            template = thing["spec"]["template"]
            template["metadata"].pop("annotations", None)
            for volume in template["spec"]["volumes"]:
                if "configMap" in volume:
                    volume["configMap"]["name"] = "stoker"
        if thing["kind"] not in drop:
            found[name(thing)] = thing
    return found


def differences(left, right, path=""):
    """Where two things differ, each place once."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(set(left) | set(right)):
            if left.get(key) != right.get(key):
                yield from differences(left.get(key), right.get(key), f"{path}/{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, (one, other) in enumerate(zip(left, right)):
            yield from differences(one, other, f"{path}/{index}")
    elif left != right:
        yield f"{path}: {left!r} in the chart, {right!r} in the kustomization"


def hold_against(chart, values, folder):
    """Raises `Wrong` where the chart gives other objects than a kustomization; gives those of the chart."""
    things = chart.install(values)
    # The namespace of a release is there before the release.
    found = list(differences(comparable(things), comparable(kustomize(folder), drop=("Namespace",))))
    if found:
        raise Wrong(f"the chart has drifted from {folder}:\n" + "\n".join(found[:20]))
    return things


def refuses(chart, values, part):
    """Raises `Wrong` where Helm takes values that it should not, or does not say which."""
    try:
        chart.install(values)
    except helm_sdkpy.InstallError as error:
        if part in str(error):
            return
        raise Wrong(f"helm install with {values}: {error}, without {part!r}") from error
    raise Wrong(f"helm install takes {values}")


def elsewhere(chart):
    """In another namespace nothing is left of the usual one."""
    things = chart.install(values_of("farm") | {"config": {"repositories": {"refresh": "7m"}}}, namespace="builds")
    for thing in things:
        text = json.dumps(thing)
        if '"namespace": "stoker"' in text or "serviceaccount:stoker:" in text or "stoker.stoker.svc" in text:
            raise Wrong(f"{name(thing)} of a release in the namespace builds names the namespace stoker")
    (text,) = (thing["data"]["agent.yaml"] for thing in things if thing["kind"] == "ConfigMap")
    (configuration,) = documents(text)
    (whole,) = documents((DAEMONSET / "overlays/farm/settings/agent.yaml").read_text())
    whole["repositories"]["refresh"] = "7m"
    whole["repositories"]["serve"]["url"] = "http://stoker.builds.svc:9418/git/"
    if configuration != whole:
        raise Wrong("`config` is not laid over the environment's configuration:\n" + text)


@contextlib.contextmanager
def with_components(overlay, components, settings, patches=()):
    """A kustomization of an overlay with components, and with what those want in the configuration."""
    (configuration,) = documents((DAEMONSET / "overlays" / overlay.split("/")[0] / "settings/agent.yaml").read_text())
    for file in settings:
        (wanted,) = documents((DAEMONSET / file).read_text())
        for key, part in wanted.items():
            there = configuration.get(key, {})
            configuration[key] = there | part | {
                name: there.get(name, []) + value for name, value in part.items() if isinstance(value, list)
            }
    with tempfile.TemporaryDirectory() as text:
        folder = pathlib.Path(text).resolve()
        there = pathlib.Path(*[".."] * (len(folder.parts) - 1), *DAEMONSET.parts[1:])
        (folder / "agent.yaml").write_text(yaml.safe_dump(configuration))
        whole = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [str(there / "overlays" / overlay)],
            "components": [str(there / component) for component in components],
            "configMapGenerator": [
                {"name": "stoker", "namespace": "stoker", "behavior": "replace", "files": ["agent.yaml"]}
            ],
            "patches": list(patches),
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(whole))
        yield folder


def network(chart, validator):
    """Where gRPC is opened to the network, the chart opens what the component does."""
    values = values_of("farm") | {"grpc": {"enabled": True, "namespaces": ["argo", "ci"]}}
    named = "/spec/ingress/0/from/0/namespaceSelector/matchExpressions/0/values"
    patch = [{"op": "replace", "path": named, "value": values["grpc"]["namespaces"]}]
    patches = [{"target": {"kind": "NetworkPolicy", "name": "stoker-grpc"}, "patch": yaml.safe_dump(patch)}]
    with with_components("farm/full", ["network"], ["network/listen.yaml"], patches) as folder:
        things = hold_against(chart, values, folder)
    for thing in things:
        validator.validate(thing, "the chart with gRPC")
    print(f"chart: {len(things)} objects as in daemonset/network with daemonset/overlays/farm")


def volume(chart, validator):
    """With the driver of volumes, the chart has what the component has, wherever the kubelet lives."""
    values = values_of("single-node") | {"volume": {"enabled": True}}
    with with_components("single-node/full", ["volume"], ["volume/volume.yaml"]) as folder:
        things = hold_against(chart, values, folder)
    for thing in things:
        validator.validate(thing, "the chart with volumes")
    print(f"chart: {len(things)} objects as in daemonset/volume with daemonset/overlays/single-node")
    values["volume"]["kubelet"] = "/var/snap/kubelet"
    for thing in chart.install(values):
        if "/var/lib/kubelet" in json.dumps(thing):
            raise Wrong(f"{name(thing)}: the chart with volume.kubelet has the usual place of it")
    refuses(chart, values | {"profile": "restricted"}, "profile: full")


def controller(chart, validator):
    """With the controller, the chart has what the component has, and the agents' rule beside their others."""
    values = values_of("farm") | {"grpc": {"enabled": True}, "controller": {"enabled": True}}
    settings = ["network/listen.yaml", "controller/access.yaml"]
    with with_components("farm/full", ["network", "controller"], settings) as folder:
        things = hold_against(chart, values, folder)
    for thing in things:
        validator.validate(thing, "the chart with the controller")
    print(f"chart: {len(things)} objects as in daemonset/controller with daemonset/overlays/farm")
    (deployment,) = (
        thing for thing in chart.install(values, namespace="builds") if name(thing) == "Deployment stoker-controller"
    )
    args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    if args[-4:] != ["--agents", "builds/stoker-agents", "--lease", "builds/stoker-controller"]:
        raise Wrong(f"the controller of a release in the namespace builds has {args}")
    refuses(chart, values | {"grpc": {"enabled": False}}, "grpc.enabled")


def set_by_values(chart, validator):
    """What no values file sets arrives where it belongs."""
    values = {
        "image": {"repository": "registry.example/stoker", "tag": "1.2.3"},
        "git": {"resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "3", "memory": "5Gi"}}},
        "imagePullSecrets": [{"name": "registry"}],
        "state": {"hostPath": "/var/mnt/system/stoker"},
        "nodeSelector": {"example.org/builds": "yes"},
        "grpc": {"enabled": True, "secret": "farm-tls", "namespaces": ["ci"]},
    }
    things = chart.install(values)
    for thing in things:
        validator.validate(thing, "the chart with other values")
    (pod,) = (thing["spec"]["template"]["spec"] for thing in things if thing["kind"] == "DaemonSet")
    (selector,) = (
        thing["spec"]["ingress"][0]["from"][0]["namespaceSelector"]
        for thing in things
        if name(thing) == "NetworkPolicy stoker-grpc"
    )
    found = {
        "image": dict(zip(("repository", "tag"), pod["containers"][0]["image"].split(":"))),
        "git": {"resources": pod["containers"][1]["resources"]},
        "imagePullSecrets": pod["imagePullSecrets"],
        "state": {"hostPath": pod["volumes"][1]["hostPath"]["path"]},
        "nodeSelector": pod["nodeSelector"],
        "grpc": {
            "enabled": {"name": "grpc", "containerPort": 9417} in pod["containers"][0]["ports"],
            "secret": pod["volumes"][-1]["secret"]["secretName"],
            "namespaces": selector["matchExpressions"][0]["values"],
        },
    }
    if pod["containers"][1]["image"] != pod["containers"][0]["image"]:
        raise Wrong("git's container has another image than the agent's")
    if found != values:
        raise Wrong(f"the chart with {values} has {found}")


def check(validator):
    """Everything about the chart; raises `Wrong`."""
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    if yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] != version:
        raise Wrong(f"daemonset/chart/Chart.yaml: appVersion is not {version}, that of the agent")
    with tempfile.TemporaryDirectory() as folder:
        chart = Chart(folder)
        cases = [({}, DAEMONSET / "base")]
        for environment in ENVIRONMENTS:
            for profile in PROFILES:
                values = values_of(environment) | ({} if profile == "full" else {"profile": profile})
                cases.append((values, DAEMONSET / "overlays" / environment / profile))
        for values, folder_ in cases:
            things = hold_against(chart, values, folder_)
            for thing in things:
                validator.validate(thing, f"the chart with {values}")
            print(f"chart: {len(things)} objects as in {folder_.relative_to(ROOT)}")
        elsewhere(chart)
        network(chart, validator)
        volume(chart, validator)
        controller(chart, validator)
        set_by_values(chart, validator)
        refuses(chart, {"profile": "privileged"}, "profile")
        refuses(chart, {"disks": {"path": "var/mnt"}}, "disks")
        refuses(chart, {"mirrors": []}, "mirrors")
        refuses(chart, {"grpc": {"enabled": True, "namespaces": []}}, "namespaces")
