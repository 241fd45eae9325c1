//! Discovery documents: how a client learns which kinds are served.

use super::{Kind, Registry, Subresource, Verb};
use serde_json::{Value, json};

/// Which aggregated discovery the client asked for (`Accept: ...;g=apidiscovery.k8s.io;v=...;as=APIGroupDiscoveryList`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AggregatedVersion {
    V2,
    V2Beta1,
}

impl AggregatedVersion {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Beta1 => "v2beta1",
        }
    }

    /// The media type of the answer.
    pub fn content_type(self) -> String {
        format!(
            "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList",
            self.as_str()
        )
    }

    /// The first aggregated form that an Accept header names before plain JSON, if any.
    pub fn from_accept(accept: &str) -> Option<Self> {
        for clause in accept.split(',') {
            let has = |parameter: &str| clause.split(';').any(|p| p.trim() == parameter);
            let json = clause
                .split(';')
                .next()
                .is_some_and(|t| matches!(t.trim(), "application/json" | "*/*"));
            if !json {
                continue;
            }
            match (
                has("g=apidiscovery.k8s.io") && has("as=APIGroupDiscoveryList"),
                has("v=v2"),
                has("v=v2beta1"),
            ) {
                (true, true, _) => return Some(Self::V2),
                (true, _, true) => return Some(Self::V2Beta1),
                (true, false, false) => {}
                (false, _, _) => return None,
            }
        }
        None
    }
}

impl Registry {
    /// `/api`; `address` is `host:port` as clients reach this server.
    pub fn api_versions(&self, address: &str) -> Value {
        json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
        })
    }

    /// `/apis`
    pub fn api_group_list(&self) -> Value {
        let groups: Vec<Value> = self
            .groups()
            .into_iter()
            .filter(|(group, _)| !group.is_empty())
            .map(|(group, versions)| group_entry(&group, &versions))
            .collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    }

    /// `/apis/<group>`
    pub fn api_group(&self, group: &str) -> Option<Value> {
        let (group, versions) = self
            .groups()
            .into_iter()
            .find(|(g, _)| g == group && !g.is_empty())?;
        let mut entry = group_entry(&group, &versions);
        crate::meta::set(&mut entry, &["kind"], "APIGroup".into());
        crate::meta::set(&mut entry, &["apiVersion"], "v1".into());
        Some(entry)
    }

    /// `/api/v1` and `/apis/<group>/<version>`
    pub fn api_resource_list(&self, group: &str, version: &str) -> Option<Value> {
        let mut resources = Vec::new();
        let mut group_version = None;
        for kind in self
            .kinds
            .iter()
            .filter(|k| k.group == group && k.version == version)
        {
            group_version = Some(kind.api_version());
            resources.push(resource_entry(kind));
            resources.extend(kind.subresources.iter().map(|s| subresource_entry(kind, *s)));
        }
        Some(json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version?,
            "resources": resources,
        }))
    }

    /// `/api` (core) or `/apis` (all other groups) in the aggregated form.
    pub fn aggregated(&self, core: bool, form: AggregatedVersion) -> Value {
        let groups: Vec<Value> = self
            .groups()
            .into_iter()
            .filter(|(group, _)| group.is_empty() == core)
            .map(|(group, versions)| {
                let versions: Vec<Value> = versions
                    .iter()
                    .map(|version| {
                        let resources: Vec<Value> = self
                            .kinds
                            .iter()
                            .filter(|k| k.group == group && k.version == *version)
                            .map(|kind| aggregated_resource(kind))
                            .collect();
                        json!({"version": version, "resources": resources, "freshness": "Current"})
                    })
                    .collect();
                let metadata = if group.is_empty() {
                    json!({})
                } else {
                    json!({"name": group})
                };
                json!({"metadata": metadata, "versions": versions})
            })
            .collect();
        json!({
            "kind": "APIGroupDiscoveryList",
            "apiVersion": format!("apidiscovery.k8s.io/{}", form.as_str()),
            "metadata": {},
            "items": groups,
        })
    }
}

fn group_entry(group: &str, versions: &[String]) -> Value {
    let entry = |version: &String| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let entries: Vec<Value> = versions.iter().map(entry).collect();
    let preferred = entries.first().cloned().unwrap_or_default();
    json!({"name": group, "versions": entries, "preferredVersion": preferred})
}

fn verbs(verbs: &[Verb]) -> Vec<&'static str> {
    verbs.iter().map(|v| v.as_str()).collect()
}

fn resource_entry(kind: &Kind) -> Value {
    let mut entry = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": verbs(&kind.verbs),
    });
    if !kind.short_names.is_empty() {
        crate::meta::set(&mut entry, &["shortNames"], kind.short_names.clone().into());
    }
    if !kind.categories.is_empty() {
        crate::meta::set(&mut entry, &["categories"], kind.categories.clone().into());
    }
    entry
}

fn subresource_entry(kind: &Kind, subresource: Subresource) -> Value {
    let mut entry = json!({
        "name": format!("{}/{}", kind.plural, subresource.as_str()),
        "singularName": "",
        "namespaced": kind.namespaced,
    });
    let (group, version, body) = body_of(kind, subresource);
    if subresource
        .body_kind()
        .is_some_and(|(group, _, _)| !group.is_empty())
    {
        crate::meta::set(&mut entry, &["group"], group.into());
        crate::meta::set(&mut entry, &["version"], version.into());
    }
    crate::meta::set(&mut entry, &["kind"], body.into());
    crate::meta::set(&mut entry, &["verbs"], verbs(subresource.verbs()).into());
    entry
}

fn body_of(kind: &Kind, subresource: Subresource) -> (&str, &str, &str) {
    subresource
        .body_kind()
        .unwrap_or((&kind.group, &kind.version, &kind.kind))
}

fn aggregated_resource(kind: &Kind) -> Value {
    let scope = if kind.namespaced { "Namespaced" } else { "Cluster" };
    let mut entry = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": scope,
        "singularResource": kind.singular,
        "verbs": verbs(&kind.verbs),
    });
    if !kind.short_names.is_empty() {
        crate::meta::set(&mut entry, &["shortNames"], kind.short_names.clone().into());
    }
    if !kind.categories.is_empty() {
        crate::meta::set(&mut entry, &["categories"], kind.categories.clone().into());
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|s| {
            let (group, version, body) = body_of(kind, *s);
            json!({
                "subresource": s.as_str(),
                "responseKind": {"group": group, "version": version, "kind": body},
                "verbs": verbs(s.verbs()),
            })
        })
        .collect();
    if !subresources.is_empty() {
        crate::meta::set(&mut entry, &["subresources"], subresources.into());
    }
    entry
}
