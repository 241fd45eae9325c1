use super::*;
use expect_test::expect;
use serde_json::json;

fn crd() -> Value {
    json!({
        "metadata": {"name": "devices.devices.kubeedge.io"},
        "spec": {
            "group": "devices.kubeedge.io", "scope": "Namespaced",
            "names": {"plural": "devices", "kind": "Device", "shortNames": ["dev"]},
            "versions": [
                {"name": "v1beta1", "served": true, "storage": true, "subresources": {"status": {}}},
                {"name": "v1alpha2", "served": false, "storage": false},
            ],
        },
    })
}

#[test]
fn lookups() {
    let registry = Registry::builtin();
    assert_eq!(
        registry.lookup("apps", "v1", "deployments").unwrap().kind,
        "Deployment"
    );
    assert_eq!(
        registry
            .lookup_kind("apps/v1", "ReplicaSet")
            .unwrap()
            .group_resource(),
        "replicasets.apps"
    );
    assert_eq!(registry.by_group_resource("pods").unwrap().kind, "Pod");
    assert!(registry.lookup("apps", "v1", "daemonsets").is_none());
}

#[test]
fn a_definition_comes_and_goes() {
    let mut registry = Registry::builtin();
    let kinds = registry.register_crd(&crd()).unwrap();
    assert_eq!(kinds.len(), 1);
    assert_eq!(kinds[0].list_kind, "DeviceList");
    let list = registry
        .api_resource_list("devices.kubeedge.io", "v1beta1")
        .unwrap();
    expect![[r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"devices.kubeedge.io/v1beta1","resources":[{"name":"devices","singularName":"device","namespaced":true,"kind":"Device","verbs":["create","delete","deletecollection","get","list","patch","update","watch"],"shortNames":["dev"]},{"name":"devices/status","singularName":"","namespaced":true,"kind":"Device","verbs":["get","patch","update"]}]}"#]]
        .assert_eq(&list.to_string());
    registry
        .register_crd(&crd())
        .expect("a second time replaces the first");
    assert_eq!(registry.unregister_crd("devices.devices.kubeedge.io").len(), 1);
    assert!(
        registry
            .api_resource_list("devices.kubeedge.io", "v1beta1")
            .is_none()
    );
}

#[test]
fn a_definition_may_not_take_a_served_name() {
    let mut registry = Registry::builtin();
    registry.register_crd(&crd()).unwrap();
    let mut other = crd();
    meta::set(&mut other, &["metadata", "name"], "other".into());
    expect!["serve custom resource definition other: devices in group devices.kubeedge.io is already served"]
        .assert_eq(&registry.register_crd(&other).unwrap_err().to_string());
}

#[test]
fn versions_are_ordered_by_stability() {
    let mut versions = vec!["v1alpha1", "v1", "foo", "v2beta1", "v2", "v1beta2"];
    versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
    assert_eq!(versions, ["v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]);
}

#[test]
fn group_list() {
    let list = Registry::builtin().api_group_list();
    let groups: Vec<_> = meta::items(&list, &["groups"])
        .iter()
        .map(|g| meta::text(g, &["preferredVersion", "groupVersion"]))
        .collect();
    expect![[r#"["apiextensions.k8s.io/v1", "apps/v1", "authentication.k8s.io/v1", "authorization.k8s.io/v1", "certificates.k8s.io/v1", "coordination.k8s.io/v1", "node.k8s.io/v1", "rbac.authorization.k8s.io/v1", "storage.k8s.io/v1"]"#]]
        .assert_eq(&format!("{groups:?}"));
}

#[test]
fn aggregated_discovery_by_accept() {
    let kubectl_1_32 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
    assert_eq!(
        AggregatedVersion::from_accept(kubectl_1_32),
        Some(AggregatedVersion::V2)
    );
    assert_eq!(AggregatedVersion::from_accept("application/json"), None);
    let core = Registry::builtin().aggregated(true, AggregatedVersion::V2);
    let pods = meta::items(&core["items"][0]["versions"][0], &["resources"])
        .iter()
        .find(|r| r["resource"] == "pods")
        .unwrap();
    expect![[r#"{"resource":"pods","responseKind":{"group":"","version":"v1","kind":"Pod"},"scope":"Namespaced","singularResource":"pod","verbs":["create","delete","deletecollection","get","list","patch","update","watch"],"shortNames":["po"],"categories":["all"],"subresources":[{"subresource":"binding","responseKind":{"group":"","version":"v1","kind":"Binding"},"verbs":["create"]},{"subresource":"eviction","responseKind":{"group":"policy","version":"v1","kind":"Eviction"},"verbs":["create"]},{"subresource":"log","responseKind":{"group":"","version":"v1","kind":"Pod"},"verbs":["get"]},{"subresource":"status","responseKind":{"group":"","version":"v1","kind":"Pod"},"verbs":["get","patch","update"]}]}"#]]
        .assert_eq(&pods.to_string());
}
