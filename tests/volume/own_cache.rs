//! A pod that builds, and has a directory of its tenant's cache as a volume beside its workspace: that is its build's own.

use std::os::unix::fs::MetadataExt as _;

use super::*;

const KEY: [(&str, &str); 2] = [("kind", "cache"), ("key", "target")];
const SPEC: &[u8] = b"schema_version: 1\ncpu: 0.1\nmemory_gb: 0.1\ndisk_gb: 0.1\ncache_keys: [target]\n";

fn world() -> World {
    let repo = TestRepo::standard();
    repo.commit_file("main", ".build-spec.yaml", SPEC);
    let world = World::of(repo, "");
    world.fill();
    world
}

fn is_same(one: &Path, other: &Path) -> bool {
    let is = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).unwrap();
    is(one) == is(other)
}

impl World {
    /// A pod with a workspace of `main` and a cache, as its volumes.
    fn pod_with_both(&self, uid: &'static str) -> (Pod, Pod) {
        let csi = |attributes: Value| json!({"driver": "stoker.build", "volumeAttributes": attributes});
        let work = csi(json!({"repository": self.url, "ref": "branch:main"}));
        let cache = csi(json!({"kind": "cache", "key": "target"}));
        let volumes = json!([{"name": "src", "csi": work}, {"name": "cache", "csi": cache}]);
        let pod = self.pod_like(uid, |pod| pod["spec"]["volumes"] = volumes);
        let beside = self.beside(&pod, "cache");
        (pod, beside)
    }

    fn work(&self, pod: &Pod) -> csi::NodePublishVolumeRequest {
        self.wanted(pod, &self.main()[..2])
    }

    /// What the build of a pod has as its caches.
    fn cache_of(&self, pod: &Pod) -> PathBuf {
        let leases = self.leases();
        let lease = leases.iter().find(|lease| lease["pod"]["uid"] == pod.uid).expect("a lease of the pod");
        let home = self.pool().join("stoker/workspaces").join(lease["id"].as_str().unwrap());
        let environment = std::fs::read_to_string(home.join("environment")).unwrap();
        let cache = environment.lines().find_map(|line| line.strip_prefix("export STOKER_CACHE=")).unwrap();
        PathBuf::from(cache.trim_matches(['"', '\'']))
    }

    /// Its build ends, and what it had is everybody's again.
    async fn ends(&self, pod: &Pod) {
        let leases = self.leases();
        let lease = leases.iter().find(|lease| lease["pod"]["uid"] == pod.uid).expect("a lease of the pod");
        self.unpublish(pod).await.unwrap();
        let there = || self.agent.stoker().run(["workspace", "list", "-o", "json"]).expect_code(0).json().to_string();
        wait::until(LIMIT, "its workspace is gone", || !there().contains(lease["id"].as_str().unwrap()));
    }

    fn commit(&self, content: &[u8]) {
        self.repo.commit_file("main", "new", content);
        self.agent.stoker().run(["repo", "refresh", &self.url]).expect_code(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_and_the_cache_of_its_pod_are_in_one_place() {
    needs_root!();
    let mut world = world();
    let ((first, first_cache), (second, second_cache)) = (world.pod_with_both("uid-a"), world.pod_with_both("uid-b"));
    // Whichever volume is asked for first: the cache comes after the workspace.
    let refused = world.publish(world.wanted(&first_cache, &KEY)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().starts_with("key: the pod has a volume with a workspace"), "{}", refused.message());
    world.publish_at_last(&world.work(&first)).await;
    world.publish(world.wanted(&first_cache, &KEY)).await.unwrap();
    let shared = world.cache_of(&first);
    assert!(!shared.ends_with("~2") && is_same(&first_cache.target, &shared.join("target")));
    // Another commit meanwhile, both of its volumes at once.
    world.commit(b"1");
    let (work, cache) = (world.work(&second), world.wanted(&second_cache, &KEY));
    tokio::join!(world.publish_at_last(&work), world.publish_at_last(&cache));
    assert_eq!(world.cache_of(&second), shared.join("~2"));
    assert!(is_same(&second_cache.target, &shared.join("~2/target")));
    // The next agent takes neither for a stranger's, nor leaves it to a third one.
    world.agent.restart();
    for (pod, attributes) in [(&first_cache, KEY.as_slice()), (&second_cache, &KEY)] {
        world.publish_at_last(&world.wanted(pod, attributes)).await;
    }
    world.commit(b"2");
    let (third, third_cache) = world.pod_with_both("uid-c");
    world.publish_at_last(&world.work(&third)).await;
    world.publish_at_last(&world.wanted(&third_cache, &KEY)).await;
    assert_eq!(world.cache_of(&third), shared.join("~3"));
    assert!(is_same(&third_cache.target, &shared.join("~3/target")));
    // What a pod has is its own until it is unmounted, though its build has ended; then it is the next one's.
    world.unpublish(&third_cache).await.unwrap();
    for build in [&third, &first] {
        world.ends(build).await;
    }
    world.publish(world.wanted(&first_cache, &KEY)).await.unwrap();
    world.commit(b"3");
    world.publish_at_last(&world.work(&third)).await;
    assert_eq!(world.cache_of(&third), shared.join("~3"));
    world.ends(&third).await;
    world.unpublish(&first_cache).await.unwrap();
    world.publish_at_last(&world.work(&third)).await;
    assert_eq!(world.cache_of(&third), shared);
    for volume in [&third, &second, &second_cache] {
        world.unpublish(volume).await.unwrap();
    }
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_reads_a_cache_moves_no_build() {
    needs_root!();
    let mut world = world();
    let (build, other, reader) = (world.pod("uid-a"), world.pod("uid-b"), world.pod("uid-c"));
    let reads = csi::NodePublishVolumeRequest { readonly: true, ..world.wanted(&reader, &KEY) };
    world.publish_at_last(&reads).await;
    world.publish_at_last(&world.work(&build)).await;
    let alone = world.cache_of(&build);
    assert!(is_same(&alone.join("target"), &reader.target), "{}", alone.display());
    // Nor with the next agent, which has nothing but the kernel's table.
    world.unpublish(&build).await.unwrap();
    world.agent.restart();
    world.publish_at_last(&world.work(&other)).await;
    assert_eq!(world.cache_of(&other), alone);
    for volume in [&other, &reader] {
        world.unpublish(volume).await.unwrap();
    }
    world.nothing_is_left();
}

/// Builds that come meanwhile leave the place to who waits to write there.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_cache_gets_it_though_builds_keep_coming() {
    needs_root!();
    let world = world();
    let (build, next, writer) = (world.pod("uid-a"), world.pod("uid-b"), world.pod("uid-c"));
    world.publish_at_last(&world.work(&build)).await;
    let request = world.wanted(&writer, &KEY);
    let refused = world.publish(request.clone()).await.unwrap_err();
    assert!(refused.message().starts_with("key: a build has this directory"), "{refused:?}");
    // Of the same commit, which would share the place of the first.
    world.publish_at_last(&world.work(&next)).await;
    assert_eq!(world.cache_of(&next), world.cache_of(&build).join("~2"));
    world.unpublish(&build).await.unwrap();
    world.publish_at_last(&request).await;
    assert_eq!(world.leases().len(), 1, "the other one goes on");
    for volume in [&next, &writer] {
        world.unpublish(volume).await.unwrap();
    }
    world.nothing_is_left();
}
