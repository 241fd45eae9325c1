//! Pods that files of the node describe, and their mirrors in the cloud.

use kedge_api::{OwnerReference, Pod, Timestamp};
use kedge_wire::Time;
use serde_json::Value;
use std::sync::Arc;

/// Where a pod was found.
pub(crate) const SOURCE: &str = "kubernetes.io/config.source";
/// What a static pod's file says, in short.
pub(crate) const HASH: &str = "kubernetes.io/config.hash";
/// When it was found.
pub(crate) const SEEN: &str = "kubernetes.io/config.seen";
/// Only mirrors have it: the hash of the static pod that they show.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
/// No taint drives a static pod away.
const NO_EXECUTE: &str = "NoExecute";

/// Whether the pod only shows a static pod.
pub(crate) fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.contains_key(MIRROR)
}

/// Whether the pod is of this node only: its file says so.
pub(crate) fn is_static(pod: &Pod) -> bool {
    pod.metadata
        .annotations
        .get(SOURCE)
        .is_some_and(|source| source != "api")
}

/// The hash that a mirror shows.
pub(crate) fn mirrored_hash(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.get(MIRROR).map(String::as_str)
}

/// The hash of a static pod, which is its UID too.
pub(crate) fn hash(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.get(HASH).map(String::as_str)
}

/// Makes what a file says a pod of this node. Its UID is a hash of everything that it says, so a changed file is a
/// new pod and an unchanged one is the same pod after a restart.
pub(crate) fn adopt(mut pod: Pod, node: &str, now: Time) -> Option<Pod> {
    if pod.metadata.name.is_empty() || pod.spec.containers.is_empty() {
        return None;
    }
    pod.status = kedge_api::PodStatus::default();
    pod.metadata.deletion_timestamp = None;
    pod.metadata.deletion_grace_period_seconds = None;
    if pod.metadata.namespace.as_deref().is_none_or(str::is_empty) {
        pod.metadata.namespace = Some("default".to_owned());
    }
    let suffix = format!("-{}", node.to_lowercase());
    if !pod.metadata.name.ends_with(&suffix) {
        pod.metadata.name.push_str(&suffix);
    }
    pod.spec.node_name = Some(node.to_owned());
    pod.metadata.uid = None;
    pod.metadata.resource_version = None;
    for key in [SOURCE, HASH, SEEN, MIRROR] {
        pod.metadata.annotations.remove(key);
    }
    let hash = digest(&pod, node);
    pod.metadata.uid = Some(hash.clone());
    let tolerates = |t: &kedge_api::Toleration| {
        t.operator.as_deref() == Some("Exists") && t.key.is_none() && t.effect.as_deref() == Some(NO_EXECUTE)
    };
    if !pod.spec.tolerations.iter().any(tolerates) {
        pod.spec.tolerations.push(kedge_api::Toleration {
            operator: Some("Exists".to_owned()),
            effect: Some(NO_EXECUTE.to_owned()),
            ..kedge_api::Toleration::default()
        });
    }
    let annotations = [(SOURCE, "file".to_owned()), (HASH, hash), (SEEN, seen(now))];
    for (key, value) in annotations {
        pod.metadata.annotations.insert(key.to_owned(), value);
    }
    Some(pod)
}

/// When a file was seen, as text.
fn seen(now: Time) -> String {
    Timestamp::from_ms(now.as_ms()).to_string()
}

/// Whether the files of both have the same annotations, apart from those that say where and when they were found.
pub(crate) fn same_notes(one: &Pod, other: &Pod) -> bool {
    let own = |pod: &Pod| -> Vec<(String, String)> {
        let notes = pod.metadata.annotations.clone().into_iter();
        notes
            .filter(|(key, _)| ![SOURCE, HASH, SEEN, MIRROR].contains(&key.as_str()))
            .collect()
    };
    own(one) == own(other)
}

/// Hexadecimal digits of a hash that the official agent made.
const FOREIGN_HASH_DIGITS: usize = 32;

/// Takes over a static pod that the official agent ran before: its mirror tells the UID. The two agents hash in
/// different ways, so the mirror is believed when it says everything that the file says.
pub(crate) fn take_over(pod: Pod, mirror: Option<&Arc<Pod>>) -> Pod {
    let Some((mirror, hash)) = mirror.and_then(|mirror| Some((mirror, mirrored_hash(mirror)?))) else {
        return pod;
    };
    let value = |pod: &Pod| serde_json::to_value(&pod.spec).unwrap_or_default();
    if hash.len() != FOREIGN_HASH_DIGITS || !says(&value(mirror), &value(&pod)) {
        return pod;
    }
    let mut pod = pod;
    pod.metadata.uid = Some(hash.to_owned());
    pod.metadata.annotations.insert(HASH.to_owned(), hash.to_owned());
    pod
}

/// Whether a text with defaults filled in says what another one says.
fn says(full: &Value, brief: &Value) -> bool {
    match (full, brief) {
        (Value::Object(full), Value::Object(brief)) => brief
            .iter()
            .all(|(key, value)| full.get(key).is_some_and(|known| says(known, value))),
        (Value::Array(full), Value::Array(brief)) => {
            full.len() == brief.len() && full.iter().zip(brief).all(|(full, brief)| says(full, brief))
        }
        (full, brief) => full == brief,
    }
}

/// 192 bits over what the pod says and where it runs: three FNV-1a hashes of 64 bits, because the value must be the same
/// in every version of this program, and longer than those of others. Nobody attacks it: who writes the files decides
/// what runs anyway.
fn digest(pod: &Pod, node: &str) -> String {
    // A pod becomes JSON always; an empty text would make all static pods one, which is seen at once.
    let text = serde_json::to_string(pod).unwrap_or_default();
    let fnv = |basis: u64| {
        let bytes = node.bytes().chain([0]).chain(text.bytes());
        bytes.fold(basis, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    };
    format!(
        "{:016x}{:016x}",
        fnv(0xcbf2_9ce4_8422_2325),
        fnv(0x8422_2325_cbf2_9ce4)
    )
}

/// What the cloud is shown of a static pod.
pub(crate) fn mirror_of(pod: &Pod, node: &str, node_uid: Option<&str>) -> Arc<Pod> {
    let mut mirror = pod.clone();
    let hash = hash(pod).unwrap_or_default().to_owned();
    mirror.api_version = "v1".to_owned();
    mirror.kind = "Pod".to_owned();
    mirror.metadata.annotations.insert(MIRROR.to_owned(), hash);
    mirror.metadata.uid = None;
    mirror.metadata.resource_version = None;
    mirror.status = kedge_api::PodStatus::default();
    // The node owns it, so that it goes with the node.
    mirror.metadata.owner_references = node_uid
        .map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            uid: uid.to_owned(),
            controller: Some(true),
            block_owner_deletion: None,
        })
        .into_iter()
        .collect();
    Arc::new(mirror)
}
