//! Bodies in the protobuf encoding of Kubernetes, which typed clients (`kubectl create namespace` since 1.32) send
//! whether or not the server likes it. Decoded to JSON values; answers are always JSON.
//!
//! Field numbers are in `data/protobuf.txt`; what a field is, the schema catalog says.

use kedge_apimachinery::schema::catalog::{self, Shape, Type};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::LazyLock;

const NUMBERS: &str = include_str!("../data/protobuf.txt");
/// What every encoded object begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting: a pod template in a deployment needs about twelve levels.
const DEPTH_MAX: usize = 32;

/// The encoding does not tell a number that is not set from zero. These are set when they are there.
const OPTIONAL_NUMBERS: &[&str] = &[
    "replicas",
    "runAsUser",
    "runAsGroup",
    "fsGroup",
    "expirationSeconds",
    "gracePeriodSeconds",
    "terminationGracePeriodSeconds",
    "defaultMode",
    "mode",
    "partition",
    "progressDeadlineSeconds",
    "revisionHistoryLimit",
    "leaseDurationSeconds",
    "leaseTransitions",
    "tolerationSeconds",
    "activeDeadlineSeconds",
    "seconds",
    "deletionGracePeriodSeconds",
    "priority",
];
/// The same for false.
const OPTIONAL_BOOLEANS: &[&str] = &[
    "automountServiceAccountToken",
    "enableServiceLinks",
    "runAsNonRoot",
    "readOnlyRootFilesystem",
    "allowPrivilegeEscalation",
    "privileged",
    "immutable",
    "optional",
    "shareProcessNamespace",
    "hostUsers",
    "controller",
    "blockOwnerDeletion",
    "started",
    "allocateLoadBalancerNodePorts",
    "orphanDependents",
];

/// Field numbers and names of each message; a name that begins with `>` is an embedded message.
static MESSAGES: LazyLock<HashMap<&'static str, Vec<(u64, &'static str)>>> = LazyLock::new(|| {
    let lines = NUMBERS.lines().filter(|line| !line.starts_with(';'));
    lines
        .filter_map(|line| {
            let mut words = line.split(' ');
            let name = words.next()?;
            let mut fields = Vec::new();
            while let (Some(number), Some(field)) = (words.next(), words.next()) {
                fields.push((number.parse().ok()?, field));
            }
            Some((name, fields))
        })
        .collect()
});

/// Why bytes are not an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtobufError {
    #[error("the protobuf body does not begin with k8s and a zero byte")]
    NoMagic,
    #[error("the protobuf body is cut short or not well formed")]
    Broken,
    #[error("the protobuf body is nested more than {DEPTH_MAX} levels deep")]
    TooDeep,
    #[error("{0} cannot be read from protobuf here; send JSON")]
    UnknownKind(String),
}

/// An object with its apiVersion and kind.
pub(crate) fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let mut envelope = Reader {
        rest: body.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?,
    };
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, item)) = envelope.next()? {
        match (number, item) {
            (1, Item::Bytes(bytes)) => {
                let mut type_meta = Reader { rest: bytes };
                while let Some((number, item)) = type_meta.next()? {
                    match number {
                        1 => api_version = item.text()?,
                        2 => kind = item.text()?,
                        _ => {}
                    }
                }
            }
            (2, Item::Bytes(bytes)) => raw = bytes,
            (_, _) => {}
        }
    }
    let shape = catalog::find(&kind).ok_or_else(|| ProtobufError::UnknownKind(kind.clone()))?;
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    message(shape.name, shape, raw, &mut object, 0)?;
    Ok(Value::Object(object))
}

