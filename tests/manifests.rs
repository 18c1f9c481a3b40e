//! What `kubectl apply -k daemonset/...` would send: rendered by kubectl itself, read as a cluster reads it. Whether a
//! cluster takes it, and whether the chart gives the same, is for `tests/manifests/check.py`.

mod controller;
mod volume;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::stoker::Stoker;

/// The overlays, each of them in both profiles.
const ENVIRONMENTS: [&str; 4] = ["minikube", "single-node", "farm", "openshift"];

/// The folder `daemonset`.
fn daemonset() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset")
}

/// The rendered objects of `daemonset/PATH`.
fn rendered_at(path: &str) -> Vec<Value> {
    rendered_in(&daemonset().join(path))
}

/// The rendered objects of a kustomization.
fn rendered_in(folder: &Path) -> Vec<Value> {
    let output = Command::new("kubectl").arg("kustomize").arg(folder).output().expect("kubectl is needed: see .ci/run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout).unwrap()).unwrap()
}

/// The rendered objects of the base, which is the profile `restricted`.
fn rendered() -> Vec<Value> {
    rendered_at("base")
}

/// The object of this kind and name; names of generated objects begin with it.
fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| {
        let its = object["metadata"]["name"].as_str().unwrap();
        object["kind"] == kind && (its == name || kind == "ConfigMap" && its.starts_with(&format!("{name}-")))
    });
    let first = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(found.next().is_none(), "more than one {kind} {name}");
    first
}

/// The entry of a list of named things.
fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("no {name} in {list}"))
}

fn pod(objects: &[Value]) -> &Value {
    &object(objects, "DaemonSet", "stoker")["spec"]["template"]["spec"]
}

#[test]
fn everything_that_an_installation_needs_is_rendered() {
    let objects = rendered();
    let mut kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [
            "ClusterRole",
            "ClusterRole",
            "ClusterRoleBinding",
            "ClusterRoleBinding",
            "ConfigMap",
            "DaemonSet",
            "Namespace",
            "NetworkPolicy",
            "PriorityClass",
            "ResourceQuota",
            "Role",
            "RoleBinding",
            "Service",
            "Service",
            "ServiceAccount",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
            "ValidatingAdmissionPolicyBinding",
        ]
    );
    for object in &objects {
        let kind = object["kind"].as_str().unwrap();
        let of_the_cluster = ["Cluster", "Namespace", "PriorityClass", "ValidatingAdmissionPolicy"];
        let namespaced = !of_the_cluster.iter().any(|prefix| kind.starts_with(prefix));
        assert_eq!(object["metadata"]["namespace"] == "stoker", namespaced, "{kind}");
    }
}

#[test]
fn disks_are_guarded_by_a_parent_that_is_read_only_and_follows_mounts() {
    let objects = rendered();
    let pod = pod(&objects);
    let container = named(&pod["containers"], "agent");
    let mount = named(&container["volumeMounts"], "disks");
    assert_eq!(mount["mountPath"], "/var/mnt");
    assert_eq!(mount["readOnly"], true);
    assert_eq!(mount["recursiveReadOnly"], "Disabled");
    assert_eq!(mount["mountPropagation"], "HostToContainer");
    let volume = &named(&pod["volumes"], "disks")["hostPath"];
    assert_eq!((&volume["path"], &volume["type"]), (&"/var/mnt".into(), &"DirectoryOrCreate".into()));
    for (name, path) in [("state", "/var/lib/stoker"), ("socket", "/run/stoker")] {
        assert_eq!(named(&container["volumeMounts"], name)["mountPath"], path);
        assert_eq!(named(&pod["volumes"], name)["hostPath"]["path"], path);
        assert!(named(&container["volumeMounts"], name)["readOnly"].is_null());
    }
    for (name, path) in [("proc", "/proc"), ("sys", "/sys")] {
        let mount = named(&container["volumeMounts"], name);
        assert_eq!(mount["mountPath"], format!("/host{path}"));
        assert_eq!(mount["readOnly"], true);
        assert_eq!(named(&pod["volumes"], name)["hostPath"]["path"], path);
    }
    for mount in container["volumeMounts"].as_array().unwrap() {
        named(&pod["volumes"], mount["name"].as_str().unwrap());
    }
}

