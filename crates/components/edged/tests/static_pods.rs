//! Pods that files of the node describe.

#![allow(clippy::unwrap_used)] // a test that cannot go on shall stop

mod site;

use kedge_edged::StaticPods;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use serde_json::{Value, json};
use site::{Start, is_running, object_of, wait};
use std::time::Duration;

fn manifest(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: {name}\n    image: {image}\n"
    )
}

/// inotify tells in real time, so this clock is not paused.
#[tokio::test]
async fn files_become_pods_without_a_cloud_and_mirrors_with_one() {
    // A node that holds something knows at once what is wanted of it.
    let settings = json!({ "metadata": { "name": "settings", "namespace": "default" } });
    let start = Start {
        online: false,
        initial: vec![object_of(ObjectKind::ConfigMap, &settings)],
        configure: |config| {
            let mut source = StaticPods::new(config.root_dir.join("manifests"));
            source.check_interval = Duration::from_millis(500);
            config.static_pods = Some(source);
        },
        ..Start::default()
    };
    let dir = start.root.join("manifests");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("a.yaml"), manifest("alpha", "web:1")).unwrap();
    std::fs::write(dir.join("broken.yaml"), "apiVersion: v1\nkind: [").unwrap();
    std::fs::write(dir.join(".hidden.yaml"), manifest("hidden", "web:1")).unwrap();
    let node = start.node();
    let first = node.wait_running("alpha").await;
    std::fs::write(dir.join("b.yaml"), manifest("beta", "web:1")).unwrap();
    node.wait_running("beta").await;
    assert!(node.containers().await.iter().all(|c| c.name != "hidden"));

    node.online.send_replace(true);
    let object = json!({ "metadata": { "name": "edge-1", "uid": "n1" } });
    let body = Body::from_value(&object).unwrap();
    node.desired
        .set(ObjectKey::cluster(ObjectKind::Node, "edge-1"), Some(body))
        .unwrap();
    let mirror = node
        .wait_told("the mirror", |operation, key, _| {
            *operation == Operation::Insert && key.kind == ObjectKind::Pod && key.name == "alpha-edge-1"
        })
        .await;
    let mirror: Value = serde_json::from_str(&mirror).unwrap();
    let annotations = &mirror["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(
        annotations["kubernetes.io/config.mirror"],
        annotations["kubernetes.io/config.hash"]
    );
    assert_eq!(mirror["metadata"]["ownerReferences"][0]["uid"], "n1");

    // A file that breaks keeps its pod; one that goes takes its pod along.
    std::fs::write(dir.join("a.yaml"), "apiVersion: v1\nkind: Pod\nspec: 3\n").unwrap();
    std::fs::remove_file(dir.join("b.yaml")).unwrap();
    wait("beta is gone", async || {
        node.containers()
            .await
            .iter()
            .all(|c| c.name != "beta" || !is_running(c))
            .then_some(())
    })
    .await;
    assert_eq!(node.wait_running("alpha").await.id, first.id);
    std::fs::write(dir.join("a.yaml"), manifest("alpha", "web:2")).unwrap();
    let second = async || {
        let all = node.containers().await;
        all.into_iter().find(|c| c.image == "web:2" && is_running(c))
    };
    wait("the new version runs", second).await;
    node.stop().await;
}
