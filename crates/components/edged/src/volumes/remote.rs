//! Volumes on other machines that the kernel mounts with the help of a program.

use super::directory::make_directory;
use super::error::Error;
use kedge_host::{mounts, program};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The program speaks with the server before it mounts; without it nothing is mounted.
const PROGRAMS: [&str; 2] = ["/sbin/mount.nfs", "/usr/sbin/mount.nfs"];
/// A server that does not answer within this time is away.
const MOUNT_MAX: Duration = Duration::from_secs(60);

/// A directory of an NFS server.
pub(super) struct Nfs {
    /// `server:/path`.
    pub(super) source: String,
    pub(super) options: Vec<String>,
    pub(super) read_only: bool,
    pub(super) dir: PathBuf,
}

impl Nfs {
    pub(super) fn make(self) -> Result<PathBuf, Error> {
        if mounts::is_mount_point(&self.dir)? {
            return Ok(self.dir);
        }
        let program = PROGRAMS.into_iter().find(|program| Path::new(program).exists());
        let program = program.ok_or_else(|| {
            Error::Unfit("mount.nfs is not installed on this node; install nfs-common".to_owned())
        })?;
        // An argument that looks like an option would be taken for one.
        if self.source.starts_with('-') {
            return Err(Error::Unfit(format!("{:?} is no NFS server", self.source)));
        }
        make_directory(&self.dir, 0o750)?;
        let mut options = self.options.clone();
        options.extend(self.read_only.then(|| "ro".to_owned()));
        let (options, dir) = (options.join(","), self.dir.display().to_string());
        let mut arguments = vec![self.source.as_str(), dir.as_str()];
        if !options.is_empty() {
            arguments.extend(["-o", options.as_str()]);
        }
        let outcome = program::run(program, &arguments, &[], MOUNT_MAX)?;
        if outcome.status.success() {
            return Ok(self.dir);
        }
        Err(Error::Unfit(format!(
            "mount {}: {}",
            self.source,
            outcome.complaint()
        )))
    }
}
