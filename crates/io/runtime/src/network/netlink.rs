//! Messages to the kernel's network, as bytes: a header, a fixed body, attributes that may hold attributes.
//!
//! Netlink answers while it is asked: when the message was sent, its answer waits in the socket. So one thread without
//! a runtime is enough, and a transaction of many messages is one buffer.

use rustix::io::Errno;
use rustix::io::retry_on_intr;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{
    Timeout, set_socket_send_buffer_size_force, set_socket_timeout, socket_send_buffer_size,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The kernel answers at once; a machine that swaps may need a moment.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
/// The kernel packs a listing into parts of at most 32 KiB.
const PART_BYTES_MAX: usize = 64 * 1024;
/// What is kept of a listing is far below this; more would be somebody else's accident.
const LISTING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A listing during which something changed is asked for again; where changes never end, it is given up.
const LISTINGS_MAX: usize = 10;
/// The kernel counts its own bookkeeping as part of a message that waits to be read.
const BOOKKEEPING_BYTES: usize = 1024;
/// A transaction of as many rules as a node has ports is below this.
const TRANSACTION_BYTES_MAX: usize = 64 * 1024 * 1024;

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;
const ALIGNMENT: usize = 4;

const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;

const FLAG_REQUEST: u16 = 0x1;
const FLAG_ACK: u16 = 0x4;
/// Something changed while it was listed: parts may be missing, or told twice.
const FLAG_INTERRUPTED: u16 = 0x10;
const FLAG_LISTING: u16 = 0x300;
/// Fail when it is there already.
pub(crate) const FLAG_EXCLUSIVE: u16 = 0x200;
pub(crate) const FLAG_CREATE: u16 = 0x400;
pub(crate) const FLAG_APPEND: u16 = 0x800;

/// An attribute that holds attributes says so.
const NESTED: u16 = 0x8000;
/// What is left of an attribute's kind without the flags.
const KIND_MASK: u16 = 0x3fff;

/// A message that is being written.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `body` is the fixed part that follows the header.
    pub(crate) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | FLAG_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        let mut message = Self { bytes };
        message.raw(body);
        message
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let start = self.open(kind);
        self.raw(value);
        self.close(start, value.len());
        self
    }

    /// With the zero byte at its end that the kernel expects.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// In the order of the network, as everything of netfilter has it.
    pub(crate) fn network_number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// An attribute that holds what `inner` writes.
    pub(crate) fn nest(mut self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let start = self.open(kind | NESTED);
        let mut message = inner(self);
        let length = message.bytes.len() - start - ATTRIBUTE_BYTES;
        message.close(start, length);
        message
    }

    /// Bytes as they are, filled up to the alignment.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let aligned = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(aligned, 0);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize, length: usize) {
        let length = u16::try_from(length + ATTRIBUTE_BYTES).expect("our messages are a few hundred bytes");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("our messages are a few hundred bytes");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let flags = flags | u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A message of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The fixed body and the attributes.
    pub(crate) payload: Vec<u8>,
}

/// Cuts what was received into messages; what is cut off at the end is dropped.
pub(crate) fn messages(mut bytes: &[u8]) -> Vec<Told> {
    let mut told = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(payload) = bytes.get(HEADER_BYTES..length) else {
            break;
        };
        told.push(Told {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload: payload.to_vec(),
        });
        bytes = bytes
            .get(length.next_multiple_of(ALIGNMENT)..)
            .unwrap_or_default();
    }
    told
}

/// The attributes in `bytes`; what is cut off at the end is dropped.
pub(crate) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some(header) = bytes.first_chunk::<ATTRIBUTE_BYTES>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let Some(value) = bytes.get(ATTRIBUTE_BYTES..length) else {
            break;
        };
        found.push((u16::from_ne_bytes([header[2], header[3]]) & KIND_MASK, value));
        bytes = bytes
            .get(length.next_multiple_of(ALIGNMENT)..)
            .unwrap_or_default();
    }
    found
}

/// The first attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = attributes(bytes).into_iter().find(|(found, _)| *found == kind);
    found.map(|(_, value)| value)
}

/// Whom a socket speaks to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// Links, addresses and routes.
    Route,
    /// Rules, and the connections that are tracked.
    Netfilter,
}

