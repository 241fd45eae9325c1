//! The filter of devices of version 2 control groups: a program that the kernel asks before a process of the group opens
//! or makes a device. Version 1 has files for this, which libcontainer writes.

use super::Failure;
use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use nix::libc;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// One rule in the kernel's words. `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    block: Option<bool>,
    access: u32,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Rule {
    fn fits_always(&self) -> bool {
        self.block.is_none() && self.access == EVERYTHING && self.major.is_none() && self.minor.is_none()
    }
}

const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const EVERYTHING: u32 = MAKE | READ | WRITE;
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
/// A rule takes at most nine instructions, and a program at most 4096 on old kernels.
const RULES_MAX: usize = 400;

/// What every container may use, whatever else is said: null, zero, full, random, urandom, tty, console, ptmx and the
/// terminals of `/dev/pts`. Nodes of all devices may be made, which lets nobody open them.
const ALWAYS: [Rule; 11] = [
    always(Some(false), MAKE, None, None),
    always(Some(true), MAKE, None, None),
    always(Some(false), EVERYTHING, Some(1), Some(3)),
    always(Some(false), EVERYTHING, Some(1), Some(5)),
    always(Some(false), EVERYTHING, Some(1), Some(7)),
    always(Some(false), EVERYTHING, Some(1), Some(8)),
    always(Some(false), EVERYTHING, Some(1), Some(9)),
    always(Some(false), EVERYTHING, Some(5), Some(0)),
    always(Some(false), EVERYTHING, Some(5), Some(1)),
    always(Some(false), EVERYTHING, Some(5), Some(2)),
    always(Some(false), EVERYTHING, Some(136), None),
];

const fn always(block: Option<bool>, access: u32, major: Option<u32>, minor: Option<u32>) -> Rule {
    Rule {
        allow: true,
        block,
        access,
        major,
        minor,
    }
}

/// Confines the processes of a version 2 group to these devices, and to those that every container may use.
pub(super) fn confine(group: &Path, wanted: &[LinuxDeviceCgroup]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("confine the container to its devices", error);
    let rules: Vec<Rule> = wanted.iter().map(rule).chain(ALWAYS).collect();
    if rules.len() > RULES_MAX {
        return Err(Failure::new(
            "confine the container to its devices",
            format!("there are more than {RULES_MAX} rules"),
        ));
    }
    let program = load(&program(&rules)).map_err(failed)?;
    let group = std::fs::File::open(group).map_err(failed)?;
    attach(group.as_raw_fd(), program.as_raw_fd()).map_err(failed)
}

fn rule(of: &LinuxDeviceCgroup) -> Rule {
    let letters = of.access().as_deref().unwrap_or("rwm");
    let access = letters.chars().fold(0, |access, letter| {
        access
            | match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MAKE,
                _ => 0,
            }
    });
    let block = of.typ().and_then(|kind| match kind {
        LinuxDeviceType::B => Some(true),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(false),
        LinuxDeviceType::A | LinuxDeviceType::P => None,
    });
    let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
    Rule {
        allow: of.allow(),
        block,
        access,
        major: number(of.major()),
        minor: number(of.minor()),
    }
}

/// One instruction as the kernel has it: operation, registers, jump, value.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper half; the halves change places on big-endian machines.
    registers: u8,
    offset: i16,
    value: i32,
}

const LOAD_WORD: u8 = 0x61;
const AND_VALUE: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xbc;
const SET: u8 = 0xb7;
const JUMP_IF_NOT_VALUE: u8 = 0x56;
const JUMP_IF_NOT_EQUAL: u8 = 0x5e;
const EXIT: u8 = 0x95;

// What a register holds in the whole program.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, value: i32) -> Instruction {
    let registers = if cfg!(target_endian = "little") {
        destination | source << 4
    } else {
        destination << 4 | source
    };
    Instruction {
        code,
        registers,
        offset,
        value,
    }
}

