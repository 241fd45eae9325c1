//! Profiles on the node, in the JSON that container runtimes share.

use super::{Act, Comparison, Error, Rule, Test};
use nix::libc;
use serde::Deserialize;
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
    caps: Vec<String>,
    arches: Vec<String>,
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
    parse(&text, bounding).map_err(|reason| Error::NotUnderstood {
        path: path.to_owned(),
        reason,
    })
}

fn parse(text: &str, bounding: &[String]) -> Result<(Act, Vec<Rule>), String> {
    let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let default = act(&document.default_action, document.default_errno_ret)?;
    let counts = document.syscalls.into_iter().filter(|entry| {
        let has_all = entry
            .includes
            .caps
            .iter()
            .all(|capability| bounding.contains(capability));
        let has_none = !entry
            .excludes
            .caps
            .iter()
            .any(|capability| bounding.contains(capability));
        let arches = &entry.includes.arches;
        let here = arches.is_empty() || arches.iter().any(|name| is_this_architecture(name));
        let not_here = entry
            .excludes
            .arches
            .iter()
            .any(|name| is_this_architecture(name));
        has_all && has_none && here && !not_here
    });
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
        let (default, rules) = parse(PROFILE, &[]).unwrap();
        let lines: Vec<String> = rules.iter().map(|rule| format!("{rule:?}")).collect();
        expect![[r#"
            Errno(38)
            Rule { names: ["read", "write"], act: Allow, tests: [] }
            Rule { names: ["mkdir"], act: Errno(13), tests: [] }
            Rule { names: ["clone"], act: Allow, tests: [Test { argument: 0, comparison: MaskedEqual(16), value: 0 }] }
            Rule { names: ["personality"], act: Log, tests: [Test { argument: 0, comparison: Equal, value: 0 }] }
            Rule { names: ["personality"], act: Log, tests: [Test { argument: 0, comparison: Equal, value: 8 }] }"#]].assert_eq(&format!("{default:?}\n{}", lines.join("\n")));
        assert_eq!(super::super::compile(default, &rules).unwrap().len(), 3);
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
            let error = parse(text, &[]).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
