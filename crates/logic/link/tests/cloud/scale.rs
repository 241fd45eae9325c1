//! Large objects, many objects, and what a session at rest takes.

use crate::story::{object, pod};
use kedge_link::cloud::{CloudLink, Config, Depth, Event, IN_FLIGHT_BYTES_MAX};
use kedge_link::{Digest, Held, Peer};
use kedge_wire::{
    Ack, Body, Envelope, Header, Letter, MessageId, NodeName, Object, Packet, ResourceVersion, Route, Time,
    ToCloud, Uid,
};
use std::time::Duration;

const START: Time = Time::from_ms(1_000_000);

fn link(peer: Peer) -> CloudLink {
    let config = Config {
        keepalive_timeout: Duration::from_secs(30),
        in_flight_max: 32,
        retry_delay: Duration::from_secs(5),
        retry_delay_max: Duration::from_secs(60),
        requests_max: 64,
    };
    CloudLink::new(NodeName::new("edge-1").unwrap(), peer, config, 7, START)
}

fn hear(link: &mut CloudLink, parent: Option<MessageId>, message: ToCloud) {
    let header = Header {
        parent,
        ..Header::new(MessageId::new("heard"), 0)
    };
    link.handle_packet(Letter { header, message }.seal().into(), START);
}

fn acknowledge(link: &mut CloudLink, envelope: &Envelope) {
    let parent = envelope.header.id.clone();
    let ack = Ack {
        parent: parent.clone(),
        route: Route::parse(&envelope.route).acknowledged(),
        body: Body::text("OK"),
    };
    hear(link, Some(parent), ToCloud::Ack(ack));
}

/// Sends and acknowledges until nothing more comes; the number of messages about objects.
fn drain(link: &mut CloudLink) -> usize {
    let mut sent = 0;
    while let Some(packet) = link.poll_transmit(START) {
        let Packet::Envelope(envelope) = packet else {
            panic!("{packet:?}")
        };
        if envelope.route.operation == "resume" {
            continue;
        }
        sent += 1;
        acknowledge(link, &envelope);
        while let Some(event) = link.poll_event() {
            assert!(matches!(event, Event::Acked { .. }), "{event:?}");
        }
    }
    sent
}

#[test]
fn of_large_objects_few_are_on_the_way_at_a_time() {
    let mut link = link(Peer::Official);
    let large = Body::text(&"x".repeat(1024 * 1024));
    for index in 0..8 {
        let name = format!("large-{index}");
        let (uid, version) = (Uid::new(name.as_str()), ResourceVersion::new("1"));
        let body = large.clone();
        link.set_desired(pod(&name), Some(Object { uid, version, body }), START);
    }
    link.desired_complete(START);
    let first = link.poll_transmit(START).unwrap();
    assert!(link.poll_transmit(START).is_none(), "one fills the window");
    let depth = link.depth();
    assert!(depth.in_flight_bytes >= IN_FLIGHT_BYTES_MAX);
    assert_eq!((depth.in_flight, depth.waiting), (1, 7));
    // A slow link needs half a minute for it, so it is not repeated after five seconds.
    for second in 1..30 {
        link.handle_timeout(START + Duration::from_secs(second));
    }
    assert_eq!(link.depth().retries, 0);
    let Packet::Envelope(first) = first else { panic!() };
    acknowledge(&mut link, &first);
    assert!(matches!(link.poll_event(), Some(Event::Acked { .. })));
    assert_eq!(drain(&mut link), 7);
    assert_eq!(link.depth().in_flight_bytes, 0);
}

/// Gives a node `count` pods, cuts it off, and resumes with a digest that is right but for every tenth pod.
fn life_with_pods(count: usize) -> (usize, usize, Depth) {
    let name = |index: usize| format!("pod-{index}");
    let mut fresh = link(Peer::Kedge);
    hear(&mut fresh, None, digest(Vec::new()));
    for index in 0..count {
        fresh.set_desired(
            pod(&name(index)),
            Some(object(&name(index), &name(index), "5")),
            START,
        );
    }
    fresh.desired_complete(START);
    let first = drain(&mut fresh);
    assert_eq!(fresh.held().len(), count);

    let mut back = link(Peer::Kedge);
    back.assume_held(fresh.held());
    let held = (0..count).map(|index| Held {
        key: pod(&name(index)).to_string(),
        uid: name(index),
        version: if index % 10 == 0 { "4" } else { "5" }.to_owned(),
    });
    hear(&mut back, None, digest(held.collect()));
    for index in 0..count {
        back.set_desired(
            pod(&name(index)),
            Some(object(&name(index), &name(index), "5")),
            START,
        );
    }
    back.desired_complete(START);
    let second = drain(&mut back);
    for index in 0..count {
        back.set_desired(pod(&name(index)), None, START);
    }
    assert_eq!(drain(&mut back), count);
    assert_eq!(back.held(), []);
    let (a, b) = (fresh.depth(), back.depth());
    let steps = a.steps + b.steps;
    (first, second, Depth { steps, ..b })
}

#[test]
fn ten_thousand_pods_take_ten_times_the_steps_of_one_thousand() {
    let (first, second, small) = life_with_pods(1_000);
    assert_eq!((first, second), (1_000, 100));
    let (first, second, large) = life_with_pods(10_000);
    assert_eq!((first, second), (10_000, 1_000));
    assert!(
        large.steps <= 10 * small.steps + 100,
        "{} steps for ten times the pods of {}",
        large.steps,
        small.steps
    );
    assert!(large.steps <= 20 * 10_000, "{} steps", large.steps);
}

fn digest(held: Vec<Held>) -> ToCloud {
    let body = Body::from_value(&Digest { window: 64, held }).unwrap();
    ToCloud::Resume { body }
}
