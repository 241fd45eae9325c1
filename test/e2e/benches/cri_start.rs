//! One pod on containerd, from the order to "running" as we see it, beside a plain `ctr run`; and twenty at once.
//!
//! A pod is more than `ctr run`: a sandbox with its network besides the container. What is measured is what the hands of
//! EdgeCore do; deciding and reporting come on top. Run as root: `cargo xtask bench cri_start`. Promises and figures
//! stand in SPECIFICATION.md.

use kedge_containerd::{Containerd, PAUSE_IMAGE};
use kedge_containers::{ContainerConfig, ContainerState, PodIdentity, SandboxConfig};
use kedge_e2e::{proc, stats};
use kedge_runtime::{Cri, Runtime};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const RUNS: usize = 10;
const AT_ONCE: usize = 20;
const LOOKS: u32 = 500;
/// No pod takes this long on a working machine.
const START_MAX: Duration = Duration::from_secs(120);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    if let Some(missing) = kedge_containerd::missing() {
        println!("cri_start: skipped, {missing}");
        return;
    }
    let directory = Directory::new();
    let containerd = Containerd::start(&directory.0).await.expect("containerd starts");
    let runtime = containerd.connect();
    // The first of each kind pays for what the others find warm.
    pod(&runtime, &directory.0, "warm").await;
    ctr_run(&containerd, "warm");

    let (mut plain_ms, mut pod_ms) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        plain_ms.push(ctr_run(&containerd, &format!("plain{run}")));
        pod_ms.push(pod(&runtime, &directory.0, &format!("one{run}")).await);
    }
    println!("cri_start: {RUNS} runs, a pause container on a containerd of its own");
    stats::print("ctr run --detach", "ms", &plain_ms);
    stats::print("one pod, ordered to running", "ms", &pod_ms);

    let (mut plain_ms, mut pods_ms) = (Vec::new(), Vec::new());
    for run in 0..RUNS / 3 {
        plain_ms.push(ctr_runs_at_once(&containerd, run));
        pods_ms.push(pods_at_once(&runtime, &directory.0, run).await);
    }
    println!(
        "cri_start: {} runs, {AT_ONCE} at once, until the last runs",
        RUNS / 3
    );
    stats::print("ctr run --detach", "ms", &plain_ms);
    stats::print("pods, ordered to running", "ms", &pods_ms);
    look(&runtime, &directory.0).await;
    containerd.end().await;
}

/// What it costs to see that nothing has changed on a node with twenty pods.
async fn look(runtime: &Cri, directory: &Path) {
    start_many(runtime, directory, "look").await;
    wait_running(runtime, AT_ONCE).await;
    let cpu = || proc::Rest::of(std::process::id()).expect("our own figures").cpu;
    let (began, before) = (Instant::now(), cpu());
    for _ in 0..LOOKS {
        runtime.list().await.expect("a list");
    }
    let per_look = |time: Duration| time.as_secs_f64() * 1e3 / f64::from(LOOKS);
    println!("cri_start: {LOOKS} looks at {AT_ONCE} pods");
    stats::print("time of a look", "ms", &[per_look(began.elapsed())]);
    stats::print("our own CPU time of a look", "ms", &[per_look(cpu() - before)]);
    remove_all(runtime).await;
}

struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("kedge-cri-start-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for the benchmark");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

/// The image of the sandbox does nothing, which is all that is wanted here.
fn ctr_run(containerd: &Containerd, name: &str) -> f64 {
    let began = Instant::now();
    containerd
        .ctr(&["run", "--detach", PAUSE_IMAGE, name])
        .expect("ctr run");
    let took = ms(began);
    ctr_end(containerd, name);
    took
}

fn ctr_end(containerd: &Containerd, name: &str) {
    containerd
        .ctr(&["task", "delete", "--force", name])
        .expect("ctr task delete");
    containerd
        .ctr(&["container", "delete", name])
        .expect("ctr container delete");
}

fn ctr_runs_at_once(containerd: &Containerd, run: usize) -> f64 {
    let names: Vec<String> = (0..AT_ONCE).map(|number| format!("many{run}n{number}")).collect();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| {
                containerd
                    .ctr(&["run", "--detach", PAUSE_IMAGE, name])
                    .expect("ctr run")
            });
        }
    });
    let took = ms(began);
    for name in &names {
        ctr_end(containerd, name);
    }
    took
}

async fn pods_at_once(runtime: &Cri, directory: &Path, run: usize) -> f64 {
    let began = Instant::now();
    start_many(runtime, directory, &format!("many{run}")).await;
    wait_running(runtime, AT_ONCE).await;
    let took = ms(began);
    remove_all(runtime).await;
    took
}

async fn start_many(runtime: &Cri, directory: &Path, name: &str) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..AT_ONCE {
        let (pod, main) = configs(directory, &format!("{name}n{number}"));
        let runtime = runtime.clone();
        tasks.spawn(async move { start(&runtime, &pod, &main).await });
    }
    tasks.join_all().await;
}

async fn pod(runtime: &Cri, directory: &Path, name: &str) -> f64 {
    let (pod, main) = configs(directory, name);
    let began = Instant::now();
    start(runtime, &pod, &main).await;
    wait_running(runtime, 1).await;
    let took = ms(began);
    remove_all(runtime).await;
    took
}

async fn start(runtime: &Cri, pod: &SandboxConfig, main: &ContainerConfig) {
    let sandbox = runtime.run_sandbox(pod).await.expect("a sandbox");
    let id = runtime
        .create_container(&sandbox, pod, main)
        .await
        .expect("a container");
    runtime.start_container(&id).await.expect("it starts");
}

async fn wait_running(runtime: &Cri, count: usize) {
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

async fn remove_all(runtime: &Cri) {
    for sandbox in runtime.list().await.expect("a list") {
        runtime.remove_sandbox(&sandbox.id).await.expect("it goes");
    }
}

fn configs(directory: &Path, name: &str) -> (SandboxConfig, ContainerConfig) {
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
        image: PAUSE_IMAGE.to_owned(),
        log_path: "main/0.log".into(),
        spec_hash: "hash".to_owned(),
        ..ContainerConfig::default()
    };
    (pod, main)
}
