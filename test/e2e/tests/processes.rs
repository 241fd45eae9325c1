//! CloudCore and EdgeCore as processes of their own, with the official configuration files, real containers, and deaths
//! on either side of the link.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

use kedge_e2e::site::{EdgePlan, Leavings, Site};
use kedge_e2e::{Kedge, images, wait_for};

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
    let _leavings = Leavings("kedge-gate7");
    let mut site = Site::start(EdgePlan {
        node: "gate-7",
        runtime: "kedge://embedded",
        network: Some(("kedge-gate7", "10.233.7.0/24")),
        kubelet: &[],
    });

    // The image comes while the edge runs.
    let archive = site.dir.join("busybox.tar");
    images::write_busybox(&archive);
    images::import_into(&site.dir.join("runtime"), &archive);
    site.cluster.apply(POD).ok();
    let before = wait_for("the pod running", || {
        let seen = container(&site.cluster);
        if seen.starts_with("Running kedge://") {
            Ok(seen)
        } else {
            Err(seen)
        }
    });

    // Both die; the container does not notice. The edge comes back first, alone.
    site.kill_cloud();
    site.kill_edge();
    site.start_edge();
    site.start_cloud();
    site.wait_ready();
    site.cluster
        .kubectl(&["label", "pod", "sensor", "seen=after"])
        .ok();
    assert_eq!(
        container(&site.cluster),
        before,
        "the same container, restarted not once"
    );

    // A delete while the cloud is away reaches the edge when it is back.
    site.kill_cloud();
    site.cluster
        .kubectl(&["delete", "pod", "sensor", "--wait=false"])
        .ok();
    site.start_cloud();
    wait_for("the pod gone", || {
        let pods = site.cluster.kubectl(&["get", "pods", "-o", "name"]).ok();
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
    wait_for("no supervisors", || {
        let left = kedge_e2e::proc::supervisors(&site.dir);
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
}
