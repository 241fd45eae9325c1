//! What a container is given with its devices by name ([`crate::embedded::cdi`]), in the words of the OCI runtime
//! configuration.

use super::mounts::plain;
use super::{Ingredients, PATH_DEFAULT};
use crate::Error;
use crate::embedded::cdi::{self, DeviceNode, NO_RIGHTS, Part, Stage};
use crate::embedded::devices::Node;
use crate::embedded::records::{DevicePath, Hook, Hooks};
use kedge_containers::UserNamespace;
use serde_json::{Value, json};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A hook does its work in some hundred milliseconds; one that rebuilds the cache of libraries on a slow card needs
/// seconds. A container has to be made within two minutes.
const HOOK_S_MAX: u64 = 60;
/// Where a container has its devices; libcontainer makes none elsewhere.
const DEVICES: &str = "/dev";
const ALL_RIGHTS: &str = "rwm";
const PERMISSIONS: u32 = 0o7777;
const EXECUTABLE: u32 = 0o111;
const BINDS: [&str; 2] = ["bind", "rbind"];
const PASSES_BACK: [&str; 2] = ["shared", "rshared"];
const PROPAGATIONS: [&str; 8] = [
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "runbindable",
];

/// Everything that a container's devices by name add to it.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Names and values.
    pub(super) env: Vec<(String, String)>,
    pub(super) nodes: Vec<Node>,
    /// Where they are mounted, and how.
    pub(super) mounts: Vec<(PathBuf, Value)>,
    pub(super) hooks: Hooks,
}

/// Who is given the devices.
struct Taker<'a> {
    uid: u32,
    gid: u32,
    own_users: Option<&'a UserNamespace>,
}

/// Puts together what the container's devices add.
pub(super) fn named(from: &Ingredients<'_>) -> Result<Named, Error> {
    let taker = Taker {
        uid: from.user.uid,
        gid: from.user.gid,
        own_users: from.sandbox.config.user_namespace.as_ref(),
    };
    gather(from.named, &taker)
}

fn gather(parts: &[Part], taker: &Taker<'_>) -> Result<Named, Error> {
    let mut named = Named::default();
    for part in parts {
        add(&mut named, part, taker).map_err(|why| part.refusal(why))?;
    }
    Ok(named)
}

