//! The entries of a tar, as the layers of strangers hold them: ustar, PAX and GNU, also sparse files.
//!
//! Nothing is allocated that the stream merely claims: names and extended headers have limits, contents are handed on in
//! pieces. What is read of a layer goes past a [`Recipe`], so that the same tar can be made again from the unpacked files.

use super::layer::LayerError;
use super::packing::read_some;
use super::recipe::Recipe;
use std::ffi::OsString;
use std::io::{Read, Seek};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

pub(super) const BLOCK_BYTES: usize = 512;
/// One extended header: an attribute has 64 KiB at most, a path 4.
const EXTENSION_BYTES_MAX: u64 = 1024 * 1024;
/// What the kernel takes as a path.
const PATH_BYTES_MAX: usize = 4096;
const ATTRIBUTES_MAX: usize = 256;
/// Holes of one sparse file.
const SEGMENTS_MAX: usize = 65_536;
/// Entries that have no content carry some with them in vain.
const VAIN_BYTES_MAX: u64 = 1024 * 1024;
/// Empty blocks after the end; tar pads to its records.
const PADDING_BYTES_MAX: u64 = 16 * 1024 * 1024;
const ATTRIBUTE_KEY: &str = "SCHILY.xattr.";

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    Character,
    Block,
}

/// An entry without its content.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    /// Of links.
    pub(super) target: Option<PathBuf>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime_s: i64,
    pub(super) mtime_ns: u32,
    pub(super) device: (u32, u32),
    /// Of the file; the stream may hold less.
    pub(super) size: u64,
    /// Where the stream's bytes belong: offset and length, in order.
    pub(super) segments: Vec<(u64, u64)>,
    pub(super) attributes: Vec<(String, Vec<u8>)>,
}

/// What extended headers say about the next entry.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    attributes: Vec<(String, Vec<u8>)>,
    sparse: SparseWords,
}

/// The three ways in which PAX headers tell of holes.
#[derive(Debug, Default)]
struct SparseWords {
    major: u64,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    numbers: Vec<u64>,
    is_meant: bool,
}

/// Reads a tar from its beginning to its end.
pub(super) struct Tarball<R> {
    from: R,
    /// `None` where the tar itself stays.
    recipe: Option<Recipe>,
    /// Of the current entry's content in the stream.
    left: u64,
    padding: u64,
}

