#!/usr/bin/env bash
# Shows that builds are kept within their disk by project quotas, on XFS and on ext4: in a virtual machine with a stock kernel
# of Debian, for many kernels have no quotas. By hand, for it takes an emulator and some minutes. What it shows, and what it
# gave: docs/workspaces.md.
#
#   tests/by-hand/project-quota.sh FOLDER [BIN]
#
# FOLDER, BIN and what it needs: as cgroup-v2.sh. APPEND="only=xfs-overlay" shows that part alone.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mkdir -p "${1:?a folder for images and logs}" && cd "$1" && pwd)
bin=$(cd "${2:-$here/../../target/debug}" && pwd)
show=quotas.py
source "$here/guest/machine.sh"
