//! Keys and certificates of the embedded API: made once, kept in `DATA_DIR/pki`, mode 0600.

use anyhow::{Context, Result};
use kedge_cluster::Parts;
use kedge_pki::{
    ADMINS_ORGANIZATION, Authority, Identity, IdentityFiles, Key, ServerNames, UnixTime, write_private,
};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

/// Client certificates are renewed at every start, so they need not outlive a long run by much.
const CLIENT_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Everything that the embedded API and its first clients need.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) authority: Authority,
    pub(crate) server: Identity,
    pub(crate) service_account_key: Key,
    pub(crate) admin: Identity,
    pub(crate) cloudcore: Identity,
}

impl Credentials {
    /// Loads what is there and makes what is missing.
    pub(crate) fn load_or_create(dir: &Path) -> Result<Self> {
        let now = UnixTime::now();
        let authority = load_or_create_authority(dir, now).context("the authority of the embedded API")?;
        let names = ServerNames {
            ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            dns: vec![
                "localhost".into(),
                "kubernetes".into(),
                "kubernetes.default".into(),
            ],
        };
        let client = |name: &str| authority.issue_client(name, &[ADMINS_ORGANIZATION], CLIENT_LIFETIME, now);
        Ok(Self {
            server: authority.issue_server_as("kedge-apiserver", &names, now)?,
            service_account_key: load_or_create_key(&dir.join("service-account.key"))?,
            admin: client("kubernetes-admin")?,
            cloudcore: client("kedge:cloudcore")?,
            authority,
        })
    }
}

fn load_or_create_authority(dir: &Path, now: UnixTime) -> Result<Authority> {
    let files = IdentityFiles {
        authority: dir.join("ca.crt"),
        certificate: dir.join("ca-chain.crt"),
        key: dir.join("ca.key"),
    };
    if let Some(identity) = files.load()? {
        return Ok(Authority::from_parts(
            identity.certificate().clone(),
            identity.key().clone(),
        )?);
    }
    let authority = Authority::create_named("kedge", now)?;
    let certificate = authority.certificate().clone();
    files.save(&Identity::new(
        vec![certificate.clone()],
        authority.key().clone(),
        certificate,
    )?)?;
    Ok(authority)
}

fn load_or_create_key(path: &Path) -> Result<Key> {
    match fs::read(path) {
        Ok(pem) => Key::from_pem(&pem).with_context(|| format!("key {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = Key::generate()?;
            write_private(path, key.pem().as_bytes())?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// A kubeconfig with everything inside.
pub(crate) fn kubeconfig(url: &str, identity: &Identity) -> String {
    let parts = Parts {
        url,
        ca_pem: &identity.authority().pem(),
        client_certificate_pem: &identity.chain_pem(),
        client_key_pem: &identity.key().pem(),
    };
    let user = identity.certificate().info().common_name.replace(':', "-");
    parts.kubeconfig_yaml("kedge", &user)
}
