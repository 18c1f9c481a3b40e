//! The gate, moved by what really happens: a disk that fills.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::*;
use crate::support::loopdev::{Kind, LoopFs, needs_root};

/// Writes at a steady speed until it is told to stop, or the disk is full.
fn write_steadily(path: &Path, bytes_per_second: u64, stop: &AtomicBool) {
    const CHUNK: u64 = 1 << 20;
    let pace = Duration::from_secs(1) / u32::try_from(bytes_per_second / CHUNK).unwrap();
    let chunk = vec![0x5a; usize::try_from(CHUNK).unwrap()];
    let mut file = std::fs::File::create_new(path).unwrap();
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) && file.write_all(&chunk).is_ok() {
        next += pace;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn free_bytes(path: &Path) -> i64 {
    let figures = rustix::fs::statvfs(path).unwrap();
    i64::try_from(figures.f_bavail * figures.f_frsize).unwrap()
}

/// The forecast shuts the gate before the floor is reached, and opens it after room came back and the hold passed.
async fn a_disk_fills(kind: Kind) {
    const HOLD: Duration = Duration::from_secs(1);
    let filesystem = LoopFs::new(kind, 512 << 20);
    let floor = 64 * MIB;
    let pool = format!("path: {}, mount: required", filesystem.path().display());
    let configuration = configuration(&pool, &[])
        .replace("floor: {bytes: 1MiB", "floor: {bytes: 64MiB")
        .replace("hold: 100ms, diskForecast: 0s", "hold: 1s, diskForecast: 1m");
    assert!(configuration.contains("64MiB") && configuration.contains("diskForecast: 1m"));
    let agent = start(&configuration);
    status_until(&agent, "the gate is open", |now| gate_is(now, v1::GateState::Open)).await;

    let (stop, file) = (AtomicBool::new(false), filesystem.path().join("filling"));
    let (room, shut) = (free_bytes(filesystem.path()) - floor, |now: &v1::Status| gate_is(now, v1::GateState::Shut));
    let (at_shut, left) = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_steadily(&file, 24 << 20, &stop));
            let seen = tokio::runtime::Handle::current().block_on(status_until(&agent, "the gate shuts", shut));
            let left = free_bytes(filesystem.path()) - floor;
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap();
            (seen, left)
        })
    });
    let reasons = &at_shut.gate.as_ref().unwrap().reasons;
    assert_eq!(codes(reasons), [v1::reason::Code::DiskForecast], "{reasons:?}");
    assert!(left > 0 && left < room, "{left} of {room} bytes are left above the floor");
    assert!(reasons[0].wanted > reasons[0].available && reasons[0].available > 0, "{reasons:?}");
    assert!(reasons[0].message.contains("above its floor, which it reaches in"), "{reasons:?}");
    let told = &at_shut.pools[0].filesystem.as_ref().unwrap();
    assert!(told.bytes_per_minute > 0 && told.floor_in.unwrap().seconds < 60, "{told:?}");
    let screen = agent.stoker().run(["status"]).expect_code(0).stdout;
    assert!(screen.contains("DISK_FORECAST") && screen.contains("fills: the floor in"), "{screen}");

    let removed = Instant::now();
    std::fs::remove_file(&file).unwrap();
    let recovering = |now: &v1::Status| now.gate.as_ref().unwrap().reasons.iter().all(|r| r.expected_until.is_some());
    let now = status_until(&agent, "it recovers", recovering).await;
    assert!(gate_is(&now, v1::GateState::Shut), "the hold keeps it: {:?}", now.gate);
    status_until(&agent, "the gate is open again", |now| gate_is(now, v1::GateState::Open)).await;
    assert!(removed.elapsed() >= HOLD, "after {:?}", removed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_shuts_the_gate_before_its_floor_on_ext4() {
    needs_root!();
    a_disk_fills(Kind::Ext4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_shuts_the_gate_before_its_floor_on_xfs() {
    needs_root!();
    a_disk_fills(Kind::Xfs).await;
}

/// Further filesystems of the node count with a floor of their own, and those that are named must be there.
#[tokio::test(flavor = "multi_thread")]
async fn a_watched_filesystem_of_the_node_has_a_floor() {
    needs_root!();
    let filesystem = LoopFs::unmounted(Kind::Ext4, 128 << 20);
    let configuration = configuration(PLAIN, &[])
        .replace("rootFloor:", "filesystems: [{path: /kubelet, floor: {bytes: 64MiB, inodes: 0}}], rootFloor:");
    let mut agent = prepared(&configuration);
    let path = agent.root().join("host/kubelet");
    agent.launch();
    agent.wait_ready();
    let now = status_until(&agent, "it is not there", |now| gate_is(now, v1::GateState::Shut)).await;
    let reasons = now.gate.unwrap().reasons;
    assert_eq!((codes(&reasons), &*reasons[0].subject), (vec![v1::reason::Code::SensorFailed], "/kubelet"));

    std::fs::create_dir(&path).unwrap();
    let mut filesystem = filesystem.at(&path);
    filesystem.mount();
    let now = status_until(&agent, "there is room", |now| gate_is(now, v1::GateState::Open)).await;
    assert_eq!((&*now.filesystems[0].path, now.filesystems.len()), ("/kubelet", 1));
    std::fs::write(path.join("image"), vec![1; 60 << 20]).unwrap();
    let now = status_until(&agent, "it is below its floor", |now| gate_is(now, v1::GateState::Shut)).await;
    let reasons = now.gate.unwrap().reasons;
    assert_eq!((codes(&reasons), &*reasons[0].subject), (vec![v1::reason::Code::NodeDiskFloor], "/kubelet"));
    std::fs::remove_file(path.join("image")).unwrap();
    status_until(&agent, "there is room again", |now| gate_is(now, v1::GateState::Open)).await;
    assert_eq!(agent.terminate().code(), Some(0));
}
