//! Carrying packets between a node's network and the machine's: the program `pasta` does it, an ordinary process.

use super::{Identity, failed, programs};
use crate::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const NAME: &str = "pasta";
/// How people get it.
pub(crate) const ADVICE: &str = "install pasta (Debian, Ubuntu: the package passt)";
/// A number and the end of a line.
const PID_BYTES_MAX: u64 = 32;
/// What it opens; the kernel makes it where a machine has no such rule.
const TUNNEL: &str = "/dev/net/tun";

/// It has the machine's addresses and routes inside. TCP ports that somebody listens on inside are opened on the machine,
/// and those of the machine's loopback inside, on the node's loopback: pods on the node's network reach them there, as
/// they do on a node of root. All other pods reach the machine as any other host would, so its gateway means the gateway.
const OPTIONS: [&str; 12] = [
    "--quiet",
    "--config-net",
    "--no-map-gw",
    "--tcp-ports",
    "auto",
    "--tcp-ns",
    // Older versions look for no ports at all without it.
    "auto",
    "--udp-ports",
    "none",
    "--udp-ns",
    "none",
    "--pid",
];

/// The program, where it is installed.
#[derive(Debug)]
pub(super) struct Pasta {
    program: PathBuf,
}

impl Pasta {
    pub(super) fn find() -> Option<Self> {
        programs::find(NAME).map(|program| Self { program })
    }

    pub(super) fn require() -> Result<Self, Error> {
        Self::find().ok_or_else(|| {
            failed(format!(
                "its network was connected by pasta, which is gone; {ADVICE}"
            ))
        })
    }

    /// Connects the network of the process `holder`; it is up when this returns.
    pub(super) fn connect(&self, holder: u32, directory: &Path) -> Result<Identity, Error> {
        let file = directory.join("pasta.pid");
        let holder = holder.to_string();
        let mut arguments: Vec<&OsStr> = OPTIONS.iter().map(OsStr::new).collect();
        arguments.extend([file.as_os_str(), OsStr::new(&holder)]);
        programs::run(&self.program, &arguments).map_err(|error| {
            let tunnel = match rustix::fs::access(
                TUNNEL,
                rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK,
            ) {
                Ok(()) => String::new(),
                Err(errno) => format!(" ({TUNNEL} must be open to this user: {errno})"),
            };
            failed(format!("pasta cannot connect its network{tunnel}: {error}"))
        })?;
        Identity::of(pid(&file)?).map_err(failed)
    }
}

fn pid(file: &Path) -> Result<u32, Error> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(PID_BYTES_MAX).read_to_string(&mut text))
        .map_err(|source| Error::io("read", file, source))?;
    text.trim()
        .parse()
        .map_err(|_| failed("pasta does not say which process it is"))
}
