//! Which addresses each pod has.
//!
//! A pod has a number, and in each of the node's networks the address of this number. So addresses of both kinds are
//! given and taken together, and neighbours never remember one of them for another pod than the other.

use super::family::{Cidr, Family};
use crate::Error;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// The bridge has it.
const GATEWAY: u32 = 1;

/// As many as the largest IPv4 network has; an IPv6 network has more than a node can ever give.
const NUMBER_BITS_MAX: u8 = 24;

/// Smaller networks have no room for a gateway and two pods; larger ones are slips of the pen.
fn prefixes(family: Family) -> RangeInclusive<u8> {
    match family {
        Family::V4 => 32 - NUMBER_BITS_MAX..=29,
        Family::V6 => 32..=125,
    }
}

/// Which numbers are taken. The sandbox records on disk are the truth; this is what was read from them, kept up to
/// date.
#[derive(Debug)]
pub(super) struct Addresses {
    /// At most one of each kind; the first is that of the address by which a pod is usually called.
    networks: Vec<Network>,
    /// Also addresses of networks that were configured once: their pods still have them.
    taken: BTreeSet<IpAddr>,
    /// The number given last: the next one comes after it, so that an address is not reused at once.
    last: u32,
}

#[derive(Debug, Clone, Copy)]
enum Network {
    V4 { base: u32, prefix: u8 },
    V6 { base: u128, prefix: u8 },
}

/// A pod's address in one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assigned {
    pub(crate) address: IpAddr,
    pub(crate) gateway: IpAddr,
    pub(crate) prefix: u8,
}

impl Network {
    fn new((address, prefix): Cidr) -> Result<Self, Error> {
        let family = Family::of(address);
        let allowed = prefixes(family);
        if !allowed.contains(&prefix) {
            let (least, most) = allowed.into_inner();
            let reason = format!("its prefix must be between {least} and {most}");
            return Err(unusable((address, prefix), reason));
        }
        // No prefix is 0, so neither is shifted by all its bits.
        Ok(match address {
            IpAddr::V4(address) => Self::V4 {
                base: u32::from(address) & (u32::MAX << (32 - prefix)),
                prefix,
            },
            IpAddr::V6(address) => Self::V6 {
                base: u128::from(address) & (u128::MAX << (128 - prefix)),
                prefix,
            },
        })
    }

    /// The first number that is not a pod's any more.
    fn end(self) -> u32 {
        match self {
            // The last one is everybody's.
            Self::V4 { prefix, .. } => (1 << (32 - prefix)) - 1,
            Self::V6 { prefix, .. } => 1 << (128 - prefix).min(NUMBER_BITS_MAX),
        }
    }

    fn address(self, number: u32) -> IpAddr {
        match self {
            Self::V4 { base, .. } => Ipv4Addr::from(base + number).into(),
            Self::V6 { base, .. } => Ipv6Addr::from(base + u128::from(number)).into(),
        }
    }

    /// The number of an address; `None` when it is not of this network.
    fn number(self, address: IpAddr) -> Option<u32> {
        let number = match (self, address) {
            (Self::V4 { base, .. }, IpAddr::V4(address)) => u32::from(address).checked_sub(base)?,
            (Self::V6 { base, .. }, IpAddr::V6(address)) => {
                u32::try_from(u128::from(address).checked_sub(base)?).ok()?
            }
            (Self::V4 { .. }, IpAddr::V6(_)) | (Self::V6 { .. }, IpAddr::V4(_)) => return None,
        };
        (number < self.end()).then_some(number)
    }

    fn assign(self, number: u32) -> Assigned {
        let (Self::V4 { prefix, .. } | Self::V6 { prefix, .. }) = self;
        Assigned {
            address: self.address(number),
            gateway: self.address(GATEWAY),
            prefix,
        }
    }
}

impl Addresses {
    /// `taken` are those that sandboxes on disk have.
    pub(super) fn new(cidrs: &[Cidr], taken: BTreeSet<IpAddr>) -> Result<Self, Error> {
        for (index, cidr) in cidrs.iter().enumerate() {
            let family = Family::of(cidr.0);
            if cidrs[..index]
                .iter()
                .any(|(other, _)| Family::of(*other) == family)
            {
                let reason = format!("pods have one {} network at most", family.name());
                return Err(unusable(*cidr, reason));
            }
        }
        let networks: Vec<_> = cidrs
            .iter()
            .map(|cidr| Network::new(*cidr))
            .collect::<Result<_, _>>()?;
        let number = |address: &IpAddr| networks.iter().find_map(|network| network.number(*address));
        Ok(Self {
            last: taken.iter().filter_map(number).max().unwrap_or(GATEWAY),
            networks,
            taken,
        })
    }

