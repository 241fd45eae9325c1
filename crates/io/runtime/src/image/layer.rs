//! Unpacking one layer into a directory of its own, so that overlayfs can stack it.
//!
//! A layer is written by a stranger. Its directories are opened as if the layer were the root of everything, so that
//! neither `..`, nor an absolute path, nor a symbolic link leads out of it; the last name is never followed. What a
//! deletion means is translated into what overlayfs understands (a 0/0 character device, the `opaque` attribute), and
//! nothing else that overlayfs understands can come from a layer.
//!
//! Some layers only mean something on top of others: a hard link to a file of theirs, a file whose directory they do not
//! name. Then what lies below is asked for, and copied as far as putting the layer onto the stack would have copied it.

use super::copying::{self, Name};
use super::recipe::Recipe;
use super::stack::{self, Seen, is_whiteout};
use super::tarball::{Entry, Kind, Tarball};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
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
/// Names of the directories that a layer uses without naming them: some hundred thousand, as they stand in images.
const IMPLIED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The kernel gives up a path with `..` in a link whenever something was renamed or mounted meanwhile, anywhere.
const LOOKUP_TRIES_MAX: usize = 1_000;
const COPY_BYTES: usize = 128 * 1024;
/// Blocks of zeros become holes.
const HOLE_BYTES: usize = 4096;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Notes of an older union file system to itself.
const WHITEOUT_NOTES: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
pub(super) const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";
/// The same where the first is refused: for the root of a user namespace, whose overlays go by this one.
pub(super) const USER_OPAQUE_ATTRIBUTE: &str = "user.overlay.opaque";
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
    /// Whether it would be another on top of other layers.
    pub(super) is_of_its_stack: bool,
    entries: u64,
}

/// Opens the layers that a layer lies on, uppermost first, once they are whole; waits for them.
pub(super) type Below<'a> = &'a dyn Fn() -> Result<Vec<OwnedFd>, LayerError>;

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
    below: Below<'_>,
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
        implied: BTreeMap::new(),
        implied_bytes: 0,
        lifted: BTreeSet::new(),
        below: Lower {
            open: below,
            layers: None,
        },
        devices,
        buffer: vec![0; COPY_BYTES],
    };
    let mut tarball = Tarball::new(from, Some(Recipe::create(recipe)?));
    while let Some(entry) = tarball.next()? {
        unpacker.entry(&entry, &mut tarball)?;
    }
    let recipe = tarball.finish()?.expect("it was given one");
    unpacker.dress_implied()?;
    unpacker.set_times()?;
    unpacker.done.is_of_its_stack = unpacker.below.layers.is_some();
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
    for _ in 0..LOOKUP_TRIES_MAX {
        match rustix::fs::openat2(top, &path, flags, Mode::empty(), within) {
            Err(Errno::AGAIN) => {}
            // Kernels before 5.6, and filters that do not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return walk(top, names),
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
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

struct Unpacker<'a> {
    top: OwnedFd,
    done: Unpacked,
    /// The directory of the last entry: files come one directory after another.
    parent: Option<(PathBuf, OwnedFd)>,
    timed: Vec<(PathBuf, Timestamps)>,
    /// Directories that were made only because something lies in them, by inode.
    implied: BTreeMap<u64, PathBuf>,
    implied_bytes: usize,
    /// Names that were copied from below, by the inode of their directory: the layer itself does not have them.
    lifted: BTreeSet<(u64, OsString)>,
    below: Lower<'a>,
    devices: Devices,
    buffer: Vec<u8>,
}

/// The layers below, once somebody has asked for them.
struct Lower<'a> {
    open: Below<'a>,
    layers: Option<Vec<OwnedFd>>,
}

impl Lower<'_> {
    fn layers(&mut self) -> Result<&[OwnedFd], LayerError> {
        let layers = match self.layers.take() {
            Some(layers) => layers,
            None => (self.open)()?,
        };
        Ok(self.layers.insert(layers))
    }
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
#[derive(Clone, Copy)]
struct Place<'a> {
    parent: &'a OwnedFd,
    name: &'a OsStr,
    /// For errors.
    path: &'a Path,
}

