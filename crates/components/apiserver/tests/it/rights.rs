//! Who somebody is and what they may, over the wire.

use crate::client::{Client, Running};
use http::Method;
use kedge_apiserver::Limits;
use serde_json::{Value, json};

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1";
const PODS: &str = "/api/v1/namespaces/default/pods";

pub(crate) async fn bind(admin: &Client, name: &str, subject: Value, rules: Value) {
    let role = json!({"metadata": {"name": name}, "rules": rules});
    admin.post(&format!("{ROLES}/clusterroles"), &role).await.ok();
    let binding = json!({"metadata": {"name": name}, "subjects": [subject],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}});
    admin
        .post(&format!("{ROLES}/clusterrolebindings"), &binding)
        .await
        .ok();
}

async fn token(admin: &Client, spec: Value) -> String {
    let path = "/api/v1/namespaces/default/serviceaccounts/web/token";
    let request = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": spec});
    let answer = admin.post(path, &request).await.ok();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

async fn who(client: &Client) -> Value {
    let review = json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    client.post(path, &review).await.ok()["status"]["userInfo"].clone()
}

#[tokio::test]
async fn a_token_is_its_account_until_the_pod_or_the_account_goes() {
    let running = Running::start().await;
    let admin = running.admin();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    admin
        .post(accounts, &json!({"metadata": {"name": "web"}}))
        .await
        .ok();
    let pod = json!({"metadata": {"name": "web-1"}, "spec": {"serviceAccountName": "web",
        "containers": [{"name": "main", "image": "example/web:1"}]}});
    let pod = admin.post(PODS, &pod).await.ok();
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "web-1", "uid": pod["metadata"]["uid"]});
    let of_pod = running.bearer(&token(&admin, json!({"boundObjectRef": bound})).await);
    let of_account = running.bearer(&token(&admin, json!({})).await);
    let elsewhere = token(&admin, json!({"audiences": ["vault"]})).await;

    let user = who(&of_pod).await;
    assert_eq!(user["username"], "system:serviceaccount:default:web");
    assert_eq!(
        user["groups"],
        json!([
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ])
    );
    assert_eq!(
        user["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["web-1"])
    );
    assert_eq!(
        of_account.get(PODS).await.code,
        403,
        "an account has no rights by itself"
    );
    let subject = json!({"kind": "ServiceAccount", "name": "web", "namespace": "default"});
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]);
    bind(&admin, "reader", subject, rules).await;
    assert_eq!(of_account.get(PODS).await.code, 200);
    assert_eq!(
        running.bearer(&elsewhere).get(PODS).await.code,
        401,
        "it is for somebody else"
    );
    assert_eq!(running.bearer("nonsense").get(PODS).await.code, 401);

    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = |audience: &str| json!({"spec": {"token": elsewhere, "audiences": [audience]}});
    let answer = admin.post(reviews, &review("vault")).await.ok();
    assert_eq!(answer["status"]["authenticated"], true);
    assert_eq!(
        answer["status"]["user"]["username"],
        "system:serviceaccount:default:web"
    );
    assert_eq!(answer["status"]["audiences"], json!(["vault"]));
    assert_eq!(
        admin.post(reviews, &review("bank")).await.ok()["status"]["authenticated"],
        false
    );

    admin
        .delete(&format!("{PODS}/web-1?gracePeriodSeconds=0"))
        .await
        .ok();
    assert_eq!(of_pod.get(PODS).await.code, 401, "its pod has gone");
    assert_eq!(of_account.get(PODS).await.code, 200);
    admin.delete(&format!("{accounts}/web")).await.ok();
    admin
        .post(accounts, &json!({"metadata": {"name": "web"}}))
        .await
        .ok();
    assert_eq!(
        of_account.get(PODS).await.code,
        401,
        "the account of that name is another one"
    );
    running.stop().await;
}

