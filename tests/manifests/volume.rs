//! Sources as volumes: what the component adds, held against the configuration and against what the driver says of itself.

use super::*;

#[test]
fn the_driver_of_volumes_is_where_the_kubelet_looks_for_it() {
    let stoker = Stoker::new();
    let up: PathBuf = stoker.home().components().skip(1).map(|_| "..").collect();
    let at = |path: &str| up.join(daemonset().join(path).strip_prefix("/").unwrap());
    let mut configuration = read("overlays/single-node/settings/agent.yaml");
    configuration["volume"] = read("volume/volume.yaml")["volume"].clone();
    let whole = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [at("overlays/single-node/full")], "components": [at("volume")],
    });
    for (name, content) in [("agent.yaml", &configuration), ("kustomization.yaml", &whole)] {
        std::fs::write(stoker.home().join(name), content.to_string()).unwrap();
    }
    stoker.run(["config", "check", "agent.yaml"]).expect_code(0);
    let objects = rendered_in(stoker.home());

    let driver = object(&objects, "CSIDriver", "stoker.build");
    assert_eq!(
        driver["spec"],
        json!({
            "attachRequired": false, "podInfoOnMount": true, "fsGroupPolicy": "None", "requiresRepublish": false,
            "volumeLifecycleModes": ["Ephemeral"], "tokenRequests": [{"audience": "stoker.build"}],
        })
    );
    let pod = pod(&objects);
    let container = named(&pod["containers"], "agent");
    let volume = &configuration["volume"];
    let kubelet = volume["kubelet"].as_str().unwrap();
    let folder = Path::new(volume["socket"].as_str().unwrap()).parent().unwrap().to_str().unwrap();
    for (name, path) in [
        ("kubelet-pods", format!("{kubelet}/pods")),
        ("kubelet-registry", format!("{kubelet}/plugins_registry")),
        ("kubelet-plugin", folder.to_owned()),
    ] {
        let mount = named(&container["volumeMounts"], name);
        let propagates = (name == "kubelet-pods").then_some("Bidirectional");
        assert_eq!(
            (mount["mountPath"].as_str(), mount["mountPropagation"].as_str()),
            (Some(path.as_str()), propagates)
        );
        assert!(mount["readOnly"].is_null());
        assert_eq!(named(&pod["volumes"], name)["hostPath"]["path"], path, "the same on the node");
    }
}

#[test]
fn volumes_are_not_to_be_had_in_the_profile_that_cannot_mount() {
    let stoker = Stoker::new();
    let up: PathBuf = stoker.home().components().skip(1).map(|_| "..").collect();
    let at = |path: &str| up.join(daemonset().join(path).strip_prefix("/").unwrap());
    let whole = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [at("overlays/single-node/restricted")], "components": [at("volume")],
    });
    std::fs::write(stoker.home().join("kustomization.yaml"), whole.to_string()).unwrap();
    let output = Command::new("kubectl").arg("kustomize").arg(stoker.home()).output().unwrap();
    assert!(!output.status.success(), "nothing that this agent mounts is seen by the kubelet");
}
