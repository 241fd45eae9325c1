//! Unpacking one layer into a directory of its own, so that overlayfs can stack it.
//!
//! A layer is written by a stranger. Its directories are opened as if the layer were the root of everything, so that
//! neither `..`, nor an absolute path, nor a symbolic link leads out of it; the last name is never followed. What a
//! deletion means is translated into what overlayfs understands (a 0/0 character device, the `opaque` attribute), and
//! nothing else that overlayfs understands can come from a layer.

use super::recipe::Recipe;
use super::tarball::{Entry, Kind, Tarball};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

/// Files of one layer; a full desktop distribution has fewer.
const ENTRIES_MAX: u64 = 1_000_000;
/// Bytes of one unpacked layer.
const LAYER_BYTES_MAX: u64 = 32 * 1024 * 1024 * 1024;
const PATH_DEPTH_MAX: usize = 128;
/// Directories whose times are set at the end, because what is put into them changes them; those of more stay new.
const TIMED_DIRECTORIES_MAX: usize = 65_536;
const COPY_BYTES: usize = 128 * 1024;
/// Blocks of zeros become holes.
const HOLE_BYTES: usize = 4096;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Notes of an older union file system to itself.
const WHITEOUT_NOTES: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
pub(crate) const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";
const CAPABILITY_ATTRIBUTE: &str = "security.capability";
/// What else of attributes belongs to a file rather than to the machine it came from.
const USER_ATTRIBUTES: &str = "user.";
/// Instructions to overlayfs, which a layer must not give.
const USER_OVERLAY_ATTRIBUTES: &str = "user.overlay.";
const ACCESS_LISTS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

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

impl LayerError {
    pub(super) fn refused(path: &Path, reason: &'static str) -> Self {
        Self::Refused {
            path: path.display().to_string(),
            reason,
        }
    }

    pub(super) fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Write {
            path: path.display().to_string(),
            source,
        }
    }
}

/// What a layer is on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Of its files.
    pub(super) size_bytes: u64,
    /// Of its tar.
    pub(super) plain_bytes: u64,
    /// Whether its recipe leads back to the tar: a content that a later entry replaced is gone.
    pub(super) is_whole: bool,
    entries: u64,
}

/// What becomes of the devices in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Devices {
    /// Control groups keep containers from those that they were not given.
    Made,
    /// Nothing would keep a container from the machine's own disk.
    LeftOut,
}

/// Unpacks the uncompressed tar `from` into the empty directory `into`, and writes its recipe beside it.
pub(super) fn unpack(
    from: impl Read,
    into: &Path,
    recipe: &Path,
    devices: Devices,
) -> Result<Unpacked, LayerError> {
    let top = open_top(into).map_err(|source| LayerError::write(into, source))?;
    let mut unpacker = Unpacker {
        top,
        done: Unpacked {
            is_whole: true,
            ..Unpacked::default()
        },
        parent: None,
        timed: Vec::new(),
        devices,
        buffer: vec![0; COPY_BYTES],
    };
    let mut tarball = Tarball::new(from, Recipe::create(recipe)?);
    while let Some(entry) = tarball.next()? {
        unpacker.entry(&entry, &mut tarball)?;
    }
    let (_, recipe) = tarball.finish()?;
    unpacker.set_times()?;
    unpacker.done.plain_bytes = recipe.finish()?;
    Ok(unpacker.done)
}

/// Opens a layer's directory.
pub(super) fn open_top(directory: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, directory, flags, Mode::empty())?)
}

/// Opens a file of a layer by the path that its entry has.
pub(super) fn open_below(top: &OwnedFd, path: &Path, flags: OFlags) -> std::io::Result<File> {
    let names = names(path).map_err(|_| Errno::INVAL)?;
    let (name, above) = names.split_last().ok_or(Errno::INVAL)?;
    let parent = lookup(top, above)?;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(
        &parent,
        *name,
        flags,
        Mode::empty(),
    )?))
}