impl Unpacker<'_> {
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
            self.whiteout(&place, hidden)?;
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
                self.whiteout(place, place.name.as_bytes())
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
        // From below: mostly all is there, or all but the last.
        let mut known = names.len();
        let mut at = loop {
            match lookup(&self.top, &names[..known]) {
                Err(Errno::NOENT | Errno::NOTDIR) if known > 0 => known -= 1,
                opened => break opened.map_err(|errno| wrote(path, errno))?,
            }
        };
        for upto in known + 1..=names.len() {
            at = self.imply(&at, &names[..upto], path)?;
        }
        Ok(at)
    }

    /// Makes a directory that no entry has named yet: the last of `names`, in `parent`.
    fn imply(&mut self, parent: &OwnedFd, names: &[&OsStr], path: &Path) -> Result<OwnedFd, LayerError> {
        let name = names.last().expect("the top is never missing");
        let mode = Mode::from_raw_mode(0o755);
        let is_new = remove_whiteout(parent, name).map_err(|errno| wrote(path, errno))?;
        rustix::fs::mkdirat(parent, *name, mode).map_err(|errno| match errno {
            Errno::EXIST => below_what_is_none(parent, name, path),
            errno => wrote(path, errno),
        })?;
        self.count(path, 0)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made =
            rustix::fs::openat(parent, *name, flags, Mode::empty()).map_err(|errno| wrote(path, errno))?;
        let meta = rustix::fs::fstat(&made).and_then(|meta| {
            // The mask of this process means nothing to a layer.
            rustix::fs::fchmod(&made, mode)?;
            Ok(meta)
        });
        let meta = meta.map_err(|errno| wrote(path, errno))?;
        if is_new {
            hide_below(&made).map_err(|errno| wrote(path, errno))?;
        }
        let place: PathBuf = names.iter().collect();
        self.implied_bytes += place.as_os_str().len();
        if self.implied_bytes > IMPLIED_BYTES_MAX {
            return Err(LayerError::refused(
                path,
                "the layer leaves out too many directories",
            ));
        }
        self.implied.insert(meta.st_ino, place);
        Ok(made)
    }

    /// Gives the directories that no entry has named what the layers below say of them.
    fn dress_implied(&mut self) -> Result<(), LayerError> {
        for (inode, path) in std::mem::take(&mut self.implied) {
            let layers = self.below.layers()?;
            let all: Vec<_> = std::iter::once(&self.top)
                .chain(layers)
                .map(AsFd::as_fd)
                .collect();
            let names: Vec<&OsStr> = path.iter().collect();
            let seen = stack::look(&all, &names).map_err(|errno| wrote(&path, errno))?;
            let Some(Seen::Directory(merged)) = seen else {
                // It was replaced later.
                continue;
            };
            let [(_, own), (_, below), ..] = merged.as_slice() else {
                continue;
            };
            let is_it = rustix::fs::fstat(own).is_ok_and(|meta| meta.st_ino == inode);
            if is_it {
                copying::dress_directory(below.as_fd(), own.as_fd())
                    .map_err(|source| LayerError::write(&path, source))?;
            }
        }
        Ok(())
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
        let is_content = kind == FileType::RegularFile || kind == FileType::Symlink;
        self.done.is_whole &= self.forget_lifted(place)? || !is_content;
        rustix::fs::unlinkat(place.parent, place.name, AtFlags::empty())
            .map_err(|errno| wrote(place.path, errno))
    }

    /// Whether a name was only copied from below, and not any more.
    fn forget_lifted(&mut self, place: &Place<'_>) -> Result<bool, LayerError> {
        if self.lifted.is_empty() {
            return Ok(false);
        }
        let meta = rustix::fs::fstat(place.parent).map_err(|errno| wrote(place.path, errno))?;
        Ok(self.lifted.remove(&(meta.st_ino, place.name.to_owned())))
    }

    /// A deletion: of everything below its directory in the layers under this one, or of one name in them.
    fn whiteout(&mut self, place: &Place<'_>, hidden: &[u8]) -> Result<(), LayerError> {
        if place.name.as_bytes() == WHITEOUT_OPAQUE {
            return hide_below(place.parent).map_err(|errno| wrote(place.path, errno));
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
        let hidden = Place {
            name: OsStr::from_bytes(hidden),
            ..*place
        };
        if self.forget_lifted(&hidden)? {
            rustix::fs::unlinkat(hidden.parent, hidden.name, AtFlags::empty())
                .map_err(|errno| wrote(place.path, errno))?;
        }
        let kind = FileType::CharacterDevice;
        match rustix::fs::mknodat(hidden.parent, hidden.name, kind, Mode::empty(), 0) {
            Err(Errno::EXIST) => hide_below_if_directory(&hidden),
            made => made,
        }
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
        let failed = |errno| wrote(place.path, errno);
        let is_new = remove_whiteout(place.parent, place.name).map_err(failed)?;
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
        let directory = File::from(directory.map_err(failed)?);
        if is_new {
            hide_below(&directory).map_err(failed)?;
        }
        if !self.implied.is_empty() {
            let meta = rustix::fs::fstat(&directory).map_err(failed)?;
            self.implied.remove(&meta.st_ino);
        }
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
        let names = names(target)?;
        let (from, name, there) = match self.find(&names, place.path)? {
            Some(found) => found,
            None => self.lift(&names, place.path)?,
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
            rustix::fs::linkat(&from, &name, place.parent, place.name, AtFlags::empty())
        })
    }

    /// The directory and the name of something that this layer itself has.
    fn find(&self, names: &[&OsStr], path: &Path) -> Result<Option<(OwnedFd, OsString, Stat)>, LayerError> {
        let Some((&name, above)) = names.split_last() else {
            return Err(LayerError::refused(path, "it is a hard link to a directory"));
        };
        let from = match lookup(&self.top, above) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            opened => opened.map_err(|errno| wrote(path, errno))?,
        };
        match rustix::fs::statat(&from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            Ok(meta) if is_whiteout(&meta) => Ok(None),
            Ok(meta) => Ok(Some((from, name.to_owned(), meta))),
            Err(errno) => Err(wrote(path, errno)),
        }
    }

    /// Copies a file of the layers below into this one, where it can be linked to: overlayfs does the same when a file of
    /// a lower layer gets another name.
    fn lift(&mut self, names: &[&OsStr], path: &Path) -> Result<(OwnedFd, OsString, Stat), LayerError> {
        let layers = self.below.layers()?;
        let all: Vec<_> = std::iter::once(&self.top)
            .chain(layers)
            .map(AsFd::as_fd)
            .collect();
        let seen = match stack::look(&all, names) {
            Err(Errno::LOOP | Errno::NAMETOOLONG) => None,
            looked => looked.map_err(|errno| wrote(path, errno))?,
        };
        let (layer, parent, found, meta) = match seen {
            None => {
                let reason = "it is a hard link to a file that neither its layer nor one below it has";
                return Err(LayerError::refused(path, reason));
            }
            Some(Seen::Directory(_)) => {
                return Err(LayerError::refused(path, "it is a hard link to a directory"));
            }
            Some(Seen::Other {
                layer,
                parent,
                path,
                meta,
            }) => (layer, parent, path, meta),
        };
        let name = found.file_name().unwrap_or_default().to_owned();
        if layer == 0 {
            // By a link of a lower layer it is in this one after all.
            return Ok((parent, name, meta));
        }
        let above: Vec<&OsStr> = found.parent().into_iter().flat_map(Path::iter).collect();
        let into = self.directory(&above, path)?;
        self.count(path, u64::try_from(meta.st_size).unwrap_or(0))?;
        let from = Name {
            directory: parent.as_fd(),
            name: Path::new(&name),
        };
        let to = Name {
            directory: into.as_fd(),
            ..from
        };
        copying::copy(from, to, &meta).map_err(|source| LayerError::write(path, source))?;
        let copied = rustix::fs::statat(&into, &name, AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|meta| Ok((meta, rustix::fs::fstat(&into)?)));
        let (meta, directory) = copied.map_err(|errno| wrote(path, errno))?;
        self.lifted.insert((directory.st_ino, name.clone()));
        Ok((into, name, meta))
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
pub(super) fn write_but_holes(file: &File, bytes: &[u8], at: u64) -> std::io::Result<Option<u64>> {
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
        .map_err(|errno| given(path, attributes, errno))?;
    rustix::fs::fchmod(file, attributes.mode).map_err(|errno| wrote(path, errno))?;
    for (name, value) in attributes.extended {
        if !is_kept_attribute(name) {
            continue;
        }
        let is_capability = name == CAPABILITY_ATTRIBUTE;
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
        .map_err(|errno| given(place.path, attributes, errno))?;
    rustix::fs::utimensat(parent, name, &attributes.times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| wrote(place.path, errno))
}

/// Whether an attribute belongs to a file rather than to the machine it came from, and is no order to overlayfs.
pub(super) fn is_kept_attribute(name: &str) -> bool {
    let is_users = name.starts_with(USER_ATTRIBUTES) && !name.starts_with(USER_OVERLAY_ATTRIBUTES);
    is_users || name == CAPABILITY_ATTRIBUTE || ACCESS_LISTS.contains(&name)
}

/// Hides what the layers below have in a directory.
fn hide_below(directory: impl AsFd) -> Result<(), Errno> {
    match rustix::fs::fsetxattr(&directory, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty()) {
        Err(Errno::PERM) => {
            rustix::fs::fsetxattr(&directory, USER_OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
        }
        set => set,
    }
}

/// What a layer deletes and what it puts in place of it are told in any order. A directory has to say that it is another
/// one; everything else hides what lies below it anyway.
fn hide_below_if_directory(place: &Place<'_>) -> Result<(), Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(place.parent, place.name, flags, Mode::empty()) {
        Ok(directory) => hide_below(&directory),
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Takes back a deletion, because a directory comes in its place. Tells whether there was one.
fn remove_whiteout(parent: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(meta) if is_whiteout(&meta) => rustix::fs::unlinkat(parent, name, AtFlags::empty()).map(|()| true),
        Ok(_) | Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Why there can be no directory of this name.
fn below_what_is_none(parent: &OwnedFd, name: &OsStr, path: &Path) -> LayerError {
    let meta = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    let kind = meta.map(|meta| FileType::from_raw_mode(meta.st_mode));
    if kind == Ok(FileType::Symlink) {
        LayerError::refused(path, "it lies below a link to nothing")
    } else {
        wrote(path, Errno::NOTDIR)
    }
}

/// An owner that the kernel refused. A node without root has only as many users as were given to it.
fn given(path: &Path, attributes: &Attributes<'_>, errno: Errno) -> LayerError {
    match errno {
        Errno::INVAL if kedge_host::users::in_namespace() => LayerError::write(
            path,
            std::io::Error::other(format!(
                "its owner {}:{} is none of this node's users; give it more in /etc/subuid and /etc/subgid",
                attributes.uid.as_raw(),
                attributes.gid.as_raw()
            )),
        ),
        errno => wrote(path, errno),
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
