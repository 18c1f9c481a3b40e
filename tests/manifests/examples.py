"""The examples: what of Kubernetes is in them is validated as such, their shell by ShellCheck, and what README.md there
says of all of them holds."""

import copy
import json
import re
import subprocess

import yaml

from objects import DAEMONSET, ROOT, Wrong, documents, name

EXAMPLES = DAEMONSET / "examples"
# Those that need nothing of the node but a volume.
VOLUME = EXAMPLES / "volume"
GATE = "stoker.build/admission"
# Asks the policy of `volume/gate.yaml` for the gate.
GATED = {"stoker.build/gate": "admission"}
CLASS = "stoker-build"
SOCKET = "/run/stoker"
AUDIENCE = "stoker.build"
# What a template of Argo Workflows has of a pod; the rest is Argo's own.
ARGO_POD = ("nodeSelector", "priorityClassName", "initContainers", "volumes", "securityContext")
ARGO_OWN = ("name", "inputs", "outputs", "container", "steps", "retryStrategy", "metadata", "podSpecPatch")
POLICY = ("MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding")
# What a step of Tekton has beside a container's fields.
TEKTON_STEP = ("onError",)


def check(validator):
    """Everything about the examples; raises `Wrong`."""
    pods = scripts = asking = 0
    for source, thing in things():
        validator.validate(thing, source)
        for pod in pods_of(thing):
            validator.validate(pod, source)
            rules(pod, source)
            if source.startswith("volume/"):
                needs_nothing_else(pod, source)
            pods += 1
            asking += sum(entry["name"] == "FLEET" for entry in environment_of(pod))
            for script in scripts_of(pod):
                shellcheck(script, source)
                scripts += 1
    if not asking:
        raise Wrong("no example asks the fleet")
    woodpecker = documents((EXAMPLES / "woodpecker.yaml").read_text())[0]
    for step in [woodpecker["clone"]["sources"], *woodpecker["steps"]]:
        limits_of(step["backend_options"]["kubernetes"]["resources"], "woodpecker.yaml")
        shellcheck("\n".join(step["commands"]).replace("$$", "$"), "woodpecker.yaml")
        scripts += 1
    for line in re.findall(r"^ +sh '(.*)'$", (EXAMPLES / "Jenkinsfile").read_text(), re.MULTILINE):
        shellcheck(line, "Jenkinsfile")
        scripts += 1
    steps = sorted((EXAMPLES / "steps").glob("*.sh"))
    command = ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *steps]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise Wrong(done.stdout + done.stderr)
    listed = documents((EXAMPLES / "steps/kustomization.yaml").read_text())[0]["configMapGenerator"][0]["files"]
    if sorted(listed) != [step.name for step in steps]:
        raise Wrong(f"daemonset/examples/steps/kustomization.yaml lists {listed}")
    print(f"examples: {pods} pods, {len(steps)} steps, {scripts} scripts within manifests")


def things():
    """(file, object) of all the examples that are objects, and of the pod in the Jenkinsfile."""
    for file in sorted([*EXAMPLES.glob("*.yaml"), *VOLUME.glob("*.yaml")]):
        if file.name != "woodpecker.yaml":
            for thing in documents(file.read_text()):
                yield str(file.relative_to(EXAMPLES)), thing
    (text,) = re.findall("yaml '''\n(.*?)'''", (EXAMPLES / "Jenkinsfile").read_text(), re.DOTALL)
    yield "Jenkinsfile", yaml.safe_load(text) | {"metadata": {"name": "jenkins", "namespace": "builds"}}


def pods_of(thing):
    """The pods that an object leads to."""
    spec = copy.deepcopy(thing.get("spec"))
    kind = thing["kind"]
    if kind == "Pod":
        yield thing
    elif kind in ("Job", "StatefulSet"):
        yield pod(thing, spec["template"]["spec"])
    elif kind == "WorkflowTemplate":
        for template in spec["templates"]:
            unknown = set(template) - {*ARGO_POD, *ARGO_OWN}
            if unknown:
                raise Wrong(f"{name(thing)}: template {template['name']}: unknown {unknown}")
            if "container" in template:
                its = {key: template[key] for key in ARGO_POD if key in template}
                its |= json.loads(template.get("podSpecPatch", "{}"))
                made = pod(thing, its | {"containers": [template["container"] | {"name": "main"}]})
                made["metadata"] |= template.get("metadata", {})
                yield made
    elif kind == "Task":
        containers = []
        for step in spec["steps"]:
            container = {key: value for key, value in step.items() if key not in TEKTON_STEP}
            container["resources"] = container.pop("computeResources")
            for key, own in spec["stepTemplate"].items():
                container[key] = own + container.get(key, [])
            containers.append(container)
        # The rest is in the TaskRun of the same file.
        runs = [run for _, run in things() if run["kind"] == "TaskRun"]
        (run,) = (run for run in runs if run["spec"]["taskRef"]["name"] == thing["metadata"]["name"])
        its = run["spec"]["podTemplate"] | {"containers": containers, "volumes": spec["volumes"]}
        if run["metadata"].get("labels") == GATED:
            its["schedulingGates"] = [{"name": GATE}]
        yield pod(thing, its)
    elif kind not in ("TaskRun", "ConfigMap", "Namespace", *POLICY):
        raise Wrong(f"{name(thing)}: nothing here knows its pods")