/// Opens a directory that is there. Symbolic links on the way are followed as a container would follow them.
fn lookup(top: &OwnedFd, names: &[&OsStr]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    if names.is_empty() {
        return rustix::fs::openat(top, ".", flags, Mode::empty());
    }
    let path: PathBuf = names.iter().collect();
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(top, &path, flags, Mode::empty(), within) {
        // Kernels before 5.6, and filters that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => walk(top, names),
        opened => opened,
    }
}

/// [`lookup`] one name at a time, and never through a symbolic link.
fn walk(top: &OwnedFd, names: &[&OsStr]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::openat(top, ".", flags, Mode::empty())?;
    for name in names {
        at = rustix::fs::openat(&at, *name, flags, Mode::empty())?;
    }
    Ok(at)
}

struct Unpacker {
    top: OwnedFd,
    done: Unpacked,
    /// The directory of the last entry: files come one directory after another.
    parent: Option<(PathBuf, OwnedFd)>,
    timed: Vec<(PathBuf, Timestamps)>,
    devices: Devices,
    buffer: Vec<u8>,
}

/// What the header says about ownership and rights.
struct Attributes<'a> {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    times: Timestamps,
    extended: &'a [(String, Vec<u8>)],
}

/// Where an entry goes.
struct Place<'a> {
    parent: &'a OwnedFd,
    name: &'a OsStr,
    /// For errors.
    path: &'a Path,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &Entry, tarball: &mut Tarball<R>) -> Result<(), LayerError> {
        let path = &entry.path;
        let names = names(path)?;
        self.count(path, entry.size)?;
        let Some((&name, above)) = names.split_last() else {
            // The top directory itself, which the container's own stands for.
            return Ok(());
        };
        let parent = self.directory(above, path)?;
        let place = Place {
            parent: &parent,
            name,
            path,
        };
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX) {
            whiteout(&place, hidden)?;
        } else {
            self.put(entry, &place, tarball)?;
        }
        self.parent = Some((above.iter().collect(), parent));
        Ok(())
    }

    fn put<R: Read>(
        &mut self,
        entry: &Entry,
        place: &Place<'_>,
        tarball: &mut Tarball<R>,
    ) -> Result<(), LayerError> {
        let attributes = attributes(entry)?;
        match entry.kind {
            Kind::File => self.file(entry, place, &attributes, tarball),
            Kind::Directory => self.put_directory(place, &attributes),
            Kind::Symlink => {
                let target = target(entry)?;
                self.make(place, || rustix::fs::symlinkat(target, place.parent, place.name))?;
                own(place, &attributes)
            }
            Kind::HardLink => self.hard_link(place, target(entry)?),
            Kind::Fifo => self.node(place, FileType::Fifo, &attributes, 0),
            Kind::Character | Kind::Block if entry.device == (0, 0) => {
                // To overlayfs this is a deletion, so it is one.
                whiteout(place, place.name.as_bytes())
            }
            Kind::Character | Kind::Block if self.devices == Devices::LeftOut => Ok(()),
            Kind::Character | Kind::Block => {
                let kind = if entry.kind == Kind::Block {
                    FileType::BlockDevice
                } else {
                    FileType::CharacterDevice
                };
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                self.node(place, kind, &attributes, device)
            }
        }
    }

    fn count(&mut self, path: &Path, bytes: u64) -> Result<(), LayerError> {
        self.done.entries += 1;
        self.done.size_bytes = self.done.size_bytes.saturating_add(bytes);
        if self.done.entries > ENTRIES_MAX {
            return Err(LayerError::refused(path, "the layer has too many files"));
        }
        if self.done.size_bytes > LAYER_BYTES_MAX {
            return Err(LayerError::refused(path, "the layer is too large"));
        }
        Ok(())
    }

    /// Opens the directory `names` below the top, making what is missing.
    fn directory(&mut self, names: &[&OsStr], path: &Path) -> Result<OwnedFd, LayerError> {
        let whole: PathBuf = names.iter().collect();
        if let Some((known, directory)) = self.parent.take()
            && known == whole
        {
            return Ok(directory);
        }
        match lookup(&self.top, names) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(|errno| wrote(path, errno)),
        }
        let mut at = lookup(&self.top, &[]).map_err(|errno| wrote(path, errno))?;
        for (depth, name) in names.iter().enumerate() {
            at = match lookup(&self.top, &names[..=depth]) {
                Err(Errno::NOENT) => rustix::fs::mkdirat(&at, *name, Mode::from_raw_mode(0o755))
                    .and_then(|()| lookup(&self.top, &names[..=depth]))
                    .map_err(|errno| match errno {
                        Errno::EXIST => LayerError::refused(path, "it lies below a link to nothing"),
                        errno => wrote(path, errno),
                    })?,
                opened => opened.map_err(|errno| wrote(path, errno))?,
            };
        }
        Ok(at)
    }

    /// Makes something by `how`, in place of what an earlier entry of the same layer put there.
    fn make<T>(&mut self, place: &Place<'_>, how: impl Fn() -> Result<T, Errno>) -> Result<T, LayerError> {
        match how() {
            Err(Errno::EXIST) => {
                self.clear(place)?;
                how().map_err(|errno| wrote(place.path, errno))
            }
            made => made.map_err(|errno| wrote(place.path, errno)),
        }
    }

    fn clear(&mut self, place: &Place<'_>) -> Result<(), LayerError> {
        let there = rustix::fs::statat(place.parent, place.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| wrote(place.path, errno))?;
        let kind = FileType::from_raw_mode(there.st_mode);
        if kind == FileType::Directory {
            return rustix::fs::unlinkat(place.parent, place.name, AtFlags::REMOVEDIR)
                .map_err(|_| LayerError::refused(place.path, "it replaces a directory that is not empty"));
        }
        // A content that the recipe leads to, or the way to one.
        self.done.is_whole &= kind != FileType::RegularFile && kind != FileType::Symlink;
        rustix::fs::unlinkat(place.parent, place.name, AtFlags::empty())
            .map_err(|errno| wrote(place.path, errno))
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        place: &Place<'_>,
        attributes: &Attributes<'_>,
        tarball: &mut Tarball<R>,
    ) -> Result<(), LayerError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = self.make(place, || {
            rustix::fs::openat(place.parent, place.name, flags, mode)
        })?;
        let file = File::from(file);
        let mut end = 0;
        for (offset, length) in &entry.segments {
            let mut done = 0;
            while done < *length {
                let at = offset + done;
                let wanted = usize::try_from(length - done)
                    .unwrap_or(usize::MAX)
                    .min(COPY_BYTES);
                let read = tarball.content(&mut self.buffer[..wanted], place.path, at)?;
                if read == 0 {
                    return Err(LayerError::refused(place.path, "it is truncated"));
                }
                end = write_but_holes(&file, &self.buffer[..read], at)
                    .map_err(|source| LayerError::write(place.path, source))?
                    .unwrap_or(end);
                done += read as u64;
            }
        }
        if end < entry.size {
            let set = file.set_len(entry.size);
            set.map_err(|source| LayerError::write(place.path, source))?;
        }
        dress(&file, attributes, place.path)
    }

    fn put_directory(&mut self, place: &Place<'_>, attributes: &Attributes<'_>) -> Result<(), LayerError> {
        let open = || {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(place.parent, place.name, flags, Mode::empty())
        };
        let make = || rustix::fs::mkdirat(place.parent, place.name, Mode::RWXU);
        let directory = match make() {
            Err(Errno::EXIST) => match open() {
                // It is filled further.
                Ok(directory) => Ok(directory),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    self.clear(place)?;
                    make().and_then(|()| open())
                }
                Err(errno) => Err(errno),
            },
            made => made.and_then(|()| open()),
        };
        let directory = File::from(directory.map_err(|errno| wrote(place.path, errno))?);
        dress(&directory, attributes, place.path)?;
        if self.timed.len() < TIMED_DIRECTORIES_MAX {
            self.timed.push((place.path.to_owned(), attributes.times.clone()));
        }
        Ok(())
    }

    fn set_times(&mut self) -> Result<(), LayerError> {
        for (path, times) in self.timed.drain(..) {
            // One that was replaced later has no time to be set.
            if let Ok(directory) = open_below(&self.top, &path, OFlags::DIRECTORY) {
                rustix::fs::futimens(&directory, &times).map_err(|errno| wrote(&path, errno))?;
            }
        }
        Ok(())
    }

    fn hard_link(&mut self, place: &Place<'_>, target: &Path) -> Result<(), LayerError> {
        let missing =
            || LayerError::refused(place.path, "it is a hard link to a file that is not in its layer");
        let target_names = names(target)?;
        let Some((&target_name, above)) = target_names.split_last() else {
            return Err(missing());
        };
        let from = match lookup(&self.top, above) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(missing()),
            opened => opened.map_err(|errno| wrote(place.path, errno))?,
        };
        let there = match rustix::fs::statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(missing()),
            looked => looked.map_err(|errno| wrote(place.path, errno))?,
        };
        if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
            return Err(LayerError::refused(
                place.path,
                "it is a hard link to a directory",
            ));
        }
        let same = rustix::fs::statat(place.parent, place.name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|other| (other.st_dev, other.st_ino) == (there.st_dev, there.st_ino));
        if same {
            return Ok(());
        }
        self.make(place, || {
            rustix::fs::linkat(&from, target_name, place.parent, place.name, AtFlags::empty())
        })
    }

    fn node(
        &mut self,
        place: &Place<'_>,
        kind: FileType,
        attributes: &Attributes<'_>,
        device: u64,
    ) -> Result<(), LayerError> {
        self.make(place, || {
            rustix::fs::mknodat(place.parent, place.name, kind, attributes.mode, device)
        })?;
        own(place, attributes)?;
        // The mode again, because making minds the mask and a new owner takes bits away. It is no link: it was just made.
        rustix::fs::chmodat(place.parent, place.name, attributes.mode, AtFlags::empty())
            .map_err(|errno| wrote(place.path, errno))
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
                return Err(LayerError::refused(path, "it leads out of the image"));
            }
        }
    }
    if names.len() > PATH_DEPTH_MAX {
        return Err(LayerError::refused(path, "it is nested too deeply"));
    }
    Ok(names)
}