/// Reads the fields of a message into the object whose fields `shape` describes.
fn message(
    name: &str,
    shape: &Type,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::TooDeep);
    }
    let fields = MESSAGES
        .get(name)
        .ok_or_else(|| ProtobufError::UnknownKind(name.to_owned()))?;
    let mut reader = Reader { rest: bytes };
    while let Some((number, item)) = reader.next()? {
        // Fields newer than the table are left out, as an old server leaves them out.
        let Some((_, field)) = fields.iter().find(|(known, _)| *known == number) else {
            continue;
        };
        if let Some(embedded) = field.strip_prefix('>') {
            message(embedded, shape, item.bytes()?, object, depth + 1)?;
            continue;
        }
        let Some(described) = shape.field(field) else {
            continue;
        };
        match &described.shape {
            Shape::List(element) => {
                let value = value(element, item, depth + 1)?;
                let list = object.entry(*field).or_insert_with(|| Value::Array(Vec::new()));
                if let (Some(list), Some(value)) = (list.as_array_mut(), value) {
                    list.push(value);
                }
            }
            Shape::Map(element) => {
                let (key, value) = entry(element, item.bytes()?, depth + 1)?;
                let map = object.entry(*field).or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            }
            plain => {
                if let Some(value) = value(plain, item, depth + 1)?
                    && is_set(field, &value)
                {
                    object.insert((*field).to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

/// Whether a value is more than what the encoder writes for a field that nobody set.
fn is_set(field: &str, value: &Value) -> bool {
    match value {
        Value::String(text) => !text.is_empty(),
        Value::Number(number) => number.as_i64() != Some(0) || OPTIONAL_NUMBERS.contains(&field),
        Value::Bool(is) => *is || OPTIONAL_BOOLEANS.contains(&field),
        Value::Null | Value::Array(_) | Value::Object(_) => true,
    }
}

fn entry(element: &Shape, bytes: &[u8], depth: usize) -> Result<(String, Value), ProtobufError> {
    let (mut key, mut found) = (String::new(), None);
    let mut reader = Reader { rest: bytes };
    while let Some((number, item)) = reader.next()? {
        match number {
            1 => key = item.text()?,
            2 => found = value(element, item, depth)?,
            _ => {}
        }
    }
    Ok((key, found.unwrap_or_else(|| Value::String(String::new()))))
}

/// One value; `None` when it is of a kind that clients do not set (managed fields) or a time that is not set.
fn value(shape: &Shape, item: Item<'_>, depth: usize) -> Result<Option<Value>, ProtobufError> {
    Ok(match shape {
        Shape::Text => Some(item.text()?.into()),
        Shape::Bool => Some((item.number()? != 0).into()),
        // Negative numbers are sign-extended to 64 bits.
        Shape::Int32 | Shape::Int64 => Some(item.number()?.cast_signed().into()),
        Shape::Bytes => {
            use base64::Engine;
            Some(
                base64::engine::general_purpose::STANDARD
                    .encode(item.bytes()?)
                    .into(),
            )
        }
        Shape::Time => time(item.bytes()?)?.map(|time| kedge_apimachinery::meta::time(time).into()),
        Shape::MicroTime => {
            time(item.bytes()?)?.map(|time| kedge_apimachinery::meta::micro_time(time).into())
        }
        Shape::Quantity => {
            let mut reader = Reader { rest: item.bytes()? };
            match reader.next()? {
                Some((1, text)) => Some(text.text()?.into()),
                Some(_) | None => Some("0".into()),
            }
        }
        Shape::IntOrString => Some(int_or_string(item.bytes()?)?),
        Shape::Type(name) => {
            let shape = catalog::find(name).ok_or_else(|| ProtobufError::UnknownKind((*name).to_owned()))?;
            let mut object = Map::new();
            message(name, shape, item.bytes()?, &mut object, depth)?;
            Some(Value::Object(object))
        }
        // A list that is the value of a map entry is a message of its own.
        Shape::List(element) => {
            let (mut list, mut reader) = (Vec::new(), Reader { rest: item.bytes()? });
            while let Some((1, item)) = reader.next()? {
                list.extend(value(element, item, depth + 1)?);
            }
            Some(Value::Array(list))
        }
        // Floating point numbers and free JSON occur in definitions of custom resources only, which have no protobuf
        // form, and in managed fields, which we do not keep.
        Shape::Number | Shape::Any | Shape::Map(_) => None,
    })
}

fn time(bytes: &[u8]) -> Result<Option<jiff::Timestamp>, ProtobufError> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader { rest: bytes };
    while let Some((number, item)) = reader.next()? {
        match number {
            1 => seconds = item.number()?.cast_signed(),
            2 => nanos = item.number()?.cast_signed(),
            _ => {}
        }
    }
    // No seconds, or those of the year 1, are how a time that is not set is written.
    if seconds <= 0 {
        return Ok(None);
    }
    let nanos = i32::try_from(nanos).map_err(|_| ProtobufError::Broken)?;
    jiff::Timestamp::new(seconds, nanos)
        .map(Some)
        .map_err(|_| ProtobufError::Broken)
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    let mut reader = Reader { rest: bytes };
    while let Some((field, item)) = reader.next()? {
        match field {
            1 => is_text = item.number()? == 1,
            2 => number = item.number()?.cast_signed(),
            3 => text = item.text()?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

/// What a field holds.
enum Item<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Item<'a> {
    fn number(self) -> Result<u64, ProtobufError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) => Err(ProtobufError::Broken),
        }
    }

    fn bytes(self) -> Result<&'a [u8], ProtobufError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err(ProtobufError::Broken),
        }
    }

    fn text(self) -> Result<String, ProtobufError> {
        std::str::from_utf8(self.bytes()?)
            .map(str::to_owned)
            .map_err(|_| ProtobufError::Broken)
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The next field with its number; `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, Item<'a>)>, ProtobufError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let item = match tag & 7 {
            0 => Item::Number(self.varint()?),
            1 => Item::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| ProtobufError::Broken)?;
                Item::Bytes(self.take(length)?)
            }
            5 => Item::Bytes(self.take(4)?),
            _ => return Err(ProtobufError::Broken),
        };
        Ok(Some((tag >> 3, item)))
    }

    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(ProtobufError::Broken)?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(ProtobufError::Broken)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(ProtobufError::Broken)?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn object(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &type_meta), field(2, raw)].concat()
    }

    #[test]
    fn what_nobody_set_is_left_out() {
        let label = [field(1, b"app"), field(2, b"web")].concat();
        // name, an empty generateName, generation 0, a time that is not set, a label
        let metadata = [
            field(1, b"web"),
            field(2, b""),
            vec![7 << 3, 0],
            field(8, b""),
            field(11, &label),
        ]
        .concat();
        let data = [field(1, b"k"), field(2, b"v")].concat();
        let raw = [field(1, &metadata), field(2, &data), vec![4 << 3, 0]].concat();
        let decoded = decode(&object("v1", "ConfigMap", &raw)).unwrap();
        let expected = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web", "labels": {"app": "web"}},
            "data": {"k": "v"}, "immutable": false,
        });
        assert_eq!(decoded, expected);
    }

    #[test]
    fn embedded_messages_are_part_of_their_parent() {
        let empty_dir = field(2, b"");
        let volume = [field(1, b"cache"), field(2, &empty_dir)].concat();
        let pod = field(2, &field(1, &volume));
        let decoded = decode(&object("v1", "Pod", &pod)).unwrap();
        assert_eq!(
            decoded["spec"]["volumes"],
            json!([{"name": "cache", "emptyDir": {}}])
        );
    }

    #[test]
    fn lists_in_maps_are_messages() {
        let values = [field(1, b"a"), field(1, b"b")].concat();
        let extra = [field(1, b"scope"), field(2, &values)].concat();
        let spec = [field(3, b"anna"), field(5, &extra)].concat();
        let review = object("authorization.k8s.io/v1", "SubjectAccessReview", &field(2, &spec));
        assert_eq!(
            decode(&review).unwrap()["spec"],
            json!({"user": "anna", "extra": {"scope": ["a", "b"]}})
        );
    }

    #[test]
    fn every_message_of_the_table_is_readable() {
        for fields in MESSAGES.values() {
            for (_, name) in fields {
                assert!(
                    name.strip_prefix('>')
                        .is_none_or(|embedded| MESSAGES.contains_key(embedded)),
                    "{name}"
                );
            }
        }
        assert_eq!(decode(b"{}"), Err(ProtobufError::NoMagic));
        assert_eq!(
            decode(&object("v1", "Nothing", b"")),
            Err(ProtobufError::UnknownKind("Nothing".to_owned()))
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&object("v1", "Pod", &bytes[..bytes.len().min(100)]));
            let _ = decode(&[MAGIC, &bytes].concat());
        }
    }
}
