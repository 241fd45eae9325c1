//! Which users and groups this process knows. Root of a user namespace is an ordinary user for everything outside.

use crate::Root;

/// As many ids as there are, less the one that means nobody: what a process maps that is in no namespace of its own.
const EVERYBODY: u64 = u32::MAX as u64;

/// Whether this process is in a user namespace of its own, where root may neither make devices nor lower OOM scores.
pub fn in_namespace() -> bool {
    in_namespace_of(&Root::machine())
}

fn in_namespace_of(root: &Root) -> bool {
    let map = root.read("/proc/self/uid_map").unwrap_or_default();
    // A kernel without user namespaces has no such file.
    !map.trim().is_empty() && !rows(&map).any(|(first, count)| first == 0 && count == EVERYBODY)
}

/// The highest group that this process can name, of those that follow one another from 0 on.
pub fn highest_group() -> u32 {
    highest_group_of(&Root::machine())
}

fn highest_group_of(root: &Root) -> u32 {
    let map = root.read("/proc/self/gid_map").unwrap_or_default();
    let mut ranges: Vec<(u64, u64)> = rows(&map).collect();
    ranges.sort_unstable();
    let known = ranges.iter().fold(
        0,
        |known, (first, count)| {
            if *first == known { known + count } else { known }
        },
    );
    u32::try_from(known.saturating_sub(1)).unwrap_or(u32::MAX)
}

/// Where each range of a map begins inside, and how many ids it has.
fn rows(map: &str) -> impl Iterator<Item = (u64, u64)> {
    map.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let first = words.next()?.parse().ok()?;
        Some((first, words.nth(1)?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_tell_who_is_known() {
        let place = std::env::temp_dir().join(format!("kedge-host-users-{}", std::process::id()));
        std::fs::create_dir_all(place.join("proc/self")).unwrap();
        let root = Root::at(&place);
        let mut told = Vec::new();
        for map in [
            "         0          0 4294967295\n",
            "         0       1000          1\n         1     100000      65536\n",
            "         5       1000          1\n",
        ] {
            std::fs::write(place.join("proc/self/uid_map"), map).unwrap();
            std::fs::write(place.join("proc/self/gid_map"), map).unwrap();
            told.push((in_namespace_of(&root), highest_group_of(&root)));
        }
        std::fs::remove_dir_all(&place).unwrap();
        told.push((in_namespace_of(&root), 0));
        assert_eq!(
            told,
            [(false, u32::MAX - 1), (true, 65536), (true, 0), (false, 0)]
        );
    }
}
