//! The built-in runtime beside containerd with runc, by turns on one machine: a container in a pod that runs, a pod with
//! its container, and twenty pods at once. The image is there.
//!
//! The helper is that of the release build of `edgecore`. Run as root: `cargo xtask bench embedded_start [RUNS]`. Promises
//! and figures stand in SPECIFICATION.md.

use kedge_containerd::Containerd;
use kedge_containers::{ContainerConfig, SandboxConfig};
use kedge_e2e::images::{self, BUSYBOX};
use kedge_e2e::stats::{median, print};
use kedge_e2e::{Folder, binary, runtimes};
use kedge_runtime::embedded::{Config, HelperProgram, NetworkConfig, RootfsChoice};
use kedge_runtime::{Embedded, Runtime, helper};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const RUNS: usize = 20;
const AT_ONCE: usize = 20;
/// One of these takes seconds on containerd.
const RUNS_AT_ONCE: usize = 5;
const COMMAND: [&str; 2] = ["/bin/sleep", "1000000"];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    if let Some(missing) = kedge_containerd::missing() {
        println!("embedded_start: skipped, {missing}");
        return;
    }
    let runs = std::env::args()
        .find_map(|word| word.parse().ok())
        .unwrap_or(RUNS);
    let directory = Folder::new("embedded-start");
    let archive = directory.path.join("busybox.tar");
    images::write_busybox(&archive);
    let containerd = Containerd::start(&directory.path)
        .await
        .expect("containerd starts");
    containerd.import(&archive).expect("containerd takes the image");
    let embedded = Embedded::open(config(&directory.path))
        .await
        .expect("the built-in runtime opens");
    embedded
        .import_image(archive)
        .await
        .expect("the built-in runtime takes the image");
    let ours: Arc<dyn Runtime> = Arc::new(embedded.clone());
    let theirs: Arc<dyn Runtime> = Arc::new(containerd.connect());

    let containers = containers(&directory.path, [&ours, &theirs], runs).await;
    let plain = (0..runs)
        .map(|run| ctr_run(&containerd, &format!("plain{run}")))
        .collect::<Vec<_>>();
    let pods = pods(&directory.path, [&ours, &theirs], runs).await;
    let many = at_once(&directory.path, [&ours, &theirs]).await;
    println!("embedded_start: {runs} runs, {RUNS_AT_ONCE} of {AT_ONCE} pods at once, by turns");
    for (what, [ours, theirs]) in [
        ("container", &containers),
        ("pod", &pods),
        ("twenty pods at once", &many),
    ] {
        print(&format!("{what}, built-in"), "ms", ours);
        print(&format!("{what}, containerd"), "ms", theirs);
    }
    print("ctr run --detach", "ms", &plain);
    let beside = |[ours, theirs]: &Pair| {
        let (ours, theirs) = (median(ours), median(theirs));
        format!("{ours:.1} ms, {:.2} of containerd's", ours / theirs)
    };
    println!(
        "embedded_start: container {} ({:.2} of ctr run's), pod {}, {AT_ONCE} pods at once {}",
        beside(&containers),
        median(&containers[0]) / median(&plain),
        beside(&pods),
        beside(&many),
    );
    embedded.purge().await.expect("everything goes");
    containerd.end().await;
}

/// Milliseconds: ours, and theirs.
type Pair = [Vec<f64>; 2];

/// A container in a pod that has one already.
async fn containers(directory: &Path, runtimes: [&Arc<dyn Runtime>; 2], runs: usize) -> Pair {
    let mut took = Pair::default();
    let (pod, first) = sleeper(directory, "containers");
    let mut sandboxes = Vec::new();
    for runtime in runtimes {
        sandboxes.push(runtimes::start(runtime.as_ref(), &pod, &first).await);
    }
    // The first pays for what the others find warm.
    for run in 0..=runs {
        for (place, runtime) in runtimes.into_iter().enumerate() {
            let main = ContainerConfig {
                name: format!("main{run}"),
                log_path: format!("main{run}/0.log").into(),
                ..first.clone()
            };
            let began = Instant::now();
            let id = runtimes::start_container(runtime.as_ref(), &sandboxes[place], &pod, &main).await;
            if run > 0 {
                took[place].push(ms(began.elapsed()));
            }
            runtime.remove_container(&id).await.expect("it goes");
        }
    }
    for runtime in runtimes {
        runtimes::remove_all(runtime.as_ref()).await;
    }
    took
}

async fn pods(directory: &Path, runtimes: [&Arc<dyn Runtime>; 2], runs: usize) -> Pair {
    let mut took = Pair::default();
    for run in 0..=runs {
        let (pod, main) = sleeper(directory, &format!("pod{run}"));
        for (place, runtime) in runtimes.into_iter().enumerate() {
            let began = Instant::now();
            runtimes::start(runtime.as_ref(), &pod, &main).await;
            if run > 0 {
                took[place].push(ms(began.elapsed()));
            }
            runtimes::remove_all(runtime.as_ref()).await;
        }
    }
    took
}

async fn at_once(directory: &Path, runtimes: [&Arc<dyn Runtime>; 2]) -> Pair {
    let mut took = Pair::default();
    for run in 0..RUNS_AT_ONCE {
        for (place, runtime) in runtimes.into_iter().enumerate() {
            let pods = (0..AT_ONCE).map(|number| sleeper(directory, &format!("many{run}n{number}")));
            took[place].push(ms(runtimes::start_all(runtime.clone(), pods).await));
            runtimes::remove_all(runtime.as_ref()).await;
        }
    }
    took
}

fn ctr_run(containerd: &Containerd, name: &str) -> f64 {
    let began = Instant::now();
    let run = ["run", "--detach", BUSYBOX, name];
    containerd.ctr(&[&run[..], &COMMAND].concat()).expect("ctr run");
    let took = ms(began.elapsed());
    for command in [
        &["task", "delete", "--force", name][..],
        &["container", "delete", name],
    ] {
        containerd.ctr(command).expect("ctr delete");
    }
    took
}

fn sleeper(directory: &Path, name: &str) -> (SandboxConfig, ContainerConfig) {
    runtimes::pod(directory, name, BUSYBOX, &COMMAND)
}

fn config(directory: &Path) -> Config {
    let own = std::process::id();
    Config {
        root: directory.join("embedded"),
        helper: HelperProgram {
            executable: Some(binary("edgecore")),
            word: helper::WORD.to_owned(),
        },
        cgroup_root: format!("/kedge-bench-{own}"),
        network: Some(NetworkConfig {
            bridge: format!("kb{}", own % 1_000_000),
            pod_cidrs: vec![(Ipv4Addr::new(10, 214, 214, 0).into(), 24)],
            cni: None,
        }),
        rootfs: RootfsChoice::Automatic,
        device_directories: Vec::new(),
        log_bytes_max: kedge_runtime::embedded::LOG_BYTES_MAX_DEFAULT,
        registries: kedge_registry::Config::new(kedge_host::architecture()),
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