#[test]
fn the_agent_has_the_fewest_rights_and_outlives_the_pressure() {
    let objects = rendered();
    let set = object(&objects, "DaemonSet", "stoker");
    assert_eq!(set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 1);
    assert_eq!(set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"], 0);
    let pod = pod(&objects);
    let critical = "system-node-critical";
    assert_eq!(pod["priorityClassName"], critical);
    let scope = &object(&objects, "ResourceQuota", "stoker")["spec"]["scopeSelector"]["matchExpressions"];
    assert_eq!(*scope, json!([{"scopeName": "PriorityClass", "operator": "In", "values": [critical]}]));
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!((&pod["hostNetwork"], &pod["hostPID"]), (&false.into(), &false.into()));
    let container = named(&pod["containers"], "agent");
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["privileged"], false);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
    assert!(container["resources"]["requests"]["memory"].is_string());
    assert!(container["resources"]["limits"]["memory"].is_string());
}

/// What a role allows, one line a right: `verb resource.group`.
fn rights(role: &Value) -> Vec<String> {
    let texts = |rule: &Value, field: &str| -> Vec<String> {
        rule[field].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                let verbs = texts(rule, "verbs");
                rights.extend(verbs.iter().map(|verb| format!("{verb} {resource}.{group}")));
            }
        }
    }
    rights.sort_unstable();
    rights
}

#[test]
fn every_right_of_the_agent_is_explained() {
    let objects = rendered();
    let all: Vec<_> = [("ClusterRole", "stoker"), ("ClusterRole", "stoker-evict"), ("Role", "stoker")]
        .into_iter()
        .flat_map(|(kind, name)| rights(object(&objects, kind, name)))
        .collect();
    assert_eq!(
        all,
        [
            "create events.events.k8s.io",
            "create tokenreviews.authentication.k8s.io",
            "get nodes.",
            "list nodes.",
            "list pods.",
            "patch events.events.k8s.io",
            "patch nodes.",
            "patch nodes/status.",
            "watch nodes.",
            "watch pods.",
            "create pods/eviction.",
            "create leases.coordination.k8s.io",
            "patch leases.coordination.k8s.io",
        ]
    );
    let table = include_str!("../docs/kubernetes.md");
    for right in &all {
        let (verb, rest) = right.split_once(' ').unwrap();
        let resource = rest.split_once('.').unwrap().0;
        let row = table.lines().find(|line| line.contains(&format!("`{resource}`")) && line.contains(verb));
        assert!(row.is_some_and(|row| row.starts_with("| ")), "docs/kubernetes.md does not say what `{right}` is for");
    }
    for (kind, name) in
        [("ClusterRoleBinding", "stoker"), ("ClusterRoleBinding", "stoker-evict"), ("RoleBinding", "stoker")]
    {
        let binding = object(&objects, kind, name);
        assert_eq!(binding["roleRef"]["name"], name);
        assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "name": "stoker", "namespace": "stoker"}]));
    }
    assert_eq!(pod(&objects)["serviceAccountName"], "stoker");
}

#[test]
fn every_capability_and_path_of_the_node_is_explained() {
    let objects = rendered();
    let pod = pod(&objects);
    let added = &named(&pod["containers"], "agent")["securityContext"]["capabilities"]["add"];
    let paths = pod["volumes"].as_array().unwrap().iter().filter_map(|volume| volume["hostPath"]["path"].as_str());
    let all: Vec<_> = added.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).chain(paths).collect();
    assert_eq!(all.len(), 11);
    let rows = include_str!("../docs/kubernetes.md").lines().filter(|line| line.starts_with("| `"));
    let first: Vec<_> = rows.filter_map(|row| row.split(" | ").next()).collect();
    for thing in all {
        assert!(
            first.iter().any(|cell| cell.contains(&format!("`{thing}`"))),
            "docs/kubernetes.md does not explain {thing}"
        );
    }
}

