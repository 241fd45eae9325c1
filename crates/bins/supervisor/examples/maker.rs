//! Makes what a supervisor takes for a container: a process that waits to be started and then becomes a program.
//!
//! `maker make <directory> <program> [argument]...`

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use kedge_supervision::{Made, STDERR, STDIN, STDOUT};
use nix::unistd::ForkResult;
use rustix::fs::{CWD, Mode, OFlags};
use std::ffi::CString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [directory, program @ ..] = arguments.as_slice() else {
        panic!("maker make <directory> <program>");
    };
    let directory = Path::new(directory);
    std::env::set_current_dir(directory).unwrap();
    let listener = UnixListener::bind("start.sock").unwrap();
    let open = |name: &str, flags: OFlags| -> OwnedFd {
        rustix::fs::openat(CWD, name, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
    };
    let (stdout, stderr) = (open(STDOUT, OFlags::RDWR), open(STDERR, OFlags::RDWR));
    let stdin = if Path::new(STDIN).exists() {
        let fd = open(STDIN, OFlags::RDONLY | OFlags::NONBLOCK);
        rustix::io::ioctl_fionbio(&fd, false).unwrap();
        fd
    } else {
        open("/dev/null", OFlags::RDONLY)
    };
    // SAFETY: this process has one thread.
    #[allow(unsafe_code)]
    let forked = unsafe { nix::unistd::fork() }.unwrap();
    match forked {
        ForkResult::Parent { child } => {
            let made = Made::Container {
                pid: child.as_raw().unsigned_abs(),
            };
            let bytes = kedge_supervision::encode(&made).unwrap();
            kedge_packets::send(std::io::stdout(), &bytes, None).unwrap();
        }
        ForkResult::Child => {
            nix::unistd::dup2_stdin(&stdin).unwrap();
            nix::unistd::dup2_stdout(&stdout).unwrap();
            nix::unistd::dup2_stderr(&stderr).unwrap();
            let mut word = String::new();
            listener.accept().unwrap().0.read_to_string(&mut word).unwrap();
            let program: Vec<CString> = program
                .iter()
                .map(|text| CString::new(text.as_str()).unwrap())
                .collect();
            let Err(errno) = nix::unistd::execv(&program[0], &program);
            panic!("{errno}");
        }
    }
}
