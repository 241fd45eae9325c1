//! From a registry into the store, by way of a folder that survives a break.
//!
//! ```text
//!   pulls/<32 hex>/       one image that is on its way, named by the digest of its reference
//!   pulls/<32 hex>.lock   held by the process that pulls it
//! ```

use super::store::{ImageStore, name_of_known};
use super::{Reference, digest_of};
use crate::lock::{FileLock, Sharing};
use crate::{Error, durable};
use kedge_containers::{Credentials, Image};
use kedge_registry::{Client, Config, Into, Progress};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::OnceCell;

const NAME_HEX: usize = 32;
/// Broken pulls that are kept to go on with; the oldest of more goes.
const KEPT_MAX: usize = 4;
/// How long one process waits for another that pulls the same image.
const WAIT_MAX: Duration = Duration::from_secs(30 * 60);
const WAIT_INTERVAL: Duration = Duration::from_millis(500);
/// How often the log tells how far a pull is.
const TELL_INTERVAL: Duration = Duration::from_secs(30);
/// Layers that were here may be removed while the rest of their image comes; that this happens again is no chance.
const TRIES_MAX: u32 = 3;

/// The pulls of one image store.
#[derive(Debug)]
pub(crate) struct Puller {
    registries: Config,
    /// Made for the first pull: it reads the authorities of the whole system, and an edge at rest pulls nothing.
    client: OnceCell<Client>,
    directory: PathBuf,
}

/// An image that is whole in its folder, and locked until it is imported.
struct Fetched {
    reference: Reference,
    digest: String,
    folder: PathBuf,
    lock: PathBuf,
    _alone: FileLock,
}

impl Puller {
    pub(crate) fn open(registries: Config, directory: PathBuf) -> Result<Self, Error> {
        durable::make_directory(&directory)?;
        remove_oldest(&directory, KEPT_MAX)?;
        Ok(Self {
            registries,
            client: OnceCell::new(),
            directory,
        })
    }

    /// One that cannot be made, because a file of authorities is wrong, is tried again by the next pull.
    async fn client(&self) -> Result<&Client, Error> {
        let make = || async {
            let registries = self.registries.clone();
            let made = tokio::task::spawn_blocking(move || Client::new(registries)).await;
            let failed = |error: &dyn std::fmt::Display| Error::failed("set up", "registries", error);
            made.map_err(|error| failed(&error))?
                .map_err(|error| failed(&error))
        };
        self.client.get_or_try_init(make).await
    }

    /// Fetches what the store does not have of an image, and imports it.
    pub(crate) async fn pull(
        &self,
        store: &ImageStore,
        reference: &str,
        credentials: &[Credentials],
        progress: &Progress,
    ) -> Result<Image, Error> {
        let parsed: Reference = reference.parse().map_err(|error| Error::BadImage {
            image: reference.to_owned(),
            reason: format!("{error}"),
        })?;
        self.keep_newest(KEPT_MAX).await?;
        for _ in 0..TRIES_MAX {
            let fetched = self.fetch(store, &parsed, credentials, progress).await?;
            let store = store.clone();
            let imported = tokio::task::spawn_blocking(move || fetched.import(&store)).await;
            let imported = imported.map_err(|error| Error::failed("import image", reference, error))?;
            if let Some(image) = imported? {
                return Ok(image);
            }
        }
        let reason = "layers that it shares with other images are removed again and again";
        Err(Error::failed("pull", reference, reason))
    }

    /// Removes broken pulls but the newest. One that goes on is none.
    async fn keep_newest(&self, kept_max: usize) -> Result<(), Error> {
        let directory = self.directory.clone();
        let removed = tokio::task::spawn_blocking(move || remove_oldest(&directory, kept_max)).await;
        removed.map_err(|error| Error::failed("remove", "broken pulls", error))?
    }

