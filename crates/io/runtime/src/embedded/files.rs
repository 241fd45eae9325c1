//! The files every container of a sandbox sees: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.

use crate::{Error, durable};
use kedge_containers::{DnsConfig, SandboxConfig};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const WARNING: &str = "# Written by kedge for this pod.\n";

/// Where systemd tells the resolvers behind the one of its own that listens on the loopback.
pub(crate) const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// Writes the files into the sandbox's directory.
pub(super) fn write(
    directory: &Path,
    config: &SandboxConfig,
    addresses: Option<&[IpAddr]>,
) -> Result<(), Error> {
    let node = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let resolv = if config.dns == DnsConfig::default() {
        let own = node("/etc/resolv.conf");
        match !config.host_network && only_loopback(&own) {
            true => Some(node(BEHIND_STUB))
                .filter(|text| !text.is_empty())
                .unwrap_or(own),
            false => own,
        }
    } else {
        resolv_conf(&config.dns)
    };
    let hosts = match addresses {
        Some(addresses) => hosts(config, addresses),
        None => node("/etc/hosts") + &aliases(config),
    };
    for (name, content) in [
        ("hosts", hosts),
        ("hostname", format!("{}\n", config.hostname)),
        ("resolv.conf", resolv),
    ] {
        let path = directory.join(name);
        durable::write_for_boot(&path, content.as_bytes())?;
        // Containers that do not run as root read them too.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
            .map_err(|source| Error::io("change the mode of", &path, source))?;
    }
    Ok(())
}

fn hosts(config: &SandboxConfig, addresses: &[IpAddr]) -> String {
    let mut text = String::from(WARNING);
    text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for address in addresses {
        text.push_str(&format!("{address}\t{}\n", config.hostname));
    }
    text + &aliases(config)
}

fn aliases(config: &SandboxConfig) -> String {
    config
        .host_aliases
        .iter()
        .map(|(address, names)| format!("{address}\t{}\n", names.join("\t")))
        .collect()
}

/// Whether all resolvers listen on the node's loopback, where no pod with a network of its own reaches them.
/// Whether all resolvers that it names are on the machine's own loopback.
pub(crate) fn only_loopback(resolv_conf: &str) -> bool {
    let servers = resolv_conf
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .map(|server| server.trim().parse::<IpAddr>());
    let mut servers = servers.flatten().peekable();
    servers.peek().is_some() && servers.all(|server| server.is_loopback())
}

fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::from(WARNING);
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    dns.servers
        .iter()
        .for_each(|server| text.push_str(&format!("nameserver {server}\n")));
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_resolver_of_the_nodes_own_is_known() {
        assert!(only_loopback("# x\nnameserver 127.0.0.53\noptions edns0\n"));
        assert!(!only_loopback("nameserver 127.0.0.1\nnameserver 192.0.2.1\n"));
        assert!(!only_loopback("search example.org\n"));
    }

    #[test]
    fn name_resolution_is_written_as_resolvers_read_it() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.10".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        expect![[r#"
            # Written by kedge for this pod.
            search default.svc.cluster.local svc.cluster.local
            nameserver 10.0.0.10
            options ndots:5
        "#]]
        .assert_eq(&resolv_conf(&dns));
    }
}
