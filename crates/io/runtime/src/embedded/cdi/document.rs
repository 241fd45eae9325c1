//! One file of the Container Device Interface.
//!
//! What a file says becomes what root does: device nodes, mounts, programs. So nothing in it is guessed at. As the
//! format demands, a word that is not in it refuses the file, and so does one that is younger than the version that the
//! file gives itself.

use super::names::{Kind, is_device};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The versions that exist, from the first that anybody wrote.
const VERSIONS: [&str; 8] = [
    "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];
/// Instead of rights to a device: the node is made, and may not be used.
pub(in crate::embedded) const NO_RIGHTS: &str = "none";
const DEVICE_TYPES: [&str; 5] = ["", "b", "c", "u", "p"];

/// A file, valid.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) devices: Vec<Device>,
    /// What any of its devices needs.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) container_edits: ContainerEdits,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) container_edits: ContainerEdits,
}

/// What a container is given.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::embedded) struct ContainerEdits {
    /// `NAME=value`.
    #[serde(default, deserialize_with = "or_default")]
    pub(in crate::embedded) env: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(in crate::embedded) device_nodes: Vec<DeviceNode>,
    #[serde(default, deserialize_with = "or_default")]
    pub(in crate::embedded) mounts: Vec<Mount>,
    #[serde(default, deserialize_with = "or_default")]
    pub(in crate::embedded) hooks: Vec<Hook>,
    // Both spellings are written: the text of the specification has the second one.
    #[serde(default, alias = "additionalGIDs", deserialize_with = "or_default")]
    pub(in crate::embedded) additional_gids: Vec<u32>,
    #[serde(default)]
    pub(in crate::embedded) intel_rdt: Option<Value>,
    #[serde(default, deserialize_with = "or_default")]
    pub(in crate::embedded) net_devices: Vec<Value>,
}

/// A device node of the container. What is not said is that of the node on the host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::embedded) struct DeviceNode {
    pub(in crate::embedded) path: PathBuf,
    #[serde(default, deserialize_with = "or_default")]
    host_path: PathBuf,
    /// `b`, `c` and its other name `u`, `p` for a pipe, or nothing.
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub(in crate::embedded) kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(in crate::embedded) major: i64,
    #[serde(default, deserialize_with = "or_default")]
    pub(in crate::embedded) minor: i64,
    #[serde(default)]
    pub(in crate::embedded) file_mode: Option<u32>,
    /// Some of `r`, `w` and `m`, [`NO_RIGHTS`], or nothing, which is all of them.
    #[serde(default, deserialize_with = "or_default")]
    pub(in crate::embedded) permissions: String,
    #[serde(default)]
    pub(in crate::embedded) uid: Option<u32>,
    #[serde(default)]
    pub(in crate::embedded) gid: Option<u32>,
}

impl DeviceNode {
    pub(in crate::embedded) fn host_path(&self) -> &Path {
        if self.host_path.as_os_str().is_empty() {
            &self.path
        } else {
            &self.host_path
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::embedded) struct Mount {
    pub(in crate::embedded) host_path: PathBuf,
    pub(in crate::embedded) container_path: PathBuf,
    #[serde(default, deserialize_with = "or_default")]
    pub(in crate::embedded) options: Vec<String>,
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub(in crate::embedded) kind: String,
}

/// A program that runs at some point of a container's life.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::embedded) struct Hook {
    #[serde(rename = "hookName")]
    pub(in crate::embedded) stage: Stage,
    pub(in crate::embedded) path: PathBuf,
    /// From the name by which it is called on.
    #[serde(default, deserialize_with = "or_default")]
    pub(in crate::embedded) args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(in crate::embedded) env: Vec<String>,
    /// Seconds.
    #[serde(default)]
    pub(in crate::embedded) timeout: Option<i64>,
}

/// When a hook runs, in the words of the OCI runtime configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::embedded) enum Stage {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Stage {
    pub(in crate::embedded) fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    Json,
    Yaml,
}

impl Syntax {
    /// By the end of its name; `None`: it is no file of this interface.
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "json" => Some(Self::Json),
            "yaml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

impl Document {
    /// The error is a sentence about the file.
    pub(super) fn parse(text: &str, syntax: Syntax) -> Result<Self, String> {
        let read = match syntax {
            Syntax::Json => serde_json::from_str(text),
            Syntax::Yaml => {
                // The rest of it is a drawing of the place.
                let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
                let documents =
                    kedge_config::yaml::parse(text).map_err(|error| first_line(error.to_string()))?;
                let [document] = <[Value; 1]>::try_from(documents).map_err(|documents| {
                    format!("one document is expected, and it has {}", documents.len())
                })?;
                serde_json::from_value(document)
            }
        };
        let document: Self = read.map_err(|error| error.to_string())?;
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), String> {
        Kind::parse(&self.kind)?;
        self.check_version()?;
        self.container_edits.check()?;
        if self.devices.is_empty() {
            return Err("it describes no device".to_owned());
        }
        let mut names = BTreeSet::new();
        for device in &self.devices {
            let name = &device.name;
            if !is_device(name) {
                return Err(format!("{name:?} is not the name of a device"));
            }
            if !names.insert(name) {
                return Err(format!("it describes the device {name} twice"));
            }
            if device.container_edits == ContainerEdits::default() {
                return Err(format!("the device {name} gives a container nothing"));
            }
            let checked = device.container_edits.check();
            checked.map_err(|why| format!("device {name}: {why}"))?;
        }
        Ok(())
    }

