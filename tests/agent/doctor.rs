//! `stoker doctor` on a node of Kubernetes: what does not fit is told, and what it says to write ends it.

use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::support::api_server::ApiServer;
use crate::support::stoker::Output;

const NODE: &str = "ghost";
/// Of the API server's manifest: by it the kubelet names the pod's control group.
const HASH: &str = "8c3bfbb9f4b4b2a3a1a6a3a4d5e6f708";
/// What the machine of the recorded tree has, as its kubelet tells.
const CPU_MILLIS: i64 = 32_000;
const MEMORY_MIB: i64 = 62 * 1024;

/// A node with a control plane, whose agent keeps what it keeps by default.
struct World {
    api: ApiServer,
    agent: Agent,
    began: Instant,
}

fn node(reserved_millis: i64, reserved_mib: i64) -> Value {
    let amounts =
        |millis: i64, mib: i64| json!({"cpu": format!("{millis}m"), "memory": format!("{mib}Mi"), "pods": "110"});
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {},
        "status": {
            "capacity": amounts(CPU_MILLIS, MEMORY_MIB),
            "allocatable": amounts(CPU_MILLIS - reserved_millis, MEMORY_MIB - reserved_mib),
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// As the kubelet shows a pod of a file: with a uid of its own.
fn mirror(name: &str, hash: &str, cpu: &str, command: Value) -> Value {
    let container = json!({
        "name": name, "image": name, "command": command,
        "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}},
        "volumeMounts": [{"name": "data", "mountPath": "/var/lib/etcd"}],
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{name}-{NODE}"), "namespace": "kube-system", "uid": format!("mirror-of-{name}"),
            "annotations": {"kubernetes.io/config.mirror": hash, "kubernetes.io/config.source": "file"},
        },
        "spec": {
            "nodeName": NODE, "containers": [container],
            "volumes": [{"name": "data", "hostPath": {"path": "/var/lib/etcd"}}],
        },
        "status": {"phase": "Running"},
    })
}

/// Whole or not at all: the agent reads it meanwhile.
fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}

impl World {
    fn new() -> Self {
        let api = ApiServer::start();
        api.put("nodes", node(0, 1024));
        api.put("pods", mirror("kube-apiserver", HASH, "125m", json!(["kube-apiserver"])));
        api.put("pods", mirror("etcd", "none-that-runs", "100m", json!(["etcd", "--data-dir=/var/lib/etcd"])));
        let more = "kubernetes: {watch: \"on\", heartbeat: 1s, namespace: stoker}\n";
        let second = "  - {name: spill, floor: {bytes: 1MiB, inodes: 1}, path: $ROOT/spill, mount: optional}\nrepositories:\n  \
                      pool: data\n";
        let text = configuration(PLAIN, &[]).replace("node: {", &format!("node: {{name: {NODE}, ")) + more;
        let mut agent = prepared(&text.replace("repositories:\n", second));
        let kubeconfig = agent.root().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
        agent.env("KUBECONFIG", kubeconfig);
        let mut world = Self { api, agent, began: Instant::now() };
        world.record();
        world.agent.launch();
        world.agent.wait_ready();
        world
    }

    fn host(&self, path: &str) -> std::path::PathBuf {
        self.agent.root().join("host").join(path)
    }

