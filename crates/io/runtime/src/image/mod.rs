//! Images: their names, the archives they come in, and the store that holds them unpacked.

mod archive;
mod build;
pub(crate) mod copying;
mod document;
mod export;
mod import;
mod layer;
mod packing;
pub(crate) mod pull;
mod recipe;
mod shelf;
pub(crate) mod stack;
pub(crate) mod store;
mod tarball;
#[cfg(test)]
mod tests;

pub use build::{Blueprint, FileInImage, build_archive};
pub use kedge_containers::Reference;

use crate::Error;
use sha2::{Digest, Sha256};
use std::path::Path;

/// The normalised names of the images in an archive, without importing it.
pub fn references_in(archive: &Path) -> Result<Vec<String>, Error> {
    let opened = archive::Archive::open(archive, &std::env::temp_dir())?;
    let mut names: Vec<String> = opened
        .images()?
        .into_iter()
        .flat_map(|image| image.references)
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// `sha256:…` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    kedge_containers::print_digest(&Sha256::digest(bytes))
}
