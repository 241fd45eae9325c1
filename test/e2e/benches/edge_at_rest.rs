//! EdgeCore alone, connected and at rest: memory, CPU time and bytes written, without pods and with twenty.
//!
//! Run as root: `cargo xtask bench edge_at_rest [SECONDS]`, by default a minute each. Promises and figures stand in
//! SPECIFICATION.md.

use kedge_e2e::containerd::Containerd;
use kedge_e2e::site::{EdgePlan, Site};
use kedge_e2e::{pods, proc};
use std::time::{Duration, Instant};

const PODS: u32 = 20;
/// What follows a start (certificates, first reports) has passed.
const SETTLE: Duration = Duration::from_secs(15);

fn main() {
    let seconds = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(60);
    let rest = Duration::from_secs(seconds);
    let containerd = Containerd::start("rest");
    let mut site = Site::start(EdgePlan {
        node: "rest",
        runtime: &containerd.endpoint(),
        network: None,
        kubelet: &[&format!("cgroupRoot: {}", containerd.cgroup_root())],
    });
    println!("edge_at_rest: {seconds} s each");
    let mut written = measure("no pods", site.edge().pid(), rest);
    site.cluster.apply(&pods::sleepers_on("rest", PODS)).ok();
    site.cluster.wait_running("app=sleeper", PODS as usize);
    written += measure("20 pods, just started", site.edge().pid(), rest);
    site.kill_edge();
    site.start_edge();
    site.wait_ready();
    let adopted = measure("20 pods, adopted", site.edge().pid(), rest);
    written += adopted;
    println!(
        "edge_at_rest: {written} bytes written in three times {seconds} s, {adopted} of them with 20 adopted pods"
    );
    site.cluster.kubectl(&["delete", "deployment", "sleeper"]).ok();
    drop(site);
}

/// What EdgeCore has written meanwhile.
fn measure(what: &str, pid: u32, rest: Duration) -> u64 {
    std::thread::park_timeout(SETTLE);
    let began = Instant::now();
    let before = proc::Rest::of(pid).expect("EdgeCore runs");
    std::thread::park_timeout(rest);
    let after = proc::Rest::of(pid).expect("EdgeCore runs");
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "  {what:<24} RSS {:.1} MB (own {:.1}), CPU {:.3} % of a core, written {} bytes",
        after.rss_bytes as f64 / 1e6,
        after.anonymous_bytes as f64 / 1e6,
        (after.cpu - before.cpu).as_secs_f64() * 100.0 / seconds,
        after.written_bytes - before.written_bytes,
    );
    after.written_bytes - before.written_bytes
}
