//! What the firewall of this network namespace holds, asked of the kernel itself: no program for that need be installed.

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::os::fd::AsRawFd;

/// Numbers of the kernel's interface: the subsystem, its questions, the flags of a dump, the types that end one.
const NFTABLES: u16 = 10 << 8;
const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const REQUEST_DUMP: u16 = 0x301;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;
/// The header, and behind it the family, the version and a number that nobody needs.
const HEADERS_BYTES: usize = HEADER_BYTES + 4;
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A line for each table, chain and rule of nftables; none where the kernel has no nftables.
pub(crate) fn nftables() -> Vec<String> {
    let kinds: [(u16, &str, &[u16]); 3] = [
        (GET_TABLE, "table", &[1]),
        (GET_CHAIN, "chain", &[1, 3]),
        (GET_RULE, "rule", &[1, 2]),
    ];
    let mut found = Vec::new();
    for (question, kind, names) in kinds {
        for message in dump(question).unwrap_or_default() {
            let names = names
                .iter()
                .map(|attribute| text(&message, *attribute).unwrap_or_default());
            found.push(format!("{kind} {}", names.collect::<Vec<_>>().join(" ")));
        }
    }
    found
}

/// The attributes of everything that the kernel answers to one question.
fn dump(question: u16) -> nix::Result<Vec<Vec<u8>>> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let mut request = Vec::with_capacity(HEADERS_BYTES);
    request.extend(u32::try_from(HEADERS_BYTES).unwrap().to_ne_bytes());
    request.extend((NFTABLES | question).to_ne_bytes());
    request.extend(REQUEST_DUMP.to_ne_bytes());
    // The number of the request, who asks, and any family.
    request.extend([0; 12]);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let (mut buffer, mut found) = (vec![0; ANSWER_BYTES_MAX], Vec::new());
    loop {
        let bytes = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..bytes];
        while rest.len() >= HEADER_BYTES {
            let length = usize::try_from(u32::from_ne_bytes(rest[..4].try_into().unwrap())).unwrap();
            let kind = u16::from_ne_bytes(rest[4..6].try_into().unwrap());
            if kind == TYPE_DONE || kind == TYPE_ERROR {
                return Ok(found);
            }
            found.push(rest[HEADERS_BYTES..length].to_vec());
            rest = &rest[aligned(length).min(rest.len())..];
        }
    }
}

/// The text of one attribute.
fn text(attributes: &[u8], wanted: u16) -> Option<String> {
    let mut rest = attributes;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes(rest[..2].try_into().unwrap()));
        let kind = u16::from_ne_bytes(rest[2..4].try_into().unwrap());
        if kind == wanted {
            let text = String::from_utf8_lossy(&rest[4..length]).into_owned();
            return Some(text.trim_end_matches('\0').to_owned());
        }
        rest = &rest[aligned(length).min(rest.len())..];
    }
    None
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4).max(4)
}
