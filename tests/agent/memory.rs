//! A build that outgrows its lease, twice, in control groups with the limits of its leases.

use super::*;
use crate::support::cgroup::{MemoryGroup, made};
use crate::support::loopdev::needs_root;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

use v1::reason::Code as Why;

/// A build in a group with the limit of its lease: a child of it fills memory until the kernel ends that child.
async fn outgrows(agent: &Agent, lease: &v1::Lease, group: &MemoryGroup) -> v1::Lease {
    let go = agent.root().join(format!("go-{}", lease.id));
    // It grows once it is looked at: what was before that is not its own.
    let build = "import os,sys,time\n\
                 while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n\
                 if os.fork()==0:\n    more=bytearray()\n    while True: more+=b'b'*(4<<20)\n\
                 os.wait()\ntime.sleep(600)";
    let script = agent.root().join("build.py");
    std::fs::write(&script, build).unwrap();
    let run = format!("{}; exec python3 {} {}", group.enter(), script.display(), go.display());
    let holder = Holder::start(agent, &run);
    bind(agent, &lease.id, holder.process()).await.unwrap();
    let seen = |now: &v1::Status| now.lease_use.iter().find(|seen| seen.lease_id == lease.id).cloned();
    let limit = lease.sizing.as_ref().unwrap().size.as_ref().unwrap().memory_bytes;
    let is_found = |now: &v1::Status| seen(now).is_some_and(|seen| seen.memory_bytes_limit == limit);
    status_until(agent, "its group is found, with the limit of its lease", is_found).await;
    std::fs::write(&go, "").unwrap();
    status_until(agent, "the kill is counted", |now| seen(now).is_some_and(|seen| seen.oom_kills() > 0)).await;
    // What runs a build knows only that it was killed.
    let outcome = v1::Outcome::Failed.into();
    let end = v1::ReleaseRequest { lease_id: lease.id.clone(), outcome, exit_code: Some(137), measured: None };
    agent.admission().await.release(end).await.unwrap().into_inner().lease.unwrap()
}

fn memory(lease: &v1::Lease) -> i64 {
    lease.sizing.as_ref().unwrap().size.as_ref().unwrap().memory_bytes.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_over_its_limit_gets_the_next_step_once_and_the_second_time_is_final() {
    needs_root!();
    let (small, large) = (96 * MIB, 224 * MIB);
    let groups = [made!(MemoryGroup::new(small.unsigned_abs())), made!(MemoryGroup::new(large.unsigned_abs()))];
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let ladder = "sizing: {ladder: [{cpu: 1, memory: 96MiB}, {cpu: 2, memory: 224MiB}, {cpu: 4, memory: 480MiB}]}";
    let mut agent = prepared(&format!("{ladder}\n{}", configuration(PLAIN, &[&url])));
    std::fs::create_dir_all(agent.root().join("host/sys/fs")).unwrap();
    symlink("/sys/fs/cgroup", agent.root().join("host/sys/fs/cgroup")).unwrap();
    agent.launch();
    agent.wait_ready();
    mirror_ready(&agent, &url).await;

    let first = admit(&agent, order("first", branch(&url, "main"), size(1000, small))).await.unwrap().granted();
    let ended = outgrows(&agent, &first, &groups[0]).await;
    assert_eq!(ended.outcome(), v1::Outcome::OutOfMemoryLimit, "{ended:?}");
    let advice = ended.retry.unwrap();
    assert_eq!((advice.allowed, advice.size.unwrap().memory_bytes), (true, Some(large)));

    let again = |id: &str, of: &str| v1::AdmitRequest {
        request_id: id.to_owned(),
        retry_of: of.to_owned(),
        ..Default::default()
    };
    let second = admit(&agent, again("second", &first.id)).await.unwrap().granted();
    assert_eq!((memory(&second), second.attempt), (large, 2), "one step up");
    let ended = outgrows(&agent, &second, &groups[1]).await;
    assert_eq!(ended.outcome(), v1::Outcome::OutOfMemoryLimit, "{ended:?}");
    let advice = ended.retry.unwrap();
    assert_eq!((advice.allowed, codes(&advice.reasons)), (false, vec![Why::RetriesUsedUp]));
    let rejected = admit(&agent, again("third", &second.id)).await.unwrap().rejected();
    assert_eq!(codes(&rejected.reasons), [Why::RetriesUsedUp]);
}
