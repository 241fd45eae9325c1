//! What a node may do with its own credential: see and report itself.

use super::{Act, User};

const USER_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";
const LEASES: &str = "kube-node-lease";

pub(super) fn may(user: &User, act: &Act<'_>) -> bool {
    let (Some(node), Act::Resource(act)) = (user.name.strip_prefix(USER_PREFIX), act) else {
        return false;
    };
    if act.name != node || !user.groups.iter().any(|group| group == NODES) {
        return false;
    }
    let own_node = act.group.is_empty() && act.resource == "nodes";
    let own_lease = act.group == "coordination.k8s.io" && act.resource == "leases" && act.namespace == LEASES;
    match act.verb {
        "get" => own_node || own_lease,
        "update" | "patch" => own_lease || (own_node && act.subresource == "status"),
        _ => false,
    }
}
