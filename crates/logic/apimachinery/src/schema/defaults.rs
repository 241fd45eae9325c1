//! What Kubernetes fills in when the author left it out.

use crate::kinds::Kind;
use crate::meta::{self, at, set_default, text};
use serde_json::{Value, json};

/// How long a pod stays on a node that stopped answering, unless its own tolerations say otherwise.
const UNREACHABLE_TOLERATION_SECONDS: i64 = 300;

pub(super) fn builtin(kind: &Kind, object: &mut Value) {
    match kind.group_resource().as_str() {
        "pods" => pod(object),
        "deployments.apps" => deployment(object),
        "replicasets.apps" => replica_set(object),
        "services" => service(object),
        "namespaces" => namespace(object),
        "nodes" => node(object),
        "secrets" => set_default(object, &["type"], "Opaque".into()),
        "persistentvolumes" => persistent_volume(object),
        "persistentvolumeclaims" => persistent_volume_claim(object),
        "endpoints" => endpoints(object),
        "events" => event(object),
        "customresourcedefinitions.apiextensions.k8s.io" => definition(object),
        "certificatesigningrequests.certificates.k8s.io" => signing_request(object),
        "rolebindings.rbac.authorization.k8s.io" | "clusterrolebindings.rbac.authorization.k8s.io" => {
            role_binding(object)
        }
        "storageclasses.storage.k8s.io" => storage_class(object),
        "csidrivers.storage.k8s.io" => csi_driver(object),
        _ => {}
    }
}

fn pod(object: &mut Value) {
    pod_spec(meta::map(object).entry("spec").or_insert(Value::Null));
    set_default(object, &["status", "phase"], "Pending".into());
    let class = quality_of_service(object);
    set_default(object, &["status", "qosClass"], class.into());
}

/// Defaults of a pod spec, also inside templates.
pub fn pod_spec(spec: &mut Value) {
    set_default(spec, &["restartPolicy"], "Always".into());
    set_default(spec, &["terminationGracePeriodSeconds"], 30.into());
    set_default(spec, &["dnsPolicy"], "ClusterFirst".into());
    set_default(spec, &["securityContext"], json!({}));
    set_default(spec, &["schedulerName"], "default-scheduler".into());
    same_account(spec);
    let host_network = at(spec, &["hostNetwork"]) == &Value::Bool(true);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        each(spec, list, |c| container(c, host_network));
    }
    each(spec, "volumes", volume);
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are kept equal.
fn same_account(spec: &mut Value) {
    for (from, to) in [
        ("serviceAccountName", "serviceAccount"),
        ("serviceAccount", "serviceAccountName"),
    ] {
        let account = text(spec, &[from]).to_owned();
        if !account.is_empty() {
            set_default(spec, &[to], account.into());
        }
    }
}

fn each(value: &mut Value, list: &str, change: impl FnMut(&mut Value)) {
    if let Some(values) = value.get_mut(list).and_then(Value::as_array_mut) {
        values.iter_mut().for_each(change);
    }
}

fn container(container: &mut Value, host_network: bool) {
    let policy = if pulls_always(text(container, &["image"])) {
        "Always"
    } else {
        "IfNotPresent"
    };
    set_default(container, &["resources"], json!({}));
    requests_from_limits(container);
    set_default(
        container,
        &["terminationMessagePath"],
        "/dev/termination-log".into(),
    );
    set_default(container, &["terminationMessagePolicy"], "File".into());
    set_default(container, &["imagePullPolicy"], policy.into());
    each(container, "ports", |port| {
        set_default(port, &["protocol"], "TCP".into());
        if host_network {
            let number = at(port, &["containerPort"]).clone();
            set_default(port, &["hostPort"], number);
        }
    });
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = container.get_mut(name).filter(|p| p.is_object()) {
            probe(found);
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(get) = container.pointer_mut(&format!("/lifecycle/{name}/httpGet")) {
            http_get(get);
        }
    }
    each(container, "env", |variable| {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            set_default(field, &["apiVersion"], "v1".into());
        }
    });
}

/// An image without tag or with the tag `latest` may change at any time.
fn pulls_always(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// What is limited is requested, unless something else is.
fn requests_from_limits(container: &mut Value) {
    let limits = at(container, &["resources", "limits"])
        .as_object()
        .cloned()
        .unwrap_or_default();
    for (resource, limit) in limits {
        set_default(container, &["resources", "requests", &resource], limit);
    }
}

fn probe(probe: &mut Value) {
    if let Some(get) = probe.get_mut("httpGet").filter(|g| g.is_object()) {
        http_get(get);
    }
    if let Some(call) = probe.get_mut("grpc").filter(|g| g.is_object()) {
        set_default(call, &["service"], "".into());
    }
    for (name, number) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        // Zero means "not given" as well.
        if meta::number(probe, &[name]).unwrap_or(0) == 0 {
            meta::set(probe, &[name], number.into());
        }
    }
}

