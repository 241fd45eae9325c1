use super::*;
use crate::kinds::Registry;
use expect_test::{Expect, expect};
use serde_json::json;

fn user(name: &str, groups: &[&str]) -> User {
    User::authenticated(name, groups.iter().map(|g| (*g).to_owned()).collect())
}

fn role(kind: &str, namespace: &str, name: &str, rules: Value) -> Value {
    json!({"kind": kind, "metadata": {"name": name, "namespace": namespace}, "rules": rules})
}

fn binding(namespace: &str, subject: Value, role_kind: &str, role: &str) -> Value {
    let kind = if namespace.is_empty() {
        "ClusterRoleBinding"
    } else {
        "RoleBinding"
    };
    json!({"kind": kind, "metadata": {"name": "b", "namespace": namespace}, "subjects": [subject],
        "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role}})
}

/// `verb group/resource[/sub] [in namespace] [named name]` or `verb path /x`.
fn act(text: &str) -> Act<'_> {
    let words: Vec<&str> = text.split(' ').collect();
    if words[1] == "path" {
        return Act::Path {
            verb: words[0],
            path: words[2],
        };
    }
    let after = |word: &str| {
        let place = words.iter().position(|w| *w == word);
        place.map_or("", |place| words[place + 1])
    };
    let (group, full) = words[1].split_once('/').unwrap();
    let (resource, subresource) = full.split_once('/').unwrap_or((full, ""));
    Act::Resource(ResourceAct {
        verb: words[0],
        group,
        resource,
        subresource,
        namespace: after("in"),
        name: after("named"),
    })
}

fn check(access: &Access, user: &User, acts: &[&str], expected: Expect) {
    let lines: Vec<String> = acts
        .iter()
        .map(|text| match access.allow(user, &act(text)) {
            Ok(()) => format!("yes {text}"),
            Err(_) => format!("no  {text}"),
        })
        .collect();
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn what_a_rule_allows() {
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["tokensecret"], "verbs": ["get", "update"]},
        {"apiGroups": ["apps"], "resources": ["*/scale"], "verbs": ["*"]},
        {"apiGroups": ["*"], "resources": ["leases"], "verbs": ["get"]},
        {"apiGroups": ["x.io"], "resources": ["*"], "verbs": ["delete"]},
        {"nonResourceURLs": ["/metrics", "/debug/*"], "verbs": ["get"]},
    ]);
    let subject = json!({"kind": "User", "name": "anna"});
    let access = Access::new(Vec::new()).with(&[
        role("ClusterRole", "", "r", rules),
        binding("", subject, "ClusterRole", "r"),
    ]);
    check(
        &access,
        &user("anna", &[]),
        &[
            "get /pods in a named web",
            "list /pods",
            "watch /pods",
            "patch /pods/status in a named web",
            "patch /pods in a named web",
            "get /pods/status in a named web",
            "get /secrets in k named tokensecret",
            "get /secrets in k named other",
            "list /secrets in k",
            "create /secrets in k",
            "update apps/deployments/scale in a named web",
            "update apps/deployments in a named web",
            "get coordination.k8s.io/leases in a named l",
            "get other.io/leases",
            "delete x.io/things/status",
            "delete y.io/things",
            "get path /metrics",
            "get path /metrics/x",
            "get path /debug/pprof",
            "post path /debug/pprof",
        ],
        expect![[r#"
            yes get /pods in a named web
            yes list /pods
            no  watch /pods
            yes patch /pods/status in a named web
            no  patch /pods in a named web
            no  get /pods/status in a named web
            yes get /secrets in k named tokensecret
            no  get /secrets in k named other
            no  list /secrets in k
            no  create /secrets in k
            yes update apps/deployments/scale in a named web
            no  update apps/deployments in a named web
            yes get coordination.k8s.io/leases in a named l
            yes get other.io/leases
            yes delete x.io/things/status
            no  delete y.io/things
            yes get path /metrics
            no  get path /metrics/x
            yes get path /debug/pprof
            no  post path /debug/pprof"#]],
    );
}

#[test]
fn whom_a_binding_binds_and_where() {
    let read = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    let objects = [
        role("ClusterRole", "", "reader", read.clone()),
        role("Role", "a", "local", read),
        binding(
            "",
            json!({"kind": "Group", "name": "readers"}),
            "ClusterRole",
            "reader",
        ),
        binding(
            "a",
            json!({"kind": "ServiceAccount", "name": "web"}),
            "Role",
            "local",
        ),
        binding(
            "b",
            json!({"kind": "ServiceAccount", "name": "web", "namespace": "a"}),
            "ClusterRole",
            "reader",
        ),
        // A role of the same name lives in another namespace only.
        binding("c", json!({"kind": "User", "name": "anna"}), "Role", "local"),
    ];
    let access = Access::new(vec!["trusted".to_owned()]).with(&objects);
    let acts = [
        "get /pods in a named p",
        "get /pods in b named p",
        "get /pods in c named p",
        "get /nodes named n",
    ];
    let everybody = [
        user("anna", &["readers"]),
        User::service_account("a", "web", "u"),
        User::service_account("b", "web", "u"),
        user("anna", &[]),
        user("root", &[MASTERS]),
        user("cloud", &["trusted"]),
    ];
    let lines: Vec<String> = everybody
        .iter()
        .map(|user| {
            let answers = acts.map(|text| {
                if access.allow(user, &act(text)).is_ok() {
                    "yes"
                } else {
                    "no"
                }
            });
            format!("{} {:?}: {}", user.name, user.groups, answers.join(" "))
        })
        .collect();
    expect![[r#"
        anna ["readers", "system:authenticated"]: yes yes yes no
        system:serviceaccount:a:web ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]: yes yes no no
        system:serviceaccount:b:web ["system:serviceaccounts", "system:serviceaccounts:b", "system:authenticated"]: no no no no
        anna ["system:authenticated"]: no no no no
        root ["system:masters", "system:authenticated"]: yes yes yes yes
        cloud ["trusted", "system:authenticated"]: yes yes yes yes"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn nodes_see_and_report_themselves() {
    let access = Access::default();
    let node = user("system:node:edge-1", &["system:nodes"]);
    check(
        &access,
        &node,
        &[
            "get /nodes named edge-1",
            "get /nodes named edge-2",
            "list /nodes",
            "patch /nodes/status named edge-1",
            "patch /nodes named edge-1",
            "update coordination.k8s.io/leases in kube-node-lease named edge-1",
            "update coordination.k8s.io/leases in default named edge-1",
            "get /pods in default named edge-1",
        ],
        expect![[r#"
            yes get /nodes named edge-1
            no  get /nodes named edge-2
            no  list /nodes
            yes patch /nodes/status named edge-1
            no  patch /nodes named edge-1
            yes update coordination.k8s.io/leases in kube-node-lease named edge-1
            no  update coordination.k8s.io/leases in default named edge-1
            no  get /pods in default named edge-1"#]],
    );
    let liar = user("system:node:edge-1", &[]);
    assert!(access.allow(&liar, &act("get /nodes named edge-1")).is_err());
}

#[test]
fn refusals_are_worded_as_in_kubernetes() {
    let gone = binding("", json!({"kind": "User", "name": "anna"}), "ClusterRole", "gone");
    let access = Access::default().with(&[gone]);
    let refusal = |name: &str, text: &str| {
        let act = act(text);
        let why = access.allow(&user(name, &[]), &act).unwrap_err();
        act.refusal(&why).to_value().to_string()
    };
    let all = [
        refusal("bob", "list /pods in default"),
        refusal("bob", "patch apps/deployments/status named web"),
        refusal("bob", "get path /metrics"),
        refusal("anna", "list /pods"),
    ];
    expect![[r#"
        {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"","reason":"Forbidden","details":{"kind":"pods"},"code":403}
        {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"deployments.apps \"web\" is forbidden: User \"bob\" cannot patch resource \"deployments/status\" in API group \"apps\" at the cluster scope","reason":"Forbidden","details":{"name":"web","group":"apps","kind":"deployments"},"code":403}
        {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"forbidden: User \"bob\" cannot get path \"/metrics\"","reason":"Forbidden","details":{},"code":403}
        {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods is forbidden: User \"anna\" cannot list resource \"pods\" in API group \"\" at the cluster scope: RBAC: clusterrole.rbac.authorization.k8s.io \"gone\" not found","reason":"Forbidden","details":{"kind":"pods"},"code":403}"#]]
    .assert_eq(&all.join("\n"));
}

#[test]
fn nobody_grants_what_they_do_not_hold() {
    let registry = Registry::builtin();
    let kind = |plural| registry.lookup(GROUP, "v1", plural).unwrap();
    let held = json!([
        {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
        {"apiGroups": [GROUP], "resources": ["roles"], "verbs": ["create"]},
        {"apiGroups": [GROUP], "resources": ["clusterroles"], "resourceNames": ["free"], "verbs": ["bind"]},
    ]);
    let access = Access::default().with(&[
        role("ClusterRole", "", "held", held),
        role(
            "ClusterRole",
            "",
            "all",
            json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]),
        ),
        binding("", json!({"kind": "User", "name": "anna"}), "ClusterRole", "held"),
        binding("", json!({"kind": "User", "name": "root"}), "ClusterRole", "all"),
    ]);
    let write = |who: &str, groups: &[&str], verbs: &[&str], names: &[&str]| {
        let rules =
            json!([{"apiGroups": groups, "resources": ["pods"], "verbs": verbs, "resourceNames": names}]);
        check_role(
            &access,
            &user(who, &[]),
            &kind("roles"),
            &role("Role", "a", "r", rules),
        )
    };
    assert_eq!(write("anna", &[""], &["get"], &[]), Ok(()));
    assert_eq!(write("anna", &[""], &["list", "get"], &["web"]), Ok(()));
    assert_eq!(write("root", &["*"], &["*"], &[]), Ok(()));
    let wide: Vec<String> = (0..30_000).map(|n| n.to_string()).collect();
    let wide: Vec<&str> = wide.iter().map(String::as_str).collect();
    assert_eq!(write("root", &[""], &wide, &[]), Ok(()));
    assert!(write("anna", &[""], &wide, &[]).is_err());
    expect![[r#"
        roles.rbac.authorization.k8s.io "r" is forbidden: user "anna" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held:
        {APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#]]
    .assert_eq(&write("anna", &[""], &["get", "delete"], &[]).unwrap_err().message);
    let bind = |who: &str, name: &str| {
        let binding = binding("a", json!({"kind": "User", "name": "bob"}), "ClusterRole", name);
        check_binding(&access, &user(who, &[]), &kind("rolebindings"), &binding)
    };
    assert_eq!(
        bind("anna", "free"),
        Ok(()),
        "the right to bind stands for the rights themselves"
    );
    assert!(bind("anna", "held").is_ok());
    assert!(bind("anna", "all").is_err());
    assert!(bind("anna", "unknown").is_err());
    assert_eq!(bind("root", "all"), Ok(()));
}

#[test]
fn default_roles_work_and_are_completed() {
    let defaults = defaults();
    let access = Access::default().with(&defaults);
    let anna = user("anna", &[]);
    for text in [
        "get path /apis/apps",
        "get path /openapi/v2",
        "create authorization.k8s.io/selfsubjectaccessreviews",
    ] {
        assert!(access.allow(&anna, &act(text)).is_ok(), "{text}");
    }
    assert!(access.allow(&anna, &act("get /pods in a named p")).is_err());
    let view = defaults.iter().find(|r| meta::name(r) == "view").unwrap();
    assert_eq!(with_default_rules(view, view), None);
    let mut poor = view.clone();
    meta::set(
        &mut poor,
        &["rules"],
        json!([{"apiGroups": ["x"], "resources": ["y"], "verbs": ["get"]}]),
    );
    let completed = with_default_rules(&poor, view).unwrap();
    assert_eq!(items(&completed, &["rules"]).len(), 3);
    meta::set(
        &mut poor,
        &["metadata", "annotations"],
        json!({"rbac.authorization.kubernetes.io/autoupdate": "false"}),
    );
    assert_eq!(with_default_rules(&poor, view), None);
}
