//! What a container sees at which path.

use super::Ingredients;
use crate::Error;
use kedge_containers::{Mount, PidNamespace, Propagation};
use kedge_host::cgroups::Layout as Cgroups;
use serde_json::{Value, json};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

/// Below a container's directory: what an image declares as volumes and the pod does not mount.
pub(crate) const IMAGE_VOLUMES: &str = "volumes";
/// An image that declares more is not made by people.
const IMAGE_VOLUMES_MAX: usize = 64;
const BIND: [&str; 3] = ["rbind", "rprivate", "rw"];
const BIND_READ_ONLY: [&str; 3] = ["rbind", "rprivate", "ro"];
/// As the container runtimes make a directory that a pod mounts and the node lacks.
const MISSING_DIRECTORY_MODE: u32 = 0o755;

/// All mounts, in the order in which they are made. What the pod mounts itself replaces what every container has.
/// What its devices by name bring replaces both.
pub(super) fn mounts(from: &Ingredients<'_>, named: Vec<(PathBuf, Value)>) -> Result<Vec<Value>, Error> {
    let of_pod = from
        .config
        .mounts
        .iter()
        .map(|mount| plain(&mount.container_path));
    let of_named = named.iter().map(|(path, _)| path.clone());
    let given: Vec<PathBuf> = of_pod.chain(of_named).collect();
    let mut mounts = every_container(from);
    mounts.retain(|mount| {
        let destination = mount["destination"].as_str().unwrap_or_default();
        !given.iter().any(|path| path == Path::new(destination))
    });
    let own_users = from.sandbox.config.user_namespace.is_some();
    let volumes = from.config.mounts.iter().map(|mount| volume(mount, own_users));
    let mut volumes: Vec<(PathBuf, Value)> = volumes.collect::<Result<_, _>>()?;
    volumes.retain(|(path, _)| !named.iter().any(|(other, _)| other == path));
    volumes.extend(image_volumes(from, &given));
    volumes.extend(named);
    // What lies below another mount has to come after it.
    volumes.sort_by_key(|(path, _)| path.components().count());
    mounts.extend(volumes.into_iter().map(|(_, mount)| mount));
    Ok(mounts)
}

fn every_container(from: &Ingredients<'_>) -> Vec<Value> {
    let security = &from.config.security;
    let rights = if security.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        proc(from),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/shm", "type": "bind", "source": shared_memory(from), "options": BIND }),
        sysfs(from, rights),
    ];
    if can_mount_groups(from) {
        mounts.push(
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                            "options": safe(&["relatime", rights]) }),
        );
    }
    if kedge_host::mounts::knows_file_system(&kedge_host::Root::machine(), "mqueue").unwrap_or(false) {
        mounts.push(
            json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe(&[]) }),
        );
    }
    let options = if security.read_only_root {
        BIND_READ_ONLY
    } else {
        BIND
    };
    for name in ["hosts", "hostname", "resolv.conf"] {
        let source = from.sandbox_directory.join(name);
        mounts.push(
            json!({ "destination": format!("/etc/{name}"), "type": "bind", "source": source, "options": options }),
        );
    }
    mounts
}

/// The processes that the container sees. Those of the machine are shown to a user namespace only as they are mounted.
fn proc(from: &Ingredients<'_>) -> Value {
    let sees_node = from.sandbox.config.host_pid || from.config.security.pid == PidNamespace::Node;
    if sees_node && kedge_host::users::in_namespace() {
        let options = safe(&["rbind", "rprivate", "rw"]);
        return json!({ "destination": "/proc", "type": "bind", "source": "/proc", "options": options });
    }
    json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": safe(&[]) })
}

/// What the kernel tells of the machine, and of the network that the container is in. It is mounted anew only for a
/// network that belongs to the same users.
fn sysfs(from: &Ingredients<'_>, rights: &str) -> Value {
    if from.sandbox.config.host_network && !crate::kernel::owns_network() {
        let rights = if rights == "ro" { "rro" } else { rights };
        let options = safe(&["rbind", "rprivate", rights]);
        return json!({ "destination": "/sys", "type": "bind", "source": "/sys", "options": options });
    }
    json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": safe(&[rights]) })
}

