//! An object as JSON text with a hole for its resource version.

use kedge_store::revisions::Draft;
use serde_json::{Map, Value};

/// Prints the object so that the store can put the resource version in. Whatever version it carries is left out.
pub(crate) fn draft(object: &Value) -> Draft {
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let mut before = Vec::with_capacity(1024);
    before.push(b'{');
    for (name, value) in fields.iter().filter(|(name, _)| *name != "metadata") {
        field(&mut before, name, value);
        before.push(b',');
    }
    before.extend_from_slice(br#""metadata":{"#);
    let metadata = fields
        .get("metadata")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    for (name, value) in metadata.iter().filter(|(name, _)| *name != "resourceVersion") {
        field(&mut before, name, value);
        before.push(b',');
    }
    before.extend_from_slice(br#""resourceVersion":""#);
    Draft {
        before,
        after: br#""}}"#.to_vec(),
    }
}

fn field(out: &mut Vec<u8>, name: &str, value: &Value) {
    const WHY: &str = "a JSON value prints into memory without error";
    serde_json::to_writer(&mut *out, name).expect(WHY);
    out.push(b':');
    serde_json::to_writer(out, value).expect(WHY);
}
