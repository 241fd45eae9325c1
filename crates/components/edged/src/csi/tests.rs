//! The whole way to a driver that listens on a socket of this process.

mod bind;

use super::*;
use crate::volumes::testing::{TempDir, can_mount};
use crate::volumes::tests::{Answers, cloud};
use expect_test::expect;
use kedge_grpc::csi::node_server::{Node as NodeService, NodeServer};
use kedge_grpc::csi::node_service_capability::rpc;
use kedge_grpc::csi::{
    NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest,
};
use kedge_grpc::csi::{
    NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest,
    NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeResponse,
    NodeServiceCapability, NodeStageVolumeResponse, NodeUnpublishVolumeResponse, NodeUnstageVolumeResponse,
    Topology, node_service_capability,
};
use kedge_grpc::plugin_registration::registration_server::{Registration, RegistrationServer};
use kedge_grpc::plugin_registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use kedge_grpc::tonic::{self, Request, Response, Status};
use kedge_sockets::{Routes, bind, serve};
use serde_json::{Value, json};

/// No fact that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A driver that keeps each volume in a directory, and remembers what it was asked.
#[derive(Clone)]
struct Plugin {
    type_: &'static str,
    endpoint: String,
    /// Keeps paths short in what tests compare.
    root: PathBuf,
    calls: Arc<latest::Sender<Vec<String>>>,
    capabilities: Arc<Vec<rpc::Type>>,
    /// Binds the volume's directory where it is wanted, as a real driver does. Else it only makes directories.
    mounts: bool,
    /// The next publish fails.
    fails: Arc<std::sync::atomic::AtomicBool>,
}

impl Plugin {
    fn note(&self, call: &str, details: Value) {
        let text = details.to_string().replace(&self.root.display().to_string(), "");
        self.calls
            .send_modify(|calls| calls.push(format!("{call} {text}")));
    }

    fn calls(&self) -> String {
        self.calls.send_replace(Vec::new()).join("\n")
    }

    async fn told(&self, part: &str) {
        let mut calls = self.calls.subscribe();
        let found = calls.wait_for(|calls| calls.iter().any(|call| call.contains(part)));
        tokio::time::timeout(PATIENCE, found).await.unwrap().unwrap();
    }
}

#[tonic::async_trait]
impl Registration for Plugin {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: self.type_.to_owned(),
            name: "drv".to_owned(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.note("Registered", json!([status.plugin_registered, status.error]));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

fn made(path: impl AsRef<Path>) -> Result<(), Status> {
    std::fs::create_dir_all(path).map_err(failed)
}

fn failed(error: impl ToString) -> Status {
    Status::internal(error.to_string())
}

impl Plugin {
    fn volume(&self, id: &str) -> PathBuf {
        self.root.join("backing").join(id)
    }

    /// As often as somebody asks.
    fn bind(&self, source: &Path, target: &str) -> Result<(), Status> {
        if !self.mounts || kedge_host::mounts::is_mount_point(Path::new(target)).map_err(failed)? {
            return Ok(());
        }
        made(source)?;
        kedge_host::mounts::bind(source, Path::new(target), false).map_err(failed)
    }

    fn unbind(&self, target: &str) -> Result<(), Status> {
        match self.mounts {
            true => kedge_host::mounts::unmount(Path::new(target)).map_err(failed),
            false => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl NodeService for Plugin {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let r = request.into_inner();
        let details = json!([
            r.volume_id,
            r.staging_target_path,
            r.publish_context,
            r.secrets,
            r.volume_context
        ]);
        self.note("Stage", details);
        self.bind(&self.volume(&r.volume_id), &r.staging_target_path)?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let r = request.into_inner();
        self.note("Unstage", json!([r.volume_id, r.staging_target_path]));
        self.unbind(&r.staging_target_path)?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let r = request.into_inner();
        if self.fails.swap(false, std::sync::atomic::Ordering::Relaxed) {
            self.note("Publish fails", json!(r.volume_id));
            return Err(Status::internal("the disk is on fire"));
        }
        let capability = r.volume_capability.unwrap();
        let mode = capability.access_mode.unwrap().mode().as_str_name();
        let block = format!("{:?}", capability.access_type.unwrap()).starts_with("Block");
        if block {
            std::fs::write(&r.target_path, "").unwrap();
        } else {
            made(&r.target_path)?;
        }
        let volume = match r.staging_target_path.as_str() {
            "" => self.volume(&r.volume_id),
            staged => PathBuf::from(staged),
        };
        self.bind(&volume, &r.target_path)?;
        self.note(
            "Publish",
            json!([r.volume_id, r.target_path, mode, r.readonly, r.volume_context]),
        );
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let r = request.into_inner();
        self.note("Unpublish", json!([r.volume_id, r.target_path]));
        let target = Path::new(&r.target_path);
        self.unbind(&r.target_path)?;
        let _ = std::fs::remove_dir(target).or_else(|_| std::fs::remove_file(target));
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let r = request.into_inner();
        self.note(
            "Expand",
            json!([r.volume_id, r.capacity_range.map(|range| range.required_bytes)]),
        );
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: 0 }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |type_: &rpc::Type| NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(node_service_capability::Rpc {
                r#type: (*type_).into(),
            })),
        };
        let capabilities = self.capabilities.iter().map(capability).collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "drv-node-7".to_owned(),
            max_volumes_per_node: 9,
            accessible_topology: Some(Topology {
                segments: BTreeMap::from([("drv/zone".to_owned(), "z".to_owned())]),
            }),
        }))
    }
}

