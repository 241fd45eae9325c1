//! The kinds that are served: built-in ones and those that custom resource definitions add.

mod builtin;
mod discovery;

pub use discovery::AggregatedVersion;

use crate::meta;
use crate::schema::{KindSchema, crd::CrdSchema};
use serde_json::Value;
use std::sync::Arc;

/// Most versions one custom resource definition may serve: discovery lists them all.
pub const CRD_VERSIONS_MAX: usize = 16;

/// What may be done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

impl Verb {
    pub const ALL: &'static [Self] = &[
        Self::Create,
        Self::Delete,
        Self::DeleteCollection,
        Self::Get,
        Self::List,
        Self::Patch,
        Self::Update,
        Self::Watch,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Update => "update",
            Self::Watch => "watch",
        }
    }
}

/// A path element below an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    Status,
    Scale,
    Binding,
    Eviction,
    Log,
    Token,
    Finalize,
    Approval,
}

impl Subresource {
    const ALL: &'static [Self] = &[
        Self::Status,
        Self::Scale,
        Self::Binding,
        Self::Eviction,
        Self::Log,
        Self::Token,
        Self::Finalize,
        Self::Approval,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::Log => "log",
            Self::Token => "token",
            Self::Finalize => "finalize",
            Self::Approval => "approval",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|s| s.as_str() == name)
    }

    pub fn verbs(self) -> &'static [Verb] {
        match self {
            Self::Status | Self::Scale | Self::Approval => &[Verb::Get, Verb::Patch, Verb::Update],
            Self::Binding | Self::Eviction | Self::Token => &[Verb::Create],
            Self::Log => &[Verb::Get],
            Self::Finalize => &[Verb::Update],
        }
    }

    /// Group, version and kind of the body, where it is not that of the parent.
    pub fn body_kind(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Scale => Some(("autoscaling", "v1", "Scale")),
            Self::Eviction => Some(("policy", "v1", "Eviction")),
            Self::Token => Some(("authentication.k8s.io", "v1", "TokenRequest")),
            Self::Binding => Some(("", "v1", "Binding")),
            Self::Status | Self::Log | Self::Finalize | Self::Approval => None,
        }
    }
}

/// Where a custom resource keeps its scale numbers: paths of object keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec_replicas: Vec<String>,
    pub status_replicas: Vec<String>,
    pub label_selector: Option<Vec<String>>,
}

/// One `additionalPrinterColumns` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrinterColumn {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
    pub json_path: String,
}

