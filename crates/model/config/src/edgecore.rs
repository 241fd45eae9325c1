//! `edgecore.yaml`.

use crate::reader::{Form, Group, Mistakes, Reader, Warning};
use serde_json::Value;
use std::time::Duration;

/// What this thread of EdgeCore needs from the operator's file; KubeEdge's defaults elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeCore {
    pub log_filter: String,
    /// SQLite file of the edge's metadata.
    pub data_source: String,
    pub hub: Hub,
    pub edged: Edged,
    pub stream: Stream,
    /// Limit of a question that the edge asks the cloud.
    pub remote_query_timeout: Duration,
}

/// `modules.edgeHub`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    pub project_id: String,
    /// Which of `websocket` and `quic` is enabled; exactly one is.
    pub transport: Transport,
    /// `host:port` of CloudHub for this transport.
    pub server: String,
    /// How long a connection may take to be made.
    pub handshake_timeout: Duration,
    /// `https://host:port` for the CA and certificates.
    pub http_server: String,
    /// Join token; empty when the node has its certificate already.
    pub token: String,
    pub ca_file: String,
    pub cert_file: String,
    pub key_file: String,
    pub heartbeat_interval: Duration,
    pub rotate_certificates: bool,
}

/// How the edge dials the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TLS over TCP, official port 10000.
    WebSocket,
    /// RFC 9000, port 10001; kedge's hub speaks it, an official hub does not.
    Quic,
}

/// `modules.edged`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edged {
    pub node_name: String,
    /// Empty: found at start.
    pub node_ip: String,
    pub node_labels: Vec<(String, String)>,
    /// Kubernetes taints as in the file: `{key, value, effect}`.
    pub taints: Vec<Value>,
    pub root_directory: String,
    pub pod_logs_dir: String,
    pub report_event: bool,
    pub register_node: bool,
    pub register_schedulable: bool,
    pub pods_max: usize,
    pub pod_cidr: String,
    pub cluster_domain: String,
    pub cluster_dns: Vec<String>,
    pub status_report_interval: Duration,
    pub lease_duration: Duration,
    pub container_runtime: ContainerRuntime,
    /// `kedge.runtimeDirectory`: images and containers of the built-in runtime.
    pub runtime_directory: String,
    /// `kedge.bridge`: the network bridge of the built-in runtime.
    pub bridge: String,
    /// `kedge.cgroupRoot`: the control group below which the built-in runtime puts its pods.
    pub cgroup_root: String,
    pub log_bytes_max: u64,
    pub log_files_max: usize,
}

/// `modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerRuntime {
    /// `kedge://embedded`: the built-in OCI runtime. The default.
    Embedded,
    /// `kedge://hollow`: containers that exist in memory only, for load and for machines without root.
    Hollow,
}

/// `modules.edgeStream`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    pub enable: bool,
    /// `host:port` of CloudStream's tunnel.
    pub server: String,
}

/// What defaults take from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeFacts {
    pub hostname: String,
    pub primary_ip: String,
}

