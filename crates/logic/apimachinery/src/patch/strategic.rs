//! Strategic merge patch: a merge patch that knows which lists are merged, and by which key.
//!
//! Directives: `$patch: replace|delete|merge` in a map or a list element, `$retainKeys` in a map,
//! `$deleteFromPrimitiveList/<field>` and `$setElementOrder/<field>` beside a list.

use crate::meta;
use crate::schema::catalog::{self, Field, Merge, Shape};
use serde_json::{Map, Value};

/// A patch that cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("strategic merge patch at {path:?}: {why}")]
    Directive { path: String, why: String },
    #[error("strategic merge patch at {path:?}: an element of the list lacks its merge key {key:?}")]
    MissingKey { path: String, key: String },
}

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

pub(super) fn apply(type_name: &'static str, object: &mut Value, patch: &Value) -> Result<(), Error> {
    let Some(patch) = patch.as_object() else {
        return Err(Error::Directive {
            path: String::new(),
            why: "the patch must be a map".to_owned(),
        });
    };
    merge_map(&Shape::Type(type_name), "", meta::map(object), patch)
}

fn field_of(shape: &Shape, name: &str) -> Option<&'static Field> {
    match shape {
        Shape::Type(type_name) => catalog::find(type_name)?.field(name),
        _ => None,
    }
}

