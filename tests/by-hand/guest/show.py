"""What is shown in the guest of cgroup-v2.sh: first boot, power cut, second boot. Each line begins with what it is:
`ok`, `NOT` where it is not as it should be, or `saw` for a figure."""

import datetime
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

GROUPS = "/sys/fs/cgroup"
POOL = "/pool/stoker"
MIB = 1 << 20
STATE = "/var/lib/by-hand.json"
CONFIG = """
apiVersion: stoker.build/v1
kind: AgentConfig
state: /var/lib/stoker
node: {reserve: {cpu: 100m, memory: 128MiB}, rootFloor: {bytes: 0, inodes: 0}, filesystems: []}
pressure: {diskForecast: 0s, hold: 1s%s}
pools:
  - {name: data, path: /pool, mount: required, floor: {bytes: 1MiB, inodes: 1}}
sizing: {ladder: [{cpu: 1, memory: 96MiB}, {cpu: 1, memory: 224MiB}, {cpu: 2, memory: 480MiB}]}
repositories: {refresh: 24h, protocols: [file], add: on-demand, allow: ["*"]}
listen: {socket: /run/stoker/stoker.sock, http: {address: "127.0.0.1:9418"}}
"""
failed = []


def saw(text):
    print("saw ", text, flush=True)


def check(holds, text):
    print("ok  " if holds else "NOT ", text, flush=True)
    if not holds:
        failed.append(text)
    return holds


def read(path, default=""):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return default


def write(path, text):
    with open(path, "w") as file:
        file.write(str(text))


def fields(text):
    return {line.split()[0]: int(line.split()[1]) for line in text.splitlines() if len(line.split()) == 2}


def until(what, holds, limit=120, every=0.2):
    end = time.time() + limit
    while time.time() < end:
        found = holds()
        if found:
            return found
        time.sleep(every)
    check(False, f"in time: {what}")
    raise TimeoutError(what)


def run(*command, ok=True):
    done = subprocess.run(command, capture_output=True, text=True)
    if ok and done.returncode:
        raise RuntimeError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def stoker(*arguments, ok=True, socket="/run/stoker/stoker.sock"):
    done = run("stoker", *arguments, "--socket", socket, "-o", "json", ok=ok)
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {"exit": done.returncode, "text": done.stdout + done.stderr}


def get(path, port=9418):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        data = b""
        while part := connection.recv(1 << 16):
            data += part
    return int(data.split()[1]), data.decode(errors="replace")


def is_ready(port=9418):
    try:
        return get("/readyz", port)[0] == 200
    except OSError:
        return False


class Agent:
    def __init__(self, name="agent", prefix=(), config=CONFIG % "", port=9418, log="/var/log"):
        self.file, self.log, self.port = f"/run/{name}.yaml", f"{log}/{name}.log", port
        write(self.file, config)
        os.makedirs("/run/stoker", exist_ok=True)
        out = open(self.log, "w")
        self.began = time.time()
        command = [*prefix, "stoker", "agent", "--config", self.file, "--log", "json"]
        self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            until("the agent is ready", lambda: is_ready(port), every=0.02)
        except TimeoutError:
            print(read(self.log)[-6000:])
            raise
        saw(f"{name} ready after {time.time() - self.began:.1f} s")

    def ends(self):
        self.process.terminate()
        self.process.wait(60)


def status(**other):
    found = stoker("status", **other)
    return found.get("status", found)


def use_of(lease):
    return next((use for use in status().get("leaseUse", []) if use["leaseId"] == lease), {})


def group(name, limits):
    path = f"{GROUPS}/{name}"
    os.makedirs(path, exist_ok=True)
    for file, value in limits.items():
        write(f"{path}/{file}", value)
    return path


def into(path, program, *arguments):
    """A process that is in the group before it is anything else."""
    enter = 'echo $$ > "$0/cgroup.procs"; exec python3 -c "$@"'
    return subprocess.Popen(["bash", "-c", enter, path, program, *arguments])


def lease_of(answer):
    return answer.get("granted", {}).get("lease") or answer.get("lease") or answer.get("granted")


