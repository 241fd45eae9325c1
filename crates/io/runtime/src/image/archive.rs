//! Reading image archives: a tar with `oci-layout` and `index.json`, or one from `docker save`; or a folder in the OCI
//! image layout, which is what a pull leaves.
//!
//! A tar is a file, so that its members can be read in any order; only their places are kept in memory.

use super::document::{
    ANNOTATION_FULL_NAME, ANNOTATION_REF_NAME, Configuration, Descriptor, DockerImage, Index, Manifest,
    Platform, distance,
};
use super::layer::LayerError;
use super::packing::{Packing, read_some};
use super::shelf::name_of_known;
use super::tarball::{Kind, Tarball};
use super::{Reference, digest_of};
use crate::Error;
use kedge_containers::oci::{DOCUMENT_BYTES_MAX, LAYERS_MAX};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

/// Members of the archive itself, not files in layers.
const MEMBERS_MAX: usize = 10_000;
/// Before the kinds of configuration of an artifact whose layers are modules, not trees of files.
const MEDIA_OF_MODULES: &str = "application/vnd.wasm.";
/// From link to link.
const MEMBER_LINKS_MAX: usize = 8;
/// An index that points at an index that points at an index is an attack, not an image.
const INDEX_DEPTH_MAX: usize = 3;
const MANIFESTS_MAX: usize = 1_000;
/// A compressed archive is unpacked to disk first; an edge has no image larger than this.
const ARCHIVE_BYTES_MAX: u64 = 32 * 1024 * 1024 * 1024;

/// Environment, command and what else an image says of how it wants to be run: the kernel takes 2 MiB of a command and
/// its environment, and the index of all images is read whole.
const EXECUTION_BYTES_MAX: usize = 256 * 1024;

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
    /// As its digest is of it.
    pub(super) configuration_bytes: Vec<u8>,
    pub(super) layers: Vec<ArchivedLayer>,
}

impl ArchivedImage {
    /// The names of its layers that are here, lowest first.
    pub(super) fn known_layers(&self, is_here: impl Fn(&str) -> bool) -> Vec<Option<String>> {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let known = (1..=diff_ids.len()).map(|upto| name_of_known(&diff_ids[..upto], &is_here));
        known.collect()
    }
}

/// The images of an archive while it is looked through.
#[derive(Default)]
struct Found {
    images: Vec<Candidate>,
    /// What the others are for.
    others: Vec<Platform>,
    /// Descriptors that were looked at, in all indexes: one that names another a thousand times is small.
    looked_at: usize,
}

/// One of those that are the same image for several processors: the closest is taken.
struct Candidate {
    image: ArchivedImage,
    distance: u32,
    /// The index that names it, unless that is the archive's own.
    index: Option<String>,
}

impl Candidate {
    fn is_alternative_to(&self, other: &Self) -> bool {
        let same_index = self.index.is_some() && self.index == other.index;
        let same_name = !self.image.references.is_empty() && self.image.references == other.image.references;
        same_index || same_name
    }
}

impl Found {
    fn add(&mut self, candidate: Candidate) {
        let known = self
            .images
            .iter_mut()
            .find(|known| known.is_alternative_to(&candidate));
        match known {
            Some(known) if known.distance <= candidate.distance => {}
            Some(known) => *known = candidate,
            None => self.images.push(candidate),
        }
    }
}

/// A layer that is still in the archive.
#[derive(Debug, Clone)]
pub(super) struct ArchivedLayer {
    pub(super) member: String,
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
    pub(super) fn images(&self) -> Result<Vec<ArchivedImage>, Error> {
        if self.has("index.json") {
            return self.oci_images();
        }
        if self.has("manifest.json") {
            return self.docker_images();
        }
        Err(self.bad("it is no image archive: it has neither index.json nor manifest.json"))
    }

