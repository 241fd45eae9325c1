//! Server-side printing: the meta.k8s.io/v1 Table that `kubectl get` shows.

mod builtin;
mod custom;
mod pod;

use crate::kinds::Kind;
use crate::meta;
use jiff::Timestamp;
use serde_json::{Value, json};

/// How much of each object a row carries (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// The query parameter; anything unknown means the default.
    pub fn parse(text: &str) -> Self {
        match text {
            "None" => Self::None,
            "Object" => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// Whether the Accept header asks for a table (`as=Table;g=meta.k8s.io;v=v1`) before plain JSON.
pub fn wanted(accept: &str) -> bool {
    for clause in accept.split(',') {
        let mut parts = clause.split(';').map(str::trim);
        if !matches!(parts.next(), Some("application/json" | "*/*")) {
            continue;
        }
        let parameters: Vec<&str> = parts.collect();
        if !parameters.iter().any(|p| p.starts_with("as=")) {
            return false;
        }
        // The older v1beta1 form is answered by moving on to the next clause.
        if ["as=Table", "g=meta.k8s.io", "v=v1"]
            .iter()
            .all(|p| parameters.contains(p))
        {
            return true;
        }
    }
    false
}

/// One column: its head, and what it says about an object.
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) format: String,
    pub(crate) description: String,
    /// 0 is always shown, 1 only with `-o wide`.
    pub(crate) priority: i64,
}

impl Column {
    fn new(name: &str, kind: &str, priority: i64) -> Self {
        let format = if name == "Name" { "name" } else { "" };
        let description = match name {
            "Name" => "Unique within a namespace.",
            "Age" => "Time since the object was created.",
            _ => "",
        };
        Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            format: format.to_owned(),
            description: description.to_owned(),
            priority,
        }
    }
}

/// Makes the cells of one object.
type Cells = Box<dyn Fn(&Value, Timestamp) -> Vec<Value>>;

/// Columns of a kind and the cells of an object, in the same order.
struct Printer {
    columns: Vec<Column>,
    cells: Cells,
}

fn printer(kind: &Kind) -> Printer {
    if kind.crd.is_some() {
        custom::printer(kind)
    } else {
        builtin::printer(kind)
    }
}

/// The table of a list (or of one object). `list_meta` is the `metadata` of the list: resourceVersion, continue,
/// remainingItemCount. `headers` is false for the second and later frames of a watch.
pub fn table<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = &'a Value>,
    list_meta: Value,
    include: IncludeObject,
    headers: bool,
    now: Timestamp,
) -> Value {
    let printer = printer(kind);
    let columns: Vec<Value> = printer
        .columns
        .iter()
        .map(|c| {
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority})
        })
        .collect();
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let mut row = json!({"cells": (printer.cells)(object, now)});
            match include {
                IncludeObject::None => {}
                IncludeObject::Metadata => meta::set(&mut row, &["object"], partial(object)),
                IncludeObject::Object => meta::set(&mut row, &["object"], object.clone()),
            }
            row
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_meta,
        "columnDefinitions": if headers { columns } else { Vec::new() },
        "rows": rows,
    })
}

/// The metadata of an object as an object of its own.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta::at(object, &["metadata"]),
    })
}

/// How long ago, in at most two units: `45s`, `3m20s`, `5d4h`.
pub(crate) fn duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        let rest = seconds % big / small;
        let whole = seconds / big;
        if rest == 0 {
            format!("{whole}{unit}")
        } else {
            format!("{whole}{unit}{rest}{small_unit}")
        }
    };
    match seconds {
        // Clocks of other machines may be a little ahead.
        negative if negative < -1 => "<invalid>".to_owned(),
        s if s < 0 => "0s".to_owned(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(MINUTE, "m", 1, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(HOUR, "h", MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(DAY, "d", HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(YEAR, "y", DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

/// The age that a time at a path means.
pub(crate) fn age(object: &Value, path: &[&str], now: Timestamp) -> String {
    meta::seconds_since(object, path, now).map_or_else(|| "<unknown>".to_owned(), duration)
}

pub(crate) fn or_none(text: &str) -> Value {
    if text.is_empty() {
        "<none>".into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests;
