//! CloudCore and EdgeCore as processes of their own, with the official configuration files, real containers, and deaths
//! on either side of the link.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

use kedge_e2e::daemons::{
    CloudPorts, Daemon, EdgeOptions, cloud_ready, cloudcore_yaml, edgecore_yaml, node_is, shared_token,
};
use kedge_e2e::{Kedge, Options, images, wait_for};
use std::path::{Path, PathBuf};
use std::process::Command;

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
    let ports = CloudPorts::free();
    let (cloud_yaml, edge_yaml) = (dir.join("cloudcore.yaml"), dir.join("edgecore.yaml"));
    let (cloud_log, edge_log) = (dir.join("cloudcore.log"), dir.join("edgecore.log"));
    std::fs::write(
        &cloud_yaml,
        cloudcore_yaml(&kedge.kubeconfig(), ports, &["127.0.0.1"], ""),
    )
    .unwrap();
    let cloud = Daemon::start("cloudcore", &cloud_yaml, &cloud_log);
    cloud_ready(ports);
    let edge = EdgeOptions {
        node: "gate-7",
        token: &shared_token(&kedge),
        servers: format!("127.0.0.1:{}", ports.link),
        runtime: "embedded",
        network: Some(("kedge-gate7", "10.233.7.0/24")),
    };
    std::fs::write(&edge_yaml, edgecore_yaml(&dir, ports, &edge)).unwrap();
    let edge = Daemon::start("edgecore", &edge_yaml, &edge_log);
    node_is(&kedge, "gate-7", " Ready ");

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
    node_is(&kedge, "gate-7", " Ready ");
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
