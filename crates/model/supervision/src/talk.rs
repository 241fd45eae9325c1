//! The messages of a conversation with a process. Each is one message of a socket that keeps messages apart: a byte that
//! says what it is, and its content.

use kedge_containers::TerminalSize;

/// The largest content of a message.
pub const PIECE_BYTES_MAX: usize = 32 * 1024;

/// A buffer of this size holds every message.
pub const MESSAGE_BYTES_MAX: usize = PIECE_BYTES_MAX + 1;

const BYTES: u8 = b'i';
const END: u8 = b'e';
const RESIZE: u8 = b'r';
const STDOUT: u8 = b'1';
const STDERR: u8 = b'2';
const ENDED: u8 = b'x';
const REFUSED: u8 = b'!';

/// What is said to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToProcess<'a> {
    Bytes(&'a [u8]),
    /// Nothing more comes.
    End,
    Resize(TerminalSize),
}

/// What a process says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromProcess<'a> {
    Stdout(&'a [u8]),
    Stderr(&'a [u8]),
    /// The last message: its exit code.
    Ended(i32),
    /// The last message: why nothing more comes.
    Refused(&'a str),
}

impl ToProcess<'_> {
    /// Writes the message into an emptied buffer. A longer content than [`PIECE_BYTES_MAX`] is a mistake of the caller
    /// and is cut.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            Self::Bytes(bytes) => piece(BYTES, bytes, out),
            Self::End => out.push(END),
            Self::Resize(size) => {
                out.push(RESIZE);
                out.extend(size.width.to_le_bytes());
                out.extend(size.height.to_le_bytes());
            }
        }
    }
}

impl<'a> ToProcess<'a> {
    /// Understands a message; `None` for what is none.
    pub fn read(message: &'a [u8]) -> Option<Self> {
        match message {
            [BYTES, bytes @ ..] => Some(Self::Bytes(bytes)),
            [END] => Some(Self::End),
            [RESIZE, w0, w1, h0, h1] => Some(Self::Resize(TerminalSize {
                width: u16::from_le_bytes([*w0, *w1]),
                height: u16::from_le_bytes([*h0, *h1]),
            })),
            _ => None,
        }
    }
}

impl FromProcess<'_> {
    /// As [`ToProcess::write`].
    pub fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            Self::Stdout(bytes) => piece(STDOUT, bytes, out),
            Self::Stderr(bytes) => piece(STDERR, bytes, out),
            Self::Ended(code) => {
                out.push(ENDED);
                out.extend(code.to_le_bytes());
            }
            Self::Refused(why) => piece(REFUSED, why.as_bytes(), out),
        }
    }
}

impl<'a> FromProcess<'a> {
    /// Understands a message; `None` for what is none.
    pub fn read(message: &'a [u8]) -> Option<Self> {
        match message {
            [STDOUT, bytes @ ..] => Some(Self::Stdout(bytes)),
            [STDERR, bytes @ ..] => Some(Self::Stderr(bytes)),
            [ENDED, code @ ..] => Some(Self::Ended(i32::from_le_bytes(code.try_into().ok()?))),
            [REFUSED, why @ ..] => std::str::from_utf8(why).ok().map(Self::Refused),
            _ => None,
        }
    }
}

fn piece(kind: u8, content: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&content[..content.len().min(PIECE_BYTES_MAX)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), code: i32, width: u16, height: u16, why in ".{0,40}") {
            let mut out = Vec::new();
            for message in [ToProcess::Bytes(&bytes), ToProcess::End, ToProcess::Resize(TerminalSize { width, height })] {
                message.write(&mut out);
                prop_assert_eq!(ToProcess::read(&out), Some(message));
            }
            for message in [
                FromProcess::Stdout(&bytes),
                FromProcess::Stderr(&bytes),
                FromProcess::Ended(code),
                FromProcess::Refused(&why),
            ] {
                message.write(&mut out);
                prop_assert_eq!(FromProcess::read(&out), Some(message));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _ = (ToProcess::read(&bytes), FromProcess::read(&bytes));
        }
    }
}
