use super::{config, pod};
use crate::translate::{self, Inputs, MountSource, Objects};
use crate::{Config, qos_class};
use expect_test::expect;
use kedge_api::QosClass;
use serde_json::json;
use std::collections::BTreeMap;

fn inputs<'a>(
    config: &'a Config,
    pod: &'a kedge_api::Pod,
    objects: &'a Objects,
    volumes: &'a BTreeMap<String, MountSource>,
    pod_ips: &'a [String],
) -> Inputs<'a> {
    Inputs {
        config,
        pod,
        pod_ips,
        objects,
        volumes,
        image_user: Some(0),
    }
}

#[test]
fn environment_and_commands() {
    let config = Config {
        env: vec![("KUBERNETES_SERVICE_HOST".into(), "10.0.0.1".into())],
        ..config()
    };
    let pod = pod(
        "web",
        "u1",
        json!({ "containers": [{
        "name": "c", "image": "web:1",
        "command": ["run", "$(GREETING)"], "args": ["$$(GREETING)", "$(NOBODY)"],
        "resources": { "limits": { "cpu": "500m", "memory": "64Mi" } },
        "envFrom": [{ "prefix": "P_", "configMapRef": { "name": "settings" } }, { "secretRef": { "name": "none", "optional": true } }],
        "env": [
            { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            { "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "k" } } },
            { "name": "MEM", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } } },
            { "name": "GREETING", "value": "hello $(NAME)" },
            { "name": "LATE", "value": "$(AFTER)" },
            { "name": "AFTER", "value": "x" },
        ],
        "volumeMounts": [{ "name": "v", "mountPath": "/data", "subPath": "a/b", "readOnly": true }],
    }] }),
    );
    let mut objects = Objects::default();
    objects.config_maps.insert(
        "settings".into(),
        serde_json::from_value(json!({ "data": { "a": "1" } })).unwrap(),
    );
    objects.secrets.insert(
        "keys".into(),
        serde_json::from_value(json!({ "data": { "k": "c2VjcmV0" } })).unwrap(),
    );
    let source = MountSource::Path {
        path: "/pods/u1/v".into(),
        read_only: false,
    };
    let volumes = BTreeMap::from([("v".to_owned(), source)]);
    let ips = ["10.0.0.5".to_owned()];
    let inputs = inputs(&config, &pod, &objects, &volumes, &ips);
    let made = translate::container(&inputs, &pod.spec.containers[0], 2).unwrap();
    let env: Vec<String> = made
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    expect![[r#"
        (
            [
                "P_a=1",
                "NAME=web",
                "IP=10.0.0.5",
                "KEY=secret",
                "MEM=64",
                "GREETING=hello web",
                "LATE=$(AFTER)",
                "AFTER=x",
                "KUBERNETES_SERVICE_HOST=10.0.0.1",
            ],
            [
                "run",
                "hello web",
            ],
            [
                "$(GREETING)",
                "$(NOBODY)",
            ],
            [
                Mount {
                    host_path: Some(
                        "/pods/u1/v/a/b",
                    ),
                    container_path: "/data",
                    read_only: true,
                },
                Mount {
                    host_path: Some(
                        "/pods/u1/containers/c/2.termination-log",
                    ),
                    container_path: "/dev/termination-log",
                    read_only: false,
                },
            ],
            Resources {
                cpu_shares: Some(
                    512,
                ),
                cpu_quota_us: Some(
                    50000,
                ),
                cpu_period_us: Some(
                    100000,
                ),
                memory_bytes_max: Some(
                    67108864,
                ),
                pids_max: None,
                oom_score_adj: Some(
                    0,
                ),
            },
        )
    "#]]
    .assert_debug_eq(&(env, made.command, made.args, made.mounts, made.resources));
}

#[test]
fn refusals_name_what_is_missing() {
    let config = config();
    let table = [
        json!({ "env": [{ "name": "A", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "k" } } }] }),
        json!({ "envFrom": [{ "secretRef": { "name": "keys" } }] }),
        json!({ "volumeMounts": [{ "name": "nothing", "mountPath": "/x" }] }),
        json!({ "volumeMounts": [{ "name": "v", "mountPath": "/x", "subPath": "../../etc" }] }),
        json!({ "securityContext": { "runAsNonRoot": true } }),
        json!({ "env": [{ "name": "A", "valueFrom": { "fieldRef": { "fieldPath": "spec.secrets" } } }] }),
    ];
    let source = MountSource::Path {
        path: "/pods/u1/v".into(),
        read_only: false,
    };
    let volumes = BTreeMap::from([("v".to_owned(), source)]);
    let objects = Objects::default();
    let told: Vec<String> = table
        .into_iter()
        .map(|mut container| {
            container["name"] = json!("c");
            container["image"] = json!("web:1");
            let pod = pod("web", "u1", json!({ "containers": [container] }));
            let inputs = inputs(&config, &pod, &objects, &volumes, &[]);
            translate::container(&inputs, &pod.spec.containers[0], 0)
                .unwrap_err()
                .message
        })
        .collect();
    expect![[r#"
        [
            "configmap \"settings\" not found",
            "secret \"keys\" not found",
            "volume mount nothing names no volume of the pod",
            "subPath \"../../etc\" leaves its volume",
            "the container shall run as non-root, but its image runs as user 0; set runAsUser",
            "field path \"spec.secrets\" is not one that a pod can be asked for",
        ]
    "#]]
    .assert_debug_eq(&told);
}

#[test]
fn classes() {
    let class = |resources: serde_json::Value| {
        qos_class(&pod(
            "p",
            "u",
            json!({ "containers": [{ "name": "c", "image": "i", "resources": resources }] }),
        ))
    };
    assert_eq!(class(json!({})), QosClass::BestEffort);
    assert_eq!(class(json!({ "requests": { "cpu": "1" } })), QosClass::Burstable);
    assert_eq!(
        class(json!({ "limits": { "cpu": "1", "memory": "1Gi" } })),
        QosClass::Guaranteed
    );
    let both = json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "500m" } });
    assert_eq!(class(both), QosClass::Burstable);
}

#[test]
fn sandboxes() {
    let config = Config {
        cluster_dns: vec!["10.96.0.10".into()],
        cluster_domain: "cluster.local".into(),
        ..config()
    };
    let pod = pod(
        "web",
        "u1",
        json!({
            "dnsConfig": { "options": [{ "name": "ndots", "value": "2" }] },
            "hostAliases": [{ "ip": "192.0.2.1", "hostnames": ["db"] }],
            "containers": [{ "name": "c", "image": "i" }],
        }),
    );
    let made = translate::sandbox(&config, &pod, 0);
    expect![[r#"
        (
            "web",
            DnsConfig {
                servers: [
                    "10.96.0.10",
                ],
                searches: [
                    "default.svc.cluster.local",
                    "svc.cluster.local",
                    "cluster.local",
                ],
                options: [
                    "ndots:2",
                ],
            },
            [
                (
                    "192.0.2.1",
                    [
                        "db",
                    ],
                ),
            ],
            "besteffort/podu1",
            "/logs/default_web_u1",
        )
    "#]]
    .assert_debug_eq(&(
        made.hostname,
        made.dns,
        made.host_aliases,
        made.cgroup_parent,
        made.log_dir,
    ));
}
