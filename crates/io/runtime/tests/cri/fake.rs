//! A runtime made of nothing, to count what it is asked and to be what containerd here is not: one with events, one
//! with systemd.

use crate::node::{Node, container};
use crate::{FACT_WAIT_MAX, connect};
use kedge_containers::{CgroupDriver, ContainerState, SandboxId};
use kedge_grpc::cri::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use kedge_grpc::cri::*;
use kedge_grpc::tonic::codegen::tokio_stream::{Stream, StreamExt};
use kedge_grpc::tonic::{Request, Response, Status, async_trait};
use kedge_runtime::{Cri, CriConfig, Runtime};
use kedge_sockets::{Routes, bind, serve};
use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

type EventStream = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

/// What the fake was asked, and what it shows.
#[derive(Default)]
struct State {
    calls: BTreeMap<&'static str, usize>,
    sandboxes: Vec<PodSandbox>,
    containers: Vec<Container>,
    last_sandbox: Option<PodSandboxConfig>,
    last_container: Option<CreateContainerRequest>,
}

#[derive(Clone)]
struct Fake {
    state: Arc<Mutex<State>>,
    events: Events,
}

/// What a fake has of events.
#[derive(Clone)]
enum Events {
    /// It knows no such call.
    Unknown,
    /// It ends them before the first, as CRI-O does that was told to have none.
    TurnedOff,
    Told(broadcast::Sender<()>),
}

impl Fake {
    fn new(events: Events) -> Self {
        Self {
            state: Arc::default(),
            events,
        }
    }

    fn serve(&self, socket: &Path) -> JoinHandle<()> {
        let routes = Routes::new().add(RuntimeServiceServer::new(self.clone()));
        tokio::spawn(serve(bind(socket).unwrap(), routes, std::future::pending()))
    }

    fn count<T>(
        &self,
        call: &'static str,
        answer: impl FnOnce(&mut State) -> T,
    ) -> Result<Response<T>, Status> {
        let mut state = self.state.lock().unwrap();
        *state.calls.entry(call).or_default() += 1;
        Ok(Response::new(answer(&mut state)))
    }

    fn calls(&self) -> BTreeMap<&'static str, usize> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }

    fn add(&self, sandbox: &str, containers: &[&str]) {
        let labels: BTreeMap<String, String> = [("io.kubernetes.pod.uid".to_owned(), "u".to_owned())].into();
        let mut state = self.state.lock().unwrap();
        state.sandboxes.push(PodSandbox {
            id: sandbox.to_owned(),
            labels: labels.clone(),
            ..PodSandbox::default()
        });
        state.containers.extend(containers.iter().map(|id| Container {
            id: (*id).to_owned(),
            pod_sandbox_id: sandbox.to_owned(),
            labels: labels.clone(),
            state: kedge_grpc::cri::ContainerState::ContainerRunning.into(),
            ..Container::default()
        }));
    }

    fn end(&self, container: &str) {
        let mut state = self.state.lock().unwrap();
        let found = state.containers.iter_mut().find(|found| found.id == container);
        found
            .unwrap()
            .set_state(kedge_grpc::cri::ContainerState::ContainerExited);
        drop(state);
        if let Events::Told(events) = &self.events {
            events.send(()).unwrap();
        }
    }
}

