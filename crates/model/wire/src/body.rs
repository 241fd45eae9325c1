//! The content of an envelope: original bytes, parsed on first use.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;

/// One JSON value as its original text, shared, so that sending it to ten thousand nodes does not copy or
/// re-serialise it. Cloning is a reference count.
#[derive(Debug, Clone)]
pub struct Body(Arc<RawValue>);

impl Body {
    /// JSON `null`.
    pub fn null() -> Self {
        Self(Arc::from(RawValue::NULL.to_owned()))
    }

    /// The JSON text of a value.
    pub fn from_value<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        Ok(Self(Arc::from(serde_json::value::to_raw_value(value)?)))
    }

    /// A JSON string holding `text`.
    pub fn text(text: &str) -> Self {
        Self::from_value(text).expect("a string is always JSON")
    }

    /// Takes text that must be one JSON value.
    pub fn from_json(json: String) -> Result<Self, serde_json::Error> {
        Ok(Self(Arc::from(RawValue::from_string(json)?)))
    }

    /// The JSON text.
    pub fn json(&self) -> &str {
        self.0.get()
    }

    /// Parses into a type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.0.get())
    }

    /// The text inside when the body is a JSON string.
    pub fn as_text(&self) -> Option<String> {
        self.parse().ok()
    }

    /// Like the official `GetContentData`: a JSON string yields its inner text, anything else its JSON.
    /// This is why a sender may put an object or a string that holds JSON.
    pub fn content_data(&self) -> String {
        self.as_text().unwrap_or_else(|| self.json().to_owned())
    }

    /// The metadata of the Kubernetes object in this body.
    pub fn object_meta(&self) -> Result<ObjectMeta, serde_json::Error> {
        #[derive(Deserialize)]
        struct Slim {
            #[serde(default)]
            metadata: ObjectMeta,
        }
        Ok(self.parse::<Slim>()?.metadata)
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::null()
    }
}

impl Serialize for Body {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Arc::from(Box::<RawValue>::deserialize(deserializer)?)))
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        self.json() == other.json()
    }
}
impl Eq for Body {}

/// The few fields of `metadata` that routing needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    pub name: String,
    pub namespace: Option<String>,
    pub uid: Option<crate::Uid>,
    pub resource_version: Option<crate::ResourceVersion>,
    pub deletion_timestamp: Option<String>,
}

/// An object that a node must hold: encoded once, shared by every node that takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub uid: crate::Uid,
    pub version: crate::ResourceVersion,
    /// The whole object with `apiVersion` and `kind`.
    pub body: Body,
}
