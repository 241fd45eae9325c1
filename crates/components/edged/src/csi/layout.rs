//! Where CSI volumes lie on the node, and the note that stands beside each: with it a later life of this process, or
//! a kubelet, knows how to take the volume away.

use super::Error;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The note.
const NOTE: &str = "vol_data.json";
/// A note is a handful of names; one that is larger is not ours.
const NOTE_BYTES_MAX: u64 = 64 * 1024;

/// What a note says, by the keys that a kubelet uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Note {
    pub(crate) driver: String,
    pub(crate) handle: String,
    /// The volume's name below the pod.
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) attachment: String,
    pub(crate) ephemeral: bool,
    /// Our own: the size that the volume was last expanded to.
    pub(crate) expanded_bytes: Option<i64>,
}

impl Note {
    pub(crate) fn save(&self, dir: &Path) -> Result<(), Error> {
        let mode = if self.ephemeral { "Ephemeral" } else { "Persistent" };
        let mut map = BTreeMap::from([
            ("attachmentID", self.attachment.clone()),
            ("driverName", self.driver.clone()),
            ("nodeName", self.node.clone()),
            ("seLinuxMountContext", String::new()),
            ("specVolID", self.name.clone()),
            ("volumeHandle", self.handle.clone()),
            ("volumeLifecycleMode", mode.to_owned()),
        ]);
        if let Some(bytes) = self.expanded_bytes {
            map.insert("expandedBytes", bytes.to_string());
        }
        let path = dir.join(NOTE);
        let text = serde_json::to_string(&map).expect("a map of strings is always JSON");
        let failed = |source| Error::Note {
            path: path.clone(),
            source,
        };
        kedge_files::replace(&path, text.as_bytes()).map_err(failed)
    }

    /// The note in this directory; nothing when there is none.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(NOTE);
        let mut text = String::new();
        let read =
            std::fs::File::open(&path).and_then(|file| file.take(NOTE_BYTES_MAX).read_to_string(&mut text));
        match read {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Note { path, source }),
            Ok(_) => {}
        }
        let mut map: BTreeMap<String, String> = serde_json::from_str(&text).map_err(|error| Error::Note {
            path,
            source: error.into(),
        })?;
        let mut take = |key: &str| map.remove(key).unwrap_or_default();
        Ok(Some(Self {
            driver: take("driverName"),
            handle: take("volumeHandle"),
            name: take("specVolID"),
            node: take("nodeName"),
            attachment: take("attachmentID"),
            ephemeral: take("volumeLifecycleMode") == "Ephemeral",
            expanded_bytes: take("expandedBytes").parse().ok(),
        }))
    }

    pub(crate) fn remove(dir: &Path) -> Result<(), Error> {
        let path = dir.join(NOTE);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Note { path, source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Places below `plugins/kubernetes.io/csi`.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Holds the note of a staged volume with a file system, and the directory that it is staged on.
    pub(crate) fn stage(&self, driver: &str, handle: &str) -> PathBuf {
        self.root.join(driver).join(hex(handle.as_bytes()))
    }

    pub(crate) fn stage_mount(&self, driver: &str, handle: &str) -> PathBuf {
        self.stage(driver, handle).join("globalmount")
    }

    /// Where a block volume is staged.
    pub(crate) fn block_stage(&self, name: &str) -> PathBuf {
        self.root.join("volumeDevices/staging").join(name)
    }

    /// Holds one device a pod.
    pub(crate) fn block_publish(&self, name: &str) -> PathBuf {
        self.root.join("volumeDevices/publish").join(name)
    }

    /// Holds the note of a block volume.
    pub(crate) fn block_data(&self, name: &str) -> PathBuf {
        self.root.join("volumeDevices").join(name).join("data")
    }

    /// The notes of everything that is staged, with the directories that they lie in.
    pub(crate) fn staged(&self) -> Vec<(PathBuf, Note)> {
        let mut found = Vec::new();
        for driver in children(&self.root) {
            for volume in children(&driver) {
                let dir = if driver.ends_with("volumeDevices") {
                    volume.join("data")
                } else {
                    volume
                };
                match Note::load(&dir) {
                    Ok(Some(note)) => found.push((dir, note)),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, "note of a staged volume is not readable"),
                }
            }
        }
        found
    }
}

/// The entries of a directory; none when it cannot be read.
pub(crate) fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The name of the object by which the cloud says that the volume is attached.
pub(crate) fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hex(format!("{handle}{driver}{node}").as_bytes()))
}

/// What a volume that is made for one pod is called.
pub(crate) fn ephemeral_handle(uid: &str, name: &str) -> String {
    format!("csi-{}", hex(format!("{uid}{name}").as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a string takes everything");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;

    #[test]
    fn a_note_of_a_kubelet_is_read_and_ours_looks_the_same() {
        let dir = TempDir::new();
        assert_eq!(Note::load(&dir).unwrap(), None);
        let text = r#"{"attachmentID":"csi-1","driverName":"hostpath.csi.k8s.io","nodeName":"edge-1","seLinuxMountContext":"","specVolID":"pvc-1","volumeHandle":"h1","volumeLifecycleMode":"Persistent"}"#;
        std::fs::write(dir.join("vol_data.json"), format!("{text}\n")).unwrap();
        let note = Note::load(&dir).unwrap().unwrap();
        assert_eq!(
            (note.driver.as_str(), note.handle.as_str()),
            ("hostpath.csi.k8s.io", "h1")
        );
        note.save(&dir).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("vol_data.json")).unwrap(), text);
        std::fs::write(dir.join("vol_data.json"), "{half").unwrap();
        let error = Note::load(&dir).unwrap_err();
        assert!(error.to_string().contains("vol_data.json"), "{error}");
        Note::remove(&dir).unwrap();
        Note::remove(&dir).unwrap();
    }

    #[test]
    fn names() {
        assert_eq!(attachment_name("h", "d", "n"), format!("csi-{}", hex(b"hdn")));
        let layout = Layout::new(PathBuf::from("/r"));
        let stage = layout.stage_mount("drv", "h1");
        assert_eq!(
            stage.to_str().unwrap(),
            format!("/r/drv/{}/globalmount", hex(b"h1"))
        );
    }
}