def pod(thing, spec):
    """A pod object of a spec."""
    its = thing["metadata"]
    metadata = {"name": its.get("name") or its["generateName"] + "x", "namespace": its["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def rules(pod_, source):
    """What README.md says of all build pods."""
    spec = pod_["spec"]
    if spec.get("priorityClassName") != CLASS:
        raise Wrong(f"{source}: {name(pod_)} is not of the class {CLASS}")
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for volume in volumes.values():
        if volume.get("hostPath", {}).get("type", "Directory") != "Directory":
            raise Wrong(f"{source}: the hostPath {volume['name']} is not `type: Directory`")
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        limits_of(container["resources"], f"{source}: {container.get('name')}")
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                raise Wrong(f"{source}: {container.get('name')} mounts {mount['name']}, which is no volume")
        shows_a_token(container, volumes, f"{source}: {container.get('name')}")
        knows_the_authority(container, volumes, f"{source}: {container.get('name')}")


def needs_nothing_else(pod_, source):
    """Raises `Wrong` where a pod has more than its gate and its volumes, or less than `restricted` wants of it."""
    spec = pod_["spec"]
    where = f"{source}: {name(pod_)}"
    if spec.get("schedulingGates") != [{"name": GATE}]:
        raise Wrong(f"{where}: its gates are {spec.get('schedulingGates')}")
    for volume in spec["volumes"]:
        if volume.get("csi", {}).get("driver") != AUDIENCE or set(volume) != {"name", "csi"}:
            raise Wrong(f"{where}: the volume {volume['name']} is none of Stoker's")
        unknown = set(volume["csi"]["volumeAttributes"]) - attributes()
        if unknown:
            raise Wrong(f"{where}: docs/volumes.md knows no attribute {unknown}")
    user = spec["securityContext"]
    if not user.get("runAsNonRoot") or not user.get("runAsUser") or "seccompProfile" not in user:
        raise Wrong(f"{where}: securityContext: {user}")
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        wanted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        if container.get("securityContext") != wanted:
            raise Wrong(f"{where}: {container.get('name')}: securityContext: {container.get('securityContext')}")


def attributes():
    """Those that docs/volumes.md has in its table."""
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/volumes.md").read_text(), re.MULTILINE)
    return {attribute for row in rows for attribute in re.findall("`([A-Za-z]+)`", row)}


def shows_a_token(container, volumes, where):
    """Raises `Wrong` where a container that reaches the agent's socket has no token to show, or a token without need."""
    mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
    sockets = [name for name in mounts if volumes[name].get("hostPath", {}).get("path") == SOCKET]
    tokens = [f"{path}/{file}" for name, path in mounts.items() for file in token_files(volumes[name])]
    named = [entry["value"] for entry in container.get("env", []) if entry["name"] == "STOKER_TOKEN_FILE"]
    if len(tokens) != len(sockets) or named != tokens:
        raise Wrong(f"{where}: sockets {sockets}, tokens {tokens}, STOKER_TOKEN_FILE {named}")


def knows_the_authority(container, volumes, where):
    """Raises `Wrong` where a container that may ask all agents has no token, or no file with who vouches for them that it
    can do without."""
    environment = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
    if "FLEET" not in environment:
        return
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container.get("volumeMounts", [])}
    folder, _, file = environment.get("STOKER_CA_FILE", "").rpartition("/")
    source = mounts.get(folder, {}).get("configMap", {})
    if file != "ca.crt" or not source.get("optional") or "STOKER_TOKEN_FILE" not in environment:
        raise Wrong(f"{where}: asks the fleet with {environment.get('STOKER_CA_FILE')} of {source}")


def token_files(volume):
    """The names of the tokens for the agent's audience in a volume."""
    for source in volume.get("projected", {}).get("sources", []):
        if source.get("serviceAccountToken", {}).get("audience") == AUDIENCE:
            yield source["serviceAccountToken"]["path"]


def limits_of(resources, where):
    """Raises `Wrong` where ephemeral storage is not both requested and limited, or memory not limited."""
    for kind in ("requests", "limits"):
        for what in ("ephemeral-storage", "memory"):
            if what not in resources.get(kind, {}):
                raise Wrong(f"{where}: no {what} in its {kind}")


def environment_of(pod_):
    """The variables of all its containers."""
    for container in [*pod_["spec"].get("initContainers", []), *pod_["spec"]["containers"]]:
        yield from container.get("env", [])


def scripts_of(pod_):
    """The scripts that its containers are given as text."""
    for container in [*pod_["spec"].get("initContainers", []), *pod_["spec"]["containers"]]:
        command = container.get("command", [])
        if command[:2] == ["sh", "-euc"]:
            yield command[2]


def shellcheck(script, where):
    """Raises `Wrong` for what ShellCheck finds, and where a workflow's parameter would become text of the script."""
    if re.search(r"\{\{|\$\(params|\$\(context|\$\(steps|\$\(tasks", script):
        raise Wrong(f"{where}: a parameter is part of a script: {script}")
    # 1090, 1091: files that are there only in the pod; 2016: what a second shell expands; 2154: it sets a variable.
    # 2153: a variable of the environment is no misspelling of one in lower case.
    command = ["shellcheck", "--shell=sh", "--exclude=1090,1091,2016,2153,2154", "-"]
    script = f"set -eu\n{script}"
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise Wrong(f"{where}: {done.stdout}{done.stderr}")
