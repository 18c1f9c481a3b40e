//! What is still so after a SIGKILL and a restart: nothing of a volume is known from memory.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_outlives_the_agent_and_is_unpublished_by_the_next() {
    needs_root!();
    let mut world = World::new("");
    world.fill();
    let pod = world.pod("uid-a");
    let request = world.wanted(&pod, &world.main());
    world.publish_at_last(&request).await;
    std::fs::write(pod.src().join("built"), "before").unwrap();
    let (mounts, lease) = (mounts_below(&world.kubelet()), world.leases()[0]["id"].clone());
    world.agent.kill9();
    assert_eq!(std::fs::read(pod.src().join("built")).unwrap(), b"before", "the pod builds on while nobody serves");
    world.agent.restart();
    assert_eq!(
        (world.leases()[0]["id"].clone(), world.leases()[0]["state"].clone()),
        (lease, json!("LEASE_STATE_BOUND"))
    );
    world.publish(request).await.unwrap();
    assert_eq!((mounts_below(&world.kubelet()), world.leases().len()), (mounts, 1));
    assert_eq!(std::fs::read(pod.src().join("built")).unwrap(), b"before");
    world.agent.restart();
    world.unpublish(&pod).await.unwrap();
    assert!(!pod.target.exists());
    world.nothing_is_left();
}

/// Killed at any moment of a publish, the next agent ends what was begun, or the kubelet gives it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_was_killed_is_done_by_the_next_agent() {
    needs_root!();
    let mut world = World::new("");
    world.fill();
    let uids = ["uid-0", "uid-1", "uid-2", "uid-3", "uid-4", "uid-5"];
    for (round, uid) in (0_u32..).zip(uids) {
        let pod = world.pod(uid);
        let request = world.wanted(&pod, &world.main());
        let mut node = world.node().await;
        let under_way = {
            let request = request.clone();
            tokio::spawn(async move { node.node_publish_volume(request).await })
        };
        // Not a wait for anything: the moment of the kill is what differs from round to round.
        tokio::time::sleep(Duration::from_millis(15) * round).await;
        world.agent.kill9();
        let _ = under_way.await;
        world.agent.restart();
        world.publish_at_last(&request).await;
        assert_eq!(git_out(&pod.src(), &["status", "--porcelain"]), "");
        assert_eq!(git_out(&pod.src(), &["rev-parse", "HEAD"]), world.repo.commit("main"));
        assert_eq!(world.leases().len(), 1, "one lease, however often it was asked for");
        world.unpublish(&pod).await.unwrap();
        world.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_in_the_queue_outlives_the_agent() {
    needs_root!();
    let mut world = World::new("admission: {leasesMax: 1}\n");
    world.fill();
    let (first, second) = (world.pod("uid-a"), world.pod("uid-b"));
    world.publish_at_last(&world.wanted(&first, &world.main())).await;
    let request = world.wanted(&second, &world.main());
    assert_eq!(world.publish(request.clone()).await.unwrap_err().code(), Code::ResourceExhausted);
    let ticket = world.tickets()[0]["id"].clone();
    world.agent.restart();
    assert_eq!(world.tickets()[0]["id"], ticket);
    world.unpublish(&first).await.unwrap();
    let granted = || world.leases().first().is_some_and(|lease| lease["state"] == "LEASE_STATE_RESERVED");
    wait::until(LIMIT, "the next agent confirms the grant", || granted() && world.leases()[0]["confirmBy"].is_null());
    world.publish_at_last(&request).await;
    world.unpublish(&second).await.unwrap();
    world.nothing_is_left();
}

/// After a reboot nothing is mounted, and the leases of the boot before are over: the kubelet publishes again before it
/// starts the container.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_a_volume_is_published_again() {
    needs_root!();
    let mut world = World::new("");
    world.fill();
    let pod = world.pod("uid-a");
    let request = world.wanted(&pod, &world.main());
    world.publish_at_last(&request).await;
    let lease = world.leases()[0]["id"].as_str().unwrap().to_owned();
    world.agent.kill9();
    crate::support::disk::take_overlays_away(world.agent.root());
    kubelet::share(&world.agent.root().join("shared"));
    let boot = world.agent.root().join("host/proc/sys/kernel/random/boot_id");
    std::fs::write(boot, "00000000-0000-4000-8000-000000000001\n").unwrap();
    world.agent.restart();
    assert_eq!(world.lease(&lease)["state"], "LEASE_STATE_ORPHANED");
    world.publish_at_last(&request).await;
    assert_ne!(world.leases()[0]["id"], json!(lease));
    assert_eq!(git_out(&pod.src(), &["status", "--porcelain"]), "");
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

/// Whether or not what volumes show can be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_with_its_volume_while_the_pool_is_away() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let pod = world.pod("uid-a");
    world.publish_at_last(&world.wanted(&pod, &world.main())).await;
    assert_eq!(world.leases().len(), 1);
    let away = world.pool().with_file_name("away");
    std::fs::rename(world.pool(), &away).unwrap();
    std::fs::write(world.pool(), "no directory").unwrap();
    world.unpublish(&pod).await.unwrap();
    assert_eq!((world.leases(), world.tickets()), (Vec::new(), Vec::new()));
    std::fs::remove_file(world.pool()).unwrap();
    std::fs::rename(&away, world.pool()).unwrap();
    world.nothing_is_left();
}

