//! What comes over a pod from the whole node: the machine shuts down, records are too many, ends meet each other.

use super::admission::known_status;
use super::stories::web;
use super::{World, check, config, node, pod};
use crate::{Config, DeadContainers, Eviction, ProbeResult, Refusal, shutdown};
use expect_test::expect;
use kedge_api::Pod;
use serde_json::json;
use std::collections::VecDeque;
use std::time::Duration;

fn eviction() -> Eviction {
    Eviction {
        reason: "Evicted".to_owned(),
        message: "The node was low on resource: memory. ".to_owned(),
        grace: Duration::from_secs(1),
    }
}

/// A job that is stopped because its probe fails, and ends well by itself meanwhile.
fn job_that_ends_while_it_is_stopped() -> World {
    let mut world = World::new();
    let probe = json!({ "exec": { "command": ["x"] }, "failureThreshold": 1 });
    let main = json!({ "name": "c", "image": "c:1", "livenessProbe": probe });
    world.want(pod(
        "job",
        "u1",
        json!({ "restartPolicy": "Never", "activeDeadlineSeconds": 60, "containers": [main] }),
    ));
    world.stubborn = true;
    let sick = ProbeResult::Failure("sick".to_owned());
    world.probe_answers.insert("c".to_owned(), sick);
    world.pass(10);
    world.log.clear();
    world.exit("c", 0);
    world
}

