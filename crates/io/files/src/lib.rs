//! Small files that only their owner may read, replaced as a whole.
//!
//! **Duty.** Whoever reads such a file, also after a power cut in the middle, finds what was there before or what was
//! written, never a part.
//!
//! **Inputs and outputs.** Paths and bytes; `std::io::Error`, to which the caller adds the path and the reason.
//!
//! **Never.** It does not know what is in a file, keeps nothing open and locks nothing: two who write the same file at
//! once are told so by an error.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Result, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Replaces `path` by `bytes`. When this returns, a power cut does not take them.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes, Flush::Now)?;
    sync_directory(directory_of(path))
}

/// Replaces `path` by `bytes` for as long as this boot lasts.
///
/// A process that is killed takes nothing with it that was written, flushed or not. So what means nothing after the next
/// boot is not flushed: on a device's card a flush takes as long as starting a container. A power cut may leave the file
/// empty or torn, and whoever reads it has to expect that.
pub fn replace_for_boot(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes, Flush::Later)
}

/// Removes a file; one that is gone already is no error.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes a directory and its parents, for their owner only. Those that are there stay as they are.
pub fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
}

/// Makes what was renamed and removed in a directory outlive a power cut.
pub fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)?.sync_all()
}

/// The directory in which a file is; the current one of a bare name.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        Some(_) | None => Path::new("."),
    }
}

/// Whether the content must reach the disk before its name does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    Now,
    Later,
}

fn write(path: &Path, bytes: &[u8], flush: Flush) -> Result<()> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let beside = path.with_file_name(format!(".{}.tmp", name.to_string_lossy()));
    // One may be left by somebody who was killed, with whatever mode.
    remove(&beside)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(&beside)?;
    file.write_all(bytes)?;
    if flush == Flush::Now {
        file.sync_all()?;
    }
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("kedge-files-{}-{name}", std::process::id()));
        make_directory(&place).unwrap();
        place
    }

    fn names(place: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(place).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_file_is_replaced_and_its_owners_only() {
        for replace in [replace, replace_for_boot] {
            let place = place("replaced");
            let path = place.join("file");
            replace(&path, b"first, and longer").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
            replace(&path, b"second").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"second");
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert_eq!(names(&place), ["file"]);
            std::fs::remove_dir_all(place).unwrap();
        }
    }

    #[test]
    fn what_somebody_left_is_not_written_through() {
        let place = place("left");
        let (path, other) = (place.join("file"), place.join("other"));
        std::fs::write(&other, b"another's").unwrap();
        symlink(&other, place.join(".file.tmp")).unwrap();
        symlink(&other, &path).unwrap();
        replace(&path, b"ours").unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"another's");
        assert_eq!(std::fs::read(&path).unwrap(), b"ours");
        assert_eq!(names(&place), ["file", "other"]);
        std::fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn a_write_that_fails_leaves_the_file_as_it_was() {
        let place = place("fails");
        let path = place.join("file");
        replace(&path, b"first").unwrap();
        // A directory of this name cannot be removed as a file.
        make_directory(&place.join(".file.tmp")).unwrap();
        replace(&path, b"second").unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        replace(Path::new("/"), b"").unwrap_err();
        std::fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn who_is_gone_is_removed_already() {
        let place = place("gone");
        remove(&place.join("file")).unwrap();
        remove(&place).unwrap_err();
        make_directory(&place).unwrap();
        assert_eq!(directory_of(Path::new("file")), Path::new("."));
        assert_eq!(directory_of(&place.join("file")), place);
        std::fs::remove_dir_all(place).unwrap();
    }
}
