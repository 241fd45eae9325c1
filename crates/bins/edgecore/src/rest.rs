//! A process at rest keeps what it uses.

use kedge_host::memory;
use std::time::Duration;

/// Certificates, the first reports and the adoption of pods have passed.
const AFTER_START: Duration = Duration::from_secs(20);
/// What starting pods or a new certificate brought in is given back within this time. What is in use comes back in some
/// hundred page faults, which take less than a millisecond: nothing beside ten minutes.
const AGAIN: Duration = Duration::from_secs(600);

/// The two workers allocate most; a burst of blocking work, as when an image is unpacked, shares with them.
const HEAPS: u8 = 2;

/// What must be settled before there are threads.
pub(crate) fn prepare() {
    memory::limit_heaps(HEAPS);
}

/// Gives memory back that is no longer used; runs until it is dropped.
pub(crate) async fn keep_small() {
    let mut wait = AFTER_START;
    loop {
        tokio::time::sleep(wait).await;
        memory::give_back();
        wait = AGAIN;
    }
}
