//! Volumes of whole pods on a real disk, with a cloud in memory. What needs mounts is tried by root only.

use super::testing::{TempDir, can_mount};
use super::*;
use crate::objects::Found;
use kedge_api::{ConfigMap, Secret};
use kedge_link::edge::RequestError;
use kedge_pods::Config;
use kedge_pods::translate::{self, Allocated};
use kedge_telemetry::channel::ask;
use kedge_wire::{Body, Group, Operation, Reply, Request, Resource, Route, Source};
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

const NOW: Time = Time::from_ms(1_800_000_000_000);

/// What the cloud answers, by the key's text; everything else is away.
pub(crate) type Answers = Arc<Mutex<BTreeMap<String, Value>>>;

pub(crate) fn cloud(answers: Answers) -> Cloud {
    let (sender, mut receiver) = ask::channel::<Request, Result<Reply, RequestError>>("test-cloud", 16);
    tokio::spawn(async move {
        while let Some(question) = receiver.recv().await {
            let (request, way) = (question.question, question.reply);
            let found = answers.lock().unwrap().get(&request.key.to_string()).cloned();
            way.send(found.ok_or(RequestError::Offline).map(|value| Reply {
                route: Route::new(
                    Source::EdgeController,
                    Group::Resource,
                    Operation::Response,
                    Resource::Object(request.key.clone()),
                ),
                version: None,
                body: Body::from_value(&value).unwrap(),
            }));
        }
    });
    Cloud::new(sender)
}

/// A node with its disk.
pub(crate) struct Node {
    pub(crate) root: TempDir,
    pub(crate) answers: Answers,
    pub(crate) volumes: Volumes,
    pub(crate) config: Config,
}

impl Node {
    pub(crate) fn new(mounts: bool) -> Self {
        let root = TempDir::new();
        let answers = Answers::default();
        let volumes = start(&root, &answers, mounts);
        let config = Config {
            pods_dir: root.join("pods"),
            ..Config::default()
        };
        Self {
            root,
            answers,
            volumes,
            config,
        }
    }

    /// The same disk after the process was killed.
    pub(crate) fn restart(&mut self) {
        self.volumes = start(&self.root, &self.answers, self.volumes.inner.mounts);
    }

    pub(crate) fn answer(&self, key: &str, value: Value) {
        self.answers.lock().unwrap().insert(key.to_owned(), value);
    }

    pub(crate) async fn prepare(&self, pod: &Pod, found: &Found) -> Result<Prepared, String> {
        let inputs = Inputs {
            config: &self.config,
            pod,
            pod_ips: &[],
            objects: &found.objects,
            volumes: &BTreeMap::new(),
            image_user: None,
            image_username: None,
            allocated: &Allocated::default(),
            target: None,
            recursive_read_only: false,
        };
        let prepared = self.volumes.prepare(&inputs, found, NOW).await;
        prepared.map_err(|refusal| refusal.message)
    }

    /// The container with its mounts made, as it goes to the runtime.
    async fn container(&self, pod: &Pod, name: &str) -> Result<kedge_containers::ContainerConfig, String> {
        let sources = self.volumes.mount_sources(pod);
        let ips = ["10.0.0.5".to_owned()];
        let inputs = Inputs {
            config: &self.config,
            pod,
            pod_ips: &ips,
            objects: &Default::default(),
            volumes: &sources,
            image_user: None,
            image_username: None,
            allocated: &Allocated::default(),
            target: None,
            recursive_read_only: false,
        };
        let spec = pod.container(name).unwrap();
        let mut made = translate::container(&inputs, spec, 0).map_err(|refusal| refusal.message)?;
        let points = self
            .volumes
            .make_mount_points(&self.config, pod, spec, 0, &ips, &mut made);
        points.await.map_err(|refusal| refusal.message)?;
        Ok(made)
    }

    pub(crate) fn pod_dir(&self) -> PathBuf {
        self.root.join("pods/u1")
    }
}

