//! Who is let in, what is announced, how it starts and ends.

use crate::client::{Folder, Pki, Running};
use kedge_apiserver::{ApiServer, OpenError, Ports, StorageAt};
use serde_json::json;
use std::sync::Arc;

#[tokio::test]
async fn strangers_see_health_and_version_only() {
    let running = Running::start().await;
    let stranger = running.client(None);
    for path in ["/healthz", "/livez", "/readyz", "/readyz/ping"] {
        assert_eq!(stranger.get(path).await.body, "ok");
    }
    assert_eq!(stranger.get("/version").await.ok()["gitVersion"], "v1.33.0-kedge");
    for path in ["/", "/api", "/apis", "/openapi/v2", "/api/v1/pods"] {
        let refused = stranger.get(path).await;
        assert_eq!(
            (refused.code, refused.json()["kind"].clone()),
            (401, json!("Status")),
            "{path}"
        );
    }
    running.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_in_the_handshake() {
    let (running, other) = (Running::start().await, Running::start().await);
    let foreign = Running {
        pki: Arc::clone(&other.pki),
        address: running.address,
        scope: running.scope.clone(),
    };
    let client = foreign.admin();
    let shaken = tokio::spawn(async move { client.get("/healthz").await });
    assert!(shaken.await.is_err());
    running.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn groups_decide() {
    let running = Running::start().await;
    let cloud = running.client(Some(("cloudcore", "kedge:cloudcore")));
    assert_eq!(cloud.get("/api/v1/secrets").await.code, 200);
    let node = running.client(Some(("system:node:edge-1", "system:nodes")));
    let refused = node.get("/api/v1/secrets").await;
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.json()["message"],
        r#"secrets is forbidden: User "system:node:edge-1" cannot list resource "secrets" in API group "" at the cluster scope"#
    );
    assert_eq!(node.get("/api/v1/nodes/edge-1").await.code, 404);
    let review = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "spec": {"resourceAttributes": {"verb": "delete", "resource": "pods", "namespace": "default"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(node.post(path, &review).await.ok()["status"]["allowed"], false);
    assert_eq!(
        running.admin().post(path, &review).await.ok()["status"]["allowed"],
        true
    );
    running.stop().await;
}

#[tokio::test]
async fn kinds_are_announced_in_both_forms() {
    let running = Running::start().await;
    let admin = running.admin();
    let core = admin.get("/api/v1").await.ok();
    let names: Vec<_> = core["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].clone())
        .collect();
    for name in [
        "pods",
        "pods/log",
        "pods/binding",
        "nodes/status",
        "serviceaccounts/token",
        "events",
    ] {
        assert!(names.contains(&json!(name)), "{name}");
    }
    let form = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let aggregated = admin.get_as("/apis", form).await;
    assert!(
        aggregated.headers["content-type"]
            .to_str()
            .unwrap()
            .contains("as=APIGroupDiscoveryList")
    );
    assert_eq!(aggregated.ok()["kind"], "APIGroupDiscoveryList");
    assert_eq!(admin.get("/apis/apps").await.ok()["kind"], "APIGroup");
    let asked = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let openapi = admin.get_as("/openapi/v2", asked).await;
    assert_eq!(
        openapi.headers["content-type"],
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    );
    for path in ["/apis/nothing.example", "/api/v1/nothings", "/nowhere"] {
        assert_eq!(admin.get(path).await.code, 404, "{path}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_taken_port_and_broken_keys_are_said_plainly() {
    let running = Running::start().await;
    let mut config = running.pki.config(StorageAt::Memory);
    config.listen = running.address;
    let error = ApiServer::open(config, Ports::default()).await.unwrap_err();
    assert!(matches!(error, OpenError::PortInUse { .. }));
    assert!(
        error
            .to_string()
            .contains(&format!("port {} is in use", running.address.port()))
    );

    let mut config = running.pki.config(StorageAt::Memory);
    config.client_ca_pem = "nonsense".to_owned();
    let error = ApiServer::open(config, Ports::default()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "read the client CA of the API server: there is no certificate in the PEM text"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_objects_and_positions() {
    let folder = Folder::new("restart");
    let pki = Arc::new(Pki::new());
    let at = || StorageAt::Directory(folder.0.clone());
    let first = Running::with(Arc::clone(&pki), at(), Ports::default()).await;
    let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"k": "1"}});
    let made = first
        .admin()
        .post("/api/v1/namespaces/default/configmaps", &map)
        .await
        .ok();
    let position = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let changed = json!({"data": {"k": "2"}});
    let path = "/api/v1/namespaces/default/configmaps/a";
    first.admin().patch(path, "merge-patch+json", &changed).await.ok();
    let mut watch = first.admin().watch("/api/v1/pods?watch=1").await;
    first.stop().await;
    assert!(watch.next().await.is_none(), "a drain ends watches");

    let second = Running::with(pki, at(), Ports::default()).await;
    let found = second.admin().get(path).await.ok();
    assert_eq!(
        (&found["data"]["k"], &found["metadata"]["uid"]),
        (&json!("2"), &made["metadata"]["uid"])
    );
    let again =
        format!("/api/v1/configmaps?watch=1&fieldSelector=metadata.name%3Da&resourceVersion={position}");
    assert_eq!(second.admin().watch(&again).await.event().await, "MODIFIED a");
    second.stop().await;
}
