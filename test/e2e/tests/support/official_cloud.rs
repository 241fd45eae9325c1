//! An official CloudCore, played against our EdgeCore: it answers as the recorded one did, pushes what the recorded
//! one pushed, one message at a time, and accepts nothing that no official edge says.

use super::recording::{NODE, Recording, content, object_of};
use super::shape::request_shape;
use super::world::{DAY, FACT_DEADLINE, PROJECT};
use kedge_pki::{Authority, ClientAuth, Identity, ServerNames, UnixTime};
use kedge_transport::{Acceptance, Framing, Limits, Listener, Receiver, Sender, accept};
use kedge_wire::{Body, Envelope, Header, MessageId, Packet, RawRoute, ResourceVersion};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::time::Instant;

/// What an official edge may say beside what was recorded (protocol, section 3.5), in the words of [`request_shape`].
const NOT_RECORDED: &[&str] = &[
    "edged meta insert lease object",
    "edged meta update node object",
    "edged meta insert pod object",
    "edged meta insert event object",
    "edged meta update event object",
    "edged meta patch event object",
    "edged meta query persistentvolume null",
    "edged meta query persistentvolumeclaim null",
    "edged meta query volumeattachment null",
    "edged meta insert certificatesigningrequest object",
    "edged meta query certificatesigningrequest null",
    "metamanager meta query k8s/ca.crt null",
];

pub(crate) struct OfficialCloud {
    listener: Listener,
    tls: Arc<rustls::ServerConfig>,
    /// Of the node, as it would have joined with.
    pub(crate) identity: Identity,
    socket: Option<(Sender, Receiver)>,
    recording: Recording,
    allowed: BTreeSet<String>,
    /// By resource.
    objects: BTreeMap<String, Value>,
    version: u64,
    messages: u64,
    /// The official cloud has one push under way, the first of these.
    pushes: VecDeque<Envelope>,
    /// Everything that the edge said.
    pub(crate) heard: Vec<Envelope>,
}

impl OfficialCloud {
    pub(crate) async fn start() -> Self {
        let now = UnixTime::now();
        let authority = Authority::create(now).unwrap();
        let names = ServerNames {
            ips: vec![[127, 0, 0, 1].into()],
            dns: vec![],
        };
        let server = authority.issue_server(&names, now).unwrap();
        let node = format!("{}{NODE}", kedge_pki::NODE_NAME_PREFIX);
        let identity = authority
            .issue_client(&node, &[kedge_pki::NODES_ORGANIZATION], DAY, now)
            .unwrap();
        let recording = Recording::read();
        let recorded = recording.to_cloud().map(request_shape);
        Self {
            allowed: recorded
                .chain(NOT_RECORDED.iter().map(|&shape| shape.to_owned()))
                .collect(),
            listener: Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap(),
            tls: Arc::new(server.server_config(ClientAuth::Required).unwrap()),
            identity,
            socket: None,
            recording,
            objects: BTreeMap::new(),
            version: 3000,
            messages: 0,
            pushes: VecDeque::new(),
            heard: Vec::new(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_address()
    }

    /// The object is at the cloud already.
    pub(crate) fn hold(&mut self, resource: &str, object: Value) {
        self.objects.insert(resource.to_owned(), object);
    }

    /// Takes the next connection of the edge; the one before it, if any, is dropped without a word.
    pub(crate) async fn accept(&mut self) {
        self.socket = None;
        self.heard.clear();
        let (tcp, _) = tokio::time::timeout(FACT_DEADLINE, self.listener.accept())
            .await
            .expect("the edge dials");
        let (connection, ()) = accept(tcp, self.tls.clone(), Limits::HUB, |request| {
            assert_eq!(request.path, format!("/{PROJECT}/{NODE}/events"));
            let wanted = [
                ("node_id", NODE),
                ("project_id", PROJECT),
                ("ConnectionUse", "msg"),
            ];
            for (name, value) in wanted {
                assert_eq!(request.header(name), Some(value));
            }
            assert_eq!(request.header("origin"), None, "Go refuses a foreign origin");
            Ok(Acceptance {
                value: (),
                headers: Vec::new(),
                framing: Framing::Official,
            })
        })
        .await
        .unwrap();
        self.socket = Some(connection.split());
    }

    /// Plays on until the edge has said something like this, and gives it back.
    pub(crate) async fn hears(&mut self, what: &str, is_it: impl Fn(&Envelope) -> bool) -> Envelope {
        self.until(what, |cloud| {
            cloud.heard.iter().find(|heard| is_it(heard)).cloned()
        })
        .await
    }

    pub(crate) async fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + FACT_DEADLINE;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            let (_, receiver) = self.socket.as_mut().expect("connected");
            let heard = match tokio::time::timeout_at(deadline, receiver.recv()).await {
                Ok(received) => received.unwrap_or_else(|error| panic!("waiting for {what}: {error}")),
                Err(_) => panic!("waited in vain for {what}; the edge said {}", self.said()),
            };
            let Packet::Envelope(heard) = heard else {
                panic!("an official cloud knows no {heard:?}")
            };
            self.take(&heard).await;
            self.heard.push(*heard);
        }
    }

