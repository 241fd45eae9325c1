//! The same rules by the `iptables` program, for kernels without nf_tables.

use super::family::Family;
use super::rules::{Chain, Match, Rule, Rules, Verdict};
use kedge_host::program;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// The program waits this long for others that change rules, in seconds.
const LOCK_WAIT: &str = "10";
/// More than the wait for the lock.
const RUN_MAX: Duration = Duration::from_secs(30);

const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// The table of one of our chains, and the built-in one that it is called from; nothing calls the chain of ports.
fn called_from(chain: Chain) -> (&'static str, Option<&'static str>) {
    match chain {
        Chain::Ports => ("nat", None),
        Chain::Guard => ("raw", Some("PREROUTING")),
        Chain::Prerouting => ("nat", Some("PREROUTING")),
        Chain::Output => ("nat", Some("OUTPUT")),
        Chain::Postrouting => ("nat", Some("POSTROUTING")),
    }
}

/// The program and its companions: one for each kind of addresses, and those that read many rules at once.
#[derive(Debug)]
pub(crate) struct Iptables {
    place: &'static str,
}

impl Iptables {
    pub(crate) fn find() -> Option<Self> {
        let has = |place: &str, name: &str| Path::new(place).join(name).exists();
        let place = PLACES
            .into_iter()
            .find(|place| has(place, "iptables") && has(place, "iptables-restore"))?;
        Some(Self { place })
    }

    /// Our chains are filled anew in one step for each table; the calls to them are made where they are missing.
    pub(crate) fn replace(&self, rules: &Rules) -> Result<(), String> {
        let restore = format!("{}-restore", self.program(rules.family));
        run(
            &restore,
            &["--wait", LOCK_WAIT, "--noflush"],
            script(rules).as_bytes(),
        )?;
        for (chain, _) in &rules.chains {
            let name = chain_name(&rules.table, *chain);
            let (table, from) = called_from(*chain);
            let Some(from) = from else { continue };
            if self.call(rules.family, "--check", table, from, &name).is_err() {
                self.call(rules.family, "--append", table, from, &name)?;
            }
        }
        Ok(())
    }

    /// Removes our chains; what is not there is no error.
    pub(crate) fn remove(&self, family: Family, ours: &str) -> Result<(), String> {
        let program = self.program(family);
        if !Path::new(&program).exists() {
            // Then it never made any.
            return Ok(());
        }
        for chain in Chain::ALL {
            let name = chain_name(ours, chain);
            let (table, from) = called_from(chain);
            let Some(from) = from else { continue };
            if self.call(family, "--check", table, from, &name).is_ok() {
                self.call(family, "--delete", table, from, &name)?;
            }
        }
        // The chain of ports is called from others, so all are emptied first.
        for act in ["--flush", "--delete-chain"] {
            for chain in Chain::ALL {
                let name = chain_name(ours, chain);
                let order = |act| ["--wait", LOCK_WAIT, "--table", called_from(chain).0, act, &name];
                if run(&program, &order("--list-rules"), b"").is_ok() {
                    run(&program, &order(act), b"")?;
                }
            }
        }
        Ok(())
    }

    fn program(&self, family: Family) -> String {
        match family {
            Family::V4 => format!("{}/iptables", self.place),
            Family::V6 => format!("{}/ip6tables", self.place),
        }
    }

    fn call(&self, family: Family, act: &str, table: &str, from: &str, to: &str) -> Result<(), String> {
        let arguments = ["--wait", LOCK_WAIT, "--table", table, act, from, "--jump", to];
        run(&self.program(family), &arguments, b"")
    }
}

fn run(program: &str, arguments: &[&str], input: &[u8]) -> Result<(), String> {
    let outcome =
        program::run(program, arguments, input, RUN_MAX).map_err(|error| match std::error::Error::source(
            &error,
        ) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })?;
    match outcome.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", outcome.complaint())),
    }
}

