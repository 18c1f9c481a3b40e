#!/bin/sh
# Writes to $CONTEXT the URL that BuildKit takes a build's files from: it knows no `insteadOf`, so it is told where the
# node's cache has the repository, or upstream where it does not answer.
#
#   REPO, COMMIT    the upstream's URL, and a full commit id
#   CONTEXT         the file
set -eu
. "$(dirname "$0")/agent.sh"

# By `.git` BuildKit tells a repository from a file.
url=${REPO%.git}.git
if answers && cached=$(at_the_agent "$url"); then url=$cached; fi
printf '%s#%s' "$url" "$COMMIT" >"$CONTEXT"
