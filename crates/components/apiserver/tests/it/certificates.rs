//! Requests for certificates: who asks, who approves, and the certificate.

use crate::client::{Client, Running};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

fn request(name: &str, organization: &str, hosts: &[&str]) -> Value {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut parameters = rcgen::CertificateParams::new(hosts).unwrap();
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, format!("system:node:{name}"));
    parameters
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, organization);
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = parameters.serialize_request(&key).unwrap().pem().unwrap();
    json!({"kind": "CertificateSigningRequest", "apiVersion": "certificates.k8s.io/v1", "metadata": {"name": name},
        "spec": {"signerName": "kubernetes.io/kubelet-serving", "request": STANDARD.encode(pem),
            "usages": ["server auth", "digital signature"], "username": "somebody else", "expirationSeconds": 3600}})
}

async fn approve(client: &Client, name: &str) -> crate::client::Answer {
    let mut object = client.get(&format!("{REQUESTS}/{name}")).await.ok();
    object["status"]["conditions"] =
        json!([{"type": "Approved", "status": "True", "reason": "Test", "message": "m"}]);
    client.put(&format!("{REQUESTS}/{name}/approval"), &object).await
}

#[tokio::test]
async fn an_approved_request_gets_its_certificate() {
    let running = Running::start().await;
    let admin = running.admin();
    let made = admin
        .post(
            REQUESTS,
            &request("edge-1", "system:nodes", &["edge-1", "192.168.1.7"]),
        )
        .await
        .ok();
    assert_eq!(made["spec"]["username"], "admin", "the server knows who asks");
    assert_eq!(
        made["spec"]["groups"],
        json!(["system:masters", "system:authenticated"])
    );
    let mut watch = admin.watch(&format!("{REQUESTS}?watch=1")).await;
    approve(&admin, "edge-1").await.ok();
    let signed = |object: &Value| object["status"]["certificate"].is_string();
    let object = watch.until("it is signed", signed).await;
    let pem = STANDARD
        .decode(object["status"]["certificate"].as_str().unwrap())
        .unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
    assert_eq!(
        certificate.subject().to_string(),
        "CN=system:node:edge-1, O=system:nodes"
    );
    let validity = certificate.validity();
    assert_eq!(
        validity.not_after.timestamp() - validity.not_before.timestamp(),
        3600 + 300
    );
    assert!(
        certificate
            .extended_key_usage()
            .unwrap()
            .unwrap()
            .value
            .server_auth
    );
    let table = admin
        .get_as(REQUESTS, "application/json;as=Table;v=v1;g=meta.k8s.io")
        .await
        .ok();
    assert_eq!(
        table["rows"][0]["cells"].as_array().unwrap().last().unwrap(),
        "Approved,Issued"
    );
    running.stop().await;
}

#[tokio::test]
async fn what_is_no_node_is_not_signed() {
    let running = Running::start().await;
    let admin = running.admin();
    let mut watch = admin.watch(&format!("{REQUESTS}?watch=1")).await;
    for (name, organization, hosts) in [("a", "people", &["a"][..]), ("b", "system:nodes", &[][..])] {
        admin
            .post(REQUESTS, &request(name, organization, hosts))
            .await
            .ok();
        approve(&admin, name).await.ok();
        let failed = |object: &Value| {
            let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|c| c["type"] == "Failed")
        };
        let object = watch.until("it has failed", failed).await;
        assert_eq!(object["status"].get("certificate"), None);
    }
    running.stop().await;
}

#[tokio::test]
async fn only_who_may_approve_for_the_signer_approves() {
    let running = Running::start().await;
    let admin = running.admin();
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": ["certificates.k8s.io"],
        "resources": ["certificatesigningrequests", "certificatesigningrequests/approval"], "verbs": ["get", "update"]}]);
    let role = json!({"metadata": {"name": "half"}, "rules": rules});
    admin.post(&format!("{roles}/clusterroles"), &role).await.ok();
    let binding = json!({"metadata": {"name": "half"}, "subjects": [{"kind": "User", "name": "anna"}],
        "roleRef": {"kind": "ClusterRole", "name": "half"}});
    admin
        .post(&format!("{roles}/clusterrolebindings"), &binding)
        .await
        .ok();
    admin
        .post(REQUESTS, &request("edge-1", "system:nodes", &["edge-1"]))
        .await
        .ok();
    let anna = running.client(Some(("anna", "people")));
    let refused = approve(&anna, "edge-1").await;
    assert_eq!(
        (refused.code, refused.json()["message"].as_str().unwrap()),
        (
            403,
            r#"certificatesigningrequests.certificates.k8s.io "edge-1" is forbidden: user not permitted to approve requests with signerName "kubernetes.io/kubelet-serving""#
        )
    );
    let signers = json!([{"apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
        "resourceNames": ["kubernetes.io/*"], "verbs": ["approve"]}]);
    let mut wider = role.clone();
    wider["rules"]
        .as_array_mut()
        .unwrap()
        .extend(signers.as_array().unwrap().clone());
    admin
        .put(&format!("{roles}/clusterroles/half"), &wider)
        .await
        .ok();
    approve(&anna, "edge-1").await.ok();
    running.stop().await;
}
