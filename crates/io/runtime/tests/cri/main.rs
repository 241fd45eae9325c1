//! What only a runtime behind a socket can do to us: be away, hang, come back, refuse, and be shared with others.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fake;
#[path = "../node/mod.rs"]
mod node;
mod real;
mod registry;
mod silent;

use kedge_containers::CgroupDriver;
use kedge_runtime::{Cri, CriConfig};
use std::path::Path;
use std::time::Duration;

/// No fact that a test waits for takes this long on a working machine.
const FACT_WAIT_MAX: Duration = Duration::from_secs(60);

/// A client of whatever listens on a socket.
fn connect(socket: &Path, request_timeout: Duration) -> Cri {
    Cri::connect(CriConfig {
        runtime_endpoint: format!("unix://{}", socket.display()),
        image_endpoint: String::new(),
        cgroup_root: "/kedge-test-nowhere".to_owned(),
        cgroup_driver: CgroupDriver::Cgroupfs,
        cgroups_per_pod: false,
        request_timeout,
    })
    .unwrap()
}
