//! `cloudcore.yaml`.

mod print;
#[cfg(test)]
mod tests;

use crate::reader::{Form, Group, Mistakes, Reader, Warning};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What CloudCore needs from the operator's file, by consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudCore {
    /// `kedge.replica`: the name of this CloudCore among the others of the cluster, by default the host's.
    pub replica: String,
    pub log: Log,
    pub kube_api: KubeApi,
    pub monitor: Monitor,
    pub hub: Hub,
    pub edge_controller: EdgeController,
    pub sync_controller: SyncController,
    pub stream: Stream,
}

/// `kedge.logFilter` and `kedge.logFormat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub filter: String,
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// `kubeAPIConfig`: where the Kubernetes API is, and how much of it may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeApi {
    /// Address of the API; replaces the one in the kubeconfig. Empty: the kubeconfig's.
    pub master: String,
    /// Path of a kubeconfig; empty, together with an empty `master`, means in-cluster.
    pub kube_config: String,
    /// Calls a second, over a longer time.
    pub qps: u32,
    /// Calls at once.
    pub burst: u32,
}

/// `commonConfig.monitorServer`: metrics and health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    pub address: SocketAddr,
}

/// `modules.cloudHub`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// Where edges connect; `None` when `websocket.enable` is false.
    pub websocket: Option<SocketAddr>,
    /// Where edges connect over QUIC; `None` unless `quic.enable` is true.
    pub quic: Option<SocketAddr>,
    /// Where edges join.
    pub https: SocketAddr,
    /// Silence after which a session is closed.
    pub keepalive_timeout: Duration,
    pub node_limit: usize,
    /// IP SANs of the server certificate.
    pub advertise_addresses: Vec<IpAddr>,
    /// DNS SANs of the server certificate.
    pub dns_names: Vec<String>,
    /// The operator's own authority and server certificate, where these files exist.
    pub files: CertificateFiles,
    pub edge_certificate_lifetime: Duration,
    /// A join token lives twice as long.
    pub token_refresh_interval: Duration,
}

/// Paths as the operator wrote them; an empty one, which is the default of this type, names no file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateFiles {
    pub authority: String,
    pub authority_key: String,
    pub certificate: String,
    pub key: String,
}

/// `modules.edgeController` and the own keys beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeController {
    /// `kedge.events`: whether events that edges report are written to the API.
    pub events: bool,
    /// `kedge.servingCertificates`: whether kubelet serving certificates of our edges are approved. On by default,
    /// unlike the official approver, which approves any.
    pub serving_certificates: bool,
}

/// `modules.syncController`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncController {
    /// Whether ObjectSync objects are written, so that an official CloudCore can take over.
    pub enable: bool,
}

/// `modules.cloudStream`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    pub enable: bool,
    pub tunnel_port: u16,
}

/// What defaults take from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudFacts {
    /// The address that edges are told to dial when the file names none.
    pub primary_ip: String,
    /// Names this CloudCore when the file does not.
    pub hostname: String,
}

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The official defaults of `kubeAPIConfig`. A file that holds them has not chosen them.
const QPS: u32 = 2500;
const BURST: u32 = 5000;
/// The official adjustment of both to the size of the installation.
const QPS_PER_NODE: u32 = 5;
const BURST_PER_NODE: u32 = 10;
const NODE_LIMIT_MAX: u32 = 1_000_000;
/// Official feature gates.
const GATES: [&str; 3] = ["disableNodeTaskV1alpha2", "moduleRestart", "requireAuthorization"];

/// Keys of the official file that have no meaning here.
const WITHOUT_EFFECT: &[Group] = &[
    Group {
        keys: &["commonConfig.tunnelPort", "modules.iptablesManager"],
        why: "no port of the control plane is redirected",
    },
    Group {
        keys: &["commonConfig.monitorServer.enableProfiling"],
        why: "there is no Go runtime to profile; perf works on the process as it is",
    },
    Group {
        keys: &["kubeAPIConfig.contentType"],
        why: "objects keep the JSON that the API sent",
    },
    Group {
        keys: &["modules.cloudHub.authorization"],
        why: "node authorization is always on; a node reads what its own pods use",
    },
    Group {
        keys: &["modules.cloudHub.https.enable"],
        why: "edges could not join without this server; it always runs",
    },
    Group {
        keys: &["modules.cloudHub.quic.maxIncomingStreams"],
        why: "an edge opens one stream",
    },
    Group {
        keys: &["modules.cloudHub.unixsocket"],
        why: "it is the door of the CSI driver, which this version does not have",
    },
    Group {
        keys: &["modules.cloudHub.writeTimeout"],
        why: "an edge that does not read is closed after a fixed time",
    },
    Group {
        keys: &[
            "modules.cloudStream.streamPort",
            "modules.cloudStream.tlsStreamCAFile",
            "modules.cloudStream.tlsStreamCertFile",
            "modules.cloudStream.tlsStreamPrivateKeyFile",
        ],
        why: "the endpoint for the API server is not part of this version",
    },
    Group {
        keys: &[
            "modules.cloudStream.tlsTunnelCAFile",
            "modules.cloudStream.tlsTunnelCertFile",
            "modules.cloudStream.tlsTunnelPrivateKeyFile",
        ],
        why: "the tunnel shows the certificate of the hub",
    },
    Group {
        keys: &[
            "modules.edgeController.buffer",
            "modules.edgeController.load",
            "modules.edgeController.nodeUpdateFrequency",
        ],
        why: "each node has its own bounded queues and worker; there are no pools to size",
    },
    Group {
        keys: &[
            "modules.deviceController",
            "modules.dynamicController",
            "modules.router",
            "modules.taskManager",
        ],
        why: "these modules are not part of this version",
    },
];