/// A served kind in one version.
#[derive(Clone, Debug)]
pub struct Kind {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// Empty for kinds that are only posted and answered (reviews, bindings).
    pub verbs: Vec<Verb>,
    pub subresources: Vec<Subresource>,
    pub schema: KindSchema,
    pub printer_columns: Vec<PrinterColumn>,
    pub scale: Option<ScalePaths>,
    /// The version in which a custom resource is stored; objects of other versions differ in `apiVersion` only.
    pub storage_version: String,
    /// The custom resource definition that brought it.
    pub crd: Option<String>,
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods` or `deployments.apps`: names a kind whatever its version. The key of storage, watches and writes.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    pub fn serves(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }

    pub fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }

    /// Whether group and plural are these; the way strategies ask for a kind they know.
    pub fn is(&self, group_resource: &str) -> bool {
        match group_resource.split_once('.') {
            Some((plural, group)) => self.plural == plural && self.group == group,
            None => self.plural == group_resource && self.group.is_empty(),
        }
    }
}

/// A custom resource definition that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("serve custom resource definition {name}: {why}")]
pub struct RegisterError {
    pub name: String,
    pub why: String,
}

/// All served kinds.
#[derive(Clone, Debug)]
pub struct Registry {
    /// In the order of discovery.
    kinds: Vec<Arc<Kind>>,
}

impl Registry {
    pub fn builtin() -> Self {
        Self {
            kinds: builtin::kinds().into_iter().map(Arc::new).collect(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.iter()
    }

    /// By the elements of a request path.
    pub fn lookup(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        self.kinds
            .iter()
            .find(|k| k.plural == plural && k.version == version && k.group == group)
            .cloned()
    }

    /// By what an object says about itself.
    pub fn lookup_kind(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.kinds
            .iter()
            .find(|k| k.kind == kind && k.version == version && k.group == group)
            .cloned()
    }

    /// By `pods` or `deployments.apps`; the storage version where there are several.
    pub fn by_group_resource(&self, group_resource: &str) -> Option<Arc<Kind>> {
        self.kinds
            .iter()
            .find(|k| k.is(group_resource) && k.version == k.storage_version)
            .cloned()
    }

    /// Whether any kind of the group in that version is served.
    pub fn serves_group_version(&self, group: &str, version: &str) -> bool {
        self.kinds
            .iter()
            .any(|k| k.group == group && k.version == version)
    }

    /// Adds (or replaces) the served versions of a custom resource definition and returns them.
    pub fn register_crd(&mut self, crd: &Value) -> Result<Vec<Arc<Kind>>, RegisterError> {
        let kinds = custom_kinds(crd)?;
        let name = meta::name(crd);
        for kind in &kinds {
            let taken = self.kinds.iter().any(|k| {
                k.group == kind.group
                    && k.crd.as_deref() != Some(name)
                    && (k.plural == kind.plural || (k.kind == kind.kind && k.version == kind.version))
            });
            if taken {
                let why = format!("{} in group {} is already served", kind.plural, kind.group);
                return Err(RegisterError {
                    name: name.to_owned(),
                    why,
                });
            }
        }
        self.unregister_crd(name);
        let kinds: Vec<_> = kinds.into_iter().map(Arc::new).collect();
        self.kinds.extend(kinds.iter().cloned());
        Ok(kinds)
    }

    /// Removes the kinds of a custom resource definition (by `metadata.name`) and returns them.
    pub fn unregister_crd(&mut self, name: &str) -> Vec<Arc<Kind>> {
        let (gone, kept) = self.kinds.drain(..).partition(|k| k.crd.as_deref() == Some(name));
        self.kinds = kept;
        gone
    }

    /// Groups and their versions in the order of discovery, preferred version first; the core group is "".
    pub(crate) fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for kind in &self.kinds {
            let place = match groups.iter().position(|(g, _)| *g == kind.group) {
                Some(place) => place,
                None => {
                    groups.push((kind.group.clone(), Vec::new()));
                    groups.len() - 1
                }
            };
            let versions = &mut groups[place].1;
            if !versions.contains(&kind.version) {
                versions.push(kind.version.clone());
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        }
        groups
    }
}

/// Order of versions: v2 before v1 before v1beta2 before v1beta1 before v1alpha1 before anything else.
fn version_rank(version: &str) -> (u8, u32, u32) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let major: u32 = rest[..digits].parse().ok()?;
        match &rest[digits..] {
            "" => Some((3, major, 0)),
            tail if tail.starts_with("beta") => Some((2, major, tail[4..].parse().ok()?)),
            tail if tail.starts_with("alpha") => Some((1, major, tail[5..].parse().ok()?)),
            _ => None,
        }
    };
    parse().unwrap_or((0, 0, 0))
}

/// The kinds that a custom resource definition object describes, one for each served version.
pub fn custom_kinds(crd: &Value) -> Result<Vec<Kind>, RegisterError> {
    let name = meta::name(crd).to_owned();
    let fail = |why: String| RegisterError {
        name: name.clone(),
        why,
    };
    let spec = meta::at(crd, &["spec"]);
    let names = meta::at(spec, &["names"]);
    let versions = meta::items(spec, &["versions"]);
    if versions.len() > CRD_VERSIONS_MAX {
        return Err(fail(format!(
            "{} versions, at most {CRD_VERSIONS_MAX} are possible",
            versions.len()
        )));
    }
    let storage = versions
        .iter()
        .find(|v| meta::at(v, &["storage"]) == &Value::Bool(true));
    let storage_version = storage.map(|v| meta::text(v, &["name"])).unwrap_or_default();
    let kind = meta::text(names, &["kind"]);
    let plural = meta::text(names, &["plural"]);
    if storage_version.is_empty() || kind.is_empty() || plural.is_empty() {
        return Err(fail(
            "it needs names.plural, names.kind and one version with storage: true".to_owned(),
        ));
    }
    let texts = |path: &str| -> Vec<String> {
        meta::items(names, &[path])
            .iter()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
    };
    let or = |value: &str, other: String| if value.is_empty() { other } else { value.to_owned() };
    let mut kinds = Vec::new();
    for version in versions
        .iter()
        .filter(|v| meta::at(v, &["served"]) == &Value::Bool(true))
    {
        let mut subresources = Vec::new();
        if meta::at(version, &["subresources", "status"]).is_object() {
            subresources.push(Subresource::Status);
        }
        let scale = scale_paths(meta::at(version, &["subresources", "scale"]));
        if scale.is_some() {
            subresources.push(Subresource::Scale);
        }
        let schema = CrdSchema::new(meta::at(version, &["schema", "openAPIV3Schema"]).clone());
        kinds.push(Kind {
            group: meta::text(spec, &["group"]).to_owned(),
            version: meta::text(version, &["name"]).to_owned(),
            plural: plural.to_owned(),
            singular: or(meta::text(names, &["singular"]), kind.to_lowercase()),
            kind: kind.to_owned(),
            list_kind: or(meta::text(names, &["listKind"]), format!("{kind}List")),
            short_names: texts("shortNames"),
            categories: texts("categories"),
            namespaced: meta::text(spec, &["scope"]) == "Namespaced",
            verbs: Verb::ALL.to_vec(),
            subresources,
            schema: KindSchema::Custom(Arc::new(schema)),
            printer_columns: meta::items(version, &["additionalPrinterColumns"])
                .iter()
                .map(printer_column)
                .collect(),
            scale,
            storage_version: storage_version.to_owned(),
            crd: Some(name.clone()),
        });
    }
    Ok(kinds)
}

fn scale_paths(scale: &Value) -> Option<ScalePaths> {
    let path = |key: &str| -> Option<Vec<String>> {
        let text = scale.get(key)?.as_str()?.trim_start_matches('.');
        Some(text.split('.').map(str::to_owned).collect())
    };
    Some(ScalePaths {
        spec_replicas: path("specReplicasPath")?,
        status_replicas: path("statusReplicasPath")?,
        label_selector: path("labelSelectorPath"),
    })
}

fn printer_column(column: &Value) -> PrinterColumn {
    let text = |key: &str| meta::text(column, &[key]).to_owned();
    PrinterColumn {
        name: text("name"),
        kind: text("type"),
        format: text("format"),
        description: text("description"),
        priority: meta::number(column, &["priority"]).unwrap_or(0),
        json_path: text("jsonPath"),
    }
}

#[cfg(test)]
mod tests;