/// A socket. It belongs to the network namespace that the thread was in when it was opened, wherever it goes later.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub(crate) fn open(peer: Peer) -> io::Result<Self> {
        let protocol = match peer {
            // The first protocol has no number of its own in the wrapper's type.
            Peer::Route => None,
            Peer::Netfilter => Some(netlink::NETFILTER),
        };
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        // A socket that is connected with the kernel hears nobody else.
        connect(&fd, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER_WAIT_MAX))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends an order and waits until it is done.
    pub(crate) fn order(&mut self, message: Message) -> io::Result<()> {
        let sequence = self.next();
        self.send(&message.finish(FLAG_ACK, sequence))?;
        self.outcome()
    }

    /// Sends several messages that the kernel takes as one: all is done or nothing. They stand between two that mark
    /// the beginning and the end.
    pub(crate) fn transaction(
        &mut self,
        begin: Message,
        messages: Vec<Message>,
        end: Message,
    ) -> io::Result<()> {
        let mut buffer = begin.finish(0, self.next());
        let count = messages.len();
        for (index, message) in messages.into_iter().enumerate() {
            // One answer tells that all went well; errors come unasked.
            let flags = if index + 1 == count { FLAG_ACK } else { 0 };
            buffer.extend_from_slice(&message.finish(flags, self.next()));
        }
        buffer.extend_from_slice(&end.finish(0, self.next()));
        self.send(&buffer)?;
        self.outcome()
    }

    /// Asks for one thing.
    pub(crate) fn ask(&mut self, message: Message) -> io::Result<Told> {
        let sequence = self.next();
        self.send(&message.finish(0, sequence))?;
        let answer = self.part()?.into_iter().find(|told| told.sequence == sequence);
        let Some(answer) = answer else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        failure(&answer).map_or(Ok(answer), Err)
    }

    /// Asks for everything of a kind, and gives back what `wanted` says yes to.
    pub(crate) fn list(
        &mut self,
        question: &Message,
        wanted: impl Fn(&Told) -> bool,
    ) -> io::Result<Vec<Told>> {
        for _ in 0..LISTINGS_MAX {
            if let Some(listed) = self.list_once(question.clone(), &wanted)? {
                return Ok(listed);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "it changes all the time while it is listed",
        ))
    }

    /// `None` when something changed meanwhile.
    fn list_once(
        &mut self,
        question: Message,
        wanted: impl Fn(&Told) -> bool,
    ) -> io::Result<Option<Vec<Told>>> {
        let sequence = self.next();
        self.send(&question.finish(FLAG_LISTING, sequence))?;
        let (mut listed, mut bytes, mut interrupted) = (Vec::new(), 0, false);
        loop {
            for told in self.part()?.into_iter().filter(|told| told.sequence == sequence) {
                interrupted |= told.flags & FLAG_INTERRUPTED != 0;
                if matches!(told.kind, KIND_DONE | KIND_ERROR) {
                    let listed = (!interrupted).then_some(listed);
                    return failure(&told).map_or(Ok(listed), Err);
                }
                if !wanted(&told) {
                    continue;
                }
                bytes += told.payload.len();
                if bytes > LISTING_BYTES_MAX {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                listed.push(told);
            }
        }
    }

    /// Reads the answers to what was sent just now; the first error is given back. They are all there, because the
    /// kernel works while it is sent to.
    fn outcome(&self) -> io::Result<()> {
        let (mut answered, mut lost, mut failed) = (false, false, None);
        loop {
            match self.receive(RecvFlags::DONTWAIT) {
                Ok(told) => {
                    answered |= told.iter().any(|told| told.kind == KIND_ERROR);
                    failed = failed.or_else(|| told.iter().find_map(failure));
                }
                Err(Errno::AGAIN) => break,
                // More answers than the socket holds, hence errors: those that it holds come next.
                Err(Errno::NOBUFS) => lost = true,
                Err(errno) => return Err(errno.into()),
            }
        }
        match failed {
            Some(error) => Err(error),
            None if lost => Err(Errno::NOBUFS.into()),
            None if !answered => Err(io::ErrorKind::InvalidData.into()),
            None => Ok(()),
        }
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // A message goes as a whole or not at all, and one of many rules is larger than what a socket has room for.
        let room = bytes.len() + BOOKKEEPING_BYTES;
        if bytes.len() > TRANSACTION_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if socket_send_buffer_size(&self.fd)? < room {
            set_socket_send_buffer_size_force(&self.fd, room)?;
        }
        retry_on_intr(|| send(&self.fd, bytes, SendFlags::empty()))?;
        Ok(())
    }

    fn receive(&self, flags: RecvFlags) -> Result<Vec<Told>, Errno> {
        let mut part = vec![0; PART_BYTES_MAX];
        // A signal ends the wait of a socket that has a limit, whatever its handler says.
        let whole = retry_on_intr(|| {
            let read = recv(&self.fd, &mut part[..], flags | RecvFlags::TRUNC);
            read.map(|(_, whole)| whole)
        })?;
        // A part that was cut would look like the end of an answer.
        let part = part.get(..whole).ok_or(Errno::MSGSIZE)?;
        Ok(messages(part))
    }

    /// Waits for the next part of an answer.
    fn part(&self) -> io::Result<Vec<Told>> {
        self.receive(RecvFlags::empty()).map_err(|errno| match errno {
            Errno::AGAIN => io::ErrorKind::TimedOut.into(),
            errno => io::Error::from(errno),
        })
    }
}

