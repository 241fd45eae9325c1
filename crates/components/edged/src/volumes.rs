//! A pod's volumes below `<root_dir>/pods/<uid>`, exactly where a kubelet has them.
//!
//! **On the disk or in memory.** Secrets, tokens and projected volumes stand on a tmpfs, so that they never lie on the
//! disk in clear. After a reboot they are made again from the store, which keeps them encrypted; so a pod starts after a
//! power cut without the cloud. Config maps and empty directories are on the disk. Without the right to mount (hollow
//! nodes) all of them are plain directories.
//!
//! **What is left behind.** Nothing is remembered about mounts: the kernel's own list and the notes beside CSI volumes
//! are read, so a process that was killed takes away what its former life made. Data of persistent volumes is never
//! deleted: what is not mounted by us is only removed when it is empty.

mod atomic;
mod claims;
mod content;
mod directory;
mod error;
mod host_path;
mod make;
mod mount_points;
mod paths;
mod remote;
mod remove;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod tests;
mod token;

pub(crate) use claims::fetch;
pub(crate) use content::Sources;
pub(crate) use paths::{CSI, Paths, is_plain_name};
pub(crate) use token::pod_token;

use crate::cloud::Cloud;
use crate::csi::Csi;
use error::{Error, blocking};
use kedge_api::{Node, Pod};
use kedge_pods::Refusal;
use kedge_pods::translate::{Inputs, MountSource};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use kedge_wire::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Reason of a pod whose volume cannot be made.
const MOUNT_ERROR: &str = "FailedMount";
/// Reason of a pod whose volume cannot be taken away.
const UNMOUNT_ERROR: &str = "FailedUnMount";

/// The kernel answers at once unless a file server is away.
const UNMOUNT_MAX: Duration = Duration::from_secs(60);

/// Creates a directory that others cannot enter; an existing one is left as it is.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
}

/// How volumes are made on this node.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) root_dir: PathBuf,
    pub(crate) node_name: String,
    /// Mount, and serve CSI drivers. Else every volume is a plain directory.
    pub(crate) mounts: bool,
}

/// The volumes of a pod, and when a token in them must be renewed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) refresh_at: Option<Time>,
}

/// The volumes of this node. Cheap to clone: all clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    paths: Paths,
    mounts: bool,
    cloud: Cloud,
    csi: Csi,
    /// What was made, by UID. Filled by [`Volumes::prepare`], without which no container starts.
    standing: Mutex<BTreeMap<String, Standing>>,
    removing: RemovingSet,
}

/// The volumes of one pod, by the names that the pod gives them.
#[derive(Debug, Clone, Default)]
struct Standing {
    sources: BTreeMap<String, MountSource>,
    /// What they are called below the pod's directory.
    names: BTreeMap<String, String>,
    /// Groups that users of persistent volumes get.
    groups: Vec<u32>,
}

