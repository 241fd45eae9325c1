//! The one thread that writes: drains the queue, commits once, tells the listener, answers everyone.

use super::{
    Action, BATCH_MAX, ChangeKind, Commit, Expect, Listener, Revision, Write, WriteError, memory::Memory,
    sqlite::Sqlite,
};
use tokio::sync::{mpsc, oneshot};

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

    fn commit(&mut self, last: Revision) -> Result<(), Failure> {
        match self {
            Self::Sqlite(sqlite) => sqlite.commit(last),
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

pub(super) struct Writer {
    backend: Backend,
    revision: Revision,
    listener: Listener,
}

impl Writer {
    pub(super) fn new(backend: Backend, revision: Revision, listener: Listener) -> Self {
        Self {
            backend,
            revision,
            listener,
        }
    }

    pub(super) fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut closing = None;
        while closing.is_none() {
            let Some(first) = orders.blocking_recv() else {
                return;
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
        }
        drop(orders);
        drop(self);
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
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

    fn transact(&mut self, writes: &[Write]) -> Result<Vec<Result<Revision, WriteError>>, Failure> {
        match self.attempt(writes) {
            Ok((answers, commits)) => {
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

    #[allow(clippy::type_complexity)] // the two lists are of different lengths, and nobody else sees them
    fn attempt(
        &mut self,
        writes: &[Write],
    ) -> Result<(Vec<Result<Revision, WriteError>>, Vec<Commit>), Failure> {
        self.backend.begin()?;
        let mut answers = Vec::with_capacity(writes.len());
        let mut commits: Vec<Commit> = Vec::with_capacity(writes.len());
        for write in writes {
            let found = self.backend.found(&write.key)?;
            let kind = match (write.expect, found, &write.action) {
                (Expect::Absent, None, Action::Put(_)) => ChangeKind::Created,
                (Expect::At(expected), Some(at), Action::Put(_)) if expected == at => ChangeKind::Updated,
                (Expect::At(expected), Some(at), Action::Delete(_)) if expected == at => ChangeKind::Deleted,
                (expected, found, _) => {
                    answers.push(Err(WriteError::Conflict {
                        key: write.key.clone(),
                        expected,
                        found,
                    }));
                    continue;
                }
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
            self.backend.apply(write, &commit)?;
            answers.push(Ok(revision));
            commits.push(commit);
        }
        self.backend
            .commit(commits.last().map_or(self.revision, |commit| commit.revision))?;
        Ok((answers, commits))
    }
}

fn answer(replies: Vec<Reply>, answers: Vec<Result<Revision, WriteError>>) {
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
