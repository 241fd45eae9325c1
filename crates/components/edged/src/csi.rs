//! Volumes that CSI drivers serve on this node.
//!
//! A driver registers by a socket ([`registry`]); a volume is staged once on the node where the driver wants that, then
//! published for each pod, and taken away in the reverse order. A note beside each volume ([`layout`]) tells a later life
//! of this process, and a kubelet that takes the node over, what stands there.
//!
//! Calls for one volume come one at a time; calls for different volumes do not wait for each other. A driver that is away
//! or slow fails the volume, which is tried again as the pod's worker decides.
//!
//! How a driver's volumes are used stands in the cluster ([`facts`]), and what the drivers say of this node goes there
//! ([`node`], [`csi_node`]), as far as the cloud takes part: ours does, an official one has no answer to either.

mod csi_node;
mod driver;
mod facts;
mod layout;
mod node;
mod publish;
mod registry;
mod request;
#[cfg(test)]
mod tests;
mod unpublish;

use crate::cloud::Cloud;
use crate::volumes::Paths;
use driver::DriverInfo;
use facts::FactsBook;
use kedge_api::{CsiPersistentVolumeSource, CsiVolumeSource, Node, PersistentVolume, Pod};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use layout::{Layout, Note, children};
use registry::Drivers;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// After a start of the node, pods and drivers come up together; a driver that takes longer is waited for by the pod's
/// next attempt.
const DRIVER_PATIENCE: Duration = Duration::from_secs(10);
/// A kubelet looks at each pod again after about this time.
pub(crate) const REPUBLISH_INTERVAL: Duration = Duration::from_secs(60);

/// Why a CSI volume cannot be made or taken away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("driver name {0} not found in the list of registered CSI drivers")]
    NotRegistered(String),
    #[error("register the plug-in at {}: {message}", socket.display())]
    Registration { socket: PathBuf, message: String },
    #[error("CSI driver {0} gives this node no name")]
    NoNodeId(String),
    #[error("{call} of CSI driver {driver}: rpc error: code = {code} desc = {message}")]
    Refused {
        driver: String,
        call: &'static str,
        code: String,
        message: String,
    },
    #[error("{call} of CSI driver {driver} took longer than {seconds} s")]
    Slow {
        driver: String,
        call: &'static str,
        seconds: u64,
    },
    #[error("{}", path.display())]
    Note {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{act} {}", path.display())]
    Directory {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("volume attachment {name}: {why}")]
    NotAttached { name: String, why: String },
    #[error("{0}")]
    Secret(String),
    #[error("failed to fetch token: {0}")]
    Token(String),
    #[error("volume mode \"{mode}\" not supported by driver {driver} (only supports {modes})")]
    Mode {
        mode: &'static str,
        driver: String,
        modes: String,
    },
    #[error("ask for the CSIDriver {driver}: {why}")]
    Facts { driver: String, why: String },
}

/// What a pod wants of a driver.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) pod: &'a Pod,
    /// The volume's name below the pod.
    pub(crate) name: &'a str,
    pub(crate) source: Source<'a>,
    pub(crate) read_only: bool,
    pub(crate) block: bool,
    pub(crate) group: Option<u32>,
    /// What the claim was told that the volume holds.
    pub(crate) claim_bytes: Option<i64>,
}

/// The two ways to name a volume.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Persistent(&'a PersistentVolume, &'a CsiPersistentVolumeSource),
    Ephemeral(&'a CsiVolumeSource),
}

/// A volume that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    /// A directory, or a device.
    pub(crate) path: PathBuf,
    /// The driver gave it to the pod's group already, or nobody shall.
    pub(crate) group_given: bool,
    /// The driver wants to be called again within [`REPUBLISH_INTERVAL`].
    pub(crate) republish: bool,
}

/// The CSI volumes of this node. Cheap to clone: all clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Csi {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    paths: Paths,
    layout: Layout,
    node_name: String,
    cloud: Cloud,
    drivers: Drivers,
    facts: FactsBook,
    /// One lock a volume, while somebody works on it.
    locks: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    in_use: latest::Sender<Arc<BTreeSet<String>>>,
}

