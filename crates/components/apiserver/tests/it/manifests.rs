//! The files of `manifests/`: what they allow, and that they say what we say.

use crate::client::{Client, Running};
use bytes::Bytes;
use expect_test::{Expect, expect};
use http::Method;
use kedge_apimachinery::kubeedge;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../manifests")
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .collect()
}

/// Where objects of the kinds in the manifest are posted.
fn collection(object: &Value) -> String {
    let namespace = object["metadata"]["namespace"].as_str();
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    match (object["kind"].as_str().unwrap(), namespace) {
        ("Namespace", _) => "/api/v1/namespaces".to_owned(),
        ("ServiceAccount", Some(namespace)) => format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
        ("ClusterRole", _) => format!("{roles}/clusterroles"),
        ("ClusterRoleBinding", _) => format!("{roles}/clusterrolebindings"),
        ("Role", Some(namespace)) => format!("{roles}/namespaces/{namespace}/roles"),
        ("RoleBinding", Some(namespace)) => format!("{roles}/namespaces/{namespace}/rolebindings"),
        (kind, _) => panic!("a {kind} has no place here"),
    }
}

async fn token(admin: &Client, namespace: &str, account: &str) -> String {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let request = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}});
    let answer = admin.post(&path, &request).await.ok();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

async fn check(client: &Client, calls: &[&str], expected: Expect) {
    let mut lines = Vec::new();
    for call in calls {
        let (method, path) = call.split_once(' ').unwrap();
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let headers: &[(&str, &str)] = match method {
            Method::PATCH => &[("content-type", "application/merge-patch+json")],
            _ => &[],
        };
        let body = Bytes::from(json!({"metadata": {"name": "x"}}).to_string());
        let body = if method == Method::GET { Bytes::new() } else { body };
        let answer = client.send(method, path, headers, body).await;
        assert_ne!(answer.code, 401, "{call}");
        lines.push(format!(
            "{} {call}",
            if answer.code == 403 { "no " } else { "yes" }
        ));
    }
    expected.assert_eq(&lines.join("\n"));
}

