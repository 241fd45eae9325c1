//! Keys and certificates for the APIs of these tests: made anew for each test, gone with it.

use anyhow::Result;
use kedge_cluster::Parts;
use kedge_pki::{ADMINS_ORGANIZATION, Authority, Identity, ServerNames, UnixTime, write_private};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

/// Name of the file for whoever may do everything.
pub const ADMIN_KUBECONFIG: &str = "admin.kubeconfig";
/// Name of the file for a CloudCore.
pub const CLOUDCORE_KUBECONFIG: &str = "cloudcore.kubeconfig";
/// CloudCore's account, as its manifest names it, and the groups of such an account. A certificate stands for the token
/// that it would have in a pod.
const CLOUDCORE_ACCOUNT: &str = "system:serviceaccount:kubeedge:cloudcore";
const CLOUDCORE_GROUPS: &[&str] = &["system:serviceaccounts", "system:serviceaccounts:kubeedge"];
/// Longer than any test.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// An authority and what it signs.
#[derive(Debug)]
pub struct Credentials {
    authority: Authority,
    now: UnixTime,
}

impl Credentials {
    pub fn create(name: &str) -> Result<Self> {
        let now = UnixTime::now();
        Ok(Self {
            authority: Authority::create_named(name, now)?,
            now,
        })
    }

    pub fn authority_pem(&self) -> String {
        self.authority.certificate().pem()
    }

    pub fn authority_key_pem(&self) -> String {
        self.authority.key().pkcs8_pem()
    }

    /// For whoever may do everything, and for a CloudCore, which may do what its manifest says.
    pub fn write_kubeconfigs(&self, dir: &Path, url: &str) -> Result<()> {
        let users = [
            (ADMIN_KUBECONFIG, "admin", [ADMINS_ORGANIZATION].as_slice()),
            (CLOUDCORE_KUBECONFIG, CLOUDCORE_ACCOUNT, CLOUDCORE_GROUPS),
        ];
        for (file, name, groups) in users {
            let identity = self.client(name, groups)?;
            write_private(&dir.join(file), kubeconfig(url, &identity).as_bytes())?;
        }
        Ok(())
    }

    /// For a server on the loopback interface.
    pub fn server(&self, dns: &[&str]) -> Result<Identity> {
        let names = ServerNames {
            ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
        };
        Ok(self
            .authority
            .issue_server_as("kube-apiserver", &names, self.now)?)
    }

    pub fn client(&self, name: &str, organizations: &[&str]) -> Result<Identity> {
        Ok(self
            .authority
            .issue_client(name, organizations, LIFETIME, self.now)?)
    }
}

/// A kubeconfig with everything inside.
pub fn kubeconfig(url: &str, identity: &Identity) -> String {
    let parts = Parts {
        url,
        ca_pem: &identity.authority().pem(),
        client_certificate_pem: &identity.chain_pem(),
        client_key_pem: &identity.key().pem(),
    };
    parts.kubeconfig_yaml("test", "user")
}
