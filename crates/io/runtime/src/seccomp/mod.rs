//! Filters of system calls.
//!
//! A profile is a list of rules. The kernel runs every installed filter and obeys the strictest answer, so a profile
//! becomes one filter that tells what may be called at all, and one more for each other answer that it gives.
//!
//! Programs of another architecture than the node's own (32-bit ones on a 64-bit node) are ended by these filters.

mod profile;
mod standard;
mod syscalls;

use kedge_containers::Seccomp;
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("seccomp profiles are not supported on this architecture")]
    Architecture,
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not a seccomp profile: {reason}")]
    NotUnderstood { path: PathBuf, reason: String },
    #[error("make a filter of the seccomp profile")]
    Compile(#[source] seccompiler::BackendError),
}

/// What becomes of a call that the runtime's own profile does not name.
const REFUSAL: Act = Act::Errno(libc::EPERM.unsigned_abs());

/// A filter that can be installed.
#[derive(Debug, Clone)]
pub(crate) struct Filter(BpfProgram);

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Allow,
    Log,
    Trace(u32),
    Errno(u32),
    Trap,
    KillThread,
    KillProcess,
}

/// Calls and what becomes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    names: Vec<String>,
    act: Act,
    /// All of them must hold.
    tests: Vec<Test>,
}

/// What an argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Test {
    argument: u8,
    comparison: Comparison,
    value: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Under this mask.
    MaskedEqual(u64),
}

impl Rule {
    fn allow(names: &[&str]) -> Self {
        Self {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            act: Act::Allow,
            tests: Vec::new(),
        }
    }

    fn allow_if(name: &str, test: Test) -> Self {
        Self {
            tests: vec![test],
            ..Self::allow(&[name])
        }
    }
}

/// The filters for a process that can have these capabilities at most.
pub(crate) fn filters(wanted: &Seccomp, bounding: &[String]) -> Result<Vec<Filter>, Error> {
    match wanted {
        Seccomp::Unconfined => Ok(Vec::new()),
        Seccomp::RuntimeDefault => compile(REFUSAL, &standard::rules(bounding)),
        Seccomp::Localhost(path) => {
            let (default, rules) = profile::read(path, bounding)?;
            compile(default, &rules)
        }
    }
}

/// The same profile in the words of the OCI runtime configuration, for a runtime that makes filters itself.
pub(crate) fn document(wanted: &Seccomp, bounding: &[String]) -> Result<Option<Value>, Error> {
    let (default, rules) = match wanted {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::RuntimeDefault => (REFUSAL, standard::rules(bounding)),
        Seccomp::Localhost(path) => profile::read(path, bounding)?,
    };
    Ok(Some(profile::print(default, &rules)))
}

fn compile(default: Act, rules: &[Rule]) -> Result<Vec<Filter>, Error> {
    let mut acts: Vec<Act> = rules
        .iter()
        .map(|rule| rule.act)
        .filter(|act| *act != Act::Allow)
        .collect();
    acts.sort_unstable();
    acts.dedup();
    let mut filters = Vec::new();
    if default != Act::Allow {
        let named: Vec<&Rule> = rules.iter().filter(|rule| rule.act != default).collect();
        filters.push(filter(&named, default, Act::Allow)?);
    }
    for act in acts.into_iter().filter(|act| *act != default) {
        let named: Vec<&Rule> = rules.iter().filter(|rule| rule.act == act).collect();
        filters.push(filter(&named, Act::Allow, act)?);
    }
    if matches!(default, Act::Errno(_)) {
        filters.extend(not_there(rules));
    }
    Ok(filters)
}

/// A profile cannot name calls that are newer than itself. Programs that try a new one and know an older way take the
/// older one only when they hear that the new one is not there, so that is what they hear. Of two refusals the kernel
/// takes the one of the filter that was installed last.
fn not_there(rules: &[Rule]) -> Option<Filter> {
    let names = rules.iter().flat_map(|rule| &rule.names);
    let newest = names.filter_map(|name| syscalls::number(name)).max()?;
    let statement = |code: u32, jt: u8, jf: u8, k: u32| {
        let code = u16::try_from(code).ok()?;
        Some(sock_filter { code, jt, jf, k })
    };
    let refusal = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    let program: Option<BpfProgram> = [
        // The number comes first in what a filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(
            libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K,
            0,
            1,
            u32::try_from(newest).ok()?,
        ),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, refusal),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
    .into_iter()
    .collect();
    program.map(Filter)
}

fn filter(rules: &[&Rule], otherwise: Act, matched: Act) -> Result<Filter, Error> {
    let mut by_number: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut always = Vec::new();
    for rule in rules {
        let numbers = rule.names.iter().filter_map(|name| syscalls::number(name));
        for number in numbers {
            let entry = by_number.entry(number).or_default();
            if rule.tests.is_empty() {
                always.push(number);
            } else {
                entry.push(conditions(&rule.tests)?);
            }
        }
    }
    // No conditions at all means always, whatever else is said of the call.
    for number in always {
        by_number.insert(number, Vec::new());
    }
    let architecture = architecture()?;
    let compiled = SeccompFilter::new(by_number, action(otherwise), action(matched), architecture)
        .and_then(BpfProgram::try_from);
    compiled.map(Filter).map_err(Error::Compile)
}

