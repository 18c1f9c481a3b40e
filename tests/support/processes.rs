//! Processes of the machine that work for an agent under test.

use std::path::Path;

use nix::unistd::Pid;

/// What the kernel tells of a process; empty where it is gone.
fn read(pid: u32, name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default()).into_owned()
}

fn all() -> impl Iterator<Item = u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The processes that work for the agent of this folder, by what they were started with.
pub(crate) fn workers(root: &Path) -> Vec<(u32, String)> {
    let own = root.to_str().unwrap();
    let mut found = Vec::new();
    for pid in all() {
        let command = read(pid, "cmdline").replace('\0', " ");
        let ours = command.contains(own) || read(pid, "environ").contains(own);
        let is_started = [" agent --config", " git-helper --"].iter().any(|daemon| command.contains(daemon));
        if ours && !command.is_empty() && !is_started {
            found.push((pid, command));
        }
    }
    found
}

/// The git children of the agent with this state, and their children, with their command lines.
pub(crate) fn git_children(state: &Path) -> Vec<(Pid, String)> {
    // Those of a helper carry its socket instead.
    let helper = state.with_file_name("git").join("git.sock");
    let own = [state, &helper].map(|owner| format!("STOKER_GIT_OF={}", owner.display()));
    let ours = all().filter(|pid| read(*pid, "environ").split('\0').any(|has| own.iter().any(|own| own == has)));
    let told = ours.map(|pid| (Pid::from_raw(pid.cast_signed()), read(pid, "cmdline").replace('\0', " ")));
    told.filter(|(_, command)| !command.is_empty()).collect()
}
