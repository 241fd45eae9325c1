//! The content of an envelope: original bytes, parsed on first use.

use crate::limits::{JSON_DEPTH_MAX, MESSAGE_BYTES_MAX};
use crate::{DecodeError, depth};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::{Arc, OnceLock};

/// One JSON value as its original text, shared, so that sending it to ten thousand nodes does not copy or
/// re-serialise it. Cloning is a reference count.
#[derive(Debug, Clone)]
pub struct Body(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    json: Box<RawValue>,
    /// The text in a shorter form, once somebody has asked for it; `None` inside when it does not get shorter.
    packed: OnceLock<Option<Box<[u8]>>>,
}

impl Body {
    fn of(json: Box<RawValue>) -> Self {
        let packed = OnceLock::new();
        Self(Arc::new(Shared { json, packed }))
    }

    /// JSON `null`.
    pub fn null() -> Self {
        Self::of(RawValue::NULL.to_owned())
    }

    /// The JSON text of a value.
    pub fn from_value<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        Ok(Self::of(serde_json::value::to_raw_value(value)?))
    }

    /// A JSON string holding `text`.
    pub fn text(text: &str) -> Self {
        Self::from_value(text).expect("a string is always JSON")
    }

    /// Takes text that must be one JSON value.
    pub fn from_json(json: String) -> Result<Self, serde_json::Error> {
        Ok(Self::of(RawValue::from_string(json)?))
    }

    /// Reads bytes of a peer that must be one JSON value, with the limits of an envelope.
    pub fn decode(bytes: Vec<u8>) -> Result<Self, DecodeError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(DecodeError::TooLarge {
                bytes: bytes.len(),
                max: MESSAGE_BYTES_MAX,
            });
        }
        let text = String::from_utf8(bytes).map_err(|error| DecodeError::NotUtf8 {
            valid_up_to: error.utf8_error().valid_up_to(),
        })?;
        if depth::exceeds(&text, JSON_DEPTH_MAX) {
            return Err(DecodeError::TooDeep { max: JSON_DEPTH_MAX });
        }
        Ok(Self::from_json(text)?)
    }

    /// The JSON text.
    pub fn json(&self) -> &str {
        self.0.json.get()
    }

    /// How many hold this value now, as a hint: others may take or drop it meanwhile.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// The text as `pack` shortens it, or `None` when it found that not worth it. All clones share the result, so that
    /// a version of an object is packed once for all nodes that take it: a process must always pack in the same way.
    pub fn packed(&self, pack: impl FnOnce(&str) -> Option<Box<[u8]>>) -> Option<&[u8]> {
        self.0.packed.get_or_init(|| pack(self.json())).as_deref()
    }

    /// Whether [`Body::packed`] has its answer already.
    pub fn is_packed(&self) -> bool {
        self.0.packed.get().is_some()
    }

    /// Parses into a type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.json())
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
        self.0.json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::of(Box::<RawValue>::deserialize(deserializer)?))
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
