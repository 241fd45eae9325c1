//! Objects in the form that the client asked for.

use super::Call;
use crate::acts::in_version;
use crate::request::Form;
use crate::storage::{Change, ChangeKind, Found, event_line};
use bytes::Bytes;
use jiff::Timestamp;
use kedge_apimachinery::kinds::Kind;
use kedge_apimachinery::status::Status;
use kedge_apimachinery::table::{self, IncludeObject};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) const CONTENT_TYPE: &str = "application/json";

/// How to print objects of a kind for one client.
pub(super) struct Shape {
    kind: Arc<Kind>,
    form: Form,
    include: IncludeObject,
    /// The stored text can go out as it is.
    as_stored: bool,
    /// A watch names the columns of its table once.
    headers: bool,
}

impl Shape {
    pub(super) fn of(call: &Call) -> Result<Self, Status> {
        let include = match call.query.text("includeObject") {
            "" | "Metadata" => IncludeObject::Metadata,
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            other => {
                let choices = "None, Metadata or Object";
                return Err(Status::bad_request(format!(
                    "includeObject: {other:?} is not known; use {choices}"
                )));
            }
        };
        let as_stored = call.form == Form::Plain && call.kind.version == call.kind.storage_version;
        Ok(Self {
            kind: Arc::clone(&call.kind),
            form: call.form,
            include,
            as_stored,
            headers: true,
        })
    }

    /// One object.
    pub(super) fn one(&self, found: &Found) -> Bytes {
        if self.as_stored {
            found.text.clone()
        } else {
            self.value(found.value(), true).to_string().into()
        }
    }

    /// One object that was just written.
    pub(super) fn object(&self, object: Value) -> Value {
        self.value(object, true)
    }

    /// A list with its metadata.
    pub(super) fn list(&self, all: &[Found], metadata: &Value) -> Bytes {
        if self.as_stored {
            return self.stored_list(all, metadata);
        }
        let objects: Vec<Value> = all
            .iter()
            .map(|found| in_version(&self.kind, found.value()))
            .collect();
        let list = match self.form {
            Form::Plain => json!({
                "kind": self.kind.list_kind, "apiVersion": self.kind.api_version(),
                "metadata": metadata, "items": objects,
            }),
            Form::Table => {
                let (metadata, now) = (metadata.clone(), Timestamp::now());
                table::table(&self.kind, &objects, metadata, self.include, true, now)
            }
            Form::Metadata => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": objects.into_iter().map(partial).collect::<Vec<_>>(),
            }),
        };
        list.to_string().into()
    }

    /// Puts stored texts next to each other without looking into them.
    fn stored_list(&self, all: &[Found], metadata: &Value) -> Bytes {
        let head = json!({
            "kind": self.kind.list_kind, "apiVersion": self.kind.api_version(), "metadata": metadata,
        });
        let mut text = head.to_string().into_bytes();
        text.reserve(all.iter().map(|found| found.text.len() + 1).sum::<usize>() + 16);
        text.pop();
        text.extend_from_slice(br#","items":["#);
        for (n, found) in all.iter().enumerate() {
            if n > 0 {
                text.push(b',');
            }
            text.extend_from_slice(&found.text);
        }
        text.extend_from_slice(b"]}");
        text.into()
    }

    /// A change as it happened.
    pub(super) fn change(&mut self, change: &Change) -> Bytes {
        if self.as_stored {
            change.line()
        } else {
            self.event(change.kind, &change.text)
        }
    }

    /// A watch event of our own making.
    pub(super) fn event(&mut self, kind: ChangeKind, text: &Bytes) -> Bytes {
        if self.as_stored {
            return event_line(kind.as_str(), text);
        }
        let object: Value = serde_json::from_slice(text).unwrap_or_default();
        let headers = std::mem::take(&mut self.headers);
        let shaped = self.value(object, headers).to_string();
        event_line(kind.as_str(), shaped.as_bytes())
    }

    fn value(&self, object: Value, headers: bool) -> Value {
        let object = in_version(&self.kind, object);
        match self.form {
            Form::Plain => object,
            Form::Table => {
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                table::table(
                    &self.kind,
                    [&object],
                    metadata,
                    self.include,
                    headers,
                    Timestamp::now(),
                )
            }
            Form::Metadata => partial(object),
        }
    }
}

fn partial(mut object: Value) -> Value {
    let metadata = object.get_mut("metadata").map(Value::take).unwrap_or_default();
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}
