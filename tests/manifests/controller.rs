//! Nodes for gated pods: what the component adds, held against the command line and against the agents' rules.

use super::*;

#[test]
fn the_controller_shows_the_agents_a_token_that_their_rule_is_for() {
    let stoker = Stoker::new();
    let up: PathBuf = stoker.home().components().skip(1).map(|_| "..").collect();
    let at = |path: &str| up.join(daemonset().join(path).strip_prefix("/").unwrap());
    let mut configuration = read("overlays/farm/settings/agent.yaml");
    let rule = read("controller/access.yaml")["access"]["rules"][0].clone();
    configuration["access"]["rules"].as_array_mut().unwrap().push(rule.clone());
    let whole = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [at("overlays/farm/full")], "components": [at("network"), at("controller")],
    });
    for (name, content) in [("agent.yaml", &configuration), ("kustomization.yaml", &whole)] {
        std::fs::write(stoker.home().join(name), content.to_string()).unwrap();
    }
    stoker.run(["config", "check", "agent.yaml"]).expect_code(0);
    let objects = rendered_in(stoker.home());
    let deployment = object(&objects, "Deployment", "stoker-controller");
    let pod = &deployment["spec"]["template"]["spec"];
    let account = format!("stoker/{}", pod["serviceAccountName"].as_str().unwrap());
    assert_eq!((&rule["serviceAccounts"], &rule["tenants"]), (&json!([account]), &json!(["*"])));
    let container = named(&pod["containers"], "controller");
    let token = &named(&pod["volumes"], "token")["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "stoker.build");

    // Its arguments are taken, and name what is mounted.
    let args: Vec<&str> = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    let mounted = |name: &str| named(&container["volumeMounts"], name)["mountPath"].as_str().unwrap().to_owned();
    assert!(
        args.contains(&&*format!("{}/ca.crt", mounted("ca")))
            && args.contains(&&*format!("{}/token", mounted("token")))
    );
    stoker.run(args.iter().copied().chain(["--help"])).expect_code(0);
    let none = stoker.run(args.iter().copied().chain(["--http", "127.0.0.1:0"])).expect_code(2);
    assert!(none.stderr.contains("a controller needs a cluster"), "{}", none.stderr);

    // The Services of the agents do not lead to it, and their port is open to it.
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let selector = &object(&objects, "Service", "stoker-agents")["spec"]["selector"];
    assert_ne!(labels["app.kubernetes.io/name"], selector["app.kubernetes.io/name"]);
    let policy = &object(&objects, "NetworkPolicy", "stoker-grpc-controller")["spec"];
    assert_eq!(&policy["podSelector"]["matchLabels"], selector);
    assert_eq!(&policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"], labels);
    // What PodSecurity `restricted` asks for.
    let (of_pod, of_container) = (&pod["securityContext"], &container["securityContext"]);
    assert_eq!((&of_pod["runAsNonRoot"], &of_pod["seccompProfile"]["type"]), (&json!(true), &json!("RuntimeDefault")));
    assert_eq!(of_container["allowPrivilegeEscalation"], false);
    assert_eq!(of_container["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(
        (deployment["spec"]["replicas"].as_i64(), of_container["readOnlyRootFilesystem"].as_bool()),
        (Some(2), Some(true))
    );
}
