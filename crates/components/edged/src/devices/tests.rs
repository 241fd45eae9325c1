mod near;

use super::*;
use crate::devices::book::{PerNuma, Plan};
use crate::pinning::Pinning;
use expect_test::{Expect, expect};
use kedge_api::Pod;
use kedge_grpc::device_plugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use kedge_grpc::device_plugin::registration_client::RegistrationClient;
use kedge_grpc::device_plugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationResponse,
    DevicePluginOptions, DeviceSpec, Empty, ListAndWatchResponse, NumaNode, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
    TopologyInfo,
};
use kedge_grpc::tonic::codegen::tokio_stream::Stream;
use kedge_grpc::tonic::{Request, Response, Status, async_trait};
use kedge_pods::PodSource;
use kedge_sockets::{Address, Channel, Routes, bind, origin, serve};
use kedge_wire::Time;
use proptest::prelude::*;
use serde_json::json;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

const CAMERA: &str = "example.com/camera";
/// Everything happens within some milliseconds; a loaded machine may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

// Stories of the book.

struct Story {
    book: Book,
    text: String,
}

fn devices(list: &[(&str, bool)]) -> Vec<Device> {
    let device = |(id, healthy): &(&str, bool)| Device {
        id: (*id).to_owned(),
        healthy: *healthy,
        numa: if *id == "b" { vec![1] } else { Vec::new() },
    };
    list.iter().map(device).collect()
}

fn place(uid: &str) -> Place {
    Place {
        uid: uid.to_owned(),
        container: "c".to_owned(),
        resource: CAMERA.to_owned(),
    }
}

fn second(at: u64) -> Time {
    Time::from_ms(at * 1000)
}

