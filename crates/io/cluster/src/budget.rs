//! How many calls a process makes to its API, and who comes first.
//!
//! ```text
//!   acquire(Lease, node) ──┐            ┌─ lease   ring of nodes, each with its calls in order
//!   acquire(Status, node) ─┼─> waiting ─┼─ status  "
//!   acquire(Bulk, node) ───┘            ├─ other   "
//!                                       └─ bulk    "      ── a token and a place ──> Permit
//! ```
//!
//! Within a class nodes take turns, so that one with a hundred calls does not delay one with a single call. A higher
//! class goes before a lower one, but each eighth turn is the lowest's that waits, so that no class starves.

use kedge_telemetry::Scope;
use kedge_telemetry::metrics::{Counter, Gauge, Registry};
use kedge_wire::NodeName;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

/// Limits of one process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetConfig {
    /// Calls a second in the long run.
    pub calls_per_second: u32,
    /// Calls that may be made at once after a quiet time.
    pub burst: u32,
    /// Calls without an answer at one time.
    pub concurrent_max: usize,
}

/// What a call is for; the order is the precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Keeps a node from being taken for dead.
    Lease,
    /// What runs and how.
    Status,
    /// Questions of nodes.
    Other,
    /// Bookkeeping that nobody waits for.
    Bulk,
}

impl Class {
    pub const ALL: [Self; 4] = [Self::Lease, Self::Status, Self::Other, Self::Bulk];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Status => "status",
            Self::Other => "other",
            Self::Bulk => "bulk",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Lease => 0,
            Self::Status => 1,
            Self::Other => 2,
            Self::Bulk => 3,
        }
    }
}

/// Callers on their way to the queue. Each node has few calls at one time; when full, callers wait here in order.
const ARRIVING_MAX: usize = 256;
/// Every so many grants go to the lowest class that waits.
const LOWEST_TURN: u64 = 8;

/// The right to make one call; dropping it makes room for the next.
#[derive(Debug)]
pub struct Permit {
    _place: Option<OwnedSemaphorePermit>,
}

/// Hands out permits. Cloning shares the limits.
#[derive(Debug, Clone)]
pub struct Budget {
    arriving: mpsc::Sender<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    class: Class,
    node: NodeName,
    grant: oneshot::Sender<Permit>,
}

impl Budget {
    /// Starts the one task that decides who is next; it ends with the scope, after which nothing is limited any more.
    pub fn start(config: BudgetConfig, metrics: &Registry, scope: &Scope) -> Self {
        let (arriving, arrivals) = mpsc::channel(ARRIVING_MAX);
        let desk = Desk {
            tokens: Tokens::new(config, Instant::now()),
            places: Arc::new(Semaphore::new(config.concurrent_max.max(1))),
            line: Line::default(),
            arrivals,
            meters: Class::ALL.map(|class| Meter::new(metrics, class)),
        };
        scope.spawn_until_cancelled("cluster budget", desk.run());
        Self { arriving }
    }

    /// Waits for the turn of this call.
    pub async fn acquire(&self, class: Class, node: &NodeName) -> Permit {
        let (grant, granted) = oneshot::channel();
        let waiting = Waiting {
            class,
            node: node.clone(),
            grant,
        };
        // The desk is gone only when the process ends: what is under way then is not held up.
        let unlimited = Permit { _place: None };
        match self.arriving.send(waiting).await {
            Ok(()) => granted.await.unwrap_or(unlimited),
            Err(_) => unlimited,
        }
    }
}

struct Desk {
    tokens: Tokens,
    places: Arc<Semaphore>,
    line: Line<oneshot::Sender<Permit>>,
    arrivals: mpsc::Receiver<Waiting>,
    meters: [Meter; 4],
}

struct Meter {
    granted: Counter,
    waiting: Gauge,
}

impl Meter {
    fn new(metrics: &Registry, class: Class) -> Self {
        let labels = [("class", class.as_str())];
        Self {
            granted: metrics.counter(
                "kedge_cluster_calls",
                "Calls to the API on behalf of nodes",
                &labels,
            ),
            waiting: metrics.gauge(
                "kedge_cluster_calls_waiting",
                "Calls that wait for their turn",
                &labels,
            ),
        }
    }
}

impl Desk {
    async fn run(mut self) {
        loop {
            let next_token = self.tokens.next(Instant::now());
            let waits = !self.line.is_empty();
            tokio::select! {
                biased;
                // Who arrives is put in line first: only then is the choice the right one.
                arrived = self.arrivals.recv() => match arrived {
                    Some(Waiting { class, node, grant }) => {
                        self.meters[class.index()].waiting.add(1);
                        self.line.push(class, node, grant);
                    }
                    None => return,
                },
                () = tokio::time::sleep_until(next_token.unwrap_or_else(Instant::now)), if waits && next_token.is_some() => {}
                place = Arc::clone(&self.places).acquire_owned(), if waits && next_token.is_none() => {
                    self.grant(place.ok());
                }
            }
        }
    }

    /// Gives the turn to the next one who still wants it.
    fn grant(&mut self, mut place: Option<OwnedSemaphorePermit>) {
        while let Some((class, grant)) = self.line.pop() {
            self.meters[class.index()].waiting.add(-1);
            match grant.send(Permit { _place: place }) {
                Ok(()) => {
                    self.meters[class.index()].granted.inc();
                    self.tokens.take();
                    return;
                }
                // Gave up waiting; the place goes to the one behind.
                Err(permit) => place = permit._place,
            }
        }
    }
}

