//! Frames of the CloudStream tunnel: `uvarint(connection id) uvarint(type) data` in one WebSocket message.
//!
//! Two own ends agree in the upgrade ([`OFFER_HEADER`]) that DATA needs credit: each direction of a stream begins with
//! [`WINDOW_BYTES`], and its receiver gives more with [`FrameBody::Window`] as it takes what came. So a stream that nobody
//! reads holds up nothing but itself. Official peers know neither the header nor the frame.

use crate::limits::TUNNEL_DATA_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An edge says it in the upgrade of the tunnel; a cloud that says it back counts credit.
pub const OFFER_HEADER: &str = "Kedge-Tunnel";
/// Its value: the version of what is agreed upon.
pub const OFFER: &str = "1";
/// Bytes that may be on their way in one direction of a stream: what a link of 20 Mbit/s and 100 ms holds.
pub const WINDOW_BYTES: usize = 256 * 1024;

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
    /// So many bytes of DATA more may come. Only between two own ends: an official edge does not survive it.
    Window(u32),
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
    #[serde(default, deserialize_with = "null_is_empty")]
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
    #[error("tunnel frame gives no number of bytes that could be")]
    BadWindow,
    #[error("tunnel frame of {bytes} bytes is larger than the limit of {max}")]
    TooLarge { bytes: usize, max: usize },
}

/// Longest varint of 64 bits.
const VARINT_BYTES_MAX: usize = 10;

impl FrameBody {
    /// The type number on the wire.
    fn number(&self) -> u64 {
        match self {
            Self::LogsConnect(_) => 0,
            Self::ExecConnect(_) => 1,
            Self::MetricsConnect(_) => 2,
            Self::Data(_) => 3,
            Self::Remove => 4,
            Self::Close(_) => 5,
            Self::AttachConnect(_) => 6,
            Self::Window(_) => 7,
        }
    }

    /// The bytes after the type number.
    pub fn data(&self) -> &[u8] {
        match self {
            Self::LogsConnect(data)
            | Self::ExecConnect(data)
            | Self::MetricsConnect(data)
            | Self::AttachConnect(data)
            | Self::Data(data)
            | Self::Close(data) => data,
            Self::Remove | Self::Window(_) => &[],
        }
    }
}

impl Frame {
    /// Reads one frame. A type that is not known is an error, never a panic: a peer must not be able to end us.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut rest = bytes;
        let connection = read_varint(&mut rest, "connection id")?;
        let number = read_varint(&mut rest, "type")?;
        if rest.len() > TUNNEL_DATA_BYTES_MAX {
            return Err(FrameError::TooLarge {
                bytes: rest.len(),
                max: TUNNEL_DATA_BYTES_MAX,
            });
        }
        let body = match number {
            0 => FrameBody::LogsConnect(rest.to_vec()),
            1 => FrameBody::ExecConnect(rest.to_vec()),
            2 => FrameBody::MetricsConnect(rest.to_vec()),
            3 => FrameBody::Data(rest.to_vec()),
            // Whatever follows says nothing more than the type does.
            4 => FrameBody::Remove,
            5 => FrameBody::Close(rest.to_vec()),
            6 => FrameBody::AttachConnect(rest.to_vec()),
            7 => {
                let bytes = read_varint(&mut rest, "window")?;
                let bytes = u32::try_from(bytes).map_err(|_| FrameError::BadWindow)?;
                if bytes == 0 || !rest.is_empty() {
                    return Err(FrameError::BadWindow);
                }
                FrameBody::Window(bytes)
            }
            unknown => return Err(FrameError::UnknownType(unknown)),
        };
        Ok(Self { connection, body })
    }

    /// The bytes of the frame.
    pub fn encode(&self) -> Vec<u8> {
        let data = self.body.data();
        let mut bytes = Vec::with_capacity(data.len() + 2 * VARINT_BYTES_MAX);
        push_varint(&mut bytes, self.connection);
        push_varint(&mut bytes, self.body.number());
        bytes.extend_from_slice(data);
        if let FrameBody::Window(more) = self.body {
            push_varint(&mut bytes, more.into());
        }
        bytes
    }
}

/// Seven bits a byte, least significant first; the high bit says that more follow.
fn read_varint(rest: &mut &[u8], what: &'static str) -> Result<u64, FrameError> {
    let mut value = 0_u64;
    for index in 0..VARINT_BYTES_MAX {
        let (&byte, after) = rest.split_first().ok_or(FrameError::Truncated(what))?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        let shift = 7 * index as u32;
        if shift == 63 && bits > 1 {
            return Err(FrameError::VarintTooLong);
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(FrameError::VarintTooLong)
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

impl Connect {
    /// Reads the data of a `*Connect` frame, which [`Frame::decode`] has bounded.
    pub fn decode(data: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(data)
    }

    /// The data of a `*Connect` frame.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text, numbers and lists are always JSON")
    }
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Vec<String>>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A GET that the tunnel carries to a node's kubelet port: logs or metrics. Path and query are as in a URL, still
/// percent-encoded, for example `/containerLogs/default/web/nginx` and `follow=true&tailLines=10`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeGet {
    pub path: String,
    pub query: String,
}

/// A request for a connection to a node's kubelet port: exec, attach or port forwarding. What follows are the bytes of an
/// HTTP/1.1 connection, of which this is the first head; the node's answer comes back as bytes, refusals included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConnect {
    pub method: String,
    /// As in [`NodeGet`].
    pub path: String,
    pub query: String,
    /// Those that say to what the connection shall be upgraded; never credentials.
    pub headers: Vec<(String, String)>,
}

impl NodeConnect {
    /// The values of a header, in their order, with lists taken apart at commas.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(key, _)| key.eq_ignore_ascii_case(name))
            .flat_map(|(_, value)| value.split(','))
            .map(str::trim)
    }
}