#[tokio::test]
async fn cloudcore_may_do_what_it_does_and_nothing_else() {
    let running = Running::start().await;
    let admin = running.admin();
    let text = std::fs::read_to_string(manifests().join("cloudcore-rbac.yaml")).unwrap();
    for object in documents(&text) {
        admin.post(&collection(&object), &object).await.ok();
    }
    let cloudcore = running.bearer(&token(&admin, "kubeedge", "cloudcore").await);
    allowed(&cloudcore).await;
    forbidden(&cloudcore).await;
    let neighbour = running.bearer(&token(&admin, "kubeedge", "default").await);
    check(
        &neighbour,
        &[
            "GET /api/v1/nodes",
            "GET /api/v1/namespaces/kubeedge/secrets/casecret",
            "GET /apis",
        ],
        expect![[r#"
            no  GET /api/v1/nodes
            no  GET /api/v1/namespaces/kubeedge/secrets/casecret
            yes GET /apis"#]],
    )
    .await;
    running.stop().await;
}

async fn allowed(cloudcore: &Client) {
    check(
        cloudcore,
        &[
            "GET /api/v1/nodes",
            "GET /api/v1/pods?limit=500",
            "GET /api/v1/configmaps",
            "GET /api/v1/secrets",
            "GET /api/v1/nodes/edge-1",
            "POST /api/v1/nodes",
            "PATCH /api/v1/nodes/x",
            "PATCH /api/v1/nodes/x/status",
            "GET /api/v1/namespaces/default/pods/web",
            "PATCH /api/v1/namespaces/default/pods/web/status",
            "DELETE /api/v1/namespaces/default/pods/web",
            "POST /api/v1/namespaces/default/serviceaccounts/default/token",
            "POST /api/v1/namespaces/default/events",
            "PUT /api/v1/namespaces/default/events/x",
            "PATCH /api/v1/namespaces/default/events/x",
            "GET /api/v1/persistentvolumes/x",
            "GET /api/v1/namespaces/default/persistentvolumeclaims/x",
            "GET /apis/storage.k8s.io/v1/volumeattachments/x",
            "GET /apis/storage.k8s.io/v1/csidrivers/x",
            "GET /apis/storage.k8s.io/v1/csinodes/x",
            "POST /apis/storage.k8s.io/v1/csinodes",
            "PATCH /apis/storage.k8s.io/v1/csinodes/x",
            "GET /apis/node.k8s.io/v1/runtimeclasses/x",
            "GET /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/x",
            "POST /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
            "PATCH /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/x",
            "PUT /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/x",
            "GET /apis/coordination.k8s.io/v1/namespaces/kubeedge/leases/x",
            "POST /apis/coordination.k8s.io/v1/namespaces/kubeedge/leases",
            "PUT /apis/coordination.k8s.io/v1/namespaces/kubeedge/leases/x",
            "GET /api/v1/namespaces/kubeedge",
            "GET /api/v1/namespaces/kubeedge/secrets/casecret",
            "GET /api/v1/namespaces/kubeedge/secrets?labelSelector=a%3Db&limit=10",
            "POST /api/v1/namespaces/kubeedge/secrets",
            "PUT /api/v1/namespaces/kubeedge/secrets/x",
            "DELETE /api/v1/namespaces/kubeedge/secrets/x",
            "GET /apis/reliablesyncs.kubeedge.io/v1alpha1/objectsyncs?limit=1",
            "POST /apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs",
            "PATCH /apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs/x/status",
            "DELETE /apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs/x",
            "GET /apis/reliablesyncs.kubeedge.io/v1alpha1/clusterobjectsyncs",
            "PATCH /apis/reliablesyncs.kubeedge.io/v1alpha1/clusterobjectsyncs/x/status",
            "GET /apis/certificates.k8s.io/v1/certificatesigningrequests",
            "POST /apis/certificates.k8s.io/v1/certificatesigningrequests",
            "PUT /apis/certificates.k8s.io/v1/certificatesigningrequests/x/approval",
            "POST /apis/authentication.k8s.io/v1/selfsubjectreviews",
            "GET /version",
            "GET /apis",
        ],
        expect![[r#"
            yes GET /api/v1/nodes
            yes GET /api/v1/pods?limit=500
            yes GET /api/v1/configmaps
            yes GET /api/v1/secrets
            yes GET /api/v1/nodes/edge-1
            yes POST /api/v1/nodes
            yes PATCH /api/v1/nodes/x
            yes PATCH /api/v1/nodes/x/status
            yes GET /api/v1/namespaces/default/pods/web
            yes PATCH /api/v1/namespaces/default/pods/web/status
            yes DELETE /api/v1/namespaces/default/pods/web
            yes POST /api/v1/namespaces/default/serviceaccounts/default/token
            yes POST /api/v1/namespaces/default/events
            yes PUT /api/v1/namespaces/default/events/x
            yes PATCH /api/v1/namespaces/default/events/x
            yes GET /api/v1/persistentvolumes/x
            yes GET /api/v1/namespaces/default/persistentvolumeclaims/x
            yes GET /apis/storage.k8s.io/v1/volumeattachments/x
            yes GET /apis/storage.k8s.io/v1/csidrivers/x
            yes GET /apis/storage.k8s.io/v1/csinodes/x
            yes POST /apis/storage.k8s.io/v1/csinodes
            yes PATCH /apis/storage.k8s.io/v1/csinodes/x
            yes GET /apis/node.k8s.io/v1/runtimeclasses/x
            yes GET /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/x
            yes POST /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases
            yes PATCH /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/x
            yes PUT /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/x
            yes GET /apis/coordination.k8s.io/v1/namespaces/kubeedge/leases/x
            yes POST /apis/coordination.k8s.io/v1/namespaces/kubeedge/leases
            yes PUT /apis/coordination.k8s.io/v1/namespaces/kubeedge/leases/x
            yes GET /api/v1/namespaces/kubeedge
            yes GET /api/v1/namespaces/kubeedge/secrets/casecret
            yes GET /api/v1/namespaces/kubeedge/secrets?labelSelector=a%3Db&limit=10
            yes POST /api/v1/namespaces/kubeedge/secrets
            yes PUT /api/v1/namespaces/kubeedge/secrets/x
            yes DELETE /api/v1/namespaces/kubeedge/secrets/x
            yes GET /apis/reliablesyncs.kubeedge.io/v1alpha1/objectsyncs?limit=1
            yes POST /apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs
            yes PATCH /apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs/x/status
            yes DELETE /apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs/x
            yes GET /apis/reliablesyncs.kubeedge.io/v1alpha1/clusterobjectsyncs
            yes PATCH /apis/reliablesyncs.kubeedge.io/v1alpha1/clusterobjectsyncs/x/status
            yes GET /apis/certificates.k8s.io/v1/certificatesigningrequests
            yes POST /apis/certificates.k8s.io/v1/certificatesigningrequests
            yes PUT /apis/certificates.k8s.io/v1/certificatesigningrequests/x/approval
            yes POST /apis/authentication.k8s.io/v1/selfsubjectreviews
            yes GET /version
            yes GET /apis"#]],
    )
    .await;
}

async fn forbidden(cloudcore: &Client) {
    check(
        cloudcore,
        &[
            "DELETE /api/v1/nodes/x",
            "PUT /api/v1/nodes/x",
            "POST /api/v1/namespaces/default/pods",
            "PUT /api/v1/namespaces/default/pods/web",
            "PATCH /api/v1/namespaces/default/pods/web",
            "POST /api/v1/namespaces/default/pods/web/binding",
            "POST /api/v1/namespaces/default/pods/web/exec",
            "DELETE /api/v1/pods",
            "POST /api/v1/namespaces/default/secrets",
            "PUT /api/v1/namespaces/default/secrets/x",
            "DELETE /api/v1/namespaces/default/secrets/x",
            "POST /api/v1/namespaces/default/configmaps",
            "PATCH /api/v1/namespaces/default/configmaps/x",
            "DELETE /api/v1/namespaces/default/configmaps/x",
            "GET /api/v1/namespaces",
            "POST /api/v1/namespaces",
            "GET /api/v1/namespaces/default",
            "GET /api/v1/serviceaccounts",
            "GET /api/v1/namespaces/default/events/x",
            "DELETE /api/v1/namespaces/default/events/x",
            "GET /api/v1/persistentvolumes",
            "GET /api/v1/services",
            "GET /apis/apps/v1/deployments",
            "GET /apis/coordination.k8s.io/v1/leases",
            "GET /apis/coordination.k8s.io/v1/namespaces/default/leases/x",
            "DELETE /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/x",
            "PUT /apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs/x",
            "DELETE /apis/reliablesyncs.kubeedge.io/v1alpha1/objectsyncs",
            "PUT /apis/certificates.k8s.io/v1/certificatesigningrequests/x/status",
            "DELETE /apis/certificates.k8s.io/v1/certificatesigningrequests/x",
            "GET /apis/rbac.authorization.k8s.io/v1/clusterroles",
            "POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            "POST /apis/authorization.k8s.io/v1/subjectaccessreviews",
            "POST /apis/authentication.k8s.io/v1/tokenreviews",
            "POST /apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            "GET /metrics",
        ],
        expect![[r#"
            no  DELETE /api/v1/nodes/x
            no  PUT /api/v1/nodes/x
            no  POST /api/v1/namespaces/default/pods
            no  PUT /api/v1/namespaces/default/pods/web
            no  PATCH /api/v1/namespaces/default/pods/web
            no  POST /api/v1/namespaces/default/pods/web/binding
            no  POST /api/v1/namespaces/default/pods/web/exec
            no  DELETE /api/v1/pods
            no  POST /api/v1/namespaces/default/secrets
            no  PUT /api/v1/namespaces/default/secrets/x
            no  DELETE /api/v1/namespaces/default/secrets/x
            no  POST /api/v1/namespaces/default/configmaps
            no  PATCH /api/v1/namespaces/default/configmaps/x
            no  DELETE /api/v1/namespaces/default/configmaps/x
            no  GET /api/v1/namespaces
            no  POST /api/v1/namespaces
            no  GET /api/v1/namespaces/default
            no  GET /api/v1/serviceaccounts
            no  GET /api/v1/namespaces/default/events/x
            no  DELETE /api/v1/namespaces/default/events/x
            no  GET /api/v1/persistentvolumes
            no  GET /api/v1/services
            no  GET /apis/apps/v1/deployments
            no  GET /apis/coordination.k8s.io/v1/leases
            no  GET /apis/coordination.k8s.io/v1/namespaces/default/leases/x
            no  DELETE /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/x
            no  PUT /apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs/x
            no  DELETE /apis/reliablesyncs.kubeedge.io/v1alpha1/objectsyncs
            no  PUT /apis/certificates.k8s.io/v1/certificatesigningrequests/x/status
            no  DELETE /apis/certificates.k8s.io/v1/certificatesigningrequests/x
            no  GET /apis/rbac.authorization.k8s.io/v1/clusterroles
            no  POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings
            no  POST /apis/authorization.k8s.io/v1/subjectaccessreviews
            no  POST /apis/authentication.k8s.io/v1/tokenreviews
            no  POST /apis/apiextensions.k8s.io/v1/customresourcedefinitions
            no  GET /metrics"#]],
    )
    .await;
}

/// The files are printed from our definitions; `UPDATE_EXPECT=1` prints them anew.
#[test]
fn definitions_in_files_are_ours() {
    for definition in kubeedge::definitions() {
        let (group, plural) = (
            &definition["spec"]["group"],
            &definition["spec"]["names"]["plural"],
        );
        let (group, plural) = (group.as_str().unwrap(), plural.as_str().unwrap());
        let file = manifests().join(format!("crds/{group}_{plural}.yaml"));
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&file, serde_saphyr::to_string(&definition).unwrap()).unwrap();
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let written: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(
            written,
            definition,
            "{}: run with UPDATE_EXPECT=1",
            file.display()
        );
    }
}
