//! Stories of the edge's end: what is said to it, and what it says.

// Every line here is test code, where a panic is the report.
#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use kedge_link::edge::{Config, DELIVERIES_MAX, DeliveryId, EdgeLink, Event, Rates, RequestError, RequestId};
use kedge_link::{Held, Peer};
use kedge_wire::{
    Body, ChangeVerb, Header, Letter, MessageId, NodeName, ObjectChange, ObjectKey, ObjectKind, Reply,
};
use kedge_wire::{Packet, Request, Resource, ResourceVersion, Time, ToCloud, ToEdge};
use std::time::Duration;

struct Story {
    link: EdgeLink,
    now: Time,
    lines: Vec<String>,
    asked: Vec<MessageId>,
}

impl Story {
    fn new() -> Self {
        let config = Config {
            keepalive_interval: Duration::from_secs(15),
            silence_max: Duration::from_secs(20),
            requests_max: 2,
            rates: Rates {
                messages_burst: 5,
                ..Rates::default()
            },
        };
        let link = EdgeLink::new(config, 7);
        Self {
            link,
            now: Time::from_ms(1_000_000),
            lines: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn tell(&mut self, line: &str) {
        self.lines.push(format!("> {line}"));
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["connect", peer, held @ ..] => {
                let peer = if *peer == "kedge" {
                    Peer::Kedge
                } else {
                    Peer::Official
                };
                let held: Vec<Held> = held.iter().map(|text| read_held(text)).collect();
                self.link.handle_connected(peer, &held, self.now);
            }
            ["resumed"] => self.receive("resumed", None, None, ToEdge::Resumed),
            ["ping"] => self.link.handle_packet(Packet::Ping, self.now),
            ["pong"] => self.link.handle_packet(Packet::Pong, self.now),
            ["disconnect"] => self.link.handle_disconnected(self.now),
            [verb @ ("insert" | "update"), id, name, uid, version] => {
                let verb = if *verb == "insert" {
                    ChangeVerb::Insert
                } else {
                    ChangeVerb::Update
                };
                self.hear(id, verb, name, uid, Some(ResourceVersion::new(*version)));
            }
            ["delete", id, name, uid] => self.hear(id, ChangeVerb::Delete, name, uid, None),
            ["commit", number] => {
                self.link
                    .committed(DeliveryId(number.parse().unwrap()), Ok(()), self.now);
            }
            ["fail", number] => {
                let id = DeliveryId(number.parse().unwrap());
                self.link.committed(id, Err("disk full".into()), self.now);
            }
            ["lease"] => {
                let key = ObjectKey::lease(&NodeName::new("edge-1").unwrap());
                self.request(Request::update(key, Body::null()));
            }
            ["query", name] => {
                let key = ObjectKey::namespaced(ObjectKind::ConfigMap, "default", name);
                self.request(Request::query(key));
            }
            ["event", name] => {
                let key = ObjectKey::namespaced(ObjectKind::Event, "default", name);
                self.request(Request::insert(key, Body::null()));
            }
            ["answer", number, body] => {
                let parent = self.asked[number.parse::<usize>().unwrap() - 1].clone();
                let key = ObjectKey::namespaced(ObjectKind::ConfigMap, "default", "app");
                let body = Body::from_json((*body).to_owned()).unwrap();
                let reply = Reply::response(Resource::Object(key), None, body);
                self.receive("reply", Some(parent), None, ToEdge::Reply(reply));
            }
            ["error", number, text] => {
                let parent = self.asked[number.parse::<usize>().unwrap() - 1].clone();
                let key = ObjectKey::namespaced(ObjectKind::ConfigMap, "default", "app");
                let reply = Reply::error(Resource::Object(key), text);
                self.receive("reply", Some(parent), None, ToEdge::Reply(reply));
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
            other => panic!("the story has no word {other:?}"),
        }
        self.drain();
    }

    fn hear(&mut self, id: &str, verb: ChangeVerb, name: &str, uid: &str, version: Option<ResourceVersion>) {
        let key = pod(name);
        let body = format!(r#"{{"metadata":{{"name":"{name}","uid":"{uid}"}}}}"#);
        let body = Body::from_json(body).unwrap();
        let change = ObjectChange::from_edge_controller(verb, key, version.clone(), body);
        self.receive(id, None, version, ToEdge::Object(change));
    }

    fn receive(
        &mut self,
        id: &str,
        parent: Option<MessageId>,
        resource_version: Option<ResourceVersion>,
        message: ToEdge,
    ) {
        let id = MessageId::new(id);
        let header = Header {
            id,
            parent,
            timestamp_ms: 0,
            resource_version,
            sync: false,
            kind: None,
        };
        self.link
            .handle_packet(Letter { header, message }.seal().into(), self.now);
    }

    fn request(&mut self, request: Request) {
        let asked = self
            .link
            .request(ToCloud::Request(request), Duration::from_secs(10), self.now);
        self.lines.push(match asked {
            Ok(RequestId(id)) => format!("request {id}"),
            Err(problem) => format!("no request: {problem}"),
        });
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
        loop {
            while let Some(event) = self.link.poll_event() {
                self.lines.push(describe(event));
            }
            let envelope = match self.link.poll_transmit(self.now) {
                Some(Packet::Envelope(envelope)) => envelope,
                Some(packet @ (Packet::Ping | Packet::Pong)) => {
                    self.lines.push(format!("sent: {packet:?}"));
                    continue;
                }
                None => return,
            };
            let (operation, resource) = (&envelope.route.operation, &envelope.route.resource);
            let parent = envelope
                .header
                .parent
                .as_ref()
                .map_or(String::new(), |id| format!(" to {id}"));
            let content = envelope.content.json();
            self.lines.push(format!(
                "sent: {} {operation} {resource}{parent} {content}",
                envelope.route.source
            ));
            if envelope.route.source == "edged" {
                self.asked.push(envelope.header.id);
            }
        }
    }
}

fn describe(event: Event) -> String {
    match event {
        Event::Deliver {
            id: DeliveryId(id),
            message: ToEdge::Object(change),
        } => {
            let uid = change.body.object_meta().unwrap().uid.unwrap();
            format!("deliver {id}: {:?} {} {uid}", change.verb, change.key)
        }
        Event::Deliver {
            id: DeliveryId(id),
            message,
        } => format!("deliver {id}: {}", message.route()),
        Event::Answer {
            id: RequestId(id),
            answer: Ok(reply),
        } => format!("answer {id}: {}", reply.body.json()),
        Event::Answer {
            id: RequestId(id),
            answer: Err(RequestError::Refused(text)),
        } => {
            format!("answer {id}: refused, {text}")
        }
        Event::Answer {
            id: RequestId(id),
            answer: Err(problem),
        } => format!("answer {id}: {problem}"),
        Event::Complete => "complete".to_owned(),
        Event::Close { reason } => format!("close: {reason}"),
    }
}

fn pod(name: &str) -> ObjectKey {
    ObjectKey::namespaced(ObjectKind::Pod, "default", name)
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

fn check(story: &str, expect: Expect) {
    let mut told = Story::new();
    story
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .for_each(|line| told.tell(line));
    expect.assert_eq(&(told.lines.join("\n") + "\n"));
}

#[test]
fn hello_to_one_of_ours_and_to_an_official_cloud() {
    check(
        "connect kedge web=a@5 db=b@2",
        expect![[r#"
            > connect kedge web=a@5 db=b@2
            sent: kedge resume  {"window":64,"held":[{"key":"default/pod/web","uid":"a","version":"5"},{"key":"default/pod/db","uid":"b","version":"2"}]}
            sent: Ping
        "#]],
    );
    check(
        "connect official web=a@5",
        expect![[r#"
        > connect official web=a@5
        sent: websocket keepalive node "ping"
    "#]],
    );
}

#[test]
fn everything_is_there_when_our_cloud_says_so_or_an_official_one_had_its_time() {
    check(
        "connect kedge
         after 14
         insert m1 web a 1
         commit 1
         resumed
         disconnect
         resumed
         connect official
         resumed
         after 59
         insert m2 web a 2
         ping
         disconnect
         connect official
         after 59
         after 1",
        expect![[r#"
            > connect kedge
            sent: kedge resume  {"window":64,"held":[]}
            sent: Ping
            > after 14
            > insert m1 web a 1
            deliver 1: Insert default/pod/web a
            > commit 1
            sent: edgecontroller response default/pod/web to m1 "OK"
            > resumed
            complete
            > disconnect
            > resumed
            > connect official
            sent: websocket keepalive node "ping"
            > resumed
            deliver 18446744073709551614: kedge/hub resume 
            > after 59
            sent: websocket keepalive node "ping"
            sent: websocket keepalive node "ping"
            sent: websocket keepalive node "ping"
            > insert m2 web a 2
            deliver 2: Insert default/pod/web a
            > ping
            close: the cloud sent a heartbeat that nobody agreed to
            > disconnect
            > connect official
            sent: websocket keepalive node "ping"
            > after 59
            sent: websocket keepalive node "ping"
            sent: websocket keepalive node "ping"
            sent: websocket keepalive node "ping"
            > after 1
            complete
            sent: websocket keepalive node "ping"
        "#]],
    );
}

#[test]
fn acknowledged_only_after_the_commit_and_again_when_repeated() {
    check(
        "connect official
         insert m1 web a 1
         insert m1 web a 1
         commit 1
         insert m1 web a 1
         insert m2 web a 1
         update m3 web a 2
         fail 2
         update m3 web a 2
         commit 3",
        expect![[r#"
            > connect official
            sent: websocket keepalive node "ping"
            > insert m1 web a 1
            deliver 1: Insert default/pod/web a
            > insert m1 web a 1
            > commit 1
            sent: edgecontroller response default/pod/web to m1 "OK"
            > insert m1 web a 1
            sent: edgecontroller response default/pod/web to m1 "OK"
            > insert m2 web a 1
            sent: edgecontroller response default/pod/web to m2 "OK"
            > update m3 web a 2
            deliver 2: Update default/pod/web a
            > fail 2
            sent: metamanager error default/pod/web to m3 "disk full"
            > update m3 web a 2
            deliver 3: Update default/pod/web a
            > commit 3
            sent: edgecontroller response default/pod/web to m3 "OK"
        "#]],
    );
}

#[test]
fn changes_of_one_key_wait_for_each_other() {
    check(
        "connect official
         insert m1 web a 1
         update m2 web a 2
         delete m3 web a
         insert m4 db b 1
         commit 1
         commit 3
         commit 2
         commit 4",
        expect![[r#"
            > connect official
            sent: websocket keepalive node "ping"
            > insert m1 web a 1
            deliver 1: Insert default/pod/web a
            > update m2 web a 2
            > delete m3 web a
            > insert m4 db b 1
            deliver 2: Insert default/pod/db b
            > commit 1
            deliver 3: Update default/pod/web a
            sent: edgecontroller response default/pod/web to m1 "OK"
            > commit 3
            deliver 4: Delete default/pod/web a
            sent: edgecontroller response default/pod/web to m2 "OK"
            > commit 2
            sent: edgecontroller response default/pod/db to m4 "OK"
            > commit 4
            sent: edgecontroller response default/pod/web to m3 "OK"
        "#]],
    );
}

#[test]
fn versions_only_grow() {
    check(
        "connect kedge web=a@5
         update m1 web a 4
         update m2 web a 5
         update m3 web a 6
         commit 1
         update m4 web a 5
         update m5 web a later",
        expect![[r#"
            > connect kedge web=a@5
            sent: kedge resume  {"window":64,"held":[{"key":"default/pod/web","uid":"a","version":"5"}]}
            sent: Ping
            > update m1 web a 4
            sent: edgecontroller response default/pod/web to m1 "OK"
            > update m2 web a 5
            sent: edgecontroller response default/pod/web to m2 "OK"
            > update m3 web a 6
            deliver 1: Update default/pod/web a
            > commit 1
            sent: edgecontroller response default/pod/web to m3 "OK"
            > update m4 web a 5
            sent: edgecontroller response default/pod/web to m4 "OK"
            > update m5 web a later
            deliver 2: Update default/pod/web a
        "#]],
    );
}

#[test]
fn a_new_uid_comes_after_the_old_one_is_gone_whatever_the_cloud_knows() {
    check(
        "connect official web=a@5
         delete m0 web other
         insert m1 web b 9
         commit 1
         commit 2
         insert m2 web c 12
         fail 3
         insert m2 web c 12
         commit 4
         commit 5",
        expect![[r#"
            > connect official web=a@5
            sent: websocket keepalive node "ping"
            > delete m0 web other
            sent: edgecontroller response default/pod/web to m0 "OK"
            > insert m1 web b 9
            deliver 1: Delete default/pod/web a
            > commit 1
            deliver 2: Insert default/pod/web b
            > commit 2
            sent: edgecontroller response default/pod/web to m1 "OK"
            > insert m2 web c 12
            deliver 3: Delete default/pod/web b
            > fail 3
            sent: metamanager error default/pod/web to m2 "disk full"
            > insert m2 web c 12
            deliver 4: Delete default/pod/web b
            > commit 4
            deliver 5: Insert default/pod/web c
            > commit 5
            sent: edgecontroller response default/pod/web to m2 "OK"
        "#]],
    );
}

#[test]
fn a_commit_that_outlives_its_connection_is_not_acknowledged_on_the_next() {
    check(
        "connect official
         insert m1 web a 1
         update m2 web a 2
         disconnect
         connect official
         insert n1 web a 2
         commit 1
         commit 2",
        expect![[r#"
            > connect official
            sent: websocket keepalive node "ping"
            > insert m1 web a 1
            deliver 1: Insert default/pod/web a
            > update m2 web a 2
            > disconnect
            > connect official
            sent: websocket keepalive node "ping"
            > insert n1 web a 2
            > commit 1
            deliver 2: Insert default/pod/web a
            > commit 2
            sent: edgecontroller response default/pod/web to n1 "OK"
        "#]],
    );
}

#[test]
fn each_request_ends_once() {
    check(
        r#"lease
         connect official
         lease
         query app
         query more
         answer 2 {"metadata":{"name":"app"}}
         answer 1 {"Object":null,"Err":null}
         answer 1 {"Object":null,"Err":null}
         query gone
         answer 3 {"ErrStatus":{"status":"Failure","message":"not-found","code":404}}
         query gone
         error 4 not-found
         event started
         lease
         after 10
         lease
         disconnect"#,
        expect![[r#"
            > lease
            no request: the cloud is not connected
            > connect official
            sent: websocket keepalive node "ping"
            > lease
            request 1
            sent: edged update kube-node-lease/lease/edge-1 null
            > query app
            request 2
            sent: edged query default/configmap/app null
            > query more
            no request: too many requests wait for the cloud
            > answer 2 {"metadata":{"name":"app"}}
            answer 2: {"metadata":{"name":"app"}}
            sent: edgecontroller response default/configmap/app to reply "OK"
            > answer 1 {"Object":null,"Err":null}
            answer 1: {"Object":null,"Err":null}
            > answer 1 {"Object":null,"Err":null}
            > query gone
            request 3
            sent: edged query default/configmap/gone null
            > answer 3 {"ErrStatus":{"status":"Failure","message":"not-found","code":404}}
            answer 3: refused, not-found
            sent: edgecontroller response default/configmap/app to reply "OK"
            > query gone
            request 4
            sent: edged query default/configmap/gone null
            > error 4 not-found
            answer 4: refused, not-found
            > event started
            request 5
            sent: edged insert default/event/started null
            answer 5: "OK"
            > lease
            request 6
            > after 10
            sent: edged update kube-node-lease/lease/edge-1 null
            answer 6: the cloud did not answer in time
            > lease
            request 7
            sent: edged update kube-node-lease/lease/edge-1 null
            > disconnect
            answer 7: the connection to the cloud was lost before the answer came
        "#]],
    );
}

#[test]
fn a_half_open_connection_is_noticed_when_an_answer_is_due() {
    check(
        "connect official
         after 15
         after 15
         lease
         after 10
         after 10
         lease",
        expect![[r#"
            > connect official
            sent: websocket keepalive node "ping"
            > after 15
            sent: websocket keepalive node "ping"
            > after 15
            sent: websocket keepalive node "ping"
            > lease
            request 1
            sent: edged update kube-node-lease/lease/edge-1 null
            > after 10
            answer 1: the cloud did not answer in time
            > after 10
            sent: websocket keepalive node "ping"
            close: the cloud said nothing for 20 s although an answer is due
            > lease
            no request: the cloud is not connected
        "#]],
    );
    check(
        "connect kedge
         after 15
         after 5",
        expect![[r#"
            > connect kedge
            sent: kedge resume  {"window":64,"held":[]}
            sent: Ping
            > after 15
            sent: Ping
            > after 5
            close: the cloud said nothing for 20 s although an answer is due
        "#]],
    );
}

#[test]
fn heartbeats_only_where_they_were_agreed() {
    check(
        "connect official\n pong",
        expect![[r#"
        > connect official
        sent: websocket keepalive node "ping"
        > pong
        close: the cloud sent a heartbeat that nobody agreed to
    "#]],
    );
    check(
        "connect kedge\n ping",
        expect![[r#"
        > connect kedge
        sent: kedge resume  {"window":64,"held":[]}
        sent: Ping
        > ping
        close: the cloud sent a heartbeat that nobody agreed to
    "#]],
    );
    check(
        "connect kedge
         pong
         after 14
         after 1
         pong
         after 19",
        expect![[r#"
            > connect kedge
            sent: kedge resume  {"window":64,"held":[]}
            sent: Ping
            > pong
            > after 14
            > after 1
            sent: Ping
            > pong
            > after 19
            sent: Ping
        "#]],
    );
}

#[test]
fn a_clock_that_leaps_closes_no_connection_and_one_set_back_stops_no_timer() {
    check(
        "connect kedge
         leap 100000
         pong
         lease
         set-back 100000
         after 9
         after 1
         after 5",
        expect![[r#"
            > connect kedge
            sent: kedge resume  {"window":64,"held":[]}
            sent: Ping
            > leap 100000
            > pong
            > lease
            request 1
            sent: edged update kube-node-lease/lease/edge-1 null
            > set-back 100000
            > after 9
            > after 1
            answer 1: the cloud did not answer in time
            sent: Ping
            > after 5
        "#]],
    );
}

#[test]
fn more_changes_than_places_are_dropped_and_counted() {
    let mut story = Story::new();
    story.tell("connect official");
    for number in 0..DELIVERIES_MAX + 10 {
        story.hear(
            &format!("m{number}"),
            ChangeVerb::Insert,
            &format!("pod-{number}"),
            "a",
            Some(ResourceVersion::new("1")),
        );
    }
    let depth = story.link.depth();
    assert_eq!((depth.deliveries, depth.dropped), (DELIVERIES_MAX, 10));
    // Once there is room, what the cloud repeats is taken.
    for delivery in 1..=DELIVERIES_MAX as u64 {
        story.link.committed(DeliveryId(delivery), Ok(()), story.now);
    }
    assert_eq!(story.link.depth().deliveries, 0);
    story.lines.clear();
    story.tell(&format!("insert again pod-{} a 1", DELIVERIES_MAX + 5));
    assert!(
        story.lines.iter().any(|line| line.starts_with("deliver ")),
        "{:?}",
        story.lines
    );
}

#[test]
fn what_the_edge_says_of_its_own_accord_is_paced_and_the_rest_is_not() {
    let mut story = Story::new();
    story.tell("connect official");
    for number in 1..=8 {
        story.tell(&format!("event started-{number}"));
    }
    story.tell("lease");
    story.tell("insert m1 web a 1");
    story.tell("commit 1");
    story.tell("after 1");
    let sent: Vec<String> = story
        .lines
        .into_iter()
        .filter(|line| !line.contains("answer"))
        .collect();
    expect![[r#"
        > connect official
        sent: websocket keepalive node "ping"
        > event started-1
        request 1
        sent: edged insert default/event/started-1 null
        > event started-2
        request 2
        sent: edged insert default/event/started-2 null
        > event started-3
        request 3
        sent: edged insert default/event/started-3 null
        > event started-4
        request 4
        sent: edged insert default/event/started-4 null
        > event started-5
        request 5
        sent: edged insert default/event/started-5 null
        > event started-6
        request 6
        > event started-7
        request 7
        > event started-8
        no request: too many requests wait for the cloud
        > lease
        no request: too many requests wait for the cloud
        > insert m1 web a 1
        deliver 1: Insert default/pod/web a
        > commit 1
        sent: edgecontroller response default/pod/web to m1 "OK"
        > after 1
        sent: edged insert default/event/started-6 null
        sent: edged insert default/event/started-7 null
    "#]]
    .assert_eq(&(sent.join("\n") + "\n"));
}
