"""Objects against the schemas of recent Kubernetes versions: strictly, an unknown field is an error."""

import json

import kubernetes_validate

from objects import Wrong, name

VERSIONS = ("1.35", "1.36", "1.37")
# Kinds that Kubernetes does not define, skipped on purpose: their owners publish no schema as a package. What is of
# Kubernetes in them (containers, volumes, pods) is validated as such, see `examples.py`.
SKIPPED = {
    "security.openshift.io/v1 SecurityContextConstraints",
    "argoproj.io/v1alpha1 WorkflowTemplate",
    "tekton.dev/v1 Task",
    "tekton.dev/v1 TaskRun",
}
# What is younger than the oldest version.
SINCE = {
    "admissionregistration.k8s.io/v1 MutatingAdmissionPolicy": "1.36",
    "admissionregistration.k8s.io/v1 MutatingAdmissionPolicyBinding": "1.36",
}


class Validator:
    """Validates each different object once a version."""

    def __init__(self):
        self.seen = set()
        self.validated = 0
        self.skipped = set()

    def validate(self, thing, source):
        """Raises `Wrong` where a version refuses the object."""
        text = json.dumps(thing, sort_keys=True)
        if text in self.seen:
            return
        self.seen.add(text)
        kind = f"{thing['apiVersion']} {thing['kind']}"
        if kind in SKIPPED:
            self.skipped.add(kind)
            return
        for version in VERSIONS[VERSIONS.index(SINCE.get(kind, VERSIONS[0])) :]:
            try:
                kubernetes_validate.validate(thing, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError as error:
                raise Wrong(f"{source}: {name(thing)}: {error.message}") from error
            except kubernetes_validate.ValidationError as error:
                where = "/".join(str(part) for part in error.absolute_path)
                raise Wrong(f"{source}: {name(thing)}: Kubernetes {version}: {where}: {error.message}") from error
        self.validated += 1
