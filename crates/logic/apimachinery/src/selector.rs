//! Which objects a request or a controller means: label selectors and field selectors.

use crate::kinds::Kind;
use crate::{meta, status::Status};
use serde_json::Value;

/// Longest selector text taken; longer ones are refused before they are parsed.
pub const SELECTOR_LENGTH_MAX: usize = 16 * 1024;

/// A selector that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("unable to parse requirement: {0}")]
    Label(String),
    #[error("invalid field selector: {0}")]
    Field(String),
    #[error("field label not supported: {field} (for {kind}: {known})")]
    UnknownField {
        field: String,
        kind: String,
        known: String,
    },
}

impl From<SelectorError> for Status {
    fn from(error: SelectorError) -> Self {
        Status::bad_request(error.to_string())
    }
}

/// One condition on the labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    In { key: String, values: Vec<String> },
    NotIn { key: String, values: Vec<String> },
    Exists { key: String },
    Absent { key: String },
}

impl Requirement {
    fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let among = |key: &str, values: &[String]| label(key).map(|v| values.iter().any(|w| w == v));
        match self {
            Self::In { key, values } => among(key, values) == Some(true),
            // An absent label is not among any values.
            Self::NotIn { key, values } => among(key, values) != Some(true),
            Self::Exists { key } => label(key).is_some(),
            Self::Absent { key } => label(key).is_none(),
        }
    }
}

impl std::fmt::Display for Requirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::In { key, values } if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Self::NotIn { key, values } if values.len() == 1 => write!(f, "{key}!={}", values[0]),
            Self::In { key, values } => write!(f, "{key} in ({})", values.join(",")),
            Self::NotIn { key, values } => write!(f, "{key} notin ({})", values.join(",")),
            Self::Exists { key } => write!(f, "{key}"),
            Self::Absent { key } => write!(f, "!{key}"),
        }
    }
}

/// All requirements must hold; none means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// The text form: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_LENGTH_MAX {
            return Err(SelectorError::Label(format!(
                "longer than {SELECTOR_LENGTH_MAX} bytes"
            )));
        }
        let clauses = split_outside_parentheses(text)
            .ok_or_else(|| SelectorError::Label(format!("unbalanced parentheses in {text:?}")))?;
        let requirements = clauses
            .into_iter()
            .map(str::trim)
            .filter(|c| !c.is_empty())
            .map(requirement)
            .collect();
        Ok(Self {
            requirements: Result::from_iter::<Vec<_>>(requirements)?,
        })
    }

    /// The object form: `matchLabels` and `matchExpressions`. A null selector matches nothing, an empty one everything;
    /// the caller tells them apart (None).
    pub fn from_object(selector: &Value) -> Result<Option<Self>, SelectorError> {
        if selector.is_null() {
            return Ok(None);
        }
        let mut requirements: Vec<Requirement> = meta::pairs(selector, &["matchLabels"])
            .map(|(key, value)| Requirement::In {
                key: key.to_owned(),
                values: vec![value.to_owned()],
            })
            .collect();
        for expression in meta::items(selector, &["matchExpressions"]) {
            let key = meta::text(expression, &["key"]).to_owned();
            let values: Vec<String> = meta::items(expression, &["values"])
                .iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            requirements.push(match (meta::text(expression, &["operator"]), values.is_empty()) {
                ("In", false) => Requirement::In { key, values },
                ("NotIn", false) => Requirement::NotIn { key, values },
                ("Exists", true) => Requirement::Exists { key },
                ("DoesNotExist", true) => Requirement::Absent { key },
                ("In" | "NotIn", true) => {
                    return Err(SelectorError::Label(format!(
                        "{key}: values must not be empty for In and NotIn"
                    )));
                }
                ("Exists" | "DoesNotExist", false) => {
                    return Err(SelectorError::Label(format!(
                        "{key}: values must be empty for Exists, DoesNotExist"
                    )));
                }
                (other, _) => {
                    return Err(SelectorError::Label(format!(
                        "{other:?} is not a selector operator"
                    )));
                }
            });
        }
        Ok(Some(Self { requirements }))
    }

    /// A plain map of labels that must all be there, as in a service's selector.
    pub fn from_map(labels: &Value) -> Self {
        let requirements = labels
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| Requirement::In {
                key: key.clone(),
                values: vec![value.as_str().unwrap_or_default().to_owned()],
            })
            .collect();
        Self { requirements }
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether a map of labels (or null) is selected.
    pub fn matches_labels(&self, labels: &Value) -> bool {
        self.requirements
            .iter()
            .all(|r| r.matches(|key| labels.get(key).and_then(Value::as_str)))
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.matches_labels(meta::at(object, &["metadata", "labels"]))
    }
}

impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.requirements.iter().map(ToString::to_string).collect();
        f.write_str(&parts.join(","))
    }
}

/// The clauses between commas that are not in parentheses; none when the parentheses do not match.
fn split_outside_parentheses(text: &str) -> Option<Vec<&str>> {
    let (mut start, mut inside, mut clauses) = (0, false, Vec::new());
    for (place, letter) in text.char_indices() {
        match letter {
            '(' if inside => return None,
            '(' => inside = true,
            ')' if !inside => return None,
            ')' => inside = false,
            ',' if !inside => {
                clauses.push(&text[start..place]);
                start = place + 1;
            }
            _ => {}
        }
    }
    clauses.push(&text[start..]);
    (!inside).then_some(clauses)
}

fn requirement(clause: &str) -> Result<Requirement, SelectorError> {
    let one = |key: &str, value: &str| -> Result<(String, Vec<String>), SelectorError> {
        Ok((label_key(key)?, vec![label_value(value)?]))
    };
    if let Some((head, rest)) = clause.split_once('(') {
        let list = rest
            .strip_suffix(')')
            .ok_or_else(|| SelectorError::Label(format!("text after ) in {clause:?}")))?;
        let values = list.split(',').map(label_value).collect::<Result<Vec<_>, _>>()?;
        let (key, operator) = head.trim().rsplit_once(char::is_whitespace).unwrap_or((head, ""));
        let key = label_key(key)?;
        return match operator {
            "in" => Ok(Requirement::In { key, values }),
            "notin" => Ok(Requirement::NotIn { key, values }),
            other => Err(SelectorError::Label(format!(
                "found {other:?}, expected in or notin in {clause:?}"
            ))),
        };
    }
    if let Some((key, value)) = clause.split_once("!=") {
        let (key, values) = one(key, value)?;
        return Ok(Requirement::NotIn { key, values });
    }
    if let Some((key, value)) = clause.split_once("==").or_else(|| clause.split_once('=')) {
        let (key, values) = one(key, value)?;
        return Ok(Requirement::In { key, values });
    }
    match clause.strip_prefix('!') {
        Some(key) => Ok(Requirement::Absent { key: label_key(key)? }),
        None => Ok(Requirement::Exists {
            key: label_key(clause)?,
        }),
    }
}

fn label_key(key: &str) -> Result<String, SelectorError> {
    let key = key.trim();
    crate::schema::names::label_key(key)
        .map_err(|why| SelectorError::Label(format!("key {key:?}: {why}")))?;
    Ok(key.to_owned())
}

fn label_value(value: &str) -> Result<String, SelectorError> {
    let value = value.trim();
    crate::schema::names::label_value(value)
        .map_err(|why| SelectorError::Label(format!("value {value:?}: {why}")))?;
    Ok(value.to_owned())
}

