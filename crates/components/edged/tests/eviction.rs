//! A node that runs short of something.

#![allow(clippy::unwrap_used)] // a test that cannot go on shall stop

mod site;

use kedge_edged::Config;
use kedge_host::Root;
use kedge_pods::eviction::{Amount, Rules, Signal, Threshold};
use kedge_runtime::hollow::ContainerUsage;
use kedge_wire::{ObjectKey, ObjectKind, Operation};
use serde_json::{Value, json};
use site::{Node, Start, is_running, named, plain, wait, with};
use std::path::Path;
use std::time::Duration;

const MI: u64 = 1 << 20;

/// A machine whose memory the test decides, and whose disks are never short.
fn memory_only(config: &mut Config) {
    let machine = config.root_dir.join("machine");
    write_memory(&config.root_dir, 4096);
    config.machine = Root::at(machine);
    let memory = Threshold::hard(Signal::MemoryAvailable, Amount::Absolute(100 * MI));
    config.eviction = Some(Rules {
        thresholds: vec![memory],
        ..Rules::default()
    });
}

fn write_memory(root: &Path, available_mi: u64) {
    let proc = root.join("machine/proc");
    std::fs::create_dir_all(&proc).unwrap();
    let text = format!(
        "MemTotal: {} kB\nMemAvailable: {} kB\n",
        8192 * 1024,
        available_mi * 1024
    );
    std::fs::write(proc.join("meminfo.new"), text).unwrap();
    std::fs::rename(proc.join("meminfo.new"), proc.join("meminfo")).unwrap();
}

fn start(pods: &[Value], configure: fn(&mut Config)) -> Node {
    Start {
        configure,
        ..Start::with(pods)
    }
    .node()
}

/// The container of the pod, when it runs.
async fn wait_up(node: &Node, pod: &str) {
    node.wait_status(pod, &["\"phase\":\"Running\""]).await;
}

async fn use_memory(node: &Node, pod: &str, bytes: u64) {
    use kedge_runtime::Runtime as _;
    let list = node.runtime.hollow.list().await.unwrap();
    let sandbox = list.iter().find(|sandbox| sandbox.pod.name == pod).unwrap();
    let usage = ContainerUsage {
        memory_bytes: bytes,
        ..ContainerUsage::default()
    };
    node.runtime
        .hollow
        .use_resources(&sandbox.containers[0].id, usage);
}

fn is_condition(operation: &Operation, key: &ObjectKey, body: &str, reason: &str) -> bool {
    *operation == Operation::Patch && key.kind == ObjectKind::NodePatch && body.contains(reason)
}

#[tokio::test(start_paused = true)]
async fn the_greediest_pod_goes_when_memory_ends() {
    let modest = with(&json!({ "resources": { "requests": { "memory": "1Gi" } } }));
    let node = start(
        &[named("modest", "u1", modest), named("greedy", "u2", plain())],
        memory_only,
    );
    wait_up(&node, "modest").await;
    wait_up(&node, "greedy").await;
    use_memory(&node, "modest", 900 * MI).await;
    use_memory(&node, "greedy", 300 * MI).await;
    write_memory(&node.root, 50);
    node.wait_told("the pressure is told", |operation, key, body| {
        is_condition(operation, key, body, "KubeletHasInsufficientMemory")
    })
    .await;
    let status = node.wait_status("greedy", &["\"phase\":\"Failed\""]).await;
    assert_eq!(status["status"]["reason"], "Evicted");
    assert_eq!(
        status["status"]["message"],
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 300Mi, request is 0, has larger consumption of memory. "
    );
    write_memory(&node.root, 2048);
    node.wait_event(&["EvictionThresholdMet", "Attempting to reclaim memory"])
        .await;
    node.wait_event(&["\"Evicted\"", "The node was low on resource: memory."])
        .await;
    // A pod without a promise is refused as long as the pressure lasts, one with a promise is not.
    node.set(ObjectKind::Pod, &named("late", "u3", plain()));
    let refused = node.wait_status("late", &["\"phase\":\"Failed\""]).await;
    assert_eq!(refused["status"]["reason"], "Evicted");
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("The node had condition: [MemoryPressure]."),
        "{message}"
    );
    let promised = with(&json!({ "resources": { "requests": { "memory": "1Mi" } } }));
    node.set(ObjectKind::Pod, &named("promised", "u4", promised));
    wait_up(&node, "promised").await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    node.wait_told("the pressure has ended", |operation, key, body| {
        is_condition(operation, key, body, "KubeletHasSufficientMemory")
    })
    .await;
    let running = node.containers().await.into_iter().filter(is_running).count();
    assert_eq!(running, 2, "the modest pod and the promised one");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_pod_at_a_time_until_there_is_enough_and_never_a_critical_one() {
    let critical = || {
        let mut spec = plain();
        spec["priority"] = json!(2_000_001_000);
        spec
    };
    let node = start(
        &[
            named("system", "u1", critical()),
            named("one", "u2", plain()),
            named("two", "u3", plain()),
        ],
        memory_only,
    );
    for pod in ["system", "one", "two"] {
        wait_up(&node, pod).await;
    }
    use_memory(&node, "two", 2 * MI).await;
    use_memory(&node, "one", MI).await;
    write_memory(&node.root, 10);
    node.wait_status("two", &["\"phase\":\"Failed\"", "Evicted"])
        .await;
    node.wait_status("one", &["\"phase\":\"Failed\"", "Evicted"])
        .await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let running: Vec<_> = node.containers().await.into_iter().filter(is_running).collect();
    assert_eq!(running.len(), 1, "the critical pod stays");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fills_its_volume_goes() {
    let spec = json!({ "nodeName": "edge-1",
        "volumes": [{ "name": "scratch", "emptyDir": { "sizeLimit": "1Mi" } }],
        "containers": [{ "name": "c", "image": "web:1", "volumeMounts": [{ "name": "scratch", "mountPath": "/s" }] }] });
    let node = start(&[named("web", "u1", spec)], |config| {
        memory_only(config);
        config.eviction = Some(Rules {
            thresholds: Vec::new(),
            ..Rules::default()
        });
    });
    wait_up(&node, "web").await;
    let volume = node.root.join("pods/u1/volumes/kubernetes.io~empty-dir/scratch");
    wait("the volume is there", async || volume.is_dir().then_some(())).await;
    std::fs::write(volume.join("big"), vec![1; 2 << 20]).unwrap();
    let status = node.wait_status("web", &["\"phase\":\"Failed\""]).await;
    assert_eq!(
        status["status"]["message"],
        "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". "
    );
    node.stop().await;
}
