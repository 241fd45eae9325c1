//! Reading image archives: a tar with `oci-layout` and `index.json`, or one from `docker save`; or a folder in the OCI
//! image layout, which is what a pull leaves.
//!
//! A tar is a file, so that its members can be read in any order; only their places are kept in memory.

use super::document::{
    ANNOTATION_FULL_NAME, ANNOTATION_REF_NAME, Configuration, Descriptor, DockerImage, Index, Manifest,
    Platform,
};
use super::{Reference, digest_of};
use crate::Error;
use flate2::read::GzDecoder;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Manifests and configurations are kilobytes; the specification asks registries to take 4 MiB.
const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Members of the archive itself, not files in layers.
const MEMBERS_MAX: usize = 10_000;
/// An index that points at an index that points at an index is an attack, not an image.
const INDEX_DEPTH_MAX: usize = 3;
const MANIFESTS_MAX: usize = 1_000;
/// overlayfs takes 500 lower directories; Docker makes at most 127 layers.
const LAYERS_MAX: usize = 127;
/// A compressed archive is unpacked to disk first; an edge has no image larger than this.
const ARCHIVE_BYTES_MAX: u64 = 32 * 1024 * 1024 * 1024;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How bytes are compressed, which they tell themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    /// Of the first bytes; `None` when they are as they are.
    pub(super) fn of(magic: &[u8]) -> Option<Self> {
        if magic.starts_with(&GZIP_MAGIC) {
            return Some(Self::Gzip);
        }
        magic.starts_with(&ZSTD_MAGIC).then_some(Self::Zstd)
    }

    /// The bytes behind it.
    pub(super) fn open<'a>(self, packed: impl Read + 'a) -> std::io::Result<Box<dyn Read + 'a>> {
        match self {
            Self::Gzip => Ok(Box::new(GzDecoder::new(packed))),
            Self::Zstd => {
                let plain = ruzstd::decoding::StreamingDecoder::new(packed);
                Ok(Box::new(plain.map_err(std::io::Error::other)?))
            }
        }
    }
}

/// An archive whose members have been found.
#[derive(Debug)]
pub(super) struct Archive {
    name: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Tar {
        file: File,
        members: BTreeMap<String, Member>,
    },
    Folder(PathBuf),
}

#[derive(Debug, Clone, Copy)]
struct Member {
    offset: u64,
    size: u64,
}

/// An image of the archive for this node's processor.
#[derive(Debug)]
pub(super) struct ArchivedImage {
    /// Normalised.
    pub(super) references: Vec<String>,
    /// `sha256:…` of the manifest; archives of `docker save` have none.
    pub(super) manifest_digest: Option<String>,
    /// `sha256:…` of the configuration.
    pub(super) id: String,
    pub(super) configuration: Configuration,
    pub(super) layers: Vec<ArchivedLayer>,
}

/// A layer that is still in the archive.
#[derive(Debug, Clone)]
pub(super) struct ArchivedLayer {
    pub(super) member: String,
    /// Of the member's bytes, if the archive names it.
    pub(super) digest: Option<String>,
    /// Of the uncompressed tar.
    pub(super) diff_id: String,
}

impl Archive {
    /// Opens an archive; a compressed one is unpacked into a file below `scratch`, which has no name any more when this
    /// returns and goes when the archive is dropped.
    pub(super) fn open(path: &Path, scratch: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let mut file = File::open(path).map_err(|source| Error::io("open image archive", path, source))?;
        let mut magic = [0; 4];
        let read = read_some(&mut file, &mut magic)
            .map_err(|source| Error::io("read image archive", path, source))?;
        file.rewind()
            .map_err(|source| Error::io("read image archive", path, source))?;
        if let Some(packing) = Packing::of(&magic[..read]) {
            file = decompressed(&file, packing, &name, scratch)?;
        }
        let members = members(&mut file, &name)?;
        Ok(Self {
            name,
            source: Source::Tar { file, members },
        })
    }

