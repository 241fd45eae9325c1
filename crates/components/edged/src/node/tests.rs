use super::conditions::{RuntimeSight, conditions};
use super::report::Reporter;
use super::status::Sight;
use super::{addresses, object, status};
use crate::config::{self, Config};
use expect_test::{Expect, expect};
use kedge_api::{Node, NodeCondition, NodeStatus, Timestamp};
use kedge_containers::{HandlerFeatures, Image};
use kedge_host::Facts;
use kedge_pods::eviction::Pressures;
use kedge_wire::{NodeName, Time};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

fn at(seconds: u64) -> Time {
    Time::from_ms(seconds * 1000)
}

fn config() -> Config {
    Config::new(
        NodeName::new("edge-1".to_owned()).unwrap(),
        PathBuf::from("/var/lib/kubelet"),
    )
}

fn facts() -> Facts {
    Facts {
        machine_id: "machine".to_owned(),
        system_uuid: "system".to_owned(),
        boot_id: "boot".to_owned(),
        kernel_version: "6.1.0".to_owned(),
        os_image: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        operating_system: "linux".to_owned(),
        architecture: "arm64".to_owned(),
        hostname: "edge-1".to_owned(),
        addresses: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
        cpus: 4,
        memory_bytes: 4 << 30,
    }
}

fn troubles(sight: &RuntimeSight, now: u64, want: Expect) {
    let all = conditions(Pressures::default(), &sight.troubles(at(now)), &[], at(0));
    let ready = &all[3];
    want.assert_eq(&format!("{} {}: {}", ready.status, ready.reason, ready.message));
}

#[test]
fn ready_says_what_a_kubelet_says() {
    let fine = RuntimeSight {
        answered: Some(at(100)),
        answers: true,
        ..RuntimeSight::default()
    };
    troubles(
        &fine,
        100,
        expect!["True EdgeReady: edge is posting ready status"],
    );
    troubles(
        &RuntimeSight::default(),
        1,
        expect!["False KubeletNotReady: container runtime status check may not have completed yet"],
    );
    let network = RuntimeSight {
        network_trouble: Some("NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized".to_owned()),
        ..fine.clone()
    };
    troubles(
        &network,
        100,
        expect![
            "False KubeletNotReady: container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized"
        ],
    );
    let silent = RuntimeSight {
        answers: false,
        list_trouble: Some((at(130), "connection refused".to_owned())),
        ..fine.clone()
    };
    troubles(
        &silent,
        129,
        expect!["False KubeletNotReady: PLEG is not healthy: connection refused"],
    );
    troubles(
        &silent,
        130,
        expect!["False KubeletNotReady: container runtime is down"],
    );
    troubles(
        &silent,
        310,
        expect![
            "False KubeletNotReady: [container runtime is down, PLEG is not healthy: pleg was last seen active 3m0s ago; threshold is 3m0s]"
        ],
    );
    assert_eq!(
        silent.troubles(at(310)),
        silent.troubles(at(489)),
        "the message stays the same from look to look"
    );
}

