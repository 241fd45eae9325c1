//! The few grammars of `/proc` and `/etc` that the node's facts are written in.

/// The value of `key` in lines like `MemTotal:  123 kB`, in bytes.
pub(crate) fn meminfo_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The value of `key` in lines like `PRETTY_NAME="Debian GNU/Linux 12"`.
pub(crate) fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

/// Processors that are online, from `/proc/stat`: one line `cpuN` each.
pub(crate) fn cpus(stat: &str) -> u32 {
    let count = stat
        .lines()
        .filter(|line| {
            line.strip_prefix("cpu")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .count();
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

/// `0-3,7`, ascending. The kernel has no more CPUs or nodes than fit here.
pub(crate) fn number_list(text: &str) -> Option<Vec<u32>> {
    const NUMBER_MAX: u32 = 8191;
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number <= NUMBER_MAX);
    let mut numbers = std::collections::BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(number(first)?..=number(last)?);
    }
    Some(numbers.into_iter().collect())
}

/// The state letter and the start time (clock ticks since boot) in `/proc/<pid>/stat`. The command between the
/// parentheses may itself contain parentheses and spaces.
pub(crate) fn stat_of_process(stat: &str) -> Option<(char, u64)> {
    const FIELDS_BETWEEN_STATE_AND_START: usize = 18;
    let after_command = stat.get(stat.rfind(')')? + 1..)?;
    let mut fields = after_command.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(FIELDS_BETWEEN_STATE_AND_START)?.parse().ok()?;
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(got: impl std::fmt::Debug, want: Expect) {
        want.assert_eq(&format!("{got:?}"));
    }

    #[test]
    fn memory_lines_are_kibibytes() {
        let text = "MemTotal:       24684092 kB\nMemAvailable:   23768000 kB\nMemTotalX: 1 kB\n";
        check(meminfo_bytes(text, "MemTotal"), expect!["Some(25276510208)"]);
        check(meminfo_bytes(text, "Swap"), expect!["None"]);
        check(
            meminfo_bytes("MemTotal: 99999999999999999999 kB", "MemTotal"),
            expect!["None"],
        );
    }

    #[test]
    fn os_release_values_may_be_quoted() {
        let text = "NAME=Debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID='debian'\n";
        check(
            os_release(text, "PRETTY_NAME"),
            expect![[r#"Some("Debian GNU/Linux 12 (bookworm)")"#]],
        );
        check(os_release(text, "ID"), expect![[r#"Some("debian")"#]]);
        check(os_release(text, "VERSION"), expect!["None"]);
    }

    #[test]
    fn processors_are_the_numbered_lines() {
        check(cpus("cpu  1 2\ncpu0 1 2\ncpu1 1 2\nintr 5\n"), expect!["2"]);
        check(cpus(""), expect!["1"]);
    }

    #[test]
    fn a_command_with_parentheses_does_not_confuse_the_fields() {
        let stat = "42 (a) S (b) Z 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 0 0";
        check(stat_of_process(stat), expect!["Some(('Z', 777))"]);
        check(stat_of_process("42 (a"), expect!["None"]);
        check(stat_of_process(""), expect!["None"]);
    }
}
