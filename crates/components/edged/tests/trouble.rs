//! What a node survives.

#![allow(clippy::unwrap_used)] // a test that cannot go on shall stop

mod site;

use kedge_containers::ExecOutput;
use kedge_runtime::Runtime as _;
use kedge_runtime::hollow::ExecAnswer;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use serde_json::json;
use site::{Start, deleted, is_running, named, plain, pod, wait, with};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn killed_at_any_moment_it_goes_on_where_it_was() {
    let spec = || {
        json!({ "nodeName": "edge-1",
            "initContainers": [{ "name": "first", "image": "init:1" }],
            "containers": [{ "name": "c", "image": "web:1" }] })
    };
    let pods = [pod("u1", spec()), named("db", "u2", plain())];
    let mut life = Start::with(&pods);
    // Each life ends a little later than the one before.
    for life_ms in [0, 1, 2, 3, 5, 8, 13, 21, 50, 200] {
        let (runtime, root) = (Arc::clone(&life.runtime), Arc::clone(&life.root));
        let node = life.node();
        tokio::time::sleep(Duration::from_millis(life_ms)).await;
        let first = node
            .containers()
            .await
            .into_iter()
            .find(|c| c.name == "first" && is_running(c));
        // Nothing is drained: the tasks are dropped where they are.
        node.scope.cancel();
        if let Some(first) = first {
            runtime.hollow.exit_container(&first.id, 0).unwrap();
        }
        life = Start {
            runtime,
            root,
            ..Start::with(&pods)
        };
    }
    let node = life.node();
    let first = async || {
        let all = node.containers().await;
        let running = all.into_iter().find(|c| c.name == "first" && is_running(c));
        if let Some(first) = running {
            node.runtime.hollow.exit_container(&first.id, 0).unwrap();
        }
        node.told(|_, key, body| key.name == "web" && body.contains("\"phase\":\"Running\""))
    };
    wait("the pod runs in the end", first).await;
    node.wait_status("db", &["\"phase\":\"Running\"", "\"restartCount\":0"])
        .await;
    let running = node.containers().await.into_iter().filter(is_running).count();
    assert_eq!(running, 2, "no container runs twice");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_harms_its_own_pod_only() {
    let probe = |command: &str| {
        with(
            &json!({ "livenessProbe": { "exec": { "command": [command] }, "timeoutSeconds": 2, "periodSeconds": 5, "failureThreshold": 2 } }),
        )
    };
    let start = Start::with(&[pod("u1", probe("hang")), named("db", "u2", probe("well"))]);
    start.runtime.hollow.answer_exec(["hang"], ExecAnswer::Hangs);
    let node = start.node();
    node.wait_event(&["Liveness probe failed: command", "timed out"])
        .await;
    node.wait_status("web", &["\"restartCount\":1"]).await;
    assert!(node.runtime.count("exec well") >= 2);
    let db = node.wait_status("db", &["\"ready\":true"]).await;
    assert_eq!(db["status"]["containerStatuses"][0]["restartCount"], 0);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ignores_the_signal_holds_up_nobody_else() {
    let start = Start::with(&[pod("u1", plain())]);
    start.runtime.set_deaf(true);
    let node = start.node();
    node.wait_running("c").await;
    let begin = Instant::now();
    node.set(ObjectKind::Pod, &deleted(pod("u1", plain()), 20));
    let other = json!({ "nodeName": "edge-1", "containers": [{ "name": "d", "image": "web:1" }] });
    node.set(ObjectKind::Pod, &named("db", "u2", other));
    node.wait_running("d").await;
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    node.wait_told("the deletion", |operation, _, _| *operation == Operation::Delete)
        .await;
    let took = begin.elapsed().as_secs();
    assert!((20..30).contains(&took), "{took}");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn of_two_pods_of_one_name_the_second_waits_for_the_end_of_the_first() {
    let start = Start::with(&[pod("u1", plain())]);
    start.runtime.set_deaf(true);
    let node = start.node();
    node.wait_running("c").await;
    node.set(ObjectKind::Pod, &deleted(pod("u1", plain()), 5));
    node.set(ObjectKind::Pod, &pod("u2", plain()));
    node.set(ObjectKind::Pod, &pod("u3", plain()));
    wait("the newest one is made", async || {
        (node.runtime.count("create u3/c") == 1).then_some(())
    })
    .await;
    let list = node.runtime.hollow.list().await.unwrap();
    let uids: Vec<&str> = list.iter().map(|sandbox| sandbox.pod.uid.as_str()).collect();
    assert_eq!(uids, ["u3"], "the others are gone");
    assert_eq!(node.runtime.count("create u1/c"), 1);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_left_out() {
    let key = |kind, name: &str| ObjectKey::namespaced(kind, "default", name);
    let broken = |json: &str| Some(Body::from_json(json.to_owned()).unwrap());
    let node = Start::with(&[pod("u1", plain())]).node();
    let before = node.wait_running("c").await;
    let send = |kind, name: &str, json: &str| node.desired.set(key(kind, name), broken(json)).unwrap();
    send(
        ObjectKind::Pod,
        "web",
        r#"{"metadata":{"name":"web"},"spec":{"containers":"many"}}"#,
    );
    send(ObjectKind::Pod, "none", "[1,2]");
    send(ObjectKind::Pod, "empty", "{}");
    send(ObjectKind::Node, "edge-1", r#"{"status":7}"#);
    send(ObjectKind::ConfigMap, "settings", r#""text""#);
    send(ObjectKind::Secret, "keys", r#"{"data":{"a":{}}}"#);
    let spec = json!({ "nodeName": "edge-1", "unknownField": { "deep": [1] },
        "containers": [{ "name": "d", "image": "web:1", "env": [
            { "name": "A", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "a" } } }] }] });
    node.set(ObjectKind::Pod, &named("db", "u2", spec));
    node.wait_status("db", &["CreateContainerConfigError", "cannot be read"])
        .await;
    let settings =
        json!({ "metadata": { "name": "settings", "namespace": "default" }, "data": { "a": "1" } });
    node.set(ObjectKind::ConfigMap, &settings);
    node.wait_running("d").await;
    assert_eq!(node.wait_running("c").await.id, before.id);
    node.stop().await;
}

/// Whether the node said that it is ready (`True`) or not (`False`).
fn says_ready(ready: &str) -> impl Fn(&Operation, &ObjectKey, &str) -> bool {
    let status = format!(r#""status":"{ready}""#);
    move |_, key, body| {
        let of_node = matches!(key.kind, ObjectKind::NodePatch | ObjectKind::Node);
        let mut conditions = body.split('{');
        of_node && conditions.any(|part| part.contains(r#""type":"Ready""#) && part.contains(&status))
    }
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_goes_and_comes_back_loses_nothing() {
    for hang in [false, true] {
        let node = Start::with(&[pod("u1", plain())]).node();
        let before = node.wait_running("c").await;
        node.wait_status("web", &["\"phase\":\"Running\""]).await;
        node.wait_told("ready", says_ready("True")).await;
        let set = |away| {
            if hang {
                node.runtime.set_hung(away)
            } else {
                node.runtime.set_gone(away)
            }
        };
        let begin = Instant::now();
        set(true);
        let patch = node.wait_told("not ready", says_ready("False")).await;
        assert!(patch.contains("container runtime is down"), "{patch}");
        assert!(
            begin.elapsed() >= Duration::from_secs(20),
            "{:?}",
            begin.elapsed()
        );
        // Changes made meanwhile wait.
        let other = json!({ "nodeName": "edge-1", "containers": [{ "name": "d", "image": "web:1" }] });
        node.set(ObjectKind::Pod, &named("db", "u2", other));
        node.cloud.lock().unwrap().told.clear();
        set(false);
        node.wait_told("ready again", says_ready("True")).await;
        node.wait_running("d").await;
        let after = node.wait_running("c").await;
        assert_eq!((after.id, after.attempt), (before.id, 0), "nothing was restarted");
        node.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_comes_after_the_node_is_waited_for() {
    let start = Start::with(&[pod("u1", plain())]);
    start.runtime.set_gone(true);
    let node = start.node();
    let patch = node.wait_told("not ready", says_ready("False")).await;
    assert!(
        patch.contains("container runtime status check may not have completed yet"),
        "{patch}"
    );
    node.runtime.set_gone(false);
    node.wait_running("c").await;
    node.wait_told("ready", says_ready("True")).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_changes_a_second_are_a_few_for_the_volume() {
    let map = |value: u32| json!({ "metadata": { "name": "settings", "namespace": "default" }, "data": { "a": value.to_string() } });
    let spec = json!({ "nodeName": "edge-1",
        "volumes": [{ "name": "s", "configMap": { "name": "settings" } }],
        "containers": [{ "name": "c", "image": "web:1", "volumeMounts": [{ "name": "s", "mountPath": "/s" }] }] });
    let node = Start::with(&[pod("u1", spec)]).node();
    node.set(ObjectKind::ConfigMap, &map(0));
    node.wait_running("c").await;
    let dir = node.root.join("pods/u1/volumes/kubernetes.io~configmap/s");
    let mut versions = std::collections::BTreeSet::new();
    for value in 1..=3000 {
        node.set(ObjectKind::ConfigMap, &map(value));
        tokio::time::sleep(Duration::from_millis(1)).await;
        versions.extend(std::fs::read_link(dir.join("..data")).ok());
    }
    let begin = Instant::now();
    wait("the newest is there", async || {
        (std::fs::read_to_string(dir.join("a")).ok()? == "3000").then_some(())
    })
    .await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(
        (3..20).contains(&versions.len()),
        "written {} times",
        versions.len()
    );
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_the_words_of_a_command() {
    let spec = with(
        &json!({ "readinessProbe": { "exec": { "command": ["ready"] }, "periodSeconds": 1, "failureThreshold": 1 } }),
    );
    let start = Start::with(&[pod("u1", spec)]);
    let says = |exit_code, text: &str| {
        ExecAnswer::Output(ExecOutput {
            exit_code,
            stdout: text.as_bytes().to_vec(),
            ..ExecOutput::default()
        })
    };
    start.runtime.hollow.answer_exec(["ready"], says(1, "not yet"));
    let node = start.node();
    node.wait_event(&["Unhealthy", "Readiness probe failed: not yet"])
        .await;
    node.runtime.hollow.answer_exec(["ready"], says(0, ""));
    node.wait_status("web", &["\"ready\":true"]).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_this_node_does_not_serve_is_said_and_the_pod_waits() {
    let volumes = [
        (
            json!({ "image": { "reference": "x" } }),
            "volumes of kind image are not served",
        ),
        (
            json!({ "projected": { "sources": [{ "clusterTrustBundle": { "path": "p" } }] } }),
            "clusterTrustBundle are not served on this node",
        ),
    ];
    for (source, sentence) in volumes {
        let mut volume = source;
        volume["name"] = json!("v");
        let node = Start::with(&[pod(
            "u1",
            json!({ "nodeName": "edge-1", "volumes": [volume],
                "containers": [{ "name": "c", "image": "web:1", "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }] }),
        )])
        .node();
        node.wait_event(&["FailedMount", sentence]).await;
        node.wait_status("web", &["\"phase\":\"Pending\"", "ContainerCreating"])
            .await;
        node.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_shuts_down_ends_its_pods_and_is_not_ready() {
    let mut system = named("dns", "u2", plain());
    system["spec"]["priority"] = json!(2_000_000_000);
    let start = Start {
        configure: |config| {
            let seconds = Duration::from_secs;
            config.shutdown = kedge_pods::shutdown::Rules::of(seconds(30), seconds(10));
        },
        ..Start::with(&[pod("u1", plain()), system])
    };
    let node = start.node();
    for name in ["web", "dns"] {
        node.wait_status(name, &["\"phase\":\"Running\""]).await;
    }
    node.stops
        .ask(kedge_edged::MachineStops, Duration::from_secs(60))
        .await
        .unwrap();
    assert!(!node.containers().await.iter().any(is_running));
    for name in ["web", "dns"] {
        node.wait_status(
            name,
            &[
                "\"phase\":\"Failed\"",
                "\"reason\":\"Terminated\"",
                "imminent node shutdown",
            ],
        )
        .await;
    }
    let patch = node.wait_told("not ready", says_ready("False")).await;
    assert!(patch.contains("node is shutting down"), "{patch}");
    node.set(ObjectKind::Pod, &named("late", "u3", plain()));
    node.wait_status("late", &["\"phase\":\"Failed\"", "\"reason\":\"NodeShutdown\""])
        .await;
    node.stop().await;
}

/// A small disk of its own below a directory, and nothing but that.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        kedge_host::mounts::mount_tmpfs(&at, Some(1 << 20)).unwrap();
        Self(at)
    }

    /// Until not one byte more can be written.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("ballast")).unwrap();
        for piece in [1 << 16, 1] {
            let bytes = vec![0; piece];
            while std::io::Write::write_all(&mut file, &bytes).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = kedge_host::mounts::detach(&self.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_keeps_new_pods_waiting_and_harms_no_other() {
    if !kedge_host::is_root() {
        eprintln!("not root: nothing can be mounted");
        return;
    }
    let settings = |value: &str| json!({ "metadata": { "name": "settings", "namespace": "default" }, "data": { "a": value } });
    let mounting = |container: &str| {
        json!({ "nodeName": "edge-1",
            "volumes": [{ "name": "s", "configMap": { "name": "settings" } }],
            "containers": [{ "name": container, "image": "web:1", "volumeMounts": [{ "name": "s", "mountPath": "/s" }] }] })
    };
    let start = Start::with(&[pod("u1", mounting("c"))]);
    // The directory goes after the disk in it.
    let root = Arc::clone(&start.root);
    let disk = Disk::mount(root.join("pods"));
    let node = start.node();
    node.set(ObjectKind::ConfigMap, &settings("1"));
    let before = node.wait_running("c").await;
    let value = disk.0.join("u1/volumes/kubernetes.io~configmap/s/a");
    disk.fill();
    node.set(ObjectKind::Pod, &named("late", "u2", mounting("d")));
    node.set(ObjectKind::ConfigMap, &settings("2"));
    node.wait_event(&["FailedMount", "No space left on device"]).await;
    node.wait_status("late", &["\"phase\":\"Pending\""]).await;
    assert_eq!(
        std::fs::read_to_string(&value).unwrap(),
        "1",
        "the old one is whole"
    );
    disk.free();
    node.wait_running("d").await;
    wait("the volume follows", async || {
        (std::fs::read_to_string(&value).ok()? == "2").then_some(())
    })
    .await;
    let after = node.wait_running("c").await;
    assert_eq!((after.id, after.attempt), (before.id, 0));
    node.stop().await;
}
