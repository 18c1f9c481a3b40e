"""All that `.ci/run manifests` checks without a cluster; prints what it was."""

import sys

import examples
import helm
import policy
from objects import ROOT, Wrong, kustomizations, kustomize
from validate import VERSIONS, Validator


def main():
    validator = Validator()
    folders = list(kustomizations())
    for folder in folders:
        things = kustomize(folder)
        for thing in things:
            validator.validate(thing, folder.relative_to(ROOT))
        print(f"{folder.relative_to(ROOT)}: {len(things)} objects")
    helm.check(validator)
    examples.check(validator)
    print(f"policies: {policy.check()} requests judged as they should be")
    print(f"{validator.validated} different objects are valid for Kubernetes {', '.join(VERSIONS)}")
    print(f"no schema for: {', '.join(sorted(validator.skipped))}")


if __name__ == "__main__":
    try:
        main()
    except Wrong as wrong:
        sys.exit(f"wrong: {wrong}")