def admit(memory, target):
    """Each target has a history of its own: what one used makes no other's lease larger."""
    answer = stoker(
        "lease",
        "admit",
        "--repo",
        "file:///srv/one.git",
        "--cpu",
        "500m",
        "--memory",
        memory,
        "--disk",
        "64MiB",
        "--target",
        target,
        "--wait",
    )
    lease = lease_of(answer)
    if not lease:
        raise RuntimeError(answer)
    return lease


def released(lease):
    answer = stoker("lease", "release", lease, "--outcome", "failed", "--exit-code", "137")
    return answer.get("lease", answer)


def size(lease):
    return int(lease["sizing"]["size"]["memoryBytes"])


# 1 -----------------------------------------------------------------------------------------------------------------

USES = r"""
import os, sys, time
go = sys.argv[1]
while not os.path.exists(go): time.sleep(0.05)
child = os.fork()
if child == 0:
    time.sleep(10000)
anonymous = bytearray(b"x" * (120 << 20))
with open("/dev/shm/shared", "wb") as file: file.write(b"y" * (24 << 20))
with open("/pool/written", "wb") as file:
    file.write(os.urandom(1 << 20) * 48)
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
with open("/pool/written", "rb", buffering=0) as file:
    while file.read(1 << 20): pass
end = time.process_time() + 4
while time.process_time() < end: pass
open(go + ".done", "w").close()
while not os.path.exists(go + ".less"): time.sleep(0.05)
del anonymous
open(go + ".small", "w").close()
time.sleep(10000)
"""


def of_kernel(path):
    stat = fields(read(f"{path}/memory.stat"))
    traffic = {"rbytes": 0, "wbytes": 0}
    for name, value in re.findall(r"(rbytes|wbytes)=(\d+)", read(f"{path}/io.stat")):
        traffic[name] += int(value)
    swapped = int(read(f"{path}/memory.swap.current", "0") or 0)
    return {
        "memory": int(read(f"{path}/memory.current")) - stat["inactive_file"] + swapped,
        "current": int(read(f"{path}/memory.current")),
        "inactive_file": stat["inactive_file"],
        "shmem": stat["shmem"],
        "anon": stat["anon"],
        "peak": int(read(f"{path}/memory.peak", "0") or 0),
        "cpu": fields(read(f"{path}/cpu.stat"))["usage_usec"] / 1e6,
        "processes": int(read(f"{path}/pids.current")),
        **traffic,
        "oom_kill": fields(read(f"{path}/memory.events"))["oom_kill"],
    }


