//! From a volume of a pod to where its data is: claims are followed to the persistent volume that they are bound to.

use super::error::Error;
use super::paths::is_plain_name;
use crate::cloud::{self, Cloud};
use kedge_api::{
    CsiVolumeSource, EmptyDirVolumeSource, HostPathType, NfsVolumeSource, PersistentVolume,
    PersistentVolumeClaim, Pod, Quantity, Volume,
};
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use serde::de::DeserializeOwned;
use std::path::PathBuf;

/// Supplemental group that users of the volume get.
const GROUP_ANNOTATION: &str = "pv.beta.kubernetes.io/gid";

/// What a volume is.
#[derive(Debug, Clone)]
pub(super) enum Source {
    EmptyDir(EmptyDirVolumeSource),
    HostPath {
        path: PathBuf,
        type_: HostPathType,
    },
    /// Config map, secret, downward API or projected.
    Content,
    Local(Box<PersistentVolume>),
    Nfs {
        source: NfsVolumeSource,
        options: Vec<String>,
    },
    CsiPersistent(Box<PersistentVolume>),
    CsiEphemeral(CsiVolumeSource),
}

/// A volume of a pod, resolved.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    /// What it is called below the pod's directory: the volume's name, or that of the persistent volume.
    pub(super) name: String,
    pub(super) source: Source,
    /// The pod or the claim wants it unchanged.
    pub(super) read_only: bool,
    /// A device instead of a directory.
    pub(super) block: bool,
    /// Asked for by the persistent volume.
    pub(super) group: Option<u32>,
    /// How much the claim was told that the volume holds.
    pub(super) claim_bytes: Option<i64>,
}

/// Finds out what a volume is. Claims and persistent volumes are asked for: the store has them when the cloud is away.
pub(super) async fn resolve(pod: &Pod, volume: &Volume, cloud: &Cloud) -> Result<Resolved, Error> {
    if !is_plain_name(&volume.name) {
        return Err(Error::Unfit(format!("{:?} is no name of a volume", volume.name)));
    }
    let plain = |source| {
        Ok(Resolved {
            name: volume.name.clone(),
            source,
            read_only: false,
            block: false,
            group: None,
            claim_bytes: None,
        })
    };
    if let Some(source) = &volume.empty_dir {
        return plain(Source::EmptyDir(source.clone()));
    }
    if let Some(source) = &volume.host_path {
        return plain(Source::HostPath {
            path: PathBuf::from(&source.path),
            type_: source.type_,
        });
    }
    let contents = [
        volume.config_map.is_some(),
        volume.secret.is_some(),
        volume.projected.is_some(),
        volume.downward_api.is_some(),
    ];
    if contents.contains(&true) {
        return plain(Source::Content);
    }
    if let Some(source) = &volume.nfs {
        return Ok(Resolved {
            read_only: source.read_only,
            ..plain(Source::Nfs {
                source: source.clone(),
                options: Vec::new(),
            })?
        });
    }
    if let Some(source) = &volume.csi {
        return Ok(Resolved {
            read_only: source.read_only.unwrap_or(false),
            ..plain(Source::CsiEphemeral(source.clone()))?
        });
    }
    if let Some(source) = &volume.persistent_volume_claim {
        return claimed(pod, &source.claim_name, source.read_only, None, cloud).await;
    }
    if volume.ephemeral.is_some() {
        let claim = format!("{}-{}", pod.metadata.name, volume.name);
        return claimed(pod, &claim, false, Some(pod.uid()), cloud).await;
    }
    let kind = if volume.image.is_some() {
        "image"
    } else {
        volume
            .other
            .keys()
            .next()
            .map_or("without a source", String::as_str)
    };
    Err(Error::Unfit(format!(
        "no volume plugin matched: volumes of kind {kind} are not served on this node"
    )))
}

