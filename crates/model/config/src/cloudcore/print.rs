//! The files of `--defaultconfig` and `--minconfig`.
//!
//! They are documents, not code: what is printed is what a reader of this folder sees, and the same text says which
//! keys exist and of which type their values are.

use super::{CloudCore, CloudFacts};
use serde_json::Value;

const DEFAULT: &str = include_str!("default.yaml");
const OWN: &str = include_str!("own.yaml");
const MINIMAL: &str = include_str!("minimal.yaml");
/// Stands in the documents for the address of this host.
const ADDRESS: &str = "ADVERTISE_ADDRESS";

impl CloudCore {
    /// Every key with its default. Reading it back gives the same configuration as an empty file.
    pub fn default_yaml(facts: &CloudFacts) -> String {
        let head = "# Every key of CloudCore with its default. Keep what you change; the rest is the same when left out.\n";
        format!("{head}{}{OWN}", fill(DEFAULT, facts))
    }

    /// The keys that an installation usually changes. Reading it back gives the defaults, but for 1000 nodes.
    pub fn minimal_yaml(facts: &CloudFacts) -> String {
        let head = "# The keys of CloudCore to begin with; `cloudcore --defaultconfig` shows every key.\n";
        format!("{head}{}", fill(MINIMAL, facts))
    }
}

fn fill(document: &str, facts: &CloudFacts) -> String {
    let quoted = match facts.primary_ip.contains(':') {
        true => format!("{:?}", facts.primary_ip),
        false => facts.primary_ip.clone(),
    };
    document.replace(ADDRESS, &quoted)
}

/// Every key, with a value of its type.
pub(super) fn shape() -> Value {
    let mut documents =
        crate::yaml::parse(&format!("{DEFAULT}{OWN}")).expect("a test reads the documents of this folder");
    documents.pop().unwrap_or(Value::Null)
}
