//! The envelope as it travels, and the letter inside.

use crate::{Body, MessageId, ResourceVersion};

/// `header` of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub id: MessageId,
    /// The message being answered.
    pub parent: Option<MessageId>,
    /// Unix milliseconds.
    pub timestamp_ms: i64,
    pub resource_version: Option<ResourceVersion>,
    /// Never true between official peers; kept.
    pub sync: bool,
    /// Selector of the in-process transport of the official peer; kept.
    pub kind: Option<String>,
}

/// `route` of a message, as text. [`crate::Route`] is its parsed form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawRoute {
    pub source: String,
    pub destination: String,
    pub group: String,
    pub operation: String,
    pub resource: String,
}

/// One message, faithful: `decode` then `encode` gives what the official encoder emits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub header: Header,
    pub route: RawRoute,
    pub content: Body,
}

/// A typed message with its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter<M> {
    pub header: Header,
    pub message: M,
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("message of {bytes} bytes is larger than the limit of {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("message is not valid UTF-8 from byte {valid_up_to} on")]
    NotUtf8 { valid_up_to: usize },
    #[error("message is not the expected JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{field} of {bytes} bytes is longer than the limit of {max}")]
    FieldTooLong { field: &'static str, bytes: usize, max: usize },
}

impl Envelope {
    /// Reads one message. Trailing bytes after the first JSON value are ignored, as the official reader does.
    pub fn decode(_bytes: &[u8]) -> Result<Self, DecodeError> {
        todo!()
    }

    /// The JSON text of the message as the official encoder writes it, ending with a newline.
    pub fn encode(&self) -> String {
        todo!()
    }
}
