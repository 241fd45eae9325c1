//! The images of this node: unpacked layers shared between images, and one index that names them.
//!
//! ```text
//!   images/index.json           what there is; replaced whole and last, so an interrupted import leaves nothing visible
//!   images/layers/<32 hex>/     one unpacked layer, named by the digest of its tar
//!   images/blobs/sha256/<hex>   configurations
//!   images/images.lock          taken alone while images come and go: two imports could unpack the same layer
//!   images/use.lock             shared while a container is made of an image, taken alone while one is removed
//! ```
//!
//! Reading needs no lock: the index is always whole. Containers are made while another image is being unpacked.

use super::Reference;
use super::archive::{Archive, ArchivedImage, ArchivedLayer, Packing, read_some};
use super::document::Execution;
use super::layer::{self, LayerError};
use crate::lock::{FileLock, Sharing};
use crate::{Error, durable};
use kedge_containers::Image;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Layer directories are named by this much of their digest: overlayfs takes one page of mount options, and 127 layers
/// have to fit. 128 bits do not collide.
const LAYER_NAME_HEX: usize = 32;

/// An import of gigabytes onto a slow card takes minutes; one that takes longer than this hangs.
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(10 * 60);
/// Containers are made in well under a second, and layers are removed in a few, also on a slow card.
const USE_WAIT_MAX: Duration = Duration::from_secs(2 * 60);

/// The store. Any number of processes may have it open: what is there is asked of the disk each time, because another
/// process may have changed it.
#[derive(Debug)]
pub(crate) struct ImageStore {
    directory: PathBuf,
}

/// A container that needs an image.
#[derive(Debug)]
pub(crate) struct ImageUser {
    pub(crate) container: String,
    /// The image's id.
    pub(crate) image: String,
    pub(crate) layers: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct StoredIndex {
    /// By id.
    images: BTreeMap<String, StoredImage>,
}

/// An image that containers can be made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoredImage {
    /// `sha256:…` of the configuration.
    pub(crate) id: String,
    tags: BTreeSet<String>,
    digests: BTreeSet<String>,
    /// Directories below `layers`, lowest first.
    pub(crate) layers: Vec<String>,
    layer_bytes: Vec<u64>,
    pub(crate) execution: Execution,
}

impl StoredImage {
    fn to_image(&self) -> Image {
        let user = self.execution.user.as_deref().unwrap_or_default();
        let user = user.split(':').next().unwrap_or_default();
        let number = user.parse().ok();
        Image {
            id: self.id.clone(),
            tags: self.tags.iter().cloned().collect(),
            digests: self.digests.iter().cloned().collect(),
            size_bytes: self.layer_bytes.iter().sum(),
            user: number,
            username: (number.is_none() && !user.is_empty()).then(|| user.to_owned()),
            pinned: false,
        }
    }

    /// `repository@sha256:…`, or the id of an image that came without a name.
    pub(crate) fn image_ref(&self) -> String {
        self.digests.first().unwrap_or(&self.id).clone()
    }
}

impl ImageStore {
    /// Opens the store and removes what an interrupted import left behind, unless somebody is changing images now.
    pub(crate) fn open(directory: PathBuf) -> Result<Self, Error> {
        durable::make_directory(&directory.join("layers"))?;
        durable::make_directory(&directory.join("blobs/sha256"))?;
        let store = Self { directory };
        store.index()?;
        if let Some(_changing) = FileLock::take(&store.change_lock(), Sharing::Exclusive, Duration::ZERO)? {
            store.remove_leftovers()?;
        }
        Ok(store)
    }

    pub(crate) fn layers_directory(&self) -> PathBuf {
        self.directory.join("layers")
    }

    pub(crate) fn images(&self) -> Result<Vec<Image>, Error> {
        let index = self.index()?;
        Ok(index.images.values().map(StoredImage::to_image).collect())
    }

    pub(crate) fn image(&self, reference: &str) -> Result<Option<Image>, Error> {
        Ok(self.find(reference)?.map(|image| image.to_image()))
    }

    /// The layers that are here, by the digest of their tar as it is filed.
    pub(crate) fn layer_names(&self) -> Result<BTreeSet<String>, Error> {
        Ok(self.index()?.layers().into_iter().cloned().collect())
    }

    /// Finds an image by name, by digest, or by id.
    pub(crate) fn find(&self, reference: &str) -> Result<Option<StoredImage>, Error> {
        Ok(self.index()?.find(reference).cloned())
    }

    /// While this is held no image is removed: for whoever finds one and makes something of it.
    pub(crate) fn hold(&self) -> Result<FileLock, Error> {
        self.take(&self.use_lock(), Sharing::Shared, USE_WAIT_MAX)
    }

    /// Imports every image of an archive that this node can run.
    pub(crate) fn import(&self, archive: &Path) -> Result<Vec<Image>, Error> {
        self.import_from(Archive::open(archive, &self.directory)?)
    }

