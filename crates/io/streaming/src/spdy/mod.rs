//! SPDY/3.1 on a byte stream, as far as Kubernetes speaks it: streams that a client opens, data both ways, ends, pings.
//!
//! [`Incoming`] and [`Out`] are one direction each and know no streams; who uses them keeps what is open.

mod dictionary;
mod frame;
mod headers;

pub(crate) use frame::{Heard, PIECE_BYTES_MAX, Reset, Said};
pub(crate) use headers::Headers;

use crate::Error;
use bytes::{Buf, Bytes, BytesMut};
use frame::{HEAD_BYTES, Head};
use headers::{Packer, Unpacker};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Frames that wait for the connection; at 32 KiB each half a megabyte.
const OUT_MAX: usize = 16;

/// The direction in.
#[derive(Debug)]
pub(crate) struct Incoming<R> {
    io: R,
    /// What was read and is not told yet: at most one control frame, or one piece of data.
    buffer: BytesMut,
    unpacker: Unpacker,
    data: Option<Part>,
}

/// Data of which more is to come.
#[derive(Debug, Clone, Copy)]
struct Part {
    id: u32,
    last: bool,
    left: usize,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    fn new(io: R) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            unpacker: Unpacker::new(),
            data: None,
        }
    }

    /// What the peer says next; `None` when it has hung up between two frames. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Heard>, Error> {
        if let Some(part) = self.data {
            return self.part(part).await.map(Some);
        }
        if !self.fill(HEAD_BYTES).await? {
            return match self.buffer.is_empty() {
                true => Ok(None),
                false => Err(cut_short()),
            };
        }
        let head = self.buffer.first_chunk().expect("it was filled");
        match Head::read(head).map_err(Error::Protocol)? {
            Head::Data { id, last, length } => {
                self.buffer.advance(HEAD_BYTES);
                let part = Part {
                    id,
                    last,
                    left: length,
                };
                self.data = Some(part);
                self.part(part).await.map(Some)
            }
            Head::Control { kind, last, length } => {
                if !self.fill(HEAD_BYTES + length).await? {
                    return Err(cut_short());
                }
                let body = self.buffer.split_to(HEAD_BYTES + length).split_off(HEAD_BYTES);
                let unpacker = &mut self.unpacker;
                let heard = frame::read_control(kind, last, &body, |block| unpacker.read(block));
                heard.map(Some).map_err(Error::Protocol)
            }
        }
    }

    async fn part(&mut self, part: Part) -> Result<Heard, Error> {
        let Part { id, last, left } = part;
        if left > 0 && self.buffer.is_empty() && !self.fill(1).await? {
            return Err(cut_short());
        }
        let bytes = self.buffer.split_to(self.buffer.len().min(left)).freeze();
        let left = left - bytes.len();
        self.data = (left > 0).then_some(Part { id, last, left });
        let last = last && left == 0;
        Ok(Heard::Data { id, bytes, last })
    }

    /// Reads until so many bytes are there; whether they are.
    async fn fill(&mut self, wanted: usize) -> Result<bool, Error> {
        while self.buffer.len() < wanted {
            // Room for a whole piece, so that bulk data costs few calls.
            self.buffer
                .reserve(PIECE_BYTES_MAX.max(wanted) - self.buffer.len());
            let room = PIECE_BYTES_MAX.max(wanted) - self.buffer.len();
            let read = (&mut self.io)
                .take(room as u64)
                .read_buf(&mut self.buffer)
                .await?;
            if read == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn cut_short() -> Error {
    Error::Io(io::ErrorKind::UnexpectedEof.into())
}

/// The direction out, for everybody who has something to say.
#[derive(Debug, Clone)]
pub(crate) struct Out(mpsc::Sender<Said>);

impl Out {
    /// Waits for its turn. Fails when the connection has broken, because then nobody writes any more.
    pub(crate) async fn say(&self, what: Said) -> Result<(), Error> {
        let broken = |_| Error::Io(io::ErrorKind::BrokenPipe.into());
        self.0.send(what).await.map_err(broken)
    }

    pub(crate) async fn data(&self, id: u32, bytes: Bytes) -> Result<(), Error> {
        let last = false;
        self.say(Said::Data { id, bytes, last }).await
    }

    /// The last bytes of a stream.
    pub(crate) async fn end(&self, id: u32, bytes: Bytes) -> Result<(), Error> {
        let last = true;
        self.say(Said::Data { id, bytes, last }).await
    }
}

/// Talks over a connection: what is said is written beside it. When nobody can say anything any more, the connection ends.
/// Gives what came of the talk, and of the writing.
pub(crate) async fn converse<R: AsyncRead + Unpin, T, F: Future<Output = Result<T, Error>>>(
    reader: R,
    writer: impl AsyncWrite + Unpin,
    talk: impl FnOnce(Incoming<R>, Out) -> F,
) -> (Result<T, Error>, Result<(), Error>) {
    let (said, saying) = mpsc::channel(OUT_MAX);
    let talk = talk(Incoming::new(reader), Out(said));
    tokio::join!(talk, outgoing(writer, saying))
}

/// Writes what is said, until nobody can say anything any more; then ends it.
async fn outgoing(mut io: impl AsyncWrite + Unpin, mut said: mpsc::Receiver<Said>) -> Result<(), Error> {
    let mut packer = Packer::default();
    let mut bytes = Vec::new();
    while let Some(said) = said.recv().await {
        bytes.clear();
        said.write(&mut bytes, |headers| packer.write(headers));
        io.write_all(&bytes).await?;
        io.flush().await?;
    }
    io.shutdown().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    async fn all(bytes: &[u8]) -> (Vec<Heard>, Option<String>) {
        let mut incoming = Incoming::new(bytes);
        let mut heard = Vec::new();
        loop {
            match incoming.next().await {
                Ok(Some(next)) => heard.push(next),
                Ok(None) => return (heard, None),
                Err(error) => return (heard, Some(error.to_string())),
            }
        }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(work)
    }

    /// What the official cloud passed on from kubectl, and what containerd answered.
    const FROM_KUBECTL: &[u8] = b"\x80\x03\x00\x01\x00\x00\x00)\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00x\xf9\xe3\xc6\xa7\xc2b```\x04\xa7\xb3\x92\xa2\xd4\xc4\\hQ\xc2\x9a\n\nh\x00\x00\x00\x00\xff\xff";
    const FROM_CONTAINERD: &[u8] = b"\x80\x03\x00\x02\x00\x00\x00\x14\x00\x00\x00\x01x\xf9\xe3\xc6\xa7\xc2b```\x00\x00\x00\x00\xff\xff\x80\x03\x00\x02\x00\x00\x00\x0c\x00\x00\x00\x03\x02a\x00\x00\x00\x00\xff\xff\x80\x03\x00\x02\x00\x00\x00\x0c\x00\x00\x00\x05\x02a\x00\x00\x00\x00\xff\xff\x00\x00\x00\x03\x00\x00\x00\x08exec-ok\n\x00\x00\x00\x03\x01\x00\x00\x00\x00\x00\x00\x05\x01\x00\x00\x00";

    #[tokio::test]
    async fn recorded_frames_are_heard() {
        let (heard, trouble) = all(FROM_KUBECTL).await;
        assert_eq!(trouble, None);
        expect![[r#"[Open { id: 1, headers: Headers([("streamtype", "error")]), last: false }]"#]]
            .assert_eq(&format!("{heard:?}"));
        let (heard, trouble) = all(FROM_CONTAINERD).await;
        assert_eq!(trouble, None);
        expect![[r#"
            Reply { id: 1, last: false }
            Reply { id: 3, last: false }
            Reply { id: 5, last: false }
            Data { id: 3, bytes: b"exec-ok\n", last: false }
            Data { id: 3, bytes: b"", last: true }
            Data { id: 5, bytes: b"", last: true }
        "#]]
        .assert_eq(
            &heard
                .iter()
                .map(|heard| format!("{heard:?}\n"))
                .collect::<String>(),
        );
    }

    #[tokio::test]
    async fn what_is_no_frame_ends_the_connection() {
        for (bytes, why) in [
            (&b"\x80\x03\x00"[..], "the connection broke"),
            (b"\x80\x03\x00\x01\x00\x00\x00\x20abc", "the connection broke"),
            (b"\x00\x00\x00\x01\x00\x00\x00\x02a", "the connection broke"),
            (
                b"\x00\x00\x00\x00\x00\x00\x00\x00",
                "the peer sent data of no stream",
            ),
            (
                b"\x80\x02\x00\x01\x00\x00\x00\x00",
                "the peer sent a frame of another version of SPDY",
            ),
            (
                b"\x80\x03\x00\x01\x00\xff\xff\xff",
                "the peer sent a control frame of more than 16 KiB",
            ),
            (
                b"\x80\x03\x00\x63\x00\x00\x00\x00",
                "the peer sent a control frame of a kind that SPDY/3.1 does not have",
            ),
            (
                b"\x80\x03\x00\x06\x00\x00\x00\x02ab",
                "the peer sent a control frame that is cut short",
            ),
            (
                b"\x80\x03\x00\x03\x00\x00\x00\x04\x80\x00\x00\x00",
                "the peer sent a control frame of no stream",
            ),
        ] {
            assert_eq!(all(bytes).await.1.as_deref(), Some(why), "{bytes:x?}");
        }
    }

    #[tokio::test]
    async fn a_long_frame_comes_in_pieces() {
        let mut bytes = b"\x00\x00\x00\x05\x01\x03\x0d\x40".to_vec();
        bytes.extend(vec![b'x'; 200_000]);
        let (heard, trouble) = all(&bytes).await;
        assert_eq!(trouble, None);
        let mut total = 0;
        for (number, piece) in heard.iter().enumerate() {
            let Heard::Data { id: 5, bytes, last } = piece else {
                panic!("{piece:?}")
            };
            assert!(bytes.len() <= PIECE_BYTES_MAX);
            assert_eq!(*last, number + 1 == heard.len());
            total += bytes.len();
        }
        assert_eq!(total, 200_000);
    }

    fn said() -> impl Strategy<Value = Said> {
        let id = 1..u32::MAX >> 1;
        let headers = prop::collection::vec(("[a-z]{1,9}", "[a-z0-9]{0,9}"), 0..4).prop_map(Headers);
        prop_oneof![
            (id.clone(), headers).prop_map(|(id, headers)| Said::Open { id, headers }),
            id.clone().prop_map(|id| Said::Reply { id }),
            (
                id.clone(),
                prop::collection::vec(any::<u8>(), 0..99),
                any::<bool>()
            )
                .prop_map(|(id, bytes, last)| {
                    let bytes = Bytes::from(bytes);
                    Said::Data { id, bytes, last }
                }),
            id.clone().prop_map(|id| Said::Reset {
                id,
                why: Reset::Cancel
            }),
            id.prop_map(|id| Said::Pong { id }),
            Just(Said::GoAway),
        ]
    }

    fn as_heard(said: Said) -> Heard {
        match said {
            Said::Open { id, headers } => {
                let last = false;
                Heard::Open { id, headers, last }
            }
            Said::Reply { id } => Heard::Reply { id, last: false },
            Said::Data { id, bytes, last } => Heard::Data { id, bytes, last },
            Said::Reset { id, .. } => Heard::Reset { id },
            Said::Pong { id } => Heard::Ping { id },
            Said::GoAway => Heard::GoAway,
        }
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard_however_it_is_cut(sayings in prop::collection::vec(said(), 0..20), cut in 1_usize..50) {
            let heard = block_on(async {
                let (near, far) = tokio::io::duplex(cut);
                let (reader, writer) = tokio::io::split(near);
                let saying = converse(reader, writer, async |_, out| {
                    for said in sayings.clone() {
                        out.say(said).await?;
                    }
                    Ok(())
                });
                let hearing = async {
                    let mut incoming = Incoming::new(far);
                    let mut heard: Vec<Heard> = Vec::new();
                    while let Some(next) = incoming.next().await.unwrap() {
                        match (heard.last_mut(), next) {
                            (
                                Some(Heard::Data { id, bytes, last: last @ false }),
                                Heard::Data { id: same, bytes: more, last: end },
                            ) if *id == same => {
                                *bytes = Bytes::from([&bytes[..], &more].concat());
                                *last = end;
                            }
                            (_, next) => heard.push(next),
                        }
                    }
                    heard
                };
                let ((said, written), heard) = tokio::join!(saying, hearing);
                said.and(written).unwrap();
                heard
            });
            let mut wanted: Vec<Heard> = Vec::new();
            for next in sayings.into_iter().map(as_heard) {
                match (wanted.last_mut(), next) {
                    (
                        Some(Heard::Data { id, bytes, last: last @ false }),
                        Heard::Data { id: same, bytes: more, last: end },
                    ) if *id == same => {
                        *bytes = Bytes::from([&bytes[..], &more].concat());
                        *last = end;
                    }
                    (_, next) => wanted.push(next),
                }
            }
            prop_assert_eq!(heard, wanted);
        }

        #[test]
        fn no_bytes_make_the_reader_fall(bytes: Vec<u8>, kind in 0_u8..12) {
            block_on(all(&bytes));
            let length = u8::try_from(bytes.len().min(255)).unwrap();
            block_on(all(&[&[0x80, 3, 0, kind, 1, 0, 0, length], &bytes[..]].concat()));
        }
    }
}
