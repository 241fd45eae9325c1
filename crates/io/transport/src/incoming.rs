//! From bytes to messages: the direction in.
//!
//! Nothing is read ahead. Each read asks for what the current step needs, and the layer below (TLS, QUIC) keeps what it
//! has decrypted, so a connection between two messages owns no buffer here.

use crate::close::Close;
use crate::frame::{self, Carrier, HEAD_BYTES_MAX, Head, Opcode, Step};
use bytes::{BufMut, Bytes, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Memory for a message grows with what has arrived, not with what is announced: this much first, then doubling.
const GROWTH_BYTES_MIN: usize = 16 * 1024;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Message {
        text: bool,
        bytes: Bytes,
    },
    Ping(Bytes),
    Pong,
    /// Nothing follows.
    Close(Close),
}

/// Why nothing follows.
#[derive(Debug)]
pub(crate) enum Fault {
    Lost(io::Error),
    /// The message is larger than the limit.
    TooLarge,
    /// What the peer did.
    Protocol(&'static str),
    /// The end was told before.
    Ended,
}

#[derive(Debug)]
pub(crate) struct Incoming {
    carrier: Carrier,
    message_bytes_max: usize,
    state: State,
    /// The message that is coming, between its first frame and its last.
    message: Option<Message>,
}

#[derive(Debug)]
enum State {
    Head {
        bytes: [u8; HEAD_BYTES_MAX],
        filled: usize,
        needs: usize,
    },
    Data {
        head: Head,
        got: usize,
        /// Of a control frame, which may stand between the frames of a message.
        control: BytesMut,
    },
    Ended,
}

#[derive(Debug)]
struct Message {
    text: bool,
    bytes: BytesMut,
}

impl Incoming {
    pub(crate) fn new(carrier: Carrier, message_bytes_max: usize) -> Self {
        Self {
            carrier,
            message_bytes_max,
            state: State::head(carrier),
            message: None,
        }
    }

    /// The next event. Keeps its place when it is not ready, so waiting may be given up at any time.
    pub(crate) fn poll_event<T: AsyncRead + ?Sized>(
        &mut self,
        mut io: Pin<&mut T>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event, Fault>> {
        loop {
            let step = match &mut self.state {
                State::Head { bytes, filled, needs } => {
                    while *filled < *needs {
                        let read = poll_some(io.as_mut(), cx, &mut bytes[*filled..*needs]);
                        match ready!(read) {
                            Ok(count) => *filled += count,
                            Err(error) => return Poll::Ready(Err(self.end(Fault::Lost(error)))),
                        }
                    }
                    match frame::read(self.carrier, &bytes[..*filled]) {
                        Ok(Step::Needs(more)) => {
                            *needs = more;
                            continue;
                        }
                        Ok(Step::Done(head)) => self.begin(head).map(|()| None),
                        Err(what) => Err(Fault::Protocol(what)),
                    }
                }
                State::Data { .. } => match ready!(self.poll_data(io.as_mut(), cx)) {
                    Ok(()) => self.finish(),
                    Err(error) => Err(Fault::Lost(error)),
                },
                State::Ended => Err(Fault::Ended),
            };
            match step {
                Ok(None) => {}
                Ok(Some(event)) => return Poll::Ready(Ok(event)),
                Err(fault) => return Poll::Ready(Err(self.end(fault))),
            }
        }
    }

    fn end(&mut self, fault: Fault) -> Fault {
        self.state = State::Ended;
        self.message = None;
        fault
    }

    /// A head has been read: checks whether it may come now, before any memory is given to it.
    fn begin(&mut self, head: Head) -> Result<(), Fault> {
        let before = self.message.as_ref().map_or(0, |message| message.bytes.len());
        match (head.opcode, &self.message) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => {}
            (Opcode::Continuation, None) => {
                return Err(Fault::Protocol("a continuation of no message"));
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(Fault::Protocol("a new message inside another"));
            }
            (Opcode::Continuation, Some(_)) | (Opcode::Text | Opcode::Binary, None) => {
                if head.length > (self.message_bytes_max - before) as u64 {
                    return Err(Fault::TooLarge);
                }
                self.message.get_or_insert_with(|| Message {
                    text: head.opcode == Opcode::Text,
                    bytes: BytesMut::new(),
                });
            }
        }
        self.state = State::Data {
            head,
            got: 0,
            control: BytesMut::new(),
        };
        Ok(())
    }

