//! What a pod needs besides itself: the config maps and secrets that go to its node, and the claims and service
//! account that its node may ask about.

use kedge_wire::{ObjectKey, ObjectKind};
use serde::Deserialize;
use std::collections::BTreeSet;

/// What a pod refers to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct References {
    /// Config maps and secrets: sent to the node of the pod.
    pub(crate) needs: BTreeSet<ObjectKey>,
    /// The node may ask about them.
    pub(crate) claims: BTreeSet<ObjectKey>,
    /// The service account that the pod runs as: the node may ask for its tokens.
    pub(crate) account: String,
}

/// The part of a pod's spec that refers to other objects. Go writes an empty list as `null`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) node_name: Option<String>,
    service_account_name: Option<String>,
    volumes: Option<Vec<Volume>>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
    image_pull_secrets: Option<Vec<Named>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    env: Option<Vec<Variable>>,
    env_from: Option<Vec<VariableSource>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Variable {
    value_from: Option<VariableValue>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VariableValue {
    config_map_key_ref: Option<Named>,
    secret_key_ref: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VariableSource {
    config_map_ref: Option<Named>,
    secret_ref: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    config_map: Option<Named>,
    secret: Option<SecretVolume>,
    projected: Option<Projected>,
    persistent_volume_claim: Option<Claim>,
    csi: Option<CsiVolume>,
    azure_file: Option<SecretVolume>,
    cephfs: Option<WithSecret>,
    flex_volume: Option<WithSecret>,
    iscsi: Option<WithSecret>,
    rbd: Option<WithSecret>,
    #[serde(rename = "scaleIO")]
    scale_io: Option<WithSecret>,
    storageos: Option<WithSecret>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecretVolume {
    secret_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Projected {
    sources: Option<Vec<ProjectedSource>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProjectedSource {
    config_map: Option<Named>,
    secret: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Claim {
    claim_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CsiVolume {
    node_publish_secret_ref: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WithSecret {
    secret_ref: Option<Named>,
}

impl PodSpec {
    /// Whether the spec itself names a service account.
    pub(crate) fn names_account(&self) -> bool {
        let name = self.service_account_name.as_deref();
        name.is_some_and(|name| !name.is_empty())
    }

    /// Everything the pod of this spec refers to, in its namespace.
    pub(crate) fn references(&self, namespace: &str) -> References {
        let mut found = Finder {
            namespace,
            references: References::default(),
        };
        self.volumes
            .iter()
            .flatten()
            .for_each(|volume| found.volume(volume));
        let containers = [
            &self.containers,
            &self.init_containers,
            &self.ephemeral_containers,
        ];
        containers
            .into_iter()
            .flatten()
            .flatten()
            .for_each(|container| found.container(container));
        self.image_pull_secrets
            .iter()
            .flatten()
            .for_each(|secret| found.secret(Some(secret)));
        let account = self
            .service_account_name
            .as_deref()
            .filter(|name| !name.is_empty());
        found.references.account = account.unwrap_or("default").to_owned();
        found.references
    }
}

struct Finder<'a> {
    namespace: &'a str,
    references: References,
}

impl Finder<'_> {
    fn volume(&mut self, volume: &Volume) {
        self.config_map(volume.config_map.as_ref());
        for secret in [&volume.secret, &volume.azure_file].into_iter().flatten() {
            self.need(ObjectKind::Secret, secret.secret_name.as_deref());
        }
        for source in volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten())
        {
            self.config_map(source.config_map.as_ref());
            self.secret(source.secret.as_ref());
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            self.claim(claim.claim_name.as_deref());
        }
        self.secret(
            volume
                .csi
                .as_ref()
                .and_then(|csi| csi.node_publish_secret_ref.as_ref()),
        );
        let drivers = [&volume.cephfs, &volume.flex_volume, &volume.iscsi, &volume.rbd];
        let more_drivers = [&volume.scale_io, &volume.storageos];
        for driver in drivers.into_iter().chain(more_drivers).flatten() {
            self.secret(driver.secret_ref.as_ref());
        }
    }

    fn container(&mut self, container: &Container) {
        for value in container
            .env
            .iter()
            .flatten()
            .filter_map(|variable| variable.value_from.as_ref())
        {
            self.config_map(value.config_map_key_ref.as_ref());
            self.secret(value.secret_key_ref.as_ref());
        }
        for source in container.env_from.iter().flatten() {
            self.config_map(source.config_map_ref.as_ref());
            self.secret(source.secret_ref.as_ref());
        }
    }

    fn config_map(&mut self, named: Option<&Named>) {
        self.need(
            ObjectKind::ConfigMap,
            named.and_then(|named| named.name.as_deref()),
        );
    }

    fn secret(&mut self, named: Option<&Named>) {
        self.need(ObjectKind::Secret, named.and_then(|named| named.name.as_deref()));
    }

    fn need(&mut self, kind: ObjectKind, name: Option<&str>) {
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            self.references
                .needs
                .insert(ObjectKey::namespaced(kind, self.namespace, name));
        }
    }

    fn claim(&mut self, name: Option<&str>) {
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            let kind = ObjectKind::PersistentVolumeClaim;
            self.references
                .claims
                .insert(ObjectKey::namespaced(kind, self.namespace, name));
        }
    }
}
