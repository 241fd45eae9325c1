//! Interfaces, addresses and routes.

use super::family::{self, Family};
use super::netlink::{FLAG_APPEND, FLAG_CREATE, FLAG_EXCLUSIVE, Message, Peer, Socket};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// Nobody else can have the address, so it is not first asked for a second.
const IFA_F_NODAD: u8 = 2;
const RTA_GATEWAY: u16 = 5;

const AF_UNSPEC: u8 = 0;
const AF_BRIDGE: u8 = 7;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
/// Made by an administrator's program, not by the kernel.
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// One end of a pair of interfaces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
}

/// Speaks about the links of the namespace it was opened in.
#[derive(Debug)]
pub(crate) struct Links {
    socket: Socket,
}

impl Links {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: Socket::open(Peer::Route)?,
        })
    }

    /// The number of an interface; `None` when there is none of this name.
    pub(crate) fn index(&mut self, name: &str) -> io::Result<Option<u32>> {
        let question = Message::new(RTM_GETLINK, 0, &link(AF_UNSPEC, 0, false)).text(IFLA_IFNAME, name);
        match self.socket.ask(question) {
            Ok(told) => Ok(told
                .payload
                .get(4..8)
                .and_then(|index| index.try_into().ok())
                .map(u32::from_ne_bytes)),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn add_bridge(&mut self, name: &str, mac: Mac) -> io::Result<()> {
        let order = Message::new(
            RTM_NEWLINK,
            FLAG_CREATE | FLAG_EXCLUSIVE,
            &link(AF_UNSPEC, 0, false),
        );
        let order = order
            .text(IFLA_IFNAME, name)
            .bytes(IFLA_ADDRESS, &mac)
            .nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"));
        self.socket.order(order)
    }

    /// A pair whose one end is on a bridge and whose other end is in a pod's namespace from the start.
    pub(crate) fn add_pair(
        &mut self,
        near: &str,
        bridge: u32,
        far: End<'_>,
        pod: BorrowedFd<'_>,
        mtu: Option<u32>,
    ) -> io::Result<()> {
        let pod = u32::try_from(pod.as_raw_fd()).map_err(io::Error::other)?;
        let with_mtu = |message: Message| match mtu {
            Some(mtu) => message.number(IFLA_MTU, mtu),
            None => message,
        };
        let peer = |mut data: Message| {
            data.raw(&link(AF_UNSPEC, 0, false));
            with_mtu(data)
                .text(IFLA_IFNAME, far.name)
                .bytes(IFLA_ADDRESS, &far.mac)
                .number(IFLA_NET_NS_FD, pod)
        };
        let order = Message::new(
            RTM_NEWLINK,
            FLAG_CREATE | FLAG_EXCLUSIVE,
            &link(AF_UNSPEC, 0, false),
        );
        let order = with_mtu(order)
            .text(IFLA_IFNAME, near)
            .number(IFLA_MASTER, bridge)
            .nest(IFLA_LINKINFO, |info| {
                info.text(IFLA_INFO_KIND, "veth")
                    .nest(IFLA_INFO_DATA, |data| data.nest(VETH_INFO_PEER, peer))
            });
        self.socket.order(order)
    }

    pub(crate) fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.socket
            .order(Message::new(RTM_SETLINK, 0, &link(AF_UNSPEC, index, true)))
    }

    /// Lets a port of a bridge give a frame back to where it came from: a pod reaches itself by a port of the node.
    pub(crate) fn set_hairpin(&mut self, index: u32) -> io::Result<()> {
        let order = Message::new(RTM_SETLINK, 0, &link(AF_BRIDGE, index, false));
        self.socket
            .order(order.nest(IFLA_PROTINFO, |port| port.bytes(IFLA_BRPORT_MODE, &[1])))
    }

    /// Removes an interface; one that is gone is no error.
    pub(crate) fn remove(&mut self, name: &str) -> io::Result<()> {
        let Some(index) = self.index(name)? else {
            return Ok(());
        };
        let order = Message::new(RTM_DELLINK, 0, &link(AF_UNSPEC, index, false));
        match self.socket.order(order) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
            removed => removed,
        }
    }

    pub(crate) fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let family = Family::of(address);
        let flags = match family {
            Family::V4 => 0,
            Family::V6 => IFA_F_NODAD,
        };
        // struct ifaddrmsg: family, prefix length, flags, scope, interface.
        let mut body = vec![family.number(), prefix, flags, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        let octets = family::octets(address);
        let order = Message::new(RTM_NEWADDR, FLAG_CREATE | FLAG_EXCLUSIVE, &body)
            .bytes(IFA_LOCAL, &octets)
            .bytes(IFA_ADDRESS, &octets);
        self.socket.order(match address {
            IpAddr::V4(address) => {
                let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                let broadcast = Ipv4Addr::from(u32::from(address) | host);
                order.bytes(IFA_BROADCAST, &broadcast.octets())
            }
            IpAddr::V6(_) => order,
        })
    }

    pub(crate) fn add_default_route(&mut self, gateway: IpAddr) -> io::Result<()> {
        // struct rtmsg: family, two prefix lengths, type of service, table, protocol, scope, type, flags.
        let body = [
            Family::of(gateway).number(),
            0,
            0,
            0,
            RT_TABLE_MAIN,
            RTPROT_STATIC,
            0,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let order = Message::new(RTM_NEWROUTE, FLAG_CREATE | FLAG_APPEND, &body);
        self.socket
            .order(order.bytes(RTA_GATEWAY, &family::octets(gateway)))
    }
}

/// struct ifinfomsg: family, type, interface, flags, which flags to change.
fn link(family: u8, index: u32, up: bool) -> [u8; 16] {
    let mut body = [0; 16];
    body[0] = family;
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        body[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        body[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    body
}

/// The same address has the same Ethernet address each time, so that what its neighbours remember stays true. Addresses
/// of one network differ in their last bytes.
pub(crate) fn mac_of(address: IpAddr) -> Mac {
    let octets = family::octets(address);
    let mut mac = [0x02, 0x6b, 0, 0, 0, 0];
    // The second lowest bit of the first byte says that nobody gave it out.
    mac[2..].copy_from_slice(&octets[octets.len() - 4..]);
    mac
}
