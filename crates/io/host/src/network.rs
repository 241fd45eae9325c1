//! What went through the network interfaces.

use crate::root::read_bounded;
use crate::{Error, Root};
use std::path::PathBuf;

/// A node with more interfaces than this has one for each of its pods; those are left out anyway.
const INTERFACES_MAX: usize = 64;
/// Interfaces between the node and its pods.
const INNER: [&str; 5] = ["veth", "docker", "nerdctl", "kedge", "kv"];

/// Counters of one interface since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    pub name: String,
    pub received_bytes: u64,
    pub received_packets: u64,
    pub received_errors: u64,
    pub received_dropped: u64,
    pub sent_bytes: u64,
    pub sent_packets: u64,
    pub sent_errors: u64,
    pub sent_dropped: u64,
}

/// The node's own interfaces.
pub fn interfaces() -> Result<Vec<Interface>, Error> {
    let text = Root::machine().read("/proc/self/net/dev")?;
    let is_inner = |name: &str| INNER.iter().any(|prefix| name.starts_with(prefix));
    Ok(parse(&text)
        .filter(|interface| !is_inner(&interface.name))
        .take(INTERFACES_MAX)
        .collect())
}

/// The interfaces that a process sees, or nothing when it has ended.
pub fn interfaces_of(pid: u32) -> Vec<Interface> {
    let path = PathBuf::from(format!("/proc/{pid}/net/dev"));
    let text = read_bounded(&path).unwrap_or_default();
    parse(&text).take(INTERFACES_MAX).collect()
}

/// Whether a process is on the network of this one.
pub fn is_on_node_network(pid: u32) -> bool {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net"));
    match (namespace("self"), namespace(&pid.to_string())) {
        (Ok(own), Ok(other)) => own == other,
        (Err(_), _) | (_, Err(_)) => true,
    }
}

/// The interface of the default route, if there is one.
pub fn default_interface() -> Option<String> {
    let routes = Root::machine().read("/proc/self/net/route").ok()?;
    routes.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        (fields.next()? == "00000000").then(|| name.to_owned())
    })
}

fn parse(text: &str) -> impl Iterator<Item = Interface> + '_ {
    text.lines().filter_map(line)
}

/// `  eth0: 1 2 3 4 …`: eight numbers of what came in, eight of what went out. Loopback is nobody's traffic.
fn line(line: &str) -> Option<Interface> {
    let (name, numbers) = line.split_once(':')?;
    let name = name.trim();
    let numbers: Vec<u64> = numbers
        .split_whitespace()
        .map_while(|number| number.parse().ok())
        .collect();
    if name == "lo" {
        return None;
    }
    let at = |index: usize| numbers.get(index).copied();
    Some(Interface {
        name: name.to_owned(),
        received_bytes: at(0)?,
        received_packets: at(1)?,
        received_errors: at(2)?,
        received_dropped: at(3)?,
        sent_bytes: at(8)?,
        sent_packets: at(9)?,
        sent_errors: at(10)?,
        sent_dropped: at(11)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_loopback_is_left_out() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0:100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0\n bad: 1 2\n";
        let found: Vec<Interface> = parse(text).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (
                found[0].received_bytes,
                found[0].received_dropped,
                found[0].sent_bytes,
                found[0].sent_errors
            ),
            (100, 4, 500, 7)
        );
    }

    #[test]
    fn this_process_is_on_the_nodes_network() {
        assert!(is_on_node_network(std::process::id()));
        interfaces().unwrap();
    }
}
