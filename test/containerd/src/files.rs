//! What containerd reads at its start.

use crate::{CNI_PLUGINS, Containerd, PAUSE_IMAGE};
use anyhow::Result;
use serde_json::json;
use std::fs;

/// Plug-ins that look for things which a test machine does not have.
const NOT_NEEDED: [&str; 6] = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
];

impl Containerd {
    pub(crate) fn write_files(&self) -> Result<()> {
        for folder in ["root", "state", "cni", "ipam", "hosts"] {
            fs::create_dir_all(self.directory.join(folder))?;
        }
        fs::write(self.directory.join("config.toml"), self.toml())?;
        let network = self.directory.join("cni/10-kedge.conflist");
        fs::write(network, serde_json::to_vec_pretty(&self.network())?)?;
        Ok(())
    }

    fn toml(&self) -> String {
        let directory = self.directory.display();
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

    /// A bridge of its own, without a way out and without rules in the machine's firewall.
    fn network(&self) -> serde_json::Value {
        let subnet = format!("10.{}.{}.0/24", 100 + self.number / 256 % 100, self.number % 256);
        json!({
            "cniVersion": "0.4.0",
            "name": self.network_name(),
            "plugins": [{
                "type": "bridge",
                "bridge": self.bridge(),
                "isGateway": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.directory.join("ipam"),
                    "ranges": [[{ "subnet": subnet }]],
                },
            }],
        })
    }

    pub(crate) fn network_name(&self) -> String {
        format!("kedge-{}", self.number)
    }
}