    async fn fetch(
        &self,
        store: &ImageStore,
        reference: &Reference,
        credentials: &[Credentials],
        progress: &Progress,
    ) -> Result<Fetched, Error> {
        let client = self.client().await?;
        let image = reference.to_string();
        let digest = digest_of(image.as_bytes());
        let name = digest.trim_start_matches("sha256:").chars();
        let folder = self.directory.join(name.take(NAME_HEX).collect::<String>());
        let lock = folder.with_extension("lock");
        let alone = self.lock(&lock).await?;
        let here = store.layer_names()?;
        let has_layer =
            move |diff_ids: &[String]| name_of_known(diff_ids, |name| here.contains(name)).is_some();
        let into = Into {
            folder: &folder,
            has_layer: &has_layer,
            progress,
        };
        // Large, and alive for minutes: not on the stack of whoever waits for it.
        let pull = Box::pin(client.pull(reference, credentials, into));
        let pulled = told(&image, progress, pull).await;
        let pulled = pulled.map_err(|error| {
            // What fills the disk is in the way of more than this image; and a pull that was refused has nothing to keep.
            if error.is_full_disk() || !folder.exists() {
                remove(&folder, &lock);
            }
            Error::Pull {
                image,
                source: Box::new(error),
            }
        })?;
        Ok(Fetched {
            reference: reference.clone(),
            digest: pulled.digest,
            folder,
            lock,
            _alone: alone,
        })
    }

    async fn lock(&self, path: &Path) -> Result<FileLock, Error> {
        let began = Instant::now();
        loop {
            let taken = FileLock::take(path, Sharing::Exclusive, Duration::ZERO)?;
            if let Some(lock) = taken.filter(|lock| lock.is_of(path)) {
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
    /// Unpacks it into the store and removes the folder, unless something is missing now. Blocks.
    fn import(self, store: &ImageStore) -> Result<Option<Image>, Error> {
        let imported = store.import_pulled(&self.folder, &self.reference, &self.digest);
        if !matches!(imported, Ok(None)) {
            // What could not be imported would not be better the next time.
            remove(&self.folder, &self.lock);
        }
        imported
    }
}

/// Removes the broken pulls that nobody goes on with.
pub(crate) fn remove_all(directory: &Path) -> Result<(), Error> {
    durable::make_directory(directory)?;
    remove_oldest(directory, 0)
}

/// Tells the log how far a pull is, a line at a time.
async fn told<T>(image: &str, progress: &Progress, pull: impl Future<Output = T>) -> T {
    tracing::info!(image, "pull begins");
    let mut pull = std::pin::pin!(pull);
    loop {
        match tokio::time::timeout(TELL_INTERVAL, &mut pull).await {
            Ok(pulled) => {
                tracing::info!(image, bytes = progress.done_bytes(), "pull ends");
                return pulled;
            }
            Err(_still) => {
                let (done_bytes, total_bytes) = (progress.done_bytes(), progress.total_bytes());
                tracing::info!(image, done_bytes, total_bytes, "pull goes on");
            }
        }
    }
}

/// Removes a pull whose lock is held. What cannot be removed is the oldest at some time.
fn remove(folder: &Path, lock: &Path) {
    if let Err(error) = durable::remove_directory(folder).and_then(|()| durable::remove_file(lock)) {
        tracing::warn!(%error, "a pull leaves something behind");
    }
}

fn remove_oldest(directory: &Path, kept_max: usize) -> Result<(), Error> {
    let failed = |source| Error::io("list", directory, source);
    let mut pulls: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => pulls.push((meta.modified().map_err(failed)?, path)),
            // The lock of a pull that came to nothing before there was a folder.
            Ok(_) if !path.with_extension("").exists() => {
                pulls.push((SystemTime::UNIX_EPOCH, path.with_extension("")))
            }
            Ok(_) => {}
            // Its pull has just ended.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    pulls.sort();
    let surplus = pulls.len().saturating_sub(kept_max);
    for (_, folder) in pulls.drain(..surplus) {
        let lock = folder.with_extension("lock");
        // One that is on its way belongs to another process.
        if let Some(_alone) = FileLock::take(&lock, Sharing::Exclusive, Duration::ZERO)? {
            remove(&folder, &lock);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn authorities_are_read_by_the_first_pull() {
        let directory = std::env::temp_dir().join(format!("kedge-puller-{}", std::process::id()));
        let authorities = directory.join("authorities.pem");
        let mut registries = Config::new("amd64");
        registries.authorities.push(authorities.clone());
        let puller = Puller::open(registries, directory.join("pulls")).unwrap();
        let refused = puller.client().await.map(drop).unwrap_err().to_string();
        std::fs::write(&authorities, "").unwrap();
        let repaired = puller.client().await.map(drop);
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(refused.contains("authorities.pem"), "{refused}");
        repaired.unwrap();
    }
}