#[test]
fn what_was_told_to_be_over_is_not_evicted_any_more() {
    let mut world = job_that_ends_while_it_is_stopped();
    world.pods.handle_evict("u1", &eviction(), world.now);
    world.run();
    world.stops_end();
    check(
        &world,
        &expect![[r#"
            -- c exits with 0
            10s report job: Succeeded [c exited 0]
            10s stop sandbox of job
            10s remove volumes of job
        "#]],
    );
}

#[test]
fn what_was_told_to_be_over_does_not_miss_its_deadline() {
    let mut world = job_that_ends_while_it_is_stopped();
    world.pass(100);
    world.stops_end();
    check(
        &world,
        &expect![[r#"
            -- c exits with 0
            10s report job: Succeeded [c exited 0]
            110s stop sandbox of job
            110s remove volumes of job
        "#]],
    );
}

/// A runtime of before, or an agent that was replaced, may start what nobody waits for any more.
#[test]
fn what_was_told_to_be_over_is_stopped_and_not_told_to_run() {
    let mut world = World::new();
    let mut job = pod(
        "job",
        "u1",
        json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": "c:1" }] }),
    );
    world.want(job.clone());
    job.status = known_status(&world);
    job.status.phase = Some(kedge_api::PodPhase::Failed);
    world.restart();
    world.want(job);
    check(
        &world,
        &expect![[r#"
            0s volumes job
            0s report job: Pending [c ContainerCreating]
            0s sandbox job#0
            0s start c#0
            0s report job: Running ready [c running]
            -- restart
            0s event Killing: Stopping container c
            0s stop c grace 30s
            0s report job: Failed [c running]
            0s stop sandbox of job
            0s report job: Failed [c exited 143]
            0s remove volumes of job
        "#]],
    );
}

#[test]
fn a_job_whose_image_changes_is_not_over_in_between() {
    let mut world = World::new();
    let job = |image: &str| -> Pod {
        let spec = json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": image }] });
        pod("job", "u1", spec)
    };
    world.want(job("c:1"));
    world.log.clear();
    world.stubborn = true;
    world.want(job("c:2"));
    // The end is seen before the stop has come back.
    world.end_all(143);
    world.look_now();
    world.stops_end();
    check(
        &world,
        &expect![[r#"
            0s event Killing: Container c definition changed, will be restarted
            0s stop c grace 30s
            0s report job: Running [c exited 143]
            0s start c#1
            0s report job: Running ready [c running x1 (was exited 143)]
        "#]],
    );
}

#[test]
fn records_of_dead_containers_are_kept_as_long_and_as_many_as_the_operator_says() {
    let left = |rules: DeadContainers, crashes: usize, pause: u64| {
        let mut world = World::with(Config {
            dead_containers: rules,
            ..config()
        });
        world.want(web("u1"));
        for _ in 0..crashes {
            world.exit("c", 1);
            world.pass(400);
        }
        world.pass(pause);
        world.look_now();
        let all = world.sandboxes.iter().flat_map(|sandbox| &sandbox.containers);
        let attempts: Vec<String> = all.map(|container| container.attempt.to_string()).collect();
        attempts.join(" ")
    };
    let rules = |age_s: u64, each_max: Option<u32>, all_max: Option<u32>| DeadContainers {
        age_min: Duration::from_secs(age_s),
        each_max,
        all_max,
    };
    let table = [
        ("the defaults", left(DeadContainers::default(), 4, 0)),
        ("three of each", left(rules(0, Some(3), None), 5, 0)),
        ("none", left(rules(0, Some(0), None), 3, 0)),
        ("all", left(rules(0, None, None), 4, 0)),
        ("two on the node", left(rules(0, None, Some(2)), 4, 0)),
        ("not before an hour", left(rules(3600, Some(1), None), 4, 0)),
        ("an hour later", left(rules(3600, Some(1), None), 4, 3600)),
    ];
    let lines: Vec<String> = table
        .iter()
        .map(|(what, left)| format!("{what}: {left}"))
        .collect();
    expect![[r#"
        the defaults: 3 4
        three of each: 2 3 4 5
        none: 3
        all: 0 1 2 3 4
        two on the node: 2 3 4
        not before an hour: 0 1 2 3 4
        an hour later: 3 4
    "#]]
    .assert_eq(&(lines.join("\n") + "\n"));
}

#[test]
fn a_machine_that_shuts_down_ends_its_pods_and_takes_no_new_ones() {
    let mut world = World::new();
    world.pods.handle_node(node(), world.now);
    world.want(web("u1"));
    let mut file = pod(
        "dns",
        "u2",
        json!({ "containers": [{ "name": "d", "image": "d:1" }] }),
    );
    file.metadata.uid = None;
    world.statics(vec![file.clone()]);
    world.complete();
    world.log.clear();
    world.pods.handle_shutdown();
    let ends: Vec<String> = world
        .pods
        .known()
        .map(|known| known.pod.uid().to_owned())
        .collect();
    for uid in ends {
        let eviction = shutdown::eviction(Duration::from_secs(5));
        world.pods.handle_evict(&uid, &eviction, world.now);
    }
    world.run();
    world.want(pod(
        "late",
        "u3",
        json!({ "containers": [{ "name": "l", "image": "l:1" }] }),
    ));
    // What the cloud was told last of the static pod.
    let dns = world
        .pods
        .known()
        .find(|known| known.pod.metadata.name == "dns-edge-1");
    let mut mirror = Pod::clone(&world.mirrors[0]);
    mirror.status = dns.unwrap().status.as_ref().clone();
    assert_eq!(mirror.status.reason.as_deref(), Some(shutdown::REASON));
    // After the machine's next start.
    world.power_cut();
    world.restart();
    world.pods.handle_node(node(), world.now);
    world.want(mirror);
    world.statics(vec![file]);
    check(
        &world,
        &expect![[r#"
            0s event Killing: Stopping container d
            0s stop d grace 5s
            0s event Killing: Stopping container c
            0s stop c grace 5s
            0s stop sandbox of dns-edge-1
            0s stop sandbox of web
            0s report web: Failed Terminated [c exited 143]
            0s remove volumes of dns-edge-1
            0s remove volumes of web
            0s event NodeShutdown: Pod was rejected as the node is shutting down.
            0s report late: Failed NodeShutdown []
            -- power cut
            -- restart
            0s volumes dns-edge-1
            0s report dns-edge-1: Running [d exited 143]
            0s event SandboxChanged: Pod sandbox changed, it will be killed and re-created.
            0s stop sandbox of dns-edge-1
            0s sandbox dns-edge-1#1
            0s start d#1
            0s report dns-edge-1: Running ready [d running x1 (was exited 143)]
        "#]],
    );
}

#[test]
fn a_container_that_is_made_and_does_not_run_yet_waits_under_the_usual_words() {
    let told = |spec: serde_json::Value, refusal: Option<&str>| {
        let mut world = World::new();
        world.slow = refusal.is_none();
        if let Some(reason) = refusal {
            let refusal = Refusal::new(reason, "no such command");
            world.refusals.insert("c".to_owned(), VecDeque::from([refusal]));
        }
        world.want(pod("web", "u1", spec));
        world.look_now();
        let status = known_status(&world);
        let waiting = status.container_statuses[0]
            .state
            .waiting
            .clone()
            .unwrap_or_default();
        format!(
            "{:?} {} {:?}",
            status.phase.unwrap(),
            waiting.reason.unwrap_or_default(),
            waiting.message
        )
    };
    let plain = json!({ "containers": [{ "name": "c", "image": "c:1" }] });
    let with_init = json!({
        "initContainers": [{ "name": "i", "image": "i:1" }],
        "containers": [{ "name": "c", "image": "c:1" }],
    });
    let lines = [
        told(plain.clone(), None),
        told(with_init, None),
        told(plain.clone(), Some("CreateContainerError")),
        told(plain.clone(), Some("CreateContainerConfigError")),
        told(plain, Some("RunContainerError")),
    ];
    expect![[r#"
        Pending ContainerCreating None
        Pending PodInitializing None
        Pending CreateContainerError Some("no such command")
        Pending CreateContainerConfigError Some("no such command")
        Pending RunContainerError Some("no such command")
    "#]]
    .assert_eq(&(lines.join("\n") + "\n"));
}

#[test]
fn resources_that_change_while_a_container_runs_are_refused_aloud() {
    let web = |memory: &str, image: &str| {
        let resources = json!({ "requests": { "memory": memory } });
        pod(
            "web",
            "u1",
            json!({ "containers": [{ "name": "c", "image": image, "resources": resources }] }),
        )
    };
    let mut world = World::new();
    world.want(web("1Gi", "c:1"));
    world.log.clear();
    world.want(web("2Gi", "c:1"));
    world.want(web("2Gi", "c:2"));
    check(
        &world,
        &expect![[r#"
            0s event ResizeInfeasible: Resources are not changed while a container runs on this node; they hold from its next start
            0s event Killing: Container c definition changed, will be restarted
            0s stop c grace 30s
            0s start c#1
            0s report web: Running [c exited 143]
            0s report web: Running ready [c running x1 (was exited 143)]
        "#]],
    );
}
