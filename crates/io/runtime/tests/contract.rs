//! What every runtime does, asked of each: the same stories for the hollow and the embedded one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use kedge_containers::{ContainerConfig, ContainerState, ExitReason, SandboxConfig};
use kedge_runtime::{Error, Hollow, Runtime};
use node::{IMAGE, Node, UNTIL_TERM, container, exit_of, find, run, wait_for, wait_for_line};
use std::time::Duration;

/// Longer than any container here needs; only reached by a broken runtime.
const GRACE: Duration = Duration::from_secs(30);

async fn contract(runtime: &dyn Runtime, node: &Node) {
    a_pod_is_born_runs_and_goes(runtime, node.sandbox("life"), container("main", UNTIL_TERM)).await;
    stopping_a_sandbox_ends_everything(runtime, node.sandbox("stop"), container("main", UNTIL_TERM)).await;
    a_created_container_that_never_ran_can_go(
        runtime,
        node.sandbox("unstarted"),
        container("main", UNTIL_TERM),
    )
    .await;
    what_is_not_there_is_said_or_no_error(runtime, node.sandbox("absent")).await;
    a_change_is_hinted(runtime, node.sandbox("hint"), container("main", UNTIL_TERM)).await;
    images_can_be_asked_for(runtime).await;
    assert_eq!(runtime.list().await.unwrap(), []);
}

