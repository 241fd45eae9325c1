//! What a pod wants of its network, in the words that plug-ins know from kubelets.

use super::config::NetworkList;
use crate::Error;
use crate::network::rules::Transport;
use kedge_api::Quantity;
use kedge_containers::{PodIdentity, SandboxConfig};
use serde_json::{Map, Value, json};

const PORT_MAPPINGS: &str = "portMappings";
const DNS: &str = "dns";
const BANDWIDTH: &str = "bandwidth";

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// Bits that may pass at once above the rate: as good as no limit, which is what kubelets tell.
const BURST: i64 = i32::MAX as i64;
/// Slower or faster is a slip of the pen, by the same limits as Kubernetes has.
const RATE_MIN: i64 = 1_000;
const RATE_MAX: i64 = 1_000_000_000_000_000;

/// `CNI_ARGS`: by these, plug-ins know the pod.
pub(super) fn arguments(id: &str, pod: &PodIdentity) -> String {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", id),
        ("K8S_POD_UID", &pod.uid),
    ];
    let pairs = pairs
        .iter()
        // Names of pods have none of these; a value that has would be read as something else.
        .filter(|(_, value)| !value.contains([';', '=']))
        .map(|(name, value)| format!("{name}={value}"));
    pairs.collect::<Vec<_>>().join(";")
}

/// The wishes by the names of the capabilities they need.
pub(super) fn of(config: &SandboxConfig) -> Result<Map<String, Value>, Error> {
    let mut wishes = Map::new();
    let ports = config.ports.iter().filter(|port| port.host_port != 0);
    let ports: Vec<Value> = ports
        .map(|port| {
            let mut mapping = json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": Transport(port.protocol).name(),
            });
            if let Some(address) = port.host_ip {
                mapping["hostIP"] = address.to_string().into();
            }
            mapping
        })
        .collect();
    if !ports.is_empty() {
        wishes.insert(PORT_MAPPINGS.to_owned(), ports.into());
    }
    let dns = &config.dns;
    if !dns.servers.is_empty() || !dns.searches.is_empty() || !dns.options.is_empty() {
        let told = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        wishes.insert(DNS.to_owned(), told);
    }
    let mut bandwidth = Map::new();
    for (annotation, rate, burst) in [
        (INGRESS, "ingressRate", "ingressBurst"),
        (EGRESS, "egressRate", "egressBurst"),
    ] {
        if let Some(bits) = rate_of(config, annotation)? {
            bandwidth.insert(rate.to_owned(), bits.into());
            bandwidth.insert(burst.to_owned(), BURST.into());
        }
    }
    if !bandwidth.is_empty() {
        wishes.insert(BANDWIDTH.to_owned(), bandwidth.into());
    }
    Ok(wishes)
}

/// The pod runs without what no plug-in is capable of, as on every node; people shall know.
pub(super) fn warn_of_unheard(network: &NetworkList, config: &SandboxConfig) {
    let wants_ports = config.ports.iter().any(|port| port.host_port != 0);
    if wants_ports && !network.hears(PORT_MAPPINGS) {
        tracing::warn!(
            network = network.name,
            namespace = config.pod.namespace,
            pod = config.pod.name,
            "no plug-in of the network opens host ports (capability portMappings)"
        );
    }
}

fn rate_of(config: &SandboxConfig, annotation: &str) -> Result<Option<i64>, Error> {
    let Some(text) = config.annotations.get(annotation) else {
        return Ok(None);
    };
    let bits = Quantity::parse(text).ok().map(|rate| rate.units());
    match bits.filter(|bits| (RATE_MIN..=RATE_MAX).contains(bits)) {
        Some(bits) => Ok(Some(bits)),
        None => {
            let reason = format!("bits per second from 1k to 1P are expected, not {text:?}");
            Err(Error::failed("read the annotation", annotation, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use kedge_containers::{DnsConfig, PortMapping, Protocol};

    #[test]
    fn wishes_are_told_as_kubelets_do() {
        let port = |host_port, host_ip: Option<&str>| PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port,
            host_ip: host_ip.map(|address| address.parse().unwrap()),
        };
        let mut config = SandboxConfig {
            ports: vec![port(0, None), port(5353, None), port(53, Some("192.0.2.1"))],
            dns: DnsConfig {
                servers: vec!["10.0.0.10".into()],
                ..DnsConfig::default()
            },
            annotations: [(INGRESS.to_owned(), "10M".to_owned())].into(),
            ..SandboxConfig::default()
        };
        expect![[r#"{"portMappings":[{"hostPort":5353,"containerPort":53,"protocol":"udp"},{"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"192.0.2.1"}],"dns":{"servers":["10.0.0.10"],"searches":[],"options":[]},"bandwidth":{"ingressRate":10000000,"ingressBurst":2147483647}}"#]]
            .assert_eq(&Value::from(of(&config).unwrap()).to_string());
        config.annotations.insert(EGRESS.to_owned(), "fast".to_owned());
        expect![[r#"read the annotation kubernetes.io/egress-bandwidth: bits per second from 1k to 1P are expected, not "fast""#]]
            .assert_eq(&of(&config).unwrap_err().to_string());
        let pod = PodIdentity {
            namespace: "default".into(),
            name: "web".into(),
            uid: "u-1".into(),
        };
        expect!["IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"]
            .assert_eq(&arguments("abc", &pod));
    }
}
