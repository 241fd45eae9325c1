//! Root file systems that `fuse-overlayfs` serves: who the program is, what becomes of it and of its container when one of
//! them is in trouble, and when it is chosen. Needs root and the package fuse-overlayfs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[macro_use]
mod node;

use expect_test::expect;
use kedge_containers::{
    ContainerId, ContainerState, ExitReason, PidNamespace, Resources, SandboxConfig, Security,
};
use kedge_runtime::embedded::{Config, RootfsChoice, RootfsMode};
use kedge_runtime::{Embedded, Runtime};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use node::people::{self, Person};
use node::{Node, UNTIL_TERM, container, exit_of, find, outcome, run, said, wait_for_line};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = "fuse-overlayfs";
const GRACE: Duration = Duration::from_secs(10);
const EXEC_MAX: Duration = Duration::from_secs(30);
/// Long beside the patience that the runtime has with a program that hangs, short beside everything else it waits for.
const HANG_MAX: Duration = Duration::from_secs(20);
const MIB: i64 = 1024 * 1024;
/// What it holds at most, in KiB, with an image of one layer.
const PRIVATE_KIB_MAX: u64 = 4096;

/// Programs that serve nothing are told from the one that does, with their last words.
#[test]
fn a_program_that_does_not_serve_is_named() {
    if !Node::can_run_containers() {
        return;
    }
    let told = [
        ("false", "/usr/bin/false"),
        ("cat", "/usr/bin/cat"),
        ("none", "/no/such"),
    ]
    .map(|(name, program)| {
        let node = Node::new();
        let mut helper = Command::new(env!("CARGO_BIN_EXE_kedge-oci-helper"))
            .args(["oci-helper", "probe-fuse"])
            .arg(node.directory.join("probe"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let order = serde_json::to_vec(program).unwrap();
        helper.stdin.take().unwrap().write_all(&order).unwrap();
        let said = helper.wait_with_output().unwrap();
        assert!(!said.status.success());
        format!("{name}: {}", String::from_utf8_lossy(&said.stdout))
    });
    expect![[r#"
        false: {"Failed":"start fuse-overlayfs: it ended before it served the container's root"}
        cat: {"Failed":"start fuse-overlayfs: it ended before it served the container's root: Try '/usr/bin/cat --help' for more information."}
        none: {"Failed":"start fuse-overlayfs: No such file or directory (os error 2)"}"#]]
    .assert_eq(&told.join("\n"));
}

stories! { Some(kedge_runtime::embedded::RootfsChoice::Fuse);
    a_container_has_one_of_its_own_which_goes_with_it
    without_it_a_container_ends_and_begins_anew
    a_supervisor_that_took_over_sees_its_end_as_well
    one_that_hangs_holds_nobody_up
    neither_memory_nor_processes_of_the_container_take_it_along
    it_outlives_the_agent
    it_is_chosen_where_the_kernel_refuses
}

/// The one that runs.
fn the_one() -> i32 {
    let [pid] = people::running(PROGRAM)[..] else {
        panic!("one is expected: {:?}", people::running(PROGRAM))
    };
    pid
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn text_of(pid: i32, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

/// The word behind a key of `/proc/<pid>/status`.
fn status(pid: i32, key: &str) -> String {
    let text = text_of(pid, "status");
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().to_owned()
}

/// Whether this process may spare others what the kernel does for want of memory.
fn may_be_killed_last() -> bool {
    const SYS_RESOURCE: u64 = 1 << 24;
    kedge_host::process::capabilities().unwrap() & SYS_RESOURCE != 0
}

/// Waits until so many processes are in a control group.
async fn wait_until_crowded(group: &str, processes: u64) {
    let layout = kedge_host::cgroups::layout().unwrap();
    let began = Instant::now();
    let count = || kedge_host::groups::read_group(&layout, "pids", group, "pids.current").unwrap();
    while count().trim().parse::<u64>().unwrap() < processes {
        assert!(began.elapsed() < EXEC_MAX, "{} in {group}", count().trim());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until nothing in a pod has used a processor for a while: everything there waits for its root.
async fn wait_until_stuck(group: &str) {
    const WHILE: Duration = Duration::from_millis(200);
    let layout = kedge_host::cgroups::layout().unwrap();
    let used = || {
        kedge_host::groups::group_usage(&layout, group)
            .unwrap()
            .cpu
            .unwrap()
            .usage_ns
    };
    let began = Instant::now();
    let mut before = used();
    loop {
        tokio::time::sleep(WHILE).await;
        let now = used();
        if now == before {
            return;
        }
        assert!(began.elapsed() < EXEC_MAX, "it goes on");
        before = now;
    }
}

async fn message_of(runtime: &Embedded, id: &ContainerId) -> String {
    match find(runtime, id).await.unwrap().state {
        ContainerState::Exited { message, .. } => message,
        other => panic!("not exited: {other:?}"),
    }
}

async fn runs_in(runtime: &Embedded, id: &ContainerId, script: &str) -> String {
    let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned);
    let told = runtime.exec_sync(id, &command, EXEC_MAX).await.unwrap();
    assert_eq!(
        told.exit_code,
        0,
        "{script}: {}",
        String::from_utf8_lossy(&told.stderr)
    );
    String::from_utf8_lossy(&told.stdout).trim().to_owned()
}

mod story {
    use super::*;

    pub(super) async fn a_container_has_one_of_its_own_which_goes_with_it(node: &Node, runtime: &Embedded) {
        assert!(matches!(runtime.rootfs_mode(), RootfsMode::Fuse(program) if program.ends_with(PROGRAM)));
        let pod = SandboxConfig {
            resources: Resources {
                memory_bytes_max: Some(256 * MIB),
                ..Resources::default()
            },
            ..node.sandbox("pod")
        };
        let sandbox = runtime.run_sandbox(&pod).await.unwrap();
        let script = format!(
            "grep ' / ' /proc/mounts | cut -d ' ' -f 1,3; head -c 1000000 /dev/zero > /big; {UNTIL_TERM}"
        );
        let id = run(runtime, &sandbox, &container("main", &script)).await;
        wait_for_line(runtime, &id, "up").await;
        wait_for_line(runtime, &id, "fuse-overlayfs fuse.fuse-overlayfs").await;
        let server = the_one();
        let [supervisor] = people::pids(|person| person == Person::Supervisor)[..] else {
            panic!("one supervisor")
        };
        assert_eq!(status(server, "PPid:"), supervisor.to_string(), "who collects it");
        assert_eq!(status(server, "NoNewPrivs:"), "1");
        // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SYS_ADMIN, MKNOD, SETFCAP.
        let rights: u64 = [0, 1, 2, 3, 4, 21, 27, 31].map(|number| 1 << number).iter().sum();
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(status(server, set), format!("{rights:016x}"), "{set}");
        }
        let killed_last = if may_be_killed_last() { "-999" } else { "0" };
        assert_eq!(text_of(server, "oom_score_adj").trim(), killed_last);
        assert_eq!(text_of(server, "environ"), "");
        let mounts = text_of(server, "mountinfo");
        assert_eq!(
            mounts,
            std::fs::read_to_string("/proc/self/mountinfo").unwrap(),
            "it holds no mounts of a container"
        );
        let private = people::number(server, "smaps_rollup", "Private_Dirty:");
        println!(
            "fuse-overlayfs: {private} KiB private, {} resident",
            status(server, "VmRSS:")
        );
        assert!(private <= PRIVATE_KIB_MAX, "{private} KiB");
        // What tells a whole machine to end leaves the container the time that it has.
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            send(server, signal);
        }
        no_descriptor_too_many(server, &runtime_directory(node, &id));
        in_the_pod_beside_the_container(server, runtime, &id).await;
        assert_eq!(
            runs_in(runtime, &id, "echo more >> /etc/group; tail -n 1 /etc/group").await,
            "more"
        );
        let stats = runtime.stats().await.unwrap();
        let measured = &stats[0].containers[0];
        assert!(
            measured
                .layer_bytes
                .is_some_and(|bytes| (1_000_000..2_000_000).contains(&bytes)),
            "{measured:?}"
        );
        runtime.stop_container(&id, GRACE).await.unwrap();
        assert_eq!(exit_of(runtime, &id).await, (0, ExitReason::Completed));
        people::wait_until_ended(PROGRAM);
        assert_eq!(people::zombies(), 0, "its supervisor has collected it");
        assert_eq!(message_of(runtime, &id).await, "");
    }

    fn runtime_directory(node: &Node, id: &ContainerId) -> PathBuf {
        node.directory.join("runtime/containers").join(&id.0)
    }

    fn no_descriptor_too_many(server: i32, directory: &Path) {
        let entries = std::fs::read_dir(format!("/proc/{server}/fd")).unwrap().flatten();
        let held: Vec<String> = entries
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .map(|to| {
                to.strip_prefix(directory)
                    .map_or_else(|_| to.clone(), Path::to_owned)
                    .display()
                    .to_string()
            })
            // Its own pipe, for its signals and for what it says.
            .filter(|to| !to.starts_with("pipe:["))
            .collect();
        // The last is what the container has open.
        let known = [
            "/dev/fuse",
            "/dev/null",
            "/",
            "makers",
            "upper",
            "work/work",
            "/bin/busybox",
        ];
        let unknown: Vec<&String> = held.iter().filter(|to| !known.contains(&to.as_str())).collect();
        assert!(unknown.is_empty(), "{held:?}");
    }

    /// What it uses counts as the pod's and not as the container's.
    async fn in_the_pod_beside_the_container(server: i32, runtime: &Embedded, id: &ContainerId) {
        let of = |pid: i32| -> Vec<String> {
            let text = text_of(pid, "cgroup");
            let counts =
                |line: &&str| line.contains(":memory:") || line.contains(":pids:") || line.starts_with("0::");
            let groups = text
                .lines()
                .filter(counts)
                .filter_map(|line| line.rsplit(':').next());
            groups
                .filter(|group| group.contains("pod-"))
                .map(str::to_owned)
                .collect()
        };
        let main = runtime.process_of(id).await.unwrap().unwrap();
        let container = of(i32::try_from(main).unwrap());
        let beside: Vec<String> = of(server);
        assert!(!beside.is_empty());
        for group in &beside {
            let of_container = group.strip_suffix("-root").unwrap();
            assert!(
                container.iter().any(|group| group == of_container),
                "{beside:?} {container:?}"
            );
        }
    }

    pub(super) async fn without_it_a_container_ends_and_begins_anew(node: &Node, runtime: &Embedded) {
        let sandbox = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap();
        // It needs no file while it waits, and ends all the same. What it does then it has done before: its own program is
        // such a file, of which the kernel has what was needed.
        let script = "mkfifo /pipe; exec 3<>/pipe; echo x >&3; read x <&3; echo up; read x <&3";
        let id = run(runtime, &sandbox, &container("main", script)).await;
        wait_for_line(runtime, &id, "up").await;
        send(the_one(), Signal::SIGKILL);
        assert_eq!(exit_of(runtime, &id).await, (137, ExitReason::Error));
        assert_eq!(
            message_of(runtime, &id).await,
            "its root file system was lost: the program that serves it has ended"
        );
        assert_eq!(
            said(runtime, &sandbox, &container("again", "echo back")).await,
            "back"
        );
        // One that was made and never started goes as well.
        let made = runtime
            .create_container(&sandbox, &SandboxConfig::default(), &container("made", "true"))
            .await
            .unwrap();
        send(the_one(), Signal::SIGKILL);
        assert_eq!(exit_of(runtime, &made).await, (137, ExitReason::Error));
        runtime.remove_container(&id).await.unwrap();
        runtime.remove_sandbox(&sandbox).await.unwrap();
        assert_eq!(people::zombies(), 0);
    }

    pub(super) async fn a_supervisor_that_took_over_sees_its_end_as_well(node: &Node, runtime: &Embedded) {
        let sandbox = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap();
        let id = run(runtime, &sandbox, &container("main", UNTIL_TERM)).await;
        wait_for_line(runtime, &id, "up").await;
        let is_supervisor = |person| person == Person::Supervisor;
        people::kill(std::process::id(), is_supervisor);
        people::wait_until_gone(is_supervisor);
        assert!(matches!(
            find(runtime, &id).await.unwrap().state,
            ContainerState::Running { .. }
        ));
        people::wait_until_at_rest(is_supervisor);
        let main = runtime.process_of(&id).await.unwrap().unwrap().cast_signed();
        let server = the_one();
        send(server, Signal::SIGKILL);
        // Whose supervisor was killed is the child of the first process, which is this one.
        let collected = [server, main].map(|pid| {
            tokio::task::spawn_blocking(move || nix::sys::wait::waitpid(Pid::from_raw(pid), None))
        });
        for ended in collected {
            ended.await.unwrap().unwrap();
        }
        assert_eq!(exit_of(runtime, &id).await.1, ExitReason::Error);
        assert_eq!(
            said(runtime, &sandbox, &container("again", "echo back")).await,
            "back"
        );
    }

    pub(super) async fn one_that_hangs_holds_nobody_up(node: &Node, runtime: &Embedded) {
        for (name, share) in [("alone", false), ("shared", true)] {
            let pod = SandboxConfig {
                share_pid: share,
                ..node.sandbox(name)
            };
            let sandbox = runtime.run_sandbox(&pod).await.unwrap();
            let mut config = container("main", "echo up; while :; do cat /etc/passwd > /copy; done");
            if share {
                config.security.pid = PidNamespace::Pod;
            }
            let id = run(runtime, &sandbox, &config).await;
            wait_for_line(runtime, &id, "up").await;
            let server = the_one();
            send(server, Signal::SIGSTOP);
            wait_until_stuck(&format!("{}/burstable/pod-{name}", node.cgroup_root())).await;
            let began = Instant::now();
            let (removed, stopped) = if share {
                (runtime.remove_sandbox(&sandbox).await, Ok(()))
            } else {
                let stopped = runtime.stop_container(&id, Duration::from_millis(100)).await;
                (runtime.remove_container(&id).await, stopped)
            };
            stopped.unwrap();
            removed.unwrap();
            println!("{name}: gone after {} ms", began.elapsed().as_millis());
            assert!(began.elapsed() < HANG_MAX);
            people::wait_until_ended(PROGRAM);
        }
    }

    pub(super) async fn neither_memory_nor_processes_of_the_container_take_it_along(
        node: &Node,
        runtime: &Embedded,
    ) {
        let sandbox = runtime
            .run_sandbox(&SandboxConfig {
                resources: Resources {
                    memory_bytes_max: Some(32 * MIB),
                    pids_max: Some(40),
                    ..Resources::default()
                },
                ..node.sandbox("pod")
            })
            .await
            .unwrap();
        // The limits are the pod's, in which the program is. A child takes all memory, and then all processes.
        let script = "sh -c 'tail /dev/zero'; echo child $?; echo kept > /file; cat /file; \
            (while :; do sleep 1000 & done) 2>/dev/null & echo up; while :; do read line < /file; done";
        let id = run(runtime, &sandbox, &container("main", script)).await;
        wait_for_line(runtime, &id, "kept").await;
        wait_for_line(runtime, &id, "up").await;
        wait_until_crowded(&format!("{}/burstable/pod-pod", node.cgroup_root()), 38).await;
        let server = the_one();
        let main = runtime.process_of(&id).await.unwrap().unwrap();
        assert_eq!(
            std::fs::read_to_string(format!("/proc/{main}/root/file")).unwrap(),
            "kept\n"
        );
        std::fs::write(format!("/proc/{main}/root/other"), "written").unwrap();
        assert_eq!(the_one(), server);
        runtime.remove_sandbox(&sandbox).await.unwrap();
    }

    pub(super) async fn it_outlives_the_agent(node: &Node, _: &Embedded) {
        let config = |rootfs| Config {
            root: node.directory.join("another"),
            rootfs,
            ..node.config()
        };
        let old = Embedded::open(config(RootfsChoice::Fuse)).await.unwrap();
        old.import_image(node.archive()).await.unwrap();
        let sandbox = old.run_sandbox(&node.sandbox("pod")).await.unwrap();
        let script = format!("head -c 500000 /dev/zero > /big; {UNTIL_TERM}");
        let id = run(&old, &sandbox, &container("main", &script)).await;
        wait_for_line(&old, &id, "up").await;
        let server = the_one();
        drop(old);
        // Whoever comes after it makes others otherwise, and knows this one as it is.
        let new = Embedded::open(config(RootfsChoice::Copy)).await.unwrap();
        assert_eq!(the_one(), server);
        assert!(matches!(
            find(&new, &id).await.unwrap().state,
            ContainerState::Running { .. }
        ));
        assert_eq!(runs_in(&new, &id, "wc -c < /big").await, "500000");
        let stats = new.stats().await.unwrap();
        let bytes = stats[0].containers[0].layer_bytes.unwrap();
        assert!((500_000..1_000_000).contains(&bytes), "{bytes}");
        new.remove_container(&id).await.unwrap();
        people::wait_until_ended(PROGRAM);
        new.purge().await.unwrap();
        drop(new);
        std::fs::remove_dir_all(node.directory.join("another")).unwrap();
    }

    /// An overlay is no place for the upper directory of another.
    pub(super) async fn it_is_chosen_where_the_kernel_refuses(node: &Node, _: &Embedded) {
        let below = node.directory.join("below");
        let place = below.join("merged");
        for name in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir_all(below.join(name)).unwrap();
        }
        let options = format!(
            "lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work",
            below.display()
        );
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("overlay", &place, "overlay", flags, Some(options.as_c_str())).unwrap();
        let config = Config {
            root: place.join("runtime"),
            rootfs: RootfsChoice::Automatic,
            ..node.config()
        };
        let runtime = Embedded::open(config).await.unwrap();
        assert!(
            matches!(runtime.rootfs_mode(), RootfsMode::Fuse(_)),
            "is the package fuse-overlayfs installed? {:?}",
            runtime.rootfs_mode()
        );
        runtime.import_image(node.archive()).await.unwrap();
        let sandbox = runtime
            .run_sandbox(&SandboxConfig {
                log_dir: node.directory.join("logs/inner"),
                ..node.sandbox("inner")
            })
            .await
            .unwrap();
        let config = kedge_containers::ContainerConfig {
            security: Security {
                read_only_root: false,
                allow_privilege_escalation: true,
                ..Security::default()
            },
            ..container("main", "rm /etc/group; ls /etc; echo x > /new; cat /new")
        };
        let told = outcome(&runtime, &sandbox, &config).await;
        assert_eq!(
            (told.0, told.1.join(" ").as_str()),
            (0, "hostname hosts passwd resolv.conf x")
        );
        runtime.purge().await.unwrap();
        drop(runtime);
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
        std::fs::remove_dir_all(&below).unwrap();
    }
}
