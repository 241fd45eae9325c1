//! The certificate of a node's own server: asked for, approved, and nobody else's.

use crate::world::{PATIENCE, World, body, key, node};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kedge_wire::{ObjectKind, Request};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::{Value, json};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const OWN_USER: &str = "system:serviceaccount:kubeedge:cloudcore";

/// Base64 of the PEM of a request of `subject` for one address.
fn pem(subject: &str, ip: [u8; 4]) -> String {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "system:nodes");
    name.push(DnType::CommonName, format!("system:node:{subject}"));
    params.distinguished_name = name;
    params.subject_alt_names = vec![SanType::IpAddress(ip.into())];
    let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
    STANDARD.encode(request.pem().unwrap())
}

fn signing_request(name: &str, request: &str, usage: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"signerName": "kubernetes.io/kubelet-serving", "request": request,
                 "usages": ["digital signature", usage]},
    })
}

async fn world() -> World {
    world_with(kedge_controllers::Config::default()).await
}

async fn world_with(config: kedge_controllers::Config) -> World {
    let world = World::with(config, &[node("edge-1"), node("edge-2")], |api| {
        api.serve("certificatesigningrequests");
        api.answer_always(
            "POST",
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            json!({"status": {"userInfo": {"username": OWN_USER}}}),
        );
    })
    .await;
    world.leads.send_replace(true);
    world
}

/// The API writes down who created a request; this small one does not.
fn created_by(world: &World, name: &str, user: &str) {
    let path = format!("{REQUESTS}/{name}");
    let mut request = world.api.object(&path).unwrap();
    request["spec"]["username"] = user.into();
    world.api.put(&path, request);
}

async fn until_approved(world: &World, name: &str) {
    let approved = |request: Option<&Value>| {
        request.is_some_and(|request| request["status"]["conditions"][0]["type"] == "Approved")
    };
    let path = format!("{REQUESTS}/{name}");
    tokio::time::timeout(PATIENCE, world.api.until_object(&path, approved))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_node_gets_the_certificate_of_its_own_server_and_no_other() {
    let world = world().await;
    let session = world.session("edge-1").await;
    let insert = |name: &str, request: &str, usage: &str| {
        let key = key(ObjectKind::CertificateSigningRequest, name);
        Request::insert(key, body(signing_request(name, request, usage)))
    };
    let own = "metaserver-csr-edge-1";
    let fine = pem("edge-1", [10, 0, 0, 7]);
    for (name, request, usage, why) in [
        (
            own,
            pem("edge-2", [10, 0, 0, 7]),
            "server auth",
            "its subject is the node edge-2",
        ),
        (
            own,
            pem("edge-1", [10, 0, 0, 8]),
            "server auth",
            "10.0.0.8 is not an address of this node",
        ),
        (own, fine.clone(), "client auth", "does not ask for the usage"),
        (
            own,
            "no base64!".to_owned(),
            "server auth",
            "its request is not base64",
        ),
        (
            "metaserver-csr-edge-2",
            fine.clone(),
            "server auth",
            "is named metaserver-csr-<node>",
        ),
    ] {
        let answer = session.ask(insert(name, &request, usage)).await;
        assert!(answer.contains(why) && answer.contains("403"), "{why}: {answer}");
    }
    assert!(world.calls(REQUESTS).iter().all(|method| method != "POST"));

    let answer = session.ask(insert(own, &fine, "server auth")).await;
    assert!(answer.contains(r#""kedge.io/node":"edge-1""#), "{answer}");
    created_by(&world, own, OWN_USER);
    until_approved(&world, own).await;

    let query = |name: &str| Request::query(key(ObjectKind::CertificateSigningRequest, name));
    assert!(session.ask(query(own)).await.contains("Approved"));
    let foreign = world.session("edge-2").await;
    assert!(
        foreign
            .ask(query(own))
            .await
            .contains("it is not a request of this node")
    );
}

#[tokio::test]
async fn requests_of_others_are_never_approved() {
    let world = world().await;
    let annotated = |name: &str, user: &str, request: String| {
        let mut object = signing_request(name, &request, "server auth");
        object["metadata"]["annotations"] = json!({"kedge.io/node": "edge-1"});
        object["spec"]["username"] = user.into();
        world.api.put(&format!("{REQUESTS}/{name}"), object);
    };
    let fine = || pem("edge-1", [10, 0, 0, 7]);
    annotated("of-a-stranger", "someone", fine());
    annotated("of-a-foreign-address", OWN_USER, pem("edge-1", [8, 8, 8, 8]));
    annotated("of-another-node", OWN_USER, pem("edge-2", [10, 0, 0, 7]));
    annotated("own", OWN_USER, fine());
    until_approved(&world, "own").await;
    for name in ["of-a-stranger", "of-a-foreign-address", "of-another-node"] {
        let request = world.api.object(&format!("{REQUESTS}/{name}")).unwrap();
        assert!(request["status"].is_null(), "{request}");
    }
}

/// What an edge of ours asks for, and what is approved.
fn own_request() -> Value {
    let mut object = signing_request("own", &pem("edge-1", [10, 0, 0, 7]), "server auth");
    object["metadata"]["annotations"] = json!({"kedge.io/node": "edge-1"});
    object["spec"]["username"] = OWN_USER.into();
    object
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_approves() {
    let world = world().await;
    world.leads.send_replace(false);
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    world.api.put(&format!("{REQUESTS}/own"), own_request());
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(world.api.object(&format!("{REQUESTS}/own")).unwrap()["status"].is_null());
    world.leads.send_replace(true);
    until_approved(&world, "own").await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_approved_where_it_is_switched_off() {
    let config = kedge_controllers::Config {
        serving_certificates: false,
        ..kedge_controllers::Config::default()
    };
    let world = world_with(config).await;
    world.api.put(&format!("{REQUESTS}/own"), own_request());
    // The approver of the tests above needs no minute.
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(world.api.object(&format!("{REQUESTS}/own")).unwrap()["status"].is_null());
    assert!(world.calls(REQUESTS).is_empty());
}
