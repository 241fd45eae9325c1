//! Which pods the node takes, and what it tells those that it does not.

use super::stories::deleted;
use super::{World, check, config, node, pod};
use crate::eviction::Pressures;
use crate::{Amounts, Config, Eviction, Refusal};
use expect_test::expect;
use kedge_api::{Pod, Quantity, Taint};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;

fn amounts(list: &[(&str, &str)]) -> Amounts {
    let pair = |(name, text): &(&str, &str)| ((*name).to_owned(), Quantity::parse(text).unwrap());
    list.iter().map(pair).collect()
}

fn small_node() -> World {
    let list = [
        ("cpu", "1"),
        ("memory", "1Gi"),
        ("ephemeral-storage", "1Gi"),
        ("pods", "4"),
        ("vendor.example/gpu", "1"),
    ];
    let mut world = World::with(Config {
        allocatable: amounts(&list),
        ..config()
    });
    world.pods.handle_node(node(), world.now);
    world
}

fn asking(name: &str, requests: Value) -> Pod {
    let spec = json!({ "containers": [
        { "name": "c", "image": "web:1", "resources": { "requests": requests, "limits": requests } },
    ] });
    pod(name, &format!("uid-{name}"), spec)
}

/// The last word of the node about a pod: phase, reason and message.
fn verdict(world: &World, name: &str) -> String {
    let known = world.pods.known().find(|known| known.pod.metadata.name == name);
    let status = known.unwrap().status;
    format!(
        "{name}: {:?} {} {}",
        status.phase.unwrap(),
        status.reason.as_deref().unwrap_or("-"),
        status.message.as_deref().unwrap_or("-")
    )
}

