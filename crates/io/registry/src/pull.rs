//! One image, from its name to a whole folder.

use crate::auth::Session;
use crate::blob::{Blobs, digest_of, file_error};
use crate::documents::{ACCEPT, Document, Manifest, choose, known_layers, layout_index, parse};
use crate::http::Asked;
use crate::{Asker, Client, Error, Progress, Pulled};
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::header::{ACCEPT as ACCEPT_HEADER, CONTENT_TYPE};
use kedge_containers::oci::{DOCUMENT_BYTES_MAX, Descriptor};
use kedge_containers::{Credentials, Reference};
use std::path::Path;

/// Layers that are downloaded at one time: more do not fill a thin line better.
const PARALLEL_MAX: usize = 3;
/// Tries of a manifest: a registry that is busy for longer is asked again by whoever wanted the image.
const DOCUMENT_TRIES_MAX: u32 = 3;
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// A document with what names it.
struct Fetched {
    digest: String,
    media_type: String,
    bytes: Vec<u8>,
}

impl Client {
    /// Fetches an image into `folder`, which may hold what an earlier pull of the same image left. The credentials are
    /// tried in turn; only where there are none is it asked without, as kubelets do.
    ///
    /// # Errors
    /// That of the registry itself; what a mirror did wrong is only logged.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: &[Credentials],
        into: Into<'_>,
    ) -> Result<Pulled, Error> {
        let registry = reference.registry();
        let mirrors = self.config().mirrors.get(registry).into_iter().flatten();
        for mirror in mirrors {
            match self.pull_from(mirror, reference, None, into).await {
                Ok(pulled) => return Ok(pulled),
                Err(error) => tracing::debug!(mirror, image = %reference, %error, "not from this mirror"),
            }
        }
        let mut denied = None;
        let askers = credentials.iter().cloned().map(Some);
        let last = credentials.is_empty().then_some(None);
        for asker in askers.chain(last) {
            match self.pull_from(registry, reference, asker, into).await {
                Err(error @ (Error::Denied { .. } | Error::NotFound { .. })) => denied = Some(error),
                outcome => return outcome,
            }
        }
        // Without credentials there was one try, whose refusal this is.
        Err(denied.unwrap_or_else(|| Error::NotFound {
            image: reference.to_string(),
            host: registry.to_owned(),
        }))
    }

    async fn pull_from(
        &self,
        host: &str,
        reference: &Reference,
        asker: Asker,
        into: Into<'_>,
    ) -> Result<Pulled, Error> {
        let folder = into.folder;
        let image = reference.to_string();
        let session = Session::new(self.clone(), host, reference.path(), &image, asker);
        let named = reference.digest.as_ref().or(reference.tag.as_ref());
        let first = fetch(&session, named.map_or("latest", String::as_str)).await?;
        let digest = first.digest.clone();
        let (fetched, manifest) = match parse(&first.bytes, &first.media_type, session.host())? {
            Document::Manifest(manifest) => (first, manifest),
            Document::Index(all) => self.of_this_processor(&session, &all).await?,
        };
        self.check_size(&image, &manifest)?;
        let blobs = Blobs::make(folder).await?;
        blobs.keep(&fetched.digest, &fetched.bytes).await?;
        self.fetch_blobs(&session, &blobs, manifest, into).await?;
        let descriptor = Descriptor {
            media_type: fetched.media_type,
            digest: fetched.digest,
            size: fetched.bytes.len() as u64,
            platform: None,
            annotations: Default::default(),
        };
        write(&folder.join("oci-layout"), LAYOUT.as_bytes()).await?;
        // The index comes last: a folder with one is whole.
        write(&folder.join("index.json"), &layout_index(&descriptor, &image)).await?;
        Ok(Pulled { digest })
    }

    async fn of_this_processor(
        &self,
        session: &Session,
        index: &[Descriptor],
    ) -> Result<(Fetched, Manifest), Error> {
        let chosen = choose(index, self.config(), session.image())?;
        let fetched = fetch(session, &chosen.digest).await?;
        match parse(&fetched.bytes, &fetched.media_type, session.host())? {
            Document::Manifest(manifest) => Ok((fetched, manifest)),
            Document::Index(_) => Err(Error::BadAnswer {
                host: session.host().to_owned(),
                reason: "an index names another index".to_owned(),
            }),
        }
    }

    fn check_size(&self, image: &str, manifest: &Manifest) -> Result<(), Error> {
        let sizes = manifest.layers.iter().map(|layer| layer.size);
        let bytes = sizes.fold(manifest.config.size, u64::saturating_add);
        let max = self.config().image_bytes_max;
        if bytes > max || manifest.config.size > DOCUMENT_BYTES_MAX {
            return Err(Error::TooLarge {
                image: image.to_owned(),
                bytes,
                max,
            });
        }
        Ok(())
    }

    async fn fetch_blobs(
        &self,
        session: &Session,
        blobs: &Blobs,
        manifest: Manifest,
        into: Into<'_>,
    ) -> Result<(), Error> {
        let progress = into.progress;
        progress.set_total(manifest.config.size);
        blobs.fetch(session, &manifest.config, progress).await?;
        let configuration = blobs.read(&manifest.config).await?;
        let known = known_layers(&configuration, self.config(), session.image(), into.has_layer)?;
        let mut missing: Vec<Descriptor> = Vec::new();
        for (number, layer) in manifest.layers.into_iter().enumerate() {
            // An empty layer may stand in an image several times.
            let twice = missing.iter().any(|other| other.digest == layer.digest);
            if !twice && !known.get(number).copied().unwrap_or(false) {
                missing.push(layer);
            }
        }
        let layers: u64 = missing.iter().map(|blob| blob.size).sum();
        progress.set_total(manifest.config.size + layers);
        check_room(
            into.folder,
            session.image(),
            layers.saturating_sub(blobs.begun(&missing).await),
        )?;
        futures_util::stream::iter(missing)
            .map(|blob| async move { blobs.fetch(session, &blob, progress).await })
            .buffer_unordered(PARALLEL_MAX)
            .try_collect()
            .await
    }
}