fn start(root: &Path, answers: &Answers, mounts: bool) -> Volumes {
    let settings = Settings {
        root_dir: root.to_owned(),
        node_name: "edge-1".to_owned(),
        mounts,
    };
    Volumes::new(settings, cloud(Arc::clone(answers)))
}

pub(crate) fn pod(volumes: Value, mounts: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "shop", "uid": "u1", "labels": { "app": "web" } },
        "spec": {
            "serviceAccountName": "robot",
            "securityContext": { "fsGroup": 4242 },
            "volumes": volumes,
            "containers": [{ "name": "c", "image": "web:1", "volumeMounts": mounts }],
        },
    }))
    .unwrap()
}

fn found(map: &str, secret: &str) -> Found {
    let mut found = Found::default();
    let map: ConfigMap = serde_json::from_value(json!({ "data": { "a": map } })).unwrap();
    let secret: Secret = serde_json::from_value(json!({ "data": { "key": secret } })).unwrap();
    found.objects.config_maps.insert("map".to_owned(), map);
    found.objects.secrets.insert("safe".to_owned(), secret);
    found
}

fn contents() -> Value {
    json!([
        { "name": "map", "configMap": { "name": "map" } },
        { "name": "safe", "secret": { "secretName": "safe", "defaultMode": 0o400 } },
        { "name": "about", "downwardAPI": { "items": [
            { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
        ] } },
        { "name": "all", "projected": { "sources": [
            { "serviceAccountToken": { "path": "token", "expirationSeconds": 3600 } },
            { "configMap": { "name": "map", "items": [{ "key": "a", "path": "x/a" }] } },
        ] } },
    ])
}

fn token(node: &Node) {
    node.answer(
        "shop/serviceaccounttoken/robot",
        json!({
            "spec": { "boundObjectRef": { "uid": "u1" } },
            "status": { "token": "a-token", "expirationTimestamp": "2027-01-15T09:00:00Z" },
        }),
    );
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn mode(path: impl AsRef<Path>) -> u32 {
    path.as_ref().metadata().unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn contents_stand_where_a_kubelet_has_them_and_survive_a_reboot_without_the_cloud() {
    let mut node = Node::new(true);
    token(&node);
    let pod = pod(contents(), json!([]));
    let prepared = node.prepare(&pod, &found("1", "c2VjcmV0")).await.unwrap();
    assert_eq!(prepared.refresh_at.unwrap().since(NOW).as_secs(), 2880);
    let volumes = node.pod_dir().join("volumes");
    let (map, safe) = (
        volumes.join("kubernetes.io~configmap/map"),
        volumes.join("kubernetes.io~secret/safe"),
    );
    let all = volumes.join("kubernetes.io~projected/all");
    assert_eq!(
        (read(map.join("a")), read(safe.join("key"))),
        ("1".to_owned(), "secret".to_owned())
    );
    assert_eq!(
        read(volumes.join("kubernetes.io~downward-api/about/labels")),
        "app=\"web\""
    );
    assert_eq!(
        (read(all.join("token")), read(all.join("x/a"))),
        ("a-token".to_owned(), "1".to_owned())
    );
    assert_eq!((mode(map.join("a")), mode(safe.join("key"))), (0o644, 0o440));
    assert!(
        node.pod_dir()
            .join("plugins/kubernetes.io~empty-dir/wrapped_safe/ready")
            .exists()
    );
    if !can_mount() {
        return;
    }
    assert_eq!(
        (
            mode(all.join("token")),
            safe.join("key").metadata().unwrap().gid()
        ),
        (0o640, 4242)
    );
    let mounted = |path: &Path| kedge_host::mounts::is_mount_point(path).unwrap();
    assert!(
        !mounted(&map) && mounted(&safe) && mounted(&all),
        "secrets are in memory only"
    );
    // The power fails: memory is gone, and the cloud with it.
    for path in kedge_host::mounts::mounted_below(&node.root)
        .unwrap()
        .iter()
        .rev()
    {
        kedge_host::mounts::unmount(path).unwrap();
    }
    assert!(!safe.join("key").exists());
    node.answers.lock().unwrap().clear();
    node.restart();
    let prepared = node.prepare(&pod, &found("1", "c2VjcmV0")).await.unwrap();
    assert_eq!(read(safe.join("key")), "secret");
    assert!(
        !all.join("token").exists() && all.join("x/a").exists(),
        "the pod starts without its token"
    );
    assert_eq!(prepared.refresh_at.unwrap().since(NOW).as_secs(), 60);
    node.volumes.remove("u1").await.unwrap();
    assert!(!node.pod_dir().exists());
}

#[tokio::test]
async fn a_pod_that_never_ran_waits_for_what_it_names() {
    let node = Node::new(false);
    let pod = pod(contents(), json!([]));
    let mut nothing = Found::default();
    let why = node.prepare(&pod, &nothing).await.unwrap_err();
    assert_eq!(
        why,
        "MountVolume.SetUp failed for volume \"map\" : configmap \"map\" not found"
    );
    nothing.objects = found("1", "").objects;
    let why = node.prepare(&pod, &nothing).await.unwrap_err();
    assert!(
        why.contains("volume \"all\" : failed to fetch token: service account \"robot\""),
        "{why}"
    );
    token(&node);
    node.prepare(&pod, &found("1", "")).await.unwrap();
    let all = node.pod_dir().join("volumes/kubernetes.io~projected/all");
    node.answers.lock().unwrap().clear();
    node.prepare(&pod, &Found::default()).await.unwrap();
    assert_eq!(read(all.join("token")), "a-token", "what stands stays");
    node.prepare(&pod, &found("2", "")).await.unwrap();
    assert_eq!(
        (read(all.join("x/a")), read(all.join("token"))),
        ("2".to_owned(), "a-token".to_owned())
    );
}

#[tokio::test]
async fn sub_paths_are_mounted_and_lead_nowhere_else() {
    let node = Node::new(true);
    let volumes = json!([
        { "name": "data", "emptyDir": {} },
        { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
        { "name": "map", "configMap": { "name": "map" } },
    ]);
    let mounts = json!([
        { "name": "data", "mountPath": "/data" },
        { "name": "data", "mountPath": "/sub", "subPath": "made/below" },
        { "name": "memory", "mountPath": "/memory", "subPath": "x" },
        { "name": "map", "mountPath": "/a", "subPath": "a" },
        { "name": "data", "mountPath": "/expr", "subPathExpr": "$(NAME)" },
    ]);
    let mut pod = pod(volumes, mounts);
    pod.spec.containers[0].env =
        serde_json::from_value(json!([{ "name": "NAME", "value": "named" }])).unwrap();
    node.prepare(&pod, &found("1", "")).await.unwrap();
    let data = node.pod_dir().join("volumes/kubernetes.io~empty-dir/data");
    std::fs::write(data.join("there"), "x").unwrap();
    symlink("there", data.join("named")).unwrap();
    let made = node.container(&pod, "c").await.unwrap();
    let at = |made: &kedge_containers::ContainerConfig, path: &str| {
        let mount = made
            .mounts
            .iter()
            .find(|mount| mount.container_path == Path::new(path));
        mount.unwrap().host_path.clone()
    };
    assert_eq!(at(&made, "/data"), data);
    assert!(data.join("made/below").is_dir());
    assert_eq!(mode(data.join("made/below")), mode(&data), "as the volume");
    assert_eq!(
        (read(at(&made, "/a")), read(at(&made, "/expr"))),
        ("1".to_owned(), "x".to_owned())
    );
    let hosts = read(at(&made, "/etc/hosts"));
    assert!(hosts.contains("10.0.0.5\tweb\n"), "{hosts}");
    assert_eq!(mode(at(&made, "/dev/termination-log")), 0o666);
    let mounted = kedge_host::mounts::mounted_below(&node.root).unwrap();
    if can_mount() {
        let place = node.pod_dir().join("volume-subpaths");
        assert_eq!(at(&made, "/sub"), place.join("data/c/1"));
        assert_eq!(at(&made, "/memory"), place.join("memory/c/2"));
        std::fs::write(at(&made, "/memory").join("f"), "1").unwrap();
        assert_eq!(
            read(node.pod_dir().join("volumes/kubernetes.io~empty-dir/memory/x/f")),
            "1"
        );
        assert_eq!(mounted.len(), 5, "{mounted:?}");
    }
    // A container restarts: the same places, not mounted twice.
    assert_eq!(node.container(&pod, "c").await.unwrap().mounts, made.mounts);
    assert_eq!(kedge_host::mounts::mounted_below(&node.root).unwrap(), mounted);
    // The map has changed: the new start sees it.
    node.prepare(&pod, &found("2", "")).await.unwrap();
    let made = node.container(&pod, "c").await.unwrap();
    assert_eq!(read(at(&made, "/a")), "2");
    // The container turns a sub path into a way out.
    std::fs::remove_file(data.join("named")).unwrap();
    symlink("/etc", data.join("named")).unwrap();
    let why = node.container(&pod, "c").await.unwrap_err();
    assert!(why.contains("leads out"), "{why}");
    node.volumes.remove("u1").await.unwrap();
    assert!(!node.pod_dir().exists());
}

#[tokio::test]
async fn a_claim_leads_to_a_local_volume_whose_data_outlives_the_pod() {
    let node = Node::new(true);
    let disk = node.root.join("disk");
    std::fs::create_dir(&disk).unwrap();
    std::fs::write(disk.join("precious"), "1").unwrap();
    let claim = |phase: &str| {
        json!({
            "metadata": { "name": "claim", "uid": "c1" },
            "spec": { "volumeName": "pv-1" }, "status": { "phase": phase },
        })
    };
    let volume = |uid: &str| {
        json!({
            "metadata": { "name": "pv-1", "annotations": { "pv.beta.kubernetes.io/gid": "77" } },
            "spec": { "claimRef": { "name": "claim", "uid": uid }, "local": { "path": disk } },
        })
    };
    let volumes = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "claim" } }]);
    let pod = pod(volumes, json!([{ "name": "v", "mountPath": "/v" }]));
    let nothing = Found::default();
    let refused = async |part: &str| {
        let why = node.prepare(&pod, &nothing).await.unwrap_err();
        assert!(why.contains(part), "{why}");
    };
    refused("persistentvolumeclaim \"claim\" is not on this node").await;
    node.answer("shop/persistentvolumeclaim/claim", claim("Pending"));
    refused("error processing PVC shop/claim: PVC is not bound").await;
    node.answer("shop/persistentvolumeclaim/claim", claim("Bound"));
    refused("persistentvolume \"pv-1\" is not on this node").await;
    node.answer("null/persistentvolume/pv-1", volume("c0"));
    refused("PV pv-1 is bound to another claim").await;
    node.answer("null/persistentvolume/pv-1", volume("c1"));
    node.prepare(&pod, &nothing).await.unwrap();
    let made = node.container(&pod, "c").await.unwrap();
    assert_eq!(read(made.mounts[0].host_path.join("precious")), "1");
    assert!(made.security.supplemental_groups.contains(&77));
    if can_mount() {
        let place = node.pod_dir().join("volumes/kubernetes.io~local-volume/pv-1");
        assert_eq!(made.mounts[0].host_path, place);
        assert_eq!(disk.join("precious").metadata().unwrap().gid(), 4242);
    }
    node.volumes.remove("u1").await.unwrap();
    assert!(!node.pod_dir().exists());
    assert_eq!(read(disk.join("precious")), "1");
}

