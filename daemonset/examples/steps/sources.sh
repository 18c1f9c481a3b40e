#!/bin/sh
# The files of one commit in $SRC, from the node's cache where it answers, else from upstream.
#
#   REPO                  the upstream's URL
#   COMMIT                the commit, where an earlier step has resolved it; else
#   REF_TYPE, REF_VALUE   branch, tag, pr or sha, and its name; the upstream's HEAD without
#   SRC                   an empty or missing folder
#   DEPTH                 how much history; 1 without, `full` for all of it
set -eu
. "$(dirname "$0")/agent.sh"

ref=${COMMIT:-$(git_ref "${REF_TYPE:-}" "${REF_VALUE:-}")}
set -- --quiet --no-tags
if [ "${DEPTH:-1}" != full ]; then
    set -- "$@" --depth "${DEPTH:-1}"
fi

git init --quiet "$SRC"
git -C "$SRC" remote add origin "$REPO"
if answers && url=$(at_the_agent "$REPO") && git -C "$SRC" fetch "$@" -- "$url" "$ref"; then
    echo "sources: from this node's cache" >&2
else
    echo "sources: from upstream" >&2
    git -C "$SRC" fetch "$@" -- origin "$ref"
fi
git -C "$SRC" checkout --quiet --detach FETCH_HEAD
