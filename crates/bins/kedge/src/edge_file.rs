//! The configuration of the EdgeCore inside kedge: an `edgecore.yaml` like any other, so that `edgecore` can be started
//! on it alone.

use crate::data_dir::DataDir;
use crate::preflight::HubPorts;
use anyhow::{Context, Result};
use kedge_config::{EdgeCore, EdgeFacts};
use std::path::{Path, PathBuf};

/// What differs from one `kedge up` to another.
#[derive(Debug)]
pub(crate) struct Edge<'a> {
    pub(crate) node_name: &'a str,
    pub(crate) ports: HubPorts,
    pub(crate) hollow: bool,
}

/// Where the file lies.
pub(crate) fn path(dir: &DataDir) -> PathBuf {
    dir.edge().join("edgecore.yaml")
}

/// Writes the file and reads it back as EdgeCore would.
pub(crate) fn write(dir: &DataDir, edge: &Edge<'_>) -> Result<EdgeCore> {
    let path = path(dir);
    kedge_pki::write_private(&path, text(dir, edge).as_bytes())?;
    read(&path)
}

/// Reads an `edgecore.yaml` of kedge.
pub(crate) fn read(path: &Path) -> Result<EdgeCore> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let facts = EdgeFacts {
        hostname: "edge".into(),
        primary_ip: "127.0.0.1".into(),
    };
    let (config, warnings) =
        EdgeCore::from_yaml(&text, &facts).with_context(|| path.display().to_string())?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

fn text(dir: &DataDir, edge: &Edge<'_>) -> String {
    let network = Network::of(dir.root());
    format!(
        "# Written by `kedge up`. `edgecore --config` on this file starts the same edge without the cloud part.
apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
database:
  dataSource: {edge_dir}/edgecore.db
modules:
  edgeHub:
    httpServer: https://127.0.0.1:{bootstrap}
    websocket:
      server: 127.0.0.1:{link}
    tlsCaFile: {edge_dir}/pki/rootCA.crt
    tlsCertFile: {edge_dir}/pki/server.crt
    tlsPrivateKeyFile: {edge_dir}/pki/server.key
  edgeStream:
    server: 127.0.0.1:{tunnel}
  edged:
    hostnameOverride: {node_name}
    rootDirectory: {edge_dir}/kubelet
    reportEvent: true
    tailoredKubeletConfig:
      containerRuntimeEndpoint: kedge://{runtime}
      podLogsDir: {edge_dir}/logs
      podCIDR: {pod_cidr}
      staticPodPath: {edge_dir}/manifests
      serializeImagePulls: false
      maxParallelImagePulls: 3
      # This machine has other work too: pods go when it is nearly full, and images that were imported stay.
      evictionHard: {{memory.available: 100Mi, nodefs.available: 100Mi, nodefs.inodesFree: 1%, imagefs.available: 100Mi, imagefs.inodesFree: 1%}}
      imageGCHighThresholdPercent: 100
      # 10350 may be another node's on this machine; the tunnel answers the same.
      readOnlyPort: 0
kedge:
  runtimeDirectory: {runtime_dir}
  bridge: {bridge}
  cgroupRoot: {cgroup_root}
  # Other data directories on this machine have networks of their own.
  cniConfDir: ''
  devicePlugins: ''
",
        edge_dir = dir.edge().display(),
        runtime_dir = dir.runtime().display(),
        link = edge.ports.link,
        bootstrap = edge.ports.bootstrap,
        tunnel = edge.ports.tunnel,
        node_name = edge.node_name,
        runtime = if edge.hollow { "hollow" } else { "embedded" },
        pod_cidr = network.pod_cidr,
        bridge = network.bridge,
        cgroup_root = network.cgroup_root,
    )
}

/// Names that must differ between two data directories on one machine.
#[derive(Debug, PartialEq, Eq)]
struct Network {
    bridge: String,
    pod_cidr: String,
    cgroup_root: String,
}

impl Network {
    /// Derived from the path, so that the same directory has the same network each time.
    fn of(data_dir: &Path) -> Self {
        if data_dir == Path::new("/var/lib/kedge") {
            return Self {
                bridge: "kedge0".into(),
                pod_cidr: "10.234.0.0/24".into(),
                cgroup_root: "/kedge".into(),
            };
        }
        let hash = fnv1a(data_dir.as_os_str().as_encoded_bytes());
        Self {
            bridge: format!("kedge-{:08x}", hash >> 32),
            pod_cidr: format!("10.{}.{}.0/24", 235 + hash % 16, (hash >> 8) % 256),
            cgroup_root: format!("/kedge-{:08x}", hash >> 32),
        }
    }
}

/// FNV-1a, 64 bits: short, stable, and good enough to tell directories apart.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_config::ContainerRuntime;

    #[test]
    fn the_file_is_one_that_edgecore_reads_without_a_word() {
        let dir =
            DataDir::open(&std::env::temp_dir().join(format!("kedge-edge-file-{}", std::process::id())))
                .unwrap();
        let edge = Edge {
            node_name: "gate-7",
            ports: HubPorts::from(20000),
            hollow: true,
        };
        let facts = EdgeFacts {
            hostname: "x".into(),
            primary_ip: "127.0.0.1".into(),
        };
        let (config, warnings) = EdgeCore::from_yaml(&text(&dir, &edge), &facts).unwrap();
        assert_eq!(warnings, []);
        assert_eq!(config.edged.node_name, "gate-7");
        assert_eq!(config.edged.container_runtime, ContainerRuntime::Hollow);
        assert_eq!(config.hub.servers, ["127.0.0.1:20000"]);
        assert_eq!(config.stream.server, "127.0.0.1:20004");
        assert_eq!(
            config.edged.bridge.len(),
            14,
            "a network interface's name has at most 15 characters"
        );
        std::fs::remove_dir_all(dir.root()).unwrap();
    }

    #[test]
    fn two_data_directories_have_two_networks() {
        let (a, b) = (Network::of(Path::new("/tmp/a")), Network::of(Path::new("/tmp/b")));
        assert_ne!((&a.bridge, &a.pod_cidr), (&b.bridge, &b.pod_cidr));
        assert_eq!(a, Network::of(Path::new("/tmp/a")));
    }
}
