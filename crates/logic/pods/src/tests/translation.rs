use super::{config, pod};
use crate::translate::{self, Allocated, Inputs, MountSource, Objects};
use crate::{Config, Swap, qos_class};
use expect_test::expect;
use kedge_api::QosClass;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::LazyLock;

static NOTHING: LazyLock<Allocated> = LazyLock::new(Allocated::default);

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
        image_username: None,
        allocated: &NOTHING,
        target: None,
        recursive_read_only: true,
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
            { "name": "AFTER", "value": "a circle: $(LATE), $(AFTER)" },
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
                "AFTER=a circle: $(AFTER), $(AFTER)",
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
                    host_path: "/pods/u1/v/a/b",
                    container_path: "/data",
                    read_only: true,
                    recursive_read_only: false,
                    propagation: Private,
                },
                Mount {
                    host_path: "/pods/u1/etc-hosts",
                    container_path: "/etc/hosts",
                    read_only: false,
                    recursive_read_only: false,
                    propagation: Private,
                },
                Mount {
                    host_path: "/pods/u1/containers/c/2.termination-log",
                    container_path: "/dev/termination-log",
                    read_only: false,
                    recursive_read_only: false,
                    propagation: Private,
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
                    -997,
                ),
                cpuset_cpus: None,
                cpuset_mems: None,
                hugepages: {},
                unified: {},
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
            "container has runAsNonRoot and image will run as root (pod: \"web_default(u1)\", container: c)",
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
    let made = translate::sandbox(&config, &pod, 0).unwrap();
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

/// The values were computed by the official agent's own library.
#[test]
fn hashes_are_those_of_a_kubelet() {
    let table = [
        ("test_container", "foo/image:v1", "8e45cbd0"),
        ("web", "busybox", "470421b4"),
        ("app", "registry.example.com/team/app:1.2.3", "4e485ad"),
        ("c-1", "a@sha256:0123", "272749a1"),
    ];
    for (name, image, hash) in table {
        let pod = pod(
            "p",
            "u",
            json!({ "containers": [{ "name": name, "image": image }] }),
        );
        assert_eq!(translate::spec_hash(&pod.spec.containers[0]), hash, "{name}");
    }
}

fn made(
    config: &Config,
    spec: serde_json::Value,
) -> Result<kedge_containers::ContainerConfig, crate::Refusal> {
    made_by(true, config, spec)
}

/// `able`: the runtime makes recursive read-only mounts.
fn made_by(
    able: bool,
    config: &Config,
    spec: serde_json::Value,
) -> Result<kedge_containers::ContainerConfig, crate::Refusal> {
    let pod = pod("web", "u1", spec);
    let objects = Objects::default();
    let path = |name: &str| MountSource::Path {
        path: format!("/pods/u1/{name}").into(),
        read_only: false,
    };
    let disk = MountSource::Block {
        path: "/dev/loop7".into(),
        read_only: false,
    };
    let volumes = BTreeMap::from([("v".to_owned(), path("v")), ("disk".to_owned(), disk)]);
    let ips = ["10.0.0.5".to_owned()];
    let inputs = Inputs {
        recursive_read_only: able,
        ..inputs(config, &pod, &objects, &volumes, &ips)
    };
    translate::container(&inputs, &pod.spec.containers[0], 1)
}

