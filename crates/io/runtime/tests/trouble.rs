//! What containers and machines do to a runtime: each story on an island of its own, after which nothing is left.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[macro_use]
mod node;

use kedge_containers::{
    ContainerConfig, ContainerState, ExitReason, PidNamespace, Resources, SandboxConfig, Seccomp, Security,
};
use kedge_runtime::embedded::Config;
use kedge_runtime::{Embedded, Error, Runtime};
use nix::libc;
use node::people::{self, Person};
use node::{Node, UNTIL_TERM, container, exit_of, find, island, outcome, run, wait_for_line};
use seccompiler::{SeccompAction, SeccompFilter};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const GRACE: Duration = Duration::from_secs(10);
/// No act takes this long, whatever a container does.
const ACT_MAX: Duration = Duration::from_secs(30);
/// As the nodes of tests have it.
const LOG_BYTES_MAX: u64 = 1024 * 1024;

stories! {
    a_fork_bomb_stays_in_its_pod
    a_pod_without_a_process_left_can_be_ended
    orphans_are_buried
    a_flood_of_log_lines_is_bounded_on_disk
    a_child_out_of_memory_is_the_containers_own_affair
    a_container_may_close_its_outputs
    a_full_disk_stops_nobody_from_ending
}

#[test]
fn a_kernel_of_2021_will_do() {
    island::run("on_a_kernel_of_2021", island::STORY_MAX);
}

#[test]
#[ignore = "on an island"]
fn on_a_kernel_of_2021() {
    if island::node().is_some() {
        let program = forget_new_system_calls();
        // What this thread begets forgets them, too.
        seccompiler::apply_filter(&program).unwrap();
        island::tell(None, story::pods_run_as_ever);
    }
}

