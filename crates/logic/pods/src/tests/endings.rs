//! How containers and pods end: order, grace, hooks, deadlines, refusals, clocks.

use super::stories::{deleted, web};
use super::{World, check, config, pod};
use crate::{Config, ProbeResult, Refusal, Release};
use expect_test::expect;
use kedge_api::Pod;
use serde_json::json;
use std::collections::VecDeque;

fn with_sidecars() -> Pod {
    let hook = json!({ "preStop": { "exec": { "command": ["bye"] } } });
    let sidecar =
        |name: &str| json!({ "name": name, "image": "s:1", "restartPolicy": "Always", "lifecycle": hook });
    pod(
        "web",
        "u1",
        json!({
            "terminationGracePeriodSeconds": 30,
            "initContainers": [sidecar("proxy"), sidecar("logs")],
            "containers": [{ "name": "a", "image": "a:1", "lifecycle": hook }, { "name": "b", "image": "b:1" }],
        }),
    )
}

#[test]
fn sidecars_end_last_in_reverse_within_one_grace() {
    let mut world = World::new();
    world.want(with_sidecars());
    world.log.clear();
    world.stubborn = true;
    world.want(deleted(with_sidecars(), 30));
    world.pass(20);
    world.stops_end();
    world.pass(20);
    world.stops_end();
    world.stops_end();
    check(
        &world,
        &expect![[r#"
        0s event Killing: Stopping container a
        0s event Killing: Stopping container b
        0s stop a grace 30s after its hook, b grace 30s
        20s event Killing: Stopping container logs
        20s stop logs grace 10s after its hook
        20s report web: Running [proxy running, logs running, a exited 143, b exited 143]
        40s event Killing: Stopping container proxy
        40s stop proxy grace 2s after its hook
        40s report web: Running [proxy running, logs exited 143, a exited 143, b exited 143]
        40s remove 1 sandboxes of web
        40s report web: Failed [proxy exited 143, logs exited 143, a exited 143, b exited 143]
        40s remove volumes of web
        40s report deleted web u1
    "#]],
    );
}

#[test]
fn a_forced_deletion_makes_a_stop_faster() {
    let mut world = World::new();
    let hook = json!({ "preStop": { "sleep": { "seconds": 20 } } });
    let spec = json!({ "containers": [{ "name": "c", "image": "web:1", "lifecycle": hook }] });
    world.want(pod("web", "u1", spec.clone()));
    world.log.clear();
    world.stubborn = true;
    world.want(deleted(pod("web", "u1", spec.clone()), 30));
    world.pass(5);
    world.want(deleted(pod("web", "u1", spec), 0));
    world.stops_end();
    world.forget("web");
    assert!(world.pods.is_empty());
    check(
        &world,
        &expect![[r#"
        0s event Killing: Stopping container c
        0s stop c grace 30s after its hook
        5s stop c grace 1s
        5s remove 1 sandboxes of web
        5s report web: Failed [c exited 143]
        5s remove volumes of web
        5s report deleted web u1
    "#]],
    );
}

#[test]
fn the_deadline_ends_a_pod_and_what_never_ran_is_unknown() {
    let mut world = World::new();
    let refusal = Refusal::new("ErrImagePull", "no such image");
    world
        .refusals
        .insert("late".to_owned(), VecDeque::from(vec![refusal; 9]));
    let spec = json!({
        "activeDeadlineSeconds": 15,
        "containers": [{ "name": "c", "image": "web:1" }, { "name": "late", "image": "none:1" }],
    });
    world.want(pod("job", "u1", spec));
    world.pass(20);
    check(
        &world,
        &expect![[r#"
        0s volumes job
        0s report job: Pending [c ContainerCreating, late ContainerCreating]
        0s sandbox job#0
        0s start c#0
        0s start late#0
        0s report job: Pending [c running, late ContainerCreating]
        0s report job: Pending [c running, late ErrImagePull]
        2s event BackOff: Back-off pulling image "none:1"
        2s event Failed: Error: ImagePullBackOff
        2s report job: Pending [c running, late ImagePullBackOff]
        10s start late#0
        10s report job: Pending [c running, late ErrImagePull]
        12s event BackOff: Back-off pulling image "none:1"
        12s event Failed: Error: ImagePullBackOff
        12s report job: Pending [c running, late ImagePullBackOff]
        15s event DeadlineExceeded: Pod was active on the node longer than the specified deadline
        15s event Killing: Stopping container c
        15s stop c grace 30s
        15s report job: Pending [c running, late ContainerCreating]
        15s stop sandbox of job
        15s report job: Failed DeadlineExceeded [c exited 143, late exited 137]
        15s remove volumes of job
    "#]],
    );
}

#[test]
fn a_failed_post_start_hook_backs_off() {
    let mut world = World::new();
    let refusal = Refusal::new("PostStartHookError", "exec of the hook: exit code 1");
    world.refusals.insert("c".to_owned(), VecDeque::from([refusal]));
    world.want(web("u1"));
    world.pass(15);
    check(
        &world,
        &expect![[r#"
        0s volumes web
        0s report web: Pending [c ContainerCreating]
        0s sandbox web#0
        0s start c#0
        0s report web: Pending [c PostStartHookError]
        0s report web: Running [c PostStartHookError (was exited 137)]
        10s start c#1
        10s report web: Running [c exited 137]
        10s report web: Running ready [c running x1 (was exited 137)]
    "#]],
    );
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_repeats() {
    let mut world = World::new();
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{ "name": "init", "image": "i:1" }],
        "containers": [{ "name": "c", "image": "web:1" }],
    });
    world.want(pod("job", "u1", spec));
    world.exit("init", 7);
    check(
        &world,
        &expect![[r#"
        0s volumes job
        0s report job: Pending [init PodInitializing, c PodInitializing]
        0s sandbox job#0
        0s start init#0
        0s report job: Pending [init running, c PodInitializing]
        -- init exits with 7
        0s stop sandbox of job
        0s report job: Failed [init exited 7, c PodInitializing]
        0s remove volumes of job
    "#]],
    );
}

#[test]
fn a_startup_probe_of_a_sidecar_holds_the_rest_back() {
    let mut world = World::new();
    world
        .probe_answers
        .insert("side".to_owned(), ProbeResult::Failure("not yet".to_owned()));
    let probe = json!({ "exec": { "command": ["ready?"] }, "periodSeconds": 2, "failureThreshold": 5 });
    let spec = json!({
        "initContainers": [{ "name": "side", "image": "s:1", "restartPolicy": "Always", "startupProbe": probe }],
        "containers": [{ "name": "c", "image": "web:1" }],
    });
    world.want(pod("web", "u1", spec));
    world.pass(3);
    world.probe_answers.clear();
    world.pass(2);
    check(
        &world,
        &expect![[r#"
        0s volumes web
        0s report web: Pending [side PodInitializing, c PodInitializing]
        0s sandbox web#0
        0s start side#0
        0s probe side exec ready? fails
        0s report web: Pending [side running, c PodInitializing]
        0s event Unhealthy: Startup probe failed: not yet
        2s probe side exec ready? fails
        2s event Unhealthy: Startup probe failed: not yet
        4s start c#0
        4s report web: Running ready [side running, c running]
    "#]],
    );
}

#[test]
fn probes_ask_by_grpc_and_cannot_ask_without_a_port() {
    let mut world = World::new();
    world
        .probe_answers
        .insert("c".to_owned(), ProbeResult::Failure("NOT_SERVING".to_owned()));
    world.probe_answers.insert(
        "e".to_owned(),
        ProbeResult::Error("the runtime does not answer".to_owned()),
    );
    let grpc = |port: i64| json!({ "grpc": { "port": port, "service": "health" }, "periodSeconds": 5 });
    let exec = json!({ "exec": { "command": ["is", "$(WHO)"] }, "failureThreshold": 1 });
    let spec = json!({ "containers": [
        { "name": "c", "image": "web:1", "readinessProbe": grpc(9000) },
        { "name": "d", "image": "web:1", "readinessProbe": grpc(0) },
        { "name": "e", "image": "web:1", "livenessProbe": exec, "env": [{ "name": "WHO", "value": "me" }] },
    ] });
    world.want(pod("web", "u1", spec));
    world.pass(1);
    check(
        &world,
        &expect![[r#"
        0s volumes web
        0s report web: Pending [c ContainerCreating, d ContainerCreating, e ContainerCreating]
        0s sandbox web#0
        0s start c#0
        0s start d#0
        0s probe c grpc 10.0.0.1:9000 health fails
        0s report web: Pending [c running, d ContainerCreating, e ContainerCreating]
        0s event Unhealthy: Readiness probe failed: NOT_SERVING
        0s start e#0
        0s event Unhealthy: Readiness probe errored: the port of the probe is not a port of the container
        0s report web: Pending [c running, d running, e ContainerCreating]
        0s probe e exec is me fails
        0s report web: Running [c running, d running, e running]
        0s event Unhealthy: Liveness probe errored: the runtime does not answer
    "#]],
    );
}

#[test]
fn an_ephemeral_container_looks_into_a_running_one() {
    let mut world = World::new();
    world.want(web("u1"));
    world.log.clear();
    let mut debugged = web("u1");
    debugged.spec.ephemeral_containers =
        serde_json::from_value(json!([{ "name": "debug", "image": "d:1", "targetContainerName": "c" }]))
            .unwrap();
    world.want(debugged.clone());
    world.exit("debug", 1);
    world.pass(60);
    world.restart();
    world.want(debugged);
    check(
        &world,
        &expect![[r#"
        0s start debug#0 into c2
        0s report web: Running ready [c running, debug ContainerCreating]
        0s report web: Running ready [c running, debug running]
        -- debug exits with 1
        0s report web: Running ready [c running, debug exited 1]
        -- restart
        60s volumes web
        60s report web: Running ready [c running, debug exited 1]
    "#]],
    );
}

#[test]
fn readiness_gates_count() {
    let mut world = World::new();
    let mut gated = web("u1");
    gated.spec.readiness_gates =
        serde_json::from_value(json!([{ "conditionType": "example.com/open" }])).unwrap();
    world.want(gated.clone());
    let ready = |world: &World| {
        let known = world.pods.known().next().unwrap();
        let ready = known
            .status
            .conditions
            .iter()
            .find(|c| c.type_ == "Ready")
            .unwrap()
            .clone();
        (ready.status, ready.reason, ready.message)
    };
    let before = ready(&world);
    gated.status.conditions =
        serde_json::from_value(json!([{ "type": "example.com/open", "status": "True" }])).unwrap();
    world.want(gated);
    expect![[r#"
        (
            (
                "False",
                Some(
                    "ReadinessGatesNotReady",
                ),
                Some(
                    "corresponding condition of pod readiness gate \"example.com/open\" does not exist.",
                ),
            ),
            (
                "True",
                None,
                None,
            ),
        )
    "#]]
    .assert_debug_eq(&(before, ready(&world)));
}

#[test]
fn a_held_pod_waits_for_its_release_and_remembers_it() {
    let mut world = World::new();
    let mut held = web("u1");
    held.metadata
        .annotations
        .insert("edge.kubeedge.io/hold-upgrade".to_owned(), "true".to_owned());
    world.want(held.clone());
    world.want(held.clone());
    world.want(pod(
        "other",
        "u2",
        json!({ "containers": [{ "name": "o", "image": "o:1" }] }),
    ));
    world.log.push("-- released".to_owned());
    let key = crate::PodKey::new("default", "web");
    world.pods.handle_release(&Release::Pod(key), world.now);
    world.run();
    let status = world.pods.known().next().unwrap().status.as_ref().clone();
    held.status = status;
    held.status.phase = Some(kedge_api::PodPhase::Pending);
    world.sandboxes.clear();
    world.restart();
    world.want(held);
    check(
        &world,
        &expect![[r#"
        0s report web: Pending [c ContainerCreating]
        0s volumes other
        0s report other: Pending [o ContainerCreating]
        0s sandbox other#0
        0s start o#0
        0s report other: Running ready [o running]
        -- released
        0s volumes web
        0s sandbox web#0
        0s start c#0
        0s report web: Running ready [c running]
        -- restart
        0s volumes web
        0s report web: Pending [c ContainerCreating]
        0s sandbox web#0
        0s start c#1
        0s report web: Running ready [c running x1]
    "#]],
    );
}

#[test]
fn the_longest_wait_can_be_set_and_clocks_of_others_do_not_matter() {
    let mut world = World::with(Config {
        crash_wait_max: Some(std::time::Duration::from_secs(10)),
        ..config()
    });
    world.want(web("u1"));
    for _ in 0..4 {
        // The runtime's clock is a year ahead.
        let real = world.now;
        world.now = real + std::time::Duration::from_secs(365 * 86_400);
        world.end_all(1);
        world.now = real;
        world.look_now();
        world.pass(11);
    }
    let known = world.pods.known().next().unwrap();
    assert_eq!(known.status.container_statuses[0].restart_count, 4);
}

#[test]
fn a_thousand_config_map_updates_make_one_refresh_at_a_time() {
    let mut world = World::new();
    let spec = json!({
        "volumes": [{ "name": "v", "configMap": { "name": "settings" } }],
        "containers": [{ "name": "c", "image": "web:1" }],
    });
    world.want(pod("web", "u1", spec));
    for _ in 0..1000 {
        world
            .pods
            .handle_config_changed("default", false, "settings", world.now);
    }
    world.run();
    let refreshes = world
        .log
        .iter()
        .filter(|line| line.ends_with("volumes web"))
        .count();
    assert!(refreshes <= 3, "{refreshes} refreshes");
}

#[test]
fn a_lost_container_of_a_pod_that_never_repeats_fails_it() {
    let mut world = World::new();
    let spec = json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": "job:1" }, { "name": "d", "image": "job:1" }] });
    world.want(pod("job", "u1", spec));
    world.power_cut();
    world.look_now();
    check(
        &world,
        &expect![[r#"
        0s volumes job
        0s report job: Pending [c ContainerCreating, d ContainerCreating]
        0s sandbox job#0
        0s start c#0
        0s start d#0
        0s report job: Pending [c running, d ContainerCreating]
        0s report job: Running ready [c running, d running]
        -- power cut
        0s stop sandbox of job
        0s report job: Failed [c exited 255, d exited 255]
        0s remove volumes of job
    "#]],
    );
}

#[test]
fn a_pod_that_the_cloud_ended_is_torn_down_and_new_labels_are_written() {
    let mut world = World::new();
    let items = json!([{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }]);
    let spec = json!({
        "volumes": [{ "name": "me", "downwardAPI": { "items": items } }],
        "containers": [{ "name": "c", "image": "web:1" }],
    });
    let mut web = pod("web", "u1", spec);
    world.want(web.clone());
    world.log.push("-- a new label".to_owned());
    web.metadata.labels.insert("tier".to_owned(), "front".to_owned());
    world.want(web.clone());
    world.log.push("-- the cloud ends it".to_owned());
    web.status = world.pods.known().next().unwrap().status.as_ref().clone();
    web.status.phase = Some(kedge_api::PodPhase::Failed);
    web.status.reason = Some("NodeLost".to_owned());
    world.want(web);
    check(
        &world,
        &expect![[r#"
            0s volumes web
            0s report web: Pending [c ContainerCreating]
            0s sandbox web#0
            0s start c#0
            0s report web: Running ready [c running]
            -- a new label
            0s volumes web
            -- the cloud ends it
            0s event Killing: Stopping container c
            0s stop c grace 30s
            0s stop sandbox of web
            0s report web: Failed NodeLost [c exited 143]
            0s remove volumes of web
        "#]],
    );
}
