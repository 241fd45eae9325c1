//! The store on SQLite: one thread owns the one connection; writes that wait together share a transaction.

use super::damage::{self, Mended};
use super::official::{self, Exported, Imported, Take};
use super::outbox::{OutboxUse, StoredReport};
use super::seal::Sealer;
use super::{Activity, Cause, DigestRow, Error, Opened, Row, Settings, Write, Written, error, rows, schema};
use rusqlite::{Connection, TransactionBehavior};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// Orders that wait for the thread. Beyond it the submitter waits: a few commits' worth of work.
const QUEUE_MAX: usize = 256;
/// Writes in one transaction; bounds how long the first of them waits for its answer.
const BATCH_MAX: usize = 128;
/// A file system that damages every file would else make the store mend all the time.
const MEND_PAUSE: Duration = Duration::from_secs(60);

type Answer = oneshot::Sender<Result<Written, Error>>;

/// Called a second time, as the last attempt, when the first met damage. True: it did, and has not answered.
type Read = Box<dyn FnMut(&Database, bool) -> bool + Send>;

enum Order {
    Write(Write, Answer),
    Read(Read),
}

#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    queue: mpsc::Sender<Order>,
    shared: Arc<Mutex<Shared>>,
    mended: watch::Receiver<u64>,
}

/// What the thread tells without being asked.
#[derive(Debug, Clone, Copy, Default)]
struct Shared {
    used: OutboxUse,
    activity: Activity,
}

impl Sqlite {
    pub(super) fn open(settings: Settings) -> Result<Opened<Self>, Error> {
        let mut start = Start::new(&settings)?;
        start.take_over(if start.mended.is_some() {
            Take::Not
        } else {
            Take::IfChanged
        })?;
        start.finish_rotation()?;
        let unopened = start.drop_unopened()?;
        let Start {
            database,
            mended,
            imported,
            ..
        } = start;
        let used = database.on_open(|database| rows::count_outbox(&database.connection, 0))?;
        database.on_open(|database| database.connection.execute_batch("PRAGMA shrink_memory"))?;

        let (queue, orders) = mpsc::channel(QUEUE_MAX);
        let activity = Activity::default();
        let shared = Arc::new(Mutex::new(Shared { used, activity }));
        let (mended_tx, mended_rx) = watch::channel(0);
        let path = database.path.clone();
        let thread = Writer {
            settings,
            database: Some(database),
            told: Shared { used, activity },
            shared: Arc::clone(&shared),
            mended: mended_tx,
            mended_at: None,
        };
        std::thread::Builder::new()
            .name("meta-store".to_owned())
            .spawn(move || thread.run(orders))
            .map_err(|error| Error::Open {
                path,
                cause: Cause::Io(error),
            })?;
        Ok(Opened {
            store: Self {
                queue,
                shared,
                mended: mended_rx,
            },
            imported,
            mended,
            unopened,
        })
    }

    pub(super) async fn submit(
        &self,
        write: Write,
    ) -> Result<oneshot::Receiver<Result<Written, Error>>, Error> {
        let (tx, rx) = oneshot::channel();
        let what = error::name_of(&write);
        let sent = self.queue.send(Order::Write(write, tx)).await;
        sent.map_err(|_| Error::Ended { what })?;
        Ok(rx)
    }

    pub(super) async fn get(&self, key: String) -> Result<Option<Row>, Error> {
        let what = error::object_name(&key);
        self.read(what, move |db| rows::get(&db.connection, &db.sealer, &key))
            .await
    }

    pub(super) async fn list(&self, kind: Option<String>) -> Result<Vec<Row>, Error> {
        let what = kind.clone().unwrap_or_else(|| "all objects".to_owned());
        self.read(what, move |db| {
            let rows = rows::list(&db.connection, &db.sealer, kind.as_deref())?;
            // A long list went through the page cache and is not read again soon.
            db.connection.execute_batch("PRAGMA shrink_memory")?;
            Ok(rows)
        })
        .await
    }

