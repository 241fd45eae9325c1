//! What a node agent looks at and does to itself when it starts.

use crate::program::run;
use crate::root::read_bounded;
use crate::{Error, Root};
use std::path::PathBuf;
use std::time::Duration;

/// Processes of a machine; more means that what is read is no `/proc`.
const PROCESSES_MAX: usize = 4 * 1024 * 1024;

/// Asks systemd.
const SYSTEMCTL: &str = "systemctl";
/// A manager that is busy stopping everything answers all the same.
const ANSWER_MAX: Duration = Duration::from_secs(5);

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

/// Whether the service manager is stopping the machine, and not this service alone. Without an answer it is not.
pub fn machine_stops() -> bool {
    // The exit code only tells whether the machine is well.
    let asked = run(SYSTEMCTL, &["is-system-running"], b"", ANSWER_MAX);
    asked.is_ok_and(|outcome| outcome.stdout.trim_ascii() == b"stopping")
}

/// A parameter of the kernel with another value than was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// As `sysctl` names it.
    pub name: &'static str,
    pub expected: &'static str,
    pub found: String,
}

/// Those of `expected` that the kernel has otherwise. One that this kernel does not have deviates, too.
pub fn kernel_deviations(root: &Root, expected: &[(&'static str, &'static str)]) -> Vec<Deviation> {
    let look = |(name, expected): &(&'static str, &'static str)| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let found = root.read(&path).unwrap_or_default();
        let found = found.trim();
        (found != *expected).then(|| Deviation {
            name,
            expected,
            found: found.to_owned(),
        })
    };
    expected.iter().filter_map(look).collect()
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
    fn parameters_of_the_kernel_are_compared() {
        let dir = std::env::temp_dir().join(format!("kedge-host-kernel-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("proc/sys/vm")).unwrap();
        std::fs::write(dir.join("proc/sys/vm/panic_on_oom"), "0\n").unwrap();
        std::fs::write(dir.join("proc/sys/vm/overcommit_memory"), "2\n").unwrap();
        let expected = [
            ("vm.panic_on_oom", "0"),
            ("vm.overcommit_memory", "1"),
            ("kernel.panic", "10"),
        ];
        let found = kernel_deviations(&Root::at(&dir), &expected);
        std::fs::remove_dir_all(&dir).unwrap();
        let told: Vec<_> = found
            .iter()
            .map(|d| (d.name, d.expected, d.found.as_str()))
            .collect();
        assert_eq!(
            told,
            [("vm.overcommit_memory", "1", "2"), ("kernel.panic", "10", "")]
        );
    }

    #[test]
    fn the_own_score_may_always_be_kept() {
        let now = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        set_own_oom_score(now.trim().parse().unwrap()).unwrap();
    }
}
