//! Ending when asked. The first process of a namespace is spared by every signal whose action is the default, and an
//! interpreter in an endless loop asks nobody; so the signals are handled, by ending.

use nix::libc;

/// What is added to a signal's number, as shells do.
const BY_SIGNAL: libc::c_int = 128;

/// What a process is stopped and continued by, is only told by, or has done itself; the Rust runtime ignores `SIGPIPE`,
/// so that who writes to a closed pipe hears of it.
const LEFT_ALONE: [libc::c_int; 18] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGPIPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGXFSZ,
];

/// Of the numbers above these the C library keeps some for itself.
const STANDARD_MAX: libc::c_int = 31;

/// Has every other signal end this process, at whatever it is.
pub(crate) fn end_when_asked() {
    let standard = 1..=STANDARD_MAX;
    for number in standard.chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        if LEFT_ALONE.contains(&number) {
            continue;
        }
        let handler: extern "C" fn(libc::c_int) = end;
        // SAFETY: the handler only ends the process, which may be done at every moment.
        #[allow(unsafe_code)]
        let _ = unsafe { libc::signal(number, handler as libc::sighandler_t) };
    }
}

extern "C" fn end(signal: libc::c_int) {
    // SAFETY: `_exit` may be called in a handler: it runs nothing of this program.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(BY_SIGNAL + signal)
    }
}
