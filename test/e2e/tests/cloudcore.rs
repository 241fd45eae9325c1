//! CloudCore as an operator runs it: with the rights of its manifest only, in several replicas, with edges that join by
//! tokens of their own, and with eyes on its health and its log.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

use kedge_e2e::daemons::{
    CloudPorts, Daemon, EdgeOptions, cloud_ready, cloudcore_yaml, edgecore_yaml, get, metric, node_is,
    shared_token,
};
use kedge_e2e::{Kedge, Options, binary, kubectl, wait_for};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The embedded API stands for "your cluster"; its own node takes no part.
fn cluster(name: &str) -> Kedge {
    let options = Options {
        hollow: true,
        ..Options::default()
    };
    Kedge::up(name, options)
}

/// Applies the manifest and gives a kubeconfig of the account in it.
fn restricted(kedge: &Kedge) -> PathBuf {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests");
    for part in ["crds", "cloudcore-rbac.yaml"] {
        let path = manifests.join(part).display().to_string();
        kedge.kubectl(&["apply", "-f", &path]).ok();
    }
    let path = "/api/v1/namespaces/kubeedge/serviceaccounts/cloudcore/token";
    let request = r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}"#;
    let answer = kubectl(
        &kedge.kubeconfig(),
        &["create", "--raw", path, "-f", "-"],
        request,
    )
    .ok();
    let token: Value = serde_json::from_str(&answer).unwrap();
    let view = kedge
        .kubectl(&["config", "view", "--raw", "--minify", "-o", "json"])
        .ok();
    let mut kubeconfig: Value = serde_json::from_str(&view).unwrap();
    kubeconfig["users"][0]["user"] = json!({"token": token["status"]["token"]});
    let path = kedge.data_dir.join("cloudcore.kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    path
}

/// A hollow edge in a folder that is named after its node.
fn edge(kedge: &Kedge, node: &str, token: &str, cloud: CloudPorts, servers: String) -> (Daemon, PathBuf) {
    device(kedge, node, node, token, cloud, servers)
}

/// A hollow edge in a folder of its own.
fn device(
    kedge: &Kedge,
    folder: &str,
    node: &str,
    token: &str,
    cloud: CloudPorts,
    servers: String,
) -> (Daemon, PathBuf) {
    let dir = kedge.data_dir.join(folder);
    std::fs::create_dir_all(&dir).unwrap();
    let options = EdgeOptions {
        servers,
        ..EdgeOptions::new(node, token, cloud, "kedge://hollow")
    };
    let yaml = dir.join("edgecore.yaml");
    std::fs::write(&yaml, edgecore_yaml(&dir, cloud, &options)).unwrap();
    (Daemon::start("edgecore", &yaml, &dir.join("edgecore.log")), dir)
}

fn server(cloud: CloudPorts) -> String {
    format!("127.0.0.1:{}", cloud.link)
}

const APP: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: plates}
data: {list: 'B-KE 1'}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {key: open}
---
apiVersion: v1
kind: Pod
metadata: {name: gate}
spec:
  nodeName: gate-1
  terminationGracePeriodSeconds: 0
  containers:
    - name: gate
      image: 'kedge.test/none:1'
      env: [{name: KEY, valueFrom: {secretKeyRef: {name: key, key: key}}}]
      volumeMounts: [{name: plates, mountPath: /plates}]
  volumes: [{name: plates, configMap: {name: plates}}]
";

fn pod_runs(kedge: &Kedge) {
    wait_for("the pod running", || {
        let phase = kedge.kubectl(&["get", "pod", "gate", "-o", "jsonpath={.status.phase}"]);
        if phase.stdout == "Running" {
            Ok(())
        } else {
            Err(phase.stdout)
        }
    });
}

/// The field `trace` of the first line of a log that has all words.
fn trace_of(log: &str, words: &[&str]) -> Option<String> {
    let line = log
        .lines()
        .rfind(|line| words.iter().all(|word| line.contains(word)))?;
    let trace = line.split("trace=").nth(1)?;
    Some(trace.split([' ', ',']).next()?.to_owned())
}

