//! What a pod leaves on the disk besides its volumes: its logs, and the links to them by which log collectors find them.

use kedge_containers::{ContainerId, ObservedContainer, PodIdentity};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// As long as a file name may be, without `.log`.
const LINK_BYTES_MAX: usize = 251;

/// Where logs and links are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    /// `<log_dir>/<namespace>_<name>_<uid>/<container>/<attempt>.log`.
    pub(crate) log_dir: PathBuf,
    /// `<links_dir>/<name>_<namespace>_<container>-<id>.log`.
    pub(crate) links_dir: Option<PathBuf>,
}

impl Places {
    /// Makes the link to a container's log.
    pub(crate) fn link(
        &self,
        pod: &PodIdentity,
        container: &str,
        id: &ContainerId,
        log: &Path,
    ) -> io::Result<()> {
        let Some(dir) = &self.links_dir else { return Ok(()) };
        let mut name = format!("{}_{}_{container}-{}", pod.name, pod.namespace, id.0);
        name.truncate(name.floor_char_boundary(LINK_BYTES_MAX));
        std::fs::create_dir_all(dir)?;
        match std::os::unix::fs::symlink(log, dir.join(format!("{name}.log"))) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    /// Removes the log of a container that is gone, with its older files.
    pub(crate) fn remove_container(&self, container: &ObservedContainer) -> io::Result<()> {
        let path = &container.log_path;
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(());
        };
        if !path.starts_with(&self.log_dir) {
            return Ok(());
        }
        let name = name.as_encoded_bytes();
        for entry in entries(dir)? {
            let file = entry.file_name();
            let rest = file.as_encoded_bytes().strip_prefix(name);
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b".")) {
                gone(std::fs::remove_file(entry.path()))?;
            }
        }
        self.sweep_links()
    }

    /// Removes the logs of a pod that is gone.
    pub(crate) fn remove_pod(&self, pod: &PodIdentity) -> io::Result<()> {
        let name = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
        if pod.uid.is_empty() || name.contains('/') {
            return Ok(());
        }
        gone(std::fs::remove_dir_all(self.log_dir.join(name)))?;
        self.sweep_links()
    }

    /// Removes the logs of all pods but these, by UID.
    pub(crate) fn sweep(&self, uids: &BTreeSet<String>) -> io::Result<()> {
        for entry in entries(&self.log_dir)? {
            let name = entry.file_name();
            let parts: Vec<&str> = name.to_str().unwrap_or_default().split('_').collect();
            // What does not look like a pod's is not ours.
            if let [_namespace, _name, uid] = parts.as_slice()
                && !uids.contains(*uid)
            {
                gone(std::fs::remove_dir_all(entry.path()))?;
            }
        }
        self.sweep_links()
    }

    /// Removes the links to logs of ours that are gone.
    fn sweep_links(&self) -> io::Result<()> {
        let Some(dir) = &self.links_dir else { return Ok(()) };
        for entry in entries(dir)? {
            let path = entry.path();
            let Ok(target) = std::fs::read_link(&path) else {
                continue;
            };
            if target.starts_with(&self.log_dir) && !target.exists() {
                gone(std::fs::remove_file(path))?;
            }
        }
        Ok(())
    }
}

/// The entries of a directory; none if there is none.
fn entries(dir: &Path) -> io::Result<Vec<std::fs::DirEntry>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// What is gone already is removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_containers::ContainerState;

    #[test]
    fn logs_and_links_come_and_go() {
        let root = std::env::temp_dir().join(format!("kedge-log-files-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        let places = Places {
            log_dir: root.join("pods"),
            links_dir: Some(root.join("containers")),
        };
        let pod = |uid: &str| PodIdentity {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: uid.to_owned(),
        };
        let make = |uid: &str, file: &str| {
            let path = places.log_dir.join(format!("default_web_{uid}/c")).join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        let link = |uid: &str, id: &str, log: &Path| {
            let id = ContainerId(id.to_owned());
            places.link(&pod(uid), "c", &id, log).unwrap();
            root.join(format!("containers/web_default_c-{}.log", id.0))
        };
        let (old, packed, new) = (
            make("u1", "0.log"),
            make("u1", "0.log.2026.gz"),
            make("u1", "1.log"),
        );
        let (old_link, new_link) = (link("u1", "id0", &old), link("u1", "id1", &new));
        places
            .remove_container(&ObservedContainer {
                id: ContainerId("id0".to_owned()),
                name: "c".to_owned(),
                attempt: 0,
                image: String::new(),
                image_ref: String::new(),
                spec_hash: String::new(),
                created_ms: 0,
                state: ContainerState::Created,
                log_path: old.clone(),
            })
            .unwrap();
        let there = |path: &Path| path.symlink_metadata().is_ok();
        assert!(!there(&old) && !there(&packed) && !there(&old_link));
        assert!(there(&new) && there(&new_link));
        let other = make("u2", "0.log");
        let other_link = link("u2", "id2", &other);
        places.remove_pod(&pod("u1")).unwrap();
        assert!(!there(&new) && !there(&new_link) && there(&other_link));
        std::fs::create_dir_all(places.log_dir.join("not-ours")).unwrap();
        places.sweep(&BTreeSet::from(["u3".to_owned()])).unwrap();
        assert!(!there(&other) && !there(&other_link) && there(&places.log_dir.join("not-ours")));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
