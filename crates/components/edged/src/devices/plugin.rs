//! Talking to plug-ins: they register here, and tell their devices on a stream as long as they live.

use super::book::Device;
use super::{Shared, State};
use kedge_grpc::device_plugin::device_plugin_client::DevicePluginClient;
use kedge_grpc::device_plugin::registration_server::{Registration, RegistrationServer};
use kedge_grpc::device_plugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, DevicePluginOptions, Empty, PreStartContainerRequest,
    PreferredAllocationRequest, RegisterRequest,
};
use kedge_grpc::tonic::{Code, Request, Response, Status, async_trait};
use kedge_sockets::{Address, Channel, Routes, bind, origin, serve};
use kedge_telemetry::Scope;
use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

/// The only version there is.
const VERSION: &str = "v1beta1";
/// Where plug-ins register, in the directory that they know.
const SOCKET: &str = "kubelet.sock";
/// A device's word for being well.
const HEALTHY: &str = "Healthy";
/// A plug-in that was asked for devices answers within this time; some prepare hardware.
const ALLOCATE_MAX: Duration = Duration::from_secs(60);
/// What a kubelet grants for the preparation of a device before its container starts.
const PRE_START_MAX: Duration = Duration::from_secs(30);
/// Other questions are answered from memory.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// One connected plug-in. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Client {
    plugin: DevicePluginClient<Channel>,
    pub(super) pre_start: bool,
    pub(super) preferred: bool,
    scope: Scope,
}

/// Makes the directory ready and serves registrations until the scope is cancelled.
pub(super) async fn run(shared: Arc<Shared>, scope: Scope) {
    let dir = &shared.dir;
    if let Err(error) = clear(dir) {
        tracing::warn!(dir = %dir.display(), %error, "there are no device plug-ins: their directory cannot be made ready");
        return;
    }
    let listener = match bind(&dir.join(SOCKET)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "there are no device plug-ins: nobody listens to them");
            return;
        }
    };
    let desk = Desk {
        shared: Arc::clone(&shared),
        scope: scope.clone(),
    };
    let routes = Routes::new().add(RegistrationServer::new(desk));
    serve(listener, routes, scope.cancelled()).await;
}

/// Removes the sockets of a former life: by that running plug-ins know that they must register again.
fn clear(dir: &Path) -> std::io::Result<()> {
    crate::volumes::make_private_dir(dir)?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Where plug-ins register.
struct Desk {
    shared: Arc<Shared>,
    scope: Scope,
}

#[async_trait]
impl Registration for Desk {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let asked = request.into_inner();
        check(&asked).inspect_err(|status| {
            tracing::warn!(
                resource = asked.resource_name,
                why = status.message(),
                "device plug-in refused"
            );
        })?;
        tracing::info!(
            resource = asked.resource_name,
            endpoint = asked.endpoint,
            "device plug-in registers"
        );
        let (shared, scope) = (Arc::clone(&self.shared), self.scope.child());
        let own = scope.clone();
        // A plug-in may serve its socket only after it was answered here.
        scope.spawn_until_cancelled("edged-device-plugin", listen(shared, asked, own));
        Ok(Response::new(Empty {}))
    }
}

fn check(asked: &RegisterRequest) -> Result<(), Status> {
    if asked.version != VERSION {
        return Err(Status::invalid_argument(format!(
            "requested API version {:?} is not supported by kubelet. Supported version is {VERSION:?}",
            asked.version
        )));
    }
    if !is_extended_resource(&asked.resource_name) {
        return Err(Status::invalid_argument(format!(
            "the ResourceName {:?} is invalid",
            asked.resource_name
        )));
    }
    let mut parts = Path::new(&asked.endpoint).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(()),
        (_, _) => Err(Status::invalid_argument(format!(
            "the endpoint {:?} is no name of a socket in this directory",
            asked.endpoint
        ))),
    }
}

