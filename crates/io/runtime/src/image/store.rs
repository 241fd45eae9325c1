//! The images of this node: unpacked layers shared between images, and one index that names them.
//!
//! ```text
//!   images/index.json           what there is; replaced whole and last, so an interrupted import leaves nothing visible
//!   images/layers ...           see `shelf`: what no image of the index and no container needs goes at the next opening
//!   images/images.lock          taken alone while images come and go: two imports could unpack the same layer
//!   images/use.lock             shared while something is made of an image, taken alone while one is removed
//! ```
//!
//! Reading needs no lock: the index is always whole. Containers are made while another image is being unpacked.

use super::Reference;
use super::archive::{Archive, ArchivedImage};
use super::document::Execution;
use super::shelf::Shelf;
pub(crate) use super::shelf::name_of_known;
use super::{export, import};
use crate::lock::{FileLock, Sharing};
use crate::{Error, durable};
use kedge_containers::Image;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The index is read whole, and by records' limit; an image takes a few kilobytes of it.
const INDEX_BYTES_MAX: usize = 12 * 1024 * 1024;

/// An import of gigabytes onto a slow card takes minutes; one that takes longer than this hangs.
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(10 * 60);
/// Containers are made in well under a second, and layers are removed in a few, also on a slow card.
const USE_WAIT_MAX: Duration = Duration::from_secs(2 * 60);

/// The store. Any number of processes may have it open: what is there is asked of the disk each time, because another
/// process may have changed it.
#[derive(Debug, Clone)]
pub(crate) struct ImageStore {
    shelf: Arc<Shelf>,
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
    /// Opens the store and removes what an interrupted import or removal left behind, unless somebody is changing
    /// images now. `users` finds the containers that need images.
    pub(crate) fn open(
        directory: PathBuf,
        users: impl FnOnce() -> Result<Vec<ImageUser>, Error>,
    ) -> Result<Self, Error> {
        let store = Self {
            shelf: Arc::new(Shelf::make(directory)?),
        };
        if let Some(_changing) = FileLock::take(&store.change_lock(), Sharing::Exclusive, Duration::ZERO)? {
            // Not before: what others have brought meanwhile would be taken for leftovers.
            let index = store.index()?;
            // Who does not know what is used removes nothing.
            match users() {
                Ok(users) => drop(store.sweep(&index, &users)?),
                Err(error) => {
                    tracing::warn!(%error, "leftovers of images stay, because containers are unknown")
                }
            }
        } else {
            // Who cannot read it says so now.
            store.index()?;
        }
        Ok(store)
    }

    pub(crate) fn layers_directory(&self) -> PathBuf {
        self.shelf.layers()
    }

    pub(crate) fn images(&self) -> Result<Vec<Image>, Error> {
        let index = self.index()?;
        Ok(index.images.values().map(StoredImage::to_image).collect())
    }

    pub(crate) fn image(&self, reference: &str) -> Result<Option<Image>, Error> {
        Ok(self.find(reference)?.map(|image| image.to_image()))
    }