impl<R: Read> Tarball<R> {
    pub(super) fn new(from: R, recipe: Option<Recipe>) -> Self {
        Self {
            from,
            recipe,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry; `None` at the end. What was left of the last one's content is read over.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        self.finish_entry()?;
        let mut extended = Extended::default();
        loop {
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            let header = tar::Header::from_byte_slice(&block);
            if !sum_is_right(&block, header) {
                return Err(broken("a header has a wrong sum"));
            }
            let size = told(&block[124..136], header.entry_size())?;
            match block[156] {
                b'x' => extended.read(&self.extension(size)?)?,
                b'g' => drop(self.extension(size)?),
                b'L' => extended.path = Some(without_end(self.extension(size)?)),
                b'K' => extended.target = Some(without_end(self.extension(size)?)),
                flag => return self.entry(&block, flag, size, extended).map(Some),
            }
        }
    }

    /// The next bytes of the current entry's content; they count as those of the file at `path` from `offset` on.
    pub(super) fn content(
        &mut self,
        buffer: &mut [u8],
        path: &Path,
        offset: u64,
    ) -> Result<usize, LayerError> {
        let wanted = self.left.min(buffer.len() as u64);
        let wanted = usize::try_from(wanted).expect("it is at most the length of a buffer");
        let read = read_some(&mut self.from, &mut buffer[..wanted]).map_err(LayerError::Tar)?;
        if read < wanted {
            return Err(broken("it is truncated"));
        }
        self.left -= read as u64;
        if let Some(recipe) = &mut self.recipe {
            recipe.content(path, offset, read as u64)?;
        }
        Ok(read)
    }

    /// Reads what follows the last entry, which belongs to the digest, too.
    pub(super) fn finish(mut self) -> Result<Option<Recipe>, LayerError> {
        let mut buffer = [0; BLOCK_BYTES];
        let mut padding = 0;
        loop {
            let read = read_some(&mut self.from, &mut buffer).map_err(LayerError::Tar)?;
            if read == 0 {
                return Ok(self.recipe);
            }
            padding += read as u64;
            if padding > PADDING_BYTES_MAX {
                return Err(broken("it goes on after its end"));
            }
            self.tell(&buffer[..read])?;
        }
    }

    fn tell(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        match &mut self.recipe {
            Some(recipe) => recipe.literal(bytes),
            None => Ok(()),
        }
    }

    /// The next header; `None` at the mark of the end, or where the stream ends between two entries.
    fn block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, LayerError> {
        let mut block = [0; BLOCK_BYTES];
        let read = read_some(&mut self.from, &mut block).map_err(LayerError::Tar)?;
        self.tell(&block[..read])?;
        match read {
            0 => Ok(None),
            BLOCK_BYTES if block == [0; BLOCK_BYTES] => Ok(None),
            BLOCK_BYTES => Ok(Some(block)),
            _part => Err(broken("it is truncated")),
        }
    }

    fn finish_entry(&mut self) -> Result<(), LayerError> {
        if self.left > VAIN_BYTES_MAX {
            return Err(broken("an entry carries a content that it cannot have"));
        }
        self.literal(self.left)?;
        // Some writers leave out what would fill the last block.
        let mut padding = [0; BLOCK_BYTES];
        let wanted = usize::try_from(self.padding).expect("it is less than a block");
        let read = read_some(&mut self.from, &mut padding[..wanted]).map_err(LayerError::Tar)?;
        self.tell(&padding[..read])?;
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// Reads bytes that are no file's content.
    fn literal(&mut self, bytes: u64) -> Result<Vec<u8>, LayerError> {
        let mut read = Vec::new();
        let taken = (&mut self.from).take(bytes).read_to_end(&mut read);
        taken.map_err(LayerError::Tar)?;
        if (read.len() as u64) < bytes {
            return Err(broken("it is truncated"));
        }
        self.tell(&read)?;
        Ok(read)
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > EXTENSION_BYTES_MAX {
            return Err(broken("an extended header is too long"));
        }
        let bytes = self.literal(size)?;
        self.literal(padding_of(size))?;
        Ok(bytes)
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK_BYTES],
        flag: u8,
        size: u64,
        mut extended: Extended,
    ) -> Result<Entry, LayerError> {
        let header = tar::Header::from_byte_slice(block);
        let size = extended.size.unwrap_or(size);
        let name = extended.sparse.name.take().or(extended.path.take());
        let path = checked(name.unwrap_or_else(|| header.path_bytes().into_owned()))?;
        let target = extended.target.take();
        let target = target.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let kind = kind_of(flag, &path)
            .ok_or_else(|| LayerError::refused(&path, "it is of a kind that layers do not have"))?;
        // Some writers give the sizes of what others refer to, which is not there.
        let size = if kind == Kind::File { size } else { 0 };
        self.left = size;
        self.padding = padding_of(self.left);
        let number = |number: std::io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        let mut entry = Entry {
            target: target.map(checked).transpose()?,
            kind,
            mode: told(&block[100..108], header.mode())? & 0o7777,
            uid: extended
                .uid
                .map_or_else(|| told(&block[108..116], header.uid()), Ok)?,
            gid: extended
                .gid
                .map_or_else(|| told(&block[116..124], header.gid()), Ok)?,
            mtime_s: 0,
            mtime_ns: 0,
            device: (number(header.device_major()), number(header.device_minor())),
            size,
            segments: vec![(0, size)],
            attributes: extended.attributes,
            path,
        };
        (entry.mtime_s, entry.mtime_ns) = extended.mtime.unwrap_or_else(|| {
            (
                header
                    .mtime()
                    .ok()
                    .and_then(|s| i64::try_from(s).ok())
                    .unwrap_or(0),
                0,
            )
        });
        if flag == b'S' {
            self.old_sparse(block, &mut entry)?;
        } else if extended.sparse.is_meant && kind == Kind::File {
            self.pax_sparse(extended.sparse, &mut entry)?;
        }
        Ok(entry)
    }

    /// The holes as GNU tar wrote them before PAX: four in the header, more in blocks of 21.
    fn old_sparse(&mut self, block: &[u8; BLOCK_BYTES], entry: &mut Entry) -> Result<(), LayerError> {
        let header = tar::Header::from_byte_slice(block);
        let gnu = header
            .as_gnu()
            .ok_or_else(|| broken("a sparse file has no header of its kind"))?;
        entry.size = gnu.real_size().map_err(LayerError::Tar)?;
        let mut numbers = Vec::new();
        let mut add = |sparse: &[tar::GnuSparseHeader]| -> Result<(), LayerError> {
            for one in sparse.iter().filter(|one| !one.is_empty()) {
                numbers.push(one.offset().map_err(LayerError::Tar)?);
                numbers.push(one.length().map_err(LayerError::Tar)?);
            }
            match numbers.len() / 2 {
                0..=SEGMENTS_MAX => Ok(()),
                _more => Err(broken("a sparse file has too many holes")),
            }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extended = tar::GnuExtSparseHeader::new();
            let block = self.literal(BLOCK_BYTES as u64)?;
            extended.as_mut_bytes().copy_from_slice(&block);
            add(extended.sparse())?;
            more = extended.is_extended();
        }
        self.lay_out(&numbers, entry)
    }

    fn pax_sparse(&mut self, words: SparseWords, entry: &mut Entry) -> Result<(), LayerError> {
        entry.size = words.size.ok_or_else(|| broken("a sparse file has no size"))?;
        if words.major == 0 {
            return self.lay_out(&words.numbers, entry);
        }
        // The holes stand before the content, one number a line, in whole blocks.
        let mut text = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        loop {
            if self.left < BLOCK_BYTES as u64 || numbers.len() > 2 * SEGMENTS_MAX {
                return Err(broken("the holes of a sparse file are not understood"));
            }
            text.extend(self.literal(BLOCK_BYTES as u64)?);
            self.left -= BLOCK_BYTES as u64;
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                numbers.push(number(&line[..end])?);
                if numbers[0]
                    .checked_mul(2)
                    .is_none_or(|count| numbers.len() as u64 > count)
                {
                    return self.lay_out(&numbers[1..], entry);
                }
            }
            if text.len() > BLOCK_BYTES {
                return Err(broken("the holes of a sparse file are not understood"));
            }
        }
    }