/// `vendor.example/name`, outside of Kubernetes' own names.
pub(super) fn is_extended_resource(name: &str) -> bool {
    const PART_MAX: usize = 63;
    const DOMAIN_MAX: usize = 253;
    let Some((domain, rest)) = name.split_once('/') else {
        return false;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends_well = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let is_native =
        domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") || name.starts_with("requests.");
    !is_native
        && domain.len() <= DOMAIN_MAX
        && domain
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
        && ends_well(domain)
        && rest.len() <= PART_MAX
        && rest.chars().all(plain)
        && ends_well(rest)
}

/// Hears what a plug-in tells until it ends, or until it registers again.
async fn listen(shared: Arc<Shared>, asked: RegisterRequest, scope: Scope) {
    let resource = asked.resource_name;
    let channel = Channel::new(Address::Unix(shared.dir.join(&asked.endpoint)));
    let mut plugin = DevicePluginClient::with_origin(channel, origin());
    let options = match asked.options {
        Some(options) => options,
        None => options(&mut plugin).await,
    };
    let client = Client {
        plugin: plugin.clone(),
        pre_start: options.pre_start_required,
        preferred: options.get_preferred_allocation_available,
        scope,
    };
    let serial = shared.connected(&resource, client);
    let why = match plugin.list_and_watch(Empty {}).await {
        Err(status) => status.message().to_owned(),
        Ok(answer) => {
            let mut lists = answer.into_inner();
            loop {
                match lists.message().await {
                    Ok(Some(list)) => {
                        let devices = list.devices.into_iter().map(device).collect();
                        shared.told(&resource, serial, devices).await;
                    }
                    Ok(None) => break "it ended the list of its devices".to_owned(),
                    Err(status) => break status.message().to_owned(),
                }
            }
        }
    };
    tracing::warn!(
        resource,
        why,
        "device plug-in is gone; no pod gets its devices until it is back"
    );
    shared.away(&resource, serial).await;
}

async fn options(plugin: &mut DevicePluginClient<Channel>) -> DevicePluginOptions {
    let asked = tokio::time::timeout(ANSWER_MAX, plugin.get_device_plugin_options(Empty {})).await;
    asked
        .ok()
        .and_then(Result::ok)
        .map(Response::into_inner)
        .unwrap_or_default()
}

fn device(told: kedge_grpc::device_plugin::Device) -> Device {
    let numa = told.topology.map(|topology| topology.nodes).unwrap_or_default();
    Device {
        healthy: told.health == HEALTHY,
        numa: numa.iter().map(|node| node.id).collect(),
        id: told.id,
    }
}

impl Client {
    /// Ends what listens to the plug-in.
    pub(super) fn close(&self) {
        self.scope.cancel();
    }

    /// Asks for these devices.
    pub(super) async fn allocate(&self, ids: &BTreeSet<String>) -> Result<ContainerAllocateResponse, String> {
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                devices_ids: ids.iter().cloned().collect(),
            }],
        };
        let mut plugin = self.plugin.clone();
        let mut answers = match tokio::time::timeout(ALLOCATE_MAX, plugin.allocate(request)).await {
            Ok(Ok(answer)) => answer.into_inner().container_responses,
            Ok(Err(status)) => return Err(explain(&status)),
            Err(_) => {
                return Err(explain(&Status::new(
                    Code::DeadlineExceeded,
                    "context deadline exceeded",
                )));
            }
        };
        match (answers.pop(), answers.is_empty()) {
            (Some(answer), true) => Ok(answer),
            (_, _) => Err("no containers return in allocation response".to_owned()),
        }
    }

    /// Which devices the plug-in would take. It is only asked for advice, so its failure is no obstacle.
    pub(super) async fn prefer(
        &self,
        free: &BTreeSet<String>,
        must: &BTreeSet<String>,
        size: usize,
    ) -> BTreeSet<String> {
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_i_ds: free.union(must).cloned().collect(),
                must_include_device_i_ds: must.iter().cloned().collect(),
                allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
            }],
        };
        let mut plugin = self.plugin.clone();
        let asked = tokio::time::timeout(ANSWER_MAX, plugin.get_preferred_allocation(request)).await;
        let Ok(Ok(answer)) = asked else {
            tracing::debug!("device plug-in has no preference");
            return BTreeSet::new();
        };
        let answers = answer.into_inner().container_responses;
        answers
            .into_iter()
            .flat_map(|answer| answer.device_i_ds)
            .collect()
    }

    /// Tells that the container is about to start.
    pub(super) async fn prepare(&self, ids: &BTreeSet<String>) -> Result<(), String> {
        let request = PreStartContainerRequest {
            devices_ids: ids.iter().cloned().collect(),
        };
        let mut plugin = self.plugin.clone();
        match tokio::time::timeout(PRE_START_MAX, plugin.pre_start_container(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(explain(&status)),
            Err(_) => Err(explain(&Status::new(
                Code::DeadlineExceeded,
                "context deadline exceeded",
            ))),
        }
    }
}

/// A refusal of a plug-in as Go programs print it.
fn explain(status: &Status) -> String {
    format!(
        "rpc error: code = {:?} desc = {}",
        status.code(),
        status.message()
    )
}

impl State {
    pub(super) fn client(&self, resource: &str) -> Option<&Client> {
        self.clients.get(resource)
    }
}