/// A field that may be selected on: its name and where it lies in the object.
type Field = (&'static str, &'static [&'static str]);

const EVERY_KIND: &[Field] = &[
    ("metadata.name", &["metadata", "name"]),
    ("metadata.namespace", &["metadata", "namespace"]),
];

const POD: &[Field] = &[
    ("spec.nodeName", &["spec", "nodeName"]),
    ("spec.restartPolicy", &["spec", "restartPolicy"]),
    ("spec.schedulerName", &["spec", "schedulerName"]),
    ("spec.serviceAccountName", &["spec", "serviceAccountName"]),
    ("spec.hostNetwork", &["spec", "hostNetwork"]),
    ("status.phase", &["status", "phase"]),
    ("status.podIP", &["status", "podIP"]),
    ("status.nominatedNodeName", &["status", "nominatedNodeName"]),
];

const EVENT: &[Field] = &[
    ("involvedObject.kind", &["involvedObject", "kind"]),
    ("involvedObject.namespace", &["involvedObject", "namespace"]),
    ("involvedObject.name", &["involvedObject", "name"]),
    ("involvedObject.uid", &["involvedObject", "uid"]),
    ("involvedObject.apiVersion", &["involvedObject", "apiVersion"]),
    (
        "involvedObject.resourceVersion",
        &["involvedObject", "resourceVersion"],
    ),
    ("involvedObject.fieldPath", &["involvedObject", "fieldPath"]),
    ("reason", &["reason"]),
    ("reportingComponent", &["reportingComponent"]),
    ("source", &["source", "component"]),
    ("type", &["type"]),
];

fn fields(kind: &Kind) -> &'static [Field] {
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "pods") => POD,
        ("", "events") => EVENT,
        ("", "nodes") => &[("spec.unschedulable", &["spec", "unschedulable"])],
        ("", "secrets") => &[("type", &["type"])],
        ("", "namespaces") => &[
            ("status.phase", &["status", "phase"]),
            ("name", &["metadata", "name"]),
        ],
        ("apps", "replicasets") => &[("status.replicas", &["status", "replicas"])],
        ("certificates.k8s.io", "certificatesigningrequests") => {
            &[("spec.signerName", &["spec", "signerName"])]
        }
        _ => &[],
    }
}

/// One condition on a field.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    path: &'static [&'static str],
    equal: bool,
    value: String,
}

/// What a list, a watch or a delete-collection asks for: labels and fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub labels: LabelSelector,
    fields: Vec<FieldTerm>,
}

impl Selector {
    pub fn everything() -> Self {
        Self::default()
    }

    /// From the query parameters `labelSelector` and `fieldSelector` (empty when absent).
    pub fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, SelectorError> {
        Ok(Self {
            labels: LabelSelector::parse(labels)?,
            fields: parse_fields(kind, fields)?,
        })
    }

    /// The same with one object's name as a further condition (`watch` of a single object).
    pub fn and_name(mut self, name: &str) -> Self {
        self.fields.push(FieldTerm {
            path: &["metadata", "name"],
            equal: true,
            value: name.to_owned(),
        });
        self
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The value a field is required to have, so that a store may use an index (`metadata.name`, `spec.nodeName`).
    pub fn required(&self, path: &[&str]) -> Option<&str> {
        self.fields
            .iter()
            .find(|t| t.equal && t.path == path)
            .map(|t| t.value.as_str())
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.fields
            .iter()
            .all(|t| (field_text(object, t.path) == t.value) == t.equal)
            && self.labels.matches(object)
    }
}

/// A field as selectors see it: absent text is "", absent booleans are "false", absent numbers "0" only where present.
fn field_text(object: &Value, path: &[&str]) -> String {
    match meta::at(object, path) {
        Value::String(text) => text.clone(),
        Value::Null if matches!(path.last(), Some(&"unschedulable" | &"hostNetwork")) => "false".to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn parse_fields(kind: &Kind, text: &str) -> Result<Vec<FieldTerm>, SelectorError> {
    if text.len() > SELECTOR_LENGTH_MAX {
        return Err(SelectorError::Field(format!(
            "longer than {SELECTOR_LENGTH_MAX} bytes"
        )));
    }
    let mut terms = Vec::new();
    for clause in split_unescaped(text).into_iter().filter(|c| !c.is_empty()) {
        let (field, equal, value) = if let Some((field, value)) = clause.split_once("!=") {
            (field, false, value)
        } else if let Some((field, value)) = clause.split_once("==").or_else(|| clause.split_once('=')) {
            (field, true, value)
        } else {
            return Err(SelectorError::Field(format!(
                "'{clause}' has no operator, expected =, == or !="
            )));
        };
        let known = || EVERY_KIND.iter().chain(fields(kind));
        let Some((_, path)) = known().find(|(name, _)| *name == field.trim()) else {
            let known = known().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            return Err(SelectorError::UnknownField {
                field: field.to_owned(),
                kind: kind.group_resource(),
                known,
            });
        };
        terms.push(FieldTerm {
            path,
            equal,
            value: unescape(value),
        });
    }
    Ok(terms)
}

/// Clauses between commas; a backslash takes the next letter's meaning away.
fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut start, mut escaped, mut clauses) = (0, false, Vec::new());
    for (place, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                clauses.push(&text[start..place]);
                start = place + 1;
            }
            _ => {}
        }
    }
    clauses.push(&text[start..]);
    clauses
}