    /// Takes pairs of offset and length that have to fit into the file and to be all of the content.
    fn lay_out(&self, numbers: &[u64], entry: &mut Entry) -> Result<(), LayerError> {
        entry.segments.clear();
        let (mut at, mut total) = (0, 0);
        for pair in numbers.chunks(2) {
            let [offset, length] = *pair else {
                return Err(broken("a hole of a sparse file has no length"));
            };
            let end = offset.checked_add(length);
            let Some(end) = end.filter(|end| offset >= at && *end <= entry.size) else {
                return Err(broken("the holes of a sparse file overlap"));
            };
            (at, total) = (end, total + length);
            if length > 0 {
                entry.segments.push((offset, length));
            }
        }
        if total != self.left || entry.segments.len() > SEGMENTS_MAX {
            return Err(broken("the holes of a sparse file do not fit its content"));
        }
        Ok(())
    }
}

impl<R: Read + Seek> Tarball<R> {
    /// Where in the stream the content of the current entry is.
    pub(super) fn position(&mut self) -> Result<u64, LayerError> {
        self.from.stream_position().map_err(LayerError::Tar)
    }

    /// Leaves out the content of the current entry.
    pub(super) fn skip(&mut self) -> Result<(), LayerError> {
        let left = i64::try_from(self.left).map_err(|_| broken("it is truncated"))?;
        self.from.seek_relative(left).map_err(LayerError::Tar)?;
        self.left = 0;
        Ok(())
    }
}

