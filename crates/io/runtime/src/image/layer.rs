//! Unpacking one layer into a directory of its own, so that overlayfs can stack it.
//!
//! A layer is written by a stranger. Every path is walked from the layer's directory one name at a time and never
//! through a symbolic link, so nothing can be put outside; `..` is refused; devices are left out; what a deletion means
//! is translated into what overlayfs understands (a 0/0 character device, the `opaque` attribute).

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

/// Files of one layer; a full desktop distribution has fewer.
const ENTRIES_MAX: u64 = 1_000_000;
/// Bytes of one unpacked layer.
const LAYER_BYTES_MAX: u64 = 32 * 1024 * 1024 * 1024;
const PATH_DEPTH_MAX: usize = 128;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
pub(crate) const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";
/// The only attribute that programs in images depend on.
const CAPABILITY_RECORD: &str = "SCHILY.xattr.security.capability";

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum LayerError {
    /// The layer itself is at fault.
    #[error("{path}: {reason}")]
    Refused { path: String, reason: &'static str },
    #[error("it is no tar archive, or a broken one: {0}")]
    Tar(std::io::Error),
    /// The disk is at fault.
    #[error("write {path}")]
    Write {
        path: String,
        #[source]
        source: std::io::Error,
    },
}

/// What a layer takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    pub(super) size_bytes: u64,
    entries: u64,
}

/// Unpacks the uncompressed tar `from` into the empty directory `into`.
pub(super) fn unpack(from: impl Read, into: &Path) -> Result<Unpacked, LayerError> {
    let mut unpacker = Unpacker {
        top: open_top(into)?,
        done: Unpacked::default(),
    };
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries().map_err(LayerError::Tar)? {
        unpacker.entry(&mut entry.map_err(LayerError::Tar)?)?;
    }
    // The end-of-archive mark may be followed by padding, which belongs to the digest.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).map_err(LayerError::Tar)?;
    Ok(unpacker.done)
}

fn open_top(into: &Path) -> Result<OwnedFd, LayerError> {
    rustix::fs::openat(CWD, into, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        LayerError::Write {
            path: into.display().to_string(),
            source: errno.into(),
        }
    })
}

struct Unpacker {
    top: OwnedFd,
    done: Unpacked,
}

/// What the header says about ownership and rights.
struct Attributes {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    mtime_s: i64,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), LayerError> {
        let path = entry.path().map_err(LayerError::Tar)?.into_owned();
        let names = names(&path)?;
        self.count(&path, entry.size())?;
        let Some((&name, above)) = names.split_last() else {
            // The top directory itself.
            return Ok(());
        };
        let parent = self.directory(above, &path)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX) {
            return whiteout(&parent, name, hidden, &path);
        }
        let attributes = attributes(entry.header())?;
        match entry.header().entry_type() {
            kind if kind.is_file() => file(&parent, name, entry, &attributes, &path),
            tar::EntryType::Directory => directory(&parent, name, &attributes, &path),
            tar::EntryType::Symlink => {
                let target = target(entry, &path)?;
                symlink(&parent, name, &target, &attributes, &path)
            }
            tar::EntryType::Link => {
                let target = target(entry, &path)?;
                self.hard_link(&parent, name, &target, &path)
            }
            tar::EntryType::Fifo => {
                clear(&parent, name, &path)?;
                rustix::fs::mknodat(&parent, name, FileType::Fifo, attributes.mode, 0)
                    .map_err(|errno| wrote(&path, errno))?;
                own(&parent, name, &attributes, &path)
            }
            // The container gets its own /dev; a device in an image could only be used to get out of it.
            tar::EntryType::Char | tar::EntryType::Block => Ok(()),
            tar::EntryType::XGlobalHeader => Ok(()),
            _ => Err(refused(&path, "it is of a kind that layers do not have")),
        }
    }

    fn count(&mut self, path: &Path, bytes: u64) -> Result<(), LayerError> {
        self.done.entries += 1;
        self.done.size_bytes = self.done.size_bytes.saturating_add(bytes);
        if self.done.entries > ENTRIES_MAX {
            return Err(refused(path, "the layer has too many files"));
        }
        if self.done.size_bytes > LAYER_BYTES_MAX {
            return Err(refused(path, "the layer is too large"));
        }
        Ok(())
    }

    /// Opens the directory `names` below the top, making what is missing, and following no symbolic link.
    fn directory(&self, names: &[&OsStr], path: &Path) -> Result<OwnedFd, LayerError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = self.top.try_clone().map_err(|source| write_error(path, source))?;
        for name in names {
            at = match rustix::fs::openat(&at, *name, flags, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    let mode = Mode::from_raw_mode(0o755);
                    rustix::fs::mkdirat(&at, *name, mode)
                        .and_then(|()| rustix::fs::openat(&at, *name, flags, Mode::empty()))
                        .map_err(|errno| wrote(path, errno))?
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Err(refused(path, "it lies below something that is no directory"));
                }
                Err(errno) => return Err(wrote(path, errno)),
            };
        }
        Ok(at)
    }

    fn hard_link(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        target: &Path,
        path: &Path,
    ) -> Result<(), LayerError> {
        let target_names = names(target)?;
        let Some((&target_name, above)) = target_names.split_last() else {
            return Err(refused(path, "it is a hard link to the top directory"));
        };
        let target_parent = self.directory(above, path)?;
        clear(parent, name, path)?;
        match rustix::fs::linkat(&target_parent, target_name, parent, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Err(refused(
                path,
                "it is a hard link to a file that is not in its layer",
            )),
            Err(errno) => Err(wrote(path, errno)),
        }
    }
}

