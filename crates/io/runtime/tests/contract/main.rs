//! What every runtime does, asked of each: the same stories for the hollow one, the embedded one, and containerd.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../node/mod.rs"]
mod node;
mod talk;

use futures_util::FutureExt;
use kedge_containerd::{ContainerdMake, CrioMake, Daemon, Make};
use kedge_containers::{
    ContainerConfig, ContainerId, ContainerState, Device, DnsConfig, ExecOutput, ExitReason, Mount,
    PidNamespace, Resources, SandboxConfig, SandboxId, SandboxSecurity, Seccomp, Security,
};
use kedge_runtime::embedded::RootfsChoice;
use kedge_runtime::{Error, Hollow, LogRotation, Runtime};
use node::{
    IMAGE, Node, UNTIL_TERM, container, exit_of, find, log, outcome_in, run_in, wait_for, wait_for_line,
};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// Longer than any container here needs; only reached by a broken runtime.
const GRACE: Duration = Duration::from_secs(30);
const MIB: i64 = 1024 * 1024;

async fn contract(runtime: &dyn Runtime, node: &Node) {
    a_pod_is_born_runs_and_goes(runtime, node.sandbox("life"), container("main", UNTIL_TERM)).await;
    stopping_a_sandbox_ends_everything(runtime, node.sandbox("stop"), container("main", UNTIL_TERM)).await;
    a_created_container_that_never_ran_can_go(
        runtime,
        node.sandbox("unstarted"),
        container("main", UNTIL_TERM),
    )
    .await;
    what_is_not_there_is_said_or_no_error(runtime, node.sandbox("absent")).await;
    a_change_is_hinted(runtime, node.sandbox("hint"), container("main", UNTIL_TERM)).await;
    the_runtime_tells_how_it_is(runtime).await;
    images_can_be_asked_for(runtime).await;
    assert_eq!(runtime.list().await.unwrap(), []);
}

/// What only those can show that run processes.
async fn real_contract(runtime: &dyn Runtime, node: &Node) {
    ends_are_told(runtime, node.sandbox("ends")).await;
    a_container_is_what_its_configuration_says(runtime, node).await;
    a_container_has_the_rights_that_it_is_given(runtime, node.sandbox("rights")).await;
    containers_of_a_pod_share_what_it_says(runtime, node.sandbox("share")).await;
    a_container_that_takes_too_much_memory_is_killed_for_it(runtime, node.sandbox("oom")).await;
    commands_run_in_containers(runtime, node.sandbox("exec")).await;
    what_is_used_is_counted(runtime, node.sandbox("stats")).await;
    a_log_that_was_moved_away_is_begun_anew(runtime, node.sandbox("log")).await;
    a_pod_may_share_the_nodes_network(runtime, node.sandbox("host")).await;
    assert_eq!(runtime.list().await.unwrap(), []);
}

async fn the_runtime_tells_how_it_is(runtime: &dyn Runtime) {
    let status = runtime.status().await.unwrap();
    assert_eq!((status.runtime_trouble, status.network_trouble), (None, None));
    let version = runtime.version().await.unwrap();
    assert!(
        !version.name.is_empty() && !version.version.is_empty(),
        "{version:?}"
    );
    let usage = runtime.image_usage().await.unwrap();
    assert!(!usage.mount_point.as_os_str().is_empty(), "{usage:?}");
}

async fn ends_are_told(runtime: &dyn Runtime, pod: SandboxConfig) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let id = run_in(
        runtime,
        &sandbox,
        &pod,
        &container("main", "echo out; echo err >&2; printf tail; exit 3"),
    )
    .await;
    assert_eq!(exit_of(runtime, &id).await, (3, ExitReason::Error));
    let text = std::fs::read_to_string(find(runtime, &id).await.unwrap().log_path).unwrap();
    for (stream, line) in [("stdout", "out"), ("stderr", "err"), ("stdout", "tail")] {
        let told = text.lines().any(|found| {
            let mut words = found.splitn(4, ' ').skip(1);
            words.next() == Some(stream) && words.nth(1) == Some(line)
        });
        assert!(told, "{stream} {line:?} in {text}");
    }
    let id = run_in(runtime, &sandbox, &pod, &container("well", "exit 0")).await;
    assert_eq!(exit_of(runtime, &id).await, (0, ExitReason::Completed));
    let deaf = run_in(
        runtime,
        &sandbox,
        &pod,
        &container("deaf", "trap '' TERM; echo up; while :; do sleep 0.1; done"),
    )
    .await;
    wait_for_line(runtime, &deaf, "up").await;
    runtime
        .stop_container(&deaf, Duration::from_secs(1))
        .await
        .unwrap();
    assert_eq!(exit_of(runtime, &deaf).await, (137, ExitReason::Error));
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn said(
    runtime: &dyn Runtime,
    sandbox: &SandboxId,
    pod: &SandboxConfig,
    config: &ContainerConfig,
) -> String {
    let (code, lines) = outcome_in(runtime, sandbox, pod, config).await;
    assert_eq!(code, 0, "{lines:?}");
    lines.join("\n")
}

