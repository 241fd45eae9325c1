//! The table of what an edge may ask.

// Every line here is test code, where a panic is the report.
#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use kedge_placement::index::Standing;
use kedge_placement::report::{ApiCall, Verdict, judge, question};
use kedge_wire::{Body, NodeName, ObjectKey, Operation, Request, Uid};
use std::fmt::Write;

/// Each line: operation, key, `yes` or `no` for what placement says (with a uid, if it knows one), and a JSON body.
fn check(lines: &str, expect: Expect) {
    let node = NodeName::new("edge-1").unwrap();
    let mut told = String::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.splitn(4, ' ');
        let operation = Operation::parse(words.next().unwrap());
        let key = ObjectKey::parse(words.next().unwrap()).unwrap();
        let standing = standing(words.next().unwrap());
        let body = Body::from_json(words.next().unwrap_or("null").to_owned()).unwrap();
        let verdict = judge(&node, &Request::from_edged(operation, key, body), &standing);
        writeln!(told, "> {line}\n  {}", describe(verdict)).unwrap();
    }
    expect.assert_eq(&told);
}

fn standing(words: &str) -> Standing {
    Standing {
        allowed: words.starts_with("yes"),
        uid: words.split_once('=').map(|(_, uid)| Uid::new(uid)),
        node: None,
    }
}

fn describe(verdict: Verdict) -> String {
    match verdict {
        Verdict::Settled => "settled".to_owned(),
        Verdict::Forbidden(why) => format!("forbidden: {why}"),
        Verdict::Unsupported(why) => format!("unsupported: {why}"),
        Verdict::Refused(status) => format!("refused: {status}"),
        Verdict::CallThenCheck { call, shape, owner } => {
            format!(
                "{} if its {owner:?} says so",
                describe(Verdict::Call { call, shape })
            )
        }
        Verdict::Call { call, shape } => {
            let call = match call {
                ApiCall::Get { path } => format!("GET {path}"),
                ApiCall::Create { path, body } => format!("POST {path} {}", body.json()),
                ApiCall::Update { path, body } => format!("PUT {path} {}", body.json()),
                ApiCall::StrategicPatch { path, body } => format!("PATCH strategic {path} {body}"),
                ApiCall::MergePatch { path, body } => format!("PATCH merge {path} {body}"),
                ApiCall::Delete { path, options } => format!("DELETE {path} {}", options.json()),
            };
            format!("{call} -> {shape:?}")
        }
    }
}

