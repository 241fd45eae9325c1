//! The pods' network: a bridge on the node, and for each pod a pair of interfaces from it into the pod.

use super::Failure;
use crate::network::OnBridge;
use crate::network::links::{End, Links, mac_of};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

const POD_INTERFACE: &str = "eth0";
const LOOPBACK: &str = "lo";
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const ROUTES: &str = "/proc/net/route";

/// What Ethernet carries; the kernel gives it by itself.
const MTU_DEFAULT: u32 = 1500;

/// Connects a pod's namespace. `enter_node` and `enter_pod` put this thread into the one or the other.
pub(super) fn attach(
    network: &OnBridge,
    pod: &File,
    enter_node: impl Fn() -> Result<(), Failure>,
    enter_pod: impl Fn() -> Result<(), Failure>,
) -> Result<(), Failure> {
    enter_pod()?;
    let mut in_pod = links()?;
    enter_node()?;
    let mut on_node = links()?;
    let bridge = bridge(&mut on_node, network)?;
    let far = End {
        name: POD_INTERFACE,
        mac: mac_of(network.address),
    };
    on_node
        .add_pair(&network.veth, bridge, far, pod.as_fd(), narrower_mtu())
        .map_err(|error| Failure::new("make an interface pair", error))?;
    let end = index(&mut on_node, &network.veth)?;
    if network.has_ports {
        on_node
            .set_hairpin(end)
            .map_err(|error| Failure::new("let the pod meet itself", error))?;
    }
    start(&mut on_node, end)?;
    configure_pod(&mut in_pod, network)?;
    forward_packets()
}

/// Starts the loopback of the namespace that this thread is in.
pub(super) fn start_loopback() -> Result<(), Failure> {
    let mut links = links()?;
    let loopback = index(&mut links, LOOPBACK)?;
    start(&mut links, loopback)
}

/// Pods reach each other and the node without it; what lies beyond the node needs it.
fn forward_packets() -> Result<(), Failure> {
    if std::fs::read_to_string(IP_FORWARD).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    std::fs::write(IP_FORWARD, "1").map_err(|error| Failure::new("let the node forward packets", error))
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
        once(links.add_bridge(name, mac_of(network.gateway))).map_err(|error| failed("make", error))?;
    }
    let bridge = index(links, name)?;
    once(links.add_address(bridge, network.gateway, network.prefix))
        .map_err(|error| failed("give an address to", error))?;
    links.set_up(bridge).map_err(|error| failed("start", error))?;
    Ok(bridge)
}

fn configure_pod(links: &mut Links, network: &OnBridge) -> Result<(), Failure> {
    let loopback = index(links, LOOPBACK)?;
    start(links, loopback)?;
    let link = index(links, POD_INTERFACE)?;
    links
        .add_address(link, network.address, network.prefix)
        .map_err(|error| Failure::new("give the pod its address", error))?;
    start(links, link)?;
    links
        .add_default_route(network.gateway)
        .map_err(|error| Failure::new("give the pod its default route", error))
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

/// What passes the way out of the node in one piece, where that is less than usual: mobile networks and tunnels.
fn narrower_mtu() -> Option<u32> {
    let routes = std::fs::read_to_string(ROUTES).ok()?;
    let interface = default_interface(&routes)?;
    let mtu = std::fs::read_to_string(format!("/sys/class/net/{interface}/mtu")).ok()?;
    mtu.trim().parse().ok().filter(|mtu| *mtu < MTU_DEFAULT)
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
}
