//! Join tokens: the official shared one, and those for one node; kept fresh and cleaned up.

pub mod one_time;
pub mod shared;

use crate::secrets::Secrets;
use kedge_cluster::{Backoff, Cluster};
use kedge_pki::{Authority, UnixTime};
use kedge_telemetry::clock::process_seed;
use std::time::Duration;

/// At least this often the shared token is looked at, also when nothing is due: somebody may have deleted it, and the
/// clock may have jumped.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// Waits after a failure.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Keeps the shared token valid and removes one-time tokens that have expired, until it is dropped.
pub async fn keep(cluster: Cluster, authority: Authority, refresh_interval: Duration) {
    let secrets = Secrets::new(cluster);
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX, process_seed());
    loop {
        let wait = match shared::ensure(&secrets, &authority, refresh_interval, UnixTime::now()).await {
            Ok(token) => {
                backoff.reset();
                until_due(&token, refresh_interval)
            }
            Err(error) => {
                let wait = backoff.next(None);
                tracing::warn!(error = format!("{error:#}"), retry = ?wait, "the join token cannot be kept fresh");
                wait
            }
        };
        if let Err(error) = one_time::sweep(&secrets, UnixTime::now()).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "expired join tokens cannot be removed"
            );
        }
        tokio::time::sleep(wait).await;
    }
}

/// Until the token has only one interval left.
fn until_due(token: &kedge_pki::JoinToken, refresh_interval: Duration) -> Duration {
    let left = token.expires().map_or(0, |expires| {
        expires.as_secs().saturating_sub(UnixTime::now().as_secs())
    });
    Duration::from_secs(left)
        .saturating_sub(refresh_interval)
        .clamp(Duration::from_secs(1), LOOK_INTERVAL_MAX)
}
