//! Frames of SPDY/3.1 as bytes.

use super::headers::Headers;
use bytes::Bytes;

/// Every frame begins with so many bytes.
pub(crate) const HEAD_BYTES: usize = 8;
/// A control frame. One that opens a stream has some hundred bytes; settings may have some entries.
pub(crate) const CONTROL_BYTES_MAX: usize = 16 * 1024;
/// Data that is handed on at once. Frames may be longer; they are handed on in parts, so nobody has to keep one.
pub(crate) const PIECE_BYTES_MAX: usize = 32 * 1024;

const VERSION: u16 = 3;
const CONTROL_BIT: u8 = 0x80;
const FIN: u8 = 0x01;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is ended at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reset {
    Refused,
    Cancel,
}

impl Reset {
    fn number(self) -> u32 {
        match self {
            Self::Refused => 3,
            Self::Cancel => 5,
        }
    }
}

/// What the peer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It opens a stream.
    Open {
        id: u32,
        headers: Headers,
        last: bool,
    },
    /// It takes a stream that this side has opened.
    Reply {
        id: u32,
        last: bool,
    },
    Data {
        id: u32,
        bytes: Bytes,
        last: bool,
    },
    Reset {
        id: u32,
    },
    Ping {
        id: u32,
    },
    /// It opens nothing more, and takes nothing more.
    GoAway,
    /// Settings, more headers, windows: nothing that this side acts upon. Go's SPDY, which is the peer, keeps no windows:
    /// waiting for credit would be waiting for ever.
    Nothing,
}

/// What this side says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Open { id: u32, headers: Headers },
    Reply { id: u32 },
    Data { id: u32, bytes: Bytes, last: bool },
    Reset { id: u32, why: Reset },
    Pong { id: u32 },
    GoAway,
}

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    Data { id: u32, last: bool, length: usize },
    Control { kind: u16, last: bool, length: usize },
}

impl Head {
    pub(crate) fn read(bytes: &[u8; HEAD_BYTES]) -> Result<Self, &'static str> {
        let [a, b, c, d, flags, x, y, z] = *bytes;
        let length = usize::from(x) << 16 | usize::from(y) << 8 | usize::from(z);
        let last = flags & FIN != 0;
        if a & CONTROL_BIT == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            return match id {
                0 => Err("data of no stream"),
                id => Ok(Self::Data { id, last, length }),
            };
        }
        if u16::from_be_bytes([a & !CONTROL_BIT, b]) != VERSION {
            return Err("a frame of another version of SPDY");
        }
        if length > CONTROL_BYTES_MAX {
            return Err("a control frame of more than 16 KiB");
        }
        let kind = u16::from_be_bytes([c, d]);
        Ok(Self::Control { kind, last, length })
    }
}

/// Reads what follows the head of a control frame; `unpack` reads its block of headers.
pub(crate) fn read_control(
    kind: u16,
    last: bool,
    body: &[u8],
    unpack: impl FnOnce(&[u8]) -> Result<Headers, &'static str>,
) -> Result<Heard, &'static str> {
    const SHORT: &str = "a control frame that is cut short";
    let number = |at: usize| -> Result<u32, &'static str> {
        let bytes = body.get(at..).and_then(<[u8]>::first_chunk).ok_or(SHORT)?;
        Ok(u32::from_be_bytes(*bytes))
    };
    let stream = || match number(0)? & !(1 << 31) {
        0 => Err("a control frame of no stream"),
        id => Ok(id),
    };
    match kind {
        SYN_STREAM => {
            // Then the stream it belongs to, its priority and its slot, of which nobody makes use.
            let headers = unpack(body.get(10..).ok_or(SHORT)?)?;
            let id = stream()?;
            Ok(Heard::Open { id, headers, last })
        }
        SYN_REPLY => {
            unpack(body.get(4..).ok_or(SHORT)?)?;
            Ok(Heard::Reply { id: stream()?, last })
        }
        RST_STREAM => Ok(Heard::Reset { id: stream()? }),
        PING => Ok(Heard::Ping { id: number(0)? }),
        GOAWAY => Ok(Heard::GoAway),
        // Unpacked all the same: the blocks after it refer to it.
        HEADERS => {
            unpack(body.get(4..).ok_or(SHORT)?)?;
            Ok(Heard::Nothing)
        }
        SETTINGS | WINDOW_UPDATE => Ok(Heard::Nothing),
        _ => Err("a control frame of a kind that SPDY/3.1 does not have"),
    }
}

impl Said {
    /// Writes the frame; `pack` writes a block of headers.
    pub(crate) fn write(&self, out: &mut Vec<u8>, pack: impl FnOnce(&Headers) -> Vec<u8>) {
        match self {
            Self::Open { id, headers } => {
                let block = pack(headers);
                control(out, SYN_STREAM, &[&id.to_be_bytes(), &[0; 6], &block]);
            }
            Self::Reply { id } => {
                let block = pack(&Headers::default());
                control(out, SYN_REPLY, &[&id.to_be_bytes(), &block]);
            }
            Self::Data { id, bytes, last } => {
                let [_, x, y, z] = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
                out.extend(id.to_be_bytes());
                out.extend([if *last { FIN } else { 0 }, x, y, z]);
                out.extend_from_slice(bytes);
            }
            Self::Reset { id, why } => {
                control(out, RST_STREAM, &[&id.to_be_bytes(), &why.number().to_be_bytes()]);
            }
            Self::Pong { id } => control(out, PING, &[&id.to_be_bytes()]),
            Self::GoAway => control(out, GOAWAY, &[&[0; 8]]),
        }
    }
}

fn control(out: &mut Vec<u8>, kind: u16, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let [_, x, y, z] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend((VERSION | u16::from(CONTROL_BIT) << 8).to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend([0, x, y, z]);
    for part in parts {
        out.extend_from_slice(part);
    }
}
