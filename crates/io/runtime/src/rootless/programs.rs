//! Running the small programs that a node without root begins with. This process must not have a second thread, so
//! nobody reads what they say meanwhile; it fits into a pipe.

use super::failed;
use crate::Error;
use kedge_host::program::run_on;
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where distributions install them. The path of the environment is somebody else's.
const DIRECTORIES: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];
/// More of what a program complains about helps nobody.
const COMPLAINT_BYTES_MAX: usize = 2048;
/// They look at a few files.
const RUN_MAX: Duration = Duration::from_secs(20);

/// Where a program is installed.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let paths = DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(name));
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    paths.into_iter().find(is_program)
}

/// Runs a program; what it complains about is the error.
pub(super) fn run(program: &Path, arguments: &[&OsStr]) -> Result<(), Error> {
    let told = |error: &dyn std::fmt::Display| failed(format!("{}: {error}", program.display()));
    let null = || {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from)
    };
    let (heard, says) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| told(&errno))?;
    let streams = [
        null().map_err(|error| told(&error))?,
        null().map_err(|error| told(&error))?,
        says,
    ];
    let status = run_on(program, arguments, streams, RUN_MAX).map_err(|error| told(&error))?;
    if status.success() {
        return Ok(());
    }
    // Who is its child may still hold the other end.
    rustix::fs::fcntl_setfl(&heard, OFlags::NONBLOCK).map_err(|errno| told(&errno))?;
    let mut complaint = vec![0; COMPLAINT_BYTES_MAX];
    let read = File::from(heard).read(&mut complaint).unwrap_or(0);
    let complaint = String::from_utf8_lossy(&complaint[..read])
        .trim()
        .replace('\n', "; ");
    match complaint.is_empty() {
        true => Err(told(&status)),
        false => Err(failed(complaint)),
    }
}
