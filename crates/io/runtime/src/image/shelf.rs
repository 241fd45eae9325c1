//! Where layers and blobs stand in the image store, and under which names they are on their way.
//!
//! ```text
//!   layers/<32 hex>/        one unpacked layer, named by the digest of its tar, or by those of all up to it where it takes
//!                           something from the layers below; `.<32 hex>` until it is whole
//!   recipes/<32 hex>        how its tar is made again
//!   recipes/<32 hex>.json   its digest and sizes
//!   blobs/sha256/<hex>      configurations as they came, and the few layers that have to be kept packed
//! ```

use super::digest_of;
use super::import::remove_any;
use super::packing::Packing;
use crate::{Error, durable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Layer directories are named by this much of their digest: overlayfs takes one page of mount options, and 127 layers
/// have to fit. 128 bits do not collide.
const LAYER_NAME_HEX: usize = 32;

/// How a layer is filed that is the same wherever it lies.
pub(crate) fn layer_name(diff_id: &str) -> String {
    let hex = diff_id.trim_start_matches("sha256:").chars();
    hex.take(LAYER_NAME_HEX).collect()
}

/// How a layer is filed that is what it is only on top of others: the last of these, lowest first.
pub(super) fn stacked_name<T: AsRef<str>>(diff_ids: &[T]) -> String {
    let chain: Vec<&str> = diff_ids.iter().map(AsRef::as_ref).collect();
    layer_name(&digest_of(format!("stacked\n{}", chain.join("\n")).as_bytes()))
}

/// Under which name a layer is here, if it is: the last of these, lowest first.
pub(crate) fn name_of_known<T: AsRef<str>>(diff_ids: &[T], is_here: impl Fn(&str) -> bool) -> Option<String> {
    let own = layer_name(diff_ids.last()?.as_ref());
    let found = Some(own).filter(|name| is_here(name));
    found.or_else(|| Some(stacked_name(diff_ids)).filter(|name| is_here(name)))
}

/// A layer that has been unpacked and has no name yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unnamed {
    /// Under which it is on its way.
    pub(super) name: String,
    /// That it will have.
    pub(super) last_name: String,
}

/// What is known of an unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredLayer {
    /// `sha256:…` of its tar.
    pub(super) diff_id: String,
    /// Of its files.
    pub(super) size_bytes: u64,
    /// Of its tar.
    pub(super) plain_bytes: u64,
    /// As it came, where the recipe does not lead back to the tar.
    pub(super) packed: Option<StoredPacked>,
}

/// A layer that is kept as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredPacked {
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) packing: Option<Packing>,
}

/// The directories of the store.
#[derive(Debug)]
pub(super) struct Shelf {
    directory: PathBuf,
}