/// Keys of the official file that have no meaning here.
const WITHOUT_EFFECT: &[Group] = &[
    Group {
        keys: &["database.aliasName", "database.driverName"],
        why: "the database is SQLite",
    },
    Group {
        keys: &["edgecoreVersion"],
        why: "the program knows its version",
    },
    Group {
        keys: &["featureGates"],
        why: "there is nothing that they would switch",
    },
    Group {
        keys: &[
            "modules.dbTest",
            "modules.deviceTwin",
            "modules.eventBus",
            "modules.metaManager.metaServer",
            "modules.serviceBus",
            "modules.taskManager",
        ],
        why: "these modules are not part of this version",
    },
    Group {
        keys: &[
            "modules.edgeHub.enable",
            "modules.edged.enable",
            "modules.metaManager.enable",
        ],
        why: "an edge without this module is none",
    },
    Group {
        keys: &["modules.edgeHub.messageBurst", "modules.edgeHub.messageQPS"],
        why: "what the edge says is bounded by state, not by a rate",
    },
    Group {
        keys: &[
            "modules.edgeHub.quic.readDeadline",
            "modules.edgeHub.quic.writeDeadline",
            "modules.edgeHub.websocket.readDeadline",
            "modules.edgeHub.websocket.writeDeadline",
            "modules.edgeStream.handshakeTimeout",
            "modules.edgeStream.readDeadline",
            "modules.edgeStream.writeDeadline",
        ],
        why: "a connection that is silent is given up after a fixed time",
    },
    Group {
        keys: &[
            "modules.edgeStream.tlsTunnelCAFile",
            "modules.edgeStream.tlsTunnelCertFile",
            "modules.edgeStream.tlsTunnelPrivateKeyFile",
        ],
        why: "the tunnel shows the certificate of the hub",
    },
    Group {
        keys: &[
            "modules.edged.customInterfaceName",
            "modules.edged.experimentalMounterPath",
            "modules.edged.experimentalNodeAllocatableIgnoreEvictionThreshold",
            "modules.edged.maxContainerCount",
            "modules.edged.maxPerPodContainerCount",
            "modules.edged.minimumGCAge",
            "modules.edged.podSandboxImage",
            "modules.edged.registerNodeNamespace",
            "modules.edged.runtimeCgroups",
            "modules.edged.seccompDefault",
            "modules.edged.windowsPriorityClass",
            "modules.edged.windowsService",
            "modules.metaManager.contextSendGroup",
            "modules.metaManager.contextSendModule",
        ],
        why: "they tune parts that are built differently",
    },
];

impl EdgeCore {
    /// Reads the operator's file. An empty text gives the defaults.
    pub fn from_yaml(text: &str, facts: &EdgeFacts) -> Result<(Self, Vec<Warning>), Mistakes> {
        let form = Form {
            kind: "EdgeCore",
            api_group: "edgecore.config.kubeedge.io",
            shape: Value::Null,
            without_effect: WITHOUT_EFFECT,
        };
        let mut r = Reader::new(text, form);
        let config = Self {
            log_filter: r.text("kedge.logFilter", "info"),
            data_source: r.text("database.dataSource", "/var/lib/kubeedge/edgecore.db"),
            hub: Self::hub(&mut r, facts),
            edged: Self::edged(&mut r, facts),
            stream: Stream {
                enable: r.flag("modules.edgeStream.enable", true),
                server: r.address("modules.edgeStream.server", "127.0.0.1:10004"),
            },
            remote_query_timeout: r.seconds("modules.metaManager.remoteQueryTimeout", 60, 3600),
        };
        r.finish().map(|mut warnings| {
            warnings.retain(|warning| !is_kubelet_tuning(warning));
            (config, warnings)
        })
    }

    fn hub(r: &mut Reader, facts: &EdgeFacts) -> Hub {
        let http_server = format!("https://{}:10002", facts.primary_ip);
        let transport = Self::transport(r);
        let websocket = Self::way(
            r,
            "modules.edgeHub.websocket",
            &format!("{}:10000", facts.primary_ip),
        );
        let quic = Self::way(r, "modules.edgeHub.quic", &format!("{}:10001", facts.primary_ip));
        let (server, handshake_timeout) = match transport {
            Transport::WebSocket => websocket,
            Transport::Quic => quic,
        };
        let hub = Hub {
            project_id: r.text("modules.edgeHub.projectID", "e632aba927ea4ac2b575ec1603d56f10"),
            transport,
            server,
            handshake_timeout,
            http_server: r.text("modules.edgeHub.httpServer", &http_server),
            token: r.text("modules.edgeHub.token", ""),
            ca_file: r.text("modules.edgeHub.tlsCaFile", "/etc/kubeedge/ca/rootCA.crt"),
            cert_file: r.text("modules.edgeHub.tlsCertFile", "/etc/kubeedge/certs/server.crt"),
            key_file: r.text(
                "modules.edgeHub.tlsPrivateKeyFile",
                "/etc/kubeedge/certs/server.key",
            ),
            heartbeat_interval: r.seconds("modules.edgeHub.heartbeat", 15, 3600),
            rotate_certificates: r.flag("modules.edgeHub.rotateCertificates", true),
        };
        if !hub.http_server.starts_with("https://") {
            r.mistake(
                "modules.edgeHub.httpServer",
                format!("https://host:port is expected, not {:?}", hub.http_server),
            );
        }
        hub
    }

