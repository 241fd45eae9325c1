//! Hooks of containers, and what they leave behind.

#![allow(clippy::unwrap_used)] // a test that cannot go on shall stop

mod site;

use kedge_containers::ExecOutput;
use kedge_runtime::hollow::ExecAnswer;
use kedge_wire::{ObjectKind, Operation};
use serde_json::json;
use site::{Start, deleted, is_running, pod, wait, with};
use std::time::Duration;
use tokio::time::Instant;

fn exits(exit_code: i32) -> ExecAnswer {
    ExecAnswer::Output(ExecOutput {
        exit_code,
        ..ExecOutput::default()
    })
}

#[tokio::test(start_paused = true)]
async fn a_post_start_hook_that_fails_ends_the_container() {
    let spec = with(&json!({ "lifecycle": { "postStart": { "exec": { "command": ["warm", "up"] } } } }));
    let start = Start::with(&[pod("u1", spec)]);
    start.runtime.hollow.answer_exec(["warm", "up"], exits(3));
    let node = start.node();
    node.wait_event(&["FailedPostStartHook", "PostStartHook failed"])
        .await;
    node.wait_status("web", &["PostStartHookError", "exited with 3"])
        .await;
    let ended = async || node.containers().await.into_iter().find(|c| !is_running(c));
    wait("the container is stopped", ended).await;
    node.runtime.hollow.answer_exec(["warm", "up"], exits(0));
    node.wait_status("web", &["\"ready\":true"]).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_runs_within_the_grace() {
    // (the hook, what it answers, the grace, what is left for the signal)
    let table = [
        (
            json!({ "exec": { "command": ["bye"] } }),
            exits(0),
            10,
            "stop within 10s",
        ),
        (
            json!({ "sleep": { "seconds": 4 } }),
            exits(0),
            10,
            "stop within 6s",
        ),
        (
            json!({ "exec": { "command": ["bye"] } }),
            ExecAnswer::Hangs,
            10,
            "stop within 2s",
        ),
    ];
    for (hook, answer, grace, left) in table {
        let spec = with(&json!({ "lifecycle": { "preStop": hook.clone() } }));
        let start = Start::with(&[pod("u1", spec.clone())]);
        start.runtime.hollow.answer_exec(["bye"], answer);
        let node = start.node();
        node.wait_running("c").await;
        let begin = Instant::now();
        node.set(ObjectKind::Pod, &deleted(pod("u1", spec), grace));
        node.wait_told("the deletion", |operation, _, _| *operation == Operation::Delete)
            .await;
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
        let calls = node.runtime.calls();
        assert_eq!(calls.last().map(String::as_str), Some(left), "{hook}: {calls:?}");
        node.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_log_is_the_last_word() {
    let spec = with(&json!({ "terminationMessagePolicy": "FallbackToLogsOnError" }));
    let node = Start::with(&[pod("u1", spec)]).node();
    let first = node.wait_running("c").await;
    node.runtime.hollow.exit_container(&first.id, 1).unwrap();
    let status = node
        .wait_status("web", &["\"restartCount\":1", "hollow container started"])
        .await;
    let last = &status["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(
        (&last["exitCode"], &last["message"]),
        (&json!(1), &json!("hollow container started"))
    );
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn logs_are_linked_turned_over_and_removed() {
    let start = Start {
        configure: |config| {
            config.log_links_dir = Some(config.root_dir.join("links"));
            // The one line of a hollow container is too much.
            config.log_rotation.bytes_max = 10;
            config.log_rotation.files_max = 3;
        },
        ..Start::with(&[pod("u1", with(&json!({})))])
    };
    start.runtime.rotate_by_agent();
    let node = start.node();
    let container = node.wait_running("c").await;
    let link = node
        .root
        .join(format!("links/web_default_c-{}.log", container.id.0));
    wait("the link is there", async || std::fs::read_link(&link).ok()).await;
    assert_eq!(std::fs::read_link(&link).unwrap(), container.log_path);
    let dir = container.log_path.parent().unwrap().to_owned();
    wait("the log is moved away", async || {
        (node.runtime.count("reopen") > 0).then_some(())
    })
    .await;
    let moved = std::fs::read_dir(&dir).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_str().unwrap().starts_with("0.log.")
    });
    assert_eq!(moved.count(), 1);
    node.set(ObjectKind::Pod, &deleted(pod("u1", with(&json!({}))), 1));
    node.wait_told("the deletion", |operation, _, _| *operation == Operation::Delete)
        .await;
    assert!(dir.exists(), "the pod can still be asked for its logs");
    node.unset(ObjectKind::Pod, "web");
    wait("the logs are gone", async || {
        (!node.root.join("logs/default_web_u1").exists() && link.symlink_metadata().is_err()).then_some(())
    })
    .await;
    node.stop().await;
}
