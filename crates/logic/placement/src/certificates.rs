//! Requests of nodes for the certificate of their own server: what may be asked, and what is approved.
//!
//! The request inside is decoded by others; here is judged whose names it may hold, who may read it, and what of the
//! object that an edge sends reaches the API. A request is judged twice: when it is taken from a node, and once more when
//! it is approved, then only by what the API holds.

use crate::report::is_plain_name;
use kedge_wire::{Body, NodeName};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// The only signer an edge may ask.
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// Names the node from which a request came; set here, whatever the edge sent.
pub const NODE_ANNOTATION: &str = "kedge.io/node";
/// The collection of certificate requests.
pub const SIGNING_REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// A node's one request. With a name of its choice it could take the name that another node needs.
const NAME_PREFIX: &str = "metaserver-csr-";
/// The reason that official clouds give.
const APPROVED_REASON: &str = "AutoApproved";
const APPROVED_MESSAGE: &str = "The names in it are those of the node that asked for it.";

/// The names that a node's server may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeNames {
    dns: Vec<String>,
    ips: Vec<IpAddr>,
}

impl NodeNames {
    /// From a Node object: its name, its host name, and its addresses.
    pub fn of(node: &Body) -> Self {
        let node: NodeView = node.parse().unwrap_or_default();
        let mut names = Self::default();
        names.dns.push(node.metadata.name);
        names.dns.extend(node.metadata.labels.host_name);
        for address in node.status.addresses.unwrap_or_default() {
            match address.address.parse() {
                Ok(ip) => names.ips.push(ip),
                Err(_) => names.dns.push(address.address),
            }
        }
        names.dns.retain(|name| !name.is_empty());
        names
    }

    /// Whether all of these are names of the node. Loopback and link-local addresses mean the machine itself to
    /// whoever uses them, and the local API of an edge listens on such ones.
    pub fn check(&self, dns: &[String], ips: &[IpAddr]) -> Result<(), String> {
        let foreign = dns
            .iter()
            .find(|name| !self.dns.iter().any(|own| own.eq_ignore_ascii_case(name)));
        if let Some(name) = foreign {
            return Err(format!("{name:?} is not a name of this node"));
        }
        match ips.iter().find(|ip| !self.ips.contains(ip) && !is_local(ip)) {
            Some(ip) => Err(format!("{ip} is not an address of this node")),
            None => Ok(()),
        }
    }
}

fn is_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