fn target(entry: &Entry) -> Result<&Path, LayerError> {
    let target = entry.target.as_deref();
    let named = target.filter(|target| !target.as_os_str().is_empty());
    named.ok_or_else(|| LayerError::refused(&entry.path, "it is a link to nothing"))
}

fn attributes(entry: &Entry) -> Result<Attributes<'_>, LayerError> {
    let id = |id: u64| -> Result<u32, LayerError> {
        let id = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        id.ok_or_else(|| LayerError::refused(&entry.path, "the number of its owner is too large"))
    };
    let moment = Timespec {
        tv_sec: entry.mtime_s,
        tv_nsec: entry.mtime_ns.into(),
    };
    Ok(Attributes {
        mode: Mode::from_raw_mode(entry.mode),
        uid: Uid::from_raw(id(entry.uid)?),
        gid: Gid::from_raw(id(entry.gid)?),
        times: Timestamps {
            last_access: moment,
            last_modification: moment,
        },
        extended: &entry.attributes,
    })
}

/// Writes the blocks that are not all zeros. Tells where the last of them ends, if there is one.
fn write_but_holes(file: &File, bytes: &[u8], at: u64) -> std::io::Result<Option<u64>> {
    let is_hole = |block: &[u8]| block.len() == HOLE_BYTES && block.iter().all(|byte| *byte == 0);
    let mut end = None;
    let mut blocks = bytes.chunks(HOLE_BYTES).enumerate().peekable();
    while let Some((first, block)) = blocks.next() {
        if is_hole(block) {
            continue;
        }
        let start = first * HOLE_BYTES;
        let mut stop = start + block.len();
        while let Some((_, block)) = blocks.next_if(|(_, block)| !is_hole(block)) {
            stop += block.len();
        }
        file.write_all_at(&bytes[start..stop], at + start as u64)?;
        end = Some(at + stop as u64);
    }
    Ok(end)
}

