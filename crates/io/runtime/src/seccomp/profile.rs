//! Profiles on the node, in the JSON that container runtimes share.

use super::{Act, Comparison, Error, Rule, Test};
use nix::libc;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

/// A profile that names every call several times is smaller.
const PROFILE_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    /// The older spelling of one name.
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Circumstances,
    #[serde(default)]
    excludes: Circumstances,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// When an entry counts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Circumstances {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    /// The oldest kernel on which the entry is safe, for example `4.8`.
    #[serde(rename = "minKernel")]
    kernel_min: Option<String>,
}

impl Entry {
    /// Whether it is meant for a process with these capabilities at most, on this machine.
    fn counts(&self, bounding: &[String], kernel: (u32, u32)) -> bool {
        let lists = |names: &Option<Vec<String>>| names.clone().unwrap_or_default();
        let (with, without) = (&self.includes, &self.excludes);
        let has_all = lists(&with.caps).iter().all(|name| bounding.contains(name));
        let has_none = !lists(&without.caps).iter().any(|name| bounding.contains(name));
        let arches = lists(&with.arches);
        let here = arches.is_empty() || arches.iter().any(|name| is_this_architecture(name));
        let not_here = lists(&without.arches)
            .iter()
            .any(|name| is_this_architecture(name));
        let is_new = |of: &Circumstances| {
            let least = of.kernel_min.as_deref().and_then(version);
            least.map(|least| kernel >= least)
        };
        has_all
            && has_none
            && here
            && !not_here
            && is_new(with) != Some(false)
            && is_new(without) != Some(true)
    }
}

/// Older than every release that a profile names: it is not taken for new enough.
const KERNEL_UNKNOWN: (u32, u32) = (0, 0);

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next().unwrap_or(0)))
}

/// A profile in the words of the OCI runtime configuration.
pub(super) fn print(default: Act, rules: &[Rule]) -> Value {
    let entry = |rule: &Rule| {
        let (action, errno) = spelled(rule.act);
        let mut entry = json!({ "names": rule.names, "action": action });
        if let Some(errno) = errno {
            entry["errnoRet"] = json!(errno);
        }
        if !rule.tests.is_empty() {
            entry["args"] = rule.tests.iter().map(printed).collect();
        }
        entry
    };
    let (action, errno) = spelled(default);
    let mut document = json!({
        "defaultAction": action,
        "architectures": architectures(),
        "syscalls": rules.iter().map(entry).collect::<Vec<_>>(),
    });
    if let Some(errno) = errno {
        document["defaultErrnoRet"] = json!(errno);
    }
    document
}

fn printed(test: &Test) -> Value {
    let (op, value, second) = match test.comparison {
        Comparison::Equal => ("SCMP_CMP_EQ", test.value, 0),
        Comparison::NotEqual => ("SCMP_CMP_NE", test.value, 0),
        Comparison::Less => ("SCMP_CMP_LT", test.value, 0),
        Comparison::LessOrEqual => ("SCMP_CMP_LE", test.value, 0),
        Comparison::Greater => ("SCMP_CMP_GT", test.value, 0),
        Comparison::GreaterOrEqual => ("SCMP_CMP_GE", test.value, 0),
        Comparison::MaskedEqual(mask) => ("SCMP_CMP_MASKED_EQ", mask, test.value),
    };
    json!({ "index": test.argument, "value": value, "valueTwo": second, "op": op })
}

fn spelled(act: Act) -> (&'static str, Option<u32>) {
    match act {
        Act::Allow => ("SCMP_ACT_ALLOW", None),
        Act::Log => ("SCMP_ACT_LOG", None),
        Act::Trace(number) => ("SCMP_ACT_TRACE", Some(number)),
        Act::Errno(number) => ("SCMP_ACT_ERRNO", Some(number)),
        Act::Trap => ("SCMP_ACT_TRAP", None),
        Act::KillThread => ("SCMP_ACT_KILL_THREAD", None),
        Act::KillProcess => ("SCMP_ACT_KILL_PROCESS", None),
    }
}

/// The machine's own, and the older ones whose programs it runs as well.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "riscv64" => &["SCMP_ARCH_RISCV64"],
        "arm" => &["SCMP_ARCH_ARM"],
        // The other runtime takes its own.
        _ => &[],
    }
}

