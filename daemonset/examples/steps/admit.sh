#!/bin/sh
# Asks the agent of this node, by its socket, for room for one build, and waits in its queue. In $RESULT stands then,
# one file each: `lease`, `node`, `commit`, and `workspace`, the folder with the sources where WORKSPACE=yes. Where no
# agent answers, all but `commit` are empty, and the build goes on without: sources come from upstream, and nobody but
# the scheduler holds room for it. Exits with 1 where the build can never fit.
#
#   REPO, REF_TYPE, REF_VALUE                 the source: branch, tag, pr or sha, and its name
#   REQUEST_ID                                the same id is the same request: a retried step gets the same lease
#   CPU, MEMORY, DISK, TIME                   what it needs (4, 8GiB, 20GiB, 1h); else its build spec, its history
#   TENANT, PROJECT, BRANCH                   who it is for
#   USER_ID, GROUP_ID                         who the workspace belongs to; root without
set -eu
. "$(dirname "$0")/agent.sh"

ref=$(git_ref "${REF_TYPE:-}" "${REF_VALUE:-}")
mkdir -p "$RESULT"
for name in lease node commit workspace; do : >"$RESULT/$name"; done

if ! timeout 10 stoker status >/dev/null 2>&1; then
    echo "admission: no agent answers on this node" >&2
    case "${REF_TYPE:-}" in
        sha) commit=$REF_VALUE ;;
        *)
            # Lines of other refs that end like it come too.
            listed=$(git ls-remote "$REPO" "$ref")
            commit=$(printf '%s\n' "$listed" | awk -v ref="$ref" '$2 == ref { print $1; exit }')
            ;;
    esac
    if [ -z "$commit" ]; then
        echo "admission: $REPO has no $ref" >&2
        exit 2
    fi
    printf '%s' "$commit" >"$RESULT/commit"
    exit 0
fi

case "${REF_TYPE:-}" in
    '' | head) source='head' ;;
    *) source="$REF_TYPE:$REF_VALUE" ;;
esac
set -- --repo "$REPO" --ref "$source" --request-id "$REQUEST_ID" --wait --bind-within 30m -o env
[ -z "${CPU:-}" ] || set -- "$@" --cpu "$CPU"
[ -z "${MEMORY:-}" ] || set -- "$@" --memory "$MEMORY"
[ -z "${DISK:-}" ] || set -- "$@" --disk "$DISK"
[ -z "${TIME:-}" ] || set -- "$@" --time "$TIME"
[ -z "${TENANT:-}" ] || set -- "$@" --tenant "$TENANT"
[ -z "${PROJECT:-}" ] || set -- "$@" --project "$PROJECT"
[ -z "${BRANCH:-}" ] || set -- "$@" --branch "$BRANCH"
granted=$(stoker lease admit "$@")
eval "$granted"
printf '%s' "$STOKER_LEASE" >"$RESULT/lease"
printf '%s' "$STOKER_NODE" >"$RESULT/node"
printf '%s' "$STOKER_COMMIT" >"$RESULT/commit"

if [ "${WORKSPACE:-no}" = yes ]; then
    prepared=$(stoker workspace prepare --lease "$STOKER_LEASE" \
        --user "${USER_ID:-0}" --group "${GROUP_ID:-0}" -o json)
    printf '%s\n' "$prepared" | sed -n 's|^ *"src": "\(.*\)/src",*$|\1|p' | head -n 1 | tr -d '\n' >"$RESULT/workspace"
fi