fn http_get(get: &mut Value) {
    set_default(get, &["path"], "/".into());
    set_default(get, &["scheme"], "HTTP".into());
}

fn volume(volume: &mut Value) {
    const DEFAULT_MODE: i64 = 0o644;
    let has_source = volume.as_object().is_some_and(|v| v.len() > 1);
    if !has_source {
        meta::set(volume, &["emptyDir"], json!({}));
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source).filter(|s| s.is_object()) {
            set_default(source, &["defaultMode"], DEFAULT_MODE.into());
        }
    }
    if let Some(path) = volume.get_mut("hostPath").filter(|p| p.is_object()) {
        set_default(path, &["type"], "".into());
    }
    if let Some(sources) = volume.get_mut("projected") {
        each(sources, "sources", |source| {
            if let Some(token) = source.get_mut("serviceAccountToken") {
                set_default(token, &["expirationSeconds"], 3600.into());
            }
            if let Some(items) = source.get_mut("downwardAPI") {
                field_versions(items);
            }
        });
    }
    if let Some(items) = volume.get_mut("downwardAPI") {
        field_versions(items);
    }
}

fn field_versions(downward: &mut Value) {
    each(downward, "items", |item| {
        if let Some(field) = item.get_mut("fieldRef").filter(|f| f.is_object()) {
            set_default(field, &["apiVersion"], "v1".into());
        }
    });
}

/// What admission adds to a new pod: the default account, a numeric priority, and how long it stays on a node that is
/// not ready or does not answer.
pub fn pod_tolerations(pod: &mut Value) {
    set_default(pod, &["spec", "serviceAccountName"], "default".into());
    if let Some(spec) = pod.get_mut("spec") {
        same_account(spec);
    }
    set_default(pod, &["spec", "enableServiceLinks"], true.into());
    set_default(pod, &["spec", "priority"], 0.into());
    set_default(pod, &["spec", "preemptionPolicy"], "PreemptLowerPriority".into());
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = meta::items(pod, &["spec", "tolerations"]).iter().any(|t| {
            let effect = text(t, &["effect"]);
            let everything = text(t, &["key"]).is_empty() && text(t, &["operator"]) == "Exists";
            (text(t, &["key"]) == key || everything) && (effect.is_empty() || effect == "NoExecute")
        });
        if !covered {
            let spec = meta::map(pod).entry("spec").or_insert(Value::Null);
            meta::list(meta::map(spec).entry("tolerations").or_insert(Value::Null)).push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": UNREACHABLE_TOLERATION_SECONDS,
            }));
        }
    }
}

/// Guaranteed when every container limits CPU and memory and requests just that, BestEffort when none says anything.
fn quality_of_service(pod: &Value) -> &'static str {
    let containers = || {
        let spec = at(pod, &["spec"]);
        meta::items(spec, &["containers"])
            .iter()
            .chain(meta::items(spec, &["initContainers"]))
    };
    let quantity = |c: &Value, list: &str, resource: &str| {
        crate::quantity::Quantity::of(at(c, &["resources", list, resource]))
            .filter(|q| *q != Default::default())
    };
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let silent = |c: &Value| {
        COUNTED
            .iter()
            .all(|r| quantity(c, "limits", r).is_none() && quantity(c, "requests", r).is_none())
    };
    let fixed = |c: &Value| {
        COUNTED.iter().all(|r| {
            quantity(c, "limits", r).is_some() && quantity(c, "limits", r) == quantity(c, "requests", r)
        })
    };
    if containers().all(silent) {
        "BestEffort"
    } else if containers().all(fixed) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn deployment(object: &mut Value) {
    let spec = meta::map(object).entry("spec").or_insert(Value::Null);
    set_default(spec, &["replicas"], 1.into());
    set_default(spec, &["strategy", "type"], "RollingUpdate".into());
    if text(spec, &["strategy", "type"]) == "RollingUpdate" {
        set_default(
            spec,
            &["strategy", "rollingUpdate", "maxUnavailable"],
            "25%".into(),
        );
        set_default(spec, &["strategy", "rollingUpdate", "maxSurge"], "25%".into());
    }
    set_default(spec, &["revisionHistoryLimit"], 10.into());
    set_default(spec, &["progressDeadlineSeconds"], 600.into());
    template(spec);
}

