//! Frames of the CloudStream tunnel: `uvarint(connection id) uvarint(type) data` in one WebSocket message.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a frame is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameBody {
    LogsConnect(Vec<u8>),
    ExecConnect(Vec<u8>),
    MetricsConnect(Vec<u8>),
    AttachConnect(Vec<u8>),
    Data(Vec<u8>),
    /// "My side of this connection is done."
    Remove,
    /// Ends the whole tunnel; the edge dials again.
    Close(Vec<u8>),
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Chosen by the cloud, from 1.
    pub connection: u64,
    pub body: FrameBody,
}

/// The JSON inside a `*Connect` frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    #[serde(rename = "MessID")]
    pub id: u64,
    pub url: ConnectUrl,
    #[serde(default)]
    pub header: BTreeMap<String, Vec<String>>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
}

/// A Go `url.URL` as JSON. Only path and query are trusted; the host is always the edge's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ConnectUrl {
    pub scheme: String,
    pub opaque: String,
    pub user: Option<serde_json::Value>,
    pub host: String,
    pub path: String,
    pub fragment: String,
    pub raw_query: String,
    pub raw_path: String,
    pub raw_fragment: String,
    pub force_query: bool,
    pub omit_host: bool,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("tunnel frame is cut short in its {0}")]
    Truncated(&'static str),
    #[error("tunnel frame has a number of more than 64 bits")]
    VarintTooLong,
    #[error("tunnel frame of type {0} is not known")]
    UnknownType(u64),
    #[error("tunnel frame of {bytes} bytes is larger than the limit of {max}")]
    TooLarge { bytes: usize, max: usize },
}

impl Frame {
    /// Reads one frame.
    pub fn decode(_bytes: &[u8]) -> Result<Self, FrameError> {
        todo!()
    }
    /// The bytes of the frame.
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }
}

/// A GET that the tunnel carries to a node's kubelet port: logs or metrics. Path and query are as in a URL, still
/// percent-encoded, for example `/containerLogs/default/web/nginx` and `follow=true&tailLines=10`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeGet {
    pub path: String,
    pub query: String,
}