/// The last rule that fits decides, so it is asked first. What no rule is about is refused.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(AND_VALUE, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(decide(rule));
        if rule.fits_always() {
            // The kernel takes no program of which a part can never be reached.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

fn answer(allow: bool) -> [Instruction; 2] {
    [
        instruction(SET, ANSWER, 0, 0, i32::from(allow)),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn decide(rule: &Rule) -> Vec<Instruction> {
    let mut tests = Vec::new();
    if let Some(block) = rule.block {
        let kind = if block { BLOCK } else { CHARACTER };
        tests.push(instruction(JUMP_IF_NOT_VALUE, KIND, 0, 0, kind));
    }
    if rule.access != EVERYTHING {
        // Everything that is asked for has to be in the rule.
        tests.push(instruction(MOVE, SCRATCH, ACCESS, 0, 0));
        tests.push(instruction(AND_VALUE, SCRATCH, 0, 0, rule.access.cast_signed()));
        tests.push(instruction(JUMP_IF_NOT_EQUAL, SCRATCH, ACCESS, 0, 0));
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        let test = |number: u32| instruction(JUMP_IF_NOT_VALUE, register, 0, 0, number.cast_signed());
        tests.extend(number.map(test));
    }
    tests.extend(answer(rule.allow));
    // A test that fails leads behind the answer.
    let length = tests.len();
    for (place, test) in tests.iter_mut().enumerate() {
        if matches!(test.code, JUMP_IF_NOT_VALUE | JUMP_IF_NOT_EQUAL) {
            test.offset = i16::try_from(length - place - 1).unwrap_or(i16::MAX);
        }
    }
    tests
}

/// The beginnings of the kernel's `union bpf_attr`, as the two commands read them.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

const COMMAND_LOAD: libc::c_int = 5;
const COMMAND_ATTACH: libc::c_int = 8;
const TYPE_OF_DEVICES: u32 = 15;
const ATTACH_TO_DEVICES: u32 = 6;
/// Groups above and below may have programs as well; all have to agree.
const TOGETHER_WITH_OTHERS: u32 = 2;

fn load(program: &[Instruction]) -> std::io::Result<OwnedFd> {
    let order = Load {
        program_type: TYPE_OF_DEVICES,
        instruction_count: u32::try_from(program.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    let descriptor = bpf(COMMAND_LOAD, &order)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn attach(group: RawFd, program: RawFd) -> std::io::Result<()> {
    let order = Attach {
        target: group.cast_unsigned(),
        program: program.cast_unsigned(),
        attach_type: ATTACH_TO_DEVICES,
        flags: TOGETHER_WITH_OTHERS,
    };
    bpf(COMMAND_ATTACH, &order).map(drop)
}

fn bpf<T>(command: libc::c_int, order: &T) -> std::io::Result<RawFd> {
    // SAFETY: the kernel reads the order, whose size is told, and what it points to, during the call only; both live
    // until it returns.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(order), size_of::<T>()) };
    if answer < 0 {
        return Err(std::io::Error::last_os_error());
    }
    RawFd::try_from(answer).map_err(|_| std::io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    /// What the kernel does with a program, as far as these go.
    fn interpreted(program: &[Instruction], kind: i32, access: u32, major: u32, minor: u32) -> bool {
        let context = [(access << 16) | kind.cast_unsigned(), major, minor];
        let mut registers = [0_u32; 7];
        let mut at = 0;
        loop {
            let now = program[at];
            let (to, from) = (usize::from(now.registers & 15), usize::from(now.registers >> 4));
            at += 1;
            match now.code {
                LOAD_WORD => registers[to] = context[usize::try_from(now.offset / 4).unwrap()],
                AND_VALUE => registers[to] &= now.value.cast_unsigned(),
                SHIFT_RIGHT => registers[to] >>= now.value,
                MOVE => registers[to] = registers[from],
                SET => registers[to] = now.value.cast_unsigned(),
                JUMP_IF_NOT_VALUE if registers[to] != now.value.cast_unsigned() => {
                    at += usize::try_from(now.offset).unwrap();
                }
                JUMP_IF_NOT_EQUAL if registers[to] != registers[from] => {
                    at += usize::try_from(now.offset).unwrap();
                }
                JUMP_IF_NOT_VALUE | JUMP_IF_NOT_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("no instruction {other:#x}"),
            }
        }
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let number = || proptest::option::of(0_u32..3);
        (any::<bool>(), any::<Option<bool>>(), 1_u32..8, number(), number()).prop_map(
            |(allow, block, access, major, minor)| Rule {
                allow,
                block,
                access,
                major,
                minor,
            },
        )
    }

    proptest! {
        #[test]
        fn the_last_rule_that_fits_decides(
            rules in proptest::collection::vec(any_rule(), 0..8),
            block: bool, access in 1_u32..8, major in 0_u32..3, minor in 0_u32..3,
        ) {
            let fits = |rule: &&Rule| {
                rule.block.is_none_or(|wanted| wanted == block)
                    && access & !rule.access == 0
                    && rule.major.is_none_or(|wanted| wanted == major)
                    && rule.minor.is_none_or(|wanted| wanted == minor)
            };
            let wanted = rules.iter().rev().find(fits).is_some_and(|rule| rule.allow);
            let kind = if block { BLOCK } else { CHARACTER };
            prop_assert_eq!(interpreted(&program(&rules), kind, access, major, minor), wanted);
        }
    }

    #[test]
    fn the_kernel_obeys() {
        let layout = kedge_host::cgroups::layout().unwrap();
        let tree = match &layout {
            kedge_host::cgroups::Layout::V2 { mount, .. } => mount.clone(),
            kedge_host::cgroups::Layout::Hybrid { unified, .. } => unified.clone(),
            kedge_host::cgroups::Layout::V1 { .. } => return eprintln!("skipped: no version 2 tree here"),
        };
        if !kedge_host::is_root() {
            return eprintln!("skipped: it needs root");
        }
        let group = tree.join(format!("kedge-devices-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        // The kernel's log is a device that is not among those of every container.
        let denied: LinuxDeviceCgroup =
            serde_json::from_str(r#"{ "allow": false, "access": "rwm" }"#).unwrap();
        let open = |device: &str| {
            let enter = group.join("cgroup.procs");
            let script = format!("echo 0 > {}; exec < {device}", enter.display());
            Command::new("/bin/sh")
                .args(["-c", &script])
                .output()
                .unwrap()
                .status
                .success()
        };
        let before = open("/dev/kmsg");
        let confined = confine(&group, std::slice::from_ref(&denied));
        let (kmsg, null) = (open("/dev/kmsg"), open("/dev/null"));
        std::fs::remove_dir(&group).unwrap();
        confined.unwrap();
        assert!(
            before && !kmsg && null,
            "before {before}, kmsg {kmsg}, null {null}"
        );
    }
}
