"""What the manifests come to: kustomizations rendered by kubectl, as lists of objects."""

import pathlib
import subprocess

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DAEMONSET = ROOT / "daemonset"
ENVIRONMENTS = ("minikube", "single-node", "farm", "openshift")
PROFILES = ("full", "restricted")


class Wrong(Exception):
    """A manifest is not as it should be; the text says which and why."""


def documents(text):
    """The objects of a YAML text."""
    return [document for document in yaml.safe_load_all(text) if document]


def name(thing):
    """`Kind name`, for people."""
    metadata = thing["metadata"]
    return f"{thing['kind']} {metadata.get('name') or metadata['generateName']}"


def kustomizations():
    """Every folder that `kubectl apply -k` takes, without the components, which are parts of them."""
    for file in sorted(DAEMONSET.rglob("kustomization.yaml")):
        linked = any(parent.is_symlink() for parent in file.parents)
        if not linked and documents(file.read_text())[0]["kind"] == "Kustomization":
            yield file.parent


def kustomize(folder):
    """The objects of a kustomization."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise Wrong(f"{folder}: {done.stderr.strip()}")
    return documents(done.stdout)