#[tokio::test]
async fn may_i() {
    let running = Running::start().await;
    let admin = running.admin();
    let anna = running.client(Some(("anna", "people")));
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get"]},
        {"nonResourceURLs": ["/metrics"], "verbs": ["get"]},
    ]);
    bind(
        &admin,
        "people",
        json!({"kind": "Group", "name": "people"}),
        rules,
    )
    .await;
    let group = "/apis/authorization.k8s.io/v1";
    let ask = async |client: &Client, kind: &str, path: &str, spec: Value| {
        let review = json!({"kind": kind, "apiVersion": "authorization.k8s.io/v1", "spec": spec});
        client.post(&format!("{group}/{path}"), &review).await
    };
    let resource = |verb: &str, resource: &str, sub: &str| json!({"resourceAttributes": {"verb": verb, "resource": resource, "subresource": sub, "namespace": "default"}});
    for (spec, allowed) in [
        (resource("get", "pods", ""), true),
        (resource("get", "pods", "log"), true),
        (resource("delete", "pods", ""), false),
        (
            json!({"nonResourceAttributes": {"verb": "get", "path": "/metrics"}}),
            true,
        ),
        (
            json!({"nonResourceAttributes": {"verb": "get", "path": "/debug"}}),
            false,
        ),
    ] {
        let answer = ask(
            &anna,
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            spec.clone(),
        )
        .await
        .ok();
        assert_eq!(answer["status"], json!({"allowed": allowed}), "{spec}");
    }
    let mut other = resource("get", "pods", "");
    other["user"] = json!("bob");
    other["groups"] = json!(["people"]);
    let path = "subjectaccessreviews";
    assert_eq!(
        ask(&anna, "SubjectAccessReview", path, other.clone()).await.code,
        403
    );
    let answer = ask(&admin, "SubjectAccessReview", path, other.clone()).await.ok();
    assert_eq!(answer["status"]["allowed"], true);
    assert_eq!(
        ask(&admin, "SubjectAccessReview", path, json!({"user": "bob"}))
            .await
            .code,
        400
    );
    let path = "namespaces/default/localsubjectaccessreviews";
    assert_eq!(
        ask(&admin, "LocalSubjectAccessReview", path, other).await.ok()["status"]["allowed"],
        true
    );
    let spec = json!({"namespace": "default"});
    let answer = ask(&anna, "SelfSubjectRulesReview", "selfsubjectrulesreviews", spec)
        .await
        .ok();
    let status = &answer["status"];
    assert_eq!(status["incomplete"], false);
    let pods = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"]});
    assert!(status["resourceRules"].as_array().unwrap().contains(&pods));
    let metrics = json!({"verbs": ["get"], "nonResourceURLs": ["/metrics"]});
    assert!(status["nonResourceRules"].as_array().unwrap().contains(&metrics));
    running.stop().await;
}

