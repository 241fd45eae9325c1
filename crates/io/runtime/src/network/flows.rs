//! Connections that the kernel remembers.
//!
//! The way of a datagram's answers is kept as long as datagrams come. One who goes on sending to a port of the node
//! would keep reaching the pod that had it before, or nobody, so what is remembered of such a port is forgotten when the
//! port changes hands. TCP needs none of it: a connection ends with its pod.

use super::netlink::{Message, Peer, Socket, Told, attribute};
use super::rules::{Forward, Transport, listens_on};
use kedge_containers::Protocol;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const FAMILY_IPV4: u8 = 2;

const ORIGINAL: u16 = 1;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const ADDRESS_DESTINATION: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_PORT_DESTINATION: u16 = 3;

/// Forgets the flows of datagrams to these ports of the node.
pub(super) fn forget(forwards: &[Forward]) {
    let datagrams: Vec<_> = forwards
        .iter()
        .filter(|forward| forward.port.protocol == Protocol::Udp)
        .collect();
    if datagrams.is_empty() {
        return;
    }
    if let Err(error) = forget_all(&datagrams) {
        tracing::debug!(%error, "what the kernel remembers of datagrams cannot be forgotten");
    }
}

fn forget_all(forwards: &[&Forward]) -> io::Result<()> {
    let mut socket = Socket::open(Peer::Netfilter)?;
    let flows = socket.list(message(GET))?;
    for flow in flows.iter().filter_map(original) {
        if !forwards.iter().any(|forward| flow.leads_to(forward)) {
            continue;
        }
        match socket.order(message(DELETE).nest(ORIGINAL, |mut tuple| {
            tuple.raw(flow.tuple);
            tuple
        })) {
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

fn message(kind: u16) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, 0, &[FAMILY_IPV4, 0, 0, 0])
}

/// A flow as it began.
#[derive(Debug, PartialEq, Eq)]
struct Flow<'a> {
    tuple: &'a [u8],
    protocol: u8,
    destination: Ipv4Addr,
    port: u16,
}

impl Flow<'_> {
    fn leads_to(&self, forward: &Forward) -> bool {
        self.protocol == Transport(forward.port.protocol).number()
            && self.port == forward.port.host_port
            && match listens_on(&forward.port) {
                Some(address) => address == self.destination,
                None => is_of_node(self.destination),
            }
    }
}

/// One can only listen on one's own address.
fn is_of_node(address: Ipv4Addr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

fn original(told: &Told) -> Option<Flow<'_>> {
    let tuple = attribute(told.payload.get(4..)?, ORIGINAL)?;
    let addresses = attribute(tuple, TUPLE_ADDRESSES)?;
    let protocol = attribute(tuple, TUPLE_PROTOCOL)?;
    let destination: [u8; 4] = attribute(addresses, ADDRESS_DESTINATION)?.try_into().ok()?;
    let port: [u8; 2] = attribute(protocol, PROTOCOL_PORT_DESTINATION)?.try_into().ok()?;
    Some(Flow {
        tuple,
        protocol: *attribute(protocol, PROTOCOL_NUMBER)?.first()?,
        destination: destination.into(),
        port: u16::from_be_bytes(port),
    })
}
