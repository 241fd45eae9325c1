//! EdgeCores on containerd, of either make on one configuration; and ours on the hollow runtime.

use crate::cloud::{HubPorts, Maker};
use crate::lab::Lab;
use crate::official::Official;
use crate::process::Process;
use kedge_containerd::PAUSE_IMAGE;
use kedge_e2e::containerd::Containerd;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A node that the official EdgeCore has set up.
#[derive(Debug)]
pub struct OfficialEdge {
    dir: PathBuf,
    program: PathBuf,
    process: Option<Process>,
}

impl OfficialEdge {
    /// Configures a node and starts it; it joins with the token.
    pub fn join(
        lab: &Lab,
        official: &Official,
        containerd: &Containerd,
        node: &str,
        ports: HubPorts,
        token: &str,
    ) -> Self {
        let dir = lab.folder("official-edge");
        for folder in ["manifests", "dmi", "logs", "plugins"] {
            lab.folder(&format!("official-edge/{folder}"));
        }
        let yaml = official_yaml(lab, &dir, containerd, node, ports, token);
        fs::write(dir.join("edgecore.yaml"), yaml).expect("our own room is writable");
        let mut edge = Self {
            dir,
            program: official.path("edgecore"),
            process: None,
        };
        edge.start();
        edge
    }

    pub fn start(&mut self) {
        self.start_made_by(Maker::Official);
    }

    /// The operator changes the program and nothing else.
    pub fn start_made_by(&mut self, maker: Maker) {
        let program = match maker {
            Maker::Official => self.program.clone(),
            Maker::Ours => kedge_e2e::binary("edgecore"),
        };
        let mut command = Command::new(program);
        command.arg("--config").arg(self.config());
        self.process = Some(Process::start(&mut command, &self.dir.join("log")).telling());
    }

    /// Hands the metadata back to the official EdgeCore, with the command that the manual names.
    ///
    /// # Panics
    /// When the command fails.
    pub fn export(&self) {
        let output = Command::new(kedge_e2e::binary("edgecore"))
            .args(["database", "export", "--config"])
            .arg(self.config())
            .output()
            .expect("edgecore starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }

    fn config(&self) -> PathBuf {
        self.dir.join("edgecore.yaml")
    }

    /// SIGKILL, as a power cut would; its containers go on.
    pub fn kill(&mut self) {
        self.process.take().expect("the edge runs").kill();
    }

    /// The running process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the edge runs")
    }

    /// The certificate that the cloud signed.
    pub fn certificate(&self) -> Vec<u8> {
        fs::read(self.dir.join("server.crt")).expect("the edge has joined")
    }

    /// A file in a volume of a pod, as its containers see it.
    pub fn volume_file(
        &self,
        pod_uid: &str,
        plugin: &str,
        volume: &str,
        file: &str,
    ) -> Result<String, String> {
        let path = self
            .dir
            .join("kubelet/pods")
            .join(pod_uid)
            .join("volumes")
            .join(format!("kubernetes.io~{plugin}"))
            .join(volume)
            .join(file);
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// What the first run of a container has written.
    pub fn log(&self, pod: &str, pod_uid: &str, container: &str) -> Result<String, String> {
        let path = self
            .dir
            .join("logs")
            .join(format!("default_{pod}_{pod_uid}"))
            .join(container)
            .join("0.log");
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Our EdgeCore with containers that are not there.
#[derive(Debug)]
pub struct OwnEdge {
    process: Process,
}

impl OwnEdge {
    /// Configures a node and starts it; it joins with the token.
    pub fn join(lab: &Lab, node: &str, ports: HubPorts, token: &str) -> Self {
        let dir = lab.folder("own-edge");
        let config = dir.join("edgecore.yaml");
        fs::write(&config, own_yaml(&dir, node, ports, token)).expect("our own room is writable");
        let mut command = Command::new(kedge_e2e::binary("edgecore"));
        command.arg("--config").arg(&config);
        Self {
            process: Process::start(&mut command, &dir.join("log")).telling(),
        }
    }

    /// The running process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

fn hub_yaml(dir: &Path, ports: HubPorts, token: &str) -> String {
    format!(
        "  edgeHub:
    heartbeat: 5
    token: {token}
    httpServer: https://127.0.0.1:{https}
    websocket: {{enable: true, server: '127.0.0.1:{link}'}}
    quic: {{enable: false}}
    tlsCaFile: {dir}/ca.crt
    tlsCertFile: {dir}/server.crt
    tlsPrivateKeyFile: {dir}/server.key
",
        https = ports.https,
        link = ports.link,
        dir = dir.display(),
    )
}

fn official_yaml(
    lab: &Lab,
    dir: &Path,
    containerd: &Containerd,
    node: &str,
    ports: HubPorts,
    token: &str,
) -> String {
    let [kubelet, broker] = kedge_e2e::ports::free();
    format!(
        "apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
database: {{dataSource: {dir}/edgecore.db}}
modules:
{hub}
  deviceTwin: {{enable: true, dmiSockPath: {dir}/dmi/}}
  edgeStream: {{enable: false}}
  eventBus: {{enable: true, mqttMode: 0, mqttServerInternal: 'tcp://127.0.0.1:{broker}'}}
  metaManager: {{enable: true, metaServer: {{enable: false}}}}
  serviceBus: {{enable: false}}
  edged:
    hostnameOverride: {node}
    nodeIP: 127.0.0.1
    reportEvent: true
    rootDirectory: {dir}/kubelet
    podSandboxImage: {PAUSE_IMAGE}
    tailoredKubeletConfig:
      address: 127.0.0.1
      readOnlyPort: {kubelet}
      staticPodPath: {dir}/manifests
      podLogsDir: {dir}/logs
      volumePluginDir: {dir}/plugins
      containerRuntimeEndpoint: {endpoint}
      imageServiceEndpoint: {endpoint}
      cgroupDriver: cgroupfs
      cgroupRoot: {group}
      oomScoreAdj: 0
      makeIPTablesUtilChains: false
      # How full the disk of a test machine is must not matter.
      evictionHard: {{memory.available: 1Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}}
      imageGCHighThresholdPercent: 100
      imageGCLowThresholdPercent: 99
      # How soon a mounted config map follows its object.
      syncFrequency: 5s
",
        hub = hub_yaml(dir, ports, token),
        dir = dir.display(),
        endpoint = containerd.endpoint(),
        group = lab.control_group(),
    )
}

fn own_yaml(dir: &Path, node: &str, ports: HubPorts, token: &str) -> String {
    format!(
        "apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
database: {{dataSource: {dir}/edgecore.db}}
modules:
{hub}
  edgeStream: {{enable: false}}
  edged:
    hostnameOverride: {node}
    rootDirectory: {dir}/kubelet
    tailoredKubeletConfig:
      containerRuntimeEndpoint: kedge://hollow
      podLogsDir: {dir}/logs
      podCIDR: 10.234.17.0/24
kedge: {{runtimeDirectory: {dir}/runtime}}
",
        hub = hub_yaml(dir, ports, token),
        dir = dir.display(),
    )
}
