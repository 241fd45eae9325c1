//! Who of several replicas does what only one may do: an election through a Lease, as the Kubernetes components hold it.
//!
//! A holder renews its lease; the others watch whether it still changes, by their own clocks, because the clocks of two
//! machines differ. A lease that has not changed for its whole duration may be taken. A holder that could not renew for
//! [`RENEW_DEADLINE`], which is shorter than the duration, gives up by itself, so that two never hold at once.

use crate::{ApiError, Backoff, Cluster};
use jiff::Timestamp;
use kedge_telemetry::channel::latest;
use kedge_telemetry::{Scope, clock};
use kedge_wire::Body;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// A lease that has not changed for so long may be taken; the default of the Kubernetes components.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A holder that has not renewed for so long stops holding.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often holders renew and others look; one call each.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// One round of reading and writing; a server that needs longer is as good as away.
const ROUND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last call, which lets the lease go, may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// What to be elected for, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    pub namespace: String,
    /// The name of the Lease.
    pub name: String,
    /// Differs from replica to replica and from start to start.
    pub identity: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    holder_identity: String,
    lease_duration_seconds: u64,
    acquire_time: String,
    renew_time: String,
    lease_transitions: u64,
}

#[derive(Debug, Deserialize)]
struct Lease {
    metadata: Metadata,
    #[serde(default)]
    spec: Record,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

/// What is known about the lease, and since when by the own clock.
#[derive(Debug)]
struct Seen {
    record: Record,
    version: String,
    since: Instant,
}

struct Candidate {
    config: Leadership,
    cluster: Cluster,
    leads: latest::Sender<bool>,
    seen: Option<Seen>,
    renewed: Option<Instant>,
    backoff: Backoff,
}

impl Leadership {
    /// Takes part in the election until the scope ends; the receiver says whether this replica leads now.
    pub fn start(self, cluster: Cluster, scope: &Scope) -> latest::Receiver<bool> {
        let (leads, led) = latest::channel(false);
        let candidate = Candidate {
            config: self,
            cluster,
            leads,
            seen: None,
            renewed: None,
            backoff: Backoff::new(RETRY_INTERVAL, RETRY_INTERVAL * 2, clock::process_seed()),
        };
        let inner = scope.clone();
        scope.spawn("leadership", candidate.run(inner));
        led
    }
}

impl Candidate {
    async fn run(mut self, scope: Scope) {
        loop {
            let round = ROUND_TIMEOUT.min(self.until_late());
            let wait = match tokio::time::timeout(round, self.try_once()).await {
                Ok(Ok(())) => {
                    self.backoff.reset();
                    RETRY_INTERVAL
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the leader's lease was not renewed or read");
                    self.backoff.next(error.retry_after())
                }
                Err(_) => {
                    tracing::debug!(after = ?round, "the API did not answer about the leader's lease");
                    self.backoff.next(None)
                }
            };
            self.give_up_if_late();
            tokio::select! {
                biased;
                () = scope.cancelled() => break,
                () = tokio::time::sleep(wait.min(self.until_late())) => {}
            }
            self.give_up_if_late();
        }
        let was_leading = self.leads.send_replace(false);
        if was_leading {
            // Another replica need not wait for the whole duration then.
            let _ = tokio::time::timeout(RELEASE_TIMEOUT, self.release()).await;
        }
    }

    fn is_leading(&self) -> bool {
        *self.leads.borrow()
    }