/// Answers system calls that Linux 5.12 does not have as it does: there is no such call. Some are older; sandboxes around
/// an agent often do not know them either.
fn forget_new_system_calls() -> seccompiler::BpfProgram {
    let calls = [
        libc::SYS_clone3,
        libc::SYS_close_range,
        libc::SYS_epoll_pwait2,
        libc::SYS_fchmodat2,
    ];
    let rules = calls.into_iter().map(|call| (call, vec![])).collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(u32::try_from(libc::ENOSYS).unwrap()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    filter.unwrap().try_into().unwrap()
}

/// What a container in a pod with so many processes is.
fn limited(node: &Node, name: &str, pids_max: i64) -> SandboxConfig {
    SandboxConfig {
        resources: Resources {
            pids_max: Some(pids_max),
            ..Resources::default()
        },
        ..node.sandbox(name)
    }
}

/// Those that the kernel counts in a pod.
fn processes_in(node: &Node, pod: &SandboxConfig) -> i64 {
    let group = format!("{}/{}/pids.current", node.cgroup_root(), pod.cgroup_parent);
    let layout = kedge_host::cgroups::layout().unwrap();
    let mut trees = layout.trees().into_iter();
    let counted =
        trees.find_map(|tree| std::fs::read_to_string(tree.join(group.trim_start_matches('/'))).ok());
    counted.unwrap().trim().parse().unwrap()
}

async fn in_time<T>(what: &str, act: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(ACT_MAX, act).await;
    done.unwrap_or_else(|_| panic!("{what} takes more than {} s", ACT_MAX.as_secs()))
}

fn shell(script: &str) -> Vec<String> {
    ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec()
}

mod story {
    use super::*;

    pub(super) async fn pods_run_as_ever(node: &Node, runtime: &Embedded) {
        let shared = SandboxConfig {
            share_pid: true,
            ..node.sandbox("shared")
        };
        for pod in [node.sandbox("plain"), shared] {
            let sandbox = runtime.run_sandbox(&pod).await.unwrap();
            let pid = if pod.share_pid {
                PidNamespace::Pod
            } else {
                PidNamespace::default()
            };
            let main = container("main", UNTIL_TERM);
            let main = ContainerConfig {
                security: Security {
                    pid,
                    seccomp: Seccomp::RuntimeDefault,
                    read_only_root: true,
                    ..main.security
                },
                resources: Resources {
                    memory_bytes_max: Some(64 << 20),
                    ..Resources::default()
                },
                ..main
            };
            let id = run(runtime, &sandbox, &main).await;
            wait_for_line(runtime, &id, "up").await;
            let told = runtime
                .exec_sync(&id, &shell("cat /etc/hostname; exit 3"), GRACE)
                .await
                .unwrap();
            let wanted = format!("{}\n", pod.hostname);
            assert_eq!((told.exit_code, told.stdout), (3, wanted.into_bytes()));
            let stats = runtime.stats().await.unwrap();
            assert!(
                stats
                    .iter()
                    .any(|stats| stats.containers.iter().any(|stats| stats.id == id))
            );
            runtime.stop_container(&id, GRACE).await.unwrap();
            assert_eq!(exit_of(runtime, &id).await, (0, ExitReason::Completed));
            runtime.remove_sandbox(&sandbox).await.unwrap();
        }
    }

    pub(super) async fn a_fork_bomb_stays_in_its_pod(node: &Node, runtime: &Embedded) {
        const PIDS_MAX: i64 = 60;
        const FULL: i64 = 40;
        let pod = limited(node, "bomb", PIDS_MAX);
        let sandbox = runtime.run_sandbox(&pod).await.unwrap();
        // A shell that cannot fork ends, and makes room for the others; the first process does not fork any more.
        let script = "echo up; f() { while :; do f & done; }; f 2>/dev/null & exec sleep 1000";
        let bomb = run(runtime, &sandbox, &container("bomb", script)).await;
        let began = Instant::now();
        // Shells that ended because they could not fork count until somebody buries them: `sleep` does not.
        while processes_in(node, &pod) < FULL {
            assert!(began.elapsed() < ACT_MAX, "no bomb");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Beside it, life goes on.
        let other = runtime.run_sandbox(&node.sandbox("other")).await.unwrap();
        let told = in_time(
            "another pod",
            outcome(runtime, &other, &container("main", "echo fine")),
        )
        .await;
        assert_eq!(told, (0, vec!["fine".to_owned()]));
        let processes = processes_in(node, &pod);
        assert!(processes <= PIDS_MAX, "{processes} processes");
        in_time(
            "to end a fork bomb",
            runtime.stop_container(&bomb, Duration::ZERO),
        )
        .await
        .unwrap();
        people::wait_until_gone(|person| person == Person::Container);
        assert_eq!(exit_of(runtime, &bomb).await, (137, ExitReason::Error));
    }

    pub(super) async fn a_pod_without_a_process_left_can_be_ended(node: &Node, runtime: &Embedded) {
        let pod = limited(node, "full", 20);
        let sandbox = runtime.run_sandbox(&pod).await.unwrap();
        let script = "sh -c 'while :; do sleep 1000 & done' 2>/dev/null; echo full; exec sleep 1000";
        let id = run(runtime, &sandbox, &container("main", script)).await;
        wait_for_line(runtime, &id, "full").await;
        let asked = in_time(
            "a command",
            runtime.exec_sync(&id, &shell("sleep 0 | sleep 0"), GRACE),
        )
        .await;
        assert!(
            asked.as_ref().map_or(true, |told| told.exit_code != 0),
            "{asked:?}"
        );
        let late = container("late", "exit 0");
        let made = runtime.create_container(&sandbox, &pod, &late);
        if let Ok(late) = in_time("a container", made).await {
            // Its first process may find room where its children would not.
            let _ = in_time("to start it", runtime.start_container(&late)).await;
        }
        in_time("to end the pod", runtime.remove_sandbox(&sandbox))
            .await
            .unwrap();
        people::wait_until_gone(|person| person != Person::Agent);
    }

    pub(super) async fn orphans_are_buried(node: &Node, runtime: &Embedded) {
        let pods = [
            ("own", node.sandbox("own"), PidNamespace::default()),
            (
                "shared",
                SandboxConfig {
                    share_pid: true,
                    ..node.sandbox("shared")
                },
                PidNamespace::Pod,
            ),
            (
                "nodes",
                SandboxConfig {
                    host_pid: true,
                    ..node.sandbox("nodes")
                },
                PidNamespace::default(),
            ),
        ];
        for (name, pod, pid) in pods {
            let sandbox = runtime.run_sandbox(&pod).await.unwrap();
            // A subshell that ends before its child leaves an orphan.
            let script = "i=0; while [ $i -lt 300 ]; do (/bin/busybox true & ); i=$((i+1)); done; echo done; \
                          while :; do sleep 0.1; done";
            let main = container(name, script);
            let main = ContainerConfig {
                security: Security { pid, ..main.security },
                ..main
            };
            let id = run(runtime, &sandbox, &main).await;
            wait_for_line(runtime, &id, "done").await;
            let began = Instant::now();
            while people::zombies() > 0 {
                assert!(
                    began.elapsed() < GRACE,
                    "{name}: {} dead are not buried",
                    people::zombies()
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            runtime.remove_sandbox(&sandbox).await.unwrap();
        }
    }

    pub(super) async fn a_flood_of_log_lines_is_bounded_on_disk(node: &Node, runtime: &Embedded) {
        const FLOOD_BYTES: u64 = 200_000_000;
        let sandbox = runtime.run_sandbox(&node.sandbox("flood")).await.unwrap();
        let script = format!(
            "yes 'a line of a program that says too much of what it does' | head -c {FLOOD_BYTES}; echo; echo end"
        );
        let began = Instant::now();
        let id = run(runtime, &sandbox, &container("main", &script)).await;
        let path = find(runtime, &id).await.unwrap().log_path;
        let mut most = 0;
        while !matches!(
            find(runtime, &id).await.unwrap().state,
            ContainerState::Exited { .. }
        ) {
            most = most.max(bytes_in(path.parent().unwrap()));
            assert!(began.elapsed() < island::STORY_MAX, "the flood does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let rate = FLOOD_BYTES as f64 / 1e6 / began.elapsed().as_secs_f64();
        println!("flood: {rate:.0} MB/s, at most {most} bytes on disk");
        assert_eq!(exit_of(runtime, &id).await.0, 0);
        // The file that is written, four older ones, and what one read may add.
        assert!(most <= 5 * LOG_BYTES_MAX + 512 * 1024, "{most} bytes");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with(" stdout F end\n"), "the last words are there");
    }

    pub(super) async fn a_child_out_of_memory_is_the_containers_own_affair(node: &Node, runtime: &Embedded) {
        let sandbox = runtime.run_sandbox(&node.sandbox("oom")).await.unwrap();
        let script = "trap 'exit 7' TERM; sh -c 'x=a; while :; do x=$x$x; done'; echo \"child $?\"; while :; do sleep 0.1; done";
        let config = ContainerConfig {
            resources: Resources {
                memory_bytes_max: Some(32 << 20),
                ..Resources::default()
            },
            ..container("main", script)
        };
        let id = run(runtime, &sandbox, &config).await;
        wait_for_line(runtime, &id, "child 137").await;
        assert!(matches!(
            find(runtime, &id).await.unwrap().state,
            ContainerState::Running { .. }
        ));
        runtime.stop_container(&id, GRACE).await.unwrap();
        assert_eq!(exit_of(runtime, &id).await.0, 7, "it ended by itself, when asked");
    }

    pub(super) async fn a_container_may_close_its_outputs(node: &Node, runtime: &Embedded) {
        let sandbox = runtime.run_sandbox(&node.sandbox("mute")).await.unwrap();
        let script =
            "trap 'exit 5' TERM; echo up; exec >&- 2>&- <&-; echo >/mute; while :; do sleep 0.1; done";
        let id = run(runtime, &sandbox, &container("main", script)).await;
        let is_mute = shell("until [ -e /mute ]; do sleep 0.01; done");
        let told = runtime.exec_sync(&id, &is_mute, ACT_MAX).await.unwrap();
        assert_eq!(told.exit_code, 0);
        // The ends of its outputs are there to be read for ever, and nobody works on them for ever.
        people::wait_until_at_rest(|person| person == Person::Supervisor);
        runtime.stop_container(&id, GRACE).await.unwrap();
        assert_eq!(exit_of(runtime, &id).await, (5, ExitReason::Error));
    }

    /// The agent's directory and the logs are on a disk that is full.
    pub(super) async fn a_full_disk_stops_nobody_from_ending(node: &Node, runtime: &Embedded) {
        // The story has a disk of its own beside the usual one, and so a runtime of its own.
        let disk = Disk::mount(node.directory.join("disk"));
        let config = Config {
            root: disk.0.join("runtime"),
            log_bytes_max: LOG_BYTES_MAX,
            ..node.config()
        };
        let small = Embedded::open(config).await.unwrap();
        small.import_image(node.archive()).await.unwrap();
        let pod = |name: &str| SandboxConfig {
            log_dir: disk.0.join("logs").join(name),
            ..node.sandbox(name)
        };
        let sandbox = small.run_sandbox(&pod("full")).await.unwrap();
        let empty = small.run_sandbox(&pod("empty")).await.unwrap();
        let talker = run(
            &small,
            &sandbox,
            &container(
                "talker",
                "trap 'exit 4' TERM; while :; do echo talk; sleep 0.01; done",
            ),
        )
        .await;
        let polite = run(&small, &sandbox, &container("polite", UNTIL_TERM)).await;
        wait_for_line(&small, &polite, "up").await;
        wait_for_line(&small, &talker, "talk").await;
        disk.fill();
        let refused = small.run_sandbox(&pod("late")).await.unwrap_err();
        assert_says(&refused, "No space left on device");
        let refused = small
            .create_container(&sandbox, &pod("full"), &container("late", "exit 0"))
            .await
            .unwrap_err();
        assert_says(&refused, "No space left on device");
        assert!(
            matches!(
                find(&small, &talker).await.unwrap().state,
                ContainerState::Running { .. }
            ),
            "its lines are lost, not it"
        );
        in_time("to stop on a full disk", small.stop_container(&talker, GRACE))
            .await
            .unwrap();
        disk.free();
        assert_eq!(
            exit_of(&small, &talker).await.0,
            4,
            "how it ended is told when there is room"
        );
        disk.fill();
        in_time("to remove on a full disk", small.remove_sandbox(&empty))
            .await
            .unwrap();
        in_time("to remove on a full disk", small.remove_sandbox(&sandbox))
            .await
            .unwrap();
        assert_eq!(small.list().await.unwrap(), []);
        drop(small);
        drop(disk);
        assert_eq!(runtime.list().await.unwrap(), [], "the other one is as it was");
    }
}

#[track_caller]
fn assert_says(error: &Error, words: &str) {
    let sentence = node::sentence(error);
    assert!(sentence.contains(words), "{sentence}");
}

fn bytes_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

/// A small disk of its own.
struct Disk(PathBuf);

impl Disk {
    const OPTIONS: &std::ffi::CStr = c"size=32m";

    fn mount(at: PathBuf) -> Self {
        std::fs::create_dir(&at).unwrap();
        rustix::mount::mount(
            "disk",
            &at,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(Self::OPTIONS),
        )
        .unwrap();
        Self(at)
    }

    /// Until not one byte more can be written.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        for piece in [1 << 20, 1 << 12, 1] {
            let bytes = vec![0; piece];
            while std::io::Write::write_all(&mut file, &bytes).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        drop(std::fs::remove_dir(&self.0));
    }
}
