//! One task per watched kind, each at its own pace.

use kedge_cluster::{Cluster, Watch, WatchItem, Watched};
use kedge_placement::syncs::Records;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::queue;
use kedge_wire::ObjectKind;
use tokio::time::Instant;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Watching {
    Nodes,
    ConfigMaps,
    Secrets,
    Pods,
    Records(Records),
}

impl Watching {
    /// Nothing is complete before each of them is.
    pub(crate) const ALL: [Self; 6] = [
        Self::Nodes,
        Self::ConfigMaps,
        Self::Secrets,
        Self::Pods,
        Self::Records(Records::Namespaced),
        Self::Records(Records::Cluster),
    ];
    /// What every cluster has.
    const CORE: [Self; 4] = [Self::Nodes, Self::ConfigMaps, Self::Secrets, Self::Pods];

    /// The kind that nodes hold, if it is one.
    pub(super) fn placed(self) -> Option<ObjectKind> {
        match self {
            Self::Nodes => Some(ObjectKind::Node),
            Self::ConfigMaps => Some(ObjectKind::ConfigMap),
            Self::Secrets => Some(ObjectKind::Secret),
            Self::Pods => Some(ObjectKind::Pod),
            Self::Records(_) => None,
        }
    }

    pub(crate) fn watched(self) -> Watched {
        let core = |plural: &str, kind| Watched {
            path: format!("/api/v1/{plural}"),
            api_version: "v1",
            kind,
        };
        match self {
            Self::Nodes => core("nodes", "Node"),
            Self::ConfigMaps => core("configmaps", "ConfigMap"),
            Self::Secrets => core("secrets", "Secret"),
            Self::Pods => core("pods", "Pod"),
            Self::Records(records) => Watched {
                path: records.path(),
                api_version: records.api_version(),
                kind: records.kind(),
            },
        }
    }
}

/// One thing that a watch told.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) by: Watching,
    pub(crate) at: Instant,
    pub(crate) item: WatchItem,
}

pub(crate) type Observe = queue::Sender<Observed>;

pub(super) fn start(cluster: &Cluster, observe: &Observe, scope: &Scope) {
    for by in Watching::CORE {
        let name = format!("controllers.watch{}", by.watched().path);
        scope.spawn_until_cancelled(name, follow(cluster.clone(), by, observe.clone()));
    }
}

/// Passes on what the watch tells, for ever.
pub(crate) async fn follow(cluster: Cluster, by: Watching, observe: Observe) {
    let mut watch = Watch::new(cluster, by.watched());
    loop {
        let item = watch.next().await;
        let at = Instant::now();
        if observe.send(Observed { by, at, item }).await.is_err() {
            return;
        }
    }
}
