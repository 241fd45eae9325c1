//! The two kinds of addresses, and what differs between them for the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// A network: an address in it and the length of its prefix.
pub(crate) type Cidr = (IpAddr, u8);

/// The kernel has this file when it speaks IPv6.
const ADDRESSES_OF_IPV6: &str = "/proc/net/if_inet6";

/// A kind of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Its number among the families of addresses, which netfilter has taken over.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub(crate) fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The bits of an address.
    pub(crate) fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// An address as packets carry it.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The ones of a network's prefix, as long as an address.
pub(crate) fn mask((address, prefix): Cidr) -> Vec<u8> {
    let family = Family::of(address);
    // Shifted by all bits, nothing is left.
    let bits = u128::MAX.checked_shl(u32::from(family.bits().saturating_sub(prefix)));
    let bytes = bits.unwrap_or(0).to_be_bytes();
    bytes[bytes.len() - usize::from(family.bits() / 8)..].to_vec()
}

/// Whether this kernel speaks IPv6.
pub(crate) fn has_ipv6() -> bool {
    Path::new(ADDRESSES_OF_IPV6).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_row_of_ones() {
        let mask = |text: &str, prefix| mask((text.parse().unwrap(), prefix));
        assert_eq!(mask("10.0.0.0", 20), [255, 255, 240, 0]);
        assert_eq!(mask("10.0.0.0", 0), [0; 4]);
        assert_eq!(mask("10.0.0.0", 32), [255; 4]);
        assert_eq!(mask("fd00::", 12)[..3], [255, 240, 0]);
        assert_eq!(mask("fd00::", 128), [255; 16]);
        assert_eq!(mask("fd00::", 0), [0; 16]);
    }
}