#[test]
fn what_an_agent_may_write_is_narrowed_to_its_own_node() {
    // What the expressions say of one change or another: tests/manifests/policy.py.
    let objects = rendered();
    for name in ["stoker-node", "stoker-heartbeat"] {
        let policy = &object(&objects, "ValidatingAdmissionPolicy", name)["spec"];
        assert_eq!(policy["failurePolicy"], "Fail");
        let who = policy["matchConditions"][0]["expression"].as_str().unwrap();
        assert_eq!(who, "request.userInfo.username == 'system:serviceaccount:stoker:stoker'");
        let binding = &object(&objects, "ValidatingAdmissionPolicyBinding", name)["spec"];
        assert_eq!((&binding["policyName"], &binding["validationActions"]), (&name.into(), &json!(["Deny"])));
        assert!(binding["matchResources"].is_null(), "the binding leaves nothing out");
    }
}

#[test]
fn agents_are_reached_from_the_cluster_at_one_port() {
    let objects = rendered();
    let policy = &object(&objects, "NetworkPolicy", "stoker")["spec"];
    assert_eq!(
        policy["podSelector"]["matchLabels"],
        object(&objects, "DaemonSet", "stoker")["spec"]["selector"]["matchLabels"]
    );
    assert_eq!(policy["policyTypes"], json!(["Ingress"]));
    assert_eq!(
        policy["ingress"],
        json!([{"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": "http"}]}])
    );
}

/// A YAML file of `daemonset`.
fn read(path: &str) -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(daemonset().join(path)).unwrap()).unwrap()
}

#[test]
fn the_network_asks_over_tls_where_that_is_opened_and_from_the_namespaces_that_are_named() {
    let stoker = Stoker::new();
    // Kustomize takes no absolute path.
    let up: PathBuf = stoker.home().components().skip(1).map(|_| "..").collect();
    let at = |path: &str| up.join(daemonset().join(path).strip_prefix("/").unwrap());
    for environment in ENVIRONMENTS {
        let mut configuration = read(&format!("overlays/{environment}/settings/agent.yaml"));
        configuration["listen"]["grpc"] = read("network/listen.yaml")["listen"]["grpc"].clone();
        let whole = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": [at(&format!("overlays/{environment}/restricted"))], "components": [at("network")],
            "configMapGenerator":
                [{"name": "stoker", "namespace": "stoker", "behavior": "replace", "files": ["agent.yaml"]}],
        });
        for (name, content) in [("agent.yaml", &configuration), ("kustomization.yaml", &whole)] {
            std::fs::write(stoker.home().join(name), content.to_string()).unwrap();
        }
        stoker.run(["config", "check", "agent.yaml"]).expect_code(0);
        let objects = rendered_in(stoker.home());

        // The listener, its port, its files and the way to it are the same everywhere.
        let pod = pod(&objects);
        let container = named(&pod["containers"], "agent");
        let grpc = &configuration["listen"]["grpc"];
        let port = &named(&container["ports"], "grpc")["containerPort"];
        assert_eq!(grpc["address"], format!("0.0.0.0:{port}"));
        let mount = named(&container["volumeMounts"], "tls");
        assert!(mount["readOnly"] == true && mount["subPath"].is_null(), "a file that is swapped would not be seen");
        let secret = &named(&pod["volumes"], "tls")["secret"];
        assert_eq!((&secret["secretName"], &secret["defaultMode"]), (&"stoker-tls".into(), &0o400.into()));
        for (field, file) in [("certificate", "tls.crt"), ("key", "tls.key")] {
            assert_eq!(grpc["tls"][field], format!("{}/{file}", mount["mountPath"].as_str().unwrap()));
        }
        for name in ["stoker", "stoker-agents"] {
            let ports = &object(&objects, "Service", name)["spec"]["ports"];
            assert_eq!(named(ports, "grpc"), &json!({"name": "grpc", "port": port, "targetPort": "grpc"}));
            assert_eq!(named(ports, "http")["port"], 9418);
        }
        let policy = &object(&objects, "NetworkPolicy", "stoker-grpc")["spec"];
        let agents = &object(&objects, "DaemonSet", "stoker")["spec"]["selector"]["matchLabels"];
        assert_eq!((&policy["podSelector"]["matchLabels"], &policy["policyTypes"]), (agents, &json!(["Ingress"])));
        let named_ones = json!([{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["builds"]}]);
        let from = json!([{"namespaceSelector": {"matchExpressions": named_ones}}]);
        assert_eq!(policy["ingress"], json!([{"from": from, "ports": [{"protocol": "TCP", "port": "grpc"}]}]));
        let http = &object(&objects, "NetworkPolicy", "stoker")["spec"]["ingress"][0]["ports"];
        assert_eq!(http, &json!([{"protocol": "TCP", "port": "http"}]), "it opens HTTP alone");
        assert_eq!(security(pod), security(self::pod(&rendered_at(&format!("overlays/{environment}/restricted")))));
    }
}