async fn a_pod_is_born_runs_and_goes(runtime: &dyn Runtime, pod: SandboxConfig, config: ContainerConfig) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let [seen] = &runtime.list().await.unwrap()[..] else {
        panic!("one sandbox")
    };
    assert_eq!(
        (&seen.id, &seen.pod, seen.ready, seen.attempt),
        (&sandbox, &pod.pod, true, 0)
    );
    assert_eq!((seen.ips.len(), seen.containers.len()), (1, 0));

    let id = runtime.create_container(&sandbox, &config).await.unwrap();
    let seen = find(runtime, &id).await.unwrap();
    assert_eq!(seen.state, ContainerState::Created);
    assert_eq!(
        (seen.name.as_str(), seen.image.as_str(), seen.spec_hash.as_str()),
        ("main", IMAGE, "hash")
    );
    assert!(seen.image_ref.contains("sha256:"), "{}", seen.image_ref);
    assert_eq!(seen.log_path, pod.log_dir.join("main/0.log"));

    runtime.start_container(&id).await.unwrap();
    let state = wait_for(runtime, &id, |state| {
        matches!(state, ContainerState::Running { .. })
    })
    .await;
    let ContainerState::Running { started_ms, .. } = state else {
        unreachable!()
    };
    assert!(started_ms >= seen.created_ms);
    let again = runtime.start_container(&id).await.unwrap_err().to_string();
    assert!(again.ends_with("it was started before"), "{again}");

    let log = std::fs::read_to_string(&seen.log_path);
    assert!(log.is_ok_and(|text| text.is_empty() || text.contains(" stdout F ")));

    runtime.stop_container(&id, GRACE).await.unwrap();
    let ContainerState::Exited {
        started_ms: began,
        finished_ms,
        ..
    } = find(runtime, &id).await.unwrap().state
    else {
        panic!("a stopped container has ended when stop returns")
    };
    assert!(began == started_ms && finished_ms >= began);
    runtime.stop_container(&id, GRACE).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    assert_eq!(find(runtime, &id).await, None);
    runtime.remove_container(&id).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn stopping_a_sandbox_ends_everything(
    runtime: &dyn Runtime,
    pod: SandboxConfig,
    config: ContainerConfig,
) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let one = run(runtime, &sandbox, &config).await;
    let two = run(
        runtime,
        &sandbox,
        &ContainerConfig {
            name: "other".into(),
            ..config.clone()
        },
    )
    .await;
    runtime.stop_sandbox(&sandbox).await.unwrap();
    runtime.stop_sandbox(&sandbox).await.unwrap();
    for id in [&one, &two] {
        assert_eq!(exit_of(runtime, id).await.1, ExitReason::Error);
    }
    assert!(!runtime.list().await.unwrap()[0].ready);
    let refused = runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(refused, "create container main: its sandbox is stopped");
    runtime.remove_sandbox(&sandbox).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn a_created_container_that_never_ran_can_go(
    runtime: &dyn Runtime,
    pod: SandboxConfig,
    config: ContainerConfig,
) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let id = runtime.create_container(&sandbox, &config).await.unwrap();
    runtime.stop_container(&id, GRACE).await.unwrap();
    assert!(matches!(
        find(runtime, &id).await.unwrap().state,
        ContainerState::Exited { started_ms: 0, .. }
    ));
    runtime
        .create_container(&sandbox, &ContainerConfig { attempt: 1, ..config })
        .await
        .unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn what_is_not_there_is_said_or_no_error(runtime: &dyn Runtime, pod: SandboxConfig) {
    let nothing = kedge_containers::ContainerId("nothing".into());
    let nowhere = kedge_containers::SandboxId("nowhere".into());
    runtime.remove_container(&nothing).await.unwrap();
    runtime.remove_sandbox(&nowhere).await.unwrap();
    runtime.stop_sandbox(&nowhere).await.unwrap();
    assert!(matches!(
        runtime.stop_container(&nothing, GRACE).await,
        Err(Error::NoContainer(_))
    ));
    assert!(matches!(
        runtime.start_container(&nothing).await,
        Err(Error::NoContainer(_))
    ));
    let config = container("main", UNTIL_TERM);
    assert!(matches!(
        runtime.create_container(&nowhere, &config).await,
        Err(Error::NoSandbox(_))
    ));
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let unknown = ContainerConfig {
        image: "no/such:image".into(),
        ..config
    };
    assert!(matches!(
        runtime.create_container(&sandbox, &unknown).await,
        Err(Error::ImageNotFound { .. })
    ));
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn a_change_is_hinted(runtime: &dyn Runtime, pod: SandboxConfig, config: ContainerConfig) {
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let id = run(runtime, &sandbox, &config).await;
    wait_for_first_line(runtime, &id).await;
    let hinted = async { tokio::time::timeout(GRACE, runtime.changed()).await.is_ok() };
    let (hinted, stopped) = tokio::join!(hinted, runtime.stop_container(&id, GRACE));
    stopped.unwrap();
    assert!(hinted, "no hint that the container ended");
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

async fn wait_for_first_line(runtime: &dyn Runtime, id: &kedge_containers::ContainerId) {
    let hollow = runtime.version().await.unwrap().name == "hollow";
    wait_for_line(
        runtime,
        id,
        if hollow { "hollow container started" } else { "up" },
    )
    .await;
}

async fn images_can_be_asked_for(runtime: &dyn Runtime) {
    let image = runtime.image(IMAGE).await.unwrap().unwrap();
    assert!(image.id.starts_with("sha256:"));
    assert!(image.tags.contains(&IMAGE.to_owned()), "{image:?}");
    assert!(runtime.images().await.unwrap().contains(&image));
    runtime.remove_image(IMAGE).await.unwrap();
    assert_eq!(runtime.image(IMAGE).await.unwrap(), None);
    assert!(matches!(
        runtime.remove_image(IMAGE).await,
        Err(Error::ImageNotFound { .. })
    ));
}

#[tokio::test]
async fn hollow() {
    let node = Node::new();
    let runtime = Hollow::with_images([IMAGE.to_owned()].into());
    contract(&runtime, &node).await;
}

#[tokio::test]
async fn hollow_containers_end_by_themselves_when_told() {
    let node = Node::new();
    let runtime = Hollow::new();
    let sandbox = runtime.run_sandbox(&node.sandbox("p")).await.unwrap();
    for (attempt, code, reason) in [(0, 0, ExitReason::Completed), (1, 3, ExitReason::Error)] {
        let id = run(
            &runtime,
            &sandbox,
            &ContainerConfig {
                attempt,
                ..container("main", "")
            },
        )
        .await;
        runtime.exit_container(&id, code).unwrap();
        assert_eq!(exit_of(&runtime, &id).await, (code, reason));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded() {
    if !Node::can_run_containers() {
        return;
    }
    let node = Node::new();
    let runtime = node.runtime_with_image().await;
    contract(&runtime, &node).await;
    node.end(runtime).await;
}
