//! Connections that the kernel remembers.
//!
//! Where packets of a connection go is decided by its first one. Who goes on sending to a port of the node, from the
//! same port of his own, would keep reaching the pod that had it before, or nobody: datagrams and SCTP for as long as
//! they come, TCP until somebody tells that the connection is broken, which a pod that is gone cannot. So what is
//! remembered of a port of the node is forgotten when the port changes hands.

use super::family::Family;
use super::netlink::{Message, Peer, Socket, Told, attribute};
use super::rules::{Forward, Open, Transport};
use std::io;
use std::net::{IpAddr, UdpSocket};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;

const ORIGINAL: u16 = 1;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const ADDRESS_V4_DESTINATION: u16 = 2;
const ADDRESS_V6_DESTINATION: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_PORT_DESTINATION: u16 = 3;

/// Forgets the flows to these ports of the node.
pub(super) fn forget(forwards: &[Forward]) {
    for family in Family::ALL {
        let of_family: Vec<_> = forwards
            .iter()
            .filter(|forward| Family::of(forward.to) == family)
            .collect();
        if of_family.is_empty() {
            continue;
        }
        if let Err(error) = forget_all(family, &of_family) {
            let family = family.name();
            tracing::debug!(%error, family, "what the kernel remembers of connections cannot be forgotten");
        }
    }
}

fn forget_all(family: Family, forwards: &[&Forward]) -> io::Result<()> {
    let mut socket = Socket::open(Peer::Netfilter)?;
    let leads_to_one = |told: &Told| {
        original(told).is_some_and(|flow| forwards.iter().any(|forward| flow.leads_to(forward)))
    };
    // A busy node remembers hundreds of thousands: only those of the ports are kept.
    let flows = socket.list(&message(GET, family), leads_to_one)?;
    for flow in flows.iter().filter_map(original) {
        match socket.order(message(DELETE, family).nest(ORIGINAL, |mut tuple| {
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

fn message(kind: u16, family: Family) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, 0, &[family.number(), 0, 0, 0])
}

/// A flow as it began.
#[derive(Debug, PartialEq, Eq)]
struct Flow<'a> {
    tuple: &'a [u8],
    protocol: u8,
    destination: IpAddr,
    port: u16,
}

impl Flow<'_> {
    fn leads_to(&self, forward: &Forward) -> bool {
        self.protocol == Transport(forward.port.protocol).number()
            && self.port == forward.port.host_port
            && match Open::of(&forward.port) {
                Open::At(address) => address == self.destination,
                Open::OnFamily(_) | Open::Everywhere => is_of_node(self.destination),
            }
    }
}

/// One can only listen on one's own address.
fn is_of_node(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

fn original(told: &Told) -> Option<Flow<'_>> {
    let tuple = attribute(told.payload.get(4..)?, ORIGINAL)?;
    let addresses = attribute(tuple, TUPLE_ADDRESSES)?;
    let protocol = attribute(tuple, TUPLE_PROTOCOL)?;
    let destination = v4(addresses).or_else(|| v6(addresses))?;
    let port: [u8; 2] = attribute(protocol, PROTOCOL_PORT_DESTINATION)?.try_into().ok()?;
    Some(Flow {
        tuple,
        protocol: *attribute(protocol, PROTOCOL_NUMBER)?.first()?,
        destination,
        port: u16::from_be_bytes(port),
    })
}

fn v4(addresses: &[u8]) -> Option<IpAddr> {
    let octets: [u8; 4] = attribute(addresses, ADDRESS_V4_DESTINATION)?.try_into().ok()?;
    Some(octets.into())
}

fn v6(addresses: &[u8]) -> Option<IpAddr> {
    let octets: [u8; 16] = attribute(addresses, ADDRESS_V6_DESTINATION)?.try_into().ok()?;
    Some(octets.into())
}
