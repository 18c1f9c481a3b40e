//! A full disk under the journal.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use stoker_proto::v1;
use stoker_proto::v1::reason::Code as Why;

use super::{lease as lease_of, *};
use crate::support::loopdev::{Kind, LoopFs, needs_root};
use crate::support::repository::TestRepo;
use crate::support::upstream::Upstream;

/// Takes every byte that is left: large pieces first, then single ones.
fn fill(place: &Path) -> PathBuf {
    let path = place.join("filler");
    let mut file = File::options().create(true).append(true).open(&path).unwrap();
    for piece in [1 << 20, 4096, 1] {
        let bytes = vec![0x55; piece];
        while file.write_all(&bytes).is_ok() {}
    }
    let _ = file.sync_all();
    path
}

async fn a_full_disk(kind: Kind, size: u64) {
    let repo = TestRepo::standard();
    let (_upstream, url) = Upstream::of(&repo);
    let filesystem = LoopFs::new(kind, size);
    let state = filesystem.path().join("state");
    let text = format!("state: {}\n{}", state.display(), configuration(PLAIN, &[&url]));
    let mut agent = start(&text);
    mirror_ready(&agent, &url).await;
    let ballast = state.join("ballast");
    assert_eq!(std::fs::metadata(&ballast).unwrap().len(), 16 << 20);
    // Most are never bound, and are to outlive the whole test.
    let wanted =
        |id: &str| v1::AdmitRequest { bind_within: Some(seconds(900)), ..order(id, branch(&url, "main"), small()) };
    let mut held = Vec::new();
    for number in 0..6 {
        held.push(admit(&agent, wanted(&format!("before{number}"))).await.unwrap().granted());
    }
    let holder = Holder::start(&agent, "exec sleep 1000");
    bind(&agent, &held[5].id, holder.process()).await.unwrap();

    let filler = fill(filesystem.path());
    // The first pages of the log may lie on blocks that it has already: builds go on until it needs one more.
    let mut full = None;
    let mut granted = Vec::new();
    for number in 0..20_000 {
        match admit(&agent, wanted(&format!("full{number}"))).await.unwrap() {
            Answer::Granted(lease) => {
                release(&agent, &lease.id).await.unwrap();
                granted.push(*lease);
            }
            Answer::Waiting(waiting) => {
                full = Some((number, waiting));
                break;
            }
            Answer::Rejected(rejection) => panic!("{rejection:?}"),
        }
    }
    let (number, waiting) = full.expect("the disk is full");
    assert_eq!(codes(&waiting.reasons), [Why::JournalUnavailable]);
    assert!(waiting.retry_after.is_some());
    let now = status(&agent).await;
    assert!(codes(&now.alarms).contains(&Why::JournalUnavailable), "{:?}", now.alarms);
    let known = admit(&agent, wanted("before0")).await.unwrap().granted();
    assert_eq!(known.id, held[0].id, "who has a lease gets it");
    // What ends or keeps a lease is recorded.
    for lease in &held[..3] {
        assert_eq!(release(&agent, &lease.id).await.unwrap().state(), v1::LeaseState::Released);
    }
    let renew = v1::RenewRequest { lease_id: held[3].id.clone(), reserve_for: Some(seconds(1800)) };
    let renewed = agent.admission().await.renew(renew).await.unwrap().into_inner().lease.unwrap();
    assert!(renewed.bind_by.unwrap().seconds > held[3].bind_by.unwrap().seconds + 300);
    bind(&agent, &held[4].id, holder.process()).await.unwrap();
    let again = admit(&agent, wanted(&format!("full{number}"))).await.unwrap().waiting();
    assert_eq!(codes(&again.reasons), [Why::JournalUnavailable]);
    assert_eq!(tickets(&agent).await, [], "no place that is nowhere recorded");

    // It survives a kill in this state, too.
    agent.restart();
    for lease in &held[..3] {
        assert_eq!(lease_of(&agent, &lease.id).await.state(), v1::LeaseState::Released);
    }
    assert_eq!(lease_of(&agent, &held[4].id).await.state(), v1::LeaseState::Bound);
    assert_eq!(release(&agent, &held[3].id).await.unwrap().state(), v1::LeaseState::Released);

    // Room again: all is well by itself.
    std::fs::remove_file(&filler).unwrap();
    wait::until(LIMIT, "the ballast is back", || ballast.is_file());
    let well = |now: &v1::Status| !codes(&now.alarms).contains(&Why::JournalUnavailable);
    status_until(&agent, "the alarm ended", well).await;
    let after = admit(&agent, wanted("after")).await.unwrap().granted();

    agent.restart();
    let live = agent.admission().await.list_leases(v1::ListLeasesRequest::default()).await.unwrap().into_inner().leases;
    let mut live: Vec<_> = live.into_iter().map(|lease| (lease.id.clone(), lease.state())).collect();
    live.sort_by(|a, b| a.0.cmp(&b.0));
    let mut expected = vec![
        (held[4].id.clone(), v1::LeaseState::Bound),
        (held[5].id.clone(), v1::LeaseState::Bound),
        (after.id, v1::LeaseState::Reserved),
    ];
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(live, expected);
    assert_eq!(agent.terminate().code(), Some(0));
    let connection = rusqlite::Connection::open(state.join("journal.sqlite")).unwrap();
    let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let used: u64 = listing(&state).keys().map(|name| std::fs::metadata(state.join(name)).unwrap().len()).sum();
    assert!(used <= (64 + 16) << 20, "{used} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_journal_stops_new_builds_only_on_ext4() {
    needs_root!();
    a_full_disk(Kind::Ext4, 64 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_journal_stops_new_builds_only_on_xfs() {
    needs_root!();
    a_full_disk(Kind::Xfs, 320 << 20).await;
}
