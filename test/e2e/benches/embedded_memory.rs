//! The whole edge with twenty running pods and nothing installed: EdgeCore with the built-in runtime, and the
//! supervisors of the pods, in memory that is resident and in memory that is theirs (shared pages divided by who shares
//! them).
//!
//! Run as root: `cargo xtask bench embedded_memory`. Promises and figures stand in SPECIFICATION.md.

use kedge_e2e::site::{EdgePlan, Leavings, Site};
use kedge_e2e::{images, pods, proc};
use std::time::Duration;

const PODS: u32 = 20;
const NODE: &str = "kedge-weigh";
/// What follows a start has passed.
const SETTLE: Duration = Duration::from_secs(15);

fn main() {
    let _leavings = Leavings(NODE);
    let mut site = Site::start(EdgePlan {
        node: NODE,
        runtime: "kedge://embedded",
        network: Some((NODE, "10.214.215.0/24")),
        kubelet: &[],
    });
    let archive = site.dir.join("busybox.tar");
    images::write_busybox(&archive);
    images::import_into(&site.dir.join("runtime"), &archive);
    site.cluster.apply(&pods::sleepers_on(NODE, PODS)).ok();
    site.cluster.wait_running("app=sleeper", PODS as usize);
    println!("embedded_memory: EdgeCore and the supervisors of {PODS} pods");
    weigh("just started", &site);
    site.kill_edge();
    site.start_edge();
    site.wait_ready();
    let (resident, own) = weigh("adopted", &site);
    println!("embedded_memory: {PODS} pods, agent and supervisors: RSS {resident:.1} MB, PSS {own:.1} MB");
    site.cluster.kubectl(&["delete", "deployment", "sleeper"]).ok();
    kedge_e2e::wait_for("no supervisor", || {
        let left = proc::supervisors(&site.dir);
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
}

/// Resident and proportional megabytes of all together.
fn weigh(what: &str, site: &Site) -> (f64, f64) {
    std::thread::park_timeout(SETTLE);
    let supervisors = proc::supervisors(&site.dir);
    let sum = |pids: &[u32], bytes: fn(u32) -> Option<u64>| {
        let bytes: u64 = pids.iter().filter_map(|pid| bytes(*pid)).sum();
        bytes as f64 / 1e6
    };
    let agent = [site.edge().pid()];
    let everybody = [&agent[..], &supervisors].concat();
    for (who, pids) in [
        ("agent", &agent[..]),
        ("supervisors", &supervisors),
        ("together", &everybody),
    ] {
        println!(
            "  {what:<14} {who:<12} {:>3} processes, RSS {:>6.1} MB, PSS {:>6.1} MB, private {:>6.1} MB",
            pids.len(),
            sum(pids, proc::rss_bytes),
            sum(pids, proc::pss_bytes),
            sum(pids, proc::private_bytes),
        );
    }
    (sum(&everybody, proc::rss_bytes), sum(&everybody, proc::pss_bytes))
}
