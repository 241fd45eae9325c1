//! Pods on a runtime without anything above it, as benchmarks start them.

use kedge_containers::{ContainerConfig, ContainerId, ContainerState, PodIdentity, SandboxConfig, SandboxId};
use kedge_runtime::Runtime;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No pod takes this long on a working machine.
const START_MAX: Duration = Duration::from_secs(120);

/// A pod that runs one command of an image; its log lies below `directory`.
pub fn pod(directory: &Path, name: &str, image: &str, command: &[&str]) -> (SandboxConfig, ContainerConfig) {
    let pod = SandboxConfig {
        pod: PodIdentity {
            namespace: "bench".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
        },
        hostname: name.to_owned(),
        cgroup_parent: format!("besteffort/poduid-{name}"),
        log_dir: directory.join("logs").join(name),
        ..SandboxConfig::default()
    };
    let main = ContainerConfig {
        name: "main".to_owned(),
        image: image.to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: "main/0.log".into(),
        spec_hash: "hash".to_owned(),
        ..ContainerConfig::default()
    };
    (pod, main)
}

/// Starts a container in a pod that is there.
///
/// # Panics
/// When the runtime refuses.
pub async fn start_container(
    runtime: &dyn Runtime,
    sandbox: &SandboxId,
    pod: &SandboxConfig,
    main: &ContainerConfig,
) -> ContainerId {
    let id = runtime.create_container(sandbox, pod, main).await;
    let id = id.expect("a container");
    runtime.start_container(&id).await.expect("it starts");
    id
}

/// Starts a pod with its container.
///
/// # Panics
/// When the runtime refuses.
pub async fn start(runtime: &dyn Runtime, pod: &SandboxConfig, main: &ContainerConfig) -> SandboxId {
    let sandbox = runtime.run_sandbox(pod).await.expect("a sandbox");
    start_container(runtime, &sandbox, pod, main).await;
    sandbox
}

/// Starts all of them at once, waits until the runtime says that all run, and tells how long that took.
///
/// # Panics
/// When the runtime refuses, or one does not come to run.
pub async fn start_all(
    runtime: Arc<dyn Runtime>,
    pods: impl IntoIterator<Item = (SandboxConfig, ContainerConfig)>,
) -> Duration {
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (pod, main) in pods {
        let runtime = runtime.clone();
        tasks.spawn(async move { start(runtime.as_ref(), &pod, &main).await });
    }
    let started = tasks.join_all().await.len();
    wait_running(runtime.as_ref(), started).await;
    began.elapsed()
}

/// Waits until so many containers run.
///
/// # Panics
/// When they do not come to run.
pub async fn wait_running(runtime: &dyn Runtime, count: usize) {
    let began = Instant::now();
    loop {
        let seen = runtime.list().await.expect("a list");
        let containers = seen.iter().flat_map(|sandbox| &sandbox.containers);
        let running = containers.filter(|found| matches!(found.state, ContainerState::Running { .. }));
        if running.count() == count {
            return;
        }
        assert!(began.elapsed() < START_MAX, "not all of {count} run");
        runtime.changed().await;
    }
}

/// # Panics
/// When the runtime refuses.
pub async fn remove_all(runtime: &dyn Runtime) {
    for sandbox in runtime.list().await.expect("a list") {
        runtime.remove_sandbox(&sandbox.id).await.expect("it goes");
    }
}
