//! Layers on their way into the store: several at one time, each unpacked by one thread while another one uncompresses
//! it, and all of them given their names together when they are whole on the disk. One that asks what lies below it waits
//! until that is whole; threads take the layers from the lowest on, so the lowest of those at work never waits.

use super::archive::{Archive, ArchivedLayer};
use super::layer::{self, Devices, LayerError};
use super::packing::{self, Packing, read_some};
use super::shelf::{Shelf, StoredLayer, StoredPacked, Unnamed, layer_name, stacked_name};
use crate::Error;
use kedge_host::cgroups::Layout;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Layers that are unpacked at one time: more only take turns on the disk, and each takes memory.
const PARALLEL_MAX: usize = 4;
/// Uncompressed bytes that are handed from thread to thread, and how many such pieces may wait.
const PIECE_BYTES: usize = 128 * 1024;
const PIECES_MAX: usize = 3;
const COPY_BYTES: usize = 128 * 1024;

/// Unpacks the layers of an image that the store does not have, and gives them their names. `known` holds those of the
/// others. When one fails nothing is left of any. Returns the names of all, lowest first.
pub(super) fn import_layers(
    archive: &Archive,
    layers: &[ArchivedLayer],
    known: Vec<Option<String>>,
    shelf: &Shelf,
) -> Result<Vec<String>, Error> {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let missing: Vec<Missing<'_>> = (0..layers.len())
        .filter(|position| known[*position].is_none())
        .map(|position| Missing {
            layer: &layers[position],
            position,
            name: stacked_name(&diff_ids[..=position]),
        })
        .collect();
    let mut names = known;
    if !missing.is_empty() {
        let done = unpack_all(archive, &missing, &names, shelf)
            .and_then(|unnamed| shelf.name(&unnamed).map(|()| unnamed));
        let unnamed =
            done.inspect_err(|_| missing.iter().for_each(|layer| shelf.drop_unnamed(&layer.name)))?;
        for (missing, unnamed) in missing.iter().zip(unnamed) {
            names[missing.position] = Some(unnamed.last_name);
        }
    }
    Ok(names.into_iter().flatten().collect())
}

/// A layer that the store does not have.
struct Missing<'a> {
    layer: &'a ArchivedLayer,
    /// In its image, from the lowest.
    position: usize,
    /// Under which it is unpacked.
    name: String,
}

/// The layers of one image while they are unpacked.
struct Stack {
    progress: Mutex<Progress>,
    changed: Condvar,
    /// Seen in the midst of a layer, without the lock.
    failed: AtomicBool,
}

struct Progress {
    /// Where those are that are whole.
    whole: Vec<Option<PathBuf>>,
    /// The first failure; what follows from it is not worth telling.
    cause: Option<Error>,
}

impl Stack {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Only single assignments happen under it.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_whole(&self, position: usize, directory: PathBuf) {
        self.progress().whole[position] = Some(directory);
        self.changed.notify_all();
    }

    fn fail(&self, cause: Option<Error>) {
        // Under the lock: whoever is about to wait has seen it, or is woken.
        let mut progress = self.progress();
        if !self.failed.swap(true, Ordering::Relaxed) {
            progress.cause = cause;
        }
        self.changed.notify_all();
    }

    /// Opens the layers below one, uppermost first, when they are whole.
    fn below(&self, position: usize) -> Result<Vec<OwnedFd>, LayerError> {
        let mut progress = self.progress();
        while progress.whole[..position].iter().any(Option::is_none) {
            if self.failed.load(Ordering::Relaxed) {
                return Err(LayerError::Tar(another_failed()));
            }
            let waited = self.changed.wait(progress);
            progress = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let below = progress.whole[..position].iter().flatten().rev();
        let below: Vec<PathBuf> = below.cloned().collect();
        drop(progress);
        let opened = below.iter().map(|directory| {
            layer::open_top(directory).map_err(|source| LayerError::write(directory, source))
        });
        opened.collect()
    }
}

/// A thread that panics wakes those that wait for its layer; the panic itself is told where threads are joined.
struct WokenByPanic<'a>(&'a Stack);

impl Drop for WokenByPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(None);
        }
    }
}

fn another_failed() -> std::io::Error {
    std::io::Error::other("another layer of the image failed")
}

fn unpack_all(
    archive: &Archive,
    missing: &[Missing<'_>],
    known: &[Option<String>],
    shelf: &Shelf,
) -> Result<Vec<Unnamed>, Error> {
    let known = known.iter().map(|name| Some(shelf.layer(name.as_ref()?)));
    let stack = Stack {
        progress: Mutex::new(Progress {
            whole: known.collect(),
            cause: None,
        }),
        changed: Condvar::new(),
        failed: AtomicBool::new(false),
    };
    let next = AtomicUsize::new(0);
    let work = || {
        let _woken = WokenByPanic(&stack);
        let mut done = Vec::new();
        while !stack.failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(layer) = missing.get(number) else {
                break;
            };
            match unpack_one(archive, layer, shelf, &stack) {
                Ok(unnamed) => done.push((number, unnamed)),
                Err(error) => stack.fail(Some(error)),
            }
        }
        done
    };
    let mut done = std::thread::scope(|scope| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let helpers = processors.min(PARALLEL_MAX).min(missing.len()) - 1;
        let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for helper in helpers {
            done.extend(helper.join().expect("a panic of a helper is one of ours"));
        }
        done
    });
    if let Some(cause) = stack.progress().cause.take() {
        return Err(cause);
    }
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, unnamed)| unnamed).collect())
}

