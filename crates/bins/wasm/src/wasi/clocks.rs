//! Clocks, in nanoseconds.

use super::errno::Errno;
use super::guest::Guest;
use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

const NANOSECONDS: u64 = 1_000_000_000;

/// One of the four clocks of the interface.
pub(super) fn clock(number: u32) -> Result<ClockId, Errno> {
    match number {
        0 => Ok(ClockId::Realtime),
        1 => Ok(ClockId::Monotonic),
        2 => Ok(ClockId::ProcessCPUTime),
        3 => Ok(ClockId::ThreadCPUTime),
        _ => Err(Errno::INVAL),
    }
}

pub(super) fn resolution(guest: &mut Guest<'_>, number: u32, told: u32) -> Result<(), Errno> {
    guest.put_u64(told, nanoseconds(clock_getres(clock(number)?)))
}

pub(super) fn now(guest: &mut Guest<'_>, number: u32, told: u32) -> Result<(), Errno> {
    guest.put_u64(told, time(clock(number)?))
}

pub(super) fn time(clock: ClockId) -> u64 {
    nanoseconds(clock_gettime(clock))
}

/// A time before 1970 is told as 1970: the interface knows none.
pub(super) fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let rest = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(NANOSECONDS).saturating_add(rest)
}

pub(super) fn timespec(nanoseconds: u64) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(nanoseconds / NANOSECONDS).unwrap_or(i64::MAX),
        // Less than a second, which every machine's number holds.
        tv_nsec: (nanoseconds % NANOSECONDS).try_into().unwrap_or(0),
    }
}