#[test]
fn pressures_are_told_in_the_order_of_a_kubelet() {
    let pressures = Pressures {
        memory: true,
        disk: true,
        pid: false,
    };
    let before = conditions(Pressures::default(), &[], &[], at(1));
    let all = conditions(pressures, &[], &before, at(60));
    let row = |c: &NodeCondition| {
        let changed = c
            .last_transition_time
            .map_or("never".to_owned(), |at| format!("{at:?}"));
        format!(
            "{} {} {}: {} ({})",
            c.type_,
            c.status,
            c.reason,
            c.message,
            if changed == "never" { "as before" } else { "new" }
        )
    };
    let rows: Vec<String> = all.iter().map(row).collect();
    expect![[r#"
        MemoryPressure True KubeletHasInsufficientMemory: kubelet has insufficient memory available (new)
        DiskPressure True KubeletHasDiskPressure: kubelet has disk pressure (new)
        PIDPressure False KubeletHasSufficientPID: kubelet has sufficient PID available (as before)
        Ready True EdgeReady: edge is posting ready status (as before)"#]]
    .assert_eq(&rows.join("\n"));
}

fn ready(is: bool, changed: Option<u64>) -> NodeCondition {
    NodeCondition {
        type_: "Ready".to_owned(),
        status: if is { "True" } else { "False" }.to_owned(),
        last_transition_time: changed.map(|at| Timestamp::from_ms(at * 1000)),
        ..NodeCondition::default()
    }
}

fn looked(condition: NodeCondition, ip: &str) -> NodeStatus {
    NodeStatus {
        conditions: vec![condition],
        addresses: addresses::listed("edge-1", Some(ip)),
        ..NodeStatus::default()
    }
}

#[test]
fn a_condition_keeps_the_moment_of_its_change() {
    let since = |status: NodeStatus| status.conditions[0].last_transition_time.unwrap();
    let moment = |seconds: u64| Timestamp::from_ms(seconds * 1000);
    let mut reporter = Reporter::default();
    let status = looked(ready(true, None), "192.0.2.7");
    // It was so before this process started.
    let known = looked(ready(true, Some(10)), "192.0.2.7");
    assert_eq!(since(reporter.stamp(&status, Some(&known), at(100))), moment(10));
    assert_eq!(since(reporter.stamp(&status, None, at(200))), moment(10));
    // It changed.
    let down = looked(ready(false, Some(300)), "192.0.2.7");
    assert_eq!(since(reporter.stamp(&down, Some(&known), at(305))), moment(300));
    let up = looked(ready(true, Some(400)), "192.0.2.7");
    assert_eq!(since(reporter.stamp(&up, Some(&known), at(405))), moment(400));
    // The cloud was away, and believed something else.
    reporter.forget_times();
    let unknown = looked(ready(false, Some(500)), "192.0.2.7");
    assert_eq!(since(reporter.stamp(&up, Some(&unknown), at(600))), moment(600));
    assert_eq!(since(reporter.stamp(&up, Some(&unknown), at(700))), moment(600));
    // The cloud does not know the node.
    reporter.forget_times();
    assert_eq!(since(reporter.stamp(&up, None, at(800))), moment(400));
}

#[test]
fn only_news_are_sent() {
    let config = config::Node::default();
    let mut reporter = Reporter::default();
    let mut text = String::new();
    let mut look = |seconds: u64, ip: &str, takes: bool| {
        let status = reporter.stamp(&looked(ready(true, None), ip), None, at(0));
        let patch = reporter.patch(&config, &status, at(seconds));
        text.push_str(&format!(
            "{seconds} s: {}\n",
            patch.as_deref().unwrap_or("nothing")
        ));
        match patch {
            Some(_) if takes => reporter.sent(status, at(seconds)),
            Some(_) => reporter.forget_sent(),
            None => {}
        }
    };
    look(0, "192.0.2.7", true);
    look(10, "192.0.2.7", true);
    look(20, "192.0.2.8", false);
    look(21, "192.0.2.7", true);
    look(30, "192.0.2.8", true);
    look(329, "192.0.2.8", true);
    look(330, "192.0.2.8", true);
    let whole = |ip: &str| {
        format!(
            r#"{{"status":{{"conditions":[{{"type":"Ready","status":"True","lastHeartbeatTime":"1970-01-01T00:00:00Z","lastTransitionTime":"1970-01-01T00:00:00Z","reason":"","message":""}}],"addresses":[{{"type":"InternalIP","address":"{ip}"}},{{"type":"Hostname","address":"edge-1"}},{{"$patch":"replace"}}]"#
        )
    };
    let short = text
        .replace(&whole("192.0.2.7"), "{all of .7")
        .replace(&whole("192.0.2.8"), "{conditions and addresses of .8");
    expect![[r#"
        0 s: {all of .7,"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{"machineID":"","systemUUID":"","bootID":"","kernelVersion":"","osImage":"","containerRuntimeVersion":"","kubeletVersion":"","kubeProxyVersion":"","operatingSystem":"","architecture":""},"images":null,"volumesInUse":null,"runtimeHandlers":null}}
        10 s: nothing
        20 s: {conditions and addresses of .8}}
        21 s: {all of .7,"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{"machineID":"","systemUUID":"","bootID":"","kernelVersion":"","osImage":"","containerRuntimeVersion":"","kubeletVersion":"","kubeProxyVersion":"","operatingSystem":"","architecture":""},"images":null,"volumesInUse":null,"runtimeHandlers":null}}
        30 s: {conditions and addresses of .8}}
        329 s: nothing
        330 s: {"status":{"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":"1970-01-01T00:00:00Z","lastTransitionTime":"1970-01-01T00:00:00Z","reason":"","message":""}]}}
    "#]]
    .assert_eq(&short);
}

#[test]
fn a_node_is_made_as_the_operator_says() {
    let mut config = config();
    config.node.labels.insert("site".to_owned(), "roof".to_owned());
    config
        .node
        .labels
        .insert("kubernetes.io/os".to_owned(), "other".to_owned());
    config.node.unschedulable = true;
    config.node.taints =
        vec![serde_json::from_value(json!({ "key": "k", "value": "v", "effect": "NoExecute" })).unwrap()];
    let node = object::node(&config, &facts(), NodeStatus::default());
    let shown = json!({ "metadata": node.metadata, "spec": node.spec });
    expect![[r#"
        {
          "metadata": {
            "name": "edge-1",
            "labels": {
              "beta.kubernetes.io/arch": "arm64",
              "beta.kubernetes.io/os": "linux",
              "kubernetes.io/arch": "arm64",
              "kubernetes.io/hostname": "edge-1",
              "kubernetes.io/os": "linux",
              "node-role.kubernetes.io/agent": "",
              "node-role.kubernetes.io/edge": "",
              "site": "roof"
            },
            "annotations": {
              "volumes.kubernetes.io/controller-managed-attach-detach": "true"
            }
          },
          "spec": {
            "taints": [
              {
                "key": "k",
                "value": "v",
                "effect": "NoExecute"
              },
              {
                "key": "node.kubernetes.io/unschedulable",
                "effect": "NoSchedule"
              }
            ],
            "unschedulable": true
          }
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&shown).unwrap());
    let mut known: Node = node.clone();
    assert_eq!(object::missing(&node, &known), None);
    known
        .metadata
        .labels
        .insert("site".to_owned(), "cellar".to_owned());
    known.metadata.labels.insert("theirs".to_owned(), "x".to_owned());
    known.metadata.annotations.clear();
    expect![[r#"{"metadata":{"labels":{"site":"roof"},"annotations":{"volumes.kubernetes.io/controller-managed-attach-detach":"true"}}}"#]]
        .assert_eq(&object::missing(&node, &known).unwrap().to_string());
}

#[test]
fn the_address_is_the_one_that_is_meant() {
    let local = facts().addresses;
    let given = |ip: &str| config::Node {
        ip: Some(ip.parse().unwrap()),
        ..config::Node::default()
    };
    let resolved = Some("192.0.2.9".parse().unwrap());
    let tell = |node: &config::Node, resolved| {
        addresses::internal_ip(node, &local, resolved)
            .unwrap()
            .to_string()
    };
    assert_eq!(tell(&config::Node::default(), None), "192.0.2.7");
    assert_eq!(tell(&config::Node::default(), resolved), "192.0.2.9");
    assert_eq!(tell(&given("198.51.100.1"), resolved), "198.51.100.1");
    assert_eq!(tell(&given("0.0.0.0"), None), "192.0.2.7");
    assert_eq!(tell(&given("::"), None), "2001:db8::7");
    assert_eq!(addresses::internal_ip(&config::Node::default(), &[], None), None);
    let unplugged = config::Node {
        interface: Some("no-such-interface".to_owned()),
        ..given("198.51.100.1")
    };
    assert_eq!(tell(&unplugged, None), "198.51.100.1");
}

#[test]
fn images_are_named_when_they_are_wanted() {
    let image = |id: &str, size_bytes: u64| Image {
        id: id.to_owned(),
        tags: (0..7).map(|tag| format!("{id}:{tag}")).collect(),
        digests: vec!["<none>@<none>".to_owned(), format!("{id}@sha256:1")],
        size_bytes,
        user: None,
        username: None,
        pinned: false,
    };
    let sight = Sight {
        images: vec![image("small", 1), image("large", 3), image("middle", 2)],
        ..Sight::default()
    };
    let mut config = config();
    let mut tell = |max: Option<usize>| {
        config.node.images_max = max;
        let status = status::status(&config, &facts(), &sight);
        let rows = status.images.iter().map(|image| image.names.join(" "));
        rows.collect::<Vec<_>>()
    };
    assert!(tell(Some(0)).is_empty());
    assert_eq!(
        tell(Some(2)),
        [
            "large@sha256:1 large:0 large:1 large:2 large:3",
            "middle@sha256:1 middle:0 middle:1 middle:2 middle:3"
        ]
    );
    assert_eq!(tell(None).len(), 3);
}

#[test]
fn handlers_are_told_with_what_they_can() {
    let features = HandlerFeatures {
        recursive_read_only_mounts: true,
        user_namespaces: false,
    };
    let sight = Sight {
        handlers: [
            (String::new(), features),
            ("kata".to_owned(), HandlerFeatures::default()),
        ]
        .into(),
        ..Sight::default()
    };
    let status = status::status(&config(), &facts(), &sight);
    expect![[r#"[{"name":"","features":{"recursiveReadOnlyMounts":true,"userNamespaces":false}},{"name":"kata","features":{"recursiveReadOnlyMounts":false,"userNamespaces":false}}]"#]]
        .assert_eq(&json!(status.runtime_handlers).to_string());
}

#[test]
fn a_node_without_a_measured_disk_is_not_ready() {
    let mut config = config();
    let mut machine = Sight::default().machine;
    let told = status::missing_capacity(&config, &machine);
    assert_eq!(
        told.unwrap(),
        "missing node capacity for resources: ephemeral-storage"
    );
    machine.nodefs_bytes = Some(1);
    assert_eq!(status::missing_capacity(&config, &machine), None);
    config.node.local_storage = false;
    machine.nodefs_bytes = None;
    assert_eq!(status::missing_capacity(&config, &machine), None);
    assert_eq!(config.node.status_check_interval, Duration::from_secs(10));
}