    /// Imports the image that a pull of `reference` has left in a folder, and remembers the digest under which the
    /// registry has it.
    pub(crate) fn import_pulled(
        &self,
        folder: &Path,
        reference: &Reference,
        digest: &str,
    ) -> Result<Image, Error> {
        let name = reference.to_string();
        let imported = self.import_from(Archive::of_folder(folder, &name))?;
        let id = imported.first().map(|image| image.id.clone()).unwrap_or_default();
        let _changing = self.change()?;
        let mut next = self.index()?;
        let image = next
            .images
            .get_mut(&id)
            .ok_or(Error::ImageNotFound { image: name })?;
        image.digests.insert(format!("{}@{digest}", reference.repository));
        let image = image.to_image();
        self.write_index(&next)?;
        Ok(image)
    }

    fn import_from(&self, mut archive: Archive) -> Result<Vec<Image>, Error> {
        let _changing = self.change()?;
        let mut imported = Vec::new();
        for image in archive.images()? {
            let mut next = self.index()?;
            let stored = self.import_image(&mut archive, image, &next)?;
            let id = stored.id.clone();
            next.insert(stored);
            imported.extend(next.images.get(&id).map(StoredImage::to_image));
            self.write_index(&next)?;
        }
        Ok(imported)
    }

    /// Takes a name away from an image; the image goes with its last name. `users` finds the containers that
    /// need images; it is asked when no new one can come.
    pub(crate) fn remove(
        &self,
        reference: &str,
        users: impl FnOnce() -> Result<Vec<ImageUser>, Error>,
    ) -> Result<(), Error> {
        let _changing = self.change()?;
        let mut next = self.index()?;
        let Some(found) = next.find(reference).cloned() else {
            return Err(Error::ImageNotFound {
                image: reference.to_owned(),
            });
        };
        let tag = reference
            .parse::<Reference>()
            .ok()
            .and_then(|reference| reference.tagged());
        let other_names = found
            .tags
            .iter()
            .filter(|name| Some(*name) != tag.as_ref())
            .count();
        if let (Some(tag), 1..) = (tag.filter(|tag| found.tags.contains(tag)), other_names) {
            if let Some(image) = next.images.get_mut(&found.id) {
                image.tags.remove(&tag);
            }
            return self.write_index(&next);
        }
        let _unused = self.take(&self.use_lock(), Sharing::Exclusive, USE_WAIT_MAX)?;
        let users = users()?;
        if let Some(user) = users.iter().find(|user| user.image == found.id) {
            return Err(Error::ImageInUse {
                image: reference.to_owned(),
                container: user.container.clone(),
            });
        }
        next.images.remove(&found.id);
        self.write_index(&next)?;
        let mut needed = next.layers();
        needed.extend(users.iter().flat_map(|user| &user.layers));
        for layer in found.layers.iter().filter(|name| !needed.contains(*name)) {
            durable::remove_directory(&self.layers_directory().join(layer))?;
        }
        durable::remove_file(&self.directory.join("blobs").join(found.id.replacen(':', "/", 1)))
    }

    fn import_image(
        &self,
        archive: &mut Archive,
        image: ArchivedImage,
        index: &StoredIndex,
    ) -> Result<StoredImage, Error> {
        let mut layers = Vec::new();
        let mut layer_bytes = Vec::new();
        for layer in &image.layers {
            let name = layer_name(&layer.diff_id);
            let bytes = match index.layer_bytes(&name) {
                Some(known) => known,
                None => self.import_layer(archive, layer, &name)?,
            };
            layers.push(name);
            layer_bytes.push(bytes);
        }
        let configuration = serde_json::to_vec(&image.configuration)
            .map_err(|error| Error::failed("keep the configuration of image", &image.id, error))?;
        durable::write(
            &self.directory.join("blobs").join(image.id.replacen(':', "/", 1)),
            &configuration,
        )?;
        let references: Vec<Reference> = image
            .references
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        let digests = image.manifest_digest.iter().flat_map(|digest| {
            references
                .iter()
                .map(move |reference| format!("{}@{digest}", reference.repository))
        });
        Ok(StoredImage {
            tags: references.iter().filter_map(Reference::tagged).collect(),
            digests: digests.collect(),
            layers,
            layer_bytes,
            execution: image.configuration.config.unwrap_or_default(),
            id: image.id,
        })
    }

    /// Unpacks a layer beside its place, verifies both its digests, and only then moves it in.
    fn import_layer(&self, archive: &mut Archive, layer: &ArchivedLayer, name: &str) -> Result<u64, Error> {
        let place = self.layers_directory().join(name);
        let beside = self.layers_directory().join(format!(".{name}"));
        durable::remove_directory(&beside)?;
        durable::remove_directory(&place)?;
        std::fs::create_dir(&beside).map_err(|source| Error::io("make directory", &beside, source))?;
        let unpacked = unpack_verified(archive, layer, &beside)
            .inspect_err(|_| drop(std::fs::remove_dir_all(&beside)))?;
        let flushed = File::open(&beside).and_then(|directory| {
            rustix::fs::syncfs(&directory)?;
            Ok(())
        });
        flushed.map_err(|source| Error::io("flush", &beside, source))?;
        std::fs::rename(&beside, &place).map_err(|source| Error::io("move layer to", &place, source))?;
        durable::sync_directory(&self.layers_directory())?;
        Ok(unpacked)
    }

