//! The embedded runtime, further: commands in containers, statistics, confinement, devices, shared namespaces.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use kedge_containers::{
    ContainerConfig, Device, Mount, PidNamespace, Propagation, Resources, SandboxConfig, Seccomp, Security,
};
use kedge_runtime::{Error, Runtime};
use node::{UNTIL_TERM, container, on_a_node, outcome, run, wait_for_line};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

fn shell(script: &str) -> Vec<String> {
    ["/bin/busybox", "sh", "-c", script].map(str::to_owned).into()
}

fn secured(name: &str, script: &str, security: Security) -> ContainerConfig {
    ContainerConfig {
        security,
        ..container(name, script)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_run_as_the_containers_own_process_does() {
    on_a_node(
        |pod| pod.hostname = "web".to_owned(),
        async |_node, runtime, sandbox| {
            let security = Security {
                user: Some(1000),
                group: Some(77),
                supplemental_groups: vec![5],
                drop_capabilities: vec!["ALL".into()],
                ..Security::default()
            };
            let mut config = secured("main", UNTIL_TERM, security);
            config.env.push(("COLOUR".into(), "green".into()));
            config.working_dir = Some("/tmp".into());
            let id = run(runtime, sandbox, &config).await;
            wait_for_line(runtime, &id, "up").await;
            let script = "busybox id -u; busybox id -g; busybox id -G; echo $COLOUR $HOSTNAME; pwd; ls; echo $HOME; \
                          busybox grep -E 'CapBnd|NoNewPrivs' /proc/self/status; echo oops >&2; exit 3";
            let script = script.replace("busybox", "/bin/busybox").replace("ls;", "/bin/busybox ls;");
            let output = runtime.exec_sync(&id, &shell(&script), PATIENCE).await.unwrap();
            assert_eq!(
                text(&output.stdout).lines().collect::<Vec<_>>(),
                [
                    "1000",
                    "77",
                    "77 5 20",
                    "green web",
                    "/tmp",
                    "here",
                    "/",
                    "CapBnd:\t0000000000000000",
                    "NoNewPrivs:\t1"
                ]
            );
            assert_eq!((output.exit_code, text(&output.stderr).as_str()), (3, "oops"));

            // It is in the container's namespaces and control groups.
            let look = "for n in mnt pid; do for p in self 1; do /bin/busybox readlink /proc/$p/ns/$n; done; done; \
                        /bin/busybox cat /proc/self/cgroup | /bin/busybox md5sum; \
                        /bin/busybox cat /proc/1/cgroup | /bin/busybox md5sum";
            let output = runtime.exec_sync(&id, &shell(look), PATIENCE).await.unwrap();
            let lines = text(&output.stdout);
            let lines: Vec<&str> = lines.lines().collect();
            assert_eq!(lines.len(), 6, "{lines:?} {}", text(&output.stderr));
            assert_eq!((lines[0], lines[2], lines[4]), (lines[1], lines[3], lines[5]));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_fail_hang_or_talk_without_end_are_borne() {
    on_a_node(
        |_| {},
        async |_node, runtime, sandbox| {
            let id = run(runtime, sandbox, &container("main", UNTIL_TERM)).await;
            wait_for_line(runtime, &id, "up").await;
            let exec = async |command: &[&str], limit: Duration| {
                let command: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
                runtime.exec_sync(&id, &command, limit).await
            };
            let missing = exec(&["no-such-program"], PATIENCE).await.unwrap();
            assert_eq!(missing.exit_code, 127);
            assert!(text(&missing.stderr).contains("not found"), "{missing:?}");
            assert_eq!(exec(&["/tmp/here"], PATIENCE).await.unwrap().exit_code, 126);
            let killed = exec(&["/bin/busybox", "sh", "-c", "kill -9 $$"], PATIENCE)
                .await
                .unwrap();
            assert_eq!(killed.exit_code, 137);

            // Longer than is kept, and more than a pipe holds.
            let long = exec(
                &["/bin/busybox", "dd", "if=/dev/zero", "bs=1000", "count=1000"],
                PATIENCE,
            )
            .await
            .unwrap();
            assert_eq!((long.exit_code, long.stdout.len()), (0, 16 * 1024));

            let began = Instant::now();
            let hangs = exec(
                &[
                    "/bin/busybox",
                    "sh",
                    "-c",
                    "trap '' TERM; echo begun; /bin/busybox sleep 987654",
                ],
                Duration::from_millis(300),
            )
            .await;
            assert!(matches!(hangs, Err(Error::TimedOut { .. })), "{hangs:?}");
            assert!(began.elapsed() < Duration::from_secs(10));
            assert_eq!(
                node::processes_with("sleep 987654"),
                Vec::<String>::new(),
                "killed with its children"
            );

            // What stays in the background holds nobody up.
            let began = Instant::now();
            let left = exec(
                &["/bin/busybox", "sh", "-c", "/bin/busybox sleep 20 & echo done"],
                PATIENCE,
            )
            .await
            .unwrap();
            assert_eq!((left.exit_code, text(&left.stdout).as_str()), (0, "done"));
            assert!(began.elapsed() < Duration::from_secs(10));

            runtime.stop_container(&id, Duration::ZERO).await.unwrap();
            let gone = exec(&["/bin/busybox", "true"], PATIENCE).await.unwrap_err();
            assert!(gone.to_string().contains("it does not run"), "{gone}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_is_measured_and_gets_new_limits() {
    on_a_node(
        |_| {},
        async |_node, runtime, sandbox| {
            let script = "/bin/busybox dd if=/dev/zero of=/tmp/large bs=1024 count=512 2>/dev/null; echo up; \
                          i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo worked; \
                          trap 'exit 0' TERM; while :; do /bin/busybox sleep 0.1; done";
            let id = run(runtime, sandbox, &container("main", script)).await;
            wait_for_line(runtime, &id, "worked").await;
            let stats = runtime.stats().await.unwrap();
            assert_eq!(stats.len(), 1);
            let (pod, main) = (&stats[0], &stats[0].containers[0]);
            assert_eq!((&pod.id, &main.id, main.name.as_str()), (sandbox, &id, "main"));
            assert!(main.cpu.unwrap().usage_ns > 1_000_000, "{main:?}");
            assert!(main.memory.unwrap().usage_bytes > 100_000, "{main:?}");
            assert!(main.layer_bytes.unwrap() >= 512 * 1024, "{main:?}");
            assert_eq!(pod.network.len(), 1, "{pod:?}");
            assert_eq!(pod.network[0].name, "eth0");

            let limits = Resources {
                memory_bytes_max: Some(32 << 20),
                pids_max: Some(50),
                cpuset_cpus: Some("0".into()),
                ..Resources::default()
            };
            runtime.update_container(&id, &limits).await.unwrap();
            let layout = kedge_host::cgroups::layout().unwrap();
            let groups = kedge_host::groups::pod_groups(&layout, &[_node.cgroup_root()]);
            let group = groups.iter().find_map(|pod| pod.containers.get(&id.0)).unwrap();
            let usage = kedge_host::groups::group_usage(&layout, group).unwrap();
            assert_eq!(usage.memory.unwrap().limit, Some(32 << 20));
            runtime.stop_container(&id, Duration::ZERO).await.unwrap();
            assert_eq!(runtime.stats().await.unwrap()[0].containers, []);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn system_calls_are_filtered() {
    on_a_node(
        |_| {},
        async |node, runtime, sandbox| {
            // Making a namespace and mounting need rights; mkdir needs none.
            let script = "/bin/busybox grep -E 'Seccomp:|NoNewPrivs|CapBnd' /proc/self/status; \
                          /bin/busybox mkdir -p /dev/shm/x && echo made; \
                          /bin/busybox unshare -U /bin/busybox true 2>/dev/null || echo no unshare";
            let with = |name: &str, seccomp, escalation, user| {
                let security = Security {
                    seccomp,
                    allow_privilege_escalation: escalation,
                    user,
                    ..Security::default()
                };
                secured(name, script, security)
            };
            let open = outcome(runtime, sandbox, &with("open", Seccomp::Unconfined, true, None))
                .await
                .1;
            assert!(open.contains(&"Seccomp:\t0".to_owned()), "{open:?}");
            assert!(open.contains(&"made".to_owned()), "{open:?}");
            let bounding = open
                .iter()
                .find(|line| line.starts_with("CapBnd"))
                .cloned()
                .unwrap();
            for (name, escalation, user) in [
                ("root", true, None),
                ("strict", false, None),
                ("user", true, Some(1000)),
            ] {
                let lines = outcome(
                    runtime,
                    sandbox,
                    &with(name, Seccomp::RuntimeDefault, escalation, user),
                )
                .await
                .1;
                assert!(
                    lines.contains(&format!("NoNewPrivs:\t{}", u8::from(!escalation))),
                    "{lines:?}"
                );
                assert!(lines.contains(&"Seccomp:\t2".to_owned()), "{lines:?}");
                assert!(lines.contains(&bounding), "no right is left over: {lines:?}");
                assert!(lines.contains(&"no unshare".to_owned()), "{lines:?}");
                assert!(lines.contains(&"made".to_owned()), "{lines:?}");
            }
            let profile = node.write(
                "profile.json",
                br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}"#,
            );
            let id = run(
                runtime,
                sandbox,
                &ContainerConfig {
                    args: vec![UNTIL_TERM.to_owned()],
                    ..with("own", Seccomp::Localhost(profile), true, None)
                },
            )
            .await;
            wait_for_line(runtime, &id, "up").await;
            let made = runtime
                .exec_sync(&id, &shell("/bin/busybox mkdir /tmp/y"), PATIENCE)
                .await
                .unwrap();
            assert_eq!(made.exit_code, 1);
            assert!(text(&made.stderr).contains("Permission denied"), "{made:?}");
            let missing = with(
                "missing",
                Seccomp::Localhost("/no/profile.json".into()),
                true,
                None,
            );
            let error = runtime
                .create_container(sandbox, &SandboxConfig::default(), &missing)
                .await
                .unwrap_err();
            assert!(error.to_string().contains("/no/profile.json"), "{error}");
            runtime.remove_container(&id).await.unwrap();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_mounts_sysctls_and_proc_are_as_ordered() {
    on_a_node(
        |pod| {
            pod.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "81".into());
            pod.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
        },
        async |node, runtime, sandbox| {
            let shared = node.directory.join("shared");
            std::fs::create_dir_all(shared.join("below")).unwrap();
            let mut config = container(
                "main",
                "/bin/busybox cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; \
                 /bin/busybox dd if=/dev/void of=/dev/null bs=1 count=1 2>/dev/null && echo read; \
                 echo x >/dev/void 2>/dev/null || echo full; \
                 /bin/busybox touch /mnt/below/x 2>/dev/null || echo kept; \
                 /bin/busybox ls /proc/acpi 2>/dev/null | /bin/busybox wc -l; \
                 echo hello >/dev/shm/word",
            );
            config.devices.push(Device {
                host_path: "/dev/full".into(),
                container_path: "/dev/void".into(),
                permissions: "rw".into(),
            });
            config.mounts.push(Mount {
                recursive_read_only: true,
                propagation: Propagation::HostToContainer,
                ..Mount::bind(&shared, "/mnt", true)
            });
            let (code, lines) = outcome(runtime, sandbox, &config).await;
            assert_eq!((code, lines.join(" ").as_str()), (0, "81 1 read full kept 0"));
            // The pod's memory is its containers' together.
            let (_, lines) = outcome(
                runtime,
                sandbox,
                &container("other", "/bin/busybox cat /dev/shm/word; /bin/busybox df -k /dev/shm | /bin/busybox tail -1"),
            )
            .await;
            assert_eq!(lines[0], "hello");
            assert!(lines[1].contains("65536"), "{lines:?}");

            let security = Security {
                proc_unmasked: true,
                allow_privilege_escalation: true,
                ..Security::default()
            };
            let script = "/bin/busybox grep -c ' /proc/' /proc/self/mountinfo";
            let (_, unmasked) = outcome(runtime, sandbox, &secured("open", script, security)).await;
            assert_eq!(unmasked, ["0"]);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_may_see_each_others_processes() {
    let seen_by = |name: &str, pid: PidNamespace| {
        let security = Security {
            pid,
            ..Security::default()
        };
        secured(
            name,
            "/bin/busybox ps | /bin/busybox grep -v grep | /bin/busybox grep -c 'echo up'",
            security,
        )
    };
    on_a_node(
        |pod| pod.share_pid = true,
        async |_node, runtime, sandbox| {
            let main = Security {
                pid: PidNamespace::Pod,
                ..Security::default()
            };
            let main = run(runtime, sandbox, &secured("main", UNTIL_TERM, main)).await;
            wait_for_line(runtime, &main, "up").await;
            let own = outcome(runtime, sandbox, &seen_by("own", PidNamespace::Container))
                .await
                .1;
            assert_eq!(own, ["0"]);
            let pod = outcome(runtime, sandbox, &seen_by("pod", PidNamespace::Pod))
                .await
                .1;
            assert_eq!(pod, ["1"]);
            let target = PidNamespace::Target(main.clone());
            let debug = outcome(runtime, sandbox, &seen_by("debug", target.clone()))
                .await
                .1;
            assert_eq!(debug, ["1"]);
            runtime.stop_container(&main, Duration::ZERO).await.unwrap();
            let late = runtime
                .create_container(sandbox, &SandboxConfig::default(), &seen_by("late", target))
                .await
                .unwrap_err();
            assert!(late.to_string().contains("does not run"), "{late}");
            let after = outcome(runtime, sandbox, &seen_by("after", PidNamespace::Pod))
                .await
                .1;
            assert_eq!(after, ["0"], "the pod's processes outlive each container");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_cannot_do_is_said() {
    on_a_node(
        |_| {},
        async |node, runtime, _| {
            let mut config = node.sandbox("other");
            config.handler = "kata".into();
            let handler = runtime.run_sandbox(&config).await.unwrap_err();
            assert!(handler.to_string().contains("has no handler kata"), "{handler}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_beside_a_container_cannot_be_changed_from_there() {
    on_a_node(
        |_| {},
        async |node, runtime, sandbox| {
            let id = run(runtime, sandbox, &container("main", UNTIL_TERM)).await;
            let directory = node.directory.to_string_lossy().into_owned();
            let of_node = |entry: &std::fs::DirEntry| {
                let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                command.contains("supervise") && command.contains(&directory)
            };
            let mut processes = std::fs::read_dir("/proc").unwrap().flatten();
            let supervisor = processes.find(of_node).unwrap().path();
            let found = nix::sys::statvfs::statvfs(&supervisor.join("exe")).unwrap();
            assert!(found.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
            runtime.remove_container(&id).await.unwrap();
        },
    )
    .await;
}
