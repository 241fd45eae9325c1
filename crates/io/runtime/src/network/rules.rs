//! Which rules the built-in network wants: pure data, told to the kernel by one of two ways.

use super::family::{Cidr, Family};
use kedge_containers::{PortMapping, Protocol};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

const LOOPBACK: Cidr = (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8);

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    /// The sandbox it belongs to.
    pub(crate) sandbox: String,
    /// `namespace/name`, for messages.
    pub(crate) pod: String,
    pub(crate) to: IpAddr,
    pub(crate) port: PortMapping,
}

/// Everything that shall be in our table for one kind of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) family: Family,
    pub(crate) table: String,
    pub(crate) chains: Vec<(Chain, Vec<Rule>)>,
}

/// A chain of our table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chain {
    /// Before anything else looks at a packet.
    Guard,
    /// Packets that arrive.
    Prerouting,
    /// Packets of this node's own processes.
    Output,
    /// Packets that leave.
    Postrouting,
    /// Where the ports of this node lead; only jumped to.
    Ports,
}

/// Where in a packet's way a chain is called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    pub(crate) kind: &'static str,
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

impl Chain {
    pub(crate) const ALL: [Self; 5] = [
        Self::Ports,
        Self::Guard,
        Self::Prerouting,
        Self::Output,
        Self::Postrouting,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Ports => "ports",
        }
    }

    pub(crate) fn hook(self) -> Option<Hook> {
        let (kind, number, priority) = match self {
            // Before connections are tracked: what is seen is what the pod sent.
            Self::Guard => ("filter", 0, -300),
            Self::Prerouting => ("nat", 0, -100),
            Self::Output => ("nat", 3, -100),
            Self::Postrouting => ("nat", 4, 100),
            Self::Ports => return None,
        };
        Some(Hook {
            kind,
            number,
            priority,
        })
    }
}

/// All matches hold: then the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: Vec<Match>,
    pub(crate) verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    /// The destination is an address of this node.
    ToThisNode,
    In(String),
    Out(String),
    NotOut(String),
    Source(Cidr),
    Destination(Cidr),
    /// Its destination was changed by a redirect.
    Redirected,
    Port(Transport, u16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    Jump(Chain),
    /// Leave with an address of the interface it leaves by.
    Masquerade,
    Redirect(IpAddr, u16),
}

/// A protocol with ports, as headers of packets name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transport(pub(crate) Protocol);

impl Transport {
    pub(crate) fn number(self) -> u8 {
        match self.0 {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().to_uppercase())
    }
}

/// The table of a bridge.
pub(crate) fn table_of(bridge: &str) -> String {
    format!("kedge-{bridge}")
}

/// What a bridge with these pods on it needs, for their kind of addresses.
pub(crate) fn rules(bridge: &str, pods: Cidr, forwards: &[Forward]) -> Rules {
    let family = Family::of(pods.0);
    // The more special ports first.
    let mut forwards: Vec<_> = forwards
        .iter()
        .filter(|forward| Family::of(forward.to) == family)
        .collect();
    forwards.sort_by_key(|forward| match Open::of(&forward.port) {
        Open::At(_) => 0,
        Open::OnFamily(_) => 1,
        Open::Everywhere => 2,
    });
    let ports = forwards.into_iter().map(redirect).collect();
    let to_ports = || Rule {
        matches: vec![Match::ToThisNode],
        verdict: Verdict::Jump(Chain::Ports),
    };
    let mut chains = vec![
        (Chain::Ports, ports),
        (Chain::Prerouting, vec![to_ports()]),
        (Chain::Output, vec![to_ports()]),
        (Chain::Postrouting, leaving(bridge, pods)),
    ];
    match family {
        // The node's loopback is opened for its own ports; pods must not reach what listens there.
        Family::V4 => {
            let guard = Rule {
                matches: vec![Match::In(bridge.to_owned()), Match::Destination(LOOPBACK)],
                verdict: Verdict::Drop,
            };
            chains.push((Chain::Guard, vec![guard]));
        }
        // The kernel lets nothing to or from ::1 leave or enter.
        Family::V6 => {}
    }
    Rules {
        family,
        table: table_of(bridge),
        chains,
    }
}

/// Under whose address what leaves the node, or comes to a pod by a port of the node, is sent.
fn leaving(bridge: &str, pods: Cidr) -> Vec<Rule> {
    let on_bridge = || Match::Out(bridge.to_owned());
    let masquerade = |matches| Rule {
        matches,
        verdict: Verdict::Masquerade,
    };
    let mut rules = vec![
        masquerade(vec![Match::Source(pods), Match::NotOut(bridge.to_owned())]),
        // By a port of the node to a pod beside it, or to itself: the answer must come back through the node.
        masquerade(vec![Match::Source(pods), on_bridge(), Match::Redirected]),
    ];
    match Family::of(pods.0) {
        // From 127.0.0.1 by a port of the node: a pod could not answer to it.
        Family::V4 => rules.push(masquerade(vec![Match::Source(LOOPBACK), on_bridge()])),
        Family::V6 => {}
    }
    rules
}

fn redirect(forward: &Forward) -> Rule {
    let port = Match::Port(Transport(forward.port.protocol), forward.port.host_port);
    let address = match Open::of(&forward.port) {
        Open::At(address) => Some(Match::Destination((address, Family::of(address).bits()))),
        Open::OnFamily(_) | Open::Everywhere => None,
    };
    Rule {
        matches: address.into_iter().chain([port]).collect(),
        verdict: Verdict::Redirect(forward.to, forward.port.container_port),
    }
}

/// On which addresses of the node a port is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Open {
    /// On all: nothing was said, or `::`, by which programs mean the same.
    Everywhere,
    /// On all of a kind: `0.0.0.0`.
    OnFamily(Family),
    At(IpAddr),
}

impl Open {
    pub(crate) fn of(port: &PortMapping) -> Self {
        match port.host_ip {
            None => Self::Everywhere,
            Some(address) if !address.is_unspecified() => Self::At(address),
            Some(IpAddr::V4(_)) => Self::OnFamily(Family::V4),
            Some(IpAddr::V6(_)) => Self::Everywhere,
        }
    }

    pub(crate) fn includes(self, family: Family) -> bool {
        match self {
            Self::Everywhere => true,
            Self::OnFamily(of) => of == family,
            Self::At(address) => Family::of(address) == family,
        }
    }

    fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Everywhere, _) | (_, Self::Everywhere) => true,
            (Self::At(one), Self::At(other)) => one == other,
            (Self::OnFamily(family), open) | (open, Self::OnFamily(family)) => open.includes(family),
        }
    }
}

/// Whether both cannot be open at once.
pub(crate) fn collide(a: &PortMapping, b: &PortMapping) -> bool {
    Open::of(a).overlaps(Open::of(b)) && a.host_port == b.host_port && a.protocol == b.protocol
}
