//! Ports of the node that lead to pods: whether they can be opened, and the way to them from the node's own loopback.

use super::rules::{Forward, Transport, collide, listens_on};
use crate::Error;
use kedge_containers::{PortMapping, Protocol, SandboxConfig};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};

/// Refuses what cannot be: a port that another pod or a program of the node has, or one of an address that this network
/// does not speak.
pub(super) fn check(config: &SandboxConfig, open: &[Forward]) -> Result<(), Error> {
    let wanted: Vec<_> = config.ports.iter().filter(|port| port.host_port != 0).collect();
    for (index, port) in wanted.iter().enumerate() {
        if let Some(IpAddr::V6(address)) = port.host_ip
            && !address.is_unspecified()
        {
            return Err(refused(
                port,
                "the built-in network speaks IPv4 only; use a CNI plug-in",
            ));
        }
        if let Some(other) = open.iter().find(|forward| collide(&forward.port, port)) {
            return Err(refused(port, format!("pod {} has it", other.pod)));
        }
        if wanted[..index].iter().any(|earlier| collide(earlier, port)) {
            return Err(refused(port, "the pod names it twice"));
        }
        if is_in_use(port) {
            return Err(refused(port, "a program of the node listens on it"));
        }
    }
    Ok(())
}

fn refused(port: &PortMapping, reason: impl std::fmt::Display) -> Error {
    let address = match port.host_ip {
        Some(IpAddr::V6(address)) => format!("[{address}]:"),
        Some(IpAddr::V4(_)) | None => listens_on(port)
            .map(|address| format!("{address}:"))
            .unwrap_or_default(),
    };
    let object = format!("{address}{}/{}", port.host_port, Transport(port.protocol));
    Error::failed("open host port", object, reason)
}

/// Rules would take the port away from a program that listens on it.
fn is_in_use(port: &PortMapping) -> bool {
    let address = SocketAddrV4::new(listens_on(port).unwrap_or(Ipv4Addr::UNSPECIFIED), port.host_port);
    let bound = match port.protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
        // Hardly a node's kernel speaks it itself.
        Protocol::Sctp => Ok(()),
    };
    bound.is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
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

    fn port(text: &str) -> PortMapping {
        let (address, port) = text.rsplit_once(':').unwrap();
        PortMapping {
            protocol: Protocol::Udp,
            container_port: 80,
            host_port: port.parse().unwrap(),
            host_ip: (!address.is_empty()).then(|| address.parse().unwrap()),
        }
    }

    fn answer(open: &[&str], wanted: &[&str]) -> String {
        let open: Vec<_> = open
            .iter()
            .map(|text| Forward {
                sandbox: "s".into(),
                pod: "default/first".into(),
                to: Ipv4Addr::LOCALHOST,
                port: port(text),
            })
            .collect();
        let config = SandboxConfig {
            ports: wanted.iter().map(|text| port(text)).collect(),
            ..SandboxConfig::default()
        };
        check(&config, &open).map_or_else(|error| error.to_string(), |()| "open".to_owned())
    }

    #[test]
    fn conflicts_are_told_by_name() {
        let busy = UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = format!("127.0.0.1:{}", busy.local_addr().unwrap().port());
        let rows = [
            answer(&[":0"], &[":0"]),
            answer(&[":7"], &["127.0.0.1:7"]),
            answer(&["127.0.0.1:7"], &["0.0.0.0:7"]),
            answer(&["127.0.0.2:9"], &["127.0.0.1:9"]),
            answer(&[], &[":9", ":9"]),
            answer(&[], &["::1:9"]),
            answer(&[], &[&taken]).replace(&taken, "127.0.0.1:N"),
        ];
        expect![[r"
            open
            open host port 127.0.0.1:7/UDP: pod default/first has it
            open host port 7/UDP: pod default/first has it
            open
            open host port 9/UDP: the pod names it twice
            open host port [::1]:9/UDP: the built-in network speaks IPv4 only; use a CNI plug-in
            open host port 127.0.0.1:N/UDP: a program of the node listens on it
        "]]
        .assert_eq(&(rows.join("\n") + "\n"));
    }
}
