//! The envelope as it travels, and the letter inside.

use crate::limits::{ID_BYTES_MAX, JSON_DEPTH_MAX, MESSAGE_BYTES_MAX, RESOURCE_BYTES_MAX, WORD_BYTES_MAX};
use crate::{Body, MessageId, ResourceVersion, depth};
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::fmt;

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

impl Header {
    /// The header of a new message that answers nothing.
    pub fn new(id: MessageId, timestamp_ms: i64) -> Self {
        Self {
            id,
            parent: None,
            timestamp_ms,
            resource_version: None,
            sync: false,
            kind: None,
        }
    }

    /// The same header, answering `parent`.
    pub fn answering(mut self, parent: MessageId) -> Self {
        self.parent = Some(parent);
        self
    }
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
    #[error("message is nested deeper than the limit of {max}")]
    TooDeep { max: usize },
    #[error("message is not the expected JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{field} of {bytes} bytes is longer than the limit of {max}")]
    FieldTooLong {
        field: &'static str,
        bytes: usize,
        max: usize,
    },
}

impl Envelope {
    /// Reads one message. Trailing bytes after the first JSON value are ignored, as the official reader does.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(DecodeError::TooLarge {
                bytes: bytes.len(),
                max: MESSAGE_BYTES_MAX,
            });
        }
        let text = std::str::from_utf8(bytes).map_err(|error| DecodeError::NotUtf8 {
            valid_up_to: error.valid_up_to(),
        })?;
        if depth::exceeds(text, JSON_DEPTH_MAX) {
            return Err(DecodeError::TooDeep { max: JSON_DEPTH_MAX });
        }
        Wire::deserialize(&mut serde_json::Deserializer::from_str(text))?.check()
    }

    /// The JSON text of the message as the official encoder writes it, ending with a newline.
    pub fn encode(&self) -> String {
        let mut out = self.encode_head(self.content.json().len() + Self::TAIL.len());
        out.push_str(self.content.json());
        out.push_str(Self::TAIL);
        out
    }

    /// What follows the content in [`Envelope::encode`].
    pub const TAIL: &'static str = "}\n";

    /// What stands before the content in [`Envelope::encode`], for those who write the shared bytes of a body without
    /// copying them; with room for so many bytes more.
    pub fn encode_head(&self, room: usize) -> String {
        let mut out = String::with_capacity(room + 512);
        out.push_str("{\"header\":{\"msg_id\":");
        push_string(&mut out, self.header.id.as_str());
        push_field(
            &mut out,
            "parent_msg_id",
            self.header.parent.as_ref().map_or("", MessageId::as_str),
        );
        out.push_str(",\"timestamp\":");
        out.push_str(&self.header.timestamp_ms.to_string());
        let version = self.header.resource_version.as_ref();
        push_field(
            &mut out,
            "resourceversion",
            version.map_or("", ResourceVersion::as_str),
        );
        if self.header.sync {
            out.push_str(",\"sync\":true");
        }
        push_field(&mut out, "type", self.header.kind.as_deref().unwrap_or(""));
        out.push_str("},\"route\":{");
        push_field(&mut out, "source", &self.route.source);
        push_field(&mut out, "destination", &self.route.destination);
        push_field(&mut out, "group", &self.route.group);
        push_field(&mut out, "operation", &self.route.operation);
        push_field(&mut out, "resource", &self.route.resource);
        out.push_str("},\"content\":");
        out
    }
}

/// Writes `"name":"text"`, with a comma if something stands before it, and nothing when the text is empty.
fn push_field(out: &mut String, name: &str, text: &str) {
    if text.is_empty() {
        return;
    }
    if !out.ends_with('{') {
        out.push(',');
    }
    out.push('"');
    out.push_str(name);
    out.push_str("\":");
    push_string(out, text);
}

/// Writes a JSON string with the escapes of the official encoder, which also hides `<`, `>`, `&` and the two line
/// separators that JavaScript does not allow in strings.
pub(crate) fn push_string(out: &mut String, text: &str) {
    use fmt::Write as _;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                write!(out, "\\u{:04x}", c as u32).expect("writing to a string cannot fail");
            }
            plain => out.push(plain),
        }
    }
    out.push('"');
}

