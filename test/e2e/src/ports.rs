//! Ports for programs that must be told theirs.
//!
//! A port that the system gave away, and that was closed again, is anybody's: another program may have it before the one
//! that was told. These are none that the system gives away, and another test process takes others.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Mutex;

/// Above what services are known by, below the ports of nodes (30000) and those that the system gives away (32768).
const RANGE: Range<u16> = 20000..30000;

/// What this process has claimed, until its end.
static CLAIMS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// Ports of loopback that nobody listens on and no other test takes.
///
/// # Panics
/// When there are none.
pub fn free<const N: usize>() -> [u16; N] {
    [(); N].map(|()| block(1))
}

/// The first of so many neighbours.
///
/// # Panics
/// When there are none.
pub fn block(count: u16) -> u16 {
    let mut claims = CLAIMS.lock().expect("nobody panics with it");
    let places = (RANGE.end - RANGE.start) / count;
    // Test processes at one time begin to look at different places.
    let begin = u16::try_from(std::process::id() % u32::from(places)).expect("less than places");
    for place in (begin..places).chain(0..begin) {
        let first = RANGE.start + place * count;
        let block: Option<Vec<UnixListener>> = (first..first + count).map(claim).collect();
        if let Some(block) = block {
            claims.extend(block);
            return first;
        }
    }
    panic!("no {count} free ports from {} to {}", RANGE.start, RANGE.end);
}

/// A name that only one process of this network can have, if the port is free as well.
fn claim(port: u16) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("kedge-test-port-{port}")).ok()?;
    let claim = UnixListener::bind_addr(&name).ok()?;
    let is_free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
        && UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
    is_free.then_some(claim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let first = block(5);
        let mut all: Vec<u16> = (first..first + 5).collect();
        all.extend(free::<20>());
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(claim(first).is_none(), "it is this process's");
    }
}
