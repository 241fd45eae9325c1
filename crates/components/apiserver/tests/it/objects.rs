//! Reading and writing objects.

use crate::client::{Client, Running};
use bytes::Bytes;
use http::Method;
use kedge_apiserver::{Ports, StorageAt};
use kedge_telemetry::channel::{ask, queue};
use serde_json::{Value, json};
use std::sync::Arc;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"app": name}}, "data": {"k": "1"},
    })
}

fn pod(name: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "example/web:1"}]},
    })
}

fn names(list: &Value) -> Vec<&str> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn an_object_from_birth_to_death() {
    let running = Running::start().await;
    let admin = running.admin();
    let made = admin.post(MAPS, &map("a")).await;
    assert_eq!(made.code, 201);
    let made = made.json();
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string());
    let again = admin.post(MAPS, &map("a")).await;
    assert_eq!(
        (again.code, again.json()["reason"].clone()),
        (409, json!("AlreadyExists"))
    );

    let path = format!("{MAPS}/a");
    let mut changed = admin.get(&path).await.ok();
    assert_eq!(changed, made);
    changed["data"]["k"] = json!("2");
    let updated = admin.put(&path, &changed).await.ok();
    assert_ne!(
        updated["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    let stale = admin.put(&path, &changed).await;
    assert_eq!(
        (stale.code, stale.json()["reason"].clone()),
        (409, json!("Conflict"))
    );
    let same = admin.put(&path, &updated).await.ok();
    assert_eq!(
        same["metadata"]["resourceVersion"], updated["metadata"]["resourceVersion"],
        "no change, no write"
    );

    let merged = admin
        .patch(&path, "merge-patch+json", &json!({"data": {"k": null, "m": "3"}}))
        .await
        .ok();
    assert_eq!(merged["data"], json!({"m": "3"}));
    let jumped = json!([{"op": "test", "path": "/data/m", "value": "3"}, {"op": "add", "path": "/data/n", "value": "4"}]);
    let patched = admin.patch(&path, "json-patch+json", &jumped).await.ok();
    assert_eq!(patched["data"], json!({"m": "3", "n": "4"}));
    let strategic = json!({"metadata": {"labels": {"tier": "x"}}});
    let labels = admin
        .patch(&path, "strategic-merge-patch+json", &strategic)
        .await
        .ok();
    assert_eq!(labels["metadata"]["labels"], json!({"app": "a", "tier": "x"}));
    let apply = admin.patch(&path, "apply-patch+yaml", &json!({})).await;
    assert_eq!(apply.code, 415);
    assert!(
        apply.json()["message"]
            .as_str()
            .unwrap()
            .contains("use client-side apply")
    );

    assert_eq!(admin.delete(&path).await.ok()["status"], "Success");
    assert_eq!(admin.get(&path).await.code, 404);
    assert_eq!(admin.delete(&path).await.code, 404);
    running.stop().await;
}

#[tokio::test]
async fn lists_are_selected_and_paged() {
    let running = Running::start().await;
    let admin = running.admin();
    admin
        .post("/api/v1/namespaces", &json!({"metadata": {"name": "other"}}))
        .await
        .ok();
    for name in ["a", "b", "c", "d"] {
        admin
            .post("/api/v1/namespaces/other/configmaps", &map(name))
            .await
            .ok();
    }
    let path = "/api/v1/namespaces/other/configmaps";
    let chosen = format!("{path}?labelSelector=app+in+(a,c)");
    assert_eq!(names(&admin.get(&chosen).await.ok()), ["a", "c"]);
    assert_eq!(
        names(
            &admin
                .get(&format!("{path}?fieldSelector=metadata.name%3Db"))
                .await
                .ok()
        ),
        ["b"]
    );
    assert_eq!(
        admin.get(&format!("{path}?fieldSelector=no.such%3Db")).await.code,
        400
    );
    let chosen = "/api/v1/configmaps?labelSelector=app";
    assert_eq!(admin.get(chosen).await.ok()["items"].as_array().unwrap().len(), 4);

    let mut seen = Vec::new();
    let mut next = format!("{chosen}&limit=3");
    let mut pages = 0;
    loop {
        let page = admin.get(&next).await.ok();
        seen.extend(names(&page).into_iter().map(str::to_owned));
        pages += 1;
        let token = page["metadata"]["continue"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if token.is_empty() {
            break;
        }
        next = format!("{chosen}&limit=3&continue={token}");
    }
    assert_eq!(
        (seen, pages),
        (["a", "b", "c", "d"].map(str::to_owned).to_vec(), 2)
    );
    assert_eq!(admin.get(&format!("{path}?continue=nonsense")).await.code, 400);
    assert_eq!(admin.get(&format!("{path}?limit=-1")).await.code, 400);

    let gone = admin
        .delete(&format!("{path}?labelSelector=app,app+notin+(a)"))
        .await
        .ok();
    assert_eq!(names(&gone), ["b", "c", "d"]);
    assert_eq!(
        names(&admin.get(&format!("{path}?labelSelector=app")).await.ok()),
        ["a"]
    );
    running.stop().await;
}

#[tokio::test]
async fn forms_of_an_answer() {
    let running = Running::start().await;
    let admin = running.admin();
    admin.post(MAPS, &map("a")).await.ok();
    let table = admin
        .get_as(MAPS, "application/json;as=Table;v=v1;g=meta.k8s.io")
        .await
        .ok();
    assert_eq!(
        (table["kind"].as_str(), table["rows"][0]["cells"][0].as_str()),
        (Some("Table"), Some("a"))
    );
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let list = admin.get_as(MAPS, partial).await.ok();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    let partial = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    let one = admin.get_as(&format!("{MAPS}/a"), partial).await.ok();
    assert_eq!(
        (&one["kind"], &one["data"]),
        (&json!("PartialObjectMetadata"), &Value::Null)
    );
    assert_eq!(
        admin
            .get_as(MAPS, "application/vnd.kubernetes.protobuf")
            .await
            .code,
        406
    );
    running.stop().await;
}

async fn post_as(
    admin: &Client,
    media_type: &str,
    query: &str,
    body: impl Into<Bytes>,
) -> crate::client::Answer {
    admin
        .send(
            Method::POST,
            &format!("{MAPS}{query}"),
            &[("content-type", media_type)],
            body.into(),
        )
        .await
}

#[tokio::test]
async fn bodies_are_read_with_care() {
    let running = Running::start().await;
    let admin = running.admin();
    let yaml = "kind: ConfigMap\napiVersion: v1\nmetadata: {name: yaml}\ndata: {k: v}\n";
    assert_eq!(
        post_as(&admin, "application/yaml", "", yaml).await.ok()["data"]["k"],
        "v"
    );
    assert_eq!(
        post_as(&admin, "application/vnd.kubernetes.protobuf", "", "k8s")
            .await
            .code,
        400
    );
    assert_eq!(post_as(&admin, "application/cbor", "", "x").await.code, 415);
    assert_eq!(post_as(&admin, "application/json", "", "{").await.code, 400);
    assert_eq!(
        post_as(&admin, "application/json", "", vec![b' '; (3 << 20) + 1])
            .await
            .code,
        413
    );

    let mut wrong = map("w");
    wrong["metadata"]["lables"] = json!({});
    wrong["dataa"] = json!({});
    let strict = post_as(
        &admin,
        "application/json",
        "?fieldValidation=Strict",
        wrong.to_string(),
    )
    .await;
    let message = strict.json()["message"].as_str().unwrap().to_owned();
    assert!(
        strict.code == 400 && message.contains("metadata.lables") && message.contains("dataa"),
        "{message}"
    );
    let warned = post_as(&admin, "application/json", "?dryRun=All", wrong.to_string()).await;
    assert_eq!(warned.headers.get_all("warning").iter().count(), 2);
    assert!(warned.ok()["dataa"].is_null());
    assert_eq!(
        admin.get(&format!("{MAPS}/w")).await.code,
        404,
        "a dry run leaves nothing"
    );
    let dry = admin.delete(&format!("{MAPS}/yaml?dryRun=All")).await;
    assert_eq!(
        (dry.code, admin.get(&format!("{MAPS}/yaml")).await.code),
        (200, 200)
    );

    let lost = admin
        .post("/api/v1/namespaces/nowhere/configmaps", &map("a"))
        .await;
    assert_eq!(
        (lost.code, lost.json()["message"].clone()),
        (404, json!("namespaces \"nowhere\" not found"))
    );
    running.stop().await;
}

#[tokio::test]
async fn leases_and_events_may_begin_with_an_update() {
    let running = Running::start().await;
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";
    let lease = json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "edge-1"},
        "spec": {"holderIdentity": "edge-1", "leaseDurationSeconds": 40, "renewTime": "2026-11-21T10:00:00.000000Z"}});
    assert_eq!(running.admin().put(path, &lease).await.code, 201);
    assert_eq!(running.admin().put(path, &lease).await.code, 200);
    running.stop().await;
}

