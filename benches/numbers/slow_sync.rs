//! A disk whose syncs take longer, where the machine has none: see `slow_sync.c`.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What the library reads, and by which a bench knows that it is loaded.
const DELAY: &str = "STOKER_SYNC_DELAY_US";

/// Begins this program anew with the library, where it is not loaded yet.
pub(crate) fn ensure(micros: u64) {
    if std::env::var_os(DELAY).is_some() {
        println!("each sync takes {micros} us longer than the disk's");
        return;
    }
    let library = std::env::temp_dir().join(format!("slow_sync-{}.so", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/numbers/slow_sync.c");
    let made = Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).args([source, "-ldl"]).status();
    assert!(made.unwrap().success(), "cc makes {}", library.display());
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(std::env::args_os().skip(1)).env("LD_PRELOAD", &library).env(DELAY, micros.to_string());
    panic!("the bench does not begin anew: {}", again.exec());
}