struct World {
    root: TempDir,
    answers: Answers,
    csi: Csi,
    plugin: Plugin,
    scope: Scope,
}

impl World {
    async fn start(capabilities: &[rpc::Type]) -> Self {
        Self::start_with(capabilities, false).await
    }

    async fn start_with(capabilities: &[rpc::Type], mounts: bool) -> Self {
        let root = TempDir::new();
        let answers = Answers::default();
        let scope = Scope::new();
        let csi = life(&root, &answers, &scope);
        let plugin = Plugin {
            type_: "CSIPlugin",
            endpoint: root.join("csi.sock").display().to_string(),
            root: root.to_path_buf(),
            calls: Arc::new(latest::channel(Vec::new()).0),
            capabilities: Arc::new(capabilities.to_vec()),
            mounts,
            fails: Arc::default(),
        };
        let world = Self {
            root,
            answers,
            csi,
            plugin,
            scope,
        };
        world.serve(&world.plugin, "drv-reg.sock");
        world.plugin.told("Registered [true,\"\"]").await;
        world.plugin.calls();
        world
    }

    fn serve(&self, plugin: &Plugin, socket: &str) {
        let registry = self.root.join("plugins_registry");
        make_dir(&registry).unwrap();
        let routes = Routes::new().add(NodeServer::new(plugin.clone()));
        let listener = bind(Path::new(&plugin.endpoint)).unwrap();
        self.scope
            .spawn_until_cancelled("csi", serve(listener, routes, std::future::pending()));
        let routes = Routes::new().add(RegistrationServer::new(plugin.clone()));
        let listener = bind(&registry.join(socket)).unwrap();
        self.scope
            .spawn_until_cancelled("registration", serve(listener, routes, std::future::pending()));
    }

    async fn publish(&self, uid: &str, volume: &PersistentVolume) -> Result<Published, String> {
        let wanted = Wanted {
            pod: &pod(uid),
            name: "pv-1",
            source: Source::Persistent(volume, volume.spec.csi.as_ref().unwrap()),
            read_only: false,
            block: volume.spec.volume_mode.as_deref() == Some("Block"),
            group: Some(4242),
            claim_bytes: Some(1 << 20),
        };
        self.csi.publish(wanted).await.map_err(|error| error.to_string())
    }

    fn answer(&self, key: &str, value: Value) {
        self.answers.lock().unwrap().insert(key.to_owned(), value);
    }

    fn in_use(&self) -> Vec<String> {
        self.csi.in_use().borrow().iter().cloned().collect()
    }
}

