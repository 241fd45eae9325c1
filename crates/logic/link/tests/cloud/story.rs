//! The words of a story: what is said to the cloud's end of a link, and what it says.

use expect_test::Expect;
use kedge_link::cloud::{CloudLink, Config, Event};
use kedge_link::{Digest, Held, Peer};
use kedge_wire::{
    Ack, Body, Envelope, Header, Letter, MessageId, NodeName, Object, ObjectKey, ObjectKind, Refusal,
};
use kedge_wire::{Packet, Request, Resource, ResourceVersion, Route, Time, ToCloud, Uid};
use std::time::Duration;

pub(crate) struct Story {
    link: CloudLink,
    now: Time,
    sent: Vec<Envelope>,
    heard: u32,
    lines: Vec<String>,
}

impl Story {
    fn new(peer: Peer) -> Self {
        let config = Config {
            keepalive_timeout: Duration::from_secs(30),
            in_flight_max: 3,
            retry_delay: Duration::from_secs(2),
            retry_delay_max: Duration::from_secs(8),
            requests_max: 3,
        };
        let now = Time::from_ms(1_000_000);
        let node = NodeName::new("edge-1").unwrap();
        let link = CloudLink::new(node, peer, config, 7, now);
        Self {
            link,
            now,
            sent: Vec::new(),
            heard: 0,
            lines: Vec::new(),
        }
    }

