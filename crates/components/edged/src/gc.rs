//! Removes images that nobody uses, before the disk is full.
//!
//! Every five minutes the images are listed and compared with those that containers use;
//! [`kedge_pods::image_gc::ImageGc`] decides which must go. When the node is short of disk, [`Reclaim`] asks for all of
//! them at once.

use crate::beside::{Beside, PodView};
use kedge_api::PodPhase;
use kedge_host::disks::file_system;
use kedge_pods::image_gc::{Fill, ImageGc, Plan, Policy};
use kedge_telemetry::channel::ask;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// As often as a kubelet looks.
const INTERVAL: Duration = Duration::from_secs(300);
/// A runtime that takes longer to answer is asked again at the next round.
const RUNTIME_MAX: Duration = Duration::from_secs(60);
/// One asks at a time, and waits for the answer.
const ASKERS_MAX: usize = 1;

/// Asks for the removal of everything unused; the answer is how many bytes were freed.
pub(crate) type Reclaim = ask::Sender<(), u64>;

/// Starts looking after the images. `None` where that is somebody else's affair.
pub(crate) fn start(beside: &Beside) -> Option<Reclaim> {
    let policy = beside.config.images.gc?;
    let (reclaim, questions) = ask::channel("edged-image-gc", ASKERS_MAX);
    let task = Task {
        beside: beside.clone(),
        gc: ImageGc::new(policy),
        policy,
        failed: false,
    };
    beside
        .scope
        .spawn_until_cancelled("edged-image-gc", task.run(questions));
    Some(reclaim)
}

struct Task {
    beside: Beside,
    gc: ImageGc,
    policy: Policy,
    /// The last round could not free what it wanted. It is told once.
    failed: bool,
}

impl Task {
    async fn run(mut self, mut questions: ask::Receiver<(), u64>) {
        // The first look only learns what is there.
        self.learn().await;
        let mut due = tokio::time::Instant::now() + INTERVAL;
        let mut is_asked = true;
        loop {
            tokio::select! {
                biased;
                // A node that is short of disk comes first.
                question = questions.recv(), if is_asked => match question {
                    Some(question) => {
                        let freed = self.reclaim().await;
                        question.reply.send(freed);
                    }
                    // Nobody evicts pods on this node.
                    None => is_asked = false,
                },
                () = tokio::time::sleep_until(due) => {
                    self.round().await;
                    due = tokio::time::Instant::now() + INTERVAL;
                }
            }
        }
    }

    /// Removes everything that may go.
    async fn reclaim(&mut self) -> u64 {
        if !self.learn().await {
            return 0;
        }
        let plan = self.gc.plan_all(self.beside.clock.now());
        self.remove(plan).await
    }

    async fn round(&mut self) {
        let Some(fill) = self.fill().await else {
            return;
        };
        if !self.learn().await {
            return;
        }
        let plan = self.gc.plan(fill, self.beside.clock.now());
        let (wanted, found) = (plan.wanted_bytes, plan.bytes());
        let freed = self.remove(plan).await;
        let has_failed = freed < wanted;
        if has_failed && !self.failed {
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {found} bytes eligible to free."
            );
            tracing::warn!(
                wanted,
                freed,
                high_percent = self.policy.high_percent,
                "too few images could be removed"
            );
            self.beside.events.tell_node("FreeDiskSpaceFailed", true, message);
        }
        self.failed = has_failed;
    }

    /// How full the disk of the images is.
    async fn fill(&self) -> Option<Fill> {
        let usage = tokio::time::timeout(RUNTIME_MAX, self.beside.runtime.image_usage());
        let usage = match usage.await {
            Ok(Ok(usage)) => usage,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the runtime does not tell where its images are");
                return None;
            }
            Err(_) => return None,
        };
        let measured = tokio::task::spawn_blocking(move || file_system(&usage.mount_point)).await;
        match measured {
            Ok(Ok(disk)) => Some(Fill {
                total_bytes: disk.capacity_bytes,
                available_bytes: disk.available_bytes,
            }),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the disk of the images is not measured");
                None
            }
            Err(_) => None,
        }
    }

    /// Lists images and their users. False when the runtime does not answer: nothing is known then.
    async fn learn(&mut self) -> bool {
        let listed = tokio::time::timeout(RUNTIME_MAX, self.beside.runtime.images()).await;
        let images = match listed {
            Ok(Ok(images)) => images,
            Ok(Err(error)) => {
                tracing::debug!(%error, "images are not listed");
                return false;
            }
            Err(_) => return false,
        };
        // What was seen last may be some seconds old; a container that is about to come is protected by the age of its
        // image, and the runtime itself keeps what a container uses.
        let seen = Arc::clone(&self.beside.seen.borrow());
        let containers = seen.iter().flat_map(|sandbox| &sandbox.containers);
        let used: BTreeSet<String> = containers
            .flat_map(|container| [container.image.clone(), container.image_ref.clone()])
            .collect();
        let kept = self.kept();
        self.gc
            .handle_images(&images, &used, &kept, self.beside.clock.now());
        true
    }

    /// What stays although no container uses it now: the image of the sandboxes, and those of pods that shall run. A
    /// node without network could not get them back.
    fn kept(&self) -> Vec<String> {
        let pods = Arc::clone(&self.beside.pods.borrow());
        let goes_on =
            |view: &&PodView| !matches!(view.status.phase, Some(PodPhase::Failed | PodPhase::Succeeded));
        let images = pods.iter().filter(goes_on).flat_map(|view| {
            let spec = &view.pod.spec;
            spec.init_containers.iter().chain(&spec.containers)
        });
        let sandbox = &self.beside.config.images.sandbox;
        let sandbox = (!sandbox.is_empty()).then(|| sandbox.clone());
        sandbox
            .into_iter()
            .chain(images.map(|container| container.image.clone()))
            .collect()
    }

    /// Removes one after the other; what is in use after all stays. Gives back how many bytes went.
    async fn remove(&mut self, plan: Plan) -> u64 {
        let mut freed = 0_u64;
        for removal in plan.remove {
            let removed = self.beside.runtime.remove_image(&removal.id);
            match tokio::time::timeout(RUNTIME_MAX, removed).await {
                Ok(Ok(())) => {
                    tracing::info!(
                        image = removal.id,
                        bytes = removal.size_bytes,
                        "unused image is removed"
                    );
                    self.gc.handle_removed(&removal.id);
                    freed = freed.saturating_add(removal.size_bytes);
                }
                Ok(Err(error)) => tracing::warn!(%error, image = removal.id, "unused image is not removed"),
                Err(_) => tracing::warn!(image = removal.id, "unused image is not removed in time"),
            }
        }
        freed
    }
}