/// What the agent's container may do.
fn security(pod: &Value) -> &Value {
    &named(&pod["containers"], "agent")["securityContext"]
}

#[test]
fn profiles_differ_in_rights_and_in_who_sees_what_is_mounted() {
    for environment in ENVIRONMENTS {
        let mut objects = rendered_at(&format!("overlays/{environment}/full"));
        let restricted = rendered_at(&format!("overlays/{environment}/restricted"));
        assert_eq!(
            rendered_at(&format!("overlays/{environment}")),
            objects,
            "the overlay itself is the profile `full`"
        );
        let container = named(&pod(&objects)["containers"], "agent");
        let security = &container["securityContext"];
        assert_eq!((&security["privileged"], &security["readOnlyRootFilesystem"]), (&true.into(), &true.into()));
        assert!(security["allowPrivilegeEscalation"].is_null() && security["capabilities"].is_null(), "{security}");
        assert_eq!(named(&container["volumeMounts"], "disks")["mountPropagation"], "Bidirectional");
        // Without that, and what OpenShift needs to admit it, nothing is left.
        let same = named(&pod(&restricted)["containers"], "agent").clone();
        for object in &mut objects {
            match object["kind"].as_str().unwrap() {
                "DaemonSet" => {
                    let container = &mut object["spec"]["template"]["spec"]["containers"][0];
                    container["securityContext"] = same["securityContext"].clone();
                    container["volumeMounts"][0]["mountPropagation"] = "HostToContainer".into();
                }
                "SecurityContextConstraints" => {
                    assert_eq!(object["allowPrivilegedContainer"], true);
                    let mine = self::object(&restricted, "SecurityContextConstraints", "stoker-agent");
                    let added = &same["securityContext"]["capabilities"]["add"];
                    assert_eq!(
                        (&mine["allowPrivilegedContainer"], &mine["allowedCapabilities"]),
                        (&false.into(), added)
                    );
                    *object = mine.clone();
                }
                _ => {}
            }
        }
        assert_eq!(objects, restricted, "{environment}");
    }
}

#[test]
fn openshift_admits_what_the_pod_has() {
    let objects = rendered_at("overlays/openshift/restricted");
    let constraints = object(&objects, "SecurityContextConstraints", "stoker-agent");
    let role = object(&objects, "ClusterRole", "stoker-constraints");
    assert_eq!(rights(role), ["use securitycontextconstraints.security.openshift.io"]);
    assert_eq!(role["rules"][0]["resourceNames"], json!([constraints["metadata"]["name"]]));
    let pod = pod(&objects);
    let allowed = constraints["volumes"].as_array().unwrap();
    for volume in pod["volumes"].as_array().unwrap() {
        let kind = volume.as_object().unwrap().keys().find(|key| *key != "name").unwrap();
        assert!(allowed.iter().any(|name| name == kind), "{kind} is not allowed");
    }
    assert_eq!(constraints["readOnlyRootFilesystem"], true);
    assert_eq!(constraints["requiredDropCapabilities"], json!(["ALL"]));
    for right in ["HostNetwork", "HostPID", "HostIPC", "HostPorts"] {
        assert_eq!(constraints[format!("allow{right}")], false);
    }
}