/// For the trees of version 1 libcontainer looks its own process up by a number that, in a process namespace which is
/// joined and not made, means another process of the node or none. Such a container does without the mount, and so does
/// one of a node without root, whose own groups are mounted over those of the machine.
fn can_mount_groups(from: &Ingredients<'_>) -> bool {
    let joins = match &from.config.security.pid {
        PidNamespace::Pod | PidNamespace::Target(_) => !from.sandbox.config.host_pid,
        PidNamespace::Container | PidNamespace::Node => false,
    };
    let by_number = joins || kedge_host::users::in_namespace();
    !by_number || matches!(from.cgroups, Cgroups::V2 { .. })
}

/// Options of a mount from which nothing is executed, with some more.
fn safe<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut options = vec!["nosuid", "noexec", "nodev"];
    options.extend(more);
    options
}

/// One for all containers of the pod, or the node's own.
pub(in crate::embedded) fn shared_memory(from: &Ingredients<'_>) -> PathBuf {
    if from.sandbox.config.host_ipc {
        PathBuf::from("/dev/shm")
    } else {
        from.sandbox_directory.join("shm")
    }
}

fn volume(mount: &Mount, own_users: bool) -> Result<(PathBuf, Value), Error> {
    let path = plain(&mount.container_path);
    let refuse = |reason: &str| Error::failed("mount", mount.container_path.display().to_string(), reason);
    if !mount.container_path.is_absolute() {
        return Err(refuse("a path in a container begins with /"));
    }
    if path == Path::new("/") {
        return Err(refuse("a volume cannot take the place of the container's root"));
    }
    if own_users && mount.propagation == Propagation::Bidirectional {
        return Err(refuse(
            "what a pod with users of its own (hostUsers: false) mounts cannot pass to the node \
             (mountPropagation: Bidirectional)",
        ));
    }
    let source = &mount.host_path;
    if !source.exists() {
        // A path without a declared kind is made, as every runtime does.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(MISSING_DIRECTORY_MODE)
            .create(source)
            .map_err(|error| {
                refuse(&format!(
                    "{} does not exist on the node and cannot be made: {error}",
                    source.display()
                ))
            })?;
    }
    let rights = match (mount.read_only, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    let options = ["rbind", propagation(mount.propagation), rights];
    let mounted = json!({ "destination": path, "type": "bind", "source": source, "options": options });
    Ok((path, mounted))
}

fn propagation(wanted: Propagation) -> &'static str {
    match wanted {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    }
}

/// Directories that the image wants to be written to, also where the root is read-only. They go with the container.
fn image_volumes(from: &Ingredients<'_>, given: &[PathBuf]) -> Vec<(PathBuf, Value)> {
    let declared = from.image.execution.volumes.iter().flatten();
    let paths = declared
        .map(|(path, _)| plain(Path::new(path)))
        .filter(|path| path.is_absolute() && path != Path::new("/") && !given.contains(path))
        .take(IMAGE_VOLUMES_MAX);
    paths
        .enumerate()
        .map(|(number, path)| {
            let source = from.directory.join(IMAGE_VOLUMES).join(number.to_string());
            let mount = json!({ "destination": path, "type": "bind", "source": source, "options": BIND });
            (path, mount)
        })
        .collect()
}

/// A path as the kernel would walk it where nothing is a link: without `.`, `..` and doubled slashes.
pub(super) fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::Normal(_) => plain.push(part),
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_plain() {
        for (path, want) in [
            ("/a/./b//c/", "/a/b/c"),
            ("/a/../../b", "/b"),
            ("/..", "/"),
            ("relative", "relative"),
        ] {
            assert_eq!(plain(Path::new(path)), Path::new(want), "{path}");
        }
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        let refusal = |host: &str, path: &str| {
            volume(&Mount::bind(host, path, false), false)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refusal("/tmp", "data"),
            "mount data: a path in a container begins with /"
        );
        assert_eq!(
            refusal("/tmp", "/x/.."),
            "mount /x/..: a volume cannot take the place of the container's root"
        );
        assert!(
            refusal("/dev/null/x", "/x")
                .starts_with("mount /x: /dev/null/x does not exist on the node and cannot be made"),
        );
    }
}
