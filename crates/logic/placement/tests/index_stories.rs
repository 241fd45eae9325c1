//! Stories of the index: what the watches see, and what which node is told.

// Every line here is test code, where a panic is the report.
#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use kedge_placement::index::{Placement, Question, Seen, Sizes, Standing};
use kedge_placement::report::question;
use kedge_wire::{Body, NodeName, ObjectKey, ObjectKind, Operation, Request, Uid};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Words: `pod <name> <uid>@<version> <node|-> [needs]`, `cm|secret <name> <uid>@<version>`, `node <name> <uid>@<version> [edge]`;
/// `gone` before any of them deletes; `desired <node>`; `may <node> <key>`; `token <node> <account> <pod> <uid>`;
/// `report <node> <key> <status of Ready>`.
fn check(story: &str, expect: Expect) {
    let mut placement = Placement::new();
    let mut told = String::new();
    for line in story.lines().map(str::trim).filter(|line| !line.is_empty()) {
        writeln!(told, "> {line}").unwrap();
        tell(&mut placement, line, &mut told);
    }
    expect.assert_eq(&told);
}

fn tell(placement: &mut Placement, line: &str, told: &mut String) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (gone, words) = match words.as_slice() {
        ["gone", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let seen = |json: String| {
        let body = Body::from_json(json).unwrap();
        if gone {
            Seen::Deleted(body)
        } else {
            Seen::Applied(body)
        }
    };
    let changes = match words {
        ["desired", node] => {
            for (key, object) in placement.desired(&NodeName::new(*node).unwrap()) {
                writeln!(told, "  {key} {}@{}", object.uid, object.version).unwrap();
            }
            return;
        }
        ["may", node, key] => {
            let question = Question::Key(ObjectKey::parse(key).unwrap());
            answer(placement, node, &question, told);
            return;
        }
        ["report", node, key, ready] => {
            let patch = format!(r#"{{"status":{{"conditions":[{{"type":"Ready","status":"{ready}"}}]}}}}"#);
            let key = ObjectKey::parse(key).unwrap();
            let request = Request::from_edged(Operation::Patch, key, Body::text(&patch));
            let Question::Report { key, conditions } = question(&request) else {
                panic!("no report: {request:?}");
            };
            placement.handle_report(&NodeName::new(*node).unwrap(), &key, &conditions);
            return;
        }
        ["token", node, account, pod, uid] => {
            let question = Question::Token {
                account: (*account).to_owned(),
                pod: ObjectKey::parse(pod).unwrap(),
                uid: Uid::new(*uid),
            };
            answer(placement, node, &question, told);
            return;
        }
        ["pod", name, id, node, spec @ ..] => placement.handle_pod(seen(pod(name, id, node, spec))),
        ["cm", name, id] => placement.handle_config_map(seen(shared(name, id))),
        ["secret", name, id] => placement.handle_secret(seen(shared(name, id))),
        ["node", name, id, labels @ ..] => placement.handle_node(seen(node(name, id, labels))),
        other => panic!("the story has no word {other:?}"),
    };
    for change in changes.unwrap() {
        match change.object {
            Some(object) => {
                writeln!(
                    told,
                    "  {}: {} {}@{}",
                    change.node, change.key, object.uid, object.version
                )
                .unwrap();
            }
            None => writeln!(told, "  {}: {} is gone", change.node, change.key).unwrap(),
        }
    }
}

fn answer(placement: &Placement, node: &str, question: &Question, told: &mut String) {
    let Standing { allowed, uid, .. } = placement.standing(&NodeName::new(node).unwrap(), question);
    let uid = uid.map(|uid| format!(" of {uid}")).unwrap_or_default();
    writeln!(told, "  {}{uid}", if allowed { "yes" } else { "no" }).unwrap();
}

fn metadata(name: &str, id: &str, rest: &str) -> String {
    let (uid, version) = id.split_once('@').unwrap();
    format!(r#""metadata":{{"name":"{name}",{rest}"uid":"{uid}","resourceVersion":"{version}"}}"#)
}

/// The words of a spec are `cm=<name>`, `secret=<name>`, `label=<value>`, `status=<phase>`, `ready=<status at time>`.
fn pod(name: &str, id: &str, node: &str, spec: &[&str]) -> String {
    let value = |word: &str| {
        let found = spec
            .iter()
            .filter_map(|part| part.split_once('='))
            .find(|(name, _)| *name == word);
        found.map(|(_, value)| value.to_owned())
    };
    let node = if node == "-" {
        String::new()
    } else {
        format!(r#""nodeName":"{node}","#)
    };
    let volumes = value("cm").map_or(String::new(), |name| {
        format!(r#"{{"name":"v","configMap":{{"name":"{name}"}}}}"#)
    });
    let secrets = value("secret").map_or(String::new(), |name| format!(r#"{{"name":"{name}"}}"#));
    let label = value("label").unwrap_or_default();
    let metadata = metadata(
        name,
        id,
        &format!(r#""namespace":"default","labels":{{"l":"{label}"}},"#),
    );
    let status = value("status").unwrap_or_default();
    let ready = value("ready").unwrap_or_default();
    let (ready, at) = ready.split_once('@').unwrap_or_default();
    format!(
        r#"{{{metadata},"spec":{{{node}"volumes":[{volumes}],"imagePullSecrets":[{secrets}]}},"status":{{"phase":"{status}","conditions":[{{"type":"Ready","status":"{ready}","lastProbeTime":"{at}"}}]}}}}"#
    )
}

fn shared(name: &str, id: &str) -> String {
    let version = id.split_once('@').unwrap().1;
    format!(
        r#"{{{},"data":{{"v":"{version}"}}}}"#,
        metadata(name, id, r#""namespace":"default","#)
    )
}

fn node(name: &str, id: &str, labels: &[&str]) -> String {
    let label = if labels.contains(&"edge") {
        r#""node-role.kubernetes.io/edge":"""#
    } else {
        ""
    };
    let label_2 = labels
        .iter()
        .find(|label| label.starts_with("l="))
        .map_or("", |_| r#","l":"x""#);
    format!(
        r#"{{{},"spec":{{}}}}"#,
        metadata(name, id, &format!(r#""labels":{{{label}{label_2}}},"#))
    )
}

#[test]
fn a_pod_brings_what_it_needs_and_takes_it_along() {
    check(
        "cm app c@1
         secret pull s@2
         pod web a@3 - cm=app secret=pull
         pod web a@4 edge-1 cm=app secret=pull
         desired edge-1
         pod db b@5 edge-1 cm=app
         cm app c@6
         gone pod web a@7 edge-1 cm=app secret=pull
         gone pod db b@8 edge-1 cm=app
         cm app c@9
         desired edge-1",
        expect![[r#"
            > cm app c@1
            > secret pull s@2
            > pod web a@3 - cm=app secret=pull
            > pod web a@4 edge-1 cm=app secret=pull
              edge-1: default/configmap/app c@1
              edge-1: default/secret/pull s@2
              edge-1: default/pod/web a@4
            > desired edge-1
              default/configmap/app c@1
              default/secret/pull s@2
              default/pod/web a@4
            > pod db b@5 edge-1 cm=app
              edge-1: default/pod/db b@5
            > cm app c@6
              edge-1: default/configmap/app c@6
            > gone pod web a@7 edge-1 cm=app secret=pull
              edge-1: default/pod/web is gone
              edge-1: default/secret/pull is gone
            > gone pod db b@8 edge-1 cm=app
              edge-1: default/pod/db is gone
              edge-1: default/configmap/app is gone
            > cm app c@9
            > desired edge-1
        "#]],
    );
}

#[test]
fn status_and_bookkeeping_are_not_changes() {
    check(
        "pod web a@1 edge-1 status=Pending
         pod web a@2 edge-1 status=Running
         desired edge-1
         pod web a@3 edge-1 status=Running label=new
         pod web a@3 edge-1 status=Running label=new",
        expect![[r#"
            > pod web a@1 edge-1 status=Pending
              edge-1: default/pod/web a@1
            > pod web a@2 edge-1 status=Running
            > desired edge-1
              default/pod/web a@1
            > pod web a@3 edge-1 status=Running label=new
              edge-1: default/pod/web a@3
            > pod web a@3 edge-1 status=Running label=new
        "#]],
    );
}

#[test]
fn a_pod_that_moves_or_is_made_anew_is_deleted_first() {
    check(
        "cm app c@1
         cm other c2@1
         pod web a@3 edge-1 cm=app
         pod web a@4 edge-2 cm=app
         pod web b@5 edge-2 cm=app
         pod web d@6 edge-2 cm=other
         gone pod web b@7 edge-2
         desired edge-1
         desired edge-2",
        expect![[r#"
            > cm app c@1
            > cm other c2@1
            > pod web a@3 edge-1 cm=app
              edge-1: default/configmap/app c@1
              edge-1: default/pod/web a@3
            > pod web a@4 edge-2 cm=app
              edge-1: default/pod/web is gone
              edge-2: default/configmap/app c@1
              edge-2: default/pod/web a@4
              edge-1: default/configmap/app is gone
            > pod web b@5 edge-2 cm=app
              edge-2: default/pod/web is gone
              edge-2: default/pod/web b@5
            > pod web d@6 edge-2 cm=other
              edge-2: default/pod/web is gone
              edge-2: default/configmap/other c2@1
              edge-2: default/pod/web d@6
              edge-2: default/configmap/app is gone
            > gone pod web b@7 edge-2
            > desired edge-1
            > desired edge-2
              default/configmap/other c2@1
              default/pod/web d@6
        "#]],
    );
}

#[test]
fn what_a_pod_refers_to_may_change_and_come_late() {
    check(
        "pod web a@1 edge-1 cm=app
         cm app c@2
         secret pull s@3
         pod web a@4 edge-1 secret=pull
         gone secret pull s@5
         gone secret pull s@5
         secret pull s2@6",
        expect![[r#"
            > pod web a@1 edge-1 cm=app
              edge-1: default/pod/web a@1
            > cm app c@2
              edge-1: default/configmap/app c@2
            > secret pull s@3
            > pod web a@4 edge-1 secret=pull
              edge-1: default/secret/pull s@3
              edge-1: default/pod/web a@4
              edge-1: default/configmap/app is gone
            > gone secret pull s@5
              edge-1: default/secret/pull is gone
            > gone secret pull s@5
            > secret pull s2@6
              edge-1: default/secret/pull s2@6
        "#]],
    );
}

#[test]
fn nodes_go_to_themselves_when_they_are_edges() {
    check(
        "node cloud-1 n0@1
         node edge-1 n1@1 edge
         pod web a@2 edge-1
         node edge-1 n1@3 edge
         node edge-1 n1@4 edge l=x
         desired edge-1
         node edge-1 n1@5
         gone node edge-1 n1@6",
        expect![[r#"
            > node cloud-1 n0@1
            > node edge-1 n1@1 edge
              edge-1: null/node/edge-1 n1@1
            > pod web a@2 edge-1
              edge-1: default/pod/web a@2
            > node edge-1 n1@3 edge
            > node edge-1 n1@4 edge l=x
              edge-1: null/node/edge-1 n1@4
            > desired edge-1
              null/node/edge-1 n1@4
              default/pod/web a@2
            > node edge-1 n1@5
              edge-1: null/node/edge-1 is gone
            > gone node edge-1 n1@6
        "#]],
    );
}

#[test]
fn a_node_may_act_on_its_own_and_on_what_its_pods_use() {
    check(
        "pod web a@1 edge-1 cm=app
         may edge-1 default/pod/web
         may edge-1 default/podpatch/web
         may edge-2 default/podpatch/web
         may edge-1 default/configmap/app
         may edge-1 default/secret/app
         may edge-2 default/configmap/app
         token edge-1 default default/pod/web a
         token edge-1 default default/pod/web other
         token edge-1 robot default/pod/web a
         token edge-2 default default/pod/web a
         may edge-1 null/node/edge-1
         may edge-1 null/node/edge-2
         may edge-1 kube-node-lease/lease/edge-1
         may edge-1 kube-node-lease/lease/edge-2
         may edge-1 null/persistentvolume/disk",
        expect![[r#"
            > pod web a@1 edge-1 cm=app
              edge-1: default/pod/web a@1
            > may edge-1 default/pod/web
              yes of a
            > may edge-1 default/podpatch/web
              yes of a
            > may edge-2 default/podpatch/web
              no
            > may edge-1 default/configmap/app
              yes
            > may edge-1 default/secret/app
              no
            > may edge-2 default/configmap/app
              no
            > token edge-1 default default/pod/web a
              yes of a
            > token edge-1 default default/pod/web other
              no of a
            > token edge-1 robot default/pod/web a
              no of a
            > token edge-2 default default/pod/web a
              no
            > may edge-1 null/node/edge-1
              yes
            > may edge-1 null/node/edge-2
              no
            > may edge-1 kube-node-lease/lease/edge-1
              yes
            > may edge-1 kube-node-lease/lease/edge-2
              no
            > may edge-1 null/persistentvolume/disk
              no
        "#]],
    );
}

#[test]
fn every_way_to_refer_to_an_object_is_found() {
    let spec = r#"{"nodeName":"edge-1","serviceAccountName":"robot",
        "volumes":[{"name":"1","configMap":{"name":"vol"}},{"name":"2","secret":{"secretName":"vol"}},
          {"name":"3","projected":{"sources":[{"configMap":{"name":"kube-root-ca.crt"}},{"secret":{"name":"proj"}},{"serviceAccountToken":{"path":"t"}}]}},
          {"name":"4","persistentVolumeClaim":{"claimName":"disk"}},{"name":"5","csi":{"driver":"d","nodePublishSecretRef":{"name":"csi"}}},
          {"name":"6","emptyDir":{}},{"name":"7","hostPath":null}],
        "containers":[{"name":"c","env":[{"name":"A","value":"x"},{"name":"B","valueFrom":{"configMapKeyRef":{"name":"env","key":"k"}}},
            {"name":"C","valueFrom":{"secretKeyRef":{"name":"env","key":"k"}}}],"envFrom":[{"configMapRef":{"name":"from"}},{"secretRef":{"name":"from"}}]}],
        "initContainers":[{"name":"i","envFrom":[{"configMapRef":{"name":"init"}}],"env":null}],
        "ephemeralContainers":[{"name":"e","envFrom":[{"secretRef":{"name":"debug"}}]}],"imagePullSecrets":[{"name":"pull"}]}"#;
    let json = format!(
        r#"{{{},"spec":{spec}}}"#,
        metadata("web", "a@1", r#""namespace":"default","#)
    );
    let mut placement = Placement::new();
    placement
        .handle_pod(Seen::Applied(Body::from_json(json).unwrap()))
        .unwrap();
    let node = NodeName::new("edge-1").unwrap();
    let names = [
        "vol",
        "kube-root-ca.crt",
        "env",
        "from",
        "init",
        "proj",
        "csi",
        "pull",
        "disk",
        "debug",
        "default",
    ];
    let kinds = ["configmap", "secret", "persistentvolumeclaim"];
    let mut found = String::new();
    for kind in kinds {
        for name in names {
            let key = ObjectKey::namespaced(ObjectKind::parse(kind), "default", name);
            if placement.standing(&node, &Question::Key(key.clone())).allowed {
                writeln!(found, "{key}").unwrap();
            }
        }
    }
    expect![[r#"
        default/configmap/vol
        default/configmap/kube-root-ca.crt
        default/configmap/env
        default/configmap/from
        default/configmap/init
        default/secret/vol
        default/secret/env
        default/secret/from
        default/secret/proj
        default/secret/csi
        default/secret/pull
        default/secret/debug
        default/persistentvolumeclaim/disk
    "#]]
    .assert_eq(&found);
}

#[test]
fn bodies_get_their_type_and_lose_managed_fields_and_nothing_else() {
    let listed = r#"{"metadata":{"name":"web","namespace":"default","uid":"a","resourceVersion":"1","managedFields":[{"manager":"x"}],"generation":2},"spec":{"nodeName":"edge-1","x":1.0},"status":{"phase":"Running"}}"#;
    let complete = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"default","uid":"a","resourceVersion":"1"},"spec":{"nodeName":"edge-1"}}"#;
    let mut printed = String::new();
    for json in [listed, complete] {
        let mut placement = Placement::new();
        let changes = placement
            .handle_pod(Seen::Applied(Body::from_json(json.to_owned()).unwrap()))
            .unwrap();
        writeln!(printed, "{}", changes[0].object.as_ref().unwrap().body.json()).unwrap();
    }
    expect![[r#"
        {"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"default","uid":"a","resourceVersion":"1","generation":2},"spec":{"nodeName":"edge-1","x":1.0},"status":{"phase":"Running"}}
        {"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"default","uid":"a","resourceVersion":"1"},"spec":{"nodeName":"edge-1"}}
    "#]].assert_eq(&printed);
}

#[test]
fn objects_that_no_api_sends_are_named() {
    let mut placement = Placement::new();
    let mut told = String::new();
    for json in [
        "[]",
        "{}",
        r#"{"metadata":{"name":"web"}}"#,
        r#"{"metadata":{"name":"web","uid":"a","resourceVersion":"1"}}"#,
        r#"{"metadata":{"name":"web","namespace":"d","uid":"a","resourceVersion":"1"},"spec":{"nodeName":"../x"}}"#,
        r#"{"metadata":{"name":"web","namespace":"d","uid":"a","resourceVersion":"1"},"spec":{"volumes":7}}"#,
    ] {
        let body = Body::from_json(json.to_owned()).unwrap();
        writeln!(told, "{}", placement.handle_pod(Seen::Applied(body)).unwrap_err()).unwrap();
    }
    expect![[r#"
        Pod from the watch cannot be used: invalid type: sequence, expected a JSON object at line 1 column 0
        Pod from the watch cannot be used: it has no metadata
        Pod from the watch cannot be used: metadata.uid is missing
        Pod from the watch cannot be used: metadata.namespace is missing
        Pod from the watch cannot be used: node name "../x" is not valid: a node name has 1 to 253 of a-z, 0-9, '-' and '.', and begins and ends with a letter or digit
        Pod from the watch cannot be used: d/pod/web: spec: invalid type: integer `7`, expected a sequence at line 1 column 12
    "#]].assert_eq(&told);
}

#[test]
fn one_body_is_shared_by_all_nodes() {
    let mut placement = Placement::new();
    let body = |json: String| Seen::Applied(Body::from_json(json).unwrap());
    for (pod_name, id, node) in [("web-1", "a@1", "edge-1"), ("web-2", "b@2", "edge-2")] {
        placement
            .handle_pod(body(pod(pod_name, id, node, &["cm=app"])))
            .unwrap();
    }
    let changes = placement.handle_config_map(body(shared("app", "c@3"))).unwrap();
    let texts: Vec<*const u8> = changes
        .iter()
        .map(|change| change.object.as_ref().unwrap().body.json().as_ptr())
        .collect();
    assert_eq!(texts.len(), 2);
    assert_eq!(texts[0], texts[1]);
}

/// What a random story may say, over few names so that it often says something about the same object.
fn any_line() -> impl Strategy<Value = String> {
    let pods = (0..3_u8, 0..3_u8, 0..3_u8, 0..2_u8, any::<bool>());
    let pods = pods.prop_map(|(name, uid, node, cm, gone)| {
        let node = ["-", "edge-1", "edge-2"][usize::from(node)];
        let gone = if gone { "gone " } else { "" };
        format!("{gone}pod p{name} u{uid}@VERSION {node} cm=c{cm} secret=s{uid} label=l{uid}")
    });
    let shared = (any::<bool>(), 0..3_u8, 0..2_u8, any::<bool>());
    let shared = shared.prop_map(|(secret, name, uid, gone)| {
        let gone = if gone { "gone " } else { "" };
        let (kind, letter) = if secret { ("secret", "s") } else { ("cm", "c") };
        format!("{gone}{kind} {letter}{name} {kind}{uid}@VERSION")
    });
    prop_oneof![pods, shared]
}

/// Others than the edge write conditions: an edge that is not told that its pod is called not ready never objects.
#[test]
fn a_condition_is_told_unless_the_node_said_it_itself() {
    check(
        "pod web a@1 edge-1 ready=True@9
         pod web a@2 edge-1 ready=True@10 status=Running
         pod web a@3 edge-1 ready=False@10
         pod web a@4 edge-1 ready=False@11
         report edge-2 default/podpatch/web True
         pod web a@5 edge-1 ready=True@12
         report edge-1 default/podpatch/web False
         pod web a@6 edge-1 ready=False@13
         report edge-1 default/podpatch/web True
         pod web a@7 edge-1 ready=False@13",
        expect![[r#"
            > pod web a@1 edge-1 ready=True@9
              edge-1: default/pod/web a@1
            > pod web a@2 edge-1 ready=True@10 status=Running
            > pod web a@3 edge-1 ready=False@10
              edge-1: default/pod/web a@3
            > pod web a@4 edge-1 ready=False@11
            > report edge-2 default/podpatch/web True
            > pod web a@5 edge-1 ready=True@12
              edge-1: default/pod/web a@5
            > report edge-1 default/podpatch/web False
            > pod web a@6 edge-1 ready=False@13
            > report edge-1 default/podpatch/web True
            > pod web a@7 edge-1 ready=False@13
              edge-1: default/pod/web a@7
        "#]],
    );
}

/// What vanished while no watch looked has nothing but a name and a uid.
#[test]
fn a_tombstone_takes_the_object_of_its_uid_away() {
    let mut placement = Placement::new();
    let mut told = String::new();
    for line in ["cm app c@1", "pod web a@2 edge-1 cm=app", "node edge-1 n@3 edge"] {
        tell(&mut placement, line, &mut told);
    }
    let tombstone = |name: &str, uid: &str| {
        let json = format!(r#"{{"metadata":{{"name":"{name}","namespace":"default","uid":"{uid}"}}}}"#);
        Seen::Deleted(Body::from_json(json).unwrap())
    };
    for uid in ["older", "n"] {
        told.push_str(&format!(
            "{:?}\n",
            placement.handle_node(tombstone("edge-1", uid)).unwrap().len()
        ));
    }
    for uid in ["older", "c"] {
        let changes = placement.handle_config_map(tombstone("app", uid)).unwrap();
        told.push_str(&format!("{}\n", changes.len()));
    }
    for uid in ["older", "a"] {
        told.push_str(&format!(
            "{:?}\n",
            placement.handle_pod(tombstone("web", uid)).unwrap()
        ));
    }
    expect![[r#"
          edge-1: default/configmap/app c@1
          edge-1: default/pod/web a@2
          edge-1: null/node/edge-1 n@3
        0
        1
        0
        1
        []
        [Change { node: NodeName("edge-1"), key: ObjectKey { namespace: Some("default"), kind: Pod, name: "web" }, object: None }]
    "#]].assert_eq(&told);
    assert_eq!(placement.sizes(), Sizes::default());
}

/// The times are printed for whoever wonders; that they do not grow with the square is what bounds the test.
#[test]
fn ten_thousand_pods_on_one_node_and_ten_thousand_nodes_are_no_trouble() {
    const MANY: usize = 10_000;
    let mut placement = Placement::new();
    let body = |json: String| Seen::Applied(Body::from_json(json).unwrap());
    for n in 0..MANY {
        let needs = format!("cm=own-{n}");
        let json = pod(
            &format!("crowd-{n}"),
            &format!("u{n}@1"),
            "crowded",
            &[&needs, "secret=all"],
        );
        placement.handle_pod(body(json)).unwrap();
        let json = pod(
            &format!("spread-{n}"),
            &format!("s{n}@1"),
            &format!("edge-{n}"),
            &["cm=all"],
        );
        placement.handle_pod(body(json)).unwrap();
        placement
            .handle_config_map(body(shared(&format!("own-{n}"), &format!("c{n}@1"))))
            .unwrap();
    }
    // Each time one object of one node changes, and each time the rest must not be looked at.
    for version in 0..1000 {
        let changes = placement.handle_config_map(body(shared("own-7", &format!("c7@{}", version + 2))));
        assert_eq!(changes.unwrap().len(), 1);
    }
    let all = placement.handle_config_map(body(shared("all", "c@1"))).unwrap();
    assert_eq!(all.len(), MANY);
    for n in 0..MANY {
        let json = pod(&format!("crowd-{n}"), &format!("u{n}@1"), "crowded", &[]);
        let gone = placement.handle_pod(Seen::Deleted(Body::from_json(json).unwrap()));
        assert_eq!(gone.unwrap().len(), 2);
    }
    assert!(placement.desired(&NodeName::new("crowded").unwrap()).is_empty());
}

/// Versions are compared for being equal and for nothing else, and a body of a megabyte is passed on as it is.
#[test]
fn odd_versions_and_large_bodies_are_as_good_as_others() {
    let mut placement = Placement::new();
    let mut told = String::new();
    tell(&mut placement, "pod web a@zz edge-1 cm=big", &mut told);
    let data = "x".repeat(1 << 20);
    for version in ["10", "9", "zebra", "apple"] {
        let json = format!(
            r#"{{{},"data":{{"v":"{version}","big":"{data}"}}}}"#,
            metadata("big", &format!("c@{version}"), r#""namespace":"default","#)
        );
        let changes = placement
            .handle_config_map(Seen::Applied(Body::from_json(json).unwrap()))
            .unwrap();
        let object = changes[0].object.as_ref().unwrap();
        let size = object.body.json().len();
        writeln!(told, "{} {} bytes", object.version, size).unwrap();
    }
    expect![[r#"
          edge-1: default/pod/web a@zz
        10 1048722 bytes
        9 1048720 bytes
        zebra 1048728 bytes
        apple 1048728 bytes
    "#]]
    .assert_eq(&told);
}

proptest! {
    /// Whoever applies the changes in their order holds what `desired` says, at every moment.
    #[test]
    fn changes_add_up_to_what_is_desired(lines in proptest::collection::vec(any_line(), 0..60)) {
        let mut placement = Placement::new();
        let mut held: BTreeMap<(String, String), String> = BTreeMap::new();
        for (version, line) in lines.iter().enumerate() {
            let mut told = String::new();
            tell(&mut placement, &line.replace("VERSION", &(version + 1).to_string()), &mut told);
            for change in told.lines() {
                let (node, change) = change.trim().split_once(": ").unwrap();
                let (key, what) = change.split_once(' ').unwrap();
                let place = (node.to_owned(), key.to_owned());
                if what == "is gone" {
                    prop_assert!(held.remove(&place).is_some(), "{line}: {place:?} was not held");
                } else {
                    let uid = what.split_once('@').unwrap().0.to_owned();
                    let before = held.insert(place.clone(), uid.clone());
                    let replaced = before.is_some_and(|before| before != uid) && key.contains("/pod/");
                    prop_assert!(!replaced, "{line}: {place:?} was replaced without a delete");
                }
            }
            let mut desired = BTreeMap::new();
            for node in ["edge-1", "edge-2"] {
                for (key, object) in placement.desired(&NodeName::new(node).unwrap()) {
                    desired.insert((node.to_owned(), key.to_string()), object.uid.to_string());
                }
            }
            prop_assert_eq!(&held, &desired, "after {}", line);
        }
    }
}
