//! A directory of files that changes all at once.
//!
//! The files stand in a directory of their own, `..data` points to it, and what containers see points through `..data`.
//! A change writes a new directory and moves the one link, so a reader sees either all old files or all new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

/// The link that is moved.
pub(super) const DATA: &str = "..data";
const DATA_NEW: &str = "..data_new";

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
}

/// Paths relative to the volume; checked to stay below it.
pub(super) type Files = BTreeMap<PathBuf, File>;

/// Makes `dir` hold exactly these files. Does nothing when it does already.
pub(super) fn write(dir: &Path, files: &Files, fs_group: Option<u32>) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    let old = std::fs::read_link(dir.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| is_same(&dir.join(old), files)) {
        return link_names(dir, files);
    }
    let name = next_name(dir)?;
    let fresh = dir.join(&name);
    std::fs::create_dir(&fresh)?;
    for (path, file) in files {
        write_file(&fresh, path, file, fs_group)?;
    }
    let staged = dir.join(DATA_NEW);
    let _ = std::fs::remove_file(&staged);
    symlink(&name, &staged)?;
    std::fs::rename(&staged, dir.join(DATA))?;
    link_names(dir, files)?;
    if let Some(old) = old.filter(|old| old.components().count() == 1) {
        let _ = std::fs::remove_dir_all(dir.join(old));
    }
    Ok(())
}

/// `..v1`, `..v2`, …: one more than what is there, so that a crash in the middle leaves nothing in the way.
fn next_name(dir: &Path) -> io::Result<String> {
    let mut newest = 0_u64;
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("..v"))
            .and_then(|n| n.parse().ok());
        newest = newest.max(number.unwrap_or(0));
    }
    Ok(format!("..v{}", newest + 1))
}

fn write_file(root: &Path, path: &Path, file: &File, fs_group: Option<u32>) -> io::Result<()> {
    let target = root.join(path);
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&target, &file.bytes)?;
    // A group that shall read the files can, whatever their mode says.
    let mode = if fs_group.is_some() {
        file.mode | 0o040
    } else {
        file.mode
    };
    super::give_to_group(&target, fs_group)?;
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(mode))
}

fn is_same(root: &Path, files: &Files) -> bool {
    let same = |(path, file): (&PathBuf, &File)| {
        std::fs::read(root.join(path)).is_ok_and(|bytes| bytes == file.bytes)
    };
    files.iter().all(same) && count(root).is_ok_and(|count| count == files.len())
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

/// The visible names: one link per first part of a path.
fn link_names(dir: &Path, files: &Files) -> io::Result<()> {
    let tops: BTreeSet<OsString> = files
        .keys()
        .filter_map(|path| Some(path.components().next()?.as_os_str().to_owned()))
        .collect();
    for top in &tops {
        let link = dir.join(top);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(top), link)?;
        }
    }
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let hidden = name.to_string_lossy().starts_with("..");
        if !hidden && !tops.contains(&name) {
            let _ = std::fs::remove_file(dir.join(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter()
            .map(|(p, t)| {
                (
                    PathBuf::from(p),
                    File {
                        bytes: t.as_bytes().to_vec(),
                        mode: 0o640,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn changes_at_once_and_forgets_what_is_gone() {
        let dir = std::env::temp_dir().join(format!("kedge-edged-atomic-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        write(&dir, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        assert_eq!(
            std::fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777,
            0o640
        );
        let first = std::fs::read_link(dir.join(DATA)).unwrap();
        write(&dir, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(std::fs::read_link(dir.join(DATA)).unwrap(), first);
        write(&dir, &files(&[("a", "3")]), None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join("sub").exists() && dir.join("sub").symlink_metadata().is_err());
        assert!(!dir.join(first).exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
