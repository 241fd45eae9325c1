//! What a node agent looks at and does to itself when it starts.

use crate::root::read_bounded;
use crate::{Error, Root};
use std::path::PathBuf;

/// Processes of a machine; more means that what is read is no `/proc`.
const PROCESSES_MAX: usize = 4 * 1024 * 1024;

/// The processes whose name, as the kernel has it, is `name`. The kernel keeps 15 characters of it.
pub fn processes_named(root: &Root, name: &str) -> Result<Vec<u32>, Error> {
    let path = root.path("/proc");
    let entries = std::fs::read_dir(&path).map_err(|source| Error::Read { path, source })?;
    let mut found: Vec<u32> = entries
        .take(PROCESSES_MAX)
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            // A process that ended meanwhile has no name, and is no concern.
            let comm = read_bounded(&entry.path().join("comm")).ok()?;
            (comm.trim_end_matches('\n') == name).then_some(pid)
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Sets how readily the kernel ends this process when memory is short: -1000 never, 1000 first. Programs that it starts
/// inherit it. Lowering it needs a privilege.
pub fn set_own_oom_score(score: i32) -> Result<(), Error> {
    let path = PathBuf::from("/proc/self/oom_score_adj");
    std::fs::write(&path, score.to_string()).map_err(|source| Error::Write { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_whole_name() {
        let dir = std::env::temp_dir().join(format!("kedge-host-start-{}", std::process::id()));
        for (pid, name) in [
            ("7", "kubelet\n"),
            ("70", "kubelet-proxy\n"),
            ("8", "kubelet\n"),
            ("self", "kubelet\n"),
        ] {
            std::fs::create_dir_all(dir.join("proc").join(pid)).unwrap();
            std::fs::write(dir.join("proc").join(pid).join("comm"), name).unwrap();
        }
        let found = processes_named(&Root::at(&dir), "kubelet");
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found.unwrap(), [7, 8]);
    }

    #[test]
    fn the_own_score_may_always_be_kept() {
        let now = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        set_own_oom_score(now.trim().parse().unwrap()).unwrap();
    }
}
