//! The head of one frame, on both carriers.
//!
//! WebSocket (RFC 6455, no extensions): two bytes, a longer length if needed, four bytes of mask towards the server.
//! A QUIC stream: the length alone, as QUIC writes its numbers (1, 2 or 4 bytes); every frame is a whole message.

/// The longest head: two bytes, eight of length, four of mask.
pub(crate) const HEAD_BYTES_MAX: usize = 14;
/// A control frame's payload.
pub(crate) const CONTROL_BYTES_MAX: u64 = 125;

/// What cuts the bytes of a connection into frames, and at which end of it we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// We dialled: we mask, the peer must not.
    WebSocketClient,
    /// We accepted: the peer must mask.
    WebSocketServer,
    /// A byte stream of two own ends.
    Stream,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    pub(crate) fn is_control(self) -> bool {
        match self {
            Self::Close | Self::Ping | Self::Pong => true,
            Self::Continuation | Self::Text | Self::Binary => false,
        }
    }
}

/// A head that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) last: bool,
    pub(crate) opcode: Opcode,
    pub(crate) length: u64,
    pub(crate) mask: Option<[u8; 4]>,
}

/// How far the reading of a head is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes from the head's first one are needed, at least.
    Needs(usize),
    Done(Head),
}

/// How many bytes to read before the first look at a head.
pub(crate) fn first_look(carrier: Carrier) -> usize {
    match carrier {
        Carrier::WebSocketClient | Carrier::WebSocketServer => 2,
        Carrier::Stream => 1,
    }
}

/// Reads a head from its first bytes, at least as many as were asked for. Errors say what the peer did.
pub(crate) fn read(carrier: Carrier, bytes: &[u8]) -> Result<Step, &'static str> {
    match carrier {
        Carrier::WebSocketClient => read_web_socket(bytes, false),
        Carrier::WebSocketServer => read_web_socket(bytes, true),
        Carrier::Stream => read_prefix(bytes),
    }
}

fn read_web_socket(bytes: &[u8], masked: bool) -> Result<Step, &'static str> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(Step::Needs(2));
    };
    if first & 0x70 != 0 {
        return Err("a frame with reserved bits, though no extension was agreed");
    }
    let opcode = Opcode::from_bits(first & 0x0f).ok_or("a frame with an opcode that does not exist")?;
    let last = first & 0x80 != 0;
    if (second & 0x80 != 0) != masked {
        return Err(if masked {
            "an unmasked frame from a client"
        } else {
            "a masked frame from a server"
        });
    }
    let short = second & 0x7f;
    if opcode.is_control() {
        if !last {
            return Err("a control frame in pieces");
        }
        if u64::from(short) > CONTROL_BYTES_MAX {
            return Err("a control frame that is too long");
        }
    }
    let length_bytes = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask_bytes = if masked { 4 } else { 0 };
    if rest.len() < length_bytes + mask_bytes {
        return Ok(Step::Needs(2 + length_bytes + mask_bytes));
    }
    let (long, rest) = rest.split_at(length_bytes);
    let length = match length_bytes {
        0 => u64::from(short),
        _ => long.iter().fold(0, |length, &byte| length << 8 | u64::from(byte)),
    };
    let shorter_would_do = match length_bytes {
        0 => false,
        2 => length < 126,
        _ => length <= u64::from(u16::MAX),
    };
    if shorter_would_do || length > u64::MAX >> 1 {
        return Err("a frame whose length is not written as it must be");
    }
    let mask = rest.first_chunk().copied().filter(|_| masked);
    Ok(Step::Done(Head {
        last,
        opcode,
        length,
        mask,
    }))
}

fn read_prefix(bytes: &[u8]) -> Result<Step, &'static str> {
    let Some(first) = bytes.first() else {
        return Ok(Step::Needs(1));
    };
    let size = 1 << (first >> 6);
    if size == 8 {
        return Err("a message of more than a gigabyte");
    }
    if bytes.len() < size {
        return Ok(Step::Needs(size));
    }
    let rest = bytes[1..size].iter();
    let length = rest.fold(u64::from(first & 0x3f), |length, &byte| {
        length << 8 | u64::from(byte)
    });
    Ok(Step::Done(Head {
        last: true,
        opcode: Opcode::Binary,
        length,
        mask: None,
    }))
}

/// Writes the head of a frame that is a whole message; the mask is used by a client only.
pub(crate) fn write(carrier: Carrier, opcode: Opcode, length: usize, mask: [u8; 4], out: &mut Vec<u8>) {
    let mask_bit = match carrier {
        Carrier::Stream => return write_prefix(length, out),
        Carrier::WebSocketClient => 0x80,
        Carrier::WebSocketServer => 0,
    };
    out.push(0x80 | opcode.bits());
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => out.push(mask_bit | short),
        (_, Ok(middle)) => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&middle.to_be_bytes());
        }
        (_, Err(_)) => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    if mask_bit != 0 {
        out.extend_from_slice(&mask);
    }
}

fn write_prefix(length: usize, out: &mut Vec<u8>) {
    // No message comes near the gigabyte that does not fit.
    let length = u32::try_from(length).expect("messages are at most 16 MiB");
    match length {
        0..0x40 => out.push(length as u8),
        0x40..0x4000 => out.extend_from_slice(&(length as u16 | 0x4000).to_be_bytes()),
        _ => out.extend_from_slice(&(length | 0x8000_0000).to_be_bytes()),
    }
}