    fn said(&self) -> String {
        self.heard.iter().map(Envelope::encode).collect()
    }

    /// Pushes recorded messages, each when the one before is acknowledged, and waits for all to be.
    pub(crate) async fn push(&mut self, recorded: impl IntoIterator<Item = Envelope>) {
        let idle = self.pushes.is_empty();
        for mut push in recorded {
            let resource = push.route.resource.clone();
            self.write(&resource, content(&push));
            push.header.resource_version = self.version_of(&resource);
            push.content = Body::from_value(&self.objects[&resource]).unwrap();
            if push.route.operation == "delete" {
                self.objects.remove(&resource);
            }
            self.pushes.push_back(push);
        }
        if idle {
            self.send_push().await;
        }
        self.until("all acknowledgements", |cloud| {
            cloud.pushes.is_empty().then_some(())
        })
        .await;
    }

    /// Sends what needs no acknowledgement.
    pub(crate) async fn tell(&mut self, recorded: &Envelope) {
        self.send(recorded).await;
    }

    async fn send(&mut self, envelope: &Envelope) {
        let (sender, _) = self.socket.as_mut().expect("connected");
        sender.send(&envelope.clone().into()).await.unwrap();
    }

    async fn send_push(&mut self) {
        let Some(mut push) = self.pushes.pop_front() else {
            return;
        };
        push.header.id = self.message_id();
        self.send(&push).await;
        self.pushes.push_front(push);
    }

    async fn take(&mut self, heard: &Envelope) {
        if heard.route.operation == "response" {
            return self.take_ack(heard).await;
        }
        let shape = request_shape(heard);
        assert!(
            self.allowed.contains(&shape),
            "no official edge says this: {shape}\n{}",
            heard.encode()
        );
        assert_eq!(heard.header.parent, None, "{shape}");
        let Some((_, kind, _)) = object_of(heard) else {
            return;
        };
        let (resource, said) = (heard.route.resource.as_str(), content(heard));
        match (heard.route.operation.as_str(), kind) {
            ("insert", "node") if self.objects.contains_key(resource) => self.answer_as_recorded(heard).await,
            ("insert", "node" | "lease") => {
                self.write(resource, said);
                self.answer_object(heard, resource, false).await;
            }
            ("update", "lease") => {
                assert_eq!(said["metadata"]["uid"], self.objects[resource]["metadata"]["uid"]);
                self.write(resource, said);
                self.answer_object(heard, resource, false).await;
            }
            ("query", "lease") => self.answer_object(heard, resource, false).await,
            ("patch", "nodepatch" | "podpatch") => {
                let object = resource.replace("patch/", "/");
                let Some(mut merged) = self.objects.get(&object).cloned() else {
                    // The last words about a pod that was deleted meanwhile.
                    return self.answer_object(heard, &object, true).await;
                };
                merge(
                    &mut merged,
                    &serde_json::from_str(said.as_str().unwrap()).unwrap(),
                );
                self.write(&object, merged);
                self.answer_object(heard, &object, true).await;
                self.push_object("update", &object).await;
            }
            ("delete", "pod") => {
                self.answer(heard, None, Body::text("OK")).await;
                if self.objects.contains_key(resource) {
                    self.push_object("delete", resource).await;
                    self.objects.remove(resource);
                }
            }
            ("update", "node") => self.answer(heard, None, Body::text("OK")).await,
            ("query", _) => self.answer_as_recorded(heard).await,
            // Events, and what other parts of an edge say.
            _ => {}
        }
    }

