//! The little that a watch must read of what it passes on.

use kedge_wire::{Body, Status, Uid};
use serde::Deserialize;
use serde_json::json;

/// One page of a list.
pub(super) struct Page {
    pub(super) objects: Vec<Body>,
    pub(super) version: String,
    pub(super) next_page: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    #[serde(default)]
    metadata: ListMeta,
    /// A Go server may write `null` for an empty list.
    items: Option<Vec<Body>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    r#continue: String,
}

impl Page {
    pub(super) fn read(list: &Body) -> Result<Self, serde_json::Error> {
        let List { metadata, items } = list.parse()?;
        let next_page = (!metadata.r#continue.is_empty()).then_some(metadata.r#continue);
        Ok(Self {
            objects: items.unwrap_or_default(),
            version: metadata.resource_version,
            next_page,
        })
    }
}

/// One line of a watch.
pub(super) enum Event {
    Applied(Body),
    Deleted(Body),
    Bookmark { version: String },
    Error(Box<Status>),
}

impl Event {
    pub(super) fn read(line: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Line {
            r#type: String,
            object: Body,
        }
        let Line { r#type, object } = serde_json::from_slice(line)?;
        Ok(match r#type.as_str() {
            "ADDED" | "MODIFIED" => Self::Applied(object),
            "DELETED" => Self::Deleted(object),
            "BOOKMARK" => Self::Bookmark {
                version: version(&object)?,
            },
            "ERROR" => Self::Error(Box::new(object.parse()?)),
            unknown => {
                let why = format!("unknown kind of event {unknown:?}");
                return Err(serde::de::Error::custom(why));
            }
        })
    }
}

/// `<namespace>/<name>` and the UID.
pub(super) fn identity(object: &Body) -> Result<(String, Uid), serde_json::Error> {
    let meta = object.object_meta()?;
    let uid = meta
        .uid
        .ok_or_else(|| serde::de::Error::custom("the object has no uid"))?;
    Ok((
        format!("{}/{}", meta.namespace.as_deref().unwrap_or(""), meta.name),
        uid,
    ))
}

/// The resource version, empty if there is none.
pub(super) fn version(object: &Body) -> Result<String, serde_json::Error> {
    let version = object.object_meta()?.resource_version;
    Ok(version.map_or_else(String::new, |version| version.as_str().to_owned()))
}

/// The same object with `apiVersion` and `kind`, which items of lists do not carry but which every edge needs.
pub(super) fn with_type(object: Body, api_version: &str, kind: &str) -> Result<Body, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct TypeMeta {
        #[serde(default)]
        api_version: String,
        #[serde(default)]
        kind: String,
    }
    let found: TypeMeta = object.parse()?;
    let mut typed = String::from("{");
    for (name, value, found) in [
        ("apiVersion", api_version, found.api_version),
        ("kind", kind, found.kind),
    ] {
        if found.is_empty() {
            // Constants of this program: no character of them needs an escape.
            typed.push_str(&format!("\"{name}\":\"{value}\","));
        }
    }
    if typed.len() == 1 {
        return Ok(object);
    }
    let rest = object.json().strip_prefix('{').unwrap_or_default().trim_start();
    if rest.starts_with('}') {
        typed.pop();
    }
    Body::from_json(typed + rest)
}

/// What is left of an object that vanished unseen.
pub(super) fn tombstone(api_version: &str, kind: &str, key: &str, uid: &Uid) -> Body {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    let mut metadata = json!({ "name": name, "uid": uid });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    let object = json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata });
    Body::from_value(&object).expect("text fields are JSON")
}

/// Makes text safe as the value of a query parameter.
pub(super) fn percent_encode(text: &str) -> String {
    text.bytes()
        .fold(String::with_capacity(text.len()), |mut out, byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                out.push(byte.into());
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn body(json: &str) -> Body {
        Body::from_json(json.to_owned()).unwrap()
    }

    #[test]
    fn items_of_a_list_get_their_type_and_keep_their_bytes() {
        let typed = |json| with_type(body(json), "v1", "Pod").unwrap().json().to_owned();
        expect![[r#"{"apiVersion":"v1","kind":"Pod","metadata":{"n":1.10}}"#]]
            .assert_eq(&typed(r#"{"metadata":{"n":1.10}}"#));
        expect![[r#"{"apiVersion":"v1","kind":"Pod"}"#]].assert_eq(&typed("{ }"));
        expect![[r#"{"kind":"Pod","apiVersion":"v1","x":1}"#]]
            .assert_eq(&typed(r#"{"kind":"Pod","apiVersion":"v1","x":1}"#));
        assert!(with_type(body("[]"), "v1", "Pod").is_err());
        assert!(with_type(body("7"), "v1", "Pod").is_err());
    }

    #[test]
    fn a_tombstone_names_what_is_gone() {
        let gone = tombstone("v1", "Pod", "default/web", &Uid::new("u"));
        expect![[
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","uid":"u","namespace":"default"}}"#
        ]]
        .assert_eq(gone.json());
        expect![[r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"edge-1","uid":"u"}}"#]]
            .assert_eq(tombstone("v1", "Node", "/edge-1", &Uid::new("u")).json());
    }

    #[test]
    fn an_unknown_event_is_an_error_and_not_a_silence() {
        assert!(Event::read(br#"{"type":"RENAMED","object":{}}"#).is_err());
        assert!(
            matches!(Event::read(br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}"#),
            Ok(Event::Bookmark { version }) if version == "7")
        );
    }

    #[test]
    fn tokens_are_made_safe_for_a_query() {
        assert_eq!(percent_encode("a+b/c=&d"), "a%2Bb%2Fc%3D%26d");
    }
}
