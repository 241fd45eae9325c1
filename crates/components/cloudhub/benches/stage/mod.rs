//! A hub in a process of its own, and edges that connect to it.
//!
//! The hub's process is this program again, started with [`HUB`]: so what is measured there is the hub, with controllers
//! that do nothing but answer, and not the edges.
#![allow(clippy::unwrap_used, dead_code)] // A benchmark that cannot go on stops; not each one uses all of this.

use kedge_cloudhub::{Answer, Attached, CloudHub, Config, FlowLimits, Ports};
use kedge_link::{Digest, OFFER_HEADER, OFFER_VERSION};
use kedge_pki::{Authority, ClientAuth, Identity, NodeRequest, ServerNames, UnixTime};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, queue};
use kedge_telemetry::metrics::Registry;
use kedge_transport::{
    Acceptance, Acceptor, DialError, Framing, HandshakeLimits, Limits, Listener, Plug, Receiver, Refusal,
    Sender, Target, UpgradeRequest, dial, dial_quic,
};
use kedge_wire::{Body, Header, Letter, MessageId, NodeName, ObjectKey, Packet, Request, ToCloud};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// The first argument of the process that is the hub.
pub(crate) const HUB: &str = "--be-the-hub";

/// That of the process that only holds connections.
pub(crate) const TRANSPORT: &str = "--be-the-transport";

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The process that is measured.
pub(crate) struct Hub {
    process: Child,
    address: SocketAddr,
    quic: Option<SocketAddr>,
    authority: Authority,
}

/// What the hub's process says first.
#[derive(serde::Serialize, serde::Deserialize)]
struct Introduction {
    address: SocketAddr,
    quic: Option<SocketAddr>,
    certificate: String,
    key: String,
}

/// Is the hub until the parent closes the pipe.
pub(crate) async fn be_the_hub() {
    let authority = Authority::create(UnixTime::now()).unwrap();
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let identity = server_identity(&authority);
    let config = Config {
        hub_address: Some(loopback),
        quic_address: Some(loopback),
        https_address: loopback,
        authority: authority.clone(),
        identity,
        node_limit: 100_000,
        flow: FlowLimits::default(),
        keepalive_timeout: Duration::from_secs(30),
        certificate_lifetime: DAY,
        kubernetes_ca: None,
        seed: 1,
        metrics: Registry::new(),
    };
    let (attach, mut attaches) = ask::channel("attach", 256);
    let (node_exists, _) = ask::channel("node exists", 1);
    let (redeem, _) = ask::channel("redeem", 1);
    let ports = Ports {
        attach,
        node_exists,
        redeem,
    };
    let hub = CloudHub::bind(config, ports).await.unwrap();
    let (address, quic) = (hub.hub_address().unwrap(), hub.quic_address());
    let scope = Scope::new();
    scope.spawn("hub", hub.run(scope.clone()));
    tokio::spawn(async move {
        while let Some(ask::Question { question, reply }) = attaches.recv().await {
            let question: kedge_cloudhub::Attach = question;
            reply.send(Attached::default());
            tokio::spawn(async move {
                let mut attach = question;
                while let Some(asked) = attach.requests.recv().await {
                    asked.reply.send(Answer {
                        body: Body::null(),
                        version: None,
                        error: false,
                        silent: false,
                    });
                }
            });
        }
    });
    introduce(address, quic, &authority).await;
}

/// Is a server that holds connections and does nothing with them, to tell what they cost without a hub.
pub(crate) async fn be_the_transport() {
    let authority = Authority::create(UnixTime::now()).unwrap();
    let tls = server_identity(&authority)
        .server_config(ClientAuth::Required)
        .unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let acceptor = Acceptor::new(listener, Arc::new(tls), HandshakeLimits::default());
    let address = acceptor.local_address();
    let (keep, mut kept) = queue::channel("kept", 1024);
    tokio::spawn(async move {
        loop {
            let (handshake, keep) = (acceptor.next().await, keep.clone());
            tokio::spawn(async move {
                let decide = |_: &UpgradeRequest<'_>| {
                    Ok::<_, Refusal>(Acceptance {
                        value: (),
                        headers: vec![("kedge-link", OFFER_VERSION)],
                        framing: Framing::Kedge,
                    })
                };
                let (connection, ()) = handshake.run(Limits::HUB, decide).await.unwrap();
                let (mut sender, mut receiver) = connection.split();
                // The digest and the heartbeat of the greeting.
                receiver.recv().await.unwrap();
                receiver.recv().await.unwrap();
                sender.send(&Packet::Pong).await.unwrap();
                keep.send((sender, receiver)).await.unwrap();
            });
        }
    });
    tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Some(connection) = kept.recv().await {
            connections.push(connection);
        }
    });
    introduce(address, None, &authority).await;
}

