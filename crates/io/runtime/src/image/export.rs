//! An image of the store as an archive that every tool reads: an OCI layout in a tar, with what `docker load` wants
//! beside it.
//!
//! The configuration is the one that came, byte by byte, so the image has the id it always had. Layers stand in it as
//! the tars that their digests are of; a manifest of its own names them.

use super::Reference;
use super::digest_of;
use super::document::{
    ANNOTATION_FULL_NAME, ANNOTATION_REF_NAME, Descriptor, DockerImage, Index, MEDIA_CONFIG, MEDIA_LAYER,
    MEDIA_MANIFEST, Manifest,
};
use super::layer::open_top;
use super::packing::Packing;
use super::recipe;
use super::shelf::{Shelf, StoredLayer};
use super::store::StoredImage;
use crate::Error;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const BLOCK_BYTES: u64 = 512;
const COPY_BYTES: usize = 256 * 1024;
/// A configuration was read with this limit when it came.
const CONFIGURATION_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Writes an image with these names to a file, which appears when it is whole.
pub(super) fn export(
    shelf: &Shelf,
    image: &StoredImage,
    names: &[Reference],
    to: &Path,
) -> Result<(), Error> {
    let failed = |source| Error::io("write image archive", to, source);
    let mut beside = to.as_os_str().to_owned();
    beside.push(".partial");
    let beside = Path::new(&beside);
    let outcome = write_archive(shelf, image, names, beside);
    let outcome = outcome.and_then(|()| std::fs::rename(beside, to).map_err(failed));
    if outcome.is_err() {
        // The error that is told is the first one.
        drop(std::fs::remove_file(beside));
    }
    outcome
}

fn write_archive(shelf: &Shelf, image: &StoredImage, names: &[Reference], to: &Path) -> Result<(), Error> {
    let failed = |source| Error::io("write image archive", to, source);
    let bad = |reason: String| Error::BadImage {
        image: image.id.clone(),
        reason,
    };
    let configuration = read_configuration(shelf, image)?;
    let mut layers = Vec::new();
    for name in &image.layers {
        let record = shelf.record(name)?;
        let record = record.ok_or_else(|| {
            bad(format!(
                "nothing is known of its layer {name}; remove it and fetch it again"
            ))
        })?;
        layers.push((name.as_str(), record));
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MEDIA_MANIFEST.to_owned()),
        config: descriptor(
            MEDIA_CONFIG,
            digest_of(&configuration),
            configuration.len() as u64,
        ),
        layers: layers
            .iter()
            .map(|(_, record)| layer_descriptor(record))
            .collect(),
    };
    let manifest_bytes = json(&manifest)?;
    let file = File::create(to).map_err(failed)?;
    let mut archive = Writer {
        to: BufWriter::with_capacity(COPY_BYTES, file),
    };
    archive.put("oci-layout", LAYOUT).map_err(failed)?;
    let index = index(&manifest_bytes, names);
    archive.put("index.json", &json(&index)?).map_err(failed)?;
    archive
        .put("manifest.json", &json(&docker(&manifest, names))?)
        .map_err(failed)?;
    archive
        .put(&blob(&manifest.config.digest), &configuration)
        .map_err(failed)?;
    archive
        .put(&blob(&digest_of(&manifest_bytes)), &manifest_bytes)
        .map_err(failed)?;
    let mut written = BTreeSet::new();
    for ((name, record), descriptor) in layers.iter().zip(&manifest.layers) {
        if !written.insert(&descriptor.digest) {
            continue;
        }
        archive
            .begin(&blob(&descriptor.digest), descriptor.size)
            .map_err(failed)?;
        let mut layer = Hashing {
            to: &mut archive.to,
            hash: Sha256::new(),
            bytes: 0,
        };
        copy_layer(shelf, name, record, &mut layer).map_err(failed)?;
        let (bytes, digest) = (
            layer.bytes,
            kedge_containers::print_digest(&layer.hash.finalize()),
        );
        if (bytes, &digest) != (descriptor.size, &descriptor.digest) {
            return Err(bad(format!(
                "its layer {name} was changed on the disk; remove it and fetch it again"
            )));
        }
        archive.pad(bytes).map_err(failed)?;
    }
    archive.finish().map_err(failed)
}