#[test]
fn with_the_rights_of_its_manifest_and_open_to_view() {
    let kedge = cluster("rights");
    let (dir, kubeconfig) = (kedge.data_dir.clone(), restricted(&kedge));
    let cloud = CloudPorts::free();
    let (yaml, log) = (dir.join("cloudcore.yaml"), dir.join("cloudcore.log"));
    let debug = "kedge: {logFilter: 'info,kedge_cloudhub=debug,kedge_controllers=debug'}\n";
    std::fs::write(&yaml, cloudcore_yaml(&kubeconfig, cloud, &["127.0.0.1"], debug)).unwrap();
    let running = Daemon::start("cloudcore", &yaml, &log);
    cloud_ready(cloud);
    let (_edge, _) = edge(&kedge, "gate-1", &shared_token(&kedge), cloud, server(cloud));
    node_is(&kedge, "gate-1", " Ready ");
    kedge.apply(APP).ok();
    pod_runs(&kedge);

    // One trace from the watch to the acknowledgement.
    let patch = r#"{"data": {"list": "B-KE 2"}}"#;
    kedge
        .kubectl(&["patch", "configmap", "plates", "--type=merge", "-p", patch])
        .ok();
    wait_for("one trace of the config map", || {
        let log = running.log();
        let acked = trace_of(&log, &["acknowledged", "default/configmap/plates"]);
        let trace = acked.ok_or("not acknowledged")?;
        let stages = ["watch event taken", "placed", "sent"];
        let missing: Vec<&str> = stages
            .into_iter()
            .filter(|stage| {
                !log.lines()
                    .any(|line| line.contains(stage) && line.contains(&trace))
            })
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("{trace} lacks {missing:?}"))
        }
    });
    wait_for("the numbers", || {
        let connected = metric(cloud, "KubeEdge_CloudHub_connected_nodes");
        if connected > 0.5 {
            Ok(())
        } else {
            Err(connected.to_string())
        }
    });
    assert_eq!(get(cloud.monitor, "/healthz").unwrap().0, 200);
    let log = running.log();
    assert!(
        !log.contains("orbidden"),
        "the manifest forbids what CloudCore does: {log}"
    );
    assert!(!log.contains("B-KE"), "bodies do not belong into a log");

    // Events and the status of the pod came through; what the manifest does not name is refused.
    let as_cloudcore = |args: &[&str]| {
        let account = "--as=system:serviceaccount:kubeedge:cloudcore";
        kedge
            .kubectl(&[&["auth", "can-i"], args, &[account]].concat())
            .stdout
    };
    assert_eq!(
        as_cloudcore(&["patch", "pods", "--subresource=status"]).trim(),
        "yes"
    );
    assert_eq!(as_cloudcore(&["create", "pods"]).trim(), "no");
    assert_eq!(as_cloudcore(&["delete", "nodes"]).trim(), "no");
}

