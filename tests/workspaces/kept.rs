//! What is kept checked out: made before it is asked for, and gone when there is no room.

use super::*;
use crate::support::wait;

async fn made(agent: &Agent) -> v1::Workspaces {
    let request = v1::GetStatusRequest {};
    let status = agent.node().await.get_status(request).await.unwrap().into_inner().status.unwrap();
    status.workspaces.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_branch_is_checked_out_after_each_refresh() {
    needs_root!();
    let filesystem = LoopFs::new(Kind::Xfs, 512 << 20);
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let ahead = format!("workspaces: {{checkouts: {{ahead: [{{url: \"{url}\", branches: [main, develop, none]}}]}}}}");
    let agent = Agent::start(&configuration(filesystem.path(), &ahead));
    let add = v1::AddRepositoryRequest { url: url.clone(), ..Default::default() };
    agent.repository().await.add_repository(add).await.unwrap();
    let has = |commits: &[String]| {
        kept(filesystem.path()).into_keys().collect::<Vec<_>>() == {
            let mut commits = commits.to_vec();
            commits.sort();
            commits
        }
    };
    let mut commits = vec![repo.commit("main"), repo.commit("develop")];
    wait::until(LIMIT, "both are checked out", || has(&commits));
    commits.push(repo.commit_file("main", "more.txt", b"more\n"));
    let refresh = v1::RefreshRepositoryRequest { url: url.clone(), ..Default::default() };
    let mut events = agent.repository().await.refresh_repository(refresh).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}
    wait::until(LIMIT, "the new commit is checked out", || has(&commits));
    let seen = made(&agent).await;
    assert_eq!((seen.method(), seen.checkouts, seen.idmapped), (v1::Method::Overlay, 3, true), "{seen:?}");
    assert_eq!(seen.reason, "works on this pool");
    // It is not mounted so, whatever the kernel can.
    assert!(!seen.disk_quota && seen.disk_quota_reason.contains("mounted with `prjquota`"), "{seen:?}");
    // A build finds it there.
    prepare_as(&agent, source(&url, "branch:main"), "build", Default::default()).await.unwrap();
    assert!(has(&commits));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_build_holds_goes_above_the_limit_and_below_the_floor() {
    needs_root!();
    let filesystem = LoopFs::new(Kind::Ext4, 256 << 20);
    let repo = TestRepo::generated(100, 6_000_000, 1);
    let commits: Vec<String> =
        (0..4).map(|number| repo.force_push(&format!("b{number}"), "main", "x", &vec![number; 3_000_000])).collect();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration(filesystem.path(), "workspaces: {checkouts: {limit: 16MiB}}"));
    let mut held = None;
    for (number, commit) in commits.iter().enumerate() {
        let from = source(&url, &format!("sha:{commit}"));
        let workspace = prepare_as(&agent, from, &format!("w{number}"), Default::default()).await.unwrap();
        match number {
            0 => held = Some(PathBuf::from(workspace.src)),
            _ => delete(&agent, &workspace.id).await,
        }
    }
    // The first is held; of the others as many stay as fit, the last ones.
    let full = |commits: &[String]| kept(filesystem.path()).into_keys().all(|commit| commits.contains(&commit));
    wait::until(LIMIT, "it fits into its limit", || {
        let held = kept(filesystem.path());
        held.contains_key(&commits[0]) && held.len() < 4
    });
    assert!(full(&commits));
    let held = held.unwrap();
    assert_eq!(as_owner(&held, None, "git status --porcelain; git fsck --no-progress"), "");
    let seen = made(&agent).await;
    assert!(seen.checkouts_evicted >= 1 && seen.checkout_evicted_at.is_some(), "{seen:?}");
    // The disk is filled by somebody else, below the floor: as many go as it takes, never one that is held.
    let before = kept(filesystem.path()).len();
    let free = || rustix::fs::statvfs(filesystem.path()).map(|of| of.f_bavail * of.f_frsize).unwrap();
    let mut filler = fs::File::create(filesystem.path().join("filler")).unwrap();
    while free() > 512 << 10 {
        let part = usize::try_from(free().saturating_sub(256 << 10)).unwrap().min(1 << 20);
        if std::io::Write::write_all(&mut filler, &vec![7; part]).is_err() {
            break;
        }
    }
    wait::until(LIMIT, "the pool is above its floor again", || free() >= 1 << 20);
    let left = kept(filesystem.path());
    assert!(left.len() < before && left.contains_key(&commits[0]), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_many_builds_use_becomes_a_full_checkout() {
    needs_root!();
    let filesystem = LoopFs::new(Kind::Xfs, 512 << 20);
    let (repo, commits) = wild();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(&configuration(filesystem.path(), ""));
    let mut workspaces = Vec::new();
    for (number, commit) in std::iter::once(&commits[0]).chain([&commits[1]; 20]).enumerate() {
        let from = source(&url, &format!("sha:{commit}"));
        workspaces.push(prepare_as(&agent, from, &format!("w{number}"), Default::default()).await.unwrap());
    }
    wait::until(LIMIT, "it is a full checkout", || kept(filesystem.path()).get(&commits[1]) == Some(&false));
    // Who has the layer keeps it; who comes now gets the other, and both are the same.
    let commit = source(&url, &format!("sha:{}", commits[1]));
    let now = prepare_as(&agent, commit, "now", Default::default()).await.unwrap();
    let before = &workspaces[5];
    assert_same(&files(Path::new(&now.src)), &files(Path::new(&before.src)), "a layer and a full checkout");
    for one in [&now, before] {
        assert_eq!(as_owner(Path::new(&one.src), None, "git status --porcelain; git fsck --no-progress"), "");
    }
}
