//! Real processes for end-to-end tests and benchmarks: `kedge` from the release build, and the real `kubectl`.
//!
//! Every [`Kedge`] has a data directory and ports of its own, and takes its process, containers and network down when
//! it is dropped. Only processes that a test started are ended, by pid.

pub mod containerd;
pub mod daemons;
pub mod images;
mod kedge;
mod kubectl;
pub mod pods;
pub mod ports;
pub mod proc;
pub mod runtimes;
pub mod site;
pub mod stats;

pub use kedge::{Kedge, Options, User, binary, free_ports};
pub use kubectl::{Output, kubectl};

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a fact may take to come true before a test fails. Generous: CI machines are slow and shared.
pub const FACT_DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two looks at a fact that cannot be waited for otherwise.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `look` returns something; fails with what was last seen.
///
/// # Panics
/// When the fact has not come true within [`FACT_DEADLINE`].
pub fn wait_for<T>(fact: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(last) if began.elapsed() > FACT_DEADLINE => {
                panic!("waited in vain for {fact}; last seen: {last}")
            }
            Err(_) => std::thread::park_timeout(LOOK_INTERVAL),
        }
    }
}

/// A folder for temporary files of this process, which goes when it is dropped.
#[derive(Debug)]
pub struct Folder {
    pub path: PathBuf,
}

impl Folder {
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kedge-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for temporary files");
        Self { path }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.path));
    }
}