    pub(super) async fn digest(&self) -> Result<Vec<DigestRow>, Error> {
        self.read("the digest".to_owned(), |db| rows::digest(&db.connection))
            .await
    }

    pub(super) async fn complete(&self) -> Result<bool, Error> {
        self.read("whether anything is missing".to_owned(), |db| {
            rows::is_complete(&db.connection)
        })
        .await
    }

    pub(super) async fn reports(&self, max: usize) -> Result<Vec<StoredReport>, Error> {
        self.read("the outbox".to_owned(), move |db| {
            rows::reports(&db.connection, max)
        })
        .await
    }

    pub(super) fn outbox_use(&self) -> OutboxUse {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).used
    }

    pub(super) fn activity(&self) -> Activity {
        self.shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .activity
    }

    pub(super) fn mended(&self) -> watch::Receiver<u64> {
        self.mended.clone()
    }

    /// Runs a query in its place between the writes: it sees all that were submitted before it.
    async fn read<T: Send + 'static>(
        &self,
        what: String,
        mut query: impl FnMut(&Database) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (tx, rx) = oneshot::channel();
        let (mut tx, name) = (Some(tx), what.clone());
        let read = move |database: &Database, last: bool| {
            let result = query(database).map_err(Cause::from);
            if !last && matches!(result, Err(Cause::Damaged(_))) {
                return true;
            }
            let what = name.clone();
            if let Some(tx) = tx.take() {
                // An asker that gave up is not an error.
                let _ = tx.send(result.map_err(|cause| Error::Read { what, cause }));
            }
            false
        };
        let ended = |what| Error::Ended {
            what: format!("read {what}"),
        };
        let sent = self.queue.send(Order::Read(Box::new(read))).await;
        if sent.is_err() {
            return Err(ended(what));
        }
        rx.await.unwrap_or_else(|_| Err(ended(what)))
    }
}

/// An open file and what opens its sealed values.
struct Database {
    path: PathBuf,
    connection: Connection,
    sealer: Sealer,
}

impl Database {
    fn on_open<T>(&self, act: impl FnOnce(&Self) -> rusqlite::Result<T>) -> Result<T, Error> {
        act(self).map_err(|error| schema::open_error(&self.path, error))
    }
}

/// The steps from a file, whatever its state, to a store.
struct Start<'a> {
    settings: &'a Settings,
    database: Database,
    mended: Option<Mended>,
    imported: Option<Imported>,
}

impl<'a> Start<'a> {
    fn new(settings: &'a Settings) -> Result<Self, Error> {
        let path = settings.database();
        let sealer = Sealer::open(&settings.key_file)?;
        let cut_off = damage::finish(&path).map_err(|error| Error::Open {
            path: path.clone(),
            cause: Cause::Io(error),
        })?;
        let (connection, mended) = match schema::open(&path, &settings.limits) {
            Ok(connection) if cut_off => {
                let mended = Mended::counted(&connection, &path);
                let mended = mended.map_err(|error| schema::open_error(&path, error))?;
                (connection, Some(mended))
            }
            Ok(connection) => (connection, None),
            Err(Error::Damaged { detail, .. }) => {
                let (connection, mended) = damage::mend(&path, &sealer, &settings.limits, &detail)?;
                (connection, Some(mended))
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            settings,
            database: Database {
                path,
                connection,
                sealer,
            },
            mended,
            imported: None,
        })
    }

    fn take_over(&mut self, take: Take) -> Result<(), Error> {
        let Database {
            connection, sealer, ..
        } = &mut self.database;
        let Settings {
            data_source, limits, ..
        } = self.settings;
        self.imported = official::take_over(data_source, connection, sealer, limits, take)?;
        Ok(())
    }

