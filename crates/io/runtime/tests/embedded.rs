//! What only real containers can show: limits, logs, networks, and what survives whom. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use futures_util::FutureExt;
use kedge_containers::{
    ContainerConfig, ContainerId, ContainerState, ExitReason, Mount, Resources, SandboxConfig, SandboxId,
    Security,
};
use kedge_host::cgroups::Layout;
use kedge_host::process::Identity;
use kedge_runtime::embedded::{RootfsChoice, RootfsMode};
use kedge_runtime::{Embedded, Runtime};
use node::{
    Node, UNTIL_TERM, container, exit_of, find, log, outcome, pretend_reboot, run, said, secured, wait_for,
    wait_for_line,
};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const GRACE: Duration = Duration::from_secs(30);

/// Runs a story on a node of its own and proves that it leaves nothing behind.
async fn on_a_node(story: impl AsyncFnOnce(&Node, &Embedded, &SandboxId)) {
    on_a_node_that_restarts(async |node, runtime, sandbox| {
        story(node, &runtime, sandbox).await;
        runtime
    })
    .await;
}

/// The same for a story that ends the runtime and gives back the one it started after it.
async fn on_a_node_that_restarts(story: impl AsyncFnOnce(&Node, Embedded, &SandboxId) -> Embedded) {
    if !Node::can_run_containers() {
        return;
    }
    let node = Node::new();
    let runtime = node.runtime_with_image().await;
    let sandbox = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap();
    // A story that fails must not leave its containers behind either.
    let told = AssertUnwindSafe(story(&node, runtime, &sandbox))
        .catch_unwind()
        .await;
    match told {
        Ok(runtime) => node.end(runtime).await,
        Err(failure) => {
            node.runtime().await.purge().await.unwrap();
            std::panic::resume_unwind(failure)
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_and_both_outputs_arrive() {
    on_a_node(async |_, runtime, sandbox| {
        let id = run(
            runtime,
            sandbox,
            &container("main", "echo out; echo err >&2; printf tail; exit 3"),
        )
        .await;
        assert_eq!(exit_of(runtime, &id).await, (3, ExitReason::Error));
        let path = find(runtime, &id).await.unwrap().log_path;
        let text = std::fs::read_to_string(path).unwrap();
        for wanted in [" stdout F out\n", " stderr F err\n", " stdout F tail\n"] {
            assert!(text.contains(wanted), "{wanted:?} in {text}");
        }
        let (code, _) = outcome(runtime, sandbox, &container("killed", "kill -9 $$")).await;
        assert_eq!(code, 0, "the first process of a namespace cannot kill itself");
        let missing = ContainerConfig {
            command: vec!["/no/such".into()],
            ..container("missing", "")
        };
        let error = runtime
            .create_container(sandbox, &SandboxConfig::default(), &missing)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("/no/such"), "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_what_its_configuration_says() {
    on_a_node(async |node, runtime, sandbox| {
        let script = "echo $FROM_IMAGE $GIVEN $HOSTNAME $(hostname) $(pwd) $(id -u) $(id -g); cat /etc/hosts /etc/resolv.conf";
        let config = ContainerConfig {
            env: vec![("GIVEN".into(), "too".into())],
            working_dir: Some("/tmp".into()),
            ..container("main", script)
        };
        let text = said(runtime, sandbox, &config).await;
        assert!(text.starts_with("yes too pod pod /tmp 0 0\n"), "{text}");
        let address = runtime.list().await.unwrap()[0].ips[0].clone();
        assert!(text.contains(&format!("{address}\tpod")) && text.contains("nameserver 10.0.0.10"), "{text}");

        node.write("kept", b"from the node");
        let mount = |host: PathBuf, path: &str, read_only| Mount::bind(host, path, read_only);
        let config = ContainerConfig {
            mounts: vec![
                mount(node.directory.join("kept"), "/data/kept", true),
                mount(node.directory.clone(), "/shared", false),
            ],
            ..container(
                "mounts",
                "cat /data/kept; echo no > /data/kept; echo yes > /shared/written",
            )
        };
        let text = said(runtime, sandbox, &config).await;
        assert!(text.contains("from the node") && text.contains("Read-only file system"), "{text}");
        assert_eq!(std::fs::read_to_string(node.directory.join("written")).unwrap(), "yes\n");
        let gone = ContainerConfig { mounts: vec![mount("/etc/hostname/path".into(), "/x", true)], ..container("gone", "") };
        let error = runtime.create_container(sandbox, &SandboxConfig::default(), &gone).await.unwrap_err().to_string();
        assert!(error.starts_with("mount /x: /etc/hostname/path does not exist on the node and cannot be made"), "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_are_as_ordered() {
    on_a_node(async |_, runtime, sandbox| {
        let status = "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status | tr '\\n' ' '";
        // With control groups of version 2 nobody makes devices who has not asked for it.
        let usual = match kedge_host::cgroups::layout().unwrap() {
            Layout::V2 { .. } => "CapEff:\t00000000a00425fb",
            Layout::V1 { .. } | Layout::Hybrid { .. } => "CapEff:\t00000000a80425fb",
        };
        let text = said(runtime, sandbox, &secured("c0", status, Security::default())).await;
        assert!(text.contains("NoNewPrivs:\t1") && text.contains(usual), "{text}");
        let drop_all = Security { drop_capabilities: vec!["ALL".into()], allow_privilege_escalation: true, ..Security::default() };
        let text = said(runtime, sandbox, &secured("c1", status, drop_all)).await;
        assert!(text.contains("NoNewPrivs:\t0") && text.contains("CapEff:\t0000000000000000"), "{text}");

        let user = Security { user: Some(1000), run_as_non_root: true, supplemental_groups: vec![77], ..Security::default() };
        let text = said(runtime, sandbox, &secured("c2", "id", user)).await;
        assert!(text.contains("uid=1000(app) gid=100 groups=20(dialout),77"), "{text}");
        let refused = Security { run_as_non_root: true, ..Security::default() };
        let error = runtime.create_container(sandbox, &SandboxConfig::default(), &secured("c3", "id", refused)).await.unwrap_err().to_string();
        assert!(error.contains("it must not run as root"), "{error}");

        let read_only = Security { read_only_root: true, ..Security::default() };
        let text = said(runtime, sandbox, &secured("c4", "echo x > /new; echo ok", read_only)).await;
        assert!(text.contains("Read-only file system"), "{text}");
        let hidden = "cat /proc/kcore | head -c 1 | wc -c; echo x > /proc/sys/kernel/hostname; test -c /dev/null && echo null";
        let text = said(runtime, sandbox, &secured("c5", hidden, Security::default())).await;
        assert!(text.contains("0\n") && text.contains("Read-only file system") && text.contains("null"), "{text}");
        let privileged = Security { privileged: true, ..Security::default() };
        let text = said(runtime, sandbox, &secured("c6", "mkdir /mnt && mount -t tmpfs x /mnt && echo mounted", privileged)).await;
        assert!(text.contains("mounted"), "{text}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_and_running_out_of_memory_is_told_apart() {
    if !Node::can_run_containers() {
        return;
    }
    let node = Node::new();
    let runtime = node.runtime_with_image().await;
    let limited = Resources {
        memory_bytes_max: Some(256 << 20),
        pids_max: Some(100),
        ..Resources::default()
    };
    let pod = kedge_containers::SandboxConfig {
        resources: limited,
        ..node.sandbox("pod")
    };
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let resources = Resources {
        memory_bytes_max: Some(32 << 20),
        pids_max: Some(20),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(100_000),
        cpu_shares: Some(512),
        oom_score_adj: Some(900),
        ..Resources::default()
    };
    let hungry = ContainerConfig {
        resources: resources.clone(),
        ..container("hungry", "x=a; while :; do x=$x$x; done")
    };
    let id = run(&runtime, &sandbox, &hungry).await;
    assert_eq!(exit_of(&runtime, &id).await, (137, ExitReason::OomKilled));
    let score = ContainerConfig {
        resources,
        ..container("score", "cat /proc/self/oom_score_adj")
    };
    assert_eq!(said(&runtime, &sandbox, &score).await, "900");
    let many = container(
        "many",
        "i=0; while [ $i -lt 200 ]; do sleep 5 & i=$((i+1)); done; echo all",
    );
    let (_, lines) = outcome(&runtime, &sandbox, &many).await;
    assert!(
        !lines.contains(&"all".to_owned()),
        "the pod's limit of processes holds: {lines:?}"
    );
    node.end(runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_reach_each_other_and_the_node_reaches_them() {
    on_a_node(async |node, runtime, sandbox| {
        let other = runtime.run_sandbox(&node.sandbox("other")).await.unwrap();
        let listed = runtime.list().await.unwrap();
        let address = listed.iter().find(|seen| seen.id == *sandbox).unwrap().ips[0].clone();
        let server = run(
            runtime,
            sandbox,
            &container("server", "echo up; while :; do echo hello | nc -l -p 80; done"),
        )
        .await;
        wait_for_line(runtime, &server, "up").await;
        let ask =
            format!("i=0; until nc {address} 80; do i=$((i+1)); [ $i -lt 100 ] || exit 1; sleep 0.05; done");
        assert!(
            said(runtime, &other, &container("client", &ask))
                .await
                .contains("hello")
        );
        let same = said(
            runtime,
            sandbox,
            &container("beside", "ip -o link | wc -l; ip route | head -1"),
        )
        .await;
        assert!(
            same.starts_with("2\ndefault via 10.213."),
            "loopback and eth0: {same}"
        );
        // One server serves one connection: who comes while it ends is told nothing, not even that.
        let greeting = || -> std::io::Result<String> {
            let mut connection = std::net::TcpStream::connect((address.as_str(), 80))?;
            connection.set_read_timeout(Some(Duration::from_secs(2)))?;
            std::io::read_to_string(&mut connection)
        };
        let mut greetings = (0..100).map(|_| greeting());
        let heard = loop {
            match greetings.next().expect("the node is served") {
                Ok(heard) if !heard.is_empty() => break heard,
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        assert_eq!(heard, "hello\n");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_may_use_the_nodes_network_and_processes() {
    on_a_node(async |node, runtime, _| {
        let pod = kedge_containers::SandboxConfig {
            host_network: true,
            host_pid: true,
            host_ipc: true,
            ..node.sandbox("host")
        };
        let sandbox = runtime.run_sandbox(&pod).await.unwrap();
        let seen = runtime
            .list()
            .await
            .unwrap()
            .into_iter()
            .find(|seen| seen.id == sandbox)
            .unwrap();
        assert!(seen.ready && seen.ips.is_empty());
        let text = said(
            runtime,
            &sandbox,
            &container("net", "readlink /proc/self/ns/net; readlink /proc/self/ns/pid"),
        )
        .await;
        let of_node = |kind: &str| {
            std::fs::read_link(format!("/proc/self/ns/{kind}"))
                .unwrap()
                .to_string_lossy()
                .into_owned()
        };
        assert_eq!(text, format!("{}\n{}", of_node("net"), of_node("pid")));
        // Children that outlive the first process are ended with it, though no namespace ends them.
        let script = format!("sleep 9876{} & echo left", std::process::id());
        let (code, lines) = outcome(runtime, &sandbox, &container("child", &script)).await;
        assert_eq!((code, lines), (0, vec!["left".to_owned()]));
        assert_eq!(
            node::processes_with(&format!("sleep 9876{}", std::process::id())),
            Vec::<String>::new()
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_pod_network_only_host_network_pods_run() {
    if !Node::can_run_containers() {
        return;
    }
    let node = Node::new();
    let runtime = Embedded::open(kedge_runtime::embedded::Config {
        network: None,
        ..node.config()
    })
    .await
    .unwrap();
    let error = runtime
        .run_sandbox(&node.sandbox("pod"))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("this node has no pod network"), "{error}");
    let pod = kedge_containers::SandboxConfig {
        host_network: true,
        ..node.sandbox("host")
    };
    runtime.run_sandbox(&pod).await.unwrap();
    node.end(runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_is_polite_and_then_not() {
    on_a_node(async |_, runtime, sandbox| {
        let polite = run(runtime, sandbox, &container("polite", UNTIL_TERM)).await;
        wait_for_line(runtime, &polite, "up").await;
        runtime.stop_container(&polite, GRACE).await.unwrap();
        assert_eq!(exit_of(runtime, &polite).await, (0, ExitReason::Completed));

        let other_signal = ContainerConfig {
            stop_signal: Some("SIGUSR1".into()),
            ..container(
                "other",
                "trap 'echo asked; exit 7' USR1; echo up; while :; do sleep 0.1; done",
            )
        };
        let other = run(runtime, sandbox, &other_signal).await;
        wait_for_line(runtime, &other, "up").await;
        runtime.stop_container(&other, GRACE).await.unwrap();
        assert_eq!(exit_of(runtime, &other).await, (7, ExitReason::Error));
        assert_eq!(log(runtime, &other).await, ["up", "asked"]);

        let deaf = run(
            runtime,
            sandbox,
            &container("deaf", "trap '' TERM; echo up; while :; do sleep 0.1; done"),
        )
        .await;
        wait_for_line(runtime, &deaf, "up").await;
        let began = Instant::now();
        runtime
            .stop_container(&deaf, Duration::from_millis(300))
            .await
            .unwrap();
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert_eq!(exit_of(runtime, &deaf).await, (137, ExitReason::Error));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_survive_the_daemon_and_are_found_again() {
    on_a_node_that_restarts(async |node, runtime, sandbox| {
        let running = run(&runtime, sandbox, &container("running", UNTIL_TERM)).await;
        let waiting = runtime
            .create_container(
                sandbox,
                &SandboxConfig::default(),
                &container("waiting", UNTIL_TERM),
            )
            .await
            .unwrap();
        let ended = run(&runtime, sandbox, &container("ended", "exit 4")).await;
        exit_of(&runtime, &ended).await;
        let before = runtime.list().await.unwrap();

        // A runtime opened anew knows only what a restarted daemon would know.
        drop(runtime);
        let restarted = node.runtime().await;
        assert_eq!(restarted.list().await.unwrap(), before);
        wait_for_line(&restarted, &running, "up").await;
        restarted.start_container(&waiting).await.unwrap();
        wait_for(&restarted, &waiting, |state| {
            matches!(state, ContainerState::Running { .. })
        })
        .await;
        let another = restarted.run_sandbox(&node.sandbox("another")).await.unwrap();
        let listed = restarted.list().await.unwrap();
        let addresses: std::collections::BTreeSet<_> = listed.iter().map(|sandbox| &sandbox.ips).collect();
        assert_eq!(addresses.len(), 2, "an address is not given twice: {listed:?}");
        restarted.stop_container(&running, GRACE).await.unwrap();
        assert_eq!(exit_of(&restarted, &running).await, (0, ExitReason::Completed));
        restarted.remove_sandbox(&another).await.unwrap();
        restarted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_power_cut_nothing_is_running_that_does_not() {
    on_a_node_that_restarts(async |node, runtime, sandbox| {
        let id = run(&runtime, sandbox, &container("main", UNTIL_TERM)).await;
        let pid = runtime.process_of(&id).await.unwrap().expect("it runs");
        drop(runtime);
        let process = Identity::of(pid).unwrap();
        // The power cut ends the processes; here they are ended by hand, and the boot is made another one.
        kill_with_supervisor(&process).await;
        pretend_reboot(node);
        let restarted = node.runtime().await;
        let [seen] = &restarted.list().await.unwrap()[..] else {
            panic!("one sandbox")
        };
        assert!(!seen.ready, "its namespaces did not survive");
        let ContainerState::Exited {
            exit_code, message, ..
        } = &seen.containers[0].state
        else {
            panic!("never wrongly running: {:?}", seen.containers[0].state)
        };
        assert_eq!(
            (*exit_code, message.as_str()),
            (255, "the node was restarted while it ran")
        );
        assert_eq!(
            restarted.list().await.unwrap(),
            std::slice::from_ref(seen),
            "it is told the same way each time"
        );
        std::fs::write(
            node.directory
                .join("runtime/states")
                .join(format!("{}.json", id.0)),
            b"{\"half",
        )
        .unwrap();
        let [seen] = &restarted.list().await.unwrap()[..] else {
            panic!("one sandbox")
        };
        assert_eq!(seen.containers[0].state, ContainerState::Unknown);
        std::fs::remove_file(
            node.directory
                .join("runtime/states")
                .join(format!("{}.json", id.0)),
        )
        .unwrap();
        restarted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_supervisor_is_noticed() {
    on_a_node(async |_, runtime, sandbox| {
        let id = run(runtime, sandbox, &container("main", UNTIL_TERM)).await;
        let pid = runtime.process_of(&id).await.unwrap().expect("it runs");
        let process = Identity::of(pid).unwrap();
        let supervisor = Identity::of(parent_of(pid)).unwrap();
        supervisor
            .open()
            .unwrap()
            .unwrap()
            .signal(rustix::process::Signal::KILL)
            .unwrap();
        wait_until_dead(&supervisor).await;
        assert!(
            matches!(
                find(runtime, &id).await.unwrap().state,
                ContainerState::Running { .. }
            ),
            "it still runs"
        );
        runtime.stop_container(&id, GRACE).await.unwrap();
        assert!(!process.is_alive().unwrap());
        let ContainerState::Exited {
            exit_code, message, ..
        } = find(runtime, &id).await.unwrap().state
        else {
            panic!("exited")
        };
        // The kernel may tell, once the machine's first process has collected it. Not every one does that.
        let told = (exit_code, message.as_str());
        let unknown = (255, "its supervisor was killed; the exit code is not known");
        assert!(told == (0, "") || told == unknown, "{told:?}");
    })
    .await;
}

fn parent_of(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

async fn wait_until_dead(process: &Identity) {
    while process.is_alive().unwrap() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn kill_with_supervisor(process: &Identity) {
    let supervisor = Identity::of(parent_of(process.pid)).unwrap();
    for victim in [&supervisor, process] {
        victim
            .open()
            .unwrap()
            .unwrap()
            .signal(rustix::process::Signal::KILL)
            .unwrap();
        wait_until_dead(victim).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_interrupted_creation_left_is_cleared() {
    on_a_node_that_restarts(async |node, runtime, sandbox| {
        let id = runtime
            .create_container(sandbox, &SandboxConfig::default(), &container("main", UNTIL_TERM))
            .await
            .unwrap();
        drop(runtime);
        let directory = node.directory.join("runtime/containers").join(&id.0);
        std::fs::remove_file(directory.join("container.json")).unwrap();
        let restarted = node.runtime().await;
        assert!(!directory.exists());
        assert_eq!(restarted.list().await.unwrap()[0].containers, []);
        assert_eq!(node::processes_with(&id.0), Vec::<String>::new());
        restarted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_runtime_on_a_directory_is_refused() {
    on_a_node(async |node, runtime, _| {
        // What the first is just making looks like a leftover.
        let unmade = node.directory.join("runtime/containers/unmade");
        std::fs::create_dir(&unmade).unwrap();
        let refused = Embedded::open(node.config()).await.unwrap_err();
        assert!(
            matches!(&refused, kedge_runtime::Error::RuntimeInUse { directory } if *directory == node.config().root.to_string_lossy()),
            "{refused:?}"
        );
        assert!(
            refused
                .to_string()
                .ends_with("stop the process that runs it, or name another directory"),
            "{refused}"
        );
        assert!(unmade.exists(), "the refused one cleared nothing away");
        assert_eq!(runtime.list().await.unwrap().len(), 1, "the first goes on");
        std::fs::remove_dir(&unmade).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_overlayfs_layers_are_copied() {
    if !Node::can_run_containers() {
        return;
    }
    let node = Node::new();
    let config = kedge_runtime::embedded::Config {
        rootfs: RootfsChoice::Copy,
        ..node.config()
    };
    let runtime = Embedded::open(config).await.unwrap();
    assert_eq!(*runtime.rootfs_mode(), RootfsMode::Copy);
    runtime.import_image(node.archive()).await.unwrap();
    let sandbox = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap();
    let script = "stat -c %a /bin/busybox; echo changed > /etc/group; cat /etc/group";
    assert_eq!(
        said(&runtime, &sandbox, &container("one", script)).await,
        "755\nchanged"
    );
    assert_eq!(
        said(&runtime, &sandbox, &container("two", "cat /etc/group")).await,
        "dialout:x:20:app"
    );
    node.end(runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_rotated() {
    if !Node::can_run_containers() {
        return;
    }
    let node = Node::new();
    let config = kedge_runtime::embedded::Config {
        log_bytes_max: 100_000,
        ..node.config()
    };
    let runtime = Embedded::open(config).await.unwrap();
    runtime.import_image(node.archive()).await.unwrap();
    let sandbox = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap();
    let id = run(&runtime, &sandbox, &container("main", "seq 1 6000")).await;
    assert_eq!(exit_of(&runtime, &id).await.0, 0);
    assert_eq!(log(&runtime, &id).await.last().map(String::as_str), Some("6000"));
    let path = find(&runtime, &id).await.unwrap().log_path;
    let rotated = std::fs::metadata(format!("{}.1", path.display())).unwrap();
    assert!(rotated.len() <= 100_000, "{}", rotated.len());
    node.end(runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_containers_start_side_by_side() {
    on_a_node(async |node, runtime, _| {
        let began = Instant::now();
        let pods = (0..10).map(|number| async move {
            let sandbox = runtime
                .run_sandbox(&node.sandbox(&format!("p{number}")))
                .await
                .unwrap();
            run(runtime, &sandbox, &container("main", UNTIL_TERM)).await
        });
        let ids: Vec<ContainerId> = futures_util::future::join_all(pods).await;
        let elapsed = began.elapsed();
        for id in &ids {
            assert!(matches!(
                find(runtime, id).await.unwrap().state,
                ContainerState::Running { .. }
            ));
        }
        println!(
            "ten pods: {} ms, {} ms a pod",
            elapsed.as_millis(),
            elapsed.as_millis() / 10
        );
        println!("supervisor memory: {:?}", memory_of_supervisors(node));
    })
    .await;
}

fn memory_of_supervisors(node: &Node) -> Vec<String> {
    let text = node.directory.to_string_lossy().into_owned();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&text))
        })
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok())
        .map(|status| {
            let lines = status
                .lines()
                .filter(|line| line.starts_with("VmRSS") || line.starts_with("RssAnon"));
            lines
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
                .join(", ")
        })
        .take(2)
        .collect()
}
