//! What this process itself uses, and since when.

use crate::{Error, Root, parse};

const TICKS_PER_SECOND: u64 = 100;
const NS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SECOND;

/// This process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnUsage {
    pub started_ms: u64,
    pub cpu_ns: u64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub open_files: u64,
}

/// Reads what this process uses.
pub fn own_usage() -> Result<OwnUsage, Error> {
    let root = Root::machine();
    let stat = root.read("/proc/self/stat")?;
    let status = root.read("/proc/self/status")?;
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map_or("", |(_, fields)| fields)
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // Counted from the state, which is the third field of the file.
    let at = |field: usize| fields.get(field - 3).copied().unwrap_or(0);
    let open_files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    Ok(OwnUsage {
        started_ms: booted_ms()?.saturating_add(at(22) * 1000 / TICKS_PER_SECOND),
        cpu_ns: (at(14) + at(15)) * NS_PER_TICK,
        resident_bytes: parse::meminfo_bytes(&status, "VmRSS").unwrap_or(0),
        virtual_bytes: at(23),
        page_faults: at(10),
        major_page_faults: at(12),
        // The directory that is just read is open, too.
        open_files: (open_files as u64).saturating_sub(1),
    })
}

/// When the machine started, in milliseconds since 1970.
pub fn booted_ms() -> Result<u64, Error> {
    let root = Root::machine();
    let stat = root.read("/proc/stat")?;
    let booted = stat.lines().find_map(|line| line.strip_prefix("btime "));
    let seconds: Option<u64> = booted.and_then(|seconds| seconds.trim().parse().ok());
    seconds
        .map(|seconds| seconds * 1000)
        .ok_or_else(|| Error::NotUnderstood {
            path: root.path("/proc/stat"),
            reason: "no btime".to_owned(),
        })
}

/// The machine's swap, all of it; 0 when there is none.
pub fn swap_bytes() -> u64 {
    let meminfo = Root::machine().read("/proc/meminfo").unwrap_or_default();
    parse::meminfo_bytes(&meminfo, "SwapTotal").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive() {
        let own = own_usage().unwrap();
        assert!(
            own.resident_bytes > 100_000 && own.virtual_bytes >= own.resident_bytes,
            "{own:?}"
        );
        assert!(
            own.started_ms > booted_ms().unwrap() && own.open_files >= 3,
            "{own:?}"
        );
        assert!(own.page_faults > 0, "{own:?}");
    }
}