/// What was mounted before the agent began is known after its first look at the kernel's table. Until then no build begins:
/// it would take what a pod writes to for its own.
#[tokio::test(flavor = "multi_thread")]
async fn no_build_begins_before_the_first_look_at_what_volumes_show() {
    needs_root!();
    let repo = TestRepo::standard();
    let spec = "schema_version: 1\ncache_keys: [target]\n";
    repo.commit_file("main", ".build-spec.yaml", spec.as_bytes());
    let mut world = World::of(repo, "");
    // A pool of its own for workspaces and caches, so that the mirrors are there while it is away.
    let (path, pool) = (world.agent.root().join("agent.yaml"), world.agent.root().join("shared/builds"));
    let text = std::fs::read_to_string(&path).unwrap();
    let entry = format!(
        "pools: [{{name: builds, path: {}, mount: optional, floor: {{bytes: 1MiB, inodes: 1}}}}, ",
        pool.display()
    );
    let text = text.replace("pools: [", &entry).replace("repositories: {", "repositories: {pool: data, ");
    std::fs::write(&path, text + "workspaces: {pool: builds}\n").unwrap();
    let opened = |world: &World| world.agent.log().matches("gate state=open").count();
    let before = opened(&world);
    world.agent.restart();
    wait::until(LIMIT, "the gate opens", || opened(&world) > before);
    world.fill();
    let pod = world.pod("uid-a");
    world.publish_at_last(&world.wanted(&pod, &[("kind", "cache"), ("key", "target")])).await;
    let lease = world.admit("builds");

    world.agent.kill9();
    let away = pool.with_file_name("away");
    std::fs::rename(&pool, &away).unwrap();
    std::fs::write(&pool, "no directory").unwrap();
    let looks = |world: &World| world.agent.log().matches("what volumes show is not up to date").count();
    let before = looks(&world);
    world.agent.restart();
    // Just after a look: the next one comes half a second later at the soonest.
    wait::until(LIMIT, "it was looked in vain", || looks(&world) > before);
    std::fs::remove_file(&pool).unwrap();
    std::fs::rename(&away, &pool).unwrap();
    let request = || stoker_proto::v1::PrepareWorkspaceRequest {
        r#for: Some(stoker_proto::v1::prepare_workspace_request::For::LeaseId(lease.clone())),
        ..Default::default()
    };
    let prepared = async || match world.agent.workspace().await.prepare_workspace(request()).await {
        Ok(events) => {
            let mut events = events.into_inner();
            while events.message().await.unwrap().is_some() {}
            true
        }
        Err(status) => {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            false
        }
    };
    wait::until_async(LIMIT, "the workspace is prepared", prepared).await;
    let environment = std::fs::read_to_string(pool.join("stoker/workspaces").join(&lease).join("environment")).unwrap();
    let cache = environment.lines().find_map(|line| line.strip_prefix("export STOKER_CACHE=")).unwrap();
    assert!(cache.trim_matches(['"', '\'']).ends_with("/~2"), "a place of its own: {cache}");
    world.unpublish(&pod).await.unwrap();
}
