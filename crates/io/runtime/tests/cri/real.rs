//! Stories with a runtime of their own.

use crate::FACT_WAIT_MAX;
use crate::node::{IMAGE, Node, UNTIL_TERM, container, find, run_in, wait_for, wait_for_line};
use crate::registry::Registry;
use kedge_containerd::{Containerd, ContainerdMake, CrioMake, Daemon, Make};
use kedge_containers::{ContainerState, Credentials, ObservedSandbox, Resources, SandboxConfig};
use kedge_grpc::cri;
use kedge_grpc::cri::runtime_service_client::RuntimeServiceClient;
use kedge_runtime::{Cri, Error, Runtime};
use kedge_sockets::{Channel, origin};
use std::path::{Path, PathBuf};
use std::time::Duration;

const GRACE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_millis(2_500);
const MIB: i64 = 1024 * 1024;

/// `None`, and a word about it, where it cannot run.
async fn start<M: Make>(node: &Node) -> Option<Daemon<M>> {
    if let Some(missing) = Daemon::<M>::missing() {
        eprintln!("skipped: {missing}");
        return None;
    }
    let daemon = Daemon::start(&node.directory).await.unwrap();
    daemon.import(&node.archive()).unwrap();
    Some(daemon)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crio_does_as_containerd_does() {
    a_runtime_may_die_and_come_back_under_its_pods_on::<CrioMake>().await;
    a_pod_has_a_control_group_as_long_as_it_has_a_sandbox_on::<CrioMake>().await;
    a_pull_says_what_the_registry_said_on::<CrioMake>().await;
    groups_of_containers_are_found_by_looking_on::<CrioMake>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_may_die_and_come_back_under_its_pods() {
    a_runtime_may_die_and_come_back_under_its_pods_on::<ContainerdMake>().await;
}

async fn a_runtime_may_die_and_come_back_under_its_pods_on<M: Make>() {
    let node = Node::new();
    let Some(mut daemon) = start::<M>(&node).await else {
        return;
    };
    let runtime = daemon.connect();
    let pod = node.sandbox("p");
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let id = run_in(&runtime, &sandbox, &pod, &container("main", UNTIL_TERM)).await;
    wait_for_line(&runtime, &id, "up").await;
    let before = runtime.list().await.unwrap();

    daemon.kill();
    let away = runtime.list().await.unwrap_err();
    assert!(matches!(away, Error::Unavailable { .. }), "{away:?}");
    daemon.start_again().await.unwrap();
    // The same client finds it again, within the pause after a dial that failed.
    assert_eq!(listed_again(&runtime).await, before);

    daemon.freeze();
    let hung = crate::connect(&daemon.socket(), Duration::from_millis(200));
    let error = hung.list().await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    daemon.thaw();
    assert_eq!(listed_again(&hung).await, before);

    runtime.stop_container(&id, GRACE).await.unwrap();
    let state = wait_for(&runtime, &id, |state| {
        matches!(state, ContainerState::Exited { .. })
    })
    .await;
    assert!(
        matches!(state, ContainerState::Exited { exit_code: 0, .. }),
        "{state:?}"
    );
    daemon.end().await;
}

/// What a runtime lists as soon as it answers.
async fn listed_again(runtime: &dyn Runtime) -> Vec<ObservedSandbox> {
    let back = async {
        loop {
            if let Ok(seen) = runtime.list().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(FACT_WAIT_MAX, back)
        .await
        .expect("the runtime is found again")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_hinted_by_containerds_own_events() {
    let node = Node::new();
    let Some(containerd) = start::<ContainerdMake>(&node).await else {
        return;
    };
    let runtime = containerd.connect();
    let pod = node.sandbox("p");
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let script = "until [ -e /tmp/on ]; do sleep 0.05; done";
    let id = run_in(&runtime, &sandbox, &pod, &container("main", script)).await;
    let touch = ["/bin/busybox", "touch", "/tmp/on"].map(str::to_owned);
    let ended = tokio::time::timeout(FACT_WAIT_MAX, async {
        // Silence for longer than the clock would leave: it is events that are waited for.
        while tokio::time::timeout(SILENCE, runtime.changed()).await.is_ok() {}
        runtime.exec_sync(&id, &touch, GRACE).await.unwrap();
        loop {
            runtime.changed().await;
            let found = find(&runtime, &id).await.unwrap();
            if matches!(found.state, ContainerState::Exited { .. }) {
                return;
            }
        }
    });
    ended.await.expect("a hint after the end");
    containerd.end().await;
}

/// The directories of a pod's group in every tree, those without limits included.
fn groups<M: Make>(daemon: &Daemon<M>, below: &str) -> Vec<PathBuf> {
    let path = format!("{}/kubepods/{below}", daemon.cgroup_root());
    let top = Path::new("/sys/fs/cgroup");
    let trees = std::fs::read_dir(top)
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let groups = trees
        .chain([top.to_owned()])
        .map(|tree| tree.join(path.trim_start_matches('/')));
    groups.filter(|group| group.is_dir()).collect()
}

fn limit(groups: &[PathBuf]) -> Option<String> {
    let files = groups
        .iter()
        .flat_map(|group| [group.join("memory.limit_in_bytes"), group.join("memory.max")]);
    files
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
        .next()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_a_control_group_as_long_as_it_has_a_sandbox() {
    a_pod_has_a_control_group_as_long_as_it_has_a_sandbox_on::<ContainerdMake>().await;
}

async fn a_pod_has_a_control_group_as_long_as_it_has_a_sandbox_on<M: Make>() {
    let node = Node::new();
    let Some(daemon) = start::<M>(&node).await else {
        return;
    };
    let runtime = daemon.connect();
    let first = SandboxConfig {
        cgroup_parent: "burstable/poduid-p".to_owned(),
        resources: Resources {
            memory_bytes_max: Some(64 * MIB),
            cpu_shares: Some(256),
            ..Resources::default()
        },
        ..node.sandbox("p")
    };
    let refused = SandboxConfig {
        handler: "none-such".to_owned(),
        ..first.clone()
    };
    let text = runtime.run_sandbox(&refused).await.unwrap_err().to_string();
    assert!(
        text.starts_with("run sandbox of default/p: ") && text.contains("none-such"),
        "{text}"
    );
    assert_eq!(groups(&daemon, "burstable/poduid-p"), Vec::<PathBuf>::new());

    let one = runtime.run_sandbox(&first).await.unwrap();
    let of_pod = groups(&daemon, "burstable/poduid-p");
    assert_eq!(limit(&of_pod), Some((64 * MIB).to_string()));
    let id = run_in(&runtime, &one, &first, &container("main", UNTIL_TERM)).await;
    // Some runtimes put their own name before the container's.
    let names = ["", "crio-"].map(|before| format!("burstable/poduid-p/{before}{}", id.0));
    let own: Vec<PathBuf> = names.iter().flat_map(|name| groups(&daemon, name)).collect();
    assert!(!own.is_empty(), "the container is in its pod's group");
    let less = Resources {
        memory_bytes_max: Some(32 * MIB),
        ..Resources::default()
    };
    runtime.update_container(&id, &less).await.unwrap();
    assert_eq!(limit(&own), Some((32 * MIB).to_string()));

    runtime.stop_sandbox(&one).await.unwrap();
    let second = SandboxConfig { attempt: 1, ..first };
    let two = runtime.run_sandbox(&second).await.unwrap();
    runtime.remove_sandbox(&one).await.unwrap();
    assert_eq!(
        limit(&groups(&daemon, "burstable/poduid-p")),
        Some((64 * MIB).to_string())
    );
    runtime.remove_sandbox(&two).await.unwrap();
    assert_eq!(groups(&daemon, "burstable/poduid-p"), Vec::<PathBuf>::new());
    daemon.end().await;
}

/// A sandbox and a container as a kubelet makes them.
async fn as_a_kubelet(containerd: &Containerd, log_directory: &Path) -> (String, String) {
    let address = containerd.endpoint().parse().unwrap();
    let mut client = RuntimeServiceClient::with_origin(Channel::new(address), origin());
    let text = |pairs: &[(&str, &str)]| {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        pairs.collect::<std::collections::BTreeMap<_, _>>()
    };
    let pod = [
        ("io.kubernetes.pod.name", "web"),
        ("io.kubernetes.pod.namespace", "shop"),
        ("io.kubernetes.pod.uid", "1f2e"),
    ];
    let sandbox = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            uid: "1f2e".to_owned(),
            attempt: 2,
        }),
        log_directory: log_directory.to_string_lossy().into_owned(),
        labels: text(&pod),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("{}/kubepods/besteffort/pod1f2e", containerd.cgroup_root()),
            ..cri::LinuxPodSandboxConfig::default()
        }),
        ..cri::PodSandboxConfig::default()
    };
    let request = cri::RunPodSandboxRequest {
        config: Some(sandbox.clone()),
        ..cri::RunPodSandboxRequest::default()
    };
    let sandbox_id = client
        .run_pod_sandbox(request)
        .await
        .unwrap()
        .into_inner()
        .pod_sandbox_id;
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: "main".to_owned(),
            attempt: 3,
        }),
        image: Some(cri::ImageSpec {
            image: IMAGE.to_owned(),
            ..cri::ImageSpec::default()
        }),
        args: vec![UNTIL_TERM.to_owned()],
        labels: text(&[&pod[..], &[("io.kubernetes.container.name", "main")]].concat()),
        annotations: text(&[
            ("io.kubernetes.container.hash", "470421b4"),
            ("io.kubernetes.container.restartCount", "3"),
        ]),
        log_path: "main/3.log".to_owned(),
        ..cri::ContainerConfig::default()
    };
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox_id.clone(),
        config: Some(config),
        sandbox_config: Some(sandbox),
    };
    let container_id = client
        .create_container(request)
        .await
        .unwrap()
        .into_inner()
        .container_id;
    let request = cri::StartContainerRequest {
        container_id: container_id.clone(),
    };
    client.start_container(request).await.unwrap();
    (sandbox_id, container_id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_another_agent_are_adopted_and_strangers_are_left_alone() {
    let node = Node::new();
    let Some(containerd) = start::<ContainerdMake>(&node).await else {
        return;
    };
    let logs = node.directory.join("logs");
    std::fs::create_dir_all(logs.join("main")).unwrap();
    let (sandbox_id, container_id) = as_a_kubelet(&containerd, &logs).await;
    // Not made through the CRI, and so nobody's pod.
    containerd
        .ctr(&["container", "create", IMAGE, "stranger"])
        .unwrap();

    let runtime = containerd.connect();
    let all = runtime.list().await.unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    let (pod, found) = (&all[0], &all[0].containers[0]);
    assert_eq!(
        (pod.id.0.as_str(), pod.attempt, pod.ready),
        (sandbox_id.as_str(), 2, true)
    );
    assert_eq!(
        (
            pod.pod.namespace.as_str(),
            pod.pod.name.as_str(),
            pod.pod.uid.as_str()
        ),
        ("shop", "web", "1f2e")
    );
    assert_eq!(
        (found.id.0.as_str(), found.name.as_str(), found.attempt),
        (container_id.as_str(), "main", 3)
    );
    assert_eq!(
        (found.spec_hash.as_str(), found.log_path.clone()),
        ("470421b4", logs.join("main/3.log"))
    );
    assert!(matches!(found.state, ContainerState::Running { .. }));

    runtime.stop_container(&found.id, GRACE).await.unwrap();
    runtime.remove_sandbox(&pod.id).await.unwrap();
    assert_eq!(groups(&containerd, "besteffort/pod1f2e"), Vec::<PathBuf>::new());
    assert!(
        containerd
            .ctr(&["container", "list", "--quiet"])
            .unwrap()
            .contains("stranger")
    );
    containerd.ctr(&["container", "delete", "stranger"]).unwrap();
    containerd.end().await;
}

async fn pull_error(runtime: &Cri, image: &str, credentials: &[Credentials]) -> String {
    runtime
        .pull_image(image, credentials)
        .await
        .unwrap_err()
        .to_string()
}

fn user(password: &str) -> Credentials {
    Credentials {
        username: "user".to_owned(),
        password: password.to_owned(),
        server: "ignored.example".to_owned(),
        ..Credentials::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_says_what_the_registry_said() {
    a_pull_says_what_the_registry_said_on::<ContainerdMake>().await;
}

async fn a_pull_says_what_the_registry_said_on<M: Make>() {
    let node = Node::new();
    let Some(daemon) = start::<M>(&node).await else {
        return;
    };
    let registry = Registry::start().await;
    let runtime = daemon.connect();

    let open = registry.image("open/busybox");
    let pulled = runtime.pull_image(&open, &[]).await.unwrap();
    assert!(pulled.tags.contains(&open), "{pulled:?}");
    let digest = pulled.id.trim_start_matches("sha256:");
    assert!(digest.len() == 64 && !pulled.pinned, "{pulled:?}");
    assert_eq!(runtime.image(&open).await.unwrap(), Some(pulled));

    let closed = registry.image("closed/busybox");
    let refused = "the registry does not let this node have the image";
    let mut told = vec![
        (pull_error(&runtime, &closed, &[]).await, refused),
        (pull_error(&runtime, &closed, &[user("wrong")]).await, refused),
    ];
    runtime
        .pull_image(&closed, &[user("wrong"), user("right")])
        .await
        .unwrap();
    for (image, why) in [
        (registry.image("none/busybox"), "the registry has no such image"),
        (
            registry.image("far/busybox"),
            "the image is not made for this machine's platform",
        ),
        ("Not/Valid:x".to_owned(), "the image's name is not valid"),
    ] {
        told.push((pull_error(&runtime, &image, &[]).await, why));
    }
    let address = registry.address;
    drop(registry);
    let gone = format!("{address}/gone/busybox:1");
    told.push((
        pull_error(&runtime, &gone, &[]).await,
        "the registry cannot be reached",
    ));
    told.retain(|(text, why)| !text.contains(why));
    assert_eq!(told, [], "what was said, and what was to be said");

    let import = runtime
        .import_image("x.tar".into())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        import.starts_with("import image x.tar: the runtime interface cannot import"),
        "{import}"
    );
    let usage = runtime.image_usage().await.unwrap();
    assert!(usage.mount_point.starts_with(&node.directory), "{usage:?}");
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_containers_are_found_by_looking() {
    groups_of_containers_are_found_by_looking_on::<ContainerdMake>().await;
}

async fn groups_of_containers_are_found_by_looking_on<M: Make>() {
    let node = Node::new();
    let Some(daemon) = start::<M>(&node).await else {
        return;
    };
    let runtime = daemon.connect();
    let pod = node.sandbox("p");
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let id = run_in(&runtime, &sandbox, &pod, &container("main", UNTIL_TERM)).await;
    wait_for_line(&runtime, &id, "up").await;
    let layout = kedge_host::cgroups::layout().unwrap();
    let roots = [format!("{}/kubepods", daemon.cgroup_root())];
    let found = kedge_host::groups::pod_groups(&layout, &roots);
    assert_eq!(found.len(), 1, "{found:?}");
    let path = &found[0].containers[&id.0];
    assert!(found[0].containers.contains_key(&sandbox.0), "{found:?}");
    let usage = kedge_host::groups::group_usage(&layout, path).unwrap();
    assert!(
        usage.cpu.unwrap().usage_ns > 0 && usage.memory.unwrap().working_set > 0,
        "{usage:?}"
    );
    assert!(kedge_host::groups::first_process(&layout, path).is_some());
    runtime.remove_sandbox(&sandbox).await.unwrap();
    daemon.end().await;
}