/// The shape of a member of a map: a field's, or that of all values.
fn member_shape(shape: &Shape, name: &str) -> Shape {
    match shape {
        Shape::Map(inner) => (**inner).clone(),
        _ => field_of(shape, name).map_or(Shape::Any, |f| f.shape.clone()),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn merge_map(
    shape: &Shape,
    path: &str,
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), Error> {
    let wrong = |why: String| Error::Directive {
        path: path.to_owned(),
        why,
    };
    match patch.get(PATCH).map(Value::as_str) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => {
            *target = patch
                .iter()
                .filter(|(k, _)| *k != PATCH)
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            return Ok(());
        }
        Some(Some("delete")) => {
            target.clear();
            return Ok(());
        }
        Some(other) => {
            return Err(wrong(format!(
                "{PATCH} must be replace, delete or merge, not {other:?}"
            )));
        }
    }
    if let Some(retained) = patch.get(RETAIN) {
        retain(target, patch, retained).map_err(wrong)?;
    }
    for (name, value) in patch {
        if name == PATCH || name == RETAIN || name.starts_with(ORDER) {
            continue;
        }
        if let Some(field) = name.strip_prefix(DELETE_FROM) {
            let gone = value
                .as_array()
                .ok_or_else(|| wrong(format!("{name} must be a list")))?;
            if let Some(Value::Array(values)) = target.get_mut(field) {
                values.retain(|v| !gone.contains(v));
            }
            continue;
        }
        merge_member(
            shape,
            &join(path, name),
            target,
            name,
            value,
            patch.get(&format!("{ORDER}{name}")),
        )?;
    }
    order_untouched_lists(shape, target, patch);
    Ok(())
}

/// Keeps only the keys of `$retainKeys`, which must cover what the patch sets.
fn retain(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    retained: &Value,
) -> Result<(), String> {
    let retained: Vec<&str> = match retained.as_array() {
        Some(names) => names.iter().filter_map(Value::as_str).collect(),
        None => return Err(format!("{RETAIN} must be a list")),
    };
    if let Some(extra) = patch
        .iter()
        .find(|(k, v)| !k.starts_with('$') && !v.is_null() && !retained.contains(&k.as_str()))
    {
        return Err(format!(
            "{RETAIN} does not name {:?}, which the patch sets",
            extra.0
        ));
    }
    target.retain(|name, _| retained.contains(&name.as_str()));
    Ok(())
}

fn merge_member(
    shape: &Shape,
    path: &str,
    target: &mut Map<String, Value>,
    name: &str,
    value: &Value,
    order: Option<&Value>,
) -> Result<(), Error> {
    match value {
        Value::Null => {
            target.shift_remove(name);
        }
        Value::Object(patch) => {
            let place = target.entry(name).or_insert(Value::Null);
            merge_map(&member_shape(shape, name), path, meta::map(place), patch)?;
        }
        Value::Array(patch) => {
            let merge = field_of(shape, name).map_or(Merge::Replace, |f| f.merge);
            let place = target.entry(name).or_insert(Value::Null);
            match merge {
                Merge::Replace => *place = value.clone(),
                Merge::Set => {
                    let values = meta::list(place);
                    let before = values.clone();
                    values.extend(patch.iter().filter(|v| !before.contains(v)).cloned());
                    if let Some(Value::Array(order)) = order {
                        reorder(values, &before, order, |v| Some(v.clone()));
                    }
                }
                Merge::ByKey(key) => {
                    let element = match member_shape(shape, name) {
                        Shape::List(element) => *element,
                        _ => Shape::Any,
                    };
                    merge_list(&element, path, key, meta::list(place), patch, order)?;
                }
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            target.insert(name.to_owned(), value.clone());
        }
    }
    Ok(())
}

/// `$setElementOrder/<list>` may stand alone when the patch only moves elements.
fn order_untouched_lists(shape: &Shape, target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (name, order) in patch {
        let Some(field) = name.strip_prefix(ORDER) else {
            continue;
        };
        let (Some(order), false) = (order.as_array(), patch.contains_key(field)) else {
            continue;
        };
        let Some(Value::Array(values)) = target.get_mut(field) else {
            continue;
        };
        let before = values.clone();
        match field_of(shape, field).map_or(Merge::Replace, |f| f.merge) {
            Merge::ByKey(key) => reorder(values, &before, order, |v| v.get(key).cloned()),
            Merge::Set => reorder(values, &before, order, |v| Some(v.clone())),
            Merge::Replace => {}
        }
    }
}

fn merge_list(
    element: &Shape,
    path: &str,
    key: &'static str,
    target: &mut Vec<Value>,
    patch: &[Value],
    order: Option<&Value>,
) -> Result<(), Error> {
    let before = target.clone();
    let directive = |v: &Value| v.get(PATCH).and_then(Value::as_str).map(str::to_owned);
    // An element that only says "replace" replaces the whole list by the other elements.
    if patch
        .iter()
        .any(|v| directive(v).as_deref() == Some("replace") && v.get(key).is_none())
    {
        target.clear();
    }
    for item in patch {
        let what = directive(item);
        let Some(id) = item.get(key) else {
            if what.as_deref() == Some("replace") {
                continue;
            }
            return Err(Error::MissingKey {
                path: path.to_owned(),
                key: key.to_owned(),
            });
        };
        let found = target.iter().position(|v| v.get(key) == Some(id));
        if what.as_deref() == Some("delete") {
            target.retain(|v| v.get(key) != Some(id));
            continue;
        }
        let Some(item) = item.as_object() else { continue };
        let place = match found {
            Some(place) => place,
            None => {
                target.push(Value::Null);
                target.len() - 1
            }
        };
        let path = format!(
            "{path}[{}]",
            id.as_str().map_or_else(|| id.to_string(), str::to_owned)
        );
        merge_map(element, &path, meta::map(&mut target[place]), item)?;
    }
    if let Some(Value::Array(order)) = order {
        reorder(target, &before, order, |v| v.get(key).cloned());
    }
    Ok(())
}

/// Brings the elements that `order` names into its order; the others keep their place relative to what stood around
/// them before.
fn reorder(values: &mut Vec<Value>, before: &[Value], order: &[Value], id: impl Fn(&Value) -> Option<Value>) {
    let rank = |v: &Value| {
        let wanted = id(v)?;
        order.iter().position(|o| id(o).as_ref() == Some(&wanted))
    };
    let place = |v: &Value| {
        let wanted = id(v)?;
        before.iter().position(|o| id(o).as_ref() == Some(&wanted))
    };
    let (mut named, others): (Vec<Value>, Vec<Value>) = values.drain(..).partition(|v| rank(v).is_some());
    named.sort_by_key(|v| rank(v));
    let mut others = others.into_iter().peekable();
    for value in named {
        while let (Some(other), Some(here)) = (others.peek().and_then(&place), place(&value)) {
            if other > here {
                break;
            }
            values.extend(others.next());
        }
        values.push(value);
    }
    values.extend(others);
}
