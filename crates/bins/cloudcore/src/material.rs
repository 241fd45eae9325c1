//! The secrets of CloudCore in the namespace `kubeedge`, byte-compatible with the official ones: the authority, the
//! server's certificate, the join token.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kedge_cluster::Cluster;
use kedge_pki::{Authority, Certificate, Identity, JoinToken, Key, ServerNames, UnixTime};
use kedge_wire::Body;
use serde_json::{Value, json};
use std::time::Duration;

const NAMESPACE: &str = "kubeedge";
const CA_SECRET: &str = "casecret";
const SERVER_SECRET: &str = "cloudcoresecret";
const TOKEN_SECRET: &str = "tokensecret";

/// What CloudHub and CloudStream need to be who they are.
#[derive(Debug, Clone)]
pub struct Material {
    pub authority: Authority,
    pub server: Identity,
}

/// Loads the authority and the server's certificate, or makes them. The server's certificate is made anew when it does
/// not carry every name that edges dial.
pub async fn load_or_create(cluster: &Cluster, names: &ServerNames) -> Result<Material> {
    ensure_namespace(cluster).await?;
    let now = UnixTime::now();
    let authority = match read(cluster, CA_SECRET, ["cadata", "cakeydata"]).await? {
        Some([certificate, key]) => Authority::from_der(&certificate, &key)
            .with_context(|| format!("use secret {NAMESPACE}/{CA_SECRET}"))?,
        None => {
            let authority = Authority::create(now)?;
            let data = [
                ("cadata", authority.certificate().der()),
                ("cakeydata", authority.key().sec1_der()),
            ];
            write(cluster, CA_SECRET, &data).await?;
            authority
        }
    };
    let stored = match read(cluster, SERVER_SECRET, ["cloudcoredata", "cloudcorekeydata"]).await? {
        Some([certificate, key]) => server_from(&certificate, &key, &authority, names),
        None => None,
    };
    let server = match stored {
        Some(server) => server,
        None => {
            let server = authority.issue_server(names, now)?;
            let data = [
                ("cloudcoredata", server.certificate().der()),
                ("cloudcorekeydata", server.key().sec1_der()),
            ];
            write(cluster, SERVER_SECRET, &data).await?;
            server
        }
    };
    Ok(Material { authority, server })
}

/// The stored certificate, if it still serves: signed for this authority's edges and for every wanted name.
fn server_from(
    certificate: &[u8],
    key: &[u8],
    authority: &Authority,
    names: &ServerNames,
) -> Option<Identity> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let info = certificate.info();
    let serves = names.ips.iter().all(|ip| info.ips.contains(ip))
        && names.dns.iter().all(|name| info.dns_names.contains(name));
    if !serves {
        tracing::info!("the server certificate lacks a wanted name; a new one is made");
        return None;
    }
    Identity::new(
        vec![certificate],
        Key::from_der(key).ok()?,
        authority.certificate().clone(),
    )
    .ok()
}

/// Makes a join token that lives twice `refresh_interval` and publishes it for `keadm gettoken`.
pub async fn publish_token(
    cluster: &Cluster,
    authority: &Authority,
    refresh_interval: Duration,
) -> Result<JoinToken> {
    let now = UnixTime::now();
    let expires = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + refresh_interval * 2);
    let token = JoinToken::issue(authority, expires)?;
    write(cluster, TOKEN_SECRET, &[("tokendata", token.text().as_bytes())]).await?;
    Ok(token)
}

async fn ensure_namespace(cluster: &Cluster) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    match cluster
        .create("/api/v1/namespaces", &Body::from_value(&namespace)?)
        .await
    {
        Err(error) if !error.is_already_exists() => {
            Err(error).context(format!("create namespace {NAMESPACE}"))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn read<const N: usize>(
    cluster: &Cluster,
    name: &str,
    keys: [&str; N],
) -> Result<Option<[Vec<u8>; N]>> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{name}");
    let secret = match cluster.get(&path).await {
        Ok(secret) => secret.parse::<Value>()?,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error).context(format!("read secret {NAMESPACE}/{name}")),
    };
    let mut values = Vec::with_capacity(N);
    for key in keys {
        let text = secret["data"][key]
            .as_str()
            .with_context(|| format!("secret {NAMESPACE}/{name} has no {key}"))?;
        let bytes = BASE64
            .decode(text)
            .with_context(|| format!("{key} of secret {NAMESPACE}/{name}"))?;
        values.push(bytes);
    }
    Ok(values.try_into().ok())
}

async fn write(cluster: &Cluster, name: &str, data: &[(&str, &[u8])]) -> Result<()> {
    let data: serde_json::Map<String, Value> = data
        .iter()
        .map(|(key, bytes)| ((*key).to_owned(), Value::String(BASE64.encode(bytes))))
        .collect();
    let collection = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": name, "namespace": NAMESPACE}, "data": data});
    let patch = json!({"data": data}).to_string();
    cluster
        .create_or_merge(&collection, name, &Body::from_value(&secret)?, &patch)
        .await
        .with_context(|| format!("write secret {NAMESPACE}/{name}"))?;
    Ok(())
}