#[test]
fn security() {
    let config = Config {
        seccomp_dir: "/seccomp".into(),
        ..config()
    };
    let spec = json!({
        "shareProcessNamespace": true,
        "securityContext": {
            "runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000, "supplementalGroups": [4000, 3000],
            "seccompProfile": { "type": "RuntimeDefault" },
            "seLinuxOptions": { "level": "s0:c1" },
        },
        "containers": [{ "name": "c", "image": "web:1", "securityContext": {
            "runAsUser": 1001, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "seccompProfile": { "type": "Localhost", "localhostProfile": "profiles/web.json" },
            "appArmorProfile": { "type": "Localhost", "localhostProfile": "web" },
        } }],
    });
    expect![[r#"
        Security {
            user: Some(
                1001,
            ),
            group: Some(
                2000,
            ),
            supplemental_groups: [
                3000,
                4000,
            ],
            run_as_non_root: false,
            read_only_root: true,
            privileged: false,
            allow_privilege_escalation: false,
            add_capabilities: [
                "NET_ADMIN",
            ],
            drop_capabilities: [
                "ALL",
            ],
            seccomp: Localhost(
                "/seccomp/profiles/web.json",
            ),
            apparmor: Some(
                Localhost(
                    "web",
                ),
            ),
            selinux: Some(
                Selinux {
                    user: "",
                    role: "",
                    type_: "",
                    level: "s0:c1",
                },
            ),
            proc_unmasked: false,
            pid: Pod,
        }
    "#]]
    .assert_debug_eq(&made(&config, spec).unwrap().security);
    let refused = |context: serde_json::Value| {
        let container = json!({ "name": "c", "image": "web:1", "securityContext": context });
        made(&config, json!({ "containers": [container] }))
            .unwrap_err()
            .message
    };
    let told = [
        refused(json!({ "seccompProfile": { "type": "Localhost" } })),
        refused(json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": "../../etc/passwd" } })),
        refused(json!({ "appArmorProfile": { "type": "Best" } })),
        refused(json!({ "runAsNonRoot": true, "runAsUser": 0 })),
        refused(json!({ "runAsUser": -1 })),
    ];
    expect![[r#"
        [
            "localhostProfile must be set if seccompProfile type is Localhost.",
            "seccomp profile \"../../etc/passwd\" is not below the node's profiles",
            "AppArmor profile type \"Best\" is not known",
            "container's runAsUser breaks non-root policy (pod: \"web_default(u1)\", container: c)",
            "runAsUser -1 is not a user or group",
        ]
    "#]]
    .assert_debug_eq(&told);
}

#[test]
fn mounts_devices_and_what_others_look_for() {
    let config = config();
    let spec = json!({ "terminationGracePeriodSeconds": 7, "containers": [{
        "name": "c", "image": "web:1",
        "ports": [{ "name": "http", "containerPort": 80, "protocol": "TCP" }],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "lifecycle": { "preStop": { "exec": { "command": ["bye"] } } },
        "env": [{ "name": "WHERE", "value": "a/b" }],
        "volumeMounts": [
            { "name": "v", "mountPath": "/shared", "mountPropagation": "Bidirectional" },
            { "name": "v", "mountPath": "/frozen", "readOnly": true, "recursiveReadOnly": "IfPossible" },
            { "name": "v", "mountPath": "/expr", "subPathExpr": "x/$(WHERE)" },
        ],
        "volumeDevices": [{ "name": "disk", "devicePath": "/dev/xvda" }],
    }] });
    let made_one = made(&config, spec).unwrap();
    let mounts: Vec<String> = made_one
        .mounts
        .iter()
        .map(|m| {
            let rest = (m.read_only, m.recursive_read_only, m.propagation);
            format!(
                "{} on {} {rest:?}",
                m.host_path.display(),
                m.container_path.display()
            )
        })
        .collect();
    expect![[r#"
        (
            [
                "/pods/u1/v on /shared (false, false, Bidirectional)",
                "/pods/u1/v on /frozen (true, true, Private)",
                "/pods/u1/v/x/a/b on /expr (false, false, Private)",
                "/pods/u1/etc-hosts on /etc/hosts (false, false, Private)",
                "/pods/u1/containers/c/1.termination-log on /dev/termination-log (false, false, Private)",
            ],
            [
                Device {
                    host_path: "/dev/loop7",
                    container_path: "/dev/xvda",
                    permissions: "mrw",
                },
            ],
            {
                "io.kubernetes.container.name": "c",
                "io.kubernetes.pod.name": "web",
                "io.kubernetes.pod.namespace": "default",
                "io.kubernetes.pod.uid": "u1",
            },
            {
                "io.kubernetes.container.hash": "2ceffeba",
                "io.kubernetes.container.ports": "[{\"name\":\"http\",\"containerPort\":80,\"protocol\":\"TCP\"}]",
                "io.kubernetes.container.preStopHandler": "{\"exec\":{\"command\":[\"bye\"]}}",
                "io.kubernetes.container.restartCount": "1",
                "io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
                "io.kubernetes.container.terminationMessagePolicy": "FallbackToLogsOnError",
                "io.kubernetes.pod.terminationGracePeriod": "7",
            },
            "c/1.log",
        )
    "#]].assert_debug_eq(&(mounts, made_one.devices, made_one.labels, made_one.annotations, made_one.log_path));
    let refused = |mount: serde_json::Value| {
        let container = json!({ "name": "c", "image": "web:1", "volumeMounts": [mount] });
        made_by(false, &Config::default(), json!({ "containers": [container] }))
            .unwrap_err()
            .message
    };
    let told = [
        refused(json!({ "name": "v", "mountPath": "/x", "subPathExpr": "$(NOBODY)" })),
        refused(json!({ "name": "v", "mountPath": "/x", "readOnly": true, "recursiveReadOnly": "Enabled" })),
        refused(json!({ "name": "disk", "mountPath": "/x" })),
    ];
    expect![[r#"
        [
            "missing value for \"NOBODY\" in subPathExpr \"$(NOBODY)\"",
            "failed to resolve recursive read-only mode: volume \"v\" requested recursive read-only mode, but it is not supported by the runtime",
            "volume disk is a block device, which volumeDevices names and not volumeMounts",
        ]
    "#]].assert_debug_eq(&told);
}

#[test]
fn resources_and_scores() {
    let config = Config {
        memory_capacity_bytes: 1 << 30,
        cgroup_v2: true,
        huge_page_sizes: vec!["2MB".to_owned()],
        pod_pids_max: Some(100),
        memory_throttling_permille: Some(900),
        ..config()
    };
    let line = |spec: serde_json::Value| {
        let pod = pod("p", "u", spec);
        let sandbox = translate::sandbox(&config, &pod, 0).unwrap();
        let own = made(&config, serde_json::to_value(&pod.spec).unwrap())
            .unwrap()
            .resources;
        let one = |r: &kedge_containers::Resources| {
            format!(
                "cpu {:?}/{:?}/{:?} memory {:?} pids {:?} oom {:?} pages {:?} {:?}",
                r.cpu_shares,
                r.cpu_quota_us,
                r.cpu_period_us,
                r.memory_bytes_max,
                r.pids_max,
                r.oom_score_adj,
                r.hugepages,
                r.unified
            )
        };
        format!(
            "{}\n  pod {}\n  container {}",
            sandbox.cgroup_parent,
            one(&sandbox.resources),
            one(&own)
        )
    };
    let with = |resources: serde_json::Value| json!({ "containers": [{ "name": "c", "image": "i", "resources": resources }] });
    let lines = [
        line(with(json!({}))),
        line(with(json!({ "limits": { "cpu": "1", "memory": "512Mi" } }))),
        line(with(
            json!({ "requests": { "cpu": "250m", "memory": "256Mi" }, "limits": { "memory": "512Mi", "hugepages-2Mi": "4Mi" } }),
        )),
        line(json!({
            "priorityClassName": "system-node-critical",
            "overhead": { "cpu": "100m", "memory": "64Mi" },
            "initContainers": [
                { "name": "side", "image": "s", "restartPolicy": "Always", "resources": { "requests": { "cpu": "500m" } } },
                { "name": "init", "image": "i", "resources": { "requests": { "cpu": "2" } } },
            ],
            "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": "1" } } }],
        })),
    ];
    expect![[r#"
        besteffort/podu
          pod cpu Some(2)/None/None memory None pids Some(100) oom Some(-998) pages {"2MB": 0} {}
          container cpu Some(2)/None/None memory None pids None oom Some(1000) pages {"2MB": 0} {"memory.oom.group": "1"}
        podu
          pod cpu Some(1024)/Some(100000)/Some(100000) memory Some(536870912) pids Some(100) oom Some(-998) pages {"2MB": 0} {}
          container cpu Some(1024)/Some(100000)/Some(100000) memory Some(536870912) pids None oom Some(-997) pages {"2MB": 0} {"memory.oom.group": "1"}
        burstable/podu
          pod cpu Some(256)/None/None memory Some(536870912) pids Some(100) oom Some(-998) pages {"2MB": 4194304} {}
          container cpu Some(256)/None/None memory Some(536870912) pids None oom Some(750) pages {"2MB": 4194304} {"memory.high": "510025728", "memory.min": "268435456", "memory.oom.group": "1"}
        burstable/podu
          pod cpu Some(2662)/None/None memory None pids Some(100) oom Some(-998) pages {"2MB": 0} {}
          container cpu Some(1024)/None/None memory None pids None oom Some(-997) pages {"2MB": 0} {"memory.oom.group": "1"}
    "#]].assert_eq(&(lines.join("\n") + "\n"));
}

#[test]
fn swap_is_divided_as_memory_is_promised() {
    let told = |swap: Option<Swap>, resources: serde_json::Value, priority: i32| {
        let config = Config {
            swap,
            cgroup_v2: true,
            memory_capacity_bytes: 4 << 30,
            ..config()
        };
        let container = json!({ "name": "c", "image": "i", "resources": resources });
        let made = made(
            &config,
            json!({ "priority": priority, "containers": [container] }),
        )
        .unwrap();
        made.resources.unified.get("memory.swap.max").cloned()
    };
    let limited = Some(Swap::Limited { bytes: 1 << 30 });
    let quarter = json!({ "requests": { "memory": "1Gi" } });
    let table = [
        ("not divided", told(None, quarter.clone(), 0)),
        ("NoSwap", told(Some(Swap::None), quarter.clone(), 0)),
        ("burstable", told(limited, quarter.clone(), 0)),
        (
            "burstable below its limit",
            told(
                limited,
                json!({ "requests": { "memory": "1Gi" }, "limits": { "memory": "2Gi" } }),
                0,
            ),
        ),
        (
            "may use what it is promised",
            told(
                limited,
                json!({ "requests": { "memory": "1Gi", "cpu": "1" }, "limits": { "memory": "1Gi" } }),
                0,
            ),
        ),
        ("best effort", told(limited, json!({}), 0)),
        ("of the system", told(limited, quarter, 2_000_000_000)),
    ];
    let lines: Vec<String> = table
        .iter()
        .map(|(what, max)| format!("{what}: {max:?}"))
        .collect();
    expect![[r#"
        not divided: None
        NoSwap: Some("0")
        burstable: Some("268435456")
        burstable below its limit: Some("268435456")
        may use what it is promised: Some("0")
        best effort: Some("0")
        of the system: Some("0")
    "#]]
    .assert_eq(&(lines.join("\n") + "\n"));
}

/// What refers to itself or around is taken literally or refused, and never turns in circles.
#[test]
fn references_that_go_around_end() {
    let told = |env: serde_json::Value, expression: &str| {
        let mount = json!({ "name": "v", "mountPath": "/v", "subPathExpr": expression });
        let container =
            json!({ "name": "c", "image": "i", "env": env, "args": ["$(A)"], "volumeMounts": [mount] });
        match made(&config(), json!({ "containers": [container] })) {
            Ok(made) => format!(
                "{:?} {:?} {}",
                made.env,
                made.args,
                made.mounts[0].host_path.display()
            ),
            Err(refusal) => format!("{}: {}", refusal.reason, refusal.message),
        }
    };
    let around = json!([{ "name": "A", "value": "$(B)" }, { "name": "B", "value": "$(A)" }]);
    let itself = json!([{ "name": "A", "value": "x$(A)" }]);
    let twice = json!([{ "name": "A", "value": "1" }, { "name": "A", "value": "$(A)2" }]);
    let lines = [
        told(around.clone(), "$(B)"),
        told(itself, "$(A)"),
        told(twice, "$(A)"),
        told(json!([]), "$(A)"),
        told(around, "$(A)/../$(B)"),
    ];
    expect![[r#"
        [("A", "$(B)"), ("B", "$(B)")] ["$(B)"] /pods/u1/v/$(B)
        [("A", "x$(A)")] ["x$(A)"] /pods/u1/v/x$(A)
        [("A", "12")] ["12"] /pods/u1/v/12
        CreateContainerConfigError: missing value for "A" in subPathExpr "$(A)"
        CreateContainerConfigError: subPath "$(B)/../$(B)" leaves its volume
    "#]]
    .assert_eq(&(lines.join("\n") + "\n"));
}

#[test]
fn host_names_and_hosts() {
    let config = config();
    let spec = json!({
        "subdomain": "db", "setHostnameAsFQDN": true, "runtimeClassName": "kata",
        "hostAliases": [{ "ip": "192.0.2.1", "hostnames": ["a", "b"] }],
        "containers": [{ "name": "c", "image": "i", "ports": [{ "containerPort": 80, "hostPort": 8080 }, { "containerPort": 81 }] }],
    });
    let named = pod("web", "u1", spec);
    let made = translate::sandbox(&config, &named, 0).unwrap();
    let hosts = translate::hosts_file(&config, &named, &["10.0.0.5".to_owned()], "127.0.0.1 node\n");
    let mut on_host = named.clone();
    on_host.spec.host_network = true;
    let of_node = translate::hosts_file(&config, &on_host, &[], "127.0.0.1 node\n");
    expect![[r##"
        (
            "web.db.default.svc.cluster.local",
            "kata",
            [
                PortMapping {
                    protocol: Tcp,
                    container_port: 80,
                    host_port: 8080,
                    host_ip: None,
                },
            ],
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n10.0.0.5\tweb.db.default.svc.cluster.local\tweb\n\n# Entries added by HostAliases.\n192.0.2.1\ta\tb\n",
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 node\n\n# Entries added by HostAliases.\n192.0.2.1\ta\tb\n",
        )
    "##]].assert_debug_eq(&(made.hostname, made.handler, made.ports, hosts, of_node));
    let long = "x".repeat(60);
    let refusal = translate::sandbox(
        &config,
        &pod(
            &long,
            "u1",
            json!({ "subdomain": "db", "setHostnameAsFQDN": true }),
        ),
        0,
    );
    let of_own = json!({ "hostUsers": false, "hostPID": true });
    let other = translate::sandbox(&config, &pod("web", "u1", of_own), 0);
    expect![[r#"
        [
            "Failed to construct FQDN from Pod hostname and cluster domain, FQDN xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.db.default.svc.cluster.local is too long (64 characters is the max, 89 characters requested)",
            "a pod with users of its own (hostUsers: false) cannot have hostPID",
        ]
    "#]].assert_debug_eq(&[refusal.unwrap_err().message, other.unwrap_err().message]);
}

#[test]
fn fields_as_go_prints_them() {
    let config = config();
    let mut pod = pod(
        "web",
        "u1",
        json!({ "containers": [{ "name": "c", "image": "i" }] }),
    );
    pod.metadata
        .labels
        .insert("a".to_owned(), "say \"hi\"\n\u{7}é".to_owned());
    pod.metadata.labels.insert("b".to_owned(), "2".to_owned());
    let objects = Objects::default();
    let volumes = BTreeMap::new();
    let inputs = inputs(&config, &pod, &objects, &volumes, &[]);
    let text = |path: &str| translate::field(&inputs, path).unwrap();
    let told = [
        text("metadata.labels"),
        text("metadata.labels['b']"),
        text("status.hostIPs"),
        text("spec.serviceAccountName"),
    ];
    expect![[r#"
        [
            "a=\"say \\\"hi\\\"\\n\\aé\"\nb=\"2\"",
            "2",
            "192.0.2.7",
            "default",
        ]
    "#]]
    .assert_debug_eq(&told);
}