def fields_of(text, *names):
    return {line.split(":")[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.split(":")[0] in names}


def seconds(text):
    return float(str(text or "0").rstrip("s"))


def looked_at(use):
    text = use.get("observedAt")
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else 0


def uses(name, path, bind):
    go = f"/run/go-{name}"
    lease = admit("480MiB", "uses")["id"]
    holder = into(path, USES, go)
    stoker("lease", "bind", lease, *bind(holder))
    until("it is looked at", lambda: use_of(lease).get("source"))
    write(go, "")
    until("it has used what it uses", lambda: os.path.exists(go + ".done"), limit=300)
    # Both sides twice, until nothing moved between: the agent's look lies between two of the kernel's.
    end = time.time() + 60
    while True:
        one = of_kernel(path)
        at = time.time()
        # Looks come up to 15 s apart on a slow machine.
        until("it was looked at since", lambda: looked_at(use_of(lease)) > at + 1)
        seen, two = use_of(lease), of_kernel(path)
        if abs(one["memory"] - two["memory"]) < MIB and abs(one["cpu"] - two["cpu"]) < 0.5 or time.time() > end:
            break
    peak = seen.get("peak", {})
    number = lambda key: int(seen.get(key, 0))
    saw(f"{name}: kernel {one}")
    saw(f"{name}: agent {json.dumps(seen)}")
    check(
        seen.get("source") == "cgroup" and seen.get("cgroup") == path[len(GROUPS) + 1 :],
        f"{name}: found as {seen.get('cgroup')}",
    )
    check(
        abs(number("memoryBytes") - one["memory"]) <= MIB,
        f"{name}: memory {number('memoryBytes')}, the kernel's current less inactive_file {one['memory']} "
        f"(current {one['current']}, inactive_file {one['inactive_file']}, anon {one['anon']}, shmem {one['shmem']})",
    )
    check(
        number("ioReadBytes") == two["rbytes"] and number("ioWrittenBytes") == two["wbytes"],
        f"{name}: read {number('ioReadBytes')}, written {number('ioWrittenBytes')}; "
        f"io.stat {two['rbytes']} and {two['wbytes']}",
    )
    cpu = seconds(peak.get("cpuTime"))
    check(
        abs(cpu - two["cpu"]) < 0.1,
        f"{name}: CPU time {cpu:.2f} s, cpu.stat {two['cpu']:.2f} s (peak {peak.get('cpuMillisPeak')} millis)",
    )
    check(
        int(peak.get("processesPeak", 0)) == two["processes"],
        f"{name}: processes {peak.get('processesPeak')}, pids.current {two['processes']}",
    )
    check(number("memoryBytesLimit") == int(read(f"{path}/memory.max")), f"{name}: limit {number('memoryBytesLimit')}")
    write(go + ".less", "")
    until("it gave memory back", lambda: os.path.exists(go + ".small"))
    at = time.time()
    until("it was looked at since", lambda: looked_at(use_of(lease)) > at + 1)
    seen, now = use_of(lease), of_kernel(path)
    highest = int(seen["peak"]["memoryBytesPeak"])
    check(
        abs(int(seen["memoryBytes"]) - now["memory"]) <= MIB,
        f"{name}: given back: {seen['memoryBytes']}, kernel {now['memory']}",
    )
    check(
        one["memory"] - MIB <= highest <= now["peak"],
        f"{name}: peak {highest}: before {one['memory']}, memory.peak with cache {now['peak']}",
    )
    ended = stoker("lease", "release", lease, "--outcome", "succeeded", "--exit-code", "0")
    ended = ended.get("lease", ended)
    check(int(ended["peak"]["memoryBytesPeak"]) == highest, f"{name}: the lease ended with this peak")
    write(f"{path}/cgroup.kill", 1)
    holder.wait()
    os.remove("/dev/shm/shared")
    os.remove("/pool/written")


# 2 -----------------------------------------------------------------------------------------------------------------

GROWS = r"""
import os, sys, time
while not os.path.exists(sys.argv[1]): time.sleep(0.05)
if os.fork() == 0:
    more = bytearray()
    while True: more += b"b" * (4 << 20)
os.wait()
time.sleep(10000)
"""


def outgrows(lease, path, bind, watched=None, whole=False, at_once=False):
    """A child of the holder fills memory until the kernel ends it (all of the group, where `whole`). The lease ends
    when the agent counted that; or `at_once`, before it had to look again."""
    go = f"/run/go-{lease['id']}"
    holder = into(path, GROWS, go)
    stoker("lease", "bind", lease["id"], *bind(holder))
    until("it is looked at", lambda: use_of(lease["id"]).get("source") == "cgroup")
    saw(f"  limit as seen {use_of(lease['id']).get('memoryBytesLimit')}, lease {size(lease)}")
    write(go, "")
    events = f"{watched or path}/memory.events"
    until("the kernel kills", lambda: fields(read(events))["oom_kill"] > 0)
    killed = time.time()
    if at_once:
        ended = released(lease["id"])
        write(f"{path}/cgroup.kill", 1)
        holder.wait()
        return ended
    seen = until(
        "the agent counts the kill", lambda: (lambda use: int(use.get("oomKills", 0)) > 0 and use)(use_of(lease["id"]))
    )
    own = fields(read(events))
    saw(
        f"  memory.events oom {own['oom']} oom_kill {own['oom_kill']}; agent kills {seen.get('oomKills')} at limit "
        f"{seen.get('oomAtLimit')}, {time.time() - killed:.1f} s later"
    )
    check(
        int(seen["oomKills"]) == own["oom_kill"] and int(seen.get("oomAtLimit", 0)) == own["oom"],
        "kills are counted as the kernel does",
    )
    if whole:
        until("all of it is gone", lambda: holder.poll() is not None)
    ended = released(lease["id"])
    write(f"{path}/cgroup.kill", 1)
    holder.wait()
    return ended


def own_limit():
    by_pid = lambda holder: ("--pid", str(holder.pid))
    first = admit("96MiB", "grows")
    ended = outgrows(first, group("small", {"memory.max": size(first)}), by_pid)
    advice = ended.get("retry", {})
    check(ended.get("outcome") == "OUTCOME_OUT_OF_MEMORY_LIMIT", f"first: {ended.get('outcome')}")
    step = int(advice.get("size", {}).get("memoryBytes", 0))
    check(advice.get("allowed") is True and step == 224 * MIB, f"first: a retry with {step // MIB} MiB")
    again = stoker("lease", "admit", "--repo", "file:///srv/one.git", "--retry-of", first["id"], "--wait")
    second = lease_of(again)
    check(
        size(second) == 224 * MIB and second.get("attempt") == 2,
        f"second: {size(second) // MIB} MiB, attempt {second.get('attempt')}",
    )
    ended = outgrows(second, group("large", {"memory.max": size(second)}), by_pid)
    codes = [reason.get("code") for reason in ended.get("retry", {}).get("reasons", [])]
    check(ended.get("outcome") == "OUTCOME_OUT_OF_MEMORY_LIMIT", f"second: {ended.get('outcome')}")
    check(not ended.get("retry", {}).get("allowed") and codes == ["RETRIES_USED_UP"], f"second: no retry, {codes}")
    third = stoker("lease", "admit", "--repo", "file:///srv/one.git", "--retry-of", second["id"], ok=False)
    check("RETRIES_USED_UP" in json.dumps(third), f"third is rejected: {json.dumps(third)[:300]}")


def own_limit_at_once():
    lease = admit("96MiB", "at once")
    ended = outgrows(
        lease, group("soon", {"memory.max": size(lease)}), lambda holder: ("--pid", str(holder.pid)), at_once=True
    )
    check(
        ended.get("outcome") == "OUTCOME_OUT_OF_MEMORY_LIMIT" and ended.get("retry", {}).get("allowed"),
        f"released right after the kill: {ended.get('outcome')}, peak as seen "
        f"{int(ended.get('peak', {}).get('memoryBytesPeak', 0)) // MIB} MiB of {size(lease) // MIB}",
    )


UID = "7d3c1f7e-52a1-4d0e-9b0e-0d5a5a4f8e11"


def pod_groups(uid, limits):
    """As a kubelet with its systemd driver makes them; the limit is the container's, and all of it goes at once."""
    slices = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid.replace('-', '_')}.slice"
    place = GROUPS
    for part in slices.split("/"):
        place = f"{place}/{part}"
        os.makedirs(place, exist_ok=True)
        write(f"{place}/cgroup.subtree_control", "+memory +cpu +io +pids")
    container = f"{slices}/cri-containerd-0a1b2c.scope"
    group(container, limits)
    return f"{GROUPS}/{slices}", f"{GROUPS}/{container}"


