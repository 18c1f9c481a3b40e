#!/bin/sh
# Ties the lease to this pod: from now on the lease ends when the pod does, whatever becomes of the workflow. A lease
# that no pod was tied to ends by itself (`--bind-within` of admit.sh). Where the agent refuses, it says why and does not
# fail: the build goes on.
#
#   STOKER_TOKEN_FILE               as for admit.sh
#   LEASE                           empty: there is none, and nothing to do
#   NAMESPACE, POD_NAME, POD_UID    this pod
set -eu
[ -n "${LEASE:-}" ] || exit 0
stoker lease bind "$LEASE" --pod "$NAMESPACE/$POD_NAME" --uid "$POD_UID" >/dev/null ||
    echo "lease $LEASE is not tied to this pod: it ends by its release, or by its time" >&2