fn set(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

impl Story {
    fn new(content: Content) -> Self {
        Self {
            book: Book::new(content, second(0)),
            text: String::new(),
        }
    }

    fn note(&mut self, line: &str) -> &mut Self {
        let counts = self.book.counts().get(CAMERA).copied().unwrap_or_default();
        self.text
            .push_str(&format!("{line} ({} of {})\n", counts.healthy, counts.all));
        self
    }

    fn pods(&mut self, at: u64, active: &[&str]) -> &mut Self {
        self.book.handle_pods(&set(active), &BTreeSet::new(), second(at));
        self
    }

    /// What a pod that asks for so many gets.
    fn ask(&mut self, at: u64, uid: &str, count: usize, reusable: &[&str]) -> &mut Self {
        let (place, reusable) = (place(uid), set(reusable));
        let got = match self.book.plan(&place, count, &reusable, false, second(at)) {
            Err(why) => why,
            Ok(Plan::NotOurs) => "nobody's".to_owned(),
            Ok(Plan::Held) => format!("keeps {:?}", self.book.ids(&place)),
            Ok(Plan::Wait { until }) => format!("waits until {} s", until.as_ms() / 1000),
            Ok(Plan::Choose { must, free, missing }) => {
                let ids: BTreeSet<String> = must.into_iter().chain(free.into_iter().take(missing)).collect();
                assert!(self.book.reserve(&place, &ids, &reusable));
                self.book.commit(&place, vec![1]);
                format!("gets {ids:?}")
            }
        };
        self.note(&format!("{at} s: {uid} {got}"))
    }

    fn check(&self, want: Expect) {
        want.assert_eq(&self.text);
    }
}

#[test]
fn devices_are_given_once_and_come_back_with_the_pod() {
    let mut story = Story::new(Content::default());
    story.ask(0, "early", 1, &[]);
    let serial = story.book.handle_registered(CAMERA, second(1));
    story.ask(1, "p", 1, &[]);
    story
        .book
        .handle_devices(CAMERA, serial, devices(&[("a", true), ("b", true), ("c", false)]));
    story
        .pods(2, &["p", "q", "r"])
        .ask(2, "p", 1, &[])
        .ask(2, "q", 2, &[])
        .ask(2, "q", 1, &[])
        .ask(2, "p", 1, &[])
        .ask(2, "p", 2, &[])
        .ask(2, "r", 1, &["a"])
        .pods(3, &["q"])
        .ask(3, "s", 1, &[]);
    story
        .book
        .handle_devices(CAMERA, serial, devices(&[("a", true), ("b", false)]));
    story.ask(4, "q", 1, &[]);
    story.check(expect![[r#"
        0 s: early nobody's (0 of 0)
        1 s: p waits until 11 s (0 of 0)
        2 s: p gets {"a"} (2 of 3)
        2 s: q requested number of devices unavailable for example.com/camera. Requested: 2, Available: 1 (2 of 3)
        2 s: q gets {"b"} (2 of 3)
        2 s: p keeps {"a"} (2 of 3)
        2 s: p pod "p" container "c" changed request for resource "example.com/camera" from 1 to 2 (2 of 3)
        2 s: r gets {"a"} (2 of 3)
        3 s: s gets {"a"} (2 of 3)
        4 s: q previously allocated devices are no longer healthy; cannot allocate unhealthy devices example.com/camera (1 of 2)
    "#]]);
    let banks = &story.book.content().held[&place("q")].devices;
    assert_eq!(*banks, PerNuma::from([(1, vec!["b".to_owned()])]));
}

#[test]
fn a_plug_in_that_goes_takes_its_devices_along() {
    let mut story = Story::new(Content::default());
    let first = story.book.handle_registered(CAMERA, second(0));
    story.book.handle_devices(CAMERA, first, devices(&[("a", true)]));
    story.note("here");
    story.book.handle_away(CAMERA, first, second(10));
    story.ask(10, "p", 1, &[]);
    let again = story.book.handle_registered(CAMERA, second(20));
    // What the old connection still says is not heard.
    story.book.handle_away(CAMERA, first, second(20));
    story.book.handle_devices(CAMERA, first, Vec::new());
    story
        .book
        .handle_devices(CAMERA, again, devices(&[("a", true), ("b", true)]));
    story.ask(21, "p", 1, &[]);
    story.book.handle_away(CAMERA, again, second(100));
    assert_eq!(story.book.poll_timeout(), Some(second(400)));
    story.book.handle_timeout(second(399));
    story.note("almost forgotten");
    story.book.handle_timeout(second(400));
    story.ask(400, "q", 1, &[]).check(expect![[r#"
        here (1 of 1)
        10 s: p no healthy devices present; cannot allocate unhealthy devices example.com/camera (0 of 1)
        21 s: p gets {"a"} (2 of 2)
        almost forgotten (0 of 2)
        400 s: q cannot allocate unregistered device example.com/camera (0 of 0)
    "#]]);
    assert!(story.book.content().registered.is_empty());
}

#[test]
fn a_restart_waits_for_plug_ins_and_pods() {
    let held = Held {
        devices: PerNuma::from([(-1, vec!["a".to_owned()])]),
        answer: Some(vec![1]),
    };
    let content = Content {
        held: BTreeMap::from([
            (place("old"), held.clone()),
            (
                place("gone"),
                Held {
                    devices: PerNuma::from([(-1, vec!["b".to_owned()])]),
                    ..held
                },
            ),
        ]),
        registered: BTreeMap::from([(CAMERA.to_owned(), vec!["a".to_owned(), "b".to_owned()])]),
    };
    let mut story = Story::new(content);
    story.pods(1, &["old", "new"]).ask(1, "old", 1, &[]);
    let running = story
        .book
        .plan(&place("old"), 1, &BTreeSet::new(), true, second(1));
    assert_eq!(running, Ok(Plan::Held));
    let serial = story.book.handle_registered(CAMERA, second(5));
    story
        .book
        .handle_devices(CAMERA, serial, devices(&[("a", true), ("b", true)]));
    story
        .ask(6, "old", 1, &[])
        // Whose pod is not known yet may still come.
        .ask(6, "new", 1, &[])
        .pods(60, &["old", "new"])
        .ask(60, "new", 1, &[])
        .check(expect![[r#"
            1 s: old waits until 300 s (2 of 2)
            6 s: old keeps {"a"} (2 of 2)
            6 s: new waits until 60 s (2 of 2)
            60 s: new gets {"b"} (2 of 2)
        "#]]);
}

#[test]
fn names_of_resources() {
    for (name, is_one) in [
        ("example.com/camera", true),
        ("nvidia.com/gpu", true),
        ("camera", false),
        ("kubernetes.io/camera", false),
        ("x.kubernetes.io/camera", false),
        ("requests.example.com/camera", false),
        ("example.com/", false),
        ("Example.com/camera", false),
        ("example.com/a b", false),
    ] {
        assert_eq!(plugin::is_extended_resource(name), is_one, "{name}");
    }
}

// A real plug-in on real sockets.

type Lists = mpsc::Receiver<Result<ListAndWatchResponse, Status>>;

struct ListStream(Lists);

impl Stream for ListStream {
    type Item = Result<ListAndWatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// Gives cameras.
struct Cameras {
    list: watch::Receiver<Vec<(&'static str, bool)>>,
    prepared: mpsc::UnboundedSender<Vec<String>>,
}

#[async_trait]
impl DevicePlugin for Cameras {
    type ListAndWatchStream = ListStream;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(OPTIONS))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<ListStream>, Status> {
        let (tx, rx) = mpsc::channel(1);
        let mut list = self.list.clone();
        tokio::spawn(async move {
            loop {
                let devices = list.borrow_and_update().clone();
                // `a@1` belongs to the bank 1.
                let bank = |id: &str| Some(id.split_once('@')?.1.parse().unwrap());
                let device = |(id, healthy)| kedge_grpc::device_plugin::Device {
                    id: str::to_owned(id),
                    health: if healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
                    topology: bank(id).map(|id| TopologyInfo {
                        nodes: vec![NumaNode { id }],
                    }),
                };
                let devices = devices.into_iter().map(device).collect();
                if tx.send(Ok(ListAndWatchResponse { devices })).await.is_err()
                    || list.changed().await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(ListStream(rx)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let asked = &request.get_ref().container_requests[0];
        let mut ids = asked.available_device_i_ds.clone();
        ids.sort();
        ids.reverse();
        ids.truncate(usize::try_from(asked.allocation_size).unwrap());
        let container_responses = vec![ContainerPreferredAllocationResponse { device_i_ds: ids }];
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let ids = &request.get_ref().container_requests[0].devices_ids;
        if ids.iter().any(|id| id == "broken") {
            return Err(Status::unknown("the camera is broken"));
        }
        let device = |id: &String| DeviceSpec {
            container_path: format!("/dev/{id}"),
            host_path: format!("/dev/host-{id}"),
            permissions: "rw".to_owned(),
        };
        let response = ContainerAllocateResponse {
            envs: BTreeMap::from([("CAMERAS".to_owned(), ids.join(","))]),
            devices: ids.iter().map(device).collect(),
            ..ContainerAllocateResponse::default()
        };
        Ok(Response::new(AllocateResponse {
            container_responses: vec![response],
        }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        drop(self.prepared.send(request.into_inner().devices_ids));
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

const OPTIONS: DevicePluginOptions = DevicePluginOptions {
    pre_start_required: true,
    get_preferred_allocation_available: true,
};

/// A plug-in process.
struct Plugin {
    scope: Scope,
    list: watch::Sender<Vec<(&'static str, bool)>>,
    prepared: mpsc::UnboundedReceiver<Vec<String>>,
}

impl Plugin {
    async fn start(dir: &Path, list: &[(&'static str, bool)]) -> Self {
        let scope = Scope::new();
        let (list, list_rx) = watch::channel(list.to_vec());
        let (prepared_tx, prepared) = mpsc::unbounded_channel();
        let cameras = Cameras {
            list: list_rx,
            prepared: prepared_tx,
        };
        let listener = bind(&dir.join("cameras.sock")).unwrap();
        let routes = Routes::new().add(DevicePluginServer::new(cameras));
        let stop = scope.clone();
        scope.spawn("plug-in", async move {
            serve(listener, routes, stop.cancelled()).await
        });
        register(dir, "v1beta1", "cameras.sock").await.unwrap();
        Self {
            scope,
            list,
            prepared,
        }
    }

    async fn stop(self) {
        self.scope.drain(PATIENCE).await;
    }
}

async fn register(dir: &Path, version: &str, endpoint: &str) -> Result<(), Status> {
    let channel = Channel::new(Address::Unix(dir.join("kubelet.sock")));
    let request = RegisterRequest {
        version: version.to_owned(),
        endpoint: endpoint.to_owned(),
        resource_name: CAMERA.to_owned(),
        options: Some(OPTIONS),
    };
    let mut client = RegistrationClient::with_origin(channel, origin());
    client.register(request).await.map(drop)
}

/// The part of a node that devices need.
struct Node {
    devices: Devices,
    pods: latest::Sender<Arc<Vec<PodView>>>,
    _seen: latest::Sender<Arc<Vec<ObservedSandbox>>>,
    scope: Scope,
}

impl Node {
    async fn start(dir: &Path) -> Self {
        let scope = Scope::new();
        let (pods, pods_rx) = latest::channel(Arc::default());
        let (seen, seen_rx) = latest::channel(Arc::default());
        let socket = dir.join("kubelet.sock");
        // So that the new one is told from that of a former life.
        drop(std::fs::remove_file(&socket));
        let devices = Devices::start(Some(dir), pods_rx, seen_rx, Clock::start(), &scope);
        wait("the socket is there", async || socket.exists().then_some(())).await;
        Self {
            devices,
            pods,
            _seen: seen,
            scope,
        }
    }

    fn run(&self, uids: &[&str]) {
        let view = |uid: &&str| PodView {
            pod: Arc::new(pod(uid, 1)),
            status: Arc::default(),
            source: PodSource::Api,
            admitted: true,
        };
        self.pods.send_replace(Arc::new(uids.iter().map(view).collect()));
    }

    async fn wait_counts(&self, healthy: u64, all: u64) {
        let mut counts = self.devices.counts();
        let wanted = DeviceCount { all, healthy };
        let told = counts.wait_for(|counts| counts.get(CAMERA) == Some(&wanted));
        let told = tokio::time::timeout(PATIENCE, told).await;
        assert!(
            told.is_ok(),
            "{:?} instead of {wanted:?}",
            self.devices.counts().borrow().clone()
        );
    }

    async fn env(&self, uid: &str) -> String {
        let allocated = self.devices.container(uid, "c").await.unwrap();
        allocated
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    async fn stop(self) {
        self.scope.drain(PATIENCE).await;
        // What is being written is written to its end.
        let shared = self.devices.shared.as_ref().unwrap();
        drop(shared.written.lock().await);
    }
}

async fn allocate(devices: &Devices, pod: &Pod) -> Result<(), Refusal> {
    Pinning::off().allocate(pod, devices, false).await
}

fn pod(uid: &str, count: u32) -> Pod {
    let pod = json!({
        "metadata": { "name": uid, "namespace": "default", "uid": uid },
        "spec": { "containers": [{ "name": "c", "image": "i", "resources": {
            "limits": { CAMERA: count.to_string(), "memory": "1Gi", "other.example/thing": "1" } } }] },
    });
    serde_json::from_value(pod).unwrap()
}

async fn wait<T>(what: &str, mut fact: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = fact().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A directory that goes away with it.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kedge-devices-{}-{serial}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[tokio::test]
async fn a_plug_in_gives_devices_to_pods() {
    let dir = Dir::new();
    let node = Node::start(&dir.0).await;
    let mut plugin = Plugin::start(&dir.0, &[("a", true), ("b", true), ("c", false)]).await;
    node.wait_counts(2, 3).await;
    node.run(&["p", "q"]);
    allocate(&node.devices, &pod("p", 1)).await.unwrap();
    let allocated = node.devices.container("p", "c").await.unwrap();
    expect![[r#"
        Allocated {
            devices: [
                Device {
                    host_path: "/dev/host-b",
                    container_path: "/dev/b",
                    permissions: "rw",
                },
            ],
            cdi_devices: [],
            env: [
                (
                    "CAMERAS",
                    "b",
                ),
            ],
            mounts: [],
            annotations: {},
        }
    "#]]
    .assert_debug_eq(&allocated);
    assert_eq!(plugin.prepared.recv().await.unwrap(), ["b"]);
    let refused = allocate(&node.devices, &pod("q", 2)).await.unwrap_err();
    expect![[r#"
        Refusal {
            reason: "UnexpectedAdmissionError",
            message: "Allocate failed due to requested number of devices unavailable for example.com/camera. Requested: 2, Available: 1, which is unexpected",
        }
    "#]]
    .assert_debug_eq(&refused);
    // The one that was free is free again.
    plugin.list.send_replace(vec![("b", true), ("broken", true)]);
    node.wait_counts(2, 2).await;
    let refused = allocate(&node.devices, &pod("q", 1)).await.unwrap_err();
    assert_eq!(
        refused.message,
        "Allocate failed due to rpc error: code = Unknown desc = the camera is broken, which is unexpected"
    );
    plugin.list.send_replace(vec![("b", true), ("d", true)]);
    wait("the new device is there", async || {
        allocate(&node.devices, &pod("q", 1)).await.ok()
    })
    .await;
    assert_eq!(node.env("q").await, "CAMERAS=d");
    plugin.stop().await;
    node.wait_counts(0, 2).await;
    let plugin = Plugin::start(&dir.0, &[("b", true)]).await;
    node.wait_counts(1, 1).await;
    plugin.stop().await;
    node.stop().await;
}

#[tokio::test]
async fn a_restarted_agent_gives_the_same_devices_again() {
    let dir = Dir::new();
    let node = Node::start(&dir.0).await;
    let plugin = Plugin::start(&dir.0, &[("a", true), ("b", true)]).await;
    node.wait_counts(2, 2).await;
    node.run(&["p"]);
    allocate(&node.devices, &pod("p", 1)).await.unwrap();
    assert_eq!(node.env("p").await, "CAMERAS=b");
    node.stop().await;

    let node = Node::start(&dir.0).await;
    assert!(
        !dir.0.join("cameras.sock").exists(),
        "the plug-in learns that it must register again"
    );
    // What was there counts until it is known better, so that pods are not refused.
    node.wait_counts(2, 2).await;
    node.run(&["p", "q"]);
    let devices = node.devices.clone();
    let waiting = tokio::spawn(async move { allocate(&devices, &pod("p", 1)).await });
    plugin.stop().await;
    assert!(!waiting.is_finished());
    let plugin = Plugin::start(&dir.0, &[("a", true), ("b", true)]).await;
    waiting.await.unwrap().unwrap();
    assert_eq!(node.env("p").await, "CAMERAS=b");
    allocate(&node.devices, &pod("q", 1)).await.unwrap();
    assert_eq!(node.env("q").await, "CAMERAS=a");
    // A pod that has gone gives its device back.
    node.run(&["q", "r"]);
    allocate(&node.devices, &pod("r", 1)).await.unwrap();
    assert_eq!(node.env("r").await, "CAMERAS=b");
    plugin.stop().await;
    node.stop().await;
}

#[tokio::test]
async fn strange_plug_ins_are_refused() {
    let dir = Dir::new();
    let node = Node::start(&dir.0).await;
    for (version, endpoint) in [
        ("v1alpha", "x.sock"),
        ("v1beta1", "../x.sock"),
        ("v1beta1", "/run/x.sock"),
    ] {
        let refused = register(&dir.0, version, endpoint).await.unwrap_err();
        assert_eq!(
            refused.code(),
            kedge_grpc::tonic::Code::InvalidArgument,
            "{refused:?}"
        );
    }
    assert!(node.devices.counts().borrow().is_empty());
    node.stop().await;
}

#[tokio::test]
async fn a_node_without_plug_ins_gives_nothing() {
    let (_pods, pods) = latest::channel(Arc::default());
    let (_seen, seen) = latest::channel(Arc::default());
    let devices = Devices::start(None, pods, seen, Clock::start(), &Scope::new());
    allocate(&devices, &pod("p", 1)).await.unwrap();
    assert_eq!(devices.container("p", "c").await.unwrap(), Allocated::default());
}

/// Something that happens to the book.
#[derive(Debug, Clone)]
enum Event {
    Register,
    List(Vec<(&'static str, bool)>),
    Away,
    Ask { pod: u8, count: usize },
    Release(u8),
    Pods(Vec<u8>),
    Restart,
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let list = prop::collection::vec(
        (prop::sample::select(vec!["a", "b", "c", "d"]), any::<bool>()),
        0..5,
    );
    prop_oneof![
        1 => Just(Event::Register),
        3 => list.prop_map(Event::List),
        1 => Just(Event::Away),
        6 => (0..4_u8, 1..3_usize).prop_map(|(pod, count)| Event::Ask { pod, count }),
        1 => (0..4_u8).prop_map(Event::Release),
        2 => prop::collection::vec(0..4_u8, 0..4).prop_map(Event::Pods),
        1 => Just(Event::Restart),
        2 => (0..200_u64).prop_map(Event::Pass),
    ]
}

proptest! {
    /// Whatever happens, no device has two owners, and nobody is given a device that is not known to be well.
    #[test]
    fn a_device_has_one_owner(events in prop::collection::vec(event(), 0..60)) {
        let mut book = Book::new(Content::default(), second(0));
        let (mut serial, mut now) = (0, 0);
        let mut well: BTreeSet<String> = BTreeSet::new();
        for event in events {
            match event {
                Event::Register => serial = book.handle_registered(CAMERA, second(now)),
                Event::List(list) => {
                    book.handle_devices(CAMERA, serial, devices(&list));
                    // The last word about an id counts.
                    let told: BTreeMap<&str, bool> = list.into_iter().collect();
                    well = told.iter().filter(|(_, well)| **well).map(|(id, _)| (*id).to_owned()).collect();
                }
                Event::Away => book.handle_away(CAMERA, serial, second(now)),
                Event::Ask { pod, count } => {
                    let place = place(&pod.to_string());
                    let plan = book.plan(&place, count, &BTreeSet::new(), false, second(now));
                    if let Ok(Plan::Choose { must, free, missing }) = plan {
                        prop_assert!(must.is_empty() && free.is_subset(&well), "{:?} of {:?}", free, well);
                        let ids: BTreeSet<String> = free.into_iter().take(missing).collect();
                        prop_assert!(book.reserve(&place, &ids, &BTreeSet::new()));
                        book.commit(&place, Vec::new());
                    }
                }
                Event::Release(pod) => book.release(&place(&pod.to_string())),
                Event::Pods(pods) => {
                    let active = pods.iter().map(u8::to_string).collect();
                    book.handle_pods(&active, &BTreeSet::new(), second(now));
                }
                Event::Restart => {
                    let content = book.content();
                    book = Book::new(content.clone(), second(now));
                    prop_assert_eq!(book.content(), content);
                }
                Event::Pass(seconds) => {
                    now += seconds;
                    book.handle_timeout(second(now));
                }
            }
            let held: Vec<String> = book.content().held.values().flat_map(Held::ids).collect();
            let distinct: BTreeSet<&String> = held.iter().collect();
            prop_assert_eq!(held.len(), distinct.len());
            let counts = book.counts().get(CAMERA).copied().unwrap_or_default();
            prop_assert!(counts.healthy <= counts.all);
        }
    }
}
