//! CloudCore and EdgeCore as processes of their own, with the official configuration files.

use crate::{Kedge, binary, images, ports, wait_for};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A process that ends with the test.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `<name> --config <config>`; what it logs is appended to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, config: &Path, log: &Path) -> Self {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("open the log");
        let mut command = Command::new(binary(name));
        command
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stderr(file);
        Self {
            child: command.spawn().expect("start the process"),
            log: log.to_owned(),
        }
    }

    /// The process as /proc names it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, now.
    ///
    /// # Panics
    /// When the process cannot be ended.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status();
        let _ = self.child.wait();
    }
}

/// The ports of one CloudCore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloudPorts {
    pub link: u16,
    pub https: u16,
    pub tunnel: u16,
    pub monitor: u16,
}

impl CloudPorts {
    /// Ports that are free now.
    ///
    /// # Panics
    /// When the machine has none.
    pub fn free() -> Self {
        let [link, https, tunnel, monitor] = ports::free();
        Self {
            link,
            https,
            tunnel,
            monitor,
        }
    }
}

/// An official `cloudcore.yaml`. `more` is added at its end, at the top level.
pub fn cloudcore_yaml(kubeconfig: &Path, ports: CloudPorts, addresses: &[&str], more: &str) -> String {
    let CloudPorts {
        link,
        https,
        tunnel,
        monitor,
    } = ports;
    format!(
        "apiVersion: cloudcore.config.kubeedge.io/v1alpha2
kind: CloudCore
commonConfig: {{monitorServer: {{bindAddress: '127.0.0.1:{monitor}'}}}}
kubeAPIConfig:
  kubeConfig: {kubeconfig}
modules:
  cloudHub:
    advertiseAddress: [{addresses}]
    nodeLimit: 1000
    tlsCAFile: ''
    tlsCAKeyFile: ''
    tlsCertFile: ''
    tlsPrivateKeyFile: ''
    websocket: {{enable: true, address: 0.0.0.0, port: {link}}}
    https: {{enable: true, address: 0.0.0.0, port: {https}}}
  cloudStream: {{enable: true, tunnelPort: {tunnel}}}
{more}",
        kubeconfig = kubeconfig.display(),
        addresses = addresses.join(", "),
    )
}

/// What differs between the edges of a test.
#[derive(Debug, Clone)]
pub struct EdgeOptions<'a> {
    pub node: &'a str,
    pub token: &'a str,
    /// As `modules.edgeHub.websocket.server` has it.
    pub servers: String,
    /// As `containerRuntimeEndpoint` has it: `kedge://embedded`, `kedge://hollow` or a socket of the CRI.
    pub runtime: &'a str,
    /// Bridge, control group and subnet, for real containers of the built-in runtime.
    pub network: Option<(&'a str, &'a str)>,
    /// Where the local pages of the node are served; 0 for none.
    pub local_port: u16,
    /// Lines for `tailoredKubeletConfig`, without indentation.
    pub kubelet: &'a [&'a str],
}

impl<'a> EdgeOptions<'a> {
    /// An edge with defaults for everything but these.
    pub fn new(node: &'a str, token: &'a str, cloud: CloudPorts, runtime: &'a str) -> Self {
        Self {
            node,
            token,
            servers: format!("127.0.0.1:{}", cloud.link),
            runtime,
            network: None,
            local_port: 0,
            kubelet: &[],
        }
    }
}

/// An official `edgecore.yaml` of an edge that keeps everything below `dir`.
pub fn edgecore_yaml(dir: &Path, cloud: CloudPorts, edge: &EdgeOptions<'_>) -> String {
    let EdgeOptions {
        node,
        token,
        servers,
        runtime,
        network,
        local_port,
        kubelet,
    } = edge;
    let dir = dir.display();
    let mut yaml = format!(
        "apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
database: {{dataSource: {dir}/edgecore.db}}
modules:
  edgeHub:
    heartbeat: 5
    token: {token}
    httpServer: https://127.0.0.1:{https}
    websocket: {{enable: true, server: '{servers}'}}
    tlsCaFile: {dir}/ca.crt
    tlsCertFile: {dir}/server.crt
    tlsPrivateKeyFile: {dir}/server.key
  edgeStream: {{enable: true, server: '127.0.0.1:{tunnel}'}}
  edged:
    hostnameOverride: {node}
    rootDirectory: {dir}/kubelet
    reportEvent: true
    tailoredKubeletConfig:
      containerRuntimeEndpoint: {runtime}
      podLogsDir: {dir}/logs
      staticPodPath: {dir}/manifests
      readOnlyPort: {local_port}
      # The disk of a test machine may be nearly full.
      evictionHard: {{memory.available: 1Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}}
      imageGCHighThresholdPercent: 100
",
        https = cloud.https,
        tunnel = cloud.tunnel,
    );
    for line in *kubelet {
        let _ = writeln!(yaml, "      {line}");
    }
    let _ = match network {
        Some((bridge, cidr)) => writeln!(
            yaml,
            "      podCIDR: {cidr}\nkedge: {{runtimeDirectory: {dir}/runtime, bridge: {bridge}, cgroupRoot: /{bridge}, devicePlugins: {dir}/device-plugins}}"
        ),
        None => writeln!(
            yaml,
            "kedge: {{runtimeDirectory: {dir}/runtime, devicePlugins: {dir}/device-plugins}}"
        ),
    };
    yaml
}

/// Waits until CloudCore says that it is ready.
pub fn cloud_ready(ports: CloudPorts) {
    wait_for("CloudCore to be ready", || match get(ports.monitor, "/readyz") {
        Ok((200, _)) => Ok(()),
        Ok((status, text)) => Err(format!("{status} {text}")),
        Err(error) => Err(error.to_string()),
    });
}

/// One GET of a local plain HTTP server.
pub fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let mut tcp = TcpStream::connect(("127.0.0.1", port))?;
    tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        tcp,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.unwrap_or(0), body.to_owned()))
}

/// The value of one series of a metrics page; 0 when it is not there.
pub fn metric(ports: CloudPorts, series: &str) -> f64 {
    let (_, text) = get(ports.monitor, "/metrics").unwrap_or_default();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or(0.0)
}

/// The shared join token.
pub fn shared_token(kedge: &Kedge) -> String {
    let path = "jsonpath={.data.tokendata}";
    let secret = ["get", "secret", "-n", "kubeedge", "tokensecret", "-o", path];
    images::base64_decode(&kedge.kubectl(&secret).ok())
}

/// Waits until `kubectl get nodes` shows the node with this status.
pub fn node_is(kedge: &Kedge, node: &str, status: &str) {
    wait_for(&format!("{node} {status}"), || {
        let nodes = kedge.kubectl(&["get", "nodes"]).ok();
        let there = nodes
            .lines()
            .any(|line| line.starts_with(node) && line.contains(status));
        if there { Ok(()) } else { Err(nodes) }
    });
}
