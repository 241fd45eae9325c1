//! The pods' network: a bridge on the node, and for each pod a pair of interfaces from it into the pod.

use super::Failure;
use crate::network::links::{End, Links, mac_of};
use crate::network::{Assigned, OnBridge};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

const POD_INTERFACE: &str = "eth0";
const LOOPBACK: &str = "lo";
const ROUTES: &str = "/proc/net/route";
const ROUTES_OF_IPV6: &str = "/proc/net/ipv6_route";
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// A directory for each interface, one for all of them, and one for those that are made later.
const INTERFACES_OF_IPV6: &str = "/proc/sys/net/ipv6/conf";
const ALL: &str = "all";
const LATER: &str = "default";

/// Whether an interface believes routers that advertise themselves: never, unless the node forwards, always.
const DEAF: &str = "0";
const UNLESS_ROUTER: &str = "1";
const ALWAYS: &str = "2";

/// What Ethernet carries; the kernel gives it by itself.
const MTU_DEFAULT: u32 = 1500;
/// With less, the kernel takes IPv6 off the interface.
const MTU_OF_IPV6_MIN: u32 = 1280;

/// Connects a pod's namespace. `enter_node` and `enter_pod` put this thread into the one or the other.
pub(super) fn attach(
    network: &OnBridge,
    pod: &File,
    enter_node: impl Fn() -> Result<(), Failure>,
    enter_pod: impl Fn() -> Result<(), Failure>,
) -> Result<(), Failure> {
    enter_pod()?;
    // Before there is an interface that hears.
    settle_ipv6(LATER, network)?;
    let mut in_pod = links()?;
    enter_node()?;
    let mut on_node = links()?;
    let bridge = bridge(&mut on_node, network)?;
    let far = End {
        name: POD_INTERFACE,
        mac: mac_of(network.first.address),
    };
    on_node
        .add_pair(&network.veth, bridge, far, pod.as_fd(), narrower_mtu(network))
        .map_err(|error| Failure::new("make an interface pair", error))?;
    let end = index(&mut on_node, &network.veth)?;
    if network.has_ports {
        on_node
            .set_hairpin(end)
            .map_err(|error| Failure::new("let the pod meet itself", error))?;
    }
    start(&mut on_node, end)?;
    configure_pod(&mut in_pod, network)?;
    network
        .assigned()
        .try_for_each(|assigned| match assigned.address {
            IpAddr::V4(_) => forward_packets(),
            IpAddr::V6(_) => forward_packets_of_ipv6(Path::new(INTERFACES_OF_IPV6)),
        })
}

/// Starts the loopback of the namespace that this thread is in.
pub(super) fn start_loopback() -> Result<(), Failure> {
    let mut links = links()?;
    let loopback = index(&mut links, LOOPBACK)?;
    start(&mut links, loopback)
}

/// Pods reach each other and the node without it; what lies beyond the node needs it.
fn forward_packets() -> Result<(), Failure> {
    if says(Path::new(FORWARD), "1") {
        return Ok(());
    }
    write(Path::new(FORWARD), "1").map_err(|error| Failure::new("let the node forward packets", error))
}

/// The same for IPv6. A node that forwards believes no advertisement of a router any more, unless it is told to: it
/// would lose its own way out.
fn forward_packets_of_ipv6(interfaces: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new("let the node forward packets of IPv6", error);
    let forwarding = interfaces.join(ALL).join("forwarding");
    if says(&forwarding, "1") {
        return Ok(());
    }
    for interface in std::fs::read_dir(interfaces).map_err(failed)? {
        let interface = interface.map_err(failed)?;
        let heard = interface.path().join("accept_ra");
        // One that is made later is somebody's who knows that the node forwards.
        let is_one = ![ALL, LATER].iter().any(|name| interface.file_name() == *name);
        if is_one && says(&heard, UNLESS_ROUTER) {
            unless_gone(write(&heard, ALWAYS)).map_err(failed)?;
        }
    }
    write(&forwarding, "1").map_err(failed)
}