    /// A rotation that a power cut ended is taken up where it was.
    fn finish_rotation(&mut self) -> Result<usize, Error> {
        if !self.database.sealer.has_old_keys() {
            return Ok(0);
        }
        let Database {
            connection,
            sealer,
            path,
        } = &mut self.database;
        let mut anew = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let count = rows::reseal(&transaction, sealer)?;
            transaction.commit()?;
            // The log holds what was sealed with the old key.
            connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
            Ok(count)
        };
        let count = anew().map_err(|error| schema::open_error(path, error))?;
        sealer.drop_old_keys(&self.settings.key_file)?;
        Ok(count)
    }

    fn drop_unopened(&self) -> Result<Vec<String>, Error> {
        let drop = |database: &Database| rows::drop_unopened(&database.connection, &database.sealer);
        let lost = self.database.on_open(drop)?;
        if !lost.is_empty() {
            tracing::warn!(
                lost = lost.len(),
                first = lost.first(),
                key_file = %self.settings.key_file.display(),
                "secrets and tokens in the store were sealed with a key that is no longer there; they are dropped and \
                 asked of the cloud again"
            );
        }
        Ok(lost)
    }
}

/// Takes the rows of the official database, whether they changed or not.
pub(super) fn import(settings: &Settings) -> Result<Imported, Error> {
    let mut start = Start::new(settings)?;
    start.take_over(Take::Always)?;
    start.imported.ok_or_else(|| Error::NotOfficial {
        path: settings.data_source.clone(),
    })
}

/// Writes the official database.
pub(super) fn export(settings: &Settings) -> Result<Exported, Error> {
    official::require(&settings.database())?;
    let mut start = Start::new(settings)?;
    let reports = start
        .database
        .on_open(|database| rows::count_outbox(&database.connection, 0))?
        .reports;
    let Database {
        connection, sealer, ..
    } = &mut start.database;
    official::export(&settings.data_source, connection, sealer, reports)
}

/// Seals everything with a new key. Number of values.
pub(super) fn rotate_key(settings: &Settings) -> Result<usize, Error> {
    official::require(&settings.database())?;
    let mut start = Start::new(settings)?;
    start.finish_rotation()?;
    start.drop_unopened()?;
    start.database.sealer.add_key(&settings.key_file)?;
    start.finish_rotation()
}

/// Owns the connection while the store lives.
struct Writer {
    settings: Settings,
    /// Nothing only while a damaged file could not be mended.
    database: Option<Database>,
    told: Shared,
    shared: Arc<Mutex<Shared>>,
    mended: watch::Sender<u64>,
    mended_at: Option<Instant>,
}

