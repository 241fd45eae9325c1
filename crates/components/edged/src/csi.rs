//! Volumes that CSI drivers serve on this node.
//!
//! A driver registers by a socket ([`registry`]); a volume is staged once on the node where the driver wants that, then
//! published for each pod, and taken away in the reverse order. A note beside each volume ([`layout`]) tells a later life
//! of this process, and a kubelet that takes the node over, what stands there.
//!
//! Calls for one volume come one at a time; calls for different volumes do not wait for each other. A driver that is away
//! or slow fails the volume, which is tried again as the pod's worker decides.

mod driver;
mod layout;
mod node;
mod registry;
mod request;
#[cfg(test)]
mod tests;

use crate::cloud::Cloud;
use crate::volumes::{Paths, fetch};
use driver::{Driver, DriverInfo};
use kedge_api::{CsiPersistentVolumeSource, CsiVolumeSource, Node, PersistentVolume, Pod, VolumeAttachment};
use kedge_grpc::csi::node_service_capability::rpc;
use kedge_grpc::csi::{
    CapacityRange, NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use kedge_wire::{ObjectKey, ObjectKind};
use layout::{Layout, Note, children};
use registry::Drivers;
use request::{Access, Mode};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// After a start of the node, pods and drivers come up together; a driver that takes longer is waited for by the pod's
/// next attempt.
const DRIVER_PATIENCE: Duration = Duration::from_secs(10);

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
    /// The driver gave it to the pod's group already.
    pub(crate) group_given: bool,
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

    /// Makes a volume stand for a pod. Idempotent, as the calls of CSI are.
    pub(crate) async fn publish(&self, wanted: Wanted<'_>) -> Result<Published, Error> {
        let (driver_name, handle) = match wanted.source {
            Source::Persistent(_, source) => (source.driver.as_str(), source.volume_handle.clone()),
            Source::Ephemeral(source) => {
                let handle = layout::ephemeral_handle(wanted.pod.uid(), wanted.name);
                (source.driver.as_str(), handle)
            }
        };
        let lock = self.lock(driver_name, &handle);
        let _place = lock.lock().await;
        let note = Note {
            driver: driver_name.to_owned(),
            handle: handle.clone(),
            name: wanted.name.to_owned(),
            node: self.inner.node_name.clone(),
            attachment: layout::attachment_name(&handle, driver_name, &self.inner.node_name),
            ephemeral: matches!(wanted.source, Source::Ephemeral(_)),
            expanded_bytes: None,
        };
        let target = self.target(wanted.pod.uid(), wanted.name, wanted.block);
        if !wanted.block && kedge_host::mounts::is_mount_point(&target.path).unwrap_or(false) {
            return Ok(self.standing(&note, wanted, target.path).await);
        }
        let driver = self.inner.drivers.wait(driver_name, DRIVER_PATIENCE).await?;
        match wanted.source {
            Source::Persistent(volume, source) => {
                self.tell_in_use(Some(&note));
                self.publish_persistent(&driver, &note, wanted, volume, source)
                    .await
            }
            Source::Ephemeral(source) => self.publish_ephemeral(&driver, &note, wanted, source).await,
        }
    }

    /// What stands needs no driver, so a pod goes on while its driver is away; it is only asked to grow the volume.
    async fn standing(&self, note: &Note, wanted: Wanted<'_>, path: PathBuf) -> Published {
        let driver = self.inner.drivers.wait(&note.driver, Duration::ZERO).await;
        if let (Ok(driver), Source::Persistent(volume, _)) = (driver, wanted.source) {
            let expanded = self.expand(&driver, note, wanted, volume, &path).await;
            if let Err(error) = expanded {
                tracing::warn!(volume = wanted.name, %error, "volume not expanded");
            }
        }
        Published {
            path,
            group_given: true,
        }
    }

    async fn publish_persistent(
        &self,
        driver: &Driver,
        note: &Note,
        wanted: Wanted<'_>,
        volume: &PersistentVolume,
        source: &CsiPersistentVolumeSource,
    ) -> Result<Published, Error> {
        let target = self.target(wanted.pod.uid(), wanted.name, wanted.block);
        let access = Access {
            modes: &volume.spec.access_modes,
            fs_type: source.fs_type.as_deref(),
            options: &volume.spec.mount_options,
            mode: if wanted.block { Mode::Block } else { Mode::Mount },
            group: wanted.group.filter(|_| driver.can(rpc::Type::VolumeMountGroup)),
            several_writers_known: driver.can(rpc::Type::SingleNodeMultiWriter),
        };
        let group_given = access.group.is_some();
        let capability = request::capability(&access);
        let publish_context = self.attachment(note).await?;
        let mut staging = String::new();
        if driver.can(rpc::Type::StageUnstageVolume) {
            let place = self.stage_place(note, wanted.block);
            make_dir(&place.mount)?;
            make_dir(&place.note_dir)?;
            // Before the call: a process that dies in it must know that there may be something to undo.
            keep_expanded(note, &place.note_dir)?.save(&place.note_dir)?;
            staging = place.mount.display().to_string();
            let secrets = self.secrets(source.node_stage_secret_ref.as_ref()).await?;
            driver
                .stage(NodeStageVolumeRequest {
                    volume_id: note.handle.clone(),
                    publish_context: publish_context.clone(),
                    staging_target_path: staging.clone(),
                    volume_capability: Some(capability.clone()),
                    secrets,
                    volume_context: source.volume_attributes.clone(),
                })
                .await?;
        }
        make_dir(&target.note_dir)?;
        if let Some(parent) = target.path.parent() {
            make_dir(parent)?;
        }
        keep_expanded(note, &target.note_dir)?.save(&target.note_dir)?;
        let secrets = self.secrets(source.node_publish_secret_ref.as_ref()).await?;
        driver
            .publish(NodePublishVolumeRequest {
                volume_id: note.handle.clone(),
                publish_context,
                staging_target_path: staging,
                target_path: target.path.display().to_string(),
                volume_capability: Some(capability),
                readonly: wanted.read_only || source.read_only,
                secrets,
                volume_context: source.volume_attributes.clone(),
            })
            .await?;
        self.expand(driver, note, wanted, volume, &target.path).await?;
        if wanted.block {
            self.link_device(wanted.pod.uid(), wanted.name, &target.path)?;
        }
        Ok(Published {
            path: target.path,
            group_given: group_given
                || !request::group_is_ours(&volume.spec.access_modes, source.fs_type.as_deref()),
        })
    }

    async fn publish_ephemeral(
        &self,
        driver: &Driver,
        note: &Note,
        wanted: Wanted<'_>,
        source: &CsiVolumeSource,
    ) -> Result<Published, Error> {
        let target = self.target(wanted.pod.uid(), wanted.name, false);
        let published = Published {
            path: target.path.clone(),
            group_given: source.fs_type.as_deref().unwrap_or_default().is_empty(),
        };
        let access = Access {
            modes: &["ReadWriteOnce".to_owned()],
            fs_type: source.fs_type.as_deref(),
            options: &[],
            mode: Mode::Mount,
            group: wanted.group.filter(|_| driver.can(rpc::Type::VolumeMountGroup)),
            several_writers_known: driver.can(rpc::Type::SingleNodeMultiWriter),
        };
        let reference = source
            .node_publish_secret_ref
            .as_ref()
            .map(|reference| kedge_api::SecretReference::local(wanted.pod.namespace(), reference));
        let secrets = self.secrets(reference.as_ref()).await?;
        let mut context = source.volume_attributes.clone();
        context.extend(request::pod_info(wanted.pod));
        make_dir(&target.note_dir)?;
        note.save(&target.note_dir)?;
        driver
            .publish(NodePublishVolumeRequest {
                volume_id: note.handle.clone(),
                target_path: target.path.display().to_string(),
                volume_capability: Some(request::capability(&access)),
                readonly: wanted.read_only,
                secrets,
                volume_context: context,
                ..NodePublishVolumeRequest::default()
            })
            .await?;
        Ok(published)
    }

    /// Lets the driver grow the volume to what the cloud says it holds, once for each size.
    async fn expand(
        &self,
        driver: &Driver,
        note: &Note,
        wanted: Wanted<'_>,
        volume: &PersistentVolume,
        target: &Path,
    ) -> Result<(), Error> {
        let size = volume
            .spec
            .capacity
            .get("storage")
            .map(kedge_api::Quantity::units);
        let Some(bytes) = size.filter(|_| driver.can(rpc::Type::ExpandVolume)) else {
            return Ok(());
        };
        let place = self.stage_place(note, wanted.block);
        let noted_in = if driver.can(rpc::Type::StageUnstageVolume) {
            place.note_dir
        } else {
            self.target(wanted.pod.uid(), wanted.name, wanted.block).note_dir
        };
        let noted = Note::load(&noted_in)?.unwrap_or_else(|| note.clone());
        let known = noted.expanded_bytes.or(wanted.claim_bytes);
        if known.is_some_and(|known| known < bytes) && !wanted.read_only {
            let staging = driver.can(rpc::Type::StageUnstageVolume).then_some(place.mount);
            driver
                .expand(NodeExpandVolumeRequest {
                    volume_id: note.handle.clone(),
                    volume_path: target.display().to_string(),
                    capacity_range: Some(CapacityRange {
                        required_bytes: bytes,
                        limit_bytes: 0,
                    }),
                    staging_target_path: staging.map(|path| path.display().to_string()).unwrap_or_default(),
                    volume_capability: None,
                    secrets: BTreeMap::new(),
                })
                .await?;
        }
        if noted.expanded_bytes != Some(bytes) {
            Note {
                expanded_bytes: Some(bytes),
                ..noted
            }
            .save(&noted_in)?;
        }
        Ok(())
    }

    /// Takes away the volumes of a pod, those of a former life as well.
    pub(crate) async fn unpublish_pod(&self, uid: &str) -> Result<(), Error> {
        let pod = self.inner.paths.pod(uid);
        for dir in children(&pod.join("volumes").join(crate::volumes::CSI)) {
            match Note::load(&dir)? {
                Some(note) => self.unpublish(uid, &note, false).await?,
                // Only the directory was made.
                None => remove_empty(&dir)?,
            }
        }
        for link in children(&pod.join("volumeDevices").join(crate::volumes::CSI)) {
            let name = link
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            let note = Note::load(&self.inner.layout.block_data(&name))?;
            if let Some(note) = note {
                self.unpublish(uid, &note, true).await?;
            }
            remove_file(&link)?;
        }
        Ok(())
    }

    async fn unpublish(&self, uid: &str, note: &Note, block: bool) -> Result<(), Error> {
        let lock = self.lock(&note.driver, &note.handle);
        let _place = lock.lock().await;
        let target = self.target(uid, &note.name, block);
        let mounted = kedge_host::mounts::is_mount_point(&target.path).unwrap_or(true);
        let driver = match self.inner.drivers.wait(&note.driver, Duration::ZERO).await {
            Ok(driver) => Some(driver),
            // Nothing stands there any more, and nobody could be asked to take it away: it must not hold up the pod's end.
            Err(_) if !mounted => None,
            Err(_) => Some(self.inner.drivers.wait(&note.driver, DRIVER_PATIENCE).await?),
        };
        if let Some(driver) = &driver {
            driver
                .unpublish(NodeUnpublishVolumeRequest {
                    volume_id: note.handle.clone(),
                    target_path: target.path.display().to_string(),
                })
                .await?;
        } else {
            tracing::warn!(
                driver = note.driver,
                volume = note.handle,
                "the driver of an ended volume is gone"
            );
        }
        if block {
            remove_file(&target.path)?;
        } else {
            remove_empty(&target.path)?;
            Note::remove(&target.note_dir)?;
            remove_empty(&target.note_dir)?;
        }
        if !note.ephemeral && !self.is_used(note, block) {
            self.unstage(driver.as_ref(), note, block).await?;
        }
        self.tell_in_use(None);
        Ok(())
    }

    async fn unstage(&self, driver: Option<&Driver>, note: &Note, block: bool) -> Result<(), Error> {
        let place = self.stage_place(note, block);
        if Note::load(&place.note_dir)?.is_none() {
            return Ok(());
        }
        if let Some(driver) = driver.filter(|driver| driver.can(rpc::Type::StageUnstageVolume)) {
            driver
                .unstage(NodeUnstageVolumeRequest {
                    volume_id: note.handle.clone(),
                    staging_target_path: place.mount.display().to_string(),
                })
                .await?;
        }
        remove_empty(&place.mount)?;
        if block {
            remove_empty(&self.inner.layout.block_publish(&note.name))?;
        }
        Note::remove(&place.note_dir)?;
        remove_empty(&place.note_dir)?;
        if block && let Some(parent) = place.note_dir.parent() {
            remove_empty(parent)?;
        }
        Ok(())
    }

    /// Takes away what is staged but published for no pod: a former life may have ended between the two.
    pub(crate) async fn unstage_unused(&self) {
        for (dir, note) in self.inner.layout.staged() {
            let block = dir.ends_with("data");
            let lock = self.lock(&note.driver, &note.handle);
            let _place = lock.lock().await;
            if self.is_used(&note, block) {
                continue;
            }
            let result = match self.inner.drivers.wait(&note.driver, DRIVER_PATIENCE).await {
                Ok(driver) => self.unstage(Some(&driver), &note, block).await,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                tracing::warn!(volume = note.handle, %error, "volume that no pod uses stays staged");
            }
        }
        self.tell_in_use(None);
    }

    /// Whether any pod has it.
    fn is_used(&self, note: &Note, block: bool) -> bool {
        if block {
            return !children(&self.inner.layout.block_publish(&note.name)).is_empty();
        }
        let same = |dir: &PathBuf| {
            // One that cannot be read may be it.
            Note::load(dir).map_or(true, |found| {
                found.is_some_and(|found| found.driver == note.driver && found.handle == note.handle)
            })
        };
        children(&self.inner.paths.pods())
            .iter()
            .flat_map(|pod| children(&pod.join("volumes").join(crate::volumes::CSI)))
            .any(|dir| same(&dir))
    }

    /// What the cloud says about the attachment, for the driver. A volume that has no such object needs none, as far as
    /// this node can know: the driver refuses it otherwise.
    async fn attachment(&self, note: &Note) -> Result<BTreeMap<String, String>, Error> {
        let name = &note.attachment;
        let key = ObjectKey::namespaced(ObjectKind::VolumeAttachment, "default", name);
        let found: Result<VolumeAttachment, String> =
            fetch(&self.inner.cloud, key, "volumeattachment", name).await;
        let not_attached = |why: String| Error::NotAttached {
            name: name.clone(),
            why,
        };
        match found {
            Ok(found) if found.status.attached => Ok(found.status.attachment_metadata),
            Ok(found) => Err(not_attached(match found.status.attach_error {
                Some(error) => error.message,
                None => "the volume is not attached yet".to_owned(),
            })),
            Err(why) => {
                tracing::debug!(why, "CSI volume is used without an attachment");
                Ok(BTreeMap::new())
            }
        }
    }

    async fn secrets(
        &self,
        reference: Option<&kedge_api::SecretReference>,
    ) -> Result<BTreeMap<String, String>, Error> {
        let Some(reference) = reference else {
            return Ok(BTreeMap::new());
        };
        let key = ObjectKey::namespaced(ObjectKind::Secret, &reference.namespace, &reference.name);
        let secret: kedge_api::Secret = fetch(&self.inner.cloud, key, "secret", &reference.name)
            .await
            .map_err(Error::Secret)?;
        request::secret_values(&secret)
            .map_err(|key| Error::Secret(format!("key {key} of secret \"{}\" is not text", reference.name)))
    }

    fn link_device(&self, uid: &str, name: &str, device: &Path) -> Result<(), Error> {
        let link = self.inner.paths.volume_device(uid, crate::volumes::CSI, name);
        make_dir(link.parent().unwrap_or(&link))?;
        remove_file(&link)?;
        std::os::unix::fs::symlink(device, &link).map_err(directory("link", &link))
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

/// The note with the size that an older one remembers.
fn keep_expanded(note: &Note, dir: &Path) -> Result<Note, Error> {
    let expanded_bytes = Note::load(dir)?.and_then(|old| old.expanded_bytes);
    Ok(Note {
        expanded_bytes,
        ..note.clone()
    })
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
