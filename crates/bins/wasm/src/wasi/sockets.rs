//! Sockets. The interface has no word for making one, so what listens is made before the module begins; it has the
//! numbers after the root's.

use super::Error;
use super::descriptors::{Descriptor, Kind, Table, rights};
use super::errno::Errno;
use super::guest::{Guest, Range};
use super::status::flags;
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

/// Addresses with ports, as `0.0.0.0:8080`, with commas between them.
pub(crate) const LISTEN: &str = "KEDGE_WASM_LISTEN";
/// A program with more ports than these is made of several.
pub(super) const LISTENERS_MAX: usize = 16;

const PEEK: u32 = 1;
const WAIT_FOR_ALL: u32 = 2;

const HOW_READ: u32 = 1;
const HOW_WRITE: u32 = 2;

/// Listens at the addresses that were ordered.
pub(super) fn listeners(ordered: Option<&str>) -> Result<Vec<OwnedFd>, Error> {
    let Some(ordered) = ordered.filter(|ordered| !ordered.trim().is_empty()) else {
        return Ok(Vec::new());
    };
    let bad = || Error::BadAddresses(ordered.to_owned());
    let addresses: Vec<&str> = ordered.split(',').map(str::trim).collect();
    if addresses.len() > LISTENERS_MAX {
        return Err(bad());
    }
    let listen = |address: &&str| {
        let parsed: SocketAddr = address.parse().map_err(|_| bad())?;
        let listener = TcpListener::bind(parsed);
        listener
            .map(OwnedFd::from)
            .map_err(|error| Error::Listen((*address).to_owned(), error))
    };
    addresses.iter().map(listen).collect()
}

fn stream(table: &Table, fd: u32) -> Result<&Descriptor, Errno> {
    let found = table.find(fd)?;
    if found.kind == Kind::Stream {
        Ok(found)
    } else {
        Err(Errno::NOTSOCK)
    }
}

pub(super) fn accept(
    table: &mut Table,
    guest: &mut Guest<'_>,
    fd: u32,
    flags: u32,
    told: u32,
) -> Result<(), Errno> {
    let listener = stream(table, fd)?;
    if listener.rights & rights::ACCEPT == 0 || flags & !flags::NONBLOCK != 0 {
        return Err(Errno::INVAL);
    }
    let nonblocking = if flags & flags::NONBLOCK != 0 {
        SocketFlags::NONBLOCK
    } else {
        SocketFlags::empty()
    };
    let accepted = retry_on_intr(|| rustix::net::accept_with(listener, SocketFlags::CLOEXEC | nonblocking))?;
    let opened = table.add(Descriptor::new(accepted, true, true)?)?;
    let written = guest.put_u32(told, opened);
    written.or_else(|why| table.close(opened).and(Err(why)))
}

/// Receives into the first place that has room.
pub(super) fn receive(
    table: &Table,
    guest: &mut Guest<'_>,
    (fd, vectors): (u32, Range),
    flags: u32,
    (told, told_flags): (u32, u32),
) -> Result<(), Errno> {
    let socket = stream(table, fd)?;
    if flags & !(PEEK | WAIT_FOR_ALL) != 0 {
        return Err(Errno::INVAL);
    }
    let peek = if flags & PEEK != 0 {
        RecvFlags::PEEK
    } else {
        RecvFlags::empty()
    };
    let all = if flags & WAIT_FOR_ALL != 0 {
        RecvFlags::WAITALL
    } else {
        RecvFlags::empty()
    };
    let vectors = guest.vectors(vectors)?;
    let received = match vectors.into_iter().find(|vector| vector.length > 0) {
        Some(vector) => {
            let into = guest.bytes_mut(vector)?;
            retry_on_intr(|| rustix::net::recv(socket, &mut *into, peek | all))?.0
        }
        None => 0,
    };
    guest.put_count(told, received)?;
    guest.put(told_flags, &[0; 2])
}

/// Sends the first place that has something, as much as the kernel takes.
pub(super) fn send(
    table: &Table,
    guest: &mut Guest<'_>,
    fd: u32,
    vectors: Range,
    told: u32,
) -> Result<(), Errno> {
    let socket = stream(table, fd)?;
    let vectors = guest.vectors(vectors)?;
    let sent = match vectors.into_iter().find(|vector| vector.length > 0) {
        Some(vector) => {
            let bytes = guest.bytes(vector)?;
            retry_on_intr(|| rustix::net::send(socket, bytes, SendFlags::NOSIGNAL))?
        }
        None => 0,
    };
    guest.put_count(told, sent)
}

pub(super) fn shut_down(table: &Table, fd: u32, how: u32) -> Result<(), Errno> {
    let how = match how {
        HOW_READ => Shutdown::Read,
        HOW_WRITE => Shutdown::Write,
        both if both == HOW_READ | HOW_WRITE => Shutdown::Both,
        _ => return Err(Errno::INVAL),
    };
    Ok(rustix::net::shutdown(stream(table, fd)?, how)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_they_seem() {
        assert!(listeners(None).unwrap().is_empty() && listeners(Some(" ")).unwrap().is_empty());
        assert_eq!(
            listeners(Some("127.0.0.1:0, [::1]:0"))
                .map(|all| all.len())
                .unwrap_or(2),
            2
        );
        for bad in ["8080", "localhost:8080", "127.0.0.1:0,", "127.0.0.1:99999"] {
            assert!(
                matches!(listeners(Some(bad)), Err(Error::BadAddresses(_))),
                "{bad}"
            );
        }
        let many = vec!["127.0.0.1:0"; LISTENERS_MAX + 1].join(",");
        assert!(matches!(listeners(Some(&many)), Err(Error::BadAddresses(_))));
        assert!(matches!(listeners(Some("192.0.2.1:1")), Err(Error::Listen(..))));
    }
}