fn add(named: &mut Named, part: &Part, taker: &Taker<'_>) -> Result<(), String> {
    let edits = &part.edits;
    if edits.intel_rdt.is_some() {
        return Err("the built-in runtime does not divide caches and memory bandwidth (intelRdt)".to_owned());
    }
    if !edits.net_devices.is_empty() {
        let why = "the built-in runtime moves no network interfaces (netDevices): a pod's network is all its containers'";
        return Err(why.to_owned());
    }
    let variables = edits.env.iter().filter_map(|variable| variable.split_once('='));
    named
        .env
        .extend(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
    for wanted in &edits.device_nodes {
        let node =
            node(wanted, taker).map_err(|why| format!("device node {}: {why}", wanted.path.display()))?;
        // Of two that say something about one path, the later is heard.
        named
            .nodes
            .retain(|known| known.path.container != node.path.container);
        named.nodes.push(node);
    }
    for wanted in &edits.mounts {
        let mount = mount(wanted, taker.own_users.is_some())
            .map_err(|why| format!("mount {}: {why}", wanted.container_path.display()))?;
        named.mounts.retain(|(path, _)| *path != mount.0);
        named.mounts.push(mount);
    }
    for wanted in &edits.hooks {
        add_hook(&mut named.hooks, wanted, taker.own_users.is_some())
            .map_err(|why| format!("hook {} ({}): {why}", wanted.path.display(), wanted.stage.name()))?;
    }
    Ok(())
}

/// A node as it is wanted; what is not said is that of the node's own device, but for its owner, who is the
/// container's user.
fn node(wanted: &DeviceNode, taker: &Taker<'_>) -> Result<Node, String> {
    if !wanted.path.starts_with(DEVICES) {
        return Err(format!("a container has its devices below {DEVICES}"));
    }
    let found = find(wanted.host_path());
    let said = match wanted.kind.as_str() {
        // Its other name.
        "u" => "c",
        kind => kind,
    };
    // Then nothing has to be there: a node can be made for a device that comes later.
    let is_complete = said == "p" || !said.is_empty() && wanted.major != 0;
    let (kind, major, minor, mode) = match &found {
        Ok(device) if is_complete => (said, wanted.major, wanted.minor, Some(device.mode)),
        Err(_) if is_complete => (said, wanted.major, wanted.minor, None),
        Ok(device) if !said.is_empty() && said != device.kind => {
            return Err(format!(
                "it is to be of type {said}, and on the node it is of type {}",
                device.kind
            ));
        }
        Ok(device) if wanted.major == 0 => (
            device.kind,
            device.major.into(),
            device.minor.into(),
            Some(device.mode),
        ),
        Ok(device) => (device.kind, wanted.major, wanted.minor, Some(device.mode)),
        Err(why) => return Err(why.clone()),
    };
    if let Some(ids) = taker.own_users {
        let device = found
            .as_ref()
            .map_err(|why| format!("{why}, and {}", Device::LENT))?;
        device.is_lent_as(wanted, (kind, major, minor), ids)?;
    }
    let mut document = json!({ "path": wanted.path, "type": kind, "major": major, "minor": minor });
    let owner = |wanted: Option<u32>, of_process: u32| wanted.or((of_process > 0).then_some(of_process));
    let facts = [
        ("fileMode", wanted.file_mode.or(mode)),
        ("uid", owner(wanted.uid, taker.uid)),
        ("gid", owner(wanted.gid, taker.gid)),
    ];
    for (key, value) in facts {
        if let Some(value) = value {
            document[key] = json!(value);
        }
    }
    let rights = match wanted.permissions.as_str() {
        "" => Some(ALL_RIGHTS),
        NO_RIGHTS => None,
        rights => Some(rights),
    };
    let rule = rights.filter(|_| kind != "p").map(
        |rights| json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": rights }),
    );
    let path = DevicePath {
        host: wanted.host_path().to_owned(),
        container: wanted.path.clone(),
    };
    Ok(Node { document, rule, path })
}

/// A device of the node, as it is there.
struct Device {
    kind: &'static str,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Device {
    /// Why a container with users of its own has its devices as the node has them.
    const LENT: &str =
        "a pod with users of its own (hostUsers: false) is lent the devices of the node as they are";

    fn is_lent_as(
        &self,
        wanted: &DeviceNode,
        numbers: (&str, i64, i64),
        ids: &UserNamespace,
    ) -> Result<(), String> {
        let own = (self.kind, i64::from(self.major), i64::from(self.minor));
        let other_mode = wanted
            .file_mode
            .is_some_and(|mode| mode & PERMISSIONS != self.mode);
        let other_user = wanted
            .uid
            .is_some_and(|uid| ids.uids.on_node(uid) != Some(self.uid));
        let other_group = wanted
            .gid
            .is_some_and(|gid| ids.gids.on_node(gid) != Some(self.gid));
        let what = if numbers != own && self.kind != "p" {
            "type and numbers"
        } else if other_mode {
            "mode"
        } else if other_user || other_group {
            "owner"
        } else {
            return Ok(());
        };
        Err(format!(
            "it is to have another {what} than {} has, and {}",
            wanted.host_path().display(),
            Self::LENT
        ))
    }
}

fn find(path: &Path) -> Result<Device, String> {
    let meta = std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let kind = meta.file_type();
    let kind = match (kind.is_char_device(), kind.is_block_device(), kind.is_fifo()) {
        (true, _, _) => "c",
        (_, true, _) => "b",
        (_, _, true) => "p",
        _ => return Err(format!("{} is not a device", path.display())),
    };
    Ok(Device {
        kind,
        major: rustix::fs::major(meta.rdev()),
        minor: rustix::fs::minor(meta.rdev()),
        mode: meta.mode() & PERMISSIONS,
        uid: meta.uid(),
        gid: meta.gid(),
    })
}

fn mount(wanted: &cdi::Mount, own_users: bool) -> Result<(PathBuf, Value), String> {
    let path = plain(&wanted.container_path);
    if path == Path::new("/") {
        return Err("nothing can take the place of the container's root".to_owned());
    }
    let has = |names: &[&str]| {
        wanted
            .options
            .iter()
            .any(|option| names.contains(&option.as_str()))
    };
    let mut options = wanted.options.clone();
    // Where something is bound, the type is a word without a meaning.
    let binds = has(&BINDS) || ["", "bind"].contains(&wanted.kind.as_str());
    if binds && !has(&BINDS) {
        options.push("rbind".to_owned());
    }
    if binds && !has(&PROPAGATIONS) {
        options.push("rprivate".to_owned());
    }
    if own_users && has(&PASSES_BACK) {
        return Err(
            "what a pod with users of its own (hostUsers: false) mounts cannot pass to the node".to_owned(),
        );
    }
    let source = &wanted.host_path;
    if binds && !source.is_absolute() {
        return Err(format!("{} is not a path of the node", source.display()));
    }
    if binds {
        std::fs::metadata(source).map_err(|error| format!("{}: {error}", source.display()))?;
    }
    let kind = if binds { "bind" } else { wanted.kind.as_str() };
    let mount = json!({ "destination": path, "type": kind, "source": source, "options": options });
    Ok((path, mount))
}

/// Where a hook runs, and so whose its path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Node,
    /// On the node, where the container is being made.
    Making,
    Container,
}

