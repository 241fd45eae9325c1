//! Applies a YAML file: creates what is missing, merges what is there.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Where an object of a manifest lives in the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// To create: `/api/v1/namespaces/default/configmaps`.
    pub(crate) collection: String,
    pub(crate) name: String,
    /// For messages: `ConfigMap default/thermometer`.
    pub(crate) shown: String,
}

/// The kinds that the bundled examples use. `kubectl apply` knows all others.
const KINDS: &[(&str, &str, &str)] = &[
    ("v1", "ConfigMap", "configmaps"),
    ("v1", "Secret", "secrets"),
    ("v1", "Pod", "pods"),
    ("apps/v1", "Deployment", "deployments"),
];

/// Parses a manifest and finds the place of every object.
pub(crate) fn objects(yaml: &str) -> Result<Vec<(Place, Value)>> {
    let documents = kedge_config::yaml::parse(yaml).context("read the manifest")?;
    documents
        .into_iter()
        .map(|object| Ok((place(&object)?, object)))
        .collect()
}

fn place(object: &Value) -> Result<Place> {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    let name = text("/metadata/name");
    if name.is_empty() {
        bail!("metadata.name is missing in a {kind}");
    }
    let namespace = match text("/metadata/namespace") {
        "" => "default",
        named => named,
    };
    let Some((_, _, plural)) = KINDS.iter().find(|(v, k, _)| (*v, *k) == (version, kind)) else {
        bail!("{version} {kind} cannot be applied by kedge itself; use kubectl apply");
    };
    let prefix = if version == "v1" {
        "/api/v1".to_owned()
    } else {
        format!("/apis/{version}")
    };
    Ok(Place {
        collection: format!("{prefix}/namespaces/{namespace}/{plural}"),
        name: name.to_owned(),
        shown: format!("{kind} {namespace}/{name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_has_a_place_for_every_object() {
        let placed = objects(include_str!("../../../../examples/thermometer.yaml")).unwrap();
        let shown: Vec<_> = placed
            .iter()
            .map(|(place, _)| place.collection.as_str())
            .collect();
        assert_eq!(
            shown,
            [
                "/api/v1/namespaces/default/configmaps",
                "/api/v1/namespaces/default/secrets",
                "/apis/apps/v1/namespaces/default/deployments",
            ]
        );
    }

    #[test]
    fn unknown_kinds_point_to_kubectl() {
        let error = objects("apiVersion: v1\nkind: Service\nmetadata: {name: x}\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("kubectl apply"), "{error}");
    }
}