#[tokio::test]
async fn orphans_go_but_never_the_data_of_others() {
    let node = Node::new(true);
    let dirs = [
        "gone/volumes/kubernetes.io~empty-dir/v",
        "gone/etc-hosts.d",
        "kept/volumes/kubernetes.io~empty-dir/v",
        "nfs/volumes/kubernetes.io~nfs/pv",
        "nfs-empty/volumes/kubernetes.io~nfs/pv",
    ];
    for dir in dirs {
        std::fs::create_dir_all(node.root.join("pods").join(dir)).unwrap();
    }
    let pods = node.root.join("pods");
    std::fs::write(pods.join("gone/volumes/kubernetes.io~empty-dir/v/f"), "").unwrap();
    symlink("/etc", pods.join("gone/volumes/kubernetes.io~empty-dir/v/etc")).unwrap();
    std::fs::write(pods.join("nfs/volumes/kubernetes.io~nfs/pv/precious"), "1").unwrap();
    if can_mount() {
        let memory = pods.join("gone/volumes/kubernetes.io~secret/s");
        std::fs::create_dir_all(&memory).unwrap();
        kedge_host::mounts::mount_tmpfs(&memory, None).unwrap();
        std::fs::write(memory.join("key"), "secret").unwrap();
    }
    let mut orphans = node.volumes.orphans(&BTreeSet::from(["kept".to_owned()]));
    orphans.sort();
    assert_eq!(orphans, ["gone", "nfs", "nfs-empty"]);
    node.volumes.remove_orphans(orphans).await;
    let mut left: Vec<_> = remove::pod_dirs(&Paths::new(&node.root));
    left.sort();
    assert_eq!(left, [pods.join("kept"), pods.join("nfs")]);
    assert_eq!(read(pods.join("nfs/volumes/kubernetes.io~nfs/pv/precious")), "1");
    assert!(Path::new("/etc/hostname").exists() || Path::new("/etc/passwd").exists());
}