fn unpack_one(
    archive: &Archive,
    missing: &Missing<'_>,
    shelf: &Shelf,
    stack: &Stack,
) -> Result<Unnamed, Error> {
    let (layer, name) = (missing.layer, &missing.name);
    let directory = shelf.make_unnamed(name)?;
    let packed = archive.open_layer(layer)?;
    let below = || stack.below(missing.position);
    let (unpacked, digest) = std::thread::scope(|scope| {
        let (full, pieces) = sync_channel(PIECES_MAX);
        let (back, empty) = sync_channel(PIECES_MAX + 2);
        scope.spawn(move || uncompress(packed, &full, &empty));
        let mut plain = Hashing::new(Pieces {
            pieces,
            back,
            current: Vec::new(),
            at: 0,
            stop: &stack.failed,
        });
        let recipe = shelf.unnamed_recipe(name);
        let unpacked = layer::unpack(&mut plain, &directory, &recipe, devices(), &below);
        unpacked.map(|unpacked| (unpacked, plain.digest()))
    })
    .map_err(|error| explained(archive, layer, error))?;
    if digest != layer.diff_id {
        return Err(archive.bad(format!(
            "layer {} does not have the digest it is filed under",
            layer.diff_id
        )));
    }
    let packed = if unpacked.is_whole {
        None
    } else {
        Some(keep_packed(archive, missing, shelf)?)
    };
    shelf.write_unnamed_record(
        name,
        &StoredLayer {
            diff_id: layer.diff_id.clone(),
            size_bytes: unpacked.size_bytes,
            plain_bytes: unpacked.plain_bytes,
            packed,
        },
    )?;
    stack.is_whole(missing.position, directory);
    Ok(Unnamed {
        last_name: if unpacked.is_of_its_stack {
            name.clone()
        } else {
            layer_name(&layer.diff_id)
        },
        name: name.clone(),
    })
}

/// Control groups of version 2 have no filter of devices that we set. In a user namespace nobody makes devices.
fn devices() -> Devices {
    if kedge_host::users::in_namespace() {
        return Devices::LeftOut;
    }
    match kedge_host::cgroups::layout() {
        Ok(Layout::V2 { .. }) | Err(_) => Devices::LeftOut,
        Ok(_filtered) => Devices::Made,
    }
}

fn explained(archive: &Archive, layer: &ArchivedLayer, error: LayerError) -> Error {
    match error {
        LayerError::Write { path, source } => Error::Io {
            act: "unpack into the image store",
            object: path,
            source,
        },
        LayerError::Refused { .. } | LayerError::Tar(_) => {
            archive.bad(format!("layer {}: {error}", layer.diff_id))
        }
    }
}

/// Keeps a layer as it came: of the few from which the tar cannot be made again.
fn keep_packed(archive: &Archive, missing: &Missing<'_>, shelf: &Shelf) -> Result<StoredPacked, Error> {
    let place = shelf.unnamed_packed(&missing.name);
    let failed = |source| Error::io("keep a packed layer in", &place, source);
    let mut from = Hashing::new(archive.open_layer(missing.layer)?);
    let mut to = File::create(&place).map_err(failed)?;
    let mut buffer = vec![0; COPY_BYTES];
    let (mut size, mut packing) = (0, None);
    loop {
        let read = read_some(&mut from, &mut buffer).map_err(failed)?;
        if read == 0 {
            break;
        }
        if size == 0 {
            packing = Packing::of(&buffer[..read]);
        }
        to.write_all(&buffer[..read]).map_err(failed)?;
        size += read as u64;
    }
    Ok(StoredPacked {
        digest: from.digest(),
        size,
        packing,
    })
}

/// Uncompresses until nobody takes it any more.
fn uncompress(packed: impl Read, full: &SyncSender<std::io::Result<Vec<u8>>>, empty: &Receiver<Vec<u8>>) {
    let mut plain = match packing::unpacked(packed) {
        Ok(plain) => plain,
        Err(error) => return drop(full.send(Err(error))),
    };
    loop {
        let mut piece = empty.try_recv().unwrap_or_default();
        piece.resize(PIECE_BYTES, 0);
        let outcome = read_some(&mut plain, &mut piece).map(|read| {
            piece.truncate(read);
            piece
        });
        let is_last = outcome.as_ref().is_ok_and(Vec::is_empty);
        let is_broken = outcome.is_err();
        if is_last || full.send(outcome).is_err() || is_broken {
            return;
        }
    }
}

/// The other end of [`uncompress`].
struct Pieces<'a> {
    pieces: Receiver<std::io::Result<Vec<u8>>>,
    back: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    /// Another layer has failed.
    stop: &'a AtomicBool,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.current.len() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(another_failed());
            }
            // The other side takes a new one when this one does not come back.
            drop(self.back.try_send(std::mem::take(&mut self.current)));
            self.at = 0;
            match self.pieces.recv() {
                Ok(piece) => self.current = piece?,
                Err(_end) => return Ok(0),
            }
        }
        let given = buffer.len().min(self.current.len() - self.at);
        buffer[..given].copy_from_slice(&self.current[self.at..self.at + given]);
        self.at += given;
        Ok(given)
    }
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    fn digest(self) -> String {
        kedge_containers::print_digest(&self.hash.finalize())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// Removes a directory or a file, whichever it is.
pub(super) fn remove_any(path: &Path) -> Result<(), Error> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
