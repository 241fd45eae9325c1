//! Pods as the API prints them: nothing that the edge does not know fails one, and nothing of one is lost.

use kedge_api::{Affinity, NodeSelector, PersistentVolume, Pod, VolumeAttachment};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One of everything that a pod may say, as the API server of 1.32 prints it.
fn everything() -> Value {
    let profile = json!({ "type": "Localhost", "localhostProfile": "p.json" });
    let probe = |kind: &str, handler: Value| {
        let mut probe = json!({ "failureThreshold": 3, "initialDelaySeconds": 1, "periodSeconds": 10, "successThreshold": 1,
            "terminationGracePeriodSeconds": 5, "timeoutSeconds": 1 });
        probe[kind] = handler;
        probe
    };
    let container = json!({
        "name": "c", "image": "web:1", "command": ["a"], "args": ["b"], "workingDir": "/w",
        "ports": [{ "name": "http", "containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1", "protocol": "TCP" }],
        "envFrom": [{ "prefix": "P_", "secretRef": { "name": "s", "optional": true } }],
        "env": [{ "name": "A", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "status.podIP" } } }],
        "resources": { "limits": { "cpu": "1" }, "requests": { "cpu": "500m" }, "claims": [{ "name": "gpu" }] },
        "resizePolicy": [{ "resourceName": "cpu", "restartPolicy": "NotRequired" }],
        "volumeMounts": [{ "name": "v", "mountPath": "/v", "subPath": "x", "readOnly": true,
            "mountPropagation": "HostToContainer", "recursiveReadOnly": "IfPossible" }],
        "volumeDevices": [{ "name": "d", "devicePath": "/dev/x" }],
        "livenessProbe": probe("exec", json!({ "command": ["x"] })),
        "readinessProbe": probe("httpGet", json!({ "path": "/", "port": "http", "scheme": "HTTPS", "httpHeaders": [{ "name": "X", "value": "1" }] })),
        "startupProbe": probe("grpc", json!({ "port": 1, "service": "s" })),
        "lifecycle": { "postStart": { "exec": { "command": ["hi"] } }, "preStop": { "sleep": { "seconds": 3 } } },
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent", "stdin": true, "stdinOnce": true, "tty": true,
        "securityContext": { "privileged": true, "procMount": "Unmasked", "seccompProfile": profile, "appArmorProfile": profile,
            "seLinuxOptions": { "user": "u", "role": "r", "type": "t", "level": "l" },
            "windowsOptions": { "hostProcess": false } },
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "namespace": "default", "uid": "u1" },
        "spec": {
            "volumes": [
                { "name": "v", "persistentVolumeClaim": { "claimName": "claim" } },
                { "name": "csi", "csi": { "driver": "d", "volumeAttributes": { "a": "b" }, "nodePublishSecretRef": { "name": "s" } } },
                { "name": "nfs", "nfs": { "server": "s", "path": "/p", "readOnly": true } },
                { "name": "image", "image": { "reference": "r", "pullPolicy": "Always" } },
                { "name": "own", "ephemeral": { "volumeClaimTemplate": { "spec": { "accessModes": ["ReadWriteOnce"] } } } },
                { "name": "odd", "glusterfs": { "path": "x" } },
            ],
            "initContainers": [{ "name": "side", "image": "s:1", "restartPolicy": "Always", "resources": {} }],
            "containers": [container],
            "ephemeralContainers": [{ "name": "debug", "image": "d:1", "targetContainerName": "c", "resources": {} }],
            "restartPolicy": "OnFailure",
            "hostUsers": false, "setHostnameAsFQDN": true, "subdomain": "db", "os": { "name": "linux" },
            "runtimeClassName": "kata", "overhead": { "cpu": "100m" },
            "priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never",
            "readinessGates": [{ "conditionType": "example.com/open" }],
            "securityContext": { "fsGroup": 1, "fsGroupChangePolicy": "OnRootMismatch", "supplementalGroupsPolicy": "Merge",
                "sysctls": [{ "name": "kernel.shm_rmid_forced", "value": "1" }], "seLinuxChangePolicy": "Recursive" },
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "a", "operator": "Exists" }] }] },
                    "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 1, "preference": {} }],
                },
                "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": "zone" }] },
            },
            "topologySpreadConstraints": [{ "maxSkew": 1 }], "schedulingGates": [{ "name": "g" }],
            "somethingOfTomorrow": { "deep": [1, 2, { "x": null }] },
        },
    })
}