def pods():
    by_uid = lambda uid: lambda _: ("--pod", "builds/build", "--uid", uid)
    pod, container = pod_groups(UID, {"memory.max": 96 * MIB, "memory.oom.group": 1})
    write(f"{pod}/memory.max", 96 * MIB)
    ended = outgrows(admit("96MiB", "pod"), container, by_uid(UID), pod, whole=True)
    check(
        ended.get("outcome") == "OUTCOME_OUT_OF_MEMORY_LIMIT",
        f"pod, killed as a whole in its container: {ended.get('outcome')}",
    )
    # The limit of all pods is met: neither its own nor its lease's.
    uid = UID[:-1] + "2"
    pod, container = pod_groups(uid, {})
    write(f"{GROUPS}/kubepods.slice/memory.max", 64 * MIB)
    ended = outgrows(admit("96MiB", "other pod"), container, by_uid(uid), pod)
    check(
        ended.get("outcome") == "OUTCOME_OUT_OF_MEMORY_NODE",
        f"pod, killed at the limit of all pods: {ended.get('outcome')}",
    )
    write(f"{GROUPS}/kubepods.slice/memory.max", "max")


# 3 -----------------------------------------------------------------------------------------------------------------

STALLS = r"""
import sys, time
# Far above what it is held to in a moment: the first allocation after that waits at once, and long.
more = [bytearray(b"s" * (1 << 20)) for _ in range(64)]
print("full", flush=True)
sys.stdin.readline()
while True:
    more.append(bytearray(b"s" * (1 << 20)))
"""


