//! Blobs in a folder: downloaded in pieces, verified, and only then named.

use crate::auth::Session;
use crate::http::Asked;
use crate::{Error, Progress};
use http::StatusCode;
use http::header::{CONTENT_RANGE, RANGE};
use kedge_containers::oci::Descriptor;
use kedge_containers::print_digest;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

/// Tries of one blob in one pull that brought nothing new; one that moves on may go on for ever.
const FRUITLESS_MAX: u32 = 5;
/// What is hashed at one time of a file that is there.
const HASH_BYTES: usize = 64 * 1024;
/// Less than this between two breaks is as good as nothing: a server that drips must not hold a pull for ever.
const FRUIT_BYTES_MIN: u64 = 1024;

/// The `blobs/sha256` of a folder.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    folder: PathBuf,
}

/// What is already here of a blob.
struct Part {
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Blobs {
    pub(crate) async fn make(layout: &Path) -> Result<Self, Error> {
        let folder = layout.join("blobs/sha256");
        fs::create_dir_all(&folder)
            .await
            .map_err(|source| file_error("make folder", &folder, source))?;
        Ok(Self { folder })
    }

    /// A digest was verified to be one before.
    fn path(&self, digest: &str) -> PathBuf {
        self.folder.join(digest.trim_start_matches("sha256:"))
    }

    /// Keeps a document that has been verified.
    pub(crate) async fn keep(&self, digest: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path(digest);
        let written = fs::write(&path, bytes).await;
        written.map_err(|source| file_error("write", &path, source))
    }

    /// Reads a small blob that is there.
    pub(crate) async fn read(&self, blob: &Descriptor) -> Result<Vec<u8>, Error> {
        let path = self.path(&blob.digest);
        let read = fs::read(&path).await;
        read.map_err(|source| file_error("read", &path, source))
    }

    /// A blob that is there whole was verified before it got its name: one of another size is not what is described.
    async fn has(&self, session: &Session, blob: &Descriptor) -> Result<bool, Error> {
        match fs::metadata(self.path(&blob.digest)).await {
            Err(_) => Ok(false),
            Ok(meta) if meta.len() == blob.size => Ok(true),
            Ok(meta) => Err(Error::BadAnswer {
                host: session.host().to_owned(),
                reason: format!("{} has {} bytes, not {}", blob.digest, meta.len(), blob.size),
            }),
        }
    }

    /// Bytes that are here of these blobs.
    pub(crate) async fn begun(&self, blobs: &[Descriptor]) -> u64 {
        let mut bytes = 0;
        for blob in blobs {
            let whole = self.path(&blob.digest);
            for path in [whole.with_extension("partial"), whole] {
                bytes += fs::metadata(path).await.map_or(0, |meta| meta.len());
            }
        }
        bytes
    }

    /// Downloads a blob, goes on after breaks, and gives it its name when its digest is right.
    pub(crate) async fn fetch(
        &self,
        session: &Session,
        blob: &Descriptor,
        progress: &Progress,
    ) -> Result<(), Error> {
        if self.has(session, blob).await? {
            progress.add(blob.size);
            return Ok(());
        }
        let partial = self.path(&blob.digest).with_extension("partial");
        let mut part = open(&partial, blob.size).await?;
        progress.add(part.bytes);
        let is_from_before = part.bytes > 0;
        complete(session, blob, &partial, &mut part, progress).await?;
        if is_from_before && part.digest() != blob.digest {
            // A power cut leaves files whose content never reached the disk.
            progress.take_back(part.bytes);
            restart(&partial, &mut part).await?;
            complete(session, blob, &partial, &mut part, progress).await?;
        }
        self.finish(session, blob, &partial, part).await
    }

    async fn finish(
        &self,
        session: &Session,
        blob: &Descriptor,
        partial: &Path,
        part: Part,
    ) -> Result<(), Error> {
        let digest = part.digest();
        if digest != blob.digest {
            // Going on with it can never make it right.
            let removed = fs::remove_file(partial).await;
            removed.map_err(|source| file_error("remove", partial, source))?;
            return Err(Error::BadAnswer {
                host: session.host().to_owned(),
                reason: format!("{} has the digest {digest}", blob.digest),
            });
        }
        let flushed = part.file.sync_data().await;
        flushed.map_err(|source| file_error("write", partial, source))?;
        let named = fs::rename(partial, self.path(&blob.digest)).await;
        named.map_err(|source| file_error("rename", partial, source))
    }
}

impl Part {
    fn digest(&self) -> String {
        print_digest(&self.hash.clone().finalize())
    }
}

/// Downloads what is missing, and goes on after breaks.
async fn complete(
    session: &Session,
    blob: &Descriptor,
    partial: &Path,
    part: &mut Part,
    progress: &Progress,
) -> Result<(), Error> {
    let mut fruitless = 0;
    loop {
        let before = part.bytes;
        let outcome = download(session, blob, partial, part, progress).await;
        // A server without ranges may have begun again.
        let gained = part.bytes.saturating_sub(before);
        fruitless = if gained >= FRUIT_BYTES_MIN {
            0
        } else {
            fruitless + 1
        };
        match outcome {
            Err(error) if error.is_passing() && fruitless < FRUITLESS_MAX => {
                tracing::debug!(blob = blob.digest, %error, "download goes on in a moment");
                tokio::time::sleep(session.client().pause(&error, fruitless)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Opens what an earlier pull left, and hashes it.
async fn open(path: &Path, size: u64) -> Result<Part, Error> {
    let failed = |source| file_error("open", path, source);
    let opened = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .await;
    let mut part = Part {
        file: opened.map_err(failed)?,
        hash: Sha256::new(),
        bytes: 0,
    };
    let mut buffer = vec![0; HASH_BYTES];
    loop {
        let read = part.file.read(&mut buffer).await.map_err(failed)?;
        if read == 0 {
            break;
        }
        part.hash.update(&buffer[..read]);
        part.bytes += read as u64;
    }
    if part.bytes > size {
        restart(path, &mut part).await?;
    }
    Ok(part)
}

async fn restart(path: &Path, part: &mut Part) -> Result<(), Error> {
    let failed = |source| file_error("begin again", path, source);
    part.file.set_len(0).await.map_err(failed)?;
    part.file.rewind().await.map_err(failed)?;
    part.hash = Sha256::new();
    part.bytes = 0;
    Ok(())
}

/// Takes what is missing, until the end or a break.
async fn download(
    session: &Session,
    blob: &Descriptor,
    path: &Path,
    part: &mut Part,
    progress: &Progress,
) -> Result<(), Error> {
    if part.bytes == blob.size {
        return Ok(());
    }
    let mut asked = Asked::get(format!("/v2/{}/blobs/{}", session.path(), blob.digest));
    if part.bytes > 0 {
        asked = asked.with(RANGE, &format!("bytes={}-", part.bytes));
    }
    let mut answer = session.ask(asked).await?;
    match answer.status {
        StatusCode::PARTIAL_CONTENT if continues(answer.header(CONTENT_RANGE), part.bytes, blob.size) => {}
        StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE
            if part.bytes > 0 =>
        {
            progress.take_back(part.bytes);
            restart(path, part).await?;
            if answer.status != StatusCode::OK {
                // Asked again from the beginning, by the loop above.
                return Err(Error::Truncated {
                    host: session.host().to_owned(),
                });
            }
        }
        StatusCode::OK => {}
        _refused => return Err(answer.refusal(session.image()).await),
    }
    while let Some(chunk) = answer.chunk().await? {
        if part.bytes + chunk.len() as u64 > blob.size {
            return Err(Error::BadAnswer {
                host: session.host().to_owned(),
                reason: format!("{} is longer than its {} bytes", blob.digest, blob.size),
            });
        }
        let written = part.file.write_all(&chunk).await;
        written.map_err(|source| file_error("write", path, source))?;
        part.hash.update(&chunk);
        part.bytes += chunk.len() as u64;
        progress.add(chunk.len() as u64);
    }
    let flushed = part.file.flush().await;
    flushed.map_err(|source| file_error("write", path, source))?;
    if part.bytes < blob.size {
        // A server that ends early without an error has broken off all the same.
        return Err(Error::Truncated {
            host: session.host().to_owned(),
        });
    }
    Ok(())
}

/// Whether a partial answer (`bytes 5-9/10`) begins where the file ends, and is of a blob of this size.
fn continues(range: &str, at: u64, size: u64) -> bool {
    let parsed = || {
        let (unit, range) = range.trim().split_once(' ')?;
        let (place, total) = range.split_once('/')?;
        let start: u64 = place.split_once('-')?.0.parse().ok()?;
        // A server need not know the whole.
        let is_whole = total == "*" || total.parse() == Ok(size);
        Some(unit.eq_ignore_ascii_case("bytes") && start == at && is_whole)
    };
    parsed().unwrap_or(false)
}

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    print_digest(&Sha256::digest(bytes))
}

pub(crate) fn file_error(act: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File {
        act,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::continues;

    #[test]
    fn a_range_is_the_one_that_was_asked_for() {
        for (range, is_ours) in [
            ("bytes 5-9/10", true),
            ("Bytes 5-9/*", true),
            ("bytes 5-9/11", false),
            ("bytes 4-9/10", false),
            ("5-9/10", false),
            ("bytes */10", false),
            ("lines 5-9/10", false),
            ("", false),
        ] {
            assert_eq!(continues(range, 5, 10), is_ours, "{range}");
        }
    }
}