    /// A folder in the OCI image layout. `name` is how errors call it.
    pub(super) fn of_folder(path: &Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            source: Source::Folder(path.to_owned()),
        }
    }

    /// The images in the archive that this node can run; an error if there are none.
    pub(super) fn images(&mut self) -> Result<Vec<ArchivedImage>, Error> {
        if self.has("index.json") {
            return self.oci_images();
        }
        if self.has("manifest.json") {
            return self.docker_images();
        }
        Err(self.bad("it is no image archive: it has neither index.json nor manifest.json"))
    }

    /// Opens a layer's bytes as they are in the archive.
    pub(super) fn open_layer(&mut self, layer: &ArchivedLayer) -> Result<Box<dyn Read + '_>, Error> {
        self.open_member(&layer.member).map(|(_, bytes)| bytes)
    }

    fn has(&self, member: &str) -> bool {
        match &self.source {
            Source::Tar { members, .. } => members.contains_key(member),
            Source::Folder(folder) => folder.join(member).is_file(),
        }
    }

    fn left_out(&self, member: &str) -> bool {
        matches!(self.source, Source::Folder(_)) && !self.has(member)
    }

    /// A member's size and its bytes.
    fn open_member(&mut self, member: &str) -> Result<(u64, Box<dyn Read + '_>), Error> {
        let (name, missing) = (self.name.clone(), self.missing(member));
        let unreadable = |source| Error::Io {
            act: "read image archive",
            object: name.clone(),
            source,
        };
        match &mut self.source {
            Source::Tar { file, members } => {
                let place = members.get(member).copied().ok_or(missing)?;
                file.seek(SeekFrom::Start(place.offset)).map_err(unreadable)?;
                Ok((place.size, Box::new(file.take(place.size))))
            }
            Source::Folder(folder) => {
                let file = match File::open(folder.join(member)) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing),
                    opened => opened.map_err(unreadable)?,
                };
                let size = file.metadata().map_err(unreadable)?.len();
                Ok((size, Box::new(file)))
            }
        }
    }

    pub(super) fn bad(&self, reason: impl Into<String>) -> Error {
        bad(&self.name, reason)
    }

    fn oci_images(&mut self) -> Result<Vec<ArchivedImage>, Error> {
        let index: Index = self.document("index.json", None)?;
        let mut found = Vec::new();
        let mut others = Vec::new();
        self.collect(index, Vec::new(), 1, &mut found, &mut others)?;
        if found.is_empty() {
            return Err(self.not_for_us(others));
        }
        Ok(found)
    }

    /// Walks an index; images for other processors only leave their platform in `others`.
    fn collect(
        &mut self,
        index: Index,
        inherited: Vec<String>,
        depth: usize,
        found: &mut Vec<ArchivedImage>,
        others: &mut Vec<Platform>,
    ) -> Result<(), Error> {
        if depth > INDEX_DEPTH_MAX || index.manifests.len() > MANIFESTS_MAX {
            return Err(self.bad("its index is nested too deeply or too long"));
        }
        for descriptor in index.manifests {
            let mut names = inherited.clone();
            names.extend(name_of(&descriptor));
            if descriptor.is_index() {
                let nested: Index = self.document(&blob(&descriptor.digest), Some(&descriptor))?;
                self.collect(nested, names, depth + 1, found, others)?;
                continue;
            }
            match descriptor.platform.clone() {
                // Build tools file their attestations under an unknown platform.
                Some(platform) if platform.os == "unknown" => {}
                Some(platform) if !runs_here(&platform) => others.push(platform),
                Some(_) | None => match self.oci_image(&descriptor, names)? {
                    Ok(image) => found.push(image),
                    Err(platform) => others.push(platform),
                },
            }
        }
        Ok(())
    }

    fn oci_image(
        &mut self,
        descriptor: &Descriptor,
        references: Vec<String>,
    ) -> Result<Result<ArchivedImage, Platform>, Error> {
        let manifest: Manifest = self.document(&blob(&descriptor.digest), Some(descriptor))?;
        let configuration: Configuration =
            self.document(&blob(&manifest.config.digest), Some(&manifest.config))?;
        let platform = platform_of(&configuration);
        if !runs_here(&platform) {
            return Ok(Err(platform));
        }
        self.check_layers(manifest.layers.len(), &configuration)?;
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&configuration.rootfs.diff_ids) {
            let member = blob(&layer.digest);
            // A pull leaves out what the store has; the import misses what it has not.
            if self.left_out(&member) {
                tracing::trace!(layer = layer.digest, "left out by the pull");
            } else if self.open_member(&member)?.0 != layer.size {
                return Err(self.bad(format!("layer {} is truncated", layer.digest)));
            }
            layers.push(ArchivedLayer {
                member,
                digest: Some(layer.digest.clone()),
                diff_id: diff_id.clone(),
            });
        }
        let id = manifest.config.digest;
        Ok(Ok(ArchivedImage {
            references,
            manifest_digest: Some(descriptor.digest.clone()),
            id,
            configuration,
            layers,
        }))
    }

    fn docker_images(&mut self) -> Result<Vec<ArchivedImage>, Error> {
        let listed: Vec<DockerImage> = self.document("manifest.json", None)?;
        if listed.len() > MANIFESTS_MAX {
            return Err(self.bad("its manifest is too long"));
        }
        let mut found = Vec::new();
        let mut others = Vec::new();
        for image in listed {
            let bytes = self.bytes(&image.config)?;
            let configuration: Configuration = self.parse(&image.config, &bytes)?;
            let platform = platform_of(&configuration);
            if !runs_here(&platform) {
                others.push(platform);
                continue;
            }
            self.check_layers(image.layers.len(), &configuration)?;
            let diff_ids = configuration.rootfs.diff_ids.iter();
            found.push(ArchivedImage {
                references: image
                    .repo_tags
                    .iter()
                    .flatten()
                    .filter_map(|tag| normalised(tag))
                    .collect(),
                manifest_digest: None,
                id: digest_of(&bytes),
                layers: image
                    .layers
                    .into_iter()
                    .zip(diff_ids)
                    .map(|(member, diff_id)| ArchivedLayer {
                        member,
                        digest: None,
                        diff_id: diff_id.clone(),
                    })
                    .collect(),
                configuration,
            });
        }
        if found.is_empty() {
            return Err(self.not_for_us(others));
        }
        Ok(found)
    }

    fn check_layers(&self, layers: usize, configuration: &Configuration) -> Result<(), Error> {
        let diff_ids = &configuration.rootfs.diff_ids;
        if layers > LAYERS_MAX {
            return Err(self.bad(format!(
                "it has {layers} layers; at most {LAYERS_MAX} can be stacked"
            )));
        }
        if layers != diff_ids.len() {
            return Err(self.bad(format!(
                "it has {layers} layers but its configuration names {}",
                diff_ids.len()
            )));
        }
        if !diff_ids
            .iter()
            .all(|diff_id| kedge_containers::is_digest(diff_id))
        {
            return Err(self.bad("its configuration names a layer that is no sha256 digest"));
        }
        Ok(())
    }

    /// Reads a JSON member; with a descriptor its size and digest are verified first.
    fn document<T: DeserializeOwned>(
        &mut self,
        member: &str,
        expected: Option<&Descriptor>,
    ) -> Result<T, Error> {
        let bytes = self.bytes(member)?;
        let is_expected = |expected: &Descriptor| {
            bytes.len() as u64 == expected.size && digest_of(&bytes) == expected.digest
        };
        if !expected.is_none_or(is_expected) {
            return Err(self.bad(format!("{member} does not have the digest it is filed under")));
        }
        self.parse(member, &bytes)
    }

    fn parse<T: DeserializeOwned>(&self, member: &str, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes)
            .map_err(|error| self.bad(format!("{member} is not understood: {error}")))
    }

    fn bytes(&mut self, member: &str) -> Result<Vec<u8>, Error> {
        let (size, from) = self.open_member(member)?;
        let mut bytes = Vec::new();
        if size <= DOCUMENT_BYTES_MAX {
            let read = from.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes);
            read.map_err(|source| self.unreadable(source))?;
            return Ok(bytes);
        }
        drop(from);
        Err(self.bad(format!("{member} is larger than {DOCUMENT_BYTES_MAX} bytes")))
    }

    fn missing(&self, member: &str) -> Error {
        self.bad(format!("{member} is missing from it"))
    }

    fn unreadable(&self, source: std::io::Error) -> Error {
        Error::Io {
            act: "read image archive",
            object: self.name.clone(),
            source,
        }
    }

    fn not_for_us(&self, mut others: Vec<Platform>) -> Error {
        let here = kedge_host::architecture();
        others.dedup();
        let names: Vec<String> = others
            .iter()
            .map(|other| format!("{}/{}", other.os, other.architecture))
            .collect();
        match names.as_slice() {
            [] => self.bad("it holds no image"),
            names => self.bad(format!(
                "it is for {}, and this node is linux/{here}",
                names.join(", ")
            )),
        }
    }
}

