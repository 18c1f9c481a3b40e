//! What `kubectl apply -k daemonset/base` would send: rendered by kubectl itself, read as a cluster reads it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The rendered objects.
fn rendered() -> Vec<Value> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/base");
    let output = Command::new("kubectl").arg("kustomize").arg(base).output().expect("kubectl is needed: see .ci/run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout).unwrap()).unwrap()
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
            "ClusterRoleBinding",
            "ConfigMap",
            "DaemonSet",
            "Namespace",
            "PriorityClass",
            "Service",
            "Service",
            "ServiceAccount",
        ]
    );
    for object in &objects {
        let kind = object["kind"].as_str().unwrap();
        let namespaced = !matches!(kind, "ClusterRole" | "ClusterRoleBinding" | "Namespace" | "PriorityClass");
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
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["tolerations"], serde_json::json!([{"operator": "Exists"}]));
    assert_eq!((&pod["hostNetwork"], &pod["hostPID"]), (&false.into(), &false.into()));
    let container = named(&pod["containers"], "agent");
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["privileged"], false);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
    assert!(container["resources"]["requests"]["memory"].is_string());
    assert!(container["resources"]["limits"]["memory"].is_string());
    let rules = object(&objects, "ClusterRole", "stoker")["rules"].as_array().unwrap();
    assert_eq!(rules, &[serde_json::json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]})]);
    let binding = object(&objects, "ClusterRoleBinding", "stoker");
    assert_eq!(binding["roleRef"]["name"], "stoker");
    assert_eq!(binding["subjects"][0]["name"], pod["serviceAccountName"]);
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
    assert_eq!(container["args"], serde_json::json!(["agent", "--config", "/etc/stoker/agent.yaml"]));
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
