use super::{World, check, pod};
use crate::{ProbeResult, Refusal};
use expect_test::expect;
use kedge_api::{Pod, Timestamp};
use serde_json::json;
use std::collections::VecDeque;

pub(super) fn web(uid: &str) -> Pod {
    pod(
        "web",
        uid,
        json!({ "containers": [{ "name": "c", "image": "web:1" }] }),
    )
}

pub(super) fn deleted(mut pod: Pod, grace: i64) -> Pod {
    pod.metadata.deletion_timestamp = Some(Timestamp::from_ms(0));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    pod
}

#[test]
fn create_start_crash_back_off() {
    let mut world = World::new();
    world.want(web("u1"));
    world.pass(5);
    world.exit("c", 1);
    world.pass(1);
    world.exit("c", 1);
    world.pass(12);
    world.exit("c", 1);
    world.pass(25);
    check(
        &world,
        &expect![[r#"
        0s volumes web
        0s report web: Pending [c ContainerCreating]
        0s sandbox web#0
        0s start c#0
        0s report web: Running ready [c running]
        -- c exits with 1
        5s start c#1
        5s report web: Running [c exited 1]
        5s report web: Running ready [c running x1 (was exited 1)]
        -- c exits with 1
        6s event BackOff: Back-off restarting failed container c in pod web_default(u1)
        6s report web: Running [c CrashLoopBackOff x1 (was exited 1)]
        16s start c#2
        16s report web: Running [c exited 1 x1 (was exited 1)]
        16s remove 1 containers
        16s report web: Running ready [c running x2 (was exited 1)]
        -- c exits with 1
        18s event BackOff: Back-off restarting failed container c in pod web_default(u1)
        18s report web: Running [c CrashLoopBackOff x2 (was exited 1)]
        38s start c#3
        38s report web: Running [c exited 1 x2 (was exited 1)]
        38s remove 1 containers
        38s report web: Running ready [c running x3 (was exited 1)]
    "#]],
    );
}

#[test]
fn a_long_run_forgives() {
    let mut world = World::new();
    world.want(web("u1"));
    world.exit("c", 1);
    world.pass(601);
    world.exit("c", 1);
    world.pass(1);
    check(
        &world,
        &expect![[r#"
        0s volumes web
        0s report web: Pending [c ContainerCreating]
        0s sandbox web#0
        0s start c#0
        0s report web: Running ready [c running]
        -- c exits with 1
        0s start c#1
        0s report web: Running [c exited 1]
        0s report web: Running ready [c running x1 (was exited 1)]
        -- c exits with 1
        601s start c#2
        601s report web: Running [c exited 1 x1 (was exited 1)]
        601s remove 1 containers
        601s report web: Running ready [c running x2 (was exited 1)]
    "#]],
    );
}

#[test]
fn deletion_ends_with_a_word_to_the_cloud() {
    let mut world = World::new();
    world.want(web("u1"));
    world.want(deleted(web("u1"), 7));
    world.forget("web");
    assert!(world.pods.is_empty());
    check(
        &world,
        &expect![[r#"
            0s volumes web
            0s report web: Pending [c ContainerCreating]
            0s sandbox web#0
            0s start c#0
            0s report web: Running ready [c running]
            0s event Killing: Stopping container c
            0s stop c grace 7s
            0s remove 1 sandboxes of web
            0s report web: Failed [c exited 143]
            0s remove volumes of web
            0s report deleted web u1
        "#]],
    );
}

#[test]
fn a_new_uid_waits_for_the_old_one() {
    let mut world = World::new();
    world.want(web("u1"));
    world.want(web("u2"));
    check(
        &world,
        &expect![[r#"
            0s volumes web
            0s report web: Pending [c ContainerCreating]
            0s sandbox web#0
            0s start c#0
            0s report web: Running ready [c running]
            0s event Killing: Stopping container c
            0s stop c grace 30s
            0s remove 1 sandboxes of web
            0s report web: Pending [c ContainerCreating]
            0s remove volumes of web
            0s volumes web
            0s sandbox web#0
            0s start c#0
            0s report web: Running ready [c running]
        "#]],
    );
}

#[test]
fn a_restart_adopts_and_removes_orphans_only_when_all_is_known() {
    let mut world = World::new();
    world.want(web("u1"));
    world.want(pod(
        "old",
        "u9",
        json!({ "containers": [{ "name": "o", "image": "old:1" }] }),
    ));
    world.restart();
    world.want(web("u1"));
    world.log.push("-- all is known".to_owned());
    world.complete();
    let id = world.pods.begin_observation();
    world.pods.handle_observed(id, world.sandboxes.clone(), world.now);
    world.run();
    check(
        &world,
        &expect![[r#"
        0s volumes web
        0s report web: Pending [c ContainerCreating]
        0s sandbox web#0
        0s start c#0
        0s report web: Running ready [c running]
        0s volumes old
        0s report old: Pending [o ContainerCreating]
        0s sandbox old#0
        0s start o#0
        0s report old: Running ready [o running]
        -- restart
        0s volumes web
        0s report web: Running ready [c running]
        -- all is known
        0s remove orphan u9
    "#]],
    );
}

#[test]
fn a_power_cut_repeats_init_containers() {
    let mut world = World::new();
    let spec = json!({
        "initContainers": [{ "name": "init", "image": "i:1" }],
        "containers": [{ "name": "c", "image": "web:1" }],
    });
    world.want(pod("web", "u1", spec.clone()));
    world.exit("init", 0);
    world.power_cut();
    world.restart();
    world.want(pod("web", "u1", spec));
    world.exit("init", 0);
    check(
        &world,
        &expect![[r#"
            0s volumes web
            0s report web: Pending [init PodInitializing, c PodInitializing]
            0s sandbox web#0
            0s start init#0
            0s report web: Pending [init running, c PodInitializing]
            -- init exits with 0
            0s start c#0
            0s report web: Pending [init exited 0, c PodInitializing]
            0s report web: Running ready [init exited 0, c running]
            -- power cut
            -- restart
            0s volumes web
            0s report web: Pending [init exited 0, c exited 255]
            0s event SandboxChanged: Pod sandbox changed, it will be killed and re-created.
            0s stop sandbox of web
            0s sandbox web#1
            0s start init#1
            0s report web: Pending [init running x1 (was exited 0), c exited 255]
            -- init exits with 0
            0s start c#1
            0s report web: Running [init exited 0 x1 (was exited 0), c exited 255]
            0s report web: Running ready [init exited 0 x1 (was exited 0), c running x1 (was exited 255)]
        "#]],
    );
}

#[test]
fn a_job_that_never_repeats() {
    let mut world = World::new();
    let spec = json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": "job:1" }] });
    world.want(pod("job", "u1", spec.clone()));
    world.exit("c", 3);
    world.restart();
    world.want(pod("job", "u1", spec));
    check(
        &world,
        &expect![[r#"
            0s volumes job
            0s report job: Pending [c ContainerCreating]
            0s sandbox job#0
            0s start c#0
            0s report job: Running ready [c running]
            -- c exits with 3
            0s stop sandbox of job
            0s report job: Failed [c exited 3]
            0s remove volumes of job
            -- restart
            0s stop sandbox of job
            0s report job: Failed [c exited 3]
            0s remove volumes of job
        "#]],
    );
}

#[test]
fn on_failure_until_it_succeeds() {
    let mut world = World::new();
    let spec = json!({ "restartPolicy": "OnFailure", "containers": [{ "name": "c", "image": "job:1" }] });
    world.want(pod("job", "u1", spec));
    world.exit("c", 1);
    world.exit("c", 0);
    check(
        &world,
        &expect![[r#"
            0s volumes job
            0s report job: Pending [c ContainerCreating]
            0s sandbox job#0
            0s start c#0
            0s report job: Running ready [c running]
            -- c exits with 1
            0s start c#1
            0s report job: Running [c exited 1]
            0s report job: Running ready [c running x1 (was exited 1)]
            -- c exits with 0
            0s stop sandbox of job
            0s report job: Succeeded [c exited 0 x1 (was exited 1)]
            0s remove volumes of job
        "#]],
    );
}

#[test]
fn an_image_that_cannot_be_pulled() {
    let mut world = World::new();
    let refusal = Refusal::new("ErrImagePull", "image web:1 is not on this node");
    world
        .refusals
        .insert("c".to_owned(), VecDeque::from(vec![refusal; 2]));
    world.want(web("u1"));
    world.pass(40);
    check(
        &world,
        &expect![[r#"
            0s volumes web
            0s report web: Pending [c ContainerCreating]
            0s sandbox web#0
            0s start c#0
            0s report web: Pending [c ErrImagePull]
            2s event BackOff: Back-off pulling image "web:1"
            2s event Failed: Error: ImagePullBackOff
            2s report web: Pending [c ImagePullBackOff]
            10s start c#0
            10s report web: Pending [c ErrImagePull]
            12s event BackOff: Back-off pulling image "web:1"
            12s event Failed: Error: ImagePullBackOff
            12s report web: Pending [c ImagePullBackOff]
            30s start c#0
            30s report web: Pending [c ContainerCreating]
            30s report web: Running ready [c running]
        "#]],
    );
}

#[test]
fn a_missing_config_map_is_told_and_its_arrival_acted_on() {
    let mut world = World::new();
    let refusal = Refusal::new("CreateContainerConfigError", "configmap \"settings\" not found");
    world
        .refusals
        .insert("volumes".to_owned(), VecDeque::from([refusal]));
    let spec = json!({
        "volumes": [{ "name": "v", "configMap": { "name": "settings" } }],
        "containers": [{ "name": "c", "image": "web:1" }],
    });
    world.want(pod("web", "u1", spec));
    world.pass(1);
    world.log.push("-- it arrives".to_owned());
    world
        .pods
        .handle_config_changed("default", false, "settings", world.now);
    world.run();
    check(
        &world,
        &expect![[r#"
            0s volumes web
            0s report web: Pending [c ContainerCreating]
            -- it arrives
            1s volumes web
            1s sandbox web#0
            1s start c#0
            1s report web: Running ready [c running]
        "#]],
    );
}

#[test]
fn a_volume_that_shows_the_labels_follows_them() {
    let mut world = World::new();
    let spec = |kind: &str| {
        json!({
            "volumes": [{ "name": "v", kind: {} }],
            "containers": [{ "name": "c", "image": "web:1" }],
        })
    };
    world.want(pod("web", "u1", spec("downwardAPI")));
    world.want(pod("dry", "u2", spec("emptyDir")));
    world.pass(1);
    world.log.clear();
    for (name, uid, kind) in [("web", "u1", "downwardAPI"), ("dry", "u2", "emptyDir")] {
        let mut labelled = pod(name, uid, spec(kind));
        labelled
            .metadata
            .labels
            .insert("app".to_owned(), "new".to_owned());
        world.want(labelled);
    }
    check(
        &world,
        &expect![[r#"
        1s volumes web
    "#]],
    );
}

#[test]
fn a_liveness_probe_restarts_and_a_readiness_probe_only_tells() {
    let mut world = World::new();
    let spec = json!({ "terminationGracePeriodSeconds": 4, "containers": [
        { "name": "c", "image": "web:1", "ports": [{ "name": "http", "containerPort": 80 }],
          "livenessProbe": { "httpGet": { "path": "health", "port": "http" }, "failureThreshold": 2, "periodSeconds": 5 } },
        { "name": "r", "image": "web:1", "readinessProbe": { "tcpSocket": { "port": 81 }, "failureThreshold": 1 } },
    ] });
    world.want(pod("web", "u1", spec));
    world.pass(1);
    for name in ["c", "r"] {
        world
            .probe_answers
            .insert(name.to_owned(), ProbeResult::Failure("refused".to_owned()));
    }
    world.pass(10);
    world.probe_answers.clear();
    world.pass(10);
    check(
        &world,
        &expect![[r#"
        0s volumes web
        0s report web: Pending [c ContainerCreating, r ContainerCreating]
        0s sandbox web#0
        0s start c#0
        0s start r#0
        0s report web: Pending [c running, r ContainerCreating]
        0s report web: Running [c running, r running]
        0s report web: Running ready [c running, r running]
        5s probe c http://10.0.0.1:80/health fails
        5s event Unhealthy: Liveness probe failed: refused
        10s probe c http://10.0.0.1:80/health fails
        10s probe r tcp 10.0.0.1:81 fails
        10s event Unhealthy: Liveness probe failed: refused
        10s event Killing: Container c failed liveness probe, will be restarted
        10s stop c grace 4s
        10s event Unhealthy: Readiness probe failed: refused
        10s report web: Running [c running, r running]
        10s start c#1
        10s report web: Running [c exited 143, r running]
        10s probe c http://10.0.0.1:80/health fails
        10s report web: Running [c running x1 (was exited 143), r running]
        10s event Unhealthy: Liveness probe failed: refused
        20s report web: Running ready [c running x1 (was exited 143), r running]
    "#]],
    );
}

#[test]
fn a_changed_image_restarts_that_container() {
    let mut world = World::new();
    let both = |image: &str| {
        pod(
            "web",
            "u1",
            json!({ "containers": [{ "name": "a", "image": "a:1" }, { "name": "b", "image": image }] }),
        )
    };
    world.want(both("b:1"));
    world.want(both("b:2"));
    check(
        &world,
        &expect![[r#"
        0s volumes web
        0s report web: Pending [a ContainerCreating, b ContainerCreating]
        0s sandbox web#0
        0s start a#0
        0s start b#0
        0s report web: Pending [a running, b ContainerCreating]
        0s report web: Running ready [a running, b running]
        0s event Killing: Container b definition changed, will be restarted
        0s stop b grace 30s
        0s start b#1
        0s report web: Running [a running, b exited 143]
        0s report web: Running ready [a running, b running x1 (was exited 143)]
    "#]],
    );
}

#[test]
fn a_sidecar_starts_first_and_ends_last() {
    let mut world = World::new();
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{ "name": "side", "image": "s:1", "restartPolicy": "Always" }, { "name": "init", "image": "i:1" }],
        "containers": [{ "name": "c", "image": "job:1" }],
    });
    world.want(pod("job", "u1", spec));
    world.exit("init", 0);
    world.exit("c", 0);
    check(
        &world,
        &expect![[r#"
            0s volumes job
            0s report job: Pending [side PodInitializing, init PodInitializing, c PodInitializing]
            0s sandbox job#0
            0s start side#0
            0s start init#0
            0s report job: Pending [side running, init PodInitializing, c PodInitializing]
            0s report job: Pending [side running, init running, c PodInitializing]
            -- init exits with 0
            0s start c#0
            0s report job: Pending [side running, init exited 0, c PodInitializing]
            0s report job: Running ready [side running, init exited 0, c running]
            -- c exits with 0
            0s event Killing: Stopping container side
            0s stop side grace 30s
            0s report job: Running [side running, init exited 0, c exited 0]
            0s stop sandbox of job
            0s report job: Succeeded [side exited 143, init exited 0, c exited 0]
            0s remove volumes of job
        "#]],
    );
}
