//! What a build gets beside its sources: its environment as files, scratch in memory, and a size that is watched.

use super::*;
use crate::support::loopdev::needs_root;
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

async fn prepare_with(agent: &Agent, request: v1::PrepareWorkspaceRequest) -> Result<v1::Workspace, Status> {
    let mut events = agent.workspace().await.prepare_workspace(within(request, LIMIT)).await?.into_inner();
    loop {
        let event = events.message().await?.expect("a workspace comes").event;
        if let Some(v1::prepare_workspace_response::Event::Workspace(workspace)) = event {
            return Ok(workspace);
        }
    }
}

fn of_lease(lease: &str, tmpfs_bytes: Option<i64>) -> v1::PrepareWorkspaceRequest {
    let r#for = Some(v1::prepare_workspace_request::For::LeaseId(lease.to_owned()));
    v1::PrepareWorkspaceRequest { r#for, tmpfs_bytes, user: Some(4711), group: Some(4712), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn scratch_in_memory_is_within_the_leases_and_goes_with_it() {
    needs_root!();
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let lease = admit(&agent, order("build", branch(&url, "main"), small())).await.unwrap().granted();
    for (bytes, says) in [(0, "a number of bytes"), (-1, "a number of bytes"), (65 * MIB, "the lease has memory of")] {
        let status = prepare_with(&agent, of_lease(&lease.id, Some(bytes))).await.unwrap_err();
        assert!(status.code() == Code::InvalidArgument && status.message().contains(says), "{bytes}: {status:?}");
        assert!(status.message().contains("tmpfs_bytes"), "{status:?}");
    }
    let unleased = v1::Unleased { source: Some(branch(&url, "main")), request_id: "x".into(), ..Default::default() };
    let r#for = Some(v1::prepare_workspace_request::For::Unleased(unleased));
    let request = v1::PrepareWorkspaceRequest { r#for, ..of_lease("", Some(MIB)) };
    assert!(prepare_with(&agent, request).await.unwrap_err().message().contains("a lease's memory"));

    let workspace = prepare_with(&agent, of_lease(&lease.id, Some(8 * MIB))).await.unwrap();
    let tmp = Path::new(&workspace.tmp);
    let of = rustix::fs::statvfs(tmp).unwrap();
    assert_eq!(of.f_blocks * of.f_frsize, 8 << 20);
    assert_eq!(mode_of(tmp), (0o755, 4711, 4712));
    assert!(std::fs::write(tmp.join("large"), vec![7; 9 << 20]).is_err(), "it holds no more");
    assert_eq!(release(&agent, &lease.id).await.unwrap().state(), v1::LeaseState::Released);
    wait::until(LIMIT, "the workspace went", || !Path::new(&workspace.src).exists());
    assert!(crate::support::disk::mounts_below(agent.root()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_can_source_its_environment() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = start(&configuration(PLAIN, &[&url]));
    mirror_ready(&agent, &url).await;
    let lease = admit(&agent, order("build", branch(&url, "main"), small())).await.unwrap().granted();
    let workspace = prepare(&agent, &lease.id).await.unwrap();
    let home = Path::new(&workspace.src).parent().unwrap();
    let script = ". \"$1/environment\" && env -0";
    let output = Command::new("sh").env_clear().args(["-euc", script, "sh"]).arg(home).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let seen: BTreeMap<String, String> = String::from_utf8(output.stdout)
        .unwrap()
        .split_terminator('\0')
        .map(|line| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap())
        .filter(|(name, _)| !["PWD", "_", "SHLVL", "OLDPWD"].contains(&name.as_str()))
        .collect();
    assert_eq!(seen, workspace.environment.into_iter().collect());
    assert_eq!(seen["STOKER_LEASE"], lease.id);
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(home.join("workspace.json")).unwrap()).unwrap();
    assert_eq!(told["workspace"]["src"], workspace.src);
    assert_eq!(told["workspace"]["commit"], workspace.commit);
    assert_eq!(told["workspace"]["environment"]["STOKER_OUT"], workspace.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_writes_more_than_its_size_is_named_and_counted() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let method = if nix::unistd::geteuid().is_root() { "overlay" } else { "checkout" };
    for method in ["checkout", method] {
        writes_too_much(&url, method).await;
    }
}

async fn writes_too_much(url: &str, method: &str) {
    let agent = start(&format!("{}workspaces: {{method: {method}}}\n", configuration(PLAIN, &[url])));
    mirror_ready(&agent, url).await;
    let lease = admit(&agent, order("build", branch(url, "main"), small())).await.unwrap().granted();
    let workspace = prepare(&agent, &lease.id).await.unwrap();
    let holder = Holder::start(&agent, "exec sleep 600");
    bind(&agent, &lease.id, holder.process()).await.unwrap();
    let used = |now: &v1::Status| now.lease_use.iter().find(|one| one.lease_id == lease.id).cloned();
    let now = status_until(&agent, "it is measured", |now| used(now).is_some_and(|one| one.disk_bytes.is_some())).await;
    let before = used(&now).unwrap();
    assert!(
        before.disk_bytes == Some(0) && !codes(&before.reasons).contains(&v1::reason::Code::LeaseOverDisk),
        "{before:?}"
    );
    for (place, bytes) in [(&workspace.src, 3 << 20), (&workspace.tmp, 2 << 20), (&workspace.out, 1 << 20)] {
        std::fs::write(Path::new(place).join("written"), vec![7_u8; bytes]).unwrap();
    }
    // A look may fall between two of the files.
    let over = |now: &v1::Status| {
        used(now).is_some_and(|one| {
            one.disk_bytes() >= 6 * MIB && codes(&one.reasons).contains(&v1::reason::Code::LeaseOverDisk)
        })
    };
    let now = status_until(&agent, "it is named", over).await;
    let seen = used(&now).unwrap();
    assert!((6 * MIB..8 * MIB).contains(&seen.disk_bytes.unwrap()), "{seen:?}");
    let reason = seen.reasons.iter().find(|reason| reason.code() == v1::reason::Code::LeaseOverDisk).unwrap();
    assert!(reason.message.contains("its size is 1 MiB"), "{reason:?}");
    // Its peak goes into the history with it.
    release(&agent, &lease.id).await.unwrap();
    let shown = agent.admission().await.get_lease(v1::GetLeaseRequest { lease_id: lease.id.clone() }).await.unwrap();
    let peak = shown.into_inner().lease.unwrap().peak.unwrap();
    assert!(peak.disk_bytes >= 6 * MIB, "{peak:?}");
}
