use super::*;
use crate::kinds::Registry;
use expect_test::{Expect, expect};

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().unwrap()
}

fn check(resource: &str, mut object: Value, expected: Expect) {
    let kind = Registry::builtin().by_group_resource(resource).unwrap();
    meta::set_default(&mut object, &["metadata", "name"], "a".into());
    meta::set_default(
        &mut object,
        &["metadata", "creationTimestamp"],
        "2026-11-21T09:55:00Z".into(),
    );
    let table = table(&kind, [&object], json!({}), IncludeObject::None, true, now());
    let heads = meta::items(&table, &["columnDefinitions"]);
    let cells = meta::items(&table["rows"][0], &["cells"]);
    assert_eq!(heads.len(), cells.len());
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let line: Vec<_> = heads
        .iter()
        .zip(cells)
        .map(|(h, c)| format!("{}={}", text(&h["name"]), text(c)))
        .collect();
    expected.assert_eq(&line.join(" | "));
}

fn status(pod: Value) -> String {
    super::pod::phase(&pod, now())
}

#[test]
fn pod_lines() {
    let pod = json!({
        "spec": {"nodeName": "edge-1", "containers": [{"name": "a"}, {"name": "b"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.2", "containerStatuses": [
            {"name": "a", "ready": true, "restartCount": 2, "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2026-11-21T09:59:00Z"}}},
            {"name": "b", "ready": false, "restartCount": 0, "state": {"running": {}}}]},
    });
    check(
        "pods",
        pod,
        expect![
            "Name=a | Ready=1/2 | Status=Running | Restarts=2 (60s ago) | Age=5m | IP=10.0.0.2 | Node=edge-1 | Nominated Node=<none> | Readiness Gates=<none>"
        ],
    );
}

#[test]
fn pod_states() {
    let with =
        |state: Value| json!({"status": {"phase": "Running", "containerStatuses": [{"state": state}]}});
    assert_eq!(status(json!({"status": {"phase": "Pending"}})), "Pending");
    assert_eq!(
        status(with(json!({"waiting": {"reason": "CrashLoopBackOff"}}))),
        "CrashLoopBackOff"
    );
    assert_eq!(
        status(with(
            json!({"terminated": {"reason": "Completed", "exitCode": 0}})
        )),
        "Completed"
    );
    assert_eq!(status(with(json!({"terminated": {"exitCode": 3}}))), "ExitCode:3");
    assert_eq!(status(with(json!({"terminated": {"signal": 9}}))), "Signal:9");
    assert_eq!(
        status(json!({"metadata": {"deletionTimestamp": "x"}, "status": {"phase": "Running"}})),
        "Terminating"
    );
    assert_eq!(
        status(json!({"status": {"phase": "Failed", "reason": "Evicted"}})),
        "Evicted"
    );
    let init = json!({"spec": {"initContainers": [{"name": "i"}]}, "status": {"phase": "Pending",
        "initContainerStatuses": [{"name": "i", "state": {"running": {}}}],
        "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}});
    assert_eq!(status(init), "Init:0/1");
    let failing = json!({"spec": {"initContainers": [{"name": "i"}]}, "status": {"phase": "Pending",
        "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}});
    assert_eq!(status(failing), "Init:Error");
}

#[test]
fn other_lines() {
    let node = json!({
        "metadata": {"labels": {"node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/agent": ""}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.9"}],
            "nodeInfo": {"kubeletVersion": "v1.32.10-kubeedge-v1.23.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "kedge://0.1"}},
    });
    check(
        "nodes",
        node,
        expect![
            "Name=a | Status=Ready,SchedulingDisabled | Roles=agent,edge | Age=5m | Version=v1.32.10-kubeedge-v1.23.0 | Internal-IP=10.0.0.9 | External-IP=<none> | OS-Image=Debian | Kernel-Version=6.1 | Container-Runtime=kedge://0.1"
        ],
    );
    let deployment = json!({
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i:1"}]}}},
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2},
    });
    check(
        "deployments.apps",
        deployment,
        expect![
            "Name=a | Ready=2/3 | Up-to-date=3 | Available=2 | Age=5m | Containers=c | Images=i:1 | Selector=app=web"
        ],
    );
    let service = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}});
    check(
        "services",
        service,
        expect![
            "Name=a | Type=NodePort | Cluster-IP=10.96.0.1 | External-IP=<none> | Port(s)=80:30080/TCP | Age=5m | Selector=<none>"
        ],
    );
    let event = json!({"type": "Normal", "reason": "Started", "message": "Started container\n", "involvedObject": {"kind": "Pod", "name": "web"}, "lastTimestamp": "2026-11-21T09:59:30Z", "count": 3});
    check(
        "events",
        event,
        expect![
            "Last Seen=30s | Type=Normal | Reason=Started | Object=pod/web | Subobject= | Source= | Message=Started container | First Seen=5m | Count=3 | Name=a"
        ],
    );
    check(
        "configmaps",
        json!({"data": {"a": "b"}, "binaryData": {"c": ""}}),
        expect!["Name=a | Data=2 | Age=5m"],
    );
    check(
        "volumeattachments.storage.k8s.io",
        json!({}),
        expect!["Name=a | Age=5m"],
    );
}

#[test]
fn ages() {
    let ages: Vec<_> = [
        -5, -1, 0, 119, 120, 601, 10_800, 30_000, 172_800, 1_000_000, 63_072_000,
    ]
    .into_iter()
    .map(duration)
    .collect();
    expect![[r#"["<invalid>", "0s", "0s", "119s", "2m", "10m", "3h", "8h", "2d", "11d", "2y"]"#]]
        .assert_eq(&format!("{ages:?}"));
}

#[test]
fn who_wants_a_table() {
    assert!(wanted(
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
    ));
    assert!(!wanted("application/json"));
    assert!(!wanted(
        "application/json,application/json;as=Table;v=v1;g=meta.k8s.io"
    ));
}
