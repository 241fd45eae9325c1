//! From a registry into the store, by way of a folder that survives a break.
//!
//! ```text
//!   pulls/<32 hex>/       one image that is on its way, named by the digest of its reference
//!   pulls/<32 hex>.lock   held by the process that pulls it
//! ```

use super::store::ImageStore;
use super::{Reference, digest_of};
use crate::lock::{FileLock, Sharing};
use crate::{Error, durable};
use kedge_containers::{Credentials, Image};
use kedge_registry::{Client, Config, Into, Progress};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

const NAME_HEX: usize = 32;
/// Broken pulls that are kept to go on with; the oldest of more goes.
const KEPT_MAX: usize = 4;
/// How long one process waits for another that pulls the same image.
const WAIT_MAX: Duration = Duration::from_secs(30 * 60);
const WAIT_INTERVAL: Duration = Duration::from_millis(500);

/// The pulls of one image store.
#[derive(Debug)]
pub(crate) struct Puller {
    client: Client,
    directory: PathBuf,
}

/// An image that is whole in its folder, and locked until it is imported.
#[derive(Debug)]
pub(crate) struct Fetched {
    reference: Reference,
    digest: String,
    folder: PathBuf,
    _alone: FileLock,
}

impl Puller {
    pub(crate) fn open(config: Config, directory: PathBuf) -> Result<Self, Error> {
        durable::make_directory(&directory)?;
        remove_oldest(&directory)?;
        let client = Client::new(config).map_err(|error| Error::failed("set up", "registries", error))?;
        Ok(Self { client, directory })
    }

    /// Fetches what the store does not have of an image.
    pub(crate) async fn fetch(
        &self,
        reference: &str,
        credentials: &[Credentials],
        has_layer: &(dyn Fn(&str) -> bool + Sync),
        progress: &Progress,
    ) -> Result<Fetched, Error> {
        let parsed: Reference = reference.parse().map_err(|error| Error::BadImage {
            image: reference.to_owned(),
            reason: format!("{error}"),
        })?;
        let digest = digest_of(parsed.to_string().as_bytes());
        let name: String = digest
            .trim_start_matches("sha256:")
            .chars()
            .take(NAME_HEX)
            .collect();
        let folder = self.directory.join(&name);
        let alone = self.lock(&folder.with_extension("lock")).await?;
        let into = Into {
            folder: &folder,
            has_layer,
            progress,
        };
        let pulled = self.client.pull(&parsed, credentials, into).await;
        let pulled = pulled.map_err(|error| Error::Pull {
            image: reference.to_owned(),
            source: Box::new(error),
        })?;
        Ok(Fetched {
            reference: parsed,
            digest: pulled.digest,
            folder,
            _alone: alone,
        })
    }

    async fn lock(&self, path: &Path) -> Result<FileLock, Error> {
        let began = Instant::now();
        loop {
            if let Some(lock) = FileLock::take(path, Sharing::Exclusive, Duration::ZERO)? {
                return Ok(lock);
            }
            if began.elapsed() > WAIT_MAX {
                let reason = "another process has been pulling the same image for too long";
                return Err(Error::failed("pull into", path.display().to_string(), reason));
            }
            tokio::time::sleep(WAIT_INTERVAL).await;
        }
    }
}

impl Fetched {
    /// Unpacks it into the store and removes the folder. Blocks.
    pub(crate) fn import(self, store: &ImageStore) -> Result<Image, Error> {
        let imported = store.import_pulled(&self.folder, &self.reference, &self.digest);
        // What could not be imported would not be better the next time.
        durable::remove_directory(&self.folder)?;
        imported
    }
}

fn remove_oldest(directory: &Path) -> Result<(), Error> {
    let failed = |source| Error::io("list", directory, source);
    let mut folders: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let meta = entry.metadata().map_err(failed)?;
        if meta.is_dir() {
            folders.push((meta.modified().map_err(failed)?, entry.path()));
        }
    }
    folders.sort();
    let surplus = folders.len().saturating_sub(KEPT_MAX);
    for (_, folder) in folders.drain(..surplus) {
        // One that is on its way belongs to another process.
        if let Some(_alone) =
            FileLock::take(&folder.with_extension("lock"), Sharing::Exclusive, Duration::ZERO)?
        {
            durable::remove_directory(&folder)?;
        }
    }
    Ok(())
}
