//! Who may do what: roles, bindings, and the verdict about one act of one user.
//!
//! ```text
//!   user, act ──> a trusted group? ──> a node about itself? ──> a cluster role binding? ──> a role binding of the
//!                    │ yes                │ yes                    │ yes                    act's namespace?  │ yes
//!                    └────────────────────┴────────────────────────┴──────────────────────────────> allowed <─┘
//! ```
//!
//! Everything else is refused with the sentence that Kubernetes uses. Roles of the aggregating kind are not evaluated;
//! validation refuses them ([`crate::schema::validate`]).

mod bootstrap;
mod escalation;
mod node;
mod rule;

pub use bootstrap::{defaults, with_default_rules};
pub use escalation::{check_binding, check_role};
pub use rule::Rule;

use crate::meta::{self, at, items, text};
use crate::status::Status;
use serde_json::Value;
use std::collections::HashMap;

/// The API group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";
/// Members may do everything, whatever roles say: otherwise a lost role could lock everybody out.
pub const MASTERS: &str = "system:masters";
/// Everybody who showed a valid credential.
pub const AUTHENTICATED: &str = "system:authenticated";

const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
const ACCOUNTS_GROUP: &str = "system:serviceaccounts";

/// Somebody who showed a valid credential.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// Empty when the credential has none, as certificates have none.
    pub uid: String,
    pub groups: Vec<String>,
    /// What else the credential says, by key.
    pub extra: Vec<(String, Vec<String>)>,
}

impl User {
    /// A user of a certificate: its groups, and the one of all who are known.
    pub fn authenticated(name: impl Into<String>, groups: Vec<String>) -> Self {
        let mut user = Self {
            name: name.into(),
            groups,
            ..Self::default()
        };
        user.join(AUTHENTICATED);
        user
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let mut user = Self {
            name: format!("{ACCOUNT_PREFIX}{namespace}:{name}"),
            uid: uid.to_owned(),
            ..Self::default()
        };
        user.join(ACCOUNTS_GROUP);
        user.join(&format!("{ACCOUNTS_GROUP}:{namespace}"));
        user.join(AUTHENTICATED);
        user
    }

    /// Namespace and name, when the user is a service account.
    pub fn as_service_account(name: &str) -> Option<(&str, &str)> {
        name.strip_prefix(ACCOUNT_PREFIX)?.split_once(':')
    }

    /// Adds a group unless it is there.
    pub fn join(&mut self, group: &str) {
        if !self.groups.iter().any(|known| known == group) {
            self.groups.push(group.to_owned());
        }
    }

    /// As reviews and signing requests name a user.
    pub fn to_value(&self) -> Value {
        let mut value = serde_json::json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            meta::set(&mut value, &["uid"], self.uid.clone().into());
        }
        for (key, values) in &self.extra {
            meta::set(&mut value, &["extra", key], values.clone().into());
        }
        value
    }
}

/// An act on a resource. Empty texts: no subresource, the cluster or all namespaces, a collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceAct<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act<'a> {
    Resource(ResourceAct<'a>),
    /// A path that is no resource, such as `/apis`; the verb is the method in lower case.
    Path {
        verb: &'a str,
        path: &'a str,
    },
}

impl Act<'_> {
    fn namespace(&self) -> &str {
        match self {
            Self::Resource(act) => act.namespace,
            Self::Path { .. } => "",
        }
    }

    /// The sentence of a refusal.
    fn sentence(&self, user: &User) -> String {
        let user = &user.name;
        match self {
            Self::Path { verb, path } => format!("User {user:?} cannot {verb} path {path:?}"),
            Self::Resource(act) => {
                let resource = full_resource(act.resource, act.subresource);
                let place = if act.namespace.is_empty() {
                    "at the cluster scope".to_owned()
                } else {
                    format!("in the namespace {:?}", act.namespace)
                };
                let (verb, group) = (act.verb, act.group);
                format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {place}")
            }
        }
    }

    /// The refusal as clients know it.
    pub fn refusal(&self, why: &str) -> Status {
        match self {
            Self::Resource(act) => Status::access_denied(act.group, act.resource, act.name, why),
            Self::Path { .. } => Status::access_denied("", "", "", why),
        }
    }
}

/// `pods` or `pods/status`.
fn full_resource(resource: &str, subresource: &str) -> String {
    if subresource.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}/{subresource}")
    }
}

/// One subject of a binding.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
    Account { namespace: String, name: String },
}

impl Subject {
    /// An account without a namespace is one of the binding's own.
    fn parse(subject: &Value, namespace: &str) -> Option<Self> {
        let name = text(subject, &["name"]).to_owned();
        match text(subject, &["kind"]) {
            "User" => Some(Self::User(name)),
            "Group" => Some(Self::Group(name)),
            "ServiceAccount" => {
                let own = text(subject, &["namespace"]);
                let namespace = if own.is_empty() { namespace } else { own }.to_owned();
                (!namespace.is_empty()).then_some(Self::Account { namespace, name })
            }
            _ => None,
        }
    }

    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => *name == user.name,
            Self::Group(group) => user.groups.contains(group),
            Self::Account { namespace, name } => {
                User::as_service_account(&user.name) == Some((namespace.as_str(), name.as_str()))
            }
        }
    }
}

