//! Volumes that are no build's: the cache of a tenant, and the mirrors that it may read.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};

use super::*;

const CACHE: [(&str, &str); 2] = [("kind", "cache"), ("key", "target")];
const MIRRORS: [(&str, &str); 1] = [("kind", "mirrors")];

/// Where a mirror is in its directory.
fn named(url: &str) -> String {
    let name = url.strip_prefix("http://").unwrap();
    format!("{}.git", name.strip_suffix(".git").unwrap_or(name))
}

/// As somebody who is not root.
fn write_as(user: u32, file: &Path) -> bool {
    let script = format!("echo written > {}", file.display());
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()]);
    command.args(["sh", "-c", &script]).stderr(Stdio::null()).status().unwrap().success()
}

/// The options of what is mounted at a target, without where it comes from.
fn options(target: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == target.to_str()).unwrap();
    line.split(' ').nth(5).unwrap().split(',').map(str::to_owned).collect()
}

impl World {
    /// The directories of mirrors on the pool.
    fn shelves(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir(self.pool().join("stoker/mirrors")).into_iter().flatten();
        all.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }

    /// How many hold a snapshot of a mirror.
    fn holders(&self, url: &str) -> Value {
        let all = self.agent.stoker().run(["repo", "show", url, "-o", "json"]).expect_code(0).json();
        all["repository"]["holders"].clone()
    }

