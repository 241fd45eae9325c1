use super::*;
use expect_test::{Expect, expect, expect_file};
use proptest::prelude::*;
use serde_json::Value;

fn facts() -> EdgeFacts {
    EdgeFacts {
        hostname: "edge-1".into(),
        primary_ip: "192.0.2.9".into(),
    }
}

fn read(text: &str) -> EdgeCore {
    EdgeCore::from_yaml(text, &facts()).unwrap().0
}

/// Warnings or mistakes, a line each.
fn check(text: &str, expect: Expect) {
    let shown = match EdgeCore::from_yaml(text, &facts()) {
        Ok((_, warnings)) => warnings.iter().map(|warning| format!("{warning}\n")).collect(),
        Err(mistakes) => format!("{mistakes}\n"),
    };
    expect.assert_eq(&shown);
}

fn of_kubelet(text: &str) -> String {
    format!("modules: {{edged: {{tailoredKubeletConfig: {{{text}}}}}}}")
}

#[test]
fn an_empty_file_gives_the_official_defaults() {
    let (mut config, warnings) = EdgeCore::from_yaml("", &facts()).unwrap();
    assert_eq!(warnings, []);
    // Another test looks at it.
    config.edged.effective.clear();
    expect_file!["defaults.txt"].assert_debug_eq(&config);
}

#[test]
fn the_printed_files_are_read_back() {
    for text in [EdgeCore::default_yaml(&facts()), EdgeCore::minimal_yaml(&facts())] {
        assert_eq!(read(&text), read(""), "{text}");
    }
    let six = EdgeFacts {
        primary_ip: "2001:db8::9".into(),
        ..facts()
    };
    for text in [EdgeCore::default_yaml(&six), EdgeCore::minimal_yaml(&six)] {
        let (config, _) = EdgeCore::from_yaml(&text, &six).unwrap();
        assert_eq!(config.hub.servers, ["[2001:db8::9]:10000"]);
        assert_eq!(config.hub.http_server, "https://[2001:db8::9]:10002");
    }
}

