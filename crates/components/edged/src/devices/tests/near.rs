//! Devices and CPUs of a container from one bank.

use super::*;
use crate::pinning::{CpuRules, Rules, prepare};
use kedge_pods::pinning::{Alignment, CpuOptions, CpuReserve, Policy, Scope as Together};

/// Two banks of three CPUs each.
fn build_machine(top: &Path) {
    let write = |file: &str, text: &str| {
        let file = top.join("sys/devices/system").join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    };
    write("cpu/online", "0-5\n");
    write("node/online", "0-1\n");
    for (node, cpus) in [(0, "0-2"), (1, "3-5")] {
        write(&format!("node/node{node}/cpulist"), cpus);
        write(
            &format!("node/node{node}/meminfo"),
            &format!("Node {node} MemTotal: 1024 kB\n"),
        );
    }
}

fn start(dir: &Path, node: &Node, policy: Policy, scope: Together) -> Pinning {
    build_machine(dir);
    let rules = Rules {
        cpus: Some(CpuRules {
            options: CpuOptions::default(),
            reserve: CpuReserve::Count(1),
        }),
        alignment: Alignment {
            policy,
            scope,
            ..Alignment::default()
        },
        ..Rules::default()
    };
    let prepared = prepare(&rules, &kedge_host::Root::at(dir), dir).unwrap();
    let runtime = Arc::new(kedge_runtime::Hollow::default());
    let (pods, seen) = (node.pods.subscribe(), node._seen.subscribe());
    Pinning::start(prepared, runtime, pods, seen, Clock::start(), &node.scope)
}

/// A guaranteed pod; each container has so many CPUs and cameras.
fn asking(uid: &str, containers: &[(u32, u32)]) -> Pod {
    let container = |(place, (cpus, cameras)): (usize, &(u32, u32))| {
        json!({ "name": format!("c{place}"), "image": "i", "resources": {
            "limits": { "cpu": cpus.to_string(), "memory": "1Mi", CAMERA: cameras.to_string() } } })
    };
    let containers: Vec<serde_json::Value> = containers.iter().enumerate().map(container).collect();
    let pod = json!({
        "metadata": { "name": uid, "namespace": "default", "uid": uid },
        "spec": { "containers": containers },
    });
    serde_json::from_value(pod).unwrap()
}

/// What the pod has of everything, or why not.
async fn given(node: &Node, pinning: &Pinning, pod: &Pod) -> String {
    if let Err(refusal) = pinning.allocate(pod, &node.devices, false).await {
        return refusal.reason;
    }
    let mut lines = Vec::new();
    for container in &pod.spec.containers {
        let mut resources = kedge_containers::Resources::default();
        pinning.place(pod.uid(), &container.name, &mut resources);
        let allocated = node.devices.container(pod.uid(), &container.name).await.unwrap();
        let env: Vec<&str> = allocated.env.iter().map(|(_, value)| value.as_str()).collect();
        lines.push(format!("{} {}", resources.cpuset_cpus.unwrap(), env.join(",")));
    }
    lines.join("; ")
}

const LIST: [(&str, bool); 4] = [("a@0", true), ("b@1", true), ("c@1", true), ("d@0", false)];

#[tokio::test]
async fn a_container_gets_both_from_one_bank_or_nothing() {
    let dir = Dir::new();
    let node = Node::start(&dir.0).await;
    let pinning = start(&dir.0, &node, Policy::SingleNumaNode, Together::Container);
    let plugin = Plugin::start(&dir.0, &LIST).await;
    node.wait_counts(3, 4).await;
    node.run(&["p", "q", "r", "s"]);
    assert_eq!(given(&node, &pinning, &asking("p", &[(1, 1)])).await, "1 a@0");
    // There is a CPU in the first bank, but no camera.
    assert_eq!(given(&node, &pinning, &asking("q", &[(1, 1)])).await, "3 c@1");
    // The first container would get something, the second does not: nothing is kept.
    let refused = given(&node, &pinning, &asking("r", &[(1, 1), (2, 1)])).await;
    assert_eq!(refused, "TopologyAffinityError");
    assert_eq!(given(&node, &pinning, &asking("s", &[(2, 1)])).await, "4-5 b@1");
    plugin.stop().await;
    node.stop().await;
}

#[tokio::test]
async fn a_pod_as_a_whole_from_one_bank() {
    let dir = Dir::new();
    let node = Node::start(&dir.0).await;
    let pinning = start(&dir.0, &node, Policy::Restricted, Together::Pod);
    let plugin = Plugin::start(&dir.0, &LIST).await;
    node.wait_counts(3, 4).await;
    node.run(&["p", "q"]);
    let both = asking("p", &[(1, 1), (2, 1)]);
    assert_eq!(given(&node, &pinning, &both).await, "3 c@1; 4-5 b@1");
    assert_eq!(
        given(&node, &pinning, &both).await,
        "3 c@1; 4-5 b@1",
        "asked again"
    );
    let too_much = asking("q", &[(2, 1), (1, 0)]);
    assert_eq!(given(&node, &pinning, &too_much).await, "TopologyAffinityError");
    assert_eq!(given(&node, &pinning, &asking("q", &[(2, 1)])).await, "1-2 a@0");
    plugin.stop().await;
    node.stop().await;
}
