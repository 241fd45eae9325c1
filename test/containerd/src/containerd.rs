//! What containerd reads at its start, and its own tool.

use crate::{CNI_PLUGINS, Containerd, Daemon, Make, PAUSE_IMAGE};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The namespace in which containerd keeps what came through the CRI.
pub const NAMESPACE: &str = "k8s.io";
/// Plug-ins that look for things which a test machine does not have.
const NOT_NEEDED: [&str; 6] = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
];

/// containerd from 1.6 to 2.x, which translates the configuration of its forerunners.
#[derive(Debug)]
pub struct ContainerdMake;

impl Make for ContainerdMake {
    const NAME: &'static str = "containerd";
    const VARIABLE: &'static str = "KEDGE_CONTAINERD";
    const PROGRAMS: &'static [&'static str] = &["containerd", "containerd-shim-runc-v2", "runc", "ctr"];
    const SUPERVISOR: &'static str = "containerd-shim";

    fn write_files(daemon: &Containerd) -> Result<()> {
        for folder in ["root", "state", "hosts"] {
            fs::create_dir_all(daemon.directory.join(folder))?;
        }
        fs::write(daemon.directory.join("config.toml"), toml(daemon))?;
        Ok(())
    }

    fn arguments(daemon: &Containerd, command: &mut Command) {
        command.arg("--config").arg(daemon.directory.join("config.toml"));
    }

    fn import(daemon: &Containerd, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("a path of a test is text")?;
        daemon.ctr(&["images", "import", archive]).map(drop)
    }

    fn end_containers(daemon: &Containerd) -> Vec<String> {
        if daemon.pid().is_none() {
            return Vec::new();
        }
        let tasks = daemon.ctr(&["task", "list", "--quiet"]).unwrap_or_default();
        for task in tasks.lines() {
            // One that ends by itself meanwhile is as good.
            drop(daemon.ctr(&["task", "delete", "--force", task]));
        }
        let containers = daemon.ctr(&["container", "list", "--quiet"]);
        containers
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

impl Daemon<ContainerdMake> {
    /// Runs containerd's own tool on it.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let socket = self.socket();
        let socket = socket.to_str().context("a path of a test is text")?;
        let place = ["--address", socket, "--namespace", NAMESPACE];
        self.run("ctr", &[&place[..], arguments].concat())
    }
}

fn toml(daemon: &Containerd) -> String {
    let directory = daemon.directory.display();
    let disabled = NOT_NEEDED.map(|plugin| format!("{plugin:?}")).join(", ");
    // Without the right to lower OOM scores, which a machine of a CI may lack, no sandbox would start.
    format!(
        r#"version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{directory}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{directory}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{directory}/hosts"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#
    )
}
