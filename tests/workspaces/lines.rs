//! Lines of builds: whatever tenants, projects and branches are called, each has its own place.

use std::collections::BTreeSet;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_builds_are_disjoint_stable_and_readable() {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent = Agent::start(
        "pools: [{name: data, path: $ROOT/pool, mount: optional, floor: {bytes: 1MiB, inodes: 10}}]\nrepositories: \
         {refresh: 24h, add: on-demand, allow: [127.0.0.1], protocols: [http]}\n",
    );
    let long = "long".repeat(75);
    let tenants = [
        "red",
        "blue",
        "red-stx",
        "a-b",
        "a",
        "Red",
        "RED",
        "röt",
        "ro\u{308}t",
        "红",
        "../red",
        ".",
        "red/stx",
        &long,
    ];
    let mut caches = BTreeMap::new();
    for (number, tenant) in tenants.iter().enumerate() {
        for (project, branch) in [("stx", "main"), ("stx-9", "main"), ("c", "Main"), ("b-c", "..")] {
            let scope = v1::Scope { tenant: (*tenant).into(), project: project.into(), branch: branch.into() };
            let unleased = v1::Unleased {
                source: Some(source(&url, "branch:main")),
                scope: Some(scope.clone()),
                request_id: format!("{number}-{project}-{branch}"),
                ..Default::default()
            };
            let request = v1::PrepareWorkspaceRequest {
                r#for: Some(v1::prepare_workspace_request::For::Unleased(unleased)),
                ..Default::default()
            };
            let mut events = agent.workspace().await.prepare_workspace(request).await.unwrap().into_inner();
            let workspace = loop {
                if let Some(v1::prepare_workspace_response::Event::Workspace(workspace)) =
                    events.message().await.unwrap().unwrap().event
                {
                    break workspace;
                }
            };
            assert_eq!(workspace.scope, Some(scope));
            let cache = PathBuf::from(&workspace.cache);
            assert!(cache.starts_with(agent.root().join("pool/stoker/caches")) && cache.is_dir(), "{cache:?}");
            assert_eq!(cache.components().count(), agent.root().components().count() + 4, "{cache:?}");
            let name = cache.file_name().unwrap().to_str().unwrap().to_owned();
            assert!(
                name.len() <= 64 && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
            );
            // One tenant has one place, whatever is built.
            assert_eq!(caches.entry(*tenant).or_insert_with(|| name.clone()), &name);
            // A socket's path has 108 bytes, and builds make them in their scratch.
            let below = Path::new(&workspace.tmp).strip_prefix(agent.root()).unwrap();
            assert!(below.as_os_str().len() <= 80, "{below:?}");
            delete(&agent, &workspace.id).await;
        }
    }
    let distinct: BTreeSet<&String> = caches.values().collect();
    assert_eq!(distinct.len(), tenants.len(), "{caches:?}");
    assert!(caches["red"].starts_with("red-"), "{}", caches["red"]);
    assert!(caches["../red"].starts_with("red-"), "{}", caches["../red"]);
}