fn life(root: &Path, answers: &Answers, scope: &Scope) -> Csi {
    let csi = Csi::new(Paths::new(root), "edge-1".to_owned(), cloud(Arc::clone(answers)));
    csi.start(latest::channel(false).1, latest::channel(None).1, scope);
    csi
}

fn pod(uid: &str) -> Pod {
    let metadata = json!({ "name": "web", "namespace": "shop", "uid": uid });
    serde_json::from_value(json!({ "metadata": metadata, "spec": { "serviceAccountName": "robot" } }))
        .unwrap()
}

fn volume(more: Value) -> PersistentVolume {
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "capacity": { "storage": "1Mi" },
        "csi": { "driver": "drv", "volumeHandle": "h1", "volumeAttributes": { "size": "small" } },
    });
    for (key, value) in more.as_object().unwrap() {
        match value.as_object().filter(|_| key == "csi") {
            Some(csi) => csi
                .iter()
                .for_each(|(key, value)| spec["csi"][key] = value.clone()),
            None => spec[key] = value.clone(),
        }
    }
    serde_json::from_value(json!({ "metadata": { "name": "pv-1" }, "spec": spec })).unwrap()
}

const STAGES: &[rpc::Type] = &[rpc::Type::StageUnstageVolume, rpc::Type::ExpandVolume];

