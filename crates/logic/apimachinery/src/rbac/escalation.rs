//! Nobody grants what they do not hold, unless they were given just that right (`escalate`, `bind`).

use super::rule::not_covered;
use super::{Access, Act, GROUP, ResourceAct, RoleName, Rule, User};
use crate::kinds::Kind;
use crate::meta;
use crate::status::Status;
use serde_json::Value;

/// Most single acts (verb, resource, name) that one role is taken apart into. Wider roles can be written only by those
/// who may do everything.
const ACTS_MAX: usize = 20_000;

/// Whether the user may write this role.
pub fn check_role(access: &Access, user: &User, kind: &Kind, role: &Value) -> Result<(), Status> {
    let act = Act::Resource(ResourceAct {
        verb: "escalate",
        group: GROUP,
        resource: &kind.plural,
        namespace: meta::namespace(role),
        name: meta::name(role),
        ..ResourceAct::default()
    });
    if access.allow(user, &act).is_ok() {
        return Ok(());
    }
    grant(access, user, kind, role, &Rule::all(role), &[])
}

/// Whether the user may write this binding.
pub fn check_binding(access: &Access, user: &User, kind: &Kind, binding: &Value) -> Result<(), Status> {
    let namespace = meta::namespace(binding);
    let role = RoleName::of(binding, namespace);
    let act = Act::Resource(ResourceAct {
        verb: "bind",
        group: GROUP,
        resource: if role.namespace.is_empty() {
            "clusterroles"
        } else {
            "roles"
        },
        namespace,
        name: &role.name,
        ..ResourceAct::default()
    });
    if access.allow(user, &act).is_ok() {
        return Ok(());
    }
    match access.roles.get(&role) {
        Some(rules) => grant(access, user, kind, binding, rules, &[]),
        // What the role will say is not known, so nobody can be said to hold it.
        None => grant(access, user, kind, binding, &[], &[super::not_found(&role)]),
    }
}

fn grant(
    access: &Access,
    user: &User,
    kind: &Kind,
    object: &Value,
    wanted: &[Rule],
    missing: &[String],
) -> Result<(), Status> {
    let (held, _) = access.rules(user, meta::namespace(object));
    let why = match not_covered(&held, wanted, ACTS_MAX) {
        Some(lacking) if lacking.is_empty() && missing.is_empty() => return Ok(()),
        Some(lacking) => {
            let mut lines: Vec<String> = lacking.iter().map(ToString::to_string).collect();
            lines.extend(missing.iter().cloned());
            lines.join("\n")
        }
        None => format!("more than {ACTS_MAX} combinations of verbs, resources and names"),
    };
    let (name, groups) = (&user.name, &user.groups);
    let sentence = format!(
        "user {name:?} (groups={groups:?}) is attempting to grant RBAC permissions not currently held:\n{why}"
    );
    Err(Status::access_denied(
        &kind.group,
        &kind.plural,
        meta::name(object),
        &sentence,
    ))
}