/// The calls of which the fake knows nothing.
macro_rules! nothing {
    ($($call:ident($request:ty) -> $answer:ty),* $(,)?) => {
        // As `async_trait` writes it, which does not look into macros.
        $(fn $call<'me, 'call>(
            &'me self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<$answer>, Status>> + Send + 'call>>
        where
            'me: 'call,
            Self: 'call,
        {
            Box::pin(async { Err(Status::unimplemented("the fake does not do this")) })
        })*
    };
}

#[async_trait]
impl RuntimeService for Fake {
    type GetContainerEventsStream = EventStream;

    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        self.count("version", |_| VersionResponse {
            runtime_name: "fake".to_owned(),
            runtime_version: "1".to_owned(),
            ..VersionResponse::default()
        })
    }

    async fn runtime_config(
        &self,
        _: Request<RuntimeConfigRequest>,
    ) -> Result<Response<RuntimeConfigResponse>, Status> {
        self.count("config", |_| RuntimeConfigResponse {
            linux: Some(LinuxRuntimeConfiguration {
                cgroup_driver: kedge_grpc::cri::CgroupDriver::Systemd.into(),
            }),
        })
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        self.count("list", |state| ListPodSandboxResponse {
            items: state.sandboxes.clone(),
        })
    }

    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        self.count("list", |state| ListContainersResponse {
            containers: state.containers.clone(),
        })
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        self.count("sandbox", |_| PodSandboxStatusResponse {
            status: Some(PodSandboxStatus {
                id,
                network: Some(PodSandboxNetworkStatus {
                    ip: "10.0.0.1".to_owned(),
                    additional_ips: vec![PodIp {
                        ip: "fd00::1".to_owned(),
                    }],
                }),
                ..PodSandboxStatus::default()
            }),
            ..PodSandboxStatusResponse::default()
        })
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let id = request.into_inner().container_id;
        self.count("container", |state| {
            let found = state.containers.iter().find(|found| found.id == id).unwrap();
            ContainerStatusResponse {
                status: Some(ContainerStatus {
                    id,
                    state: found.state,
                    exit_code: 5,
                    ..ContainerStatus::default()
                }),
                ..ContainerStatusResponse::default()
            }
        })
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        self.count("run", |state| {
            state.last_sandbox = request.into_inner().config;
            RunPodSandboxResponse {
                pod_sandbox_id: "made".to_owned(),
            }
        })
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        self.count("create", |state| {
            state.last_container = Some(request.into_inner());
            CreateContainerResponse {
                container_id: "made".to_owned(),
            }
        })
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Result<Response<EventStream>, Status> {
        drop(self.count("events", |_| ()));
        let events = match &self.events {
            Events::Unknown => return Err(Status::unimplemented("no events")),
            Events::TurnedOff => {
                let none = kedge_grpc::tonic::codegen::tokio_stream::empty();
                return Ok(Response::new(Box::pin(none)));
            }
            Events::Told(events) => events,
        };
        let mut receiver = events.subscribe();
        // A first event at once, so that the client knows that it is heard.
        let (sender, stream) = tokio::sync::mpsc::channel(16);
        sender.try_send(Ok(ContainerEventResponse::default())).unwrap();
        tokio::spawn(async move {
            while receiver.recv().await.is_ok() {
                if sender.send(Ok(ContainerEventResponse::default())).await.is_err() {
                    return;
                }
            }
        });
        let stream = kedge_grpc::tonic::codegen::tokio_stream::wrappers::ReceiverStream::new(stream);
        Ok(Response::new(Box::pin(stream.map(|event| event))))
    }

    nothing! {
        status(StatusRequest) -> StatusResponse,
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse,
        stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse,
        remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse,
        start_container(StartContainerRequest) -> StartContainerResponse,
        stop_container(StopContainerRequest) -> StopContainerResponse,
        remove_container(RemoveContainerRequest) -> RemoveContainerResponse,
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse,
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse,
        exec_sync(ExecSyncRequest) -> ExecSyncResponse,
        exec(ExecRequest) -> ExecResponse,
        attach(AttachRequest) -> AttachResponse,
        port_forward(PortForwardRequest) -> PortForwardResponse,
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse,
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse,
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse,
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse,
    }
}

#[tokio::test]
async fn a_look_at_a_quiet_node_is_two_questions() {
    let node = Node::new();
    let socket = node.directory.join("fake.sock");
    let fake = Fake::new(Events::Unknown);
    fake.add("s1", &["c1", "c2"]);
    fake.add("s2", &["c3"]);
    let server = fake.serve(&socket);
    let runtime = connect(&socket, FACT_WAIT_MAX);

    let first = runtime.list().await.unwrap();
    assert_eq!(first[0].ips, ["10.0.0.1", "fd00::1"]);
    assert_eq!(
        fake.calls(),
        [("list", 2), ("sandbox", 2), ("container", 3)].into()
    );
    assert_eq!(runtime.list().await.unwrap(), first);
    assert_eq!(fake.calls(), [("list", 2)].into());

    fake.end("c2");
    let seen = runtime.list().await.unwrap();
    assert_eq!(fake.calls(), [("list", 2), ("container", 1)].into());
    let ended = seen
        .iter()
        .flat_map(|sandbox| &sandbox.containers)
        .find(|found| found.id.0 == "c2");
    assert!(matches!(
        ended.unwrap().state,
        ContainerState::Exited { exit_code: 5, .. }
    ));
    assert_eq!(runtime.list().await.unwrap(), seen);
    assert_eq!(fake.calls(), [("list", 2)].into());
    server.abort();
}