fn replica_set(object: &mut Value) {
    let spec = meta::map(object).entry("spec").or_insert(Value::Null);
    set_default(spec, &["replicas"], 1.into());
    template(spec);
    set_default(object, &["status", "replicas"], 0.into());
}

fn template(spec: &mut Value) {
    if let Some(pod) = spec.pointer_mut("/template/spec") {
        pod_spec(pod);
    }
}

fn service(object: &mut Value) {
    let spec = meta::map(object).entry("spec").or_insert(Value::Null);
    set_default(spec, &["type"], "ClusterIP".into());
    set_default(spec, &["sessionAffinity"], "None".into());
    if text(spec, &["sessionAffinity"]) == "ClientIP" {
        set_default(
            spec,
            &["sessionAffinityConfig", "clientIP", "timeoutSeconds"],
            10800.into(),
        );
    }
    let kind = text(spec, &["type"]).to_owned();
    if kind != "ExternalName" {
        set_default(spec, &["internalTrafficPolicy"], "Cluster".into());
        set_default(spec, &["ipFamilies"], json!(["IPv4"]));
        set_default(spec, &["ipFamilyPolicy"], "SingleStack".into());
        let address = at(spec, &["clusterIP"]).clone();
        if address.is_string() && address != "" {
            set_default(spec, &["clusterIPs"], json!([address]));
        }
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        set_default(spec, &["externalTrafficPolicy"], "Cluster".into());
    }
    if kind == "LoadBalancer" {
        set_default(spec, &["allocateLoadBalancerNodePorts"], true.into());
    }
    each(spec, "ports", |port| {
        set_default(port, &["protocol"], "TCP".into());
        let number = at(port, &["port"]).clone();
        set_default(port, &["targetPort"], number);
    });
    set_default(object, &["status", "loadBalancer"], json!({}));
}

fn namespace(object: &mut Value) {
    let name = meta::name(object).to_owned();
    if !name.is_empty() {
        meta::set(
            object,
            &["metadata", "labels", "kubernetes.io/metadata.name"],
            name.into(),
        );
    }
    set_default(object, &["spec", "finalizers"], json!(["kubernetes"]));
    set_default(object, &["status", "phase"], "Active".into());
}

fn node(object: &mut Value) {
    set_default(object, &["spec"], json!({}));
    let capacity = at(object, &["status", "capacity"]).clone();
    if capacity.is_object() {
        set_default(object, &["status", "allocatable"], capacity);
    }
}

fn persistent_volume(object: &mut Value) {
    set_default(
        object,
        &["spec", "persistentVolumeReclaimPolicy"],
        "Retain".into(),
    );
    set_default(object, &["spec", "volumeMode"], "Filesystem".into());
    set_default(object, &["status", "phase"], "Pending".into());
}

fn persistent_volume_claim(object: &mut Value) {
    set_default(object, &["spec", "volumeMode"], "Filesystem".into());
    set_default(object, &["status", "phase"], "Pending".into());
}

fn endpoints(object: &mut Value) {
    each(object, "subsets", |subset| {
        each(subset, "ports", |port| {
            set_default(port, &["protocol"], "TCP".into())
        })
    });
}

fn event(object: &mut Value) {
    set_default(object, &["type"], "Normal".into());
    set_default(object, &["source"], json!({}));
    set_default(object, &["reportingComponent"], "".into());
    set_default(object, &["reportingInstance"], "".into());
}

fn definition(object: &mut Value) {
    let kind = text(object, &["spec", "names", "kind"]).to_owned();
    set_default(object, &["spec", "names", "singular"], kind.to_lowercase().into());
    set_default(
        object,
        &["spec", "names", "listKind"],
        format!("{kind}List").into(),
    );
    set_default(object, &["spec", "conversion", "strategy"], "None".into());
}

fn signing_request(object: &mut Value) {
    set_default(
        object,
        &["spec", "usages"],
        json!(["digital signature", "key encipherment"]),
    );
}

fn role_binding(object: &mut Value) {
    let group = || Value::from(crate::rbac::GROUP);
    if at(object, &["roleRef"]).is_object() {
        set_default(object, &["roleRef", "apiGroup"], group());
    }
    each(object, "subjects", |subject| {
        if matches!(text(subject, &["kind"]), "User" | "Group") {
            set_default(subject, &["apiGroup"], group());
        }
    });
}

fn storage_class(object: &mut Value) {
    set_default(object, &["reclaimPolicy"], "Delete".into());
    set_default(object, &["volumeBindingMode"], "Immediate".into());
}

