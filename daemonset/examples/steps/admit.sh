#!/bin/sh
# Asks the agent of this node, by its socket, for room for one build, and waits in its queue; with FLEET all agents, over
# the network, and waits on the best three. In $RESULT stands then, one file each: `lease`, `node`, `commit`, `address`
# (of that node's agent, with FLEET), and `workspace`, the folder with the sources where WORKSPACE=yes. Where no agent
# answers, or it refuses this pod, it says which, all but `commit` are empty, and the build goes on without: sources come
# from upstream, and nobody but the scheduler holds room for it. Exits with 1 where the build can never fit.
#
#   FLEET                                     NAME:PORT of all agents, where the build may run on any node
#   STOKER_CA_FILE                            who vouches for agents over the network: without it no token goes there
#   STOKER_TOKEN_FILE                         a token of the pod's service account: from a pod nobody is let in without
#   REPO, REF_TYPE, REF_VALUE                 the source: branch, tag, pr or sha, and its name
#   REQUEST_ID                                the same id is the same request: a retried step gets the same lease
#   CPU, MEMORY, DISK, TIME                   what it needs (4, 8GiB, 20GiB, 1h); else its build spec, its history
#   TENANT, PROJECT, BRANCH                   who it is for
#   NAMESPACE, SERVICE_ACCOUNT                whose pod may have the lease
#   REBIND                                    same-owner: when that pod is gone, the next one of its workflow; else never
#   USER_ID, GROUP_ID                         who the workspace belongs to; root without
set -eu
. "$(dirname "$0")/agent.sh"

ref=$(git_ref "${REF_TYPE:-}" "${REF_VALUE:-}")
mkdir -p "$RESULT"
for name in lease node commit address workspace; do : >"$RESULT/$name"; done

# The build goes on with what upstream has.
without_lease() {
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
}

# The command asks the fleet with limits of its own, and says what came of it.
if [ -z "${FLEET:-}" ]; then
    code=0
    told=$(timeout 10 stoker status 2>&1 >/dev/null) || code=$?
    case "$code:$told" in
        0:*) ;;
        *'Permission denied'*)
            printf '%s\n' "$told" >&2
            echo "admission: this pod may not open the agent's socket, see above: the build goes on without a lease" >&2
            without_lease
            ;;
        124:* | *'no agent answers'*)
            echo "admission: no agent answers on this node: the build goes on without a lease" >&2
            without_lease
            ;;
        *CREDENTIAL_* | *ACCESS_DENIED*)
            printf '%s\n' "$told" >&2
            echo "admission: the agent refuses this pod, see above: the build goes on without a lease" >&2
            without_lease
            ;;
        *)
            printf '%s\n' "$told" >&2
            echo "admission: this pod cannot ask the agent, see above: the build goes on without a lease" >&2
            without_lease
            ;;
    esac
fi

case "${REF_TYPE:-}" in
    '' | head) source='head' ;;
    *) source="$REF_TYPE:$REF_VALUE" ;;
esac
set -- --repo "$REPO" --ref "$source" --request-id "$REQUEST_ID" --wait --bind-within 30m -o env
[ -z "${FLEET:-}" ] || set -- "$@" --fleet "$FLEET"
[ -z "${CPU:-}" ] || set -- "$@" --cpu "$CPU"
[ -z "${MEMORY:-}" ] || set -- "$@" --memory "$MEMORY"
[ -z "${DISK:-}" ] || set -- "$@" --disk "$DISK"
[ -z "${TIME:-}" ] || set -- "$@" --time "$TIME"
[ -z "${TENANT:-}" ] || set -- "$@" --tenant "$TENANT"
[ -z "${PROJECT:-}" ] || set -- "$@" --project "$PROJECT"
[ -z "${BRANCH:-}" ] || set -- "$@" --branch "$BRANCH"
if [ -n "${NAMESPACE:-}" ] && [ -n "${SERVICE_ACCOUNT:-}" ]; then
    set -- "$@" --owner "$NAMESPACE/$SERVICE_ACCOUNT" --rebind "${REBIND:-never}"
fi
code=0
granted=$(stoker lease admit "$@") || code=$?
case "$code" in
    0) eval "$granted" ;;
    2)
        echo "admission: ${FLEET:-the agent} gave no answer about this build, see above: it goes on without a lease" >&2
        without_lease
        ;;
    *) exit "$code" ;;
esac
printf '%s' "$STOKER_LEASE" >"$RESULT/lease"
printf '%s' "$STOKER_NODE" >"$RESULT/node"
printf '%s' "$STOKER_COMMIT" >"$RESULT/commit"
if [ -n "${FLEET:-}" ]; then
    export STOKER_ADDRESS STOKER_SERVER_NAME
    printf '%s' "$STOKER_ADDRESS" >"$RESULT/address"
fi

if [ "${WORKSPACE:-no}" = yes ]; then
    prepared=$(stoker workspace prepare --lease "$STOKER_LEASE" \
        --user "${USER_ID:-0}" --group "${GROUP_ID:-0}" -o json)
    printf '%s\n' "$prepared" | sed -n 's|^ *"src": "\(.*\)/src",*$|\1|p' | head -n 1 | tr -d '\n' >"$RESULT/workspace"
fi