#[test]
fn nothing_of_a_specification_is_lost() {
    let pod: Pod = serde_json::from_value(everything()).unwrap();
    let printed = serde_json::to_value(&pod).unwrap();
    assert_eq!(printed["spec"], everything()["spec"]);
    assert_eq!(printed["kind"], "Pod");
    assert!(pod.spec.volumes[5].other.contains_key("glusterfs"));
    let names: Vec<&str> = pod.all_containers().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["side", "c", "debug"]);
}

/// Go prints empty lists as `null` in places.
#[test]
fn nothing_is_read_like_an_absent_field() {
    let text = r#"{ "metadata": { "name": "web", "labels": null, "creationTimestamp": null }, "spec": {
        "containers": [{ "name": "c", "image": null, "resources": null, "ports": null, "tty": null, "volumeMounts": null }],
        "initContainers": null, "ephemeralContainers": null, "overhead": null, "readinessGates": null, "restartPolicy": null,
        "securityContext": { "sysctls": null, "supplementalGroups": null } }, "status": { "conditions": null } }"#;
    let pod: Pod = serde_json::from_str(text).unwrap();
    assert_eq!(pod.spec.containers[0].name, "c");
    assert!(pod.spec.overhead.is_empty());
}

#[test]
fn selectors_of_nodes() {
    let labels = BTreeMap::from([
        ("zone".to_owned(), "a".to_owned()),
        ("cores".to_owned(), "8".to_owned()),
    ]);
    let matches = |terms: Value| {
        let selector: NodeSelector = serde_json::from_value(json!({ "nodeSelectorTerms": terms })).unwrap();
        selector.matches("edge-1", &labels)
    };
    let one = |key: &str, operator: &str, values: Value| json!([{ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }]);
    let table = [
        (one("zone", "In", json!(["a", "b"])), true),
        (one("zone", "In", json!(["b"])), false),
        (one("zone", "NotIn", json!(["b"])), true),
        (one("none", "NotIn", json!(["b"])), true),
        (one("zone", "Exists", json!(null)), true),
        (one("none", "DoesNotExist", json!([])), true),
        (one("cores", "Gt", json!(["4"])), true),
        (one("cores", "Lt", json!(["8"])), false),
        (one("zone", "Gt", json!(["4"])), false),
        (one("zone", "Unheard", json!([])), false),
        (
            json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["edge-1"] }] }]),
            true,
        ),
        (
            json!([{ "matchFields": [{ "key": "metadata.uid", "operator": "Exists" }] }]),
            false,
        ),
        (json!([{}]), false),
        (json!([]), false),
    ];
    for (terms, want) in table {
        assert_eq!(matches(terms.clone()), want, "{terms}");
    }
    let affinity: Affinity = serde_json::from_value(json!({ "podAffinity": { "x": 1 } })).unwrap();
    assert!(affinity.node_affinity.is_none());
    assert_eq!(
        serde_json::to_value(&affinity).unwrap(),
        json!({ "podAffinity": { "x": 1 } })
    );
}

#[test]
fn volumes_of_the_cluster() {
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": { "name": "pv" },
        "spec": { "capacity": { "storage": "1Gi" }, "csi": { "driver": "d", "volumeHandle": "h", "nodeStageSecretRef": { "name": "s", "namespace": "n" } },
            "claimRef": { "namespace": "default", "name": "claim", "uid": "u" }, "persistentVolumeReclaimPolicy": "Delete" },
    }))
    .unwrap();
    let csi = volume.spec.csi.unwrap();
    assert_eq!(
        (
            csi.volume_handle.as_str(),
            csi.node_stage_secret_ref.unwrap().namespace.as_str()
        ),
        ("h", "n")
    );
    let attachment: VolumeAttachment = serde_json::from_value(json!({
        "metadata": { "name": "va" }, "spec": { "attacher": "d", "nodeName": "n", "source": {} },
        "status": { "attached": true, "attachmentMetadata": { "devicePath": "/dev/x" } },
    }))
    .unwrap();
    assert!(attachment.status.attached);
}