impl Volumes {
    pub(crate) fn new(settings: Settings, cloud: Cloud) -> Self {
        let paths = Paths::new(&settings.root_dir);
        let inner = Inner {
            csi: Csi::new(paths.clone(), settings.node_name, cloud.clone()),
            paths,
            mounts: settings.mounts && kedge_host::is_root(),
            cloud,
            standing: Mutex::default(),
            removing: RemovingSet::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Serves CSI drivers from now on. A node without mounts has none.
    pub(crate) fn start(
        &self,
        online: latest::Receiver<bool>,
        node: latest::Receiver<Option<Arc<Node>>>,
        scope: &Scope,
    ) {
        if self.inner.mounts {
            self.inner.csi.start(online, node, scope);
        }
    }

    /// Volumes that the cloud must not detach, for the node's status.
    pub(crate) fn in_use(&self) -> latest::Receiver<Arc<BTreeSet<String>>> {
        self.inner.csi.in_use()
    }

    /// Makes all volumes or brings them up to date. Writes nothing where nothing has changed.
    pub(crate) async fn prepare(
        &self,
        inputs: &Inputs<'_>,
        sources: &Sources,
        now: Time,
    ) -> Result<Prepared, Refusal> {
        let pod = inputs.pod;
        if !is_plain_name(pod.uid()) {
            let message = format!("{:?} is no UID that a directory can have", pod.uid());
            return Err(Refusal::new(MOUNT_ERROR, message));
        }
        // Known from now on, so that nobody takes its directory for one that is left over.
        self.inner.standing().entry(pod.uid().to_owned()).or_default();
        let mut prepared = Prepared::default();
        let mut standing = Standing::default();
        for volume in &pod.spec.volumes {
            let making = make::Making {
                volumes: &self.inner,
                inputs,
                sources,
                now,
            };
            let made = making.make(volume).await.map_err(|(name, error)| {
                let why = error.sentence();
                let message = format!("MountVolume.SetUp failed for volume \"{name}\" : {why}");
                Refusal::new(MOUNT_ERROR, message)
            })?;
            prepared.refresh_at = [prepared.refresh_at, made.refresh_at].into_iter().flatten().min();
            standing.sources.insert(volume.name.clone(), made.source);
            standing.names.insert(volume.name.clone(), made.name);
            standing.groups.extend(made.group);
        }
        self.inner.standing().insert(pod.uid().to_owned(), standing);
        Ok(prepared)
    }

    /// Where the volumes of a pod are, for mounting; empty before [`Volumes::prepare`].
    pub(crate) fn mount_sources(&self, pod: &Pod) -> BTreeMap<String, MountSource> {
        let standing = self.inner.standing();
        standing
            .get(pod.uid())
            .map(|standing| standing.sources.clone())
            .unwrap_or_default()
    }

    /// Unmounts and removes everything of a pod, also what a former life of this process made.
    pub(crate) async fn remove(&self, uid: &str) -> Result<(), Refusal> {
        if !is_plain_name(uid) {
            return Ok(());
        }
        let removed = self.inner.remove(uid).await;
        self.inner.standing().remove(uid);
        removed.map_err(|error| {
            let why = error.sentence();
            Refusal::new(
                UNMOUNT_ERROR,
                format!("UnmountVolume.TearDown failed for pod {uid}: {why}"),
            )
        })
    }

    /// The pods that have a directory here and are not in `wanted`. Call it when everything that is wanted is known.
    pub(crate) fn orphans(&self, wanted: &BTreeSet<String>) -> Vec<String> {
        let dirs = remove::pod_dirs(&self.inner.paths).into_iter();
        let uids = dirs.filter_map(|dir| dir.file_name()?.to_str().map(str::to_owned));
        uids.filter(|uid| is_plain_name(uid) && !wanted.contains(uid))
            .collect()
    }

    /// Removes the directories of pods that ended while this process was away, and unstages what no pod uses.
    pub(crate) async fn remove_orphans(&self, uids: Vec<String>) {
        for uid in uids {
            if self.inner.standing().contains_key(&uid) {
                continue;
            }
            match self.inner.remove(&uid).await {
                Ok(()) => tracing::info!(uid, "directory of an unknown pod removed"),
                Err(error) => {
                    tracing::warn!(
                        uid,
                        error = error.sentence(),
                        "directory of an unknown pod is left"
                    )
                }
            }
        }
        if self.inner.mounts {
            self.inner.csi.unstage_unused().await;
        }
    }
}

/// The UIDs whose directories are being removed.
type RemovingSet = Arc<Mutex<BTreeSet<String>>>;

/// A removal under way. A file server that is away can hold up the kernel for ever, and each attempt a thread with it.
struct Removing {
    uids: RemovingSet,
    uid: String,
}

impl Removing {
    /// `None` when one is under way.
    fn begin(uids: &RemovingSet, uid: &str) -> Option<Self> {
        let added = uids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(uid.to_owned());
        added.then(|| Self {
            uids: Arc::clone(uids),
            uid: uid.to_owned(),
        })
    }
}

impl Drop for Removing {
    fn drop(&mut self) {
        let mut uids = self.uids.lock().unwrap_or_else(PoisonError::into_inner);
        uids.remove(&self.uid);
    }
}

impl Inner {
    fn standing(&self) -> MutexGuard<'_, BTreeMap<String, Standing>> {
        // Each change is one insertion or removal, so a panic elsewhere leaves nothing half done.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn remove(&self, uid: &str) -> Result<(), Error> {
        let Some(place) = Removing::begin(&self.removing, uid) else {
            return Err(Error::Unfit(
                "an earlier removal still waits for a server that does not answer".to_owned(),
            ));
        };
        self.csi.unpublish_pod(uid).await?;
        let (paths, uid, mounts) = (self.paths.clone(), uid.to_owned(), self.mounts);
        let work = blocking(move || {
            // Held by the work itself: it goes on when nobody waits for it any more.
            let _place = place;
            remove::pod(&paths, &uid, mounts)
        });
        match tokio::time::timeout(UNMOUNT_MAX, work).await {
            Ok(removed) => removed,
            Err(_) => Err(Error::Unfit(format!(
                "unmounting took longer than {} s",
                UNMOUNT_MAX.as_secs()
            ))),
        }
    }
}