#[test]
fn what_does_not_fit_is_told_in_the_words_of_a_kubelet() {
    let rows: Vec<(&str, Value)> = vec![
        ("cpu", json!({ "requests": { "cpu": "1500m" } })),
        ("memory", json!({ "requests": { "memory": "2Gi" } })),
        ("disk", json!({ "requests": { "ephemeral-storage": "2Gi" } })),
        ("pages", json!({ "requests": { "hugepages-2Mi": "4Mi" } })),
        (
            "gpu",
            json!({ "requests": { "vendor.example/gpu": "2" }, "limits": { "vendor.example/gpu": "2" } }),
        ),
        ("other-gpu", json!({ "requests": { "nobody.example/gpu": "2" } })),
    ];
    let mut lines = Vec::new();
    for (name, resources) in rows {
        let mut world = small_node();
        let containers = json!([{ "name": "c", "image": "web:1", "resources": resources }]);
        world.want(pod(name, "u", json!({ "containers": containers })));
        lines.push(verdict(&world, name));
    }
    let specs = vec![
        ("selector", json!({ "nodeSelector": { "zone": "b" } })),
        ("fitting-selector", json!({ "nodeSelector": { "zone": "a" } })),
        (
            "affinity",
            json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "zone", "operator": "NotIn", "values": ["a"] }] }] } } } }),
        ),
        (
            "fitting-affinity",
            json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["edge-1"] }] }] } } } }),
        ),
        ("windows", json!({ "os": { "name": "windows" } })),
        (
            "sysctl",
            json!({ "securityContext": { "sysctls": [{ "name": "kernel.msgmax", "value": "1" }] } }),
        ),
        (
            "safe-sysctl",
            json!({ "securityContext": { "sysctls": [{ "name": "net/ipv4/tcp_syncookies", "value": "1" }] } }),
        ),
        (
            "host-sysctl",
            json!({ "hostNetwork": true, "securityContext": { "sysctls": [{ "name": "net.ipv4.tcp_syncookies", "value": "1" }] } }),
        ),
    ];
    for (name, mut spec) in specs {
        let mut world = small_node();
        spec["containers"] = json!([{ "name": "c", "image": "web:1" }]);
        world.want(pod(name, "u", spec));
        lines.push(verdict(&world, name));
    }
    expect![[r#"
        cpu: Failed OutOfcpu Pod was rejected: Node didn't have enough resource: cpu, requested: 1500, used: 0, capacity: 1000
        memory: Failed OutOfmemory Pod was rejected: Node didn't have enough resource: memory, requested: 2147483648, used: 0, capacity: 1073741824
        disk: Failed OutOfephemeral-storage Pod was rejected: Node didn't have enough resource: ephemeral-storage, requested: 2147483648, used: 0, capacity: 1073741824
        pages: Failed OutOfhugepages-2Mi Pod was rejected: Node didn't have enough resource: hugepages-2Mi, requested: 4194304, used: 0, capacity: 0
        gpu: Failed OutOfvendor.example/gpu Pod was rejected: Node didn't have enough resource: vendor.example/gpu, requested: 2, used: 0, capacity: 1
        other-gpu: Running - -
        selector: Failed NodeAffinity Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector
        fitting-selector: Running - -
        affinity: Failed NodeAffinity Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector
        fitting-affinity: Running - -
        windows: Failed PodOSNotSupported Pod was rejected: Failed to admit pod as the OS field doesn't match node OS
        sysctl: Failed SysctlForbidden Pod was rejected: forbidden sysctl: "kernel.msgmax" not allowlisted
        safe-sysctl: Running - -
        host-sysctl: Failed SysctlForbidden Pod was rejected: forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host net enabled
    "#]].assert_eq(&(lines.join("\n") + "\n"));
}

#[test]
fn ports_taints_and_pressures() {
    let with_port = |name: &str, ip: &str| {
        let ports = json!([{ "containerPort": 80, "hostPort": 8080, "hostIP": ip }]);
        let spec = json!({ "containers": [{ "name": "c", "image": "web:1", "ports": ports }] });
        pod(name, &format!("uid-{name}"), spec)
    };
    let mut world = small_node();
    world.want(with_port("first", "127.0.0.1"));
    world.want(with_port("second", "127.0.0.2"));
    world.want(with_port("third", ""));
    let mut facts = node();
    facts.taints.push(Taint {
        key: "maintenance".to_owned(),
        effect: "NoExecute".to_owned(),
        ..Taint::default()
    });
    world.pods.handle_node(facts, world.now);
    world.want(asking("tainted", json!({})));
    world.pods.handle_node(node(), world.now);
    world.pods.handle_pressures(Pressures {
        memory: true,
        ..Pressures::default()
    });
    world.want(asking("humble", json!({})));
    world.want(asking("burstable", json!({ "cpu": "100m" })));
    let names = ["first", "second", "third", "tainted", "humble", "burstable"];
    let lines: Vec<String> = names.iter().map(|name| verdict(&world, name)).collect();
    expect![[r#"
        first: Running - -
        second: Running - -
        third: Failed NodePorts Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports
        tainted: Failed TaintToleration Pod was rejected: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate
        humble: Failed Evicted Pod was rejected: The node had condition: [MemoryPressure]. 
        burstable: Running - -
    "#]].assert_eq(&(lines.join("\n") + "\n"));
}

#[test]
fn a_full_node_refuses_and_waits_for_what_is_leaving() {
    let mut world = small_node();
    world.stubborn = true;
    world.want(asking("old", json!({ "cpu": "600m" })));
    world.want(asking("refused", json!({ "cpu": "500m" })));
    world.want(deleted(asking("old", json!({ "cpu": "600m" })), 30));
    world.want(asking("patient", json!({ "cpu": "500m" })));
    world.log.push("-- old ends".to_owned());
    world.stops_end();
    world.forget("old");
    check(
        &world,
        &expect![[r#"
        0s volumes old
        0s report old: Pending [c ContainerCreating]
        0s sandbox old#0
        0s start c#0
        0s report old: Running ready [c running]
        0s event OutOfcpu: Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000
        0s report refused: Failed OutOfcpu []
        0s event Killing: Stopping container c
        0s stop c grace 30s
        0s report patient: Pending [c ContainerCreating]
        -- old ends
        0s remove 1 sandboxes of old
        0s report old: Failed [c exited 143]
        0s volumes patient
        0s sandbox patient#0
        0s remove volumes of old
        0s start c#0
        0s report deleted old uid-old
        0s report patient: Running ready [c running]
    "#]],
    );
}

#[test]
fn a_critical_pod_makes_room() {
    let mut world = small_node();
    world.want(asking("guaranteed", json!({ "cpu": "400m", "memory": "64Mi" })));
    world.want(asking("burstable", json!({ "cpu": "300m" })));
    let spec = json!({ "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": "200m" } } }] });
    world.want(pod("small", "uid-small", spec));
    let mut critical = asking("critical", json!({ "cpu": "300m" }));
    critical.spec.priority = Some(2_000_001_000);
    world.log.push("-- a critical pod comes".to_owned());
    world.want(critical);
    let mut hopeless = asking("hopeless", json!({ "cpu": "1500m" }));
    hopeless.spec.priority = Some(2_000_001_000);
    world.want(hopeless);
    check(
        &world,
        &expect![[r#"
            0s volumes guaranteed
            0s report guaranteed: Pending [c ContainerCreating]
            0s sandbox guaranteed#0
            0s start c#0
            0s report guaranteed: Running ready [c running]
            0s volumes burstable
            0s report burstable: Pending [c ContainerCreating]
            0s sandbox burstable#0
            0s start c#0
            0s report burstable: Running ready [c running]
            0s volumes small
            0s report small: Pending [c ContainerCreating]
            0s sandbox small#0
            0s start c#0
            0s report small: Running ready [c running]
            -- a critical pod comes
            0s event Preempting: Preempted in order to admit critical pod
            0s event Killing: Stopping container c
            0s stop c grace 30s
            0s volumes critical
            0s report critical: Pending [c ContainerCreating]
            0s stop sandbox of small
            0s report small: Failed Preempting [c exited 143]
            0s sandbox critical#0
            0s remove volumes of small
            0s start c#0
            0s report critical: Running ready [c running]
            0s event UnexpectedAdmissionError: Unexpected error while attempting to recover from admission failure: preemption: no set of running pods found to reclaim resources: [cpu (lacking 1500)]
            0s report hopeless: Failed UnexpectedAdmissionError []
        "#]],
    );
}

#[test]
fn devices_are_asked_for_once_and_a_refusal_rejects() {
    let mut world = small_node();
    let refusal = Refusal::new(
        "UnexpectedAdmissionError",
        "Allocate failed due to requested number of devices unavailable for vendor.example/gpu. Requested: 1, Available: 0, which is unexpected",
    );
    world
        .refusals
        .insert("devices".to_owned(), VecDeque::from([refusal]));
    world.want(asking("unlucky", json!({ "vendor.example/gpu": "1" })));
    world.want(asking("lucky", json!({ "vendor.example/gpu": "1" })));
    world.exit("c", 1);
    world.restart();
    world.want(asking("lucky", json!({ "vendor.example/gpu": "1" })));
    check(
        &world,
        &expect![[r#"
        0s devices unlucky
        0s report unlucky: Pending [c ContainerCreating]
        0s event UnexpectedAdmissionError: Allocate failed due to requested number of devices unavailable for vendor.example/gpu. Requested: 1, Available: 0, which is unexpected
        0s report unlucky: Failed UnexpectedAdmissionError []
        0s devices lucky
        0s report lucky: Pending [c ContainerCreating]
        0s volumes lucky
        0s sandbox lucky#0
        0s start c#0
        0s report lucky: Running ready [c running]
        -- c exits with 1
        0s start c#1
        0s report lucky: Running [c exited 1]
        0s report lucky: Running ready [c running x1 (was exited 1)]
        -- restart
        0s volumes lucky
        0s report lucky: Running ready [c running x1 (was exited 1)]
    "#]],
    );
}

#[test]
fn less_to_give_leaves_what_runs() {
    let mut world = small_node();
    world.want(asking("first", json!({ "cpu": "800m" })));
    world
        .pods
        .handle_allocatable(amounts(&[("cpu", "500m")]), world.now);
    world.run();
    world.want(asking("second", json!({ "cpu": "100m" })));
    let lines = [verdict(&world, "first"), verdict(&world, "second")];
    expect![[r#"
        first: Running - -
        second: Failed OutOfcpu Pod was rejected: Node didn't have enough resource: cpu, requested: 100, used: 800, capacity: 500
    "#]].assert_eq(&(lines.join("\n") + "\n"));
}

#[test]
fn an_evicted_pod_ends_with_its_reason_and_stays_ended() {
    let mut world = World::new();
    let spec =
        json!({ "terminationGracePeriodSeconds": 20, "containers": [{ "name": "c", "image": "web:1" }] });
    world.want(pod("web", "u1", spec.clone()));
    world.stubborn = true;
    let eviction = Eviction {
        reason: "Evicted".to_owned(),
        message: "The node was low on resource: memory. ".to_owned(),
        grace: Duration::from_secs(1),
    };
    world.pods.handle_evict("u1", &eviction, world.now);
    world.run();
    assert_eq!(
        world.pods.running().len(),
        1,
        "its memory is not free before it has ended"
    );
    world.stops_end();
    world.pods.handle_evict("u1", &eviction, world.now);
    world.run();
    assert!(world.pods.running().is_empty());
    let known = world.pods.known().next().unwrap();
    let told = known
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == "DisruptionTarget")
        .unwrap();
    assert_eq!(
        (
            told.status.as_str(),
            told.reason.as_deref(),
            told.message.as_deref()
        ),
        (
            "True",
            Some("TerminationByKubelet"),
            Some("The node was low on resource: memory. ")
        )
    );
    let mut known = pod("web", "u1", spec);
    known.status = known_status(&world);
    world.restart();
    world.want(known);
    check(
        &world,
        &expect![[r#"
        0s volumes web
        0s report web: Pending [c ContainerCreating]
        0s sandbox web#0
        0s start c#0
        0s report web: Running ready [c running]
        0s event Evicted: The node was low on resource: memory. 
        0s event Killing: Stopping container c
        0s stop c grace 1s
        0s stop sandbox of web
        0s report web: Failed Evicted [c exited 143]
        0s remove volumes of web
        0s remove 1 sandboxes of web
        -- restart
        0s remove volumes of web
        0s report web: Failed Evicted [c exited 143]
    "#]],
    );
}

pub(super) fn known_status(world: &World) -> kedge_api::PodStatus {
    world.pods.known().next().unwrap().status.as_ref().clone()
}

#[test]
fn where_containers_are_bound_every_pod_asks_and_one_that_stands_goes_on_without() {
    let mut world = World::with(Config {
        pins: true,
        ..config()
    });
    let refusal = || Refusal::new("SMTAlignmentError", "requested 3 cpus");
    world
        .refusals
        .insert("devices".to_owned(), VecDeque::from([refusal()]));
    world.want(pod(
        "odd",
        "u0",
        json!({ "containers": [{ "name": "c", "image": "i" }] }),
    ));
    let even = || {
        pod(
            "even",
            "u1",
            json!({ "containers": [{ "name": "c", "image": "i" }] }),
        )
    };
    world.want(even());
    world.restart();
    world
        .refusals
        .insert("devices".to_owned(), VecDeque::from([refusal()]));
    world.want(even());
    check(
        &world,
        &expect![[r#"
        0s devices odd
        0s report odd: Pending [c ContainerCreating]
        0s event SMTAlignmentError: requested 3 cpus
        0s report odd: Failed SMTAlignmentError []
        0s devices even
        0s report even: Pending [c ContainerCreating]
        0s volumes even
        0s sandbox even#0
        0s start c#0
        0s report even: Running ready [c running]
        -- restart
        0s devices even
        0s report even: Running ready [c running]
        0s volumes even
    "#]],
    );
}