#[tokio::test]
async fn tokens_of_service_accounts_open_the_door_but_no_cupboard() {
    let running = Running::start().await;
    let admin = running.admin();
    admin
        .post(
            "/api/v1/namespaces/default/serviceaccounts",
            &json!({"metadata": {"name": "web"}}),
        )
        .await
        .ok();
    let path = "/api/v1/namespaces/default/serviceaccounts/web/token";
    let asked = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"expirationSeconds": 900}});
    let answer = admin.post(path, &asked).await.ok();
    assert!(answer["status"]["expirationTimestamp"].is_string());
    let mut holder = running.client(None);
    holder.token = Some(answer["status"]["token"].as_str().unwrap().to_owned());
    assert_eq!(holder.get("/api").await.code, 200);
    let refused = holder.get("/api/v1/namespaces/default/pods").await;
    assert_eq!(refused.code, 403);
    assert!(
        refused.json()["message"]
            .as_str()
            .unwrap()
            .contains("system:serviceaccount:default:web")
    );
    holder.token = Some("x.y.z".to_owned());
    assert_eq!(holder.get("/api").await.code, 401);
    let short = json!({"spec": {"expirationSeconds": 60}});
    assert_eq!(admin.post(path, &short).await.code, 422);
    running.stop().await;
}

#[tokio::test]
async fn logs_come_from_the_node_of_the_pod() {
    let (port, mut questions) = ask::channel("node get", 1);
    let ports = Ports {
        node_get: Some(port),
        ..Ports::default()
    };
    let pki = Arc::new(crate::client::Pki::new());
    let running = Running::with(pki, StorageAt::Memory, ports).await;
    let admin = running.admin();
    let pods = "/api/v1/namespaces/default/pods";
    let mut web = pod("web");
    web["spec"]["nodeName"] = json!("edge-1");
    admin.post(pods, &web).await.ok();

    let node = tokio::spawn(async move {
        let question: ask::Question<(kedge_wire::NodeName, kedge_wire::tunnel::NodeGet), _> =
            questions.recv().await.unwrap();
        let (node, get) = question.question;
        let (tx, rx) = queue::channel("log", 1);
        question.reply.send(Ok(rx));
        tx.send(Bytes::from(format!("{node} {} {}\n", get.path, get.query)))
            .await
            .unwrap();
        // The stream stays open: what was said must arrive all the same.
        tx.closed().await;
        questions
            .recv()
            .await
            .unwrap()
            .reply
            .send(Err("container main in pod web is waiting to start".to_owned()));
    });
    let mut lines = admin
        .watch(&format!("{pods}/web/log?follow=true&tailLines=5&pretty=true"))
        .await;
    let line = String::from_utf8(lines.line().await.unwrap()).unwrap();
    assert_eq!(
        line,
        "edge-1 /containerLogs/default/web/main follow=true&tailLines=5\n"
    );
    drop(lines);
    let refused = admin.get(&format!("{pods}/web/log")).await;
    assert_eq!(
        refused.json()["message"],
        "container main in pod web is waiting to start"
    );
    node.await.unwrap();
    let exec = admin
        .post(&format!("{pods}/web/exec?command=ls"), &json!({}))
        .await;
    assert_eq!(exec.code, 503);
    assert_eq!(
        exec.json()["message"],
        "connections to pods are not available: this server has no way to its nodes"
    );
    running.stop().await;
}
