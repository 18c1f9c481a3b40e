#!/usr/bin/env bash
# Shows the agent on a machine with nothing but cgroup v2: a virtual one, with a stock kernel of Debian. By hand, for it
# takes an emulator and a quarter of an hour. What it shows, and what it gave: docs/pressure.md.
#
#   tests/by-hand/cgroup-v2.sh FOLDER [BIN]
#
# FOLDER gets packages, images and the logs (3 GB); what is there already is not made again. BIN has `stoker` and
# `stoker-git` (default: target/debug). KERNEL names the package of the kernel (default: what linux-image-cloud-amd64
# stands for), RELEASE the release of Debian that has it (default: bookworm; the 6.12 of bookworm-backports panics while
# it boots in QEMU 7.2).
#
# APPEND="only=23" shows those parts alone (1 the use of a lease, 2 its limit, 3 stalls, 4 reboots). The guest is
# emulated: what it says of time is that of a slow machine.
#
# Needs root (debootstrap), and qemu-system-x86, debootstrap, cpio, xz-utils, e2fsprogs, xfsprogs. It mounts nothing here,
# installs no kernel here, and the guest has no network.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mkdir -p "${1:?a folder for images and logs}" && cd "$1" && pwd)
bin=$(cd "${2:-$here/../../target/debug}" && pwd)
show=show.py
source "$here/guest/machine.sh"
