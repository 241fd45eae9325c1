//! Which address each pod has.

use crate::Error;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Smaller networks have no room for a gateway and two pods.
const PREFIX_MAX: u8 = 29;
const PREFIX_MIN: u8 = 8;

/// Which addresses of the node's pod network are taken. The sandbox records on disk are the truth; this is what was
/// read from them, kept up to date.
#[derive(Debug)]
pub(super) struct Addresses {
    network: Option<Network>,
    taken: BTreeSet<Ipv4Addr>,
    /// The address given last: the next one comes after it, so that an address is not reused at once.
    last: Ipv4Addr,
}

#[derive(Debug, Clone, Copy)]
struct Network {
    base: u32,
    prefix: u8,
}

impl Network {
    fn size(self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }
}

/// An address for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) address: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
    pub(super) prefix: u8,
}

impl Addresses {
    /// `taken` are those that sandboxes on disk have.
    pub(super) fn new(cidr: Option<(Ipv4Addr, u8)>, taken: BTreeSet<Ipv4Addr>) -> Result<Self, Error> {
        let network = cidr
            .map(|(address, prefix)| network(address, prefix))
            .transpose()?;
        let last = network.map_or(Ipv4Addr::UNSPECIFIED, Network::gateway);
        Ok(Self {
            network,
            last: taken.last().copied().unwrap_or(last),
            taken,
        })
    }

    pub(super) fn take(&mut self) -> Result<Assigned, Error> {
        let Some(network) = self.network else {
            let reason = "this node has no pod network; use hostNetwork: true or set a pod CIDR";
            return Err(Error::failed("give an address to", "a pod", reason));
        };
        // Not the network's own address, the gateway's, or the broadcast address.
        let usable = 2..network.size() - 1;
        let last = u32::from(self.last)
            .checked_sub(network.base)
            .filter(|offset| usable.contains(offset))
            .unwrap_or(1);
        let after = (last + 1..usable.end).chain(2..=last);
        let free = after
            .map(|offset| Ipv4Addr::from(network.base + offset))
            .find(|address| !self.taken.contains(address));
        let Some(address) = free.filter(|address| *address != network.gateway()) else {
            return Err(Error::failed(
                "give an address to",
                "a pod",
                "all addresses of the pod CIDR are taken",
            ));
        };
        self.taken.insert(address);
        self.last = address;
        Ok(Assigned {
            address,
            gateway: network.gateway(),
            prefix: network.prefix,
        })
    }

    /// No sandbox has an address.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    pub(super) fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }
}

fn network(address: Ipv4Addr, prefix: u8) -> Result<Network, Error> {
    if !(PREFIX_MIN..=PREFIX_MAX).contains(&prefix) {
        let reason = format!("its prefix must be between {PREFIX_MIN} and {PREFIX_MAX}");
        return Err(Error::failed(
            "use the pod CIDR",
            format!("{address}/{prefix}"),
            reason,
        ));
    }
    let mask = u32::MAX << (32 - u32::from(prefix));
    Ok(Network {
        base: u32::from(address) & mask,
        prefix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(prefix: u8) -> Addresses {
        Addresses::new(Some((Ipv4Addr::new(10, 1, 2, 77), prefix)), BTreeSet::new()).unwrap()
    }

    #[test]
    fn addresses_are_not_reused_at_once_and_run_out_with_a_sentence() {
        let mut addresses = addresses(29);
        let first = addresses.take().unwrap();
        assert_eq!(
            (first.address.to_string(), first.gateway.to_string()),
            ("10.1.2.74".into(), "10.1.2.73".into())
        );
        addresses.give_back(first.address);
        let rest: Vec<_> = (0..5)
            .map(|_| addresses.take().unwrap().address.octets()[3])
            .collect();
        assert_eq!(rest, [75, 76, 77, 78, 74]);
        let error = addresses.take().unwrap_err().to_string();
        assert_eq!(
            error,
            "give an address to a pod: all addresses of the pod CIDR are taken"
        );
    }

    #[test]
    fn what_sandboxes_on_disk_have_is_taken() {
        let taken = BTreeSet::from([Ipv4Addr::new(10, 1, 2, 2)]);
        let mut addresses = Addresses::new(Some((Ipv4Addr::new(10, 1, 2, 0), 24)), taken).unwrap();
        assert_eq!(addresses.take().unwrap().address, Ipv4Addr::new(10, 1, 2, 3));
    }

    #[test]
    fn no_network_and_no_room_are_said() {
        let none = Addresses::new(None, BTreeSet::new()).unwrap().take().unwrap_err();
        assert!(none.to_string().contains("no pod network"), "{none}");
        assert!(Addresses::new(Some((Ipv4Addr::new(10, 1, 2, 0), 31)), BTreeSet::new()).is_err());
    }
}
