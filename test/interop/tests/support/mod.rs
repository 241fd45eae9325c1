//! What happens in more than one story.

// Each story takes what it needs.
#![allow(dead_code)]

use kedge_interop::wait_for;
use kedge_interop::workload::{self, identity, is_ready};
use kedge_interop::{Api, Cloud, Containerd, Lab, Official, OfficialEdge};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Name of the official node.
const NODE: &str = "official-1";

/// A cluster with a place for a CloudCore. What stands first ends first.
pub(crate) struct World {
    edge: Option<OfficialEdge>,
    pub(crate) cloud: Cloud,
    containerd: Option<Containerd>,
    pub(crate) api: Api,
    pub(crate) lab: Lab,
}

/// A pod at one moment.
pub(crate) struct Pod {
    name: String,
    uid: String,
    identity: String,
}

impl World {
    pub(crate) fn embedded(name: &'static str, official: &Official) -> Self {
        let lab = Lab::new(name);
        let program = Path::new(env!("CARGO_BIN_EXE_embedded-api"));
        let api = Api::embedded(&lab, program, official);
        Self::new(lab, api, official)
    }

    pub(crate) fn kubernetes(name: &'static str, official: &Official) -> Self {
        let lab = Lab::new(name);
        let api = Api::kubernetes(&lab, official);
        Self::new(lab, api, official)
    }

    fn new(lab: Lab, api: Api, official: &Official) -> Self {
        Self {
            edge: None,
            cloud: Cloud::new(&lab, &api, official),
            containerd: None,
            api,
            lab,
        }
    }

    pub(crate) fn edge_mut(&mut self) -> &mut OfficialEdge {
        self.edge.as_mut().unwrap()
    }

    pub(crate) fn edge(&self) -> &OfficialEdge {
        self.edge.as_ref().unwrap()
    }

    pub(crate) fn join_official_edge(&mut self, official: &Official) {
        let containerd = Containerd::start("interop");
        let token = self.api.join_token();
        let ports = self.cloud.ports();
        self.edge = Some(OfficialEdge::join(
            &self.lab,
            official,
            &containerd,
            NODE,
            ports,
            &token,
        ));
        self.containerd = Some(containerd);
        self.api.wait_ready(NODE);
    }

    fn marks(&self) -> PathBuf {
        self.lab.folder("marks")
    }

    /// Everything that a pod usually takes from its cluster, a change of it, and a gentle end.
    pub(crate) fn a_working_day(&self) {
        self.deploy();
        let pod = self.web_pod();
        self.wait_said(&pod, "hello prepared tr0ub4dor");
        let token = self.volume_file(&pod, "projected", "token", "token").unwrap();
        let claims = workload::claims(&token);
        assert_eq!(claims["aud"][0], workload::AUDIENCE);
        assert_eq!(claims["kubernetes.io"]["pod"]["uid"], pod.uid);
        self.wait_page(&pod, "one");

        self.change_page("two");
        self.wait_page(&pod, "two");
        self.is_untouched(&pod);

        self.delete_gently(&pod.name);
        self.api.wait_gone("pod", &pod.name);
        let mark = std::fs::read_to_string(self.marks().join(&pod.name));
        assert_eq!(mark.unwrap(), "bye\n", "the pod was asked to end and could");
        self.wait_ready_pods(1);
        assert_ne!(self.web_pod().uid, pod.uid, "the deployment has made another");
    }

    pub(crate) fn deploy(&self) {
        self.api.apply(&workload::web(1, "one", &self.marks()));
        self.wait_ready_pods(1);
    }

    pub(crate) fn scale(&self, replicas: u32) {
        let replicas = format!("--replicas={replicas}");
        self.api.kubectl(&["scale", "deployment/web", &replicas]).ok();
    }

    pub(crate) fn change_page(&self, page: &str) {
        let patch = format!(r#"{{"data": {{"page": "{page}"}}}}"#);
        self.api
            .kubectl(&["patch", "configmap", "web", "--patch", &patch])
            .ok();
    }

    /// Waits until exactly so many pods of the deployment are there, and each is ready.
    pub(crate) fn wait_ready_pods(&self, count: usize) {
        self.api.wait_for(
            &format!("{count} pods ready"),
            &["pods", "--selector=app=web"],
            |pods| {
                let pods = pods["items"].as_array().unwrap();
                pods.len() == count && pods.iter().all(is_ready)
            },
        );
    }

    /// The first pod of the deployment.
    pub(crate) fn web_pod(&self) -> Pod {
        let pods = self.api.get(&["pods", "--selector=app=web"]).unwrap();
        Pod::of(&pods["items"][0])
    }

    pub(crate) fn run_loner(&self, name: &str) {
        self.run_pod_on(name, NODE);
    }

    /// Runs a pod by itself; its identity.
    pub(crate) fn run_pod_on(&self, name: &str, node: &str) -> String {
        self.api.apply(&workload::loner(name, node));
        let pod = self
            .api
            .wait_for(&format!("pod {name} ready"), &["pod", name], is_ready);
        identity(&pod)
    }

    /// Name of the object that says which version of a pod its node has acknowledged to an official CloudCore.
    pub(crate) fn sync_of(&self, pod: &str, node: &str) -> String {
        let pod = Pod::of(&self.api.get(&["pod", pod]).unwrap());
        let name = format!("{node}.{}", pod.uid);
        self.api
            .wait_for("the acknowledgement", &["objectsync", &name], |sync| {
                sync["status"]["objectResourceVersion"].is_string()
            });
        name
    }

    /// What the API forgets at once; the config map goes too.
    pub(crate) fn delete_by_force(&self, name: &str) {
        self.api
            .kubectl(&[
                "delete",
                "pod",
                name,
                "--force",
                "--grace-period=0",
                "--wait=false",
            ])
            .ok();
        self.api.kubectl(&["delete", "configmap", name]).ok();
    }

    pub(crate) fn delete_gently(&self, name: &str) {
        self.api.kubectl(&["delete", "pod", name, "--wait=false"]).ok();
    }

    /// Waits until neither the API nor the runtime knows the pod.
    pub(crate) fn wait_loner_gone(&self, name: &str) {
        self.api.wait_gone("pod", name);
        wait_for(&format!("no container of {name}"), || {
            let left = self.containerd.as_ref().unwrap().containers_of(name);
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            }
        });
    }

    fn volume_file(&self, pod: &Pod, plugin: &str, volume: &str, file: &str) -> Result<String, String> {
        self.edge().volume_file(&pod.uid, plugin, volume, file)
    }

    /// Waits until the mounted config map has this content.
    pub(crate) fn wait_page(&self, pod: &Pod, page: &str) {
        wait_for(&format!("page {page} in {}", pod.name), || {
            let seen = self.volume_file(pod, "configmap", "config", "page")?;
            if seen == page { Ok(()) } else { Err(seen) }
        });
    }

    fn wait_said(&self, pod: &Pod, line: &str) {
        wait_for(&format!("{} to say {line:?}", pod.name), || {
            let seen = self.edge().log(&pod.name, &pod.uid, "web")?;
            if seen.contains(line) { Ok(()) } else { Err(seen) }
        });
    }

    /// The same containers, started as often as before.
    pub(crate) fn is_untouched(&self, pod: &Pod) {
        let now = self.api.get(&["pod", &pod.name]).unwrap();
        assert_eq!(identity(&now), pod.identity);
    }
}

impl Pod {
    fn of(pod: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self {
            name: text(&pod["metadata"]["name"]),
            uid: text(&pod["metadata"]["uid"]),
            identity: identity(pod),
        }
    }
}