    fn tell(&mut self, line: &str) {
        self.lines.push(format!("> {line}"));
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["assume", name, uid, version] => {
                let held = (pod(name), Uid::new(*uid), ResourceVersion::new(*version));
                self.link.assume_held(vec![held]);
            }
            ["assume-configmap", name, uid, version] => {
                let key = ObjectKey::namespaced(ObjectKind::ConfigMap, "default", name);
                let held = (key, Uid::new(*uid), ResourceVersion::new(*version));
                self.link.assume_held(vec![held]);
            }
            ["want-configmap", name, uid, version] => {
                let key = ObjectKey::namespaced(ObjectKind::ConfigMap, "default", name);
                self.link
                    .set_desired(key, Some(object(name, uid, version)), self.now);
            }
            ["want", name, uid, version] => {
                self.link
                    .set_desired(pod(name), Some(object(name, uid, version)), self.now);
            }
            ["drop", name] => self.link.set_desired(pod(name), None, self.now),
            ["complete"] => self.link.desired_complete(self.now),
            ["resume", held @ ..] => self.resume(64, held),
            ["resume-with-window", window, held @ ..] => self.resume(window.parse().unwrap(), held),
            ["resume-broken"] => self.hear(
                None,
                ToCloud::Resume {
                    body: Body::text("no digest"),
                },
            ),
            ["ack", number] => {
                let (parent, route) = self.parent(number);
                let ack = Ack {
                    parent: parent.clone(),
                    route: route.acknowledged(),
                    body: Body::text("OK"),
                };
                self.hear(Some(parent), ToCloud::Ack(ack));
            }
            ["refuse", number] => {
                let (parent, route) = self.parent(number);
                let route = Route {
                    operation: kedge_wire::Operation::Error,
                    ..route
                };
                let refusal = Refusal {
                    parent: Some(parent.clone()),
                    route,
                    body: Body::text("disk full"),
                };
                self.hear(Some(parent), ToCloud::Refusal(refusal));
            }
            ["ping"] => self.link.handle_packet(Packet::Ping, self.now),
            ["pong"] => self.link.handle_packet(Packet::Pong, self.now),
            ["reached", version] => {
                self.link
                    .set_reached(&ObjectKind::Pod, &ResourceVersion::new(*version));
            }
            ["stray-ack"] => {
                let parent = MessageId::new("never-sent");
                let key = pod("web");
                let route =
                    Route::from_edge_controller(kedge_wire::Operation::Response, Resource::Object(key));
                let body = Body::text("OK");
                let ack = Ack {
                    parent: parent.clone(),
                    route,
                    body,
                };
                self.hear(Some(parent), ToCloud::Ack(ack));
            }
            ["depth"] => {
                let depth = self.link.depth();
                self.lines.push(format!(
                    "in flight {}, waiting {}, retries {}, strays {}",
                    depth.in_flight, depth.waiting, depth.retries, depth.strays
                ));
            }
            ["keepalive"] => self.hear(None, ToCloud::KeepAlive),
            ["ask", kind, name] => {
                let kind = ObjectKind::parse(kind);
                let key = ObjectKey::namespaced(kind, "default", name);
                self.hear(None, ToCloud::Request(Request::query(key)));
            }
            ["answer", numbers @ ..] => {
                for number in numbers {
                    let id = MessageId::new(format!("heard-{number}"));
                    self.link.reply(&id, Body::text("done"), None, false, self.now);
                }
            }
            ["after", seconds] => self.wait(Duration::from_secs(seconds.parse().unwrap())),
            // The clock leaps, or is set back, and the link is woken late or too often.
            ["leap", seconds] => {
                self.now = self.now + Duration::from_secs(seconds.parse().unwrap());
                self.link.handle_timeout(self.now);
            }
            ["set-back", seconds] => {
                self.now = self.now - Duration::from_secs(seconds.parse().unwrap());
                self.link.handle_timeout(self.now);
            }
            ["held"] => {
                for (key, uid, version) in self.link.held() {
                    self.lines.push(format!("held: {key} {uid}@{version}"));
                }
            }
            other => panic!("the story has no word {other:?}"),
        }
        self.drain();
    }

    fn resume(&mut self, window: u32, held: &[&str]) {
        let held = held.iter().map(|text| read_held(text)).collect();
        let body = Body::from_value(&Digest { window, held }).unwrap();
        self.hear(None, ToCloud::Resume { body });
    }

    fn parent(&self, number: &str) -> (MessageId, Route) {
        let envelope = &self.sent[number.parse::<usize>().unwrap() - 1];
        (envelope.header.id.clone(), Route::parse(&envelope.route))
    }

    fn hear(&mut self, parent: Option<MessageId>, message: ToCloud) {
        self.heard += 1;
        let id = MessageId::new(format!("heard-{}", self.heard));
        let header = Header {
            id,
            parent,
            timestamp_ms: 0,
            resource_version: None,
            sync: false,
            kind: None,
        };
        self.link
            .handle_packet(Letter { header, message }.seal().into(), self.now);
    }

    /// Wakes the link whenever it wants to be woken, as its owner does.
    fn wait(&mut self, pause: Duration) {
        let end = self.now + pause;
        while let Some(due) = self.link.poll_timeout().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            self.link.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
        self.link.handle_timeout(self.now);
    }

    fn drain(&mut self) {
        while let Some(event) = self.link.poll_event() {
            self.lines.push(match event {
                Event::Request { id, request } => format!("event: request {} under {id}", request.key),
                Event::Message { id, .. } => format!("event: message under {id}"),
                Event::Acked {
                    key,
                    uid,
                    version: Some(version),
                } => format!("event: {key} held {uid}@{version}"),
                Event::Acked {
                    key,
                    uid,
                    version: None,
                } => format!("event: {key} gone {uid}"),
                Event::Close { reason } => format!("event: close, {reason}"),
            });
        }
        while let Some(packet) = self.link.poll_transmit(self.now) {
            let Packet::Envelope(envelope) = packet else {
                self.lines.push(format!("sent: {packet:?}"));
                continue;
            };
            // Nobody acknowledges it.
            if envelope.route.operation == "resume" {
                self.lines.push("resumed".to_owned());
                continue;
            }
            let again = self
                .sent
                .iter()
                .position(|sent| sent.header.id == envelope.header.id);
            let number = again.unwrap_or(self.sent.len()) + 1;
            let version = envelope
                .header
                .resource_version
                .as_ref()
                .map_or("", |version| version.as_str());
            let parent = envelope
                .header
                .parent
                .as_ref()
                .map_or(String::new(), |id| format!(" to {id}"));
            let (operation, resource) = (&envelope.route.operation, &envelope.route.resource);
            let uid = envelope.content.object_meta().ok().and_then(|meta| meta.uid);
            let uid = uid.map_or(String::new(), |uid| format!(" {uid}@{version}"));
            let repeated = if again.is_some() { " again" } else { "" };
            self.lines.push(format!(
                "#{number}{repeated}: {operation} {resource}{uid}{parent}"
            ));
            if again.is_none() {
                self.sent.push(*envelope);
            }
        }
    }
}

pub(crate) fn pod(name: &str) -> ObjectKey {
    ObjectKey::namespaced(ObjectKind::Pod, "default", name)
}

pub(crate) fn object(name: &str, uid: &str, version: &str) -> Object {
    let body = format!(r#"{{"metadata":{{"name":"{name}","uid":"{uid}","resourceVersion":"{version}"}}}}"#);
    let body = Body::from_json(body).unwrap();
    Object {
        uid: Uid::new(uid),
        version: ResourceVersion::new(version),
        body,
    }
}

/// `name=uid@version`
fn read_held(text: &str) -> Held {
    let (name, rest) = text.split_once('=').unwrap();
    let (uid, version) = rest.split_once('@').unwrap();
    Held {
        key: pod(name).to_string(),
        uid: uid.into(),
        version: version.into(),
    }
}

pub(crate) fn check(peer: Peer, story: &str, expect: Expect) {
    let mut told = Story::new(peer);
    story
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .for_each(|line| told.tell(line));
    expect.assert_eq(&(told.lines.join("\n") + "\n"));
}