#[test]
fn every_overlays_configuration_is_valid_and_within_the_containers_memory() {
    for environment in ENVIRONMENTS {
        let objects = rendered_at(&format!("overlays/{environment}"));
        let stoker = Stoker::new();
        let file = stoker.home().join("agent.yaml");
        let text = object(&objects, "ConfigMap", "stoker")["data"]["agent.yaml"].as_str().unwrap();
        std::fs::write(&file, text).unwrap();
        stoker.run(["config", "check", file.to_str().unwrap()]).expect_code(0);
        let printed = stoker.run(["config", "print", file.to_str().unwrap()]).expect_code(0).stdout;
        let printed: Value = serde_saphyr::from_str(&printed).unwrap();
        let pod = pod(&objects);
        let (container, git) = (named(&pod["containers"], "agent"), named(&pod["containers"], "git"));
        let children = printed["repositories"]["parallel"].as_u64().unwrap()
            * mebibytes(printed["repositories"]["git"]["memory"].as_str().unwrap());
        let limit = |container: &Value| mebibytes(container["resources"]["limits"]["memory"].as_str().unwrap());
        assert!(children + 256 <= limit(git), "{environment}: {children} MiB in a container of {} MiB", limit(git));
        let one = mebibytes(printed["repositories"]["git"]["memory"].as_str().unwrap());
        assert!(one + 256 <= limit(container), "{environment}: a checkout of {one} MiB in the agent's container");
        assert_eq!(printed["node"]["hostRoot"], "/host");
        let disks = named(&container["volumeMounts"], "disks");
        let mut same = disks.clone();
        same["mountPropagation"] = "HostToContainer".into();
        assert_eq!(named(&git["volumeMounts"], "disks"), &same, "git sees the disks where the agent does");
        assert_eq!(
            disks["mountPath"],
            named(&pod["volumes"], "disks")["hostPath"]["path"],
            "one path inside and outside"
        );
        for pool in printed["pools"].as_array().unwrap() {
            let parent = Path::new(pool["path"].as_str().unwrap()).parent().unwrap();
            assert_eq!(parent, Path::new(disks["mountPath"].as_str().unwrap()));
            assert_eq!(pool["mount"] == "required", disks["readOnly"] == true, "a guarded parent guards mounted disks");
        }
    }
}

/// `512MiB`, `4Gi` and their like.
fn mebibytes(text: &str) -> u64 {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor = match &text[digits.len()..digits.len() + 1] {
        "M" => 1,
        "G" => 1024,
        other => panic!("{other} in {text}"),
    };
    digits.parse::<u64>().unwrap() * factor
}

#[test]
fn git_has_a_container_of_its_own_without_any_right() {
    let objects = rendered();
    let pod = pod(&objects);
    let git = named(&pod["containers"], "git");
    let security = &git["securityContext"];
    let user = stoker_user(&objects);
    assert_eq!((&security["runAsUser"], &security["runAsGroup"]), (&user.into(), &user.into()));
    assert_eq!((&security["runAsNonRoot"], &security["privileged"]), (&true.into(), &false.into()));
    assert_eq!(
        (&security["allowPrivilegeEscalation"], &security["readOnlyRootFilesystem"]),
        (&false.into(), &true.into())
    );
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
    assert!(git["readinessProbe"].is_null(), "the agent is ready without it");
    // One image, one socket, in a folder that the two share and nobody else has.
    assert_eq!(git["image"], named(&pod["containers"], "agent")["image"]);
    let text = object(&objects, "ConfigMap", "stoker")["data"]["agent.yaml"].as_str().unwrap();
    let configuration: Value = serde_saphyr::from_str(text).unwrap();
    let socket = configuration["repositories"]["git"]["helper"].as_str().unwrap();
    assert_eq!(git["args"], json!(["git-helper", "--listen", socket]));
    assert_eq!(git["livenessProbe"]["exec"]["command"], json!(["stoker", "git-helper", "--check", "--listen", socket]));
    let folder = Path::new(socket).parent().unwrap().to_str().unwrap();
    for name in ["agent", "git"] {
        assert_eq!(named(&named(&pod["containers"], name)["volumeMounts"], "git")["mountPath"], folder);
    }
    assert!(named(&pod["volumes"], "git")["emptyDir"].is_object());
    // The kubelet mounts the token where nothing else is.
    let mounts = git["volumeMounts"].as_array().unwrap();
    let there: Vec<_> = mounts.iter().map(|mount| mount["name"].as_str().unwrap()).collect();
    assert_eq!(there, ["disks", "git", "no-token"]);
    let no_token = &named(&git["volumeMounts"], "no-token")["mountPath"];
    assert_eq!(no_token, "/var/run/secrets/kubernetes.io/serviceaccount");
    assert!(named(&pod["volumes"], "no-token")["emptyDir"].is_object());
}

