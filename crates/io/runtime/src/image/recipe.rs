//! How to make the tar of a layer again from its unpacked files, byte by byte: everything that is no file's content, and
//! where the contents go. A recipe takes some thirty bytes a file, where the packed layer would take half of what the
//! unpacked one does.
//!
//! ```text
//!   gzip( 'L' length bytes | 'C' offset length path-length path | ... )     numbers are little-endian, 64 bits
//! ```

use super::layer::LayerError;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use rustix::fs::OFlags;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Headers of small files come in a row; they are kept together up to this.
const LITERAL_BYTES: usize = 16 * 1024;
/// All that is no content: a million headers with attributes fit.
const LITERALS_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// A path as the kernel takes it.
const PATH_BYTES_MAX: u64 = 4096;
const COPY_BYTES: usize = 128 * 1024;

const LITERAL: u8 = b'L';
const CONTENT: u8 = b'C';

/// A recipe that is being written while its layer is unpacked.
pub(super) struct Recipe {
    to: GzEncoder<BufWriter<File>>,
    place: PathBuf,
    literal: Vec<u8>,
    literals: u64,
    /// A content that may still grow.
    content: Option<(PathBuf, u64, u64)>,
    plain_bytes: u64,
}

impl Recipe {
    pub(super) fn create(place: &Path) -> Result<Self, LayerError> {
        let file = File::create(place).map_err(|source| LayerError::write(place, source))?;
        Ok(Self {
            to: GzEncoder::new(BufWriter::new(file), Compression::fast()),
            place: place.to_owned(),
            literal: Vec::with_capacity(LITERAL_BYTES),
            literals: 0,
            content: None,
            plain_bytes: 0,
        })
    }

    /// Bytes that stand in no file.
    pub(super) fn literal(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.write_content()?;
        self.literals += bytes.len() as u64;
        self.plain_bytes += bytes.len() as u64;
        if self.literals > LITERALS_BYTES_MAX {
            return Err(LayerError::refused(Path::new("tar"), "its headers are too long"));
        }
        self.literal.extend_from_slice(bytes);
        if self.literal.len() >= LITERAL_BYTES {
            self.write_literal()?;
        }
        Ok(())
    }

    /// Bytes that stand in a file.
    pub(super) fn content(&mut self, path: &Path, offset: u64, length: u64) -> Result<(), LayerError> {
        self.plain_bytes += length;
        match &mut self.content {
            Some((_, from, known)) if *from + *known == offset => *known += length,
            Some(_) | None => {
                self.write_content()?;
                self.write_literal()?;
                self.content = Some((path.to_owned(), offset, length));
            }
        }
        Ok(())
    }

    /// Bytes of the tar.
    pub(super) fn finish(mut self) -> Result<u64, LayerError> {
        self.write_content()?;
        self.write_literal()?;
        let place = self.place;
        let flushed = self.to.finish().and_then(|mut file| file.flush());
        flushed.map_err(|source| LayerError::write(&place, source))?;
        Ok(self.plain_bytes)
    }

    fn write_literal(&mut self) -> Result<(), LayerError> {
        if self.literal.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.literal);
        self.write(&[&[LITERAL], &(bytes.len() as u64).to_le_bytes(), &bytes])?;
        self.literal = bytes;
        self.literal.clear();
        Ok(())
    }

    fn write_content(&mut self) -> Result<(), LayerError> {
        let Some((path, offset, length)) = self.content.take() else {
            return Ok(());
        };
        let path = path.as_os_str().as_bytes();
        self.write(&[
            &[CONTENT],
            &offset.to_le_bytes(),
            &length.to_le_bytes(),
            &(path.len() as u64).to_le_bytes(),
            path,
        ])
    }

    fn write(&mut self, parts: &[&[u8]]) -> Result<(), LayerError> {
        let written = parts.iter().try_for_each(|part| self.to.write_all(part));
        written.map_err(|source| LayerError::write(&self.place, source))
    }
}

/// Writes the tar that the recipe at `place` describes, with the contents of the files below `top`. That it is the right
/// one is for the caller to see by its digest.
pub(super) fn replay(place: &Path, top: &OwnedFd, to: &mut impl Write) -> std::io::Result<()> {
    let mut from = BufReader::new(GzDecoder::new(BufReader::new(File::open(place)?)));
    let mut buffer = vec![0; COPY_BYTES];
    let mut open: Option<(PathBuf, File)> = None;
    loop {
        let mut kind = [0];
        if from.read(&mut kind)? == 0 {
            return Ok(());
        }
        let first = number(&mut from)?;
        match kind[0] {
            LITERAL => {
                if std::io::copy(&mut (&mut from).take(first), to)? != first {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            CONTENT => {
                let (length, path_length) = (number(&mut from)?, number(&mut from)?);
                if path_length > PATH_BYTES_MAX {
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
                let mut path = Vec::new();
                (&mut from).take(path_length).read_to_end(&mut path)?;
                let path = PathBuf::from(OsStr::from_bytes(&path));
                let file = match open.take() {
                    Some((known, file)) if known == path => file,
                    Some(_) | None => super::layer::open_below(top, &path, OFlags::RDONLY)?,
                };
                copy(&file, first, length, &mut buffer, to)?;
                open = Some((path, file));
            }
            _broken => return Err(std::io::ErrorKind::InvalidData.into()),
        }
    }
}

fn copy(
    file: &File,
    offset: u64,
    length: u64,
    buffer: &mut [u8],
    to: &mut impl Write,
) -> std::io::Result<()> {
    let mut done = 0;
    while done < length {
        let wanted = usize::try_from(length - done)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        match file.read_at(&mut buffer[..wanted], offset + done)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => {
                to.write_all(&buffer[..read])?;
                done += read as u64;
            }
        }
    }
    Ok(())
}

fn number(from: &mut impl Read) -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
