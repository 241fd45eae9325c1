//! Custom resources: the columns of `additionalPrinterColumns`.

use super::{Column, Printer, age, duration};
use crate::kinds::Kind;
use crate::meta;
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn printer(kind: &Kind) -> Printer {
    let mut columns = vec![Column::new("Name", "string", 0)];
    let mut paths = Vec::new();
    for column in &kind.printer_columns {
        columns.push(Column {
            name: column.name.clone(),
            kind: column.kind.clone(),
            format: column.format.clone(),
            description: column.description.clone(),
            priority: column.priority,
        });
        paths.push((column.kind.clone(), column.json_path.clone()));
    }
    let with_age = paths.is_empty();
    if with_age {
        columns.push(Column::new("Age", "string", 0));
    }
    let cells = move |object: &Value, now: Timestamp| {
        let mut cells = vec![meta::name(object).into()];
        cells.extend(
            paths
                .iter()
                .map(|(kind, path)| cell(find(object, path), kind, now)),
        );
        if with_age {
            cells.push(age(object, &["metadata", "creationTimestamp"], now).into());
        }
        cells
    };
    Printer {
        columns,
        cells: Box::new(cells),
    }
}

fn cell(value: Option<&Value>, kind: &str, now: Timestamp) -> Value {
    match (value, kind) {
        (None | Some(Value::Null), _) => Value::Null,
        (Some(value), "date") => {
            let moment = value.as_str().and_then(meta::parse_time);
            moment
                .map_or_else(
                    || "<invalid>".to_owned(),
                    |m| duration(now.as_second() - m.as_second()),
                )
                .into()
        }
        (
            Some(value @ (Value::String(_) | Value::Number(_) | Value::Bool(_))),
            "integer" | "number" | "boolean",
        ) => value.clone(),
        (Some(Value::String(text)), _) => text.clone().into(),
        (Some(other), _) => other.to_string().into(),
    }
}

/// Simple JSON paths: `.a.b`, `.a[0]`, `.a['b.c']`, `.a\.b`, `.a[?(@.type=="Ready")].status`.
fn find<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut value = object;
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(tail) = rest.strip_prefix('[') {
            let (inside, tail) = tail.split_once(']')?;
            value = index(value, inside)?;
            rest = tail;
            continue;
        }
        let tail = rest.strip_prefix('.').unwrap_or(rest);
        let (name, tail) = segment(tail);
        value = value.get(&name)?;
        rest = tail;
    }
    Some(value)
}

/// The name up to the next dot or bracket; `\.` is a dot in the name.
fn segment(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut letters = text.char_indices();
    while let Some((place, letter)) = letters.next() {
        match letter {
            '\\' => name.extend(letters.next().map(|(_, l)| l)),
            '.' | '[' => return (name, &text[place..]),
            other => name.push(other),
        }
    }
    (name, "")
}

fn index<'a>(value: &'a Value, inside: &str) -> Option<&'a Value> {
    if let Some(filter) = inside.strip_prefix("?(@.").and_then(|f| f.strip_suffix(')')) {
        let (field, wanted) = filter.split_once("==")?;
        let wanted = wanted.trim().trim_matches(['"', '\'']);
        return value
            .as_array()?
            .iter()
            .find(|v| meta::text(v, &[field.trim()]) == wanted);
    }
    if let Some(name) = inside.strip_prefix('\'').and_then(|n| n.strip_suffix('\'')) {
        return value.get(name);
    }
    value.as_array()?.get(inside.parse::<usize>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let object = json!({"a": {"b": [{"type": "Ready", "status": "True"}, 5], "x.y": 1}});
        assert_eq!(find(&object, ".a.b[1]"), Some(&json!(5)));
        assert_eq!(
            find(&object, ".a.b[?(@.type==\"Ready\")].status"),
            Some(&json!("True"))
        );
        assert_eq!(find(&object, ".a['x.y']"), Some(&json!(1)));
        assert_eq!(find(&object, ".a.x\\.y"), Some(&json!(1)));
        assert_eq!(find(&object, ".a.nothing.c"), None);
    }
}