    /// Exactly one, as officially: an edge that could choose would hide a broken way.
    fn transport(r: &mut Reader) -> Transport {
        let path = "modules.edgeHub.websocket.enable";
        let websocket = r.flag(path, true);
        match (websocket, r.flag("modules.edgeHub.quic.enable", false)) {
            (true, false) => Transport::WebSocket,
            (false, true) => Transport::Quic,
            (true, true) => {
                r.mistake(path, "is true and so is quic.enable; set one of them to false");
                Transport::WebSocket
            }
            (false, false) => {
                r.mistake(path, "is false and so is quic.enable; set one of them to true");
                Transport::WebSocket
            }
        }
    }

    fn way(r: &mut Reader, path: &str, server: &str) -> (String, Duration) {
        let server = r.address(&format!("{path}.server"), server);
        (server, r.seconds(&format!("{path}.handshakeTimeout"), 30, 3600))
    }

    fn edged(r: &mut Reader, facts: &EdgeFacts) -> Edged {
        let kubelet = "modules.edged.tailoredKubeletConfig";
        let at = |key: &str| format!("{kubelet}.{key}");
        let lease = r.number(&at("nodeLeaseDurationSeconds"), 40, 1, 3600);
        let pods_max = r.number(&at("maxPods"), 110, 1, 10_000);
        let log_files_max = r.number(&at("containerLogMaxFiles"), 5, 2, 100);
        Edged {
            node_name: r.text("modules.edged.hostnameOverride", &facts.hostname),
            node_ip: r.text("modules.edged.nodeIP", ""),
            node_labels: r.text_map("modules.edged.nodeLabels"),
            taints: r.list(&at("registerWithTaints")),
            root_directory: r.text("modules.edged.rootDirectory", "/var/lib/kubelet"),
            pod_logs_dir: r.text(&at("podLogsDir"), "/var/log/pods"),
            report_event: r.flag("modules.edged.reportEvent", false),
            register_node: r.flag(&at("registerNode"), true),
            register_schedulable: r.flag("modules.edged.registerSchedulable", true),
            pods_max: usize::try_from(pods_max).unwrap_or(110),
            pod_cidr: r.text(&at("podCIDR"), "10.234.0.0/24"),
            cluster_domain: r.text(&at("clusterDomain"), "cluster.local"),
            cluster_dns: r.texts(&at("clusterDNS"), &[]),
            status_report_interval: r.go_duration(&at("nodeStatusReportFrequency"), Duration::from_secs(300)),
            lease_duration: Duration::from_secs(lease),
            runtime_directory: r.text("kedge.runtimeDirectory", "/var/lib/kedge/runtime"),
            bridge: r.text("kedge.bridge", "kedge0"),
            cgroup_root: r.text("kedge.cgroupRoot", "/kedge"),
            container_runtime: Self::container_runtime(r, &at("containerRuntimeEndpoint")),
            log_bytes_max: Self::quantity_bytes(r, &at("containerLogMaxSize"), 10 << 20),
            log_files_max: usize::try_from(log_files_max).unwrap_or(5),
        }
    }

    fn container_runtime(r: &mut Reader, path: &str) -> ContainerRuntime {
        match r.text(path, "kedge://embedded").as_str() {
            "kedge://embedded" => ContainerRuntime::Embedded,
            "kedge://hollow" => ContainerRuntime::Hollow,
            other => {
                r.mistake(
                    path,
                    format!(
                        "CRI runtimes such as {other:?} are not supported yet; write kedge://embedded for the \
                         built-in runtime"
                    ),
                );
                ContainerRuntime::Embedded
            }
        }
    }

