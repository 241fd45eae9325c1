//! Ports of the node that lead to pods: whether they can be opened, and the way to them from the node's own loopback.

use super::family::Family;
use super::rules::{Forward, Open, Transport, collide};
use crate::Error;
use kedge_containers::{PortMapping, Protocol, SandboxConfig};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

/// What the kernel says of the connections that it follows.
const TRACKING: &str = "/proc/sys/net/netfilter";

/// Refuses what cannot be: a port that another pod or a program of the node has, or one of an address that this network
/// does not speak. `families` are those that it speaks.
pub(super) fn check(config: &SandboxConfig, open: &[Forward], families: &[Family]) -> Result<(), Error> {
    let wanted: Vec<_> = wanted(config).collect();
    for (index, port) in wanted.iter().enumerate() {
        if !families.iter().any(|family| Open::of(port).includes(*family)) {
            let known: Vec<_> = families.iter().map(|family| family.name()).collect();
            let known = known.join(" and ");
            let reason = format!(
                "the built-in network speaks {known} only; give podCIDR a network of the other kind, or use a CNI plug-in"
            );
            return Err(refused(port, reason));
        }
        if let Some(IpAddr::V6(address)) = port.host_ip
            && address.is_loopback()
        {
            return Err(refused(
                port,
                "the kernel lets nothing from ::1 leave the node; use 127.0.0.1",
            ));
        }
        if let Some(other) = open.iter().find(|forward| collide(&forward.port, port)) {
            return Err(refused(port, format!("pod {} has it", other.pod)));
        }
        if wanted[..index].iter().any(|earlier| collide(earlier, port)) {
            return Err(refused(port, "the pod names it twice"));
        }
        if families.iter().any(|family| is_in_use(port, *family)) {
            return Err(refused(port, "a program of the node listens on it"));
        }
    }
    Ok(())
}

/// Refuses ports that rules do not lead anywhere, because the kernel does not follow the protocol. Which ones it
/// follows is known when there are rules.
pub(super) fn require_tracked(forwards: &[Forward]) -> Result<(), Error> {
    let mut sctp = forwards.iter().filter(|forward| match forward.port.protocol {
        Protocol::Sctp => true,
        Protocol::Tcp | Protocol::Udp => false,
    });
    match sctp.next() {
        Some(forward) if !tracks_sctp(Path::new(TRACKING)) => Err(refused(
            &forward.port,
            "this kernel does not follow connections of SCTP (CONFIG_NF_CT_PROTO_SCTP)",
        )),
        Some(_) | None => Ok(()),
    }
}

/// Unless the kernel tells of its limits for everything but SCTP.
fn tracks_sctp(limits: &Path) -> bool {
    let has = |name| limits.join(name).exists();
    has("nf_conntrack_sctp_timeout_established") || !has("nf_conntrack_udp_timeout")
}

/// The ports of the node that a pod wants.
pub(super) fn wanted(config: &SandboxConfig) -> impl Iterator<Item = &PortMapping> {
    config.ports.iter().filter(|port| port.host_port != 0)
}

fn refused(port: &PortMapping, reason: impl std::fmt::Display) -> Error {
    let protocol = Transport(port.protocol);
    let object = match Open::of(port) {
        Open::At(address) => format!("{}/{protocol}", SocketAddr::new(address, port.host_port)),
        Open::OnFamily(_) | Open::Everywhere => format!("{}/{protocol}", port.host_port),
    };
    Error::failed("open host port", object, reason)
}

/// Rules would take the port away from a program that listens on it.
fn is_in_use(port: &PortMapping, family: Family) -> bool {
    let address = match Open::of(port) {
        open if !open.includes(family) => return false,
        Open::At(address) => address,
        Open::OnFamily(_) | Open::Everywhere => family.unspecified(),
    };
    let kind = match port.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
        // Hardly a node's kernel speaks it itself.
        Protocol::Sctp => return false,
    };
    have(SocketAddr::new(address, port.host_port), kind).is_err_and(|errno| errno == Errno::ADDRINUSE)
}

/// Takes an address, as a program would that listens on it.
fn have(address: SocketAddr, kind: SocketType) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        // The other kind is asked for by itself, if at all.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections that ended a moment ago are in nobody's way; who listens is.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    if kind == SocketType::STREAM {
        listen(&socket, 0)?;
    }
    Ok(socket)
}

/// Ports that are listened on for being seen.
pub(super) type Shown = BTreeMap<SocketAddr, OwnedFd>;

/// Listens on the TCP ports that lead to pods, and on no others any more. On a node without root whoever carries its
/// packets opens those ports on the machine that somebody listens on. Nobody is accepted: rules lead connections to pods
/// before they come here.
pub(super) fn show(shown: &mut Shown, forwards: &[Forward]) {
    let address = |forward: &Forward| {
        let family = Family::of(forward.to);
        let address = match Open::of(&forward.port) {
            Open::At(address) => address,
            Open::OnFamily(_) | Open::Everywhere => family.unspecified(),
        };
        SocketAddr::new(address, forward.port.host_port)
    };
    let of_tcp = forwards
        .iter()
        .filter(|forward| forward.port.protocol == Protocol::Tcp);
    let wanted: BTreeSet<SocketAddr> = of_tcp.map(address).collect();
    shown.retain(|address, _| wanted.contains(address));
    for address in wanted {
        if shown.contains_key(&address) {
            continue;
        }
        match have(address, SocketType::STREAM) {
            Ok(socket) => drop(shown.insert(address, socket)),
            Err(errno) => tracing::warn!(%address, %errno, "the port of a pod is not opened on the machine"),
        }
    }
}