/// As whom git runs, by the configuration: the number that the agent takes where none is named.
fn stoker_user(objects: &[Value]) -> u32 {
    let text = object(objects, "ConfigMap", "stoker")["data"]["agent.yaml"].as_str().unwrap();
    assert!(!text.contains("user:"), "the configuration names another");
    65532
}

#[test]
fn builds_have_a_class_that_pushes_nothing_away() {
    let objects = rendered();
    let class = object(&objects, "PriorityClass", "stoker-build");
    assert_eq!(class["value"], 100);
    assert_eq!(class["preemptionPolicy"], "Never");
    assert_eq!(class["globalDefault"], false);
}

#[test]
fn all_agents_and_the_own_nodes_agent_have_a_name_each() {
    let objects = rendered();
    let labels = &object(&objects, "DaemonSet", "stoker")["spec"]["template"]["metadata"]["labels"];
    for (name, field, value) in [("stoker-agents", "clusterIP", "None"), ("stoker", "internalTrafficPolicy", "Local")] {
        let spec = &object(&objects, "Service", name)["spec"];
        assert_eq!(spec[field], value);
        assert_eq!(&spec["selector"], labels);
        assert_eq!(spec["ports"][0]["port"], 9418);
    }
}

#[test]
fn the_agents_configuration_agrees_with_its_mounts() {
    let objects = rendered();
    let map = object(&objects, "ConfigMap", "stoker");
    let text = map["data"]["agent.yaml"].as_str().unwrap();
    let configuration: Value = serde_saphyr::from_str(text).unwrap();
    assert_eq!(configuration["apiVersion"], "stoker.build/v1");
    assert_eq!(configuration["kind"], "AgentConfig");
    assert_eq!(configuration["listen"]["socket"], "/run/stoker/stoker.sock");
    assert_eq!(configuration["listen"]["http"]["address"], "0.0.0.0:9418");
    assert!(configuration["listen"]["grpc"].is_null(), "no gRPC over the network without TLS");
    let pod = pod(&objects);
    assert_eq!(named(&pod["volumes"], "configuration")["configMap"]["name"], map["metadata"]["name"]);
    let container = named(&pod["containers"], "agent");
    assert_eq!(container["args"], json!(["agent", "--config", "/etc/stoker/agent.yaml"]));
    assert_eq!(named(&container["volumeMounts"], "configuration")["mountPath"], "/etc/stoker");
    assert_eq!(named(&container["volumeMounts"], "state")["mountPath"], configuration["state"]);
    assert_eq!(configuration["node"]["hostRoot"], "/host");
    for pool in configuration["pools"].as_array().unwrap() {
        assert_eq!(pool["mount"], "required");
        let path = Path::new(pool["path"].as_str().unwrap());
        assert_eq!(path.parent(), Some(Path::new("/var/mnt")), "the guard is its parent's mount");
    }
    assert_eq!(named(&container["ports"], "http")["containerPort"], 9418);
}
