//! Where things of volumes lie: exactly where a kubelet has them, so that a node can change its agent under running pods.

use std::path::{Path, PathBuf};

/// Directories below `pods/<uid>/volumes`, by kind.
pub(crate) const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
pub(crate) const CONFIG_MAP: &str = "kubernetes.io~configmap";
pub(crate) const SECRET: &str = "kubernetes.io~secret";
pub(crate) const DOWNWARD_API: &str = "kubernetes.io~downward-api";
pub(crate) const PROJECTED: &str = "kubernetes.io~projected";
pub(crate) const LOCAL: &str = "kubernetes.io~local-volume";
pub(crate) const NFS: &str = "kubernetes.io~nfs";
pub(crate) const CSI: &str = "kubernetes.io~csi";

/// The layout below the root directory.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    root: PathBuf,
}

impl Paths {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    pub(crate) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// The volumes of a pod: `<kind>/<name>` below it.
    pub(crate) fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    pub(crate) fn volume(&self, uid: &str, kind: &str, name: &str) -> PathBuf {
        self.volumes(uid).join(kind).join(name)
    }

    /// Exists once an empty directory was made completely. A volume with content stands in an empty directory whose name
    /// here begins with `wrapped_`.
    pub(crate) fn ready_marker(&self, uid: &str, name: &str) -> PathBuf {
        self.pod(uid)
            .join("plugins")
            .join(EMPTY_DIR)
            .join(name)
            .join("ready")
    }

    /// Where the sub paths of a pod are mounted.
    pub(crate) fn sub_paths(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volume-subpaths")
    }

    /// The link to the device of a volume without a file system.
    pub(crate) fn volume_device(&self, uid: &str, kind: &str, name: &str) -> PathBuf {
        self.pod(uid).join("volumeDevices").join(kind).join(name)
    }

    /// Where plug-ins put the sockets that they want to be known by.
    pub(crate) fn plugin_registry(&self) -> PathBuf {
        self.root.join("plugins_registry")
    }

    /// What CSI volumes have outside of pods.
    pub(crate) fn csi(&self) -> PathBuf {
        self.root.join("plugins/kubernetes.io/csi")
    }

    /// Where devices with a file system are mounted that a local volume names.
    pub(crate) fn local_mount(&self, name: &str) -> PathBuf {
        self.root
            .join("plugins/kubernetes.io/local-volume/mounts")
            .join(name)
    }
}

/// A name that may be one part of a path. What comes from the API is checked there; what a broken cloud sends is not.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && !name.contains(['/', '\0'])
}
