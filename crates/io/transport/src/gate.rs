//! How many handshakes may be under way, so that a storm of them harms neither the sessions nor a neighbour's handshake.
//!
//! ```text
//!   kernel's backlog ── room ── turn of its address ── turn of all ── steps, on half of the cores at a time
//! ```

use crate::accept::AcceptError;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// How long an accepted connection may wait for its turn; official edges give up after 30 s in all.
const TURN_TIMEOUT: Duration = Duration::from_secs(15);
/// The part of the room that one address may fill.
const ROOM_PART_PER_ADDRESS: usize = 2;

/// How many handshakes a server has at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// Handshakes under way. Each holds some 30 KB, and a peer that says nothing keeps its place until
    /// [`crate::HANDSHAKE_TIMEOUT`].
    pub in_progress_max: usize,
    /// Of them, those of one address (of one /64 network with IPv6). A whole site of edges, or a load balancer in front
    /// of all, may be one address; but a single one must leave room for the others.
    pub per_address_max: usize,
    /// Accepted connections, the waiting ones included, which cost a descriptor and a kilobyte each. At this number a
    /// newcomer is closed at once; one address may have half of them.
    pub accepted_max: usize,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self {
            in_progress_max: 512,
            per_address_max: 256,
            accepted_max: 8192,
        }
    }
}

/// The gate of one server.
#[derive(Debug)]
pub(crate) struct Gate {
    limits: HandshakeLimits,
    all: Arc<Semaphore>,
    /// A handshake costs about half a millisecond of signatures. Only so many compute at one time that half of the cores
    /// are left to sessions: the others wait here and not in the queue of the runtime, where sessions would have to wait
    /// behind them.
    steps: Arc<Semaphore>,
    room: Mutex<Room>,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Room {
    taken: usize,
    addresses: HashMap<IpAddr, Address>,
}

#[derive(Debug)]
struct Address {
    taken: usize,
    turns: Arc<Semaphore>,
}

/// A place in the room, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    address: IpAddr,
    turns: Arc<Semaphore>,
}

/// A place among those whose handshake is under way.
#[derive(Debug)]
pub(crate) struct Turn {
    _ticket: Ticket,
    _of_address: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

fn steps_at_once() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(1)
}

impl Gate {
    pub(crate) fn new(limits: HandshakeLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            all: Arc::new(Semaphore::new(limits.in_progress_max)),
            steps: Arc::new(Semaphore::new(steps_at_once())),
            room: Mutex::default(),
            refused: AtomicU64::new(0),
        })
    }

    /// A place for a newcomer, or none if the room is full.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Ticket> {
        let address = network_of(address);
        let accepted_max = self.limits.accepted_max;
        let mut room = self.room();
        let of_address = room.addresses.get(&address).map_or(0, |entry| entry.taken);
        let full = room.taken >= accepted_max || of_address >= accepted_max.div_ceil(ROOM_PART_PER_ADDRESS);
        if full {
            drop(room);
            self.refuse(address);
            return None;
        }
        room.taken += 1;
        let entry = room.addresses.entry(address).or_insert_with(|| Address {
            taken: 0,
            turns: Arc::new(Semaphore::new(self.limits.per_address_max)),
        });
        entry.taken += 1;
        Some(Ticket {
            gate: Arc::clone(self),
            address,
            turns: Arc::clone(&entry.turns),
        })
    }

    /// Counts a refusal. It is logged at each power of two: a storm must not become a storm in the log.
    fn refuse(&self, address: IpAddr) {
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if refused.is_power_of_two() {
            tracing::warn!(%address, refused, "too many handshakes at once: connections are closed, edges try again");
        }
    }

    /// How many newcomers found the room full.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many are in the room, waiting ones included.
    pub(crate) fn accepted(&self) -> usize {
        self.room().taken
    }

    /// Whether half of the handshakes that are possible at one time are under way.
    pub(crate) fn is_pressed(&self) -> bool {
        self.all.available_permits() < self.limits.in_progress_max.div_ceil(2)
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        // Nothing that holds this lock can panic half way.
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address as limits count it: whoever has an IPv6 network of 64 bits has all addresses in it.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address @ IpAddr::V4(_) => address,
    }
}