    /// What the host has beside `/proc`: disks, control groups, the kubelet's configuration.
    fn record(&self) {
        let groups = "sys/fs/cgroup";
        write(&self.host(groups).join("cgroup.controllers"), "cpu io memory pids\n");
        write(&self.host(groups).join("kubepods.slice/memory.max"), "max\n");
        write(&self.group().join("memory.current"), "1073741824\n");
        write(&self.group().join("memory.stat"), "inactive_file 0\n");
        self.use_cpu(2);
        for (number, path) in [
            ("259:0", "nvme0n1"),
            ("259:2", "nvme0n1/nvme0n1p2"),
            ("259:3", "nvme0n1/nvme0n1p3"),
            ("259:4", "nvme1n1"),
            ("259:5", "nvme2n1"),
        ] {
            let device = self.host("sys/devices").join(path);
            std::fs::create_dir_all(&device).unwrap();
            if path.contains('/') {
                std::fs::write(device.join("partition"), "1\n").unwrap();
            }
            std::fs::create_dir_all(self.host("sys/dev/block")).unwrap();
            symlink(Path::new("../../devices").join(path), self.host("sys/dev/block").join(number)).unwrap();
        }
        // The pool is a partition of the disk that etcd is on, and the other has no disk of its own.
        self.mount(&[("/", "259:2"), ("pool", "259:3")]);
        let kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "staticPodPath": "/etc/kubernetes/manifests",
            "evictionHard": {"memory.available": "1Gi", "nodefs.available": "1%", "imagefs.available": "1.5%"},
            "enforceNodeAllocatable": ["none"],
        });
        write(&self.host("var/lib/kubelet/config.yaml"), &kubelet.to_string());
    }

    /// Mount points by their device; those that are not absolute are the test's own.
    fn mount(&self, points: &[(&str, &str)]) {
        let line = |(point, device): &(&str, &str)| {
            let point =
                if point.starts_with('/') { Path::new(point).to_owned() } else { self.agent.root().join(point) };
            format!("30 1 {device} / {} rw,relatime shared:1 - xfs /dev/disk rw\n", point.display())
        };
        write(&self.host("proc/1/mountinfo"), &points.iter().map(line).collect::<String>());
    }

    /// The control group of the API server's pod.
    fn group(&self) -> std::path::PathBuf {
        let name = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice");
        self.host("sys/fs/cgroup").join(name)
    }

    /// The API server has used so many CPUs since the world began.
    fn use_cpu(&self, cpus: u32) {
        let micros = self.began.elapsed().as_micros() * u128::from(cpus);
        write(&self.group().join("cpu.stat"), &format!("usage_usec {micros}\n"));
    }

    fn doctor(&self, args: &[&str]) -> Output {
        self.use_cpu(2);
        self.agent.stoker().run(["doctor"].iter().chain(args))
    }

    fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let holds = wait::holds_within(LIMIT, || {
            last = self.doctor(&["-o", "json"]).json();
            is(&last)
        });
        assert!(holds, "{what}: {last:#}");
        last
    }

    /// Merges what `--patch` prints into the files that it is for, and does what a kubelet does that is started again.
    fn apply(&self, patches: &str) {
        let mut reserved = (0, 0);
        for document in serde_saphyr::from_multiple::<Value>(patches).unwrap() {
            match document["kind"].as_str().unwrap() {
                "AgentConfig" => {
                    let file = self.agent.root().join("agent.yaml");
                    self.merge(&file, document);
                    self.agent.stoker().run(["config", "check", file.to_str().unwrap()]).expect_code(0);
                }
                "KubeletConfiguration" => {
                    let number = |value: &Value, unit: &str| {
                        value.as_str().unwrap().strip_suffix(unit).unwrap().parse::<i64>().unwrap()
                    };
                    let system = &document["systemReserved"];
                    let memory = &system["memory"];
                    let mib = if memory.as_str().unwrap().ends_with("Gi") {
                        number(memory, "Gi") * 1024
                    } else {
                        number(memory, "Mi")
                    };
                    reserved = (number(&system["cpu"], "m"), mib);
                    assert_eq!(document["enforceNodeAllocatable"], json!(["pods"]));
                    self.merge(&self.host("var/lib/kubelet/config.yaml"), document);
                }
                "Pod" => {
                    assert_eq!(document["metadata"]["name"], "kube-apiserver");
                    let asks = document["spec"]["containers"][0].clone();
                    assert_eq!(asks["name"], "kube-apiserver");
                    self.api.change("pods", "kube-system", &format!("kube-apiserver-{NODE}"), |pod| {
                        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] =
                            asks["resources"]["requests"]["cpu"].clone();
                    });
                }
                other => panic!("a patch of {other}: {document}"),
            }
        }
        let limit = (MEMORY_MIB - reserved.1) * MIB;
        write(&self.host("sys/fs/cgroup/kubepods.slice/memory.max"), &format!("{limit}\n"));
        let status = node(reserved.0, reserved.1 + 1024)["status"].clone();
        self.api.change("nodes", "", NODE, |node| node["status"] = status);
    }

    fn merge(&self, file: &Path, patch: Value) {
        let mut whole: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        merge(&mut whole, patch);
        write(file, &whole.to_string());
    }
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

fn kinds(report: &Value) -> Vec<&str> {
    report["findings"].as_array().unwrap().iter().map(|found| found["kind"].as_str().unwrap()).collect()
}

