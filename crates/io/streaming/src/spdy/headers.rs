//! Blocks of names and values, and their compression: one zlib stream for each direction of a connection.
//!
//! Writing compresses nothing: the few short blocks that a server says go out as stored blocks, which every inflater
//! reads, and no connection keeps the memory of a compressor.

use super::dictionary;
use flate2::{Decompress, FlushDecompress, Status};

/// A block, unpacked. What opens a stream of Kubernetes has some hundred bytes.
pub(crate) const BLOCK_BYTES_MAX: usize = 16 * 1024;
/// Names in a block.
const NAMES_MAX: u32 = 64;
/// Room for what is unpacked grows by so much, so that a bomb is noticed before it has grown.
const GROWTH_BYTES: usize = 2 * 1024;
/// Method, window size and "there is a dictionary", then which one.
const ZLIB_HEAD: [u8; 6] = [
    0x78,
    0xf9,
    dictionary::ADLER[0],
    dictionary::ADLER[1],
    dictionary::ADLER[2],
    dictionary::ADLER[3],
];
/// An empty stored block: everything before it can be read.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// Names in lower case with their values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self(pairs.iter().map(owned).collect())
    }

    /// The first value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.split('\0').next().unwrap_or_default())
    }

    fn print(&self) -> Vec<u8> {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        let mut block = count(self.0.len()).to_vec();
        for (name, value) in &self.0 {
            for text in [name, value] {
                block.extend(count(text.len()));
                block.extend_from_slice(text.as_bytes());
            }
        }
        block
    }

    fn parse(block: &[u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "a block of headers that is cut short";
        fn number(rest: &mut &[u8]) -> Result<u32, &'static str> {
            let (bytes, after) = rest.split_first_chunk().ok_or(SHORT)?;
            *rest = after;
            Ok(u32::from_be_bytes(*bytes))
        }
        fn text(rest: &mut &[u8]) -> Result<String, &'static str> {
            let length = usize::try_from(number(rest)?).map_err(|_| SHORT)?;
            let bytes = rest.get(..length).ok_or(SHORT)?;
            *rest = &rest[length..];
            let text = std::str::from_utf8(bytes).map_err(|_| "a header that is no text")?;
            Ok(text.to_owned())
        }
        let mut rest = block;
        let count = number(&mut rest)?;
        if count > NAMES_MAX {
            return Err("a block of more than 64 headers");
        }
        let mut headers = Vec::new();
        for _ in 0..count {
            headers.push((text(&mut rest)?, text(&mut rest)?));
        }
        match rest {
            [] => Ok(Self(headers)),
            _ => Err("a block of headers with something behind them"),
        }
    }
}

/// Reads the blocks of one direction, in their order.
#[derive(Debug)]
pub(crate) struct Unpacker(Decompress);

impl Unpacker {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of one block. After an error the connection is of no use: what follows refers to what was lost.
    pub(crate) fn read(&mut self, packed: &[u8]) -> Result<Headers, &'static str> {
        Headers::parse(&self.unpack(packed)?)
    }

    fn unpack(&mut self, packed: &[u8]) -> Result<Vec<u8>, &'static str> {
        const BROKEN: &str = "headers that cannot be unpacked";
        let mut rest = packed;
        let mut block = Vec::new();
        loop {
            if block.len() > BLOCK_BYTES_MAX {
                return Err("a block of headers of more than 16 KiB");
            }
            block.reserve(GROWTH_BYTES);
            let (before, length) = (self.0.total_in(), block.len());
            let done = self.0.decompress_vec(rest, &mut block, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before).unwrap_or(usize::MAX);
            rest = rest.get(taken..).unwrap_or_default();
            let got_on = taken > 0 || block.len() > length;
            match done {
                Err(error) if error.needs_dictionary() == Some(u32::from_be_bytes(dictionary::ADLER)) => {
                    let mut text = [0; dictionary::BYTES];
                    dictionary::write(&mut text);
                    self.0.set_dictionary(&text).map_err(|_| BROKEN)?;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(BROKEN),
                // There was room for more, so this is all of it.
                Ok(Status::Ok | Status::BufError) if rest.is_empty() && block.len() < block.capacity() => {
                    return Ok(block);
                }
                Ok(Status::Ok | Status::BufError) if !got_on => return Err(BROKEN),
                Ok(Status::Ok | Status::BufError) => {}
            }
        }
    }
}

/// Writes the blocks of one direction.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    begun: bool,
}

