//! One task per watched kind, each at its own pace.

use kedge_cluster::{Cluster, Watch, WatchItem, Watched};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::queue;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Watching {
    Nodes,
    ConfigMaps,
    Secrets,
    Pods,
}

impl Watching {
    pub(super) const ALL: [Self; 4] = [Self::Nodes, Self::ConfigMaps, Self::Secrets, Self::Pods];

    fn watched(self) -> Watched {
        let (plural, kind) = match self {
            Self::Nodes => ("nodes", "Node"),
            Self::ConfigMaps => ("configmaps", "ConfigMap"),
            Self::Secrets => ("secrets", "Secret"),
            Self::Pods => ("pods", "Pod"),
        };
        Watched {
            path: format!("/api/v1/{plural}"),
            api_version: "v1",
            kind,
        }
    }
}

/// One thing that a watch told.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) by: Watching,
    pub(super) item: WatchItem,
}

pub(super) fn start(cluster: &Cluster, observe: &queue::Sender<Observed>, scope: &Scope) {
    for by in Watching::ALL {
        let watched = by.watched();
        let name = format!("controllers.watch{}", watched.path);
        let mut watch = Watch::new(cluster.clone(), watched);
        let observe = observe.clone();
        scope.spawn_until_cancelled(name, async move {
            loop {
                let item = watch.next().await;
                if observe.send(Observed { by, item }).await.is_err() {
                    return;
                }
            }
        });
    }
}
