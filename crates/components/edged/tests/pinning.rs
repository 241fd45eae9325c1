//! Containers that have CPUs to themselves: edged with the hollow runtime on a machine that consists of files.

#![allow(clippy::unwrap_used)] // a test that cannot go on shall stop

mod site;

use kedge_api::PodPhase;
use kedge_edged::{Config, CpuRules, Pinning};
use kedge_pods::pinning::{Alignment, CpuOptions, CpuReserve, Policy};
use kedge_wire::ObjectKind;
use serde_json::{Value, json};
use site::{Node, Start, deleted, named, wait};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Two sockets with two cores each, whose second threads are numbered behind all first ones.
fn build_machine(top: &Path) {
    let write = |file: &str, text: &str| {
        let file = top.join("sys/devices/system").join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    };
    write("cpu/online", "0-7\n");
    write("node/online", "0-1\n");
    for cpu in 0..8 {
        let core = cpu % 4;
        let topology = format!("cpu/cpu{cpu}/topology");
        write(
            &format!("{topology}/core_cpus_list"),
            &format!("{core},{}\n", core + 4),
        );
        write(
            &format!("{topology}/physical_package_id"),
            &format!("{}\n", core / 2),
        );
    }
    for (node, cpus) in [(0, "0-1,4-5"), (1, "2-3,6-7")] {
        write(&format!("node/node{node}/cpulist"), cpus);
        write(
            &format!("node/node{node}/meminfo"),
            &format!("Node {node} MemTotal: 1048576 kB\n"),
        );
        write(
            &format!("node/node{node}/distance"),
            if node == 0 { "10 21" } else { "21 10" },
        );
    }
}

fn with(config: &mut Config, options: CpuOptions, policy: Policy) {
    let top = config.root_dir.join("machine");
    build_machine(&top);
    config.machine = kedge_host::Root::at(top);
    config.pinning = Pinning {
        cpus: Some(CpuRules {
            options,
            reserve: CpuReserve::Count(1),
        }),
        alignment: Alignment {
            policy,
            ..Alignment::default()
        },
        ..Pinning::default()
    };
}

fn fixed(config: &mut Config) {
    with(config, CpuOptions::default(), Policy::None);
}

fn whole_cores(config: &mut Config) {
    let options = CpuOptions {
        full_cores: true,
        ..CpuOptions::default()
    };
    with(config, options, Policy::None);
}

fn one_bank(config: &mut Config) {
    with(config, CpuOptions::default(), Policy::SingleNumaNode);
}

/// The same machine, nobody has CPUs alone.
fn nothing(config: &mut Config) {
    fixed(config);
    config.pinning = Pinning::default();
}

/// A guaranteed pod with one container `c`.
fn guaranteed(name: &str, uid: &str, cpu: &str) -> Value {
    let spec = json!({ "nodeName": "edge-1", "containers": [{ "name": "c", "image": "web:1",
        "resources": { "limits": { "cpu": cpu, "memory": "64Mi" } } }] });
    named(name, uid, spec)
}

fn plain(name: &str, uid: &str) -> Value {
    named(name, uid, site::plain())
}

fn start(pods: &[Value], configure: fn(&mut Config)) -> Start {
    Start {
        configure,
        ..Start::with(pods)
    }
}

/// Another life of the agent, with the same containers and files.
fn again(node: &Node, pods: &[Value], configure: fn(&mut Config)) -> Node {
    Start {
        runtime: Arc::clone(&node.runtime),
        root: Arc::clone(&node.root),
        ..start(pods, configure)
    }
    .node()
}

async fn runs_on(node: &Node, name: &str, cpus: &str) {
    let there = async || (node.runtime.cpus(name).as_deref() == Some(cpus)).then_some(());
    wait(&format!("{name} runs on {cpus}"), there).await;
}

async fn runs(node: &Node, pod: &str) {
    node.wait_status(pod, &["\"phase\":\"Running\""]).await;
}

fn state(node: &Node) -> String {
    std::fs::read_to_string(node.root.join("cpu_manager_state")).unwrap()
}

async fn state_says(node: &Node, text: &str) {
    let says = async || state(node).contains(text).then_some(());
    wait(&format!("the file says {text}"), says).await;
}