#[test]
fn a_node_joins_with_a_token_of_its_own_and_a_new_address_needs_no_new_join() {
    let kedge = cluster("tokens");
    let (dir, kubeconfig) = (kedge.data_dir.clone(), kedge.kubeconfig());
    let cloud = CloudPorts::free();
    let (yaml, log) = (dir.join("cloudcore.yaml"), dir.join("cloudcore.log"));
    std::fs::write(&yaml, cloudcore_yaml(&kubeconfig, cloud, &["127.0.0.1"], "")).unwrap();
    let running = Daemon::start("cloudcore", &yaml, &log);
    cloud_ready(cloud);
    let token = Command::new(binary("cloudcore"))
        .args(["token", "--node", "gate-1", "--config"])
        .arg(&yaml)
        .output()
        .unwrap();
    assert!(token.status.success(), "{token:?}");
    let token = String::from_utf8(token.stdout).unwrap();
    let (edge_1, home) = edge(&kedge, "gate-1", token.trim(), cloud, server(cloud));
    node_is(&kedge, "gate-1", " Ready ");

    // Another device with the same token: for another node, and for the same node with another key.
    let refused = |name: &str, node: &str| {
        let (thief, _) = device(&kedge, name, node, token.trim(), cloud, server(cloud));
        wait_for("a refusal", || {
            let log = thief.log();
            if log.contains("401") || log.contains("Unauthorized") {
                Ok(())
            } else {
                Err(log)
            }
        });
    };
    refused("thief", "gate-2");
    refused("twin", "gate-1");

    // CloudCore moves to another address: its certificate is made anew, and the edge's stays.
    let certificate = std::fs::read(home.join("server.crt")).unwrap();
    drop((running, edge_1));
    std::fs::write(&yaml, cloudcore_yaml(&kubeconfig, cloud, &["127.0.0.2"], "")).unwrap();
    let _running = Daemon::start("cloudcore", &yaml, &log);
    cloud_ready(cloud);
    node_is(&kedge, "gate-1", " NotReady ");
    let servers = format!("127.0.0.2:{}", cloud.link);
    let (_edge_1, _) = edge(&kedge, "gate-1", "", cloud, servers);
    node_is(&kedge, "gate-1", " Ready ");
    assert_eq!(std::fs::read(home.join("server.crt")).unwrap(), certificate);
}

#[test]
fn a_replica_that_is_killed_is_not_missed() {
    let kedge = cluster("replicas");
    let (dir, kubeconfig) = (kedge.data_dir.clone(), restricted(&kedge));
    let ports = [CloudPorts::free(), CloudPorts::free()];
    // Both start at the same moment: one authority comes out.
    let mut replicas: Vec<Daemon> = ports
        .iter()
        .zip(["a", "b"])
        .map(|(ports, name)| {
            let yaml = dir.join(format!("cloudcore-{name}.yaml"));
            let own = format!("kedge: {{replica: {name}}}\n");
            std::fs::write(&yaml, cloudcore_yaml(&kubeconfig, *ports, &["127.0.0.1"], &own)).unwrap();
            Daemon::start("cloudcore", &yaml, &dir.join(format!("cloudcore-{name}.log")))
        })
        .collect();
    ports.into_iter().for_each(cloud_ready);
    let token = shared_token(&kedge);
    let servers = ports.map(server).join(",");
    let (_edge, _) = edge(&kedge, "gate-1", &token, ports[0], servers);
    node_is(&kedge, "gate-1", " Ready ");
    kedge.apply(APP).ok();
    pod_runs(&kedge);
    let since = ready_since(&kedge);

    let connected = |n: usize| metric(ports[n], "KubeEdge_CloudHub_connected_nodes") > 0.5;
    let serving = wait_for("the edge connected", || {
        (0..2).find(|n| connected(*n)).ok_or_else(|| "to none".to_owned())
    });
    let other = 1 - serving;
    replicas.remove(serving).kill();
    let patch = r#"{"data": {"list": "B-KE 3"}}"#;
    kedge
        .kubectl(&["patch", "configmap", "plates", "--type=merge", "-p", patch])
        .ok();
    wait_for("the edge at the other replica", || {
        if connected(other) {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    });
    // The config map reaches the edge's store through the replica that is left.
    wait_for("an acknowledgement", || {
        let (_, text) = get(ports[other].monitor, "/metrics").unwrap_or_default();
        let counts = text
            .lines()
            .filter_map(|line| line.strip_prefix("kedge_cloudhub_ack_seconds_count"));
        let counts: Vec<&str> = counts.filter_map(|line| line.rsplit(' ').next()).collect();
        if counts.iter().any(|count| *count != "0") {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    });
    node_is(&kedge, "gate-1", " Ready ");
    assert_eq!(ready_since(&kedge), since, "the node was ready all the time");
}

/// Since when the node is ready: it changes with every flip.
fn ready_since(kedge: &Kedge) -> String {
    let path = "jsonpath={.status.conditions[?(@.type=='Ready')].lastTransitionTime}";
    kedge.kubectl(&["get", "node", "gate-1", "-o", path]).ok()
}
