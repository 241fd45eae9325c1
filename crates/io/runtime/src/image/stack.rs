//! What stacked layers show at a path, as overlayfs would: the uppermost that has a name counts, directories are merged,
//! and deletions hide what lies below them.
//!
//! Every name is opened by itself and never followed, so nothing leads out of the layers; links on the way are read and
//! followed by hand.

use super::layer::{OPAQUE_ATTRIBUTE, USER_OPAQUE_ATTRIBUTE};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// As many as the kernel follows.
const LINKS_MAX: usize = 40;

/// What stands at a path.
pub(super) enum Seen {
    /// The directories that are shown as one, uppermost first, with the number of the layer that each is in.
    Directory(Vec<(usize, OwnedFd)>),
    /// Anything else.
    Other {
        layer: usize,
        parent: OwnedFd,
        /// Where it is, without links on the way.
        path: PathBuf,
        meta: Stat,
    },
}

/// Looks for a path in layers, uppermost first. The last name is not followed.
pub(super) fn look(layers: &[BorrowedFd<'_>], path: &[&OsStr]) -> Result<Option<Seen>, Errno> {
    let mut names: Vec<OsString> = path.iter().map(|name| (*name).to_owned()).collect();
    for _ in 0..=LINKS_MAX {
        match walk(layers, &names)? {
            Walked::Found(seen) => return Ok(seen),
            Walked::Elsewhere(further) => names = further,
        }
    }
    Err(Errno::LOOP)
}

enum Walked {
    Found(Option<Seen>),
    /// A link on the way leads on to this path.
    Elsewhere(Vec<OsString>),
}

fn walk(layers: &[BorrowedFd<'_>], names: &[OsString]) -> Result<Walked, Errno> {
    let mut merged = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        merged.push((number, open_directory(*layer, OsStr::new("."))?));
    }
    for (depth, name) in names.iter().enumerate() {
        let (layer, parent, meta) = match step(merged, name)? {
            Step::Nothing => return Ok(Walked::Found(None)),
            Step::Directory(below) => {
                merged = below;
                continue;
            }
            Step::Other(layer, parent, meta) => (layer, parent, meta),
        };
        let rest = &names[depth + 1..];
        if rest.is_empty() {
            let path = names.iter().collect();
            return Ok(Walked::Found(Some(Seen::Other {
                layer,
                parent,
                path,
                meta,
            })));
        }
        if FileType::from_raw_mode(meta.st_mode) != FileType::Symlink {
            return Ok(Walked::Found(None));
        }
        let target = rustix::fs::readlinkat(&parent, name, Vec::new())?;
        let target = Path::new(OsStr::from_bytes(target.to_bytes()));
        return Ok(Walked::Elsewhere(follow(&names[..depth], target, rest)));
    }
    Ok(Walked::Found(Some(Seen::Directory(merged))))
}

enum Step {
    Nothing,
    Directory(Vec<(usize, OwnedFd)>),
    Other(usize, OwnedFd, Stat),
}

/// One name in directories that are shown as one.
fn step(merged: Vec<(usize, OwnedFd)>, name: &OsStr) -> Result<Step, Errno> {
    let mut below = Vec::new();
    for (layer, directory) in merged {
        let meta = match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            looked => looked?,
        };
        if FileType::from_raw_mode(meta.st_mode) == FileType::Directory {
            let opened = open_directory(directory.as_fd(), name)?;
            let hides = is_opaque(opened.as_fd());
            below.push((layer, opened));
            if hides {
                break;
            }
        } else if below.is_empty() && !is_whiteout(&meta) {
            return Ok(Step::Other(layer, directory, meta));
        } else {
            break;
        }
    }
    Ok(if below.is_empty() {
        Step::Nothing
    } else {
        Step::Directory(below)
    })
}

/// The path behind a link that stands in the directory `above`, and the names after it. The top has nothing above it.
fn follow(above: &[OsString], target: &Path, rest: &[OsString]) -> Vec<OsString> {
    let mut names = if target.is_absolute() {
        Vec::new()
    } else {
        above.to_vec()
    };
    for component in target.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => drop(names.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names.extend_from_slice(rest);
    names
}

fn open_directory(at: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// Whether overlayfs takes it for a deletion.
pub(crate) fn is_whiteout(meta: &Stat) -> bool {
    FileType::from_raw_mode(meta.st_mode) == FileType::CharacterDevice && meta.st_rdev == 0
}

/// Whether a directory hides what lies below it.
pub(crate) fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    [OPAQUE_ATTRIBUTE, USER_OPAQUE_ATTRIBUTE].iter().any(|name| {
        let mut value = [0; 1];
        rustix::fs::fgetxattr(directory, *name, &mut value).is_ok_and(|length| value[..length] == *b"y")
    })
}