    fn refresh(&self) {
        self.agent.stoker().run(["repo", "refresh", &self.url]).expect_code(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_tenant_share_its_cache_with_its_builds() {
    needs_root!();
    let mut world = World::new("");
    world.fill();
    let (one, other, reds) = (world.pod("uid-a"), world.pod("uid-b"), world.pod_of("uid-c", "red"));
    for pod in [&one, &other, &reds] {
        world.publish(world.wanted(pod, &CACHE)).await.unwrap();
    }
    assert_eq!((world.leases(), world.tickets()), (Vec::new(), Vec::new()), "it is no build");
    assert_eq!(std::fs::metadata(&one.target).unwrap().permissions().mode() & 0o7777, 0o1777, "as builds make it");
    assert!(write_as(4711, &one.target.join("output")));
    assert_eq!(std::fs::read_to_string(other.target.join("output")).unwrap(), "written\n");
    assert!(!reds.target.join("output").exists(), "another tenant has another");
    for flag in ["nosuid", "nodev"] {
        assert!(options(&one.target).iter().any(|option| option == flag), "{flag}: {:?}", options(&one.target));
    }

    // It is what the tenant's builds have, which get a place of their own meanwhile.
    let build = world.pod("uid-d");
    world.publish_at_last(&world.wanted(&build, &world.main())).await;
    let home = world.pool().join("stoker/workspaces").join(world.leases()[0]["id"].as_str().unwrap());
    let environment = std::fs::read_to_string(home.join("environment")).unwrap();
    let cache = environment.lines().find_map(|line| line.strip_prefix("export STOKER_CACHE=")).unwrap();
    let is = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).unwrap();
    assert_eq!(is(&one.target), is(&Path::new(cache.trim_matches(['"', '\''])).join("target")));
    world.unpublish(&build).await.unwrap();

    // All of it, and for reading alone.
    world.unpublish(&other).await.unwrap();
    let request = world.wanted(&other, &CACHE[..1]);
    world.publish(request.clone()).await.unwrap();
    assert_eq!(std::fs::read_to_string(other.target.join("target/output")).unwrap(), "written\n");
    let refused = std::fs::write(other.target.join("target/output"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let before = mounts_below(&world.kubelet());
    world.agent.kill9();
    assert!(write_as(4711, &one.target.join("later")), "it outlives the agent");
    world.agent.restart();
    world.publish(request).await.unwrap();
    assert_eq!(mounts_below(&world.kubelet()), before, "again is the same as once");
    for pod in [&one, &other, &reds] {
        world.unpublish(pod).await.unwrap();
        world.unpublish(pod).await.unwrap();
    }
    world.nothing_is_left();
    assert!(Path::new(cache.trim_matches(['"', '\''])).join("target/later").is_file(), "it stays for the next one");
}

/// A commit that comes back to a cache trusts what others wrote to it no more than it trusts another commit's outputs.
#[tokio::test(flavor = "multi_thread")]
async fn a_build_beside_a_volume_has_a_place_of_its_own() {
    needs_root!();
    let repo = TestRepo::standard();
    repo.commit_file(
        "main",
        ".build-spec.yaml",
        b"schema_version: 1\ncpu: 0.1\nmemory_gb: 0.1\ndisk_gb: 0.1\ncache_keys: [target]\n",
    );
    let world = World::of(repo, "");
    world.fill();
    let (pod, build) = (world.pod("uid-a"), world.pod("uid-b"));
    let attributes = [world.main()[0], world.main()[1]];
    let slot = async || {
        world.publish_at_last(&world.wanted(&build, &attributes)).await;
        let home = world.pool().join("stoker/workspaces").join(world.leases()[0]["id"].as_str().unwrap());
        let environment = std::fs::read_to_string(home.join("environment")).unwrap();
        let touched = std::fs::metadata(build.src().join("README.md")).unwrap().mtime();
        world.unpublish(&build).await.unwrap();
        let cache = environment.lines().find_map(|line| line.strip_prefix("export STOKER_CACHE=")).unwrap().to_owned();
        (cache.trim_matches(['"', '\'']).to_owned(), touched)
    };
    let (alone, old) = slot().await;
    // Once the build has ended: until then its directory is its own.
    world.publish_at_last(&world.wanted(&pod, &CACHE)).await;
    let (beside, _) = slot().await;
    assert_eq!(beside, format!("{alone}/~2"));
    world.unpublish(&pod).await.unwrap();
    let (after, young) = slot().await;
    assert_eq!(after, alone);
    assert!(young > old, "all files are younger than what the volume may have left: {young} and {old}");

    // Where the build was there first, who would write waits, and who reads does not.
    world.publish_at_last(&world.wanted(&build, &attributes)).await;
    let request = world.wanted(&pod, &CACHE);
    let refused = world.publish(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().starts_with("key: a build has this directory"), "{}", refused.message());
    assert!(!pod.target.is_dir() || mounts_below(&pod.target).is_empty());
    let reads = csi::NodePublishVolumeRequest { readonly: true, ..request.clone() };
    world.publish(reads).await.unwrap();
    world.unpublish(&pod).await.unwrap();
    world.publish(world.wanted(&pod, &[CACHE[0], ("key", "other")])).await.unwrap();
    world.unpublish(&pod).await.unwrap();
    world.unpublish(&build).await.unwrap();
    world.publish_at_last(&request).await;
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_takes_no_cache_from_under_a_pod() {
    needs_root!();
    let mut world = World::new("caches: {limit: 1MiB}\n");
    let pod = world.pod("uid-a");
    world.publish(world.wanted(&pod, &CACHE)).await.unwrap();
    std::fs::write(pod.target.join("large"), vec![1; 4 << 20]).unwrap();
    let planned = |world: &World| {
        // Until the agent knows what is there it says so, and takes nothing.
        let plan = || world.agent.stoker().run(["plan", "-o", "json"]);
        wait::until(LIMIT, "there is a plan", || plan().code() == Some(0));
        plan().expect_code(0).json().to_string().contains("stoker/caches/")
    };
    for _ in 0..2 {
        assert!(!planned(&world), "a pod has it");
        world.agent.restart();
    }
    assert!(!planned(&world) && pod.target.join("large").is_file(), "the next agent knows it from the kernel's table");
    // Nobody came to unmount it, and its pod is gone.
    world.api.delete("pods", "builds", "pod-uid-a");
    let cache = world.pool().join("stoker/caches");
    let is_empty = || {
        let tenants = std::fs::read_dir(&cache).unwrap();
        tenants.into_iter().all(|tenant| std::fs::read_dir(tenant.unwrap().path()).unwrap().next().is_none())
    };
    wait::until(LIMIT * 2, "what is above the limit goes", is_empty);
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

/// What reads one directory for long keeps the tenant's others from nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_holds_the_directory_that_it_shows() {
    needs_root!();
    let mut world = World::new("caches: {limit: 1MiB}\n");
    let (reader, all, writer) = (world.pod("uid-a"), world.pod("uid-b"), world.pod("uid-c"));
    let reads = csi::NodePublishVolumeRequest { readonly: true, ..world.wanted(&reader, &CACHE) };
    world.publish(reads).await.unwrap();
    world.publish(world.wanted(&all, &CACHE[..1])).await.unwrap();
    world.publish(world.wanted(&writer, &[CACHE[0], ("key", "other")])).await.unwrap();
    std::fs::write(writer.target.join("large"), vec![1; 4 << 20]).unwrap();
    world.unpublish(&writer).await.unwrap();
    // The next agent counts it anew.
    world.agent.restart();
    wait::until(LIMIT, "what is above the limit goes", || !all.target.join("other").exists());
    assert!(all.target.join("target").is_dir() && reader.target.is_dir());
    for pod in [&reader, &all] {
        world.unpublish(pod).await.unwrap();
    }
    world.nothing_is_left();
}

/// What a source calls its directories says nothing of anybody's cache.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_a_cache_s_name_holds_no_cache() {
    needs_root!();
    let mut world = World::new("caches: {limit: 1MiB}\n");
    let (red, forger) = (world.pod_of("uid-a", "red"), world.pod("uid-b"));
    world.publish(world.wanted(&red, &CACHE)).await.unwrap();
    let tenants = world.pool().join("stoker/caches");
    let folder = std::fs::read_dir(&tenants).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    let forged = format!("stoker/caches/{folder}/target");
    world.repo.commit_file("main", &format!("{forged}/kept"), b"");
    world.fill();
    let sub_path = format!("src/{forged}");
    let attributes = [world.main().as_slice(), &[("subPath", &sub_path)]].concat();
    world.publish_at_last(&world.wanted(&forger, &attributes)).await;
    assert!(forger.target.join("kept").is_file());
    std::fs::write(red.target.join("large"), vec![1; 4 << 20]).unwrap();
    world.unpublish(&red).await.unwrap();
    // The next agent counts it anew.
    world.agent.restart();
    wait::until(LIMIT, "what is above the limit goes", || !tenants.join(&folder).join("target").exists());
    world.unpublish(&forger).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reads_the_mirrors_of_its_tenant_and_no_others() {
    needs_root!();
    let mut world = World::new("");
    world.fill();
    let hidden = TestRepo::standard();
    let secret = world.upstream.host("secret.git", &hidden);
    world.agent.stoker().run(["repo", "add", &secret, "--trust", "secret"]).expect_code(0);
    let filled = || {
        let all = world.agent.stoker().run(["repo", "show", &secret, "-o", "json"]).expect_code(0).json();
        all["repository"]["state"] == "REPOSITORY_STATE_READY"
    };
    wait::until(LIMIT, "the secret mirror is filled", filled);
    let pod = world.pod("uid-a");
    let request = world.wanted(&pod, &MIRRORS);
    world.publish(request.clone()).await.unwrap();
    assert_eq!((world.leases(), world.tickets()), (Vec::new(), Vec::new()), "it is no build");
    let mirror = pod.target.join(named(&world.url));
    let head = |at: &Path| git_out(at, &["-c", "safe.directory=*", "rev-parse", "main"]);
    assert_eq!(head(&mirror), world.repo.commit("main"));
    git_out(&mirror, &["-c", "safe.directory=*", "fsck", "--connectivity-only"]);
    let clone = world.agent.root().join("clone");
    let place = format!("file://{}", mirror.display());
    git_out(world.agent.root(), &["-c", "safe.directory=*", "clone", "--quiet", &place, clone.to_str().unwrap()]);
    assert_eq!(git_out(&clone, &["rev-parse", "HEAD"]), world.repo.commit("main"));
    assert!(!pod.target.join(named(&secret)).exists());
    assert_eq!(std::fs::read_dir(pod.target.join(".at")).unwrap().count(), 1, "nothing of another class is there");
    for flag in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(options(&pod.target).iter().any(|option| option == flag), "{flag}: {:?}", options(&pod.target));
    }
    let refused = std::fs::write(mirror.join("HEAD"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    let record = std::fs::read_dir(world.pool().join("stoker/mirrors")).unwrap().map(|entry| entry.unwrap().path());
    let record = record.into_iter().find(|path| path.is_file()).unwrap();
    let written = std::fs::metadata(&record).unwrap().ino();
    // It follows the mirror, for whoever looks by the name, also with the next agent; git that works in it goes on.
    let inside = std::fs::canonicalize(&mirror).unwrap();
    for restarted in [false, true] {
        if restarted {
            world.agent.restart();
        }
        let commit = world.repo.commit_file("main", "new", if restarted { b"2" } else { b"1" });
        world.refresh();
        wait::until(LIMIT, "the pod sees it", || head(&mirror) == commit);
        git_out(&inside, &["-c", "safe.directory=*", "fsck", "--connectivity-only"]);
    }
    assert_eq!(std::fs::metadata(&record).unwrap().ino(), written, "what it is of is not written anew");
    world.publish(request).await.unwrap();
    assert_eq!(mounts_below(&world.kubelet()).len(), 1, "again is the same as once");
    assert!(world.holders(&world.url) != json!(0), "what a pod sees is not taken: {}", world.holders(&world.url));
    world.unpublish(&pod).await.unwrap();
    wait::until(LIMIT, "its directory goes with the last one who has it", || world.shelves().is_empty());
    wait::until(LIMIT, "nobody holds it", || {
        world.holders(&world.url).is_null() || world.holders(&world.url) == json!(0)
    });
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_cannot_be_laid_out_keeps_no_other() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let repo = TestRepo::standard();
    let first = world.upstream.host("a-first.git", &repo);
    world.agent.stoker().run(["repo", "add", &first]).expect_code(0);
    let pod = world.pod("uid-a");
    world.publish(world.wanted(&pod, &MIRRORS)).await.unwrap();
    let (first_mirror, mirror) = (pod.target.join(named(&first)), pod.target.join(named(&world.url)));
    wait::until(LIMIT, "both are there", || first_mirror.join("HEAD").exists() && mirror.join("HEAD").exists());
    assert!(named(&first) < named(&world.url), "it is laid out before the other");
    // Nothing can be made where its copies are.
    let copies = std::fs::canonicalize(&first_mirror).unwrap().parent().unwrap().to_owned();
    let copies = world.shelves()[0].join(copies.strip_prefix(&pod.target).unwrap());
    let sealed = |flag: &str| assert!(Command::new("chattr").arg(flag).arg(&copies).status().unwrap().success());
    sealed("+i");
    let head = |at: &Path| git_out(at, &["-c", "safe.directory=*", "rev-parse", "main"]);
    let (before, of_first) = (head(&first_mirror), repo.commit_file("main", "new", b"1"));
    world.agent.stoker().run(["repo", "refresh", &first]).expect_code(0);
    let commit = world.repo.commit_file("main", "new", b"1");
    world.refresh();
    wait::until(LIMIT, "the pod sees the other", || head(&mirror) == commit);
    assert_eq!(head(&first_mirror), before);
    sealed("-i");
    wait::until(LIMIT, "and then this one", || head(&first_mirror) == of_first);
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_held_for_pods_that_are_there() {
    needs_root!();
    let mut world = World::new("");
    world.fill();
    let (pod, other) = (world.pod("uid-a"), world.pod("uid-b"));
    for pod in [&pod, &other] {
        world.publish(world.wanted(pod, &MIRRORS)).await.unwrap();
    }
    assert_eq!(world.shelves().len(), 1, "who may read the same has the same");
    // A mirror that is removed is shown no more.
    let mirror = pod.target.join(named(&world.url));
    world.agent.stoker().run(["repo", "remove", &world.url]).expect_code(0);
    wait::until(LIMIT, "it is not there any more", || !mirror.exists());
    let copies = || std::fs::read_dir(pod.target.join(".at")).unwrap().count();
    wait::until(LIMIT, "nor are its copies, by whatever name", || copies() == 0);
    world.fill();
    wait::until(LIMIT, "it is there again", || mirror.join("HEAD").exists());
    // A pod that is gone holds nothing, though nobody unmounted for it.
    world.api.delete("pods", "builds", "pod-uid-a");
    world.unpublish(&other).await.unwrap();
    wait::until(LIMIT, "its directory goes", || world.shelves().is_empty());
    world.unpublish(&pod).await.unwrap();
    // Nor does what was mounted before a reboot.
    let pod = world.pod("uid-c");
    world.publish(world.wanted(&pod, &MIRRORS)).await.unwrap();
    world.agent.kill9();
    assert!(Command::new("umount").arg(&pod.target).status().unwrap().success());
    world.agent.restart();
    wait::until(LIMIT, "its directory goes", || world.shelves().is_empty());
    world.publish(world.wanted(&pod, &MIRRORS)).await.unwrap();
    assert!(pod.target.join(named(&world.url)).join("HEAD").exists());
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

/// What a container runs with is not taken from it.
#[tokio::test(flavor = "multi_thread")]
async fn mirrors_that_a_pod_has_stay_though_the_rules_change() {
    needs_root!();
    let mut world = World::new("");
    world.fill();
    let (pod, later) = (world.pod("uid-a"), world.pod("uid-b"));
    let request = world.wanted(&pod, &MIRRORS);
    world.publish(request.clone()).await.unwrap();
    let is = |pod: &Pod| std::fs::metadata(&pod.target).map(|meta| (meta.dev(), meta.ino())).unwrap();
    let before = is(&pod);
    let file = world.agent.root().join("agent.yaml");
    let (rule, more) = ("namespaces: [builds, red]", "namespaces: [builds, red], trust: [default, secret]");
    world.agent.configure(&std::fs::read_to_string(file).unwrap().replace(rule, more));
    world.agent.restart();
    world.publish_at_last(&request).await;
    world.publish_at_last(&world.wanted(&later, &MIRRORS)).await;
    assert_eq!(is(&pod), before, "what it has");
    assert_ne!(is(&later), before, "and who comes now has what the rules say");
    for pod in [&pod, &later] {
        world.unpublish(pod).await.unwrap();
    }
    world.nothing_is_left();
}

/// An agent that begins with too little room looks at what volumes show before it makes some.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_evicts_no_mirror_that_a_pod_has() {
    needs_root!();
    let repo = TestRepo::standard();
    // What does not compress.
    let mut state = 1_u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    repo.commit_file("main", "noise", &noise.take(2 << 20).collect::<Vec<u8>>());
    let mut world = World::of(repo, "");
    world.fill();
    let pod = world.pod("uid-a");
    world.publish(world.wanted(&pod, &MIRRORS)).await.unwrap();
    let file = world.agent.root().join("agent.yaml");
    let short = "repositories: {limit: 1MiB, minAge: 0s, ";
    world.agent.configure(&std::fs::read_to_string(file).unwrap().replace("repositories: {", short));
    for round in 1..=5 {
        world.agent.restart();
        let seen = || world.agent.log().matches("and nothing may be evicted").count() >= round;
        wait::until(LIMIT, "the limit is seen", seen);
        let mirror = pod.target.join(named(&world.url));
        git_out(&mirror, &["-c", "safe.directory=*", "fsck", "--connectivity-only"]);
    }
    world.unpublish(&pod).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_and_mirrors_are_for_who_proves_itself_too() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let (pod, other, stranger) = (world.pod("uid-a"), world.pod("uid-b"), world.pod_of("uid-c", "strangers"));
    let nowhere = world.pod_elsewhere("uid-d", "builds");
    let outside = world.agent.root().join("outside");
    std::fs::create_dir(&outside).unwrap();
    for kind in [CACHE.as_slice(), MIRRORS.as_slice()] {
        let refuse = async |pod: &Pod, more: &[(&str, &str)], code: Code, told: &str| {
            let refused = world.publish(world.wanted(pod, &[kind, more].concat())).await.unwrap_err();
            assert_eq!(refused.code(), code, "{refused:?}");
            assert!(refused.message().contains(told), "{told}: {}", refused.message());
            assert!(!pod.target.is_dir());
        };
        refuse(&stranger, &[], Code::PermissionDenied, "scheduler").await;
        refuse(&nowhere, &[], Code::Unavailable, "knows no pod").await;
        refuse(&pod, &[("tenant", "red")], Code::PermissionDenied, "tenant: ").await;
        refuse(&pod, &[("cpu", "1")], Code::InvalidArgument, "cpu: ").await;
        let forged = Pod { token: other.token.clone(), ..world.pod("uid-a") };
        refuse(&forged, &[], Code::PermissionDenied, "not one of the pod").await;
        std::os::unix::fs::symlink(&outside, &pod.target).unwrap();
        let refused = world.publish(world.wanted(&pod, kind)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        std::fs::remove_file(&pod.target).unwrap();
    }
    // A runtime that is not told to mount it read-only would make it writable.
    // And all of a cache has the places of running builds.
    for (attributes, field) in [(MIRRORS.as_slice(), "readOnly: "), (&CACHE[..1], "key: ")] {
        let written = csi::NodePublishVolumeRequest { readonly: false, ..world.wanted(&pod, attributes) };
        let refused = world.publish(written).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        for told in [field, "`readOnly: true` into the csi volume"] {
            assert!(refused.message().contains(told), "{told}: {}", refused.message());
        }
    }
    let others = [CACHE.as_slice(), &[("trust", "secret")]].concat();
    let refused = world.publish(world.wanted(&pod, &others)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().starts_with("trust: "), "{}", refused.message());
    // What a build put into the place of a cache is not followed.
    world.publish(world.wanted(&pod, &CACHE)).await.unwrap();
    let cache = std::fs::read_dir(world.pool().join("stoker/caches")).unwrap().next().unwrap().unwrap().path();
    world.unpublish(&pod).await.unwrap();
    std::fs::remove_dir(cache.join("target")).unwrap();
    std::os::unix::fs::symlink(&outside, cache.join("target")).unwrap();
    let refused = world.publish(world.wanted(&pod, &CACHE)).await.unwrap_err();
    assert!(refused.message().contains("is no directory"), "{refused:?}");
    assert!(!pod.target.is_dir() && std::fs::read_dir(&outside).unwrap().next().is_none());
    world.nothing_is_left();
}
