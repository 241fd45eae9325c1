//! Device nodes for containers.

use super::records::DevicePath;
use crate::Error;
use kedge_containers::Device;
use serde_json::{Value, json};
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Device nodes a container is given; a machine with more has a strange `/dev`.
const DEVICES_MAX: usize = 512;
const DEPTH_MAX: usize = 3;
/// Not devices of the node, or made anew in each container.
const NOT_DEVICES: [&str; 5] = ["pts", "shm", "mqueue", "console", "ptmx"];
const ALL_RIGHTS: &str = "rwm";

/// A node to make, and what may be done with it.
struct Found {
    path: PathBuf,
    meta: Metadata,
}

/// The nodes to make, and the rules that let them be used.
pub(super) struct Devices {
    pub(super) nodes: Vec<Value>,
    pub(super) rules: Vec<Value>,
    /// Where they are on the node.
    pub(super) paths: Vec<DevicePath>,
}

impl Devices {
    /// Adds a node; one at its path makes way.
    pub(super) fn replace(&mut self, node: Node) {
        self.nodes.retain(|known| known["path"] != node.document["path"]);
        self.paths.retain(|known| known.container != node.path.container);
        self.nodes.push(node.document);
        self.rules.extend(node.rule);
        self.paths.push(node.path);
    }
}

/// A node in the words of the OCI runtime configuration, what may be done with its device, and where that is.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) document: Value,
    pub(super) rule: Option<Value>,
    pub(super) path: DevicePath,
}

/// All of the node's devices, for privileged containers.
pub(super) fn all() -> Devices {
    let mut found = Vec::new();
    collect(Path::new("/dev"), DEPTH_MAX, &mut found);
    let nodes = found.iter().map(|found| node(&found.path, &found.meta)).collect();
    let paths = found.iter().map(|found| at(&found.path, &found.path));
    Devices {
        nodes,
        rules: vec![json!({ "allow": true, "access": ALL_RIGHTS })],
        paths: paths.collect(),
    }
}

/// These devices only. A directory stands for the devices in it.
pub(super) fn some(wanted: &[Device]) -> Result<Devices, Error> {
    let mut devices = Devices {
        nodes: Vec::new(),
        rules: vec![json!({ "allow": false, "access": ALL_RIGHTS })],
        paths: Vec::new(),
    };
    for device in wanted {
        let refuse = |reason: String| {
            Error::failed(
                "give a container device",
                device.host_path.display().to_string(),
                reason,
            )
        };
        let rights = if device.permissions.is_empty() {
            ALL_RIGHTS
        } else {
            device.permissions.as_str()
        };
        if !rights.chars().all(|right| ALL_RIGHTS.contains(right)) {
            return Err(refuse(format!("{rights:?} are not rights to a device")));
        }
        let meta = std::fs::metadata(&device.host_path).map_err(|error| refuse(error.to_string()))?;
        let mut found = Vec::new();
        if meta.is_dir() {
            collect(&device.host_path, DEPTH_MAX, &mut found);
        } else if is_device(&meta) {
            found.push(Found {
                path: device.host_path.clone(),
                meta,
            });
        } else {
            return Err(refuse("it is not a device".to_owned()));
        }
        for found in found {
            let below = found
                .path
                .strip_prefix(&device.host_path)
                .unwrap_or(Path::new(""));
            let path = match below.as_os_str().is_empty() {
                true => device.container_path.clone(),
                false => device.container_path.join(below),
            };
            devices.paths.push(at(&found.path, &path));
            devices.nodes.push(node(&path, &found.meta));
            devices.rules.push(rule(&found.meta, rights));
        }
    }
    Ok(devices)
}

fn collect(directory: &Path, depth: usize, found: &mut Vec<Found>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, Ok(meta)) = (entry.path(), entry.metadata()) else {
            continue;
        };
        if NOT_DEVICES.iter().any(|name| entry.file_name() == *name) || found.len() >= DEVICES_MAX {
            continue;
        }
        if meta.is_dir() && depth > 1 {
            collect(&path, depth - 1, found);
        } else if is_device(&meta) {
            found.push(Found { path, meta });
        }
    }
}

fn is_device(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() || meta.file_type().is_block_device()
}

fn kind(meta: &Metadata) -> &'static str {
    if meta.file_type().is_block_device() {
        "b"
    } else {
        "c"
    }
}

fn at(host: &Path, container: &Path) -> DevicePath {
    DevicePath {
        host: host.to_owned(),
        container: container.to_owned(),
    }
}

fn node(path: &Path, meta: &Metadata) -> Value {
    json!({
        "path": path,
        "type": kind(meta),
        "major": rustix::fs::major(meta.rdev()),
        "minor": rustix::fs::minor(meta.rdev()),
        "fileMode": meta.mode() & 0o7777,
        "uid": meta.uid(),
        "gid": meta.gid(),
    })
}

fn rule(meta: &Metadata, rights: &str) -> Value {
    json!({
        "allow": true,
        "type": kind(meta),
        "major": rustix::fs::major(meta.rdev()),
        "minor": rustix::fs::minor(meta.rdev()),
        "access": rights,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &str, permissions: &str) -> Device {
        Device {
            host_path: host.into(),
            container_path: "/dev/given".into(),
            permissions: permissions.into(),
        }
    }

    #[test]
    fn a_device_is_made_and_may_be_used() {
        let devices = some(&[device("/dev/full", "r")]).unwrap();
        assert_eq!(devices.nodes[0]["path"], "/dev/given");
        assert_eq!(
            (&devices.nodes[0]["major"], &devices.nodes[0]["minor"]),
            (&json!(1), &json!(7))
        );
        assert_eq!(
            devices.rules[0]["allow"], false,
            "everything else stays forbidden"
        );
        assert_eq!(devices.rules[1]["access"], "r");
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for (path, rights, why) in [
            ("/etc/hostname", "r", "it is not a device"),
            ("/dev/no-such-device", "r", "No such file"),
            ("/dev/null", "x", "are not rights"),
        ] {
            let Err(error) = some(&[device(path, rights)]) else {
                panic!("{path} was taken")
            };
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
