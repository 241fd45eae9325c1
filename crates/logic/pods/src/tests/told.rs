//! What the cloud is told, to the letter; and what is told again after a silence.

use super::stories::{deleted, web};
use super::{World, check, config, node, pod};
use crate::{Config, ProbeResult, Refusal};
use expect_test::expect;
use kedge_api::PodStatus;
use kedge_wire::Time;
use serde_json::json;
use std::collections::VecDeque;

/// The last report about a pod, as lines.
fn report(world: &World, uid: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(&world.reports[uid]).unwrap();
    serde_json::to_string_pretty(&value).unwrap()
}

#[test]
fn a_pod_with_everything_in_it() {
    let mut world = World::new();
    let spec = json!({
        "volumes": [{ "name": "v", "emptyDir": {} }],
        "initContainers": [{ "name": "init", "image": "i:1" }],
        "containers": [
            { "name": "c", "image": "web:1", "volumeMounts": [{ "name": "v", "mountPath": "/v", "readOnly": true }] },
            { "name": "crash", "image": "x:1" },
        ],
    });
    world.want(pod("web", "u1", spec));
    world.pass(1);
    world.exit("init", 0);
    world.exit("crash", 1);
    world.pass(1);
    world.exit("crash", 2);
    expect![[r#"
        {
          "metadata": {
            "uid": "u1"
          },
          "status": {
            "phase": "Running",
            "conditions": [
              {
                "type": "PodReadyToStartContainers",
                "status": "True",
                "lastTransitionTime": "2026-01-01T00:00:00Z"
              },
              {
                "type": "Initialized",
                "status": "True",
                "lastTransitionTime": "2026-01-01T00:00:01Z"
              },
              {
                "type": "Ready",
                "status": "False",
                "lastTransitionTime": "2026-01-01T00:00:02Z",
                "reason": "ContainersNotReady",
                "message": "containers with unready status: [crash]"
              },
              {
                "type": "ContainersReady",
                "status": "False",
                "lastTransitionTime": "2026-01-01T00:00:02Z",
                "reason": "ContainersNotReady",
                "message": "containers with unready status: [crash]"
              },
              {
                "type": "PodScheduled",
                "status": "True",
                "lastTransitionTime": "2026-01-01T00:00:00Z"
              }
            ],
            "hostIP": "192.0.2.7",
            "hostIPs": [
              {
                "ip": "192.0.2.7"
              }
            ],
            "podIP": "10.0.0.1",
            "podIPs": [
              {
                "ip": "10.0.0.1"
              }
            ],
            "startTime": "2026-01-01T00:00:00Z",
            "initContainerStatuses": [
              {
                "name": "init",
                "state": {
                  "terminated": {
                    "exitCode": 0,
                    "reason": "Completed",
                    "startedAt": "2026-01-01T00:00:00Z",
                    "finishedAt": "2026-01-01T00:00:01Z",
                    "containerID": "kedge://c2"
                  }
                },
                "lastState": {},
                "ready": true,
                "restartCount": 0,
                "image": "i:1",
                "imageID": "sha256:i:1",
                "containerID": "kedge://c2",
                "started": false
              }
            ],
            "containerStatuses": [
              {
                "name": "c",
                "state": {
                  "running": {
                    "startedAt": "2026-01-01T00:00:01Z"
                  }
                },
                "lastState": {},
                "ready": true,
                "restartCount": 0,
                "image": "web:1",
                "imageID": "sha256:web:1",
                "containerID": "kedge://c3",
                "started": true,
                "volumeMounts": [
                  {
                    "name": "v",
                    "mountPath": "/v",
                    "readOnly": true,
                    "recursiveReadOnly": "Disabled"
                  }
                ]
              },
              {
                "name": "crash",
                "state": {
                  "waiting": {
                    "reason": "CrashLoopBackOff",
                    "message": "back-off 10s restarting failed container=crash pod=web_default(u1)"
                  }
                },
                "lastState": {
                  "terminated": {
                    "exitCode": 2,
                    "reason": "Error",
                    "startedAt": "2026-01-01T00:00:01Z",
                    "finishedAt": "2026-01-01T00:00:02Z",
                    "containerID": "kedge://c5"
                  }
                },
                "ready": false,
                "restartCount": 1,
                "image": "x:1",
                "imageID": "sha256:x:1",
                "containerID": "kedge://c5",
                "started": false
              }
            ],
            "qosClass": "BestEffort"
          }
        }"#]]
    .assert_eq(&report(&world, "u1"));
}

#[test]
fn a_restart_that_takes_its_time_keeps_the_end_before_it() {
    let mut world = World::new();
    world.want(web("u1"));
    world.slow = true;
    world.exit("c", 3);
    world.look_now();
    world.look_now();
    world.log.push("-- c runs".to_owned());
    world.starts_end();
    check(
        &world,
        &expect![[r#"
        0s volumes web
        0s report web: Pending [c ContainerCreating]
        0s sandbox web#0
        0s start c#0
        0s report web: Running ready [c running]
        -- c exits with 3
        0s start c#1
        0s report web: Running [c exited 3]
        0s report web: Running [c ContainerCreating x1 (was exited 3)]
        -- c runs
        0s report web: Running ready [c running x1 (was exited 3)]
    "#]],
    );
}

#[test]
fn after_a_silence_everything_is_told_again() {
    let mut world = World::new();
    world.want(web("u1"));
    world.log.clear();
    world.reports.clear();
    world.pods.handle_online(world.now);
    world.run();
    assert!(world.reports.contains_key("u1"));
    // A report that did not get through is made again, also without a reason.
    world.reports.clear();
    world.pods.handle_report_failed("u1", world.now);
    world.pass(10);
    assert!(world.reports.contains_key("u1"));
}

#[test]
fn a_probe_without_an_answer_counts_as_failed_and_holds_nobody_up() {
    let mut world = World::new();
    world.silent = true;
    let probe = json!({ "exec": { "command": ["hang"] }, "timeoutSeconds": 5, "failureThreshold": 2 });
    let spec = json!({ "containers": [
        { "name": "c", "image": "web:1", "livenessProbe": probe },
        { "name": "d", "image": "web:1" },
    ] });
    world.want(pod("web", "u1", spec));
    world.log.clear();
    world.pass(80);
    check(
        &world,
        &expect![[r#"
        35s event Unhealthy: Liveness probe failed: no answer
        45s probe exec hang is not answered
        80s event Unhealthy: Liveness probe failed: no answer
        80s event Killing: Container c failed liveness probe, will be restarted
        80s stop c grace 30s
        80s start c#1
        80s report web: Running [c exited 143, d running]
        80s probe exec hang is not answered
        80s report web: Running ready [c running x1 (was exited 143), d running]
    "#]],
    );
}

#[test]
fn readiness_is_asked_to_the_end_and_liveness_is_not() {
    let mut world = World::new();
    let probe = |path: &str| json!({ "httpGet": { "path": path, "port": 80 }, "periodSeconds": 5, "failureThreshold": 1 });
    let spec = json!({ "containers": [
        { "name": "c", "image": "web:1", "livenessProbe": probe("/live"), "readinessProbe": probe("/ready") },
    ] });
    world.want(pod("web", "u1", spec.clone()));
    world.stubborn = true;
    world.log.clear();
    world.want(deleted(pod("web", "u1", spec), 30));
    world
        .probe_answers
        .insert("c".to_owned(), ProbeResult::Failure("draining".to_owned()));
    world.pass(6);
    check(
        &world,
        &expect![[r#"
        0s event Killing: Stopping container c
        0s stop c grace 30s
        5s probe c http://10.0.0.1:80/ready fails
        5s event Unhealthy: Readiness probe failed: draining
        5s report web: Running [c running]
    "#]],
    );
}

#[test]
fn adopted_containers_are_asked_one_after_the_other() {
    let mut world = World::with(Config { seed: 7, ..config() });
    let probe = json!({ "tcpSocket": { "port": 80 } });
    let spec = json!({ "containers": [{ "name": "c", "image": "web:1", "livenessProbe": probe }] });
    for at in 0..5 {
        world.want(pod(&format!("p{at}"), &format!("u{at}"), spec.clone()));
    }
    world.pass(3600);
    world.restart();
    world.silent = true;
    world.log.clear();
    for at in 0..5 {
        world.want(pod(&format!("p{at}"), &format!("u{at}"), spec.clone()));
    }
    let soon = world.log.iter().filter(|line| line.contains("probe")).count();
    world.pass(10);
    let all = world.log.iter().filter(|line| line.contains("probe")).count();
    assert!(soon <= 1 && all == 5, "{soon} at once, {all} in all");
}

#[test]
fn a_runtime_that_is_gone_is_tried_again_ever_later() {
    let mut world = World::new();
    let refusal = Refusal::new("CreatePodSandboxError", "the runtime does not answer");
    world
        .refusals
        .insert("sandbox".to_owned(), VecDeque::from(vec![refusal; 4]));
    world.want(web("u1"));
    world.pass(60);
    check(
        &world,
        &expect![[r#"
        0s volumes web
        0s report web: Pending [c ContainerCreating]
        0s sandbox web#0
        2s sandbox web#0
        6s sandbox web#0
        14s sandbox web#0
        30s sandbox web#0
        30s start c#0
        30s report web: Running ready [c running]
    "#]],
    );
}

#[test]
fn an_agent_on_a_device_without_a_clock_writes_the_right_time() {
    let mut world = World::new();
    // The device thinks that it is 1970, and learns the time after its pod has started.
    world.now = Time::from_ms(1_000_000);
    world.want(web("u1"));
    world.pods.handle_wall_clock(1_767_225_600_000);
    world.exit("c", 1);
    let status: PodStatus = world.pods.known().next().unwrap().status.as_ref().clone();
    let ready = status
        .conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled")
        .unwrap();
    let moments = (
        status.start_time.unwrap().to_string(),
        ready.last_transition_time.unwrap().to_string(),
    );
    assert_eq!(
        moments,
        (
            "1970-01-01T00:16:40Z".to_owned(),
            "1970-01-01T00:16:40Z".to_owned()
        )
    );
    world.want(pod(
        "late",
        "u2",
        json!({ "activeDeadlineSeconds": 60, "containers": [{ "name": "l", "image": "l:1" }] }),
    ));
    let late = world.pods.known().nth(1).unwrap().status.start_time.unwrap();
    assert_eq!(late.to_string(), "2026-01-01T00:16:40Z");
    world.pass(59);
    assert!(!world.log.iter().any(|line| line.contains("DeadlineExceeded")));
    world.pass(1);
    assert!(world.log.iter().any(|line| line.contains("DeadlineExceeded")));
}

#[test]
fn a_node_without_the_cluster_s_resolver_says_so() {
    let mut world = World::with(Config {
        cluster_dns: Vec::new(),
        ..config()
    });
    world.pods.handle_node(node(), world.now);
    world.want(web("u1"));
    let told = world
        .log
        .iter()
        .find(|line| line.contains("MissingClusterDNS"))
        .unwrap();
    expect![[r#"0s event MissingClusterDNS: pod: "web_default(u1)". kubelet does not have ClusterDNS IP configured and cannot create Pod using "ClusterFirst" policy. Falling back to "Default" policy."#]].assert_eq(told);
}
