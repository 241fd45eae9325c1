//! The hub on loopback TLS, with a cloud that speaks our additions.

use super::cloud::{Cloud, Directory, Mood, NODE};
use crate::{CertificateConfig, Config, EdgeHub, Network, Ports, Rates, Transport, bootstrap};
use kedge_link::OFFER_HEADER;
use kedge_link::edge::{StoreDone, StoreOrder};
use kedge_pki::{ClientAuth, Identity, NodeRequest, UnixTime};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask::{self, Question};
use kedge_telemetry::channel::latest;
use kedge_transport::{
    Acceptance, Connection, Framing, HandshakeLimits, Limits, Listener, QuicListener, accept,
};
use kedge_wire::{NodeName, Packet, ToCloud};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// Where the cloud listens.
enum Hub {
    WebSocket(Listener),
    Quic(QuicListener),
}

impl Hub {
    async fn bind(transport: Transport, tls: &rustls::ServerConfig) -> Self {
        let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
        match transport {
            Transport::WebSocket => Self::WebSocket(Listener::bind(anywhere).await.unwrap()),
            Transport::Quic => {
                Self::Quic(QuicListener::bind(anywhere, tls, HandshakeLimits::default()).unwrap())
            }
        }
    }

    fn local_address(&self) -> SocketAddr {
        match self {
            Self::WebSocket(listener) => listener.local_address(),
            Self::Quic(listener) => listener.local_address(),
        }
    }
}

struct World {
    hub: Hub,
    tls: Arc<rustls::ServerConfig>,
    online: latest::Receiver<bool>,
    identity: latest::Receiver<Option<Identity>>,
    plug: kedge_transport::Plug,
    scope: Scope,
}

impl World {
    async fn start(
        cloud: &Cloud,
        directory: &Directory,
        identity: Option<Identity>,
        rotate_certificates: bool,
        transport: Transport,
    ) -> Self {
        let tls = Arc::new(cloud.server.server_config(ClientAuth::Required).unwrap());
        let hub = Hub::bind(transport, &tls).await;
        let config = Config {
            certificate: CertificateConfig {
                token_file: Some(directory.path("bootstrap-edgecore.conf")),
                ..directory.config(cloud, None)
            },
            transport,
            servers: vec![hub.local_address().to_string()],
            handshake_timeout: PATIENCE,
            read_deadline: Duration::from_secs(15),
            rates: Rates::default(),
            project_id: "p1".to_owned(),
            heartbeat: Duration::from_secs(15),
            rotate_certificates,
            seed: 7,
        };
        let (store, mut orders) = ask::channel("store", 4);
        // The asking end lives as long as the world.
        let (requests_out, requests_in) = ask::channel("requests", 4);
        let (online_out, online) = latest::channel(false);
        let (identity_out, identity_in) = latest::channel(None);
        let ports = Ports {
            store,
            requests: requests_in,
            online: online_out,
            held_anew: None,
            identity: identity_out,
        };
        let network = Network::default();
        let plug = network.plug.clone();
        let edge = EdgeHub::new(config, identity, network, ports).unwrap();
        let scope = Scope::new();
        scope.spawn("edgehub", edge.run(scope.clone()));
        scope.spawn_until_cancelled("store", async move {
            let _requests = requests_out;
            while let Some(Question { question, reply }) = orders.recv().await {
                assert_eq!(question, StoreOrder::Held);
                let version = "5".to_owned();
                let held = kedge_link::Held {
                    key: "default/pod/web".to_owned(),
                    uid: "u1".to_owned(),
                    version,
                };
                reply.send(StoreDone::Held(vec![held]));
            }
        });
        Self {
            hub,
            tls,
            online,
            identity: identity_in,
            plug,
            scope,
        }
    }

    async fn accept(&self) -> Connection {
        let accepted = async {
            let decide = |request: &kedge_transport::UpgradeRequest<'_>| {
                assert_eq!(request.path, format!("/p1/{NODE}/events"));
                assert_eq!(request.header(OFFER_HEADER), Some("1"));
                assert!(request.certificate.is_some());
                Ok(Acceptance {
                    value: (),
                    headers: vec![("kedge-link", "1")],
                    framing: Framing::Kedge,
                })
            };
            let accepted = match &self.hub {
                Hub::WebSocket(listener) => {
                    let (tcp, _) = listener.accept().await;
                    accept(tcp, Arc::clone(&self.tls), Limits::HUB, decide).await
                }
                Hub::Quic(listener) => listener.next().await.run(Limits::HUB, decide).await,
            };
            accepted.unwrap().0
        };
        tokio::time::timeout(PATIENCE, accepted).await.unwrap()
    }
}

