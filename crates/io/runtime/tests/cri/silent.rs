//! Runtimes that are away, hang, or speak something else.

use crate::connect;
use crate::node::{Node, container};
use kedge_containers::{ContainerId, SandboxId};
use kedge_runtime::{Cri, CriConfig, Error, Runtime};
use kedge_sockets::{Routes, bind, serve};
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_runtime_that_is_away_is_unavailable() {
    let node = Node::new();
    let runtime = connect(&node.directory.join("no.sock"), SHORT);
    let error = runtime.list().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("the container runtime at unix:///"), "{text}");
    assert!(
        text.contains("no.sock does not answer") && text.contains("No such file"),
        "{text}"
    );
    for error in [
        runtime.version().await.unwrap_err(),
        runtime.status().await.unwrap_err(),
        runtime.image("x").await.unwrap_err(),
        runtime.run_sandbox(&node.sandbox("p")).await.unwrap_err(),
        runtime.pull_image("x", &[]).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_no_address_is_said_at_once() {
    let config = CriConfig {
        runtime_endpoint: "npipe://x".to_owned(),
        image_endpoint: String::new(),
        cgroup_root: String::new(),
        cgroup_driver: kedge_containers::CgroupDriver::Cgroupfs,
        cgroups_per_pod: true,
        request_timeout: SHORT,
    };
    let text = Cri::connect(config).unwrap_err().to_string();
    assert_eq!(
        text,
        "connect to container runtime npipe://x: \"npipe://x\" is no address; write unix:///path/to.sock"
    );
}

#[tokio::test]
async fn a_runtime_that_never_answers_is_given_up() {
    let node = Node::new();
    let socket = node.directory.join("hung.sock");
    // The kernel accepts, nobody reads.
    let _listener = bind(&socket).unwrap();
    let runtime = connect(&socket, SHORT);
    let nothing = ContainerId("c".to_owned());
    let config = container("main", "");
    let sandbox = SandboxId("s".to_owned());
    let pod = node.sandbox("p");
    let command = ["true".to_owned()];
    for (act, error) in [
        ("list", runtime.list().await.unwrap_err()),
        ("status", runtime.status().await.unwrap_err()),
        ("run", runtime.run_sandbox(&pod).await.unwrap_err()),
        (
            "create",
            runtime
                .create_container(&sandbox, &pod, &config)
                .await
                .unwrap_err(),
        ),
        ("start", runtime.start_container(&nothing).await.unwrap_err()),
        ("stop", runtime.stop_container(&nothing, SHORT).await.unwrap_err()),
        (
            "exec",
            runtime.exec_sync(&nothing, &command, SHORT).await.unwrap_err(),
        ),
        ("stats", runtime.stats().await.unwrap_err()),
        ("images", runtime.images().await.unwrap_err()),
    ] {
        assert!(matches!(error, Error::TimedOut { .. }), "{act}: {error:?}");
    }
}

#[tokio::test]
async fn a_runtime_of_an_older_interface_is_named_as_such() {
    let node = Node::new();
    let socket = node.directory.join("old.sock");
    let server = tokio::spawn(serve(
        bind(&socket).unwrap(),
        Routes::new(),
        std::future::pending(),
    ));
    let text = connect(&socket, SHORT).version().await.unwrap_err().to_string();
    assert!(
        text.contains("does not speak version 1 of the container runtime interface"),
        "{text}"
    );
    server.abort();
}
