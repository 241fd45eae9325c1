//! To which of several CloudCores a node's session belongs.
//!
//! A node connects to any replica. The one that it came to last writes its name into an annotation of the Node, and a
//! replica that sees another's name there ends its own session of that node: a report that got stuck in it would
//! overwrite what the node says through the other.

use kedge_placement::report::ApiCall;
use kedge_wire::{Body, NodeName};
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;

/// The name of the replica to which the node connected last.
pub(super) const REPLICA_ANNOTATION: &str = "kedge.io/replica";
/// The address of that replica, as official clouds write it for their routers.
pub(super) const CLOUDCORE_ANNOTATION: &str = "cloudcore";

/// What one session knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ownership {
    /// The Node does not carry our name yet: what stands there is from before this session.
    Claiming,
    Ours,
}

/// What a Node object seen by the watch means for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Unchanged,
    NowOurs,
    /// The node has connected to another replica after this one.
    Lost,
}

impl Ownership {
    /// At the beginning of a session.
    pub(super) fn begin(node: Option<&Body>, replica: &str) -> Self {
        match node.and_then(replica_of).as_deref() == Some(replica) {
            true => Self::Ours,
            false => Self::Claiming,
        }
    }

    pub(super) fn see(self, node: &Body, replica: &str) -> Seen {
        match (self, replica_of(node)) {
            (Self::Claiming, Some(named)) if named == replica => Seen::NowOurs,
            (Self::Ours, Some(named)) if named != replica => Seen::Lost,
            (Self::Claiming | Self::Ours, _) => Seen::Unchanged,
        }
    }
}

/// The call that makes a node ours.
pub(super) fn claim(node: &NodeName, replica: &str, advertise_address: Option<&str>) -> ApiCall {
    let mut annotations = json!({ REPLICA_ANNOTATION: replica });
    if let Some(address) = advertise_address {
        annotations[CLOUDCORE_ANNOTATION] = address.into();
    }
    ApiCall::MergePatch {
        path: format!("/api/v1/nodes/{node}"),
        body: json!({ "metadata": { "annotations": annotations } }).to_string(),
    }
}

fn replica_of(node: &Body) -> Option<String> {
    #[derive(Deserialize)]
    struct Node {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(default)]
        annotations: Option<HashMap<String, String>>,
    }
    let node: Node = node.parse().ok()?;
    node.metadata.annotations?.remove(REPLICA_ANNOTATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(replica: &str) -> Body {
        let annotations = json!({ REPLICA_ANNOTATION: replica });
        Body::from_value(&json!({"metadata": {"name": "edge", "annotations": annotations}})).unwrap()
    }

    #[test]
    fn a_name_from_before_the_session_takes_nothing_away() {
        let (a, b) = (node("a"), node("b"));
        let bare = Body::from_value(&json!({"metadata": {"name": "edge"}})).unwrap();
        assert_eq!(Ownership::begin(Some(&a), "a"), Ownership::Ours);
        assert_eq!(Ownership::begin(None, "a"), Ownership::Claiming);
        let table = [
            (Ownership::Claiming, &b, Seen::Unchanged),
            (Ownership::Claiming, &bare, Seen::Unchanged),
            (Ownership::Claiming, &a, Seen::NowOurs),
            (Ownership::Ours, &a, Seen::Unchanged),
            (Ownership::Ours, &bare, Seen::Unchanged),
            (Ownership::Ours, &b, Seen::Lost),
        ];
        for (ownership, body, seen) in table {
            assert_eq!(ownership.see(body, "a"), seen, "{ownership:?} {body:?}");
        }
    }
}