/// Keeps an interface from what others on the bridge may pretend: whoever may send packets as he likes could advertise
/// himself as the router of the node and of all pods, also where nobody has asked for IPv6.
fn settle_ipv6(interface: &str, network: &OnBridge) -> Result<(), Failure> {
    let place = Path::new(INTERFACES_OF_IPV6).join(interface);
    let act = format!("set up IPv6 of interface {interface}");
    let failed = |error| Failure::new(&act, error);
    let speaks = network.assigned().any(|assigned| assigned.address.is_ipv6());
    if !speaks && !place.exists() {
        return Ok(());
    }
    write(&place.join("accept_ra"), DEAF).map_err(failed)?;
    if speaks {
        write(&place.join("disable_ipv6"), "0").map_err(failed)?;
        // A port that gives frames back would show every address as somebody else's.
        write(&place.join("accept_dad"), "0").map_err(failed)?;
    }
    Ok(())
}

fn says(setting: &Path, value: &str) -> bool {
    std::fs::read_to_string(setting).is_ok_and(|found| found.trim() == value)
}

fn write(setting: &Path, value: &str) -> io::Result<()> {
    let told = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", setting.display()));
    std::fs::write(setting, value).map_err(told)
}

/// Interfaces come and go.
fn unless_gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Removes the node's end of a pair, and the pod's with it; one that is gone is no error.
pub(super) fn detach(veth: &str) -> Result<(), Failure> {
    links()?
        .remove(veth)
        .map_err(|error| Failure::new("remove an interface pair", error))
}

/// Removes the bridge; one that is gone is no error.
pub(super) fn remove_bridge(name: &str) -> Result<(), Failure> {
    links()?
        .remove(name)
        .map_err(|error| Failure::new("remove the bridge", error))
}

/// Finds the bridge or makes it. Several helpers may do so at once, and one may have been killed in the midst.
fn bridge(links: &mut Links, network: &OnBridge) -> Result<u32, Failure> {
    let name = &network.bridge;
    let failed = |act: &str, error: io::Error| Failure::new(&format!("{act} the bridge {name}"), error);
    let found = links.index(name).map_err(|error| failed("find", error))?;
    if found.is_none() {
        // An Ethernet address of its own: else it changes with the pods that come and go.
        once(links.add_bridge(name, mac_of(network.first.gateway))).map_err(|error| failed("make", error))?;
    }
    let bridge = index(links, name)?;
    settle_ipv6(name, network)?;
    links.set_up(bridge).map_err(|error| failed("start", error))?;
    for assigned in network.assigned() {
        once(links.add_address(bridge, assigned.gateway, assigned.prefix))
            .map_err(|error| failed("give an address to", error))?;
    }
    Ok(bridge)
}

fn configure_pod(links: &mut Links, network: &OnBridge) -> Result<(), Failure> {
    let loopback = index(links, LOOPBACK)?;
    start(links, loopback)?;
    let link = index(links, POD_INTERFACE)?;
    start(links, link)?;
    network.assigned().try_for_each(|assigned| {
        links
            .add_address(link, assigned.address, assigned.prefix)
            .map_err(|error| Failure::new("give the pod its address", error))?;
        links
            .add_default_route(assigned.gateway)
            .map_err(|error| Failure::new("give the pod its default route", error))
    })
}

fn start(links: &mut Links, index: u32) -> Result<(), Failure> {
    links
        .set_up(index)
        .map_err(|error| Failure::new("start an interface", error))
}

fn index(links: &mut Links, name: &str) -> Result<u32, Failure> {
    let act = format!("find interface {name}");
    let found = links.index(name).map_err(|error| Failure::new(&act, error))?;
    found.ok_or_else(|| Failure::new(&act, "there is none"))
}

/// A socket of the namespace that this thread is in.
fn links() -> Result<Links, Failure> {
    Links::open().map_err(|error| Failure::new("speak with the kernel's network", error))
}