async fn claimed(
    pod: &Pod,
    claim_name: &str,
    read_only: bool,
    owner: Option<&str>,
    cloud: &Cloud,
) -> Result<Resolved, Error> {
    let namespace = pod.namespace();
    let unfit = |why: String| Error::Unfit(format!("error processing PVC {namespace}/{claim_name}: {why}"));
    let key = ObjectKey::namespaced(ObjectKind::PersistentVolumeClaim, namespace, claim_name);
    let claim: PersistentVolumeClaim = fetch(cloud, key, "persistentvolumeclaim", claim_name)
        .await
        .map_err(|why| unfit(format!("failed to fetch PVC from API server: {why}")))?;
    if let Some(owner) = owner {
        let owners = &claim.metadata.owner_references;
        if !owners
            .iter()
            .any(|reference| reference.uid == owner && reference.controller == Some(true))
        {
            return Err(unfit(format!(
                "PVC {namespace}/{claim_name} was not created for pod {namespace}/{} (pod is not owner)",
                pod.metadata.name
            )));
        }
    }
    let name = claim.spec.volume_name.as_deref().unwrap_or_default();
    if name.is_empty() || claim.status.phase.as_deref() != Some("Bound") {
        return Err(unfit("PVC is not bound".to_owned()));
    }
    if !is_plain_name(name) {
        return Err(unfit(format!("{name:?} is no name of a persistent volume")));
    }
    let key = ObjectKey::cluster(ObjectKind::PersistentVolume, name);
    let volume: PersistentVolume = fetch(cloud, key, "persistentvolume", name).await.map_err(unfit)?;
    let reference = volume.spec.claim_ref.as_ref();
    let bound_to = reference.and_then(|reference| reference.uid.as_deref());
    // Whoever made a claim of this name again must not get the data of the old one.
    if bound_to.is_none() || bound_to != claim.metadata.uid.as_deref() {
        return Err(unfit(format!("PV {name} is bound to another claim")));
    }
    let claim_bytes = claim.status.capacity.get("storage").map(Quantity::units);
    Ok(Resolved {
        claim_bytes,
        ..persistent(volume, read_only)?
    })
}

fn persistent(volume: PersistentVolume, read_only: bool) -> Result<Resolved, Error> {
    let name = volume.metadata.name.clone();
    let block = volume.spec.volume_mode.as_deref() == Some("Block");
    let group = volume
        .metadata
        .annotations
        .get(GROUP_ANNOTATION)
        .and_then(|text| text.parse().ok());
    let spec = &volume.spec;
    let (source, own_read_only) = if let Some(source) = &spec.host_path {
        let path = PathBuf::from(&source.path);
        let type_ = source.type_;
        (Source::HostPath { path, type_ }, false)
    } else if let Some(source) = &spec.nfs {
        let read_only = source.read_only;
        let (source, options) = (source.clone(), spec.mount_options.clone());
        (Source::Nfs { source, options }, read_only)
    } else if spec.local.is_some() {
        (Source::Local(Box::new(volume)), false)
    } else if let Some(source) = &spec.csi {
        let read_only = source.read_only;
        (Source::CsiPersistent(Box::new(volume)), read_only)
    } else {
        let kind = spec
            .other
            .keys()
            .next()
            .map_or("without a source", String::as_str);
        return Err(Error::Unfit(format!(
            "no volume plugin matched: persistent volumes of kind {kind} are not served on this node"
        )));
    };
    if block && !matches!(source, Source::Local(_) | Source::CsiPersistent(_)) {
        return Err(Error::Unfit(format!(
            "persistent volume {name} cannot be a block device"
        )));
    }
    Ok(Resolved {
        name,
        source,
        read_only: read_only || own_read_only,
        block,
        group,
        claim_bytes: None,
    })
}

/// Asks for an object; the error is a sentence that begins with what Kubernetes calls it.
pub(crate) async fn fetch<T: DeserializeOwned>(
    cloud: &Cloud,
    key: ObjectKey,
    kind: &str,
    name: &str,
) -> Result<T, String> {
    match cloud.object(Operation::Query, key, Body::null()).await {
        Ok(object) => Ok(object),
        Err(error) if error.is_not_found() => Err(format!("{kind} \"{name}\" not found")),
        Err(cloud::Error::NotAsked(why)) => Err(format!(
            "{kind} \"{name}\" is not on this node and the cloud does not give it: {why}"
        )),
        Err(error) => Err(format!("{kind} \"{name}\": {error}")),
    }
}
