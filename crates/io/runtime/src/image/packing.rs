//! Compressed streams of strangers: gzip and zstd, read as they are written today (several members or frames in one
//! stream), with an end to what a few bytes may swell to.

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use std::cell::Cell;
use std::io::{BufRead, BufReader, Read};
use std::rc::Rc;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The last three bytes of the mark of a frame that is to be skipped; the low half of the first byte is free.
const ZSTD_SKIP_MAGIC: [u8; 3] = [0x2a, 0x4d, 0x18];
/// What a decoder has to have by RFC 8878; more is memory that a stranger asks for.
const ZSTD_WINDOW_MAX: u64 = 8 * 1024 * 1024;
/// The longest header of a frame: mark, descriptor, window, dictionary, size.
const ZSTD_HEADER_MAX: usize = 4 + 1 + 1 + 4 + 8;
/// Reads of packed bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// Real layers shrink to a fifth, text to a twentieth; only made-up ones swell more than this ...
const SWELLING_MAX: u64 = 200;
/// ... and as long as they stay below this nobody minds: an image may hold a file of zeros.
const SWELLING_FREE_BYTES: u64 = 256 * 1024 * 1024;

/// How bytes are compressed, which they tell themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    /// Of the first bytes; `None` when they are as they are.
    pub(super) fn of(magic: &[u8]) -> Option<Self> {
        if magic.starts_with(&GZIP_MAGIC) {
            return Some(Self::Gzip);
        }
        magic.starts_with(&ZSTD_MAGIC).then_some(Self::Zstd)
    }

    /// The bytes behind it. They end with an error where they swell too much.
    pub(super) fn open<'a>(self, packed: impl Read + 'a) -> Box<dyn Read + 'a> {
        let taken = Rc::new(Cell::new(0));
        let packed = Counted {
            inner: packed,
            taken: Rc::clone(&taken),
        };
        let packed = BufReader::with_capacity(BUFFER_BYTES, packed);
        let plain: Box<dyn Read + 'a> = match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Self::Zstd => Box::new(Frames::new(packed)),
        };
        Box::new(Guarded {
            plain,
            taken,
            given: 0,
        })
    }
}

/// The bytes behind whatever packing they tell, or the bytes themselves.
pub(super) fn unpacked<'a>(mut from: impl Read + 'a) -> std::io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; ZSTD_MAGIC.len()];
    let read = read_some(&mut from, &mut magic)?;
    let whole = std::io::Cursor::new(magic).take(read as u64).chain(from);
    Ok(match Packing::of(&magic[..read]) {
        Some(packing) => packing.open(whole),
        None => Box::new(whole),
    })
}

/// Reads until the buffer is full or the input ends.
pub(super) fn read_some(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Counts what is taken of the packed bytes.
struct Counted<R> {
    inner: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.taken.set(self.taken.get() + read as u64);
        Ok(read)
    }
}

/// Ends what swells.
struct Guarded<'a> {
    plain: Box<dyn Read + 'a>,
    taken: Rc<Cell<u64>>,
    given: u64,
}

impl Read for Guarded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.plain.read(buffer)?;
        self.given += read as u64;
        let allowed = self.taken.get().saturating_mul(SWELLING_MAX);
        if self.given > allowed.max(SWELLING_FREE_BYTES) {
            return Err(std::io::Error::other(format!(
                "it swells to more than {SWELLING_MAX} times its size"
            )));
        }
        Ok(read)
    }
}

/// The frames of a zstd stream, one after another.
struct Frames<R: Read> {
    state: State<R>,
}

enum State<R: Read> {
    Between(R),
    Within(Box<StreamingDecoder<Frame<R>, ruzstd::decoding::FrameDecoder>>),
    /// An error has been told.
    Over,
}

/// A frame's header, which was read to look at, and what follows it.
struct Frame<R> {
    header: std::io::Cursor<Vec<u8>>,
    rest: R,
}

impl<R: Read> Read for Frame<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.header.read(buffer)? {
            0 => self.rest.read(buffer),
            read => Ok(read),
        }
    }
}

impl<R: BufRead> Frames<R> {
    fn new(from: R) -> Self {
        Self {
            state: State::Between(from),
        }
    }

    /// Finds the next frame with data; `None` at the end.
    fn begin(mut from: R) -> std::io::Result<Option<State<R>>> {
        loop {
            let mut header = Vec::with_capacity(ZSTD_HEADER_MAX);
            take(&mut from, &mut header, ZSTD_MAGIC.len())?;
            if header.is_empty() {
                return Ok(None);
            }
            if header.len() == ZSTD_MAGIC.len() && header[1..] == ZSTD_SKIP_MAGIC && header[0] >> 4 == 5 {
                let mut length = Vec::new();
                take(&mut from, &mut length, 4)?;
                let length: [u8; 4] = length.try_into().map_err(|_| cut_off())?;
                let length = u64::from(u32::from_le_bytes(length));
                if std::io::copy(&mut (&mut from).take(length), &mut std::io::sink())? != length {
                    return Err(cut_off());
                }
                continue;
            }
            if header != ZSTD_MAGIC {
                return Err(std::io::Error::other("what follows a frame is none"));
            }
            check_window(&mut from, &mut header)?;
            let frame = Frame {
                header: std::io::Cursor::new(header),
                rest: from,
            };
            let decoder = StreamingDecoder::new(frame).map_err(std::io::Error::other)?;
            return Ok(Some(State::Within(Box::new(decoder))));
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Over) {
                State::Between(from) => match Frames::begin(from)? {
                    Some(within) => self.state = within,
                    None => return Ok(0),
                },
                State::Within(mut decoder) => match decoder.read(buffer)? {
                    0 => self.state = State::Between(decoder.into_inner().rest),
                    read => {
                        self.state = State::Within(decoder);
                        return Ok(read);
                    }
                },
                State::Over => return Ok(0),
            }
        }
    }
}