async fn a_session_survives_a_pulled_plug(transport: Transport) {
    let (cloud, directory) = (Cloud::start(Mood::Good).await, Directory::new());
    let config = directory.config(&cloud, Some(&cloud.token(600)));
    let identity = bootstrap(&config, UnixTime::now()).await.unwrap();
    let mut world = World::start(&cloud, &directory, Some(identity), false, transport).await;
    for _ in 0..2 {
        let (_sender, mut receiver) = world.accept().await.split();
        let Packet::Envelope(first) = receiver.recv().await.unwrap() else {
            panic!("a heartbeat before the digest")
        };
        let first = ToCloud::open(*first).message;
        assert!(
            matches!(&first, ToCloud::Resume { body } if body.json().contains("default/pod/web")),
            "{first:?}"
        );
        assert_eq!(receiver.recv().await.unwrap(), Packet::Ping);
        world.online.wait_for(|online| *online).await.unwrap();
        world.plug.pull();
        world.online.wait_for(|online| !online).await.unwrap();
        world.plug.insert();
    }
    assert!(world.scope.drain(PATIENCE).await.left.is_empty());
}

#[tokio::test]
async fn with_one_of_our_clouds_the_digest_opens_the_session_and_a_pulled_plug_is_survived() {
    a_session_survives_a_pulled_plug(Transport::WebSocket).await;
}

#[tokio::test]
async fn the_same_over_quic() {
    a_session_survives_a_pulled_plug(Transport::Quic).await;
}

#[tokio::test]
async fn a_certificate_near_its_end_is_renewed_and_used() {
    let (cloud, directory) = (Cloud::start(Mood::Good).await, Directory::new());
    let node = NodeName::new(NODE).unwrap();
    let csr = NodeRequest::create(&node).unwrap();
    let life = Duration::from_secs(10);
    let certificate = cloud
        .authority
        .sign_node_request(csr.der(), &node, life, UnixTime::now())
        .unwrap();
    let authority = cloud.authority.certificate().clone();
    let old = Identity::new(vec![certificate], csr.into_key(), authority).unwrap();
    let mut world = World::start(&cloud, &directory, Some(old.clone()), true, Transport::WebSocket).await;
    let renewed = tokio::time::timeout(
        PATIENCE,
        world
            .identity
            .wait_for(|identity| identity.as_ref().is_some_and(|new| *new != old)),
    )
    .await;
    let renewed = renewed.unwrap().unwrap().clone().unwrap();
    assert!(renewed.certificate().info().not_after > old.certificate().info().not_after);
    let saved = directory.config(&cloud, None).files.load().unwrap();
    assert_eq!(saved, Some(renewed));
    assert!(world.scope.drain(PATIENCE).await.left.is_empty());
}

/// The certificate ended while the node was off and the cloud has a new authority: a token mends both.
#[tokio::test]
async fn a_node_whose_certificate_ended_joins_again_by_a_token_that_is_laid_down() {
    let (before, cloud) = (Cloud::start(Mood::Good).await, Cloud::start(Mood::Good).await);
    let directory = Directory::new();
    let node = NodeName::new(NODE).unwrap();
    let csr = NodeRequest::create(&node).unwrap();
    let long_ago = UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000));
    let life = Duration::from_secs(3600);
    let certificate = before
        .authority
        .sign_node_request(csr.der(), &node, life, long_ago)
        .unwrap();
    let authority = before.authority.certificate().clone();
    let ended = Identity::new(vec![certificate], csr.into_key(), authority).unwrap();
    directory.files().save(&ended).unwrap();
    let mut world = World::start(&cloud, &directory, None, true, Transport::WebSocket).await;
    // It is shown, because the clock may be wrong; this cloud does not know it.
    let shown = world
        .identity
        .wait_for(|identity| identity.as_ref() == Some(&ended));
    tokio::time::timeout(PATIENCE, shown).await.unwrap().unwrap();
    let token = cloud.token(600);
    kedge_pki::write_private(&directory.path("bootstrap-edgecore.conf"), token.as_bytes()).unwrap();
    // What the edge dials in vain with the old certificate is taken from the queue by the listener's backlog.
    let joined = world
        .identity
        .wait_for(|identity| identity.as_ref().is_some_and(|identity| *identity != ended));
    let joined = tokio::time::timeout(PATIENCE, joined)
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert_eq!(directory.files().load().unwrap(), joined);
    assert!(world.scope.drain(PATIENCE).await.left.is_empty());
}
