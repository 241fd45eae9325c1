//! Images: who fetches them, when, and what is said about it.

#![allow(clippy::unwrap_used)] // a test that cannot go on shall stop

mod site;

use kedge_wire::ObjectKind;
use serde_json::{Value, json};
use site::{Pull, Start, deleted, named, pod, wait, with};
use std::time::Duration;

fn image(name: &str, policy: &str) -> Value {
    with(&json!({ "image": name, "imagePullPolicy": policy }))
}

fn takes(seconds: u64) -> Pull {
    Pull {
        takes: Duration::from_secs(seconds),
        fails: None,
    }
}

fn fails(why: &'static str) -> Pull {
    Pull {
        takes: Duration::from_secs(1),
        fails: Some(why),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_named() {
    let pods = [
        named("never", "u1", image("a:1", "Never")),
        named("down", "u2", image("b:1", "IfNotPresent")),
        named("arch", "u3", image("c:1", "Always")),
        named("name", "u4", image("Not A Name", "Always")),
    ];
    let start = Start::with(&pods);
    start.runtime.set_pull("a:1", takes(1));
    start
        .runtime
        .set_pull("b:1", fails("dial tcp 10.0.0.9:443: connect: connection refused"));
    start
        .runtime
        .set_pull("c:1", fails("no match for platform in manifest: not found"));
    let node = start.node();
    let never = "Container image \\\"a:1\\\" is not present with pull policy of Never";
    node.wait_status("never", &["ErrImageNeverPull", never]).await;
    node.wait_status("down", &["ErrImagePull", "connection refused"])
        .await;
    node.wait_status("down", &["ImagePullBackOff", "Back-off pulling image"])
        .await;
    node.wait_status("arch", &["no match for platform"]).await;
    node.wait_status("name", &["InvalidImageName"]).await;
    node.wait_event(&["Failed to pull image \\\"b:1\\\": ", "connection refused"])
        .await;
    node.wait_event(&["\"Failed\"", "Error: ErrImagePull"]).await;
    assert!(
        !node
            .runtime
            .calls()
            .iter()
            .any(|call| call.starts_with("pull a:1"))
    );
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_network_the_local_image_will_do() {
    let start = Start::with(&[
        named("away", "u1", image("a:1", "Always")),
        named("denied", "u2", image("b:1", "Always")),
    ]);
    start
        .runtime
        .set_pull_of_present("a:1", fails("dial tcp: lookup registry.example: i/o timeout"));
    start
        .runtime
        .set_pull_of_present("b:1", fails("pull access denied"));
    let node = start.node();
    node.wait_status("away", &["\"phase\":\"Running\""]).await;
    node.wait_event(&["Container image \\\"a:1\\\" already present on machine"])
        .await;
    node.wait_status("denied", &["ErrImagePull", "pull access denied"])
        .await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pods_share_a_pull_and_others_wait_their_turn() {
    let pods: Vec<Value> = (0..6)
        .map(|n| {
            named(
                &format!("p{n}"),
                &format!("u{n}"),
                image(if n < 4 { "same:1" } else { "other:1" }, "IfNotPresent"),
            )
        })
        .collect();
    for parallel in [false, true] {
        let start = Start {
            configure: if parallel {
                |config| config.image_pulls.parallel_max = None
            } else {
                |_| {}
            },
            ..Start::with(&pods)
        };
        start.runtime.set_pull("same:1", takes(5));
        start.runtime.set_pull("other:1", takes(5));
        let node = start.node();
        for n in 0..6 {
            node.wait_status(&format!("p{n}"), &["\"phase\":\"Running\""])
                .await;
        }
        assert_eq!(node.runtime.count("pull same:1 as []"), 1);
        assert_eq!(node.runtime.count("pull other:1 as []"), 1);
        assert_eq!(node.runtime.most_pulls_at_once(), if parallel { 2 } else { 1 });
        let size = "Image size: 0 bytes.";
        let event = node
            .wait_event(&["Successfully pulled image \\\"same:1\\\" in 5s (", size])
            .await;
        assert_eq!(event["reason"], "Pulled");
        node.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_nobody_wants_any_more_makes_room() {
    let start = Start::with(&[pod("u1", image("slow:1", "IfNotPresent"))]);
    start.runtime.set_pull("slow:1", takes(100_000));
    start.runtime.set_pull("next:1", takes(1));
    let node = start.node();
    wait("the slow pull begins", async || {
        (node.runtime.count("pull slow:1 as []") == 1).then_some(())
    })
    .await;
    node.set(
        ObjectKind::Pod,
        &named("db", "u2", image("next:1", "IfNotPresent")),
    );
    node.set(
        ObjectKind::Pod,
        &deleted(pod("u1", image("slow:1", "IfNotPresent")), 1),
    );
    node.wait_status("db", &["\"phase\":\"Running\""]).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn credentials_of_the_pod_and_of_the_node() {
    let mut spec = image("reg.example.com/team/app:1", "IfNotPresent");
    spec["imagePullSecrets"] = json!([{ "name": "pull" }, { "name": "absent" }]);
    let start = Start::with(&[pod("u1", spec)]);
    let entry = |user: &str| {
        json!({ "auths": { "reg.example.com": { "username": user, "password": "p" } } }).to_string()
    };
    std::fs::write(start.root.join("config.json"), entry("of-the-node")).unwrap();
    start.runtime.set_pull("reg.example.com/team/app:1", takes(1));
    let config = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, entry("of-the-pod"));
    let secret = json!({ "metadata": { "name": "pull", "namespace": "default" },
        "type": "kubernetes.io/dockerconfigjson", "data": { ".dockerconfigjson": config } });
    start
        .cloud
        .lock()
        .unwrap()
        .objects
        .insert("default/secret/pull".to_owned(), secret);
    let node = start.node();
    node.wait_running("c").await;
    let call = "pull reg.example.com/team/app:1 as [of-the-pod,of-the-node]";
    assert_eq!(node.runtime.count(call), 1, "{:?}", node.runtime.calls());
    node.wait_event(&["FailedToRetrieveImagePullSecret", "(absent)"])
        .await;
    node.stop().await;
}
