//! The QUIC of official edges: Google's dialect (versions 39, 43 and 44), given up before QUIC became a standard. It
//! cannot be served, but it can be recognised, named in the log, and answered so that the edge gives up at once.

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::collections::HashSet;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

/// Addresses that are named in the log, once each. More are answered without a word.
const NAMED_MAX: usize = 1024;
/// QUIC version 1, which no speaker of the dialect knows.
const VERSION_1: [u8; 4] = [0, 0, 0, 1];
/// Flags of the dialect's public header.
const FLAG_VERSION: u8 = 0x01;
const FLAG_CONNECTION_ID: u8 = 0x08;
/// Set in every packet of the standard; our own ends never clear it.
const FIXED_BIT: u8 = 0x40;
const LONG_HEADER: u8 = 0x80;

/// The UDP socket of a server: keeps the dialect away from quinn, and quinn's buffers small.
#[derive(Debug)]
pub(super) struct Filter {
    socket: Arc<dyn AsyncUdpSocket>,
    named: Mutex<HashSet<IpAddr>>,
}

impl Filter {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Self {
        Self {
            socket,
            named: Mutex::default(),
        }
    }

    fn refuse(&self, peer: &RecvMeta, google: &Google) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < NAMED_MAX && named.insert(peer.addr.ip()) {
            tracing::warn!(
                peer = %peer.addr,
                version = google.version,
                "an official edge tries its QUIC, an abandoned Google dialect that is not served: set \
                 modules.edgeHub.quic.enable to false and websocket.enable to true on that edge"
            );
        }
        drop(named);
        // Best effort, as every datagram is: the edge also gives up by itself, only later.
        let _ = self.socket.try_send(&Transmit {
            destination: peer.addr,
            ecn: None,
            contents: &google.answer,
            segment_size: None,
            src_ip: peer.dst_ip,
        });
    }
}

impl AsyncUdpSocket for Filter {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.socket.poll_recv(cx, buffers, metas))?;
        for (buffer, meta) in buffers.iter().zip(metas.iter_mut()).take(count) {
            // Datagrams that the kernel has joined come from one sender, so the first speaks for all.
            let first = &buffer[..meta.len.min(meta.stride)];
            if let Some(google) = Google::read(first) {
                self.refuse(meta, &google);
                // Nothing is left for quinn.
                meta.len = 0;
            }
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        // quinn keeps a send buffer of this many packets for each connection. Ten at once would save system calls, but
        // cost an idle connection 14 KB.
        1
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

/// A first packet of the dialect.
#[derive(Debug, PartialEq, Eq)]
struct Google {
    version: String,
    /// Says which versions are served: none that the edge knows. Always shorter than what it answers.
    answer: Vec<u8>,
}

impl Google {
    fn read(packet: &[u8]) -> Option<Self> {
        let (&first, rest) = packet.split_first()?;
        let google = if first & LONG_HEADER != 0 {
            Self::long(rest)?
        } else {
            Self::public(first, rest)?
        };
        (google.answer.len() < packet.len()).then_some(google)
    }

    /// Versions up to 43: flags, connection id of eight bytes, version.
    fn public(first: u8, rest: &[u8]) -> Option<Self> {
        let wanted = FLAG_VERSION | FLAG_CONNECTION_ID;
        if first & (wanted | FIXED_BIT) != wanted {
            return None;
        }
        let (connection, rest) = rest.split_first_chunk::<8>()?;
        let version = version(rest)?;
        Some(Self {
            version,
            answer: [&[wanted][..], connection, &VERSION_1].concat(),
        })
    }

    /// Version 44: type, version, the lengths of both connection ids in one byte, the ids.
    fn long(rest: &[u8]) -> Option<Self> {
        let version = version(rest)?;
        let (&lengths, rest) = rest.get(4..)?.split_first()?;
        let length = |code: u8| match code {
            0 => 0,
            code => usize::from(code) + 3,
        };
        let (to, rest) = rest.split_at_checked(length(lengths >> 4))?;
        let (from, _) = rest.split_at_checked(length(lengths & 0x0f))?;
        // The answer names the ids from the other side.
        let swapped = lengths.rotate_left(4);
        Some(Self {
            version,
            answer: [&[LONG_HEADER, 0, 0, 0, 0, swapped][..], from, to, &VERSION_1].concat(),
        })
    }
}

/// `Q` and three digits.
fn version(bytes: &[u8]) -> Option<String> {
    match bytes {
        [b'Q', digits @ ..] => {
            let digits = digits.first_chunk::<3>()?;
            let text = std::str::from_utf8(digits).ok()?;
            digits.iter().all(u8::is_ascii_digit).then(|| format!("Q{text}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello(start: &[u8]) -> Vec<u8> {
        let mut packet = start.to_vec();
        packet.resize(1200, 0);
        packet
    }

    #[test]
    fn versions_up_to_43_are_recognised_by_their_public_header() {
        for (flags, version) in [(0x09, "Q039"), (0x0d, "Q043"), (0x19, "Q043"), (0x39, "Q043")] {
            let packet = hello(&[&[flags], &b"12345678"[..], version.as_bytes()].concat());
            let google = Google::read(&packet).unwrap();
            assert_eq!(google.version, version);
            assert_eq!(google.answer, b"\x0912345678\0\0\0\x01");
        }
    }

    #[test]
    fn version_44_is_recognised_by_its_long_header() {
        let packet = hello(b"\xffQ044\x50abcdefgh");
        let google = Google::read(&packet).unwrap();
        assert_eq!(google.version, "Q044");
        assert_eq!(google.answer, b"\x80\0\0\0\0\x05abcdefgh\0\0\0\x01");
    }

    #[test]
    fn what_is_not_the_dialect_passes() {
        let standard = [
            &b"\xc3\0\0\0\x01\x08abcdefgh\x00"[..],
            b"\x4912345678Q043",
            b"\x0112345678Q043",
            b"\x0912345678Qxyz",
            b"\x0912345678Q04",
            b"\x09",
            b"",
        ];
        for packet in standard {
            assert_eq!(Google::read(packet), None, "{packet:02x?}");
        }
        // Too short to be worth an answer: nobody must be able to make us shout at a third party.
        assert_eq!(Google::read(b"\x0912345678Q043"), None);
    }

    proptest! {
        #[test]
        fn an_answer_is_always_shorter(packet: Vec<u8>, long: bool) {
            let start = if long { &b"\xffQ044"[..] } else { &b"\x0912345678Q043"[..] };
            let packet = [start, &packet].concat();
            if let Some(google) = Google::read(&packet) {
                prop_assert!(google.answer.len() < packet.len());
            }
        }
    }
}
