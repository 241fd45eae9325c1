//! `/etc/hosts` of a pod.

use super::sandbox::{domain, short_hostname};
use crate::Config;
use kedge_api::Pod;

/// What stands at the top, so that a reader knows who writes the file.
const HEAD: &str = "# Kubernetes-managed hosts file.\n";
const HEAD_HOST_NETWORK: &str = "# Kubernetes-managed hosts file (host network).\n";
const LOCAL: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\n\
    fe00::1\tip6-allnodes\n\
    fe00::2\tip6-allrouters\n";

/// The content of the file. `node_hosts` is the node's own file, which a pod with the node's network sees.
pub fn hosts_file(config: &Config, pod: &Pod, pod_ips: &[String], node_hosts: &str) -> String {
    let mut text = String::new();
    if pod.spec.host_network {
        text.push_str(HEAD_HOST_NETWORK);
        text.push_str(node_hosts);
    } else {
        text.push_str(HEAD);
        text.push_str(LOCAL);
        let name = short_hostname(pod);
        for ip in pod_ips {
            match domain(config, pod) {
                Some(domain) => text.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n")),
                None => text.push_str(&format!("{ip}\t{name}\n")),
            }
        }
    }
    if !pod.spec.host_aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in &pod.spec.host_aliases {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
    }
    text
}
