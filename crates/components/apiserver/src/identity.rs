//! Who asks, and what they may.

/// A verified client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: String,
    pub(crate) groups: Vec<String>,
}

/// One act on one resource, in the words of Kubernetes authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Act<'a> {
    pub(crate) verb: &'static str,
    pub(crate) group: &'a str,
    pub(crate) plural: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

const MASTERS: &str = "system:masters";
const NODE_PREFIX: &str = "system:node:";
const NODE_LEASES: &str = "kube-node-lease";

/// Who may do everything.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) trusted_groups: Vec<String>,
}

impl Policy {
    /// Whether the act is allowed; the error is the sentence for the client.
    ///
    /// There are no roles: members of a trusted group may do all, a node may see and report itself, and everybody else
    /// may only look at what the server can do.
    pub(crate) fn allow(&self, who: &Identity, act: &Act<'_>) -> Result<(), String> {
        let trusted = |group: &String| group == MASTERS || self.trusted_groups.contains(group);
        if who.groups.iter().any(trusted) {
            return Ok(());
        }
        if let Some(node) = who.user.strip_prefix(NODE_PREFIX)
            && node_may(node, act)
        {
            return Ok(());
        }
        Err(refusal(who, act))
    }
}

fn node_may(node: &str, act: &Act<'_>) -> bool {
    if act.name != node {
        return false;
    }
    let own_node = act.group.is_empty() && act.plural == "nodes";
    let own_lease =
        act.group == "coordination.k8s.io" && act.plural == "leases" && act.namespace == NODE_LEASES;
    match act.verb {
        "get" => own_node || own_lease,
        "update" | "patch" => own_lease || (own_node && act.subresource == "status"),
        _ => false,
    }
}

fn refusal(who: &Identity, act: &Act<'_>) -> String {
    let resource = if act.subresource.is_empty() {
        act.plural.to_owned()
    } else {
        format!("{}/{}", act.plural, act.subresource)
    };
    let place = if act.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", act.namespace)
    };
    let (user, verb, group) = (&who.user, act.verb, act.group);
    format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(user: &str, group: &str, verb: &'static str, resource: &str, name: &str, allowed: bool) {
        let who = Identity {
            user: user.to_owned(),
            groups: vec![group.to_owned()],
        };
        let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (group, namespace) = match plural {
            "leases" => ("coordination.k8s.io", NODE_LEASES),
            "pods" => ("", "default"),
            _ => ("", ""),
        };
        let act = Act {
            verb,
            group,
            plural,
            subresource,
            namespace,
            name,
        };
        let policy = Policy {
            trusted_groups: vec!["kedge:cloudcore".to_owned()],
        };
        assert_eq!(policy.allow(&who, &act).is_ok(), allowed, "{who:?} {act:?}");
    }

    #[test]
    fn who_may_do_what() {
        check("admin", "system:masters", "delete", "pods", "web", true);
        check("cloudcore", "kedge:cloudcore", "delete", "pods", "web", true);
        check("anna", "people", "get", "pods", "web", false);
        let node = |verb, resource, name, allowed| {
            check(
                "system:node:edge-1",
                "system:nodes",
                verb,
                resource,
                name,
                allowed,
            );
        };
        node("get", "nodes", "edge-1", true);
        node("get", "nodes", "edge-2", false);
        node("list", "nodes", "", false);
        node("patch", "nodes/status", "edge-1", true);
        node("patch", "nodes", "edge-1", false);
        node("update", "leases", "edge-1", true);
        node("get", "pods", "edge-1", false);
    }
}
