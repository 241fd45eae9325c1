//! The index.

use kedge_wire::{Body, NodeName, Object, ObjectKey};

/// One change of one node's desired set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub node: NodeName,
    pub key: ObjectKey,
    /// `None`: the node must not hold the key any more.
    pub object: Option<Object>,
}

/// What a watch saw, as original JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Applied(Body),
    Deleted(Body),
}

/// The index of everything that edges may hold.
#[derive(Debug, Default)]
pub struct Placement {}

impl Placement {
    pub fn new() -> Self {
        todo!()
    }
    /// A pod was applied or deleted. Returns the changes for nodes, in the order they must be told.
    pub fn handle_pod(&mut self, _seen: Seen) -> Result<Vec<Change>, BadObject> {
        todo!()
    }
    pub fn handle_config_map(&mut self, _seen: Seen) -> Result<Vec<Change>, BadObject> {
        todo!()
    }
    pub fn handle_secret(&mut self, _seen: Seen) -> Result<Vec<Change>, BadObject> {
        todo!()
    }
    /// Only nodes with the label `node-role.kubernetes.io/edge` are sent to themselves.
    pub fn handle_node(&mut self, _seen: Seen) -> Result<Vec<Change>, BadObject> {
        todo!()
    }
    /// Everything that `node` must hold now.
    pub fn desired(&self, _node: &NodeName) -> Vec<(ObjectKey, Object)> {
        todo!()
    }
    /// Whether a pod on `node` uses this config map or secret (or the key is a pod of the node): node authorization.
    pub fn may_read(&self, _node: &NodeName, _key: &ObjectKey) -> bool {
        todo!()
    }
}

/// An object that a watch should never have sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} from the watch cannot be used: {reason}")]
pub struct BadObject {
    pub kind: &'static str,
    pub reason: String,
}
