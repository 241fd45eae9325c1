//! Keeps the node alive when memory, disk or process ids run out.
//!
//! Every ten seconds what is left is measured, with a handful of small files and one question to the kernel for each
//! disk. What single pods use is looked at only when something is short, or, once a minute, where a pod has a limit of
//! local disk. [`kedge_pods::eviction::Evictor`] decides; the owner of the pods ends the one that must go, and nothing
//! else is evicted before its containers have ended.

mod measure;

use crate::beside::{Beside, Order, PodView};
use crate::gc;
use crate::stats::{Disks, Stats};
use kedge_api::{Pod, PodPhase};
use kedge_pods::Eviction;
use kedge_pods::eviction::{
    ContainerUsage, DiskUse, Evictor, Observations, PodUsage, Pressures, Rules, Signal, Starved, Victim,
    VolumeUsage,
};
use kedge_telemetry::channel::latest;
use kedge_wire::Time;
use measure::Gauges;
use std::sync::Arc;
use std::time::Duration;

/// As often as a kubelet looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// Limits of local disk are looked at this often: it takes a walk through the pods' directories.
const LIMITS_INTERVAL: Duration = Duration::from_secs(60);
/// A pod that does not end within this time does not keep the next one from going.
const CLEANUP_MAX: Duration = Duration::from_secs(30);
/// What a pod used comes back a moment after its end. Looking earlier would cost another pod its life.
const SETTLE: Duration = Duration::from_secs(2);
/// Removing unused images may take this long before pods go instead.
const RECLAIM_MAX: Duration = Duration::from_secs(120);

/// Starts looking; the pressures of the node come out. Without rules there are none for ever.
pub(crate) fn start(
    beside: &Beside,
    stats: &Arc<Stats>,
    images: Option<gc::Reclaim>,
) -> latest::Receiver<Pressures> {
    let (told, pressures) = latest::channel(Pressures::default());
    if let Some(rules) = &beside.config.eviction {
        let task = Task::new(beside.clone(), Arc::clone(stats), rules.clone(), images, told);
        beside.scope.spawn_until_cancelled("edged-eviction", task.run());
    }
    pressures
}

struct Task {
    beside: Beside,
    stats: Arc<Stats>,
    images: Option<gc::Reclaim>,
    evictor: Evictor,
    gauges: Gauges,
    told: latest::Sender<Pressures>,
    limits_looked_at: Option<Time>,
}

impl Task {
    fn new(
        beside: Beside,
        stats: Arc<Stats>,
        rules: Rules,
        images: Option<gc::Reclaim>,
        told: latest::Sender<Pressures>,
    ) -> Self {
        Self {
            gauges: Gauges::new(&beside, &rules),
            evictor: Evictor::new(rules),
            beside,
            stats,
            images,
            told,
            limits_looked_at: None,
        }
    }

    async fn run(mut self) {
        loop {
            let evicted = self.look().await;
            match evicted {
                // What the pod gave back is measured soon.
                Some(uid) => self.wait_for_the_end_of(&uid).await,
                None => tokio::time::sleep(INTERVAL).await,
            }
        }
    }

    /// One look; gives back the UID of the pod that was made to go.
    async fn look(&mut self) -> Option<String> {
        let observed = self.measure().await;
        self.evictor.handle_observed(observed, self.beside.clock.now());
        self.tell_pressures().await;
        let over = self.over_their_limits().await;
        if !over.is_empty() {
            let last = over.last().map(|victim| victim.uid.clone());
            for victim in over {
                self.evict(victim).await;
            }
            return last;
        }
        let starved = self.evictor.starved()?;
        let resource = starved.threshold.signal.resource().as_str();
        tracing::warn!(
            signal = starved.threshold.signal.as_str(),
            "the node is short of {resource}"
        );
        let message = format!("Attempting to reclaim {resource}");
        self.beside
            .events
            .tell_node("EvictionThresholdMet", true, message);
        if self.reclaim_garbage(starved).await {
            return None;
        }
        let victim = self.choose(starved.threshold.signal).await;
        let Some(victim) = victim else {
            tracing::warn!("the node is short of {resource}, and no pod may be evicted for it");
            return None;
        };
        let uid = victim.uid.clone();
        self.evict(victim).await;
        Some(uid)
    }

    async fn measure(&mut self) -> Observations {
        let observed = self.gauges.read(&self.beside).await;
        self.evictor.handle_layout(self.gauges.own_imagefs());
        observed
    }

    async fn tell_pressures(&mut self) {
        let pressures = self.evictor.pressures();
        let is_new = self.told.send_if_modified(|old| {
            let differs = *old != pressures;
            *old = pressures;
            differs
        });
        if is_new {
            let order = Order::Pressures(pressures);
            if self.beside.orders.send(order).await.is_err() {
                tracing::debug!("the owner of the pods has ended");
            }
        }
    }

    /// Removes unused images where that may help. True when nothing is short any more.
    async fn reclaim_garbage(&mut self, starved: Starved) -> bool {
        let Some(images) = self.images.as_ref().filter(|_| starved.garbage_helps) else {
            return false;
        };
        match images.ask((), RECLAIM_MAX).await {
            Ok(0) => return false,
            Ok(bytes) => tracing::info!(bytes, "unused images were removed for want of disk"),
            Err(error) => tracing::warn!(%error, "unused images are not removed in time"),
        }
        let observed = self.measure().await;
        self.evictor.is_satisfied_by(&observed)
    }

