//! Layers on their way into the store: several at one time, each unpacked by one thread while another one uncompresses
//! it, and all of them given their names together when they are whole on the disk.

use super::archive::{Archive, ArchivedLayer};
use super::layer::{self, Devices, LayerError};
use super::packing::{self, Packing, read_some};
use super::shelf::{Shelf, StoredLayer, StoredPacked, layer_name};
use crate::Error;
use kedge_host::cgroups::Layout;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Layers that are unpacked at one time: more only take turns on the disk, and each takes memory.
const PARALLEL_MAX: usize = 4;
/// Uncompressed bytes that are handed from thread to thread, and how many such pieces may wait.
const PIECE_BYTES: usize = 128 * 1024;
const PIECES_MAX: usize = 3;
const COPY_BYTES: usize = 128 * 1024;

/// Unpacks layers of an archive that the store does not have, and gives them their names. When one fails nothing is
/// left of any.
pub(super) fn import_layers(
    archive: &Archive,
    layers: &[&ArchivedLayer],
    shelf: &Shelf,
) -> Result<(), Error> {
    if layers.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = layers.iter().map(|layer| layer_name(&layer.diff_id)).collect();
    let done = unpack_all(archive, layers, shelf).and_then(|()| shelf.name(&names));
    if done.is_err() {
        names.iter().for_each(|name| shelf.drop_unnamed(name));
    }
    done
}

fn unpack_all(archive: &Archive, layers: &[&ArchivedLayer], shelf: &Shelf) -> Result<(), Error> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || -> Result<(), Error> {
        while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            unpack_one(archive, layer, shelf, &failed)
                .inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let helpers = processors.min(PARALLEL_MAX).min(layers.len()) - 1;
        let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
        let own = work();
        helpers
            .into_iter()
            .map(|helper| helper.join().expect("a panic of a helper is one of ours"))
            .fold(own, Result::and)
    })
}

fn unpack_one(
    archive: &Archive,
    layer: &ArchivedLayer,
    shelf: &Shelf,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let name = layer_name(&layer.diff_id);
    let directory = shelf.make_unnamed(&name)?;
    let packed = archive.open_layer(layer)?;
    let (unpacked, digest) = std::thread::scope(|scope| {
        let (full, pieces) = sync_channel(PIECES_MAX);
        let (back, empty) = sync_channel(PIECES_MAX + 2);
        scope.spawn(move || uncompress(packed, &full, &empty));
        let mut plain = Hashing::new(Pieces {
            pieces,
            back,
            current: Vec::new(),
            at: 0,
            stop,
        });
        let unpacked = layer::unpack(&mut plain, &directory, &shelf.unnamed_recipe(&name), devices());
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
        Some(keep_packed(archive, layer, shelf)?)
    };
    shelf.write_unnamed_record(
        &name,
        &StoredLayer {
            diff_id: layer.diff_id.clone(),
            size_bytes: unpacked.size_bytes,
            plain_bytes: unpacked.plain_bytes,
            packed,
        },
    )
}

/// Control groups of version 2 have no filter of devices that we set.
fn devices() -> Devices {
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
fn keep_packed(archive: &Archive, layer: &ArchivedLayer, shelf: &Shelf) -> Result<StoredPacked, Error> {
    let place = shelf.unnamed_packed(&layer_name(&layer.diff_id));
    let failed = |source| Error::io("keep a packed layer in", &place, source);
    let mut from = Hashing::new(archive.open_layer(layer)?);
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
                return Err(std::io::Error::other("another layer of the image failed"));
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
