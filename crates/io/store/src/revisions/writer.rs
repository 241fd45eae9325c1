//! The one thread that writes: drains the queue, commits once, tells the listener, answers everyone; and between two
//! batches writes a slice of what was kept lazily.

use super::{
    Action, BATCH_MAX, ChangeKind, Commit, Expect, Keep, LAZY_MAX, Listener, REVISIONS_RESERVED, Revision,
    SNAPSHOT_SLICE, Write, WriteError, memory::Memory, sqlite::Sqlite,
};
use bytes::Bytes;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Pause after the disk refused a slice of the snapshot: nobody waits for it, and trying costs.
const REFUSED_REST: Duration = Duration::from_secs(5);

pub(super) type Reply = oneshot::Sender<Result<Revision, WriteError>>;

#[derive(Debug)]
pub(super) enum Order {
    Write { write: Write, reply: Reply },
    Close { reply: oneshot::Sender<()> },
}

pub(super) enum Backend {
    Sqlite(Box<Sqlite>),
    Memory(Memory),
}

/// Why a batch did not reach the disk.
pub(super) struct Failure(pub(super) rusqlite::Error);

impl Backend {
    fn begin(&mut self) -> Result<(), Failure> {
        match self {
            Self::Sqlite(sqlite) => sqlite.begin(),
            Self::Memory(_) => Ok(()),
        }
    }

    fn found(&mut self, key: &str) -> Result<Option<Revision>, Failure> {
        match self {
            Self::Sqlite(sqlite) => sqlite.found(key),
            Self::Memory(memory) => Ok(memory.found(key)),
        }
    }

    fn apply(&mut self, write: &Write, commit: &Commit) -> Result<(), Failure> {
        match self {
            Self::Sqlite(sqlite) => sqlite.apply(write, commit),
            Self::Memory(memory) => {
                memory.apply(write, commit);
                Ok(())
            }
        }
    }

    fn snapshot(&mut self, key: &str, state: &State) -> Result<(), Failure> {
        match self {
            Self::Sqlite(sqlite) => {
                let value = state.value.as_ref().map(|value| (state.revision, &value[..]));
                sqlite.snapshot(key, value)
            }
            Self::Memory(_) => Ok(()),
        }
    }

    fn reserve(&mut self, up_to: Revision) -> Result<(), Failure> {
        match self {
            Self::Sqlite(sqlite) => sqlite.reserve(up_to),
            Self::Memory(_) => Ok(()),
        }
    }

    fn commit(&mut self) -> Result<(), Failure> {
        match self {
            Self::Sqlite(sqlite) => sqlite.commit(),
            Self::Memory(_) => Ok(()),
        }
    }

    fn rollback(&mut self) {
        match self {
            Self::Sqlite(sqlite) => sqlite.rollback(),
            Self::Memory(_) => {}
        }
    }
}

/// What a lazily kept change made of a key.
#[derive(Debug, Clone)]
struct State {
    revision: Revision,
    /// `None`: removed.
    value: Option<Bytes>,
}

impl State {
    fn found(&self) -> Option<Revision> {
        self.value.as_ref().map(|_| self.revision)
    }
}

/// What a batch does to the keys that are kept lazily.
#[derive(Debug)]
enum Staged {
    Lazy(State),
    /// The change goes to the disk with the batch.
    Durable(Option<Revision>),
}

pub(super) struct Writer {
    backend: Backend,
    revision: Revision,
    /// Revisions up to here may be given to lazily kept changes.
    reserved: Revision,
    listener: Listener,
    /// Lazily kept changes that are not on the disk.
    lazy: HashMap<String, State>,
    /// Keys that the snapshot under way has still to write.
    due: Vec<String>,
    snapshot_period: Duration,
    next_snapshot: Instant,
    /// After the disk refused a slice it is left alone until then.
    rests_until: Instant,
}

type Answers = Vec<Result<Revision, WriteError>>;

