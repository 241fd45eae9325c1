//! A hub, its authority, and the neighbours that the test plays.

use kedge_cloudhub::{Answer, Attach, CloudHub, Config, Metrics, Ports};
use kedge_link::{OFFER_HEADER, OFFER_VERSION};
use kedge_pki::{Authority, Certificate, Identity, NodeRequest, ServerNames, UnixTime};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed};
use kedge_transport::{DialError, Plug, Receiver, RecvError, Sender, Target, dial};
use kedge_wire::{
    Ack, Body, Envelope, Header, Letter, MessageId, NodeName, Object, ObjectKey, ObjectKind, Request,
    ResourceVersion, ToCloud, ToEdge, Uid,
};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Generous: a fact that does not come within it will not come.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn name(node: &str) -> NodeName {
    NodeName::new(node).unwrap()
}

pub(crate) fn pod(name: &str) -> ObjectKey {
    ObjectKey::namespaced(ObjectKind::Pod, "default", name)
}

pub(crate) fn object(name: &str, version: u32) -> Object {
    let body = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","namespace":"default","uid":"uid-{name}","resourceVersion":"{version}"}}}}"#
    );
    Object {
        uid: Uid::new(format!("uid-{name}")),
        version: ResourceVersion::new(version.to_string()),
        body: Body::from_json(body).unwrap(),
    }
}

pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) hub_address: SocketAddr,
    pub(crate) https_address: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) attaches: ask::Receiver<Attach, Vec<(ObjectKey, Object)>>,
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
        hub_address: loopback(),
        https_address: loopback(),
        authority: authority.clone(),
        identity: authority.issue_server(&names, UnixTime::now()).unwrap(),
        node_limit,
        keepalive_timeout: Duration::from_secs(30),
        certificate_lifetime: Duration::from_secs(3600),
        kubernetes_ca: Some("PEM of the API".into()),
        seed: 7,
    }
}

pub(crate) fn ports() -> (Ports, ask::Receiver<Attach, Vec<(ObjectKey, Object)>>) {
    let (attach, attaches) = ask::channel("attach", 16);
    let (node_exists, mut questions) = ask::channel::<NodeName, bool>("node exists", 16);
    tokio::spawn(async move {
        while let Some(asked) = questions.recv().await {
            let exists = asked.question.as_str() == "known";
            asked.reply.send(exists);
        }
    });
    (Ports { attach, node_exists }, attaches)
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with_limit(100).await
    }

    pub(crate) async fn with_limit(node_limit: usize) -> Self {
        let authority = Authority::create(UnixTime::now()).unwrap();
        let (ports, attaches) = ports();
        let hub = CloudHub::bind(config(&authority, node_limit), ports)
            .await
            .unwrap();
        let scope = Scope::new();
        let (hub_address, https_address) = (hub.hub_address(), hub.https_address());
        let metrics = hub.metrics();
        scope.spawn("hub", hub.run(scope.clone()));
        Self {
            authority,
            hub_address,
            https_address,
            metrics,
            attaches,
            scope,
        }
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
        let mut target = Target::hub(&self.hub_address.to_string(), "project", &name(claimed));
        if offer {
            target = target.with_header(OFFER_HEADER, OFFER_VERSION);
        }
        let tls = Arc::new(self.identity(node).client_config().unwrap());
        let connection = dial(&target, tls, &Plug::new()).await?;
        assert_eq!(connection.header(OFFER_HEADER).is_some(), offer);
        let (sender, receiver) = connection.split();
        Ok(Edge {
            sender,
            receiver,
            number: 0,
        })
    }

    /// An official edge.
    pub(crate) async fn edge(&self, node: &str) -> Edge {
        self.dial(node, node, false).await.unwrap()
    }

    /// The controllers' end of the next session, which must hold `objects`.
    pub(crate) async fn attach(&mut self, objects: Vec<(ObjectKey, Object)>) -> Controllers {
        let asked = tokio::time::timeout(SOON, self.attaches.recv())
            .await
            .unwrap()
            .unwrap();
        let Attach {
            node,
            desired,
            requests,
        } = asked.question;
        asked.reply.send(objects);
        Controllers {
            node,
            desired,
            requests,
        }
    }

    /// A connected node with its controllers' end.
    pub(crate) async fn node(&mut self, node: &str) -> (Edge, Controllers) {
        let edge = self.edge(node).await;
        let controllers = self.attach(Vec::new()).await;
        assert_eq!(controllers.node, name(node));
        (edge, controllers)
    }
}

pub(crate) struct Controllers {
    pub(crate) node: NodeName,
    pub(crate) desired: keyed::Sender<ObjectKey, Option<Object>>,
    pub(crate) requests: ask::Receiver<Request, Answer>,
}

impl Controllers {
    /// Takes one request and answers with its own name.
    pub(crate) async fn answer_one(&mut self) {
        let asked = tokio::time::timeout(SOON, self.requests.recv())
            .await
            .unwrap()
            .unwrap();
        let body = Body::text(&asked.question.key.name);
        asked.reply.send(Answer {
            body,
            version: None,
            error: false,
            silent: false,
        });
    }
}

pub(crate) struct Edge {
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    number: u64,
}

impl Edge {
    pub(crate) async fn say(&mut self, message: ToCloud) -> MessageId {
        self.number += 1;
        let id = MessageId::new(format!("message-{}", self.number));
        let header = Header::new(id.clone(), 1_767_225_600_000);
        self.send(&Letter { header, message }.seal()).await;
        id
    }

    pub(crate) async fn send(&mut self, envelope: &Envelope) {
        self.sender.send(envelope).await.unwrap();
    }

    pub(crate) async fn query(&mut self, name: &str) -> MessageId {
        let key = ObjectKey::namespaced(ObjectKind::ConfigMap, "default", name);
        self.say(ToCloud::Request(Request::query(key))).await
    }

    pub(crate) async fn hear(&mut self) -> Letter<ToEdge> {
        let envelope = tokio::time::timeout(SOON, self.receiver.recv())
            .await
            .expect("the hub speaks")
            .unwrap();
        ToEdge::open(envelope)
    }

    /// The reply to a question, as text.
    pub(crate) async fn reply(&mut self, id: &MessageId) -> String {
        let letter = self.hear().await;
        assert_eq!(letter.header.parent.as_ref(), Some(id));
        match letter.message {
            ToEdge::Reply(reply) => reply.body.content_data(),
            other => panic!("{other:?}"),
        }
    }

    /// The next object change as `verb key@version`, acknowledged.
    pub(crate) async fn take_object(&mut self) -> String {
        let letter = self.hear().await;
        let parent = letter.header.id.clone();
        let ToEdge::Object(change) = &letter.message else {
            panic!("{letter:?}")
        };
        let version = change.version.as_ref().map_or("-", |version| version.as_str());
        let told = format!("{:?} {}@{version}", change.verb, change.key);
        let mut header = Header::new(MessageId::new(format!("ack-{parent}")), 1_767_225_600_000);
        header.parent = Some(parent.clone());
        let ack = Letter {
            header,
            message: ToCloud::Ack(Ack::of(parent, &letter.message)),
        };
        self.send(&ack.seal()).await;
        told
    }

    /// How the hub ends the connection.
    pub(crate) async fn end(&mut self) -> String {
        loop {
            match tokio::time::timeout(SOON, self.receiver.recv())
                .await
                .expect("the hub ends it")
            {
                Ok(_) => {}
                Err(RecvError::Closed(close)) => return close.to_string(),
                Err(error) => return error.to_string(),
            }
        }
    }
}