/// Which role, as a binding refers to it. The namespace is empty for a cluster role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleName {
    pub namespace: String,
    pub name: String,
}

impl RoleName {
    /// The role that a binding in that namespace refers to.
    fn of(binding: &Value, namespace: &str) -> Self {
        let reference = at(binding, &["roleRef"]);
        let namespace = if text(reference, &["kind"]) == "Role" {
            namespace
        } else {
            ""
        };
        Self {
            namespace: namespace.to_owned(),
            name: text(reference, &["name"]).to_owned(),
        }
    }

    fn kind(&self) -> &'static str {
        if self.namespace.is_empty() {
            "clusterrole"
        } else {
            "role"
        }
    }
}

#[derive(Clone, Debug)]
struct Binding {
    role: RoleName,
    subjects: Vec<Subject>,
}

impl Binding {
    fn parse(binding: &Value) -> Self {
        let namespace = meta::namespace(binding);
        let subjects = items(binding, &["subjects"]).iter();
        Self {
            role: RoleName::of(binding, namespace),
            subjects: subjects.filter_map(|s| Subject::parse(s, namespace)).collect(),
        }
    }

    fn binds(&self, user: &User) -> bool {
        self.subjects.iter().any(|subject| subject.is(user))
    }
}

/// All roles and bindings, and who is trusted without any.
#[derive(Clone, Debug, Default)]
pub struct Access {
    trusted_groups: Vec<String>,
    roles: HashMap<RoleName, Vec<Rule>>,
    /// By namespace; the bindings of the whole cluster under the empty one.
    bindings: HashMap<String, Vec<Binding>>,
}

impl Access {
    /// Without any role: the trusted groups (and [`MASTERS`]) may do everything, nodes see and report themselves.
    pub fn new(trusted_groups: Vec<String>) -> Self {
        Self {
            trusted_groups,
            ..Self::default()
        }
    }

    /// The same with these roles and bindings, of whatever of the four kinds each is.
    pub fn with<'a>(&self, objects: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut access = Self::new(self.trusted_groups.clone());
        for object in objects {
            let namespace = meta::namespace(object).to_owned();
            match text(object, &["kind"]) {
                "Role" | "ClusterRole" => {
                    let name = meta::name(object).to_owned();
                    let rules = Rule::all(object);
                    access.roles.insert(RoleName { namespace, name }, rules);
                }
                "RoleBinding" | "ClusterRoleBinding" => {
                    let binding = Binding::parse(object);
                    access.bindings.entry(namespace).or_default().push(binding);
                }
                _ => {}
            }
        }
        access
    }

    /// Whether the act is allowed; the error is the sentence for the client.
    pub fn allow(&self, user: &User, act: &Act<'_>) -> Result<(), String> {
        if self.trusts(user) || node::may(user, act) {
            return Ok(());
        }
        let mut missing = Vec::new();
        let mut bindings = self.bindings_of(user, act.namespace());
        let allowed = bindings.any(|binding| match self.roles.get(&binding.role) {
            Some(rules) => rules.iter().any(|rule| rule.allows(act)),
            None => {
                missing.push(not_found(&binding.role));
                false
            }
        });
        if allowed {
            return Ok(());
        }
        let mut sentence = act.sentence(user);
        if !missing.is_empty() {
            sentence.push_str(&format!(": RBAC: {}", list(&missing)));
        }
        Err(sentence)
    }

    /// The rules that apply to the user in a namespace (empty: in the cluster), and what could not be found.
    pub fn rules(&self, user: &User, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let mut rules = Vec::new();
        if self.trusts(user) {
            rules.extend([Rule::everything(), Rule::every_path()]);
        }
        let mut missing = Vec::new();
        for binding in self.bindings_of(user, namespace) {
            match self.roles.get(&binding.role) {
                Some(found) => rules.extend(found.iter().cloned()),
                None => missing.push(not_found(&binding.role)),
            }
        }
        (rules, missing)
    }

    fn trusts(&self, user: &User) -> bool {
        let trusted = |group: &String| group == MASTERS || self.trusted_groups.contains(group);
        user.groups.iter().any(trusted)
    }

    fn bindings_of<'a>(&'a self, user: &'a User, namespace: &str) -> impl Iterator<Item = &'a Binding> {
        let of = |namespace: &str| self.bindings.get(namespace).into_iter().flatten();
        let own = (!namespace.is_empty()).then(|| of(namespace));
        of("")
            .chain(own.into_iter().flatten())
            .filter(|binding| binding.binds(user))
    }
}

fn not_found(role: &RoleName) -> String {
    format!("{}.{GROUP} {:?} not found", role.kind(), role.name)
}

/// One sentence as it is, several in brackets.
fn list(sentences: &[String]) -> String {
    match sentences {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests;