/// Reads what is missing of a frame's header and refuses a window that is too large.
fn check_window(from: &mut impl Read, header: &mut Vec<u8>) -> std::io::Result<()> {
    take(from, header, 1)?;
    let descriptor = *header
        .last()
        .filter(|_| header.len() > ZSTD_MAGIC.len())
        .ok_or_else(cut_off)?;
    let single = descriptor & 0b10_0000 != 0;
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 0b11)];
    let size_bytes = match (descriptor >> 6, single) {
        (0, false) => 0,
        (0, true) => 1,
        (flag, _) => 1 << flag,
    };
    let window_bytes = usize::from(!single);
    let wanted = header.len() + window_bytes + dictionary_bytes + size_bytes;
    take(from, header, window_bytes + dictionary_bytes + size_bytes)?;
    if header.len() < wanted {
        return Err(cut_off());
    }
    let window = if single {
        let mut size = [0; 8];
        size[..size_bytes].copy_from_slice(&header[wanted - size_bytes..]);
        // Two bytes count from 256.
        u64::from_le_bytes(size) + if size_bytes == 2 { 256 } else { 0 }
    } else {
        let byte = u64::from(header[ZSTD_MAGIC.len() + 1]);
        let base = 1_u64 << (10 + (byte >> 3));
        base + base / 8 * (byte & 0b111)
    };
    if window > ZSTD_WINDOW_MAX {
        return Err(std::io::Error::other(format!(
            "it wants {window} bytes of memory to be unpacked; {ZSTD_WINDOW_MAX} are allowed"
        )));
    }
    Ok(())
}

fn take(from: &mut impl Read, into: &mut Vec<u8>, bytes: usize) -> std::io::Result<()> {
    from.take(bytes as u64).read_to_end(into).map(drop)
}

fn cut_off() -> std::io::Error {
    std::io::Error::new(
        std::io::ErrorKind::UnexpectedEof,
        "it ends in the middle of a frame",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn plain(packed: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        unpacked(packed)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn streams_of_several_parts() {
        let text = b"what a layer holds ".repeat(10_000);
        let (head, tail) = text.split_at(70_000);
        assert_eq!(plain(&text).unwrap(), text, "not packed");
        assert_eq!(plain(&[gzip(head), gzip(tail)].concat()).unwrap(), text);
        let skipped = [&[0x5a_u8, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"toc"].concat();
        let frames = [zstd(head), skipped.clone(), zstd(tail), skipped].concat();
        assert_eq!(plain(&frames).unwrap(), text);
        assert!(
            plain(&frames[..frames.len() - 1]).is_err(),
            "truncated in what is skipped"
        );
        assert!(plain(&[zstd(head), b"rest".to_vec()].concat()).is_err());
    }

    #[test]
    fn a_window_is_asked_for_in_vain() {
        // 2 GiB.
        let error = plain(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xa8, 0, 0, 0]).unwrap_err();
        assert!(error.to_string().contains("bytes of memory"), "{error}");
        // A single segment of 16 MiB.
        let error = plain(&[0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000, 0, 0, 0, 1, 0]).unwrap_err();
        assert!(error.to_string().contains("16777216 bytes of memory"), "{error}");
    }

    #[test]
    fn a_bomb_ends_early() {
        let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        member.write_all(&vec![0; 16 * 1024 * 1024]).unwrap();
        let bomb = member.finish().unwrap().repeat(64);
        let mut given = 0;
        let mut from = unpacked(&bomb[..]).unwrap();
        let mut buffer = vec![0; 1024 * 1024];
        let error = loop {
            match from.read(&mut buffer) {
                Ok(0) => panic!("{given} bytes of a bomb"),
                Ok(read) => given += read as u64,
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("swells"), "{error}");
        assert!(given <= SWELLING_FREE_BYTES);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
        #[test]
        fn broken_streams_end(mut bytes: Vec<u8>, at: usize, change: u8, zstandard: bool) {
            let mut packed = if zstandard { zstd(&bytes) } else { gzip(&bytes) };
            let at = at % packed.len();
            packed[at] ^= change;
            if let Ok(read) = plain(&packed) && change == 0 {
                assert_eq!(read, bytes);
            }
            bytes.splice(0..0, if zstandard { ZSTD_MAGIC.to_vec() } else { GZIP_MAGIC.to_vec() });
            let _ = plain(&bytes);
            packed.truncate(at);
            let _ = plain(&packed);
        }
    }
}