impl CloudCore {
    /// Reads the operator's file. An empty text gives the defaults.
    pub fn from_yaml(text: &str, facts: &CloudFacts) -> Result<(Self, Vec<Warning>), Mistakes> {
        let mut r = Reader::new(text, form());
        let hub = hub(&mut r, facts);
        let config = Self {
            replica: replica(&mut r, facts),
            log: Log {
                filter: r.text("kedge.logFilter", "info"),
                format: r.word(
                    "kedge.logFormat",
                    &[("text", LogFormat::Text), ("json", LogFormat::Json)],
                ),
            },
            kube_api: kube_api(&mut r, hub.node_limit),
            monitor: Monitor {
                address: r.socket(
                    "commonConfig.monitorServer.bindAddress",
                    SocketAddr::from(([127, 0, 0, 1], 9091)),
                ),
            },
            hub,
            edge_controller: edge_controller(&mut r),
            sync_controller: SyncController {
                enable: r.flag("modules.syncController.enable", true),
            },
            stream: Stream {
                enable: r.flag("modules.cloudStream.enable", true),
                tunnel_port: r.port("modules.cloudStream.tunnelPort", 10004),
            },
        };
        let gates = feature_gates(&mut r);
        r.finish().map(|mut warnings| {
            warnings.extend(gates);
            (config, warnings)
        })
    }
}

/// It becomes part of a Lease's holder and the value of an annotation.
const REPLICA_BYTES_MAX: usize = 63;

fn replica(r: &mut Reader, facts: &CloudFacts) -> String {
    let path = "kedge.replica";
    let named = r.text(path, "");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    if named.is_empty() {
        // A host may have a stranger name than we want to write into the API.
        let host = facts.hostname.chars().filter(|c| plain(*c));
        return host.take(REPLICA_BYTES_MAX).collect();
    }
    if named.len() > REPLICA_BYTES_MAX || !named.chars().all(plain) {
        r.mistake(
            path,
            format!(
                "at most {REPLICA_BYTES_MAX} of letters, digits, '-' and '.' are expected, not {named:?}"
            ),
        );
    }
    named
}

fn form() -> Form {
    Form {
        kind: "CloudCore",
        api_group: "cloudcore.config.kubeedge.io",
        shape: print::shape(),
        defaults: serde_json::Value::Null,
        without_effect: WITHOUT_EFFECT,
        defaults_are_silent: false,
    }
}

fn hub(r: &mut Reader, facts: &CloudFacts) -> Hub {
    if !r.flag("modules.cloudHub.enable", true) {
        r.mistake(
            "modules.cloudHub.enable",
            "a CloudCore without its hub serves no edge; remove the key, or do not start this CloudCore",
        );
    }
    let websocket = r.listener("modules.cloudHub.websocket", 10000);
    let quic = r.listener("modules.cloudHub.quic", 10001);
    let websocket_enabled = r.flag("modules.cloudHub.websocket.enable", true);
    let quic_enabled = r.flag("modules.cloudHub.quic.enable", false);
    if !websocket_enabled && !quic_enabled {
        r.mistake(
            "modules.cloudHub.websocket.enable",
            "edges need a way in: enable websocket or quic",
        );
    }
    let node_limit = r.count("modules.cloudHub.nodeLimit", 500, NODE_LIMIT_MAX);
    let days = r.count("modules.cloudHub.edgeCertSigningDuration", 365, 36_500);
    let hours = r.count("modules.cloudHub.tokenRefreshDuration", 12, 8_760);
    Hub {
        websocket: websocket_enabled.then_some(websocket),
        quic: quic_enabled.then_some(quic),
        https: r.listener("modules.cloudHub.https", 10002),
        keepalive_timeout: r.seconds("modules.cloudHub.keepaliveInterval", 30, 3600),
        node_limit: usize::try_from(node_limit).unwrap_or(usize::MAX),
        advertise_addresses: advertise_addresses(r, facts),
        dns_names: dns_names(r),
        files: certificate_files(r),
        edge_certificate_lifetime: DAY * days,
        token_refresh_interval: Duration::from_secs(3600) * hours,
    }
}

