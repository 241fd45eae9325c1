//! Which rules the built-in network wants: pure data, told to the kernel by one of two ways.

use kedge_containers::{PortMapping, Protocol};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// A network: an address in it and the length of its prefix.
pub(crate) type Cidr = (Ipv4Addr, u8);

const LOOPBACK: Cidr = (Ipv4Addr::new(127, 0, 0, 0), 8);

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    /// The sandbox it belongs to.
    pub(crate) sandbox: String,
    /// `namespace/name`, for messages.
    pub(crate) pod: String,
    pub(crate) to: Ipv4Addr,
    pub(crate) port: PortMapping,
}

/// Everything that shall be in our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
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
    Redirect(Ipv4Addr, u16),
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

/// What a bridge with these pods on it needs.
pub(crate) fn rules(bridge: &str, pods: Cidr, forwards: &[Forward]) -> Rules {
    let on_bridge = || Match::Out(bridge.to_owned());
    let masquerade = |matches| Rule {
        matches,
        verdict: Verdict::Masquerade,
    };
    let to_ports = || Rule {
        matches: vec![Match::ToThisNode],
        verdict: Verdict::Jump(Chain::Ports),
    };
    let leaving = vec![
        masquerade(vec![Match::Source(pods), Match::NotOut(bridge.to_owned())]),
        // By a port of the node to a pod beside it, or to itself: the answer must come back through the node.
        masquerade(vec![Match::Source(pods), on_bridge(), Match::Redirected]),
        // From 127.0.0.1 by a port of the node: a pod could not answer to it.
        masquerade(vec![Match::Source(LOOPBACK), on_bridge()]),
    ];
    // The node's loopback is opened for its own ports; pods must not reach what listens there.
    let guard = Rule {
        matches: vec![Match::In(bridge.to_owned()), Match::Destination(LOOPBACK)],
        verdict: Verdict::Drop,
    };
    // The more special ports first.
    let mut forwards: Vec<_> = forwards.iter().collect();
    forwards.sort_by_key(|forward| listens_on(&forward.port).is_none());
    let ports = forwards.into_iter().map(redirect).collect();
    Rules {
        table: table_of(bridge),
        chains: vec![
            (Chain::Ports, ports),
            (Chain::Guard, vec![guard]),
            (Chain::Prerouting, vec![to_ports()]),
            (Chain::Output, vec![to_ports()]),
            (Chain::Postrouting, leaving),
        ],
    }
}

fn redirect(forward: &Forward) -> Rule {
    let port = Match::Port(Transport(forward.port.protocol), forward.port.host_port);
    let address = listens_on(&forward.port).map(|address| Match::Destination((address, 32)));
    Rule {
        matches: address.into_iter().chain([port]).collect(),
        verdict: Verdict::Redirect(forward.to, forward.port.container_port),
    }
}

/// The one address of the node that a port is open on; `None` for all of them.
pub(crate) fn listens_on(port: &PortMapping) -> Option<Ipv4Addr> {
    match port.host_ip {
        Some(IpAddr::V4(address)) if !address.is_unspecified() => Some(address),
        Some(IpAddr::V4(_) | IpAddr::V6(_)) | None => None,
    }
}

/// Whether both cannot be open at once.
pub(crate) fn collide(a: &PortMapping, b: &PortMapping) -> bool {
    let overlap = match (listens_on(a), listens_on(b)) {
        (Some(a), Some(b)) => a == b,
        (None, _) | (_, None) => true,
    };
    overlap && a.host_port == b.host_port && a.protocol == b.protocol
}