impl Ticket {
    /// Waits for the turn; those of one address come in their order, and so do those of all.
    pub(crate) async fn turn(self) -> Result<Turn, AcceptError> {
        let all = Arc::clone(&self.gate.all);
        let turn = async {
            // First the own address: waiting there blocks nobody else.
            let of_address = Arc::clone(&self.turns).acquire_owned().await;
            let of_all = all.acquire_owned().await;
            of_address.and_then(|of_address| Ok((of_address, of_all?)))
        };
        match tokio::time::timeout(TURN_TIMEOUT, turn).await {
            Ok(permits) => {
                let (of_address, of_all) = permits.expect("nobody closes these semaphores");
                Ok(Turn {
                    _ticket: self,
                    _of_address: of_address,
                    _of_all: of_all,
                })
            }
            Err(_) => Err(AcceptError::NoTurn { after: TURN_TIMEOUT }),
        }
    }
}

impl Turn {
    /// Runs something whose every step computes, a step at a time for each core.
    pub(crate) async fn in_steps<F: Future>(&self, work: F) -> F::Output {
        let steps = PollSemaphore::new(Arc::clone(&self._ticket.gate.steps));
        InSteps {
            work: pin!(work),
            steps,
        }
        .await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut room = self.gate.room();
        room.taken -= 1;
        if let Some(entry) = room.addresses.get_mut(&self.address) {
            entry.taken -= 1;
            if entry.taken == 0 {
                room.addresses.remove(&self.address);
            }
        }
    }
}

struct InSteps<'a, F> {
    work: Pin<&'a mut F>,
    steps: PollSemaphore,
}

impl<F: Future> Future for InSteps<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _step = ready!(self.steps.poll_acquire(cx)).expect("nobody closes this semaphore");
        self.work.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn gate(in_progress_max: usize, per_address_max: usize, accepted_max: usize) -> Arc<Gate> {
        Gate::new(HandshakeLimits {
            in_progress_max,
            per_address_max,
            accepted_max,
        })
    }

    #[test]
    fn one_address_fills_half_of_the_room_and_leaves_nothing_behind() {
        let gate = gate(8, 8, 4);
        let first: Vec<_> = (0..3).map(|_| gate.enter(address(1))).collect();
        assert_eq!(first.iter().flatten().count(), 2);
        let second: Vec<_> = (0..3).map(|_| gate.enter(address(2))).collect();
        assert_eq!(second.iter().flatten().count(), 2);
        assert!(gate.enter(address(3)).is_none());
        assert_eq!((gate.refused(), gate.accepted()), (3, 4));
        drop((first, second));
        assert!(gate.room().addresses.is_empty());
        assert_eq!(gate.accepted(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_keeps_its_turns_blocks_only_itself() {
        let gate = gate(8, 2, 100);
        let mut kept = Vec::new();
        for _ in 0..2 {
            kept.push(gate.enter(address(1)).unwrap().turn().await.unwrap());
        }
        let third = gate.enter(address(1)).unwrap().turn();
        let neighbour = gate.enter(address(2)).unwrap().turn();
        let (third, neighbour) = tokio::join!(third, neighbour);
        assert_eq!(
            third.unwrap_err().to_string(),
            "too many handshakes at once: no turn within 15s"
        );
        neighbour.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_turns_of_all_are_bounded_and_given_back() {
        let gate = gate(2, 2, 100);
        let one = gate.enter(address(1)).unwrap().turn().await.unwrap();
        assert!(!gate.is_pressed());
        let two = gate.enter(address(2)).unwrap().turn().await.unwrap();
        assert!(gate.is_pressed());
        let three = tokio::spawn(gate.enter(address(3)).unwrap().turn());
        tokio::task::yield_now().await;
        assert!(!three.is_finished());
        drop(one);
        three.await.unwrap().unwrap();
        drop(two);
    }

    #[tokio::test]
    async fn steps_take_turns() {
        let gate = gate(100, 100, 100);
        // Holds every step, so that nothing may compute.
        let all = u32::try_from(steps_at_once()).unwrap();
        let held = Arc::clone(&gate.steps).acquire_many_owned(all).await.unwrap();
        let turn = gate.enter(address(1)).unwrap().turn().await.unwrap();
        let work = tokio::spawn(async move { turn.in_steps(async { 7 }).await });
        tokio::task::yield_now().await;
        assert!(!work.is_finished());
        drop(held);
        assert_eq!(work.await.unwrap(), 7);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1:2:3"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), address(1));
    }
}