def totals():
    return {line.split()[0]: int(line.split("total=")[1]) for line in read("/proc/pressure/memory").splitlines()}


def gate(port):
    return re.search(r'stoker_gate_state\{state="(\w+)"\} 1', get("/metrics", port)[1]).group(1)


def stallers(path, count):
    """Processes that wait for memory from the moment at which they are told to go on. Their group's `memory.high` is
    set when they are above it, so that the kernel has them wait, and counts that as stalls."""
    write(f"{path}/memory.high", "max")
    enter = 'echo $$ > "$0/cgroup.procs"; exec python3 -c "$1"'
    command = ["bash", "-c", enter, path, STALLS]
    held = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
    for one in held:
        one.stdout.readline()
    write(f"{path}/memory.high", 16 * MIB)
    time.sleep(4)
    return held


def go(held):
    for one in held:
        one.stdin.write(b"\n")
        one.stdin.flush()


def end(held):
    for one in held:
        one.kill()
        one.wait()


def stalls(name, agent, trigger, rounds=4):
    """How soon after the kernel counted 400 ms of 2 s the gate is shut, as others see it in the metrics."""
    lags = []
    for number in range(rounds):
        until("calm", lambda: gate(agent.port) == "open", limit=180)
        held = stallers(group("stall", {}), 2)
        until("calm", lambda: gate(agent.port) == "open", limit=180)
        # Not in step with what the agent does each second.
        time.sleep(2 + 0.27 * number)
        found, stop, samples = {}, threading.Event(), []

        def kernel():
            while not stop.is_set():
                samples.append((time.time(), totals()["full"]))
                time.sleep(0.02)

        def triggered():
            with open("/proc/pressure/memory", "r+b", buffering=0) as file:
                file.write(b"full 400000 2000000\0")
                poll = select.poll()
                poll.register(file, select.POLLPRI)
                if poll.poll(20000):
                    found["trigger"] = time.time()

        def published():
            while not stop.is_set():
                if gate(agent.port) == "shut":
                    found["gate"] = time.time()
                    return
                time.sleep(0.02)

        threads = [
            threading.Thread(target=what) for what in (kernel, triggered, published) if trigger or what != triggered
        ]
        at = os.path.getsize(agent.log)
        for thread in threads:
            thread.start()
        time.sleep(1)
        began = time.time()
        go(held)
        threads[-1].join(30)
        stop.set()
        end(held)
        for thread in threads:
            thread.join(25)
        with open(agent.log) as file:
            file.seek(at)
            told = [json.loads(line) for line in file if '"gate' in line and '"shut"' in line]
        base = [total for when, total in samples if when < began][-1]
        # All of it in less than 2 s, or it is no step and says nothing.
        due = next((when for when, total in samples if total - base >= 400_000), None)
        if not check("gate" in found and due, f"{name} {number}: the gate shuts at a stall"):
            continue
        lags.append(found["gate"] - due)
        after = lambda when: f"{when - began:.2f} s" if when else "-"
        saw(
            f"{name} {number}: 400 ms were stalled {after(due)} after it began, the test's own trigger fired "
            f"{after(found.get('trigger'))}, the gate was shut {after(found['gate'])}: "
            f"{told[0]['reasons'] + ': ' + told[0]['message'] if told else '-'}"
        )
    if lags:
        saw(f"{name}: from 400 ms of stalls to the shut gate {min(lags):.2f} to {max(lags):.2f} s")


def control_plane(agent):
    """A group that is named as the control plane's stalls: that narrows or shuts the gate by its own PSI."""
    path = group("control", {})
    watched = ', controlPlane: {readyz: "http://127.0.0.1:9418/livez", cgroups: ["/control"]}'
    write(agent.file, CONFIG % watched)
    agent.process.send_signal(signal.SIGHUP)
    time.sleep(5)
    until("calm", lambda: gate(agent.port) == "open", limit=180)
    held = stallers(path, 1)
    go(held)
    codes = {}

    def told():
        for reason in status().get("gate", {}).get("reasons", []):
            codes.setdefault(reason["code"], reason["message"])
        return "CONTROL_PLANE_STALLED" in codes

    try:
        until("the control plane's stall shuts the gate", told, limit=30)
    finally:
        saw(f"reasons meanwhile: {codes}; {read(f'{path}/memory.pressure').splitlines()}")
        end(held)
    check(any("/control" in message for message in codes.values()), "the control plane's group is named")
    write(agent.file, CONFIG % "")
    agent.process.send_signal(signal.SIGHUP)