    fn remove_leftovers(&self) -> Result<(), Error> {
        let directory = self.layers_directory();
        let entries =
            std::fs::read_dir(&directory).map_err(|source| Error::io("list", &directory, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| Error::io("list", &directory, source))?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                durable::remove_directory(&entry.path())?;
            }
        }
        Ok(())
    }

    fn write_index(&self, index: &StoredIndex) -> Result<(), Error> {
        durable::write_record(&self.directory.join("index.json"), index)
    }

    fn index(&self) -> Result<StoredIndex, Error> {
        Ok(durable::read_record(&self.directory.join("index.json"))?.unwrap_or_default())
    }

    fn change_lock(&self) -> PathBuf {
        self.directory.join("images.lock")
    }

    fn use_lock(&self) -> PathBuf {
        self.directory.join("use.lock")
    }

    fn change(&self) -> Result<FileLock, Error> {
        self.take(&self.change_lock(), Sharing::Exclusive, CHANGE_WAIT_MAX)
    }

    fn take(&self, lock: &Path, sharing: Sharing, wait_max: Duration) -> Result<FileLock, Error> {
        FileLock::take(lock, sharing, wait_max)?.ok_or_else(|| {
            let reason = format!("others have kept {} locked for {wait_max:?}", lock.display());
            Error::failed("use the images in", self.directory.display().to_string(), reason)
        })
    }
}

impl StoredIndex {
    fn find(&self, reference: &str) -> Option<&StoredImage> {
        if let Some(image) = self.images.get(reference) {
            return Some(image);
        }
        let reference: Reference = reference.parse().ok()?;
        let digest = reference
            .digest
            .as_ref()
            .map(|digest| format!("{}@{digest}", reference.repository));
        self.images.values().find(|image| match &digest {
            Some(digest) => image.digests.contains(digest) || Some(&image.id) == reference.digest.as_ref(),
            None => reference.tagged().is_some_and(|tag| image.tags.contains(&tag)),
        })
    }

    /// A name belongs to the image that was imported last.
    fn insert(&mut self, mut image: StoredImage) {
        for other in self.images.values_mut() {
            other.tags.retain(|tag| !image.tags.contains(tag));
        }
        if let Some(known) = self.images.remove(&image.id) {
            image.tags.extend(known.tags);
            image.digests.extend(known.digests);
        }
        self.images.insert(image.id.clone(), image);
    }

    fn layers(&self) -> BTreeSet<&String> {
        self.images.values().flat_map(|image| &image.layers).collect()
    }

    fn layer_bytes(&self, name: &str) -> Option<u64> {
        let mut all = self
            .images
            .values()
            .flat_map(|image| image.layers.iter().zip(&image.layer_bytes));
        all.find(|(layer, _)| *layer == name).map(|(_, bytes)| *bytes)
    }
}

/// How a layer is filed.
pub(crate) fn layer_name(diff_id: &str) -> String {
    diff_id
        .trim_start_matches("sha256:")
        .chars()
        .take(LAYER_NAME_HEX)
        .collect()
}

fn unpack_verified(archive: &mut Archive, layer: &ArchivedLayer, into: &Path) -> Result<u64, Error> {
    let opened = archive.open_layer(layer)?;
    let outcome = unpack_hashed(opened, into);
    let Hashed {
        unpacked,
        packed_digest,
        plain_digest,
    } = outcome.map_err(|error| match error {
        LayerError::Write { path, source } => Error::Io {
            act: "unpack into the image store",
            object: path,
            source,
        },
        LayerError::Refused { .. } | LayerError::Tar(_) => {
            archive.bad(format!("layer {}: {error}", layer.diff_id))
        }
    })?;
    if layer
        .digest
        .as_ref()
        .is_some_and(|expected| *expected != packed_digest)
        || plain_digest != layer.diff_id
    {
        return Err(archive.bad(format!(
            "layer {} does not have the digest it is filed under",
            layer.diff_id
        )));
    }
    Ok(unpacked)
}

struct Hashed {
    unpacked: u64,
    packed_digest: String,
    plain_digest: String,
}

fn unpack_hashed(from: impl Read, into: &Path) -> Result<Hashed, LayerError> {
    let mut packed = Hashing::new(from);
    let mut magic = [0; 4];
    let read = read_some(&mut packed, &mut magic).map_err(LayerError::Tar)?;
    let magic = &magic[..read];
    let whole = magic.chain(&mut packed);
    let plain: Box<dyn Read + '_> = match Packing::of(magic) {
        Some(packing) => packing.open(whole).map_err(LayerError::Tar)?,
        None => Box::new(whole),
    };
    let mut plain = Hashing::new(plain);
    let unpacked = layer::unpack(&mut plain, into)?;
    let plain_digest = plain.digest();
    // What follows the compressed stream belongs to the blob's digest too.
    std::io::copy(&mut packed, &mut std::io::sink()).map_err(LayerError::Tar)?;
    Ok(Hashed {
        unpacked: unpacked.size_bytes,
        packed_digest: packed.digest(),
        plain_digest,
    })
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