/// A file that the official EdgeCore has written back holds every key. Only what it switches on here is said.
#[test]
fn a_file_with_every_official_default_is_nearly_silent() {
    check(
        &EdgeCore::default_yaml(&facts()),
        expect![[r#"
            modules.eventBus, modules.deviceTwin have no effect in kedge: these modules are read and checked, but this version does not act on them
        "#]],
    );
}

/// Whatever value a known key has, the file is taken or refused with its path; nothing is unknown.
#[test]
fn every_official_key_is_checked() {
    let leaves = leaves();
    assert!(leaves.len() > 180, "{}", leaves.len());
    let Err(Mistakes(mistakes)) = EdgeCore::from_yaml(&all_wrong(&shape()).to_string(), &facts()) else {
        panic!("a file with nothing but mistakes was taken")
    };
    let unsaid = |path: &&String| {
        mistakes
            .iter()
            .all(|mistake| !mistake.path.starts_with(path.as_str()))
    };
    let unsaid: Vec<&String> = leaves.iter().filter(unsaid).collect();
    // A list is what these want; the items of the first mean nothing here, and those of the other may be empty.
    let lists = ["reservedMemory", "shutdownGracePeriodByPodPriority"].map(kubelet::at);
    assert_eq!(unsaid, lists.each_ref());
}

fn shape() -> Value {
    print::shape(&print::defaults())
}

/// The paths of all keys.
fn leaves() -> Vec<String> {
    let mut leaves = Vec::new();
    collect(&shape(), String::new(), &mut leaves);
    leaves
}

/// The same keys, each with a value of a type that none of them has.
fn all_wrong(shape: &Value) -> Value {
    match shape {
        // Signals have dots in their names.
        Value::Object(map) if !map.is_empty() && !map.contains_key("memory.available") => {
            let wrong = map.iter().map(|(key, value)| (key.clone(), all_wrong(value)));
            Value::Object(wrong.collect())
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => serde_json::json!([{}]),
    }
}

/// `a.b.c` and a value, as YAML.
fn nested(path: &str, value: &str) -> String {
    let keys: Vec<&str> = path.split('.').collect();
    let open: String = keys.iter().map(|key| format!("{{{key}: ")).collect();
    format!("{open}{value}{}", "}".repeat(keys.len()))
}

fn collect(value: &Value, path: String, leaves: &mut Vec<String>) {
    match value {
        // Signals have dots in their names.
        Value::Object(map) if !map.is_empty() && !path.ends_with("evictionHard") => {
            for (key, value) in map {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                collect(value, path, leaves);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => leaves.push(path),
    }
}

#[test]
fn an_operators_file() {
    let config = read(
        "
apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
modules:
  edgeHub:
    heartbeat: 5
    httpServer: https://10.0.0.1:10002
    messageQPS: 0
    token: 007
    websocket: {server: '10.0.0.1:10000, [2001:db8::1]:10000,10.0.0.1:10000', enable: true, readDeadline: 60}
  edged:
    hostnameOverride: gate-7
    nodeIP: 10.0.0.7
    nodeLabels: {site: north, floor: 3}
    seccompDefault: true
    maxPerPodContainerCount: -1
    tailoredKubeletConfig:
      containerRuntimeEndpoint: /run/crio/crio.sock
      cgroupDriver: systemd
      maxPods: 30
      containerLogMaxSize: 1Mi
      evictionHard: {memory.available: 5%, nodefs.available: 0%}
      evictionSoft: {memory.available: 300Mi}
      evictionSoftGracePeriod: {memory.available: 1m30s}
      evictionMinimumReclaim: {nodefs.available: 500Mi}
      imageMaximumGCAge: 48h
      nodeStatusMaxImages: -1
      kubeReserved: {cpu: 1, memory: 200Mi}
      podPidsLimit: 1024
      readOnlyPort: 0
      serializeImagePulls: false
      maxParallelImagePulls: 4
      shutdownGracePeriodByPodPriority: [{priority: 100, shutdownGracePeriodSeconds: 20}, {shutdownGracePeriodSeconds: 60}]
      staticPodPath: ''
      registerWithTaints: [{key: gate, effect: NoSchedule}]
  deviceTwin: {dmiSockPath: /run/kubeedge/dmi.sock, enable: false}
  edgeStream: null
kedge: {bytesPerSecond: 100000, registries: {mirrors: {docker.io: [mirror:5000]}, plainHTTP: [mirror:5000]}}
",
    );
    let kept = (
        &config.hub.servers,
        config.hub.read_deadline,
        &config.hub.token,
        config.hub.rates,
        &config.edged.node_labels,
        &config.edged.container_runtime,
        &config.edged.eviction,
        &config.edged.images,
        &config.edged.reserved.kube,
        &config.edged.shutdown,
    );
    expect_file!["operators_file.txt"].assert_debug_eq(&kept);
    assert_eq!(config.edged.log_bytes_max, 1 << 20);
    assert_eq!(config.edged.pods_max, 30);
    let mirrors = ("docker.io".to_owned(), vec!["mirror:5000".to_owned()]);
    assert_eq!(config.edged.registries.mirrors, [mirrors]);
    assert_eq!(config.edged.pod_pids_max, Some(1024));
    assert_eq!(config.edged.server.port, None);
    assert_eq!(config.edged.static_pods.path, "");
    assert_eq!(config.edged.container_gc.per_pod_max, None);
    assert_eq!(config.edged.cgroups.driver, CgroupDriver::Systemd);
    assert!(config.edged.security.seccomp_default);
    assert_eq!(config.edged.taints.len(), 1);
    assert_eq!(config.device_twin.dmi_socket_dir, "/run/kubeedge/");
}

#[test]
fn exactly_one_transport_is_dialled() {
    let read = |websocket: &str, quic: &str| {
        let text = format!(
            "modules: {{edgeHub: {{websocket: {{enable: {websocket}}}, quic: {{enable: {quic}, server: 'hub:10001', handshakeTimeout: 5}}}}}}"
        );
        match EdgeCore::from_yaml(&text, &facts()) {
            Ok((config, warnings)) => {
                assert_eq!(warnings, []);
                format!(
                    "{:?} {:?} {:?}",
                    config.hub.transport, config.hub.servers, config.hub.handshake_timeout
                )
            }
            Err(mistakes) => mistakes.to_string(),
        }
    };
    let ways = [
        ("true", "false"),
        ("false", "true"),
        ("true", "true"),
        ("false", "false"),
    ];
    let shown = ways.map(|(websocket, quic)| read(websocket, quic));
    expect![[r#"
        WebSocket ["192.0.2.9:10000"] 30s
        Quic ["hub:10001"] 5s
        the configuration has 1 mistake:
          modules.edgeHub.websocket.enable: is true and so is quic.enable; set one of them to false
        the configuration has 1 mistake:
          modules.edgeHub.websocket.enable: is false and so is quic.enable; set one of them to true"#]]
    .assert_eq(&shown.join("\n"));
}

#[test]
fn the_runtime_is_a_socket_or_one_of_our_own() {
    let shown: Vec<String> = [
        "{}",
        "{containerRuntimeEndpoint: 'unix:///run/x.sock', imageServiceEndpoint: ''}",
        "{containerRuntimeEndpoint: /run/x.sock, imageServiceEndpoint: 'unix:///run/y.sock'}",
        "{containerRuntimeEndpoint: 'kedge://embedded', imageServiceEndpoint: 'unix:///run/y.sock'}",
        "{containerRuntimeEndpoint: 'kedge://hollow'}",
        "{containerRuntimeEndpoint: ''}",
        "{containerRuntimeEndpoint: 'tcp://127.0.0.1:5'}",
    ]
    .into_iter()
    .map(|text| {
        let text = format!("modules: {{edged: {{tailoredKubeletConfig: {text}}}}}");
        match EdgeCore::from_yaml(&text, &facts()) {
            Ok((config, _)) => format!("{:?}\n", config.edged.container_runtime),
            Err(mistakes) => format!("{mistakes}\n"),
        }
    })
    .collect();
    expect![[r#"
        Cri { socket: "/run/containerd/containerd.sock", image_socket: "/run/containerd/containerd.sock" }
        Cri { socket: "/run/x.sock", image_socket: "/run/x.sock" }
        Cri { socket: "/run/x.sock", image_socket: "/run/y.sock" }
        Embedded
        Hollow
        the configuration has 1 mistake:
          modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint: unix:///run/containerd/containerd.sock or another socket of a CRI runtime is expected, or kedge://embedded for the built-in runtime, not ""
        the configuration has 1 mistake:
          modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint: unix:///run/containerd/containerd.sock or another socket of a CRI runtime is expected, or kedge://embedded for the built-in runtime, not "tcp://127.0.0.1:5"
    "#]].assert_eq(&shown.concat());
}

#[test]
fn all_mistakes_of_hub_and_modules_are_told_at_once_with_their_path() {
    check(
        "
kind: CloudCore
apiVersion: v1
database: {dataSource: edgecore.db}
featureGates: {requireAuthorisation: true}
modules:
  edgeHub:
    httpServer: http://10.0.0.1:10002
    heartbeat: 0
    messageQPS: -1
    projectID: a/b
    tlsCaFile: ca.crt
    websocket: {server: 'cloud, 10.0.0.1:99999,::1:10000', handshakeTimeout: 1s}
  edgeStream: {server: cloud}
  eventBus: {mqttMode: 3, mqttQOS: 9, mqttRetain: 2}
  metaManager: {remoteQueryTimeout: 0, metaServer: {server: 'localhost:10550', apiAudiences: x}}
  deviceTwin: {dmiSockPath: dmi.sock}
  serviceBus: {port: 0}
  dbTest: {enable: 1}
kedge: {logFormat: xml, bytesBurst: 5}
",
        expect![[r#"
            the configuration has 25 mistakes:
              kind: EdgeCore is expected, not "CloudCore"
              apiVersion: edgecore.config.kubeedge.io/v1alpha1 or edgecore.config.kubeedge.io/v1alpha2 is expected, not "v1"
              modules.edgeHub.websocket.server: host:port is expected, not "cloud"
              modules.edgeHub.websocket.server: host:port is expected, not "10.0.0.1:99999"
              modules.edgeHub.websocket.server: host:port is expected, not "::1:10000"
              modules.edgeHub.websocket.handshakeTimeout: a whole number from 1 to 86400 is expected, not "1s"
              modules.edgeHub.projectID: letters, digits, '-', '_' and '.' are expected, not "a/b"
              modules.edgeHub.httpServer: https://host:port is expected, not "http://10.0.0.1:10002"
              modules.edgeHub.tlsCaFile: an absolute path is expected, not "ca.crt"
              modules.edgeHub.heartbeat: a whole number from 1 to 3600 is expected, not 0
              modules.edgeHub.messageQPS: a whole number from 0 to 2147483647 is expected, not -1
              kedge.bytesBurst: a whole number from 65536 to 1073741824 is expected, not 5
              kedge.logFormat: text or json is expected, not "xml"
              database.dataSource: an absolute path is expected, not "edgecore.db"
              modules.edgeStream.server: host:port is expected, not "cloud"
              modules.metaManager.remoteQueryTimeout: a whole number from 1 to 3600 is expected, not 0
              modules.metaManager.metaServer.server: IP:port is expected, with a port from 1 to 65535, not "localhost:10550"
              modules.metaManager.metaServer.apiAudiences: a list of strings is expected, not "x"
              modules.eventBus.mqttMode: a whole number from 0 to 2 is expected, not 3
              modules.eventBus.mqttQOS: a whole number from 0 to 2 is expected, not 9
              modules.eventBus.mqttRetain: true or false is expected, not 2
              modules.deviceTwin.dmiSockPath: an absolute path is expected, not "dmi.sock"
              modules.serviceBus.port: a whole number from 1 to 65535 is expected, not 0
              featureGates.requireAuthorisation: is no feature gate; there are disableNodeTaskV1alpha2, moduleRestart, requireAuthorization
              modules.dbTest.enable: true or false is expected, not 1
        "#]],
    );
}

#[test]
fn all_mistakes_of_edged_are_told_at_once_with_their_path() {
    check(
        "
modules:
  edged:
    hostnameOverride: Gate_7
    nodeIP: here
    customInterfaceName: much-too-long-a-name
    nodeLabels: {site: 'north side', /x: y, example.org/ok: '', -a: b}
    minimumGCAge: 5
    tailoredKubeletConfig:
      cgroupDriver: cgroup
      clusterDNS: [dns]
      containerLogMaxSize: -1
      containerLogMaxWorkers: 0
      containerLogMonitorInterval: 1s
      cpuCFSQuotaPeriod: 2s
      cpuManagerPolicy: best
      cpuManagerPolicyOptions: {full-pcpus-only: maybe, align-by-socket: 'true', best: 'true'}
      topologyManagerPolicy: single-numa-node
      topologyManagerPolicyOptions: {max-allowable-numa-nodes: '16', closest: 'true'}
      enforceNodeAllocatable: [pods, pods, system-reserved, kube-reserved, kube-reserved-compressible, none, all]
      evictionHard: {memory.available: much, nodefs.available: 101%, disk: 5%}
      evictionSoft: {memory.available: 300Mi}
      evictionSoftGracePeriod: {memory: 1m, nodefs.available: soon}
      hairpinMode: no
      imageGCHighThresholdPercent: 50
      imageMaximumGCAge: 1m
      iptablesDropBit: 32
      kubeReserved: {cpu: -1, disk: 5Gi}
      maxParallelImagePulls: 2
      memorySwap: {swapBehavior: Unlimited}
      memoryThrottlingFactor: 1.5
      nodeLeaseDurationSeconds: 0
      nodeStatusMaxImages: -2
      oomScoreAdj: -1001
      podCIDR: 10.0.0.0
      podLogsDir: /var/../log
      registerWithTaints: [{effect: Never}, 5, {key: a, value: '-', effect: NoSchedule}]
      reservedSystemCPUs: 3-1
      shutdownGracePeriod: 500ms
      shutdownGracePeriodCriticalPods: 1m
      shutdownGracePeriodByPodPriority: [{priority: high}]
      resolvConf: resolv.conf
      staticPodPath: manifests
      syncFrequency: 60
      systemCgroups: /system
      allowedUnsafeSysctls: ['*']
",
        expect![[r#"
            the configuration has 61 mistakes:
              modules.edged.tailoredKubeletConfig.oomScoreAdj: a whole number from -1000 to 1000 is expected, not -1001
              modules.edged.tailoredKubeletConfig.evictionHard.memory.available: a size such as 100Mi or a share such as 10% is expected, not "much"
              modules.edged.tailoredKubeletConfig.evictionHard.nodefs.available: a size such as 100Mi or a share such as 10% is expected, not "101%"
              modules.edged.tailoredKubeletConfig.evictionHard.disk: is no eviction signal; there are memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree, containerfs.available, containerfs.inodesFree, pid.available, allocatableMemory.available
              modules.edged.tailoredKubeletConfig.evictionSoftGracePeriod.memory: is no eviction signal; there are memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree, containerfs.available, containerfs.inodesFree, pid.available, allocatableMemory.available
              modules.edged.tailoredKubeletConfig.evictionSoftGracePeriod.nodefs.available: a duration such as 90s is expected, not "soon"
              modules.edged.tailoredKubeletConfig.evictionSoft.memory.available: a soft threshold needs its time in evictionSoftGracePeriod
              modules.edged.tailoredKubeletConfig.syncFrequency: a duration such as 10s or 1m30s is expected, not 60
              modules.edged.tailoredKubeletConfig.iptablesDropBit: a whole number from 0 to 31 is expected, not 32
              modules.edged.tailoredKubeletConfig.hairpinMode: promiscuous-bridge or hairpin-veth or none is expected, not "false"
              modules.edged.tailoredKubeletConfig.reservedSystemCPUs: CPUs such as 0-1,3 are expected, not "3-1"
              modules.edged.tailoredKubeletConfig.kubeReserved.cpu: -1 is negative
              modules.edged.tailoredKubeletConfig.kubeReserved.disk: cannot be reserved; there are cpu, memory, ephemeral-storage, pid and hugepages-*
              modules.edged.tailoredKubeletConfig.enforceNodeAllocatable: pods stands twice
              modules.edged.tailoredKubeletConfig.enforceNodeAllocatable: system-reserved needs systemReservedCgroup
              modules.edged.tailoredKubeletConfig.enforceNodeAllocatable: kube-reserved needs kubeReservedCgroup
              modules.edged.tailoredKubeletConfig.enforceNodeAllocatable: kube-reserved-compressible needs kubeReservedCgroup
              modules.edged.tailoredKubeletConfig.enforceNodeAllocatable: none stands alone
              modules.edged.tailoredKubeletConfig.enforceNodeAllocatable: pods, system-reserved, system-reserved-compressible, kube-reserved, kube-reserved-compressible or none are expected, not "all"
              modules.edged.tailoredKubeletConfig.enforceNodeAllocatable: a reserve and its compressible part exclude each other
              modules.edged.hostnameOverride: node name "Gate_7" is not valid: a node name has 1 to 253 of a-z, 0-9, '-' and '.', and begins and ends with a letter or digit
              modules.edged.nodeIP: an IP address is expected, not "here"
              modules.edged.customInterfaceName: the name of a network interface is expected, not "much-too-long-a-name"
              modules.edged.nodeLabels.site: at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends, are expected, not "north side"
              modules.edged.nodeLabels: a label such as example.org/site is expected, not "/x"
              modules.edged.nodeLabels: a label such as example.org/site is expected, not "-a"
              modules.edged.tailoredKubeletConfig.registerWithTaints[0]: a key such as example.org/site is expected, not ""
              modules.edged.tailoredKubeletConfig.registerWithTaints[0]: NoSchedule or PreferNoSchedule or NoExecute is expected as effect, not "Never"
              modules.edged.tailoredKubeletConfig.registerWithTaints[1]: a taint {key, value, effect} is expected
              modules.edged.tailoredKubeletConfig.registerWithTaints[2]: at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends, are expected as value, not "-"
              modules.edged.tailoredKubeletConfig.podCIDR: a network such as 10.234.0.0/24, or two such as 10.234.0.0/24,fd00:234::/64 of both kinds, are expected, not "10.0.0.0"
              modules.edged.tailoredKubeletConfig.clusterDNS: IP addresses are expected, not "dns"
              modules.edged.tailoredKubeletConfig.resolvConf: an absolute path is expected, not "resolv.conf"
              modules.edged.tailoredKubeletConfig.nodeLeaseDurationSeconds: a whole number from 1 to 3600 is expected, not 0
              modules.edged.tailoredKubeletConfig.podLogsDir: a plain ASCII path without '..' and double '/' is expected, not "/var/../log"
              modules.edged.tailoredKubeletConfig.containerLogMaxSize: a size such as 10Mi is expected, not "-1"
              modules.edged.tailoredKubeletConfig.containerLogMaxWorkers: a whole number from 1 to 2147483647 is expected, not 0
              modules.edged.tailoredKubeletConfig.containerLogMonitorInterval: a duration from 3s to 31536000s is expected, not 1s
              modules.edged.tailoredKubeletConfig.imageGCLowThresholdPercent: 80 is not below imageGCHighThresholdPercent, which is 50
              modules.edged.tailoredKubeletConfig.imageMaximumGCAge: 60s is not above imageMinimumGCAge, which is 120s
              modules.edged.tailoredKubeletConfig.maxParallelImagePulls: is above 1 although serializeImagePulls is true; set that to false
              modules.edged.tailoredKubeletConfig.nodeStatusMaxImages: a whole number from -1 to 2147483647 is expected, not -2
              modules.edged.minimumGCAge: a duration such as 10s or 1m30s is expected, not 5
              modules.edged.tailoredKubeletConfig.cpuManagerPolicy: none or static is expected, not "best"
              modules.edged.tailoredKubeletConfig.cpuManagerPolicyOptions.full-pcpus-only: true or false is expected, not "maybe"
              modules.edged.tailoredKubeletConfig.cpuManagerPolicyOptions.align-by-socket: it takes the gate CPUManagerPolicyAlphaOptions: true
              modules.edged.tailoredKubeletConfig.cpuManagerPolicyOptions.best: is no option; there are full-pcpus-only, distribute-cpus-across-numa, align-by-socket, distribute-cpus-across-cores, strict-cpu-reservation, prefer-align-cpus-by-uncorecache
              modules.edged.tailoredKubeletConfig.cpuManagerPolicyOptions: needs cpuManagerPolicy: static
              modules.edged.tailoredKubeletConfig.cpuManagerPolicyOptions: align-by-socket does not go with topologyManagerPolicy: single-numa-node
              modules.edged.tailoredKubeletConfig.topologyManagerPolicyOptions.max-allowable-numa-nodes: a number up to 8 is expected, not "16": this version aligns upon no more
              modules.edged.tailoredKubeletConfig.topologyManagerPolicyOptions.closest: is no option; there are prefer-closest-numa-nodes and max-allowable-numa-nodes
              modules.edged.tailoredKubeletConfig.cgroupDriver: cgroupfs or systemd is expected, not "cgroup"
              modules.edged.tailoredKubeletConfig.systemCgroups: needs cgroupRoot
              modules.edged.tailoredKubeletConfig.cpuCFSQuotaPeriod: a duration from 1ms to 1s is expected, not 2s
              modules.edged.tailoredKubeletConfig.memoryThrottlingFactor: a number above 0 and 1 at most is expected, not 1.5
              modules.edged.tailoredKubeletConfig.memorySwap.swapBehavior: "" or NoSwap or LimitedSwap is expected, not "Unlimited"
              modules.edged.tailoredKubeletConfig.allowedUnsafeSysctls: a sysctl such as net.core.somaxconn or net.* is expected, not "*"
              modules.edged.tailoredKubeletConfig.staticPodPath: an absolute path is expected, not "manifests"
              modules.edged.tailoredKubeletConfig.shutdownGracePeriod: 0 or at least 1s is expected, not 500ms
              modules.edged.tailoredKubeletConfig.shutdownGracePeriodCriticalPods: 60s is more than shutdownGracePeriod, of which it is a part: 500ms
              modules.edged.tailoredKubeletConfig.shutdownGracePeriodByPodPriority[0]: {priority, shutdownGracePeriodSeconds} is expected, with whole numbers
        "#]],
    );
}

#[test]
fn keys_without_effect_and_unknown_keys_are_told_apart() {
    check(
        "
database: {driverName: postgres, aliasName: default}
featureGates: {moduleRestart: true, requireAuthorization: false}
edgecoreVersion: v1.23.1
modules:
  edgeHub: {enable: false, heartbeats: 5}
  eventBus: {enable: true, mqttMode: 0}
  deviceTwin: {}
  serviceBus: {enable: false}
  metaManager: {enable: true, contextSendGroup: hub, metaServer: {enable: true}}
  dbTest: {enable: true}
  edged:
    windowsService: true
    cgroupDriver: systemd
    tailoredKubeletConfig:
      memoryManagerPolicy: Static
      hairpinMode: none
      syncFrequency: 10s
      enableSystemLogQuery: true
      featureGates: {SidecarContainers: true}
      logging: {verbosity: 4}
      readOnlyPorts: 5
",
        expect![[r#"
            modules.edgeHub.heartbeats is not a known key; is it spelled right?
            modules.edged.tailoredKubeletConfig.readOnlyPorts is not a known key; is it spelled right?
            database.driverName has no effect in kedge: the database is SQLite
            modules.dbTest has no effect in kedge: it is a test of the official EdgeCore
            modules.edged.windowsService has no effect in kedge: Linux needs none of it
            modules.edged.tailoredKubeletConfig.logging has no effect in kedge: they tune the inside of a program in Go; kedge.logFilter sets what is logged
            modules.edged.tailoredKubeletConfig.enableSystemLogQuery has no effect in kedge: the local server does not show the logs of the system, because anybody on the node could ask it
            modules.edged.cgroupDriver has no effect in kedge: they are keys of v1alpha1, which EdgeCore v1.23 does not read; those that still exist stand below modules.edged.tailoredKubeletConfig
            modules.edged.tailoredKubeletConfig.featureGates.SidecarContainers has no effect in kedge: gates of Kubernetes switch code that is not here
            modules.edged.tailoredKubeletConfig.syncFrequency has no effect in kedge: they tune parts that are built differently
            modules.edged.tailoredKubeletConfig.hairpinMode has no effect in kedge: the network of pods is the affair of the container runtime
            modules.edged.tailoredKubeletConfig.memoryManagerPolicy has no effect in kedge: containers are not bound to memory banks by this version; requests, limits and reserves count
            modules.metaManager.metaServer, modules.eventBus, modules.deviceTwin have no effect in kedge: these modules are read and checked, but this version does not act on them
            modules.edgeHub.enable has no effect in kedge: an edge without this module is none, so it runs all the same
            featureGates.moduleRestart has no effect in kedge: a task that fails ends the process, and whoever started it starts it again
        "#]],
    );
}

#[test]
fn a_file_of_v1alpha1_is_read_as_the_official_edgecore_reads_it() {
    check(
        "
apiVersion: edgecore.config.kubeedge.io/v1alpha1
kind: EdgeCore
modules:
  edged: {hostnameOverride: gate-7, runtimeType: docker, labels: {a: b}}
  edgeHub: {token: abc}
",
        expect![[r#"
            modules.edged.runtimeType, modules.edged.labels have no effect in kedge: they are keys of v1alpha1, which EdgeCore v1.23 does not read; those that still exist stand below modules.edged.tailoredKubeletConfig
        "#]],
    );
}

#[test]
fn a_shutdown_has_one_of_two_forms() {
    check(
        &of_kubelet(
            "shutdownGracePeriod: 30s, shutdownGracePeriodCriticalPods: 10s, shutdownGracePeriodByPodPriority: [{priority: 1, shutdownGracePeriodSeconds: 5}]",
        ),
        expect![[r#"
            the configuration has 1 mistake:
              modules.edged.tailoredKubeletConfig.shutdownGracePeriodByPodPriority: excludes shutdownGracePeriod and shutdownGracePeriodCriticalPods
        "#]],
    );
    let config = read(&of_kubelet(
        "shutdownGracePeriod: 30s, shutdownGracePeriodCriticalPods: 10s",
    ));
    assert_eq!(config.edged.shutdown.critical, Duration::from_secs(10));
}

#[test]
fn the_effective_configuration_of_the_kubelet_is_shown() {
    let effective = |text: &str| {
        let json: Value = serde_json::from_str(&read(text).edged.effective).unwrap();
        json
    };
    assert_eq!(effective("")["maxPods"], 110);
    let shown = effective(&of_kubelet(
        "maxPods: 5, evictionSoft: {memory.available: 1Gi}, evictionSoftGracePeriod: {memory.available: 1m}",
    ));
    assert_eq!(shown["maxPods"], 5);
    assert_eq!(shown["evictionSoft"]["memory.available"], "1Gi");
    assert_eq!(shown["evictionHard"]["nodefs.available"], "10%");
    assert_eq!(shown["podsPerCore"], Value::Null);
}

#[test]
fn a_secret_never_prints_itself() {
    let config = read("modules: {eventBus: {mqttPassword: s3cret}, edgeHub: {token: s3cret}}");
    assert!(!format!("{config:?}").contains("s3cret"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Hostile files are refused, never a panic.
    #[test]
    fn any_text_is_read_or_refused(text in "[ -~\n]{0,200}") {
        let _ = EdgeCore::from_yaml(&text, &facts());
    }

    /// Any value anywhere is read or refused.
    #[test]
    fn any_value_is_read_or_refused(which in 0usize..300, value in "(-?[0-9]{1,20}|null|true|\\[\\]|\\{\\}|\\[1\\]|a|\"\"|1e999|~|5%|1m|10Mi|\\{a.b: c\\})") {
        let leaves = leaves();
        let _ = EdgeCore::from_yaml(&nested(&leaves[which % leaves.len()], &value), &facts());
    }
}

#[test]
fn pods_have_one_network_of_each_kind() {
    let networks = |text: &str| {
        let file = of_kubelet(&format!("podCIDR: '{text}'"));
        match EdgeCore::from_yaml(&file, &facts()) {
            Ok((config, _)) => {
                let cidrs = config.edged.pod_cidrs.iter();
                let texts: Vec<_> = cidrs
                    .map(|(address, prefix)| format!("{address}/{prefix}"))
                    .collect();
                texts.join(" ")
            }
            Err(_) => "a mistake".to_owned(),
        }
    };
    let rows = [
        "",
        "10.1.0.0/16",
        "fd00:7::/64",
        "fd00:7::/64, 10.1.0.0/16",
        "10.1.0.0/16,10.2.0.0/16",
        "10.1.0.0/16,fd00::/64,fd01::/64",
        "10.1.0.0/33",
        "fd00::/129",
        "fe80::/64",
        "ff02::/64",
        "127.0.0.0/24",
        "::ffff:10.1.0.0/112",
        "10.1.0.0/16,",
    ];
    let told: Vec<_> = rows
        .iter()
        .map(|row| format!("{row:?}: {}", networks(row)))
        .collect();
    expect![[r#"
        "": 10.234.0.0/24
        "10.1.0.0/16": 10.1.0.0/16
        "fd00:7::/64": fd00:7::/64
        "fd00:7::/64, 10.1.0.0/16": fd00:7::/64 10.1.0.0/16
        "10.1.0.0/16,10.2.0.0/16": a mistake
        "10.1.0.0/16,fd00::/64,fd01::/64": a mistake
        "10.1.0.0/33": a mistake
        "fd00::/129": a mistake
        "fe80::/64": a mistake
        "ff02::/64": a mistake
        "127.0.0.0/24": a mistake
        "::ffff:10.1.0.0/112": a mistake
        "10.1.0.0/16,": a mistake
    "#]]
    .assert_eq(&(told.join("\n") + "\n"));
}

#[test]
fn cpus_are_given_out_with_options_and_a_reserve() {
    let facts = EdgeFacts {
        hostname: "edge-1".to_owned(),
        primary_ip: "192.0.2.9".to_owned(),
    };
    let told = |keys: &str| {
        let yaml = format!("modules: {{edged: {{tailoredKubeletConfig: {{{keys}}}}}}}");
        match EdgeCore::from_yaml(&yaml, &facts) {
            Ok((config, warnings)) => {
                assert!(warnings.is_empty(), "{keys}");
                format!("{:?}", config.edged.pinning)
            }
            Err(mistakes) => mistakes.to_string(),
        }
    };
    let lines = [
        "",
        "cpuManagerPolicy: static",
        "cpuManagerPolicy: static, kubeReserved: {cpu: 100m}, cpuManagerPolicyOptions: {full-pcpus-only: 'true'}",
        "cpuManagerPolicy: static, reservedSystemCPUs: '0', cpuManagerPolicyOptions: {strict-cpu-reservation: 'true'}",
        "cpuManagerPolicy: static, reservedSystemCPUs: '0', cpuManagerPolicyOptions: {strict-cpu-reservation: 'true'}, featureGates: {CPUManagerPolicyAlphaOptions: true}",
        "cpuManagerPolicyOptions: {full-pcpus-only: 'true'}, featureGates: {CPUManagerPolicyBetaOptions: false}",
        "topologyManagerPolicy: restricted, topologyManagerScope: pod, topologyManagerPolicyOptions: {prefer-closest-numa-nodes: 'true', max-allowable-numa-nodes: '8'}, cpuManagerReconcilePeriod: 5s",
    ]
    .map(told);
    expect![[r#"
        Pinning { cpus: None, topology: None, whole_pods: false, prefer_closest: false, retry: 10s }
        the configuration has 1 mistake:
          modules.edged.tailoredKubeletConfig.cpuManagerPolicy: static needs CPUs for the node itself: give reservedSystemCPUs, or cpu in kubeReserved or systemReserved
        Pinning { cpus: Some(CpuOptions { full_pcpus_only: true, distribute_cpus_across_numa: false, align_by_socket: false, distribute_cpus_across_cores: false, strict_cpu_reservation: false, prefer_align_cpus_by_uncorecache: false }), topology: None, whole_pods: false, prefer_closest: false, retry: 10s }
        the configuration has 1 mistake:
          modules.edged.tailoredKubeletConfig.cpuManagerPolicyOptions.strict-cpu-reservation: it takes the gate CPUManagerPolicyAlphaOptions: true
        Pinning { cpus: Some(CpuOptions { full_pcpus_only: false, distribute_cpus_across_numa: false, align_by_socket: false, distribute_cpus_across_cores: false, strict_cpu_reservation: true, prefer_align_cpus_by_uncorecache: false }), topology: None, whole_pods: false, prefer_closest: false, retry: 10s }
        the configuration has 2 mistakes:
          modules.edged.tailoredKubeletConfig.cpuManagerPolicyOptions.full-pcpus-only: it takes the gate CPUManagerPolicyBetaOptions: true
          modules.edged.tailoredKubeletConfig.cpuManagerPolicyOptions: needs cpuManagerPolicy: static
        Pinning { cpus: None, topology: Restricted, whole_pods: true, prefer_closest: true, retry: 5s }
    "#]].assert_eq(&(lines.join("\n") + "\n"));
}
