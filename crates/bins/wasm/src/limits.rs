//! How much memory the module may have.
//!
//! The container's control group is what holds. But a program that asks for too much can be told so, and then go on,
//! which is better than to be killed: so growth is compared with the group's limit, as it is at that moment.

use std::path::Path;
use wasmi_core::{LimiterError, ResourceLimiter};

/// Where a container sees the limit of its own group, in trees of version 2 and version 1.
const GROUP_FILES: [&str; 2] = [
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
];

/// Functions are called through tables; programs of a million functions are not made by people.
const TABLE_ELEMENTS_MAX: usize = 1 << 20;
/// A module of preview 1 has one memory and one table; some toolchains add a second table.
const MEMORIES_MAX: usize = 1;
const TABLES_MAX: usize = 8;
const INSTANCES_MAX: usize = 1;

/// Answers the interpreter.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    /// What was refused last, and what would have been granted, in bytes.
    refused: Option<(usize, usize)>,
}

impl Limits {
    /// Why memory was refused, if it was.
    pub(crate) fn refusal(&self) -> Option<(usize, usize)> {
        self.refused
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> Result<bool, LimiterError> {
        let Some(limit) = of_group().filter(|limit| desired > *limit) else {
            return Ok(true);
        };
        self.refused = Some((desired, limit));
        Ok(false)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> Result<bool, LimiterError> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

/// The limit of the container's group; `None` when there is none or it cannot be seen.
fn of_group() -> Option<usize> {
    GROUP_FILES.iter().find_map(|file| limit_in(Path::new(file)))
}

fn limit_in(file: &Path) -> Option<usize> {
    // Version 2 says `max` for none; version 1 says a number beyond all memories.
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}
