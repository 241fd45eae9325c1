//! Every channel and every task of EdgeCore, in order.
//!
//! ```text
//!   cloud <══ edgehub ──store──> metamanager ──objects──> edged ──> runtime
//!                ^ ───────cloud──────┘  ^ ─────requests─────┘ ^
//!   cloud <══ edgestream ──────────────────────gets───────────┘
//! ```
//!
//! Pods start from the store before anything is dialled: the cloud may be away for days.

use crate::settings;
use anyhow::{Context, Result};
use kedge_config::EdgeCore;
use kedge_edged::{Edged, MachineStops};
use kedge_edgehub::{EdgeHub, Network};
use kedge_edgestream::EdgeStream;
use kedge_metamanager::MetaManager;
use kedge_pods::Release;
use kedge_runtime::Runtime;
use kedge_store::meta::MetaStore;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest, queue};
use kedge_telemetry::metrics::Registry;
use kedge_transport::Plug;
use kedge_wire::NodeName;
use std::sync::Arc;
use std::time::Duration;

/// Object changes between hub and store: the cloud keeps at most this many unacknowledged anyway.
const ORDERS_WAITING_MAX: usize = 64;
/// Requests of edged on their way: a status for each of 110 pods at once, and a few of the node.
const REQUESTS_WAITING_MAX: usize = 128;
/// Held updates that are let go, by hand and one after the other.
const RELEASES_WAITING_MAX: usize = 8;
/// Whoever says that the machine stops says it once.
const SHUTDOWNS_WAITING_MAX: usize = 1;
/// Beyond the time of the pods, for what is written and told about them.
const SHUTDOWN_SLACK: Duration = Duration::from_secs(5);
/// Log streams that begin at one time.
const GETS_WAITING_MAX: usize = 32;
/// Connections that begin at one time; edged takes each at once.
const CONNECTS_WAITING_MAX: usize = 32;

/// An EdgeCore that runs.
#[derive(Debug)]
pub struct Running {
    /// Whether the cloud is connected.
    pub online: latest::Receiver<bool>,
    /// Ends the pods when the machine shuts down, as the file says; `None`: they just go on until it is gone.
    pub shutdown: Option<Shutdown>,
    /// Lets updates go that a pod's annotation holds back.
    pub releases: queue::Sender<Release>,
}

/// Ends the pods when the machine shuts down.
#[derive(Debug)]
pub struct Shutdown {
    asked: ask::Sender<MachineStops, ()>,
    /// How long it takes at most.
    pub limit: Duration,
}

impl Shutdown {
    /// Comes back when the pods have ended, or their time is over.
    pub async fn end_pods(&self) {
        let limit = self.limit + SHUTDOWN_SLACK;
        if let Err(error) = self.asked.ask(MachineStops, limit).await {
            tracing::warn!(%error, "not all pods have ended before the machine does");
        }
    }
}

/// Starts every part; they end with `scope`. `plug` is the cable to the cloud, which a demo or a test may pull.
pub async fn start(
    config: EdgeCore,
    runtime: Arc<dyn Runtime>,
    plug: Plug,
    scope: &Scope,
) -> Result<Running> {
    let node = NodeName::new(config.edged.node_name.clone()).context("modules.edged.hostnameOverride")?;
    let store = MetaStore::open_node(settings::store(&config))?.store;
    let held_anew = store.mended();
    let meta_config = kedge_metamanager::Config {
        query_timeout: config.remote_query_timeout,
    };
    let (metamanager, holding) = MetaManager::open(store, meta_config).await?;

    let (orders_tx, orders_rx) = ask::channel("store orders", ORDERS_WAITING_MAX);
    let (cloud_tx, cloud_rx) = ask::channel("cloud requests", REQUESTS_WAITING_MAX);
    let (requests_tx, requests_rx) = ask::channel("edged requests", REQUESTS_WAITING_MAX);
    let (gets_tx, gets_rx) = ask::channel("node gets", GETS_WAITING_MAX);
    let (connects_tx, connects_rx) = queue::channel("node connects", CONNECTS_WAITING_MAX);
    let (objects_tx, objects_rx) = keyed::channel("desired objects");
    let (complete_tx, complete_rx) = latest::channel(holding.complete);
    let (online_tx, online_rx) = latest::channel(false);
    let (releases_tx, releases_rx) = queue::channel("releases", RELEASES_WAITING_MAX);

    let (stops_tx, stops_rx) = ask::channel("shutdown", SHUTDOWNS_WAITING_MAX);

    let edged_ports = kedge_edged::Ports {
        desired: objects_rx,
        complete: complete_rx,
        cloud: requests_tx,
        online: online_rx.clone(),
        node_get: gets_rx,
        node_connect: connects_rx,
        releases: releases_rx,
        shutdown: stops_rx,
        metrics: Registry::new(),
    };
    let edged_config = settings::edged(&config, &node)?;
    let shutdown = (!edged_config.shutdown.is_empty()).then(|| Shutdown {
        asked: stops_tx,
        limit: edged_config.shutdown.whole(),
    });
    let edged = Edged::new(edged_config, runtime, holding.objects, edged_ports)?;
    scope.spawn_vital("edged", edged.run(scope.clone()));
    let meta_ports = kedge_metamanager::Ports {
        orders: orders_rx,
        requests: requests_rx,
        cloud: cloud_tx,
        online: online_rx.clone(),
        objects: objects_tx,
        complete: complete_tx,
    };
    scope.spawn_vital("metamanager", metamanager.run(meta_ports, scope.clone()));

    // The hub waits for its certificate by itself: nothing here needs the network.
    let (identity_tx, identity_rx) = latest::channel(None);
    let hub_ports = kedge_edgehub::Ports {
        store: orders_tx,
        requests: cloud_rx,
        online: online_tx,
        held_anew,
        identity: identity_tx,
    };
    let hub = EdgeHub::new(
        settings::hub(&config, &node),
        None,
        Network { plug: plug.clone() },
        hub_ports,
    )?;
    scope.spawn_vital("edgehub", hub.run(scope.clone()));
    if config.stream.enable {
        let ports = kedge_edgestream::Ports {
            identity: identity_rx,
            gets: gets_tx,
            connects: connects_tx,
            plug,
        };
        let stream = EdgeStream::new(settings::stream(&config, node)?, ports);
        scope.spawn_vital("edgestream", stream.run(scope.clone()));
    }
    Ok(Running {
        online: online_rx,
        shutdown,
        releases: releases_tx,
    })
}

/// How long a drain may take before what is left is named and dropped.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