/// The token bucket.
struct Tokens {
    per_second: f64,
    burst: f64,
    available: f64,
    at: Instant,
}

impl Tokens {
    fn new(config: BudgetConfig, now: Instant) -> Self {
        let burst = f64::from(config.burst.max(1));
        Self {
            per_second: f64::from(config.calls_per_second.max(1)),
            burst,
            available: burst,
            at: now,
        }
    }

    /// When there will be a token; `None` when there is one.
    fn next(&mut self, now: Instant) -> Option<Instant> {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        self.available = (self.available + gained).min(self.burst);
        self.at = now;
        if self.available >= 1.0 {
            return None;
        }
        let missing = (1.0 - self.available) / self.per_second;
        // Timers have a grain of a millisecond; waking earlier would only mean waking twice.
        Some(now + Duration::from_secs_f64(missing).max(Duration::from_millis(1)))
    }

    fn take(&mut self) {
        self.available -= 1.0;
    }
}

/// Who waits, by class and node.
struct Line<T> {
    classes: [Ring<T>; 4],
    turns: u64,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            classes: Default::default(),
            turns: 0,
        }
    }
}

/// Nodes in the order of their turns, and what each waits for.
struct Ring<T> {
    order: VecDeque<NodeName>,
    waiting: HashMap<NodeName, VecDeque<T>>,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            waiting: HashMap::new(),
        }
    }
}

impl<T> Line<T> {
    fn is_empty(&self) -> bool {
        self.classes.iter().all(|ring| ring.order.is_empty())
    }

    fn push(&mut self, class: Class, node: NodeName, entry: T) {
        let ring = &mut self.classes[class.index()];
        let of_node = ring.waiting.entry(node.clone()).or_default();
        if of_node.is_empty() {
            ring.order.push_back(node);
        }
        of_node.push_back(entry);
    }

    fn pop(&mut self) -> Option<(Class, T)> {
        let waits = |class: &Class| !self.classes[class.index()].order.is_empty();
        self.turns += 1;
        let class = match self.turns.is_multiple_of(LOWEST_TURN) {
            true => Class::ALL.into_iter().rev().find(waits)?,
            false => Class::ALL.into_iter().find(waits)?,
        };
        let ring = &mut self.classes[class.index()];
        let node = ring.order.pop_front()?;
        let of_node = ring.waiting.get_mut(&node)?;
        let entry = of_node.pop_front()?;
        if of_node.is_empty() {
            ring.waiting.remove(&node);
        } else {
            ring.order.push_back(node);
        }
        Some((class, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(waiting: &[(Class, &str, &str)], expect: Expect) {
        let mut line = Line::default();
        for (class, node, call) in waiting {
            line.push(*class, NodeName::new(*node).unwrap(), *call);
        }
        let order: Vec<&str> = std::iter::from_fn(|| line.pop().map(|(_, call)| call)).collect();
        assert!(line.is_empty());
        expect.assert_eq(&order.join(" "));
    }

    #[test]
    fn nodes_take_turns_and_classes_have_precedence() {
        use Class::{Bulk, Lease, Other, Status};
        check(
            &[
                (Status, "a", "a1"),
                (Status, "a", "a2"),
                (Status, "a", "a3"),
                (Status, "b", "b1"),
                (Bulk, "a", "bulk"),
                (Other, "c", "question"),
                (Lease, "c", "lease"),
            ],
            expect!["lease a1 b1 a2 a3 question bulk"],
        );
    }

    #[test]
    fn the_lowest_class_is_not_starved() {
        let mut waiting = vec![(Class::Bulk, "z", "BULK")];
        waiting.extend([(Class::Lease, "a", "l"); 20]);
        check(&waiting, expect!["l l l l l l l BULK l l l l l l l l l l l l l"]);
    }

    fn node() -> NodeName {
        NodeName::new("a").unwrap()
    }

    fn start(calls_per_second: u32, burst: u32, concurrent_max: usize) -> (Budget, Scope) {
        let scope = Scope::new();
        let config = BudgetConfig {
            calls_per_second,
            burst,
            concurrent_max,
        };
        (Budget::start(config, &Registry::new(), &scope), scope)
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_after_the_burst() {
        let (budget, _scope) = start(10, 5, 100);
        let began = Instant::now();
        for _ in 0..25 {
            drop(budget.acquire(Class::Status, &node()).await);
        }
        let passed = began.elapsed();
        assert!(
            Duration::from_millis(1990) <= passed && passed <= Duration::from_millis(2100),
            "{passed:?}"
        );
    }

    #[tokio::test]
    async fn a_place_is_given_back_and_one_who_gave_up_takes_none() {
        let (budget, _scope) = start(1000, 1000, 1);
        let first = budget.acquire(Class::Other, &node()).await;
        let impatient = {
            let budget = budget.clone();
            tokio::spawn(async move { budget.acquire(Class::Lease, &node()).await })
        };
        while budget.arriving.capacity() < ARRIVING_MAX {
            tokio::task::yield_now().await;
        }
        impatient.abort();
        assert!(impatient.await.is_err());
        drop(first);
        drop(budget.acquire(Class::Other, &node()).await);
    }
}
