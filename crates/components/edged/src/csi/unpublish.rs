//! Taking a volume away, in the reverse order of making it.

use super::driver::Driver;
use super::layout::{Note, children};
use super::{Csi, DRIVER_PATIENCE, Error, remove_empty, remove_file};
use kedge_grpc::csi::node_service_capability::rpc;
use kedge_grpc::csi::{NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest};
use std::path::PathBuf;
use std::time::Duration;

impl Csi {
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
}
