//! Which addresses the node reports.

use crate::config;
use kedge_api::NodeAddress;
use std::net::IpAddr;
use std::time::Duration;

/// The node's name is asked for this long; a resolver that is offline must not hold up the status.
const RESOLVE_MAX: Duration = Duration::from_secs(2);

/// The address of the node itself: that of the named interface, the given one, the one that its name resolves to, or the
/// one that leads outside.
pub(super) fn internal_ip(node: &config::Node, local: &[IpAddr], resolved: Option<IpAddr>) -> Option<IpAddr> {
    let given = node.ip.filter(|ip| !ip.is_unspecified());
    interface_ip(node).or(given).or(resolved).or_else(|| {
        // An unspecified address asks for the family only.
        let family = node.ip.map(|ip| ip.is_ipv4());
        let fits = |ip: &&IpAddr| family.is_none_or(|v4| ip.is_ipv4() == v4);
        local.iter().find(fits).or(local.first()).copied()
    })
}

fn interface_ip(node: &config::Node) -> Option<IpAddr> {
    let name = node.interface.as_deref()?;
    match kedge_host::node::interface_address(name) {
        Ok(Some(ip)) => Some(ip),
        Ok(None) => {
            tracing::warn!(
                interface = name,
                "the network interface has no address, another is reported"
            );
            None
        }
        Err(error) => {
            tracing::warn!(%error, interface = name, "the address of the network interface is unknown");
            None
        }
    }
}

/// What the node's name means, if it is one of this machine's own addresses.
pub(super) async fn resolve(node: &config::Node, name: &str, local: &[IpAddr]) -> Option<IpAddr> {
    let is_given = node.ip.is_some_and(|ip| !ip.is_unspecified()) || node.interface.is_some();
    if is_given {
        return None;
    }
    if let Ok(ip) = name.parse() {
        return Some(ip);
    }
    if !node.resolve_name {
        return None;
    }
    let found = tokio::time::timeout(RESOLVE_MAX, tokio::net::lookup_host((name, 0))).await;
    let found: Vec<IpAddr> = found.ok()?.ok()?.map(|address| address.ip()).collect();
    let own = || found.iter().filter(|ip| local.contains(ip));
    own().find(|ip| ip.is_ipv4()).or_else(|| own().next()).copied()
}

/// As the status lists them.
pub(super) fn listed(name: &str, ip: Option<&str>) -> Vec<NodeAddress> {
    let address = |type_: &str, address: &str| NodeAddress {
        type_: type_.to_owned(),
        address: address.to_owned(),
    };
    let internal = ip.map(|ip| address("InternalIP", ip));
    internal.into_iter().chain([address("Hostname", name)]).collect()
}
