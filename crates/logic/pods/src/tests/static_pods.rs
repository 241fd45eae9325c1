//! Static pods and what shows them in the cloud.

use super::{World, check, node, pod};
use expect_test::expect;
use kedge_api::Pod;
use serde_json::json;
use std::sync::Arc;

fn file(image: &str) -> Pod {
    pod(
        "web",
        "",
        json!({ "containers": [{ "name": "c", "image": image }], "topologySpreadConstraints": [{ "maxSkew": 1 }] }),
    )
}

/// UIDs are hashes, which say nothing to a reader.
fn readable(world: &mut World) {
    let known: Vec<String> = world
        .pods
        .known()
        .map(|known| known.pod.uid().to_owned())
        .collect();
    for (at, uid) in known.iter().enumerate() {
        for line in &mut world.log {
            *line = line.replace(uid.as_str(), &format!("hash{at}"));
        }
    }
}

fn cloud_shows_the_mirror(world: &mut World) {
    let mirror = world.mirrors.last().unwrap().clone();
    world.want(Pod::clone(&mirror));
}

#[test]
fn a_file_becomes_a_pod_with_a_mirror() {
    let mut world = World::new();
    world.pods.handle_desired_complete(world.now);
    world.statics(vec![file("web:1")]);
    world.log.push("-- the node is known".to_owned());
    world.pods.handle_node(node(), world.now);
    world.run();
    world.log.push("-- the cloud has the mirror".to_owned());
    cloud_shows_the_mirror(&mut world);
    world.statics(vec![file("web:1")]);
    let mirror = world.mirrors[0].clone();
    let shown = serde_json::to_value(mirror.as_ref()).unwrap();
    assert_eq!(shown["spec"]["topologySpreadConstraints"][0]["maxSkew"], 1);
    assert_eq!(shown["kind"], "Pod");
    assert_eq!(shown["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert_eq!(shown["metadata"]["name"], "web-edge-1");
    let notes = &mirror.metadata.annotations;
    assert_eq!(
        notes["kubernetes.io/config.mirror"],
        notes["kubernetes.io/config.hash"]
    );
    assert_eq!(notes["kubernetes.io/config.source"], "file");
    readable(&mut world);
    check(
        &world,
        &expect![[r#"
        0s volumes web-edge-1
        0s sandbox web-edge-1#0
        0s start c#0
        -- the node is known
        0s create mirror web-edge-1
        -- the cloud has the mirror
        0s report web-edge-1: Running ready [c running]
    "#]],
    );
}

#[test]
fn a_changed_file_is_a_new_pod_and_a_removed_one_is_none() {
    let mut world = World::new();
    world.pods.handle_desired_complete(world.now);
    world.pods.handle_node(node(), world.now);
    world.statics(vec![file("web:1")]);
    cloud_shows_the_mirror(&mut world);
    world.log.clear();
    world.statics(vec![file("web:2")]);
    world
        .log
        .push("-- the cloud has removed the old mirror".to_owned());
    world.forget("web-edge-1");
    cloud_shows_the_mirror(&mut world);
    world.log.push("-- the file is gone".to_owned());
    world.statics(Vec::new());
    world.forget("web-edge-1");
    assert!(world.pods.is_empty());
    check(
        &world,
        &expect![[r#"
        0s event Killing: Stopping container c
        0s stop c grace 30s
        0s delete mirror web-edge-1 m1
        0s remove 1 sandboxes of web-edge-1
        0s remove volumes of web-edge-1
        0s volumes web-edge-1
        0s sandbox web-edge-1#0
        0s start c#0
        -- the cloud has removed the old mirror
        0s create mirror web-edge-1
        0s report web-edge-1: Running ready [c running]
        -- the file is gone
        0s event Killing: Stopping container c
        0s stop c grace 30s
        0s remove 1 sandboxes of web-edge-1
        0s remove volumes of web-edge-1
        0s delete mirror web-edge-1 m6
    "#]],
    );
}

#[test]
fn a_restart_adopts_static_pods_before_it_looks_for_orphans() {
    let mut world = World::new();
    world.pods.handle_desired_complete(world.now);
    world.pods.handle_node(node(), world.now);
    world.statics(vec![file("web:1")]);
    cloud_shows_the_mirror(&mut world);
    world.log.clear();
    world.pods = crate::Pods::new(world.pods.config().clone());
    world.pods.handle_desired_complete(world.now);
    world.pods.handle_node(node(), world.now);
    cloud_shows_the_mirror(&mut world);
    world.look_now();
    world.log.push("-- the files are read".to_owned());
    world.statics(vec![file("web:1")]);
    check(
        &world,
        &expect![[r#"
        -- the files are read
        0s volumes web-edge-1
    "#]],
    );
}

#[test]
fn a_mirror_that_a_user_deletes_comes_again_and_one_without_a_file_goes() {
    let mut world = World::new();
    world.pods.handle_desired_complete(world.now);
    world.pods.handle_node(node(), world.now);
    world.statics(vec![file("web:1")]);
    cloud_shows_the_mirror(&mut world);
    world.log.clear();
    let mut deleted = Pod::clone(&world.mirrors[0]);
    deleted.metadata.deletion_timestamp = Some(kedge_api::Timestamp::from_ms(0));
    world.want(deleted);
    world.forget("web-edge-1");
    let mut stray = Pod::clone(&world.mirrors[0]);
    stray.metadata.name = "stray-edge-1".to_owned();
    stray.metadata.uid = Some("m99".to_owned());
    world.want(stray);
    world.pass(61);
    world.pods.handle_online(world.now);
    world.run();
    let lines = world.log.iter().filter(|line| line.contains("mirror"));
    let lines: Vec<&str> = lines.map(String::as_str).collect();
    expect![[r#"
        0s delete mirror web-edge-1 m1
        0s create mirror web-edge-1
        0s delete mirror stray-edge-1 m99
        60s delete mirror stray-edge-1 m99
        60s create mirror web-edge-1
        61s delete mirror stray-edge-1 m99
        61s create mirror web-edge-1
    "#]]
    .assert_eq(&(lines.join("\n") + "\n"));
}

#[test]
fn a_file_that_names_nothing_is_no_pod() {
    let mut world = World::new();
    let mut nameless = file("web:1");
    nameless.metadata.name.clear();
    world.statics(vec![nameless, Pod::default()]);
    assert!(world.pods.is_empty());
    let twice = Arc::new(file("web:1"));
    world.statics(vec![Pod::clone(&twice), Pod::clone(&twice)]);
    assert_eq!(world.pods.len(), 1);
}

/// A node that is converted in place keeps its static pods running.
#[test]
fn a_static_pod_of_the_official_agent_is_taken_over() {
    let mut world = World::new();
    let hash = "0123456789abcdef0123456789abcdef";
    let mut mirror = file("web:1");
    mirror.metadata.name = "web-edge-1".to_owned();
    mirror.metadata.uid = Some("m1".to_owned());
    for key in ["config.mirror", "config.hash"] {
        mirror
            .metadata
            .annotations
            .insert(format!("kubernetes.io/{key}"), hash.to_owned());
    }
    mirror.spec.node_name = Some("edge-1".to_owned());
    // What the API server filled in.
    mirror.spec.dns_policy = Some("ClusterFirst".to_owned());
    mirror.spec.containers[0].image_pull_policy = Some("IfNotPresent".to_owned());
    mirror.spec.tolerations =
        serde_json::from_value(json!([{ "operator": "Exists", "effect": "NoExecute" }])).unwrap();
    world.want(mirror);
    world.statics(vec![file("web:1")]);
    let uid = |world: &World| {
        world
            .pods
            .known()
            .map(|known| known.pod.uid().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(uid(&world), [hash]);
    // It keeps its UID also when the mirror is gone.
    world.forget("web-edge-1");
    world.statics(vec![file("web:1")]);
    assert_eq!(uid(&world), [hash]);
    // A changed file is another pod, as ever.
    world.statics(vec![file("web:2")]);
    assert!(uid(&world).iter().all(|uid| uid != hash));
}
