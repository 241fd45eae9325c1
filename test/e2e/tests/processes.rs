//! CloudCore and EdgeCore as processes of their own, with the official configuration files, real containers, and deaths
//! on either side of the link.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

use kedge_e2e::{Kedge, Options, binary, images, wait_for};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A process that ends with the test.
struct Daemon(Child);

impl Daemon {
    fn start(name: &str, config: &Path, log: &Path) -> Self {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let mut command = Command::new(binary(name));
        command
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stderr(log);
        Self(command.spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-TERM", &self.0.id().to_string()])
            .status();
        let _ = self.0.wait();
    }
}

/// `edgecore` leaves its bridge and its control group to the next start; after the test there is none.
struct Leavings(&'static str);

impl Drop for Leavings {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", self.0]).status();
        let trees = std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten();
        for tree in trees {
            remove_groups(&tree.path().join(self.0));
        }
        remove_groups(&Path::new("/sys/fs/cgroup").join(self.0));
    }
}

/// A control group goes when those below it are gone; its files go by themselves.
fn remove_groups(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

/// Three ports that are free now: link, certificates, tunnel.
fn ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn cloudcore_yaml(kubeconfig: &Path, [link, https, tunnel]: [u16; 3]) -> String {
    format!(
        "apiVersion: cloudcore.config.kubeedge.io/v1alpha2
kind: CloudCore
kubeAPIConfig:
  kubeConfig: {kubeconfig}
modules:
  cloudHub:
    advertiseAddress: [127.0.0.1]
    nodeLimit: 1000
    websocket: {{enable: true, address: 127.0.0.1, port: {link}}}
    https: {{enable: true, address: 127.0.0.1, port: {https}}}
  cloudStream: {{enable: true, tunnelPort: {tunnel}}}
",
        kubeconfig = kubeconfig.display()
    )
}

fn edgecore_yaml(dir: &Path, token: &str, [link, https, tunnel]: [u16; 3]) -> String {
    format!(
        "apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
database: {{dataSource: {dir}/edgecore.db}}
modules:
  edgeHub:
    heartbeat: 5
    token: {token}
    httpServer: https://127.0.0.1:{https}
    websocket: {{enable: true, server: '127.0.0.1:{link}'}}
    tlsCaFile: {dir}/ca.crt
    tlsCertFile: {dir}/server.crt
    tlsPrivateKeyFile: {dir}/server.key
  edgeStream: {{enable: true, server: '127.0.0.1:{tunnel}'}}
  edged:
    hostnameOverride: gate-7
    rootDirectory: {dir}/kubelet
    tailoredKubeletConfig:
      containerRuntimeEndpoint: kedge://embedded
      podLogsDir: {dir}/logs
      podCIDR: 10.233.7.0/24
kedge: {{runtimeDirectory: {dir}/runtime, bridge: kedge-gate7, cgroupRoot: /kedge-gate7}}
",
        dir = dir.display()
    )
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: sensor}
spec:
  nodeSelector: {kubernetes.io/hostname: gate-7}
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
    - {name: sensor, image: 'kedge.test/busybox:1', command: [/bin/sh, -c, 'while :; do sleep 1000; done']}
";

fn container(kedge: &Kedge) -> String {
    let path = "jsonpath={.status.phase} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
    kedge.kubectl(&["get", "pod", "sensor", "-o", path]).stdout
}

fn node_is(kedge: &Kedge, status: &str) {
    wait_for(&format!("gate-7 {status}"), || {
        let nodes = kedge.kubectl(&["get", "nodes"]).ok();
        let there = nodes
            .lines()
            .any(|line| line.starts_with("gate-7") && line.contains(status));
        if there { Ok(()) } else { Err(nodes) }
    });
}

#[test]
fn a_cloud_and_an_edge_that_die_and_come_back() {
    // Its embedded API stands for "your cluster"; its own node takes no part.
    let kedge = Kedge::up(
        "cluster",
        Options {
            hollow: true,
            ..Options::default()
        },
    );
    let dir: PathBuf = kedge.data_dir.join("gate-7");
    std::fs::create_dir(&dir).unwrap();
    let _leavings = Leavings("kedge-gate7");
    let ports = ports();
    let (cloud_yaml, edge_yaml) = (dir.join("cloudcore.yaml"), dir.join("edgecore.yaml"));
    let (cloud_log, edge_log) = (dir.join("cloudcore.log"), dir.join("edgecore.log"));
    std::fs::write(&cloud_yaml, cloudcore_yaml(&kedge.kubeconfig(), ports)).unwrap();
    let cloud = Daemon::start("cloudcore", &cloud_yaml, &cloud_log);
    wait_for("CloudCore to listen", || {
        std::net::TcpStream::connect(("127.0.0.1", ports[1]))
            .map(drop)
            .map_err(|error| error.to_string())
    });
    let token = kedge.kubectl(&[
        "get",
        "secret",
        "-n",
        "kubeedge",
        "tokensecret",
        "-o",
        "jsonpath={.data.tokendata}",
    ]);
    std::fs::write(
        &edge_yaml,
        edgecore_yaml(&dir, &images::base64_decode(&token.ok()), ports),
    )
    .unwrap();
    let edge = Daemon::start("edgecore", &edge_yaml, &edge_log);
    node_is(&kedge, " Ready ");

    // The image comes while the edge runs.
    let archive = dir.join("busybox.tar");
    images::write_busybox(&archive);
    images::import_into(&dir.join("runtime"), &archive);
    kedge.apply(POD).ok();
    let before = wait_for("the pod running", || {
        let seen = container(&kedge);
        if seen.starts_with("Running kedge://") {
            Ok(seen)
        } else {
            Err(seen)
        }
    });

    // Both die; the container does not notice. The edge comes back first, alone.
    cloud.kill();
    edge.kill();
    let edge = Daemon::start("edgecore", &edge_yaml, &edge_log);
    let cloud = Daemon::start("cloudcore", &cloud_yaml, &cloud_log);
    node_is(&kedge, " Ready ");
    kedge.kubectl(&["label", "pod", "sensor", "seen=after"]).ok();
    assert_eq!(
        container(&kedge),
        before,
        "the same container, restarted not once"
    );

    // A delete while the cloud is away reaches the edge when it is back.
    cloud.kill();
    kedge.kubectl(&["delete", "pod", "sensor", "--wait=false"]).ok();
    let cloud = Daemon::start("cloudcore", &cloud_yaml, &cloud_log);
    wait_for("the pod gone", || {
        let pods = kedge.kubectl(&["get", "pods", "-o", "name"]).ok();
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
    wait_for("no supervisors", || {
        let left = kedge_e2e::proc::find(&["oci-helper", &dir.to_string_lossy()]);
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    drop((edge, cloud));
}
