//! What a driver is told, from what the pod and the persistent volume say.

use super::facts::GroupPolicy;
use base64::Engine as _;
use kedge_api::{Pod, Secret};
use kedge_grpc::csi::VolumeCapability;
use kedge_grpc::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode};
use std::collections::BTreeMap;

/// A directory or a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Mount,
    Block,
}

/// How a volume is used.
#[derive(Debug, Clone)]
pub(super) struct Access<'a> {
    /// As in the persistent volume.
    pub(super) modes: &'a [&'a str],
    pub(super) fs_type: Option<&'a str>,
    pub(super) options: &'a [String],
    pub(super) mode: Mode,
    /// The driver shall give the volume to this group.
    pub(super) group: Option<u32>,
    /// The driver tells several writers on one node from a single one.
    pub(super) several_writers_known: bool,
}

pub(super) fn capability(access: &Access<'_>) -> VolumeCapability {
    let access_type = match access.mode {
        Mode::Block => AccessType::Block(BlockVolume {}),
        Mode::Mount => AccessType::Mount(MountVolume {
            fs_type: access.fs_type.unwrap_or_default().to_owned(),
            mount_flags: access.options.to_vec(),
            volume_mount_group: access.group.map(|group| group.to_string()).unwrap_or_default(),
        }),
    };
    let mode = access_mode(access.modes, access.several_writers_known);
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(access_type),
    }
}

/// The widest of the volume's modes decides.
fn access_mode(modes: &[&str], several_writers_known: bool) -> access_mode::Mode {
    let has = |name: &str| modes.contains(&name);
    if has("ReadWriteMany") {
        access_mode::Mode::MultiNodeMultiWriter
    } else if has("ReadOnlyMany") && has("ReadWriteOnce") {
        access_mode::Mode::MultiNodeSingleWriter
    } else if has("ReadOnlyMany") {
        access_mode::Mode::MultiNodeReaderOnly
    } else if has("ReadWriteOncePod") {
        match several_writers_known {
            true => access_mode::Mode::SingleNodeSingleWriter,
            false => access_mode::Mode::SingleNodeWriter,
        }
    } else if has("ReadWriteOnce") {
        match several_writers_known {
            true => access_mode::Mode::SingleNodeMultiWriter,
            false => access_mode::Mode::SingleNodeWriter,
        }
    } else {
        access_mode::Mode::Unknown
    }
}

/// Whether the node gives the volume to the pod's group.
pub(super) fn group_is_ours(policy: GroupPolicy, modes: &[&str], fs_type: Option<&str>) -> bool {
    match policy {
        GroupPolicy::File => true,
        GroupPolicy::None => false,
        GroupPolicy::ReadWriteOnceWithFSType => {
            let once = |mode: &&str| matches!(*mode, "ReadWriteOnce" | "ReadWriteOncePod");
            !fs_type.unwrap_or_default().is_empty() && modes.iter().any(once)
        }
    }
}

/// Under this key a driver finds the tokens that it wants: JSON, by audience.
pub(super) const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// What a driver learns of the pod.
pub(super) fn pod_info(pod: &Pod, ephemeral: bool) -> [(String, String); 5] {
    let account = pod.spec.service_account_name.clone().unwrap_or_default();
    [
        ("csi.storage.k8s.io/pod.name", pod.metadata.name.clone()),
        ("csi.storage.k8s.io/pod.namespace", pod.namespace().to_owned()),
        ("csi.storage.k8s.io/pod.uid", pod.uid().to_owned()),
        ("csi.storage.k8s.io/serviceAccount.name", account),
        ("csi.storage.k8s.io/ephemeral", ephemeral.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
}

/// The values of a secret; the error is the key whose value is not text.
pub(super) fn secret_values(secret: &Secret) -> Result<BTreeMap<String, String>, String> {
    let value = |(key, text): (&String, &String)| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok();
        let value = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        value.map(|value| (key.clone(), value)).ok_or_else(|| key.clone())
    };
    secret.data.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let mode = |text: &str, known| {
            let modes: Vec<&str> = text.split(' ').collect();
            access_mode(&modes, known).as_str_name()
        };
        let table = [
            ("ReadWriteOnce", false, "SINGLE_NODE_WRITER"),
            ("ReadWriteOnce", true, "SINGLE_NODE_MULTI_WRITER"),
            ("ReadWriteOncePod", true, "SINGLE_NODE_SINGLE_WRITER"),
            ("ReadOnlyMany", true, "MULTI_NODE_READER_ONLY"),
            ("ReadWriteOnce ReadWriteMany", false, "MULTI_NODE_MULTI_WRITER"),
            ("ReadWriteOnce ReadOnlyMany", false, "MULTI_NODE_SINGLE_WRITER"),
            ("", false, "UNKNOWN"),
        ];
        for (modes, known, want) in table {
            assert_eq!(mode(modes, known), want, "{modes}");
        }
        let ours = |policy, mode: &str, fs_type| group_is_ours(policy, &[mode], fs_type);
        let default = GroupPolicy::default();
        assert!(ours(default, "ReadWriteOnce", Some("ext4")) && !ours(default, "ReadWriteOnce", None));
        assert!(!ours(default, "ReadWriteMany", Some("ext4")));
        assert!(ours(GroupPolicy::File, "ReadWriteMany", None));
        assert!(!ours(GroupPolicy::None, "ReadWriteOnce", Some("ext4")));
    }
}