#[tokio::test]
async fn what_is_not_served_is_said() {
    let node = Node::new(false);
    let table = [
        (json!({ "iscsi": {} }), "volumes of kind iscsi are not served"),
        (
            json!({ "image": { "reference": "x" } }),
            "volumes of kind image are not served",
        ),
        (
            json!({ "nfs": { "server": "s", "path": "/p" } }),
            "does not mount",
        ),
        (json!({ "csi": { "driver": "d" } }), "does not mount"),
        (
            json!({ "emptyDir": { "medium": "Tape" } }),
            "unknown storage medium",
        ),
        (
            json!({ "hostPath": { "path": "/dev/null", "type": "Directory" } }),
            "is not a directory",
        ),
        (
            json!({ "projected": { "sources": [{ "clusterTrustBundle": { "path": "p" } }] } }),
            "clusterTrustBundle",
        ),
        (json!({ "ephemeral": {} }), "error processing PVC shop/web-v"),
        (json!({}), "without a source"),
    ];
    for (mut volume, want) in table {
        volume["name"] = json!("v");
        let pod = pod(json!([volume]), json!([]));
        let why = node.prepare(&pod, &Found::default()).await.unwrap_err();
        assert!(
            why.starts_with("MountVolume.SetUp failed for volume \"v\" : ") && why.contains(want),
            "{why}"
        );
    }
}

