//! EdgeCore alone, the cloud stopped, everything killed, started again: how long until the first pod and until ten pods
//! run.
//!
//! "Runs" is seen from outside: the pod's own process appends a line to a file on the node as its first act.
//! Run as root: `cargo xtask bench offline_power_on`. Promises and figures stand in SPECIFICATION.md.

use kedge_e2e::{Kedge, Options, binary, images, pods, proc, stats, wait_for};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const RUNS: usize = 5;
const PODS: usize = 10;

fn main() {
    let mut kedge = Kedge::up("offline", Options::default());
    images::import_busybox(&kedge);
    let marks = kedge.data_dir.join("marks");
    std::fs::create_dir(&marks).expect("a folder for the marks");
    kedge.apply(&pods::markers(PODS, &marks)).ok();
    kedge.wait_running("app=marker", PODS);
    // The cloud is gone for good; what follows is the edge alone.
    kedge.kill();

    let (mut first_ms, mut all_ms) = (Vec::new(), Vec::new());
    let mut edge: Option<Edge> = None;
    for _ in 0..RUNS {
        power_cut(&kedge, edge.take());
        let before = lines(&marks);
        let began = Instant::now();
        edge = Some(edgecore(&kedge.data_dir));
        let since = |count: usize| {
            wait_for(&format!("{count} pods"), || {
                let new = lines(&marks) - before;
                if new >= count {
                    Ok(began.elapsed().as_secs_f64() * 1e3)
                } else {
                    Err(format!("{new}"))
                }
            })
        };
        first_ms.push(since(1));
        all_ms.push(since(PODS));
    }
    power_cut(&kedge, edge.take());
    println!("offline_power_on: {RUNS} runs, {PODS} pods, no cloud, everything killed before each run");
    stats::print("power on to first pod", "ms", &first_ms);
    stats::print("power on to ten pods", "ms", &all_ms);
}

/// EdgeCore as a process of its own, ended when it is dropped.
struct Edge(Child);

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Kills EdgeCore, every supervisor and every container of this data directory.
fn power_cut(kedge: &Kedge, edge: Option<Edge>) {
    drop(edge);
    wait_for("everything dead", || {
        let left = [kedge.supervisors(), proc::find(&["kedge-bench-marker"])].concat();
        if left.is_empty() {
            return Ok(());
        }
        let pids = left.iter().map(ToString::to_string);
        let _ = Command::new("kill")
            .arg("-KILL")
            .args(pids)
            .stderr(Stdio::null())
            .status();
        Err(format!("{left:?}"))
    });
}

fn edgecore(data_dir: &Path) -> Edge {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(data_dir.join("edgecore.log"));
    let child = Command::new(binary("edgecore"))
        .arg("--config")
        .arg(data_dir.join("edge/edgecore.yaml"))
        .stdin(Stdio::null())
        .stderr(log.expect("a log file"))
        .spawn();
    Edge(child.expect("edgecore starts"))
}

fn lines(marks: &Path) -> usize {
    let files = std::fs::read_dir(marks)
        .expect("the folder is there")
        .filter_map(Result::ok);
    files
        .map(|file| {
            std::fs::read_to_string(file.path())
                .unwrap_or_default()
                .lines()
                .count()
        })
        .sum()
}
