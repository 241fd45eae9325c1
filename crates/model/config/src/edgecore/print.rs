//! The files of `--defaultconfig` and `--minconfig`.
//!
//! They are documents, not code: what is printed is what a reader of this folder sees, and the same text says which
//! keys exist and of which type their values are.

use super::{EdgeCore, EdgeFacts};
use crate::reader::overlay;
use serde_json::Value;

const DEFAULT: &str = include_str!("default.yaml");
/// Keys of which the default is not to have them.
const OPTIONAL: &str = include_str!("optional.yaml");
const OWN: &str = include_str!("own.yaml");
const MINIMAL: &str = include_str!("minimal.yaml");
/// Stand in the documents for what this host is called.
const ADDRESS: &str = "LOCAL_ADDRESS";
const HOSTNAME: &str = "HOSTNAME";

impl EdgeCore {
    /// Every key with its default. Reading it back gives the same configuration as an empty file.
    pub fn default_yaml(facts: &EdgeFacts) -> String {
        let head = "# Every key of EdgeCore that has a default. Keep what you change; the rest is the same when left out.\n";
        let more = "# Keys that are not set unless they are written, each with a value of its type:\n";
        let optional: String = OPTIONAL.lines().map(|line| format!("# {line}\n")).collect();
        format!("{head}{}{OWN}{more}{optional}", fill(DEFAULT, facts))
    }

    /// The keys that a node usually changes. Reading it back gives the defaults.
    pub fn minimal_yaml(facts: &EdgeFacts) -> String {
        let head = "# The keys of EdgeCore to begin with; `edgecore --defaultconfig` shows every key.\n";
        format!("{head}{}", fill(MINIMAL, facts))
    }
}

fn fill(document: &str, facts: &EdgeFacts) -> String {
    let address = super::in_url(&facts.primary_ip);
    // A colon in a plain scalar ends it only before a space, but a bracket at its beginning starts a list.
    let quoted = |line: &str| match line.split_once(": ") {
        Some((key, value)) if value.contains(ADDRESS) && address.starts_with('[') => {
            format!("{key}: {:?}\n", value.replace(ADDRESS, &address))
        }
        Some((key, HOSTNAME)) => format!("{key}: {:?}\n", facts.hostname),
        Some(_) | None => format!("{}\n", line.replace(ADDRESS, &address)),
    };
    document.lines().map(quoted).collect()
}

/// Every key, with a value of its type.
pub(super) fn shape(defaults: &Value) -> Value {
    overlay(document(OPTIONAL), defaults.clone())
}

/// Every key that has a default.
pub(super) fn defaults() -> Value {
    document(&format!("{DEFAULT}{OWN}"))
}

fn document(text: &str) -> Value {
    let mut documents = crate::yaml::parse(text).expect("a test reads the documents of this folder");
    documents.pop().unwrap_or(Value::Null)
}