impl Extended {
    /// Records of the form `length key=value` and a line's end; the length counts all of it, so values may hold anything.
    fn read(&mut self, mut records: &[u8]) -> Result<(), LayerError> {
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ');
            let space = space.ok_or_else(|| broken("an extended header is not understood"))?;
            let length = usize::try_from(number(&records[..space])?).unwrap_or(usize::MAX);
            if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(broken("an extended header is not understood"));
            }
            let (record, rest) = records.split_at(length);
            let record = &record[space + 1..length - 1];
            let equals = record.iter().position(|byte| *byte == b'=');
            let equals = equals.ok_or_else(|| broken("an extended header is not understood"))?;
            // A key that is no text is none that is known.
            let key = String::from_utf8_lossy(&record[..equals]);
            self.record(&key, &record[equals + 1..])?;
            records = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &str, value: &[u8]) -> Result<(), LayerError> {
        if let Some(name) = key.strip_prefix(ATTRIBUTE_KEY) {
            if self.attributes.len() >= ATTRIBUTES_MAX {
                return Err(broken("a file has too many attributes"));
            }
            self.attributes.push((name.to_owned(), value.to_vec()));
            return Ok(());
        }
        if let Some(word) = key.strip_prefix("GNU.sparse.") {
            return self.sparse.record(word, value);
        }
        // An empty value takes back what an earlier header said.
        let given = !value.is_empty();
        match key {
            "path" => self.path = given.then(|| value.to_vec()),
            "linkpath" => self.target = given.then(|| value.to_vec()),
            "size" => self.size = given.then(|| number(value)).transpose()?,
            "uid" => self.uid = given.then(|| number(value)).transpose()?,
            "gid" => self.gid = given.then(|| number(value)).transpose()?,
            "mtime" => self.mtime = moment(value),
            _of_no_use => {}
        }
        Ok(())
    }
}

impl SparseWords {
    fn record(&mut self, word: &str, value: &[u8]) -> Result<(), LayerError> {
        self.is_meant = true;
        match word {
            "major" => self.major = number(value)?,
            "name" => self.name = Some(value.to_vec()),
            "size" | "realsize" => self.size = Some(number(value)?),
            "offset" | "numbytes" => self.numbers.push(number(value)?),
            "map" => {
                let numbers = value.split(|byte| *byte == b',').map(number);
                self.numbers = numbers.collect::<Result<_, _>>()?;
            }
            _of_no_use => {}
        }
        if self.numbers.len() > 2 * SEGMENTS_MAX {
            return Err(broken("a sparse file has too many holes"));
        }
        Ok(())
    }
}

fn kind_of(flag: u8, path: &Path) -> Option<Kind> {
    match flag {
        // Before there was a flag for directories their names told.
        0 if path.as_os_str().as_encoded_bytes().ends_with(b"/") => Some(Kind::Directory),
        0 | b'0' | b'7' | b'S' => Some(Kind::File),
        b'1' => Some(Kind::HardLink),
        b'2' => Some(Kind::Symlink),
        b'3' => Some(Kind::Character),
        b'4' => Some(Kind::Block),
        b'5' => Some(Kind::Directory),
        b'6' => Some(Kind::Fifo),
        _other => None,
    }
}

fn sum_is_right(block: &[u8; BLOCK_BYTES], header: &tar::Header) -> bool {
    let sum = block.iter().enumerate().map(|(at, byte)| match at {
        // The sum itself counts as spaces.
        148..156 => u32::from(b' '),
        _rest => u32::from(*byte),
    });
    header.cksum().is_ok_and(|told| told == sum.sum::<u32>())
}

/// The number in a field of a header; one that was left empty is 0.
fn told<T: Default>(field: &[u8], parsed: std::io::Result<T>) -> Result<T, LayerError> {
    let is_empty = field.iter().all(|byte| matches!(byte, 0 | b' '));
    if is_empty {
        Ok(T::default())
    } else {
        parsed.map_err(LayerError::Tar)
    }
}

fn checked(path: Vec<u8>) -> Result<PathBuf, LayerError> {
    if path.len() >= PATH_BYTES_MAX || path.contains(&0) {
        return Err(broken("a name in it is none"));
    }
    Ok(PathBuf::from(OsString::from_vec(path)))
}

fn without_end(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}

fn number(digits: &[u8]) -> Result<u64, LayerError> {
    let text = std::str::from_utf8(digits)
        .ok()
        .filter(|text| !text.starts_with('+'));
    let parsed = text.and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| broken("a number in an extended header is none"))
}

/// Seconds with a fraction, also before 1970; what is none tells nothing.
fn moment(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match (text.starts_with('-'), nanoseconds) {
        (_, 0) | (false, _) => Some((seconds, nanoseconds)),
        (true, part) => Some((seconds.checked_sub(1)?, 1_000_000_000 - part)),
    }
}

fn padding_of(size: u64) -> u64 {
    let block = BLOCK_BYTES as u64;
    (block - size % block) % block
}

fn broken(reason: &'static str) -> LayerError {
    LayerError::Tar(std::io::Error::new(std::io::ErrorKind::InvalidData, reason))
}
