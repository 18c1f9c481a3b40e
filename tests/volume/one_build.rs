//! A pod is one build: it has one lease, of at least what it asks of the cluster, and mounts that reach it.

use super::*;
use crate::support::api_server::Health;

impl World {
    fn pod_that_asks(&self, uid: &'static str, requests: Value) -> Pod {
        self.pod_like(uid, |pod| pod["spec"]["containers"][0]["resources"] = json!({"requests": requests}))
    }

    /// What a build of this size would be told, as a scheduler asks.
    fn evaluated(&self, cpu: &str) -> Value {
        let of = ["lease", "evaluate", "--repo", &self.url, "--ref", "branch:main", "--tenant", "red", "--cpu", cpu];
        let size = ["--memory", "64MiB", "--disk", "1MiB", "-o", "json"];
        self.agent.stoker().run(of.into_iter().chain(size)).json()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_for_no_less_than_its_pod_asks_for() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let pod = world.pod_that_asks("uid-a", json!({"cpu": "6", "memory": "100Mi"}));
    // 100m and 64 MiB are declared.
    world.publish_at_last(&world.wanted(&pod, &world.main())).await;
    let lease = world.leases()[0].clone();
    let size =
        |lease: &Value| (lease["sizing"]["size"]["cpuMillis"].clone(), lease["sizing"]["size"]["memoryBytes"].clone());
    assert_eq!(size(&lease), (json!("6000"), json!((100_u64 << 20).to_string())), "{lease}");
    // What asks for more than there is gets no lease that grows when it is bound.
    let huge = world.pod_that_asks("uid-b", json!({"cpu": "64"}));
    let refused = world.publish(world.wanted(&huge, &world.main())).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("CPU_BUDGET"), "{}", refused.message());
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

/// While it waits the scheduler of the cluster has given it what it asks for: others do not get that, and it does.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_that_waits_asks_for_is_not_free_for_others() {
    needs_root!();
    let world = World::new("admission: {leasesMax: 1}\n");
    world.fill();
    let (first, waits) = (world.pod("uid-a"), world.pod_that_asks("uid-b", json!({"cpu": "20"})));
    world.publish_at_last(&world.wanted(&first, &world.main())).await;
    let request = world.wanted(&waits, &world.main());
    let refused = world.publish(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("LEASES_FULL") && !refused.message().contains("NODE_REQUESTS"), "{refused:?}");
    // Until its pod is known to wait, what it asks for counts as used.
    let told = |cpu: &str| world.evaluated(cpu).to_string();
    wait::until(LIMIT, "20 of 30 CPU are given", || told("11").contains("NODE_REQUESTS"));
    assert!(!told("9").contains("NODE_REQUESTS") && !told("9").contains("CPU_HELD"), "{}", told("9"));
    world.unpublish(&first).await.unwrap();
    world.publish_at_last(&request).await;
    world.unpublish(&waits).await.unwrap();
    world.nothing_is_left();
}

