//! An official EdgeCore, played from the recording against our CloudCore: what it sends is the recorded text with the
//! uids and versions of this API in place of the recorded ones; what it holds it acknowledges as recorded.

use super::recording::{content, object_of};
use super::shape::push_shape;
use super::world::{FACT_DEADLINE, World};
use kedge_pki::Identity;
use kedge_transport::{Close, CloseCode, Receiver, Sender};
use kedge_wire::{Body, Envelope, Header, MessageId, NodeName, Packet, RawRoute};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use tokio::time::Instant;

pub(crate) struct OfficialEdge {
    node: NodeName,
    identity: Identity,
    socket: Option<(Sender, Receiver)>,
    /// Recorded text -> what stands for it here: uids of objects, ids of the cloud's answers.
    stands_for: HashMap<String, String>,
    lease_version: Option<Value>,
    answers: HashMap<MessageId, Envelope>,
    /// The newest push about each resource.
    pushed: HashMap<String, Envelope>,
    /// What kinds of push there were.
    pub(crate) push_shapes: BTreeSet<String>,
    acks: u32,
}

impl OfficialEdge {
    pub(crate) async fn join(world: &World, node: &str) -> Self {
        let node = NodeName::new(node).unwrap();
        Self {
            identity: world.join(&node).await,
            node,
            socket: None,
            stands_for: HashMap::new(),
            lease_version: None,
            answers: HashMap::new(),
            pushed: HashMap::new(),
            push_shapes: BTreeSet::new(),
            acks: 0,
        }
    }

    pub(crate) async fn connect(&mut self, world: &World) {
        let connection = world.dial(&self.node, &self.identity).await;
        assert_eq!(
            connection.header(kedge_link::OFFER_HEADER),
            None,
            "nothing of ours without an offer"
        );
        self.socket = Some(connection.split());
    }

    pub(crate) async fn disconnect(&mut self) {
        if let Some((sender, _)) = self.socket.take() {
            sender
                .close(&Close {
                    code: CloseCode::Normal,
                    reason: String::new(),
                })
                .await;
        }
    }

    /// From now on the recorded text is written as `here`.
    pub(crate) fn map(&mut self, recorded: &str, here: &str) {
        self.stands_for.insert(recorded.to_owned(), here.to_owned());
    }

    pub(crate) fn knows(&self, recorded: &str) -> bool {
        self.stands_for.contains_key(recorded)
    }

    fn here(&self, recorded: &str) -> String {
        self.stands_for
            .iter()
            .fold(recorded.to_owned(), |text, (from, to)| {
                text.replace(from.as_str(), to)
            })
    }

    /// Sends a recorded message.
    pub(crate) async fn say(&mut self, recorded: &Envelope) {
        let mut envelope = recorded.clone();
        let mut body = self.here(recorded.content.json());
        if object_of(recorded).is_some_and(|(_, kind, _)| kind == "lease")
            && recorded.content.json() != "null"
        {
            let mut lease: Value = serde_json::from_str(&body).unwrap();
            if let (Some(version), true) = (&self.lease_version, lease.is_object()) {
                lease["metadata"]["resourceVersion"] = version.clone();
                body = lease.to_string();
            }
        }
        envelope.content = Body::from_json(body).unwrap();
        envelope.route.resource = self.here(&recorded.route.resource);
        envelope.header.parent = recorded
            .header
            .parent
            .as_ref()
            .map(|parent| MessageId::new(self.here(parent.as_str())));
        self.send(&envelope).await;
    }

    async fn send(&mut self, envelope: &Envelope) {
        let (sender, _) = self.socket.as_mut().expect("connected");
        sender.send(&envelope.clone().into()).await.unwrap();
    }

    /// The cloud's answer to a recorded request; it stands for the recorded answer from then on.
    pub(crate) async fn answer(&mut self, recorded: &Envelope) -> Envelope {
        let request = recorded.header.parent.clone().expect("an answer");
        let answer = self
            .until(&format!("the answer {}", recorded.route.resource), |edge| {
                edge.answers.remove(&request)
            })
            .await;
        if answer.route.resource.starts_with("kube-node-lease/lease/") {
            self.lease_version = content(&answer)
                .pointer("/Object/metadata/resourceVersion")
                .cloned();
        }
        self.map(recorded.header.id.as_str(), answer.header.id.as_str());
        answer
    }

    /// Waits until the newest push about `resource` is like this.
    pub(crate) async fn pushed(&mut self, resource: &str, is_it: impl Fn(&Envelope) -> bool) -> Envelope {
        self.until(&format!("a push of {resource}"), |edge| {
            edge.pushed.get(resource).filter(|push| is_it(push)).cloned()
        })
        .await
    }

    async fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + FACT_DEADLINE;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            let (_, receiver) = self.socket.as_mut().expect("connected");
            match tokio::time::timeout_at(deadline, receiver.recv()).await {
                Ok(received) => {
                    match received.unwrap_or_else(|error| panic!("waiting for {what}: {error}")) {
                        Packet::Envelope(heard) => self.take(*heard).await,
                        other => panic!("an official edge knows no {other:?}"),
                    }
                }
                Err(_) => panic!("waited in vain for {what}; pushes: {:#?}", self.push_shapes),
            }
        }
    }

    async fn take(&mut self, envelope: Envelope) {
        if let Some(parent) = envelope.header.parent.clone() {
            let again = self.answers.insert(parent, envelope);
            assert_eq!(again, None, "one request, one answer");
            return;
        }
        self.push_shapes.insert(push_shape(&envelope));
        self.acks += 1;
        let id = MessageId::new(format!("00000000-0000-4000-8000-{:012}", self.acks));
        let ack = Envelope {
            header: Header::new(id, envelope.header.timestamp_ms).answering(envelope.header.id.clone()),
            route: RawRoute {
                operation: "response".into(),
                ..envelope.route.clone()
            },
            content: Body::text("OK"),
        };
        self.send(&ack).await;
        self.pushed.insert(envelope.route.resource.clone(), envelope);
    }
}

/// Whether the version in the header, if there is one, is that of the object in the content.
pub(crate) fn version_is_true(envelope: &Envelope) -> bool {
    let content = content(envelope);
    let object = content.get("Object").unwrap_or(&content);
    let version = object["metadata"]["resourceVersion"].as_str();
    envelope
        .header
        .resource_version
        .as_ref()
        .is_none_or(|told| Some(told.as_str()) == version)
}
