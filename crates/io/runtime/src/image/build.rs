use super::document::{
    ANNOTATION_FULL_NAME, Configuration, Descriptor, Execution, Index, MEDIA_CONFIG, MEDIA_LAYER,
    MEDIA_MANIFEST, Manifest, Platform, RootFileSystem,
};
use super::{Reference, digest_of};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What an image shall contain and run.
#[derive(Debug, Clone, Default)]
pub struct Blueprint {
    /// Name and tag, for example `kedge.local/thermometer:1`.
    pub reference: String,
    /// In Go's words; empty is this node's own.
    pub architecture: String,
    pub entrypoint: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    /// `uid[:gid]` or names; empty is root.
    pub user: String,
    /// Directories that are written to apart from the image.
    pub volumes: Vec<String>,
    pub files: Vec<FileInImage>,
}

/// A regular file of an image; its directories are made as needed.
#[derive(Debug, Clone)]
pub struct FileInImage {
    /// Absolute, as the container will see it.
    pub path: PathBuf,
    pub mode: u32,
    pub bytes: Vec<u8>,
}

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("image name {0}")]
    Reference(String, #[source] kedge_containers::BadReference),
    #[error("write the archive of the image")]
    Write(#[from] std::io::Error),
    #[error("write a document of the image")]
    Document(#[from] serde_json::Error),
}

/// Makes an OCI image archive with one layer. The same blueprint gives the same bytes, and so the same digests.
pub fn build_archive(blueprint: &Blueprint) -> Result<Vec<u8>, BuildError> {
    let name: Reference = blueprint
        .reference
        .parse()
        .map_err(|error| BuildError::Reference(blueprint.reference.clone(), error))?;
    let layer = layer(&blueprint.files)?;
    let platform = Platform {
        architecture: if blueprint.architecture.is_empty() {
            kedge_host::architecture().to_owned()
        } else {
            blueprint.architecture.clone()
        },
        os: "linux".to_owned(),
        variant: None,
    };
    let configuration = serde_json::to_vec(&configuration(blueprint, &platform, digest_of(&layer)))?;
    let manifest = serde_json::to_vec(&Manifest {
        schema_version: 2,
        media_type: Some(MEDIA_MANIFEST.to_owned()),
        config: descriptor(MEDIA_CONFIG, &configuration),
        layers: vec![descriptor(MEDIA_LAYER, &layer)],
    })?;
    let listed = Descriptor {
        platform: Some(platform),
        annotations: BTreeMap::from([(ANNOTATION_FULL_NAME.to_owned(), name.to_string())]),
        ..descriptor(MEDIA_MANIFEST, &manifest)
    };
    let index = serde_json::to_vec(&Index {
        schema_version: 2,
        manifests: vec![listed],
    })?;

    let mut archive = tar::Builder::new(Vec::new());
    put(
        &mut archive,
        Path::new("oci-layout"),
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    put(&mut archive, Path::new("index.json"), 0o644, &index)?;
    let mut written = BTreeSet::new();
    for blob in [&configuration, &manifest, &layer] {
        let digest = digest_of(blob);
        if written.insert(digest.clone()) {
            put(
                &mut archive,
                Path::new(&format!("blobs/{}", digest.replace(':', "/"))),
                0o644,
                blob,
            )?;
        }
    }
    Ok(archive.into_inner()?)
}

fn configuration(blueprint: &Blueprint, platform: &Platform, layer: String) -> Configuration {
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    Configuration {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: None,
        config: Some(Execution {
            user: given(&blueprint.user),
            env: Some(
                blueprint
                    .env
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect(),
            ),
            entrypoint: Some(blueprint.entrypoint.clone()),
            cmd: None,
            working_dir: given(&blueprint.working_dir),
            stop_signal: None,
            volumes: Some(&blueprint.volumes)
                .filter(|paths| !paths.is_empty())
                .map(|paths| {
                    paths
                        .iter()
                        .map(|path| (path.clone(), serde_json::json!({})))
                        .collect()
                }),
        }),
        rootfs: RootFileSystem {
            kind: "layers".to_owned(),
            diff_ids: vec![layer],
        },
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: digest_of(bytes),
        size: bytes.len() as u64,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

fn layer(files: &[FileInImage]) -> Result<Vec<u8>, std::io::Error> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut directories = BTreeSet::new();
    let mut sorted: Vec<&FileInImage> = files.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    for file in sorted {
        let path = file.path.strip_prefix("/").unwrap_or(&file.path);
        let mut above: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        above.reverse();
        for directory in above {
            if directories.insert(directory.to_owned()) {
                let mut header = header(tar::EntryType::Directory, 0o755, 0);
                builder.append_data(&mut header, directory, std::io::empty())?;
            }
        }
        put(&mut builder, path, file.mode, &file.bytes)?;
    }
    builder.into_inner()
}

fn put(
    builder: &mut tar::Builder<Vec<u8>>,
    path: &Path,
    mode: u32,
    bytes: &[u8],
) -> Result<(), std::io::Error> {
    let mut header = header(tar::EntryType::Regular, mode, bytes.len() as u64);
    builder.append_data(&mut header, path, bytes)
}

/// Nothing in it depends on when and where it is made.
fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}
