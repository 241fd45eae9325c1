//! Who this cloud is: the authority and the server's certificate, from the operator's files or from the official
//! secrets, byte for byte as the official CloudCore writes and reads them.
//!
//! However many replicas start at once, there is one authority: a secret is made only where there is none, and who
//! comes second takes what the first one made.

use crate::own_files;
use crate::secrets::{NAMESPACE, Secrets, TRIES_MAX, contended};
use anyhow::{Context, Result};
use kedge_cluster::Cluster;
use kedge_config::CloudHub;
use kedge_pki::{Authority, Certificate, Identity, Key, ServerNames, UnixTime, show_time};
use std::collections::BTreeSet;
use std::time::Duration;

const CA_SECRET: &str = "casecret";
const CA_KEYS: [&str; 2] = ["cadata", "cakeydata"];
const SERVER_SECRET: &str = "cloudcoresecret";
const SERVER_KEYS: [&str; 2] = ["cloudcoredata", "cloudcorekeydata"];
/// A server certificate is made anew this long before its end, or in the last third of a shorter life.
const RENEWED_BEFORE_END: Duration = Duration::from_secs(30 * 24 * 3600);

/// What CloudHub and CloudStream need to be who they are.
#[derive(Debug, Clone)]
pub struct Material {
    pub authority: Authority,
    pub server: Identity,
}

/// The names under which edges dial this cloud.
pub fn server_names(hub: &CloudHub) -> ServerNames {
    ServerNames {
        ips: hub.advertise_addresses.clone(),
        dns: hub.dns_names.clone(),
    }
}

/// Loads the authority and the server's certificate, or makes them.
pub async fn load_or_create(cluster: &Cluster, hub: &CloudHub) -> Result<Material> {
    let secrets = Secrets::new(cluster.clone());
    secrets.ensure_namespace().await?;
    let now = UnixTime::now();
    let authority = authority(&secrets, hub, now).await?;
    let server = server(&secrets, hub, &authority, now).await?;
    Ok(Material { authority, server })
}

/// The authority as it is, for whoever only wants to make a token.
pub async fn load_authority(cluster: &Cluster, hub: &CloudHub) -> Result<Authority> {
    if let Some(own) = own_files::authority(&hub.files)? {
        return Ok(own);
    }
    stored_authority(&Secrets::new(cluster.clone()))
        .await?
        .with_context(|| {
            format!("there is no secret {NAMESPACE}/{CA_SECRET}; start CloudCore once, which makes it")
        })
}

async fn authority(secrets: &Secrets, hub: &CloudHub, now: UnixTime) -> Result<Authority> {
    if let Some(own) = own_files::authority(&hub.files)? {
        warn_of_change(secrets, &own).await;
        secrets.put(CA_SECRET, &authority_data(&own)).await?;
        return Ok(own);
    }
    for _ in 0..TRIES_MAX {
        if let Some(stored) = stored_authority(secrets).await? {
            return Ok(stored);
        }
        let made = Authority::create(now)?;
        if secrets.create(CA_SECRET, None, &authority_data(&made)).await? {
            tracing::info!(hash = made.certificate().hash(), "new certificate authority");
            return Ok(made);
        }
        tracing::info!("another replica has made the certificate authority; using that");
    }
    Err(contended(CA_SECRET))
}

async fn stored_authority(secrets: &Secrets) -> Result<Option<Authority>> {
    let Some(secret) = secrets.read(CA_SECRET).await? else {
        return Ok(None);
    };
    let what = || {
        format!(
            "use secret {NAMESPACE}/{CA_SECRET}; restore it from a backup, or delete it to begin with a new authority \
             that every edge must join anew"
        )
    };
    let [certificate, key] = CA_KEYS;
    let (certificate, key) = (secret.needed(certificate), secret.needed(key));
    let (certificate, key) = (certificate.with_context(what)?, key.with_context(what)?);
    Authority::from_der(&certificate, &key)
        .map(Some)
        .with_context(what)
}

/// The operator's files count, as officially; but edges that joined another authority are lost by it.
async fn warn_of_change(secrets: &Secrets, own: &Authority) {
    if let Ok(Some(stored)) = stored_authority(secrets).await
        && stored.certificate() != own.certificate()
    {
        tracing::warn!(
            before = stored.certificate().hash(),
            now = own.certificate().hash(),
            "the authority of modules.cloudHub.tlsCAFile replaces the one in secret {NAMESPACE}/{CA_SECRET}; edges of \
             the former must join again"
        );
    }
}