impl Writer {
    pub(super) fn new(
        backend: Backend,
        revision: Revision,
        snapshot_period: Duration,
        listener: Listener,
    ) -> Self {
        Self {
            backend,
            revision,
            reserved: revision,
            listener,
            lazy: HashMap::new(),
            due: Vec::new(),
            snapshot_period,
            next_snapshot: Instant::now(),
            rests_until: Instant::now(),
        }
    }

    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut closing = None;
        while closing.is_none() {
            let first = match self.next(&mut orders).await {
                Next::Order(order) => order,
                Next::Snapshot => {
                    self.write_slice();
                    continue;
                }
                Next::End => break,
            };
            let mut batch = Vec::new();
            let mut next = Some(first);
            while let Some(order) = next.take() {
                match order {
                    Order::Write { write, reply } => batch.push((write, reply)),
                    Order::Close { reply } => {
                        closing = Some(reply);
                        break;
                    }
                }
                if batch.len() < BATCH_MAX {
                    next = orders.try_recv().ok();
                }
            }
            self.handle(batch);
            if self.snapshot_is_due() {
                self.write_slice();
            }
        }
        drop(orders);
        self.finish();
        drop(self);
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    /// The next order, or the moment of the next slice of the snapshot.
    async fn next(&mut self, orders: &mut mpsc::Receiver<Order>) -> Next {
        let order = if self.lazy.is_empty() {
            orders.recv().await
        } else if self.due.is_empty() {
            match tokio::time::timeout_at(self.next_snapshot, orders.recv()).await {
                Ok(order) => order,
                Err(_) => return Next::Snapshot,
            }
        } else {
            match orders.try_recv() {
                Ok(order) => Some(order),
                Err(mpsc::error::TryRecvError::Empty) => return Next::Snapshot,
                Err(mpsc::error::TryRecvError::Disconnected) => None,
            }
        };
        order.map_or(Next::End, Next::Order)
    }