fn read_configuration(shelf: &Shelf, image: &StoredImage) -> Result<Vec<u8>, Error> {
    let path = shelf.blob(&image.id);
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(CONFIGURATION_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|source| Error::io("read", &path, source))?;
    if digest_of(&bytes) != image.id {
        return Err(Error::BadImage {
            image: image.id.clone(),
            reason: "its configuration was changed on the disk; remove it and fetch it again".to_owned(),
        });
    }
    Ok(bytes)
}

fn copy_layer(shelf: &Shelf, name: &str, record: &StoredLayer, to: &mut impl Write) -> std::io::Result<()> {
    match &record.packed {
        Some(packed) => std::io::copy(&mut File::open(shelf.blob(&packed.digest))?, to).map(drop),
        None => recipe::replay(&shelf.recipe(name), &open_top(&shelf.layer(name))?, to),
    }
}

fn layer_descriptor(record: &StoredLayer) -> Descriptor {
    match &record.packed {
        None => descriptor(MEDIA_LAYER, record.diff_id.clone(), record.plain_bytes),
        Some(packed) => {
            let media_type = match packed.packing {
                None => MEDIA_LAYER.to_owned(),
                Some(Packing::Gzip) => format!("{MEDIA_LAYER}+gzip"),
                Some(Packing::Zstd) => format!("{MEDIA_LAYER}+zstd"),
            };
            descriptor(&media_type, packed.digest.clone(), packed.size)
        }
    }
}

fn descriptor(media_type: &str, digest: String, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

/// The manifest once for each name, as tools expect it.
fn index(manifest: &[u8], names: &[Reference]) -> Index {
    let unnamed = descriptor(MEDIA_MANIFEST, digest_of(manifest), manifest.len() as u64);
    let named = |name: &Reference| {
        let mut annotations = BTreeMap::from([(ANNOTATION_FULL_NAME.to_owned(), name.to_string())]);
        annotations.extend(name.tag.clone().map(|tag| (ANNOTATION_REF_NAME.to_owned(), tag)));
        Descriptor {
            annotations,
            ..unnamed.clone()
        }
    };
    let manifests: Vec<Descriptor> = names.iter().map(named).collect();
    Index {
        schema_version: 2,
        manifests: if manifests.is_empty() {
            vec![unnamed]
        } else {
            manifests
        },
    }
}

fn docker(manifest: &Manifest, names: &[Reference]) -> [DockerImage; 1] {
    [DockerImage {
        config: blob(&manifest.config.digest),
        repo_tags: Some(names.iter().map(ToString::to_string).collect()),
        layers: manifest.layers.iter().map(|layer| blob(&layer.digest)).collect(),
    }]
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn json(document: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(document).map_err(|error| Error::failed("write", "a document of an image", error))
}

/// A tar whose members are written as they come. Nothing in it depends on when it is made.
struct Writer {
    to: BufWriter<File>,
}

impl Writer {
    fn begin(&mut self, path: &str, size: u64) -> std::io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_path(path)?;
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.to.write_all(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> std::io::Result<()> {
        let padding = (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES;
        std::io::copy(&mut std::io::repeat(0).take(padding), &mut self.to).map(drop)
    }

    fn put(&mut self, path: &str, bytes: &[u8]) -> std::io::Result<()> {
        self.begin(path, bytes.len() as u64)?;
        self.to.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn finish(mut self) -> std::io::Result<()> {
        std::io::copy(&mut std::io::repeat(0).take(2 * BLOCK_BYTES), &mut self.to)?;
        self.to.flush()?;
        // Before it gets its name: a power cut must not leave an empty archive.
        self.to.get_ref().sync_all()
    }
}

/// Hashes what is written through it.
struct Hashing<'a, W> {
    to: &'a mut W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}
