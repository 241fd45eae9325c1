use super::*;
use expect_test::expect;

/// Every `$ref` of a document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if key == "$ref" => found.push(text.to_owned()),
                    _ => references(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let registry = Registry::builtin();
    let mut documents = vec![v2(&registry)];
    documents.extend(
        registry
            .groups()
            .iter()
            .flat_map(|(g, versions)| versions.iter().filter_map(|v| v3(&registry, g, v))),
    );
    for document in documents {
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            assert!(
                document.pointer(reference.trim_start_matches('#')).is_some(),
                "{reference}"
            );
        }
    }
}

#[test]
fn clients_find_field_validation() {
    let document = v3(&Registry::builtin(), "apps", "v1").unwrap();
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    expect![[r##"{"operationId":"patchV1Deployment","x-kubernetes-action":"patch","x-kubernetes-group-version-kind":{"group":"apps","version":"v1","kind":"Deployment"},"parameters":[{"name":"dryRun","in":"query","schema":{"type":"string","uniqueItems":true}},{"name":"fieldManager","in":"query","schema":{"type":"string","uniqueItems":true}},{"name":"fieldValidation","in":"query","schema":{"type":"string","uniqueItems":true}}],"responses":{"200":{"description":"OK","content":{"application/json":{"schema":{"$ref":"#/components/schemas/io.k8s.api.apps.v1.Deployment"}}}}}}"##]]
        .assert_eq(&patch.to_string());
    let containers =
        &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    expect![[r##"{"type":"array","items":{"$ref":"#/components/schemas/io.k8s.api.core.v1.Container"},"x-kubernetes-patch-strategy":"merge","x-kubernetes-patch-merge-key":"name"}"##]]
        .assert_eq(&containers.to_string());
}

#[test]
fn the_index_names_every_group_version() {
    let index = v3_index(&Registry::builtin());
    let places: Vec<_> = index["paths"].as_object().unwrap().keys().cloned().collect();
    expect![[r#"["api/v1", "apis/apiextensions.k8s.io/v1", "apis/apps/v1", "apis/authentication.k8s.io/v1", "apis/authorization.k8s.io/v1", "apis/certificates.k8s.io/v1", "apis/coordination.k8s.io/v1", "apis/node.k8s.io/v1", "apis/rbac.authorization.k8s.io/v1", "apis/storage.k8s.io/v1"]"#]]
        .assert_eq(&format!("{places:?}"));
    assert!(v3(&Registry::builtin(), "nothing", "v1").is_none());
}

#[test]
fn protobuf_bytes() {
    expect![[r#""\n\u{3}2.0\u{12}\u{15}\n\nKubernetes\u{12}\u{7}v1.32.0B\0J\0""#]]
        .assert_eq(&format!("{:?}", String::from_utf8(v2_protobuf()).unwrap()));
}
