//! The images alone, for whoever has no business with containers: `kedge image` beside a running daemon.

use super::layout::Layout;
use super::records;
use crate::Error;
use crate::image::pull::{self, Puller};
use crate::image::store::{ImageStore, ImageUser};
use kedge_containers::{Credentials, Image};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The images below a runtime's directory, whether a runtime has it open or not. What is imported or removed here is
/// so for the runtime at once. It never touches sandboxes or containers; it only reads which images they use.
#[derive(Debug, Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    store: ImageStore,
}

/// What a pruning removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    pub images: Vec<Image>,
    /// Of files that stand nowhere else.
    pub freed_bytes: u64,
}

impl Images {
    /// Opens the images below `root`, the [`root`](super::Config::root) of a runtime.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let layout = Layout::make(root.to_owned())?;
        let store = ImageStore::open(layout.images(), || users(&layout))?;
        Ok(Self {
            inner: Arc::new(Inner { layout, store }),
        })
    }

    /// Imports an OCI image archive or one of `docker save`. Must be called within a tokio runtime, as the others.
    pub async fn import(&self, archive: PathBuf) -> Result<Vec<Image>, Error> {
        self.blocking("import image", move |inner| inner.store.import(&archive))
            .await
    }

    /// Pulls an image from a registry.
    pub async fn pull(
        &self,
        registries: kedge_registry::Config,
        reference: &str,
        credentials: &[Credentials],
        progress: &kedge_registry::Progress,
    ) -> Result<Image, Error> {
        let pulls = self.inner.layout.pulls();
        let puller = self
            .blocking("open pulls", move |_| Puller::open(registries, pulls))
            .await?;
        puller
            .pull(&self.inner.store, reference, credentials, progress)
            .await
    }

    /// Writes an image to an OCI archive at `to`, which `docker load` takes, too.
    pub async fn export(&self, reference: &str, to: PathBuf) -> Result<Image, Error> {
        let reference = reference.to_owned();
        self.blocking("export image", move |inner| inner.store.export(&reference, &to))
            .await
    }

    /// Removes the images without a name, or with `all` every one, that no container uses, and the pulls that broke off.
    pub async fn prune(&self, all: bool) -> Result<Pruned, Error> {
        self.blocking("prune images", move |inner| {
            pull::remove_all(&inner.layout.pulls())?;
            let (images, freed_bytes) = inner.store.prune(all, || users(&inner.layout))?;
            Ok(Pruned { images, freed_bytes })
        })
        .await
    }

    /// All images.
    pub async fn list(&self) -> Result<Vec<Image>, Error> {
        self.blocking("list images", |inner| inner.store.images()).await
    }

    /// Takes a name away from an image; the image goes with its last name, unless a container uses it.
    pub async fn remove(&self, reference: &str) -> Result<(), Error> {
        let reference = reference.to_owned();
        self.blocking("remove image", move |inner| {
            remove(&inner.store, &inner.layout, &reference)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        act: &'static str,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.map_err(|error| Error::failed(act, "in the image store", error))?
    }
}

/// The containers on disk, with the images that they are made of.
pub(super) fn users(layout: &Layout) -> Result<Vec<ImageUser>, Error> {
    let containers = records::containers(layout)?.into_iter();
    let users = containers.map(|record| ImageUser {
        container: record.id,
        image: record.image_id,
        layers: record.layers,
    });
    Ok(users.collect())
}

/// Removes an image that no container on disk uses.
pub(super) fn remove(store: &ImageStore, layout: &Layout, reference: &str) -> Result<(), Error> {
    store.remove(reference, || users(layout))
}