/// Lets packets from 127.0.0.1 leave by the bridge, for the node's own ports. What pods send to 127.0.0.1 is dropped by
/// a rule, which stands before this is called.
pub(super) fn open_loopback(bridge: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet");
    std::fs::write(&path, "1").map_err(|source| Error::io("write", path.as_ref(), source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    fn port(text: &str) -> PortMapping {
        let (address, port) = text.rsplit_once(':').unwrap();
        let address = address.trim_matches(['[', ']']);
        PortMapping {
            protocol: Protocol::Udp,
            container_port: 80,
            host_port: port.parse().unwrap(),
            host_ip: (!address.is_empty()).then(|| address.parse().unwrap()),
        }
    }

    fn answer(families: &[Family], open: &[&str], wanted: &[&str]) -> String {
        let open: Vec<_> = open
            .iter()
            .map(|text| Forward {
                sandbox: "s".into(),
                pod: "default/first".into(),
                to: Ipv4Addr::LOCALHOST.into(),
                port: port(text),
            })
            .collect();
        let config = SandboxConfig {
            ports: wanted.iter().map(|text| port(text)).collect(),
            ..SandboxConfig::default()
        };
        check(&config, &open, families).map_or_else(|error| error.to_string(), |()| "open".to_owned())
    }

    #[test]
    fn conflicts_are_told_by_name() {
        let busy = UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = format!("127.0.0.1:{}", busy.local_addr().unwrap().port());
        let (v4, v6, both) = ([Family::V4], [Family::V6], Family::ALL);
        let rows = [
            answer(&both, &[":0"], &[":0"]),
            answer(&both, &[":7"], &["127.0.0.1:7"]),
            answer(&both, &["127.0.0.1:7"], &["0.0.0.0:7"]),
            answer(&both, &["127.0.0.1:7"], &["[::]:7"]),
            answer(&both, &["[fd00::1]:7"], &["0.0.0.0:7"]),
            answer(&both, &["[fd00::1]:7"], &[":7"]),
            answer(&both, &["127.0.0.2:9"], &["127.0.0.1:9"]),
            answer(&both, &[], &[":9", ":9"]),
            answer(&both, &[], &["[::1]:9"]),
            answer(&v4, &[], &["[fd00::1]:9"]),
            answer(&v6, &[], &["0.0.0.0:9"]),
            answer(&v4, &[], &[&taken]).replace(&taken, "127.0.0.1:N"),
            answer(&v6, &[], &[&taken.replace("127.0.0.1", "[::]")]),
        ];
        expect![[r"
            open
            open host port 127.0.0.1:7/UDP: pod default/first has it
            open host port 7/UDP: pod default/first has it
            open host port 7/UDP: pod default/first has it
            open
            open host port 7/UDP: pod default/first has it
            open
            open host port 9/UDP: the pod names it twice
            open host port [::1]:9/UDP: the kernel lets nothing from ::1 leave the node; use 127.0.0.1
            open host port [fd00::1]:9/UDP: the built-in network speaks IPv4 only; give podCIDR a network of the other kind, or use a CNI plug-in
            open host port 9/UDP: the built-in network speaks IPv6 only; give podCIDR a network of the other kind, or use a CNI plug-in
            open host port 127.0.0.1:N/UDP: a program of the node listens on it
            open
        "]].assert_eq(&(rows.join("\n") + "\n"));
    }

    #[test]
    fn who_listens_is_seen_and_who_called_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let have = |address| have(address, SocketType::STREAM).map(drop);
        assert_eq!(have(address), Err(Errno::ADDRINUSE));
        // The one who ends a connection remembers it for a while.
        let call = std::net::TcpStream::connect(address).unwrap();
        drop((listener.accept().unwrap(), listener));
        drop(call);
        assert_eq!(have(address), Ok(()));
    }

    #[test]
    fn a_kernel_without_sctp_is_known_by_its_other_limits() {
        let limits = std::env::temp_dir().join(format!("kedge-limits-{}", std::process::id()));
        std::fs::create_dir_all(&limits).unwrap();
        assert!(
            tracks_sctp(&limits),
            "nothing is followed yet, so nothing is known"
        );
        std::fs::write(limits.join("nf_conntrack_udp_timeout"), "30").unwrap();
        assert!(!tracks_sctp(&limits));
        std::fs::write(limits.join("nf_conntrack_sctp_timeout_established"), "30").unwrap();
        assert!(tracks_sctp(&limits));
        std::fs::remove_dir_all(limits).unwrap();
    }
}
