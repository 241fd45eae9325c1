//! One CSI driver: who it says it is, and calls to it.

use super::Error;
use kedge_grpc::csi::node_client::NodeClient;
use kedge_grpc::csi::node_service_capability::{self, rpc};
use kedge_grpc::csi::{
    NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
};
use kedge_grpc::tonic;
use kedge_sockets::{Address, Channel, origin};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// A kubelet gives a call this long: a stage may check a file system or log in to a storage server.
const CALL_MAX: Duration = Duration::from_secs(120);

/// What a driver says about itself on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct DriverInfo {
    /// What the driver calls this node.
    pub(crate) node_id: String,
    /// Where the node is, by the driver's own keys.
    pub(crate) topology: BTreeMap<String, String>,
    /// 0 is no limit.
    pub(crate) volumes_max: i64,
}

/// A driver that has registered.
#[derive(Debug, Clone)]
pub(crate) struct Driver {
    pub(crate) name: String,
    pub(crate) info: DriverInfo,
    capabilities: Vec<rpc::Type>,
    channel: Channel,
}

impl Driver {
    /// Asks a driver who it is. A driver that does not answer is not one.
    pub(crate) async fn connect(name: &str, socket: &Path) -> Result<Self, Error> {
        let channel = Channel::new(Address::Unix(socket.to_owned()));
        let mut driver = Self {
            name: name.to_owned(),
            info: DriverInfo::default(),
            capabilities: Vec::new(),
            channel,
        };
        let mut client = driver.client();
        let answer = driver
            .within("NodeGetInfo", client.node_get_info(NodeGetInfoRequest {}))
            .await?;
        driver.info = DriverInfo {
            node_id: answer.node_id,
            topology: answer
                .accessible_topology
                .map(|topology| topology.segments)
                .unwrap_or_default(),
            volumes_max: answer.max_volumes_per_node,
        };
        if driver.info.node_id.is_empty() {
            return Err(Error::NoNodeId(name.to_owned()));
        }
        let mut client = driver.client();
        let call = client.node_get_capabilities(NodeGetCapabilitiesRequest {});
        let answer = driver.within("NodeGetCapabilities", call).await?;
        let known = answer.capabilities.into_iter().filter_map(|capability| {
            let node_service_capability::Type::Rpc(rpc) = capability.r#type?;
            Some(rpc.r#type())
        });
        driver.capabilities = known.collect();
        Ok(driver)
    }

    pub(crate) fn can(&self, what: rpc::Type) -> bool {
        self.capabilities.contains(&what)
    }

    pub(crate) async fn stage(&self, request: NodeStageVolumeRequest) -> Result<(), Error> {
        let mut client = self.client();
        self.within("NodeStageVolume", client.node_stage_volume(request))
            .await
            .map(drop)
    }

    pub(crate) async fn unstage(&self, request: NodeUnstageVolumeRequest) -> Result<(), Error> {
        let mut client = self.client();
        self.within("NodeUnstageVolume", client.node_unstage_volume(request))
            .await
            .map(drop)
    }

    pub(crate) async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), Error> {
        let mut client = self.client();
        self.within("NodePublishVolume", client.node_publish_volume(request))
            .await
            .map(drop)
    }

    pub(crate) async fn unpublish(&self, request: NodeUnpublishVolumeRequest) -> Result<(), Error> {
        let mut client = self.client();
        self.within("NodeUnpublishVolume", client.node_unpublish_volume(request))
            .await
            .map(drop)
    }

    pub(crate) async fn expand(&self, request: NodeExpandVolumeRequest) -> Result<(), Error> {
        let mut client = self.client();
        self.within("NodeExpandVolume", client.node_expand_volume(request))
            .await
            .map(drop)
    }

    fn client(&self) -> NodeClient<Channel> {
        NodeClient::with_origin(self.channel.clone(), origin())
    }

    async fn within<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(CALL_MAX, work).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Error::Refused {
                driver: self.name.clone(),
                call,
                code: format!("{:?}", status.code()),
                message: status.message().to_owned(),
            }),
            Err(_) => Err(Error::Slow {
                driver: self.name.clone(),
                call,
                seconds: CALL_MAX.as_secs(),
            }),
        }
    }
}