/// A block device that is a file; nothing where the machine has none to give.
struct Loop {
    device: PathBuf,
}

impl Loop {
    fn with_file_system(dir: &Path) -> Option<Self> {
        let run = |program: &str, arguments: &[&str]| {
            let limit = std::time::Duration::from_secs(30);
            let outcome = kedge_host::program::run(program, arguments, &[], limit).ok()?;
            let text = String::from_utf8_lossy(&outcome.stdout).trim().to_owned();
            outcome.status.success().then_some(text)
        };
        let image = dir.join("image").display().to_string();
        std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        run("/usr/sbin/mkfs.ext4", &["-q", "-F", &image])?;
        let device = run("/usr/sbin/losetup", &["-f", "--show", &image])?.into();
        Some(Self { device })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let device = self.device.display().to_string();
        let limit = std::time::Duration::from_secs(30);
        let _ = kedge_host::program::run("/usr/sbin/losetup", &["-d", &device], &[], limit);
    }
}

#[tokio::test]
async fn a_device_of_the_node_is_mounted_once_for_all_pods_or_given_as_it_is() {
    let node = Node::new(true);
    let Some(device) = Loop::with_file_system(&node.root).filter(|_| can_mount()) else {
        eprintln!("no loop devices here: local devices are not tested");
        return;
    };
    let volume = |mode: &str| {
        json!({
            "metadata": { "name": "pv-1" },
            "spec": {
                "volumeMode": mode, "claimRef": { "name": "claim", "uid": "c1" },
                "local": { "path": device.device, "fsType": "ext4" },
            },
        })
    };
    let claim = json!({
        "metadata": { "name": "claim", "uid": "c1" },
        "spec": { "volumeName": "pv-1" }, "status": { "phase": "Bound" },
    });
    node.answer("shop/persistentvolumeclaim/claim", claim);
    node.answer("null/persistentvolume/pv-1", volume("Filesystem"));
    let volumes = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "claim" } }]);
    let mut first = pod(volumes, json!([{ "name": "v", "mountPath": "/v" }]));
    let mut second = first.clone();
    second.metadata.uid = Some("u2".to_owned());
    let nothing = Found::default();
    node.prepare(&first, &nothing).await.unwrap();
    node.prepare(&second, &nothing).await.unwrap();
    let place = |uid: &str| {
        node.root
            .join("pods")
            .join(uid)
            .join("volumes/kubernetes.io~local-volume/pv-1")
    };
    std::fs::write(place("u1").join("f"), "1").unwrap();
    assert_eq!(read(place("u2").join("f")), "1");
    let global = node.root.join("plugins/kubernetes.io/local-volume/mounts/pv-1");
    node.volumes.remove("u1").await.unwrap();
    assert!(
        kedge_host::mounts::is_mount_point(&global).unwrap(),
        "the other pod has it"
    );
    node.volumes.remove("u2").await.unwrap();
    assert!(!global.exists());
    // The same device as it is.
    node.answer("null/persistentvolume/pv-1", volume("Block"));
    first.spec.containers[0].volume_mounts.clear();
    let devices = json!([{ "name": "v", "devicePath": "/dev/v" }]);
    first.spec.containers[0].volume_devices = serde_json::from_value(devices).unwrap();
    node.prepare(&first, &nothing).await.unwrap();
    let made = node.container(&first, "c").await.unwrap();
    assert_eq!(made.devices[0].host_path, device.device);
    assert_eq!(made.devices[0].container_path, Path::new("/dev/v"));
    node.volumes.remove("u1").await.unwrap();
    assert!(!node.pod_dir().exists());
}

#[tokio::test]
async fn a_map_with_many_keys_is_written_once_and_read_fast() {
    let node = Node::new(false);
    let data: BTreeMap<String, String> = (0..5000).map(|n| (format!("key-{n}"), "x".repeat(200))).collect();
    let mut objects = Found::default();
    let map: ConfigMap = serde_json::from_value(json!({ "data": data })).unwrap();
    objects.objects.config_maps.insert("map".to_owned(), map);
    let pod = pod(
        json!([{ "name": "map", "configMap": { "name": "map" } }]),
        json!([]),
    );
    let begin = std::time::Instant::now();
    node.prepare(&pod, &objects).await.unwrap();
    let made = begin.elapsed();
    let dir = node.pod_dir().join("volumes/kubernetes.io~configmap/map");
    let data = std::fs::read_link(dir.join("..data")).unwrap();
    let begin = std::time::Instant::now();
    node.prepare(&pod, &objects).await.unwrap();
    eprintln!("5000 keys: made in {made:?}, looked at in {:?}", begin.elapsed());
    assert_eq!(std::fs::read_link(dir.join("..data")).unwrap(), data);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 5002);
}
