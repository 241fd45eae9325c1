//! The module's memory. What it says of places and lengths is believed only as far as its memory reaches.

use super::errno::Errno;

/// As the kernel limits it.
const VECTORS_MAX: u32 = 1024;
const PATH_BYTES_MAX: u32 = 4096;
const VECTOR_BYTES: u32 = 8;

/// A place in the module's memory; of a list, `length` is how many it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) at: u32,
    pub(super) length: u32,
}

/// The memory of the module that called.
#[derive(Debug)]
pub(super) struct Guest<'a>(&'a mut [u8]);

impl<'a> Guest<'a> {
    pub(super) fn new(memory: &'a mut [u8]) -> Self {
        Self(memory)
    }

    pub(super) fn bytes(&self, range: Range) -> Result<&[u8], Errno> {
        let (start, end) = bounds(range)?;
        self.0.get(start..end).ok_or(Errno::FAULT)
    }

    pub(super) fn bytes_mut(&mut self, range: Range) -> Result<&mut [u8], Errno> {
        let (start, end) = bounds(range)?;
        self.0.get_mut(start..end).ok_or(Errno::FAULT)
    }

    fn array<const N: usize>(&self, at: u32) -> Result<[u8; N], Errno> {
        let start = usize::try_from(at).map_err(|_| Errno::FAULT)?;
        let found = self.0.get(start..).and_then(|rest| rest.first_chunk());
        found.copied().ok_or(Errno::FAULT)
    }

    pub(super) fn u8(&self, at: u32) -> Result<u8, Errno> {
        self.array(at).map(u8::from_le_bytes)
    }

    pub(super) fn u16(&self, at: u32) -> Result<u16, Errno> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&self, at: u32) -> Result<u32, Errno> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, at: u32) -> Result<u64, Errno> {
        self.array(at).map(u64::from_le_bytes)
    }

    pub(super) fn put(&mut self, at: u32, bytes: &[u8]) -> Result<(), Errno> {
        let length = u32::try_from(bytes.len()).map_err(|_| Errno::FAULT)?;
        self.bytes_mut(Range { at, length })?.copy_from_slice(bytes);
        Ok(())
    }

    pub(super) fn put_u32(&mut self, at: u32, value: u32) -> Result<(), Errno> {
        self.put(at, &value.to_le_bytes())
    }

    pub(super) fn put_u64(&mut self, at: u32, value: u64) -> Result<(), Errno> {
        self.put(at, &value.to_le_bytes())
    }

    /// A number of bytes that were read or written, which are never more than the memory has.
    pub(super) fn put_count(&mut self, at: u32, count: usize) -> Result<(), Errno> {
        self.put_u32(at, u32::try_from(count).map_err(|_| Errno::FAULT)?)
    }

    /// A path, which is text without zeros.
    pub(super) fn path(&self, range: Range) -> Result<&str, Errno> {
        if range.length >= PATH_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let path = std::str::from_utf8(self.bytes(range)?).map_err(|_| Errno::ILSEQ)?;
        match path {
            "" => Err(Errno::NOENT),
            _ if path.contains('\0') => Err(Errno::INVAL),
            _ => Ok(path),
        }
    }

    /// The places that a list of vectors names.
    pub(super) fn vectors(&self, list: Range) -> Result<Vec<Range>, Errno> {
        if list.length > VECTORS_MAX {
            return Err(Errno::INVAL);
        }
        let vector = |number: u32| {
            let at = list.at.checked_add(number * VECTOR_BYTES).ok_or(Errno::FAULT)?;
            let length = self.u32(at.checked_add(4).ok_or(Errno::FAULT)?)?;
            Ok(Range {
                at: self.u32(at)?,
                length,
            })
        };
        (0..list.length).map(vector).collect()
    }
}

fn bounds(range: Range) -> Result<(usize, usize), Errno> {
    let start = usize::try_from(range.at).map_err(|_| Errno::FAULT)?;
    let length = usize::try_from(range.length).map_err(|_| Errno::FAULT)?;
    Ok((start, start.checked_add(length).ok_or(Errno::FAULT)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_beyond_the_memory() {
        let mut memory = [0; 16];
        let mut guest = Guest::new(&mut memory);
        assert!(guest.bytes(Range { at: 0, length: 16 }).is_ok());
        assert!(guest.bytes(Range { at: 16, length: 0 }).is_ok());
        for (at, length) in [(0, 17), (17, 0), (16, 1), (u32::MAX, u32::MAX)] {
            assert_eq!(
                guest.bytes(Range { at, length }),
                Err(Errno::FAULT),
                "{at} {length}"
            );
        }
        assert_eq!(guest.u64(9), Err(Errno::FAULT));
        assert_eq!(guest.put_u64(u32::MAX, 1), Err(Errno::FAULT));
        assert_eq!(guest.put_u64(8, u64::MAX), Ok(()));
        assert_eq!(guest.path(Range { at: 8, length: 1 }), Err(Errno::ILSEQ));
        assert_eq!(guest.path(Range { at: 0, length: 1 }), Err(Errno::INVAL));
        assert_eq!(guest.path(Range { at: 0, length: 0 }), Err(Errno::NOENT));
        assert!(guest.vectors(Range { at: 8, length: 1 }).is_ok());
        assert!(guest.vectors(Range { at: 8, length: 2 }).is_err());
        assert!(
            guest
                .vectors(Range {
                    at: u32::MAX - 3,
                    length: 1
                })
                .is_err()
        );
        assert!(
            guest
                .vectors(Range {
                    at: 0,
                    length: u32::MAX
                })
                .is_err()
        );
    }
}
