//! One hollow edge: the parts that every EdgeCore has, over a runtime whose containers exist in memory only.
//!
//! ```text
//!   cloud <══ dialer ══ edgehub ──orders──> tap ──> metamanager ──objects──> edged ──> hollow runtime
//!                          ^ <──requests── tap <──────┘   ^ ─────requests─────┘
//! ```
//!
//! Certificates, TLS, the link, the commit before the acknowledgement, pod workers, leases and status are the real ones.
//! Left out is what a load must not pay for ten thousand times on one machine: the store is in memory, and there is no
//! log tunnel.

mod dialer;
mod tally;
mod tap;

pub use tally::{Tally, wall_us};

use dialer::{Gate, GatedDialer};
use kedge_edged::Edged;
use kedge_edgehub::{CertificateConfig, EdgeHub, Identity, Network, Rates, Transport};
use kedge_metamanager::MetaManager;
use kedge_pki::{IdentityFiles, UnixTime};
use kedge_runtime::Runtime;
use kedge_runtime::hollow::Hollow;
use kedge_store::meta::MetaStore;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest, queue};
use kedge_telemetry::metrics::Registry;
use kedge_transport::Plug;
use kedge_wire::NodeName;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tap::Tap;
use tokio::time::Instant;

/// Object changes on their way to the store; as in EdgeCore.
const ORDERS_WAITING_MAX: usize = 64;
/// Requests on their way to the cloud; as in EdgeCore.
const REQUESTS_WAITING_MAX: usize = 128;
/// Nobody holds back the pods of a hollow edge.
const RELEASES_WAITING_MAX: usize = 1;
/// Nobody asks a hollow edge for logs.
const GETS_WAITING_MAX: usize = 1;
const CONNECTS_WAITING_MAX: usize = 1;
/// The machine below all hollow nodes is one and does not change: the status is looked at as often as it must be sent.
const STATUS_INTERVAL: Duration = Duration::from_secs(300);
/// A node that was refused a certificate asks again, as a supervisor would start EdgeCore again; doubled up to the
/// longest.
const CERTIFICATE_RETRY: Duration = Duration::from_secs(1);
const CERTIFICATE_RETRY_MAX: Duration = Duration::from_secs(16);
/// An attempt to connect begins when the gate is asked, and that may be closed for a while; the steps behind it have
/// limits of their own.
const ATTEMPT_MAX: Duration = Duration::from_secs(3600);
/// The official heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// The official project, part of the path that edges dial.
const PROJECT: &str = "e632aba927ea4ac2b575ec1603d56f10";
/// Marks the nodes that this program made, so that it finds and removes them.
pub const NODE_LABEL: &str = "edgemark";

/// What all edges of a process share.
#[derive(Debug)]
pub struct Setting {
    /// `host:port` of each CloudCore.
    pub hubs: Vec<String>,
    pub transport: Transport,
    /// `https://host:port`.
    pub https: String,
    pub token: String,
    /// Certificates: a directory for each node.
    pub state: PathBuf,
    /// Logs and volumes of hollow containers.
    pub scratch: PathBuf,
    pub tally: Arc<Tally>,
}

/// A hollow edge.
#[derive(Debug)]
pub struct HollowEdge {
    scope: Scope,
    plug: Plug,
    gate: latest::Sender<Gate>,
    runtime: Arc<Hollow>,
}

impl HollowEdge {
    /// An edge that has not begun to join. `scope` ends it.
    pub fn new(scope: &Scope) -> Self {
        Self {
            scope: scope.child(),
            plug: Plug::new(),
            gate: latest::channel(Gate::open_now()).0,
            runtime: Arc::new(Hollow::new()),
        }
    }

    /// Gets a certificate, if there is none in the state directory, and starts every part. Returns once they run; what
    /// becomes of them is counted in the tally.
    pub async fn join(&self, setting: Arc<Setting>, node: NodeName, seed: u64) {
        let began = Instant::now();
        setting.tally.started();
        let certificate = certificate_config(&setting, &node);
        let scope = self.scope.clone();
        let identity = tokio::select! {
            biased;
            () = scope.cancelled() => return,
            identity = certified(&certificate, &setting.tally, seed) => identity,
        };
        // In a box: ten thousand tasks wait in `join` and shall not keep room for what comes after.
        if let Err(why) = Box::pin(self.start(&setting, node, certificate, identity, seed, began)).await {
            setting.tally.error(&format!("start: {why}"));
        }
    }