impl Packer {
    pub(crate) fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut packed = Vec::new();
        if !self.begun {
            packed.extend(ZLIB_HEAD);
            self.begun = true;
        }
        // A stored block has a length of two bytes.
        for part in headers.print().chunks(usize::from(u16::MAX)) {
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            packed.push(0);
            packed.extend(length.to_le_bytes());
            packed.extend((!length).to_le_bytes());
            packed.extend_from_slice(part);
        }
        // Go's inflater gives nothing out before it.
        packed.extend(FLUSH);
        packed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What kubectl and containerd said in a recorded connection.
    const FROM_CLIENT: &[u8] =
        b"x\xf9\xe3\xc6\xa7\xc2b```\x04\xa7\xb3\x92\xa2\xd4\xc4\\hQ\xc2\x9a\n\nh\x00\x00\x00\x00\xff\xff";
    const FROM_SERVER: [&[u8]; 2] = [
        b"x\xf9\xe3\xc6\xa7\xc2b```\x00\x00\x00\x00\xff\xff",
        b"\x02a\x00\x00\x00\x00\xff\xff",
    ];

    #[test]
    fn recorded_blocks_are_read() {
        let stream_type = Headers::of(&[("streamtype", "error")]);
        assert_eq!(Unpacker::new().read(FROM_CLIENT), Ok(stream_type));
        let mut unpacker = Unpacker::new();
        for block in FROM_SERVER {
            assert_eq!(unpacker.read(block), Ok(Headers::default()));
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_has_grown() {
        let mut deflate = flate2::Compress::new(flate2::Compression::best(), false);
        let mut packed = ZLIB_HEAD.to_vec();
        packed.reserve(1 << 20);
        deflate
            .compress_vec(&vec![0; 4 << 20], &mut packed, flate2::FlushCompress::Sync)
            .unwrap();
        assert!(packed.len() < 100_000);
        assert_eq!(
            Unpacker::new().read(&packed),
            Err("a block of headers of more than 16 KiB")
        );
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let told = |packed: &[u8]| Unpacker::new().read(packed).unwrap_err();
        assert_eq!(told(b"no zlib"), "headers that cannot be unpacked");
        // Without the dictionary of SPDY: nothing was packed so.
        assert_eq!(told(b"x\x9c\x03\0\0\0\0\x01"), "headers that cannot be unpacked");
        assert_eq!(told(&ZLIB_HEAD), "a block of headers that is cut short");
        let stored = |block: &[u8]| {
            let length = u16::try_from(block.len()).unwrap();
            let sizes = [length.to_le_bytes(), (!length).to_le_bytes()].concat();
            [&ZLIB_HEAD[..], &[0], &sizes, block, &FLUSH].concat()
        };
        assert_eq!(told(&stored(&[0xff; 4])), "a block of more than 64 headers");
        assert_eq!(
            told(&stored(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff])),
            "a block of headers that is cut short"
        );
        assert_eq!(
            told(&stored(&[0, 0, 0, 0, 0])),
            "a block of headers with something behind them"
        );
        let mut ended = ZLIB_HEAD.to_vec();
        ended.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 1]);
        assert_eq!(told(&ended), "headers that cannot be unpacked");
    }

    proptest! {
        #[test]
        fn blocks_are_read_as_they_were_written(
            blocks in prop::collection::vec(prop::collection::vec(("[a-z-]{1,20}", ".{0,40}"), 0..8), 1..40),
        ) {
            let (mut packer, mut unpacker) = (Packer::default(), Unpacker::new());
            for block in blocks {
                let headers = Headers(block);
                prop_assert_eq!(unpacker.read(&packer.write(&headers)), Ok(headers));
            }
        }

        /// As Go compresses: with references to the dictionary and to blocks before.
        #[test]
        fn packed_blocks_are_read(blocks in prop::collection::vec(("[a-z]{1,9}", "[a-z]{0,9}"), 1..60)) {
            let mut deflate = flate2::Compress::new(flate2::Compression::best(), false);
            let mut unpacker = Unpacker::new();
            for (number, (name, value)) in blocks.into_iter().enumerate() {
                let headers = Headers(vec![(name, value)]);
                let mut packed = if number == 0 { ZLIB_HEAD.to_vec() } else { Vec::new() };
                packed.reserve(4096);
                deflate.compress_vec(&headers.print(), &mut packed, flate2::FlushCompress::Sync).unwrap();
                prop_assert_eq!(unpacker.read(&packed), Ok(headers));
            }
        }

        #[test]
        fn no_bytes_make_the_reader_fall(bytes: Vec<u8>) {
            let _ = Unpacker::new().read(&bytes);
            let _ = Unpacker::new().read(&[&ZLIB_HEAD[..], &bytes].concat());
            let _ = Headers::parse(&bytes);
        }
    }
}
