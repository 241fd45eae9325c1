//! `kedge up` to node ready, and the memory of the whole process with ten pods.
//!
//! Run as root: `cargo xtask bench all_in_one`. Promises and figures stand in SPECIFICATION.md.

use kedge_e2e::{Kedge, Options, images, pods, proc, stats};

const RUNS: usize = 5;
const PODS: u32 = 10;

fn main() {
    let mut ready_ms = Vec::new();
    let mut again_ms = Vec::new();
    let mut rss_mb = Vec::new();
    let mut supervisor_mb = Vec::new();
    let mut supervisor_own_mb = Vec::new();
    for run in 0..RUNS {
        let mut kedge = Kedge::up(&format!("bench-{run}"), Options::default());
        ready_ms.push(total_ms(&mut kedge));
        images::import_busybox(&kedge);
        kedge.apply(&pods::sleepers(PODS)).ok();
        kedge.wait_running("app=sleeper", PODS as usize);
        rss_mb.push(megabytes(proc::rss_bytes(kedge.pid()).expect("kedge runs")));
        let supervisors = kedge.supervisors();
        let mean = |bytes: fn(u32) -> Option<u64>| {
            let sum: u64 = supervisors.iter().filter_map(|pid| bytes(*pid)).sum();
            megabytes(sum) / f64::from(PODS)
        };
        supervisor_mb.push(mean(proc::rss_bytes));
        supervisor_own_mb.push(mean(proc::anonymous_bytes));
        // A second up on the same data directory, with ten pods to adopt.
        assert_eq!(kedge.interrupt(), Some(0));
        kedge.start();
        again_ms.push(total_ms(&mut kedge));
    }
    println!("all_in_one: {RUNS} runs, {PODS} pods");
    stats::print("up to node ready, new data", "ms", &ready_ms);
    stats::print("up to node ready, ten pods adopted", "ms", &again_ms);
    stats::print("RSS of kedge with ten pods", "MB", &rss_mb);
    stats::print("RSS of one supervisor", "MB", &supervisor_mb);
    stats::print("of which not shared", "MB", &supervisor_own_mb);
}

fn total_ms(kedge: &mut Kedge) -> f64 {
    kedge.wait_ready()["total_ms"]
        .as_f64()
        .expect("a step has its time")
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
