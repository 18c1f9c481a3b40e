//! The step of a build that may run on any node.

use super::*;
use crate::fleet::Fleet;
use crate::support::loopdev::needs_root;

/// A script of `steps`, where the name of all agents is resolved.
fn step_of(fleet: &Fleet, name: &str, more: &[(&str, &str)]) -> Output {
    let script = examples().join("steps").join(name);
    let path = format!("{}:{}", Path::new(BINARY).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut step = fleet.program("sh", &[script.to_str().unwrap()]).deadline(SOON).env("PATH", path);
    for (name, value) in more {
        step = step.env(name, value);
    }
    step.run()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_may_run_anywhere_is_admitted_by_the_fleet_or_goes_on_without() {
    needs_root!();
    let fleet = Fleet::start();
    let stoker = &fleet.caller;
    let place = stoker.home().join("result");
    let name = fleet.name();
    let admit = |fleet_name: &str, more: &[(&str, &str)]| {
        let mut environment = vec![("REPO", fleet.url.as_str()), ("REQUEST_ID", "argo-1"), ("WORKSPACE", "yes")];
        environment.extend([("RESULT", place.to_str().unwrap()), ("FLEET", fleet_name)]);
        environment.extend([("CPU", "100m"), ("MEMORY", "64MiB"), ("DISK", "16MiB"), ("TIME", "10m")]);
        environment.extend(COMMIT);
        environment.extend(more);
        step_of(&fleet, "admit.sh", &environment)
    };
    admit(&name, &[]).expect_code(0);
    let (lease, node, address) = (result(stoker, "lease"), result(stoker, "node"), result(stoker, "address"));
    assert_eq!((fleet.leases_of("argo-1").await, fleet.address(&node)), (vec![&*node], address.clone()));
    let workspace = result(stoker, "workspace");
    let pool = fleet.agent(&node).root().join("pool");
    assert!(Path::new(&workspace).starts_with(pool) && Path::new(&workspace).join("src/README.md").is_file());
    // The step, tried again.
    admit(&name, &[]).expect_code(0);
    assert_eq!((result(stoker, "lease"), fleet.leases_of("argo-1").await.len()), (lease.clone(), 1));
    let released = [("STOKER_ADDRESS", address.as_str()), ("LEASE", &lease), ("EXIT_CODE", "0")];
    step_of(&fleet, "release.sh", &released).expect_code(0);
    assert_eq!(state(fleet.agent(&node), &lease), "LEASE_STATE_RELEASED");

    admit(&name, &[("CPU", "1000"), ("REQUEST_ID", "argo-2")]).expect_code(1);
    let nobody = admit("agents.stoker.test:1", &[]).expect_code(0);
    assert!(nobody.stderr.contains("no agent answers: 3 asked"), "{}", nobody.stderr);
    assert!(nobody.stderr.contains("it goes on without a lease"), "{}", nobody.stderr);
    assert_eq!(result(stoker, "lease") + &result(stoker, "address") + &result(stoker, "workspace"), "");
    assert!(!result(stoker, "commit").is_empty());
}
