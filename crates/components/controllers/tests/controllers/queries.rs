//! What a node may ask about: only what its own pods use.

use crate::world::{World, body, key, pod};
use expect_test::expect;
use kedge_wire::{ObjectKey, ObjectKind, Request};
use serde_json::{Value, json};

fn claim(name: &str, volume: &str) -> (String, Value) {
    let path = format!("/api/v1/namespaces/default/persistentvolumeclaims/{name}");
    let claim = json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"volumeName": volume}});
    (path, claim)
}

fn volume(name: &str, claim: &str) -> (String, Value) {
    let path = format!("/api/v1/persistentvolumes/{name}");
    let volume = json!({"metadata": {"name": name, "managedFields": [{"manager": "x"}]},
                        "spec": {"claimRef": {"namespace": "default", "name": claim}}});
    (path, volume)
}

fn attachment(name: &str, node: &str) -> (String, Value) {
    let path = format!("/apis/storage.k8s.io/v1/volumeattachments/{name}");
    (
        path,
        json!({"metadata": {"name": name}, "spec": {"nodeName": node}}),
    )
}

#[tokio::test]
async fn volumes_go_to_the_node_whose_pod_claims_them() {
    let (path, mut web) = pod("web", "edge-1", "app");
    web["spec"]["volumes"] = json!([
        {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "o", "persistentVolumeClaim": {"claimName": "other"}},
    ]);
    let world = World::new(&[
        (path, web),
        claim("data", "pv-data"),
        claim("other", "pv-elsewhere"),
        claim("foreign", "pv-foreign"),
        volume("pv-data", "data"),
        // It says that it is bound to a claim of this node, but the claim names another volume.
        volume("pv-liar", "other"),
        volume("pv-foreign", "foreign"),
        attachment("va-1", "edge-1"),
        attachment("va-2", "edge-2"),
    ])
    .await;
    let session = world.session("edge-1").await;
    let mut told = String::new();
    for name in ["data", "foreign"] {
        let claim = key(ObjectKind::PersistentVolumeClaim, name);
        told.push_str(&format!("{}\n", session.ask(Request::query(claim)).await));
    }
    for name in ["pv-data", "pv-liar", "pv-foreign", "pv-none"] {
        let volume = ObjectKey::cluster(ObjectKind::PersistentVolume, name);
        told.push_str(&format!("{}\n", session.ask(Request::query(volume)).await));
    }
    for name in ["va-1", "va-2"] {
        // Official edges write a namespace here.
        let attachment = key(ObjectKind::VolumeAttachment, name);
        told.push_str(&format!("{}\n", session.ask(Request::query(attachment)).await));
    }
    expect![[r#"
        response at 2: {"metadata":{"name":"data","namespace":"default","resourceVersion":"2","uid":"uid-2"},"spec":{"volumeName":"pv-data"}}
        error: "edge-1 may not query default/persistentvolumeclaim/foreign: no pod of this node uses it (403 Forbidden)"
        response at 5: {"metadata":{"name":"pv-data","resourceVersion":"5","uid":"uid-5"},"spec":{"claimRef":{"namespace":"default","name":"data"}}}
        error: "edge-1 may not read null/persistentvolume/pv-liar: its claim is bound to another volume (403 Forbidden)"
        error: "edge-1 may not read null/persistentvolume/pv-foreign: no pod of this node uses its claim (403 Forbidden)"
        error: "\"pv-none\" not found (404 NotFound)"
        response at 8: {"metadata":{"name":"va-1","resourceVersion":"8","uid":"uid-8"},"spec":{"nodeName":"edge-1"}}
        error: "edge-1 may not read default/volumeattachment/va-2: it is not for this node (403 Forbidden)"
    "#]].assert_eq(&told);
}

#[tokio::test]
async fn tokens_are_for_pods_of_this_node_and_their_account() {
    let world = World::new(&[pod("web", "edge-1", "app"), pod("db", "edge-2", "app")]).await;
    let session = world.session("edge-1").await;
    let ask = |account: &str, pod: &str, uid: &str| {
        let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid});
        let request = json!({"metadata": {"creationTimestamp": null},
                             "spec": {"audiences": null, "boundObjectRef": bound}});
        Request::query_token("default", account, body(request))
    };
    let mut told = String::new();
    for (account, pod, uid) in [
        ("default", "web", "web-uid"),
        ("default", "web", "older-uid"),
        ("robot", "web", "web-uid"),
        ("default", "db", "db-uid"),
    ] {
        told.push_str(&format!("{}\n", session.ask(ask(account, pod, uid)).await));
    }
    expect![[r#"
        response at 3: {"metadata":{"creationTimestamp":null,"resourceVersion":"3","uid":"uid-3"},"spec":{"audiences":null,"boundObjectRef":{"kind":"Pod","apiVersion":"v1","name":"web","uid":"web-uid"}},"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest"}
        error: "edge-1 may not query default/serviceaccounttoken/default: no pod of this name, uid and service account is placed on this node (403 Forbidden)"
        error: "edge-1 may not query default/serviceaccounttoken/robot: no pod of this name, uid and service account is placed on this node (403 Forbidden)"
        error: "edge-1 may not query default/serviceaccounttoken/default: no pod of this name, uid and service account is placed on this node (403 Forbidden)"
    "#]].assert_eq(&told);
}
