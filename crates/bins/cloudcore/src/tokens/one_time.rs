//! Join tokens for one node and one key.
//!
//! The token itself is signed and says its node and its end; whether it was used stands in a secret of its own, so that
//! it can be used once whichever replica the node asks. Deleting the secret withdraws the token.

use crate::secrets::{NAMESPACE, Secret, Secrets, TRIES_MAX, contended};
use anyhow::{Result, bail};
use kedge_cloudhub::{Redeem, Redeemed};
use kedge_cluster::Cluster;
use kedge_pki::{Authority, JoinToken, UnixTime};
use kedge_telemetry::channel::ask;
use kedge_wire::NodeName;
use std::time::Duration;
use tokio::task::JoinSet;

const LABEL: (&str, &str) = ("kedge-join-token", "one-time");
const NODE: &str = "node";
const EXPIRES: &str = "expires";
const USED_BY: &str = "usedBy";
/// Calls of the API for nodes that join at this moment; each takes two.
const REDEEMS_AT_ONCE: usize = 16;
/// A token that is shorter cannot be carried to a device; one that is longer is forgotten somewhere.
pub const LIFETIME: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(30 * 24 * 3600);

/// Makes a token that lets `node` join once within `lifetime`.
pub async fn issue(
    cluster: &Cluster,
    authority: &Authority,
    node: &NodeName,
    lifetime: Duration,
    now: UnixTime,
) -> Result<JoinToken> {
    let expires = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + lifetime);
    let (token, id) = JoinToken::issue_one_time(authority, node, expires)?;
    let name = secret_name(id.as_str());
    let ends = expires.as_secs().to_string();
    let data: &[(&str, &[u8])] = &[(NODE, node.as_str().as_bytes()), (EXPIRES, ends.as_bytes())];
    let secrets = Secrets::new(cluster.clone());
    if !secrets.create(&name, Some(LABEL), data).await? {
        bail!("secret {NAMESPACE}/{name} is there already; try again");
    }
    Ok(token)
}

/// Answers the hub until nobody asks any more. A question that the API cannot answer gets no answer, and the hub says
/// so to the node.
pub async fn answer(cluster: Cluster, mut asked: ask::Receiver<Redeem, Redeemed>) {
    let secrets = Secrets::new(cluster);
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            // First what is done: it makes room.
            Some(_done) = running.join_next() => {}
            question = asked.recv(), if running.len() < REDEEMS_AT_ONCE => {
                let Some(ask::Question { question, reply }) = question else { break };
                let secrets = secrets.clone();
                running.spawn(async move {
                    match redeem(&secrets, &question).await {
                        Ok(redeemed) => reply.send(redeemed),
                        Err(error) => {
                            let error = format!("{error:#}");
                            tracing::warn!(node = %question.node, error, "cannot tell whether a join token was used");
                        }
                    }
                });
            }
        }
    }
    running.join_all().await;
}

/// Writes down the first key that a token is used with; of two at once one wins, and the other sees that.
async fn redeem(secrets: &Secrets, asked: &Redeem) -> Result<Redeemed> {
    let name = secret_name(asked.token.as_str());
    for _ in 0..TRIES_MAX {
        let Some(secret) = secrets.read(&name).await? else {
            return Ok(Redeemed::Unknown);
        };
        if secret.text(NODE).as_deref() != Some(asked.node.as_str()) {
            return Ok(Redeemed::Unknown);
        }
        match secret.text(USED_BY) {
            Some(key) if key == asked.key => return Ok(Redeemed::Granted),
            Some(_other) => return Ok(Redeemed::Spent),
            None => {}
        }
        if secrets
            .replace(&secret, &[(USED_BY, asked.key.as_bytes())])
            .await?
        {
            return Ok(Redeemed::Granted);
        }
    }
    Err(contended(&name))
}

/// Removes the secrets of expired tokens, used or not; until then a used one answers the same key again.
pub(super) async fn sweep(secrets: &Secrets, now: UnixTime) -> Result<()> {
    let mut removed = 0;
    for secret in secrets.labelled(LABEL).await? {
        if has_expired(&secret, now) {
            secrets.delete(&secret).await?;
            removed += 1;
        }
    }
    if removed > 0 {
        tracing::info!(removed, "expired join tokens removed");
    }
    Ok(())
}

/// A secret that does not say when it ends is nothing that we made; it goes too.
fn has_expired(secret: &Secret, now: UnixTime) -> bool {
    let expires = secret.text(EXPIRES).and_then(|text| text.parse::<u64>().ok());
    expires.is_none_or(|expires| expires <= now.as_secs())
}

fn secret_name(id: &str) -> String {
    format!("join-token-{id}")
}
