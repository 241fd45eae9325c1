//! The signals that ask a process to end, as one future.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Which signal ended the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Interrupt,
    Terminate,
    /// The terminal is gone.
    Hangup,
    Quit,
}

/// Waits for SIGINT, SIGTERM, SIGHUP or SIGQUIT. They are caught from the first poll on, but for a SIGHUP that whoever
/// started the process has it ignore, as `nohup` does: then it shall outlive its terminal.
pub async fn stop_requested() -> std::io::Result<Stop> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut hangup = match is_ignored(SignalKind::hangup()) {
        true => None,
        false => Some(signal(SignalKind::hangup())?),
    };
    tokio::select! {
        _ = interrupt.recv() => Ok(Stop::Interrupt),
        _ = terminate.recv() => Ok(Stop::Terminate),
        _ = quit.recv() => Ok(Stop::Quit),
        () = received(&mut hangup) => Ok(Stop::Hangup),
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// A kernel that does not say has nothing ignored.
fn is_ignored(kind: SignalKind) -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, kind.as_raw_value()))
}

/// Whether the mask of ignored signals in `/proc/<pid>/status` has this one; the lowest bit is signal 1.
fn ignores(status: &str, number: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = u32::try_from(number - 1)
        .ok()
        .and_then(|bit| 1u64.checked_shl(bit));
    mask.zip(bit).is_some_and(|(mask, bit)| mask & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = "Name:\tedgecore\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001004\n";
        let ignored: Vec<i32> = (0..=65).filter(|number| ignores(status, *number)).collect();
        assert_eq!(ignored, [3, 13]);
        assert!(!ignores("Name:\tedgecore\n", 1));
    }
}
