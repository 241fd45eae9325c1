use std::path::PathBuf;

/// What could not be learned from, or done on, this machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {path}", path = path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("write {path}", path = path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("watch {path}", path = path.display())]
    Watch {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not understood: {reason}", path = path.display())]
    NotUnderstood { path: PathBuf, reason: String },
    #[error("measure the file system of {path}", path = path.display())]
    Disk {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{act} {path}", path = path.display())]
    Change {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} leads out of the directory that it must stay in", path = path.display())]
    LeadsOut { path: PathBuf },
    #[error("{path} goes through too many symbolic links", path = path.display())]
    TooManyLinks { path: PathBuf },
    #[error("open {path}", path = path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("list the network addresses of this machine")]
    Addresses(#[source] std::io::Error),
    #[error("no control groups are mounted on /sys/fs/cgroup; mount cgroup2 there")]
    NoCgroups,
    #[error("this machine has no {0} control group controller; enable it on the kernel command line")]
    NoController(&'static str),
    #[error("process {0} has ended")]
    ProcessEnded(u32),
    #[error("signal process {pid}")]
    Signal {
        pid: u32,
        #[source]
        source: std::io::Error,
    },
    #[error("{0} is not a signal")]
    NoSignal(String),
    #[error("start {program}")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} did not end within {seconds} s and was killed")]
    Deadline { program: String, seconds: u64 },
    #[error("talk with {program}")]
    Talk {
        program: String,
        #[source]
        source: std::io::Error,
    },
}