#[test]
fn nodes_and_leases() {
    check(
        r#"insert null/node/edge-1 yes {"metadata":{"name":"edge-1","labels":{"a":"b"}},"spec":{}}
           insert null/node/edge-1 yes {"metadata":{"name":"edge-2"}}
           insert null/node/edge-2 no {"metadata":{"name":"edge-2"}}
           insert null/node/edge-1 yes {"metadata":{"name":"edge-1","labels":{"node-restriction.kubernetes.io/x":"y"}}}
           insert null/node/edge-1 yes "no object"
           update null/node/edge-1 yes {"metadata":{"name":"edge-1","labels":{"a":"b"},"annotations":{"c":"d"},"uid":"u"},"spec":{"taints":[]}}
           query null/node/edge-1 yes
           delete null/node/edge-1 yes
           patch null/nodepatch/edge-1 yes "{\"status\":{\"phase\":\"x\"}}"
           patch null/nodepatch/edge-1 yes "{\"spec\":{\"unschedulable\":true}}"
           patch null/nodepatch/edge-1 yes "nonsense"
           patch null/nodepatch/edge-2 no "{\"status\":{}}"
           update kube-node-lease/lease/edge-1 yes {}
           update default/nodestatus/edge-1 no {}"#,
        expect![[r#"
            > insert null/node/edge-1 yes {"metadata":{"name":"edge-1","labels":{"a":"b"}},"spec":{}}
              POST /api/v1/nodes {"metadata":{"name":"edge-1","labels":{"a":"b"}},"spec":{},"apiVersion":"v1","kind":"Node"} -> ObjectResponse
            > insert null/node/edge-1 yes {"metadata":{"name":"edge-2"}}
              forbidden: edge-1 may not insert null/node/edge-1: its body names another object than its resource
            > insert null/node/edge-2 no {"metadata":{"name":"edge-2"}}
              forbidden: edge-1 may not insert null/node/edge-2: it is the node of another node
            > insert null/node/edge-1 yes {"metadata":{"name":"edge-1","labels":{"node-restriction.kubernetes.io/x":"y"}}}
              forbidden: edge-1 may not insert null/node/edge-1: label "node-restriction.kubernetes.io/x" is set by administrators only
            > insert null/node/edge-1 yes "no object"
              unsupported: edge-1 asked to insert null/node/edge-1, but its body is not a JSON object
            > update null/node/edge-1 yes {"metadata":{"name":"edge-1","labels":{"a":"b"},"annotations":{"c":"d"},"uid":"u"},"spec":{"taints":[]}}
              PATCH merge /api/v1/nodes/edge-1 {"metadata":{"labels":{"a":"b"},"annotations":{"c":"d"}}} -> Ok
            > query null/node/edge-1 yes
              GET /api/v1/nodes/edge-1 -> Raw
            > delete null/node/edge-1 yes
              unsupported: edge-1 asked to delete null/node/edge-1, which is not served: this kind has no such operation
            > patch null/nodepatch/edge-1 yes "{\"status\":{\"phase\":\"x\"}}"
              PATCH strategic /api/v1/nodes/edge-1/status {"status":{"phase":"x"}} -> ObjectResponse
            > patch null/nodepatch/edge-1 yes "{\"spec\":{\"unschedulable\":true}}"
              forbidden: edge-1 may not patch null/nodepatch/edge-1: a status patch may not touch "spec"
            > patch null/nodepatch/edge-1 yes "nonsense"
              unsupported: edge-1 asked to patch null/nodepatch/edge-1, but its patch is not a JSON object
            > patch null/nodepatch/edge-2 no "{\"status\":{}}"
              forbidden: edge-1 may not patch null/nodepatch/edge-2: it is the node of another node
            > update kube-node-lease/lease/edge-1 yes {}
              unsupported: edge-1 asked to update kube-node-lease/lease/edge-1, which is not served: it is judged in another place
            > update default/nodestatus/edge-1 no {}
              unsupported: edge-1 asked to update default/nodestatus/edge-1, which is not served: use nodepatch, as edges since v1.12 do
        "#]],
    );
}

#[test]
fn pods() {
    check(
        r#"patch default/podpatch/web yes=a "{\"metadata\":{\"uid\":\"a\"},\"status\":{\"phase\":\"Running\"}}"
           patch default/podpatch/web yes=a "{\"status\":{\"phase\":\"Running\"}}"
           patch default/podpatch/web yes=b "{\"metadata\":{\"uid\":\"a\"},\"status\":{}}"
           patch default/podpatch/web yes=a "{\"metadata\":{\"uid\":\"a\",\"labels\":{\"app\":\"x\"}},\"status\":{}}"
           patch default/podpatch/web no "{\"status\":{}}"
           delete default/pod/web yes {"gracePeriodSeconds":0,"preconditions":{"uid":"a"}}
           delete default/pod/web yes {"gracePeriodSeconds":0}
           delete default/pod/web yes "a"
           delete default/pod/web yes null
           delete default/pod/web no {"preconditions":{"uid":"a"}}
           delete default/pod/web no {"gracePeriodSeconds":0}
           insert default/pod/web no {"metadata":{"name":"web","annotations":{"kubernetes.io/config.mirror":"x"}},"spec":{"nodeName":"edge-1","containers":[{}]}}
           insert default/pod/web no {"metadata":{"name":"web"},"spec":{"nodeName":"edge-1"}}
           insert default/pod/web no {"metadata":{"name":"web","annotations":{"kubernetes.io/config.mirror":"x"}},"spec":{"nodeName":"edge-2"}}
           insert default/pod/web no {"metadata":{"name":"web","annotations":{"kubernetes.io/config.mirror":"x"}},"spec":{"nodeName":"edge-1","volumes":[{"secret":{"secretName":"admin"}}]}}
           insert default/pod/web no {"metadata":{"name":"web","annotations":{"kubernetes.io/config.mirror":"x"}},"spec":{"nodeName":"edge-1","serviceAccountName":"admin"}}
           update default/podstatus/web yes {}"#,
        expect![[r#"
            > patch default/podpatch/web yes=a "{\"metadata\":{\"uid\":\"a\"},\"status\":{\"phase\":\"Running\"}}"
              PATCH strategic /api/v1/namespaces/default/pods/web/status {"metadata":{"uid":"a"},"status":{"phase":"Running"}} -> ObjectResponse
            > patch default/podpatch/web yes=a "{\"status\":{\"phase\":\"Running\"}}"
              PATCH strategic /api/v1/namespaces/default/pods/web/status {"status":{"phase":"Running"},"metadata":{"uid":"a"}} -> ObjectResponse
            > patch default/podpatch/web yes=b "{\"metadata\":{\"uid\":\"a\"},\"status\":{}}"
              refused: Operation cannot be fulfilled on pods "web": the pod of this name has uid b now (409 Conflict)
            > patch default/podpatch/web yes=a "{\"metadata\":{\"uid\":\"a\",\"labels\":{\"app\":\"x\"}},\"status\":{}}"
              forbidden: edge-1 may not patch default/podpatch/web: a pod's status patch may not touch metadata.labels
            > patch default/podpatch/web no "{\"status\":{}}"
              refused: pods "web" not found (404 NotFound)
            > delete default/pod/web yes {"gracePeriodSeconds":0,"preconditions":{"uid":"a"}}
              DELETE /api/v1/namespaces/default/pods/web {"gracePeriodSeconds":0,"preconditions":{"uid":"a"},"apiVersion":"v1","kind":"DeleteOptions"} -> Ok
            > delete default/pod/web yes {"gracePeriodSeconds":0}
              unsupported: edge-1 asked to delete default/pod/web, but its delete options have no preconditions.uid
            > delete default/pod/web yes "a"
              DELETE /api/v1/namespaces/default/pods/web {"gracePeriodSeconds":0,"preconditions":{"uid":"a"}} -> Ok
            > delete default/pod/web yes null
              unsupported: edge-1 asked to delete default/pod/web, but its delete options are no JSON object
            > delete default/pod/web no {"preconditions":{"uid":"a"}}
              settled
            > delete default/pod/web no {"gracePeriodSeconds":0}
              unsupported: edge-1 asked to delete default/pod/web, but its delete options have no preconditions.uid
            > insert default/pod/web no {"metadata":{"name":"web","annotations":{"kubernetes.io/config.mirror":"x"}},"spec":{"nodeName":"edge-1","containers":[{}]}}
              POST /api/v1/namespaces/default/pods {"metadata":{"name":"web","annotations":{"kubernetes.io/config.mirror":"x"}},"spec":{"nodeName":"edge-1","containers":[{}]},"apiVersion":"v1","kind":"Pod"} -> ObjectResponse
            > insert default/pod/web no {"metadata":{"name":"web"},"spec":{"nodeName":"edge-1"}}
              forbidden: edge-1 may not insert default/pod/web: a node creates only mirror pods of its static pods
            > insert default/pod/web no {"metadata":{"name":"web","annotations":{"kubernetes.io/config.mirror":"x"}},"spec":{"nodeName":"edge-2"}}
              forbidden: edge-1 may not insert default/pod/web: a mirror pod must name this node
            > insert default/pod/web no {"metadata":{"name":"web","annotations":{"kubernetes.io/config.mirror":"x"}},"spec":{"nodeName":"edge-1","volumes":[{"secret":{"secretName":"admin"}}]}}
              forbidden: edge-1 may not insert default/pod/web: a mirror pod may not refer to secrets, config maps, claims or service accounts
            > insert default/pod/web no {"metadata":{"name":"web","annotations":{"kubernetes.io/config.mirror":"x"}},"spec":{"nodeName":"edge-1","serviceAccountName":"admin"}}
              forbidden: edge-1 may not insert default/pod/web: a mirror pod may not refer to secrets, config maps, claims or service accounts
            > update default/podstatus/web yes {}
              unsupported: edge-1 asked to update default/podstatus/web, which is not served: use podpatch, as edges since v1.12 do
        "#]],
    );
}

#[test]
fn queries() {
    check(
        r#"query default/configmap/app yes
           query default/configmap/app no
           query default/secret/app yes
           update default/secret/app yes {}
           query null/persistentvolume/disk yes
           query default/persistentvolumeclaim/disk yes
           query default/volumeattachment/csi-1 yes
           query default/device/thermo yes
           query default/gadget/x yes
           query null/csidriver/disk.csi no
           query null/runtimeclass/vm no
           delete null/csidriver/disk.csi yes
           query null/csinode/edge-1 no
           query null/csinode/edge-2 yes
           insert null/csinode/edge-1 no {"metadata":{"name":"edge-1"},"spec":{"drivers":[]}}
           insert null/csinode/edge-1 no {"metadata":{"name":"edge-2"},"spec":{"drivers":[]}}
           patch null/csinode/edge-1 no {"spec":{"drivers":[]}}
           patch null/csinode/edge-1 no {"metadata":{}}
           patch null/csinode/edge-1 no 7
           delete null/csinode/edge-1 no
           query default/serviceaccounttoken/robot yes {"spec":{"expirationSeconds":3607,"boundObjectRef":{"kind":"Pod","name":"web","uid":"a"}}}
           query default/serviceaccounttoken/robot yes {"spec":{}}
           query default/serviceaccounttoken/robot no {"spec":{"boundObjectRef":{"kind":"Pod","name":"web","uid":"a"}}}"#,
        expect![[r#"
            > query default/configmap/app yes
              GET /api/v1/namespaces/default/configmaps/app -> Raw
            > query default/configmap/app no
              forbidden: edge-1 may not query default/configmap/app: no pod of this node uses it
            > query default/secret/app yes
              GET /api/v1/namespaces/default/secrets/app -> Raw
            > update default/secret/app yes {}
              unsupported: edge-1 asked to update default/secret/app, which is not served: this kind has no such operation
            > query null/persistentvolume/disk yes
              GET /api/v1/persistentvolumes/disk -> Raw if its Claim says so
            > query default/persistentvolumeclaim/disk yes
              GET /api/v1/namespaces/default/persistentvolumeclaims/disk -> Raw
            > query default/volumeattachment/csi-1 yes
              GET /apis/storage.k8s.io/v1/volumeattachments/csi-1 -> Raw if its Node says so
            > query default/device/thermo yes
              unsupported: edge-1 asked to query default/device/thermo, which is not served: the cloud serves no such kind to edges
            > query default/gadget/x yes
              unsupported: edge-1 asked to query default/gadget/x, which is not served: the cloud serves no such kind to edges
            > query null/csidriver/disk.csi no
              GET /apis/storage.k8s.io/v1/csidrivers/disk.csi -> Raw
            > query null/runtimeclass/vm no
              GET /apis/node.k8s.io/v1/runtimeclasses/vm -> Raw
            > delete null/csidriver/disk.csi yes
              unsupported: edge-1 asked to delete null/csidriver/disk.csi, which is not served: this kind has no such operation
            > query null/csinode/edge-1 no
              GET /apis/storage.k8s.io/v1/csinodes/edge-1 -> Raw
            > query null/csinode/edge-2 yes
              forbidden: edge-1 may not query null/csinode/edge-2: it is the CSINode of another node
            > insert null/csinode/edge-1 no {"metadata":{"name":"edge-1"},"spec":{"drivers":[]}}
              POST /apis/storage.k8s.io/v1/csinodes {"metadata":{"name":"edge-1"},"spec":{"drivers":[]},"apiVersion":"storage.k8s.io/v1","kind":"CSINode"} -> ObjectResponse
            > insert null/csinode/edge-1 no {"metadata":{"name":"edge-2"},"spec":{"drivers":[]}}
              forbidden: edge-1 may not insert null/csinode/edge-1: its body names another object than its resource
            > patch null/csinode/edge-1 no {"spec":{"drivers":[]}}
              PATCH merge /apis/storage.k8s.io/v1/csinodes/edge-1 {"spec":{"drivers":[]}} -> ObjectResponse
            > patch null/csinode/edge-1 no {"metadata":{}}
              forbidden: edge-1 may not patch null/csinode/edge-1: its patch may not touch "metadata"
            > patch null/csinode/edge-1 no 7
              unsupported: edge-1 asked to patch null/csinode/edge-1, but its patch is not a JSON object
            > delete null/csinode/edge-1 no
              unsupported: edge-1 asked to delete null/csinode/edge-1, which is not served: this kind has no such operation
            > query default/serviceaccounttoken/robot yes {"spec":{"expirationSeconds":3607,"boundObjectRef":{"kind":"Pod","name":"web","uid":"a"}}}
              POST /api/v1/namespaces/default/serviceaccounts/robot/token {"spec":{"expirationSeconds":3607,"boundObjectRef":{"kind":"Pod","name":"web","uid":"a"}},"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest"} -> Raw
            > query default/serviceaccounttoken/robot yes {"spec":{}}
              forbidden: edge-1 may not query default/serviceaccounttoken/robot: a node gets only tokens that are bound to a pod and its uid
            > query default/serviceaccounttoken/robot no {"spec":{"boundObjectRef":{"kind":"Pod","name":"web","uid":"a"}}}
              forbidden: edge-1 may not query default/serviceaccounttoken/robot: no pod of this name, uid and service account is placed on this node
        "#]],
    );
}

#[test]
fn events() {
    check(
        r#"insert default/event/web.1 no {"metadata":{"name":"web.1","namespace":"default"},"source":{"host":"edge-1"}}
           insert default/event/web.1 no {"metadata":{"name":"web.1","namespace":"kube-system"}}
           insert default/event/web.1 no {"metadata":{"name":"web.1"},"source":{"host":"edge-2"}}
           update default/event/web.1 no {"metadata":{"name":"web.1"}}
           patch default/event/web.1 no {"event":{"metadata":{"name":"web.1"}},"patchData":"{\"count\":2}"}
           patch default/event/web.1 no {"event":{},"patchData":"nonsense"}
           query default/certificatesigningrequest/csr-1 no"#,
        expect![[r#"
            > insert default/event/web.1 no {"metadata":{"name":"web.1","namespace":"default"},"source":{"host":"edge-1"}}
              POST /api/v1/namespaces/default/events {"metadata":{"name":"web.1","namespace":"default"},"source":{"host":"edge-1"},"apiVersion":"v1","kind":"Event"} -> None
            > insert default/event/web.1 no {"metadata":{"name":"web.1","namespace":"kube-system"}}
              forbidden: edge-1 may not insert default/event/web.1: its body names another namespace than its resource
            > insert default/event/web.1 no {"metadata":{"name":"web.1"},"source":{"host":"edge-2"}}
              forbidden: edge-1 may not insert default/event/web.1: it is an event of another host
            > update default/event/web.1 no {"metadata":{"name":"web.1"}}
              PUT /api/v1/namespaces/default/events/web.1 {"metadata":{"name":"web.1"},"apiVersion":"v1","kind":"Event"} -> None
            > patch default/event/web.1 no {"event":{"metadata":{"name":"web.1"}},"patchData":"{\"count\":2}"}
              PATCH strategic /api/v1/namespaces/default/events/web.1 {"count":2} -> None
            > patch default/event/web.1 no {"event":{},"patchData":"nonsense"}
              unsupported: edge-1 asked to patch default/event/web.1, but patchData is not a JSON object
            > query default/certificatesigningrequest/csr-1 no
              unsupported: edge-1 asked to query default/certificatesigningrequest/csr-1, which is not served: it is judged in another place
        "#]],
    );
}

#[test]
fn names_never_leave_their_place_in_a_path() {
    let node = NodeName::new("edge-1").unwrap();
    for name in [
        "..",
        ".",
        "a..b",
        "a/b",
        "a%2fb",
        "a?b",
        "a#b",
        "a b",
        "a\nb",
        "",
        &"x".repeat(254),
    ] {
        for namespace in [Some(name), Some("default")] {
            let key = ObjectKey {
                namespace: namespace.map(str::to_owned),
                kind: kedge_wire::ObjectKind::ConfigMap,
                name: name.to_owned(),
            };
            let verdict = judge(&node, &Request::query(key), &standing("yes"));
            assert!(
                matches!(verdict, Verdict::Unsupported(_)),
                "{name:?} gave {verdict:?}"
            );
        }
    }
}

#[test]
fn a_token_is_asked_for_a_pod_and_everything_else_by_its_key() {
    let ask = |json: &str| {
        let body = Body::from_json(json.to_owned()).unwrap();
        format!(
            "{:?}\n",
            question(&Request::query_token("default", "robot", body))
        )
    };
    let told = [
        ask(r#"{"spec":{"boundObjectRef":{"kind":"Pod","name":"web","uid":"a"}}}"#),
        ask(r#"{"spec":{"boundObjectRef":{"kind":"Secret","name":"web","uid":"a"}}}"#),
        ask(r#"{"spec":{}}"#),
        ask("7"),
    ];
    expect![[r#"
        Token { account: "robot", pod: ObjectKey { namespace: Some("default"), kind: Pod, name: "web" }, uid: Uid("a") }
        Key(ObjectKey { namespace: Some("default"), kind: ServiceAccountToken, name: "robot" })
        Key(ObjectKey { namespace: Some("default"), kind: ServiceAccountToken, name: "robot" })
        Key(ObjectKey { namespace: Some("default"), kind: ServiceAccountToken, name: "robot" })
    "#]].assert_eq(&told.concat());
}