#[tokio::test]
async fn rights_come_and_go_with_their_bindings_and_nobody_takes_more() {
    let running = Running::start().await;
    let admin = running.admin();
    let anna = running.client(Some(("anna", "people")));
    let rules = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "clusterrolebindings"],
        "verbs": ["get", "create", "update", "patch", "delete"]}]);
    bind(&admin, "keeper", json!({"kind": "User", "name": "anna"}), rules).await;
    let binding = json!({"metadata": {"name": "mine"}, "subjects": [{"kind": "User", "name": "anna"}],
        "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"}});
    let bindings = format!("{ROLES}/clusterrolebindings");
    let refused = anna.post(&bindings, &binding).await;
    assert_eq!(refused.code, 403);
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("is attempting to grant RBAC permissions not currently held"),
        "{message}"
    );
    let wider = json!({"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]});
    let patched = anna
        .patch(
            &format!("{ROLES}/clusterroles/keeper"),
            "merge-patch+json",
            &wider,
        )
        .await;
    assert_eq!(patched.code, 403);
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    let patched = anna
        .patch(
            &format!("{ROLES}/clusterroles/cluster-admin"),
            "merge-patch+json",
            &labels,
        )
        .await;
    assert_eq!(patched.code, 200, "what a role gives is not changed");
    let changed =
        json!({"roleRef": {"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"}});
    let patched = admin
        .patch(&format!("{bindings}/keeper"), "merge-patch+json", &changed)
        .await;
    assert_eq!(patched.code, 422);
    assert_eq!(anna.delete(&format!("{bindings}/keeper")).await.code, 200);
    assert_eq!(anna.delete(&format!("{bindings}/keeper")).await.code, 403);
    running.stop().await;
}

#[tokio::test]
async fn an_admin_may_be_taken_for_somebody_else() {
    let running = Running::start().await;
    let admin = running.admin();
    let as_anna = [("impersonate-user", "anna"), ("impersonate-group", "people")];
    let answer = admin.send(Method::GET, PODS, &as_anna, bytes::Bytes::new()).await;
    assert_eq!(
        (answer.code, answer.json()["message"].as_str().unwrap()),
        (
            403,
            r#"pods is forbidden: User "anna" cannot list resource "pods" in API group "" in the namespace "default""#
        )
    );
    let anna = running.client(Some(("anna", "people")));
    let as_admin = [
        ("impersonate-user", "admin"),
        ("impersonate-group", "system:masters"),
    ];
    let answer = anna.send(Method::GET, PODS, &as_admin, bytes::Bytes::new()).await;
    assert_eq!(
        (answer.code, answer.json()["message"].as_str().unwrap()),
        (
            403,
            r#"users "admin" is forbidden: User "anna" cannot impersonate resource "users" in API group "" at the cluster scope"#
        )
    );
    running.stop().await;
}

#[tokio::test]
async fn roles_are_validated_and_default_ones_are_there() {
    let running = Running::start().await;
    let admin = running.admin();
    let post = async |plural: &str, object: Value| admin.post(&format!("{ROLES}/{plural}"), &object).await;
    let gathered =
        json!({"metadata": {"name": "all"}, "aggregationRule": {"clusterRoleSelectors": [{}]}, "rules": []});
    let cases = [
        ("clusterroles", gathered),
        (
            "clusterroles",
            json!({"metadata": {"name": "a"}, "rules": [{"apiGroups": [""], "resources": ["pods"]}]}),
        ),
        (
            "clusterroles",
            json!({"metadata": {"name": "a"}, "rules": [{"verbs": ["get"], "resources": ["pods"]}]}),
        ),
        (
            "namespaces/default/roles",
            json!({"metadata": {"name": "a"}, "rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
        ),
        (
            "clusterrolebindings",
            json!({"metadata": {"name": "a"}, "roleRef": {"kind": "Role", "name": "x"}}),
        ),
        (
            "clusterrolebindings",
            json!({"metadata": {"name": "a"}, "roleRef": {"kind": "ClusterRole", "name": "x"},
            "subjects": [{"kind": "ServiceAccount", "name": "x"}]}),
        ),
    ];
    for (plural, object) in cases {
        assert_eq!(post(plural, object.clone()).await.code, 422, "{object}");
    }
    let names = admin.get(&format!("{ROLES}/clusterroles")).await.ok();
    let names: Vec<&str> = names["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|r| r["metadata"]["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "admin",
            "cluster-admin",
            "edit",
            "system:basic-user",
            "system:discovery",
            "system:public-info-viewer",
            "view"
        ]
    );
    let syncs = admin.get("/apis/reliablesyncs.kubeedge.io/v1alpha1").await.ok();
    let names: Vec<&str> = syncs["resources"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|r| r["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "clusterobjectsyncs",
            "clusterobjectsyncs/status",
            "objectsyncs",
            "objectsyncs/status"
        ]
    );
    running.stop().await;
}

#[tokio::test]
async fn too_much_at_once_is_put_off_and_a_late_watcher_reads_again() {
    let running = Running::with_limits(Limits {
        in_flight: 0,
        waiting: 0,
        ..Limits::default()
    })
    .await;
    let refused = running.admin().get(PODS).await;
    assert_eq!(
        (refused.code, &refused.headers["retry-after"]),
        (429, &"1".parse().unwrap())
    );
    assert_eq!(refused.json()["details"]["retryAfterSeconds"], 1);
    assert_eq!(running.admin().get("/healthz").await.code, 200);
    running.stop().await;

    let running = Running::with_limits(Limits {
        window_changes: 3,
        ..Limits::default()
    })
    .await;
    let admin = running.admin();
    let path = "/apis/storage.k8s.io/v1/storageclasses";
    let class = json!({"metadata": {"name": "fast"}, "provisioner": "example.com/fast"});
    let made = admin.post(path, &class).await.ok();
    for n in 0..4 {
        let labels = json!({"metadata": {"labels": {"n": n.to_string()}}});
        admin
            .patch(&format!("{path}/fast"), "merge-patch+json", &labels)
            .await
            .ok();
    }
    let version = made["metadata"]["resourceVersion"].as_str().unwrap();
    let gone = admin
        .get(&format!("{path}?watch=1&resourceVersion={version}"))
        .await;
    assert_eq!(
        (gone.code, gone.json()["reason"].clone()),
        (410, json!("Expired"))
    );
    running.stop().await;
}
