//! A lease ends before its volume is unmounted: what it left is somewhere else by then, and the mount with it.

use super::*;

impl World {
    /// What builds left, once that is known.
    fn outputs(&self) -> Vec<Value> {
        let all = self.agent.stoker().run(["output", "list", "-o", "json"]).expect_code(0).json();
        all["outputs"].as_array().unwrap().clone()
    }

    /// A pod that has written to its volume, which is `out` of a workspace.
    async fn pod_that_left_something(&self, uid: &'static str) -> Pod {
        let pod = self.pod(uid);
        self.publish_at_last(&self.wanted(&pod, &[self.main().as_slice(), &[("subPath", "out")]].concat())).await;
        std::fs::write(pod.target.join("built"), "by the build").unwrap();
        pod
    }

    fn wanted_src(&self, pod: &Pod) -> csi::NodePublishVolumeRequest {
        self.wanted(pod, &[self.main().as_slice(), &[("subPath", "src")]].concat())
    }

    /// From its filesystem's root, as the kernel tells what is mounted at a target.
    fn shows(&self, pod: &Pod) -> String {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let shown: Vec<String> =
            lines.filter(|line| Path::new(line[4]) == pod.target).map(|line| line[3].to_owned()).collect();
        let [shown] = shown.as_slice() else { panic!("{shown:?} at {}", pod.target.display()) };
        shown.clone()
    }
}

/// The kubelet unmounts when the pod is gone, and somebody ended the lease before.
#[tokio::test(flavor = "multi_thread")]
async fn an_out_that_was_kept_meanwhile_is_unmounted() {
    needs_root!();
    let world = World::new("");
    world.fill();
    for (uid, end) in [("uid-a", &["lease", "release", "--outcome", "failed"][..]), ("uid-b", &["workspace", "delete"])]
    {
        let pod = world.pod_that_left_something(uid).await;
        let lease = world.leases()[0]["id"].as_str().unwrap().to_owned();
        world.agent.stoker().run([end, &[&lease]].concat()).expect_code(0);
        let id = || Some(world.outputs().last()?["id"].as_str()?.to_owned());
        wait::until(LIMIT, "what it left is kept", || id() == Some(lease.clone()));
        assert!(world.shows(&pod).ends_with(&format!("/stoker/outputs/{lease}")), "{}", world.shows(&pod));
        world.unpublish(&pod).await.unwrap();
        assert!(!pod.target.exists());
        world.nothing_is_left();
        let kept = world.pool().join("stoker/outputs").join(&lease).join("built");
        assert_eq!(std::fs::read(kept).unwrap(), b"by the build");
        world.agent.stoker().run(["output", "delete", &lease]).expect_code(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_out_that_was_kept_and_thrown_away_meanwhile_is_unmounted() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let pod = world.pod_that_left_something("uid-a").await;
    let lease = world.leases()[0]["id"].as_str().unwrap().to_owned();
    world.agent.stoker().run(["lease", "release", "--outcome", "failed", &lease]).expect_code(0);
    wait::until(LIMIT, "what it left is kept", || !world.outputs().is_empty());
    world.agent.stoker().run(["output", "delete", &lease]).expect_code(0);
    assert!(world.shows(&pod).contains("/stoker/trash/"), "{}", world.shows(&pod));
    let trash = world.pool().join("stoker/trash");
    wait::until(LIMIT, "it is removed", || std::fs::read_dir(&trash).is_ok_and(|all| all.count() == 0));
    world.unpublish(&pod).await.unwrap();
    assert!(!pod.target.exists());
    world.nothing_is_left();
}

/// Whoever takes a disk out is told which pods have something of it, also of what no lease holds any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_detached_tells_which_pods_hold_its_disk() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let detached = || {
        let told = world.agent.stoker().run(["pool", "detach", "data", "-o", "json"]).expect_code(0).json();
        assert_eq!(told["pool"]["state"], "Detached");
        told["pool"]["message"].as_str().unwrap().to_owned()
    };
    let cached = world.pod("uid-cached");
    world.publish_at_last(&world.wanted(&cached, &[("kind", "cache"), ("key", "target")])).await;
    let (left, builds) = (world.pod_that_left_something("uid-left").await, world.pod("uid-builds"));
    let lease = world.leases()[0]["id"].as_str().unwrap().to_owned();
    world.agent.stoker().run(["lease", "release", "--outcome", "failed", &lease]).expect_code(0);
    wait::until(LIMIT, "what it left is kept", || !world.outputs().is_empty());
    world.publish_at_last(&world.wanted_src(&builds)).await;
    world.pod("uid-without");

    let told = detached();
    for uid in ["uid-cached", "uid-left", "uid-builds"] {
        assert!(told.contains(uid), "{uid}: {told}");
    }
    assert!(!told.contains("uid-without"), "{told}");
    // As `pool list` and the status do.
    assert!(world.agent.stoker().run(["pool", "list", "-o", "json"]).expect_code(0).stdout.contains(&told));
    for (pod, others) in [(&cached, 2), (&left, 1), (&builds, 0)] {
        world.unpublish(pod).await.unwrap();
        let told = detached();
        assert_eq!((told.contains(pod.uid), told.matches("uid-").count()), (false, others), "{told}");
    }
    wait::until(LIMIT, "nothing holds the disk", || !detached().contains("hold"));
    world.agent.stoker().run(["pool", "attach", "data"]).expect_code(0);
}