    /// The addresses of the next pod, one in each network.
    pub(super) fn take(&mut self) -> Result<(Assigned, Option<Assigned>), Error> {
        let failed = |reason| Err(Error::failed("give an address to", "a pod", reason));
        let [first, rest @ ..] = self.networks.as_slice() else {
            return failed("this node has no pod network; use hostNetwork: true or set a pod CIDR");
        };
        let end = rest.iter().fold(first.end(), |end, other| end.min(other.end()));
        let last = self.last.clamp(GATEWAY, end - 1);
        let mut numbers = (last + 1..end).chain(GATEWAY + 1..=last);
        let is_free = |number: &u32| {
            let mut addresses = self.networks.iter().map(|network| network.address(*number));
            addresses.all(|address| !self.taken.contains(&address))
        };
        let Some(number) = numbers.find(is_free) else {
            return failed("all addresses of the pod CIDR are taken");
        };
        let first = first.assign(number);
        let second = rest.first().map(|other| other.assign(number));
        self.last = number;
        self.taken.insert(first.address);
        self.taken.extend(second.map(|second| second.address));
        Ok((first, second))
    }

    /// No sandbox has an address.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    pub(super) fn give_back(&mut self, address: IpAddr) {
        self.taken.remove(&address);
    }
}

fn unusable((address, prefix): Cidr, reason: String) -> Error {
    Error::failed("use the pod CIDR", format!("{address}/{prefix}"), reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        let cidr = |text: &&str| {
            let (address, prefix) = text.split_once('/').unwrap();
            (address.parse().unwrap(), prefix.parse().unwrap())
        };
        texts.iter().map(cidr).collect()
    }

    fn addresses(networks: &[&str], taken: &[&str]) -> Addresses {
        let taken = taken.iter().map(|text| text.parse().unwrap()).collect();
        Addresses::new(&cidrs(networks), taken).unwrap()
    }

    /// The addresses of the next pod, or why it gets none.
    fn next(addresses: &mut Addresses) -> String {
        match addresses.take() {
            Ok((first, None)) => format!("{} by {}", first.address, first.gateway),
            Ok((first, Some(second))) => format!(
                "{} by {}, {} by {}",
                first.address, first.gateway, second.address, second.gateway
            ),
            Err(error) => error.to_string(),
        }
    }

    fn all(mut addresses: Addresses, count: usize) -> String {
        let rows: Vec<_> = (0..count).map(|_| next(&mut addresses)).collect();
        rows.join("\n") + "\n"
    }

    #[test]
    fn addresses_are_not_reused_at_once_and_run_out_with_a_sentence() {
        let mut addresses = addresses(&["10.1.2.77/29"], &[]);
        assert_eq!(next(&mut addresses), "10.1.2.74 by 10.1.2.73");
        addresses.give_back("10.1.2.74".parse().unwrap());
        expect![[r"
            10.1.2.75 by 10.1.2.73
            10.1.2.76 by 10.1.2.73
            10.1.2.77 by 10.1.2.73
            10.1.2.78 by 10.1.2.73
            10.1.2.74 by 10.1.2.73
            give an address to a pod: all addresses of the pod CIDR are taken
        "]]
        .assert_eq(&all(addresses, 6));
    }

    #[test]
    fn a_pod_has_the_same_number_in_both_networks() {
        // One of the two is taken: what was configured before had one network only.
        let taken = ["10.1.2.3", "fd00:2::5"];
        expect![[r"
            10.1.2.6 by 10.1.2.1, fd00:2::6 by fd00:2::1
            10.1.2.2 by 10.1.2.1, fd00:2::2 by fd00:2::1
            10.1.2.4 by 10.1.2.1, fd00:2::4 by fd00:2::1
            give an address to a pod: all addresses of the pod CIDR are taken
        "]]
        .assert_eq(&all(addresses(&["10.1.2.0/29", "fd00:2::/64"], &taken), 4));
    }

    #[test]
    fn ipv6_alone_is_a_network_too() {
        expect![[r"
            fd00::ffff:a by fd00::ffff:1
            fd00::ffff:b by fd00::ffff:1
        "]]
        .assert_eq(&all(
            addresses(
                &["fd00::ffff:0/112"],
                &["fd00::ffff:7", "fd00::ffff:9", "10.0.0.1"],
            ),
            2,
        ));
        let mut far = addresses(&["fd00::/64"], &["fd00::ff:ffff"]);
        assert_eq!(next(&mut far), "fd00::2 by fd00::1");
    }

    #[test]
    fn what_cannot_be_a_network_is_said() {
        let refused = |networks: &[&str]| {
            let refused = Addresses::new(&cidrs(networks), BTreeSet::new());
            refused.map(drop).map_err(|error| error.to_string()).unwrap_err()
        };
        let rows = [
            next(&mut addresses(&[], &[])),
            refused(&["10.1.2.0/31"]),
            refused(&["10.1.2.0/7"]),
            refused(&["fd00::/16"]),
            refused(&["fd00::/127"]),
            refused(&["10.1.2.0/24", "10.1.3.0/24"]),
        ];
        expect![[r"
            give an address to a pod: this node has no pod network; use hostNetwork: true or set a pod CIDR
            use the pod CIDR 10.1.2.0/31: its prefix must be between 8 and 29
            use the pod CIDR 10.1.2.0/7: its prefix must be between 8 and 29
            use the pod CIDR fd00::/16: its prefix must be between 32 and 125
            use the pod CIDR fd00::/127: its prefix must be between 32 and 125
            use the pod CIDR 10.1.3.0/24: pods have one IPv4 network at most
        "]]
        .assert_eq(&(rows.join("\n") + "\n"));
    }
}
