#!/bin/sh
# Ends the lease and says how the build ended, so that the next one is sized by it. It never fails: a lease that is not
# released ends with its pod, or by its time.
#
#   STOKER_TOKEN_FILE    as for admit.sh
#   STOKER_ADDRESS       the file `address` of admit.sh, where this step may run on another node than the build; with it
#                        STOKER_CA_FILE, and STOKER_SERVER_NAME: the name in FLEET
#   LEASE                empty: there is none, and nothing to do
#   EXIT_CODE            the build's, where it is known
#   OUTCOME              succeeded or failed, where it is not
set -eu
[ -n "${LEASE:-}" ] || exit 0
case "${EXIT_CODE:-}" in
    '' | *[!0-9]*) set -- --outcome "${OUTCOME:-failed}" ;;
    *) set -- --exit-code "$EXIT_CODE" ;;
esac
stoker lease release "$LEASE" "$@" || echo "lease $LEASE was not released: it ends with its pod, or by its time" >&2
