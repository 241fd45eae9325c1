//! What goes with the pods that used it.

use super::{World, body, key, object, reply};
use crate::sweep::{Rows, SWEEP_DELAY, spent_tokens, unused};
use expect_test::{Expect, expect};
use kedge_store::meta::Row;
use kedge_wire::ChangeVerb::{Delete, Insert};
use kedge_wire::Request;
use std::time::Duration;

fn row(key: &str, value: &str) -> Row {
    Row {
        key: key.to_owned(),
        kind: key.split('/').nth(1).unwrap().to_owned(),
        value: value.to_owned(),
    }
}

/// One pod with everything that a pod can refer to.
const POD: &str = r#"{"metadata":{"name":"web","uid":"u1"},"spec":{
    "serviceAccountName":"robot","runtimeClassName":"kata","imagePullSecrets":[{"name":"pull"}],
    "containers":[{"env":[{"valueFrom":{"secretKeyRef":{"name":"env","key":"k"}}}],"envFrom":[{"configMapRef":{"name":"all"}}]}],
    "volumes":[{"configMap":{"name":"files"}},{"projected":{"sources":[{"configMap":{"name":"kube-root-ca.crt"}}]}},
        {"persistentVolumeClaim":{"claimName":"data"}},{"name":"scratch","ephemeral":{"volumeClaimTemplate":{}}},
        {"csi":{"driver":"disk.csi","nodePublishSecretRef":{"name":"inline"}}}]}}"#;

fn check(candidates: &str, gone: Expect) {
    let rows = Rows {
        pods: vec![row("default/pod/web", POD)],
        claims: vec![
            row(
                "default/persistentvolumeclaim/data",
                r#"{"spec":{"volumeName":"pv-1","storageClassName":"fast"}}"#,
            ),
            row(
                "default/persistentvolumeclaim/old",
                r#"{"spec":{"volumeName":"pv-2"}}"#,
            ),
        ],
        volumes: vec![
            row(
                "null/persistentvolume/pv-1",
                r#"{"spec":{"csi":{"driver":"net.csi","nodeStageSecretRef":{"namespace":"storage","name":"stage"}}}}"#,
            ),
            row(
                "null/persistentvolume/pv-2",
                r#"{"spec":{"csi":{"nodeStageSecretRef":{"namespace":"storage","name":"old-stage"}}}}"#,
            ),
        ],
        attachments: vec![
            row(
                "null/volumeattachment/va-1",
                r#"{"spec":{"source":{"persistentVolumeName":"pv-1"}}}"#,
            ),
            row(
                "null/volumeattachment/va-2",
                r#"{"spec":{"source":{"persistentVolumeName":"pv-2"}}}"#,
            ),
        ],
        tokens: Vec::new(),
    };
    let found = unused(&rows, candidates.split_whitespace().map(key).collect());
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    gone.assert_eq(&found.join("\n"));
}

