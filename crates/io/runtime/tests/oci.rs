//! What the OCI runtime specification promises a container, beside what the contract of all runtimes shows. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use kedge_containers::{
    ContainerConfig, ContainerId, Device, ExitReason, Mount, Propagation, Resources, SandboxConfig,
    SandboxId, Seccomp, Security,
};
use kedge_host::mounts;
use kedge_runtime::image::{Blueprint, build_archive};
use kedge_runtime::{Embedded, Runtime};
use node::{
    Node, UNTIL_TERM, busybox, container, exit_of, outcome, outcome_in, refusal, run, run_in, said, secured,
    wait_for_line,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

const GRACE: Duration = Duration::from_secs(30);
const MIB: i64 = 1024 * 1024;

/// Runs a story on a node of its own and proves that it leaves nothing behind.
async fn on_a_node(story: impl AsyncFnOnce(&Node, &Embedded, &SandboxId)) {
    node::on_a_node(|_| (), story).await;
}

/// A file system in memory on the node, whose mounts pass to its copies if it is shared. It goes with this value.
struct Disk(PathBuf);

impl Disk {
    fn new(node: &Node, name: &str, shared: bool) -> Self {
        let path = node.directory.join(name);
        std::fs::create_dir_all(&path).unwrap();
        mounts::mount_tmpfs(&path, Some(1 << 20)).unwrap();
        let kind = if shared {
            rustix::mount::MountPropagationFlags::SHARED
        } else {
            rustix::mount::MountPropagationFlags::PRIVATE
        };
        rustix::mount::mount_change(&path, kind).unwrap();
        Self(path)
    }

    fn make(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Mounts something below, with a file in it that tells.
    fn mount(&self, name: &str) {
        let path = self.make(name);
        mounts::mount_tmpfs(&path, Some(1 << 20)).unwrap();
        std::fs::write(path.join("told"), "inner").unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(mounts::detach_below(&self.0));
    }
}

fn mount(host: &Path, path: &str, propagation: Propagation) -> Mount {
    Mount {
        propagation,
        ..Mount::bind(host, path, false)
    }
}

fn with_mounts(name: &str, script: &str, mounts: Vec<Mount>) -> ContainerConfig {
    ContainerConfig {
        mounts,
        ..container(name, script)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_pass_as_ordered_and_not_otherwise() {
    on_a_node(async |node, runtime, sandbox| {
        let disk = Disk::new(node, "disk", true);
        let kinds = [
            ("private", Propagation::Private),
            ("slave", Propagation::HostToContainer),
            ("shared", Propagation::Bidirectional),
        ];
        let mut running = Vec::new();
        for (name, kind) in kinds {
            let config = ContainerConfig {
                mounts: vec![mount(&disk.0, "/disk", kind)],
                ..secured(
                    name,
                    &format!(
                        "mkdir -p /disk/of-{name} && mount -t tmpfs x /disk/of-{name} && touch /disk/of-{name}/there; {UNTIL_TERM}"
                    ),
                    Security { privileged: true, ..Security::default() },
                )
            };
            let id = run(runtime, sandbox, &config).await;
            wait_for_line(runtime, &id, "up").await;
            running.push((name, id));
        }
        disk.mount("later");
        for (name, id) in &running {
            let sees = sees(runtime, id, "/disk/later/told").await;
            assert_eq!(sees, *name != "private", "{name} sees what is mounted on the node");
            let passed = disk.0.join(format!("of-{name}/there")).exists();
            assert_eq!(passed, *name == "shared", "the node sees what {name} mounted");
        }
        let (_, slave) = &running[1];
        assert!(sees(runtime, slave, "/disk/of-shared/there").await, "by way of the node");
        for (_, id) in &running {
            runtime.stop_container(id, Duration::ZERO).await.unwrap();
        }

        let alone = Disk::new(node, "alone", false);
        let config = with_mounts("refused", "true", vec![mount(&alone.0, "/x", Propagation::Bidirectional)]);
        let why = refusal(runtime, sandbox, &config).await;
        assert!(why.contains("keeps its mounts to itself"), "{why}");
    })
    .await;
}

async fn sees(runtime: &Embedded, id: &ContainerId, path: &str) -> bool {
    let command = ["/bin/busybox", "test", "-e", path].map(str::to_owned);
    runtime.exec_sync(id, &command, GRACE).await.unwrap().exit_code == 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_goes_as_deep_as_ordered() {
    on_a_node(async |node, runtime, sandbox| {
        let status = runtime.status().await.unwrap();
        assert!(status.features[""].recursive_read_only_mounts);
        let disk = Disk::new(node, "disk", false);
        disk.mount("inner");
        let script = "touch /disk/outer; touch /disk/inner/inner; ls /disk /disk/inner | tr '\\n' ' '";
        for (name, recursive, want) in [("flat", false, "inner told"), ("deep", true, "told")] {
            let mount = Mount {
                recursive_read_only: recursive,
                ..Mount::bind(disk.0.clone(), "/disk", true)
            };
            let text = said(runtime, sandbox, &with_mounts(name, script, vec![mount])).await;
            assert!(text.contains("/disk/outer: Read-only file system"), "{text}");
            assert_eq!(text.contains("/disk/inner/inner: Read-only"), recursive, "{text}");
            assert!(text.ends_with(&format!("/disk/inner: {want} ")), "{text}");
            drop(std::fs::remove_file(disk.0.join("inner/inner")));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_lie_in_and_over_each_other() {
    on_a_node(async |node, runtime, sandbox| {
        let (outer, inner) = (node.directory.join("outer"), node.directory.join("inner"));
        std::fs::create_dir_all(outer.join("sub")).unwrap();
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(inner.join("file"), "in").unwrap();
        let missing = node.directory.join("not/there");
        let mounts = vec![
            Mount::bind(inner, "/data/./sub", false),
            Mount::bind(outer.clone(), "/data", false),
            Mount::bind(missing.clone(), "/made", false),
            Mount::bind(node.write("own-hosts", b"mine"), "/etc/hosts", true),
        ];
        let config = ContainerConfig {
            working_dir: Some("/data/work/deep".into()),
            ..with_mounts(
                "main",
                "cat /data/sub/file; echo; cat /etc/hosts; echo; pwd; touch /made/x",
                mounts,
            )
        };
        assert_eq!(said(runtime, sandbox, &config).await, "in\nmine\n/data/work/deep");
        assert!(missing.join("x").exists() && outer.join("work/deep").is_dir());

        let elsewhere = ContainerConfig {
            working_dir: Some("/brand/new".into()),
            ..container("cwd", "pwd; stat -c '%a %u' .")
        };
        assert_eq!(said(runtime, sandbox, &elsewhere).await, "/brand/new\n755 0");
        let impossible = ContainerConfig {
            working_dir: Some("/etc/passwd/x".into()),
            ..container("no", "pwd")
        };
        let why = refusal(runtime, sandbox, &impossible).await;
        assert!(
            why.contains("make the working directory /etc/passwd/x: Not a directory"),
            "{why}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_the_image_can_be_written_to_and_go() {
    on_a_node(async |node, runtime, sandbox| {
        let image = Blueprint {
            reference: "kedge.test/volumes:1".to_owned(),
            volumes: vec!["/tmp".into(), "/var/lib/new".into(), "/given".into()],
            ..busybox()
        };
        let archive = node.write("volumes.tar", &build_archive(&image).unwrap());
        runtime.import_image(archive).await.unwrap();
        let given = node.directory.join("given");
        std::fs::create_dir_all(&given).unwrap();
        let config = ContainerConfig {
            image: image.reference.clone(),
            mounts: vec![Mount::bind(given.clone(), "/given", false)],
            ..secured(
                "main",
                "ls /tmp; touch /tmp/a /var/lib/new/b /given/c && echo written; touch /d /etc/hosts",
                Security {
                    read_only_root: true,
                    ..Security::default()
                },
            )
        };
        let (code, lines) = outcome(runtime, sandbox, &config).await;
        let text = lines.join("\n");
        assert!(code == 1 && text.starts_with("here\nwritten\n"), "{text}");
        assert!(
            text.contains("/d: Read-only") && text.contains("/etc/hosts: Read-only"),
            "{text}"
        );
        assert!(given.join("c").exists());
        assert_eq!(
            said(
                runtime,
                sandbox,
                &ContainerConfig {
                    image: image.reference,
                    ..container("next", "ls /tmp")
                }
            )
            .await,
            "here",
            "the next one begins anew"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_container_finds() {
    on_a_node(async |_, runtime, sandbox| {
        let script = "echo HOME=$HOME TERM=$TERM PATH=$PATH; umask; stat -f -c %T /dev/pts /dev/mqueue /dev/shm /proc; \
            test -e /sys/fs/cgroup/cgroup.controllers || test -e /sys/fs/cgroup/memory/memory.limit_in_bytes && echo groups; \
            cat /proc/sys/net/ipv4/ip_unprivileged_port_start; grep Groups /proc/self/status; ls -l /dev/ptmx /dev/fd | wc -l";
        let text = said(runtime, sandbox, &container("main", script)).await;
        for line in [
            "HOME=/ TERM= PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "0022",
            "groups",
            "0",
            "Groups:\t0 ",
            "2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} in {text}");
        }
        let user = Security { user: Some(4711), group: Some(42), ..Security::default() };
        let text = said(runtime, sandbox, &secured("user", "grep -E 'Groups|CapEff|CapAmb' /proc/self/status", user)).await;
        assert!(text.contains("Groups:\t42 ") && text.matches("0000000000000000").count() == 2, "{text}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_container_may_not_change() {
    on_a_node(async |_, runtime, sandbox| {
        // Its own limits are in its own control group, which root in the container would own.
        let groups = "for f in $(find /sys/fs/cgroup -name 'pids.max' -o -name memory.limit_in_bytes -o -name memory.max -o -name devices.allow); do echo $f; echo 1 > $f; done; mkdir /sys/fs/cgroup/x; true";
        let text = said(runtime, sandbox, &container("groups", groups)).await;
        let files = text.lines().filter(|line| line.starts_with("/sys/fs/cgroup")).count();
        assert!(files > 0, "{text}");
        assert_eq!(text.matches("Read-only file system").count(), files + 1, "{text}");
        let hidden = "head -q -c1 /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c; ls /sys/firmware /sys/devices/virtual/powercap 2>/dev/null | grep -v : | wc -w; echo x > /proc/sys/kernel/domainname";
        let (_, lines) = outcome(runtime, sandbox, &container("hidden", hidden)).await;
        assert_eq!(lines[..2], ["0", "0"], "{lines:?}");
        assert!(lines[2].contains("Read-only file system"), "{lines:?}");
        let open = Security { proc_unmasked: true, ..Security::default() };
        let text = said(runtime, sandbox, &secured("open", "grep -c ' /proc' /proc/self/mountinfo", open)).await;
        assert_eq!(text, "1", "procMount: Unmasked");
        let privileged = Security { privileged: true, ..Security::default() };
        let text = said(runtime, sandbox, &secured("privileged", "grep -E ' /sys(/fs/cgroup)? ' /proc/self/mountinfo | grep -c ' ro,'; test -b /dev/vda -o -c /dev/kmsg && echo devices", privileged)).await;
        assert_eq!(text, "0\ndevices");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn system_calls_are_filtered() {
    on_a_node(async |node, runtime, sandbox| {
        let filtered = |seccomp: Seccomp| Security { seccomp, ..Security::default() };
        let script = "exec 2>&1; unshare -U true; echo $?; mkdir /new; echo $?; grep Seccomp: /proc/self/status";
        let of = async |name: &str, seccomp| said(runtime, sandbox, &secured(name, script, filtered(seccomp))).await;
        let free = of("free", Seccomp::Unconfined).await;
        assert!(free.ends_with("0\nSeccomp:\t0"), "{free}");
        let own = of("own", Seccomp::RuntimeDefault).await;
        assert!(own.starts_with("unshare: unshare(0x10000000): Operation not permitted\n1\n0\nSeccomp:\t2"), "{own}");
        let profile = node.write(
            "profile.json",
            br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#,
        );
        let local = of("local", Seccomp::Localhost(profile)).await;
        assert!(local.contains("No space left on device\n1\nSeccomp:\t2"), "{local}");
        let broken = secured("broken", "true", filtered(Seccomp::Localhost(node.write("broken.json", b"{"))));
        let why = refusal(runtime, sandbox, &broken).await;
        assert!(why.contains("is not a seccomp profile"), "{why}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_those_that_were_given() {
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        return eprintln!("skipped: there is no {}", device.display());
    }
    on_a_node(async |_, runtime, sandbox| {
        let config = ContainerConfig {
            devices: vec![Device {
                host_path: device.to_owned(),
                container_path: "/dev/given".into(),
                permissions: "r".into(),
            }],
            ..container(
                "main",
                "exec 3</dev/given && echo read; (exec 3>/dev/given) 2>&1; mknod /dev/mine c 10 229 && (exec 3>/dev/mine) 2>&1; exec 3>/dev/null && echo null",
            )
        };
        let text = said(runtime, sandbox, &config).await;
        assert!(text.starts_with("read\n") && text.ends_with("null"), "{text}");
        assert_eq!(text.matches("Operation not permitted").count(), 2, "{text}");
    })
    .await;
}

/// A file of the container's control group.
fn of_group(node: &Node, pod: &str, id: &ContainerId, controller: &'static str, file: &str) -> String {
    let layout = kedge_host::cgroups::layout().unwrap();
    let group = format!("{}/burstable/pod-{pod}/{}", node.cgroup_root(), id.0);
    let text = kedge_host::groups::read_group(&layout, controller, &group, file).unwrap();
    text.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_set_and_changed() {
    on_a_node(async |node, runtime, sandbox| {
        let limits = Resources {
            cpu_shares: Some(512),
            cpu_quota_us: Some(50_000),
            memory_bytes_max: Some(64 * MIB),
            pids_max: Some(30),
            cpuset_cpus: Some("0".into()),
            ..Resources::default()
        };
        let config = ContainerConfig {
            resources: limits,
            ..container("main", UNTIL_TERM)
        };
        let id = run(runtime, sandbox, &config).await;
        if matches!(
            kedge_host::cgroups::layout().unwrap(),
            kedge_host::cgroups::Layout::V2 { .. }
        ) {
            return eprintln!("skipped: the files of version 2 have other names");
        }
        let told = || {
            [
                ("cpu", "cpu.shares"),
                ("cpu", "cpu.cfs_quota_us"),
                ("memory", "memory.limit_in_bytes"),
                ("memory", "memory.memsw.limit_in_bytes"),
                ("pids", "pids.max"),
                ("cpuset", "cpuset.cpus"),
            ]
            .map(|(controller, file)| of_group(node, "pod", &id, controller, file))
            .join(" ")
        };
        assert_eq!(told(), "512 50000 67108864 67108864 30 0");
        let more = Resources {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(-1),
            memory_bytes_max: Some(128 * MIB),
            pids_max: Some(-1),
            cpuset_cpus: Some("0-1".into()),
            ..Resources::default()
        };
        runtime.update_container(&id, &more).await.unwrap();
        assert_eq!(told(), "1024 -1 134217728 134217728 max 0-1");
        let less = Resources {
            memory_bytes_max: Some(32 * MIB),
            ..Resources::default()
        };
        runtime.update_container(&id, &less).await.unwrap();
        assert_eq!(told(), "1024 -1 33554432 33554432 max 0-1");
        let foreign = Resources {
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Resources::default()
        };
        let why = runtime
            .update_container(&id, &foreign)
            .await
            .unwrap_err()
            .to_string();
        assert!(why.contains("version 2 control groups"), "{why}");
        runtime.stop_container(&id, GRACE).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_was_killed_for_memory_is_told_by_its_container() {
    on_a_node(async |_, runtime, sandbox| {
        let limits = Resources {
            memory_bytes_max: Some(32 * MIB),
            oom_score_adj: Some(-500),
            ..Resources::default()
        };
        let script = "busybox sh -c 'x=a; while :; do x=$x$x; done'; exit";
        let config = |name: &str, script: &str| ContainerConfig {
            resources: limits.clone(),
            ..container(name, script)
        };
        let id = run(runtime, sandbox, &config("hungry", script)).await;
        assert_eq!(exit_of(runtime, &id).await, (137, ExitReason::OomKilled));
        let score = said(runtime, sandbox, &config("score", "cat /proc/self/oom_score_adj")).await;
        let may_lower = kedge_host::process::capabilities().unwrap() & (1 << 24) != 0;
        assert_eq!(score, if may_lower { "-500" } else { "0" });
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_stays_in_its_pod() {
    on_a_node(async |node, runtime, sandbox| {
        let pod = SandboxConfig {
            resources: Resources {
                pids_max: Some(60),
                ..Resources::default()
            },
            host_pid: true,
            ..node.sandbox("bomb")
        };
        let crowded = runtime.run_sandbox(&pod).await.unwrap();
        // Its processes have no namespace of their own that would end with the first of them.
        let bomb = container(
            "bomb",
            "echo up; b() { b | b & }; b; b; while :; do b; done 2>/dev/null",
        );
        let bomb = run_in(runtime, &crowded, &pod, &bomb).await;
        wait_for_line(runtime, &bomb, "up").await;
        let command = ["/bin/busybox", "true"].map(str::to_owned);
        // A command may hear that there is no room; it must be told, and nobody may hang.
        drop(runtime.exec_sync(&bomb, &command, GRACE).await);
        assert_eq!(
            said(runtime, sandbox, &container("beside", "echo fine")).await,
            "fine"
        );
        let another = runtime
            .create_container(&crowded, &pod, &container("another", "true"))
            .await;
        if let Err(error) = another {
            assert!(!error.to_string().is_empty());
        }
        runtime.remove_sandbox(&crowded).await.unwrap();
        let left = node::processes_with("b() { b | b & }");
        assert_eq!(left, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_signals_have_names_and_numbers() {
    on_a_node(async |_, runtime, sandbox| {
        for (number, signal) in ["SIGUSR1", "10", "SIGRTMIN+3", "RTMAX-1"].into_iter().enumerate() {
            let script = "for s in USR1 RTMIN+3 RTMAX-1; do trap 'exit 7' $s 2>/dev/null; done; trap 'exit 7' 37 63; echo up; while :; do sleep 0.1; done";
            let config = ContainerConfig {
                stop_signal: Some(signal.to_owned()),
                ..container(&format!("c{number}"), script)
            };
            let id = run(runtime, sandbox, &config).await;
            wait_for_line(runtime, &id, "up").await;
            runtime.stop_container(&id, GRACE).await.unwrap();
            assert_eq!(exit_of(runtime, &id).await, (7, ExitReason::Error), "{signal}");
        }
        let config = ContainerConfig { stop_signal: Some("SIGNOPE".into()), ..container("nope", "true") };
        let why = refusal(runtime, sandbox, &config).await;
        assert!(why.contains("SIGNOPE"), "{why}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_used_is_counted_for_a_summary() {
    on_a_node(async |_, runtime, sandbox| {
        let script = format!("dd if=/dev/zero of=/written bs=1024 count=300 2>/dev/null; mkdir /d; touch /d/1 /d/2; {UNTIL_TERM}");
        let id = run(runtime, sandbox, &container("main", &script)).await;
        wait_for_line(runtime, &id, "up").await;
        let all = runtime.stats().await.unwrap();
        let pod = &all[0];
        let own = &pod.containers[0];
        let memory = own.memory.unwrap();
        assert!(own.cpu.unwrap().usage_ns > 0 && memory.rss_bytes > 0 && memory.page_faults > 0, "{own:?}");
        assert!(memory.working_set_bytes <= memory.usage_bytes, "{memory:?}");
        assert!(own.layer_bytes.unwrap() >= 300 * 1024 && own.layer_inodes.unwrap() >= 4, "{own:?}");
        assert!(pod.processes.unwrap() >= 1 && pod.memory.is_some() && pod.cpu.is_some(), "{pod:?}");
        assert!(pod.network.iter().any(|interface| interface.name == "eth0"), "{pod:?}");
        runtime.stop_container(&id, GRACE).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runc_makes_the_containers_of_a_pod_that_asks_for_it() {
    another_runtime_makes_containers("runc").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crun_makes_the_containers_of_a_pod_that_asks_for_it() {
    another_runtime_makes_containers("crun").await;
}

async fn another_runtime_makes_containers(handler: &str) {
    on_a_node(async |node, runtime, _| {
        let unknown = SandboxConfig {
            handler: "kata".into(),
            ..node.sandbox("unknown")
        };
        let why = runtime.run_sandbox(&unknown).await.unwrap_err().to_string();
        assert!(
            why.contains("the built-in runtime has no handler kata; it has "),
            "{why}"
        );
        if !runtime
            .status()
            .await
            .unwrap()
            .handlers
            .contains(&handler.to_owned())
        {
            return eprintln!("skipped: {handler} is not installed");
        }
        let pod = SandboxConfig {
            handler: handler.to_owned(),
            ..node.sandbox("foreign")
        };
        let sandbox = runtime.run_sandbox(&pod).await.unwrap();
        let missing = ContainerConfig {
            command: vec!["/no/such".into()],
            ..container("missing", "")
        };
        let why = refusal(runtime, &sandbox, &missing).await;
        assert!(
            why.contains(&format!("{handler} create: ")) && why.contains("/no/such"),
            "{why}"
        );
        let text = node.write("text", b"no program");
        std::fs::set_permissions(&text, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let text = ContainerConfig {
            command: vec!["/text".into()],
            ..with_mounts("text", "", vec![Mount::bind(text, "/text", true)])
        };
        let (code, _) = outcome(runtime, &sandbox, &text).await;
        assert_ne!(code, 0, "it never began");
        let seccomp = Security {
            seccomp: Seccomp::RuntimeDefault,
            ..Security::default()
        };
        let script = "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status | tr '\\n' ' '; unshare -U true 2>&1";
        let (_, lines) = outcome(runtime, &sandbox, &secured("secured", script, seccomp)).await;
        let text = lines.join("\n");
        assert!(
            text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"),
            "{text}"
        );
        assert!(text.contains("Operation not permitted"), "{text}");
        let tty = ContainerConfig {
            tty: true,
            ..container("tty", "tty")
        };
        let (code, lines) = outcome_in(runtime, &sandbox, &pod, &tty).await;
        let text = lines.join(" ").replace('\r', "");
        assert_eq!((code, text.as_str()), (0, "/dev/pts/0"));

        // One that was never started, and one that runs, go with their sandbox.
        let waiting = runtime
            .create_container(&sandbox, &pod, &container("waiting", "true"))
            .await
            .unwrap();
        let running = run_in(runtime, &sandbox, &pod, &container("running", UNTIL_TERM)).await;
        wait_for_line(runtime, &running, "up").await;
        runtime.remove_container(&waiting).await.unwrap();
        runtime.remove_sandbox(&sandbox).await.unwrap();
        assert_eq!(node::processes_with(&waiting.0), Vec::<String>::new());
    })
    .await;
}
