//! Stories played on a small API server made of this crate's own strategies.

use super::*;
use crate::kinds::{Kind, Registry};
use crate::schema::FieldValidation;
use crate::strategy::{self, Creation, Deletion, Propagation};
use expect_test::{Expect, expect};
use jiff::SignedDuration;
use serde_json::json;

struct Server {
    registry: Registry,
    world: World,
    now: Timestamp,
    version: u64,
    settings: Settings,
    /// Whether kubelets run what is bound to their node.
    kubelets: bool,
    told: Vec<String>,
}

/// More passes than any story needs; a story that needs more does not settle.
const PASSES_MAX: u64 = 200;

impl Server {
    fn new() -> Self {
        Self {
            registry: Registry::builtin(),
            world: World::new(),
            now: "2026-11-21T10:00:00Z".parse().unwrap(),
            version: 0,
            settings: Settings::default(),
            kubelets: true,
            told: Vec::new(),
        }
    }

    fn kind(&self, resource: &str) -> Arc<Kind> {
        self.registry.by_group_resource(resource).unwrap()
    }

    fn store(&mut self, kind: &Kind, mut object: Value) {
        self.version += 1;
        meta::set(
            &mut object,
            &["metadata", "resourceVersion"],
            self.version.to_string().into(),
        );
        if strategy::is_finished(kind, &object) {
            self.world.remove(
                &kind.group_resource(),
                meta::namespace(&object),
                meta::name(&object),
            );
        } else {
            self.world.put(&kind.group_resource(), Arc::new(object));
        }
    }

    fn create(&mut self, resource: &str, object: Value) {
        let kind = self.kind(resource);
        let namespace = meta::namespace(&object).to_owned();
        let (uid, suffix) = (
            format!("uid-{}", self.version),
            meta::name_suffix(self.version, ""),
        );
        let creation = Creation {
            namespace: &namespace,
            uid: &uid,
            suffix: &suffix,
            now: self.now,
            validation: FieldValidation::Strict,
        };
        let admitted = strategy::create(&kind, object, &creation).unwrap_or_else(|e| panic!("{}", e.message));
        self.store(&kind, admitted.object);
    }

    fn get(&self, resource: &str, namespace: &str, name: &str) -> Value {
        (**self
            .world
            .get(resource, namespace, name)
            .unwrap_or_else(|| panic!("{resource} {name}")))
        .clone()
    }

    fn change(&mut self, resource: &str, name: &str, path: &[&str], value: Value) {
        let namespace = if self.kind(resource).namespaced {
            "default"
        } else {
            ""
        };
        let mut object = self.get(resource, namespace, name);
        meta::set(&mut object, path, value);
        self.update(resource, object);
    }

    fn update(&mut self, resource: &str, object: Value) {
        let kind = self.kind(resource);
        let Some(old) = self
            .world
            .get(resource, meta::namespace(&object), meta::name(&object))
            .cloned()
        else {
            return;
        };
        match strategy::update(&kind, object, &old, FieldValidation::Strict) {
            Ok(admitted) => self.store(&kind, admitted.object),
            Err(status) if status.code() == 409 => {}
            Err(status) => panic!("{}", status.message),
        }
    }

    fn update_status(&mut self, resource: &str, object: Value) {
        let kind = self.kind(resource);
        let Some(old) = self
            .world
            .get(resource, meta::namespace(&object), meta::name(&object))
            .cloned()
        else {
            return;
        };
        match strategy::update_status(&kind, object, &old, FieldValidation::Strict) {
            Ok(admitted) => self.store(&kind, admitted.object),
            Err(status) if status.code() == 409 => {}
            Err(status) => panic!("{}", status.message),
        }
    }