/// Reads a profile: what becomes of calls it does not name, and its rules.
pub(super) fn read(path: &Path, bounding: &[String]) -> Result<(Act, Vec<Rule>), Error> {
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(PROFILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let kernel = version(&release).unwrap_or(KERNEL_UNKNOWN);
    parse(&text, bounding, kernel).map_err(|reason| Error::NotUnderstood {
        path: path.to_owned(),
        reason,
    })
}

fn parse(text: &str, bounding: &[String], kernel: (u32, u32)) -> Result<(Act, Vec<Rule>), String> {
    let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let default = act(&document.default_action, document.default_errno_ret)?;
    let counts = document
        .syscalls
        .into_iter()
        .filter(|entry| entry.counts(bounding, kernel));
    let rules: Result<Vec<Vec<Rule>>, String> = counts.map(rules_of).collect();
    Ok((default, rules?.concat()))
}

fn rules_of(entry: Entry) -> Result<Vec<Rule>, String> {
    let names: Vec<String> = entry.names.into_iter().chain(entry.name).collect();
    let act = act(&entry.action, entry.errno_ret)?;
    let tests: Result<Vec<Test>, String> = entry.args.unwrap_or_default().iter().map(test).collect();
    let tests = tests?;
    // Several tests of one argument are alternatives, as everywhere.
    let mut arguments: Vec<u8> = tests.iter().map(|test| test.argument).collect();
    arguments.sort_unstable();
    let count = arguments.len();
    arguments.dedup();
    if arguments.len() < count {
        let each = tests.into_iter().map(|test| Rule {
            names: names.clone(),
            act,
            tests: vec![test],
        });
        return Ok(each.collect());
    }
    Ok(vec![Rule { names, act, tests }])
}

fn act(name: &str, errno: Option<u32>) -> Result<Act, String> {
    let errno_or = |default: i32| errno.unwrap_or(default.unsigned_abs());
    match name {
        "SCMP_ACT_ALLOW" => Ok(Act::Allow),
        "SCMP_ACT_LOG" => Ok(Act::Log),
        "SCMP_ACT_TRACE" => Ok(Act::Trace(errno_or(libc::EPERM))),
        "SCMP_ACT_ERRNO" => Ok(Act::Errno(errno_or(libc::EPERM))),
        "SCMP_ACT_TRAP" => Ok(Act::Trap),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(Act::KillThread),
        "SCMP_ACT_KILL_PROCESS" => Ok(Act::KillProcess),
        other => Err(format!("action {other} is not supported")),
    }
}

fn test(argument: &Argument) -> Result<Test, String> {
    let (comparison, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => (Comparison::Equal, argument.value),
        "SCMP_CMP_NE" => (Comparison::NotEqual, argument.value),
        "SCMP_CMP_LT" => (Comparison::Less, argument.value),
        "SCMP_CMP_LE" => (Comparison::LessOrEqual, argument.value),
        "SCMP_CMP_GT" => (Comparison::Greater, argument.value),
        "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, argument.value),
        "SCMP_CMP_MASKED_EQ" => (Comparison::MaskedEqual(argument.value), argument.value_two),
        other => return Err(format!("comparison {other} is not known")),
    };
    Ok(Test {
        argument: argument.index,
        comparison,
        value,
    })
}

/// In the words of Go.
fn is_this_architecture(name: &str) -> bool {
    name == kedge_host::architecture()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}],
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 16, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}], "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["personality"], "action": "SCMP_ACT_LOG", "args": [
                {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["modify_ldt"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["pdp11"]}}
        ]}"#;

    #[test]
    fn a_profile_is_read() {
        let (default, rules) = parse(PROFILE, &[], (6, 1)).unwrap();
        let lines: Vec<String> = rules.iter().map(|rule| format!("{rule:?}")).collect();
        expect![[r#"
            Errno(38)
            Rule { names: ["read", "write"], act: Allow, tests: [] }
            Rule { names: ["mkdir"], act: Errno(13), tests: [] }
            Rule { names: ["clone"], act: Allow, tests: [Test { argument: 0, comparison: MaskedEqual(16), value: 0 }] }
            Rule { names: ["personality"], act: Log, tests: [Test { argument: 0, comparison: Equal, value: 0 }] }
            Rule { names: ["personality"], act: Log, tests: [Test { argument: 0, comparison: Equal, value: 8 }] }"#]].assert_eq(&format!("{default:?}\n{}", lines.join("\n")));
        assert_eq!(super::super::compile(default, &rules).unwrap().len(), 4);
    }

    #[test]
    fn entries_count_by_circumstances() {
        let profile = r#"{ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "args": null, "includes": {"minKernel": "4.8"}, "excludes": {"caps": null}},
            {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "5.0"}}]}"#;
        let names = |kernel| {
            let (_, rules) = parse(profile, &[], kernel).unwrap();
            rules
                .iter()
                .flat_map(|rule| rule.names.clone())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            (names((4, 7)), names((4, 8)), names((6, 1))),
            ("chroot".into(), "ptrace chroot".into(), "ptrace".into())
        );
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("x"), None);
    }

    #[test]
    fn what_is_printed_reads_as_itself() {
        let (default, rules) = parse(PROFILE, &[], (6, 1)).unwrap();
        let printed = print(default, &rules).to_string();
        assert_eq!(parse(&printed, &[], (6, 1)).unwrap(), (default, rules));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for (text, why) in [
            ("{", "EOF"),
            ("{}", "defaultAction"),
            (
                r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#,
                "SCMP_ACT_NOTIFY is not supported",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 1, "op": "?"}]}]}"#,
                "comparison ? is not known",
            ),
        ] {
            let error = parse(text, &[], (6, 1)).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