fn advertise_addresses(r: &mut Reader, facts: &CloudFacts) -> Vec<IpAddr> {
    let path = "modules.cloudHub.advertiseAddress";
    let texts = r.texts(path, std::slice::from_ref(&facts.primary_ip));
    if texts.is_empty() {
        r.mistake(path, "at least one address that edges can dial is needed");
    }
    let mut addresses = Vec::new();
    for text in texts {
        match text.trim().parse::<IpAddr>() {
            Ok(address) if !addresses.contains(&address) => addresses.push(address),
            Ok(_said_twice) => {}
            Err(_) => r.mistake(
                path,
                format!("an IP address is expected, not {text:?}; names belong to dnsNames"),
            ),
        }
    }
    addresses
}

/// The official default is one empty name, which no certificate needs.
fn dns_names(r: &mut Reader) -> Vec<String> {
    let path = "modules.cloudHub.dnsNames";
    let mut names: Vec<String> = Vec::new();
    for name in r.texts(path, &[]) {
        if !name.is_ascii() || name.contains(char::is_whitespace) || name.len() > DNS_NAME_BYTES_MAX {
            r.mistake(path, format!("a DNS name is expected, not {name:?}"));
        } else if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// RFC 1035.
const DNS_NAME_BYTES_MAX: usize = 253;

fn certificate_files(r: &mut Reader) -> CertificateFiles {
    let mut pair = |paths: [&'static str; 2], defaults: [&str; 2]| {
        let texts = [r.text(paths[0], defaults[0]), r.text(paths[1], defaults[1])];
        for (one, other) in [(0, 1), (1, 0)] {
            if texts[one].is_empty() && !texts[other].is_empty() {
                r.mistake(
                    paths[one],
                    format!("is empty but {} is not; name both or neither", paths[other]),
                );
            }
        }
        texts
    };
    let [authority, authority_key] = pair(
        ["modules.cloudHub.tlsCAFile", "modules.cloudHub.tlsCAKeyFile"],
        ["/etc/kubeedge/ca/rootCA.crt", "/etc/kubeedge/ca/rootCA.key"],
    );
    let [certificate, key] = pair(
        [
            "modules.cloudHub.tlsCertFile",
            "modules.cloudHub.tlsPrivateKeyFile",
        ],
        ["/etc/kubeedge/certs/server.crt", "/etc/kubeedge/certs/server.key"],
    );
    CertificateFiles {
        authority,
        authority_key,
        certificate,
        key,
    }
}

fn kube_api(r: &mut Reader, node_limit: usize) -> KubeApi {
    let kube_config = r.text("kubeAPIConfig.kubeConfig", "");
    if !kube_config.is_empty() && !kube_config.starts_with('/') {
        r.mistake(
            "kubeAPIConfig.kubeConfig",
            format!("an absolute path is expected, not {kube_config:?}"),
        );
    }
    let nodes = u32::try_from(node_limit).unwrap_or(NODE_LIMIT_MAX);
    let mut rate = |path, official: u32, per_node: u32| match r.count(path, official, i32::MAX.unsigned_abs())
    {
        unchosen if unchosen == official => nodes.saturating_mul(per_node),
        chosen => chosen,
    };
    KubeApi {
        qps: rate("kubeAPIConfig.qps", QPS, QPS_PER_NODE),
        burst: rate("kubeAPIConfig.burst", BURST, BURST_PER_NODE),
        master: r.text("kubeAPIConfig.master", ""),
        kube_config,
    }
}

fn edge_controller(r: &mut Reader) -> EdgeController {
    if !r.flag("modules.edgeController.enable", true) {
        r.mistake(
            "modules.edgeController.enable",
            "a CloudCore without its edge controller carries nothing; remove the key, or do not start this CloudCore",
        );
    }
    EdgeController {
        events: r.flag("kedge.events", true),
        serving_certificates: r.flag("kedge.servingCertificates", true),
    }
}

/// Unknown gates are mistakes, as officially. Of the known ones none changes anything here; one that is switched on is
/// answered with a word.
fn feature_gates(r: &mut Reader) -> Vec<Warning> {
    let mut on = Vec::new();
    for (gate, value) in r.flags("featureGates") {
        let path = format!("featureGates.{gate}");
        if !GATES.contains(&gate.as_str()) {
            r.mistake(
                &path,
                format!("is no feature gate; there are {}", GATES.join(", ")),
            );
        } else if value {
            on.push((gate, path));
        }
    }
    let why = |gate: &str| match gate {
        "requireAuthorization" => {
            "node authorization and the approver of serving certificates are always on; ServiceAccountAccess objects \
             are not made by this version"
        }
        "moduleRestart" => "a task that fails ends the process, and whoever started it starts it again",
        _node_tasks => "node tasks are not part of this version",
    };
    on.into_iter()
        .map(|(gate, path)| Warning::NoEffect {
            why: why(&gate),
            paths: vec![path],
        })
        .collect()
}
