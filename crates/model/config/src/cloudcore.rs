//! `cloudcore.yaml`.

use crate::reader::{Mistakes, Reader, Warning};
use std::time::Duration;

/// What this thread of CloudCore needs from the operator's file; KubeEdge's defaults elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudCore {
    /// Path of a kubeconfig; empty means in-cluster.
    pub kube_config: String,
    pub log_filter: String,
    pub hub: Hub,
    pub stream: Stream,
}

/// `modules.cloudHub`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    pub websocket_address: String,
    pub websocket_port: u16,
    pub https_address: String,
    pub https_port: u16,
    /// Silence after which a session is closed.
    pub keepalive_timeout: Duration,
    pub node_limit: usize,
    /// IP SANs of the server certificate.
    pub advertise_addresses: Vec<String>,
    /// DNS SANs of the server certificate.
    pub dns_names: Vec<String>,
    pub edge_cert_duration: Duration,
    /// A join token lives twice as long.
    pub token_refresh_interval: Duration,
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
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Keys of the official file that have no meaning here: queues, worker counts and modules of later issues.
const WITHOUT_EFFECT: &[&str] = &[
    "commonConfig",
    "featureGates",
    "kubeAPIConfig.burst",
    "kubeAPIConfig.contentType",
    "kubeAPIConfig.master",
    "kubeAPIConfig.qps",
    "modules.cloudHub.authorization",
    "modules.cloudHub.enable",
    "modules.cloudHub.https.enable",
    "modules.cloudHub.quic",
    "modules.cloudHub.tlsCAFile",
    "modules.cloudHub.tlsCAKeyFile",
    "modules.cloudHub.tlsCertFile",
    "modules.cloudHub.tlsPrivateKeyFile",
    "modules.cloudHub.unixsocket",
    "modules.cloudHub.websocket.enable",
    "modules.cloudHub.writeTimeout",
    "modules.cloudStream.streamPort",
    "modules.cloudStream.tlsStreamCAFile",
    "modules.cloudStream.tlsStreamCertFile",
    "modules.cloudStream.tlsStreamPrivateKeyFile",
    "modules.cloudStream.tlsTunnelCAFile",
    "modules.cloudStream.tlsTunnelCertFile",
    "modules.cloudStream.tlsTunnelPrivateKeyFile",
    "modules.deviceController",
    "modules.dynamicController",
    "modules.edgeController",
    "modules.iptablesManager",
    "modules.router",
    "modules.syncController",
    "modules.taskManager",
];

impl CloudCore {
    /// Reads the operator's file. An empty text gives the defaults.
    pub fn from_yaml(text: &str, facts: &CloudFacts) -> Result<(Self, Vec<Warning>), Mistakes> {
        let mut r = Reader::new(text, "CloudCore", "cloudcore.config.kubeedge.io", WITHOUT_EFFECT);
        let config = Self {
            kube_config: r.text("kubeAPIConfig.kubeConfig", ""),
            log_filter: r.text("kedge.logFilter", "info"),
            hub: Self::hub(&mut r, facts),
            stream: Stream {
                enable: r.flag("modules.cloudStream.enable", true),
                tunnel_port: r.port("modules.cloudStream.tunnelPort", 10004),
            },
        };
        r.finish().map(|warnings| (config, warnings))
    }

    fn hub(r: &mut Reader, facts: &CloudFacts) -> Hub {
        let primary = [facts.primary_ip.clone()];
        let advertise_addresses = r.texts("modules.cloudHub.advertiseAddress", &primary);
        if advertise_addresses.is_empty() {
            r.mistake(
                "modules.cloudHub.advertiseAddress",
                "at least one address that edges can dial is needed",
            );
        }
        let days = r.number("modules.cloudHub.edgeCertSigningDuration", 365, 1, 36_500);
        let hours = r.number("modules.cloudHub.tokenRefreshDuration", 12, 1, 8_760);
        let dns_names = r.texts("modules.cloudHub.dnsNames", &[]);
        Hub {
            websocket_address: r.ip("modules.cloudHub.websocket.address", "0.0.0.0"),
            websocket_port: r.port("modules.cloudHub.websocket.port", 10000),
            https_address: r.ip("modules.cloudHub.https.address", "0.0.0.0"),
            https_port: r.port("modules.cloudHub.https.port", 10002),
            keepalive_timeout: r.seconds("modules.cloudHub.keepaliveInterval", 30, 3600),
            node_limit: usize::try_from(r.number("modules.cloudHub.nodeLimit", 500, 1, 1_000_000))
                .unwrap_or(500),
            advertise_addresses,
            // The official default is one empty name, which no certificate needs.
            dns_names: dns_names.into_iter().filter(|name| !name.is_empty()).collect(),
            edge_cert_duration: DAY * u32::try_from(days).unwrap_or(365),
            token_refresh_interval: Duration::from_secs(hours * 3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> CloudFacts {
        CloudFacts {
            primary_ip: "192.0.2.1".into(),
        }
    }

    #[test]
    fn an_empty_file_gives_the_official_defaults() {
        let (config, warnings) = CloudCore::from_yaml("", &facts()).unwrap();
        assert_eq!(warnings, []);
        assert_eq!(
            (
                config.hub.websocket_port,
                config.hub.https_port,
                config.stream.tunnel_port
            ),
            (10000, 10002, 10004)
        );
        assert_eq!(config.hub.advertise_addresses, ["192.0.2.1"]);
        assert_eq!(config.hub.edge_cert_duration, DAY * 365);
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_their_path() {
        let text = "kind: EdgeCore\napiVersion: v1\nmodules:\n  cloudHub:\n    nodeLimit: -1\n    websocket:\n      port: 99999\n      address: here\n";
        let error = CloudCore::from_yaml(text, &facts()).unwrap_err().to_string();
        assert_eq!(
            error,
            "the configuration has 5 mistakes:\n  \
             kind: CloudCore is expected, not \"EdgeCore\"\n  \
             apiVersion: cloudcore.config.kubeedge.io/v1alpha1 or cloudcore.config.kubeedge.io/v1alpha2 is expected, not \"v1\"\n  \
             modules.cloudHub.websocket.address: an IP address is expected, not \"here\"\n  \
             modules.cloudHub.websocket.port: a whole number from 0 to 65535 is expected, not 99999\n  \
             modules.cloudHub.nodeLimit: a whole number from 1 to 1000000 is expected, not -1"
        );
    }

    #[test]
    fn keys_without_effect_and_unknown_keys_are_told_apart() {
        let text =
            "modules:\n  cloudHub:\n    nodeLimits: 5\n    quic: {enable: false}\n  router: {enable: true}\n";
        let (_, warnings) = CloudCore::from_yaml(text, &facts()).unwrap();
        let shown: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "modules.cloudHub.nodeLimits is not a known key; is it spelled right?",
                "modules.cloudHub.quic has no effect in kedge",
                "modules.router has no effect in kedge",
            ]
        );
    }
}
