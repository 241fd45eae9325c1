//! Waiting for times and for what is open.

use super::clocks::{clock, time, timespec};
use super::descriptors::Table;
use super::errno::Errno;
use super::guest::Guest;
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::AsFd;

/// As many as a program can have open, and some clocks.
const SUBSCRIPTIONS_MAX: u32 = 4096;
const SUBSCRIPTION_BYTES: u32 = 48;
const EVENT_BYTES: usize = 32;

const CLOCK: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;
/// The time is one of the clock's, not one from now.
const ABSOLUTE: u16 = 1;
/// The other end is gone.
const HUNG_UP: u16 = 1;

/// What the module wants to hear of.
struct Subscription {
    userdata: u64,
    wanted: Wanted,
}

enum Wanted {
    /// So many nanoseconds from now.
    Time(u64),
    Read(u32),
    Write(u32),
    /// It asks for what there is not, and hears so at once.
    Nothing {
        tag: u8,
        why: Errno,
    },
}

/// Something that happened.
struct Event {
    userdata: u64,
    tag: u8,
    why: Option<Errno>,
    bytes: u64,
    flags: u16,
}

impl Event {
    fn bytes(&self) -> [u8; EVENT_BYTES] {
        let mut bytes = [0; EVENT_BYTES];
        let why = self.why.map_or(0, Errno::number).to_le_bytes();
        bytes[..8].copy_from_slice(&self.userdata.to_le_bytes());
        bytes[8..10].copy_from_slice(&why[..2]);
        bytes[10] = self.tag;
        bytes[16..24].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[24..26].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }
}

/// Waits until at least one thing that the module asked for has happened, and tells of all that have.
pub(super) fn wait(
    table: &Table,
    guest: &mut Guest<'_>,
    asked: u32,
    events: u32,
    count: u32,
    told: u32,
) -> Result<(), Errno> {
    if count == 0 || count > SUBSCRIPTIONS_MAX {
        return Err(Errno::INVAL);
    }
    let place = |number: u32| asked.checked_add(number * SUBSCRIPTION_BYTES).ok_or(Errno::FAULT);
    let subscriptions: Result<Vec<Subscription>, Errno> = (0..count)
        .map(|number| subscription(table, guest, place(number)?))
        .collect();
    let happened = happened(table, &subscriptions?)?;
    let mut at = events;
    for event in &happened {
        guest.put(at, &event.bytes())?;
        at = at.checked_add(EVENT_BYTES as u32).ok_or(Errno::FAULT)?;
    }
    guest.put_count(told, happened.len())
}

fn subscription(table: &Table, guest: &Guest<'_>, at: u32) -> Result<Subscription, Errno> {
    let part = |offset: u32| at.checked_add(offset).ok_or(Errno::FAULT);
    let (userdata, tag) = (guest.u64(at)?, guest.u8(part(8)?)?);
    let wanted = match tag {
        CLOCK => {
            let (number, wanted, flags) = (
                guest.u32(part(16)?)?,
                guest.u64(part(24)?)?,
                guest.u16(part(40)?)?,
            );
            match clock(number) {
                Ok(clock) if flags & ABSOLUTE != 0 => Wanted::Time(wanted.saturating_sub(time(clock))),
                Ok(_) => Wanted::Time(wanted),
                Err(why) => Wanted::Nothing { tag, why },
            }
        }
        READ | WRITE => {
            let fd = guest.u32(part(16)?)?;
            match table.find(fd) {
                Ok(_) if tag == READ => Wanted::Read(fd),
                Ok(_) => Wanted::Write(fd),
                Err(why) => Wanted::Nothing { tag, why },
            }
        }
        _ => return Err(Errno::INVAL),
    };
    Ok(Subscription { userdata, wanted })
}

fn happened(table: &Table, subscriptions: &[Subscription]) -> Result<Vec<Event>, Errno> {
    let mut waits = Vec::new();
    let mut limit: Option<u64> = None;
    for subscription in subscriptions {
        match subscription.wanted {
            Wanted::Time(from_now) => limit = Some(limit.map_or(from_now, |other| other.min(from_now))),
            Wanted::Read(fd) => waits.push(PollFd::new(table.find(fd)?, PollFlags::IN)),
            Wanted::Write(fd) => waits.push(PollFd::new(table.find(fd)?, PollFlags::OUT)),
            Wanted::Nothing { .. } => limit = Some(0),
        }
    }
    let timeout = limit.map(timespec);
    let ready = rustix::io::retry_on_intr(|| poll(&mut waits, timeout.as_ref()))?;
    let mut results = waits.iter().map(PollFd::revents);
    let mut events = Vec::new();
    for subscription in subscriptions {
        let (tag, mut event) = match &subscription.wanted {
            Wanted::Time(from_now) => {
                let over = ready == 0 && limit == Some(*from_now);
                (CLOCK, over.then(Event::default_event))
            }
            Wanted::Nothing { tag, why } => (
                *tag,
                Some(Event {
                    why: Some(*why),
                    ..Event::default_event()
                }),
            ),
            Wanted::Read(fd) => (READ, on(table, *fd, results.next(), true)?),
            Wanted::Write(fd) => (WRITE, on(table, *fd, results.next(), false)?),
        };
        if let Some(event) = &mut event {
            (event.userdata, event.tag) = (subscription.userdata, tag);
        }
        events.extend(event);
    }
    Ok(events)
}

impl Event {
    fn default_event() -> Self {
        Self {
            userdata: 0,
            tag: 0,
            why: None,
            bytes: 0,
            flags: 0,
        }
    }
}

/// What the kernel says of something that is open.
fn on(table: &Table, fd: u32, found: Option<PollFlags>, reads: bool) -> Result<Option<Event>, Errno> {
    let Some(found) = found.filter(|found| !found.is_empty()) else {
        return Ok(None);
    };
    let waiting = || rustix::io::ioctl_fionread(table.find(fd)?.as_fd()).map_err(Errno::from);
    Ok(Some(Event {
        bytes: if reads { waiting().unwrap_or(0) } else { 0 },
        flags: if found.contains(PollFlags::HUP) {
            HUNG_UP
        } else {
            0
        },
        ..Event::default_event()
    }))
}