async fn server(secrets: &Secrets, hub: &CloudHub, authority: &Authority, now: UnixTime) -> Result<Identity> {
    if let Some(own) = own_files::server(&hub.files, authority, now)? {
        secrets.put(SERVER_SECRET, &server_data(&own)).await?;
        return Ok(own);
    }
    let names = server_names(hub);
    for _ in 0..TRIES_MAX {
        let stored = secrets.read(SERVER_SECRET).await?;
        let judged = match &stored {
            Some(secret) => {
                let [certificate, key] =
                    SERVER_KEYS.map(|key| secret.bytes(key).ok().flatten().unwrap_or_default());
                judge_server(&certificate, &key, authority, &names, now)
            }
            None => Err("there is none yet".to_owned()),
        };
        let why = match judged {
            Ok(server) => return Ok(server),
            Err(why) => why,
        };
        let made = authority.issue_server(&names, now)?;
        let data = server_data(&made);
        let written = match &stored {
            Some(secret) => secrets.replace(secret, &data).await?,
            None => secrets.create(SERVER_SECRET, None, &data).await?,
        };
        if written {
            tracing::info!(why, names = ?names, "new server certificate");
            return Ok(made);
        }
    }
    Err(contended(SERVER_SECRET))
}

/// The stored certificate if it still serves, or why not.
fn judge_server(
    certificate: &[u8],
    key: &[u8],
    authority: &Authority,
    names: &ServerNames,
    now: UnixTime,
) -> Result<Identity, String> {
    let certificate = Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let key = Key::from_der(key).map_err(|error| error.to_string())?;
    if !certificate.is_signed_by(authority.certificate()) {
        return Err("the authority is another one now".to_owned());
    }
    let info = certificate.info();
    if !info.serves {
        return Err("it is not for servers".to_owned());
    }
    let ips = |ips: &[std::net::IpAddr]| ips.iter().copied().collect::<BTreeSet<_>>();
    // The official default puts an empty name into the certificate.
    let dns = |names: &[String]| {
        names
            .iter()
            .filter(|name| !name.is_empty())
            .cloned()
            .collect::<BTreeSet<_>>()
    };
    if ips(&info.ips) != ips(&names.ips) || dns(&info.dns_names) != dns(&names.dns) {
        return Err("advertiseAddress or dnsNames changed".to_owned());
    }
    if !info.is_valid_at(now) || info.time_left(now) < RENEWED_BEFORE_END.min(info.lifetime() / 3) {
        return Err(format!("it ends at {}", show_time(info.not_after)));
    }
    Identity::new(vec![certificate], key, authority.certificate().clone()).map_err(|error| error.to_string())
}

fn authority_data(authority: &Authority) -> [(&'static str, &[u8]); 2] {
    let [certificate, key] = CA_KEYS;
    [
        (certificate, authority.certificate().der()),
        (key, authority.key().sec1_der()),
    ]
}

fn server_data(server: &Identity) -> [(&'static str, &[u8]); 2] {
    let [certificate, key] = SERVER_KEYS;
    [
        (certificate, server.certificate().der()),
        (key, server.key().sec1_der()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn names(ips: &[&str], dns: &[&str]) -> ServerNames {
        ServerNames {
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            dns: dns.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn a_server_certificate_serves_until_something_changes() {
        let start = at(1_767_225_600);
        let (authority, other) = (
            Authority::create(start).unwrap(),
            Authority::create(start).unwrap(),
        );
        let wanted = names(&["10.0.0.1", "2001:db8::1"], &["hub.example.org"]);
        let server = authority.issue_server(&wanted, start).unwrap();
        let judge = |server: &Identity, authority: &Authority, wanted: &ServerNames, now: UnixTime| {
            let judged = judge_server(
                server.certificate().der(),
                server.key().sec1_der(),
                authority,
                wanted,
                now,
            );
            judged.map_or_else(|why| why, |_| "serves".to_owned())
        };
        let centuries = at(start.as_secs() + (364 * 100 - 29) * DAY.as_secs());
        let client = authority.issue_client("x", &["y"], DAY, start).unwrap();
        let [certificate, key] = [server.certificate().der(), server.key().sec1_der()];
        let told = [
            judge(&server, &authority, &wanted, start),
            judge(
                &server,
                &authority,
                &names(&["2001:db8::1", "10.0.0.1"], &["hub.example.org", ""]),
                start,
            ),
            judge(
                &server,
                &authority,
                &names(&["10.0.0.1"], &["hub.example.org"]),
                start,
            ),
            judge(
                &server,
                &authority,
                &names(&["10.0.0.1", "2001:db8::1"], &[]),
                start,
            ),
            judge(&server, &other, &wanted, start),
            judge(&server, &authority, &wanted, centuries),
            judge(&client, &authority, &wanted, start),
            judge_server(certificate, other.key().sec1_der(), &authority, &wanted, start).unwrap_err(),
            judge_server(b"x", key, &authority, &wanted, start).unwrap_err(),
        ];
        expect_test::expect![[r#"
            serves
            serves
            advertiseAddress or dnsNames changed
            advertiseAddress or dnsNames changed
            the authority is another one now
            it ends at 2125-08-30T00:00:00Z
            it is not for servers
            the certificate KubeEdge does not belong to the private key beside it
            read certificate: Parsing requires 1 bytes/chars"#]]
        .assert_eq(&told.join("\n"));
    }
}