/// What `iptables-restore` reads.
fn script(rules: &Rules) -> String {
    let mut text = String::new();
    for table in ["raw", "nat"] {
        let ours: Vec<_> = rules
            .chains
            .iter()
            .filter(|(chain, _)| called_from(*chain).0 == table)
            .collect();
        if ours.is_empty() {
            continue;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "*{table}");
        for (chain, _) in &ours {
            let _ = writeln!(text, ":{} - [0:0]", chain_name(&rules.table, *chain));
        }
        for (chain, list) in &ours {
            for rule in list {
                let _ = writeln!(
                    text,
                    "-A {}{}",
                    chain_name(&rules.table, *chain),
                    words(&rules.table, rule)
                );
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// At most 28 bytes: a bridge's name has at most 15.
fn chain_name(table: &str, chain: Chain) -> String {
    let short = match chain {
        Chain::Guard => "GUARD",
        Chain::Prerouting => "PRE",
        Chain::Output => "OUT",
        Chain::Postrouting => "POST",
        Chain::Ports => "PORTS",
    };
    format!("{table}-{short}")
}

fn words(table: &str, rule: &Rule) -> String {
    let mut text = String::new();
    for condition in &rule.matches {
        text.push(' ');
        text.push_str(&match condition {
            Match::ToThisNode => "-m addrtype --dst-type LOCAL".to_owned(),
            Match::In(interface) => format!("-i {interface}"),
            Match::Out(interface) => format!("-o {interface}"),
            Match::NotOut(interface) => format!("! -o {interface}"),
            Match::Source((network, prefix)) => format!("-s {network}/{prefix}"),
            Match::Destination((network, prefix)) => format!("-d {network}/{prefix}"),
            Match::Redirected => "-m conntrack --ctstate DNAT".to_owned(),
            Match::Port(transport, port) => format!("-p {} --dport {port}", transport.name()),
        });
    }
    text + &match &rule.verdict {
        Verdict::Drop => " -j DROP".to_owned(),
        Verdict::Jump(chain) => format!(" -j {}", chain_name(table, *chain)),
        Verdict::Masquerade => " -j MASQUERADE".to_owned(),
        Verdict::Redirect(to, port) => format!(" -j DNAT --to-destination {}", SocketAddr::new(*to, *port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::rules::{Forward, rules};
    use expect_test::expect;
    use kedge_containers::{PortMapping, Protocol};
    use std::net::Ipv4Addr;

    #[test]
    fn rules_are_told_as_the_program_reads_them() {
        let forward = |host_ip: Option<&str>, protocol, host_port| Forward {
            sandbox: "a".into(),
            pod: "default/web".into(),
            to: Ipv4Addr::new(10, 1, 2, 3).into(),
            port: PortMapping {
                protocol,
                container_port: 80,
                host_port,
                host_ip: host_ip.map(|address| address.parse().unwrap()),
            },
        };
        let forwards = [
            forward(None, Protocol::Tcp, 8080),
            forward(Some("192.0.2.7"), Protocol::Udp, 53),
        ];
        let rules = rules("kedge0", (Ipv4Addr::new(10, 1, 2, 0).into(), 24), &forwards);
        expect![[r"
            *raw
            :kedge-kedge0-GUARD - [0:0]
            -A kedge-kedge0-GUARD -i kedge0 -d 127.0.0.0/8 -j DROP
            COMMIT
            *nat
            :kedge-kedge0-PORTS - [0:0]
            :kedge-kedge0-PRE - [0:0]
            :kedge-kedge0-OUT - [0:0]
            :kedge-kedge0-POST - [0:0]
            -A kedge-kedge0-PORTS -d 192.0.2.7/32 -p udp --dport 53 -j DNAT --to-destination 10.1.2.3:80
            -A kedge-kedge0-PORTS -p tcp --dport 8080 -j DNAT --to-destination 10.1.2.3:80
            -A kedge-kedge0-PRE -m addrtype --dst-type LOCAL -j kedge-kedge0-PORTS
            -A kedge-kedge0-OUT -m addrtype --dst-type LOCAL -j kedge-kedge0-PORTS
            -A kedge-kedge0-POST -s 10.1.2.0/24 ! -o kedge0 -j MASQUERADE
            -A kedge-kedge0-POST -s 10.1.2.0/24 -o kedge0 -m conntrack --ctstate DNAT -j MASQUERADE
            -A kedge-kedge0-POST -s 127.0.0.0/8 -o kedge0 -j MASQUERADE
            COMMIT
        "]]
        .assert_eq(&script(&rules));
        let to = "fd00::3".parse().unwrap();
        let of_ipv6 = Forward {
            to,
            ..forward(Some("2001:db8::7"), Protocol::Sctp, 9)
        };
        expect![[r"
            *nat
            :kedge-kedge0-PORTS - [0:0]
            :kedge-kedge0-PRE - [0:0]
            :kedge-kedge0-OUT - [0:0]
            :kedge-kedge0-POST - [0:0]
            -A kedge-kedge0-PORTS -d 2001:db8::7/128 -p sctp --dport 9 -j DNAT --to-destination [fd00::3]:80
            -A kedge-kedge0-PRE -m addrtype --dst-type LOCAL -j kedge-kedge0-PORTS
            -A kedge-kedge0-OUT -m addrtype --dst-type LOCAL -j kedge-kedge0-PORTS
            -A kedge-kedge0-POST -s fd00::3/64 ! -o kedge0 -j MASQUERADE
            -A kedge-kedge0-POST -s fd00::3/64 -o kedge0 -m conntrack --ctstate DNAT -j MASQUERADE
            COMMIT
        "]]
        .assert_eq(&script(&crate::network::rules::rules(
            "kedge0",
            (to, 64),
            &[of_ipv6],
        )));
        let longest = crate::network::rules::table_of("fifteen-bytes-x");
        assert!(chain_name(&longest, Chain::Guard).len() <= 28);
    }
}