    fn check_version(&self) -> Result<(), String> {
        let written = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
        let Some(written) = place(written) else {
            return Err(format!(
                "cdiVersion {:?} is not known; those from {} to {} are",
                self.cdi_version,
                VERSIONS[0],
                VERSIONS[VERSIONS.len() - 1]
            ));
        };
        match self
            .younger_words()
            .into_iter()
            .find(|(version, ..)| place(version) > Some(written))
        {
            Some((version, word)) => Err(format!(
                "{word} came with cdiVersion {version}, and it says {}",
                self.cdi_version
            )),
            None => Ok(()),
        }
    }

    /// What it says that the first version did not have, with the version that brought it; the youngest first.
    fn younger_words(&self) -> Vec<(&'static str, &'static str)> {
        let devices = || self.devices.iter();
        let edits = || {
            devices()
                .map(|device| &device.container_edits)
                .chain([&self.container_edits])
        };
        let rdt = || edits().filter_map(|edits| edits.intel_rdt.as_ref());
        let young_rdt = |value: &Value| value.get("schemata").is_some() || value["enableMonitoring"] == true;
        let nodes = || edits().flat_map(|edits| &edits.device_nodes);
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let words = [
            (
                "1.1.0",
                "netDevices",
                edits().any(|edits| !edits.net_devices.is_empty()),
            ),
            ("1.1.0", "a part of intelRdt", rdt().any(young_rdt)),
            ("0.7.0", "intelRdt", rdt().next().is_some()),
            (
                "0.7.0",
                "additionalGids",
                edits().any(|edits| !edits.additional_gids.is_empty()),
            ),
            (
                "0.6.0",
                "annotations",
                !self.annotations.is_empty() || devices().any(|device| !device.annotations.is_empty()),
            ),
            ("0.6.0", "a dot in the class", class.contains('.')),
            (
                "0.5.0",
                "a device's name that begins with a digit",
                devices().any(|device| device.name.starts_with(|c: char| c.is_ascii_digit())),
            ),
            (
                "0.5.0",
                "hostPath of a device node",
                nodes().any(|node| !node.host_path.as_os_str().is_empty()),
            ),
            (
                "0.4.0",
                "type of a mount",
                edits()
                    .flat_map(|edits| &edits.mounts)
                    .any(|mount| !mount.kind.is_empty()),
            ),
        ];
        let said = words.into_iter().filter(|(.., said)| *said);
        said.map(|(version, word, _)| (version, word)).collect()
    }
}

impl ContainerEdits {
    fn check(&self) -> Result<(), String> {
        check_variables(&self.env)?;
        self.device_nodes.iter().try_for_each(DeviceNode::check)?;
        self.mounts.iter().try_for_each(Mount::check)?;
        self.hooks.iter().try_for_each(Hook::check)
    }

    /// How many things it gives.
    pub(super) fn count(&self) -> usize {
        self.env.len()
            + self.device_nodes.len()
            + self.mounts.len()
            + self.hooks.len()
            + self.additional_gids.len()
            + self.net_devices.len()
    }
}

impl DeviceNode {
    fn check(&self) -> Result<(), String> {
        let path = self.path.display();
        absolute("a device node", &self.path)?;
        if !self.host_path.as_os_str().is_empty() {
            absolute("a device node", &self.host_path)?;
        }
        if !DEVICE_TYPES.contains(&self.kind.as_str()) {
            return Err(format!("device node {path}: there is no type {:?}", self.kind));
        }
        // A negative number would mean all devices to a control group.
        if [self.major, self.minor]
            .iter()
            .any(|number| u32::try_from(*number).is_err())
        {
            return Err(format!(
                "device node {path}: no device has the numbers {}:{}",
                self.major, self.minor
            ));
        }
        if self.permissions != NO_RIGHTS && !self.permissions.chars().all(|right| "rwm".contains(right)) {
            return Err(format!(
                "device node {path}: {:?} are not rights to a device",
                self.permissions
            ));
        }
        Ok(())
    }
}

impl Mount {
    fn check(&self) -> Result<(), String> {
        if self.host_path.as_os_str().is_empty() {
            return Err(format!(
                "mount {}: it has no hostPath",
                self.container_path.display()
            ));
        }
        absolute("a mount", &self.container_path)
    }
}

impl Hook {
    fn check(&self) -> Result<(), String> {
        absolute("a hook", &self.path)?;
        let of = |why: String| format!("hook {}: {why}", self.path.display());
        check_variables(&self.env).map_err(of)?;
        if self.timeout.is_some_and(|seconds| seconds <= 0) {
            return Err(of("its timeout has to be more than 0".to_owned()));
        }
        Ok(())
    }
}

fn absolute(what: &str, path: &Path) -> Result<(), String> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(format!(
            "the path of {what} begins with /, and {:?} does not",
            path.display().to_string()
        ))
    }
}

fn check_variables(list: &[String]) -> Result<(), String> {
    let is_variable = |text: &&String| text.find('=').is_some_and(|at| at > 0) && !text.contains('\0');
    match list.iter().find(|text| !is_variable(text)) {
        Some(text) => Err(format!("{text:?} is not a variable; NAME=value is expected")),
        None => Ok(()),
    }
}

/// Nothing is as good as an empty value.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