    /// Reads until the frame's payload is there.
    fn poll_data<T: AsyncRead + ?Sized>(
        &mut self,
        mut io: Pin<&mut T>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let State::Data { head, got, control } = &mut self.state else {
            return Poll::Ready(Ok(()));
        };
        let target = match &mut self.message {
            Some(message) if !head.opcode.is_control() => &mut message.bytes,
            _ => control,
        };
        let length = usize::try_from(head.length).expect("checked against the limit");
        while *got < length {
            let missing = length - *got;
            let before = target.len();
            if target.capacity() == before {
                target.reserve(missing.min(before.max(GROWTH_BYTES_MIN)));
            }
            let read = ready!(poll_read_buf(io.as_mut(), cx, &mut target.limit(missing)))?;
            if read == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            if let Some(mask) = head.mask {
                frame::mask(&mut target[before..], mask, *got);
            }
            *got += read;
        }
        Poll::Ready(Ok(()))
    }

    /// The frame is whole.
    fn finish(&mut self) -> Result<Option<Event>, Fault> {
        let State::Data { head, control, .. } = std::mem::replace(&mut self.state, State::head(self.carrier))
        else {
            return Ok(None);
        };
        let event = match head.opcode {
            Opcode::Ping => Event::Ping(control.freeze()),
            Opcode::Pong => Event::Pong,
            Opcode::Close => {
                let close = Close::read(&control).map_err(Fault::Protocol)?;
                self.state = State::Ended;
                Event::Close(close)
            }
            Opcode::Continuation | Opcode::Text | Opcode::Binary if !head.last => return Ok(None),
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {
                let message = self
                    .message
                    .take()
                    .expect("a data frame is accepted only with its message");
                Event::Message {
                    text: message.text,
                    bytes: message.bytes.freeze(),
                }
            }
        };
        Ok(Some(event))
    }
}

impl State {
    fn head(carrier: Carrier) -> Self {
        Self::Head {
            bytes: [0; HEAD_BYTES_MAX],
            filled: 0,
            needs: frame::first_look(carrier),
        }
    }
}

/// At least one byte; an end is an error.
fn poll_some<T: AsyncRead + ?Sized>(
    io: Pin<&mut T>,
    cx: &mut Context<'_>,
    target: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(target);
    ready!(io.poll_read(cx, &mut buffer))?;
    Poll::Ready(match buffer.filled().len() {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::mask;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::future::poll_fn;

    const MAX: usize = 1000;
    const KEY: [u8; 4] = [1, 2, 3, 4];

    /// Gives one piece a read, and is not ready between two pieces.
    struct Pieces {
        pieces: VecDeque<Vec<u8>>,
        ready: bool,
    }

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.ready = !self.ready;
            if !self.ready {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(mut piece) = self.pieces.pop_front() {
                let rest = piece.split_off(piece.len().min(buffer.remaining()));
                buffer.put_slice(&piece);
                if !rest.is_empty() {
                    self.pieces.push_front(rest);
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            short @ 0..=125 => bytes.push(0x80 | u8::try_from(short).unwrap()),
            long => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&u16::try_from(long).unwrap().to_be_bytes());
            }
        }
        bytes.extend_from_slice(&KEY);
        let start = bytes.len();
        bytes.extend_from_slice(payload);
        mask(&mut bytes[start..], KEY, 0);
        bytes
    }

    /// Everything that comes of bytes in pieces, to the end.
    fn told(pieces: Vec<Vec<u8>>) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut io = Pieces {
            pieces: pieces.into_iter().filter(|piece| !piece.is_empty()).collect(),
            ready: false,
        };
        let mut incoming = Incoming::new(Carrier::WebSocketServer, MAX);
        let mut told = Vec::new();
        runtime.block_on(async {
            loop {
                match poll_fn(|cx| incoming.poll_event(Pin::new(&mut io), cx)).await {
                    Ok(Event::Message { text, bytes }) => told.push(format!("{text} {}", bytes.len())),
                    Ok(other) => told.push(format!("{other:?}")),
                    Err(Fault::Ended) => break,
                    Err(fault) => told.push(format!("{fault:?}")),
                }
            }
        });
        told
    }

    fn check(frames: &[Vec<u8>], expected: &[&str]) {
        assert_eq!(told(vec![frames.concat()]), expected);
        let bytes = frames.concat();
        assert_eq!(told(bytes.chunks(1).map(<[u8]>::to_vec).collect()), expected);
    }

    const LOST: &str = "Lost(Kind(UnexpectedEof))";

    #[test]
    fn a_conversation() {
        check(
            &[frame(0x81, b"hello"), frame(0x82, &[0xff; 300])],
            &["true 5", "false 300", LOST],
        );
        let pieces = [
            frame(0x01, b"he"),
            frame(0x89, b"?"),
            frame(0x00, b""),
            frame(0x8a, b""),
            frame(0x80, b"llo"),
        ];
        check(&pieces, &["Ping(b\"?\")", "Pong", "true 5", LOST]);
        check(
            &[frame(0x81, b""), frame(0x88, b"")],
            &[
                "true 0",
                "Close(Close { code: Normal, reason: \"without a reason\" })",
            ],
        );
        let after_the_end = [frame(0x88, &[3, 232, b'x']), frame(0x81, b"late")];
        check(&after_the_end, &["Close(Close { code: Normal, reason: \"x\" })"]);
    }

    #[test]
    fn what_breaks_the_protocol_ends_it() {
        let ends = |frames: &[Vec<u8>], why: &str| check(frames, &[&format!("Protocol({why:?})")]);
        ends(&[frame(0x80, b"")], "a continuation of no message");
        ends(
            &[frame(0x01, b"a"), frame(0x81, b"b")],
            "a new message inside another",
        );
        ends(&[frame(0x88, &[3])], "a close frame with half a code");
        ends(
            &[frame(0x88, &[3, 237])],
            "a close frame with a code that must not travel",
        );
        ends(
            &[frame(0x88, &[3, 232, 0xff])],
            "a close frame whose reason is not text",
        );
        ends(&[frame(0x89, &[0; 126])], "a control frame that is too long");
        ends(&[vec![0x81, 5, 0, 0, 0, 0]], "an unmasked frame from a client");
    }

    #[test]
    fn a_large_message_is_refused_by_its_announcement() {
        check(&[frame(0x82, &[0; MAX])], &["false 1000", LOST]);
        let huge = [&[0x82, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255][..], &KEY].concat();
        check(&[huge], &["TooLarge"]);
        check(&[frame(0x02, &[0; 600]), frame(0x80, &[0; 401])], &["TooLarge"]);
    }

    #[test]
    fn an_announced_message_has_no_memory_before_it_comes() {
        let mut incoming = Incoming::new(Carrier::WebSocketServer, 16 * 1024 * 1024);
        let announced = [&[0x82, 0xff, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff][..], &KEY].concat();
        let mut io = Pieces {
            pieces: [announced, vec![0; 10]].into(),
            ready: false,
        };
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..20 {
            if !io.pieces.is_empty() {
                assert!(incoming.poll_event(Pin::new(&mut io), &mut cx).is_pending());
            }
        }
        assert_eq!(incoming.message.unwrap().bytes.capacity(), GROWTH_BYTES_MIN);
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_makes_no_difference(
            frames in prop::collection::vec(
                (prop::sample::select(vec![0x81_u8, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8a, 0x88]), 0_usize..400),
                0..8,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(first, length)| frame(*first, &vec![7; *length])).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut start = 0;
            for cut in cuts {
                pieces.push(bytes[start..cut].to_vec());
                start = cut;
            }
            pieces.push(bytes[start..].to_vec());
            prop_assert_eq!(told(pieces), told(vec![bytes]));
        }

        #[test]
        fn noise_ends(bytes: Vec<u8>) {
            told(vec![bytes]);
        }
    }
}
