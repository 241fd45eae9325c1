//! A directory of files that changes all at once.
//!
//! The files stand in a directory of their own, named by the time; `..data` points to it, and what containers see points
//! through `..data`. A change writes a new directory and moves the one link, so a reader sees either all old files or
//! all new ones. When nothing has changed nothing is written, not even a mode.

use kedge_api::Timestamp;
use kedge_host::ownership::{self, Access};
use kedge_wire::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink,
};
use std::path::{Path, PathBuf};

/// The link that is moved.
pub(super) const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";
/// Directories that carry the same second in their name; more cannot be left over, because each writing removes them.
const NAMES_MAX: u32 = 1000;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
    /// Belongs to this user instead of root.
    pub(super) owner: Option<u32>,
}

/// Paths relative to the volume; checked to stay below it.
pub(super) type Files = BTreeMap<PathBuf, File>;

/// Makes `dir` hold exactly these files; says whether anything had to be written.
pub(super) fn write(dir: &Path, files: &Files, fs_group: Option<u32>, now: Time) -> io::Result<bool> {
    let old = std::fs::read_link(dir.join(DATA)).ok();
    if old
        .as_ref()
        .is_some_and(|old| is_same(&dir.join(old), files, fs_group))
    {
        return link_names(dir, files);
    }
    let name = make_directory(dir, now)?;
    let fresh = dir.join(&name);
    for (path, file) in files {
        write_file(&fresh, path, file)?;
    }
    if let Some(group) = fs_group {
        ownership::give(&fresh, group, Access::Read).map_err(io::Error::other)?;
    }
    let staged = dir.join(DATA_NEW);
    remove_if_there(&staged)?;
    symlink(&name, &staged)?;
    std::fs::rename(&staged, dir.join(DATA))?;
    link_names(dir, files)?;
    remove_left_over(dir, &name)?;
    Ok(true)
}

/// `..2026_01_31_12_00_00.1`: the second and a number.
fn make_directory(dir: &Path, now: Time) -> io::Result<OsString> {
    let second = Timestamp::from_ms(now.as_ms()).to_string();
    let second = second.trim_end_matches('Z').replace(['-', ':', 'T'], "_");
    for number in 0..NAMES_MAX {
        let name = OsString::from(format!("..{second}.{number}"));
        let path = dir.join(&name);
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {
                std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
                return Ok(name);
            }
        }
    }
    Err(io::Error::other(
        "too many directories of earlier contents are left over",
    ))
}

fn write_file(root: &Path, path: &Path, file: &File) -> io::Result<()> {
    let target = root.join(path);
    if let Some(parent) = target.parent().filter(|parent| *parent != root) {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    let mut open = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&target)?;
    open.write_all(&file.bytes)?;
    if file.owner.is_some() {
        ownership::own(&target, file.owner, None).map_err(io::Error::other)?;
    }
    // Not by the mode of the opening, which this process's mask would cut.
    open.set_permissions(Permissions::from_mode(file.mode))
}

fn is_same(root: &Path, files: &Files, fs_group: Option<u32>) -> bool {
    files
        .iter()
        .all(|(path, file)| is_same_file(&root.join(path), file, fs_group))
        && count(root).is_ok_and(|count| count == files.len())
}

fn is_same_file(path: &Path, file: &File, fs_group: Option<u32>) -> bool {
    let Ok(found) = path.symlink_metadata() else {
        return false;
    };
    // Without root nobody can give files away, and the hollow runtime does not miss it.
    let owned = !kedge_host::is_root()
        || file.owner.unwrap_or(0) == found.uid() && fs_group.unwrap_or(0) == found.gid();
    let mode = match fs_group {
        Some(_) => file.mode | Access::Read.file_bits(),
        None => file.mode,
    };
    let alike = found.is_file()
        && found.len() == file.bytes.len() as u64
        && found.permissions().mode() & 0o7777 == mode
        && owned;
    alike && holds(path, &file.bytes).unwrap_or(false)
}