/// What an answer or the end of a listing says went wrong; `None` when it is good, or no answer but data.
fn failure(told: &Told) -> Option<io::Error> {
    if !matches!(told.kind, KIND_ERROR | KIND_DONE) {
        return None;
    }
    let Some(code) = told.payload.first_chunk::<4>() else {
        return Some(io::ErrorKind::InvalidData.into());
    };
    match i32::from_ne_bytes(*code) {
        0 => None,
        code => Some(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn messages_are_what_the_kernel_reads() {
        if cfg!(target_endian = "big") {
            return;
        }
        let message = Message::new(16, FLAG_CREATE, &[7, 0, 0, 0, 1])
            .text(3, "br")
            .nest(18, |inner| inner.number(1, 5).network_number(2, 5));
        let parts = [
            "34000000100001040900000000000000", // length, kind, flags, sequence, port
            "0700000001000000",                 // the fixed body, filled up
            "0700030062720000",                 // a name of two letters with its zero byte, filled up
            "14001280",                         // an attribute that holds two
            "0800010005000000",
            "0800020000000005",
        ];
        assert_eq!(hex(&message.finish(0, 9)), parts.concat());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            values in proptest::collection::vec((0_u16..100, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
        ) {
            let message = values
                .iter()
                .fold(Message::new(20, 0, &[1, 2, 3, 4]), |message, (kind, value)| message.bytes(*kind, value));
            let read = messages(&message.finish(0, 3));
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!((read[0].kind, read[0].sequence), (20, 3));
            let found = attributes(&read[0].payload[4..]).into_iter().map(|(kind, value)| (kind, value.to_vec()));
            prop_assert_eq!(found.collect::<Vec<_>>(), values);
        }

        #[test]
        fn broken_messages_are_cut_off(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for told in messages(&bytes) {
                attributes(&told.payload);
            }
            attributes(&bytes);
        }
    }

    #[test]
    fn a_listing_may_end_with_a_failure() {
        let told = |kind, code: i32| Told {
            kind,
            flags: 0,
            sequence: 1,
            payload: code.to_ne_bytes().to_vec(),
        };
        let code = |told: &Told| failure(told).map(|error| error.raw_os_error());
        assert_eq!(code(&told(KIND_DONE, 0)), None);
        assert_eq!(code(&told(KIND_DONE, -95)), Some(Some(95)));
        assert_eq!(code(&told(KIND_ERROR, -17)), Some(Some(17)));
        assert_eq!(code(&told(16, -17)), None, "an item is no answer");
        let cut = Told {
            payload: vec![0; 3],
            ..told(KIND_ERROR, 0)
        };
        assert!(failure(&cut).is_some());
    }

    #[test]
    fn a_length_of_nothing_ends_the_reading() {
        assert_eq!(attributes(&[0; 32]), []);
        assert_eq!(messages(&[0; 32]), []);
    }
}
