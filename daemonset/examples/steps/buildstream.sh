#!/bin/sh
# Writes $CONFIGURATION, a BuildStream user configuration: with the node's cache as a mirror where it answers, else
# without. BuildStream tries mirrors first, then the alias itself; it speaks smart HTTP only, and knows no `insteadOf`.
#
#   CONFIGURATION    the file, for `bst --config`
#   PROJECT_NAME     the `name` in the project.conf
#   ALIASES          the project's aliases that are git hosts, one `alias=host/` a word: `github=github.com/`
set -eu
. "$(dirname "$0")/agent.sh"

{
    # Sources and artifacts below the build's own folders, not in a home.
    printf 'cachedir: %s\n' "${BST_CACHE:-/cache}"
    if answers; then
        printf 'projects:\n  %s:\n    mirrors:\n    - name: stoker\n      aliases:\n' "$PROJECT_NAME"
        for alias in $ALIASES; do
            printf '        %s: ["%s/git/%s"]\n' "${alias%%=*}" "$STOKER_HTTP" "${alias#*=}"
        done
    fi
} >"$CONFIGURATION"
