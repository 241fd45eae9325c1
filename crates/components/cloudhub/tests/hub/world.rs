//! A hub, its authority, and the neighbours that the test plays.

use crate::play::{Controllers, Edge};
pub(crate) use crate::play::{SOON, name};
use kedge_cloudhub::{Attach, Attached, CloudHub, Config, FlowLimits, Metrics, Ports, Redeem, Redeemed};
use kedge_link::{OFFER_HEADER, OFFER_VERSION};
use kedge_pki::{Authority, Certificate, Identity, NodeRequest, ServerNames, TokenId, UnixTime};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask;
use kedge_telemetry::metrics::Registry;
use kedge_transport::{DialError, Plug, Target, dial, dial_quic};
use kedge_wire::{NodeName, Object, ObjectKey};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct World {
    pub(crate) authority: Authority,
    hub_address: Option<SocketAddr>,
    quic_address: Option<SocketAddr>,
    pub(crate) https_address: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) numbers: Registry,
    pub(crate) attaches: ask::Receiver<Attach, Attached>,
    pub(crate) scope: Scope,
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn config(authority: &Authority, node_limit: usize) -> Config {
    let names = ServerNames {
        ips: vec![IpAddr::from([127, 0, 0, 1])],
        dns: Vec::new(),
    };
    Config {
        hub_address: Some(loopback()),
        quic_address: Some(loopback()),
        https_address: loopback(),
        authority: authority.clone(),
        identity: authority.issue_server(&names, UnixTime::now()).unwrap(),
        node_limit,
        flow: FlowLimits::default(),
        keepalive_timeout: Duration::from_secs(30),
        certificate_lifetime: Duration::from_secs(3600),
        kubernetes_ca: Some("PEM of the API".into()),
        seed: 7,
        metrics: Registry::new(),
    }
}

/// Knows every one-time token but those of node `withdrawn`, and says nothing of node `silent`.
fn redeemer() -> ask::Sender<Redeem, Redeemed> {
    let (redeem, mut questions) = ask::channel::<Redeem, Redeemed>("redeem", 16);
    tokio::spawn(async move {
        let mut used: HashMap<TokenId, String> = HashMap::new();
        while let Some(ask::Question { question, reply }) = questions.recv().await {
            match question.node.as_str() {
                "withdrawn" => reply.send(Redeemed::Unknown),
                "silent" => drop(reply),
                _known => {
                    let key = used.entry(question.token).or_insert_with(|| question.key.clone());
                    reply.send(if *key == question.key {
                        Redeemed::Granted
                    } else {
                        Redeemed::Spent
                    });
                }
            }
        }
    });
    redeem
}

pub(crate) fn ports() -> (Ports, ask::Receiver<Attach, Attached>) {
    let (attach, attaches) = ask::channel("attach", 16);
    let (node_exists, mut questions) = ask::channel::<NodeName, bool>("node exists", 16);
    tokio::spawn(async move {
        while let Some(asked) = questions.recv().await {
            let exists = asked.question.as_str() == "known";
            asked.reply.send(exists);
        }
    });
    (
        Ports {
            attach,
            node_exists,
            redeem: redeemer(),
        },
        attaches,
    )
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with_limit(100).await
    }

    pub(crate) async fn with_limit(node_limit: usize) -> Self {
        let authority = Authority::create(UnixTime::now()).unwrap();
        let config = config(&authority, node_limit);
        Self::with(authority, config).await
    }

    pub(crate) async fn with(authority: Authority, config: Config) -> Self {
        let (ports, attaches) = ports();
        let numbers = config.metrics.clone();
        let hub = CloudHub::bind(config, ports).await.unwrap();
        let scope = Scope::new();
        let (hub_address, quic_address) = (hub.hub_address(), hub.quic_address());
        let https_address = hub.https_address();
        let metrics = hub.metrics();
        scope.spawn("hub", hub.run(scope.clone()));
        Self {
            authority,
            hub_address,
            quic_address,
            https_address,
            metrics,
            numbers,
            attaches,
            scope,
        }
    }

    /// Where edges connect over WebSocket.
    pub(crate) fn hub_address(&self) -> SocketAddr {
        self.hub_address.unwrap()
    }

    /// A certificate of the node, without going through the bootstrap server.
    pub(crate) fn identity(&self, node: &str) -> Identity {
        let request = NodeRequest::create(&name(node)).unwrap();
        let lifetime = Duration::from_secs(3600);
        let signed = self
            .authority
            .sign_node_request(request.der(), &name(node), lifetime, UnixTime::now())
            .unwrap();
        self.identity_of(signed, request)
    }

    pub(crate) fn identity_of(&self, signed: Certificate, request: NodeRequest) -> Identity {
        Identity::new(
            vec![signed],
            request.into_key(),
            self.authority.certificate().clone(),
        )
        .unwrap()
    }

    pub(crate) async fn dial(&self, node: &str, claimed: &str, offer: bool) -> Result<Edge, DialError> {
        let mut target = Target::hub(&self.hub_address().to_string(), "project", &name(claimed));
        if offer {
            target = target.offering(OFFER_HEADER, OFFER_VERSION);
        }
        let tls = Arc::new(self.identity(node).client_config().unwrap());
        let connection = dial(&target, tls, &Plug::new()).await?;
        assert_eq!(connection.header(OFFER_HEADER).is_some(), offer);
        Ok(Edge::new(connection))
    }

    pub(crate) async fn dial_quic(&self, node: &str) -> Result<Edge, DialError> {
        let target = Target::hub(&self.quic_address.unwrap().to_string(), "project", &name(node));
        let target = target.offering(OFFER_HEADER, OFFER_VERSION);
        let tls = Arc::new(self.identity(node).client_config().unwrap());
        Ok(Edge::new(dial_quic(&target, tls, &Plug::new()).await?))
    }

    /// An official edge.
    pub(crate) async fn edge(&self, node: &str) -> Edge {
        self.dial(node, node, false).await.unwrap()
    }

    /// The controllers' end of the next session, which must hold `objects`.
    pub(crate) async fn attach(&mut self, objects: Vec<(ObjectKey, Object)>) -> Controllers {
        crate::play::attach(&mut self.attaches, objects).await
    }

    /// A connected node with its controllers' end.
    pub(crate) async fn node(&mut self, node: &str) -> (Edge, Controllers) {
        let edge = self.edge(node).await;
        let controllers = self.attach(Vec::new()).await;
        assert_eq!(controllers.node, name(node));
        (edge, controllers)
    }
}