/// Compares piece by piece: a map may be a megabyte, and most are looked at without need.
fn holds(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let mut file = std::fs::File::open(path)?;
    let mut piece = [0; 8192];
    let mut rest = bytes;
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(rest.is_empty());
        }
        if rest.len() < read || rest[..read] != piece[..read] {
            return Ok(false);
        }
        rest = &rest[read..];
    }
}

fn count(dir: &Path) -> io::Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() {
            count(&entry.path())?
        } else {
            1
        };
    }
    Ok(files)
}

/// The visible names: one link per first part of a path. Says whether one had to be made or removed.
fn link_names(dir: &Path, files: &Files) -> io::Result<bool> {
    let tops: BTreeSet<OsString> = files
        .keys()
        .filter_map(|path| Some(path.components().next()?.as_os_str().to_owned()))
        .collect();
    let mut changed = false;
    for top in &tops {
        let link = dir.join(top);
        match link.symlink_metadata() {
            Ok(found) if found.is_symlink() => continue,
            // Made for a sub path that did not exist yet.
            Ok(_) => std::fs::remove_dir(&link)?,
            Err(_) => {}
        }
        symlink(Path::new(DATA).join(top), link)?;
        changed = true;
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with("..");
        if !hidden && !tops.contains(&name) && entry.file_type()?.is_symlink() {
            remove_if_there(&dir.join(name))?;
            changed = true;
        }
    }
    Ok(changed)
}

/// The old content, and what a crash in the middle of a change left.
fn remove_left_over(dir: &Path, current: &OsString) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_string_lossy().starts_with("..");
        if ours && name != *current && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;

    fn files(list: &[(&str, &str)]) -> Files {
        let file = |text: &str| File {
            bytes: text.as_bytes().to_vec(),
            mode: 0o640,
            owner: None,
        };
        list.iter()
            .map(|(path, text)| (PathBuf::from(path), file(text)))
            .collect()
    }

    const NOW: Time = Time::from_ms(1_800_000_000_000);

    #[test]
    fn changes_at_once_and_forgets_what_is_gone() {
        let dir = TempDir::new();
        let write = |list: &[(&str, &str)]| write(&dir, &files(list), None, NOW).unwrap();
        assert!(write(&[("a", "1"), ("sub/b", "2")]));
        assert_eq!(std::fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        let mode = std::fs::metadata(dir.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let first = std::fs::read_link(dir.join(DATA)).unwrap();
        assert_eq!(first, Path::new("..2027_01_15_08_00_00.0"));
        assert!(!write(&[("a", "1"), ("sub/b", "2")]), "nothing changed");
        assert_eq!(std::fs::read_link(dir.join(DATA)).unwrap(), first);
        assert!(write(&[("a", "3")]));
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(dir.join("sub").symlink_metadata().is_err());
        assert!(!dir.join(first).exists());
        assert!(write(&[]));
        assert!(dir.join("a").symlink_metadata().is_err());
    }

    #[test]
    fn nothing_is_touched_when_nothing_changed() {
        let dir = TempDir::new();
        let wanted = files(&[("a", &"x".repeat(20_000)), ("sub/b", "2")]);
        assert!(write(&dir, &wanted, Some(7), NOW).unwrap());
        let changes = |path: &Path| {
            path.metadata()
                .map(|found| (found.ctime(), found.ctime_nsec()))
                .unwrap()
        };
        let places = [dir.join("."), dir.join(DATA), dir.join("a"), dir.join("sub/b")];
        let before: Vec<_> = places.iter().map(|path| changes(path)).collect();
        assert!(!write(&dir, &wanted, Some(7), NOW).unwrap());
        let after: Vec<_> = places.iter().map(|path| changes(path)).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn what_a_crash_left_goes_with_the_next_change() {
        let dir = TempDir::new();
        write(&dir, &files(&[("a", "1")]), None, NOW).unwrap();
        std::fs::create_dir(dir.join("..2027_01_15_08_00_00.1")).unwrap();
        std::fs::write(dir.join("..2027_01_15_08_00_00.1/a"), "half").unwrap();
        symlink("..2027_01_15_08_00_00.1", dir.join(DATA_NEW)).unwrap();
        write(&dir, &files(&[("a", "2")]), None, NOW).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(&*dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["..2027_01_15_08_00_00.2", "..data", "a"]);
    }
}
