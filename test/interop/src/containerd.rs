//! A containerd of our own, with images that no registry is asked for.

use crate::lab::Lab;
use crate::process::Process;
use crate::wait_for;
use kedge_runtime::image::{Blueprint, FileInImage, build_archive};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The image of sandboxes.
pub const PAUSE: &str = "kedge.test/pause:1";
/// The namespace in which a kubelet finds its images.
const NAMESPACE: &str = "k8s.io";

/// A running containerd; its containers end with it.
#[derive(Debug)]
pub struct Containerd {
    socket: PathBuf,
    /// `None` while it is taken down.
    process: Option<Process>,
}

impl Containerd {
    /// Starts it and imports busybox and the pause image.
    pub fn start(lab: &Lab) -> Self {
        let dir = lab.folder("containerd");
        let network = lab.folder("containerd/network");
        fs::write(network.join("10-pods.conflist"), network_json(lab, &dir))
            .expect("our own room is writable");
        let socket = dir.join("containerd.sock");
        let config = dir.join("config.toml");
        fs::write(&config, config_toml(&dir, &network, &socket)).expect("our own room is writable");
        let process = Process::start(
            Command::new("containerd").arg("--config").arg(&config),
            &dir.join("log"),
        );
        let containerd = Self {
            socket,
            process: Some(process),
        };
        wait_for("containerd to answer", || {
            let output = containerd.ctr(&["version"]);
            output.map(drop)
        });
        let busybox = dir.join("busybox.tar");
        kedge_e2e::images::write_busybox(&busybox);
        let pause = dir.join("pause.tar");
        write_pause(&pause);
        for archive in [busybox, pause] {
            let archive = archive.to_string_lossy();
            let imported = containerd.ctr(&["images", "import", &archive]);
            imported.unwrap_or_else(|error| panic!("import {archive}: {error}"));
        }
        containerd
    }

    /// For a kubelet's configuration.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The ids of a pod's containers, its sandbox included.
    pub fn containers_of(&self, pod: &str) -> Vec<String> {
        let filter = format!("labels.\"io.kubernetes.pod.name\"=={pod}");
        let listed = self.ctr(&["containers", "list", "--quiet", &filter]);
        let listed = listed.expect("containerd answers");
        listed.lines().map(str::to_owned).collect()
    }

    fn ctr(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", NAMESPACE])
            .args(args)
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let listed = self.ctr(&["tasks", "list", "--quiet"]).unwrap_or_default();
        for id in listed.lines() {
            // Removes the task and its shim.
            let _ = self.ctr(&["tasks", "delete", "--force", id]);
        }
        let listed = self.ctr(&["containers", "list", "--quiet"]).unwrap_or_default();
        for id in listed.lines() {
            let _ = self.ctr(&["containers", "delete", id]);
        }
        self.process = None;
    }
}

fn config_toml(dir: &Path, network: &Path, socket: &Path) -> String {
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # A test machine may not let anybody lower a score.
  restrict_oom_score_adj = true
  # Everything that is mounted lies in the room of the story.
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{network}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"#,
        dir = dir.display(),
        network = network.display(),
        socket = socket.display(),
    )
}

fn network_json(lab: &Lab, dir: &Path) -> String {
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "pods", "plugins": [{{
  "type": "bridge", "bridge": "{bridge}", "isGateway": true, "ipMasq": false,
  "ipam": {{"type": "host-local", "dataDir": "{dir}/addresses", "ranges": [[{{"subnet": "10.234.16.0/24"}}]]}}
}}]}}"#,
        bridge = lab.bridge(),
        dir = dir.display(),
    )
}

/// A sandbox needs a first process that stays.
fn write_pause(archive: &Path) {
    let program = fs::read("/usr/bin/busybox").expect("Debian's busybox-static is installed");
    let blueprint = Blueprint {
        reference: PAUSE.to_owned(),
        entrypoint: vec!["/bin/sleep".to_owned(), "100000000".to_owned()],
        files: vec![FileInImage {
            path: PathBuf::from("/bin/sleep"),
            mode: 0o755,
            bytes: program,
        }],
        ..Blueprint::default()
    };
    let bytes = build_archive(&blueprint).expect("the blueprint is sound");
    fs::write(archive, bytes).expect("our own room is writable");
}