fn server_identity(authority: &Authority) -> Identity {
    let names = ServerNames {
        ips: vec![IpAddr::from([127, 0, 0, 1])],
        dns: Vec::new(),
    };
    authority.issue_server(&names, UnixTime::now()).unwrap()
}

/// Tells the parent where to connect, and waits until it closes the pipe.
async fn introduce(address: SocketAddr, quic: Option<SocketAddr>, authority: &Authority) {
    let introduction = Introduction {
        address,
        quic,
        certificate: authority.certificate().pem(),
        key: authority.key().pkcs8_pem(),
    };
    println!("{}", serde_json::to_string(&introduction).unwrap());
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
        .await
        .unwrap()
        .unwrap();
}

impl Hub {
    /// Starts this program again as `role`: [`HUB`] or [`TRANSPORT`].
    pub(crate) fn start(role: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let introduction: Introduction = serde_json::from_str(&line).unwrap();
        let authority =
            Authority::from_pem(introduction.certificate.as_bytes(), introduction.key.as_bytes()).unwrap();
        Self {
            process,
            address: introduction.address,
            quic: introduction.quic,
            authority,
        }
    }

    /// A number of kilobytes in the process's status, such as `RssAnon`.
    pub(crate) fn status_kb(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// A certificate for a node.
    pub(crate) fn identity(&self, node: &NodeName) -> Identity {
        let request = NodeRequest::create(node).unwrap();
        let signed = self
            .authority
            .sign_node_request(request.der(), node, DAY, UnixTime::now())
            .unwrap();
        Identity::new(
            vec![signed],
            request.into_key(),
            self.authority.certificate().clone(),
        )
        .unwrap()
    }

    pub(crate) async fn connect(
        &self,
        node: &NodeName,
        identity: &Identity,
        kind: Kind,
    ) -> Result<Edge, DialError> {
        let tls = Arc::new(identity.client_config().unwrap());
        let target = |address: SocketAddr| Target::hub(&address.to_string(), "project", node);
        let own = |target: Target| target.offering(OFFER_HEADER, OFFER_VERSION);
        let connection = match kind {
            Kind::Own => dial(&own(target(self.address)), tls, &Plug::new()).await?,
            Kind::Official => dial(&target(self.address), tls, &Plug::new()).await?,
            Kind::Quic => dial_quic(&own(target(self.quic.unwrap())), tls, &Plug::new()).await?,
        };
        let (sender, receiver) = connection.split();
        Ok(Edge {
            node: node.clone(),
            own: kind != Kind::Official,
            sender,
            receiver,
            number: 0,
        })
    }
}

/// How an edge connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Own,
    Official,
    Quic,
}

impl Drop for Hub {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

pub(crate) fn node_name(number: usize) -> NodeName {
    NodeName::new(format!("edge-{number}")).unwrap()
}

/// A hollow edge.
pub(crate) struct Edge {
    node: NodeName,
    own: bool,
    sender: Sender,
    receiver: Receiver,
    number: u64,
}

impl Edge {
    /// The first words of an edge that holds nothing.
    pub(crate) async fn greet(&mut self) {
        if self.own {
            let digest = Digest {
                window: 32,
                held: Vec::new(),
            };
            let body = Body::from_value(&digest).unwrap();
            self.say(ToCloud::Resume { body }).await;
        }
        self.beat().await;
    }

    /// A sign of life.
    pub(crate) async fn beat(&mut self) {
        if self.own {
            self.sender.send(&Packet::Ping).await.unwrap();
            assert_eq!(self.receiver.recv().await.unwrap(), Packet::Pong);
        } else {
            self.say(ToCloud::KeepAlive).await;
        }
    }

    /// Asks for the lease and waits for the answer.
    pub(crate) async fn renew_lease(&mut self) {
        let id = self
            .say(ToCloud::Request(Request::query(ObjectKey::lease(&self.node))))
            .await;
        match self.receiver.recv().await.unwrap() {
            Packet::Envelope(answer) => assert_eq!(answer.header.parent, Some(id)),
            beat @ (Packet::Ping | Packet::Pong) => panic!("{beat:?}"),
        }
    }

    async fn say(&mut self, message: ToCloud) -> MessageId {
        self.number += 1;
        let id = MessageId::new(format!("message-{}", self.number));
        let header = Header::new(id.clone(), 1_767_225_600_000);
        self.sender
            .send(&Letter { header, message }.seal().into())
            .await
            .unwrap();
        id
    }
}