/// Where a pull goes.
#[derive(Clone, Copy)]
pub struct Into<'a> {
    /// Becomes a folder in the OCI image layout; layers that are known already are left out.
    pub folder: &'a Path,
    /// Whether a layer is here already: the last of these, which are the digests of the uncompressed tars of an image
    /// from the lowest layer up to it.
    pub has_layer: &'a (dyn Fn(&[String]) -> bool + Sync),
    pub progress: &'a Progress,
}

impl std::fmt::Debug for Into<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Into")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// Fetches a manifest or an index by tag or digest, and verifies it where its digest is known.
async fn fetch(session: &Session, name: &str) -> Result<Fetched, Error> {
    let asked = Asked::get(format!("/v2/{}/manifests/{name}", session.path())).with(ACCEPT_HEADER, ACCEPT);
    let (bytes, media_type) = patiently(session, || async {
        let mut answer = session.ask(asked.clone()).await?;
        if !answer.status.is_success() {
            return Err(answer.refusal(session.image()).await);
        }
        let bytes = answer.bytes(DOCUMENT_BYTES_MAX).await?;
        Ok((bytes, answer.header(CONTENT_TYPE).to_owned()))
    })
    .await?;
    let digest = digest_of(&bytes);
    if kedge_containers::is_digest(name) && digest != name {
        return Err(Error::BadAnswer {
            host: session.host().to_owned(),
            reason: format!("the manifest {name} has the digest {digest}"),
        });
    }
    Ok(Fetched {
        digest,
        media_type,
        bytes,
    })
}

/// Asks for a document again while the registry has a passing trouble.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(
    session: &Session,
    ask: impl Fn() -> F,
) -> Result<T, Error> {
    let mut tries = 0;
    loop {
        match ask().await {
            // Where nobody answers, whoever wanted the image asks again.
            Err(error @ (Error::Connect { .. } | Error::Stalled { .. })) => return Err(error),
            Err(error) if error.is_passing() && tries + 1 < DOCUMENT_TRIES_MAX => {
                tries += 1;
                tokio::time::sleep(session.client().pause(&error, tries)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Refuses what cannot fit before it fills the disk.
fn check_room(folder: &Path, image: &str, bytes: u64) -> Result<(), Error> {
    let free = rustix::fs::statvfs(folder)
        .map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
        .map_err(|errno| file_error("measure the disk of", folder, errno.into()))?;
    if bytes > free {
        return Err(Error::NoRoom {
            image: image.to_owned(),
            bytes,
            folder: folder.to_owned(),
            free,
        });
    }
    Ok(())
}

async fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let written = tokio::fs::write(path, bytes).await;
    written.map_err(|source| file_error("write", path, source))
}
