//! Arguments, environment, chance.

use super::errno::Errno;
use super::guest::{Guest, Range};
use rustix::rand::{GetRandomFlags, getrandom};
use std::os::unix::ffi::OsStringExt;

/// By this variable the libraries of some languages learn where relative paths begin; the interface has no word for it.
const DIRECTORY: &str = "PWD";

/// This process's own, with the working directory.
pub(super) fn environment() -> Vec<Vec<u8>> {
    let pair = |name: std::ffi::OsString, value: std::ffi::OsString| {
        [name.into_vec(), b"=".to_vec(), value.into_vec()].concat()
    };
    let mut all: Vec<Vec<u8>> = std::env::vars_os()
        .map(|(name, value)| pair(name, value))
        .collect();
    if std::env::var_os(DIRECTORY).is_none()
        && let Ok(directory) = std::env::current_dir()
    {
        all.push(pair(DIRECTORY.into(), directory.into_os_string()));
    }
    all
}

/// Writes texts one after another, each with a zero at its end, and where each begins.
pub(super) fn put(texts: &[Vec<u8>], guest: &mut Guest<'_>, pointers: u32, at: u32) -> Result<(), Errno> {
    let (mut pointer, mut at) = (pointers, at);
    for text in texts {
        guest.put_u32(pointer, at)?;
        guest.put(at, text)?;
        let length = u32::try_from(text.len()).map_err(|_| Errno::FAULT)?;
        let end = at.checked_add(length).ok_or(Errno::FAULT)?;
        guest.put(end, &[0])?;
        at = end.checked_add(1).ok_or(Errno::FAULT)?;
        pointer = pointer.checked_add(4).ok_or(Errno::FAULT)?;
    }
    Ok(())
}

/// How many there are, and how many bytes they take.
pub(super) fn put_sizes(
    texts: &[Vec<u8>],
    guest: &mut Guest<'_>,
    count: u32,
    bytes: u32,
) -> Result<(), Errno> {
    guest.put_count(count, texts.len())?;
    guest.put_count(bytes, texts.iter().map(|text| text.len() + 1).sum())
}

pub(super) fn random(guest: &mut Guest<'_>, range: Range) -> Result<(), Errno> {
    let mut rest = guest.bytes_mut(range)?;
    while !rest.is_empty() {
        let given = rustix::io::retry_on_intr(|| getrandom(&mut *rest, GetRandomFlags::empty()))?;
        rest = &mut rest[given..];
    }
    Ok(())
}
