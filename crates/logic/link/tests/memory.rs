//! What a session at rest takes. Its own process, because it looks at the memory of the whole process.

// Every line here is test code, where a panic is the report.
#![allow(clippy::unwrap_used)]

use kedge_link::cloud::{CloudLink, Config};
use kedge_link::{Digest, Held, Peer};
use kedge_wire::{Body, Header, Letter, MessageId, NodeName, Object, ObjectKey, ObjectKind, ResourceVersion};
use kedge_wire::{Packet, Request, Time, ToCloud, Uid};
use std::time::Duration;

const NODES: usize = 4_000;
const NOW: Time = Time::from_ms(1_000_000);
/// Bytes of a link without objects, with everything that it allocates.
const LINK_BYTES_MAX: usize = 1024;
/// Bytes for each object that is desired and held: its key, uid and version; the body is shared.
const OBJECT_BYTES_MAX: usize = 420;

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn link(node: usize, objects: &[(ObjectKey, Object)], in_sync: bool) -> CloudLink {
    let config = Config {
        keepalive_timeout: Duration::from_secs(30),
        in_flight_max: 32,
        retry_delay: Duration::from_secs(5),
        retry_delay_max: Duration::from_secs(60),
        requests_max: 64,
    };
    let name = NodeName::new(format!("edge-{node}")).unwrap();
    let mut link = CloudLink::new(name, Peer::Kedge, config, node as u64, NOW);
    let held = |(key, object): &(ObjectKey, Object)| Held {
        key: key.to_string(),
        uid: object.uid.as_str().to_owned(),
        version: object.version.as_str().to_owned(),
    };
    let held: Vec<Held> = objects.iter().filter(|_| in_sync).map(held).collect();
    let body = Body::from_value(&Digest { window: 32, held }).unwrap();
    let header = Header::new(MessageId::new("digest"), 0);
    let message = ToCloud::Resume { body };
    for (key, object) in objects {
        link.set_desired(key.clone(), Some(object.clone()), NOW);
    }
    link.desired_complete(NOW);
    link.handle_packet(Letter { header, message }.seal().into(), NOW);
    // A burst goes through, which must leave nothing behind.
    while let Some(Packet::Envelope(envelope)) = link.poll_transmit(NOW) {
        let parent = envelope.header.id;
        let route = kedge_wire::Route::parse(&envelope.route).acknowledged();
        let body = Body::text("OK");
        let ack = ToCloud::Ack(kedge_wire::Ack {
            parent: parent.clone(),
            route,
            body,
        });
        let header = Header::new(MessageId::new("ack"), 0).answering(parent);
        link.handle_packet(Letter { header, message: ack }.seal().into(), NOW);
        while link.poll_event().is_some() {}
    }
    let lease = ObjectKey::lease(link.node());
    let header = Header::new(MessageId::new("lease"), 0);
    let message = ToCloud::Request(Request::update(lease, Body::null()));
    link.handle_packet(Letter { header, message }.seal().into(), NOW);
    while link.poll_event().is_some() {}
    link.reply(&MessageId::new("lease"), Body::text("OK"), None, false, NOW);
    while link.poll_transmit(NOW).is_some() {}
    link
}

fn objects(count: usize) -> Vec<(ObjectKey, Object)> {
    let object = |index: usize| {
        let name = format!("web-7d4b9c8f6-x{index:04}");
        let uid = Uid::new(format!("0f8fad5b-d9cb-469f-a165-{index:012}"));
        let body = format!(r#"{{"metadata":{{"name":"{name}"}}}}"#);
        let object = Object {
            uid,
            version: ResourceVersion::new("48211"),
            body: Body::from_json(body).unwrap(),
        };
        (ObjectKey::namespaced(ObjectKind::Pod, "default", &name), object)
    };
    (0..count).map(object).collect()
}

fn bytes_per_link(objects: &[(ObjectKey, Object)], in_sync: bool) -> usize {
    let before = resident_bytes();
    let mut links = Vec::with_capacity(NODES);
    links.extend((0..NODES).map(|node| link(node, objects, in_sync)));
    let after = resident_bytes();
    assert!(links.iter().all(|link| link.held().len() == objects.len()));
    // What is given back would be taken again by the next measurement.
    std::mem::forget(links);
    (after - before) / NODES
}

#[test]
fn a_session_at_rest_is_small() {
    let empty = bytes_per_link(&[], true);
    let few = objects(20);
    let resumed = bytes_per_link(&few, true);
    let sent = bytes_per_link(&few, false);
    let shown = format!(
        "struct {} bytes; without objects {empty}; with 20 objects {resumed} resumed, {sent} sent",
        size_of::<CloudLink>()
    );
    println!("{shown}");
    assert!(empty <= LINK_BYTES_MAX, "{shown}");
    assert!(
        resumed.max(sent) <= LINK_BYTES_MAX + 20 * OBJECT_BYTES_MAX,
        "{shown}"
    );
}
