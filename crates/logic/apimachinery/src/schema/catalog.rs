//! The compact schema of the built-in kinds, read from `data/schema.txt` (its head explains the format).

use std::collections::HashMap;
use std::sync::LazyLock;

const TEXT: &str = include_str!("../../data/schema.txt");

/// The catalog is constant data, so one parsed copy serves the whole process.
static CATALOG: LazyLock<Catalog> = LazyLock::new(|| Catalog::parse(TEXT));

/// What a value may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    Text,
    Bool,
    Int32,
    Int64,
    Number,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    Any,
    List(Box<Shape>),
    Map(Box<Shape>),
    Type(&'static str),
}

/// How a strategic merge patch treats a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Merge {
    /// The new list replaces the old one.
    #[default]
    Replace,
    /// Elements are maps, told apart by this key.
    ByKey(&'static str),
    /// Elements are plain values; the lists are united.
    Set,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: &'static str,
    pub required: bool,
    pub shape: Shape,
    pub merge: Merge,
}

#[derive(Clone, Debug)]
pub struct Type {
    pub name: &'static str,
    /// `io.k8s.api.core.v1`
    pub package: &'static str,
    /// In the order of their names.
    pub fields: Vec<Field>,
}

impl Type {
    pub fn field(&self, name: &str) -> Option<&Field> {
        let place = self.fields.binary_search_by(|field| field.name.cmp(name)).ok()?;
        self.fields.get(place)
    }

    /// `io.k8s.api.core.v1.Pod`
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.package, self.name)
    }
}

#[derive(Debug)]
struct Catalog {
    types: HashMap<&'static str, Type>,
}

impl Catalog {
    fn parse(text: &'static str) -> Self {
        let mut types: HashMap<&'static str, Type> = HashMap::new();
        let (mut package, mut current) = ("", "");
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("# ") {
                package = name;
            } else if let Some(field) = line.strip_prefix(' ') {
                let (name, rest) = field
                    .split_once(' ')
                    .expect("every field line of the catalog has a type");
                let open = types
                    .get_mut(current)
                    .expect("every field of the catalog follows a type");
                open.fields.push(parse_field(name, rest));
            } else if !line.is_empty() && !line.starts_with(';') {
                current = line;
                types.insert(
                    line,
                    Type {
                        name: line,
                        package,
                        fields: Vec::new(),
                    },
                );
            }
        }
        for known in types.values_mut() {
            known.fields.sort_unstable_by_key(|field| field.name);
        }
        Self { types }
    }
}

fn parse_field(name: &'static str, rest: &'static str) -> Field {
    let (shape, merge) = match (rest.split_once('@'), rest.strip_suffix('*')) {
        (Some((shape, key)), _) => (shape, Merge::ByKey(key)),
        (None, Some(shape)) => (shape, Merge::Set),
        (None, None) => (rest, Merge::Replace),
    };
    Field {
        name: name.strip_suffix('!').unwrap_or(name),
        required: name.ends_with('!'),
        shape: parse_shape(shape),
        merge,
    }
}

fn parse_shape(text: &'static str) -> Shape {
    if let Some(inner) = text.strip_prefix('[') {
        return Shape::List(Box::new(parse_shape(inner.strip_suffix(']').unwrap_or(inner))));
    }
    if let Some(inner) = text.strip_prefix('{') {
        return Shape::Map(Box::new(parse_shape(inner.strip_suffix('}').unwrap_or(inner))));
    }
    match text {
        "s" => Shape::Text,
        "b" => Shape::Bool,
        "i" => Shape::Int32,
        "l" => Shape::Int64,
        "n" => Shape::Number,
        "y" => Shape::Bytes,
        "t" => Shape::Time,
        "m" => Shape::MicroTime,
        "q" => Shape::Quantity,
        "x" => Shape::IntOrString,
        "o" => Shape::Any,
        name => Shape::Type(name),
    }
}

/// The type of that name.
pub fn find(name: &str) -> Option<&'static Type> {
    CATALOG.types.get(name)
}

/// The type and all types that it reaches, each once, in the order of first mention.
pub fn closure(roots: &[&'static str]) -> Vec<&'static Type> {
    let mut seen: Vec<&'static Type> = Vec::new();
    let mut todo: Vec<&str> = roots.iter().rev().copied().collect();
    while let Some(name) = todo.pop() {
        let Some(found) = find(name).filter(|t| !seen.iter().any(|s| s.name == t.name)) else {
            continue;
        };
        seen.push(found);
        todo.extend(found.fields.iter().rev().filter_map(|f| innermost(&f.shape)));
    }
    seen
}

fn innermost(shape: &'static Shape) -> Option<&'static str> {
    match shape {
        Shape::Type(name) => Some(name),
        Shape::List(inner) | Shape::Map(inner) => innermost(inner),
        Shape::Text
        | Shape::Bool
        | Shape::Int32
        | Shape::Int64
        | Shape::Number
        | Shape::Bytes
        | Shape::Time
        | Shape::MicroTime
        | Shape::Quantity
        | Shape::IntOrString
        | Shape::Any => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mentioned_type_exists() {
        for known in CATALOG.types.values() {
            for field in &known.fields {
                if let Some(name) = innermost(&field.shape) {
                    assert!(
                        find(name).is_some(),
                        "{}.{} mentions {name}",
                        known.name,
                        field.name
                    );
                }
                if let (Merge::ByKey(key), Shape::List(element)) = (field.merge, &field.shape) {
                    let Shape::Type(element) = **element else {
                        panic!("{}.{}", known.name, field.name)
                    };
                    assert!(
                        find(element).unwrap().field(key).is_some(),
                        "{}.{}",
                        known.name,
                        field.name
                    );
                }
            }
        }
    }

    #[test]
    fn some_facts() {
        let spec = find("PodSpec").unwrap();
        assert_eq!(spec.full_name(), "io.k8s.api.core.v1.PodSpec");
        let containers = spec.field("containers").unwrap();
        assert!(containers.required);
        assert_eq!(containers.merge, Merge::ByKey("name"));
        assert_eq!(
            find("ObjectMeta").unwrap().field("finalizers").unwrap().merge,
            Merge::Set
        );
        assert_eq!(spec.field("tolerations").unwrap().merge, Merge::Replace);
    }
}