fn unescape(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut escaped = false;
    for letter in value.chars() {
        if letter == '\\' && !escaped {
            escaped = true;
        } else {
            plain.push(letter);
            escaped = false;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Registry;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn check(labels: &str, expected: Expect) {
        const OBJECTS: &[&str] = &[
            "{}",
            r#"{"app":"web"}"#,
            r#"{"app":"db","tier":"back"}"#,
            r#"{"app":"web","tier":"front"}"#,
        ];
        let story = match LabelSelector::parse(labels) {
            Err(error) => error.to_string(),
            Ok(selector) => {
                let verdicts: Vec<_> = OBJECTS
                    .iter()
                    .map(|o| {
                        selector
                            .matches_labels(&serde_json::from_str(o).unwrap())
                            .to_string()
                    })
                    .collect();
                format!("{selector}: {}", verdicts.join(" "))
            }
        };
        expected.assert_eq(&story);
    }

    #[test]
    fn label_selectors() {
        check("", expect![": true true true true"]);
        check("app=web", expect!["app=web: false true false true"]);
        check("app==web,tier", expect!["app=web,tier: false false false true"]);
        check("app!=web", expect!["app!=web: true false true false"]);
        check(
            "app in (web, db),!tier",
            expect!["app in (web,db),!tier: false true false false"],
        );
        check("tier notin (front)", expect!["tier!=front: true true true false"]);
        check("app = ", expect!["app=: false false false false"]);
        check(
            "app in (web",
            expect![[r#"unable to parse requirement: unbalanced parentheses in "app in (web""#]],
        );
        check(
            "app of (web)",
            expect![[r#"unable to parse requirement: found "of", expected in or notin in "app of (web)""#]],
        );
        check(
            "a b",
            expect![[
                r#"unable to parse requirement: key "a b": a name must consist of letters, digits, '-', '_' or '.', and must start and end with a letter or digit"#
            ]],
        );
    }

    #[test]
    fn selector_objects() {
        let parse = |v: Value| LabelSelector::from_object(&v).map(|s| s.map(|s| s.to_string()));
        assert_eq!(parse(Value::Null), Ok(None));
        assert_eq!(parse(json!({})), Ok(Some(String::new())));
        let full = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]});
        assert_eq!(parse(full), Ok(Some("a=b,c in (d,e),!f".to_owned())));
        assert!(parse(json!({"matchExpressions": [{"key": "c", "operator": "Near"}]})).is_err());
    }

    #[test]
    fn field_selectors() {
        let registry = Registry::builtin();
        let pods = registry.lookup("", "v1", "pods").unwrap();
        let nodes = registry.lookup("", "v1", "nodes").unwrap();
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "edge-1"}, "status": {"phase": "Running"}});
        let matches = |text: &str| Selector::parse(&pods, "", text).unwrap().matches(&pod);
        assert!(matches("spec.nodeName=edge-1"));
        assert!(matches("status.phase!=Succeeded,status.phase!=Failed"));
        assert!(!matches("metadata.name=b"));
        assert!(
            Selector::parse(&nodes, "", "spec.unschedulable=false")
                .unwrap()
                .matches(&json!({}))
        );
        assert_eq!(
            Selector::parse(&pods, "", "metadata.name=a")
                .unwrap()
                .required(&["metadata", "name"]),
            Some("a")
        );
        expect!["field label not supported: spec.color (for nodes: metadata.name, metadata.namespace, spec.unschedulable)"]
            .assert_eq(&Selector::parse(&nodes, "", "spec.color=red").unwrap_err().to_string());
    }
}
