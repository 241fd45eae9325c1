//! Which ids of the node a pod with users of its own has (`hostUsers: false`).
//!
//! Each such pod has as many ids as a system has users by custom, and no two pods have one in common. What a pod has is
//! written down beside its volumes, as kubelets write it, and nowhere else: it is the pod's as long as its directory
//! stands.

use kedge_containers::{IdMapping, UserNamespace};
use serde_json::Value;

/// The name of the record in a pod's directory.
pub const RECORD: &str = "userns";
/// A record is two mappings.
pub const RECORD_BYTES_MAX: u64 = 4096;

/// Ids of one pod, as kubelets count them: images have users up to 65534.
const LENGTH: u32 = 65536;
/// The ids before are those of the node.
const FIRST: u32 = LENGTH;
/// The last id of all means "none" to the kernel.
const END: u32 = u32::MAX;

/// Why a pod has no ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The record of a pod is not what was written.
    Record { uid: String, why: &'static str },
    /// Two records name the same ids.
    Taken { uid: String, by: String },
    /// No range is free.
    Full,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Record { uid, why } => {
                write!(f, "read which ids pod {uid} has (its file {RECORD}): {why}")
            }
            Self::Taken { uid, by } => write!(f, "ids of pod {uid} are also those of pod {by}"),
            Self::Full => f.write_str("no ids are left for a pod with users of its own (hostUsers: false)"),
        }
    }
}

impl std::error::Error for Trouble {}

/// The ids that pods of this node have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    taken: Vec<Range>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    uid: String,
    ids: UserNamespace,
}

impl Ranges {
    /// Takes down what the record of a pod says.
    pub fn record(&mut self, uid: &str, text: &str) -> Result<(), Trouble> {
        let ids = parse(text).map_err(|why| Trouble::Record {
            uid: uid.to_owned(),
            why,
        })?;
        if let Some(other) = self.taken.iter().find(|other| overlap(&other.ids, &ids)) {
            return Err(Trouble::Taken {
                uid: uid.to_owned(),
                by: other.uid.clone(),
            });
        }
        self.taken.push(Range {
            uid: uid.to_owned(),
            ids,
        });
        Ok(())
    }

    /// What a pod has.
    pub fn of(&self, uid: &str) -> Option<UserNamespace> {
        self.taken
            .iter()
            .find(|range| range.uid == uid)
            .map(|range| range.ids)
    }

    /// Gives a pod the first ids that nobody has; one that has some keeps them.
    pub fn give(&mut self, uid: &str) -> Result<UserNamespace, Trouble> {
        if let Some(ids) = self.of(uid) {
            return Ok(ids);
        }
        let starts = (FIRST..=END - LENGTH).step_by(LENGTH as usize);
        let mut candidates = starts.map(namespace);
        let free = candidates.find(|ids| !self.taken.iter().any(|other| overlap(&other.ids, ids)));
        let ids = free.ok_or(Trouble::Full)?;
        self.taken.push(Range {
            uid: uid.to_owned(),
            ids,
        });
        Ok(ids)
    }
}

/// What is written down of a pod's ids.
pub fn print(ids: &UserNamespace) -> String {
    let list = |ids: &IdMapping| {
        format!(
            r#"[{{"hostId":{},"containerId":{},"length":{}}}]"#,
            ids.host_id, ids.container_id, ids.length
        )
    };
    format!(
        r#"{{"uidMappings":{},"gidMappings":{}}}"#,
        list(&ids.uids),
        list(&ids.gids)
    )
}

fn namespace(first: u32) -> UserNamespace {
    let ids = IdMapping {
        host_id: first,
        container_id: 0,
        length: LENGTH,
    };
    UserNamespace { uids: ids, gids: ids }
}

/// A record that another agent of this node has written counts as well, also with more ids for each pod.
fn parse(text: &str) -> Result<UserNamespace, &'static str> {
    let document: Value = serde_json::from_str(text).map_err(|_| "it is no JSON")?;
    let (uids, gids) = (
        mapping(&document["uidMappings"])?,
        mapping(&document["gidMappings"])?,
    );
    if uids != gids {
        return Err("users and groups differ");
    }
    if uids.container_id != 0 || uids.length < LENGTH {
        return Err("they are not all that a pod needs");
    }
    if uids.host_id < FIRST || uids.host_id.checked_add(uids.length).is_none() {
        return Err("some of them are the node's, or none at all");
    }
    Ok(UserNamespace { uids, gids })
}

fn mapping(list: &Value) -> Result<IdMapping, &'static str> {
    match list.as_array().map(Vec::as_slice) {
        Some([one]) => serde_json::from_value(one.clone()).map_err(|_| "a mapping is not understood"),
        Some(_) | None => Err("there is not one mapping"),
    }
}

fn overlap(one: &UserNamespace, other: &UserNamespace) -> bool {
    // Users and groups are alike.
    let end = |ids: &IdMapping| u64::from(ids.host_id) + u64::from(ids.length);
    let (one, other) = (&one.uids, &other.uids);
    u64::from(one.host_id) < end(other) && u64::from(other.host_id) < end(one)
}