#[tokio::test]
async fn a_volume_is_staged_once_and_published_for_each_pod() {
    let world = World::start(STAGES).await;
    let attachment = layout::attachment_name("h1", "drv", "edge-1");
    let key = format!("default/volumeattachment/{attachment}");
    world.answer(&key, json!({ "status": { "attached": false } }));
    let volume = volume(json!({ "csi": { "nodeStageSecretRef": { "name": "login", "namespace": "ops" } } }));
    let why = world.publish("u1", &volume).await.unwrap_err();
    assert_eq!(
        why,
        format!("volume attachment {attachment}: the volume is not attached yet")
    );
    world.answer(
        &key,
        json!({ "status": { "attached": true, "attachmentMetadata": { "lun": "3" } } }),
    );
    let why = world.publish("u1", &volume).await.unwrap_err();
    assert!(why.starts_with("secret \"login\""), "{why}");
    world.answer("ops/secret/login", json!({ "data": { "user": "cm9vdA==" } }));
    world
        .plugin
        .fails
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let why = world.publish("u1", &volume).await.unwrap_err();
    assert_eq!(
        why,
        "NodePublishVolume of CSI driver drv: rpc error: code = Internal desc = the disk is on fire"
    );
    let first = world.publish("u1", &volume).await.unwrap();
    assert_eq!(
        first.path,
        world.root.join("pods/u1/volumes/kubernetes.io~csi/pv-1/mount")
    );
    assert!(
        first.group_given,
        "without a file system of its own the node gives nothing away"
    );
    world.publish("u2", &volume).await.unwrap();
    assert_eq!(world.in_use(), ["kubernetes.io/csi/drv^h1"]);
    world.csi.unpublish_pod("u1").await.unwrap();
    assert_eq!(world.in_use(), ["kubernetes.io/csi/drv^h1"]);
    world.csi.unpublish_pod("u2").await.unwrap();
    assert!(world.in_use().is_empty());
    assert!(!world.root.join("pods/u1/volumes/kubernetes.io~csi/pv-1").exists());
    let handle = layout::Layout::new(PathBuf::new())
        .stage("", "h1")
        .display()
        .to_string();
    expect![[r#"
        Stage ["h1","/plugins/kubernetes.io/csi/drv/H1/globalmount",{"lun":"3"},{"user":"root"},{"size":"small"}]
        Publish fails "h1"
        Stage ["h1","/plugins/kubernetes.io/csi/drv/H1/globalmount",{"lun":"3"},{"user":"root"},{"size":"small"}]
        Publish ["h1","/pods/u1/volumes/kubernetes.io~csi/pv-1/mount","SINGLE_NODE_WRITER",false,{"size":"small"}]
        Stage ["h1","/plugins/kubernetes.io/csi/drv/H1/globalmount",{"lun":"3"},{"user":"root"},{"size":"small"}]
        Publish ["h1","/pods/u2/volumes/kubernetes.io~csi/pv-1/mount","SINGLE_NODE_WRITER",false,{"size":"small"}]
        Unpublish ["h1","/pods/u1/volumes/kubernetes.io~csi/pv-1/mount"]
        Unpublish ["h1","/pods/u2/volumes/kubernetes.io~csi/pv-1/mount"]
        Unstage ["h1","/plugins/kubernetes.io/csi/drv/H1/globalmount"]"#]]
    .assert_eq(&world.plugin.calls().replace(&handle, "H1"));
    let drivers = world.csi.inner.drivers.infos();
    let info = drivers.borrow().get("drv").cloned().unwrap();
    assert_eq!(
        (info.node_id.as_str(), info.volumes_max, info.topology.len()),
        ("drv-node-7", 9, 1)
    );
}

#[tokio::test]
async fn a_killed_process_takes_away_what_its_former_life_made() {
    let world = World::start(STAGES).await;
    world.publish("u1", &volume(json!({}))).await.unwrap();
    // The next life knows nothing but the disk; the driver registers with it as well.
    let csi = life(&world.root, &world.answers, &world.scope);
    assert_eq!(csi.in_use().borrow().len(), 1);
    world.plugin.told("Registered [true,\"\"]").await;
    world.plugin.calls();
    csi.unstage_unused().await;
    assert_eq!(world.plugin.calls(), "", "a pod has it");
    // It was killed between unpublishing and unstaging.
    std::fs::remove_dir_all(world.root.join("pods/u1")).unwrap();
    csi.unstage_unused().await;
    assert!(world.plugin.calls().starts_with("Unstage [\"h1\""));
    assert!(csi.in_use().borrow().is_empty());
    assert!(csi.inner.layout.staged().is_empty());
}

#[tokio::test]
async fn a_volume_grows_once_for_each_size() {
    let world = World::start(STAGES).await;
    let expanded = |calls: String| {
        calls
            .lines()
            .filter(|call| call.starts_with("Expand"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    world.publish("u1", &volume(json!({}))).await.unwrap();
    assert_eq!(expanded(world.plugin.calls()), "");
    let grown = volume(json!({ "capacity": { "storage": "3Mi" } }));
    world.publish("u1", &grown).await.unwrap();
    world.publish("u1", &grown).await.unwrap();
    assert_eq!(expanded(world.plugin.calls()), "Expand [\"h1\",3145728]");
}

#[tokio::test]
async fn a_block_volume_becomes_a_device_of_the_pod() {
    let world = World::start(&[rpc::Type::StageUnstageVolume]).await;
    let published = world
        .publish("u1", &volume(json!({ "volumeMode": "Block" })))
        .await
        .unwrap();
    let csi = world.root.join("plugins/kubernetes.io/csi/volumeDevices");
    assert_eq!(published.path, csi.join("publish/pv-1/u1"));
    let link = world.root.join("pods/u1/volumeDevices/kubernetes.io~csi/pv-1");
    assert_eq!(std::fs::read_link(&link).unwrap(), published.path);
    assert!(csi.join("pv-1/data/vol_data.json").exists());
    world.csi.unpublish_pod("u1").await.unwrap();
    assert!(link.symlink_metadata().is_err() && !csi.join("pv-1").exists());
    assert_eq!(world.plugin.calls().lines().count(), 4);
}

#[tokio::test]
async fn a_volume_made_for_one_pod_tells_the_driver_of_the_pod() {
    let world = World::start(&[]).await;
    let source: CsiVolumeSource = serde_json::from_value(json!({ "driver": "drv" })).unwrap();
    let wanted = Wanted {
        pod: &pod("u1"),
        name: "scratch",
        source: Source::Ephemeral(&source),
        read_only: true,
        block: false,
        group: None,
        claim_bytes: None,
    };
    world.csi.publish(wanted).await.unwrap();
    assert!(world.in_use().is_empty());
    world.csi.unpublish_pod("u1").await.unwrap();
    let handle = layout::ephemeral_handle("u1", "scratch");
    expect![[r#"
        Publish ["HANDLE","/pods/u1/volumes/kubernetes.io~csi/scratch/mount","SINGLE_NODE_WRITER",true,{"csi.storage.k8s.io/ephemeral":"true","csi.storage.k8s.io/pod.name":"web","csi.storage.k8s.io/pod.namespace":"shop","csi.storage.k8s.io/pod.uid":"u1","csi.storage.k8s.io/serviceAccount.name":"robot"}]
        Unpublish ["HANDLE","/pods/u1/volumes/kubernetes.io~csi/scratch/mount"]"#]]
    .assert_eq(&world.plugin.calls().replace(&handle, "HANDLE"));
}

#[tokio::test]
async fn a_plugin_that_is_no_driver_is_told_so_and_a_driver_goes_with_its_socket() {
    let world = World::start(&[]).await;
    let other = Plugin {
        type_: "DRAPlugin",
        endpoint: world.root.join("other.sock").display().to_string(),
        calls: Arc::new(latest::channel(Vec::new()).0),
        ..world.plugin.clone()
    };
    world.serve(&other, "other-reg.sock");
    other
        .told("no handler registered for plugin type: DRAPlugin")
        .await;
    let mut drivers = world.csi.inner.drivers.infos();
    assert_eq!(drivers.borrow_and_update().len(), 1);
    std::fs::remove_file(world.root.join("plugins_registry/drv-reg.sock")).unwrap();
    let gone = drivers.wait_for(|drivers| drivers.is_empty());
    tokio::time::timeout(PATIENCE, gone).await.unwrap().unwrap();
    // What stands nowhere does not hold up the end of a pod whose driver is gone.
    let note = Note {
        driver: "drv".to_owned(),
        handle: "h1".to_owned(),
        name: "pv-1".to_owned(),
        ..Note::default()
    };
    let dir = world.root.join("pods/u1/volumes/kubernetes.io~csi/pv-1");
    make_dir(&dir).unwrap();
    note.save(&dir).unwrap();
    world.csi.unpublish_pod("u1").await.unwrap();
    assert!(!dir.exists());
}

#[tokio::test]
async fn what_stands_needs_no_driver_but_cannot_go_without_it() {
    if !can_mount() {
        return;
    }
    let world = World::start(&[]).await;
    let plugin = Plugin {
        mounts: true,
        endpoint: world.root.join("mounting.sock").display().to_string(),
        ..world.plugin.clone()
    };
    world.serve(&plugin, "drv-reg.sock");
    world.plugin.told("Registered [true,\"\"]").await;
    let published = world.publish("u1", &volume(json!({}))).await.unwrap();
    std::fs::write(published.path.join("data"), "1").unwrap();
    std::fs::remove_file(world.root.join("plugins_registry/drv-reg.sock")).unwrap();
    let csi = life(&world.root, &world.answers, &world.scope);
    let world = World { csi, ..world };
    let again = world.publish("u1", &volume(json!({}))).await.unwrap();
    assert_eq!(again.path, published.path);
    tokio::time::pause();
    let why = world.csi.unpublish_pod("u1").await.unwrap_err().to_string();
    assert!(why.contains("driver name drv not found"), "{why}");
    assert!(
        published.path.join("data").exists(),
        "what is mounted is not touched"
    );
    tokio::time::resume();
    world.serve(&plugin, "drv-reg.sock");
    world.csi.inner.drivers.wait("drv", PATIENCE).await.unwrap();
    world.csi.unpublish_pod("u1").await.unwrap();
    assert!(!published.path.exists());
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_does_not_come_is_named() {
    let root = TempDir::new();
    let csi = Csi::new(Paths::new(&root), "edge-1".to_owned(), cloud(Answers::default()));
    let wanted = Wanted {
        pod: &pod("u1"),
        name: "pv-1",
        source: Source::Ephemeral(&CsiVolumeSource {
            driver: "drv".to_owned(),
            ..CsiVolumeSource::default()
        }),
        read_only: false,
        block: false,
        group: None,
        claim_bytes: None,
    };
    let why = csi.publish(wanted).await.unwrap_err().to_string();
    assert_eq!(
        why,
        "driver name drv not found in the list of registered CSI drivers"
    );
}
