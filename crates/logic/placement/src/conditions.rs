//! What the conditions of a status say, without when and why.
//!
//! They are the one part of a status that others than the edge write: the node controller calls a silent node and its
//! pods not ready, and the edge must learn it to say that it is not so. What the edge says itself need not be told to it.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::hash::{DefaultHasher, Hash, Hasher};

/// By type, in order. Types and what they say are kept as hashes: they are only compared, and there are some for each pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions(Box<[(u32, u32)]>);

#[derive(Deserialize)]
struct Status {
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(default, rename = "type")]
    kind: String,
    /// A patch that only looked again leaves it out.
    status: Option<String>,
}

impl Conditions {
    /// From the status of an object or of a patch; one that has none, or is none, says nothing.
    pub(crate) fn of(status: Option<&RawValue>) -> Self {
        let status = status.and_then(|status| serde_json::from_str::<Status>(status.get()).ok());
        let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
        let said = conditions.iter().filter_map(|condition| {
            let status = condition.status.as_deref()?;
            Some((hash(&condition.kind), hash(status)))
        });
        let mut all: Vec<(u32, u32)> = said.collect();
        all.sort_unstable();
        all.dedup_by_key(|(kind, _)| *kind);
        Self(all.into())
    }

    /// Says what `later` says, and the rest as before.
    pub(crate) fn merge(&mut self, later: &Self) {
        let kept = self
            .0
            .iter()
            .filter(|(kind, _)| !later.0.iter().any(|(said, _)| said == kind));
        let mut all: Vec<(u32, u32)> = kept.chain(&later.0).copied().collect();
        all.sort_unstable();
        self.0 = all.into();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn hash(text: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    // Either half is as good as the other.
    u32::try_from(hasher.finish() >> 32).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Conditions {
        Conditions::of(Some(serde_json::from_str(json).unwrap()))
    }

    #[test]
    fn only_what_they_say_counts() {
        let ready = of(
            r#"{"conditions":[{"type":"Ready","status":"True","reason":"a"},{"type":"B","status":"False"}]}"#,
        );
        let again = of(
            r#"{"conditions":[{"type":"B","status":"False"},{"type":"Ready","status":"True","lastProbeTime":"x"}]}"#,
        );
        assert_eq!(ready, again);
        let mut merged = ready.clone();
        merged.merge(&of(
            r#"{"conditions":[{"type":"Ready","status":"False"},{"type":"B","lastHeartbeatTime":"x"}]}"#,
        ));
        assert_ne!(merged, ready);
        merged.merge(&of(r#"{"conditions":[{"type":"Ready","status":"True"}]}"#));
        assert_eq!(merged, ready);
        for nothing in ["7", "{}", r#"{"conditions":null}"#, r#"{"conditions":7}"#] {
            assert!(of(nothing).is_empty(), "{nothing}");
        }
    }
}
