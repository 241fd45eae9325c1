//! Every bound the decoders keep, with the reason.

/// One hub message. An etcd object is at most 1.5 MiB; base64 and JSON escapes may double it twice.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Nesting of a JSON document. Kubernetes objects stay below 40; serde_json stops at 128 by itself.
pub const JSON_DEPTH_MAX: usize = 128;
/// A resource string: namespace (63), kind, name (253), or an MQTT topic.
pub const RESOURCE_BYTES_MAX: usize = 4096;
/// A source, destination, group, operation or header type; official words have at most 26 bytes.
pub const WORD_BYTES_MAX: usize = 256;
/// A message id or resource version; official ids have 36 bytes.
pub const ID_BYTES_MAX: usize = 128;
/// One tunnel frame's data. The official reader cuts at this size; ours refuses beyond it.
pub const TUNNEL_DATA_BYTES_MAX: usize = 1024 * 1024;