    fn delete(&mut self, resource: &str, namespace: &str, name: &str, options: &DeleteOptions) {
        let kind = self.kind(resource);
        let Some(old) = self.world.get(resource, namespace, name).cloned() else {
            return;
        };
        match strategy::begin_delete(&kind, &old, options, self.now).unwrap() {
            Deletion::Deleted => self.world.remove(resource, namespace, name),
            Deletion::MarkedTerminating { object } => self.store(&kind, object),
            Deletion::Unchanged => {}
        }
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Create { resource, object } => self.create(&resource, object),
            Write::Update { resource, object } => self.update(&resource, object),
            Write::UpdateStatus { resource, object } => self.update_status(&resource, object),
            Write::Delete {
                resource,
                namespace,
                name,
                options,
            } => self.delete(&resource, &namespace, &name, &options),
            Write::Bind {
                namespace,
                name,
                uid,
                node,
            } => {
                let kind = self.kind("pods");
                let binding =
                    json!({"metadata": {"name": name, "uid": uid}, "target": {"kind": "Node", "name": node}});
                let pod = self.get("pods", &namespace, &name);
                let bound = strategy::bind(&kind, &pod, &binding, self.now).unwrap();
                self.store(&kind, bound);
            }
            Write::FinalizeNamespace { object } => {
                let kind = self.kind("namespaces");
                let old = self.get("namespaces", "", meta::name(&object));
                let finalized = strategy::finalize_namespace(&kind, &object, &old).unwrap();
                self.store(&kind, finalized);
            }
            Write::Event { object } => self.told.push(format!(
                "{}: {}",
                meta::text(&object, &["reason"]),
                meta::text(&object, &["message"])
            )),
        }
    }

    /// Kubelets start what is bound and finish what is going.
    fn kubelets(&mut self) -> bool {
        let pods: Vec<Arc<Value>> = self.world.list("pods").cloned().collect();
        let mut acted = false;
        for pod in pods {
            let node = meta::text(&pod, &["spec", "nodeName"]).to_owned();
            let alive = self
                .world
                .get("nodes", "", &node)
                .is_some_and(|n| meta::condition_true(n, "Ready"));
            if !alive {
                continue;
            }
            if meta::is_terminating(&pod) {
                let options = DeleteOptions {
                    grace_period_seconds: Some(0),
                    ..DeleteOptions::default()
                };
                self.delete("pods", meta::namespace(&pod), meta::name(&pod), &options);
                acted = true;
            } else if meta::text(&pod, &["status", "phase"]) == "Pending"
                && !meta::text(&pod, &["spec", "containers"]).contains("broken")
            {
                let broken = pod["spec"]["containers"][0]["image"] == "broken";
                if broken {
                    continue;
                }
                let mut pod = (*pod).clone();
                meta::set(&mut pod, &["status", "phase"], "Running".into());
                meta::set_condition(&mut pod, "Ready", "True", "", "", self.now);
                self.update_status("pods", pod);
                acted = true;
            }
        }
        acted
    }

    /// Lets controllers and kubelets act until nobody wants anything.
    fn settle(&mut self) -> Option<Timestamp> {
        for seed in 0..PASSES_MAX {
            self.world.observe(self.now);
            let decision = decide(&self.world, &self.settings, self.now, seed);
            let quiet = decision.writes.is_empty();
            decision.writes.into_iter().for_each(|w| self.write(w));
            let acted = self.kubelets && self.kubelets();
            if quiet && !acted {
                return decision.wake_at;
            }
        }
        panic!(
            "does not settle: {:?}",
            decide(&self.world, &self.settings, self.now, 0).writes
        );
    }

    fn pass_time(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    fn node(&mut self, name: &str) {
        self.create("nodes", json!({"metadata": {"name": name}}));
        let mut node = self.get("nodes", "", name);
        meta::set(
            &mut node,
            &["status"],
            json!({"capacity": {"cpu": "2", "memory": "2Gi", "pods": "10"}, "allocatable": {"cpu": "2", "memory": "2Gi", "pods": "10"}}),
        );
        meta::set_condition(&mut node, "Ready", "True", "KubeletReady", "", self.now);
        self.update_status("nodes", node);
        self.heartbeat(name);
    }

    fn heartbeat(&mut self, name: &str) {
        let lease = json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": name, "namespace": "kube-node-lease", "uid": format!("lease-{name}")}, "spec": {"renewTime": meta::micro_time(self.now)}});
        self.world.put("leases.coordination.k8s.io", Arc::new(lease));
    }

    fn deployment(&mut self, replicas: i64, image: &str) {
        let object = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}});
        self.create("deployments.apps", object);
    }

    fn set_image(&mut self, image: &str) {
        let mut object = self.get("deployments.apps", "default", "web");
        object["spec"]["template"]["spec"]["containers"][0]["image"] = image.into();
        self.update("deployments.apps", object);
    }

    /// Pods by image and state, replica sets by revision and size, the deployment's numbers.
    fn story(&self) -> String {
        let pods: Vec<String> = self
            .world
            .list("pods")
            .map(|p| {
                let state = if meta::is_terminating(p) {
                    "Terminating"
                } else {
                    meta::text(p, &["status", "phase"])
                };
                let image = p["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
                format!("{image}@{}:{state}", meta::text(p, &["spec", "nodeName"]))
            })
            .collect();
        let mut counted: std::collections::BTreeMap<String, usize> = Default::default();
        pods.into_iter().for_each(|p| *counted.entry(p).or_default() += 1);
        let mut sets: Vec<String> = self
            .world
            .list("replicasets.apps")
            .map(|s| {
                format!(
                    "revision {} wants {}",
                    meta::annotation(s, "deployment.kubernetes.io/revision").unwrap_or("-"),
                    s["spec"]["replicas"]
                )
            })
            .collect();
        sets.sort();
        let status = self.world.get("deployments.apps", "default", "web").map(|d| {
            let number = |f: &str| meta::number(d, &["status", f]).unwrap_or(0);
            let conditions: Vec<String> = meta::items(d, &["status", "conditions"])
                .iter()
                .map(|c| {
                    format!(
                        "{}={} {}",
                        meta::text(c, &["type"]),
                        meta::text(c, &["status"]),
                        meta::text(c, &["reason"])
                    )
                })
                .collect();
            format!(
                "web {} updated {} ready {} available {} [{}]",
                number("replicas"),
                number("updatedReplicas"),
                number("readyReplicas"),
                number("availableReplicas"),
                conditions.join(", ")
            )
        });
        format!("{counted:?}\n{}\n{}", sets.join("; "), status.unwrap_or_default())
    }

    fn check(&self, expected: Expect) {
        expected.assert_eq(&self.story());
    }
}