    async fn try_once(&mut self) -> Result<(), ApiError> {
        let started = Instant::now();
        if !self.is_leading() {
            self.look(started).await?;
        }
        let record = match &self.seen {
            None => self.record(None),
            Some(seen) if seen.record.holder_identity == self.config.identity => self.record(Some(seen)),
            Some(seen) if may_take(seen, started) => self.record(Some(seen)),
            Some(_) => return Ok(()),
        };
        match self.write(&record).await {
            Ok(written) => {
                self.see(written, started);
                self.renewed = Some(started);
                if !self.leads.send_replace(true) {
                    tracing::info!(identity = self.config.identity, "this replica leads");
                }
                Ok(())
            }
            Err(error) => {
                if error
                    .refusal()
                    .is_some_and(|status| status.code == 409 || status.code == 404)
                {
                    // Somebody else wrote: what is known about the lease is not true any more.
                    self.seen = None;
                    self.stop_leading("another replica wrote the lease");
                }
                Err(error)
            }
        }
    }

    async fn look(&mut self, now: Instant) -> Result<(), ApiError> {
        match self.cluster.get(&self.path()).await {
            Ok(lease) => self.see(parse(&lease)?, now),
            Err(error) if error.is_not_found() => self.seen = None,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn see(&mut self, lease: Lease, now: Instant) {
        let changed = self
            .seen
            .as_ref()
            .is_none_or(|seen| seen.version != lease.metadata.resource_version);
        if changed {
            self.seen = Some(Seen {
                record: lease.spec,
                version: lease.metadata.resource_version,
                since: now,
            });
        }
    }

    /// The record as this replica would hold it.
    fn record(&self, before: Option<&Seen>) -> Record {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let before = before.map(|seen| seen.record.clone()).unwrap_or_default();
        let mine = before.holder_identity == self.config.identity;
        Record {
            holder_identity: self.config.identity.clone(),
            lease_duration_seconds: LEASE_DURATION.as_secs(),
            acquire_time: if mine { before.acquire_time } else { now.clone() },
            renew_time: now,
            lease_transitions: before.lease_transitions
                + u64::from(!mine && !before.holder_identity.is_empty()),
        }
    }

    /// Creates the lease, or replaces exactly the version that was seen.
    async fn write(&self, record: &Record) -> Result<Lease, ApiError> {
        let mut metadata = json!({"name": self.config.name, "namespace": self.config.namespace});
        if let Some(seen) = &self.seen {
            metadata["resourceVersion"] = seen.version.clone().into();
        }
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": record});
        let lease = Body::from_value(&lease).expect("a lease made of text and numbers is JSON");
        let written = match self.seen {
            Some(_) => self.cluster.update(&self.path(), &lease).await?,
            None => self.cluster.create(&self.collection(), &lease).await?,
        };
        parse(&written)
    }

    async fn release(&mut self) -> Result<(), ApiError> {
        let Some(seen) = &self.seen else { return Ok(()) };
        let record = Record {
            holder_identity: String::new(),
            lease_duration_seconds: 1,
            ..self.record(Some(seen))
        };
        self.write(&record).await.map(drop)
    }

    fn until_late(&self) -> Duration {
        match self.renewed {
            Some(renewed) if self.is_leading() => {
                (renewed + RENEW_DEADLINE).saturating_duration_since(Instant::now())
            }
            Some(_) | None => Duration::MAX,
        }
    }

    fn give_up_if_late(&mut self) {
        if self.is_leading() && self.until_late().is_zero() {
            self.stop_leading("the lease could not be renewed in time");
        }
    }

    fn stop_leading(&mut self, why: &str) {
        self.renewed = None;
        if self.leads.send_replace(false) {
            tracing::warn!(identity = self.config.identity, why, "this replica leads no more");
        }
    }

    fn collection(&self) -> String {
        let namespace = &self.config.namespace;
        format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.config.name)
    }
}

/// Whether the holder has let go or has been silent for its whole duration.
fn may_take(seen: &Seen, now: Instant) -> bool {
    let duration = Duration::from_secs(seen.record.lease_duration_seconds).max(LEASE_DURATION);
    seen.record.holder_identity.is_empty() || seen.since + duration <= now
}

fn parse(lease: &Body) -> Result<Lease, ApiError> {
    lease.parse().map_err(|source| ApiError::NotJson {
        act: "read the leader's lease".to_owned(),
        source,
    })
}