/// The parts of a CertificateSigningRequest that decide.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SigningRequest {
    metadata: SigningMetadata,
    spec: SigningSpec,
    #[serde(default)]
    status: SigningStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct SigningMetadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    annotations: Option<Map<String, Value>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SigningSpec {
    #[serde(default)]
    signer_name: String,
    /// Base64 of PEM.
    #[serde(default)]
    request: String,
    #[serde(default)]
    usages: Vec<String>,
    #[serde(default)]
    username: String,
    expiration_seconds: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct SigningStatus {
    conditions: Option<Vec<Value>>,
}

impl SigningRequest {
    /// Reads the object, from an edge or from the API.
    pub fn read(body: &Body) -> Result<Self, String> {
        let text = body.content_data();
        serde_json::from_str(&text)
            .map_err(|problem| format!("its body is not a CertificateSigningRequest: {problem}"))
    }

    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// Base64 of the PEM.
    pub fn request(&self) -> &str {
        &self.spec.request
    }

    pub fn usages(&self) -> impl Iterator<Item = &str> {
        self.spec.usages.iter().map(String::as_str)
    }

    /// The node from which it came, as CloudCore wrote it down.
    pub fn node(&self) -> Option<&str> {
        let annotations = self.metadata.annotations.as_ref()?;
        annotations.get(NODE_ANNOTATION)?.as_str()
    }

    /// Whether a name cannot be one of this node's requests, so that the API need not be asked.
    pub fn is_foreign_name(node: &NodeName, name: &str) -> bool {
        name != format!("{NAME_PREFIX}{node}")
    }

    /// Whether `node` may ask for this under this name; `name` is the one of the message.
    pub fn check_asked(&self, node: &NodeName, name: &str) -> Result<(), String> {
        if !is_plain_name(name) || self.name() != name {
            return Err("its body names another object than its resource".to_owned());
        }
        if Self::is_foreign_name(node, name) {
            return Err(format!("the request of a node is named {NAME_PREFIX}<node>"));
        }
        if self.spec.signer_name != SERVING_SIGNER {
            return Err(format!("a node may ask only the signer {SERVING_SIGNER}"));
        }
        Ok(())
    }

    /// The object that is created: only what a request consists of, with the name of the node that asked.
    pub fn to_create(&self, node: &NodeName) -> Body {
        let mut spec = json!({
            "signerName": self.spec.signer_name,
            "request": self.spec.request,
            "usages": self.spec.usages,
        });
        if let Some(seconds) = self.spec.expiration_seconds {
            spec["expirationSeconds"] = seconds.into();
        }
        let object = json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": self.name(), "annotations": {NODE_ANNOTATION: node.as_str()}},
            "spec": spec,
        });
        Body::from_value(&object).expect("maps with text keys are JSON")
    }

    /// Whether it waits for us: from `own_user`, for a node's server, and not decided yet. Everything else is somebody
    /// else's and stays untouched.
    pub fn is_ours_to_approve(&self, own_user: &str) -> bool {
        let decided = self.status.conditions.as_ref().is_some_and(|all| !all.is_empty());
        !own_user.is_empty()
            && self.spec.username == own_user
            && self.spec.signer_name == SERVING_SIGNER
            && self.node().is_some()
            && !decided
    }
}