#[test]
fn what_a_pod_mentions_stays() {
    check(
        "default/configmap/all default/configmap/files default/configmap/kube-root-ca.crt default/configmap/c
         default/secret/pull default/secret/env default/secret/inline default/secret/s
         other/configmap/files other/secret/env
         default/serviceaccount/robot default/serviceaccount/other
         null/runtimeclass/kata null/runtimeclass/gvisor
         null/csidriver/disk.csi null/csidriver/net.csi null/csidriver/none.csi null/storageclass/fast",
        expect![[r#"
            default/configmap/c
            default/secret/s
            other/configmap/files
            other/secret/env
            default/serviceaccount/other
            null/runtimeclass/gvisor
            null/csidriver/none.csi"#]],
    );
    check(
        "default/persistentvolumeclaim/data default/persistentvolumeclaim/web-scratch default/persistentvolumeclaim/old
         null/persistentvolume/pv-1 null/persistentvolume/pv-2 storage/secret/stage storage/secret/old-stage
         null/volumeattachment/va-1 null/volumeattachment/va-2",
        expect![[r#"
            default/persistentvolumeclaim/old
            null/persistentvolume/pv-2
            storage/secret/old-stage
            null/volumeattachment/va-2"#]],
    );
}

#[test]
fn tokens_stay_as_long_as_their_pods() {
    let token = |bound: &str, expires: &str| {
        format!(
            r#"{{"spec":{{"boundObjectRef":{bound}}},"status":{{"token":"t","expirationTimestamp":"{expires}"}}}}"#
        )
    };
    let (past, future) = ("2001-01-01T00:00:00Z", "2099-01-01T00:00:00Z");
    let rows = Rows {
        pods: vec![row("default/pod/web", POD), row("default/pod/broken", "not JSON")],
        tokens: vec![
            row("here/t/1", &token(r#"{"uid":"u1"}"#, future)),
            row(
                "here, the clock may be wrong/t/2",
                &token(r#"{"uid":"u1"}"#, past),
            ),
            row("gone/t/3", &token(r#"{"uid":"u0"}"#, future)),
            row("of none/t/4", &token("null", future)),
            row("of none, expired/t/5", &token("null", past)),
            row("rubbish/t/6", "[]"),
        ],
        ..Rows::default()
    };
    let spent = spent_tokens(&rows, kedge_telemetry::clock::wall_ms());
    assert_eq!(spent, ["gone/t/3", "of none, expired/t/5", "rubbish/t/6"]);
}

#[tokio::test(start_paused = true)]
async fn what_only_a_gone_pod_used_goes_some_time_later() {
    let mut world = World::online().await;
    let pod = |name: &str, config: &str| {
        format!(
            r#"{{"metadata":{{"name":"{name}","uid":"u-{name}","resourceVersion":"1"}},"spec":{{"config":"{config}"}}}}"#
        )
    };
    for (name, config) in [("web", "mine"), ("db", "shared")] {
        world
            .commit(Insert, &format!("default/pod/{name}"), &pod(name, config))
            .await
            .unwrap();
    }
    for name in ["mine", "shared"] {
        let text = format!("default/configmap/{name}");
        world
            .commit(Insert, &text, &object(name, name, "1"))
            .await
            .unwrap();
    }
    let asked = world.ask(Request::query(key("default/persistentvolumeclaim/mine")));
    let (request, way) = world.at_cloud().await;
    way.send(reply(&request, &object("mine", "claim", "1")));
    asked.await.unwrap().unwrap();
    // The look after the start finds everything used.
    tokio::time::sleep(SWEEP_DELAY * 3).await;
    assert_eq!(world.store.all().await.unwrap().len(), 5);

    world
        .commit(Delete, "default/pod/web", &pod("web", "mine"))
        .await
        .unwrap();
    // This one came before its pod, which is on its way.
    world
        .commit(Insert, "default/configmap/early", &object("early", "e", "1"))
        .await
        .unwrap();
    let gone = async {
        while world.store.all().await.unwrap().len() > 3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(SWEEP_DELAY + Duration::from_secs(60), gone)
        .await
        .unwrap();
    let keys: Vec<String> = world
        .store
        .all()
        .await
        .unwrap()
        .into_iter()
        .map(|row| row.key)
        .collect();
    assert_eq!(
        keys,
        [
            "default/configmap/early",
            "default/configmap/shared",
            "default/pod/db"
        ]
    );

    while let Ok((key, value)) = tokio::time::timeout(Duration::from_secs(1), world.handed_over()).await {
        assert!(
            key != "default/configmap/mine" || value.is_none(),
            "edged lets it go too"
        );
    }
    // Its pod never came: it goes at the next look.
    let gone = async {
        while world.stored("default/configmap/early").await.is_some() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(SWEEP_DELAY * 2, gone).await.unwrap();
    let again = world.ask(Request::query(key("default/configmap/mine")));
    let (request, way) = world.at_cloud().await;
    way.send(reply(&request, &object("mine", "mine", "2")));
    assert_eq!(
        again.await.unwrap().unwrap().body,
        body(&object("mine", "mine", "2"))
    );
}

#[tokio::test(start_paused = true)]
async fn without_pods_and_at_rest_nothing_is_looked_over() {
    let world = World::online().await;
    world
        .commit(Insert, "null/node/edge-1", &object("edge-1", "n", "1"))
        .await
        .unwrap();
    tokio::time::sleep(SWEEP_DELAY * 100).await;
    assert!(
        world.stored("null/node/edge-1").await.is_some(),
        "the node is nobody's"
    );
}