/// The message before its limits are checked: text is borrowed from the input wherever it has no escapes.
#[derive(Default)]
struct Wire<'a> {
    header: WireHeader<'a>,
    route: WireRoute<'a>,
    content: Option<Body>,
}

#[derive(Default)]
struct WireHeader<'a> {
    id: Text<'a>,
    parent: Text<'a>,
    timestamp_ms: i64,
    resource_version: Text<'a>,
    sync: bool,
    kind: Text<'a>,
}

#[derive(Default)]
struct WireRoute<'a> {
    source: Text<'a>,
    destination: Text<'a>,
    group: Text<'a>,
    operation: Text<'a>,
    resource: Text<'a>,
}

#[derive(Default, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Text<'_> {
    fn at_most(self, field: &'static str, max: usize) -> Result<String, DecodeError> {
        if self.0.len() > max {
            return Err(DecodeError::FieldTooLong {
                field,
                bytes: self.0.len(),
                max,
            });
        }
        Ok(self.0.into_owned())
    }
}

impl Wire<'_> {
    fn check(self) -> Result<Envelope, DecodeError> {
        let some = |text: String| (!text.is_empty()).then_some(text);
        let Self {
            header,
            route,
            content,
        } = self;
        Ok(Envelope {
            header: Header {
                id: MessageId::new(header.id.at_most("header.msg_id", ID_BYTES_MAX)?),
                parent: some(header.parent.at_most("header.parent_msg_id", ID_BYTES_MAX)?)
                    .map(MessageId::new),
                timestamp_ms: header.timestamp_ms,
                resource_version: some(
                    header
                        .resource_version
                        .at_most("header.resourceversion", ID_BYTES_MAX)?,
                )
                .map(ResourceVersion::new),
                sync: header.sync,
                kind: some(header.kind.at_most("header.type", WORD_BYTES_MAX)?),
            },
            route: RawRoute {
                source: route.source.at_most("route.source", WORD_BYTES_MAX)?,
                destination: route.destination.at_most("route.destination", WORD_BYTES_MAX)?,
                group: route.group.at_most("route.group", WORD_BYTES_MAX)?,
                operation: route.operation.at_most("route.operation", WORD_BYTES_MAX)?,
                resource: route.resource.at_most("route.resource", RESOURCE_BYTES_MAX)?,
            },
            content: content.unwrap_or_else(Body::null),
        })
    }
}

/// Reads a JSON object whose keys match without regard to case (as the official reader does), may be absent, may be
/// `null`, and may stand among unknown ones. A key that stands twice is refused: two readers must never disagree
/// about which one counts.
macro_rules! read_object {
    ($type:ident { $($key:literal => $field:ident : $value:ty),+ $(,)? }) => {
        impl<'de: 'a, 'a> Deserialize<'de> for $type<'a> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields<'a>(std::marker::PhantomData<&'a ()>);

                impl<'de: 'a, 'a> Visitor<'de> for Fields<'a> {
                    type Value = $type<'a>;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a JSON object")
                    }

                    fn visit_unit<E>(self) -> Result<Self::Value, E> {
                        Ok($type::default())
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                        $(let mut $field: Option<$value> = None;)+
                        while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
                            $(if key.eq_ignore_ascii_case($key) {
                                if $field.is_some() {
                                    return Err(A::Error::duplicate_field($key));
                                }
                                $field = Some(map.next_value::<Option<$value>>()?.unwrap_or_default());
                                continue;
                            })+
                            map.next_value::<IgnoredAny>()?;
                        }
                        Ok($type { $($field: $field.unwrap_or_default().into()),+ })
                    }
                }

                deserializer.deserialize_any(Fields(std::marker::PhantomData))
            }
        }
    };
}

read_object!(Wire { "header" => header: WireHeader<'a>, "route" => route: WireRoute<'a>, "content" => content: Body });
read_object!(WireHeader {
    "msg_id" => id: Text<'a>,
    "parent_msg_id" => parent: Text<'a>,
    "timestamp" => timestamp_ms: i64,
    "resourceversion" => resource_version: Text<'a>,
    "sync" => sync: bool,
    "type" => kind: Text<'a>,
});
read_object!(WireRoute {
    "source" => source: Text<'a>,
    "destination" => destination: Text<'a>,
    "group" => group: Text<'a>,
    "operation" => operation: Text<'a>,
    "resource" => resource: Text<'a>,
});
