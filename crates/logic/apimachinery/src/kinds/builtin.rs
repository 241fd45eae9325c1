//! The built-in kinds as a table.

use super::{Kind, Subresource as S, Verb};
use crate::schema::KindSchema;

/// group, version, kind, plural, short names, namespaced, subresources, in category "all"
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    bool,
    &'static [S],
    bool,
);

#[rustfmt::skip]
const STORED: &[Row] = &[
    ("", "v1", "ConfigMap",             "configmaps",             &["cm"],    true,  &[], false),
    ("", "v1", "Endpoints",             "endpoints",              &["ep"],    true,  &[], false),
    ("", "v1", "Event",                 "events",                 &["ev"],    true,  &[], false),
    ("", "v1", "Namespace",             "namespaces",             &["ns"],    false, &[S::Finalize, S::Status], false),
    ("", "v1", "Node",                  "nodes",                  &["no"],    false, &[S::Status], false),
    ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", &["pvc"],   true,  &[S::Status], false),
    ("", "v1", "PersistentVolume",      "persistentvolumes",      &["pv"],    false, &[S::Status], false),
    ("", "v1", "Pod",                   "pods",                   &["po"],    true,  &[S::Binding, S::Eviction, S::Log, S::Status], true),
    ("", "v1", "Secret",                "secrets",                &[],        true,  &[], false),
    ("", "v1", "ServiceAccount",        "serviceaccounts",        &["sa"],    true,  &[S::Token], false),
    ("", "v1", "Service",               "services",               &["svc"],   true,  &[S::Status], true),
    ("apps", "v1", "Deployment",        "deployments",            &["deploy"], true, &[S::Scale, S::Status], true),
    ("apps", "v1", "ReplicaSet",        "replicasets",            &["rs"],    true,  &[S::Scale, S::Status], true),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", &["crd", "crds"], false, &[S::Status], false),
    ("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests", &["csr"], false, &[S::Approval, S::Status], false),
    ("coordination.k8s.io", "v1", "Lease", "leases",              &[],        true,  &[], false),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", &[], false, &[], false),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", &[], false, &[], false),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles",          &[],        true,  &[], false),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", &[],   true,  &[], false),
    ("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses",       &[],        false, &[], false),
    ("storage.k8s.io", "v1", "CSIDriver", "csidrivers",           &[],        false, &[], false),
    ("storage.k8s.io", "v1", "CSINode", "csinodes",               &[],        false, &[], false),
    ("storage.k8s.io", "v1", "StorageClass", "storageclasses",    &["sc"],    false, &[], false),
    ("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", &[],    false, &[S::Status], false),
];

/// Kinds that are posted and answered, never stored: group, version, kind, plural, namespaced.
#[rustfmt::skip]
const POSTED: &[(&str, &str, &str, &str, bool)] = &[
    ("", "v1", "Binding", "bindings", true),
    ("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", false),
    ("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", false),
    ("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", true),
    ("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
    ("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", false),
    ("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", false),
];

pub(super) fn kinds() -> Vec<Kind> {
    let stored = STORED.iter().map(
        |&(group, version, kind, plural, short, namespaced, subresources, all)| Kind {
            short_names: short.iter().map(|s| (*s).to_owned()).collect(),
            categories: if all { vec!["all".to_owned()] } else { Vec::new() },
            verbs: Verb::ALL.to_vec(),
            subresources: subresources.to_vec(),
            ..bare(group, version, kind, plural, namespaced)
        },
    );
    let posted = POSTED
        .iter()
        .map(|&(group, version, kind, plural, namespaced)| Kind {
            verbs: vec![Verb::Create],
            ..bare(group, version, kind, plural, namespaced)
        });
    let mut kinds: Vec<Kind> = stored.chain(posted).collect();
    // Core first, as kubectl resolves a bare plural to the first group that has it.
    kinds.sort_by(|a, b| (&a.group, &a.plural).cmp(&(&b.group, &b.plural)));
    kinds
}

fn bare(group: &str, version: &str, kind: &'static str, plural: &str, namespaced: bool) -> Kind {
    Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        plural: plural.to_owned(),
        singular: kind.to_lowercase(),
        kind: kind.to_owned(),
        list_kind: format!("{kind}List"),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced,
        verbs: Vec::new(),
        subresources: Vec::new(),
        schema: KindSchema::Builtin(kind),
        printer_columns: Vec::new(),
        scale: None,
        storage_version: version.to_owned(),
        crd: None,
    }
}
