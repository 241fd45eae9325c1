//! The neighbours that tests play: an edge at one end of a connection, the controllers at the other side of the hub.

use kedge_cloudhub::{Acked, Answer, Attach, Attached};
use kedge_telemetry::channel::{ask, keyed};
use kedge_transport::{Connection, Receiver, RecvError, Sender};
use kedge_wire::{
    Ack, Body, Envelope, Header, Letter, MessageId, NodeName, Object, ObjectKey, ObjectKind, Packet, Request,
    ResourceVersion, ToCloud, ToEdge, Uid,
};
use std::time::Duration;

/// Generous: a fact that does not come within it will not come.
pub(crate) const SOON: Duration = Duration::from_secs(60);

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

/// Takes the next session for the controllers; its node must hold `objects`.
pub(crate) async fn attach(
    attaches: &mut ask::Receiver<Attach, Attached>,
    objects: Vec<(ObjectKey, Object)>,
) -> Controllers {
    let asked = tokio::time::timeout(SOON, attaches.recv())
        .await
        .unwrap()
        .unwrap();
    let Attach {
        node,
        peer: _,
        desired,
        requests,
        acked,
    } = asked.question;
    asked.reply.send(Attached {
        objects,
        ..Attached::default()
    });
    Controllers {
        node,
        desired,
        requests,
        acked,
    }
}

pub(crate) struct Controllers {
    pub(crate) node: NodeName,
    pub(crate) desired: keyed::Sender<ObjectKey, Option<Object>>,
    pub(crate) requests: ask::Receiver<Request, Answer>,
    pub(crate) acked: keyed::Receiver<ObjectKey, Acked>,
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
    pub(crate) fn new(connection: Connection) -> Self {
        let (sender, receiver) = connection.split();
        Self {
            sender,
            receiver,
            number: 0,
        }
    }

    pub(crate) async fn say(&mut self, message: ToCloud) -> MessageId {
        self.number += 1;
        let id = MessageId::new(format!("message-{}", self.number));
        let header = Header::new(id.clone(), 1_767_225_600_000);
        self.send(Letter { header, message }.seal()).await;
        id
    }

    pub(crate) async fn send(&mut self, envelope: Envelope) {
        self.sender.send(&envelope.into()).await.unwrap();
    }

    pub(crate) async fn query(&mut self, name: &str) -> MessageId {
        let key = ObjectKey::namespaced(ObjectKind::ConfigMap, "default", name);
        self.say(ToCloud::Request(Request::query(key))).await
    }

    pub(crate) async fn query_lease(&mut self, node: &str) -> MessageId {
        let key = ObjectKey::lease(&name(node));
        self.say(ToCloud::Request(Request::query(key))).await
    }

    pub(crate) async fn hear(&mut self) -> Letter<ToEdge> {
        let packet = tokio::time::timeout(SOON, self.receiver.recv())
            .await
            .expect("the hub speaks")
            .unwrap();
        match packet {
            Packet::Envelope(envelope) => ToEdge::open(*envelope),
            beat @ (Packet::Ping | Packet::Pong) => panic!("{beat:?}"),
        }
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
        self.send(ack.seal()).await;
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
