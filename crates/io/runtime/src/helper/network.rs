//! The pods' network: a bridge on the node, and for each pod a pair of interfaces from it into the pod.

use super::Failure;
use crate::embedded::records::SandboxNetwork;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
};
use std::fs::File;
use std::future::Future;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

const POD_INTERFACE: &str = "eth0";
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Connects a pod's namespace. `enter_node` and `enter_pod` put this thread into the one or the other.
pub(super) fn attach(
    network: &SandboxNetwork,
    pod: &File,
    enter_node: impl Fn() -> Result<(), Failure>,
    enter_pod: impl Fn() -> Result<(), Failure>,
) -> Result<(), Failure> {
    run(async {
        enter_pod()?;
        let in_pod = connect()?;
        enter_node()?;
        let on_node = connect()?;
        let bridge = bridge(&on_node, network).await?;
        let pair = pair(network, pod, bridge);
        on_node
            .link()
            .add(pair)
            .execute()
            .await
            .map_err(|error| netlink("make an interface pair", error))?;
        let end = index(&on_node, &network.veth).await?;
        on_node
            .link()
            .set(LinkUnspec::new_with_index(end).up().build())
            .execute()
            .await
            .map_err(|error| netlink("start the node's interface", error))?;
        configure_pod(&in_pod, network).await?;
        forward_packets()
    })
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
    remove_link(veth, "remove an interface pair")
}

/// Removes the bridge; one that is gone is no error.
pub(super) fn remove_bridge(name: &str) -> Result<(), Failure> {
    remove_link(name, "remove the bridge")
}

fn remove_link(name: &str, act: &str) -> Result<(), Failure> {
    run(async {
        let handle = connect()?;
        let Ok(index) = index(&handle, name).await else {
            return Ok(());
        };
        match handle.link().del(index).execute().await {
            Ok(()) => Ok(()),
            Err(error) if is(&error, nix::libc::ENODEV) => Ok(()),
            Err(error) => Err(netlink(act, error)),
        }
    })
}

/// Finds the bridge or makes it. Several helpers may do so at once.
async fn bridge(handle: &Handle, network: &SandboxNetwork) -> Result<u32, Failure> {
    let name = &network.bridge;
    if let Ok(found) = index(handle, name).await {
        return Ok(found);
    }
    match handle.link().add(LinkBridge::new(name).build()).execute().await {
        Ok(()) => {}
        Err(error) if is(&error, nix::libc::EEXIST) => {}
        Err(error) => return Err(netlink(&format!("make the bridge {name}"), error)),
    }
    let made = index(handle, name).await?;
    match handle
        .address()
        .add(made, network.gateway.into(), network.prefix)
        .execute()
        .await
    {
        Ok(()) => Ok(made),
        Err(error) if is(&error, nix::libc::EEXIST) => Ok(made),
        Err(error) => Err(netlink(&format!("give the bridge {name} its address"), error)),
    }
}

/// The order for a pair whose one end is on the bridge and whose other end is in the pod from the start.
fn pair(network: &SandboxNetwork, pod: &File, bridge: u32) -> rtnetlink::packet_route::link::LinkMessage {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(POD_INTERFACE)
        .setns_by_fd(pod.as_raw_fd())
        .build();
    LinkVeth::new(&network.veth, POD_INTERFACE)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .controller(bridge)
        .build()
}

async fn configure_pod(handle: &Handle, network: &SandboxNetwork) -> Result<(), Failure> {
    for name in ["lo", POD_INTERFACE] {
        let link = index(handle, name).await?;
        if name == POD_INTERFACE {
            handle
                .address()
                .add(link, network.address.into(), network.prefix)
                .execute()
                .await
                .map_err(|error| netlink("give the pod its address", error))?;
        }
        handle
            .link()
            .set(LinkUnspec::new_with_index(link).up().build())
            .execute()
            .await
            .map_err(|error| netlink("start the pod's interface", error))?;
    }
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(network.gateway)
        .build();
    handle
        .route()
        .add(route)
        .execute()
        .await
        .map_err(|error| netlink("give the pod its default route", error))
}

async fn index(handle: &Handle, name: &str) -> Result<u32, Failure> {
    let mut links = std::pin::pin!(handle.link().get().match_name(name).execute());
    match links.try_next().await {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => Err(Failure::new(&format!("find interface {name}"), "there is none")),
        Err(error) => Err(netlink(&format!("find interface {name}"), error)),
    }
}

/// Opens a socket in the namespace this thread is in, and serves it on the current runtime.
fn connect() -> Result<Handle, Failure> {
    let (connection, handle, _) =
        new_connection().map_err(|error| Failure::new("speak with the kernel's network", error))?;
    drop(tokio::spawn(connection));
    Ok(handle)
}

/// A helper has one thread, and so has its runtime: namespaces are entered by threads.
fn run<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    runtime
        .map_err(|error| Failure::new("speak with the kernel's network", error))?
        .block_on(work)
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

fn netlink(act: &str, error: rtnetlink::Error) -> Failure {
    match &error {
        rtnetlink::Error::NetlinkError(message) => Failure::new(act, message.to_io()),
        other => Failure::new(act, other),
    }
}