/// Each thing that does not fit is told with its figures; what is printed is written where it says; then all is well.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_a_node_is_told_and_what_is_printed_ends_it() {
    let world = World::new();
    let expected = [
        "KIND_RESERVE_BELOW_REQUESTS",
        "KIND_MEMORY_FLOOR_BELOW_EVICTION",
        "KIND_DISK_FLOOR_BELOW_EVICTION",
        "KIND_STATIC_POD_STARVES",
        "KIND_KUBELET_RESERVES_LESS",
        "KIND_PODS_UNLIMITED",
        "KIND_POOL_ON_ETCD_DISK",
        "KIND_POOL_ON_ROOT",
    ];
    // What is used is seen with the second look, and the API server and the disks are heard of meanwhile. The mean of ten
    // seconds may begin with nothing: what is printed is to be made of nearly all of the 2 CPU that are used.
    let told = tokio::task::block_in_place(|| {
        world.until("each thing is told, in this order", |report| {
            let mut found = kinds(report);
            found.dedup();
            found == expected && cpus_told(report) >= 1.8
        })
    });
    let what = |kind: &str| {
        let all = told["findings"].as_array().unwrap().iter().filter(|found| found["kind"] == kind);
        all.map(|found| found["what"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(
        what("KIND_RESERVE_BELOW_REQUESTS"),
        [
            "node.reserve keeps 0.5 CPU and 1 GiB of memory; its static pods (etcd, kube-apiserver) ask for 225m CPU and 2 GiB \
          of memory"
        ]
    );
    let root = world.agent.root().display().to_string();
    assert_eq!(
        what("KIND_POOL_ON_ETCD_DISK"),
        [
            format!("pool data ({root}/pool) shares nvme0n1 with etcd's data (/var/lib/etcd)"),
            format!("pool spill ({root}/spill) shares the filesystem of / with etcd's data (/var/lib/etcd)"),
        ]
    );
    assert_eq!(what("KIND_POOL_ON_ROOT"), [format!("pool spill ({root}/spill) is on the root filesystem")]);
    assert_eq!(told["unseen"], json!(["what static pods use (etcd): their control groups were not found"]));

    tokio::task::block_in_place(|| {
        let screen = world.doctor(&[]).expect_code(1).stdout;
        assert!(screen.contains("things to mend, and") && screen.contains("What to write"), "{screen}");
        let patches = world.doctor(&["--patch"]).expect_code(1).stdout;
        for file in [
            "# merge into the agent's configuration\n",
            "# merge into the kubelet's configuration, /var/lib/kubelet/config.yaml\n",
            "# merge into the static pod's manifest, /etc/kubernetes/manifests/kube-apiserver.yaml\n",
        ] {
            assert!(patches.contains(file), "{patches}");
        }
        world.apply(&patches);
        // What remains is for hands: disks of their own. It is no fault.
        let left = world
            .until("what was written counts", |now| kinds(now).iter().all(|kind| kind.starts_with("KIND_POOL_ON")));
        assert_eq!((kinds(&left).len(), &left["patches"]), (3, &json!([])));
        world.doctor(&[]).expect_code(0);
        world.mount(&[("/", "259:2"), ("pool", "259:4"), ("spill", "259:5")]);
        let well = world.doctor(&[]).expect_code(0).stdout;
        assert!(well.starts_with("ghost is well: nothing to mend\n"), "{well}");
        write(&world.host("sys/fs/cgroup/kubepods.slice/memory.max"), &format!("{}\n", 16 * GIB));
    });
    // What all pods together are kept to, no build can have.
    let budget = |now: &v1::Status| now.ledger.unwrap().budget.unwrap().memory_bytes;
    status_until(&world.agent, "the limit of all pods bounds the budget", |now| budget(now) == Some(16 * GIB)).await;
}

/// The CPU that the static pod which asks for too little is said to use: `kube-apiserver asks for 125m CPU and uses 2 CPU`.
fn cpus_told(report: &Value) -> f64 {
    let found = report["findings"].as_array().unwrap().iter().find(|found| found["kind"] == "KIND_STATIC_POD_STARVES");
    let what = found.unwrap()["what"].as_str().unwrap();
    let used = what.split_once(" and uses ").unwrap().1.trim_end_matches(" CPU");
    used.strip_suffix('m').map_or_else(|| used.parse().unwrap(), |millis| millis.parse::<f64>().unwrap() / 1000.0)
}

/// Without Kubernetes it says what does not apply.
#[tokio::test(flavor = "multi_thread")]
async fn without_kubernetes_the_doctor_says_what_does_not_apply() {
    let agent = start(&configuration(PLAIN, &[]));
    let told = agent.stoker().run(["doctor", "-o", "json"]).expect_code(0).json();
    assert_eq!(told["findings"], json!([]), "{told:#}");
    let unseen = told["unseen"].as_array().unwrap().iter().map(|why| why.as_str().unwrap()).collect::<Vec<_>>();
    assert!(unseen[0].starts_with("there is no Kubernetes here"), "{unseen:?}");
    // The recorded tree has no mount table.
    assert!(unseen[1].starts_with("which disks pools and etcd are on: "), "{unseen:?}");
    assert_eq!(agent.stoker().run(["doctor", "--patch"]).expect_code(0).stdout, "");
}