/// Gives an open file or directory its owner, rights, attributes and time.
fn dress(file: &File, attributes: &Attributes<'_>, path: &Path) -> Result<(), LayerError> {
    // Changing the owner clears the set-user-id bit and the capabilities, so they come after.
    rustix::fs::fchown(file, Some(attributes.uid), Some(attributes.gid))
        .map_err(|errno| wrote(path, errno))?;
    rustix::fs::fchmod(file, attributes.mode).map_err(|errno| wrote(path, errno))?;
    for (name, value) in attributes.extended {
        let is_capability = name == CAPABILITY_ATTRIBUTE;
        let is_users = name.starts_with(USER_ATTRIBUTES) && !name.starts_with(USER_OVERLAY_ATTRIBUTES);
        if !is_capability && !is_users && !ACCESS_LISTS.contains(&name.as_str()) {
            continue;
        }
        match rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()) {
            // Programs need their capabilities; of the rest a file system keeps what it can.
            Err(Errno::NOTSUP) if !is_capability => {}
            Err(Errno::INVAL | Errno::RANGE | Errno::TOOBIG) => {
                return Err(LayerError::refused(path, "it has an attribute that is none"));
            }
            set => set.map_err(|errno| wrote(path, errno))?,
        }
    }
    rustix::fs::futimens(file, &attributes.times).map_err(|errno| wrote(path, errno))
}