fn cluster() -> Server {
    let mut server = Server::new();
    server.settle();
    server.node("edge-1");
    server.node("edge-2");
    server.settle();
    server.told.clear();
    server
}

#[test]
fn an_empty_cluster_gets_its_namespaces_and_accounts() {
    let mut server = Server::new();
    server.settings.root_ca = Some("PEM".to_owned());
    server.settle();
    let names: Vec<_> = server
        .world
        .list("namespaces")
        .map(|n| meta::name(n).to_owned())
        .collect();
    assert_eq!(
        names,
        ["default", "kube-node-lease", "kube-public", "kube-system"]
    );
    assert_eq!(server.world.list("serviceaccounts").count(), 4);
    assert_eq!(
        server.get("configmaps", "default", "kube-root-ca.crt")["data"]["ca.crt"],
        "PEM"
    );
}

#[test]
fn a_deployment_runs_scales_and_rolls() {
    let mut server = cluster();
    server.deployment(3, "web:1");
    server.settle();
    server.check(expect![[r#"
        {"web:1@edge-1:Running": 2, "web:1@edge-2:Running": 1}
        revision 1 wants 3
        web 3 updated 3 ready 3 available 3 [Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable]"#]]);
    server.change("deployments.apps", "web", &["spec", "replicas"], 5.into());
    server.settle();
    server.check(expect![[r#"
        {"web:1@edge-1:Running": 3, "web:1@edge-2:Running": 2}
        revision 1 wants 5
        web 5 updated 5 ready 5 available 5 [Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable]"#]]);
    server.set_image("web:2");
    server.settle();
    server.check(expect![[r#"
        {"web:2@edge-1:Running": 2, "web:2@edge-2:Running": 3}
        revision 1 wants 0; revision 2 wants 5
        web 5 updated 5 ready 5 available 5 [Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable]"#]]);
    server.set_image("web:1");
    server.settle();
    server.check(expect![[r#"
        {"web:1@edge-1:Running": 3, "web:1@edge-2:Running": 2}
        revision 2 wants 0; revision 3 wants 5
        web 5 updated 5 ready 5 available 5 [Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable]"#]]);
}

#[test]
fn a_roll_keeps_enough_pods() {
    let mut server = cluster();
    server.deployment(4, "web:1");
    server.settle();
    server.set_image("web:2");
    for seed in 0..PASSES_MAX {
        server.world.observe(server.now);
        let decision = decide(&server.world, &server.settings, server.now, 1000 + seed);
        let quiet = decision.writes.is_empty();
        decision.writes.into_iter().for_each(|w| server.write(w));
        let ready = server
            .world
            .list("pods")
            .filter(|p| !meta::is_terminating(p) && meta::condition_true(p, "Ready"))
            .count();
        let total = server
            .world
            .list("pods")
            .filter(|p| !meta::is_terminating(p))
            .count();
        assert!(ready >= 3, "at most one may be missing: {}", server.story());
        assert!(total <= 5, "at most one too many: {}", server.story());
        if !server.kubelets() && quiet {
            break;
        }
    }
    server.check(expect![[r#"
        {"web:2@edge-1:Running": 2, "web:2@edge-2:Running": 2}
        revision 1 wants 0; revision 2 wants 4
        web 4 updated 4 ready 4 available 4 [Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable]"#]]);
}

#[test]
fn a_broken_image_stops_the_roll() {
    let mut server = cluster();
    server.deployment(4, "web:1");
    server.settle();
    server.set_image("broken");
    server.settle();
    server.check(expect![[r#"
        {"broken@edge-1:Pending": 1, "broken@edge-2:Pending": 1, "web:1@edge-1:Running": 1, "web:1@edge-2:Running": 2}
        revision 1 wants 3; revision 2 wants 2
        web 5 updated 2 ready 3 available 3 [Available=True MinimumReplicasAvailable, Progressing=True ReplicaSetUpdated]"#]]);
    server.pass_time(601);
    for node in ["edge-1", "edge-2"] {
        server.heartbeat(node);
    }
    server.settle();
    server.check(expect![[r#"
        {"broken@edge-1:Pending": 1, "broken@edge-2:Pending": 1, "web:1@edge-1:Running": 1, "web:1@edge-2:Running": 2}
        revision 1 wants 3; revision 2 wants 2
        web 5 updated 2 ready 3 available 3 [Available=True MinimumReplicasAvailable, Progressing=False ProgressDeadlineExceeded]"#]]);
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut server = cluster();
    server.deployment(2, "web:1");
    server.change(
        "deployments.apps",
        "web",
        &["spec", "strategy"],
        json!({"type": "Recreate"}),
    );
    server.settle();
    server.set_image("web:2");
    server.kubelets = false;
    server.settle();
    server.check(expect![[r#"
        {"web:1@edge-1:Terminating": 1, "web:1@edge-2:Terminating": 1}
        revision 1 wants 0
        web 0 updated 0 ready 0 available 0 [Available=False MinimumReplicasUnavailable, Progressing=True ReplicaSetUpdated]"#]]);
    server.kubelets = true;
    server.settle();
    server.check(expect![[r#"
        {"web:2@edge-1:Running": 1, "web:2@edge-2:Running": 1}
        revision 1 wants 0; revision 2 wants 2
        web 2 updated 2 ready 2 available 2 [Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable]"#]]);
}

#[test]
fn a_deleted_deployment_takes_everything_along() {
    for propagation in [Propagation::Background, Propagation::Foreground] {
        let mut server = cluster();
        server.deployment(2, "web:1");
        server.settle();
        let options = DeleteOptions {
            propagation: Some(propagation),
            ..DeleteOptions::default()
        };
        server.delete("deployments.apps", "default", "web", &options);
        server.settle();
        assert_eq!(server.story(), "{}\n\n", "{propagation:?}");
    }
}

#[test]
fn an_orphaning_delete_leaves_the_pods() {
    let mut server = cluster();
    server.deployment(2, "web:1");
    server.settle();
    let options = DeleteOptions {
        propagation: Some(Propagation::Orphan),
        ..DeleteOptions::default()
    };
    server.delete("deployments.apps", "default", "web", &options);
    server.settle();
    server.check(expect![[r#"
        {"web:1@edge-1:Running": 1, "web:1@edge-2:Running": 1}
        revision 1 wants 2
    "#]]);
}

#[test]
fn a_silent_node_loses_its_pods_after_five_minutes() {
    let mut server = cluster();
    server.deployment(2, "web:1");
    server.settle();
    server.told.clear();
    server.pass_time(39);
    server.heartbeat("edge-2");
    let wake = server.settle();
    assert_eq!(wake.map(|w| w.as_second() - server.now.as_second()), Some(2));
    server.pass_time(2);
    server.settle();
    let node = server.get("nodes", "", "edge-1");
    expect![[r#""Unknown" [{"key":"node.kubernetes.io/unreachable","effect":"NoSchedule"},{"key":"node.kubernetes.io/unreachable","effect":"NoExecute","timeAdded":"2026-11-21T10:00:41Z"}]"#]]
        .assert_eq(&format!("{} {}", node["status"]["conditions"][0]["status"], node["spec"]["taints"]));
    server.check(expect![[r#"
        {"web:1@edge-1:Running": 1, "web:1@edge-2:Running": 1}
        revision 1 wants 2
        web 2 updated 2 ready 1 available 1 [Available=False MinimumReplicasUnavailable, Progressing=True NewReplicaSetAvailable]"#]]);
    for _ in 0..10 {
        server.pass_time(31);
        server.heartbeat("edge-2");
        server.settle();
    }
    server.check(expect![[r#"
        {"web:1@edge-1:Terminating": 1, "web:1@edge-2:Running": 2}
        revision 1 wants 2
        web 2 updated 2 ready 2 available 2 [Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable]"#]]);
    let mut node = server.get("nodes", "", "edge-1");
    meta::set_condition(&mut node, "Ready", "True", "KubeletReady", "", server.now);
    server.update_status("nodes", node);
    server.heartbeat("edge-1");
    server.settle();
    assert!(server.get("nodes", "", "edge-1")["spec"].get("taints").is_none());
    server.check(expect![[r#"
        {"web:1@edge-2:Running": 2}
        revision 1 wants 2
        web 2 updated 2 ready 2 available 2 [Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable]"#]]);
}

#[test]
fn pods_of_a_vanished_node_go_after_a_while() {
    let mut server = cluster();
    server.deployment(2, "web:1");
    server.settle();
    server.delete("nodes", "", "edge-1", &DeleteOptions::default());
    server.settle();
    server.check(expect![[r#"
        {"web:1@edge-1:Running": 1, "web:1@edge-2:Running": 1}
        revision 1 wants 2
        web 2 updated 2 ready 2 available 2 [Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable]"#]]);
    server.pass_time(40);
    server.heartbeat("edge-2");
    server.settle();
    server.check(expect![[r#"
        {"web:1@edge-2:Running": 2}
        revision 1 wants 2
        web 2 updated 2 ready 2 available 2 [Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable]"#]]);
}

#[test]
fn the_scheduler_says_why_not() {
    let mut server = cluster();
    server.change("nodes", "edge-1", &["spec", "unschedulable"], true.into());
    let pod = |name: &str, spec: Value| {
        let mut pod = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
        let ask = meta::take(&mut pod, &["spec", "ask"]);
        meta::set(
            &mut pod,
            &["spec", "containers"],
            json!([{"name": "c", "image": "i:1", "resources": {"requests": ask}}]),
        );
        pod
    };
    server.create("pods", pod("big", json!({"ask": {"cpu": "3"}})));
    server.create(
        "pods",
        pod("picky", json!({"ask": {}, "nodeSelector": {"disk": "ssd"}})),
    );
    server.create("pods", pod("fine", json!({"ask": {"cpu": "500m"}})));
    server.settle();
    let told = server
        .told
        .iter()
        .filter(|t| t.starts_with("FailedScheduling") || t.starts_with("Scheduled"))
        .cloned()
        .collect::<Vec<_>>();
    expect![[r#"
        FailedScheduling: 0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.
        Scheduled: Successfully assigned default/fine to edge-2
        FailedScheduling: 0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were unschedulable."#]].assert_eq(&told.join("\n"));
    server.change("nodes", "edge-2", &["metadata", "labels"], json!({"disk": "ssd"}));
    server.settle();
    assert_eq!(
        server.get("pods", "default", "picky")["spec"]["nodeName"],
        "edge-2"
    );
}

#[test]
fn pods_spread_over_nodes() {
    let mut server = cluster();
    server.deployment(6, "web:1");
    server.settle();
    server.check(expect![[r#"
        {"web:1@edge-1:Running": 3, "web:1@edge-2:Running": 3}
        revision 1 wants 6
        web 6 updated 6 ready 6 available 6 [Available=True MinimumReplicasAvailable, Progressing=True NewReplicaSetAvailable]"#]]);
}

#[test]
fn a_namespace_is_emptied_and_goes() {
    let mut server = cluster();
    server.create("namespaces", json!({"metadata": {"name": "shop"}}));
    server.settle();
    server.create(
        "configmaps",
        json!({"metadata": {"name": "a", "namespace": "shop"}}),
    );
    server.delete("namespaces", "", "shop", &DeleteOptions::default());
    server.settle();
    assert!(server.world.get("namespaces", "", "shop").is_none());
    assert_eq!(server.world.list_in("configmaps", "shop").count(), 0);
}

#[test]
fn nodes_get_networks() {
    let mut server = Server::new();
    server.settings.cluster_cidr = Some("10.42.0.0/16".to_owned());
    server.settle();
    server.node("edge-1");
    server.node("edge-2");
    server.settle();
    let networks: Vec<_> = server
        .world
        .list("nodes")
        .map(|n| n["spec"]["podCIDR"].to_string())
        .collect();
    assert_eq!(networks, [r#""10.42.0.0/24""#, r#""10.42.1.0/24""#]);
}

#[test]
fn events_are_counted_and_expire() {
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "default", "uid": "u"}});
    let now = "2026-11-21T10:00:00Z".parse().unwrap();
    let later = "2026-11-21T10:05:00Z".parse().unwrap();
    let first = event::event(&pod, "Normal", "Pulled", "Pulled image", "kubelet", now);
    let again = event::event(&pod, "Normal", "Pulled", "Pulled image", "kubelet", later);
    assert_eq!(first["metadata"], again["metadata"]);
    let counted = count_event(&first, &again);
    assert_eq!(
        (counted["count"].clone(), counted["lastTimestamp"].clone()),
        (2.into(), "2026-11-21T10:05:00Z".into())
    );
    let mut server = Server::new();
    server.settle();
    server.create("events", first);
    server.settle();
    assert_eq!(server.world.list("events").count(), 1);
    server.pass_time(3602);
    server.settle();
    assert_eq!(server.world.list("events").count(), 0);
}