/// The names in a path from the top; `..` is refused, `/` and `.` mean nothing.
fn names(path: &Path) -> Result<Vec<&OsStr>, LayerError> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refused(path, "it leads out of the image"));
            }
        }
    }
    if names.len() > PATH_DEPTH_MAX {
        return Err(refused(path, "it is nested too deeply"));
    }
    Ok(names)
}

fn target<R: Read>(entry: &tar::Entry<'_, R>, path: &Path) -> Result<std::path::PathBuf, LayerError> {
    let target = entry.link_name().map_err(LayerError::Tar)?;
    target
        .map(std::borrow::Cow::into_owned)
        .ok_or_else(|| refused(path, "it is a link to nothing"))
}

fn attributes(header: &tar::Header) -> Result<Attributes, LayerError> {
    let id = |id: std::io::Result<u64>| -> Result<u32, LayerError> {
        u32::try_from(id.map_err(LayerError::Tar)?)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| refused(Path::new("owner"), "the number is too large"))
    };
    Ok(Attributes {
        mode: Mode::from_raw_mode(header.mode().map_err(LayerError::Tar)? & 0o7777),
        uid: Uid::from_raw(id(header.uid())?),
        gid: Gid::from_raw(id(header.gid())?),
        mtime_s: i64::try_from(header.mtime().map_err(LayerError::Tar)?).unwrap_or(0),
    })
}

/// Removes what an earlier entry of the same layer put there.
fn clear(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), LayerError> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
            .map_err(|_| refused(path, "it replaces a directory that is not empty")),
        Err(errno) => Err(wrote(path, errno)),
    }
}

fn file<R: Read>(
    parent: &OwnedFd,
    name: &OsStr,
    entry: &mut tar::Entry<'_, R>,
    attributes: &Attributes,
    path: &Path,
) -> Result<(), LayerError> {
    clear(parent, name, path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| wrote(path, errno))?;
    let mut file = File::from(fd);
    let size = entry.size();
    let copied = std::io::copy(entry, &mut file).map_err(|source| write_error(path, source))?;
    if copied != size {
        return Err(refused(path, "it is truncated"));
    }
    // Changing the owner clears the set-user-id bit and the capabilities, so they come after.
    rustix::fs::fchown(&file, Some(attributes.uid), Some(attributes.gid))
        .map_err(|errno| wrote(path, errno))?;
    rustix::fs::fchmod(&file, attributes.mode).map_err(|errno| wrote(path, errno))?;
    if let Some(capability) = capability(entry)? {
        rustix::fs::fsetxattr(&file, "security.capability", &capability, XattrFlags::empty())
            .map_err(|errno| wrote(path, errno))?;
    }
    rustix::fs::futimens(&file, &times(attributes)).map_err(|errno| wrote(path, errno))
}

fn capability<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Option<Vec<u8>>, LayerError> {
    let Some(extensions) = entry.pax_extensions().map_err(LayerError::Tar)? else {
        return Ok(None);
    };
    for extension in extensions {
        let extension = extension.map_err(LayerError::Tar)?;
        if extension.key_bytes() == CAPABILITY_RECORD.as_bytes() {
            return Ok(Some(extension.value_bytes().to_vec()));
        }
    }
    Ok(None)
}

fn directory(parent: &OwnedFd, name: &OsStr, attributes: &Attributes, path: &Path) -> Result<(), LayerError> {
    match rustix::fs::mkdirat(parent, name, attributes.mode) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| wrote(path, errno))?;
            if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                clear(parent, name, path)?;
                rustix::fs::mkdirat(parent, name, attributes.mode).map_err(|errno| wrote(path, errno))?;
            }
        }
        Err(errno) => return Err(wrote(path, errno)),
    }
    own(parent, name, attributes, path)?;
    rustix::fs::chmodat(parent, name, attributes.mode, AtFlags::empty()).map_err(|errno| wrote(path, errno))
}

fn symlink(
    parent: &OwnedFd,
    name: &OsStr,
    target: &Path,
    attributes: &Attributes,
    path: &Path,
) -> Result<(), LayerError> {
    clear(parent, name, path)?;
    rustix::fs::symlinkat(target, parent, name).map_err(|errno| wrote(path, errno))?;
    own(parent, name, attributes, path)
}

fn own(parent: &OwnedFd, name: &OsStr, attributes: &Attributes, path: &Path) -> Result<(), LayerError> {
    rustix::fs::chownat(
        parent.as_fd(),
        name,
        Some(attributes.uid),
        Some(attributes.gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(|errno| wrote(path, errno))
}

/// A deletion: of everything below its directory in the layers under this one, or of one name in them.
fn whiteout(parent: &OwnedFd, name: &OsStr, hidden: &[u8], path: &Path) -> Result<(), LayerError> {
    if name.as_bytes() == WHITEOUT_OPAQUE {
        return rustix::fs::fsetxattr(parent, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
            .map_err(|errno| wrote(path, errno));
    }
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(refused(path, "it deletes nothing that has a name"));
    }
    let hidden = OsStr::from_bytes(hidden);
    match rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
        // The same layer puts something in place of what it deletes.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(wrote(path, errno)),
    }
}

fn times(attributes: &Attributes) -> Timestamps {
    let moment = Timespec {
        tv_sec: attributes.mtime_s,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: moment,
        last_modification: moment,
    }
}

fn refused(path: &Path, reason: &'static str) -> LayerError {
    LayerError::Refused {
        path: path.display().to_string(),
        reason,
    }
}

fn wrote(path: &Path, errno: Errno) -> LayerError {
    write_error(path, errno.into())
}

/// A read error of the archive surfaces while a file is written; the two are told apart by their kind.
fn write_error(path: &Path, source: std::io::Error) -> LayerError {
    if source.raw_os_error().is_none() {
        return LayerError::Tar(source);
    }
    LayerError::Write {
        path: path.display().to_string(),
        source,
    }
}