#[tokio::test]
async fn events_are_hints() {
    let node = Node::new();
    let socket = node.directory.join("fake.sock");
    let events = broadcast::channel(16).0;
    let fake = Fake::new(Events::Told(events.clone()));
    fake.add("s1", &["c1"]);
    let server = fake.serve(&socket);
    let runtime = connect(&socket, FACT_WAIT_MAX);
    let ended = tokio::time::timeout(FACT_WAIT_MAX, async {
        runtime.changed().await;
        while events.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        // The hint of the start may still be under way; an end is seen at the latest by the hint after it.
        fake.end("c1");
        loop {
            runtime.changed().await;
            let seen = runtime.list().await.unwrap();
            if matches!(seen[0].containers[0].state, ContainerState::Exited { .. }) {
                return;
            }
        }
    });
    ended.await.expect("a hint after the end");
    server.abort();
}

#[tokio::test]
async fn a_runtime_without_events_is_looked_at_by_the_clock() {
    for events in [Events::Unknown, Events::TurnedOff] {
        let node = Node::new();
        let socket = node.directory.join("fake.sock");
        let fake = Fake::new(events);
        let server = fake.serve(&socket);
        let runtime = connect(&socket, FACT_WAIT_MAX);
        for _ in 0..4 {
            tokio::time::timeout(FACT_WAIT_MAX, runtime.changed())
                .await
                .expect("a hint by the clock");
        }
        assert_eq!(fake.calls(), [("version", 1), ("events", 1)].into(), "asked once");
        server.abort();
    }
}

#[tokio::test]
async fn the_runtimes_own_cgroup_driver_counts_and_is_asked_once() {
    let node = Node::new();
    let socket = node.directory.join("fake.sock");
    let fake = Fake::new(Events::Unknown);
    let server = fake.serve(&socket);
    let runtime = Cri::connect(CriConfig {
        runtime_endpoint: format!("unix://{}", socket.display()),
        image_endpoint: String::new(),
        cgroup_root: String::new(),
        cgroup_driver: CgroupDriver::Cgroupfs,
        cgroups_per_pod: true,
        request_timeout: Duration::from_secs(10),
    })
    .unwrap();
    let pod = kedge_containers::SandboxConfig {
        cgroup_parent: "burstable/poda-1".to_owned(),
        host_network: true,
        ..node.sandbox("p")
    };
    assert_eq!(
        runtime.run_sandbox(&pod).await.unwrap(),
        SandboxId("made".to_owned())
    );
    let sandbox = fake.state.lock().unwrap().last_sandbox.clone().unwrap();
    assert_eq!(
        sandbox.linux.unwrap().cgroup_parent,
        "kubepods-burstable-poda_1.slice"
    );
    assert_eq!(sandbox.hostname, "", "a name that is the node's own is not set");

    let main = container("main", "true");
    runtime
        .create_container(&SandboxId("made".to_owned()), &pod, &main)
        .await
        .unwrap();
    let asked = fake.state.lock().unwrap().last_container.clone().unwrap();
    let config = asked.config.unwrap();
    assert_eq!(config.log_path, "main/0.log");
    assert_eq!(config.annotations["io.kubernetes.container.hash"], "hash");
    assert_eq!(config.annotations["io.kubernetes.container.restartCount"], "0");
    assert_eq!(config.labels["io.kubernetes.container.name"], "main");
    assert_eq!(config.labels["io.kubernetes.pod.uid"], "uid-p");
    assert_eq!(
        asked.sandbox_config.unwrap().log_directory,
        pod.log_dir.to_string_lossy()
    );
    assert_eq!(fake.calls(), [("config", 1), ("run", 1), ("create", 1)].into());
    server.abort();
}