fn add_hook(hooks: &mut Hooks, wanted: &cdi::Hook, own_users: bool) -> Result<(), String> {
    let (list, place) = match wanted.stage {
        Stage::Prestart => (&mut hooks.prestart, Place::Making),
        Stage::CreateRuntime => (&mut hooks.create_runtime, Place::Making),
        Stage::CreateContainer => (&mut hooks.create_container, Place::Making),
        Stage::StartContainer => (&mut hooks.start_container, Place::Container),
        Stage::Poststart => (&mut hooks.poststart, Place::Node),
        Stage::Poststop => (&mut hooks.poststop, Place::Node),
    };
    if place == Place::Making && own_users {
        let why = "a pod with users of its own (hostUsers: false) is made where no programs of the node are";
        return Err(why.to_owned());
    }
    if place != Place::Container {
        check_program(&wanted.path)?;
    }
    let given = wanted.timeout.and_then(|seconds| u64::try_from(seconds).ok());
    let env = match (wanted.env.is_empty(), wanted.stage) {
        (false, _) => Some(wanted.env.clone()),
        // That of the container.
        (true, Stage::StartContainer) => None,
        // Never that of the node agent.
        (true, _) => Some(vec![PATH_DEFAULT.to_owned()]),
    };
    list.push(Hook {
        path: wanted.path.clone(),
        args: wanted.args.clone(),
        env,
        timeout_s: given.map_or(HOOK_S_MAX, |seconds| seconds.min(HOOK_S_MAX)),
    });
    Ok(())
}

/// Root runs it, so nobody else may be able to change it.
fn check_program(path: &Path) -> Result<(), String> {
    let meta = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !meta.is_file() || meta.mode() & EXECUTABLE == 0 {
        return Err("it is not a program".to_owned());
    }
    if cdi::others_may_write(&meta) {
        return Err("others than root may write to it".to_owned());
    }
    Ok(())
}

/// The hooks in the words of the OCI runtime configuration, for a runtime that runs them itself: but for those after the
/// end, because we remove its containers without it.
pub(super) fn document(hooks: &Hooks) -> Option<Value> {
    let stages = [
        (Stage::Prestart, &hooks.prestart),
        (Stage::CreateRuntime, &hooks.create_runtime),
        (Stage::CreateContainer, &hooks.create_container),
        (Stage::StartContainer, &hooks.start_container),
        (Stage::Poststart, &hooks.poststart),
    ];
    let mut document = serde_json::Map::new();
    for (stage, hooks) in stages.into_iter().filter(|(_, hooks)| !hooks.is_empty()) {
        let list = hooks.iter().map(|hook| {
            let mut told = json!({ "path": hook.path, "args": hook.args, "timeout": hook.timeout_s });
            if let Some(env) = &hook.env {
                told["env"] = json!(env);
            }
            told
        });
        document.insert(stage.name().to_owned(), list.collect());
    }
    (!document.is_empty()).then_some(Value::Object(document))
}

#[cfg(test)]
mod tests;