    async fn choose(&self, signal: Signal) -> Option<Victim> {
        let views = self.candidates();
        let needs_disks = match signal {
            Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable | Signal::PidAvailable => false,
            Signal::NodefsAvailable
            | Signal::NodefsInodesFree
            | Signal::ImagefsAvailable
            | Signal::ImagefsInodesFree => true,
        };
        let usage = self.usage(needs_disks).await;
        let pods: Vec<&Pod> = views.iter().map(|view| view.pod.as_ref()).collect();
        self.evictor.choose(&pods, &usage)
    }

    async fn over_their_limits(&mut self) -> Vec<Victim> {
        let now = self.beside.clock.now();
        let looked = self.limits_looked_at.get_or_insert(now);
        if now.since(*looked) < LIMITS_INTERVAL {
            return Vec::new();
        }
        *looked = now;
        let mut views = self.candidates();
        views.retain(|view| self.evictor.has_storage_limit(&view.pod));
        if views.is_empty() {
            return Vec::new();
        }
        let usage = self.usage(true).await;
        let pods: Vec<&Pod> = views.iter().map(|view| view.pod.as_ref()).collect();
        self.evictor.over_their_limits(&pods, &usage)
    }

    /// Pods that use something and do not go already.
    fn candidates(&self) -> Vec<PodView> {
        let seen = Arc::clone(&self.beside.seen.borrow());
        let stands = |uid: &str| seen.iter().any(|sandbox| sandbox.ready && sandbox.pod.uid == uid);
        let ended = |view: &PodView| {
            matches!(view.status.phase, Some(PodPhase::Failed | PodPhase::Succeeded))
                || view.pod.metadata.deletion_timestamp.is_some()
        };
        let pods = Arc::clone(&self.beside.pods.borrow());
        pods.iter()
            .filter(|view| view.admitted && !ended(view) && stands(view.pod.uid()))
            .cloned()
            .collect()
    }

    async fn usage(&self, with_disks: bool) -> Vec<PodUsage> {
        let usage = self.stats.usage(false).await;
        let disks = if with_disks {
            Some(self.stats.disks().await)
        } else {
            None
        };
        usage
            .pods
            .iter()
            .map(|pod| pod_usage(pod, disks.as_deref()))
            .collect()
    }

    async fn evict(&self, victim: Victim) {
        let Victim {
            uid,
            key,
            message,
            grace,
        } = victim;
        tracing::warn!(pod = %key, uid, message, "pod is evicted");
        let eviction = Eviction {
            reason: "Evicted".to_owned(),
            message,
            grace,
        };
        if self
            .beside
            .orders
            .send(Order::Evict { uid, eviction })
            .await
            .is_err()
        {
            tracing::debug!("the owner of the pods has ended");
        }
    }

    /// The owner removes containers and volumes of an evicted pod; the sandbox is the last that goes.
    async fn wait_for_the_end_of(&mut self, uid: &str) {
        let seen = &mut self.beside.seen;
        let over = seen.wait_for(|seen| !seen.iter().any(|sandbox| sandbox.pod.uid == uid));
        if tokio::time::timeout(CLEANUP_MAX, over).await.is_err() {
            tracing::warn!(uid, limit = ?CLEANUP_MAX, "the evicted pod has not ended in time");
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// What was read, in the words of the decision.
fn pod_usage(pod: &crate::stats::PodUsage, disks: Option<&Disks>) -> PodUsage {
    let held = disks.and_then(|disks| disks.pods.get(&pod.uid));
    let on_node = disks.and_then(|disks| disks.node).map(|node| node.id);
    let container = |container: &crate::stats::ContainerUsage| ContainerUsage {
        name: container.name.clone(),
        memory_working_set: container.memory.map_or(0, |memory| memory.working_set),
        root: held.and_then(|held| held.layers.get(&container.id)).map_or(
            DiskUse::default(),
            |(bytes, inodes)| DiskUse {
                bytes: *bytes,
                inodes: inodes.unwrap_or(0),
            },
        ),
        logs: held
            .and_then(|held| held.logs.get(&container.name))
            .map_or(DiskUse::default(), disk_use),
    };
    let containers: Vec<ContainerUsage> = pod.containers.iter().map(container).collect();
    let by_containers = || {
        containers
            .iter()
            .map(|container| container.memory_working_set)
            .sum()
    };
    // A volume on another file system costs the node nothing.
    let volumes = held.into_iter().flat_map(|held| &held.volumes);
    let volumes = volumes.filter(|volume| volume.claim.is_none() && Some(volume.file_system.id) == on_node);
    PodUsage {
        uid: pod.uid.clone(),
        memory_working_set: pod.memory.map_or_else(by_containers, |memory| memory.working_set),
        pids: pod.processes.unwrap_or(0),
        volumes: volumes
            .map(|volume| VolumeUsage {
                name: volume.name.clone(),
                disk: disk_use(&volume.used),
            })
            .collect(),
        containers,
    }
}

fn disk_use(tree: &kedge_host::disks::TreeUsage) -> DiskUse {
    DiskUse {
        bytes: tree.bytes,
        inodes: tree.inodes,
    }
}
