//! The documents of images that both a registry's client and an image store read.

use crate::Platform;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const MEDIA_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MEDIA_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const MEDIA_DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const MEDIA_DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// The whole name of an image in an index, as containerd and Docker write it.
pub const ANNOTATION_FULL_NAME: &str = "io.containerd.image.name";

/// Manifests and configurations are kilobytes; the specification asks registries to take 4 MiB.
pub const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// overlayfs takes 500 lower directories; Docker makes at most 127 layers.
pub const LAYERS_MAX: usize = 127;

/// Points at a blob or a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Whether what it points at names manifests rather than layers.
    pub fn is_index(&self) -> bool {
        self.media_type == MEDIA_INDEX || self.media_type == MEDIA_DOCKER_LIST
    }
}