/// What cannot be mounted gives its lease back, and its pod waits as before: what that asks for is not counted beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_mount_failed_is_not_in_its_own_way() {
    needs_root!();
    let world = World::new("");
    world.fill();
    // A build runs: else the next one would start whatever is in its way.
    let (first, pod) = (world.pod("uid-a"), world.pod_that_asks("uid-b", json!({"cpu": "20"})));
    world.publish_at_last(&world.wanted(&first, &world.main())).await;
    let others = || {
        let status = world.agent.stoker().run(["status", "-o", "json"]).expect_code(0).json();
        let others = status["status"]["ledger"]["others"]["cpuMillis"].as_str().unwrap_or("0").parse::<u64>();
        others.unwrap()
    };
    let attempts = [("nowhere", "uid-c", 1000), ("nowhere", "uid-d", 2000), ("src", "uid-e", 3000)];
    for (sub_path, beside, asked_beside) in attempts {
        let attributes = [world.main().as_slice(), &[("subPath", sub_path)]].concat();
        let request = world.wanted(&pod, &attributes);
        let published = async || match world.publish(request.clone()).await {
            Ok(()) => true,
            Err(status) if status.code() == Code::InvalidArgument => {
                assert!(status.message().starts_with("subPath: "), "{status:?}");
                true
            }
            Err(status) => {
                // Its sources may be on their way; for room it does not wait, once it is known that it asks.
                let is_new = beside == "uid-c" && status.code() == Code::ResourceExhausted;
                assert!(status.code() == Code::Unavailable || is_new, "{status:?}");
                false
            }
        };
        wait::until_async(LIMIT, "it is mounted, or refused for good", published).await;
        assert_eq!((world.leases().len(), world.tickets()), (if sub_path == "src" { 2 } else { 1 }, Vec::new()));
        // Until what pods hold was looked at since: one that came just now is seen, and nothing else.
        world.pod_that_asks(beside, json!({"cpu": "1"}));
        wait::until(LIMIT, "a pod that came after it is counted, and it is not", || others() == asked_beside);
    }
    world.unpublish(&pod).await.unwrap();
    world.unpublish(&first).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_volume_with_a_lease_is_refused_by_name() {
    needs_root!();
    let mut world = World::new("admission: {leasesMax: 1}\n");
    world.fill();
    let (holder, pod) = (world.pod("uid-a"), world.pod("uid-b"));
    world.publish_at_last(&world.wanted(&holder, &world.main())).await;
    let refuse = async |world: &World, volume: &Pod, attributes: &[(&str, &str)], name: &str| {
        let refused = world.publish(world.wanted(volume, attributes)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        for told in ["a pod is one build", "subPath", "stoker.build/lease"] {
            assert!(refused.message().contains(told), "{told}: {}", refused.message());
        }
        assert!(refused.message().starts_with(&format!("{name}: ")), "{}", refused.message());
        assert!(!volume.target.exists());
    };
    // While the first one waits, also with the next agent, and when it has its lease.
    let second = world.beside(&pod, "second");
    let request = world.wanted(&pod, &world.main());
    assert_eq!(world.publish(request.clone()).await.unwrap_err().code(), Code::ResourceExhausted);
    refuse(&world, &second, &world.main(), "repository").await;
    world.agent.restart();
    refuse(&world, &second, &world.main(), "repository").await;
    world.unpublish(&holder).await.unwrap();
    world.publish_at_last(&request).await;
    assert_eq!((world.leases().len(), world.tickets().len()), (1, 0));
    refuse(&world, &second, &world.main(), "repository").await;
    refuse(&world, &second, &[("lease", "0000-any")], "lease").await;
    // Its cache is no build.
    world.publish(world.wanted(&second, &[("kind", "cache")])).await.unwrap();
    world.unpublish(&second).await.unwrap();
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_volumes_that_come_at_once_one_is_a_build() {
    needs_root!();
    let world = World::new("");
    world.fill();
    for uid in ["uid-0", "uid-1", "uid-2", "uid-3"] {
        let pod = world.pod(uid);
        let second = world.beside(&pod, "second");
        let ask = |pod: &Pod| {
            let request = world.wanted(pod, &world.main());
            let world = &world;
            async move {
                let published = async || match world.publish(request.clone()).await {
                    Err(status) if matches!(status.code(), Code::Unavailable | Code::Aborted) => false,
                    Err(status) if status.code() == Code::InvalidArgument => true,
                    other => other.map(|()| true).unwrap(),
                };
                wait::until_async(LIMIT, "there is an answer for good", published).await;
            }
        };
        tokio::join!(ask(&pod), ask(&second));
        assert_eq!(world.leases().len(), 1);
        assert_ne!(pod.target.exists(), second.target.exists(), "one of them");
        for volume in [&pod, &second] {
            world.unpublish(volume).await.unwrap();
        }
        world.nothing_is_left();
    }
}

/// Several volumes of one lease are one build.
#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_one_lease_are_one_build() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let lease = world.admit("builds");
    let pod = world.pod_with("uid-a", &lease);
    let (second, third) = (world.beside(&pod, "second"), world.beside(&pod, "third"));
    world.publish_at_last(&world.wanted(&pod, &world.main())).await;
    world.publish(world.wanted(&second, &[world.main().as_slice(), &[("subPath", "src")]].concat())).await.unwrap();
    world.publish(world.wanted(&third, &[("lease", &lease), ("subPath", "out")])).await.unwrap();
    assert!(pod.src().join("README.md").is_file() && second.target.join("README.md").is_file());
    assert_eq!(world.leases().len(), 1);
    for volume in [&pod, &second, &third] {
        world.unpublish(volume).await.unwrap();
    }
    world.agent.stoker().run(["lease", "release", &lease, "--outcome", "succeeded"]).expect_code(0);
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_mounted_where_no_pod_would_see_it() {
    needs_root!();
    let mut world = World::new("");
    world.fill();
    let pod = world.pod("uid-a");
    let shared = world.agent.root().join("shared");
    let make = |how: &str| {
        let done = std::process::Command::new("mount").args([how, shared.to_str().unwrap()]).status();
        assert!(done.unwrap().success());
    };
    make("--make-private");
    for attributes in [world.main().as_slice(), &[("kind", "cache")], &[("kind", "mirrors")]] {
        let refused = world.publish(world.wanted(&pod, attributes)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        for told in ["volume.kubelet: ", "mountPropagation: Bidirectional"] {
            assert!(refused.message().contains(told), "{told}: {}", refused.message());
        }
        world.nothing_is_left();
    }
    world.agent.restart();
    wait::until(LIMIT, "the log says so", || world.agent.log().contains("no volume can be served: volume.kubelet: "));
    make("--make-shared");
    world.publish_at_last(&world.wanted(&pod, &world.main())).await;
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

/// While nobody can be asked whether a pod is here, whoever binds its lease is told to come again: nothing is wrong with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_bound_when_the_api_server_answers_again() {
    use stoker_proto::v1;
    let world = World::new("");
    world.fill();
    let (pod, lease) = (world.pod("uid-a"), world.admit("builds"));
    let socket = world.agent.socket();
    let bind = async || {
        let mut client = v1::admission_service_client::AdmissionServiceClient::new(World::channel(&socket).await);
        let to = v1::Pod { namespace: "builds".into(), name: "pod-uid-a".into(), uid: "uid-a".into() };
        let to = Some(v1::bind_request::To::Pod(to));
        let mut request = tonic::Request::new(v1::BindRequest { lease_id: lease.clone(), to });
        request.metadata_mut().insert("authorization", format!("Bearer {}", pod.token).parse().unwrap());
        client.bind(request).await
    };
    world.api.go_away();
    // To the same pod as often as one likes.
    wait::until_async(LIMIT, "the agent sees that it is away", async || bind().await.is_err()).await;
    let refused = bind().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().starts_with("API_SERVER_AWAY: "), "{}", refused.message());
    world.api.come_back();
    world.api.set_health(Health::Well);
    wait::until_async(LIMIT, "it is bound", async || bind().await.is_ok()).await;
    assert_eq!(world.leases()[0]["pod"]["uid"], "uid-a");
}