impl Csi {
    pub(crate) fn new(paths: Paths, node_name: String, cloud: Cloud) -> Self {
        let layout = Layout::new(paths.csi());
        let inner = Inner {
            paths,
            layout,
            node_name,
            cloud,
            drivers: Drivers::new(),
            facts: FactsBook::default(),
            locks: Mutex::default(),
            in_use: latest::channel(Arc::default()).0,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Watches for drivers, and says what a former life left in use.
    pub(crate) fn start(
        &self,
        online: latest::Receiver<bool>,
        node: latest::Receiver<Option<Arc<Node>>>,
        scope: &Scope,
    ) {
        self.tell_in_use(None);
        let showing = csi_node::Showing {
            cloud: self.inner.cloud.clone(),
            node_name: self.inner.node_name.clone(),
            online: online.clone(),
            node: node.clone(),
            drivers: self.inner.drivers.infos(),
        };
        scope.spawn_until_cancelled("edged-csi-node-object", showing.run());
        let telling = node::Telling {
            cloud: self.inner.cloud.clone(),
            node_name: self.inner.node_name.clone(),
            online,
            node,
            drivers: self.inner.drivers.infos(),
        };
        scope.spawn_until_cancelled("edged-csi-node", telling.run());
        let registry = self.inner.paths.plugin_registry();
        let task = registry::run(registry, self.inner.drivers.clone(), scope.clone());
        scope.spawn_until_cancelled("edged-plugin-registry", task);
    }

    /// Volumes that the cloud must not detach from this node, as the node's status names them.
    pub(crate) fn in_use(&self) -> latest::Receiver<Arc<BTreeSet<String>>> {
        self.inner.in_use.subscribe()
    }

    fn target(&self, uid: &str, name: &str, block: bool) -> Target {
        if block {
            return Target {
                path: self.inner.layout.block_publish(name).join(uid),
                note_dir: self.inner.layout.block_data(name),
            };
        }
        let dir = self.inner.paths.volume(uid, crate::volumes::CSI, name);
        Target {
            path: dir.join("mount"),
            note_dir: dir,
        }
    }

    fn stage_place(&self, note: &Note, block: bool) -> StagePlace {
        if block {
            return StagePlace {
                mount: self.inner.layout.block_stage(&note.name),
                note_dir: self.inner.layout.block_data(&note.name),
            };
        }
        StagePlace {
            mount: self.inner.layout.stage_mount(&note.driver, &note.handle),
            note_dir: self.inner.layout.stage(&note.driver, &note.handle),
        }
    }

    fn lock(&self, driver: &str, handle: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self
            .inner
            .locks
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        let name = format!("{driver}^{handle}");
        if let Some(lock) = locks.get(&name).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(name, Arc::downgrade(&lock));
        lock
    }

    /// Reads the notes again; `begun` is a volume that is about to be used.
    fn tell_in_use(&self, begun: Option<&Note>) {
        let mut notes: Vec<Note> = self
            .inner
            .layout
            .staged()
            .into_iter()
            .map(|(_, note)| note)
            .collect();
        for pod in children(&self.inner.paths.pods()) {
            for dir in children(&pod.join("volumes").join(crate::volumes::CSI)) {
                notes.extend(Note::load(&dir).ok().flatten());
            }
        }
        let used: BTreeSet<String> = notes
            .iter()
            .chain(begun)
            .filter(|note| !note.ephemeral)
            .map(|note| format!("kubernetes.io/csi/{}^{}", note.driver, note.handle))
            .collect();
        self.inner.in_use.send_if_modified(|told| {
            let differs = **told != used;
            if differs {
                *told = Arc::new(used);
            }
            differs
        });
    }
}

struct Target {
    path: PathBuf,
    note_dir: PathBuf,
}

struct StagePlace {
    mount: PathBuf,
    note_dir: PathBuf,
}

fn directory(act: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Directory {
        act,
        path: path.to_owned(),
        source,
    }
}

fn make_dir(path: &Path) -> Result<(), Error> {
    crate::volumes::make_private_dir(path).map_err(directory("create", path))
}

/// Removes a directory that holds nothing; what a driver left in it is not ours to delete.
fn remove_empty(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(directory("remove", path)(source))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(directory("remove", path)(source))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
