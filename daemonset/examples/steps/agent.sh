# For the other steps, which begin with `. agent.sh`: the way to the agent of this node, within seconds or not at all.
# shellcheck shell=sh

# The Service `stoker` leads each pod to its own node's agent. Where that is not ready, packets are dropped: who
# connects without a limit waits for minutes.
STOKER_HTTP="${STOKER_HTTP:-http://stoker.stoker.svc:9418}"

# Whether it answers.
answers() {
    if command -v curl >/dev/null; then
        curl -fsS -o /dev/null --connect-timeout 1 --max-time 3 "$STOKER_HTTP/livez" 2>/dev/null
    else
        timeout 3 wget -q -O /dev/null "$STOKER_HTTP/livez" 2>/dev/null
    fi
}

# The URL of a repository at the agent, to be tried first. What it does not keep, it redirects to upstream.
at_the_agent() {
    case "$1" in
        https://*) printf '%s/git/or-upstream:/%s\n' "$STOKER_HTTP" "${1#https://}" ;;
        http://*) printf '%s/git/or-upstream:/http:/%s\n' "$STOKER_HTTP" "${1#http://}" ;;
        *) return 1 ;;
    esac
}

# `branch main`, `pr 152`, `sha 94c9...` as git says it; HEAD without.
git_ref() {
    case "$1" in
        branch) printf 'refs/heads/%s\n' "$2" ;;
        tag) printf 'refs/tags/%s\n' "$2" ;;
        # As GitHub, Gitea and Forgejo have it; GitLab: refs/merge-requests/N/head.
        pr) printf 'refs/pull/%s/head\n' "$2" ;;
        sha) printf '%s\n' "$2" ;;
        '' | head) echo HEAD ;;
        *)
            echo "REF_TYPE is '$1': it must be branch, tag, pr, sha or head" >&2
            return 64
            ;;
    esac
}