fn csi_driver(object: &mut Value) {
    let no = [
        "podInfoOnMount",
        "storageCapacity",
        "requiresRepublish",
        "seLinuxMount",
    ];
    for field in no {
        set_default(object, &["spec", field], false.into());
    }
    set_default(object, &["spec", "attachRequired"], true.into());
    set_default(
        object,
        &["spec", "fsGroupPolicy"],
        "ReadWriteOnceWithFSType".into(),
    );
    set_default(object, &["spec", "volumeLifecycleModes"], json!(["Persistent"]));
}

#[cfg(test)]
mod tests {
    use crate::kinds::Registry;
    use crate::schema::apply_defaults;
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    fn check(api_version: &str, kind: &str, mut object: Value, expected: Expect) {
        let kind = Registry::builtin().lookup_kind(api_version, kind).unwrap();
        apply_defaults(&kind, &mut object);
        expected.assert_eq(&serde_json::to_string_pretty(&object).unwrap());
        let once = object.clone();
        apply_defaults(&kind, &mut object);
        assert_eq!(object, once, "defaulting twice changes nothing");
    }

    #[test]
    fn pod() {
        let container = json!({"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": 80}}});
        let volumes = json!([{"name": "v"}, {"name": "w", "configMap": {"name": "c"}}]);
        check(
            "v1",
            "Pod",
            json!({"spec": {"containers": [container], "volumes": volumes}}),
            expect![[r#"
            {
              "spec": {
                "containers": [
                  {
                    "name": "a",
                    "image": "nginx",
                    "ports": [
                      {
                        "containerPort": 80,
                        "protocol": "TCP"
                      }
                    ],
                    "resources": {
                      "limits": {
                        "cpu": "1"
                      },
                      "requests": {
                        "cpu": "1"
                      }
                    },
                    "livenessProbe": {
                      "httpGet": {
                        "port": 80,
                        "path": "/",
                        "scheme": "HTTP"
                      },
                      "timeoutSeconds": 1,
                      "periodSeconds": 10,
                      "successThreshold": 1,
                      "failureThreshold": 3
                    },
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                    "imagePullPolicy": "Always"
                  }
                ],
                "volumes": [
                  {
                    "name": "v",
                    "emptyDir": {}
                  },
                  {
                    "name": "w",
                    "configMap": {
                      "name": "c",
                      "defaultMode": 420
                    }
                  }
                ],
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": 30,
                "dnsPolicy": "ClusterFirst",
                "securityContext": {},
                "schedulerName": "default-scheduler"
              },
              "status": {
                "phase": "Pending",
                "qosClass": "Burstable"
              }
            }"#]],
        );
    }

    #[test]
    fn deployment() {
        let object =
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "nginx:1.27"}]}}}});
        check(
            "apps/v1",
            "Deployment",
            object,
            expect![[r#"
            {
              "spec": {
                "template": {
                  "spec": {
                    "containers": [
                      {
                        "name": "a",
                        "image": "nginx:1.27",
                        "resources": {},
                        "terminationMessagePath": "/dev/termination-log",
                        "terminationMessagePolicy": "File",
                        "imagePullPolicy": "IfNotPresent"
                      }
                    ],
                    "restartPolicy": "Always",
                    "terminationGracePeriodSeconds": 30,
                    "dnsPolicy": "ClusterFirst",
                    "securityContext": {},
                    "schedulerName": "default-scheduler"
                  }
                },
                "replicas": 1,
                "strategy": {
                  "type": "RollingUpdate",
                  "rollingUpdate": {
                    "maxUnavailable": "25%",
                    "maxSurge": "25%"
                  }
                },
                "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600
              }
            }"#]],
        );
    }

    #[test]
    fn service_and_namespace() {
        check(
            "v1",
            "Service",
            json!({"spec": {"ports": [{"port": 80}]}}),
            expect![[r#"
            {
              "spec": {
                "ports": [
                  {
                    "port": 80,
                    "protocol": "TCP",
                    "targetPort": 80
                  }
                ],
                "type": "ClusterIP",
                "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster",
                "ipFamilies": [
                  "IPv4"
                ],
                "ipFamilyPolicy": "SingleStack"
              },
              "status": {
                "loadBalancer": {}
              }
            }"#]],
        );
        check(
            "v1",
            "Namespace",
            json!({"metadata": {"name": "shop"}}),
            expect![[r#"
            {
              "metadata": {
                "name": "shop",
                "labels": {
                  "kubernetes.io/metadata.name": "shop"
                }
              },
              "spec": {
                "finalizers": [
                  "kubernetes"
                ]
              },
              "status": {
                "phase": "Active"
              }
            }"#]],
        );
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, always) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1", false),
            ("host:5000/nginx", true),
            ("nginx@sha256:ab", false),
        ] {
            assert_eq!(super::pulls_always(image), always, "{image}");
        }
    }
}