async fn a_container_is_what_its_configuration_says(runtime: &dyn Runtime, node: &Node) {
    let pod = SandboxConfig {
        sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "77".to_owned())].into(),
        dns: DnsConfig {
            servers: vec!["10.0.0.10".to_owned()],
            searches: vec!["a.example".to_owned()],
            options: vec!["ndots:3".to_owned()],
        },
        ..node.sandbox("config")
    };
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let script = "echo $FROM_IMAGE $GIVEN $(hostname) $(pwd); cat /etc/resolv.conf /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let config = ContainerConfig {
        env: vec![("GIVEN".to_owned(), "too".to_owned())],
        working_dir: Some("/tmp".to_owned()),
        ..container("main", script)
    };
    let text = said(runtime, &sandbox, &pod, &config).await;
    assert!(text.starts_with("yes too config /tmp\n"), "{text}");
    for line in [
        "nameserver 10.0.0.10",
        "search a.example",
        "options ndots:3",
        "77",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} in {text}");
    }

    let kept = node.write("kept", b"from the node");
    let shared = node.directory.join("shared");
    std::fs::create_dir_all(&shared).unwrap();
    let config = ContainerConfig {
        mounts: vec![
            Mount::bind(kept, "/data/kept", true),
            Mount::bind(shared.clone(), "/shared", false),
        ],
        ..container(
            "mounts",
            "cat /data/kept; echo yes > /shared/written; echo no > /data/kept || echo refused",
        )
    };
    let text = said(runtime, &sandbox, &pod, &config).await;
    assert!(
        text.contains("from the node") && text.contains("refused"),
        "{text}"
    );
    assert_eq!(std::fs::read_to_string(shared.join("written")).unwrap(), "yes\n");

    let config = ContainerConfig {
        devices: vec![Device {
            host_path: "/dev/null".into(),
            container_path: "/dev/sink".into(),
            permissions: "rw".to_owned(),
        }],
        ..container("devices", "echo x > /dev/sink && test -c /dev/sink && echo taken")
    };
    assert_eq!(said(runtime, &sandbox, &pod, &config).await, "taken");
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn a_container_has_the_rights_that_it_is_given(runtime: &dyn Runtime, pod: SandboxConfig) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let status = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr '\\n\\t' '  '; echo $(id -u) $(id -g) $(id -G); \
                  touch /tmp/x 2>/dev/null && echo writes";
    let table = [
        (
            "plain",
            Security {
                allow_privilege_escalation: true,
                ..Security::default()
            },
            "NoNewPrivs: 0 Seccomp: 0 0 0 0 writes",
        ),
        (
            "user",
            Security {
                user: Some(1000),
                group: Some(77),
                supplemental_groups: vec![5],
                read_only_root: true,
                ..Security::default()
            },
            "NoNewPrivs: 1 Seccomp: 0 1000 77 77 5 20",
        ),
        (
            "group",
            Security {
                group: Some(77),
                seccomp: Seccomp::RuntimeDefault,
                ..Security::default()
            },
            "NoNewPrivs: 1 Seccomp: 2 0 77 77 writes",
        ),
    ];
    for (name, security, wanted) in table {
        let config = ContainerConfig {
            security,
            ..container(name, &format!("{status}; true"))
        };
        let text = said(runtime, &sandbox, &pod, &config).await.replace('\n', " ");
        let (capabilities, rest) = text.trim_start_matches("CapEff: ").split_once(' ').unwrap();
        assert_eq!(rest.trim(), wanted, "{name}");
        assert_eq!(
            capabilities == "0000000000000000",
            name == "user",
            "{name}: {text}"
        );
    }
    let privileged = Security {
        privileged: true,
        allow_privilege_escalation: true,
        ..Security::default()
    };
    let config = ContainerConfig {
        security: privileged,
        ..container("privileged", "mount -t tmpfs none /tmp && echo mounted")
    };
    let privileged_pod = SandboxConfig {
        security: SandboxSecurity {
            privileged: true,
            ..SandboxSecurity::default()
        },
        attempt: 1,
        ..pod.clone()
    };
    let other = runtime.run_sandbox(&privileged_pod).await.unwrap();
    assert_eq!(said(runtime, &other, &privileged_pod, &config).await, "mounted");
    runtime.remove_sandbox(&other).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn containers_of_a_pod_share_what_it_says(runtime: &dyn Runtime, pod: SandboxConfig) {
    let pod = SandboxConfig {
        share_pid: true,
        ..pod
    };
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let shared = |name: &str, script: &str| ContainerConfig {
        security: Security {
            pid: PidNamespace::Pod,
            allow_privilege_escalation: true,
            ..Security::default()
        },
        ..container(name, script)
    };
    let main = run_in(runtime, &sandbox, &pod, &shared("main", "exec sleep 7654")).await;
    let look = "until ps | grep -q '[s]leep 7654'; do sleep 0.1; done; readlink /proc/self/ns/net";
    let seen = said(runtime, &sandbox, &pod, &shared("look", look)).await;
    assert!(seen.starts_with("net:["), "{seen}");
    let own = container(
        "own",
        "ps | grep -c '[s]leep 7654' || true; readlink /proc/self/ns/net",
    );
    assert_eq!(
        said(runtime, &sandbox, &pod, &own).await,
        format!("0\n{seen}"),
        "one network, other processes"
    );

    let lone = run_in(runtime, &sandbox, &pod, &container("lone", "exec sleep 4567")).await;
    let target = Security {
        pid: PidNamespace::Target(lone),
        allow_privilege_escalation: true,
        ..Security::default()
    };
    let debug = ContainerConfig {
        security: target,
        ..container("debug", "ps | grep -c '[s]leep 4567'")
    };
    assert_eq!(said(runtime, &sandbox, &pod, &debug).await, "1");
    runtime.stop_container(&main, Duration::ZERO).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn a_container_that_takes_too_much_memory_is_killed_for_it(runtime: &dyn Runtime, pod: SandboxConfig) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let greedy = ContainerConfig {
        resources: Resources {
            memory_bytes_max: Some(16 * MIB),
            ..Resources::default()
        },
        // The shell itself grows, so that it is the first process that is killed.
        ..container(
            "greedy",
            "x=$(head -c 1000000 /dev/zero | tr '\\0' x); while :; do x=\"$x$x\"; done",
        )
    };
    let id = run_in(runtime, &sandbox, &pod, &greedy).await;
    assert_eq!(exit_of(runtime, &id).await, (137, ExitReason::OomKilled));
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

fn shell(script: &str) -> Vec<String> {
    ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec()
}

async fn commands_run_in_containers(runtime: &dyn Runtime, pod: SandboxConfig) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let id = run_in(runtime, &sandbox, &pod, &container("main", UNTIL_TERM)).await;
    wait_for_line(runtime, &id, "up").await;
    let told = runtime
        .exec_sync(&id, &shell("echo out; echo err >&2; exit 7"), GRACE)
        .await
        .unwrap();
    assert_eq!(
        told,
        ExecOutput {
            exit_code: 7,
            stdout: b"out\n".to_vec(),
            stderr: b"err\n".to_vec(),
        }
    );
    let long = runtime
        .exec_sync(&id, &shell("head -c 100000 /dev/zero"), GRACE)
        .await
        .unwrap();
    assert_eq!((long.exit_code, long.stdout.len()), (0, ExecOutput::BYTES_MAX));
    let slow = runtime
        .exec_sync(&id, &shell("sleep 1000"), Duration::from_secs(1))
        .await;
    assert!(matches!(slow, Err(Error::TimedOut { .. })), "{slow:?}");
    // Some runtimes call it a failure to run, others a command that ended as a shell ends it.
    let missing = runtime.exec_sync(&id, &["/no/such".to_owned()], GRACE).await;
    let words = missing.as_ref().map_or_else(ToString::to_string, |told| {
        assert_ne!(told.exit_code, 0);
        String::from_utf8_lossy(&told.stderr).into_owned()
    });
    assert!(words.contains("/no/such"), "{words}");
    let nowhere = runtime
        .exec_sync(&ContainerId("nothing".into()), &shell("true"), GRACE)
        .await;
    assert!(matches!(nowhere, Err(Error::NoContainer(_))), "{nowhere:?}");
    runtime.stop_container(&id, GRACE).await.unwrap();
    let ended = runtime.exec_sync(&id, &shell("true"), GRACE).await;
    assert!(ended.is_err(), "{ended:?}");
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn what_is_used_is_counted(runtime: &dyn Runtime, pod: SandboxConfig) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let id = run_in(runtime, &sandbox, &pod, &container("main", UNTIL_TERM)).await;
    wait_for_line(runtime, &id, "up").await;
    // What has ended uses nothing, and must not hide what runs.
    let ended = run_in(runtime, &sandbox, &pod, &container("ended", "exit 0")).await;
    exit_of(runtime, &ended).await;
    let stopped = SandboxConfig {
        attempt: 1,
        ..pod.clone()
    };
    let stopped = runtime.run_sandbox(&stopped).await.unwrap();
    runtime.stop_sandbox(&stopped).await.unwrap();
    // A runtime counts now and then; what it says must come to be true.
    let counted = tokio::time::timeout(GRACE, async {
        loop {
            let stats = runtime.stats().await.unwrap();
            let own = stats.into_iter().find(|stats| stats.id == sandbox).unwrap();
            let main = own.containers.iter().find(|stats| stats.id == id).cloned();
            if let Some(main) = main.filter(|main| main.cpu.is_some_and(|cpu| cpu.usage_ns > 0)) {
                return (own.pod, main);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let (counted_pod, main) = counted.await.expect("figures of the container");
    assert_eq!((counted_pod, main.name.as_str()), (pod.pod.clone(), "main"));
    assert!(
        main.memory.is_some_and(|memory| memory.working_set_bytes > 0),
        "{main:?}"
    );
    let more = Resources {
        memory_bytes_max: Some(64 * MIB),
        cpu_shares: Some(512),
        ..Resources::default()
    };
    runtime.update_container(&id, &more).await.unwrap();
    runtime.remove_sandbox(&stopped).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn a_log_that_was_moved_away_is_begun_anew(runtime: &dyn Runtime, pod: SandboxConfig) {
    if runtime.log_rotation() == LogRotation::ByRuntime {
        return;
    }
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let script = "trap 'exit 0' TERM; echo first; until [ -e /tmp/on ]; do sleep 0.1; done; echo second; while :; do sleep 0.1; done";
    let id = run_in(runtime, &sandbox, &pod, &container("main", script)).await;
    wait_for_line(runtime, &id, "first").await;
    let path = find(runtime, &id).await.unwrap().log_path;
    std::fs::rename(&path, path.with_extension("log.old")).unwrap();
    runtime.reopen_log(&id).await.unwrap();
    assert_eq!(log(runtime, &id).await, Vec::<String>::new());
    runtime
        .exec_sync(&id, &shell("touch /tmp/on"), GRACE)
        .await
        .unwrap();
    wait_for_line(runtime, &id, "second").await;
    assert_eq!(log(runtime, &id).await, ["second"]);
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn a_pod_may_share_the_nodes_network(runtime: &dyn Runtime, pod: SandboxConfig) {
    let pod = SandboxConfig {
        host_network: true,
        hostname: "somewhere".to_owned(),
        ..pod
    };
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    assert_eq!(runtime.list().await.unwrap()[0].ips, Vec::<String>::new());
    let (code, lines) = outcome_in(
        runtime,
        &sandbox,
        &pod,
        &container("main", "readlink /proc/self/ns/net"),
    )
    .await;
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!((code, lines), (0, vec![own.display().to_string()]));
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn a_pod_is_born_runs_and_goes(runtime: &dyn Runtime, pod: SandboxConfig, config: ContainerConfig) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let [seen] = &runtime.list().await.unwrap()[..] else {
        panic!("one sandbox")
    };
    assert_eq!(
        (&seen.id, &seen.pod, seen.ready, seen.attempt),
        (&sandbox, &pod.pod, true, 0)
    );
    assert_eq!((seen.ips.len(), seen.containers.len()), (1, 0));

    let id = runtime.create_container(&sandbox, &pod, &config).await.unwrap();
    let seen = find(runtime, &id).await.unwrap();
    assert_eq!(seen.state, ContainerState::Created);
    assert_eq!(
        (seen.name.as_str(), seen.image.as_str(), seen.spec_hash.as_str()),
        ("main", IMAGE, "hash")
    );
    assert!(names_content(&seen.image_ref), "{}", seen.image_ref);
    assert_eq!(seen.log_path, pod.log_dir.join("main/0.log"));

    runtime.start_container(&id).await.unwrap();
    let state = wait_for(runtime, &id, |state| {
        matches!(state, ContainerState::Running { .. })
    })
    .await;
    let ContainerState::Running { started_ms, .. } = state else {
        unreachable!()
    };
    assert!(started_ms >= seen.created_ms);
    let again = runtime.start_container(&id).await.unwrap_err().to_string();
    assert!(again.ends_with("it was started before"), "{again}");

    let log = std::fs::read_to_string(&seen.log_path);
    assert!(log.is_ok_and(|text| text.is_empty() || text.contains(" stdout F ")));

    runtime.stop_container(&id, GRACE).await.unwrap();
    let ContainerState::Exited {
        started_ms: began,
        finished_ms,
        ..
    } = find(runtime, &id).await.unwrap().state
    else {
        panic!("a stopped container has ended when stop returns")
    };
    assert!(began == started_ms && finished_ms >= began);
    runtime.stop_container(&id, GRACE).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    assert_eq!(find(runtime, &id).await, None);
    runtime.remove_container(&id).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn stopping_a_sandbox_ends_everything(
    runtime: &dyn Runtime,
    pod: SandboxConfig,
    config: ContainerConfig,
) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let one = run_in(runtime, &sandbox, &pod, &config).await;
    let other = ContainerConfig {
        name: "other".into(),
        log_path: "other/0.log".into(),
        ..config.clone()
    };
    let two = run_in(runtime, &sandbox, &pod, &other).await;
    runtime.stop_sandbox(&sandbox).await.unwrap();
    runtime.stop_sandbox(&sandbox).await.unwrap();
    // Some runtimes kill them at once, others ask them first.
    for id in [&one, &two] {
        exit_of(runtime, id).await;
    }
    assert!(!runtime.list().await.unwrap()[0].ready);
    let refused = runtime
        .create_container(&sandbox, &pod, &config)
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(refused, "create container main: its sandbox is stopped");
    runtime.remove_sandbox(&sandbox).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn a_created_container_that_never_ran_can_go(
    runtime: &dyn Runtime,
    pod: SandboxConfig,
    config: ContainerConfig,
) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let id = runtime.create_container(&sandbox, &pod, &config).await.unwrap();
    runtime.stop_container(&id, GRACE).await.unwrap();
    // Some runtimes call what never ran ended, others leave it as it was made.
    assert!(matches!(
        find(runtime, &id).await.unwrap().state,
        ContainerState::Created | ContainerState::Exited { started_ms: 0, .. }
    ));
    let next = ContainerConfig { attempt: 1, ..config };
    runtime.create_container(&sandbox, &pod, &next).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn what_is_not_there_is_said_or_no_error(runtime: &dyn Runtime, pod: SandboxConfig) {
    let nothing = kedge_containers::ContainerId("nothing".into());
    let nowhere = kedge_containers::SandboxId("nowhere".into());
    runtime.remove_container(&nothing).await.unwrap();
    runtime.remove_sandbox(&nowhere).await.unwrap();
    runtime.stop_sandbox(&nowhere).await.unwrap();
    // Some runtimes say that there is none, others that it is stopped.
    assert!(matches!(
        runtime.stop_container(&nothing, GRACE).await,
        Ok(()) | Err(Error::NoContainer(_))
    ));
    assert!(matches!(
        runtime.start_container(&nothing).await,
        Err(Error::NoContainer(_))
    ));
    let config = container("main", UNTIL_TERM);
    assert!(matches!(
        runtime.create_container(&nowhere, &pod, &config).await,
        Err(Error::NoSandbox(_))
    ));
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let unknown = ContainerConfig {
        image: "kedge.test/no/such:image".into(),
        ..config
    };
    let refused = runtime.create_container(&sandbox, &pod, &unknown).await;
    assert!(matches!(refused, Err(Error::ImageNotFound { .. })), "{refused:?}");
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn a_change_is_hinted(runtime: &dyn Runtime, pod: SandboxConfig, config: ContainerConfig) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let id = run_in(runtime, &sandbox, &pod, &config).await;
    wait_for_first_line(runtime, &id).await;
    let hinted = async { tokio::time::timeout(GRACE, runtime.changed()).await.is_ok() };
    let (hinted, stopped) = tokio::join!(hinted, runtime.stop_container(&id, GRACE));
    stopped.unwrap();
    assert!(hinted, "no hint that the container ended");
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn wait_for_first_line(runtime: &dyn Runtime, id: &kedge_containers::ContainerId) {
    let hollow = runtime.version().await.unwrap().name == "hollow";
    wait_for_line(
        runtime,
        id,
        if hollow { "hollow container started" } else { "up" },
    )
    .await;
}

/// Some runtimes leave out which digest it is.
fn names_content(reference: &str) -> bool {
    let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    reference.contains("sha256:") || is_digest(reference)
}

async fn images_can_be_asked_for(runtime: &dyn Runtime) {
    let image = runtime.image(IMAGE).await.unwrap().unwrap();
    assert!(names_content(&image.id), "{image:?}");
    assert!(image.tags.contains(&IMAGE.to_owned()), "{image:?}");
    assert!(runtime.images().await.unwrap().contains(&image));
    runtime.remove_image(IMAGE).await.unwrap();
    assert_eq!(runtime.image(IMAGE).await.unwrap(), None);
    assert!(matches!(
        runtime.remove_image(IMAGE).await,
        Err(Error::ImageNotFound { .. })
    ));
}

#[tokio::test]
async fn hollow() {
    let node = Node::new();
    let runtime = Hollow::with_images([IMAGE.to_owned()].into());
    talk::nowhere(&runtime, &node).await;
    contract(&runtime, &node).await;
}

#[tokio::test]
async fn hollow_containers_end_by_themselves_when_told() {
    let node = Node::new();
    let runtime = Hollow::new();
    let pod = node.sandbox("p");
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    for (attempt, code, reason) in [(0, 0, ExitReason::Completed), (1, 3, ExitReason::Error)] {
        let config = ContainerConfig {
            attempt,
            ..container("main", "")
        };
        let id = run_in(&runtime, &sandbox, &pod, &config).await;
        runtime.exit_container(&id, code).unwrap();
        assert_eq!(exit_of(&runtime, &id).await, (code, reason));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded() {
    embedded_on(|_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_with_runc() {
    embedded_on(|node| node.handler = "runc".to_owned()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_with_crun() {
    embedded_on(|node| node.handler = "crun".to_owned()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_with_fuse_overlayfs() {
    embedded_on(|node| node.rootfs = RootfsChoice::Fuse).await;
}

/// The built-in runtime on a node that is arranged before; a story that fails must not leave its containers behind either.
async fn embedded_on(arrange: impl FnOnce(&mut Node)) {
    if !Node::can_run_containers() {
        return;
    }
    let mut node = Node::new();
    arrange(&mut node);
    let node = node;
    let runtime = node.runtime_with_image().await;
    let handlers = runtime.status().await.unwrap().handlers;
    if !node.handler.is_empty() && !handlers.contains(&node.handler) {
        eprintln!("skipped: {} is not installed", node.handler);
        return node.end(runtime).await;
    }
    let told = AssertUnwindSafe(async {
        real_contract(&runtime, &node).await;
        talk::here(&runtime, &node).await;
        contract(&runtime, &node).await;
    });
    if let Err(failure) = told.catch_unwind().await {
        runtime.purge().await.unwrap();
        std::panic::resume_unwind(failure);
    }
    node.end(runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd() {
    behind_a_socket::<ContainerdMake>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crio() {
    behind_a_socket::<CrioMake>().await;
}

async fn behind_a_socket<M: Make>() {
    if let Some(missing) = Daemon::<M>::missing() {
        eprintln!("skipped: {missing}");
        return;
    }
    let node = Node::new();
    let daemon = Daemon::<M>::start(&node.directory).await.unwrap();
    daemon.import(&node.archive()).unwrap();
    let runtime = daemon.connect();
    real_contract(&runtime, &node).await;
    talk::elsewhere(&runtime, &node).await;
    contract(&runtime, &node).await;
    daemon.end().await;
}
