//! The files every container of a sandbox sees: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.

use crate::{Error, durable};
use kedge_containers::{DnsConfig, SandboxConfig};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const WARNING: &str = "# Written by kedge for this pod.\n";

/// Writes the files into the sandbox's directory.
pub(super) fn write(
    directory: &Path,
    config: &SandboxConfig,
    address: Option<Ipv4Addr>,
) -> Result<(), Error> {
    let node = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let resolv = if config.dns == DnsConfig::default() {
        node("/etc/resolv.conf")
    } else {
        resolv_conf(&config.dns)
    };
    let hosts = match address {
        Some(address) => hosts(config, &address.to_string()),
        None => node("/etc/hosts") + &aliases(config),
    };
    for (name, content) in [
        ("hosts", hosts),
        ("hostname", format!("{}\n", config.hostname)),
        ("resolv.conf", resolv),
    ] {
        let path = directory.join(name);
        durable::write(&path, content.as_bytes())?;
        // Containers that do not run as root read them too.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
            .map_err(|source| Error::io("change the mode of", &path, source))?;
    }
    Ok(())
}

fn hosts(config: &SandboxConfig, address: &str) -> String {
    let mut text = String::from(WARNING);
    text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    text.push_str(&format!("{address}\t{}\n", config.hostname));
    text + &aliases(config)
}

fn aliases(config: &SandboxConfig) -> String {
    config
        .host_aliases
        .iter()
        .map(|(address, names)| format!("{address}\t{}\n", names.join("\t")))
        .collect()
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
