//! From a pod in the API to "Running" in the API, by way of CloudCore, the link and EdgeCore on containerd; beside a
//! plain `ctr run`. One at a time, and twenty at once.
//!
//! Run as root: `cargo xtask bench pod_start`. Both moments are seen through one watch, so that the time kubectl takes to
//! start is no part of the figure. Promises and figures stand in SPECIFICATION.md.

use kedge_e2e::containerd::Containerd;
use kedge_e2e::site::{EdgePlan, Site};
use kedge_e2e::{pods, stats};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

const RUNS: usize = 10;
const AT_ONCE: usize = 20;
const NODE: &str = "start";
/// No pod takes this long on a working machine.
const START_MAX: Duration = Duration::from_secs(120);

fn main() {
    let containerd = Containerd::start("start");
    let site = Site::start(EdgePlan {
        node: NODE,
        runtime: &containerd.endpoint(),
        network: None,
        kubelet: &[&format!("cgroupRoot: {}", containerd.cgroup_root())],
    });
    let watch = Watch::start(&site);
    // The first of each kind pays for what the others find warm.
    one(&site, &watch, "warm");
    plain(&containerd, "warm");
    let (mut plain_ms, mut pod_ms) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        plain_ms.push(plain(&containerd, &format!("plain{run}")));
        pod_ms.push(one(&site, &watch, &format!("one{run}")));
    }
    println!("pod_start: {RUNS} runs");
    stats::print("ctr run --detach", "ms", &plain_ms);
    stats::print("one pod, created to Running reported", "ms", &pod_ms);
    let names: Vec<String> = (0..AT_ONCE).map(|number| format!("many{number}")).collect();
    let took = started(&site, &watch, &names);
    stats::print("20 pods, first created to last Running", "ms", &[took]);
    delete(&site, &names);
}

fn plain(containerd: &Containerd, name: &str) -> f64 {
    let began = Instant::now();
    containerd.run(name);
    let took = began.elapsed().as_secs_f64() * 1e3;
    containerd.end_run(name);
    took
}

fn one(site: &Site, watch: &Watch, name: &str) -> f64 {
    let names = [name.to_owned()];
    let took = started(site, watch, &names);
    delete(site, &names);
    took
}

/// Milliseconds from the first pod in the API to the last one that runs.
fn started(site: &Site, watch: &Watch, names: &[String]) -> f64 {
    let yaml: Vec<String> = names.iter().map(|name| pods::lone(name, NODE)).collect();
    site.cluster.apply(&yaml.join("---\n")).ok();
    let mut created: Option<Instant> = None;
    let mut waiting: Vec<&str> = names.iter().map(String::as_str).collect();
    loop {
        let (at, name, phase) = watch.next();
        if !names.contains(&name) {
            continue;
        }
        let began = *created.get_or_insert(at);
        if phase == "Running" {
            waiting.retain(|other| *other != name);
        }
        if waiting.is_empty() {
            return at.duration_since(began).as_secs_f64() * 1e3;
        }
    }
}

fn delete(site: &Site, names: &[String]) {
    let mut command = vec!["delete", "pod", "--wait=true"];
    command.extend(names.iter().map(String::as_str));
    site.cluster.kubectl(&command).ok();
}

/// `kubectl get pods --watch`, line by line with the moment it came.
struct Watch {
    child: Child,
    lines: Receiver<(Instant, String)>,
}

impl Watch {
    fn start(site: &Site) -> Self {
        let mut child = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(site.cluster.kubeconfig())
            .args(["get", "pods", "--watch", "--output"])
            .arg("jsonpath={.metadata.name} {.status.phase}{\"\\n\"}")
            .env("HOME", &site.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let stdout = child.stdout.take().expect("stdout was piped");
        let (tx, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tx.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next change: when, which pod, which phase.
    fn next(&self) -> (Instant, String, String) {
        let (at, line) = self.lines.recv_timeout(START_MAX).expect("the watch goes on");
        let (name, phase) = line.split_once(' ').unwrap_or((&line, ""));
        (at, name.to_owned(), phase.to_owned())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