    /// An acknowledgement copies the route of what it acknowledges.
    async fn take_ack(&mut self, ack: &Envelope) {
        assert_eq!(ack.content.json(), "\"OK\"");
        assert_eq!(ack.header.resource_version, None);
        let Some(push) = self
            .pushes
            .front()
            .filter(|push| ack.header.parent.as_ref() == Some(&push.header.id))
        else {
            // Of an answer: official edges acknowledge those as well.
            return;
        };
        assert_eq!(
            ack.route,
            RawRoute {
                operation: "response".into(),
                ..push.route.clone()
            }
        );
        self.pushes.pop_front();
        self.send_push().await;
    }

    fn write(&mut self, resource: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("00000000-0000-4000-9000-{:012}", self.version).into();
        }
        self.objects.insert(resource.to_owned(), object);
    }

    fn version_of(&self, resource: &str) -> Option<ResourceVersion> {
        let version = self.objects.get(resource)?["metadata"]["resourceVersion"].as_str();
        version.map(ResourceVersion::new)
    }

    async fn push_object(&mut self, operation: &str, resource: &str) {
        let object = self.objects[resource].clone();
        let recorded = self
            .recording
            .pushes_of(resource)
            .find(|push| push.route.operation == operation);
        let mut push = recorded
            .unwrap_or_else(|| panic!("no {operation} of {resource} was recorded"))
            .clone();
        push.header.resource_version = self.version_of(resource);
        push.content = Body::from_value(&object).unwrap();
        self.pushes.push_back(push);
        if self.pushes.len() == 1 {
            self.send_push().await;
        }
    }

    /// `{"Object": …, "Err": …}`, as the recorded cloud writes it.
    async fn answer_object(&mut self, request: &Envelope, resource: &str, versioned: bool) {
        let name = request.route.resource.rsplit('/').next().unwrap();
        let object = self.objects.get(resource);
        let version = self.version_of(resource).filter(|_| versioned);
        let missing = json!({"ErrStatus": {"metadata": {}, "status": "Failure", "reason": "NotFound", "code": 404,
            "message": format!("{name:?} not found"), "details": {"name": name}}});
        let body = match object {
            Some(object) => json!({"Object": object, "Err": null}),
            None => json!({"Object": {"metadata": {}, "spec": {}}, "Err": missing}),
        };
        self.answer(request, version, Body::from_value(&body).unwrap())
            .await;
    }

    /// The recorded answer to the same request.
    async fn answer_as_recorded(&mut self, request: &Envelope) {
        let same = |envelope: &&Envelope| {
            envelope.route.operation == request.route.operation
                && envelope.route.resource == request.route.resource
        };
        let recorded = self
            .recording
            .to_cloud()
            .find(same)
            .and_then(|asked| self.recording.answer_to(&asked.header.id));
        let recorded = recorded
            .unwrap_or_else(|| panic!("nobody recorded {}", request.encode()))
            .clone();
        let mut body = content(&recorded);
        if body["kind"] == "TokenRequest" {
            body["spec"] = content(request)["spec"].clone();
            body["status"]["expirationTimestamp"] = "2100-01-01T00:00:00Z".into();
        }
        self.answer(
            request,
            recorded.header.resource_version,
            Body::from_value(&body).unwrap(),
        )
        .await;
    }

    async fn answer(&mut self, request: &Envelope, version: Option<ResourceVersion>, content: Body) {
        let id = self.message_id();
        let mut header = Header::new(id, request.header.timestamp_ms).answering(request.header.id.clone());
        header.resource_version = version;
        let route = RawRoute {
            source: "edgecontroller".into(),
            group: "resource".into(),
            operation: "response".into(),
            ..request.route.clone()
        };
        self.send(&Envelope {
            header,
            route,
            content,
        })
        .await;
    }

    fn message_id(&mut self) -> MessageId {
        self.messages += 1;
        MessageId::new(format!("00000000-0000-4000-a000-{:012}", self.messages))
    }
}

/// A patch of the status: lists of a status are sent whole by our edge, what it wants gone it says.
fn merge(object: &mut Value, patch: &Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
            object.retain(|_, value| !value.is_null());
        }
        (object, Value::Array(patch)) => {
            let kept = patch.iter().filter(|item| item.get("$patch").is_none());
            *object = kept.cloned().collect();
        }
        (
            object @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)),
            Value::Object(_),
        ) => {
            *object = json!({});
            merge(object, patch);
        }
        (object, Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
            *object = patch.clone()
        }
    }
}
