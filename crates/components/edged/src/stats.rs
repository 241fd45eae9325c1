//! What the node, its pods and their containers use.
//!
//! Nothing is measured until somebody asks. A reading is kept for the next asker for a few seconds, and as the base from
//! which the next one computes how much processor time was used per second.
//!
//! Control groups are read directly, whoever made them; the runtime is asked only for what they do not tell.

mod disks;
mod reading;
pub(crate) mod summary;

pub(crate) use disks::{Disks, PodDisks, VolumeUsage};
pub(crate) use reading::{ContainerUsage, Cpu, PodUsage, Usage};

use crate::beside::PodView;
use crate::clock::Clock;
use crate::config::Config;
use kedge_containers::{ObservedSandbox, SandboxStats};
use kedge_host::cgroups;
use kedge_runtime::Runtime;
use kedge_telemetry::channel::latest;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// A reading that is younger is given again; cAdvisor's may be ten seconds old.
const FRESH: Duration = Duration::from_secs(5);
/// Processor time per second is not computed over less: the kernel counts in ticks.
const RATE_WINDOW_MIN: Duration = Duration::from_millis(500);
/// Nor over more: a reading from long ago says nothing about now.
const RATE_WINDOW_MAX: Duration = Duration::from_secs(120);
/// What directories take is looked at this often at most.
const DISKS_FRESH: Duration = Duration::from_secs(60);
/// Looking takes milliseconds, and longer where volumes are large.
const DISKS_MAX: Duration = Duration::from_secs(15);
/// A runtime that does not answer must not hold up those who ask.
const RUNTIME_MAX: Duration = Duration::from_secs(10);

/// Reads on demand. Asking twice at the same time reads once.
pub(crate) struct Stats {
    config: Arc<Config>,
    runtime: Arc<dyn Runtime>,
    pods: latest::Receiver<Arc<Vec<PodView>>>,
    seen: latest::Receiver<Arc<Vec<ObservedSandbox>>>,
    clock: Clock,
    groups: Option<cgroups::Layout>,
    usage: Mutex<Option<Arc<Usage>>>,
    disks: Mutex<Looking>,
}

/// The last look at the disks, and the one under way: a file server that is away can hold it up for ever.
#[derive(Default)]
struct Looking {
    last: Option<Arc<Disks>>,
    under_way: Option<JoinHandle<Disks>>,
}

impl Stats {
    pub(crate) fn new(
        config: Arc<Config>,
        runtime: Arc<dyn Runtime>,
        pods: latest::Receiver<Arc<Vec<PodView>>>,
        seen: latest::Receiver<Arc<Vec<ObservedSandbox>>>,
        clock: Clock,
    ) -> Self {
        let groups = cgroups::layout()
            .inspect_err(|error| tracing::warn!(%error, "use of resources is known by the runtime only"))
            .ok();
        Self {
            config,
            runtime,
            pods,
            seen,
            clock,
            groups,
            usage: Mutex::default(),
            disks: Mutex::default(),
        }
    }

    /// Processors, memory, processes and networks now. `with_rates`: also how much processor time is used per second,
    /// for which the first asker in a while waits half a second.
    pub(crate) async fn usage(&self, with_rates: bool) -> Arc<Usage> {
        let mut kept = self.usage.lock().await;
        let age = |usage: &Usage| self.clock.now().since(usage.at);
        if let Some(usage) = kept.as_ref()
            && age(usage) < FRESH
            && (usage.has_rates || !with_rates)
        {
            return Arc::clone(usage);
        }
        let mut base = kept.take().filter(|usage| age(usage) < RATE_WINDOW_MAX);
        if base.is_none() && with_rates {
            base = Some(Arc::new(self.read().await));
        }
        if let Some(base) = base.as_deref()
            && with_rates
        {
            tokio::time::sleep(RATE_WINDOW_MIN.saturating_sub(age(base))).await;
        }
        let mut usage = self.read().await;
        if let Some(base) = base {
            usage.compare_with(&base);
        }
        let usage = Arc::new(usage);
        *kept = Some(Arc::clone(&usage));
        usage
    }

    /// What file systems hold, and what directories of pods take. When looking takes too long, what was seen before.
    pub(crate) async fn disks(&self) -> Arc<Disks> {
        let mut kept = self.disks.lock().await;
        let is_fresh = |disks: &Disks| self.clock.now().since(disks.at) < DISKS_FRESH;
        if let Some(disks) = kept.last.as_ref().filter(|disks| is_fresh(disks)) {
            return Arc::clone(disks);
        }
        let mut look = match kept.under_way.take() {
            Some(look) => look,
            None => self.look_at_disks().await,
        };
        match tokio::time::timeout(DISKS_MAX, &mut look).await {
            Ok(Ok(disks)) => kept.last = Some(Arc::new(disks)),
            Ok(Err(error)) => tracing::error!(%error, "use of disks not read"),
            Err(_) => {
                tracing::warn!(limit = ?DISKS_MAX, "a file system does not answer; use of disks not read");
                kept.under_way = Some(look);
            }
        }
        let nothing = || Arc::new(Disks::empty(self.clock.now()));
        kept.last.clone().unwrap_or_else(nothing)
    }

    async fn read(&self) -> Usage {
        let seen = Arc::clone(&self.seen.borrow());
        let (groups, roots) = (self.groups.clone(), self.config.face.cgroup_roots.clone());
        let at = self.clock.now();
        let by_groups = move || Usage::read(at, groups.as_ref(), &roots, &seen);
        let mut usage = match tokio::task::spawn_blocking(by_groups).await {
            Ok(usage) => usage,
            Err(error) => {
                tracing::error!(%error, "use of resources not read");
                Usage::empty(at)
            }
        };
        if usage.lacks_groups() {
            usage.complete_with(&self.by_runtime().await);
        }
        usage
    }

    async fn by_runtime(&self) -> Vec<SandboxStats> {
        match tokio::time::timeout(RUNTIME_MAX, self.runtime.stats()).await {
            Ok(Ok(stats)) => stats,
            Ok(Err(error)) => {
                tracing::debug!(error = %crate::stats::chain(&error), "the runtime tells no statistics");
                Vec::new()
            }
            Err(_) => {
                tracing::warn!(limit = ?RUNTIME_MAX, "the runtime did not tell its statistics in time");
                Vec::new()
            }
        }
    }

    async fn look_at_disks(&self) -> JoinHandle<Disks> {
        let images = match tokio::time::timeout(RUNTIME_MAX, self.runtime.image_usage()).await {
            Ok(Ok(images)) => Some(images),
            Ok(Err(_)) | Err(_) => None,
        };
        let layers = self.by_runtime().await;
        let (pods, seen) = (Arc::clone(&self.pods.borrow()), Arc::clone(&self.seen.borrow()));
        let (config, at) = (Arc::clone(&self.config), self.clock.now());
        tokio::task::spawn_blocking(move || Disks::look(at, &config, images, &layers, &pods, &seen))
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
pub(crate) mod tests;