    /// Opens a layer's bytes as they are in the archive. Several may be read at one time.
    pub(super) fn open_layer(&self, layer: &ArchivedLayer) -> Result<Box<dyn Read + Send + '_>, Error> {
        self.open_member(&layer.member).map(|(_, bytes)| bytes)
    }

    /// Whether a pull left this layer out.
    pub(super) fn lacks(&self, layer: &ArchivedLayer) -> bool {
        self.left_out(&layer.member)
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
    fn open_member(&self, member: &str) -> Result<(u64, Box<dyn Read + Send + '_>), Error> {
        match &self.source {
            Source::Tar { file, members } => {
                let place = members.get(member).copied().ok_or_else(|| self.missing(member))?;
                let bytes = Part {
                    file,
                    at: place.offset,
                    left: place.size,
                };
                Ok((place.size, Box::new(bytes)))
            }
            Source::Folder(folder) => {
                let file = match File::open(folder.join(member)) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        return Err(self.missing(member));
                    }
                    opened => opened.map_err(|source| self.unreadable(source))?,
                };
                let size = file.metadata().map_err(|source| self.unreadable(source))?.len();
                Ok((size, Box::new(file)))
            }
        }
    }

    pub(super) fn bad(&self, reason: impl Into<String>) -> Error {
        bad(&self.name, reason)
    }

    fn oci_images(&self) -> Result<Vec<ArchivedImage>, Error> {
        let index: Index = self.document("index.json", None)?;
        let mut found = Found::default();
        self.collect(index, None, &[], 1, &mut found)?;
        self.chosen(found)
    }

    /// Walks an index; images for other processors only leave their platform.
    fn collect(
        &self,
        index: Index,
        named: Option<&str>,
        inherited: &[String],
        depth: usize,
        found: &mut Found,
    ) -> Result<(), Error> {
        found.looked_at += index.manifests.len();
        if depth > INDEX_DEPTH_MAX || found.looked_at > MANIFESTS_MAX {
            return Err(self.bad("its index is nested too deeply or too long"));
        }
        for descriptor in index.manifests {
            if !kedge_containers::is_digest(&descriptor.digest) {
                return Err(self.bad(format!("{:?} is no sha256 digest", descriptor.digest)));
            }
            let mut names = inherited.to_vec();
            names.extend(name_of(&descriptor));
            if descriptor.is_index() {
                let nested: Index = self.document(&blob(&descriptor.digest), Some(&descriptor))?;
                self.collect(nested, Some(&descriptor.digest), &names, depth + 1, found)?;
                continue;
            }
            match &descriptor.platform {
                // Build tools file their attestations under an unknown platform.
                Some(platform) if platform.os == "unknown" => {}
                Some(platform) if distance(platform).is_none() => found.others.push(platform.clone()),
                platform => {
                    let image = self.oci_image(&descriptor, names)?;
                    // What the index says is more exact than what the configuration does.
                    let own = image.configuration.platform();
                    let listed = platform.as_ref().and_then(distance);
                    match distance(&own).map(|own| listed.unwrap_or(own)) {
                        None => found.others.push(own),
                        Some(distance) => found.add(Candidate {
                            image,
                            distance,
                            index: named.map(str::to_owned),
                        }),
                    }
                }
            }
        }
        Ok(())
    }

    fn oci_image(&self, descriptor: &Descriptor, references: Vec<String>) -> Result<ArchivedImage, Error> {
        let manifest: Manifest = self.document(&blob(&descriptor.digest), Some(descriptor))?;
        if manifest.config.media_type.starts_with(MEDIA_OF_MODULES) {
            return Err(self.bad(
                "it is a WebAssembly module without a file system; an image that has the module as a file is run",
            ));
        }
        let descriptors = manifest.layers.iter().chain([&manifest.config]);
        for named in descriptors {
            if !kedge_containers::is_digest(&named.digest) {
                return Err(self.bad(format!("{:?} is no sha256 digest", named.digest)));
            }
        }
        let (configuration, configuration_bytes) =
            self.configuration(&blob(&manifest.config.digest), Some(&manifest.config))?;
        let mut layers = Vec::new();
        if distance(&configuration.platform()).is_some() {
            self.check_layers(manifest.layers.len(), &configuration)?;
        }
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
                diff_id: diff_id.clone(),
            });
        }
        Ok(ArchivedImage {
            references,
            manifest_digest: Some(descriptor.digest.clone()),
            id: manifest.config.digest,
            configuration,
            configuration_bytes,
            layers,
        })
    }

    /// The closest of each; an error if there is none.
    fn chosen(&self, found: Found) -> Result<Vec<ArchivedImage>, Error> {
        if found.images.is_empty() {
            return Err(self.not_for_us(found.others));
        }
        Ok(found
            .images
            .into_iter()
            .map(|candidate| candidate.image)
            .collect())
    }

    fn docker_images(&self) -> Result<Vec<ArchivedImage>, Error> {
        let listed: Vec<DockerImage> = self.document("manifest.json", None)?;
        if listed.len() > MANIFESTS_MAX {
            return Err(self.bad("its manifest is too long"));
        }
        let mut found = Found::default();
        for image in listed {
            let (configuration, configuration_bytes) = self.configuration(&image.config, None)?;
            let platform = configuration.platform();
            let Some(distance) = distance(&platform) else {
                found.others.push(platform);
                continue;
            };
            self.check_layers(image.layers.len(), &configuration)?;
            let names = image.repo_tags.iter().flatten();
            let members = image.layers.into_iter().zip(&configuration.rootfs.diff_ids);
            let layers = members.map(|(member, diff_id)| ArchivedLayer {
                member,
                diff_id: diff_id.clone(),
            });
            let image = ArchivedImage {
                references: names.filter_map(|tag| normalised(tag)).collect(),
                manifest_digest: None,
                id: digest_of(&configuration_bytes),
                layers: layers.collect(),
                configuration,
                configuration_bytes,
            };
            found.add(Candidate {
                image,
                distance,
                index: None,
            });
        }
        self.chosen(found)
    }

    /// An image's configuration, and its bytes.
    fn configuration(
        &self,
        member: &str,
        expected: Option<&Descriptor>,
    ) -> Result<(Configuration, Vec<u8>), Error> {
        let bytes = self.verified(member, expected)?;
        let configuration: Configuration = self.parse(member, &bytes)?;
        let execution = serde_json::to_vec(&configuration.config).unwrap_or_default();
        if execution.len() > EXECUTION_BYTES_MAX {
            return Err(self.bad(format!(
                "its environment and command are longer than {EXECUTION_BYTES_MAX} bytes"
            )));
        }
        Ok((configuration, bytes))
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
    fn document<T: DeserializeOwned>(&self, member: &str, expected: Option<&Descriptor>) -> Result<T, Error> {
        self.parse(member, &self.verified(member, expected)?)
    }

    fn verified(&self, member: &str, expected: Option<&Descriptor>) -> Result<Vec<u8>, Error> {
        let bytes = self.bytes(member)?;
        let is_expected = |expected: &Descriptor| {
            bytes.len() as u64 == expected.size && digest_of(&bytes) == expected.digest
        };
        if !expected.is_none_or(is_expected) {
            return Err(self.bad(format!("{member} does not have the digest it is filed under")));
        }
        Ok(bytes)
    }

    fn parse<T: DeserializeOwned>(&self, member: &str, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes)
            .map_err(|error| self.bad(format!("{member} is not understood: {error}")))
    }

    fn bytes(&self, member: &str) -> Result<Vec<u8>, Error> {
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
        let names: Vec<String> = others.iter().map(ToString::to_string).collect();
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

/// Finds every regular member. A member that claims to reach beyond the file is a truncated archive. Links stand for
/// what they lead to: older tools write a layer once and link to it from its other places.
fn members(file: &mut File, name: &str) -> Result<BTreeMap<String, Member>, Error> {
    let refused = |error: LayerError| match error {
        LayerError::Tar(source) if source.raw_os_error().is_some() => Error::Io {
            act: "read image archive",
            object: name.to_owned(),
            source,
        },
        // What a header says that is none quotes the file.
        LayerError::Tar(_) => bad(name, "it is no tar archive, or a broken one"),
        LayerError::Refused { .. } | LayerError::Write { .. } => bad(name, error.to_string()),
    };
    let length = file
        .metadata()
        .map_err(|source| refused(LayerError::Tar(source)))?;
    let length = length.len();
    let (mut members, mut links) = (BTreeMap::new(), BTreeMap::new());
    let mut tarball = Tarball::new(BufReader::new(file), None);
    while let Some(entry) = tarball.next().map_err(refused)? {
        let offset = tarball.position().map_err(refused)?;
        if offset.checked_add(entry.size).is_none_or(|end| end > length) {
            return Err(bad(name, "it is truncated"));
        }
        let path = plain_path(&entry.path);
        match (entry.kind, entry.target) {
            (Kind::File, _) => drop(members.insert(
                path,
                Member {
                    offset,
                    size: entry.size,
                },
            )),
            (Kind::HardLink, Some(target)) => drop(links.insert(path, plain_path(&target))),
            (Kind::Symlink, Some(target)) => {
                let beside = entry.path.parent().unwrap_or(Path::new(""));
                links.insert(path, plain_path(&beside.join(target)));
            }
            (Kind::HardLink | Kind::Symlink, None) => {}
            (Kind::Directory | Kind::Fifo | Kind::Character | Kind::Block, _) => {}
        }
        if members.len() + links.len() > MEMBERS_MAX {
            return Err(bad(name, format!("it has more than {MEMBERS_MAX} members")));
        }
        tarball.skip().map_err(refused)?;
    }
    for (path, target) in &links {
        let mut target = target;
        // One that leads nowhere, or round and round, is as good as missing.
        for _ in 0..MEMBER_LINKS_MAX {
            match (members.get(target).copied(), links.get(target)) {
                (Some(member), _) => drop(members.insert(path.clone(), member)),
                (None, Some(further)) => {
                    target = further;
                    continue;
                }
                (None, None) => {}
            }
            break;
        }
    }
    Ok(members)
}

/// A member's name without `.` and `..`. Nothing is opened by it: it only finds a member.
fn plain_path(path: &Path) -> String {
    let mut names: Vec<&OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names
        .into_iter()
        .collect::<PathBuf>()
        .to_string_lossy()
        .into_owned()
}

fn decompressed(file: &File, packing: Packing, name: &str, scratch: &Path) -> Result<File, Error> {
    let path = scratch.join(format!(".archive-{}", crate::embedded::new_id()?));
    let unpacked = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    let mut unpacked = unpacked.map_err(|source| Error::io("unpack image archive into", &path, source))?;
    crate::durable::remove_file(&path)?;
    let copied = std::io::copy(&mut packing.open(file).take(ARCHIVE_BYTES_MAX), &mut unpacked);
    let copied = copied.map_err(|error| match error.raw_os_error() {
        Some(_) => Error::io("unpack image archive into", scratch, error),
        None => bad(name, format!("its compression is broken: {error}")),
    })?;
    if copied == ARCHIVE_BYTES_MAX {
        return Err(bad(name, "it is too large when unpacked"));
    }
    unpacked
        .rewind()
        .map_err(|source| Error::io("read", &path, source))?;
    Ok(unpacked)
}

/// Some bytes of a file, which others may be reading, too.
struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
