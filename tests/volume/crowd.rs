//! A hundred pods at once: as many as there is room for have their sources, all others know why not, and nothing is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const PODS: usize = 100;
/// Of the node's 30 CPU each wants 4: seven at a time.
const AT_A_TIME: usize = 7;
/// The first ones go on building until so many do.
const TOGETHER: usize = 5;
/// Between two questions for a volume: a kubelet waits longer, and all of them at once are enough work as it is.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pods_at_once_get_their_sources_or_a_reason() {
    needs_root!();
    let world = World::new("");
    world.fill();
    let size = [("cpu", "4"), ("memory", "64MiB"), ("disk", "1MiB")];
    let attributes = [&world.main()[..2], size.as_slice()].concat();
    let pods: Vec<Pod> = (0..PODS).map(|n| world.pod(Box::leak(format!("uid-{n}").into_boxed_str()))).collect();
    let orders: Vec<_> = pods.iter().map(|pod| (world.wanted(pod, &attributes), pod.src())).collect();
    let (node, holding, most) = (world.node().await, Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut all = tokio::task::JoinSet::new();
    for (request, src) in orders {
        let (mut node, holding, most) = (node.clone(), Arc::clone(&holding), Arc::clone(&most));
        all.spawn(async move {
            let published = async || match node.clone().node_publish_volume(request.clone()).await {
                Ok(_) => true,
                Err(status) => {
                    let comes = matches!(status.code(), Code::Unavailable | Code::Aborted | Code::ResourceExhausted);
                    let is_told = [": ", "knows no pod"].iter().any(|words| status.message().contains(words));
                    assert!(comes && is_told, "{status:?}");
                    tokio::time::sleep(AGAIN_AFTER).await;
                    false
                }
            };
            wait::until_async(LIMIT * 6, "it has its turn", published).await;
            most.fetch_max(holding.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            assert!(src.join("README.md").is_file());
            let are_together = async || most.load(Ordering::SeqCst) >= TOGETHER;
            wait::until_async(LIMIT, "several build at a time", are_together).await;
            holding.fetch_sub(1, Ordering::SeqCst);
            let csi::NodePublishVolumeRequest { volume_id, target_path, .. } = request;
            node.node_unpublish_volume(csi::NodeUnpublishVolumeRequest { volume_id, target_path }).await.unwrap();
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    let most = most.load(Ordering::SeqCst);
    assert!((TOGETHER..=AT_A_TIME).contains(&most), "{most} at a time");
    eprintln!("{PODS} pods, up to {most} at a time");
    world.nothing_is_left();
}
