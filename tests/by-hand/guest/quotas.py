"""What is shown in the guest of project-quota.sh, of each filesystem and method: builds that write beyond their disk. Each
line begins with what it is: `ok`, `NOT` where it is not as it should be, or `saw` for a figure."""

import fcntl
import os
import re
import struct
import subprocess
import sys

import show
from show import Agent, admit, check, failed, prepare, read, repository, run, saw, status, stoker, until, use_of

SIZE = 64 << 20
INODES = 2000
USER = 1000
CONFIG = """
apiVersion: stoker.build/v1
kind: AgentConfig
state: /var/lib/%(name)s
node: {reserve: {cpu: 100m, memory: 128MiB}, rootFloor: {bytes: 0, inodes: 0}, filesystems: []}
pressure: {diskForecast: 0s, hold: 1s}
pools:
  - {name: data, path: %(pool)s, mount: required, floor: {bytes: 1MiB, inodes: 1}}
workspaces: {method: %(method)s, diskLimit: %(limit)s}
sizing: {disk: {bytes: 64MiB, inodes: 2000}}
repositories: {refresh: 24h, protocols: [file], add: on-demand, allow: ["*"]}
listen: {socket: /run/stoker/stoker.sock, http: {address: "127.0.0.1:9418"}}
"""


def project(path):
    """FS_IOC_FSGETXATTR: the project of a directory, and whether it goes on to what is made in it."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = fcntl.ioctl(file, 0x801C581F, bytes(28))
    finally:
        os.close(file)
    flags, _, _, number, _ = struct.unpack("5I8x", found)
    return number, bool(flags & 0x200)


def write(path, mebibytes, user=USER):
    """What dd says that is not its figures, and the bytes that came."""
    own = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    done = run(*own, "dd", "if=/dev/zero", f"of={path}", "bs=64k", f"count={mebibytes * 16}", ok=False)
    said = done.stderr.splitlines()[0] if done.returncode else ""
    return said.split(": ")[-1], os.path.getsize(path)


def is_near(held):
    return SIZE - (4 << 20) <= held <= SIZE


class Build:
    """A lease, its workspace, and a process that it is bound to."""

    def __init__(self, target):
        self.lease = admit("96MiB", target)["id"]
        self.workspace = prepare("--lease", self.lease, "--user", str(USER), "--group", str(USER))
        self.src, self.tmp, self.out = (self.workspace[part] for part in ("src", "tmp", "out"))
        self.project = project(os.path.dirname(self.src))[0]
        self.holder = subprocess.Popen(["sleep", "100000"])
        stoker("lease", "bind", self.lease, "--pid", str(self.holder.pid))

    def reason(self):
        reasons = use_of(self.lease).get("reasons", [])
        return next((one["message"] for one in reasons if one["code"] == "LEASE_OVER_DISK"), "")

    def held(self):
        return int(use_of(self.lease).get("diskBytes") or 0)

    def ends(self):
        stoker("lease", "release", self.lease, "--outcome", "succeeded")
        self.holder.kill()
        self.holder.wait()


def gone(pool, build):
    left = [f"{pool}/stoker/{part}/{build.lease}" for part in ("workspaces", "overlays")]
    return not any(map(os.path.exists, left)) and not os.listdir(f"{pool}/stoker/trash")


def beyond(build, other):
    """One writes as much as it can, the other what it may."""
    for place, name in ((build.src, "src"), (build.tmp, "tmp"), (build.out, "out")):
        said, came = write(f"{place}/large", 100)
        check("quota" in said.lower() or "No space" in said, f"{name}: {came} bytes came, then: {said}")
        check(is_near(came), f"{name}: that is its size")
        until("it is told", build.reason, limit=60)
        saw(f"{name}: LEASE_OVER_DISK: {build.reason()}; it holds {build.held()}")
        if name != "out":
            os.remove(f"{place}/large")
            until("it has room again", lambda: not build.reason(), limit=60)
    said, came = write(f"{other.src}/large", 32)
    check(not said and came == 32 << 20, f"the other build writes meanwhile: {came} bytes {said}")
    os.remove(f"{build.out}/large")


def inodes(build):
    made = 0
    own = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    code = f"import os\nfor n in range({INODES * 2}): os.close(os.open('{build.tmp}/%d' % n, os.O_CREAT | os.O_WRONLY))"
    done = run(*own, "python3", "-c", code, ok=False)
    made = len(os.listdir(build.tmp))
    check(done.returncode and INODES - 100 <= made <= INODES, f"{made} files came: {done.stderr.splitlines()[-1][:80]}")
    run("find", build.tmp, "-mindepth", "1", "-delete")


def part(name, pool, method):
    config = CONFIG % {"name": name, "pool": pool, "method": method, "limit": "auto"}
    agent = Agent(name, config=config)
    made = status().get("workspaces", {})
    check(made.get("diskQuota") and method in made.get("method", "").lower(), f"status: {made}")
    build, other = Build("one"), Build("two")
    check(build.project != other.project, f"projects {build.project}, {other.project}")
    marked = [build.src, build.tmp, build.out]
    if method == "overlay":
        beside = f"{pool}/stoker/overlays/{build.lease}"
        marked = [build.tmp, build.out, f"{beside}/upper", f"{beside}/work"]
        check(project(f"{beside}/git") == (0, False), "the layer of objects is of no project")
    check(all(project(path) == (build.project, True) for path in marked), "what it writes to is of its project")
    free = [f"{pool}/stoker/{place}" for place in ("checkouts", "caches", "trash", "repositories", "workspaces")]
    free = [path for path in free if os.path.isdir(path)]
    check(all(project(path) == (0, False) for path in free), f"of none: {len(free)} folders that are shared")
    clean = run("git", "-C", build.src, "status", "--porcelain").stdout
    check(not clean, "git status is clean")
    beyond(build, other)
    inodes(build)
    if method != "overlay":
        write(f"{build.tmp}/moved", 1)
        os.rename(f"{build.tmp}/moved", f"{build.src}/moved")
        check(True, "a rename from tmp to src")

    # Killed, and started again.
    agent.process.kill()
    agent.process.wait()
    said, came = write(f"{build.src}/away", 100)
    check(is_near(came) or said, f"without an agent: {came} bytes came, then: {said}")
    agent = Agent(f"{name}-again", config=config)
    until("it is measured", lambda: is_near(build.held()), limit=60)
    third = Build("three")
    check(third.project not in (build.project, other.project), f"after a restart: project {third.project} for the next")
    write(f"{third.out}/kept", 8)
    for one in (build, other, third):
        one.ends()
        until("its workspace is gone", lambda: gone(pool, one), limit=120)
    check(True, "all workspaces are gone, and the trash is empty")
    outputs = stoker("output", "list").get("outputs", [])
    kept = [int(one["bytes"]) for one in outputs if one["leaseId"] == third.lease]
    check(kept == [8 << 20], f"what was in its out is kept: {kept} bytes")
    report = run("xfs_quota", "-x", "-f", "-c", "report -pnN", pool, ok=False).stdout.splitlines()
    saw(f"the quota's own report: {[' '.join(line.split()) for line in report if line.strip()]}")
    agent.ends()


def watched(name, pool):
    """The switch turns it off."""
    agent = Agent(f"{name}-watched", config=CONFIG % {"name": name, "pool": pool, "method": "auto", "limit": "watch"})
    made = status().get("workspaces", {})
    check(not made.get("diskQuota") and made.get("diskQuotaReason") == "configured", f"status: {made}")
    agent.ends()


def unlimited(name, pool):
    """Mounted without quotas, it says so."""
    run("umount", pool)
    run("mount", "-t", "xfs", "/dev/vdb", pool)
    agent = Agent(f"{name}-off", config=CONFIG % {"name": name, "pool": pool, "method": "auto", "limit": "auto"})
    made = status().get("workspaces", {})
    check(not made.get("diskQuota"), f"mounted without prjquota: {made.get('diskQuotaReason')}")
    agent.ends()


def main():
    print(f"--- {os.uname().release}, {run('stoker', '--version').stdout.strip()}", flush=True)
    run("git", "config", "--global", "--replace-all", "safe.directory", "*")
    repository("one", 200, 20_000)
    os.makedirs("/second")
    run("mount", "-t", "ext4", "-o", "prjquota", "/dev/vdc", "/second")
    for line in read("/proc/mounts").splitlines():
        if line.split()[1] in ("/pool", "/second"):
            saw(line)
    steps = {
        "xfs-overlay": lambda: part("xfs-overlay", "/pool", "overlay"),
        "xfs-reflink": lambda: part("xfs-reflink", "/pool", "reflink"),
        "xfs-checkout": lambda: part("xfs-checkout", "/pool", "checkout"),
        "ext4-overlay": lambda: part("ext4-overlay", "/second", "overlay"),
        "ext4-checkout": lambda: part("ext4-checkout", "/second", "checkout"),
        "watched": lambda: watched("xfs-overlay", "/pool"),
        "off": lambda: unlimited("xfs-overlay", "/pool"),
    }
    only = re.search(r"\bonly=(\S+)", read("/proc/cmdline"))
    for name, step in steps.items():
        if only and name not in only.group(1).split(","):
            continue
        print(f"--- {name}", flush=True)
        before = len(failed)
        show.attempt(step)
        if len(failed) > before:
            for log in sorted(os.listdir("/var/log")):
                if log.startswith(name):
                    print(f"--- the log of {log}\n" + read(f"/var/log/{log}")[-4000:])
            run("bash", "-c", "kill -9 $(pidof stoker) || true")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
