//! The status of a custom resource definition: whether it is served, said in the write that brings it.

use jiff::Timestamp;
use kedge_apimachinery::kinds::Registry;
use kedge_apimachinery::meta;
use serde_json::{Value, json};

pub(crate) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// Fills in `status` as the registry judges the definition. A definition that takes a served name is kept, but not
/// served, and says why.
pub(crate) fn settle(definition: &mut Value, registry: &Registry, now: Timestamp) {
    let mut trial = registry.clone();
    let verdict = trial.register_crd(definition);
    let (accepted, established) = match &verdict {
        Ok(_) => (
            ("True", "NoConflicts", "no conflicts found"),
            ("True", "InitialNamesAccepted"),
        ),
        Err(error) => (
            ("False", "Conflict", error.why.as_str()),
            ("False", "NotAccepted"),
        ),
    };
    let message = if verdict.is_ok() {
        "the initial names have been accepted"
    } else {
        "not all names are accepted"
    };
    meta::set_condition(
        definition,
        "NamesAccepted",
        accepted.0,
        accepted.1,
        accepted.2,
        now,
    );
    meta::set_condition(
        definition,
        "Established",
        established.0,
        established.1,
        message,
        now,
    );
    let names = meta::at(definition, &["spec", "names"]).clone();
    meta::set(definition, &["status", "acceptedNames"], names);
    let versions = meta::items(definition, &["spec", "versions"]);
    let stored = versions
        .iter()
        .filter(|version| version["storage"] == true)
        .map(|version| version["name"].clone());
    let stored: Vec<Value> = stored.collect();
    meta::set(definition, &["status", "storedVersions"], json!(stored));
}
