use crate::kinds::Registry;
use crate::schema::apply_defaults;
use expect_test::{Expect, expect};
use serde_json::{Value, json};

fn check(api_version: &str, kind: &str, mut object: Value, expected: Expect) {
    let kind = Registry::builtin().lookup_kind(api_version, kind).unwrap();
    apply_defaults(&kind, &mut object);
    let errors: Vec<String> = super::object(&kind, &object)
        .iter()
        .map(ToString::to_string)
        .collect();
    expected.assert_eq(&errors.join("\n"));
}

fn change(api_version: &str, kind: &str, old: Value, new: Value, expected: Expect) {
    let kind = Registry::builtin().lookup_kind(api_version, kind).unwrap();
    let errors: Vec<String> = super::update(&kind, &new, &old)
        .iter()
        .map(ToString::to_string)
        .collect();
    expected.assert_eq(&errors.join("\n"));
}

#[test]
fn a_good_pod() {
    let pod = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"containers": [{"name": "a", "image": "b"}]}});
    check("v1", "Pod", pod, expect![""]);
}

#[test]
fn a_pod_with_all_mistakes() {
    let spec = json!({
        "restartPolicy": "Sometimes", "nodeSelector": {"-": "x"},
        "containers": [
            {"name": "A", "ports": [{"containerPort": 0}, {"containerPort": 70000, "name": "UPPER"}], "env": [{"name": ""}],
             "volumeMounts": [{"name": "nowhere", "mountPath": "/a"}, {"name": "v", "mountPath": "/a"}],
             "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}},
            {"name": "b", "image": "i", "livenessProbe": {"httpGet": {}}}, {"name": "b", "image": " j"}],
        "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}],
        "tolerations": [{"operator": "Equal"}],
    });
    check(
        "v1",
        "Pod",
        json!({"metadata": {"name": "Web", "namespace": "default"}, "spec": spec}),
        expect![[r#"
        metadata.name: Invalid value: "Web": a lowercase RFC 1123 subdomain must consist of lower case letters, digits, '-' or '.', and must start and end with a letter or digit
        spec.containers[1].livenessProbe.httpGet.port: Required value
        spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"
        spec.nodeSelector: Invalid value: "-": a name must consist of letters, digits, '-', '_' or '.', and must start and end with a letter or digit
        spec.volumes[0]: Forbidden: may not specify more than 1 volume type, found emptyDir, hostPath
        spec.containers[0].name: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case letters, digits or '-', and must start and end with a letter or digit
        spec.containers[0].image: Required value
        spec.containers[0].ports[0].containerPort: Invalid value: 0: must be between 1 and 65535, inclusive
        spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive
        spec.containers[0].ports[1].name: Invalid value: "UPPER": must contain at least one letter (a-z)
        spec.containers[0].env[0].name: Invalid value: "": a valid environment variable name must consist of printable ASCII characters other than '='
        spec.containers[0].volumeMounts[0].name: Invalid value: "nowhere": no volume of the pod has this name
        spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/a": must be unique
        spec.containers[0].resources.requests[cpu]: Invalid value: "2": must be less than or equal to cpu limit of 1
        spec.containers[2].image: Invalid value: " j": must not have leading or trailing whitespace
        spec.containers[2].name: Duplicate value: "b"
        spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when `key` is empty, which means "match all values and all keys""#]],
    );
    check(
        "v1",
        "Pod",
        json!({"metadata": {"namespace": "default"}, "spec": {}}),
        expect![[r#"
        metadata.name: Required value: name or generateName is required
        spec.containers: Required value"#]],
    );
}

#[test]
fn deployments() {
    let pod =
        json!({"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "a", "image": "b"}]}});
    let spec = json!({"replicas": -1, "selector": {"matchLabels": {"app": "web"}}, "template": pod,
        "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}});
    check(
        "apps/v1",
        "Deployment",
        json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec}),
        expect![[r#"
        spec.replicas: Invalid value: -1: must be greater than or equal to 0
        spec.template.metadata.labels: Invalid value: {"app":"db"}: `selector` does not match template `labels`
        spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0"#]],
    );
    check(
        "apps/v1",
        "Deployment",
        json!({"metadata": {"name": "web", "namespace": "default"}}),
        expect![[r#"
            spec.selector: Required value
            spec.template: Required value"#]],
    );
}

#[test]
fn others() {
    check(
        "v1",
        "Service",
        json!({"metadata": {"name": "1x", "namespace": "default"}, "spec": {"type": "Magic"}}),
        expect![[r#"
        metadata.name: Invalid value: "1x": a DNS-1035 label must consist of lower case letters, digits or '-', start with a letter, and end with a letter or digit
        spec.type: Unsupported value: "Magic": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"
        spec.ports: Required value"#]],
    );
    check(
        "v1",
        "ConfigMap",
        json!({"metadata": {"name": "c", "namespace": "default"}, "data": {"a/b": ""}}),
        expect![[
            r#"data[a/b]: Invalid value: "a/b": a valid config key must consist of letters, digits, '-', '_' or '.', and must not be '.' or start with '..'"#
        ]],
    );
    check(
        "v1",
        "Secret",
        json!({"metadata": {"name": "c", "namespace": "default"}, "type": "kubernetes.io/tls"}),
        expect![[r#"
        data[tls.crt]: Required value
        data[tls.key]: Required value"#]],
    );
    let definition = json!({"metadata": {"name": "x"}, "spec": {"group": "g.io", "names": {"plural": "devs", "kind": "Dev"}, "scope": "Global", "versions": [{"name": "v1", "served": true}]}});
    check(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        definition,
        expect![[r#"
        metadata.name: Invalid value: "x": must be spec.names.plural+"."+spec.group, "devs.g.io"
        spec.scope: Unsupported value: "Global": supported values: "Cluster", "Namespaced"
        spec.versions: Invalid value: []: must have exactly one version marked as storage version
        spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required"#]],
    );
}

#[test]
fn a_pod_with_users_of_its_own_shares_nothing_with_the_node() {
    let spec = |more: serde_json::Value| {
        let mut spec = json!({"containers": [{"name": "a", "image": "i"}], "hostUsers": false});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        json!({"metadata": {"name": "p", "namespace": "default"}, "spec": spec})
    };
    check("v1", "Pod", spec(json!({"hostNetwork": false})), expect![""]);
    check(
        "v1",
        "Pod",
        spec(json!({"hostUsers": true, "hostPID": true})),
        expect![""],
    );
    check(
        "v1",
        "Pod",
        spec(json!({
            "hostNetwork": true, "hostPID": true, "hostIPC": true,
            "containers": [{"name": "a", "image": "i", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}],
        })),
        expect![[r#"
            spec.hostNetwork: Forbidden: when `hostUsers` is false
            spec.hostPID: Forbidden: when `hostUsers` is false
            spec.hostIPC: Forbidden: when `hostUsers` is false
            spec.containers[0].volumeDevices: Forbidden: when `hostUsers` is false"#]],
    );
}

#[test]
fn drivers_of_volumes_and_classes_of_runtimes() {
    let driver = |spec: Value| json!({"metadata": {"name": "disk.csi"}, "spec": spec});
    check("storage.k8s.io/v1", "CSIDriver", driver(json!({})), expect![""]);
    check(
        "storage.k8s.io/v1",
        "CSIDriver",
        driver(json!({"fsGroupPolicy": "Some", "volumeLifecycleModes": ["Persistent", "Now"]})),
        expect![[r#"
            spec.fsGroupPolicy: Unsupported value: "Some": supported values: "File", "None", "ReadWriteOnceWithFSType"
            spec.volumeLifecycleModes[1]: Unsupported value: "Now": supported values: "Ephemeral", "Persistent""#]],
    );
    let handler = |name: &str| json!({"metadata": {"name": "vm"}, "handler": name});
    check("node.k8s.io/v1", "RuntimeClass", handler("kata"), expect![""]);
    check(
        "node.k8s.io/v1",
        "RuntimeClass",
        handler("K"),
        expect![[
            r#"handler: Invalid value: "K": a lowercase RFC 1123 label must consist of lower case letters, digits or '-', and must start and end with a letter or digit"#
        ]],
    );
    let node = |drivers: Value| json!({"spec": {"drivers": drivers}});
    let old = node(json!([{"name": "a", "nodeID": "1"}]));
    let both = node(json!([{"name": "a", "nodeID": "1"}, {"name": "b", "nodeID": "2"}]));
    change("storage.k8s.io/v1", "CSINode", old.clone(), both, expect![""]);
    change(
        "storage.k8s.io/v1",
        "CSINode",
        old,
        node(json!([{"name": "a", "nodeID": "2"}])),
        expect![[r#"CSINodeDriver: Invalid value: {"name":"a","nodeID":"2"}: field is immutable"#]],
    );
}

#[test]
fn what_may_not_change() {
    let pod = |image: &str, node: &str| json!({"spec": {"nodeName": node, "containers": [{"name": "a", "image": image}]}});
    change("v1", "Pod", pod("a", "n"), pod("b", "n"), expect![""]);
    change(
        "v1",
        "Pod",
        pod("a", "n"),
        pod("b", "m"),
        expect![
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, `spec.activeDeadlineSeconds` and `spec.tolerations` (only additions); changed: nodeName"
        ],
    );
    let set = |app: &str| json!({"spec": {"selector": {"matchLabels": {"app": app}}}});
    change(
        "apps/v1",
        "Deployment",
        set("a"),
        set("b"),
        expect![[r#"spec.selector: Invalid value: {"matchLabels":{"app":"b"}}: field is immutable"#]],
    );
    change(
        "v1",
        "ConfigMap",
        json!({"immutable": true, "data": {"a": "b"}}),
        json!({"immutable": true}),
        expect!["data: Forbidden: field is immutable when `immutable` is set"],
    );
}