    async fn start(
        &self,
        setting: &Setting,
        node: NodeName,
        certificate: CertificateConfig,
        identity: Identity,
        seed: u64,
        began: Instant,
    ) -> anyhow::Result<()> {
        let (metamanager, holding) =
            MetaManager::open(MetaStore::memory(), kedge_metamanager::Config::default()).await?;
        let (orders_tx, tapped_orders) = ask::channel("store orders", ORDERS_WAITING_MAX);
        let (tap_orders, orders_rx) = ask::channel("tapped store orders", ORDERS_WAITING_MAX);
        let (cloud_tx, tapped_cloud) = ask::channel("cloud requests", REQUESTS_WAITING_MAX);
        let (tap_cloud, cloud_rx) = ask::channel("tapped cloud requests", REQUESTS_WAITING_MAX);
        let (requests_tx, requests_rx) = ask::channel("edged requests", REQUESTS_WAITING_MAX);
        let (_nobody_asks, gets_rx) = ask::channel("node gets", GETS_WAITING_MAX);
        let (_nobody_connects, connects_rx) = queue::channel("node connects", CONNECTS_WAITING_MAX);
        let (_nobody_releases, releases_rx) = queue::channel("releases", RELEASES_WAITING_MAX);
        let (_nobody_stops, shutdown_rx) = ask::channel("shutdown", 1);
        let (objects_tx, objects_rx) = keyed::channel("desired objects");
        let (complete_tx, complete_rx) = latest::channel(holding.complete);
        let (online_tx, online_rx) = latest::channel(false);
        let (identity_tx, _) = latest::channel(None);

        let edged_ports = kedge_edged::Ports {
            desired: objects_rx,
            complete: complete_rx,
            cloud: requests_tx,
            online: online_rx.clone(),
            node_get: gets_rx,
            node_connect: connects_rx,
            releases: releases_rx,
            shutdown: shutdown_rx,
            metrics: Registry::new(),
        };
        let runtime: Arc<dyn Runtime> = Arc::clone(&self.runtime) as Arc<dyn Runtime>;
        let edged = Edged::new(edged_config(setting, node), runtime, holding.objects, edged_ports)?;
        self.scope.spawn_vital("edged", edged.run(self.scope.clone()));
        let meta_ports = kedge_metamanager::Ports {
            orders: orders_rx,
            requests: requests_rx,
            cloud: cloud_tx,
            online: online_rx.clone(),
            objects: objects_tx,
            complete: complete_tx,
        };
        self.scope
            .spawn_vital("metamanager", metamanager.run(meta_ports, self.scope.clone()));
        let tap = Tap {
            orders: tapped_orders,
            orders_out: tap_orders,
            requests: tapped_cloud,
            requests_out: tap_cloud,
            online: online_rx,
            gate: self.gate.subscribe(),
            tally: Arc::clone(&setting.tally),
            began,
        };
        self.scope.spawn_vital("tap", tap.run(self.scope.clone()));
        let hub_ports = kedge_edgehub::Ports {
            store: orders_tx,
            requests: cloud_rx,
            online: online_tx,
            // A store in memory is never damaged.
            held_anew: None,
            identity: identity_tx,
        };
        let dialer = GatedDialer {
            network: Network {
                plug: self.plug.clone(),
            },
            gate: self.gate.subscribe(),
            tally: Arc::clone(&setting.tally),
        };
        let hub = EdgeHub::new(
            hub_config(setting, certificate, seed),
            Some(identity),
            dialer,
            hub_ports,
        )?;
        self.scope.spawn_vital("edgehub", hub.run(self.scope.clone()));
        Ok(())
    }

    /// Breaks the connection. The edge dials again once [`HollowEdge::let_back`] is called.
    pub fn drop_connection(&self) {
        self.gate.send_replace(Gate::Closed);
        self.plug.pull();
        self.plug.insert();
    }

    /// Lets a dropped edge dial again.
    pub fn let_back(&self) {
        self.gate.send_replace(Gate::open_now());
    }

    /// Why the edge lost a part, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.scope.failure()
    }

    /// Pods that have a running container.
    pub async fn pods_running(&self) -> u64 {
        // The hollow runtime answers always.
        let sandboxes = self.runtime.list().await.unwrap_or_default();
        let runs = |container: &kedge_containers::ObservedContainer| {
            matches!(container.state, kedge_containers::ContainerState::Running { .. })
        };
        let running = sandboxes
            .iter()
            .filter(|sandbox| sandbox.containers.iter().any(runs));
        u64::try_from(running.count()).unwrap_or(u64::MAX)
    }
}

/// Asks until there is a certificate; every failure is counted.
async fn certified(config: &CertificateConfig, tally: &Tally, seed: u64) -> Identity {
    let had_files = config.files.certificate.exists();
    let mut delay = CERTIFICATE_RETRY;
    let began = Instant::now();
    loop {
        // In a box: the room for a TLS handshake is given back when it is done.
        match Box::pin(kedge_edgehub::bootstrap(config, UnixTime::now())).await {
            Ok(identity) => {
                if !had_files {
                    tally.times(|times| times.certificate.observe(began.elapsed()));
                }
                return identity;
            }
            Err(error) => {
                tracing::debug!(node = %config.node, %error, "no certificate yet");
                tally.error(tally::certificate_trouble(&error));
            }
        }
        let spread = f64::from(u16::try_from(seed & 0xff).unwrap_or(0)) / 255.0;
        tokio::time::sleep(delay.mul_f64(0.5 + spread / 2.0)).await;
        delay = (delay * 2).min(CERTIFICATE_RETRY_MAX);
    }
}

fn certificate_config(setting: &Setting, node: &NodeName) -> CertificateConfig {
    let directory = setting.state.join(node.as_str());
    CertificateConfig {
        node: node.clone(),
        http_server: setting.https.clone(),
        token: Some(setting.token.clone()),
        token_file: None,
        files: IdentityFiles::in_directories(&directory, &directory),
    }
}

fn edged_config(setting: &Setting, node: NodeName) -> kedge_edged::Config {
    kedge_edged::Config {
        log_dir: setting.scratch.join("logs"),
        node: kedge_edged::Node {
            labels: [(NODE_LABEL.to_owned(), "hollow".to_owned())].into(),
            status_check_interval: STATUS_INTERVAL,
            status_report_interval: STATUS_INTERVAL,
            ..kedge_edged::Node::default()
        },
        // Pods are told apart by their UIDs, so all edges share one directory.
        ..kedge_edged::Config::new(node, setting.scratch.clone())
    }
}

fn hub_config(setting: &Setting, certificate: CertificateConfig, seed: u64) -> kedge_edgehub::Config {
    kedge_edgehub::Config {
        certificate,
        transport: setting.transport,
        servers: setting.hubs.clone(),
        handshake_timeout: ATTEMPT_MAX,
        read_deadline: HEARTBEAT,
        project_id: PROJECT.to_owned(),
        heartbeat: HEARTBEAT,
        rates: Rates::default(),
        rotate_certificates: false,
        seed,
    }
}