    /// Commits a batch. When a batch of several fails, each write is tried alone, so that one that does not fit does
    /// not fail its neighbours.
    fn handle(&mut self, batch: Vec<(Write, Reply)>) {
        if batch.is_empty() {
            return;
        }
        let (writes, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        match self.transact(&writes) {
            Ok(answers) => answer(replies, answers),
            Err(failure) if writes.len() == 1 => {
                answer(replies, vec![Err(write_error(&writes[0].key, failure))]);
            }
            Err(_) => {
                for (write, reply) in writes.into_iter().zip(replies) {
                    let result = match self.transact(std::slice::from_ref(&write)) {
                        Ok(mut answers) => answers.pop().unwrap_or(Err(WriteError::Closed)),
                        Err(failure) => Err(write_error(&write.key, failure)),
                    };
                    answer(vec![reply], vec![result]);
                }
            }
        }
    }

    fn transact(&mut self, writes: &[Write]) -> Result<Answers, Failure> {
        let durable = writes.iter().any(|write| !self.is_lazy(write));
        let last = self.revision + writes.len() as u64;
        let lazy = writes.iter().any(|write| self.is_lazy(write));
        let reserve = (lazy && last > self.reserved).then_some(last + REVISIONS_RESERVED);
        let on_disk = durable || reserve.is_some();
        let mut staged = HashMap::new();
        match self.attempt(writes, on_disk, reserve, &mut staged) {
            Ok((answers, commits)) => {
                self.reserved = reserve.unwrap_or(self.reserved);
                self.take(staged);
                if let Some(last) = commits.last() {
                    self.revision = last.revision;
                    (self.listener)(commits);
                }
                Ok(answers)
            }
            Err(failure) => {
                self.backend.rollback();
                Err(failure)
            }
        }
    }

    /// In memory there is nothing to put off; and when the disk has taken no snapshot for long, it shall say why.
    fn is_lazy(&self, write: &Write) -> bool {
        match (&self.backend, write.keep) {
            (Backend::Sqlite(_), Keep::Lazily) => {
                self.lazy.len() < 2 * LAZY_MAX || self.lazy.contains_key(&write.key)
            }
            (Backend::Sqlite(_), Keep::Durably) | (Backend::Memory(_), Keep::Durably | Keep::Lazily) => false,
        }
    }

    fn attempt(
        &mut self,
        writes: &[Write],
        on_disk: bool,
        reserve: Option<Revision>,
        staged: &mut HashMap<String, Staged>,
    ) -> Result<(Answers, Vec<Commit>), Failure> {
        if on_disk {
            self.backend.begin()?;
        }
        let mut answers = Vec::with_capacity(writes.len());
        let mut commits: Vec<Commit> = Vec::with_capacity(writes.len());
        for write in writes {
            let found = self.found(&write.key, staged)?;
            let Some(kind) = change_kind(write, found) else {
                answers.push(Err(WriteError::Conflict {
                    key: write.key.clone(),
                    expected: write.expect,
                    found,
                }));
                continue;
            };
            let revision = self.revision + 1 + commits.len() as u64;
            let value = match &write.action {
                Action::Put(draft) | Action::Delete(draft) => draft.print(revision),
            };
            let commit = Commit {
                revision,
                key: write.key.clone(),
                kind,
                value,
            };
            let stays = kind != ChangeKind::Deleted;
            if self.is_lazy(write) {
                let value = stays.then(|| commit.value.clone());
                staged.insert(write.key.clone(), Staged::Lazy(State { revision, value }));
            } else {
                self.backend.apply(write, &commit)?;
                let known = self.lazy.contains_key(&write.key) || staged.contains_key(&write.key);
                if known {
                    let left = stays.then_some(revision);
                    staged.insert(write.key.clone(), Staged::Durable(left));
                }
            }
            answers.push(Ok(revision));
            commits.push(commit);
        }
        if let Some(up_to) = reserve {
            self.backend.reserve(up_to)?;
        }
        if on_disk {
            self.backend.commit()?;
        }
        Ok((answers, commits))
    }

    /// The revision of what is stored under a key: as this batch left it, as it waits in memory, as it is on the disk.
    fn found(&mut self, key: &str, staged: &HashMap<String, Staged>) -> Result<Option<Revision>, Failure> {
        match staged.get(key) {
            Some(Staged::Lazy(state)) => return Ok(state.found()),
            Some(Staged::Durable(revision)) => return Ok(*revision),
            None => {}
        }
        match self.lazy.get(key) {
            Some(state) => Ok(state.found()),
            None => self.backend.found(key),
        }
    }

    fn take(&mut self, staged: HashMap<String, Staged>) {
        if self.lazy.is_empty() {
            self.next_snapshot = Instant::now() + self.snapshot_period;
        }
        for (key, staged) in staged {
            match staged {
                Staged::Lazy(state) => {
                    self.lazy.insert(key, state);
                }
                Staged::Durable(_) => {
                    self.lazy.remove(&key);
                }
            }
        }
    }

    fn snapshot_is_due(&self) -> bool {
        let now = Instant::now();
        let early = !self.due.is_empty() || self.lazy.len() > LAZY_MAX;
        let wanted = early || (!self.lazy.is_empty() && now >= self.next_snapshot);
        wanted && now >= self.rests_until
    }

    /// Writes a part of what waits in memory. A disk that does not take it is asked again in the next period: nobody
    /// was promised more.
    fn write_slice(&mut self) {
        if self.due.is_empty() {
            self.due = self.lazy.keys().cloned().collect();
            self.next_snapshot = Instant::now() + self.snapshot_period;
        }
        let from = self.due.len().saturating_sub(SNAPSHOT_SLICE);
        let slice = self.due.split_off(from);
        match self.try_slice(&slice) {
            Ok(()) => {
                for key in slice {
                    self.lazy.remove(&key);
                }
            }
            Err(Failure(error)) => {
                self.backend.rollback();
                tracing::warn!(%error, waiting = self.lazy.len(), "the snapshot of leases and events was put off");
                self.due.clear();
                self.rests_until = Instant::now() + REFUSED_REST;
            }
        }
    }

    fn try_slice(&mut self, keys: &[String]) -> Result<(), Failure> {
        self.backend.begin()?;
        for key in keys {
            // A key that has gone from memory since is on the disk already.
            if let Some(state) = self.lazy.get(key) {
                self.backend.snapshot(key, state)?;
            }
        }
        self.backend.commit()
    }

    /// Everything to the disk, and the numbering goes on without a gap.
    fn finish(&mut self) {
        self.due.clear();
        while !self.lazy.is_empty() {
            let before = self.lazy.len();
            self.write_slice();
            if self.lazy.len() == before {
                return;
            }
        }
        if self.reserved == self.revision {
            return;
        }
        let done = self
            .backend
            .begin()
            .and_then(|()| self.backend.reserve(self.revision))
            .and_then(|()| self.backend.commit());
        if let Err(Failure(error)) = done {
            self.backend.rollback();
            tracing::warn!(%error, "the numbering of objects goes on after a gap");
        }
    }
}

enum Next {
    Order(Order),
    Snapshot,
    /// All handles are gone.
    End,
}

/// What the write does, when its expectation holds.
fn change_kind(write: &Write, found: Option<Revision>) -> Option<ChangeKind> {
    match (write.expect, found, &write.action) {
        (Expect::Absent, None, Action::Put(_)) => Some(ChangeKind::Created),
        (Expect::At(expected), Some(at), Action::Put(_)) if expected == at => Some(ChangeKind::Updated),
        (Expect::At(expected), Some(at), Action::Delete(_)) if expected == at => Some(ChangeKind::Deleted),
        _ => None,
    }
}

fn answer(replies: Vec<Reply>, answers: Answers) {
    for (reply, answer) in replies.into_iter().zip(answers) {
        // An asker that has gone away does not undo what is durable.
        let _ = reply.send(answer);
    }
}

fn write_error(key: &str, Failure(source): Failure) -> WriteError {
    let key = key.to_owned();
    match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => WriteError::DiskFull { key },
        _ => WriteError::Storage {
            key,
            source: std::sync::Arc::new(source),
        },
    }
}