/// The object with the approval added, for a `PUT` of its subresource `approval`. `now` is a time as the API writes it.
pub fn approved(request: &Body, now: &str) -> Option<Body> {
    let mut object: Map<String, Value> = request.parse().ok()?;
    let condition = json!({
        "type": "Approved",
        "status": "True",
        "reason": APPROVED_REASON,
        "message": APPROVED_MESSAGE,
        "lastUpdateTime": now,
    });
    object.insert("status".to_owned(), json!({"conditions": [condition]}));
    Body::from_value(&object).ok()
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeView {
    metadata: NodeMetadata,
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeMetadata {
    name: String,
    labels: NodeLabels,
}

#[derive(Default, Deserialize)]
struct NodeLabels {
    #[serde(rename = "kubernetes.io/hostname", default)]
    host_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<NodeAddress>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    address: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn body(json: Value) -> Body {
        Body::from_value(&json).unwrap()
    }

    fn node() -> Body {
        body(json!({
            "metadata": {"name": "edge-1", "labels": {"kubernetes.io/hostname": "shop-7"}},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "10.0.0.7"},
                {"type": "InternalIP", "address": "fd00::7"},
                {"type": "Hostname", "address": "edge-1.local"},
            ]},
        }))
    }

    #[test]
    fn only_names_and_addresses_of_the_node_pass() {
        let names = NodeNames::of(&node());
        let table: [(&[&str], &[&str]); 7] = [
            (&["edge-1", "EDGE-1.local", "shop-7"], &["10.0.0.7", "fd00::7"]),
            (&[], &["127.0.0.1", "169.254.30.10", "::1", "fe80::1"]),
            (&["kubernetes.default.svc"], &[]),
            (&["edge-1", "edge-2"], &[]),
            (&["*"], &[]),
            (&[], &["10.0.0.8"]),
            (&["edge-1"], &["10.0.0.7", "8.8.8.8"]),
        ];
        let told: String = table
            .iter()
            .map(|(dns, ips)| {
                let owned: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
                let parsed: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
                format!("{dns:?} {ips:?}: {:?}\n", names.check(&owned, &parsed))
            })
            .collect();
        expect![[r#"
            ["edge-1", "EDGE-1.local", "shop-7"] ["10.0.0.7", "fd00::7"]: Ok(())
            [] ["127.0.0.1", "169.254.30.10", "::1", "fe80::1"]: Ok(())
            ["kubernetes.default.svc"] []: Err("\"kubernetes.default.svc\" is not a name of this node")
            ["edge-1", "edge-2"] []: Err("\"edge-2\" is not a name of this node")
            ["*"] []: Err("\"*\" is not a name of this node")
            [] ["10.0.0.8"]: Err("10.0.0.8 is not an address of this node")
            ["edge-1"] ["10.0.0.7", "8.8.8.8"]: Err("8.8.8.8 is not an address of this node")
        "#]]
        .assert_eq(&told);
        assert!(
            NodeNames::of(&Body::null())
                .check(&["edge-1".into()], &[])
                .is_err()
        );
    }

    #[test]
    fn a_node_asks_for_its_own_server_and_nothing_else_reaches_the_api() {
        let node = NodeName::new("edge-1").unwrap();
        let asked = |name: &str, signer: &str| {
            body(json!({
                "metadata": {"name": name, "annotations": {NODE_ANNOTATION: "edge-2"}, "labels": {"a": "b"}},
                "spec": {"signerName": signer, "request": "UEVN", "usages": ["server auth"], "username": "root",
                         "groups": ["system:masters"], "expirationSeconds": 600},
                "status": {"conditions": [{"type": "Approved"}]},
            }))
        };
        let check = |name: &str, signer: &str| {
            let asked = SigningRequest::read(&asked(name, signer)).unwrap();
            match asked.check_asked(&node, name) {
                Ok(()) => asked.to_create(&node).json().to_owned(),
                Err(why) => why,
            }
        };
        let told = [
            check("metaserver-csr-edge-1", SERVING_SIGNER),
            check("metaserver-csr-edge-2", SERVING_SIGNER),
            check("metaserver-csr-edge-1", "kubernetes.io/kube-apiserver-client"),
        ];
        expect![[r#"
            {"apiVersion":"certificates.k8s.io/v1","kind":"CertificateSigningRequest","metadata":{"name":"metaserver-csr-edge-1","annotations":{"kedge.io/node":"edge-1"}},"spec":{"signerName":"kubernetes.io/kubelet-serving","request":"UEVN","usages":["server auth"],"expirationSeconds":600}}
            the request of a node is named metaserver-csr-<node>
            a node may ask only the signer kubernetes.io/kubelet-serving"#]]
        .assert_eq(&told.join("\n"));
    }

    #[test]
    fn only_undecided_requests_of_our_own_are_approved() {
        let object = |user: &str, annotated: bool, decided: bool| {
            let annotations = if annotated {
                json!({NODE_ANNOTATION: "edge-1"})
            } else {
                Value::Null
            };
            let conditions = if decided {
                json!([{"type": "Denied"}])
            } else {
                Value::Null
            };
            body(json!({
                "metadata": {"name": "x", "annotations": annotations},
                "spec": {"signerName": SERVING_SIGNER, "username": user},
                "status": {"conditions": conditions},
            }))
        };
        let ours = |user, annotated, decided| {
            let request = SigningRequest::read(&object(user, annotated, decided)).unwrap();
            request.is_ours_to_approve("cloudcore")
        };
        assert!(ours("cloudcore", true, false));
        assert!(!ours("someone", true, false));
        assert!(!ours("cloudcore", false, false));
        assert!(!ours("cloudcore", true, true));
        let approval = approved(&object("cloudcore", true, false), "2026-01-01T00:00:00Z").unwrap();
        expect![[r#"{"metadata":{"name":"x","annotations":{"kedge.io/node":"edge-1"}},"spec":{"signerName":"kubernetes.io/kubelet-serving","username":"cloudcore"},"status":{"conditions":[{"type":"Approved","status":"True","reason":"AutoApproved","message":"The names in it are those of the node that asked for it.","lastUpdateTime":"2026-01-01T00:00:00Z"}]}}"#]]
        .assert_eq(approval.json());
    }
}