    /// `10Mi`, `500Ki`, `1Gi` or plain bytes.
    fn quantity_bytes(r: &mut Reader, path: &str, default: u64) -> u64 {
        let text = r.text(path, "");
        if text.is_empty() {
            return default;
        }
        let (digits, shift) = match text.as_bytes() {
            [.., b'K', b'i'] => (&text[..text.len() - 2], 10),
            [.., b'M', b'i'] => (&text[..text.len() - 2], 20),
            [.., b'G', b'i'] => (&text[..text.len() - 2], 30),
            _ => (text.as_str(), 0),
        };
        match digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
        {
            Some(bytes) if bytes > 0 => bytes,
            _ => {
                r.mistake(path, format!("a size such as 10Mi is expected, not {text:?}"));
                default
            }
        }
    }
}

/// The kubelet's section has a hundred tuning keys; what is not read above has no effect, and saying so a hundred
/// times helps nobody.
fn is_kubelet_tuning(warning: &Warning) -> bool {
    match warning {
        Warning::Unknown { path } => path.starts_with("modules.edged.tailoredKubeletConfig."),
        Warning::NoEffect { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> EdgeFacts {
        EdgeFacts {
            hostname: "edge-1".into(),
            primary_ip: "192.0.2.9".into(),
        }
    }

    #[test]
    fn an_empty_file_gives_the_official_defaults() {
        let (config, warnings) = EdgeCore::from_yaml("", &facts()).unwrap();
        assert_eq!(warnings, []);
        assert_eq!(config.edged.node_name, "edge-1");
        assert_eq!(config.hub.server, "192.0.2.9:10000");
        assert_eq!(config.hub.heartbeat_interval, Duration::from_secs(15));
        assert_eq!(config.edged.container_runtime, ContainerRuntime::Embedded);
        assert_eq!(config.edged.log_bytes_max, 10 << 20);
    }

    #[test]
    fn an_operators_file() {
        let text = "
apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
modules:
  edgeHub:
    heartbeat: 5
    httpServer: https://10.0.0.1:10002
    token: abc
    websocket: {server: '10.0.0.1:10000', enable: true}
  edged:
    hostnameOverride: gate-7
    nodeLabels: {site: north}
    tailoredKubeletConfig:
      maxPods: 30
      containerLogMaxSize: 1Mi
      imageGCHighThresholdPercent: 80
      registerWithTaints: [{key: gate, effect: NoSchedule}]
  eventBus: {mqttMode: 2}
";
        let (config, warnings) = EdgeCore::from_yaml(text, &facts()).unwrap();
        assert_eq!(config.edged.node_name, "gate-7");
        assert_eq!(config.edged.pods_max, 30);
        assert_eq!(config.edged.log_bytes_max, 1 << 20);
        assert_eq!(config.edged.taints.len(), 1);
        assert_eq!(config.hub.token, "abc");
        let shown: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            ["modules.eventBus has no effect in kedge: these modules are not part of this version"]
        );
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
                        "{:?} {} {:?}",
                        config.hub.transport, config.hub.server, config.hub.handshake_timeout
                    )
                }
                Err(mistakes) => mistakes.to_string(),
            }
        };
        let shown = [
            ("true", "false"),
            ("false", "true"),
            ("true", "true"),
            ("false", "false"),
        ]
        .map(|(websocket, quic)| read(websocket, quic));
        expect_test::expect![[r#"
            WebSocket 192.0.2.9:10000 30s
            Quic hub:10001 5s
            the configuration has 1 mistake:
              modules.edgeHub.websocket.enable: is true and so is quic.enable; set one of them to false
            the configuration has 1 mistake:
              modules.edgeHub.websocket.enable: is false and so is quic.enable; set one of them to true"#]]
        .assert_eq(&shown.join("\n"));
    }

    #[test]
    fn a_cri_endpoint_is_refused_with_the_way_out() {
        let text = "modules: {edged: {tailoredKubeletConfig: {containerRuntimeEndpoint: 'unix:///run/containerd/containerd.sock'}}}";
        let error = EdgeCore::from_yaml(text, &facts()).unwrap_err().to_string();
        assert!(error.contains("write kedge://embedded"), "{error}");
    }
}
