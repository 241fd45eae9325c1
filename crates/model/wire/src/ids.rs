//! Names and identifiers as newtypes, so that one cannot be passed for another.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A name that Kubernetes or KubeEdge would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct InvalidName {
    /// What was being named.
    pub what: &'static str,
    /// The text that was refused (shortened to 80 characters).
    pub value: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

/// The name of a node: a DNS-1123 subdomain of at most 253 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// Checks and takes a node name.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
        let name = name.into();
        let rule =
            "a node name has 1 to 253 of a-z, 0-9, '-' and '.', and begins and ends with a letter or digit";
        let edge = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
        let fine = name.len() <= 253
            && name
                .bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.')
            && edge(name.as_bytes().first())
            && edge(name.as_bytes().last());
        if fine {
            Ok(Self(name))
        } else {
            Err(InvalidName {
                what: "node name",
                value: name.chars().take(80).collect(),
                rule,
            })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeName {
    type Error = InvalidName;
    fn try_from(name: String) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Takes the text as it is.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// `metadata.uid` of a Kubernetes object.
    Uid
);
text_id!(
    /// `metadata.resourceVersion`: opaque text, compared for equality only, except by the server that made it.
    ResourceVersion
);
text_id!(
    /// `header.msg_id`: a UUIDv4 from official peers; any text up to `limits::ID_BYTES_MAX` is taken.
    MessageId
);
