use crate::{Error, Root, parse};
use nix::sys::socket::SockaddrLike;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// What this machine is. It changes only when the machine restarts or is rebuilt, except for the addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Empty when the machine has none.
    pub machine_id: String,
    /// The firmware's id, else the machine id.
    pub system_uuid: String,
    pub boot_id: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// For people, for example `Debian GNU/Linux 12 (bookworm)`.
    pub os_image: String,
    /// Always `linux`.
    pub operating_system: String,
    /// In Go's words: `amd64`, `arm64`, `arm`, ...
    pub architecture: String,
    /// Lower case, as Kubernetes wants node names.
    pub hostname: String,
    /// The address that leads outside first, then the others; loopback and link-local ones are left out.
    pub addresses: Vec<IpAddr>,
    pub cpus: u32,
    pub memory_bytes: u64,
}

/// Reads the facts of this machine.
pub fn facts() -> Result<Facts, Error> {
    facts_of(&Root::machine(), addresses()?)
}

/// Reads the facts below `root`; addresses are not files, so they are given.
pub fn facts_of(root: &Root, addresses: Vec<IpAddr>) -> Result<Facts, Error> {
    let meminfo = root.read("/proc/meminfo")?;
    let memory_bytes = parse::meminfo_bytes(&meminfo, "MemTotal").ok_or_else(|| Error::NotUnderstood {
        path: root.path("/proc/meminfo"),
        reason: "no MemTotal".to_owned(),
    })?;
    let machine_id = trimmed(
        root.read("/etc/machine-id")
            .or_else(|_| root.read("/var/lib/dbus/machine-id")),
    );
    let system_uuid = trimmed(root.read("/sys/class/dmi/id/product_uuid"));
    let os_release = root
        .read("/etc/os-release")
        .or_else(|_| root.read("/usr/lib/os-release"))
        .unwrap_or_default();
    Ok(Facts {
        system_uuid: if system_uuid.is_empty() {
            machine_id.clone()
        } else {
            system_uuid
        },
        machine_id,
        boot_id: trimmed(Ok(root.read("/proc/sys/kernel/random/boot_id")?)),
        kernel_version: trimmed(root.read("/proc/sys/kernel/osrelease")),
        os_image: parse::os_release(&os_release, "PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned()),
        operating_system: "linux".to_owned(),
        architecture: architecture().to_owned(),
        hostname: trimmed(root.read("/proc/sys/kernel/hostname")).to_ascii_lowercase(),
        addresses,
        cpus: parse::cpus(&root.read("/proc/stat")?),
        memory_bytes,
    })
}

/// Some files are absent on small systems; their fact is then empty.
fn trimmed(text: Result<String, Error>) -> String {
    text.map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Names this boot of the machine; a process id means nothing without it.
pub fn boot_id() -> Result<String, Error> {
    Root::machine()
        .read("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
}

/// The processor architecture of this program in Go's words, which images and node labels use.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        same => same,
    }
}

/// The variant of the architecture in the words of images (`v7` of `arm`), where there are several.
pub fn architecture_variant() -> Option<&'static str> {
    match std::env::consts::ARCH {
        // The kernel tells what the processor is: a program for `v6` runs on newer ones, too.
        "arm" => match rustix::system::uname().machine().to_bytes() {
            [b'a', b'r', b'm', b'v', b'5', ..] => Some("v5"),
            [b'a', b'r', b'm', b'v', b'6', ..] => Some("v6"),
            [b'a', b'r', b'm', b'v', b'7', ..] => Some("v7"),
            [b'a', b'r', b'm', b'v', b'8', ..] | b"aarch64" => Some("v8"),
            _unknown => None,
        },
        "aarch64" => Some("v8"),
        _others => None,
    }
}

/// Whether this process has the rights of root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A destination that is routed but never answers (TEST-NET-1). Connecting a datagram socket sends nothing.
const OUTSIDE: ([u8; 4], u16) = ([192, 0, 2, 1], 9);

/// The addresses of this machine, in the order of [`Facts::addresses`]. Unlike the rest they may change while it runs.
pub fn addresses() -> Result<Vec<IpAddr>, Error> {
    let interfaces = nix::ifaddrs::getifaddrs().map_err(|errno| Error::Addresses(errno.into()))?;
    let mut found: Vec<IpAddr> = interfaces
        .filter_map(|interface| ip(&interface.address?))
        .filter(usable)
        .collect();
    found.sort();
    found.dedup();
    if let Some(primary) = primary() {
        found.retain(|address| *address != primary);
        found.insert(0, primary);
    }
    Ok(found)
}

pub(crate) fn ip(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    match address.family()? {
        nix::sys::socket::AddressFamily::Inet => Some(IpAddr::V4(address.as_sockaddr_in()?.ip())),
        nix::sys::socket::AddressFamily::Inet6 => Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())),
        _ => None,
    }
}

pub(crate) fn usable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

/// The address the kernel would send from; `None` on a machine without a default route.
fn primary() -> Option<IpAddr> {
    let socket = UdpSocket::bind((IpAddr::from([0, 0, 0, 0]), 0)).ok()?;
    socket.connect(SocketAddr::from(OUTSIDE)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let facts = facts().unwrap();
        assert!(facts.memory_bytes > 1024 * 1024, "{facts:?}");
        assert_eq!(facts.boot_id.len(), 36, "{facts:?}");
        assert!(facts.addresses.iter().all(usable), "{facts:?}");
        assert!(!facts.kernel_version.is_empty() && facts.cpus >= 1, "{facts:?}");
    }

    #[test]
    fn a_machine_without_proc_is_an_error_that_names_the_file() {
        let error = facts_of(&Root::at("/nonexistent"), Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "read /nonexistent/proc/meminfo");
    }
}
