//! Official KubeEdge peers beside ours, as real processes: what an operator does who moves a cluster over, and back.
//!
//! **Duty.** Find the official programs on this machine, and start them and ours with private directories, ports,
//! control groups and a private containerd, so that the tests tell stories and nothing is left behind.
//!
//! **Inputs.** The environment variable `KEDGE_OFFICIAL`: a directory with `cloudcore` and `edgecore` of v1.23, the
//! folder `crds` of the same release, and, for the stories on a real Kubernetes, `kube-apiserver`,
//! `kube-controller-manager` and `kube-scheduler`. From Debian: `containerd`, `runc`, `containernetworking-plugins`,
//! `busybox-static`, `kubernetes-client`, `iproute2` and `etcd-server`. Root. Our own binaries are those of the release
//! build.
//! **Outputs.** Stories that pass; without `KEDGE_OFFICIAL` each says in one sentence that it was left out, and passes.
//!
//! **Never.** It fetches or builds nothing official, and ends only processes that it started.
//!
//! The way in for a reader: `tests/official_edge.rs`.

pub mod api;
pub mod cloud;
pub mod credentials;
pub mod edge;
pub mod lab;
pub mod official;
pub mod process;
pub mod workload;

pub use api::Api;
pub use cloud::{Cloud, Maker};
pub use edge::{OfficialEdge, OwnEdge};
pub use kedge_e2e::containerd::Containerd;
pub use lab::Lab;
pub use official::{Need, Official};
pub use process::Process;

use std::time::{Duration, Instant};

/// How long a fact may take to come true. An official EdgeCore on a busy machine loses an answer now and then and asks
/// again after a minute.
const FACT_DEADLINE: Duration = Duration::from_secs(180);
/// Pause between two looks at a fact that cannot be waited for otherwise.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until `look` returns something; fails with what was last seen.
///
/// # Panics
/// When the fact has not come true within [`FACT_DEADLINE`].
#[track_caller]
pub fn wait_for<T>(fact: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(last) if began.elapsed() > FACT_DEADLINE => {
                panic!("waited in vain for {fact}; last seen: {last}")
            }
            Err(_) => std::thread::park_timeout(LOOK_INTERVAL),
        }
    }
}