fn conditions(tests: &[Test]) -> Result<SeccompRule, Error> {
    let condition = |test: &Test| {
        let operator = match test.comparison {
            Comparison::Equal => SeccompCmpOp::Eq,
            Comparison::NotEqual => SeccompCmpOp::Ne,
            Comparison::Less => SeccompCmpOp::Lt,
            Comparison::LessOrEqual => SeccompCmpOp::Le,
            Comparison::Greater => SeccompCmpOp::Gt,
            Comparison::GreaterOrEqual => SeccompCmpOp::Ge,
            Comparison::MaskedEqual(mask) => SeccompCmpOp::MaskedEq(mask),
        };
        SeccompCondition::new(test.argument, SeccompCmpArgLen::Qword, operator, test.value)
    };
    let conditions: Result<Vec<SeccompCondition>, _> = tests.iter().map(condition).collect();
    conditions.and_then(SeccompRule::new).map_err(Error::Compile)
}

fn action(act: Act) -> SeccompAction {
    match act {
        Act::Allow => SeccompAction::Allow,
        Act::Log => SeccompAction::Log,
        Act::Trace(number) => SeccompAction::Trace(number),
        Act::Errno(number) => SeccompAction::Errno(number),
        Act::Trap => SeccompAction::Trap,
        Act::KillThread => SeccompAction::KillThread,
        Act::KillProcess => SeccompAction::KillProcess,
    }
}

fn architecture() -> Result<TargetArch, Error> {
    TargetArch::try_from(std::env::consts::ARCH).map_err(|_| Error::Architecture)
}

impl Filter {
    /// Installs the filter for this thread and everything it becomes. It needs either no-new-privileges or
    /// CAP_SYS_ADMIN, and there is no way back.
    pub(crate) fn install(&self) -> std::io::Result<()> {
        let length = u16::try_from(self.0.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog {
            len: length,
            filter: self.0.as_ptr().cast_mut().cast(),
        };
        const NO_FLAGS: libc::c_ulong = 0;
        // SAFETY: the kernel copies the program, which lives until the call returns, and writes nowhere. Both types are
        // the kernel's `struct sock_filter`.
        #[allow(unsafe_code)]
        let answer = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                NO_FLAGS,
                std::ptr::from_ref(&program),
            )
        };
        crate::kernel::outcome(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_standard_profile_compiles_with_and_without_rights() {
        assert!(filters(&Seccomp::Unconfined, &[]).unwrap().is_empty());
        let plain = filters(&Seccomp::RuntimeDefault, &[]).unwrap();
        assert_eq!(
            plain.len(),
            3,
            "what may be called, clone3 that is not there, and what is newer than the profile"
        );
        let admin = filters(&Seccomp::RuntimeDefault, &["CAP_SYS_ADMIN".to_owned()]).unwrap();
        assert_eq!(admin.len(), 2);
        // The kernel's limit of instructions.
        assert!(plain.iter().all(|filter| filter.0.len() < 4096));
    }

    /// Calls a number of nothing under a profile, in a thread of its own: filters are a thread's.
    fn errno_of(number: i64, wanted: &Seccomp) -> Option<i32> {
        let filters = filters(wanted, &[]).unwrap();
        let called = std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            filters.iter().for_each(|filter| filter.install().unwrap());
            // SAFETY: neither call takes a pointer, and one that is refused does nothing.
            #[allow(unsafe_code)]
            let answer = unsafe { libc::syscall(number, 0_u64, 0_u64, 0_u64) };
            (answer < 0).then(|| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
        });
        called.join().unwrap()
    }

    #[test]
    fn a_call_that_is_newer_than_the_profile_is_not_there() {
        let own = Seccomp::RuntimeDefault;
        assert_eq!(errno_of(libc::SYS_getppid, &own), None);
        assert_eq!(
            errno_of(libc::SYS_add_key, &own),
            Some(libc::EPERM),
            "known and refused"
        );
        assert_eq!(errno_of(4000, &own), Some(libc::ENOSYS));
        assert_eq!(errno_of(libc::SYS_clone3, &own), Some(libc::ENOSYS));
    }

    #[test]
    fn another_runtime_gets_the_same_profile() {
        assert_eq!(document(&Seccomp::Unconfined, &[]).unwrap(), None);
        let told = document(&Seccomp::RuntimeDefault, &[]).unwrap().unwrap();
        assert_eq!(
            (&told["defaultAction"], &told["defaultErrnoRet"]),
            (&"SCMP_ACT_ERRNO".into(), &1.into())
        );
        let rules = told["syscalls"].as_array().unwrap();
        let of = |name: &str| rules.iter().find(|rule| rule["names"][0] == name).unwrap();
        let test = json!({ "index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0x7e02_0000, "valueTwo": 0 });
        assert_eq!(
            *of("clone"),
            json!({ "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [test] })
        );
        assert_eq!(
            *of("clone3"),
            json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 })
        );
    }
}