    /// The names under which layers are filed here.
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
        // What may take long and changes nothing comes before the lock.
        let archive = Archive::open(archive, self.shelf.directory())?;
        let images = archive.images()?;
        let _changing = self.change()?;
        self.import_images(&archive, images)
    }

    /// Imports the image that a pull of `reference` has left in a folder, and remembers the digest under which the
    /// registry has it. `None` when layers that the pull left out, because they were here, are so no more.
    pub(crate) fn import_pulled(
        &self,
        folder: &Path,
        reference: &Reference,
        digest: &str,
    ) -> Result<Option<Image>, Error> {
        let name = reference.to_string();
        let archive = Archive::of_folder(folder, &name);
        let images = archive.images()?;
        let _changing = self.change()?;
        let here = self.layer_names()?;
        for image in &images {
            let known = image.known_layers(|name| here.contains(name));
            let mut layers = image.layers.iter().zip(&known);
            if layers.any(|(layer, name)| name.is_none() && archive.lacks(layer)) {
                return Ok(None);
            }
        }
        let imported = self.import_images(&archive, images)?;
        let id = imported.first().map(|image| image.id.clone()).unwrap_or_default();
        let mut next = self.index()?;
        let image = next
            .images
            .get_mut(&id)
            .ok_or(Error::ImageNotFound { image: name })?;
        image.digests.insert(format!("{}@{digest}", reference.repository));
        let image = image.to_image();
        self.write_index(&next)?;
        Ok(Some(image))
    }

    fn import_images(&self, archive: &Archive, images: Vec<ArchivedImage>) -> Result<Vec<Image>, Error> {
        let mut imported = Vec::new();
        for image in images {
            let mut next = self.index()?;
            let stored = self.import_image(archive, image, &next)?;
            let id = stored.id.clone();
            next.insert(stored);
            imported.extend(next.images.get(&id).map(StoredImage::to_image));
            self.write_index(&next)?;
        }
        Ok(imported)
    }

    /// Writes an image to an OCI archive. With a name it is exported under that name, by its id under all it has.
    pub(crate) fn export(&self, reference: &str, to: &Path) -> Result<Image, Error> {
        let _held = self.hold()?;
        let index = self.index()?;
        let found = index.find(reference).ok_or_else(|| Error::ImageNotFound {
            image: reference.to_owned(),
        })?;
        let asked = reference
            .parse::<Reference>()
            .ok()
            .and_then(|asked| asked.tagged());
        let names = found.tags.iter().filter(|tag| match &asked {
            Some(asked) if found.tags.contains(asked) => *tag == asked,
            Some(_) | None => true,
        });
        let names: Vec<Reference> = names.filter_map(|name| name.parse().ok()).collect();
        export::export(&self.shelf, found, &names, to)?;
        Ok(found.to_image())
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
        self.sweep(&next, &users).map(drop)
    }

    /// Removes the images without a name, or with `all` every one, that no container uses. Returns them, and how many
    /// bytes went with them and with what else was left over.
    pub(crate) fn prune(
        &self,
        all: bool,
        users: impl FnOnce() -> Result<Vec<ImageUser>, Error>,
    ) -> Result<(Vec<Image>, u64), Error> {
        let _changing = self.change()?;
        let _unused = self.take(&self.use_lock(), Sharing::Exclusive, USE_WAIT_MAX)?;
        let users = users()?;
        let mut next = self.index()?;
        let is_free = |image: &StoredImage| {
            (all || image.tags.is_empty()) && !users.iter().any(|user| user.image == image.id)
        };
        let free: Vec<StoredImage> = next
            .images
            .values()
            .filter(|image| is_free(image))
            .cloned()
            .collect();
        free.iter().for_each(|image| drop(next.images.remove(&image.id)));
        self.write_index(&next)?;
        let freed = self.sweep(&next, &users)?;
        Ok((free.iter().map(StoredImage::to_image).collect(), freed))
    }

    /// Removes what neither an image nor a container needs; only while nobody else changes images.
    fn sweep(&self, index: &StoredIndex, users: &[ImageUser]) -> Result<u64, Error> {
        let mut layers: BTreeSet<String> = index.layers().into_iter().cloned().collect();
        layers.extend(users.iter().flat_map(|user| user.layers.iter().cloned()));
        let configurations = index.images.keys().cloned().collect();
        self.shelf.keep_only(&layers, &configurations)
    }

    fn import_image(
        &self,
        archive: &Archive,
        image: ArchivedImage,
        index: &StoredIndex,
    ) -> Result<StoredImage, Error> {
        let known = image.known_layers(|name| index.layer_bytes(name).is_some());
        let layers = import::import_layers(archive, &image.layers, known, &self.shelf)?;
        let mut layer_bytes = Vec::new();
        for name in &layers {
            layer_bytes.push(match index.layer_bytes(name) {
                Some(known) => known,
                None => self.shelf.record(name)?.map_or(0, |record| record.size_bytes),
            });
        }
        durable::write(&self.shelf.blob(&image.id), &image.configuration_bytes)?;
        let names = image.references.iter().filter_map(|name| name.parse().ok());
        let references: Vec<Reference> = names.collect();
        let digests = image.manifest_digest.iter().flat_map(|digest| {
            let names = references.iter();
            names.map(move |reference| format!("{}@{digest}", reference.repository))
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

    fn write_index(&self, index: &StoredIndex) -> Result<(), Error> {
        let path = self.shelf.directory().join("index.json");
        let bytes = serde_json::to_vec(index).map_err(|error| Error::io("write", &path, error.into()))?;
        if bytes.len() > INDEX_BYTES_MAX {
            let reason = "there are too many images; remove some";
            return Err(Error::failed(
                "keep one more image in",
                path.display().to_string(),
                reason,
            ));
        }
        durable::write(&path, &bytes)
    }

    fn index(&self) -> Result<StoredIndex, Error> {
        Ok(durable::read_record(&self.shelf.directory().join("index.json"))?.unwrap_or_default())
    }

    fn change_lock(&self) -> PathBuf {
        self.shelf.directory().join("images.lock")
    }

    fn use_lock(&self) -> PathBuf {
        self.shelf.directory().join("use.lock")
    }

    fn change(&self) -> Result<FileLock, Error> {
        self.take(&self.change_lock(), Sharing::Exclusive, CHANGE_WAIT_MAX)
    }

    fn take(&self, lock: &Path, sharing: Sharing, wait_max: Duration) -> Result<FileLock, Error> {
        FileLock::take(lock, sharing, wait_max)?.ok_or_else(|| {
            let reason = format!("others have kept {} locked for {wait_max:?}", lock.display());
            Error::failed(
                "use the images in",
                self.shelf.directory().display().to_string(),
                reason,
            )
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