def source(socket="/run/stoker/stoker.sock"):
    memory = status(socket=socket).get("memory") or status(socket=socket).get("node", {}).get("memory", {})
    return memory.get("stallSource"), memory.get("stallSourceWhy", "")


def unprivileged():
    for place in ("/var/lib/other", "/srv/other", "/run/other"):
        os.makedirs(place, exist_ok=True)
        os.chown(place, 1000, 1000)
    config = CONFIG % ""
    config = config.replace("/var/lib/stoker", "/var/lib/other").replace(
        "path: /pool, mount: required", "path: /srv/other, mount: optional"
    )
    config = config.replace("/run/stoker/", "/run/other/").replace("9418", "9419")
    prefix = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    agent = Agent("other", prefix, config, 9419)
    word, why = source("/run/other/stoker.sock")
    has = fields_of(read(f"/proc/{agent.process.pid}/status"), "Uid", "CapEff")
    # Since 6.4, and in 6.1 as Debian has it.
    check(word == "triggers" and has["CapEff"].strip("0") == "", f"unprivileged ({has}): stalls by {word} {why}")
    for window in (1, 2):
        code = f"open('/proc/pressure/memory', 'r+b', buffering=0).write(b'some 150000 {window}000000\\0')"
        done = run(*prefix, "python3", "-c", code, ok=False)
        answer = "given" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
        saw(f"unprivileged, a window of {window} s: {answer}")
    for line in read(agent.log).splitlines():
        if "stalls for memory" in line:
            saw(line)
    stalls(f"unprivileged by {word}", agent, False, 2)
    agent.ends()


# 4 -----------------------------------------------------------------------------------------------------------------