/// Masks or unmasks bytes that stand `offset` bytes behind the payload's first one.
pub(crate) fn mask(bytes: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut turned = mask;
    turned.rotate_left(offset % 4);
    // Whole words first: the compiler makes wide instructions of this loop.
    let mut words = bytes.chunks_exact_mut(4);
    for word in &mut words {
        for (byte, key) in word.iter_mut().zip(turned) {
            *byte ^= key;
        }
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(turned) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(carrier: Carrier, bytes: &[u8], expected: Result<Step, &str>) {
        assert_eq!(read(carrier, bytes), expected, "{bytes:02x?}");
    }

    #[test]
    fn what_breaks_the_protocol_is_told() {
        use Carrier::{Stream, WebSocketClient, WebSocketServer};
        let reserved = Err("a frame with reserved bits, though no extension was agreed");
        for first in [0xc1, 0xa1, 0x91] {
            check(WebSocketServer, &[first, 0x80], reserved);
        }
        for opcode in [3, 7, 11, 15] {
            let unknown = Err("a frame with an opcode that does not exist");
            check(WebSocketServer, &[0x80 | opcode, 0x80], unknown);
        }
        check(
            WebSocketServer,
            &[0x81, 0x05],
            Err("an unmasked frame from a client"),
        );
        check(
            WebSocketClient,
            &[0x81, 0x85],
            Err("a masked frame from a server"),
        );
        check(WebSocketClient, &[0x09, 0x00], Err("a control frame in pieces"));
        check(
            WebSocketClient,
            &[0x89, 126],
            Err("a control frame that is too long"),
        );
        let padded = Err("a frame whose length is not written as it must be");
        check(WebSocketClient, &[0x81, 126, 0, 125], padded);
        check(WebSocketClient, &[0x81, 127, 0, 0, 0, 0, 0, 0, 255, 255], padded);
        check(WebSocketClient, &[0x81, 127, 0x80, 0, 0, 0, 0, 1, 0, 0], padded);
        check(Stream, &[0xc0], Err("a message of more than a gigabyte"));
    }

    #[test]
    fn a_head_says_how_much_it_needs() {
        use Carrier::{Stream, WebSocketClient, WebSocketServer};
        check(WebSocketServer, &[0x81], Ok(Step::Needs(2)));
        check(WebSocketServer, &[0x81, 0x85], Ok(Step::Needs(6)));
        check(WebSocketServer, &[0x81, 0xfe], Ok(Step::Needs(8)));
        check(WebSocketServer, &[0x81, 0xff], Ok(Step::Needs(14)));
        check(WebSocketClient, &[0x81, 127], Ok(Step::Needs(10)));
        check(Stream, &[0x80], Ok(Step::Needs(4)));
    }

    proptest! {
        #[test]
        fn a_written_head_reads_back(
            length in prop_oneof![0_usize..200, 65_000_usize..66_000, 0_usize..16_777_300],
            key: [u8; 4],
            text: bool,
        ) {
            let opcode = if text { Opcode::Text } else { Opcode::Binary };
            for (from, to) in [
                (Carrier::WebSocketClient, Carrier::WebSocketServer),
                (Carrier::WebSocketServer, Carrier::WebSocketClient),
                (Carrier::Stream, Carrier::Stream),
            ] {
                let mut bytes = Vec::new();
                write(from, opcode, length, key, &mut bytes);
                for cut in first_look(to)..bytes.len() {
                    let step = read(to, &bytes[..cut]);
                    let asks = matches!(step, Ok(Step::Needs(n)) if n > cut && n <= bytes.len());
                    prop_assert!(asks, "{step:?}");
                }
                let Ok(Step::Done(head)) = read(to, &bytes) else { panic!("{bytes:02x?}") };
                prop_assert_eq!(head.length, length as u64);
                prop_assert!(head.last);
                if to != Carrier::Stream {
                    prop_assert_eq!(head.opcode, opcode);
                }
                prop_assert_eq!(head.mask, (to == Carrier::WebSocketServer).then_some(key));
            }
        }

        #[test]
        fn masking_in_pieces_is_masking_at_once(bytes: Vec<u8>, key: [u8; 4], cut: prop::sample::Index) {
            let cut = cut.index(bytes.len() + 1);
            let mut whole = bytes.clone();
            mask(&mut whole, key, 0);
            let mut pieces = bytes.clone();
            mask(&mut pieces[..cut], key, 0);
            mask(&mut pieces[cut..], key, cut);
            prop_assert_eq!(&whole, &pieces);
            mask(&mut whole, key, 0);
            prop_assert_eq!(whole, bytes);
        }

        #[test]
        fn no_bytes_make_the_reader_fall(bytes in prop::collection::vec(any::<u8>(), 0..HEAD_BYTES_MAX)) {
            for carrier in [Carrier::WebSocketClient, Carrier::WebSocketServer, Carrier::Stream] {
                if let Ok(Step::Needs(n)) = read(carrier, &bytes) {
                    prop_assert!(n > bytes.len() && n <= HEAD_BYTES_MAX);
                }
            }
        }
    }
}
