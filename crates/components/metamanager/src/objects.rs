//! What a message of the cloud means for the store: a decision without I/O.

use kedge_store::meta::{Row, Write};
use kedge_wire::{Body, ChangeVerb, ObjectChange, ObjectKey, ObjectKind};
use serde::Deserialize;

/// Identity and version of an object that is held, or about to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Version {
    pub(crate) uid: Option<String>,
    pub(crate) version: Option<String>,
}

impl Version {
    /// Of the object in `body`; empty when it has none.
    pub(crate) fn of(body: &Body) -> Self {
        let Ok(meta) = body.object_meta() else {
            return Self::default();
        };
        Self {
            uid: meta.uid.map(|uid| uid.as_str().to_owned()),
            version: meta.resource_version.map(|version| version.as_str().to_owned()),
        }
    }

    /// Whether `self` is an older state of the same object. Only versions that are numbers can be compared.
    pub(crate) fn is_older_than(&self, other: &Self) -> bool {
        let number = |version: &Self| {
            version
                .version
                .as_ref()
                .and_then(|version| version.parse::<u64>().ok())
        };
        match (number(self), number(other)) {
            (Some(mine), Some(theirs)) => self.uid.is_some() && self.uid == other.uid && mine < theirs,
            _not_comparable => false,
        }
    }
}

/// What to do with a change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Write(Write),
    /// The node holds a newer state of the same object: nothing to do, and an acknowledgement is true.
    Stale,
    Refuse(String),
}

/// Decides what a change does, given what is held under its key.
pub(crate) fn judge(change: &ObjectChange, held: Option<&Version>) -> Verdict {
    let key = change.key.to_string();
    match change.verb {
        ChangeVerb::Insert | ChangeVerb::Update => {
            if let Err(why) = check(&change.key, &change.body) {
                return Verdict::Refuse(format!("store {key}: {why}"));
            }
            if held.is_some_and(|held| Version::of(&change.body).is_older_than(held)) {
                return Verdict::Stale;
            }
            Verdict::Write(Write::Put(row(&change.key, &change.body)))
        }
        ChangeVerb::Delete if change.key.kind == ObjectKind::Pod => {
            // A pod goes by its uid: without it, another one of this name could be meant.
            if let Err(why) = check(&change.key, &change.body) {
                return Verdict::Refuse(format!("remove {key}: {why}"));
            }
            let uid = Version::of(&change.body).uid.filter(|uid| !uid.is_empty());
            Verdict::Write(Write::Delete { key, uid })
        }
        ChangeVerb::Delete => Verdict::Write(Write::Delete { key, uid: None }),
    }
}

/// Whether a body can be the object that its message says it is. What edged makes of the rest is edged's affair.
fn check(key: &ObjectKey, body: &Body) -> Result<(), String> {
    if !body.json().starts_with('{') {
        return Err("the content is not an object".to_owned());
    }
    let meta = body
        .object_meta()
        .map_err(|error| format!("its metadata cannot be read: {error}"))?;
    if key.kind.placed().is_none() {
        return Ok(());
    }
    if !meta.name.is_empty() && meta.name != key.name {
        return Err(format!("the content is an object with the name {:?}", meta.name));
    }
    match (meta.namespace.as_deref(), key.namespace.as_deref()) {
        // Clouds differ in what they name as the namespace of a node.
        (Some(theirs), Some(ours))
            if theirs != ours && !theirs.is_empty() && key.kind != ObjectKind::Node =>
        {
            Err(format!("the content is an object of the namespace {theirs:?}"))
        }
        _same_or_not_told => Ok(()),
    }
}

/// The row of an object.
pub(crate) fn row(key: &ObjectKey, body: &Body) -> Row {
    Row {
        key: key.to_string(),
        kind: key.kind.as_str().to_owned(),
        value: body.json().to_owned(),
    }
}

/// Whether the answer to a query is an object, or the cloud's way of saying that there is none: official clouds
/// answer a missing object with a bare Go error.
pub(crate) fn read_answer(body: &Body) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Shape {
        metadata: Option<serde::de::IgnoredAny>,
        #[serde(rename = "ErrStatus")]
        error: Option<kedge_wire::Status>,
    }
    match body.parse::<Shape>() {
        Ok(Shape {
            metadata: Some(_), ..
        }) => Ok(()),
        Ok(Shape {
            error: Some(status), ..
        }) => Err(status.to_string()),
        Ok(Shape {
            metadata: None,
            error: None,
        }) => Err("the answer is not an object".to_owned()),
        Err(error) => Err(format!("the answer is not an object: {error}")),
    }
}