def repository(name, files, size):
    tree = f"/srv/{name}"
    run("git", "init", "-q", "-b", "main", tree)
    for number in range(files):
        os.makedirs(f"{tree}/d{number % 16}", exist_ok=True)
        with open(f"{tree}/d{number % 16}/f{number}", "wb") as file:
            file.write(os.urandom(size))
    run("git", "-C", tree, "add", ".")
    run("git", "-C", tree, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", name)
    run("git", "clone", "-q", "--bare", tree, f"/srv/{name}.git")
    run("chown", "-R", "65532:65532", f"/srv/{name}.git")


def checkouts():
    """By repository: the directory's inode, its record, files and how many of them are empty."""
    found, place = {}, f"{POOL}/checkouts"
    for name in sorted(os.listdir(place)) if os.path.isdir(place) else []:
        if name.endswith(".json") or name.endswith(".new"):
            continue
        try:
            record = json.loads(read(f"{place}/{name}.json"))
        except ValueError:
            record = {}
        files = [os.path.join(at, file) for at, _, here in os.walk(f"{place}/{name}/tree") for file in here]
        found[record.get("url", name)] = {
            "name": name,
            "inode": os.stat(f"{place}/{name}").st_ino,
            "durable": record.get("durable"),
            "boot": record.get("boot"),
            "created_at": record.get("created_at"),
            "files": len(files),
            "empty": sum(os.path.getsize(file) == 0 for file in files),
        }
    return found


def mounts():
    return [
        line.split()[4] for line in read("/proc/self/mountinfo").splitlines() if line.split()[4].startswith("/pool/")
    ]


def prepare(*arguments):
    answer = stoker("workspace", "prepare", *arguments)
    return answer.get("workspace", answer)


def left():
    return {
        name: sorted(os.listdir(f"{POOL}/{name}"))
        for name in ("workspaces", "overlays", "checkouts", "trash")
        if os.path.isdir(f"{POOL}/{name}")
    }


def of(name):
    return next((item for url, item in checkouts().items() if url.endswith(f"{name}.git")), {})


def remember(**more):
    known = json.loads(read(STATE, "{}"))
    known.update(more, failed=failed)
    write(STATE, json.dumps(known))
    run("sync")


def before_the_cut():
    kept = prepare("--repo", "file:///srv/one.git", "--for", "2h")
    lease = admit("96MiB", "cut")
    own = prepare("--lease", lease["id"])
    holder = subprocess.Popen(["sleep", "10000"])
    stoker("lease", "bind", lease["id"], "--pid", str(holder.pid))
    write(f"{own['src']}/left-by-the-build", "x" * 4096)
    method = status().get("workspaces", {})
    check("OVERLAY" in str(method.get("method")), f"workspaces by {method.get('method')}: {method.get('reason')}")
    until("the checkout is on the disk", lambda: of("one").get("durable"))
    saw(f"durable: {of('one')}; mounted: {mounts()}")
    remember(
        cut=1,
        lease=lease["id"],
        one=of("one"),
        own=own["id"],
        kept=kept["id"],
        src=[own["src"], kept["src"]],
        boot=read("/proc/sys/kernel/random/boot_id").strip(),
    )
    cut_at("two", False)


def cut_at(name, log):
    """Checks out, and takes the power before that is on the disk, which is slow meanwhile. Where `log`, somebody else
    has the filesystem write its log all the time, so that names are on the disk and contents are not."""
    print("@monitor block_set_io_throttle pool 0 0 1000000 0 0 0", flush=True)
    time.sleep(1)
    if log:
        subprocess.Popen(["bash", "-c", "while :; do echo x >/pool/other; sync /pool/other; sleep 0.05; done"])
    began = time.time()
    prepare("--repo", f"file:///srv/{name}.git", "--for", "2h")
    took, seen = time.time() - began, of(name)
    check(
        seen.get("durable") is False,
        f"checked out in {took:.1f} s, and the power goes before it is on the disk: {seen}",
    )
    print("@monitor system_reset", flush=True)
    time.sleep(60)
    check(False, "the power was cut")


def after_a_cut():
    print("@monitor block_set_io_throttle pool 0 0 0 0 0 0", flush=True)
    before = json.loads(read(STATE))
    failed.extend(before["failed"])
    cut = before["cut"]
    gone = {1: "two", 2: "three"}[cut]
    boot = read("/proc/sys/kernel/random/boot_id").strip()
    check(boot != before["boot"], f"another boot: {before['boot']}, {boot}")
    saw(f"on the disk, before the agent: {checkouts()}")
    saw(f"on the disk, before the agent: {left()}")
    Agent(f"agent-{cut}")
    now, listed = left(), mounts()
    names = str(now.get("workspaces", []) + now.get("overlays", []))
    there = [src for src in before["src"] if os.path.exists(src)] + [
        one for one in (before["own"], before["kept"]) if one in names
    ]
    check(not there and not now["workspaces"] and not now["overlays"], f"ready, and the workspaces are gone: {now}")
    check(not listed, f"nothing is mounted below the pool: {listed}")
    lease = stoker("lease", "show", before["lease"])
    lease = lease.get("lease", lease)
    codes = [reason.get("code") for reason in lease.get("reasons", [])]
    check(
        lease.get("outcome") == "OUTCOME_LOST" and "NODE_REBOOTED" in codes,
        f"lease: {lease.get('state')} {lease.get('outcome')} {codes}",
    )
    check(
        of("one").get("inode") == before["one"]["inode"] and of("one").get("empty") == 0,
        f"what was durable stayed: {of('one')}",
    )
    check(not of(gone), f"{gone}, which was not yet on the disk, went")
    began = time.time()
    again = prepare("--repo", "file:///srv/one.git", "--for", "2h")
    took = time.time() - began
    same = all(of("one").get(key) == before["one"][key] for key in ("inode", "created_at"))
    check(same, f"one is used again without a checkout, {took:.2f} s")
    began = time.time()
    anew = prepare("--repo", f"file:///srv/{gone}.git", "--for", "2h")
    saw(f"{gone} is checked out anew in {time.time() - began:.2f} s")
    for name, workspace in (("one", again), (gone, anew)):
        dirty = run("git", "-C", workspace["src"], "status", "--porcelain").stdout
        other = run("diff", "-rq", "--exclude=.git", f"/srv/{name}", workspace["src"], ok=False)
        check(not dirty and other.returncode == 0, f"{name}: as it was committed {dirty} {other.stdout[:200]}")
    if cut == 1:
        remember(cut=2, boot=boot, own=again["id"], kept=anew["id"], src=[again["src"], anew["src"]])
        cut_at("three", True)


# 5 -----------------------------------------------------------------------------------------------------------------


def quotas():
    mount = next((line for line in read("/proc/mounts").splitlines() if " /pool " in line), "")
    saw(f"pool: {mount}")
    os.makedirs("/pool/quota/upper", exist_ok=True)
    for command in ("project -s -p /pool/quota 42", "limit -p bhard=8m 42"):
        run("xfs_quota", "-x", "-c", command, "/pool")
    plain = run("dd", "if=/dev/zero", "of=/pool/quota/file", "bs=1M", "count=32", ok=False).stderr.splitlines()
    saw(f"a project quota of 8 MiB: {plain[0]}; {os.path.getsize('/pool/quota/file')} bytes")
    os.remove("/pool/quota/file")
    for place in ("lower", "work", "at"):
        os.makedirs(f"/pool/quota/{place}", exist_ok=True)
    run(
        "mount",
        "-t",
        "overlay",
        "overlay",
        "-o",
        "lowerdir=/pool/quota/lower,upperdir=/pool/quota/upper,workdir=/pool/quota/work",
        "/pool/quota/at",
    )
    through = run("dd", "if=/dev/zero", "of=/pool/quota/at/file", "bs=1M", "count=32", ok=False).stderr.splitlines()
    saw(f"the same through an overlay above it: {through[0]}; {os.path.getsize('/pool/quota/at/file')} bytes")
    run("umount", "/pool/quota/at")
    run("rm", "-rf", "/pool/quota")


def first():
    controllers = read(f"{GROUPS}/cgroup.controllers").split()
    v1 = [line for line in read("/proc/mounts").splitlines() if line.split()[2] == "cgroup"]
    check({"memory", "cpu", "io", "pids"} <= set(controllers) and not v1, f"cgroup v2 alone: {controllers}")
    write(f"{GROUPS}/cgroup.subtree_control", "+memory +cpu +io +pids")
    run("git", "config", "--global", "--replace-all", "safe.directory", "*")
    repository("one", 200, 20_000)
    repository("two", 400, 30_000)
    repository("three", 400, 30_000)
    run("sync")
    quotas()
    agent = Agent()
    word, why = source()
    check(word == "triggers", f"root: stalls by {word} {why}")
    for line in read(agent.log).splitlines():
        if "stall" in line:
            saw(line)
    steps = {
        "1 group": lambda: uses(
            "group",
            group("build", {"memory.max": 480 * MIB, "cpu.max": "50000 100000"}),
            lambda holder: ("--pid", str(holder.pid)),
        ),
        "2 own limit": own_limit,
        "2 own limit, released at once": own_limit_at_once,
        "2 pods": pods,
        "3 root": lambda: stalls("root by triggers", agent, True),
        "3 the control plane's group": lambda: control_plane(agent),
        "3 unprivileged": unprivileged,
    }
    steps["4 before the cut"] = before_the_cut
    only = re.search(r"\bonly=(\S+)", read("/proc/cmdline"))
    for name, step in steps.items():
        if not only or name[0] in only.group(1):
            print(f"--- {name}", flush=True)
            attempt(step)


def attempt(step):
    try:
        step()
    except Exception as error:  # What comes after it is shown all the same.
        import traceback

        traceback.print_exc(file=sys.stdout)
        check(False, f"{error!r}"[:1500])


def main():
    programs = [run(name, "--version").stdout.strip() for name in ("git", "stoker")]
    print(f"--- {os.uname().release}, {', '.join(programs)}", flush=True)
    if os.path.exists(STATE):
        run("git", "config", "--global", "--replace-all", "safe.directory", "*")
        print("--- 4 after a cut", flush=True)
        attempt(after_a_cut)
        if failed:
            for name in ("agent", "other", "agent-1", "agent-2"):
                print(f"--- the log of {name}\n" + read(f"/var/log/{name}.log")[-5000:])
    else:
        attempt(first)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