impl Writer {
    fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while let Some(first) = orders.blocking_recv() {
            let mut read = self.sort(first, &mut batch);
            while read.is_none() && batch.len() < BATCH_MAX {
                let Ok(order) = orders.try_recv() else { break };
                read = self.sort(order, &mut batch);
            }
            self.commit(&mut batch);
            if let Some(read) = read {
                self.read(read);
            }
        }
    }

    fn sort(&self, order: Order, batch: &mut Vec<(Write, Answer)>) -> Option<Read> {
        match order {
            Order::Write(write, answer) => {
                batch.push((write, answer));
                None
            }
            Order::Read(read) => Some(read),
        }
    }

    fn read(&mut self, mut read: Read) {
        if let Some(database) = &self.database
            && !read(database, false)
        {
            return;
        }
        self.mend("met while reading");
        // Without a database the read is dropped, which tells the asker.
        if let Some(database) = &self.database {
            read(database, true);
        }
    }

    /// Commits all together; if that fails, one by one, so that each failure is told to whom it concerns.
    fn commit(&mut self, batch: &mut Vec<(Write, Answer)>) {
        if batch.is_empty() {
            return;
        }
        let writes: Vec<&Write> = batch.iter().map(|(write, _)| write).collect();
        let mut together = self.transact(&writes);
        if is_damage(&together) {
            self.mend("met while writing");
            together = self.transact(&writes);
        }
        if let Ok(done) = together {
            for ((_, answer), written) in batch.drain(..).zip(done) {
                // An asker that gave up is not an error.
                let _ = answer.send(Ok(written));
            }
            return;
        }
        for (write, answer) in batch.drain(..) {
            let result = self
                .transact(&[&write])
                .map(|mut done| done.pop().unwrap_or_default());
            let _ = answer.send(result);
        }
    }

    fn transact(&mut self, writes: &[&Write]) -> Result<Vec<Written>, Error> {
        let name = || {
            writes
                .first()
                .map_or_else(String::new, |write| error::name_of(write))
        };
        let Some(database) = &mut self.database else {
            return Err(Error::Write {
                what: name(),
                cause: Cause::Damaged("it could not be mended".to_owned()),
            });
        };
        let failed = |error: rusqlite::Error| Error::Write {
            what: name(),
            cause: error.into(),
        };
        let mut told = self.told;
        // Dropping the transaction rolls it back.
        let transaction = database
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let mut done = Vec::with_capacity(writes.len());
        for (write, superseded) in writes.iter().zip(superseded(writes)) {
            if superseded {
                told.activity.superseded += 1;
                done.push(Written {
                    changed: true,
                    ..Written::default()
                });
                continue;
            }
            let limits = &self.settings.limits;
            let written = rows::apply(&transaction, &database.sealer, write, &mut told.used, limits)?;
            told.activity.changes += u64::from(written.changed);
            done.push(written);
        }
        transaction.commit().map_err(failed)?;
        told.activity.commits += 1;
        self.told = told;
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = told;
        Ok(done)
    }

    /// Replaces a damaged file and goes on with what can be read of it.
    fn mend(&mut self, detail: &str) {
        let now = Instant::now();
        if self.mended_at.is_some_and(|at| now - at < MEND_PAUSE) {
            return;
        }
        self.mended_at = Some(now);
        // Closed first: it holds the lock.
        self.database = None;
        let limits = &self.settings.limits;
        let path = self.settings.database();
        let mend = || {
            let sealer = Sealer::open(&self.settings.key_file)?;
            let (connection, _) = damage::mend(&path, &sealer, limits, detail)?;
            let used = rows::count_outbox(&connection, self.told.used.dropped)
                .map_err(|error| schema::open_error(&path, error))?;
            let path = path.clone();
            Ok::<_, Error>((
                Database {
                    path,
                    connection,
                    sealer,
                },
                used,
            ))
        };
        match mend() {
            Ok((database, used)) => {
                self.database = Some(database);
                self.told.used = used;
                self.told.activity.mended += 1;
                *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = self.told;
                self.mended.send_modify(|times| *times += 1);
            }
            Err(error) => tracing::error!(%error, "the damaged store could not be mended; nothing is stored"),
        }
    }
}

fn is_damage<T>(result: &Result<T, Error>) -> bool {
    matches!(
        result,
        Err(Error::Write {
            cause: Cause::Damaged(_),
            ..
        })
    )
}

/// For each write whether the next write of its key in this batch replaces it, so that only the newest state of an
/// object that changes a thousand times a second goes to the disk. Each is answered once that one is durable.
fn superseded(writes: &[&Write]) -> Vec<bool> {
    let mut next_is_put: HashMap<&str, bool> = HashMap::new();
    let mut superseded = vec![false; writes.len()];
    for (index, write) in writes.iter().enumerate().rev() {
        match write {
            Write::Put(row) => {
                let later = next_is_put.insert(&row.key, true);
                superseded[index] = later == Some(true);
            }
            // Whether it finds something depends on what was there before.
            Write::Delete { key, .. } => {
                next_is_put.insert(key, false);
            }
            Write::Push(_) | Write::Forget { .. } | Write::Complete => {}
        }
    }
    superseded
}
