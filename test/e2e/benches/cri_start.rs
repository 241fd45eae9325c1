//! One pod on containerd, from the order to "running" as we see it, beside a plain `ctr run`; and twenty at once.
//!
//! A pod is more than `ctr run`: a sandbox with its network besides the container. What is measured is what the hands of
//! EdgeCore do; deciding and reporting come on top. Run as root: `cargo xtask bench cri_start`. Promises and figures
//! stand in SPECIFICATION.md.

use kedge_containerd::{Containerd, PAUSE_IMAGE};
use kedge_containers::{ContainerConfig, SandboxConfig};
use kedge_e2e::runtimes::{remove_all, start, start_all, wait_running};
use kedge_e2e::stats::median;
use kedge_e2e::{Folder, proc, runtimes, stats};
use kedge_runtime::{Cri, Runtime};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const RUNS: usize = 10;
const AT_ONCE: usize = 20;
const LOOKS: u32 = 500;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    if let Some(missing) = kedge_containerd::missing() {
        println!("cri_start: skipped, {missing}");
        return;
    }
    let directory = Folder::new("cri-start");
    let containerd = Containerd::start(&directory.path)
        .await
        .expect("containerd starts");
    let runtime = containerd.connect();
    // The first of each kind pays for what the others find warm.
    pod(&runtime, &directory.path, "warm").await;
    ctr_run(&containerd, "warm");

    let (mut plain_ms, mut pod_ms) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        plain_ms.push(ctr_run(&containerd, &format!("plain{run}")));
        pod_ms.push(pod(&runtime, &directory.path, &format!("one{run}")).await);
    }
    println!("cri_start: {RUNS} runs, a pause container on a containerd of its own");
    stats::print("ctr run --detach", "ms", &plain_ms);
    stats::print("one pod, ordered to running", "ms", &pod_ms);

    let (mut plain_many_ms, mut pods_ms) = (Vec::new(), Vec::new());
    for run in 0..RUNS / 3 {
        plain_many_ms.push(ctr_runs_at_once(&containerd, run));
        pods_ms.push(pods_at_once(&runtime, &directory.path, run).await);
    }
    println!(
        "cri_start: {} runs, {AT_ONCE} at once, until the last runs",
        RUNS / 3
    );
    stats::print("ctr run --detach", "ms", &plain_many_ms);
    stats::print("pods, ordered to running", "ms", &pods_ms);
    println!(
        "cri_start: one pod {:.0} ms beside ctr run {:.0} ms, {AT_ONCE} at once {:.0} ms beside {:.0} ms",
        median(&pod_ms),
        median(&plain_ms),
        median(&pods_ms),
        median(&plain_many_ms),
    );
    look(&runtime, &directory.path).await;
    containerd.end().await;
}

/// What it costs to see that nothing has changed on a node with twenty pods.
async fn look(runtime: &Cri, directory: &Path) {
    start_all(Arc::new(runtime.clone()), pods(directory, "look")).await;
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
    let took = start_all(Arc::new(runtime.clone()), pods(directory, &format!("many{run}"))).await;
    remove_all(runtime).await;
    took.as_secs_f64() * 1e3
}

fn pods(directory: &Path, name: &str) -> Vec<(SandboxConfig, ContainerConfig)> {
    let names = (0..AT_ONCE).map(|number| format!("{name}n{number}"));
    names.map(|name| configs(directory, &name)).collect()
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

fn configs(directory: &Path, name: &str) -> (SandboxConfig, ContainerConfig) {
    runtimes::pod(directory, name, PAUSE_IMAGE, &[])
}