/// Gives what cannot be opened its owner and time.
fn own(place: &Place<'_>, attributes: &Attributes<'_>) -> Result<(), LayerError> {
    let (parent, name) = (place.parent.as_fd(), place.name);
    let (uid, gid) = (Some(attributes.uid), Some(attributes.gid));
    rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        .and_then(|()| rustix::fs::utimensat(parent, name, &attributes.times, AtFlags::SYMLINK_NOFOLLOW))
        .map_err(|errno| wrote(place.path, errno))
}

/// A deletion: of everything below its directory in the layers under this one, or of one name in them.
fn whiteout(place: &Place<'_>, hidden: &[u8]) -> Result<(), LayerError> {
    if place.name.as_bytes() == WHITEOUT_OPAQUE {
        return rustix::fs::fsetxattr(place.parent, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
            .map_err(|errno| wrote(place.path, errno));
    }
    if place.name.as_bytes().starts_with(WHITEOUT_NOTES) {
        return Ok(());
    }
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(LayerError::refused(
            place.path,
            "it deletes nothing that has a name",
        ));
    }
    let hidden = OsStr::from_bytes(hidden);
    match rustix::fs::mknodat(place.parent, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
        // The same layer puts something in place of what it deletes.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(wrote(place.path, errno)),
    }
}

/// What the kernel refused: the layer's fault where the name is, else the disk's.
fn wrote(path: &Path, errno: Errno) -> LayerError {
    match errno {
        Errno::NOTDIR | Errno::LOOP | Errno::XDEV => {
            LayerError::refused(path, "it lies below something that is no directory")
        }
        Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => {
            LayerError::refused(path, "the file system does not take its name")
        }
        Errno::MLINK => LayerError::refused(path, "the file has too many names"),
        errno => LayerError::write(path, errno.into()),
    }
}