fn bad(image: &str, reason: impl Into<String>) -> Error {
    Error::BadImage {
        image: image.to_owned(),
        reason: reason.into(),
    }
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn platform_of(configuration: &Configuration) -> Platform {
    Platform {
        architecture: configuration.architecture.clone(),
        os: configuration.os.clone(),
    }
}

fn runs_here(platform: &Platform) -> bool {
    platform.os == "linux" && platform.architecture == kedge_host::architecture()
}

/// A descriptor's whole name. A bare tag names nothing without a repository.
fn name_of(descriptor: &Descriptor) -> Option<String> {
    let full = descriptor.annotations.get(ANNOTATION_FULL_NAME);
    let custom = descriptor
        .annotations
        .get(ANNOTATION_REF_NAME)
        .filter(|name| name.contains([':', '/']));
    normalised(full.or(custom)?)
}

fn normalised(name: &str) -> Option<String> {
    Some(name.parse::<Reference>().ok()?.to_string())
}

/// Finds every regular member. A member that claims to reach beyond the file is a truncated archive.
fn members(file: &mut File, name: &str) -> Result<BTreeMap<String, Member>, Error> {
    // What the tar crate says about a file that is none quotes the file; what the disk says is worth telling.
    let not_a_tar = |error: std::io::Error| match error.raw_os_error() {
        Some(_) => Error::Io {
            act: "read image archive",
            object: name.to_owned(),
            source: error,
        },
        None => bad(name, "it is no tar archive, or a broken one"),
    };
    let length = file.metadata().map_err(not_a_tar)?.len();
    let mut members = BTreeMap::new();
    let mut archive = tar::Archive::new(&mut *file);
    for entry in archive.entries_with_seek().map_err(not_a_tar)? {
        let entry = entry.map_err(not_a_tar)?;
        let place = Member {
            offset: entry.raw_file_position(),
            size: entry.size(),
        };
        if place
            .offset
            .checked_add(place.size)
            .is_none_or(|end| end > length)
        {
            return Err(bad(name, "it is truncated"));
        }
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path: PathBuf = entry.path().map_err(not_a_tar)?.components().collect();
        members.insert(path.to_string_lossy().trim_start_matches("./").to_owned(), place);
        if members.len() > MEMBERS_MAX {
            return Err(bad(name, format!("it has more than {MEMBERS_MAX} members")));
        }
    }
    Ok(members)
}

fn decompressed(file: &File, packing: Packing, name: &str, scratch: &Path) -> Result<File, Error> {
    let path = scratch.join(format!(".archive-{}", crate::embedded::new_id()?));
    let unpacked = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path);
    let mut unpacked = unpacked.map_err(|source| Error::io("unpack image archive into", &path, source))?;
    crate::durable::remove_file(&path)?;
    let copied = packing
        .open(file)
        .and_then(|plain| std::io::copy(&mut plain.take(ARCHIVE_BYTES_MAX), &mut unpacked))
        .map_err(|error| bad(name, format!("its compression is broken: {error}")))?;
    if copied == ARCHIVE_BYTES_MAX {
        return Err(bad(name, "it is too large when unpacked"));
    }
    unpacked
        .rewind()
        .map_err(|source| Error::io("read", &path, source))?;
    Ok(unpacked)
}

/// Reads until the buffer is full or the input ends.
pub(super) fn read_some(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}
