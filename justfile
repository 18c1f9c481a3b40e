# The steps of CI, one by one; what they do stands in .ci/run.

# All of them, as CI does.
ci:
    .ci/run

# What is not formatted.
fmt:
    .ci/run fmt

# Lints, all of them errors.
clippy:
    .ci/run clippy

# The evaluator of build specs in Nickel, and its tests.
nickel:
    .ci/run nickel

# All tests. Those that mount filesystems need root.
test:
    .ci/run test

# A part of them once more, with git in a helper.
helper:
    .ci/run helper

# The numbers of docs/numbers.md, by a release build: `just bench --quick`, `just bench --check evaluate admit`.
bench *args:
    cargo bench --bench numbers -- {{args}}

# The documentation, its warnings errors.
doc:
    .ci/run doc

# The manifests, rendered.
manifests:
    .ci/run manifests

# Licences, advisories, bans: needs cargo-deny.
deny:
    cargo deny check

# Records additions to the messages and services.
descriptor:
    UPDATE_DESCRIPTOR=1 cargo test -p stoker-proto
