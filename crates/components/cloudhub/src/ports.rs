//! Who the hub talks to inside the process.

pub use kedge_link::cloud::Answer;
use kedge_telemetry::channel::{ask, keyed};
use kedge_wire::{NodeName, Object, ObjectKey, Request};

/// A node has connected. The answer is everything it must hold; later changes come through `desired` (`None`: nothing
/// under this key any more). When the session ends, the channels close.
#[derive(Debug)]
pub struct Attach {
    pub node: NodeName,
    pub desired: keyed::Sender<ObjectKey, Option<Object>>,
    pub requests: ask::Receiver<Request, Answer>,
}

/// The hub's outlets.
#[derive(Debug, Clone)]
pub struct Ports {
    pub attach: ask::Sender<Attach, Vec<(ObjectKey, Object)>>,
    /// Whether the API knows a node of this name.
    pub node_exists: ask::Sender<NodeName, bool>,
}