/// What is there already was made by another helper, or before.
fn once(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// What passes the ways out of the node in one piece, where that is less than usual: mobile networks and tunnels.
fn narrower_mtu(network: &OnBridge) -> Option<u32> {
    let mtu = |assigned: &Assigned| {
        let (file, find): (_, fn(&str) -> Option<&str>) = match assigned.address {
            IpAddr::V4(_) => (ROUTES, default_interface),
            IpAddr::V6(_) => (ROUTES_OF_IPV6, default_interface_of_ipv6),
        };
        let routes = std::fs::read_to_string(file).ok()?;
        let mtu = std::fs::read_to_string(format!("/sys/class/net/{}/mtu", find(&routes)?)).ok()?;
        mtu.trim().parse().ok()
    };
    let narrowest = network.assigned().filter_map(|assigned| mtu(&assigned)).min();
    let least = match network.assigned().any(|assigned| assigned.address.is_ipv6()) {
        true => MTU_OF_IPV6_MIN,
        false => 0,
    };
    narrowest
        .map(|mtu: u32| mtu.max(least))
        .filter(|mtu| *mtu < MTU_DEFAULT)
}

/// The interface of the default route, from the kernel's table of them.
fn default_interface(routes: &str) -> Option<&str> {
    routes
        .lines()
        .skip(1)
        .map(str::split_whitespace)
        .find_map(|mut row| {
            let interface = row.next()?;
            let destination = row.next()?;
            // The mask, after gateway, flags, three counters.
            let mask = row.nth(5)?;
            (destination == "00000000" && mask == "00000000").then_some(interface)
        })
}

/// The same for IPv6, whose table has another form.
fn default_interface_of_ipv6(routes: &str) -> Option<&str> {
    /// The flag of a route that leads nowhere.
    const REFUSED: u32 = 0x200;
    routes.lines().map(str::split_whitespace).find_map(|mut row| {
        let is_everywhere = |word: &str| word.bytes().all(|digit| digit == b'0');
        let to_all = is_everywhere(row.next()?) && is_everywhere(row.next()?);
        // After the source and the length of its prefix, the gateway, the metric, two counters.
        let flags = u32::from_str_radix(row.nth(6)?, 16).ok()?;
        let interface = row.next()?;
        (to_all && flags & REFUSED == 0 && interface != LOOPBACK).then_some(interface)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_that_of_the_default_route() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                      eth1\t00000000\t010200C0\t0003\t0\t0\t0\t000000FF\t0\t0\t0\n\
                      wwan0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(default_interface(routes), Some("wwan0"));
        assert_eq!(default_interface("Iface\n"), None);
    }

    #[test]
    fn the_way_out_of_ipv6_is_that_of_its_default_route() {
        let zeros = "0".repeat(32);
        let row = |to: &str, flags: &str, interface: &str| {
            format!(
                "{to} 00 {zeros} 00 fe80000000000000000000000000000f 00000400 00000001 00000000 {flags} {interface}\n"
            )
        };
        let routes = [
            row("fd000000000000000000000000000000", "00000001", "eth1"),
            row(&zeros, "00200200", "lo"),
            row(&zeros, "00000203", "eth2"),
            row(&zeros, "00450003", "wwan0"),
        ];
        assert_eq!(default_interface_of_ipv6(&routes.concat()), Some("wwan0"));
        assert_eq!(default_interface_of_ipv6(&routes[..3].concat()), None);
        assert_eq!(default_interface_of_ipv6("00 x\n"), None);
    }

    /// Settings as the kernel has them, in a directory: which interfaces believe routers, and whether the node forwards.
    #[test]
    fn a_node_that_forwards_goes_on_believing_its_routers() {
        let place = std::env::temp_dir().join(format!("kedge-forward-{}", std::process::id()));
        for (interface, heard) in [
            (ALL, "1"),
            (LATER, "1"),
            ("eth0", "1"),
            ("br0", "0"),
            ("wwan0", "2"),
        ] {
            let interface = place.join(interface);
            std::fs::create_dir_all(&interface).unwrap();
            std::fs::write(interface.join("accept_ra"), heard).unwrap();
            std::fs::write(interface.join("forwarding"), "0\n").unwrap();
        }
        let heard =
            |interface: &str| std::fs::read_to_string(place.join(interface).join("accept_ra")).unwrap();
        forward_packets_of_ipv6(&place).unwrap();
        let all = [ALL, LATER, "eth0", "br0", "wwan0"].map(heard);
        assert_eq!(all, ["1", "1", "2", "0", "2"]);
        assert!(says(&place.join(ALL).join("forwarding"), "1"));
        // Who forwards already has decided that himself.
        std::fs::write(place.join("eth0/accept_ra"), "1").unwrap();
        forward_packets_of_ipv6(&place).unwrap();
        assert_eq!(heard("eth0"), "1");
        std::fs::remove_dir_all(&place).unwrap();
        let gone = forward_packets_of_ipv6(&place).unwrap_err().0;
        assert!(
            gone.starts_with("let the node forward packets of IPv6: "),
            "{gone}"
        );
    }
}
