//! The official join token in the secret `kubeedge/tokensecret`, which every node may use until it expires.

use crate::secrets::{Secrets, TRIES_MAX, contended};
use anyhow::{Context, Result};
use kedge_cluster::Cluster;
use kedge_pki::{Authority, JoinToken, UnixTime};
use std::time::Duration;

const SECRET: &str = "tokensecret";
const KEY: &str = "tokendata";

/// The token of this moment; made when there is none that lives longer than `refresh_interval`.
pub async fn current(
    cluster: &Cluster,
    authority: &Authority,
    refresh_interval: Duration,
) -> Result<JoinToken> {
    ensure(
        &Secrets::new(cluster.clone()),
        authority,
        refresh_interval,
        UnixTime::now(),
    )
    .await
}

/// A token lives two intervals and is replaced in the second one, so replicas that look at it in turn leave it alone.
pub(super) async fn ensure(
    secrets: &Secrets,
    authority: &Authority,
    refresh_interval: Duration,
    now: UnixTime,
) -> Result<JoinToken> {
    for _ in 0..TRIES_MAX {
        let stored = secrets.read(SECRET).await?;
        let text = stored.as_ref().and_then(|secret| secret.text(KEY));
        if let Some(token) = text.and_then(|text| usable(&text, authority, now))
            && lives_longer_than(&token, refresh_interval, now)
        {
            return Ok(token);
        }
        let expires = Duration::from_secs(now.as_secs()) + refresh_interval * 2;
        let token = JoinToken::issue(authority, UnixTime::since_unix_epoch(expires))?;
        let data: &[(&str, &[u8])] = &[(KEY, token.text().as_bytes())];
        let written = match &stored {
            Some(secret) => secrets.replace(secret, data).await?,
            None => secrets.create(SECRET, None, data).await?,
        };
        if written {
            tracing::info!("new shared join token");
            return Ok(token);
        }
    }
    Err(contended(SECRET))
}

/// What `cloudcore token` prints: the stored token, never a new one.
pub async fn stored(cluster: &Cluster, authority: &Authority, now: UnixTime) -> Result<JoinToken> {
    let secret = Secrets::new(cluster.clone())
        .read(SECRET)
        .await?
        .with_context(|| format!("there is no secret kubeedge/{SECRET}; is CloudCore running?"))?;
    let text = secret.text(KEY).unwrap_or_default();
    usable(&text, authority, now).with_context(|| {
        format!("the token in secret kubeedge/{SECRET} has expired or is of another authority; is CloudCore running?")
    })
}

fn usable(text: &str, authority: &Authority, now: UnixTime) -> Option<JoinToken> {
    let token = JoinToken::parse(text).ok()?;
    token.check_authority(authority.certificate()).ok()?;
    JoinToken::verify_bearer(token.bearer(), authority, now).ok()?;
    Some(token)
}

fn lives_longer_than(token: &JoinToken, time: Duration, now: UnixTime) -> bool {
    token
        .expires()
        .is_ok_and(|expires| expires.as_secs().saturating_sub(now.as_secs()) > time.as_secs())
}
