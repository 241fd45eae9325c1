//! Calls on behalf of nodes: in their turn, and again when that may help.

use super::Metrics;
use kedge_cluster::{ApiError, Budget, Class, Cluster, Patch};
use kedge_placement::report::ApiCall;
use kedge_placement::retries::{self, Failure, Next};
use kedge_wire::{Body, NodeName};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::Instant;

/// Makes calls within the budget. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    cluster: Cluster,
    budget: Budget,
    pub(crate) metrics: Arc<Metrics>,
    chance: Arc<AtomicU64>,
}

impl Caller {
    pub(crate) fn new(cluster: Cluster, budget: Budget, metrics: Arc<Metrics>, seed: u64) -> Self {
        Self {
            cluster,
            budget,
            metrics,
            chance: Arc::new(AtomicU64::new(seed)),
        }
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Makes a call, and again while that may help and somebody waits. `deadline` bounds everything.
    pub(crate) async fn call(
        &self,
        class: Class,
        node: &NodeName,
        call: &ApiCall,
        deadline: Instant,
    ) -> Result<Body, ApiError> {
        let mut attempt = 0;
        loop {
            let error = match self.once(class, node, call, deadline).await {
                Ok(body) => return Ok(body),
                Err(error) => error,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            match retries::next(failure(call, &error), attempt, left, self.chance()) {
                Next::GiveUp => return Err(error),
                Next::Again { after } => {
                    tracing::debug!(%node, %error, attempt, "the call is made again");
                    tokio::time::sleep(after).await;
                }
            }
            self.metrics.retries.inc();
            attempt += 1;
        }
    }

    /// Makes a call once, in its turn.
    pub(crate) async fn once(
        &self,
        class: Class,
        node: &NodeName,
        call: &ApiCall,
        deadline: Instant,
    ) -> Result<Body, ApiError> {
        let began = Instant::now();
        let in_turn = async {
            let _permit = self.budget.acquire(class, node).await;
            perform(&self.cluster, call).await
        };
        match tokio::time::timeout_at(deadline, in_turn).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::Timeout {
                act: act(call),
                after: began.elapsed(),
            }),
        }
    }

    /// A number that differs each time; multiples of an odd constant visit every number before one comes again.
    fn chance(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let number = self.chance.fetch_add(STEP, Ordering::Relaxed);
        (number ^ (number >> 29)).wrapping_mul(STEP) >> 16
    }
}

pub(crate) async fn perform(cluster: &Cluster, call: &ApiCall) -> Result<Body, ApiError> {
    match call {
        ApiCall::Get { path } => cluster.get(path).await,
        ApiCall::Create { path, body } => cluster.create(path, body).await,
        ApiCall::Update { path, body } => cluster.update(path, body).await,
        ApiCall::StrategicPatch { path, body } => cluster.patch(path, Patch::Strategic, body).await,
        ApiCall::MergePatch { path, body } => cluster.patch(path, Patch::Merge, body).await,
        ApiCall::Delete { path, options } => cluster.delete(path, options).await,
    }
}

fn act(call: &ApiCall) -> String {
    let (verb, path) = match call {
        ApiCall::Get { path } => ("GET", path),
        ApiCall::Create { path, .. } => ("POST", path),
        ApiCall::Update { path, .. } => ("PUT", path),
        ApiCall::StrategicPatch { path, .. } | ApiCall::MergePatch { path, .. } => ("PATCH", path),
        ApiCall::Delete { path, .. } => ("DELETE", path),
    };
    format!("{verb} {path}")
}

/// What an error means for trying again.
fn failure(call: &ApiCall, error: &ApiError) -> Failure {
    match error {
        ApiError::Refused { status, .. } => match (status.code, call) {
            (429, _) => Failure::Overloaded {
                retry_after: error.retry_after(),
            },
            (503, _) if error.retry_after().is_some() => Failure::Overloaded {
                retry_after: error.retry_after(),
            },
            (409, ApiCall::StrategicPatch { .. } | ApiCall::MergePatch { .. }) => Failure::Conflict,
            (500.., _) => Failure::Unavailable,
            (_, _) => Failure::Refused,
        },
        ApiError::Unreachable { .. } | ApiError::Broken { .. } | ApiError::Timeout { .. } => {
            Failure::Unavailable
        }
        ApiError::TooLarge { .. } | ApiError::NotJson { .. } | ApiError::BadPath { .. } => Failure::Refused,
    }
}
