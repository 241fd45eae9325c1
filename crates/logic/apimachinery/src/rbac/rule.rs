//! One rule of a role: what it allows, and whether rules together hold all of another.

use super::{Act, full_resource};
use crate::meta::{self, items};
use serde_json::{Value, json};

/// Stands for everything in each of a rule's lists but the names.
const ALL: &str = "*";

/// A rule as a role holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    /// `pods`, `pods/status`, `*`, `*/status`.
    pub resources: Vec<String>,
    /// Empty: objects of any name.
    pub names: Vec<String>,
    /// `/healthz`, `/apis/*`, `*`.
    pub paths: Vec<String>,
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    let all = items(value, &[field]).iter();
    all.filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|known| known == ALL || known == wanted)
}

impl Rule {
    /// All rules of a role.
    pub fn all(role: &Value) -> Vec<Self> {
        items(role, &["rules"]).iter().map(Self::parse).collect()
    }

    fn parse(rule: &Value) -> Self {
        Self {
            verbs: texts(rule, "verbs"),
            groups: texts(rule, "apiGroups"),
            resources: texts(rule, "resources"),
            names: texts(rule, "resourceNames"),
            paths: texts(rule, "nonResourceURLs"),
        }
    }

    /// Every verb on every resource.
    pub(super) fn everything() -> Self {
        let all = vec![ALL.to_owned()];
        Self {
            verbs: all.clone(),
            groups: all.clone(),
            resources: all,
            ..Self::default()
        }
    }

    /// Every verb on every path.
    pub(super) fn every_path() -> Self {
        let all = vec![ALL.to_owned()];
        Self {
            verbs: all.clone(),
            paths: all,
            ..Self::default()
        }
    }

    /// Whether the rule is about resources; otherwise it is about paths.
    pub fn is_about_resources(&self) -> bool {
        !self.resources.is_empty()
    }

    pub fn to_value(&self) -> Value {
        let mut value = json!({"verbs": self.verbs});
        for (field, list) in [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.paths),
        ] {
            if !list.is_empty() {
                meta::set(&mut value, &[field], list.clone().into());
            }
        }
        value
    }

    pub fn allows(&self, act: &Act<'_>) -> bool {
        match act {
            Act::Path { verb, path } => {
                has(&self.verbs, verb) && self.paths.iter().any(|pattern| matches_path(pattern, path))
            }
            Act::Resource(act) => {
                has(&self.verbs, act.verb)
                    && has(&self.groups, act.group)
                    && self.has_resource(&full_resource(act.resource, act.subresource))
                    && (self.names.is_empty() || self.names.iter().any(|name| name == act.name))
            }
        }
    }

    /// A subresource is meant by its full name, by everything, or by `*/<subresource>`.
    fn has_resource(&self, full: &str) -> bool {
        let any_parent = full.split_once('/').map(|(_, sub)| format!("{ALL}/{sub}"));
        has(&self.resources, full) || any_parent.is_some_and(|any| self.resources.contains(&any))
    }

    /// How many single acts the rule stands for.
    fn combinations(&self) -> usize {
        let resources = self.groups.len() * self.resources.len() * self.names.len().max(1);
        self.verbs.len().saturating_mul(resources + self.paths.len())
    }

    /// The single acts of which the rule is made, each as a rule of its own.
    fn parts(&self) -> impl Iterator<Item = Self> {
        let one = |text: &String| vec![text.clone()];
        let names: Vec<Vec<String>> = match self.names.as_slice() {
            [] => vec![Vec::new()],
            names => names.iter().map(one).collect(),
        };
        self.verbs.iter().flat_map(move |verb| {
            let mut parts = Vec::new();
            for path in &self.paths {
                parts.push(Self {
                    verbs: one(verb),
                    paths: one(path),
                    ..Self::default()
                });
            }
            for (group, resource) in self
                .groups
                .iter()
                .flat_map(|g| self.resources.iter().map(move |r| (g, r)))
            {
                for names in &names {
                    parts.push(Self {
                        verbs: one(verb),
                        groups: one(group),
                        resources: one(resource),
                        names: names.clone(),
                        paths: Vec::new(),
                    });
                }
            }
            parts
        })
    }

    /// Whether this rule allows all that a part (see [`Rule::parts`]) allows.
    fn covers_part(&self, part: &Self) -> bool {
        let in_list = |list: &[String], part: &[String]| part.iter().all(|wanted| has(list, wanted));
        if !in_list(&self.verbs, &part.verbs) {
            return false;
        }
        if !part.paths.is_empty() {
            return part
                .paths
                .iter()
                .all(|wanted| self.paths.iter().any(|own| covers_path(own, wanted)));
        }
        in_list(&self.groups, &part.groups)
            && part.resources.iter().all(|resource| self.has_resource(resource))
            && (self.names.is_empty()
                || (!part.names.is_empty() && part.names.iter().all(|name| self.names.contains(name))))
    }
}

/// Which of the single acts of `wanted` no rule of `held` allows. `None` when there are more than `limit` of them to
/// look at.
pub(super) fn not_covered(held: &[Rule], wanted: &[Rule], limit: usize) -> Option<Vec<Rule>> {
    let all: usize = wanted
        .iter()
        .map(Rule::combinations)
        .fold(0, usize::saturating_add);
    if all > limit {
        // What somebody may do who may do everything needs no looking at.
        let covers_all = |rule: &&Rule| {
            let whole = |part: &Rule| held.iter().any(|own| own.covers_part(part));
            whole(&Rule::everything()) && (rule.paths.is_empty() || whole(&Rule::every_path()))
        };
        return wanted.iter().all(|rule| covers_all(&rule)).then(Vec::new);
    }
    let parts = wanted.iter().flat_map(Rule::parts);
    Some(
        parts
            .filter(|part| !held.iter().any(|own| own.covers_part(part)))
            .collect(),
    )
}

fn matches_path(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix(ALL) {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

fn covers_path(own: &str, wanted: &str) -> bool {
    match own.strip_suffix(ALL) {
        Some(prefix) => wanted.strip_suffix(ALL).unwrap_or(wanted).starts_with(prefix),
        None => own == wanted,
    }
}

/// As the official refusal prints a rule.
impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        for (name, list) in [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.names),
            ("NonResourceURLs", &self.paths),
            ("Verbs", &self.verbs),
        ] {
            if !list.is_empty() {
                parts.push(format!("{name}:{list:?}"));
            }
        }
        write!(f, "{{{}}}", parts.join(", "))
    }
}
