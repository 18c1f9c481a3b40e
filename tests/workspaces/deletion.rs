//! The end of a workspace: the caller waits for a rename, however much lies in it.

use std::time::Instant;

use super::*;
use crate::support::wait;

/// So long the call may take; see the numbers of the design.
const CALL_MAX: Duration = Duration::from_millis(10);

/// Files in a folder of their own for each thousand.
fn fill(place: &Path, thousands: usize) {
    for folder in 0..thousands {
        let folder = place.join(format!("folder{folder}"));
        fs::create_dir(&folder).unwrap();
        (0..1000).for_each(|file| fs::write(folder.join(file.to_string()), "").unwrap());
    }
}

/// Half of the files lie in the overlay, so that their upper layer and what the kernel remembers of them go with it.
#[tokio::test(flavor = "multi_thread")]
async fn deleting_an_overlay_of_100_000_files_returns_at_once() {
    needs_root!();
    let filesystem = LoopFs::new(Kind::Xfs, 4 << 30);
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let agent =
        Agent::start(&configuration(filesystem.path(), "pressure: {diskForecast: 0s}\nworkspaces: {method: overlay}"));
    let (mut full, mut empty, mut removal) = (Duration::MAX, Duration::MAX, Duration::MAX);
    // The best of three: a machine that is busy for a moment says nothing of the call.
    for round in 0..6 {
        let from = source(&url, "branch:main");
        let workspace = prepare_as(&agent, from, &format!("w{round}"), Default::default()).await.unwrap();
        let is_full = round % 2 == 0;
        if is_full {
            fill(Path::new(&workspace.src), 50);
            fill(Path::new(&workspace.tmp), 50);
        }
        let mut client = agent.workspace().await;
        let began = Instant::now();
        client.delete_workspace(v1::DeleteWorkspaceRequest { id: workspace.id.clone() }).await.unwrap();
        let best = if is_full { &mut full } else { &mut empty };
        *best = began.elapsed().min(*best);
        assert!(!Path::new(&workspace.src).exists());
        let trash = filesystem.path().join("stoker/trash");
        wait::until(LIMIT, "all of it is gone", || names(&trash).is_empty());
        if is_full {
            removal = began.elapsed().min(removal);
        }
    }
    eprintln!("100,000 files: {full:?}, gone after {removal:?}; none: {empty:?}");
    // Where all the machine is slow, it is as slow for a workspace without files, and so is the removal that nobody awaits.
    let at_once = full < CALL_MAX || full < 2 * empty || full < removal / 10;
    assert!(at_once, "{full:?}, and {empty:?} without files; all were gone after {removal:?}");
}