#[tokio::test(start_paused = true)]
async fn a_guaranteed_container_has_its_cpus_alone_and_gives_them_back() {
    let node = start(&[plain("web", "u1")], fixed).node();
    runs(&node, "web").await;
    assert_eq!(node.runtime.cpus("u1/c").as_deref(), Some("0-7"));
    node.set(ObjectKind::Pod, &guaranteed("press", "u2", "2"));
    runs(&node, "press").await;
    assert_eq!(node.runtime.cpus("u2/c").as_deref(), Some("1,5"));
    runs_on(&node, "u1/c", "0,2-4,6-7").await;
    assert_eq!(
        state(&node),
        r#"{"policyName":"static","defaultCpuSet":"0,2-4,6-7","entries":{"u2":{"c":"1,5"}},"checksum":1601175699}"#
    );
    // Half a CPU is shared, as is a container that comes later.
    node.set(ObjectKind::Pod, &guaranteed("half", "u3", "500m"));
    runs(&node, "half").await;
    assert_eq!(node.runtime.cpus("u3/c").as_deref(), Some("0,2-4,6-7"));
    node.set(ObjectKind::Pod, &deleted(guaranteed("press", "u2", "2"), 1));
    runs_on(&node, "u1/c", "0-7").await;
    runs_on(&node, "u3/c", "0-7").await;
    state_says(&node, r#""defaultCpuSet":"0-7","checksum""#).await;
    // Everyone was told once of each change.
    assert_eq!(node.runtime.count("update u1/c to 0,2-4,6-7"), 1);
    assert_eq!(node.runtime.count("update u1/c to 0-7"), 1);
    assert_eq!(node.runtime.count("update u2/c to 1,5"), 0);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_finds_its_room_still_taken_waits_for_it() {
    let node = start(&[guaranteed("old", "u1", "7")], fixed).node();
    runs(&node, "old").await;
    // Of the same name: it begins when the old one has gone.
    node.set(ObjectKind::Pod, &deleted(guaranteed("old", "u1", "7"), 1));
    node.set(ObjectKind::Pod, &guaranteed("new", "u2", "7"));
    runs(&node, "new").await;
    assert_eq!(node.runtime.cpus("u2/c").as_deref(), Some("1-7"));
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_node_cannot_give_is_refused_in_a_kubelets_words() {
    let node = start(&[guaranteed("odd", "u1", "3")], whole_cores).node();
    let odd = node.wait_status("odd", &["SMTAlignmentError"]).await;
    assert_eq!(odd["status"]["phase"], json!(PodPhase::Failed));
    assert_eq!(
        odd["status"]["message"],
        "Pod was rejected: SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2"
    );
    node.set(ObjectKind::Pod, &guaranteed("many", "u2", "8"));
    let many = node.wait_status("many", &["SMTAlignmentError"]).await;
    assert_eq!(
        many["status"]["message"],
        "Pod was rejected: SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 6, requested CPUs = 8, CPUs per core = 2"
    );
    node.wait_event(&["SMTAlignmentError", "requested 3 cpus"]).await;
    node.stop().await;

    let node = start(&[guaranteed("many", "u1", "8")], fixed).node();
    let many = node.wait_status("many", &["UnexpectedAdmissionError"]).await;
    assert_eq!(
        many["status"]["message"],
        "Pod was rejected: Allocate failed due to not enough cpus available to satisfy request: requested=8, available=7, which is unexpected"
    );
    assert_eq!(node.runtime.count("create u1/c"), 0);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_bank_or_not_at_all() {
    let node = start(&[guaranteed("near", "u1", "2")], one_bank).node();
    runs(&node, "near").await;
    assert_eq!(node.runtime.cpus("u1/c").as_deref(), Some("1,5"));
    node.set(ObjectKind::Pod, &guaranteed("next", "u2", "4"));
    runs(&node, "next").await;
    assert_eq!(node.runtime.cpus("u2/c").as_deref(), Some("2-3,6-7"));
    node.set(ObjectKind::Pod, &deleted(guaranteed("near", "u1", "2"), 1));
    runs_on(&node, "u2/c", "2-3,6-7").await;
    node.set(ObjectKind::Pod, &guaranteed("wide", "u3", "4"));
    let wide = node.wait_status("wide", &["TopologyAffinityError"]).await;
    assert_eq!(
        wide["status"]["message"],
        "Pod was rejected: Resources cannot be allocated with Topology locality"
    );
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_gives_the_same_again_and_writes_nothing() {
    let pods = [
        plain("web", "u1"),
        guaranteed("press", "u2", "2"),
        guaranteed("arm", "u3", "1"),
    ];
    let node = start(&pods, fixed).node();
    for pod in ["web", "press", "arm"] {
        runs(&node, pod).await;
    }
    let (press, arm, before) = (node.runtime.cpus("u2/c"), node.runtime.cpus("u3/c"), state(&node));
    node.stop().await;
    let written = std::fs::metadata(node.root.join("cpu_manager_state"))
        .unwrap()
        .modified()
        .unwrap();

    // As after a start of the machine: the containers have gone, the file has not.
    let containers = node.containers().await;
    for container in &containers {
        node.runtime.hollow.exit_container(&container.id, 137).unwrap();
    }
    let node = again(&node, &pods, fixed);
    let restarted = async || {
        let all = node.containers().await;
        (all.iter().filter(|c| site::is_running(c)).count() == 3).then_some(())
    };
    wait("all run again", restarted).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(
        (node.runtime.cpus("u2/c"), node.runtime.cpus("u3/c")),
        (press, arm)
    );
    assert_eq!(state(&node), before);
    let now = std::fs::metadata(node.root.join("cpu_manager_state"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(now, written, "a node at rest does not write");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_stand_are_bound_when_the_policy_changes_and_freed_when_it_changes_back() {
    let pods = [plain("web", "u1"), guaranteed("press", "u2", "2")];
    let node = start(&pods, nothing).node();
    runs(&node, "web").await;
    runs(&node, "press").await;
    assert!(!node.root.join("cpu_manager_state").exists());
    assert_eq!(node.runtime.cpus("u2/c"), None);
    node.stop().await;

    let node = again(&node, &pods, fixed);
    runs_on(&node, "u2/c", "1,5").await;
    runs_on(&node, "u1/c", "0,2-4,6-7").await;
    node.stop().await;

    let node = again(&node, &pods, nothing);
    runs_on(&node, "u2/c", "0-7").await;
    runs_on(&node, "u1/c", "0-7").await;
    state_says(
        &node,
        r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#,
    )
    .await;
    assert_eq!(node.runtime.count("create u2/c"), 1, "it ran through all that");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_file_of_another_machine_stops_nothing() {
    let node = start(&[], fixed);
    let file = node.root.join("cpu_manager_state");
    let foreign = r#"{"policyName":"static","defaultCpuSet":"0,2-4,7","entries":{"u1":{"c":"1,5"},"u2":{"c":"6,9"}},"checksum":0}"#;
    std::fs::write(&file, foreign).unwrap();
    let pods = [guaranteed("kept", "u1", "2"), guaranteed("moved", "u2", "2")];
    let node = Start {
        root: Arc::clone(&node.root),
        ..start(&pods, fixed)
    }
    .node();
    runs(&node, "kept").await;
    runs(&node, "moved").await;
    assert_eq!(node.runtime.cpus("u1/c").as_deref(), Some("1,5"));
    assert_eq!(node.runtime.cpus("u2/c").as_deref(), Some("2,6"));
    node.stop().await;

    std::fs::write(node.root.join("cpu_manager_state"), "{").unwrap();
    let node = again(&node, &pods, fixed);
    runs(&node, "kept").await;
    state_says(&node, r#""entries":{"u1":{"c":"#).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_could_not_be_told_is_told_again() {
    let node = start(&[plain("web", "u1")], fixed).node();
    runs(&node, "web").await;
    node.runtime.set_updates_fail(true);
    node.set(ObjectKind::Pod, &guaranteed("press", "u2", "2"));
    runs(&node, "press").await;
    let tried = async || (node.runtime.count("update u1/c to 0,2-4,6-7") >= 2).then_some(());
    wait("it is tried again", tried).await;
    assert_eq!(node.runtime.cpus("u1/c").as_deref(), Some("0-7"));
    node.runtime.set_updates_fail(false);
    runs_on(&node, "u1/c", "0,2-4,6-7").await;
    node.stop().await;
}

#[test]
fn a_machine_that_cannot_be_divided_so_is_said_at_the_start() {
    let root = site::root();
    let mut config = Config::new(kedge_wire::NodeName::new("edge-1").unwrap(), root.to_path_buf());
    fixed(&mut config);
    config.pinning.cpus = Some(CpuRules {
        options: CpuOptions::default(),
        reserve: CpuReserve::These("9".parse().unwrap()),
    });
    let error = Start::refused(config);
    assert_eq!(
        error,
        "bind containers to CPUs: CPUs 9 are to be reserved, but this machine has 0-7"
    );
}