impl Shelf {
    pub(super) fn make(directory: PathBuf) -> Result<Self, Error> {
        let shelf = Self { directory };
        for made in [shelf.layers(), shelf.recipes(), shelf.blobs()] {
            durable::make_directory(&made)?;
        }
        Ok(shelf)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn layers(&self) -> PathBuf {
        self.directory.join("layers")
    }

    fn recipes(&self) -> PathBuf {
        self.directory.join("recipes")
    }

    fn blobs(&self) -> PathBuf {
        self.directory.join("blobs/sha256")
    }

    pub(super) fn layer(&self, name: &str) -> PathBuf {
        self.layers().join(name)
    }

    pub(super) fn recipe(&self, name: &str) -> PathBuf {
        self.recipes().join(name)
    }

    pub(super) fn blob(&self, digest: &str) -> PathBuf {
        self.blobs().join(digest.trim_start_matches("sha256:"))
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.recipes().join(format!("{name}.json"))
    }

    /// What is known of a layer.
    pub(super) fn record(&self, name: &str) -> Result<Option<StoredLayer>, Error> {
        durable::read_record(&self.record_path(name))
    }

    /// An empty directory to unpack a layer into.
    pub(super) fn make_unnamed(&self, name: &str) -> Result<PathBuf, Error> {
        let directory = self.layers().join(format!(".{name}"));
        remove_any(&directory)?;
        let made = std::fs::create_dir(&directory);
        made.map_err(|source| Error::io("make directory", &directory, source))?;
        Ok(directory)
    }

    pub(super) fn unnamed_recipe(&self, name: &str) -> PathBuf {
        self.recipes().join(format!(".{name}"))
    }

    fn unnamed_record(&self, name: &str) -> PathBuf {
        self.recipes().join(format!(".{name}.json"))
    }

    pub(super) fn unnamed_packed(&self, name: &str) -> PathBuf {
        self.blobs().join(format!(".{name}"))
    }

    pub(super) fn write_unnamed_record(&self, name: &str, record: &StoredLayer) -> Result<(), Error> {
        let path = self.unnamed_record(name);
        let written = serde_json::to_vec(record).map_err(std::io::Error::from);
        let written = written.and_then(|bytes| std::fs::write(&path, bytes));
        written.map_err(|source| Error::io("write", &path, source))
    }

    /// Gives unpacked layers their names, once all of them are on the disk.
    pub(super) fn name(&self, layers: &[Unnamed]) -> Result<(), Error> {
        let flushed = File::open(&self.directory).and_then(|directory| Ok(rustix::fs::syncfs(&directory)?));
        flushed.map_err(|source| Error::io("flush", &self.directory, source))?;
        let mut named = BTreeSet::new();
        for Unnamed { name, last_name } in layers {
            if !named.insert(last_name) {
                // The same layer stands in its image twice.
                self.drop_unnamed(name);
                continue;
            }
            let record: Option<StoredLayer> = durable::read_record(&self.unnamed_record(name))?;
            if let Some(packed) = record.and_then(|record| record.packed) {
                rename(&self.unnamed_packed(name), &self.blob(&packed.digest))?;
            }
            rename(&self.unnamed_recipe(name), &self.recipe(last_name))?;
            rename(&self.unnamed_record(name), &self.record_path(last_name))?;
            let place = self.layer(last_name);
            // What stands there without being in the index was left by an interrupted removal.
            remove_any(&place)?;
            rename(&self.layers().join(format!(".{name}")), &place)?;
        }
        [self.layers(), self.recipes(), self.blobs()]
            .iter()
            .try_for_each(|directory| durable::sync_directory(directory))
    }

    /// Removes what an unpacking that failed has left. What cannot be removed goes when the store is opened again.
    pub(super) fn drop_unnamed(&self, name: &str) {
        let unnamed = [
            self.layers().join(format!(".{name}")),
            self.unnamed_recipe(name),
            self.unnamed_record(name),
            self.unnamed_packed(name),
        ];
        for path in unnamed {
            if let Err(error) = remove_any(&path) {
                tracing::warn!(%error, "part of an image that failed is left");
            }
        }
    }

    /// Removes everything that these layers and configurations do not need. Returns how many bytes of files went.
    pub(super) fn keep_only(
        &self,
        layers: &BTreeSet<String>,
        configurations: &BTreeSet<String>,
    ) -> Result<u64, Error> {
        let mut freed = 0;
        let mut blobs: BTreeSet<PathBuf> = configurations.iter().map(|id| self.blob(id)).collect();
        let mut all_known = true;
        for name in layers {
            match self.record(name) {
                Ok(record) => {
                    let packed = record.and_then(|record| record.packed);
                    blobs.extend(packed.map(|packed| self.blob(&packed.digest)));
                }
                Err(error) => {
                    tracing::warn!(%error, "packed layers stay, because it is unknown which are needed");
                    all_known = false;
                }
            }
        }
        for path in list(&self.layers())? {
            let name = name_of(&path);
            if !layers.contains(&name) {
                // Of what is broken the size is not told.
                freed += self
                    .record(&name)
                    .ok()
                    .flatten()
                    .map_or(0, |record| record.size_bytes);
                remove_any(&path)?;
            }
        }
        for path in list(&self.recipes())? {
            if !layers.contains(name_of(&path).trim_end_matches(".json")) {
                remove_any(&path)?;
            }
        }
        for path in list(&self.blobs())? {
            let is_unnamed = name_of(&path).starts_with('.');
            if !blobs.contains(&path) && (all_known || is_unnamed) {
                freed += std::fs::metadata(&path).map_or(0, |meta| meta.len());
                remove_any(&path)?;
            }
        }
        Ok(freed)
    }
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::io("list", directory, source);
    let entries = std::fs::read_dir(directory).map_err(failed)?;
    entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(|source| Error::io("rename into the image store", to, source))
}
