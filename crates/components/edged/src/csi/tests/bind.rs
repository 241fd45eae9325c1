//! What the cluster says of a driver, with a driver that binds its volumes where they are wanted.

use super::*;

/// A driver of which the cluster says this; nothing where the test may not mount.
async fn world(capabilities: &[rpc::Type], spec: Value) -> Option<World> {
    if !can_mount() {
        return None;
    }
    let world = World::start_with(capabilities, true).await;
    world.answer("null/csidriver/drv", json!({ "spec": spec }));
    Some(world)
}

fn attachment(attached: bool) -> (String, Value) {
    let name = layout::attachment_name("h1", "drv", "edge-1");
    let key = format!("default/volumeattachment/{name}");
    (key, json!({ "status": { "attached": attached } }))
}

#[tokio::test]
async fn a_volume_that_must_be_attached_waits_for_it_and_then_holds_its_data() {
    let Some(world) = world(STAGES, json!({ "attachRequired": true })).await else {
        return;
    };
    let why = world.publish("u1", &volume(json!({}))).await.unwrap_err();
    assert!(
        why.starts_with("volume attachment csi-") && why.contains("cloud does not give it"),
        "{why}"
    );
    let (key, attached) = attachment(true);
    world.answer(&key, attached);
    let published = world.publish("u1", &volume(json!({}))).await.unwrap();
    assert!(!published.republish);
    std::fs::write(published.path.join("data"), "kept").unwrap();
    let other = world.publish("u2", &volume(json!({}))).await.unwrap();
    assert_eq!(std::fs::read_to_string(other.path.join("data")).unwrap(), "kept");
    for uid in ["u1", "u2"] {
        world.csi.unpublish_pod(uid).await.unwrap();
    }
    assert!(kedge_host::mounts::mounted_below(&world.root).unwrap().is_empty());
    let kept = world.plugin.volume("h1").join("data");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "kept");
}

#[tokio::test]
async fn a_driver_that_wants_it_learns_of_the_pod_and_gets_new_tokens_while_the_volume_stands() {
    let spec = json!({
        "attachRequired": false, "podInfoOnMount": true, "requiresRepublish": true, "fsGroupPolicy": "None",
        "tokenRequests": [{ "audience": "vault", "expirationSeconds": 600 }],
    });
    let Some(world) = world(&[rpc::Type::StageUnstageVolume], spec).await else {
        return;
    };
    // Nobody looks at it.
    let (key, unattached) = attachment(false);
    world.answer(&key, unattached);
    let token = |token: &str| {
        let status = json!({ "token": token, "expirationTimestamp": "2030-01-01T00:00:00Z" });
        world.answer("shop/serviceaccounttoken/robot", json!({ "status": status }));
    };
    let why = world.publish("u1", &volume(json!({}))).await.unwrap_err();
    assert!(
        why.starts_with("failed to fetch token: service account \"robot\": "),
        "{why}"
    );
    token("first");
    let owned = volume(json!({ "csi": { "fsType": "ext4" } }));
    let published = world.publish("u1", &owned).await.unwrap();
    assert!(published.group_given, "nobody gives the volume to a group");
    std::fs::write(published.path.join("data"), "kept").unwrap();
    world.plugin.calls();
    token("second");
    let again = world.publish("u1", &owned).await.unwrap();
    assert!(published.republish && again.republish);
    assert_eq!(std::fs::read_to_string(again.path.join("data")).unwrap(), "kept");
    expect![[r#"Publish ["h1","/pods/u1/volumes/kubernetes.io~csi/pv-1/mount","SINGLE_NODE_WRITER",false,{"csi.storage.k8s.io/ephemeral":"false","csi.storage.k8s.io/pod.name":"web","csi.storage.k8s.io/pod.namespace":"shop","csi.storage.k8s.io/pod.uid":"u1","csi.storage.k8s.io/serviceAccount.name":"robot","csi.storage.k8s.io/serviceAccount.tokens":"{\"vault\":{\"token\":\"second\",\"expirationTimestamp\":\"2030-01-01T00:00:00Z\"}}","size":"small"}]"#]]
    .assert_eq(&world.plugin.calls());
    // The driver fails: what stands stays.
    world
        .plugin
        .fails
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let stands = world.publish("u1", &owned).await.unwrap();
    assert!(stands.republish && stands.path.join("data").exists());
    world.csi.unpublish_pod("u1").await.unwrap();
    assert!(kedge_host::mounts::mounted_below(&world.root).unwrap().is_empty());
}

#[tokio::test]
async fn a_driver_that_is_away_is_called_again_when_it_is_back() {
    let spec = json!({ "attachRequired": false, "requiresRepublish": true });
    let Some(world) = world(&[], spec).await else {
        return;
    };
    world.publish("u1", &volume(json!({}))).await.unwrap();
    // The next life of the process looks at the pod before the driver has registered with it.
    let csi = Csi::new(
        Paths::new(&world.root),
        "edge-1".to_owned(),
        cloud(Arc::clone(&world.answers)),
    );
    let world = World { csi, ..world };
    let stands = world.publish("u1", &volume(json!({}))).await.unwrap();
    assert!(stands.republish);
    world.plugin.calls();
    let csi = life(&world.root, &world.answers, &world.scope);
    let world = World { csi, ..world };
    world.csi.inner.drivers.wait("drv", PATIENCE).await.unwrap();
    world.publish("u1", &volume(json!({}))).await.unwrap();
    let calls = world.plugin.calls();
    assert!(calls.contains("Publish [\"h1\""), "{calls}");
    world.csi.unpublish_pod("u1").await.unwrap();
}

#[tokio::test]
async fn a_driver_is_used_only_in_the_ways_for_which_it_is_made() {
    let Some(world) = world(&[], json!({ "attachRequired": false })).await else {
        return;
    };
    let source: CsiVolumeSource = serde_json::from_value(json!({ "driver": "drv" })).unwrap();
    let wanted = Wanted {
        pod: &pod("u1"),
        name: "scratch",
        source: Source::Ephemeral(&source),
        read_only: false,
        block: false,
        group: None,
        claim_bytes: None,
    };
    let why = world.csi.publish(wanted).await.unwrap_err().to_string();
    assert_eq!(
        why,
        r#"volume mode "Ephemeral" not supported by driver drv (only supports ["Persistent"])"#
    );
    world.publish("u1", &volume(json!({}))).await.unwrap();
    let call = world.plugin.calls();
    assert!(!call.contains("pod.name"), "nobody wants to know the pod: {call}");
    world.csi.unpublish_pod("u1").await.unwrap();
}
